// SPDX-License-Identifier: GPL-2.0

//! dom0's own handler on the legacy interrupt line of a guest's function (behaviour, section 8).
//!
//! A line that a guest serves may also be dom0's. Linux switches a line off for good when nobody says
//! "that was mine" often enough; so while the guest uses the line, dom0 has a handler there that says
//! so. It is *on* while the guest has the function enabled, and *acknowledging* while the function
//! can really use its pin: not while MSI or MSI-X is on.
//!
//! The handler goes to the line when a guest first enables the function, and leaves it when the assignment
//! ends. A guest that disables the function only has it no longer shown as on: else each switch of decode
//! would request or free an interrupt, with locks, and perhaps a line of the kernel, each time. For the same
//! reason a line that cannot be had is not asked for again in that assignment.
//!
//! A handler that no guest needs must not claim what is dom0's: it asks Xen once in many interrupts, and
//! falls *silent* when no guest has the line. And one that nobody in dom0 needs must not cost dom0 what the
//! guest likes: when the line is busy and no other driver of dom0 is on it, the handler *leaves*, also one that
//! is silent, for which the kernel would switch the line off with a trace. It masks the line at once, as the work item
//! that takes it off may not run before the interrupts end: a domain with one virtual CPU does nothing else then. A guest
//! cannot wake it by switching MSI or the function on and off: that would be a line in the log each time,
//! and claims on a line that is not the guest's. A silent one wakes when Xen says that a guest has the line,
//! which it asks as seldom; both begin anew by the administrator's hand, and with the next assignment.
//!
//! Two rules a reader may look for: a request for MSI that fails changes nothing here; and whoever
//! ends MSI without having begun it changes nothing either, unless the handler is on.

/// In how many interrupts the handler looks once whether it is still needed.
pub const LOOK_EVERY: u32 = 1000;
/// A line is busy when so many interrupts come in less than this many ns. A handler that leaves a line which
/// only the guest uses takes nothing from the guest, so this may be what a fast device really needs.
const BUSY_NS: u64 = 1_000_000_000;

/// What the handler finds when it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Xen delivers the line to a guest, too.
    pub guest_has_it: bool,
    /// No other driver of dom0 is on the line.
    pub alone: bool,
    /// ns since it looked last: the time of [`LOOK_EVERY`] interrupts.
    pub took: u64,
}

impl Look {
    /// What that means for the handler.
    #[must_use]
    pub const fn event(self) -> Event {
        match self {
            Self {
                alone: true, took, ..
            } if took < BUSY_NS => Event::Left,
            Self {
                guest_has_it: false,
                ..
            } => Event::NotShared,
            _ => Event::Shared,
        }
    }
}

/// The handler's state, of which `irq_handlers` shows the first two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intx {
    /// The handler is on the line, and the guest has the function enabled.
    pub on: bool,
    /// It claims the line's interrupts for a guest that has the function enabled.
    pub acking: bool,
    /// It has found that no guest has the line, or has left it, and does not claim for anything that the guest
    /// does.
    pub silent: bool,
    /// MSI or MSI-X is on, as far as the handler was told.
    pub messages: bool,
    /// The handler is on the line.
    pub held: bool,
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
    /// The guest has disabled it.
    Disabled,
    /// It is taken back.
    Released,
    /// MSI or MSI-X was switched on.
    MessagesOn,
    /// MSI or MSI-X was switched off.
    MessagesOff,
    /// Xen says that no guest shares the line, so nobody else would claim its interrupts wrongly.
    NotShared,
    /// Xen says that a guest shares it.
    Shared,
    /// The line is busy and the handler is of no use there, or it could not be put there.
    Left,
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
        held: false,
    };

    /// Whether an interrupt is claimed. While the handler is on the line that is also so when the guest has
    /// disabled the function: its pin may still be active, and the line may be dom0's, too.
    #[must_use]
    pub const fn claims(self) -> bool {
        self.held && (self.acking || (!self.on && !self.silent && !self.messages))
    }

    /// The state after an event.
    #[must_use]
    pub const fn after(self, event: Event) -> Self {
        let Intx {
            on,
            acking,
            silent,
            messages,
            held,
        } = self;
        match event {
            // One that the administrator has put there stays.
            Event::Assigned => Intx {
                on,
                acking: on,
                silent: false,
                messages: false,
                held: on,
            },
            Event::Enabled { messages: false } if !on && (held || !silent) => Intx {
                on: true,
                acking: !silent,
                silent,
                messages: false,
                held: true,
            },
            Event::Enabled { .. } => self,
            Event::Disabled => Intx {
                on: false,
                acking: false,
                ..self
            },
            Event::Released => Self::OFF,
            Event::MessagesOn => Intx {
                acking: false,
                messages: true,
                ..self
            },
            Event::MessagesOff => Intx {
                acking: on && !silent,
                messages: false,
                ..self
            },
            Event::NotShared => Intx {
                acking: false,
                silent: silent || self.claims(),
                ..self
            },
            Event::Shared => Intx {
                acking: acking || (on && silent && !messages),
                silent: false,
                ..self
            },
            Event::Left => Intx {
                on: false,
                acking: false,
                silent: true,
                messages,
                held: false,
            },
            Event::Toggled => Intx {
                on: !on,
                acking: !on,
                silent: false,
                messages,
                held: !on,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const ON: Intx = Intx {
        on: true,
        acking: true,
        silent: false,
        messages: false,
        held: true,
    };
    /// With MSI.
    const QUIET: Intx = Intx {
        acking: false,
        messages: true,
        ..ON
    };
    const SILENT: Intx = Intx {
        acking: false,
        silent: true,
        ..ON
    };
    const OF_A_GUEST: [Event; 5] = [
        Event::Enabled { messages: false },
        Event::Enabled { messages: true },
        Event::Disabled,
        Event::MessagesOn,
        Event::MessagesOff,
    ];
    const OF_OTHERS: [Event; 6] = [
        Event::Assigned,
        Event::Released,
        Event::NotShared,
        Event::Shared,
        Event::Left,
        Event::Toggled,
    ];

    /// All states that these events lead to.
    fn reached(from: &[Intx], events: &[Event]) -> Vec<Intx> {
        let mut states = from.to_vec();
        let mut at = 0;
        while at < states.len() {
            for event in events {
                let next = states[at].after(*event);
                if !states.contains(&next) {
                    states.push(next);
                }
            }
            at += 1;
        }
        states
    }

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
        assert_eq!(state.after(Event::Released), Intx::OFF);
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
        let events = [&OF_A_GUEST[..], &OF_OTHERS].concat();
        let states = reached(&[Intx::OFF], &events);
        assert!(states.contains(&ON) && states.contains(&QUIET) && states.contains(&SILENT));
        for state in states {
            assert!(state.held || !state.on, "{state:?}");
            assert!(state.on || !state.acking, "{state:?}");
            assert!(!(state.claims() && (state.silent || !state.held)));
            assert!(state.claims() || !state.acking, "{state:?}");
        }
    }

    /// Each request or release of an interrupt takes locks that others need.
    #[test]
    fn a_guest_puts_the_handler_on_the_line_once_in_an_assignment() {
        let assigned = Intx::OFF.after(Event::Assigned);
        for state in reached(&[assigned], &OF_A_GUEST) {
            for event in OF_A_GUEST {
                let next = state.after(event);
                assert!(next.held || !state.held, "{state:?} {event:?}");
            }
        }
        // And not at all once it has left, or was not let on it.
        let left = [ON, QUIET, SILENT, Intx::OFF].map(|state| state.after(Event::Left));
        for state in reached(&left, &OF_A_GUEST) {
            assert!(!state.held && !state.on && !state.claims());
        }
        assert_eq!(left[0].after(Event::Assigned), Intx::OFF);
        assert_eq!(left[0].after(Event::Toggled), ON);
    }

    #[test]
    fn a_function_that_the_guest_has_disabled_does_not_stop_the_line() {
        let state = ON.after(Event::Disabled);
        assert!(state.claims() && !state.on);
        assert!(!state.after(Event::MessagesOn).claims());
        assert!(!state.after(Event::NotShared).claims());
    }

    /// S7.
    #[test]
    fn nothing_that_a_guest_does_wakes_a_silent_handler() {
        assert_eq!(ON.after(Event::NotShared), SILENT);
        for state in reached(&[SILENT], &OF_A_GUEST) {
            assert!(state.silent && !state.claims(), "{state:?}");
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
    fn a_busy_line_is_left_if_nobody_else_in_dom0_is_on_it() {
        let busy = Look {
            guest_has_it: true,
            alone: true,
            took: BUSY_NS - 1,
        };
        assert_eq!(busy.event(), Event::Left);
        let others = [
            Look {
                took: BUSY_NS,
                ..busy
            },
            Look {
                alone: false,
                ..busy
            },
        ];
        assert_eq!(others.map(Look::event), [Event::Shared; 2]);
        // Silent, it would have the kernel switch the line off, with a trace.
        let nobodys = |look| Look {
            guest_has_it: false,
            ..look
        };
        assert_eq!(nobodys(busy).event(), Event::Left);
        for look in others {
            assert_eq!(nobodys(look).event(), Event::NotShared);
        }
    }

    #[test]
    fn the_administrator_toggles() {
        assert_eq!(Intx::OFF.after(Event::Toggled), ON);
        assert_eq!(ON.after(Event::Toggled), Intx::OFF);
        assert_eq!(SILENT.after(Event::Toggled), Intx::OFF);
        assert_eq!(SILENT.after(Event::Toggled).after(Event::Toggled), ON);
    }
}
