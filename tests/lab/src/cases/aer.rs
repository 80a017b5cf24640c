// SPDX-License-Identifier: GPL-2.0

//! Errors of the PCIe hierarchy (section H): raised at a NIC behind a root port, dom0's PCI core asks our
//! backend, that asks the guest.

use super::{ring::Bad, start_nic, Case, Ends, Lab, DRIVER};
use crate::machine::STANDARD;
use anyhow::{ensure, Context, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "check_78_errors_reach_the_guests_driver_and_it_recovers",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: recovers,
    },
    Case {
        name: "check_81_a_guest_without_a_driver_is_marked_in_the_store",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: no_driver,
    },
    Case {
        name: "check_79_80_82_a_guest_that_answers_badly_or_not_at_all_costs_seconds",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: bad_answers,
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

/// Raises an error at it: the kernel's own injector puts it into the registers and rings the port's
/// interrupt. (The emulated NIC cannot have error reporting switched on, so its own would not be sent.)
fn raise(lab: &Lab<'_>, error: u32) -> Result<()> {
    let nic = nic(lab)?;
    let bus = u32::from_str_radix(&nic[5..7], 16)?;
    // `struct aer_error_inj`: bus, device, function; uncorrectable and correctable status, header log,
    // domain.
    let bytes: Vec<String> = [bus, error, 0, 1, 2, 3, 4, 0]
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
    lab.load(lab.back, &format!("hide='({nic})'"))?;
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
    // No answer: one wait, and none for the steps after it, nor for the next error.
    bad.start_command(1, "aer 60000 ignore")?;
    for round in ["first", "second"] {
        raise(lab, COMPLETION_TIMEOUT)?;
        over(round)?;
        failed()?;
        works()?;
    }
    bad.result(1)?;
    // It answers in the end and is asked again; then it closes in the middle.
    bad.one("flag clear 2")?;
    bad.start_command(1, "aer 60000 closing")?;
    raise(lab, COMPLETION_TIMEOUT)?;
    over("closing")?;
    bad.result(1)?;
    lab.machine
        .until(&format!("[ \"$(xenstore-read {back}/state)\" = 5 ]"), 30)?;
    bad.guest.destroy()?;
    lab.machine
        .until(&format!("grep -q '^{nic} available' {DRIVER}/status"), 30)
}
