// SPDX-License-Identifier: GPL-2.0

//! Text for the log. How many lines another domain can provoke is in [`pciif::lines`].

/// Makes what `core` can format usable in the kernel's log and format macros, which have a trait of
/// their own. The pure crate knows nothing of the kernel.
pub struct Show<T>(pub T);

impl<T: core::fmt::Display> kernel::fmt::Display for Show<T> {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        self.0.fmt(f)
    }
}
