// SPDX-License-Identifier: GPL-2.0

//! Writes of a guest that were dropped: how often, where, and the quirk that would let them through.
//!
//! One table per function, owned by who serves its requests and under the same lock. Its size is
//! fixed: a guest that writes everywhere fills it, and is then counted as a whole.

use crate::access::{AccessWidth, ConfigAccess};
use crate::quirk::{Quirk, QuirkLine};
use crate::sbdf::Sbdf;

/// How many registers are counted one by one.
pub const MAX_DENIED: usize = 16;

/// One register to which writes were dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeniedWrite {
    /// All bits that were dropped so far.
    bits: u32,
    /// How often, at most `u32::MAX`.
    count: u32,
    offset: u16,
    width: AccessWidth,
}

impl DeniedWrite {
    /// Byte offset in configuration space.
    pub const fn offset(&self) -> u16 {
        self.offset
    }

    /// Width of the accesses.
    pub const fn width(&self) -> AccessWidth {
        self.width
    }

    /// All bits that were dropped so far.
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// How many writes lost bits here; it stops at the largest number.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// What to write to `quirks` so that these bits reach the function at `address`. `None` cannot
    /// happen for what a configuration space has dropped.
    pub fn quirk_line(&self, address: Sbdf) -> Option<QuirkLine> {
        let quirk = Quirk::new(self.offset, self.width, self.bits)?;
        Some(QuirkLine { address, quirk })
    }
}

/// What was made of a dropped write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// The first one at this register: worth a line in the log.
    First,
    /// The register is known, but there are bits that were not dropped before.
    MoreBits,
    /// Seen before.
    Again,
    /// The table is full; counted with all others.
    Other,
}

/// The table.
#[derive(Clone, Debug, Default)]
pub struct DeniedWrites {
    entries: [Option<DeniedWrite>; MAX_DENIED],
    others: u32,
}

impl DeniedWrites {
    /// An empty table.
    pub const fn new() -> Self {
        DeniedWrites {
            entries: [None; MAX_DENIED],
            others: 0,
        }
    }

    /// Counts a write of which `bits` (as [`crate::config::WriteOutcome::dropped`] has them) were
    /// dropped. `None` when there are none.
    pub fn note(&mut self, access: ConfigAccess, bits: u32) -> Option<Noted> {
        let bits = bits & access.width().mask();
        if bits == 0 {
            return None;
        }
        for slot in &mut self.entries {
            match slot {
                Some(entry) if (entry.offset, entry.width) == (access.offset(), access.width()) => {
                    let more = bits & !entry.bits != 0;
                    entry.bits |= bits;
                    entry.count = entry.count.saturating_add(1);
                    return Some(if more { Noted::MoreBits } else { Noted::Again });
                }
                Some(_) => {}
                None => {
                    *slot = Some(DeniedWrite {
                        bits,
                        count: 1,
                        offset: access.offset(),
                        width: access.width(),
                    });
                    return Some(Noted::First);
                }
            }
        }
        self.others = self.others.saturating_add(1);
        Some(Noted::Other)
    }

    /// The registers, in the order in which they were first written.
    pub fn iter(&self) -> impl Iterator<Item = &DeniedWrite> {
        self.entries.iter().flatten()
    }

    /// What is known of one register at one width.
    pub fn get(&self, access: ConfigAccess) -> Option<&DeniedWrite> {
        self.iter()
            .find(|entry| (entry.offset, entry.width) == (access.offset(), access.width()))
    }

    /// How many dropped writes found the table full.
    pub const fn others(&self) -> u32 {
        self.others
    }

    /// Forgets everything: the next guest is counted afresh.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    fn access(offset: i32, size: i32) -> ConfigAccess {
        ConfigAccess::new(offset, size, 4096).unwrap()
    }

    #[test]
    fn writes_are_counted_per_register_and_width() {
        let mut denied = DeniedWrites::new();
        assert_eq!(denied.note(access(0x54, 4), 0x0f), Some(Noted::First));
        assert_eq!(denied.note(access(0x54, 4), 0x01), Some(Noted::Again));
        assert_eq!(denied.note(access(0x54, 4), 0xf0), Some(Noted::MoreBits));
        assert_eq!(denied.note(access(0x54, 2), 0x01), Some(Noted::First));
        assert_eq!(denied.note(access(0x54, 2), 0), None);
        let counts: Vec<_> = denied.iter().map(|e| (e.count(), e.bits())).collect();
        assert_eq!(counts, [(3, 0xff), (1, 0x01)]);
        denied.clear();
        assert_eq!(denied.iter().count(), 0);
    }

    #[test]
    fn full_table_counts_the_rest_together() {
        let mut denied = DeniedWrites::new();
        for index in 0..40 {
            let noted = denied.note(access(0x100 + index * 4, 4), 1);
            let expected = if index < 16 {
                Noted::First
            } else {
                Noted::Other
            };
            assert_eq!(noted, Some(expected));
        }
        assert_eq!((denied.iter().count(), denied.others()), (16, 24));
        // Those that have an entry keep it.
        assert_eq!(denied.note(access(0x100, 4), 1), Some(Noted::Again));
        denied.clear();
        assert_eq!(denied.others(), 0);
    }

    #[test]
    fn quirk_line_can_be_written_back() {
        let mut denied = DeniedWrites::new();
        denied.note(access(0xe0, 2), 0x00ff);
        let entry = denied.iter().next().unwrap();
        let address = Sbdf::new(0, 3, 0, 1).unwrap();
        let line = entry.quirk_line(address).unwrap();
        assert_eq!(line.to_string(), "03:00.1-e0:2:ff");
        assert_eq!(denied.get(access(0xe0, 2)), Some(entry));
        assert_eq!(denied.get(access(0xe0, 4)), None);
        let single = QuirkLine::for_dropped(address, access(0xe0, 2), 0x00ff);
        assert_eq!(single, Some(line));
        let nothing = QuirkLine::for_dropped(address, access(0xe0, 2), 0);
        assert_eq!(nothing, None);
        let parsed = crate::quirk::parse_quirk(line.to_string().as_bytes()).unwrap();
        assert_eq!(parsed, line);
        let far = entry.quirk_line(Sbdf::new(2, 3, 0, 1).unwrap()).unwrap();
        assert_eq!(far.to_string(), "0002:03:00.1-e0:2:ff");
    }
}
