// SPDX-License-Identifier: GPL-2.0

//! From seizing a function to giving it back.

use super::{start_nic, Case, Ends, Lab, DRIVER};
use crate::machine::{NIC, STANDARD};
use anyhow::{ensure, Context, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "permissive_lets_a_guest_write_and_ends_with_the_assignment",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: permissive,
    },
    Case {
        name: "guest_destroyed_during_traffic_next_guest_gets_the_nic",
        ends: Ends::Any,
        profile: &STANDARD,
        run: destroyed,
    },
    Case {
        name: "rmmod_is_refused_while_a_guest_has_a_device",
        ends: Ends::Any,
        profile: &STANDARD,
        run: rmmod,
    },
];

fn permissive(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.nic_guest("permissive")?;
    // The mask of uncorrectable errors: no row of the policy covers it.
    let mask = || lab.sh("setpci -s 00:05.0 108.l");
    let before = mask()?;
    let other = u32::from_str_radix(before.trim(), 16)? ^ 0x0010_0000;
    let write = || guest.sh(&format!("setpci -s 00:00.0 108.l={other:x}"));
    write()?;
    ensure!(mask()? == before, "a write reached the device");
    // Said, but not for each write: the guest's own start drops some already.
    let lines: u32 = lab
        .sh("dmesg | grep -c 'write at offset .* is dropped'")?
        .trim()
        .parse()?;
    ensure!(
        (1..=4).contains(&lines),
        "{lines} lines about dropped writes"
    );
    lab.sh(&format!("printf {NIC} >{DRIVER}/permissive"))?;
    ensure!(
        lab.sh(&format!("cat {DRIVER}/permissive"))?.trim() == NIC,
        "not listed"
    );
    write()?;
    ensure!(
        mask()?.trim() == format!("{other:08x}"),
        "the write did not reach the device"
    );
    guest.destroy()?;
    lab.machine
        .until(&format!("[ -z \"$(cat {DRIVER}/permissive)\" ]"), 20)?;
    Ok(())
}

/// dom0's view of the NIC says that nobody can use it: no DMA, no MSI-X.
const NIC_IS_QUIET: &str = "[ $(( 0x$(setpci -s 00:05.0 04.w) & 4 )) = 0 ] && [ $(( 0x$(setpci -s 00:05.0 a2.w) & 0x8000 )) = 0 ]";

fn destroyed(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let first = lab.nic_guest("first")?;
    start_nic(&first)?;
    first.sh(&format!(
        "setsid sh -c 'while :; do wget -q -O /dev/null http://10.0.2.2:{}/100000000; done' >/dev/null 2>&1 &",
        lab.port
    ))?;
    let received = || first.sh("cat /sys/class/net/eth0/statistics/rx_bytes");
    let before = received()?;
    first.sh("sleep 2")?;
    ensure!(before != received()?, "there is no traffic");
    first.destroy()?;
    // At once: the function may still be being reset.
    let second = lab.nic_guest("second")?;
    start_nic(&second).context("the second guest")?;
    second.destroy()?;
    lab.machine.until(NIC_IS_QUIET, 10)?;
    Ok(())
}

fn rmmod(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.nic_guest("holder")?;
    let answer = lab.machine.ask("rmmod xen_pciback", 30)?;
    ensure!(
        answer.status != 0 && answer.output.contains("temporarily unavailable"),
        "{answer:?}"
    );
    ensure!(
        guest.sh("lspci -n")?.contains("8086:10d3"),
        "the guest lost its device"
    );
    guest.destroy()?;
    lab.machine.until("rmmod xen_pciback 2>/dev/null", 20)?;
    lab.sh(&format!("! test -e {DRIVER}"))?;
    lab.sh(NIC_IS_QUIET)?;
    Ok(())
}
