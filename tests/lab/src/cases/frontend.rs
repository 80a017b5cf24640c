// SPDX-License-Identifier: GPL-2.0

//! The frontend: buses, transport, cache, its life and its messages (section I).

use super::Case;

pub const CASES: &[Case] = &[];
