// SPDX-License-Identifier: GPL-2.0

//! Recovery from errors of the PCIe hierarchy (AER): what is asked of a guest, what it may answer,
//! and what the host's PCI core is told (behaviour, section 5.5).
//!
//! The core walks over all functions below the port that saw the error, once for each [`Step`], and
//! merges the votes of their drivers. One vote reaches functions of other owners: so a guest's answer
//! only ever decides about its own functions.
//!
//! | the guest | vote | marked as failed |
//! |---|---|---|
//! | says that it can go on, or has recovered | as it says | no |
//! | wants a reset, and all functions below the port are its own | reset | no |
//! | wants a reset, and they are not | the step's default | no |
//! | says none, disconnect, no driver, or a number that is no answer | the step's default | yes |
//! | has no handler, is not connected, or does not answer in time | the step's default | yes |

/// How the link to a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelState {
    /// It works.
    Normal,
    /// Input and output are blocked.
    Frozen,
    /// The function is lost.
    PermanentFailure,
}

impl ChannelState {
    /// From the kernel's number (`pci_channel_state_t`); every other number is the worst.
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => ChannelState::Normal,
            2 => ChannelState::Frozen,
            _ => ChannelState::PermanentFailure,
        }
    }

    /// The kernel's number, which is also the one in the page.
    pub const fn number(self) -> u32 {
        match self {
            ChannelState::Normal => 1,
            ChannelState::Frozen => 2,
            ChannelState::PermanentFailure => 3,
        }
    }
}

/// A step of the recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An error was seen.
    Detected(ChannelState),
    /// Memory can be accessed again.
    MmioEnabled,
    /// The link was reset.
    SlotReset,
    /// All is over.
    Resume,
}

impl Step {
    /// The command in the page's error slot (`XEN_PCI_OP_aer_*`).
    pub const fn command(self) -> u32 {
        match self {
            Step::Detected(_) => 6,
            Step::Resume => 7,
            Step::MmioEnabled => 8,
            Step::SlotReset => 9,
        }
    }

    /// From the command and the state of a message; `None` for what is no message.
    pub const fn from_wire(command: u32, state: u32) -> Option<Self> {
        match command {
            6 => Some(Step::Detected(ChannelState::from_number(state))),
            7 => Some(Step::Resume),
            8 => Some(Step::MmioEnabled),
            9 => Some(Step::SlotReset),
            _ => None,
        }
    }

    /// The channel state that goes with the message.
    pub const fn channel_state(self) -> ChannelState {
        match self {
            Step::Detected(state) => state,
            _ => ChannelState::Normal,
        }
    }

    /// The vote for a function that has nothing to say: it does not stand in the way of others.
    pub const fn default_verdict(self) -> Verdict {
        match self {
            Step::Detected(_) => Verdict::CanRecover,
            _ => Verdict::Recovered,
        }
    }
}

/// A driver's vote, with the kernel's number (`pci_ers_result_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Nothing to say.
    None = 1,
    /// Can go on without a reset.
    CanRecover = 2,
    /// The link must be reset.
    NeedReset = 3,
    /// The function is lost.
    Disconnect = 4,
    /// Works again.
    Recovered = 5,
    /// There is no driver that could recover.
    NoDriver = 6,
}

impl Verdict {
    /// From the number in the page; `None` for what is no verdict.
    pub const fn from_wire(number: i32) -> Option<Self> {
        match number {
            1 => Some(Verdict::None),
            2 => Some(Verdict::CanRecover),
            3 => Some(Verdict::NeedReset),
            4 => Some(Verdict::Disconnect),
            5 => Some(Verdict::Recovered),
            6 => Some(Verdict::NoDriver),
            _ => None,
        }
    }

    /// The number, for the kernel and for the page.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// What came back from a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A number in the page.
    Number(i32),
    /// It has announced no handler.
    NoHandler,
    /// It has no connection, or ended it meanwhile.
    NotConnected,
    /// It does not answer.
    TimedOut,
}

/// What follows from an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The vote for the PCI core.
    pub verdict: Verdict,
    /// The guest cannot recover: said in the store and the log.
    pub failed: bool,
}

/// Decides by the table above. `alone`: all functions below the port belong to this guest.
pub const fn decide(step: Step, answer: Answer, alone: bool) -> Decision {
    let default = step.default_verdict();
    let (verdict, failed) = match answer {
        Answer::Number(number) => match Verdict::from_wire(number) {
            Some(verdict @ (Verdict::CanRecover | Verdict::Recovered)) => (verdict, false),
            Some(Verdict::NeedReset) if alone => (Verdict::NeedReset, false),
            Some(Verdict::NeedReset) => (default, false),
            Some(Verdict::None | Verdict::Disconnect | Verdict::NoDriver) | None => (default, true),
        },
        Answer::NoHandler | Answer::NotConnected | Answer::TimedOut => (default, true),
    };
    Decision { verdict, failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 6] = [
        Step::Detected(ChannelState::Normal),
        Step::Detected(ChannelState::Frozen),
        Step::Detected(ChannelState::PermanentFailure),
        Step::MmioEnabled,
        Step::SlotReset,
        Step::Resume,
    ];

    #[test]
    fn messages_round_trip_and_others_are_none() {
        for step in STEPS {
            let wire = (step.command(), step.channel_state().number());
            assert_eq!(Step::from_wire(wire.0, wire.1), Some(step));
        }
        for command in [0, 1, 2, 3, 4, 5, 10, u32::MAX] {
            assert_eq!(Step::from_wire(command, 1), None);
        }
    }

    #[test]
    fn check_80_what_is_no_verdict_counts_as_failed_and_votes_for_nobody_else() {
        for step in STEPS {
            for number in [i32::MIN, -1, 0, 1, 4, 6, 7, 0x7fff_ffff] {
                for alone in [false, true] {
                    let decision = decide(step, Answer::Number(number), alone);
                    assert_eq!(decision.verdict, step.default_verdict());
                    assert!(decision.failed);
                }
            }
        }
    }

    #[test]
    fn a_guest_never_loses_the_functions_of_others() {
        for step in STEPS {
            for number in -2..=9 {
                let verdict = decide(step, Answer::Number(number), false).verdict;
                assert!(matches!(verdict, Verdict::CanRecover | Verdict::Recovered));
            }
        }
    }

    #[test]
    fn a_sound_answer_is_passed_on() {
        let detected = Step::Detected(ChannelState::Frozen);
        let reset = |alone| decide(detected, Answer::Number(3), alone);
        assert_eq!(
            reset(true),
            Decision {
                verdict: Verdict::NeedReset,
                failed: false
            }
        );
        assert_eq!(
            reset(false),
            Decision {
                verdict: Verdict::CanRecover,
                failed: false
            }
        );
        let recovered = decide(Step::SlotReset, Answer::Number(5), false);
        assert_eq!(recovered.verdict, Verdict::Recovered);
        assert!(!recovered.failed);
    }

    #[test]
    fn silence_is_a_failure_that_lets_others_go_on() {
        for step in STEPS {
            for answer in [Answer::NoHandler, Answer::NotConnected, Answer::TimedOut] {
                let decision = decide(step, answer, true);
                assert_eq!(decision.verdict, step.default_verdict());
                assert!(decision.failed);
            }
        }
    }
}
