// SPDX-License-Identifier: GPL-2.0

//! The handshake over xenstore: the state of both ends decides what each does next (behaviour,
//! sections 4.2 to 4.4).
//!
//! The two functions here are asked again whenever either state may have changed, with the states
//! as they are now. They look at levels, not at edges, so that states that were passed through
//! unseen do no harm; carrying out an action twice in a row does not happen, because the action
//! changes a state or the link. A number that is no state counts as [`State::Unknown`].
//!
//! # Start, hot-plug and end
//!
//! ```text
//!  backend                      frontend
//!  2 InitWait     ── Export
//!  3 Initialised                1 Initialising   ── Publish
//!                               3 Initialised
//!                 ── Attach
//!  4 Connected                                   ── Connect
//!                               4 Connected
//!  7 Reconfiguring (toolstack)                   ── Detach
//!                               7 Reconfiguring
//!                 ── Reconfigure
//!  8 Reconfigured                                ── Rescan
//!                               4 Connected
//!                 ── Resume
//!  4 Connected
//!  5 Closing (toolstack, or after a fatal error) ── Close
//!                               6 Closed
//!                 ── Disconnect or Unregister
//!  6 Closed
//! ```
//!
//! # The backend's edges
//!
//! ```text
//!                  Export                  Attach                toolstack
//!   InitWait ────────────────▶ Initialised ──────▶ Connected ──────────────▶ Reconfiguring
//!      ▲                                            ▲                         │ Reconfigure
//!      │ Reconnect: front 1 or 3                    └── Resume ── Reconfigured ◀
//!      │ again, online
//!   Closed ◀──────── Disconnect: front 6 ──┐
//!                                          ├── from every state
//!   Closing ◀─────── Disconnect: front 5 ──┤
//!   (node gone) ◀─── Unregister: front 0 or 6, and not online
//!               ◀─── Sweep: front 0, and the domain has ended
//!   Connected ◀───── Hold: front 0 and the domain lives, from every state
//! ```
//!
//! Rules of the backend:
//!
//! * It never says Connected without an attached page, whatever the frontend says.
//! * A toolstack may write Reconfiguring at any moment. Where there is no connection yet, the list is
//!   followed when it is made. No state is written over one that the toolstack wrote meanwhile.
//! * A frontend that starts again finds its functions: from Closed, or when it restarts without
//!   having said goodbye (a new kernel by kexec), the backend goes back to InitWait and keeps them.
//!   It does not do so from Closing, which it enters itself after a fatal error: that would be
//!   tried for ever. A frontend that starts again says Closed to such a backend first.
//! * A guest cannot give its functions back by what it writes: it keeps what it has mapped. While its
//!   frontend says no state (Unknown, [`Remains`]), the functions stay its own, the toolstack's list is
//!   followed without the frontend, and the backend shows Connected, for which a toolstack waits before
//!   it takes anything away. It ends when the toolstack does not want the device any more or has removed
//!   the directory, and when the domain has ended. In the last case nobody else would remove the
//!   directory: a toolstack that is done with a domain does not come back.
//!
//! # The frontend's edges
//!
//! ```text
//!                  Publish               Connect             Detach
//!   Initialising ───────────▶ Initialised ──────▶ Connected ───────▶ Reconfiguring
//!                                   │ Detach          ▲                 │      ▲
//!                                   │                 └──── Rescan ─────┘      │
//!                                   └──────────────────────────────────────────┘
//!   Closed ◀── Close: backend 5 or 6, from every state but Closed; backend 0 once connected
//! ```
//!
//! Rules of the frontend:
//!
//! * It starts again by itself for a backend that closed it and is there again (its driver was
//!   unbound and bound).
//! * It publishes its page to a backend that is starting (Initialising, InitWait, Initialised). A
//!   backend in another state still has the link of an earlier frontend: writing Initialising and
//!   waiting makes it come back to InitWait. A backend that never comes back is the caller's to
//!   time out.
//! * A backend that vanished (Unknown) is one that is not there yet, until the frontend is
//!   connected.
//! * It follows a backend that starts again, or changes its list, only so often, see [`Followed`]: each
//!   start gives away a page, which the backend can keep, and each change is a scan.

use crate::bucket::{Bucket, Limit};

/// A xenbus state, with the number it has in xenstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// No state is readable.
    Unknown = 0,
    /// Starting.
    Initialising = 1,
    /// Waiting for the other end.
    InitWait = 2,
    /// Ready for the other end.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// About to end.
    Closing = 5,
    /// Ended.
    Closed = 6,
    /// The set of functions is changing.
    Reconfiguring = 7,
    /// The set of functions has changed.
    Reconfigured = 8,
}

impl State {
    /// Every state, in the order of their numbers.
    pub const ALL: [State; 9] = [
        State::Unknown,
        State::Initialising,
        State::InitWait,
        State::Initialised,
        State::Connected,
        State::Closing,
        State::Closed,
        State::Reconfiguring,
        State::Reconfigured,
    ];

    /// From a number; every number that is no state is [`State::Unknown`].
    pub const fn from_number(number: i32) -> Self {
        match number {
            1 => State::Initialising,
            2 => State::InitWait,
            3 => State::Initialised,
            4 => State::Connected,
            5 => State::Closing,
            6 => State::Closed,
            7 => State::Reconfiguring,
            8 => State::Reconfigured,
            _ => State::Unknown,
        }
    }

    /// The number in xenstore.
    pub const fn number(self) -> i32 {
        self as i32
    }
}

/// What the backend does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendAction {
    /// Nothing.
    Wait,
    /// Export every listed function whose `state-N` asks for it, publish addresses and roots; then,
    /// in InitWait, switch to Initialised. Functions that are exported already are left alone, so
    /// this also picks up what a toolstack adds while the guest starts.
    Export,
    /// Export and release functions by their `state-N`, as the list may have changed meanwhile; then
    /// map the frontend's page, bind its event channel and switch to Connected.
    Attach,
    /// Export and release functions by their `state-N`, then switch to Reconfigured.
    Reconfigure,
    /// Switch to Connected: the link is there.
    Resume,
    /// Take the link down, keep the functions, then switch to [`State::Closing`],
    /// [`State::Closed`], or stay in the present state.
    Disconnect {
        /// The state to switch to.
        then: State,
    },
    /// Take the link down if there is one, keep the functions and switch to InitWait: the frontend
    /// has started again.
    Reconnect,
    /// Export and release functions by their `state-N` if the own state asks for it, then switch to
    /// Connected: there is nobody who would have to agree.
    Hold,
    /// Take the link down if there is one, switch to Closed, give all functions back and
    /// unregister.
    Unregister,
    /// Take the link down if there is one, and remove the backend's directory, which the toolstack has
    /// left: the bus code ends the device then.
    Sweep,
}

/// What is left of the guest when its frontend says no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// The frontend's directory is there; it may use its page as before.
    Frontend,
    /// The directory is gone, and with it the frontend. The domain lives.
    Domain,
    /// The domain has ended.
    Nothing,
}

/// Decides for the backend: `own` state, the frontend's state, what remains of a guest whose frontend is
/// Unknown, whether the link (page and event channel) is up, and whether the toolstack wants the device
/// (its `online` key is not 0).
pub const fn backend_step(
    own: State,
    front: State,
    remains: Remains,
    link_up: bool,
    online: bool,
) -> BackendAction {
    use BackendAction as Do;
    match front {
        State::Unknown => match (own, remains) {
            // Not probed yet, or our own directory is gone: the bus code deals with both.
            (State::Unknown | State::Initialising, _) => Do::Wait,
            (_, Remains::Nothing) => Do::Sweep,
            // The toolstack has taken the device back.
            _ if !online => Do::Unregister,
            (_, Remains::Domain) if link_up => Do::Disconnect { then: own },
            (State::Connected, _) => Do::Wait,
            _ => Do::Hold,
        },
        State::Closed if !online => Do::Unregister,
        State::Closed => match own {
            State::Closed if !link_up => Do::Wait,
            // A new life of the backend, which the closed frontend has not seen yet.
            State::InitWait | State::Initialised if !link_up => Do::Export,
            _ => Do::Disconnect {
                then: State::Closed,
            },
        },
        State::Closing => match own {
            // Closed does not go back to Closing.
            State::Closed if link_up => Do::Disconnect {
                then: State::Closed,
            },
            State::Closing | State::Closed if !link_up => Do::Wait,
            _ => Do::Disconnect {
                then: State::Closing,
            },
        },
        State::Initialising
        | State::InitWait
        | State::Initialised
        | State::Connected
        | State::Reconfiguring
        | State::Reconfigured => match own {
            // Not probed yet, or our own directory is gone: the bus code deals with both.
            State::Unknown | State::Initialising => Do::Wait,
            State::InitWait => Do::Export,
            State::Initialised => match front {
                State::Initialised if link_up => Do::Resume,
                State::Initialised => Do::Attach,
                State::Initialising | State::InitWait => Do::Export,
                // A frontend that claims more than it can have: it has not published anything.
                _ => Do::Wait,
            },
            State::Connected | State::Reconfiguring | State::Reconfigured => match front {
                // A frontend cannot come back to its start while it is connected: it is a new one,
                // and the page of the old one may be in use for something else.
                State::Initialising if online => Do::Reconnect,
                State::Initialising => Do::Disconnect {
                    then: State::Closing,
                },
                // The toolstack's word stands where ours was before the connection was made: it saw
                // an earlier one, or did not look.
                State::Initialised | State::Reconfiguring
                    if matches!(own, State::Reconfiguring) && !link_up =>
                {
                    Do::Attach
                }
                // It began while we held the functions of a guest without a frontend, and may have taken
                // our state for the answer to what it had published.
                State::Initialised | State::Connected
                    if matches!(own, State::Connected) && !link_up =>
                {
                    Do::Attach
                }
                State::Reconfiguring if matches!(own, State::Reconfiguring) => Do::Reconfigure,
                State::Connected if matches!(own, State::Reconfigured) && link_up => Do::Resume,
                _ => Do::Wait,
            },
            // The toolstack's wish, or a fatal error: the frontend may use the link until it
            // closes.
            State::Closing => Do::Wait,
            // The frontend was Closed, so this is a new one. Initialising may have passed unseen.
            State::Closed => match front {
                State::Initialising | State::Initialised if online => Do::Reconnect,
                _ => Do::Wait,
            },
        },
    }
}

/// Whether device `number` is still in the toolstack's list, by our `own` state and the number of devices as
/// they are now. A toolstack takes devices, the list and our directory away while it is being read: what
/// is not there any more cannot have failed.
pub const fn is_listed(own: State, count: Option<u32>, number: u32) -> bool {
    match (own, count) {
        (State::Unknown, _) | (_, None) => false,
        (_, Some(count)) => number < count,
    }
}

/// What the frontend does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendAction {
    /// Nothing.
    Wait,
    /// Publish page, event channel and version together with the state Initialised, in one
    /// transaction.
    Publish,
    /// Scan the root buses, then switch to Connected.
    Connect,
    /// Remove every function whose `state-N` is Closing, then switch to Reconfiguring. Before the
    /// first scan there is nothing to remove.
    Detach,
    /// Scan the root buses again, new ones too, then switch to Connected.
    Rescan,
    /// Remove all root buses if there are any, then switch to Closed.
    Close,
    /// Write Initialising, then as [`FrontendAction::Publish`]: a backend that had ended is there
    /// again. Only if [`Followed::may_follow`].
    StartAgain,
}

/// Decides for the frontend: `own` state and the backend's state.
pub const fn frontend_step(own: State, back: State) -> FrontendAction {
    use FrontendAction as Do;
    match back {
        State::Closing => match own {
            State::Closed => Do::Wait,
            _ => Do::Close,
        },
        State::Closed => match own {
            // The backend of an earlier frontend: it comes back to InitWait for the new one.
            State::Initialising | State::Closed => Do::Wait,
            _ => Do::Close,
        },
        State::Unknown => match own {
            State::Connected | State::Reconfiguring | State::Reconfigured => Do::Close,
            _ => Do::Wait,
        },
        State::Initialising | State::InitWait | State::Initialised => match own {
            State::Initialising => Do::Publish,
            // Ours was Closed, so it was another life of the backend that closed us. One that is
            // Initialising is not there yet.
            State::Closed if !matches!(back, State::Initialising) => Do::StartAgain,
            _ => Do::Wait,
        },
        State::Connected => match own {
            State::Initialised => Do::Connect,
            // The change was called off, or Reconfigured has passed unseen.
            State::Reconfiguring | State::Reconfigured => Do::Rescan,
            _ => Do::Wait,
        },
        State::Reconfiguring => match own {
            State::Initialised | State::Connected => Do::Detach,
            _ => Do::Wait,
        },
        State::Reconfigured => match own {
            State::Reconfiguring | State::Reconfigured => Do::Rescan,
            _ => Do::Wait,
        },
    }
}

/// Starts at once, and how many ns give back one of them: ten in any ten minutes.
const STARTS: Limit = Limit::new(1, 120_000_000_000, 4);
/// Changes of the backend's list at once, and how many ns give back one of them. One function that is plugged or
/// unplugged is two changes, and 31 of them one after the other are 62.
const CHANGES: Limit = Limit::new(1, 2_000_000_000, 255);

/// Why a frontend does not follow its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOften {
    /// ns until it may.
    pub wait: i64,
    /// The first time since it did: worth a line in the log.
    pub is_first: bool,
}

/// How often a frontend follows what its backend does. Each is for a frontend's whole life, under the
/// frontend's own lock.
#[derive(Clone, Debug)]
pub struct Followed {
    times: Bucket,
    refused: bool,
}

impl Followed {
    /// Starts of the backend: five at once, then one in two minutes. An administrator who restarts a driver
    /// domain stays far below.
    pub const fn starts() -> Self {
        Self::new(STARTS)
    }

    /// Changes of its list: 256 at once, then one in two seconds. Each is a scan, with lines of the kernel for
    /// what comes and goes.
    pub const fn changes() -> Self {
        Self::new(CHANGES)
    }

    const fn new(limit: Limit) -> Self {
        Followed {
            times: Bucket::new(limit),
            refused: false,
        }
    }

    /// Counts one time at `now`, in ns.
    ///
    /// # Errors
    ///
    /// It would be too often: the frontend stays as it is. The backend's next change asks again.
    pub fn may_follow(&mut self, now: i64) -> Result<(), TooOften> {
        let result = self.times.take(now, 1);
        let before = core::mem::replace(&mut self.refused, result.is_err());
        result.map_err(|wait| TooOften {
            wait,
            is_first: !before,
        })
    }
}

/// Failures at once, and how many ns give back one of them.
const FAILURES: Limit = Limit::new(1, 600_000_000_000, 15);

/// How often connecting to a frontend may fail: 16 times at once, then once in ten minutes. The bus code
/// has a line in the log for each page that cannot be mapped, and no limit for them.
///
/// One for each backend, for its whole life, under the backend's own lock. A frontend that can be
/// connected to never waits.
#[derive(Clone, Debug)]
pub struct Attempts {
    failures: Bucket,
}

impl Attempts {
    /// None has failed yet.
    pub const fn new() -> Self {
        Attempts {
            failures: Bucket::new(FAILURES),
        }
    }

    /// Whether connecting may be tried at `now`, in ns.
    pub fn may_try(&mut self, now: i64) -> bool {
        self.failures.wait(now) == 0
    }

    /// One has failed at `now`. Gives whether that was one too many: none may be tried for the next ten
    /// minutes.
    pub fn failed(&mut self, now: i64) -> bool {
        self.failures.charge(1);
        !self.may_try(now)
    }
}

impl Default for Attempts {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn numbers_round_trip_and_strangers_are_unknown() {
        for (number, state) in (0..).zip(State::ALL) {
            assert_eq!(state.number(), number);
            assert_eq!(State::from_number(number), state);
        }
        for number in [-1, 9, 100, i32::MIN, i32::MAX] {
            assert_eq!(State::from_number(number), State::Unknown);
        }
    }

    fn backend_letter(action: BackendAction) -> char {
        match action {
            BackendAction::Wait => '.',
            BackendAction::Export => 'E',
            BackendAction::Attach => 'A',
            BackendAction::Reconfigure => 'R',
            BackendAction::Resume => 'S',
            BackendAction::Disconnect {
                then: State::Closing,
            } => 'g',
            BackendAction::Disconnect {
                then: State::Closed,
            } => 'd',
            BackendAction::Disconnect { .. } => 'l',
            BackendAction::Reconnect => 'N',
            BackendAction::Unregister => 'U',
            BackendAction::Hold => 'H',
            BackendAction::Sweep => 'X',
        }
    }

    fn backend_table(link_up: bool, online: bool) -> Vec<String> {
        State::ALL
            .into_iter()
            .map(|own| {
                State::ALL
                    .into_iter()
                    .map(|front| {
                        let left = Remains::Frontend;
                        backend_letter(backend_step(own, front, left, link_up, online))
                    })
                    .collect()
            })
            .collect()
    }

    /// Rows: own state 0 to 8. Columns: the frontend's state 0 to 8. '.' wait, E export, A attach,
    /// R reconfigure, S resume, g disconnect to Closing, d disconnect to Closed, l disconnect and stay,
    /// N reconnect, H hold, U unregister, X sweep.
    #[test]
    fn backend_without_link_follows_the_table() {
        let online = [
            ".....gd..", // Unknown
            ".....gd..", // Initialising
            "HEEEEgEEE", // InitWait
            "HEEA.gE..", // Initialised
            ".N.AAgd..", // Connected
            "H.....d..", // Closing
            "HN.N.....", // Closed
            "HN.A.gdA.", // Reconfiguring
            "HN...gd..", // Reconfigured
        ];
        assert_eq!(backend_table(false, true), online);
        let offline = [
            ".....gU..", // Unknown
            ".....gU..", // Initialising
            "UEEEEgUEE", // InitWait
            "UEEA.gU..", // Initialised
            "Ug.AAgU..", // Connected
            "U.....U..", // Closing
            "U.....U..", // Closed
            "Ug.A.gUA.", // Reconfiguring
            "Ug...gU..", // Reconfigured
        ];
        assert_eq!(backend_table(false, false), offline);
    }

    #[test]
    fn backend_with_link_follows_the_table() {
        let online = [
            ".....gd..", // Unknown
            ".....gd..", // Initialising
            "HEEEEgdEE", // InitWait
            "HEES.gd..", // Initialised
            ".N...gd..", // Connected
            "H....gd..", // Closing
            "HN.N.dd..", // Closed
            "HN...gdR.", // Reconfiguring
            "HN..Sgd..", // Reconfigured
        ];
        assert_eq!(backend_table(true, true), online);
        let offline = [
            ".....gU..", // Unknown
            ".....gU..", // Initialising
            "UEEEEgUEE", // InitWait
            "UEES.gU..", // Initialised
            "Ug...gU..", // Connected
            "U....gU..", // Closing
            "U....dU..", // Closed
            "Ug...gUR.", // Reconfiguring
            "Ug..SgU..", // Reconfigured
        ];
        assert_eq!(backend_table(true, false), offline);
    }

    /// S9. Each text: own state 0 to 8, the frontend's Unknown. Letters as above.
    #[test]
    fn backend_of_a_frontend_without_a_state_follows_the_table() {
        let line = |remains, link_up, online| -> String {
            State::ALL
                .into_iter()
                .map(|own| {
                    let front = State::Unknown;
                    backend_letter(backend_step(own, front, remains, link_up, online))
                })
                .collect()
        };
        for link_up in [false, true] {
            assert_eq!(line(Remains::Frontend, link_up, true), "..HH.HHHH");
            assert_eq!(line(Remains::Frontend, link_up, false), "..UUUUUUU");
            assert_eq!(line(Remains::Domain, link_up, false), "..UUUUUUU");
            for online in [false, true] {
                assert_eq!(line(Remains::Nothing, link_up, online), "..XXXXXXX");
            }
        }
        assert_eq!(line(Remains::Domain, false, true), "..HH.HHHH");
        assert_eq!(line(Remains::Domain, true, true), "..lllgdll");
    }

    /// S9: whatever a guest writes or removes, its functions stay its own.
    #[test]
    fn guest_that_lives_never_ends_a_backend_that_the_toolstack_wants() {
        for own in State::ALL {
            for front in State::ALL {
                for remains in [Remains::Frontend, Remains::Domain] {
                    for link_up in [false, true] {
                        let action = backend_step(own, front, remains, link_up, true);
                        assert!(
                            !matches!(action, BackendAction::Unregister | BackendAction::Sweep),
                            "{own:?} {front:?} {remains:?}"
                        );
                    }
                }
            }
        }
    }

    /// Rows: own state 0 to 8. Columns: the backend's state 0 to 8. '.' wait, P publish, C connect,
    /// D detach, R rescan, X close, A start again.
    #[test]
    fn frontend_follows_the_table() {
        let table: Vec<String> = State::ALL
            .into_iter()
            .map(|own| {
                State::ALL
                    .into_iter()
                    .map(|back| match frontend_step(own, back) {
                        FrontendAction::Wait => '.',
                        FrontendAction::Publish => 'P',
                        FrontendAction::Connect => 'C',
                        FrontendAction::Detach => 'D',
                        FrontendAction::Rescan => 'R',
                        FrontendAction::Close => 'X',
                        FrontendAction::StartAgain => 'A',
                    })
                    .collect()
            })
            .collect();
        let expected = [
            ".....XX..", // Unknown
            ".PPP.X...", // Initialising
            ".....XX..", // InitWait
            "....CXXD.", // Initialised
            "X....XXD.", // Connected
            ".....XX..", // Closing
            "..AA.....", // Closed
            "X...RXX.R", // Reconfiguring
            "X...RXX.R", // Reconfigured
        ];
        assert_eq!(table, expected);
    }

    #[test]
    fn backend_never_becomes_connected_without_a_link() {
        for own in State::ALL {
            for front in State::ALL {
                for online in [false, true] {
                    let action = backend_step(own, front, Remains::Frontend, false, online);
                    assert_ne!(action, BackendAction::Resume, "{own:?} {front:?}");
                }
            }
        }
    }

    #[test]
    fn backend_ends_from_every_state_and_link() {
        let left = Remains::Frontend;
        for own in State::ALL {
            for link_up in [false, true] {
                let closed = backend_step(own, State::Closed, left, link_up, false);
                assert_eq!(closed, BackendAction::Unregister);
                // What is not there yet, or any more, is the bus code's.
                if matches!(own, State::Unknown | State::Initialising) {
                    continue;
                }
                let front = State::Unknown;
                let unwanted = backend_step(own, front, left, link_up, false);
                assert_eq!(unwanted, BackendAction::Unregister);
                let gone = backend_step(own, front, Remains::Nothing, link_up, true);
                assert_eq!(gone, BackendAction::Sweep);
            }
            // A link never survives a frontend that says goodbye.
            for front in [State::Closing, State::Closed] {
                let action = backend_step(own, front, left, true, true);
                assert!(matches!(action, BackendAction::Disconnect { .. }));
            }
        }
    }

    /// Both ends as the drivers carry the actions out, so that the tables are seen to fit together.
    #[derive(Clone, Copy, Debug)]
    struct Pair {
        back: State,
        front: State,
        remains: Remains,
        link_up: bool,
        online: bool,
        unregistered: bool,
        scans: u32,
        /// The toolstack has changed the list and the backend has not looked at it since.
        list_is_new: bool,
        /// The backend has followed the list and the frontend has not scanned since.
        scan_is_due: bool,
    }

    impl Pair {
        fn new() -> Self {
            Pair {
                back: State::InitWait,
                front: State::Initialising,
                remains: Remains::Frontend,
                link_up: false,
                online: true,
                unregistered: false,
                scans: 0,
                list_is_new: false,
                scan_is_due: false,
            }
        }

        /// The toolstack plugs or unplugs a device, whatever the states are: it may have seen Connected
        /// before.
        fn reconfigure(&mut self) {
            self.list_is_new = true;
            self.back = State::Reconfiguring;
        }

        fn follow_list(&mut self) {
            self.scan_is_due |= core::mem::take(&mut self.list_is_new);
        }

        fn step_backend(&mut self) -> bool {
            let action = backend_step(
                self.back,
                self.front,
                self.remains,
                self.link_up,
                self.online,
            );
            match action {
                BackendAction::Wait => return false,
                BackendAction::Export if self.back == State::Initialised => return false,
                BackendAction::Export => self.back = State::Initialised,
                BackendAction::Attach => {
                    self.follow_list();
                    self.link_up = true;
                    self.back = State::Connected;
                }
                BackendAction::Reconfigure => {
                    self.follow_list();
                    self.back = State::Reconfigured;
                }
                BackendAction::Resume => self.back = State::Connected,
                BackendAction::Disconnect { then } => {
                    self.link_up = false;
                    self.back = then;
                }
                BackendAction::Reconnect => {
                    self.link_up = false;
                    self.back = State::InitWait;
                }
                BackendAction::Hold => {
                    self.follow_list();
                    self.back = State::Connected;
                }
                BackendAction::Sweep => {
                    self.link_up = false;
                    self.back = State::Unknown;
                    self.unregistered = true;
                }
                BackendAction::Unregister => {
                    let again = self.unregistered;
                    self.link_up = false;
                    self.back = State::Closed;
                    self.unregistered = true;
                    return !again;
                }
            }
            true
        }

        fn step_frontend(&mut self) -> bool {
            match frontend_step(self.front, self.back) {
                FrontendAction::Wait => return false,
                FrontendAction::Publish => self.front = State::Initialised,
                FrontendAction::Connect | FrontendAction::Rescan => {
                    self.scans += 1;
                    self.scan_is_due = false;
                    self.front = State::Connected;
                }
                FrontendAction::Detach => self.front = State::Reconfiguring,
                FrontendAction::Close => self.front = State::Closed,
                FrontendAction::StartAgain => self.front = State::Initialised,
            }
            true
        }

        /// Lets both ends act until neither has anything to do; `order` says who goes first, bit by
        /// bit.
        fn settle(&mut self, mut order: u32) {
            for _ in 0..40 {
                let front_first = order & 1 != 0;
                order = order.rotate_right(1);
                let acted = match front_first {
                    true => self.step_frontend() || self.step_backend(),
                    false => self.step_backend() || self.step_frontend(),
                };
                if !acted {
                    return;
                }
            }
            panic!("no rest: {self:?}");
        }
    }

    fn for_every_order(test: impl Fn(u32)) {
        for order in 0..256 {
            test(order);
        }
    }

    #[test]
    fn both_ends_connect_in_any_order() {
        for_every_order(|order| {
            let mut pair = Pair::new();
            pair.settle(order);
            assert_eq!(
                (pair.back, pair.front),
                (State::Connected, State::Connected)
            );
            assert!(pair.link_up);
            assert_eq!(pair.scans, 1);
        });
    }

    #[test]
    fn hot_plug_ends_connected_with_one_more_scan() {
        for_every_order(|order| {
            let mut pair = Pair::new();
            pair.settle(0);
            pair.back = State::Reconfiguring;
            pair.settle(order);
            assert_eq!(
                (pair.back, pair.front),
                (State::Connected, State::Connected)
            );
            assert_eq!(pair.scans, 2);
        });
    }

    #[test]
    fn a_list_that_changes_at_any_moment_is_followed() {
        for_every_order(|order| {
            for goodbye in [false, true] {
                // The change comes after so many steps of a frontend that connects.
                for steps in 0..12 {
                    let mut pair = Pair::new();
                    if goodbye {
                        pair.settle(0);
                        pair.front = State::Closing;
                    }
                    for step in 0..steps {
                        if goodbye && pair.front == State::Closed && pair.back == State::Closed {
                            pair.front = State::Initialising;
                        }
                        if (order >> (step % 8)) & 1 != 0 {
                            let _ = pair.step_frontend() || pair.step_backend();
                        } else {
                            let _ = pair.step_backend() || pair.step_frontend();
                        }
                    }
                    pair.reconfigure();
                    pair.settle(order);
                    if pair.front == State::Closed {
                        pair.front = State::Initialising;
                        pair.settle(order);
                    }
                    assert_eq!(
                        (pair.back, pair.front, pair.link_up),
                        (State::Connected, State::Connected, true),
                        "order {order:#x}, {steps} steps: {pair:?}"
                    );
                    assert!(
                        !pair.list_is_new && !pair.scan_is_due,
                        "order {order:#x}, {steps} steps: {pair:?}"
                    );
                }
            }
        });
    }

    #[test]
    fn shutdown_ends_closed_and_unregistered() {
        for_every_order(|order| {
            let mut pair = Pair::new();
            pair.settle(0);
            pair.online = false;
            pair.back = State::Closing;
            pair.settle(order);
            assert_eq!((pair.back, pair.front), (State::Closed, State::Closed));
            assert!(!pair.link_up && pair.unregistered);
        });
    }

    #[test]
    fn frontend_that_starts_again_is_connected_again() {
        for_every_order(|order| {
            // After a goodbye that the backend saw, and without one.
            for goodbye in [true, false] {
                let mut pair = Pair::new();
                pair.settle(0);
                if goodbye {
                    pair.front = State::Closed;
                    pair.settle(0);
                    assert_eq!(pair.back, State::Closed);
                }
                pair.front = State::Initialising;
                pair.settle(order);
                assert_eq!(
                    (pair.back, pair.front),
                    (State::Connected, State::Connected)
                );
                assert!(pair.link_up);
                assert_eq!(pair.scans, 2);
            }
        });
    }

    #[test]
    fn backend_that_starts_again_finds_its_frontend() {
        for_every_order(|order| {
            let mut pair = Pair::new();
            pair.settle(0);
            // Its driver is unbound, and bound again.
            pair.link_up = false;
            pair.back = State::Closed;
            while pair.step_frontend() {}
            assert_eq!(pair.front, State::Closed);
            pair.back = State::InitWait;
            pair.settle(order);
            assert_eq!(
                (pair.back, pair.front),
                (State::Connected, State::Connected)
            );
            assert!(pair.link_up);
        });
    }

    impl Pair {
        /// The frontend says no state any more, after so many steps of a start or of a plug.
        fn without_state(order: u32, steps: u32, remains: Remains) -> Self {
            let mut pair = Pair::new();
            if order & 0x80 != 0 {
                pair.settle(0);
                pair.reconfigure();
            }
            for step in 0..steps {
                if (order >> (step % 7)) & 1 != 0 {
                    let _ = pair.step_frontend() || pair.step_backend();
                } else {
                    let _ = pair.step_backend() || pair.step_frontend();
                }
            }
            pair.front = State::Unknown;
            pair.remains = remains;
            pair
        }

        fn settle_backend(&mut self) {
            for _ in 0..10 {
                if !self.step_backend() {
                    return;
                }
            }
            panic!("no rest: {self:?}");
        }
    }

    /// S9. A toolstack waits for Connected, says what it takes, and waits for Connected again.
    #[test]
    fn toolstack_takes_from_a_guest_without_a_frontend_and_need_not_wait() {
        for_every_order(|order| {
            for steps in 0..10 {
                for remains in [Remains::Frontend, Remains::Domain] {
                    let mut pair = Pair::without_state(order, steps, remains);
                    pair.settle_backend();
                    assert_eq!(pair.back, State::Connected, "{order:#x} {steps} {pair:?}");
                    assert!(!pair.list_is_new && !pair.unregistered);
                    assert!(!pair.link_up || remains == Remains::Frontend);
                    pair.reconfigure();
                    pair.settle_backend();
                    assert_eq!(pair.back, State::Connected, "{order:#x} {steps} {pair:?}");
                    assert!(!pair.list_is_new && !pair.unregistered);
                    // Then the domain ends, and the toolstack leaves the directory.
                    pair.remains = Remains::Nothing;
                    assert!(pair.step_backend());
                    assert!(pair.unregistered && !pair.link_up);
                }
            }
        });
    }

    /// One that only lost its word is connected as before; one that starts again is a new one.
    #[test]
    fn frontend_that_says_its_state_again_is_connected() {
        for_every_order(|order| {
            for remains in [Remains::Frontend, Remains::Domain] {
                for front in [
                    State::Connected,
                    State::Initialising,
                    State::Initialised,
                    State::Closed,
                ] {
                    let mut pair = Pair::new();
                    pair.settle(0);
                    pair.front = State::Unknown;
                    pair.remains = remains;
                    pair.settle_backend();
                    assert_eq!(pair.link_up, remains == Remains::Frontend);
                    pair.front = front;
                    pair.settle(order);
                    if front == State::Closed {
                        pair.front = State::Initialising;
                        pair.settle(order);
                    }
                    assert_eq!(
                        (pair.back, pair.link_up),
                        (State::Connected, true),
                        "{front:?} {pair:?}"
                    );
                }
            }
        });
    }

    const SECOND: i64 = 1_000_000_000;

    /// Times in s at which a frontend publishes a page to a backend that ends and starts again, for an
    /// hour, each `period` s. It can keep each page.
    fn publications(period: i64) -> Vec<i64> {
        let mut front = State::Connected;
        let mut restarts = Followed::starts();
        let mut times = Vec::new();
        for second in (0..3600).step_by(period as usize) {
            for back in [
                State::Closed,
                State::InitWait,
                State::Initialised,
                State::Connected,
            ] {
                match frontend_step(front, back) {
                    FrontendAction::StartAgain => {
                        if restarts.may_follow(second * SECOND).is_ok() {
                            times.push(second);
                            front = State::Initialised;
                        }
                    }
                    FrontendAction::Publish => times.push(second),
                    FrontendAction::Connect => front = State::Connected,
                    FrontendAction::Close => front = State::Closed,
                    _ => {}
                }
            }
        }
        times
    }

    /// S17.
    #[test]
    fn backend_that_restarts_for_ever_gets_few_pages() {
        for period in [1, 7, 59, 60, 120, 300] {
            let times = publications(period);
            for &begun in &times {
                let within = |&&at: &&i64| (begun..=begun + 600).contains(&at);
                let count = times.iter().filter(within).count();
                assert!(count <= 10, "each {period} s: {count} in ten minutes");
            }
            // Who restarts seldom is always followed.
            assert!(period < 120 || times.len() as i64 == 3600 / period);
        }
    }

    #[test]
    fn restarts_that_are_too_many_are_told_once() {
        let mut restarts = Followed::starts();
        for _ in 0..5 {
            assert_eq!(restarts.may_follow(0), Ok(()));
        }
        let refused = |wait, is_first| Err(TooOften { wait, is_first });
        assert_eq!(restarts.may_follow(0), refused(120 * SECOND, true));
        assert_eq!(restarts.may_follow(SECOND), refused(119 * SECOND, false));
        assert_eq!(restarts.may_follow(120 * SECOND), Ok(()));
        assert_eq!(
            restarts.may_follow(120 * SECOND),
            refused(120 * SECOND, true)
        );
    }

    #[test]
    fn backend_that_changes_its_list_for_ever_is_followed_half_a_time_a_second() {
        let mut changes = Followed::changes();
        let mut followed = 0;
        for now in (0..3600).map(|at| at * SECOND) {
            for _ in 0..100 {
                followed += i64::from(changes.may_follow(now).is_ok());
            }
        }
        assert!((256 + 1795..=256 + 1800).contains(&followed), "{followed}");
        // All functions that there can be, one after the other, and back.
        let mut changes = Followed::changes();
        assert!((0..124).all(|_| changes.may_follow(0).is_ok()));
    }

    /// S16.
    #[test]
    fn what_the_toolstack_has_taken_away_is_not_listed() {
        for own in State::ALL {
            let is_there = own != State::Unknown;
            assert_eq!(is_listed(own, Some(3), 2), is_there);
            assert!(!is_listed(own, Some(2), 2), "moved up, or gone");
            assert!(!is_listed(own, Some(0), 0), "the last one went");
            assert!(!is_listed(own, None, 0), "the list went");
        }
    }

    #[test]
    fn attempts_that_fail_too_often_have_to_wait_ten_minutes() {
        let mut attempts = Attempts::new();
        for at in 0..15 {
            assert!(attempts.may_try(at));
            assert!(!attempts.failed(at));
        }
        assert!(attempts.failed(15), "the last one tells");
        assert!(!attempts.may_try(599 * SECOND));
        assert!(attempts.may_try(601 * SECOND));
        assert!(attempts.may_try(601 * SECOND), "trying costs nothing");
        assert!(attempts.failed(601 * SECOND));
        assert!(!attempts.may_try(1_199 * SECOND));
    }

    #[test]
    fn frontend_that_claims_connected_first_gets_no_link() {
        let mut pair = Pair::new();
        pair.front = State::Connected;
        pair.settle(0);
        assert_eq!(pair.back, State::Initialised);
        assert!(!pair.link_up);
    }

    #[test]
    fn fatal_error_of_the_backend_comes_to_rest() {
        for_every_order(|order| {
            let mut pair = Pair::new();
            pair.back = State::Closing;
            pair.settle(order);
            assert_eq!((pair.back, pair.front), (State::Closed, State::Closed));
        });
    }
}
