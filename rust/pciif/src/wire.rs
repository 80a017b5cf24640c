// SPDX-License-Identifier: GPL-2.0

//! The page that both domains share (behaviour, section 5.1).
//!
//! There is no ring: one request slot, one slot for error (AER) messages of the backend, and one
//! word of flags. All words are little endian. The drivers read the words they need once, with
//! volatile loads, and from then on work with the owned structs below.
//!
//! ```text
//!    0  flags      who has posted what
//!    4  request    cmd err domain bus devfn offset size value info
//!   40             128 x MSI-X entry { vector: u16, entry: u16 }
//!  552  error slot cmd err domain bus devfn
//!  572  end
//! ```

/// Byte offset of the flags word.
pub const FLAGS: usize = 0;
/// Byte offset of the request: its [`OP_WORDS`] words.
pub const OP: usize = 4;
/// Byte offset of the request's command word (u32).
pub const OP_CMD: usize = 4;
/// Byte offset of the request's result word (i32), written by the backend.
pub const OP_ERR: usize = 8;
/// Byte offset of the request's PCI segment (u32).
pub const OP_DOMAIN: usize = 12;
/// Byte offset of the request's bus number (u32).
pub const OP_BUS: usize = 16;
/// Byte offset of the request's packed device and function number (u32).
pub const OP_DEVFN: usize = 20;
/// Byte offset of the request's offset in configuration space (i32).
pub const OP_OFFSET: usize = 24;
/// Byte offset of the request's access size in bytes (i32).
pub const OP_SIZE: usize = 28;
/// Byte offset of the request's value word (u32): written by either side.
pub const OP_VALUE: usize = 32;
/// Byte offset of the request's info word (u32), which nobody uses.
pub const OP_INFO: usize = 36;
/// Byte offset of the first MSI-X entry.
pub const MSIX_ENTRIES: usize = 40;
/// Byte offset of the error slot: its [`AER_WORDS`] words.
pub const AER: usize = 552;
/// Bytes of the page that are in use.
pub const SHARED_SIZE: usize = 572;

/// Words of a request without its MSI-X entries.
pub const OP_WORDS: usize = 9;
/// Words of the error slot.
pub const AER_WORDS: usize = 5;
/// Bytes of one MSI-X entry.
pub const MSIX_ENTRY_SIZE: usize = 4;
/// How many MSI-X entries one request can carry.
pub const MAX_MSIX_VECTORS: u16 = 128;

/// A bit of the flags word.
///
/// # Invariants
///
/// The number is below 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(u8);

impl Flag {
    /// The bit with that number, if the word has it.
    pub const fn of_bit(number: u32) -> Option<Self> {
        match number {
            // INVARIANT: below 32 by the pattern.
            0..=31 => Some(Self(number as u8)),
            _ => None,
        }
    }

    /// The number of the bit, below 32.
    pub const fn number(self) -> u32 {
        self.0 as u32
    }

    /// The bit in the word.
    pub const fn mask(self) -> u32 {
        1 << self.0
    }
}

/// Set by the frontend with a request and cleared by the backend with its answer.
pub const FLAG_PCIF_ACTIVE: Flag = Flag(0);
/// Set by the frontend once, when it can serve error messages.
pub const FLAG_PCIB_AERHANDLER: Flag = Flag(1);
/// Set by the backend with an error message and cleared by the frontend with its answer.
pub const FLAG_PCIB_ACTIVE: Flag = Flag(2);

/// The text of the frontend's `magic` key (behaviour, section 4.1).
pub const MAGIC: &[u8] = b"7";

// The layout is one packed sequence of words: each part starts where the one before ends.
const _: () = {
    assert!(OP == FLAGS + 4 && OP_CMD == OP);
    assert!(OP_ERR == OP_CMD + 4);
    assert!(OP_DOMAIN == OP_ERR + 4);
    assert!(OP_BUS == OP_DOMAIN + 4);
    assert!(OP_DEVFN == OP_BUS + 4);
    assert!(OP_OFFSET == OP_DEVFN + 4);
    assert!(OP_SIZE == OP_OFFSET + 4);
    assert!(OP_VALUE == OP_SIZE + 4);
    assert!(OP_INFO == OP_VALUE + 4);
    assert!(MSIX_ENTRIES == OP + OP_WORDS * 4);
    assert!(AER == MSIX_ENTRIES + MAX_MSIX_VECTORS as usize * MSIX_ENTRY_SIZE);
    assert!(SHARED_SIZE == AER + AER_WORDS * 4);
    assert!(SHARED_SIZE <= 4096);
    assert!(core::mem::size_of::<PciOp>() == OP_WORDS * 4);
};

/// Byte offset of the MSI-X entry with this index; `None` behind the last one.
pub const fn msix_entry_offset(index: u16) -> Option<usize> {
    if index < MAX_MSIX_VECTORS {
        Some(MSIX_ENTRIES + index as usize * MSIX_ENTRY_SIZE)
    } else {
        None
    }
}

/// The words of a request, owned: the peer cannot change them any more. Nothing is checked yet; see
/// [`Request::parse`](crate::op::Request::parse).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciOp {
    /// What to do: an [`Opcode`](crate::op::Opcode).
    pub cmd: u32,
    /// The result: an [`OpStatus`](crate::op::OpStatus).
    pub err: i32,
    /// PCI segment.
    pub domain: u32,
    /// Bus number.
    pub bus: u32,
    /// Packed device and function number.
    pub devfn: u32,
    /// Offset in configuration space, in bytes.
    pub offset: i32,
    /// Size of the access in bytes.
    pub size: i32,
    /// Value written or read, count of MSI-X entries, or interrupt number.
    pub value: u32,
    /// Unused.
    pub info: u32,
}

impl PciOp {
    /// From the words of the page, in the order of the page.
    pub const fn from_words(words: &[u32; OP_WORDS]) -> Self {
        let [cmd, err, domain, bus, devfn, offset, size, value, info] = *words;
        PciOp {
            cmd,
            // CAST: the same 32 bits, as the protocol declares them.
            err: err as i32,
            domain,
            bus,
            devfn,
            // CAST: as above.
            offset: offset as i32,
            // CAST: as above.
            size: size as i32,
            value,
            info,
        }
    }

    /// The words of the page, in the order of the page.
    pub const fn to_words(self) -> [u32; OP_WORDS] {
        [
            self.cmd,
            // CAST: the same 32 bits, as the protocol declares them.
            self.err as u32,
            self.domain,
            self.bus,
            self.devfn,
            // CAST: as above.
            self.offset as u32,
            // CAST: as above.
            self.size as u32,
            self.value,
            self.info,
        ]
    }
}

/// One MSI-X entry of a request: which entry of the function's table, and (in the answer) which
/// interrupt number the guest binds for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsixEntry {
    /// Interrupt number (pirq), filled in by the backend.
    pub vector: u16,
    /// Index in the function's MSI-X table, filled in by the frontend.
    pub entry: u16,
}

impl MsixEntry {
    /// From the word of the page: vector in the low half, entry in the high half.
    pub const fn from_u32(word: u32) -> Self {
        MsixEntry {
            // CAST: the halves of a word, on purpose.
            vector: word as u16,
            entry: (word >> 16) as u16,
        }
    }

    /// The word of the page.
    pub const fn to_u32(self) -> u32 {
        ((self.entry as u32) << 16) | self.vector as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_one_of_the_words_32_bits() {
        for number in 0..32 {
            let flag = Flag::of_bit(number).unwrap();
            assert_eq!((flag.number(), flag.mask()), (number, 1 << number));
        }
        for number in [32, 33, 64, 255, 256, u32::MAX] {
            assert_eq!(Flag::of_bit(number), None);
        }
        assert_eq!(FLAG_PCIF_ACTIVE.mask(), 1);
        assert_eq!(FLAG_PCIB_AERHANDLER.mask(), 2);
        assert_eq!(FLAG_PCIB_ACTIVE.mask(), 4);
    }

    #[test]
    fn words_keep_their_order_and_sign() {
        let words = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let op = PciOp::from_words(&words);
        assert_eq!(
            op,
            PciOp {
                cmd: 1,
                err: 2,
                domain: 3,
                bus: 4,
                devfn: 5,
                offset: 6,
                size: 7,
                value: 8,
                info: 9,
            }
        );
        assert_eq!(op.to_words(), words);
        let op = PciOp::from_words(&[u32::MAX; OP_WORDS]);
        assert_eq!(
            (op.err, op.offset, op.size, op.value),
            (-1, -1, -1, u32::MAX)
        );
        assert_eq!(op.to_words(), [u32::MAX; OP_WORDS]);
    }

    #[test]
    fn msix_entry_has_the_vector_in_the_low_half() {
        let entry = MsixEntry::from_u32(0x0007_1234);
        assert_eq!((entry.vector, entry.entry), (0x1234, 7));
        assert_eq!(entry.to_u32(), 0x0007_1234);
        assert_eq!(entry.to_u32().to_le_bytes(), [0x34, 0x12, 0x07, 0x00]);
    }

    #[test]
    fn msix_entries_end_where_the_error_slot_starts() {
        assert_eq!(msix_entry_offset(0), Some(40));
        assert_eq!(msix_entry_offset(127), Some(AER - 4));
        assert_eq!(msix_entry_offset(128), None);
        assert_eq!(msix_entry_offset(u16::MAX), None);
    }
}
