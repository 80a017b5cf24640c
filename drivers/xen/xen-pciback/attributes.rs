// SPDX-License-Identifier: GPL-2.0

//! The files of `/sys/bus/pci/drivers/pciback`: names, modes and formats are those that toolstacks
//! know (behaviour, section 2); `do_flr` and `status` are additions.
//!
//! None of them cuts its text: see [`xen::sysfs`].

use crate::{
    function::{Busy, Function, Grant},
    registry,
};
use kernel::{prelude::*, str::CStr, sync::Arc};
use pciif::{
    lifecycle::Lifecycle,
    quirk::parse_quirk,
    slot::{parse_slot, SlotPattern},
    text::Printable,
};
use xen::{
    log::Show,
    sysfs::{Attribute, Group, Raw, Window},
};

static ALL: &[Raw] = &[
    Raw::of::<NewSlot>(),
    Raw::of::<RemoveSlot>(),
    Raw::of::<Slots>(),
    Raw::of::<IrqHandlers>(),
    Raw::of::<IrqHandlerState>(),
    Raw::of::<Quirks>(),
    Raw::of::<Permissive>(),
    Raw::of::<AllowInterruptControl>(),
    Raw::of::<DoFlr>(),
    Raw::of::<Status>(),
];

/// All files.
pub(crate) static FILES: Group = Group::new(ALL);

/// What was written, as addresses; says why it is refused. An address that cannot exist is one that
/// is not there: `absent` is the file's error for that.
fn parse(file: &CStr, text: &[u8], absent: Error) -> Result<SlotPattern> {
    parse_slot(text).map_err(|e| {
        // Enough to recognise what was written.
        let start = text.get(..64).unwrap_or(text);
        pr_err!("{}: \"{}\": {}\n", file, Show(Printable(start)), Show(e));
        if e.is_range() {
            absent
        } else {
            EINVAL
        }
    })
}

/// The one function that was written; `absent` when it is not bound to us.
fn parse_function(file: &CStr, text: &[u8], absent: Error) -> Result<Arc<Function>> {
    let pattern = parse(file, text, absent)?;
    let (Some(address), true) = (pattern.addresses().next(), pattern.func.is_some()) else {
        pr_err!("{}: one function is wanted, not a pattern\n", file);
        return Err(EINVAL);
    };
    registry::find_function(address).ok_or_else(|| {
        pr_err!("{}: {} is not bound to pciback\n", file, Show(address));
        absent
    })
}

/// Adds addresses to `slots`; binds nothing.
struct NewSlot;

impl Attribute for NewSlot {
    const NAME: &'static CStr = c"new_slot";
    const MODE: u16 = 0o200;

    fn store(text: &[u8]) -> Result {
        registry::add_slots(&parse(Self::NAME, text, EINVAL)?)
    }
}

/// Removes addresses from `slots`; unbinds nothing.
struct RemoveSlot;

impl Attribute for RemoveSlot {
    const NAME: &'static CStr = c"remove_slot";
    const MODE: u16 = 0o200;

    fn store(text: &[u8]) -> Result {
        match registry::remove_slots(&parse(Self::NAME, text, ENOENT)?) {
            0 => Err(ENOENT),
            _ => Ok(()),
        }
    }
}

/// The addresses, one in a line, in the order in which they were added.
struct Slots;

impl Attribute for Slots {
    const NAME: &'static CStr = c"slots";
    const MODE: u16 = 0o444;

    fn show(window: &mut Window<'_>) -> Result {
        registry::for_each_slot(|address| window.line(fmt!("{}", Show(address))));
        Ok(())
    }
}

/// dom0's handler on the interrupt line of each function, and how many interrupts it claimed.
struct IrqHandlers;

impl Attribute for IrqHandlers {
    const NAME: &'static CStr = c"irq_handlers";
    const MODE: u16 = 0o444;

    fn show(window: &mut Window<'_>) -> Result {
        registry::for_each_function(|function| {
            let handler = function.acknowledger();
            let state = handler.state();
            window.line(fmt!(
                "{}:{}:{}ing:{}",
                Show(function.address()),
                if state.on { "on" } else { "off" },
                if state.acking { "ack" } else { "not ack" },
                handler.count()
            ))
        });
        Ok(())
    }
}

/// Puts the handler on the line, or takes it off.
struct IrqHandlerState;

impl Attribute for IrqHandlerState {
    const NAME: &'static CStr = c"irq_handler_state";
    const MODE: u16 = 0o200;

    fn store(text: &[u8]) -> Result {
        let function = parse_function(Self::NAME, text, ENOENT)?;
        function.toggle_handler().inspect_err(|e| {
            pr_err!(
                "{}: {} gets no handler on its interrupt line: {:?}\n",
                Self::NAME,
                Show(function.address()),
                e
            )
        })
    }
}

/// The registers of each function with a rule of their own, or `busy` for one that is being reset; writing
/// opens one more to its guest, until the assignment ends.
struct Quirks;

impl Attribute for Quirks {
    const NAME: &'static CStr = c"quirks";
    const MODE: u16 = 0o644;

    fn show(window: &mut Window<'_>) -> Result {
        for function in registry::functions(|_| true)?.iter().rev() {
            let (address, dev) = (function.address(), function.device());
            let ((vendor, device), (subvendor, subdevice)) = (dev.ids(), dev.subsystem_ids());
            let mut fits = window.line(fmt!("{:02x}:{}", address.bus, Show(address.devfn)))
                && window.line(fmt!(
                    "\t{vendor:04x}:{device:04x}:{subvendor:04x}:{subdevice:04x}"
                ));
            if fits {
                let shown = function.for_each_field(|field| {
                    fits = window.line(fmt!("\t\t{}", Show(field)));
                    fits
                });
                if let Err(Busy) = shown {
                    fits = window.line(fmt!("\t\tbusy"));
                }
            }
            if !fits {
                break;
            }
        }
        Ok(())
    }

    fn store(text: &[u8]) -> Result {
        let start = Show(Printable(text.get(..64).unwrap_or(text)));
        let line = parse_quirk(text).map_err(|e| {
            pr_err!("quirks: \"{}\": {}\n", start, Show(e));
            if e.is_absent_function() {
                ENODEV
            } else {
                EINVAL
            }
        })?;
        let function = registry::find_function(line.address).ok_or_else(|| {
            pr_err!("quirks: {} is not bound to pciback\n", Show(line.address));
            ENODEV
        })?;
        function.add_quirk(line.quirk).map_err(|refusal| {
            pr_err!("quirks: \"{}\": {}\n", start, Show(refusal));
            EINVAL
        })
    }
}

/// Lists the functions with a grant.
fn show_grant(window: &mut Window<'_>, grant: Grant) -> Result {
    registry::for_each_function(|function| {
        !function.may(grant) || window.line(fmt!("{}", Show(function.address())))
    });
    Ok(())
}

/// Gives a function a grant; with a `-` before its address, takes it away.
fn store_grant(file: &CStr, text: &[u8], grant: Grant) -> Result {
    let text = text.trim_ascii_start();
    let (on, address) = match text.strip_prefix(b"-") {
        Some(address) => (false, address),
        None => (true, text),
    };
    parse_function(file, address, ENODEV)?.set_grant(grant, on);
    Ok(())
}

/// Functions whose guest may write all of the configuration space. Ends with the assignment.
struct Permissive;

impl Attribute for Permissive {
    const NAME: &'static CStr = c"permissive";
    const MODE: u16 = 0o644;

    fn show(window: &mut Window<'_>) -> Result {
        show_grant(window, Grant::Permissive)
    }

    fn store(text: &[u8]) -> Result {
        store_grant(Self::NAME, text, Grant::Permissive)
    }
}

/// Functions whose guest may switch interrupts through configuration space. Ends with the
/// assignment.
struct AllowInterruptControl;

impl Attribute for AllowInterruptControl {
    const NAME: &'static CStr = c"allow_interrupt_control";
    const MODE: u16 = 0o644;

    fn show(window: &mut Window<'_>) -> Result {
        show_grant(window, Grant::InterruptControl)
    }

    fn store(text: &[u8]) -> Result {
        store_grant(Self::NAME, text, Grant::InterruptControl)
    }
}

/// Resets a function by the best method there is. Toolstacks try this file before sysfs' `reset`.
struct DoFlr;

impl Attribute for DoFlr {
    const NAME: &'static CStr = c"do_flr";
    const MODE: u16 = 0o200;

    fn store(text: &[u8]) -> Result {
        let function = parse_function(Self::NAME, text, ENODEV)?;
        let result = function.reset_for_admin();
        let dev = function.device().as_generic();
        match result {
            Ok(()) => dev_info!(dev, "was reset\n"),
            Err(ENOTTY) => dev_warn!(
                dev,
                "has no way to be reset, and its bus has functions that are not free\n"
            ),
            Err(e) => dev_warn!(dev, "could not be reset ({:?})\n", e),
        }
        result
    }
}

/// Each function: whose it is, and what came of its last reset.
struct Status;

impl Attribute for Status {
    const NAME: &'static CStr = c"status";
    const MODE: u16 = 0o444;

    fn show(window: &mut Window<'_>) -> Result {
        for function in registry::functions(|_| true)?.iter().rev() {
            let (state, domid) = match function.owner() {
                Lifecycle::Available => ("available", None),
                Lifecycle::Assigned { domid } => ("assigned", Some(domid)),
                Lifecycle::Releasing { domid } => ("releasing", Some(domid)),
                Lifecycle::Quarantined { .. } => ("quarantined", None),
                Lifecycle::Gone => continue,
            };
            let address = Show(function.address());
            let reset = Show(function.last_reset());
            let fits = match domid {
                Some(domid) => window.line(fmt!("{address} {state} {domid} reset={reset}")),
                None => window.line(fmt!("{address} {state} reset={reset}")),
            };
            if !fits {
                break;
            }
        }
        Ok(())
    }
}
