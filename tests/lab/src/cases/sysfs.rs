// SPDX-License-Identifier: GPL-2.0

//! Module parameters and the files in sysfs.

use super::{Case, Ends, Lab, DRIVER};
use crate::machine::{EDU, NIC, SMP, TESTDEV};
use anyhow::{bail, ensure, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "check_08_10_slots_follow_new_slot_and_remove_slot",
        ends: Ends::Any,
        profile: &SMP,
        run: slots,
    },
    Case {
        name: "check_04_bad_hide_item_is_named_and_the_others_are_honoured",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: bad_hide,
    },
    Case {
        name: "module_built_for_another_kernel_is_refused_in_one_line",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: other_kernel,
    },
    Case {
        name: "check_20_assignable_add_list_remove_gives_the_nic_back_to_dom0",
        ends: Ends::Any,
        profile: &SMP,
        run: assignable,
    },
    Case {
        name: "check_01_05_12_parameters_files_and_modes",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: files,
    },
    Case {
        name: "check_02_wildcards_give_all_ids_and_no_list_is_cut",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: wildcards,
    },
    Case {
        name: "check_06_a_listed_bridge_means_all_below_it",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: bridge,
    },
    Case {
        name: "check_09_14_17_what_is_written_wrongly_gets_its_error_and_a_line",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: garbage,
    },
    Case {
        name: "check_11_driver_override_binds_and_its_slot_ends_with_the_binding",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: driver_override,
    },
    Case {
        name: "check_13_15_grants_are_listed_once_and_can_be_taken_back",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: grants,
    },
    Case {
        name: "hide_names_the_driver_that_has_a_function_and_hide_force_takes_it",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: hide_force,
    },
    Case {
        name: "neighbours_in_a_page_or_on_a_line_are_warned_of",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: neighbours,
    },
    Case {
        name: "do_flr_resets_by_the_best_method_and_says_what_came_of_it",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: do_flr,
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
    lab.machine.until(super::LINK_IS_UP, 30)?;
    let ping = lab.sh("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    Ok(())
}

fn files(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)'")?;
    let parameters =
        lab.sh("cd /sys/module/xen_pciback/parameters && stat -c '%n %a' * && grep . *")?;
    ensure!(
        parameters
            == "hide 444\nhide_force 444\npassthrough 444\npermissive 644\nrequire_reset 644\n\
                hide:(00:05.0)(00:0a.0)\nhide_force:N\npassthrough:N\npermissive:N\nrequire_reset:N\n",
        "{parameters}"
    );
    let modes = lab.sh(&format!(
        "cd {DRIVER} && stat -c '%n %a' $(ls -d *_* | grep -v _id) slots quirks permissive status"
    ))?;
    ensure!(
        modes
            == "allow_interrupt_control 644\ndo_flr 200\nirq_handler_state 200\nirq_handlers 444\n\
                new_slot 200\nremove_slot 200\nslots 444\nquirks 644\npermissive 644\nstatus 444\n",
        "{modes}"
    );
    let read = |file: &str| lab.sh(&format!("cat {DRIVER}/{file}"));
    ensure!(read("slots")? == "0000:00:05.0\n0000:00:0a.0\n");
    // The one that was taken last comes first.
    let handlers = read("irq_handlers")?;
    ensure!(
        handlers == "0000:00:0a.0:off:not acking:0\n0000:00:05.0:off:not acking:0\n",
        "{handlers}"
    );
    let status = read("status")?;
    ensure!(
        status == "0000:00:0a.0 available reset=no-method\n0000:00:05.0 available reset=done\n",
        "{status}"
    );
    let quirks = read("quirks")?;
    for part in [
        "00:0a.0\n\t1234:11e8:1af4:1100\n\t\t00000000:2:00000000\n",
        "00:05.0\n\t8086:10d3:8086:0000\n\t\t00000000:2:00000000\n",
        "\t\t00000010:4:00000000\n",
    ] {
        ensure!(quirks.contains(part), "{part:?} is not in: {quirks}");
    }
    Ok(())
}

fn wildcards(lab: &Lab<'_>) -> Result<()> {
    // Buses that do not exist: only the lists are looked at.
    lab.load(lab.back, "hide='(1c:1b.*)(1d:*.*)(001e:1e:*.*)'")?;
    let count = |command: &str| -> Result<u32> { Ok(lab.sh(command)?.trim().parse()?) };
    ensure!(
        count(&format!("grep -c 0000:1c:1b {DRIVER}/slots"))? == 8,
        "not 8"
    );
    // More than a page of them, each once, and read in pieces of any size.
    for command in [
        format!("sort -u {DRIVER}/slots | wc -l"),
        format!("dd if={DRIVER}/slots bs=7 2>/dev/null | sort -u | wc -l"),
        format!("dd if={DRIVER}/slots bs=64k 2>/dev/null | wc -l"),
    ] {
        ensure!(count(&command)? == 520, "{command}: {}", count(&command)?);
    }
    ensure!(lab.sh(&format!("tail -n 1 {DRIVER}/slots"))? == "001e:1e:1f.7\n");
    Ok(())
}

fn bridge(lab: &Lab<'_>) -> Result<()> {
    let below = lab.below("00:14.0")?;
    ensure!(below.len() == 5, "below the port: {below:?}");
    lab.load(lab.back, "hide='(00:14.0)'")?;
    ensure!(lab.sh(&format!("cat {DRIVER}/slots"))? == "0000:00:14.0\n");
    for device in below {
        lab.sh(&format!("test -e {DRIVER}/{device}"))?;
    }
    // The port itself has a driver already.
    let line = lab.sh("dmesg | grep 'is listed in hide='")?;
    ensure!(
        line.lines().count() == 1 && line.contains("0000:00:14.0") && line.contains("pcieport"),
        "{line}"
    );
    Ok(())
}

/// Writes text to one of the driver's files in one piece; the error's name if it is refused.
fn write(lab: &Lab<'_>, file: &str, text: &str) -> Result<Option<String>> {
    let answer = lab.machine.ask(
        &format!("printf '%s' '{text}' | dd of={DRIVER}/{file} 2>&1"),
        20,
    )?;
    let line = answer.output.lines().next().unwrap_or_default();
    let name = line.rsplit(": ").next().unwrap_or_default();
    Ok((answer.status != 0).then(|| name.trim().to_owned()))
}

fn garbage(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)'")?;
    const INVALID: &str = "Invalid argument";
    const NO_DEVICE: &str = "No such device";
    const NO_ENTRY: &str = "No such file or directory";
    let long = "7".repeat(4000);
    for (file, text, error) in [
        ("new_slot", "zz:00.0", INVALID),
        ("new_slot", "100:00.0", INVALID),
        ("new_slot", &long, INVALID),
        ("remove_slot", "nonsense", INVALID),
        ("remove_slot", "00:1f.7", NO_ENTRY),
        ("irq_handler_state", "nonsense", INVALID),
        ("irq_handler_state", "00:1f.7", NO_ENTRY),
        ("irq_handler_state", "00:05.*", INVALID),
        ("permissive", "00:1f.7", NO_DEVICE),
        ("permissive", "-00:1f.7", NO_DEVICE),
        ("permissive", "--00:05.0", INVALID),
        ("allow_interrupt_control", "00:1f.7", NO_DEVICE),
        ("allow_interrupt_control", "00:05", INVALID),
        ("do_flr", "00:1f.7", NO_DEVICE),
        ("do_flr", "x", INVALID),
        ("quirks", "00:05.0-1000:1:ff", INVALID),
        ("quirks", "00:05.0-e0:3:ff", INVALID),
        ("quirks", "00:05.0-e0:1:1ff", INVALID),
        ("quirks", "00:05.0-04:2:3", INVALID),
        ("quirks", "00:1f.7-e0:1:ff", NO_DEVICE),
        ("quirks", "00:05.0", INVALID),
    ] {
        let lines = "dmesg | grep -c 'xen_pciback: '";
        let before: u32 = lab.machine.ask(lines, 20)?.output.trim().parse()?;
        let result = write(lab, file, text)?;
        ensure!(
            result.as_deref() == Some(error),
            "{text:.40?} to {file}: {result:?}, not {error}"
        );
        let after: u32 = lab.machine.ask(lines, 20)?.output.trim().parse()?;
        let silent = file == "remove_slot" && error == NO_ENTRY;
        ensure!(
            after - before == u32::from(!silent),
            "{text:.40?} to {file}: {} lines",
            after - before
        );
    }
    ensure!(lab.sh(&format!("cat {DRIVER}/slots"))? == "0000:00:05.0\n");
    Ok(())
}

fn driver_override(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "")?;
    let probe = format!("echo {TESTDEV} >/sys/bus/pci/drivers_probe");
    let slots = || lab.sh(&format!("cat {DRIVER}/slots"));
    // As libvirt does it, twice: what it gives back is not taken again.
    for _ in 0..2 {
        lab.sh(&format!(
            "cd /sys/bus/pci/devices/{TESTDEV} && echo pciback >driver_override && {probe} && test -e {DRIVER}/{TESTDEV}"
        ))?;
        ensure!(slots()? == format!("{TESTDEV}\n"), "slots: {}", slots()?);
        lab.sh(&format!(
            "cd /sys/bus/pci/devices/{TESTDEV} && echo >driver_override && echo {TESTDEV} >driver/unbind && {probe}"
        ))?;
        ensure!(slots()?.is_empty(), "slots: {}", slots()?);
        lab.sh(&format!("! test -e {DRIVER}/{TESTDEV}"))?;
    }
    Ok(())
}

fn grants(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)'")?;
    let read = |file: &str| lab.sh(&format!("cat {DRIVER}/{file}"));
    for file in ["permissive", "allow_interrupt_control"] {
        ensure!(read(file)?.is_empty(), "{file} lists something");
        for text in [NIC, "00:05.0", EDU] {
            ensure!(write(lab, file, text)?.is_none(), "{file} refuses {text}");
        }
        ensure!(read(file)? == format!("{EDU}\n{NIC}\n"), "{}", read(file)?);
        ensure!(write(lab, file, "-00:05.0")?.is_none(), "{file} keeps it");
        ensure!(read(file)? == format!("{EDU}\n"), "{}", read(file)?);
    }
    let warnings = lab.sh("dmesg | grep -c 'permissive mode is potentially unsafe'")?;
    ensure!(
        warnings.trim() == "2",
        "{warnings} warnings for two functions"
    );
    lab.sh(&format!(
        "printf {EDU} >{DRIVER}/unbind; printf {EDU} >{DRIVER}/bind"
    ))?;
    ensure!(read("permissive")?.is_empty(), "it outlived the binding");
    Ok(())
}

fn hide_force(lab: &Lab<'_>) -> Result<()> {
    lab.give_to_dom0(NIC)?;
    lab.sh("modprobe e1000e && modprobe nvme && ip link set eth0 up && mkdir -p /tmp/disk")?;
    lab.machine
        .until("test -b /dev/nvme0n1 && test -b /dev/nvme1n1", 10)?;
    // Not the disk whose contents other cases read.
    let below = lab.below("00:12.0")?;
    let [storage] = below.as_slice() else {
        bail!("one disk expected: {below:?}");
    };
    let disk =
        format!("d=$(ls -d /sys/bus/pci/devices/{storage}/nvme/nvme*/nvme*n1); d=/dev/${{d##*/}}");
    lab.sh(&format!("{disk}; mke2fs -q $d 2>/dev/null || mkfs.ext2 $d >/dev/null; modprobe ext4; mount -t ext2 $d /tmp/disk || mount -t ext4 $d /tmp/disk"))?;
    let nic = "readlink /sys/class/net/eth0/device";
    ensure!(lab.sh(nic)?.trim().ends_with(NIC), "eth0 is another one");
    let serial = lab.sh("readlink /sys/bus/pci/devices/0000:00:08.0/driver")?;
    ensure!(
        serial.trim().ends_with("/serial"),
        "no serial line: {serial}"
    );
    let hide = format!("hide='(00:05.0)(00:06.0)(00:08.0)({})'", &storage[5..]);
    lab.load(lab.back, &hide)?;
    let lines = |text: &str| lab.machine.ask(&format!("dmesg | grep '{text}'"), 20);
    let said = lines("is listed in hide=")?.output;
    for part in [
        "0000:00:05.0: is listed in hide=, but driver e1000e",
        "0000:00:08.0: is listed in hide=, but driver serial",
        &format!("{storage}: is listed in hide=, but driver nvme"),
    ] {
        ensure!(said.contains(part), "{part:?} is not in: {said}");
    }
    ensure!(said.lines().count() == 3, "{said}");
    lab.sh(&format!(
        "test -e {DRIVER}/{TESTDEV} && rmmod xen_pciback && dmesg -c >>/var/log/dmesg.all"
    ))?;

    lab.load(lab.back, &format!("{hide} hide_force=1"))?;
    let said = lines("is listed in hide=")?.output;
    for part in [
        "stays with driver e1000e",
        "interface eth0 is up",
        "stays with driver nvme",
        "is mounted or open",
        "stays with driver serial",
        "may be a console",
    ] {
        ensure!(said.contains(part), "{part:?} is not in: {said}");
    }
    lab.sh("ip link show eth0 >/dev/null && rmmod xen_pciback && dmesg -c >>/var/log/dmesg.all")?;

    lab.sh("ip link set eth0 down && umount /tmp/disk")?;
    // The console stays where it is, whatever else is given up.
    lab.load(lab.back, &format!("{hide} hide_force=1"))?;
    lab.sh(&format!("! test -e {DRIVER}/0000:00:08.0"))?;
    for device in [NIC, TESTDEV, storage] {
        lab.sh(&format!("test -e {DRIVER}/{device}"))?;
    }
    let taken = lines("by hide_force")?.output;
    ensure!(
        taken.lines().count() == 2 && taken.contains("from driver e1000e"),
        "{taken}"
    );
    Ok(())
}

fn neighbours(lab: &Lab<'_>) -> Result<()> {
    // The firmware gives each BAR pages of its own; Linux, after a rescan, does not.
    let cards = lab.below("00:14.0")?;
    let cards: Vec<&String> = cards
        .iter()
        .filter(|d| d.ends_with(":03.0") || d.ends_with(":04.0"))
        .collect();
    ensure!(cards.len() == 2, "{cards:?}");
    for card in &cards {
        lab.sh(&format!("echo 1 >/sys/bus/pci/devices/{card}/remove"))?;
    }
    lab.sh("echo 1 >/sys/bus/pci/rescan")?;
    let page = |card: &str| {
        lab.sh(&format!(
            "awk 'NR == 2 {{ print substr($1, 1, length($1) - 3) }}' /sys/bus/pci/devices/{card}/resource"
        ))
    };
    ensure!(
        page(cards[0])? == page(cards[1])?,
        "the two share no page: {} {}",
        page(cards[0])?,
        page(cards[1])?
    );
    // Slots 9 and d share a line.
    lab.sh("modprobe 8139cp && dmesg -c >>/var/log/dmesg.all")?;
    lab.load(
        lab.back,
        &format!("hide='({})(00:0d.0)' hide_force=1", cards[0]),
    )?;
    let said = lab.sh("dmesg | grep shares")?;
    for part in [
        format!("shares a page with {}", cards[1]),
        "0000:00:0d.0: shares its interrupt line with 0000:00:09.0 (8139cp)".to_owned(),
    ] {
        ensure!(said.contains(&part), "{part:?} is not in: {said}");
    }
    Ok(())
}

fn do_flr(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:0c.0)(00:0c.1)'")?;
    let status = |device: &str| {
        lab.sh(&format!("grep ^{device} {DRIVER}/status"))
            .map(|line| line.trim().to_owned())
    };
    ensure!(write(lab, "do_flr", NIC)?.is_none(), "do_flr refuses {NIC}");
    ensure!(status(NIC)?.ends_with("reset=done"), "{}", status(NIC)?);
    // A function of the root bus without a method of its own: its neighbours are not ours.
    let usb = "0000:00:0c.0";
    let result = write(lab, "do_flr", usb)?;
    ensure!(
        result.as_deref() == Some("Inappropriate ioctl for device"),
        "{result:?}"
    );
    ensure!(
        status(usb)?.ends_with("reset=no-method"),
        "{}",
        status(usb)?
    );
    // Two functions alone on a bus, both ours and free: the bus is reset for either.
    let bus = lab.below("00:14.0")?;
    let below: Vec<&String> = bus.iter().skip(1).collect();
    for device in &below {
        lab.sh(&format!(
            "printf {device} >{DRIVER}/new_slot; printf {device} >{DRIVER}/bind"
        ))?;
    }
    let config = |device: &str| lab.sh(&format!("lspci -xxx -s {device}"));
    let before = config(below[0])?;
    ensure!(
        write(lab, "do_flr", below[0])?.is_none(),
        "{} is not reset by its bus",
        below[0]
    );
    ensure!(
        config(below[0])? == before,
        "another configuration after the reset"
    );
    ensure!(
        status(below[0])?.ends_with("reset=done"),
        "{}",
        status(below[0])?
    );
    // With one of them in other hands it is not.
    lab.sh(&format!("printf {} >{DRIVER}/unbind", below[1]))?;
    let result = write(lab, "do_flr", below[0])?;
    ensure!(
        result.as_deref() == Some("Inappropriate ioctl for device"),
        "{result:?}"
    );
    Ok(())
}
