// SPDX-License-Identifier: GPL-2.0

//! One request at a time to the backend, and its answer.
//!
//! *Owns* the granted page and the event channel. *Callers*: configuration accessors (any context,
//! any vCPU, interrupts on or off) and the MSI code. *Lock*: `turn`, a raw spin lock with
//! interrupts off, held over the whole exchange; nothing else is taken inside it.
//!
//! # The wait
//!
//! The protocol has to be answered where the PCI core stands, which may be atomic, so the vCPU waits
//! in the hypervisor until the event channel is pending (`SCHEDOP_poll`). Two things could make it
//! wait for an event that has come already:
//!
//! * another vCPU takes the event as an interrupt, between our look at the flag and the poll. So the
//!   channel stays masked for good: a masked port becomes pending, and ends a poll, but is delivered
//!   to nobody. Masking it for each exchange is not enough: the handler of the event before, which
//!   another vCPU had begun to run, can acknowledge ours. It also saves an interrupt for each
//!   answer. What the backend would say unasked are error messages (AER), and those it sends
//!   only to a frontend that has announced a handler, which we do not do yet;
//! * a deadline on the wrong scale. [`xen::clock`] says how it is made.
//!
//! # An answer that does not come
//!
//! Only the backend clears the `active` flag. After [`PATIENCE`] the caller gets an error, and as long
//! as the flag stays set every further request fails at once: so a late answer finds its own request
//! in the page and can never be taken for that of another one. When it has come, the link works
//! again.

use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{
    prelude::*,
    sync::{Arc, ArcBorrow},
};
use pciif::{
    op::OpStatus,
    wire::{self, MsixEntry, PciOp},
};
use xen::{
    clock::{self, PollClock},
    event::{EventChannel, Handler, Irq},
    lock::IrqLock,
    new_irq_lock,
    page::GrantedPage,
    xenbus,
};

/// How long an answer may take, in ns. A backend on a busy host can need a while; a dead one costs
/// this once.
const PATIENCE: i64 = 5_000_000_000;

/// The longest single wait in the hypervisor, in ns: a bound for the case that everything else
/// fails, not a period.
const SLICE: u32 = 1_000_000_000;

/// What is protected by the exchange's lock.
struct Turn {
    /// A request was given up and its answer is still out.
    overdue: bool,
}

/// The connection to the backend.
#[pin_data]
pub(crate) struct Transport {
    #[pin]
    turn: IrqLock<Turn>,
    clock: PollClock,
    /// The backend is gone: nothing is sent any more.
    gone: AtomicBool,
    /// Dropped before the page: no event may find it missing.
    channel: EventChannel<Silence>,
    page: GrantedPage,
}

/// The handler of a channel that is masked for good.
struct Silence;

impl Handler for Silence {
    fn on_event(_this: ArcBorrow<'_, Self>, irq: Irq) {
        irq.eoi(true);
    }
}

impl Transport {
    /// Makes page and channel; nothing is published yet.
    pub(crate) fn new(dev: &xenbus::Device) -> Result<Arc<Self>> {
        let page = GrantedPage::new(dev)?;
        let handler = Arc::new(Silence, GFP_KERNEL)?;
        let channel = EventChannel::allocate(dev, c"pcifront", handler)?;
        // Before the backend knows the port, so before the first event.
        channel.irq().mask();
        Arc::pin_init(
            pin_init!(Self {
                turn <- new_irq_lock!(Turn { overdue: false }, "pcifront_turn"),
                clock: PollClock::new(),
                gone: AtomicBool::new(false),
                channel,
                page,
            }),
            GFP_KERNEL,
        )
    }

    /// Grant reference and port, for the backend.
    pub(crate) fn keys(&self) -> (u32, u32) {
        (self.page.grant(), self.channel.port())
    }

    /// From now on every request fails at once with `DevNotFound`: functions read as all ones.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Sends a request without MSI-X entries and waits for the answer. Atomic.
    pub(crate) fn request(&self, op: &PciOp) -> Result<u32, OpStatus> {
        self.exchange(op, &mut [])
    }

    /// Sends a request and waits for the answer: the value, and the vectors of `entries`. Atomic.
    ///
    /// Only the words that the request needs cross the page: nine, and one for each entry.
    ///
    /// # Errors
    ///
    /// The backend's status; `DevNotFound` when it is gone, `OpFailed` when it does not answer.
    pub(crate) fn exchange(&self, op: &PciOp, entries: &mut [MsixEntry]) -> Result<u32, OpStatus> {
        let mut turn = self.turn.lock();
        let page = self.page.page();
        if self.gone.load(Ordering::Relaxed) {
            return Err(OpStatus::DevNotFound);
        }
        if turn.overdue {
            if page.flag(wire::FLAG_PCIF_ACTIVE) {
                return Err(OpStatus::OpFailed);
            }
            turn.overdue = false;
            pr_info!("the backend answers again\n");
        }

        for (at, word) in op.to_words().into_iter().enumerate() {
            page.write(wire::OP + 4 * at, word);
        }
        for (at, entry) in (0..).zip(entries.iter()) {
            let offset = wire::msix_entry_offset(at).ok_or(OpStatus::OpFailed)?;
            page.write(offset, entry.to_u32());
        }

        let irq = self.channel.irq();
        irq.clear_pending();
        page.set_flag(wire::FLAG_PCIF_ACTIVE);
        irq.notify();
        let answered = self.wait(irq);

        if !answered {
            turn.overdue = true;
            pr_err!(
                "the backend has not answered in {} s; its devices read as absent until it does\n",
                PATIENCE / 1_000_000_000
            );
            return Err(OpStatus::OpFailed);
        }
        // CAST: the same 32 bits, as the protocol declares them.
        OpStatus::from_wire(page.read(wire::OP_ERR) as i32).ok()?;
        for (at, entry) in (0..).zip(entries.iter_mut()) {
            let offset = wire::msix_entry_offset(at).ok_or(OpStatus::OpFailed)?;
            entry.vector = MsixEntry::from_u32(page.read(offset)).vector;
        }
        Ok(page.read(wire::OP_VALUE))
    }

    /// Waits until the backend has cleared the flag. Interrupts are off.
    fn wait(&self, irq: Irq) -> bool {
        let page = self.page.page();
        let mut started = None;
        while page.flag(wire::FLAG_PCIF_ACTIVE) {
            let start = *started.get_or_insert_with(clock::now);
            if clock::now().saturating_sub(start) > PATIENCE {
                return false;
            }
            let before = clock::now();
            self.clock.poll(irq, SLICE);
            // The event of the answer before, if it came late, must not end the next poll too.
            irq.clear_pending();
            if page.flag(wire::FLAG_PCIF_ACTIVE) {
                self.clock.learn();
            } else if clock::now().saturating_sub(before) >= i64::from(SLICE) {
                // Never seen; said because it would cost a second each time.
                kernel::pr_warn_once!("an answer came without its event\n");
            }
        }
        true
    }
}
