// SPDX-License-Identifier: GPL-2.0

//! INTx, MSI, MSI-X (section G).

use super::{start_nic, Case, Ends, Lab, DRIVER, TRACE};
use crate::machine::{Guest, EDU, NIC, STANDARD};
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
        name: "check_25_27_xen_prepares_msix_once_for_a_binding_and_maps_the_vectors_for_the_guest",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: prepared,
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
pub(super) fn handler(lab: &Lab<'_>, device: &str) -> Result<(String, u32)> {
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
    super::download(lab, guest, 1 << 20)
}

/// Has the emulator's own card interrupt the guest; what the driver there says came of it.
fn raise(guest: &Guest<'_>, parameters: &str) -> Result<String> {
    guest.sh_within(
        &format!(
            "dmesg -c >/dev/null; insmod /modules/test/guestdrv.ko {parameters} && echo 1234 11e8 >/sys/bus/pci/drivers/guestdrv/new_id"
        ),
        300,
    )?;
    let said = guest.sh("dmesg | sed -n 's/.*guestdrv: \\(msi=.*\\)/\\1/p'")?;
    Ok(said.trim().to_owned())
}

fn intx(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:09.0)(00:0a.0)'")?;
    let guest = lab.guest("intx", &[NIC, RTL, EDU])?;
    for device in [NIC, RTL, EDU] {
        ensure!(handler(lab, device)? == ("off:not acking".into(), 0));
    }
    // Each interrupt that the card is told to raise reaches the guest, and dom0, which acknowledges it. The line is
    // level-triggered: before both have ended an interrupt there is no next one, and there may be one more while
    // the guest is on its way to quiet the card. Xen itself ends one that a domain takes more than a millisecond
    // for, so a dom0 that has no turn may miss a few.
    ensure!(
        raise(&guest, "raise=200")? == "msi=0 raised=200 heard=200",
        "{}",
        guest.sh("dmesg | tail -n 20")?
    );
    let (state, count) = handler(lab, EDU)?;
    say!("    200 interrupts raised, dom0 acknowledged {count}");
    ensure!(
        state == "on:acking" && (150..=400).contains(&count),
        "{state} {count}"
    );
    guest.sh("rmmod guestdrv")?;
    // A card in work: dom0 acknowledges what the guest gets.
    guest.sh("modprobe 8139cp")?;
    traffic(lab, &guest, "eth0")?;
    let there = guest.sh("grep eth0 /proc/interrupts")?;
    ensure!(there.contains("xen-pirq"), "{there}");
    let got: u32 = there
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok())
        .with_context(|| there.clone())?;
    let (state, count) = handler(lab, RTL)?;
    say!("    1 MiB: the guest got {got} interrupts, dom0 acknowledged {count}");
    ensure!(
        state == "on:acking" && got > 0 && count >= got - got / 4,
        "{state} {count}"
    );
    let line = lab.sh("grep xen-pciback /proc/interrupts")?;
    ensure!(line.contains(&format!("xen-pciback[{RTL}]")), "{line}");

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
    for device in [NIC, RTL, EDU] {
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

/// Each vector that the guest uses is mapped for it in Xen's own table, and for nobody else (27).
fn are_the_guests(lab: &Lab<'_>, guest: &Guest<'_>) -> Result<()> {
    let used = guest.sh("grep -c pcifront-msi /proc/interrupts")?;
    let domid = lab.machine.xl(&format!("domid {}", guest.name))?;
    let table = lab.sh("xl dmesg -c >/dev/null; xl debug-keys i && xl dmesg")?;
    let theirs: Vec<_> = table
        .lines()
        .filter(|line| line.contains("PCI-MSI") && line.contains(&format!(" d{}:", domid.trim())))
        .collect();
    say!("    27: {}", theirs.join("; "));
    ensure!(
        theirs.len().to_string() == used.trim() && !theirs.iter().any(|line| line.contains("d0:")),
        "27: the guest uses {} vectors, in Xen's table are {theirs:?}",
        used.trim()
    );
    Ok(())
}

/// Counts the backend's hypercalls for it in dom0's kernel, with their results.
fn prepared(lab: &Lab<'_>) -> Result<()> {
    const NVME: &str = "0000:00:07.0";
    const CALL: &str = "xen_pciback:xen_pciback_physdev_msix";
    lab.load(lab.back, "")?;
    let calls = || -> Result<String> {
        let text = lab.sh(&format!(
            "cd {TRACE} && sed -n 's/.*\\(prepare=[01]\\|result=.*\\)$/\\1/p' trace && echo >trace"
        ))?;
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let bind = |device: &str| {
        lab.sh(&format!(
            "printf {device} >{DRIVER}/new_slot && printf {device} >{DRIVER}/bind"
        ))
    };
    let unbind = |device: &str| {
        lab.sh(&format!(
            "printf {device} >{DRIVER}/unbind && printf {device} >{DRIVER}/remove_slot"
        ))
    };
    let probes = [
        format!("p:msix_call {CALL} prepare=%si:u8"),
        format!("r:msix_end {CALL} result=$retval:s32"),
    ];
    lab.probed(&probes.each_ref().map(String::as_str), || {
        for device in [NIC, NVME] {
            for round in 0..5 {
                bind(device)?;
                let on = calls()?;
                unbind(device)?;
                let off = calls()?;
                ensure!(
                    on == "prepare=1 result=0" && off == "prepare=0 result=0",
                    "{device}, round {round}: {on:?} when bound, {off:?} when unbound"
                );
            }
        }
        // Xen must not be asked about a function without MSI-X.
        bind(EDU)?;
        unbind(EDU)?;
        ensure!(calls()?.is_empty(), "{EDU} has no MSI-X");
        // A guest's time with it changes nothing about that.
        bind(NIC)?;
        let on = calls()?;
        let guest = lab.nic_guest("prepared")?;
        start_nic(&guest)?;
        ensure!(messages(lab, NIC)? == (false, true), "MSI-X is not on");
        are_the_guests(lab, &guest)?;
        guest.destroy()?;
        lab.machine
            .until(&format!("grep -q '^{NIC} available' {DRIVER}/status"), 30)?;
        let between = calls()?;
        unbind(NIC)?;
        let off = calls()?;
        ensure!(
            on == "prepare=1 result=0" && between.is_empty() && off == "prepare=0 result=0",
            "{on:?} when bound, {between:?} for a guest, {off:?} when unbound"
        );
        say!("    11 times prepared, 11 times released, each with Xen's yes");
        Ok(())
    })
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

/// What dom0 sees switched on in a function: MSI, MSI-X.
fn messages(lab: &Lab<'_>, device: &str) -> Result<(bool, bool)> {
    let text = lab.sh(&format!("lspci -vv -s {device}"))?;
    let on = |name: &str| text.contains(&format!("{name}: Enable+"));
    Ok((on("MSI"), on("MSI-X")))
}

fn killed(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)'")?;
    for (mode, interrupt) in [("0", "xen-pirq"), ("2", "pcifront-msi-x")] {
        let guest = lab.nic_guest(&format!("mode{mode}"))?;
        guest.sh(&format!("modprobe e1000e IntMode={mode}"))?;
        start_nic(&guest).with_context(|| format!("IntMode={mode}"))?;
        let lines = guest.sh("grep eth0 /proc/interrupts")?;
        ensure!(
            lines
                .split_whitespace()
                .any(|word| word.trim_start_matches('-') == interrupt),
            "IntMode={mode}: {lines}"
        );
        ensure!(
            messages(lab, NIC)? == (false, mode == "2"),
            "IntMode={mode}: dom0 sees another mode"
        );
        guest.destroy()?;
        lab.machine.until(super::lifecycle::NIC_IS_QUIET, 20)?;
        lab.machine.until(
            &format!("grep -q '^{NIC} available reset=done' {DRIVER}/status"),
            20,
        )?;
    }
    // With MSI. The NIC's driver goes back to the pin when its first interrupt is late, which a busy host makes it;
    // this one keeps what it has got. The other card's interrupts are seen to arrive.
    let guest = lab.guest("mode1", &[NIC, EDU])?;
    let said = raise(&guest, "msi=1 raise=50")?;
    ensure!(
        said == "msi=1 raised=50 heard=50",
        "{said}: {}",
        guest.sh("dmesg | tail -n 20")?
    );
    guest.sh("echo 8086 10d3 >/sys/bus/pci/drivers/guestdrv/new_id")?;
    for device in [NIC, EDU] {
        ensure!(
            messages(lab, device)? == (true, false),
            "{device}: MSI is not on"
        );
    }
    guest.destroy_with_many()?;
    lab.machine.until(super::lifecycle::NIC_IS_QUIET, 20)?;
    for (device, reset) in [(NIC, "done"), (EDU, "no-method")] {
        lab.machine.until(
            &format!("grep -q '^{device} available reset={reset}' {DRIVER}/status"),
            20,
        )?;
        ensure!(
            messages(lab, device)? == (false, false),
            "{device}: still on"
        );
    }
    // dom0's own driver finds it in order, with MSI-X. Xen keeps what a guest had in quarantine until the
    // toolstack takes it out.
    lab.machine.xl(&format!("pci-assignable-remove {NIC}"))?;
    lab.sh("rmmod xen_pciback && modprobe e1000e && ip link set eth0 up && grep -q eth0-rx /proc/interrupts && ip link set eth0 down")?;
    Ok(())
}
