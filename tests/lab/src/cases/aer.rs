// SPDX-License-Identifier: GPL-2.0

//! Errors of the PCIe hierarchy (section H).

use super::Case;

pub const CASES: &[Case] = &[];
