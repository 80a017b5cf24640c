// SPDX-License-Identifier: GPL-2.0

//! One QEMU with Xen in it, its dom0 and its guests.

use crate::image::Images;
use agent::{Answer, Request};
use anyhow::{anyhow, bail, ensure, Context, Result};
use std::{
    cell::Cell,
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// The NIC that is passed through.
pub const NIC: &str = "0000:00:05.0";
/// A function without a driver.
pub const TESTDEV: &str = "0000:00:06.0";

/// How the machine differs from the ordinary one.
#[derive(Clone, Copy, Default)]
pub struct Options {
    /// A person sits at dom0's console.
    pub interactive: bool,
}

/// The running machine; ended when dropped.
pub struct Machine {
    qemu: Child,
    qmp: PathBuf,
    control: UnixStream,
    answers: Receiver<Answer>,
    next_id: Cell<u64>,
    /// `xl` calls that had to be repeated.
    pub xl_repeated: Cell<u32>,
    /// dom0's console.
    pub console: PathBuf,
}

/// Xen: each option saves a table, a check or a wait that the lab does not need.
const XEN_ARGS: &str = "console=com1 com1=115200,8n1 dom0_mem=1500M,max:1500M dom0_max_vcpus=1 \
    dom0_vcpus_pin \
    noreboot spec-ctrl=no xpti=no loglvl=warning";
/// dom0 and guests: the kernel's messages go to its ring only, the serial line is slow.
const KERNEL_ARGS: &str =
    "console=hvc0 quiet loglevel=4 mitigations=off nokaslr audit=0 selinux=0 \
    random.trust_cpu=on";

impl Machine {
    /// Boots and waits until dom0 answers.
    pub fn boot(images: &Images, out: &Path, options: Options) -> Result<Self> {
        let run = out.join("run");
        if run.exists() {
            std::fs::remove_dir_all(&run)?;
        }
        std::fs::create_dir_all(&run)?;
        let (socket, qmp, console) = (
            run.join("control"),
            run.join("qmp"),
            out.join("dom0-console.log"),
        );
        let shell = if options.interactive { " shell" } else { "" };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-machine",
                "q35,kernel-irqchip=split",
                "-accel",
                "tcg,thread=multi",
            ])
            // With x2apic no MSI-X would arrive in the guest.
            .args(["-cpu", "max,-x2apic", "-m", "4096", "-smp", "2"])
            .args([
                "-device",
                "intel-iommu,intremap=on",
                "-nodefaults",
                "-no-reboot",
            ])
            .args([
                "-netdev",
                "user,id=net0",
                "-device",
                "e1000e,netdev=net0,addr=5.0",
            ])
            .args(["-device", "pci-testdev,addr=6.0"])
            .arg("-kernel")
            .arg(&images.xen)
            .args(["-append", XEN_ARGS, "-initrd"])
            .arg(format!(
                "{} {KERNEL_ARGS}{shell},{}",
                images.kernel.display(),
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
        let reader = BufReader::new(control.try_clone()?);
        let (send, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                if let Some(answer) = Answer::from_line(&String::from_utf8_lossy(&line)) {
                    if send.send(answer).is_err() {
                        break;
                    }
                }
            }
        });
        let machine = Self {
            qemu,
            qmp,
            control,
            answers,
            next_id: Cell::new(1),
            xl_repeated: Cell::new(0),
            console,
        };
        machine.ask("true", 180).context("dom0 did not come up")?;
        Ok(machine)
    }

    /// Runs a shell command in dom0.
    pub fn ask(&self, command: &str, seconds: u64) -> Result<Answer> {
        let id = self.next_id.replace(self.next_id.get() + 1);
        let request = Request {
            id,
            timeout: seconds,
            command: command.to_owned(),
        };
        let end = Instant::now() + Duration::from_secs(seconds + 10);
        while Instant::now() < end {
            (&self.control)
                .write_all(request.to_line().as_bytes())
                .context("QEMU is gone")?;
            let again = Instant::now() + Duration::from_secs(5);
            while let Ok(answer) = self
                .answers
                .recv_timeout(again.saturating_duration_since(Instant::now()))
            {
                if answer.id == id {
                    return Ok(answer);
                }
            }
        }
        bail!("dom0 gave no answer in {seconds} s to: {command}")
    }

    /// As [`Self::ask`]; a status other than 0 is an error. Gives the output.
    pub fn sh(&self, command: &str) -> Result<String> {
        let answer = self.ask(command, 60)?;
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
        let answer = self.ask(&command, 60)?;
        if answer.status >= 128 || answer.output.contains("Segmentation fault") {
            self.xl_repeated.set(self.xl_repeated.get() + 1);
            println!(
                "    xl {arguments} died ({}), repeated once",
                answer.output.trim()
            );
            return self.sh(&command);
        }
        ensure!(answer.status == 0, "{command}: {}", answer.output.trim());
        Ok(answer.output)
    }

    /// Starts a guest and waits until its agent answers.
    pub fn guest(
        &self,
        name: &str,
        front: &str,
        vcpus: u32,
        devices: &[&str],
    ) -> Result<Guest<'_>> {
        let devices = devices
            .iter()
            .map(|d| format!("\"{d}\""))
            .collect::<Vec<_>>()
            .join(", ");
        let config = format!(
            "name=\"{name}\"\ntype=\"pv\"\nkernel=\"/guest/vmlinuz\"\nramdisk=\"/guest/initramfs\"\n\
             memory=400\nvcpus={vcpus}\nextra=\"{KERNEL_ARGS} swiotlb=force front={front}\"\n\
             pci=[ {devices} ]\n"
        );
        self.sh(&format!("cat >/tmp/{name}.cfg <<'END'\n{config}END"))?;
        self.xl(&format!("create /tmp/{name}.cfg"))?;
        let tty = format!("xenstore-read /local/domain/$(xl domid {name})/console/tty");
        let guest = Guest {
            machine: self,
            name: name.to_owned(),
            tty: self.sh(&tty)?.trim().into(),
        };
        let end = Instant::now() + Duration::from_secs(150);
        loop {
            match guest.ask("true", 5) {
                Ok(answer) if answer.status == 0 => return Ok(guest),
                _ if Instant::now() < end => {}
                result => {
                    let log = self.sh(&format!("tail -n 15 /var/log/xen/guest-{name}.log"))?;
                    return Err(anyhow!("guest {name} did not come up: {result:?}\n{log}"));
                }
            }
        }
    }

    /// Waits until a shell condition holds in dom0.
    pub fn until(&self, condition: &str, seconds: u64) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(seconds);
        while self.ask(condition, 20)?.status != 0 {
            ensure!(
                Instant::now() < end,
                "not so within {seconds} s: {condition}"
            );
            thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Waits until QEMU ends by itself.
    pub fn wait(&mut self) -> Result<()> {
        self.qemu.wait()?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let quit = || -> Result<()> {
            let stream = UnixStream::connect(&self.qmp)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            let mut qmp = qapi::Qmp::from_stream(&stream);
            qmp.handshake()?;
            qmp.execute(&qapi::qmp::quit {})?;
            Ok(())
        };
        let _ = quit();
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
    name: String,
    tty: String,
}

impl Guest<'_> {
    /// Runs a shell command in the guest.
    pub fn ask(&self, command: &str, seconds: u64) -> Result<Answer> {
        let quoted = command.replace('\'', r"'\''");
        self.machine.ask(
            &format!("agent ask {} {seconds} '{quoted}'", self.tty),
            seconds + 15,
        )
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

    /// Ends it without asking.
    pub fn destroy(self) -> Result<()> {
        self.keep_log();
        self.machine.xl(&format!("destroy {}", self.name))?;
        Ok(())
    }

    /// Its kernel's messages, for the case that looks for warnings.
    fn keep_log(&self) {
        if let Ok(log) = self.ask("dmesg", 30) {
            let name = &self.name;
            let text = log.output.replace('\'', "");
            let _ = self.machine.sh(&format!(
                "cat >>/var/log/xen/dmesg-{name}.log <<'END'\n{text}\nEND"
            ));
        }
    }
}
