// SPDX-License-Identifier: GPL-2.0

//! Finding the capabilities that have a policy (behaviour, section 6.5).
//!
//! The list is the device's, so it is not believed: at most [`MAX_STEPS`] steps (as many as fit
//! between 0x40 and 0xff), no pointer into the header, so that a list that loops or points astray
//! costs a bounded time and nothing else.

use super::table::{Dword, PME_ENABLE};
use super::{Function, VirtualConfigSpace};
use crate::access::{AccessWidth, ConfigAccess};
use crate::op::OpStatus;

/// The longest walk along a list of capabilities.
const MAX_STEPS: usize = 48;

/// STATUS: the function has a list of capabilities.
const STATUS_CAP_LIST: u32 = 0x10;
const STATUS: ConfigAccess = ConfigAccess::of_table(1, 2, AccessWidth::Word);
const CAP_POINTER: ConfigAccess = ConfigAccess::of_table(13, 0, AccessWidth::Byte);
/// The first dword behind the header.
const FIRST: u8 = 16;
/// What a list reads that no device answers for.
const NO_DEVICE: u32 = 0xff;

/// The capabilities that have rows. Only the first one of each kind counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum CapabilityId {
    /// Power management.
    Power = 0x01,
    /// Vital product data.
    Vpd = 0x03,
    /// Message signalled interrupts.
    Msi = 0x05,
    /// MSI-X.
    Msix = 0x11,
}

/// Walks the list once and notes the dword number of the first VPD, PM, MSI and MSI-X capability,
/// in this order.
fn find<F: Function>(function: &mut F) -> Result<[Option<u8>; 4], OpStatus> {
    let mut found = [None; 4];
    if function.read(STATUS)? & STATUS_CAP_LIST == 0 {
        return Ok(found);
    }
    let mut pointer = function.read(CAP_POINTER)?;
    for _ in 0..MAX_STEPS {
        // CAST: a byte register; the two low bits are reserved.
        let dword = (pointer as u8) >> 2;
        let head = ConfigAccess::of_table(dword, 0, AccessWidth::Word);
        if dword < FIRST || head.end() > u32::from(function.config_size()) {
            break;
        }
        let value = function.read(head)?;
        let id = value & 0xff;
        if id == NO_DEVICE {
            break;
        }
        let order = [
            CapabilityId::Vpd,
            CapabilityId::Power,
            CapabilityId::Msi,
            CapabilityId::Msix,
        ];
        for (slot, wanted) in found.iter_mut().zip(order) {
            if id == u32::from(wanted as u8) && slot.is_none() {
                *slot = Some(dword);
            }
        }
        pointer = (value >> 8) & 0xff;
    }
    Ok(found)
}

/// Gives the capabilities of the function their rows.
pub(super) fn add<F: Function>(
    space: &mut VirtualConfigSpace,
    function: &mut F,
) -> Result<(), OpStatus> {
    let [vpd, power, msi, msix] = find(function)?;
    if let Some(dword) = vpd {
        space.claim(dword, Dword::VpdHead);
        space.claim(dword.saturating_add(1), Dword::VpdData);
    }
    if let Some(dword) = power {
        space.claim(dword, Dword::PowerHead);
        let control_dword = dword.saturating_add(1);
        let control = ConfigAccess::of_table(control_dword, 0, AccessWidth::Word);
        let fits = control.end() <= u32::from(function.config_size());
        if fits && space.claim(control_dword, Dword::PowerControl) {
            let value = function.read(control)?;
            if value & PME_ENABLE != 0 {
                function.write(control, value & !PME_ENABLE)?;
            }
        }
    }
    // The control registers are the upper halves of the first dwords.
    let control = |dword| ConfigAccess::of_table(dword, 2, AccessWidth::Word);
    if let Some(dword) = msi {
        if space.claim(dword, Dword::MsiHead) {
            space.msi_control = Some(control(dword));
        }
    }
    if let Some(dword) = msix {
        if space.claim(dword, Dword::MsixHead) {
            space.msix_control = Some(control(dword));
        }
    }
    Ok(())
}
