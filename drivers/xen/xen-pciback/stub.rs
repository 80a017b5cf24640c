// SPDX-License-Identifier: GPL-2.0

//! The PCI driver `pciback`: decides which functions it takes, and hears when they go.
//!
//! *Callers*: the PCI core, with the function's device lock held. *Owns* nothing itself: a function
//! that is taken goes into the [`crate::registry`].

use crate::{function::Function, registry, HIDE_FORCE};
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{
    prelude::*,
    str::CStr,
    sync::{Arc, ArcBorrow},
};
use pciif::{
    aer::{Step, Verdict},
    lifecycle::Lifecycle,
    slot::{HideItems, SlotPattern},
};
use xen::{log::Show, pci};

/// Functions are taken only once the files that control them are there.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Starts to take functions: first those that `hide=` lists. A bad item is named and skipped: a typing
/// error must not leave the other functions to dom0.
pub(crate) fn open(hide: Option<&CStr>, stub: &pci::Registration<Function>) -> Result {
    OPEN.store(true, Ordering::Release);
    let text = hide.map_or(b"".as_slice(), CStr::to_bytes);
    for item in HideItems::new(text) {
        match item {
            Ok(pattern) => registry::add_slots(&pattern)?,
            Err(e) => pr_err!("hide: {}\n", Show(e)),
        }
    }
    for pattern in HideItems::new(text).flatten() {
        free(&pattern);
    }
    stub.offer_all()
}

/// No function is taken any more, in case that the module's start fails later.
pub(crate) fn close() {
    OPEN.store(false, Ordering::Release);
}

/// Says which functions of a pattern have another driver; with `hide_force` takes that off, unless
/// dom0 itself uses the function.
fn free(pattern: &SlotPattern) {
    let found = pattern.addresses().filter_map(pci::Device::find);
    for dev in found.filter(|dev| dev.has_driver()) {
        let generic = dev.as_generic();
        let driver = dev.driver_name();
        if !HIDE_FORCE.get() {
            dev_err!(
                generic,
                "is listed in hide=, but driver {} has it: unbind that first, or load with hide_force=1\n",
                driver
            );
        } else if let Some(user) = dev.user() {
            dev_err!(
                generic,
                "is listed in hide=, but stays with driver {} in spite of hide_force: {}\n",
                driver,
                &*user
            );
        } else {
            dev_warn!(generic, "is taken from driver {} by hide_force\n", driver);
            dev.release_driver();
        }
    }
}

/// Functions that `hide=` lists and that no other driver may take, while it lives.
///
/// Built in, our own start comes at `device_initcall`, as the PCI core assigns resources and routes
/// interrupts until then; drivers that are linked before us start at that level, too. So at
/// `fs_initcall` [`reserve_early`] keeps the listed functions for us, and our start ends that.
#[cfg(not(MODULE))]
pub(crate) struct Reserved(());

#[cfg(not(MODULE))]
impl Reserved {
    /// Takes over what [`reserve_early`] did.
    pub(crate) fn take_over() -> Self {
        Self(())
    }
}

#[cfg(not(MODULE))]
impl Drop for Reserved {
    fn drop(&mut self) {
        for_each_hidden(|dev| dev.unreserve());
    }
}

/// Reserves what `hide=` lists. Bad items are named when our own start comes.
#[cfg(not(MODULE))]
pub(crate) fn reserve_early() {
    if !xen::is_initial_domain() {
        return;
    }
    for_each_hidden(|dev| {
        if let Err(e) = dev.reserve(c"pciback") {
            dev_err!(
                dev.as_generic(),
                "hide: cannot be kept from other drivers: {:?}\n",
                e
            );
        }
    });
}

#[cfg(not(MODULE))]
fn for_each_hidden(each: impl Fn(&pci::Device)) {
    let text = crate::HIDE.get().map_or(b"".as_slice(), CStr::to_bytes);
    let listed = |dev: &pci::Device| {
        let matches = |address| HideItems::new(text).flatten().any(|p| p.matches(address));
        dev.address().is_some_and(matches)
    };
    pci::any(|dev| {
        if listed(dev) || dev.any_above(listed) {
            each(dev);
        }
        false
    });
}

/// Whether the function or a bridge above it is listed: a listed bridge means all that is below it.
fn is_listed(dev: &pci::Device) -> bool {
    let listed = |dev: &pci::Device| dev.address().is_some_and(registry::has_slot);
    listed(dev) || dev.any_above(listed)
}

impl pci::Driver for Function {
    fn probe(dev: &pci::Locked<'_>) -> Result<Option<Arc<Self>>> {
        if !OPEN.load(Ordering::Acquire) {
            return Ok(None);
        }
        let listed = is_listed(dev);
        let by_override = !listed && dev.is_override_match();
        if !listed && !by_override {
            return Ok(None);
        }
        let generic = dev.as_generic();
        let Some(address) = dev.address() else {
            dev_err!(
                generic,
                "is in a PCI segment above ffff, which Xen cannot name\n"
            );
            return Err(ENODEV);
        };
        if dev.header_type() > 1 {
            dev_err!(
                generic,
                "has header type {}; only 0 and 1 can be taken\n",
                dev.header_type()
            );
            return Err(ENODEV);
        }
        dev_info!(generic, "seizing device\n");
        let function = Function::seize(dev, address, by_override)
            .inspect_err(|e| dev_err!(generic, "cannot be taken: {:?}\n", e))?;
        let listed = if by_override {
            registry::add_slots(&SlotPattern::from(address))
        } else {
            Ok(())
        };
        // Without memory for the lists it goes back as it came.
        listed
            .and_then(|()| Function::add(&function))
            .inspect_err(|_| function.let_go(dev))?;
        Ok(Some(function))
    }

    fn remove(this: Arc<Self>, dev: &pci::Locked<'_>) {
        registry::remove_function(&this);
        if this.by_override() {
            // Else the next probe would take it again, though nobody asks for it any more.
            registry::remove_slots(&SlotPattern::from(this.address()));
        }
        this.let_go(dev);
    }

    fn recover(this: ArcBorrow<'_, Self>, step: Step) -> Verdict {
        this.ask_guest(step)
    }

    fn physical_goes(dev: &pci::Device) {
        let is_below = |f: &Function| f.device().is_vf() && f.physical() == dev;
        let Ok(below) = registry::functions(is_below) else {
            return;
        };
        for function in below {
            match function.owner() {
                Lifecycle::Assigned { domid } | Lifecycle::Releasing { domid } => dev_warn!(
                    function.device().as_generic(),
                    "domain {} has it, while its physical function {} loses its driver\n",
                    domid,
                    dev.name()
                ),
                _ => function.device().release_driver(),
            }
        }
    }
}
