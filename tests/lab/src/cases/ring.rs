// SPDX-License-Identifier: GPL-2.0

//! What a hostile frontend may try over the page, the event channel and the store (section E; 39 to 41, 74 to 76, 79 to 82).

use super::Case;

pub const CASES: &[Case] = &[];
