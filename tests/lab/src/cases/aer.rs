// SPDX-License-Identifier: GPL-2.0

//! Errors of the PCIe hierarchy (section H): QEMU raises them at a NIC behind a root port, dom0's PCI
//! core asks our backend, that asks the guest.

use super::{start_nic, Case, Ends, Lab, DRIVER};
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
];

/// The NIC behind the second port.
pub(super) fn nic(lab: &Lab<'_>) -> Result<String> {
    let below = lab.below("00:11.0")?;
    below.into_iter().next().context("nothing behind the port")
}

/// Raises an error at it.
pub(super) fn raise(lab: &Lab<'_>, error: &str) -> Result<()> {
    lab.sh("dmesg -c >>/var/log/dmesg.all")?;
    let said = lab
        .machine
        .monitor(&format!("pcie_aer_inject_error nic2 {error}"))?;
    ensure!(said.starts_with("OK"), "QEMU: {said}");
    Ok(())
}

fn recovers(lab: &Lab<'_>) -> Result<()> {
    let nic = nic(lab)?;
    lab.load(lab.back, &format!("hide='({nic})'"))?;
    let guest = lab.guest("aer", &[&nic])?;
    start_nic(&guest)?;
    for error in ["COMP_TIME", "MALF_TLP"] {
        raise(lab, error)?;
        lab.machine
            .until("dmesg | grep -qE 'device recovery (successful|failed)'", 60)?;
        let log = lab.sh("dmesg | grep -E 'AER|recover|pciback'")?;
        ensure!(log.contains("device recovery successful"), "{error}: {log}");
        ensure!(!log.contains("cannot recover"), "{error}: {log}");
        guest.until("[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]", 30)?;
        let ping = guest.sh("ping -c 3 -W 10 10.0.2.2")?;
        ensure!(ping.contains("3 packets received"), "{error}: {ping}");
    }
    // A corrected error is nobody's business but the log's.
    raise(lab, "RCVR")?;
    lab.machine.until("dmesg | grep -qi 'correctable'", 30)?;
    guest.sh("ping -c 1 -W 10 10.0.2.2 >/dev/null")?;
    guest.destroy()
}

fn no_driver(lab: &Lab<'_>) -> Result<()> {
    let nic = nic(lab)?;
    lab.load(lab.back, &format!("hide='({nic})'"))?;
    // Nobody has it: the hierarchy recovers without it.
    raise(lab, "COMP_TIME")?;
    lab.machine
        .until("dmesg | grep -q 'device recovery successful'", 60)?;
    let guest = lab.guest("nodriver", &[&nic])?;
    guest.until("[ $(lspci | wc -l) = 1 ]", 20)?;
    let back = super::xenbus::backend(lab, &guest)?;
    raise(lab, "COMP_TIME")?;
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
