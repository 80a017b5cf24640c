// SPDX-License-Identifier: GPL-2.0

//! MSI and MSI-X of passed-through functions: the entry points that the x86 Xen code calls.
//!
//! Sleepable context, under the MSI code's descriptor lock. The numbers in the answers are pirqs,
//! which that code binds to interrupts.

use crate::bus;
use core::ptr;
use kernel::{bindings, ffi, prelude::*};
use pciif::{
    op::{OpStatus, Opcode},
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
) -> Result<u32, OpStatus> {
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
    match unsafe { ask(dev, Opcode::EnableMsi, 0, &mut []) }.map(i32::try_from) {
        Ok(Ok(pirq @ 1..)) => {
            // SAFETY: the caller wants one vector.
            unsafe { *vectors = pirq };
            0
        }
        answer => {
            // SAFETY: a live function.
            let device = unsafe { device(dev) };
            dev_warn!(device, "the backend gives no MSI: {:?}\n", answer);
            EINVAL.to_errno()
        }
    }
}

extern "C" fn disable_msi(dev: *mut bindings::pci_dev) {
    // SAFETY: the MSI code passes a live function. There is nothing to do about an error: the
    // backend ends MSI itself when it takes the function back.
    let _ = unsafe { ask(dev, Opcode::DisableMsi, 0, &mut []) };
}

extern "C" fn enable_msix(
    dev: *mut bindings::pci_dev,
    vectors: *mut ffi::c_int,
    count: ffi::c_int,
) -> ffi::c_int {
    let wanted = match u16::try_from(count) {
        Ok(wanted @ 1..=MAX_MSIX_VECTORS) => wanted,
        _ => {
            // SAFETY: the MSI code passes a live function.
            let device = unsafe { device(dev) };
            dev_warn!(
                device,
                "{} MSI-X vectors wanted, one request carries {}\n",
                count,
                MAX_MSIX_VECTORS
            );
            return EINVAL.to_errno();
        }
    };
    let mut numbers = [0u16; MAX_MSIX_VECTORS as usize];
    // SAFETY: the caller holds the descriptor lock; the array has room for all.
    let known = unsafe { sys::msix_wanted(dev, numbers.as_mut_ptr(), count) };
    if known != count {
        return EINVAL.to_errno();
    }
    let mut entries = [MsixEntry::default(); MAX_MSIX_VECTORS as usize];
    for (entry, number) in entries.iter_mut().zip(numbers) {
        *entry = MsixEntry {
            vector: !0,
            entry: number,
        };
    }
    let Some(entries) = entries.get_mut(..usize::from(wanted)) else {
        return EINVAL.to_errno();
    };
    // SAFETY: a live function.
    let answer = unsafe { ask(dev, Opcode::EnableMsix, u32::from(wanted), entries) };
    if answer != Ok(0) || entries.iter().any(|e| e.vector == 0 || e.vector == !0) {
        // SAFETY: a live function.
        let device = unsafe { device(dev) };
        dev_warn!(device, "the backend gives no MSI-X: {:?}\n", answer);
        return EINVAL.to_errno();
    }
    for (at, entry) in entries.iter().enumerate() {
        // SAFETY: the caller wants `count` vectors.
        unsafe { *vectors.add(at) = ffi::c_int::from(entry.vector) };
    }
    0
}

extern "C" fn disable_msix(dev: *mut bindings::pci_dev) {
    // SAFETY: as in `disable_msi`.
    let _ = unsafe { ask(dev, Opcode::DisableMsix, 0, &mut []) };
}
