// SPDX-License-Identifier: GPL-2.0

//! Errors of the PCIe hierarchy (section H): raised at a NIC behind a root port, dom0's PCI core asks our
//! backend, that asks the guest.

use super::{ring::Bad, start_nic, Case, Ends, Lab, DRIVER};
use crate::machine::{EDU, SMP};
use anyhow::{bail, ensure, Context, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "check_78_errors_reach_the_guests_driver_and_it_recovers",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: recovers,
    },
    Case {
        name: "check_81_a_guest_without_a_driver_is_marked_in_the_store",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: no_driver,
    },
    Case {
        name: "check_79_80_a_guest_that_answers_badly_or_not_at_all_costs_one_wait",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: bad_answers,
    },
    Case {
        name: "check_82_a_guest_that_closes_or_dies_while_it_is_asked_ends_the_wait",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: leaves,
    },
];

/// The port that the errors come up to.
const PORT: &str = "00:11.0";

/// The NIC behind it.
pub(super) fn nic(lab: &Lab<'_>) -> Result<String> {
    let below = lab.below(PORT)?;
    below.into_iter().next().context("nothing behind the port")
}

/// An uncorrectable error by its bit in the status register: whether it is fatal is the device's default.
const COMPLETION_TIMEOUT: u32 = 1 << 14;
const MALFORMED_TLP: u32 = 1 << 18;
/// A correctable one.
const BAD_TLP: u32 = 1 << 6;

/// How long the backend waits for one answer, in s.
const PATIENCE: f64 = 10.0;

/// Raises an uncorrectable error.
fn raise(lab: &Lab<'_>, error: u32) -> Result<()> {
    inject(lab, error, 0)
}

/// Raises an error at the NIC: the kernel's own injector puts it into the registers and rings the port's
/// interrupt. (The emulated NIC cannot have error reporting switched on, so its own would not be sent.)
fn inject(lab: &Lab<'_>, uncorrectable: u32, correctable: u32) -> Result<()> {
    let nic = nic(lab)?;
    let bus = u32::from_str_radix(&nic[5..7], 16)?;
    // `struct aer_error_inj`: bus, device, function; uncorrectable and correctable status, header log,
    // domain.
    let bytes: Vec<String> = [bus, uncorrectable, correctable, 1, 2, 3, 4, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .map(|byte| format!("\\x{byte:02x}"))
        .collect();
    let bytes = bytes.concat();
    lab.sh(&format!(
        "dmesg -c >>/var/log/dmesg.all; modprobe aer_inject && printf '{bytes}' >/dev/aer_inject"
    ))?;
    Ok(())
}

/// How long dom0's PCI core took over the last error that was raised, in s of dom0's clock.
fn took(lab: &Lab<'_>) -> Result<f64> {
    let text = lab.sh(
        "dmesg | sed -n 's/^\\[ *\\([0-9.]*\\)\\].*\\(Injecting\\|device recovery\\).*/\\1/p' | sed -n '1p; $p'",
    )?;
    let times: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let [from, to] = times[..] else {
        bail!("no beginning and end: {text}");
    };
    Ok(to - from)
}

fn recovers(lab: &Lab<'_>) -> Result<()> {
    let nic = nic(lab)?;
    lab.load(lab.back, &format!("hide='({nic})'"))?;
    let guest = lab.guest("aer", &[&nic])?;
    start_nic(&guest)?;
    for error in [COMPLETION_TIMEOUT, MALFORMED_TLP] {
        raise(lab, error)?;
        lab.machine
            .until("dmesg | grep -qE 'device recovery (successful|failed)'", 60)?;
        let log = lab.sh("dmesg | grep -E 'AER|recover|pciback'")?;
        ensure!(
            log.contains("device recovery successful"),
            "{error:#x}: {log}"
        );
        ensure!(!log.contains("cannot recover"), "{error:#x}: {log}");
        guest.until(super::LINK_IS_UP, 30)?;
        let ping = guest.sh("ping -c 3 -W 10 10.0.2.2")?;
        ensure!(ping.contains("3 packets received"), "{error:#x}: {ping}");
    }
    // A driver whose answers differ from what the backend says for a guest that has nothing to say: it wants a
    // reset when it is asked whether it can go on. So dom0's core takes a step more, and the driver says what it
    // was called for.
    guest.sh(
        "modprobe -r e1000e && insmod /modules/test/guestdrv.ko handlers=15 && echo 8086 10d3 >/sys/bus/pci/drivers/guestdrv/new_id",
    )?;
    for (error, state) in [(COMPLETION_TIMEOUT, 1), (MALFORMED_TLP, 2)] {
        guest.sh("dmesg -c >/dev/null")?;
        raise(lab, error)?;
        lab.machine
            .until("dmesg | grep -q 'device recovery successful'", 60)?;
        // Whether the frontend has marked the function as offline is another case's affair.
        let heard = guest.sh("dmesg | sed -n 's/ offline=.//; s/.*guestdrv: //p'")?;
        ensure!(
            heard == format!("detected state={state} ids=10d38086\nmmio\nslot_reset\nresume\n"),
            "{error:#x}: the driver was called for {heard:?}"
        );
    }
    // A correctable error is over when dom0 has read it: it is logged, and no driver has a part in it.
    guest.sh("dmesg -c >/dev/null")?;
    inject(lab, 0, BAD_TLP)?;
    lab.machine
        .until("dmesg | grep -q 'severity=Correctable'", 60)?;
    let log = lab.sh("dmesg | grep -E 'AER|recover|pciback'")?;
    ensure!(
        !log.contains("device recovery") && !log.contains("cannot recover"),
        "{log}"
    );
    let heard = guest.sh("dmesg | grep guestdrv; true")?;
    ensure!(heard.is_empty(), "a correctable error reached it: {heard}");
    guest.sh("rmmod guestdrv")?;
    start_nic(&guest)?;
    guest.destroy()
}

fn no_driver(lab: &Lab<'_>) -> Result<()> {
    let nic = nic(lab)?;
    lab.load(lab.back, &format!("hide='({nic})'"))?;
    // Nobody has it: the hierarchy recovers without it.
    raise(lab, COMPLETION_TIMEOUT)?;
    lab.machine
        .until("dmesg | grep -q 'device recovery successful'", 60)?;
    let guest = lab.guest("nodriver", &[&nic])?;
    guest.until("[ $(lspci | wc -l) = 1 ]", 20)?;
    let back = super::xenbus::backend(lab, &guest)?;
    raise(lab, COMPLETION_TIMEOUT)?;
    lab.machine.until(
        &format!("[ \"$(xenstore-read {back}/aerState)\" = aerfail ]"),
        60,
    )?;
    lab.machine
        .until("dmesg | grep -q 'device recovery successful'", 60)?;
    let log = lab.sh("dmesg | grep 'cannot recover'")?;
    ensure!(log.contains(&nic) && log.lines().count() <= 4, "{log}");
    guest.destroy()?;
    lab.machine
        .until(&format!("grep -q '^{nic} available' {DRIVER}/status"), 30)
}

fn bad_answers(lab: &Lab<'_>) -> Result<()> {
    let nic = nic(lab)?;
    lab.load(lab.back, &format!("hide='({nic})(00:0a.0)'"))?;
    let neighbour = lab.guest("neighbour", &[EDU])?;
    neighbour.until("[ $(lspci | wc -l) = 1 ]", 20)?;
    let bad = Bad::start(lab, "aer", &[&nic])?;
    let back = super::xenbus::backend(lab, &bad.guest)?;
    bad.connect()?;
    bad.one("flag set 1")?;
    let over = |what: &str| {
        lab.machine
            .until("dmesg | grep -qE 'device recovery (successful|failed)'", 90)?;
        let log = lab.sh("dmesg | grep -E 'device recovery|cannot recover'")?;
        // Never more than the limit of our own lines, and the hierarchy goes on without the guest.
        ensure!(
            log.contains("device recovery successful") && log.lines().count() <= 6,
            "{what}: {log}"
        );
        Ok(())
    };
    let failed = || {
        lab.machine.until(
            &format!("[ \"$(xenstore-read {back}/aerState)\" = aerfail ]"),
            30,
        )?;
        lab.sh(&format!("xenstore-rm {back}/aerState"))
    };
    let works = || -> Result<()> {
        let reply = bad.one("op 0 0 0 0 0 4 0")?;
        ensure!(
            reply.contains("value=0x10d38086") || reply.contains("value=282296454"),
            "{reply}"
        );
        Ok(())
    };
    // What is no verdict: for each of the steps that follow, too.
    for number in ["0", "7", "0x7fffffff"] {
        let answer = format!("aer 60000 answer {number}");
        bad.start_command(1, &[answer.as_str(); 3].join(";"))?;
        raise(lab, COMPLETION_TIMEOUT)?;
        over(number)?;
        failed()?;
        bad.result(1)?;
        works()?;
    }
    // No answer: one wait, and none for the steps after it, nor for the next error. Another guest's device goes and
    // comes meanwhile. A host that stops for a while makes a wait longer, and may be too slow for that within it: so
    // the best of some waits counts.
    let (mut shortest, mut free) = (f64::MAX, false);
    for _ in 0..4 {
        bad.one("flag clear 2")?;
        bad.start_command(1, "aer 60000 ignore")?;
        raise(lab, COMPLETION_TIMEOUT)?;
        bad.result(1)?;
        if !free {
            lab.machine.xl(&format!("pci-detach neighbour {EDU}"))?;
            free = lab.sh("dmesg | grep -c 'device recovery'; true")?.trim() == "0";
            lab.machine.xl(&format!("pci-attach neighbour {EDU}"))?;
        }
        over("no answer")?;
        let took = took(lab)?;
        say!("    79: no answer: {took:.2} s; another guest's device could go: {free}");
        ensure!(took >= PATIENCE, "not waited: {took} s");
        shortest = shortest.min(took);
        failed()?;
        works()?;
        if free && shortest < PATIENCE + 1.0 {
            break;
        }
    }
    ensure!(free, "another guest's device only went after the wait");
    ensure!(shortest < PATIENCE + 1.0, "{shortest} s at the least");
    let seen = neighbour.sh("lspci -n | awk '{ print $3 }'")?;
    ensure!(seen.trim() == "1234:11e8", "the neighbour sees {seen}");
    raise(lab, COMPLETION_TIMEOUT)?;
    over("a second time")?;
    let took = took(lab)?;
    say!("    79: the next error, with the last one unanswered: {took:.2} s");
    ensure!(took < PATIENCE, "waited again: {took} s");
    failed()?;
    works()?;
    neighbour.destroy()?;
    bad.guest.destroy()?;
    let available = format!("grep -q '^{nic} available' {DRIVER}/status");
    lab.machine.until(&available, 30)?;
    late_answers(lab, &nic)?;
    lab.machine.until(&available, 30)
}

/// A guest that has its whole patience left, and answers each message after most of it. The first answer is taken,
/// the next step has what is left, and the one after that nothing: it is one wait, not one for each step.
fn late_answers(lab: &Lab<'_>, nic: &str) -> Result<()> {
    const LATE: f64 = 8.0;
    let bad = Bad::start(lab, "late", &[nic])?;
    let back = super::xenbus::backend(lab, &bad.guest)?;
    bad.connect()?;
    bad.one("flag set 1")?;
    // It can recover, it says: so dom0's core has a second question.
    let answer = format!("aer 60000 late {} 2", LATE * 1000.0);
    bad.start_command(1, &[answer.as_str(); 2].join(";"))?;
    raise(lab, COMPLETION_TIMEOUT)?;
    lab.machine
        .until("dmesg | grep -qE 'device recovery (successful|failed)'", 90)?;
    let took = took(lab)?;
    let log = lab.sh("dmesg | grep -E 'device recovery|cannot recover'")?;
    say!("    79: each answer after {LATE} s: over after {took:.2} s");
    ensure!(
        log.contains("device recovery successful") && log.lines().count() <= 6,
        "{log}"
    );
    ensure!(took >= LATE, "a late answer is not waited for: {took} s");
    // Twice the time of the answer, if each step had a patience of its own.
    ensure!(took < PATIENCE + 4.0, "waited for each step: {took} s");
    lab.machine.until(
        &format!("[ \"$(xenstore-read {back}/aerState)\" = aerfail ]"),
        30,
    )?;
    let said = bad.result(1)?;
    ensure!(said.matches("cmd=").count() == 2, "not asked twice: {said}");
    let reply = bad.one("op 0 0 0 0 0 4 0")?;
    ensure!(reply.contains("value=0x10d38086"), "{reply}");
    bad.guest.destroy()
}

/// A guest that closes its connection, or dies, while an answer of it is waited for (82).
fn leaves(lab: &Lab<'_>) -> Result<()> {
    let nic = nic(lab)?;
    lab.load(lab.back, &format!("hide='({nic})'"))?;
    let bad = Bad::start(lab, "leaves", &[&nic])?;
    let back = super::xenbus::backend(lab, &bad.guest)?;
    let ended = |what: &str| -> Result<bool> {
        lab.machine
            .until("dmesg | grep -qE 'device recovery (successful|failed)'", 90)?;
        let log = lab.sh("dmesg | grep -E 'device recovery|cannot recover'")?;
        let took = took(lab)?;
        say!("    82: {what}: over after {took:.2} s");
        ensure!(log.contains("device recovery successful"), "{what}: {log}");
        Ok(took < PATIENCE && log.contains("NotConnected to Detected"))
    };
    bad.connect()?;
    bad.one("flag set 1")?;
    bad.start_command(1, "aer 60000 closing")?;
    raise(lab, COMPLETION_TIMEOUT)?;
    ensure!(ended("closes")?, "not ended by the close");
    bad.result(1)?;
    lab.machine
        .until(&format!("[ \"$(xenstore-read {back}/state)\" = 5 ]"), 30)?;
    // It may come back, and the function is in order.
    bad.restart()?;
    bad.connect()?;
    let reply = bad.one("op 0 0 0 0 0 4 0")?;
    ensure!(reply.contains("value=0x10d38086"), "{reply}");
    bad.one("flag set 1")?;
    bad.start_command(1, "aer 60000 ignore")?;
    raise(lab, COMPLETION_TIMEOUT)?;
    bad.result(1)?;
    // The toolstack would wait as long itself for a paused guest to let go of its device.
    bad.guest.destroy_with_many()?;
    ensure!(ended("dies")?, "not ended by the guest's death");
    lab.machine
        .until(&format!("grep -q '^{nic} available' {DRIVER}/status"), 30)
}
