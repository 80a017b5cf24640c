// SPDX-License-Identifier: GPL-2.0

//! The line to dom0's agent: commands go in, answers come back.
//!
//! Nothing here waits without end, whatever state the machine is in: a hypervisor that stands still, a dom0
//! that does not read, an emulator that does not either. Who owns a [`Control`] calls it from one thread;
//! a thread of its own reads what comes back, and ends when the emulator is gone.

use crate::host;
use agent::{Answer, Request};
use anyhow::{bail, Context, Result};
use std::{
    cell::Cell,
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// A request without an answer is sent again after so long: the line may have lost it.
const AGAIN: Duration = Duration::from_secs(5);
/// After so long without an answer, and as often from then on, the emulator itself is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long a dom0 gets that owes the answer before this one.
const SILENT: Duration = Duration::from_secs(30);

/// The line.
pub struct Control {
    stream: UnixStream,
    answers: Receiver<Answer>,
    next_id: Cell<u64>,
    /// Since when what runs now runs, and how long it may.
    deadline: Cell<Option<(Instant, Duration)>>,
    /// The last request was not answered.
    is_silent: Cell<bool>,
}

impl Control {
    /// Over the emulator's end of dom0's serial line.
    pub fn new(stream: UnixStream) -> Result<Self> {
        // A full line, when dom0 reads nothing.
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        let reader = BufReader::new(stream.try_clone()?);
        let (send, answers) = mpsc::channel();
        thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                if let Some(answer) = Answer::from_line(&String::from_utf8_lossy(&line)) {
                    if send.send(answer).is_err() {
                        break;
                    }
                }
            }
        });
        Ok(Self {
            stream,
            answers,
            next_id: Cell::new(1),
            deadline: Cell::new(None),
            is_silent: Cell::new(false),
        })
    }

    /// From now on everything has to be done in `limit`: what is asked later is refused. `None` ends that.
    pub fn limit(&self, limit: Option<Duration>) {
        self.deadline
            .set(limit.map(|limit| (Instant::now(), limit)));
    }

    /// Runs a shell command in dom0 for at most `inside` seconds of its time, and waits at most `outside` of
    /// the host's for the answer, without those in which the host kept its CPUs. `trouble` is asked now and then while there is none.
    ///
    /// # Errors
    ///
    /// When the emulator is gone, when there is no answer in that time, what `trouble` says, or when the
    /// time of [`Self::limit`] is over.
    pub fn ask(
        &self,
        command: &str,
        inside: u64,
        outside: u64,
        trouble: impl Fn() -> Option<String>,
    ) -> Result<Answer> {
        let request = Request {
            id: self.next_id.replace(self.next_id.get() + 1),
            timeout: inside,
            command: command.to_owned(),
        };
        let mut outside = Duration::from_secs(outside);
        if self.is_silent.replace(true) {
            outside = outside.min(SILENT);
        }
        let start = Instant::now();
        let mut look = start + LOOK_EVERY;
        while start.elapsed() < outside + host::withheld(start) {
            let is_over = |(start, limit): (Instant, Duration)| {
                start.elapsed() >= limit + host::withheld(start)
            };
            if self.deadline.get().is_some_and(is_over) {
                self.is_silent.set(false);
                bail!("the time for all of it is over, at: {command}");
            }
            if let Some(answer) = self.exchange(&request)? {
                self.is_silent.set(false);
                return Ok(answer);
            }
            if Instant::now() >= look {
                look += LOOK_EVERY;
                if let Some(trouble) = trouble() {
                    bail!(trouble);
                }
            }
        }
        bail!(
            "dom0 gave no answer in {} s to: {command}",
            outside.as_secs()
        )
    }

    /// Sends a request and waits for its answer until it is time to send it again.
    fn exchange(&self, request: &Request) -> Result<Option<Answer>> {
        match (&self.stream).write_all(request.to_line().as_bytes()) {
            Ok(()) => {}
            // Half of a line does no harm: what follows is found behind it.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(e) => return Err(e).context("QEMU is gone"),
        }
        let again = Instant::now() + AGAIN;
        loop {
            let left = again.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(answer) if answer.id == request.id => return Ok(Some(answer)),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => bail!("QEMU is gone"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> (Control, UnixStream) {
        let (ours, other) = UnixStream::pair().unwrap();
        (Control::new(ours).unwrap(), other)
    }

    fn failure(result: Result<Answer>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn a_machine_that_reads_nothing_does_not_keep_us() {
        let (control, _other) = line();
        let start = Instant::now();
        // More than the line takes.
        let long = "x".repeat(1 << 22);
        for _ in 0..2 {
            let why = failure(control.ask(&long, 1, 1, || None));
            assert!(why.starts_with("dom0 gave no answer in 1 s"), "{why:.99}");
        }
        assert!(start.elapsed() < SILENT);
    }

    #[test]
    fn who_owes_an_answer_gets_little_time_until_it_answers() {
        let (control, other) = line();
        assert!(control.ask("true", 1, 1, || None).is_err());
        assert!(control.is_silent.get());
        let answer = |id| Answer {
            id,
            status: 0,
            output: String::new(),
        };
        // One to the request that was given up, and one to that which is to come.
        for id in [1, 2] {
            (&other).write_all(answer(id).to_line().as_bytes()).unwrap();
        }
        assert_eq!(control.ask("true", 1, 1, || None).unwrap().id, 2);
        assert!(!control.is_silent.get());
        drop(other);
        let why = failure(control.ask("true", 1, 1, || None));
        assert!(why.starts_with("QEMU is gone"), "{why}");
    }

    #[test]
    fn nothing_is_asked_after_the_limit() {
        let (control, _other) = line();
        control.limit(Some(Duration::ZERO));
        let why = failure(control.ask("true", 60, 60, || None));
        assert_eq!(why, "the time for all of it is over, at: true");
        control.limit(None);
        let why = failure(control.ask("true", 60, 1, || None));
        assert!(why.starts_with("dom0 gave no answer"), "{why}");
    }
}
