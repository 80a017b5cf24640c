// SPDX-License-Identifier: GPL-2.0

//! Runs the error handlers of the driver that is bound to a function.
//!
//! What the PCI core does for errors of the host's own hardware, for errors that another domain
//! reports. Sleeps.

use crate::pci::Device;
use kernel::bindings;
use pciif::recovery::{ChannelState, Stage, Verdict};

/// Runs the handler for `stage` under the function's device lock, which must not be held. Every
/// handler may be missing, and so may the driver.
pub fn run(function: &Device, stage: Stage) -> Verdict {
    let _lock = function.lock();
    let dev = function.as_raw();
    // SAFETY: a live function; its driver can not change while the device lock is held.
    let driver = unsafe { (*dev).driver };
    if driver.is_null() {
        return Verdict::None;
    }
    // SAFETY: a bound driver is registered; its table of handlers is constant.
    let handlers = unsafe { (*driver).err_handler.as_ref() };
    let Some(handlers) = handlers else {
        return Verdict::without_handler(stage);
    };
    note_state(function, stage);
    // SAFETY: the handlers belong to the driver that is bound to `dev`, and are called as the
    // PCI core does it: in sleepable context, with the device lock held.
    let result = unsafe {
        match stage {
            Stage::Detected(state) => handlers
                .error_detected
                .map(|handler| handler(dev, state as bindings::pci_channel_state_t)),
            Stage::MmioEnabled => handlers.mmio_enabled.map(|handler| handler(dev)),
            Stage::SlotReset => handlers.slot_reset.map(|handler| handler(dev)),
            Stage::Resume => handlers.resume.map(|handler| {
                handler(dev);
                Verdict::Recovered.number()
            }),
        }
    };
    result.map_or(Verdict::without_handler(stage), Verdict::from_handler)
}

/// Notes what drivers ask with `pci_channel_offline`. A function that is lost stays so.
fn note_state(function: &Device, stage: Stage) {
    let state = match stage {
        Stage::Detected(state) => state,
        Stage::MmioEnabled => return,
        Stage::SlotReset | Stage::Resume => ChannelState::Normal,
    };
    // SAFETY: a live function. The field is one word that the core, too, writes while others read it;
    // writers hold the device lock.
    unsafe {
        let field = &raw mut (*function.as_raw()).error_state;
        if field.read_volatile() != ChannelState::PermanentFailure as u32 {
            field.write_volatile(state as bindings::pci_channel_state_t);
        }
    }
}
