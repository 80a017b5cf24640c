// SPDX-License-Identifier: GPL-2.0

//! The xenstore: keys below a device's directory, and transactions.

use crate::sys;
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    fmt,
    prelude::*,
    str::{CStr, CStrExt, CString},
};

/// The value of one key, freed when dropped.
///
/// # Invariants
///
/// Points to `len` bytes from `kmalloc` followed by a NUL.
pub struct Value {
    text: *mut u8,
    len: usize,
}

impl Value {
    /// The bytes, without the final NUL. What the other domain wrote is arbitrary.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: by the type invariant.
        unsafe { core::slice::from_raw_parts(self.text, self.len) }
    }

    /// The value as a decimal number without sign.
    ///
    /// # Errors
    ///
    /// `EINVAL` for anything else.
    pub fn number(&self) -> Result<u32> {
        let text = core::str::from_utf8(self.bytes()).map_err(|_| EINVAL)?;
        text.parse().map_err(|_| EINVAL)
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: from `kmalloc` by the type invariant.
        unsafe { bindings::kfree(self.text.cast()) }
    }
}

/// Where reads and writes take effect: at once, or with a transaction.
#[derive(Clone, Copy)]
pub struct Scope(u32);

/// At once.
pub const NOW: Scope = Scope(0);

impl Scope {
    fn raw(self) -> sys::xenbus_transaction {
        sys::xenbus_transaction { id: self.0 }
    }

    /// Reads `directory/key`.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such key, or that of the store.
    pub fn read(self, directory: &CStr, key: &CStr) -> Result<Value> {
        let mut len = 0;
        // SAFETY: both texts are NUL terminated.
        let text = from_err_ptr(unsafe {
            sys::xenbus_read(
                self.raw(),
                directory.as_char_ptr(),
                key.as_char_ptr(),
                &mut len,
            )
        })?;
        // INVARIANT: the store's client returns `len` bytes and a NUL.
        // CAST: a message of the store has at most 4096 bytes.
        Ok(Value {
            text: text.cast(),
            len: len as usize,
        })
    }

    /// Writes `value` to `directory/key`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or that of the store.
    pub fn write(self, directory: &CStr, key: &CStr, value: fmt::Arguments<'_>) -> Result {
        let value = CString::try_from_fmt(value)?;
        // SAFETY: all three texts are NUL terminated.
        to_result(unsafe {
            sys::xenbus_write(
                self.raw(),
                directory.as_char_ptr(),
                key.as_char_ptr(),
                value.as_char_ptr(),
            )
        })
    }

    /// Whether there is a directory, or a key: by its whole path.
    ///
    /// # Errors
    ///
    /// When the store does not say.
    pub fn has(self, path: &CStr) -> Result<bool> {
        match self.read(path, c"") {
            Ok(_) => Ok(true),
            Err(ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether nothing is below a directory.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such directory, or that of the store.
    pub fn is_empty(self, directory: &CStr) -> Result<bool> {
        let mut count = 0;
        // SAFETY: both texts are NUL terminated.
        let names = from_err_ptr(unsafe {
            sys::xenbus_directory(
                self.raw(),
                directory.as_char_ptr(),
                c"".as_char_ptr(),
                &mut count,
            )
        })?;
        // SAFETY: made for us with `kmalloc`, in one piece.
        unsafe { bindings::kfree(names.cast()) };
        Ok(count == 0)
    }

    /// Removes `directory/key` and all below it.
    ///
    /// # Errors
    ///
    /// `ENOENT` when there is no such key, or that of the store.
    pub fn remove(self, directory: &CStr, key: &CStr) -> Result {
        // SAFETY: both texts are NUL terminated.
        to_result(unsafe { sys::xenbus_rm(self.raw(), directory.as_char_ptr(), key.as_char_ptr()) })
    }
}

/// Whether the toolstack keeps a directory for a domain. It removes that when it ends the domain, a little
/// before.
///
/// # Errors
///
/// `ENOMEM`, or that of the store.
pub fn has_domain(domid: u16) -> Result<bool> {
    NOW.has(&CString::try_from_fmt(fmt!("/local/domain/{domid}"))?)
}

/// Runs `body` in a transaction: all of its writes become visible together or none does.
///
/// The store refuses the end with `EAGAIN` when somebody else changed what the body had read; it is
/// then run again, at most a hundred times.
///
/// # Errors
///
/// That of `body` (the transaction is then dropped), or of the store.
pub fn transaction<T>(mut body: impl FnMut(Scope) -> Result<T>) -> Result<T> {
    for _ in 0..100 {
        let mut raw = sys::xenbus_transaction { id: 0 };
        // SAFETY: `raw` is valid for writing.
        to_result(unsafe { sys::xenbus_transaction_start(&mut raw) })?;
        let result = body(Scope(raw.id));
        // SAFETY: started above and not ended yet.
        let end = to_result(unsafe { sys::xenbus_transaction_end(raw, result.is_err()) });
        match (result, end) {
            (Ok(value), Ok(())) => return Ok(value),
            (Ok(_), Err(EAGAIN)) => continue,
            (Ok(_), Err(e)) => return Err(e),
            (Err(e), _) => return Err(e),
        }
    }
    Err(EAGAIN)
}

/// A key with a number in its name, such as `dev-3`, without memory from the heap.
pub struct NumberedKey([u8; 24]);

impl NumberedKey {
    /// `name-number`; `name` has at most 10 characters.
    pub fn new(name: &str, number: u32) -> Self {
        let mut text = [0u8; 24];
        let mut at = 0;
        let mut put = |byte: u8| {
            if let Some(place) = text.get_mut(at) {
                *place = byte;
                at += 1;
            }
        };
        name.bytes().take(10).for_each(&mut put);
        put(b'-');
        let mut divisor = 1_000_000_000;
        let mut started = false;
        while divisor > 0 {
            let digit = (number / divisor) % 10;
            started |= digit != 0 || divisor == 1;
            if started {
                // CAST: a decimal digit.
                put(b'0' + digit as u8);
            }
            divisor /= 10;
        }
        Self(text)
    }

    /// The key as text.
    pub fn text(&self) -> &CStr {
        // 10 + 1 + 10 characters at most, so a NUL is always left.
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}
