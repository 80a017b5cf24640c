// SPDX-License-Identifier: GPL-2.0

//! Runs the error handlers of the driver that is bound to a function.
//!
//! What the PCI core does for errors of the host's own hardware, for errors that another domain
//! reports. Sleeps.

use crate::{pci::Device, sys};
use kernel::bindings;
use pciif::aer::{ChannelState, Step, Verdict};

/// Runs the handler for `step` under the function's device lock, which must not be held. Every
/// handler may be missing, and so may the driver.
pub fn run(function: &Device, step: Step) -> Verdict {
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
        return Verdict::without_handler(step);
    };
    // As the core does it: a driver that was told that its function is lost hears nothing more.
    if is_lost(function) {
        return Verdict::Disconnect;
    }
    if !note_state(function, step) {
        return Verdict::Disconnect;
    }
    // SAFETY: the handlers belong to the driver that is bound to `dev`, and are called as the
    // PCI core does it: in sleepable context, with the device lock held.
    let result = unsafe {
        match step {
            Step::Detected(state) => handlers
                .error_detected
                .map(|handler| handler(dev, state.number() as bindings::pci_channel_state_t)),
            Step::MmioEnabled => handlers.mmio_enabled.map(|handler| handler(dev)),
            Step::SlotReset => handlers.slot_reset.map(|handler| handler(dev)),
            Step::Resume => handlers.resume.map(|handler| {
                handler(dev);
                Verdict::Recovered.number()
            }),
        }
    };
    result.map_or(Verdict::without_handler(step), Verdict::from_handler)
}

/// Notes what drivers ask with `pci_channel_offline`. `false` when the function was lost meanwhile: the core
/// finds that out in other threads, too.
fn note_state(function: &Device, step: Step) -> bool {
    let state = match step {
        Step::Detected(state) => state,
        Step::MmioEnabled => return !is_lost(function),
        Step::SlotReset | Step::Resume => ChannelState::Normal,
    };
    // CAST: the C enumeration has the same numbers.
    let state = state.number() as bindings::pci_channel_state_t;
    // SAFETY: `function` has a reference to it; the helper changes one word, by the core's own rules.
    unsafe { sys::pci_note_error_state(function.as_raw(), state) }
}

/// Whether a function was said to be lost.
fn is_lost(function: &Device) -> bool {
    // SAFETY: a live function; one word, which others may be changing.
    let state = unsafe { (&raw const (*function.as_raw()).error_state).read_volatile() };
    state == ChannelState::PermanentFailure.number()
}
