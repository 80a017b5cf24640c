// SPDX-License-Identifier: GPL-2.0

//! How long the host kept its CPUs from the lab.
//!
//! The machines' clocks go on while the host lends its CPUs to others, so that a limit in a kernel ends although
//! nothing in the machine was slow. [`watch`] starts a thread that looks all the time, for as long as the lab runs, and
//! is the only one that adds to the record; every lane may ask [`withheld`] and take [`stops`], which copy what they
//! need, so that nobody keeps the thread waiting. A host that is merely busy with the machines themselves is not to
//! blame: what counts is what the hypervisor below it took ("steal" in `/proc/stat`), and how much later than wanted a
//! thread woke that does next to nothing.

use std::{
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How often the thread looks.
const PERIOD: Duration = Duration::from_millis(250);
/// A thread that wakes so much later has waited for a CPU in an ordinary way.
const ORDINARY: Duration = Duration::from_millis(50);
/// The unit of `/proc/stat`.
const TICK: Duration = Duration::from_millis(10);

static RECORD: Mutex<Record> = Mutex::new(Record {
    stops: Vec::new(),
    last: None,
});

/// A time in which the host withheld something.
#[derive(Clone, Copy)]
struct Stop {
    from: Instant,
    to: Instant,
    withheld: Duration,
}

/// All of them, in their order, and when the thread has looked last.
struct Record {
    stops: Vec<Stop>,
    last: Option<Instant>,
}

/// Those of a time, which ends now.
pub struct Stops {
    stops: Vec<Stop>,
    from: Instant,
    to: Instant,
}

impl Stops {
    fn of(record: &Record, from: Instant, to: Instant) -> Self {
        let first = record.stops.partition_point(|stop| stop.to <= from);
        let mut stops = record.stops[first..].to_vec();
        // What the thread has not seen yet, as it may be kept waiting itself.
        if let Some(last) = record.last {
            let took = to.saturating_duration_since(last);
            let withheld = of(took, Duration::ZERO);
            if !withheld.is_zero() {
                stops.push(Stop {
                    from: last,
                    to,
                    withheld,
                });
            }
        }
        Self { stops, from, to }
    }

    /// One of this length, all of which was withheld, in a time of ten minutes.
    #[cfg(test)]
    pub fn one(length: Duration) -> Self {
        let from = Instant::now();
        let stop = Stop {
            from,
            to: from + length,
            withheld: length,
        };
        Self {
            stops: if length.is_zero() {
                Vec::new()
            } else {
                vec![stop]
            },
            from,
            to: from + Duration::from_secs(600),
        }
    }

    /// How much was withheld.
    pub fn withheld(&self) -> Duration {
        self.between(self.from, self.to)
    }

    /// How much was withheld between two moments; within a stop it is taken as evenly spread.
    fn between(&self, from: Instant, to: Instant) -> Duration {
        let part = |stop: &Stop| {
            let (start, end) = (stop.from.max(from), stop.to.min(to));
            let length = (stop.to - stop.from).as_secs_f64();
            let inside = end.saturating_duration_since(start).as_secs_f64();
            stop.withheld.mul_f64(inside / length)
        };
        self.stops.iter().map(part).sum()
    }

    /// Whether the host withheld at least half of some piece of this length: what had to be done in it was kept waiting
    /// by the host. A piece that has as much of it as any begins where a stop begins or ends where one ends.
    pub fn are_to_blame(&self, length: Duration) -> bool {
        let half = |start: Instant| {
            let start = start.max(self.from);
            self.between(start, (start + length).min(self.to)) >= length / 2
        };
        let mut stops = self.stops.iter();
        stops.any(|stop| half(stop.from) || stop.to.checked_sub(length).is_some_and(half))
    }
}

fn record() -> MutexGuard<'static, Record> {
    RECORD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread.
pub fn watch() {
    thread::spawn(|| {
        let (mut last, mut stolen) = (Instant::now(), steal());
        loop {
            thread::sleep(PERIOD);
            let (now, steal) = (Instant::now(), steal());
            let stop = Stop {
                from: last,
                to: now,
                withheld: of(now - last, steal.saturating_sub(stolen)),
            };
            let mut record = record();
            if !stop.withheld.is_zero() {
                record.stops.push(stop);
            }
            record.last = Some(now);
            drop(record);
            (last, stolen) = (now, steal);
        }
    });
}

/// What was withheld in a period that took so long, in which the hypervisor took so much from each CPU.
fn of(took: Duration, stolen: Duration) -> Duration {
    let late = took.saturating_sub(PERIOD);
    let late = if late > ORDINARY {
        late
    } else {
        Duration::ZERO
    };
    // Two views of the same.
    late.max(stolen).min(took)
}

/// What the hypervisor below this host has taken, from each CPU on average.
fn steal() -> Duration {
    average(&fs::read_to_string("/proc/stat").unwrap_or_default())
}

/// The eighth number of the line for all CPUs, by the number of lines for one.
fn average(stat: &str) -> Duration {
    let word = stat.split_whitespace().nth(8);
    let ticks: u32 = word.and_then(|word| word.parse().ok()).unwrap_or(0);
    let is_cpu = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
    let cpus = stat.lines().filter(is_cpu).count().max(1);
    TICK * ticks / u32::try_from(cpus).unwrap_or(u32::MAX)
}

/// How much the host has withheld since then.
pub fn withheld(since: Instant) -> Duration {
    stops(since).withheld()
}

/// What it has withheld since then.
pub fn stops(since: Instant) -> Stops {
    let record = record();
    Stops::of(&record, since, Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// What was withheld, as (from, to, withheld), in a time of 100 s; all in milliseconds.
    fn stops(start: Instant, list: &[(u64, u64, u64)], from: u64) -> Stops {
        let stop = |&(from, to, withheld)| Stop {
            from: start + ms(from),
            to: start + ms(to),
            withheld: ms(withheld),
        };
        let record = Record {
            stops: list.iter().map(stop).collect(),
            last: None,
        };
        Stops::of(&record, start + ms(from), start + ms(100_000))
    }

    #[test]
    fn an_ordinary_delay_is_not_the_hosts() {
        assert_eq!(of(ms(299), ms(0)), ms(0));
        assert_eq!(of(ms(2250), ms(0)), ms(2000));
        assert_eq!(of(ms(260), ms(200)), ms(200));
        assert_eq!(of(ms(300), ms(400)), ms(300));
    }

    #[test]
    fn what_was_withheld_is_added_up_within_its_time() {
        let start = Instant::now();
        let stops = stops(start, &[(0, 1000, 800), (3000, 5000, 2000)], 0);
        let between = |from, to| stops.between(start + ms(from), start + ms(to));
        assert_eq!(stops.withheld(), ms(2800));
        assert_eq!(between(500, 4000), ms(1400));
        assert_eq!(between(1000, 3000), ms(0));
    }

    #[test]
    fn the_host_is_to_blame_for_what_it_kept_waiting_for_half_of_the_time() {
        let start = Instant::now();
        let blamed = |list: &[_], length| stops(start, list, 0).are_to_blame(ms(length));
        assert!(blamed(&[(50_000, 53_000, 2800)], 2000));
        assert!(blamed(&[(50_000, 51_000, 1000)], 2000));
        assert!(!blamed(&[(50_000, 51_000, 990)], 2000));
        assert!(!blamed(&[(50_000, 53_000, 2800)], 21_000));
        // A slow host: a tenth of each second is ours, for half a minute.
        let slow: Vec<_> = (0..30).map(|n| (n * 1000, (n + 1) * 1000, 900)).collect();
        assert!(blamed(&slow, 21_000));
        // Two stops far apart are not one.
        assert!(!blamed(&[(0, 1000, 700), (60_000, 61_000, 700)], 2000));
        // What was before does not count.
        let since = |from| stops(start, &[(0, 3000, 3000)], from).are_to_blame(ms(2000));
        assert!(!since(3000));
        assert!(!since(2500));
        assert!(since(1500));
    }

    #[test]
    fn what_the_thread_has_not_seen_counts_already() {
        let start = Instant::now();
        let record = Record {
            stops: Vec::new(),
            last: Some(start),
        };
        let stops = |to| Stops::of(&record, start, start + ms(to));
        assert_eq!(stops(299).withheld(), ms(0));
        assert_eq!(stops(10_250).withheld(), ms(10_000));
        assert!(stops(10_250).are_to_blame(ms(10_000)));
    }

    #[test]
    fn the_kernel_counts_what_was_taken() {
        let text = "cpu  6760637 112777 875193 3623995 14960 0 6220 1624 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\ncpu1 1\nintr 5\n";
        assert_eq!(average(text), ms(8120));
        assert_eq!(average(""), ms(0));
    }
}
