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
use std::time::{Duration, Instant};

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
const ACCESS_DENIED: i32 = -3;
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
    pub(super) fn all(&self, commands: &[String]) -> Result<Vec<String>> {
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

    /// Ends what runs in lane 0, which has to run still; its result.
    pub(super) fn stop(&self) -> Result<String> {
        self.guest
            .sh("[ ! -e /tmp/done0 ] && printf stop >/sys/bus/xen/drivers/badfront/run1")?;
        self.result(0)
    }

    /// Begins or ends to keep a virtual CPU busy.
    pub(super) fn compute(&self, on: bool) -> Result<()> {
        self.guest.sh(if on {
            "setsid sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null & echo $! >/tmp/busy"
        } else {
            "kill -9 $(cat /tmp/busy)"
        })?;
        Ok(())
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
    pub(super) fn op(&self, op: &str) -> Result<i64> {
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
pub(super) fn log_lines(lab: &Lab<'_>) -> Result<(u32, Instant)> {
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
    widths(lab, &bad).context("48: widths")?;
    let start = hardware(lab)?;
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

/// The bits of the NIC that a guest changes in the device by writing, as offset and bits of a byte: bus master
/// and memory write and invalidate, size of a cache line, power state and what its data register shows, order and
/// size of its requests. Beside these there are only errors that ones clear.
const NIC_BITS: &[(usize, u8)] = &[
    (0x04, 0x14),
    (0x0c, 0xff),
    (0xcc, 0x03),
    (0xcd, 0x1e),
    (0xe8, 0x10),
    (0xe9, 0x78),
];
/// The same of the RTL.
const RTL_BITS: &[(usize, u8)] = &[(0x04, 0x14), (0x0c, 0xff), (0x54, 0x03), (0x55, 0x1e)];

/// Each register is written by bytes, words and dwords, so that a value meets two or three registers at once, or
/// half of one. What is not a guest's stays in the device as it is, whatever the width; what is not aligned is refused.
fn widths(lab: &Lab<'_>, bad: &Bad<'_>) -> Result<()> {
    /// The two low bits are those of a power state that there is.
    const VALUES: [u32; 4] = [0xffff_ffff, 0x3c3c_3c3c, 0xc3c3_c3c3, 0];
    let bytes = |host: &str| -> Result<Vec<u8>> {
        let text = lab.sh(&format!(
            "od -An -tx1 -v /sys/bus/pci/devices/{host}/config"
        ))?;
        let bytes = text
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16));
        Ok(bytes.collect::<Result<_, _>>()?)
    };
    let parts = [
        // Header; MSI-X to the first registers of error reporting.
        (NIC, DEVICES[0], NIC_BITS, [0..0x40, 0xa0..0x114]),
        (RTL, DEVICES[2], RTL_BITS, [0..0x40, 0x50..0x58]),
    ];
    for (device, host, open, ranges) in parts {
        let before = bytes(host)?;
        let of_size = |size: usize| {
            let all = ranges.iter().cloned().flatten();
            all.map(move |offset| (offset, size))
        };
        let all: Vec<_> = [1, 2, 4].into_iter().flat_map(of_size).collect();
        let (aligned, odd): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(offset, size)| offset % size == 0);
        let ops: Vec<_> = odd
            .iter()
            .map(|(offset, size)| format!("1 {device} {offset} {size} 0xffffffff"))
            .collect();
        bad.refused("48: unaligned writes", INVALID_OFFSET, &ops)?;
        ensure!(
            bytes(host)? == before,
            "{host}: changed by unaligned writes"
        );
        let mut denied = 0;
        for value in VALUES {
            let ops: Vec<_> = aligned
                .iter()
                .map(|(offset, size)| format!("1 {device} {offset} {size} {value:#x}"))
                .collect();
            for (op, reply) in ops.iter().zip(bad.ops(&ops)?) {
                let is_right = [SUCCESS, ACCESS_DENIED].map(i64::from).contains(&reply.err);
                ensure!(
                    is_right && (reply.value, reply.entries, reply.other) == (0, 0, 0),
                    "{op}: {reply:?}"
                );
                denied += u32::from(reply.err != 0);
            }
            say!("    48: value {value:#x}: {denied} denied");
            let now = bytes(host)?;
            for (at, (before, now)) in before.iter().zip(&now).enumerate() {
                let bits = open.iter().find(|(offset, _)| *offset == at);
                let kept = !bits.map_or(0, |(_, bits)| *bits);
                ensure!(
                    (before ^ now) & kept == 0,
                    "{host}: {at:#x} was {before:#x} and is {now:#x} after writes of {value:#x}"
                );
            }
        }
        say!(
            "    48: {} aligned writes to {host}, {denied} of them denied, the host's bits are as before",
            aligned.len() * VALUES.len()
        );
    }
    Ok(())
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
    back: String,
}

impl Neighbour<'_> {
    /// Its requests are answered, and rightly; how long one takes, in us.
    fn is_served(&self, lab: &Lab<'_>, what: &str) -> Result<i64> {
        let file = "/sys/bus/pci/devices/0000:00:00.0/config";
        let result = self
            .guest
            .sh_within(&format!("agent read 1 100 {file} 00101b36"), 200)?;
        ensure!(figure(&result, "wrong")? == 0, "{what}: {result}");
        // dom0 holds back the events of who sends them for nothing: this guest does not.
        let held = counter(lab, &self.guest, "jiffies_eoi_delayed")?;
        ensure!(held == 0, "{what}: the neighbour's events were held back");
        figure(&result, "mean_us")
    }

    /// How long a change of its list of devices takes until both ends are done with it, in us: the median.
    fn changes(&self, lab: &Lab<'_>) -> Result<i64> {
        let mut all = Vec::new();
        for _ in 0..3 {
            let text = lab.machine.sh_within(
                &format!(
                    "agent measure reconfigure {0} $(xenstore-read {0}/frontend)",
                    self.back
                ),
                120,
            )?;
            let ns = text.split_once("\"median\":");
            let ns = ns.and_then(|(_, rest)| rest.split(',').next());
            all.push(ns.with_context(|| text.clone())?.parse::<i64>()? / 1000);
        }
        all.sort_unstable();
        Ok(all[all.len() / 2])
    }
}

/// How dom0 and the neighbour fare, each figure with its name: times in us, and what dom0 uses of a CPU while it
/// has nothing to do for itself, in percent.
struct Fare([i64; 6]);

const FIGURES: [&str; 6] = [
    "a program of dom0 that reads the store",
    "dom0's read of a file of the driver",
    "a program of dom0 that slept runs late by",
    "the neighbour's read",
    "a change of the neighbour's list",
    "dom0's CPU, in percent",
];

impl Fare {
    fn of(lab: &Lab<'_>, neighbour: &Neighbour<'_>, what: &str) -> Result<Self> {
        let waits = lab.machine.sh_within(
            "agent measure waits 15 /sys/bus/pci/drivers/pciback/status",
            200,
        )?;
        // Xen's own count; the ticks of a kernel do not see what its interrupt handlers use.
        let cpu = lab.sh(
            "now() { read up rest </proc/uptime; xl list 0 | awk -v up=$up 'NR == 2 { print $NF, up }'; }
             a=$(now); sleep 3; b=$(now); echo $a $b | awk '{ printf \"%d\", 100 * ($3 - $1) / ($4 - $2) }'",
        )?;
        Ok(Self([
            figure(&waits, "store_us")?,
            figure(&waits, "file_us")?,
            figure(&waits, "wake_us")?,
            neighbour.is_served(lab, what)?,
            neighbour.changes(lab)?,
            cpu.trim().parse().with_context(|| cpu.clone())?,
        ]))
    }
}

/// The most that each of the [`FIGURES`] may grow in a storm, as a factor; the CPU by so many percent of one. In a flood
/// the workers of two guests may have all that nobody else of dom0 wants, and each of them a little of it in the
/// event handler.
type Limits = [f64; 6];
const EVENTS: Limits = [2.0, 2.0, 3.0, 3.0, 5.0, 50.0];
const FLOODS: Limits = [2.0, 2.0, 6.0, 3.0, 6.0, 150.0];
const FLAPS: Limits = [3.0, 3.0, 12.0, 4.0, 8.0, 50.0];

/// dom0's memory in KiB: what its kernel has allocated and cannot give back, and what the store has.
fn memory(lab: &Lab<'_>) -> Result<(i64, i64)> {
    let text = lab.sh(
        "awk '/^(SUnreclaim|VmallocUsed|Percpu|KernelStack|PageTables):/ { sum += $2 } END { print \"kernel=\" sum }' /proc/meminfo
         awk '/^VmRSS:/ { print \"store=\" $2 }' /proc/$(pidof xenstored)/status",
    )?;
    Ok((figure(&text, "kernel")?, figure(&text, "store")?))
}

/// What one guest does with all its strength, while another one works.
fn storms(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:07.0)(00:0b.0)'")?;
    let guest = lab.guest("neighbour", &["0000:00:07.0"])?;
    let back = super::xenbus::backend(lab, &guest)?;
    super::xenbus::connected(lab, &back)?;
    // All guests share a CPU. The neighbour gets it when it wants it, so that its waits are those for dom0.
    lab.machine.xl("sched-credit2 -d neighbour -w 65535")?;
    let neighbour = Neighbour { guest, back };
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
    first.guest.destroy_with_many()?;
    second.guest.destroy_with_many()?;
    neighbour.is_served(lab, "at the end")?;
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
        ("a BAR", format!("{offset} 0x0c,0x13,-4")),
        (
            "a BAR's value",
            format!("{offset} 0x10,0x14,-4 {value} 0xffffffff,0xdead0000,0"),
        ),
        ("a size", format!("{offset} 0x0c,0x10,0x10 {size} 1,4,3")),
        (
            "an offset beyond the end",
            format!("{offset} 0x0c,-4 {size} 1,4"),
        ),
        (
            "another function",
            format!("{devfn} 0,8 {offset} 0x0c,0x13"),
        ),
        (
            "MSI-X and its count",
            format!("{cmd} 1,4 {value} 2,0xffffffff {offset} 0x0c,0x13"),
        ),
    ] {
        // For MSI-X: two entries that the table has.
        bad.all(&["poke 40 0", "poke 44 0x10000"].map(str::to_owned))?;
        // The third value, or the second one, is refused: an answer that differs from that of the others tells
        // that the page was changed before it was copied. So it is known that the writes come in time.
        let mut hits = 0;
        for _ in 0..20 {
            bad.start_command(1, &format!("flip 3600000 {flips}"))?;
            let flood = bad.one(&format!("flood {} 1 {NIC} 0x0c 1 0x10", lab.counts.storm))?;
            bad.one("stop")?;
            let flip = bad.result(1)?;
            say!("    49: {what}: {flood}; {flip}");
            ensure!(
                figure(&flood, "answered")? > 0 && figure(&flip, "times")? > 0,
                "{what}: {flood}; {flip}"
            );
            hits += figure(&flood, "other_err")?;
            if hits > 0 {
                break;
            }
        }
        ensure!(hits > 0, "{what}: no request was changed in time");
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

/// What the guests do while it is measured how dom0 and the neighbour fare without a storm.
#[derive(Clone, Copy)]
enum Calm<'a> {
    /// They compute: one virtual CPU of each is as busy as in the storm.
    Compute,
    /// A command of the bad frontend, which the backend has no part in.
    Command(&'a str),
}

/// Has guests run a command in lane 0, and compares how dom0 and the neighbour fare meanwhile with how they do when the
/// same guests are as busy without the backend. That is measured in turns, as what else the host does changes: a figure
/// that is within its limit in one of them is right. Gives the results of the command.
fn beside(
    lab: &Lab<'_>,
    bad: &[&Bad<'_>],
    neighbour: &Neighbour<'_>,
    what: &str,
    (calm, storm): (Calm<'_>, &str),
    limits: Limits,
) -> Result<Vec<String>> {
    const TURNS: u32 = 4;
    let mut least = [f64::MAX; 6];
    let mut results = Vec::new();
    for turn in 1..=TURNS {
        for guest in bad {
            match calm {
                Calm::Compute => guest.compute(true)?,
                Calm::Command(command) => guest.start_command(0, command)?,
            }
        }
        let before = Fare::of(lab, neighbour, what)?;
        for guest in bad {
            match calm {
                Calm::Compute => guest.compute(false)?,
                Calm::Command(_) => guest.stop().map(drop)?,
            }
        }
        for guest in bad {
            guest.start_command(0, storm)?;
        }
        let start = Instant::now();
        let now = Fare::of(lab, neighbour, what)?;
        // As long as the whole test wants it, if that is longer.
        let left = Duration::from_millis(lab.counts.storm.into()).saturating_sub(start.elapsed());
        std::thread::sleep(left);
        for guest in bad {
            results.push(guest.stop()?);
        }
        let mut text = Vec::new();
        for at in 0..FIGURES.len() {
            let (before, now) = (before.0[at] as f64, now.0[at] as f64);
            let growth = match FIGURES[at] {
                "dom0's CPU, in percent" => now - before,
                _ => now / before.max(1.0),
            };
            least[at] = least[at].min(growth);
            text.push(format!("{}: {before} to {now}", FIGURES[at]));
        }
        say!("    {what}: {}", text.join("; "));
        let beyond: Vec<_> = (0..FIGURES.len())
            .filter(|at| least[*at] > limits[*at])
            .map(|at| format!("{}: {:.1}, not {}", FIGURES[at], least[at], limits[at]))
            .collect();
        if beyond.is_empty() {
            break;
        }
        ensure!(
            turn < TURNS,
            "{what}: in each of {TURNS} turns: {}",
            beyond.join("; ")
        );
    }
    say!("    {what}: {}", results.join("; "));
    Ok(results)
}

/// Events that bring no request are counted and held back, and a request is answered all the same (51).
fn event_storm(lab: &Lab<'_>, bad: &Bad<'_>, neighbour: &Neighbour<'_>) -> Result<()> {
    let count = |name| counter(lab, &bad.guest, name);
    let before = [count("events")?, count("spurious_events")?];
    let results = beside(
        lab,
        &[bad],
        neighbour,
        "51",
        (Calm::Compute, "events 3600000"),
        EVENTS,
    )?;
    let mut events = 0;
    for result in &results {
        events += figure(result, "times")?;
    }
    let now = [count("events")?, count("spurious_events")?];
    say!(
        "    51: {events} events sent, {} delivered, {} of them spurious",
        now[0] - before[0],
        now[1] - before[1]
    );
    ensure!(now[1] > before[1], "no spurious event was counted");
    ensure!(
        now[0] - before[0] < events as u64 / 10,
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
    for flood in [
        format!("flood 3600000 0 {NIC} 0 4 0"),
        // What the event handler does not serve.
        format!("flood 3600000 1 {NIC} 4 2 7"),
    ] {
        let calm = (Calm::Compute, flood.as_str());
        for result in beside(lab, &bad, neighbour, "53", calm, FLOODS)? {
            ensure!(
                figure(&result, "answered")? > 0
                    && (figure(&result, "err")?, figure(&result, "other_err")?) == (0, 0)
                    && !result.contains("silence"),
                "{result}"
            );
        }
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
    /// Bytes for each state, less than any allocation.
    const LEAK: f64 = 8.0;
    const STATES: &str = "1,3,5,6,7,4,1,3,4,2,8,6";
    second.all(&["store pci-op-ref 4000".to_owned()])?;
    // The store itself needs as much for writes of a key that nobody looks at.
    let calm = format!("flap 3600000 nobody {STATES}");
    let flap = format!("flap 3600000 state {STATES}");
    let calm = (Calm::Command(&calm), flap.as_str());
    let settled = || -> Result<(i64, i64)> {
        for guest in bad {
            // Now it is Closed; the backend has closed, too, or was not connected and waits.
            let back = super::xenbus::backend(lab, &guest.guest)?;
            let settled =
                format!("case $(xenstore-read {back}/state) in 3|6) ;; *) exit 1 ;; esac");
            lab.machine.until(&format!("({settled})"), 30)?;
        }
        memory(lab)
    };
    for result in beside(lab, &bad, neighbour, "41", calm, FLAPS)? {
        ensure!(figure(&result, "times")? > 0, "{result}");
    }
    // What has a bound reaches it: in the end as much again adds nothing, while a leak adds the same each time.
    let flap = format!("flap {} state {STATES}", lab.counts.storm.saturating_mul(3));
    let mut before = settled()?;
    let mut least = (f64::MAX, f64::MAX);
    for _ in 0..6 {
        for guest in bad {
            guest.start_command(0, &flap)?;
        }
        let mut times = 0;
        for guest in bad {
            times += figure(&guest.result(0)?, "times")?;
        }
        let now = settled()?;
        say!("    41: memory of dom0's kernel and of the store, KiB: {before:?}, after {times} states more {now:?}");
        let growth = |before: i64, now: i64| (now - before) as f64 * 1024.0 / times as f64;
        least.0 = least.0.min(growth(before.0, now.0));
        least.1 = least.1.min(growth(before.1, now.1));
        before = now;
        if least.0 < LEAK && least.1 < LEAK {
            break;
        }
    }
    ensure!(
        least.0 < LEAK && least.1 < LEAK,
        "41: each state costs dom0's kernel and the store so many bytes: {least:?}"
    );
    for guest in bad {
        guest.all(&["state 1", "wait 120000 3"].map(str::to_owned))?;
    }
    first.connect()?;
    ensure!(
        first.op(&format!("0 {NIC} 0 4 0"))? == 0x10d3_8086,
        "no right answer after the end of it"
    );
    neighbour.is_served(lab, "41, after it")?;
    Ok(())
}
