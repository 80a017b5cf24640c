// SPDX-License-Identifier: GPL-2.0

//! Event channels bound to a handler.
//!
//! Both ends bind *late EOI*: the channel stays masked from delivery until the handler's owner says
//! that it has dealt with the event, and whether it brought work. A peer that sends events without
//! work is slowed down by the core (XSA-332, XSA-391).

use crate::{compat::irqreturn, sys, xenbus};
use core::sync::atomic::{AtomicU32, Ordering};
use kernel::{
    bindings,
    error::to_result,
    ffi,
    prelude::*,
    str::{CStr, CStrExt},
    sync::{Arc, ArcBorrow},
};

/// A Linux interrupt number of an event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq(u32);

impl Irq {
    /// The number as the kernel's functions want it.
    pub fn as_int(self) -> ffi::c_int {
        // CAST: interrupt numbers are small.
        self.0 as ffi::c_int
    }

    /// The event is dealt with; `spurious` when it brought no work. Atomic.
    pub fn eoi(self, spurious: bool) {
        let flags = if spurious {
            sys::XEN_EOI_FLAG_SPURIOUS
        } else {
            0
        };
        // SAFETY: the number belongs to an event channel that is bound late EOI: only
        // `EventChannel` makes values of this type.
        unsafe { sys::xen_irq_lateeoi(self.0, flags) }
    }

    /// Sends an event to the peer. Atomic.
    pub fn notify(self) {
        // SAFETY: a bound event channel.
        unsafe { sys::notify_remote_via_irq(self.as_int()) }
    }

    /// Keeps events of this channel away from all vCPUs for good, and waits for a running handler. Sleeps;
    /// not from the handler.
    pub fn mask_and_wait(self) {
        // SAFETY: a bound interrupt.
        unsafe { bindings::disable_irq(self.0) }
    }

    /// Forgets that an event is pending. Atomic.
    pub fn clear_pending(self) {
        // SAFETY: a bound interrupt.
        unsafe { sys::xen_clear_irq_pending(self.as_int()) }
    }
}

/// Remembers the interrupt of an event for the work that it starts. Atomic.
pub struct IrqCell(AtomicU32);

impl IrqCell {
    const EMPTY: u32 = u32::MAX;

    /// No event yet.
    pub const fn empty() -> Self {
        Self(AtomicU32::new(Self::EMPTY))
    }

    /// An event came.
    pub fn set(&self, irq: Irq) {
        self.0.store(irq.0, Ordering::Release);
    }

    /// The interrupt, once an event came.
    pub fn get(&self) -> Option<Irq> {
        match self.0.load(Ordering::Acquire) {
            Self::EMPTY => None,
            irq => Some(Irq(irq)),
        }
    }
}

/// Who hears of events.
pub trait Handler: Send + Sync + Sized + 'static {
    /// An event came. Runs in hard interrupt context: atomic. Must lead to one [`Irq::eoi`].
    fn on_event(this: ArcBorrow<'_, Self>, irq: Irq);
}

/// An event channel with its handler.
///
/// # Invariants
///
/// `irq` is bound to `callback::<T>` with `handler` as its cookie, which is an `Arc` turned into a
/// pointer and owned by this value.
pub struct EventChannel<T: Handler> {
    irq: Irq,
    port: u32,
    handler: *const T,
}

// SAFETY: the pointer is an `Arc<T>` with `T: Send + Sync`; the functions called on the interrupt
// may be called from any thread.
unsafe impl<T: Handler> Send for EventChannel<T> {}
// SAFETY: as for `Send`.
unsafe impl<T: Handler> Sync for EventChannel<T> {}

impl<T: Handler> EventChannel<T> {
    /// Allocates a channel for the peer of `dev` and binds it (the frontend's side).
    ///
    /// # Errors
    ///
    /// That of the hypercall, already reported by the core, or of the binding.
    pub fn allocate(dev: &xenbus::Device, name: &'static CStr, handler: Arc<T>) -> Result<Self> {
        let mut port = 0;
        // SAFETY: `dev` is valid and `port` is written on success only.
        to_result(unsafe { sys::xenbus_alloc_evtchn(dev.as_raw(), &mut port) })?;
        let cookie = Arc::into_raw(handler);
        // SAFETY: the cookie stays valid until `drop` has unbound the handler.
        let irq = unsafe {
            sys::bind_evtchn_to_irqhandler_lateeoi(
                port,
                Some(callback::<T>),
                0,
                name.as_char_ptr(),
                cookie.cast_mut().cast(),
            )
        };
        // The core closes a port that it had bound before it failed, and its number may be another's by now:
        // so none is closed here. One that it never bound stays unbound until the domain ends.
        Self::bound(irq, port, cookie)
    }

    /// Binds the channel that the peer of `dev` has offered (the backend's side).
    ///
    /// # Errors
    ///
    /// That of the binding: the port may be nonsense.
    pub fn bind_remote(
        dev: &xenbus::Device,
        port: u32,
        name: &'static CStr,
        handler: Arc<T>,
    ) -> Result<Self> {
        let cookie = Arc::into_raw(handler);
        // SAFETY: the cookie stays valid until `drop` has unbound the handler.
        let irq = unsafe {
            sys::bind_interdomain_evtchn_to_irqhandler_lateeoi(
                dev.as_raw(),
                port,
                Some(callback::<T>),
                0,
                name.as_char_ptr(),
                cookie.cast_mut().cast(),
            )
        };
        Self::bound(irq, port, cookie)
    }

    fn bound(irq: ffi::c_int, port: u32, handler: *const T) -> Result<Self> {
        match u32::try_from(irq) {
            // INVARIANT: bound just now with this cookie.
            Ok(irq) => Ok(Self {
                irq: Irq(irq),
                port,
                handler,
            }),
            Err(_) => {
                // SAFETY: made by `Arc::into_raw`, not taken by a binding.
                drop(unsafe { Arc::from_raw(handler) });
                Err(Error::from_errno(irq))
            }
        }
    }

    /// The interrupt.
    pub fn irq(&self) -> Irq {
        self.irq
    }

    /// The port: ours on the frontend's side, the peer's number on the backend's.
    pub fn port(&self) -> u32 {
        self.port
    }
}

impl<T: Handler> Drop for EventChannel<T> {
    fn drop(&mut self) {
        // SAFETY: bound with this cookie by the type invariant. Waits for a running handler, and
        // closes the port.
        unsafe { sys::unbind_from_irqhandler(self.irq.0, self.handler.cast_mut().cast()) };
        // SAFETY: owned by this value by the type invariant; the handler can not run any more.
        drop(unsafe { Arc::from_raw(self.handler) });
    }
}

extern "C" fn callback<T: Handler>(
    irq: ffi::c_int,
    cookie: *mut ffi::c_void,
) -> bindings::irqreturn_t {
    // SAFETY: the cookie is the `Arc<T>` of the binding, which outlives it.
    let handler = unsafe { ArcBorrow::from_raw(cookie.cast::<T>().cast_const()) };
    // CAST: the kernel passes the number of a bound interrupt, which is not negative.
    T::on_event(handler, Irq(irq as u32));
    irqreturn::IRQ_HANDLED
}
