// SPDX-License-Identifier: GPL-2.0

//! MSI and MSI-X of passed-through functions: the entry points that the x86 Xen code calls.
//!
//! Sleepable context, under the MSI code's descriptor lock. The numbers in the answers are pirqs,
//! which that code binds to interrupts. A positive result of [`enable_msix`] makes the PCI core ask again
//! with that number, if the driver is content with so many; see [`pciif::vectors`]. Before it does,
//! it calls [`disable_msix`], which does nothing to a function without MSI-X.
//!
//! When the MSI code tears down the vectors of a function it has noted already that MSI-X is off, and
//! asks for the end of MSI. So what was enabled is remembered here ([`bus::note_msix`]), and that is
//! ended: a backend that still has MSI-X on refuses the next driver's vectors.

use crate::{bus, transport::Answer};
use core::ptr;
use kernel::{bindings, ffi, prelude::*};
use pciif::{
    op::{OpStatus, Opcode},
    vectors::{errno_of, first_request, msi_vector, msix_outcome, Outcome},
    wire::{MsixEntry, PciOp, MAX_MSIX_VECTORS},
};
use xen::sys;

struct Table(sys::xen_pci_frontend_ops);
// SAFETY: function pointers that are not changed.
unsafe impl Sync for Table {}

static TABLE: Table = Table(sys::xen_pci_frontend_ops {
    enable_msi: Some(enable_msi),
    disable_msi: Some(disable_msi),
    enable_msix: Some(enable_msix),
    disable_msix: Some(disable_msix),
});

/// The entry points while they are installed.
pub(crate) struct Hooks(());

impl Hooks {
    /// Before any bus exists.
    pub(crate) fn install() -> Self {
        // SAFETY: nobody uses MSI on our buses yet; the table is constant.
        unsafe { sys::xen_pci_frontend = (&raw const TABLE.0).cast_mut() };
        Self(())
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        // SAFETY: all buses are gone.
        unsafe { sys::xen_pci_frontend = ptr::null_mut() };
    }
}

/// Sends a request about `dev`.
///
/// # Safety
///
/// `dev` must be a live function.
unsafe fn ask(
    dev: *mut bindings::pci_dev,
    opcode: Opcode,
    value: u32,
    entries: &mut [MsixEntry],
) -> Result<Answer, OpStatus> {
    // SAFETY: a live function has a live bus.
    let (bus, devfn) = unsafe { ((*dev).bus, (*dev).devfn) };
    // SAFETY: as above.
    let transport = unsafe { bus::transport_of(bus) }.ok_or(OpStatus::DevNotFound)?;
    // SAFETY: a bus of ours, checked just now.
    let op = unsafe { bus::request(opcode, bus, devfn) };
    transport.exchange(&PciOp { value, ..op }, entries)
}

/// For log lines.
///
/// # Safety
///
/// `dev` must be a live function, and the result must not outlive it.
unsafe fn device<'a>(dev: *mut bindings::pci_dev) -> &'a kernel::device::Device {
    // SAFETY: promised by the caller.
    unsafe { kernel::device::Device::from_raw(&raw mut (*dev).dev) }
}

extern "C" fn enable_msi(dev: *mut bindings::pci_dev, vectors: *mut ffi::c_int) -> ffi::c_int {
    // SAFETY: the MSI code passes a live function.
    let vector = match unsafe { ask(dev, Opcode::EnableMsi, 0, &mut []) } {
        Ok(answer) => msi_vector(answer.err, answer.value),
        Err(status) => Err(errno_of(status.to_wire())),
    };
    match vector {
        Ok(pirq) => {
            // SAFETY: the caller wants one vector.
            unsafe { *vectors = pirq };
            0
        }
        Err(errno) => {
            // SAFETY: a live function.
            let device = unsafe { device(dev) };
            dev_warn!(device, "the backend gives no MSI: error {}\n", errno);
            errno.saturating_neg()
        }
    }
}

extern "C" fn disable_msi(dev: *mut bindings::pci_dev) {
    // SAFETY: the MSI code passes a live function.
    unsafe { disable(dev, Opcode::DisableMsi) }
}

/// Ends MSI-X if the function has it, else what `opcode` says.
///
/// # Safety
///
/// `dev` must be a live function.
unsafe fn disable(dev: *mut bindings::pci_dev, opcode: Opcode) {
    // SAFETY: a live function has a live bus.
    let had_msix = unsafe { bus::note_msix((*dev).bus, (*dev).devfn, false) };
    let opcode = if had_msix {
        Opcode::DisableMsix
    } else {
        opcode
    };
    // SAFETY: promised by the caller. There is nothing to do about an error: the backend ends MSI
    // itself when it takes the function back.
    let _ = unsafe { ask(dev, opcode, 0, &mut []) };
}

extern "C" fn enable_msix(
    dev: *mut bindings::pci_dev,
    vectors: *mut ffi::c_int,
    count: ffi::c_int,
) -> ffi::c_int {
    // SAFETY: the MSI code passes a live function, its descriptors locked, and room for `count`.
    let outcome = unsafe { try_msix(dev, vectors, count) };
    // SAFETY: a live function.
    let device = unsafe { device(dev) };
    match outcome {
        Outcome::Done => 0,
        Outcome::Fewer(fewer) => {
            dev_info!(
                device,
                "{} MSI-X vectors wanted, {} may be had\n",
                count,
                fewer
            );
            fewer.into()
        }
        Outcome::Failed(errno) => {
            dev_warn!(device, "the backend gives no MSI-X: error {}\n", errno);
            errno.saturating_neg()
        }
    }
}

/// Asks for `count` vectors and puts them into `vectors`.
///
/// # Safety
///
/// `dev` must be a live function whose MSI descriptors are locked, and `vectors` have room for
/// `count`.
unsafe fn try_msix(
    dev: *mut bindings::pci_dev,
    vectors: *mut ffi::c_int,
    count: ffi::c_int,
) -> Outcome {
    let wanted = match first_request(count) {
        Ok(wanted) => wanted,
        Err(outcome) => return outcome,
    };
    let mut numbers = [0u16; MAX_MSIX_VECTORS as usize];
    // SAFETY: the descriptors are locked; the array has room for all.
    let known = unsafe { sys::msix_wanted(dev, numbers.as_mut_ptr(), wanted.into()) };
    let mut entries = [MsixEntry::default(); MAX_MSIX_VECTORS as usize];
    for (entry, number) in entries.iter_mut().zip(numbers) {
        *entry = MsixEntry {
            vector: !0,
            entry: number,
        };
    }
    let Some(entries) = entries
        .get_mut(..usize::from(wanted))
        .filter(|_| known == count)
    else {
        return Outcome::Failed(EINVAL.to_errno().saturating_neg());
    };
    // SAFETY: a live function.
    let outcome = match unsafe { ask(dev, Opcode::EnableMsix, wanted.into(), entries) } {
        Ok(answer) => msix_outcome(answer.err, answer.value, entries),
        // No backend: asking again for fewer would only take longer.
        Err(status) => Outcome::Failed(errno_of(status.to_wire())),
    };
    if outcome == Outcome::Done {
        // SAFETY: a live function has a live bus.
        unsafe { bus::note_msix((*dev).bus, (*dev).devfn, true) };
        for (at, entry) in entries.iter().enumerate() {
            // SAFETY: room for `count`, which is the number of entries.
            unsafe { *vectors.add(at) = ffi::c_int::from(entry.vector) };
        }
    }
    outcome
}

extern "C" fn disable_msix(dev: *mut bindings::pci_dev) {
    // SAFETY: the MSI code passes a live function.
    unsafe { disable(dev, Opcode::DisableMsix) }
}
