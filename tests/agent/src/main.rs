// SPDX-License-Identifier: GPL-2.0

//! What runs inside dom0 and the guests of the lab, static and small:
//!
//! * `agent serve TTY`: runs the commands that arrive on a terminal.
//! * `agent ask TTY SECONDS COMMAND`: has a command run by the server behind a terminal.
//! * `agent wait TTY SECONDS`: waits until there is a server behind a terminal.
//! * `agent read THREADS READS FILE VALUE`: reads the first four bytes of a configuration space.
//! * `agent measure WHAT ...`: figures, see [`measure`].

mod measure;

use agent::{Answer, Request};
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    process::{exit, Command},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc, Arc,
    },
    time::{Duration, Instant, SystemTime},
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", tty] => serve(tty),
        ["ask", tty, seconds, command] => ask(tty, seconds.parse().expect("seconds"), command, ASK),
        ["wait", tty, seconds] => ask(tty, seconds.parse().expect("seconds"), "true", WAIT),
        ["read", threads, reads, file, value] => read(
            threads.parse().expect("threads"),
            reads.parse().expect("reads"),
            file,
            u32::from_str_radix(value, 16).expect("value"),
        ),
        ["measure", ref what @ ..] => {
            if let Err(e) = measure(what) {
                eprintln!("{e}");
                exit(1);
            }
        }
        _ => usage(),
    }
}

fn measure(what: &[&str]) -> std::io::Result<()> {
    let number = |text: &str| text.parse().unwrap_or_else(|_| usage());
    match *what {
        [kind @ ("read" | "write"), file, offset, size, count] => measure::access(
            kind,
            file,
            number(offset) as u64,
            number(size),
            number(count),
        ),
        ["command", count, command] => measure::command(number(count), command),
        ["devices", count, command] => measure::devices(number(count), command),
        ["bind", driver, ref functions @ ..] => measure::bind(driver, functions),
        ["hypercalls", file] => measure::hypercalls(file),
        ["waits", count, file] => measure::waits(number(count), file),
        ["reconfigure", backend, frontend] => measure::reconfigure(backend, frontend),
        _ => usage(),
    }
}

fn usage() -> ! {
    eprintln!(
        "agent serve TTY | ask TTY SECONDS COMMAND | wait TTY SECONDS | read THREADS READS FILE VALUE | measure ...
measure read|write FILE OFFSET SIZE COUNT | command COUNT COMMAND | devices COUNT COMMAND |
    bind DRIVER FUNCTION... | waits COUNT FILE | reconfigure BACKEND FRONTEND | hypercalls FILE"
    );
    exit(2);
}

/// Opens a terminal and makes it pass bytes as they are.
fn raw(tty: &str) -> (File, File) {
    Command::new("stty")
        .args(["-F", tty, "raw", "-echo"])
        .status()
        .expect("stty");
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(tty)
            .expect("terminal")
    };
    (open(), open())
}

fn serve(tty: &str) -> ! {
    let (input, mut output) = raw(tty);
    let mut last: Option<Answer> = None;
    let mut answered = Instant::now();
    let mut input = BufReader::new(input);
    loop {
        let mut line = Vec::new();
        if input.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        let Some(request) = Request::from_line(&String::from_utf8_lossy(&line)) else {
            continue;
        };
        if last.as_ref().map(|a| a.id) != Some(request.id) {
            last = Some(run(&request));
        } else if answered.elapsed() < Duration::from_secs(2) {
            // Asked again while the command ran; a long answer, once for each of these, would keep
            // the line busy for minutes.
            continue;
        }
        if let Some(answer) = &last {
            let _ = output.write_all(answer.to_line().as_bytes());
            answered = Instant::now();
        }
    }
}

fn run(request: &Request) -> Answer {
    let file = "/tmp/agent-output";
    let output = File::create(file).expect("output");
    let status = Command::new("timeout")
        .args([
            "-s",
            "KILL",
            &request.timeout.to_string(),
            "sh",
            "-c",
            &request.command,
        ])
        .stdin(File::open("/dev/null").expect("null"))
        .stdout(output.try_clone().expect("output"))
        .stderr(output)
        .status();
    let output = std::fs::read(file).unwrap_or_default();
    Answer {
        id: request.id,
        status: status.ok().and_then(|s| s.code()).unwrap_or(124),
        output: String::from_utf8_lossy(&output).into_owned(),
    }
}

/// The pause before a request is sent again, at first and at most. Who starts loses what comes early; who is
/// at work needs no second request.
type Pauses = [Duration; 2];
const ASK: Pauses = [Duration::from_secs(1), Duration::from_secs(10)];
const WAIT: Pauses = [Duration::from_millis(250); 2];

fn ask(tty: &str, seconds: u64, command: &str, [first, most]: Pauses) -> ! {
    let (input, mut output) = raw(tty);
    let (send, answers) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(input).split(b'\n').map_while(Result::ok) {
            if let Some(answer) = Answer::from_line(&String::from_utf8_lossy(&line)) {
                if send.send(answer).is_err() {
                    break;
                }
            }
        }
    });
    let id = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(1, |d| d.as_nanos() as u64);
    let request = Request {
        id,
        timeout: seconds,
        command: command.to_owned(),
    };
    let end = Instant::now() + Duration::from_secs(seconds + 5);
    let mut pause = first;
    while Instant::now() < end {
        output
            .write_all(request.to_line().as_bytes())
            .expect("terminal");
        let again = Instant::now() + pause;
        pause = (pause * 2).min(most);
        while let Ok(answer) = answers.recv_timeout(again.saturating_duration_since(Instant::now()))
        {
            if answer.id == id {
                print!("{}", answer.output);
                exit(answer.status);
            }
        }
    }
    eprintln!("no answer on {tty} in {seconds} s");
    exit(125);
}

fn read(threads: u64, reads: u64, file: &str, value: u32) {
    let worst = Arc::new(AtomicU64::new(0));
    let wrong = Arc::new(AtomicU64::new(0));
    let long = Arc::new(AtomicU64::new(0));
    let all = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (worst, wrong, long) = (worst.clone(), wrong.clone(), long.clone());
            let all = all.clone();
            let file = file.to_owned();
            std::thread::spawn(move || {
                let file = File::open(file).expect("configuration space");
                for _ in 0..reads / threads {
                    let mut bytes = [0; 4];
                    let begin = Instant::now();
                    let result = file.read_exact_at(&mut bytes, 0);
                    let took = begin.elapsed();
                    worst.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
                    all.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
                    if took > Duration::from_millis(100) {
                        long.fetch_add(1, Ordering::Relaxed);
                    }
                    if result.is_err() || u32::from_le_bytes(bytes) != value {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().expect("thread");
    }
    let count = reads / threads * threads;
    println!(
        "reads={count} wrong={} over_100_ms={} worst_us={} mean_us={} seconds={:.1}",
        wrong.load(Ordering::Relaxed),
        long.load(Ordering::Relaxed),
        worst.load(Ordering::Relaxed),
        all.load(Ordering::Relaxed) / count.max(1),
        start.elapsed().as_secs_f64()
    );
}
