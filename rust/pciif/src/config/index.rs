// SPDX-License-Identifier: GPL-2.0

//! Which rows each 4-byte unit of a configuration space has, in less memory than a table of them.
//!
//! *Owns* the claims of one function. *Callers*: the engine, which has it; nothing here waits.
//!
//! Registers with the same rows lie side by side, so runs of equal units are kept, in order: a lookup
//! looks at seven of them at most. A function has 20 to 70 runs. What a device claims beyond
//! [`MAX_RUNS`] stays unlisted, which is the strictest policy there is; what binds every guest is
//! claimed first, and there is always room for it (see [`super::capability`]).

use super::table::Dword;

/// How many runs there is room for: more than the 64 units of the first 256 bytes could make.
pub(super) const MAX_RUNS: usize = 76;

/// 4-byte units of the largest configuration space.
const UNITS: u16 = 1024;

/// Neighbouring units with the same rows.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: u16,
    /// At least 1.
    count: u8,
    rows: Dword,
}

impl Run {
    const EMPTY: Self = Run {
        first: 0,
        count: 1,
        rows: Dword::Unlisted,
    };

    /// The unit behind it.
    const fn end(&self) -> u16 {
        self.first.saturating_add(self.count as u16)
    }
}

/// The claims of one function.
///
/// # Invariants
///
/// The first `used` runs are in order and do not overlap; `used` is at most [`MAX_RUNS`].
#[derive(Clone, Debug)]
pub(super) struct Index {
    runs: [Run; MAX_RUNS],
    used: u8,
}

impl Index {
    /// Nothing is listed.
    pub(super) const fn new() -> Self {
        Index {
            runs: [Run::EMPTY; MAX_RUNS],
            used: 0,
        }
    }

    fn runs(&self) -> &[Run] {
        self.runs.get(..usize::from(self.used)).unwrap_or(&[])
    }

    /// How many runs begin at or before a unit.
    fn up_to(&self, number: u16) -> usize {
        self.runs().partition_point(|run| run.first <= number)
    }

    /// Which rows a unit has.
    pub(super) fn rows_of(&self, number: u16) -> Dword {
        let before = self.up_to(number).checked_sub(1);
        match before.and_then(|at| self.runs().get(at)) {
            Some(run) if number < run.end() => run.rows,
            _ => Dword::Unlisted,
        }
    }

    /// Gives a free unit its rows; `false` when it has some, or when there is no room.
    pub(super) fn claim(&mut self, number: u16, rows: Dword) -> bool {
        let at = self.up_to(number);
        if let Some(run) = at.checked_sub(1).and_then(|at| self.runs.get_mut(at)) {
            if number < run.end() {
                return false;
            }
            if number == run.end() && run.rows == rows && run.count < u8::MAX {
                run.count += 1;
                return true;
            }
        }
        let used = usize::from(self.used);
        let Some(later) = self.runs.get_mut(at..=used) else {
            return false;
        };
        later.rotate_right(1);
        if let Some(free) = later.first_mut() {
            *free = Run {
                first: number,
                count: 1,
                rows,
            };
        }
        self.used += 1;
        true
    }

    /// Every unit and its rows, in order. Looks each of them up: for administrators, not for guests.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u16, Dword)> + '_ {
        (0..UNITS).map(|number| (number, self.rows_of(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [Dword; 3] = [Dword::Bar, Dword::ExtHead, Dword::Vsec];

    proptest! {
        /// Against a plain table, with claims as capabilities make them: bodies of some length,
        /// anywhere, over each other.
        #[test]
        fn index_equals_a_table(bodies in proptest::collection::vec((0u16..1024, 1u16..300, 0usize..3), 0..200)) {
            let mut index = Index::new();
            let mut table = [Dword::Unlisted; 1024];
            for (first, count, kind) in bodies {
                for number in first..(first + count).min(1024) {
                    let free = table[usize::from(number)] == Dword::Unlisted;
                    let claimed = index.claim(number, KINDS[kind]);
                    // Without room nothing is listed; what was there stays.
                    prop_assert!(!claimed || free);
                    prop_assert!(claimed || !free || usize::from(index.used) == MAX_RUNS);
                    if claimed {
                        table[usize::from(number)] = KINDS[kind];
                    }
                }
            }
            for number in 0..1030u16 {
                let expected = table.get(usize::from(number)).copied().unwrap_or(Dword::Unlisted);
                prop_assert_eq!(index.rows_of(number), expected);
            }
            prop_assert!(index.iter().eq((0u16..).zip(table)));
        }
    }

    #[test]
    fn engine_is_small() {
        assert!(core::mem::size_of::<super::super::VirtualConfigSpace>() <= 536);
    }

    #[test]
    fn there_is_room_for_all_of_the_first_256_bytes() {
        let mut index = Index::new();
        for number in (0..64).step_by(2).chain((1..64).step_by(2)) {
            assert!(index.claim(number, KINDS[usize::from(number) % 3]));
        }
        assert!((0..64).all(|number| index.rows_of(number) == KINDS[usize::from(number) % 3]));
    }

    #[test]
    fn what_there_is_no_room_for_stays_unlisted() {
        let mut index = Index::new();
        for number in 0..200 {
            assert_eq!(
                index.claim(2 * number, Dword::Bar),
                usize::from(number) < MAX_RUNS
            );
        }
        assert_eq!(index.rows_of(0), Dword::Bar);
        assert_eq!(index.rows_of(398), Dword::Unlisted);
        // A run that is there still grows.
        assert!(index.claim(2 * MAX_RUNS as u16 - 1, Dword::Bar));
    }
}
