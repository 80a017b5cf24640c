// SPDX-License-Identifier: GPL-2.0

//! Root buses: the PCI core's way to the transport, scanning and removal.
//!
//! *Owns* the root buses, and the known constants of the functions on them. *Callers*:
//! [`crate::device`], in sleepable context, one at a time (its mutex); the accessors are called by
//! the PCI core in any context. *Lock order*: the device's mutex, then the PCI core's rescan lock,
//! then the transport's or that of the constants; these two are never held together.
//!
//! # Constants
//!
//! A read goes through the function's [`ConstantCache`] (`pciif::cache` lists the registers and says
//! why each is sound) in the accessor, so that every reader has it: drivers, the PCI core, lspci through
//! sysfs. It is dropped as a whole at each rescan, when error recovery has reset the function, and
//! when the link loses a request. The parameter `no_cache` sends everything to the backend.
//!
//! # The end of a bus
//!
//! The PCI core frees a root bus with its last user, and then calls [`release`], which frees what
//! the accessors need. [`RootBus`] waits for that, so that page, event channel and module outlive
//! the bus. Somebody who keeps a reference for longer than [`LAST_USER`] keeps the module, for ever.

use crate::transport::{Link, Transport};
use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
use kernel::{
    bindings, ffi,
    prelude::*,
    sync::Arc,
    time::{delay::fsleep, Delta},
    types::NotThreadSafe,
};
use pciif::{
    access::ConfigAccess,
    cache::ConstantCache,
    op::{pcibios, OpStatus, Opcode},
    sbdf::{Devfn, Sbdf},
    wire::PciOp,
};
use xen::{lock::IrqLock, new_irq_lock, pci::Device, sys};

xen::param!("xen_pcifront", NO_CACHE: Flag, "no_cache", param_ops_bool, "bool", 0o644,
    "Ask the backend for constant registers, too, instead of remembering them");

/// Bytes of the largest configuration space.
const CONFIG_BYTES: u16 = 4096;
/// How long to wait for the last user of a bus, in ms.
const LAST_USER: i64 = 10_000;

/// What the PCI core keeps for a bus and gives back to the accessors. The x86 code expects its own
/// structure at the start.
#[pin_data]
#[repr(C)]
struct SysData {
    x86: bindings::pci_sysdata,
    /// Bus numbers below the root, in the resource list of the bridge.
    numbers: bindings::resource,
    number: u8,
    transport: Arc<Transport>,
    released: Arc<AtomicBool>,
    /// Which functions have MSI-X, one bit each.
    msix: [AtomicU32; 8],
    #[pin]
    constants: IrqLock<Constants>,
}

/// The known constants of the functions on one bus.
struct Constants {
    /// One for each function that was found, with its place; has room for all.
    functions: KVec<(u8, KBox<ConstantCache>)>,
    /// The transport's losses up to which they hold.
    losses: u32,
}

impl Constants {
    /// The cache of a function, emptied if the link has lost something since.
    fn of(&mut self, devfn: u32, losses: u32) -> Option<&mut ConstantCache> {
        if self.losses != losses {
            self.losses = losses;
            self.invalidate();
        }
        self.functions
            .iter_mut()
            .find(|(place, _)| u32::from(*place) == devfn)
            .map(|(_, cache)| &mut **cache)
    }

    fn invalidate(&mut self) {
        for (_, cache) in self.functions.iter_mut() {
            cache.invalidate();
        }
    }
}

impl SysData {
    /// Does something with the cache of a function of this bus, if it has one. Atomic.
    fn constants<R>(
        &self,
        bus: u8,
        devfn: u32,
        run: impl FnOnce(&mut ConstantCache) -> R,
    ) -> Option<R> {
        if bus != self.number {
            return None;
        }
        let losses = self.transport.losses();
        self.constants.lock().of(devfn, losses).map(run)
    }

    /// Reads a register. Atomic.
    fn read(&self, op: &PciOp, access: ConfigAccess) -> Result<u32, OpStatus> {
        // CAST: was made from a u8.
        let (bus, devfn) = (op.bus as u8, op.devfn);
        if NO_CACHE.get() {
            // What is read now is not looked at, so nothing of before may be served later.
            self.constants(bus, devfn, ConstantCache::invalidate);
            return self.transport.request(op);
        }
        if !ConstantCache::minds_read(access) {
            return self.transport.request(op);
        }
        let known = self.constants(bus, devfn, |cache| {
            (cache.generation(), cache.serve(access))
        });
        if let Some((_, Some(value))) = known {
            return Ok(value);
        }
        let answer = self.transport.request(op);
        if let Some((generation, _)) = known {
            self.constants(bus, devfn, |cache| match answer {
                Ok(value) => cache.learn(generation, access, value),
                Err(_) => cache.failed(access),
            });
        }
        answer
    }

    /// Writes a register. Atomic.
    fn write(&self, op: &PciOp, access: ConfigAccess) -> Result<(), OpStatus> {
        let answer = self.transport.request(op);
        if ConstantCache::minds_write(access) {
            // CAST: was made from a u8.
            self.constants(op.bus as u8, op.devfn, |cache| {
                cache.wrote(access, op.value);
            });
        }
        answer.map(|_| ())
    }
}

struct Accessors(bindings::pci_ops);
// SAFETY: function pointers that are not changed.
unsafe impl Sync for Accessors {}

static ACCESSORS: Accessors = Accessors(bindings::pci_ops {
    add_bus: None,
    remove_bus: None,
    map_bus: None,
    read: Some(read),
    write: Some(write),
});

/// Our data of a bus; `None` for a bus of somebody else.
///
/// # Safety
///
/// `bus` must be a live bus, and the result must not outlive it.
unsafe fn data_of<'a>(bus: *mut bindings::pci_bus) -> Option<&'a SysData> {
    // SAFETY: a live bus.
    let (ops, data) = unsafe { ((*bus).ops, (*bus).sysdata) };
    if !ptr::eq(ops.cast_const(), &raw const ACCESSORS.0) {
        return None;
    }
    // SAFETY: buses with our accessors have our data, freed when the bridge is released.
    Some(unsafe { &*data.cast::<SysData>() })
}

/// The transport behind a bus of ours; `None` for a bus of somebody else.
///
/// # Safety
///
/// As [`data_of`].
pub(crate) unsafe fn transport_of<'a>(bus: *mut bindings::pci_bus) -> Option<&'a Transport> {
    // SAFETY: promised by the caller.
    unsafe { data_of(bus) }.map(|data| &*data.transport)
}

/// The request for a function of `bus`, without its other fields.
///
/// # Safety
///
/// `bus` must be a live bus of ours.
pub(crate) unsafe fn request(opcode: Opcode, bus: *mut bindings::pci_bus, devfn: u32) -> PciOp {
    // SAFETY: a live bus with our data, promised by the caller.
    let (number, domain) = unsafe {
        (
            (*bus).number,
            (*(*bus).sysdata.cast::<SysData>()).x86.domain,
        )
    };
    PciOp {
        cmd: opcode.to_wire(),
        // CAST: was made from a u16.
        domain: domain as u32,
        bus: u32::from(number),
        devfn,
        ..PciOp::default()
    }
}

/// Notes whether a function of `bus` has MSI-X now. Gives whether it had it.
///
/// # Safety
///
/// As [`data_of`].
pub(crate) unsafe fn note_msix(bus: *mut bindings::pci_bus, devfn: u32, on: bool) -> bool {
    // SAFETY: promised by the caller.
    let Some(data) = (unsafe { data_of(bus) }) else {
        return false;
    };
    // CAST: the word of a devfn, which has 8 bits.
    let Some(word) = data.msix.get((devfn / 32) as usize) else {
        return false;
    };
    let bit = 1u32.wrapping_shl(devfn);
    let before = if on {
        word.fetch_or(bit, Ordering::Relaxed)
    } else {
        word.fetch_and(!bit, Ordering::Relaxed)
    };
    before & bit != 0
}

/// Whether the backend at the other end of `link` lends this function.
pub(crate) fn is_behind(function: &Device, link: &Link) -> bool {
    // SAFETY: a live function has a live bus; the result ends with this function.
    unsafe { transport_of((*function.as_raw()).bus) }.is_some_and(|t| t.is(link))
}

/// Drops the known constants of a function of ours: it was reset.
pub(crate) fn forget_constants(function: &Device) {
    // SAFETY: a live function has a live bus; the result ends with this function.
    unsafe {
        let dev = function.as_raw();
        if let Some(data) = data_of((*dev).bus) {
            data.constants(
                (*(*dev).bus).number,
                (*dev).devfn,
                ConstantCache::invalidate,
            );
        }
    }
}

extern "C" fn read(
    bus: *mut bindings::pci_bus,
    devfn: ffi::c_uint,
    offset: ffi::c_int,
    size: ffi::c_int,
    value: *mut u32,
) -> ffi::c_int {
    // SAFETY: the PCI core passes a live bus with our accessors.
    let (data, op) = unsafe { (data_of(bus), request(Opcode::ConfRead, bus, devfn)) };
    let answer = ConfigAccess::new(offset, size, CONFIG_BYTES).and_then(|access| {
        let data = data.ok_or(OpStatus::NotImplemented)?;
        let word = data.read(&PciOp { offset, size, ..op }, access)?;
        Ok(word & access.width().mask())
    });
    // An absent function reads as all ones.
    let (word, code) = match answer {
        Ok(word) => (word, pcibios::SUCCESSFUL),
        Err(status) => (!0, status.to_pcibios()),
    };
    // SAFETY: the PCI core passes a valid pointer.
    unsafe { *value = word };
    code
}

extern "C" fn write(
    bus: *mut bindings::pci_bus,
    devfn: ffi::c_uint,
    offset: ffi::c_int,
    size: ffi::c_int,
    value: u32,
) -> ffi::c_int {
    // SAFETY: the PCI core passes a live bus with our accessors.
    let (data, op) = unsafe { (data_of(bus), request(Opcode::ConfWrite, bus, devfn)) };
    let answer = ConfigAccess::new(offset, size, CONFIG_BYTES).and_then(|access| {
        let op = PciOp {
            offset,
            size,
            value,
            ..op
        };
        data.ok_or(OpStatus::NotImplemented)?.write(&op, access)
    });
    match answer {
        Ok(()) => pcibios::SUCCESSFUL,
        Err(status) => status.to_pcibios(),
    }
}

/// Holds the PCI core's lock against concurrent scans and removals. The lock is a mutex, so the
/// thread that took it gives it back.
struct RescanLock(NotThreadSafe);

impl RescanLock {
    fn take() -> Self {
        // SAFETY: sleepable context, not held: it is only taken in this file.
        unsafe { bindings::pci_lock_rescan_remove() };
        Self(NotThreadSafe)
    }
}

impl Drop for RescanLock {
    fn drop(&mut self) {
        // SAFETY: taken by `take`.
        unsafe { bindings::pci_unlock_rescan_remove() }
    }
}

/// A root bus with the functions that were found on it; removed when dropped.
///
/// # Invariants
///
/// `bus` is a registered root bus of ours that only this value removes.
pub(crate) struct RootBus {
    bus: *mut bindings::pci_bus,
    released: Arc<AtomicBool>,
    segment: u16,
    number: u8,
}

// SAFETY: the PCI core's functions are called under its own lock.
unsafe impl Send for RootBus {}

impl RootBus {
    /// An empty bus with this address.
    pub(crate) fn new(
        parent: &kernel::device::Device,
        segment: u16,
        number: u8,
        transport: Arc<Transport>,
    ) -> Result<Self> {
        // There are no bridges, so no numbers but the bus' own: several roots fit side by side.
        let mut numbers = bindings::resource {
            start: number.into(),
            end: number.into(),
            ..Default::default()
        };
        numbers.flags = bindings::IORESOURCE_BUS as ffi::c_ulong;
        // SAFETY: reads a map of the NUMA nodes.
        let node = unsafe { sys::first_node() };
        let released = Arc::new(AtomicBool::new(false), GFP_KERNEL)?;
        let told = released.clone();
        let constants = Constants {
            functions: KVec::with_capacity(256, GFP_KERNEL)?,
            losses: transport.losses(),
        };
        let data = KBox::pin_init(
            pin_init!(SysData {
                x86: bindings::pci_sysdata {
                    domain: i32::from(segment),
                    node,
                    ..Default::default()
                },
                numbers,
                number,
                transport,
                released: told,
                msix: [const { AtomicU32::new(0) }; 8],
                constants <- new_irq_lock!(constants, "pcifront_constants"),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: stays where it is until `release` frees it.
        let data = KBox::into_raw(unsafe { Pin::into_inner_unchecked(data) });
        let mut windows = bindings::list_head::default();
        let _lock = RescanLock::take();
        // SAFETY: the list lives until the core has taken its entries over or freed them; accessors
        // and data outlive the bus. `Device` is transparent over the C structure.
        let bus = unsafe {
            bindings::INIT_LIST_HEAD(&mut windows);
            bindings::pci_add_resource(&mut windows, &raw mut bindings::ioport_resource);
            bindings::pci_add_resource(&mut windows, &raw mut bindings::iomem_resource);
            bindings::pci_add_resource(&mut windows, &raw mut (*data).numbers);
            let bus = bindings::pci_create_root_bus(
                ptr::from_ref(parent).cast_mut().cast(),
                i32::from(number),
                (&raw const ACCESSORS.0).cast_mut(),
                data.cast(),
                &mut windows,
            );
            if bus.is_null() {
                bindings::pci_free_resource_list(&mut windows);
            }
            bus
        };
        if bus.is_null() {
            // SAFETY: from `KBox::into_raw`, not in use.
            drop(unsafe { KBox::from_raw(data) });
            return Err(ENOMEM);
        }
        // The core may hold on to the bus after we removed it; the data goes with its last user.
        // SAFETY: a live root bus.
        unsafe { sys::on_bridge_release(bus, Some(release), data.cast()) };
        // INVARIANT: created just now.
        Ok(Self {
            bus,
            released,
            segment,
            number,
        })
    }

    /// Whether this is the bus with that address.
    pub(crate) fn is(&self, segment: u16, number: u8) -> bool {
        self.segment == segment && self.number == number
    }

    fn data(&self) -> &SysData {
        // SAFETY: a live bus of ours by the invariant; its data is freed after it.
        unsafe { &*(*self.bus).sysdata.cast::<SysData>() }
    }

    /// Forgets the known constants of all functions.
    pub(crate) fn forget_constants(&self) {
        self.data().constants.lock().invalidate();
    }

    /// Looks for functions at these places, claims their resources and starts their drivers.
    /// Functions that are known already are left alone. Gives how many are new.
    pub(crate) fn scan(&mut self, places: impl Iterator<Item = Devfn>) -> u32 {
        let _lock = RescanLock::take();
        let mut new = 0;
        for place in places {
            let devfn = ffi::c_uint::from(place.raw());
            // SAFETY: a live bus, the rescan lock is held. The core refuses a place that is taken.
            let known = unsafe { bindings::pci_get_slot(self.bus, devfn) };
            if !known.is_null() {
                // SAFETY: a reference that `pci_get_slot` took.
                unsafe { bindings::pci_dev_put(known) };
                continue;
            }
            // Before the first look: the PCI core walks the capabilities a dozen times while it scans.
            self.remember(place);
            // SAFETY: as above. One request for the ids decides if something is there, so a
            // function needs no function 0 beside it.
            let found = unsafe { bindings::pci_scan_single_device(self.bus, devfn as ffi::c_int) };
            if found.is_null() {
                self.forget(place);
            } else {
                new += 1;
                // SAFETY: a live function that has not been added yet.
                unsafe { claim(found) };
            }
        }
        if new > 0 {
            // SAFETY: a live bus, the rescan lock is held.
            unsafe { bindings::pci_bus_add_devices(self.bus) };
        }
        new
    }

    /// From now on constants of this function are kept. Without memory they are asked.
    fn remember(&self, place: Devfn) {
        // Of one that the guest's own administrator took away, and that is back.
        self.forget(place);
        let Ok(cache) = KBox::new(ConstantCache::new(), GFP_KERNEL) else {
            return;
        };
        let full = self
            .data()
            .constants
            .lock()
            .functions
            .push_within_capacity((place.raw(), cache));
        // One for each place fits; dropped after the lock.
        drop(full);
    }

    fn forget(&self, place: Devfn) {
        let mut constants = self.data().constants.lock();
        let at = constants
            .functions
            .iter()
            .position(|(at, _)| *at == place.raw());
        let gone = at.and_then(|at| constants.functions.remove(at).ok());
        drop(constants);
        drop(gone);
    }

    /// Removes one function if it is there.
    pub(crate) fn remove(&mut self, place: Devfn) {
        let _lock = RescanLock::take();
        // SAFETY: a live bus, the rescan lock is held; the reference is given back.
        unsafe {
            let dev = bindings::pci_get_slot(self.bus, ffi::c_uint::from(place.raw()));
            if !dev.is_null() {
                bindings::pci_stop_and_remove_bus_device(dev);
                bindings::pci_dev_put(dev);
            }
        }
        self.forget(place);
    }

    /// Address of a function on this bus.
    pub(crate) fn address(&self, devfn: Devfn) -> Sbdf {
        Sbdf {
            segment: self.segment,
            bus: self.number,
            devfn,
        }
    }
}

impl Drop for RootBus {
    fn drop(&mut self) {
        let lock = RescanLock::take();
        // SAFETY: registered by the type invariant, the rescan lock is held. Drivers are unbound
        // here, and still reach their functions. The bridge's first reference is that of who made
        // the bus: the core does not give it back.
        unsafe {
            let bridge = (*self.bus).bridge;
            bindings::pci_stop_root_bus(self.bus);
            bindings::pci_remove_root_bus(self.bus);
            bindings::put_device(bridge);
        }
        drop(lock);
        for _ in 0..LAST_USER / 10 {
            if self.released.load(Ordering::Acquire) {
                return;
            }
            fsleep(Delta::from_millis(10));
        }
        if !self.released.load(Ordering::Acquire) {
            pr_warn!(
                "somebody still uses a function on {:04x}:{:02x}, {} s after its removal; the module stays loaded\n",
                self.segment,
                self.number,
                LAST_USER / 1000
            );
            // SAFETY: this module, which is running. Never given back: `release` is in it.
            unsafe { bindings::__module_get(xen::this_module!().as_ptr()) };
        }
    }
}

extern "C" fn release(bridge: *mut bindings::pci_host_bridge) {
    // SAFETY: the data was given as a raw box with this callback, which is called once.
    let data = unsafe { KBox::from_raw((*bridge).release_data.cast::<SysData>()) };
    let released = data.released.clone();
    drop(data);
    released.store(true, Ordering::Release);
}

/// Claims the resources of a new function where they are: the backend does not let them move.
///
/// # Safety
///
/// `dev` must be a live function that is not added yet.
unsafe fn claim(dev: *mut bindings::pci_dev) {
    // SAFETY: a live function.
    let device =
        unsafe { kernel::device::Device::<kernel::device::Normal>::from_raw(&raw mut (*dev).dev) };
    for index in 0..bindings::PCI_ROM_RESOURCE + 1 {
        // SAFETY: the array has more entries than that.
        let resource = unsafe { &raw const (*dev).resource[index as usize] };
        // SAFETY: only this thread knows the function.
        let (start, end, flags, taken) = unsafe {
            (
                (*resource).start,
                (*resource).end,
                (*resource).flags,
                !(*resource).parent.is_null(),
            )
        };
        if taken || start == 0 || flags == 0 {
            continue;
        }
        // SAFETY: a live function with that resource. The core says what is in the way, in a line
        // of its own, and marks the resource; a driver then gets an error when it enables the
        // function.
        if unsafe { bindings::pci_claim_resource(dev, index as ffi::c_int) } == 0 {
            continue;
        }
        // A ROM that cannot be claimed is not missed by drivers.
        if index == bindings::PCI_ROM_RESOURCE {
            continue;
        }
        // SAFETY: looks at the kernel's list of memory.
        let holder = if unsafe { sys::is_ram(start, end) } {
            "this guest's memory"
        } else {
            "what the line before names"
        };
        dev_err!(
            device,
            "BAR {} at {:#x}-{:#x} cannot be claimed: {} is there. Its driver cannot use the function; start the guest with e820_host=1 in its configuration\n",
            index,
            start,
            end,
            holder
        );
    }
}
