// SPDX-License-Identifier: GPL-2.0

//! Recovery from errors of the PCIe hierarchy (AER): what is asked of a guest, what it may answer,
//! and what the host's PCI core is told (behaviour, section 5.5).
//!
//! # The frontend's side
//!
//! The backend writes a message into the error slot, sets its flag and waits; the frontend runs the
//! bound driver's error handler, writes a verdict into the same slot and clears the flag. Messages
//! come from another domain: what is no message gets the verdict that ends recovery, and no handler
//! is called for it.
//!
//! # The backend's side
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
//! | says none to the last step, where a handler gives no verdict | the step's default | no |
//! | says none otherwise, disconnect, no driver, or a number that is no answer | the step's default | yes |
//! | has no handler, is not connected, or does not answer in time | the step's default | yes |

use crate::sbdf::Sbdf;
use crate::wire::AER_WORDS;

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
            6 if matches!(state, 1..=3) => Some(Step::Detected(ChannelState::from_number(state))),
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

    /// From what a driver's handler returned; a number that is no verdict gives the function up.
    pub const fn from_handler(result: u32) -> Self {
        // CAST: numbers above the verdicts stay above them, or become negative.
        match Self::from_wire(result as i32) {
            Some(verdict) => verdict,
            None => Verdict::Disconnect,
        }
    }

    /// What holds when the driver has no handler for a step. A driver that does not hear of errors
    /// at all casts no vote, which ends recovery. One that does, but has nothing to do at a later
    /// step, is content with it, as the PCI core itself takes it.
    pub const fn without_handler(step: Step) -> Self {
        match step {
            Step::Detected(_) => Verdict::None,
            Step::MmioEnabled | Step::SlotReset | Step::Resume => Verdict::Recovered,
        }
    }

    /// The number, for the kernel and for the page.
    pub const fn number(self) -> u32 {
        self as u32
    }
}

/// A message, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorMessage {
    /// The function, as the guest addresses it.
    pub sbdf: Sbdf,
    /// What has happened.
    pub step: Step,
}

impl ErrorMessage {
    /// Checks the words of the error slot: command, channel state, segment, bus, devfn. `None` for
    /// what is no message.
    pub fn parse(words: &[u32; AER_WORDS]) -> Option<Self> {
        let [command, state, segment, bus, devfn] = *words;
        Some(Self {
            sbdf: Sbdf::from_wire(segment, bus, devfn)?,
            step: Step::from_wire(command, state)?,
        })
    }

    /// The words of the error slot, as [`Self::parse`] takes them.
    pub fn to_words(self) -> [u32; AER_WORDS] {
        [
            self.step.command(),
            self.step.channel_state().number(),
            u32::from(self.sbdf.segment),
            u32::from(self.sbdf.bus),
            u32::from(self.sbdf.devfn.raw()),
        ]
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
            // A driver's handler of this step gives no verdict.
            Some(Verdict::None) if matches!(step, Step::Resume) => (default, false),
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
            let sbdf = Sbdf::new(1, 2, 3, 4).unwrap();
            let message = ErrorMessage { sbdf, step };
            assert_eq!(ErrorMessage::parse(&message.to_words()), Some(message));
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
                    let is_verdict = (step, number) == (Step::Resume, 1);
                    assert_eq!(decision.failed, !is_verdict);
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

    #[test]
    fn messages_are_those_of_the_protocol_and_nothing_else() {
        let at = Sbdf::new(0, 0, 3, 1).unwrap();
        let parse = |command, state| ErrorMessage::parse(&[command, state, 0, 0, 0x19]);
        let is = |step| Some(ErrorMessage { sbdf: at, step });
        assert_eq!(parse(6, 1), is(Step::Detected(ChannelState::Normal)));
        assert_eq!(parse(6, 2), is(Step::Detected(ChannelState::Frozen)));
        assert_eq!(
            parse(6, 3),
            is(Step::Detected(ChannelState::PermanentFailure))
        );
        assert_eq!(parse(7, 0), is(Step::Resume));
        assert_eq!(parse(8, 77), is(Step::MmioEnabled));
        assert_eq!(parse(9, u32::MAX), is(Step::SlotReset));
        for command in (0..6).chain([10, 255, u32::MAX]) {
            assert_eq!(parse(command, 1), None);
        }
        for state in [0, 4, u32::MAX] {
            assert_eq!(parse(6, state), None);
        }
    }

    #[test]
    fn message_about_a_place_that_cannot_exist_is_none() {
        for (segment, bus, devfn) in [
            (0x10000, 0, 0),
            (0, 256, 0),
            (0, 0, 256),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            assert_eq!(ErrorMessage::parse(&[7, 1, segment, bus, devfn]), None);
        }
    }

    #[test]
    fn verdicts_have_their_numbers_and_strangers_give_up() {
        for number in 1..=6 {
            assert_eq!(Verdict::from_handler(number).number(), number);
        }
        for number in [0, 7, 0x7fff_ffff, u32::MAX] {
            assert_eq!(Verdict::from_handler(number), Verdict::Disconnect);
        }
    }
}
