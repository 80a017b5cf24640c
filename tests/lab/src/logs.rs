// SPDX-License-Identifier: GPL-2.0

//! What Xen and the kernels said while a case ran: searched after each case, whatever its end.
//!
//! There are two sources. Xen's console is a file of the host; dom0's kernel writes to it, too, from
//! warnings on (but where something is measured: errors only), so that a dom0 which hangs or dies is judged as well. The consoles of guests are files
//! in dom0, kept by xenconsoled; a guest's kernel writes there from warnings on, so that it does not
//! matter how the guest ended. [`read`] is called by the lane that has the machine, between two cases.
//!
//! What a case provokes on purpose is in [`EXPECTED`]. A kernel's word that something took too long is judged
//! against the host: it is said and does not count if the host itself kept the machine waiting ([`crate::host`]).

use crate::{host::Stops, machine::Machine};
use anyhow::{Context, Result};
use std::{
    collections::HashSet,
    fs::File,
    io::{Read, Seek, SeekFrom},
    time::Duration,
};

/// A line with one of these fails the case: the kernels' own words for what must not happen, Xen's,
/// and those of our frontend for an answer that came late or without its event.
pub const TROUBLE: &[&str] = &[
    "WARNING:",
    "BUG:",
    "BUG ",
    "Oops",
    "Call Trace",
    "general protection",
    "Kernel panic",
    "INFO: task",
    "INFO: trying to register non-static key",
    "blocked for more than",
    "lockdep",
    "circular locking",
    "suspicious RCU",
    "self-detected stall",
    "detected stalls",
    "UBSAN",
    "KASAN",
    "KFENCE",
    "Poison overwritten",
    "Redzone overwritten",
    "Object already free",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "page allocation failure",
    "nobody cared",
    "Xen BUG",
    "Xen WARN",
    "FATAL TRAP",
    "FATAL PAGE FAULT",
    "DMAR:[DMA",
    "DMAR:[fault",
    "without its event",
    "has not answered in",
];

/// What [`read`] is told instead of a case's name for what was said before the first case.
pub const BOOT: &str = "(boot)";

/// Lines that a case provokes: part of the case's name, part of the line, and why.
const EXPECTED: &[(&str, &str, &str)] = &[
    (
        BOOT,
        "DMAR:[DMA Read] Request device [0000:00:0c.",
        "the firmware leaves USB controllers running, until dom0's init stops them",
    ),
    (
        "",
        "reason 02 - Present bit in context entry is clear",
        "a guest that ends leaves its device running; Xen has taken it out of the guest's memory, and \
         the backend is about to reset it",
    ),
    (
        "check_86",
        "has not answered in",
        "its backend leaves requests without an answer",
    ),
    (
        "check_87",
        "has not answered in",
        "its backend dies with a request in hand",
    ),
    (
        "a_backend_that_is_unbound",
        "has not answered in",
        "its backend is unbound at any moment, with a request in hand, too",
    ),
];

/// Lines whose only reason is that a time went by, and what stands before that time. The kernel does not say how
/// long it waited before it spoke of an RCU stall: 21 s, unless it is told otherwise.
const OVERDUE: &[(&str, Limit)] = &[
    ("has not answered in ", Limit::Milliseconds),
    ("blocked for more than ", Limit::Seconds),
    ("stuck for ", Limit::Seconds),
    ("self-detected stall", Limit::Is(Duration::from_secs(21))),
    ("detected stalls", Limit::Is(Duration::from_secs(21))),
];

/// How a line says what time went by.
enum Limit {
    /// A number that follows.
    Milliseconds,
    /// A number that follows.
    Seconds,
    /// Not at all.
    Is(Duration),
}

/// The time that went by, if that is what the line is about.
fn overdue(line: &str) -> Option<Duration> {
    let find = |(words, limit): &(&str, Limit)| {
        let (_, after) = line.split_once(words)?;
        let digits = after
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(after.len());
        let number = || after[..digits].parse().ok();
        match limit {
            Limit::Milliseconds => number().map(Duration::from_millis),
            Limit::Seconds => number().map(Duration::from_secs),
            Limit::Is(time) => Some(*time),
        }
    };
    OVERDUE.iter().find_map(find)
}

/// Parts lines, in the order of their sources, in those that count and those for which the host is to blame. Of each
/// kernel it is for some time at most: what is left of that pays for its lines. A stack that follows one is part of it.
fn part(lines: Vec<String>, host: &Stops) -> (Vec<String>, Vec<String>) {
    let most = 2 * host.withheld();
    let (mut source, mut left, mut before) = (String::new(), most, false);
    lines.into_iter().partition(|line| {
        if source_of(line) != source {
            (source, left, before) = (source_of(line).to_owned(), most, false);
        }
        let time = overdue(line).filter(|time| *time <= left && host.are_to_blame(*time));
        let hosts = time.is_some() || (before && line.contains("Call Trace"));
        left -= time.unwrap_or_default();
        before = time.is_some();
        !hosts
    })
}

/// The guest's file that a line is from; nothing for Xen's console.
fn source_of(line: &str) -> &str {
    match line.split_once(".log:") {
        Some((name, _)) if name.starts_with("guest-") => name,
        _ => "",
    }
}

/// The most lines that are shown of one case.
const SHOWN: usize = 12;

/// The lines of trouble since the last call that the case does not provoke; no line twice. `stops` are
/// those of the host since the case began.
///
/// # Errors
///
/// When dom0 does not answer any more and Xen's console does not say why.
pub fn read(machine: &Machine, case: &str, stops: &Stops) -> Result<Vec<String>> {
    let mut found = console(machine)?;
    // Guests are gone between cases, so nobody writes to these files any more.
    let guests = machine.sh(&format!(
        "cd /var/log/xen && mkdir -p searched
         {} -Hs guest-*.log | cut -c1-300 | head -n 200
         mv guest-*.log searched/ 2>/dev/null; true",
        grep()
    ));
    match guests {
        Ok(lines) => found.extend(lines.lines().map(str::to_owned)),
        Err(e) if found.is_empty() => return Err(e),
        Err(e) => found.push(format!("{e:#}")),
    }
    let (counts, hosts) = part(unprovoked(case, found), stops);
    machine.excused.set(machine.excused.get() + hosts.len());
    for line in once(hosts) {
        say!("    the host kept the machine waiting: {line}");
    }
    Ok(cut(once(counts)))
}

/// What is new on Xen's console, which the machine remembers how far it was read.
fn console(machine: &Machine) -> Result<Vec<String>> {
    let mut file = File::open(&machine.console).context("the console of Xen")?;
    file.seek(SeekFrom::Start(machine.console_read.get()))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    // What is not a whole line yet is read the next time.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = whole.map_or(0, |at| at + 1);
    machine
        .console_read
        .set(machine.console_read.get() + whole as u64);
    let text = String::from_utf8_lossy(&bytes[..whole]);
    let lines = with_reasons(&text).into_iter();
    Ok(lines.filter(|line| is_trouble(line)).collect())
}

/// The lines of Xen's console; a fault of the IOMMU in one line with its reason, which Xen prints in the
/// next.
fn with_reasons(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        match (lines.last_mut(), line.split_once("DMAR: reason")) {
            (Some(last), Some((_, reason))) if last.contains("DMAR:[DMA") => {
                last.push_str(": reason");
                last.push_str(reason);
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines
}

/// The command that finds lines of trouble in files, which may have the agent's frames in them.
pub fn grep() -> String {
    let words: Vec<_> = TROUBLE.iter().map(|word| format!("-e '{word}'")).collect();
    format!("grep -aF {}", words.join(" "))
}

fn is_trouble(line: &str) -> bool {
    TROUBLE.iter().any(|word| line.contains(word))
}

/// The lines without repetitions, which only differ in their time stamps.
fn once(lines: Vec<String>) -> Vec<String> {
    let mut seen = HashSet::new();
    let is_new = |line: &String| seen.insert(without_time(line));
    lines.into_iter().filter(is_new).collect()
}

/// The lines without what the case provokes.
fn unprovoked(case: &str, mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| {
        let provoked =
            |(part, text, _): &(&str, &str, &str)| case.contains(part) && line.contains(text);
        !EXPECTED.iter().any(provoked)
    });
    lines
}

/// At most [`SHOWN`] of the lines, and how many more there are.
fn cut(mut lines: Vec<String>) -> Vec<String> {
    let more = lines.len().saturating_sub(SHOWN);
    lines.truncate(SHOWN);
    if more > 0 {
        lines.push(format!("... and {more} more"));
    }
    lines
}

/// A line without the kernel's `[   12.345678]`.
fn without_time(line: &str) -> String {
    match (line.find('['), line.find(']')) {
        (Some(start), Some(end)) if start < end => format!("{}{}", &line[..start], &line[end..]),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn trouble_is_told_from_what_kernels_say_anyway() {
        for line in [
            "[   12.3] WARNING: drivers/xen/events/events_base.c:1 at f+0x1/0x2",
            "[    1.0] BUG kmalloc-64 (Not tainted): Poison overwritten",
            "(XEN) [VT-D]DMAR:[DMA Write] Request device [0000:00:05.0] fault addr 1000",
            "guest-a.log:[  9.1] pcifront pci-0: answered without its event",
            "(XEN) Xen BUG at mm.c:1",
        ] {
            assert!(is_trouble(line), "{line}");
        }
        for line in [
            "(XEN) No irq handler for vector e0 (IRQ -2147483648)",
            "[    0.1] debug: ignoring loglevel setting.",
            "[    3.2] pciback 0000:00:05.0: enabling permissive mode",
            "",
        ] {
            assert!(!is_trouble(line), "{line}");
        }
    }

    #[test]
    fn a_fault_of_the_iommu_is_judged_by_its_reason() {
        let fault = |reason: &str| {
            let text = format!(
                "(XEN) [VT-D]DMAR:[DMA Read] Request device [0000:00:05.0] fault addr 1000\r\n\
                 (XEN) [VT-D]DMAR: reason {reason}\r\nother\n"
            );
            let lines = with_reasons(&text);
            assert_eq!(lines.len(), 2);
            unprovoked(
                "x",
                lines.into_iter().filter(|line| is_trouble(line)).collect(),
            )
        };
        assert!(fault("02 - Present bit in context entry is clear").is_empty());
        let [line] = &fault("06 - PTE Read access is not set")[..] else {
            panic!("not one line");
        };
        assert!(line.ends_with("fault addr 1000: reason 06 - PTE Read access is not set"));
    }

    #[test]
    fn a_line_is_shown_once_and_a_flood_is_cut() {
        let twice = strings(&["[  1.0] BUG: a", "[  2.0] BUG: a", "[  2.0] BUG: b"]);
        assert_eq!(once(twice), ["[  1.0] BUG: a", "[  2.0] BUG: b"]);
        let flood = (0..100).map(|n| format!("BUG: {n}")).collect();
        let shown = cut(flood);
        assert_eq!(shown.len(), SHOWN + 1);
        assert_eq!(shown[SHOWN], "... and 88 more");
    }

    #[test]
    fn a_time_that_went_by_is_judged_against_the_host() {
        let lines = [
            "[  1.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[  1.1] Call Trace:",
            "guest-a.log:[  2.0] xen_pcifront: the backend has not answered in 2054 ms; its devices",
            "[  3.0] INFO: task a:1 blocked for more than 120 seconds.",
            "[  4.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
            "[  5.0] WARNING: at f+0x1/0x2",
            "[  5.1] Call Trace:",
            "guest-a.log:[  6.0] pcifront pci-0: answered without its event",
        ];
        let times = [21_000, 0, 2054, 120_000, 26_000, 0, 0, 0];
        for (line, ms) in lines.iter().zip(times) {
            let time = (ms > 0).then(|| Duration::from_millis(ms));
            assert_eq!(overdue(line), time, "{line}");
            assert!(is_trouble(line), "{line}");
        }
        assert_eq!(overdue("has not answered in time"), None);
        // A host that always keeps up, and one that has stood still for a minute.
        let (counts, hosts) = part(strings(&lines), &Stops::one(Duration::ZERO));
        assert_eq!((counts.len(), hosts.len()), (8, 0));
        let (counts, hosts) = part(strings(&lines), &Stops::one(Duration::from_secs(50)));
        assert_eq!(counts, [lines[3], lines[5], lines[6], lines[7]]);
        assert_eq!(hosts, [lines[0], lines[1], lines[2], lines[4]]);
    }

    #[test]
    fn a_short_stop_pays_for_one_line_of_each_kernel() {
        let late = "xen_pcifront: the backend has not answered in 2000 ms";
        let lines = [
            format!("guest-a.log:[  1.0] {late}"),
            // The same once more: nothing is left that would pay for it.
            format!("guest-a.log:[  9.0] {late}"),
            format!("guest-b.log:[  1.0] {late}"),
            "guest-c.log:[  1.0] Call Trace:".to_owned(),
        ];
        let stop = Stops::one(Duration::from_millis(1500));
        let (counts, hosts) = part(lines.to_vec(), &stop);
        assert_eq!(counts, [lines[1].clone(), lines[3].clone()]);
        assert_eq!(hosts, [lines[0].clone(), lines[2].clone()]);
    }

    #[test]
    fn what_is_expected_names_a_case_and_a_trouble() {
        for (part, text, why) in EXPECTED {
            let known = *part == BOOT || crate::cases::all().any(|case| case.name.contains(part));
            assert!(known, "{part}");
            // Or the reason of a fault.
            assert!(is_trouble(text) || text.starts_with("reason 02"), "{text}");
            assert!(!why.is_empty());
        }
    }
}
