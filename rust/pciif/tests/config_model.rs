// SPDX-License-Identifier: GPL-2.0

//! The engine against an independent model on random sequences of accesses (check 70).
//!
//! The model below follows the rules of behaviour, section 6, field by field: read the field,
//! splice the bytes in, run the field's own rule. What a guest may write beside those fields, it
//! looks up bit by bit, and moves bit by bit. It shares no code and no tables with the engine,
//! which works by masks and 4-byte units.
//!
//! Where the engine differs on purpose, the model says so at the place:
//!
//! 1. a fresh COMMAND shadow reads with memory and I/O decode clear (`Model::new`);
//! 2. an offset outside of configuration space is refused (`Model::is_valid`);
//! 3. disabling the function ends bus mastering, as the kernel does it (`Model::write_command`);
//! 4. the status bit of PM is cleared by a one that the guest wrote, not by one that was merged
//!    (`Model::write`);
//! 5. the bits of `OPEN` can be written, and the bits of `CLEARED` cleared, by any guest;
//! 6. a guest resets the function by two bits that read as 0 (`Model::reset`);
//! 7. quirks open the bits of their mask, not their whole register.
//!
//! Two more differences cannot be seen here, because nothing fails in the model and all its BARs
//! hold what the host recorded: the first error ends an access that covers several registers, and
//! an absent BAR is never written. `config_space.rs` tests both.

mod common;

use common::FakeFunction;
use pciif::access::AccessWidth;
use pciif::config::{Flags, VirtualConfigSpace};
use pciif::op::OpStatus;
use pciif::quirk::Quirk;
use proptest::prelude::*;

const GUEST: u32 = 0x02bc;
const INVALID_OFFSET: i32 = -2;
const ACCESS_DENIED: i32 = -3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    Vendor,
    Device,
    Command,
    IrqLine,
    ReadOnly,
    ReadWrite,
    Bist,
    Bar(usize),
    Rom,
    VpdAddress,
    PowerCaps,
    PowerControl,
    MsiControl,
    MsixControl,
}

/// Offset, size and kind of every field of the model's device.
const FIELDS: [(usize, usize, Field); 26] = [
    (0x00, 2, Field::Vendor),
    (0x02, 2, Field::Device),
    (0x04, 2, Field::Command),
    (0x3c, 1, Field::IrqLine),
    (0x3d, 1, Field::ReadOnly),
    (0x0c, 1, Field::ReadWrite),
    (0x0d, 1, Field::ReadOnly),
    (0x0f, 1, Field::Bist),
    (0x10, 4, Field::Bar(0)),
    (0x14, 4, Field::Bar(1)),
    (0x18, 4, Field::Bar(2)),
    (0x1c, 4, Field::Bar(3)),
    (0x20, 4, Field::Bar(4)),
    (0x24, 4, Field::Bar(5)),
    (0x30, 4, Field::Rom),
    (0xe0, 2, Field::ReadOnly),
    (0xe2, 2, Field::VpdAddress),
    (0xe4, 4, Field::ReadOnly),
    (0x40, 2, Field::ReadOnly),
    (0x42, 2, Field::PowerCaps),
    (0x44, 2, Field::PowerControl),
    (0x46, 2, Field::ReadOnly),
    (0x50, 2, Field::ReadOnly),
    (0x52, 2, Field::MsiControl),
    (0x70, 2, Field::ReadOnly),
    (0x72, 2, Field::MsixControl),
];

/// Value and size of each BAR, and which bits a sizing write may leave clear.
const BARS: [(u32, u32, u32); 6] = [
    (0xf7d0_0004, 0xffff_c004, 0xf),
    (0x0000_0000, 0xffff_ffff, 0x0),
    (0x0000_e001, 0xffff_ffe1, 0x3),
    (0, 0, 0xf),
    (0, 0, 0xf),
    (0, 0, 0xf),
];
const ROM: (u32, u32, u32) = (0xf7c0_0000, 0xffff_8000, 0x7ff);

/// Offset of a 4-byte unit and the bits that every guest may write there: Device Control, Device
/// Control 2, the vendor-specific capability, the selector of the power budget.
const OPEN: [(usize, u32); 7] = [
    (0x88, 0x0000_0810),
    (0xa8, 0x0000_031f),
    (0xd0, 0xff00_0000),
    (0xd4, 0xffff_ffff),
    (0xd8, 0xffff_ffff),
    (0xdc, 0xffff_ffff),
    (0x14c, 0x0000_00ff),
];
/// As [`OPEN`], the bits that are cleared by ones: STATUS, PM, Device Status, AER.
const CLEARED: [(usize, u32); 5] = [
    (0x04, 0xf900_0000),
    (0x44, 0x0000_8000),
    (0x88, 0x000f_0000),
    (0x104, 0x07ff_f030),
    (0x110, 0x0000_f1c1),
];
/// Bits that no write changes: the rest of those registers, and what says that the function can
/// reset itself.
const WIRED: [(usize, u32); 6] = [
    (0x84, 0xffff_ffff),
    (0xc0, 0xffff_ffff),
    (0x04, 0x06ff_0000),
    (0x88, 0xfff0_0000),
    (0x104, !0x07ff_f030),
    (0x110, !0x0000_f1c1),
];
/// Initiate FLR: Device Control and Advanced Features control.
const RESETS: [(usize, u32); 2] = [(0x88, 0x0000_8000), (0xc4, 0x0000_0001)];
/// The size of reads in Device Control.
const READ_REQUEST: u32 = 0x7000;

/// Whether `bit` of the byte at `at` is in a table like those above.
fn has(table: &[(usize, u32)], at: usize, bit: usize) -> bool {
    table
        .iter()
        .any(|&(unit, bits)| at / 4 * 4 == unit && (bits >> (8 * (at % 4) + bit)) & 1 == 1)
}

struct Model {
    hw: Vec<u8>,
    /// Offset, size and mask.
    quirks: Vec<(usize, usize, u32)>,
    enabled: bool,
    master: bool,
    shadow: u32,
    /// BARs 0 to 5 and the ROM: the size was asked for.
    sizing: [bool; 7],
}

impl Model {
    fn new() -> Self {
        let hw = FakeFunction::express().bytes;
        Model {
            hw,
            quirks: Vec::new(),
            enabled: false,
            master: false,
            // Difference 1: the device has 0x0103.
            shadow: 0x0100,
            sizing: [false; 7],
        }
    }

    fn get(&self, offset: usize, size: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes[..size].copy_from_slice(&self.hw[offset..offset + size]);
        u32::from_le_bytes(bytes)
    }

    fn set(&mut self, offset: usize, size: usize, value: u32) {
        self.hw[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    fn is_valid(offset: i32, size: i32) -> bool {
        // Difference 2: both bounds.
        [1, 2, 4].contains(&size) && offset % size == 0 && (0..=4096 - size).contains(&offset)
    }

    fn read_field(&self, offset: usize, size: usize, field: Field) -> u32 {
        let bar = |index: usize, (value, length, _): (u32, u32, u32)| {
            if self.sizing[index] {
                length
            } else {
                value
            }
        };
        match field {
            Field::Vendor => 0x8086,
            Field::Device => 0x10fb,
            Field::Command => (self.get(4, 2) & GUEST) | (self.shadow & !GUEST & 0xffff),
            Field::IrqLine => 17,
            Field::Bar(index) => bar(index, BARS[index]),
            Field::Rom => bar(6, ROM),
            Field::PowerCaps => self.get(offset, size) & !0xf800,
            _ => self.get(offset, size),
        }
    }

    fn write_field(
        &mut self,
        (offset, size, field): (usize, usize, Field),
        value: u32,
        flags: Flags,
    ) -> i32 {
        match field {
            Field::Vendor | Field::Device | Field::IrqLine | Field::ReadOnly | Field::PowerCaps => {
            }
            Field::Command => self.write_command(value, flags),
            Field::ReadWrite => self.set(offset, size, value),
            Field::Bist => {
                let old = self.get(offset, 1);
                if old & !0x40 == value & !0x40 || value == 0x40 {
                    self.set(offset, 1, value);
                }
            }
            Field::Bar(index) => self.write_bar(offset, index, BARS[index], value),
            Field::Rom => self.write_bar(offset, 6, ROM, value),
            Field::VpdAddress => {
                if value & 0x8000 != 0 {
                    return ACCESS_DENIED;
                }
                self.set(offset, size, value);
            }
            Field::PowerControl => {
                // Difference 4: the status bit is done in `write`.
                let old = self.get(offset, 2);
                let allowed = 0x1e00;
                let merged = (old & !allowed) | (value & allowed);
                self.set(offset, 2, (merged & !3) | (value & 3));
            }
            Field::MsiControl => return self.write_control(offset, value, 0x0001, 0x0001, flags),
            Field::MsixControl => return self.write_control(offset, value, 0x8000, 0xc000, flags),
        }
        0
    }

    fn command_bits(&mut self, mask: u32, value: u32) {
        let command = self.get(4, 2);
        self.set(4, 2, (command & !mask) | (value & mask));
    }

    fn write_command(&mut self, value: u32, flags: Flags) {
        if !self.enabled && value & 3 != 0 {
            self.enabled = true;
            self.command_bits(3, 3);
        }
        if self.master != (value & 4 != 0) {
            self.master = !self.master;
            self.command_bits(4, value);
        }
        if (self.shadow ^ value) & 0x10 != 0 {
            self.command_bits(0x10, value);
        }
        if flags.allow_interrupt_control && (self.shadow ^ value) & 0x400 != 0 {
            self.command_bits(0x400, value);
        }
        self.shadow = value;
        if flags.permissive {
            self.command_bits(GUEST, value);
        }
    }

    fn write_bar(
        &mut self,
        offset: usize,
        index: usize,
        (recorded, _, low): (u32, u32, u32),
        value: u32,
    ) {
        self.sizing[index] = value | low == 0xffff_ffff;
        if !self.sizing[index] && value == recorded {
            self.set(offset, 4, value);
        }
    }

    fn active_interrupts(&self) -> u32 {
        let mut active = 0;
        if self.get(0x52, 2) & 0x0001 != 0 {
            active |= 2;
        }
        if self.get(0x72, 2) & 0x8000 != 0 {
            active |= 4;
        }
        if active == 0 && self.get(4, 2) & 0x400 == 0 {
            active |= 1;
        }
        active
    }

    fn write_control(
        &mut self,
        offset: usize,
        value: u32,
        enable: u32,
        allowed: u32,
        flags: Flags,
    ) -> i32 {
        if !flags.permissive {
            let old = self.get(offset, 2);
            if value == old {
                return 0;
            }
            if !flags.allow_interrupt_control || (value ^ old) & !allowed & 0xffff != 0 {
                return ACCESS_DENIED;
            }
            let mine = if enable == 0x0001 { 2 } else { 4 };
            if value & enable != 0 && ![0, 1, mine].contains(&self.active_interrupts()) {
                return ACCESS_DENIED;
            }
        }
        self.set(offset, 2, value);
        0
    }

    fn overlapping(offset: usize, size: usize) -> impl Iterator<Item = (usize, usize, Field)> {
        FIELDS
            .into_iter()
            .filter(move |&(at, length, _)| offset + size > at && at + length > offset)
    }

    fn read(&self, offset: i32, size: i32) -> (i32, u32) {
        if !Self::is_valid(offset, size) {
            return (INVALID_OFFSET, 0);
        }
        let (offset, size) = (offset as usize, size as usize);
        let mut bytes = self.hw[offset..offset + size].to_vec();
        for (at, length, field) in Self::overlapping(offset, size) {
            let value = self.read_field(at, length, field).to_le_bytes();
            for (index, byte) in value.into_iter().enumerate().take(length) {
                if let Some(place) = (at + index)
                    .checked_sub(offset)
                    .and_then(|i| bytes.get_mut(i))
                {
                    *place = byte;
                }
            }
        }
        for (at, byte) in (offset..).zip(&mut bytes) {
            // Difference 6.
            for bit in (0..8).filter(|&bit| has(&RESETS, at, bit)) {
                *byte &= !(1 << bit);
            }
        }
        bytes.resize(4, 0);
        (0, u32::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// What the device does with one bit that is written.
    fn write_bit(&mut self, at: usize, bit: usize, one: bool) {
        if has(&CLEARED, at, bit) {
            if one {
                self.hw[at] &= !(1 << bit);
            }
        } else if !has(&WIRED, at, bit) {
            self.hw[at] = self.hw[at] & !(1 << bit) | (u8::from(one) << bit);
        }
    }

    /// A quirk must not touch fields or the reset bits.
    fn takes_quirk(offset: usize, size: usize, mask: u32) -> bool {
        (0..size * 8).filter(|n| (mask >> n) & 1 == 1).all(|n| {
            let (at, bit) = (offset + n / 8, n % 8);
            Self::overlapping(at, 1).next().is_none() && !has(&RESETS, at, bit)
        })
    }

    fn quirk_has(&self, at: usize, bit: usize) -> bool {
        self.quirks.iter().any(|&(offset, size, mask)| {
            (offset..offset + size).contains(&at) && (mask >> (8 * (at - offset) + bit)) & 1 == 1
        })
    }

    /// The kernel resets the function and restores it; the guest finds it as a reset leaves it.
    fn reset(&mut self, flags: Flags) {
        self.master = false;
        self.command_bits(GUEST, 0);
        if flags.allow_interrupt_control && self.shadow & 0x400 != 0 {
            self.command_bits(0x400, 0);
        }
        self.shadow = 0;
        self.sizing = [false; 7];
        self.set(0x44, 1, self.get(0x44, 1) & !3);
    }

    fn write(&mut self, offset: i32, size: i32, value: u32, flags: Flags) -> i32 {
        if !Self::is_valid(offset, size) {
            return INVALID_OFFSET;
        }
        let (offset, size) = (offset as usize, size as usize);
        let written = &value.to_le_bytes()[..size];
        let bits =
            || (0..size * 8).map(|n| (offset + n / 8, n % 8, (written[n / 8] >> (n % 8)) & 1 == 1));
        let bound = Self::overlapping(offset, size).next().is_some();
        let resets = bits().any(|(at, bit, one)| one && has(&RESETS, at, bit));

        if flags.permissive && !bound {
            if resets {
                self.reset(flags);
            } else {
                bits().for_each(|(at, bit, one)| self.write_bit(at, bit, one));
            }
            return 0;
        }
        let mut err = 0;
        for (at, length, field) in Self::overlapping(offset, size) {
            let mut bytes = self.read_field(at, length, field).to_le_bytes();
            for (index, byte) in written.iter().copied().enumerate() {
                let place = (offset + index).checked_sub(at).filter(|&i| i < length);
                if let Some(place) = place {
                    bytes[place] = byte;
                }
            }
            err = self.write_field((at, length, field), u32::from_le_bytes(bytes), flags);
        }
        if resets {
            self.reset(flags);
        }
        for (at, bit, one) in bits() {
            let in_field = Self::overlapping(at, 1).next().is_some();
            // A reset leaves nothing else of its register to be written.
            let is_void = resets && matches!(at, 0x88 | 0x89 | 0xc4);
            let is_open = has(&OPEN, at, bit) || self.quirk_has(at, bit);
            if has(&CLEARED, at, bit) || (is_open && !in_field && !is_void) {
                self.write_bit(at, bit, one);
            }
        }
        let high = bits().any(|(at, bit, _)| (at, bit) == (0x89, 0));
        let code = written
            .get(0x89usize.wrapping_sub(offset))
            .map_or(0, |byte| (byte >> 4) & 7);
        if high && !resets && code <= 5 {
            let kept = self.get(0x88, 2) & !READ_REQUEST;
            self.set(0x88, 2, kept | (u32::from(code) << 12));
        }
        err
    }
}

#[derive(Clone, Copy, Debug)]
enum Access {
    Read { offset: i32, size: i32 },
    Write { offset: i32, size: i32, value: u32 },
}

/// Offsets where something is, and everywhere.
fn offset() -> impl Strategy<Value = i32> {
    let listed: Vec<i32> = FIELDS
        .into_iter()
        .flat_map(|(at, _, _)| [at as i32, at as i32 & !3, at as i32 + 1, at as i32 | 2])
        .collect();
    let open: Vec<i32> = OPEN
        .into_iter()
        .chain(CLEARED)
        .chain(RESETS)
        .flat_map(|(at, _)| [0, 0, 1, 2, 3].map(|byte| at as i32 + byte))
        .collect();
    prop_oneof![
        6 => prop::sample::select(listed),
        4 => prop::sample::select(open),
        2 => 0..256,
        2 => 0x80..0x450,
        1 => prop_oneof![-16..0i32, 4090..4100i32, Just(i32::MIN), Just(i32::MAX), Just(-4092)],
    ]
}

fn size() -> impl Strategy<Value = i32> {
    prop_oneof![3 => Just(1), 5 => Just(2), 5 => Just(4), 1 => -1..9]
}

/// Values that mean something somewhere, and any.
fn value() -> impl Strategy<Value = u32> {
    let known = vec![
        0,
        1,
        3,
        4,
        6,
        7,
        0x10,
        0x17,
        0x40,
        0x41,
        0x406,
        0x147,
        0x3ff,
        0x0180,
        0x0181,
        0x0009,
        0x8009,
        0x4009,
        0xc009,
        0x8103,
        0x9e00,
        0x8010,
        0xffff,
        0xf7d0_0004,
        0xf7c0_0000,
        0xf7c0_0001,
        0xe001,
        0xffff_f800,
        0xffff_ffff,
        0xffff_fffc,
        0xffff_fff0,
        0x0181_0000,
        0x8009_0000,
        0x0181_7005,
        0xc009_e011,
        0x4000_0000,
        0x8000,
        0x80,
        0x2830,
        0x5000,
        0x6810,
        0xa830,
        0x000f_2810,
        0x000f_0000,
        0xf900_0000,
        0xf900,
        0x0010_4000,
        0x031f,
    ];
    prop_oneof![6 => prop::sample::select(known), 4 => any::<u32>(), 2 => 0..0x1_0000u32]
}

/// Offset, size and mask of a quirk, aligned or not.
fn quirk() -> impl Strategy<Value = (usize, usize, u32)> {
    let offsets = prop_oneof![0x38..0x100usize, 0x100..0x160usize, 0x80..0xc8usize];
    let masks = prop_oneof![
        Just(u32::MAX),
        any::<u32>(),
        (0..32u32).prop_map(|bit| 1 << bit)
    ];
    (offsets, prop::sample::select(vec![1usize, 2, 4]), masks).prop_filter_map(
        "a mask of 0 is no quirk",
        |(offset, size, mask)| {
            let mask = mask & (u32::MAX >> (32 - 8 * size));
            (mask != 0).then_some((offset, size, mask))
        },
    )
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        1 => (offset(), size()).prop_map(|(offset, size)| Access::Read { offset, size }),
        2 => (offset(), size(), value())
            .prop_map(|(offset, size, value)| Access::Write { offset, size, value }),
    ]
}

fn engine_read(
    space: &VirtualConfigSpace,
    fake: &mut FakeFunction,
    offset: i32,
    size: i32,
) -> (i32, u32) {
    let result = fake
        .access(offset, size)
        .and_then(|access| space.read(fake, access));
    match result {
        Ok(value) => (0, value),
        Err(status) => (status.to_wire(), 0),
    }
}

fn engine_write(
    space: &mut VirtualConfigSpace,
    fake: &mut FakeFunction,
    (offset, size, value): (i32, i32, u32),
    flags: Flags,
) -> i32 {
    let result = fake
        .access(offset, size)
        .and_then(|access| space.write(fake, access, value, flags));
    result.map_or_else(OpStatus::to_wire, |_| 0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn check_70_engine_and_model_agree_on_answers_registers_and_power(
        accesses in prop::collection::vec((access(), any::<bool>(), any::<bool>()), 1..60),
        quirks in prop::collection::vec(quirk(), 0..4),
        one_setting in any::<bool>(),
    ) {
        let mut model = Model::new();
        let mut fake = FakeFunction::express();
        // The device's own rules, named here and not by the engine.
        for (table, bits) in [(&WIRED[..], &mut fake.wired), (&CLEARED, &mut fake.write_clears)] {
            bits.fill(0);
            for (at, unit) in table {
                bits[*at..at + 4].copy_from_slice(&unit.to_le_bytes());
            }
        }
        let mut space = fake.model_space();
        for (offset, size, mask) in quirks {
            let width = AccessWidth::from_bytes(size as i32).unwrap();
            let quirk = Quirk::new(offset as u16, width, mask).unwrap();
            if Model::takes_quirk(offset, size, mask) {
                prop_assert_eq!(space.add_quirk(quirk), Ok(()));
                model.quirks.retain(|&(o, s, _)| (o, s) != (offset, size));
                model.quirks.push((offset, size, mask));
            } else {
                prop_assert!(space.add_quirk(quirk).is_err());
            }
        }
        let (_, first_permissive, first_allowed) = accesses[0];
        for (access, permissive, allow_interrupt_control) in accesses {
            // Settings can change at any time; more often they stay.
            let flags = if one_setting {
                Flags { permissive: first_permissive, allow_interrupt_control: first_allowed }
            } else {
                Flags { permissive, allow_interrupt_control }
            };
            match access {
                Access::Read { offset, size } => {
                    let expected = model.read(offset, size);
                    prop_assert_eq!(
                        engine_read(&space, &mut fake, offset, size), expected, "{:x?}", access
                    );
                }
                Access::Write { offset, size, value } => {
                    let expected = model.write(offset, size, value, flags);
                    let result = engine_write(&mut space, &mut fake, (offset, size, value), flags);
                    prop_assert_eq!(result, expected, "{:x?} {:?}", access, flags);
                }
            }
            prop_assert_eq!(&fake.bytes, &model.hw, "{:x?} {:?}", access, flags);
            prop_assert_eq!(fake.enabled, model.enabled);
            prop_assert_eq!(fake.master, model.master);
        }
        for offset in (0..0x460).step_by(4) {
            let expected = model.read(offset, 4);
            prop_assert_eq!(engine_read(&space, &mut fake, offset, 4), expected);
        }
    }
}
