// SPDX-License-Identifier: GPL-2.0

//! Serves the requests of one guest.
//!
//! *Owns* the mapped page. *Callers*: the event channel's interrupt handler (atomic: looks at the flag,
//! queues the work item) and the work item (sleeps; the only one that reads requests). *Locks*: none of
//! its own; a request takes those of [`crate::exports`] and [`crate::function`].
//!
//! # Spurious events
//!
//! The core slows down a channel whose events bring no work, up to one event a second. A guest sends
//! one event for each request, and the work item may serve a request before its event is delivered:
//! that one event is expected, and not held against the guest. While an event is being dealt with the
//! channel is masked, so there can be no more than one of them.
//!
//! A request is copied out of the page once, parsed into types, and from then on the page is only
//! written: status, value, and the vectors of entries whose number was fixed by the copy. After a
//! number of requests the work item goes to the back of its queue, and when the connection ends it
//! stops: a guest can neither keep a CPU of dom0 nor hold up its own end.

use crate::{exports::Exports, QUEUE};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{
    prelude::*,
    sync::{Arc, ArcBorrow},
};
use pciif::{
    op::{OpStatus, Reply, Request},
    wire::{self, MsixEntry, PciOp, MAX_MSIX_VECTORS},
};
use xen::{
    event::{EventChannel, Handler, Irq, IrqCell},
    page::MappedPage,
    work::{Item, Run},
    xenbus::DeviceRef,
};

/// Requests that are served before others have their turn.
const BATCH: u32 = 64;

/// The serving end.
#[pin_data]
pub(crate) struct Server {
    exports: Arc<Exports>,
    page: MappedPage,
    /// The connection ends.
    stop: AtomicBool,
    /// The interrupt that waits for its EOI.
    irq: IrqCell,
    /// A request was served whose event has not come yet.
    event_due: AtomicBool,
    #[pin]
    work: Item<Server, 0>,
}

xen::has_work_item!(Server, 0, work);

/// A connection to a guest; ends when dropped: no event comes any more, a request that is being
/// served is finished, the page is unmapped.
pub(crate) struct Link {
    channel: Option<EventChannel<Server>>,
    server: Arc<Server>,
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
                event_due: AtomicBool::new(false),
                work <- Item::new(c"xen-pciback-serve", kernel::static_lock_class!()),
            }),
            GFP_KERNEL,
        )
        .map_err(|e| (e, "out of memory"))?;
        let channel = EventChannel::bind_remote(dev, port, c"xen-pciback", server.clone())
            .map_err(|e| (e, "Error binding event channel to IRQ"))?;
        Ok(Self {
            channel: Some(channel),
            server,
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.server.stop.store(true, Ordering::Release);
        // No event after this; then no work.
        drop(self.channel.take());
        Item::<Server, 0>::cancel(&self.server);
    }
}

impl Handler for Server {
    fn on_event(this: ArcBorrow<'_, Self>, irq: Irq) {
        if this.stop.load(Ordering::Acquire) {
            return;
        }
        let due = this.event_due.swap(false, Ordering::AcqRel);
        if this.page.page().flag(wire::FLAG_PCIF_ACTIVE) {
            this.irq.set(irq);
            QUEUE.add::<Self, 0>(this.into());
        } else {
            irq.eoi(!due);
        }
    }
}

impl Run<0> for Server {
    fn run(this: Arc<Self>) {
        let Some(irq) = this.irq.get() else { return };
        for served in 0..BATCH {
            if this.stop.load(Ordering::Acquire) {
                return;
            }
            if !this.page.page().flag(wire::FLAG_PCIF_ACTIVE) {
                // All but the first request came without their event.
                if served > 1 {
                    this.event_due.store(true, Ordering::Release);
                }
                // A request that comes now has an event of its own, delivered after this.
                irq.eoi(false);
                return;
            }
            this.serve_one();
            irq.notify();
        }
        this.event_due.store(true, Ordering::Release);
        QUEUE.add::<Self, 0>(this);
    }
}

impl Server {
    /// Copies one request, serves it, writes the answer.
    fn serve_one(&self) {
        let page = self.page.page();
        let mut words = [0u32; wire::OP_WORDS];
        for (at, word) in words.iter_mut().enumerate() {
            *word = page.read(wire::OP + 4 * at);
        }
        let mut entries = [MsixEntry::default(); MAX_MSIX_VECTORS as usize];
        let (reply, count) = match Request::parse(&PciOp::from_words(&words)) {
            Ok(request) => {
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
        page.write(wire::OP_VALUE, reply.value);
        // CAST: the same 32 bits, as the protocol declares them.
        page.write(wire::OP_ERR, reply.status.to_wire() as u32);
        page.clear_flag(wire::FLAG_PCIF_ACTIVE);
    }

    fn dispatch(&self, request: &Request, entries: &mut [MsixEntry]) -> Reply {
        match self.exports.find(request.sbdf()) {
            Some(function) => function.serve(self.exports.domid, request, entries),
            None => Reply::failed(OpStatus::DevNotFound),
        }
    }
}
