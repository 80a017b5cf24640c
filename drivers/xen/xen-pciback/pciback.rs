// SPDX-License-Identifier: GPL-2.0

//! The Xen PCI backend: takes PCI functions away from dom0's drivers and lends them to guests.
//!
//! ```text
//!  PCI core ──▶ stub ────▶ registry ◀──── attributes ◀── toolstack (sysfs)
//!                 │            │
//!                 ▼            ▼
//!              function ◀── exports ◀──── backend ◀───── toolstack, guest (xenbus)
//!                 ▲            ▲             │
//!                 └── server ──┘ ◀───────────┘
//!                       ▲
//!                  shared page, event channel ◀───────── guest
//! ```
//!
//! # Lock order
//!
//! A function's device lock (the PCI core's), [`backend`]'s `control`, its `link`, [`exports`]' table,
//! a function's `config`, a function's `owner`, the [`registry`]. Each is left out where it is not
//! needed; none is taken against this order. Nothing here is taken in interrupt context.

mod attributes;
mod backend;
mod exports;
mod function;
mod registry;
mod server;
mod stub;

use backend::Backend;
use function::Function;
use kernel::prelude::*;
use xen::{pci, sysfs, work, xenbus};

/// The kernel that this module was built for; see `xen::check_kernel_version`.
const BUILT_FOR: &str = include!(env!("XENPCI_UTS_FILE"));

xen::param!(HIDE: Text, "hide", param_ops_charp, "charp", 0o444,
    "PCI functions to take at load: ([DDDD:]BB:SS.F)..., F or SS.F may be *");
xen::param!(PERMISSIVE: Flag, "permissive", param_ops_bool, "bool", 0o644,
    "Let guests write all of the configuration space of all functions (unsafe)");
xen::param!(PASSTHROUGH: Flag, "passthrough", param_ops_bool, "bool", 0o444,
    "Guests see functions at their addresses in the host (default: on a virtual bus)");

/// Where everything that takes long is done.
static QUEUE: work::Queue = work::Queue::closed();

/// The module. Fields are dropped in this order: guests first, then functions, then what serves
/// them.
#[pin_data]
struct Module {
    #[pin]
    _backends: xenbus::Registration<Backend>,
    _files: sysfs::Files,
    #[pin]
    _stub: pci::Registration<Function>,
    _slots: registry::Slots,
    _queue: work::OpenQueue,
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            xen::check_kernel_version(BUILT_FOR)?;
            if !xen::is_initial_domain() {
                return Err(ENODEV);
            }
            Ok(try_pin_init!(Self {
                _queue: QUEUE.open(c"xen-pciback")?,
                _slots: registry::Slots::init(),
                _stub <- pci::Registration::new(c"pciback", c"xen_pciback", module),
                // SAFETY: the driver is registered, and dropped after the files.
                _files: unsafe { sysfs::Files::new(_stub.driver(), attributes::ALL) }?,
                // Only now, so that no function is taken before its files exist.
                _: { stub::hide(HIDE.get(), &_stub)? },
                _backends <- xenbus::Registration::new(c"xen-pciback", c"xen_pciback", module),
                _: {
                    let kind = if PASSTHROUGH.get() { "passthrough" } else { "vpci" };
                    pr_info!("backend is {kind}\n");
                },
            }))
        })
    }
}

module! {
    type: Module,
    name: "xen_pciback",
    authors: ["The xen-pci-rust developers"],
    description: "Xen PCI backend",
    license: "GPL",
    alias: ["xen-backend:pci", "pciback"],
}
