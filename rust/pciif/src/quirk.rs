// SPDX-License-Identifier: GPL-2.0

//! Quirks: bits of a function's configuration space that the administrator lets a guest write.
//!
//! ```text
//! quirk = [ number ":" ] number ":" number "." number
//!         "-" register ":" size ":" mask                  (behaviour, section 2)
//! ```
//!
//! The numbers are hexadecimal, as in [`crate::slot`], and there are no wildcards. Register is 0 to
//! fff, size 1, 2 or 4. The mask names the bits that become writable in the device; the others of
//! the register stay as they were. A register need not be aligned to its size.

use crate::access::{AccessWidth, ConfigAccess};
use crate::sbdf::{Devfn, Sbdf};
use crate::text::{until_nul, Expected, Number, Part, Scanner, TextError};
use core::fmt::{self, Display, Formatter};

/// The form of a quirk, for messages.
pub const QUIRK_FORM: &str = "[DDDD:]BB:SS.F-REGISTER:SIZE:MASK, all hex";

/// Bits of one register that a guest may write.
///
/// The mask has no bits above the width and is not 0; offset and width end at 1000 at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirk {
    mask: u32,
    offset: u16,
    width: AccessWidth,
}

impl Quirk {
    /// Checks a quirk. `None` when the mask is 0 or wider than the register, or the register reaches
    /// behind any configuration space.
    pub const fn new(offset: u16, width: AccessWidth, mask: u32) -> Option<Self> {
        let fits = offset <= 0x1000 - width.bytes() as u16;
        if mask == 0 || mask & !width.mask() != 0 || !fits {
            return None;
        }
        Some(Quirk {
            mask,
            offset,
            width,
        })
    }

    /// Byte offset in configuration space.
    pub const fn offset(self) -> u16 {
        self.offset
    }

    /// Width of the register.
    pub const fn width(self) -> AccessWidth {
        self.width
    }

    /// The bits of the register that a guest may write.
    pub const fn mask(self) -> u32 {
        self.mask
    }

    /// One byte behind the register.
    pub(crate) const fn end(self) -> u16 {
        self.offset.saturating_add(self.width.bytes() as u16)
    }

    pub(crate) const fn is_same_place(self, other: Quirk) -> bool {
        self.offset == other.offset && self.width.bytes() == other.width.bytes()
    }

    /// The bits of the 4-byte unit `dword` that the quirk opens.
    pub(crate) const fn lanes(self, dword: u16) -> u32 {
        // CAST: widening; both are below 64 Ki, so the difference is exact.
        let bytes = self.offset as i32 - dword as i32 * 4;
        match bytes {
            // CAST: 0 to 24 bits, and the part that lies in this unit on purpose.
            0..=3 => self.mask << (bytes as u32 * 8),
            -3..=-1 => self.mask >> (bytes.unsigned_abs() * 8),
            _ => 0,
        }
    }
}

/// Why a function does not take a quirk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuirkRefusal {
    /// The register is not inside the function's configuration space.
    Outside {
        /// Its size in bytes.
        config_size: u16,
    },
    /// The host works with a register that the quirk would open.
    Bound {
        /// Byte offset of that register.
        offset: u16,
        /// Why it stays closed.
        why: &'static str,
    },
    /// The function has as many quirks as it can have.
    Full,
}

impl Display for QuirkRefusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            QuirkRefusal::Outside { config_size } => {
                write!(f, "configuration space ends at {config_size:x}")
            }
            QuirkRefusal::Bound { offset, why } => {
                write!(f, "the register at {offset:x} stays closed: {why}")
            }
            QuirkRefusal::Full => {
                write!(f, "there are {} quirks already", crate::config::MAX_QUIRKS)
            }
        }
    }
}

/// Why a text is not a quirk. Positions are byte offsets from the start of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuirkError {
    /// Grammar, address or register.
    Text(TextError),
    /// The size is not 1, 2 or 4.
    Size {
        /// Where it starts.
        position: usize,
    },
    /// The mask is 0, or has bits that a register of this size has not.
    Mask {
        /// Where it starts.
        position: usize,
        /// The largest mask.
        max: u32,
    },
    /// The register begins in configuration space and ends behind it.
    End {
        /// Where the size starts.
        position: usize,
    },
}

impl QuirkError {
    /// True when only a part of the address was too large, so that no such function can exist.
    pub const fn is_absent_function(&self) -> bool {
        matches!(
            self,
            QuirkError::Text(TextError::Range {
                part: Part::Segment | Part::Bus | Part::Device | Part::Function,
                ..
            })
        )
    }
}

impl From<TextError> for QuirkError {
    fn from(error: TextError) -> Self {
        QuirkError::Text(error)
    }
}

impl Display for QuirkError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            QuirkError::Text(error) => Display::fmt(error, f),
            QuirkError::Size { position } => {
                write!(f, "expected size 1, 2 or 4 at byte {position}")
            }
            QuirkError::Mask { position, max } => {
                write!(f, "expected mask 1 to {max:x} at byte {position}")
            }
            QuirkError::End { position } => {
                write!(
                    f,
                    "expected a register that ends at fff or before, at byte {position}"
                )
            }
        }
    }
}

/// What was written to `quirks`: a function and a quirk for it. It is displayed as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuirkLine {
    /// Host address of the function.
    pub address: Sbdf,
    /// What is opened.
    pub quirk: Quirk,
}

impl QuirkLine {
    /// The line that lets through what a write has lost: `bits` as
    /// [`crate::config::WriteOutcome::dropped`] has them. `None` when nothing was lost.
    pub const fn for_dropped(address: Sbdf, access: ConfigAccess, bits: u32) -> Option<Self> {
        match Quirk::new(access.offset(), access.width(), bits) {
            Some(quirk) => Some(QuirkLine { address, quirk }),
            None => None,
        }
    }
}

impl Display for QuirkLine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // Segment 0 is left out, as administrators write it.
        if self.address.segment != 0 {
            write!(f, "{:04x}:", self.address.segment)?;
        }
        let Quirk {
            mask,
            offset,
            width,
        } = self.quirk;
        let (bus, devfn, bytes) = (self.address.bus, self.address.devfn, width.bytes());
        write!(f, "{bus:02x}:{devfn}-{offset:x}:{bytes}:{mask:x}")
    }
}

fn quirk_of(offset: u16, size: Number, mask: Number) -> Result<Quirk, QuirkError> {
    let position = size.position();
    let bytes = i32::try_from(size.value()).unwrap_or(0);
    let width = AccessWidth::from_bytes(bytes).ok_or(QuirkError::Size { position })?;
    let max = width.mask();
    if mask.is_cut_off() || mask.value() == 0 || mask.value() > max {
        return Err(QuirkError::Mask {
            position: mask.position(),
            max,
        });
    }
    Quirk::new(offset, width, mask.value()).ok_or(QuirkError::End { position })
}

/// Reads what was written to the sysfs file `quirks`: one quirk, blanks around it, nothing else.
///
/// # Errors
///
/// Where the text went wrong, and what was expected there.
///
/// ```
/// use pciif::quirk::parse_quirk;
/// let line = parse_quirk(b"0000:00:19.0-e0:2:ff\n").unwrap();
/// assert_eq!(line.to_string(), "00:19.0-e0:2:ff");
/// assert!(parse_quirk(b"00:19.0-e0:3:ff").is_err());
/// ```
pub fn parse_quirk(text: &[u8]) -> Result<QuirkLine, QuirkError> {
    let mut scanner = Scanner::at(until_nul(text), 0);
    let first = scanner.number(Expected::Number)?;
    scanner.mark(b':')?;
    let second = scanner.number(Expected::Number)?;
    let (segment, bus, dev) = match scanner.peek() {
        Some(b'.') => (Number::left_out(0), first, second),
        Some(b':') => {
            scanner.mark(b':')?;
            (first, second, scanner.number(Expected::Number)?)
        }
        _ => return Err(scanner.wanted(Expected::ColonOrDot).into()),
    };
    scanner.mark(b'.')?;
    let func = scanner.number(Expected::Number)?;
    scanner.mark(b'-')?;
    let register = scanner.number(Expected::Number)?;
    scanner.mark(b':')?;
    let size = scanner.number(Expected::Number)?;
    scanner.mark(b':')?;
    let mask = scanner.number(Expected::Number)?;
    scanner.blanks();
    scanner.end()?;

    let (dev, func) = (dev.small(Part::Device)?, func.small(Part::Function)?);
    let address = Sbdf {
        segment: segment.segment()?,
        bus: bus.small(Part::Bus)?,
        // Both are in their ranges.
        devfn: Devfn::from_raw((dev << 3) | func),
    };
    let quirk = quirk_of(register.register()?, size, mask)?;
    Ok(QuirkLine { address, quirk })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_follow_an_unaligned_register_into_the_next_unit() {
        let quirk = Quirk::new(0x43, AccessWidth::Dword, 0x8765_4321).unwrap();
        assert_eq!(quirk.lanes(0x0f), 0);
        assert_eq!(quirk.lanes(0x10), 0x2100_0000);
        assert_eq!(quirk.lanes(0x11), 0x0087_6543);
        assert_eq!(quirk.lanes(0x12), 0);
        let quirk = Quirk::new(0x42, AccessWidth::Word, 0xabcd).unwrap();
        assert_eq!(quirk.lanes(0x10), 0xabcd_0000);
        assert_eq!(quirk.lanes(0x11), 0);
    }

    #[test]
    fn quirk_is_checked_when_it_is_made() {
        assert_eq!(Quirk::new(0x40, AccessWidth::Byte, 0), None);
        assert_eq!(Quirk::new(0x40, AccessWidth::Byte, 0x100), None);
        assert_eq!(Quirk::new(0xffd, AccessWidth::Dword, 1), None);
        assert_eq!(Quirk::new(0xffff, AccessWidth::Byte, 1), None);
        assert!(Quirk::new(0xffc, AccessWidth::Dword, u32::MAX).is_some());
    }
}
