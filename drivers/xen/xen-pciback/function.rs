// SPDX-License-Identifier: GPL-2.0

//! One function of the host that pciback has taken.
//!
//! *Owns* the reference to the PCI function, its saved ("golden") configuration, the virtual
//! configuration space of the present guest, and the answer to "whose is it".
//!
//! # Who owns it, and how that changes
//!
//! [`pciif::lifecycle`] is the table; here is who sends its events:
//!
//! | event | sent by | context |
//! |---|---|---|
//! | Assign | [`crate::backend`]'s worker; [`Function::add`] for the guest that still has it | sleeps |
//! | Release | the backend's worker, or the xenbus thread when a guest dies; who is to get it next, when its domain has ended | only queues work |
//! | Released | the function's own work item | device lock held |
//! | Unbind | the PCI core, through `remove` | device lock held by the core |
//! | ClearQuarantine | a reset by the administrator (`do_flr`) that succeeded | sleeps |
//!
//! A release takes as long as a reset, so it is never done by the thread that serves other guests'
//! xenbus events. An assignment that finds the function still being released waits for it, within a
//! bound. The work item takes the device lock first and then looks whether the function is still to
//! be released: an unbind that came in between has done everything already.
//!
//! An unbind takes a function away from dom0's point of view only: the guest keeps what it has mapped of
//! it, and its toolstack still lists it. One that is bound again is therefore that guest's, though the
//! guest is not served any more ([`Function::add`]); it is released when it leaves the guest's table.
//!
//! # Locks
//!
//! `config`: around everything that touches the hardware for a guest; held over a whole request, so
//! that a release or an unbind waits for the request and no longer. A dual lock: accesses to the
//! configuration space that cannot sleep are served by the event handler while no thread has it. Files of
//! dom0 that only show something do not wait for it as long as a reset takes.
//! `owner`: a mutex around the state, never held over anything slow; a waiter sleeps on `changed`.
//! `serves` repeats for the handler whose requests are served, and is only written under `owner`.

use crate::{
    exports::Exports,
    intx::{Acknowledger, Control},
    registry, PERMISSIVE, QUEUE, REQUIRE_RESET,
};
use core::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
};
use kernel::{
    bindings, new_condvar, new_mutex,
    prelude::*,
    sync::{Arc, CondVar, Mutex},
    time::{delay::fsleep, Delta},
};
use pciif::{
    access::ConfigAccess,
    aer::{self, Step, Verdict},
    config::{self, Field, GuestBits, VirtualConfigSpace, WriteOutcome},
    denied::{DeniedWrite, DeniedWrites},
    intx,
    lifecycle::{Event, Lifecycle, Refusal, ResetFailure},
    lines::LeftOut,
    op::{OpStatus, Reply, Request},
    quirk::{Quirk, QuirkLine, QuirkRefusal},
    sbdf::Sbdf,
    vectors::Refused,
    wire::{MsixEntry, MAX_MSIX_VECTORS},
};
use xen::{
    lock::{DualGuard, DualLock},
    log::Show,
    new_dual_lock,
    pci::{self, SavedState},
    store,
    work::{Item, Run},
};

/// How long an assignment waits for a release to end.
const RELEASE_PATIENCE_MS: u32 = 30_000;
/// How often it looks meanwhile whether it is still wanted.
const RELEASE_LOOK_MS: u32 = 100;

/// How often a reset that a guest asks for tries to get the device lock, and how long it pauses in
/// between.
const GUEST_RESET_TRIES: u32 = 5;
const GUEST_RESET_PAUSE_MS: i64 = 20;

/// How often a reader tries to look at a function that is in hand, and how long it pauses in between.
const PEEK_TRIES: u32 = 20;
const PEEK_PAUSE_MS: i64 = 5;

/// What a vector takes, about: an interrupt's descriptor with its name and counters, the entry for the
/// device, and what Xen's code keeps of it.
const VECTOR_BYTES: u64 = 1024;

/// What `config` protects.
struct Config {
    space: VirtualConfigSpace,
    /// As it was taken; what every guest gets, and dom0 gets back.
    golden: SavedState,
    /// Not let go yet.
    alive: bool,
    /// The guest's functions, while it is assigned.
    guest: Option<Arc<Exports>>,
    /// Since the present guest has it.
    denied: DeniedWrites,
    /// What the present guest's vectors for MSI or MSI-X take of the memory of its account.
    vector_bytes: u64,
    /// What of them was refused to the present guest. A cell, as this is changed while the request is under way.
    refused: Cell<Refused>,
}

impl Config {
    /// A read of the guest's.
    fn read(&mut self, dev: &pci::Device, access: ConfigAccess) -> Result<u32, OpStatus> {
        let (golden, guest) = (&self.golden, self.guest.as_deref());
        self.space.read(&mut Host { dev, golden, guest }, access)
    }

    /// A write of the guest's.
    fn write(
        &mut self,
        dev: &pci::Device,
        access: ConfigAccess,
        value: u32,
        flags: config::Flags,
    ) -> Result<WriteOutcome, OpStatus> {
        let (golden, guest) = (&self.golden, self.guest.as_deref());
        let host = &mut Host { dev, golden, guest };
        self.space.write(host, access, value, flags)
    }

    /// Has `what` write the host's configuration back, and gives the guest what it may set of it.
    fn keeping_guest_bits<T>(&self, dev: &pci::Device, what: impl FnOnce(&SavedState) -> T) -> T {
        let bits = self.guest_bits(dev);
        let result = what(&self.golden);
        self.give_back(dev, &bits);
        result
    }

    /// See [`VirtualConfigSpace::guest_bits`].
    fn guest_bits(&self, dev: &pci::Device) -> GuestBits {
        let (golden, guest) = (&self.golden, self.guest.as_deref());
        self.space.guest_bits(&mut Host { dev, golden, guest })
    }

    /// See [`VirtualConfigSpace::give_back`].
    fn give_back(&self, dev: &pci::Device, bits: &GuestBits) {
        let (golden, guest) = (&self.golden, self.guest.as_deref());
        self.space.give_back(&mut Host { dev, golden, guest }, bits);
    }

    /// Takes memory for `count` vectors and has `enable` enable them.
    fn with_vectors(
        &mut self,
        count: u16,
        enable: impl FnOnce(&Self) -> Result<u32, OpStatus>,
    ) -> Result<u32, OpStatus> {
        let bytes = u64::from(count).saturating_mul(VECTOR_BYTES);
        let guest = self.guest.as_ref().ok_or(OpStatus::DevNotFound)?;
        if !guest.account().lock().allocate(bytes) {
            return Err(OpStatus::OpFailed);
        }
        let result = enable(self);
        match result {
            Ok(_) => self.vector_bytes = self.vector_bytes.saturating_add(bytes),
            Err(_) => guest.account().lock().give_back(bytes),
        }
        result
    }

    /// The guest's vectors are gone, or go with it.
    fn give_vectors_back(&mut self) {
        let bytes = core::mem::take(&mut self.vector_bytes);
        if let Some(guest) = &self.guest {
            guest.account().lock().give_back(bytes);
        }
    }

    /// Whether a line that the guest can provoke may be written now; see [`Exports::line`]. Nobody writes
    /// one while there is no guest.
    fn line(&self) -> Option<LeftOut> {
        self.guest.as_ref()?.line()
    }
}

/// What a guest may do beyond the policy; set by the administrator, ends with the assignment.
#[derive(Clone, Copy)]
pub(crate) enum Grant {
    /// Write all of the configuration space.
    Permissive,
    /// Switch interrupts through configuration space.
    InterruptControl,
}

/// Somebody has the function in hand for longer than a reader waits.
pub(crate) struct Busy;

/// [`Function::last_reset`]: no reset was tried yet.
const NO_RESET_YET: i32 = 1;

/// [`Function::serves`]: no guest has it.
const NOBODY: u32 = u32::MAX;

/// A function that was taken.
#[pin_data]
pub(crate) struct Function {
    dev: pci::Device,
    /// That of a virtual function, or itself.
    physical: pci::Device,
    address: Sbdf,
    by_override: bool,
    permissive: AtomicBool,
    interrupt_control: AtomicBool,
    line: Control,
    /// 0, an errno, or [`NO_RESET_YET`].
    last_reset: AtomicI32,
    #[pin]
    owner: Mutex<Lifecycle>,
    #[pin]
    changed: CondVar,
    /// Domain id, or [`NOBODY`].
    serves: AtomicU32,
    #[pin]
    config: DualLock<Config>,
    #[pin]
    release: Item<Function, 0>,
}

xen::has_work_item!(Function, 0, release);

impl Run<0> for Function {
    fn run(this: Arc<Self>) {
        let lock = this.dev.lock();
        if !matches!(*this.owner.lock(), Lifecycle::Releasing { .. }) {
            return;
        }
        let result = this.take_back(&lock);
        if let Err(why) = result {
            dev_err!(
                this.dev.as_generic(),
                "is kept from all guests until it is bound again: {}\n",
                Show(why)
            );
        }
        let _ = this.apply(Event::Released(result));
    }
}

impl Function {
    /// Takes a function: the core is in `probe`.
    ///
    /// # Errors
    ///
    /// When it cannot be enabled, saved or restored; it is then as before.
    pub(crate) fn seize(
        dev: &pci::Locked<'_>,
        address: Sbdf,
        by_override: bool,
    ) -> Result<Arc<Self>> {
        // The legacy interrupt is only known once it is enabled; toolstacks read it from sysfs.
        dev.enable()?;
        let result = Self::seize_enabled(dev, address, by_override);
        dev.set_bus_master(false);
        dev.disable();
        let this = result?;
        dev.set_assigned(true);
        Ok(this)
    }

    fn seize_enabled(dev: &pci::Locked<'_>, address: Sbdf, by_override: bool) -> Result<Arc<Self>> {
        match dev.prepare_msix(true) {
            // Xen is not asked about a function without MSI-X.
            Ok(()) | Err(ENODEV) => {}
            Err(e) => dev_warn!(dev.as_generic(), "MSI-X preparation failed ({:?})\n", e),
        }
        Self::seize_prepared(dev, address, by_override).inspect_err(|_| {
            let _ = dev.prepare_msix(false);
        })
    }

    fn seize_prepared(
        lock: &pci::Locked<'_>,
        address: Sbdf,
        by_override: bool,
    ) -> Result<Arc<Self>> {
        let dev = pci::Device::clone(lock);
        let physical = lock.physical().ok_or(ENODEV)?;
        let golden = lock.save_state()?;
        let reset = lock.reset();
        report_reset(&dev, reset);
        dev.restore_state(&golden)?;
        let bars = [0, 1, 2, 3, 4, 5].map(|index| dev.bar(index));
        let rom = dev.bar(6);
        let space = VirtualConfigSpace::new(
            dev.header_type(),
            &bars,
            rom,
            &mut Host {
                dev: &dev,
                golden: &golden,
                guest: None,
            },
        )
        .map_err(|_| EIO)?;
        // A bridge has no interrupt that a guest would serve.
        let irq = if dev.header_type() == 0 { dev.irq() } else { 0 };
        let line = Control::new(address, irq)?;
        warn_of_neighbours(&dev);
        Arc::pin_init(
            pin_init!(Self {
                dev,
                physical,
                address,
                by_override,
                permissive: AtomicBool::new(false),
                interrupt_control: AtomicBool::new(false),
                line,
                last_reset: AtomicI32::new(errno(reset)),
                owner <- new_mutex!(Lifecycle::Available),
                changed <- new_condvar!(),
                serves: AtomicU32::new(NOBODY),
                config <- new_dual_lock!(Config {
                    space,
                    golden,
                    alive: true,
                    guest: None,
                    denied: DeniedWrites::new(),
                    vector_bytes: 0,
                    refused: Cell::new(Refused::NONE),
                }, "pciback_config"),
                release <- Item::new(c"xen-pciback-release", kernel::static_lock_class!()),
            }),
            GFP_KERNEL,
        )
    }

    /// Host address.
    pub(crate) fn address(&self) -> Sbdf {
        self.address
    }

    /// Whether only `driver_override` has brought it here.
    pub(crate) fn by_override(&self) -> bool {
        self.by_override
    }

    /// Whether it is a virtual function.
    pub(crate) fn is_vf(&self) -> bool {
        self.dev.is_vf()
    }

    /// Whether it is a bridge.
    pub(crate) fn is_bridge(&self) -> bool {
        self.dev.header_type() == 1
    }

    /// The host's function.
    pub(crate) fn device(&self) -> &pci::Device {
        &self.dev
    }

    /// Its physical function, or itself.
    pub(crate) fn physical(&self) -> &pci::Device {
        &self.physical
    }

    /// Whose it is.
    pub(crate) fn owner(&self) -> Lifecycle {
        *self.owner.lock()
    }

    /// dom0's handler on its interrupt line.
    pub(crate) fn acknowledger(&self) -> &Acknowledger {
        self.line.handler()
    }

    /// What came of the last reset.
    pub(crate) fn last_reset(&self) -> ResetText {
        ResetText(self.last_reset.load(Ordering::Relaxed))
    }

    fn flag(&self, grant: Grant) -> &AtomicBool {
        match grant {
            Grant::Permissive => &self.permissive,
            Grant::InterruptControl => &self.interrupt_control,
        }
    }

    /// Whether its guest may do that.
    pub(crate) fn may(&self, grant: Grant) -> bool {
        self.flag(grant).load(Ordering::Relaxed)
    }

    /// Allows its guest something, or forbids it again.
    pub(crate) fn set_grant(&self, grant: Grant, on: bool) {
        let changed = self.flag(grant).swap(on, Ordering::Relaxed) != on;
        if changed && on && matches!(grant, Grant::Permissive) {
            let dev = self.dev.as_generic();
            dev_warn!(
                dev,
                "enabling permissive mode configuration space accesses!\n"
            );
            dev_warn!(dev, "permissive mode is potentially unsafe!\n");
        }
    }

    /// Opens a register to its guest, until the assignment ends.
    ///
    /// # Errors
    ///
    /// Why it stays closed.
    pub(crate) fn add_quirk(&self, quirk: Quirk) -> Result<(), QuirkRefusal> {
        self.config.lock().space.add_quirk(quirk)
    }

    /// The configuration for a reader, who must not wait as long as a reset takes: requests are waited
    /// for, for a moment.
    fn peek(&self) -> Result<DualGuard<'_, Config>, Busy> {
        for _ in 0..PEEK_TRIES {
            if let Some(config) = self.config.try_lock() {
                return Ok(config);
            }
            fsleep(Delta::from_millis(PEEK_PAUSE_MS));
        }
        self.config.try_lock().ok_or(Busy)
    }

    /// Calls `each` for the registers with a rule of their own, until it says `false`.
    ///
    /// # Errors
    ///
    /// When a request or a reset has the function in hand.
    pub(crate) fn for_each_field(&self, mut each: impl FnMut(Field) -> bool) -> Result<(), Busy> {
        let config = self.peek()?;
        let _ = config.space.fields().all(&mut each);
        Ok(())
    }

    /// Calls `each` for the registers to which writes of its guest were dropped; returns how many
    /// further writes were dropped.
    ///
    /// # Errors
    ///
    /// As [`Self::for_each_field`].
    pub(crate) fn for_each_denied(&self, each: impl FnMut(&DeniedWrite)) -> Result<u32, Busy> {
        let config = self.peek()?;
        config.denied.iter().for_each(each);
        Ok(config.denied.others())
    }

    /// Puts dom0's handler on the line, or takes it off.
    ///
    /// # Errors
    ///
    /// `ENXIO` without a line; that of the core when the line cannot be shared.
    pub(crate) fn toggle_handler(&self) -> Result {
        let config = self.config.lock();
        if !config.alive {
            return Err(ENOENT);
        }
        self.line.apply(intx::Event::Toggled)
    }

    fn apply(&self, event: Event) -> Result<(), Refusal> {
        let mut owner = self.owner.lock();
        let result = self.change(&mut owner, event);
        self.changed.notify_all();
        result
    }

    fn change(&self, owner: &mut Lifecycle, event: Event) -> Result<(), Refusal> {
        owner.apply(event)?;
        let serves = match *owner {
            Lifecycle::Assigned { domid } => u32::from(domid),
            _ => NOBODY,
        };
        self.serves.store(serves, Ordering::Release);
        Ok(())
    }

    /// Waits for a release in progress, within a bound, while `wanted` says so.
    fn settled(&self, wanted: impl Fn() -> bool) -> kernel::sync::MutexGuard<'_, Lifecycle> {
        let mut owner = self.owner.lock();
        let look = kernel::time::msecs_to_jiffies(RELEASE_LOOK_MS);
        for _ in 0..RELEASE_PATIENCE_MS / RELEASE_LOOK_MS {
            if !matches!(*owner, Lifecycle::Releasing { .. }) || !wanted() {
                break;
            }
            let _ = self.changed.wait_interruptible_timeout(&mut owner, look);
        }
        owner
    }

    /// Adds a function that was taken to the list. A guest that had it before it was unbound keeps it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: it is not in the list then.
    pub(crate) fn add(this: &Arc<Self>) -> Result {
        let holder = registry::holder(this.address)?;
        if let Some(domid) = holder {
            let _ = this.apply(Event::Assign(domid));
            dev_warn!(
                this.dev.as_generic(),
                "stays with domain {}, which had it when it was unbound\n",
                domid
            );
        }
        registry::add_function(this.clone())?;
        // It may have left the guest's table before it could be found in the list.
        if let Some(domid) = holder {
            if registry::holder(this.address).is_ok_and(|now| now != holder) {
                Self::start_release(this, domid);
            }
        }
        Ok(())
    }

    /// Waits while the domain that has it ends, within a bound and as long as `wanted` says so. Its backend may
    /// not have heard of that yet.
    fn outlast_owner(this: &Arc<Self>, domid: u16, wanted: impl Fn() -> bool) {
        for _ in 0..RELEASE_PATIENCE_MS / RELEASE_LOOK_MS {
            let other = match this.owner() {
                Lifecycle::Assigned { domid: other } if other != domid => other,
                _ => return,
            };
            if !xen::domain_exists(other) {
                return Self::start_release(this, other);
            }
            // The toolstack has not begun to end it.
            if !store::has_domain(other).is_ok_and(|has| !has) || !wanted() {
                return;
            }
            fsleep(Delta::from_millis(i64::from(RELEASE_LOOK_MS)));
        }
    }

    /// Gives it to a guest. Waits for a release in progress while `wanted` says so.
    ///
    /// # Errors
    ///
    /// What the table refuses, or that of the PCI core.
    pub(crate) fn assign(
        this: &Arc<Self>,
        guest: &Arc<Exports>,
        wanted: impl Fn() -> bool,
    ) -> Result<Result<(), Refusal>> {
        Self::outlast_owner(this, guest.domid, &wanted);
        this.assign_settled(guest, wanted)
    }

    fn assign_settled(
        &self,
        guest: &Arc<Exports>,
        wanted: impl Fn() -> bool,
    ) -> Result<Result<(), Refusal>> {
        let domid = guest.domid;
        let mut owner = self.settled(wanted);
        if let Err(refusal) = self.change(&mut owner, Event::Assign(domid)) {
            return Ok(Err(refusal));
        }
        drop(owner);
        let mut config = self.config.lock();
        if !config.alive {
            // Unbound since: the owner must not be recorded after `let_go` has removed it.
            return Ok(Err(Refusal::Gone));
        }
        config.space.reset_for_assignment();
        config.denied.clear();
        config.refused.set(Refused::NONE);
        if let Err(e) = self.dev.set_owner(domid) {
            drop(config);
            let _ = self.apply(Event::Release);
            let _ = self.apply(Event::Released(Ok(())));
            return Err(e);
        }
        config.guest = Some(guest.clone());
        self.intx(&mut config, intx::Event::Assigned);
        Ok(Ok(()))
    }

    /// Takes it away from guest `domid`, if that has it; the work is done by the function's own work item.
    pub(crate) fn start_release(this: &Arc<Self>, domid: u16) {
        // Unbound meanwhile: if it was bound again, that one is the guest's now.
        let function = match this.owner() {
            Lifecycle::Gone => registry::find_function(this.address),
            _ => Some(this.clone()),
        };
        let Some(function) = function else { return };
        if function.leave(domid) {
            QUEUE.add::<Self, 0>(function);
        }
    }

    /// `true` if guest `domid` had it.
    fn leave(&self, domid: u16) -> bool {
        let mut owner = self.owner.lock();
        let left = *owner == Lifecycle::Assigned { domid }
            && self.change(&mut owner, Event::Release).is_ok();
        self.changed.notify_all();
        left
    }

    /// The driver is unbound: gives it back to dom0.
    pub(crate) fn let_go(&self, lock: &pci::Locked<'_>) {
        let before = *self.owner.lock();
        if let Lifecycle::Assigned { domid } = before {
            let dev = self.dev.as_generic();
            let address = Show(self.address);
            dev_warn!(
                dev,
                "****** removing device {} while still in-use by domain {}! ******\n",
                address,
                domid
            );
            dev_warn!(
                dev,
                "****** domain {} now reads it as absent, and its driver there fails ******\n",
                domid
            );
            dev_warn!(
                dev,
                "****** memory and interrupts of it stay mapped in domain {} until that ends ******\n",
                domid
            );
            dev_warn!(
                dev,
                "****** shut domain {} down before another driver uses the device ******\n",
                domid
            );
        }
        let _ = self.apply(Event::Unbind);
        // From here on no request and no assignment touches it.
        self.config.lock().alive = false;
        if let Err(why) = self.take_back(lock) {
            dev_warn!(
                self.dev.as_generic(),
                "goes back to dom0, but {}\n",
                Show(why)
            );
        }
        match self.dev.prepare_msix(false) {
            Ok(()) | Err(ENODEV) => {}
            Err(e) => dev_warn!(self.dev.as_generic(), "MSI-X release failed ({:?})\n", e),
        }
        self.dev.set_assigned(false);
    }

    /// Stops the function, resets it and restores its configuration.
    ///
    /// # Errors
    ///
    /// When it may not be clean. A function that has no way to be reset is not an error, unless the
    /// administrator says so.
    fn take_back(&self, lock: &pci::Locked<'_>) -> Result<(), ResetFailure> {
        let mut config = self.config.lock();
        let dev = &self.dev;
        config.give_vectors_back();
        config.guest = None;
        config.space.clear_quirks();
        for grant in [Grant::Permissive, Grant::InterruptControl] {
            self.flag(grant).store(false, Ordering::Relaxed);
        }
        let _ = self.line.apply(intx::Event::Released);
        // First no DMA and no interrupts, then the reset (XSA-302): it leaves the guest quiet even if
        // it has no way to be reset. A guest may have put it to sleep, where its memory cannot be
        // reached for the interrupts' end, and where it cannot be reset or restored.
        dev.set_bus_master(false);
        let _ = dev.wake(&config.golden);
        quiesce(dev);
        let reset = lock.reset();
        self.last_reset.store(errno(reset), Ordering::Relaxed);
        let reset = match reset {
            Err(ENOTTY) if REQUIRE_RESET.get() => Err(ResetFailure::NoMethod),
            Err(ENOTTY) => {
                dev_warn!(dev.as_generic(), "has no way to be reset\n");
                Ok(())
            }
            result => result.map_err(|_| ResetFailure::Reset),
        };
        let restored = dev
            .restore_state(&config.golden)
            .map_err(|_| ResetFailure::Restore);
        quiesce(dev);
        dev.clear_owner();
        reset.and(restored)
    }

    /// Resets it for the administrator (`do_flr`), by the best method there is.
    ///
    /// First the function's own methods, as sysfs' `reset` tries them. Only when none works: its
    /// slot or bus, if every other function there is ours and either free or in the same guest. A
    /// guest that has it keeps its configuration; nobody's gets the state of when it was taken.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when there is no method, `EBUSY` when it is not released in time, that of the reset.
    pub(crate) fn reset_for_admin(&self) -> Result {
        let owner = *self.settled(|| true);
        if matches!(owner, Lifecycle::Releasing { .. }) {
            return Err(EBUSY);
        }
        let mut result = self.reset_alone();
        if matches!(result, Err(ENOTTY | EIO)) {
            // A bus that cannot be reset does not make a method that failed one that is not there.
            result = match self.reset_bus() {
                Err(ENOTTY) => result,
                by_bus => by_bus,
            };
        }
        self.last_reset.store(errno(result), Ordering::Relaxed);
        if result.is_ok() {
            // Refused unless it was quarantined, which is then over.
            let _ = self.apply(Event::ClearQuarantine);
        }
        result
    }

    fn reset_alone(&self) -> Result {
        let lock = self.dev.lock();
        // Held over the reset: no request of a guest, and no assignment.
        let config = self.config.lock();
        if !config.alive {
            return Err(ENODEV);
        }
        if config.guest.is_some() {
            return config.keeping_guest_bits(&self.dev, |golden| lock.reset_and_restore(golden));
        }
        let result = lock.reset();
        let restored = self.dev.restore_state(&config.golden);
        quiesce(&self.dev);
        result.and(restored)
    }

    /// Resets its slot or bus, if nobody else would feel that.
    ///
    /// All functions there are held from before that is looked at until each has its configuration: an
    /// assignment or a release that comes meanwhile waits, and so do the requests of a guest. They are only
    /// tried, as their locks have no order; the core then tries their device locks.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when there is no such way, or others are on the bus; `EBUSY` when one of them is in hand; else that
    /// of the reset, or of writing a configuration back.
    fn reset_bus(&self) -> Result {
        let all = registry::functions(|f| f.dev.is_beside(&self.dev))?;
        let mut held = KVec::with_capacity(all.len(), GFP_KERNEL)?;
        for function in &all {
            held.push(function.config.try_lock().ok_or(EBUSY)?, GFP_KERNEL)?;
        }
        let owner = self.owner();
        let is_ours = |other: &pci::Device| {
            all.iter().any(|f| {
                let theirs = f.owner();
                f.dev == *other
                    && !f.is_bridge()
                    && (theirs == Lifecycle::Available || theirs == owner)
            })
        };
        if !self.dev.all_others_on_bus(is_ours) || held.iter().any(|config| !config.alive) {
            return Err(ENOTTY);
        }
        let mut bits = KVec::with_capacity(all.len(), GFP_KERNEL)?;
        for (function, config) in all.iter().zip(&held) {
            bits.push(config.guest_bits(&function.dev), GFP_KERNEL)?;
        }
        match self.dev.reset_bus() {
            // Somebody of dom0 has one of them in hand.
            Err(EAGAIN) => return Err(EBUSY),
            result => result?,
        }
        let mut result = Ok(());
        for ((function, config), bits) in all.iter().zip(&held).zip(&bits) {
            let restored = function.dev.restore_state(&config.golden);
            match config.guest {
                Some(_) => config.give_back(&function.dev, bits),
                None => quiesce(&function.dev),
            }
            result = result.and(restored);
        }
        result
    }

    /// One step of the recovery from an error of the hierarchy: asks the guest that has it. Sleeps
    /// up to the server's patience; the device lock is held.
    pub(crate) fn ask_guest(&self, step: Step) -> Verdict {
        let guest = {
            let config = self.config.lock();
            // The reset of the link took its addresses and capabilities with it, and a guest cannot write
            // them back. What the guest had switched on, its driver does again.
            if step == Step::SlotReset {
                if self.dev.restore_state(&config.golden).is_err() {
                    return Verdict::Disconnect;
                }
                // Off in the device, so that the guest can switch it on again.
                self.dev.set_bus_master(false);
            }
            config.guest.clone()
        };
        let Some(guest) = guest else {
            return step.default_verdict();
        };
        let answer = guest.recover(self.address, step);
        let owner = self.owner();
        let alone = || {
            self.dev.all_others_on_bus(|other| {
                let ours = other.address().and_then(registry::find_function);
                ours.is_some_and(|other| !other.is_bridge() && other.owner() == owner)
            })
        };
        let decision = aer::decide(step, answer, alone());
        if decision.failed {
            guest.cannot_recover();
        }
        if decision.failed {
            if let Some(left_out) = guest.line() {
                dev_err!(
                    self.dev.as_generic(),
                    "an error of its PCIe link, and domain {} cannot recover: {:?} to {:?}{}\n",
                    guest.domid,
                    answer,
                    step,
                    Show(left_out)
                );
            }
        }
        decision.verdict
    }

    fn is_assigned_to(&self, domid: u16) -> bool {
        self.serves.load(Ordering::Acquire) == u32::from(domid)
    }

    /// Serves one request of guest `domid` in atomic context, if it cannot sleep and no thread is at
    /// work on the function. `None` otherwise: nothing has happened then.
    pub(crate) fn serve_atomic(&self, domid: u16, request: &Request) -> Option<Reply> {
        let (offset, size, written) = match *request {
            Request::ConfRead { offset, size, .. } => (offset, size, None),
            Request::ConfWrite {
                offset,
                size,
                value,
                ..
            } => (offset, size, Some(value)),
            _ => return None,
        };
        let mut config = self.config.try_lock_atomic()?;
        if !config.alive || !self.is_assigned_to(domid) {
            return Some(Reply::failed(OpStatus::DevNotFound));
        }
        let result = ConfigAccess::new(offset, size, self.dev.config_size());
        let result = match (result, written) {
            (Ok(access), Some(_)) if config.space.may_sleep(access, true) => return None,
            (Ok(_), Some(value)) => self.config_write(&mut config, offset, size, value),
            (Ok(access), None) => config.read(&self.dev, access),
            (Err(status), _) => Err(status),
        };
        Some(result.map_or_else(Reply::failed, Reply::done))
    }

    /// Serves one request of guest `domid`; vectors of MSI-X go into `entries`. Sleeps.
    pub(crate) fn serve(&self, domid: u16, request: &Request, entries: &mut [MsixEntry]) -> Reply {
        let mut config = self.config.lock();
        if !config.alive || !self.is_assigned_to(domid) {
            return Reply::failed(OpStatus::DevNotFound);
        }
        let result = match *request {
            Request::ConfRead { offset, size, .. } => self.config_read(&mut config, offset, size),
            Request::ConfWrite {
                offset,
                size,
                value,
                ..
            } => {
                let was_enabled = config.space.is_enabled_by_guest();
                let result = self.config_write(&mut config, offset, size, value);
                if result.is_ok() {
                    self.after_write(&mut config, was_enabled);
                }
                result
            }
            Request::EnableMsi { .. } => config
                .with_vectors(1, |config| self.enable_msi(config))
                .inspect(|_| self.intx(&mut config, intx::Event::MessagesOn)),
            Request::EnableMsix { count, .. } => config
                .with_vectors(count.get(), |config| self.enable_msix(config, entries))
                .inspect(|_| self.intx(&mut config, intx::Event::MessagesOn)),
            // Either request ends whichever of the two is on: when the kernel's MSI code takes down the
            // vectors of MSI-X, the stock frontend hears of MSI.
            Request::DisableMsi { .. } | Request::DisableMsix { .. } => {
                if self.dev.msi_state() != (false, false) {
                    if let Some(guest) = &config.guest {
                        guest.switched();
                    }
                    self.end_messages(&config);
                    config.give_vectors_back();
                    self.intx(&mut config, intx::Event::MessagesOff);
                }
                Ok(self.line.handler().pirq())
            }
        };
        result.map_or_else(Reply::failed, Reply::done)
    }

    /// Ends MSI and MSI-X. The kernel and Xen reach into the function's memory for that, which it does not
    /// answer for while it sleeps: so it is woken without bus mastering, and is as before afterwards.
    fn end_messages(&self, config: &Config) {
        let dev = &self.dev;
        let end = || {
            dev.disable_msix();
            dev.disable_msi();
        };
        let slept = dev.power_state();
        if slept == 0 {
            return end();
        }
        config.keeping_guest_bits(dev, |golden| {
            dev.set_bus_master(false);
            // One that cannot be woken loses them nevertheless: nobody else would take them back.
            let _ = dev.wake(golden);
            end();
        });
        let _ = dev.set_power_state(slept);
    }

    /// Tells dom0's handler on the line what happened. An error is said: without the handler dom0 may
    /// switch a shared line off.
    fn intx(&self, config: &mut Config, event: intx::Event) {
        match self.line.apply(event) {
            // No pin, or not connected: nothing to acknowledge.
            Ok(()) | Err(ENXIO) => {}
            Err(e) => {
                if let Some(left_out) = config.line() {
                    dev_warn!(
                        self.dev.as_generic(),
                        "dom0 has no handler on its interrupt line ({:?}){}\n",
                        e,
                        Show(left_out)
                    );
                }
            }
        }
    }

    /// Follows a write that has enabled or disabled the function with dom0's handler. Sleeps: the event
    /// handler serves no such write, and does not look whether somebody else enabled it meanwhile.
    fn after_write(&self, config: &mut Config, was_enabled: bool) {
        let (msi, msix) = self.dev.msi_state();
        match (was_enabled, config.space.is_enabled_by_guest()) {
            (false, true) => {
                let messages = msi || msix;
                self.intx(config, intx::Event::Enabled { messages });
            }
            (true, false) => self.intx(config, intx::Event::Disabled),
            _ => {}
        }
    }

    fn config_read(&self, config: &mut Config, offset: i32, size: i32) -> Result<u32, OpStatus> {
        let access = ConfigAccess::new(offset, size, self.dev.config_size())?;
        config.read(&self.dev, access)
    }

    fn config_write(
        &self,
        config: &mut Config,
        offset: i32,
        size: i32,
        value: u32,
    ) -> Result<u32, OpStatus> {
        let access = ConfigAccess::new(offset, size, self.dev.config_size())?;
        let flags = config::Flags {
            permissive: PERMISSIVE.get() || self.may(Grant::Permissive),
            allow_interrupt_control: self.may(Grant::InterruptControl),
        };
        let outcome = config.write(&self.dev, access, value, flags)?;
        if outcome.dropped != 0 {
            self.note_dropped(config, access, value, outcome.dropped);
        }
        Ok(0)
    }

    /// Counts a write of which bits were dropped, and logs the assignment's first one.
    fn note_dropped(&self, config: &mut Config, access: ConfigAccess, value: u32, dropped: u32) {
        let first = config.denied.iter().next().is_none();
        let noted = config.denied.note(access, dropped).is_some();
        let quirk = QuirkLine::for_dropped(self.address, access, dropped);
        let (true, Some(quirk)) = (first && noted, quirk) else {
            return;
        };
        if let Some(left_out) = config.line() {
            dev_warn!(
                self.dev.as_generic(),
                "the guest's write at offset {:#x}, size {}, value {:#x} is dropped; to allow it: echo {} >/sys/bus/pci/drivers/pciback/quirks (further ones are only counted: debugfs, xen-pciback/denied_writes){}\n",
                access.offset(),
                access.width().bytes(),
                value,
                Show(quirk),
                Show(left_out)
            );
        }
    }

    /// Enables `count` vectors of what `name` says, MSI or MSI-X. The kernel's own code has a line in the log
    /// for each time that Xen refuses it, and no limit for them.
    fn enable_messages<T>(
        &self,
        config: &Config,
        (name, count): (&str, u16),
        enable: impl FnOnce() -> Result<T>,
    ) -> Result<T, OpStatus> {
        let guest = config.guest.as_ref().ok_or(OpStatus::DevNotFound)?;
        guest.switched();
        let refused = config.refused.get();
        match guest.try_aloud(refused.is_fresh(count), enable) {
            None => Err(OpStatus::OpFailed),
            Some(result) => result.map_err(|e| {
                config.refused.set(refused.after(count));
                if let Some(left_out) = guest.line() {
                    dev_warn!(
                        self.dev.as_generic(),
                        "cannot enable {} for the guest ({:?}){}\n",
                        name,
                        e,
                        Show(left_out)
                    );
                }
                OpStatus::OpFailed
            }),
        }
    }

    fn enable_msi(&self, config: &Config) -> Result<u32, OpStatus> {
        if self.dev.msi_state() != (false, false) || self.dev.power_state() != 0 {
            return Err(OpStatus::OpFailed);
        }
        match self.enable_messages(config, ("MSI", 1), || self.dev.enable_msi())? {
            0 => {
                self.dev.disable_msi();
                Err(OpStatus::OpFailed)
            }
            pirq => Ok(pirq),
        }
    }

    /// The table can only be reached while the function is awake and decodes memory.
    fn enable_msix(&self, config: &Config, wanted: &mut [MsixEntry]) -> Result<u32, OpStatus> {
        let dev = &self.dev;
        if dev.msi_state() != (false, false)
            || dev.power_state() != 0
            || !self.physical.decodes_memory()
        {
            return Err(OpStatus::OpFailed);
        }
        let table = self.dev.msix_table_size();
        let mut entries = [bindings::msix_entry::default(); MAX_MSIX_VECTORS as usize];
        let mut seen = [false; 2048];
        for (entry, wanted) in entries.iter_mut().zip(wanted.iter()) {
            let place = seen
                .get_mut(usize::from(wanted.entry))
                .ok_or(OpStatus::OpFailed)?;
            if wanted.entry >= table || core::mem::replace(place, true) {
                return Err(OpStatus::OpFailed);
            }
            entry.entry = wanted.entry;
        }
        let entries = entries.get_mut(..wanted.len()).ok_or(OpStatus::OpFailed)?;
        // CAST: at most 128.
        let count = entries.len() as u16;
        self.enable_messages(config, ("MSI-X", count), || self.dev.enable_msix(entries))?;
        for (wanted, entry) in wanted.iter_mut().zip(entries.iter()) {
            match u16::try_from(entry.vector) {
                Ok(pirq @ 1..) => wanted.vector = pirq,
                _ => {
                    self.dev.disable_msix();
                    return Err(OpStatus::OpFailed);
                }
            }
        }
        Ok(0)
    }
}

/// The result of a reset, as `status` shows it.
pub(crate) struct ResetText(i32);

impl core::fmt::Display for ResetText {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            0 => f.write_str("done"),
            NO_RESET_YET => f.write_str("untried"),
            errno if errno == ENOTTY.to_errno() => f.write_str("no-method"),
            errno => write!(f, "failed({errno})"),
        }
    }
}

fn errno(result: Result) -> i32 {
    result.map_or_else(Error::to_errno, |()| 0)
}

/// Says which others a guest can reach through a page or a line that it shares with them (XSA-461).
fn warn_of_neighbours(dev: &pci::Device) {
    if let Some((other, bar)) = dev.page_neighbour() {
        dev_warn!(
            dev.as_generic(),
            "BAR {} shares a page with {}: a guest with one of them can reach the other\n",
            bar,
            other.name()
        );
    }
    if let Some(other) = dev.line_neighbour() {
        dev_warn!(
            dev.as_generic(),
            "shares its interrupt line with {} ({}): a guest can slow that down or stop it\n",
            other.name(),
            other.driver_name()
        );
    }
}

/// No DMA, no interrupts of any kind; the function is awake. Memory and I/O decoding stay on: an access of the
/// host to a function without them can bring the machine down (XSA-120).
fn quiesce(dev: &pci::Device) {
    dev.disable_msix();
    dev.disable_msi();
    if dev.is_enabled() {
        dev.disable();
    }
    dev.set_bus_master(false);
}

fn report_reset(dev: &pci::Device, result: Result) {
    match result {
        Ok(()) => {}
        Err(ENOTTY) => dev_info!(dev.as_generic(), "has no way to be reset\n"),
        Err(e) => dev_warn!(dev.as_generic(), "reset failed ({:?})\n", e),
    }
}

/// The hardware as the configuration space engine sees it.
struct Host<'a> {
    dev: &'a pci::Device,
    golden: &'a SavedState,
    /// Whose request it is.
    guest: Option<&'a Exports>,
}

impl Host<'_> {
    /// See [`Exports::switched`].
    fn switched(&self) {
        if let Some(guest) = self.guest {
            guest.switched();
        }
    }
}

impl config::Function for Host<'_> {
    fn config_size(&self) -> u16 {
        self.dev.config_size()
    }

    fn read(&mut self, access: ConfigAccess) -> Result<u32, OpStatus> {
        self.dev
            .read_config(access.offset(), access.width())
            .map_err(OpStatus::from_pcibios)
    }

    fn write(&mut self, access: ConfigAccess, value: u32) -> Result<(), OpStatus> {
        self.dev
            .write_config(access.offset(), access.width(), value)
            .map_err(OpStatus::from_pcibios)
    }

    fn ids(&self) -> (u16, u16) {
        self.dev.ids()
    }

    fn interrupt_line(&self) -> u8 {
        // A number above 255 has no place in the register: the guest then sees none.
        u8::try_from(self.dev.irq()).unwrap_or(0)
    }

    fn is_enabled(&self) -> bool {
        self.dev.is_enabled()
    }

    fn enable(&mut self) -> Result<(), OpStatus> {
        self.switched();
        // The core would wake it by itself, and not give it back all that it forgot.
        self.dev
            .wake(self.golden)
            .and_then(|()| self.dev.enable())
            .map_err(|e| OpStatus::from_errno(e.to_errno()))
    }

    fn is_bus_master(&self) -> bool {
        self.dev.is_bus_master()
    }

    fn set_bus_master(&mut self, on: bool) {
        self.dev.set_bus_master(on);
    }

    fn set_mwi(&mut self, on: bool) -> Result<(), OpStatus> {
        self.dev
            .set_mwi(on)
            .map_err(|e| OpStatus::from_errno(e.to_errno()))
    }

    fn set_intx(&mut self, on: bool) {
        self.dev.set_intx(on);
    }

    fn set_power_state(&mut self, state: u8) -> Result<(), OpStatus> {
        self.switched();
        match state {
            0 => self.dev.wake(self.golden),
            _ => self.dev.set_power_state(state),
        }
        .map_err(|e| OpStatus::from_errno(e.to_errno()))
    }

    fn reset(&mut self) -> Result<(), OpStatus> {
        if let Some(guest) = self.guest {
            guest.pace_reset().map_err(|_| OpStatus::OpFailed)?;
        }
        // Whoever takes the function away holds the device lock and waits for this request: so the
        // lock is only tried, and not for long.
        let reset = || self.dev.try_reset(self.golden);
        for _ in 0..GUEST_RESET_TRIES {
            let result = match self.guest {
                Some(guest) => guest.try_reset(reset).ok_or(OpStatus::OpFailed)?,
                None => reset(),
            };
            match result {
                Err(EAGAIN) => fsleep(Delta::from_millis(GUEST_RESET_PAUSE_MS)),
                result => return result.map_err(|e| OpStatus::from_errno(e.to_errno())),
            }
        }
        Err(OpStatus::AccessDenied)
    }

    fn set_max_read_request(&mut self, bytes: u16) -> Result<(), OpStatus> {
        self.dev
            .set_max_read_request(bytes)
            .map_err(|e| OpStatus::from_errno(e.to_errno()))
    }
}
