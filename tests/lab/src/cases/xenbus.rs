// SPDX-License-Identifier: GPL-2.0

//! The handshake, hot-plug, several devices (section D).

use super::Case;

pub const CASES: &[Case] = &[];
