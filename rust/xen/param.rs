// SPDX-License-Identifier: GPL-2.0

//! Module parameters that the kernel crate has no types for: text and yes/no.

use core::cell::UnsafeCell;
use kernel::{
    bindings, ffi,
    str::{CStr, CStrExt},
};

/// A `charp` parameter; `None` when it was not given. Read only in sysfs.
#[repr(transparent)]
pub struct Text(UnsafeCell<*mut ffi::c_char>);

// SAFETY: written while the parameters are parsed, before the module's code runs; the parameter is
// declared read only.
unsafe impl Sync for Text {}

impl Text {
    /// Not given.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(core::ptr::null_mut()))
    }

    /// The text.
    pub fn get(&self) -> Option<&'static CStr> {
        // SAFETY: not written any more, see `Sync`.
        let text = unsafe { *self.0.get() };
        // SAFETY: the core keeps the NUL terminated text as long as the module.
        (!text.is_null()).then(|| unsafe { CStr::from_char_ptr(text) })
    }

    #[doc(hidden)]
    pub const fn arg(&self) -> *mut ffi::c_void {
        self.0.get().cast()
    }
}

impl Default for Text {
    fn default() -> Self {
        Self::new()
    }
}

/// A `bool` parameter. May change at run time if it is declared writable.
#[repr(transparent)]
pub struct Flag(UnsafeCell<bool>);

// SAFETY: read and written as one byte that is always 0 or 1.
unsafe impl Sync for Flag {}

impl Flag {
    /// Off.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(false))
    }

    /// The present value. Atomic.
    pub fn get(&self) -> bool {
        // SAFETY: one byte, written by the core's parameter code; volatile as it may change.
        unsafe { self.0.get().read_volatile() }
    }

    #[doc(hidden)]
    pub const fn arg(&self) -> *mut ffi::c_void {
        self.0.get().cast()
    }
}

impl Default for Flag {
    fn default() -> Self {
        Self::new()
    }
}

/// A `kernel_param` in the section where the module loader looks for it.
#[doc(hidden)]
#[repr(transparent)]
pub struct Entry(pub bindings::kernel_param);

// SAFETY: only the core uses it.
unsafe impl Sync for Entry {}

/// Declares a parameter: `param!(HIDE: Text, "hide", param_ops_charp, "charp", 0o444, "What it is");`
///
/// The name and the texts are what `modinfo` shows. Another driver than the backend puts its module's
/// name first. Built in, the parameter is `MODULE.NAME` on the kernel's command line, and those of the
/// backend have the name that XenoLinux gave them, too: `pciback.NAME`. Sysfs shows them once.
#[macro_export]
macro_rules! param {
    ($static:ident: $type:ident, $name:literal, $ops:ident, $kind:literal, $mode:literal, $text:literal) => {
        $crate::param!("xen_pciback" or "pciback", $static: $type, $name, $ops, $kind, $mode, $text);
    };
    ($module:literal $(or $historical:literal)?, $static:ident: $type:ident, $name:literal, $ops:ident, $kind:literal, $mode:literal, $text:literal) => {
        static $static: $crate::param::$type = {
            #[used(compiler)]
            #[link_section = "__param"]
            static ENTRY: $crate::param::Entry =
                $crate::param::Entry(::kernel::bindings::kernel_param {
                    name: FULL_NAME.as_ptr().cast(),
                    #[cfg(MODULE)]
                    // SAFETY: only the address is taken.
                    mod_: ::core::ptr::addr_of!(::kernel::bindings::__this_module).cast_mut(),
                    #[cfg(not(MODULE))]
                    mod_: ::core::ptr::null_mut(),
                    ops: ::core::ptr::addr_of!(::kernel::bindings::$ops),
                    perm: $mode,
                    level: -1,
                    flags: 0,
                    __bindgen_anon_1: ::kernel::bindings::kernel_param__bindgen_ty_1 {
                        arg: $static.arg(),
                    },
                });
            #[cfg(MODULE)]
            static FULL_NAME: &str = concat!($name, "\0");
            #[cfg(not(MODULE))]
            static FULL_NAME: &str = concat!($module, ".", $name, "\0");
            $(
                #[cfg(not(MODULE))]
                #[used(compiler)]
                #[link_section = "__param"]
                static HISTORICAL: $crate::param::Entry =
                    $crate::param::Entry(::kernel::bindings::kernel_param {
                        name: concat!($historical, ".", $name, "\0").as_ptr().cast(),
                        mod_: ::core::ptr::null_mut(),
                        ops: ::core::ptr::addr_of!(::kernel::bindings::$ops),
                        perm: 0,
                        level: -1,
                        flags: 0,
                        __bindgen_anon_1: ::kernel::bindings::kernel_param__bindgen_ty_1 {
                            arg: $static.arg(),
                        },
                    });
            )?
            $crate::modinfo!(KIND, concat!("parmtype=", $name, ":", $kind, "\0"));
            $crate::modinfo!(TEXT, concat!("parm=", $name, ":", $text, "\0"));
            $crate::param::$type::new()
        };
    };
}

/// Adds a `key=value` text, NUL included, to what `modinfo` shows.
#[macro_export]
macro_rules! modinfo {
    ($static:ident, $text:expr) => {
        #[used(compiler)]
        #[link_section = ".modinfo"]
        static $static: [u8; $text.len()] = {
            let mut bytes = [0u8; $text.len()];
            let mut i = 0;
            while i < bytes.len() {
                bytes[i] = $text.as_bytes()[i];
                i += 1;
            }
            bytes
        };
    };
}
