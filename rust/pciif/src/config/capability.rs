// SPDX-License-Identifier: GPL-2.0

//! Finding the capabilities, and giving their registers rows (behaviour, section 6.5).
//!
//! Both lists are the device's, so they are not believed: each position is visited once at most, a
//! pointer into the header or out of configuration space ends a list, so that a list that loops or
//! points astray costs a bounded time and nothing else. What is not found has no rows, which is the
//! strictest policy there is.
//!
//! Where capabilities overlap, the first claim of a dword counts. The order of claims is from strict
//! to open: the binding capabilities, then the heads of all others, then their bodies, and last
//! the bodies of vendor-specific capabilities, whose length only the device knows and whose
//! registers a guest may write. Then the same in extended space, where nothing binds.

use super::table::{Dword, PME_ENABLE};
use super::{Function, VirtualConfigSpace};
use crate::access::{AccessWidth, ConfigAccess};
use crate::op::OpStatus;

/// STATUS: the function has a list of capabilities.
const STATUS_CAP_LIST: u32 = 0x10;
const STATUS: ConfigAccess = ConfigAccess::of_table(1, 2, AccessWidth::Word);
const CAP_POINTER: ConfigAccess = ConfigAccess::of_table(13, 0, AccessWidth::Byte);
/// The first dword behind the header, and how many there are from there.
const FIRST: u16 = 16;
const MAX_CAPABILITIES: usize = 48;
/// The first dword of extended space.
const FIRST_EXTENDED: u16 = 64;
/// As many extended capabilities as are looked at; the others stay read-only. The specifications
/// define fewer than this.
const MAX_EXTENDED: usize = 64;
/// What a list reads that no device answers for.
const NO_DEVICE: u32 = 0xff;
const NO_DEVICE_EXTENDED: u32 = 0xffff_ffff;

/// Ids of capabilities that have rows.
mod id {
    pub(super) const POWER: u16 = 0x01;
    pub(super) const VPD: u16 = 0x03;
    pub(super) const MSI: u16 = 0x05;
    pub(super) const PCIX: u16 = 0x07;
    pub(super) const VENDOR: u16 = 0x09;
    pub(super) const EXPRESS: u16 = 0x10;
    pub(super) const MSIX: u16 = 0x11;
    pub(super) const FEATURES: u16 = 0x13;

    pub(super) const AER: u16 = 0x0001;
    pub(super) const POWER_BUDGET: u16 = 0x0004;
    pub(super) const VSEC: u16 = 0x000b;
    pub(super) const REBAR: u16 = 0x0015;
    pub(super) const DVSEC: u16 = 0x0023;
    pub(super) const VF_REBAR: u16 = 0x0024;
}

/// Extended capabilities that a guest may only read: id, rows, length in bytes with the head (of
/// those of variable length the fixed part; what is behind it has no rows and is read-only too).
const READ_ONLY: &[(u16, Dword, u16)] = &[
    (0x0002, Dword::Channels, 0x1c),    // Virtual Channel
    (0x0003, Dword::Serial, 0x0c),      // Device Serial Number
    (0x0008, Dword::Channels, 0x1c),    // Multi-Function Virtual Channel
    (0x0009, Dword::Channels, 0x1c),    // Virtual Channel beside the former
    (0x000d, Dword::Acs, 0x08),         // Access Control Services
    (0x000e, Dword::Ari, 0x08),         // Alternative Routing-ID Interpretation
    (0x000f, Dword::Translation, 0x08), // Address Translation Services
    (0x0010, Dword::Sriov, 0x40),       // Single Root I/O Virtualization
    (0x0012, Dword::Multicast, 0x30),   // Multicast
    (0x0013, Dword::Translation, 0x10), // Page Request Interface
    (0x0016, Dword::Power, 0x10),       // Dynamic Power Allocation
    (0x0017, Dword::Hints, 0x0c),       // TPH Requester
    (0x0018, Dword::Latency, 0x08),     // Latency Tolerance Reporting
    (0x0019, Dword::LinkLayer, 0x0c),   // Secondary PCI Express
    (0x001b, Dword::Translation, 0x08), // Process Address Space ID
    (0x001d, Dword::ExpressPort, 0x10), // Downstream Port Containment
    (0x001e, Dword::Latency, 0x10),     // L1 PM Substates
    (0x001f, Dword::Time, 0x0c),        // Precision Time Measurement
    (0x0025, Dword::LinkLayer, 0x0c),   // Data Link Feature
    (0x0026, Dword::LinkLayer, 0x20),   // Physical Layer 16.0 GT/s
    (0x0027, Dword::LinkLayer, 0x08),   // Lane Margining
    (0x0029, Dword::ExpressPort, 0x10), // Native Enclosure Management
    (0x002a, Dword::LinkLayer, 0x20),   // Physical Layer 32.0 GT/s
    (0x002e, Dword::Mailbox, 0x18),     // Data Object Exchange
    (0x0030, Dword::Mailbox, 0x0c),     // Integrity and Data Encryption
    (0x0031, Dword::LinkLayer, 0x20),   // Physical Layer 64.0 GT/s
];

/// A capability: its id and the dword number of its head.
type Place = (u16, u16);

/// The capabilities of one list, in its order.
struct List<const N: usize> {
    places: [Place; N],
    len: usize,
    /// One bit per dword of configuration space.
    visited: [u32; 32],
}

impl<const N: usize> List<N> {
    const fn new() -> Self {
        List {
            places: [(0, 0); N],
            len: 0,
            visited: [0; 32],
        }
    }

    /// Notes that the walk is at `dword`. False when it was there before.
    fn visit(&mut self, dword: u16) -> bool {
        let Some(word) = self.visited.get_mut(usize::from(dword / 32)) else {
            return false;
        };
        let bit = 1 << (dword % 32);
        let first = *word & bit == 0;
        *word |= bit;
        first
    }

    /// False when there is no more room.
    fn push(&mut self, place: Place) -> bool {
        let Some(slot) = self.places.get_mut(self.len) else {
            return false;
        };
        *slot = place;
        self.len = self.len.saturating_add(1);
        true
    }

    fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.places.iter().copied().take(self.len)
    }

    /// The dword of the first capability of a kind: others of it do not count.
    fn first(&self, wanted: u16) -> Option<u16> {
        self.iter()
            .find(|(id, _)| *id == wanted)
            .map(|(_, dword)| dword)
    }
}

fn fits<F: Function>(function: &F, access: ConfigAccess) -> bool {
    access.end() <= u32::from(function.config_size())
}

/// Walks the list in the first 256 bytes.
fn conventional<F: Function>(function: &mut F) -> Result<List<MAX_CAPABILITIES>, OpStatus> {
    let mut list = List::new();
    if function.read(STATUS)? & STATUS_CAP_LIST == 0 {
        return Ok(list);
    }
    let mut pointer = function.read(CAP_POINTER)?;
    loop {
        // CAST: a byte register; the two low bits are reserved.
        let dword = u16::from((pointer as u8) >> 2);
        let head = ConfigAccess::of_table(dword, 0, AccessWidth::Word);
        if dword < FIRST || !fits(function, head) || !list.visit(dword) {
            return Ok(list);
        }
        let value = function.read(head)?;
        // CAST: one byte.
        let id = (value & 0xff) as u16;
        if u32::from(id) == NO_DEVICE || !list.push((id, dword)) {
            return Ok(list);
        }
        pointer = (value >> 8) & 0xff;
    }
}

/// Walks the list behind the first 256 bytes. A register that cannot be read ends it: extended space
/// may be out of the host's reach.
fn extended<F: Function>(function: &mut F) -> List<MAX_EXTENDED> {
    let mut list = List::new();
    let mut dword = FIRST_EXTENDED;
    loop {
        let head = ConfigAccess::of_table(dword, 0, AccessWidth::Dword);
        if dword < FIRST_EXTENDED || !fits(function, head) || !list.visit(dword) {
            return list;
        }
        match function.read(head) {
            Err(_) | Ok(0 | NO_DEVICE_EXTENDED) => return list,
            Ok(value) => {
                // CAST: 16 bits, and 12 bits whose two lowest are reserved.
                if !list.push(((value & 0xffff) as u16, dword)) {
                    return list;
                }
                dword = (value >> 22) as u16;
            }
        }
    }
}

/// The register at `dword` plus `byte` when configuration space has it.
fn register<F: Function>(
    function: &mut F,
    dword: u16,
    byte: u8,
    width: AccessWidth,
) -> Result<Option<u32>, OpStatus> {
    let access = ConfigAccess::of_table(dword, byte, width);
    if dword > ConfigAccess::LAST_DWORD || !fits(function, access) {
        return Ok(None);
    }
    function.read(access).map(Some)
}

/// The length in bytes that a vendor-specific capability tells, with its head.
fn vendor_length<F: Function>(dword: u16, function: &mut F) -> Result<u32, OpStatus> {
    register(function, dword, 2, AccessWidth::Byte).map(Option::unwrap_or_default)
}

impl VirtualConfigSpace {
    /// Claims a dword for a capability of the first 256 bytes, which does not reach behind them.
    fn claim_low(&mut self, dword: u16, rows: Dword) -> bool {
        dword < FIRST_EXTENDED && self.claim(dword, rows)
    }

    /// As [`Self::claim_body`], in the first 256 bytes.
    fn claim_low_body(&mut self, dword: u16, bytes: u16, rows: Dword) {
        for step in 0..bytes.div_ceil(4) {
            self.claim_low(dword.saturating_add(step), rows);
        }
    }

    /// Claims `bytes` bytes from `dword` on, each dword that is still free.
    fn claim_body(&mut self, dword: u16, bytes: u16, rows: Dword) {
        for step in 0..bytes.div_ceil(4) {
            self.claim(dword.saturating_add(step), rows);
        }
    }

    fn add_power<F: Function>(&mut self, dword: u16, function: &mut F) -> Result<(), OpStatus> {
        self.claim_low(dword, Dword::PowerHead);
        let control_dword = dword.saturating_add(1);
        if self.claim_low(control_dword, Dword::PowerControl) {
            let control = ConfigAccess::of_table(control_dword, 0, AccessWidth::Word);
            let value = function.read(control)?;
            if value & PME_ENABLE != 0 {
                // The status bit is cleared by a one: it is not written back.
                function.write(control, value & !PME_ENABLE & 0x7fff)?;
            }
        }
        Ok(())
    }

    /// MSI: address, data, masks and pending bits, by the layout that the control register tells.
    fn add_msi_body<F: Function>(&mut self, dword: u16, function: &mut F) -> Result<(), OpStatus> {
        const ADDRESS_64: u32 = 0x0080;
        const MASKS: u32 = 0x0100;
        let control = register(function, dword, 2, AccessWidth::Word)?.unwrap_or(0);
        let mut bytes: u16 = 0x8;
        if control & ADDRESS_64 != 0 {
            bytes = bytes.saturating_add(4);
        }
        if control & MASKS != 0 {
            bytes = bytes.saturating_add(8);
        }
        self.claim_low_body(dword.saturating_add(1), bytes, Dword::MsiMessage);
        Ok(())
    }

    /// PCI Express: version 1 ends where the port's type needs no more, version 2 has all of it.
    fn add_express_body<F: Function>(
        &mut self,
        dword: u16,
        function: &mut F,
    ) -> Result<(), OpStatus> {
        let caps = register(function, dword, 2, AccessWidth::Word)?.unwrap_or(0);
        let newer = caps & 0xf >= 2;
        let port = (caps >> 4) & 0xf;
        // Endpoint, legacy endpoint, endpoint in the root complex.
        let endpoint = matches!(port, 0 | 1 | 9);
        let (has_link, has_slot, has_root) = (
            newer || !matches!(port, 9 | 0xa),
            newer || matches!(port, 4 | 6 | 8),
            newer || matches!(port, 4 | 0xa),
        );
        let at = |step: u16| dword.saturating_add(step);
        self.claim_low(at(1), Dword::ExpressCaps);
        let (control, control2) = if endpoint {
            (Dword::ExpressControl, Dword::ExpressControl2)
        } else {
            (Dword::ExpressPortControl, Dword::ExpressPort)
        };
        self.claim_low(at(2), control);
        if has_link {
            self.claim_low_body(at(3), 8, Dword::ExpressLink);
        }
        if has_slot {
            self.claim_low_body(at(5), 8, Dword::ExpressPort);
        }
        if has_root {
            self.claim_low_body(at(7), 8, Dword::ExpressPort);
        }
        if newer {
            self.claim_low(at(9), Dword::ExpressCaps);
            self.claim_low(at(10), control2);
            self.claim_low_body(at(11), 8, Dword::ExpressLink);
            self.claim_low_body(at(13), 8, Dword::ExpressPort);
        }
        Ok(())
    }

    /// A vendor-specific capability of the first 256 bytes: as long as it says, at most up to the
    /// next register that something else has claimed.
    fn add_vendor_body<F: Function>(
        &mut self,
        dword: u16,
        function: &mut F,
    ) -> Result<(), OpStatus> {
        let length = vendor_length(dword, function)?;
        // Whole dwords only: what is beside the end belongs to nobody we know.
        for step in 1..length / 4 {
            // CAST: at most 63.
            let place = dword.saturating_add(step as u16);
            if !self.claim_low(place, Dword::VendorBody) {
                break;
            }
        }
        Ok(())
    }

    fn add_extended_body<F: Function>(&mut self, (id, dword): Place, function: &mut F) {
        let at = |step: u16| dword.saturating_add(step);
        // The length in bytes that a designated header tells in its upper 12 bits.
        let told = |function: &mut F| match register(function, at(1), 0, AccessWidth::Dword) {
            // CAST: 12 bits.
            Ok(Some(header)) => (header >> 20) as u16,
            _ => 0,
        };
        match id {
            id::AER => {
                self.claim(at(1), Dword::AerUncorrectable);
                self.claim_body(at(2), 8, Dword::AerPolicy);
                self.claim(at(4), Dword::AerCorrectable);
                // Mask, control, log of the first error.
                self.claim_body(at(5), 0x18, Dword::AerPolicy);
            }
            id::POWER_BUDGET => {
                self.claim(at(1), Dword::PowerBudgetSelect);
                self.claim_body(at(2), 8, Dword::Power);
            }
            id::VSEC => {
                let length = told(function).saturating_sub(4);
                self.claim_body(at(1), length, Dword::Vsec);
            }
            id::DVSEC => {
                let length = told(function).saturating_sub(4);
                self.claim_body(at(1), length, Dword::Dvsec);
            }
            id::REBAR | id::VF_REBAR => {
                // The first control register tells the count of BARs: 1 to 6.
                let control = register(function, at(2), 0, AccessWidth::Byte);
                let count = match control {
                    // CAST: 3 bits.
                    Ok(Some(control)) => ((control >> 5) & 7) as u16,
                    _ => 0,
                };
                self.claim_body(at(1), count.saturating_mul(8), Dword::ReBar);
            }
            _ => {
                for &(listed, rows, length) in READ_ONLY {
                    if listed == id {
                        self.claim_body(at(1), length.saturating_sub(4), rows);
                    }
                }
            }
        }
    }
}

/// Gives the capabilities of the function their rows.
pub(super) fn add<F: Function>(
    space: &mut VirtualConfigSpace,
    function: &mut F,
) -> Result<(), OpStatus> {
    let list = conventional(function)?;
    let next = |dword: u16| dword.saturating_add(1);

    // What binds, first.
    if let Some(dword) = list.first(id::VPD) {
        space.claim_low(dword, Dword::VpdHead);
        space.claim_low(next(dword), Dword::VpdData);
    }
    if let Some(dword) = list.first(id::POWER) {
        space.add_power(dword, function)?;
    }
    // The control registers are the upper halves of the first dwords.
    let control = |dword| ConfigAccess::of_table(dword, 2, AccessWidth::Word);
    let msi = list.first(id::MSI);
    if let Some(dword) = msi {
        if space.claim_low(dword, Dword::MsiHead) {
            space.msi_control = Some(control(dword));
        }
    }
    let msix = list.first(id::MSIX);
    if let Some(dword) = msix {
        if space.claim_low(dword, Dword::MsixHead) {
            space.msix_control = Some(control(dword));
        }
    }

    // Heads. Which capability is the first of its kind decides whether its body has rows.
    let express = list.first(id::EXPRESS);
    let features = list.first(id::FEATURES);
    let pcix = list.first(id::PCIX).filter(|_| !space.is_bridge);
    for (id, dword) in list.iter() {
        let is_first = |first: Option<u16>| first == Some(dword);
        let rows = match id {
            id::EXPRESS if is_first(express) => Dword::ExpressHead,
            id::FEATURES if is_first(features) => Dword::FeatureHead,
            id::PCIX if is_first(pcix) => Dword::PcixHead,
            // A length below 4 means that the fourth byte is not its own.
            id::VENDOR if vendor_length(dword, function)? >= 4 => Dword::VendorHead,
            _ => Dword::CapHead,
        };
        space.claim_low(dword, rows);
    }

    // Bodies, if the head is what it says.
    let has = |space: &VirtualConfigSpace, first: Option<u16>, head: Dword| {
        first.filter(|&dword| space.rows_of(dword) == head)
    };
    if let Some(dword) = has(space, msi, Dword::MsiHead) {
        space.add_msi_body(dword, function)?;
    }
    if let Some(dword) = has(space, msix, Dword::MsixHead) {
        space.claim_low_body(next(dword), 8, Dword::MsixPlace);
    }
    if let Some(dword) = has(space, express, Dword::ExpressHead) {
        space.add_express_body(dword, function)?;
    }
    if let Some(dword) = has(space, features, Dword::FeatureHead) {
        space.claim_low(next(dword), Dword::FeatureControl);
    }
    if let Some(dword) = has(space, pcix, Dword::PcixHead) {
        space.claim_low(next(dword), Dword::PcixStatus);
    }

    for (id, dword) in list.iter() {
        if id == id::VENDOR && space.rows_of(dword) == Dword::VendorHead {
            space.add_vendor_body(dword, function)?;
        }
    }

    let extended = extended(function);
    for (_, dword) in extended.iter() {
        space.claim(dword, Dword::ExtHead);
    }
    for place in extended.iter() {
        space.add_extended_body(place, function);
    }
    Ok(())
}
