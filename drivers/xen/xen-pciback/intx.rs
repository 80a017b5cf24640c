// SPDX-License-Identifier: GPL-2.0

//! dom0's handler on the legacy interrupt line of a guest's function; [`pciif::intx`] says why it is
//! there and when.
//!
//! *Owns* the handler and its counter. *Callers*: [`crate::function`] with its `config` lock held, in
//! sleepable context; the line's interrupts, atomic; `irq_handlers` reads without a lock. *Lock*:
//! none of its own: what the handler reads is atomic.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::{
    prelude::*,
    str::CString,
    sync::{Arc, ArcBorrow},
};
use pciif::{
    intx::{Event, Intx},
    sbdf::Sbdf,
};
use xen::{
    irq::{Handler, Line, LineNumber},
    log::Show,
};

/// In how many interrupts the handler asks Xen once whether a guest has the line.
const LOOK_EVERY: u32 = 1000;

/// What the handler uses, and what is shown of it.
pub(crate) struct Acknowledger {
    address: Sbdf,
    number: Option<LineNumber>,
    on: AtomicBool,
    acking: AtomicBool,
    silent: AtomicBool,
    messages: AtomicBool,
    /// In this assignment it was said that it fell silent.
    told: AtomicBool,
    /// Interrupts that were claimed.
    count: AtomicU32,
    /// Interrupts that came while it was silent.
    skipped: AtomicU32,
}

impl Handler for Acknowledger {
    fn on_interrupt(this: ArcBorrow<'_, Self>) -> bool {
        let state = this.state();
        let counter = match state {
            Intx { acking: true, .. } => &this.count,
            Intx { silent: true, .. } => &this.skipped,
            _ => return false,
        };
        let count = counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count % LOOK_EVERY == 0 {
            let event = match this.number.is_some_and(LineNumber::is_shared_with_guests) {
                true => Event::Shared,
                false => Event::NotShared,
            };
            let next = state.after(event);
            if next != state {
                this.set(next);
            }
            if next.silent && !this.told.swap(true, Ordering::Relaxed) {
                pr_info!(
                    "{}: its interrupt line is not shared with other domains: no longer acknowledged\n",
                    Show(this.address)
                );
            }
        }
        state.acking
    }
}

impl Acknowledger {
    /// For a function whose legacy interrupt is `irq`: the number is only true while MSI is off.
    pub(crate) fn new(address: Sbdf, irq: u32) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                address,
                number: LineNumber::new(irq),
                on: AtomicBool::new(false),
                acking: AtomicBool::new(false),
                silent: AtomicBool::new(false),
                messages: AtomicBool::new(false),
                told: AtomicBool::new(false),
                count: AtomicU32::new(0),
                skipped: AtomicU32::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    /// The guest's number of the line, 0 when there is none.
    pub(crate) fn pirq(&self) -> u32 {
        self.number.map_or(0, LineNumber::pirq)
    }

    /// The present state.
    pub(crate) fn state(&self) -> Intx {
        Intx {
            on: self.on.load(Ordering::Relaxed),
            acking: self.acking.load(Ordering::Relaxed),
            silent: self.silent.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
        }
    }

    /// Notes what the handler itself changes. Who looks in between finds it neither claiming
    /// nor silent, or both: that is one interrupt.
    fn set(&self, state: Intx) {
        self.acking.store(state.acking, Ordering::Relaxed);
        self.silent.store(state.silent, Ordering::Relaxed);
    }

    /// Interrupts that were claimed.
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}

/// The place of the handler on the line.
pub(crate) struct Control {
    line: Option<Line<Acknowledger>>,
}

impl Control {
    /// Not on the line.
    pub(crate) const fn new() -> Self {
        Self { line: None }
    }

    /// Goes where an event leads.
    ///
    /// # Errors
    ///
    /// `ENXIO` for a function without a line; that of the core when the line cannot be shared. The
    /// handler is off then.
    pub(crate) fn apply(&mut self, acknowledger: &Arc<Acknowledger>, event: Event) -> Result {
        let mut next = acknowledger.state().after(event);
        let mut result = Ok(());
        if event == Event::Assigned {
            acknowledger.told.store(false, Ordering::Relaxed);
        }
        if !next.on {
            acknowledger.set(next);
            self.line = None;
        } else if self.line.is_none() {
            match Self::request(acknowledger) {
                Ok(line) => self.line = Some(line),
                Err(e) => result = Err(e),
            }
        }
        next.on = self.line.is_some();
        next.acking &= next.on;
        acknowledger.on.store(next.on, Ordering::Relaxed);
        acknowledger
            .messages
            .store(next.messages, Ordering::Relaxed);
        acknowledger.set(next);
        result
    }

    fn request(acknowledger: &Arc<Acknowledger>) -> Result<Line<Acknowledger>> {
        let number = acknowledger.number.ok_or(ENXIO)?;
        let name = CString::try_from_fmt(fmt!("xen-pciback[{}]", Show(acknowledger.address)))?;
        Line::request(number, name, acknowledger.clone())
    }
}
