// SPDX-License-Identifier: GPL-2.0

//! The frontend: buses, transport, cache, its life and its messages (section I).
//!
//! The cases that break the rules have `badback` of `tests/modules` at the other end, which lends
//! functions that do not exist, so they run with our frontend only.

use super::{start_nic, unload_frontend, Case, Ends, Lab};
use crate::machine::{Guest, GuestOptions, NIC, SMP, STANDARD};
use anyhow::{bail, ensure, Context, Result};
use std::time::Instant;

pub const CASES: &[Case] = &[
    Case {
        name: "check_85_driver_rebinds_and_the_module_comes_back",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: rebind,
    },
    Case {
        name: "error_messages_reach_the_handlers_that_are_there",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: error_messages,
    },
    Case {
        name: "constants_are_asked_once_and_the_ids_always",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: constants,
    },
    Case {
        name: "check_89_more_vectors_wanted_than_there_are_gives_those_there_are",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: vectors,
    },
    Case {
        name: "nvme_reads_back_64_mib_while_lspci_runs_on_four_vcpus",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: disk,
    },
    Case {
        name: "check_90_eight_threads_and_interrupt_context_get_their_own_answers",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: threads,
    },
    Case {
        name: "check_84_functions_without_function_0_and_several_roots_are_found",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: no_function_0,
    },
    Case {
        name: "hot_plug_and_unplug_leave_a_busy_nic_alone",
        ends: Ends::RustFrontend,
        profile: &SMP,
        run: hot_plug,
    },
    Case {
        name: "roots_in_several_domains_and_a_backend_without_a_list",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: roots,
    },
    Case {
        name: "check_83_bar_that_cannot_be_claimed_is_explained",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: unclaimed,
    },
    Case {
        name: "check_87_backend_that_dies_in_any_state_is_cleaned_up",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: backend_dies,
    },
    Case {
        name: "check_86_backend_that_breaks_the_rules_costs_bounded_time_and_one_line",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: bad_backend,
    },
    Case {
        name: "a_backend_that_restarts_for_ever_and_keeps_pages_gets_few",
        ends: Ends::RustFrontend,
        profile: &SMP,
        run: restarts,
    },
    Case {
        name: "a_checkpoint_leaves_a_guest_its_device",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: save,
    },
    Case {
        name: "a_restored_guest_finds_its_device_again",
        ends: Ends::RustFrontend,
        profile: &STANDARD,
        run: restore,
    },
];

/// A checkpoint suspends the guest and has it go on, with its device as it was.
fn save(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.machine.guest("save", &small(lab))?;
    start_nic(&guest)?;
    saved(lab, "save -c save")?;
    lab.sh("rm /tmp/save.image")?;
    guest.sh("dmesg | grep -q 'suspending xenstore'")?;
    guest.until(super::LINK_IS_UP, 30)?;
    ensure!(
        guest
            .sh("ping -c 3 -W 10 10.0.2.2")?
            .contains("3 packets received"),
        "no answer after a checkpoint"
    );
    guest.destroy()
}

/// After a restore both ends connect anew, and the function is found anew. No driver of the guest has
/// it: else the guest's kernel stops in its own code for interrupts, before it comes to the frontend.
fn restore(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.machine.guest("save", &small(lab))?;
    appears(&guest, FIRST)?;
    guest.sh(&format!(
        "touch /tmp/before; echo same >{DEVICES}/{FIRST}/driver_override"
    ))?;
    saved(lab, "save save")?;
    lab.machine.xl("restore /tmp/save.image")?;
    lab.sh("rm /tmp/save.image")?;
    let guest = lab.machine.attach("save")?;
    appears(&guest, FIRST)?;
    guest.sh(&format!(
        "test -e /tmp/before && ! grep -qx same {DEVICES}/{FIRST}/driver_override"
    ))?;
    start_nic(&guest)?;
    guest.destroy()
}

/// A guest with the NIC that is quickly written to a file.
fn small<'a>(lab: &Lab<'a>) -> GuestOptions<'a> {
    GuestOptions {
        front: lab.front,
        memory: 256,
        devices: &[NIC],
        ..GuestOptions::default()
    }
}

/// `xl save`, which has to succeed.
fn saved(lab: &Lab<'_>, arguments: &str) -> Result<()> {
    let text = lab.machine.xl(&format!("{arguments} /tmp/save.image"))?;
    let shown = text.lines().filter(|line| !line.contains("progress"));
    say!("    {}", shown.collect::<Vec<_>>().join("; "));
    Ok(())
}

const DEVICES: &str = "/sys/bus/pci/devices";

/// Waits until a function is there in the guest.
fn appears(guest: &Guest<'_>, address: &str) -> Result<()> {
    guest.until(&format!("[ -e {DEVICES}/{address} ]"), 20)
}

/// The word at `offset` of a function's configuration space, read by the guest.
fn word(guest: &Guest<'_>, address: &str, offset: u32) -> Result<String> {
    let text = guest.sh(&format!(
        "dd if={DEVICES}/{address}/config bs=4 skip={} count=1 2>/dev/null | od -An -tx4 -v",
        offset / 4
    ))?;
    Ok(text.trim().to_owned())
}

/// As [`unload_frontend`], which has to succeed.
fn unload(guest: &Guest<'_>) -> Result<()> {
    let answer = unload_frontend(guest)?;
    ensure!(answer.status == 0, "rmmod: {}", answer.output.trim());
    Ok(())
}

/// How many lines of the guest's log have this in them.
fn lines(guest: &Guest<'_>, text: &str) -> Result<u32> {
    let count = guest.ask(&format!("dmesg | grep -c '{text}'"), 30)?;
    count.output.trim().parse().context("a count")
}

/// A guest whose backend is badback.
struct Bad<'a> {
    guest: Guest<'a>,
    lab: &'a Lab<'a>,
    /// The backend's directory in the store.
    back: String,
    front: String,
}

impl<'a> Bad<'a> {
    /// Starts both; `keys` are those of the backend's directory that the lab chooses.
    fn start(lab: &'a Lab<'a>, name: &str, vcpus: u32, keys: &[(&str, &str)]) -> Result<Self> {
        lab.sh("grep -q ^badback /proc/modules || insmod /modules/test/badback.ko")?;
        let guest = lab.machine.guest(
            name,
            &GuestOptions {
                front: lab.front,
                vcpus,
                ..GuestOptions::default()
            },
        )?;
        let domain = lab.sh(&format!("xl domid {name}"))?;
        let domain = domain.trim();
        let back = format!("/local/domain/0/backend/pci/{domain}/0");
        let front = format!("/local/domain/{domain}/device/pci/0");
        let mut text =
            format!("{back}/frontend {front} {back}/frontend-id {domain} {back}/online 1");
        for (key, value) in keys {
            text += &format!(" {back}/{key} '{value}'");
        }
        // The state last, each: that is what the bus code looks for.
        lab.sh(&format!(
            "xenstore-write {text} && xenstore-chmod -r {back} n0 r{domain} &&
             xenstore-write {front}/backend {back} {front}/backend-id 0 &&
             xenstore-chmod -r {front} n{domain} r0 &&
             xenstore-write {front}/state 1 && xenstore-write {back}/state 1"
        ))?;
        Ok(Self {
            guest,
            lab,
            back,
            front,
        })
    }

    /// dom0 has little time left while its test backend floods the guest.
    fn write(&self, key: &str, value: &str) -> Result<()> {
        let write = format!("xenstore-write {}/{key} '{value}'", self.back);
        self.lab.machine.sh_within(&write, 300)?;
        Ok(())
    }

    /// Waits until the frontend's state is one of these.
    fn until_front(&self, states: &str, seconds: u64) -> Result<()> {
        self.lab.machine.until(
            &format!(
                "case $(xenstore-read {}/state) in {states}) ;; *) false ;; esac",
                self.front
            ),
            seconds,
        )
    }

    fn end(self) -> Result<()> {
        // First, as the toolstack expects more keys than a device of this kind has.
        self.lab.sh(&format!("xenstore-rm {}; true", self.back))?;
        self.guest.destroy()
    }
}

/// Takes badback away, whatever came of the case.
fn with_badback(lab: &Lab<'_>, run: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = run();
    let tidy = lab.sh("xenstore-rm /local/domain/0/backend/pci 2>/dev/null
         for d in $(xl list | awk 'NR > 2 { print $1 }'); do xl destroy $d; done
         i=0; while grep -q ^badback /proc/modules && ! rmmod badback 2>/dev/null; do
           i=$((i + 1)); [ $i = 240 ] && exit 1; sleep 0.5; done; true");
    result.and(tidy.map(|_| ()))
}

const ONE: &[(&str, &str)] = &[
    ("num_devs", "1"),
    ("root_num", "1"),
    ("root-0", "0000:00"),
    ("vdev-0", "0000:00:00.00"),
];
const FIRST: &str = "0000:00:00.0";
const IDS: &str = "0bad1234";
const CLASS: &str = "ff000000";

fn unclaimed(lab: &Lab<'_>) -> Result<()> {
    with_badback(lab, || {
        let keys = [ONE, &[("bar", "1000000")]].concat();
        let bad = Bad::start(lab, "unclaimed", 1, &keys)?;
        appears(&bad.guest, FIRST)?;
        let log = bad.guest.sh("dmesg | grep 'cannot be claimed'")?;
        say!("    {}", log.trim());
        ensure!(log.lines().count() == 1, "not one line: {log}");
        for part in ["0x1000000-0x1000fff", "memory", "e820_host=1"] {
            ensure!(log.contains(part), "{part:?} is not in: {log}");
        }
        // This guest was not started with devices, so it has no address translation for them.
        let log = bad.guest.sh("dmesg | grep 'no swiotlb'")?;
        say!("    {}", log.trim());
        ensure!(
            log.lines().count() == 1 && log.contains("iommu=soft"),
            "{log}"
        );
        bad.end()
    })
}

fn no_function_0(lab: &Lab<'_>) -> Result<()> {
    // One function of a device in the middle of its three, and one behind a root port.
    let behind = lab.sh("basename $(ls -d /sys/bus/pci/devices/0000:00:11.0/0000:*:00.0)")?;
    let behind = behind.trim();
    lab.load(
        lab.back,
        &format!("hide='(00:0c.1)({})' passthrough=1", behind),
    )?;
    let guest = lab.guest("odd", &["0000:00:0c.1", behind])?;
    appears(&guest, "0000:00:0c.1")?;
    appears(&guest, behind)?;
    let all = guest.sh("lspci -n")?;
    ensure!(all.lines().count() == 2, "{all}");
    // Only what the backend lists was looked for.
    ensure!(
        guest.sh("ls /sys/bus/pci/devices | wc -l")?.trim() == "2",
        "more functions"
    );
    guest.destroy()
}

fn rebind(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.nic_guest("rebind")?;
    start_nic(&guest)?;
    let driver = "/sys/bus/pci/drivers/e1000e";
    for _ in 0..3 {
        guest.sh(&format!(
            "echo {FIRST} >{driver}/unbind && ! test -e /sys/class/net/eth0 && echo {FIRST} >{driver}/bind"
        ))?;
    }
    start_nic(&guest)?;
    lab.machine.xl("pause rebind")?;
    lab.sh("sleep 3")?;
    lab.machine.xl("unpause rebind")?;
    ensure!(
        guest
            .sh("ping -c 3 -W 10 10.0.2.2")?
            .contains("3 packets received"),
        "no answer after a pause"
    );
    // With vectors live and the driver bound.
    let interrupts = || guest.sh("cat /proc/interrupts");
    let before = interrupts()?;
    ensure!(before.contains("pcifront-msi"), "no vectors: {before}");
    unload(&guest)?;
    guest.sh(&format!("! test -e {DEVICES}/{FIRST}"))?;
    let after = interrupts()?;
    ensure!(!after.contains("pcifront"), "still bound: {after}");
    let start = Instant::now();
    guest.sh_within("insmod /modules/rust/xen-pcifront.ko", 120)?;
    if lab.back == "rust" {
        appears(&guest, FIRST)?;
        start_nic(&guest)?;
        unload(&guest)?;
        guest.sh("insmod /modules/rust/xen-pcifront.ko")?;
        appears(&guest, FIRST)?;
        start_nic(&guest)?;
    } else {
        ensure!(
            lines(&guest, "does not take a frontend back")? == 1,
            "not said, or not in one line"
        );
        say!("    said after {:.1} s", start.elapsed().as_secs_f32());
        ensure!(
            guest.ask(&format!("test -e {DEVICES}/{FIRST}"), 20)?.status != 0,
            "a device without a backend"
        );
    }
    guest.destroy()
}

/// Reads ids and class so many times; every answer has to be the right one or all ones. Gives how
/// many were which.
fn only_right_answers(guest: &Guest<'_>, rounds: u32) -> Result<(u32, u32)> {
    let text = guest.sh_within(
        &format!(
            "i=0; while [ $i -lt {rounds} ]; do i=$((i + 1)); for s in 0 2; do
               echo $s $(dd if={DEVICES}/{FIRST}/config bs=4 skip=$s count=1 2>/dev/null | od -An -tx4 -v); done; done | sort | uniq -c"
        ),
        300,
    )?;
    let (mut right, mut absent) = (0, 0);
    for line in text.lines() {
        let (count, answer) = line.trim().split_once(' ').context("no count")?;
        let count: u32 = count.parse()?;
        match answer.split_whitespace().collect::<Vec<_>>()[..] {
            ["0", IDS] | ["2", CLASS] => right += count,
            [_, "ffffffff"] => absent += count,
            _ => bail!("a wrong answer: {line}"),
        }
    }
    Ok((right, absent))
}

fn bad_backend(lab: &Lab<'_>) -> Result<()> {
    with_badback(lab, || {
        let bad = Bad::start(lab, "bad", 2, ONE)?;
        let guest = &bad.guest;
        appears(guest, FIRST)?;
        let figure = |name: &str, start: Instant, answers: (u32, u32)| {
            let seconds = start.elapsed().as_secs_f32();
            say!(
                "    {name}: {} right, {} all ones, {seconds:.1} s",
                answers.0,
                answers.1
            );
            seconds
        };
        let well = || -> Result<()> {
            bad.write("mode", "good")?;
            guest.until(
                &format!("[ $(dd if={DEVICES}/{FIRST}/config bs=4 count=1 2>/dev/null | od -An -tx4) = {IDS} ]"),
                30,
            )?;
            let answers = only_right_answers(guest, 20)?;
            ensure!(answers == (40, 0), "not well again: {answers:?}");
            Ok(())
        };
        well()?;
        // What the same reads take here and now while all are answered: mostly the guest's programs, and how
        // busy the host is.
        let start = Instant::now();
        let answers = only_right_answers(guest, 30)?;
        let idle = figure("good", start, answers);
        ensure!(answers == (60, 0), "{answers:?}");
        // Beyond that, less than two of the frontend's patiences of 5 s: sixty would be 300 s.
        let once = |what: &str, seconds: f32| {
            ensure!(
                seconds < 2.0 * idle + 10.0,
                "{what}: took {seconds:.1} s, beside {idle:.1} s when all is well"
            );
            Ok(())
        };

        bad.write("mode", "gone")?;
        let answers = only_right_answers(guest, 10)?;
        ensure!(
            answers == (0, 20),
            "constants outlive the function: {answers:?}"
        );
        well()?;

        // A busy host may have had one of its own.
        let before = lines(guest, "has not answered in")?;
        bad.write("mode", "dead")?;
        let start = Instant::now();
        let answers = only_right_answers(guest, 30)?;
        let seconds = figure("dead", start, answers);
        ensure!(answers == (0, 60), "{answers:?}");
        once("dead", seconds)?;
        let dead = lines(guest, "has not answered in")?.saturating_sub(before);
        ensure!(dead == 1, "{dead} lines");
        well()?;

        bad.write("mode", "late")?;
        let start = Instant::now();
        let answers = only_right_answers(guest, 30)?;
        let seconds = figure("late", start, answers);
        once("late", seconds)?;
        well()?;
        let late = lines(guest, "has not answered in")?.saturating_sub(before);
        ensure!(late <= 3, "{late} lines");

        // Quick answers, until the patience is what it was at first.
        guest.sh(&format!(
            "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do head -c 64 {DEVICES}/{FIRST}/config >/dev/null; done"
        ))?;
        // Each answer comes before the deadline of the first request. One is waited for so long, and the others, for
        // which the patience is shorter now, cost together less than two of it: thirty would be 90 s.
        bad.write("delay", "bb8")?;
        bad.write("mode", "late")?;
        let start = Instant::now();
        let answers = only_right_answers(guest, 30)?;
        let seconds = figure("3 s late each", start, answers);
        ensure!(answers.0 > 0, "an answer in time is not taken: {answers:?}");
        ensure!(seconds >= 3.0, "the first answer was not waited for");
        once("3 s late each", seconds)?;
        well()?;
        lab.sh(&format!("xenstore-rm {}/delay", bad.back))?;

        bad.write("mode", "hold")?;
        let start = Instant::now();
        let answers = only_right_answers(guest, 20)?;
        let seconds = figure("hold", start, answers);
        once("hold", seconds)?;
        ensure!(lines(guest, "holds the request slot")? == 1, "not one line");
        well()?;

        bad.write("mode", "nonsense")?;
        guest.sh_within(
            "for i in 1 2 3; do lspci -vvv -xxxx >/dev/null 2>&1; done",
            200,
        )?;
        well()?;

        let count = || -> Result<u64> {
            let line = guest.sh("grep 'pcifront$' /proc/interrupts")?;
            Ok(line
                .split_whitespace()
                .skip(1)
                .map_while(|word| word.parse::<u64>().ok())
                .sum())
        };
        bad.write("mode", "flood")?;
        let (before, start) = (count()?, Instant::now());
        guest.sh("sleep 5")?;
        let (taken, seconds) = (count()? - before, start.elapsed().as_secs_f64());
        say!("    flood: {taken} interrupts in {seconds:.1} s");
        ensure!(taken as f64 <= seconds * 20.0 + 20.0, "{taken} interrupts");
        let answers = only_right_answers(guest, 20)?;
        ensure!(answers == (40, 0), "{answers:?}");
        well()?;

        bad.write("mode", "dead")?;
        let start = Instant::now();
        lab.sh(&format!("xenstore-rm {}", bad.back))?;
        guest.until(&format!("! [ -e {DEVICES}/{FIRST} ]"), 40)?;
        say!(
            "    dead and removed: clean after {:.1} s",
            start.elapsed().as_secs_f32()
        );
        unload(guest)?;
        bad.end()
    })
}

/// How many pages a frontend makes for a backend that starts again and again, and what becomes of those that
/// such a backend keeps mapped.
fn restarts(lab: &Lab<'_>) -> Result<()> {
    // The first one, five that it may have at once, and one for each of a few minutes more.
    const MOST: u32 = 8;
    // With a page for each start there would be more.
    const STARTS: u32 = MOST + 2;
    with_badback(lab, || {
        let bad = Bad::start(lab, "restarts", 1, ONE)?;
        let guest = &bad.guest;
        appears(guest, FIRST)?;
        bad.until_front("4", 20)?;
        // The kernel says of each page that cannot be given back yet that it keeps it, and when it frees it.
        guest.sh("mount -t debugfs debug /sys/kernel/debug 2>/dev/null
             echo 'file grant-table.c +p' >/sys/kernel/debug/dynamic_debug/control")?;
        bad.write("mode", "flap")?;
        lab.sh("sleep 8")?;
        let kept_here = lines(guest, "deferring g.e.")?;
        let freed = lines(guest, "freeing g.e.")?;
        bad.write("mode", "good")?;
        let read = |key: &str| -> Result<u32> {
            let text = lab.sh(&format!("xenstore-read {}/{key}", bad.back))?;
            text.trim().parse().context("a count")
        };
        lab.machine
            .until(&format!("xenstore-exists {}/starts", bad.back), 30)?;
        let (starts, kept) = (read("starts")?, read("kept")?);
        say!("    {starts} starts of the backend; it has kept {kept} pages, the guest's kernel {kept_here} of them");
        ensure!(starts >= STARTS, "only {starts} starts");
        ensure!(
            (2..=MOST).contains(&kept),
            "{kept} pages for {starts} starts"
        );
        // All but the one of the present connection, none of which is free.
        ensure!(
            kept_here + 1 >= kept && freed == 0,
            "{kept} pages are mapped, the guest has kept {kept_here} and freed {freed}"
        );
        ensure!(
            lines(guest, "starts again too often")? == 1,
            "not said, or not in one line"
        );
        // Once they are given back they are free.
        guest.until(
            &format!("[ $(dmesg | grep -c 'freeing g.e.') -ge {kept_here} ]"),
            60,
        )?;
        unload(guest)?;
        bad.end()
    })
}

fn backend_dies(lab: &Lab<'_>) -> Result<()> {
    with_badback(lab, || {
        let bad = Bad::start(lab, "dies", 1, ONE)?;
        let guest = &bad.guest;
        appears(guest, FIRST)?;
        bad.until_front("4", 20)?;
        // It ends, and starts again.
        lab.sh("cd /sys/bus/xen-backend/drivers/badback && d=$(basename $(ls -d pci-*)) && echo $d >unbind && echo $d >/tmp/badback-device")?;
        guest.until(&format!("! [ -e {DEVICES}/{FIRST} ]"), 30)?;
        bad.until_front("6", 20)?;
        lab.sh("cat /tmp/badback-device >/sys/bus/xen-backend/drivers/badback/bind")?;
        appears(guest, FIRST)?;
        bad.until_front("4", 20)?;
        ensure!(word(guest, FIRST, 0)? == IDS, "not well again");
        // In the middle of a change of its list.
        bad.write("mode", "dead")?;
        bad.write("state", "7")?;
        bad.until_front("7", 20)?;
        lab.sh(&format!("xenstore-rm {}", bad.back))?;
        guest.until(&format!("! [ -e {DEVICES}/{FIRST} ]"), 30)?;
        unload(guest)?;
        bad.end()
    })
}

/// What a request carries.
const MAX_MSIX_VECTORS: u32 = 128;
/// What Xen has for all functions of a guest. It can be told another number, but not on a machine with as
/// few interrupts as this one.
const GUEST_VECTORS: u32 = 32;

/// Two functions of one guest, whose tables have 200 and 65 vectors. One that wants more than there is is told
/// to try with what a request carries, then with half of it, a quarter and so on.
fn vectors(lab: &Lab<'_>) -> Result<()> {
    let below = lab.below("00:12.0")?;
    let [second] = below.as_slice() else {
        bail!("one disk expected: {below:?}");
    };
    let functions = ["0000:00:07.0", second];
    lab.load(lab.back, &format!("hide='({})'", functions.join(")(")))?;
    // What is refused has a line in dom0's log, and a guest has a share of these, so three share the wishes.
    for wishes in [&[1, 24, 200][..], &[33], &[129]] {
        wanted_vectors(lab, &functions, wishes)?;
    }
    Ok(())
}

/// One guest, each of its functions with each of the wishes in turn.
fn wanted_vectors(lab: &Lab<'_>, functions: &[&str], wishes: &[u32]) -> Result<()> {
    let guest = lab.guest("vectors", functions)?;
    let places = [FIRST, "0000:00:01.0"];
    for (place, size) in places.into_iter().zip([200, 65]) {
        appears(&guest, place)?;
        let table = guest.sh(&format!("lspci -vvs {place} | grep MSI-X:"))?;
        ensure!(
            table.contains(&format!("Count={size} ")),
            "{place}: {table}"
        );
    }
    let gets = |wanted: u32, size: u32, room: u32| {
        let first = wanted.min(size).min(MAX_MSIX_VECTORS);
        let mut tries = std::iter::successors(Some(first), |count| Some(count / 2));
        tries.find(|count| *count <= room).unwrap_or(0)
    };
    for &wanted in wishes {
        let first = gets(wanted, 200, GUEST_VECTORS);
        let expected = [first, gets(wanted, 65, GUEST_VECTORS - first)];
        guest.sh(&format!(
            "dmesg -c >/dev/null; insmod /modules/test/guestdrv.ko vectors={wanted} && echo 1b36 0010 >/sys/bus/pci/drivers/guestdrv/new_id"
        ))?;
        let log = guest.sh("dmesg")?;
        for (place, expected) in places.into_iter().zip(expected) {
            let line = log
                .lines()
                .find(|line| line.contains(place) && line.contains("wanted="));
            let line = line.with_context(|| format!("nothing of {place}: {log}"))?;
            // Each of them has an interrupt of the guest's kernel, too.
            let good = match expected {
                0 => line.contains(" got=-") && line.ends_with(" bound=0"),
                _ => line.ends_with(&format!(" got={expected} bound={expected}")),
            };
            ensure!(good, "{place}: not {expected}: {line}");
        }
        if wanted > MAX_MSIX_VECTORS {
            let fewer = format!("{wanted} MSI-X vectors wanted, {MAX_MSIX_VECTORS} may be had");
            ensure!(log.contains(&fewer), "no {fewer:?} in: {log}");
        }
        let bound = guest.sh("grep -c 'pcifront-msi-x.*guestdrv' /proc/interrupts")?;
        let bound: u32 = bound.trim().parse()?;
        ensure!(bound == expected.iter().sum::<u32>(), "{bound} are bound");
        say!("    wanted {wanted} each: {expected:?}");
        // None is left over for the next round.
        guest.sh("rmmod guestdrv && ! grep -q pcifront-msi-x /proc/interrupts")?;
    }
    guest.destroy_with_many()
}

fn threads(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.machine.guest(
        "threads",
        &GuestOptions {
            front: lab.front,
            vcpus: 4,
            devices: &[NIC],
            ..GuestOptions::default()
        },
    )?;
    appears(&guest, FIRST)?;
    for no_cache in ["N", "Y"] {
        guest.sh_within(
            &format!(
                "echo {no_cache} >/sys/module/xen_pcifront/parameters/no_cache
                 insmod /modules/test/guestdrv.ko threads=8 reads=100 && echo 8086 10d3 >/sys/bus/pci/drivers/guestdrv/new_id && rmmod guestdrv"
            ),
            400,
        )?;
        let log = guest.sh("dmesg -c | grep 'guestdrv: threads'")?;
        say!("    no_cache={no_cache}: {}", log.trim());
        ensure!(log.contains("wrong=0"), "{log}");
        ensure!(
            !log.contains("in_interrupt=0 "),
            "never in interrupt context: {log}"
        );
    }
    ensure!(
        lines(&guest, "without its event")? == 0,
        "an event was lost"
    );
    guest.destroy()
}

fn constants(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let guest = lab.nic_guest("constants")?;
    appears(&guest, FIRST)?;
    // Requests that reach the backend, as the bus code counts its events.
    let events = || -> Result<u64> {
        let text = lab.sh("cat /sys/bus/xen-backend/devices/pci-*/xenbus/events")?;
        Ok(text.trim().parse()?)
    };
    // The kernel walks the capabilities a dozen times while it looks at a new function. Some 110 requests are
    // left when only the first walk is asked, 188 when all are.
    let found = events()?;
    say!("    {found} requests until the function was there");
    ensure!(found < 140, "constants are asked again during the scan");
    let asked = |offset: u32, bytes: u32| -> Result<u64> {
        let before = events()?;
        guest.sh(&format!(
            "i=0; while [ $i -lt 50 ]; do i=$((i + 1)); dd if={DEVICES}/{FIRST}/config bs={bytes} skip={} count=1 2>/dev/null; done >/dev/null",
            offset / bytes
        ))?;
        Ok(events()? - before)
    };
    let knob = "/sys/module/xen_pcifront/parameters/no_cache";
    ensure!(guest.sh(&format!("cat {knob}"))?.trim() == "N", "the knob");
    // Class, header type, subsystem, first capability, its header, the first extended one.
    let known = [
        (8, 4),
        (0xe, 1),
        (0x2c, 4),
        (0x34, 1),
        (0xc8, 2),
        (0x100, 4),
    ];
    for (offset, bytes) in known {
        let events = asked(offset, bytes)?;
        ensure!(events <= 3, "{offset:#x} was asked {events} times of 50");
    }
    for (offset, bytes) in [(0, 4), (4, 4), (0x10, 4), (0xcc, 2)] {
        let events = asked(offset, bytes)?;
        ensure!(events >= 25, "{offset:#x} was asked {events} times of 50");
    }
    guest.sh(&format!("echo Y >{knob}"))?;
    for (offset, bytes) in known {
        let events = asked(offset, bytes)?;
        ensure!(events >= 25, "{offset:#x} was asked {events} times of 50");
    }
    guest.destroy()
}

fn error_messages(lab: &Lab<'_>) -> Result<()> {
    with_badback(lab, || {
        let bad = Bad::start(lab, "errors", 2, ONE)?;
        let guest = &bad.guest;
        appears(guest, FIRST)?;
        bad.until_front("4", 20)?;
        let number = std::cell::Cell::new(0);
        let verdict = |message: &str| -> Result<String> {
            number.set(number.get() + 1);
            let verdict = lab.sh(&format!(
                "cd /; xenstore-rm {0}/verdict 2>/dev/null; xenstore-write {0}/message '{message} {1:x}'
                 i=0; until xenstore-read {0}/verdict 2>/dev/null; do i=$((i + 1)); [ $i = 400 ] && exit 1; sleep 0.1; done",
                bad.back, number.get()
            ))?;
            Ok(verdict.trim().to_owned())
        };
        // Detected, MMIO enabled, slot reset, resume.
        let stages = ["6 2 0", "8 1 0", "9 1 0", "7 1 0"];
        // Nobody is bound.
        for stage in stages {
            ensure!(verdict(stage)? == "1", "without a driver: {stage}");
        }
        // All handlers, each missing in turn, an empty table, none.
        for handlers in [15, 14, 13, 11, 7, 16, 0] {
            guest.sh(&format!(
                "dmesg -c >/dev/null; insmod /modules/test/guestdrv.ko handlers={handlers} && echo 1234 0bad >/sys/bus/pci/drivers/guestdrv/new_id"
            ))?;
            let there = |bit: u32, with: &'static str, without: &'static str| {
                if handlers & bit != 0 {
                    with
                } else {
                    without
                }
            };
            let expected = [
                there(1, "2", "1"),
                there(2, "3", "5"),
                there(4, "5", "5"),
                "5",
            ];
            for (stage, expected) in stages.into_iter().zip(expected) {
                let verdict = verdict(stage)?;
                ensure!(
                    verdict == expected,
                    "handlers {handlers:#x}, message {stage}: verdict {verdict}, not {expected}"
                );
            }
            let log = guest.sh("dmesg | grep 'guestdrv:'; true")?;
            for (bit, line) in [
                (1, "detected state=2 ids=0bad1234 offline=1"),
                (2, "mmio"),
                (4, "slot_reset"),
                (8, "resume offline=0"),
            ] {
                ensure!(
                    log.contains(line) == (handlers & bit != 0),
                    "handlers {handlers:#x}, {line:?}: {log}"
                );
            }
            guest.sh("rmmod guestdrv")?;
        }
        // What is no message, and a place where nothing is.
        for message in [
            "5 1 0",
            "ffffffff 1 0",
            "6 9 0",
            "6 0 0",
            "6 1 ff",
            "6 1 ffffffff",
        ] {
            ensure!(verdict(message)? == "1", "{message}");
        }
        // While requests keep the channel busy.
        guest.sh(&format!(
            "setsid sh -c 'while :; do cat {DEVICES}/{FIRST}/config >/dev/null; done' >/dev/null 2>&1 &"
        ))?;
        for _ in 0..5 {
            ensure!(verdict("6 1 0")? == "1", "under load");
        }
        // No reference is left behind.
        unload(guest)?;
        ensure!(
            lines(guest, "somebody still uses")? == 0,
            "a reference is left"
        );
        bad.end()
    })
}

fn roots(lab: &Lab<'_>) -> Result<()> {
    with_badback(lab, || {
        let bad = Bad::start(
            lab,
            "roots",
            1,
            &[
                ("num_devs", "3"),
                ("root_num", "3"),
                ("root-0", "0000:00"),
                ("root-1", "0000:05"),
                ("root-2", "0001:80"),
                ("vdev-0", "0000:00:03.05"),
                ("vdev-1", "0000:05:00.00"),
                ("vdev-2", "0001:80:1f.07"),
            ],
        )?;
        let places = ["0000:00:03.5", "0000:05:00.0", "0001:80:1f.7"];
        for place in places {
            appears(&bad.guest, place)?;
            ensure!(word(&bad.guest, place, 0)? == IDS, "{place}");
        }
        // A second look leaves what is there alone, and finds what is new.
        bad.guest.sh(&format!(
            "insmod /modules/test/guestdrv.ko && echo 1234 0bad >/sys/bus/pci/drivers/guestdrv/new_id && test -e {DEVICES}/{}/driver",
            places[0]
        ))?;
        bad.write("vdev-3", "0001:80:00.00")?;
        bad.write("num_devs", "4")?;
        bad.write("state", "7")?;
        appears(&bad.guest, "0001:80:00.0")?;
        bad.until_front("4", 20)?;
        ensure!(
            bad.guest
                .sh("ls /sys/bus/pci/drivers/guestdrv | grep -c :")?
                .trim()
                == "4",
            "the driver lost a function"
        );
        bad.guest.sh("rmmod guestdrv")?;
        unload(&bad.guest)?;
        bad.end()?;

        // Nothing but a root: all its places are looked at.
        let bad = Bad::start(
            lab,
            "listless",
            1,
            &[
                ("num_devs", "1"),
                ("root_num", "1"),
                ("root-0", "0000:00"),
                ("hidden-0", "0000:00:00.00"),
                ("hidden-1", "0000:00:12.03"),
            ],
        )?;
        appears(&bad.guest, FIRST)?;
        appears(&bad.guest, "0000:00:12.3")?;
        ensure!(
            lines(&bad.guest, "does not say where its functions are")? == 1,
            "not said"
        );
        bad.end()
    })
}

fn hot_plug(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)(00:0b.0)'")?;
    let guest = lab.nic_guest("plug")?;
    let back = super::xenbus::backend(lab, &guest)?;
    start_nic(&guest)?;
    guest.sh(&format!(
        "setsid sh -c 'while :; do wget -q -O /dev/null http://10.0.2.2:{}/100000000; done' >/dev/null 2>&1 &",
        lab.port
    ))?;
    let received = || -> Result<u64> {
        Ok(guest
            .sh("cat /sys/class/net/eth0/statistics/rx_bytes")?
            .trim()
            .parse()?)
    };
    let count = |wanted: u32| {
        guest.until(
            &format!("[ $(lspci -n | grep -c 1234:11e8) = {wanted} ]"),
            30,
        )
    };
    for round in 0..2 {
        let before = received()?;
        lab.machine.xl("pci-attach plug 00:0a.0")?;
        count(1)?;
        super::xenbus::connected(lab, &back)?;
        lab.machine.xl("pci-attach plug 00:0b.0")?;
        count(2)?;
        super::xenbus::connected(lab, &back)?;
        lab.machine.xl("pci-detach plug 00:0a.0")?;
        count(1)?;
        super::xenbus::connected(lab, &back)?;
        lab.machine.xl("pci-detach plug 00:0b.0")?;
        count(0)?;
        super::xenbus::connected(lab, &back)?;
        guest.sh("sleep 1")?;
        let now = received()?;
        say!(
            "    round {round}: {} KiB came meanwhile",
            (now - before) >> 10
        );
        ensure!(now > before, "the traffic has stopped");
    }
    ensure!(
        guest
            .sh("ping -c 3 -W 10 10.0.2.2")?
            .contains("3 packets received"),
        "the NIC is lost"
    );
    guest.destroy()
}

fn disk(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:07.0)'")?;
    let guest = lab.machine.guest(
        "disk",
        &GuestOptions {
            front: lab.front,
            vcpus: 4,
            devices: &["0000:00:07.0"],
            ..GuestOptions::default()
        },
    )?;
    guest.sh("modprobe nvme")?;
    guest.until("[ -b /dev/nvme0n1 ]", 30)?;
    guest.sh("cd /tmp; for cpu in 0 1 2 3; do
        setsid sh -c \"n=0; while :; do taskset -c $cpu lspci -vvv >/tmp/lspci-$cpu 2>&1 && n=\\$((n + 1)) && echo \\$n >/tmp/count-$cpu; done\" >/dev/null 2>&1 &
        done")?;
    guest.sh_within(
        "dd if=/dev/urandom of=/tmp/data bs=1M count=64 2>/dev/null",
        120,
    )?;
    let sum = guest.sh_within("sha256sum </tmp/data", 120)?;
    guest.sh_within("dd if=/tmp/data of=/dev/nvme0n1 bs=1M conv=fsync 2>&1", 300)?;
    guest.sh("echo 3 >/proc/sys/vm/drop_caches && blockdev --flushbufs /dev/nvme0n1")?;
    let back = guest.sh_within(
        "dd if=/dev/nvme0n1 bs=1M count=64 2>/dev/null | sha256sum",
        300,
    )?;
    ensure!(sum == back, "64 MiB came back with sum {back}, not {sum}");
    guest.until(
        "[ -s /tmp/count-0 ] && [ -s /tmp/count-1 ] && [ -s /tmp/count-2 ] && [ -s /tmp/count-3 ]",
        60,
    )?;
    let counts = guest.sh("cat /tmp/count-?")?;
    say!(
        "    64 MiB with the right sum; runs of lspci -vvv: {}",
        counts.split_whitespace().collect::<Vec<_>>().join(" ")
    );
    guest.destroy()
}
