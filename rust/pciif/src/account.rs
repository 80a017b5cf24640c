// SPDX-License-Identifier: GPL-2.0

//! What one guest may cost the backend's domain: one account for each guest, whatever it has.
//!
//! *Owns* the debts and counters of one guest; [`Together`] those of all guests. *Callers*: the event
//! channel's handler (atomic), the work items that serve the guest (sleep), and whoever writes a log
//! line, resets a function, uses the store or takes memory because the guest wants it; readers of
//! debugfs. *Locks*: the owner's, one for each account and one for [`Together`]; as the handler takes
//! them they spin with interrupts off. Order: an account, then [`Together`]; inside them nothing is
//! taken, and nothing here waits, allocates or reads a clock. No `now` and no duration comes from a
//! guest. An account lives as long as the guest's backend, not as its connection: who connects again
//! has the debts of before.
//!
//! Each limit is a [`Bucket`], which says how a debt is carried on and what a clock may do, or a
//! [`Gauge`].
//!
//! # The numbers
//!
//! | what | limit | why |
//! |---|---|---|
//! | interrupt context, one guest | 40 % of a CPU over any 20 ms | A request that the handler serves saves two switches of tasks. By the figures of docs/bench.md a read should keep the handler for about a third of the time that the guest needs for it, so that a guest alone stays below; to be seen in debugfs. |
//! | interrupt context, all guests | 50 % over any 20 ms | Half of a CPU is left even to a dom0 that has only one. |
//! | one stay | 200 us, no two longer ones in a row | Five us of a read are the device's in docs/bench.md. One that takes longer waits for hardware: others should not. |
//! | work items and interrupt context together | 50 % of a CPU over any second, while others want to run | The scheduler is fair between tasks, but a guest has not earned more than half. A domain with one CPU has both on it: with a share of its own for each that would be 85 % of it. |
//! | runs of the work item, each for a request or for an event without one | 1024 at once, then 512 a second, while others want to run | What an event costs on its way to the work item, and Xen, nobody measures: in the emulator as much as what is served, so that programs of a dom0 with one CPU waited three times as long beside 1100 a second. A function that is found and its driver's start had 288 where the handler served next to none: three start at once, then two a second. |
//! | switches: MSI and MSI-X on and off, power states, enabling | 256 at once, then 32 a second | Each takes locks of the kernel that every driver needs which has interrupts, or of the whole bus. A driver that starts and stops needs about ten: 32 functions do that at once. |
//! | log lines | 20 in any 10 min, and one more once | One a minute, ten at once: enough to tell a story from its beginning, and 1440 lines a day at worst. |
//! | resets that the guest orders | 4 at once, then one a second | A driver resets a function once or twice when it starts. A reset keeps a function's lock for 100 ms and more. |
//! | runs on a change in the store | 128 at once, then 16 a second | A handshake has four, a hot-plug four; 31 hot-plugs one after the other have 124. |
//! | operations on the store | 2048 at once, then 256 a second | A start with 31 functions has some 300, and 31 hot-plugs some 1800. One costs dom0 about 90 us in two tasks, so 256 are 2.3 % of a CPU. |
//! | memory | 4 MiB | MSI-X is the dearest: about 1 KiB for a vector. 32 functions with the 128 vectors that the protocol allows. |
//! | waiting for answers to errors | 10 s at once, then 6 s a minute | see [`crate::patience`] |
//!
//! # Interrupt context: why the bound holds
//!
//! [`Account::enter`] charges [`LONGEST_STAY`] before the stay and [`Account::leave`] corrects that, so a
//! stay on another CPU counts from its beginning. With the rate *r*, the room *a* and the last stay of
//! a window *c*, all stays in a window *w* take at most `a + r w + (1 - r) c`, and for stays of
//! several guests at once `a + r w + c`. For one guest that is 0.17 + 0.385 × 20 + 0.615 × 0.2 =
//! 7.993 ms; for all 0.78 + 0.45 × 20 + 0.2 = 9.98 ms.
//!
//! What a stay is longer than [`LONGEST_STAY`] comes on top, once: nothing is admitted until it is
//! paid, and over longer times the shares are 38.5 and 45 %. After such a stay the work item serves the
//! guest, until a number of accesses in a row have taken half of that time at most. It is 8, and
//! doubles with each slow stay up to 256; every 256 stays that were not slow halve it again. So a guest
//! that knows how to be slow only now and then pays with its own speed.
//!
//! A guest whose reads take 40 us each begins to meet its limit at one read in 104 us.

use crate::bucket::{Bucket, Gauge, Limit};
use crate::lines::{LeftOut, Lines};
use crate::patience::Patience;
use core::fmt::{self, Display, Formatter};

/// The longest stay in interrupt context that is none too many, in ns.
pub const LONGEST_STAY: i64 = 200_000;
/// What a stay costs at least, in ns: the way in and out, which nobody measures.
const LEAST_STAY: i64 = 1_000;

const INTERRUPT: Limit = Limit::new(385, 1_000, 170_000);
const INTERRUPT_OF_ALL: Limit = Limit::new(45, 100, 780_000);

/// An access of the work item is fast when it takes at most this, in ns.
const FAST: i64 = LONGEST_STAY / 2;
/// Fast accesses in a row after the first slow stay.
const FEWEST_FAST: u16 = 8;
/// How often that number doubles.
const MOST_DOUBLINGS: u8 = 5;
/// Stays that were not slow and that make up for one that was.
const FORGIVEN_AFTER: u16 = 256;

/// 30 ms ahead and a turn of 10 ms: 0.46 s + 30 ms + 0.54 × 10 ms are 495 ms.
const WORKER: Limit = Limit::new(46, 100, 30_000_000);
/// What the lines of a guest may be; see [`Lines`].
const LINES: Limit = Limit::new(1, 60_000_000_000, 9);
const TURNS: Limit = Limit::new(512, 1_000_000_000, 1023);
const SWITCHES: Limit = Limit::new(32, 1_000_000_000, 255);
const RESETS: Limit = Limit::new(1, 1_000_000_000, 3);
const STORE_RUNS: Limit = Limit::new(16, 1_000_000_000, 127);
const STORE_OPERATIONS: Limit = Limit::new(256, 1_000_000_000, 2047);
const MEMORY: u64 = 4 << 20;

/// Interrupt context, for all guests.
#[derive(Clone, Debug)]
pub struct Together {
    interrupt: Bucket,
}

impl Together {
    /// Nothing was spent.
    pub const fn new() -> Self {
        Together {
            interrupt: Bucket::new(INTERRUPT_OF_ALL),
        }
    }

    /// Whether one more stay of any guest may begin at `now`, in ns. After `true`,
    /// [`Together::leave`] must follow.
    pub fn enter(&mut self, now: i64) -> bool {
        self.interrupt.take(now, LONGEST_STAY).is_ok()
    }

    /// A stay has ended; it took that many ns.
    pub fn leave(&mut self, took: i64) {
        correct(&mut self.interrupt, took);
    }
}

impl Default for Together {
    fn default() -> Self {
        Self::new()
    }
}

/// Replaces what a stay was charged at its beginning by what it took.
fn correct(interrupt: &mut Bucket, took: i64) {
    interrupt.charge(took.max(LEAST_STAY).saturating_sub(LONGEST_STAY));
}

/// Whether the handler serves the guest, or accesses have to become fast again first.
#[derive(Clone, Debug, Default)]
struct Pace {
    /// Fast accesses that are still to come; 0: the handler serves.
    needed: u16,
    /// Slow stays that are not forgiven.
    slow: u8,
    /// Stays since then that were not slow.
    fast: u16,
}

impl Pace {
    fn stayed(&mut self, took: i64) {
        if took > LONGEST_STAY {
            self.slow = self.slow.saturating_add(1).min(MOST_DOUBLINGS + 1);
            self.fast = 0;
            self.needed = self.run();
        } else if self.slow > 0 {
            self.fast += 1;
            if self.fast == FORGIVEN_AFTER {
                self.fast = 0;
                self.slow -= 1;
            }
        }
    }

    fn worked(&mut self, took: i64) {
        if self.needed == 0 {
            return;
        }
        self.needed = if took <= FAST {
            self.needed - 1
        } else {
            self.run()
        };
    }

    /// How many fast accesses in a row are wanted.
    fn run(&self) -> u16 {
        FEWEST_FAST << self.slow.saturating_sub(1).min(MOST_DOUBLINGS)
    }
}

/// What is shown of an account, from its beginning; nothing is decided by it.
#[derive(Clone, Debug, Default)]
struct Spent {
    interrupt_ns: u64,
    stays: u64,
    slow_stays: u64,
    /// Requests that the handler did not serve because of the account.
    refused_stays: u64,
    worker_ns: u64,
    turns: u64,
    pauses: u64,
    switches: u64,
    lines: u64,
    lines_left_out: u64,
    resets: u64,
    reset_waits: u64,
    store_runs: u64,
    store_operations: u64,
    store_pauses: u64,
    refused_memory: u64,
}

fn count(counter: &mut u64, more: u64) {
    *counter = counter.saturating_add(more);
}

fn positive(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

/// The account of one guest.
#[derive(Clone, Debug)]
pub struct Account {
    interrupt: Bucket,
    pace: Pace,
    worker: Bucket,
    turns: Bucket,
    switches: Bucket,
    lines: Lines,
    /// Something that the kernel itself reports has failed before.
    failed: bool,
    resets: Bucket,
    store_runs: Bucket,
    store_operations: Bucket,
    memory: Gauge,
    patience: Patience,
    spent: Spent,
}

impl Account {
    /// Of a guest that has cost nothing yet.
    pub fn new() -> Self {
        Account {
            interrupt: Bucket::new(INTERRUPT),
            pace: Pace::default(),
            worker: Bucket::new(WORKER),
            turns: Bucket::new(TURNS),
            switches: Bucket::new(SWITCHES),
            lines: Lines::new(LINES),
            failed: false,
            resets: Bucket::new(RESETS),
            store_runs: Bucket::new(STORE_RUNS),
            store_operations: Bucket::new(STORE_OPERATIONS),
            memory: Gauge::new(MEMORY),
            patience: Patience::new(),
            spent: Spent::default(),
        }
    }

    /// Whether the handler may look at a request at `now`, in ns. `all` asks [`Together::enter`]; it
    /// is only called when this account has nothing against it. Atomic.
    ///
    /// After `true`, [`Account::leave`] and [`Together::leave`] must follow, whatever came of the
    /// request. After `false` the work item serves it.
    pub fn enter(&mut self, now: i64, all: impl FnOnce() -> bool) -> bool {
        let may = self.pace.needed == 0 && self.interrupt.wait(now) == 0 && all();
        if may {
            self.interrupt.charge(LONGEST_STAY);
            // What the stay costs the work items is owed from now on.
            self.worker.advance(now);
        } else {
            count(&mut self.spent.refused_stays, 1);
        }
        may
    }

    /// A stay in interrupt context has ended; it took that many ns. Atomic.
    pub fn leave(&mut self, took: i64) {
        correct(&mut self.interrupt, took);
        // The work items pay for it, too. The handler does not ask there: its own share is the smaller one.
        self.worker.charge(took.max(0));
        self.pace.stayed(took);
        count(&mut self.spent.stays, 1);
        count(&mut self.spent.slow_stays, u64::from(took > LONGEST_STAY));
        count(&mut self.spent.interrupt_ns, positive(took));
    }

    /// How long a work item has to sleep before it serves the guest, in ns; 0 when it may go on. To
    /// be asked at the beginning of each turn, which is one request or several, 10 ms at most where
    /// that can be known.
    pub fn pause(&mut self, now: i64) -> i64 {
        let wait = self.worker.wait(now).max(self.turns.wait(now));
        let wait = wait.max(self.switches.wait(now));
        count(&mut self.spent.pauses, u64::from(wait > 0));
        wait
    }

    /// A request has made the kernel switch something that takes locks which others need. It is paid before the
    /// work item serves the next request.
    pub fn switched(&mut self) {
        self.switches.charge(1);
        count(&mut self.spent.switches, 1);
    }

    /// A turn of a work item has ended; it kept a CPU for that many ns. `contended`: somebody else wanted
    /// to run there meanwhile. Who was alone owes nothing new that would make it pause.
    pub fn worked(&mut self, took: i64, contended: bool) {
        match contended {
            true => self.worker.charge(took.max(0)),
            false => self.worker.charge_softly(took.max(0)),
        }
        count(&mut self.spent.worker_ns, positive(took));
    }

    /// The work item has run for a request, or for an event without one. `contended`: somebody else wanted its
    /// CPU then. Who was alone owes nothing new that would make it pause.
    pub fn took_turn(&mut self, contended: bool) {
        match contended {
            true => self.turns.charge(1),
            false => self.turns.charge_softly(1),
        }
        count(&mut self.spent.turns, 1);
    }

    /// A work item has served a request that the handler may serve, too; it took that many ns. This is
    /// what decides whether accesses are fast again.
    pub fn accessed(&mut self, took: i64) {
        self.pace.worked(took);
    }

    /// Whether a line that the guest can provoke may be written at `now`; if so, what to say in it about
    /// those that were left out.
    pub fn line(&mut self, now: i64) -> Option<LeftOut> {
        let line = self.lines.line(now);
        let counter = match line {
            Some(_) => &mut self.spent.lines,
            None => &mut self.spent.lines_left_out,
        };
        count(counter, 1);
        line
    }

    /// Whether something may be tried at `now` whose failure the kernel itself writes into the log,
    /// without asking us: for a guest for which that has failed before, only when there is a line left.
    /// After a failure, [`Account::failed_aloud`] must follow.
    pub fn may_fail_aloud(&mut self, now: i64) -> bool {
        let may = !self.failed || self.lines.is_room(now);
        count(&mut self.spent.lines_left_out, u64::from(!may));
        may
    }

    /// Such a thing has failed: that was a line. The first one may be one too many, once.
    pub fn failed_aloud(&mut self) {
        self.failed = true;
        self.lines.charge();
        count(&mut self.spent.lines, 1);
    }

    /// Asks for a reset that the guest has ordered, at `now`.
    ///
    /// # Errors
    ///
    /// The time in ns until one is allowed. Nothing is charged: who waits asks again.
    pub fn reset(&mut self, now: i64) -> Result<(), i64> {
        let result = self.resets.take(now, 1);
        let counter = match result {
            Ok(()) => &mut self.spent.resets,
            Err(_) => &mut self.spent.reset_waits,
        };
        count(counter, 1);
        result
    }

    /// How long the backend has to wait before it looks at the store because something has changed
    /// there, in ns; 0 when it may now. What has changed meanwhile is seen in the one run after the wait.
    pub fn store_pause(&mut self, now: i64) -> i64 {
        let wait = self.store_runs.wait(now);
        let wait = wait.max(self.store_operations.wait(now));
        count(&mut self.spent.store_pauses, u64::from(wait > 0));
        wait
    }

    /// Such a run has ended; it made that many reads and writes of the store. It is not cut short, and pays
    /// before the next one.
    pub fn store_run(&mut self, operations: u32) {
        self.store_runs.charge(1);
        self.store_operations.charge(i64::from(operations));
        count(&mut self.spent.store_runs, 1);
        count(&mut self.spent.store_operations, u64::from(operations));
    }

    /// Takes `bytes` of memory for the guest, if that fits. After `true`, [`Account::give_back`] must
    /// follow when they are freed.
    pub fn allocate(&mut self, bytes: u64) -> bool {
        let fits = self.memory.take(bytes);
        count(&mut self.spent.refused_memory, u64::from(!fits));
        fits
    }

    /// Memory of the guest was freed.
    pub fn give_back(&mut self, bytes: u64) {
        self.memory.give_back(bytes);
    }

    /// Memory that the guest has now, in bytes.
    pub const fn memory(&self) -> u64 {
        self.memory.used()
    }

    /// How long the guest may take over its part in a recovery.
    pub fn patience(&mut self) -> &mut Patience {
        &mut self.patience
    }
}

impl Default for Account {
    fn default() -> Self {
        Self::new()
    }
}

/// One line without its end: what the guest has cost, and how often it was held back.
impl Display for Account {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let spent = &self.spent;
        write!(
            f,
            "interrupt_us={} stays={} slow={} refused={} by_worker={}",
            spent.interrupt_ns / 1_000,
            spent.stays,
            spent.slow_stays,
            spent.refused_stays,
            u8::from(self.pace.needed > 0),
        )?;
        write!(
            f,
            " worker_us={} turns={} pauses={} switches={}",
            spent.worker_ns / 1_000,
            spent.turns,
            spent.pauses,
            spent.switches
        )?;
        write!(
            f,
            " lines={} left_out={}",
            spent.lines, spent.lines_left_out
        )?;
        write!(
            f,
            " resets={} reset_waits={}",
            spent.resets, spent.reset_waits
        )?;
        write!(
            f,
            " store_runs={} store_operations={} store_pauses={}",
            spent.store_runs, spent.store_operations, spent.store_pauses
        )?;
        write!(
            f,
            " bytes={} most_bytes={} refused_bytes={}",
            self.memory.used(),
            self.memory.most(),
            spent.refused_memory
        )?;
        write!(f, " recovery_ms={}", self.patience.waited() / 1_000_000)
    }
}
