// SPDX-License-Identifier: GPL-2.0

//! Which functions one guest has, where it sees them, and what it has cost.
//!
//! *Owns* the table from virtual addresses to functions, the guest's account, and the way to the guest
//! while it is connected;
//! shared by the [`crate::backend`], which changes it, the [`crate::server`], which looks requests
//! up, and each [`crate::function`] that the guest has, for errors that the guest should hear of.
//! *Locks*: `table` and `server`, held for a lookup or a change, never both; what is found stays
//! usable by its own reference. `table` is also taken by the event handler, which serves a request
//! under it: it must not drop the last reference to a function. The device of the guest's backend is only had
//! on its lease, for one write. `account`, and inside it that of all
//! guests, are held for a few instructions, in any context.

use crate::{backend::OF_AN_UPDATE, function::Function, registry, server::Server, PASSTHROUGH};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    time::{delay::fsleep, Delta},
};
use pciif::{
    account::{Account, Together},
    aer::{Answer, Step},
    lines::LeftOut,
    op::{OpStatus, Reply, Request},
    sbdf::{Devfn, RootText, Sbdf},
    topology::{Mode, Place, Topology, TopologyError},
};
use xen::{
    clock,
    lock::{DualLock, IrqLock},
    new_dual_lock, new_irq_lock, pci,
    xenbus::{Bound, Lease},
};

/// Places for functions; most guests need no more than these first ones.
type Places = KVec<Place<Arc<Function>>>;
const FIRST_PLACES: usize = 4;

/// The longest wait for a reset, in ns: a bound for a clock that jumps.
const MOST_RESET_WAIT: i64 = 1_100_000_000;

/// A function that is not back in this time after its reset is waited for with lines in the log, in ns:
/// a second of the PCI core, less what the clocks may differ.
const SILENT_RESET: i64 = 900_000_000;

/// The functions of one guest.
#[pin_data]
pub(crate) struct Exports {
    /// The guest.
    pub(crate) domid: u16,
    lease: Arc<Lease>,
    #[pin]
    table: DualLock<Topology<Places>>,
    #[pin]
    server: Mutex<Option<Arc<Server>>>,
    #[pin]
    account: IrqLock<Account>,
    together: Arc<IrqLock<Together>>,
    /// A reset that the guest ordered took so long that the kernel wrote lines about it.
    slow_reset: AtomicBool,
}

impl Exports {
    /// An empty table for the guest of `dev`, which `lease` lends.
    pub(crate) fn new(dev: &Bound, lease: Arc<Lease>) -> Result<Arc<Self>> {
        let mode = if PASSTHROUGH.get() {
            Mode::Passthrough
        } else {
            Mode::Vpci
        };
        let together = registry::together()?;
        let table = Topology::new(mode, KVec::from_elem(None, FIRST_PLACES, GFP_KERNEL)?);
        Arc::pin_init(
            pin_init!(Self {
                domid: dev.peer_domain(),
                lease,
                table <- new_dual_lock!(table, "pciback_exports"),
                server <- new_mutex!(None),
                account <- new_irq_lock!(Account::new(), "pciback_account"),
                together,
                slow_reset: AtomicBool::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// What the guest has cost, and what it may. Atomic; nothing is taken or waited for with it.
    pub(crate) fn account(&self) -> &IrqLock<Account> {
        &self.account
    }

    /// Whether the event handler may serve the guest at `now`, in ns. After `true`,
    /// [`Exports::leave_handler`] must follow. Atomic.
    pub(crate) fn enter_handler(&self, now: i64) -> bool {
        let all = || self.together.lock().enter(now);
        self.account.lock().enter(now, all)
    }

    /// The event handler has done with the guest's request, and took that many ns. Atomic.
    pub(crate) fn leave_handler(&self, took: i64) {
        self.account.lock().leave(took);
        self.together.lock().leave(took);
    }

    /// Whether a line that the guest can provoke may be written now, and what to say in it about those
    /// left out. Atomic.
    pub(crate) fn line(&self) -> Option<LeftOut> {
        self.account.lock().line(clock::now())
    }

    /// Does what the kernel writes a line about when it fails, unless that has failed before and the
    /// guest has no line left: then `None`. What is `fresh` is done in any case.
    pub(crate) fn try_aloud<T, E>(
        &self,
        fresh: bool,
        what: impl FnOnce() -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        if !fresh && !self.account.lock().may_fail_aloud(clock::now()) {
            return None;
        }
        let result = what();
        if result.is_err() {
            self.account.lock().failed_aloud();
        }
        Some(result)
    }

    /// Waits until the guest may reset a function again: a second at most, as it has one request at a time.
    ///
    /// # Errors
    ///
    /// `EBUSY` when that was not enough.
    pub(crate) fn pace_reset(&self) -> Result {
        let ask = || self.account.lock().reset(clock::now());
        let Err(wait) = ask() else { return Ok(()) };
        // The clock of the sleep is not quite that of the account.
        let wait = wait.saturating_add(1_000_000).min(MOST_RESET_WAIT);
        fsleep(Delta::from_nanos(wait));
        ask().map_err(|_| EBUSY)
    }

    /// Does a reset that the guest has ordered. One that takes longer than [`SILENT_RESET`] has lines in the
    /// kernel's log, which are the guest's: the next ones need some that are left. `None` without.
    pub(crate) fn try_reset<T>(&self, reset: impl FnOnce() -> T) -> Option<T> {
        let fresh = !self.slow_reset.load(Ordering::Relaxed);
        let result = self.try_aloud(fresh, || {
            let begun = clock::now();
            let result = reset();
            let took = clock::now().saturating_sub(begun);
            if took < SILENT_RESET {
                return Ok(result);
            }
            self.slow_reset.store(true, Ordering::Relaxed);
            Err(result)
        });
        result.map(|result| result.unwrap_or_else(|slow| slow))
    }

    /// A request has made the kernel switch something that takes locks which others need. Atomic.
    pub(crate) fn switched(&self) {
        self.account.lock().switched();
    }

    /// The guest is connected, or no longer.
    pub(crate) fn set_server(&self, server: Option<Arc<Server>>) {
        *self.server.lock() = server;
    }

    /// Has the guest take part in the recovery from an error of the function at `host`. Sleeps.
    pub(crate) fn recover(&self, host: Sbdf, step: Step) -> Answer {
        let address = self.table.lock().find_host(host).map(|e| e.address());
        let server = self.server.lock().clone();
        match (address, server) {
            (Some(address), Some(server)) => server.recover(address, step),
            _ => Answer::NotConnected,
        }
    }

    /// Tells the toolstack that the guest cannot recover from an error, unless the guest's backend goes
    /// anyway. The guest pays for it like for any operation on the store.
    pub(crate) fn cannot_recover(&self) {
        if let Some(dev) = self.lease.get() {
            self.account.lock().store_run(OF_AN_UPDATE);
            // The state of the device is what counts; a store that is full changes nothing about it.
            let _ =
                dev.update(|store, directory| store.write(directory, c"aerState", fmt!("aerfail")));
        }
    }

    /// Gives a function a virtual address. Sleeps.
    pub(crate) fn add(
        &self,
        function: Arc<Function>,
        wanted: Option<Devfn>,
    ) -> Result<Sbdf, TopologyError> {
        let (host, is_vf, is_bridge) = (function.address(), function.is_vf(), function.is_bridge());
        loop {
            let room = {
                let mut table = self.table.lock();
                let assigned = table.assign(host, is_vf, is_bridge, function.clone(), wanted);
                match (assigned, table.larger()) {
                    (Err(TopologyError::NoRoom), Some(room)) => room,
                    _ => return assigned,
                }
            };
            let more = Places::from_elem(None, room, GFP_KERNEL);
            let more = more.map_err(|_| TopologyError::NoRoom)?;
            // What is left is dropped after the lock.
            let _left = self.table.lock().grow(more);
        }
    }

    /// The function at a virtual address.
    pub(crate) fn find(&self, address: Sbdf) -> Option<Arc<Function>> {
        self.table.lock().find(address).cloned()
    }

    /// Serves a request if that can be done in atomic context now. `None` otherwise: nothing has
    /// happened then.
    pub(crate) fn serve_atomic(&self, request: &Request) -> Option<Reply> {
        let table = self.table.try_lock_atomic()?;
        match table.find(request.sbdf()) {
            Some(function) => function.serve_atomic(self.domid, request),
            None => Some(Reply::failed(OpStatus::DevNotFound)),
        }
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

    /// Where the guest sees this function of the host, if it has it.
    pub(crate) fn place_of(&self, host: Sbdf) -> Option<Sbdf> {
        self.table
            .lock()
            .find_host(host)
            .map(|entry| entry.address())
    }

    /// Whether it has any function.
    pub(crate) fn has_any(&self) -> bool {
        self.table.lock().entries().next().is_some()
    }

    /// The root buses that the guest needs.
    pub(crate) fn roots(&self) -> Result<KVec<RootText>> {
        let table = self.table.lock();
        let mut all = KVec::new();
        let is_exported = |dev: &pci::Device| {
            let address = dev.address();
            address.is_some_and(|address| table.find_host(address).is_some())
        };
        for root in table.roots(|entry| entry.handle().device().any_above(is_exported)) {
            all.push(root, GFP_KERNEL)?;
        }
        Ok(all)
    }
}
