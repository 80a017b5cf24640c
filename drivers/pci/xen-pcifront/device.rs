// SPDX-License-Identifier: GPL-2.0

//! The frontend of one xenbus device: its connection, its buses, its state.
//!
//! *Owns* the transport and the root buses. *Callers*: the xenbus core, in sleepable context, from
//! its watch thread or from a thread that binds or unbinds. *Lock*: `buses`, a mutex, held while
//! buses are scanned or removed; inside it the PCI core's rescan lock, then the transport's.
//!
//! # Publishing
//!
//! Grant, port, magic and the new state go into the store in one transaction. The bus code takes a
//! device whose stored state is Initialising, while its own copy says otherwise, for one that was
//! reset; with one transaction there is no moment at which our own writes could look like that.

use crate::{bus::RootBus, transport::Transport};
use kernel::{
    new_mutex,
    prelude::*,
    str::CStr,
    sync::{Arc, ArcBorrow, Mutex},
};
use pciif::{
    sbdf::{Devfn, RootText, Sbdf},
    state::{frontend_step, FrontendAction, State},
    wire,
};
use xen::{
    log::Show,
    store::{self, NumberedKey},
    xenbus::{self, Device, End},
};

/// More roots or devices than this are not believed: the backend's numbers bound our loops.
const MAX_ROOTS: u32 = 256;
const MAX_DEVICES: u32 = 2048;

/// One frontend.
#[pin_data]
pub(crate) struct Frontend {
    #[pin]
    buses: Mutex<KVec<RootBus>>,
    transport: Arc<Transport>,
}

impl xenbus::Driver for Frontend {
    const END: End = End::Frontend;
    const TYPE: &'static CStr = c"pci";

    fn probe(dev: &Device) -> Result<Arc<Self>> {
        let transport = Transport::new(dev)
            .inspect_err(|e| dev.fatal(*e, fmt!("cannot make page and event channel")))?;
        let this = Arc::pin_init(
            pin_init!(Self {
                buses <- new_mutex!(KVec::new()),
                transport,
            }),
            GFP_KERNEL,
        )?;
        if dev.own_state() == State::Closed {
            // The driver was here before and comes back.
            start_again(dev)?;
        }
        this.step(dev, dev.peer_state());
        Ok(this)
    }

    fn otherend_changed(this: ArcBorrow<'_, Self>, dev: &Device, backend: State) {
        this.step(dev, backend);
    }

    fn remove(this: Arc<Self>, _dev: &Device) {
        // The backend may still be there: drivers are unbound through it.
        this.remove_buses();
    }
}

/// Writes what the backend needs, together with the state that tells it to look.
fn publish(dev: &Device, transport: &Transport) -> Result {
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
fn start_again(dev: &Device) -> Result {
    dev.state_was_written(State::Initialising);
    store::NOW.write(
        dev.directory(),
        c"state",
        fmt!("{}", State::Initialising.number()),
    )
}

impl Frontend {
    /// Does what the states of both ends ask for.
    fn step(&self, dev: &Device, backend: State) {
        match frontend_step(dev.own_state(), backend) {
            FrontendAction::Wait => {}
            FrontendAction::Publish => {
                if let Err(e) = publish(dev, &self.transport) {
                    dev.fatal(e, fmt!("cannot publish page and event channel"));
                }
            }
            FrontendAction::Connect | FrontendAction::Rescan => self.connect(dev),
            FrontendAction::Detach => {
                self.detach_leaving(dev);
                dev.switch_state(State::Reconfiguring);
            }
            FrontendAction::Close => self.close(dev),
        }
    }

    /// Brings the buses up to what the backend exports.
    fn connect(&self, dev: &Device) {
        match self.scan(dev) {
            Ok(()) => dev.switch_state(State::Connected),
            Err(e) => dev.fatal(e, fmt!("cannot set up the root buses")),
        }
    }

    /// Creates missing buses and looks for functions that are not known yet.
    fn scan(&self, dev: &Device) -> Result {
        let backend = dev.peer_directory();
        let mut buses = self.buses.lock();
        for root in roots(backend)? {
            if !buses.iter().any(|bus| bus.is(root.segment, root.bus)) {
                let transport = self.transport.clone();
                let bus = RootBus::new(dev.generic(), root.segment, root.bus, transport)?;
                dev_info!(dev.generic(), "root bus {} created\n", Show(root));
                buses.push(bus, GFP_KERNEL)?;
            }
        }
        let exported = exported(backend);
        for bus in buses.iter_mut() {
            match &exported {
                Ok(list) => {
                    let on_it = list.iter().map(|(address, _)| *address);
                    let here = |address: &Sbdf| bus_has(address, bus.address(Devfn::from_raw(0)));
                    let places: KVec<Devfn> = collect(on_it.filter(here).map(|a| a.devfn))?;
                    bus.scan(places.into_iter());
                }
                // Another kind of backend does not say where its functions are: ask each place.
                Err(_) => bus.scan((0..=u8::MAX).map(Devfn::from_raw)),
            }
        }
        Ok(())
    }

    /// Removes the functions that the toolstack takes away.
    fn detach_leaving(&self, dev: &Device) {
        let mut buses = self.buses.lock();
        let Ok(list) = exported(dev.peer_directory()) else {
            return;
        };
        for (address, state) in list.iter() {
            if *state != State::Closing {
                continue;
            }
            for bus in buses
                .iter_mut()
                .filter(|bus| bus.is(address.segment, address.bus))
            {
                bus.remove(address.devfn);
            }
        }
    }

    /// The backend goes: nothing more is asked of it.
    fn close(&self, dev: &Device) {
        dev_info!(dev.generic(), "the backend goes, its devices are removed\n");
        if dev.peer_state() != State::Closing {
            self.transport.set_gone();
        }
        self.remove_buses();
        self.transport.set_gone();
        dev.switch_state(State::Closed);
    }

    fn remove_buses(&self) {
        let buses = core::mem::replace(&mut *self.buses.lock(), KVec::new());
        drop(buses);
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

/// Where the exported functions are, and the state of each.
///
/// # Errors
///
/// When a number or an address is missing or does not parse.
fn exported(backend: &CStr) -> Result<KVec<(Sbdf, State)>> {
    let mut all = KVec::new();
    let count = store::NOW.read(backend, c"num_devs")?.number()?;
    if count > MAX_DEVICES {
        return Err(EINVAL);
    }
    for number in 0..count {
        let value = store::NOW.read(backend, NumberedKey::new("vdev", number).text())?;
        let address = Sbdf::parse_vdev_key(value.bytes()).map_err(|_| EINVAL)?;
        let state = store::NOW
            .read(backend, NumberedKey::new("state", number).text())
            .and_then(|state| state.number())
            .map_or(State::Unknown, xenbus::state);
        all.push((address, state), GFP_KERNEL)?;
    }
    Ok(all)
}
