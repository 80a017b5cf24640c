// SPDX-License-Identifier: GPL-2.0

//! Runs cases, in several machines at once: most of a case is waiting for one guest, so that two machines on
//! two CPUs take little more than half of the time.
//!
//! A lane is a thread with one machine at a time. It takes the next case that its machine can run, and boots
//! another machine when there is none. Each case finds dom0 as the one before it has found it, so their order
//! and their lane make no difference.

use crate::{
    boot,
    cases::{Case, Counts, Lab},
    files, host,
    image::{Images, Kernel, Paths},
    images, logs,
    machine::{Machine, Profile},
    say,
};
use anyhow::{anyhow, Context, Result};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        mpsc::{self, Receiver, RecvTimeoutError},
        Arc, Mutex, MutexGuard, PoisonError,
    },
    thread,
    time::{Duration, Instant},
};

/// Minutes each: begun first, so that no lane has one of them left when the others are done. Those that load
/// both CPUs are apart.
const LONG: &[&str] = &[
    "seed_3",
    "check_86",
    "every_guest_connects_back_c",
    "check_79",
    "check_78",
    "every_guest_connects_back_rust",
    "a_release_is_waited_for",
];

/// What the cases are run with.
pub struct Plan<'a> {
    /// Where everything is.
    pub paths: &'a Paths,
    /// `c` or `rust`.
    pub back: &'a str,
    /// `c` or `rust`.
    pub front: &'a str,
    /// How often.
    pub counts: Counts,
    /// How long each case may take.
    pub limit: Option<Duration>,
    /// Virtual CPUs of dom0, instead of each profile's.
    pub vcpus: Option<u32>,
}

impl Plan<'_> {
    /// Whether the case's machine needs both CPUs of the host.
    fn is_alone(&self, case: &Case) -> bool {
        self.vcpus.unwrap_or(case.profile.vcpus) > 1
    }
}

/// What came of it.
#[derive(Default)]
pub struct Tally {
    begun: usize,
    /// Cases.
    pub passed: usize,
    /// A line for each case that failed: its name and why.
    pub failed: Vec<String>,
    /// `xl` calls.
    pub repeated: u32,
    /// Lines of kernels for which the host is to blame.
    pub excused: usize,
    /// Names of machines that lost an interrupt.
    pub lost: Vec<&'static str>,
    /// Names of machines that do not boot.
    pub broken: Vec<&'static str>,
    /// Each case with its seconds; the longest first at the end.
    pub times: Vec<(f32, &'static str)>,
}

impl Tally {
    /// Says that a case failed, and keeps it for the end, where nobody has to look for it.
    fn fail(&mut self, case: &str, why: &str) {
        say!("    FAILED: {case}: {why}");
        self.failed.push(format!("{case}: {}", head(why)));
    }
}

/// The first lines of a text, which may be long: what a program in the machine printed stands in it.
fn head(text: &str) -> String {
    const LINES: usize = 12;
    let mut lines: Vec<_> = text.lines().take(LINES).collect();
    if text.lines().count() > LINES {
        lines.push("... (more in the log)");
    }
    lines.join("\n    ")
}

/// What the lanes share.
struct Queue<'a> {
    plan: &'a Plan<'a>,
    port: u16,
    total: usize,
    waiting: Mutex<Vec<&'static Case>>,
    tally: Mutex<Tally>,
    images: Mutex<Vec<(Kernel, Arc<Images>)>>,
    /// What each lane does, and since when.
    at_work: Mutex<BTreeMap<String, Instant>>,
}

/// A lane that does one thing for so long is named, and named again: who watches, or reads how a run was cut
/// off, sees where the time goes.
const NAMED_AFTER: Duration = Duration::from_secs(300);

/// A case for which the host withheld less is as always.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// How many machines this host can have at once: a CPU and 5 GiB for each, and four are enough.
pub fn most() -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    cpus.min(available_kib(&memory) / (5 << 20)).clamp(1, 4)
}

fn available_kib(meminfo: &str) -> usize {
    let mut lines = meminfo.lines();
    let line = lines.find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Runs the cases in at most `jobs` lanes; then, one after the other, those whose dom0 needs both CPUs of
/// the host.
pub fn run(plan: &Plan<'_>, mut cases: Vec<&'static Case>, jobs: usize) -> Result<Tally> {
    // A stable sort.
    cases.sort_by_key(|case| {
        LONG.iter()
            .position(|l| case.name.contains(l))
            .unwrap_or(99)
    });
    let queue = Queue {
        plan,
        port: files::serve()?,
        total: cases.len(),
        waiting: Mutex::default(),
        tally: Mutex::default(),
        images: Mutex::default(),
        at_work: Mutex::default(),
    };
    let (alone, beside) = cases.into_iter().partition(|case| plan.is_alone(case));
    queue.all(beside, jobs);
    queue.all(alone, 1);
    let mut tally = queue
        .tally
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    tally.times.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(tally)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue<'_> {
    /// Runs these cases in at most `jobs` lanes. A few are not worth a second boot.
    fn all(&self, cases: Vec<&'static Case>, jobs: usize) {
        let lanes = jobs.min(cases.len().div_ceil(4)).max(1);
        *lock(&self.waiting) = cases;
        if lanes > 1 {
            say!("{lanes} machines at once; each line says from which it is");
        }
        let out = &self.plan.paths.out;
        let panics = thread::scope(|scope| {
            let (done, lanes_are_done) = mpsc::channel::<()>();
            scope.spawn(move || self.name_long_work(&lanes_are_done));
            let lane = |number: usize| {
                scope.spawn(move || {
                    if lanes == 1 {
                        return self.lane(out);
                    }
                    say::this_is_lane(number);
                    self.lane(&out.join(number.to_string()));
                })
            };
            let lanes: Vec<_> = (1..=lanes).map(lane).collect();
            let ends = lanes.into_iter().map(|lane| lane.join());
            let panics = ends.filter(Result::is_err).count();
            drop(done);
            panics
        });
        let left: Vec<_> = lock(&self.waiting).drain(..).collect();
        let mut tally = lock(&self.tally);
        for _ in 0..panics {
            tally.fail("a case", "the lab itself panicked in it");
        }
        for case in left {
            tally.fail(case.name, "its machine does not boot");
        }
    }

    /// Until the other end of the channel is gone.
    fn name_long_work(&self, lanes_are_done: &Receiver<()>) {
        while lanes_are_done.recv_timeout(NAMED_AFTER / 5) == Err(RecvTimeoutError::Timeout) {
            for (what, start) in &*lock(&self.at_work) {
                if start.elapsed() >= NAMED_AFTER {
                    say!("    {} s by now: {what}", start.elapsed().as_secs());
                }
            }
        }
    }

    /// Does a piece of work that has a name.
    fn named<T>(&self, what: &str, work: impl FnOnce() -> T) -> T {
        lock(&self.at_work).insert(what.to_owned(), Instant::now());
        let result = work();
        lock(&self.at_work).remove(what);
        result
    }

    /// The next case: one for this machine if there is any, else one whose machine can be booted.
    fn next(&self, profile: Option<&Profile>) -> Option<&'static Case> {
        let mut waiting = lock(&self.waiting);
        let fits = |case: &&Case| profile.is_some_and(|p| p.name == case.profile.name);
        let boots = |case: &&Case| !lock(&self.tally).broken.contains(&case.profile.name);
        let at = waiting.iter().position(fits);
        let at = at.or_else(|| waiting.iter().position(boots))?;
        Some(waiting.remove(at))
    }

    /// Works until nothing is left.
    fn lane(&self, out: &Path) {
        let mut machine: Option<(Machine, &'static Profile)> = None;
        while let Some(case) = self.next(machine.as_ref().map(|(_, profile)| *profile)) {
            let here = match machine.take() {
                Some((here, profile)) if profile.name == case.profile.name => here,
                other => {
                    self.end(other);
                    let what = format!("machine \"{}\" for {}", case.profile.name, case.name);
                    match self.named(&what, || self.boot(out, case.profile)) {
                        Ok(here) => here,
                        Err(e) => {
                            say!("machine \"{}\": {e:#}", case.profile.name);
                            // For another lane, if that has such a machine.
                            lock(&self.waiting).insert(0, case);
                            continue;
                        }
                    }
                }
            };
            match self.named(case.name, || self.case(case, here, out)) {
                Ok((here, true)) => machine = Some((here, case.profile)),
                // Whatever is wrong with it, the next case does not inherit it.
                Ok((here, false)) => self.end(Some((here, case.profile))),
                Err(e) => lock(&self.tally).fail(case.name, &format!("{e:#}")),
            }
        }
        self.end(machine);
    }

    /// Takes leave of a machine that is not needed any more.
    fn end(&self, machine: Option<(Machine, &'static Profile)>) {
        if let Some((machine, _)) = machine {
            let mut tally = lock(&self.tally);
            tally.repeated += machine.xl_repeated.get();
            tally.excused += machine.excused.get();
        }
    }

    /// Runs one case. Gives the machine, and whether it can be used again.
    fn case(&self, case: &'static Case, machine: Machine, out: &Path) -> Result<(Machine, bool)> {
        self.announce(case);
        let mut machine = machine;
        let mut start = Instant::now();
        let mut result = self.once(case, &machine);
        // The one reason to begin a case again, once in a run: there is no machine any more.
        let first = lock(&self.tally).lost.is_empty();
        let lost = (result.is_err() && first).then(|| machine.lost_interrupt());
        let lost = lost.flatten();
        if let Some(lost) = lost {
            say!("    the emulator lost an interrupt: {lost}; begun again in a new machine");
            {
                let mut tally = lock(&self.tally);
                tally.lost.push(case.profile.name);
                tally.repeated += machine.xl_repeated.get();
                tally.excused += machine.excused.get();
            }
            drop(machine);
            machine = self.boot(out, case.profile)?;
            start = Instant::now();
            result = self.once(case, &machine);
        }
        let seconds = start.elapsed().as_secs_f32();
        let withheld = host::withheld(start);
        if withheld >= WORTH_A_LINE {
            say!(
                "    the host withheld its CPUs for {:.1} of {seconds:.1} s",
                withheld.as_secs_f32()
            );
        }
        if result.is_err() {
            report(&machine);
        }
        let result = with_logs(result, logs::read(&machine, case.name, &host::stops(start)));
        let mut tally = lock(&self.tally);
        tally.times.push((seconds, case.name));
        match &result {
            Ok(()) => {
                tally.passed += 1;
                say!("    passed in {seconds:.1} s: {}", case.name);
            }
            Err(e) => tally.fail(case.name, &format!("after {seconds:.1} s: {e:#}")),
        }
        drop(tally);
        Ok((machine, result.is_ok()))
    }

    fn announce(&self, case: &Case) {
        let mut tally = lock(&self.tally);
        tally.begun += 1;
        say!("[{}/{}] {}", tally.begun, self.total, case.name);
    }

    fn once(&self, case: &Case, machine: &Machine) -> Result<()> {
        case.run(&Lab {
            machine,
            back: self.plan.back,
            front: self.plan.front,
            port: self.port,
            counts: self.plan.counts,
            limit: self.plan.limit,
        })
    }

    /// # Errors
    ///
    /// When it does not boot; a machine of the same kind is then not tried again.
    fn boot(&self, out: &Path, profile: &'static Profile) -> Result<Machine> {
        let booted = self.images_of(profile.kernel).and_then(|images| {
            std::fs::create_dir_all(out).context("the directory for logs")?;
            let start = Instant::now();
            let machine = boot(&images, out, profile, self.plan.vcpus)?;
            let trouble = logs::read(&machine, logs::BOOT, &host::stops(start))?;
            if !trouble.is_empty() {
                let what = format!("boot of machine \"{}\"", profile.name);
                lock(&self.tally).fail(&what, &trouble.join("\n"));
            }
            Ok(machine)
        });
        booted.inspect_err(|_| lock(&self.tally).broken.push(profile.name))
    }

    fn images_of(&self, kernel: Kernel) -> Result<Arc<Images>> {
        let mut made = lock(&self.images);
        if let Some((_, images)) = made.iter().find(|(k, _)| *k == kernel) {
            return Ok(images.clone());
        }
        let new = Arc::new(images(self.plan.paths, kernel)?);
        made.push((kernel, new.clone()));
        Ok(new)
    }
}

/// A case has passed only if the logs are clean, too.
fn with_logs(result: Result<()>, trouble: Result<Vec<String>>) -> Result<()> {
    match (result, trouble) {
        (Ok(()), Ok(lines)) if lines.is_empty() => Ok(()),
        (Ok(()), Ok(lines)) => Err(anyhow!("in the logs:\n{}", lines.join("\n"))),
        (Ok(()), Err(e)) => Err(e.context("the logs cannot be read")),
        (Err(e), Ok(lines)) if lines.is_empty() => Err(e),
        (Err(e), Ok(lines)) => Err(anyhow!("{e:#}\nin the logs:\n{}", lines.join("\n"))),
        (Err(e), Err(_)) => Err(e),
    }
}

/// What helps to understand a failure.
fn report(machine: &Machine) {
    // A host that has crashed answers nothing, but its console says why.
    let console = std::fs::read(&machine.console).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<_> = console.lines().collect();
    say!(
        "    -- end of {}\n{}",
        machine.console.display(),
        lines[lines.len().saturating_sub(5)..].join("\n")
    );
    for (title, command) in [
        ("dom0's last messages", "dmesg | tail -n 25"),
        ("guests", "xl list"),
        (
            "the last guest",
            "grep -v ^@@ $(ls -t /var/log/xen/guest-*.log | head -n 1) | tail -n 15 | cut -c1-200",
        ),
    ] {
        match machine.ask(command, 30) {
            Ok(answer) => say!("    -- {title}\n{}", answer.output.trim_end()),
            Err(e) => say!("    -- {title}: {e:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_in_the_logs_fails_a_case() {
        let line = || Ok(vec!["BUG: x".to_owned()]);
        let text = |result: Result<()>| format!("{:#}", result.unwrap_err());
        assert!(with_logs(Ok(()), Ok(Vec::new())).is_ok());
        assert_eq!(text(with_logs(Ok(()), line())), "in the logs:\nBUG: x");
        let both = text(with_logs(Err(anyhow!("why")), line()));
        assert_eq!(both, "why\nin the logs:\nBUG: x");
        assert!(with_logs(Ok(()), Err(anyhow!("dom0 is gone"))).is_err());
    }

    #[test]
    fn memory_is_read() {
        let text = "MemTotal:  100 kB\nMemAvailable:    5242880 kB\n";
        assert_eq!(available_kib(text), 5 << 20);
        assert_eq!(available_kib(""), 0);
    }

    #[test]
    fn failures_stand_at_the_end_and_are_short() {
        let mut tally = Tally::default();
        tally.fail("check_1", "a\nb");
        assert_eq!(tally.failed, ["check_1: a\n    b"]);
        tally.fail("check_2", &"line\n".repeat(100));
        assert_eq!(tally.failed[1].lines().count(), 13);
    }

    #[test]
    fn long_cases_are_there() {
        for part in LONG {
            assert!(crate::cases::all().any(|case| case.name.contains(part)));
        }
    }
}
