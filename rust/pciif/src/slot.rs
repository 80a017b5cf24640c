// SPDX-License-Identifier: GPL-2.0

//! Patterns of functions to seize: the text of `new_slot`, `remove_slot` and `hide=`.
//!
//! ```text
//! slot   = blanks [ number ":" ] number ":" target blanks      (behaviour, section 2)
//! target = number "." number | number "." "*" | "*.*"
//! hide   = { blanks "(" slot-without-blanks-around ")" blanks } (behaviour, section 1.1)
//! ```
//!
//! Numbers are hexadecimal, with or without `0x`; blanks may stand before a number, not before a
//! mark. A left-out first number is segment 0.

use crate::sbdf::{Devfn, Sbdf};
use crate::text::{is_blank, until_nul, Expected, Number, Part, Printable, Scanner, TextError};
use core::fmt::{self, Display, Formatter};

/// Why a text is not a pattern: where, and what was expected there. [`TextError::is_range`] tells
/// numbers that are too large from a broken grammar.
pub type SlotError = TextError;

/// A set of functions on one bus. `dev: None` always comes with `func: None`: the grammar has no
/// way to ask for one function of every device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPattern {
    /// PCI segment (Linux: domain).
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device number 0 to 31, or all.
    pub dev: Option<u8>,
    /// Function number 0 to 7, or all.
    pub func: Option<u8>,
}

impl SlotPattern {
    /// True when the pattern means this function.
    pub fn matches(&self, sbdf: Sbdf) -> bool {
        self.segment == sbdf.segment
            && self.bus == sbdf.bus
            && self.dev.is_none_or(|dev| dev == sbdf.devfn.dev())
            && self.func.is_none_or(|func| func == sbdf.devfn.func())
    }

    /// Every address that the pattern means, lowest first: 1, 8 or 256 of them.
    pub fn addresses(&self) -> impl Iterator<Item = Sbdf> {
        let pattern = *self;
        (0..=u8::MAX)
            .map(move |raw| Sbdf {
                segment: pattern.segment,
                bus: pattern.bus,
                devfn: Devfn::from_raw(raw),
            })
            .filter(move |sbdf| pattern.matches(*sbdf))
    }
}

impl From<Sbdf> for SlotPattern {
    fn from(sbdf: Sbdf) -> Self {
        SlotPattern {
            segment: sbdf.segment,
            bus: sbdf.bus,
            dev: Some(sbdf.devfn.dev()),
            func: Some(sbdf.devfn.func()),
        }
    }
}

impl Display for SlotPattern {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:", self.segment, self.bus)?;
        match self.dev {
            Some(dev) => write!(f, "{dev:02x}.")?,
            None => f.write_str("*.")?,
        }
        match self.func {
            Some(func) => write!(f, "{func}"),
            None => f.write_str("*"),
        }
    }
}

/// A pattern whose numbers are not yet held against their ranges: a text is first judged by its
/// grammar as a whole, so that the message names what is most wrong with it.
struct Unchecked {
    segment: Number,
    bus: Number,
    dev: Option<Number>,
    func: Option<Number>,
}

impl Unchecked {
    fn scan(scanner: &mut Scanner<'_>) -> Result<Self, TextError> {
        let first = scanner.number(Expected::Number)?;
        scanner.mark(b':')?;
        if scanner.take(b'*') {
            let segment = Number::left_out(0);
            return Self::all_of(scanner, segment, first);
        }
        let second = scanner.number(Expected::NumberOrStars)?;
        let (segment, bus, dev) = match scanner.peek() {
            Some(b'.') => (Number::left_out(0), first, second),
            Some(b':') => {
                scanner.mark(b':')?;
                if scanner.take(b'*') {
                    return Self::all_of(scanner, first, second);
                }
                (first, second, scanner.number(Expected::NumberOrStars)?)
            }
            _ => return Err(scanner.wanted(Expected::ColonOrDot)),
        };
        scanner.mark(b'.')?;
        let func = if scanner.take(b'*') {
            None
        } else {
            Some(scanner.number(Expected::NumberOrStar)?)
        };
        Ok(Unchecked {
            segment,
            bus,
            dev: Some(dev),
            func,
        })
    }

    /// The rest of `*.*`, its first star being read already.
    fn all_of(scanner: &mut Scanner<'_>, segment: Number, bus: Number) -> Result<Self, TextError> {
        scanner.mark(b'.')?;
        scanner.mark(b'*')?;
        Ok(Unchecked {
            segment,
            bus,
            dev: None,
            func: None,
        })
    }

    fn check(self) -> Result<SlotPattern, TextError> {
        Ok(SlotPattern {
            segment: self.segment.segment()?,
            bus: self.bus.small(Part::Bus)?,
            dev: self.dev.map(|dev| dev.small(Part::Device)).transpose()?,
            func: self
                .func
                .map(|func| func.small(Part::Function))
                .transpose()?,
        })
    }
}

/// Reads what was written to a sysfs attribute that names functions (behaviour, section 2): one
/// pattern, blanks around it, nothing else.
///
/// ```
/// use pciif::slot::parse_slot;
/// let pattern = parse_slot(b"0000:03:00.*\n").unwrap();
/// assert_eq!(pattern.to_string(), "0000:03:00.*");
/// assert!(parse_slot(b"03:00").is_err());
/// ```
pub fn parse_slot(text: &[u8]) -> Result<SlotPattern, SlotError> {
    let mut scanner = Scanner::at(until_nul(text), 0);
    let pattern = Unchecked::scan(&mut scanner)?;
    scanner.blanks();
    scanner.end()?;
    pattern.check()
}

/// The form of one item of `hide=`, for messages.
pub const HIDE_FORM: &str = "(DDDD:BB:SS.F), (BB:SS.F), (BB:SS.*) or (BB:*.*)";

/// How many bytes of a bad item a message repeats at most.
pub const HIDE_TEXT_MAX: usize = 48;

/// An item of `hide=` that is not understood. It is displayed as one line of printable ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HideError<'a> {
    /// Byte offset of the item in the text of the parameter.
    pub position: usize,
    /// The item, at most its first [`HIDE_TEXT_MAX`] bytes.
    pub text: &'a [u8],
    /// What was expected, and where in the text of the parameter.
    pub expected: TextError,
}

impl Display for HideError<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "item \"{}\" at byte {} skipped: {}; the form is {HIDE_FORM}",
            Printable(self.text),
            self.position,
            self.expected,
        )
    }
}

/// The items of the text of `hide=`, in order. A bad item is yielded as an error and the iterator
/// goes on at the next `(` behind its start, so that one typing error does not cost the others.
///
/// An empty text holds no items, and neither does `(null)`, which is how an unset text parameter
/// reads back.
#[derive(Clone, Debug)]
pub struct HideItems<'a> {
    text: &'a [u8],
    position: usize,
}

impl<'a> HideItems<'a> {
    /// Iterates over the text of the parameter.
    pub fn new(text: &'a [u8]) -> Self {
        let text = until_nul(text);
        HideItems {
            text: if text == b"(null)" { b"" } else { text },
            position: 0,
        }
    }

    fn scan(scanner: &mut Scanner<'_>) -> Result<SlotPattern, TextError> {
        scanner.mark(b'(')?;
        let pattern = Unchecked::scan(scanner)?;
        scanner.mark(b')')?;
        pattern.check()
    }

    /// Steps over the bad item that starts at `start` and returns its text.
    fn skip(&mut self, start: usize) -> &'a [u8] {
        let rest = self.text.get(start..).unwrap_or_default();
        let length = rest
            .iter()
            .enumerate()
            .skip(1)
            .find(|(_, &byte)| byte == b'(')
            .map_or(rest.len(), |(index, _)| index);
        self.position = start.saturating_add(length);
        let mut item = rest.get(..length).unwrap_or_default();
        while let [head @ .., last] = item {
            if !is_blank(*last) {
                break;
            }
            item = head;
        }
        item.get(..HIDE_TEXT_MAX).unwrap_or(item)
    }
}

impl<'a> Iterator for HideItems<'a> {
    type Item = Result<SlotPattern, HideError<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut scanner = Scanner::at(self.text, self.position);
        scanner.blanks();
        let start = scanner.position();
        scanner.peek()?;
        match Self::scan(&mut scanner) {
            Ok(pattern) => {
                self.position = scanner.position();
                Some(Ok(pattern))
            }
            Err(expected) => Some(Err(HideError {
                position: start,
                text: self.skip(start),
                expected,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn hide(text: &str) -> Vec<String> {
        HideItems::new(text.as_bytes())
            .map(|item| match item {
                Ok(pattern) => pattern.to_string(),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    fn skipped(item: &str, at: usize, reason: &str) -> String {
        std::format!("item \"{item}\" at byte {at} skipped: {reason}; the form is {HIDE_FORM}")
    }

    #[test]
    fn pattern_means_one_eight_or_all_functions() {
        let one = parse_slot(b"3:1f.7").unwrap();
        assert_eq!(one.addresses().count(), 1);
        let eight = parse_slot(b"3:1f.*").unwrap();
        assert_eq!(eight.addresses().count(), 8);
        assert!(eight.addresses().all(|sbdf| sbdf.devfn.dev() == 31));
        let all = parse_slot(b"1:3:*.*").unwrap();
        assert_eq!(all.addresses().count(), 256);
        assert!(all.addresses().all(|sbdf| all.matches(sbdf)));
        assert!(!all.matches(Sbdf::new(0, 3, 0, 0).unwrap()));
        assert!(!all.matches(Sbdf::new(1, 4, 0, 0).unwrap()));
    }

    #[test]
    fn function_and_device_must_match_when_given() {
        let pattern = parse_slot(b"3:5.2").unwrap();
        assert!(pattern.matches(Sbdf::new(0, 3, 5, 2).unwrap()));
        assert!(!pattern.matches(Sbdf::new(0, 3, 5, 3).unwrap()));
        assert!(!pattern.matches(Sbdf::new(0, 3, 6, 2).unwrap()));
        assert_eq!(pattern, Sbdf::new(0, 3, 5, 2).unwrap().into());
    }

    #[test]
    fn range_errors_are_told_from_syntax_errors() {
        let error = parse_slot(b"03:20.0").unwrap_err();
        assert!(error.is_range());
        assert_eq!(error.to_string(), "expected device 0 to 1f at byte 3");
        let error = parse_slot(b"03:20").unwrap_err();
        assert!(!error.is_range());
        assert_eq!(error.to_string(), "expected ':' or '.' at byte 5");
        // A number that 32 bits would cut to 3 is not bus 3.
        assert!(parse_slot(b"100000003:00.0").unwrap_err().is_range());
    }

    #[test]
    fn hide_without_items_is_nothing() {
        assert!(hide("").is_empty());
        assert!(hide(" \n").is_empty());
        assert!(hide("(null)").is_empty());
    }

    #[test]
    fn hide_goes_on_behind_a_bad_item() {
        assert_eq!(
            hide("(03:00.0),(04:00.0) (zz:00.0)x (05:00.9)(06:00.*)\n"),
            [
                "0000:03:00.0",
                &skipped(",", 9, "expected '(' at byte 9"),
                "0000:04:00.0",
                &skipped("(zz:00.0)x", 20, "expected a hex number at byte 21"),
                &skipped("(05:00.9)", 31, "expected function 0 to 7 at byte 38"),
                "0000:06:00.*",
            ]
        );
    }

    #[test]
    fn hide_item_without_parentheses_is_bad() {
        assert_eq!(
            hide("03:00.0 (04:00.0"),
            [
                skipped("03:00.0", 0, "expected '(' at byte 0"),
                skipped("(04:00.0", 8, "expected ')' at byte 16"),
            ]
        );
    }

    #[test]
    fn hide_error_is_one_bounded_printable_line() {
        let mut text = String::from("\n\x07\"\u{e9}");
        text.push_str(&"A".repeat(500));
        let lines = hide(&text);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("item \"\\x07\\x22\\xc3\\xa9AAAA"));
        assert!(lines[0].bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        assert!(lines[0].len() < 250);
    }
}
