// SPDX-License-Identifier: GPL-2.0

//! A window of configuration space that has been checked: the only way to name a register.

use crate::op::OpStatus;

/// How many bytes one access covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessWidth {
    /// One byte.
    Byte,
    /// Two bytes.
    Word,
    /// Four bytes.
    Dword,
}

impl AccessWidth {
    /// From a count of bytes: 1, 2 or 4.
    pub const fn from_bytes(bytes: i32) -> Option<Self> {
        match bytes {
            1 => Some(AccessWidth::Byte),
            2 => Some(AccessWidth::Word),
            4 => Some(AccessWidth::Dword),
            _ => None,
        }
    }

    /// The count of bytes.
    pub const fn bytes(self) -> u8 {
        match self {
            AccessWidth::Byte => 1,
            AccessWidth::Word => 2,
            AccessWidth::Dword => 4,
        }
    }

    /// The bits that a value of this width can have.
    pub const fn mask(self) -> u32 {
        match self {
            AccessWidth::Byte => 0xff,
            AccessWidth::Word => 0xffff,
            AccessWidth::Dword => 0xffff_ffff,
        }
    }
}

/// Offset and width of one access: aligned to its width and inside the function's configuration
/// space. Everything that was a signed number from outside ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAccess {
    offset: u16,
    width: AccessWidth,
}

impl ConfigAccess {
    /// Checks an offset and a size in bytes against a configuration space of `config_size` bytes.
    ///
    /// The rule is `0 <= offset`, `offset + size <= config_size`, size 1, 2 or 4, offset a multiple
    /// of size (behaviour, section 6.1, with both bounds added).
    ///
    /// # Errors
    ///
    /// [`OpStatus::InvalidOffset`] when any part of the rule is broken.
    pub const fn new(offset: i32, size: i32, config_size: u16) -> Result<Self, OpStatus> {
        let Some(width) = AccessWidth::from_bytes(size) else {
            return Err(OpStatus::InvalidOffset);
        };
        // `size` is 1, 2 or 4 here, so neither the remainder nor the sum of an offset below 64 KiB
        // can fail.
        if offset < 0 || offset > 0xffff || offset % size != 0 {
            return Err(OpStatus::InvalidOffset);
        }
        if offset + size > config_size as i32 {
            return Err(OpStatus::InvalidOffset);
        }
        Ok(ConfigAccess {
            // CAST: between 0 and ffff, checked above.
            offset: offset as u16,
            width,
        })
    }

    /// Number of the last 4-byte unit that any configuration space can have.
    pub(crate) const LAST_DWORD: u16 = 0x3ff;

    /// A register of `width` at dword number `dword` plus `byte`, from our own tables: there the
    /// alignment is asserted at compile time.
    pub(crate) const fn of_table(dword: u16, byte: u8, width: AccessWidth) -> Self {
        ConfigAccess {
            // Configuration space has 10 bits of dword numbers; the mask keeps the product inside.
            offset: (dword & Self::LAST_DWORD) * 4 + (byte & 3) as u16,
            width,
        }
    }

    /// The smallest access inside this one that covers `lanes`, bits of the 4-byte unit. A device
    /// then sees no write to bytes that nobody meant.
    pub(crate) const fn narrowed(self, lanes: u32) -> Self {
        let mut access = self;
        loop {
            let half = match access.width {
                AccessWidth::Byte => return access,
                AccessWidth::Word => AccessWidth::Byte,
                AccessWidth::Dword => AccessWidth::Word,
            };
            let low = ConfigAccess {
                offset: access.offset,
                width: half,
            };
            let high = ConfigAccess {
                offset: access.offset | half.bytes() as u16,
                width: half,
            };
            if high.lanes() & lanes == 0 {
                access = low;
            } else if low.lanes() & lanes == 0 {
                access = high;
            } else {
                return access;
            }
        }
    }

    /// Byte offset in configuration space.
    pub const fn offset(self) -> u16 {
        self.offset
    }

    /// How many bytes the access covers.
    pub const fn width(self) -> AccessWidth {
        self.width
    }

    /// Number of the 4-byte unit that the access lies in; an aligned access never crosses two.
    pub(crate) const fn dword(self) -> u16 {
        self.offset / 4
    }

    /// By how many bits a value of this access is shifted inside its 4-byte unit: 0, 8, 16 or 24.
    pub(crate) const fn shift(self) -> u32 {
        (self.offset as u32 & 3) * 8
    }

    /// The bits of the 4-byte unit that the access covers.
    pub(crate) const fn lanes(self) -> u32 {
        self.width.mask() << self.shift()
    }

    /// One byte behind the last byte.
    pub(crate) const fn end(self) -> u32 {
        self.offset as u32 + self.width.bytes() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_is_accepted_exactly_when_the_rule_holds() {
        for config_size in [0, 64, 0xa0, 256, 0x600, 4096, 0xffff] {
            for size in -5..=9 {
                for offset in (-70_000..=70_000).step_by(1) {
                    let rule = matches!(size, 1 | 2 | 4)
                        && offset >= 0
                        && offset % size == 0
                        && offset + size <= i32::from(config_size);
                    let access = ConfigAccess::new(offset, size, config_size);
                    assert_eq!(access.is_ok(), rule, "{offset} {size} {config_size}");
                }
            }
        }
    }

    #[test]
    fn extreme_offsets_are_refused_without_overflow() {
        for offset in [
            i32::MIN,
            i32::MIN + 4,
            -4096,
            -4092,
            -4,
            0x7fff_fffc,
            i32::MAX,
        ] {
            for size in [i32::MIN, -1, 0, 1, 2, 3, 4, i32::MAX] {
                let access = ConfigAccess::new(offset, size, 4096);
                assert_eq!(access, Err(OpStatus::InvalidOffset));
            }
        }
    }

    #[test]
    fn narrowed_access_is_the_smallest_that_covers_the_bits() {
        let whole = ConfigAccess::new(0x40, 4, 256).unwrap();
        for (lanes, offset, bytes) in [
            (0x0000_0001, 0x40, 1),
            (0x0000_8000, 0x41, 1),
            (0x00ff_0000, 0x42, 1),
            (0x8000_0000, 0x43, 1),
            (0x0000_8001, 0x40, 2),
            (0x8001_0000, 0x42, 2),
            (0x0001_8000, 0x40, 4),
            (0xffff_ffff, 0x40, 4),
        ] {
            let narrow = whole.narrowed(lanes);
            assert_eq!((narrow.offset(), narrow.width().bytes()), (offset, bytes));
        }
        let word = ConfigAccess::new(0x42, 2, 256).unwrap();
        assert_eq!(word.narrowed(0xff00_0000).offset(), 0x43);
        assert_eq!(word.narrowed(0xffff_0000), word);
    }

    #[test]
    fn lanes_show_the_place_inside_the_dword() {
        let access = ConfigAccess::new(0x06, 2, 256).unwrap();
        assert_eq!((access.dword(), access.shift()), (1, 16));
        assert_eq!(access.lanes(), 0xffff_0000);
        let access = ConfigAccess::new(0xff, 1, 256).unwrap();
        assert_eq!((access.dword(), access.shift()), (63, 24));
        assert_eq!((access.lanes(), access.end()), (0xff00_0000, 256));
    }
}
