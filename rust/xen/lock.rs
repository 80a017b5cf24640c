// SPDX-License-Identifier: GPL-2.0

//! Locks for the PCI access path.
//!
//! [`IrqLock`]: x86 calls a bus' configuration accessors with no lock held and in any context,
//! interrupts included; the kernel crate's spin lock leaves interrupts on.
//!
//! [`DualLock`]: a mutex whose value an interrupt handler may use, too, as long as nobody sleeps
//! with it.

use crate::sys;
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};
use kernel::{
    bindings, ffi,
    prelude::*,
    str::CStr,
    sync::{
        lock::{mutex::MutexBackend, Backend, Guard, Lock},
        LockClassKey, Mutex,
    },
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

/// A value that threads use as they use that of a mutex, sleeping if need be, and interrupt handlers
/// only when no thread has it.
///
/// Lock order: the mutex, then the spin lock inside; a handler takes the spin lock alone. A thread
/// holds the spin lock for two instructions.
///
/// # Invariants
///
/// `value` is only touched by who holds `busy` and found it `false`, or by the holder of `turn` who
/// has set `busy` to `true`.
#[pin_data]
pub struct DualLock<T> {
    #[pin]
    turn: Mutex<()>,
    #[pin]
    busy: IrqLock<bool>,
    value: UnsafeCell<T>,
}

// SAFETY: by the type invariant one context at a time touches the value, which may be sent.
unsafe impl<T: Send> Send for DualLock<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Send> Sync for DualLock<T> {}

impl<T> DualLock<T> {
    /// With the classes of its two locks: see [`new_dual_lock!`](crate::new_dual_lock).
    pub fn new(
        value: T,
        name: &'static CStr,
        [turn, busy]: [Pin<&'static LockClassKey>; 2],
    ) -> impl PinInit<Self> {
        // INVARIANT: nobody has it.
        pin_init!(Self {
            turn <- Mutex::new((), name, turn),
            busy <- IrqLock::new(false, name, busy),
            value: UnsafeCell::new(value),
        })
    }

    /// Takes the value for a thread. Sleeps.
    pub fn lock(&self) -> DualGuard<'_, T> {
        let turn = self.turn.lock();
        *self.busy.lock() = true;
        // INVARIANT: `busy` was set just now, by the holder of `turn`.
        DualGuard {
            lock: self,
            _turn: turn,
            _value: PhantomData,
        }
    }

    /// Takes the value for a thread if no thread has it. Does not sleep, but not for atomic contexts.
    pub fn try_lock(&self) -> Option<DualGuard<'_, T>> {
        let turn = self.turn.try_lock()?;
        *self.busy.lock() = true;
        // INVARIANT: `busy` was set just now, by the holder of `turn`.
        Some(DualGuard {
            lock: self,
            _turn: turn,
            _value: PhantomData,
        })
    }

    /// Takes the value without waiting for threads. Atomic; interrupts are off while it is held.
    ///
    /// `None` while a thread has it.
    pub fn try_lock_atomic(&self) -> Option<AtomicGuard<'_, T>> {
        let busy = self.busy.lock();
        // INVARIANT: held, and found to be `false`.
        (!*busy).then_some(AtomicGuard {
            lock: self,
            _busy: busy,
            _value: PhantomData,
        })
    }
}

/// A thread has the value.
///
/// # Invariants
///
/// Holds the mutex of `lock` and has set its `busy`.
pub struct DualGuard<'a, T> {
    lock: &'a DualLock<T>,
    _turn: Guard<'a, (), MutexBackend>,
    // As good as the reference that it gives: shared between threads only if the value may be.
    _value: PhantomData<&'a mut T>,
}

impl<T> Drop for DualGuard<'_, T> {
    fn drop(&mut self) {
        *self.lock.busy.lock() = false;
    }
}

/// An atomic context has the value.
///
/// # Invariants
///
/// Holds the spin lock of `lock`, whose `busy` is `false`.
pub struct AtomicGuard<'a, T> {
    lock: &'a DualLock<T>,
    _busy: Guard<'a, bool, RawIrqBackend>,
    // As in `DualGuard`.
    _value: PhantomData<&'a mut T>,
}

impl<T> Deref for DualGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: by the type invariants nobody else touches the value while the guard lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for DualGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`; the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Deref for AtomicGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: by the type invariants nobody else touches the value while the guard lives.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for AtomicGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`; the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

/// Makes the initialiser of a [`DualLock`], with lock classes of its own.
#[macro_export]
macro_rules! new_dual_lock {
    ($value:expr, $name:literal) => {
        $crate::lock::DualLock::new(
            $value,
            ::kernel::c_str!($name),
            [
                ::kernel::static_lock_class!(),
                ::kernel::static_lock_class!(),
            ],
        )
    };
}
