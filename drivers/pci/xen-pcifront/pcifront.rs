// SPDX-License-Identifier: GPL-2.0

//! The Xen PCI frontend: the PCI functions that another domain lends to this one appear on a root
//! bus of their own.
//!
//! ```text
//!  PCI core ──▶ bus ──┐                       ┌──▶ page + event channel ──▶ backend
//!  MSI code ──▶ msi ──┴──▶ transport ─────────┘            │
//!                             recovery ◀───────────────────┘ error messages
//!  xenbus   ──▶ device: makes the transport, scans and removes the buses
//! ```

mod bus;
mod device;
mod msi;
mod recovery;
mod transport;

use device::Frontend;
use kernel::prelude::*;
use xen::{work::OpenQueue, xenbus};

/// The kernel that this module was built for; see `xen::check_kernel_version`.
const BUILT_FOR: &str = include!(env!("XENPCI_UTS_FILE"));

/// The module. Fields are dropped in this order: devices first, then the MSI entry points, then what
/// the devices' work runs on.
#[pin_data]
struct Module {
    #[pin]
    _driver: xenbus::Registration<Frontend>,
    _msi: msi::Hooks,
    _queue: OpenQueue,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            xen::check_kernel_version(BUILT_FOR)?;
            if !xen::is_pv_domain() || xen::is_initial_domain() || !xen::has_pv_devices() {
                return Err(ENODEV);
            }
            Ok(try_pin_init!(Self {
                // Initialised in this order: what is needed first.
                _queue: transport::QUEUE.open(c"xen-pcifront")?,
                _msi: msi::Hooks::install(),
                _driver <- xenbus::Registration::new(c"pcifront", c"xen_pcifront", module),
            }))
        })
    }
}

module! {
    type: Module,
    name: "xen_pcifront",
    authors: ["The xen-pci-rust developers"],
    description: "Xen PCI frontend",
    license: "GPL",
    alias: ["xen:pci"],
}
