// SPDX-License-Identifier: GPL-2.0

//! The pure half of the Xen PCI backend (`pciback`) and frontend (`pcifront`).
//!
//! Everything that can be decided without touching hardware, xenstore or the other domain's
//! memory is decided here, so that it can be tested with plain cargo. The crate is compiled twice:
//! by cargo for its tests, and by Kbuild into each of the two modules.
//!
//! ```text
//!   text of hide=, new_slot, dev-N ──▶ slot, sbdf          who is meant
//!   text of quirks ─────────────────▶ quirk ──▶ config     which bits are opened
//!   words of the shared page ───────▶ wire ──▶ op          what is asked
//!   guest address ──────────────────▶ topology             which function answers
//!   offset and size ────────────────▶ access ──▶ config    what the guest sees and may change
//!   writes that were dropped ───────▶ denied               how often, and the quirk that opens them
//!   xenbus states of both ends ─────▶ state                what to do next
//!   seize, assign, release, unbind ─▶ lifecycle            who owns the function
//!   enable, MSI, administrator ─────▶ intx                 who acknowledges a shared line
//!   errors of the hierarchy ────────▶ aer                  which handler, which verdict
//!   the frontend's requests ────────▶ exchange, cache      what is sent, and believed
//!   answers about MSI and MSI-X ────▶ vectors              how many the driver gets
//!   what a guest costs ─────────────▶ account, patience, lines  how much it may, how long it waits
//! ```
//!
//! Words such as "behaviour, section 6.3" in the documentation name the part of the specification
//! of the drivers' behaviour (kept with the project's working papers) that a rule comes from.
//!
//! Three rules hold everywhere:
//!
//! * No allocation: capacity comes from the caller's types.
//! * No panic on anything that comes from outside (a panic here is a crash of the whole host):
//!   numbers are checked when they enter, and only checked types travel on.
//! * What a function cannot do is an error that names the reason, never a guess.

#![no_std]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(test)]
extern crate std;

pub mod access;
pub mod account;
pub mod aer;
pub mod bucket;
pub mod cache;
pub mod config;
pub mod denied;
pub mod exchange;
pub mod intx;
pub mod lifecycle;
pub mod lines;
pub mod op;
pub mod patience;
pub mod quirk;
pub mod sbdf;
pub mod slot;
pub mod state;
pub mod text;
pub mod topology;
pub mod vectors;
pub mod wakes;
pub mod wire;
