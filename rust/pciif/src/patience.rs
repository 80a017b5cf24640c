// SPDX-License-Identifier: GPL-2.0

//! How long a guest may take over the recovery from errors of its functions (behaviour, section 5.5).
//!
//! *Owns* the time that was waited. *Callers*: whoever sends the guest a message and waits for its
//! answer, one message at a time. *Lock*: that of the account that it is part of, not held during the
//! wait.
//!
//! A recovery has up to four steps, each asks all functions below the port that saw the error, and
//! meanwhile locks are held that hot-plug needs. So the time is not one of a message: all messages of a
//! guest share it. [`PATIENCE`] may be waited at once, as much as one recovery needs; what was used comes
//! back slowly, one second in [`PRICE`]. So whatever a guest and its device do, waiting for it takes at
//! most [`PATIENCE`] and one [`PRICE`]th of the time.
//!
//! A guest that answers within a millisecond never notices.

use crate::bucket::{Bucket, Limit};

/// What may be waited at once, in ns.
pub const PATIENCE: i64 = 10_000_000_000;
/// How many ns give back one ns of it.
pub const PRICE: i64 = 10;
/// When less than this is left, in ns, the guest is not asked: it could not answer in time, and would be
/// late for the next message, too.
const LEAST: i64 = 50_000_000;

/// The time that waiting for one guest may take.
#[derive(Clone, Debug)]
pub struct Patience {
    used: Bucket,
    /// In all, in ns.
    waited: u64,
}

impl Patience {
    /// All of it is left.
    pub const fn new() -> Self {
        Patience {
            used: Bucket::new(Limit::new(1, PRICE, PATIENCE)),
            waited: 0,
        }
    }

    /// How long the next message may be waited for, in ns, at `now`; 0: it must not be sent, and counts
    /// as not answered. Divides.
    pub fn left(&mut self, now: i64) -> i64 {
        match self.used.left(now) {
            left @ LEAST.. => left,
            _ => 0,
        }
    }

    /// That many ns were waited for an answer, whether it came or not.
    pub fn wait(&mut self, took: i64) {
        self.used.charge(took.max(0));
        let took = u64::try_from(took).unwrap_or(0);
        self.waited = self.waited.saturating_add(took);
    }

    /// How long was waited in all, in ns.
    pub const fn waited(&self) -> u64 {
        self.waited
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const MS: i64 = 1_000_000;
    const SECOND: i64 = 1_000 * MS;

    /// Four steps, 32 functions, and a guest that answers whenever it is just not too late (S8).
    #[test]
    fn late_answers_do_not_multiply_by_steps_and_functions() {
        let mut patience = Patience::new();
        let (mut now, mut waited) = (0, 0);
        for _ in 0..4 * 32 {
            let took = patience.left(now).min(9 * SECOND);
            if took == 0 {
                continue;
            }
            now += took;
            waited += took;
            patience.wait(took);
        }
        assert!(waited <= PATIENCE + now / PRICE, "{waited}");
        assert!(now < 11_200 * MS, "{now}");
    }

    #[test]
    fn guest_that_does_its_part_is_always_asked() {
        let mut patience = Patience::new();
        let mut now = 0;
        for _recovery in 0..20 {
            for _message in 0..4 * 8 {
                assert!(patience.left(now) > 9 * SECOND);
                patience.wait(MS);
                now += MS;
            }
            now += SECOND;
        }
        // A slow driver, once: 200 ms for each of four steps of eight functions.
        for _message in 0..4 * 8 {
            assert!(patience.left(now) >= SECOND);
            patience.wait(200 * MS);
            now += 200 * MS;
        }
        assert_eq!(patience.waited(), 7_040_000_000);
    }

    #[test]
    fn used_patience_comes_back_slowly() {
        let mut patience = Patience::new();
        assert_eq!(patience.left(0), PATIENCE);
        patience.wait(PATIENCE);
        assert_eq!(patience.left(PATIENCE), PATIENCE / PRICE);
        patience.wait(PATIENCE / PRICE);
        assert_eq!(patience.left(PATIENCE), 0);
        assert_eq!(patience.left(PATIENCE + 499 * MS), 0);
        assert_eq!(patience.left(PATIENCE + 500 * MS), 50 * MS);
        assert_eq!(patience.left(PATIENCE + 60 * SECOND), 6 * SECOND);
        assert_eq!(patience.left(PATIENCE + 100 * SECOND), PATIENCE);
    }

    proptest! {
        #[test]
        fn waiting_is_bounded_over_every_time(
            messages in proptest::collection::vec((0..20_000i64, 0..12_000i64), 1..200),
        ) {
            let mut patience = Patience::new();
            let mut now = 0;
            let mut waits: Vec<(i64, i64)> = Vec::new();
            for (pause, answer) in messages {
                now += pause * MS;
                let took = patience.left(now).min(answer * MS);
                patience.wait(took);
                waits.push((now, took));
                now += took;
            }
            for first in 0..waits.len() {
                let begun = waits[first].0;
                let mut sum = 0;
                for &(at, took) in &waits[first..] {
                    sum += took;
                    prop_assert!(sum <= PATIENCE + (at - begun) / PRICE + 2);
                }
            }
        }
    }
}
