// SPDX-License-Identifier: GPL-2.0

//! What a frontend makes of the answers to requests for MSI and MSI-X (behaviour, sections 5.2 and
//! 8.4).
//!
//! The PCI core asks for a number of vectors and understands three answers: done, an error, or *a smaller
//! number may work*, on which it asks again if the driver is content with that. So a driver that
//! wants more than a request can carry gets what it can carry, and one that wants more than Xen has
//! left for this guest gets a half, a quarter, and so on.

use crate::wire::{MsixEntry, MAX_MSIX_VECTORS};

/// How many vectors were refused to a guest for a function, the least of it: kept by the backend for as
/// long as the function is assigned.
///
/// The kernel writes a line for each refusal, so refusals are limited. But a driver that finds out how many it can
/// have must come to its end: it asks for a half each time. So half of what was refused may always be asked
/// for; from 128 vectors down to one that is eight refusals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused(Option<u16>);

impl Refused {
    /// Nothing was.
    pub const NONE: Self = Self(None);

    /// Whether `count` vectors may be asked for, whatever else has failed.
    pub const fn is_fresh(self, count: u16) -> bool {
        match self.0 {
            None => true,
            Some(least) => count <= least / 2,
        }
    }

    /// After `count` vectors were refused.
    #[must_use]
    pub const fn after(self, count: u16) -> Self {
        match self.0 {
            Some(least) if least < count => self,
            _ => Self(Some(count)),
        }
    }
}

/// Numbers of errors, as the kernel has them. (`core` has no names for them.)
mod errno {
    pub(super) const EIO: i32 = 5;
    pub(super) const EACCES: i32 = 13;
    pub(super) const ENODEV: i32 = 19;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EOPNOTSUPP: i32 = 95;
    /// Behind the last number.
    pub(super) const END: i32 = 4096;
}

/// An answer that the PCI core understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The vectors are there.
    Done,
    /// So many may work.
    Fewer(u16),
    /// None; a positive errno.
    Failed(i32),
}

/// The errno for a status that the backend wrote. Backends let errnos of their kernel through, which
/// cannot be told from a status below 6.
pub const fn errno_of(err: i32) -> i32 {
    match err.wrapping_neg() {
        1 => errno::ENODEV,
        2 => errno::EINVAL,
        3 => errno::EACCES,
        4 => errno::EOPNOTSUPP,
        5 => errno::EIO,
        number @ 6..errno::END => number,
        _ => errno::EINVAL,
    }
}

/// How many vectors to ask for at first when a driver wants `wanted`.
///
/// # Errors
///
/// What to tell the PCI core instead of asking.
pub fn first_request(wanted: i32) -> Result<u16, Outcome> {
    match u16::try_from(wanted) {
        Ok(0) | Err(_) if wanted <= 0 => Err(Outcome::Failed(errno::EINVAL)),
        Ok(count) if count <= MAX_MSIX_VECTORS => Ok(count),
        _ => Err(Outcome::Fewer(MAX_MSIX_VECTORS)),
    }
}

/// The answer to a request for MSI: the interrupt number, or a positive errno.
pub fn msi_vector(err: i32, value: u32) -> Result<i32, i32> {
    if err != 0 {
        return Err(errno_of(err));
    }
    match i32::try_from(value) {
        Ok(pirq @ 1..) => Ok(pirq),
        _ => Err(errno::EINVAL),
    }
}

/// The answer to a request for `entries`, which have the vectors that the backend wrote.
pub fn msix_outcome(err: i32, value: u32, entries: &[MsixEntry]) -> Outcome {
    let wanted = u16::try_from(entries.len()).unwrap_or(0);
    // CAST: the backend writes an errno of its kernel, or, in older ones, a number that would work.
    let result = if err != 0 { err } else { value as i32 };
    match result {
        0 if are_vectors(entries) => Outcome::Done,
        0 => Outcome::Failed(errno::EINVAL),
        1.. => match u16::try_from(result) {
            Ok(fewer) if fewer < wanted => Outcome::Fewer(fewer),
            _ => Outcome::Failed(errno::EINVAL),
        },
        _ => match errno_of(result) {
            // Without interrupts left. Backends that keep to the protocol's numbers say only that
            // it failed.
            errno::ENOSPC | errno::EIO if wanted > 1 => Outcome::Fewer(wanted / 2),
            number => Outcome::Failed(number),
        },
    }
}

/// Each entry has an interrupt number, and no two have the same.
fn are_vectors(entries: &[MsixEntry]) -> bool {
    entries.iter().enumerate().all(|(at, entry)| {
        let mut later = entries.iter().skip(at + 1);
        entry.vector != 0
            && entry.vector != u16::MAX
            && later.all(|other| other.vector != entry.vector)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_halves_its_wish_always_comes_to_its_end() {
        for first in 1..=128 {
            let (mut refused, mut count, mut refusals) = (Refused::NONE, first, 0);
            while count > 0 {
                assert!(refused.is_fresh(count), "{first}: {count}");
                refused = refused.after(count);
                refusals += 1;
                count /= 2;
            }
            assert!(refusals <= 8);
            // Nothing is left to be asked for like that.
            assert!((1..=128).all(|count| !refused.is_fresh(count)));
        }
    }

    #[test]
    fn refusals_in_any_order_are_few() {
        for step in 1..=128u16 {
            let (mut refused, mut refusals) = (Refused::NONE, 0);
            for at in 0..1000u32 {
                let count = 1 + ((at * u32::from(step)) % 128) as u16;
                if refused.is_fresh(count) {
                    refused = refused.after(count);
                    refusals += 1;
                }
            }
            assert!(refusals <= 8, "{step}: {refusals}");
        }
        assert_eq!(Refused::NONE.after(4).after(9), Refused::NONE.after(4));
    }
    use std::vec::Vec;

    fn entries(vectors: &[u16]) -> Vec<MsixEntry> {
        (0..)
            .zip(vectors)
            .map(|(entry, &vector)| MsixEntry { vector, entry })
            .collect()
    }

    #[test]
    fn driver_that_wants_more_than_a_request_carries_gets_what_it_carries() {
        assert_eq!(first_request(129), Err(Outcome::Fewer(128)));
        assert_eq!(first_request(2048), Err(Outcome::Fewer(128)));
        assert_eq!(first_request(i32::MAX), Err(Outcome::Fewer(128)));
        assert_eq!(first_request(128), Ok(128));
        assert_eq!(first_request(1), Ok(1));
        for wanted in [0, -1, i32::MIN] {
            assert_eq!(first_request(wanted), Err(Outcome::Failed(22)));
        }
    }

    #[test]
    fn vectors_are_believed_only_if_each_is_one_and_all_differ() {
        assert_eq!(msix_outcome(0, 0, &entries(&[55, 54, 53])), Outcome::Done);
        for bad in [[55, 0, 53], [55, 0xffff, 53], [55, 54, 55], [55, 55, 54]] {
            assert_eq!(msix_outcome(0, 0, &entries(&bad)), Outcome::Failed(22));
        }
    }

    #[test]
    fn lack_of_interrupts_halves_until_one() {
        for err in [-5, -28] {
            assert_eq!(msix_outcome(err, 0, &entries(&[0; 64])), Outcome::Fewer(32));
            assert_eq!(msix_outcome(err, 0, &entries(&[0; 3])), Outcome::Fewer(1));
        }
        assert_eq!(msix_outcome(-28, 0, &entries(&[0])), Outcome::Failed(28));
        assert_eq!(msix_outcome(-5, 0, &entries(&[0])), Outcome::Failed(5));
        // As a value beside a success, which is how the other end may say it.
        assert_eq!(
            msix_outcome(0, -28i32 as u32, &entries(&[0; 8])),
            Outcome::Fewer(4)
        );
        assert_eq!(msix_outcome(0, 3, &entries(&[0; 8])), Outcome::Fewer(3));
    }

    #[test]
    fn fewer_is_always_fewer_and_at_least_one() {
        for count in 1..=128u16 {
            let wanted = entries(&std::vec![0; usize::from(count)]);
            for err in (-300..=300).chain([i32::MIN, i32::MAX]) {
                for value in [0, 1, 64, 127, 128, 129, u32::MAX, -28i32 as u32] {
                    if let Outcome::Fewer(fewer) = msix_outcome(err, value, &wanted) {
                        assert!((1..count).contains(&fewer), "{count} {err} {value}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_status_and_errno_becomes_an_errno() {
        assert_eq!(
            [-1, -2, -3, -4, -5].map(errno_of),
            [19, 22, 13, 95, 5],
            "the protocol's"
        );
        assert_eq!(
            [-6, -22, -28, -114, -4095].map(errno_of),
            [6, 22, 28, 114, 4095]
        );
        for err in [0, 1, 5, 4096, -4096, i32::MIN, i32::MAX] {
            assert_eq!(errno_of(err), 22);
        }
    }

    #[test]
    fn msi_vector_is_a_positive_number() {
        assert_eq!(msi_vector(0, 55), Ok(55));
        assert_eq!(msi_vector(0, 0), Err(22));
        assert_eq!(msi_vector(0, u32::MAX), Err(22));
        assert_eq!(msi_vector(-5, 55), Err(5));
    }
}
