// SPDX-License-Identifier: GPL-2.0

//! Module parameters and the files in sysfs.

use super::{Case, Ends, Lab, DRIVER};
use crate::machine::{NIC, STANDARD, TESTDEV};
use anyhow::{ensure, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "slots_follow_new_slot_and_remove_slot",
        ends: Ends::Any,
        profile: &STANDARD,
        run: slots,
    },
    Case {
        name: "bad_hide_item_is_named_and_the_others_are_honoured",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: bad_hide,
    },
    Case {
        name: "module_built_for_another_kernel_is_refused_in_one_line",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: other_kernel,
    },
    Case {
        name: "assignable_add_list_remove_gives_the_nic_back_to_dom0",
        ends: Ends::Any,
        profile: &STANDARD,
        run: assignable,
    },
];

fn slots(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "")?;
    let modes = lab.sh(&format!(
        "cd {DRIVER} && stat -c '%n %a' new_slot remove_slot slots permissive"
    ))?;
    ensure!(
        modes == "new_slot 200\nremove_slot 200\nslots 444\npermissive 644\n",
        "{modes}"
    );
    ensure!(
        lab.sh(&format!("cat {DRIVER}/slots"))?.is_empty(),
        "slots is not empty at first"
    );
    let write = |file: &str, text: &str| {
        // dd writes it in one piece and names the error.
        lab.machine.ask(
            &format!("printf '%s' '{text}' | dd of={DRIVER}/{file} 2>&1"),
            20,
        )
    };
    for text in ["0000:00:06.0", "00:1f.3", "0000:00:06.0", " 00:05.*\n"] {
        ensure!(
            write("new_slot", text)?.status == 0,
            "new_slot refuses {text:?}"
        );
    }
    let all = lab.sh(&format!("cat {DRIVER}/slots"))?;
    let mut expected = String::from("0000:00:06.0\n0000:00:1f.3\n");
    for function in 0..8 {
        expected += &format!("0000:00:05.{function}\n");
    }
    ensure!(all == expected, "slots: {all}");
    for (file, text, message) in [
        ("new_slot", "nonsense", "Invalid argument"),
        ("new_slot", "0000:00:20.0", "Invalid argument"),
        ("new_slot", "0000:00:06.0 0000:00:07.0", "Invalid argument"),
        ("remove_slot", "0000:00:07.0", "No such file or directory"),
        ("remove_slot", "00:07", "Invalid argument"),
        ("permissive", "0000:00:06.0", "No such device"),
        ("permissive", "x", "Invalid argument"),
    ] {
        let answer = write(file, text)?;
        ensure!(
            answer.status != 0 && answer.output.contains(message),
            "{text:?} to {file}: status {}, {}",
            answer.status,
            answer.output
        );
    }
    for text in ["00:05.*", "0000:00:1f.3"] {
        ensure!(
            write("remove_slot", text)?.status == 0,
            "remove_slot refuses {text:?}"
        );
    }
    let all = lab.sh(&format!("cat {DRIVER}/slots"))?;
    ensure!(all == "0000:00:06.0\n", "slots: {all}");
    // Listed is not bound; bound needs to be listed.
    ensure!(
        lab.machine
            .ask(&format!("test -e {DRIVER}/{TESTDEV}"), 20)?
            .status
            != 0,
        "bound by new_slot"
    );
    ensure!(
        write("bind", "0000:00:05.0")?.status != 0,
        "an unlisted function was bound"
    );
    ensure!(
        write("bind", TESTDEV)?.status == 0,
        "a listed function was not bound"
    );
    lab.sh(&format!("test -e {DRIVER}/{TESTDEV}"))?;
    ensure!(write("unbind", TESTDEV)?.status == 0, "unbind failed");
    Ok(())
}

fn bad_hide(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:zz.0)(00:06.0)'")?;
    let slots = lab.sh(&format!("cat {DRIVER}/slots"))?;
    ensure!(slots == "0000:00:05.0\n0000:00:06.0\n", "slots: {slots}");
    for device in [NIC, TESTDEV] {
        lab.sh(&format!("test -e {DRIVER}/{device}"))?;
    }
    let log = lab.sh("dmesg | grep hide:")?;
    ensure!(log.lines().count() == 1, "not one line: {log}");
    for part in ["(00:zz.0)", "byte 9", "(BB:SS.F)"] {
        ensure!(log.contains(part), "{part:?} is not in: {log}");
    }
    Ok(())
}

fn other_kernel(lab: &Lab<'_>) -> Result<()> {
    let answer = lab
        .machine
        .ask("insmod /modules/other/xen-pciback.ko", 20)?;
    ensure!(answer.status != 0, "it was loaded");
    let log = lab.sh("dmesg | grep 'xen_pciback: built for'")?;
    // One line for each attempt: busybox makes a second one with the older system call.
    ensure!(log.lines().count() <= 2, "too many lines: {log}");
    let running = lab.sh("uname -v")?;
    for part in [running.trim(), "PREEMPT_DYNAMIX"] {
        ensure!(log.contains(part), "{part:?} is not in: {log}");
    }
    lab.sh(&format!("! test -e {DRIVER}"))?;
    Ok(())
}

fn assignable(lab: &Lab<'_>) -> Result<()> {
    lab.sh("modprobe e1000e && test -e /sys/class/net/eth0")?;
    lab.load(lab.back, "")?;
    lab.machine.xl("pci-assignable-add 00:05.0")?;
    let list = lab.machine.xl("pci-assignable-list")?;
    ensure!(list.trim() == NIC, "list: {list}");
    lab.sh("! test -e /sys/class/net/eth0")?;
    let slots = lab.sh(&format!("cat {DRIVER}/slots"))?;
    ensure!(slots == "0000:00:05.0\n", "slots: {slots}");
    lab.machine.xl("pci-assignable-remove -r 00:05.0")?;
    ensure!(
        lab.machine.xl("pci-assignable-list")?.trim().is_empty(),
        "still assignable"
    );
    let driver = lab.sh(&format!("readlink /sys/bus/pci/devices/{NIC}/driver"))?;
    ensure!(driver.trim().ends_with("/e1000e"), "driver: {driver}");
    lab.sh("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")?;
    lab.machine
        .until("[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]", 30)?;
    let ping = lab.sh("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    Ok(())
}
