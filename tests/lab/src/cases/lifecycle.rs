// SPDX-License-Identifier: GPL-2.0

//! From seizing a function to giving it back.

use super::{start_nic, Case, Ends, Lab, DRIVER};
use crate::{
    files,
    machine::{Guest, GuestOptions, EDU, NIC, RESET_FAILS, RESET_MOST, SLOW, SMP, TESTDEV},
};
use agent::Answer;
use anyhow::{ensure, Context, Result};
use std::collections::BTreeMap;

pub const CASES: &[Case] = &[
    Case {
        name: "check_66_permissive_lets_a_guest_write_and_ends_with_the_assignment",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: permissive,
    },
    Case {
        name: "check_42_guest_destroyed_during_traffic_next_guest_gets_the_nic",
        ends: Ends::Any,
        profile: &SMP,
        run: destroyed,
    },
    Case {
        name: "check_23_rmmod_is_refused_while_a_guest_has_a_device",
        ends: Ends::Any,
        profile: &SMP,
        run: rmmod,
    },
    Case {
        name: "check_19_20_30_bind_and_unbind_leave_a_function_as_it_was",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: bind_unbind,
    },
    Case {
        name: "check_21_unbind_while_assigned_leaves_guest_and_dom0_alive",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: unbind_assigned,
    },
    Case {
        name: "check_22_25_bind_and_unbind_cycles_leave_nothing_behind",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: cycles,
    },
    Case {
        name: "check_26_virtual_functions_follow_their_physical_one",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: sriov,
    },
    Case {
        name: "check_28_a_function_without_reset_is_handed_on_or_kept_by_policy",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: no_reset,
    },
    Case {
        name: "check_07_neither_driver_loads_in_the_wrong_kind_of_domain",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: wrong_domain,
    },
    Case {
        name: "a_release_is_waited_for_and_one_that_fails_keeps_the_function",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: failed_reset,
    },
    Case {
        name: "a_frontend_that_starts_again_without_goodbye_is_taken_back",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: no_goodbye,
    },
    Case {
        name: "slow_resets_do_not_hold_up_another_guest",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: slow_resets,
    },
    Case {
        name: "a_card_that_is_put_in_is_lent_and_pulled_out_under_its_guest",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: card_pulled,
    },
];

fn permissive(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    // The mask of uncorrectable errors: no row of the policy covers it.
    let mask = || lab.sh("setpci -s 00:05.0 108.l");
    let before = mask()?;
    let other = u32::from_str_radix(before.trim(), 16)? ^ 0x0010_0000;
    let other = format!("{other:08x}");
    let listed = || lab.sh(&format!("cat {DRIVER}/permissive"));

    // As the guest's configuration says it: a slot, and permissive, which the toolstack writes to our file.
    let guest = lab.guest("options", &["0000:00:05.0@7,permissive=1"])?;
    let back = super::xenbus::backend(lab, &guest)?;
    super::xenbus::connected(lab, &back)?;
    let keys = lab.sh(&format!("xenstore-ls {back}"))?;
    let wish = keys.lines().find(|line| line.starts_with("vdevfn-0"));
    say!("    the toolstack wrote {}", wish.unwrap_or("no vdevfn-0"));
    ensure!(
        keys.contains("vdev-0 = \"0000:00:07.00\""),
        "not at the slot that was wished for: {keys}"
    );
    ensure!(listed()?.trim() == NIC, "not listed: {}", listed()?);
    guest.until("[ -e /sys/bus/pci/devices/0000:00:07.0 ]", 20)?;
    guest.sh(&format!("setpci -s 00:07.0 108.l={other}"))?;
    ensure!(
        mask()?.trim() == other,
        "the write did not reach the device"
    );
    guest.destroy()?;
    lab.machine
        .until(&format!("[ -z \"$(cat {DRIVER}/permissive)\" ]"), 20)?;
    lab.machine
        .until(&format!("grep -q '^{NIC} available' {DRIVER}/status"), 20)?;
    ensure!(mask()? == before, "the device keeps what the guest wrote");
    lab.sh("dmesg -c >>/var/log/dmesg.all")?;

    // The next one, without such a line, may not.
    let guest = lab.nic_guest("permissive")?;
    let write = || guest.sh(&format!("setpci -s 00:00.0 108.l={other}"));
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
    ensure!(listed()?.trim() == NIC, "not listed");
    write()?;
    ensure!(
        mask()?.trim() == other,
        "the write did not reach the device"
    );
    guest.destroy()?;
    lab.machine
        .until(&format!("[ -z \"$(cat {DRIVER}/permissive)\" ]"), 20)?;
    Ok(())
}

/// dom0's view of the NIC says that nobody can use it: no DMA, no MSI-X.
pub(super) const NIC_IS_QUIET: &str = "[ $(( 0x$(setpci -s 00:05.0 04.w) & 4 )) = 0 ] && [ $(( 0x$(setpci -s 00:05.0 a2.w) & 0x8000 )) = 0 ]";

fn destroyed(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let first = lab.nic_guest("first")?;
    start_nic(&first)?;
    first.sh(&format!(
        "setsid sh -c 'while :; do wget -q -O /dev/null http://10.0.2.2:{}/100000000; done' >/dev/null 2>&1 &",
        lab.port
    ))?;
    let before = first.sh("cat /sys/class/net/eth0/statistics/rx_bytes")?;
    first
        .until(
            &format!(
                "[ $(cat /sys/class/net/eth0/statistics/rx_bytes) -gt {} ]",
                before.trim()
            ),
            30,
        )
        .context("there is no traffic")?;
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

fn bind_unbind(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "")?;
    let twin = "0000:00:0b.0";
    let config = |device: &str| lab.sh(&format!("lspci -xxxx -s {device} | tail -n +2"));
    for device in [NIC, EDU, twin, "0000:00:07.0", "0000:00:0c.2"] {
        let before = config(device)?;
        lab.sh(&format!(
            "printf {device} >{DRIVER}/new_slot && printf {device} >{DRIVER}/bind && test -e {DRIVER}/{device}"
        ))?;
        let bound = config(device)?;
        ensure!(
            bound == before,
            "{device} differs while it is bound:\n{before}{bound}"
        );
        let quirks = lab.sh(&format!("cat {DRIVER}/quirks"))?;
        ensure!(quirks.contains(&device[5..]), "{device} is not in quirks");
    }
    // Two of a kind: one goes, the list of the other stays whole.
    for device in [twin, NIC, EDU, "0000:00:07.0", "0000:00:0c.2"] {
        let before = config(device)?;
        lab.sh(&format!(
            "printf {device} >{DRIVER}/unbind && cat {DRIVER}/quirks"
        ))?;
        ensure!(
            config(device)? == before,
            "{device} differs after it was given back"
        );
    }
    ensure!(
        lab.sh(&format!("cat {DRIVER}/quirks"))?.is_empty(),
        "quirks is not empty"
    );
    // Each binding resets the function, by whatever way it has: its firmware's here.
    let slow = SLOW[0];
    for (firmware, reset) in [(RESET_FAILS, "failed"), (0, "done")] {
        tell_firmware(lab, slow, firmware)?;
        lab.sh(&format!(
            "{{ grep -q {slow} {DRIVER}/slots || printf {slow} >{DRIVER}/new_slot; }} && printf {slow} >{DRIVER}/bind"
        ))?;
        let status = lab.sh(&format!("grep ^{slow} {DRIVER}/status"))?;
        ensure!(
            status.contains(&format!("available reset={reset}")),
            "{status}"
        );
        lab.sh(&format!("printf {slow} >{DRIVER}/unbind"))?;
    }
    // The disk's own driver finds it in order.
    lab.sh("modprobe nvme")?;
    lab.machine.until(
        "ls /sys/bus/pci/devices/0000:00:07.0/nvme/nvme*/nvme*n1 >/dev/null",
        10,
    )?;
    let sum = lab.sh("d=$(ls -d /sys/bus/pci/devices/0000:00:07.0/nvme/nvme*/nvme*n1); head -c 1048576 /dev/${d##*/} | sha256sum")?;
    let expected = files::contents(1 << 20);
    ensure!(
        sum.starts_with(&files::sum(&expected)),
        "the disk reads {sum}"
    );
    Ok(())
}

fn unbind_assigned(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.nic_guest("unbound")?;
    start_nic(&guest)?;
    let domid = lab.machine.xl("domid unbound")?.trim().to_owned();
    lab.sh(&format!("printf {NIC} >{DRIVER}/unbind"))?;
    let stars = lab.sh("dmesg | grep pciback | grep -F '******'")?;
    ensure!(
        stars.lines().count() == 4 && stars.lines().all(|l| l.contains(&format!("omain {domid}"))),
        "{stars}"
    );
    let read = guest.sh("setpci -s 00:00.0 00.l; cat /proc/uptime >/dev/null && echo alive")?;
    ensure!(read == "ffffffff\nalive\n", "the guest reads {read}");
    lab.sh(NIC_IS_QUIET)?;
    // Bound again it is still the guest's, which has it mapped; but the guest does not get at it.
    lab.sh(&format!(
        "printf {NIC} >{DRIVER}/bind && grep -q '^{NIC} assigned {domid} ' {DRIVER}/status"
    ))?;
    let read = guest.sh("setpci -s 00:00.0 00.l")?;
    ensure!(read == "ffffffff\n", "the guest reads {read}");
    guest.destroy()?;
    let guest = lab.nic_guest("next")?;
    start_nic(&guest)?;
    guest.destroy()
}

/// The objects of each of the kernel's caches: the fewest of some looks, as many live for a moment only, and
/// after the five seconds that the kernel may keep what is freed after a grace period. Ranges of addresses that
/// were unmapped it keeps for longer, until the rights of some page change, as when a module is loaded. With
/// SLUB's checks on, as they are here, the numbers are exact: no CPU keeps free ones for itself.
fn objects(lab: &Lab<'_>) -> Result<BTreeMap<String, i64>> {
    let text = lab.sh(
        "modprobe igbvf && rmmod igbvf || exit 1; sleep 6; for i in 1 2 3 4 5; do sleep 0.3; cat /proc/slabinfo; done |
         awk '$2 ~ /^[0-9]+$/ && (!($1 in n) || $2 < n[$1]) { n[$1] = $2 } END { for (c in n) print c, n[c] }'",
    )?;
    text.lines()
        .map(|line| {
            let (name, count) = line.split_once(' ').context("slabinfo")?;
            Ok((name.to_owned(), count.parse()?))
        })
        .collect()
}

fn cycles(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    lab.sh(&format!(
        "for d in {NIC} {EDU}; do printf $d >{DRIVER}/new_slot; done; printf {EDU} >{DRIVER}/bind"
    ))?;
    // One function with MSI-X and a reset, one with neither. `unbind` and `bind` are where the same is written
    // to when nothing is to happen.
    let round = |count: u32, unbind: &str, bind: &str| -> Result<()> {
        let answer = lab.machine.ask(
            &format!(
                "i=0; while [ $i -lt {count} ]; do i=$((i + 1)); for d in {NIC} {EDU}; do
                   printf $d >{unbind} && printf $d >{bind} || exit 1; done; done"
            ),
            u64::from(count) / 2 + 120,
        )?;
        ensure!(
            answer.status == 0,
            "a bind or unbind failed: {}",
            answer.output
        );
        Ok(())
    };
    let (unbind, bind) = (format!("{DRIVER}/unbind"), format!("{DRIVER}/bind"));
    round(10, &unbind, &bind)?;
    let count = lab.counts.cycles / 2;
    let mut before = objects(lab)?;
    let mut growth = |unbind: &str, bind: &str| -> Result<BTreeMap<String, i64>> {
        round(count, unbind, bind)?;
        let after = objects(lab)?;
        let more = after.iter().map(|(name, count)| {
            let before = before.get(name).copied().unwrap_or(0);
            (name.clone(), count - before)
        });
        let more = more.collect();
        before = after;
        Ok(more)
    };
    let idle = growth("/dev/null", "/dev/null")?;
    // What comes and goes anyway is not the same in both parts; a leak is in each.
    let parts = [growth(&unbind, &bind)?, growth(&unbind, &bind)?];
    let mut worst = (0, "none");
    // A thread of the kernel's own has those of damon.
    for name in parts[0].keys().filter(|name| !name.starts_with("damon")) {
        let of = |growth: &BTreeMap<String, i64>| growth.get(name).copied().unwrap_or(0);
        let leak = of(&parts[0]).min(of(&parts[1])) - of(&idle).max(0);
        worst = worst.max((leak, name));
    }
    let (leak, cache) = worst;
    say!("    twice {count} cycles of two functions: {leak} objects more in {cache}, the most of all caches");
    // One object in ten cycles of one function.
    let limit = i64::from(count.div_ceil(10));
    if leak >= limit {
        for (what, part) in [("idle", &idle), ("once", &parts[0]), ("again", &parts[1])] {
            let changed = part.iter().filter(|(_, more)| **more != 0);
            let changed: Vec<_> = changed.map(|(n, more)| format!("{n} {more:+}")).collect();
            say!("    {what}: {}", changed.join(", "));
        }
    }
    ensure!(leak < limit, "{leak} objects more in {cache}");
    let complaints = lab
        .machine
        .ask("dmesg | grep 'pciback 0000:' | grep -iE 'failed|error'", 20)?;
    ensure!(complaints.status == 1, "{}", complaints.output);
    Ok(())
}

fn sriov(lab: &Lab<'_>) -> Result<()> {
    const PF: &str = "/sys/bus/pci/devices/0000:01:00.0";
    // With the parameter the driver knows its virtual functions again when it comes back.
    lab.sh("modprobe igb max_vfs=2")?;
    let functions = lab.sh(&format!(
        "for l in {PF}/virtfn*; do basename $(readlink $l); done"
    ))?;
    let functions: Vec<&str> = functions.lines().collect();
    ensure!(functions.len() == 2, "{functions:?}");
    lab.load(
        lab.back,
        &format!("hide='({})({})' hide_force=1", functions[0], functions[1]),
    )?;
    for device in &functions {
        lab.sh(&format!("test -e {DRIVER}/{device}"))?;
    }
    let guest = lab.guest("vf", &[functions[0]])?;
    guest.until("[ $(lspci | wc -l) = 1 ]", 20)?;
    // Its own registers read as all ones, the kernel knows the ids.
    let ids = guest.sh("lspci -n")?;
    ensure!(ids.contains("8086:10ca"), "{ids}");
    guest.sh("modprobe igbvf && test -e /sys/class/net/eth0 && ip link set eth0 up && grep -q pcifront-msi-x /proc/interrupts")?;
    vf_traffic(lab, &guest)?;

    // The core knows that a guest has one: its driver keeps all.
    let answer = lab.machine.ask(&format!("echo 0 >{PF}/sriov_numvfs"), 30)?;
    ensure!(
        answer.status != 0,
        "the virtual functions may be taken away"
    );
    lab.sh(&format!(
        "[ $(cat {PF}/sriov_numvfs) = 2 ] && dmesg | grep -q 'while they are assigned'"
    ))?;

    // The physical function's driver goes: the free one is let go, the other stays with its guest.
    lab.sh(&format!("echo 0000:01:00.0 >{PF}/driver/unbind"))?;
    lab.sh(&format!(
        "! test -e {DRIVER}/{} && test -e {DRIVER}/{}",
        functions[1], functions[0]
    ))?;
    let log = lab.sh("dmesg | grep 'physical function 0000:01:00.0 loses its driver'")?;
    ensure!(log.contains(functions[0]), "{log}");
    ensure!(
        guest.sh("lspci -n")?.contains("8086:10ca"),
        "the guest lost it"
    );
    guest.destroy()?;
    lab.machine.until(
        &format!("grep -q '^{} available' {DRIVER}/status", functions[0]),
        30,
    )?;
    lab.sh("rmmod xen_pciback && echo 0000:01:00.0 >/sys/bus/pci/drivers/igb/bind")?;
    lab.sh(&format!(
        "echo 0 >{PF}/sriov_numvfs && [ $(cat {PF}/sriov_numvfs) = 0 ]"
    ))?;
    Ok(())
}

/// Data through a virtual function: the physical one is up in dom0, for its link is theirs.
fn vf_traffic(lab: &Lab<'_>, guest: &Guest<'_>) -> Result<()> {
    lab.sh("ip link set $(ls /sys/bus/pci/devices/0000:01:00.0/net) up")?;
    guest.sh("ip addr add 10.0.2.15/24 dev eth0")?;
    guest.until(super::LINK_IS_UP, 30)?;
    let ping = guest.sh("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    super::download(lab, guest, 1 << 20)?;
    let interrupts = guest.sh("grep pcifront-msi-x /proc/interrupts")?;
    let counts: Vec<u64> = interrupts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect();
    say!("    over the VF: ping, 1 MiB with the right sum; MSI-X counts {counts:?}");
    ensure!(
        !counts.is_empty() && counts.iter().sum::<u64>() > 0,
        "no interrupt: {interrupts}"
    );
    Ok(())
}

fn no_reset(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:06.0)'")?;
    let status = || lab.sh(&format!("cat {DRIVER}/status"));
    ensure!(
        status()? == format!("{TESTDEV} available reset=no-method\n"),
        "{}",
        status()?
    );
    let front = |name: &str| {
        lab.machine.guest(
            name,
            &GuestOptions {
                front: lab.front,
                devices: &[TESTDEV],
                ..GuestOptions::default()
            },
        )
    };
    front("one")?.destroy()?;
    lab.machine.until(
        &format!("grep -q '^{TESTDEV} available reset=no-method' {DRIVER}/status"),
        20,
    )?;
    let said = lab.sh("dmesg | grep -c '0000:00:06.0: has no way to be reset'")?;
    ensure!(said.trim().parse::<u32>()? >= 2, "{said} lines");
    lab.sh("echo 1 >/sys/module/xen_pciback/parameters/require_reset")?;
    front("two")?.destroy()?;
    lab.machine.until(
        &format!("grep -q '^{TESTDEV} quarantined reset=no-method' {DRIVER}/status"),
        20,
    )?;
    // The next one does not get it, and is told why.
    let guest = front("three")?;
    let log = lab.sh("dmesg | grep 'xen-pciback pci-' | tail -n 3")?;
    ensure!(
        log.contains("quarantined: it has no way to be reset"),
        "{log}"
    );
    guest.destroy()?;
    lab.sh(&format!(
        "printf {TESTDEV} >{DRIVER}/unbind && printf {TESTDEV} >{DRIVER}/bind && grep -q available {DRIVER}/status"
    ))?;
    Ok(())
}

/// Tells the firmware of a function of [`SLOW`] how long its next reset takes, twice so many seconds more, or that
/// it fails. The function's state from before it was taken ends that, after the reset.
fn tell_firmware(lab: &Lab<'_>, function: &str, value: u8) -> Result<()> {
    lab.sh(&format!("setpci -s {function} 3c.b={value:x}"))?;
    Ok(())
}

fn wrong_domain(lab: &Lab<'_>) -> Result<()> {
    let refused = |answer: Answer| -> Result<()> {
        ensure!(
            answer.status != 0 && answer.output.contains("No such device"),
            "{answer:?}"
        );
        Ok(())
    };
    // dom0 is no guest, whatever else it is.
    let insmod = "insmod /modules/misplaced/*.ko 2>&1";
    refused(lab.machine.ask(insmod, 30)?).context("the frontend in dom0")?;
    lab.sh("! grep -q ^xen_pcifront /proc/modules && ! test -e /sys/bus/xen/drivers/pcifront")?;
    let options = GuestOptions {
        front: "none",
        ..GuestOptions::default()
    };
    let guest = lab.machine.guest("wrong", &options)?;
    refused(guest.ask(insmod, 30)?).context("the backend in a guest")?;
    guest.sh(&format!(
        "! grep -q ^xen_pciback /proc/modules && ! test -e {DRIVER}"
    ))?;
    // There the frontend loads, also without a device, and goes again.
    guest.sh("insmod /modules/rust/xen-pcifront.ko && rmmod xen_pcifront")?;
    guest.destroy()
}

/// One guest, one function, taken away and given again: while it is being reset, for less than thirty seconds
/// and for more; after a reset that failed.
fn failed_reset(lab: &Lab<'_>) -> Result<()> {
    let [function, ..] = SLOW;
    lab.load(lab.back, &format!("hide='(00:05.0)({function})'"))?;
    let guest = lab.guest("keeper", &[NIC, function])?;
    let back = super::xenbus::backend(lab, &guest)?;
    super::xenbus::connected(lab, &back)?;
    let becomes = |text: &str, seconds: u64| {
        let condition = format!("grep -q '^{function} {text}' {DRIVER}/status");
        lab.machine.until(&condition, seconds)
    };
    // What the toolstack writes for it (which would then also reset the function itself, by do_flr). Gives
    // the seconds until the backend has answered, what `status` then says, and the device's state.
    let plug = |before: &str, state: u32| -> Result<(u64, String)> {
        let text = lab.machine.sh_within(
            &format!(
                "now() {{ cut -d. -f1 /proc/uptime; }}
                 line() {{ grep ^{function} {DRIVER}/status; }}
                 case $(line) in '{function} {before}'*) ;; *) line; exit 1 ;; esac
                 begin=$(now)
                 xenstore-write {back}/state-1 {state} {back}/state 7
                 until [ $(xenstore-read {back}/state) = 4 ]; do sleep 0.1; done
                 echo $(($(now) - begin)) $(line | cut -d' ' -f2) state-1=$(xenstore-read {back}/state-1)"
            ),
            120,
        )?;
        let (seconds, text) = text.trim().split_once(' ').context("no time")?;
        Ok((seconds.parse()?, text.to_owned()))
    };
    let expect = |(seconds, text): (u64, String), what: &str, wanted: &str| {
        say!("    {what}: {text} after {seconds} s");
        ensure!(text == wanted, "{what}: {text}, not {wanted}");
        Ok(seconds)
    };

    tell_firmware(lab, function, 4)?;
    plug("assigned", 5)?;
    expect(
        plug("releasing", 1)?,
        "given while it is reset, which takes 10 s",
        "assigned state-1=3",
    )?;
    guest.until("[ $(lspci | wc -l) = 2 ]", 20)?;

    tell_firmware(lab, function, 23)?;
    plug("assigned", 5)?;
    // It is the reset that is not over: the wait has its own end.
    let seconds = expect(
        plug("releasing", 1)?,
        "given while it is reset, which takes 48 s",
        "releasing state-1=6",
    )?;
    ensure!(seconds >= 29, "the wait was over after {seconds} s");
    let log = lab.sh(&format!("dmesg | grep '{function} is '"))?;
    ensure!(log.contains("still being taken back from domain"), "{log}");
    becomes("available reset=done", 60)?;

    plug("available", 1)?;
    tell_firmware(lab, function, RESET_FAILS)?;
    plug("assigned", 5)?;
    becomes("quarantined reset=failed", 30)?;
    let status = lab.sh(&format!("grep ^{function} {DRIVER}/status"))?;
    say!("    a reset that fails: {}", status.trim());
    expect(
        plug("quarantined", 1)?,
        "given after that",
        "quarantined state-1=6",
    )?;
    let log = lab.sh(&format!("dmesg | grep '{function} is '"))?;
    ensure!(log.contains("quarantined: the reset failed"), "{log}");
    ensure!(
        guest.sh("lspci -n")?.lines().count() == 1,
        "the guest has it all the same"
    );
    // The administrator's reset fails, too; then it does not.
    let do_flr = format!("printf {function} >{DRIVER}/do_flr");
    tell_firmware(lab, function, RESET_FAILS)?;
    let answer = lab.machine.ask(&do_flr, 30)?;
    ensure!(
        answer.status != 0,
        "a reset that failed was said to be done"
    );
    becomes("quarantined reset=failed", 1)?;
    lab.sh(&do_flr)?;
    becomes("available reset=done", 1)?;
    expect(
        plug("available", 1)?,
        "given after a reset by do_flr",
        "assigned state-1=3",
    )?;
    guest.until("[ $(lspci | wc -l) = 2 ]", 20)?;

    tell_firmware(lab, function, RESET_FAILS)?;
    plug("assigned", 5)?;
    becomes("quarantined reset=failed", 30)?;
    lab.sh(&format!(
        "printf {function} >{DRIVER}/unbind && printf {function} >{DRIVER}/bind"
    ))?;
    becomes("available reset=done", 1)?;
    expect(
        plug("available", 1)?,
        "given after it was bound anew",
        "assigned state-1=3",
    )?;
    guest.destroy_with_many()
}

fn no_goodbye(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let bad = super::ring::Bad::start(lab, "again", &[NIC])?;
    bad.connect()?;
    let ids = || -> Result<()> {
        let answer = bad.one("op 0 0 0 0 0 4 0")?;
        ensure!(answer.contains("err=0 value=0x10d38086"), "{answer}");
        Ok(())
    };
    ids()?;
    let first = bad.one("keys")?;
    for round in 1..=3 {
        // Initialising, as a kernel that has just started, with the old page published and in use.
        bad.one("state 1")?;
        bad.one("wait 120000 3")?;
        bad.connect()?;
        ids().with_context(|| format!("round {round}"))?;
    }
    let last = bad.one("keys")?;
    ensure!(first != last, "the page is the same: {last}");
    // So fast that its start was not seen: another page, and both states as they were.
    bad.one("connect")?;
    ids().context("another page at once")?;
    let domid = lab.machine.xl("domid again")?;
    lab.sh(&format!(
        "grep -q '^{NIC} assigned {} ' {DRIVER}/status",
        domid.trim()
    ))?;
    bad.guest.destroy()?;
    // Nothing of the pages in between is left: the function is free, the next guest works with it.
    let guest = lab.nic_guest("next")?;
    start_nic(&guest)?;
    guest.destroy()
}

fn slow_resets(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, &format!("hide='({})(00:05.0)'", SLOW.join(")(")))?;
    let victim = lab.guest("victim", &SLOW)?;
    let other = lab.guest("other", &[NIC])?;
    let gone = super::xenbus::backend(lab, &victim)?;
    let back = super::xenbus::backend(lab, &other)?;
    super::xenbus::connected(lab, &gone)?;
    super::xenbus::connected(lab, &back)?;
    let domid = lab.machine.xl("domid victim")?;
    // `plug STATE WHOSE`: the other guest's device is taken away or given, which needs the thread that serves
    // xenbus, and both ends have agreed on it.
    let tools = format!(
        "now() {{ awk '{{ print int($1 * 1000) }}' /proc/uptime; }}
         begin=$(now)
         since() {{ echo $(($(now) - begin)) ms; }}
         releasing() {{ grep releasing {DRIVER}/status | grep -vc {NIC}; }}
         plug() {{
           xenstore-write {back}/state-0 $1 {back}/state 7
           i=0; until [ $(xenstore-read {back}/state) = 4 ] && grep -q '^{NIC} '$2 {DRIVER}/status; do
             i=$((i + 1)); [ $i = 1600 ] && exit 1; sleep 0.05; done; }}"
    );
    let run = |script: &str| -> Result<String> {
        let answer = lab.machine.ask(&format!("{tools}\n{script}"), 120)?;
        ensure!(answer.status == 0, "{answer:?}");
        Ok(answer.output)
    };
    // What that takes on this host while nothing is reset.
    let alone = run("plug 5 available; plug 1 assigned; since")?;
    let alone: u64 = alone.trim().trim_end_matches(" ms").parse()?;
    // The resets take three times as long.
    let more = (3 * alone).saturating_sub(2000).div_ceil(2000).max(1);
    let more = u8::try_from(more)?;
    ensure!(
        more <= RESET_MOST,
        "this host needs {alone} ms for a device to go and come: too slow to tell anything"
    );
    for function in SLOW {
        tell_firmware(lab, function, more)?;
    }
    // In dom0 in one go: the first guest loses its devices, and while they are being reset the other's is
    // taken away and given again.
    let log = run(&format!(
        "xenstore-rm {gone}
         i=0; until grep -q releasing {DRIVER}/status || [ $i = 50 ]; do i=$((i + 1)); done
         echo begun while $(releasing) were releasing, after $(since)
         while [ -e /sys/devices/pci-{}-0 ]; do :; done
         echo gone while $(releasing) were releasing, after $(since)
         cat {DRIVER}/quirks >/tmp/quirks; echo read while $(releasing) were releasing, $(grep -c busy /tmp/quirks) busy
         for f in {slow}; do {{ setpci -s $f 00.l >/tmp/ids.$f; releasing >/tmp/left.$f; }} & done
         plug 5 available; echo taken while $(releasing) were releasing, after $(since)
         plug 1 assigned; echo given while $(releasing) were releasing, after $(since)
         until ! grep -q releasing {DRIVER}/status; do sleep 0.05; done
         echo all reset after $(since)
         wait; echo ids $(cat /tmp/ids.*), left $(cat /tmp/left.*)",
        domid.trim(),
        slow = SLOW.join(" ")
    ))?;
    say!("    alone {alone} ms; {}", log.trim().replace('\n', "; "));
    let during = |what: &str| -> Result<u32> {
        let line = log.lines().find_map(|line| line.strip_prefix(what));
        let count = line.and_then(|line| line.strip_prefix(" while ")?.split(' ').next());
        count
            .context("no such line")?
            .parse()
            .context(what.to_owned())
    };
    // The thread that serves all guests' xenbus ends the first guest's backend device in one go, and is free
    // when the device has gone.
    ensure!(
        during("gone")? == 4,
        "the thread that serves all guests had to wait for resets"
    );
    for what in ["taken", "given"] {
        ensure!(
            during(what)? > 0,
            "the other guest's device was {what} only after the resets"
        );
    }
    // A file that shows all functions does not wait for those that are being reset.
    ensure!(
        during("read")? == 4
            && log.contains("read while 4 were releasing, ")
            && !log.contains(", 0 busy"),
        "reading a file: {log}"
    );
    // dom0's own reads of their registers wait (S20): nobody sees a function that is being reset.
    let right = format!("ids {}, left ", ["00051b36"; 4].join(" "));
    let left = log.lines().find_map(|line| line.strip_prefix(&right));
    let left = left.with_context(|| format!("dom0 reads something else: {log}"))?;
    let left: Vec<u32> = left.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(
        left.iter().all(|left| *left < 4),
        "dom0's reads did not wait: {left:?} were still being reset"
    );
    victim.destroy_with_many()?;
    other.destroy()
}

fn card_pulled(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "")?;
    for round in 1..=2 {
        lab.machine
            .monitor("device_add edu,bus=port4,id=hot")
            .context("QEMU")?;
        let in_place = "ls -d /sys/bus/pci/devices/0000:00:13.0/????:??:??.?";
        lab.machine
            .until(&format!("{in_place} >/dev/null 2>&1"), 30)?;
        let below = lab.below("00:13.0")?;
        let card = below.first().context("no card")?;
        // The core may still be looking for its driver, and then binds it by itself.
        lab.sh(&format!(
            "printf {card} >{DRIVER}/new_slot && {{ printf {card} >{DRIVER}/bind 2>/dev/null || true; }}"
        ))?;
        lab.machine
            .until(&format!("grep -q '^{card} available' {DRIVER}/status"), 10)?;
        let name = format!("card{round}");
        let guest = lab.guest(&name, &[card])?;
        guest.until("lspci -n | grep -q 1234:11e8", 20)?;
        let status = lab.sh(&format!("cat {DRIVER}/status"))?;
        ensure!(status.contains(&format!("{card} assigned")), "{status}");
        lab.machine.monitor("device_del hot").context("QEMU")?;
        lab.machine
            .until(&format!("! {in_place} >/dev/null 2>&1"), 60)?;
        let stars = lab.sh("dmesg | grep -cF '******'")?;
        ensure!(stars.trim() == "4", "{stars} lines");
        let read = guest.sh("setpci -s 00:00.0 00.l")?;
        ensure!(read == "ffffffff\n", "the guest reads {read}");
        lab.sh(&format!("! grep -q {card} {DRIVER}/status"))?;
        guest.destroy()?;
        lab.sh("dmesg -c >>/var/log/dmesg.all")?;
    }
    Ok(())
}
