// SPDX-License-Identifier: GPL-2.0

//! Which functions one guest has, and where it sees them.
//!
//! *Owns* the table from virtual addresses to functions; shared by the [`crate::backend`], which
//! changes it, and the [`crate::server`], which looks requests up. *Lock*: one mutex, held for a
//! lookup or a change; a function found stays usable by its own reference.

use crate::{function::Function, PASSTHROUGH};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};
use pciif::{
    sbdf::{Devfn, RootText, Sbdf},
    topology::{Mode, Topology, TopologyError},
};

/// The most functions that one guest can have: 32 slots of 8 on the virtual bus.
const CAPACITY: usize = 256;

/// The functions of one guest.
#[pin_data]
pub(crate) struct Exports {
    /// The guest.
    pub(crate) domid: u16,
    #[pin]
    table: Mutex<KBox<Topology<Arc<Function>, CAPACITY>>>,
}

impl Exports {
    /// An empty table.
    pub(crate) fn new(domid: u16) -> Result<Arc<Self>> {
        let mode = if PASSTHROUGH.get() {
            Mode::Passthrough
        } else {
            Mode::Vpci
        };
        let table = KBox::new(Topology::new(mode), GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self { domid, table <- new_mutex!(table) }),
            GFP_KERNEL,
        )
    }

    /// Gives a function a virtual address.
    pub(crate) fn add(
        &self,
        function: Arc<Function>,
        wanted: Option<Devfn>,
    ) -> Result<Sbdf, TopologyError> {
        let (host, is_vf, is_bridge) = (function.address(), function.is_vf(), function.is_bridge());
        self.table
            .lock()
            .assign(host, is_vf, is_bridge, function, wanted)
    }

    /// The function at a virtual address.
    pub(crate) fn find(&self, address: Sbdf) -> Option<Arc<Function>> {
        self.table.lock().find(address).cloned()
    }

    /// Takes the function at a virtual address out of the table.
    pub(crate) fn remove(&self, address: Sbdf) -> Option<Arc<Function>> {
        self.table.lock().release(address)
    }

    /// Takes any one function out of the table.
    pub(crate) fn remove_any(&self) -> Option<Arc<Function>> {
        let mut table = self.table.lock();
        let address = table.entries().map(|entry| entry.address()).next()?;
        table.release(address)
    }

    /// Whether this host function is exported already.
    pub(crate) fn has_host(&self, host: Sbdf) -> bool {
        self.table.lock().find_host(host).is_some()
    }

    /// The root buses that the guest needs.
    pub(crate) fn roots(&self) -> Result<KVec<RootText>> {
        let table = self.table.lock();
        let mut all = KVec::new();
        for root in table.roots() {
            all.push(root, GFP_KERNEL)?;
        }
        Ok(all)
    }
}
