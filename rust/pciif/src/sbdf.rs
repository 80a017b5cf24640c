// SPDX-License-Identifier: GPL-2.0

//! Addresses of PCI functions: segment, bus, device, function.
//!
//! Three spellings occur in xenstore (behaviour, section 4.1); the two that we write differ on
//! purpose and must not be "corrected", because toolstacks read them:
//!
//! | type | key | text |
//! |---|---|---|
//! | [`Sbdf`] | `dev-N`, `slots` | `0000:00:05.0` |
//! | [`VirtualDevText`] | `vdev-N` | `0000:00:05.00` (two digits of function) |
//! | [`RootText`] | `root-N` | `0000:00` |

use crate::text::{until_nul, Expected, Part, Scanner, TextError};
use core::fmt::{self, Debug, Display, Formatter};

/// Why a text is not an address: where, and what was expected there.
pub type SbdfError = TextError;

/// Device and function number on one bus, as PCI packs them: device in bits 7:3, function in 2:0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Devfn(u8);

impl Devfn {
    /// Device 0 to 31 and function 0 to 7; `None` for anything larger.
    pub const fn new(dev: u8, func: u8) -> Option<Self> {
        if dev < 32 && func < 8 {
            Some(Devfn((dev << 3) | func))
        } else {
            None
        }
    }

    /// From the packed form; every byte is one.
    pub const fn from_raw(raw: u8) -> Self {
        Devfn(raw)
    }

    /// The packed form.
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// Device number, 0 to 31.
    pub const fn dev(self) -> u8 {
        self.0 >> 3
    }

    /// Function number, 0 to 7.
    pub const fn func(self) -> u8 {
        self.0 & 7
    }
}

impl Display for Devfn {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.dev(), self.func())
    }
}

impl Debug for Devfn {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// Segment, bus, device and function: the whole address of one PCI function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sbdf {
    /// PCI segment (Linux: domain).
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device and function number.
    pub devfn: Devfn,
}

impl Sbdf {
    /// From separate numbers; `None` when device or function is out of range.
    pub const fn new(segment: u16, bus: u8, dev: u8, func: u8) -> Option<Self> {
        match Devfn::new(dev, func) {
            Some(devfn) => Some(Sbdf {
                segment,
                bus,
                devfn,
            }),
            None => None,
        }
    }

    /// From the three words of a request (behaviour, section 5.1). `None` when a word has more bits
    /// than its part of an address: such a request means no function, it is not masked to one.
    pub fn from_wire(domain: u32, bus: u32, devfn: u32) -> Option<Self> {
        Some(Sbdf {
            segment: u16::try_from(domain).ok()?,
            bus: u8::try_from(bus).ok()?,
            devfn: Devfn::from_raw(u8::try_from(devfn).ok()?),
        })
    }

    /// Reads the value of `dev-N`: `%x:%x:%x.%x`, all four parts, hexadecimal, blanks around
    /// allowed (behaviour, section 4.1).
    pub fn parse_dev_key(text: &[u8]) -> Result<Self, SbdfError> {
        let mut scanner = Scanner::at(until_nul(text), 0);
        let segment = scanner.number(Expected::Number)?;
        scanner.mark(b':')?;
        let bus = scanner.number(Expected::Number)?;
        scanner.mark(b':')?;
        let dev = scanner.number(Expected::Number)?;
        scanner.mark(b'.')?;
        let func = scanner.number(Expected::Number)?;
        scanner.blanks();
        scanner.end()?;

        let dev = dev.small(Part::Device)?;
        let func = func.small(Part::Function)?;
        Ok(Sbdf {
            segment: segment.segment()?,
            bus: bus.small(Part::Bus)?,
            devfn: Devfn((dev << 3) | func),
        })
    }

    /// Reads the value of `vdev-N`, as [`VirtualDevText`] writes it. The grammar is that of
    /// [`Sbdf::parse_dev_key`], so that one digit of function is understood too.
    pub fn parse_vdev_key(text: &[u8]) -> Result<Self, SbdfError> {
        Self::parse_dev_key(text)
    }

    /// The root bus that this function is on.
    pub const fn root(self) -> RootText {
        RootText {
            segment: self.segment,
            bus: self.bus,
        }
    }
}

impl Display for Sbdf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{}", self.segment, self.bus, self.devfn)
    }
}

impl Debug for Sbdf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// Displays an address as the value of `vdev-N`: `%04x:%02x:%02x.%02x`, the function with two
/// digits (behaviour, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualDevText(pub Sbdf);

impl Display for VirtualDevText {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Sbdf {
            segment,
            bus,
            devfn,
        } = self.0;
        let (dev, func) = (devfn.dev(), devfn.func());
        write!(f, "{segment:04x}:{bus:02x}:{dev:02x}.{func:02x}")
    }
}

/// A root bus, displayed as the value of `root-N`: `%04x:%02x` (behaviour, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootText {
    /// PCI segment (Linux: domain).
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
}

impl RootText {
    /// Reads the value of `root-N`: `%x:%x`.
    pub fn parse_root_key(text: &[u8]) -> Result<Self, SbdfError> {
        let mut scanner = Scanner::at(until_nul(text), 0);
        let segment = scanner.number(Expected::Number)?;
        scanner.mark(b':')?;
        let bus = scanner.number(Expected::Number)?;
        scanner.blanks();
        scanner.end()?;
        Ok(RootText {
            segment: segment.segment()?,
            bus: bus.small(Part::Bus)?,
        })
    }
}

impl Display for RootText {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}", self.segment, self.bus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn devfn_takes_32_devices_of_8_functions_and_no_more() {
        for dev in 0..=u8::MAX {
            for func in 0..=u8::MAX {
                let devfn = Devfn::new(dev, func);
                assert_eq!(devfn.is_some(), dev <= 31 && func <= 7);
                if let Some(devfn) = devfn {
                    assert_eq!((devfn.dev(), devfn.func()), (dev, func));
                    assert_eq!(Devfn::from_raw(devfn.raw()), devfn);
                }
            }
        }
    }

    #[test]
    fn texts_have_the_widths_that_toolstacks_read() {
        let sbdf = Sbdf::new(0, 0, 5, 0).unwrap();
        assert_eq!(sbdf.to_string(), "0000:00:05.0");
        assert_eq!(VirtualDevText(sbdf).to_string(), "0000:00:05.00");
        assert_eq!(sbdf.root().to_string(), "0000:00");
        let sbdf = Sbdf::new(0x1abc, 0xfe, 31, 7).unwrap();
        assert_eq!(sbdf.to_string(), "1abc:fe:1f.7");
        assert_eq!(VirtualDevText(sbdf).to_string(), "1abc:fe:1f.07");
        assert_eq!(sbdf.root().to_string(), "1abc:fe");
    }

    #[test]
    fn wire_words_that_do_not_fit_mean_no_function() {
        assert_eq!(
            Sbdf::from_wire(0xffff, 0xff, 0xff),
            Sbdf::new(0xffff, 0xff, 31, 7)
        );
        assert_eq!(Sbdf::from_wire(0x1_0000, 0, 0), None);
        assert_eq!(Sbdf::from_wire(0, 0x100, 0), None);
        assert_eq!(Sbdf::from_wire(0, 0, 0x100), None);
        assert_eq!(Sbdf::from_wire(u32::MAX, u32::MAX, u32::MAX), None);
    }

    #[test]
    fn dev_key_needs_all_four_parts() {
        let parse = |text: &str| Sbdf::parse_dev_key(text.as_bytes());
        assert_eq!(parse("0000:03:1f.7"), Ok(Sbdf::new(0, 3, 31, 7).unwrap()));
        assert_eq!(parse(" 1:3:1f.7\n"), Ok(Sbdf::new(1, 3, 31, 7).unwrap()));
        assert_eq!(parse("0000:00:00.00"), Ok(Sbdf::new(0, 0, 0, 0).unwrap()));
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(message(""), "expected a hex number at byte 0");
        assert_eq!(message("zz"), "expected a hex number at byte 0");
        assert_eq!(message("03:00.0"), "expected ':' at byte 5");
        assert_eq!(message("0000:03:00"), "expected '.' at byte 10");
        assert_eq!(message("0000:03:00.*"), "expected a hex number at byte 11");
        assert_eq!(
            message("0000:03:00.0x"),
            "expected the end of the text at byte 12"
        );
        assert_eq!(
            message("10000:03:00.0"),
            "expected segment 0 to ffff at byte 0"
        );
        assert_eq!(message("0000:100:00.0"), "expected bus 0 to ff at byte 5");
        assert_eq!(message("0000:03:20.0"), "expected device 0 to 1f at byte 8");
        assert_eq!(
            message("0000:03:00.8"),
            "expected function 0 to 7 at byte 11"
        );
    }

    #[test]
    fn root_key_is_segment_and_bus() {
        let parse = |text: &str| RootText::parse_root_key(text.as_bytes());
        assert_eq!(parse("0001:02"), Ok(RootText { segment: 1, bus: 2 }));
        let message = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(message("0001"), "expected ':' at byte 4");
        assert_eq!(
            message("0001:02.0"),
            "expected the end of the text at byte 7"
        );
        assert_eq!(message("0001:100"), "expected bus 0 to ff at byte 5");
    }
}
