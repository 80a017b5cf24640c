// SPDX-License-Identifier: GPL-2.0

//! The lab: Xen in QEMU, dom0 and guests in it, and the cases that need them.

#[macro_use]
mod say;

mod bench;
mod cases;
mod config;
mod control;
mod files;
mod host;
mod image;
mod lanes;
mod logs;
mod machine;
mod peers;

use anyhow::{ensure, Context, Result};
use cases::{Case, Counts, Ends, Lab};
use clap::{Parser, Subcommand};
use image::{Images, Kernel, Packages, Paths};
use lanes::Plan;
use machine::{GuestOptions, Machine, Options, Profile, SMP, STANDARD};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

#[derive(Parser)]
#[command(about = "Runs the cases that need Xen, dom0 and guests")]
struct Arguments {
    /// Unpacked packages of dom0's kernel.
    #[arg(long, env = "XENPCI_IMAGE")]
    image: PathBuf,
    /// Those of the guests' kernel; by default dom0's.
    #[arg(long, env = "XENPCI_GUEST_IMAGE")]
    guest_image: Option<PathBuf>,
    /// The kernel with both drivers in its tree, if it was made.
    #[arg(long, env = "XENPCI_INTREE")]
    intree: Option<PathBuf>,
    /// Directory of xen-pciback.ko and xen-pcifront.ko for dom0's kernel. Without, only BACK=c can
    /// be asked.
    #[arg(long, env = "XENPCI_MODULES")]
    modules: Option<PathBuf>,
    /// Directory of xen-pcifront.ko for the guests' kernel; by default dom0's, if they have the
    /// same kernel. Without, only FRONT=c can be asked.
    #[arg(long, env = "XENPCI_GUEST_MODULES")]
    guest_modules: Option<PathBuf>,
    /// Root file system that has the hypervisor and dom0's programs.
    #[arg(long, env = "XENPCI_XEN_ROOT", default_value = "/")]
    xen_root: PathBuf,
    /// Directory of xen-pciback-setup and its configuration.
    #[arg(long, env = "XENPCI_DIST")]
    dist: PathBuf,
    /// Directory for images and logs.
    #[arg(long, env = "XENPCI_OUT")]
    out: PathBuf,
    /// Backend: c or rust.
    #[arg(long, env = "BACK", default_value = "rust", value_parser = ["c", "rust"])]
    back: String,
    /// Frontend: c or rust.
    #[arg(long, env = "FRONT", default_value = "rust", value_parser = ["c", "rust"])]
    front: String,
    #[command(subcommand)]
    command: Do,
}

/// Chooses cases.
#[derive(clap::Args)]
struct Choice {
    /// Parts of names.
    words: Vec<String>,
    /// All cases, with as many repetitions as the issues ask for.
    #[arg(long)]
    full: bool,
    /// The cases whose dom0 has two CPUs, and no others.
    #[arg(long)]
    smp: bool,
    /// The few cases that show whether a kernel and its drivers work at all, beside those that are
    /// named.
    #[arg(long)]
    smoke: bool,
}

#[derive(Subcommand)]
enum Do {
    /// Names the cases.
    List,
    /// Says `yes` if a case of these words runs on the kernel with both drivers in its tree.
    NeedsIntree {
        /// As for `run`.
        #[command(flatten)]
        choice: Choice,
    },
    /// Runs all cases, or those whose names contain one of the words.
    Run {
        /// Which.
        #[command(flatten)]
        choice: Choice,
        /// Guests that have to connect to each backend.
        #[arg(long, env = "CONNECTS")]
        connects: Option<u32>,
        /// Rounds of binding and unbinding.
        #[arg(long, env = "CYCLES")]
        cycles: Option<u32>,
        /// Reads of the four vCPU case.
        #[arg(long, env = "READS")]
        reads: Option<u32>,
        /// Length in ms of each flood and storm of a hostile frontend.
        #[arg(long, env = "STORM")]
        storm: Option<u32>,
        /// Requests of a hostile frontend that makes many of all kinds.
        #[arg(long, env = "OPERATIONS")]
        operations: Option<u32>,
        /// Machines at once; by default one for each CPU of the host, four at most.
        #[arg(long, env = "JOBS")]
        jobs: Option<usize>,
        /// Virtual CPUs of dom0 in all machines, instead of what each kind of machine has. With two
        /// only one machine runs at a time.
        #[arg(long, env = "VCPUS", value_parser = clap::value_parser!(u32).range(1..=2))]
        vcpus: Option<u32>,
    },
    /// Shows a NIC in a guest.
    Demo,
    /// Measures both drivers against the stock ones.
    Bench {
        /// Two rounds in one machine.
        #[arg(long)]
        quick: bool,
        /// Letters of the ways to boot.
        #[arg(long)]
        modes: Option<String>,
    },
    /// Shows what a pair of kernels can do together, and compares with what is expected of it.
    Peers {
        /// File of the outcomes that are expected: tests/peers/NAME.expected.
        #[arg(long)]
        expect: PathBuf,
        /// Write that file, for a new pair or when it is right that an outcome is another now.
        #[arg(long)]
        write: bool,
    },
    /// Leaves a person on dom0's console with the guest running.
    Shell,
    /// Runs shell commands in dom0, one after the other, and prints what they say. `guest NAME
    /// DEVICE...` starts a guest and `in NAME COMMAND` runs a command in it. Without commands they are
    /// read from standard input, a line each.
    Exec {
        /// The commands.
        commands: Vec<String>,
        /// Virtual CPUs of dom0; with two every guest has four.
        #[arg(long, env = "VCPUS", value_parser = clap::value_parser!(u32).range(1..=2))]
        vcpus: Option<u32>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("lab: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    if let Do::List = arguments.command {
        for case in cases::all() {
            println!("{}", case.name);
        }
        return Ok(true);
    }
    if let Do::NeedsIntree { choice } = &arguments.command {
        let mut chosen = choice.cases().into_iter();
        let needs = chosen.any(|case| case.profile.kernel == Kernel::InTree);
        println!("{}", if needs { "yes" } else { "no" });
        return Ok(true);
    }
    let (dom0, guest) = kernels(arguments);
    for (end, driver, kernel) in [
        (&arguments.back, "xen-pciback", &dom0),
        (&arguments.front, "xen-pcifront", &guest),
    ] {
        ensure!(
            end == "c" || kernel.modules.is_some(),
            "there is no {driver} of ours for the kernel in {}",
            kernel.image.display()
        );
    }
    let paths = Paths {
        dom0,
        guest,
        intree: arguments.intree.clone(),
        xen_root: arguments.xen_root.clone(),
        dist: arguments.dist.clone(),
        out: arguments.out.clone(),
    };
    std::fs::create_dir_all(&paths.out).context("the directory for logs")?;
    match &arguments.command {
        Do::List | Do::NeedsIntree { .. } => Ok(true),
        Do::Run {
            choice,
            connects,
            cycles,
            reads,
            storm,
            operations,
            jobs,
            vcpus,
        } => {
            let full = choice.full;
            let more = full
                || [connects, cycles, reads, storm, operations]
                    .into_iter()
                    .any(Option::is_some);
            let counts = Counts {
                rounds: if full { usize::MAX } else { 1 },
                connects: connects.unwrap_or(if full { 100 } else { 10 }),
                cycles: cycles.unwrap_or(if full { 10_000 } else { 140 }),
                reads: reads.unwrap_or(if full { 100_000 } else { 20_000 }),
                storm: storm.unwrap_or(if full { 60_000 } else { 3_000 }),
                operations: operations.unwrap_or(if full { 1_000_000 } else { 20_000 }),
            };
            let plan = Plan {
                paths: &paths,
                back: &arguments.back,
                front: &arguments.front,
                counts,
                limit: (!more).then_some(LIMIT),
                vcpus: *vcpus,
            };
            run_cases(&plan, choice, *jobs)
        }
        Do::Demo => demo(arguments, &images(&paths, Kernel::Stock)?),
        Do::Shell => shell(arguments, &images(&paths, Kernel::Stock)?),
        Do::Bench { quick, modes } => {
            let images = images(&paths, Kernel::Stock)?;
            bench::run(&images, &paths.out, *quick, modes.as_deref()).map(|()| true)
        }
        Do::Peers { expect, write } => {
            let ends = (arguments.back.as_str(), arguments.front.as_str());
            peers::run(&paths, ends, expect, *write)
        }
        Do::Exec { commands, vcpus } => {
            let images = images(&paths, Kernel::Stock)?;
            exec(arguments, &images, commands, *vcpus)
        }
    }
}

/// dom0's kernel and the guests'.
fn kernels(arguments: &Arguments) -> (Packages, Packages) {
    let dom0 = Packages {
        image: arguments.image.clone(),
        modules: arguments.modules.clone(),
    };
    let image = arguments.guest_image.as_ref().unwrap_or(&dom0.image);
    let same = *image == dom0.image;
    let guest = Packages {
        image: image.clone(),
        modules: arguments
            .guest_modules
            .clone()
            .or_else(|| dom0.modules.clone().filter(|_| same)),
    };
    (dom0, guest)
}

fn images(paths: &Paths, kernel: Kernel) -> Result<Images> {
    let start = Instant::now();
    let images = image::make(paths, kernel).context("making the images")?;
    say!(
        "images of the {kernel:?} kernel made in {:.1} s",
        start.elapsed().as_secs_f32()
    );
    Ok(images)
}

impl Choice {
    /// Whether it is what `make test` runs.
    fn is_everything(&self) -> bool {
        self.words.is_empty() && !self.full && !self.smoke && !self.smp
    }

    /// The cases whose names contain one of the words; without words all.
    fn cases(&self) -> Vec<&'static Case> {
        let mut words: Vec<_> = self.words.iter().map(String::as_str).collect();
        if self.smoke {
            words.extend(cases::SMOKE);
        }
        let chosen = cases::all().filter(|case| {
            let named = words.iter().any(|w| case.name.contains(w));
            let all = words.is_empty() && (self.full || !case.is_only_full());
            (named || all) && (!self.smp || case.profile.name == SMP.name)
        });
        chosen.collect()
    }
}

/// Boots; a machine that dies before its first case is booted once more, which is said.
fn boot(images: &Images, out: &Path, profile: &Profile, vcpus: Option<u32>) -> Result<Machine> {
    let start = Instant::now();
    let options = Options {
        vcpus,
        ..Options::default()
    };
    let boot = || Machine::boot(images, out, profile, options);
    let machine = boot().or_else(|e| {
        say!("boot failed ({e:#}), tried once more");
        boot()
    })?;
    say!(
        "machine \"{}\": Xen and dom0 up in {:.1} s",
        profile.name,
        start.elapsed().as_secs_f32()
    );
    Ok(machine)
}

/// So many of the slowest cases are named at the end.
const SLOWEST: usize = 10;

/// How long a case may take in an ordinary run. The longest takes a third of it on two CPUs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

fn run_cases(plan: &Plan<'_>, choice: &Choice, jobs: Option<usize>) -> Result<bool> {
    let fits = |case: &&Case| match case.ends {
        Ends::Any | Ends::Own => true,
        Ends::RustBackend => plan.back == "rust",
        Ends::RustFrontend => plan.front == "rust",
    };
    let chosen = choice.cases();
    for case in chosen.iter().filter(|case| !fits(case)) {
        println!("not run: {} states a rule of ours", case.name);
    }
    if choice.is_everything() {
        for case in cases::all().filter(|case| case.is_only_full()) {
            println!("not run: {} is in make test-full", case.name);
        }
    }
    let chosen: Vec<_> = chosen.into_iter().filter(fits).collect();
    host::watch();
    let start = Instant::now();
    let tally = lanes::run(plan, chosen, jobs.unwrap_or_else(lanes::most))?;
    println!(
        "the host withheld its CPUs for {:.0} of {:.0} s; {} lines of kernels are put down to that",
        host::withheld(start).as_secs_f32(),
        start.elapsed().as_secs_f32(),
        tally.excused
    );
    if tally.repeated > 0 {
        println!("xl had to be repeated {} times", tally.repeated);
    }
    if !tally.lost.is_empty() {
        println!("{} machines were lost by the emulator", tally.lost.len());
    }
    if tally.times.len() > SLOWEST {
        println!("the slowest cases, in seconds:");
        for (seconds, name) in tally.times.iter().take(SLOWEST) {
            println!("{seconds:>8.1} {name}");
        }
    }
    // Here once more, for who sees only the end.
    for line in &tally.failed {
        println!("failed: {line}");
    }
    println!("{} passed, {} failed", tally.passed, tally.failed.len());
    ensure!(
        tally.broken.is_empty(),
        "machines that do not boot: {}",
        tally.broken.join(", ")
    );
    Ok(tally.failed.is_empty() && tally.passed > 0)
}

fn demo(arguments: &Arguments, images: &Images) -> Result<bool> {
    let machine = boot(images, &arguments.out, &STANDARD, None)?;
    let lab = Lab {
        machine: &machine,
        back: &arguments.back,
        front: &arguments.front,
        port: 0,
        counts: Counts::default(),
        limit: None,
    };
    println!("\ndom0: the NIC is hidden by xen-pciback\n");
    lab.load_with_nic()?;
    println!(
        "{}",
        machine.sh("dmesg | grep -i pciback; lspci -k -s 00:05.0 2>/dev/null")?
    );
    println!("A PV guest with pci=[ \"{}\" ] starts ...\n", machine::NIC);
    let guest = lab.nic_guest("demo")?;
    let ping = cases::start_nic(&guest)?;
    println!("guest: lspci -k\n{}", guest.sh("lspci -k 2>/dev/null")?);
    println!(
        "guest: /proc/interrupts\n{}",
        guest.sh("grep -E 'pcifront' /proc/interrupts")?
    );
    println!("guest: ping through the passed-through NIC\n{ping}");
    guest.destroy()?;
    Ok(true)
}

fn shell(arguments: &Arguments, images: &Images) -> Result<bool> {
    let mut machine = Machine::boot(
        images,
        &arguments.out,
        &STANDARD,
        Options {
            interactive: true,
            ..Options::default()
        },
    )?;
    let lab = Lab {
        machine: &machine,
        back: &arguments.back,
        front: &arguments.front,
        port: 0,
        counts: Counts::default(),
        limit: None,
    };
    lab.load_with_nic()?;
    lab.nic_guest("guest")?;
    println!("\r\nThe guest \"guest\" has the NIC. Its messages: /var/log/xen/guest-guest.log. Ctrl-a x ends.\r\n");
    machine.wait()?;
    Ok(true)
}

fn exec(
    arguments: &Arguments,
    images: &Images,
    commands: &[String],
    vcpus: Option<u32>,
) -> Result<bool> {
    let machine = boot(images, &arguments.out, &STANDARD, vcpus)?;
    let mut guests = Vec::new();
    let lines = std::io::stdin().lines().map_while(Result::ok);
    let commands: Box<dyn Iterator<Item = String>> = if commands.is_empty() {
        Box::new(lines)
    } else {
        Box::new(commands.iter().cloned())
    };
    for command in commands {
        let start = Instant::now();
        println!("# {command}");
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.split_first() {
            Some((&"guest", words)) => {
                let (name, devices) = words.split_first().context("guest NAME DEVICE...")?;
                let options = GuestOptions {
                    front: &arguments.front,
                    devices,
                    ..GuestOptions::default()
                };
                guests.push(machine.guest(name, &options)?);
            }
            Some((&"in", words)) => {
                let (name, words) = words.split_first().context("in NAME COMMAND")?;
                let guest = guests.iter().find(|g| g.name == *name);
                let guest = guest.with_context(|| format!("no guest {name}"))?;
                println!("{}", guest.ask(&words.join(" "), 120)?.output.trim_end());
            }
            _ => println!("{}", machine.ask(&command, 120)?.output.trim_end()),
        }
        println!("# {:.1} s", start.elapsed().as_secs_f32());
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str], smoke: bool) -> Vec<(&'static str, &'static str)> {
        let words = words.iter().map(|&w| w.to_owned()).collect();
        let choice = Choice {
            words,
            full: false,
            smp: false,
            smoke,
        };
        let cases = choice.cases().into_iter();
        cases.map(|c| (c.name, c.profile.name)).collect()
    }

    #[test]
    fn the_smoke_has_a_dom0_with_one_and_with_two_cpus_and_all_pairs() {
        let smoke = names(&[], true);
        for (name, machine) in &smoke {
            assert!([STANDARD.name, SMP.name].contains(machine), "{name}");
        }
        for machine in [STANDARD.name, SMP.name] {
            assert!(smoke.iter().any(|(_, m)| *m == machine), "{machine}");
        }
        let count = |part: &str| smoke.iter().filter(|(n, _)| n.contains(part)).count();
        for part in cases::SMOKE {
            assert_eq!(
                count(part),
                if *part == "pairing_" { 4 } else { 1 },
                "{part}"
            );
        }
        assert_eq!(names(cases::SMOKE, false), smoke);
        assert_eq!(names(&["seed_4"], true).len(), smoke.len() + 1);
    }
}
