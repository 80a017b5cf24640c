// SPDX-License-Identifier: GPL-2.0

//! Figures for `make bench`, one line of JSON each. All times are in ns.

use std::{
    collections::BTreeMap,
    fs::{read_dir, read_to_string, write, OpenOptions},
    io::{Error, ErrorKind, Read, Result, Write},
    os::unix::{fs::FileExt, net::UnixStream},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// `read|write FILE OFFSET SIZE COUNT`: accesses to a configuration space. What is written is what was read.
/// What the clock itself needs, a system call in these guests, is taken off.
pub fn access(kind: &str, file: &str, offset: u64, size: usize, count: usize) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(kind == "write")
        .open(file)?;
    let mut bytes = vec![0; size];
    // Not counted: the first of all may be dearer.
    file.read_exact_at(&mut bytes, offset)?;
    let mut clock: Vec<_> = (0..101).map(|_| Instant::now().elapsed()).collect();
    clock.sort_unstable();
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        if kind == "write" {
            file.write_all_at(&bytes, offset)?;
        } else {
            file.read_exact_at(&mut bytes, offset)?;
        }
        samples.push(begin.elapsed().saturating_sub(clock[50]));
    }
    print(samples);
    Ok(())
}

/// Runs a shell command `count` times.
pub fn command(count: usize, command: &str) -> Result<()> {
    let mut samples = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        run(command)?;
        samples.push(begin.elapsed());
    }
    print(samples);
    Ok(())
}

/// Runs a shell command that loads the frontend, and waits until it is connected and there are `count` PCI
/// devices. The end of the command is not waited for: the kernel's bus code looks only ten times a second
/// whether a new driver's devices are connected, and holds up `insmod` until then.
pub fn devices(count: usize, command: &str) -> Result<()> {
    const CONNECTED: &str = "/sys/bus/xen/devices/pci-0/state";
    let begin = Instant::now();
    let mut child = shell(command).spawn()?;
    let usable = loop {
        let connected = read_to_string(CONNECTED).is_ok_and(|state| state.trim() == "Connected");
        if connected && read_dir("/sys/bus/pci/devices")?.count() == count {
            break begin.elapsed();
        }
        if begin.elapsed() > PATIENCE {
            let _ = child.kill();
            return Err(ErrorKind::TimedOut.into());
        }
        sleep(Duration::from_millis(1));
    };
    ended_well(command, child.wait()?)?;
    print(vec![usable]);
    Ok(())
}

fn run(command: &str) -> Result<()> {
    ended_well(command, shell(command).status()?)
}

fn shell(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    shell
}

fn ended_well(command: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        return Err(Error::other(format!("{command}: {status}")));
    }
    Ok(())
}

/// Gives functions to a PCI driver, one after the other: the time of each, in the order given.
pub fn bind(driver: &str, functions: &[&str]) -> Result<()> {
    let mut samples = Vec::with_capacity(functions.len());
    for function in functions {
        let begin = Instant::now();
        write(format!("{driver}/new_slot"), function)?;
        write(format!("{driver}/bind"), function)?;
        samples.push(begin.elapsed().as_nanos());
    }
    println!("{samples:?}");
    Ok(())
}

/// In dom0: how long its own programs wait, `count` times, as medians in us: a program that reads the store, a
/// read of a file of a driver, and how much later than asked for a sleeper runs again.
pub fn waits(count: usize, file: &str) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(5);
    let mut samples = [const { Vec::new() }; 3];
    for _ in 0..count {
        let begin = Instant::now();
        let status = Command::new("xenstore-read")
            .arg("/lab")
            .stdout(Stdio::null())
            .status()?;
        samples[0].push(begin.elapsed());
        ended_well("xenstore-read", status)?;
        let begin = Instant::now();
        read_to_string(file)?;
        samples[1].push(begin.elapsed());
        let begin = Instant::now();
        sleep(PAUSE);
        samples[2].push(begin.elapsed().saturating_sub(PAUSE));
    }
    let [store, file, wake] = samples.map(|mut samples| {
        samples.sort_unstable();
        samples[count / 2].as_micros()
    });
    println!("store_us={store} file_us={file} wake_us={wake} count={count}");
    Ok(())
}

/// In dom0: tells a backend that its list of devices has changed, and waits until the frontend, which
/// confirms that and then is connected again, is so. The store tells each change, nobody polls.
pub fn reconfigure(backend: &str, frontend: &str) -> Result<()> {
    const READ: u32 = 2;
    const WATCH: u32 = 4;
    const WRITE: u32 = 11;
    let state = format!("{frontend}/state");
    let mut store = Store(UnixStream::connect("/run/xenstored/socket")?);
    store.0.set_read_timeout(Some(PATIENCE))?;
    store.send(WATCH, &format!("{state}\0-\0"))?;
    // The answer, and the event that each watch begins with.
    store.receive()?;
    store.receive()?;
    let begin = Instant::now();
    store.send(WRITE, &format!("{backend}/state\x007"))?;
    let mut changes = 0;
    loop {
        match store.receive()? {
            (Store::EVENT, _) => {
                changes += 1;
                store.send(READ, &format!("{state}\0"))?;
            }
            (READ, value) if value == "4" && changes > 1 => break,
            _ => {}
        }
    }
    print(vec![begin.elapsed()]);
    Ok(())
}

/// The store's own protocol: type, request, transaction, length, then the text.
struct Store(UnixStream);

impl Store {
    const EVENT: u32 = 15;

    fn send(&mut self, kind: u32, text: &str) -> Result<()> {
        let length = u32::try_from(text.len()).map_err(Error::other)?;
        let mut message: Vec<u8> = [kind, 0, 0, length].map(u32::to_le_bytes).concat();
        message.extend(text.as_bytes());
        self.0.write_all(&message)
    }

    fn receive(&mut self) -> Result<(u32, String)> {
        let mut header = [[0; 4]; 4];
        for word in &mut header {
            self.0.read_exact(word)?;
        }
        let [kind, _, _, length] = header.map(u32::from_le_bytes);
        let mut text = vec![0; length as usize];
        self.0.read_exact(&mut text)?;
        Ok((kind, String::from_utf8_lossy(&text).into_owned()))
    }
}

/// The hypercalls in a file of `xentrace`, by CPU, and on each by number. An error if records were lost.
pub fn hypercalls(file: &str) -> Result<()> {
    const CPU: u32 = 0x0001_f003;
    const LOST: u32 = 0x0001_f001;
    const HYPERCALL: u32 = 0x0020_100d;
    let bytes = std::fs::read(file)?;
    let mut words = bytes
        .chunks_exact(4)
        .map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let mut counts: BTreeMap<u32, BTreeMap<u32, u32>> = BTreeMap::new();
    let mut cpu = 0;
    // A record: event (28 bits), number of extra words (3), whether it has a time; time; extra words.
    while let Some(header) = words.next() {
        if header >> 31 == 1 {
            words.nth(1);
        }
        let extra: Vec<u32> = words.by_ref().take(((header >> 28) & 7) as usize).collect();
        match (header & 0x0fff_ffff, extra.first()) {
            (CPU, Some(number)) => cpu = *number,
            (LOST, _) => return Err(Error::other("the trace has lost records")),
            (HYPERCALL, Some(call)) => {
                *counts
                    .entry(cpu)
                    .or_default()
                    .entry(call & 0xfffff)
                    .or_default() += 1;
            }
            _ => {}
        }
    }
    let of_cpu = |(cpu, calls): (&u32, &BTreeMap<u32, u32>)| {
        let calls: Vec<_> = calls
            .iter()
            .map(|(call, count)| format!("\"{call}\":{count}"))
            .collect();
        format!("\"{cpu}\":{{{}}}", calls.join(","))
    };
    println!(
        "{{{}}}",
        counts.iter().map(of_cpu).collect::<Vec<_>>().join(",")
    );
    Ok(())
}

fn print(samples: Vec<Duration>) {
    let mut samples: Vec<_> = samples.iter().map(Duration::as_nanos).collect();
    samples.sort_unstable();
    let count = samples.len();
    println!(
        "{{\"median\":{},\"p99\":{},\"mean\":{},\"min\":{},\"count\":{count}}}",
        samples[count / 2],
        samples[count - 1 - count / 100],
        samples.iter().sum::<u128>() / count as u128,
        samples[0],
    );
}
