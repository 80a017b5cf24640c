// SPDX-License-Identifier: GPL-2.0

//! One request at a time to the backend, and its answer.
//!
//! *Owns* the granted page and the event channel. *Callers*: configuration accessors (any context,
//! any vCPU, interrupts on or off), the MSI code, and [`crate::device`], which makes and ends it
//! (may sleep). *Lock*: `turn`, a raw spin lock with interrupts off, held over the whole exchange;
//! nothing else is taken inside it. What may be sent, how long its answer is waited for, and what is
//! told about it is decided in [`pciif::exchange`], where the rule stands that no late answer is
//! taken for that of another request.
//!
//! # The wait
//!
//! The protocol has to be answered where the PCI core stands, which may be atomic, so the vCPU waits
//! in the hypervisor until the event channel is pending (`SCHEDOP_poll`). There is no spin before
//! it: the backend answers on another vCPU, often on the same CPU. Two things could make it wait for
//! an event that has come already:
//!
//! * another vCPU takes the event as an interrupt, between our look at the flag and the poll. See
//!   below;
//! * a deadline on the wrong scale. [`xen::clock`] says how it is made.
//!
//! # The interrupt
//!
//! The backend speaks unasked, too: error messages (AER) come over the same channel. So the channel is
//! bound with a handler, but its events are not delivered while requests are made. The late EOI
//! does that:
//!
//! ```text
//!          event is delivered: the core masks the channel, the handler sets `held`
//!   armed ─────────────────────────────────────────────────────────────────────────▶ held
//!     ◀─────────────────────────────────────────────────────────────────────────
//!          the work item, REST later, under `turn`: clears `held`, gives the EOI
//! ```
//!
//! While it is *held* no vCPU can take an event away: it stays pending until a poll or the
//! EOI finds it. While it is *armed* the answer to a request may be delivered to another vCPU in
//! just the wrong moment. So a waiter looks at `held` *before* it looks at the flag, and sleeps for
//! [`SHORT`] at most if it was not set: at worst the first answer after each rest costs that much. `held` is
//! cleared under `turn` only, never during an exchange.
//!
//! So a guest with one vCPU takes no interrupt at all, one with several takes one in each [`REST`]
//! of work, an idle guest none; and a backend that floods the channel gets one interrupt per REST, and is
//! then held back by the core, because the EOI says that the event was for nothing (XSA-391).
//!
//! An error message that arrives while the channel is held is found after the exchange (its
//! flag is looked at after the last time that the event was cleared), or at the EOI.

use crate::recovery;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::{
    prelude::*,
    sync::{Arc, ArcBorrow, LockClassKey},
    time::{delay::fsleep, Delta},
};
use pciif::{
    bucket::{Bucket, Limit},
    exchange::{Exchange, Note, Refusal},
    lines::{LeftOut, Lines},
    op::OpStatus,
    wakes::Wakes,
    wire::{self, MsixEntry, PciOp},
};
use xen::{
    clock::{self, PollClock},
    event::{EventChannel, Handler, Irq, IrqCell},
    lock::IrqLock,
    new_irq_lock,
    page::{GrantedPage, SharedPage},
    work::{Item, Queue, Run},
    xenbus,
};

/// The longest single wait in the hypervisor, in ns: a bound for the case that everything else
/// fails, not a period. A link that is given up by another thread is noticed after it.
const SLICE: u32 = 1_000_000_000;
/// The same while another vCPU could take the event, in ns.
const SHORT: u32 = 1_000_000;
/// How long the channel stays held after an event, in ms.
const REST: i64 = 100;
/// Error messages that one run of the work item serves.
const MOST_MESSAGES: u32 = 16;

/// Lines about error messages: eight at once, then eight in a minute.
const LINES: Limit = Limit::new(8, 60_000_000_000, 7);
/// Error messages for which a driver's handler is run: 64 at once, then two in a second. A recovery has three
/// or four for each function.
const HANDLED: Limit = Limit::new(2, 1_000_000_000, 63);

/// How much of the backend's error messages is followed.
struct Heard {
    lines: Lines,
    handled: Bucket,
}

/// Where the work items of all links run.
pub(crate) static QUEUE: Queue = Queue::closed();

/// What belongs to who may use the request slot.
struct Turn {
    exchange: Exchange,
    wakes: Wakes,
}

/// What the handler, the work item and the waiters share.
#[pin_data]
pub(crate) struct Link {
    #[pin]
    turn: IrqLock<Turn>,
    #[pin]
    errors: Item<Link, 0>,
    clock: PollClock,
    irq: IrqCell,
    /// An event was delivered and its EOI is still out.
    held: AtomicBool,
    /// A request was made since the last EOI: the event had a reason.
    used: AtomicBool,
    /// The backend is gone: nothing is sent any more.
    gone: AtomicBool,
    /// The link is being taken down: no work is started.
    ending: AtomicBool,
    /// Counts how often answers of before stopped being worth anything.
    losses: AtomicU32,
    /// The backend decides how many error messages there are.
    #[pin]
    heard: IrqLock<Heard>,
    page: GrantedPage,
}

xen::has_work_item!(Link, 0, errors);

/// The backend's answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// As the protocol numbers it; a backend may also let an errno through.
    pub(crate) err: i32,
    pub(crate) value: u32,
}

impl Answer {
    /// The value, or the protocol's status.
    pub(crate) fn value(self) -> Result<u32, OpStatus> {
        OpStatus::from_wire(self.err).ok().map(|()| self.value)
    }
}

/// The connection to the backend.
pub(crate) struct Transport {
    /// Dropped first: no event may find the page missing.
    channel: EventChannel<Link>,
    link: Arc<Link>,
}

impl Transport {
    /// Makes page and channel; nothing is published yet.
    pub(crate) fn new(dev: &xenbus::Device) -> Result<Arc<Self>> {
        let page = GrantedPage::new(dev)?;
        page.page().set_flag(wire::FLAG_PCIB_AERHANDLER);
        let link = Arc::pin_init(
            pin_init!(Link {
                turn <- new_irq_lock!(
                    Turn { exchange: Exchange::new(), wakes: Wakes::new() },
                    "pcifront_turn"
                ),
                errors <- Item::new(c"pcifront_errors", work_class()),
                clock: PollClock::new(),
                irq: IrqCell::empty(),
                held: AtomicBool::new(false),
                used: AtomicBool::new(false),
                gone: AtomicBool::new(false),
                ending: AtomicBool::new(false),
                losses: AtomicU32::new(0),
                heard <- new_irq_lock!(
                    Heard {
                        lines: Lines::new(LINES),
                        handled: Bucket::new(HANDLED),
                    },
                    "pcifront_heard"
                ),
                page,
            }),
            GFP_KERNEL,
        )?;
        let channel = EventChannel::allocate(dev, c"pcifront", link.clone())?;
        link.irq.set(channel.irq());
        Ok(Arc::new(Self { channel, link }, GFP_KERNEL)?)
    }

    /// Grant reference and port, for the backend.
    pub(crate) fn keys(&self) -> (u32, u32) {
        (self.link.page.grant(), self.channel.port())
    }

    /// From now on every request fails at once with `DevNotFound`: functions read as all ones. A
    /// request that is out is given up. Atomic.
    pub(crate) fn set_gone(&self) {
        self.link.gone.store(true, Ordering::Relaxed);
        self.link.losses.fetch_add(1, Ordering::Relaxed);
    }

    /// A number that changes whenever answers of before stop being worth anything. Atomic.
    pub(crate) fn losses(&self) -> u32 {
        self.link.losses.load(Ordering::Relaxed)
    }

    /// Whether `other` is the link of this transport.
    pub(crate) fn is(&self, other: &Link) -> bool {
        core::ptr::eq(&*self.link, other)
    }

    /// Sends a request without MSI-X entries and waits for the answer. Atomic.
    ///
    /// # Errors
    ///
    /// The backend's status; `DevNotFound` when it is gone, `OpFailed` when it does not answer.
    pub(crate) fn request(&self, op: &PciOp) -> Result<u32, OpStatus> {
        self.exchange(op, &mut [])?.value()
    }

    /// Sends a request and waits for the answer, and, if it is a success, the vectors of `entries`.
    /// Atomic.
    ///
    /// Only the words that the request needs cross the page: nine, and one for each entry.
    ///
    /// # Errors
    ///
    /// `DevNotFound` when the backend is gone, `OpFailed` when it does not answer.
    pub(crate) fn exchange(
        &self,
        op: &PciOp,
        entries: &mut [MsixEntry],
    ) -> Result<Answer, OpStatus> {
        let answer = self.link.exchange(self.channel.irq(), op, entries);
        if self.link.page.page().flag(wire::FLAG_PCIB_ACTIVE) {
            Link::start_work(&self.link);
        }
        answer
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.link.ending.store(true, Ordering::Release);
        // After this no handler runs, so nothing is put into the queue any more.
        self.channel.irq().mask_and_wait();
        Item::<Link, 0>::cancel(&self.link);
    }
}

fn work_class() -> Pin<&'static LockClassKey> {
    kernel::static_lock_class!()
}

impl Handler for Link {
    fn on_event(this: ArcBorrow<'_, Self>, _irq: Irq) {
        // The EOI is the work item's.
        this.held.store(true, Ordering::Release);
        Self::start_work(&this.into());
    }
}

impl Run<0> for Link {
    fn run(this: Arc<Self>) {
        let served = recovery::serve(&this, MOST_MESSAGES);
        if served == 0 && !this.ending.load(Ordering::Acquire) {
            fsleep(Delta::from_millis(REST));
        }
        this.arm(served > 0);
        // One that the last run left behind, or whose event an exchange has cleared.
        if this.page.page().flag(wire::FLAG_PCIB_ACTIVE) {
            if served == MOST_MESSAGES {
                fsleep(Delta::from_millis(REST));
            }
            Self::start_work(&this);
        }
    }
}

impl Link {
    fn start_work(this: &Arc<Self>) {
        if !this.ending.load(Ordering::Acquire) {
            QUEUE.add::<Link, 0>(this.clone());
        }
    }

    /// The shared page.
    pub(crate) fn page(&self) -> &SharedPage {
        self.page.page()
    }

    /// Whether a line about an error message may be written now, and what to say in it about those left
    /// out.
    pub(crate) fn line(&self) -> Option<LeftOut> {
        self.heard.lock().lines.line(clock::now())
    }

    /// Whether a driver's handler may be run for one more error message.
    pub(crate) fn may_handle(&self) -> bool {
        self.heard.lock().handled.take(clock::now(), 1).is_ok()
    }

    /// Whether the link still stands.
    pub(crate) fn is_usable(&self) -> bool {
        !self.gone.load(Ordering::Relaxed) && !self.ending.load(Ordering::Acquire)
    }

    /// Sends an event. Not after the link has ended.
    pub(crate) fn notify(&self) {
        if let Some(irq) = self.irq.get() {
            irq.notify();
        }
    }

    /// Gives the EOI if it is out; `served` when the event brought an error message.
    fn arm(&self, served: bool) {
        let turn = self.turn.lock();
        if self.held.swap(false, Ordering::AcqRel) {
            let used = self.used.swap(false, Ordering::Relaxed);
            if let Some(irq) = self.irq.get() {
                irq.eoi(!served && !used);
            }
        }
        drop(turn);
    }

    fn exchange(
        &self,
        irq: Irq,
        op: &PciOp,
        entries: &mut [MsixEntry],
    ) -> Result<Answer, OpStatus> {
        let mut turn = self.turn.lock();
        let Turn { exchange, wakes } = &mut *turn;
        let page = self.page.page();
        if self.gone.load(Ordering::Relaxed) {
            exchange.set_gone();
        }
        let patience = match exchange.begin(page.flag(wire::FLAG_PCIF_ACTIVE)) {
            Ok(patience) => patience,
            Err((refusal, note)) => {
                if note.is_some() {
                    self.losses.fetch_add(1, Ordering::Relaxed);
                }
                tell(note);
                return Err(match refusal {
                    Refusal::Gone => OpStatus::DevNotFound,
                    Refusal::Overdue => OpStatus::OpFailed,
                });
            }
        };

        for (at, word) in op.to_words().into_iter().enumerate() {
            page.write(wire::OP + 4 * at, word);
        }
        for (at, entry) in (0..).zip(entries.iter()) {
            if let Some(offset) = wire::msix_entry_offset(at) {
                page.write(offset, entry.to_u32());
            }
        }

        self.used.store(true, Ordering::Relaxed);
        irq.clear_pending();
        page.set_flag(wire::FLAG_PCIF_ACTIVE);
        irq.notify();
        let (answered, waited) = match self.wait(irq, patience, wakes) {
            Ok(waited) => (true, waited),
            Err(waited) => (false, waited),
        };
        let note = exchange.finish(answered, waited);
        if !answered {
            self.losses.fetch_add(1, Ordering::Relaxed);
        }
        if !self.gone.load(Ordering::Relaxed) {
            tell(note);
        }
        if !answered {
            return Err(OpStatus::OpFailed);
        }
        let answer = Answer {
            // CAST: the same 32 bits, as the protocol declares them.
            err: page.read(wire::OP_ERR) as i32,
            value: page.read(wire::OP_VALUE),
        };
        if answer.err == 0 {
            for (at, entry) in (0..).zip(entries.iter_mut()) {
                let word = wire::msix_entry_offset(at).map_or(0, |offset| page.read(offset));
                entry.vector = MsixEntry::from_u32(word).vector;
            }
        }
        Ok(answer)
    }

    /// Waits until the backend has cleared the flag, or gives up after `patience` ns; says in either case
    /// how long it has waited, to a millisecond. Interrupts are off.
    fn wait(&self, irq: Irq, patience: i64, wakes: &mut Wakes) -> Result<i64, i64> {
        let page = self.page.page();
        let start = clock::now();
        let mut now = start;
        loop {
            // Before the flag: see the head of the file.
            let held = self.held.load(Ordering::Acquire);
            let waited = now.saturating_sub(start);
            if !page.flag(wire::FLAG_PCIF_ACTIVE) {
                return Ok(waited);
            }
            if waited >= patience || self.gone.load(Ordering::Relaxed) {
                return Err(waited);
            }
            let longest = if held { SLICE } else { SHORT };
            let left = patience.saturating_sub(waited);
            let slice = u32::try_from(left).unwrap_or(u32::MAX).min(longest);
            self.clock.poll(irq, now, slice);
            // The event of the answer before, if it came late, must not end the next poll too.
            irq.clear_pending();
            let answered = !page.flag(wire::FLAG_PCIF_ACTIVE);
            if answered && !held {
                // This slice was a short one.
                return Ok(waited);
            }
            let before = now;
            now = clock::now();
            if !answered {
                self.clock.learn();
            } else if wakes.note(now.saturating_sub(before), SLICE.into()) {
                // Said because it would cost a second each time.
                kernel::pr_warn!("an answer came without its event\n");
            }
        }
    }
}

/// Writes a line, if there is one. Atomic.
fn tell(note: Option<Note>) {
    match note {
        None => {}
        Some(Note::GivenUp { waited }) => pr_err!(
            "the backend has not answered in {} ms; its devices read as absent until it does\n",
            waited / 1_000_000
        ),
        Some(Note::SlotTaken) => {
            pr_err!(
                "the backend holds the request slot; its devices read as absent until it lets go\n"
            );
        }
        Some(Note::AnswersAgain) => pr_info!("the backend answers again\n"),
    }
}
