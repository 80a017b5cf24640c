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
//! A third mask names the bits that are cleared by writing ones (RW1C, status registers): a write of
//! their neighbours writes them as zeros, so that it clears nothing by accident.
//!
//! Registers whose write has a meaning beyond storing bits name an effect, which
//! is carried out through [`Function`], the seam to the real device. What no row covers is readable
//! and its writes are dropped, with success, unless the function is permissive; then they reach
//! the device.
//!
//! ```text
//!  access ─▶ dword number ─▶ rows of this dword ─▶ one device access for the bits that are
//!            direct index     0 to 4, const tables  not virtual; virtual bits laid over
//! ```
//!
//! | a write covers | the guest is permissive | otherwise |
//! |---|---|---|
//! | rows that bind (see `table`) | the rows decide; bytes beside them are dropped | the same |
//! | other rows only | the device is written | the rows decide |
//! | no row | the device is written | dropped |
//! | bits of a quirk | as above | those bits are written |
//!
//! The owner of an engine holds the function's lock for every call, so nothing here is shared. Reads
//! never sleep; whether a write may, [`VirtualConfigSpace::may_sleep`] says beforehand.
//!
//! Rules that this engine keeps and that a reader may look for:
//!
//! * Memory and I/O decode of the device are never cleared by a guest, not even a permissive one:
//!   a host access to a device that does not decode can take the host down (XSA-120).
//! * What a guest left behind does not reach the next one:
//!   [`VirtualConfigSpace::reset_for_assignment`] starts the shadow of COMMAND and all BAR sizing
//!   states afresh. A fresh COMMAND reads with memory and I/O decode clear, because the function is
//!   disabled then; so every guest enables it by itself.
//! * A guest resets the function by the bits Initiate FLR of PCI Express or Advanced Features. They
//!   never reach the device: the kernel resets it, by the method that it trusts for this device, and
//!   writes the host's configuration back. The guest then sees COMMAND clear, BARs not sizing, D0.
//! * Every offset is inside the configuration space of the function, and only [`OpStatus`] comes
//!   out.

mod capability;
mod index;
mod kept;
mod table;

use crate::access::{AccessWidth, ConfigAccess};
use crate::op::OpStatus;
use crate::quirk::{Quirk, QuirkRefusal};
use core::fmt::{self, Display, Formatter};
use index::Index;
pub use kept::GuestBits;
use table::{
    Dword, Effect, Row, AF_CAN_FLR, BIST_START, COMMAND, COMMAND_DECODE, COMMAND_GUEST,
    COMMAND_INTX_DISABLE, COMMAND_MASTER, COMMAND_MWI, EXPRESS_CAN_FLR, MSIX_ENABLE, MSI_ENABLE,
    POWER_STATE, READ_REQUEST, ROM_BAR, VPD_WRITE,
};

/// The real function, as far as a guest can reach it. The backend implements it over a kernel PCI
/// device, the tests over an array of bytes.
///
/// All methods may be called only while the caller holds the function. `config_size`, `read`, `write`,
/// `ids`, `interrupt_line` and `set_max_read_request` never sleep; the others may.
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
    /// True while the function is bus master.
    fn is_bus_master(&self) -> bool;
    /// Switches bus mastering.
    fn set_bus_master(&mut self, on: bool);
    /// Switches memory write and invalidate.
    fn set_mwi(&mut self, on: bool) -> Result<(), OpStatus>;
    /// Lets the function raise its interrupt pin (`true`) or forbids it (`false`).
    fn set_intx(&mut self, on: bool);
    /// Brings the function into power state D0 to D3hot (0 to 3). Some forget their configuration on their
    /// way from D3hot to D0, so all of them then have that of when they were taken, decode included: nobody
    /// else would restore it before the host's next access. Bus mastering is off in the device then. What the
    /// guest had set in between is the engine's to give back, see [`GuestBits`].
    fn set_power_state(&mut self, state: u8) -> Result<(), OpStatus>;
    /// Resets the function by a method that affects no other one, and writes the configuration back that it
    /// had when it was taken: COMMAND without bus mastering, BARs, capabilities. MSI and MSI-X that were switched on by requests are on again, with
    /// their vectors: no driver of a paravirtual guest asks for them a second time. What a guest
    /// switched on through registers is off, as behind any reset.
    ///
    /// # Errors
    ///
    /// When it was not reset; its configuration is then that of when it was taken, or as before.
    /// `AccessDenied` when somebody of the
    /// host has the function in hand, and it can be tried again.
    fn reset(&mut self) -> Result<(), OpStatus>;
    /// Lets the function ask for reads of at most `bytes` bytes, a power of two from 128 to 4096.
    ///
    /// # Errors
    ///
    /// When the host bridge cannot answer such reads; nothing has changed then.
    fn set_max_read_request(&mut self, bytes: u16) -> Result<(), OpStatus>;
}

/// How often enabling, and a change of the power state, may fail in one assignment: the kernel writes a
/// line about each failure.
const MOST_FAILURES: u8 = 4;
/// The same for resets, whose failure takes the kernel up to a minute.
const MOST_RESET_FAILURES: u8 = 1;

/// Counts the failures of what a guest asks of the kernel. What has failed too often in an assignment is
/// not asked again before the next one.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    enable: u8,
    power: u8,
    reset: u8,
}

impl Failures {
    /// Runs `ask`, unless it has failed `most` times.
    fn limited(
        count: &mut u8,
        most: u8,
        ask: impl FnOnce() -> Result<(), OpStatus>,
    ) -> Result<(), OpStatus> {
        if *count >= most {
            return Err(OpStatus::OpFailed);
        }
        ask().inspect_err(|_| *count += 1)
    }
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
#[must_use = "a dropped write should be counted, see `DeniedWrites`"]
pub struct WriteOutcome {
    /// The bits of the value that were dropped and that a quirk or permissive mode would let through:
    /// all bits where no row covers them; where a row does, those that would have changed, and all of
    /// a read-only register that would have.
    /// Bits of registers that bind every guest are not in here, nor the read-only bits of a status
    /// register: ignoring those is ordinary.
    pub dropped: u32,
}

impl WriteOutcome {
    /// True when nothing of the access was dropped.
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

/// One register with a rule of its own, as the `quirks` file lists it (behaviour, section 2): its
/// offset, its size in bytes and a mask, which is 0 for what is built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Byte offset in configuration space.
    pub offset: u16,
    /// Width of the register.
    pub width: AccessWidth,
    /// The bits that a quirk opens; 0 for a built-in field.
    pub mask: u32,
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (offset, bytes, mask) = (self.offset, self.width.bytes(), self.mask);
        write!(f, "{offset:08x}:{bytes:x}:{mask:08x}")
    }
}

/// How many quirks a function can have.
pub const MAX_QUIRKS: usize = 16;
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
    low_mask: u16,
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

    fn lower_half(info: &BarInfo, kind: u32, low_mask: u16) -> Self {
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

/// The bits of the guest's value that fall into one register.
#[derive(Clone, Copy)]
struct Written {
    /// The whole register.
    register: ConfigAccess,
    /// Which of its bits the access covers.
    touched: u32,
    /// The guest's value there; no other bits.
    value: u32,
    /// Which of its bits a quirk opens.
    quirk: u32,
}

impl Written {
    /// The register as it would read if all of it could be written, from what it reads now.
    const fn merged(&self, current: u32) -> u32 {
        (current & !self.touched) | self.value
    }

    /// The guest starts a function level reset.
    const fn starts(&self, reset: u32) -> bool {
        self.value & reset != 0
    }
}

/// The engine: one per seized function, no heap. Small enough that all that the backend keeps of a function
/// fits into 1 KiB.
#[derive(Clone, Debug)]
pub struct VirtualConfigSpace {
    /// Which rows each 4-byte unit has.
    index: Index,
    /// How many 4-byte units lie inside configuration space.
    inside: u16,
    is_bridge: bool,
    bars: [Bar; BARS],
    /// Without a gap: they are taken away all at once only.
    quirks: [Option<Quirk>; MAX_QUIRKS],
    /// COMMAND as it was when the function was seized.
    seized_command: u16,
    failures: Failures,
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
            index: Index::new(),
            inside: function.config_size() / 4,
            is_bridge: header_type & 0x7f == 1,
            bars: [Bar::default(); BARS],
            quirks: [None; MAX_QUIRKS],
            seized_command: 0,
            failures: Failures::default(),
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
    /// disabled. Quirks are the administrator's and stay; whether they end with the assignment is
    /// the caller's policy, see [`VirtualConfigSpace::clear_quirks`].
    pub fn reset_for_assignment(&mut self) {
        self.command = self.seized_command & !COMMAND_DECODE;
        self.failures = Failures::default();
        for bar in &mut self.bars {
            bar.sizing = false;
        }
    }

    /// Whether the guest has the function decode memory or I/O, by what it wrote to COMMAND.
    pub const fn is_enabled_by_guest(&self) -> bool {
        self.command & COMMAND_DECODE != 0
    }

    /// Gives a free 4-byte unit its rows. The first claim counts: where capabilities of a broken
    /// device overlap, every byte still has exactly one policy. True when the claim counts.
    fn claim(&mut self, number: u16, dword: Dword) -> bool {
        number < self.inside && self.index.claim(number, dword)
    }

    /// Which rows a 4-byte unit has.
    fn rows_of(&self, number: u16) -> Dword {
        self.index.rows_of(number)
    }

    /// The rows of the 4-byte unit that an access lies in; none where nothing is listed.
    fn rows(&self, access: ConfigAccess) -> &'static [Row] {
        self.rows_of(access.dword()).rows()
    }

    /// Whether an access of this function may sleep. Reads never do. Writes do only if they can enable
    /// or disable the function, change its power state or reset it.
    pub fn may_sleep(&self, access: ConfigAccess, is_write: bool) -> bool {
        let lanes = access.lanes();
        is_write
            && self
                .rows(access)
                .iter()
                .any(|row| (row.effect.sleeping_bits() << row.shift()) & lanes != 0)
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
        let rows = self.rows(access);
        let is_bound = rows.iter().any(|row| row.binds && row.lanes() & lanes != 0);
        if flags.permissive && !is_bound {
            return self.write_unbound(function, access, value, flags);
        }
        let quirks = self.quirk_lanes(access);
        let mut covered = 0;
        let mut dropped = 0;
        for row in rows {
            if row.lanes() & lanes == 0 {
                continue;
            }
            covered |= row.lanes();
            let into_row = |bits: u32| (bits & lanes & row.lanes()) >> row.shift();
            let written = Written {
                register: row.register(access),
                touched: into_row(lanes),
                value: into_row(value << access.shift()),
                quirk: into_row(quirks),
            };
            if row.binds && row.is_read_only() {
                continue;
            }
            let denied = self.write_register(row, written, flags, function)?;
            if !row.binds {
                dropped |= denied << row.shift();
            }
        }
        let open = lanes & quirks & !covered;
        if open != 0 {
            write_quirk(access, value, open, function)?;
        }
        dropped |= lanes & !covered & !open;
        Ok(WriteOutcome {
            dropped: dropped >> access.shift(),
        })
    }

    /// The write of a permissive guest where no row binds: the device's, but for resets.
    fn write_unbound<F: Function>(
        &mut self,
        function: &mut F,
        access: ConfigAccess,
        mut value: u32,
        flags: Flags,
    ) -> Result<WriteOutcome, OpStatus> {
        for row in self.rows(access) {
            let bit = ((row.effect.reset_bit() << row.shift()) & access.lanes()) >> access.shift();
            if value & bit == 0 {
                continue;
            }
            if can_reset(row, row.register(access), function)? {
                // The rest of the register would not survive it.
                self.reset_function(flags, function)?;
                return Ok(WriteOutcome { dropped: 0 });
            }
            value &= !bit;
        }
        function.write(access, value)?;
        Ok(WriteOutcome { dropped: 0 })
    }

    /// Lets a guest write the bits of a quirk, in addition to what the table allows. A second quirk
    /// for the same register takes the place of the first.
    ///
    /// Where a mask has not all bits of a byte, the others of that byte are written back as they
    /// read. Status bits that ones clear and that no row knows are then cleared, so a mask should
    /// not share a byte with those.
    ///
    /// # Errors
    ///
    /// A [`QuirkRefusal`], with nothing changed.
    pub fn add_quirk(&mut self, quirk: Quirk) -> Result<(), QuirkRefusal> {
        let config_size = self.inside.saturating_mul(4);
        if quirk.end() > config_size {
            return Err(QuirkRefusal::Outside { config_size });
        }
        let first = quirk.offset() / 4;
        for number in [first, first.saturating_add(1)] {
            let opened = quirk.lanes(number);
            for row in self.rows_of(number).rows() {
                // Of other rows, the virtual bits start resets.
                let kept = if row.binds {
                    row.width.mask()
                } else {
                    row.virt
                };
                if (kept << row.shift()) & opened != 0 {
                    let offset = ConfigAccess::of_table(number, row.byte, row.width).offset();
                    return Err(QuirkRefusal::Bound {
                        offset,
                        why: row.why,
                    });
                }
            }
        }
        let same = |slot: &&mut Option<Quirk>| slot.is_some_and(|other| other.is_same_place(quirk));
        let place = match self.quirks.iter_mut().find(same) {
            Some(place) => place,
            None => {
                let mut free = self.quirks.iter_mut().filter(|slot| slot.is_none());
                free.next().ok_or(QuirkRefusal::Full)?
            }
        };
        *place = Some(quirk);
        Ok(())
    }

    /// Takes all quirks away.
    pub fn clear_quirks(&mut self) {
        self.quirks = [None; MAX_QUIRKS];
    }

    /// The quirks, in the order in which they were added.
    pub fn quirks(&self) -> impl Iterator<Item = Quirk> + '_ {
        self.quirks.iter().map_while(|slot| *slot)
    }

    /// The bits of the 4-byte unit of `access` that quirks open.
    fn quirk_lanes(&self, access: ConfigAccess) -> u32 {
        self.quirks()
            .fold(0, |lanes, quirk| lanes | quirk.lanes(access.dword()))
    }

    /// Lists what the `quirks` file shows: every built-in register that differs from "readable, not
    /// writable", by offset, and then the quirks. Registers of capabilities that a guest may
    /// only read are as if they were not listed, so they are not in here.
    pub fn fields(&self) -> impl Iterator<Item = Field> + '_ {
        let built_in = self.index.iter().flat_map(|(number, dword)| {
            let rows = dword
                .rows()
                .iter()
                .filter(|row| row.binds || !row.is_read_only());
            rows.map(move |row| Field {
                offset: ConfigAccess::of_table(number, row.byte, row.width).offset(),
                width: row.width,
                mask: 0,
            })
        });
        let added = self.quirks().map(|quirk| Field {
            offset: quirk.offset(),
            width: quirk.width(),
            mask: quirk.mask(),
        });
        built_in.chain(added)
    }

    /// Lists every register of which a guest sees bits that are not the device's.
    pub fn virtualised_ranges(&self) -> impl Iterator<Item = VirtualRange> + '_ {
        self.index.iter().flat_map(|(number, dword)| {
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
            | Effect::MsixControl
            | Effect::DeviceControl
            | Effect::FeatureControl => 0,
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

    /// Writes one register and tells which bits of the value were dropped.
    fn write_register<F: Function>(
        &mut self,
        row: &Row,
        written: Written,
        flags: Flags,
        function: &mut F,
    ) -> Result<u32, OpStatus> {
        let register = written.register;
        match row.effect {
            Effect::Plain => return write_allowed(row, written, function),
            Effect::DeviceControl => {
                return self.write_device_control(row, written, flags, function);
            }
            Effect::FeatureControl => {
                if written.starts(row.effect.reset_bit()) && can_reset(row, register, function)? {
                    self.reset_function(flags, function)?;
                    return Ok(0);
                }
                return write_allowed(row, written, function);
            }
            // Read-only rows are stepped over before.
            Effect::VendorId | Effect::DeviceId | Effect::InterruptLine => return Ok(0),
            _ => {}
        }
        let current = if written.touched == row.width.mask() {
            // Every bit is written; what was there does not matter.
            0
        } else {
            self.register_value(row, register, function)?
        };
        let new = written.merged(current);
        match row.effect {
            // CAST: a 16-bit register.
            Effect::Command => self.write_command(new as u16, flags, function)?,
            Effect::Bist => write_bist(row, register, new, function)?,
            Effect::Bar | Effect::Rom => self.write_bar(row, register, new, function)?,
            Effect::VpdAddress if new & VPD_WRITE != 0 => return Err(OpStatus::AccessDenied),
            Effect::VpdAddress => function.write(register, new)?,
            Effect::PowerControl => {
                // Nobody is there: the kernel would say so, each time.
                if function.read(register)? == row.width.mask() {
                    return Err(OpStatus::AccessDenied);
                }
                let _ = write_allowed(row, written, function)?;
                // CAST: two bits.
                let state = (new & POWER_STATE) as u8;
                let bits = (state == 0).then(|| self.guest_bits(function));
                let count = &mut self.failures.power;
                let set = || function.set_power_state(state);
                let result = Failures::limited(count, MOST_FAILURES, set);
                if let Some(bits) = bits {
                    self.give_back(function, &bits);
                }
                result.map_err(|_| OpStatus::AccessDenied)?;
            }
            Effect::MsiControl => {
                let other = self.msix_control.map(|control| (control, MSIX_ENABLE));
                write_interrupt_control(row, register, new, MSI_ENABLE, other, flags, function)?;
            }
            Effect::MsixControl => {
                let other = self.msi_control.map(|control| (control, MSI_ENABLE));
                write_interrupt_control(row, register, new, MSIX_ENABLE, other, flags, function)?;
            }
            // Returned above.
            Effect::Plain
            | Effect::DeviceControl
            | Effect::FeatureControl
            | Effect::VendorId
            | Effect::DeviceId
            | Effect::InterruptLine => {}
        }
        Ok(0)
    }

    /// PCI Express Device Control: a reset, or the bits that the table allows and the size of reads.
    fn write_device_control<F: Function>(
        &mut self,
        row: &Row,
        written: Written,
        flags: Flags,
        function: &mut F,
    ) -> Result<u32, OpStatus> {
        let register = written.register;
        if written.starts(row.effect.reset_bit()) && can_reset(row, register, function)? {
            // The rest of the register would not survive it.
            self.reset_function(flags, function)?;
            return Ok(0);
        }
        let mut dropped = write_allowed(row, written, function)?;
        let wanted = dropped & READ_REQUEST;
        if wanted != 0 {
            // `dropped` has the bits that would change; the three lie in one byte.
            let code = (written.value & READ_REQUEST) >> 12;
            let is_set = match code {
                0..=5 => function.set_max_read_request(128 << code).is_ok(),
                _ => false,
            };
            if is_set {
                dropped &= !READ_REQUEST;
            }
        }
        Ok(dropped)
    }

    /// Resets the function for its guest, which then finds it as behind a function level reset.
    fn reset_function<F: Function>(
        &mut self,
        flags: Flags,
        function: &mut F,
    ) -> Result<(), OpStatus> {
        let bits = self.guest_bits(function);
        let count = &mut self.failures.reset;
        let mut busy = false;
        let result = Failures::limited(count, MOST_RESET_FAILURES, || match function.reset() {
            // No failure of the function.
            Err(OpStatus::AccessDenied) => {
                busy = true;
                Ok(())
            }
            result => result,
        });
        if busy || result.is_err() {
            self.give_back(function, &bits);
            return Err(result.err().unwrap_or(OpStatus::OpFailed));
        }
        if function.is_bus_master() {
            function.set_bus_master(false);
        }
        if flags.allow_interrupt_control && self.command & COMMAND_INTX_DISABLE != 0 {
            function.set_intx(true);
        }
        self.command = 0;
        for bar in &mut self.bars {
            bar.sizing = false;
        }
        // The rest of COMMAND that a guest sees of the device. Decode stays.
        let real = function.read(COMMAND)?;
        if real & COMMAND_GUEST != 0 {
            function.write(COMMAND, real & !COMMAND_GUEST)?;
        }
        Ok(())
    }

    /// COMMAND (behaviour, section 6.3). The order matters: enabling the function can fail, and
    /// then nothing else may have happened.
    ///
    /// The kernel writes lines into the host's log for each enabling, so a function stays enabled from the
    /// guest's first wish to the end of its assignment, and a failure is tried again a few times only.
    /// Decode in the device stays on either way; what a guest switches on and off is its own copy.
    fn write_command<F: Function>(
        &mut self,
        mut new: u16,
        flags: Flags,
        function: &mut F,
    ) -> Result<(), OpStatus> {
        if new & COMMAND_DECODE != 0 && !function.is_enabled() {
            let count = &mut self.failures.enable;
            Failures::limited(count, MOST_FAILURES, || function.enable())?;
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
        bar.sizing = new | u32::from(bar.low_mask) == u32::MAX;
        let restores = !bar.sizing && bar.size != 0 && new == bar.value;
        if restores && function.read(register)? != new {
            function.write(register, new)?;
        }
        Ok(())
    }
}

/// Whether the function says that it can reset itself by the register of this row.
fn can_reset<F: Function>(
    row: &Row,
    register: ConfigAccess,
    function: &mut F,
) -> Result<bool, OpStatus> {
    let before = register.dword().saturating_sub(1);
    match row.effect {
        Effect::DeviceControl => {
            let caps = ConfigAccess::of_table(before, 0, AccessWidth::Dword);
            Ok(function.read(caps)? & EXPRESS_CAN_FLR != 0)
        }
        Effect::FeatureControl => {
            let caps = ConfigAccess::of_table(before, 3, AccessWidth::Byte);
            Ok(function.read(caps)? & AF_CAN_FLR == AF_CAN_FLR)
        }
        _ => Ok(false),
    }
}

/// Writes the bits that the row and the quirks allow, and only if one of them changes or is to be
/// cleared. Tells which bits would have changed and were dropped.
fn write_allowed<F: Function>(
    row: &Row,
    written: Written,
    function: &mut F,
) -> Result<u32, OpStatus> {
    let Written {
        register,
        touched,
        value,
        quirk,
    } = written;
    let allowed = (row.write | quirk) & touched;
    if allowed == row.width.mask() {
        return function.write(register, value).map(|()| 0);
    }
    let clear = row.clear & value & !allowed;
    if row.clear != 0 && row.write | quirk == 0 {
        // Nothing but status: zeros do nothing to the bits beside, and those are nobody's.
        if clear != 0 {
            function.write(register, clear)?;
        }
        return Ok(0);
    }
    let old = function.read(register)? & !row.virt;
    let kept = old & !row.clear & !allowed;
    let new = kept | (value & allowed) | clear;
    if new != old & !row.clear {
        function.write(register, new)?;
    }
    let denied = (value ^ old) & touched & !(allowed | row.clear | row.virt);
    let is_closed = row.write | row.clear | quirk == 0;
    // Of a register that is closed as a whole, single bits tell nothing.
    Ok(if is_closed && denied != 0 {
        touched & !row.virt
    } else {
        denied
    })
}

/// Writes the bits `open` of the 4-byte unit, where there is no row.
fn write_quirk<F: Function>(
    access: ConfigAccess,
    value: u32,
    open: u32,
    function: &mut F,
) -> Result<(), OpStatus> {
    let narrow = access.narrowed(open);
    let lanes = value << access.shift();
    let new = (lanes & open) >> narrow.shift();
    let open = open >> narrow.shift();
    if open == narrow.width().mask() {
        return function.write(narrow, new);
    }
    let old = function.read(narrow)?;
    function.write(narrow, (old & !open) | new)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// One register of a function, of which nothing else is used.
    struct Register {
        value: u32,
        written: Vec<u32>,
    }

    impl Function for Register {
        fn read(&mut self, _: ConfigAccess) -> Result<u32, OpStatus> {
            Ok(self.value)
        }
        fn write(&mut self, _: ConfigAccess, value: u32) -> Result<(), OpStatus> {
            self.written.push(value);
            Ok(())
        }
        fn config_size(&self) -> u16 {
            256
        }
        fn ids(&self) -> (u16, u16) {
            (0, 0)
        }
        fn interrupt_line(&self) -> u8 {
            0
        }
        fn is_enabled(&self) -> bool {
            false
        }
        fn enable(&mut self) -> Result<(), OpStatus> {
            Err(OpStatus::OpFailed)
        }
        fn is_bus_master(&self) -> bool {
            false
        }
        fn set_bus_master(&mut self, _: bool) {}
        fn set_mwi(&mut self, _: bool) -> Result<(), OpStatus> {
            Err(OpStatus::OpFailed)
        }
        fn set_intx(&mut self, _: bool) {}
        fn set_power_state(&mut self, _: u8) -> Result<(), OpStatus> {
            Err(OpStatus::OpFailed)
        }
        fn reset(&mut self) -> Result<(), OpStatus> {
            Err(OpStatus::OpFailed)
        }
        fn set_max_read_request(&mut self, _: u16) -> Result<(), OpStatus> {
            Err(OpStatus::OpFailed)
        }
    }

    /// What a write of `value` with the quirk `quirk` leads to in a register that reads `old`, of which
    /// the row opens `write` and `clear`.
    fn written(write: u32, clear: u32, quirk: u32, old: u32, value: u32) -> (Vec<u32>, u32) {
        let row = Row {
            byte: 0,
            width: AccessWidth::Word,
            virt: 0,
            write,
            clear,
            binds: false,
            effect: Effect::Plain,
            why: "",
        };
        let written = Written {
            register: ConfigAccess::of_table(0x10, 0, AccessWidth::Word),
            touched: 0xffff,
            value,
            quirk,
        };
        let mut register = Register {
            value: old,
            written: Vec::new(),
        };
        let dropped = write_allowed(&row, written, &mut register).unwrap();
        (register.written, dropped)
    }

    #[test]
    fn status_register_without_a_quirk_gets_its_ones_and_nothing_else() {
        assert_eq!(
            written(0, 0xf000, 0, 0xf0ff, 0x3000),
            (std::vec![0x3000], 0)
        );
        assert_eq!(
            written(0, 0xf000, 0, 0xf0ff, 0x0f0f),
            (std::vec![], 0),
            "bits that are nobody's are not told"
        );
    }

    #[test]
    fn quirk_on_a_status_register_opens_its_bits() {
        // Beside the status bits, the same as them, and the same as what the row opens anyway.
        for (write, quirk) in [(0, 0x000f), (0x000f, 0x000f), (0x000f, 0), (0x0003, 0x000c)] {
            assert_eq!(
                written(write, 0xf000, quirk, 0xf0f0, 0x100a),
                (std::vec![0x10fa], 0x00f0),
                "{write:#x} {quirk:#x}"
            );
        }
        assert_eq!(
            written(0, 0xf000, 0xf000, 0x00f0, 0x50f0),
            (std::vec![0x50f0], 0)
        );
    }
}
