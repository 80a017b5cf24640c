// SPDX-License-Identifier: GPL-2.0

//! Reading numbers and marks from text, and saying exactly where text went wrong.
//!
//! The number syntax is that of the kernel's `%x`: blanks before the number are skipped, an
//! optional `0x` is accepted, any count of digits. A number that does not fit 32 bits is kept as
//! the largest one, so that it can only fail the range check that follows, never alias a small one.

use core::fmt::{self, Display, Formatter, Write};

/// A part of a PCI address, with the range that it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// PCI segment (domain): 0 to ffff.
    Segment,
    /// Bus number: 0 to ff.
    Bus,
    /// Device (slot) number: 0 to 1f.
    Device,
    /// Function number: 0 to 7.
    Function,
    /// Register, an offset in configuration space: 0 to fff.
    Register,
}

impl Part {
    /// The largest number that this part may have.
    pub const fn max(self) -> u32 {
        match self {
            Part::Segment => 0xffff,
            Part::Bus => 0xff,
            Part::Device => 0x1f,
            Part::Function => 7,
            Part::Register => 0xfff,
        }
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = match self {
            Part::Segment => "segment",
            Part::Bus => "bus",
            Part::Device => "device",
            Part::Function => "function",
            Part::Register => "register",
        };
        write!(f, "{name} 0 to {:x}", self.max())
    }
}

/// What a parser wanted to see at the place where the text went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A hexadecimal number.
    Number,
    /// A hexadecimal number, or `*` for all.
    NumberOrStar,
    /// A hexadecimal number, or `*.*` for all devices and functions.
    NumberOrStars,
    /// This one character (printable ASCII).
    Mark(u8),
    /// `:` or `.`.
    ColonOrDot,
    /// The end of the text.
    End,
}

impl Display for Expected {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Number => f.write_str("a hex number"),
            Expected::NumberOrStar => f.write_str("a hex number or '*'"),
            Expected::NumberOrStars => f.write_str("a hex number or '*.*'"),
            Expected::Mark(mark) => write!(f, "'{}'", char::from(*mark)),
            Expected::ColonOrDot => f.write_str("':' or '.'"),
            Expected::End => f.write_str("the end of the text"),
        }
    }
}

/// Why a text is not an address. Positions are byte offsets from the start of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextError {
    /// The text does not follow the grammar.
    Syntax {
        /// Where it stops to follow it.
        position: usize,
        /// What would have been right there.
        expected: Expected,
    },
    /// The text follows the grammar, but one number is larger than its part of the address allows.
    Range {
        /// Where that number starts.
        position: usize,
        /// Which part it was meant to be.
        part: Part,
    },
}

impl TextError {
    /// Byte offset at which the text went wrong.
    pub const fn position(&self) -> usize {
        match self {
            TextError::Syntax { position, .. } | TextError::Range { position, .. } => *position,
        }
    }

    /// True when only a number was too large, so that no such function can exist.
    pub const fn is_range(&self) -> bool {
        matches!(self, TextError::Range { .. })
    }
}

impl Display for TextError {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            TextError::Syntax { position, expected } => {
                write!(f, "expected {expected} at byte {position}")
            }
            TextError::Range { position, part } => write!(f, "expected {part} at byte {position}"),
        }
    }
}

/// Displays bytes that somebody else wrote as one line of printable ASCII: everything else, and
/// quotes and backslashes, as `\xNN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Printable<'a>(pub &'a [u8]);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            match byte {
                b'"' | b'\\' => write!(f, "\\x{byte:02x}")?,
                b' '..=b'~' => f.write_char(char::from(byte))?,
                _ => write!(f, "\\x{byte:02x}")?,
            }
        }
        Ok(())
    }
}

/// True for the blanks that the kernel's scanner skips.
pub(crate) const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

/// The part of `text` before the first NUL, as C would see it.
pub(crate) fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|&byte| byte == 0).next().unwrap_or(text)
}

/// A number and where it stood, not yet held against a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    value: u32,
    position: usize,
    /// It had more than 32 bits.
    cut_off: bool,
}

impl Number {
    /// Zero, for a part that was left out at `position`.
    pub(crate) const fn left_out(position: usize) -> Self {
        Number {
            value: 0,
            position,
            cut_off: false,
        }
    }

    fn within(self, part: Part) -> Result<u32, TextError> {
        if self.value <= part.max() {
            Ok(self.value)
        } else {
            Err(TextError::Range {
                position: self.position,
                part,
            })
        }
    }

    /// The number itself; one too large for 32 bits is the largest one.
    pub(crate) const fn value(self) -> u32 {
        self.value
    }

    /// True when it had more than 32 bits.
    pub(crate) const fn is_cut_off(self) -> bool {
        self.cut_off
    }

    /// Byte offset at which it starts.
    pub(crate) const fn position(self) -> usize {
        self.position
    }

    /// The number as a register.
    pub(crate) fn register(self) -> Result<u16, TextError> {
        // CAST: `within` bounds it by fff.
        self.within(Part::Register).map(|value| value as u16)
    }

    /// The number as a segment.
    pub(crate) fn segment(self) -> Result<u16, TextError> {
        // CAST: `within` bounds it by ffff.
        self.within(Part::Segment).map(|value| value as u16)
    }

    /// The number as a bus, device or function.
    pub(crate) fn small(self, part: Part) -> Result<u8, TextError> {
        // CAST: the mask makes it fit; a segment is never asked for here.
        self.within(part).map(|value| (value & 0xff) as u8)
    }
}

/// A reader that walks over text and never past its end.
#[derive(Clone, Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    position: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at byte `position` of `text`.
    pub(crate) fn at(text: &'a [u8], position: usize) -> Self {
        Scanner { text, position }
    }

    /// Byte offset of the next unread byte.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The next unread byte.
    pub(crate) fn peek(&self) -> Option<u8> {
        self.text.get(self.position).copied()
    }

    fn advance(&mut self) {
        self.position = self.position.saturating_add(1);
    }

    /// Skips blanks.
    pub(crate) fn blanks(&mut self) {
        while self.peek().is_some_and(is_blank) {
            self.advance();
        }
    }

    /// Takes `mark` if it comes next.
    pub(crate) fn take(&mut self, mark: u8) -> bool {
        let found = self.peek() == Some(mark);
        if found {
            self.advance();
        }
        found
    }

    /// An error about the next unread byte.
    pub(crate) fn wanted(&self, expected: Expected) -> TextError {
        TextError::Syntax {
            position: self.position,
            expected,
        }
    }

    /// Takes `mark`, which has to come next.
    pub(crate) fn mark(&mut self, mark: u8) -> Result<(), TextError> {
        if self.take(mark) {
            Ok(())
        } else {
            Err(self.wanted(Expected::Mark(mark)))
        }
    }

    /// Requires the end of the text.
    pub(crate) fn end(&self) -> Result<(), TextError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.wanted(Expected::End)),
        }
    }

    fn peek_digit(&self) -> Option<u32> {
        self.peek().and_then(|byte| char::from(byte).to_digit(16))
    }

    /// Skips a `0x` that has a digit behind it; without one, the `0` is the number.
    fn skip_prefix(&mut self) {
        let rest = self.text.get(self.position..).unwrap_or_default();
        if let [b'0', b'x' | b'X', digit, ..] = rest {
            if digit.is_ascii_hexdigit() {
                self.advance();
                self.advance();
            }
        }
    }

    /// Takes blanks and a hexadecimal number; `expected` is what the error asks for.
    pub(crate) fn number(&mut self, expected: Expected) -> Result<Number, TextError> {
        self.blanks();
        let position = self.position;
        if self.peek_digit().is_none() {
            return Err(self.wanted(expected));
        }
        self.skip_prefix();
        let mut value: u32 = 0;
        let mut cut_off = false;
        while let Some(digit) = self.peek_digit() {
            cut_off |= value > u32::MAX >> 4;
            value = value.saturating_mul(16).saturating_add(digit);
            self.advance();
        }
        Ok(Number {
            value,
            position,
            cut_off,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn number(text: &str) -> Result<u32, TextError> {
        Scanner::at(text.as_bytes(), 0)
            .number(Expected::Number)
            .map(|number| number.value)
    }

    #[test]
    fn number_skips_blanks_and_prefix() {
        assert_eq!(number("1f"), Ok(0x1f));
        assert_eq!(number(" \t\n1F"), Ok(0x1f));
        assert_eq!(number("0x1f"), Ok(0x1f));
        assert_eq!(number("0X1f"), Ok(0x1f));
    }

    #[test]
    fn prefix_without_digit_is_the_number_zero() {
        for text in ["0x", "0xg", "0x:"] {
            let mut scanner = Scanner::at(text.as_bytes(), 0);
            assert_eq!(scanner.number(Expected::Number).map(|n| n.value), Ok(0));
            assert_eq!(scanner.peek(), Some(b'x'));
        }
    }

    #[test]
    fn number_too_large_for_32_bits_stays_too_large() {
        assert_eq!(number("100000003"), Ok(u32::MAX));
        assert_eq!(number("fffffffffffffffffffffffff"), Ok(u32::MAX));
    }

    #[test]
    fn missing_number_is_named_with_its_position() {
        let error = number("  g").unwrap_err();
        assert_eq!(error.to_string(), "expected a hex number at byte 2");
    }

    #[test]
    fn printable_escapes_all_but_plain_ascii() {
        assert_eq!(
            Printable(b"a b\n\"\\\x7f\xff~").to_string(),
            "a b\\x0a\\x22\\x5c\\x7f\\xff~"
        );
    }

    #[test]
    fn text_ends_at_the_first_nul() {
        assert_eq!(until_nul(b"ab\0cd\0"), b"ab");
        assert_eq!(until_nul(b"ab"), b"ab");
        assert_eq!(until_nul(b""), b"");
    }
}
