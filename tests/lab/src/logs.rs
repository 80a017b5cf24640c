// SPDX-License-Identifier: GPL-2.0

//! What Xen and the kernels said while a case ran: searched after each case, whatever its end.
//!
//! There are two sources. Xen's console is a file of the host; dom0's kernel writes to it, too, from
//! warnings on (but where something is measured: errors only), so that a dom0 which hangs or dies is judged as well. The consoles of guests are files
//! in dom0, kept by xenconsoled; a guest's kernel writes there from warnings on, so that it does not
//! matter how the guest ended. [`read`] is called by the lane that has the machine, between two cases.
//!
//! What a case provokes on purpose is in [`EXPECTED`].

use crate::machine::Machine;
use anyhow::{Context, Result};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
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
];

/// The most lines that are shown of one case.
const SHOWN: usize = 12;

/// The lines of trouble since the last call that the case does not provoke; no line twice.
///
/// # Errors
///
/// When dom0 does not answer any more and Xen's console does not say why.
pub fn read(machine: &Machine, case: &str) -> Result<Vec<String>> {
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
    Ok(unexpected(case, found))
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

/// What is left of the lines without what the case provokes and without repetitions, which only
/// differ in their time stamps; at most [`SHOWN`].
fn unexpected(case: &str, lines: Vec<String>) -> Vec<String> {
    let mut left: Vec<String> = Vec::new();
    let mut more = 0;
    for line in lines {
        let provoked =
            |(part, text, _): &(&str, &str, &str)| case.contains(part) && line.contains(text);
        if EXPECTED.iter().any(provoked) {
            continue;
        }
        if left
            .iter()
            .any(|other| without_time(other) == without_time(&line))
        {
            continue;
        }
        if left.len() < SHOWN {
            left.push(line);
        } else {
            more += 1;
        }
    }
    if more > 0 {
        left.push(format!("... and {more} more"));
    }
    left
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
            unexpected(
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
        assert_eq!(unexpected("x", twice), ["[  1.0] BUG: a", "[  2.0] BUG: b"]);
        let flood = (0..100).map(|n| format!("BUG: {n}")).collect();
        let shown = unexpected("x", flood);
        assert_eq!(shown.len(), SHOWN + 1);
        assert_eq!(shown[SHOWN], "... and 88 more");
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
