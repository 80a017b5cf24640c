// SPDX-License-Identifier: GPL-2.0

//! The files of `/sys/bus/pci/drivers/pciback`: names, modes and formats are those that toolstacks
//! know (behaviour, section 2).

use crate::{function, registry};
use kernel::{prelude::*, str::CStr};
use pciif::{
    slot::{parse_slot, SlotPattern},
    text::Printable,
};
use xen::{
    log::Show,
    sysfs::{Attribute, Page, Raw},
};

/// All files.
pub(crate) static ALL: &[Raw] = &[
    Raw::of::<NewSlot>(),
    Raw::of::<RemoveSlot>(),
    Raw::of::<Slots>(),
    Raw::of::<Permissive>(),
];

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

    fn show(page: &mut Page<'_>) -> Result {
        let mut all = true;
        registry::for_each_slot(|address| {
            all = page.line(fmt!("{}", Show(address)));
            all
        });
        if !all {
            pr_warn!("slots: more addresses than one read can return\n");
        }
        Ok(())
    }
}

/// Functions whose guest may write all of the configuration space; writing an address adds one. Ends
/// with the assignment.
struct Permissive;

impl Attribute for Permissive {
    const NAME: &'static CStr = c"permissive";
    const MODE: u16 = 0o644;

    fn show(page: &mut Page<'_>) -> Result {
        registry::for_each_function(|function| {
            if function.is_permissive() {
                page.line(fmt!("{}", Show(function.address())));
            }
        });
        Ok(())
    }

    fn store(text: &[u8]) -> Result {
        let pattern = parse(Self::NAME, text, ENODEV)?;
        let (Some(address), true) = (pattern.addresses().next(), pattern.func.is_some()) else {
            pr_err!("permissive: one function is wanted, not a pattern\n");
            return Err(EINVAL);
        };
        match registry::find_function(address) {
            Some(function) => {
                function::set_permissive(&function);
                Ok(())
            }
            None => {
                pr_err!("permissive: {} is not bound to pciback\n", Show(address));
                Err(ENODEV)
            }
        }
    }
}
