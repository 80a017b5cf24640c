// SPDX-License-Identifier: GPL-2.0

//! INTx, MSI, MSI-X (section G).

use super::Case;

pub const CASES: &[Case] = &[];
