// SPDX-License-Identifier: GPL-2.0

//! One QEMU with Xen in it, its dom0 and its guests.

use crate::{
    control::Control,
    host,
    image::{Images, Kernel},
};
use agent::Answer;
use anyhow::{anyhow, bail, ensure, Context, Result};
use std::{
    cell::Cell,
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// The NIC that is passed through: MSI-X, on the root bus.
pub const NIC: &str = "0000:00:05.0";
/// A function without a driver, reset or interrupt.
pub const TESTDEV: &str = "0000:00:06.0";

/// Has INTx and MSI, and no way to be reset.
pub const EDU: &str = "0000:00:0a.0";

/// A machine's hardware and what its dom0 is told.
pub struct Profile {
    /// For the log.
    pub name: &'static str,
    /// What dom0 and the guests run.
    pub kernel: Kernel,
    /// Arguments of QEMU beyond those that every machine has, separated by blanks; `{run}` is the
    /// directory of this run.
    pub devices: &'static [&'static str],
    /// Disks: files of that name and size in MiB in the directory of this run, filled with
    /// [`crate::files::contents`].
    pub disks: &'static [(&'static str, usize)],
    /// Goes to the end of dom0's kernel command line.
    pub dom0: &'static str,
    /// Virtual CPUs of dom0. With two it has both CPUs of the machine, and no other machine runs
    /// meanwhile: what dom0 does at the same time is then at work at the same time.
    pub vcpus: u32,
}

/// The machine of most cases. What has an INTx pin on the root bus shares lines as slots do: slots
/// that are equal modulo 8 share one.
pub const STANDARD: Profile = Profile {
    name: "standard",
    kernel: Kernel::Stock,
    devices: &[
        "-netdev user,id=net0 -device e1000e,netdev=net0,addr=5.0",
        "-device pci-testdev,addr=6.0",
        "-drive if=none,id=disk7,file={run}/disk7,format=raw -device nvme,serial=seven,drive=disk7,addr=7.0,max_ioqpairs=199,msix_qsize=200",
        // A serial line, which might be a console.
        "-chardev null,id=line -device pci-serial,chardev=line,addr=8.0",
        "-netdev user,id=net9 -device rtl8139,netdev=net9,addr=9.0,romfile=",
        // Two of a kind, with INTx and MSI.
        "-device edu,addr=a.0 -device edu,addr=b.0",
        "-device ich9-usb-ehci1,addr=c.2,multifunction=on,id=ehci",
        "-device ich9-usb-uhci1,addr=c.0,multifunction=on,masterbus=ehci.0,firstport=0",
        "-device ich9-usb-uhci2,addr=c.1,multifunction=on,masterbus=ehci.0,firstport=2",
        "-drive if=none,id=usb,file={run}/usb,format=raw -device usb-storage,bus=ehci.0,drive=usb",
        "-audiodev none,id=sound -device ES1370,audiodev=sound,addr=d.0",
        "-drive if=none,id=diske,file={run}/diske,format=raw -device ich9-ahci,id=ahci,addr=e.0 -device ide-hd,drive=diske,bus=ahci.0",
        // Behind root ports: SR-IOV; a NIC and a disk that can be reset by their bus; an empty port
        // for hot-plug; a bridge to a conventional bus.
        "-device pcie-root-port,id=port1,addr=10.0,chassis=1,slot=1",
        "-netdev user,id=net1 -device igb,netdev=net1,bus=port1,romfile=",
        "-device pcie-root-port,id=port2,addr=11.0,chassis=2,slot=2",
        "-netdev user,id=net2 -device e1000e,id=nic2,netdev=net2,bus=port2,romfile=",
        "-device pcie-root-port,id=port3,addr=12.0,chassis=3,slot=3",
        "-drive if=none,id=disk3,file={run}/disk3,format=raw -device nvme,serial=three,drive=disk3,bus=port3",
        "-device pcie-root-port,id=port4,addr=13.0,chassis=4,slot=4",
        "-device pcie-root-port,id=port5,addr=14.0,chassis=5,slot=5 -device pcie-pci-bridge,id=bridge5,bus=port5",
        "-device edu,bus=bridge5,addr=1.0 -device pci-testdev,bus=bridge5,addr=2.0",
        // With BARs that are smaller than a page.
        "-netdev user,id=net53 -device rtl8139,netdev=net53,bus=bridge5,addr=3.0,romfile=",
        "-netdev user,id=net54 -device rtl8139,netdev=net54,bus=bridge5,addr=4.0,romfile=",
        "-device pcie-root-port,id=port6,addr=15.0,chassis=6,slot=6 -device edu,bus=port6",
        // Only their firmware can reset them, slowly.
        "-device pci-testdev,addr=16.0 -device pci-testdev,addr=17.0",
        "-device pci-testdev,addr=18.0 -device pci-testdev,addr=19.0",
        "-acpitable sig=SSDT,rev=2,data={run}/slow-resets",
    ],
    disks: &[("disk7", 80), ("usb", 16), ("diske", 32), ("disk3", 16)],
    dom0: "",
    vcpus: 1,
};

/// The same hardware, two virtual CPUs in dom0, and four in each guest.
pub const SMP: Profile = Profile {
    name: "smp",
    vcpus: 2,
    ..STANDARD
};

/// Functions of [`STANDARD`] that only their firmware resets, which takes two seconds; see [`slow_resets`].
pub const SLOW: [&str; 4] = [
    "0000:00:16.0",
    "0000:00:17.0",
    "0000:00:18.0",
    "0000:00:19.0",
];

/// Written to the register of the interrupt line of a function of [`SLOW`]: its reset fails.
pub const RESET_FAILS: u8 = 0xff;
/// So often, at most, does a reset of [`SLOW`] last two seconds more.
pub const RESET_MOST: u8 = 28;

/// The body of the ACPI table that gives [`SLOW`] their resets. These functions have no use for the register
/// of the interrupt line, so dom0 tells the firmware there what a reset is to be like: for each
///
/// ```text
/// Scope (\_SB.PCI0.Sxx) {              // xx is slot and function
///     OperationRegion (RCFG, PCI_Config, 0x3C, 1)
///     Field (RCFG, ByteAcc) { LINE, 8 }
///     Method (_RST, 0, Serialized) {
///         Divide (1, Subtract (0xFF, LINE), , )
///         Local1 = LINE
///         Sleep (2000)
///         Local0 = Local1; While (Local0) { Sleep (1000); Local0-- }
///         Local0 = Local1; While (Local0) { Sleep (1000); Local0-- }
///     }
/// }
/// ```
///
/// The kernel shortens a sleep to two seconds and ends a loop after thirty.
fn slow_resets() -> Vec<u8> {
    let field = [
        &b"\x5b\x80RCFG\x02\x0a\x3c\x01"[..],
        &package(b"\x5b\x81", b"RCFG\x01LINE\x08"),
    ]
    .concat();
    let wait = [
        &b"\x70\x61\x60"[..],
        &package(b"\xa2", b"\x60\x5b\x22\x0b\xe8\x03\x76\x60"),
    ]
    .concat();
    let method = [
        &b"_RST\x08\x78\x01\x74\x0a\xffLINE\x00\x00\x00\x70LINE\x61\x5b\x22\x0b\xd0\x07"[..],
        &wait,
        &wait,
    ]
    .concat();
    let method = package(b"\x14", &method);
    (0x16..0x1a)
        .flat_map(|slot| {
            let name = format!("\\\x2f\x03_SB_PCI0S{:02X}_", slot << 3);
            package(b"\x10", &[name.as_bytes(), &field, &method].concat())
        })
        .collect()
}

/// A term of the firmware's language: its opcode, its length, which counts its own bytes, and the content.
fn package(opcode: &[u8], content: &[u8]) -> Vec<u8> {
    let length = content.len() + 1;
    let length = match u8::try_from(length) {
        Ok(short @ ..=0x3f) => vec![short],
        // Four bits, then eight.
        _ => vec![0x40 | ((length + 1) & 0xf) as u8, ((length + 1) >> 4) as u8],
    };
    [opcode, &length, content].concat()
}

/// A machine with functions by the hundred: 32 devices of 7 on one bus behind a bridge, and some with
/// one function.
pub const MANY: Profile = Profile {
    name: "many",
    kernel: Kernel::Stock,
    devices: &["{many}"],
    disks: &[],
    dom0: "",
    vcpus: 1,
};

/// The devices of [`MANY`].
fn many() -> String {
    let mut text = String::from(
        "-device pcie-root-port,id=p,addr=10.0,chassis=1,slot=1 -device pcie-pci-bridge,id=b,bus=p",
    );
    for slot in 1..32 {
        for function in 0..7 {
            text += &format!(
                " -device edu,bus=b,addr={slot:x}.{function},multifunction={}",
                if function == 0 { "on" } else { "off" }
            );
        }
    }
    for slot in 4..13 {
        text += &format!(" -device edu,addr={slot:x}.0");
    }
    text
}

/// How a guest differs from the ordinary one.
#[derive(Clone, Copy)]
pub struct GuestOptions<'a> {
    /// `c`, `rust`, or `none`: which frontend its init loads.
    pub front: &'a str,
    /// Its initramfs, in dom0.
    pub ramdisk: &'a str,
    /// Virtual CPUs; four at least where dom0 has two.
    pub vcpus: u32,
    /// On which CPUs; dom0 has CPU 0, an ordinary guest stays on CPU 1. Where dom0 has both, so
    /// have all guests.
    pub cpus: &'a str,
    /// MiB.
    pub memory: u32,
    /// Items of `pci=`.
    pub devices: &'a [&'a str],
    /// Goes to the end of its kernel command line.
    pub arguments: &'a str,
    /// Lines for its configuration file.
    pub config: &'a str,
}

impl Default for GuestOptions<'_> {
    fn default() -> Self {
        Self {
            front: "rust",
            ramdisk: "/guest/initramfs",
            vcpus: 1,
            cpus: "1",
            memory: 400,
            devices: &[],
            arguments: "swiotlb=force",
            config: "",
        }
    }
}

/// How the machine differs from the ordinary one.
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// A person sits at dom0's console.
    pub interactive: bool,
    /// Time is the number of instructions: what is measured does not depend on the host.
    pub counted: Option<Counted>,
    /// Something is measured: the kernels' own checks are off, and their warnings stay in their rings.
    pub measured: bool,
    /// Virtual CPUs of dom0, instead of the profile's.
    pub vcpus: Option<u32>,
}

/// A machine whose clock counts instructions: one is 2 ns, and when all CPUs are idle the time until the
/// next timer passes at once. It runs some times slower than the ordinary one.
#[derive(Clone, Copy)]
pub struct Counted {
    /// CPUs. The emulator runs them in turns, and the instructions of all of them make the time.
    pub cpus: u32,
    /// Goes to the end of Xen's command line.
    pub xen: &'static str,
}

/// The running machine; ended when dropped.
pub struct Machine {
    qemu: Child,
    qmp: PathBuf,
    control: Control,
    /// `xl` calls that had to be repeated.
    pub xl_repeated: Cell<u32>,
    /// The console of Xen and dom0.
    pub console: PathBuf,
    /// Bytes of it that [`crate::logs`] has read.
    pub console_read: Cell<u64>,
    /// Lines of its kernels for which the host is to blame; [`crate::logs`] counts them.
    pub excused: Cell<usize>,
    run: PathBuf,
    /// Of the kernels in it.
    kernel_args: String,
    /// dom0 has several virtual CPUs, and so has each guest.
    is_smp: bool,
    /// Commands that take so many seconds are named.
    slow: Option<f32>,
    /// How many times longer than said anything may take inside, in the machine's own time.
    inside: u64,
    /// The same, in the host's time.
    outside: u64,
}

/// How long QEMU gets for an answer.
const QMP: Duration = Duration::from_secs(5);

/// The limits in the cases are generous on an idle host. A busy one, or one of another make, may take this many
/// times as long, and nothing is wrong then.
const PATIENCE: u64 = 4;

/// Emulated instructions that are counted take the host longer, but not the machine.
const PATIENCE_COUNTED: u64 = 8;

/// Xen: each option saves a table, a check or a wait that the lab does not need. `no` alone would also switch
/// the FPU lazily, which the emulator does not survive: two guests on one CPU corrupt each other's registers.
/// `ioapic_ack=old` is what Xen does by itself on machines whose local APICs have directed EOI, which this one has not:
/// otherwise a line that a guest holds keeps its vector in service, and all below it wait, dom0's console among them.
const XEN_ARGS: &str = "console=com1 com1=115200,8n1 dom0_mem=1500M,max:1500M \
    dom0_vcpus_pin \
    noreboot spec-ctrl=no,eager-fpu xpti=no loglvl=warning ioapic_ack=old";
/// dom0 and guests: most of the kernel's messages go to its ring only, the serial line is slow.
/// A busy host must not make the kernel distrust its clock in the middle of a run.
const KERNEL_ARGS: &str = "console=hvc0 quiet mitigations=off nokaslr audit=0 selinux=0 \
    random.trust_cpu=on tsc=nowatchdog";
/// Where something is measured, only errors go to the console.
const MEASURED_ARGS: &str = "loglevel=4";
/// Elsewhere warnings do, too, as [`crate::logs`] reads them there; and what is cheap of the
/// kernel's own checks is on: poisoned and guarded memory.
const CHECKING_ARGS: &str = "loglevel=5 slub_debug=FZPU page_poison=1 kfence.sample_interval=10";
/// With x2apic no MSI-X would arrive in the guest.
const CPU: &str = "max,-x2apic";
/// The same without fast string instructions. Kernels that see these copy and clear byte by byte, which the
/// emulator does, too; by quadwords a guest is up 8 % sooner. Not where instructions are counted: figures of
/// earlier runs would not compare.
const FAST_CPU: &str = "max,-x2apic,-erms,-fsrm,-fzrm,-fsrs,-fsrc";
/// Not where instructions are counted: the emulator needs long for it.
const FAST_ARGS: &str = "init_on_alloc=0";

impl Machine {
    /// Boots and waits until dom0 answers.
    pub fn boot(images: &Images, out: &Path, profile: &Profile, options: Options) -> Result<Self> {
        let run = out.join("run");
        if run.exists() {
            std::fs::remove_dir_all(&run)?;
        }
        std::fs::create_dir_all(&run)?;
        let (socket, qmp, console) = (
            run.join("control"),
            run.join("qmp"),
            out.join(format!("dom0-console-{}.log", profile.name)),
        );
        // What the machine before this one has said is kept.
        for log in [&console, &out.join("qemu.log")] {
            if log.exists() {
                std::fs::rename(log, log.with_extension("log.previous"))?;
            }
        }
        let cpus = options.counted.map_or(2, |counted| counted.cpus);
        let vcpus = options.vcpus.unwrap_or(profile.vcpus);
        let kernel_args = match (options.counted, options.measured) {
            (None, false) => format!("{KERNEL_ARGS} {FAST_ARGS} {CHECKING_ARGS}"),
            (None, true) => format!("{KERNEL_ARGS} {FAST_ARGS} {MEASURED_ARGS}"),
            (Some(_), _) => format!("{KERNEL_ARGS} {MEASURED_ARGS}"),
        };
        let shell = if options.interactive { " shell" } else { "" };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35,kernel-irqchip=split", "-accel"])
            .args(match options.counted {
                None => &["tcg,thread=multi"][..],
                Some(_) => &["tcg,thread=single", "-icount", "shift=1,sleep=off"],
            })
            .args([
                "-cpu",
                options.counted.map_or(FAST_CPU, |_| CPU),
                "-m",
                "4096",
                "-smp",
            ])
            .arg(cpus.to_string())
            // Hot-plug is the ports' own affair, as on a real board: with ACPI's the emulated ports show
            // neither a card nor a link, and no bus below them can be reset.
            .args([
                "-global",
                "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
            ])
            .args([
                "-device",
                "intel-iommu,intremap=on",
                "-nodefaults",
                "-no-reboot",
            ])
            .args(devices(profile, &run)?)
            .arg("-kernel")
            .arg(&images.xen)
            .arg("-append")
            .arg(format!(
                "{XEN_ARGS} dom0_max_vcpus={vcpus} {}",
                options.counted.map_or("", |counted| counted.xen)
            ))
            .arg("-initrd")
            .arg(format!(
                "{} {kernel_args} {}{shell},{}",
                images.kernel.display(),
                profile.dom0,
                images.dom0.display()
            ));
        if options.interactive {
            command.args(["-display", "none", "-serial", "mon:stdio"]);
        } else {
            command
                .args(["-display", "none", "-serial"])
                .arg(format!("file:{}", console.display()));
        }
        command
            .arg("-chardev")
            .arg(format!(
                "socket,id=control,server=on,wait=off,path={}",
                socket.display()
            ))
            .args(["-serial", "chardev:control", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp.display()));
        if !options.interactive {
            let log = File::create(out.join("qemu.log"))?;
            command
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log);
        }
        let mut qemu = command.spawn().context("qemu-system-x86_64")?;
        let control = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(e) => {
                    if let Some(status) = qemu.try_wait()? {
                        bail!("QEMU ended at once ({status}): {e}");
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            }
        };
        let machine = Self {
            qemu,
            qmp,
            control: Control::new(control)?,
            xl_repeated: Cell::new(0),
            console,
            console_read: Cell::new(0),
            excused: Cell::new(0),
            run,
            kernel_args,
            is_smp: vcpus > 1,
            slow: std::env::var("SLOW")
                .ok()
                .and_then(|text| text.parse().ok()),
            inside: options.counted.map_or(PATIENCE, |_| 1),
            outside: options.counted.map_or(PATIENCE, |_| PATIENCE_COUNTED),
        };
        machine.until_up()?;
        Ok(machine)
    }

    /// Waits until dom0 answers, but not for one that will not.
    fn until_up(&self) -> Result<()> {
        const SECONDS: u64 = 180;
        let asked = self.ask_for("true", SECONDS, SECONDS * self.outside);
        asked.context("dom0 did not come up").map(drop)
    }

    /// From now on everything has to be done in `limit`: what is asked later is refused. `None` ends that.
    pub fn limit(&self, limit: Option<Duration>) {
        self.control.limit(limit);
    }

    /// Runs a shell command in dom0, for at most so many seconds on an idle host.
    pub fn ask(&self, command: &str, seconds: u64) -> Result<Answer> {
        self.ask_for(
            command,
            seconds * self.inside,
            (seconds + 10) * self.outside,
        )
    }

    /// Runs a shell command in dom0 for at most `inside` seconds of its time, `outside` of the host's.
    fn ask_for(&self, command: &str, inside: u64, outside: u64) -> Result<Answer> {
        let start = Instant::now();
        let answer = self.control.ask(command, inside, outside, || {
            let lost = self.lost_interrupt()?;
            Some(format!("the emulator lost an interrupt: {lost}"))
        });
        let took = start.elapsed().as_secs_f32();
        if self.slow.is_some_and(|limit| took >= limit) {
            let line: Vec<_> = command.split_whitespace().collect();
            say!("    {took:.1} s: {:.120}", line.join(" "));
        }
        answer
    }

    /// As [`Self::ask`]; a status other than 0 is an error. Gives the output.
    pub fn sh(&self, command: &str) -> Result<String> {
        self.sh_within(command, 60)
    }

    /// As [`Self::sh`] with a time limit in seconds.
    pub fn sh_within(&self, command: &str, seconds: u64) -> Result<String> {
        let answer = self.ask(command, seconds)?;
        ensure!(
            answer.status == 0,
            "{command}: status {}: {}",
            answer.status,
            answer.output.trim()
        );
        Ok(answer.output)
    }

    /// `xl`. One that dies of a signal is repeated once, and counted: a known flake of the set-up.
    pub fn xl(&self, arguments: &str) -> Result<String> {
        let command = format!("xl {arguments} 2>&1");
        let answer = self.ask(&command, 180)?;
        if answer.status >= 128 || answer.output.contains("Segmentation fault") {
            self.xl_repeated.set(self.xl_repeated.get() + 1);
            say!(
                "    xl {arguments} died ({}), repeated once",
                answer.output.trim()
            );
            return self.sh(&command);
        }
        ensure!(answer.status == 0, "{command}: {}", answer.output.trim());
        Ok(answer.output)
    }

    /// Starts a guest and waits until its agent answers.
    pub fn guest(&self, name: &str, options: &GuestOptions<'_>) -> Result<Guest<'_>> {
        self.create(name, options)?;
        self.attach(name)
    }

    /// Starts a guest and waits for nothing.
    pub fn create(&self, name: &str, options: &GuestOptions<'_>) -> Result<()> {
        let GuestOptions {
            front,
            ramdisk,
            vcpus,
            cpus,
            memory,
            devices,
            arguments,
            config,
        } = *options;
        let (vcpus, cpus) = if self.is_smp {
            (vcpus.max(4), "0-1")
        } else {
            (vcpus, cpus)
        };
        let devices: Vec<_> = devices.iter().map(|d| format!("\"{d}\"")).collect();
        let config = format!(
            "name=\"{name}\"\ntype=\"pv\"\nkernel=\"/guest/vmlinuz\"\nramdisk=\"{ramdisk}\"\n\
             memory={memory}\nvcpus={vcpus}\ncpus=\"{cpus}\"\nextra=\"{} front={front} {arguments}\"\n\
             {}{config}\n",
            self.kernel_args,
            if devices.is_empty() {
                String::new()
            } else {
                format!("pci=[ {} ]\n", devices.join(", "))
            }
        );
        self.sh(&format!("cat >/tmp/{name}.cfg <<'END'\n{config}END"))?;
        self.xl(&format!("create /tmp/{name}.cfg"))?;
        Ok(())
    }

    /// Waits until the agent of a guest that was started answers.
    pub fn attach(&self, name: &str) -> Result<Guest<'_>> {
        let tty = format!("xenstore-read /local/domain/$(xl domid {name})/console/tty");
        let guest = Guest {
            machine: self,
            name: name.to_owned(),
            tty: self.sh(&tty)?.trim().into(),
        };
        let start = Instant::now();
        let limit = Duration::from_secs(120 * self.outside);
        loop {
            match self.ask(&format!("agent wait {} 10", guest.tty), 20) {
                Ok(answer) if answer.status == 0 => return Ok(guest),
                _ if start.elapsed() < limit + host::withheld(start) => {}
                result => {
                    let log = self.sh(&format!("tail -n 15 /var/log/xen/guest-{name}.log"))?;
                    return Err(anyhow!("guest {name} did not come up: {result:?}\n{log}"));
                }
            }
        }
    }

    /// Waits until a shell condition holds in dom0.
    pub fn until(&self, condition: &str, seconds: u64) -> Result<()> {
        let seconds = seconds * self.outside;
        let (start, limit) = (Instant::now(), Duration::from_secs(seconds));
        while self.ask(condition, 20)?.status != 0 {
            ensure!(
                start.elapsed() < limit + host::withheld(start),
                "not so within {seconds} s: {condition}"
            );
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// A command for QEMU's own monitor.
    pub fn monitor(&self, command: &str) -> Result<String> {
        let command = qapi::qmp::human_monitor_command {
            command_line: command.to_owned(),
            cpu_index: None,
        };
        self.qmp(command)
    }

    /// A command for QEMU.
    ///
    /// # Errors
    ///
    /// When QEMU refuses it or gives no answer. One that stands still may not even let us connect, which has
    /// no limit of its own: a thread of its own does it, and ends at the latest with QEMU.
    fn qmp<C>(&self, command: C) -> Result<C::Ok>
    where
        C: qapi::qmp::QmpCommand + Send + 'static,
        C::Ok: Send,
    {
        let socket = self.qmp.clone();
        let (send, answer) = mpsc::channel();
        thread::spawn(move || {
            let ask = || -> Result<_> {
                let stream = UnixStream::connect(socket)?;
                stream.set_read_timeout(Some(QMP))?;
                let mut qmp = qapi::Qmp::from_stream(&stream);
                qmp.handshake()?;
                Ok(qmp.execute(&command)?)
            };
            // Nobody may wait for it any more.
            let _ = send.send(ask());
        });
        answer
            .recv_timeout(2 * QMP)
            .context("QEMU gives no answer")?
    }

    /// Says so when the emulator has lost an interrupt, which stops the hypervisor for good: a CPU is
    /// halted, time and again, while its local APIC has one of Xen's own vectors (f0 and above) in
    /// service. Xen ends those before it does anything else, so no program and no driver can bring that
    /// about. Seen once in some hours of several machines on two cores.
    pub fn lost_interrupt(&self) -> Option<String> {
        let mut found = None;
        for _ in 0..5 {
            let registers = self.monitor("info registers -a").ok()?;
            found = (0..2).find(|cpu| {
                is_halted(&registers, *cpu)
                    && self
                        .monitor(&format!("info lapic {cpu}"))
                        .is_ok_and(|lapic| has_own_vector_in_service(&lapic))
            });
            found?;
            thread::sleep(Duration::from_secs(1));
        }
        found.map(|cpu| format!("CPU {cpu} is halted with an interrupt of Xen's own in service"))
    }

    /// The file behind a disk of the profile.
    pub fn disk(&self, name: &str) -> Result<PathBuf> {
        let file = self.run.join(name);
        ensure!(file.exists(), "no disk {name}");
        Ok(file)
    }

    /// Waits until QEMU ends by itself.
    pub fn wait(&mut self) -> Result<()> {
        self.qemu.wait()?;
        Ok(())
    }
}

/// Whether the text of `info registers -a` has this CPU halted.
fn is_halted(registers: &str, cpu: u32) -> bool {
    registers
        .split("CPU#")
        .find(|text| text.trim_start().starts_with(&cpu.to_string()))
        .is_some_and(|text| text.contains("HLT=1"))
}

/// Whether the text of `info lapic` has a vector from f0 on in service.
fn has_own_vector_in_service(lapic: &str) -> bool {
    lapic
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ISR"))
        .flat_map(str::split_whitespace)
        .filter_map(|word| word.parse::<u32>().ok())
        .any(|vector| vector >= 0xf0)
}

/// A profile's arguments of QEMU, and its disks made.
fn devices(profile: &Profile, run: &Path) -> Result<Vec<String>> {
    for (name, size) in profile.disks {
        std::fs::write(run.join(name), crate::files::contents(size << 20))?;
    }
    std::fs::write(run.join("slow-resets"), slow_resets())?;
    let run = run.to_str().context("a path that is not UTF-8")?;
    Ok(profile
        .devices
        .iter()
        .map(|text| text.replace("{many}", &many()))
        .map(|text| text.replace("{bench}", &crate::bench::functions()))
        .flat_map(|text| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .map(|word| word.replace("{run}", run))
        .collect())
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qmp(qapi::qmp::quit {});
        for _ in 0..50 {
            if matches!(self.qemu.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// A running guest.
pub struct Guest<'a> {
    machine: &'a Machine,
    /// As `xl list` shows it.
    pub name: String,
    tty: String,
}

impl Guest<'_> {
    /// Runs a shell command in the guest.
    pub fn ask(&self, command: &str, seconds: u64) -> Result<Answer> {
        self.machine
            .ask(&self.command(command, seconds), seconds + 15)
    }

    /// As [`Self::ask`], for something that may well not be answered: no longer than said.
    pub fn try_for(&self, command: &str, seconds: u64) -> Result<Answer> {
        let outside = (seconds + 25) * self.machine.outside;
        let command = self.command_for(command, seconds);
        self.machine.ask_for(&command, seconds + 15, outside)
    }

    /// What dom0 runs to have the guest run a shell command.
    pub fn command(&self, command: &str, seconds: u64) -> String {
        self.command_for(command, seconds * self.machine.inside)
    }

    fn command_for(&self, command: &str, seconds: u64) -> String {
        let quoted = command.replace('\'', r"'\''");
        format!("agent ask {} {seconds} '{quoted}'", self.tty)
    }

    /// As [`Self::ask`]; a status other than 0 is an error. Gives the output.
    pub fn sh(&self, command: &str) -> Result<String> {
        self.sh_within(command, 90)
    }

    /// As [`Self::sh`] with a time limit in seconds.
    pub fn sh_within(&self, command: &str, seconds: u64) -> Result<String> {
        let answer = self.ask(command, seconds)?;
        ensure!(
            answer.status == 0,
            "in guest {}: {command}: status {}: {}",
            self.name,
            answer.status,
            answer.output.trim()
        );
        Ok(answer.output)
    }

    /// Waits until a shell condition holds in the guest.
    pub fn until(&self, condition: &str, seconds: u64) -> Result<()> {
        let tenths = seconds * self.machine.inside * 10;
        self.sh_within(
            &format!("i=0; until {condition}; do i=$((i + 1)); [ $i = {tenths} ] && exit 1; sleep 0.1; done"),
            seconds + 60,
        )?;
        Ok(())
    }

    /// Ends it without asking.
    pub fn destroy(self) -> Result<()> {
        self.machine.xl(&format!("destroy {}", self.name))?;
        Ok(())
    }

    /// Ends it when it has several devices. The toolstack takes them from a paused guest one by one, and
    /// waits ten seconds for each; here its list of them goes first.
    pub fn destroy_with_many(self) -> Result<()> {
        let domid = self.machine.xl(&format!("domid {}", self.name))?;
        let domid = domid.trim();
        self.machine.sh(&format!(
            "xenstore-rm /local/domain/0/backend/pci/{domid}
             for d in $(xenstore-list /libxl/pci); do
               [ \"$(xenstore-read /libxl/pci/$d/domid 2>/dev/null)\" != {domid} ] || xenstore-rm /libxl/pci/$d/domid; done"
        ))?;
        self.destroy()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_interrupt_is_told_from_a_cpu_at_rest() {
        let registers = "\nCPU#0\nRIP=1 CPL=0 II=0 SMM=0 HLT=0\n\nCPU#1\nRIP=2 CPL=0 SMM=0 HLT=1\n";
        assert!(!is_halted(registers, 0));
        assert!(is_halted(registers, 1));
        assert!(!is_halted(registers, 2));
        assert!(has_own_vector_in_service(
            "ESR\t 0x00000000\nISR\t 252 \nIRR\t 250 251 252 \n"
        ));
        // Interrupts of devices wait for guests; what is only requested is not lost.
        assert!(!has_own_vector_in_service("ISR\t 72 \nIRR\t 252 \n"));
        assert!(!has_own_vector_in_service("ISR\t (none)\nIRR\t 72 252 \n"));
    }

    #[test]
    fn the_firmware_gets_a_term_of_the_right_length_for_each_slow_function() {
        let table = slow_resets();
        let (mut at, mut count) = (0, 0);
        while at < table.len() {
            assert_eq!(table[at], 0x10);
            // The low bits, and how many bytes follow.
            assert_eq!(table[at + 1] >> 6, 1);
            at += 1 + usize::from(table[at + 1] & 0xf) + (usize::from(table[at + 2]) << 4);
            count += 1;
        }
        assert_eq!((at, count), (table.len(), SLOW.len()));
        assert_eq!(package(b"\xa2", b"xy"), b"\xa2\x03xy");
    }
}
