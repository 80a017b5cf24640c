// SPDX-License-Identifier: GPL-2.0

//! One guest's backend: the toolstack's list of devices, the handshake, the connection.
//!
//! *Owns* the exports, the connection and the watch on its own directory. *Callers*: the xenbus core's
//! watch thread, which serves all guests: it only queues work items. `control` does everything while
//! the device lives; it reads both states afresh each time it runs, so that a frontend that flaps
//! between states costs one run, not one for each event; and the account of the guest says when the next
//! run may begin. `end` ends it: a request that is being served
//! may reset a function, which takes as long as a reset, and the connection ends after it.
//!
//! After the core has called `remove` it knows nothing of the device any more; the reference that the lease
//! holds keeps its memory until `end` has run. `control` may be in the middle of something, so it reads and
//! writes the store only with the device lent by `lease`, which `remove` ends: from then on our keys and
//! our state are those that the toolstack and the core leave. The functions are released in `remove`
//! itself: that only queues work, and whoever is to get them next has to find them in that state.
//!
//! # When the guest's functions are free
//!
//! A guest whose frontend has no state, or no directory, still has memory and interrupts of its functions
//! mapped. So they stay its own until the toolstack takes them back, by the list or with our directory, or
//! until Xen no longer knows the domain. The core does not report that. While the frontend has no state
//! (`held`), the end of any domain makes `control` poll: a number of times, and for as long as the domain's
//! directory is gone but Xen still knows it. When the domain has ended, no toolstack comes back for our
//! directory: we remove it, and the core ends the device as if a toolstack had done so. Xen keeps a domain
//! while its page is mapped, so the page is unmapped when the frontend's directory goes, which every
//! toolstack removes before it ends a domain.
//!
//! An administrator who unbinds the backend from its device frees nothing either: the watches stay, and the
//! functions in the table (`left`), until the toolstack removes the directory, the domain ends, or a new
//! backend of the device takes over.
//!
//! *Locks*: `link`, a mutex that is held for the moment in which a connection is noted or taken out;
//! `roots`, used by the work item only, and held while a root bus is published; `attempts`, for an
//! instant; the lease's, for single operations and while a connection is made. Nothing is held while the
//! work item waits for a function to become free.

use crate::{exports::Exports, function::Function, registry, server::Link, QUEUE};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use kernel::{
    new_mutex,
    prelude::*,
    str::CStr,
    sync::{Arc, ArcBorrow, Mutex},
};
use pciif::{
    sbdf::{Devfn, RootText, Sbdf, VirtualDevText},
    state::{backend_step, is_listed, Attempts, BackendAction, Remains, State},
    text::Printable,
    wire,
};
use xen::{
    clock,
    log::Show,
    store::{self, NumberedKey},
    work::{sleep_while, Item, Run},
    xenbus::{self, Bound, DeviceRef, End, Lease, Watch, Watcher, Wish},
};

/// More devices than this are not believed.
const MAX_DEVICES: u32 = 1024;
/// Steps of one run of the work item; whatever is left has an event of its own.
const MAX_STEPS: u32 = 16;
/// Operations on the store that a step has beside those of the list's devices: both states, `online`, the
/// number of devices, and when it connects three keys of the frontend.
const OF_A_STEP: u32 = 7;
/// Those of a switch of our state: a transaction with a read and a write.
const OF_A_SWITCH: u32 = 4;

/// Those of [`xenbus::Device::update`]: a transaction with a read, and two writes.
pub(crate) const OF_AN_UPDATE: u32 = 5;
/// Those of [`xenbus::Device::remove_directory`].
const OF_A_SWEEP: u32 = 6;

/// Poll interval for the end of a domain, in ns; and how many polls follow the news that some domain ends.
const END_LOOK: i64 = 200_000_000;
const END_LOOKS: u32 = 50;

/// What becomes of a device of the list that has no `state-N`.
#[derive(Clone, Copy)]
enum Stateless {
    /// A toolstack that starts a guest need not write any.
    Export,
    /// One that changes the list writes it last.
    Leave,
}

/// How many devices the toolstack lists.
fn listed(dev: &DeviceRef) -> Result<u32> {
    let count = store::NOW.read(dev.directory(), c"num_devs")?;
    count.number()
}

/// Writes the state of device `number`.
fn write_state(store: store::Scope, directory: &CStr, number: u32, state: State) -> Result {
    let key = NumberedKey::new("state", number);
    store.write(directory, key.text(), fmt!("{}", state.number()))
}

/// One guest's backend.
#[pin_data]
pub(crate) struct Backend {
    lease: Arc<Lease>,
    exports: Arc<Exports>,
    /// The device goes: nothing new is started.
    dying: AtomicBool,
    /// The frontend says no state: the end of the domain is waited for.
    held: AtomicBool,
    /// The driver was unbound from the device while the guest lives and the toolstack lists its functions.
    left: AtomicBool,
    /// Polls for the end of the domain that are still to come.
    end_looks: AtomicU32,
    /// Another backend has taken over, or the module goes.
    over: AtomicBool,
    #[pin]
    link: Mutex<Option<Link>>,
    #[pin]
    roots: Mutex<KVec<RootText>>,
    #[pin]
    watches: Mutex<Option<[Watch<Backend>; 2]>>,
    #[pin]
    control: Item<Backend, 0>,
    #[pin]
    end: Item<Backend, 1>,
    #[pin]
    attempts: Mutex<Attempts>,
    /// Reads and writes of the store by the present run of `control`.
    operations: AtomicU32,
}

xen::has_work_item!(Backend, 0, control);
xen::has_work_item!(Backend, 1, end);

impl Run<0> for Backend {
    fn run(this: Arc<Self>) {
        if !this.pause() {
            return;
        }
        for _ in 0..MAX_STEPS {
            if this.dying() || !this.step() {
                break;
            }
        }
        let operations = this.operations.swap(0, Ordering::Relaxed);
        this.exports.account().lock().store_run(operations);
        let held = this.held.load(Ordering::SeqCst);
        if held && this.is_ending() && sleep_while(END_LOOK, || !this.dying()) {
            QUEUE.add::<Self, 0>(this);
        }
    }
}

impl Run<1> for Backend {
    fn run(this: Arc<Self>) {
        Item::<Self, 0>::cancel(&this);
        this.disconnect();
        if this.left.load(Ordering::Acquire) {
            if !this.is_over() {
                let wanted = || !this.over.load(Ordering::Acquire);
                if this.is_ending() && sleep_while(END_LOOK, wanted) {
                    QUEUE.add::<Self, 1>(this);
                }
                return;
            }
            registry::take_left(|other| core::ptr::eq(other, &*this));
            registry::remove_guest(&this.exports);
        }
        // A new backend of the device may ask for them while the thread of xenbus keeps us waiting below.
        this.release_all();
        let watches = this.watches.lock().take();
        drop(watches);
    }
}

impl Watcher for Backend {
    fn changed(this: ArcBorrow<'_, Self>) {
        if !this.dying() {
            QUEUE.add::<Self, 0>(this.into());
        } else if this.left.load(Ordering::Acquire) && !this.over.load(Ordering::Acquire) {
            QUEUE.add::<Self, 1>(this.into());
        }
    }

    fn domain_ended(this: ArcBorrow<'_, Self>) {
        if this.held.load(Ordering::Acquire) || this.dying() {
            this.end_looks.store(END_LOOKS, Ordering::Relaxed);
            Self::changed(this);
        }
    }
}

impl xenbus::Driver for Backend {
    const END: End = End::Backend;
    const TYPE: &'static CStr = c"pci";

    fn probe(dev: &Bound) -> Result<Arc<Self>> {
        let lease = Lease::new(dev)?;
        let exports = Exports::new(dev, lease.clone())?;
        let this = Arc::pin_init(
            pin_init!(Self {
                lease,
                exports,
                dying: AtomicBool::new(false),
                held: AtomicBool::new(false),
                left: AtomicBool::new(false),
                end_looks: AtomicU32::new(0),
                over: AtomicBool::new(false),
                link <- new_mutex!(None),
                roots <- new_mutex!(KVec::new()),
                watches <- new_mutex!(None),
                control <- Item::new(c"xen-pciback-control", kernel::static_lock_class!()),
                end <- Item::new(c"xen-pciback-end", kernel::static_lock_class!()),
                attempts <- new_mutex!(Attempts::new()),
                operations: AtomicU32::new(0),
            }),
            GFP_KERNEL,
        )
        .inspect_err(|e| dev.fatal(*e, fmt!("cannot make the backend")))?;
        // Those that it has from an earlier backend are released, and then given to this one.
        Self::end_left(|left| left.lease.directory() == dev.directory());
        registry::add_guest(this.exports.clone())
            .inspect_err(|e| dev.fatal(*e, fmt!("cannot make the backend")))?;
        dev.switch_state(State::InitWait);
        let watches = Watch::domains(this.clone())
            .and_then(|domains| Ok([Watch::own_directory(dev, this.clone())?, domains]));
        let watches = watches.inspect_err(|e| {
            registry::remove_guest(&this.exports);
            dev.fatal(*e, fmt!("cannot watch the backend's directory"));
        })?;
        *this.watches.lock() = Some(watches);
        Ok(this)
    }

    fn otherend_changed(this: ArcBorrow<'_, Self>, dev: &Bound, front: State) -> Wish {
        let remains = this.remains(front, dev.peer_directory());
        let next = this.next(dev.own_state(), front, remains, dev.is_online());
        if next == BackendAction::Unregister {
            dev.switch_state(State::Closed);
            return Wish::Unregister;
        }
        QUEUE.add::<Self, 0>(this.into());
        Wish::Keep
    }

    fn remove(this: Arc<Self>, dev: &Bound) {
        this.dying.store(true, Ordering::Release);
        this.lease.end();
        if this.stays(dev) && registry::add_left(this.clone()).is_ok() {
            this.left.store(true, Ordering::Release);
            dev_warn!(
                dev.generic(),
                "unbound while domain {} lives: the domain keeps its functions until it ends or the toolstack takes them back\n",
                this.exports.domid
            );
        } else {
            registry::remove_guest(&this.exports);
            this.release_all();
        }
        QUEUE.add::<Self, 1>(this);
    }
}

impl Backend {
    /// Whether only the driver goes: the guest keeps its functions.
    fn stays(&self, dev: &Bound) -> bool {
        // A store that does not answer frees nothing.
        store::NOW.has(dev.directory()) != Ok(false)
            && dev.is_online()
            && self.exports.has_any()
            && xen::domain_exists(self.exports.domid)
    }

    /// Whether the domain may be about to end. Xen still knows it when its end is told, as long as other
    /// programs of dom0 have pages of it mapped, and tells nothing when they let go.
    fn is_ending(&self) -> bool {
        let fewer = |looks: u32| looks.checked_sub(1);
        let looks = self
            .end_looks
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        self.count_operations(1);
        looks.is_ok() || store::has_domain(self.exports.domid) == Ok(false)
    }

    /// Whether a backend that was unbound has to let go of the guest's functions.
    fn is_over(&self) -> bool {
        if self.over.load(Ordering::Acquire) {
            return true;
        }
        let domid = self.exports.domid;
        if !xen::domain_exists(domid) {
            // Nobody else comes for it.
            let _ = self.lease.remove_directory(|| !xen::domain_exists(domid));
            return true;
        }
        store::NOW.has(self.lease.directory()) == Ok(false)
    }

    /// Has backends that were unbound, and for which `which` holds, release the functions of their guests.
    pub(crate) fn end_left(which: impl Fn(&Self) -> bool) {
        while let Some(left) = registry::take_left(&which) {
            left.over.store(true, Ordering::Release);
            registry::remove_guest(&left.exports);
            // Here, as in `remove`: a new backend is about to assign them.
            left.release_all();
            QUEUE.add::<Self, 1>(left);
        }
    }

    fn dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }

    /// Sleeps as long as the guest has to wait for what it costs the store. `false` when the device goes
    /// meanwhile.
    fn pause(&self) -> bool {
        loop {
            let wait = self.exports.account().lock().store_pause(clock::now());
            if wait == 0 {
                return true;
            }
            if !sleep_while(wait, || !self.dying()) {
                return false;
            }
        }
    }

    /// Counts reads and writes of the store.
    fn count_operations(&self, more: u32) {
        self.operations.fetch_add(more, Ordering::Relaxed);
    }

    fn next(&self, own: State, front: State, remains: Remains, online: bool) -> BackendAction {
        let up = self.link.lock().is_some();
        backend_step(own, front, remains, up, online)
    }

    /// What is left of the guest, if its frontend says no state; `directory` is the frontend's.
    fn remains(&self, front: State, directory: &CStr) -> Remains {
        // Before the look: what ends after that is told.
        self.held.store(front == State::Unknown, Ordering::SeqCst);
        if front != State::Unknown {
            return Remains::Frontend;
        }
        if !xen::domain_exists(self.exports.domid) {
            return Remains::Nothing;
        }
        self.count_operations(1);
        match store::NOW.has(directory) {
            Ok(false) => Remains::Domain,
            _ => Remains::Frontend,
        }
    }

    /// Our state, the frontend's, and what comes next; `None` when the device goes, or its directory is gone.
    fn look(&self) -> Option<(State, State, BackendAction)> {
        let dev = self.lease.get()?;
        let (own, front) = (dev.own_state(), dev.peer_state());
        if own == State::Unknown {
            return None;
        }
        let remains = self.remains(front, dev.peer_directory());
        let next = self.next(own, front, remains, dev.is_online());
        Some((own, front, next))
    }

    /// Does what the states of both ends ask for; `false` when there is nothing to do.
    fn step(&self) -> bool {
        self.count_operations(OF_A_STEP);
        let Some((own, front, next)) = self.look() else {
            return false;
        };
        match next {
            // A frontend that started again so fast that nobody saw it start: its page is another one.
            BackendAction::Wait if own == State::Connected && self.is_replaced(front) => {
                self.disconnect();
                self.switch(own, State::InitWait)
            }
            BackendAction::Wait => false,
            BackendAction::Export => {
                self.follow_list(Stateless::Export)
                    && own == State::InitWait
                    && self.switch(own, State::Initialised)
            }
            BackendAction::Attach => {
                self.follow_list(Stateless::Export);
                self.attach(own);
                true
            }
            BackendAction::Reconfigure => {
                self.follow_list(Stateless::Leave) && self.switch(own, State::Reconfigured)
            }
            BackendAction::Resume => self.switch(own, State::Connected),
            BackendAction::Hold => {
                // In other states a list that cannot be read would be read again for ever.
                match own {
                    State::InitWait | State::Initialised => {
                        self.follow_list(Stateless::Export);
                    }
                    State::Reconfiguring => {
                        self.follow_list(Stateless::Leave);
                    }
                    _ => {}
                }
                !self.dying() && self.switch(own, State::Connected)
            }
            BackendAction::Sweep => {
                self.disconnect();
                self.sweep();
                false
            }
            BackendAction::Disconnect { then } => {
                self.disconnect();
                self.switch(own, then)
            }
            BackendAction::Reconnect => {
                self.disconnect();
                self.switch(own, State::InitWait)
            }
            // The core's own thread ends the device when it hears of the frontend. Of a word of the toolstack in
            // our own directory only we hear: the guest has nothing any more, and the toolstack need not wait.
            BackendAction::Unregister => {
                self.disconnect();
                self.release_all();
                if own != State::Closed {
                    self.switch(own, State::Closed);
                }
                false
            }
        }
    }

    /// The domain has ended and the toolstack has left our directory: removes that. The core hears of it and
    /// ends the device.
    fn sweep(&self) {
        let Some(dev) = self.lease.get() else { return };
        let domid = self.exports.domid;
        self.count_operations(OF_A_SWEEP);
        match dev.remove_directory(|| !xen::domain_exists(domid)) {
            Ok(()) => dev_info!(
                dev.generic(),
                "domain {} has ended, its backend's directory is removed\n",
                domid
            ),
            // Somebody else was faster, or there is a new domain.
            Err(ENOENT | EBUSY) => {}
            Err(e) => {
                self.held.store(false, Ordering::SeqCst);
                self.end_looks.store(0, Ordering::Relaxed);
                dev_warn!(
                    dev.generic(),
                    "domain {} has ended, but its backend's directory cannot be removed ({:?})\n",
                    domid,
                    e
                );
            }
        }
    }

    /// Moves from state `own` to `state`. Gives `true` unless the device goes: whether or not the toolstack
    /// wrote another state meanwhile, there may be more to do.
    fn switch(&self, own: State, state: State) -> bool {
        let Some(dev) = self.lease.get() else {
            return false;
        };
        self.count_operations(OF_A_SWITCH);
        dev.switch_state_from(own, state);
        true
    }

    /// Takes all functions away from the guest; the work is done by their own work items.
    fn release_all(&self) {
        while let Some(function) = self.exports.remove_any() {
            Function::start_release(&function, self.exports.domid);
        }
    }

    fn disconnect(&self) {
        let link = self.link.lock().take();
        drop(link);
    }

    /// Whether a frontend that waits for us has published another page or port than those in use.
    /// Only to be asked in state Connected.
    fn is_replaced(&self, front: State) -> bool {
        let in_use = self.link.lock().as_ref().map(Link::keys);
        let (State::Initialised, Some(in_use)) = (front, in_use) else {
            return false;
        };
        let Some(dev) = self.lease.get() else {
            return false;
        };
        let read = |key: &CStr| {
            let value = store::NOW.read(dev.peer_directory(), key);
            value.and_then(|value| value.number())
        };
        match (read(c"pci-op-ref"), read(c"event-channel")) {
            (Ok(grant), Ok(port)) => (grant, port) != in_use,
            _ => false,
        }
    }

    /// How many devices there are in the list, if that can be believed.
    fn count(&self) -> Result<u32> {
        let dev = self.lease.get().ok_or(ENODEV)?;
        let count = listed(&dev).inspect_err(|e| {
            // Unless the list went with the directory, of which the core is about to hear, too.
            if dev.own_state() != State::Unknown {
                self.fatal(&dev, *e, fmt!("Error reading number of devices"));
            }
        })?;
        if count > MAX_DEVICES {
            self.fatal(&dev, EINVAL, fmt!("{count} devices are more than can be"));
            return Err(EINVAL);
        }
        Ok(count)
    }

    /// A key of device `number`.
    fn read(&self, name: &str, number: u32) -> Result<store::Value> {
        let dev = self.lease.get().ok_or(ENODEV)?;
        self.count_operations(1);
        store::NOW.read(dev.directory(), NumberedKey::new(name, number).text())
    }

    /// The state of device `number`; Unknown when the toolstack writes none.
    fn device_state(&self, number: u32) -> State {
        self.read("state", number)
            .and_then(|value| value.number())
            .map_or(State::Unknown, xenbus::state)
    }

    /// Exports what is new in the list, and takes from the guest what leaves it. `true` if the list could
    /// be read to its end.
    fn follow_list(&self, stateless: Stateless) -> bool {
        let Ok(count) = self.count() else {
            return false;
        };
        // An earlier backend of this device has exported them, and its driver was unbound.
        let anew = matches!(stateless, Stateless::Export) && !self.exports.has_any();
        for number in 0..count {
            match (self.device_state(number), stateless) {
                (State::Initialised, _) if anew => self.export(number),
                (State::Initialising, _) | (State::Unknown, Stateless::Export) => {
                    self.export(number);
                }
                (State::Closing, _) => self.withdraw(number, count),
                _ => {}
            }
        }
        self.publish_roots().is_ok() && !self.dying()
    }

    /// Exports one device of the list. One that cannot be exported fails alone: its state says Closed,
    /// the reason is in the store and the log. Nothing is said about one that left the list meanwhile.
    fn export(&self, number: u32) {
        let result = self
            .try_export(number)
            .and_then(|(place, is_new)| self.publish(number, place, is_new));
        let Err(e) = result else { return };
        let Some(dev) = self.lease.get() else { return };
        self.count_operations(2);
        if !is_listed(dev.own_state(), listed(&dev).ok(), number) {
            return;
        }
        dev.error(e, fmt!("device {number} of the list is not exported"));
        self.count_operations(OF_AN_UPDATE);
        // The line above is what is left of a store that is full.
        let _ = dev.update(|store, directory| write_state(store, directory, number, State::Closed));
    }

    /// Says where the guest sees device `number`, and that it is exported. If that cannot be said of one that is
    /// new there, it is taken back.
    fn publish(&self, number: u32, place: Sbdf, is_new: bool) -> Result {
        let written = self.lease.get().ok_or(ENODEV).and_then(|dev| {
            self.count_operations(OF_AN_UPDATE);
            dev.update(|store, directory| {
                let key = NumberedKey::new("vdev", number);
                let place = Show(VirtualDevText(place));
                store.write(directory, key.text(), fmt!("{place}"))?;
                write_state(store, directory, number, State::Initialised)
            })
        });
        if written.is_err() && is_new {
            if let Some(function) = self.exports.remove(place) {
                Function::start_release(&function, self.exports.domid);
            }
        }
        written
    }

    /// Gives device `number` to the guest; says where it sees it, and whether it is new there. A toolstack that
    /// gave up waiting may have taken a device off the list, and its keys, while the guest still had it.
    fn try_export(&self, number: u32) -> Result<(Sbdf, bool)> {
        let generic = self.lease.generic();
        let text = self.read("dev", number)?;
        let host = Sbdf::parse_dev_key(text.bytes()).map_err(|e| {
            dev_err!(generic, "dev-{}: {}\n", number, Show(e));
            EINVAL
        })?;
        if let Some(place) = self.exports.place_of(host) {
            return Ok((place, false));
        }
        let function = registry::find_function(host).ok_or_else(|| {
            dev_err!(
                generic,
                "Couldn't locate PCI device ({})! It is not bound to pciback\n",
                Show(host)
            );
            ENODEV
        })?;
        Function::assign(&function, &self.exports, || !self.dying())?.map_err(|refusal| {
            // Else the wait for it was given up.
            if !self.dying() {
                dev_err!(generic, "{} is {}\n", Show(host), Show(refusal));
            }
            EBUSY
        })?;
        let wanted = self.read("vdevfn", number).ok().and_then(|value| {
            let text = core::str::from_utf8(value.bytes()).ok()?;
            let raw = u8::from_str_radix(text.trim_start_matches("0x"), 16).ok()?;
            Some(Devfn::from_raw(raw))
        });
        let address = match self.exports.add(function.clone(), wanted) {
            Ok(address) => address,
            Err(e) => {
                Function::start_release(&function, self.exports.domid);
                dev_err!(generic, "{}: {}\n", Show(host), Show(e));
                return Err(ENOSPC);
            }
        };
        dev_info!(
            generic,
            "{} goes to domain {} as {}\n",
            Show(host),
            self.exports.domid,
            Show(address)
        );
        Ok((address, true))
    }

    /// Adds the root buses that are not published yet.
    fn publish_roots(&self) -> Result {
        let mut published = self.roots.lock();
        for root in self.exports.roots()? {
            if published.contains(&root) {
                continue;
            }
            let number = u32::try_from(published.len()).map_err(|_| EINVAL)?;
            published.reserve(1, GFP_KERNEL)?;
            let dev = self.lease.get().ok_or(ENODEV)?;
            self.count_operations(OF_AN_UPDATE);
            dev.update(|store, directory| {
                let key = NumberedKey::new("root", number);
                store.write(directory, key.text(), fmt!("{}", Show(root)))?;
                store.write(directory, c"root_num", fmt!("{}", number.saturating_add(1)))
            })?;
            published.push(root, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Maps the frontend's page and binds its event channel; `own` is the state until then.
    fn attach(&self, own: State) {
        if !self.attempts.lock().may_try(clock::now()) {
            self.switch(own, State::Closing);
            return;
        }
        match self.connect() {
            // The device goes: nobody connects to it.
            None => {}
            Some(Ok(link)) => {
                *self.link.lock() = Some(link);
                self.switch(own, State::Connected);
            }
            Some(Err((e, text))) => {
                if self.attempts.lock().failed(clock::now()) {
                    dev_warn!(
                        self.lease.generic(),
                        "a frontend that could not be connected to tries again too often, it has to wait ten minutes\n"
                    );
                }
                if let Some(dev) = self.lease.get() {
                    self.fatal(&dev, e, fmt!("{text}"));
                }
            }
        }
    }

    /// Ends `dev`, which the caller has on its lease, in Closing with an error, and with a line if the guest has
    /// one left: what it writes decides how often this happens.
    fn fatal(&self, dev: &DeviceRef, e: Error, text: kernel::fmt::Arguments<'_>) {
        match self.exports.line() {
            Some(left_out) => dev.fatal(e, fmt!("{text}{}", Show(left_out))),
            None => dev.fatal_unsaid(e, text),
        }
    }

    /// Makes a connection; `None` when the device goes. It is lent for all of it: when a page cannot be
    /// mapped, the bus code writes a state by itself.
    fn connect(&self) -> Option<Result<Link, (Error, &'static str)>> {
        let dev = self.lease.get()?;
        Some(self.connect_to(&dev))
    }

    fn connect_to(&self, dev: &DeviceRef) -> Result<Link, (Error, &'static str)> {
        let read = |key: &CStr| {
            store::NOW
                .read(dev.peer_directory(), key)
                .map_err(|e| (e, "Error reading configuration from frontend"))
        };
        let number = |value: store::Value| {
            value
                .number()
                .map_err(|e| (e, "Error reading configuration from frontend"))
        };
        let grant = number(read(c"pci-op-ref")?)?;
        let port = number(read(c"event-channel")?)?;
        let magic = read(c"magic")?;
        if magic.bytes() != wire::MAGIC {
            if let Some(left_out) = self.exports.line() {
                let start = magic.bytes().get(..16).unwrap_or(magic.bytes());
                dev_err!(
                    dev.generic(),
                    "the frontend's magic is \"{}\"{}\n",
                    Show(Printable(start)),
                    Show(left_out)
                );
            }
            return Err((EFAULT, "version mismatch with pcifront - halting"));
        }
        Link::new(dev, self.exports.clone(), grant, port)
    }

    /// Where the guest sees device `number`.
    fn place(&self, number: u32) -> Result<Sbdf> {
        let text = self.read("vdev", number)?;
        Sbdf::parse_vdev_key(text.bytes()).map_err(|_| EINVAL)
    }

    /// Takes one device of the `count` in the list away from the guest. The toolstack removes its keys; one
    /// that did not wait leaves them, and the place may be another device's by now.
    fn withdraw(&self, number: u32, count: u32) {
        // Withdrawn before, or never exported: what the toolstack wants is so already.
        let Ok(place) = self.place(number) else {
            return;
        };
        let is_others = (0..count).any(|other| {
            self.device_state(other) == State::Initialised
                && self.place(other).is_ok_and(|theirs| theirs == place)
        });
        if is_others {
            return;
        }
        if let Some(function) = self.exports.remove(place) {
            Function::start_release(&function, self.exports.domid);
        }
    }
}
