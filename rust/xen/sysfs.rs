// SPDX-License-Identifier: GPL-2.0

//! Attributes of a driver's directory in sysfs.

use kernel::{bindings, error::to_result, ffi, fmt, prelude::*, str::CStr};

/// The page that a read of an attribute fills; lines that do not fit whole are left out.
pub struct Page<'a> {
    bytes: &'a mut [u8],
    used: usize,
}

impl Page<'_> {
    /// Appends one line, whole or not at all. Returns whether it fitted.
    pub fn line(&mut self, text: fmt::Arguments<'_>) -> bool {
        let start = self.used;
        let fits =
            fmt::Write::write_fmt(self, text).is_ok() && fmt::Write::write_str(self, "\n").is_ok();
        if !fits {
            self.used = start;
        }
        fits
    }
}

impl fmt::Write for Page<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.used..).ok_or(fmt::Error)?;
        let room = room.get_mut(..text.len()).ok_or(fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.used = self.used.saturating_add(text.len());
        Ok(())
    }
}

/// What one attribute does. Runs in sleepable context, possibly in several threads at once.
pub trait Attribute {
    /// The file's name.
    const NAME: &'static CStr;
    /// Permission bits.
    const MODE: u16;

    /// Fills the page.
    fn show(_page: &mut Page<'_>) -> Result {
        Err(EIO)
    }

    /// Takes what was written, all of it or an error.
    fn store(_text: &[u8]) -> Result {
        Err(EIO)
    }
}

/// The C structure of an attribute.
#[repr(transparent)]
pub struct Raw(bindings::driver_attribute);

// SAFETY: constant after it is made.
unsafe impl Sync for Raw {}

impl Raw {
    /// The attribute `A`.
    pub const fn of<A: Attribute>() -> Self {
        Self(bindings::driver_attribute {
            attr: bindings::attribute {
                // The kernel's own conversion is no const function.
                name: A::NAME.to_bytes_with_nul().as_ptr(),
                mode: A::MODE,
            },
            show: if A::MODE & 0o444 != 0 {
                Some(show::<A>)
            } else {
                None
            },
            store: if A::MODE & 0o222 != 0 {
                Some(store::<A>)
            } else {
                None
            },
        })
    }
}

extern "C" fn show<A: Attribute>(
    _driver: *mut bindings::device_driver,
    page: *mut ffi::c_char,
) -> isize {
    // SAFETY: sysfs passes a page of its own.
    let bytes =
        unsafe { core::slice::from_raw_parts_mut(page.cast::<u8>(), super::page::PAGE_BYTES) };
    let mut page = Page { bytes, used: 0 };
    match A::show(&mut page) {
        // CAST: at most a page.
        Ok(()) => page.used as isize,
        Err(e) => e.to_errno() as isize,
    }
}

extern "C" fn store<A: Attribute>(
    _driver: *mut bindings::device_driver,
    text: *const ffi::c_char,
    count: usize,
) -> isize {
    // SAFETY: sysfs passes `count` bytes.
    let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), count) };
    match A::store(text) {
        // CAST: at most a page.
        Ok(()) => count as isize,
        Err(e) => e.to_errno() as isize,
    }
}

/// Attribute files of a PCI driver, removed when dropped.
///
/// # Invariants
///
/// `driver` is registered as long as this value lives: its owner drops it first.
pub struct Files {
    driver: *mut bindings::device_driver,
    attributes: &'static [Raw],
}

// SAFETY: the driver core's functions may be called from any thread.
unsafe impl Send for Files {}
// SAFETY: nothing can be done with a shared reference.
unsafe impl Sync for Files {}

impl Files {
    /// Creates all files, or none.
    ///
    /// # Safety
    ///
    /// `driver` must be registered until the result is dropped.
    ///
    /// # Errors
    ///
    /// That of sysfs.
    pub unsafe fn new(
        driver: *mut bindings::device_driver,
        attributes: &'static [Raw],
    ) -> Result<Self> {
        for (count, attribute) in attributes.iter().enumerate() {
            // SAFETY: a registered driver and a constant attribute.
            let created = to_result(unsafe { bindings::driver_create_file(driver, &attribute.0) });
            if let Err(e) = created {
                // INVARIANT: promised by the caller.
                drop(Self {
                    driver,
                    attributes: attributes.get(..count).unwrap_or(&[]),
                });
                return Err(e);
            }
        }
        // INVARIANT: promised by the caller.
        Ok(Self { driver, attributes })
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for attribute in self.attributes {
            // SAFETY: registered by the type invariant, created by `new`. Waits for running reads
            // and writes.
            unsafe { bindings::driver_remove_file(self.driver, &attribute.0) }
        }
    }
}
