// SPDX-License-Identifier: GPL-2.0

//! A limit for log lines that the other domain can provoke (XSA-43: a guest must not be able to
//! fill dom0's log).

use crate::sys;
use kernel::{bindings, prelude::*, types::Opaque};

/// At most `burst` lines in `interval` seconds; the core says how many were left out.
#[pin_data]
pub struct RateLimit {
    #[pin]
    state: Opaque<bindings::ratelimit_state>,
}

// SAFETY: the state has its own lock.
unsafe impl Send for RateLimit {}
// SAFETY: as for `Send`.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// A fresh limit; `interval` in seconds.
    pub fn new(interval: u16, burst: u16) -> impl PinInit<Self> {
        pin_init!(Self {
            state <- Opaque::ffi_init(move |slot| {
                let jiffies = i32::from(interval).saturating_mul(bindings::HZ as i32);
                // SAFETY: the slot is valid for writing and pinned.
                unsafe { sys::ratelimit_init(slot, jiffies, i32::from(burst)) }
            }),
        })
    }

    /// Whether a line may be printed now. Atomic.
    pub fn allows(&self) -> bool {
        // SAFETY: initialised by `new`.
        unsafe { sys::ratelimit(self.state.get()) }
    }
}

/// Makes what `core` can format usable in the kernel's log and format macros, which have a trait of
/// their own. The pure crate knows nothing of the kernel.
pub struct Show<T>(pub T);

impl<T: core::fmt::Display> kernel::fmt::Display for Show<T> {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        self.0.fmt(f)
    }
}
