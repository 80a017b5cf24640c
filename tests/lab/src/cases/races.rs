// SPDX-License-Identifier: GPL-2.0

//! What may happen at the same time, made to happen at the same time: pairs of things that go on side by
//! side for some rounds, in a dom0 with two CPUs and guests with four.
//!
//! How often each side came to its work is printed, and has to be more than nothing: else nothing was
//! beside anything. What went wrong shows in the logs, which the lab searches after each case, in what the
//! guests read, and in what is left afterwards.

use super::{
    ring::{figure, Bad},
    start_nic,
    xenbus::{backend, connected},
    Case, Ends, Lab, DRIVER,
};
use crate::machine::{Guest, EDU, NIC, SMP, TESTDEV};
use anyhow::{ensure, Context, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "all_files_are_read_while_functions_come_and_go",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: files,
    },
    Case {
        name: "a_function_goes_while_four_vcpus_use_it",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: unplug,
    },
    Case {
        name: "a_list_changes_while_its_guest_connects",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: reconfigure,
    },
    Case {
        name: "a_function_is_unbound_under_a_flood",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: flood,
    },
    Case {
        name: "two_guests_with_four_functions_each_come_work_and_go_at_once",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: two_guests,
    },
];

/// A shell loop in the background of dom0 or a guest. It ends with [`Background::end`], and counts its
/// rounds.
struct Background<'a> {
    sh: &'a dyn Fn(&str) -> Result<String>,
    name: &'a str,
}

impl<'a> Background<'a> {
    /// `round` is done again and again; what it prints is thrown away.
    fn start(sh: &'a dyn Fn(&str) -> Result<String>, name: &'a str, round: &str) -> Result<Self> {
        // The script in a file, so that nothing needs to be quoted twice.
        sh(&format!(
            "rm -f /tmp/{name}.end
             cat >/tmp/{name}.sh <<'END'
n=0
while [ ! -e /tmp/{name}.end ]; do
{round}
n=$((n + 1)); echo $n >/tmp/{name}.new; mv /tmp/{name}.new /tmp/{name}.rounds
done
touch /tmp/{name}.done
END
             rm -f /tmp/{name}.done; echo 0 >/tmp/{name}.rounds
             setsid sh /tmp/{name}.sh >/dev/null 2>&1 </dev/null &"
        ))?;
        Ok(Self { sh, name })
    }

    /// Rounds that were done.
    fn rounds(&self) -> Result<u64> {
        let text = (self.sh)(&format!("cat /tmp/{}.rounds", self.name))?;
        text.trim().parse().context("a count of rounds")
    }

    /// Ends it after its present round; how many there were, one at least.
    fn end(self) -> Result<u64> {
        let name = self.name;
        (self.sh)(&format!(
            "touch /tmp/{name}.end; i=0; until [ -e /tmp/{name}.done ]; do i=$((i + 1)); [ $i = 400 ] && exit 1; sleep 0.1; done"
        ))
        .with_context(|| format!("{name} does not end"))?;
        let rounds = self.rounds()?;
        ensure!(rounds > 0, "{name} has done nothing");
        Ok(rounds)
    }
}

/// Reads each readable file of the driver, of the module, and of the backend's devices. The files come
/// and go meanwhile.
const READ_ALL: &str = "cat $(find /sys/bus/pci/drivers/pciback/ /sys/kernel/debug/xen-pciback /sys/module/xen_pciback \
    /sys/bus/xen-backend/drivers/xen-pciback/ /sys/bus/xen-backend/drivers/pciback/ \
    -follow -maxdepth 2 -type f -perm -400 ! -name 'rom' ! -name 'resource*' 2>/dev/null) >/dev/null 2>&1";

fn files(lab: &Lab<'_>) -> Result<()> {
    lab.sh("mount -t debugfs debug /sys/kernel/debug 2>/dev/null; true")?;
    let sh = |command: &str| lab.machine.sh_within(command, 120);
    lab.load(lab.back, "hide='(00:05.0)'")?;
    let found = lab.sh(&format!(
        "ls {DRIVER}/ /sys/kernel/debug/xen-pciback /sys/module/xen_pciback/parameters"
    ))?;
    for file in ["status", "slots", "quirks", "denied_writes", "passthrough"] {
        ensure!(found.contains(file), "no {file} to read: {found}");
    }
    let first = Background::start(&sh, "reader1", READ_ALL)?;
    let second = Background::start(&sh, "reader2", READ_ALL)?;
    // Bind and unbind, with all that is set for a function.
    let rounds = 15;
    sh(&format!(
        "cd {DRIVER}; i=0; while [ $i -lt {rounds} ]; do i=$((i + 1))
           for d in {EDU} {TESTDEV}; do
             for w in new_slot bind permissive allow_interrupt_control unbind remove_slot; do
               printf $d >$w || {{ echo $w $d; exit 1; }}
               [ $w != bind ] || {{ printf $d-60:4:ffffffff >quirks || exit 1; printf $d >do_flr 2>/dev/null; }}
             done; done; done"
    ))?;
    // The module comes and goes. A file that is open keeps it, for as long as that.
    let answer = lab.machine.ask(
        &format!(
            "cd /; i=0; while [ $i -lt {rounds} ]; do i=$((i + 1))
               j=0; until rmmod xen_pciback 2>/dev/null; do j=$((j + 1)); [ $j = 200 ] && exit 1; sleep 0.1; done
               insmod /modules/{}/xen-pciback.ko hide='(00:05.0)(00:0a.0)' || exit 2; done",
            lab.back
        ),
        180,
    )?;
    ensure!(answer.status == 0, "{answer:?}");
    let reads = (first.end()?, second.end()?);
    say!("    {rounds} rounds of binding two functions, {rounds} of the module; all files read {} and {} times", reads.0, reads.1);

    // The same with a guest that comes and goes: its directory has files, too.
    let first = Background::start(&sh, "reader1", READ_ALL)?;
    let second = Background::start(&sh, "reader2", READ_ALL)?;
    let guest = lab.guest("files", &[NIC])?;
    start_nic(&guest)?;
    sh(&format!(
        "i=0; while [ $i -lt {rounds} ]; do i=$((i + 1))
           printf {EDU} >{DRIVER}/unbind && printf {EDU} >{DRIVER}/bind || exit 1; done"
    ))?;
    guest.destroy()?;
    let reads = (first.end()?, second.end()?);
    say!("    with a guest: read {} and {} times", reads.0, reads.1);
    lab.machine
        .until(&format!("grep -q '^{NIC} available' {DRIVER}/status"), 30)?;
    ensure!(
        lab.sh(&format!(
            "cat {DRIVER}/permissive {DRIVER}/quirks | grep -c 00:06"
        ))
        .is_err(),
        "something is set for a function that has no slot"
    );
    Ok(())
}

/// Loops in a guest, one for each of its vCPUs, that read the first 256 bytes of all functions there are, and not one
/// more: 64 requests each. They leave the guest's other programs some time.
const READ_CONFIG: &str =
    "for f in /sys/bus/pci/devices/*/config; do taskset -c CPU dd if=$f of=/dev/null bs=256 count=1 2>/dev/null; done; sleep 0.02";

/// Starts [`READ_CONFIG`] on each of four vCPUs; ended by [`Users::end`].
struct Users<'a>(Vec<Background<'a>>);

impl<'a> Users<'a> {
    fn start(sh: &'a dyn Fn(&str) -> Result<String>) -> Result<Self> {
        let start = |(cpu, name): (usize, &'a &'a str)| {
            Background::start(sh, name, &READ_CONFIG.replace("CPU", &cpu.to_string()))
        };
        ["user0", "user1", "user2", "user3"]
            .iter()
            .enumerate()
            .map(start)
            .collect::<Result<_>>()
            .map(Self)
    }

    fn end(self) -> Result<Vec<u64>> {
        self.0.into_iter().map(Background::end).collect()
    }
}

fn unplug(lab: &Lab<'_>) -> Result<()> {
    let behind = super::aer::nic(lab)?;
    lab.load(lab.back, &format!("hide='(00:05.0)(00:0a.0)({behind})'"))?;
    let guest = lab.guest("user", &[NIC])?;
    ensure!(guest.sh("nproc")?.trim() == "4", "not four vCPUs");
    start_nic(&guest)?;
    let back = backend(lab, &guest)?;
    // A driver with a vector is on it whenever it is there.
    guest.sh(
        "insmod /modules/test/guestdrv.ko && echo 1234 11e8 >/sys/bus/pci/drivers/guestdrv/new_id",
    )?;
    let sh = |command: &str| guest.sh_within(command, 120);
    let users = Users::start(&sh)?;
    let count = |ids: &str, wanted: u32| {
        guest.until(&format!("[ $(lspci -n | grep -c {ids}) = {wanted} ]"), 60)
    };
    for round in 1..=lab.counts.rounds.min(2) {
        // By the toolstack.
        lab.machine.xl("pci-attach user 00:0a.0")?;
        count("1234:11e8", 1)?;
        connected(lab, &back)?;
        lab.machine.xl("pci-detach user 00:0a.0")?;
        count("1234:11e8", 0)?;
        connected(lab, &back)?;
        // By the administrator, without asking anybody.
        lab.machine.xl("pci-attach user 00:0a.0")?;
        count("1234:11e8", 1)?;
        connected(lab, &back)?;
        lab.sh(&format!("printf {EDU} >{DRIVER}/unbind"))?;
        guest.until("[ $(for d in /sys/bus/pci/devices/*; do setpci -s ${d##*/} 00.l; done | grep -c ffffffff) = 1 ]", 30)?;
        lab.sh(&format!("printf {EDU} >{DRIVER}/bind"))?;
        lab.machine.xl("pci-detach user 00:0a.0")?;
        count("1234:11e8", 0)?;
        connected(lab, &back)?;
        lab.machine
            .until(&format!("grep -q '^{EDU} available' {DRIVER}/status"), 30)
            .with_context(|| format!("round {round}"))?;
    }
    // The device itself goes.
    lab.machine.xl(&format!("pci-attach user {behind}"))?;
    guest.until("[ $(lspci -n | grep -c 8086:10d3) = 2 ]", 60)?;
    connected(lab, &back)?;
    lab.sh(&format!("echo 1 >/sys/bus/pci/devices/{behind}/remove"))?;
    lab.sh(&format!("! grep -q {behind} {DRIVER}/status"))?;
    guest.until("[ $(for d in /sys/bus/pci/devices/*; do setpci -s ${d##*/} 00.l; done | grep -c ffffffff) = 1 ]", 30)?;
    let counts = users.end()?;
    say!("    rounds of the four vCPUs: {counts:?}");
    let ping = guest.sh("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(
        ping.contains("3 packets received"),
        "the NIC is lost: {ping}"
    );
    guest.destroy_with_many()?;
    lab.sh("echo 1 >/sys/bus/pci/rescan")?;
    lab.machine
        .until(&format!("[ -e /sys/bus/pci/devices/{behind} ]"), 20)
}

fn reconfigure(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)'")?;
    let guest = lab.guest("list", &[NIC])?;
    let back = backend(lab, &guest)?;
    connected(lab, &back)?;
    // The guest's driver lets go and connects anew, again and again.
    let sh = |command: &str| guest.sh_within(command, 120);
    let connects = Background::start(
        &sh,
        "connects",
        "echo pci-0 >/sys/bus/xen/drivers/pcifront/unbind; echo pci-0 >/sys/bus/xen/drivers/pcifront/bind
         i=0; until lspci | grep -q . || [ $i = 20 ]; do i=$((i + 1)); sleep 0.1; done",
    )?;
    // Meanwhile the list gets longer and shorter, as the toolstack writes it, whatever the state is. Like
    // libxl it waits for Connected before it removes keys, but not for ever.
    // Ten meet each state of a connection with each of a change; more of it in `make test-full`.
    let rounds = 10 * lab.counts.rounds.min(3);
    for round in 0..rounds {
        lab.sh(&format!(
            "cd /; xenstore-write {back}/dev-1 {EDU} {back}/state-1 1 {back}/num_devs 2 {back}/state 7; sleep 0.{}
             xenstore-write {back}/state-1 5 {back}/state 7; sleep 0.{}
             i=0; until [ $(xenstore-read {back}/state) = 4 ] || [ $i = 100 ]; do i=$((i + 1)); sleep 0.1; done
             xenstore-write {back}/num_devs 1; for k in dev state vdev; do xenstore-rm {back}/$k-1; done",
            round % 3, (round + 1) % 4
        ))?;
    }
    let connects = connects.end()?;
    say!("    {rounds} changes of the list, {connects} connections of the guest meanwhile");
    // From here on one after the other: both ends are where they should be, or come there.
    guest.sh_within(
        "echo pci-0 >/sys/bus/xen/drivers/pcifront/unbind; echo pci-0 >/sys/bus/xen/drivers/pcifront/bind",
        120,
    )?;
    connected(lab, &back)?;
    lab.sh(&format!(
        "cd /; xenstore-write {back}/dev-1 {EDU} {back}/state-1 1 {back}/num_devs 2 {back}/state 7"
    ))?;
    connected(lab, &back)?;
    guest.until(
        "[ $(lspci -n | grep -c -e 1234:11e8 -e 8086:10d3) = 2 ]",
        60,
    )?;
    lab.sh(&format!("[ $(grep -c ' assigned ' {DRIVER}/status) = 2 ]"))?;
    start_nic(&guest)?;
    guest.destroy_with_many()?;
    lab.machine.until(
        &format!("[ $(grep -c ' available ' {DRIVER}/status) = 2 ]"),
        30,
    )
}

fn flood(lab: &Lab<'_>) -> Result<()> {
    let twin = "0000:00:0b.0";
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)(00:0b.0)'")?;
    let bad = Bad::start(lab, "flood", &[NIC, EDU, twin])?;
    bad.connect()?;
    let domid = lab.machine.xl("domid flood")?.trim().to_owned();
    // One of each way that a request is served: by the event handler; by the work item; with vectors.
    for (what, function, operation) in [
        ("reads", EDU, "0 0 0 8 0 4 0"),
        ("writes that may sleep", twin, "1 0 0 16 4 2 7"),
        ("MSI", NIC, "2 0 0 0 0 0 0"),
    ] {
        bad.start_command(0, &format!("flood {} {operation}", lab.counts.storm))?;
        let unbound = lab.machine.sh_within(
            &format!(
                "cd {DRIVER}; i=0; while [ $i -lt 10 ]; do i=$((i + 1))
                   printf {function} >unbind && printf {function} >bind || exit 1; done; echo $i"
            ),
            120,
        )?;
        let result = bad.result(0)?;
        say!(
            "    {what}: {result}; unbound and bound {} times",
            unbound.trim()
        );
        ensure!(
            figure(&result, "answered")? > 0 && !result.contains("silence"),
            "{what}: {result}"
        );
        // It lost the function with the first unbind and nobody gave it back, but it is nobody else's either.
        let reply = bad.one(&format!("op {operation}"))?;
        ensure!(figure(&reply, "err")? == -1, "{what}: {reply}");
        lab.sh(&format!(
            "grep -q '^{function} assigned {domid} ' {DRIVER}/status"
        ))?;
    }
    bad.guest.destroy_with_many()?;
    lab.machine.until(
        &format!("[ $(grep -c ' available ' {DRIVER}/status) = 3 ]"),
        30,
    )
}

fn two_guests(lab: &Lab<'_>) -> Result<()> {
    let behind = super::aer::nic(lab)?;
    let here = [NIC, "0000:00:07.0", "0000:00:09.0", EDU];
    let there = [behind.as_str(), TESTDEV, "0000:00:0b.0", "0000:00:0d.0"];
    let all: Vec<_> = here.iter().chain(&there).copied().collect();
    lab.load(lab.back, &format!("hide='({})'", all.join(")(")))?;
    let free = format!(
        "[ $(grep -c ' available ' {DRIVER}/status) = {} ]",
        all.len()
    );
    let rounds = [[here, there], [there, here]];
    for [one, two] in rounds.into_iter().take(lab.counts.rounds) {
        let options = |devices| crate::machine::GuestOptions {
            front: lab.front,
            devices,
            memory: 350,
            ..crate::machine::GuestOptions::default()
        };
        // Both come up at once.
        lab.machine.create("one", &options(&one[..]))?;
        lab.machine.create("two", &options(&two[..]))?;
        let guests = [lab.machine.attach("one")?, lab.machine.attach("two")?];
        for guest in &guests {
            guest.until("[ $(lspci | wc -l) = 4 ]", 60)?;
            ensure!(guest.sh("nproc")?.trim() == "4", "not four vCPUs");
        }
        lab.sh(&format!("[ $(grep -c ' assigned ' {DRIVER}/status) = 8 ]"))?;
        // Both work at once: configuration reads on all vCPUs, and a NIC with data.
        let [sh1, sh2] = [0, 1].map(|at| {
            let guest: &Guest<'_> = &guests[at];
            move |command: &str| guest.sh_within(command, 200)
        });
        let users = [Users::start(&sh1)?, Users::start(&sh2)?];
        for guest in &guests {
            start_nic(guest)?;
            guest.sh(&format!(
                "rm -f /tmp/sum; setsid sh -c 'wget -q -O - http://10.0.2.2:{}/2097152 | sha256sum >/tmp/new; mv /tmp/new /tmp/sum' >/dev/null 2>&1 </dev/null &",
                lab.port
            ))?;
        }
        let expected = crate::files::sum(&crate::files::contents(2 << 20));
        for guest in &guests {
            guest.until("[ -e /tmp/sum ]", 120)?;
            let sum = guest.sh("cat /tmp/sum")?;
            ensure!(
                sum.starts_with(&expected),
                "{}: 2 MiB arrived with sum {sum}",
                guest.name
            );
        }
        let counts = users.map(Users::end);
        for (guest, counts) in guests.iter().zip(counts) {
            say!(
                "    {}: 2 MiB with the right sum; rounds of its vCPUs: {:?}",
                guest.name,
                counts?
            );
        }
        // Both go at once, and whoever wants to unload the backend waits for it.
        lab.machine.sh_within(
            "for d in $(xl list | awk 'NR > 2 { print $2 }'); do xenstore-rm /local/domain/0/backend/pci/$d; done
             for d in $(xenstore-list /libxl/pci); do xenstore-rm /libxl/pci/$d/domid 2>/dev/null; done
             xl destroy one & xl destroy two & wait",
            180,
        )?;
        lab.machine.until(&free, 60)?;
    }
    Ok(())
}
