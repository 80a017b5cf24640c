// SPDX-License-Identifier: GPL-2.0

//! Serves the requests of one guest.
//!
//! *Owns* the mapped page. *Callers*: the event channel's interrupt handler (atomic) and the work item
//! (sleeps). *Locks*: a request takes those of [`crate::exports`] and [`crate::function`]; `errors` and
//! `sending` are for errors of the hierarchy, see below. Only one of the two reads requests at any time: the work item from when the
//! handler has queued it until it gives the EOI, and before that no event is delivered.
//!
//! # Who serves
//!
//! The handler itself, when the request is an access to a configuration space that cannot sleep and
//! nobody else has the function: that saves the way to a thread and back, which costs more than all
//! the rest. How much of a CPU it may use for one guest and for all is in [`pciif::account`]; a guest that
//! wants more, or whose accesses are slow, is served by its work item, in a kernel thread of normal
//! priority. The work item, too, pauses when the guest has had its share and others want the CPU.
//!
//! # Spurious events
//!
//! The core slows down a channel whose events bring no work, up to one event a second. A guest sends
//! one event for each request, and the work item may serve a request before its event is delivered:
//! that one event is expected, and not held against the guest. While an event is being dealt with the
//! channel is masked, so there can be no more than one of them.
//!
//! # Errors of the hierarchy
//!
//! The other way round, [`Server::recover`] asks the guest: one message at a time (`errors`, a mutex
//! that is held while the guest is waited for, for some seconds at most). A guest that leaves a
//! message unanswered gets no further one until it has answered that, and all answers together are waited
//! for as long as its account says: so it costs that once, however many functions it has.
//!
//! # Requests
//!
//! A request is copied out of the page once, parsed into types, and from then on the page is only
//! written: status, value, and the vectors of entries whose number was fixed by the copy. After a
//! number of requests the work item goes to the back of its queue, and when the connection ends it
//! stops: a guest can neither keep a CPU of dom0 nor hold up its own end.

use crate::{exports::Exports, QUEUE};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex},
    time::{delay::fsleep, Delta},
};
use pciif::{
    aer::{Answer, ErrorMessage, Step},
    op::{OpStatus, Reply, Request},
    sbdf::Sbdf,
    wire::{self, MsixEntry, PciOp, MAX_MSIX_VECTORS},
};
use xen::{
    clock,
    event::{EventChannel, Handler, Irq, IrqCell},
    page::MappedPage,
    work::{others_wait, sleep_while, Item, Run, Turn},
    xenbus::DeviceRef,
};

/// Requests that are served before others have their turn.
const BATCH: u32 = 64;

/// How often it is looked for a guest's answer in a recovery.
const RECOVERY_LOOK_MS: i64 = 10;

/// The serving end.
#[pin_data]
pub(crate) struct Server {
    exports: Arc<Exports>,
    page: MappedPage,
    /// The connection ends.
    stop: AtomicBool,
    /// The interrupt that waits for its EOI.
    irq: IrqCell,
    /// An event without a request is to be expected: its request was served before it came, or it is that
    /// of the binding.
    event_due: AtomicBool,
    /// The next run of the work item goes on with the event of the last one.
    goes_on: AtomicBool,
    #[pin]
    work: Item<Server, 0>,
    /// Held by who waits for the guest's part in a recovery.
    #[pin]
    errors: Mutex<()>,
    /// Held by who sends an event outside of the channel's own handler and work.
    #[pin]
    sending: Mutex<()>,
}

xen::has_work_item!(Server, 0, work);

/// A connection to a guest; ends when dropped: no event comes any more, a request that is being
/// served is finished, the page is unmapped.
pub(crate) struct Link {
    channel: Option<EventChannel<Server>>,
    server: Arc<Server>,
    keys: (u32, u32),
}

impl Link {
    /// Maps the guest's page and binds its event channel.
    ///
    /// # Errors
    ///
    /// When either number of the guest is nonsense; the text says which.
    pub(crate) fn new(
        dev: &DeviceRef,
        exports: Arc<Exports>,
        grant: u32,
        port: u32,
    ) -> Result<Self, (Error, &'static str)> {
        let page = MappedPage::map(dev, grant)
            .map_err(|e| (e, "Error mapping other domain page in ours."))?;
        let server = Arc::pin_init(
            pin_init!(Server {
                exports,
                page,
                stop: AtomicBool::new(false),
                irq: IrqCell::empty(),
                // Xen sends one when the channel is bound, in case the guest's first came before that.
                event_due: AtomicBool::new(true),
                goes_on: AtomicBool::new(false),
                work <- Item::new(c"xen-pciback-serve", kernel::static_lock_class!()),
                errors <- new_mutex!(()),
                sending <- new_mutex!(()),
            }),
            GFP_KERNEL,
        )
        .map_err(|e| (e, "out of memory"))?;
        let channel = EventChannel::bind_remote(dev, port, c"xen-pciback", server.clone())
            .map_err(|e| (e, "Error binding event channel to IRQ"))?;
        server.irq.set(channel.irq());
        server.exports.set_server(Some(server.clone()));
        Ok(Self {
            channel: Some(channel),
            server,
            keys: (grant, port),
        })
    }

    /// Grant reference and port, as the guest published them.
    pub(crate) fn keys(&self) -> (u32, u32) {
        self.keys
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.server.exports.set_server(None);
        {
            let _sending = self.server.sending.lock();
            self.server.stop.store(true, Ordering::Release);
        }
        // The work item sends events and ends them: it must not do so once the interrupt's number is
        // free, which somebody else may have got.
        Item::<Server, 0>::cancel(&self.server);
        drop(self.channel.take());
        // No event after this. One in between may have queued the item again; that run sees `stop`
        // before it touches the interrupt.
        Item::<Server, 0>::cancel(&self.server);
    }
}

impl Handler for Server {
    fn on_event(this: ArcBorrow<'_, Self>, irq: Irq) {
        if this.stop.load(Ordering::Acquire) {
            return;
        }
        // An event without a request costs the guest as much as one with a request.
        let start = clock::now();
        let may = this.exports.enter_handler(start);
        // If there is a request and this event was the one that is due, that of the request is due now.
        let served = may
            && match this.page.page().flag(wire::FLAG_PCIF_ACTIVE) {
                true => {
                    let served = this.serve_atomic();
                    if served {
                        irq.notify();
                        irq.eoi(false);
                    }
                    served
                }
                false => {
                    let due = this.event_due.swap(false, Ordering::AcqRel);
                    irq.eoi(!due);
                    true
                }
            };
        if may {
            let took = clock::now().saturating_sub(start);
            this.exports.leave_handler(took);
        }
        if !served {
            this.irq.set(irq);
            QUEUE.add::<Self, 0>(this.into());
        }
    }
}

impl Run<0> for Server {
    fn run(this: Arc<Self>) {
        let Some(irq) = this.irq.get() else { return };
        let goes_on = this.goes_on.swap(false, Ordering::AcqRel);
        let mut preempted = false;
        for served in 0..BATCH {
            if this.stop.load(Ordering::Acquire) {
                return;
            }
            if !this.page.page().flag(wire::FLAG_PCIF_ACTIVE) {
                // All but the first request came without their event.
                if served > 1 {
                    this.event_due.store(true, Ordering::Release);
                }
                // An event without a request, for which the handler had no time left: judged as there.
                let spurious =
                    served == 0 && !goes_on && !this.event_due.swap(false, Ordering::AcqRel);
                // A request that comes now has an event of its own, delivered after this.
                irq.eoi(spurious);
                this.exports.account().lock().took_turn(others_wait());
                return;
            }
            if !this.pause() {
                return;
            }
            let turn = Turn::begin();
            let is_read = this.serve_one();
            irq.notify();
            let spent = turn.end();
            preempted |= spent.preempted;
            let mut account = this.exports.account().lock();
            account.worked(spent.cpu, preempted);
            account.took_turn(spent.contended);
            if is_read {
                account.accessed(spent.elapsed);
            }
        }
        this.event_due.store(true, Ordering::Release);
        this.goes_on.store(true, Ordering::Release);
        QUEUE.add::<Self, 0>(this);
    }
}

impl Server {
    /// Copies one request.
    fn copy(&self) -> Result<Request, OpStatus> {
        let mut words = [0u32; wire::OP_WORDS];
        for (at, word) in words.iter_mut().enumerate() {
            *word = self.page.page().read(wire::OP + 4 * at);
        }
        Request::parse(&PciOp::from_words(&words))
    }

    /// Writes an answer.
    fn answer(&self, reply: Reply) {
        let page = self.page.page();
        page.write(wire::OP_VALUE, reply.value);
        // CAST: the same 32 bits, as the protocol declares them.
        page.write(wire::OP_ERR, reply.status.to_wire() as u32);
        page.clear_flag(wire::FLAG_PCIF_ACTIVE);
    }

    /// Serves one request if that can be done in atomic context; otherwise nothing has happened, and
    /// whoever serves it makes a copy of its own.
    fn serve_atomic(&self) -> bool {
        let reply = match self.copy() {
            Ok(request) => self.exports.serve_atomic(&request),
            Err(status) => Some(Reply::failed(status)),
        };
        reply.map(|reply| self.answer(reply)).is_some()
    }

    /// Sleeps as long as the guest has to wait for its share of the work items. `false` when the
    /// connection ends meanwhile.
    fn pause(&self) -> bool {
        loop {
            let wait = self.exports.account().lock().pause(clock::now());
            if wait == 0 {
                return true;
            }
            if !sleep_while(wait, || !self.stop.load(Ordering::Acquire)) {
                return false;
            }
        }
    }

    /// Serves one request, whatever it is; tells whether it was a read of configuration space, which the
    /// handler may serve, too. Sleeps.
    fn serve_one(&self) -> bool {
        let page = self.page.page();
        let mut entries = [MsixEntry::default(); MAX_MSIX_VECTORS as usize];
        let mut is_read = false;
        let (reply, count) = match self.copy() {
            Ok(request) => {
                is_read = matches!(request, Request::ConfRead { .. });
                let count = match request {
                    Request::EnableMsix { count, .. } => count.get(),
                    _ => 0,
                };
                for (at, entry) in (0..count).zip(entries.iter_mut()) {
                    if let Some(offset) = wire::msix_entry_offset(at) {
                        *entry = MsixEntry::from_u32(page.read(offset));
                    }
                }
                let used = entries.get_mut(..usize::from(count)).unwrap_or(&mut []);
                (self.dispatch(&request, used), count)
            }
            Err(status) => (Reply::failed(status), 0),
        };
        if reply.status == OpStatus::Success {
            for (at, entry) in (0..count).zip(entries.iter()) {
                if let Some(offset) = wire::msix_entry_offset(at) {
                    page.write(offset, entry.to_u32());
                }
            }
        }
        self.answer(reply);
        is_read
    }

    /// Has the guest take part in the recovery from an error of its function at `address`. Sleeps,
    /// for what is left of the guest's patience ([`pciif::patience`]) at most, when no other function's
    /// message is waited for.
    pub(crate) fn recover(&self, address: Sbdf, step: Step) -> Answer {
        let _turn = self.errors.lock();
        let page = self.page.page();
        if !page.flag(wire::FLAG_PCIB_AERHANDLER) {
            return Answer::NoHandler;
        }
        if page.flag(wire::FLAG_PCIB_ACTIVE) {
            // It has not answered the message before.
            return Answer::TimedOut;
        }
        let begun = clock::now();
        let patience = self.exports.account().lock().patience().left(begun);
        if patience == 0 {
            return Answer::TimedOut;
        }
        let words = ErrorMessage {
            sbdf: address,
            step,
        }
        .to_words();
        for (at, word) in words.into_iter().enumerate() {
            page.write(wire::AER + 4 * at, word);
        }
        {
            let _sending = self.sending.lock();
            let (false, Some(irq)) = (self.stop.load(Ordering::Acquire), self.irq.get()) else {
                return Answer::NotConnected;
            };
            // The guest answers with an event that brings no request.
            self.event_due.store(true, Ordering::Release);
            page.set_flag(wire::FLAG_PCIB_ACTIVE);
            irq.notify();
        }
        let answer = self.wait_for_answer(begun.saturating_add(patience));
        let took = clock::now().saturating_sub(begun);
        self.exports.account().lock().patience().wait(took);
        answer
    }

    /// Waits for the answer to the message that is out, until `end`. Sleeps.
    fn wait_for_answer(&self, end: i64) -> Answer {
        let page = self.page.page();
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Answer::NotConnected;
            }
            if !page.flag(wire::FLAG_PCIB_ACTIVE) {
                // CAST: the same 32 bits, as the protocol declares them.
                return Answer::Number(page.read(wire::AER + 4) as i32);
            }
            if clock::now() >= end {
                return Answer::TimedOut;
            }
            fsleep(Delta::from_millis(RECOVERY_LOOK_MS));
        }
    }

    fn dispatch(&self, request: &Request, entries: &mut [MsixEntry]) -> Reply {
        match self.exports.find(request.sbdf()) {
            Some(function) => function.serve(self.exports.domid, request, entries),
            None => Reply::failed(OpStatus::DevNotFound),
        }
    }
}
