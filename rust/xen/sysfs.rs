// SPDX-License-Identifier: GPL-2.0

//! Attributes of a driver's directory in sysfs.
//!
//! An ordinary attribute shows one page at most and cuts the rest. A driver for hundreds of
//! functions lists more, so all attributes here are binary ones in the kernel's sense: a reader asks
//! for a window of the text, again and again until the window is empty, and the text has no limit.
//! Readers and writers notice no difference.

use core::ptr;
use kernel::{bindings, ffi, fmt, prelude::*, str::CStr};

/// The window of an attribute's text that a reader asked for. The text is written from its start
/// each time; what lies outside the window is counted and left out.
pub struct Window<'a> {
    bytes: &'a mut [u8],
    /// Bytes of text before the window that have not been passed yet.
    before: usize,
    used: usize,
}

impl Window<'_> {
    /// Appends one line. `false` when the window is full: nothing more needs to be written.
    pub fn line(&mut self, text: fmt::Arguments<'_>) -> bool {
        fmt::Write::write_fmt(self, text).is_ok() && fmt::Write::write_str(self, "\n").is_ok()
    }
}

impl fmt::Write for Window<'_> {
    /// An error means that the window is full.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let skipped = self.before.min(text.len());
        self.before -= skipped;
        let text = text.as_bytes().get(skipped..).unwrap_or_default();
        let room = self.bytes.get_mut(self.used..).unwrap_or_default();
        let fits = text.len().min(room.len());
        for (to, from) in room.iter_mut().zip(text) {
            *to = *from;
        }
        self.used = self.used.saturating_add(fits);
        if fits == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

/// What one attribute does. Runs in sleepable context, possibly in several threads at once.
pub trait Attribute {
    /// The file's name.
    const NAME: &'static CStr;
    /// Permission bits.
    const MODE: u16;

    /// Writes the text; may stop when the window is full.
    fn show(_window: &mut Window<'_>) -> Result {
        Err(EIO)
    }

    /// Takes what was written, all of it or an error.
    fn store(_text: &[u8]) -> Result {
        Err(EIO)
    }
}

/// The C structure of an attribute.
#[repr(transparent)]
pub struct Raw(bindings::bin_attribute);

// SAFETY: constant after it is made.
unsafe impl Sync for Raw {}

impl Raw {
    /// The attribute `A`.
    pub const fn of<A: Attribute>() -> Self {
        // SAFETY: all fields may be zero: no size means no limit, no functions.
        let mut raw: bindings::bin_attribute = unsafe { core::mem::zeroed() };
        // The kernel's own conversion is no const function.
        raw.attr.name = A::NAME.to_bytes_with_nul().as_ptr();
        raw.attr.mode = A::MODE;
        if A::MODE & 0o444 != 0 {
            raw.read = Some(show::<A>);
        }
        if A::MODE & 0o222 != 0 {
            raw.write = Some(store::<A>);
        }
        Self(raw)
    }
}

extern "C" fn show<A: Attribute>(
    _file: *mut bindings::file,
    _object: *mut bindings::kobject,
    _attribute: *const bindings::bin_attribute,
    buffer: *mut ffi::c_char,
    offset: bindings::loff_t,
    count: usize,
) -> isize {
    // SAFETY: sysfs passes a buffer of its own with room for `count` bytes.
    let bytes = unsafe { core::slice::from_raw_parts_mut(buffer.cast::<u8>(), count) };
    let mut window = Window {
        bytes,
        before: usize::try_from(offset).unwrap_or(usize::MAX),
        used: 0,
    };
    match A::show(&mut window) {
        // CAST: at most a page.
        Ok(()) => window.used as isize,
        Err(e) => e.to_errno() as isize,
    }
}

extern "C" fn store<A: Attribute>(
    _file: *mut bindings::file,
    _object: *mut bindings::kobject,
    _attribute: *const bindings::bin_attribute,
    text: *mut ffi::c_char,
    offset: bindings::loff_t,
    count: usize,
) -> isize {
    if offset != 0 {
        return EINVAL.to_errno() as isize;
    }
    // SAFETY: sysfs passes `count` bytes.
    let text = unsafe { core::slice::from_raw_parts(text.cast::<u8>(), count) };
    match A::store(text) {
        // CAST: at most a page.
        Ok(()) => count as isize,
        Err(e) => e.to_errno() as isize,
    }
}

/// The most attributes of one [`Group`].
const GROUP_MAX: usize = 16;

/// Attributes that a driver is registered with: the core makes the files and removes them.
///
/// # Invariants
///
/// `attributes` is a list of static attributes that ends with a null pointer.
pub struct Group {
    attributes: [*const bindings::bin_attribute; GROUP_MAX + 1],
}

// SAFETY: constant after it is made.
unsafe impl Sync for Group {}

impl Group {
    /// The group of these attributes, at most 16.
    pub const fn new(all: &'static [Raw]) -> Self {
        assert!(all.len() <= GROUP_MAX);
        let mut attributes = [ptr::null(); GROUP_MAX + 1];
        let mut at = 0;
        while at < all.len() {
            attributes[at] = &raw const all[at].0;
            at += 1;
        }
        // INVARIANT: the last entry stays null.
        Self { attributes }
    }

    /// What the C structure of a group wants.
    pub(crate) fn list(&'static self) -> *const *const bindings::bin_attribute {
        self.attributes.as_ptr()
    }
}
