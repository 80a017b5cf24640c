// SPDX-License-Identifier: GPL-2.0

//! A function made of an array of bytes: it carries out what the engine asks for and notes it.

// Each test crate uses a part of this.
#![allow(dead_code)]

use pciif::access::ConfigAccess;
use pciif::config::{BarFlags, BarInfo, Flags, Function, VirtualConfigSpace, WriteOutcome};
use pciif::op::OpStatus;

pub const PLAIN: Flags = Flags {
    permissive: false,
    allow_interrupt_control: false,
};
pub const PERMISSIVE: Flags = Flags {
    permissive: true,
    ..PLAIN
};
pub const INTERRUPTS: Flags = Flags {
    allow_interrupt_control: true,
    ..PLAIN
};

/// What the engine did to the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Write { offset: u16, bytes: u8, value: u32 },
    Enable,
    BusMaster(bool),
    Mwi(bool),
    Intx(bool),
    PowerState(u8),
    Reset,
    ReadRequest(u16),
}

#[derive(Clone, Debug)]
pub struct FakeFunction {
    pub bytes: Vec<u8>,
    /// Bits that a write of one clears and a write of zero leaves alone.
    pub write_clears: Vec<u8>,
    /// Bits that no write changes.
    pub wired: Vec<u8>,
    pub calls: Vec<Call>,
    pub reads: usize,
    /// How often the kernel was asked to enable it, with or without success.
    pub enables: u32,
    /// The same for changes of the power state.
    pub power_changes: u32,
    /// The same for resets.
    pub resets: u32,
    pub enabled: bool,
    pub master: bool,
    pub ids: (u16, u16),
    pub irq: u8,
    /// These fail when set.
    pub enable_fails: bool,
    pub mwi_fails: bool,
    pub power_fails: bool,
    pub reads_fail: bool,
    pub reset_fails: bool,
    /// Somebody of the host has the function.
    pub is_busy: bool,
    pub read_request_fails: bool,
    /// Extended space is out of reach.
    pub extended_fails: bool,
    /// Where PCI Express Device Control is.
    pub device_control: Option<usize>,
    /// Where the control register of power management is.
    pub power_control: Option<usize>,
    /// What is written back after a reset, and in D0.
    pub golden: Option<Vec<u8>>,
    /// Reads all ones until it is written back.
    pub answers_nothing: bool,
}

impl FakeFunction {
    /// All registers zero.
    pub fn blank(config_size: usize) -> Self {
        FakeFunction {
            bytes: vec![0; config_size],
            write_clears: vec![0; config_size],
            wired: vec![0; config_size],
            calls: Vec::new(),
            reads: 0,
            enables: 0,
            power_changes: 0,
            resets: 0,
            enabled: false,
            master: false,
            ids: (0x8086, 0x10fb),
            irq: 17,
            enable_fails: false,
            mwi_fails: false,
            power_fails: false,
            reads_fail: false,
            reset_fails: false,
            is_busy: false,
            read_request_fails: false,
            extended_fails: false,
            device_control: None,
            power_control: None,
            golden: None,
            answers_nothing: false,
        }
    }

    /// The device of the vectors in behaviour, section 6.8, which is the one of the model too.
    pub fn model() -> Self {
        let mut fake = FakeFunction::blank(256);
        fake.poke(0x00, 4, 0x10fb_8086);
        fake.poke(0x04, 2, 0x0103);
        fake.poke(0x06, 2, 0x0010);
        fake.poke(0x08, 4, 0x0200_0001);
        fake.poke(0x0c, 4, 0x0080_0010);
        fake.poke(0x10, 4, 0xf7d0_0004);
        fake.poke(0x18, 4, 0x0000_e001);
        fake.poke(0x30, 4, 0xf7c0_0000);
        fake.poke(0x34, 1, 0x40);
        fake.poke(0x3c, 2, 0x010b);
        // PM at 40, MSI at 50, MSI-X at 70, VPD at e0.
        fake.poke(0x40, 4, 0xc803_5001);
        fake.poke(0x44, 2, 0x2008);
        fake.poke(0x50, 4, 0x0180_7005);
        fake.poke(0x54, 4, 0xfee0_0000);
        fake.poke(0x70, 4, 0x0009_e011);
        fake.poke(0xe0, 2, 0x0003);
        // Error bits of STATUS, and PME status.
        fake.mark_status(0x06, 2, 0xf900);
        fake.write_clears[0x45] = 0x80;
        fake.enumerate();
        fake
    }

    /// The same device with PCI Express at 80, Advanced Features at c0, a vendor-specific capability
    /// at d0, and extended space with one of everything.
    pub fn express() -> Self {
        let mut fake = FakeFunction::model();
        fake.resize(4096);
        // The list: 40, 50, 70, e0 as before, then 80, c0, d0.
        fake.poke(0xe0, 2, 0x8003);
        // Version 2, endpoint; it can reset itself.
        fake.poke(0x80, 4, 0x0002_c010);
        fake.poke(0x84, 4, 0x1000_8fc1);
        // Relaxed ordering, no snoop, payload 256, reads 512; a correctable error.
        fake.poke(0x88, 4, 0x0009_2830);
        fake.mark_status(0x8a, 2, 0x000f);
        fake.device_control = Some(0x88);
        fake.poke(0x8c, 4, 0x0047_5c42);
        fake.poke(0x90, 4, 0x1042_0040);
        fake.poke(0xa4, 4, 0x0000_1011);
        fake.poke(0xa8, 4, 0x0000_0005);
        fake.poke(0xac, 4, 0x0000_000e);
        fake.poke(0xc0, 4, 0x0306_d013);
        fake.poke(0xd0, 4, 0x5a10_0009);
        fake.poke(0xd4, 4, 0x1111_1111);
        fake.poke(0xd8, 4, 0x2222_2222);
        fake.poke(0xdc, 4, 0x3333_3333);

        fake.extended(0x100, 0x0001, 0x148);
        fake.poke(0x104, 4, 0x0010_4000);
        fake.poke(0x108, 4, 0x0000_0000);
        fake.poke(0x10c, 4, 0x0046_2030);
        fake.poke(0x110, 4, 0x0000_2001);
        fake.poke(0x114, 4, 0x0000_2000);
        fake.poke(0x118, 4, 0x0000_00a0);
        fake.mark_status(0x104, 4, 0x07ff_f030);
        fake.mark_status(0x110, 4, 0x0000_f1c1);
        let mut at = 0x148;
        for (id, bytes) in Self::EXTENDED {
            let next = if id == 0x0024 { 0 } else { at + bytes };
            fake.extended(at, id, next);
            match id {
                // The length of vendor-specific capabilities, and one resizable BAR.
                0x000b | 0x0023 => fake.poke(at + 4, 4, ((bytes as u32) << 20) | 1),
                0x0015 | 0x0024 => fake.poke(at + 8, 4, 0x0000_0820),
                _ => fake.poke(at + 4, 4, 0x0101_0101),
            }
            at += bytes;
        }
        fake
    }

    /// Extended capabilities of [`FakeFunction::express`] behind AER, in this order: id and length.
    pub const EXTENDED: [(u32, usize); 27] = [
        (0x0004, 0x10),
        (0x0002, 0x1c),
        (0x0003, 0x0c),
        (0x000d, 0x08),
        (0x000e, 0x08),
        (0x000f, 0x08),
        (0x0010, 0x40),
        (0x0012, 0x30),
        (0x0013, 0x10),
        (0x0016, 0x10),
        (0x0017, 0x0c),
        (0x0018, 0x08),
        (0x0019, 0x0c),
        (0x001b, 0x08),
        (0x001d, 0x10),
        (0x001e, 0x10),
        (0x001f, 0x0c),
        (0x0025, 0x0c),
        (0x0026, 0x20),
        (0x0027, 0x08),
        (0x002e, 0x18),
        (0x0030, 0x0c),
        (0x7777, 0x08),
        (0x000b, 0x14),
        (0x0023, 0x18),
        (0x0015, 0x0c),
        (0x0024, 0x0c),
    ];

    fn extended(&mut self, at: usize, id: u32, next: usize) {
        self.poke(at, 4, id | 0x1_0000 | ((next as u32) << 20));
    }

    /// Gives it another size of configuration space.
    pub fn resize(&mut self, config_size: usize) {
        self.bytes.resize(config_size, 0);
        self.write_clears.resize(config_size, 0);
        self.wired.resize(config_size, 0);
    }

    /// A status register: these bits are cleared by ones, the others never change.
    pub fn mark_status(&mut self, offset: usize, bytes: usize, bits: u32) {
        for byte in 0..bytes {
            let bits = (bits >> (8 * byte)) as u8;
            self.write_clears[offset + byte] = bits;
            self.wired[offset + byte] = !bits;
        }
    }

    pub fn model_bars() -> [BarInfo; 6] {
        let mut bars = [BarInfo::default(); 6];
        bars[0] = memory(0xf7d0_0000, 0x4000, true, false);
        bars[2] = io(0xe000, 0x20);
        bars
    }

    pub fn model_rom() -> BarInfo {
        memory(0xf7c0_0000, 0x8000, false, false)
    }

    /// The engine for [`FakeFunction::model`].
    pub fn model_space(&mut self) -> VirtualConfigSpace {
        let bars = Self::model_bars();
        VirtualConfigSpace::new(0, &bars, Self::model_rom(), self).unwrap()
    }

    pub fn peek(&self, offset: usize, bytes: usize) -> u32 {
        (0..bytes).fold(0, |value, byte| {
            value | (u32::from(self.bytes[offset + byte]) << (8 * byte))
        })
    }

    pub fn poke(&mut self, offset: usize, bytes: usize, value: u32) {
        for byte in 0..bytes {
            self.bytes[offset + byte] = (value >> (8 * byte)) as u8;
        }
    }

    pub fn access(&self, offset: i32, size: i32) -> Result<ConfigAccess, OpStatus> {
        ConfigAccess::new(offset, size, self.bytes.len() as u16)
    }

    /// The kernel's look at a new function: where the first capability of power management is.
    pub fn enumerate(&mut self) {
        self.power_control = self.find_power_control();
    }

    fn find_power_control(&self) -> Option<usize> {
        let mut at = self.peek(0x34, 1) as usize & !3;
        // The kernel looks at 48.
        for _ in 0..48 {
            if at < 0x40 || at + 6 > self.bytes.len() {
                return None;
            }
            match self.bytes[at] {
                0xff => return None,
                0x01 => return Some(at + 4),
                _ => at = usize::from(self.bytes[at + 1]) & !3,
            }
        }
        None
    }

    /// Writes back what was seized, as the kernel does it; nothing without [`FakeFunction::golden`].
    fn write_back(&mut self) {
        if let Some(golden) = &self.golden {
            let written_back = [0x04..0x06, 0x0c..0x40, 0x88..0x8a, 0xa8..0xaa];
            for at in written_back.into_iter().flatten() {
                if at < golden.len() {
                    self.bytes[at] = golden[at];
                }
            }
            self.change_command(0x4, 0);
            self.answers_nothing = false;
        }
    }

    fn change_command(&mut self, clear: u32, set: u32) {
        let command = self.peek(4, 2);
        self.poke(4, 2, (command & !clear) | set);
    }
}

pub fn memory(start: u64, len: u64, mem64: bool, prefetch: bool) -> BarInfo {
    BarInfo {
        start,
        len,
        flags: BarFlags {
            io: false,
            mem64,
            prefetch,
            enabled: true,
        },
    }
}

pub fn io(start: u64, len: u64) -> BarInfo {
    BarInfo {
        start,
        len,
        flags: BarFlags {
            io: true,
            enabled: true,
            ..BarFlags::default()
        },
    }
}

impl Function for FakeFunction {
    fn config_size(&self) -> u16 {
        self.bytes.len() as u16
    }

    fn read(&mut self, access: ConfigAccess) -> Result<u32, OpStatus> {
        self.reads += 1;
        assert!(
            usize::from(access.offset() + u16::from(access.width().bytes())) <= self.bytes.len()
        );
        if self.reads_fail || (self.extended_fails && access.offset() >= 0x100) {
            return Err(OpStatus::OpFailed);
        }
        if self.answers_nothing {
            return Ok(access.width().mask());
        }
        let bytes = usize::from(access.width().bytes());
        Ok(self.peek(usize::from(access.offset()), bytes))
    }

    fn write(&mut self, access: ConfigAccess, value: u32) -> Result<(), OpStatus> {
        assert_eq!(
            value & !access.width().mask(),
            0,
            "value wider than its register"
        );
        let bytes = access.width().bytes();
        for byte in 0..usize::from(bytes) {
            let at = usize::from(access.offset()) + byte;
            let new = (value >> (8 * byte)) as u8;
            let (clears, wired) = (self.write_clears[at], self.wired[at]);
            let old = self.bytes[at];
            let stored = (old & wired) | (new & !wired);
            self.bytes[at] = (stored & !clears) | (old & !new & clears);
        }
        self.calls.push(Call::Write {
            offset: access.offset(),
            bytes,
            value,
        });
        Ok(())
    }

    fn ids(&self) -> (u16, u16) {
        self.ids
    }

    fn interrupt_line(&self) -> u8 {
        self.irq
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn enable(&mut self) -> Result<(), OpStatus> {
        self.enables += 1;
        if self.enable_fails {
            return Err(OpStatus::OpFailed);
        }
        self.calls.push(Call::Enable);
        self.enabled = true;
        self.change_command(0, 0x3);
        Ok(())
    }

    fn is_bus_master(&self) -> bool {
        self.master
    }

    fn set_bus_master(&mut self, on: bool) {
        self.calls.push(Call::BusMaster(on));
        self.master = on;
        self.change_command(0x4, if on { 0x4 } else { 0 });
    }

    fn set_mwi(&mut self, on: bool) -> Result<(), OpStatus> {
        if self.mwi_fails {
            return Err(OpStatus::OpFailed);
        }
        self.calls.push(Call::Mwi(on));
        self.change_command(0x10, if on { 0x10 } else { 0 });
        Ok(())
    }

    fn set_intx(&mut self, on: bool) {
        self.calls.push(Call::Intx(on));
        self.change_command(0x400, if on { 0 } else { 0x400 });
    }

    fn set_power_state(&mut self, state: u8) -> Result<(), OpStatus> {
        self.power_changes += 1;
        if self.power_fails {
            return Err(OpStatus::OpFailed);
        }
        self.calls.push(Call::PowerState(state));
        if let Some(at) = self.power_control {
            let control = self.peek(at, 2);
            self.poke(at, 2, (control & !3) | u32::from(state));
        }
        if state == 0 {
            self.write_back();
        }
        Ok(())
    }

    /// As the kernel does it: the configuration is as it was taken, in power state D0.
    fn reset(&mut self) -> Result<(), OpStatus> {
        self.resets += 1;
        if self.is_busy {
            return Err(OpStatus::AccessDenied);
        }
        if self.reset_fails {
            self.write_back();
            return Err(OpStatus::OpFailed);
        }
        self.calls.push(Call::Reset);
        self.write_back();
        if let Some(at) = self.power_control {
            let control = self.peek(at, 2);
            self.poke(at, 2, control & !3);
        }
        Ok(())
    }

    fn set_max_read_request(&mut self, bytes: u16) -> Result<(), OpStatus> {
        assert!(bytes.is_power_of_two() && (128..=4096).contains(&bytes));
        if self.read_request_fails {
            return Err(OpStatus::OpFailed);
        }
        self.calls.push(Call::ReadRequest(bytes));
        if let Some(offset) = self.device_control {
            let code = bytes.trailing_zeros() - 7;
            let control = self.peek(offset, 2);
            self.poke(offset, 2, (control & !0x7000) | (code << 12));
        }
        Ok(())
    }
}

/// A guest's function: the engine and what is behind it.
pub struct Guest {
    pub space: VirtualConfigSpace,
    pub fake: FakeFunction,
}

impl Guest {
    pub fn new() -> Self {
        Self::of(FakeFunction::model())
    }

    pub fn of(mut fake: FakeFunction) -> Self {
        let space = fake.model_space();
        fake.calls.clear();
        fake.reads = 0;
        Guest { space, fake }
    }

    pub fn read(&mut self, offset: i32, size: i32) -> Result<u32, OpStatus> {
        let access = self.fake.access(offset, size)?;
        self.space.read(&mut self.fake, access)
    }

    pub fn try_write(
        &mut self,
        offset: i32,
        size: i32,
        value: u32,
        flags: Flags,
    ) -> Result<WriteOutcome, OpStatus> {
        let access = self.fake.access(offset, size)?;
        self.space.write(&mut self.fake, access, value, flags)
    }

    /// A write that has to be accepted; returns the bits that were dropped.
    pub fn write(&mut self, offset: i32, size: i32, value: u32, flags: Flags) -> u32 {
        self.try_write(offset, size, value, flags).unwrap().dropped
    }

    pub fn calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.fake.calls)
    }
}
