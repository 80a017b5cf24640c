// SPDX-License-Identifier: GPL-2.0

//! `make bench`: what our drivers cost, against the stock ones and against the least that can be.
//!
//! One boot for each [`Mode`]. In it one guest stays, and the modules are changed under it: in each round
//! all four pairings have their turn, so that whatever changes with time changes for all. The store's keys
//! are written as the toolstack writes them, but by us: its own waits are in no figure.

mod report;

use crate::{
    image::{Images, Kernel},
    machine::{Counted, Guest, GuestOptions, Machine, Options, Profile, MANY, NIC, SLOW},
};
use anyhow::{bail, ensure, Context, Result};
use report::{Figures, Sample};
use std::{collections::BTreeMap, path::Path, process::Command, time::Instant};

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
    vcpus: 1,
};

/// Four functions that their firmware resets slowly.
const SLOW_PROFILE: Profile = Profile {
    name: "bench-slow",
    kernel: Kernel::Stock,
    devices: &[
        "-device pci-testdev,addr=6.0",
        "-device pci-testdev,addr=16.0 -device pci-testdev,addr=17.0",
        "-device pci-testdev,addr=18.0 -device pci-testdev,addr=19.0",
        "-acpitable sig=SSDT,rev=2,data={run}/slow-resets",
    ],
    disks: &[],
    dom0: "",
    vcpus: 1,
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

impl Mode {
    /// With a CPU for each the emulator runs them in turns that are longer than a request: only what both
    /// do for it is counted then.
    pub fn has_latencies(&self) -> bool {
        self.machine.cpus == 1
    }
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
    /// Those with several devices, which take three times as long; the figures are the same each time.
    all: usize,
    reads: u32,
    /// Reads after which nothing may have been held back.
    soak: u32,
}

const FULL: Extent = Extent {
    rounds: 5,
    all: 2,
    reads: 300,
    soak: 100_000,
};
const QUICK: Extent = Extent {
    rounds: 2,
    all: 1,
    reads: 300,
    soak: 10_000,
};

/// Devices that are there at once.
const DEVICES: [usize; 3] = [1, 8, 31];

/// Runs it; `modes` are letters.
pub fn run(images: &Images, out: &Path, quick: bool, modes: Option<&str>) -> Result<()> {
    let start = Instant::now();
    let extent = if quick { QUICK } else { FULL };
    let wanted = modes.unwrap_or(if quick { "A" } else { "ABC" });
    let mut figures = Figures::default();
    let directory = out.with_file_name("bench");
    let title = format!(
        "{} of {} rounds each ({} with 8 and 31 devices), {} accesses in each; CC: stock backend and stock frontend, CR: stock backend, our frontend, and so on.",
        if quick { "Quick run" } else { "Run" },
        extent.rounds,
        extent.all,
        extent.reads
    );
    for mode in MODES.iter().filter(|mode| wanted.contains(mode.name)) {
        println!("mode {}: {}", mode.name, mode.title);
        // dom0's programs die now and then, whatever the drivers: then the rounds that are left go on
        // in another boot.
        let mut done = 0;
        for boot in 1.. {
            match rounds(mode, extent, &mut done, &mut figures, images, out) {
                Ok(()) => break,
                Err(e) if boot == 3 => return Err(e),
                Err(e) => {
                    println!("    {e:#}; booted again");
                    figures.again += 1;
                }
            }
        }
        figures.seconds = start.elapsed().as_secs();
        report::write(&figures, &directory, &title)?;
        println!(
            "    mode {} done after {:.0} s",
            mode.name,
            start.elapsed().as_secs_f32()
        );
    }
    sizes(&mut figures, out)?;
    let parts: [(&str, Part); 4] = [
        ("a flood", flood),
        ("functions by the hundred", many),
        ("guests' memory", memory),
        ("slow resets", teardown),
    ];
    for (name, part) in parts.into_iter().filter(|_| !quick) {
        if let Err(e) = part(&mut figures, images, out) {
            println!("    {e:#}; booted again");
            figures.again += 1;
            part(&mut figures, images, out)?;
        }
        figures.seconds = start.elapsed().as_secs();
        report::write(&figures, &directory, &title)?;
        println!(
            "    {name} done after {:.0} s",
            start.elapsed().as_secs_f32()
        );
    }
    figures.seconds = start.elapsed().as_secs();
    report::write(&figures, &directory, &title)?;
    print!("\n{}", std::fs::read_to_string(directory.join("table.md"))?);
    Ok(())
}

/// A boot of its own for some figures.
type Part = fn(&mut Figures, &Images, &Path) -> Result<()>;

/// One boot with the rounds that are not done yet.
fn rounds(
    mode: &'static Mode,
    extent: Extent,
    done: &mut usize,
    figures: &mut Figures,
    images: &Images,
    out: &Path,
) -> Result<()> {
    let start = Instant::now();
    let options = Options {
        counted: Some(mode.machine),
        ..Options::default()
    };
    let machine = Machine::boot(images, out, &PROFILE, options)?;
    let bench = Bench::new(&machine, mode)?;
    while *done < extent.rounds {
        bench.round(figures, extent, *done < extent.all)?;
        *done += 1;
        println!(
            "    round {done} of {} done, {:.0} s",
            extent.rounds,
            start.elapsed().as_secs_f32()
        );
    }
    if mode.name == "A" {
        bench.soak(figures, extent.soak)?;
    }
    figures.again += machine.xl_repeated.get();
    Ok(())
}

/// Stands for the mode where a figure has none.
const OTHERS: &str = "-";

/// The NIC in the guest.
const FILE: &str = "/sys/bus/pci/devices/0000:00:00.0/config";

/// One boot.
struct Bench<'a> {
    machine: &'a Machine,
    mode: &'static Mode,
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
                cpus: if mode.has_latencies() { "0" } else { "1" },
                // As on any real machine whose TSC is steady. The emulator does not say that its TSC is, so
                // Xen would emulate each reading of the clock, at 4 us, and hide what is measured.
                config: "tsc_mode=\"native\"",
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
            mode,
            guest,
            domid,
            functions: functions.collect(),
        })
    }

    /// For what is measured without rounds; the modes' own figures are not taken.
    fn of(machine: &'a Machine, guest: Guest<'a>, functions: Vec<String>) -> Result<Self> {
        let domid = machine.xl(&format!("domid {}", guest.name))?;
        Ok(Self {
            machine,
            mode: &MODES[2],
            guest,
            domid: domid.trim().to_owned(),
            functions,
        })
    }

    /// `all`: with several devices, too.
    fn round(&self, figures: &mut Figures, extent: Extent, all: bool) -> Result<()> {
        self.floor(figures, extent)?;
        let mut loaded = "";
        for (pairing, back, front) in PAIRINGS {
            if loaded != back {
                self.load(back)?;
                loaded = back;
            }
            let devices = if all && self.mode.has_latencies() {
                &DEVICES[..]
            } else {
                &[1]
            };
            let mut add =
                |figure: &str, sample| figures.add(self.mode.name, figure, pairing, sample);
            if self.mode.has_latencies() {
                self.programs(front, &mut add)?;
            }
            for &count in devices {
                let mut tries = 1;
                while let Err(e) = self.step(figures, extent, (pairing, front), count) {
                    ensure!(tries < 3, "{pairing}, {count} devices: {e:#}");
                    println!("    {pairing}, {count} devices: {e:#}; begun again");
                    tries += 1;
                    figures.again += 1;
                    self.disconnect()?;
                }
            }
        }
        self.unload()
    }

    fn step(
        &self,
        figures: &mut Figures,
        extent: Extent,
        (pairing, front): (&str, &str),
        count: usize,
    ) -> Result<()> {
        let mut add = |figure: &str, sample| figures.add(self.mode.name, figure, pairing, sample);
        let retries = self.connect(front, count, &mut add)?;
        self.measure(count, extent, &mut add)?;
        self.disconnect()?;
        figures.retries(pairing, retries);
        Ok(())
    }

    /// An event there and back with its hypercalls, and one real read; and what a write takes.
    fn floor(&self, figures: &mut Figures, extent: Extent) -> Result<()> {
        let floor = "cd /sys/module/floor/parameters";
        let rounds = extent.reads;
        let pong = self
            .guest
            .sh(&format!("{floor} && echo {rounds} >rounds && cat result"))?;
        let read = self
            .machine
            .sh(&format!("{floor} && echo {rounds} >reads && cat result"))?;
        let write = self.machine.sh(&format!(
            "{floor} && echo 12 >offset && echo {rounds} >writes && cat result && echo 0 >offset"
        ))?;
        let (pong, read) = (Sample::from_words(&pong)?, Sample::from_words(&read)?);
        let write = Sample::from_words(&write)?;
        let rounds = |count| format!("echo {count} >/sys/module/floor/parameters/rounds");
        let (waits, others) = self.hypercalls_of(rounds)?;
        figures.add(self.mode.name, "floor-waits", "floor", waits);
        figures.add(self.mode.name, "floor-hypercalls", "floor", others);
        figures.add(self.mode.name, "floor-write", "floor", write);
        figures.add(self.mode.name, "floor-events", "floor", pong);
        figures.add(self.mode.name, "floor-read", "floor", read);
        figures.add(self.mode.name, "floor", "floor", pong.plus(read));
        Ok(())
    }

    fn load(&self, back: &str) -> Result<()> {
        let functions: Vec<&str> = self.functions.iter().map(String::as_str).collect();
        self.load_with(back, &functions)
    }

    fn load_with(&self, back: &str, functions: &[&str]) -> Result<()> {
        self.unload()?;
        let hide = functions.join(")(");
        let load = format!("insmod /modules/{back}/xen-pciback.ko hide='({hide})'");
        // See `run`.
        if self.machine.ask(&load, 60)?.status != 0 {
            println!("    insmod of the backend is repeated");
            let counter = &self.machine.xl_repeated;
            counter.set(counter.get() + 1);
            self.machine.sh(&load)?;
        }
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
                if self.mode.has_latencies() {
                    add(&format!("load-{count}"), Sample::from_json(&loaded.output)?);
                }
                // Each operation has an event of its own only where dom0 is always done with the one
                // before. What the frontend asks when its devices are there already counts, too.
                if self.mode.name == "A" {
                    let operations = self.machine.sh(&format!("sleep 1; {}", self.events()))?;
                    add(
                        &format!("load-operations-{count}"),
                        Sample::number(operations.trim().parse()?),
                    );
                }
                return Ok(retries);
            }
            self.disconnect()?;
        }
        bail!("no connection with frontend {front} and {count} devices")
    }

    /// What the programs need by themselves.
    fn programs(&self, front: &str, add: &mut impl FnMut(&str, Sample)) -> Result<()> {
        let load = format!("agent measure command 1 'insmod /modules/{front}/xen-pcifront.ko' && rmmod xen-pcifront");
        add("load-0", Sample::from_json(&self.guest.sh(&load)?)?);
        Ok(())
    }

    fn wait_for(&self, directory: &str, state: u32) -> Result<()> {
        self.machine.sh(&format!(
            "i=0; until [ \"$(xenstore-read {directory}/state)\" = {state} ]; do
               i=$((i + 1)); [ $i = 300 ] && exit 1; sleep 0.05; done"
        ))?;
        Ok(())
    }

    fn events(&self) -> String {
        format!("cat {}/events", self.statistics())
    }

    fn statistics(&self) -> String {
        format!("/sys/bus/xen-backend/devices/pci-{}-0/xenbus", self.domid)
    }

    /// Takes all devices from the guest, whatever state the connection is in.
    fn disconnect(&self) -> Result<()> {
        let (back, this) = (self.backend(), self.frontend());
        self.machine.sh(&format!(
            "xenstore-write {back}/online 0 {back}/state 5
             i=0; until [ \"$(xenstore-read {this}/state)\" = 6 ] || [ $i = 100 ]; do i=$((i + 1)); sleep 0.1; done
             xenstore-rm {back}; xenstore-rm {this}; sleep 0.5"
        ))?;
        self.unload_frontend()
    }

    fn unload_frontend(&self) -> Result<()> {
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
        if !self.mode.has_latencies() {
            return Ok(());
        }
        let lspci = |arguments: &str| -> Result<Sample> {
            let command = format!("agent measure command 1 'lspci {arguments}'");
            Sample::from_json(&self.guest.sh_within(&command, 300)?)
        };
        // The first start of a program costs more.
        lspci("")?;
        let (alone, all) = (lspci("")?, lspci("-xxxx")?);
        add(&format!("lspci-{count}"), all);
        add(&format!("lspci-net-{count}"), all.minus(alone));
        self.held_back("", add)?;
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

    /// Many reads; then what the core has counted against the guest.
    fn soak(&self, figures: &mut Figures, reads: u32) -> Result<()> {
        self.load("rust")?;
        let mut add = |figure: &str, sample| figures.add(OTHERS, figure, "RR", sample);
        self.connect("rust", 1, &mut |_, _| ())?;
        self.guest
            .sh_within(&format!("agent measure read {FILE} 0 4 {reads}"), 900)?;
        add("soak", Sample::number(f64::from(reads)));
        self.held_back("soak-", &mut add)?;
        self.disconnect()?;
        self.unload()
    }

    /// What the core has counted against the guest.
    fn held_back(&self, name: &str, add: &mut impl FnMut(&str, Sample)) -> Result<()> {
        let held = self.machine.sh(&format!(
            "cd {} && cat jiffies_eoi_delayed spurious_events",
            self.statistics()
        ))?;
        for (figure, number) in ["eoi-delayed", "spurious"].iter().zip(held.lines()) {
            add(&format!("{name}{figure}"), Sample::number(number.parse()?));
        }
        Ok(())
    }

    /// Reads and writes of one device.
    fn accesses(&self, extent: Extent, add: &mut impl FnMut(&str, Sample)) -> Result<()> {
        let reads = extent.reads;
        let access = |what: &str, count: u32| -> Result<(Sample, [f64; 3])> {
            let running = "cat /sys/module/floor/parameters/running";
            let inside = format!("{running}; agent measure {what} {count}; {running}");
            let around = format!("{running}; {}", self.events());
            let text = self.machine.sh_within(
                &format!("{around}; {}; {around}", self.guest.command(&inside, 600)),
                700,
            )?;
            let [d0, e0, g0, figure, g1, d1, e1] = text.lines().collect::<Vec<_>>()[..] else {
                bail!("no figures: {text}");
            };
            let used = |from: &str, to: &str| -> Result<f64> {
                Ok(to.parse::<f64>()? - from.parse::<f64>()?)
            };
            let used = [used(g0, g1)?, used(d0, d1)?, used(e0, e1)?];
            Ok((Sample::from_json(figure)?, used))
        };
        // What the measuring itself uses goes off.
        let (_, base) = access(&format!("read {FILE} 0 4"), 1)?;
        let (read, used) = access(&format!("read {FILE} 0 4"), reads)?;
        let each = |at: usize| (used[at] - base[at]) / f64::from(reads - 1);
        add("read", read);
        add("guest-cpu", Sample::number(each(0) * 10_000.0));
        add("dom0-cpu", Sample::number(each(1) * 10_000.0));
        add("read-events", Sample::number(each(2)));
        let (status, _) = access(&format!("read {FILE} 4 4"), reads)?;
        add("read-status", status);
        let (write, _) = access(&format!("write {FILE} 12 1"), reads)?;
        add("write", write);
        let (constant, used) = access(&format!("read {FILE} 8 4"), reads)?;
        add("constant", constant);
        add(
            "constant-events",
            Sample::number(used[2] / f64::from(reads + 1)),
        );
        for (figure, offset, kind) in [
            ("read-kernel", 0, "reads"),
            ("read-status-kernel", 4, "reads"),
            ("write-kernel", 12, "writes"),
        ] {
            let figures = self.guest.sh(&format!(
                "cd /sys/module/floor/parameters && echo 0000:00:00.0 >device && echo {offset} >offset &&
                 echo {reads} >{kind} && cat result"
            ))?;
            add(figure, Sample::from_words(&figures)?);
        }
        self.hypercalls(add)
    }

    /// Hypercalls of guest and dom0 together for each read.
    fn hypercalls(&self, add: &mut impl FnMut(&str, Sample)) -> Result<()> {
        let read = |count| format!("agent measure read {FILE} 0 4 {count}");
        let (waits, others) = self.hypercalls_of(read)?;
        add("hypercalls-wait", waits);
        add("hypercalls-other", others);
        // Without the program and its system calls.
        let read = |count| {
            format!(
                "cd /sys/module/floor/parameters && echo 0000:00:00.0 >device && echo 0 >offset && echo {count} >reads"
            )
        };
        let (waits, others) = self.hypercalls_of(read)?;
        add("hypercalls-kernel-wait", waits);
        add("hypercalls-kernel-other", others);
        Ok(())
    }

    /// The same for each round of what a command of the guest does so often: those that wait, and all
    /// others.
    fn hypercalls_of(&self, command: impl Fn(u32) -> String) -> Result<(Sample, Sample)> {
        // What `sched_op` is to Xen.
        const SCHED_OP: &str = "29";
        // Of page tables and memory: those of the programs that begin and end meanwhile.
        const MEMORY: [&str; 4] = ["1", "12", "14", "26"];
        const ROUNDS: u32 = 300;
        let trace = |count: u32| -> Result<(f64, f64)> {
            let text = self.machine.sh(&format!(
                "xentrace -D -S 1024 -e 0x00201000 /tmp/trace >/dev/null 2>&1 & sleep 0.3
                 {} >/dev/null; kill -INT $!; wait $!; agent measure hypercalls /tmp/trace",
                self.guest.command(&command(count), 60)
            ))?;
            let calls: BTreeMap<String, BTreeMap<String, f64>> = serde_json::from_str(&text)?;
            let calls = calls.values().flatten();
            let calls = calls.filter(|(call, _)| !MEMORY.contains(&call.as_str()));
            let (waits, others): (Vec<_>, Vec<_>) = calls.partition(|(call, _)| *call == SCHED_OP);
            let sum =
                |of: Vec<(&String, &f64)>| of.into_iter().map(|(_, count)| count).sum::<f64>();
            Ok((sum(waits), sum(others)))
        };
        let (base, used) = (trace(1)?, trace(1 + ROUNDS)?);
        let each = |more: f64| Sample::number(more / f64::from(ROUNDS));
        Ok((each(used.0 - base.0), each(used.1 - base.1)))
    }
}

/// Text of the modules, as they are loaded.
fn sizes(figures: &mut Figures, out: &Path) -> Result<()> {
    for (domain, driver) in [("dom0", "xen-pciback"), ("guest", "xen-pcifront")] {
        for (kind, pairing) in [("c", "CC"), ("rust", "RR")] {
            let module = out.join(format!("images/{domain}/modules/{kind}/{driver}.ko"));
            let size = Command::new("size").arg(&module).output()?;
            let text = String::from_utf8_lossy(&size.stdout).into_owned();
            let number = text
                .lines()
                .nth(1)
                .and_then(|l| l.split_whitespace().next());
            let number = number.with_context(|| format!("size of {}", module.display()))?;
            figures.add(OTHERS, driver, pairing, Sample::number(number.parse()?));
        }
    }
    Ok(())
}

/// Seizes functions by the hundred: the time of the first and of the last, and dom0's memory for each.
fn many(figures: &mut Figures, images: &Images, out: &Path) -> Result<()> {
    let options = Options {
        counted: Some(MODES[0].machine),
        ..Options::default()
    };
    let machine = Machine::boot(images, out, &MANY, options)?;
    let list = machine.sh("lspci -D -n -d 1234:11e8 | cut -d' ' -f1")?;
    let list: Vec<&str> = list.lines().collect();
    ensure!(list.len() > 200, "{} functions", list.len());
    for round in 0..6 {
        for (back, pairing) in [("c", "CC"), ("rust", "RR")] {
            machine.sh(&format!("insmod /modules/{back}/xen-pciback.ko"))?;
            let before = allocated(&machine)?;
            let bind = format!(
                "agent measure bind /sys/bus/pci/drivers/pciback {}",
                list.join(" ")
            );
            let times: Vec<f64> = serde_json::from_str(&machine.sh_within(&bind, 300)?)?;
            let used = (allocated(&machine)? - before) / list.len() as f64;
            let (first, last) = (&times[..16], &times[times.len() - 16..]);
            figures.add(OTHERS, "bind-first", pairing, Sample::of(first));
            figures.add(OTHERS, "bind-last", pairing, Sample::of(last));
            // The first one fills the kernel's own caches.
            if round > 0 {
                figures.add(OTHERS, "function-memory", pairing, Sample::number(used));
            }
            machine.sh_within("rmmod xen_pciback", 300)?;
        }
    }
    Ok(())
}

/// A guest reads beside another one that is idle, that floods the backend, and that only computes: the emulator
/// runs the CPUs in turns, so that a busy neighbour costs time whatever it does.
fn flood(figures: &mut Figures, images: &Images, out: &Path) -> Result<()> {
    const READS: u32 = 1_000;
    let options = Options {
        counted: Some(Counted { cpus: 3, xen: "" }),
        ..Options::default()
    };
    let machine = Machine::boot(images, out, &PROFILE, options)?;
    let both = ["1", "2"].map(|cpu| {
        machine.guest(
            &format!("guest{cpu}"),
            &GuestOptions {
                front: "none",
                cpus: cpu,
                config: "tsc_mode=\"native\"",
                memory: 300,
                ..GuestOptions::default()
            },
        )
    });
    let edu = machine.sh("lspci -D -n -d 1234:11e8 | cut -d' ' -f1 | head -n 1")?;
    let [loud, quiet] = both;
    let loud = Bench::of(&machine, loud?, vec![edu.trim().to_owned()])?;
    let quiet = Bench::of(&machine, quiet?, vec![NIC.to_owned()])?;
    for _ in 0..3 {
        for (pairing, back, front) in [PAIRINGS[0], PAIRINGS[2]] {
            loud.load_with(back, &[edu.trim(), NIC])?;
            for bench in [&loud, &quiet] {
                bench.connect(front, 1, &mut |_, _| ())?;
            }
            let beside = |work: &str| -> Result<Sample> {
                loud.guest
                    .sh(&format!("({work}) >/dev/null 2>&1 & echo $! >/tmp/loud"))?;
                let figure = quiet
                    .guest
                    .sh_within(&format!("agent measure read {FILE} 4 4 {READS}"), 600);
                loud.guest.sh("kill -9 $(cat /tmp/loud); sleep 1")?;
                Sample::from_json(&figure?)
            };
            let alone = beside("exec sleep 100000")?;
            let computes = beside("exec sh -c 'while :; do :; done'")?;
            let floods = beside(&format!("exec agent measure read {FILE} 4 4 100000000"))?;
            figures.add(OTHERS, "beside-idle", pairing, alone);
            figures.add(OTHERS, "beside-computing", pairing, computes);
            figures.add(OTHERS, "beside-flood", pairing, floods);
            figures.add(OTHERS, "flood-ratio", pairing, floods.p99_to(alone));
            for bench in [&loud, &quiet] {
                bench.disconnect()?;
            }
        }
    }
    loud.unload()
}

/// dom0's memory for each connected guest: that of several at once.
fn memory(figures: &mut Figures, images: &Images, out: &Path) -> Result<()> {
    const GUESTS: usize = 8;
    let options = Options {
        measured: true,
        ..Options::default()
    };
    let machine = Machine::boot(images, out, &PROFILE, options)?;
    let edu = machine.sh("lspci -D -n -d 1234:11e8 | cut -d' ' -f1")?;
    let functions: Vec<&str> = edu.lines().take(GUESTS).collect();
    let mut guests = Vec::new();
    for function in &functions {
        let name = format!("memory{}", guests.len());
        let guest = machine.guest(
            &name,
            &GuestOptions {
                front: "none",
                cpus: "0-1",
                memory: 240,
                ..GuestOptions::default()
            },
        )?;
        guests.push(Bench::of(&machine, guest, vec![(*function).to_owned()])?);
    }
    let first = guests.first().context("no guest")?;
    for round in 0..4 {
        for (back, pairing) in [("c", "CC"), ("rust", "RR")] {
            first.load_with(back, &functions)?;
            let before = allocated(&machine)?;
            for bench in &guests {
                // The same frontend with both: only the backend's end is measured.
                bench.connect("rust", 1, &mut |_, _| ())?;
            }
            let used = (allocated(&machine)? - before) / GUESTS as f64;
            // The first one fills the kernel's own caches.
            if round > 0 {
                figures.add(OTHERS, "guest-memory", pairing, Sample::number(used));
            }
            for bench in &guests {
                bench.disconnect()?;
            }
            first.unload()?;
        }
    }
    Ok(())
}

/// What a guest's end costs the thread that serves the xenbus of all, when the guest's four functions are
/// reset slowly, and how much of that are round trips to the store; and when that thread comes to another
/// guest's device.
fn teardown(figures: &mut Figures, images: &Images, out: &Path) -> Result<()> {
    let options = Options {
        counted: Some(MODES[0].machine),
        ..Options::default()
    };
    let machine = Machine::boot(images, out, &SLOW_PROFILE, options)?;
    let guest = machine.guest(
        "teardown",
        &GuestOptions {
            front: "none",
            cpus: "0",
            ..GuestOptions::default()
        },
    )?;
    let bench = Bench::of(&machine, guest, SLOW.map(str::to_owned).to_vec())?;
    let other = "0000:00:06.0";
    // Each request to the store comes through this function.
    machine.sh(
        "insmod /modules/test/floor.ko && mount -t tracefs none /sys/kernel/tracing && cd /sys/kernel/tracing &&
         echo xs_talkv >set_ftrace_filter && pidof xenwatch >set_ftrace_pid && echo function >current_tracer",
    )?;
    let trip = machine.sh("cd /sys/module/floor/parameters && echo 1000 >looks && cat result")?;
    let trip: f64 = trip.trim().parse()?;
    for _ in 0..3 {
        for (pairing, back, front) in [PAIRINGS[0], PAIRINGS[2]] {
            bench.load_with(back, &[&SLOW[..], &[other]].concat())?;
            bench.connect(front, SLOW.len(), &mut |_, _| ())?;
            let (gone, this, domid) = (bench.backend(), bench.frontend(), &bench.domid);
            let (second, theirs) = (
                format!("/local/domain/0/backend/pci/{domid}/1"),
                format!("/local/domain/{domid}/device/pci/1"),
            );
            // As the other's frontend is a directory only, its backend waits for it after it has looked at it.
            let text = machine.sh_within(
                &format!(
                    "used() {{ cut -d' ' -f1 /proc/$(pidof xenwatch)/schedstat; }}
                     now() {{ awk '{{ print int($1 * 1000) }}' /proc/uptime; }}
                     trips() {{ grep -c xs_talkv /sys/kernel/tracing/trace; }}
                     sleep 1; echo >/sys/kernel/tracing/trace; before=$(used); begin=$(now)
                     xenstore-write {gone}/online 0; xenstore-rm {gone}; xenstore-rm {this}
                     xenstore-write {theirs} '' {second} '' &&
                     xenstore-write {theirs}/backend {second} {theirs}/backend-id 0 {theirs}/state 1 &&
                     xenstore-write {second}/frontend {theirs} {second}/frontend-id {domid} {second}/online 1 \
                       {second}/num_devs 1 {second}/dev-0 {other} {second}/opts-0 msitranslate=0 {second}/state 1
                     i=0; until [ \"$(xenstore-read {second}/state)\" = 3 ]; do i=$((i + 1)); [ $i = 2000 ] && exit 1; sleep 0.01; done
                     end=$(now); sleep 20; after=$(used); trips=$(trips)
                     xenstore-rm {second}; xenstore-rm {theirs}; sleep 3
                     echo $((after - before)) $((end - begin)) $trips"
                ),
                200,
            )?;
            let numbers: Vec<f64> = text
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            let [used, answered, trips] = numbers[..] else {
                bail!("no figures: {text}");
            };
            ensure!(trips > 0.0, "no request to the store was seen");
            let mut add = |figure: &str, value| {
                figures.add(OTHERS, figure, pairing, Sample::number(value));
            };
            add("xenbus-cpu", used);
            add("xenbus-trips", trips);
            add("xenbus-trip", trip);
            add("xenbus-answer", answered * 1e6);
            bench.unload_frontend()?;
            bench.unload()?;
        }
    }
    Ok(())
}

/// What dom0's kernel has allocated, in bytes: slabs, pages mapped for it, per-CPU memory. Free memory would
/// not do: it drifts by megabytes for minutes after the start.
fn allocated(machine: &Machine) -> Result<f64> {
    let kib = machine.sh("sleep 1; echo 3 >/proc/sys/vm/drop_caches
         for s in /sys/kernel/slab/*/shrink; do echo 1 >$s; done 2>/dev/null
         awk '/^(Slab|VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo")?;
    Ok(kib.trim().parse::<f64>()? * 1024.0)
}

/// The functions behind the bridge of [`PROFILE`].
pub fn functions() -> String {
    (1..32).fold(
        String::from("-device pcie-root-port,id=p,addr=10.0,chassis=1,slot=1 -device pcie-pci-bridge,id=b,bus=p"),
        |text, slot| format!("{text} -device edu,bus=b,addr={slot:x}.0"),
    )
}
