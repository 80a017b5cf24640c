// SPDX-License-Identifier: GPL-2.0

//! A guest and its device: what it sees, what works, and that each one gets it.

use super::{start_nic, unload_frontend, Case, Ends, Lab, DRIVER};
use crate::{
    config,
    image::Kernel,
    machine::{GuestOptions, Profile, NIC, SMP, STANDARD},
};
use anyhow::{ensure, Context, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "nic_passed_through_equals_the_device_and_works",
        ends: Ends::Any,
        profile: &STANDARD,
        run: nic,
    },
    Case {
        name: "passthrough_shows_the_host_address",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: passthrough,
    },
    Case {
        name: "every_guest_connects_back_c",
        ends: Ends::Own,
        profile: &STANDARD,
        run: |lab| connects(lab, "c"),
    },
    Case {
        name: "every_guest_connects_back_rust",
        ends: Ends::Own,
        profile: &STANDARD,
        run: |lab| connects(lab, "rust"),
    },
    Case {
        name: "reads_from_four_vcpus_lose_no_event",
        ends: Ends::RustFrontend,
        profile: &SMP,
        run: four_vcpus,
    },
    Case {
        name: "pairing_back_c_front_c",
        ends: Ends::Own,
        profile: &STANDARD,
        run: |lab| pairing(lab, "c", "c"),
    },
    Case {
        name: "pairing_back_c_front_rust",
        ends: Ends::Own,
        profile: &STANDARD,
        run: |lab| pairing(lab, "c", "rust"),
    },
    Case {
        name: "pairing_back_rust_front_c",
        ends: Ends::Own,
        profile: &STANDARD,
        run: |lab| pairing(lab, "rust", "c"),
    },
    Case {
        name: "pairing_back_rust_front_rust",
        ends: Ends::Own,
        profile: &STANDARD,
        run: |lab| pairing(lab, "rust", "rust"),
    },
    Case {
        name: "drivers_of_a_kernel_tree_lend_a_nic",
        ends: Ends::Own,
        profile: &IN_TREE,
        run: in_tree,
    },
];

/// A kernel with both drivers in its tree, each a module or built in, and a NIC that a driver of dom0 has
/// first.
const IN_TREE: Profile = Profile {
    name: "in-tree",
    kernel: Kernel::InTree,
    devices: &["-netdev user,id=net9 -device rtl8139,netdev=net9,addr=9.0,romfile="],
    disks: &[],
    dom0: "",
    vcpus: 1,
};

fn nic(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.nic_guest("nic")?;
    let device = config::parse(&lab.sh("lspci -xxxx -s 00:05.0")?).context("in dom0")?;
    let seen = config::parse(&guest.sh("lspci -xxxx")?).context("in the guest")?;
    let differences = config::differences(&device, &seen, config::E1000E);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    say!(
        "    {} bytes equal but for:\n{}",
        device.len(),
        config::explain(config::E1000E).trim_end()
    );
    start_nic(&guest)?;
    let driver = guest.sh("readlink /sys/bus/pci/devices/0000:00:00.0/driver")?;
    ensure!(driver.trim().ends_with("/e1000e"), "driver: {driver}");

    super::download(lab, &guest, 8 << 20)?;
    let interrupts = guest.sh("grep pcifront-msi-x /proc/interrupts")?;
    let counts: Vec<u64> = interrupts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect();
    ensure!(
        counts.len() == 3 && counts.iter().all(|count| *count > 0),
        "{interrupts}"
    );
    say!("    8 MiB with the right sum; MSI-X counts {counts:?}");
    guest.destroy()
}

fn passthrough(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)' passthrough=1")?;
    let guest = lab.nic_guest("passthrough")?;
    guest.until("[ -e /sys/bus/pci/devices/0000:00:05.0 ]", 10)?;
    start_nic(&guest)?;
    guest.destroy()
}

/// Functions that guests of the soak get, one each, and how many guests run at once.
/// None that a later case uses in dom0: Xen keeps what a guest had in quarantine.
const SOAK: [&str; 4] = [NIC, "0000:00:06.0", "0000:00:0d.0", "0000:00:09.0"];

/// Our frontend over a backend, several guests at once. A busy host may let one wait for its device;
/// one that does not get it within a minute fails the case, and what both ends say is printed.
fn connects(lab: &Lab<'_>, back: &str) -> Result<()> {
    let hide = format!("({})", SOAK.join(")("));
    lab.load(back, &format!("hide='{hide}'"))?;
    let (mut started, mut present) = (0, 0);
    while started < lab.counts.connects {
        let batch = (lab.counts.connects - started).min(4);
        let names: Vec<_> = (1..=batch)
            .map(|number| format!("connect{}", started + number))
            .collect();
        for (name, device) in names.iter().zip(&SOAK) {
            let options = GuestOptions {
                front: "rust",
                devices: &[device],
                memory: 300,
                // Four boot at once: that is bound by the CPUs.
                cpus: "0-1",
                ..GuestOptions::default()
            };
            lab.machine.create(name, &options)?;
        }
        for name in &names {
            let guest = lab.machine.attach(name)?;
            let found = guest
                .until("[ -e /sys/bus/pci/devices/0000:00:00.0 ]", 60)
                .and_then(|()| guest.sh("lspci -n"));
            match found {
                Ok(list) if list.lines().count() == 1 && !list.contains("ffff:ffff") => {
                    present += 1;
                }
                other => {
                    let states = lab.machine.ask(
                        &format!("d=$(xl domid {name}); xenstore-ls /local/domain/$d/device/pci; xenstore-ls /local/domain/0/backend/pci/$d"),
                        20,
                    );
                    let log = guest.ask("dmesg | tail -n 5", 20);
                    say!("    {name} with back={back}: {other:?} {states:?} {log:?}");
                }
            }
            guest.destroy()?;
        }
        started += batch;
        say!("    back={back} front=rust: {started} guests, {present} connected");
    }
    ensure!(present == started, "not every guest saw its device");
    Ok(())
}

fn four_vcpus(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.machine.guest(
        "four",
        &GuestOptions {
            front: lab.front,
            vcpus: 4,
            cpus: "0-1",
            devices: &[NIC],
            ..GuestOptions::default()
        },
    )?;
    ensure!(guest.sh("nproc")?.trim() == "4", "not four vCPUs");
    let file = "/sys/bus/pci/devices/0000:00:00.0/config";
    let result = guest.sh_within(
        &format!("agent read 4 {} {file} 10d38086", lab.counts.reads),
        900,
    )?;
    say!("    {}", result.trim());
    let counters = lab.sh("cd /sys/bus/xen-backend/devices/pci-*/xenbus && grep . events spurious_events jiffies_eoi_delayed")?;
    say!("    {}", counters.trim().replace('\n', ", "));
    guest.destroy()?;
    let wrong = result
        .split_whitespace()
        .find_map(|word| word.strip_prefix("wrong="));
    ensure!(wrong == Some("0"), "wrong answers: {result}");
    // The core counts when it held events back; the frontend says when one was lost, which is searched for
    // after each case. How long a wait took is printed and decides nothing: on a busy host the emulated
    // CPUs are kept waiting themselves.
    ensure!(
        counters.contains("jiffies_eoi_delayed:0"),
        "events were held back: {counters}"
    );
    Ok(())
}

fn pairing(lab: &Lab<'_>, back: &str, front: &str) -> Result<()> {
    lab.load(back, "hide='(00:05.0)'")?;
    let guest = lab.guest_of(front, "pair", &[NIC])?;
    start_nic(&guest)?;
    guest.destroy()
}

/// `make test-full` looks in what is printed whether the drivers were as it wants them.
fn in_tree(lab: &Lab<'_>) -> Result<()> {
    const NIC: &str = "0000:00:09.0";
    let driver = || {
        lab.sh(&format!(
            "basename $(readlink /sys/bus/pci/devices/{NIC}/driver)"
        ))
    };
    ensure!(driver()?.trim() == "8139cp", "dom0's driver: {}", driver()?);
    lab.sh(&format!("[ -d {DRIVER} ] || modprobe xen-pciback"))?;
    lab.machine.xl("pci-assignable-add 00:09.0")?;
    ensure!(driver()?.trim() == "pciback", "driver: {}", driver()?);
    // This kernel gives a guest with PCI functions what it needs for DMA.
    let options = GuestOptions {
        front: "none",
        devices: &["00:09.0"],
        arguments: "",
        ..GuestOptions::default()
    };
    let guest = lab.machine.guest("tree", &options)?;
    guest.sh("[ -d /sys/bus/xen/drivers/pcifront ] || modprobe xen-pcifront")?;
    guest.until("[ -e /sys/class/net/eth0 ]", 30)?;
    guest.sh("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")?;
    guest.until(super::LINK_IS_UP, 30)?;
    super::download(lab, &guest, 1 << 20)?;
    let kind = |is_module: bool| if is_module { "a module" } else { "built in" };
    let back = lab
        .machine
        .ask("grep -q ^xen_pciback /proc/modules", 20)?
        .status
        == 0;
    let front = guest.ask("grep -q ^xen_pcifront /proc/modules", 20)?.status == 0;
    if front {
        let answer = unload_frontend(&guest)?;
        ensure!(answer.status == 0, "rmmod: {}", answer.output.trim());
        guest.sh("! test -e /sys/class/net/eth0 && modprobe xen-pcifront")?;
        guest.until("[ -e /sys/class/net/eth0 ]", 30)?;
    }
    guest.destroy()?;
    lab.machine
        .until(&format!("grep -q '^{NIC} available' {DRIVER}/status"), 20)?;
    lab.machine.xl("pci-assignable-remove -r 00:09.0")?;
    ensure!(
        driver()?.trim() == "8139cp",
        "it came back to {}",
        driver()?
    );
    if back {
        lab.sh(&format!("rmmod xen_pciback && ! test -e {DRIVER}"))?;
    }
    say!(
        "    backend {}, frontend {}: 1 MiB with the right sum",
        kind(back),
        kind(front)
    );
    Ok(())
}
