// SPDX-License-Identifier: GPL-2.0

//! Abstractions over Linux' Xen interfaces: the middle ring.
//!
//! Here lives the `unsafe` that the drivers need: the xenbus, event channels, grants, the shared
//! page, work items, PCI functions of the host. The crate knows Linux and Xen, not our policy; it
//! uses the public surface of the `kernel` crate only and waits to move to `rust/kernel/xen`.
//!
//! # How to write a xenbus driver with it
//!
//! 1. A type with the state of one device, that implements [`xenbus::Driver`]: `probe` returns an
//!    `Arc` of it, `otherend_changed` hears of the peer's state, `remove` ends everything.
//! 2. One [`xenbus::Registration`] in the module's data.
//! 3. The offering side makes a [`page::GrantedPage`], the mapping side a [`page::MappedPage`];
//!    both give a [`page::SharedPage`], which copies words in and out and never lends a reference
//!    to memory that the other domain can change.
//! 4. An [`event::EventChannel`] calls the handler; dropping it waits for a running handler.
//!
//! # Context
//!
//! Every function may sleep unless its documentation says *atomic*.

// Our lines carry the name of the driver that this copy of the crate belongs to.
#[doc(hidden)]
pub const __LOG_PREFIX: &[u8] = concat!(env!("XENPCI_DRIVER"), "\0").as_bytes();

pub mod clock;
pub mod compat;
pub mod event;
pub mod irq;
pub mod lock;
pub mod log;
pub mod page;
pub mod param;
pub mod pci;
pub mod recovery;
pub mod store;
pub mod sys;
pub mod sysfs;
pub mod work;
pub mod xenbus;

use kernel::{
    prelude::*,
    str::{CStr, CStrExt},
};

/// Whether this kernel is the initial domain (dom0). Atomic.
pub fn is_initial_domain() -> bool {
    // SAFETY: reads variables that are constant after boot.
    unsafe { sys::is_initial_domain() }
}

/// Whether Xen still knows a domain, which may be at its end. For dom0. Atomic.
pub fn domain_exists(domid: u16) -> bool {
    // SAFETY: asks Xen; any number will do.
    unsafe { sys::domain_exists(domid) }
}

/// Whether this kernel runs as a PV domain. Atomic.
pub fn is_pv_domain() -> bool {
    // SAFETY: reads variables that are constant after boot.
    unsafe { sys::is_pv_domain() }
}

/// Whether the domain has paravirtual devices. Atomic.
pub fn has_pv_devices() -> bool {
    // SAFETY: reads variables that are constant after boot.
    unsafe { sys::has_pv_devices() }
}

/// Whether DMA of devices is translated in this domain, which a PV domain needs. Atomic.
pub fn has_dma_ops() -> bool {
    // SAFETY: reads a variable that is constant after boot.
    unsafe { sys::has_dma_ops() }
}

/// Has a function called once at `fs_initcall`, when PCI is there and before ordinary drivers start:
/// `early_init!("name_in_the_kernel", function);`, a safe `fn()`. In a module it does nothing.
#[macro_export]
macro_rules! early_init {
    ($name:literal, $function:path) => {
        #[cfg(not(MODULE))]
        #[export_name = $name]
        extern "C" fn early_init() -> ::kernel::ffi::c_int {
            $function();
            0
        }
        // As the kernel's own macros do it on x86: a list of relative addresses.
        #[cfg(not(MODULE))]
        ::core::arch::global_asm!(concat!(
            ".section .initcall5.init, \"a\"\n.long ",
            $name,
            " - .\n.previous\n"
        ));
    };
}

/// Refuses to go on when the running kernel is not the one that the module was built for.
///
/// The kernel's Rust interfaces have no stable layout, and a package revision can change them
/// without changing the release name that the module loader compares. `built_for` is the text of
/// `uname -v`; empty means that the build does not know (in-tree, or headers of the user's own).
///
/// # Errors
///
/// `ENOEXEC`, after one line that names both texts.
pub fn check_kernel_version(built_for: &str) -> Result {
    // SAFETY: the initial UTS name space is static, its version text constant and NUL terminated.
    let running = unsafe { CStr::from_char_ptr(sys::kernel_version()) };
    if built_for.is_empty() || running.to_bytes() == built_for.as_bytes() {
        return Ok(());
    }
    pr_err!(
        "built for the kernel \"{}\", but \"{}\" is running; build the module again\n",
        built_for,
        running
    );
    Err(ENOEXEC)
}
