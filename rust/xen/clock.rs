// SPDX-License-Identifier: GPL-2.0

//! Waiting for an event channel with interrupts off, with a deadline that is true.
//!
//! `SCHEDOP_poll` wants its deadline as *absolute* Xen time (ns since the hypervisor's boot). None
//! of the kernel's readers of that clock is exported, so it is derived:
//!
//! * `sched_clock` of a Xen guest is Xen's time less a constant that is fixed at boot (and again
//!   after a suspend). The constant is what [`PollClock`] keeps.
//! * `VCPUOP_get_runstate_info` tells the Xen time at which this vCPU last changed its run state.
//!   That is never later than now, and just now when the vCPU has this moment come back from
//!   blocking. So *entry time − sched_clock* is a lower bound of the constant, and a tight one
//!   right after a poll that really blocked.
//!
//! The clock keeps the largest bound seen. A constant that is too small makes a poll return at once;
//! the caller sees that its answer is not there, polls again, and by then the vCPU has been through
//! a state change whose time mends the constant. It can not become too large, so no wait is longer
//! than asked for. A test guest with four vCPUs checks both.

use crate::{event::Irq, sys};
use core::sync::atomic::{AtomicI64, Ordering};

/// Keeps the difference between Xen's time and `sched_clock`.
pub struct PollClock {
    /// ns; `i64::MIN` means not known yet.
    offset: AtomicI64,
}

impl PollClock {
    /// A clock that does not know its offset yet.
    pub const fn new() -> Self {
        Self {
            offset: AtomicI64::new(i64::MIN),
        }
    }

    /// Forgets the offset: after a suspend the guest's clock starts from another point.
    pub fn reset(&self) {
        self.offset.store(i64::MIN, Ordering::Relaxed);
    }

    /// Blocks this vCPU until `irq`'s port is pending, for at most `max_wait` ns from `now`, which is what
    /// [`now`] said just before; may return early.
    ///
    /// Atomic; to be called with interrupts off, else what ends the wait may be delivered before it begins.
    pub fn poll(&self, irq: Irq, now: i64, max_wait: u32) {
        let offset = self.offset.load(Ordering::Relaxed);
        let deadline = if offset == i64::MIN {
            // A moment that is past (0 would mean "for ever"): returns at once, through a state
            // change that tells the time.
            1
        } else {
            now.saturating_add(offset)
                .saturating_add(i64::from(max_wait))
        };
        // CAST: the deadline is positive: Xen's time counts up from its boot.
        // SAFETY: `irq` is bound; the call is allowed in any context.
        unsafe { sys::xen_poll_irq_timeout(irq.as_int(), deadline.max(1) as u64) };
    }

    /// Learns the offset. To be called after a [`Self::poll`] that brought nothing.
    ///
    /// Atomic. With interrupts on, or on another vCPU than the poll, it learns less: what it learns is a lower
    /// bound in any case.
    pub fn learn(&self) {
        // SAFETY: may be called in any context.
        let entry = unsafe { sys::runstate_entry_time() };
        if let Ok(entry @ 1..) = i64::try_from(entry) {
            let bound = entry.saturating_sub(now());
            self.offset.fetch_max(bound, Ordering::Relaxed);
        }
    }
}

impl Default for PollClock {
    fn default() -> Self {
        Self::new()
    }
}

/// `sched_clock` in ns. Atomic.
pub fn now() -> i64 {
    // SAFETY: may be called in any context.
    // CAST: 2^63 ns are 292 years.
    unsafe { sys::clock_ns() as i64 }
}
