// SPDX-License-Identifier: GPL-2.0

//! The device and its page.
//!
//! *Owns* the present [`Link`]. A command keeps a reference to the link with which it started, so that
//! another command can replace it meanwhile: page and channel go with the last reference. *Lock*: `link`, a
//! mutex held to look or to change only; `turn`, innermost, keeps interrupts off for one wait in the
//! hypervisor.
//!
//! The core's copy of our state is not the stored one. While the module is loaded it is Closed, as the
//! core would else wait for minutes for a device that connects by itself. With the first command it becomes
//! Initialising and stays so: a stored Initialising that differs from the copy would be taken for a device
//! that was reset, and the driver unbound.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::{
    new_mutex,
    prelude::*,
    str::CStr,
    sync::{Arc, ArcBorrow, Mutex},
};
use pciif::{
    state::State,
    wire::{self, PciOp},
};
use xen::{
    clock::{self, PollClock},
    event::{EventChannel, Handler, Irq},
    lock::IrqLock,
    new_irq_lock,
    page::{GrantedPage, SharedPage, PAGE_BYTES},
    store,
    xenbus::{self, Bound, DeviceRef, End, Wish},
};

/// The longest single wait in the hypervisor, in ns.
const SLICE: u32 = 5_000_000;

/// Words of the page.
pub(crate) const WORDS: usize = PAGE_BYTES / 4;

/// The handler of a channel that is masked for good.
struct Silence;

impl Handler for Silence {
    fn on_event(_this: ArcBorrow<'_, Self>, irq: Irq) {
        irq.eoi(true);
    }
}

/// A page and an event channel that the backend may use.
pub(crate) struct Link {
    channel: EventChannel<Silence>,
    page: GrantedPage,
}

impl Link {
    /// The page.
    pub(crate) fn page(&self) -> &SharedPage {
        self.page.page()
    }

    /// Sends an event.
    pub(crate) fn notify(&self) {
        self.channel.irq().notify();
    }

    /// Grant reference and port.
    pub(crate) fn keys(&self) -> (u32, u32) {
        (self.page.grant(), self.channel.port())
    }

    /// Puts a request into the page.
    pub(crate) fn prepare(&self, op: &PciOp, entries: &[u32]) {
        let page = self.page();
        for (at, word) in op.to_words().into_iter().enumerate() {
            page.write(wire::OP.saturating_add(at.saturating_mul(4)), word);
        }
        for (at, entry) in (0..).zip(entries) {
            if let Some(offset) = wire::msix_entry_offset(at) {
                page.write(offset, *entry);
            }
        }
    }

    /// Puts a request into the page and says so; waits for nothing.
    pub(crate) fn post(&self, op: &PciOp, entries: &[u32]) {
        self.prepare(op, entries);
        self.channel.irq().clear_pending();
        self.page().set_flag(wire::FLAG_PCIF_ACTIVE);
        self.notify();
    }
}

/// The device that the driver is bound to.
#[pin_data]
pub(crate) struct Peer {
    /// Its directories.
    pub(crate) dev: DeviceRef,
    /// Commands that run for a while stop.
    gone: AtomicBool,
    /// How often running commands were told to stop.
    stops: AtomicU32,
    clock: PollClock,
    #[pin]
    link: Mutex<Option<Arc<Link>>>,
    #[pin]
    turn: IrqLock<()>,
}

impl xenbus::Driver for Peer {
    const END: End = End::Frontend;
    const TYPE: &'static CStr = c"pci";

    fn probe(dev: &Bound) -> Result<Arc<Self>> {
        let held = DeviceRef::new(dev)?;
        let this = Arc::pin_init(
            pin_init!(Self {
                dev: held,
                gone: AtomicBool::new(false),
                stops: AtomicU32::new(0),
                clock: PollClock::new(),
                link <- new_mutex!(None),
                turn <- new_irq_lock!((), "badfront_turn"),
            }),
            GFP_KERNEL,
        )?;
        dev.state_was_written(State::Closed);
        *crate::PEER.lock() = Some(this.clone());
        Ok(this)
    }

    fn otherend_changed(_this: ArcBorrow<'_, Self>, _dev: &Bound, _backend: State) -> Wish {
        Wish::Keep
    }

    fn remove(this: Arc<Self>, _dev: &Bound) {
        this.gone.store(true, Ordering::Release);
        *crate::PEER.lock() = None;
        this.close();
    }
}

impl Peer {
    /// The module is loaded: from now on the core may take the device for one that starts.
    pub(crate) fn begin(&self) {
        self.dev.state_was_written(State::Initialising);
    }

    /// Whether a command that runs for a while goes on: the device is there and `ms` have not passed since
    /// `start`.
    pub(crate) fn goes_on(&self, start: i64, ms: u32) -> bool {
        !self.gone.load(Ordering::Acquire)
            && clock::now().saturating_sub(start) < i64::from(ms).saturating_mul(1_000_000)
    }

    /// Tells the commands that run for a while to stop.
    pub(crate) fn stop(&self) {
        self.stops.fetch_add(1, Ordering::Release);
    }

    /// How often they were told so.
    pub(crate) fn stops(&self) -> u32 {
        self.stops.load(Ordering::Acquire)
    }

    /// The present link.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is none.
    pub(crate) fn link(&self) -> Result<Arc<Link>> {
        self.link.lock().clone().ok_or(ENODEV)
    }

    /// Makes a new page and channel, in place of those of before. Nothing is published.
    ///
    /// # Errors
    ///
    /// That of the grant table or the event channel.
    pub(crate) fn open(&self) -> Result<Arc<Link>> {
        let page = GrantedPage::new(&self.dev)?;
        let handler = Arc::new(Silence, GFP_KERNEL)?;
        let channel = EventChannel::allocate(&self.dev, c"badfront", handler)?;
        channel.irq().mask_and_wait();
        let link = Arc::new(Link { channel, page }, GFP_KERNEL)?;
        let before = self.link.lock().replace(link.clone());
        drop(before);
        Ok(link)
    }

    /// Gives up page and channel.
    pub(crate) fn close(&self) {
        let before = self.link.lock().take();
        drop(before);
    }

    /// Writes what a good frontend writes, state included.
    ///
    /// # Errors
    ///
    /// That of the store.
    pub(crate) fn publish(&self, link: &Link) -> Result {
        let (grant, port) = link.keys();
        let directory = self.dev.directory();
        let magic = core::str::from_utf8(wire::MAGIC).map_err(|_| EINVAL)?;
        store::transaction(|store| {
            store.write(directory, c"pci-op-ref", fmt!("{grant}"))?;
            store.write(directory, c"event-channel", fmt!("{port}"))?;
            store.write(directory, c"magic", fmt!("{magic}"))?;
            store.write(directory, c"state", fmt!("{}", State::Initialised.number()))
        })
    }

    /// Waits until the backend has answered, `ms` at most; whether it has.
    pub(crate) fn answered(&self, link: &Link, ms: u32) -> bool {
        let irq = link.channel.irq();
        let start = clock::now();
        while link.page().flag(wire::FLAG_PCIF_ACTIVE) {
            if !self.goes_on(start, ms) {
                return false;
            }
            let _turn = self.turn.lock();
            self.clock.poll(irq, clock::now(), SLICE);
            irq.clear_pending();
            if link.page().flag(wire::FLAG_PCIF_ACTIVE) {
                self.clock.learn();
            }
        }
        true
    }
}
