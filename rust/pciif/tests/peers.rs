// SPDX-License-Identifier: GPL-2.0

//! What a hostile or broken peer can send: any request, any table of functions, any sequence.

mod common;

use common::FakeFunction;
use pciif::config::{Flags, Function, VirtualConfigSpace};
use pciif::op::{OpStatus, Reply, Request};
use pciif::sbdf::{Devfn, Sbdf};
use pciif::topology::{Mode, Place, Topology, TopologyError};
use pciif::wire::{MsixEntry, PciOp, OP_WORDS};
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

/// Words that are small, as real ones are, or anything.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..12u32,
        2 => 0..0x200u32,
        1 => prop::sample::select(vec![u32::MAX, 1 << 31, i32::MAX as u32, 0xffff_f004, 0x1_0000]),
        1 => any::<u32>(),
    ]
}

fn words() -> impl Strategy<Value = [u32; OP_WORDS]> {
    prop::array::uniform9(word())
}

/// A bridge or device with any registers at all: lists of capabilities that loop, overlap or leave.
fn any_function() -> impl Strategy<Value = FakeFunction> {
    let sizes = prop::sample::select(vec![64usize, 0xa0, 256, 0x600, 4096]);
    // Small numbers make many capability heads.
    let byte = prop_oneof![
        2 => any::<u8>(),
        1 => prop::sample::select(vec![1u8, 3, 5, 0x11, 0x40, 0x44, 0x48, 0xf8, 0xfc]),
    ];
    sizes.prop_flat_map(move |size| {
        prop::collection::vec(byte.clone(), size).prop_map(move |bytes| {
            let mut fake = FakeFunction::blank(size);
            fake.bytes = bytes;
            fake.bytes[0x06] |= 0x10;
            fake.bytes[0x34] |= 0x40;
            fake
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn words_survive_the_request(words in prop::array::uniform9(any::<u32>())) {
        prop_assert_eq!(PciOp::from_words(&words).to_words(), words);
        prop_assert_eq!(MsixEntry::from_u32(words[0]).to_u32(), words[0]);
    }

    #[test]
    fn any_request_is_parsed_or_refused_and_parsed_ones_round_trip(words in words()) {
        let op = PciOp::from_words(&words);
        match Request::parse(&op) {
            Ok(request) => {
                prop_assert!(op.cmd <= 5);
                prop_assert_eq!(Request::parse(&request.to_op()), Ok(request));
            }
            Err(status) => prop_assert!(status.ok().is_err()),
        }
        let reply = Reply::from_op(&op);
        prop_assert!(reply.status == OpStatus::Success || reply.value == 0);
    }

    #[test]
    fn any_request_to_any_function_is_answered(
        mut fake in any_function(),
        header_type in prop::sample::select(vec![0u8, 1, 0x80, 0x81]),
        requests in prop::collection::vec((words(), any::<bool>(), any::<bool>()), 1..40),
    ) {
        let bars = FakeFunction::model_bars();
        let rom = FakeFunction::model_rom();
        let mut space = VirtualConfigSpace::new(header_type, &bars, rom, &mut fake).unwrap();
        let size = fake.config_size();
        let decode = fake.peek(4, 2) & 3;
        for (words, permissive, allow_interrupt_control) in requests {
            let flags = Flags { permissive, allow_interrupt_control };
            match Request::parse(&PciOp::from_words(&words)) {
                Ok(Request::ConfRead { offset, size: bytes, .. }) => {
                    let access = fake.access(offset, bytes);
                    let allowed = [1, 2, 4].contains(&bytes)
                        && offset >= 0
                        && i64::from(offset) + i64::from(bytes) <= i64::from(size)
                        && offset % bytes == 0;
                    prop_assert_eq!(access.is_ok(), allowed);
                    if let Ok(access) = access {
                        let value = space.read(&mut fake, access).unwrap();
                        prop_assert_eq!(value & !access.width().mask(), 0);
                    }
                }
                Ok(Request::ConfWrite { offset, size: bytes, value, .. }) => {
                    if let Ok(access) = fake.access(offset, bytes) {
                        if let Ok(outcome) = space.write(&mut fake, access, value, flags) {
                            prop_assert_eq!(outcome.dropped & !access.width().mask(), 0);
                        }
                    }
                }
                _ => {}
            }
            // The rule that matters most: no guest ever takes decode away.
            prop_assert_eq!(fake.peek(4, 2) & decode, decode);
        }
    }

    #[test]
    fn access_made_for_a_larger_function_is_refused(offset in 0..4096i32) {
        let access = pciif::access::ConfigAccess::new(offset, 1, 4096).unwrap();
        let mut fake = FakeFunction::model();
        let mut space = fake.model_space();
        let inside = offset < 256;
        let everything = Flags { permissive: true, allow_interrupt_control: true };
        prop_assert_eq!(space.read(&mut fake, access).is_ok(), inside);
        let refused = space.write(&mut fake, access, 0, everything) == Err(OpStatus::InvalidOffset);
        prop_assert_eq!(refused, !inside);
    }
}

#[derive(Clone, Debug)]
enum Change {
    Assign {
        host: Sbdf,
        is_vf: bool,
        wanted: Option<Devfn>,
    },
    Release {
        index: usize,
    },
}

fn change() -> impl Strategy<Value = Change> {
    let host = (0..2u16, 0..3u8, 0..20u8, 0..8u8)
        .prop_map(|(segment, bus, dev, func)| Sbdf::new(segment, bus, dev, func).unwrap());
    let wanted = prop::option::weighted(0.2, any::<u8>().prop_map(Devfn::from_raw));
    prop_oneof![
        3 => (host, prop::bool::weighted(0.3), wanted)
            .prop_map(|(host, is_vf, wanted)| Change::Assign { host, is_vf, wanted }),
        1 => any::<usize>().prop_map(|index| Change::Release { index }),
    ]
}

const ROOM: usize = 48;

type Table = Topology<Vec<Place<Sbdf>>>;

fn check_table(table: &Table, there: &HashMap<Sbdf, (Sbdf, bool)>) {
    assert_eq!(table.entries().count(), there.len());
    let addresses: HashSet<Sbdf> = there.values().map(|&(address, _)| address).collect();
    assert_eq!(addresses.len(), there.len(), "two functions at one address");
    for (&host, &(address, _)) in there {
        assert_eq!(table.find(address), Some(&host));
        assert_eq!(
            table.find_host(host).map(|entry| entry.address()),
            Some(address)
        );
    }
    for raw in 0..=u8::MAX {
        let address = Sbdf {
            segment: 0,
            bus: 0,
            devfn: Devfn::from_raw(raw),
        };
        let found = table.find(address).is_some();
        assert_eq!(found, addresses.contains(&address), "{address}");
    }
    let roots: Vec<_> = table.roots(|_| false).collect();
    let distinct: HashSet<_> = roots.iter().copied().collect();
    assert_eq!(distinct.len(), roots.len(), "a root twice");
    assert!(addresses
        .iter()
        .all(|address| distinct.contains(&address.root())));
}

/// Functions share a slot exactly when they are on one host device and none stands alone.
fn check_slots(there: &HashMap<Sbdf, (Sbdf, bool)>) {
    for (host, (address, alone)) in there {
        assert_eq!(address.devfn.func(), host.devfn.func());
        assert_eq!((address.segment, address.bus), (0, 0));
        for (other, (other_address, other_alone)) in there {
            if host == other {
                continue;
            }
            let siblings = host.root() == other.root()
                && host.devfn.dev() == other.devfn.dev()
                && !alone
                && !other_alone;
            let shared = address.devfn.dev() == other_address.devfn.dev();
            assert_eq!(
                shared, siblings,
                "{host} at {address}, {other} at {other_address}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn topology_keeps_devices_together_and_apart(
        passthrough in any::<bool>(),
        changes in prop::collection::vec(change(), 1..120),
    ) {
        let mode = if passthrough { Mode::Passthrough } else { Mode::Vpci };
        let mut table = Table::new(mode, vec![None; 1]);
        let mut there: HashMap<Sbdf, (Sbdf, bool)> = HashMap::new();
        for change in changes {
            match change {
                Change::Assign { host, is_vf, wanted } => {
                    let alone = is_vf && host.devfn.func() == 0;
                    let mut assigned = table.assign(host, is_vf, false, host, wanted);
                    let more = table.larger().filter(|_| table.room() < ROOM);
                    if let (Err(TopologyError::NoRoom), Some(more)) = (assigned, more) {
                        table.grow(vec![None; more.min(ROOM)]);
                        check_table(&table, &there);
                        assigned = table.assign(host, is_vf, false, host, wanted);
                    }
                    match assigned {
                        Ok(address) => {
                            prop_assert_eq!(there.insert(host, (address, alone)), None);
                        }
                        Err(TopologyError::AlreadyThere) => {
                            prop_assert!(there.contains_key(&host));
                        }
                        Err(TopologyError::NoRoom) => prop_assert_eq!(there.len(), ROOM),
                        Err(TopologyError::NoSlot) => {
                            let slots: HashSet<u8> =
                                there.values().map(|(address, _)| address.devfn.dev()).collect();
                            prop_assert_eq!(slots.len(), 32);
                        }
                        Err(TopologyError::Bridge) => prop_assert!(false, "not a bridge"),
                    }
                }
                Change::Release { index } => {
                    let mut hosts: Vec<Sbdf> = there.keys().copied().collect();
                    hosts.sort();
                    if hosts.is_empty() {
                        continue;
                    }
                    let host = hosts[index % hosts.len()];
                    let (address, _) = there.remove(&host).unwrap();
                    prop_assert_eq!(table.release(address), Some(host));
                    prop_assert_eq!(table.find(address), None);
                }
            }
            check_table(&table, &there);
            if !passthrough {
                check_slots(&there);
            }
        }
    }
}
