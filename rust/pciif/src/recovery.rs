// SPDX-License-Identifier: GPL-2.0

//! Error messages (AER) as the frontend hears and answers them (behaviour, section 5.5).
//!
//! The backend writes a message into the error slot, sets its flag and waits; the frontend runs the
//! bound driver's error handler, writes a verdict into the same slot and clears the flag. Messages
//! come from another domain: what is no message gets the verdict that ends recovery, and no handler
//! is called for it.

use crate::sbdf::Sbdf;
use crate::wire::AER_WORDS;

/// How the link to the function is, as the error code of the host numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ChannelState {
    /// Accesses work.
    Normal = 1,
    /// Accesses are blocked until a reset.
    Frozen = 2,
    /// The function is lost.
    PermanentFailure = 3,
}

/// Which of the driver's handlers a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// An error was found.
    Detected(ChannelState),
    /// Accesses work again, without a reset.
    MmioEnabled,
    /// The function was reset.
    SlotReset,
    /// Recovery is over.
    Resume,
}

/// A message, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorMessage {
    /// The function, as the guest addresses it.
    pub sbdf: Sbdf,
    /// What has happened.
    pub stage: Stage,
}

impl ErrorMessage {
    /// Checks the words of the error slot: command, channel state, segment, bus, devfn. `None` for
    /// what is no message.
    pub fn parse(words: &[u32; AER_WORDS]) -> Option<Self> {
        let [command, state, segment, bus, devfn] = *words;
        let stage = match command {
            6 => Stage::Detected(match state {
                1 => ChannelState::Normal,
                2 => ChannelState::Frozen,
                3 => ChannelState::PermanentFailure,
                _ => return None,
            }),
            7 => Stage::Resume,
            8 => Stage::MmioEnabled,
            9 => Stage::SlotReset,
            _ => return None,
        };
        Some(Self {
            sbdf: Sbdf::from_wire(segment, bus, devfn)?,
            stage,
        })
    }
}

/// The frontend's answer, with the number that it has on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// No vote: nobody takes care of the function.
    None = 1,
    /// The driver can recover without a reset.
    CanRecover = 2,
    /// The function needs a reset.
    NeedReset = 3,
    /// The driver gives the function up.
    Disconnect = 4,
    /// The function works again.
    Recovered = 5,
    /// The driver knows nothing of errors.
    NoAerDriver = 6,
}

impl Verdict {
    /// From what a driver's handler returned; a number that is no verdict gives the function up.
    pub const fn from_handler(result: u32) -> Self {
        match result {
            1 => Verdict::None,
            2 => Verdict::CanRecover,
            3 => Verdict::NeedReset,
            5 => Verdict::Recovered,
            6 => Verdict::NoAerDriver,
            _ => Verdict::Disconnect,
        }
    }

    /// The number on the page.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// What holds when the driver has no handler for a stage. A driver that does not hear of errors
    /// at all casts no vote, which ends recovery. One that does, but has nothing to do at a later
    /// stage, is content with it, as the PCI core itself takes it.
    pub const fn without_handler(stage: Stage) -> Self {
        match stage {
            Stage::Detected(_) => Verdict::None,
            Stage::MmioEnabled | Stage::SlotReset | Stage::Resume => Verdict::Recovered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol_and_nothing_else() {
        let at = Sbdf::new(0, 0, 3, 1).unwrap();
        let parse = |command, state| ErrorMessage::parse(&[command, state, 0, 0, 0x19]);
        let is = |stage| Some(ErrorMessage { sbdf: at, stage });
        assert_eq!(parse(6, 1), is(Stage::Detected(ChannelState::Normal)));
        assert_eq!(parse(6, 2), is(Stage::Detected(ChannelState::Frozen)));
        assert_eq!(
            parse(6, 3),
            is(Stage::Detected(ChannelState::PermanentFailure))
        );
        assert_eq!(parse(7, 0), is(Stage::Resume));
        assert_eq!(parse(8, 77), is(Stage::MmioEnabled));
        assert_eq!(parse(9, u32::MAX), is(Stage::SlotReset));
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
