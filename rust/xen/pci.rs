// SPDX-License-Identifier: GPL-2.0

//! Host PCI functions as a passthrough driver needs them, and the registration of such a driver.
//!
//! The kernel crate's `pci::Device` has no state saving, reset, MSI switching for others, error
//! returns of configuration accesses, or lookup: so this is a type of its own over `pci_dev`.

use crate::{compat, sys};
use core::{marker::PhantomData, ops::Deref};
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi,
    prelude::*,
    str::{CStr, CStrExt, CString},
    sync::{Arc, ArcBorrow},
    types::{NotThreadSafe, Opaque},
};
use pciif::config::{BarFlags, BarInfo};
use pciif::{
    access::AccessWidth,
    aer::{ChannelState, Step, Verdict},
    sbdf::Sbdf,
};

/// `PCI_ANY_ID`.
const ANY_ID: ffi::c_uint = !0;

/// The COMMAND register, and two of its bits.
// CAST: 16-bit registers.
const COMMAND_AT: u16 = bindings::PCI_COMMAND as u16;
const MEMORY: u16 = bindings::PCI_COMMAND_MEMORY as u16;
const MASTER: u16 = bindings::PCI_COMMAND_MASTER as u16;
/// What a word reads that nobody answers for.
const ALL_ONES: u32 = 0xffff;

/// A counted reference to a PCI function of the host.
///
/// # Invariants
///
/// Owns one reference to a `pci_dev` that was registered when it was taken.
pub struct Device(*mut bindings::pci_dev);

// SAFETY: the reference count is atomic; the functions used here take their own locks or are called
// as their documentation says.
unsafe impl Send for Device {}
// SAFETY: as for `Send`.
unsafe impl Sync for Device {}

impl Clone for Device {
    fn clone(&self) -> Self {
        // SAFETY: alive by the invariant.
        Self(unsafe { bindings::pci_dev_get(self.0) })
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.0, other.0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: owns one reference.
        unsafe { bindings::pci_dev_put(self.0) }
    }
}

/// A function whose device lock is held, by a [`DeviceLock`] or by the PCI core around a callback: drivers are
/// bound, unbound and reset under it. The lock is a mutex, so what it protects stays with the thread.
///
/// # Invariants
///
/// The device lock is held by this thread as long as this value lives.
pub struct Locked<'a>(&'a Device, NotThreadSafe);

/// A device lock that was taken, and is given back when dropped.
///
/// # Invariants
///
/// Taken by [`Device::lock`].
pub struct DeviceLock<'a>(Locked<'a>);

impl Drop for DeviceLock<'_> {
    fn drop(&mut self) {
        // SAFETY: held by the type invariant.
        unsafe { sys::device_unlock(self.generic()) }
    }
}

impl<'a> Deref for DeviceLock<'a> {
    type Target = Locked<'a>;
    fn deref(&self) -> &Locked<'a> {
        &self.0
    }
}

impl Deref for Locked<'_> {
    type Target = Device;
    fn deref(&self) -> &Device {
        self.0
    }
}

/// While it lives, configuration accesses of dom0's userspace to a function wait.
struct Quiet<'a>(&'a Device);

impl<'a> Quiet<'a> {
    fn new(dev: &'a Device) -> Self {
        // SAFETY: alive. Waits for whoever else has that, which takes as long as a reset.
        unsafe { bindings::pci_cfg_access_lock(dev.0) };
        Self(dev)
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // SAFETY: alive, locked by `new`.
        unsafe { bindings::pci_cfg_access_unlock(self.0 .0) }
    }
}

/// A copy of a function's configuration, made by [`Locked::save_state`].
///
/// # Invariants
///
/// `raw` is from `pci_store_saved_state`, owned by this value.
pub struct SavedState {
    raw: *mut bindings::pci_saved_state,
    /// Whose memory decode counts for the function.
    physical: Device,
}

// SAFETY: plain memory.
unsafe impl Send for SavedState {}
// SAFETY: plain memory that is not changed.
unsafe impl Sync for SavedState {}

impl Drop for SavedState {
    fn drop(&mut self) {
        // SAFETY: owned, from `kmalloc`.
        unsafe { bindings::kfree(self.raw.cast()) }
    }
}

impl Locked<'_> {
    /// # Safety
    ///
    /// This thread must hold the device lock of `dev` until the result is dropped.
    unsafe fn assume(dev: &Device) -> Locked<'_> {
        // INVARIANT: promised by the caller.
        Locked(dev, NotThreadSafe)
    }

    /// The physical function of a virtual one, or itself. `None` when the function has no driver: it may be
    /// on its way out then, and the physical one is only sure to be there before that.
    pub fn physical(&self) -> Option<Device> {
        if self.is_vf() && !self.has_driver() {
            return None;
        }
        // SAFETY: alive. A virtual function keeps a reference to the physical one until it is off the bus, for
        // which its driver is taken off first; there is one, and the device lock keeps it.
        Some(unsafe { Device::get(sys::pci_physfn(self.as_raw())) })
    }

    /// Whether `driver_override` names the driver whose `probe` is running.
    pub fn is_override_match(&self) -> bool {
        // SAFETY: alive; in `probe` the core has set the driver, and the device lock keeps it there.
        let driver = unsafe { (*self.generic()).driver };
        // SAFETY: alive; a registered driver.
        !driver.is_null() && unsafe { sys::match_driver_override(self.generic(), driver) } > 0
    }

    /// Copies the present configuration.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, `ENODEV` when the function goes, or that of the PCI core.
    pub fn save_state(&self) -> Result<SavedState> {
        let physical = self.physical().ok_or(ENODEV)?;
        // SAFETY: the function is kept by `Device`, and its device lock is held by the type invariant, so that
        // nobody else saves or restores its state.
        to_result(unsafe { bindings::pci_save_state(self.as_raw()) })?;
        // SAFETY: alive, state saved.
        let state = unsafe { bindings::pci_store_saved_state(self.as_raw()) };
        if state.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: ours.
        Ok(SavedState {
            raw: state,
            physical,
        })
    }

    /// Resets the function by the first method that works, configuration included. Takes 100 ms to some
    /// seconds. As in the core's own resets, configuration accesses of dom0's userspace wait meanwhile.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when it has no way to be reset, `EIO` when none of its ways worked.
    pub fn reset(&self) -> Result {
        let _quiet = Quiet::new(self);
        // SAFETY: the device lock is held by the type invariant.
        unsafe { self.reset_quiet() }
    }

    /// [`Device::try_reset`] with the device lock held.
    ///
    /// # Errors
    ///
    /// As [`Device::try_reset`], but for `EAGAIN`.
    pub fn reset_and_restore(&self, state: &SavedState) -> Result {
        let _quiet = Quiet::new(self);
        // SAFETY: the device lock is held by the type invariant.
        unsafe { self.reset_and_restore_quiet(state) }
    }
}

impl Device {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// `dev` must be a live `pci_dev`.
    pub unsafe fn get(dev: *mut bindings::pci_dev) -> Self {
        // SAFETY: promised by the caller.
        Self(unsafe { bindings::pci_dev_get(dev) })
    }

    fn generic(&self) -> *mut bindings::device {
        // SAFETY: alive by the invariant.
        unsafe { &raw mut (*self.0).dev }
    }

    /// For log lines.
    pub fn as_generic(&self) -> &kernel::device::Device {
        // SAFETY: embedded in a live `pci_dev`.
        unsafe { kernel::device::Device::from_raw(self.generic()) }
    }

    /// The C structure.
    pub fn as_raw(&self) -> *mut bindings::pci_dev {
        self.0
    }

    /// Takes the device lock. Must not be held already (the core holds it in probe and remove).
    pub fn lock(&self) -> DeviceLock<'_> {
        // SAFETY: alive by the invariant.
        unsafe { sys::device_lock(self.generic()) };
        // INVARIANT: taken just now.
        // SAFETY: given back by `DeviceLock`, which owns this.
        DeviceLock(unsafe { Locked::assume(self) })
    }

    /// The host address; `None` in a segment that Xen can not name (above 0xffff). Atomic.
    pub fn address(&self) -> Option<Sbdf> {
        // SAFETY: alive by the invariant; these fields are constant.
        let (domain, bus, devfn) = unsafe {
            (
                sys::pci_domain(self.0),
                (*(*self.0).bus).number,
                (*self.0).devfn,
            )
        };
        Sbdf::from_wire(u32::try_from(domain).ok()?, u32::from(bus), devfn)
    }

    /// Vendor and device id. Atomic.
    pub fn ids(&self) -> (u16, u16) {
        // SAFETY: alive; constant fields.
        unsafe { ((*self.0).vendor, (*self.0).device) }
    }

    /// Subsystem vendor and device id. Atomic.
    pub fn subsystem_ids(&self) -> (u16, u16) {
        // SAFETY: alive; constant fields.
        unsafe { ((*self.0).subsystem_vendor, (*self.0).subsystem_device) }
    }

    /// Header type without the multi-function bit. Atomic.
    pub fn header_type(&self) -> u8 {
        // SAFETY: alive; a constant field.
        unsafe { (*self.0).hdr_type }
    }

    /// Bytes of configuration space that can be reached: 256, 4096 or what a quirk says. Atomic.
    pub fn config_size(&self) -> u16 {
        // SAFETY: alive; a constant field.
        u16::try_from(unsafe { (*self.0).cfg_size }).unwrap_or(0)
    }

    /// Whether it is a virtual function. Atomic.
    pub fn is_vf(&self) -> bool {
        // SAFETY: alive.
        unsafe { sys::pci_is_vf(self.0) }
    }

    /// Whether it is a physical function that has virtual ones now. Atomic.
    pub fn is_pf(&self) -> bool {
        // SAFETY: alive.
        unsafe { sys::pci_is_pf(self.0) }
    }

    /// The bridge above it, if there is one.
    pub fn upstream(&self) -> Option<Self> {
        // SAFETY: alive; a device's bus and that bus' bridge outlive the device.
        let bridge = unsafe { (*(*self.0).bus).self_ };
        // SAFETY: a live bridge.
        (!bridge.is_null()).then(|| unsafe { Self::get(bridge) })
    }

    /// Whether `each` holds for a bridge above it, the nearest first.
    pub fn any_above(&self, mut each: impl FnMut(&Self) -> bool) -> bool {
        let mut next = self.upstream();
        // The depth of a PCI hierarchy is below the number of buses.
        for _ in 0..256 {
            match next {
                Some(bridge) if each(&bridge) => return true,
                Some(bridge) => next = bridge.upstream(),
                None => return false,
            }
        }
        false
    }

    /// The legacy interrupt, 0 when there is none. Atomic.
    pub fn irq(&self) -> u32 {
        // SAFETY: alive; an aligned word.
        unsafe { (&raw const (*self.0).irq).read_volatile() }
    }

    /// The address as the kernel writes it. Atomic.
    pub fn name(&self) -> &CStr {
        // SAFETY: alive; the name is constant and NUL terminated.
        unsafe { CStr::from_char_ptr(sys::pci_name(self.0)) }
    }

    /// The name of the driver that has it, `pci` when none has.
    pub fn driver_name(&self) -> &CStr {
        // SAFETY: alive; the core's answer is a static text.
        unsafe { CStr::from_char_ptr(sys::pci_driver_name(self.0)) }
    }

    /// Whether a driver has it. Atomic; may change at any time without the device lock.
    pub fn has_driver(&self) -> bool {
        // SAFETY: alive; an aligned pointer.
        let driver = unsafe { (&raw const (*self.generic()).driver).read_volatile() };
        !driver.is_null()
    }

    /// Keeps a function that no driver has for the driver `name`: no other is bound to it.
    ///
    /// # Errors
    ///
    /// `EBUSY` when a driver has it, `ENOMEM`.
    pub fn reserve(&self, name: &'static CStr) -> Result {
        let _lock = self.lock();
        // SAFETY: alive; the device lock is held.
        if !unsafe { (*self.generic()).driver }.is_null() {
            return Err(EBUSY);
        }
        self.set_override(name)
    }

    /// Ends [`Self::reserve`].
    pub fn unreserve(&self) {
        // Clearing needs no memory.
        let _ = self.set_override(c"");
    }

    fn set_override(&self, name: &'static CStr) -> Result {
        // SAFETY: alive; the text is copied.
        to_result(unsafe {
            bindings::__device_set_driver_override(
                self.generic(),
                name.as_char_ptr(),
                name.to_bytes().len(),
            )
        })
    }

    /// Reads configuration space.
    ///
    /// # Errors
    ///
    /// The PCIBIOS code of the accessor, a positive number, or an errno.
    pub fn read_config(&self, offset: u16, width: AccessWidth) -> Result<u32, i32> {
        let at = i32::from(offset);
        let (mut byte, mut word, mut dword) = (0u8, 0u16, 0u32);
        // SAFETY: alive; the accessor checks alignment, `offset` is within a config space.
        let code = unsafe {
            match width {
                AccessWidth::Byte => bindings::pci_read_config_byte(self.0, at, &mut byte),
                AccessWidth::Word => bindings::pci_read_config_word(self.0, at, &mut word),
                AccessWidth::Dword => bindings::pci_read_config_dword(self.0, at, &mut dword),
            }
        };
        match (code, width) {
            (0, AccessWidth::Byte) => Ok(u32::from(byte)),
            (0, AccessWidth::Word) => Ok(u32::from(word)),
            (0, AccessWidth::Dword) => Ok(dword),
            (code, _) => Err(code),
        }
    }

    /// Writes configuration space.
    ///
    /// # Errors
    ///
    /// As [`Self::read_config`].
    pub fn write_config(&self, offset: u16, width: AccessWidth, value: u32) -> Result<(), i32> {
        let at = i32::from(offset);
        // CAST: narrower accesses use the low bits.
        // SAFETY: as in `read_config`.
        let code = unsafe {
            match width {
                AccessWidth::Byte => bindings::pci_write_config_byte(self.0, at, value as u8),
                AccessWidth::Word => bindings::pci_write_config_word(self.0, at, value as u16),
                AccessWidth::Dword => bindings::pci_write_config_dword(self.0, at, value),
            }
        };
        if code == 0 {
            Ok(())
        } else {
            Err(code)
        }
    }

    /// A BAR (0 to 5) or the expansion ROM (6) as the kernel has assigned it.
    pub fn bar(&self, index: usize) -> BarInfo {
        // SAFETY: alive; the array has more than 7 entries.
        let resource = unsafe { (*self.0).resource.get(index) };
        let Some(r) = resource else {
            return BarInfo::default();
        };
        let has = |flag: u32| r.flags & flag as ffi::c_ulong != 0;
        if r.flags == 0
            || has(bindings::IORESOURCE_DISABLED)
            || has(bindings::IORESOURCE_UNSET)
            || has(bindings::IORESOURCE_BUSY)
        {
            return BarInfo::default();
        }
        BarInfo {
            start: r.start,
            len: if r.end >= r.start {
                (r.end - r.start).saturating_add(1)
            } else {
                0
            },
            flags: BarFlags {
                io: has(bindings::IORESOURCE_IO),
                mem64: has(bindings::IORESOURCE_MEM_64),
                prefetch: has(bindings::IORESOURCE_PREFETCH),
                enabled: true,
            },
        }
    }

    /// Whether `pci_enable_device` is in force. Atomic.
    pub fn is_enabled(&self) -> bool {
        // SAFETY: alive.
        unsafe { sys::pci_is_enabled(self.0) }
    }

    /// Switches on the decoders that the BARs need, and the power.
    ///
    /// # Errors
    ///
    /// That of the PCI core.
    pub fn enable(&self) -> Result {
        // SAFETY: alive.
        to_result(unsafe { bindings::pci_enable_device(self.0) })
    }

    /// Undoes one [`Self::enable`]: bus master off. Decoders stay on (XSA-120).
    pub fn disable(&self) {
        // SAFETY: alive.
        unsafe { bindings::pci_disable_device(self.0) }
    }

    /// Whether it may be a bus master, as far as the core knows. Atomic.
    pub fn is_bus_master(&self) -> bool {
        // SAFETY: alive.
        unsafe { sys::pci_is_bus_master(self.0) }
    }

    /// Lets it be a bus master, or not.
    pub fn set_bus_master(&self, on: bool) {
        // SAFETY: alive.
        unsafe {
            if on {
                bindings::pci_set_master(self.0)
            } else {
                bindings::pci_clear_master(self.0)
            }
        }
    }

    /// Switches memory-write-and-invalidate.
    ///
    /// # Errors
    ///
    /// When the cache line size can not be set.
    pub fn set_mwi(&self, on: bool) -> Result {
        // SAFETY: alive.
        unsafe {
            if on {
                to_result(bindings::pci_set_mwi(self.0))
            } else {
                bindings::pci_clear_mwi(self.0);
                Ok(())
            }
        }
    }

    /// Allows or forbids legacy interrupts.
    pub fn set_intx(&self, on: bool) {
        // SAFETY: alive.
        unsafe { bindings::pci_intx(self.0, i32::from(on)) }
    }

    /// The power state as the core knows it, D0 to D3cold as 0 to 4. One that it does not know counts as D0: a
    /// function that cannot sleep. Atomic.
    pub fn power_state(&self) -> u8 {
        // SAFETY: alive; an aligned word.
        let state = unsafe { (&raw const (*self.0).current_state).read_volatile() };
        u8::try_from(state)
            .ok()
            .filter(|state| *state <= 4)
            .unwrap_or(0)
    }

    /// Moves to power state D0 to D3hot (0 to 3). Sleeps up to 10 ms and more.
    ///
    /// # Errors
    ///
    /// That of the PCI core; `EIO` when the function does not move.
    pub fn set_power_state(&self, state: u8) -> Result {
        let wanted = bindings::pci_power_t::from(state & 3);
        // SAFETY: alive.
        to_result(unsafe { bindings::pci_set_power_state(self.0, wanted) })?;
        // The core writes a line about one that does not move, and counts that as no error.
        match self.power_state() == state & 3 {
            true => Ok(()),
            false => Err(EIO),
        }
    }

    /// Moves to power state D0. A function that slept gets a saved configuration, as by
    /// [`Self::restore_state`]: some forget theirs on the way, and the PCI core restores the BARs only.
    /// Sleeps up to 10 ms and more.
    ///
    /// # Errors
    ///
    /// That of the PCI core; `EIO` when the function does not move.
    pub fn wake(&self, state: &SavedState) -> Result {
        if self.power_state() == 0 {
            return Ok(());
        }
        self.set_power_state(0)?;
        self.restore_state(state)
    }

    /// Lets the function ask for reads of at most `bytes` bytes. Atomic.
    ///
    /// # Errors
    ///
    /// `EINVAL` when `bytes` is no power of two from 128 to 4096, or the host bridge cannot answer
    /// reads of that size.
    pub fn set_max_read_request(&self, bytes: u16) -> Result {
        // SAFETY: alive.
        to_result(unsafe { bindings::pcie_set_readrq(self.0, i32::from(bytes)) })
    }

    /// Whether MSI, and whether MSI-X is on. Atomic.
    pub fn msi_state(&self) -> (bool, bool) {
        // SAFETY: alive.
        unsafe { (sys::pci_msi_on(self.0), sys::pci_msix_on(self.0)) }
    }

    /// Switches MSI on with one vector. Gives the guest's number (pirq) of it, 0 when it has none.
    ///
    /// # Errors
    ///
    /// `EBUSY` when MSI or MSI-X is on, else that of the PCI core.
    pub fn enable_msi(&self) -> Result<u32> {
        if self.msi_state() != (false, false) {
            return Err(EBUSY);
        }
        // SAFETY: alive; neither MSI nor MSI-X is on.
        to_result(unsafe { bindings::pci_enable_msi(self.0) })?;
        // SAFETY: the MSI code has mapped it just now; whoever ends that has the function in hand, as we do.
        Ok(unsafe { msi_pirq(self.irq()) })
    }

    /// Switches MSI off if it is on.
    pub fn disable_msi(&self) {
        if self.msi_state().0 {
            // SAFETY: alive, MSI is on.
            unsafe { bindings::pci_disable_msi(self.0) }
        }
    }

    /// Switches MSI-X on with exactly these table entries. Their `vector` becomes the guest's number (pirq),
    /// 0 when it has none.
    ///
    /// # Errors
    ///
    /// `EBUSY` when MSI or MSI-X is on, else that of the PCI core.
    pub fn enable_msix(&self, entries: &mut [bindings::msix_entry]) -> Result {
        if self.msi_state() != (false, false) {
            return Err(EBUSY);
        }
        let count = i32::try_from(entries.len()).map_err(|_| EINVAL)?;
        // SAFETY: alive; `count` entries; neither MSI nor MSI-X is on.
        to_result(unsafe { sys::msix_exact(self.0, entries.as_mut_ptr(), count) })?;
        for entry in entries {
            // SAFETY: as in `enable_msi`.
            entry.vector = unsafe { msi_pirq(entry.vector) };
        }
        Ok(())
    }

    /// Switches MSI-X off if it is on.
    pub fn disable_msix(&self) {
        if self.msi_state().1 {
            // SAFETY: alive, MSI-X is on.
            unsafe { bindings::pci_disable_msix(self.0) }
        }
    }

    /// Number of entries of the MSI-X table, 0 without one.
    pub fn msix_table_size(&self) -> u16 {
        // SAFETY: alive.
        u16::try_from(unsafe { bindings::pci_msix_vec_count(self.0) }).unwrap_or(0)
    }

    /// Writes a saved configuration back, but for bus mastering, which is off after it. MSI and MSI-X that are
    /// on are on after it, too, by Xen.
    ///
    /// # Errors
    ///
    /// That of the PCI core when the copy is not one of this device. `EIO` when MSI-X is on and Xen could
    /// not reach its table, because the function does not decode memory: then it is off now. Xen would
    /// refuse, and the kernel write a trace into its log for that.
    pub fn restore_state(&self, state: &SavedState) -> Result {
        /// Where COMMAND is in the saved header, and the BARs with what lies behind them.
        const COMMAND: usize = 1;
        const BARS: core::ops::RangeInclusive<usize> = 4..=9;
        // SAFETY: alive; a valid copy, which the call does not change.
        to_result(unsafe { bindings::pci_load_saved_state(self.0, state.raw) })?;
        // SAFETY: alive; the array is used by who saves or restores, and that is who has the function in
        // hand, as we have now.
        let header = unsafe {
            (*self.0).saved_config_space[COMMAND] &= !u32::from(MASTER);
            (*self.0).saved_config_space
        };
        let result = if self.msi_state().1 {
            for (at, value) in header.iter().enumerate() {
                if BARS.contains(&at) && self.header_type() == 0 && !self.is_vf() {
                    // CAST: below 64.
                    let _ = self.write_config(4 * at as u16, AccessWidth::Dword, *value);
                }
            }
            // CAST: a 16-bit register.
            let command = header[COMMAND] as u16 | MEMORY;
            let _ = self.write_config(COMMAND_AT, AccessWidth::Word, command.into());
            if state.physical.decodes_memory() {
                Ok(())
            } else {
                self.disable_msix();
                Err(EIO)
            }
        } else {
            Ok(())
        };
        // SAFETY: alive, state loaded.
        unsafe { bindings::pci_restore_state(self.0) };
        result
    }

    /// Whether its COMMAND register says that it decodes memory. A virtual function decodes as its physical one
    /// does (XSA-157).
    pub fn decodes_memory(&self) -> bool {
        match self.read_config(COMMAND_AT, AccessWidth::Word) {
            Ok(ALL_ONES) | Err(_) => false,
            Ok(command) => command & u32::from(MEMORY) != 0,
        }
    }

    /// # Safety
    ///
    /// The device lock must be held.
    unsafe fn reset_quiet(&self) -> Result {
        // SAFETY: alive; promised by the caller.
        match to_result(unsafe { bindings::__pci_reset_function_locked(self.0) }) {
            // The core's word for both.
            Err(ENOTTY) if self.has_own_reset() => Err(EIO),
            result => result,
        }
    }

    /// # Safety
    ///
    /// The device lock must be held.
    unsafe fn reset_and_restore_quiet(&self, state: &SavedState) -> Result {
        self.set_power_state(0)?;
        // No decode, no DMA, no interrupt while it is reset. A function that does not take the write
        // is reset nevertheless.
        let _ = self.write_config(
            COMMAND_AT,
            AccessWidth::Word,
            bindings::PCI_COMMAND_INTX_DISABLE,
        );
        // SAFETY: promised by the caller.
        let result = unsafe { self.reset_quiet() };
        let restored = self.restore_state(state);
        result.and(restored)
    }

    /// Whether the core knows a way to reset this function alone. A way that resets its bus may be on the
    /// core's list though others are on that bus: the list is made when nobody else has been found there yet.
    fn has_own_reset(&self) -> bool {
        // SAFETY: the invariant: a live device. The list is bytes, copied; the core writes it only when
        // an administrator orders the methods anew.
        let ways = unsafe { (*self.0).reset_methods };
        // The list ends with 0.
        ways.iter()
            .take_while(|way| **way != 0)
            .any(|way| *way < compat::RESETS_OF_A_BUS)
    }

    /// Resets the function while a guest uses it, and writes a saved configuration back, as by
    /// [`Self::restore_state`]. Takes the device lock if it is free; 100 ms to some seconds.
    ///
    /// As `pci_try_reset_function`, which would write two lines into the log for each reset that a
    /// guest asks for. While the reset lasts, the function decodes nothing: that is so with every
    /// reset, and with D3hot.
    ///
    /// MSI and MSI-X that are on stay on: the guest switched them by requests, and after a reset no
    /// driver of a guest would switch them again. Their vectors are written back by Xen.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when it has no way to be reset, `EAGAIN` when the lock is taken: nothing has happened then.
    /// Else that of the reset, or of writing the configuration back.
    pub fn try_reset(&self, state: &SavedState) -> Result {
        // SAFETY: alive; the list ends with 0, so an empty one begins with it.
        if unsafe { (*self.0).reset_methods[0] } == 0 {
            return Err(ENOTTY);
        }
        // SAFETY: alive.
        if unsafe { bindings::pci_dev_trylock(self.0) } == 0 {
            return Err(EAGAIN);
        }
        // SAFETY: the device lock was taken just now, and with it the core keeps dom0's userspace away.
        let result = unsafe { self.reset_and_restore_quiet(state) };
        // SAFETY: alive, locked above.
        unsafe { bindings::pci_dev_unlock(self.0) };
        result
    }

    /// Tells Xen that another domain will use the MSI-X table of this function, or no more.
    ///
    /// # Errors
    ///
    /// Without the capability `ENODEV` (Xen must not be asked then); else Xen's answer.
    pub fn prepare_msix(&self, prepare: bool) -> Result {
        // The core has found it when the function was: to walk the list again is six reads.
        // SAFETY: alive; a constant field.
        if unsafe { (*self.0).msix_cap } == 0 {
            return Err(ENODEV);
        }
        // SAFETY: alive, has the capability.
        to_result(unsafe { sys::physdev_msix(self.0, prepare) })
    }

    /// Resets everything on the function's slot or bus. The core holds the device locks of all functions there,
    /// keeps dom0's userspace away from their configurations, and writes them back as they were before.
    /// No device lock of any of them may be held by the caller.
    ///
    /// # Errors
    ///
    /// `ENOTTY` when bus and slot cannot be reset; `EAGAIN` when a lock is taken.
    pub fn reset_bus(&self) -> Result {
        // SAFETY: alive.
        to_result(unsafe { bindings::pci_reset_bus(self.0) })
    }

    /// Whether both are on the same bus. Atomic.
    pub fn is_beside(&self, other: &Device) -> bool {
        // SAFETY: both alive; a function keeps its bus, and the pointer to it.
        unsafe { core::ptr::eq((*self.0).bus, (*other.0).bus) }
    }

    /// Whether `each` holds for all other functions of the host on this function's bus. May be called
    /// with any lock held: it uses none of the bus itself.
    pub fn all_others_on_bus(&self, mut each: impl FnMut(&Device) -> bool) -> bool {
        !any(|other| other.is_beside(self) && other != self && !each(other))
    }

    /// The function at this address, if the host has it.
    pub fn find(address: Sbdf) -> Option<Self> {
        // SAFETY: a lookup; returns a reference or null.
        let dev = unsafe {
            bindings::pci_get_domain_bus_and_slot(
                ffi::c_int::from(address.segment),
                ffi::c_uint::from(address.bus),
                ffi::c_uint::from(address.devfn.raw()),
            )
        };
        // INVARIANT: the reference is ours.
        (!dev.is_null()).then_some(Self(dev))
    }

    /// Takes the driver off, whichever it is. The device lock must not be held.
    pub fn release_driver(&self) {
        // SAFETY: alive; waits for the driver's `remove`.
        unsafe { bindings::device_release_driver(self.generic()) }
    }

    /// Who in this kernel uses the function now, for a message: a mounted file system, an interface
    /// that is up, a console. `None` when nobody does.
    pub fn user(&self) -> Option<CString> {
        let mut text = [0u8; 64];
        // SAFETY: alive; `text` is written within its length and NUL terminated.
        let used = unsafe { sys::pci_user(self.0, text.as_mut_ptr().cast(), 64) };
        let text = CStr::from_bytes_until_nul(&text).unwrap_or(c"");
        if used {
            CString::try_from(text).ok()
        } else {
            None
        }
    }

    /// A function of the host that has memory in the same page as one of this function's BARs, and
    /// the number of that BAR.
    pub fn page_neighbour(&self) -> Option<(Self, i32)> {
        let mut bar = 0;
        // SAFETY: alive; `bar` is written on success.
        let other = unsafe { sys::pci_page_neighbour(self.0, &mut bar) };
        // INVARIANT: the reference is ours.
        (!other.is_null()).then_some((Self(other), bar))
    }

    /// A function with another driver that shares this function's legacy interrupt.
    pub fn line_neighbour(&self) -> Option<Self> {
        // SAFETY: alive.
        let other = unsafe { sys::pci_line_neighbour(self.0) };
        // INVARIANT: the reference is ours.
        (!other.is_null()).then_some(Self(other))
    }

    /// Marks the function as lent out, so that its physical function keeps SR-IOV on.
    pub fn set_assigned(&self, on: bool) {
        // SAFETY: alive.
        unsafe { sys::pci_set_assigned(self.0, on) }
    }

    /// Lets the interrupts of the function be mapped for domain `domid`, which replaces an owner.
    ///
    /// # Errors
    ///
    /// `ENODEV` when there is no memory.
    pub fn set_owner(&self, domid: u16) -> Result {
        self.clear_owner();
        // SAFETY: alive.
        to_result(unsafe { sys::xen_register_device_domain_owner(self.0, domid) })
    }

    /// Ends [`Self::set_owner`]; harmless without it.
    pub fn clear_owner(&self) {
        // SAFETY: alive.
        unsafe { sys::xen_unregister_device_domain_owner(self.0) };
    }
}

/// Whether `each` holds for a function of the host; called for one after the other until it does.
pub fn any(mut each: impl FnMut(&Device) -> bool) -> bool {
    let mut at = core::ptr::null_mut();
    loop {
        // SAFETY: gives up the reference to `at`, if there is one, and returns one to the next of any
        // vendor and device.
        at = unsafe { bindings::pci_get_device(ANY_ID, ANY_ID, at) };
        if at.is_null() {
            return false;
        }
        // SAFETY: alive, the loop holds a reference.
        if each(&unsafe { Device::get(at) }) {
            // SAFETY: the loop's reference.
            unsafe { bindings::pci_dev_put(at) };
            return true;
        }
    }
}

/// The guest's number (pirq) of an interrupt that the MSI code has mapped for it, 0 when there is
/// none. Atomic.
///
/// # Safety
///
/// `irq` must be one that the MSI code has mapped, and stay so: for others the core stops the machine.
unsafe fn msi_pirq(irq: u32) -> u32 {
    if irq == 0 || !crate::is_pv_domain() {
        return 0;
    }
    // SAFETY: mapped by the MSI code, promised by the caller.
    u32::try_from(unsafe { sys::xen_pirq_from_irq(irq) }).unwrap_or(0)
}

/// A driver that decides in `probe` which functions it takes.
pub trait Driver: Send + Sync + Sized + 'static {
    /// A function that the driver may have. `None` is "not mine".
    fn probe(dev: &Locked<'_>) -> Result<Option<Arc<Self>>>;
    /// The driver lets the function go.
    fn remove(this: Arc<Self>, dev: &Locked<'_>);
    /// A step of the recovery from an error of the PCIe hierarchy (AER); the core holds the device
    /// lock. What it returns is the driver's vote.
    fn recover(this: ArcBorrow<'_, Self>, step: Step) -> Verdict;
    /// Another driver is about to be taken off the physical function `dev`, whose virtual ones go
    /// then, as a rule. Called with the device lock of `dev` held.
    fn physical_goes(dev: &Device);
}

/// A PCI driver while it is registered; it is offered every function.
///
/// # Invariants
///
/// `raw` and `notifier` are registered until `drop`.
#[pin_data(PinnedDrop)]
pub struct Registration<T: Driver> {
    #[pin]
    raw: Opaque<bindings::pci_driver>,
    #[pin]
    ids: Opaque<[bindings::pci_device_id; 2]>,
    #[pin]
    errors: Opaque<bindings::pci_error_handlers>,
    #[pin]
    group: Opaque<bindings::attribute_group>,
    #[pin]
    groups: Opaque<[*const bindings::attribute_group; 2]>,
    #[pin]
    notifier: Opaque<bindings::notifier_block>,
    _driver: PhantomData<fn(T)>,
}

// SAFETY: nothing that changes anything can be done with a shared reference.
unsafe impl<T: Driver> Sync for Registration<T> {}
// SAFETY: registering and unregistering may happen in any thread.
unsafe impl<T: Driver> Send for Registration<T> {}

impl<T: Driver> Registration<T> {
    /// Registers the driver under `name`, with its attribute files.
    ///
    /// The core offers functions to the driver before it makes the files: `probe` may be called, and
    /// should refuse, before this returns.
    ///
    /// # Errors
    ///
    /// That of the core; `EBUSY` when there is a driver of this name.
    pub fn new(
        name: &'static CStr,
        mod_name: &'static CStr,
        module: &'static ThisModule,
        files: &'static crate::sysfs::Group,
    ) -> impl PinInit<Self, Error> {
        // SAFETY: the closure fills all fields; on success the value is pinned until `drop`, which
        // unregisters before the memory goes.
        unsafe {
            pin_init::pin_init_from_closure(move |slot: *mut Self| {
                let raw = Opaque::cast_into(&raw const (*slot).raw);
                let ids = Opaque::cast_into(&raw const (*slot).ids);
                let errors = Opaque::cast_into(&raw const (*slot).errors);
                let group = Opaque::cast_into(&raw const (*slot).group);
                let groups = Opaque::cast_into(&raw const (*slot).groups);
                let notifier = Opaque::cast_into(&raw const (*slot).notifier);
                let any = bindings::pci_device_id {
                    vendor: ANY_ID,
                    device: ANY_ID,
                    subvendor: ANY_ID,
                    subdevice: ANY_ID,
                    ..Default::default()
                };
                ids.write([any, bindings::pci_device_id::default()]);
                errors.write(bindings::pci_error_handlers {
                    error_detected: Some(Self::error_detected),
                    mmio_enabled: Some(Self::mmio_enabled),
                    slot_reset: Some(Self::slot_reset),
                    resume: Some(Self::resume),
                    ..Default::default()
                });
                group.write(bindings::attribute_group {
                    bin_attrs: files.list(),
                    ..Default::default()
                });
                groups.write([group.cast_const(), core::ptr::null()]);
                notifier.write(bindings::notifier_block {
                    notifier_call: Some(Self::notified),
                    ..Default::default()
                });
                raw.write(bindings::pci_driver {
                    name: name.as_char_ptr(),
                    id_table: ids.cast(),
                    probe: Some(Self::probe),
                    remove: Some(Self::remove),
                    err_handler: errors,
                    groups: groups.cast(),
                    // The guest's DMA is Xen's business, not dom0's IOMMU domain.
                    driver_managed_dma: true,
                    ..Default::default()
                });
                to_result(bindings::__pci_register_driver(
                    raw,
                    module.as_ptr(),
                    mod_name.as_char_ptr(),
                ))?;
                to_result(bindings::bus_register_notifier(
                    &raw const bindings::pci_bus_type,
                    notifier,
                ))
                .inspect_err(|_| bindings::pci_unregister_driver(raw))
            })
        }
    }

    fn driver(&self) -> *mut bindings::device_driver {
        // SAFETY: within `raw`.
        unsafe { &raw mut (*self.raw.get()).driver }
    }

    /// Offers all functions that have no driver.
    ///
    /// # Errors
    ///
    /// That of the core.
    pub fn offer_all(&self) -> Result {
        // SAFETY: a registered driver.
        to_result(unsafe { bindings::driver_attach(self.driver()) })
    }

    extern "C" fn probe(
        dev: *mut bindings::pci_dev,
        _id: *const bindings::pci_device_id,
    ) -> ffi::c_int {
        from_result(|| {
            // SAFETY: the core passes a live device.
            let device = unsafe { Device::get(dev) };
            // SAFETY: the core holds its device lock.
            let state = T::probe(unsafe { &Locked::assume(&device) })?.ok_or(ENODEV)?;
            // SAFETY: the driver data is ours while the device is bound.
            unsafe {
                bindings::dev_set_drvdata(
                    &raw mut (*dev).dev,
                    Arc::into_raw(state).cast_mut().cast(),
                )
            };
            Ok(0)
        })
    }

    extern "C" fn remove(dev: *mut bindings::pci_dev) {
        // SAFETY: a live, bound device, whose driver data is ours.
        let state = unsafe { bindings::dev_get_drvdata(&raw mut (*dev).dev) }.cast::<T>();
        // SAFETY: as above.
        unsafe { bindings::dev_set_drvdata(&raw mut (*dev).dev, core::ptr::null_mut()) };
        if !state.is_null() {
            // SAFETY: the core keeps the function until this callback returns.
            let device = unsafe { Device::get(dev) };
            // SAFETY: the core holds its device lock.
            let locked = unsafe { Locked::assume(&device) };
            // SAFETY: `probe` stored it with `Arc::into_raw`, and it has just been taken out.
            T::remove(unsafe { Arc::from_raw(state.cast_const()) }, &locked);
        }
    }

    /// # Safety
    ///
    /// `dev` must be a live function whose device lock is held.
    unsafe fn recover(dev: *mut bindings::pci_dev, step: Step) -> bindings::pci_ers_result_t {
        // SAFETY: a live device.
        let state = unsafe { bindings::dev_get_drvdata(&raw mut (*dev).dev) }.cast::<T>();
        let verdict = if state.is_null() {
            step.default_verdict()
        } else {
            // SAFETY: `probe` stored an `Arc<T>`; the device lock keeps `remove` away.
            T::recover(unsafe { ArcBorrow::from_raw(state.cast_const()) }, step)
        };
        verdict.number()
    }

    extern "C" fn error_detected(
        dev: *mut bindings::pci_dev,
        state: bindings::pci_channel_state_t,
    ) -> bindings::pci_ers_result_t {
        let step = Step::Detected(ChannelState::from_number(state));
        // SAFETY: the core passes a bound device and holds its lock.
        unsafe { Self::recover(dev, step) }
    }

    extern "C" fn mmio_enabled(dev: *mut bindings::pci_dev) -> bindings::pci_ers_result_t {
        // SAFETY: as in `error_detected`.
        unsafe { Self::recover(dev, Step::MmioEnabled) }
    }

    extern "C" fn slot_reset(dev: *mut bindings::pci_dev) -> bindings::pci_ers_result_t {
        // SAFETY: as in `error_detected`.
        unsafe { Self::recover(dev, Step::SlotReset) }
    }

    extern "C" fn resume(dev: *mut bindings::pci_dev) {
        // SAFETY: as in `error_detected`.
        unsafe { Self::recover(dev, Step::Resume) };
    }

    extern "C" fn notified(
        _notifier: *mut bindings::notifier_block,
        action: ffi::c_ulong,
        device: *mut ffi::c_void,
    ) -> ffi::c_int {
        if action == bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER as ffi::c_ulong {
            let dev = device
                .wrapping_byte_sub(core::mem::offset_of!(bindings::pci_dev, dev))
                .cast::<bindings::pci_dev>();
            // SAFETY: on the PCI bus the notifier gets the device within a live `pci_dev`.
            let dev = unsafe { Device::get(dev) };
            if dev.is_pf() {
                T::physical_goes(&dev);
            }
        }
        0
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: registered by the type invariant; waits for a running notification.
        unsafe {
            bindings::bus_unregister_notifier(
                &raw const bindings::pci_bus_type,
                self.notifier.get(),
            )
        };
        // SAFETY: registered by the type invariant; calls `remove` for each bound function.
        unsafe { bindings::pci_unregister_driver(self.raw.get()) }
    }
}
