// SPDX-License-Identifier: GPL-2.0

//! The five stories, as their authors tell them. Each types what its author typed and prints one line
//! for each step, after it was checked; each ends with data.

use super::{start_nic, Case, Ends, Lab, DRIVER};
use crate::{
    files,
    image::Kernel,
    machine::{Guest, GuestOptions, Profile, NIC, STANDARD},
};
use anyhow::{bail, ensure, Context, Result};
use std::{cell::Cell, fmt::Display, time::Instant};

pub const CASES: &[Case] = &[
    Case {
        name: "seed_1_init_script_takes_a_bound_nic_and_gives_it_back",
        ends: Ends::Any,
        profile: &STANDARD,
        run: seed_1,
    },
    Case {
        name: "seed_4_netbsd_names_two_devices",
        ends: Ends::Any,
        profile: &STANDARD,
        run: seed_4,
    },
    Case {
        name: "seed_3_xenserver_lends_two_disks",
        ends: Ends::Any,
        profile: &XENSERVER,
        run: seed_3,
    },
    Case {
        name: "seed_0_tv_box_records_to_a_passed_through_disk",
        ends: Ends::Own,
        profile: &TV_BOX,
        run: seed_0,
    },
    Case {
        name: "seed_2_driver_domain_serves_a_guest",
        ends: Ends::Own,
        profile: &DRIVER_DOMAIN,
        run: seed_2,
    },
];

/// Tells a story's steps.
struct Story<'a> {
    lab: &'a Lab<'a>,
    name: &'static str,
    steps: Cell<u32>,
}

impl<'a> Story<'a> {
    fn new(lab: &'a Lab<'a>, name: &'static str) -> Self {
        Self {
            lab,
            name,
            steps: Cell::new(0),
        }
    }

    /// A step was done and checked.
    fn step(&self, what: impl Display) {
        self.steps.set(self.steps.get() + 1);
        say!("    {} {}: {what}", self.name, self.steps.get());
    }

    fn sh(&self, command: &str) -> Result<String> {
        self.lab.sh(command)
    }

    /// The driver that dom0 has for a function, nothing without one.
    fn driver(&self, bdf: &str) -> Result<String> {
        let link = format!("basename \"$(readlink /sys/bus/pci/devices/{bdf}/driver)\"");
        Ok(self.sh(&link)?.trim().to_owned())
    }

    /// Downloads so many bytes in a guest whose network is up, and checks their sum.
    fn download(&self, guest: &Guest<'_>, size: usize) -> Result<()> {
        super::download(self.lab, guest, size)
    }
}

// ---------------------------------------------------------------- seed_0

/// The TV-recording box: its five functions, its kernel command line, letter for letter.
const TV_BOX: Profile = Profile {
    name: "tv-box",
    kernel: Kernel::InTree,
    devices: &[
        "-netdev user,id=net9 -device rtl8139,netdev=net9,addr=9.0,romfile=",
        "-device ich9-usb-ehci1,addr=c.2,multifunction=on,id=ehci",
        "-device ich9-usb-uhci1,addr=c.0,multifunction=on,masterbus=ehci.0,firstport=0",
        "-device ich9-usb-uhci2,addr=c.1,multifunction=on,masterbus=ehci.0,firstport=2",
        "-drive if=none,id=usb,file={run}/usb,format=raw -device usb-storage,bus=ehci.0,drive=usb",
        "-audiodev none,id=sound -device ES1370,audiodev=sound,addr=d.0",
    ],
    disks: &[("usb", 16)],
    dom0: "pciback.permissive pciback.hide=(00:0c.0)(00:0c.1)(00:0c.2)(00:0d.0)(00:09.0)",
    vcpus: 1,
};

/// As the guest's configuration lists them.
const TV_FUNCTIONS: &[&str] = &["00:09.0", "00:0c.0", "00:0c.1", "00:0c.2", "00:0d.0"];
/// Where the guest finds them: the functions of one device stay together.
const TV_SEEN: &[&str] = &["00:00.0", "00:01.0", "00:01.1", "00:01.2", "00:02.0"];

fn seed_0(lab: &Lab<'_>) -> Result<()> {
    let story = Story::new(lab, "seed_0");
    // The kernel has drivers for all five, so it is the command line that keeps them away.
    for driver in ["8139cp", "uhci_hcd", "ehci-pci", "snd_ens1370"] {
        story.sh(&format!("test -d /sys/bus/pci/drivers/{driver}"))?;
    }
    for function in TV_FUNCTIONS {
        let driver = story.driver(&format!("0000:{function}"))?;
        ensure!(driver == "pciback", "{function} has driver {driver}");
    }
    let others = lab.machine.ask(
        "dmesg | grep -E '0000:00:(09|0c|0d)\\.[0-9]' | grep -vE '(pciback|pci) 0000|xen_pciback:'",
        30,
    )?;
    ensure!(
        others.status == 1,
        "another driver spoke: {}",
        others.output
    );
    ensure!(
        story
            .sh("cat /sys/module/xen_pciback/parameters/permissive")?
            .trim()
            == "Y",
        "permissive is off"
    );
    let overrides = story.sh("cat /sys/bus/pci/devices/*/driver_override | sort -u")?;
    ensure!(overrides.trim() == "(null)", "left behind: {overrides}");
    story.step("dom0 has taken all five, and none of its own drivers ever had one");

    // No swiotlb=: the in-tree kernel gives a guest with PCI functions what it needs for DMA.
    let options = GuestOptions {
        front: "none",
        devices: TV_FUNCTIONS,
        arguments: "",
        ..GuestOptions::default()
    };
    let guest = lab.machine.guest("tv", &options)?;
    guest.until("[ -e /sys/bus/pci/devices/0000:00:02.0 ]", 20)?;
    let seen = guest.sh("lspci -n")?;
    for (host, seen_at) in TV_FUNCTIONS.iter().zip(TV_SEEN) {
        let ids = story.sh(&format!("lspci -n -s {host}"))?;
        let ids = ids.trim().split_once(' ').context("no line of lspci")?.1;
        ensure!(
            seen.lines().any(|line| line == format!("{seen_at} {ids}")),
            "no {seen_at} {ids} in\n{seen}"
        );
    }
    ensure!(seen.lines().count() == 5, "{seen}");
    let names = guest.sh("lspci")?;
    story.step(format!(
        "lspci in the guest shows the five:\n      {}",
        names.trim().replace('\n', "\n      ")
    ));

    guest.sh("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")?;
    let ping = guest.sh("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    story.step("ping over the RTL8139: 3 of 3");

    const SIZE: usize = 4 << 20;
    guest.until("[ -b /dev/sda ]", 40)?;
    guest.sh("mke2fs -F /dev/sda >/dev/null 2>&1 && mkdir /mnt && mount -t ext4 /dev/sda /mnt")?;
    guest.sh_within(
        &format!(
            "wget -q -O /mnt/recording http://10.0.2.2:{}/{SIZE} && sync && umount /mnt",
            lab.port
        ),
        200,
    )?;
    let system = ext4_view::Ext4::load_from_path(lab.machine.disk("usb")?)
        .map_err(|e| anyhow::anyhow!("the USB disk's file system: {e}"))?;
    let recording = system
        .read("/recording")
        .map_err(|e| anyhow::anyhow!("the recording on the USB disk: {e}"))?;
    ensure!(
        recording.len() == SIZE && files::sum(&recording) == files::sum(&files::contents(SIZE)),
        "{} bytes with another sum are on the USB disk",
        recording.len()
    );
    story.step("4 MiB from the network to the USB disk: the host finds them there, sum equal");

    let cards = guest.sh("cat /proc/asound/cards")?;
    ensure!(cards.contains("ENS1370"), "{cards}");
    story.step(format!(
        "sound card: {}",
        cards.lines().next().unwrap_or_default().trim()
    ));

    let interrupts = guest.sh("cat /proc/interrupts")?;
    let mut counts = Vec::new();
    for name in ["eth0", "ehci_hcd"] {
        let line = interrupts.lines().find(|line| line.contains(name));
        let line = line.with_context(|| format!("no {name} in\n{interrupts}"))?;
        let count: u64 = line
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .context("no count")?;
        ensure!(count > 0, "no interrupt: {line}");
        counts.push(format!("{name} {count}"));
    }
    story.step(format!("INTx arrives: {}", counts.join(", ")));

    // The author's open question.
    let through = usage(lab, &guest, "/dev/sda")?;
    guest.destroy()?;
    lab.machine.until(
        "! grep -q . /sys/bus/xen-backend/devices/pci-*/nodename 2>/dev/null",
        20,
    )?;
    // By the toolstack: Xen keeps what a guest has had in quarantine until it is told.
    for function in ["00:0c.2", "00:0c.0", "00:0c.1"] {
        lab.machine
            .xl(&format!("pci-assignable-remove {function}"))?;
    }
    story.sh(
        "echo 0000:00:0c.2 >/sys/bus/pci/drivers/ehci-pci/bind
         for f in 0000:00:0c.0 0000:00:0c.1; do echo $f >/sys/bus/pci/drivers/uhci_hcd/bind; done",
    )?;
    lab.machine.until("[ -b /dev/sda ]", 40)?;
    let options = GuestOptions {
        front: "none",
        arguments: "",
        config: "disk=[ 'phy:/dev/sda,xvda,w' ]",
        ..GuestOptions::default()
    };
    let guest = lab.machine.guest("vbd", &options)?;
    guest.until("[ -b /dev/xvda ]", 20)?;
    let block = usage(lab, &guest, "/dev/xvda")?;
    guest.destroy()?;
    story.step(format!(
        "the same 16 MiB of the disk, CPU time of dom0 + guest of the time it took (a comparison, no limit):\n      \
         passed-through controller {through}\n      block backend             {block}"
    ));
    Ok(())
}

/// Reads a whole disk in a guest; who used how much CPU time meanwhile.
fn usage(lab: &Lab<'_>, guest: &Guest<'_>, disk: &str) -> Result<String> {
    let name = &guest.name;
    let times = || -> Result<(f64, f64)> {
        let text = lab.sh(&format!(
            "xl list | awk '$1 == \"Domain-0\" || $1 == \"{name}\" {{ print $NF }}'"
        ))?;
        let mut values = text.split_whitespace().rev();
        let mut next = || -> Result<f64> { Ok(values.next().context("xl list")?.parse()?) };
        let guest = next()?;
        Ok((next()?, guest))
    };
    guest.sh("echo 3 >/proc/sys/vm/drop_caches")?;
    let before = times()?;
    let start = Instant::now();
    let sum = guest.sh_within(&format!("sha256sum <{disk}"), 120)?;
    let took = start.elapsed().as_secs_f64();
    let after = times()?;
    ensure!(sum.len() > 64, "{sum}");
    Ok(format!(
        "{:.1} s + {:.1} s of {took:.1} s",
        after.0 - before.0,
        after.1 - before.1
    ))
}

// ---------------------------------------------------------------- seed_1

fn seed_1(lab: &Lab<'_>) -> Result<()> {
    let story = Story::new(lab, "seed_1");
    // As `make install` does it.
    story.sh(&format!(
        "mkdir -p /lib/modules/$(uname -r)/updates && cp /modules/{}/xen-pciback.ko /lib/modules/$(uname -r)/updates/ && /usr/sbin/depmod",
        lab.back
    ))?;
    let result = seed_1_with_service(lab, &story);
    story.sh("umount /proc/cmdline 2>/dev/null; rm -f /etc/xen/pciback.conf /lib/modules/*/updates/xen-pciback.ko; /usr/sbin/depmod; modprobe -r e1000e; true")?;
    result
}

fn seed_1_with_service(lab: &Lab<'_>, story: &Story<'_>) -> Result<()> {
    story.sh("modprobe e1000e && ip link set eth0 up && test $(basename $(readlink /sys/bus/pci/devices/0000:00:05.0/driver)) = e1000e")?;
    story.sh(
        "cat >/etc/xen/pciback.conf <<'END'\n# functions for guests\n0000:00:05.0   # the NIC\n\n00:0d.0\n0000:00:1g.0\n0000:00:1e.7\n   \nEND",
    )?;
    let start = lab.machine.ask("xen-pciback-setup start", 60)?;
    ensure!(start.status == 1, "{}: {}", start.status, start.output);
    for line in [
        "/etc/xen/pciback.conf:5: '0000:00:1g.0' is no PCI function",
        "/etc/xen/pciback.conf:6: there is no function 0000:00:1e.7",
        "0000:00:05.0: taken from e1000e",
        "0000:00:0d.0: taken from nobody",
    ] {
        ensure!(
            start.output.contains(line),
            "no \"{line}\":\n{}",
            start.output
        );
    }
    for bdf in ["0000:00:05.0", "0000:00:0d.0"] {
        let driver = story.driver(bdf)?;
        ensure!(driver == "pciback", "{bdf} has driver {driver}");
    }
    story.step("start: a long and a short address taken, e1000e unbound; lines 5 and 6 named, the others done");

    let again = lab.machine.ask(
        "xen-pciback-setup start; cat /run/xen-pciback/0000:00:05.0",
        60,
    )?;
    ensure!(
        again.output.matches("pciback has it already").count() == 2
            && again.output.trim().ends_with("e1000e"),
        "{}",
        again.output
    );
    story.step("start once more: nothing changes");

    let lspci = story.sh("lspci -v -s 00:05.0 2>/dev/null")?;
    ensure!(lspci.contains("Kernel driver in use: pciback"), "{lspci}");
    let list = lab.machine.xl("pci-assignable-list")?;
    ensure!(
        list.contains("0000:00:05.0") && list.contains("0000:00:0d.0"),
        "{list}"
    );
    story.step(
        "lspci -v -s 00:05.0: Kernel driver in use: pciback; xl pci-assignable-list shows it",
    );

    let guest = lab.guest("init", &["00:05.0"])?;
    start_nic(&guest)?;
    story.download(&guest, 1 << 20)?;
    story.step(
        "pci=['00:05.0'] starts the guest; ping, and 1 MiB through the NIC with the right sum",
    );

    let stop = lab.machine.ask("xen-pciback-setup stop", 60)?;
    ensure!(
        stop.status == 1 && stop.output.contains("0000:00:05.0: lent to guest"),
        "{}: {}",
        stop.status,
        stop.output
    );
    ensure!(
        guest.sh("ping -c 1 -W 10 10.0.2.2").is_ok(),
        "the guest lost it"
    );
    story.step("stop while the guest has it: refused, named, and the guest goes on");
    guest.destroy()?;
    lab.machine.until(
        "! xenstore-ls -f /local/domain/0/backend/pci 2>/dev/null | grep -q dev-0",
        20,
    )?;

    story.sh("xen-pciback-setup stop && xen-pciback-setup stop")?;
    let driver = story.driver("0000:00:05.0")?;
    ensure!(driver == "e1000e", "it came back to {driver}");
    story.sh("xen-pciback-setup status >/dev/null; test $? = 3")?;
    story.sh("ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0")?;
    lab.machine.until(super::LINK_IS_UP, 30)?;
    story.sh("ping -c 2 -W 10 10.0.2.2")?;
    story.step("stop, twice: e1000e has it again, and dom0 pings through it");

    story.sh("ip link set eth0 down; sed -i 5,6d /etc/xen/pciback.conf; xen-pciback-setup restart && xen-pciback-setup status")?;
    story.sh("xen-pciback-setup stop && rmmod xen_pciback")?;
    story.step("without the wrong lines restart and status say yes");

    for (ask, line) in [
        ("pciback", "pciback.hide=(00:0d.0)"),
        ("xen-pciback", "pciback.hide=(00:0d.0)"),
        ("pciback", "xen-pciback.hide=(00:0d.0)"),
        ("xen-pciback", "xen-pciback.hide=(00:0d.0)"),
    ] {
        story.sh(&format!(
            "echo '{line} quiet' >/tmp/cmdline; mount --bind /tmp/cmdline /proc/cmdline; /usr/sbin/modprobe {ask}; umount /proc/cmdline"
        ))?;
        let driver = story.driver("0000:00:0d.0")?;
        ensure!(driver == "pciback", "modprobe {ask} with {line}: {driver}");
        story.sh("rmmod xen_pciback")?;
    }
    story.step("modprobe pciback and modprobe xen-pciback: each honours pciback.hide= and xen-pciback.hide= of the command line");
    Ok(())
}

// ---------------------------------------------------------------- seed_2

/// A NIC on the root bus, hidden; everything else is in guests.
const DRIVER_DOMAIN: Profile = Profile {
    name: "driver-domain",
    kernel: Kernel::InTree,
    devices: &["-netdev user,id=net0 -device e1000e,netdev=net0,addr=5.0"],
    disks: &[],
    dom0: "xen-pciback.hide=(00:05.0)",
    vcpus: 1,
};

fn seed_2(lab: &Lab<'_>) -> Result<()> {
    let story = Story::new(lab, "seed_2");
    let domain = start_driver_domain(lab)?;
    let lines = domain.ask("dmesg | grep -i pciback", 30)?.output;
    ensure!(lines.lines().count() <= 1, "{lines}");
    story.step(format!(
        "dom0's own kernel, both drivers built in, starts as a guest; the backend's code says {} line(s) there",
        lines.lines().count()
    ));
    serve_bridge(&domain)?;
    story.step("the guest owns the NIC: driver e1000e, bridge xenbr0 over it, ping, xl devd");

    let guest = lab.machine.guest(
        "second",
        &GuestOptions {
            front: "none",
            memory: 300,
            arguments: "",
            config: "vif=[ 'mac=00:16:3e:00:00:02,backend=driver,bridge=xenbr0' ]",
            ..GuestOptions::default()
        },
    )?;
    start_second(&story, &guest, "eth0")?;
    let bridge = domain.sh("ls /sys/class/net/xenbr0/brif")?;
    ensure!(
        bridge.contains("vif") && bridge.contains("eth0"),
        "{bridge}"
    );
    story.step("second guest with backend=driver: ping and 1 MiB with the right sum, second guest -> driver domain -> NIC; the bridge shows its vif");

    domain.destroy()?;
    let list = lab.machine.xl("list")?;
    ensure!(
        list.contains("Domain-0") && list.contains("second"),
        "{list}"
    );
    lab.machine.until(
        "! grep -q . /sys/bus/xen-backend/devices/pci-*/nodename 2>/dev/null",
        20,
    )?;
    story.step("the driver domain is killed: dom0 and the second guest live");

    let domain = start_driver_domain(lab)?;
    serve_bridge(&domain)?;
    // Its backend is gone for good, so the toolstack has nobody to ask.
    lab.machine.ask("xl network-detach second 0 2>&1", 60)?;
    lab.machine
        .xl("network-attach second mac=00:16:3e:00:00:03 backend=driver bridge=xenbr0")?;
    guest.until(
        "[ -e /sys/class/net/eth1 ] || [ -e /sys/class/net/eth0 ]",
        20,
    )?;
    let names = guest.sh("ls /sys/class/net; cat /sys/class/net/*/address")?;
    let name = guest.sh("for n in /sys/class/net/*; do [ \"$(cat $n/address)\" != 00:16:3e:00:00:03 ] || basename $n; done")?;
    let name = name.trim();
    ensure!(!name.is_empty(), "{names}");
    start_second(&story, &guest, name)?;
    story.step("started again: the NIC is passed again, and traffic of the second guest goes through it, 1 MiB with the right sum");
    guest.destroy()?;
    domain.destroy()
}

fn start_driver_domain<'a>(lab: &Lab<'a>) -> Result<Guest<'a>> {
    lab.machine.guest(
        "driver",
        &GuestOptions {
            front: "none",
            ramdisk: "/guest/driver-domain",
            memory: 500,
            devices: &[NIC],
            arguments: "",
            config: "driver_domain=1",
            ..GuestOptions::default()
        },
    )
}

fn serve_bridge(domain: &Guest<'_>) -> Result<()> {
    domain.until("[ -e /sys/class/net/eth0 ]", 20)?;
    domain.sh("brctl addbr xenbr0 && brctl addif xenbr0 eth0 && ip link set eth0 up && ip link set xenbr0 up && ip addr add 10.0.2.15/24 dev xenbr0")?;
    domain.until(super::LINK_IS_UP, 30)?;
    let ping = domain.sh("ping -c 2 -W 10 10.0.2.2")?;
    ensure!(ping.contains("2 packets received"), "{ping}");
    domain.sh("xl devd")?;
    domain.until("pidof xl", 10)
}

fn start_second(story: &Story<'_>, guest: &Guest<'_>, name: &str) -> Result<()> {
    guest.until(&format!("[ -e /sys/class/net/{name} ]"), 20)?;
    guest.sh(&format!(
        "for n in /sys/class/net/eth*; do ip addr flush dev ${{n##*/}}; ip link set ${{n##*/}} down; done; \
         ip link set {name} up && ip addr add 10.0.2.16/24 dev {name}"
    ))?;
    guest.until(
        &format!("[ \"$(cat /sys/class/net/{name}/carrier)\" = 1 ]"),
        30,
    )?;
    let ping = guest.sh("ping -c 3 -W 10 10.0.2.2")?;
    ensure!(ping.contains("3 packets received"), "{ping}");
    story.download(guest, 1 << 20)
}

// ---------------------------------------------------------------- seed_3

/// Storage at 06:00.0 and 07:00.0, as in the story's configuration.
const XENSERVER: Profile = Profile {
    name: "xenserver",
    kernel: Kernel::Stock,
    devices: &[
        "-device pcie-root-port,id=p1,addr=10.0,multifunction=on,chassis=1,slot=1",
        "-device pcie-root-port,id=p2,addr=10.1,chassis=2,slot=2",
        "-device pcie-root-port,id=p3,addr=10.2,chassis=3,slot=3",
        "-device pcie-root-port,id=p4,addr=10.3,chassis=4,slot=4",
        "-device pcie-root-port,id=p5,addr=10.4,chassis=5,slot=5",
        "-device pcie-root-port,id=p6,addr=10.5,chassis=6,slot=6",
        "-device pcie-root-port,id=p7,addr=10.6,chassis=7,slot=7",
        "-drive if=none,id=disk6,file={run}/disk6,format=raw -device ich9-ahci,id=ahci,bus=p6,addr=0 -device ide-hd,drive=disk6,bus=ahci.0",
        "-drive if=none,id=disk7,file={run}/disk7,format=raw -device nvme,serial=seven,drive=disk7,bus=p7,addr=0",
        // What dom0 itself keeps.
        "-drive if=none,id=own,file={run}/own,format=raw -device nvme,serial=own,drive=own,addr=8.0",
    ],
    disks: &[("disk6", 16), ("disk7", 16), ("own", 4)],
    dom0: "xen-pciback.hide=(0000:06:00.0)(0000:07:00.0)",
    vcpus: 1,
};

/// `other-config:pci` to the items of `pci=`, in its order.
fn other_config(text: &str) -> Vec<&str> {
    text.split(',')
        .filter_map(|item| item.split_once('/').map(|(_, bdf)| bdf))
        .collect()
}

fn seed_3(lab: &Lab<'_>) -> Result<()> {
    let story = Story::new(lab, "seed_3");
    story.sh(&format!(
        "mkdir -p /lib/modules/$(uname -r)/updates && cp /modules/{}/xen-pciback.ko /lib/modules/$(uname -r)/updates/ && /usr/sbin/depmod",
        lab.back
    ))?;
    let line = story.sh("cat /proc/cmdline")?;
    let hidden = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("xen-pciback.hide="))
        .context("no xen-pciback.hide= in the command line")?;
    ensure!(hidden == "(0000:06:00.0)(0000:07:00.0)", "{hidden}");
    ensure!(hidden.len() % 14 == 0, "items are not of 14 characters");
    // Not the shell's own modprobe.
    story.sh(
        "/usr/sbin/modprobe xen-pciback && modprobe ahci && modprobe nvme && modprobe sd_mod",
    )?;
    for bdf in ["0000:06:00.0", "0000:07:00.0"] {
        let driver = story.driver(bdf)?;
        ensure!(driver == "pciback", "{bdf} has driver {driver}");
    }
    lab.machine.until("[ -b /dev/nvme0n1 ]", 20)?;
    story.step(
        "the two items of 14 characters on the command line are hidden, before ahci and nvme come",
    );

    // What XAPI writes, in its order; a slot that is listed already does no harm.
    let slots = format!("cat {DRIVER}/slots");
    let before = story.sh(&slots)?;
    for bdf in ["0000:06:00.0", "0000:07:00.0"] {
        story.sh(&format!(
            "test $(basename $(readlink /sys/bus/pci/devices/{bdf}/driver)) = pciback
             echo {bdf} >{DRIVER}/unbind && echo {bdf} >{DRIVER}/remove_slot || exit 1
             echo {bdf} >{DRIVER}/new_slot && echo {bdf} >{DRIVER}/new_slot && echo {bdf} >{DRIVER}/bind || exit 1
             test $(basename $(readlink /sys/bus/pci/devices/{bdf}/driver)) = pciback || exit 1
             if [ -e /sys/bus/pci/devices/{bdf}/reset ]; then echo 1 >/sys/bus/pci/devices/{bdf}/reset; \
             else echo {bdf} >{DRIVER}/do_flr; fi"
        ))?;
    }
    let after = story.sh(&slots)?;
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    ensure!(sorted(&before) == sorted(&after), "{before}\n{after}");
    story.step("XAPI's accesses: unbind, remove_slot, new_slot without looking, bind, reset; no slot twice");

    let dom0_blocks = "ls /sys/block | grep -v ^loop";
    let blocks = story.sh(dom0_blocks)?;
    ensure!(blocks.trim() == "nvme0n1", "{blocks}");
    let class = |guest: &Guest<'_>, at: &str| -> Result<String> {
        guest.until(&format!("[ -e /sys/bus/pci/devices/0000:00:{at}.0 ]"), 20)?;
        Ok(guest
            .sh(&format!("cat /sys/bus/pci/devices/0000:00:{at}.0/class"))?
            .trim()
            .to_owned())
    };
    let (ahci, nvme) = ("0x010601", "0x010802");
    let devices = other_config("0/0000:06:00.0,0/0000:07:00.0");
    let guest = lab.guest("order", &devices)?;
    ensure!(
        class(&guest, "00")? == ahci && class(&guest, "01")? == nvme,
        "{}",
        guest.sh("lspci -n")?
    );
    guest.destroy()?;
    let devices = other_config("0/0000:07:00.0,0/0000:06:00.0");
    lab.machine.create(
        "storage",
        &GuestOptions {
            front: lab.front,
            devices: &devices,
            config: "on_reboot=\"restart\"",
            ..GuestOptions::default()
        },
    )?;
    let mut guest = lab.machine.attach("storage")?;
    ensure!(
        class(&guest, "00")? == nvme && class(&guest, "01")? == ahci,
        "{}",
        guest.sh("lspci -n")?
    );
    story.step("other-config:pci=0/0000:06:00.0,0/0000:07:00.0 gives the guest both in that order; the reverse in the reverse");

    // One MiB on each disk in each life; all earlier ones are still there in the next.
    let mut sums: Vec<(&str, usize, String)> = Vec::new();
    for life in 1..=4 {
        guest.sh("modprobe ahci && modprobe nvme && modprobe sd_mod")?;
        guest.until("[ -b /dev/sda ] && [ -b /dev/nvme0n1 ]", 30)?;
        for (disk, at, sum) in &sums {
            let read = guest.sh(&format!(
                "dd if=/dev/{disk} bs=1M skip={at} count=1 2>/dev/null | sha256sum"
            ))?;
            if read.split_whitespace().next() != Some(sum) {
                bail!(
                    "life {life}: MiB {at} of {disk} reads {read}, written was {sum}; on the host it is {}; once more {}",
                    files::sum(&on_host(lab, disk, *at)?),
                    guest.sh(&format!(
                        "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/{disk} bs=1M skip={at} count=1 2>/dev/null | sha256sum"
                    ))?
                );
            }
        }
        if life == 4 {
            break;
        }
        for disk in ["sda", "nvme0n1"] {
            let sum = guest.sh(&format!(
                "head -c 1048576 /dev/urandom >/tmp/new && dd if=/tmp/new of=/dev/{disk} bs=1M seek={life} conv=fsync 2>/dev/null && sha256sum /tmp/new"
            ))?;
            let sum = sum.split_whitespace().next().context("no sum")?.to_owned();
            sums.push((disk, life, sum));
        }
        guest = reboot(lab, guest)?;
        let now = story.sh(dom0_blocks)?;
        ensure!(now == blocks, "dom0's disks after reboot {life}: {now}");
    }
    for (disk, at, sum) in &sums {
        let part = on_host(lab, disk, *at)?;
        ensure!(files::sum(&part) == *sum, "MiB {at} of {disk} on the host");
    }
    story.step("AHCI and nvme through three reboots (on_reboot=\"restart\"): what was written in each life is there in the next and on the host; dom0's disks never changed");
    guest.destroy()
}

/// One MiB of the file behind a disk of the guest.
fn on_host(lab: &Lab<'_>, disk: &str, at: usize) -> Result<Vec<u8>> {
    let file = if disk == "sda" { "disk6" } else { "disk7" };
    let bytes = std::fs::read(lab.machine.disk(file)?)?;
    let part = bytes.get(at << 20..(at + 1) << 20);
    Ok(part.context("a short disk")?.to_vec())
}

/// Has a guest reboot, and waits for its next life.
fn reboot<'a>(lab: &Lab<'a>, guest: Guest<'a>) -> Result<Guest<'a>> {
    let name = guest.name.clone();
    let domid = |lab: &Lab<'_>| -> Result<String> {
        let answer = lab
            .machine
            .ask(&format!("xl domid {name} 2>/dev/null"), 20)?;
        Ok(answer.output.trim().to_owned())
    };
    let old = domid(lab)?;
    // It has no time to answer.
    let _ = guest.try_for("sync; reboot -f", 3);
    lab.machine.until(
        &format!("d=$(xl domid {name} 2>/dev/null) && [ \"$d\" != {old} ] && xenstore-read /local/domain/$d/console/tty"),
        60,
    )?;
    if domid(lab)? == old {
        bail!("{name} did not restart");
    }
    lab.machine.attach(&name)
}

// ---------------------------------------------------------------- seed_4

fn seed_4(lab: &Lab<'_>) -> Result<()> {
    let story = Story::new(lab, "seed_4");
    lab.load(lab.back, "hide='(00:06.0)(00:0a.0)'")?;
    let options = GuestOptions {
        front: lab.front,
        // The author's line.
        config: "pci = [ '0000:00:06.0', '0000:00:0a.0' ]",
        ..GuestOptions::default()
    };
    let guest = lab.machine.guest("netbsd", &options)?;
    guest.until("[ -e /sys/bus/pci/devices/0000:00:01.0 ]", 20)?;
    for (host, seen) in [("00:06.0", "00:00.0"), ("00:0a.0", "00:01.0")] {
        let real = crate::config::parse(&story.sh(&format!("lspci -xxx -s {host}"))?)?;
        let there = crate::config::parse(&guest.sh(&format!("lspci -xxx -s {seen}"))?)?;
        // Header words that no policy virtualises: ids, revision and class, BARs, subsystem.
        for at in [0x00, 0x08, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x2c] {
            ensure!(
                real.get(at..at + 4) == there.get(at..at + 4),
                "{host} at {at:#x}: {:?} in dom0, {:?} in the guest",
                real.get(at..at + 4),
                there.get(at..at + 4)
            );
        }
    }
    story.step("pci = [ '0000:00:06.0', '0000:00:0a.0' ]: the guest sees both, in order, headers equal to the devices'");
    guest.destroy()?;

    let guest = lab.machine.guest(
        "xpci",
        &GuestOptions {
            front: "none",
            ..options
        },
    )?;
    guest.sh("insmod /modules/test/netbsdfront.ko")?;
    guest.until("dmesg | grep -q 'netbsdfront: probed'", 60)?;
    let log = guest.sh("dmesg | sed -n 's/^.*netbsdfront: //p'")?;
    for (host, seen) in [("0000:00:06.0", "00:00.0"), ("0000:00:0a.0", "00:01.0")] {
        let line = story.sh(&format!(
            "cd /sys/bus/pci/devices/{host} && printf 'found {seen} %04x:%04x class %06x bars' $(cat vendor device class); \
             head -n 6 resource | while read -r start end rest; do if [ $((end)) = 0 ]; then printf ' 0'; else printf ' %x' $((end - start + 1)); fi; done"
        ))?;
        ensure!(log.lines().any(|l| l == line), "no \"{line}\" in\n{log}");
    }
    ensure!(
        log.lines().any(|l| l == "probed 256, found 2, errors 0"),
        "{log}"
    );
    let state = story.sh("xenstore-read /local/domain/$(xl domid xpci)/device/pci/0/state")?;
    ensure!(state.trim() == "4", "its state is {state}");
    story.step("a frontend with NetBSD's manners: 256 functions probed with 4-byte accesses, both found, ids, class and BAR sizes as dom0 has them, connected");

    guest.until("dmesg | grep -q 'netbsdfront: intx'", 30)?;
    let intx = guest.sh("dmesg | sed -n 's/^.*netbsdfront: intx/intx/p'")?;
    ensure!(
        intx.contains("intx 00:01.0 ") && intx.trim().ends_with(": 100 raised, 100 handled"),
        "{intx}"
    );
    story.step(format!("it drives INTx: {}", intx.trim()));
    guest.destroy()
}

#[cfg(test)]
mod tests {
    use super::other_config;

    #[test]
    fn other_config_keeps_its_order() {
        assert_eq!(
            other_config("0/0000:06:00.0,0/0000:07:00.0"),
            ["0000:06:00.0", "0000:07:00.0"]
        );
        assert_eq!(
            other_config("0/0000:07:00.0,0/0000:06:00.0"),
            ["0000:07:00.0", "0000:06:00.0"]
        );
        assert!(other_config("").is_empty());
    }
}
