// SPDX-License-Identifier: GPL-2.0

//! dom0's own handler on the legacy interrupt line of a guest's function (behaviour, section 8).
//!
//! A line that a guest serves may also be dom0's. Linux switches a line off for good when nobody says
//! "that was mine" often enough; so while the guest uses the line, dom0 has a handler there that says
//! so. It is *on* while the guest has the function enabled, and *acknowledging* while the function
//! can really use its pin: not while MSI or MSI-X is on.
//!
//! Two rules a reader may look for: a request for MSI that fails changes nothing here; and whoever
//! ends MSI without having begun it changes nothing either, unless the handler is on.

/// The handler's state, as the `irq_handlers` file shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intx {
    /// The handler is on the line.
    pub on: bool,
    /// It claims the line's interrupts.
    pub acking: bool,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has enabled the function; `messages`: MSI or MSI-X is on.
    Enabled {
        /// MSI or MSI-X is on.
        messages: bool,
    },
    /// The guest has disabled it, or it is taken back.
    Disabled,
    /// MSI or MSI-X was switched on.
    MessagesOn,
    /// MSI or MSI-X was switched off.
    MessagesOff,
    /// No guest shares the line, so nobody else would claim its interrupts wrongly.
    NotShared,
    /// The administrator wrote the function to `irq_handler_state`.
    Toggled,
}

impl Intx {
    /// Not there.
    pub const OFF: Intx = Intx {
        on: false,
        acking: false,
    };

    /// The state after an event.
    #[must_use]
    pub const fn after(self, event: Event) -> Self {
        match event {
            Event::Enabled { messages: false } if !self.on => Intx {
                on: true,
                acking: true,
            },
            Event::Enabled { .. } => self,
            Event::Disabled => Intx::OFF,
            Event::MessagesOn | Event::NotShared => Intx {
                on: self.on,
                acking: false,
            },
            Event::MessagesOff => Intx {
                on: self.on,
                acking: self.on,
            },
            Event::Toggled => Intx {
                on: !self.on,
                acking: !self.on,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: Intx = Intx {
        on: true,
        acking: true,
    };
    const SILENT: Intx = Intx {
        on: true,
        acking: false,
    };

    #[test]
    fn check_18_off_then_acking_then_silent_with_msi() {
        let state = Intx::default();
        assert_eq!(state, Intx::OFF);
        let state = state.after(Event::Enabled { messages: false });
        assert_eq!(state, ON);
        let state = state.after(Event::MessagesOn);
        assert_eq!(state, SILENT);
        assert_eq!(state.after(Event::MessagesOff), ON);
        assert_eq!(state.after(Event::Disabled), Intx::OFF);
    }

    #[test]
    fn enabling_again_does_not_wake_a_silent_handler() {
        for messages in [false, true] {
            assert_eq!(SILENT.after(Event::Enabled { messages }), SILENT);
        }
        let state = Intx::OFF.after(Event::Enabled { messages: true });
        assert_eq!(state, Intx::OFF);
    }

    #[test]
    fn nothing_claims_a_line_without_being_on_it() {
        let events = [
            Event::Enabled { messages: false },
            Event::Enabled { messages: true },
            Event::Disabled,
            Event::MessagesOn,
            Event::MessagesOff,
            Event::NotShared,
            Event::Toggled,
        ];
        for first in events {
            for second in events {
                for third in events {
                    let state = Intx::OFF.after(first).after(second).after(third);
                    assert!(state.on || !state.acking, "{first:?} {second:?} {third:?}");
                }
            }
        }
    }

    #[test]
    fn the_administrator_toggles() {
        assert_eq!(Intx::OFF.after(Event::Toggled), ON);
        assert_eq!(ON.after(Event::Toggled), Intx::OFF);
        assert_eq!(SILENT.after(Event::Toggled), Intx::OFF);
    }
}
