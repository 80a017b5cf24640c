// SPDX-License-Identifier: GPL-2.0

//! A raw spin lock that keeps interrupts off, for the PCI access path.
//!
//! x86 calls a bus' configuration accessors with no lock held and in any context, interrupts
//! included; the kernel crate's spin lock leaves interrupts on.

use crate::sys;
use kernel::{
    bindings, ffi,
    sync::lock::{Backend, Lock},
};

/// A value behind a raw spin lock, taken with interrupts off. Atomic.
pub type IrqLock<T> = Lock<T, RawIrqBackend>;

/// The lock operations of [`IrqLock`].
pub struct RawIrqBackend;

// SAFETY: mutual exclusion is that of `raw_spin_lock_irqsave`; only the owner of the guard, whose
// state carries the saved flags, unlocks.
unsafe impl Backend for RawIrqBackend {
    type State = bindings::raw_spinlock_t;
    type GuardState = ffi::c_ulong;

    unsafe fn init(
        ptr: *mut Self::State,
        name: *const ffi::c_char,
        key: *mut bindings::lock_class_key,
    ) {
        // SAFETY: the caller gives valid memory for the lock; name and key live for ever.
        unsafe { sys::raw_lock_init(ptr, name, key) }
    }

    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: the lock is initialised, promised by the caller.
        unsafe { sys::raw_lock(ptr) }
    }

    unsafe fn try_lock(_ptr: *mut Self::State) -> Option<Self::GuardState> {
        None
    }

    unsafe fn unlock(ptr: *mut Self::State, flags: &Self::GuardState) {
        // SAFETY: the caller owns the lock and gives the flags that `lock` saved.
        unsafe { sys::raw_unlock(ptr, *flags) }
    }

    unsafe fn assert_is_held(_ptr: *mut Self::State) {}
}

/// Makes the initialiser of an [`IrqLock`], with its own lock class.
#[macro_export]
macro_rules! new_irq_lock {
    ($value:expr, $name:literal) => {
        $crate::lock::IrqLock::new(
            $value,
            ::kernel::c_str!($name),
            ::kernel::static_lock_class!(),
        )
    };
}
