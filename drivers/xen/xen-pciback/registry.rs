// SPDX-License-Identifier: GPL-2.0

//! Which addresses are to be taken (`slots`), and which functions have been; which guests there are, from
//! which of them the backend was unbound, and what all of them together have spent.
//!
//! *Owns* these five, for the module's life. *Callers*: [`crate::stub`], [`crate::attributes`],
//! [`crate::backend`], in sleepable context. *Lock*: one mutex, the innermost of all: nothing is taken
//! or waited for inside it.

use crate::{backend::Backend, exports::Exports, function::Function};
use kernel::{prelude::*, sync::Arc};
use pciif::{account::Together, sbdf::Sbdf, slot::SlotPattern};
use xen::{lock::IrqLock, new_irq_lock};

struct Lists {
    slots: KVec<Sbdf>,
    functions: KVec<Arc<Function>>,
    guests: KVec<Arc<Exports>>,
    /// Backends that were unbound from guests that live.
    left: KVec<Arc<Backend>>,
    /// `None` before the module's start and after its end.
    together: Option<Arc<IrqLock<Together>>>,
}

kernel::sync::global_lock! {
    // SAFETY: `Slots::init` is called before anything else of this file.
    unsafe(uninit) static LISTS: Mutex<Lists> = Lists {
        slots: KVec::new(), functions: KVec::new(), guests: KVec::new(), left: KVec::new(),
        together: None,
    };
}

/// Empties the lists when the module goes.
pub(crate) struct Slots(());

impl Slots {
    /// Makes the lists usable. Called once, by the module's start.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn init() -> Result<Self> {
        let together = new_irq_lock!(Together::new(), "pciback_together");
        let together = Arc::pin_init(together, GFP_KERNEL)?;
        // SAFETY: called once, before the driver is registered.
        unsafe { LISTS.init() };
        LISTS.lock().together = Some(together);
        Ok(Self(()))
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let mut lists = LISTS.lock();
        lists.slots = KVec::new();
        lists.functions = KVec::new();
        lists.guests = KVec::new();
        lists.left = KVec::new();
        lists.together = None;
    }
}

/// What all guests together have spent in interrupt context.
///
/// # Errors
///
/// `ENODEV` when the module goes.
pub(crate) fn together() -> Result<Arc<IrqLock<Together>>> {
    LISTS.lock().together.clone().ok_or(ENODEV)
}

/// Adds the addresses of a pattern, in order; those that are there already stay where they are.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn add_slots(pattern: &SlotPattern) -> Result {
    let mut lists = LISTS.lock();
    for address in pattern.addresses() {
        if !lists.slots.contains(&address) {
            lists.slots.push(address, GFP_KERNEL)?;
        }
    }
    Ok(())
}

/// Removes the addresses that the pattern matches; tells how many there were.
pub(crate) fn remove_slots(pattern: &SlotPattern) -> usize {
    let mut lists = LISTS.lock();
    let before = lists.slots.len();
    lists.slots.retain(|address| !pattern.matches(*address));
    before.saturating_sub(lists.slots.len())
}

/// Whether an address is in the list.
pub(crate) fn has_slot(address: Sbdf) -> bool {
    LISTS.lock().slots.contains(&address)
}

/// Calls `each` for the addresses in the order in which they were added, until it says `false`.
/// `each` must not sleep nor take locks.
pub(crate) fn for_each_slot(mut each: impl FnMut(Sbdf) -> bool) {
    for address in LISTS.lock().slots.iter() {
        if !each(*address) {
            break;
        }
    }
}

/// Adds a function that was taken.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn add_function(function: Arc<Function>) -> Result {
    LISTS.lock().functions.push(function, GFP_KERNEL)?;
    Ok(())
}

/// Removes a function that is let go.
pub(crate) fn remove_function(function: &Arc<Function>) {
    LISTS
        .lock()
        .functions
        .retain(|other| !Arc::ptr_eq(other, function));
}

/// The function at a host address.
pub(crate) fn find_function(address: Sbdf) -> Option<Arc<Function>> {
    LISTS
        .lock()
        .functions
        .iter()
        .find(|f| f.address() == address)
        .cloned()
}

/// Calls `each` for the functions that were taken, the last one first, until it says `false`;
/// conditions as for [`for_each_slot`].
pub(crate) fn for_each_function(mut each: impl FnMut(&Function) -> bool) {
    for function in LISTS.lock().functions.iter().rev() {
        if !each(function) {
            break;
        }
    }
}

/// The functions that were taken and for which `wanted` holds, for work that sleeps.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn functions(wanted: impl Fn(&Function) -> bool) -> Result<KVec<Arc<Function>>> {
    let mut all = KVec::new();
    for function in LISTS.lock().functions.iter().filter(|f| wanted(f)) {
        all.push(function.clone(), GFP_KERNEL)?;
    }
    Ok(all)
}

/// Adds a guest whose backend begins.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn add_guest(guest: Arc<Exports>) -> Result {
    LISTS.lock().guests.push(guest, GFP_KERNEL)?;
    Ok(())
}

/// Removes a guest whose backend ends.
pub(crate) fn remove_guest(guest: &Arc<Exports>) {
    LISTS
        .lock()
        .guests
        .retain(|other| !Arc::ptr_eq(other, guest));
}

/// The guest in whose table a function is, bound to us or not.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn holder(address: Sbdf) -> Result<Option<u16>> {
    let guests = guests()?;
    let mut holders = guests
        .iter()
        .filter(|guest| guest.place_of(address).is_some());
    Ok(holders.next().map(|guest| guest.domid))
}

/// Adds a backend that was unbound from a guest that lives.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn add_left(backend: Arc<Backend>) -> Result {
    LISTS.lock().left.push(backend, GFP_KERNEL)?;
    Ok(())
}

/// Takes one of those backends for which `wanted` holds out of the list. `wanted` must not sleep nor take
/// locks.
pub(crate) fn take_left(wanted: impl Fn(&Backend) -> bool) -> Option<Arc<Backend>> {
    let mut lists = LISTS.lock();
    let at = lists.left.iter().position(|backend| wanted(backend))?;
    lists.left.remove(at).ok()
}

/// All guests, in the order in which their backends began.
///
/// # Errors
///
/// `ENOMEM`.
pub(crate) fn guests() -> Result<KVec<Arc<Exports>>> {
    let mut all = KVec::new();
    for guest in LISTS.lock().guests.iter() {
        all.push(guest.clone(), GFP_KERNEL)?;
    }
    Ok(all)
}
