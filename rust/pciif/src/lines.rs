// SPDX-License-Identifier: GPL-2.0

//! Log lines that another domain can provoke (XSA-43): how many are written, and what is said about
//! the rest.
//!
//! *Owns* a debt and a count. *Callers*: whoever is about to write such a line, in any context: nothing
//! here waits, prints or reads a clock. *Lock*: the owner's.
//!
//! Every line that is left out is counted, and the next one that is written carries the number. So the
//! log never looks quieter than the peer was.

use crate::bucket::{Bucket, Limit};
use core::fmt::{self, Display, Formatter};

/// How many lines were left out before one that is written; as text, what to put at the end of that one,
/// nothing if there are none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut(pub u32);

impl Display for LeftOut {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} such lines were left out before)"),
        }
    }
}

/// A limit for lines.
#[derive(Clone, Debug)]
pub struct Lines {
    written: Bucket,
    /// Since the last one that was written.
    left_out: u32,
}

impl Lines {
    /// None was written yet.
    pub const fn new(limit: Limit) -> Self {
        Lines {
            written: Bucket::new(limit),
            left_out: 0,
        }
    }

    /// Whether a line may be written at `now`, in ns; if so, what to say in it about those that were left
    /// out. Otherwise it is one of those.
    pub fn line(&mut self, now: i64) -> Option<LeftOut> {
        if self.written.take(now, 1).is_err() {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        Some(LeftOut(core::mem::take(&mut self.left_out)))
    }

    /// Whether a line could be written at `now`; counts nothing.
    pub fn is_room(&mut self, now: i64) -> bool {
        self.written.wait(now) == 0
    }

    /// Somebody else has written one, without asking.
    pub fn charge(&mut self) {
        self.written.charge(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const SECOND: i64 = 1_000_000_000;

    /// R3.
    #[test]
    fn each_line_left_out_is_told_by_the_next_one() {
        let mut lines = Lines::new(Limit::new(1, 60 * SECOND, 1));
        assert_eq!(lines.line(0), Some(LeftOut(0)));
        assert_eq!(lines.line(0), Some(LeftOut(0)));
        for second in 0..59 {
            assert_eq!(lines.line(second * SECOND), None);
        }
        assert_eq!(lines.line(60 * SECOND), Some(LeftOut(59)));
        assert_eq!(lines.line(120 * SECOND), Some(LeftOut(0)));
    }

    #[test]
    fn lines_of_others_take_room_and_are_not_left_out() {
        let mut lines = Lines::new(Limit::new(1, 60 * SECOND, 0));
        assert!(lines.is_room(0));
        lines.charge();
        assert!(!lines.is_room(0));
        assert_eq!(lines.line(SECOND), None);
        assert_eq!(lines.line(60 * SECOND), Some(LeftOut(1)));
    }

    #[test]
    fn lines_that_were_left_out_are_told_when_there_are_any() {
        assert_eq!(LeftOut(0).to_string(), "");
        assert_eq!(
            LeftOut(7).to_string(),
            " (7 such lines were left out before)"
        );
    }
}
