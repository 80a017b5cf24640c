// SPDX-License-Identifier: GPL-2.0

//! Who owns a seized function: one state per function, one table for all that can happen to it.
//!
//! ```text
//!                Assign(d)              Release                  Released(Ok)
//!  Available ───────────────▶ Assigned ─────────▶ Releasing ───────────────────▶ Available
//!      ▲                          │                   │
//!      │ ClearQuarantine          │ Unbind            │ Released(Err(why))
//!      └───────── Quarantined ◀───┼───────────────────┘
//!                                 ▼
//!   Unbind from every state ───▶ Gone
//! ```
//!
//! Who may send which event:
//!
//! | event | sender | under |
//! |---|---|---|
//! | [`Event::Assign`] | the xenbus side of a guest that exports it; the binding, for a guest that had it before | the function's lock |
//! | [`Event::Release`] | the same xenbus side: unplug, guest gone, module unloaded; the next guest's, if the domain has ended | the lock |
//! | [`Event::Released`] | the worker that [`Effect::StartRelease`] started, once | the lock |
//! | [`Event::Unbind`] | the PCI core taking the driver off; it cannot be refused | the lock |
//! | [`Event::ClearQuarantine`] | the host's administrator | the lock |
//!
//! The effect is what the sender has to do after it dropped the lock; a reset takes up to seconds
//! and never runs under it, nor in the thread that serves xenbus.

use core::fmt::{self, Display, Formatter};

/// Why a function could not be made clean after a guest had it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetFailure {
    /// The reset failed.
    Reset,
    /// There is no way to reset it, and the administrator insists on one.
    NoMethod,
    /// The saved configuration could not be written back.
    Restore,
    /// The function did not come to rest in time.
    Timeout,
}

impl Display for ResetFailure {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResetFailure::Reset => "the reset failed",
            ResetFailure::NoMethod => "it has no way to be reset",
            ResetFailure::Restore => "the saved state could not be restored",
            ResetFailure::Timeout => "the function did not come to rest in time",
        })
    }
}

/// Where a function is in its life with this driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifecycle {
    /// Seized, clean, nobody has it.
    Available,
    /// A guest has it.
    Assigned {
        /// The guest.
        domid: u16,
    },
    /// Taken back; its worker is resetting it.
    Releasing {
        /// The guest that had it.
        domid: u16,
    },
    /// Not clean, so no guest gets it: it might carry traces of the last one.
    Quarantined {
        /// What went wrong.
        why: ResetFailure,
    },
    /// No longer ours. The end: what is seized again later starts a new life.
    Gone,
}

/// What can happen to a function. The module text says who sends what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Give it to this guest.
    Assign(u16),
    /// Take it back.
    Release,
    /// The worker has finished taking it back.
    Released(Result<(), ResetFailure>),
    /// The driver is taken off.
    Unbind,
    /// The administrator declares it clean.
    ClearQuarantine,
}

/// What the sender of an event does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Record the guest as owner and start its view of the function afresh.
    HandOver {
        /// The guest.
        domid: u16,
    },
    /// Start the worker: no more operations, interrupts and bus master off, reset, restore. It ends
    /// with [`Event::Released`].
    StartRelease {
        /// The guest that loses it.
        domid: u16,
    },
    /// Wake those who wait for the function.
    BecameAvailable,
    /// Say so in the log, and wake those who wait so that they give up.
    BecameQuarantined {
        /// What went wrong.
        why: ResetFailure,
    },
    /// Give it back to the host: it is clean already, or nothing more can be done for it.
    GiveBack,
    /// A guest still has it: say so in the log, take it back as the worker would, then give it
    /// back.
    TakeBackAndGiveBack {
        /// The guest that loses it.
        domid: u16,
    },
    /// Wait for the worker, then give it back.
    AwaitWorkerAndGiveBack {
        /// The guest that had it.
        domid: u16,
    },
}

/// Why an event does not fit the state, which is then as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A guest has it.
    AssignedTo {
        /// That guest.
        domid: u16,
    },
    /// It is being taken back from a guest: an assignment may wait for that, within a bound.
    StillReleasing {
        /// That guest.
        domid: u16,
    },
    /// It is not clean.
    Quarantined {
        /// What went wrong.
        why: ResetFailure,
    },
    /// No guest has it.
    NotAssigned,
    /// Nobody is taking it back.
    NotReleasing,
    /// It is not quarantined.
    NotQuarantined,
    /// It is no longer ours.
    Gone,
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::AssignedTo { domid } => write!(f, "assigned to domain {domid}"),
            Refusal::StillReleasing { domid } => {
                write!(f, "still being taken back from domain {domid}")
            }
            Refusal::Quarantined { why } => write!(f, "quarantined: {why}"),
            Refusal::NotAssigned => f.write_str("not assigned to a domain"),
            Refusal::NotReleasing => f.write_str("not being taken back"),
            Refusal::NotQuarantined => f.write_str("not quarantined"),
            Refusal::Gone => f.write_str("no longer bound to this driver"),
        }
    }
}

impl Lifecycle {
    /// Applies an event and says what its sender does next.
    ///
    /// # Errors
    ///
    /// A [`Refusal`], with the state unchanged.
    pub fn apply(&mut self, event: Event) -> Result<Effect, Refusal> {
        let (next, effect) = self.step(event)?;
        *self = next;
        Ok(effect)
    }

    fn step(self, event: Event) -> Result<(Lifecycle, Effect), Refusal> {
        use Lifecycle::{Assigned, Available, Gone, Quarantined, Releasing};
        Ok(match (self, event) {
            (Gone, _) => return Err(Refusal::Gone),

            (Available, Event::Assign(domid)) => (Assigned { domid }, Effect::HandOver { domid }),
            (Assigned { domid }, Event::Assign(_)) => return Err(Refusal::AssignedTo { domid }),
            (Releasing { domid }, Event::Assign(_)) => {
                return Err(Refusal::StillReleasing { domid })
            }
            (Quarantined { why }, Event::Assign(_)) => return Err(Refusal::Quarantined { why }),

            (Assigned { domid }, Event::Release) => {
                (Releasing { domid }, Effect::StartRelease { domid })
            }
            (Releasing { domid }, Event::Release) => return Err(Refusal::StillReleasing { domid }),
            (Available | Quarantined { .. }, Event::Release) => return Err(Refusal::NotAssigned),

            (Releasing { .. }, Event::Released(Ok(()))) => (Available, Effect::BecameAvailable),
            (Releasing { .. }, Event::Released(Err(why))) => {
                (Quarantined { why }, Effect::BecameQuarantined { why })
            }
            (Available | Assigned { .. } | Quarantined { .. }, Event::Released(_)) => {
                return Err(Refusal::NotReleasing)
            }

            (Available | Quarantined { .. }, Event::Unbind) => (Gone, Effect::GiveBack),
            (Assigned { domid }, Event::Unbind) => (Gone, Effect::TakeBackAndGiveBack { domid }),
            (Releasing { domid }, Event::Unbind) => {
                (Gone, Effect::AwaitWorkerAndGiveBack { domid })
            }

            (Quarantined { .. }, Event::ClearQuarantine) => (Available, Effect::BecameAvailable),
            (Available | Assigned { .. } | Releasing { .. }, Event::ClearQuarantine) => {
                return Err(Refusal::NotQuarantined)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const WHY: ResetFailure = ResetFailure::Reset;
    const STATES: [Lifecycle; 5] = [
        Lifecycle::Available,
        Lifecycle::Assigned { domid: 3 },
        Lifecycle::Releasing { domid: 3 },
        Lifecycle::Quarantined { why: WHY },
        Lifecycle::Gone,
    ];
    const EVENTS: [Event; 6] = [
        Event::Assign(5),
        Event::Release,
        Event::Released(Ok(())),
        Event::Released(Err(ResetFailure::Timeout)),
        Event::Unbind,
        Event::ClearQuarantine,
    ];

    /// The whole table, one line per state, one column per event of `EVENTS`.
    #[test]
    fn every_event_in_every_state_does_what_the_table_says() {
        use Effect::*;
        use Lifecycle::*;
        let quarantine = Quarantined {
            why: ResetFailure::Timeout,
        };
        let quarantined = BecameQuarantined {
            why: ResetFailure::Timeout,
        };
        let releasing = Err(Refusal::StillReleasing { domid: 3 });
        #[rustfmt::skip]
        let table = [
            // Available
            [Ok((Assigned { domid: 5 }, HandOver { domid: 5 })),
             Err(Refusal::NotAssigned),
             Err(Refusal::NotReleasing),
             Err(Refusal::NotReleasing),
             Ok((Gone, GiveBack)),
             Err(Refusal::NotQuarantined)],
            // Assigned
            [Err(Refusal::AssignedTo { domid: 3 }),
             Ok((Releasing { domid: 3 }, StartRelease { domid: 3 })),
             Err(Refusal::NotReleasing),
             Err(Refusal::NotReleasing),
             Ok((Gone, TakeBackAndGiveBack { domid: 3 })),
             Err(Refusal::NotQuarantined)],
            // Releasing
            [releasing,
             releasing,
             Ok((Available, BecameAvailable)),
             Ok((quarantine, quarantined)),
             Ok((Gone, AwaitWorkerAndGiveBack { domid: 3 })),
             Err(Refusal::NotQuarantined)],
            // Quarantined
            [Err(Refusal::Quarantined { why: WHY }),
             Err(Refusal::NotAssigned),
             Err(Refusal::NotReleasing),
             Err(Refusal::NotReleasing),
             Ok((Gone, GiveBack)),
             Ok((Available, BecameAvailable))],
            // Gone
            [Err(Refusal::Gone); 6],
        ];
        for (state, row) in STATES.into_iter().zip(table) {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                let mut after = state;
                let result = after.apply(event);
                assert_eq!(
                    result,
                    expected.map(|(_, effect)| effect),
                    "{state:?} {event:?}"
                );
                assert_eq!(
                    after,
                    expected.map_or(state, |(next, _)| next),
                    "{state:?} {event:?}"
                );
            }
        }
    }

    #[test]
    fn no_function_passes_from_guest_to_guest_without_a_release_that_succeeded() {
        // Walk all sequences of events up to a length that visits every edge.
        fn walk(state: Lifecycle, clean: bool, depth: u32) {
            if depth == 0 {
                return;
            }
            for event in EVENTS {
                let mut next = state;
                let Ok(effect) = next.apply(event) else {
                    continue;
                };
                if let Effect::HandOver { .. } = effect {
                    assert!(clean);
                }
                let clean = match (event, effect) {
                    (_, Effect::HandOver { .. }) => false,
                    (Event::Released(Ok(())) | Event::ClearQuarantine, _) => true,
                    _ => clean,
                };
                walk(next, clean, depth - 1);
            }
        }
        walk(Lifecycle::Available, true, 8);
    }

    #[test]
    fn unbind_is_never_refused_while_the_function_is_ours() {
        for mut state in STATES {
            let ours = state != Lifecycle::Gone;
            assert_eq!(state.apply(Event::Unbind).is_ok(), ours);
            assert_eq!(state, Lifecycle::Gone);
        }
    }

    #[test]
    fn refusals_name_the_reason() {
        let mut state = Lifecycle::Quarantined { why: WHY };
        let refusal = state.apply(Event::Assign(1)).unwrap_err();
        assert_eq!(refusal.to_string(), "quarantined: the reset failed");
        let mut state = Lifecycle::Assigned { domid: 7 };
        let refusal = state.apply(Event::Assign(1)).unwrap_err();
        assert_eq!(refusal.to_string(), "assigned to domain 7");
    }
}
