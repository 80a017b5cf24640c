// SPDX-License-Identifier: GPL-2.0

//! A frontend that breaks the rules: it does to the backend what the lab's cases tell it to.
//!
//! It takes the xenbus device `pci` of a guest whose init has loaded no frontend (`front=none`), and does
//! nothing by itself. In `/sys/bus/xen/drivers/badfront` are two equal files, `run0` and `run1`: a write
//! runs one command of [`command`], a read gives its result. Two of them, so that two commands can run at
//! the same time, on two vCPUs.
//!
//! *Owns* the one device that it is bound to ([`peer::Peer`]), and the results. *Callers*: userland, in
//! sleepable context; the xenbus core. *Locks*: `PEER` and `RESULTS`, mutexes that are held to look or to
//! change only, never while a command runs.

mod command;
mod peer;

use kernel::{prelude::*, str::CStr, sync::Arc};
use peer::Peer;
use xen::{
    sysfs::{Attribute, Group, Raw, Window},
    xenbus,
};

kernel::sync::global_lock! {
    // SAFETY: initialised at the start of the module, before anything uses it.
    unsafe(uninit) static PEER: Mutex<Option<Arc<Peer>>> = None;
}

kernel::sync::global_lock! {
    // SAFETY: as above.
    unsafe(uninit) static RESULTS: Mutex<[KVec<u8>; 2]> = [KVec::new(), KVec::new()];
}

/// The device, while there is one.
fn peer() -> Result<Arc<Peer>> {
    PEER.lock().clone().ok_or(ENODEV)
}

/// Runs a command and keeps its result as that of `lane`.
fn store(lane: usize, text: &[u8]) -> Result {
    let mut out = command::Text::new();
    let peer = peer()?;
    peer.begin();
    let result = command::run(&peer, text, &mut out);
    if let Some(place) = RESULTS.lock().get_mut(lane) {
        *place = out.into_bytes();
    }
    result
}

fn show(lane: usize, window: &mut Window<'_>) -> Result {
    let results = RESULTS.lock();
    let bytes = results.get(lane).ok_or(EINVAL)?;
    window.line(fmt!("{}", core::str::from_utf8(bytes).map_err(|_| EINVAL)?));
    Ok(())
}

struct Run0;

impl Attribute for Run0 {
    const NAME: &'static CStr = c"run0";
    const MODE: u16 = 0o600;

    fn show(window: &mut Window<'_>) -> Result {
        show(0, window)
    }

    fn store(text: &[u8]) -> Result {
        store(0, text)
    }
}

struct Run1;

impl Attribute for Run1 {
    const NAME: &'static CStr = c"run1";
    const MODE: u16 = 0o600;

    fn show(window: &mut Window<'_>) -> Result {
        show(1, window)
    }

    fn store(text: &[u8]) -> Result {
        store(1, text)
    }
}

const ALL: &[Raw] = &[Raw::of::<Run0>(), Raw::of::<Run1>()];

static FILES: Group = Group::new(ALL);

/// The module.
#[pin_data(PinnedDrop)]
struct Module {
    #[pin]
    _driver: xenbus::Registration<Peer>,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            // SAFETY: once, before the driver is registered and the files exist.
            unsafe {
                PEER.init();
                RESULTS.init();
            }
            Ok(try_pin_init!(Self {
                _driver <- xenbus::Registration::with_files(
                    c"badfront",
                    c"badfront",
                    module,
                    Some(&FILES),
                ),
            }))
        })
    }
}

#[pinned_drop]
impl PinnedDrop for Module {
    fn drop(self: Pin<&mut Self>) {
        *RESULTS.lock() = [KVec::new(), KVec::new()];
    }
}

module! {
    type: Module,
    name: "badfront",
    authors: ["The xen-pci-rust developers"],
    description: "A Xen PCI frontend that breaks the rules, for tests of the backend",
    license: "GPL",
}
