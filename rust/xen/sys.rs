// SPDX-License-Identifier: GPL-2.0

//! Raw bindings: the Xen headers (generated) and our C helpers. Not to be used outside this crate
//! except through the safe types, and by the drivers' own thin FFI files.

#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::missing_safety_doc,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

// Everything that the generated file refers to and does not define itself.
use kernel::bindings::*;
use kernel::ffi;
use pin_init::MaybeZeroable;

include!(env!("XENPCI_BINDINGS"));

/// Declares the functions of `helpers*.c` under this driver's prefix.
macro_rules! helpers {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?;)*) => {
        unsafe extern "C" {
            $(
                #[link_name = concat!(env!("XENPCI_DRIVER"), "_", stringify!($name))]
                pub fn $name($($arg: $ty),*) $(-> $ret)?;
            )*
        }
    };
}

helpers! {
    fn is_initial_domain() -> bool;
    fn is_pv_domain() -> bool;
    fn has_pv_devices() -> bool;
    fn domain_exists(domid: u16) -> bool;
    fn physdev_msix(dev: *mut pci_dev, prepare: bool) -> ffi::c_int;
    fn runstate_entry_time() -> u64;
    fn clock_ns() -> u64;
    fn others_wait() -> bool;
    fn kernel_version() -> *const ffi::c_char;
    fn queue_work(queue: *mut workqueue_struct, work: *mut work_struct) -> bool;
    fn raw_lock_init(lock: *mut raw_spinlock_t, name: *const ffi::c_char, key: *mut lock_class_key);
    fn raw_lock(lock: *mut raw_spinlock_t) -> ffi::c_ulong;
    fn raw_unlock(lock: *mut raw_spinlock_t, flags: ffi::c_ulong);
    fn device_lock(dev: *mut device);
    fn device_unlock(dev: *mut device);
    fn match_driver_override(dev: *mut device, drv: *const device_driver) -> ffi::c_int;
    fn pci_domain(dev: *mut pci_dev) -> ffi::c_int;
    fn pci_is_enabled(dev: *mut pci_dev) -> bool;
    fn pci_is_vf(dev: *mut pci_dev) -> bool;
    fn pci_is_bus_master(dev: *mut pci_dev) -> bool;
    fn pci_msi_on(dev: *mut pci_dev) -> bool;
    fn pci_msix_on(dev: *mut pci_dev) -> bool;
    fn pci_physfn(dev: *mut pci_dev) -> *mut pci_dev;
    fn pci_set_assigned(dev: *mut pci_dev, on: bool);
    fn pci_name(dev: *const pci_dev) -> *const ffi::c_char;
    fn pci_driver_name(dev: *const pci_dev) -> *const ffi::c_char;
    fn msix_exact(dev: *mut pci_dev, entries: *mut msix_entry, count: ffi::c_int) -> ffi::c_int;
    fn msix_wanted(dev: *mut pci_dev, entries: *mut u16, max: ffi::c_int) -> ffi::c_int;
    fn on_bridge_release(
        bus: *mut pci_bus,
        release: Option<unsafe extern "C" fn(*mut pci_host_bridge)>,
        data: *mut ffi::c_void
    );
    fn first_node() -> ffi::c_int;
    fn pci_note_error_state(dev: *mut pci_dev, state: pci_channel_state_t) -> bool;
    fn bus_dev_error(dev: *mut xenbus_device, err: ffi::c_int, text: *const ffi::c_char, fatal: bool);
    fn pci_user(dev: *mut pci_dev, text: *mut ffi::c_char, size: ffi::c_int) -> bool;
    fn pci_page_neighbour(dev: *mut pci_dev, bar: *mut ffi::c_int) -> *mut pci_dev;
    fn pci_line_neighbour(dev: *mut pci_dev) -> *mut pci_dev;
    fn irq_is_connected(irq: ffi::c_uint) -> bool;
    fn irq_has_only(irq: ffi::c_uint, handler: irq_handler_t) -> bool;
    fn irq_resume_others(irq: ffi::c_uint);
    fn request_shared_irq(
        irq: ffi::c_uint,
        handler: irq_handler_t,
        name: *const ffi::c_char,
        cookie: *mut ffi::c_void
    ) -> ffi::c_int;
    fn pci_is_pf(dev: *mut pci_dev) -> bool;
    fn is_ram(start: resource_size_t, end: resource_size_t) -> bool;
    fn has_dma_ops() -> bool;
}
