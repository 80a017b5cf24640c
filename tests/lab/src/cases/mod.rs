// SPDX-License-Identifier: GPL-2.0

//! The cases. Each starts from a dom0 without a backend and leaves it so, whatever happened.

mod aer;
mod config;
mod connect;
mod frontend;
mod hostile;
mod interrupts;
mod lifecycle;
mod ownership;
mod races;
mod ring;
mod seeds;
mod sysfs;
mod xenbus;

use crate::{
    files,
    machine::{Guest, GuestOptions, Machine, Profile, NIC},
};
use agent::Answer;
use anyhow::{ensure, Result};
use std::time::Duration;

/// Which ends a case can be run with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// What both kinds of drivers do.
    Any,
    /// States a rule of our backend.
    RustBackend,
    /// States a rule of our frontend.
    RustFrontend,
    /// Chooses both ends itself.
    Own,
}

/// One case.
pub struct Case {
    /// Behaviour and outcome.
    pub name: &'static str,
    /// With which drivers.
    pub ends: Ends,
    /// In which machine.
    pub profile: &'static Profile,
    run: fn(&Lab<'_>) -> Result<()>,
}

impl Case {
    /// Runs it and puts dom0 in order afterwards.
    pub fn run(&self, lab: &Lab<'_>) -> Result<()> {
        lab.machine.limit(lab.limit);
        let result = (self.run)(lab);
        lab.machine.limit(None);
        if result.is_err() {
            lab.show_state();
        }
        let tidy = lab.tidy();
        result.and(tidy)
    }
}

/// The cases by theme, in the order in which they run; those of one machine share its boot.
const THEMES: &[&[Case]] = &[
    sysfs::CASES,
    interrupts::IN_DOM0,
    connect::CASES,
    lifecycle::CASES,
    ownership::CASES,
    xenbus::CASES,
    ring::CASES,
    hostile::CASES,
    config::CASES,
    interrupts::CASES,
    aer::CASES,
    frontend::CASES,
    seeds::CASES,
    races::CASES,
];

/// Cases that `make test` leaves to `make test-full`, for their time: parts of names.
const ONLY_FULL: &[&str] = &[
    // The stock drivers with each other: a comparison.
    "pairing_back_c_front_c",
    // The NIC's case is the same pair, and guests that connect by the dozen.
    "pairing_back_rust_front_rust",
    "pairing_back_c_front_rust",
    // A machine of their own, whose boot takes more than a minute.
    "check_44",
    "by_the_hundred",
    // A minute for a rare thing.
    "a_restored_guest",
    // A minute for a card that is put in and pulled out.
    "a_card_that_is_put_in",
    // A kernel of its own for each way.
    "drivers_of_a_kernel_tree",
    // Minutes of load.
    "check_90",
    "nvme_reads_back",
    "roots_in_several",
];

impl Case {
    /// Whether it runs only when it is named, or in the full test.
    pub fn is_only_full(&self) -> bool {
        ONLY_FULL.iter().any(|part| self.name.contains(part))
    }
}

/// A quick look at whether a kernel and its drivers work at all: parts of names.
pub const SMOKE: &[&str] = &[
    "nic_passed_through",
    "hot_plug_and_unplug",
    "pairing_",
    "check_23",
];

/// All cases.
pub fn all() -> impl Iterator<Item = &'static Case> {
    THEMES.iter().copied().flatten()
}

/// What a case works with.
pub struct Lab<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// `c` or `rust`.
    pub back: &'a str,
    /// `c` or `rust`.
    pub front: &'a str,
    /// Port of the file server.
    pub port: u16,
    /// How much of what can be done more or less often.
    pub counts: Counts,
    /// How long a case may take, whatever its own waits allow together.
    pub limit: Option<Duration>,
}

/// What `make test-full` has more of.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    /// Guests of the case that connects many.
    pub connects: u32,
    /// Rounds of the case that binds and unbinds.
    pub cycles: u32,
    /// Reads of the case that reads from four vCPUs.
    pub reads: u32,
    /// Length in ms of each flood and storm of a hostile frontend.
    pub storm: u32,
    /// Requests of the case in which a hostile frontend makes many of all kinds.
    pub operations: u32,
    /// Rounds of the cases in which functions come and go, and kinds of order in which they do.
    pub rounds: usize,
}

const DRIVER: &str = "/sys/bus/pci/drivers/pciback";
/// Where dom0's kernel is traced.
const TRACE: &str = "/sys/kernel/tracing";

impl<'a> Lab<'a> {
    fn sh(&self, command: &str) -> Result<String> {
        self.machine.sh(command)
    }

    /// Loads a backend.
    pub fn load(&self, back: &str, parameters: &str) -> Result<()> {
        self.sh(&format!(
            "insmod /modules/{back}/xen-pciback.ko {parameters}"
        ))?;
        Ok(())
    }

    /// Loads the backend under test with the NIC hidden.
    pub fn load_with_nic(&self) -> Result<()> {
        self.load(self.back, "hide='(00:05.0)'")
    }

    /// A guest with the NIC and the frontend under test.
    pub fn nic_guest(&self, name: &str) -> Result<Guest<'a>> {
        self.guest(name, &[NIC])
    }

    /// A guest with these devices and the frontend under test.
    pub fn guest(&self, name: &str, devices: &[&str]) -> Result<Guest<'a>> {
        self.guest_of(self.front, name, devices)
    }

    /// The same with a frontend of the case's choice. The stock one loses its devices in a share of its
    /// starts (a known property of the set-up): it gets up to four guests, ours gets one.
    pub fn guest_of(&self, front: &str, name: &str, devices: &[&str]) -> Result<Guest<'a>> {
        let options = GuestOptions {
            front,
            devices,
            ..GuestOptions::default()
        };
        let tries = if front == "c" { 4 } else { 1 };
        for number in 1..tries {
            let guest = self.machine.guest(name, &options)?;
            let there = "i=0; until ls /sys/bus/pci/devices/* >/dev/null 2>&1; do i=$((i + 1)); [ $i = 150 ] && exit 1; sleep 0.1; done";
            if guest.ask(there, 30)?.status == 0 {
                return Ok(guest);
            }
            say!("    guest {number} of at most {tries} did not see its device");
            guest.destroy()?;
        }
        self.machine.guest(name, &options)
    }

    /// The functions below a bridge, at any depth, by address.
    pub fn below(&self, bridge: &str) -> Result<Vec<String>> {
        let found = self.sh(&format!(
            "cd /sys/bus/pci/devices/0000:{bridge} && find . -name '????:??:??.?' | sed 's|.*/||' | sort"
        ))?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// Has Xen give a function back to dom0. What a guest had stays in quarantine after it: a driver of
    /// dom0 binds to it, and its DMA faults.
    pub fn give_to_dom0(&self, function: &str) -> Result<()> {
        self.load(self.back, "")?;
        self.machine.xl(&format!("pci-assignable-add {function}"))?;
        self.machine
            .xl(&format!("pci-assignable-remove {function}"))?;
        self.sh("rmmod xen_pciback")?;
        Ok(())
    }

    /// Does `work` while dom0's kernel traces these probes of functions.
    pub fn probed(&self, probes: &[&str], work: impl FnOnce() -> Result<()>) -> Result<()> {
        let probes = probes.join("\n");
        self.sh(&format!(
            "[ -e {TRACE}/kprobe_events ] || mount -t tracefs tracefs {TRACE}
             cd {TRACE} && cat >kprobe_events <<'END'\n{probes}\nEND
             echo >trace && echo 1 >events/kprobes/enable"
        ))?;
        let result = work();
        self.sh(&format!(
            "cd {TRACE} && echo 0 >events/kprobes/enable && echo >kprobe_events"
        ))?;
        result
    }

    /// Prints what is gone after [`Self::tidy`], and helps to understand a failure.
    fn show_state(&self) {
        let command = format!(
            "xenstore-ls /local/domain/0/backend/pci
             for d in $(xl list | awk 'NR > 2 {{ print $2 }}'); do xenstore-ls /local/domain/$d/device/pci; done
             cat {DRIVER}/status"
        );
        if let Ok(answer) = self.machine.ask(&command, 30) {
            say!("    -- store and status\n{}", answer.output.trim_end());
        }
    }

    /// Ends what a case has left: guests, the backend, dom0's drivers.
    fn tidy(&self) -> Result<()> {
        self.sh("dmesg -c >>/var/log/dmesg.all")?;
        self.sh(
            "for d in $(xl list | awk 'NR > 2 { print $1 }'); do xl destroy $d; done
             i=0; while grep -q ^xen_pciback /proc/modules && ! rmmod xen_pciback 2>/dev/null; do
               i=$((i + 1)); [ $i = 240 ] && { rmmod xen_pciback; exit 1; }; sleep 0.5; done
             # Of guests with several devices the toolstack leaves keys when it gives up waiting.
             xenstore-rm /local/domain/0/backend/pci 2>/dev/null
             for m in e1000e igb nvme 8139cp ahci; do
               ! grep -q \"^$m \" /proc/modules || modprobe -r $m || true
               ! grep -q \"^$m \" /proc/modules || { echo $m stays; exit 1; }; done",
        )?;
        Ok(())
    }
}

/// The NIC of dom0 or a guest can be used.
pub const LINK_IS_UP: &str = "[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]";

/// Starts the NIC in a guest and gets an answer through it.
pub fn start_nic(guest: &Guest<'_>) -> Result<String> {
    guest.sh("modprobe e1000e")?;
    // A function that is shown already may still wait for its driver.
    guest.until("[ -e /sys/class/net/eth0 ]", 30)?;
    guest.sh("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")?;
    guest.until(LINK_IS_UP, 30)?;
    let ping = guest.sh("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    Ok(ping)
}

/// Downloads so many bytes in a guest whose network is up, and checks their sum.
pub fn download(lab: &Lab<'_>, guest: &Guest<'_>, size: usize) -> Result<()> {
    let sum = guest.sh_within(
        &format!(
            "wget -q -O - http://10.0.2.2:{}/{size} | sha256sum",
            lab.port
        ),
        200,
    )?;
    ensure!(
        sum.starts_with(&files::sum(&files::contents(size))),
        "{}: {size} bytes arrived with sum {sum}",
        guest.name
    );
    Ok(())
}

/// Takes the frontend's devices from it and unloads it: the bus code keeps a module of ours that
/// has devices.
pub fn unload_frontend(guest: &Guest<'_>) -> Result<Answer> {
    guest.ask(
        "for d in /sys/bus/xen/drivers/pcifront/pci-*; do [ ! -e $d ] || basename $d >/sys/bus/xen/drivers/pcifront/unbind; done; rmmod xen_pcifront",
        120,
    )
}
