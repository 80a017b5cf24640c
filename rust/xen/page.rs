// SPDX-License-Identifier: GPL-2.0

//! The page that two domains share.
//!
//! The two rules of such memory: no reference or slice to it is ever made, and each word is read
//! once, into a copy that only we can see (XSA-155). Who writes which word is in
//! `pciif::wire`.

use crate::{sys, xenbus};
use kernel::{bindings, error::to_result, ffi, prelude::*};
use pciif::wire::{self, Flag};

/// Size of the shared page in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Access to the words of a shared page. All functions are atomic.
///
/// # Invariants
///
/// `base` points to `PAGE_BYTES` bytes, page aligned, mapped as long as this value is reachable:
/// it is only lent out by the owner of the page.
pub struct SharedPage {
    base: *mut u8,
}

// SAFETY: all accesses are volatile word accesses or locked bit operations.
unsafe impl Send for SharedPage {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// Address of a word, if it lies in the page and is aligned.
    fn word(&self, offset: usize) -> Option<*mut u32> {
        if offset % 4 != 0 || offset > PAGE_BYTES - 4 {
            return None;
        }
        // SAFETY: within the page by the check above.
        Some(unsafe { self.base.add(offset) }.cast())
    }

    /// Reads the word at byte `offset` once. Out of range reads as 0.
    pub fn read(&self, offset: usize) -> u32 {
        match self.word(offset) {
            // SAFETY: `word` gives a valid, aligned address; volatile, as the peer may write it.
            Some(p) => unsafe { p.read_volatile() },
            None => 0,
        }
    }

    /// Writes the word at byte `offset`. Out of range is ignored.
    pub fn write(&self, offset: usize, value: u32) {
        if let Some(p) = self.word(offset) {
            // SAFETY: as in `read`.
            unsafe { p.write_volatile(value) };
        }
    }

    /// Whether a bit of the flags word is set. What is read after this is not older.
    pub fn flag(&self, flag: Flag) -> bool {
        let set = self.read(wire::FLAGS) & flag.mask() != 0;
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        set
    }

    /// Sets a bit of the flags word: one locked instruction, no loop that the peer could prolong.
    /// Everything written before is visible before it.
    pub fn set_flag(&self, flag: Flag) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        // SAFETY: `set_bit` changes one bit of the aligned 8 bytes at the start of the page, which
        // is mapped by the type invariant: a flag's number is below 32.
        unsafe { bindings::set_bit(flag.number() as ffi::c_ulong, self.base.cast()) }
    }

    /// Clears a bit of the flags word, as [`Self::set_flag`].
    pub fn clear_flag(&self, flag: Flag) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
        // SAFETY: as for `set_bit` in `set_flag`.
        unsafe { bindings::clear_bit(flag.number() as ffi::c_ulong, self.base.cast()) }
    }
}

/// A zeroed page of ours that the peer may map (the frontend's side).
///
/// # Invariants
///
/// `page.base` and `grant` come from `xenbus_setup_ring` and are torn down by `drop` only.
pub struct GrantedPage {
    page: SharedPage,
    grant: u32,
}

impl GrantedPage {
    /// Allocates the page and grants it to the peer of `dev`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or that of the grant table, which the core has reported.
    pub fn new(dev: &xenbus::Device) -> Result<Self> {
        let mut base = core::ptr::null_mut();
        let mut grant = 0;
        // SAFETY: one page, so one grant reference is written.
        to_result(unsafe {
            sys::xenbus_setup_ring(dev.as_raw(), bindings::GFP_KERNEL, &mut base, 1, &mut grant)
        })?;
        // INVARIANT: set up just now.
        Ok(Self {
            page: SharedPage { base: base.cast() },
            grant,
        })
    }

    /// The page.
    pub fn page(&self) -> &SharedPage {
        &self.page
    }

    /// The grant reference that the peer needs.
    pub fn grant(&self) -> u32 {
        self.grant
    }
}

impl Drop for GrantedPage {
    fn drop(&mut self) {
        let mut base = self.page.base.cast();
        // SAFETY: set up by `xenbus_setup_ring` by the type invariant. A page that the peer still
        // maps is freed by the grant table code when the peer lets go (XSA-396).
        unsafe { sys::xenbus_teardown_ring(&mut base, 1, &mut self.grant) }
    }
}

/// The peer's page, mapped into our address space (the backend's side).
///
/// # Invariants
///
/// `page.base` comes from `xenbus_map_ring_valloc` for `dev`, and is unmapped by `drop` only.
pub struct MappedPage {
    page: SharedPage,
    dev: xenbus::DeviceRef,
}

impl MappedPage {
    /// Maps the page behind `grant` of the peer of `dev`.
    ///
    /// # Errors
    ///
    /// That of the grant operation: the reference may be nonsense.
    pub fn map(dev: &xenbus::DeviceRef, grant: u32) -> Result<Self> {
        let mut grant = grant;
        let mut base = core::ptr::null_mut();
        // SAFETY: one grant reference, one page.
        to_result(unsafe { sys::xenbus_map_ring_valloc(dev.as_raw(), &mut grant, 1, &mut base) })?;
        // INVARIANT: mapped just now.
        Ok(Self {
            page: SharedPage { base: base.cast() },
            dev: dev.clone(),
        })
    }

    /// The page.
    pub fn page(&self) -> &SharedPage {
        &self.page
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: mapped for this device by the type invariant. An error means that it was not
        // mapped, which the invariant excludes.
        unsafe { sys::xenbus_unmap_ring_vfree(self.dev.as_raw(), self.page.base.cast()) };
    }
}
