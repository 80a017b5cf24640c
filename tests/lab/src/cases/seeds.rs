// SPDX-License-Identifier: GPL-2.0

//! The five stories, as their authors tell them.

use super::Case;

pub const CASES: &[Case] = &[];
