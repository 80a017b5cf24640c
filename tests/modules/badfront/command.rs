// SPDX-License-Identifier: GPL-2.0

//! The commands, one or several with `;` between them; the results have a line each. The first that fails
//! is the last. Words are separated by blanks; numbers are decimal or `0x` hexadecimal, negative ones
//! are taken as the 32 bits of the page; `MS` is a time in ms. `OP` stands for the words
//! `CMD DOMAIN BUS DEVFN OFFSET SIZE VALUE [ENTRY...]`.
//!
//! ```text
//! open                     a new page and channel in place of those of before; nothing is published
//! connect                  open, then publish them as a good frontend does
//! keys                     ref=N port=N of the present ones
//! close                    gives them up
//! state N                  writes our state
//! store KEY [TEXT]         writes a key of our directory
//! remove KEY               removes it
//! backend KEY              reads a key of the backend's directory
//! wait MS N                until the backend's state is N
//! flap MS KEY N,N,...      writes these numbers to a key of our directory, one after the other, as fast as
//!                          it can; times=N
//! op OP                    a request; err=N value=N entries=N other=N, see `op`
//! post OP                  a request without waiting for its answer
//! flood MS OP              a request as soon as the one before is answered; answered=N err=N other_err=N
//! flood2 MS OP | OP ...    the same with two or more in turn; `err` has the first error of each, with commas
//! flip MS [OFFSET N,...].. writes the first number to each of these words of the page, then the second to
//!                          each, and so on, over and over; times=N
//! events MS                events without a request, as fast as it can; times=N
//! stop                     ends flap, flood, flood2, flip and events, wherever they run
//! flag set|clear BIT       changes one bit of the flags
//! peek OFFSET              value=N of a word of the page
//! poke OFFSET VALUE        writes a word of the page
//! aer MS ACTION [N]        waits for an error message of the backend, then `ignore`s it, `answer`s with
//!                          result N, or writes state Closing (`closing`) and leaves it unanswered;
//!                          `late MS N` answers after so long
//! ```

use crate::peer::{Link, Peer, WORDS};
use kernel::{
    fmt,
    prelude::*,
    str::CString,
    time::{delay::fsleep, Delta},
};
use pciif::wire::{self, PciOp};
use xen::{clock, store, xenbus};

/// How long one answer may take, in ms. A storm before it can have delayed the event by a second.
const PATIENCE: u32 = 20_000;

/// The result of a command.
pub(crate) struct Text(KVec<u8>);

impl Text {
    /// Nothing said yet.
    pub(crate) fn new() -> Self {
        Self(KVec::new())
    }

    /// What was said.
    pub(crate) fn into_bytes(self) -> KVec<u8> {
        self.0
    }

    fn say(&mut self, text: fmt::Arguments<'_>) -> Result {
        fmt::Write::write_fmt(self, text).map_err(|_| ENOMEM)
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0
            .extend_from_slice(text.as_bytes(), GFP_KERNEL)
            .map_err(|_| fmt::Error)
    }
}

/// The words of a command that are left.
struct Words<'a>(core::str::SplitAsciiWhitespace<'a>);

impl<'a> Words<'a> {
    fn text(&mut self) -> Result<&'a str> {
        self.0.next().ok_or(EINVAL)
    }

    fn number(&mut self) -> Result<u32> {
        number(self.text()?)
    }

    /// Numbers with commas between.
    fn numbers(&mut self) -> Result<KVec<u32>> {
        let mut all = KVec::new();
        for text in self.text()?.split(',') {
            all.push(number(text)?, GFP_KERNEL)?;
        }
        Ok(all)
    }

    fn end(&mut self) -> Result {
        match self.0.next() {
            None => Ok(()),
            Some(_) => Err(EINVAL),
        }
    }

    /// The only request, and the entries behind it.
    fn op(&mut self) -> Result<(PciOp, KVec<u32>)> {
        match self.op_of_several()? {
            (op, entries, false) => Ok((op, entries)),
            _ => Err(EINVAL),
        }
    }

    /// A request, the entries behind it, and whether there is a further one.
    fn op_of_several(&mut self) -> Result<(PciOp, KVec<u32>, bool)> {
        let mut word = || self.number();
        let (cmd, domain, bus, devfn) = (word()?, word()?, word()?, word()?);
        let (offset, size, value) = (word()?, word()?, word()?);
        // CAST: the same 32 bits, as the protocol declares them.
        let (offset, size) = (offset as i32, size as i32);
        let mut entries = KVec::new();
        let mut is_more = false;
        for text in self.0.by_ref() {
            if text == "|" {
                is_more = true;
                break;
            }
            entries.push(number(text)?, GFP_KERNEL)?;
        }
        let op = PciOp {
            cmd,
            domain,
            bus,
            devfn,
            offset,
            size,
            value,
            ..PciOp::default()
        };
        Ok((op, entries, is_more))
    }
}

/// A number as 32 bits.
fn number(text: &str) -> Result<u32> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    let value = value.map_err(|_| EINVAL)?;
    Ok(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}

/// Runs commands.
///
/// # Errors
///
/// `EINVAL` for a command that is none; `ETIMEDOUT` when something did not come; that of the store.
pub(crate) fn run(peer: &Peer, text: &[u8], out: &mut Text) -> Result {
    let text = core::str::from_utf8(text).map_err(|_| EINVAL)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    for (at, command) in text.split(';').enumerate() {
        if at > 0 {
            out.say(fmt!("\n"))?;
        }
        run_one(peer, command, out)?;
    }
    Ok(())
}

fn run_one(peer: &Peer, text: &str, out: &mut Text) -> Result {
    let mut words = Words(text.split_ascii_whitespace());
    let name = words.text()?;
    let directory = peer.dev.directory();
    match name {
        "open" => {
            peer.open()?;
        }
        "connect" => peer.publish(&*peer.open()?)?,
        "keys" => {
            let (grant, port) = peer.link()?.keys();
            return out.say(fmt!("ref={grant} port={port}"));
        }
        "close" => peer.close(),
        "state" => write_state(peer, words.number()?)?,
        "store" => {
            let key = CString::try_from_fmt(fmt!("{}", words.text()?))?;
            // What is behind the blank after the key, blanks and line ends included.
            let value = text.splitn(3, ' ').nth(2).unwrap_or("");
            return store::NOW.write(directory, &key, fmt!("{value}"));
        }
        "remove" => {
            let key = CString::try_from_fmt(fmt!("{}", words.text()?))?;
            store::NOW.remove(directory, &key)?;
        }
        "backend" => {
            let key = CString::try_from_fmt(fmt!("{}", words.text()?))?;
            let value = store::NOW.read(peer.dev.peer_directory(), &key)?;
            out.say(fmt!(
                "{}",
                core::str::from_utf8(value.bytes()).unwrap_or("?")
            ))?;
        }
        "wait" => return wait(peer, words.number()?, words.number()?, out),
        "flap" => return flap(peer, words.number()?, &mut words, out),
        "op" => return op(peer, &mut words, out),
        "post" => {
            let (op, entries) = words.op()?;
            peer.link()?.post(&op, &entries);
        }
        "flood" | "flood2" => {
            let ms = words.number()?;
            let all = requests(&mut words, name == "flood2")?;
            return flood(peer, ms, all, out);
        }
        "flip" => return flip(peer, words.number()?, &mut words, out),
        "events" => return events(peer, words.number()?, out),
        "stop" => peer.stop(),
        "flag" => {
            let link = peer.link()?;
            let set = words.text()?;
            let flag = wire::Flag::of_bit(words.number()?).ok_or(EINVAL)?;
            match set {
                "set" => link.page().set_flag(flag),
                "clear" => link.page().clear_flag(flag),
                _ => return Err(EINVAL),
            }
        }
        "peek" => {
            let value = peer.link()?.page().read(words.offset()?);
            out.say(fmt!("value={value:#x}"))?;
        }
        "poke" => peer.link()?.page().write(words.offset()?, words.number()?),
        "aer" => return aer(peer, words.number()?, &mut words, out),
        _ => return Err(EINVAL),
    }
    words.end()
}

impl Words<'_> {
    /// The byte offset of a word of the page.
    fn offset(&mut self) -> Result<usize> {
        // CAST: 32 bits fit.
        Ok(self.number()? as usize)
    }
}

fn write_state(peer: &Peer, state: u32) -> Result {
    store::NOW.write(peer.dev.directory(), c"state", fmt!("{state}"))
}

fn wait(peer: &Peer, ms: u32, wanted: u32, out: &mut Text) -> Result {
    let wanted = xenbus::state(wanted);
    let start = clock::now();
    loop {
        let state = peer.dev.peer_state();
        if state == wanted {
            return Ok(());
        }
        if !peer.goes_on(start, ms) {
            out.say(fmt!("the backend's state is {}", state.number()))?;
            return Err(ETIMEDOUT);
        }
        fsleep(Delta::from_millis(10));
    }
}

/// The time that a command has, until it is told to stop.
struct Turn<'a> {
    peer: &'a Peer,
    start: i64,
    ms: u32,
    stops: u32,
}

impl<'a> Turn<'a> {
    fn new(peer: &'a Peer, ms: u32) -> Self {
        Self {
            peer,
            start: clock::now(),
            ms,
            stops: peer.stops(),
        }
    }

    fn goes_on(&self) -> bool {
        self.peer.stops() == self.stops && self.peer.goes_on(self.start, self.ms)
    }
}

fn flap(peer: &Peer, ms: u32, words: &mut Words<'_>, out: &mut Text) -> Result {
    let key = CString::try_from_fmt(fmt!("{}", words.text()?))?;
    let states = words.numbers()?;
    let turn = Turn::new(peer, ms);
    let mut times = 0u32;
    while turn.goes_on() {
        for state in &states {
            store::NOW.write(peer.dev.directory(), &key, fmt!("{state}"))?;
            times = times.wrapping_add(1);
        }
    }
    out.say(fmt!("times={times}"))
}

fn events(peer: &Peer, ms: u32, out: &mut Text) -> Result {
    let link = peer.link()?;
    let turn = Turn::new(peer, ms);
    let mut times = 0u32;
    while turn.goes_on() {
        for _ in 0..64 {
            link.notify();
        }
        times = times.wrapping_add(64);
    }
    out.say(fmt!("times={times}"))
}

/// One request. The result says what the backend wrote: `entries` counts the MSI-X entries that changed,
/// `other` all further words of the page that did, apart from the answer and the bit of the request.
fn op(peer: &Peer, words: &mut Words<'_>, out: &mut Text) -> Result {
    let (op, entries) = words.op()?;
    let link = peer.link()?;
    let page = link.page();
    // A pattern where nobody has anything to write.
    for part in [wire::MSIX_ENTRIES..wire::AER, wire::SHARED_SIZE..WORDS * 4] {
        for at in part.step_by(4) {
            page.write(at, pattern(at));
        }
    }
    let mut before = KVec::new();
    link.prepare(&op, &entries);
    for at in 0..WORDS {
        before.push(page.read(at * 4), GFP_KERNEL)?;
    }
    link.post(&op, &entries);
    if !peer.answered(&link, PATIENCE) {
        out.say(fmt!("no answer"))?;
        return Err(ETIMEDOUT);
    }
    let (mut changed, mut other) = (0u32, 0u32);
    for (at, old) in (0..).step_by(4).zip(&before) {
        let new = page.read(at);
        if new == *old || at == wire::OP_ERR || at == wire::OP_VALUE {
            continue;
        }
        if (wire::MSIX_ENTRIES..wire::AER).contains(&at) {
            changed += 1;
        } else {
            other += 1;
        }
    }
    // CAST: the same 32 bits, as the protocol declares them.
    let err = page.read(wire::OP_ERR) as i32;
    let value = page.read(wire::OP_VALUE);
    out.say(fmt!(
        "err={err} value={value:#x} entries={changed} other={other}"
    ))
}

/// A word that is not zero and differs from its neighbours.
fn pattern(at: usize) -> u32 {
    // CAST: an offset in a page.
    (at as u32).wrapping_mul(0x0101_0101) ^ 0xa5a5_5a5a
}

/// One of the requests that a flood consists of, and the first error that it got.
struct Flooding {
    op: PciOp,
    entries: KVec<u32>,
    err: Option<i32>,
}

/// The requests of a flood: one, or `several`.
fn requests(words: &mut Words<'_>, several: bool) -> Result<KVec<Flooding>> {
    let mut all = KVec::new();
    loop {
        let (op, entries, is_more) = words.op_of_several()?;
        let err = None;
        all.push(Flooding { op, entries, err }, GFP_KERNEL)?;
        if !is_more {
            break;
        }
    }
    if several != (all.len() > 1) {
        return Err(EINVAL);
    }
    Ok(all)
}

fn flood(peer: &Peer, ms: u32, mut all: KVec<Flooding>, out: &mut Text) -> Result {
    let link = peer.link()?;
    let turn = Turn::new(peer, ms);
    let (mut answered, mut other) = (0u32, 0u32);
    let mut is_silent = false;
    while !is_silent && turn.goes_on() {
        for one in all.iter_mut() {
            link.post(&one.op, &one.entries);
            // An end that stops answering ends the flood, it is no error of the command.
            if !peer.answered(&link, 15_000) {
                is_silent = true;
                break;
            }
            answered = answered.wrapping_add(1);
            // CAST: the same 32 bits, as the protocol declares them.
            let err = link.page().read(wire::OP_ERR) as i32;
            if *one.err.get_or_insert(err) != err {
                other = other.wrapping_add(1);
            }
        }
    }
    out.say(fmt!("answered={answered} err="))?;
    for (at, one) in all.iter().enumerate() {
        let comma = if at > 0 { "," } else { "" };
        out.say(fmt!("{comma}{}", one.err.unwrap_or(1)))?;
    }
    out.say(fmt!(" other_err={other}"))?;
    if is_silent {
        out.say(fmt!(" then silence"))?;
    }
    Ok(())
}

fn flip(peer: &Peer, ms: u32, words: &mut Words<'_>, out: &mut Text) -> Result {
    let link = peer.link()?;
    let mut all = KVec::new();
    while let Ok(text) = words.text() {
        // CAST: 32 bits fit.
        let offset = number(text)? as usize;
        all.push((offset, words.numbers()?), GFP_KERNEL)?;
    }
    let rounds = all.iter().map(|(_, values)| values.len()).max();
    let rounds = rounds.ok_or(EINVAL)?;
    let turn = Turn::new(peer, ms);
    let mut times = 0u32;
    while turn.goes_on() {
        for _ in 0..64 {
            for round in 0..rounds {
                for (offset, values) in &all {
                    if let Some(value) = values.get(round) {
                        link.page().write(*offset, *value);
                    }
                }
            }
        }
        times = times.wrapping_add(64);
    }
    out.say(fmt!("times={times}"))
}

fn aer(peer: &Peer, ms: u32, words: &mut Words<'_>, out: &mut Text) -> Result {
    let action = words.text()?;
    let link: &Link = &*peer.link()?;
    let page = link.page();
    let start = clock::now();
    while !page.flag(wire::FLAG_PCIB_ACTIVE) {
        if !peer.goes_on(start, ms) {
            out.say(fmt!("no message"))?;
            return Err(ETIMEDOUT);
        }
        fsleep(Delta::from_millis(2));
    }
    let word = |at: usize| page.read(wire::AER + 4 * at);
    out.say(fmt!(
        "cmd={} err={} domain={:#x} bus={:#x} devfn={:#x}",
        word(0),
        word(1),
        word(2),
        word(3),
        word(4)
    ))?;
    let answer = |number: u32| {
        page.write(wire::AER + 4, number);
        page.clear_flag(wire::FLAG_PCIB_ACTIVE);
        link.notify();
        Ok(())
    };
    match action {
        "ignore" => Ok(()),
        "answer" => answer(words.number()?),
        "late" => {
            let ms = words.number()?;
            fsleep(Delta::from_millis(ms.into()));
            answer(words.number()?)
        }
        "closing" => write_state(peer, 5),
        _ => Err(EINVAL),
    }
}
