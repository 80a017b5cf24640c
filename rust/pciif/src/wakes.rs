// SPDX-License-Identifier: GPL-2.0

//! Tells events that were lost from a virtual CPU that was not scheduled.
//!
//! *Owns* two counts. *Callers*: the frontend's transport, under the lock of its request slot; nothing
//! here waits.
//!
//! A frontend waits in the hypervisor for an event, with a deadline. If the event never comes, the wait
//! ends at the deadline, although the answer has been there for long. On a busy host the wait can take just
//! as long with its event: the virtual CPU was runnable and had no turn. One such wait proves nothing, but
//! these two spread differently. Delays of the scheduler are the rarer the longer they are, so there are
//! more of them below the deadline than just after it. Lost events only end at the deadline. So the
//! waits just below the deadline measure the host, and what is found after the deadline is held against
//! them.

/// How waits ended whose answer was there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wakes {
    /// In the second half of the longest wait: only a busy host does that.
    slow: u32,
    /// Just after the deadline.
    at_deadline: u32,
    told: bool,
}

impl Wakes {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            slow: 0,
            at_deadline: 0,
            told: false,
        }
    }

    /// A wait of at most `longest` ns took `took` ns, and the answer was there at its end. Gives `true`
    /// once, when more waits ended at their deadline than the host explains.
    pub fn note(&mut self, took: i64, longest: i64) -> bool {
        if took < longest / 2 {
            return false;
        }
        // Long after the deadline nobody knows what ended the wait.
        if took >= longest && took - longest < longest / 8 {
            self.at_deadline = self.at_deadline.saturating_add(1);
        } else {
            self.slow = self.slow.saturating_add(1);
        }
        let lost = self.at_deadline > self.slow;
        lost && !core::mem::replace(&mut self.told, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;
    const LONGEST: i64 = 1_000 * MS;

    #[test]
    fn a_lost_event_on_a_quiet_host_is_told_once() {
        let mut wakes = Wakes::new();
        for took in [0, 1, 30 * MS, 499 * MS] {
            assert!(!wakes.note(took, LONGEST));
        }
        assert!(wakes.note(1_003 * MS, LONGEST));
        assert!(!wakes.note(1_003 * MS, LONGEST));
    }

    #[test]
    fn a_busy_host_explains_what_lies_beside_its_other_delays() {
        let mut wakes = Wakes::new();
        // As measured with four virtual CPUs of a guest on two busy CPUs.
        for took in [522, 579, 1_042, 883, 1_300] {
            assert!(!wakes.note(took * MS, LONGEST), "{took}");
        }
        // Not more than that.
        for _ in 0..3 {
            assert!(!wakes.note(1_000 * MS, LONGEST));
        }
        assert!(wakes.note(1_000 * MS, LONGEST));
    }

    #[test]
    fn the_ends_of_the_range_are_sound() {
        let mut wakes = Wakes::new();
        for took in [i64::MIN, -1, 0] {
            assert!(!wakes.note(took, LONGEST));
        }
        assert!(!wakes.note(i64::MAX, LONGEST));
        assert!(!wakes.note(LONGEST, LONGEST));
        assert!(!wakes.note(1, 0));
    }
}
