// SPDX-License-Identifier: GPL-2.0

//! Legacy interrupts (INTx) that dom0 shares with a guest.
//!
//! The kernel crate requests interrupts for devices of its own drivers only; a passthrough driver
//! wants one for a line that a guest serves.

use crate::{compat::irqreturn, sys};
use core::{
    marker::PhantomData,
    sync::atomic::{AtomicBool, Ordering},
};
use kernel::{
    bindings,
    error::to_result,
    ffi,
    prelude::*,
    str::{CStrExt, CString},
    sync::{Arc, ArcBorrow},
};

/// The number of a legacy interrupt that Xen delivers to this domain.
///
/// # Invariants
///
/// Xen's event code knows the interrupt as that of a GSI; it then does so for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineNumber(u32);

impl LineNumber {
    /// `None` when there is no such line: no pin, not connected, or not one of Xen's. Sleepable
    /// context: looks through a list of the core's.
    pub fn new(irq: u32) -> Option<Self> {
        let number = i32::try_from(irq).ok()?;
        // SAFETY: compares numbers.
        if !crate::is_pv_domain() || !unsafe { sys::irq_is_connected(irq) } {
            return None;
        }
        // On PV dom0 a legacy interrupt has the number of its GSI.
        // SAFETY: a lookup in the core's table.
        let known = unsafe { sys::xen_irq_from_gsi(irq) } == number;
        // INVARIANT: found in the table.
        known.then_some(Self(irq))
    }

    /// The guest's number (pirq) of this line. Atomic.
    pub fn pirq(self) -> u32 {
        // SAFETY: one of Xen's interrupts by the type invariant.
        u32::try_from(unsafe { sys::xen_pirq_from_irq(self.0) }).unwrap_or(0)
    }

    /// Whether Xen delivers this line to a guest, too, or does not know. Atomic.
    pub fn is_shared_with_guests(self) -> bool {
        // CAST: fits by `new`.
        // SAFETY: one of Xen's interrupts by the type invariant. The answer is 0 for a shared line.
        unsafe { sys::xen_test_irq_shared(self.0 as ffi::c_int) == 0 }
    }
}

/// An interrupt whose handlers are running, for one of them.
///
/// # Invariants
///
/// A handler of this interrupt runs as long as the value is there.
pub struct Running<'a> {
    irq: ffi::c_int,
    callback: bindings::irq_handler_t,
    stopped: &'a AtomicBool,
    _handler: PhantomData<&'a ()>,
}

impl Running<'_> {
    /// Whether no handler of another type is on the interrupt.
    pub fn has_only_this_kind(&self) -> bool {
        // CAST: the core's number, which is no error.
        // SAFETY: by the type invariant a handler runs, and the core frees none that it has taken off the
        // list before all that run are done.
        unsafe { sys::irq_has_only(self.irq as ffi::c_uint, self.callback) }
    }

    /// Masks the interrupt in this kernel until the handler's [`Line`] is dropped: for a handler that is about to
    /// leave. A line that is held comes again before its handler has returned, and on a domain with one virtual CPU
    /// nothing else would run any more. Whoever shares the line is without it for that long.
    pub fn stop(&self) {
        if !self.stopped.swap(true, Ordering::Relaxed) {
            // CAST: the core's number, which is no error.
            // SAFETY: by the type invariant a handler runs, so there is such an interrupt; may be called by its
            // handler, as it does not wait for that. `Line::drop` makes up for it.
            unsafe { bindings::disable_irq_nosync(self.irq as ffi::c_uint) };
        }
    }
}

/// What the core hands to the callback.
struct Cookie<T> {
    handler: Arc<T>,
    /// The line was masked by [`Running::stop`].
    stopped: AtomicBool,
}

/// Who hears of interrupts on a line.
pub trait Handler: Send + Sync + 'static {
    /// The line is active. Runs in hard interrupt context: atomic. Returns whether this one is
    /// taken to be served.
    fn on_interrupt(this: ArcBorrow<'_, Self>, interrupt: &Running<'_>) -> bool;
}

/// A shared line with a handler on it.
///
/// # Invariants
///
/// `callback::<T>` is registered on `number` with `cookie`, which is a `KBox` turned into a pointer and owned by
/// this value.
pub struct Line<T: Handler> {
    number: LineNumber,
    cookie: *mut Cookie<T>,
    /// What `/proc/interrupts` shows; the core keeps a pointer to it.
    _name: CString,
}

// SAFETY: the pointer is a box with an `Arc<T>`, `T: Send + Sync`; interrupts may be freed by any thread.
unsafe impl<T: Handler> Send for Line<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Handler> Sync for Line<T> {}

impl<T: Handler> Line<T> {
    /// Puts the handler on a line.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, or that of the core: another driver may have the line and not share it.
    pub fn request(number: LineNumber, name: CString, handler: Arc<T>) -> Result<Self> {
        let cookie = Cookie {
            handler,
            stopped: AtomicBool::new(false),
        };
        let cookie = KBox::into_raw(KBox::new(cookie, GFP_KERNEL)?);
        // SAFETY: name and cookie stay valid until `drop` has taken the handler off.
        let result = to_result(unsafe {
            sys::request_shared_irq(
                number.0,
                Some(callback::<T>),
                name.as_char_ptr(),
                cookie.cast(),
            )
        });
        if let Err(e) = result {
            // SAFETY: made by `KBox::into_raw`, not taken by the core.
            drop(unsafe { KBox::from_raw(cookie) });
            return Err(e);
        }
        // INVARIANT: registered just now with this cookie.
        Ok(Self {
            number,
            cookie,
            _name: name,
        })
    }

    /// Whether the handler has masked the line by [`Running::stop`]. Then it stays so until this is dropped.
    pub fn is_stopped(&self) -> bool {
        // SAFETY: alive and only shared by the type invariant.
        unsafe { (*self.cookie).stopped.load(Ordering::Relaxed) }
    }
}

impl<T: Handler> Drop for Line<T> {
    fn drop(&mut self) {
        // SAFETY: registered with this cookie by the type invariant. Waits for a running handler.
        unsafe { bindings::free_irq(self.number.0, self.cookie.cast()) };
        // SAFETY: owned by this value by the type invariant; the handler cannot run any more.
        let cookie = unsafe { KBox::from_raw(self.cookie) };
        if cookie.stopped.load(Ordering::Relaxed) {
            // SAFETY: looks at the interrupt of that number, which is one of Xen's; undoes what `Running::stop` did
            // where somebody else is on the line. The last handler to go takes that with it.
            unsafe { sys::irq_resume_others(self.number.0) };
        }
    }
}

extern "C" fn callback<T: Handler>(
    irq: ffi::c_int,
    cookie: *mut ffi::c_void,
) -> bindings::irqreturn_t {
    // SAFETY: the cookie is the line's, which outlives the registration, and is shared only.
    let cookie = unsafe { &*cookie.cast::<Cookie<T>>() };
    // INVARIANT: the core calls this as a handler of that interrupt, and the value goes before it returns.
    let interrupt = Running {
        irq,
        callback: Some(callback::<T>),
        stopped: &cookie.stopped,
        _handler: PhantomData,
    };
    if T::on_interrupt(cookie.handler.as_arc_borrow(), &interrupt) {
        irqreturn::IRQ_HANDLED
    } else {
        irqreturn::IRQ_NONE
    }
}
