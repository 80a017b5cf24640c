// SPDX-License-Identifier: GPL-2.0

//! `lab peers`: what a pair of kernels, with one driver at each end and one Xen below, can do
//! together.
//!
//! Both ends speak a protocol that the drivers of many kernels speak, so each of ours has peers
//! that are not ours. `main` calls [`run`] for one pair; which pair that is say
//! [`crate::image::Paths`], `BACK` and `FRONT`. One machine is booted and a fixed list of probes
//! is made in it, [`STEPS`]. A probe states nothing: it gives an outcome in stable words, one line
//! `probe: outcome`. A file in `tests/peers` holds the outcomes that are expected of the pair, and
//! any other one fails, a better one too: then somebody has to look, and write the file anew.
//!
//! An outcome must not depend on luck. The stock frontend loses its device in a share of its
//! starts, so where it is the frontend, guests are started until one sees its device, and a step
//! that missed something is made again in a new guest. Where ours is, everything is tried once.
//!
//! Nothing here breaks the rules of the protocol: whatever the outcome, it is what a user would
//! see.

use crate::{
    boot,
    cases::{unload_frontend, Counts, Lab, LINK_IS_UP},
    config, files, image, logs,
    machine::{Guest, GuestOptions, EDU, NIC, STANDARD},
};
use anyhow::{ensure, Context, Result};
use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    fmt::Write,
    fs,
    path::Path,
};

/// Probes that are made one after the other in one guest, each of which needs the one before it.
struct Step {
    probes: &'static [&'static str],
    /// Gives outcomes for the probes in their order; for fewer when one cannot be reached.
    run: fn(&Peers<'_>, &mut Vec<Outcome>) -> Result<()>,
    /// Whether it needs what the first probe looks for.
    needs_nic: bool,
}

const STEPS: &[Step] = &[
    Step {
        probes: &[
            "guest sees the NIC",
            "configuration space",
            "driver",
            "ping",
            "1 MiB",
            "interrupts",
        ],
        run: first,
        needs_nic: false,
    },
    Step {
        probes: &["second function by hot-plug", "second function unplugged"],
        run: second,
        needs_nic: true,
    },
    Step {
        probes: &["pci-detach", "pci-attach"],
        run: detach_and_attach,
        needs_nic: true,
    },
    Step {
        probes: &["frontend unloaded", "frontend loaded again"],
        run: reload,
        needs_nic: true,
    },
    Step {
        probes: &["guest destroyed under traffic"],
        run: destroyed,
        needs_nic: true,
    },
    Step {
        probes: &["two functions from the start"],
        run: two,
        needs_nic: true,
    },
    Step {
        probes: &["backend unloaded"],
        run: unload_backend,
        needs_nic: false,
    },
    Step {
        probes: &["dom0's log", "guests' logs"],
        run: logs,
        needs_nic: false,
    },
];

/// Of a probe whose prerequisite failed.
const NOT_REACHED: &str = "not reached";

/// What a probe saw.
struct Outcome {
    text: String,
    /// Whether a stock frontend's luck may be the reason.
    missed: bool,
}

fn seen(text: impl Into<String>) -> Outcome {
    let text = text.into();
    Outcome {
        text,
        missed: false,
    }
}

fn missed(text: impl Into<String>) -> Outcome {
    let text = text.into();
    Outcome { text, missed: true }
}

/// Starts of the stock frontend until it has seen its device. About half of them are enough for
/// that.
const STARTS: u32 = 8;
/// How often a step with the stock frontend is made until it has missed nothing.
const ROUNDS: u32 = 4;
/// Machines that the emulator may lose.
const LOST: u32 = 2;
/// Seconds until something has to be there; not more on a busy host, as it is often waited for in
/// vain.
const SOON: u32 = 60;

/// A pair in its machine.
struct Peers<'a> {
    lab: Lab<'a>,
    /// Guests so far: each has a name, and logs, of its own.
    started: &'a Cell<u32>,
    /// The guest that the step before has left, with the NIC and in order.
    left: RefCell<Option<Guest<'a>>>,
}

/// Probes and what they saw.
type Outcomes = Vec<(&'static str, String)>;

/// Makes the probes for a pair and compares with the file `expect`, or writes it. Whether all is
/// as expected.
pub fn run(
    paths: &image::Paths,
    (back, front): (&str, &str),
    expect: &Path,
    write: bool,
) -> Result<bool> {
    if write {
        fs::write(expect, text(&observe(paths, (back, front))?))
            .with_context(|| format!("writing {}", expect.display()))?;
        println!("wrote {}", expect.display());
        return Ok(true);
    }
    // Read before anything is booted.
    let wanted =
        fs::read_to_string(expect).with_context(|| format!("reading {}", expect.display()))?;
    let expected = parse(&wanted)?;
    let outcomes = observe(paths, (back, front))?;
    let differences = differences(&expected, &outcomes);
    for line in &differences {
        println!("failed: {line}");
    }
    let passed = outcomes.iter().filter(|(probe, outcome)| {
        let mut expected = expected.iter();
        expected.any(|(p, o)| p == probe && o == outcome)
    });
    println!("{} passed, {} failed", passed.count(), differences.len());
    Ok(differences.is_empty())
}

/// Makes all steps, in one machine unless the emulator loses it.
fn observe(paths: &image::Paths, (back, front): (&str, &str)) -> Result<Outcomes> {
    let images = crate::images(paths, image::Kernel::Stock)?;
    let port = files::serve()?;
    let started = Cell::new(0);
    let (mut outcomes, mut lost) = (Vec::new(), 0);
    let mut left = STEPS;
    while !left.is_empty() {
        let machine = boot(&images, &paths.out, &STANDARD, None)?;
        let peers = Peers {
            lab: Lab {
                machine: &machine,
                back,
                front,
                port,
                counts: Counts::default(),
                limit: None,
            },
            started: &started,
            left: RefCell::default(),
        };
        peers.begin()?;
        while let Some((step, rest)) = left.split_first() {
            match peers.step(step, &outcomes) {
                Ok(found) => {
                    note(&mut outcomes, step, found);
                    left = rest;
                    continue;
                }
                Err(e) => say!("    dom0: {e:#}"),
            }
            match machine.lost_interrupt() {
                Some(why) if lost < LOST => {
                    say!("    the emulator lost an interrupt: {why}; a new machine goes on");
                    lost += 1;
                }
                _ => {
                    note(&mut outcomes, step, vec![seen("dom0 does not answer")]);
                    for step in rest {
                        note(&mut outcomes, step, Vec::new());
                    }
                    left = &[];
                }
            }
            break;
        }
    }
    Ok(outcomes)
}

/// Prints and keeps the outcomes of a step, with those that it did not come to.
fn note(all: &mut Outcomes, step: &Step, found: Vec<Outcome>) {
    let mut found = found.into_iter();
    for probe in step.probes {
        let text = found.next().map_or(NOT_REACHED.to_owned(), |o| o.text);
        println!("{probe}: {text}");
        all.push((probe, text));
    }
}

const HEADER: &str = "# SPDX-License-Identifier: GPL-2.0
# What `lab peers` sees of this pair. Any other outcome fails, a better one too.
# `lab peers --write` writes this file.
";

/// The file of these outcomes.
fn text(outcomes: &[(&str, String)]) -> String {
    let mut text = HEADER.to_owned();
    for (probe, outcome) in outcomes {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{probe}: {outcome}");
    }
    text
}

/// The probes and outcomes of a file.
fn parse(text: &str) -> Result<Vec<(&str, &str)>> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (probe, outcome) = line
            .split_once(": ")
            .with_context(|| format!("not a probe with its outcome: {line}"))?;
        ensure!(all.iter().all(|(p, _)| *p != probe), "twice: {probe}");
        all.push((probe, outcome));
    }
    ensure!(!all.is_empty(), "no outcome is expected");
    Ok(all)
}

/// A line for each probe that is not as expected, and for each that is only in one of the lists.
fn differences(expected: &[(&str, &str)], seen: &[(&str, String)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (probe, outcome) in seen {
        match expected.iter().find(|(p, _)| p == probe) {
            Some((_, wanted)) if wanted == outcome => {}
            Some((_, wanted)) => {
                lines.push(format!(
                    "{probe}: expected \"{wanted}\", seen \"{outcome}\""
                ));
            }
            None => lines.push(format!("{probe}: nothing is expected, seen \"{outcome}\"")),
        }
    }
    for (probe, wanted) in expected {
        if seen.iter().all(|(p, _)| p != probe) {
            lines.push(format!(
                "{probe}: expected \"{wanted}\", but there is no such probe"
            ));
        }
    }
    lines
}

/// The interrupts of a network interface, as the guest's /proc/interrupts has them.
fn interrupts(text: &str, interface: &str) -> String {
    let mut kind = None;
    let (mut vectors, mut used) = (0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(count), Some(name)) = (words.get(1), words.last()) else {
            continue;
        };
        if *name != interface && !name.starts_with(&format!("{interface}-")) {
            continue;
        }
        kind = kind.or(Some(match line {
            _ if line.contains("msi-x") => "MSI-X",
            _ if line.contains("msi") => "MSI",
            _ => "INTx",
        }));
        vectors += 1;
        used += u32::from(*count != "0");
    }
    match kind {
        None => "none".to_owned(),
        Some(kind) => format!("{kind}, {vectors} of which {used} in use"),
    }
}

const YES: &str = "yes";
const PING: &str = "3 of 3";
const NIC_IDS: &str = "8086:10d3";
const EDU_IDS: &str = "1234:11e8";

impl<'a> Peers<'a> {
    /// Says which pair it is, and loads the backend with both functions hidden.
    fn begin(&self) -> Result<()> {
        let machine = self.lab.machine;
        let about = machine.sh("uname -r; xl info xen_version")?;
        let about: Vec<_> = about.split_whitespace().collect();
        say!(
            "    dom0: kernel {}, {} backend; {} frontend",
            about.join(", Xen "),
            self.lab.back,
            self.lab.front
        );
        self.lab.load(self.lab.back, "hide='(00:05.0)(00:0a.0)'")
    }

    /// Makes a step until it has missed nothing, or it has been tried often enough; gives the
    /// best. `before` is what the steps before it saw.
    ///
    /// # Errors
    ///
    /// When dom0 does not answer any more.
    fn step(&self, step: &Step, before: &Outcomes) -> Result<Vec<Outcome>> {
        if step.needs_nic && before.first().is_none_or(|(_, outcome)| outcome != YES) {
            return Ok(Vec::new());
        }
        let rounds = self.rounds();
        let mut best: Option<(usize, Vec<Outcome>)> = None;
        for round in 1..=rounds {
            let mut outcomes = Vec::new();
            if let Err(e) = (step.run)(self, &mut outcomes) {
                self.lab.machine.ask("true", 20).context(format!("{e:#}"))?;
                say!("    {e:#}");
                outcomes.push(missed("error"));
            }
            // Stopped without a word: there was no guest for it.
            let all = !outcomes.is_empty() && outcomes.iter().all(|o| !o.missed);
            let reached = outcomes.iter().filter(|o| !o.missed).count();
            if !all {
                self.left.take();
            }
            if self.left.borrow().is_none() {
                self.end_all()?;
            }
            if best.as_ref().is_none_or(|(most, _)| reached > *most) {
                best = Some((reached, outcomes));
            }
            if all {
                break;
            }
            if round < rounds {
                say!("    \"{}\" is made again", step.probes.join("\", \""));
            }
        }
        Ok(best.map(|(_, outcomes)| outcomes).unwrap_or_default())
    }

    /// How often something is tried that a stock frontend may miss.
    fn rounds(&self) -> u32 {
        match self.lab.front {
            "c" => ROUNDS,
            _ => 1,
        }
    }

    /// Ends all guests.
    fn end_all(&self) -> Result<()> {
        self.lab.machine.sh_within(
            "for d in $(xl list | awk 'NR > 2 { print $1 }'); do xl destroy $d; done",
            180,
        )?;
        Ok(())
    }

    /// A guest that sees these devices, if one does.
    fn start(&self, devices: &[(&str, &str)]) -> Result<Option<Guest<'a>>> {
        let addresses: Vec<&str> = devices.iter().map(|(address, _)| *address).collect();
        let options = GuestOptions {
            front: self.lab.front,
            devices: &addresses,
            ..GuestOptions::default()
        };
        let there: Vec<_> = devices
            .iter()
            .map(|(_, ids)| format!("lspci -n | grep -q {ids}"))
            .collect();
        let starts = if self.lab.front == "c" { STARTS } else { 1 };
        for number in 1..=starts {
            self.started.set(self.started.get() + 1);
            let name = format!("peer{}", self.started.get());
            let guest = self.lab.machine.guest(&name, &options)?;
            if holds(&guest, &there.join(" && "))? {
                return Ok(Some(guest));
            }
            say!("    guest {number} of at most {starts} does not see its devices");
            guest.destroy()?;
        }
        Ok(None)
    }

    /// A guest with the NIC: the one that was left, or a new one.
    fn nic_guest(&self) -> Result<Option<Guest<'a>>> {
        match self.left.take() {
            Some(guest) => Ok(Some(guest)),
            None => self.start(&[(NIC, NIC_IDS)]),
        }
    }

    /// For the next step.
    fn leave(&self, guest: Guest<'a>) {
        self.left.replace(Some(guest));
    }

    /// `xl`; whether it did what it was asked. What it says is printed if not.
    fn xl(&self, arguments: &str) -> Result<bool> {
        match self.lab.machine.xl(arguments) {
            Ok(_) => Ok(true),
            Err(e) => {
                self.lab.machine.ask("true", 20)?;
                say!("    xl {arguments}: {e:#}");
                Ok(false)
            }
        }
    }
}

/// Whether a shell condition holds in a guest before long.
fn holds(guest: &Guest<'_>, condition: &str) -> Result<bool> {
    let tries = SOON * 5;
    let answer = guest.ask(
        &format!(
            "i=0; until {condition}; do
               i=$((i + 1)); [ $i -lt {tries} ] || exit 1; sleep 0.2; done"
        ),
        u64::from(SOON) * 2,
    )?;
    Ok(answer.status == 0)
}

/// Starts the NIC in a guest.
fn start_nic(guest: &Guest<'_>) -> Result<Outcome> {
    guest.ask("modprobe e1000e", 60)?;
    // A driver that is already loaded takes a new function some time after it is there.
    if !holds(guest, "[ -e /sys/class/net/eth0 ]")? {
        return Ok(missed("no interface"));
    }
    let up = "ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0";
    guest.ask(up, 60)?;
    if !holds(guest, LINK_IS_UP)? {
        return Ok(missed("no link"));
    }
    let ping = guest.ask("ping -c 3 -W 10 10.0.2.2", 60)?;
    if ping.output.contains("3 packets received") {
        return Ok(seen(PING));
    }
    say!("    {}", ping.output.trim());
    Ok(missed("fewer than 3 of 3"))
}

fn first(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let Some(guest) = peers.nic_guest()? else {
        // It has had its guests.
        outcomes.push(seen("no"));
        return Ok(());
    };
    outcomes.push(seen(YES));
    say!("    guest: kernel {}", guest.sh("uname -r")?.trim());

    let device = peers.lab.machine.sh("lspci -xxxx -s 00:05.0")?;
    let device = config::parse(&device).context("in dom0")?;
    // A stock frontend that the host keeps waiting reads all ones: what differs must do so each time.
    let mut differences = Vec::new();
    for round in 0..peers.rounds() {
        let shown = guest.sh("lspci -xxxx")?;
        let shown = config::parse(&shown).context("in the guest")?;
        let here = config::differences(&device, &shown, config::E1000E);
        match round {
            0 => differences = here,
            _ => differences.retain(|line| here.contains(line)),
        }
        if differences.is_empty() {
            break;
        }
    }
    outcomes.push(match differences.len() {
        0 => seen("equal"),
        number => {
            say!("    {}", differences.join("\n    "));
            let places: Vec<_> = differences
                .iter()
                .map(|line| line.split_once(':').map_or(line.as_str(), |(at, _)| at))
                .take(8)
                .collect();
            missed(format!("{number} differences: {}", places.join(", ")))
        }
    });

    guest.ask("modprobe e1000e", 60)?;
    if !holds(&guest, "[ -e /sys/class/net/eth0/device/driver ]")? {
        outcomes.push(missed("none"));
        return Ok(());
    }
    let driver = guest.sh("basename $(readlink /sys/class/net/eth0/device/driver)")?;
    outcomes.push(seen(driver.trim()));

    let ping = start_nic(&guest)?;
    let reached = !ping.missed;
    outcomes.push(ping);
    if !reached {
        return Ok(());
    }

    const SIZE: usize = 1 << 20;
    let get = format!(
        "wget -q -O - http://10.0.2.2:{}/{SIZE} | sha256sum",
        peers.lab.port
    );
    let sum = guest.ask(&get, 120)?.output;
    let right = sum.starts_with(&files::sum(&files::contents(SIZE)));
    outcomes.push(match right {
        true => seen("right sum"),
        false => missed("wrong sum"),
    });
    outcomes.push(seen(interrupts(&guest.sh("cat /proc/interrupts")?, "eth0")));
    peers.leave(guest);
    Ok(())
}

/// In which place of a guest a function is, if it is there.
fn place(guest: &Guest<'_>, ids: &str) -> Result<String> {
    let place = guest.sh(&format!("lspci -n | awk '$3 == \"{ids}\" {{ print $1 }}'"))?;
    Ok(place.trim().to_owned())
}

fn second(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let Some(guest) = peers.nic_guest()? else {
        return Ok(());
    };
    if !peers.xl(&format!("pci-attach {} {EDU}", guest.name))? {
        outcomes.push(missed("xl fails"));
        return Ok(());
    }
    if !holds(&guest, &format!("lspci -n | grep -q {EDU_IDS}"))? {
        outcomes.push(missed("not seen"));
        return Ok(());
    }
    outcomes.push(seen(format!("at {}", place(&guest, EDU_IDS)?)));

    let detached = peers.xl(&format!("pci-detach {} {EDU}", guest.name))?;
    outcomes.push(gone(&guest, detached, EDU_IDS)?);
    peers.leave(guest);
    Ok(())
}

/// The outcome of a detachment.
fn gone(guest: &Guest<'_>, detached: bool, ids: &str) -> Result<Outcome> {
    if !detached {
        return Ok(missed("xl fails"));
    }
    let gone = holds(guest, &format!("[ $(lspci -n | grep -c {ids}) = 0 ]"))?;
    Ok(match gone {
        true => seen("gone"),
        false => missed("still there"),
    })
}

/// The NIC is the guest's only function, so that its bus goes with it.
fn detach_and_attach(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let Some(guest) = peers.nic_guest()? else {
        return Ok(());
    };
    let detached = peers.xl(&format!("pci-detach {} {NIC}", guest.name))?;
    let gone = gone(&guest, detached, NIC_IDS)?;
    let reached = !gone.missed;
    outcomes.push(gone);
    if !reached {
        return Ok(());
    }
    if !peers.xl(&format!("pci-attach {} {NIC}", guest.name))? {
        outcomes.push(missed("xl fails"));
        return Ok(());
    }
    outcomes.push(back_again(&guest)?);
    peers.leave(guest);
    Ok(())
}

/// Whether the NIC is there again and works.
fn back_again(guest: &Guest<'_>) -> Result<Outcome> {
    if !holds(guest, &format!("lspci -n | grep -q {NIC_IDS}"))? {
        return Ok(missed("does not come back"));
    }
    let ping = start_nic(guest)?;
    Ok(Outcome {
        text: format!("comes back, ping {}", ping.text),
        ..ping
    })
}

fn reload(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let Some(guest) = peers.nic_guest()? else {
        return Ok(());
    };
    // The NIC is in use by nobody then, but the bus is.
    guest.ask("modprobe -r e1000e", 60)?;
    // The kernel keeps a frontend that has devices. How a stock one comes back that had them taken
    // is a matter of luck.
    let answer = match peers.lab.front {
        "c" => guest.ask("rmmod xen_pcifront", 60)?,
        _ => unload_frontend(&guest)?,
    };
    if answer.status != 0 {
        say!("    {}", answer.output.trim());
        outcomes.push(seen("refused"));
        if peers.lab.front == "c" {
            peers.leave(guest);
        }
        return Ok(());
    }
    outcomes.push(seen(YES));
    let answer = guest.ask(
        &format!("insmod /modules/{}/xen-pcifront.ko", peers.lab.front),
        120,
    )?;
    if answer.status != 0 {
        say!("    {}", answer.output.trim());
        outcomes.push(missed("refused"));
        return Ok(());
    }
    outcomes.push(back_again(&guest)?);
    peers.leave(guest);
    Ok(())
}

fn destroyed(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let Some(guest) = peers.nic_guest()? else {
        return Ok(());
    };
    if start_nic(&guest)?.missed {
        return Ok(());
    }
    guest.sh(&format!(
        "setsid sh -c 'while :; do wget -q -O /dev/null http://10.0.2.2:{}/100000000; done' \
           >/dev/null 2>&1 &
         sleep 2; a=$(cat /sys/class/net/eth0/statistics/rx_bytes); sleep 1
         [ $(cat /sys/class/net/eth0/statistics/rx_bytes) -gt $a ]",
        peers.lab.port
    ))?;
    guest.destroy()?;
    let Some(guest) = peers.start(&[(NIC, NIC_IDS)])? else {
        outcomes.push(missed("next guest does not see it"));
        return Ok(());
    };
    let ping = start_nic(&guest)?;
    outcomes.push(Outcome {
        text: format!("next guest gets it, ping {}", ping.text),
        ..ping
    });
    guest.destroy()
}

fn two(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    if let Some(guest) = peers.left.take() {
        guest.destroy()?;
    }
    let Some(guest) = peers.start(&[(NIC, NIC_IDS), (EDU, EDU_IDS)])? else {
        // It has had its guests.
        outcomes.push(seen("not both seen"));
        return Ok(());
    };
    let places = [place(&guest, NIC_IDS)?, place(&guest, EDU_IDS)?];
    let ping = start_nic(&guest)?;
    outcomes.push(Outcome {
        text: format!("at {}, ping {}", places.join(" and "), ping.text),
        ..ping
    });
    guest.destroy()
}

fn unload_backend(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    peers.left.take();
    peers.end_all()?;
    // What a guest had may still be on its way back.
    let answer = peers.lab.machine.ask(
        &format!(
            "i=0; until rmmod xen_pciback 2>/dev/null; do
               i=$((i + 1)); [ $i -lt {SOON} ] || exit 1; sleep 1; done"
        ),
        u64::from(SOON) * 2,
    )?;
    outcomes.push(seen(match answer.status {
        0 => YES,
        _ => "refused",
    }));
    Ok(())
}

fn logs(peers: &Peers<'_>, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let machine = peers.lab.machine;
    machine.sh("dmesg -c >>/var/log/dmesg.all")?;
    // How long a stock frontend polls in its start is a matter of luck, up to the watchdog's limit.
    let may_poll = peers.lab.front == "c";
    for (files, may_poll) in [
        ("/var/log/dmesg.all", false),
        ("/var/log/xen/guest-*.log", may_poll),
    ] {
        let found = machine.ask(&format!("{} -s {files}", logs::grep()), 30)?;
        if !found.output.trim().is_empty() {
            say!("    {}", found.output.trim().replace('\n', "\n    "));
        }
        outcomes.push(seen(complaints(&found.output, may_poll)));
    }
    Ok(())
}

/// What kernels complained of: each kind of complaint once, with its function where the line has
/// one. With `may_poll` it is no complaint that a CPU did nothing else for long.
fn complaints(log: &str, may_poll: bool) -> String {
    const LOCKUP: &str = "soft lockup";
    // Only what stands behind another complaint.
    const TRACE: &str = "Call Trace";
    let mut found = BTreeSet::new();
    for line in log.lines() {
        let mut kinds = logs::TROUBLE
            .iter()
            .map(|kind| kind.trim_end_matches([':', ' ']));
        let Some(kind) = kinds.find(|kind| line.contains(kind)) else {
            continue;
        };
        let kind = if line.contains(LOCKUP) { LOCKUP } else { kind };
        let function = line
            .split_whitespace()
            .find_map(|w| Some(w.split_once("+0x")?.0));
        found.insert(match function {
            Some(function) => format!("{kind} in {function}"),
            None => kind.to_owned(),
        });
    }
    if found.len() > 1 {
        found.remove(TRACE);
    }
    if may_poll {
        found.remove(LOCKUP);
    }
    match found.is_empty() {
        true => "clean".to_owned(),
        false => found.into_iter().collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(list: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        list.iter().map(|(p, o)| (*p, (*o).to_owned())).collect()
    }

    #[test]
    fn what_is_written_is_what_is_expected_next_time() {
        let seen = outcomes(&[
            ("ping", "3 of 3"),
            ("dom0's log", "a: b"),
            ("driver", "none"),
        ]);
        let text = text(&seen);
        assert!(text.starts_with("# SPDX-License-Identifier: GPL-2.0\n"));
        let expected = parse(&text).unwrap();
        assert_eq!(expected.len(), 3);
        assert!(differences(&expected, &seen).is_empty());
    }

    #[test]
    fn any_difference_is_named_with_both_outcomes() {
        let expected = [("ping", "no link"), ("driver", "e1000e"), ("old", "yes")];
        let seen = outcomes(&[("ping", "3 of 3"), ("driver", "e1000e"), ("new", "no")]);
        assert_eq!(
            differences(&expected, &seen),
            [
                // An improvement, too.
                "ping: expected \"no link\", seen \"3 of 3\"",
                "new: nothing is expected, seen \"no\"",
                "old: expected \"yes\", but there is no such probe",
            ]
        );
    }

    #[test]
    fn a_file_that_expects_nothing_clear_is_refused() {
        for text in ["", "# only this\n\n", "ping 3 of 3", "ping: 1\nping: 2"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn probes_have_names_of_their_own() {
        let mut names: Vec<_> = STEPS.iter().flat_map(|step| step.probes).collect();
        let all = names.len();
        assert!(names.iter().all(|name| !name.contains(": ")));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn a_step_that_stops_leaves_the_rest_not_reached() {
        let mut all = Vec::new();
        note(&mut all, &STEPS[1], vec![missed("xl fails")]);
        let texts: Vec<_> = all.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["xl fails", NOT_REACHED]);
    }

    #[test]
    fn a_complaint_is_named_once_and_without_numbers() {
        let log = "peer1.log:[   22.8] WARNING: CPU: 0 PID: 23 at fs/a.c:278 remove_group+0x71/0x80
peer1.log:[   22.8] Call Trace:
peer2.log:[    5.5] WARNING: CPU: 0 PID: 103 at fs/a.c:278 remove_group+0x71/0x80
peer2.log:[    7.5] BUG: kernel NULL pointer dereference, address: 0000000000000008
";
        assert_eq!(complaints(log, true), "BUG, WARNING in remove_group");
        assert_eq!(complaints("[ 1.0] Call Trace:\n", true), "Call Trace");
        assert_eq!(complaints("", false), "clean");
        let log = "[   30.4] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [xenwatch:28]
[   30.4] Call Trace:
";
        assert_eq!(complaints(log, false), "soft lockup");
        assert_eq!(complaints(log, true), "clean");
    }

    #[test]
    fn interrupts_are_counted_by_kind() {
        let text = "           CPU0
  5:         58   xen-dyn    -event     xenbus
  9:         18  xen-pirq    -pcifront-msi-x  eth0-rx-0
 10:          0  xen-pirq    -pcifront-msi-x  eth0-tx-0
 11:          3  xen-pirq    -pcifront-msi-x  eth0
 12:          3  xen-pirq    -pcifront-msi-x  eth01
LOC:          0   Local timer interrupts
";
        assert_eq!(interrupts(text, "eth0"), "MSI-X, 3 of which 2 in use");
        let text = "9: 1 xen-pirq -pcifront-msi eth0\n";
        assert_eq!(interrupts(text, "eth0"), "MSI, 1 of which 1 in use");
        let text = "9: 1 xen-pirq -ioapic-level eth0\n";
        assert_eq!(interrupts(text, "eth0"), "INTx, 1 of which 1 in use");
        assert_eq!(interrupts("", "eth0"), "none");
    }
}
