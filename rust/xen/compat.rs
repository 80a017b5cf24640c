// SPDX-License-Identifier: GPL-2.0

//! Differences between the kernels that we build for: all of them, and nothing else. Every other
//! file reads as if there were one kernel.
//!
//! An item is here when a supported kernel offers something under another name, of another type, or
//! not at all, or when it is a number that a kernel may change without a word. It has the shape of the newest kernel, and says which version brought that.
//! `since_A_B` is set for Linux A.B and later; `rust/library.mk` finds the names in this file. When
//! the oldest supported kernel has the new shape, the item goes and its users name the kernel's own.
//!
//! No state, no locks; every item may be used in any context.

use kernel::bindings;

/// What an interrupt handler returns. Linux 7.3 made `enum irqreturn` a type of its own in the
/// bindings; before, its values were plain constants.
pub mod irqreturn {
    use super::bindings;

    /// The interrupt was this device's.
    #[cfg(since_7_3)]
    pub const IRQ_HANDLED: bindings::irqreturn_t = bindings::irqreturn::IRQ_HANDLED;
    /// The interrupt was another device's.
    #[cfg(since_7_3)]
    pub const IRQ_NONE: bindings::irqreturn_t = bindings::irqreturn::IRQ_NONE;

    /// The interrupt was this device's.
    #[cfg(not(since_7_3))]
    pub const IRQ_HANDLED: bindings::irqreturn_t = bindings::irqreturn_IRQ_HANDLED;
    /// The interrupt was another device's.
    #[cfg(not(since_7_3))]
    pub const IRQ_NONE: bindings::irqreturn_t = bindings::irqreturn_IRQ_NONE;
}

/// The core numbers the ways to reset a function (`pci_reset_fn_methods`), and no header names the
/// numbers. From this one on they reset the whole bus. The same in 7.2 and 7.3; to be looked at for
/// each new kernel.
pub const RESETS_OF_A_BUS: u8 = 6;

/// The module that this is expanded in, as `&'static ThisModule`. Linux 7.3 made it a constant of
/// the module's type, before it was a static beside it.
#[cfg(since_7_3)]
#[macro_export]
#[allow(clippy::crate_in_macro_def)] // the caller's crate is the module
macro_rules! this_module {
    () => {
        ::kernel::module::this_module::<crate::LocalModule>()
    };
}

/// The module that this is expanded in, as `&'static ThisModule`. Linux 7.3 made it a constant of
/// the module's type, before it was a static beside it.
#[cfg(not(since_7_3))]
#[macro_export]
#[allow(clippy::crate_in_macro_def)] // the caller's crate is the module
macro_rules! this_module {
    () => {
        &crate::THIS_MODULE
    };
}
