// SPDX-License-Identifier: GPL-2.0

//! PCI Express, extended space, guest resets, quirks and dropped writes: what a guest may do beyond
//! the registers of behaviour, section 6, without being permissive.
//!
//! The device is [`FakeFunction::express`]. Names begin with the number of the check that they are
//! part of, where there is one.

mod common;

use common::{Call, FakeFunction, Guest, INTERRUPTS, PERMISSIVE, PLAIN};
use pciif::access::{AccessWidth, ConfigAccess};
use pciif::config::{BarInfo, Function, VirtualConfigSpace, MAX_QUIRKS};
use pciif::denied::{DeniedWrites, Noted};
use pciif::op::OpStatus;
use pciif::quirk::{parse_quirk, Quirk, QuirkError, QuirkRefusal};
use pciif::sbdf::Sbdf;
use proptest::prelude::*;

const DEVICE_CONTROL: i32 = 0x88;
const DEVICE_STATUS: i32 = 0x8a;
const DEVICE_CONTROL2: i32 = 0xa8;
const FEATURE_CONTROL: i32 = 0xc4;
const UNCORRECTABLE: i32 = 0x104;
const CORRECTABLE: i32 = 0x110;

fn express() -> Guest {
    Guest::of(FakeFunction::express())
}

fn real(guest: &Guest, offset: i32, bytes: usize) -> u32 {
    guest.fake.peek(offset as usize, bytes)
}

fn quirk(offset: u16, width: AccessWidth, mask: u32) -> Quirk {
    Quirk::new(offset, width, mask).unwrap()
}

// ---- Device Control

#[test]
fn each_bit_of_device_control_is_the_guests_or_the_hosts() {
    for bit in 0..15 {
        let mut guest = express();
        // Reads of 256 bytes: flipping one bit of the size gives another size.
        guest.fake.poke(0x88, 2, 0x1830);
        let before = real(&guest, DEVICE_CONTROL, 2);
        let dropped = guest.write(DEVICE_CONTROL, 2, before ^ (1 << bit), PLAIN);
        let changed = before ^ real(&guest, DEVICE_CONTROL, 2);
        // Relaxed ordering, no snoop; 12 to 14 by the kernel.
        let is_guests = matches!(bit, 4 | 11 | 12 | 13 | 14);
        assert_eq!(changed, u32::from(is_guests) << bit, "bit {bit}");
        assert_eq!(dropped, u32::from(!is_guests) << bit, "bit {bit}");
    }
}

#[test]
fn size_of_reads_is_set_by_the_kernel() {
    let mut guest = express();
    guest.write(DEVICE_CONTROL, 2, 0x5830, PLAIN);
    assert_eq!(guest.calls(), [Call::ReadRequest(4096)]);
    assert_eq!(guest.read(DEVICE_CONTROL, 2), Ok(0x5830));
    // The same again is no work, and neither is a write beside it.
    guest.write(DEVICE_CONTROL, 2, 0x5830, PLAIN);
    guest.write(DEVICE_CONTROL, 1, 0x30, PLAIN);
    assert_eq!(guest.calls(), []);
    // Reserved codes, and sizes that the host bridge does not take.
    assert_eq!(guest.write(DEVICE_CONTROL, 2, 0x6830, PLAIN), 0x3000);
    guest.fake.read_request_fails = true;
    assert_eq!(guest.write(DEVICE_CONTROL, 2, 0x0830, PLAIN), 0x5000);
    assert_eq!(guest.calls(), []);
    assert_eq!(guest.read(DEVICE_CONTROL, 2), Ok(0x5830));
}

#[test]
fn device_control_2_gives_timeouts_and_order_of_own_requests() {
    let mut guest = express();
    assert_eq!(guest.write(DEVICE_CONTROL2, 2, 0xffff, PLAIN), 0xfce0);
    assert_eq!(real(&guest, DEVICE_CONTROL2, 4), 0x0000_031f);
    guest.write(DEVICE_CONTROL2, 2, 0, PLAIN);
    assert_eq!(real(&guest, DEVICE_CONTROL2, 2), 0);
}

#[test]
fn write_of_device_control_clears_no_error_beside_it() {
    let mut guest = express();
    for value in [0x2820, 0x2830] {
        guest.write(DEVICE_CONTROL, 2, value, PLAIN);
        assert_eq!(real(&guest, DEVICE_STATUS, 2), 0x0009);
    }
    guest.write(DEVICE_CONTROL, 4, 0x0000_2820, PLAIN);
    assert_eq!(real(&guest, DEVICE_CONTROL, 4), 0x0009_2820);
}

#[test]
fn port_registers_belong_to_the_host() {
    // Root port, upstream and downstream port, both kinds of bridges, event collector.
    for port in [4, 5, 6, 7, 8, 0xa] {
        let mut fake = FakeFunction::express();
        fake.poke(0x82, 2, 0x0002 | (port << 4));
        let mut guest = Guest::of(fake);
        for offset in (0x84..0xbc).step_by(4) {
            let before = real(&guest, offset, 4);
            guest.write(offset, 4, !before, PLAIN);
            let changed = before ^ real(&guest, offset, 4);
            let allowed = if offset == DEVICE_CONTROL {
                0x000f_0000
            } else {
                0
            };
            assert_eq!(changed & !allowed, 0, "port {port} at {offset:x}");
        }
        // Bit 15 is no reset there: some bridges have another meaning for it.
        guest.fake.poke(0x88, 2, 0x8000);
        assert_eq!(guest.read(DEVICE_CONTROL, 2), Ok(0x8000));
        guest.write(DEVICE_CONTROL, 2, 0x8000, PERMISSIVE);
        assert!(!guest.calls().contains(&Call::Reset));
    }
}

#[test]
fn express_capability_is_as_long_as_its_version_and_port_say() {
    // Which dwords of the capability have rows: a closed register does not count what it does not
    // change, and an unlisted one counts everything.
    let listed = |caps: u32| {
        let mut fake = FakeFunction::express();
        fake.poke(0x82, 2, caps);
        let mut guest = Guest::of(fake);
        (0x80..0xc0)
            .step_by(4)
            .filter(|&offset| {
                let same = real(&guest, offset, 4) & 0xffff;
                guest.write(offset, 2, same, PLAIN) == 0
            })
            .count()
    };
    // Version 1: endpoint to the link, in the root complex without it; root port has all of it.
    assert_eq!(listed(0x0001), 5);
    assert_eq!(listed(0x0091), 3);
    assert_eq!(listed(0x0041), 9);
    assert_eq!(listed(0x0061), 7);
    assert_eq!(listed(0x00a1), 5);
    // Version 2 always has 3c bytes.
    assert_eq!(listed(0x0002), 15);
    assert_eq!(listed(0x0092), 15);
}

#[test]
fn link_registers_are_read_only() {
    let mut guest = express();
    for offset in [0x8c, 0x90, 0xac, 0xb0] {
        let before = guest.read(offset, 4).unwrap();
        assert_eq!(guest.write(offset, 4, !before, PLAIN), 0xffff_ffff);
        assert_eq!(guest.read(offset, 4), Ok(before));
    }
    assert_eq!(guest.calls(), []);
}

// ---- Status bits, cleared by ones

#[test]
fn status_bits_are_cleared_by_ones_at_every_width() {
    // Register, its size, its error bits.
    for (offset, size, errors) in [
        (0x06, 2, 0xf900),
        (DEVICE_STATUS, 2, 0x000f),
        (UNCORRECTABLE, 4, 0x07ff_f030),
        (CORRECTABLE, 4, 0x0000_f1c1),
    ] {
        for width in [1, 2, 4] {
            for piece in (offset & !(width - 1)..offset + size).step_by(width as usize) {
                for bit in 0..8 * width {
                    let mut guest = express();
                    // All errors have happened.
                    let all = real(&guest, offset, size as usize) | errors;
                    guest.fake.poke(offset as usize, size as usize, all);
                    let before = guest.fake.bytes.clone();
                    guest.write(piece, width, 1 << bit, PLAIN);

                    let place = u32::try_from(8 * (piece - offset) + bit);
                    let written = place.map_or(0, |place| 1 << place);
                    let now = real(&guest, offset, size as usize);
                    assert_eq!(
                        now,
                        all & !(written & errors),
                        "{piece:x}/{width} bit {bit}"
                    );
                    // A dword at a word register writes the register in front of it, too.
                    let first = piece.min(offset) as usize;
                    let behind = (offset + size) as usize;
                    assert_eq!(guest.fake.bytes[..first], before[..first]);
                    assert_eq!(guest.fake.bytes[behind..], before[behind..]);
                }
            }
        }
    }
}

#[test]
fn zeros_clear_no_status() {
    let mut guest = express();
    guest.fake.poke(0x06, 2, 0xf910);
    guest.write(0x06, 2, 0, PLAIN);
    guest.write(DEVICE_STATUS, 2, 0, PLAIN);
    guest.write(UNCORRECTABLE, 4, 0, PLAIN);
    guest.write(CORRECTABLE, 4, 0, PLAIN);
    assert_eq!(guest.calls(), []);
    assert_eq!(guest.read(0x06, 2), Ok(0xf910));
}

#[test]
fn check_59_writing_status_does_not_touch_command() {
    let mut guest = express();
    guest.fake.poke(0x06, 2, 0xf910);
    guest.write(0x04, 2, 0x0006, PLAIN);
    guest.calls();
    guest.write(0x06, 2, 0xffff, PLAIN);
    let clear = Call::Write {
        offset: 0x06,
        bytes: 2,
        value: 0xf900,
    };
    assert_eq!(guest.calls(), [clear]);
    assert_eq!(guest.read(0x04, 4), Ok(0x0010_0006));
}

#[test]
fn check_63_power_status_is_cleared_only_by_a_one_of_the_guest() {
    let mut guest = express();
    guest.fake.poke(0x44, 2, 0xa008);
    // The low byte, a data selection, a state: the event stays.
    guest.write(0x44, 1, 0x00, PLAIN);
    guest.write(0x44, 2, 0x0200, PLAIN);
    assert_eq!(real(&guest, 0x44, 2), 0xa208);
    guest.write(0x45, 1, 0x82, PLAIN);
    assert_eq!(real(&guest, 0x44, 2), 0x2208);
}

#[test]
fn check_63_seizing_keeps_the_wake_up_event_and_stops_more() {
    let mut fake = FakeFunction::express();
    fake.poke(0x44, 2, 0xa108);
    let guest = Guest::of(fake);
    assert_eq!(real(&guest, 0x44, 2), 0xa008);
}

#[test]
fn check_63_address_lost_in_d3hot_is_restored_by_writing_it_back() {
    let mut guest = express();
    guest.write(0x44, 2, 0x0003, PLAIN);
    assert_eq!(guest.read(0x44, 2).unwrap() & 3, 3);
    guest.fake.poke(0x10, 4, 0x0000_0004);
    guest.write(0x44, 2, 0x0000, PLAIN);
    assert_eq!(guest.read(0x44, 2).unwrap() & 3, 0);
    // The guest sees its address all the time, and its save and restore writes it.
    assert_eq!(guest.read(0x10, 4), Ok(0xf7d0_0004));
    guest.write(0x10, 4, 0xf7d0_0004, PLAIN);
    assert_eq!(real(&guest, 0x10, 4), 0xf7d0_0004);
}

/// A guest that has set all it may of what the kernel writes back: bus mastering, MWI, the cache line, order
/// and sizes of its requests, time-outs.
fn guest_with_settings() -> Guest {
    let mut guest = express();
    guest.fake.golden = Some(guest.fake.bytes.clone());
    guest.write(0x04, 2, 0x0017, PLAIN);
    guest.write(0x0c, 1, 0x08, PLAIN);
    guest.write(DEVICE_CONTROL, 2, 0x5020, PLAIN);
    guest.write(0xa8, 2, 0x0109, PLAIN);
    guest.calls();
    guest
}

/// What the kernel writes back with the configuration of when the function was taken, and a guest has a part in.
fn written_back(guest: &Guest) -> [u32; 5] {
    let registers = [(0x04, 2), (0x0c, 4), (0x10, 4), (0x88, 2), (0xa8, 2)];
    registers.map(|(offset, bytes)| guest.fake.peek(offset, bytes))
}

/// S11.
#[test]
fn what_a_device_answers_before_a_restore_does_not_become_its_configuration() {
    let mut guest = guest_with_settings();
    let golden = guest.fake.golden.clone().unwrap();
    // COMMAND, BARs, error reporting and the link's control, as the device says they were.
    guest.write(0x44, 2, 0x0003, PLAIN);
    for (offset, value) in [(0x04, 0x0155), (0x10, 0xdead_0000), (0x14, 0xbeef)] {
        guest.fake.poke(offset, 4, value);
    }
    guest.fake.poke(0x88, 2, 0xffef);
    guest.write(0x44, 2, 0x0000, PLAIN);
    assert_eq!(guest.fake.bytes[0x10..0x40], golden[0x10..0x40]);
    // No size of 16 KiB, no reset, no error reporting: of the device's word only the two hints count.
    assert_eq!(real(&guest, DEVICE_CONTROL, 2), 0x2820);
    assert_eq!(real(&guest, 0x04, 2), 0x0117);
}

#[test]
fn guest_keeps_its_bits_when_its_function_wakes() {
    let mut guest = guest_with_settings();
    let before = written_back(&guest);
    guest.write(0x44, 2, 0x0003, PLAIN);
    guest.write(0x44, 2, 0x0000, PLAIN);
    assert_eq!(written_back(&guest), before);
    assert!(guest.fake.master);
}

#[test]
fn function_that_answers_nothing_gets_the_hosts_configuration() {
    let mut guest = guest_with_settings();
    let golden = guest.fake.golden.clone().unwrap();
    guest.fake.answers_nothing = true;
    let bits = guest.space.guest_bits(&mut guest.fake);
    guest.fake.reset().unwrap();
    guest.space.give_back(&mut guest.fake, &bits);
    let before = written_back(&guest);
    // Bus mastering is the kernel's word.
    assert_eq!(real(&guest, 0x04, 2), 0x0107);
    guest.fake.bytes = golden;
    guest.fake.poke(0x04, 2, 0x0107);
    assert_eq!(written_back(&guest), before);
}

#[test]
fn guest_keeps_its_bits_when_the_administrator_resets() {
    let mut guest = guest_with_settings();
    let before = written_back(&guest);
    let bits = guest.space.guest_bits(&mut guest.fake);
    guest.fake.reset().unwrap();
    assert_ne!(written_back(&guest), before);
    guest.space.give_back(&mut guest.fake, &bits);
    assert_eq!(written_back(&guest), before);
}

#[test]
fn guest_keeps_its_bits_when_its_reset_fails() {
    let mut guest = guest_with_settings();
    let before = written_back(&guest);
    guest.fake.reset_fails = true;
    let result = guest.try_write(DEVICE_CONTROL, 2, 0x8000, PLAIN);
    assert_eq!(result, Err(OpStatus::OpFailed));
    assert_eq!(written_back(&guest), before);
}

#[test]
fn error_policy_is_the_hosts() {
    let mut guest = express();
    for offset in [0x108, 0x10c, 0x114, 0x118, 0x11c, 0x128] {
        let before = guest.read(offset, 4).unwrap();
        assert_eq!(guest.write(offset, 4, !before, PLAIN), 0xffff_ffff);
        assert_eq!(guest.read(offset, 4), Ok(before));
    }
    assert_eq!(guest.calls(), []);
}

// ---- Other capabilities

#[test]
fn check_69_extended_capabilities_read_as_the_device_and_stay_the_hosts() {
    let mut guest = express();
    let mut at = 0x148;
    for (id, bytes) in FakeFunction::EXTENDED {
        for offset in (at..at + bytes).step_by(4) {
            let before = guest.fake.peek(offset, 4);
            assert_eq!(guest.read(offset as i32, 4), Ok(before));
            let dropped = guest.write(offset as i32, 4, !before, PLAIN);
            // The selector of the power budget is the only register of these that a guest sets.
            let allowed = if (id, offset - at) == (0x0004, 4) {
                0xff
            } else {
                0
            };
            assert_eq!(
                guest.fake.peek(offset, 4) ^ before,
                allowed,
                "{id:x} {offset:x}"
            );
            assert_eq!(dropped, !allowed, "{id:x} {offset:x}");
        }
        at += bytes;
    }
    assert!(at < 0x460);
}

#[test]
fn vendor_specific_registers_are_written_up_to_their_length() {
    let mut guest = express();
    // Id, next and length are wired; the fourth byte is the first of the vendor's.
    assert_eq!(guest.write(0xd0, 4, 0xa5ef_0000, PLAIN), 0x00ff_ffff);
    assert_eq!(real(&guest, 0xd0, 4), 0xa510_0009);
    for offset in [0xd4, 0xd8, 0xdc] {
        assert_eq!(guest.write(offset, 4, 0xdead_beef, PLAIN), 0);
        assert_eq!(guest.read(offset, 4), Ok(0xdead_beef));
    }
    assert_eq!(guest.write(0xd6, 1, 0x42, PLAIN), 0);
    assert_eq!(guest.read(0xd4, 4), Ok(0xde42_beef));
}

#[test]
fn vendor_specific_capability_cannot_swallow_its_neighbours() {
    let mut fake = FakeFunction::express();
    // It claims to reach over VPD at e0 to the end and behind.
    fake.poke(0xd2, 1, 0xff);
    let mut guest = Guest::of(fake);
    assert_eq!(guest.write(0xe4, 4, 1, PLAIN), 0);
    assert_eq!(guest.read(0xe4, 4), Ok(0));
    // It ends where it meets VPD.
    assert_eq!(guest.write(0xf0, 4, 1, PLAIN), 0xffff_ffff);
    assert_eq!(real(&guest, 0xf0, 4), 0);
    // One that has no room for registers has none.
    for length in 0..4 {
        let mut fake = FakeFunction::express();
        fake.poke(0xd2, 1, length);
        let mut guest = Guest::of(fake);
        assert_eq!(guest.write(0xd3, 1, 0xa5, PLAIN), 0xff);
        assert_eq!(guest.write(0xd4, 4, 1, PLAIN), 0xffff_ffff);
    }
}

#[test]
fn vendor_specific_tail_of_part_of_a_dword_stays_closed() {
    let mut fake = FakeFunction::express();
    fake.poke(0xd2, 1, 0x0e);
    let mut guest = Guest::of(fake);
    assert_eq!(guest.write(0xd8, 4, 1, PLAIN), 0);
    assert_eq!(guest.write(0xdc, 2, 1, PLAIN), 0xffff);
}

#[test]
fn pcix_gives_reads_and_errors_to_a_device_not_to_a_bridge() {
    let with_pcix = || {
        let mut fake = FakeFunction::model();
        fake.poke(0xe0, 2, 0xf003);
        fake.poke(0xf0, 4, 0x0001_0007);
        fake.poke(0xf4, 4, 0x202c_00f8);
        fake.mark_status(0xf4, 4, 0x200c_0000);
        fake
    };
    let mut guest = Guest::of(with_pcix());
    assert_eq!(guest.write(0xf2, 2, 0xffff, PLAIN), 0xff80);
    assert_eq!(real(&guest, 0xf0, 4), 0x007f_0007);
    guest.write(0xf4, 4, 0x2000_0000, PLAIN);
    assert_eq!(real(&guest, 0xf4, 4), 0x002c_00f8);

    let mut fake = with_pcix();
    let bars = [BarInfo::default(); 2];
    let space = VirtualConfigSpace::new(1, &bars, BarInfo::default(), &mut fake).unwrap();
    let mut guest = Guest { space, fake };
    assert_eq!(guest.write(0xf2, 2, 0xffff, PLAIN), 0xffff);
    assert_eq!(guest.write(0xf4, 4, 0xffff_ffff, PLAIN), 0xffff_ffff);
    assert_eq!(real(&guest, 0xf0, 4), 0x0001_0007);
}

#[test]
fn check_65_message_registers_follow_the_layout_and_are_not_written() {
    // Bytes of the capability: 32 or 64 bits, without and with masks.
    for (control, bytes) in [
        (0x0000, 0x0c),
        (0x0080, 0x10),
        (0x0100, 0x14),
        (0x0180, 0x18),
    ] {
        let mut fake = FakeFunction::model();
        fake.poke(0x52, 2, control);
        let mut guest = Guest::of(fake);
        for offset in (0x54..0x70).step_by(4) {
            let same = real(&guest, offset, 4);
            // A listed register counts what would change, an unlisted one everything.
            let is_listed = guest.write(offset, 4, same, PLAIN) == 0;
            assert_eq!(is_listed, offset < 0x50 + bytes, "{control:x} {offset:x}");
            assert_eq!(guest.write(offset, 4, !same, PLAIN), 0xffff_ffff);
            assert_eq!(real(&guest, offset, 4), same);
        }
    }
}

#[test]
fn permissive_guest_writes_what_the_rows_keep_from_others() {
    let mut guest = express();
    for (offset, value) in [
        (0x90, 0x0000_0143),
        (0x108, 0x0010_0000),
        (0x54, 0xfee0_1000),
        (0x88, 0x0000_5fff),
        (0x160, 0x1234_5678),
        (0x14c, 0xffff_ffff),
    ] {
        assert_eq!(guest.write(offset, 4, value, PERMISSIVE), 0);
        let whole = Call::Write {
            offset: offset as u16,
            bytes: 4,
            value,
        };
        assert_eq!(guest.calls(), [whole]);
    }
}

#[test]
fn check_67_permissive_counts_from_the_next_write_on() {
    let mut guest = express();
    for (flags, value) in [(PLAIN, 0x0040), (PERMISSIVE, 0x0043), (PLAIN, 0x0043)] {
        guest.write(0x90, 2, 0x0043, flags);
        assert_eq!(guest.read(0x90, 2), Ok(value));
    }
}

// ---- Resets

#[test]
fn reset_bit_goes_to_the_kernel_and_never_to_the_device() {
    for (offset, size, value) in [
        (DEVICE_CONTROL, 2, 0xa830),
        (DEVICE_CONTROL, 4, 0x0000_a830),
        (DEVICE_CONTROL + 1, 1, 0x80),
        (FEATURE_CONTROL, 1, 0x01),
        (FEATURE_CONTROL, 2, 0x0001),
        (FEATURE_CONTROL, 4, 0xffff_ffff),
    ] {
        for flags in [PLAIN, PERMISSIVE, INTERRUPTS] {
            let mut guest = express();
            guest.write(offset, size, value, flags);
            assert_eq!(guest.calls(), [Call::Reset], "{offset:x} {flags:?}");
            // It reads as 0, whatever the device has there.
            guest.fake.poke(0x89, 1, 0xff);
            guest.fake.poke(0xc4, 1, 0xff);
            assert_eq!(guest.read(DEVICE_CONTROL, 2).unwrap() & 0x8000, 0);
            assert_eq!(guest.read(FEATURE_CONTROL, 1).unwrap() & 1, 0);
        }
    }
}

#[test]
fn reset_bit_that_a_device_shows_is_not_written_back() {
    let mut guest = express();
    guest.fake.poke(0x88, 2, 0xa830);
    guest.write(DEVICE_CONTROL, 2, 0x2820, PLAIN);
    let write = Call::Write {
        offset: 0x88,
        bytes: 2,
        value: 0x2820,
    };
    assert_eq!(guest.calls(), [write]);
}

#[test]
fn function_that_cannot_reset_itself_ignores_the_bit() {
    let mut fake = FakeFunction::express();
    fake.poke(0x84, 4, 0x0000_8fc1);
    fake.poke(0xc3, 1, 0x02);
    let mut guest = Guest::of(fake);
    for flags in [PLAIN, PERMISSIVE] {
        guest.write(DEVICE_CONTROL, 2, 0xa820, flags);
        guest.write(FEATURE_CONTROL, 1, 0x01, flags);
        let calls = guest.calls();
        assert!(!calls.contains(&Call::Reset));
        assert_eq!(real(&guest, DEVICE_CONTROL, 2), 0x2820);
        assert_eq!(real(&guest, FEATURE_CONTROL, 1), 0);
    }
}

#[test]
fn a_reset_that_fails_is_tried_once_in_an_assignment() {
    let mut guest = express();
    // A host that has the function in hand for a moment is no failure.
    guest.fake.is_busy = true;
    for _ in 0..10 {
        let result = guest.try_write(DEVICE_CONTROL, 2, 0x8000, PLAIN);
        assert_eq!(result, Err(OpStatus::OpFailed));
    }
    guest.fake.is_busy = false;
    guest.fake.resets = 0;
    guest.fake.reset_fails = true;
    for _ in 0..100 {
        let result = guest.try_write(DEVICE_CONTROL, 2, 0x8000, PLAIN);
        assert_eq!(result, Err(OpStatus::OpFailed));
    }
    assert_eq!(guest.fake.resets, 1);
    guest.space.reset_for_assignment();
    guest.fake.reset_fails = false;
    guest.write(DEVICE_CONTROL, 2, 0x8000, PLAIN);
    assert_eq!(guest.fake.resets, 2);
}

#[test]
fn guest_finds_the_function_as_a_reset_leaves_it() {
    for flags in [PLAIN, PERMISSIVE] {
        let mut guest = express();
        guest.write(0x04, 2, 0x0157, flags);
        guest.write(0x10, 4, 0xffff_ffff, flags);
        guest.write(0x30, 4, 0xffff_ffff, flags);
        guest.write(0x44, 2, 0x0003, flags);
        guest.calls();
        guest.write(DEVICE_CONTROL, 2, 0x8000, flags);

        assert_eq!(guest.read(0x04, 2), Ok(0));
        assert_eq!(guest.read(0x10, 4), Ok(0xf7d0_0004));
        assert_eq!(guest.read(0x30, 4), Ok(0xf7c0_0000));
        assert_eq!(guest.read(0x44, 2).unwrap() & 3, 0);
        assert!(!guest.space.is_enabled_by_guest() && !guest.fake.master);
        // Decode of the device stays on, and so does what the host set up.
        assert_eq!(real(&guest, 0x04, 2), 0x0103);
        // It can be switched on again.
        guest.calls();
        guest.write(0x04, 2, 0x0006, flags);
        assert_eq!(guest.fake.calls[..1], [Call::BusMaster(true)]);
        assert_eq!(guest.read(0x04, 2), Ok(0x0006));
    }
}

#[test]
fn check_60_interrupt_pin_that_a_guest_forbade_is_allowed_after_a_reset() {
    let mut guest = express();
    guest.write(0x04, 2, 0x0406, INTERRUPTS);
    assert_eq!(real(&guest, 0x04, 2) & 0x0400, 0x0400);
    guest.write(FEATURE_CONTROL, 1, 1, INTERRUPTS);
    assert_eq!(real(&guest, 0x04, 2) & 0x0400, 0);
    // Without the permission the pin is the host's.
    let mut guest = express();
    guest.fake.poke(0x04, 2, 0x0503);
    guest.write(0x04, 2, 0x0406, PLAIN);
    guest.write(FEATURE_CONTROL, 1, 1, PLAIN);
    assert_eq!(real(&guest, 0x04, 2) & 0x0400, 0x0400);
}

#[test]
fn reset_that_fails_is_reported_and_changes_nothing() {
    for offset in [DEVICE_CONTROL, FEATURE_CONTROL] {
        for flags in [PLAIN, PERMISSIVE] {
            let mut guest = express();
            guest.write(0x04, 2, 0x0007, flags);
            guest.write(0x10, 4, 0xffff_ffff, flags);
            guest.calls();
            guest.fake.reset_fails = true;
            let before = guest.fake.bytes.clone();
            let result = guest.try_write(offset, 2, 0x8001, flags);
            assert_eq!(result, Err(OpStatus::OpFailed));
            assert_eq!(guest.calls(), []);
            assert_eq!(guest.fake.bytes, before);
            assert_eq!(guest.read(0x04, 2), Ok(0x0007));
            assert_eq!(guest.read(0x10, 4), Ok(0xffff_c004));
        }
    }
}

#[test]
fn check_68_next_guest_finds_nothing_of_a_reset_or_of_the_last_guest() {
    let mut guest = express();
    let fresh = guest.read(0x04, 2);
    guest.write(0x04, 2, 0x0547, PLAIN);
    guest.write(DEVICE_CONTROL, 2, 0x8000, PLAIN);
    assert_ne!(guest.read(0x04, 2), fresh);
    guest.space.reset_for_assignment();
    assert_eq!(guest.read(0x04, 2), fresh);
}

// ---- Which accesses may sleep

#[test]
fn reads_never_sleep_and_writes_only_where_the_kernel_may() {
    let guest = express();
    let mut sleeping = Vec::new();
    for offset in 0..4096 {
        let access = ConfigAccess::new(offset, 1, 4096).unwrap();
        assert!(!guest.space.may_sleep(access, false));
        if guest.space.may_sleep(access, true) {
            sleeping.push(offset);
        }
    }
    // COMMAND, PM control, Initiate FLR of both kinds.
    assert_eq!(sleeping, [0x04, 0x05, 0x44, 0x45, 0x89, 0xc4]);
}

proptest! {
    /// What is said not to sleep calls nothing that may.
    #[test]
    fn access_that_may_not_sleep_calls_nothing_that_does(
        offset in prop_oneof![0..0x160i32, 0..4096i32],
        size in prop::sample::select(vec![1, 2, 4]),
        value in any::<u32>(),
        permissive in any::<bool>(),
        allow_interrupt_control in any::<bool>(),
    ) {
        let mut guest = express();
        let offset = offset & !(size - 1);
        let access = guest.fake.access(offset, size).unwrap();
        let flags = pciif::config::Flags { permissive, allow_interrupt_control };
        let _ = guest.try_write(offset, size, value, flags);
        let sleeps = |call: &Call| !matches!(call, Call::Write { .. } | Call::ReadRequest(_));
        if !guest.space.may_sleep(access, true) {
            prop_assert!(!guest.calls().iter().any(sleeps));
        }
    }
}

// ---- Widths

/// Registers whose bits mean the same in whatever pieces they are written.
const STORED: [i32; 9] = [0x88, 0xa8, 0xd0, 0xd4, 0xdc, 0x104, 0x110, 0x14c, 0xe8];

proptest! {
    #[test]
    fn bytes_words_and_dwords_write_the_same(
        register in prop::sample::select(STORED.to_vec()),
        value in any::<u32>(),
        start in any::<u32>(),
        mask in 1..=u32::MAX,
    ) {
        // A reset ends the write of its register.
        let value = if register == 0x88 { value & !0x8000 } else { value };
        let mut results = Vec::new();
        for size in [1, 2, 4] {
            let mut guest = express();
            guest.space.add_quirk(quirk(0xe8, AccessWidth::Dword, mask)).unwrap();
            guest.fake.poke(0xe8, 4, start);
            for piece in (0..4).step_by(size as usize) {
                guest.write(register + piece, size, value >> (8 * piece), PLAIN);
            }
            results.push(guest.fake.bytes);
        }
        prop_assert_eq!(&results[0], &results[1]);
        prop_assert_eq!(&results[0], &results[2]);
    }

    #[test]
    fn bytes_and_words_read_as_parts_of_the_dword(
        registers in prop::collection::vec(any::<u32>(), 256),
        command in any::<u32>(),
        sizing in any::<bool>(),
    ) {
        let mut guest = express();
        guest.write(0x04, 2, command & 0xffff, PLAIN);
        if sizing {
            guest.write(0x10, 4, 0xffff_ffff, PLAIN);
        }
        for (index, value) in registers.into_iter().enumerate() {
            guest.fake.poke(4 * index, 4, value);
        }
        for offset in (0..0x400).step_by(4) {
            let whole = guest.read(offset, 4).unwrap();
            for byte in 0..4 {
                prop_assert_eq!(guest.read(offset + byte, 1), Ok((whole >> (8 * byte)) & 0xff));
            }
            for half in [0, 2] {
                prop_assert_eq!(guest.read(offset + half, 2), Ok((whole >> (8 * half)) & 0xffff));
            }
        }
    }
}

// ---- Chains that cannot be believed

/// A configuration space full of anything, with lists that lead anywhere.
fn any_space() -> impl Strategy<Value = FakeFunction> {
    let sizes = vec![
        0x40, 0x44, 0xa0, 0xfe, 0x100, 0x102, 0x104, 0x600, 0xffe, 0x1000,
    ];
    let heads = prop::collection::vec((0..1024usize, any::<u8>(), 0..0x30u8, 0..1024usize), 0..40);
    let noise = prop_oneof![Just(0u8), Just(0xff), Just(0x10), any::<u8>()];
    (
        prop::sample::select(sizes),
        heads,
        noise,
        any::<[u8; 64]>(),
        any::<bool>(),
    )
        .prop_map(|(config_size, heads, noise, header, extended_fails)| {
            let mut fake = FakeFunction::blank(config_size);
            fake.bytes.fill(noise);
            fake.bytes[..64].copy_from_slice(&header);
            fake.poke(0x06, 2, 0x0010);
            for (at, small, id, next) in heads {
                // Extended heads lie behind, conventional ones in the first 256 bytes.
                let at = 4 * at;
                if at >= 0x100 && at + 4 <= config_size {
                    fake.poke(at, 4, u32::from(id) | ((4 * next as u32) << 20));
                }
                let at = at & 0xff;
                if at >= 0x40 && at + 4 <= config_size {
                    fake.poke(
                        at,
                        4,
                        u32::from(id) | (u32::from(small) << 8) | ((next as u32) << 16),
                    );
                }
            }
            fake.extended_fails = extended_fails;
            fake.enumerate();
            fake
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn broken_chains_cost_bounded_time_and_break_nothing(mut fake in any_space()) {
        let command = fake.peek(4, 2);
        let bars = [BarInfo::default(); 6];
        let space = VirtualConfigSpace::new(0, &bars, BarInfo::default(), &mut fake);
        // 48 and 64 heads, and a few registers of each.
        prop_assert!(fake.reads < 2 * (48 + 64) + 16);
        prop_assert!(space.is_ok());
        // Only wake-up is ever switched off.
        for call in &fake.calls {
            let is_wake_up = matches!(call, Call::Write { offset: 0x44.., bytes: 2, .. });
            prop_assert!(is_wake_up, "{:x?}", call);
        }
        prop_assert_eq!(fake.peek(4, 2), command);
    }

    #[test]
    fn check_59_no_guest_clears_decode_or_moves_a_bar(
        mut fake in any_space(),
        writes in prop::collection::vec(
            (prop_oneof![0..0x40i32, 0..0x1000i32], prop::sample::select(vec![1, 2, 4]),
             prop_oneof![Just(0), Just(u32::MAX), any::<u32>()], any::<bool>(), any::<bool>()),
            1..80,
        ),
        decode in 0..4u32,
    ) {
        fake.poke(0x04, 2, decode | fake.peek(0x04, 2) & !3);
        let ids_and_bars = |fake: &FakeFunction| {
            [fake.bytes[..4].to_vec(), fake.bytes[0x08..0x0c].to_vec(), fake.bytes[0x10..0x28].to_vec(),
             fake.bytes[0x30..0x34].to_vec()]
        };
        let before = ids_and_bars(&fake);
        let bars = [BarInfo::default(); 6];
        let mut space = VirtualConfigSpace::new(0, &bars, BarInfo::default(), &mut fake).unwrap();
        let mut had = decode;
        for (offset, size, value, permissive, allow_interrupt_control) in writes {
            let flags = pciif::config::Flags { permissive, allow_interrupt_control };
            if let Ok(access) = fake.access(offset & !(size - 1), size) {
                // Revision and class are the device's own, which a permissive guest may try.
                let flags = if (8..12).contains(&access.offset()) { PLAIN } else { flags };
                let _ = space.write(&mut fake, access, value, flags);
            }
            let now = fake.peek(0x04, 2) & 3;
            prop_assert_eq!(now & had, had, "decode was cleared");
            had = now;
        }
        prop_assert_eq!(ids_and_bars(&fake), before);
    }

    /// The strictest reading of "closed": a guest that is not permissive changes nothing that the
    /// engine does not list as a field.
    #[test]
    fn plain_guest_changes_nothing_outside_the_listed_fields(
        mut fake in any_space(),
        writes in prop::collection::vec(
            (0..0x1000i32, prop::sample::select(vec![1, 2, 4]), any::<u32>()), 1..80),
    ) {
        let bars = [BarInfo::default(); 6];
        let mut space = VirtualConfigSpace::new(0, &bars, BarInfo::default(), &mut fake).unwrap();
        let mut listed = vec![false; fake.bytes.len()];
        for field in space.fields() {
            let start = usize::from(field.offset);
            listed[start..start + usize::from(field.width.bytes())].fill(true);
        }
        let before = fake.bytes.clone();
        for (offset, size, value) in writes {
            if let Ok(access) = fake.access(offset & !(size - 1), size) {
                let _ = space.write(&mut fake, access, value, PLAIN);
            }
        }
        for at in 0..before.len() {
            prop_assert!(listed[at] || fake.bytes[at] == before[at], "{:x}", at);
        }
    }
}

#[test]
fn extended_list_that_loops_or_points_astray_ends() {
    // Next pointers: to itself, into the first 256 bytes, behind the end.
    for (config_size, next) in [
        (0x1000, 0x100),
        (0x1000, 0x0fc),
        (0x1000, 0x004),
        (0x600, 0x600),
    ] {
        let mut fake = FakeFunction::model();
        fake.resize(config_size);
        fake.poke(0x100, 4, 0x0001_0001 | (next << 20));
        let mut guest = Guest::of(fake);
        guest.fake.poke(0x104, 4, 0x10);
        assert_eq!(guest.write(0x104, 4, 0x10, PLAIN), 0);
    }
    // The two low bits of a pointer are reserved.
    let mut fake = FakeFunction::model();
    fake.resize(0x1000);
    fake.poke(0x100, 4, 0x0001_0003 | (0x203 << 20));
    fake.poke(0x200, 4, 0x0001_0001);
    let mut guest = Guest::of(fake);
    assert_eq!(guest.write(0x204, 4, 0x10, PLAIN), 0);
}

#[test]
fn capability_at_the_end_of_the_first_256_bytes_does_not_reach_behind_them() {
    for id in [0x01, 0x03, 0x05, 0x07, 0x09, 0x10, 0x11, 0x13] {
        let mut fake = FakeFunction::blank(4096);
        fake.poke(0x06, 2, 0x0010);
        fake.poke(0x34, 1, 0xfc);
        // The upper half makes it as long as it can be.
        fake.poke(0xfc, 4, 0x01f2_0000 | id);
        let before = fake.bytes.clone();
        fake.extended_fails = true;
        let bars = [BarInfo::default(); 6];
        let space = VirtualConfigSpace::new(0, &bars, BarInfo::default(), &mut fake).unwrap();
        fake.extended_fails = false;
        let mut guest = Guest { space, fake };
        for offset in (0x100..0x180).step_by(4) {
            assert_eq!(
                guest.write(offset, 4, 0xffff_ffff, PLAIN),
                0xffff_ffff,
                "{id:x}"
            );
        }
        assert_eq!(guest.fake.bytes, before);
    }
}

#[test]
fn extended_space_out_of_reach_is_no_reason_to_fail() {
    let mut fake = FakeFunction::express();
    fake.extended_fails = true;
    let mut guest = Guest::of(fake);
    assert_eq!(guest.read(0x100, 4), Err(OpStatus::OpFailed));
    assert_eq!(guest.read(0x00, 4), Ok(0x10fb_8086));
    // Nothing is listed there.
    assert_eq!(guest.write(0x104, 4, 0xffff_ffff, PLAIN), 0xffff_ffff);
}

#[test]
fn register_that_does_not_fit_has_no_row() {
    // AER status at 104 ends behind the space.
    for config_size in [0x104, 0x105, 0x106, 0x107] {
        let mut fake = FakeFunction::model();
        fake.resize(config_size);
        fake.poke(0x100, 4, 0x0001_0001);
        let mut guest = Guest::of(fake);
        assert_eq!(guest.read(0x104, 4), Err(OpStatus::InvalidOffset));
        if config_size > 0x104 {
            assert_eq!(guest.write(0x104, 1, 0xff, PLAIN), 0xff);
        }
    }
}

// ---- Quirks

#[test]
fn check_16_quirk_opens_exactly_the_bits_of_its_mask() {
    let mut guest = express();
    guest.fake.poke(0xe8, 4, 0x1234_5678);
    assert_eq!(guest.write(0xe8, 4, 0, PLAIN), 0xffff_ffff);
    guest
        .space
        .add_quirk(quirk(0xe8, AccessWidth::Word, 0x0ff0))
        .unwrap();
    assert_eq!(guest.write(0xe8, 4, 0xffff_ffff, PLAIN), 0xffff_f00f);
    assert_eq!(real(&guest, 0xe8, 4), 0x1234_5ff8);
    // The device sees no more bytes than needed.
    let narrow = Call::Write {
        offset: 0xe8,
        bytes: 2,
        value: 0x5ff8,
    };
    assert_eq!(guest.calls(), [narrow]);
    assert_eq!(guest.write(0xe9, 1, 0x00, PLAIN), 0xf0);
    assert_eq!(real(&guest, 0xe8, 4), 0x1234_50f8);
}

#[test]
fn quirk_of_a_whole_register_is_written_without_reading_it() {
    let mut guest = express();
    guest
        .space
        .add_quirk(quirk(0xe8, AccessWidth::Dword, u32::MAX))
        .unwrap();
    guest.fake.reads_fail = true;
    assert_eq!(guest.write(0xe8, 4, 5, PLAIN), 0);
    assert_eq!(guest.write(0xea, 2, 6, PLAIN), 0);
    assert_eq!(real(&guest, 0xe8, 4), 0x0006_0005);
}

#[test]
fn quirk_opens_a_read_only_register_of_a_capability() {
    let mut guest = express();
    // ASPM in Link Control.
    guest
        .space
        .add_quirk(quirk(0x90, AccessWidth::Word, 0x0003))
        .unwrap();
    assert_eq!(guest.write(0x90, 2, 0x0043, PLAIN), 0);
    assert_eq!(guest.read(0x90, 2), Ok(0x0043));
    assert_eq!(guest.write(0x90, 2, 0x0103, PLAIN), 0x0140);
    assert_eq!(guest.read(0x90, 2), Ok(0x0043));
}

#[test]
fn quirk_opens_bits_beside_a_reset_bit() {
    let mut guest = express();
    for (offset, width, mask) in [
        (0xc4, AccessWidth::Byte, 0x42),
        (0x88, AccessWidth::Word, 0x0004),
    ] {
        guest.space.add_quirk(quirk(offset, width, mask)).unwrap();
    }
    assert_eq!(guest.write(FEATURE_CONTROL, 1, 0xfe, PLAIN), 0xbc);
    assert_eq!(real(&guest, FEATURE_CONTROL, 1), 0x42);
    assert_eq!(guest.write(DEVICE_CONTROL, 2, 0x2834, PLAIN), 0);
    assert_eq!(real(&guest, DEVICE_CONTROL, 2), 0x2834);
    guest.calls();
    // A reset is nothing else beside.
    guest.write(FEATURE_CONTROL, 1, 0x01, PLAIN);
    assert_eq!(guest.calls(), [Call::Reset]);
}

#[test]
fn quirk_need_not_be_aligned() {
    let mut guest = express();
    guest
        .space
        .add_quirk(quirk(0xeb, AccessWidth::Word, 0xa55a))
        .unwrap();
    assert_eq!(guest.write(0xe8, 4, 0xffff_ffff, PLAIN), 0xa5ff_ffff);
    assert_eq!(guest.write(0xec, 4, 0xffff_ffff, PLAIN), 0xffff_ff5a);
    assert_eq!(real(&guest, 0xe8, 4), 0x5a00_0000);
    assert_eq!(real(&guest, 0xec, 4), 0x0000_00a5);
}

#[test]
fn registers_that_the_host_works_with_take_no_quirk() {
    let mut guest = express();
    for (offset, width, mask) in [
        (0x00, AccessWidth::Word, 0xffff),
        (0x04, AccessWidth::Word, 0x0002),
        (0x10, AccessWidth::Dword, 0x8000_0000),
        (0x0f, AccessWidth::Word, 0xff00),
        (0x30, AccessWidth::Byte, 0x01),
        (0x3c, AccessWidth::Byte, 0xff),
        (0x40, AccessWidth::Byte, 0x01),
        (0x44, AccessWidth::Word, 0x0003),
        (0x52, AccessWidth::Word, 0x0001),
        (0x72, AccessWidth::Word, 0x8000),
        (0xe4, AccessWidth::Dword, 0xffff_ffff),
        (0x88, AccessWidth::Word, 0x8000),
        (0xc4, AccessWidth::Byte, 0x01),
    ] {
        let refusal = guest
            .space
            .add_quirk(quirk(offset, width, mask))
            .unwrap_err();
        assert!(
            matches!(refusal, QuirkRefusal::Bound { why, .. } if !why.is_empty()),
            "{offset:x}"
        );
    }
    let refusal = guest
        .space
        .add_quirk(quirk(0x0f, AccessWidth::Word, 0xff00))
        .unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the register at 10 stays closed: the address belongs to the host"
    );
    // Bits beside them are free.
    assert_eq!(
        guest
            .space
            .add_quirk(quirk(0x0c, AccessWidth::Dword, 0x0080_0000)),
        Ok(())
    );
    assert_eq!(guest.space.quirks().count(), 1);
}

#[test]
fn check_17_quirk_outside_of_configuration_space_is_refused() {
    let mut guest = Guest::new();
    let refusal = guest
        .space
        .add_quirk(quirk(0x100, AccessWidth::Byte, 1))
        .unwrap_err();
    assert_eq!(refusal.to_string(), "configuration space ends at 100");
    let refusal = guest
        .space
        .add_quirk(quirk(0xfe, AccessWidth::Dword, 0xff))
        .unwrap_err();
    assert_eq!(refusal, QuirkRefusal::Outside { config_size: 0x100 });
    assert_eq!(
        guest.space.add_quirk(quirk(0xfc, AccessWidth::Dword, 0xff)),
        Ok(())
    );
}

#[test]
fn quirks_are_bounded_and_the_same_register_is_replaced() {
    let mut guest = express();
    for index in 0..MAX_QUIRKS as u16 {
        let added = quirk(0x800 + 4 * index, AccessWidth::Dword, 1);
        assert_eq!(guest.space.add_quirk(added), Ok(()));
    }
    let refusal = guest
        .space
        .add_quirk(quirk(0x900, AccessWidth::Dword, 1))
        .unwrap_err();
    assert_eq!(refusal.to_string(), "there are 16 quirks already");
    let wider = quirk(0x804, AccessWidth::Dword, 0xff);
    assert_eq!(guest.space.add_quirk(wider), Ok(()));
    assert_eq!(guest.space.quirks().nth(1), Some(wider));
    assert_eq!(guest.space.quirks().count(), MAX_QUIRKS);
    // The policy of the next assignment is the caller's.
    guest.space.reset_for_assignment();
    assert_eq!(guest.space.quirks().count(), MAX_QUIRKS);
    guest.space.clear_quirks();
    assert_eq!(guest.space.quirks().count(), 0);
    assert_eq!(guest.write(0x804, 4, 1, PLAIN), 0xffff_ffff);
}

#[test]
fn check_16_fields_are_listed_with_offset_size_and_mask() {
    let mut guest = Guest::new();
    guest
        .space
        .add_quirk(quirk(0x64, AccessWidth::Word, 0x00ff))
        .unwrap();
    let lines: Vec<String> = guest
        .space
        .fields()
        .map(|field| field.to_string())
        .collect();
    #[rustfmt::skip]
    assert_eq!(lines, [
        "00000000:2:00000000", "00000002:2:00000000", "00000004:2:00000000", "00000006:2:00000000",
        "0000000c:1:00000000", "0000000d:1:00000000", "0000000f:1:00000000",
        "00000010:4:00000000", "00000014:4:00000000", "00000018:4:00000000",
        "0000001c:4:00000000", "00000020:4:00000000", "00000024:4:00000000",
        "00000030:4:00000000", "0000003c:1:00000000", "0000003d:1:00000000",
        "00000040:2:00000000", "00000042:2:00000000", "00000044:2:00000000",
        "00000046:1:00000000", "00000047:1:00000000",
        "00000050:2:00000000", "00000052:2:00000000",
        "00000070:2:00000000", "00000072:2:00000000",
        "000000e0:2:00000000", "000000e2:2:00000000", "000000e4:4:00000000",
        "00000064:2:000000ff",
    ]);
}

#[test]
fn check_10_quirk_texts_are_read_as_the_kernel_scanner_reads_them() {
    for (text, meaning) in [
        ("00:19.0-E0:2:FF", "00:19.0-e0:2:ff"),
        ("0000:00:19.0-e0:2:ff\n", "00:19.0-e0:2:ff"),
        ("00:19.0-e0:4:ffffffff", "00:19.0-e0:4:ffffffff"),
        (" 0x1:0x2:0x3.0x4-0x5:0x1:0x6 ", "0001:02:03.4-5:1:6"),
        ("1f: 1f. 7- fff: 1: 80", "1f:1f.7-fff:1:80"),
    ] {
        assert_eq!(parse_quirk(text.as_bytes()).unwrap().to_string(), meaning);
    }
    for (text, message) in [
        ("00:19.0-e0:2", "expected ':' at byte 12"),
        ("00:19.*-e0:2:ff", "expected a hex number at byte 6"),
        ("00:19.0", "expected '-' at byte 7"),
        ("00:19.0-:2:ff", "expected a hex number at byte 8"),
        (
            "00:19.0-e0:2:ffx",
            "expected the end of the text at byte 15",
        ),
        ("", "expected a hex number at byte 0"),
        ("00:19.0 -e0:2:ff", "expected '-' at byte 7"),
        ("00:20.0-e0:2:ff", "expected device 0 to 1f at byte 3"),
        ("100:19.0-e0:2:ff", "expected bus 0 to ff at byte 0"),
    ] {
        assert_eq!(
            parse_quirk(text.as_bytes()).unwrap_err().to_string(),
            message,
            "{text}"
        );
    }
}

#[test]
fn check_17_quirk_numbers_out_of_range_are_named() {
    for (text, message) in [
        ("00:19.0-1000:1:ff", "expected register 0 to fff at byte 8"),
        (
            "00:19.0-100000000:1:ff",
            "expected register 0 to fff at byte 8",
        ),
        ("00:19.0-e0:3:ff", "expected size 1, 2 or 4 at byte 11"),
        ("00:19.0-e0:0:ff", "expected size 1, 2 or 4 at byte 11"),
        (
            "00:19.0-e0:100000001:ff",
            "expected size 1, 2 or 4 at byte 11",
        ),
        ("00:19.0-e0:1:1ff", "expected mask 1 to ff at byte 13"),
        ("00:19.0-e0:2:0", "expected mask 1 to ffff at byte 13"),
        (
            "00:19.0-e0:4:100000000",
            "expected mask 1 to ffffffff at byte 13",
        ),
        (
            "00:19.0-ffe:4:1",
            "expected a register that ends at fff or before, at byte 12",
        ),
    ] {
        let error = parse_quirk(text.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), message, "{text}");
        assert!(!error.is_absent_function());
    }
    let error: QuirkError = parse_quirk(b"00:19.8-e0:2:ff").unwrap_err();
    assert!(error.is_absent_function());
}

proptest! {
    #[test]
    fn quirk_parser_never_breaks(text in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = parse_quirk(&text);
    }

    #[test]
    fn quirk_that_is_read_is_written_the_same(
        text in "[0-9a-f]{1,4}:[0-9a-f]{1,2}:[0-1]?[0-9a-f]\\.[0-7]-[0-9a-f]{1,3}:[124]:[0-9a-f]{1,8}",
    ) {
        if let Ok(line) = parse_quirk(text.as_bytes()) {
            prop_assert_eq!(parse_quirk(line.to_string().as_bytes()), Ok(line));
        }
    }
}

// ---- Dropped writes

#[test]
fn check_66_dropped_writes_are_counted_and_come_with_the_line_that_opens_them() {
    let mut guest = express();
    let mut denied = DeniedWrites::new();
    let mut note = |guest: &mut Guest, offset, size, value| {
        let access = guest.fake.access(offset, size).unwrap();
        let dropped = guest.write(offset, size, value, PLAIN);
        denied.note(access, dropped)
    };
    assert_eq!(note(&mut guest, 0x90, 2, 0x0043), Some(Noted::First));
    assert_eq!(note(&mut guest, 0x90, 2, 0x0043), Some(Noted::Again));
    assert_eq!(note(&mut guest, 0xf8, 4, 1), Some(Noted::First));
    // What is done or changes nothing is not counted.
    assert_eq!(note(&mut guest, 0x90, 2, 0x0040), None);
    assert_eq!(note(&mut guest, DEVICE_CONTROL, 2, 0x2820), None);
    assert_eq!(note(&mut guest, 0x04, 2, 0x0147), None);
    assert_eq!(note(&mut guest, DEVICE_STATUS, 2, 0xffff), None);

    let address = Sbdf::new(0, 3, 0, 0).unwrap();
    let lines: Vec<_> = denied
        .iter()
        .map(|entry| (entry.count(), entry.quirk_line(address).unwrap()))
        .collect();
    let text: Vec<_> = lines.iter().map(|(_, line)| line.to_string()).collect();
    assert_eq!(text, ["03:00.0-90:2:ffff", "03:00.0-f8:4:ffffffff"]);
    assert_eq!(lines[0].0, 2);
    // And it does open them.
    for (_, line) in lines {
        guest.space.add_quirk(line.quirk).unwrap();
    }
    assert_eq!(guest.write(0x90, 2, 0x0043, PLAIN), 0);
    assert_eq!(guest.write(0xf8, 4, 1, PLAIN), 0);
}

proptest! {
    /// A quirk made from any dropped write is taken, and lets the same write through.
    #[test]
    fn quirk_line_of_any_dropped_write_lets_it_through(
        offset in 0..0x460i32,
        size in prop::sample::select(vec![1, 2, 4]),
        value in any::<u32>(),
    ) {
        let mut guest = express();
        let offset = offset & !(size - 1);
        let access = guest.fake.access(offset, size).unwrap();
        let dropped = guest.try_write(offset, size, value, PLAIN).map_or(0, |o| o.dropped);
        let mut denied = DeniedWrites::new();
        denied.note(access, dropped);
        let entry = denied.iter().next().copied();
        if let Some(entry) = entry {
            let address = Sbdf::new(0, 3, 0, 0).unwrap();
            let line = entry.quirk_line(address).unwrap();
            prop_assert_eq!(guest.space.add_quirk(line.quirk), Ok(()));
            prop_assert_eq!(guest.write(offset, size, value, PLAIN), 0);
        } else {
            prop_assert_eq!(dropped, 0);
        }
    }
}
