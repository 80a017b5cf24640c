// SPDX-License-Identifier: GPL-2.0

//! INTx, MSI, MSI-X (section G).

use super::{start_nic, Case, Ends, Lab, DRIVER};
use crate::machine::{Guest, NIC, STANDARD};
use anyhow::{ensure, Context, Result};

/// To run before any guest had the card on that line: Xen does not give DMA with it back to dom0.
pub const IN_DOM0: &[Case] = &[Case {
    name: "check_71_a_handler_that_no_guest_needs_falls_silent",
    ends: Ends::RustBackend,
    profile: &STANDARD,
    run: not_shared,
}];

pub const CASES: &[Case] = &[
    Case {
        name: "check_18_71_intx_reaches_the_guest_and_dom0_acknowledges_the_line",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: intx,
    },
    Case {
        name: "check_77_a_guest_killed_in_each_interrupt_mode_leaves_the_device_usable",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: killed,
    },
];

const RTL: &str = "0000:00:09.0";

/// The state that `irq_handlers` shows: without the address, and the count apart.
fn handler(lab: &Lab<'_>, device: &str) -> Result<(String, u32)> {
    let line = lab.sh(&format!("grep ^{device} {DRIVER}/irq_handlers"))?;
    let (state, count) = line.trim()[device.len() + 1..]
        .rsplit_once(':')
        .context("no count")?;
    Ok((state.to_owned(), count.parse()?))
}

fn traffic(lab: &Lab<'_>, guest: &Guest<'_>, interface: &str) -> Result<()> {
    guest.sh(&format!(
        "ip link set {interface} up && ip addr add 10.0.2.16/24 dev {interface}"
    ))?;
    let got = guest.sh_within(
        &format!(
            "wget -q -O - http://10.0.2.2:{}/1048576 | sha256sum",
            lab.port
        ),
        120,
    )?;
    let expected = crate::files::sum(&crate::files::contents(1 << 20));
    ensure!(got.starts_with(&expected), "1 MiB arrived with sum {got}");
    Ok(())
}

fn intx(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:09.0)'")?;
    let guest = lab.guest("intx", &[NIC, RTL])?;
    for device in [NIC, RTL] {
        ensure!(handler(lab, device)? == ("off:not acking".into(), 0));
    }
    guest.sh("modprobe 8139cp")?;
    traffic(lab, &guest, "eth0")?;
    let (state, count) = handler(lab, RTL)?;
    ensure!(state == "on:acking" && count > 0, "{state} {count}");
    let line = lab.sh("grep xen-pciback /proc/interrupts")?;
    ensure!(line.contains(&format!("xen-pciback[{RTL}]")), "{line}");
    let there = guest.sh("grep eth0 /proc/interrupts")?;
    ensure!(there.contains("xen-pirq"), "{there}");
    say!("    the guest got its interrupts, dom0 acknowledged {count}");

    // With MSI-X the handler stays on the line and falls silent.
    guest.sh("ip link set eth0 down && modprobe e1000e")?;
    let (state, _) = handler(lab, NIC)?;
    ensure!(state == "on:not acking", "with MSI-X: {state}");
    // Without their drivers the functions stay enabled, and may use their pins again.
    guest.sh("modprobe -r e1000e && modprobe -r 8139cp")?;
    for device in [NIC, RTL] {
        let (state, _) = handler(lab, device)?;
        ensure!(state == "on:acking", "{device} without driver: {state}");
    }
    guest.destroy_with_many()?;
    for device in [NIC, RTL] {
        lab.machine.until(
            &format!("grep -q '^{device}:off:not acking' {DRIVER}/irq_handlers"),
            30,
        )?;
    }
    let left = lab
        .machine
        .ask("grep -F 'xen-pciback[' /proc/interrupts", 20)?;
    ensure!(left.status == 1, "{}", left.output);
    Ok(())
}

fn not_shared(lab: &Lab<'_>) -> Result<()> {
    // dom0 uses a card whose line another function of ours shares; no guest is on it.
    let sound = "0000:00:0d.0";
    lab.load(lab.back, "hide='(00:0d.0)'")?;
    ensure!(handler(lab, sound)?.0 == "off:not acking");
    lab.sh(&format!("printf {sound} >{DRIVER}/irq_handler_state"))?;
    ensure!(handler(lab, sound)? == ("on:acking".into(), 0));
    // A guest of an earlier case may have had the card. Xen then keeps it from reaching any memory until the
    // toolstack gives it back, which it does although the card is not bound to pciback any more.
    lab.machine
        .ask(&format!("xl pci-assignable-remove {RTL}"), 60)?;
    lab.sh("modprobe 8139cp && ip link set eth0 up && ip addr add 10.0.2.17/24 dev eth0")?;
    lab.machine.ask(
        &format!("wget -q -O /dev/null http://10.0.2.2:{}/4000000", lab.port),
        120,
    )?;
    lab.machine.until(
        &format!("ping -c 200 -i 0.01 10.0.2.2 >/dev/null; ! grep -q '^{sound}:on:acking' {DRIVER}/irq_handlers"),
        120,
    )?;
    let (state, count) = handler(lab, sound)?;
    ensure!(
        state == "on:not acking" && count % 1000 == 0,
        "{state} {count}"
    );
    let said = lab.sh("dmesg | grep 'not shared with other domains'")?;
    ensure!(said.lines().count() == 1 && said.contains(sound), "{said}");
    // Off again by hand.
    lab.sh(&format!("printf {sound} >{DRIVER}/irq_handler_state"))?;
    ensure!(handler(lab, sound)?.0 == "off:not acking");
    lab.sh("ip link set eth0 down")?;
    Ok(())
}

fn killed(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    for (mode, interrupt) in [
        ("0", "xen-pirq"),
        ("1", "pcifront-msi"),
        ("2", "pcifront-msi-x"),
    ] {
        let guest = lab.nic_guest(&format!("mode{mode}"))?;
        guest.sh(&format!("modprobe e1000e IntMode={mode}"))?;
        start_nic(&guest).with_context(|| format!("IntMode={mode}"))?;
        let lines = guest.sh("grep eth0 /proc/interrupts")?;
        // The driver tries MSI for 50 ms and goes back to the pin if no interrupt came in time.
        let slow = guest
            .ask("dmesg | grep 'MSI interrupt test failed'", 20)?
            .status
            == 0;
        ensure!(
            lines
                .split_whitespace()
                .any(|word| word.trim_start_matches('-') == interrupt)
                || (mode == "1" && slow),
            "IntMode={mode}: {lines}"
        );
        guest.destroy()?;
        lab.machine.until(super::lifecycle::NIC_IS_QUIET, 20)?;
        lab.machine.until(
            &format!("grep -q '^{NIC} available reset=done' {DRIVER}/status"),
            20,
        )?;
    }
    // dom0's own driver finds it in order, with MSI-X. Xen keeps what a guest had in quarantine until the
    // toolstack takes it out.
    lab.machine.xl(&format!("pci-assignable-remove {NIC}"))?;
    lab.sh("rmmod xen_pciback && modprobe e1000e && ip link set eth0 up && grep -q eth0-rx /proc/interrupts && ip link set eth0 down")?;
    Ok(())
}
