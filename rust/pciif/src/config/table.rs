// SPDX-License-Identifier: GPL-2.0

//! The policy: which bits are virtual, which are writable, and what a write means.
//!
//! Rows are grouped by the 4-byte unit ("dword") that they lie in, because an aligned access of at
//! most 4 bytes never leaves one. Bytes of a unit that no row covers are unlisted.
//!
//! Two kinds of rows:
//!
//! * A row that **binds** holds for every guest. These are the registers that the host itself works
//!   with: ids, COMMAND, BARs, the capabilities PM, MSI, MSI-X and VPD (behaviour, sections 6.2 to
//!   6.5).
//! * Every other row says what is safe for any guest. A permissive one is not bound by it and writes
//!   the device, as it would where nothing is listed. Its two reset bits (Initiate FLR) are still
//!   the kernel's: a reset behind the kernel's back would lose the host's configuration.
//!
//! Which registers are safe is decided by one question: can the bit reach further than the
//! function's own transactions? Ordering hints, sizes of its own reads and its own time-outs do
//! not. Error reporting, payload size, tags and the link involve ports above; SR-IOV, resizable
//! BARs and ACS hand out resources and isolation. Registers are named as in the PCI Express base
//! specification.
//!
//! Vendor-specific registers cannot be judged bit by bit. Those of the conventional capability (09) are
//! written, as vfio lets its unprivileged users do: they are what the device's own driver works
//! with. Those in extended space (VSEC, DVSEC) are not: error injection, link tests and CXL switches
//! are found there. A quirk opens what a driver needs of them.

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
/// STATUS: what the function itself has noted: parity and system errors, master and target aborts.
const STATUS_ERRORS: u32 = 0xf900;

/// BIST: start the self test.
pub(super) const BIST_START: u32 = 0x40;
/// VPD address: this is a write to the data behind the address.
pub(super) const VPD_WRITE: u32 = 0x8000;
/// PM control: the power state.
pub(super) const POWER_STATE: u32 = 0x0003;
/// PM control: wake-up events are on.
pub(super) const PME_ENABLE: u32 = 0x0100;
/// PM control: which value the data register shows.
const POWER_DATA_SELECT: u32 = 0x1e00;
/// PM control: a wake-up event was seen. Cleared by a one.
const PME_STATUS: u32 = 0x8000;
/// MSI control: MSI is on.
pub(super) const MSI_ENABLE: u32 = 0x0001;
/// MSI-X control: MSI-X is on.
pub(super) const MSIX_ENABLE: u32 = 0x8000;

/// Device Control: start a function level reset.
pub(super) const EXPRESS_FLR: u32 = 0x8000;
/// Device Control: the largest read that the function asks for, 128 shifted by these three bits.
pub(super) const READ_REQUEST: u32 = 0x7000;
/// Device Control: relaxed ordering and no snoop.
const EXPRESS_ORDER: u32 = 0x0810;
/// Device Capabilities: the function can reset itself.
pub(super) const EXPRESS_CAN_FLR: u32 = 0x1000_0000;
/// Device Status: correctable, non-fatal and fatal errors, unsupported request.
const EXPRESS_ERRORS: u32 = 0x000f;
/// Device Control 2: range and switch of the completion time-out, and ID-based ordering.
const EXPRESS_TIMEOUT_AND_ORDER: u32 = 0x031f;
/// Advanced Features control: start a function level reset.
pub(super) const AF_FLR: u32 = 0x01;
/// Advanced Features capabilities: the function can reset itself, and shows pending transactions.
pub(super) const AF_CAN_FLR: u32 = 0x03;
/// PCI-X command: relaxed ordering, size and number of its own reads.
const PCIX_READS: u32 = 0x007e;
/// PCI-X status: split completions that were discarded, unexpected, or errors.
const PCIX_ERRORS: u32 = 0x200c_0000;
/// AER uncorrectable errors, the defined ones.
const AER_UNCORRECTABLE: u32 = 0x07ff_f030;
/// AER correctable errors, the defined ones.
const AER_CORRECTABLE: u32 = 0x0000_f1c1;

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
    /// PCI Express Device Control: FLR and the size of reads through the kernel.
    DeviceControl,
    /// Advanced Features control: FLR through the kernel.
    FeatureControl,
}

impl Effect {
    /// The bits of the register whose write may sleep: enabling, power states and resets do.
    pub(super) const fn sleeping_bits(self) -> u32 {
        match self {
            Effect::Command | Effect::PowerControl => 0xffff,
            Effect::DeviceControl => EXPRESS_FLR,
            Effect::FeatureControl => AF_FLR,
            _ => 0,
        }
    }

    /// The bit that starts a function level reset.
    pub(super) const fn reset_bit(self) -> u32 {
        match self {
            Effect::DeviceControl => EXPRESS_FLR,
            Effect::FeatureControl => AF_FLR,
            _ => 0,
        }
    }
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
    /// The bits that a guest may clear by writing ones (RW1C). They are written as zeros otherwise,
    /// so that writing a neighbour clears nothing.
    pub(super) clear: u32,
    /// The row holds for a permissive guest too.
    pub(super) binds: bool,
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
        self.write == 0 && self.clear == 0 && matches!(self.effect.reset_bit(), 0)
    }

    /// The whole register, in the dword that `access` lies in.
    pub(super) fn register(&self, access: ConfigAccess) -> ConfigAccess {
        ConfigAccess::of_table(access.dword(), self.byte, self.width)
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

/// A row that binds every guest. `ALL` means all bits of the width.
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
        clear: 0,
        binds: true,
        effect,
        why,
    }
}

/// A row that a permissive guest is not bound by.
const fn safe(
    byte: u8,
    width: AccessWidth,
    write: u32,
    clear: u32,
    effect: Effect,
    why: &'static str,
) -> Row {
    Row {
        byte,
        width,
        virt: effect.reset_bit(),
        write: write & width.mask(),
        clear: clear & width.mask(),
        binds: false,
        effect,
        why,
    }
}

/// A register that a guest may read only, unless it is permissive.
const fn read_only(byte: u8, width: AccessWidth, why: &'static str) -> Row {
    safe(byte, width, NONE, NONE, Effect::Plain, why)
}

/// A whole dword of [`read_only`].
const fn whole(why: &'static str) -> [Row; 1] {
    [read_only(0, Long, why)]
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
    CapHead,
    MsiMessage,
    MsixPlace,
    ExpressHead,
    ExpressCaps,
    ExpressControl,
    ExpressPortControl,
    ExpressLink,
    ExpressPort,
    ExpressControl2,
    FeatureHead,
    FeatureControl,
    PcixHead,
    PcixStatus,
    VendorHead,
    VendorBody,
    ExtHead,
    AerUncorrectable,
    AerCorrectable,
    AerPolicy,
    PowerBudgetSelect,
    Serial,
    Channels,
    Vsec,
    Dvsec,
    Acs,
    Ari,
    Translation,
    Sriov,
    ReBar,
    Power,
    Hints,
    Latency,
    Time,
    LinkLayer,
    Multicast,
    Mailbox,
}

#[rustfmt::skip]
const IDS: &[Row] = checked(&[
    row(0, Word, ALL,     NONE,   Effect::VendorId,      "virtual functions have none of their own"),
    row(2, Word, ALL,     NONE,   Effect::DeviceId,      "virtual functions have none of their own"),
]);

#[rustfmt::skip]
const COMMAND_ROWS: &[Row] = checked(&[
    row(0, Word, !COMMAND_GUEST, ALL, Effect::Command,   "decode stays on in the device: XSA-120"),
    safe(2, Word, NONE,   STATUS_ERRORS, Effect::Plain,  "its own errors, cleared by ones"),
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
    Row {
        clear: PME_STATUS,
        ..row(0, Word, NONE, POWER_DATA_SELECT, Effect::PowerControl, "the kernel changes the state; PME stays off")
    },
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

#[rustfmt::skip]
const CAP_HEAD: &[Row] = checked(&[
    read_only(0, Word, "the list of capabilities is fixed"),
]);

#[rustfmt::skip]
const MSI_MESSAGE: &[Row] = checked(&[
    read_only(0, Long, "the interrupt's target belongs to Xen"),
]);

#[rustfmt::skip]
const MSIX_PLACE: &[Row] = checked(&[
    read_only(0, Long, "where table and pending bits lie is wired in the device"),
]);

#[rustfmt::skip]
const EXPRESS_HEAD: &[Row] = checked(&[
    read_only(0, Word, "the list of capabilities is fixed"),
    read_only(2, Word, "wired in the device"),
]);

#[rustfmt::skip]
const EXPRESS_CAPS: &[Row] = checked(&[
    read_only(0, Long, "wired in the device"),
]);

#[rustfmt::skip]
const EXPRESS_CONTROL: &[Row] = checked(&[
    // Error reporting (000f), payload size (00e0), extended tags (0100), phantom functions (0200) and
    // auxiliary power (0400) are agreed with the ports above, so they are the host's.
    safe(0, Word, EXPRESS_ORDER, NONE, Effect::DeviceControl, "order of its own requests; reset and read size by the kernel"),
    safe(2, Word, NONE,   EXPRESS_ERRORS, Effect::Plain, "its own errors, cleared by ones"),
]);

#[rustfmt::skip]
const EXPRESS_PORT_CONTROL: &[Row] = checked(&[
    read_only(0, Word, "a port serves others behind it"),
    safe(2, Word, NONE,   EXPRESS_ERRORS, Effect::Plain, "its own errors, cleared by ones"),
]);

#[rustfmt::skip]
const EXPRESS_LINK: &[Row] = checked(&[
    read_only(0, Long, "a link has two ends and shared clocks: the host's"),
]);

#[rustfmt::skip]
const EXPRESS_PORT: &[Row] = checked(&[
    read_only(0, Long, "slots, power and root errors are the host's"),
]);

#[rustfmt::skip]
const EXPRESS_CONTROL2: &[Row] = checked(&[
    // ARI (0020), atomic operations (00c0), LTR (0400), emergency power (0800), 10-bit tags (1000),
    // OBFF (6000) and prefix blocking (8000) are agreed with the ports above.
    safe(0, Word, EXPRESS_TIMEOUT_AND_ORDER, NONE, Effect::Plain, "patience and order of its own requests"),
    read_only(2, Word, "reserved"),
]);

#[rustfmt::skip]
const FEATURE_HEAD: &[Row] = checked(&[
    read_only(0, Word, "the list of capabilities is fixed"),
    read_only(2, Word, "wired in the device"),
]);

#[rustfmt::skip]
const FEATURE_CONTROL: &[Row] = checked(&[
    safe(0, Byte, NONE,   NONE,   Effect::FeatureControl, "the kernel resets"),
    read_only(1, Byte, "a measured value"),
]);

#[rustfmt::skip]
const PCIX_HEAD: &[Row] = checked(&[
    read_only(0, Word, "the list of capabilities is fixed"),
    // Recovery from parity errors (0001) is the host's policy.
    safe(2, Word, PCIX_READS, NONE, Effect::Plain,       "order, size and number of its own reads"),
]);

#[rustfmt::skip]
const PCIX_STATUS: &[Row] = checked(&[
    safe(0, Long, NONE,   PCIX_ERRORS, Effect::Plain,    "its own errors, cleared by ones"),
]);

#[rustfmt::skip]
const VENDOR_HEAD: &[Row] = checked(&[
    read_only(0, Word, "the list of capabilities is fixed"),
    read_only(2, Byte, "the length is wired in the device"),
    safe(3, Byte, ALL,    NONE,   Effect::Plain,         "registers of the device's own driver"),
]);

#[rustfmt::skip]
const VENDOR_BODY: &[Row] = checked(&[
    safe(0, Long, ALL,    NONE,   Effect::Plain,         "registers of the device's own driver"),
]);

#[rustfmt::skip]
const EXT_HEAD: &[Row] = checked(&[
    read_only(0, Long, "the list of capabilities is fixed"),
]);

#[rustfmt::skip]
const AER_UNCORRECTABLE_STATUS: &[Row] = checked(&[
    safe(0, Long, NONE,   AER_UNCORRECTABLE, Effect::Plain, "its own errors, cleared by ones"),
]);

#[rustfmt::skip]
const AER_CORRECTABLE_STATUS: &[Row] = checked(&[
    safe(0, Long, NONE,   AER_CORRECTABLE, Effect::Plain, "its own errors, cleared by ones"),
]);

#[rustfmt::skip]
const AER_POLICY: &[Row] = checked(&[
    read_only(0, Long, "what counts as an error is the host's policy"),
]);

#[rustfmt::skip]
const POWER_BUDGET_SELECT: &[Row] = checked(&[
    safe(0, Byte, ALL,    NONE,   Effect::Plain,         "chooses which value is shown"),
    read_only(1, Byte, "reserved"),
    read_only(2, Word, "reserved"),
]);

const SERIAL: &[Row] = checked(&whole("wired in the device"));
const CHANNELS: &[Row] = checked(&whole("virtual channels are agreed with the ports above"));
const VSEC: &[Row] = checked(&whole(
    "may hold tests of the link and injected errors; a quirk can open it",
));
const DVSEC: &[Row] = checked(&whole(
    "may switch other protocols (CXL) on; a quirk can open it",
));
const ACS: &[Row] = checked(&whole("isolation between functions is the host's"));
const ARI: &[Row] = checked(&whole("how functions are numbered is the host's"));
const TRANSLATION: &[Row] = checked(&whole("addresses are translated by the host's IOMMU"));
const SRIOV: &[Row] = checked(&whole("virtual functions take resources of the host"));
const REBAR: &[Row] = checked(&whole("the size of a BAR is a resource of the host"));
const POWER: &[Row] = checked(&whole("a power budget is agreed with the host"));
const HINTS: &[Row] = checked(&whole("steering tags name caches of the host"));
const LATENCY: &[Row] = checked(&whole("the platform's power management is the host's"));
const TIME: &[Row] = checked(&whole("a clock that all ports above share"));
const LINK_LAYER: &[Row] = checked(&whole("a link has two ends: the host's"));
const MULTICAST: &[Row] = checked(&whole("reaches other functions"));
const MAILBOX: &[Row] = checked(&whole(
    "a mailbox for the host: keys, attestation, firmware",
));

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
            Dword::CapHead => CAP_HEAD,
            Dword::MsiMessage => MSI_MESSAGE,
            Dword::MsixPlace => MSIX_PLACE,
            Dword::ExpressHead => EXPRESS_HEAD,
            Dword::ExpressCaps => EXPRESS_CAPS,
            Dword::ExpressControl => EXPRESS_CONTROL,
            Dword::ExpressPortControl => EXPRESS_PORT_CONTROL,
            Dword::ExpressLink => EXPRESS_LINK,
            Dword::ExpressPort => EXPRESS_PORT,
            Dword::ExpressControl2 => EXPRESS_CONTROL2,
            Dword::FeatureHead => FEATURE_HEAD,
            Dword::FeatureControl => FEATURE_CONTROL,
            Dword::PcixHead => PCIX_HEAD,
            Dword::PcixStatus => PCIX_STATUS,
            Dword::VendorHead => VENDOR_HEAD,
            Dword::VendorBody => VENDOR_BODY,
            Dword::ExtHead => EXT_HEAD,
            Dword::AerUncorrectable => AER_UNCORRECTABLE_STATUS,
            Dword::AerCorrectable => AER_CORRECTABLE_STATUS,
            Dword::AerPolicy => AER_POLICY,
            Dword::PowerBudgetSelect => POWER_BUDGET_SELECT,
            Dword::Serial => SERIAL,
            Dword::Channels => CHANNELS,
            Dword::Vsec => VSEC,
            Dword::Dvsec => DVSEC,
            Dword::Acs => ACS,
            Dword::Ari => ARI,
            Dword::Translation => TRANSLATION,
            Dword::Sriov => SRIOV,
            Dword::ReBar => REBAR,
            Dword::Power => POWER,
            Dword::Hints => HINTS,
            Dword::Latency => LATENCY,
            Dword::Time => TIME,
            Dword::LinkLayer => LINK_LAYER,
            Dword::Multicast => MULTICAST,
            Dword::Mailbox => MAILBOX,
        }
    }
}

/// Dwords of the header that both types share, and those of each type (behaviour, section 6.2).
const DEVICE: &[(u16, Dword)] = &[
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

const BRIDGE: &[(u16, Dword)] = &[
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
pub(super) fn header(header_type: u8) -> Option<&'static [(u16, Dword)]> {
    match header_type & 0x7f {
        0 => Some(DEVICE),
        1 => Some(BRIDGE),
        _ => None,
    }
}
