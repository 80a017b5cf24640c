// SPDX-License-Identifier: GPL-2.0

//! What a hostile guest does over and over: opposites in turn, and a card that holds its interrupt line
//! (section E; 18, 71).
//!
//! The floods of `ring.rs` repeat one request. Here each undoes what the one before has done, so that every one of
//! them has the backend, the kernel and Xen work. What dom0 notices of it is judged: lines in its log, lines on
//! Xen's console, and how long its own programs wait, beside a guest that only computes.

use super::{
    interrupts::handler,
    ring::{figure, log_lines, Bad},
    Case, Ends, Lab, DRIVER, TRACE,
};
use crate::machine::{EDU, NIC, SMP};
use anyhow::{ensure, Context, Result};
use std::time::Instant;

pub const CASES: &[Case] = &[
    Case {
        name: "requests_that_undo_each_other_by_the_thousand_leave_dom0_its_time_and_log",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: undoing,
    },
    Case {
        name: "a_card_that_holds_its_interrupt_line_leaves_dom0_its_time_and_log",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: held_line,
    },
    Case {
        name: "messages_end_cleanly_while_a_function_sleeps_or_decodes_nothing",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: asleep,
    },
];

const NVME: &str = "0000:00:07.0";
const RTL: &str = "0000:00:09.0";

/// Requests that are made in turn, with the error that each has to get.
struct InTurn<'a> {
    what: &'a str,
    ops: Vec<(String, i32)>,
}

impl InTurn<'_> {
    /// As the bad frontend's command.
    fn command(&self, ms: u32) -> String {
        let ops: Vec<_> = self.ops.iter().map(|(op, _)| op.as_str()).collect();
        format!("flood2 {ms} {}", ops.join(" | "))
    }

    /// Looks at its result: each request was answered as it should be, each time. Gives how many there were.
    fn answered(&self, result: &str) -> Result<u32> {
        let errors: Vec<_> = self.ops.iter().map(|(_, err)| err.to_string()).collect();
        let errors = format!(" err={} ", errors.join(","));
        ensure!(
            result.contains(&errors)
                && figure(result, "other_err")? == 0
                && !result.contains("silence"),
            "{}: {result}, not{errors}each time",
            self.what
        );
        Ok(u32::try_from(figure(result, "answered")?)?)
    }
}

/// How long dom0's own programs wait, in us: medians of one that reads the store, and of a read of a file of the
/// driver.
fn waits(lab: &Lab<'_>, count: u32) -> Result<[i64; 2]> {
    let text = lab
        .machine
        .sh_within(&format!("agent measure waits {count} {DRIVER}/status"), 200)?;
    Ok([figure(&text, "store_us")?, figure(&text, "file_us")?])
}

/// What Xen itself has written on its console from byte `from` on.
fn xen_said(lab: &Lab<'_>, from: usize) -> Result<Vec<String>> {
    let bytes = std::fs::read(&lab.machine.console).context("the console of Xen")?;
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned();
    let lines = text.lines().filter(|line| line.contains("(XEN)"));
    Ok(lines.map(str::to_owned).collect())
}

/// The length of Xen's console.
fn console_length(lab: &Lab<'_>) -> Result<usize> {
    let length = std::fs::metadata(&lab.machine.console)?.len();
    Ok(usize::try_from(length)?)
}

/// The most lines that all of it may add to dom0's log.
const MOST_LINES: u32 = 99;
/// How many times longer dom0's programs may wait beside it than beside a guest that computes.
const MOST_GROWTH: f64 = 2.0;

fn undoing(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:07.0)(00:09.0)(00:0a.0)'")?;
    let bad = Bad::start(lab, "undoing", &[NIC, NVME, RTL, EDU])?;
    bad.connect()?;
    // As the guest sees them.
    let [nic, nvme, rtl, edu] = ["0 0 0", "0 0 8", "0 0 16", "0 0 24"];
    let in_turn = |what, ops: &[(String, i32)]| InTurn {
        what,
        ops: ops.to_vec(),
    };
    let decode = |device: &str, on: u32| (format!("1 {device} 4 2 {on}"), 0);
    let read = (format!("0 {nic} 0 4 0"), 0);
    let bad_read = (format!("0 {nic} 2 4 0"), -2);
    let bad_command = (format!("9 {nic} 0 0 0"), -4);
    let line_size = |size: u32| (format!("1 {nic} 0x0c 1 {size}"), 0);
    let control = express_control(lab, NVME)?;
    let pairs = [
        in_turn("decode", &[decode(nic, 7), decode(nic, 0)]),
        in_turn("decode with INTx", &[decode(rtl, 3), decode(rtl, 0)]),
        in_turn(
            "MSI-X",
            &[
                (format!("4 {nic} 0 0 2 0 0x10000"), 0),
                (format!("5 {nic} 0 0 0"), 0),
            ],
        ),
        in_turn(
            "MSI",
            &[(format!("2 {edu} 0 0 0"), 0), (format!("3 {edu} 0 0 0"), 0)],
        ),
        in_turn(
            "D3hot and D0",
            &[
                (format!("1 {nic} 0xcc 2 3"), 0),
                (format!("1 {nic} 0xcc 2 0"), 0),
            ],
        ),
        in_turn(
            "resets and reads",
            &[
                (format!("1 {nvme} {control} 2 0x8000"), 0),
                (format!("0 {nvme} 0 4 0"), 0),
                (format!("0 {nvme} 4 4 0"), 0),
            ],
        ),
        in_turn(
            "valid and invalid",
            &[
                read.clone(),
                bad_read.clone(),
                line_size(0x10),
                bad_command.clone(),
                ("0 0 1 0 0 4 0".to_owned(), -1),
            ],
        ),
    ];
    let (lines, console) = (log_lines(lab)?.0, console_length(lab)?);
    let mut done = 0;
    for pair in &pairs {
        let result = bad.one(&pair.command(lab.counts.storm / 3))?;
        say!("    {}: {result}", pair.what);
        let answered = pair.answered(&result)?;
        ensure!(answered > 0, "{}: nothing was answered", pair.what);
        done += answered;
    }
    // What has no limit but time: the floods above have used up what a guest may switch at once. The write of a
    // register that is not open is dropped.
    let mixed = in_turn(
        "mixed",
        &[
            decode(nic, 7),
            read,
            decode(nic, 0),
            bad_read,
            line_size(0x10),
            (format!("1 {nic} 0x100 4 0xffffffff"), 0),
            line_size(0x20),
            bad_command,
        ],
    );
    done += waits_beside(lab, &bad, &mixed)?;
    while done < lab.counts.operations {
        let result = bad.one(&mixed.command(10_000))?;
        done += mixed.answered(&result)?;
    }
    let added = log_lines(lab)?.0 - lines;
    let said = xen_said(lab, console)?;
    say!("    {done} requests in all, {added} lines in dom0's log");
    ensure!(
        added <= MOST_LINES,
        "{added} lines: {}",
        lab.sh("dmesg | tail -n 60")?
    );
    ensure!(said.is_empty(), "Xen has said: {}", said.join("\n"));
    for (device, ids) in [(nic, 0x10d3_8086), (nvme, 0x0010_1b36), (edu, 0x11e8_1234)] {
        let read = bad.op(&format!("0 {device} 0 4 0"))?;
        ensure!(read == ids, "{device} reads {read:#x}");
    }
    bad.guest.destroy_with_many()?;
    lab.machine.until(
        &format!("[ $(grep -c ' available ' {DRIVER}/status) = 4 ]"),
        30,
    )
}

/// What the backend has counted of the guests' cost.
fn account(lab: &Lab<'_>) -> Result<String> {
    let text = lab.sh(
        "mount -t debugfs debug /sys/kernel/debug 2>/dev/null; cat /sys/kernel/debug/xen-pciback/accounts",
    )?;
    Ok(text.trim().to_owned())
}

/// Compares how long dom0's programs wait while these requests are made with how long they do while the same guest
/// computes. In turns, as what else the host does changes: a figure that is within its limit in one of them is right.
/// Gives how many requests were answered.
fn waits_beside(lab: &Lab<'_>, bad: &Bad<'_>, mixed: &InTurn<'_>) -> Result<u32> {
    const TURNS: u32 = 4;
    let mut done = 0;
    let mut least = [f64::MAX; 2];
    for turn in 1..=TURNS {
        bad.compute(true)?;
        let calm = waits(lab, 50)?;
        bad.compute(false)?;
        bad.start_command(0, &mixed.command(3_600_000))?;
        let now = waits(lab, 50)?;
        let result = bad.stop()?;
        done += mixed.answered(&result)?;
        for ((least, calm), now) in least.iter_mut().zip(calm).zip(now) {
            *least = least.min(now as f64 / calm.max(1) as f64);
        }
        say!("    medians of 50 in us, of the store and of a file: {calm:?}, and {now:?} beside it; {result}");
        say!("    {}", account(lab)?);
        if least.iter().all(|growth| *growth <= MOST_GROWTH) {
            break;
        }
        ensure!(
            turn < TURNS,
            "dom0 waits {least:.1?} times as long in each of {TURNS} turns"
        );
    }
    Ok(done)
}

/// A guest has its card hold the line (INTx is level-triggered) and serves nothing: alone, and while it switches MSI
/// and decode. dom0's handler claims what there is, as long as that is not much.
fn held_line(lab: &Lab<'_>) -> Result<()> {
    /// A handler leaves a line that has more interrupts in a second, when it has found that out.
    const MOST_A_SECOND: f64 = 1000.0;
    const UNTIL_IT_LOOKS: f64 = 2000.0;
    lab.load(lab.back, "hide='(00:0a.0)'")?;
    let bad = Bad::start(lab, "held", &[EDU])?;
    bad.connect()?;
    let (lines, console) = (log_lines(lab)?.0, console_length(lab)?);
    bad.op("1 0 0 0 4 2 2")?;
    let bar = bad.op("0 0 0 0 0x10 4 0")? & !0xf;
    let pirq = bad.op("0 0 0 0 0x3c 1 0")?;
    ensure!(bar > 0 && pirq > 0, "BAR {bar:#x}, interrupt {pirq}");
    let hold = |arguments: &str| {
        bad.guest.sh(&format!(
            "insmod /modules/test/badline.ko bar={bar} {arguments}"
        ))
    };
    let switching = InTurn {
        what: "MSI and decode",
        ops: [
            "2 0 0 0 0 0 0",
            "1 0 0 0 4 2 0",
            "3 0 0 0 0 0 0",
            "1 0 0 0 4 2 2",
        ]
        .map(|op| (op.to_owned(), 0))
        .into(),
    };
    let served = format!("pirq={pirq}");
    let ended = format!("pirq={pirq} eoi=1");
    // Xen ends an interrupt that is not served after a millisecond. The other two come as fast as they are ended, so
    // that the handler leaves the line.
    for (what, arguments, leaves) in [
        ("the guest does not serve it", &*served, false),
        ("the guest ends each interrupt at once", &ended, true),
        ("no guest has the line", "", true),
    ] {
        if handler(lab, EDU)?.0 != "on:acking" {
            lab.sh(&format!("printf {EDU} >{DRIVER}/irq_handler_state"))?;
        }
        let (state, before) = handler(lab, EDU)?;
        ensure!(state == "on:acking", "{what}: {state} at first");
        bad.compute(true)?;
        let calm = waits(lab, 15)?;
        bad.compute(false)?;
        let start = Instant::now();
        hold(arguments)?;
        let now = waits(lab, 15)?;
        let (state, count) = handler(lab, EDU)?;
        let alone = (count - before, start.elapsed().as_secs_f64());
        say!(
            "    {what}: dom0 has claimed {} interrupts in {:.1} s ({state}); medians of 15 in us {calm:?}, and {now:?} beside it",
            alone.0, alone.1
        );
        ensure!(alone.0 > 0, "{what}: the line is not held");
        for (calm, now) in calm.into_iter().zip(now) {
            ensure!(
                now <= 5 * calm,
                "{what}: dom0 waits {now} us, beside {calm} us"
            );
        }
        let result = bad.one(&switching.command(lab.counts.storm / 3))?;
        switching.answered(&result)?;
        let (state, count) = handler(lab, EDU)?;
        let all = (count - before, start.elapsed().as_secs_f64());
        say!(
            "    {what}, and MSI and decode are switched: {} in {:.1} s ({state}); {result}",
            all.0,
            all.1
        );
        bad.guest.sh("rmmod badline")?;
        ensure!(!leaves || state == "off:not acking", "{what}: {state}");
        for (count, seconds) in [alone, all] {
            ensure!(
                f64::from(count) <= MOST_A_SECOND * seconds + UNTIL_IT_LOOKS,
                "{what}: {count} interrupts in {seconds:.1} s"
            );
        }
    }
    // It dies with the line held.
    hold(&served)?;
    bad.guest.destroy()?;
    lab.machine
        .until(&format!("grep -q '^{EDU} available' {DRIVER}/status"), 30)?;
    lab.sh("! grep -F 'xen-pciback[' /proc/interrupts")?;
    let added = log_lines(lab)?.0 - lines;
    say!("    {added} lines in dom0's log");
    ensure!(
        added <= 10,
        "{added} lines: {}",
        lab.sh("dmesg | tail -n 40")?
    );
    let said = xen_said(lab, console)?;
    ensure!(said.is_empty(), "Xen has said: {}", said.join("\n"));
    // The card cannot be reset.
    lab.sh(&format!("devmem {:#x} 32 1", bar + 0x64))?;
    Ok(())
}

/// Xen refuses to have messages restored for a function that decodes no memory, and the kernel says so with a trace
/// (S12), which the search of the logs would find: they are restored only where Xen can take them.
fn reset_without_decode(lab: &Lab<'_>, bad: &Bad<'_>) -> Result<()> {
    let control = express_control(lab, NVME)?;
    for round in 1..=3 {
        bad.op("1 0 0 8 4 2 2")?;
        bad.op("4 0 0 8 0 0 2 0 0x10000")?;
        bad.op("1 0 0 8 4 2 0")?;
        bad.op(&format!("1 0 0 8 {control} 2 0x8000"))?;
        let ids = bad.op("0 0 0 8 0 4 0")?;
        ensure!(ids == 0x0010_1b36, "round {round}: ids {ids:#x}");
        bad.op("5 0 0 8 0 0 0")?;
    }
    Ok(())
}

/// Where PCI Express Device Control is.
fn express_control(lab: &Lab<'_>, function: &str) -> Result<u32> {
    let express = lab.sh(&format!(
        "lspci -vv -s {function} | sed -n 's/.*\\[\\(..\\)\\] Express.*/\\1/p'"
    ))?;
    Ok(8 + u32::from_str_radix(express.trim(), 16)?)
}

/// The kernel and Xen reach into the function's memory to end MSI-X, which it does not answer for in D3hot (S5): it is
/// woken first, whether the guest ends them or dies.
fn asleep(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:07.0)'")?;
    let bad = Bad::start(lab, "asleep", &[NIC, NVME])?;
    bad.connect()?;
    reset_without_decode(lab, &bad)?;
    // What was called since the last time.
    let calls = || -> Result<String> {
        let text = lab.sh(&format!(
            "cd {TRACE} && awk '/ power: / {{ sub(/.*state=/, \"D\"); print }} / msix: / {{ print \"msix\" }}' trace && echo >trace"
        ))?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let probes = [
        "p:power pci_set_power_state state=%si:u8",
        "p:msix pci_disable_msix",
    ];
    lab.probed(&probes, || {
        let on_and_asleep = || -> Result<()> {
            bad.op("1 0 0 0 4 2 2")?;
            bad.op("4 0 0 0 0 0 2 0 0x10000")?;
            bad.op("1 0 0 0 0xcc 2 3")?;
            let control = bad.op("0 0 0 0 0xcc 2 0")?;
            ensure!(control & 3 == 3, "power control {control:#x}");
            calls().map(drop)
        };
        on_and_asleep()?;
        bad.op("5 0 0 0 0 0 0")?;
        let ended = calls()?;
        let control = bad.op("0 0 0 0 0xcc 2 0")?;
        ensure!(
            ended == "D0 msix D3" && control & 3 == 3,
            "the guest ends MSI-X: {ended:?}, then power control {control:#x}"
        );
        bad.op("1 0 0 0 0xcc 2 0")?;
        on_and_asleep()?;
        bad.guest.destroy_with_many()?;
        lab.machine.until(
            &format!("grep -q '^{NIC} available reset=done' {DRIVER}/status"),
            30,
        )?;
        let died = calls()?;
        ensure!(died.starts_with("D0 msix"), "the guest dies: {died:?}");
        say!("    ended by the guest: {ended}; by its end: {died}");
        Ok(())
    })
}
