// SPDX-License-Identifier: GPL-2.0

//! What a guest keeps of its function when the host's configuration is written back.
//!
//! A function that was reset, or that forgot its configuration on the way from D3hot to D0, gets the
//! configuration of when it was taken. Where a guest may write bits of the registers that the kernel
//! writes then, those bits are noted before and written after it; what a quirk or permissive mode opens
//! beyond them is for the guest's own driver to write again. So nothing else of what the device
//! answers in that moment, which may be anything, becomes its configuration.
//!
//! *Owns* nothing. *Callers*: the engine, for what a guest orders, and the backend for what the host's
//! administrator does to a function that a guest has; with the function held. *Context*: as the accessors
//! of the function, which do not sleep, but for bus mastering.

use super::table::{
    Dword, Effect, COMMAND, COMMAND_GUEST, COMMAND_INTX_DISABLE, COMMAND_MASTER, READ_REQUEST,
};
use super::{Function, VirtualConfigSpace};
use crate::access::ConfigAccess;

/// As many registers as are kept: a function has one of each kind, and a device that says otherwise is
/// not worth more.
const MOST: usize = 4;

/// Bits of one register.
#[derive(Clone, Copy, Debug)]
struct Kept {
    register: ConfigAccess,
    mask: u32,
    value: u32,
}

/// The bits that a guest may set, as they were.
#[derive(Clone, Copy, Debug)]
pub struct GuestBits {
    registers: [Option<Kept>; MOST],
    /// Of COMMAND, without bus mastering.
    command: u32,
    master: bool,
}

impl Dword {
    /// Whether the kernel writes it with the rest of a saved configuration, and a guest some bits of it.
    const fn is_shared(self) -> bool {
        matches!(
            self,
            Dword::CacheLine | Dword::ExpressControl | Dword::ExpressControl2 | Dword::PcixHead
        )
    }
}

impl VirtualConfigSpace {
    /// The registers that [`GuestBits`] has room for, and which of their bits the guest may set.
    fn shared(&self) -> impl Iterator<Item = (ConfigAccess, u32)> + '_ {
        let shared = self.index.iter().filter(|(_, dword)| dword.is_shared());
        let rows = shared.flat_map(|(number, dword)| {
            dword.rows().iter().map(move |row| {
                let mask = match row.effect {
                    Effect::Plain => row.write,
                    // The kernel has agreed to the size.
                    Effect::DeviceControl => row.write | READ_REQUEST,
                    _ => 0,
                };
                (ConfigAccess::of_table(number, row.byte, row.width), mask)
            })
        });
        rows.filter(|(_, mask)| *mask != 0).take(MOST)
    }

    /// Notes the bits that the guest may set, before the host's configuration is written back.
    ///
    /// A register that cannot be read, or reads all ones, tells nothing about the guest. Whether the function
    /// is bus master is the kernel's word, not the device's.
    pub fn guest_bits<F: Function>(&self, function: &mut F) -> GuestBits {
        let mut bits = GuestBits {
            registers: [None; MOST],
            command: 0,
            master: function.is_bus_master(),
        };
        for (slot, (register, mask)) in bits.registers.iter_mut().zip(self.shared()) {
            *slot = answer(function, register).map(|value| {
                let has_size = mask & READ_REQUEST != 0;
                let mask = match (value & READ_REQUEST) >> 12 {
                    // No such size.
                    6.. if has_size => mask & !READ_REQUEST,
                    _ => mask,
                };
                Kept {
                    register,
                    mask,
                    value: value & mask,
                }
            });
        }
        let command = answer(function, COMMAND).unwrap_or(0);
        let wished = u32::from(self.command & !COMMAND_MASTER);
        bits.command = command & wished & (COMMAND_GUEST | u32::from(COMMAND_INTX_DISABLE));
        bits
    }

    /// Gives the guest back what [`Self::guest_bits`] noted. Nothing is written that is so already.
    pub fn give_back<F: Function>(&self, function: &mut F, bits: &GuestBits) {
        for kept in bits.registers.iter().flatten() {
            let Some(now) = answer(function, kept.register) else {
                continue;
            };
            let new = (now & !kept.mask) | kept.value;
            if new != now {
                // The guest finds the host's value in a device that does not take it.
                let _ = function.write(kept.register, new);
            }
        }
        if function.is_bus_master() != bits.master {
            function.set_bus_master(bits.master);
        }
        let master = if bits.master { COMMAND_MASTER } else { 0 };
        if let Some(now) = answer(function, COMMAND) {
            let new = now | bits.command | u32::from(master);
            if new != now {
                let _ = function.write(COMMAND, new);
            }
        }
    }
}

/// What a register reads, if somebody answers.
fn answer<F: Function>(function: &mut F, register: ConfigAccess) -> Option<u32> {
    let value = function.read(register).ok();
    value.filter(|value| *value != register.width().mask())
}
