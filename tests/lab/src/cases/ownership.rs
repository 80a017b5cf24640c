// SPDX-License-Identifier: GPL-2.0

//! Whose a function is: its guest's until that is gone or the toolstack has taken it back (S9).

use super::{
    start_nic,
    xenbus::{backend, connected},
    Case, Ends, Lab, DRIVER,
};
use crate::machine::{Guest, EDU, NIC, SMP};
use anyhow::{ensure, Context, Result};

pub const CASES: &[Case] = &[
    Case {
        name: "a_function_is_its_guests_until_that_ends_or_the_toolstack_takes_it_back",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: orders,
    },
    Case {
        name: "a_guest_that_does_not_answer_leaves_no_function_and_no_keys",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: silent,
    },
    Case {
        name: "a_backend_that_is_unbound_in_dom0_frees_no_function",
        ends: Ends::RustBackend,
        profile: &SMP,
        run: unbound,
    },
];

/// What happens to a guest with a function, or to the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// The frontend's state becomes 0.
    Mute,
    /// The frontend's directory goes.
    Vanish,
    /// The function is unbound from pciback in dom0, and bound again.
    Rebind,
    /// `xl pci-detach`
    Detach,
    /// `xl destroy`
    Destroy,
}

use Act::{Destroy, Detach, Mute, Rebind, Vanish};

/// All orders of the three that can come before `xl destroy`, the shorter ones where the frontend's end is
/// followed by it, and what can come after it. Each order's guest has the function that the one before left.
const ORDERS: &[&[Act]] = &[
    &[Mute, Rebind, Detach, Destroy],
    &[Vanish, Destroy, Rebind],
    &[Rebind, Detach, Mute, Destroy],
    &[Mute, Destroy],
    &[Vanish, Detach, Rebind, Destroy],
    &[Rebind, Vanish, Detach, Destroy],
    &[Detach, Vanish, Rebind, Destroy],
    &[Detach, Rebind, Mute, Destroy],
    &[Rebind, Mute, Destroy],
    &[Vanish, Rebind, Destroy],
];

/// The toolstack waits ten seconds for a backend that does not come.
const PATIENCE: f64 = 10.0;

/// A guest with the NIC, as dom0 sees it.
struct Owner<'a, 'b> {
    lab: &'b Lab<'a>,
    name: String,
    domid: String,
    /// Its backend's directory.
    back: String,
    front: String,
    /// It still has the NIC.
    has_it: bool,
    gone: bool,
}

impl Owner<'_, '_> {
    /// Does it; gives the seconds of dom0 that the toolstack needed.
    fn suffers(&mut self, act: Act) -> Result<Option<f64>> {
        let (lab, front) = (self.lab, &self.front);
        let xl = match act {
            Act::Mute => {
                lab.sh(&format!("cd / && xenstore-write {front}/state 0"))?;
                None
            }
            Act::Vanish => {
                lab.sh(&format!("cd / && xenstore-rm {front} 2>/dev/null; true"))?;
                None
            }
            Act::Rebind => {
                lab.sh(&format!(
                    "printf {NIC} >{DRIVER}/unbind && ! grep -q '^{NIC}' {DRIVER}/status && printf {NIC} >{DRIVER}/bind"
                ))?;
                None
            }
            Act::Detach => Some(format!("pci-detach {} {NIC}", self.name)),
            Act::Destroy => Some(format!("destroy {}", self.name)),
        };
        let Some(xl) = xl else { return Ok(None) };
        self.has_it = false;
        self.gone |= act == Act::Destroy;
        let begun = uptime(lab)?;
        let output = lab.machine.xl(&xl)?;
        let took = uptime(lab)? - begun;
        ensure!(
            !output.contains("not ready") && took < PATIENCE,
            "the toolstack waited, {took:.1} s: {output}"
        );
        Ok(Some(took))
    }

    /// dom0's files and the store say whose the NIC is.
    fn told(&self) -> Result<()> {
        let (lab, domid, back) = (self.lab, &self.domid, &self.back);
        let expected = match self.has_it {
            true => format!("assigned {domid}"),
            false => "available".to_owned(),
        };
        lab.machine
            .until(&format!("grep -q '^{NIC} {expected} ' {DRIVER}/status"), 20)?;
        let directory = back.trim_end_matches("/0");
        let store = match self.has_it {
            // What a toolstack waits for before it takes anything away.
            true => {
                format!("[ \"$(xenstore-read {back}/state {back}/dev-0 | xargs)\" = '4 {NIC}' ]")
            }
            false => format!("! xenstore-exists {directory}"),
        };
        lab.machine.until(&store, 20)
    }

    /// The NIC is put on another guest's list, as a toolstack would that does not know better.
    fn refused_to(&self, other: &str) -> Result<()> {
        let (lab, domid) = (self.lab, &self.domid);
        lab.sh(&format!(
            "dmesg -c >>/var/log/dmesg.all
             cd / && xenstore-write {other}/dev-1 {NIC} {other}/state-1 1 {other}/num_devs 2 {other}/state 7"
        ))?;
        lab.machine.until(
            &format!("[ \"$(xenstore-read {other}/state {other}/state-1 | xargs)\" = '4 6' ]"),
            30,
        )?;
        lab.sh(&format!(
            "dmesg | grep -q '{NIC} is assigned to domain {domid}' && xenstore-rm {other}/dev-1 {other}/state-1 &&
               xenstore-write {other}/num_devs 1"
        ))?;
        Ok(())
    }
}

/// Seconds of dom0.
fn uptime(lab: &Lab<'_>) -> Result<f64> {
    Ok(lab.sh("cut -d' ' -f1 /proc/uptime")?.trim().parse()?)
}

/// A guest that is connected to the NIC.
fn owner<'a, 'b>(lab: &'b Lab<'a>, name: &str) -> Result<(Guest<'a>, Owner<'a, 'b>)> {
    let guest = lab.nic_guest(name)?;
    let back = backend(lab, &guest)?;
    connected(lab, &back)?;
    guest.until("lspci -n | grep -q 8086:10d3", 30)?;
    let domid = lab.machine.xl(&format!("domid {name}"))?.trim().to_owned();
    let owner = Owner {
        lab,
        name: name.to_owned(),
        front: format!("/local/domain/{domid}/device/pci/0"),
        domid,
        back,
        has_it: true,
        gone: false,
    };
    owner.told()?;
    Ok((guest, owner))
}

fn orders(lab: &Lab<'_>) -> Result<()> {
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)'")?;
    let bystander = lab.guest("bystander", &[EDU])?;
    let other = backend(lab, &bystander)?;
    connected(lab, &other)?;
    // `make test` takes the first three, in which each of them comes.
    let few = lab.counts.rounds.saturating_mul(3);
    for (number, order) in ORDERS.iter().take(few).enumerate() {
        let (guest, mut owner) = owner(lab, &format!("owner{number}"))
            .with_context(|| format!("the guest of order {order:?}"))?;
        let mut seconds = Vec::new();
        for act in *order {
            let what = || format!("{act:?} in {order:?}");
            if let Some(took) = owner.suffers(*act).with_context(what)? {
                seconds.push(format!("{act:?} {took:.1} s"));
            }
            owner.told().with_context(what)?;
            if owner.has_it {
                owner.refused_to(&other).with_context(what)?;
            }
            if !owner.gone {
                guest.sh("true").with_context(what)?;
            }
        }
        say!("    {order:?}: {}", seconds.join(", "));
    }
    let (guest, mut last) = owner(lab, "last")?;
    start_nic(&guest)?;
    last.suffers(Destroy)?;
    last.told()?;
    // The bystander has noticed nothing.
    let read = bystander.sh("lspci -n")?;
    ensure!(read.contains("1234:11e8"), "{read}");
    bystander.destroy()
}

/// The toolstack gives up on a guest that does not run, and leaves the backend's directory.
fn silent(lab: &Lab<'_>) -> Result<()> {
    lab.load_with_nic()?;
    let (_guest, mut first) = owner(lab, "silent")?;
    lab.machine.xl("pause silent")?;
    let begun = uptime(lab)?;
    let output = lab.machine.xl("destroy silent")?;
    let took = uptime(lab)? - begun;
    say!(
        "    xl destroy of a paused guest: {took:.1} s, {}",
        output.trim()
    );
    // At once: the backend may not have heard of the end yet.
    let (guest, second) = owner(lab, "second")?;
    start_nic(&guest)?;
    first.has_it = false;
    let left = first.back.trim_end_matches("/0");
    lab.machine
        .until(&format!("! xenstore-exists {left}"), 20)
        .context("keys are left")?;
    second.told()?;
    guest.destroy()
}

/// The administrator takes the driver off the backend's device, not off the function.
fn unbound(lab: &Lab<'_>) -> Result<()> {
    const BACKENDS: &str = "/sys/bus/xen-backend/drivers/xen-pciback";
    lab.load(lab.back, "hide='(00:05.0)(00:0a.0)'")?;
    let bystander = lab.guest("bystander", &[EDU])?;
    let other = backend(lab, &bystander)?;
    connected(lab, &other)?;
    let is_told = |owner: &Owner<'_, '_>, state: &str| {
        lab.machine
            .until(&format!("grep -q '^{NIC} {state} ' {DRIVER}/status"), 30)
            .with_context(|| owner.name.clone())
    };

    let (guest, first) = owner(lab, "rebound")?;
    let domid = &first.domid;
    let assigned = format!("assigned {domid}");
    lab.sh(&format!("echo pci-{domid}-0 >{BACKENDS}/unbind"))?;
    guest.until("[ $(lspci | wc -l) = 0 ]", 30)?;
    is_told(&first, &assigned)?;
    first.refused_to(&other)?;
    // Bound again, it is the same guest's, and clean.
    lab.sh(&format!("echo pci-{domid}-0 >{BACKENDS}/bind"))?;
    connected(lab, &first.back)?;
    is_told(&first, &assigned)?;
    guest.until("lspci -n | grep -q 8086:10d3", 30)?;
    start_nic(&guest)?;
    // An unbind that comes at any time of the start leaves Closed, whatever the work item was about to say (R9). The
    // frontend's back-off may keep it from connecting by then.
    for round in 0..8 {
        let state = lab.sh(&format!(
            "echo pci-{domid}-0 >{BACKENDS}/unbind
             echo pci-{domid}-0 >{BACKENDS}/bind; sleep 0.0{round}
             echo pci-{domid}-0 >{BACKENDS}/unbind; sleep 0.5
             xenstore-read {}/state; echo pci-{domid}-0 >{BACKENDS}/bind",
            first.back
        ))?;
        ensure!(state.trim() == "6", "round {round}: state {state}");
    }
    // Not while the backend still resets what it is to have again (docs/security.md, what is open, S9).
    is_told(&first, &assigned)?;
    // The toolstack takes the functions back while there is no driver.
    lab.sh(&format!("echo pci-{domid}-0 >{BACKENDS}/unbind"))?;
    is_told(&first, &assigned)?;
    let directory = first.back.trim_end_matches("/0");
    lab.sh(&format!("xenstore-rm {directory}"))?;
    is_told(&first, "available")?;
    lab.machine.xl("destroy rebound")?;
    // The toolstack of the last one was interrupted.
    lab.sh("xenstore-rm /libxl/pci/0000-00-05-0/domid 2>/dev/null; true")?;

    let (_guest, second) = owner(lab, "ended")?;
    lab.sh(&format!("echo pci-{}-0 >{BACKENDS}/unbind", second.domid))?;
    is_told(&second, &format!("assigned {}", second.domid))?;
    lab.machine.xl("destroy ended")?;
    is_told(&second, "available")?;
    let left = second.back.trim_end_matches("/0");
    lab.machine
        .until(&format!("! xenstore-exists {left}"), 20)?;
    let (guest, _) = owner(lab, "next")?;
    start_nic(&guest)?;
    guest.destroy()?;
    bystander.destroy()
}
