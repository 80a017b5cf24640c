// SPDX-License-Identifier: GPL-2.0

//! Spot checks of configuration space from guest and host (section F).

use super::Case;

pub const CASES: &[Case] = &[];
