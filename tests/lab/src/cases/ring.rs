// SPDX-License-Identifier: GPL-2.0

//! What a hostile frontend may try over the page, the event channel and the store (section E; 39 to 41,
//! 74 to 76).
//!
//! The guests load `badfront` (see `tests/modules/badfront`), which does what a case tells it to. The cases
//! look at outcomes: the answer and what else of the page has changed, dom0's own view of the devices, the
//! counters of the event channel, the lines in dom0's log. They share guests, as each costs its start.

use super::{Case, Ends, Lab};
use crate::machine::{Guest, GuestOptions, SMP};
use anyhow::{ensure, Context, Result};
use std::time::Instant;

pub const CASES: &[Case] = &[
    Case {
        name: "check_39_40_47_48_50_72_73_74_75_76_bad_requests_and_keys_are_refused_and_touch_nothing",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: requests,
    },
    Case {
        name: "check_41_49_51_52_53_storms_and_races_leave_dom0_and_other_guests_alone",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: storms,
    },
];

/// What the bad guest has, in the order of its virtual slots: MSI-X and PCI Express; nothing at all; INTx
/// only and 256 bytes of configuration space; MSI and INTx.
const DEVICES: [&str; 4] = [
    "0000:00:05.0",
    "0000:00:06.0",
    "0000:00:09.0",
    "0000:00:0a.0",
];
/// `domain bus devfn` of each in the guest.
const NIC: &str = "0 0 0";
const TESTDEV: &str = "0 0 8";
const RTL: &str = "0 0 16";
const EDU: &str = "0 0 24";

const SUCCESS: i32 = 0;
const NOT_FOUND: i32 = -1;
const INVALID_OFFSET: i32 = -2;
const NOT_IMPLEMENTED: i32 = -4;
const FAILED: i32 = -5;

/// A guest with the bad frontend.
pub(super) struct Bad<'a> {
    pub(super) guest: Guest<'a>,
}

/// What came of one request.
#[derive(Debug)]
struct Reply {
    err: i64,
    value: i64,
    /// MSI-X entries of the page that changed.
    entries: i64,
    /// Further words of the page that changed.
    other: i64,
}

/// The number behind `key=` in a result.
pub(super) fn figure(text: &str, key: &str) -> Result<i64> {
    let word = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    let word = word.with_context(|| format!("no {key} in: {text}"))?;
    let value = match word.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None => word.parse(),
    };
    value.with_context(|| format!("{key} in: {text}"))
}

impl<'a> Bad<'a> {
    pub(super) fn start(lab: &Lab<'a>, name: &str, devices: &[&str]) -> Result<Self> {
        let guest = lab.machine.guest(
            name,
            &GuestOptions {
                front: "none",
                vcpus: 2,
                devices,
                ..GuestOptions::default()
            },
        )?;
        guest.sh("insmod /modules/test/badfront.ko")?;
        Ok(Self { guest })
    }

    /// Runs commands one after the other, many of them with one write; gives the result of each. All have to
    /// succeed.
    fn all(&self, commands: &[String]) -> Result<Vec<String>> {
        let mut results = Vec::new();
        // What one write takes and one read gives.
        let mut left = commands;
        while !left.is_empty() {
            let mut size = 0;
            let count = left
                .iter()
                .take(64)
                .take_while(|command| {
                    size += command.len() + 1;
                    size < 3500
                })
                .count()
                .max(1);
            let (now, later) = left.split_at(count);
            left = later;
            // dd writes it in one piece.
            let text = self.guest.sh_within(
                &format!(
                    "cd /sys/bus/xen/drivers/badfront; printf %s '{}' | dd of=run0 bs=4096 2>/dev/null; echo $?; cat run0",
                    now.join(";")
                ),
                200,
            )?;
            let (status, lines) = text.split_once('\n').unwrap_or((text.trim(), ""));
            let lines: Vec<_> = lines.lines().collect();
            ensure!(
                status == "0" && lines.len() == count,
                "{:?} failed: {lines:?}",
                now.get(lines.len().saturating_sub(1))
            );
            results.extend(lines.into_iter().map(str::to_owned));
        }
        Ok(results)
    }

    pub(super) fn one(&self, command: &str) -> Result<String> {
        Ok(self.all(&[command.to_owned()])?.remove(0))
    }

    /// Starts a command in the background, as that of lane 0 or 1.
    pub(super) fn start_command(&self, lane: u32, command: &str) -> Result<()> {
        self.guest.sh(&format!(
            "rm -f /tmp/done{lane}
             setsid sh -c 'cd /sys/bus/xen/drivers/badfront
               printf %s \"{command}\" | dd of=run{lane} bs=4096; echo \"$? $(cat run{lane})\" >/tmp/new{lane}
               mv /tmp/new{lane} /tmp/done{lane}' >/dev/null 2>&1 </dev/null &"
        ))?;
        Ok(())
    }

    /// Waits for the end of a command in the background; its result.
    pub(super) fn result(&self, lane: u32) -> Result<String> {
        self.guest.until(&format!("[ -e /tmp/done{lane} ]"), 180)?;
        let text = self.guest.sh(&format!("cat /tmp/done{lane}"))?;
        let (status, result) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        ensure!(status == "0", "the command in lane {lane}: {text}");
        Ok(result.to_owned())
    }

    /// Connects as a good frontend does.
    pub(super) fn connect(&self) -> Result<()> {
        self.all(&["connect".to_owned(), "wait 120000 4".to_owned()])?;
        Ok(())
    }

    /// Requests and their answers.
    fn ops(&self, ops: &[String]) -> Result<Vec<Reply>> {
        let commands: Vec<_> = ops.iter().map(|op| format!("op {op}")).collect();
        let results = self.all(&commands)?;
        let reply = |text: &String| {
            Ok(Reply {
                err: figure(text, "err")?,
                value: figure(text, "value")?,
                entries: figure(text, "entries")?,
                other: figure(text, "other")?,
            })
        };
        results.iter().map(reply).collect()
    }

    /// Requests that have to get this error, and nothing else of the page may change.
    fn refused(&self, what: &str, error: i32, ops: &[String]) -> Result<()> {
        for (op, reply) in ops.iter().zip(self.ops(ops)?) {
            ensure!(
                reply.err == i64::from(error)
                    && (reply.value, reply.entries, reply.other) == (0, 0, 0),
                "{what}: {op}: {reply:?}, not error {error}"
            );
        }
        say!(
            "    {what}: {} requests, each with error {error}",
            ops.len()
        );
        Ok(())
    }

    /// One request that has to succeed; its value.
    fn op(&self, op: &str) -> Result<i64> {
        let reply = self.ops(&[op.to_owned()])?.remove(0);
        ensure!(
            reply.err == i64::from(SUCCESS) && reply.other == 0,
            "{op}: {reply:?}"
        );
        Ok(reply.value)
    }
}

/// dom0's view of the devices.
fn hardware(lab: &Lab<'_>) -> Result<String> {
    let each = DEVICES.map(|device| format!("lspci -xxxx -s {device}"));
    lab.sh(&each.join("; "))
}

fn unchanged(lab: &Lab<'_>, before: &str, what: &str) -> Result<()> {
    let now = hardware(lab)?;
    let changed: Vec<_> = before
        .lines()
        .zip(now.lines())
        .filter(|(a, b)| a != b)
        .map(|(a, b)| format!("{a}\nbecame\n{b}"))
        .collect();
    ensure!(
        before == now,
        "{what}: the device changed: {}",
        changed.join("\n")
    );
    Ok(())
}

/// Lines in dom0's log, and when that was.
fn log_lines(lab: &Lab<'_>) -> Result<(u32, Instant)> {
    Ok((lab.sh("dmesg | wc -l")?.trim().parse()?, Instant::now()))
}

/// What a guest provokes may add a few lines to dom0's log, whatever the count of its attempts, and some more
/// with each minute.
fn log_is_bounded(lab: &Lab<'_>, (before, start): (u32, Instant), what: &str) -> Result<()> {
    let lines = log_lines(lab)?.0.saturating_sub(before);
    let minutes = start.elapsed().as_secs() / 60;
    ensure!(
        u64::from(lines) <= 40 + 4 * minutes,
        "{what}: {lines} lines in dom0's log: {}",
        lab.sh("dmesg | tail -n 60")?
    );
    Ok(())
}

fn requests(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:06.0)(00:09.0)(00:0a.0)'")?;
    let bad = Bad::start(lab, "bad", &DEVICES)?;
    bad.connect()?;
    ensure!(
        bad.op(&format!("0 {NIC} 0 4 0"))? == 0x10d3_8086,
        "the NIC's ids"
    );
    let start = hardware(lab)?;
    let lines = log_lines(lab)?;

    // 47
    let mut commands: Vec<u32> = (6..=10).collect();
    commands.extend([255, 256, 0x8000_0000, u32::MAX]);
    let ops: Vec<_> = commands
        .iter()
        .map(|cmd| format!("{cmd:#x} {NIC} 0 4 0x12345678"))
        .collect();
    bad.refused("47: unknown commands", NOT_IMPLEMENTED, &ops)?;
    let mut ops = Vec::new();
    for address in [
        "0 0 1",
        "0 0 32",
        "0 0 255",
        "0 0 256",
        "0 1 0",
        "0 256 0",
        "1 0 0",
        "0x10000 0 0",
        "-1 -1 -1",
        "0x80000000 0 0",
    ] {
        for cmd in 0..6 {
            ops.push(format!("{cmd} {address} 4 2 1"));
        }
    }
    bad.refused("47: unknown functions", NOT_FOUND, &ops)?;
    let mut ops = Vec::new();
    for size in [
        "0",
        "3",
        "8",
        "-1",
        "0x7fffffff",
        "0x80000000",
        "5",
        "0x104",
    ] {
        for cmd in 0..2 {
            ops.push(format!("{cmd} {NIC} 4 {size} 0"));
        }
    }
    for (offset, size) in [
        (1, 2),
        (1, 4),
        (2, 4),
        (3, 2),
        (3, 4),
        (0xfff, 2),
        (0xffe, 4),
    ] {
        for cmd in 0..2 {
            ops.push(format!("{cmd} {NIC} {offset} {size} 0"));
        }
    }
    bad.refused("47: sizes", INVALID_OFFSET, &ops)?;
    unchanged(lab, &start, "47")?;

    // 48, then once more with everything permitted.
    let mut ops = Vec::new();
    for offset in [
        "-4092",
        "-4",
        "-4096",
        "-8192",
        "4096",
        "4100",
        "8192",
        "0x10000",
        "0x7ffffffc",
        "0x80000000",
        "0x80000004",
    ] {
        for device in [NIC, RTL, TESTDEV] {
            for size in [1, 2, 4] {
                ops.push(format!("1 {device} {offset} {size} 0xffffffff"));
            }
            ops.push(format!("0 {device} {offset} 4 0"));
        }
    }
    for offset in [256, 260, 0x200, 0xffc] {
        ops.push(format!("1 {RTL} {offset} 4 0xffffffff"));
        ops.push(format!("0 {RTL} {offset} 4 0"));
    }
    bad.refused("48: offsets", INVALID_OFFSET, &ops)?;
    unchanged(lab, &start, "48")?;
    for device in DEVICES {
        lab.sh(&format!(
            "printf {device} >/sys/bus/pci/drivers/pciback/permissive"
        ))?;
    }
    bad.refused("48: offsets, permissive", INVALID_OFFSET, &ops)?;
    unchanged(lab, &start, "48, permissive")?;
    log_is_bounded(lab, lines, "47 and 48")?;

    msix(lab, &bad).context("50")?;
    msi(lab, &bad).context("74 to 76")?;
    keys(lab, &bad).context("39 and 40")?;
    bad.guest.destroy_with_many()
}

/// MSI-X requests that cannot be right enable nothing (50).
fn msix(lab: &Lab<'_>, bad: &Bad<'_>) -> Result<()> {
    let lines = log_lines(lab)?;
    let is_on = || -> Result<bool> {
        let control = lab.sh("setpci -s 00:05.0 a2.w")?;
        Ok(u16::from_str_radix(control.trim(), 16)? & 0x8000 != 0)
    };
    // Memory decoding, without which the table cannot be reached.
    bad.op(&format!("1 {NIC} 4 2 6"))?;
    let entries = |numbers: &[u32]| -> String {
        let words: Vec<_> = numbers.iter().map(|n| format!("{:#x}", n << 16)).collect();
        format!(" {}", words.join(" "))
    };
    let some = entries(&[0, 1, 2, 3, 4]);
    let mut ops: Vec<_> = [
        "0",
        "129",
        "0x10001",
        "0xffffffff",
        "0x80000000",
        "0x80000001",
    ]
    .map(|count| format!("4 {NIC} 0 0 {count}{some}"))
    .into();
    for (count, numbers) in [
        (2, entries(&[0, 0])),
        (5, entries(&[0, 1, 2, 3, 3])),
        (1, entries(&[5])),
        (5, entries(&[0, 1, 2, 3, 5])),
        (2, entries(&[0, 0x7ff])),
        (2, entries(&[0, 0x800])),
        (1, entries(&[0xffff])),
        // Entries that nobody wrote, and more than the table has.
        (6, some.clone()),
        (128, some.clone()),
    ] {
        ops.push(format!("4 {NIC} 0 0 {count}{numbers}"));
    }
    // Functions without MSI-X.
    for device in [TESTDEV, RTL, EDU] {
        ops.push(format!("4 {device} 0 0 1{some}"));
    }
    bad.refused("50: MSI-X", FAILED, &ops)?;
    ensure!(!is_on()?, "MSI-X is on");
    // What is right works, and only its entries are written.
    let good = format!("4 {NIC} 0 0 2{}", entries(&[0, 4]));
    let reply = bad.ops(&[good.clone()])?.remove(0);
    ensure!(
        reply.err == i64::from(SUCCESS) && (reply.entries, reply.other) == (2, 0),
        "{good}: {reply:?}"
    );
    ensure!(is_on()?, "MSI-X is not on");
    let mut pirqs = Vec::new();
    for at in [40, 44] {
        pirqs.push(figure(&bad.one(&format!("peek {at}"))?, "value")? & 0xffff);
    }
    ensure!(
        pirqs[0] > 0 && pirqs[1] > 0 && pirqs[0] != pirqs[1],
        "73: vectors {pirqs:?}"
    );
    bad.refused(
        "50: a second MSI-X, or MSI",
        FAILED,
        &[good.clone(), format!("2 {NIC} 0 0 0")],
    )?;
    bad.op(&format!("5 {NIC} 0 0 0"))?;
    ensure!(!is_on()?, "MSI-X is still on");
    // Without memory decoding, which a guest cannot switch off, the table cannot be reached (73).
    lab.sh("setpci -s 00:05.0 04.w=0:2")?;
    let refused = bad.refused("73: MSI-X without memory decoding", FAILED, &[good.clone()]);
    lab.sh("setpci -s 00:05.0 04.w=2:2")?;
    refused?;
    ensure!(!is_on()?, "73: MSI-X is on");
    let reply = bad.ops(&[good.clone()])?.remove(0);
    ensure!(reply.err == i64::from(SUCCESS), "73: {good}: {reply:?}");
    bad.op(&format!("5 {NIC} 0 0 0"))?;
    log_is_bounded(lab, lines, "50")
}

/// Failing MSI requests without end (74); ends of what never began, with and without an interrupt (75); a
/// failure leaves the interrupt of before (76).
fn msi(lab: &Lab<'_>, bad: &Bad<'_>) -> Result<()> {
    let lines = log_lines(lab)?;
    // Has dom0 acknowledge its INTx.
    bad.op(&format!("1 {RTL} 4 2 7"))?;
    let start = hardware(lab)?;
    // Counts apart.
    let handlers = || {
        lab.machine.ask(
            "sed 's/:[0-9]*$//' /sys/bus/pci/drivers/pciback/irq_handlers 2>/dev/null",
            20,
        )
    };
    let handlers_before = handlers()?.output;
    ensure!(
        handlers_before.contains("0000:00:09.0:on:acking"),
        "76: {handlers_before}"
    );
    for _ in 0..2 {
        for device in [TESTDEV, RTL, EDU, NIC] {
            for cmd in [3, 5] {
                let value = bad.op(&format!("{cmd} {device} 0 0 0"))?;
                ensure!(device != TESTDEV || value == 0, "{device} has no interrupt");
            }
        }
    }
    let mut floods = vec![
        format!("flood {} 2 {RTL} 0 0 0", lab.counts.storm),
        format!("flood {} 4 {RTL} 0 0 1 0", lab.counts.storm),
        format!("flood {} 4 {NIC} 0 0 2 0 0", lab.counts.storm),
    ];
    for flood in &floods {
        let result = bad.one(flood)?;
        say!("    74: {flood}: {result}");
        ensure!(
            figure(&result, "answered")? > 0
                && figure(&result, "err")? == i64::from(FAILED)
                && figure(&result, "other_err")? == 0,
            "{flood}: {result}"
        );
    }
    unchanged(lab, &start, "75 and 76")?;
    ensure!(handlers()?.output == handlers_before, "76: irq_handlers");
    // The same with MSI on: it stays on, and goes.
    let pin: i64 = lab
        .sh("cat /sys/bus/pci/devices/0000:00:0a.0/irq")?
        .trim()
        .parse()?;
    let pirq = bad.op(&format!("2 {EDU} 0 0 0"))?;
    ensure!(pirq > 0 && pirq != pin, "72: MSI with interrupt {pirq}");
    floods = vec![format!("flood {} 2 {EDU} 0 0 0", lab.counts.storm)];
    let result = bad.one(&floods[0])?;
    ensure!(
        figure(&result, "err")? == i64::from(FAILED) && figure(&result, "other_err")? == 0,
        "{result}"
    );
    // The end gives the pin back, whether there was something to end or not.
    for _ in 0..2 {
        let value = bad.op(&format!("3 {EDU} 0 0 0"))?;
        ensure!(value == pin, "72: interrupt {value} after MSI, not {pin}");
    }
    log_is_bounded(lab, lines, "74 to 76")
}

impl Bad<'_> {
    /// Ends the connection, or one that failed, and starts again, up to where a frontend publishes its keys.
    pub(super) fn restart(&self) -> Result<()> {
        self.all(&restart())?;
        Ok(())
    }
}

fn restart() -> Vec<String> {
    ["state 6", "wait 120000 6", "state 1", "wait 120000 3"]
        .map(str::to_owned)
        .into()
}

/// Keys that no good frontend writes (39), and a state too early (40).
fn keys(lab: &Lab<'_>, bad: &Bad<'_>) -> Result<()> {
    let lines = log_lines(lab)?;
    // 40
    bad.restart()?;
    for state in [4, 7, 8, 2] {
        let claim = || bad.one(&format!("state {state}")).map(drop);
        claim()?;
        super::xenbus::dealt_with(lab, claim)?;
        let backend = bad.one("backend state")?;
        ensure!(
            backend == "3",
            "40: the frontend says {state}, the backend {backend}"
        );
    }
    say!("    40: a state without keys connects nothing");
    // A backend that was never connected stays where it is while the frontend is Closed.
    bad.all(&["state 6", "state 1", "wait 120000 3"].map(str::to_owned))?;
    // 39
    let long = "A".repeat(1900);
    let variants: Vec<Vec<String>> = [
        vec!["store magic 6"],
        vec!["store magic %s%n%s%n%x"],
        vec!["store magic 7\nevil: a line of the guest\n7"],
        vec!["store magic \u{1b}[31m"],
        vec![&*format!("store magic {long}")],
        vec!["remove magic"],
        vec!["remove pci-op-ref"],
        vec!["store pci-op-ref %n"],
        vec!["store pci-op-ref -1"],
        vec!["store pci-op-ref 4000"],
        vec!["remove event-channel"],
        vec!["store event-channel 4000"],
        vec!["store event-channel 4294967295"],
    ]
    .map(|keys| keys.into_iter().map(str::to_owned).collect())
    .into();
    for keys in &variants {
        let text = bad
            .all(&["open", "keys"].map(str::to_owned))?
            .pop()
            .unwrap_or_default();
        let mut commands = vec![
            format!("store pci-op-ref {}", figure(&text, "ref")?),
            format!("store event-channel {}", figure(&text, "port")?),
            "store magic 7".to_owned(),
        ];
        commands.extend(keys.iter().cloned());
        commands.extend(["state 3", "wait 120000 5"].map(str::to_owned));
        bad.all(&commands)
            .with_context(|| format!("39: {keys:?}"))?;
        let error = lab.sh(&format!(
            "xenstore-read /local/domain/0/error/backend/pci/$(xl domid {})/0/error",
            bad.guest.name
        ))?;
        ensure!(
            error.starts_with(|c: char| c.is_ascii_digit()) && error.trim().lines().count() == 1,
            "39: {keys:?}: the error in the store is {error:?}"
        );
        bad.restart()?;
    }
    let log = lab.sh("dmesg")?;
    ensure!(
        !log.contains('\u{1b}')
            && !log.contains(&"A".repeat(64))
            && !log.lines().any(|line| line.contains("] evil")),
        "39: the guest's text is in the log as it is"
    );
    say!(
        "    39: {} kinds of bad keys, each ends in Closing",
        variants.len()
    );
    // A good frontend connects afterwards.
    bad.connect()?;
    ensure!(
        bad.op(&format!("0 {NIC} 0 4 0"))? == 0x10d3_8086,
        "no answer after 39"
    );
    // The same failure again and again.
    let mut commands = Vec::new();
    for _ in 0..40 {
        commands.extend(restart());
        commands.extend(["store pci-op-ref 4000", "state 3", "wait 120000 5"].map(str::to_owned));
    }
    bad.all(&commands)?;
    log_is_bounded(lab, lines, "39 and 40")
}

/// A guest that has done nothing bad.
struct Neighbour<'a> {
    guest: Guest<'a>,
}

impl Neighbour<'_> {
    /// Its requests are answered, and rightly.
    fn is_served(&self, what: &str) -> Result<()> {
        let file = "/sys/bus/pci/devices/0000:00:00.0/config";
        let result = self
            .guest
            .sh_within(&format!("agent read 1 200 {file} 00101b36"), 200)?;
        say!("    {what}: the neighbour: {}", result.trim());
        ensure!(figure(&result, "wrong")? == 0, "{what}: {result}");
        Ok(())
    }
}

/// What one guest does with all its strength, while another one works.
fn storms(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:07.0)(00:0b.0)'")?;
    let neighbour = Neighbour {
        guest: lab.guest("neighbour", &["0000:00:07.0"])?,
    };
    neighbour
        .guest
        .until("[ -e /sys/bus/pci/devices/0000:00:00.0 ]", 30)?;
    let first = Bad::start(lab, "first", &["0000:00:05.0"])?;
    first.connect()?;
    let second = Bad::start(lab, "second", &["0000:00:0b.0"])?;
    second.connect()?;
    let lines = log_lines(lab)?;
    let leaks =
        "grep -c xenbus_map_ring /proc/vmallocinfo; grep -c 'xen-pciback$' /proc/interrupts";
    let mapped = lab.sh(leaks)?;
    ensure!(
        mapped == "3\n3\n",
        "pages mapped and channels bound: {mapped}"
    );

    double_fetch(lab, &first).context("49")?;
    event_storm(lab, &first, &neighbour).context("51")?;
    floods(lab, [&first, &second], &neighbour).context("53")?;
    flood_and_close(&first).context("52")?;
    flapping(lab, [&first, &second], &neighbour).context("41")?;
    // The second has no connection, and nothing is left of all those that there were.
    lab.machine
        .until(&format!("[ \"$({leaks})\" = \"$(printf '2\\n2')\" ]"), 30)?;
    log_is_bounded(lab, lines, "41, 49, 51, 52, 53")?;
    first.guest.destroy()?;
    second.guest.destroy()?;
    neighbour.is_served("at the end")?;
    neighbour.guest.destroy()
}

/// What another vCPU writes into a request while it is served changes nothing that the copy did not say
/// (49). Allowed is a write of the cache line size; the page names a BAR in turn with it, a size, another
/// function, or another command.
fn double_fetch(lab: &Lab<'_>, bad: &Bad<'_>) -> Result<()> {
    // The whole header but the cache line size.
    let header = || {
        lab.sh("lspci -xxxx -s 00:05.0 | sed 's/^00: \\(.*\\) .. \\(.. .. ..\\)$/00: \\1 cl \\2/'")
    };
    bad.op(&format!("1 {NIC} 4 2 6"))?;
    let before = header()?;
    ensure!(before.contains(" cl "), "no header: {before}");
    // Where the words of a request are.
    let (cmd, devfn, offset, size, value) = (4, 20, 24, 28, 32);
    for (what, flips) in [
        ("a BAR", format!("{offset} 0x0c 0x10")),
        (
            "a BAR's value",
            format!("{offset} 0x10 0x14 {value} 0xffffffff 0xdead0000"),
        ),
        ("a size", format!("{offset} 0x0c 0x10 {size} 1 4")),
        (
            "an offset beyond the end",
            format!("{offset} 0x0c -4 {size} 1 4"),
        ),
        (
            "another function",
            format!("{devfn} 0 8 {offset} 0x0c 0x10"),
        ),
        (
            "MSI-X and its count",
            format!("{cmd} 1 4 {value} 2 0xffffffff {offset} 0x0c 0x10"),
        ),
    ] {
        // For MSI-X: two entries that the table has.
        bad.all(&["poke 40 0", "poke 44 0x10000"].map(str::to_owned))?;
        bad.start_command(1, &format!("flip {} {flips}", lab.counts.storm))?;
        let flood = bad.one(&format!("flood {} 1 {NIC} 0x0c 1 0x10", lab.counts.storm))?;
        let flip = bad.result(1)?;
        say!("    49: {what}: {flood}; {flip}");
        ensure!(
            figure(&flood, "answered")? > 0 && figure(&flip, "times")? > 0,
            "{what}: {flood}; {flip}"
        );
        // What an enabled MSI-X changes is none of this.
        bad.op(&format!("5 {NIC} 0 0 0"))?;
        let now = header()?;
        ensure!(now == before, "{what}: from {before} to {now}");
    }
    Ok(())
}

/// The counters of a guest's event channel in dom0.
fn counter(lab: &Lab<'_>, guest: &Guest<'_>, name: &str) -> Result<u64> {
    let text = lab.sh(&format!(
        "cat /sys/bus/xen-backend/devices/pci-$(xl domid {})-0/xenbus/{name}",
        guest.name
    ))?;
    Ok(text.trim().parse()?)
}

/// Events that bring no request are counted and held back, and a request is answered all the same (51).
fn event_storm(lab: &Lab<'_>, bad: &Bad<'_>, neighbour: &Neighbour<'_>) -> Result<()> {
    const EVENTS: u64 = 200_000;
    let count = |name| counter(lab, &bad.guest, name);
    let before = [count("events")?, count("spurious_events")?];
    bad.one(&format!("events {EVENTS}"))?;
    neighbour.is_served("51")?;
    let now = [count("events")?, count("spurious_events")?];
    say!(
        "    51: {EVENTS} events sent, {} delivered, {} of them spurious",
        now[0] - before[0],
        now[1] - before[1]
    );
    ensure!(now[1] > before[1], "no spurious event was counted");
    ensure!(
        now[0] - before[0] < EVENTS / 10,
        "{before:?} to {now:?}: not held back"
    );
    ensure!(count("jiffies_eoi_delayed")? > 0, "no event was held back");
    ensure!(
        bad.op(&format!("0 {NIC} 0 4 0"))? == 0x10d3_8086,
        "no right answer"
    );
    Ok(())
}

/// Two guests post as fast as they are answered; a third one is served (53).
fn floods(lab: &Lab<'_>, bad: [&Bad<'_>; 2], neighbour: &Neighbour<'_>) -> Result<()> {
    // Longer than the neighbour's reads need.
    let flood = format!("flood {} 0 {NIC} 0 4 0", lab.counts.storm.saturating_mul(4));
    for guest in bad {
        guest.start_command(0, &flood)?;
    }
    neighbour.is_served("53")?;
    for guest in bad {
        let result = guest.result(0)?;
        say!("    53: {}: {result}", guest.guest.name);
        ensure!(
            figure(&result, "answered")? > 0
                && (figure(&result, "err")?, figure(&result, "other_err")?) == (0, 0)
                && !result.contains("silence"),
            "{result}"
        );
    }
    Ok(())
}

/// A guest that floods with one vCPU and closes with another is disconnected, and can come back (52).
fn flood_and_close(bad: &Bad<'_>) -> Result<()> {
    bad.start_command(0, &format!("flood 60000 0 {NIC} 0 4 0"))?;
    bad.guest.sh("cd /sys/bus/xen/drivers/badfront
         r() { printf %s \"$1\" | dd of=run1 bs=4096 2>/dev/null || { cat run1; exit 1; }; }
         r 'state 5'; r 'wait 120000 5'; r 'state 6'; r 'wait 120000 6'")?;
    let result = bad.result(0)?;
    say!("    52: {result}");
    // Bounded by an event, not by a time: nobody answers any more.
    ensure!(
        result.contains("then silence") && figure(&result, "answered")? > 0,
        "{result}"
    );
    bad.all(&["state 1", "wait 120000 3"].map(str::to_owned))?;
    bad.connect()?;
    ensure!(
        bad.op(&format!("0 {NIC} 0 4 0"))? == 0x10d3_8086,
        "no right answer"
    );
    // A page that is given up with a request in it.
    bad.all(&[format!("post 0 {NIC} 0 4 0"), "open".to_owned()])?;
    bad.restart()?;
    bad.connect()?;
    ensure!(
        bad.op(&format!("0 {NIC} 0 4 0"))? == 0x10d3_8086,
        "no right answer with a new page"
    );
    Ok(())
}

/// Two guests walk through all states as fast as they can, one of them with keys that mean nothing (41).
fn flapping(lab: &Lab<'_>, bad: [&Bad<'_>; 2], neighbour: &Neighbour<'_>) -> Result<()> {
    let [first, second] = bad;
    let flap = format!(
        "flap {} 1,3,5,6,7,4,1,3,4,2,8,6",
        lab.counts.storm.saturating_mul(2)
    );
    second.all(&["store pci-op-ref 4000".to_owned()])?;
    for guest in bad {
        guest.start_command(0, &flap)?;
    }
    neighbour.is_served("41")?;
    for guest in bad {
        let result = guest.result(0)?;
        say!("    41: {}: {result}", guest.guest.name);
        ensure!(figure(&result, "times")? > 0, "{result}");
        // Now it is Closed; the backend has closed, too, or was not connected and waits.
        let back = super::xenbus::backend(lab, &guest.guest)?;
        let settled = format!("case $(xenstore-read {back}/state) in 3|6) ;; *) exit 1 ;; esac");
        lab.machine.until(&format!("({settled})"), 30)?;
        guest.all(&["state 1", "wait 120000 3"].map(str::to_owned))?;
    }
    first.connect()?;
    ensure!(
        first.op(&format!("0 {NIC} 0 4 0"))? == 0x10d3_8086,
        "no right answer after the end of it"
    );
    neighbour.is_served("41, after it")
}
