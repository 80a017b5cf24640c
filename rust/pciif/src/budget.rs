// SPDX-License-Identifier: GPL-2.0

//! How much time may be spent on something that others have to wait for: requests of guests that are
//! served in interrupt context.
//!
//! Time is counted in windows of fixed length. What a window has too much is not carried into the
//! next: who has used up its share is sent elsewhere (to a thread, which the scheduler treats fairly)
//! until the window ends. Two CPUs may enter a window at once; then a few microseconds are lost to the
//! count, which is a bound against abuse and not an account.

use core::sync::atomic::{AtomicI64, Ordering};

/// Length of a window, in ns.
pub const WINDOW: i64 = 10_000_000;

/// A share of each window. Safe in any context.
pub struct Budget {
    /// ns in each window.
    share: i64,
    /// When the present window began, in ns.
    begun: AtomicI64,
    /// ns spent in it.
    spent: AtomicI64,
}

impl Budget {
    /// `share` ns of each [`WINDOW`].
    pub const fn new(share: i64) -> Self {
        Self {
            share,
            begun: AtomicI64::new(i64::MIN),
            spent: AtomicI64::new(0),
        }
    }

    /// Whether there is something left at `now` (ns of any clock that does not run backwards far).
    pub fn allows(&self, now: i64) -> bool {
        let begun = self.begun.load(Ordering::Relaxed);
        if now.saturating_sub(begun) >= WINDOW || now < begun {
            self.begun.store(now, Ordering::Relaxed);
            self.spent.store(0, Ordering::Relaxed);
            return self.share > 0;
        }
        self.spent.load(Ordering::Relaxed) < self.share
    }

    /// Counts `ns`.
    pub fn spend(&self, ns: i64) {
        self.spent.fetch_add(ns.clamp(0, WINDOW), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_spent_once_in_each_window() {
        let budget = Budget::new(4_000_000);
        let mut now = 5;
        for _ in 0..3 {
            let end = now + WINDOW;
            let mut served = 0;
            while budget.allows(now) {
                budget.spend(500_000);
                now += 500_000;
                served += 1;
            }
            assert_eq!(served, 8);
            assert!(!budget.allows(end - 1));
            now = end;
        }
    }

    #[test]
    fn one_long_turn_is_over_the_share_but_no_later_window_pays_for_it() {
        let budget = Budget::new(1_000);
        assert!(budget.allows(0));
        budget.spend(WINDOW * 7);
        assert!(!budget.allows(WINDOW - 1));
        assert!(budget.allows(WINDOW));
    }

    #[test]
    fn a_clock_that_steps_back_or_lies_locks_nobody_out() {
        let budget = Budget::new(1_000);
        assert!(budget.allows(i64::MAX));
        budget.spend(i64::MAX);
        assert!(budget.allows(3));
        budget.spend(i64::MIN);
        assert!(budget.allows(4));
        assert!(!Budget::new(0).allows(9));
    }
}
