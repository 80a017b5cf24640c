// SPDX-License-Identifier: GPL-2.0

//! The parsers of addresses and patterns: known vectors, random texts, round trips.

use pciif::sbdf::{Devfn, RootText, Sbdf, VirtualDevText};
use pciif::slot::{parse_slot, HideItems, SlotPattern};
use proptest::prelude::*;

/// What a vector's text means.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meaning {
    Syntax,
    Range,
    /// Segment, bus, device and function; -1 for all.
    Slot(u16, u8, i8, i8),
}
use Meaning::{Range, Slot, Syntax};

fn meaning(pattern: SlotPattern) -> Meaning {
    let number = |part: Option<u8>| part.map_or(-1, |part| part as i8);
    Slot(
        pattern.segment,
        pattern.bus,
        number(pattern.dev),
        number(pattern.func),
    )
}

fn parsed(text: &[u8]) -> Meaning {
    match parse_slot(text) {
        Ok(pattern) => meaning(pattern),
        Err(error) if error.is_range() => Range,
        Err(_) => Syntax,
    }
}

/// The vectors that parse_model.py prints. Where the model yields a number that is too large (its
/// callers check that later), ours is a range error.
#[test]
fn slot_vectors_mean_what_the_kernel_scanner_says() {
    let vectors = [
        ("0000:03:00.0", Slot(0, 3, 0, 0)),
        ("0000:03:00.0\n", Slot(0, 3, 0, 0)),
        ("03:00.0", Slot(0, 3, 0, 0)),
        (" 03:00.0 ", Slot(0, 3, 0, 0)),
        ("3:0.0", Slot(0, 3, 0, 0)),
        ("0000:03:00.*", Slot(0, 3, 0, -1)),
        ("0000:03:*.*", Slot(0, 3, -1, -1)),
        ("03:00.*", Slot(0, 3, 0, -1)),
        ("03:*.*", Slot(0, 3, -1, -1)),
        ("0000:03:00", Syntax),
        ("03:00", Syntax),
        ("0000:03:00.0x", Syntax),
        ("", Syntax),
        ("\n", Syntax),
        ("*:*.*", Syntax),
        ("0000:*:*.*", Syntax),
        ("0000:03:*.0", Syntax),
        ("03:*.0", Syntax),
        ("0x0:0x3:0x0.0x1", Slot(0, 3, 0, 1)),
        ("10000:03:00.0", Range),
        ("0000:100:00.0", Range),
        ("0000:03:20.0", Range),
        ("0000:03:00.8", Range),
        ("ffffffff:03:00.0", Range),
        ("0000:03:00.0 0000:03:00.1", Syntax),
        ("0000:03:00 .0", Syntax),
        ("0000 :03:00.0", Syntax),
        ("0000: 03:00.0", Slot(0, 3, 0, 0)),
        ("-1:03:00.0", Syntax),
        ("03:00.f", Range),
        ("03:1f.7", Slot(0, 3, 31, 7)),
    ];
    for (text, expected) in vectors {
        assert_eq!(parsed(text.as_bytes()), expected, "{text:?}");
    }
}

/// The `hide=` vectors that parse_model.py prints. The model stops at the first bad item; ours
/// names it and goes on, so the items behind it are listed too.
#[test]
fn hide_vectors_keep_good_items_and_name_bad_ones() {
    const BAD: Meaning = Syntax;
    let vectors: [(&str, &[Meaning]); 17] = [
        ("(03:00.0)", &[Slot(0, 3, 0, 0)]),
        ("(03:00.0)(04:00.0)", &[Slot(0, 3, 0, 0), Slot(0, 4, 0, 0)]),
        (
            "(0000:03:00.0)(04:00.1)",
            &[Slot(0, 3, 0, 0), Slot(0, 4, 0, 1)],
        ),
        (
            "(03:00.0) (04:00.0)\n",
            &[Slot(0, 3, 0, 0), Slot(0, 4, 0, 0)],
        ),
        ("(03:00.*)", &[Slot(0, 3, 0, -1)]),
        ("(03:*.*)", &[Slot(0, 3, -1, -1)]),
        ("(0000:03:*.*)", &[Slot(0, 3, -1, -1)]),
        ("(0000:03:00.*)", &[Slot(0, 3, 0, -1)]),
        ("03:00.0", &[BAD]),
        ("(03:00.0", &[BAD]),
        (
            "(03:00.0),(04:00.0)",
            &[Slot(0, 3, 0, 0), BAD, Slot(0, 4, 0, 0)],
        ),
        ("(03:00.0)x", &[Slot(0, 3, 0, 0), BAD]),
        (" (03:00.0)", &[Slot(0, 3, 0, 0)]),
        (
            "(00:19.0)(ff:1f.7)",
            &[Slot(0, 0, 25, 0), Slot(0, 255, 31, 7)],
        ),
        ("( 03:00.0 )", &[BAD]),
        ("(*:*.*)", &[BAD]),
        ("(03:00.8)(04:00.0)", &[Range, Slot(0, 4, 0, 0)]),
    ];
    for (text, expected) in vectors {
        let items: Vec<Meaning> = HideItems::new(text.as_bytes())
            .map(|item| match item {
                Ok(pattern) => meaning(pattern),
                Err(error) if error.expected.is_range() => Range,
                Err(_) => BAD,
            })
            .collect();
        assert_eq!(items, expected, "{text:?}");
    }
}

fn sbdf() -> impl Strategy<Value = Sbdf> {
    (any::<u16>(), any::<u8>(), any::<u8>()).prop_map(|(segment, bus, devfn)| Sbdf {
        segment,
        bus,
        devfn: Devfn::from_raw(devfn),
    })
}

fn pattern() -> impl Strategy<Value = SlotPattern> {
    (sbdf(), 0..3).prop_map(|(sbdf, wild)| {
        let mut pattern = SlotPattern::from(sbdf);
        if wild > 0 {
            pattern.func = None;
        }
        if wild > 1 {
            pattern.dev = None;
        }
        pattern
    })
}

/// Texts made of what the grammar is made of, so that many get far.
fn likely_text() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop::sample::select(vec![
        "0000:",
        "03:",
        "00.",
        "0",
        "*",
        "*.*",
        ".",
        ":",
        "(",
        ")",
        " ",
        "\n",
        "0x",
        "1f",
        "ffffffff1",
        "g",
        "-",
        "\0",
        "(03:00.0)",
        "0000:03:00.0",
    ]);
    prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

fn any_text() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![likely_text(), prop::collection::vec(any::<u8>(), 0..80),]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn address_survives_its_texts(sbdf in sbdf()) {
        prop_assert_eq!(Sbdf::parse_dev_key(sbdf.to_string().as_bytes()), Ok(sbdf));
        let virtual_text = VirtualDevText(sbdf).to_string();
        prop_assert_eq!(Sbdf::parse_vdev_key(virtual_text.as_bytes()), Ok(sbdf));
        let root_text = sbdf.root().to_string();
        prop_assert_eq!(RootText::parse_root_key(root_text.as_bytes()), Ok(sbdf.root()));
        prop_assert_eq!(parse_slot(sbdf.to_string().as_bytes()), Ok(sbdf.into()));
    }

    #[test]
    fn address_survives_the_wire(sbdf in sbdf()) {
        let (domain, bus) = (u32::from(sbdf.segment), u32::from(sbdf.bus));
        let devfn = u32::from(sbdf.devfn.raw());
        prop_assert_eq!(Sbdf::from_wire(domain, bus, devfn), Some(sbdf));
    }

    #[test]
    fn pattern_survives_its_text(pattern in pattern(), blanks in "[ \t\n]{0,3}") {
        let text = format!("{blanks}{pattern}{blanks}");
        prop_assert_eq!(parse_slot(text.as_bytes()), Ok(pattern));
        let item = format!("{blanks}({pattern}){blanks}");
        let items: Vec<_> = HideItems::new(item.as_bytes()).collect();
        prop_assert_eq!(items, vec![Ok(pattern)]);
    }

    #[test]
    fn pattern_means_exactly_its_addresses(pattern in pattern(), probe in sbdf()) {
        let addresses: Vec<_> = pattern.addresses().collect();
        prop_assert!(addresses.windows(2).all(|pair| pair[0] < pair[1]));
        prop_assert_eq!(addresses.contains(&probe), pattern.matches(probe));
        let on_its_bus = Sbdf { segment: pattern.segment, bus: pattern.bus, ..probe };
        prop_assert_eq!(addresses.contains(&on_its_bus), pattern.matches(on_its_bus));
    }

    #[test]
    fn any_text_is_answered_with_a_position_inside_it(text in any_text()) {
        let inside = |position: usize| position <= text.len();
        if let Err(error) = parse_slot(&text) {
            prop_assert!(inside(error.position()));
        }
        if let Err(error) = Sbdf::parse_dev_key(&text) {
            prop_assert!(inside(error.position()));
        }
        if let Err(error) = RootText::parse_root_key(&text) {
            prop_assert!(inside(error.position()));
        }
    }

    #[test]
    fn hide_ends_and_its_errors_are_bounded_printable_lines(text in any_text()) {
        let mut last = None;
        for item in HideItems::new(&text) {
            let Err(error) = item else { continue };
            prop_assert!(last < Some(error.position) && error.position < text.len());
            last = Some(error.position);
            prop_assert!(text[error.position..].starts_with(error.text));
            let line = error.to_string();
            prop_assert!(line.len() < 400);
            prop_assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
    }

    #[test]
    fn bad_items_do_not_cost_good_ones(
        items in prop::collection::vec((pattern(), prop::option::of("[a-z:.,)*0-9]{1,9}")), 1..9)
    ) {
        let mut text = String::new();
        let mut good = Vec::new();
        for (pattern, bad) in items {
            text.push_str(&format!("({pattern})"));
            good.push(pattern);
            text.push_str(bad.as_deref().unwrap_or_default());
        }
        let kept: Vec<_> = HideItems::new(text.as_bytes()).flatten().collect();
        prop_assert_eq!(kept, good);
    }
}
