// SPDX-License-Identifier: GPL-2.0

//! Two limits that every count of this crate is made of: a [`Bucket`] for what comes back with time,
//! and a [`Gauge`] for what comes back when it is returned.
//!
//! *Owns* its counters only. *Callers*: the type that has it as a field; nothing here waits, and no
//! clock is read: the time is an argument, in ns. *Lock*: the owner's.
//!
//! # A bucket is a debt
//!
//! A bucket counts what is owed, as the time that it takes to pay. Each unit that is charged adds the
//! price of a unit, and the passing of time pays. Something new may begin when no more than
//! `ahead` units are owed; how much it may *become* is not asked, because it is not known: it is
//! charged when it is, and a debt of any size is paid in full before the next one begins.
//!
//! What follows for any window of length `w`, with one unit for each `price` ns:
//!
//! * units that are charged when they are taken (lines, resets): at most `1 + ahead + w / price`;
//! * times: what was charged for all that began in the window, but the last, is at most
//!   `ahead + w / price`.
//!
//! # Clocks
//!
//! A clock that stands still pays nothing. A step back of at most [`SKEW`] (two CPUs disagree) counts
//! as standing still. One that is larger is a new clock: the debt stays as it is, and is paid from
//! there. A step forward pays as the time would. Sums and products saturate; nothing divides but
//! [`Bucket::left`], by a price that cannot be 0.

/// A step back of the clock that is no new clock, in ns.
pub const SKEW: i64 = 20_000_000;

/// Prices have this many bits behind the point.
const FRACTION: u32 = 10;

/// How fast a bucket is paid, and how much may be owed when something begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// ns for each unit, times 2^FRACTION; at least 1.
    price: i64,
    /// The most that may be owed, in ns.
    room: i64,
}

impl Limit {
    /// `units` in each `period` ns, and `ahead` more of them at once. Numbers below 1 (below 0 for
    /// `ahead`) count as the least one; the price of a unit is rounded up.
    pub const fn new(units: i64, period: i64, ahead: i64) -> Self {
        let units = if units < 1 { 1 } else { units };
        let period = if period < 1 { 1 } else { period };
        let scaled = period.saturating_mul(1 << FRACTION);
        let price = scaled / units + (scaled % units != 0) as i64;
        let ahead = if ahead < 0 { 0 } else { ahead };
        Limit {
            price,
            room: ahead.saturating_mul(price) >> FRACTION,
        }
    }

    /// The price of `units`, in ns, rounded away from zero debt.
    const fn price_of(self, units: i64) -> i64 {
        let scaled = units.saturating_mul(self.price);
        (scaled >> FRACTION).saturating_add((scaled & ((1 << FRACTION) - 1) != 0) as i64)
    }
}

/// What is owed, and when that was last brought up to date.
#[derive(Clone, Debug)]
pub struct Bucket {
    limit: Limit,
    /// ns until all is paid; never negative.
    owed: i64,
    /// The latest time seen, in ns.
    seen: i64,
}

impl Bucket {
    /// Nothing is owed.
    pub const fn new(limit: Limit) -> Self {
        Bucket {
            limit,
            owed: 0,
            seen: i64::MIN,
        }
    }

    /// Pays for the time that has passed.
    pub fn advance(&mut self, now: i64) {
        let passed = now.saturating_sub(self.seen);
        if passed >= 0 {
            self.owed = self.owed.saturating_sub(passed).max(0);
            self.seen = now;
        } else if passed < -SKEW {
            self.seen = now;
        }
    }

    /// How many ns it takes until something may begin; 0 when it may now.
    pub fn wait(&mut self, now: i64) -> i64 {
        self.advance(now);
        self.owed.saturating_sub(self.limit.room).max(0)
    }

    /// Charges `units` as of the last time that was seen; a negative number takes back what was
    /// charged before, down to nothing.
    pub fn charge(&mut self, units: i64) {
        let price = self.limit.price_of(units);
        self.owed = self.owed.saturating_add(price).max(0);
    }

    /// Charges `units` if something may begin now; otherwise says how many ns that takes.
    ///
    /// # Errors
    ///
    /// The time to wait, in ns, at least 1. Nothing is charged.
    pub fn take(&mut self, now: i64, units: i64) -> Result<(), i64> {
        match self.wait(now) {
            0 => {
                self.charge(units);
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// How many units are left until nothing may begin any more. Divides: not for a path that has to be
    /// fast.
    pub fn left(&mut self, now: i64) -> i64 {
        self.advance(now);
        let room = self.limit.room.saturating_sub(self.owed).max(0);
        room.saturating_mul(1 << FRACTION) / self.limit.price
    }

    /// Charges `units` that by themselves keep nothing from beginning: only what was owed before may.
    pub fn charge_softly(&mut self, units: i64) {
        let most = self.owed.max(self.limit.room);
        self.charge(units);
        self.owed = self.owed.min(most);
    }
}

/// How much of something is in use at this moment, and how much may be.
#[derive(Clone, Debug)]
pub struct Gauge {
    limit: u64,
    used: u64,
    most: u64,
}

impl Gauge {
    /// Nothing is in use.
    pub const fn new(limit: u64) -> Self {
        Gauge {
            limit,
            used: 0,
            most: 0,
        }
    }

    /// Takes `amount` if that fits the limit; otherwise `false`, and nothing is taken.
    pub fn take(&mut self, amount: u64) -> bool {
        match self.used.checked_add(amount) {
            Some(used) if used <= self.limit => {
                self.used = used;
                self.most = self.most.max(used);
                true
            }
            _ => false,
        }
    }

    /// Returns what was taken.
    pub fn give_back(&mut self, amount: u64) {
        self.used = self.used.saturating_sub(amount);
    }

    /// In use now.
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// The most that was ever in use at once.
    pub const fn most(&self) -> u64 {
        self.most
    }

    /// The most that may be.
    pub const fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn burst_then_one_for_each_period() {
        let mut bucket = Bucket::new(Limit::new(1, SECOND, 3));
        for _ in 0..4 {
            assert_eq!(bucket.take(5, 1), Ok(()));
        }
        assert_eq!(bucket.take(5, 1), Err(SECOND));
        assert_eq!(bucket.take(SECOND + 4, 1), Err(1));
        assert_eq!(bucket.take(SECOND + 5, 1), Ok(()));
        assert_eq!(bucket.take(SECOND + 5, 1), Err(SECOND));
    }

    #[test]
    fn debt_is_carried_on_and_paid_in_full() {
        // A quarter of the time.
        let mut bucket = Bucket::new(Limit::new(1, 4, 0));
        assert_eq!(bucket.wait(0), 0);
        bucket.charge(1_000_000);
        assert_eq!(bucket.wait(0), 4_000_000);
        assert_eq!(bucket.wait(3_999_999), 1);
        assert_eq!(bucket.wait(4_000_000), 0);
    }

    #[test]
    fn what_was_reserved_is_given_back_and_no_more() {
        let mut bucket = Bucket::new(Limit::new(1, 2, 0));
        assert_eq!(bucket.take(0, 100), Ok(()));
        bucket.charge(-90);
        assert_eq!(bucket.wait(0), 20);
        bucket.charge(i64::MIN);
        assert_eq!(bucket.wait(0), 0);
        bucket.charge(1);
        assert_eq!(bucket.wait(0), 2);
    }

    #[test]
    fn prices_are_rounded_up() {
        // A thousandth of a nanosecond, and a third.
        for (units, period, amount, price) in [(1000, 1, 1, 1), (3, 1, 3, 2), (3, 10, 1, 4)] {
            let mut bucket = Bucket::new(Limit::new(units, period, 0));
            assert_eq!(bucket.wait(0), 0);
            bucket.charge(amount);
            assert_eq!(bucket.wait(0), price, "{units} in {period}");
        }
    }

    #[test]
    fn clock_that_stands_still_pays_nothing() {
        let mut bucket = Bucket::new(Limit::new(1, SECOND, 0));
        assert_eq!(bucket.take(7, 1), Ok(()));
        for _ in 0..1000 {
            assert_eq!(bucket.take(7, 1), Err(SECOND));
        }
    }

    #[test]
    fn clock_that_steps_back_neither_pays_nor_locks_out() {
        let mut bucket = Bucket::new(Limit::new(1, SECOND, 0));
        assert_eq!(bucket.take(SECOND, 1), Ok(()));
        // CPUs that disagree: no time is counted twice.
        for _ in 0..1000 {
            assert_eq!(bucket.wait(SECOND - SKEW), SECOND);
            assert_eq!(bucket.wait(SECOND), SECOND);
        }
        // Another clock: the debt is the same.
        assert_eq!(bucket.wait(-50 * SECOND), SECOND);
        assert_eq!(bucket.wait(-50 * SECOND + 1), SECOND - 1);
        assert_eq!(bucket.wait(i64::MAX), 0);
        assert_eq!(bucket.take(i64::MAX, 1), Ok(()));
        assert_eq!(bucket.wait(i64::MIN), SECOND);
        assert_eq!(bucket.wait(i64::MIN + SECOND), 0);
    }

    #[test]
    fn senseless_numbers_saturate() {
        for units in [i64::MIN, -1, 0, 1, i64::MAX] {
            for period in [i64::MIN, 0, 1, i64::MAX] {
                for ahead in [i64::MIN, 0, i64::MAX] {
                    let mut bucket = Bucket::new(Limit::new(units, period, ahead));
                    for now in [i64::MIN, 0, i64::MAX] {
                        for amount in [i64::MAX, 1, 0, -1, i64::MIN] {
                            let _ = bucket.take(now, amount);
                            bucket.charge(amount);
                            assert!(bucket.wait(now) >= 0 && bucket.left(now) >= 0);
                        }
                    }
                    let before = bucket.wait(i64::MAX);
                    bucket.charge_softly(i64::MAX);
                    assert_eq!(bucket.wait(i64::MAX), before);
                }
            }
        }
    }

    #[test]
    fn left_is_what_can_still_be_charged() {
        let mut bucket = Bucket::new(Limit::new(1, 60, 10));
        assert_eq!(bucket.left(0), 10);
        bucket.charge(4);
        assert_eq!(bucket.left(0), 6);
        assert_eq!(bucket.left(59), 6);
        assert_eq!(bucket.left(60), 7);
        bucket.charge_softly(100);
        assert_eq!((bucket.left(60), bucket.wait(60)), (0, 0));
        bucket.charge(1);
        bucket.charge_softly(100);
        assert_eq!((bucket.left(60), bucket.wait(60)), (0, 60));
    }

    #[test]
    fn gauge_takes_what_fits_and_comes_back_to_nothing() {
        let mut gauge = Gauge::new(10);
        assert!(gauge.take(7));
        assert!(!gauge.take(4));
        assert!(!gauge.take(u64::MAX));
        assert!(gauge.take(3));
        assert_eq!((gauge.used(), gauge.most(), gauge.limit()), (10, 10, 10));
        gauge.give_back(7);
        gauge.give_back(3);
        assert_eq!((gauge.used(), gauge.most()), (0, 10));
        gauge.give_back(1);
        assert_eq!(gauge.used(), 0);
    }
}
