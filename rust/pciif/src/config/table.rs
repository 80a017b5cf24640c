// SPDX-License-Identifier: GPL-2.0

//! The policy: which bits are virtual, which are writable, and what a write means.
//!
//! Rows are grouped by the 4-byte unit ("dword") that they lie in, because an aligned access of at
//! most 4 bytes never leaves one. Bytes of a unit that no row covers are unlisted.

use crate::access::{AccessWidth, ConfigAccess};
use AccessWidth::{Byte, Dword as Long, Word};

/// The COMMAND register.
pub(super) const COMMAND: ConfigAccess = ConfigAccess::of_table(1, 0, Word);
/// I/O and memory decode.
pub(super) const COMMAND_DECODE: u16 = 0x0003;
/// Bus master.
pub(super) const COMMAND_MASTER: u16 = 0x0004;
/// Memory write and invalidate.
pub(super) const COMMAND_MWI: u16 = 0x0010;
/// Interrupt pin forbidden.
pub(super) const COMMAND_INTX_DISABLE: u16 = 0x0400;
/// The bits that a guest sees of the device itself, and that a permissive guest may write there:
/// master, special cycles, MWI, VGA snoop, wait, fast back-to-back.
pub(super) const COMMAND_GUEST: u32 = 0x02bc;

/// BIST: start the self test.
pub(super) const BIST_START: u32 = 0x40;
/// VPD address: this is a write to the data behind the address.
pub(super) const VPD_WRITE: u32 = 0x8000;
/// PM control: the power state.
pub(super) const POWER_STATE: u32 = 0x0003;
/// PM control: wake-up events are on.
pub(super) const PME_ENABLE: u32 = 0x0100;
/// MSI control: MSI is on.
pub(super) const MSI_ENABLE: u32 = 0x0001;
/// MSI-X control: MSI-X is on.
pub(super) const MSIX_ENABLE: u32 = 0x8000;

/// Where the table of BARs holds the expansion ROM.
pub(super) const ROM_BAR: u8 = 6;
/// The dword of BAR 0.
const FIRST_BAR: u16 = 4;

/// What a write means beyond storing bits, and where the virtual bits come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: writable bits go to the device, virtual bits read zero.
    Plain,
    /// Read from the kernel's idea of the device.
    VendorId,
    /// As [`Effect::VendorId`].
    DeviceId,
    /// Enable, bus master and so on through the kernel; the rest into a shadow.
    Command,
    /// May be started, not otherwise changed.
    Bist,
    /// Address of the host's resource, or its size.
    Bar,
    /// As [`Effect::Bar`], for the expansion ROM.
    Rom,
    /// Number of the interrupt to bind.
    InterruptLine,
    /// Starts a read of VPD; starting a write is refused.
    VpdAddress,
    /// Changes the power state through the kernel.
    PowerControl,
    /// Switches MSI, if allowed.
    MsiControl,
    /// Switches MSI-X, if allowed.
    MsixControl,
}

/// One register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Byte offset inside the dword.
    pub(super) byte: u8,
    /// Width of the register.
    pub(super) width: AccessWidth,
    /// The bits that a guest reads from us.
    pub(super) virt: u32,
    /// The bits that a guest may change.
    pub(super) write: u32,
    /// What a write means.
    pub(super) effect: Effect,
    /// Why it is so.
    pub(super) why: &'static str,
}

impl Row {
    /// By how many bits the register is shifted inside its dword.
    pub(super) const fn shift(&self) -> u32 {
        (self.byte as u32 & 3) * 8
    }

    /// The bits of the dword that the register covers.
    pub(super) const fn lanes(&self) -> u32 {
        self.width.mask() << self.shift()
    }

    /// True when no write can have any effect.
    pub(super) const fn is_read_only(&self) -> bool {
        self.write == 0
    }

    /// The whole register, in the dword that `access` lies in.
    pub(super) fn register(&self, access: ConfigAccess) -> ConfigAccess {
        // CAST: rows exist for the first 64 dwords only.
        ConfigAccess::of_table((access.dword() & 0xff) as u8, self.byte, self.width)
    }

    /// Which BAR this row means in the dword that `access` lies in.
    pub(super) fn bar_index(&self, access: ConfigAccess) -> usize {
        match self.effect {
            Effect::Rom => usize::from(ROM_BAR),
            _ => usize::from(access.dword().wrapping_sub(FIRST_BAR)),
        }
    }
}

const NONE: u32 = 0;
const ALL: u32 = u32::MAX;

/// A row of the tables below. `ALL` means all bits of the width.
const fn row(
    byte: u8,
    width: AccessWidth,
    virt: u32,
    write: u32,
    effect: Effect,
    why: &'static str,
) -> Row {
    Row {
        byte,
        width,
        virt: virt & width.mask(),
        write: write & width.mask(),
        effect,
        why,
    }
}

/// The rows of one dword, if they are well formed: registers lie inside the dword, aligned, and no
/// two overlap. Anything else does not compile.
const fn checked(rows: &'static [Row]) -> &'static [Row] {
    let mut seen = 0;
    let mut index = 0;
    while index < rows.len() {
        let row = &rows[index];
        assert!(row.byte % row.width.bytes() == 0 && row.byte + row.width.bytes() <= 4);
        assert!(seen & row.lanes() == 0);
        seen |= row.lanes();
        index += 1;
    }
    rows
}

/// Which rows a dword has. The position of the dword is not part of it: capabilities move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Dword {
    Unlisted,
    Ids,
    Command,
    CacheLine,
    Bar,
    Rom,
    Interrupt,
    VpdHead,
    VpdData,
    PowerHead,
    PowerControl,
    MsiHead,
    MsixHead,
}

#[rustfmt::skip]
const IDS: &[Row] = checked(&[
    row(0, Word, ALL,     NONE,   Effect::VendorId,      "virtual functions have none of their own"),
    row(2, Word, ALL,     NONE,   Effect::DeviceId,      "virtual functions have none of their own"),
]);

#[rustfmt::skip]
const COMMAND_ROWS: &[Row] = checked(&[
    row(0, Word, !COMMAND_GUEST, ALL, Effect::Command,   "decode stays on in the device: XSA-120"),
]);

#[rustfmt::skip]
const CACHE_LINE: &[Row] = checked(&[
    row(0, Byte, NONE,    ALL,    Effect::Plain,         "no harm: a hint for the device"),
    row(1, Byte, NONE,    NONE,   Effect::Plain,         "the bus is shared with others"),
    row(3, Byte, NONE,    BIST_START, Effect::Bist,      "a self test harms its owner only"),
]);

#[rustfmt::skip]
const BAR: &[Row] = checked(&[
    row(0, Long, ALL,     ALL,    Effect::Bar,           "the address belongs to the host"),
]);

#[rustfmt::skip]
const ROM: &[Row] = checked(&[
    row(0, Long, ALL,     ALL,    Effect::Rom,           "the address belongs to the host"),
]);

#[rustfmt::skip]
const INTERRUPT: &[Row] = checked(&[
    row(0, Byte, ALL,     NONE,   Effect::InterruptLine, "the guest binds this number"),
    row(1, Byte, NONE,    NONE,   Effect::Plain,         "wired in the device"),
]);

#[rustfmt::skip]
const VPD_HEAD: &[Row] = checked(&[
    row(0, Word, NONE,    NONE,   Effect::Plain,         "the list of capabilities is fixed"),
    row(2, Word, NONE,    ALL,    Effect::VpdAddress,    "reading VPD is harmless, writing lasts"),
]);

#[rustfmt::skip]
const VPD_DATA: &[Row] = checked(&[
    row(0, Long, NONE,    NONE,   Effect::Plain,         "writing VPD lasts beyond the guest"),
]);

#[rustfmt::skip]
const POWER_HEAD: &[Row] = checked(&[
    row(0, Word, NONE,    NONE,   Effect::Plain,         "the list of capabilities is fixed"),
    row(2, Word, 0xf800,  NONE,   Effect::Plain,         "no wake-up events for guests"),
]);

#[rustfmt::skip]
const POWER_CONTROL: &[Row] = checked(&[
    row(0, Word, NONE,    0x9e00, Effect::PowerControl,  "the kernel changes the state; PME stays off"),
    row(2, Byte, NONE,    NONE,   Effect::Plain,         "bridge extensions belong to the host"),
    row(3, Byte, NONE,    NONE,   Effect::Plain,         "a measured value"),
]);

#[rustfmt::skip]
const MSI_HEAD: &[Row] = checked(&[
    row(0, Word, NONE,    NONE,   Effect::Plain,         "the list of capabilities is fixed"),
    row(2, Word, NONE,    MSI_ENABLE, Effect::MsiControl, "interrupts are switched by requests"),
]);

#[rustfmt::skip]
const MSIX_HEAD: &[Row] = checked(&[
    row(0, Word, NONE,    NONE,   Effect::Plain,         "the list of capabilities is fixed"),
    row(2, Word, NONE,    0xc000, Effect::MsixControl,   "interrupts are switched by requests"),
]);

impl Dword {
    /// The rows, in the order in which a write carries them out.
    pub(super) const fn rows(self) -> &'static [Row] {
        match self {
            Dword::Unlisted => &[],
            Dword::Ids => IDS,
            Dword::Command => COMMAND_ROWS,
            Dword::CacheLine => CACHE_LINE,
            Dword::Bar => BAR,
            Dword::Rom => ROM,
            Dword::Interrupt => INTERRUPT,
            Dword::VpdHead => VPD_HEAD,
            Dword::VpdData => VPD_DATA,
            Dword::PowerHead => POWER_HEAD,
            Dword::PowerControl => POWER_CONTROL,
            Dword::MsiHead => MSI_HEAD,
            Dword::MsixHead => MSIX_HEAD,
        }
    }
}

/// Dwords of the header that both types share, and those of each type (behaviour, section 6.2).
const DEVICE: &[(u8, Dword)] = &[
    (0, Dword::Ids),
    (1, Dword::Command),
    (3, Dword::CacheLine),
    (4, Dword::Bar),
    (5, Dword::Bar),
    (6, Dword::Bar),
    (7, Dword::Bar),
    (8, Dword::Bar),
    (9, Dword::Bar),
    (12, Dword::Rom),
    (15, Dword::Interrupt),
];

const BRIDGE: &[(u8, Dword)] = &[
    (0, Dword::Ids),
    (1, Dword::Command),
    (3, Dword::CacheLine),
    (4, Dword::Bar),
    (5, Dword::Bar),
    (14, Dword::Rom),
    (15, Dword::Interrupt),
];

/// The listed dwords of a header type; `None` for types that are not virtualised. Bit 7 of the
/// register (several functions) is not part of the type.
pub(super) fn header(header_type: u8) -> Option<&'static [(u8, Dword)]> {
    match header_type & 0x7f {
        0 => Some(DEVICE),
        1 => Some(BRIDGE),
        _ => None,
    }
}
