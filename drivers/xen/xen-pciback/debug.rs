// SPDX-License-Identifier: GPL-2.0

//! `xen-pciback/denied_writes` in debugfs: the writes of guests that were dropped; and
//! `xen-pciback/accounts`: what each guest has cost, and how often it was held back.
//!
//! *Owns* nothing but the files. *Callers*: readers, in sleepable context. *Lock*: each function's
//! `config`, if nobody has it for long, or each guest's account, one after the other.

use crate::{function::Busy, registry};
use kernel::{
    debugfs::{Dir, File},
    fmt,
    prelude::*,
};

/// The file; removed when dropped.
pub(crate) fn denied_writes(dir: &Dir) -> impl PinInit<File<()>> + '_ {
    dir.read_callback_file(c"denied_writes", (), &show)
}

fn show(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let functions = registry::functions(|_| true).map_err(|_| fmt::Error)?;
    writeln!(
        f,
        "# function offset size bits count: what to write to quirks"
    )?;
    for function in &functions {
        let address = function.address();
        let mut result = Ok(());
        let shown = function.for_each_denied(|entry| {
            result = result.and_then(|()| {
                write!(
                    f,
                    "{} {:#x} {} {:#x} {}",
                    address,
                    entry.offset(),
                    entry.width().bytes(),
                    entry.bits(),
                    entry.count()
                )?;
                match entry.quirk_line(address) {
                    Some(line) => writeln!(f, ": {}", line),
                    None => writeln!(f),
                }
            });
        });
        result?;
        match shown {
            Ok(0) => {}
            Ok(others) => writeln!(f, "{} elsewhere {}", address, others)?,
            Err(Busy) => writeln!(f, "# {} is busy", address)?,
        }
    }
    Ok(())
}

/// The file; removed when dropped.
pub(crate) fn accounts(dir: &Dir) -> impl PinInit<File<()>> + '_ {
    dir.read_callback_file(c"accounts", (), &show_accounts)
}

fn show_accounts(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for guest in &registry::guests().map_err(|_| fmt::Error)? {
        // A copy: the lock is not held for as long as text takes.
        let account = guest.account().lock().clone();
        writeln!(f, "domain={} {}", guest.domid, account)?;
    }
    Ok(())
}
