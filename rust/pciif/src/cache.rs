// SPDX-License-Identifier: GPL-2.0

//! Registers of one function that the frontend asks for once: its known constants.
//!
//! *Owns* the values of one function, as its backend gave them. *Callers*: the frontend's
//! configuration accessors, in any context, under a lock of theirs; nothing here waits.
//!
//! # What is kept, and why that is sound
//!
//! | register | condition | why it does not change while the function is there |
//! |---|---|---|
//! | 08 revision, class code (4 bytes) | | read only, set by the maker (PCI 3.0, 6.2.1) |
//! | 0e header type (1 byte) | | read only; it fixes the layout of the header |
//! | 2c subsystem ids (4 bytes) | header type 0 | read only to software (6.2.4); other header types have a writable register there |
//! | 34 first capability (1 byte) | header type 0 or 1 | read only; a list head (6.7) |
//! | id and next of each capability (2 bytes) | reached from 34 | read only (6.7): which capabilities a function has is part of what it is |
//! | header of each extended capability (4 bytes) | reached from 100 | read only (PCIe 7.6.3) |
//!
//! All of them only once the ids have been read since the cache was last dropped: the ids are the
//! measure by which what a backend said while it did not tell the truth is found out.
//!
//! Everything else is asked, always: offset 0 with the ids in particular, so that a look whether the
//! function is there is answered by the backend and never from memory. Bytes beside a constant
//! (status, BIST, the control words behind a capability's header) are not served: an access is
//! served only if every byte of it is kept.
//!
//! # When it is dropped
//!
//! * The ids read as all ones: the function does not answer. All ones at other places are not kept.
//! * The ids read otherwise than before: it is another function, or the backend has not told the truth.
//! * The guest resets the function: a write to the power state (PM), to the FLR bit of PCI Express
//!   or to the control of Advanced Features. As long as the list of capabilities is not known to
//!   its end, every write behind the header counts as such, but those of which the known part says
//!   that they are something else: the control word beside a header, and PCI Express' device control
//!   without FLR. The kernel writes these while it looks at a new function, before it has
//!   come to the list's end.
//! * A register that is kept is answered differently: then it is another function.
//! * The frontend drops it with [`ConstantCache::invalidate`]: hot-plug, a reset in the course of
//!   error recovery, a link that failed, a new backend.
//!
//! A request that was under way when the cache was dropped must not fill it: a reader takes
//! [`ConstantCache::generation`] before it asks and hands it to [`ConstantCache::learn`].

use crate::access::{AccessWidth, ConfigAccess};

/// How many 4-byte units are kept: four of the header, and the capabilities. What does not fit is
/// asked.
const LINES: usize = 64;
/// The most capabilities that fit into one list: a bound for a list that is a circle.
const MOST_CAPABILITIES: usize = 48;
/// The same for extended capabilities, of which no more than [`LINES`] are known.
const MOST_EXTENDED: usize = LINES;

const CLASS: u16 = 0x08 / 4;
const HEADER: u16 = 0x0c / 4;
const HEADER_TYPE: u32 = 0x00ff_0000;
const SUBSYSTEM: u16 = 0x2c / 4;
const FIRST_CAPABILITY: u16 = 0x34 / 4;
const FIRST_CAPABILITY_BITS: u32 = 0xff;
const CAPABILITY_HEADER: u32 = 0xffff;
const FIRST_BEHIND_HEADER: u16 = 0x40 / 4;
const EXTENDED: u16 = 0x100;
const FIRST_EXTENDED: u16 = EXTENDED / 4;

const POWER_MANAGEMENT: u32 = 0x01;
const PCI_EXPRESS: u32 = 0x10;
const ADVANCED_FEATURES: u32 = 0x13;
/// Initiate Function Level Reset, in the device control word of PCI Express.
const FLR: u32 = 0x8000;

/// One 4-byte unit.
#[derive(Clone, Copy)]
struct Line {
    /// Offset divided by 4.
    dword: u16,
    /// Which bits are kept: whole bytes.
    known: u32,
    bits: u32,
}

/// What [`ConstantCache::walk`] has come to.
enum Walk {
    /// The list is known to its end.
    End,
    /// It is not known further, or is no list.
    Unknown,
    /// The visitor has stopped it.
    Found,
}

/// The known constants of one function.
pub struct ConstantCache {
    lines: [Line; LINES],
    used: usize,
    /// As last read, to compare with; never served.
    ids: Line,
    generation: u32,
}

impl Line {
    const EMPTY: Self = Self {
        dword: 0,
        known: 0,
        bits: 0,
    };

    /// Adds bits to those known; `false` when they contradict them.
    fn merge(&mut self, lanes: u32, bits: u32) -> bool {
        if (self.bits ^ bits) & self.known & lanes != 0 {
            return false;
        }
        self.known |= lanes;
        self.bits |= bits;
        true
    }
}

impl ConstantCache {
    /// Nothing is known.
    pub const fn new() -> Self {
        Self {
            lines: [Line::EMPTY; LINES],
            used: 0,
            ids: Line::EMPTY,
            generation: 0,
        }
    }

    /// Counts how often the cache was dropped; wraps around.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Forgets everything, and what is being asked at this moment, too.
    pub fn invalidate(&mut self) {
        self.used = 0;
        self.ids = Line::EMPTY;
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether a read may be served, or its answer noted: no need to look at the cache of a function
    /// for any other.
    pub const fn minds_read(access: ConfigAccess) -> bool {
        matches!(
            access.dword(),
            0 | CLASS | HEADER | SUBSYSTEM | FIRST_CAPABILITY | FIRST_BEHIND_HEADER..
        )
    }

    /// Whether a write may be one that drops the cache.
    pub const fn minds_write(access: ConfigAccess) -> bool {
        matches!(access.dword(), FIRST_BEHIND_HEADER..FIRST_EXTENDED)
    }

    /// The value of an access, if every byte of it is a known constant.
    pub fn serve(&self, access: ConfigAccess) -> Option<u32> {
        let line = self.line(access.dword())?;
        (line.known & access.lanes() == access.lanes())
            .then_some((line.bits & access.lanes()) >> access.shift())
    }

    /// Notes the backend's answer to a read. `generation` is that of the moment before the backend
    /// was asked.
    pub fn learn(&mut self, generation: u32, access: ConfigAccess, value: u32) {
        if generation != self.generation {
            return;
        }
        if value & access.width().mask() == access.width().mask() {
            if access.dword() == 0 {
                self.invalidate();
            }
            return;
        }
        if access.dword() == 0 {
            let (lanes, bits) = (access.lanes(), value << access.shift());
            if !self.ids.merge(lanes, bits & lanes) {
                self.invalidate();
                self.ids.merge(lanes, bits & lanes);
            }
            return;
        }
        // Without ids there is no measure by which a lie could be dropped later.
        let lanes = access.lanes() & self.constant(access.dword());
        if lanes == 0 || self.ids.known != u32::MAX {
            return;
        }
        let bits = (value << access.shift()) & lanes;
        let used = self.used.min(LINES);
        match self.lines[..used]
            .iter_mut()
            .find(|line| line.dword == access.dword())
        {
            Some(line) => {
                if !line.merge(lanes, bits) {
                    self.invalidate();
                }
            }
            None => {
                if let Some(line) = self.lines.get_mut(used) {
                    *line = Line {
                        dword: access.dword(),
                        known: lanes,
                        bits,
                    };
                    self.used = used + 1;
                }
            }
        }
    }

    /// Notes that a read of `access` failed: the function may be gone.
    pub fn failed(&mut self, access: ConfigAccess) {
        if access.dword() == 0 {
            self.invalidate();
        }
    }

    /// Notes a write that was sent to the backend.
    pub fn wrote(&mut self, access: ConfigAccess, value: u32) {
        if !Self::minds_write(access) || self.used == 0 {
            return;
        }
        let bits = (value << access.shift()) & access.lanes();
        let covers = |dword: u32| u32::from(access.dword()) == dword;
        let (mut reset, mut harmless) = (false, false);
        let walk = self.walk(|dword, header| {
            let dword = u32::from(dword);
            harmless |= covers(dword);
            match header & 0xff {
                POWER_MANAGEMENT | ADVANCED_FEATURES => reset |= covers(dword + 1),
                PCI_EXPRESS if covers(dword + 2) => {
                    reset |= bits & FLR != 0;
                    harmless = true;
                }
                _ => {}
            }
            false
        });
        let is_known = harmless || matches!(walk, Walk::End);
        if reset || !is_known {
            self.invalidate();
        }
    }

    fn line(&self, dword: u16) -> Option<&Line> {
        self.lines
            .iter()
            .take(self.used)
            .find(|line| line.dword == dword)
    }

    /// The bits of a unit if all of `mask` are known.
    fn known(&self, dword: u16, mask: u32) -> Option<u32> {
        let line = self.line(dword)?;
        (line.known & mask == mask).then_some(line.bits & mask)
    }

    fn header_type(&self) -> Option<u32> {
        Some((self.known(HEADER, HEADER_TYPE)? >> 16) & 0x7f)
    }

    /// Which bits of a unit are constant, as far as is known by now.
    fn constant(&self, dword: u16) -> u32 {
        match dword {
            CLASS => u32::MAX,
            HEADER => HEADER_TYPE,
            SUBSYSTEM if self.header_type() == Some(0) => u32::MAX,
            FIRST_CAPABILITY if matches!(self.header_type(), Some(0 | 1)) => FIRST_CAPABILITY_BITS,
            FIRST_BEHIND_HEADER..FIRST_EXTENDED if self.is_capability(dword) => CAPABILITY_HEADER,
            FIRST_EXTENDED.. if self.is_extended_capability(dword) => u32::MAX,
            _ => 0,
        }
    }

    /// Follows the list of capabilities through the headers that are known, until `stop` says so of
    /// a unit and its header, or the list ends.
    fn walk(&self, mut stop: impl FnMut(u16, u32) -> bool) -> Walk {
        let Some(mut at) = self.known(FIRST_CAPABILITY, FIRST_CAPABILITY_BITS) else {
            return Walk::Unknown;
        };
        for _ in 0..MOST_CAPABILITIES {
            at &= 0xfc;
            if at < 0x40 {
                return Walk::End;
            }
            // CAST: below 256.
            let dword = (at / 4) as u16;
            let Some(header) = self.known(dword, CAPABILITY_HEADER) else {
                return Walk::Unknown;
            };
            if stop(dword, header) {
                return Walk::Found;
            }
            at = header >> 8;
        }
        Walk::Unknown
    }

    /// Whether the list of capabilities, as far as it is known, leads to this unit.
    fn is_capability(&self, dword: u16) -> bool {
        let leads = |at: u32| (at & 0xfc) / 4 == u32::from(dword);
        self.known(FIRST_CAPABILITY, FIRST_CAPABILITY_BITS)
            .is_some_and(leads)
            || matches!(self.walk(|_, header| leads(header >> 8)), Walk::Found)
    }

    /// The same for the list of extended capabilities.
    fn is_extended_capability(&self, dword: u16) -> bool {
        let mut at = EXTENDED;
        for _ in 0..MOST_EXTENDED {
            if at / 4 == dword {
                return true;
            }
            let Some(header) = self.known(at / 4, u32::MAX) else {
                return false;
            };
            // CAST: 12 bits.
            at = ((header >> 20) & 0xffc) as u16;
            if at < EXTENDED {
                return false;
            }
        }
        false
    }
}

impl Default for ConstantCache {
    fn default() -> Self {
        Self::new()
    }
}

/// The access to the ids, for whoever has to know which ones are never served.
pub const IDS: ConfigAccess = ConfigAccess::of_table(0, 0, AccessWidth::Dword);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn access(offset: i32, size: i32) -> ConfigAccess {
        ConfigAccess::new(offset, size, 4096).unwrap()
    }

    /// A function with PM at 40, MSI at 50, PCI Express at 60; AER at 100, serial number at 140.
    fn function() -> Vec<u8> {
        let mut space = std::vec![0u8; 4096];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &[0x86, 0x80, 0xd3, 0x10, 7, 0, 0x10, 0, 1, 0, 0, 2]);
        put(0x2c, &[0xf4, 0x1a, 0, 0x11]);
        put(0x34, &[0x40]);
        put(0x40, &[0x01, 0x50, 2, 0]);
        put(0x50, &[0x05, 0x60, 0, 0]);
        put(0x60, &[0x10, 0x00, 2, 0]);
        put(0x100, &[0x01, 0x00, 0x01, 0x14]);
        put(0x140, &[0x03, 0x00, 0x01, 0x00]);
        space
    }

    fn value(space: &[u8], access: ConfigAccess) -> u32 {
        let at = usize::from(access.offset());
        let mut bytes = [0; 4];
        let size = usize::from(access.width().bytes());
        bytes[..size].copy_from_slice(&space[at..at + size]);
        u32::from_le_bytes(bytes)
    }

    fn read(cache: &mut ConstantCache, space: &[u8], offset: i32, size: i32) {
        let at = access(offset, size);
        cache.learn(cache.generation(), at, value(space, at));
    }

    /// What the kernel reads when it finds a function.
    fn probe(cache: &mut ConstantCache, space: &[u8]) {
        for (offset, size) in [
            (0, 4),
            (0x0e, 1),
            (8, 4),
            (0x2c, 2),
            (0x2e, 2),
            (0x34, 1),
            (0x40, 2),
            (0x50, 2),
            (0x60, 2),
            (0x100, 4),
            (0x140, 4),
        ] {
            read(cache, space, offset, size);
        }
    }

    #[test]
    fn constants_are_served_once_read_and_nothing_else_is() {
        let space = function();
        let mut cache = ConstantCache::new();
        probe(&mut cache, &space);
        for offset in (0..4096).step_by(1) {
            for size in [1, 2, 4] {
                if offset % size != 0 {
                    continue;
                }
                let at = access(offset, size);
                let constant = |byte: i32| {
                    matches!(byte, 0x08..=0x0b | 0x0e | 0x2c..=0x2f | 0x34)
                        || matches!(byte, 0x40 | 0x41 | 0x50 | 0x51 | 0x60 | 0x61)
                        || matches!(byte, 0x100..=0x103 | 0x140..=0x143)
                };
                let expected = (offset..offset + size)
                    .all(constant)
                    .then(|| value(&space, at));
                assert_eq!(cache.serve(at), expected, "{offset:#x} size {size}");
            }
        }
    }

    #[test]
    fn accesses_that_are_not_minded_change_nothing() {
        let space = function();
        let mut cache = ConstantCache::new();
        probe(&mut cache, &space);
        for offset in (0..4096).step_by(4) {
            let at = access(offset, 4);
            if !ConstantCache::minds_read(at) {
                assert_eq!(cache.constant(at.dword()), 0, "{offset:#x}");
                cache.learn(0, at, !value(&space, at));
                cache.failed(at);
            }
            if !ConstantCache::minds_write(at) {
                cache.wrote(at, u32::MAX);
            }
        }
        assert_eq!(cache.generation(), 0);
        for (offset, minded) in [
            (0, true),
            (4, false),
            (0x10, false),
            (0x34, true),
            (0x40, true),
        ] {
            assert_eq!(ConstantCache::minds_read(access(offset, 1)), minded);
        }
        for (offset, minded) in [
            (4, false),
            (0x3c, false),
            (0x40, true),
            (0xfc, true),
            (0x100, false),
        ] {
            assert_eq!(ConstantCache::minds_write(access(offset, 1)), minded);
        }
    }

    #[test]
    fn ids_are_never_served() {
        let mut cache = ConstantCache::new();
        probe(&mut cache, &function());
        for (offset, size) in [(0, 4), (0, 2), (2, 2), (0, 1), (3, 1)] {
            assert_eq!(cache.serve(access(offset, size)), None);
        }
    }

    #[test]
    fn all_ones_of_the_ids_or_an_error_there_drop_it() {
        for size in [4, 2] {
            let mut cache = ConstantCache::new();
            probe(&mut cache, &function());
            cache.learn(cache.generation(), access(0, size), u32::MAX);
            assert_eq!(cache.serve(access(8, 4)), None);
        }
        let mut cache = ConstantCache::new();
        probe(&mut cache, &function());
        cache.failed(access(8, 4));
        assert!(cache.serve(access(8, 4)).is_some());
        cache.failed(IDS);
        assert_eq!(cache.serve(access(8, 4)), None);
    }

    #[test]
    fn other_ids_than_before_drop_it_and_are_the_new_measure() {
        let mut cache = ConstantCache::new();
        probe(&mut cache, &function());
        // In parts, and the same again: no change.
        for (size, ids) in [(4, 0x10d3_8086), (2, 0x8086), (1, 0x86)] {
            cache.learn(cache.generation(), access(0, size), ids);
            assert!(cache.serve(access(8, 4)).is_some());
        }
        // A backend that lies for a while: what it says meanwhile goes with its ids.
        cache.learn(cache.generation(), IDS, 0x1234_5678);
        assert_eq!(cache.serve(access(8, 4)), None);
        cache.learn(cache.generation(), access(8, 4), 0x0525_4544);
        assert!(cache.serve(access(8, 4)).is_some());
        cache.learn(cache.generation(), IDS, 0x10d3_8086);
        assert_eq!(cache.serve(access(8, 4)), None);
        // Never served themselves.
        assert_eq!(cache.serve(IDS), None);
    }

    #[test]
    fn all_ones_elsewhere_are_not_kept() {
        let mut cache = ConstantCache::new();
        cache.learn(0, IDS, 0x10d3_8086);
        cache.learn(0, access(8, 4), u32::MAX);
        cache.learn(0, access(0x0e, 1), 0xff);
        assert_eq!(cache.serve(access(8, 4)), None);
        assert_eq!(cache.serve(access(0x0e, 1)), None);
    }

    #[test]
    fn answer_asked_for_before_a_drop_is_not_kept() {
        let mut cache = ConstantCache::new();
        let before = cache.generation();
        cache.invalidate();
        cache.learn(cache.generation(), IDS, 0x10d3_8086);
        cache.learn(before, access(8, 4), 0x0200_0001);
        assert_eq!(cache.serve(access(8, 4)), None);
        cache.learn(cache.generation(), access(8, 4), 0x0200_0001);
        assert!(cache.serve(access(8, 4)).is_some());
    }

    #[test]
    fn nothing_is_kept_before_all_of_the_ids_are_known() {
        let mut cache = ConstantCache::new();
        for ids in [access(0, 2), access(2, 1), access(3, 1)] {
            cache.learn(0, access(8, 4), 0x0200_0001);
            assert_eq!(cache.serve(access(8, 4)), None);
            cache.learn(0, ids, (0x10d3_8086 >> ids.shift()) & ids.width().mask());
        }
        cache.learn(0, access(8, 4), 0x0200_0001);
        assert_eq!(cache.serve(access(8, 4)), Some(0x0200_0001));
    }

    /// Each part of the ids is a measure for the whole, at its own place and with no bits beside it.
    #[test]
    fn ids_in_parts_are_those_of_the_whole() {
        const OTHER: u32 = 0x10d4_8087;
        let part = |ids: u32, at: ConfigAccess| (ids >> at.shift()) & at.width().mask();
        for parts in [
            &[(0, 2), (2, 2)][..],
            &[(2, 2), (0, 2)],
            &[(0, 1), (1, 1), (2, 1), (3, 1)],
            &[(3, 1), (2, 1), (0, 2)],
        ] {
            let parts: Vec<_> = parts.iter().map(|&(at, size)| access(at, size)).collect();
            for junk in [0, u32::MAX] {
                let mut cache = ConstantCache::new();
                for &at in &parts {
                    cache.learn(0, at, part(0x10d3_8086, at) | (junk & !at.width().mask()));
                }
                // All is known, and the whole says the same.
                cache.learn(0, access(8, 4), 0x0200_0001);
                cache.learn(0, IDS, 0x10d3_8086);
                assert_eq!(cache.generation(), 0, "{parts:?} {junk:#x}");
                assert_eq!(cache.serve(access(8, 4)), Some(0x0200_0001));
                for &at in &parts {
                    cache.learn(0, at, part(0x10d3_8086, at));
                    assert_eq!(cache.generation(), 0);
                }
            }
            for &at in &parts {
                if part(OTHER, at) == part(0x10d3_8086, at) {
                    continue;
                }
                let mut cache = ConstantCache::new();
                probe(&mut cache, &function());
                // Another function, seen in this part first: it is the new measure.
                cache.learn(0, at, part(OTHER, at) | !at.width().mask());
                assert_eq!(cache.generation(), 1, "{at:?}");
                assert_eq!(cache.serve(access(8, 4)), None);
                for &at in &parts {
                    cache.learn(1, at, part(OTHER, at));
                }
                cache.learn(1, access(8, 4), 0x0200_0001);
                cache.learn(1, IDS, OTHER);
                assert_eq!(cache.generation(), 1, "{at:?}");
                assert_eq!(cache.serve(access(8, 4)), Some(0x0200_0001));
                // The part alone is not all of them, and is held against what comes.
                let mut cache = ConstantCache::new();
                cache.learn(0, IDS, 0x10d3_8086);
                cache.learn(0, at, part(OTHER, at));
                cache.learn(1, access(8, 4), 0x0200_0001);
                assert_eq!(cache.serve(access(8, 4)), None);
                cache.learn(1, IDS, 0x10d3_8086);
                assert_eq!(cache.generation(), 2, "{at:?}");
            }
        }
    }

    proptest! {
        /// A backend that answers anything, errors included, but never tells the true ids; then it
        /// tells them, and nothing that it said before is ever served.
        #[test]
        fn no_lie_outlives_the_true_ids(lies in proptest::collection::vec(
            (0i32..80, 0usize..3, proptest::option::of(any::<u32>())), 0..300,
        )) {
            let space = function();
            let mut cache = ConstantCache::new();
            probe(&mut cache, &space);
            cache.learn(cache.generation(), IDS, 0x0bad_0bad);
            for (dword, size, answer) in lies {
                let at = access(4 * dword, [1, 2, 4][size]);
                let generation = cache.generation();
                match answer {
                    Some(_) if at.dword() == 0 => cache.learn(generation, at, 0x0bad_0bad & at.width().mask()),
                    Some(value) => cache.learn(generation, at, value & at.width().mask()),
                    None => cache.failed(at),
                }
            }
            cache.learn(cache.generation(), IDS, value(&space, IDS));
            for offset in (0..4096).step_by(4) {
                prop_assert_eq!(cache.serve(access(offset, 4)), None);
            }
        }
    }

    #[test]
    fn contradiction_drops_it() {
        let mut cache = ConstantCache::new();
        probe(&mut cache, &function());
        // As a dword, which is asked because of the bytes beside it.
        cache.learn(cache.generation(), access(0x40, 4), 0x0002_5009);
        assert_eq!(cache.serve(access(8, 4)), None);
    }

    #[test]
    fn resets_by_the_guest_drop_it_and_other_writes_do_not() {
        let dropped = |offset, size, value| {
            let mut cache = ConstantCache::new();
            probe(&mut cache, &function());
            cache.wrote(access(offset, size), value);
            cache.serve(access(8, 4)).is_none()
        };
        assert!(dropped(0x44, 2, 0), "power state");
        assert!(dropped(0x44, 4, 3), "power state");
        assert!(dropped(0x68, 2, 0x8000), "FLR");
        assert!(dropped(0x68, 4, 0x8000), "FLR");
        assert!(dropped(0x69, 1, 0x80), "FLR");
        assert!(!dropped(0x68, 2, 0x7fff), "no FLR");
        assert!(!dropped(0x52, 2, 1), "MSI control");
        assert!(!dropped(0x04, 2, 7), "command");
        assert!(!dropped(0x10, 4, u32::MAX), "BAR");
        assert!(!dropped(0x104, 4, u32::MAX), "AER status");
    }

    #[test]
    fn write_behind_the_header_drops_it_while_the_list_is_not_known() {
        let space = function();
        let mut cache = ConstantCache::new();
        for (offset, size) in [(0, 4), (8, 4), (0x0e, 1), (0x34, 1), (0x40, 2)] {
            read(&mut cache, &space, offset, size);
        }
        cache.wrote(access(0x90, 1), 0);
        assert_eq!(cache.serve(access(8, 4)), None);
    }

    #[test]
    fn write_that_the_known_part_of_the_list_explains_keeps_it() {
        let mut space = function();
        // One more capability behind PCI Express, which is not read.
        space[0x61] = 0x90;
        let kept = |offset, size, value| {
            let mut cache = ConstantCache::new();
            probe(&mut cache, &space);
            cache.wrote(access(offset, size), value);
            cache.serve(access(0x40, 2)).is_some()
        };
        assert!(kept(0x68, 2, 0x2810), "device control");
        assert!(kept(0x52, 2, 1), "MSI control");
        assert!(!kept(0x68, 2, 0xa810), "FLR");
        assert!(!kept(0x44, 2, 0), "power state");
        for offset in [0x48, 0x54, 0x6c, 0x90, 0x94] {
            assert!(!kept(offset, 2, 0), "{offset:#x}");
        }
    }

    #[test]
    fn reset_is_one_wherever_the_list_names_it() {
        // PM's control is also the next one's header: which of the two it is does not matter.
        let mut space = function();
        space[0x41] = 0x44;
        space[0x44..0x48].copy_from_slice(&[0x05, 0x50, 0, 0]);
        let mut cache = ConstantCache::new();
        probe(&mut cache, &space);
        read(&mut cache, &space, 0x44, 2);
        cache.wrote(access(0x46, 2), 1);
        assert_eq!(cache.serve(access(8, 4)), None);
    }

    #[test]
    fn subsystem_and_first_capability_depend_on_the_header_type() {
        for (kind, subsystem, first) in [(0x80, true, true), (1, false, true), (2, false, false)] {
            let mut space = function();
            space[0x0e] = kind;
            let mut cache = ConstantCache::new();
            probe(&mut cache, &space);
            assert_eq!(cache.serve(access(0x2c, 4)).is_some(), subsystem);
            assert_eq!(cache.serve(access(0x34, 1)).is_some(), first);
            assert_eq!(cache.serve(access(0x40, 2)).is_some(), first);
        }
    }

    #[test]
    fn unknown_places_and_lists_that_are_circles_come_to_an_end() {
        let mut space = function();
        space[0x61] = 0x40;
        space[0x142] = 0x01;
        space[0x143] = 0x14;
        let mut cache = ConstantCache::new();
        probe(&mut cache, &space);
        // Beside the lists.
        for offset in (0x40..0x1000).step_by(4) {
            read(&mut cache, &space, offset, 2);
            read(&mut cache, &space, offset, 4);
        }
        assert_eq!(cache.serve(access(0x70, 2)), None);
        assert_eq!(cache.serve(access(0x200, 4)), None);
        // No end, so no list: a write may do anything.
        cache.wrote(access(0x90, 2), 0);
        assert_eq!(cache.serve(access(8, 4)), None);
    }

    #[test]
    fn more_capabilities_than_there_is_room_for_are_asked() {
        let mut space = function();
        for at in (0x100usize..0xffc).step_by(4) {
            let next = (at + 4) as u32;
            space[at..at + 4].copy_from_slice(&((next << 20) | 0x1_0001).to_le_bytes());
        }
        let mut cache = ConstantCache::new();
        read(&mut cache, &space, 0, 4);
        for offset in (0x100..0xffc).step_by(4) {
            read(&mut cache, &space, offset, 4);
        }
        let kept = (0x100..0xffc)
            .step_by(4)
            .filter(|&offset| cache.serve(access(offset, 4)).is_some())
            .count();
        assert_eq!(kept, LINES);
    }
}
