// SPDX-License-Identifier: GPL-2.0

//! The PCI driver `pciback`: decides which functions it takes, and hears when they go.
//!
//! *Callers*: the PCI core, with the function's device lock held. *Owns* nothing itself: a function
//! that is taken goes into the [`crate::registry`].

use crate::{function::Function, registry};
use kernel::{prelude::*, str::CStr, sync::Arc};
use pciif::slot::HideItems;
use xen::{log::Show, pci};

/// Takes what `hide=` lists and no driver has yet. A bad item is named and skipped: a typing error
/// must not leave the other functions to dom0.
pub(crate) fn hide(text: Option<&CStr>, stub: &pci::Registration<Function>) -> Result {
    for item in HideItems::new(text.map_or(b"", CStr::to_bytes)) {
        match item {
            Ok(pattern) => registry::add_slots(&pattern)?,
            Err(e) => pr_err!("hide: {}\n", Show(e)),
        }
    }
    stub.offer_all()
}

/// Whether the function or a bridge above it is listed: a listed bridge means all that is below it.
fn is_listed(dev: &pci::Device) -> bool {
    let mut dev = Some(dev.clone());
    // The depth of a PCI hierarchy is below the number of buses.
    for _ in 0..256 {
        let Some(here) = dev else { return false };
        if here.address().is_some_and(registry::has_slot) {
            return true;
        }
        dev = here.upstream();
    }
    false
}

impl pci::Driver for Function {
    fn probe(dev: pci::Device) -> Result<Option<Arc<Self>>> {
        let listed = is_listed(&dev);
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
        let function = Function::seize(dev.clone(), address, by_override)
            .inspect_err(|e| dev_err!(generic, "cannot be taken: {:?}\n", e))?;
        let listed = if by_override {
            registry::add_slots(&pciif::slot::SlotPattern::from(address))
        } else {
            Ok(())
        };
        // Without memory for the lists it goes back as it came.
        listed
            .and_then(|()| registry::add_function(function.clone()))
            .inspect_err(|_| function.let_go())?;
        Ok(Some(function))
    }

    fn remove(this: Arc<Self>) {
        registry::remove_function(&this);
        if this.by_override() {
            // Else the next probe would take it again, though nobody asks for it any more.
            registry::remove_slots(&pciif::slot::SlotPattern::from(this.address()));
        }
        this.let_go();
    }
}
