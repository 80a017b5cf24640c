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
//! A function's device lock (the PCI core's), [`backend`]'s `roots`, the lease of its device, its `link`, a
//! [`server`]'s `errors`, its `sending`, [`exports`]' `table` or `server`, a function's `config`, a function's
//! `owner`, the [`registry`]; inside any of them a guest's account, then that of all guests. Each is left
//! out where it is not needed; none is taken against this order, nor two of a kind but for the `config`s of a
//! bus, which are tried. The event handler takes `table` and
//! `config`, if no thread has them, and the accounts.

mod attributes;
mod backend;
mod debug;
mod exports;
mod function;
mod intx;
mod registry;
mod server;
mod stub;

use backend::Backend;
use function::Function;
use kernel::{
    debugfs::{Dir, File},
    prelude::*,
};
use xen::{pci, work, xenbus};

/// The kernel that this module was built for; see `xen::check_kernel_version`.
const BUILT_FOR: &str = include!(env!("XENPCI_UTS_FILE"));

xen::param!(HIDE: Text, "hide", param_ops_charp, "charp", 0o444,
    "PCI functions to take at load: ([DDDD:]BB:SS.F)..., F or SS.F may be *");
xen::param!(PERMISSIVE: Flag, "permissive", param_ops_bool, "bool", 0o644,
    "Let guests write all of the configuration space of all functions (unsafe)");
xen::param!(PASSTHROUGH: Flag, "passthrough", param_ops_bool, "bool", 0o444,
    "Guests see functions at their addresses in the host (default: on a virtual bus)");

xen::param!(HIDE_FORCE: Flag, "hide_force", param_ops_bool, "bool", 0o444,
    "Take what hide= lists from other drivers, unless dom0 itself uses it");
xen::param!(REQUIRE_RESET: Flag, "require_reset", param_ops_bool, "bool", 0o644,
    "Keep a function that has no way to be reset from further guests");

/// Where everything that takes long is done.
static QUEUE: work::Queue = work::Queue::closed();

/// The module. Fields are dropped in this order: guests first, then functions, then what serves
/// them.
#[pin_data]
struct Module {
    #[pin]
    _backends: xenbus::Registration<Backend>,
    _left: Left,
    #[pin]
    _denied: File<()>,
    #[pin]
    _accounts: File<()>,
    _debug: Dir,
    _open: Open,
    #[pin]
    _stub: pci::Registration<Function>,
    _slots: registry::Slots,
    _queue: work::OpenQueue,
}

/// Functions are taken as long as this lives.
struct Open(());

impl Drop for Open {
    fn drop(&mut self) {
        stub::close();
    }
}

/// Ends the backends that were unbound from guests that live.
struct Left(());

impl Drop for Left {
    fn drop(&mut self) {
        Backend::end_left(|_| true);
    }
}

impl kernel::InPlaceModule for Module {
    fn init(module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            xen::check_kernel_version(BUILT_FOR)?;
            if !xen::is_initial_domain() {
                return Err(ENODEV);
            }
            #[cfg(not(MODULE))]
            let reserved = stub::Reserved::take_over();
            Ok(try_pin_init!(Self {
                _queue: QUEUE.open(c"xen-pciback")?,
                _slots: registry::Slots::init()?,
                _stub <- pci::Registration::new(c"pciback", c"xen_pciback", module, &attributes::FILES),
                _open: {
                    // A failure further down must find the module as at its start.
                    let open = Open(());
                    stub::open(HIDE.get(), &_stub)?;
                    #[cfg(not(MODULE))]
                    drop(reserved);
                    open
                },
                _debug: Dir::new(c"xen-pciback"),
                _denied <- debug::denied_writes(_debug),
                _accounts <- debug::accounts(_debug),
                _left: Left(()),
                _backends <- xenbus::Registration::new(c"xen-pciback", c"xen_pciback", module),
                _: {
                    let kind = if PASSTHROUGH.get() { "passthrough" } else { "vpci" };
                    pr_info!("backend is {kind}\n");
                },
            }))
        })
    }
}

xen::early_init!("xen_pciback_reserve_early", stub::reserve_early);

module! {
    type: Module,
    name: "xen_pciback",
    authors: ["The xen-pci-rust developers"],
    description: "Xen PCI backend",
    license: "GPL",
    alias: ["xen-backend:pci", "pciback"],
}
