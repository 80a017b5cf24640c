// SPDX-License-Identifier: GPL-2.0

//! The handshake, hot-plug, several devices (section D).

use super::{ring::Bad, Case, Ends, Lab, DRIVER, TRACE};
use crate::machine::{Guest, GuestOptions, EDU, MANY, NIC, SMP, TESTDEV};
use anyhow::{bail, ensure, Context, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "check_32_33_34_35_36_keys_and_states_over_plug_and_unplug",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: plug,
    },
    Case {
        name: "check_33_34_devices_come_before_and_after_the_connection_and_the_states_walk",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: walk,
    },
    Case {
        name: "keys_that_a_toolstack_leaves_take_no_other_device",
        ends: Ends::Own,
        profile: &SMP,
        run: keys_left,
    },
    Case {
        name: "check_37_one_bad_device_fails_alone",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: one_bad,
    },
    Case {
        name: "check_38_a_list_that_does_not_parse_is_an_error_in_the_store",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: bad_list,
    },
    Case {
        name: "check_45_passthrough_publishes_host_addresses_and_roots",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: passthrough,
    },
    Case {
        name: "a_node_without_a_frontend_is_assigned_reset_and_given_back",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: no_frontend,
    },
    Case {
        name: "check_44_device_33_is_refused_and_the_other_32_work",
        ends: Ends::RustBackend,
        profile: &MANY,
        run: thirty_three,
    },
    Case {
        name: "functions_by_the_hundred_are_seized_and_given_back",
        ends: Ends::RustBackend,
        profile: &MANY,
        run: hundreds,
    },
];

/// The backend's directory of the only guest with a device.
pub(super) fn backend(lab: &Lab<'_>, guest: &Guest<'_>) -> Result<String> {
    let domid = lab.machine.xl(&format!("domid {}", guest.name))?;
    Ok(format!("/local/domain/0/backend/pci/{}/0", domid.trim()))
}

/// A key below a directory; empty if it is not there.
fn key(lab: &Lab<'_>, directory: &str, key: &str) -> Result<String> {
    let answer = lab
        .machine
        .ask(&format!("xenstore-read {directory}/{key} 2>/dev/null"), 20)?;
    Ok(answer.output.trim().to_owned())
}

/// What the backend of that directory wrote last of what went wrong; empty if it wrote nothing.
fn error_node(lab: &Lab<'_>, back: &str) -> Result<String> {
    key(
        lab,
        &back.replace("/domain/0/", "/domain/0/error/"),
        "error",
    )
}

fn expect(lab: &Lab<'_>, directory: &str, keys: &[(&str, &str)]) -> Result<()> {
    for (name, value) in keys {
        let found = key(lab, directory, name)?;
        ensure!(found == *value, "{name} is {found:?}, not {value:?}");
    }
    Ok(())
}

/// Waits until both ends say Connected.
pub(super) fn connected(lab: &Lab<'_>, directory: &str) -> Result<()> {
    let front = key(lab, directory, "frontend")?;
    lab.machine.until(
        &format!("[ \"$(xenstore-read {directory}/state {front}/state | xargs)\" = '4 4' ]"),
        30,
    )
}

/// What the guest sees, as `slot.function vendor:device`, sorted.
pub(super) fn seen(guest: &Guest<'_>) -> Result<Vec<String>> {
    let list = guest.sh("lspci -n | awk '{ print $1, $3 }' | sort")?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// The stock frontend loses its devices in a share of its starts, a known property of the set-up: it
/// gets a few guests, ours gets one.
pub(super) fn connected_guest<'a>(
    lab: &Lab<'a>,
    name: &str,
    options: &GuestOptions<'_>,
) -> Result<(Guest<'a>, String)> {
    let tries = if options.front == "c" { 5 } else { 1 };
    for number in 1..=tries {
        let guest = lab.machine.guest(&format!("{name}{number}"), options)?;
        let directory = backend(lab, &guest)?;
        match connected(lab, &directory) {
            Ok(()) => return Ok((guest, directory)),
            Err(e) if number == tries => return Err(e.context("it never connected")),
            Err(_) => {
                say!("    guest {number} of at most {tries} did not connect");
                guest.destroy()?;
            }
        }
    }
    bail!("no guest connected")
}

fn plug(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:06.0)(00:0a.0)(00:0b.0)'")?;
    let options = GuestOptions {
        front: lab.front,
        devices: &[NIC, EDU, TESTDEV],
        ..GuestOptions::default()
    };
    let (guest, back) = connected_guest(lab, "plug", &options)?;
    expect(
        lab,
        &back,
        &[
            ("state", "4"),
            ("num_devs", "3"),
            ("dev-0", NIC),
            ("dev-1", EDU),
            ("dev-2", TESTDEV),
            ("vdev-0", "0000:00:00.00"),
            ("vdev-1", "0000:00:01.00"),
            ("vdev-2", "0000:00:02.00"),
            ("state-0", "3"),
            ("state-1", "3"),
            ("state-2", "3"),
            ("root_num", "1"),
            ("root-0", "0000:00"),
        ],
    )?;
    let front = key(lab, &back, "frontend")?;
    expect(lab, &front, &[("state", "4"), ("magic", "7")])?;
    // These keys and no others: those of the toolstack and ours.
    let mut keys: Vec<_> = [
        "domain",
        "frontend",
        "frontend-id",
        "num_devs",
        "online",
        "root-0",
        "root_num",
        "state",
    ]
    .map(str::to_owned)
    .into();
    for number in 0..3 {
        for name in ["dev", "key", "opts", "state", "vdev"] {
            keys.push(format!("{name}-{number}"));
        }
    }
    keys.sort_unstable();
    let there = |directory: &str| lab.sh(&format!("xenstore-list {directory} | sort"));
    let found = there(&back)?;
    say!("    keys: {}", found.replace('\n', " "));
    ensure!(found.lines().eq(keys.iter().map(String::as_str)), "{found}");
    let found = there(&front)?;
    let keys = [
        "backend",
        "backend-id",
        "event-channel",
        "magic",
        "pci-op-ref",
        "state",
    ];
    ensure!(found.lines().eq(keys), "{found}");
    let nic = "00:00.0 8086:10d3".to_owned();
    let edu = |slot| format!("00:0{slot}.0 1234:11e8");
    let testdev = "00:02.0 1b36:0005".to_owned();
    guest.until("[ $(lspci | wc -l) = 3 ]", 20)?;
    ensure!(
        seen(&guest)? == [nic.clone(), edu(1), testdev.clone()],
        "{:?}",
        seen(&guest)?
    );

    // Out of the middle: what is behind is renumbered by the toolstack, and stays.
    let detach = |device: &str| -> Result<()> {
        lab.machine
            .xl(&format!("pci-detach {} {device}", guest.name))?;
        lab.machine.until(
            &format!("grep -q '^{device} available' {DRIVER}/status"),
            30,
        )?;
        connected(lab, &back)
    };
    let attach = |device: &str| -> Result<()> {
        lab.machine
            .xl(&format!("pci-attach {} {device}", guest.name))?;
        connected(lab, &back)
    };
    detach(EDU)?;
    guest.until("[ $(lspci | wc -l) = 2 ]", 20)?;
    ensure!(
        seen(&guest)? == [nic.clone(), testdev.clone()],
        "{:?}",
        seen(&guest)?
    );
    expect(
        lab,
        &back,
        &[
            ("num_devs", "2"),
            ("dev-1", TESTDEV),
            ("vdev-1", "0000:00:02.00"),
            ("dev-2", ""),
        ],
    )?;
    // The lowest free slot is used again; two more come, one goes, in another order.
    attach("0000:00:0b.0")?;
    guest.until("[ $(lspci | wc -l) = 3 ]", 20)?;
    ensure!(
        seen(&guest)? == [nic.clone(), edu(1), testdev.clone()],
        "{:?}",
        seen(&guest)?
    );
    attach(EDU)?;
    guest.until("[ $(lspci | wc -l) = 4 ]", 20)?;
    ensure!(
        seen(&guest)? == [nic.clone(), edu(1), testdev.clone(), edu(3)],
        "{:?}",
        seen(&guest)?
    );
    detach(TESTDEV)?;
    detach("0000:00:0b.0")?;
    guest.until("[ $(lspci | wc -l) = 2 ]", 20)?;
    ensure!(
        seen(&guest)? == [nic.clone(), edu(3)],
        "{:?}",
        seen(&guest)?
    );
    // The ones that stayed were not touched.
    super::start_nic(&guest)?;
    guest.destroy_with_many()
}

/// Devices that the toolstack adds before the frontend has connected (33), and the states of both ends when it adds
/// and takes one afterwards, step by step: the frontend is told when to take its own (34).
fn walk(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:06.0)(00:0a.0)'")?;
    let bad = Bad::start(lab, "walk", &[NIC])?;
    let back = backend(lab, &bad.guest)?;
    expect(lab, &back, &[("state", "3"), ("state-0", "3")])?;
    // As the toolstack writes a further device of a guest that starts: the state stays.
    lab.sh(&format!(
        "cd / && xenstore-write {back}/dev-1 {EDU} {back}/state-1 1 {back}/num_devs 2 && xenstore-write {back}/state 3"
    ))?;
    until_key(lab, &back, "state-1", "3")?;
    expect(lab, &back, &[("state", "3"), ("vdev-1", "0000:00:01.00")])?;
    bad.connect()?;
    let reads = |slot: u32, value: &str| -> Result<()> {
        let reply = bad.one(&format!("op 0 0 0 {} 0 4 0", slot << 3))?;
        ensure!(reply.contains(value), "slot {slot}: {reply}");
        Ok(())
    };
    reads(0, "err=0 value=0x10d38086")?;
    reads(1, "err=0 value=0x11e81234")?;
    // One more. The backend does nothing before the frontend has said that it knows.
    lab.sh(&format!(
        "cd / && xenstore-write {back}/dev-2 {TESTDEV} {back}/state-2 1 {back}/num_devs 3 {back}/state 7"
    ))?;
    stays(lab, &back, "state", "7")?;
    expect(lab, &back, &[("state-2", "1"), ("vdev-2", "")])?;
    reads(2, "err=-1")?;
    bad.one("state 7")?;
    until_key(lab, &back, "state", "8")?;
    expect(lab, &back, &[("state-2", "3"), ("vdev-2", "0000:00:02.00")])?;
    // It works from now on; the backend waits for the frontend.
    reads(2, "err=0 value=0x51b36")?;
    stays(lab, &back, "state", "8")?;
    bad.one("state 4")?;
    until_key(lab, &back, "state", "4")?;
    // One goes: it is there until the frontend lets go of it.
    lab.sh(&format!(
        "cd / && xenstore-write {back}/state-1 5 {back}/state 7"
    ))?;
    stays(lab, &back, "state", "7")?;
    reads(1, "err=0 value=0x11e81234")?;
    bad.one("state 7")?;
    until_key(lab, &back, "state", "8")?;
    reads(1, "err=-1")?;
    expect(lab, &back, &[("state-1", "5")])?;
    lab.machine
        .until(&format!("grep -q '^{EDU} available' {DRIVER}/status"), 30)?;
    bad.one("state 4")?;
    until_key(lab, &back, "state", "4")?;
    reads(0, "err=0 value=0x10d38086")?;
    reads(2, "err=0 value=0x51b36")?;
    bad.guest.destroy_with_many()
}

/// Waits until a key has a value.
fn until_key(lab: &Lab<'_>, directory: &str, name: &str, value: &str) -> Result<()> {
    lab.machine.until(
        &format!("[ \"$(xenstore-read {directory}/{name})\" = {value} ]"),
        20,
    )
}

/// Waits until the backend's work item has run from beginning to end after something was written to the store:
/// it reads both states when it begins. `again` writes the same once more, so that there is an event, and a run,
/// after the trace of dom0's kernel has begun.
pub(super) fn dealt_with(lab: &Lab<'_>, again: impl FnOnce() -> Result<()>) -> Result<()> {
    // By the mangled name of the item's function.
    const ITEM: &str = "7BackendKh0_E8callback";
    let events = "events/workqueue/workqueue_execute";
    lab.sh(&format!(
        "[ -e {TRACE}/trace ] || mount -t tracefs tracefs {TRACE}
         cd {TRACE} && echo 1 >{events}_start/enable && echo 1 >{events}_end/enable && echo >trace"
    ))?;
    again()?;
    lab.machine.until(
        &format!(
            "awk '/workqueue_execute_start.*{ITEM}/ {{ begun = 1 }} /workqueue_execute_end.*{ITEM}/ {{ ended += begun }} END {{ exit !ended }}' {TRACE}/trace"
        ),
        30,
    )?;
    lab.sh(&format!(
        "cd {TRACE} && echo 0 >{events}_start/enable && echo 0 >{events}_end/enable"
    ))?;
    Ok(())
}

/// The backend has dealt with what was written to its directory, and a key of it has its value still.
fn stays(lab: &Lab<'_>, back: &str, name: &str, value: &str) -> Result<()> {
    dealt_with(lab, || {
        lab.sh(&format!("xenstore-write {back}/{name} {value}"))?;
        Ok(())
    })?;
    expect(lab, back, &[(name, value)])
}

/// A toolstack that waits for a device's end only so long leaves its keys, state Closing, for good.
fn keys_left(lab: &Lab<'_>) -> Result<()> {
    lab.load("rust", "hide='(00:05.0)(00:0a.0)'")?;
    let options = GuestOptions {
        front: "rust",
        devices: &[NIC],
        ..GuestOptions::default()
    };
    let (guest, back) = connected_guest(lab, "left", &options)?;
    let change = |keys: &str| -> Result<()> {
        lab.sh(&format!("cd / && xenstore-write {keys} {back}/state 7"))?;
        connected(lab, &back)
    };
    let add = |number: u32, device: &str| {
        change(&format!(
            "{back}/dev-{number} {device} {back}/state-{number} 1 {back}/num_devs {}",
            number + 1
        ))
    };
    change(&format!("{back}/state-0 5"))?;
    guest.until("[ $(lspci | wc -l) = 0 ]", 20)?;
    // The place of the first is free, so it is given again.
    add(1, EDU)?;
    expect(lab, &back, &[("state-1", "3"), ("vdev-1", "0000:00:00.00")])?;
    let edu = "00:00.0 1234:11e8";
    guest.until("[ $(lspci | wc -l) = 1 ]", 20)?;
    ensure!(seen(&guest)? == [edu], "{:?}", seen(&guest)?);
    guest.sh("echo same >/sys/bus/pci/devices/0000:00:00.0/driver_override")?;
    // The first one itself, anew, while its old keys are still there.
    add(2, NIC)?;
    expect(lab, &back, &[("state-2", "3"), ("vdev-2", "0000:00:01.00")])?;
    guest.until("[ $(lspci | wc -l) = 2 ]", 20)?;
    let both = [edu, "00:01.0 8086:10d3"];
    ensure!(seen(&guest)? == both, "{:?}", seen(&guest)?);
    // It was not taken away in between, on either side.
    guest.sh("grep -qx same /sys/bus/pci/devices/0000:00:00.0/driver_override")?;
    lab.sh(&format!("[ $(grep -c assigned {DRIVER}/status) = 2 ]"))?;
    super::start_nic(&guest)?;
    // A toolstack that gives up waiting takes the keys away without a word, and lists the device again later.
    lab.sh(&format!(
        "cd / && xenstore-write {back}/num_devs 2 && for k in dev state vdev; do xenstore-rm {back}/$k-2; done"
    ))?;
    add(2, NIC)?;
    expect(lab, &back, &[("state-2", "3"), ("vdev-2", "0000:00:01.00")])?;
    ensure!(seen(&guest)? == both, "{:?}", seen(&guest)?);
    // It can still go.
    change(&format!("{back}/state-1 5"))?;
    guest.until("[ $(lspci | wc -l) = 1 ]", 20)?;
    lab.machine
        .until(&format!("grep -q '^{EDU} available' {DRIVER}/status"), 30)?;
    ensure!(seen(&guest)? == [both[1]], "{:?}", seen(&guest)?);
    guest.destroy_with_many()
}

fn one_bad(lab: &Lab<'_>) -> Result<()> {
    // Nothing of what is found below is of an earlier case.
    lab.sh("dmesg -c >>/var/log/dmesg.all; xenstore-rm /local/domain/0/error 2>/dev/null; true")?;
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)'")?;
    let options = GuestOptions {
        front: lab.front,
        devices: &[NIC],
        ..GuestOptions::default()
    };
    let (guest, back) = connected_guest(lab, "bad", &options)?;
    super::start_nic(&guest)?;
    // xl refuses such devices itself, so the keys are written as it would write them.
    for (number, device) in [(1, "0000:00:0b.0"), (2, "zz"), (3, EDU)] {
        lab.sh(&format!(
            "cd / && for k in 'dev-{number} {device}' 'state-{number} 1'; do set -- $k; xenstore-write {back}/$1 $2; done"
        ))?;
    }
    lab.sh(&format!(
        "xenstore-write {back}/num_devs 4 && xenstore-write {back}/state 7"
    ))?;
    connected(lab, &back)?;
    expect(
        lab,
        &back,
        &[
            ("state-0", "3"),
            ("state-1", "6"),
            ("state-2", "6"),
            ("state-3", "3"),
            ("vdev-3", "0000:00:01.00"),
            ("vdev-1", ""),
        ],
    )?;
    let log = lab.sh("dmesg | grep 'xen-pciback pci-'")?;
    for part in [
        "0000:00:0b.0",
        "not bound to pciback",
        "dev-2: expected a hex number",
    ] {
        ensure!(log.contains(part), "{part:?} is not in: {log}");
    }
    let error = error_node(lab, &back)?;
    ensure!(error.contains("not exported"), "in the store: {error:?}");
    ensure!(seen(&guest)?.len() == 2, "{:?}", seen(&guest)?);
    let ping = guest.sh("ping -c 2 -W 10 10.0.2.2")?;
    ensure!(ping.contains("2 packets received"), "{ping}");
    // The toolstack knows only what it wrote itself.
    lab.sh(&format!(
        "xenstore-write {back}/num_devs 1; for n in 1 2 3; do for k in dev state vdev; do xenstore-rm {back}/$k-$n; done; done"
    ))?;
    guest.destroy_with_many()
}

fn bad_list(lab: &Lab<'_>) -> Result<()> {
    const UNREADABLE: &str = "Error reading number of devices";
    lab.load(lab.back, "hide='(00:05.0)'")?;
    let options = GuestOptions {
        front: "none",
        ..GuestOptions::default()
    };
    let guest = lab.machine.guest("list", &options)?;
    let domid = lab.machine.xl("domid list")?.trim().to_owned();
    for (devid, keys, said) in [
        ("7", "online=1", UNREADABLE),
        ("8", "online=1 num_devs=abc", UNREADABLE),
        ("9", "online=1 num_devs=4294967297", UNREADABLE),
        (
            "10",
            "online=1 num_devs=99999",
            "99999 devices are more than can be",
        ),
    ] {
        let back = format!("/local/domain/0/backend/pci/{domid}/{devid}");
        let front = format!("/local/domain/{domid}/device/pci/{devid}");
        let writes: Vec<String> = keys
            .split(' ')
            .filter_map(|k| k.split_once('='))
            .map(|(k, v)| format!("xenstore-write {back}/{k} {v}"))
            .collect();
        lab.sh(&format!(
            "xenstore-write {front}/backend {back} {front}/backend-id 0 {front}/state 1 && {} &&
             xenstore-write {back}/frontend {front} {back}/frontend-id {domid} {back}/state 1",
            writes.join(" && ")
        ))?;
        lab.machine
            .until(&format!("[ \"$(xenstore-read {back}/state)\" = 5 ]"), 20)
            .with_context(|| format!("num_devs of {devid}"))?;
        let error = error_node(lab, &back)?;
        // As the bus code writes it: an error number and a text.
        ensure!(
            error.starts_with(|c: char| c.is_ascii_digit()) && error.contains(said),
            "{keys}: in the store: {error:?}"
        );
        // The end, as the toolstack makes it.
        lab.sh(&format!("xenstore-rm {front} && xenstore-rm {back}"))?;
        lab.machine.until(
            &format!("! test -e /sys/bus/xen-backend/devices/pci-{domid}-{devid}"),
            20,
        )?;
    }
    guest.destroy()
}

fn passthrough(lab: &Lab<'_>) -> Result<()> {
    let behind = super::aer::nic(lab)?;
    let behind = behind.as_str();
    lab.load(
        lab.back,
        &format!("hide='(00:05.0)({behind})(00:0a.0)' passthrough=1"),
    )?;
    let options = GuestOptions {
        front: lab.front,
        devices: &[NIC, behind, EDU],
        ..GuestOptions::default()
    };
    let (guest, back) = connected_guest(lab, "host", &options)?;
    let bus = &behind[..7];
    let virtual_text = |host: &str| host.replace(".0", ".00");
    expect(
        lab,
        &back,
        &[
            ("vdev-0", &virtual_text(NIC)),
            ("vdev-1", &virtual_text(behind)),
            ("vdev-2", &virtual_text(EDU)),
            ("root_num", "2"),
            ("root-0", "0000:00"),
            ("root-1", bus),
        ],
    )?;
    guest.until("[ $(lspci | wc -l) = 3 ]", 30)?;
    let list = seen(&guest)?;
    let short = |host: &str| host[5..].to_owned();
    ensure!(
        list == [
            format!("{} 8086:10d3", short(NIC)),
            format!("{} 1234:11e8", short(EDU)),
            format!("{} 8086:10d3", short(behind)),
        ],
        "{list:?}"
    );
    guest.destroy_with_many()
}

fn no_frontend(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let options = GuestOptions {
        front: "none",
        devices: &[NIC],
        ..GuestOptions::default()
    };
    {
        let round = "alone";
        let guest = lab.machine.guest(round, &options)?;
        let back = backend(lab, &guest)?;
        expect(
            lab,
            &back,
            &[
                ("state", "3"),
                ("state-0", "3"),
                ("vdev-0", "0000:00:00.00"),
            ],
        )?;
        let domid = lab.machine.xl(&format!("domid {round}"))?.trim().to_owned();
        lab.sh(&format!(
            "grep -q '^{NIC} assigned {domid} reset=done' {DRIVER}/status"
        ))?;
        // What the toolstack does for a guest whose device model has the function.
        lab.sh(&format!("printf {NIC} >{DRIVER}/do_flr"))?;
        guest.destroy()?;
        lab.machine.until(
            &format!("grep -q '^{NIC} available reset=done' {DRIVER}/status"),
            30,
        )?;
        // The toolstack gave up on a backend that never connected, and left its keys.
        lab.machine.until(
            &format!("! xenstore-exists {}", back.trim_end_matches("/0")),
            20,
        )?;
    }
    let guest = lab.nic_guest("next")?;
    super::start_nic(&guest)?;
    guest.destroy()
}

fn thirty_three(lab: &Lab<'_>) -> Result<()> {
    // One function of each device: 40 devices.
    let all = lab.sh("lspci -n -d 1234:11e8 | cut -d' ' -f1 | sed 's/^/0000:/' | grep '[.]0$'")?;
    let all: Vec<&str> = all.lines().collect();
    ensure!(all.len() >= 34, "{} devices", all.len());
    let hide = format!("({})", all.join(")("));
    lab.load(lab.back, &format!("hide='{hide}'"))?;
    let options = GuestOptions {
        front: lab.front,
        devices: &all[..32],
        ..GuestOptions::default()
    };
    let (guest, back) = connected_guest(lab, "full", &options)?;
    guest.until("[ $(lspci | wc -l) = 32 ]", 120)?;
    // One more than the virtual bus has slots.
    let last = all[32];
    let answer = lab
        .machine
        .ask(&format!("xl pci-attach {} {last} 2>&1", guest.name), 60)?;
    connected(lab, &back)?;
    expect(lab, &back, &[("state-32", "6")])?;
    let log = lab.sh("dmesg | grep '32 slots are taken'")?;
    ensure!(log.contains(last), "{log} (xl: {})", answer.output);
    ensure!(seen(&guest)?.len() == 32, "{} seen", seen(&guest)?.len());
    lab.machine
        .until(&format!("grep -q '^{last} available' {DRIVER}/status"), 20)?;
    guest.sh("lspci -xxx >/dev/null")?;
    guest.destroy_with_many()?;
    // The refused one is free for another guest.
    let other = GuestOptions {
        devices: &[last],
        ..options
    };
    let (guest, _) = connected_guest(lab, "other", &other)?;
    guest.until("[ $(lspci | wc -l) = 1 ]", 20)?;
    guest.destroy_with_many()
}

fn hundreds(lab: &Lab<'_>) -> Result<()> {
    let all = lab.sh("lspci -n -d 1234:11e8 | cut -d' ' -f1 | sed 's/^/0000:/'")?;
    let count = all.lines().count();
    ensure!(count >= 200, "{count} functions");
    lab.load(lab.back, "")?;
    lab.sh(&format!(
        "lspci -n -d 1234:11e8 | while read d rest; do
           printf 0000:$d >{DRIVER}/new_slot && printf 0000:$d >{DRIVER}/bind || exit 1; done"
    ))?;
    for file in ["slots", "status", "irq_handlers"] {
        let lines = lab.sh(&format!("wc -l <{DRIVER}/{file}"))?;
        ensure!(lines.trim() == count.to_string(), "{file}: {lines}");
    }
    let functions = lab.sh(&format!("grep -c 1234:11e8 {DRIVER}/quirks"))?;
    ensure!(functions.trim() == count.to_string(), "quirks: {functions}");
    say!("    {count} functions seized and listed");
    lab.sh(&format!("rmmod xen_pciback && ! test -e {DRIVER}"))?;
    Ok(())
}
