// SPDX-License-Identifier: GPL-2.0

//! dom0's handler on the legacy interrupt line of a guest's function; [`pciif::intx`] says why it is
//! there and when.
//!
//! *Owns* the handler, its place on the line and its counters. *Callers*: [`crate::function`] in sleepable
//! context, with its `config` lock held where a guest's request leads here; the line's interrupts, atomic;
//! the work item with which a handler leaves a busy line; `irq_handlers` reads without a lock. *Lock*: `line`,
//! inside `config`; a handler that is being taken off is waited for with it held. What the handler reads is
//! atomic.

use crate::QUEUE;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kernel::{
    new_mutex,
    prelude::*,
    str::CString,
    sync::{Arc, ArcBorrow, Mutex},
};
use pciif::{
    intx::{Event, Intx, Look, LOOK_EVERY},
    sbdf::Sbdf,
};
use xen::{
    clock,
    irq::{Handler, Line, LineNumber, Running},
    log::Show,
    work::{Item, Run},
};

/// What the handler uses, and what is shown of it.
#[pin_data]
pub(crate) struct Acknowledger {
    address: Sbdf,
    number: Option<LineNumber>,
    on: AtomicBool,
    acking: AtomicBool,
    silent: AtomicBool,
    messages: AtomicBool,
    held: AtomicBool,
    /// In this assignment it was said that it fell silent or left.
    told: AtomicBool,
    /// Interrupts that were claimed.
    count: AtomicU32,
    /// Interrupts that came while it was silent.
    skipped: AtomicU32,
    /// When the handler looked last whether it is needed, in ns.
    looked: AtomicU64,
    /// The handler's place. It refers to `self`, until [`Control`] goes.
    #[pin]
    line: Mutex<Option<Line<Acknowledger>>>,
    #[pin]
    leave: Item<Acknowledger, 0>,
}

xen::has_work_item!(Acknowledger, 0, leave);

impl Run<0> for Acknowledger {
    /// Takes a handler off that has left.
    fn run(this: Arc<Self>) {
        let mut line = this.line.lock();
        // It may have been put there anew meanwhile; or an event was noted while it left, over its own state.
        if line.as_ref().is_some_and(Line::is_stopped) {
            this.set(this.state().after(Event::Left));
            *line = None;
        }
    }
}

impl Handler for Acknowledger {
    fn on_interrupt(this: ArcBorrow<'_, Self>, interrupt: &Running<'_>) -> bool {
        let state = this.state();
        let claims = state.claims();
        let counter = match claims {
            true => &this.count,
            false if state.silent => &this.skipped,
            false => return false,
        };
        let count = counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count % LOOK_EVERY == 0 {
            Self::look(this, interrupt, state);
        }
        claims
    }
}

impl Acknowledger {
    /// For a function whose legacy interrupt is `irq`: the number is only true while MSI is off.
    fn new(address: Sbdf, irq: u32) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                address,
                number: LineNumber::new(irq),
                on: AtomicBool::new(false),
                acking: AtomicBool::new(false),
                silent: AtomicBool::new(false),
                messages: AtomicBool::new(false),
                held: AtomicBool::new(false),
                told: AtomicBool::new(false),
                count: AtomicU32::new(0),
                skipped: AtomicU32::new(0),
                looked: AtomicU64::new(0),
                line <- new_mutex!(None, "pciback_line"),
                leave <- Item::new(c"xen-pciback-leave", kernel::static_lock_class!()),
            }),
            GFP_KERNEL,
        )
    }

    /// Looks whether it is needed. Atomic.
    fn look(this: ArcBorrow<'_, Self>, interrupt: &Running<'_>, state: Intx) {
        let Some(number) = this.number else { return };
        // CAST: counts up from 0.
        let now = clock::now() as u64;
        let event = Look {
            guest_has_it: number.is_shared_with_guests(),
            alone: interrupt.has_only_this_kind(),
            took: now.saturating_sub(this.looked.swap(now, Ordering::Relaxed)),
        }
        .event();
        let next = state.after(event);
        if next == state {
            return;
        }
        this.set(next);
        let why = match event {
            Event::Left => {
                interrupt.stop();
                QUEUE.add::<Self, 0>(this.into());
                "is busy, and no driver of dom0 needs it"
            }
            _ if next.silent => "is not shared with other domains",
            _ => return,
        };
        if !this.told.swap(true, Ordering::Relaxed) {
            pr_info!(
                "{}: its interrupt line {}: no longer acknowledged\n",
                Show(this.address),
                why
            );
        }
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
            held: self.held.load(Ordering::Relaxed),
        }
    }

    /// Notes a state. Who looks in between finds a mixture of two: that is one interrupt.
    fn set(&self, state: Intx) {
        self.on.store(state.on, Ordering::Relaxed);
        self.acking.store(state.acking, Ordering::Relaxed);
        self.silent.store(state.silent, Ordering::Relaxed);
        self.messages.store(state.messages, Ordering::Relaxed);
        self.held.store(state.held, Ordering::Relaxed);
    }

    /// Interrupts that were claimed.
    pub(crate) fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}

/// The handler of a function; it is off the line when this is dropped.
pub(crate) struct Control(Arc<Acknowledger>);

impl Control {
    /// Not on the line; see [`Acknowledger::new`].
    pub(crate) fn new(address: Sbdf, irq: u32) -> Result<Self> {
        Ok(Self(Acknowledger::new(address, irq)?))
    }

    /// What is to be seen of it.
    pub(crate) fn handler(&self) -> &Acknowledger {
        &self.0
    }

    /// Goes where an event leads.
    ///
    /// # Errors
    ///
    /// `ENXIO` for a function without a line; that of the core when the line cannot be shared. The
    /// handler is off then.
    pub(crate) fn apply(&self, event: Event) -> Result {
        let this = &self.0;
        let mut line = this.line.lock();
        let mut next = this.state().after(event);
        let mut result = Ok(());
        if event == Event::Assigned {
            this.told.store(false, Ordering::Relaxed);
        }
        if !next.held || line.as_ref().is_some_and(Line::is_stopped) {
            // One that has masked the line and was not taken off yet is of no use for what comes.
            this.set(Intx {
                held: false,
                ..next
            });
            *line = None;
        }
        if next.held && line.is_none() {
            match Self::request(this) {
                Ok(place) => *line = Some(place),
                Err(e) => {
                    next = next.after(Event::Left);
                    result = Err(e);
                }
            }
        }
        this.set(next);
        result
    }

    fn request(handler: &Arc<Acknowledger>) -> Result<Line<Acknowledger>> {
        let number = handler.number.ok_or(ENXIO)?;
        let name = CString::try_from_fmt(fmt!("xen-pciback[{}]", Show(handler.address)))?;
        Line::request(number, name, handler.clone())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.apply(Event::Released);
    }
}
