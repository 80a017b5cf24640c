// SPDX-License-Identifier: GPL-2.0

//! One request slot without a sequence number, used by a frontend that cannot trust the other end
//! to answer, or to answer in time (behaviour, sections 5.1 and 5.4).
//!
//! *Owns* what the frontend knows of the slot. *Callers*: the frontend's transport, under the lock
//! that lets one request at a time into the slot; nothing here waits.
//!
//! # Quarantine
//!
//! The flag [`FLAG_PCIF_ACTIVE`](crate::wire::FLAG_PCIF_ACTIVE) is set by the frontend with a
//! request and cleared by the backend *only*. A request that was given up leaves it set, and as long as it is
//! set nothing is posted: a late answer finds its own request in the slot, clears the flag, and is
//! read by nobody. So no answer can be taken for that of another request, without a number in it.
//! A flag that is set although no request is out is the backend's doing and is treated the same.
//!
//! # Bounds
//!
//! * A request waits [`PATIENCE`] at most. A request that was given up, and an answer that took more
//!   than [`SLOW`], each halve that, down to a quarter; [`QUICK_RUN`] answers within [`LEAST_PATIENCE`]
//!   double it again. So however late a backend answers, and whenever, `n` requests cost a guest 10 s
//!   and `n` times [`SLOW`] at most. It goes no lower than that for a backend that answers: on a
//!   busy host honest backends have been seen to take 750 ms, and their devices must not go away.
//! * Requests in a row that are given up divide what is left by four each, down to [`LEAST_PATIENCE`]; an
//!   answer ends that.
//! * While a request is overdue the others fail at once.
//! * At most [`MOST_LINES`] lines about all this in the life of one link.

/// How long an answer may take, in ns. A backend on a busy host can need a while; a dead one costs
/// this once.
pub const PATIENCE: i64 = 5_000_000_000;
/// The shortest patience, in ns.
pub const LEAST_PATIENCE: i64 = 50_000_000;
/// An answer that took longer counts against the backend, in ns: a quarter of [`PATIENCE`].
pub const SLOW: i64 = PATIENCE >> MOST_HALVINGS;
/// How many quick answers without a slow or missing one between them double the patience.
pub const QUICK_RUN: u8 = 32;
/// How often the patience is halved at most.
const MOST_HALVINGS: u32 = 2;
/// How many lines one link may write into the log.
pub const MOST_LINES: u8 = 8;

/// Why a request is not posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The link is down for good.
    Gone,
    /// The slot is in use: the answer to an earlier request is still out.
    Overdue,
}

/// What to tell the admin. Each is worth one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A request was given up after that many ns.
    GivenUp {
        /// How long it had waited.
        waited: i64,
    },
    /// The backend uses the slot itself.
    SlotTaken,
    /// The backend answers in time again.
    AnswersAgain,
}

/// What the frontend knows of the slot.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    gone: bool,
    /// A request was given up and the flag has not been seen clear since.
    overdue: bool,
    /// How often the patience was halved and not doubled again.
    halvings: u32,
    /// Requests given up in a row.
    misses: u32,
    /// Quick answers since the last change of that.
    quick: u8,
    /// The trouble was told, and its end was not.
    told: bool,
    lines: u8,
}

impl Exchange {
    /// A link that has not been used.
    pub const fn new() -> Self {
        Self {
            gone: false,
            overdue: false,
            halvings: 0,
            misses: 0,
            quick: 0,
            told: false,
            lines: 0,
        }
    }

    /// From now on nothing is posted any more.
    pub fn set_gone(&mut self) {
        self.gone = true;
    }

    /// Whether the link can be used at this moment: what was learnt over it is still worth something.
    pub const fn is_up(&self) -> bool {
        !self.gone && !self.overdue
    }

    /// Asks for the slot; `taken` is its flag as it is now. Gives the longest time in ns to wait for
    /// the answer. After `Ok` the request must be posted and [`Exchange::finish`] be called.
    ///
    /// # Errors
    ///
    /// The reason, with what to tell about it.
    pub fn begin(&mut self, taken: bool) -> Result<i64, (Refusal, Option<Note>)> {
        if self.gone {
            return Err((Refusal::Gone, None));
        }
        if taken {
            let own = self.overdue;
            self.overdue = true;
            let note = if own {
                None
            } else {
                self.trouble(Note::SlotTaken)
            };
            return Err((Refusal::Overdue, note));
        }
        self.overdue = false;
        Ok(self.patience())
    }

    /// Says how the request of the last [`Exchange::begin`] ended after `waited` ns: answered (the flag
    /// was seen clear), or given up. Gives what to tell.
    pub fn finish(&mut self, answered: bool, waited: i64) -> Option<Note> {
        if answered {
            self.misses = 0;
            if waited > SLOW {
                self.halve();
            } else if waited <= LEAST_PATIENCE && self.halvings > 0 {
                self.quick += 1;
                if self.quick == QUICK_RUN {
                    self.quick = 0;
                    self.halvings -= 1;
                }
            }
            if !self.told {
                return None;
            }
            self.told = false;
            return self.line(Note::AnswersAgain);
        }
        self.overdue = true;
        self.misses = self.misses.saturating_add(1);
        self.halve();
        self.trouble(Note::GivenUp { waited })
    }

    /// The longest wait for the next answer, in ns.
    pub fn patience(&self) -> i64 {
        // The first of several requests given up has been counted as a halving.
        let in_a_row = self.misses.saturating_sub(1).saturating_mul(2);
        (PATIENCE >> self.halvings)
            .checked_shr(in_a_row)
            .unwrap_or(0)
            .max(LEAST_PATIENCE)
    }

    fn halve(&mut self) {
        self.halvings = (self.halvings + 1).min(MOST_HALVINGS);
        self.quick = 0;
    }

    /// Trouble is told once, until its end has been told.
    fn trouble(&mut self, note: Note) -> Option<Note> {
        if self.told {
            return None;
        }
        self.told = true;
        self.line(note)
    }

    fn line(&mut self, note: Note) -> Option<Note> {
        if self.lines == MOST_LINES {
            return None;
        }
        self.lines += 1;
        Some(note)
    }
}

impl Default for Exchange {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_posted_while_the_slot_is_taken() {
        let mut link = Exchange::new();
        assert_eq!(link.begin(false), Ok(PATIENCE));
        assert!(matches!(
            link.finish(false, PATIENCE),
            Some(Note::GivenUp { waited: PATIENCE })
        ));
        assert!(!link.is_up());
        for _ in 0..10 {
            assert_eq!(link.begin(true), Err((Refusal::Overdue, None)));
        }
        assert!(link.begin(false).is_ok());
        assert_eq!(link.finish(true, 1), Some(Note::AnswersAgain));
        assert!(link.is_up());
        assert_eq!(link.begin(false), Ok(PATIENCE / 2));
    }

    #[test]
    fn slot_that_the_backend_takes_itself_is_told_once() {
        let mut link = Exchange::new();
        assert_eq!(
            link.begin(true),
            Err((Refusal::Overdue, Some(Note::SlotTaken)))
        );
        assert_eq!(link.begin(true), Err((Refusal::Overdue, None)));
    }

    #[test]
    fn patience_shrinks_with_each_miss_and_comes_back_with_quick_answers() {
        let mut link = Exchange::new();
        let mut spent = 0;
        let mut last = i64::MAX;
        for _ in 0..1000 {
            let patience = link.begin(false).unwrap();
            assert!(patience <= last && patience >= LEAST_PATIENCE);
            if patience > LEAST_PATIENCE {
                spent += patience;
            }
            last = patience;
            link.finish(false, patience);
        }
        assert_eq!(last, LEAST_PATIENCE);
        assert!(spent < 9_000_000_000, "{spent}");
        // One answer, and the backend is taken for a slow one.
        link.finish(true, 0);
        assert_eq!(link.patience(), SLOW);
        let mut answers = 1;
        while link.patience() < PATIENCE {
            link.finish(true, LEAST_PATIENCE);
            answers += 1;
        }
        assert_eq!(answers, 2 * 32);
        // Neither quick nor slow: a reset.
        link.finish(true, SLOW);
        assert_eq!(link.patience(), PATIENCE);
        link.finish(true, SLOW + 1);
        assert_eq!(link.patience(), PATIENCE / 2);
        for _ in 0..100 {
            link.finish(true, LEAST_PATIENCE + 1);
            assert_eq!(link.patience(), PATIENCE / 2);
        }
        for _ in 0..31 {
            link.finish(true, 0);
        }
        // A slow one begins the run anew.
        link.finish(true, SLOW + 1);
        for _ in 0..31 {
            link.finish(true, 0);
        }
        assert_eq!(link.patience(), PATIENCE / 4);
        link.finish(true, 0);
        assert_eq!(link.patience(), PATIENCE / 2);
    }

    /// What requests cost that a backend answers after `takes` ns each, or leaves unanswered when
    /// that is more than the patience.
    fn cost(takes: impl IntoIterator<Item = i64>) -> i64 {
        let mut link = Exchange::new();
        let mut cost = 0;
        for takes in takes {
            let patience = link.begin(false).unwrap();
            let waited = takes.min(patience);
            link.finish(takes < patience, waited);
            cost += waited;
        }
        cost
    }

    /// What an honest backend on a busy host was seen to do.
    #[test]
    fn an_answer_below_a_second_is_always_waited_for() {
        let mut link = Exchange::new();
        for _ in 0..1000 {
            for takes in [750_000_000, 320_000_000, 1_000_000] {
                assert!(link.begin(false).unwrap() > takes);
                link.finish(true, takes);
            }
        }
        assert_eq!(link.patience(), PATIENCE);
    }

    /// S18: answers just before the deadline, every time or now and then.
    #[test]
    fn answers_just_in_time_are_not_paid_for_ever() {
        const REQUESTS: usize = 1000;
        let bound = 10_000_000_000 + REQUESTS as i64 * SLOW;
        for good in 0..100 {
            for bad in [4_900_000_000, 2_000_000_000, 1_300_000_000, i64::MAX] {
                let takes = |at| if at % (good + 1) == good { bad } else { 0 };
                let cost = cost((0..REQUESTS).map(takes));
                assert!(cost <= bound, "{bad} after {good}: {cost}");
            }
        }
        // As late as it can be known to be in time.
        let mut link = Exchange::new();
        let mut cost = 0;
        for _ in 0..REQUESTS {
            let waited = link.begin(false).unwrap() - 1;
            link.finish(true, waited);
            cost += waited;
        }
        assert!(cost <= bound, "{cost}");
    }

    proptest! {
        #[test]
        fn requests_cost_a_quarter_of_the_patience_at_most_in_the_long_run(
            takes in proptest::collection::vec(
                prop_oneof![
                    4 => 0..1_000_000i64,
                    1 => 0..1_500_000_000i64,
                    1 => 0..5_000_000_000i64,
                    1 => Just(i64::MAX),
                ],
                0..500,
            ),
        ) {
            let bound = 10_000_000_000 + takes.len() as i64 * SLOW;
            prop_assert!(cost(takes) <= bound);
        }
    }

    #[test]
    fn lines_are_bounded_whatever_the_backend_does() {
        for pattern in 0u32..256 {
            let mut link = Exchange::new();
            let mut lines = 0;
            for step in 0..1000 {
                let bit = |at: u32| pattern & 1u32.rotate_left(at) != 0;
                match link.begin(bit(step % 8)) {
                    Ok(patience) => {
                        lines += u32::from(link.finish(bit((step + 3) % 8), patience).is_some());
                    }
                    Err((_, note)) => lines += u32::from(note.is_some()),
                }
            }
            assert!(lines <= u32::from(MOST_LINES), "{pattern:x}: {lines}");
        }
    }

    #[test]
    fn link_that_is_gone_stays_so() {
        let mut link = Exchange::new();
        link.set_gone();
        assert!(!link.is_up());
        for taken in [false, true, false] {
            assert_eq!(link.begin(taken), Err((Refusal::Gone, None)));
        }
    }

    /// The other end: takes a copy of a request when it sees the flag, answers when it pleases.
    #[derive(Default)]
    struct Page {
        flag: bool,
        request: u32,
        answer: u32,
        /// The backend's copy, not answered yet.
        copy: Option<u32>,
    }

    /// All orders of: the backend takes, the backend answers, the frontend waits on or gives up.
    #[test]
    fn no_answer_is_ever_taken_for_that_of_another_request() {
        for order in 0u32..1 << 16 {
            let mut choices = (0..16).map(|at| order & 1u32.rotate_left(at) != 0);
            let mut choose = || choices.next().unwrap_or(false);
            let mut page = Page::default();
            let mut link = Exchange::new();
            for request in 1..=8u32 {
                if link.begin(page.flag).is_ok() {
                    page.request = request;
                    page.flag = true;
                    let mut answered = false;
                    for _ in 0..2 {
                        backend(&mut page, &mut choose);
                        if !page.flag {
                            answered = true;
                            break;
                        }
                    }
                    if answered {
                        assert_eq!(page.answer, request, "order {order:x}");
                    }
                    link.finish(answered, 0);
                }
                backend(&mut page, &mut choose);
            }
        }
    }

    fn backend(page: &mut Page, choose: &mut impl FnMut() -> bool) {
        if page.copy.is_none() && page.flag && choose() {
            page.copy = Some(page.request);
        }
        if page.copy.is_some() && choose() {
            page.answer = page.copy.take().unwrap_or(0);
            page.flag = false;
        }
    }
}
