// SPDX-License-Identifier: GPL-2.0

//! Error messages (AER) of the backend: the bound driver's handlers are run and the verdict is
//! given (behaviour, section 5.5).
//!
//! *Owns* nothing. *Caller*: the link's work item, one run at a time for each link; sleeps.
//! *Lock*: the function's device lock, held while its driver's handler runs. A handler uses the
//! function, so the transport's lock is taken and released inside it.

use crate::{bus, transport::Link};
use kernel::prelude::*;
use pciif::{
    aer::{ErrorMessage, Step, Verdict},
    wire,
};
use xen::{log::Show, pci::Device, recovery};

/// Byte offset of the verdict in the page: the second word of the error slot.
const VERDICT: usize = wire::AER + 4;

/// Serves the messages that are there, `most` at most. Gives how many there were.
pub(crate) fn serve(link: &Link, most: u32) -> u32 {
    let page = link.page();
    let mut served = 0;
    while served < most && link.is_usable() && page.flag(wire::FLAG_PCIB_ACTIVE) {
        let mut words = [0; wire::AER_WORDS];
        for (at, word) in words.iter_mut().enumerate() {
            *word = page.read(wire::AER + 4 * at);
        }
        let verdict = ErrorMessage::parse(&words).map_or(Verdict::None, |m| handle(link, m));
        page.write(VERDICT, verdict.number());
        page.clear_flag(wire::FLAG_PCIB_ACTIVE);
        link.notify();
        served += 1;
    }
    served
}

fn handle(link: &Link, message: ErrorMessage) -> Verdict {
    let Some(function) = Device::find(message.sbdf).filter(|f| bus::is_behind(f, link)) else {
        return Verdict::None;
    };
    // As for a driver without a handler: the backend gives such a function up.
    if !link.may_handle() {
        return Verdict::None;
    }
    if message.step == Step::SlotReset {
        bus::forget_constants(&function);
    }
    let verdict = recovery::run(&function, message.step);
    if let Some(left_out) = link.line() {
        dev_info!(
            function.as_generic(),
            "error recovery: {:?}, the driver says {:?}{}\n",
            message.step,
            verdict,
            Show(left_out)
        );
    }
    verdict
}
