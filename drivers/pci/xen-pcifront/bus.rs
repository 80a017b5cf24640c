// SPDX-License-Identifier: GPL-2.0

//! Root buses: the PCI core's way to the transport, scanning and removal.
//!
//! *Owns* the root buses. *Callers*: [`crate::device`], in sleepable context, one at a time (its
//! mutex); the accessors are called by the PCI core in any context. *Lock order*: the device's
//! mutex, then the PCI core's rescan lock, then the transport's.

use crate::transport::Transport;
use core::ptr;
use kernel::{bindings, ffi, prelude::*, sync::Arc};
use pciif::{
    op::{pcibios, Opcode},
    sbdf::{Devfn, Sbdf},
    wire::PciOp,
};
use xen::sys;

/// What the PCI core keeps for a bus and gives back to the accessors. The x86 code expects its own
/// structure at the start.
#[repr(C)]
struct SysData {
    x86: bindings::pci_sysdata,
    /// Bus numbers below the root, in the resource list of the bridge.
    numbers: bindings::resource,
    transport: Arc<Transport>,
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

/// The transport behind a bus of ours; `None` for a bus of somebody else.
///
/// # Safety
///
/// `bus` must be a live bus, and the result must not outlive it.
pub(crate) unsafe fn transport_of<'a>(bus: *mut bindings::pci_bus) -> Option<&'a Transport> {
    // SAFETY: a live bus.
    let (ops, data) = unsafe { ((*bus).ops, (*bus).sysdata) };
    if !ptr::eq(ops.cast_const(), &raw const ACCESSORS.0) {
        return None;
    }
    // SAFETY: buses with our accessors have our data, freed when the bridge is released.
    Some(unsafe { &(*data.cast::<SysData>()).transport })
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

extern "C" fn read(
    bus: *mut bindings::pci_bus,
    devfn: ffi::c_uint,
    offset: ffi::c_int,
    size: ffi::c_int,
    value: *mut u32,
) -> ffi::c_int {
    // SAFETY: the PCI core passes a live bus with our accessors.
    let (transport, op) = unsafe { (transport_of(bus), request(Opcode::ConfRead, bus, devfn)) };
    let answer = match transport {
        Some(transport) => transport.request(&PciOp { offset, size, ..op }),
        None => return pcibios::FUNC_NOT_SUPPORTED,
    };
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
    let (transport, op) = unsafe { (transport_of(bus), request(Opcode::ConfWrite, bus, devfn)) };
    match transport.map(|t| {
        t.request(&PciOp {
            offset,
            size,
            value,
            ..op
        })
    }) {
        Some(Ok(_)) => pcibios::SUCCESSFUL,
        Some(Err(status)) => status.to_pcibios(),
        None => pcibios::FUNC_NOT_SUPPORTED,
    }
}

/// Holds the PCI core's lock against concurrent scans and removals.
struct RescanLock;

impl RescanLock {
    fn take() -> Self {
        // SAFETY: sleepable context, not held: it is only taken in this file.
        unsafe { bindings::pci_lock_rescan_remove() };
        Self
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
/// `bus` is a registered root bus that only this value removes.
pub(crate) struct RootBus {
    bus: *mut bindings::pci_bus,
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
        let mut numbers = bindings::resource {
            end: 255,
            ..Default::default()
        };
        numbers.flags = bindings::IORESOURCE_BUS as ffi::c_ulong;
        // SAFETY: reads a map of the NUMA nodes.
        let node = unsafe { sys::first_node() };
        let data = KBox::new(
            SysData {
                x86: bindings::pci_sysdata {
                    domain: i32::from(segment),
                    node,
                    ..Default::default()
                },
                numbers,
                transport,
            },
            GFP_KERNEL,
        )?;
        let data = KBox::into_raw(data);
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
            segment,
            number,
        })
    }

    /// Whether this is the bus with that address.
    pub(crate) fn is(&self, segment: u16, number: u8) -> bool {
        self.segment == segment && self.number == number
    }

    /// Looks for functions at these places, claims their resources and starts their drivers.
    /// Functions that are known already are left alone.
    pub(crate) fn scan(&mut self, places: impl Iterator<Item = Devfn>) {
        let _lock = RescanLock::take();
        for place in places {
            let devfn = ffi::c_uint::from(place.raw());
            // SAFETY: a live bus, the rescan lock is held. The core refuses a place that is taken.
            let known = unsafe { bindings::pci_get_slot(self.bus, devfn) };
            if !known.is_null() {
                // SAFETY: a reference that `pci_get_slot` took.
                unsafe { bindings::pci_dev_put(known) };
                continue;
            }
            // SAFETY: as above. One request for the ids decides if something is there, so a
            // function needs no function 0 beside it.
            let found = unsafe { bindings::pci_scan_single_device(self.bus, devfn as ffi::c_int) };
            if !found.is_null() {
                // SAFETY: a live function that has not been added yet.
                unsafe { claim(found) };
            }
        }
        // SAFETY: a live bus, the rescan lock is held.
        unsafe { bindings::pci_bus_add_devices(self.bus) };
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
        let _lock = RescanLock::take();
        // SAFETY: registered by the type invariant, the rescan lock is held. Drivers are unbound
        // here, and still reach their functions.
        unsafe {
            bindings::pci_stop_root_bus(self.bus);
            bindings::pci_remove_root_bus(self.bus);
        }
    }
}

extern "C" fn release(bridge: *mut bindings::pci_host_bridge) {
    // SAFETY: the data was given as a raw box with this callback, which is called once.
    drop(unsafe { KBox::from_raw((*bridge).release_data.cast::<SysData>()) });
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
        // SAFETY: a live function with that resource.
        if unsafe { bindings::pci_claim_resource(dev, index as ffi::c_int) } != 0 {
            dev_err!(
                device,
                "cannot claim BAR {} at {:#x}-{:#x}: this guest uses the range itself; start it with e820_host=1\n",
                index,
                start,
                end
            );
        }
    }
}
