// SPDX-License-Identifier: GPL-2.0

//! The virtual configuration space, one test per rule (behaviour, section 6; its vectors are in
//! 6.8).

mod common;

use common::{io, memory, Call, FakeFunction, Guest, INTERRUPTS, PERMISSIVE, PLAIN};
use pciif::access::AccessWidth;
use pciif::config::{BarInfo, VirtualConfigSpace};
use pciif::op::OpStatus;

const NO_BARS: [BarInfo; 0] = [];
const NO_ROM: BarInfo = BarInfo {
    start: 0,
    len: 0,
    flags: pciif::config::BarFlags {
        io: false,
        mem64: false,
        prefetch: false,
        enabled: false,
    },
};

// ---- Ids, interrupt, read-only registers

#[test]
fn check_57_ids_come_from_the_kernel_and_ignore_writes() {
    let mut fake = FakeFunction::model();
    // As a virtual function reads.
    fake.poke(0, 4, 0xffff_ffff);
    let mut guest = Guest::of(fake);
    assert_eq!(guest.read(0x00, 4), Ok(0x10fb_8086));
    assert_eq!(guest.read(0x00, 2), Ok(0x8086));
    assert_eq!(guest.read(0x02, 2), Ok(0x10fb));
    assert_eq!(guest.read(0x01, 1), Ok(0x80));
    assert_eq!(guest.read(0x01, 2), Err(OpStatus::InvalidOffset));
    assert_eq!(guest.read(0x00, 3), Err(OpStatus::InvalidOffset));
    assert_eq!(guest.write(0x00, 4, 0, PERMISSIVE), 0);
    assert_eq!(guest.read(0x00, 4), Ok(0x10fb_8086));
    assert_eq!(guest.calls(), []);
}

#[test]
fn registers_that_are_all_virtual_do_not_touch_the_device() {
    let mut guest = Guest::new();
    for (offset, size) in [
        (0x00, 4),
        (0x02, 2),
        (0x10, 4),
        (0x25, 1),
        (0x30, 4),
        (0x3c, 1),
    ] {
        assert!(guest.read(offset, size).is_ok());
    }
    assert_eq!(guest.fake.reads, 0);
    assert!(guest.read(0x3c, 4).is_ok());
    assert_eq!(guest.fake.reads, 1);
}

#[test]
fn check_58_interrupt_line_is_the_number_to_bind_and_cannot_be_written() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(0x3c, 1), Ok(0x11));
    assert_eq!(guest.read(0x3c, 4), Ok(0x0000_0111));
    assert_eq!(guest.write(0x3c, 1, 5, PERMISSIVE), 0);
    assert_eq!(guest.read(0x3c, 1), Ok(0x11));
    assert_eq!(guest.calls(), []);
}

#[test]
fn check_58_cache_line_and_bist_start_are_written_latency_is_not() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(0x0c, 4), Ok(0x0080_0010));
    // The header type between them has no row.
    assert_eq!(guest.write(0x0c, 4, 0x40ff_4020, PLAIN), 0x00ff_0000);
    assert_eq!(guest.read(0x0c, 4), Ok(0x4080_0020));
    guest.write(0x0f, 1, 0x41, PLAIN);
    assert_eq!(guest.read(0x0f, 1), Ok(0x40));
    // A device that can test itself (bit 7) is started with or without the bits that it reads.
    guest.fake.poke(0x0f, 1, 0x80);
    guest.write(0x0f, 1, 0x40, PLAIN);
    assert_eq!(guest.fake.peek(0x0f, 1), 0x40);
}

#[test]
fn check_62_write_to_a_listed_read_only_register_does_not_touch_the_device() {
    let mut guest = Guest::new();
    for (offset, size) in [
        (0x00, 4),
        (0x0d, 1),
        (0x3c, 2),
        (0x42, 2),
        (0x46, 1),
        (0xe4, 2),
    ] {
        assert_eq!(guest.write(offset, size, 0, PERMISSIVE), 0);
    }
    assert_eq!(guest.calls(), []);
    assert_eq!(guest.fake.reads, 0);
}

#[test]
fn check_66_unlisted_register_is_readable_and_its_write_dropped_unless_permissive() {
    let mut guest = Guest::new();
    for (offset, size) in [(0x06, 2), (0x08, 4), (0x34, 1), (0x54, 4), (0xfc, 4)] {
        let real = guest.fake.peek(offset as usize, size as usize);
        assert_eq!(guest.read(offset, size), Ok(real));
    }
    assert_eq!(guest.write(0x54, 4, 0x1234_5678, PLAIN), 0xffff_ffff);
    assert_eq!(guest.write(0x57, 1, 0xffff_ff12, PLAIN), 0xff);
    assert_eq!(guest.read(0x54, 4), Ok(0xfee0_0000));
    assert_eq!(guest.calls(), []);

    let outcome = guest.try_write(0x54, 4, 0x1234_5678, PERMISSIVE).unwrap();
    assert!(outcome.is_complete());
    assert_eq!(guest.read(0x54, 4), Ok(0x1234_5678));
    assert_eq!(guest.write(0x57, 1, 0xffff_ffab, PERMISSIVE), 0);
    assert_eq!(guest.read(0x54, 4), Ok(0xab34_5678));
}

#[test]
fn check_62_bytes_beside_a_row_are_dropped_even_when_permissive() {
    let mut guest = Guest::new();
    // The header type has no row; cache line, latency and BIST have.
    assert_eq!(guest.write(0x0c, 4, 0x4055_0040, PERMISSIVE), 0x00ff_0000);
    assert_eq!(guest.fake.peek(0x0c, 4), 0x4080_0040);
    // A read-only register beside COMMAND: only its error bits can be cleared, and none is set.
    assert_eq!(guest.write(0x04, 4, 0xffff_0006, PERMISSIVE), 0);
    assert_eq!(guest.fake.peek(0x06, 2), 0x0010);
}

#[test]
fn check_69_extended_space_is_readable_and_write_protected() {
    let mut fake = FakeFunction::model();
    fake.resize(4096);
    fake.bytes[0x100..].fill(0x5a);
    let mut guest = Guest::of(fake);
    assert_eq!(guest.read(0x100, 4), Ok(0x5a5a_5a5a));
    assert_eq!(guest.read(0xfff, 1), Ok(0x5a));
    assert_eq!(guest.read(0x1000, 1), Err(OpStatus::InvalidOffset));
    assert_eq!(guest.write(0x100, 2, 0, PLAIN), 0xffff);
    assert_eq!(guest.read(0x100, 4), Ok(0x5a5a_5a5a));
    assert_eq!(guest.write(0x100, 2, 0, PERMISSIVE), 0);
    assert_eq!(guest.read(0x100, 4), Ok(0x5a5a_0000));
}

#[test]
fn failing_read_of_the_device_is_the_answer() {
    let mut guest = Guest::new();
    guest.fake.reads_fail = true;
    assert_eq!(guest.read(0x54, 4), Err(OpStatus::OpFailed));
    assert_eq!(guest.read(0x10, 4), Ok(0xf7d0_0004));
}

// ---- COMMAND

#[test]
fn check_58_command_enables_and_masters_through_the_kernel() {
    let mut guest = Guest::new();
    guest.write(0x04, 2, 0x0007, PLAIN);
    assert_eq!(guest.calls(), [Call::Enable, Call::BusMaster(true)]);
    assert_eq!(guest.read(0x04, 2), Ok(0x0007));
    assert_eq!(guest.fake.peek(4, 2), 0x0107);

    guest.write(0x04, 2, 0x0147, PLAIN);
    assert_eq!(guest.read(0x04, 2), Ok(0x0147));
    assert_eq!(guest.fake.peek(4, 2), 0x0107);

    guest.write(0x04, 2, 0x0000, PLAIN);
    assert_eq!(guest.calls(), [Call::BusMaster(false)]);
    assert_eq!(guest.read(0x04, 2), Ok(0x0000));
    assert_eq!(guest.fake.peek(4, 2), 0x0103);

    guest.write(0x05, 1, 0x04, PLAIN);
    assert_eq!(guest.read(0x04, 2), Ok(0x0400));
    assert_eq!(guest.calls(), []);

    assert_eq!(guest.write(0x04, 4, 0xffff_0006, PLAIN), 0);
    assert_eq!(guest.read(0x04, 4), Ok(0x0010_0006));
}

#[test]
fn enabling_costs_the_host_once_in_an_assignment() {
    let mut guest = Guest::new();
    for _ in 0..500 {
        guest.write(0x04, 2, 0x0003, PLAIN);
        assert!(guest.space.is_enabled_by_guest());
        guest.write(0x04, 2, 0x0000, PLAIN);
        assert!(!guest.space.is_enabled_by_guest());
    }
    assert_eq!(guest.fake.enables, 1);
    assert_eq!(guest.calls(), [Call::Enable]);
    guest.fake.enabled = false;
    guest.space.reset_for_assignment();
    guest.write(0x04, 2, 0x0003, PLAIN);
    assert_eq!(guest.fake.enables, 2);
}

#[test]
fn enabling_that_fails_is_tried_a_few_times_in_an_assignment() {
    let mut guest = Guest::new();
    guest.fake.enable_fails = true;
    for _ in 0..500 {
        assert_eq!(
            guest.try_write(0x04, 2, 0x0003, PLAIN),
            Err(OpStatus::OpFailed)
        );
    }
    assert_eq!(guest.fake.enables, 4);
    // Nor does what could work by now, until the next assignment.
    guest.fake.enable_fails = false;
    assert!(guest.try_write(0x04, 2, 0x0003, PLAIN).is_err());
    guest.space.reset_for_assignment();
    guest.write(0x04, 2, 0x0003, PLAIN);
}

#[test]
fn check_59_decode_of_the_device_is_never_cleared() {
    let mut guest = Guest::new();
    guest.write(0x04, 2, 0x0006, PERMISSIVE);
    guest.write(0x04, 2, 0x0000, PERMISSIVE);
    assert_eq!(guest.fake.peek(4, 2), 0x0103);
    guest.write(0x04, 2, 0x03ff, PERMISSIVE);
    assert_eq!(guest.fake.peek(4, 2), 0x03bf);
    assert_eq!(guest.read(0x04, 2), Ok(0x03ff));
}

#[test]
fn check_59_plain_guest_controls_only_master_and_mwi_in_the_device() {
    let mut guest = Guest::new();
    guest.write(0x04, 2, 0xffff, PLAIN);
    assert_eq!(guest.fake.peek(4, 2), 0x0117);
    let calls = guest.calls();
    assert_eq!(
        calls,
        [Call::Enable, Call::BusMaster(true), Call::Mwi(true)]
    );
    // What is not in the device reads from the shadow, what is there from the device.
    assert_eq!(guest.read(0x04, 2), Ok(0xfd57));
    guest.write(0x04, 2, 0xffef, PLAIN);
    assert_eq!(guest.calls(), [Call::Mwi(false)]);
}

#[test]
fn check_60_interrupt_pin_follows_the_guest_only_when_allowed() {
    let mut guest = Guest::new();
    guest.write(0x04, 2, 0x0406, PLAIN);
    assert_eq!(guest.fake.peek(4, 2), 0x0107);
    guest.write(0x04, 2, 0x0006, PLAIN);
    guest.calls();

    guest.write(0x04, 2, 0x0406, INTERRUPTS);
    assert_eq!(guest.calls(), [Call::Intx(false)]);
    assert_eq!(guest.fake.peek(4, 2), 0x0507);
    guest.write(0x04, 2, 0x0006, INTERRUPTS);
    assert_eq!(guest.calls(), [Call::Intx(true)]);
    assert_eq!(guest.fake.peek(4, 2), 0x0107);
}

/// The kernel is only called when the bit changes: it writes COMMAND each time.
#[test]
fn interrupt_pin_is_switched_when_its_bit_changes_and_only_then() {
    let mut guest = Guest::new();
    guest.write(0x04, 2, 0x0006, INTERRUPTS);
    guest.calls();
    // Another bit changes, or none does.
    for command in [0x0002, 0x0006, 0x0006] {
        guest.write(0x04, 2, command, INTERRUPTS);
        assert!(!guest
            .calls()
            .iter()
            .any(|call| matches!(call, Call::Intx(_))));
    }
    // Together with another bit.
    guest.write(0x04, 2, 0x0402, INTERRUPTS);
    assert!(guest.calls().contains(&Call::Intx(false)));
    for (command, calls) in [
        (0x0402, &[][..]),
        (0x0002, &[Call::Intx(true)]),
        (0x0402, &[Call::Intx(false)]),
    ] {
        guest.write(0x04, 2, command, INTERRUPTS);
        assert_eq!(guest.calls(), calls);
    }
    // Without the administrator's leave it is a bit of the guest's copy.
    for command in [0x0002, 0x0402, 0x0402] {
        guest.write(0x04, 2, command, PLAIN);
        assert_eq!(guest.calls(), []);
    }
}

#[test]
fn failing_enable_changes_nothing_and_is_reported() {
    let mut guest = Guest::new();
    guest.fake.enable_fails = true;
    let before = guest.read(0x04, 2);
    assert_eq!(
        guest.try_write(0x04, 2, 0x0446, INTERRUPTS),
        Err(OpStatus::OpFailed)
    );
    assert_eq!(guest.calls(), []);
    assert_eq!(guest.read(0x04, 2), before);
}

#[test]
fn failing_mwi_reads_back_as_off_and_does_not_fail_the_write() {
    let mut guest = Guest::new();
    guest.fake.mwi_fails = true;
    guest.write(0x04, 2, 0x0016, PLAIN);
    assert_eq!(guest.read(0x04, 2), Ok(0x0006));
    // Not in the shadow either: the next write tries again.
    guest.fake.mwi_fails = false;
    guest.calls();
    guest.write(0x04, 2, 0x0016, PLAIN);
    assert_eq!(guest.calls(), [Call::Mwi(true)]);
}

#[test]
fn check_68_next_guest_starts_with_a_fresh_command_and_no_sizing() {
    let mut guest = Guest::new();
    // Memory and I/O are clear, so that every guest enables the function by itself.
    assert_eq!(guest.read(0x04, 2), Ok(0x0100));
    guest.write(0x04, 2, 0xfd43, PLAIN);
    guest.write(0x10, 4, 0xffff_ffff, PLAIN);
    guest.write(0x30, 4, 0xffff_ffff, PLAIN);
    guest.space.reset_for_assignment();
    assert_eq!(guest.read(0x04, 2), Ok(0x0100));
    assert_eq!(guest.read(0x10, 4), Ok(0xf7d0_0004));
    assert_eq!(guest.read(0x30, 4), Ok(0xf7c0_0000));
}

// ---- BARs and ROM

#[test]
fn check_61_bar_tells_its_size_when_asked_and_its_address_otherwise() {
    let mut guest = Guest::new();
    guest.write(0x10, 4, 0xffff_ffff, PLAIN);
    assert_eq!(guest.read(0x10, 4), Ok(0xffff_c004));
    // Each BAR has its own state.
    assert_eq!(guest.read(0x14, 4), Ok(0));
    guest.write(0x14, 4, 0xffff_ffff, PLAIN);
    assert_eq!(guest.read(0x14, 4), Ok(0xffff_ffff));
    guest.write(0x10, 4, 0xf7d0_0004, PLAIN);
    assert_eq!(guest.read(0x10, 4), Ok(0xf7d0_0004));
    guest.write(0x10, 4, 0xdead_0000, PERMISSIVE);
    assert_eq!(guest.read(0x10, 4), Ok(0xf7d0_0004));
    guest.write(0x10, 1, 0xff, PLAIN);
    assert_eq!(guest.read(0x10, 4), Ok(0xf7d0_0004));
    assert_eq!(guest.read(0x12, 2), Ok(0xf7d0));
    assert_eq!(guest.calls(), []);
}

#[test]
fn check_61_low_bits_do_not_matter_when_the_size_is_asked() {
    let mut guest = Guest::new();
    guest.write(0x18, 4, 0xffff_fffc, PLAIN);
    assert_eq!(guest.read(0x18, 4), Ok(0xffff_ffe1));
    guest.write(0x18, 4, 0xffff_fff0, PLAIN);
    assert_eq!(guest.read(0x18, 4), Ok(0x0000_e001));
    guest.write(0x10, 4, 0xffff_fff0, PLAIN);
    assert_eq!(guest.read(0x10, 4), Ok(0xffff_c004));
    // The upper half has no low bits.
    guest.write(0x14, 4, 0xffff_fffe, PLAIN);
    assert_eq!(guest.read(0x14, 4), Ok(0));
}

#[test]
fn check_61_absent_bar_reads_zero_and_is_never_written() {
    let mut fake = FakeFunction::model();
    fake.poke(0x1c, 4, 0xc000_0000);
    let mut guest = Guest::of(fake);
    for value in [0xffff_ffff, 0xc000_0000, 0] {
        guest.write(0x1c, 4, value, PERMISSIVE);
        assert_eq!(guest.read(0x1c, 4), Ok(0));
    }
    assert_eq!(guest.calls(), []);
}

#[test]
fn check_61_lost_address_is_restored_only_by_writing_exactly_it() {
    let mut guest = Guest::new();
    guest.fake.poke(0x10, 4, 0x0000_0004);
    for value in [0x0000_0004, 0xf7d0_0000, 0xf7d0_4004, 0xffff_ffff] {
        guest.write(0x10, 4, value, PERMISSIVE);
        assert_eq!(guest.calls(), []);
    }
    guest.write(0x10, 4, 0xf7d0_0004, PLAIN);
    let restored = Call::Write {
        offset: 0x10,
        bytes: 4,
        value: 0xf7d0_0004,
    };
    assert_eq!(guest.calls(), [restored]);
    guest.write(0x10, 4, 0xf7d0_0004, PLAIN);
    assert_eq!(guest.calls(), []);
}

#[test]
fn check_61_rom_tells_its_size_and_cannot_be_enabled() {
    let mut guest = Guest::new();
    guest.write(0x30, 4, 0xffff_f800, PLAIN);
    assert_eq!(guest.read(0x30, 4), Ok(0xffff_8000));
    guest.write(0x30, 4, 0xf7c0_0001, PLAIN);
    assert_eq!(guest.read(0x30, 4), Ok(0xf7c0_0000));
    assert_eq!(guest.calls(), []);
    guest.fake.poke(0x30, 4, 0);
    guest.write(0x30, 4, 0xf7c0_0000, PLAIN);
    assert_eq!(guest.fake.peek(0x30, 4), 0xf7c0_0000);
}

#[test]
fn check_61_large_prefetchable_bar_has_its_size_in_both_halves() {
    let mut fake = FakeFunction::model();
    let bars = [
        memory(0x38_4000_0000, 0x4_0000_0000, true, true),
        NO_ROM,
        memory(0xe000_0000, 0x1000, false, false),
    ];
    let space = VirtualConfigSpace::new(0, &bars, NO_ROM, &mut fake).unwrap();
    let mut guest = Guest { space, fake };
    assert_eq!(guest.read(0x10, 4), Ok(0x4000_000c));
    assert_eq!(guest.read(0x14, 4), Ok(0x38));
    for offset in [0x10, 0x14, 0x18, 0x1c] {
        guest.write(offset, 4, 0xffff_ffff, PLAIN);
    }
    assert_eq!(guest.read(0x10, 4), Ok(0x0000_000c));
    assert_eq!(guest.read(0x14, 4), Ok(0xffff_fffc));
    assert_eq!(guest.read(0x18, 4), Ok(0xffff_f000));
    assert_eq!(guest.read(0x1c, 4), Ok(0));
}

#[test]
fn check_61_disabled_or_empty_resource_reads_as_absent() {
    let mut disabled = memory(0x38_4000_0000, 0x4_0000_0000, true, false);
    disabled.flags.enabled = false;
    let bars = [disabled, NO_ROM, io(0xe000, 0)];
    let mut fake = FakeFunction::model();
    let space = VirtualConfigSpace::new(0, &bars, NO_ROM, &mut fake).unwrap();
    let mut guest = Guest { space, fake };
    for offset in [0x10, 0x14, 0x18, 0x30] {
        assert_eq!(guest.read(offset, 4), Ok(0));
        guest.write(offset, 4, 0xffff_ffff, PLAIN);
        assert_eq!(guest.read(offset, 4), Ok(0));
    }
}

#[test]
fn check_61_bridge_has_two_bars_its_rom_elsewhere_and_raw_windows() {
    let mut fake = FakeFunction::model();
    fake.poke(0x18, 4, 0x0003_0201);
    let bars = [memory(0xf000_0000, 0x1000, false, false); 6];
    let rom = memory(0xf7c0_0000, 0x8000, false, false);
    let space = VirtualConfigSpace::new(0x81, &bars, rom, &mut fake).unwrap();
    let mut guest = Guest { space, fake };
    assert_eq!(guest.read(0x10, 4), Ok(0xf000_0000));
    assert_eq!(guest.read(0x14, 4), Ok(0xf000_0000));
    assert_eq!(guest.read(0x18, 4), Ok(0x0003_0201));
    assert_eq!(guest.write(0x18, 4, 0, PLAIN), 0xffff_ffff);
    assert_eq!(guest.read(0x38, 4), Ok(0xf7c0_0000));
    guest.write(0x38, 4, 0xffff_f800, PLAIN);
    assert_eq!(guest.read(0x38, 4), Ok(0xffff_8000));
}

#[test]
fn other_header_types_and_tiny_spaces_are_refused() {
    for header_type in [2, 3, 0x7f, 0x82] {
        let mut fake = FakeFunction::model();
        let space = VirtualConfigSpace::new(header_type, &NO_BARS, NO_ROM, &mut fake);
        assert_eq!(space.err(), Some(OpStatus::NotImplemented));
    }
    let mut fake = FakeFunction::blank(0x3c);
    let space = VirtualConfigSpace::new(0, &NO_BARS, NO_ROM, &mut fake);
    assert_eq!(space.err(), Some(OpStatus::OpFailed));
}

// ---- Capabilities

#[test]
fn capability_heads_cannot_be_changed_even_when_permissive() {
    let mut guest = Guest::new();
    for offset in [0x40, 0x50, 0x70, 0xe0] {
        let before = guest.read(offset, 2);
        assert_eq!(guest.write(offset, 2, 0xffff, PERMISSIVE), 0);
        assert_eq!(guest.read(offset, 2), before);
    }
    assert_eq!(guest.calls(), []);
}

#[test]
fn check_63_power_state_changes_through_the_kernel_and_wake_up_stays_hidden() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(0x42, 2), Ok(0x0003));
    assert_eq!(guest.read(0x40, 4), Ok(0x0003_5001));
    guest.write(0x44, 2, 0x8103, PLAIN);
    // The scale (2000) and the state are not written with it, PME (0100) not at all.
    let written = Call::Write {
        offset: 0x44,
        bytes: 2,
        value: 0xa008,
    };
    assert_eq!(guest.calls(), [written, Call::PowerState(3)]);
    assert_eq!(guest.fake.peek(0x44, 2) & 0x0100, 0);
    guest.write(0x44, 2, 0x0000, PLAIN);
    assert_eq!(guest.calls().last(), Some(&Call::PowerState(0)));
    // A state alone writes nothing but the state.
    guest.write(0x44, 2, 0x0001, PLAIN);
    assert_eq!(guest.calls(), [Call::PowerState(1)]);
    // Bridge extensions and data.
    assert_eq!(guest.write(0x46, 2, 0xffff, PERMISSIVE), 0);
    assert_eq!(guest.calls(), []);
}

#[test]
fn check_63_power_state_that_fails_is_denied() {
    let mut guest = Guest::new();
    guest.fake.power_fails = true;
    assert_eq!(
        guest.try_write(0x44, 2, 0x0003, PLAIN),
        Err(OpStatus::AccessDenied)
    );
    // Also when the access covers the registers behind it, whose writes are ignored.
    assert_eq!(
        guest.try_write(0x44, 4, 0x0003, PLAIN),
        Err(OpStatus::AccessDenied)
    );
}

#[test]
fn a_power_state_that_fails_costs_the_host_a_few_tries_in_an_assignment() {
    let mut guest = Guest::new();
    guest.fake.power_fails = true;
    for _ in 0..500 {
        assert_eq!(
            guest.try_write(0x44, 2, 0x0003, PLAIN),
            Err(OpStatus::AccessDenied)
        );
    }
    assert_eq!(guest.fake.power_changes, 4);
}

#[test]
fn a_function_that_is_gone_is_not_asked_for_a_power_state() {
    let mut guest = Guest::new();
    guest.fake.poke(0x44, 2, 0xffff);
    guest.calls();
    assert_eq!(
        guest.try_write(0x44, 2, 0x0003, PLAIN),
        Err(OpStatus::AccessDenied)
    );
    assert_eq!(guest.calls(), []);
    assert_eq!(guest.fake.power_changes, 0);
}

#[test]
fn check_63_wake_up_is_switched_off_when_the_function_is_seized() {
    let mut fake = FakeFunction::model();
    fake.poke(0x44, 2, 0x2108);
    fake.model_space();
    assert_eq!(fake.peek(0x44, 2), 0x2008);
}

#[test]
fn check_65_interrupt_control_of_a_plain_guest_is_denied() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.try_write(0x52, 2, 0x0181, PLAIN),
        Err(OpStatus::AccessDenied)
    );
    assert_eq!(
        guest.try_write(0x72, 2, 0x8009, PLAIN),
        Err(OpStatus::AccessDenied)
    );
    // What changes nothing is no harm.
    assert_eq!(guest.write(0x52, 2, 0x0180, PLAIN), 0);
    assert_eq!(guest.write(0x72, 2, 0x0009, PLAIN), 0);
    assert_eq!(guest.calls(), []);
}

#[test]
fn check_65_msi_and_msix_are_never_on_together() {
    let mut guest = Guest::new();
    let mut control = |offset, value| guest.try_write(offset, 2, value, INTERRUPTS).err();
    assert_eq!(control(0x52, 0x0181), None);
    assert_eq!(control(0x72, 0x8009), Some(OpStatus::AccessDenied));
    // Masking is not enabling.
    assert_eq!(control(0x72, 0x4009), None);
    assert_eq!(control(0x52, 0x0180), None);
    assert_eq!(control(0x72, 0xc009), None);
    assert_eq!(control(0x52, 0x0181), Some(OpStatus::AccessDenied));
    assert_eq!(control(0x72, 0x4009), None);
    // The size of the table is not the guest's.
    assert_eq!(control(0x72, 0x4008), Some(OpStatus::AccessDenied));
    assert_eq!(control(0x72, 0x6009), Some(OpStatus::AccessDenied));
    assert_eq!(control(0x52, 0x0190), Some(OpStatus::AccessDenied));
}

#[test]
fn check_65_msi_can_be_enabled_on_a_function_without_msix() {
    let mut fake = FakeFunction::model();
    fake.poke(0x50, 2, 0x0005);
    let mut guest = Guest::of(fake);
    // No longer in the list, so not looked at.
    guest.fake.poke(0x72, 2, 0x8009);
    assert_eq!(guest.write(0x52, 2, 0x0181, INTERRUPTS), 0);
}

#[test]
fn check_65_permissive_guest_writes_interrupt_control_unchecked() {
    let mut guest = Guest::new();
    guest.write(0x52, 2, 0x01ff, PERMISSIVE);
    guest.write(0x72, 2, 0xc00a, PERMISSIVE);
    assert_eq!(guest.read(0x52, 2), Ok(0x01ff));
    assert_eq!(guest.read(0x72, 2), Ok(0xc00a));
}

#[test]
fn check_64_vpd_can_be_read_not_written() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.try_write(0xe2, 2, 0x8010, PERMISSIVE),
        Err(OpStatus::AccessDenied)
    );
    assert_eq!(guest.calls(), []);
    assert_eq!(guest.write(0xe2, 2, 0x0010, PLAIN), 0);
    assert_eq!(guest.read(0xe2, 2), Ok(0x0010));
    assert_eq!(guest.write(0xe4, 4, 1, PERMISSIVE), 0);
    assert_eq!(guest.read(0xe4, 4), Ok(0));
}

#[test]
fn check_62_first_error_ends_an_access_and_the_rest_is_not_written() {
    let mut guest = Guest::new();
    // Id and next pointer are ignored, then the address is refused.
    assert_eq!(
        guest.try_write(0xe0, 4, 0x8010_0003, PLAIN),
        Err(OpStatus::AccessDenied)
    );
    assert_eq!(guest.calls(), []);
}

/// A function with these capabilities: offset, id and next pointer.
fn with_capabilities(first: u8, list: &[(usize, u32, u32)]) -> FakeFunction {
    let mut fake = FakeFunction::blank(256);
    fake.poke(0x06, 2, 0x0010);
    fake.poke(0x34, 1, u32::from(first));
    for &(offset, id, next) in list {
        fake.poke(offset, 2, id | (next << 8));
    }
    fake
}

/// The 4-byte units of capabilities that a permissive guest cannot write as a whole.
fn listed_offsets(mut fake: FakeFunction) -> Vec<u16> {
    let space = VirtualConfigSpace::new(0, &NO_BARS, NO_ROM, &mut fake).unwrap();
    let mut found = Vec::new();
    for offset in (0x40..fake.bytes.len()).step_by(4) {
        let access = fake.access(offset as i32, 4).unwrap();
        let (mut space, mut fake) = (space.clone(), fake.clone());
        let value = !fake.peek(offset, 4) & 0x7fff_ffff;
        let result = space.write(&mut fake, access, value, PERMISSIVE);
        if result.is_err() || fake.peek(offset, 4) != value {
            found.push(offset as u16);
        }
    }
    found
}

#[test]
fn capability_list_that_loops_ends() {
    let fake = with_capabilities(0x40, &[(0x40, 0x09, 0x50), (0x50, 0x05, 0x40)]);
    assert_eq!(listed_offsets(fake), [0x50]);
    let fake = with_capabilities(0x40, &[(0x40, 0x05, 0x40)]);
    assert_eq!(listed_offsets(fake), [0x40]);
}

#[test]
fn only_the_first_capability_of_a_kind_counts() {
    let fake = with_capabilities(0x40, &[(0x40, 0x05, 0x60), (0x60, 0x05, 0)]);
    assert_eq!(listed_offsets(fake), [0x40]);
}

#[test]
fn capability_pointer_into_the_header_ends_the_list() {
    let fake = with_capabilities(0x10, &[(0x10, 0x05, 0x40), (0x40, 0x05, 0)]);
    assert_eq!(listed_offsets(fake), []);
    let fake = with_capabilities(
        0x40,
        &[(0x40, 0x09, 0x3c), (0x3c, 0x09, 0x50), (0x50, 0x05, 0)],
    );
    assert_eq!(listed_offsets(fake), []);
}

#[test]
fn reserved_bits_of_a_capability_pointer_are_ignored() {
    let fake = with_capabilities(0x43, &[(0x40, 0x09, 0x52), (0x50, 0x05, 0)]);
    assert_eq!(listed_offsets(fake), [0x50]);
}

#[test]
fn capability_that_no_device_answers_for_ends_the_list() {
    let fake = with_capabilities(0x40, &[(0x40, 0xff, 0x50), (0x50, 0x05, 0)]);
    assert_eq!(listed_offsets(fake), []);
}

#[test]
fn function_that_says_it_has_no_list_has_none() {
    let mut fake = with_capabilities(0x40, &[(0x40, 0x05, 0)]);
    fake.poke(0x06, 2, 0);
    assert_eq!(listed_offsets(fake), []);
}

#[test]
fn longest_possible_list_is_walked_to_its_end() {
    let list: Vec<(usize, u32, u32)> = (0x40..0x100usize)
        .step_by(4)
        .map(|offset| {
            let id = if offset == 0xfc { 0x05 } else { 0x09 };
            (offset, id, (offset as u32 + 4) & 0xff)
        })
        .collect();
    assert_eq!(list.len(), 48);
    assert_eq!(listed_offsets(with_capabilities(0x40, &list)), [0xfc]);
}

#[test]
fn capability_at_the_end_of_the_space_does_not_reach_behind_it() {
    for id in [0x01, 0x03, 0x05, 0x11] {
        let fake = with_capabilities(0xfc, &[(0xfc, id, 0)]);
        assert_eq!(listed_offsets(fake), [0xfc]);
        let mut fake = with_capabilities(0x40, &[(0x40, id, 0)]);
        fake.resize(0x44);
        assert!(VirtualConfigSpace::new(0, &NO_BARS, NO_ROM, &mut fake).is_ok());
        let mut fake = with_capabilities(0x40, &[(0x40, id, 0)]);
        fake.resize(0x40);
        assert!(VirtualConfigSpace::new(0, &NO_BARS, NO_ROM, &mut fake).is_ok());
    }
}

#[test]
fn overlapping_capabilities_leave_every_byte_one_policy() {
    // MSI inside the power control of PM: PM comes first, MSI control is not there for a guest.
    let fake = with_capabilities(0x40, &[(0x40, 0x01, 0x44), (0x44, 0x05, 0)]);
    let mut fake = fake;
    let space = VirtualConfigSpace::new(0, &NO_BARS, NO_ROM, &mut fake).unwrap();
    fake.calls.clear();
    let mut guest = Guest { space, fake };
    assert_eq!(guest.write(0x46, 2, 0x0001, INTERRUPTS), 0);
    assert_eq!(guest.calls(), []);
}

// ---- The list for people

#[test]
fn virtualised_bits_are_exactly_those_that_differ_from_the_device() {
    let mut guest = Guest::new();
    let mut listed = vec![0u8; 256];
    for range in guest.space.virtualised_ranges() {
        assert!(!range.why.is_empty());
        assert_eq!(range.bits & !range.width.mask(), 0);
        for byte in 0..usize::from(range.width.bytes()) {
            listed[usize::from(range.offset) + byte] |= (range.bits >> (8 * byte)) as u8;
        }
    }
    // Flip each bit of the device: the guest must see it, unless the bit is listed.
    for bit in 0..256 * 8 {
        let (byte, mask) = (bit / 8, 1u8 << (bit % 8));
        let before = guest.read(byte as i32, 1).unwrap();
        guest.fake.bytes[byte] ^= mask;
        let after = guest.read(byte as i32, 1).unwrap();
        guest.fake.bytes[byte] ^= mask;
        let seen = before != after;
        assert_eq!(
            seen,
            listed[byte] & mask == 0,
            "byte {byte:#x} bit {}",
            bit % 8
        );
    }
}

#[test]
fn virtualised_ranges_name_offset_width_and_bits() {
    let guest = Guest::new();
    let ranges: Vec<(u16, AccessWidth, u32)> = guest
        .space
        .virtualised_ranges()
        .map(|range| (range.offset, range.width, range.bits))
        .collect();
    use AccessWidth::{Byte, Dword, Word};
    assert_eq!(
        ranges,
        [
            (0x00, Word, 0xffff),
            (0x02, Word, 0xffff),
            (0x04, Word, 0xfd43),
            (0x10, Dword, 0xffff_ffff),
            (0x14, Dword, 0xffff_ffff),
            (0x18, Dword, 0xffff_ffff),
            (0x1c, Dword, 0xffff_ffff),
            (0x20, Dword, 0xffff_ffff),
            (0x24, Dword, 0xffff_ffff),
            (0x30, Dword, 0xffff_ffff),
            (0x3c, Byte, 0xff),
            (0x42, Word, 0xf800),
        ]
    );
}

#[test]
fn engine_stays_small() {
    // One byte per 4-byte unit, 16 quirks, 7 BARs.
    assert!(std::mem::size_of::<VirtualConfigSpace>() <= 1024 + 16 * 8 + 7 * 16 + 32);
}
