// SPDX-License-Identifier: GPL-2.0

//! The configuration space that a guest sees of one assigned function (behaviour, section 6).
//!
//! A table says for every register that is not simply readable which of its bits are **virtual**
//! (the guest reads our value, not the device's) and which it may **write**. Four meanings follow:
//!
//! | virt | write | a guest |
//! |---|---|---|
//! | 0 | 0 | reads the device, changes nothing |
//! | 0 | 1 | reads and writes the device |
//! | 1 | 0 | reads our value, changes nothing |
//! | 1 | 1 | reads and writes our value |
//!
//! Registers whose write has a meaning beyond storing bits name an effect, which
//! is carried out through [`Function`], the seam to the real device. What no row covers is readable
//! and its writes are dropped, with success, unless the function is permissive; then they reach
//! the device. A byte beside a row in the same access is dropped in either case.
//!
//! ```text
//!  access ─▶ dword number ─▶ rows of this dword ─▶ one device access for the bits that are
//!            direct index     0 to 3, const tables  not virtual; virtual bits laid over
//! ```
//!
//! Rules that this engine keeps and that a reader may look for:
//!
//! * Memory and I/O decode of the device are never cleared by a guest, not even a permissive one:
//!   a host access to a device that does not decode can take the host down (XSA-120).
//! * What a guest left behind does not reach the next one:
//!   [`VirtualConfigSpace::reset_for_assignment`] starts the shadow of COMMAND and all BAR sizing
//!   states afresh. A fresh COMMAND reads with memory and I/O decode clear, because the function is
//!   disabled then; so every guest enables it by itself.
//! * Every offset is inside the configuration space of the function, and only [`OpStatus`] comes
//!   out.

mod capability;
mod table;

use crate::access::{AccessWidth, ConfigAccess};
use crate::op::OpStatus;
use table::{
    Dword, Effect, Row, BIST_START, COMMAND, COMMAND_DECODE, COMMAND_GUEST, COMMAND_INTX_DISABLE,
    COMMAND_MASTER, COMMAND_MWI, MSIX_ENABLE, MSI_ENABLE, POWER_STATE, ROM_BAR, VPD_WRITE,
};

/// The real function, as far as a guest can reach it. The backend implements it over a kernel PCI
/// device, the tests over an array of bytes.
///
/// All methods may sleep and may be called only while the caller holds the function.
pub trait Function {
    /// Bytes of configuration space: usually 256 or 4096, some devices are quirked to others.
    fn config_size(&self) -> u16;
    /// Reads the device's register. The value has no bits above the width.
    fn read(&mut self, access: ConfigAccess) -> Result<u32, OpStatus>;
    /// Writes the device's register. The value has no bits above the width.
    fn write(&mut self, access: ConfigAccess, value: u32) -> Result<(), OpStatus>;
    /// Vendor and device id as the kernel knows them; a virtual function's registers read all ones.
    fn ids(&self) -> (u16, u16);
    /// Number that the guest has to bind for the function's interrupt pin; 0 when there is none.
    fn interrupt_line(&self) -> u8;
    /// True while the kernel has the function enabled.
    fn is_enabled(&self) -> bool;
    /// Enables the function with every decode that its BARs need.
    fn enable(&mut self) -> Result<(), OpStatus>;
    /// Disables the function. Decode bits stay set in the device.
    fn disable(&mut self);
    /// True while the function is bus master.
    fn is_bus_master(&self) -> bool;
    /// Switches bus mastering.
    fn set_bus_master(&mut self, on: bool);
    /// Switches memory write and invalidate.
    fn set_mwi(&mut self, on: bool) -> Result<(), OpStatus>;
    /// Lets the function raise its interrupt pin (`true`) or forbids it (`false`).
    fn set_intx(&mut self, on: bool);
    /// Brings the function into power state D0 to D3hot (0 to 3). A function that forgets its
    /// configuration on its way from D3hot to D0 has it again afterwards, decode included: nobody
    /// else would restore it before the host's next access.
    fn set_power_state(&mut self, state: u8) -> Result<(), OpStatus>;
    /// Resets the function by a method that affects no other one, and writes its configuration back:
    /// COMMAND, BARs, capabilities. Interrupts that were switched on by requests are on again.
    ///
    /// # Errors
    ///
    /// When it was not reset; its configuration is then as before.
    fn reset(&mut self) -> Result<(), OpStatus>;
    /// Lets the function ask for reads of at most `bytes` bytes, a power of two from 128 to 4096.
    ///
    /// # Errors
    ///
    /// When the host bridge cannot answer such reads; nothing has changed then.
    fn set_max_read_request(&mut self, bytes: u16) -> Result<(), OpStatus>;
}

/// What kind of window a BAR opens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BarFlags {
    /// I/O ports instead of memory.
    pub io: bool,
    /// Memory BAR with 64-bit addresses: the next BAR holds the upper half.
    pub mem64: bool,
    /// Prefetchable memory.
    pub prefetch: bool,
    /// The resource exists and has an address. Without it, the BAR reads as absent.
    pub enabled: bool,
}

/// A resource of the host, as it was when the function was seized. The default is an absent one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BarInfo {
    /// First address.
    pub start: u64,
    /// Size in bytes, a power of two.
    pub len: u64,
    /// Kind of window.
    pub flags: BarFlags,
}

impl BarInfo {
    const fn is_present(&self) -> bool {
        self.flags.enabled && self.len != 0
    }
}

/// What the host's administrator allows for a function. Read for every write, so that a change
/// counts at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Writes that no row covers reach the device.
    pub permissive: bool,
    /// The guest may switch MSI, MSI-X and the interrupt pin through registers.
    pub allow_interrupt_control: bool,
}

/// What became of a write that the policy did not refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a dropped write should be logged once per function"]
pub struct WriteOutcome {
    /// The bits of the value, where no row covers them, that were dropped. Bits of read-only
    /// registers that the table lists are not in here: ignoring those is ordinary.
    pub dropped: u32,
}

impl WriteOutcome {
    /// True when every byte of the access had a row or reached the device.
    pub const fn is_complete(self) -> bool {
        self.dropped == 0
    }
}

/// One register of which a guest sees some bits that are not the device's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualRange {
    /// Byte offset in configuration space.
    pub offset: u16,
    /// Width of the register.
    pub width: AccessWidth,
    /// The bits of the register that are virtual.
    pub bits: u32,
    /// Why, in one line.
    pub why: &'static str,
}

/// Number of 4-byte units that can have rows: the conventional 256 bytes.
const INDEXED: usize = 64;
/// BARs 0 to 5 and the expansion ROM.
const BARS: usize = 7;

/// What a guest reads in a BAR, and how a guest's write to it is understood.
#[derive(Clone, Copy, Debug, Default)]
struct Bar {
    /// Address and type bits; 0 when absent.
    value: u32,
    /// What a sizing read returns; 0 when absent.
    size: u32,
    /// The bits that need not be ones in a write that asks for the size.
    low_mask: u32,
    /// The guest asked for the size last.
    sizing: bool,
}

impl Bar {
    const IO: u32 = 1;
    const MEM64: u32 = 4;
    const PREFETCH: u32 = 8;

    fn memory_or_io(info: &BarInfo) -> Self {
        let BarFlags {
            io,
            mem64,
            prefetch,
            ..
        } = info.flags;
        let low_mask = if io { 3 } else { 0xf };
        let mut kind = 0;
        if io {
            kind |= Bar::IO;
        } else {
            if mem64 {
                kind |= Bar::MEM64;
            }
            if prefetch {
                kind |= Bar::PREFETCH;
            }
        }
        Bar::lower_half(info, kind, low_mask)
    }

    fn rom(info: &BarInfo) -> Self {
        Bar::lower_half(info, 0, 0x7ff)
    }

    fn lower_half(info: &BarInfo, kind: u32, low_mask: u32) -> Self {
        if !info.is_present() {
            return Bar {
                low_mask,
                ..Bar::default()
            };
        }
        let (low, _) = halves(info.start);
        let (low_size, _) = halves(info.len.wrapping_neg());
        Bar {
            value: low | kind,
            size: low_size | kind,
            low_mask,
            sizing: false,
        }
    }

    /// The BAR behind the 64-bit memory BAR `info`.
    fn upper_half(info: &BarInfo) -> Self {
        if !info.is_present() {
            return Bar::default();
        }
        let (_, high) = halves(info.start);
        let (_, high_size) = halves(info.len.wrapping_neg());
        Bar {
            value: high,
            size: high_size,
            low_mask: 0,
            sizing: false,
        }
    }

    fn read(&self) -> u32 {
        if self.sizing {
            self.size
        } else {
            self.value
        }
    }
}

/// Lower and upper half of a 64-bit number.
const fn halves(number: u64) -> (u32, u32) {
    // CAST: the halves, on purpose.
    (number as u32, (number >> 32) as u32)
}

/// The engine: one per seized function, about 200 bytes, no heap.
#[derive(Clone, Debug)]
pub struct VirtualConfigSpace {
    /// Which rows each 4-byte unit has.
    dwords: [Dword; INDEXED],
    bars: [Bar; BARS],
    /// COMMAND as it was when the function was seized.
    seized_command: u16,
    /// What the guest reads in the bits of COMMAND that are not the device's.
    command: u16,
    /// The control registers, while they are virtualised.
    msi_control: Option<ConfigAccess>,
    msix_control: Option<ConfigAccess>,
}

impl VirtualConfigSpace {
    /// Builds the view of a function that was just seized and is not enabled yet.
    ///
    /// `header_type` is 0 (device) or 1 (bridge), `bars` are the host's resources 0 to 5 (0 to 1 of
    /// a bridge; missing ones are absent), `rom` is the expansion ROM. PME is switched off in the
    /// device, because a guest gets no wake-up events.
    ///
    /// # Errors
    ///
    /// [`OpStatus::NotImplemented`] for other header types, [`OpStatus::OpFailed`] for a
    /// configuration space without room for a header, and what the function's accessors return.
    pub fn new<F: Function>(
        header_type: u8,
        bars: &[BarInfo],
        rom: BarInfo,
        function: &mut F,
    ) -> Result<Self, OpStatus> {
        if function.config_size() < 0x40 {
            return Err(OpStatus::OpFailed);
        }
        let header = table::header(header_type).ok_or(OpStatus::NotImplemented)?;
        let mut space = VirtualConfigSpace {
            dwords: [Dword::Unlisted; INDEXED],
            bars: [Bar::default(); BARS],
            seized_command: 0,
            command: 0,
            msi_control: None,
            msix_control: None,
        };
        for &(number, dword) in header {
            space.claim(number, dword);
        }

        let mut lower: Option<&BarInfo> = None;
        for (slot, info) in space.bars.iter_mut().zip(bars) {
            (*slot, lower) = match lower {
                Some(lower) => (Bar::upper_half(lower), None),
                None => (
                    Bar::memory_or_io(info),
                    Some(info).filter(|info| info.flags.mem64 && !info.flags.io),
                ),
            };
        }
        if let Some(slot) = space.bars.get_mut(usize::from(ROM_BAR)) {
            *slot = Bar::rom(&rom);
        }

        // CAST: a 16-bit register.
        space.seized_command = function.read(COMMAND)? as u16;
        capability::add(&mut space, function)?;
        space.reset_for_assignment();
        Ok(space)
    }

    /// Forgets everything that a guest did: to be called for each new assignment, with the function
    /// disabled.
    pub fn reset_for_assignment(&mut self) {
        self.command = self.seized_command & !COMMAND_DECODE;
        for bar in &mut self.bars {
            bar.sizing = false;
        }
    }

    /// Gives a free 4-byte unit its rows. The first claim counts: where capabilities of a broken
    /// device overlap, every byte still has exactly one policy. True when the claim counts.
    fn claim(&mut self, number: u8, dword: Dword) -> bool {
        match self.dwords.get_mut(usize::from(number)) {
            Some(slot @ Dword::Unlisted) => {
                *slot = dword;
                true
            }
            _ => false,
        }
    }

    /// The rows of the 4-byte unit that an access lies in; none where nothing is listed.
    fn rows(&self, access: ConfigAccess) -> &'static [Row] {
        self.dwords
            .get(usize::from(access.dword()))
            .copied()
            .unwrap_or(Dword::Unlisted)
            .rows()
    }

    fn check<F: Function>(function: &F, access: ConfigAccess) -> Result<(), OpStatus> {
        if access.end() <= u32::from(function.config_size()) {
            Ok(())
        } else {
            Err(OpStatus::InvalidOffset)
        }
    }

    /// What a guest reads.
    ///
    /// # Errors
    ///
    /// [`OpStatus::InvalidOffset`] when the access was not made for this function, and what the
    /// function's accessor returns.
    pub fn read<F: Function>(
        &self,
        function: &mut F,
        access: ConfigAccess,
    ) -> Result<u32, OpStatus> {
        Self::check(function, access)?;
        let lanes = access.lanes();
        let mut virtual_lanes = 0;
        let mut virtual_value = 0;
        for row in self.rows(access) {
            let bits = row.virt << row.shift();
            if bits & lanes != 0 {
                virtual_lanes |= bits;
                virtual_value |= (self.virtual_value(row, access, function) << row.shift()) & bits;
            }
        }
        let real = if virtual_lanes & lanes == lanes {
            0
        } else {
            function.read(access)? << access.shift()
        };
        let value = (real & !virtual_lanes) | virtual_value;
        Ok((value & lanes) >> access.shift())
    }

    /// Carries out a guest's write.
    ///
    /// # Errors
    ///
    /// [`OpStatus::AccessDenied`] when the policy refuses the value, [`OpStatus::InvalidOffset`]
    /// when the access was not made for this function, and what the function returns. Where one
    /// access covers several registers, the first error ends it; the registers before it are
    /// written.
    pub fn write<F: Function>(
        &mut self,
        function: &mut F,
        access: ConfigAccess,
        value: u32,
        flags: Flags,
    ) -> Result<WriteOutcome, OpStatus> {
        Self::check(function, access)?;
        let lanes = access.lanes();
        let value = value & access.width().mask();
        let mut covered = 0;
        for row in self.rows(access) {
            if row.lanes() & lanes == 0 {
                continue;
            }
            covered |= row.lanes();
            if row.is_read_only() {
                continue;
            }
            let register = row.register(access);
            let current = if row.lanes() & !lanes == 0 {
                // Every bit is written; what was there does not matter.
                0
            } else {
                self.register_value(row, register, function)?
            };
            let merged = ((current << row.shift()) & !lanes) | ((value << access.shift()) & lanes);
            let new = (merged & row.lanes()) >> row.shift();
            self.write_register(row, register, new, flags, function)?;
        }
        if covered != 0 {
            return Ok(WriteOutcome {
                dropped: (lanes & !covered) >> access.shift(),
            });
        }
        if flags.permissive {
            function.write(access, value)?;
            return Ok(WriteOutcome { dropped: 0 });
        }
        Ok(WriteOutcome {
            dropped: access.width().mask(),
        })
    }

    /// Lists every register of which a guest sees bits that are not the device's.
    pub fn virtualised_ranges(&self) -> impl Iterator<Item = VirtualRange> + '_ {
        (0u8..).zip(self.dwords).flat_map(|(number, dword)| {
            let virtual_rows = dword.rows().iter().filter(|row| row.virt != 0);
            virtual_rows.map(move |row| VirtualRange {
                offset: ConfigAccess::of_table(number, row.byte, row.width).offset(),
                width: row.width,
                bits: row.virt,
                why: row.why,
            })
        })
    }

    /// The BAR whose register lies in the same 4-byte unit as `access`.
    fn bar_mut(&mut self, row: &Row, access: ConfigAccess) -> Option<&mut Bar> {
        self.bars.get_mut(row.bar_index(access))
    }

    /// Our value of a register, of which the virtual bits count.
    fn virtual_value<F: Function>(&self, row: &Row, access: ConfigAccess, function: &F) -> u32 {
        match row.effect {
            Effect::VendorId => u32::from(function.ids().0),
            Effect::DeviceId => u32::from(function.ids().1),
            Effect::InterruptLine => u32::from(function.interrupt_line()),
            Effect::Command => u32::from(self.command),
            Effect::Bar | Effect::Rom => self
                .bars
                .get(row.bar_index(access))
                .map_or(0, |bar| bar.read()),
            // Virtual bits without a source of their own read zero.
            Effect::Plain
            | Effect::Bist
            | Effect::VpdAddress
            | Effect::PowerControl
            | Effect::MsiControl
            | Effect::MsixControl => 0,
        }
    }

    /// What a guest would read in the whole register of a row.
    fn register_value<F: Function>(
        &self,
        row: &Row,
        register: ConfigAccess,
        function: &mut F,
    ) -> Result<u32, OpStatus> {
        let virtual_value = self.virtual_value(row, register, function) & row.virt;
        if row.virt == row.width.mask() {
            return Ok(virtual_value);
        }
        Ok((function.read(register)? & !row.virt) | virtual_value)
    }

    /// Writes the whole register of a row with a value that is merged already.
    fn write_register<F: Function>(
        &mut self,
        row: &Row,
        register: ConfigAccess,
        new: u32,
        flags: Flags,
        function: &mut F,
    ) -> Result<(), OpStatus> {
        match row.effect {
            Effect::Plain => write_allowed(row, register, new, function),
            // Read-only rows are stepped over before.
            Effect::VendorId | Effect::DeviceId | Effect::InterruptLine => Ok(()),
            // CAST: a 16-bit register.
            Effect::Command => self.write_command(new as u16, flags, function),
            Effect::Bist => write_bist(row, register, new, function),
            Effect::Bar | Effect::Rom => self.write_bar(row, register, new, function),
            Effect::VpdAddress if new & VPD_WRITE != 0 => Err(OpStatus::AccessDenied),
            Effect::VpdAddress => function.write(register, new),
            Effect::PowerControl => {
                write_allowed(row, register, new, function)?;
                // CAST: two bits.
                let state = (new & POWER_STATE) as u8;
                function
                    .set_power_state(state)
                    .map_err(|_| OpStatus::AccessDenied)
            }
            Effect::MsiControl => {
                let other = self.msix_control.map(|control| (control, MSIX_ENABLE));
                write_interrupt_control(row, register, new, MSI_ENABLE, other, flags, function)
            }
            Effect::MsixControl => {
                let other = self.msi_control.map(|control| (control, MSI_ENABLE));
                write_interrupt_control(row, register, new, MSIX_ENABLE, other, flags, function)
            }
        }
    }

    /// COMMAND (behaviour, section 6.3). The order matters: enabling the function can fail, and
    /// then nothing else may have happened.
    fn write_command<F: Function>(
        &mut self,
        mut new: u16,
        flags: Flags,
        function: &mut F,
    ) -> Result<(), OpStatus> {
        let decode = new & COMMAND_DECODE != 0;
        match (function.is_enabled(), decode) {
            (false, true) => function.enable()?,
            (true, false) => function.disable(),
            _ => {}
        }
        let master = new & COMMAND_MASTER != 0;
        if function.is_bus_master() != master {
            function.set_bus_master(master);
        }
        let changed = new ^ self.command;
        if changed & COMMAND_MWI != 0 {
            let on = new & COMMAND_MWI != 0;
            if function.set_mwi(on).is_err() && on {
                // It is an optimisation that some devices lack: the guest reads that it is off.
                new &= !COMMAND_MWI;
            }
        }
        if flags.allow_interrupt_control && changed & COMMAND_INTX_DISABLE != 0 {
            function.set_intx(new & COMMAND_INTX_DISABLE == 0);
        }
        self.command = new;
        if flags.permissive {
            let new = u32::from(new);
            let real = function.read(COMMAND)?;
            let wanted = (new & COMMAND_GUEST) | (real & !COMMAND_GUEST);
            if wanted != real {
                function.write(COMMAND, wanted)?;
            }
        }
        Ok(())
    }

    /// A BAR or the expansion ROM (behaviour, section 6.4): a guest can ask for the size, and it
    /// can write the recorded address back to a device that lost it in a reset. It cannot move it.
    fn write_bar<F: Function>(
        &mut self,
        row: &Row,
        register: ConfigAccess,
        new: u32,
        function: &mut F,
    ) -> Result<(), OpStatus> {
        let Some(bar) = self.bar_mut(row, register) else {
            return Ok(());
        };
        bar.sizing = new | bar.low_mask == u32::MAX;
        let restores = !bar.sizing && bar.size != 0 && new == bar.value;
        if restores && function.read(register)? != new {
            function.write(register, new)?;
        }
        Ok(())
    }
}

/// Writes the bits that the row allows, and only if one of them changes.
fn write_allowed<F: Function>(
    row: &Row,
    register: ConfigAccess,
    new: u32,
    function: &mut F,
) -> Result<(), OpStatus> {
    if row.write == row.width.mask() {
        return function.write(register, new);
    }
    let old = function.read(register)?;
    let merged = (old & !row.write) | (new & row.write);
    if merged == old {
        return Ok(());
    }
    function.write(register, merged)
}

/// BIST: a guest may start the self test, and write back what it read.
fn write_bist<F: Function>(
    row: &Row,
    register: ConfigAccess,
    new: u32,
    function: &mut F,
) -> Result<(), OpStatus> {
    let old = function.read(register)?;
    if new == BIST_START || (new ^ old) & !row.write == 0 {
        function.write(register, new)?;
    }
    Ok(())
}

/// MSI and MSI-X control (behaviour, section 6.6). A paravirtual guest switches them by requests;
/// its own writes are refused unless the administrator allowed them. `other` is the control
/// register of the other kind and its enable bit: the two kinds are never on together.
fn write_interrupt_control<F: Function>(
    row: &Row,
    register: ConfigAccess,
    new: u32,
    enable: u32,
    other: Option<(ConfigAccess, u32)>,
    flags: Flags,
    function: &mut F,
) -> Result<(), OpStatus> {
    if flags.permissive {
        return function.write(register, new);
    }
    let old = function.read(register)?;
    if new == old {
        return Ok(());
    }
    if !flags.allow_interrupt_control || (new ^ old) & !row.write != 0 {
        return Err(OpStatus::AccessDenied);
    }
    if new & enable != 0 {
        if let Some((control, other_enable)) = other {
            if function.read(control)? & other_enable != 0 {
                return Err(OpStatus::AccessDenied);
            }
        }
    }
    function.write(register, new)
}
