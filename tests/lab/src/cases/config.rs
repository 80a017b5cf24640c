// SPDX-License-Identifier: GPL-2.0

//! Spot checks of configuration space from guest and host (section F): the engine's own tests are in
//! `rust/pciif`, here it is the real device that is looked at.

use super::{Case, Ends, Lab, DRIVER};
use crate::machine::{NIC, STANDARD};
use anyhow::{ensure, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "check_16_59_63_67_68_registers_seen_from_guest_and_host",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: registers,
    },
    Case {
        name: "a_guests_function_level_reset_reaches_the_device_and_keeps_its_configuration",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: guest_reset,
    },
    Case {
        name: "a_guest_that_repeats_itself_adds_no_lines_to_dom0s_log",
        ends: Ends::RustBackend,
        profile: &STANDARD,
        run: repeats,
    },
];

/// The mask of uncorrectable errors of the NIC, and the bit of it that is written here.
const MASK: &str = "108.l";
const BIT: u32 = 0x0010_0000;

fn registers(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let host = |register: &str| -> Result<u32> {
        let text = lab.sh(&format!("setpci -s 00:05.0 {register}"))?;
        Ok(u32::from_str_radix(text.trim(), 16)?)
    };
    let guest = lab.nic_guest("first")?;
    let read = |register: &str| -> Result<u32> {
        let text = guest.sh(&format!("setpci -s 00:00.0 {register}"))?;
        Ok(u32::from_str_radix(text.trim(), 16)?)
    };
    let write =
        |register: &str, value: u32| guest.sh(&format!("setpci -s 00:00.0 {register}={value:x}"));

    // COMMAND: master follows the guest, decode stays on in the device.
    let own = host("04.w")? & 0x0540;
    ensure!(
        read("04.w")? & 3 == 0,
        "decode is on at first: {:#x}",
        read("04.w")?
    );
    write("04.w", 0x0547)?;
    ensure!(
        read("04.w")? & 7 == 7 && host("04.w")? & 7 == 7,
        "{:#x}",
        host("04.w")?
    );
    ensure!(
        host("04.w")? & 0x0540 == own,
        "SERR, parity or INTx reached the device"
    );
    write("04.w", 0)?;
    ensure!(read("04.w")? & 7 == 0, "{:#x}", read("04.w")?);
    ensure!(
        host("04.w")? & 7 == 3,
        "the device does not decode: {:#x}",
        host("04.w")?
    );
    write("04.w", 6)?;

    // BARs: sizes, and the addresses belong to the host.
    let bar = host("10.l")?;
    write("10.l", u32::MAX)?;
    ensure!(
        read("10.l")? == 0xfffe_0000 && host("10.l")? == bar,
        "{:#x}",
        read("10.l")?
    );
    write("10.l", 0xdead_0000)?;
    ensure!(
        read("10.l")? == bar && host("10.l")? == bar,
        "{:#x}",
        host("10.l")?
    );

    // To D3hot and back.
    write("cc.w", 3)?;
    ensure!(host("cc.w")? & 3 == 3, "not asleep: {:#x}", host("cc.w")?);
    write("cc.w", 0)?;
    ensure!(
        host("cc.w")? & 3 == 0 && host("10.l")? == bar,
        "BAR after D3hot: {:#x}",
        host("10.l")?
    );

    // Closed, open by a quirk for one bit, open by the global switch, closed again.
    let before = host(MASK)?;
    write(MASK, before ^ BIT ^ 0x0000_1000)?;
    ensure!(host(MASK)? == before, "a write reached the device");
    lab.sh(&format!("printf 00:05.0-108:4:{BIT:x} >{DRIVER}/quirks"))?;
    let listed = lab.sh(&format!("grep 00000108 {DRIVER}/quirks"))?;
    ensure!(listed == format!("\t\t00000108:4:{BIT:08x}\n"), "{listed}");
    write(MASK, before ^ BIT ^ 0x0000_1000)?;
    ensure!(
        host(MASK)? == before ^ BIT,
        "{:#x}, was {before:#x}",
        host(MASK)?
    );
    let global = |on: &str| {
        lab.sh(&format!(
            "echo {on} >/sys/module/xen_pciback/parameters/permissive"
        ))
    };
    global("Y")?;
    write(MASK, before ^ 0x0000_1000)?;
    ensure!(host(MASK)? == before ^ 0x0000_1000, "{:#x}", host(MASK)?);
    write("04.w", 0)?;
    ensure!(
        host("04.w")? & 3 == 3,
        "a permissive guest switched decode off"
    );
    global("N")?;
    write(MASK, before)?;
    ensure!(
        host(MASK)? == before ^ 0x0000_1000,
        "closed again, but it is {:#x}",
        host(MASK)?
    );

    // What was dropped is counted, with the line that would open it.
    lab.sh("mount -t debugfs debug /sys/kernel/debug 2>/dev/null; true")?;
    let denied = lab.sh("cat /sys/kernel/debug/xen-pciback/denied_writes")?;
    ensure!(
        denied
            .lines()
            .any(|l| l.starts_with(&format!("{NIC} 0x108 4 ")) && l.contains("00:05.0-108:4:")),
        "{denied}"
    );
    guest.destroy()?;

    // The next guest begins afresh, and so does the device.
    lab.machine
        .until(&format!("grep -q '^{NIC} available' {DRIVER}/status"), 20)?;
    ensure!(
        host(MASK)? == before,
        "the mask is {:#x}, was {before:#x}",
        host(MASK)?
    );
    ensure!(
        lab.machine
            .ask(&format!("grep 00000108 {DRIVER}/quirks"), 20)?
            .status
            == 1,
        "the quirk is still there"
    );
    let guest = lab.nic_guest("second")?;
    let command = guest.sh("setpci -s 00:00.0 04.w")?;
    ensure!(
        u32::from_str_radix(command.trim(), 16)? & 0x0047 == 0,
        "COMMAND is {command}"
    );
    guest.destroy()
}

fn guest_reset(lab: &Lab<'_>) -> Result<()> {
    let disk = "0000:00:07.0";
    lab.load(lab.back, "hide='(00:07.0)'")?;
    let guest = lab.guest("flr", &[disk])?;
    guest.sh("modprobe nvme")?;
    guest.until("ls /dev/nvme0n1 >/dev/null", 30)?;
    // Ready, as the controller's own status says (CSTS, offset 1c of its registers).
    let base = lab.sh(&format!(
        "head -n 1 /sys/bus/pci/devices/{disk}/resource | cut -d' ' -f1"
    ))?;
    let base = u64::from_str_radix(base.trim().trim_start_matches("0x"), 16)?;
    let ready = || -> Result<u32> {
        let text = lab.sh(&format!("devmem {:#x} 32", base + 0x1c))?;
        Ok(u32::from_str_radix(text.trim().trim_start_matches("0x"), 16)? & 1)
    };
    ensure!(ready()? == 1, "the controller is not ready");
    // As after a reset the guest's COMMAND is 0, so the function is no bus master; all else is kept.
    let config = || lab.sh("lspci -xxx -s 00:07.0 | tail -n +2");
    let before = config()?.replacen(" 07 0", " 03 0", 1);
    guest.sh("setpci -s 00:00.0 CAP_EXP+8.w=8000:8000")?;
    ensure!(ready()? == 0, "the controller was not reset");
    ensure!(
        config()? == before,
        "the configuration is another one:\n{before}\n{}",
        config()?
    );
    // The driver's own reset, by the same register.
    guest.sh("modprobe -r nvme && cat /sys/bus/pci/devices/0000:00:00.0/reset_method | grep -q flr && echo 1 >/sys/bus/pci/devices/0000:00:00.0/reset && modprobe nvme")?;
    guest.until("ls /dev/nvme0n1 >/dev/null", 30)?;
    let sum = guest.sh("head -c 1048576 /dev/nvme0n1 | sha256sum")?;
    ensure!(
        sum.starts_with(&crate::files::sum(&crate::files::contents(1 << 20))),
        "the disk reads {sum}"
    );
    guest.destroy()
}

/// Each of these had the kernel write lines once, or could.
fn repeats(lab: &Lab<'_>) -> Result<()> {
    // Express, with power management and function level reset; conventional, with INTx and no capability.
    lab.load(lab.back, "hide='(00:05.0)(00:09.0)'")?;
    let guest = lab.guest("repeats", &[NIC, "0000:00:09.0"])?;
    guest.until("[ $(lspci | wc -l) = 2 ]", 20)?;
    let lines = || -> Result<u32> { Ok(lab.sh("dmesg | wc -l")?.trim().parse()?) };
    // One program writes them all.
    for (what, rounds, round) in [
        ("decode", 300, "04.w=3 04.w=0"),
        ("decode and mastering", 100, "04.w=7 04.w=4 04.w=3 04.w=0"),
        ("memory write and invalidate", 100, "04.w=10 04.w=0"),
    ] {
        let before = lines()?;
        guest.sh_within(
            &format!(
                "o=; i=0; while [ $i -lt {rounds} ]; do i=$((i + 1)); o=\"$o {round}\"; done
                 setpci -s 00:00.0 $o && setpci -s 00:01.0 $o"
            ),
            300,
        )?;
        let added = lines()? - before;
        say!("    {what}: {rounds} rounds, {added} lines in dom0's log");
        ensure!(
            added <= 10,
            "{what}: {}",
            lab.sh(&format!("dmesg | tail -n {}", added.min(40)))?
        );
    }
    // The first has more: power states, and resets, as many as may come at once and some beyond.
    let before = lines()?;
    guest.sh_within(
        "i=0; while [ $i -lt 50 ]; do i=$((i + 1)); setpci -s 00:00.0 CAP_PM+4.w=3:3 CAP_PM+4.w=0:3; done
         for i in 1 2 3 4 5 6; do setpci -s 00:00.0 CAP_EXP+8.w=8000:8000; done",
        200,
    )?;
    let added = lines()? - before;
    say!("    50 sleeps and 6 resets, {added} lines in dom0's log");
    ensure!(added <= 10, "{added} lines");
    // It works all the same.
    guest.sh("modprobe 8139cp")?;
    super::start_nic(&guest)?;
    guest.destroy_with_many()
}
