// SPDX-License-Identifier: GPL-2.0

//! dom0's own handler on the legacy interrupt line of a guest's function (behaviour, section 8).
//!
//! A line that a guest serves may also be dom0's. Linux switches a line off for good when nobody says
//! "that was mine" often enough; so while the guest uses the line, dom0 has a handler there that says
//! so. It is *on* while the guest has the function enabled, and *acknowledging* while the function
//! can really use its pin: not while MSI or MSI-X is on.
//!
//! A handler that no guest needs must not claim what is dom0's: it asks Xen once in many interrupts, and
//! falls *silent* when no guest has the line. A guest cannot wake it by switching MSI or the function on and
//! off: that would be a line in the log each time, and claims on a line that is not the guest's. It wakes
//! when Xen says that a guest has the line, which it asks as seldom, by the administrator's hand, and with
//! the next assignment. So there is one line about it in an assignment.
//!
//! Two rules a reader may look for: a request for MSI that fails changes nothing here; and whoever
//! ends MSI without having begun it changes nothing either, unless the handler is on.

/// The handler's state, of which `irq_handlers` shows the first two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intx {
    /// The handler is on the line.
    pub on: bool,
    /// It claims the line's interrupts.
    pub acking: bool,
    /// It has found that no guest has the line, and does not claim for anything that the guest does.
    pub silent: bool,
    /// MSI or MSI-X is on, as far as the handler was told.
    pub messages: bool,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest gets the function.
    Assigned,
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
    /// Xen says that no guest shares the line, so nobody else would claim its interrupts wrongly.
    NotShared,
    /// Xen says that a guest shares it.
    Shared,
    /// The administrator wrote the function to `irq_handler_state`.
    Toggled,
}

impl Intx {
    /// Not there.
    pub const OFF: Intx = Intx {
        on: false,
        acking: false,
        silent: false,
        messages: false,
    };

    /// The state after an event.
    #[must_use]
    pub const fn after(self, event: Event) -> Self {
        let Intx {
            on,
            acking,
            silent,
            messages,
        } = self;
        match event {
            // One that the administrator has put there stays.
            Event::Assigned => Intx {
                on,
                acking: on && (acking || silent),
                silent: false,
                messages: false,
            },
            Event::Enabled { messages: false } if !on => Intx {
                on: true,
                acking: !silent,
                silent,
                messages: false,
            },
            Event::Enabled { .. } => self,
            Event::Disabled => Intx {
                on: false,
                acking: false,
                silent,
                messages,
            },
            Event::MessagesOn => Intx {
                on,
                acking: false,
                silent,
                messages: true,
            },
            Event::MessagesOff => Intx {
                on,
                acking: on && !silent,
                silent,
                messages: false,
            },
            Event::NotShared => Intx {
                on,
                acking: false,
                silent: silent || acking,
                messages,
            },
            Event::Shared => Intx {
                on,
                acking: acking || (on && silent && !messages),
                silent: false,
                messages,
            },
            Event::Toggled => Intx {
                on: !on,
                acking: !on,
                silent: false,
                messages,
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
        silent: false,
        messages: false,
    };
    /// With MSI.
    const QUIET: Intx = Intx {
        on: true,
        acking: false,
        silent: false,
        messages: true,
    };
    const SILENT: Intx = Intx {
        on: true,
        acking: false,
        silent: true,
        messages: false,
    };
    const EVENTS: [Event; 9] = [
        Event::Assigned,
        Event::Enabled { messages: false },
        Event::Enabled { messages: true },
        Event::Disabled,
        Event::MessagesOn,
        Event::MessagesOff,
        Event::NotShared,
        Event::Shared,
        Event::Toggled,
    ];

    #[test]
    fn check_18_off_then_acking_then_silent_with_msi() {
        let state = Intx::default();
        assert_eq!(state, Intx::OFF);
        let state = state.after(Event::Enabled { messages: false });
        assert_eq!(state, ON);
        let state = state.after(Event::MessagesOn);
        assert_eq!(state, QUIET);
        assert_eq!(state.after(Event::MessagesOff), ON);
        let state = state.after(Event::Disabled);
        assert!(!state.on && !state.acking);
    }

    #[test]
    fn enabling_again_does_not_wake_a_silent_handler() {
        for messages in [false, true] {
            assert_eq!(QUIET.after(Event::Enabled { messages }), QUIET);
        }
        let state = Intx::OFF.after(Event::Enabled { messages: true });
        assert_eq!(state, Intx::OFF);
    }

    #[test]
    fn nothing_claims_a_line_without_being_on_it() {
        for first in EVENTS {
            for second in EVENTS {
                for third in EVENTS {
                    let state = Intx::OFF.after(first).after(second).after(third);
                    assert!(state.on || !state.acking, "{first:?} {second:?} {third:?}");
                    assert!(!(state.acking && state.silent));
                }
            }
        }
    }

    /// S7.
    #[test]
    fn nothing_that_a_guest_does_wakes_a_silent_handler() {
        let of_a_guest = [
            Event::Enabled { messages: false },
            Event::Enabled { messages: true },
            Event::Disabled,
            Event::MessagesOn,
            Event::MessagesOff,
        ];
        let mut states = std::vec![ON.after(Event::NotShared)];
        assert_eq!(states[0], SILENT);
        // All that it can reach.
        let mut at = 0;
        while at < states.len() {
            for event in of_a_guest {
                let next = states[at].after(event);
                assert!(next.silent && !next.acking, "{event:?}");
                if !states.contains(&next) {
                    states.push(next);
                }
            }
            at += 1;
        }
        for state in states {
            let woken = state.after(Event::Shared);
            assert_eq!(woken.acking, state.on && !state.messages);
            let next = state.after(Event::Assigned);
            assert!(!next.silent && next.acking == next.on);
            assert!(!state.after(Event::Toggled).silent);
        }
    }

    #[test]
    fn one_that_does_not_claim_does_not_fall_silent() {
        assert_eq!(QUIET.after(Event::NotShared), QUIET);
        assert_eq!(QUIET.after(Event::Shared), QUIET);
        assert_eq!(Intx::OFF.after(Event::NotShared), Intx::OFF);
    }

    #[test]
    fn the_administrator_toggles() {
        assert_eq!(Intx::OFF.after(Event::Toggled), ON);
        assert_eq!(ON.after(Event::Toggled), Intx::OFF);
        assert_eq!(SILENT.after(Event::Toggled), Intx::OFF);
        assert_eq!(SILENT.after(Event::Toggled).after(Event::Toggled), ON);
    }
}
