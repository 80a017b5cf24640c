// SPDX-License-Identifier: GPL-2.0

//! Requests and their answers, checked (behaviour, section 5.2).
//!
//! Three number spaces meet here: the status of the protocol (`XEN_PCI_ERR_*`), the kernel's errno
//! and the status of PCI accessors (`PCIBIOS_*`). Only the first may ever be on the page, so
//! [`OpStatus`] is the only error type that travels, and the others are mapped at the border.

use crate::sbdf::Sbdf;
use crate::wire::{PciOp, MAX_MSIX_VECTORS};

/// What a request asks for. The numbers 6 to 9 belong to the error slot and run from the backend to
/// the frontend only; they are no requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Opcode {
    /// Read configuration space.
    ConfRead = 0,
    /// Write configuration space.
    ConfWrite = 1,
    /// Enable MSI with one vector.
    EnableMsi = 2,
    /// Disable MSI.
    DisableMsi = 3,
    /// Enable MSI-X.
    EnableMsix = 4,
    /// Disable MSI-X.
    DisableMsix = 5,
}

impl Opcode {
    /// From the command word; `None` for everything that is no request we serve.
    pub const fn from_wire(cmd: u32) -> Option<Self> {
        match cmd {
            0 => Some(Opcode::ConfRead),
            1 => Some(Opcode::ConfWrite),
            2 => Some(Opcode::EnableMsi),
            3 => Some(Opcode::DisableMsi),
            4 => Some(Opcode::EnableMsix),
            5 => Some(Opcode::DisableMsix),
            _ => None,
        }
    }

    /// The command word.
    pub const fn to_wire(self) -> u32 {
        self as u32
    }
}

/// The result of a request, as the protocol numbers it (`XEN_PCI_ERR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum OpStatus {
    /// Done.
    Success = 0,
    /// The address means no function of this guest.
    DevNotFound = -1,
    /// Offset or size is not allowed.
    InvalidOffset = -2,
    /// The policy refuses the write.
    AccessDenied = -3,
    /// The request is not known, or not for this kind of function.
    NotImplemented = -4,
    /// The function or the kernel could not do it.
    OpFailed = -5,
}

/// Status numbers of the kernel's PCI accessors.
pub mod pcibios {
    /// Done.
    pub const SUCCESSFUL: i32 = 0x00;
    /// The function is not there for this access.
    pub const FUNC_NOT_SUPPORTED: i32 = 0x81;
    /// No such device.
    pub const DEVICE_NOT_FOUND: i32 = 0x86;
    /// No such register.
    pub const BAD_REGISTER_NUMBER: i32 = 0x87;
    /// The register could not be written.
    pub const SET_FAILED: i32 = 0x88;
}

/// The kernel's error numbers that have a status of their own. (`core` has no names for them.)
mod errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const EACCES: i32 = 13;
    pub(super) const ENODEV: i32 = 19;
    pub(super) const ENOSYS: i32 = 38;
    pub(super) const EOPNOTSUPP: i32 = 95;
}

impl OpStatus {
    /// The number for the page.
    pub const fn to_wire(self) -> i32 {
        self as i32
    }

    /// From the number that a peer wrote. One that the protocol does not know is a failure.
    pub const fn from_wire(err: i32) -> Self {
        match err {
            0 => OpStatus::Success,
            -1 => OpStatus::DevNotFound,
            -2 => OpStatus::InvalidOffset,
            -3 => OpStatus::AccessDenied,
            -4 => OpStatus::NotImplemented,
            _ => OpStatus::OpFailed,
        }
    }

    /// From a kernel return value: 0 or a negative errno. Every errno becomes a status of the
    /// protocol, so that none can leak to the peer.
    pub const fn from_errno(ret: i32) -> Self {
        match ret.wrapping_neg() {
            0 => OpStatus::Success,
            errno::EPERM | errno::EACCES => OpStatus::AccessDenied,
            errno::ENODEV => OpStatus::DevNotFound,
            errno::ENOSYS | errno::EOPNOTSUPP => OpStatus::NotImplemented,
            _ => OpStatus::OpFailed,
        }
    }

    /// From the return value of a PCI accessor, `PCIBIOS_*` or a negative errno. An accessor
    /// refuses with -EINVAL an offset that it cannot reach.
    pub const fn from_pcibios(ret: i32) -> Self {
        const EINVAL: i32 = 22;
        match ret {
            pcibios::SUCCESSFUL => OpStatus::Success,
            pcibios::DEVICE_NOT_FOUND => OpStatus::DevNotFound,
            pcibios::BAD_REGISTER_NUMBER => OpStatus::InvalidOffset,
            pcibios::SET_FAILED => OpStatus::AccessDenied,
            pcibios::FUNC_NOT_SUPPORTED => OpStatus::NotImplemented,
            _ if ret == -EINVAL => OpStatus::InvalidOffset,
            _ => Self::from_errno(ret),
        }
    }

    /// The `PCIBIOS_*` number that a frontend returns to its kernel.
    pub const fn to_pcibios(self) -> i32 {
        match self {
            OpStatus::Success => pcibios::SUCCESSFUL,
            OpStatus::DevNotFound => pcibios::DEVICE_NOT_FOUND,
            OpStatus::InvalidOffset | OpStatus::OpFailed => pcibios::BAD_REGISTER_NUMBER,
            OpStatus::AccessDenied => pcibios::SET_FAILED,
            OpStatus::NotImplemented => pcibios::FUNC_NOT_SUPPORTED,
        }
    }

    /// [`OpStatus::Success`] as `Ok`, everything else as `Err`.
    pub const fn ok(self) -> Result<(), OpStatus> {
        match self {
            OpStatus::Success => Ok(()),
            failure => Err(failure),
        }
    }
}

/// A count of MSI-X entries that one request can carry: 1 to [`MAX_MSIX_VECTORS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixCount(u16);

impl MsixCount {
    /// Checks a count.
    pub fn new(count: u32) -> Option<Self> {
        let count = u16::try_from(count).ok()?;
        (1..=MAX_MSIX_VECTORS)
            .contains(&count)
            .then_some(MsixCount(count))
    }

    /// The count, 1 to 128.
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// A request that is well formed. Whether the guest has such a function is for
/// [`Topology`](crate::topology::Topology) to say; offset and size are checked by
/// [`ConfigAccess`](crate::access::ConfigAccess) once the function is known, because its
/// configuration space bounds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read `size` bytes at `offset`.
    ConfRead {
        /// The function, as the guest addresses it.
        sbdf: Sbdf,
        /// Offset in bytes, unchecked.
        offset: i32,
        /// Size in bytes, unchecked.
        size: i32,
    },
    /// Write `size` bytes at `offset`.
    ConfWrite {
        /// The function, as the guest addresses it.
        sbdf: Sbdf,
        /// Offset in bytes, unchecked.
        offset: i32,
        /// Size in bytes, unchecked.
        size: i32,
        /// The value; bits above `size` bytes mean nothing.
        value: u32,
    },
    /// Enable MSI with one vector.
    EnableMsi {
        /// The function, as the guest addresses it.
        sbdf: Sbdf,
    },
    /// Disable MSI.
    DisableMsi {
        /// The function, as the guest addresses it.
        sbdf: Sbdf,
    },
    /// Enable MSI-X for the first `count` entries of the page.
    EnableMsix {
        /// The function, as the guest addresses it.
        sbdf: Sbdf,
        /// How many entries the page carries. Keep this number: the page may change.
        count: MsixCount,
    },
    /// Disable MSI-X.
    DisableMsix {
        /// The function, as the guest addresses it.
        sbdf: Sbdf,
    },
}

impl Request {
    /// Checks the words of a request.
    ///
    /// # Errors
    ///
    /// In this order: [`OpStatus::NotImplemented`] for a command that is no request,
    /// [`OpStatus::DevNotFound`] for an address that cannot exist, [`OpStatus::OpFailed`] for a bad
    /// count of MSI-X entries.
    pub fn parse(op: &PciOp) -> Result<Self, OpStatus> {
        let opcode = Opcode::from_wire(op.cmd).ok_or(OpStatus::NotImplemented)?;
        let sbdf = Sbdf::from_wire(op.domain, op.bus, op.devfn).ok_or(OpStatus::DevNotFound)?;
        Ok(match opcode {
            Opcode::ConfRead => Request::ConfRead {
                sbdf,
                offset: op.offset,
                size: op.size,
            },
            Opcode::ConfWrite => Request::ConfWrite {
                sbdf,
                offset: op.offset,
                size: op.size,
                value: op.value,
            },
            Opcode::EnableMsi => Request::EnableMsi { sbdf },
            Opcode::DisableMsi => Request::DisableMsi { sbdf },
            Opcode::EnableMsix => Request::EnableMsix {
                sbdf,
                count: MsixCount::new(op.value).ok_or(OpStatus::OpFailed)?,
            },
            Opcode::DisableMsix => Request::DisableMsix { sbdf },
        })
    }

    /// The function that the request is about, as the guest addresses it.
    pub const fn sbdf(&self) -> Sbdf {
        match *self {
            Request::ConfRead { sbdf, .. }
            | Request::ConfWrite { sbdf, .. }
            | Request::EnableMsi { sbdf }
            | Request::DisableMsi { sbdf }
            | Request::EnableMsix { sbdf, .. }
            | Request::DisableMsix { sbdf } => sbdf,
        }
    }

    /// What the request asks for.
    pub const fn opcode(&self) -> Opcode {
        match self {
            Request::ConfRead { .. } => Opcode::ConfRead,
            Request::ConfWrite { .. } => Opcode::ConfWrite,
            Request::EnableMsi { .. } => Opcode::EnableMsi,
            Request::DisableMsi { .. } => Opcode::DisableMsi,
            Request::EnableMsix { .. } => Opcode::EnableMsix,
            Request::DisableMsix { .. } => Opcode::DisableMsix,
        }
    }

    /// The words that a frontend posts for this request.
    pub fn to_op(&self) -> PciOp {
        let sbdf = self.sbdf();
        let (offset, size, value) = match *self {
            Request::ConfRead { offset, size, .. } => (offset, size, 0),
            Request::ConfWrite {
                offset,
                size,
                value,
                ..
            } => (offset, size, value),
            Request::EnableMsix { count, .. } => (0, 0, u32::from(count.get())),
            Request::EnableMsi { .. }
            | Request::DisableMsi { .. }
            | Request::DisableMsix { .. } => (0, 0, 0),
        };
        PciOp {
            cmd: self.opcode().to_wire(),
            domain: u32::from(sbdf.segment),
            bus: u32::from(sbdf.bus),
            devfn: u32::from(sbdf.devfn.raw()),
            offset,
            size,
            value,
            ..PciOp::default()
        }
    }
}

/// The answer to a request: the two words that the backend writes back. The vectors of a successful
/// [`Request::EnableMsix`] are written beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The result.
    pub status: OpStatus,
    /// Value read or interrupt number; 0 where there is none.
    pub value: u32,
}

impl Reply {
    /// A success with this value.
    pub const fn done(value: u32) -> Self {
        Reply {
            status: OpStatus::Success,
            value,
        }
    }

    /// A failure; its value is 0.
    pub const fn failed(status: OpStatus) -> Self {
        Reply { status, value: 0 }
    }

    /// Reads the answer out of the words of the page, on the frontend's side.
    pub const fn from_op(op: &PciOp) -> Self {
        match OpStatus::from_wire(op.err) {
            OpStatus::Success => Reply::done(op.value),
            failure => Reply::failed(failure),
        }
    }
}

impl From<Result<u32, OpStatus>> for Reply {
    fn from(result: Result<u32, OpStatus>) -> Self {
        match result {
            Ok(value) => Reply::done(value),
            Err(status) => Reply::failed(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [OpStatus; 6] = [
        OpStatus::Success,
        OpStatus::DevNotFound,
        OpStatus::InvalidOffset,
        OpStatus::AccessDenied,
        OpStatus::NotImplemented,
        OpStatus::OpFailed,
    ];

    #[test]
    fn status_numbers_are_zero_to_minus_five() {
        for (number, status) in ALL.into_iter().enumerate() {
            assert_eq!(status.to_wire(), -(number as i32));
            assert_eq!(OpStatus::from_wire(status.to_wire()), status);
            assert_eq!(status.ok().is_ok(), status == OpStatus::Success);
        }
    }

    #[test]
    fn unknown_status_of_a_peer_is_a_failure() {
        for err in [1, 5, -6, -22, -114, i32::MIN, i32::MAX] {
            assert_eq!(OpStatus::from_wire(err), OpStatus::OpFailed);
        }
    }

    #[test]
    fn errno_never_leaks_and_only_zero_succeeds() {
        for ret in (-5000..=5000).chain([i32::MIN, i32::MAX]) {
            let status = OpStatus::from_errno(ret);
            assert_eq!(status == OpStatus::Success, ret == 0);
        }
        assert_eq!(OpStatus::from_errno(-19), OpStatus::DevNotFound);
        assert_eq!(OpStatus::from_errno(-13), OpStatus::AccessDenied);
        assert_eq!(OpStatus::from_errno(-38), OpStatus::NotImplemented);
        assert_eq!(OpStatus::from_errno(-22), OpStatus::OpFailed);
        assert_eq!(OpStatus::from_errno(-28), OpStatus::OpFailed);
    }

    #[test]
    fn pcibios_numbers_map_both_ways() {
        let to = ALL.map(OpStatus::to_pcibios);
        assert_eq!(to, [0, 0x86, 0x87, 0x88, 0x81, 0x87]);
        let from = [0, 0x86, 0x87, 0x88, 0x81].map(OpStatus::from_pcibios);
        assert_eq!(from, ALL[..5]);
        assert_eq!(OpStatus::from_pcibios(0x83), OpStatus::OpFailed);
        assert_eq!(OpStatus::from_pcibios(-22), OpStatus::InvalidOffset);
        assert_eq!(OpStatus::from_pcibios(-19), OpStatus::DevNotFound);
    }

    #[test]
    fn commands_beyond_disable_msix_are_not_implemented() {
        for cmd in (6..=300).chain([u32::MAX]) {
            // The address is bad too: the command is looked at first.
            let op = PciOp {
                cmd,
                bus: 0x100,
                ..PciOp::default()
            };
            assert_eq!(Request::parse(&op), Err(OpStatus::NotImplemented));
        }
    }

    #[test]
    fn address_that_cannot_exist_is_not_found() {
        for cmd in 0..=5 {
            let op = PciOp {
                cmd,
                devfn: 0x100,
                value: 1,
                ..PciOp::default()
            };
            assert_eq!(Request::parse(&op), Err(OpStatus::DevNotFound));
        }
    }

    #[test]
    fn msix_count_is_one_to_128() {
        for value in [0, 129, 0x1_0001, u32::MAX] {
            let op = PciOp {
                cmd: 4,
                value,
                ..PciOp::default()
            };
            assert_eq!(Request::parse(&op), Err(OpStatus::OpFailed));
        }
        for value in [1, 128] {
            let op = PciOp {
                cmd: 4,
                value,
                ..PciOp::default()
            };
            let Ok(Request::EnableMsix { count, .. }) = Request::parse(&op) else {
                panic!("{value} refused");
            };
            assert_eq!(u32::from(count.get()), value);
        }
    }

    #[test]
    fn request_survives_its_words() {
        let sbdf = Sbdf::new(1, 2, 3, 4).unwrap();
        let count = MsixCount::new(3).unwrap();
        let requests = [
            Request::ConfRead {
                sbdf,
                offset: -4,
                size: 4,
            },
            Request::ConfWrite {
                sbdf,
                offset: 4,
                size: 2,
                value: 7,
            },
            Request::EnableMsi { sbdf },
            Request::DisableMsi { sbdf },
            Request::EnableMsix { sbdf, count },
            Request::DisableMsix { sbdf },
        ];
        for (cmd, request) in requests.into_iter().enumerate() {
            assert_eq!(request.to_op().cmd, cmd as u32);
            assert_eq!(request.sbdf(), sbdf);
            assert_eq!(Request::parse(&request.to_op()), Ok(request));
        }
    }

    #[test]
    fn value_of_a_failed_answer_is_not_used() {
        let op = PciOp {
            err: -3,
            value: 0xdead,
            ..PciOp::default()
        };
        assert_eq!(Reply::from_op(&op), Reply::failed(OpStatus::AccessDenied));
        assert_eq!(Reply::from_op(&op).value, 0);
        let op = PciOp { err: 0, ..op };
        assert_eq!(Reply::from_op(&op), Reply::done(0xdead));
    }
}
