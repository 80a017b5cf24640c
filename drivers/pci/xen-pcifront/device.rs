// SPDX-License-Identifier: GPL-2.0

//! The frontend of one xenbus device: its connection, its buses, its state.
//!
//! *Owns* the transport and the root buses. *Callers*: the xenbus core, in sleepable context, from
//! its watch thread or from a thread that binds or unbinds. *Lock*: `inside`, a mutex, held while
//! buses are scanned or removed; inside it the PCI core's rescan lock, then the transport's.
//!
//! # Publishing
//!
//! Grant, port, magic and the new state go into the store in one transaction. The bus code takes a
//! device whose stored state is Initialising, while its own copy says otherwise, for one that was
//! reset; with one transaction there is no moment at which our own writes could look like that.
//! Each publication has a page and an event channel of its own: an earlier backend may still have
//! the earlier ones.
//!
//! # Coming back
//!
//! A driver that is bound to a device that had a frontend before (module reload, unbind and bind)
//! writes Initialising and waits for the backend to start again. One that does not within
//! [`COME_BACK`] never will: that is said in one line, and the device stays closed until the toolstack
//! detaches and attaches it. A frontend that was closed by its backend starts again by itself when the
//! backend does, but not too often ([`pciif::state::Followed`]): then it stays closed until the backend's
//! state changes after that time.

use crate::{bus::RootBus, transport::Transport};
use kernel::{
    new_mutex,
    prelude::*,
    str::CStr,
    sync::{Arc, ArcBorrow, Mutex},
    time::{delay::fsleep, Delta},
};
use pciif::{
    sbdf::{Devfn, RootText, Sbdf},
    state::{frontend_step, Followed, FrontendAction, State, TooOften},
    wire,
};
use xen::{
    clock,
    log::Show,
    store::{self, NumberedKey},
    xenbus::{self, Bound, End, Wish},
};

/// More roots or devices than this are not believed: the backend's numbers bound our loops.
const MAX_ROOTS: u32 = 256;
const MAX_DEVICES: u32 = 2048;

/// How long a backend may take to start again for a new frontend, in ms.
const COME_BACK: i64 = 5_000;

/// One frontend.
#[pin_data]
pub(crate) struct Frontend {
    #[pin]
    inside: Mutex<Inside>,
}

/// What a frontend has; the buses are dropped first.
struct Inside {
    buses: KVec<RootBus>,
    /// From publication to the end of the connection.
    transport: Option<Arc<Transport>>,
    /// Where the backend has put the devices of its list.
    places: Places,
    starts: Followed,
    changes: Followed,
}

impl xenbus::Driver for Frontend {
    const END: End = End::Frontend;
    const TYPE: &'static CStr = c"pci";

    fn probe(dev: &Bound) -> Result<Arc<Self>> {
        let this = Arc::pin_init(
            pin_init!(Self {
                inside <- new_mutex!(Inside {
                    buses: KVec::new(),
                    transport: None,
                    places: Places::default(),
                    starts: Followed::starts(),
                    changes: Followed::changes(),
                }),
            }),
            GFP_KERNEL,
        )?;
        let fresh = matches!(dev.own_state(), State::Initialising | State::Unknown);
        if fresh || come_back(dev)? {
            this.step(dev, dev.peer_state());
        }
        Ok(this)
    }

    fn otherend_changed(this: ArcBorrow<'_, Self>, dev: &Bound, backend: State) -> Wish {
        this.step(dev, backend);
        Wish::Keep
    }

    fn remove(this: Arc<Self>, _dev: &Bound) {
        // The backend may still be there: drivers are unbound through it.
        this.end();
    }

    fn resume(this: ArcBorrow<'_, Self>, dev: &Bound) -> Result {
        // Page and channel are not those of this backend any more.
        this.give_up();
        this.end();
        this.step(dev, dev.peer_state());
        Ok(())
    }
}

/// Writes what the backend needs, together with the state that tells it to look.
fn publish(dev: &Bound, transport: &Transport) -> Result {
    let (grant, port) = transport.keys();
    let directory = dev.directory();
    store::transaction(|store| {
        // Somebody else may have moved the device on meanwhile: then this is not ours to connect.
        let state = store.read(directory, c"state")?.number()?;
        if xenbus::state(state) != State::Initialising {
            return Err(ENODEV);
        }
        store.write(directory, c"pci-op-ref", fmt!("{grant}"))?;
        store.write(directory, c"event-channel", fmt!("{port}"))?;
        let magic = core::str::from_utf8(wire::MAGIC).map_err(|_| EINVAL)?;
        store.write(directory, c"magic", fmt!("{magic}"))?;
        store.write(directory, c"state", fmt!("{}", State::Initialised.number()))
    })?;
    dev.state_was_written(State::Initialised);
    Ok(())
}

/// Tells the backend that a new frontend is here. The core's copy of the state goes first: stored as
/// Initialising while the copy says otherwise, the device would be taken for one that was reset.
fn start_again(dev: &Bound) -> Result {
    dev.state_was_written(State::Initialising);
    store::NOW.write(
        dev.directory(),
        c"state",
        fmt!("{}", State::Initialising.number()),
    )
}

/// Makes the backend start again. Gives whether it did; if not, the frontend is closed.
///
/// One that is Closing wanted to connect to the frontend of before, which was gone by then: it waits for
/// Closed.
fn come_back(dev: &Bound) -> Result<bool> {
    start_again(dev)?;
    for _ in 0..COME_BACK / 50 {
        match (dev.peer_state(), dev.own_state()) {
            (State::Initialising | State::InitWait | State::Initialised, State::Initialising) => {
                return Ok(true);
            }
            (State::Closing, State::Initialising) => dev.switch_state(State::Closed),
            (State::Closed, State::Closed) => start_again(dev)?,
            _ => {}
        }
        fsleep(Delta::from_millis(50));
    }
    dev_err!(
        dev.generic(),
        "the backend does not take a frontend back; detach and attach the devices\n"
    );
    dev.switch_state(State::Closed);
    Ok(false)
}

impl Frontend {
    /// Does what the states of both ends ask for.
    fn step(&self, dev: &Bound, backend: State) {
        match frontend_step(dev.own_state(), backend) {
            FrontendAction::Wait => {}
            FrontendAction::Publish => self.publish(dev),
            FrontendAction::StartAgain => self.start_again(dev),
            FrontendAction::Connect => self.connect(dev),
            FrontendAction::Rescan => {
                if self.follows(dev, |inside| &mut inside.changes, "changes its list") {
                    self.connect(dev);
                }
            }
            FrontendAction::Detach => {
                if self.follows(dev, |inside| &mut inside.changes, "changes its list") {
                    self.detach_leaving(dev);
                    dev.switch_state(State::Reconfiguring);
                }
            }
            FrontendAction::Close => self.close(dev),
        }
    }

    /// Whether the backend is followed once more in what it does.
    fn follows(
        &self,
        dev: &Bound,
        which: impl FnOnce(&mut Inside) -> &mut Followed,
        what: &str,
    ) -> bool {
        let may = which(&mut self.inside.lock()).may_follow(clock::now());
        if let Err(TooOften {
            wait,
            is_first: true,
        }) = may
        {
            dev_err!(
                dev.generic(),
                "the backend {} too often; for {} s it is not followed\n",
                what,
                wait / 1_000_000_000
            );
        }
        may.is_ok()
    }

    /// Follows a backend that has started again, unless it does that too often.
    fn start_again(&self, dev: &Bound) {
        if !self.follows(dev, |inside| &mut inside.starts, "starts again") {
            return;
        }
        dev_info!(dev.generic(), "the backend has started again\n");
        match start_again(dev) {
            Ok(()) => self.publish(dev),
            Err(e) => dev.fatal(e, fmt!("cannot start again")),
        }
    }

    /// Makes page and event channel and tells the backend.
    fn publish(&self, dev: &Bound) {
        let transport = match Transport::new(dev) {
            Ok(transport) => transport,
            Err(e) => return dev.fatal(e, fmt!("cannot make page and event channel")),
        };
        let earlier = self.inside.lock().transport.replace(transport.clone());
        drop(earlier);
        if let Err(e) = publish(dev, &transport) {
            dev.fatal(e, fmt!("cannot publish page and event channel"));
        }
    }

    /// Brings the buses up to what the backend exports.
    fn connect(&self, dev: &Bound) {
        match self.scan(dev) {
            Ok(()) => dev.switch_state(State::Connected),
            Err(e) => dev.fatal(e, fmt!("cannot set up the root buses")),
        }
    }

    /// Creates missing buses and looks for functions that are not known yet.
    fn scan(&self, dev: &Bound) -> Result {
        let backend = dev.peer_directory();
        let mut inside = self.inside.lock();
        let Inside {
            buses,
            transport,
            places,
            ..
        } = &mut *inside;
        let transport = transport.as_ref().ok_or(ENODEV)?;
        for root in roots(backend)? {
            if !buses.iter().any(|bus| bus.is(root.segment, root.bus)) {
                let bus = RootBus::new(dev.generic(), root.segment, root.bus, transport.clone())?;
                dev_info!(dev.generic(), "root bus {} created\n", Show(root));
                buses.push(bus, GFP_KERNEL)?;
            }
        }
        let exported = places.exported(backend);
        if exported.is_err() {
            dev_info!(
                dev.generic(),
                "the backend does not say where its functions are: all places are looked at\n"
            );
        }
        let mut new = 0;
        for bus in buses.iter_mut() {
            bus.forget_constants();
            new += match &exported {
                Ok(list) => {
                    let here = |address: &&Sbdf| bus_has(address, bus.address(Devfn::from_raw(0)));
                    let listed: KVec<Devfn> = collect(list.iter().filter(here).map(|a| a.devfn))?;
                    bus.scan(listed.into_iter())
                }
                Err(_) => bus.scan((0..=u8::MAX).map(Devfn::from_raw)),
            };
        }
        if new > 0 && !xen::has_dma_ops() {
            kernel::pr_warn_once!(
                "this guest has no swiotlb, so DMA of its devices goes astray: start it with e820_host=1 in its configuration, or with iommu=soft on its kernel's command line\n"
            );
        }
        Ok(())
    }

    /// Removes the functions that the toolstack takes away.
    fn detach_leaving(&self, dev: &Bound) {
        let mut inside = self.inside.lock();
        let Inside { buses, places, .. } = &mut *inside;
        let Ok(list) = places.leaving(dev.peer_directory()) else {
            places.forget();
            return;
        };
        for address in list.iter() {
            for bus in buses
                .iter_mut()
                .filter(|bus| bus.is(address.segment, address.bus))
            {
                bus.remove(address.devfn);
            }
        }
    }

    /// The backend goes: nothing more is asked of it.
    fn close(&self, dev: &Bound) {
        dev_info!(dev.generic(), "the backend goes, its devices are removed\n");
        if dev.peer_state() != State::Closing {
            self.give_up();
        }
        self.end();
        dev.switch_state(State::Closed);
    }

    /// Nothing is asked of this backend any more.
    fn give_up(&self) {
        if let Some(transport) = &self.inside.lock().transport {
            transport.set_gone();
        }
    }

    /// Removes the buses, and then what they need.
    fn end(&self) {
        let mut inside = self.inside.lock();
        let buses = core::mem::replace(&mut inside.buses, KVec::new());
        drop(buses);
        inside.places = Places::default();
        let transport = inside.transport.take();
        drop(transport);
    }
}

/// Whether two addresses are on the same bus.
fn bus_has(a: &Sbdf, b: Sbdf) -> bool {
    a.segment == b.segment && a.bus == b.bus
}

/// A `KVec` of what the iterator gives.
fn collect<T>(items: impl Iterator<Item = T>) -> Result<KVec<T>> {
    let mut all = KVec::new();
    for item in items {
        all.push(item, GFP_KERNEL)?;
    }
    Ok(all)
}

/// The root buses that the backend names; 0000:00 when it names none.
fn roots(backend: &CStr) -> Result<KVec<RootText>> {
    let mut all = KVec::new();
    let count = match store::NOW.read(backend, c"root_num") {
        Ok(count) => count.number()?.min(MAX_ROOTS),
        Err(ENOENT) => {
            pr_info!("the backend names no root bus, trying 0000:00\n");
            all.push(RootText { segment: 0, bus: 0 }, GFP_KERNEL)?;
            0
        }
        Err(e) => return Err(e),
    };
    for number in 0..count {
        let value = store::NOW.read(backend, NumberedKey::new("root", number).text())?;
        all.push(
            RootText::parse_root_key(value.bytes()).map_err(|_| EINVAL)?,
            GFP_KERNEL,
        )?;
    }
    Ok(all)
}

/// How many devices the backend lists.
fn count(backend: &CStr) -> Result<u32> {
    let count = store::NOW.read(backend, c"num_devs")?.number()?;
    if count > MAX_DEVICES {
        return Err(EINVAL);
    }
    Ok(count)
}

/// Where the guest sees device `number`; `None` for one that is listed but not exported (yet, or because
/// the backend could not).
fn address(backend: &CStr, number: u32) -> Result<Option<Sbdf>> {
    match store::NOW.read(backend, NumberedKey::new("vdev", number).text()) {
        Err(ENOENT) => Ok(None),
        value => Sbdf::parse_vdev_key(value?.bytes())
            .map(Some)
            .map_err(|_| EINVAL),
    }
}

/// Where the guest sees each device of the backend's list, as far as that is known. Each look into the
/// store is a way to another program and back, so what is known is not read again: a hot-plug would take
/// longer the more devices there are.
///
/// A device is new, and its address is read, if [`Self::leaving`] finds its state other than Initialised:
/// only a backend writes that, and after the frontend has looked. When a device goes, the toolstack may
/// give its number to another one, later and without a sign (libxl moves those behind it up): then nothing
/// is kept, and nothing that is read before the next look.
#[derive(Default)]
struct Places {
    known: KVec<Option<Sbdf>>,
    /// A device goes.
    moving: bool,
}

impl Places {
    fn forget(&mut self) {
        self.known.clear();
        self.moving = true;
    }

    fn known(&self, number: u32) -> Option<Sbdf> {
        self.known.get(number as usize).copied().flatten()
    }

    fn set(&mut self, number: u32, address: Option<Sbdf>) -> Result {
        let number = number as usize;
        if address.is_some() && self.known.len() <= number {
            self.known.resize(number + 1, None, GFP_KERNEL)?;
        }
        if let Some(place) = self.known.get_mut(number) {
            *place = address;
        }
        Ok(())
    }

    /// Where the exported functions are.
    ///
    /// # Errors
    ///
    /// When a number or an address does not parse, or no function has one: another kind of backend.
    fn exported(&mut self, backend: &CStr) -> Result<KVec<Sbdf>> {
        let mut all = KVec::new();
        let count = count(backend)?;
        for number in 0..count {
            let place = match self.known(number) {
                None => address(backend, number)?,
                known => known,
            };
            if !self.moving {
                self.set(number, place)?;
            }
            if let Some(place) = place {
                all.push(place, GFP_KERNEL)?;
            }
        }
        if count > 0 && all.is_empty() {
            return Err(ENOENT);
        }
        Ok(all)
    }

    /// Where the functions are that the toolstack takes away. One that did not wait for the end leaves its
    /// keys, and another device can be there by now: that one stays.
    ///
    /// # Errors
    ///
    /// As [`Self::exported`].
    fn leaving(&mut self, backend: &CStr) -> Result<KVec<Sbdf>> {
        let mut all = KVec::new();
        let mut staying = KVec::new();
        let count = count(backend)?;
        self.moving = false;
        self.known.truncate(count as usize);
        for number in 0..count {
            let state = store::NOW
                .read(backend, NumberedKey::new("state", number).text())
                .and_then(|state| state.number())
                .map_or(State::Unknown, xenbus::state);
            if state == State::Initialised {
                staying.push(number, GFP_KERNEL)?;
                continue;
            }
            self.set(number, None)?;
            if state == State::Closing {
                self.moving = true;
                if let Some(address) = address(backend, number)? {
                    all.push(address, GFP_KERNEL)?;
                }
            }
        }
        if self.moving {
            for &number in &staying {
                // One that cannot be read holds up no other's end.
                let place = address(backend, number).ok().flatten();
                all.retain(|leaving| Some(*leaving) != place);
            }
            self.forget();
        }
        Ok(all)
    }
}
