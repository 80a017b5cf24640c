// SPDX-License-Identifier: GPL-2.0

//! `make bench`: what our drivers cost, against the stock ones and against the least that can be.
//!
//! One boot for each [`Mode`]. In it one guest stays, and the modules are changed under it: in each round
//! all four pairings have their turn, so that whatever changes with time changes for all. The store's keys
//! are written as the toolstack writes them, but by us: its own waits are in no figure.

mod report;

use crate::{
    image::{Images, Kernel},
    machine::{Counted, Guest, GuestOptions, Machine, Options, Profile, NIC},
};
use anyhow::{bail, ensure, Context, Result};
use report::{Figures, Sample};
use std::{path::Path, time::Instant};

/// The NIC with a large configuration space, and 31 functions behind a bridge that need no I/O ports.
const PROFILE: Profile = Profile {
    name: "bench",
    kernel: Kernel::Stock,
    devices: &[
        "-netdev user,id=net0 -device e1000e,netdev=net0,addr=5.0",
        "{bench}",
    ],
    disks: &[],
    dom0: "",
};

/// Backend and frontend, in the order of a round: the backend is changed only twice.
pub const PAIRINGS: [(&str, &str, &str); 4] = [
    ("CC", "c", "c"),
    ("CR", "c", "rust"),
    ("RR", "rust", "rust"),
    ("RC", "rust", "c"),
];

/// A way to boot.
pub struct Mode {
    /// Stands in the table.
    pub name: &'static str,
    /// What it is.
    pub title: &'static str,
    machine: Counted,
}

/// All of them.
pub const MODES: [Mode; 3] = [
    Mode {
        name: "A",
        title: "one CPU for dom0 and guest, Xen's default scheduler",
        machine: Counted { cpus: 1, xen: "" },
    },
    Mode {
        name: "B",
        title: "one CPU for dom0 and guest, sched_ratelimit_us=0",
        machine: Counted {
            cpus: 1,
            xen: "sched_ratelimit_us=0",
        },
    },
    Mode {
        name: "C",
        title: "a CPU for each: the time is the instructions of both, not a latency",
        machine: Counted { cpus: 2, xen: "" },
    },
];

/// How much is measured.
#[derive(Clone, Copy)]
pub struct Extent {
    rounds: usize,
    reads: u32,
    /// Devices that are there at once.
    devices: &'static [usize],
}

const FULL: Extent = Extent {
    rounds: 5,
    reads: 1000,
    devices: &[1, 8, 31],
};
const QUICK: Extent = Extent {
    rounds: 2,
    reads: 300,
    devices: &[1, 8, 31],
};

/// Runs it; `modes` are letters.
pub fn run(images: &Images, out: &Path, quick: bool, modes: Option<&str>) -> Result<()> {
    let start = Instant::now();
    let extent = if quick { QUICK } else { FULL };
    let wanted = modes.unwrap_or(if quick { "A" } else { "ABC" });
    let mut figures = Figures::default();
    for mode in MODES.iter().filter(|mode| wanted.contains(mode.name)) {
        println!("mode {}: {}", mode.name, mode.title);
        let options = Options {
            counted: Some(mode.machine),
            ..Options::default()
        };
        let machine = Machine::boot(images, out, &PROFILE, options)?;
        let bench = Bench::new(&machine, mode)?;
        println!("    up after {:.0} s", start.elapsed().as_secs_f32());
        for round in 1..=extent.rounds {
            bench.round(&mut figures, extent)?;
            println!(
                "    round {round} of {} done after {:.0} s",
                extent.rounds,
                start.elapsed().as_secs_f32()
            );
        }
        figures.repeated += machine.xl_repeated.get();
    }
    figures.seconds = start.elapsed().as_secs();
    let title = format!(
        "{} of {} rounds each, {} accesses in each; CC: stock backend and stock frontend, CR: stock backend, our frontend, and so on.",
        if quick { "Quick run" } else { "Run" },
        extent.rounds,
        extent.reads
    );
    report::write(&figures, &out.with_file_name("bench"), &title)
}

/// One boot.
struct Bench<'a> {
    machine: &'a Machine,
    mode: &'static str,
    guest: Guest<'a>,
    domid: String,
    /// The NIC first.
    functions: Vec<String>,
}

impl<'a> Bench<'a> {
    fn new(machine: &'a Machine, mode: &'static Mode) -> Result<Self> {
        let edu = machine.sh("lspci -D -n -d 1234:11e8 | cut -d' ' -f1")?;
        let functions = [NIC].into_iter().chain(edu.lines()).map(str::to_owned);
        let guest = machine.guest(
            "bench",
            &GuestOptions {
                front: "none",
                cpus: if mode.machine.cpus > 1 { "1" } else { "0" },
                ..GuestOptions::default()
            },
        )?;
        guest.sh("insmod /modules/test/floor.ko")?;
        let port = guest.sh("cat /sys/module/floor/parameters/port")?;
        let domid = machine.xl("domid bench")?.trim().to_owned();
        machine.sh(&format!(
            "insmod /modules/test/floor.ko domid={domid} port={} device={NIC}",
            port.trim()
        ))?;
        Ok(Self {
            machine,
            mode: mode.name,
            guest,
            domid,
            functions: functions.collect(),
        })
    }

    fn round(&self, figures: &mut Figures, extent: Extent) -> Result<()> {
        self.floor(figures, extent)?;
        let mut loaded = "";
        for (pairing, back, front) in PAIRINGS {
            if loaded != back {
                self.load(back)?;
                loaded = back;
            }
            for &count in extent.devices {
                let mut add = |figure: &str, sample| {
                    figures.add(self.mode, figure, pairing, sample);
                };
                let retries = self.connect(front, count, &mut add)?;
                self.measure(count, extent, &mut add)
                    .with_context(|| format!("{pairing}, {count} devices"))?;
                self.disconnect()?;
                figures.retries(pairing, retries);
            }
        }
        self.unload()
    }

    /// An event there and back, and one real read.
    fn floor(&self, figures: &mut Figures, extent: Extent) -> Result<()> {
        let floor = "cd /sys/module/floor/parameters";
        let rounds = extent.reads;
        let pong = self
            .guest
            .sh(&format!("{floor} && echo {rounds} >rounds && cat result"))?;
        let read = self
            .machine
            .sh(&format!("{floor} && echo {rounds} >reads && cat result"))?;
        let (pong, read) = (Sample::from_words(&pong)?, Sample::from_words(&read)?);
        figures.add(self.mode, "floor-events", "floor", pong);
        figures.add(self.mode, "floor-read", "floor", read);
        figures.add(self.mode, "floor", "floor", pong.plus(read));
        Ok(())
    }

    fn load(&self, back: &str) -> Result<()> {
        self.unload()?;
        let hide = self.functions.join(")(");
        self.machine.sh(&format!(
            "insmod /modules/{back}/xen-pciback.ko hide='({hide})'"
        ))?;
        Ok(())
    }

    fn unload(&self) -> Result<()> {
        self.machine.sh(
            "i=0; while grep -q ^xen_pciback /proc/modules && ! rmmod xen_pciback; do
               i=$((i + 1)); [ $i = 60 ] && exit 1; sleep 0.5; done",
        )?;
        Ok(())
    }

    fn backend(&self) -> String {
        format!("/local/domain/0/backend/pci/{}/0", self.domid)
    }

    fn frontend(&self) -> String {
        format!("/local/domain/{}/device/pci/0", self.domid)
    }

    /// What the toolstack writes for one device.
    fn keys(&self, number: usize) -> String {
        let (back, function) = (self.backend(), &self.functions[number]);
        format!(
            "{back}/key-{number} {function} {back}/dev-{number} {function} {back}/state-{number} 1 \
             {back}/opts-{number} msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=relaxed \
             {back}/num_devs {} ",
            number + 1
        )
    }

    /// Has the guest load its frontend when the backend waits for it with so many devices. The stock
    /// frontend loses its devices in a share of its starts, a known property of the set-up: then all begins
    /// again. Gives how often.
    fn connect(
        &self,
        front: &str,
        count: usize,
        add: &mut impl FnMut(&str, Sample),
    ) -> Result<usize> {
        let (domid, back, this) = (&self.domid, self.backend(), self.frontend());
        let devices: String = (0..count).map(|number| self.keys(number)).collect();
        for retries in 0..6 {
            self.machine.sh(&format!(
                "xenstore-write {this} '' {back} '' && xenstore-chmod {this} n{domid} r0 && xenstore-chmod {back} n0 r{domid} &&
                 xenstore-write {this}/backend {back} {this}/backend-id 0 {this}/state 1 &&
                 xenstore-write {back}/frontend {this} {back}/frontend-id {domid} {back}/online 1 {back}/domain bench {devices} {back}/state 1"
            ))?;
            self.wait_for(&back, 3)?;
            let loaded = self.guest.ask(
                &format!("agent measure devices {count} 'insmod /modules/{front}/xen-pcifront.ko'"),
                90,
            )?;
            if loaded.status == 0 {
                // What the frontend asks when its devices are there already counts, too.
                let operations = self.machine.sh(&format!("sleep 1; {}", self.events()))?;
                add(&format!("load-{count}"), Sample::from_json(&loaded.output)?);
                add(
                    &format!("load-operations-{count}"),
                    Sample::number(operations.trim().parse()?),
                );
                return Ok(retries);
            }
            self.disconnect()?;
        }
        bail!("no connection with frontend {front} and {count} devices")
    }

    fn wait_for(&self, directory: &str, state: u32) -> Result<()> {
        self.machine.sh(&format!(
            "i=0; until [ \"$(xenstore-read {directory}/state)\" = {state} ]; do
               i=$((i + 1)); [ $i = 300 ] && exit 1; sleep 0.05; done"
        ))?;
        Ok(())
    }

    fn events(&self) -> String {
        format!(
            "cat /sys/bus/xen-backend/devices/pci-{}-0/xenbus/events",
            self.domid
        )
    }

    /// Takes all devices from the guest, whatever state the connection is in.
    fn disconnect(&self) -> Result<()> {
        let (back, this) = (self.backend(), self.frontend());
        self.machine.sh(&format!(
            "xenstore-write {back}/online 0 {back}/state 5
             i=0; until [ \"$(xenstore-read {this}/state)\" = 6 ] || [ $i = 100 ]; do i=$((i + 1)); sleep 0.1; done
             xenstore-rm {back}; xenstore-rm {this}; sleep 0.5"
        ))?;
        self.guest.sh(
            "i=0; until ! grep -q ^xen_pcifront /proc/modules || rmmod xen-pcifront; do
               i=$((i + 1)); [ $i = 20 ] && exit 1; sleep 0.5; done
             [ ! -e /sys/bus/pci/devices ] || [ -z \"$(ls /sys/bus/pci/devices)\" ]",
        )?;
        Ok(())
    }

    fn measure(
        &self,
        count: usize,
        extent: Extent,
        add: &mut impl FnMut(&str, Sample),
    ) -> Result<()> {
        if count == 1 {
            self.accesses(extent, add)?;
        }
        let lspci = self
            .guest
            .sh_within("agent measure command 1 'lspci -xxxx'", 300)?;
        add(&format!("lspci-{count}"), Sample::from_json(&lspci)?);
        // One more while these are there.
        if count < self.functions.len() && count != 8 {
            let (back, this) = (self.backend(), self.frontend());
            let plugged = self.machine.sh(&format!(
                "xenstore-write {} && agent measure reconfigure {back} {this}",
                self.keys(count)
            ))?;
            add(&format!("plug-{count}"), Sample::from_json(&plugged)?);
            let there = self.guest.sh("ls /sys/bus/pci/devices | wc -l")?;
            ensure!(
                there.trim() == (count + 1).to_string(),
                "{there} devices after plugging one"
            );
        }
        Ok(())
    }

    /// Reads and writes of one device.
    fn accesses(&self, extent: Extent, add: &mut impl FnMut(&str, Sample)) -> Result<()> {
        let file = "/sys/bus/pci/devices/0000:00:00.0/config";
        let reads = extent.reads;
        let access = |what: &str, count: u32| -> Result<(Sample, [f64; 3])> {
            let before = self.counters()?;
            let text = self
                .guest
                .sh_within(&format!("agent measure {what} {count}"), 600)?;
            let after = self.counters()?;
            let used = std::array::from_fn(|at| after[at] - before[at]);
            Ok((Sample::from_json(&text)?, used))
        };
        // What the measuring itself uses goes off.
        let (_, base) = access(&format!("read {file} 0 4"), 1)?;
        let (read, used) = access(&format!("read {file} 0 4"), reads)?;
        let each = |at: usize| (used[at] - base[at]) / f64::from(reads - 1);
        add("read", read);
        add("guest-cpu", Sample::number(each(0) * 10_000.0));
        add("dom0-cpu", Sample::number(each(1) * 10_000.0));
        add("read-events", Sample::number(each(2)));
        let (write, _) = access(&format!("write {file} 12 1"), reads)?;
        add("write", write);
        let (constant, used) = access(&format!("read {file} 8 4"), reads)?;
        add("constant", constant);
        add(
            "constant-events",
            Sample::number(used[2] / f64::from(reads + 1)),
        );
        let kernel = self.guest.sh(&format!(
            "cd /sys/module/floor/parameters && echo 0000:00:00.0 >device && echo {reads} >reads && cat result"
        ))?;
        add("read-kernel", Sample::from_words(&kernel)?);
        Ok(())
    }

    /// Running time of guest and dom0 in ns, and events of the backend.
    fn counters(&self) -> Result<[f64; 3]> {
        let running = "cat /sys/module/floor/parameters/running";
        let guest = self.guest.sh(running)?;
        let dom0 = self.machine.sh(&format!("{running}; {}", self.events()))?;
        let mut numbers = guest.lines().chain(dom0.lines()).map(str::parse);
        let mut next = || -> Result<f64> { Ok(numbers.next().context("no counter")??) };
        Ok([next()?, next()?, next()?])
    }
}

/// The functions behind the bridge of [`PROFILE`].
pub fn functions() -> String {
    (1..32).fold(
        String::from("-device pcie-root-port,id=p,addr=10.0,chassis=1,slot=1 -device pcie-pci-bridge,id=b,bus=p"),
        |text, slot| format!("{text} -device edu,bus=b,addr={slot:x}.0"),
    )
}
