// SPDX-License-Identifier: GPL-2.0

//! A function made of an array of bytes: it carries out what the engine asks for and notes it.

// Each test crate uses a part of this.
#![allow(dead_code)]

use pciif::access::ConfigAccess;
use pciif::config::{BarFlags, BarInfo, Function, VirtualConfigSpace};
use pciif::op::OpStatus;

/// What the engine did to the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Write { offset: u16, bytes: u8, value: u32 },
    Enable,
    Disable,
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
    pub calls: Vec<Call>,
    pub reads: usize,
    pub enabled: bool,
    pub master: bool,
    pub ids: (u16, u16),
    pub irq: u8,
    /// These fail when set.
    pub enable_fails: bool,
    pub mwi_fails: bool,
    pub power_fails: bool,
    pub reads_fail: bool,
}

impl FakeFunction {
    /// All registers zero.
    pub fn blank(config_size: usize) -> Self {
        FakeFunction {
            bytes: vec![0; config_size],
            calls: Vec::new(),
            reads: 0,
            enabled: false,
            master: false,
            ids: (0x8086, 0x10fb),
            irq: 17,
            enable_fails: false,
            mwi_fails: false,
            power_fails: false,
            reads_fail: false,
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
        fake
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
        if self.reads_fail {
            return Err(OpStatus::OpFailed);
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
        self.poke(usize::from(access.offset()), usize::from(bytes), value);
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
        if self.enable_fails {
            return Err(OpStatus::OpFailed);
        }
        self.calls.push(Call::Enable);
        self.enabled = true;
        self.change_command(0, 0x3);
        Ok(())
    }

    fn disable(&mut self) {
        self.calls.push(Call::Disable);
        self.enabled = false;
        self.master = false;
        self.change_command(0x4, 0);
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
        if self.power_fails {
            return Err(OpStatus::OpFailed);
        }
        self.calls.push(Call::PowerState(state));
        // The model's PM capability; tests that place it elsewhere do not look at the state.
        if self.peek(0x40, 1) == 1 {
            let control = self.peek(0x44, 2);
            self.poke(0x44, 2, (control & !3) | u32::from(state));
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), OpStatus> {
        self.calls.push(Call::Reset);
        Ok(())
    }

    fn set_max_read_request(&mut self, bytes: u16) -> Result<(), OpStatus> {
        self.calls.push(Call::ReadRequest(bytes));
        Ok(())
    }
}
