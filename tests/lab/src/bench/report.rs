// SPDX-License-Identifier: GPL-2.0

//! The figures of a run: a table, a file for programs, a chart.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{collections::BTreeMap, fmt::Write, path::Path};

/// One figure of one round; times in ns.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Sample {
    median: f64,
    p99: f64,
    mean: f64,
    min: f64,
}

impl Sample {
    /// A line of the agent.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text.trim()).with_context(|| format!("no figure: {text}"))
    }

    /// What the test module says.
    pub fn from_words(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace().map(str::parse);
        let mut next = || -> Result<f64> { Ok(words.next().context("a figure is missing")??) };
        Ok(Self {
            median: next()?,
            p99: next()?,
            mean: next()?,
            min: next()?,
        })
    }

    /// What was counted once.
    pub fn number(value: f64) -> Self {
        Self {
            median: value,
            p99: value,
            mean: value,
            min: value,
        }
    }

    /// Of several, without their order.
    pub fn of(times: &[f64]) -> Self {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        Self {
            median: times[times.len() / 2],
            p99: times[times.len() - 1 - times.len() / 100],
            mean: times.iter().sum::<f64>() / times.len() as f64,
            min: times[0],
        }
    }

    /// One after the other.
    pub fn plus(self, other: Self) -> Self {
        Self {
            median: self.median + other.median,
            p99: self.p99 + other.p99,
            mean: self.mean + other.mean,
            min: self.min + other.min,
        }
    }
}

impl Sample {
    /// The p99 as a multiple of another's.
    pub fn p99_to(self, other: Self) -> Self {
        Self::number(self.p99 / other.p99)
    }

    /// Less what something else needs.
    pub fn minus(self, other: Self) -> Self {
        Self {
            median: self.median - other.median,
            p99: self.p99 - other.p99,
            mean: self.mean - other.mean,
            min: self.min - other.min,
        }
    }
}

/// What a number is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Time,
    Count,
}

/// A line of the table.
struct Line {
    key: &'static str,
    title: &'static str,
    unit: Unit,
    /// RR to CC, at most, in each mode A, B, C; 0 for none.
    goal: [f64; 3],
    /// RR to the floor, at most, in A and B.
    floor: bool,
}

const fn timed(key: &'static str, title: &'static str, goal: [f64; 3], floor: bool) -> Line {
    Line {
        key,
        title,
        unit: Unit::Time,
        goal,
        floor,
    }
}

const fn counted(key: &'static str, title: &'static str, goal: [f64; 3]) -> Line {
    Line {
        key,
        title,
        unit: Unit::Count,
        goal,
        floor: false,
    }
}

const NONE: [f64; 3] = [0.0; 3];
const C_ONLY: [f64; 3] = [0.0, 0.0, 0.5];
const LSPCI: [f64; 3] = [0.05, 0.0, 0.0];
const TO_FLOOR: f64 = 1.25;
const ACCESS: [f64; 3] = [0.05, 0.6, 0.5];

const LINES: &[Line] = &[
    timed("read", "uncached read of the ids", ACCESS, true),
    timed(
        "read-kernel",
        "the ids, read by the guest's kernel",
        ACCESS,
        true,
    ),
    timed(
        "read-status",
        "uncached read of command and status",
        ACCESS,
        true,
    ),
    timed(
        "read-status-kernel",
        "command and status, read by the guest's kernel",
        ACCESS,
        true,
    ),
    timed("write", "write", ACCESS, true),
    timed("write-kernel", "write by the guest's kernel", ACCESS, true),
    timed("constant", "read of a constant, not the first", NONE, false),
    counted("constant-events", "events for each of these", NONE),
    counted("read-events", "events for each uncached read", NONE),
    counted(
        "hypercalls-wait",
        "hypercalls that wait, for each read",
        C_ONLY,
    ),
    counted(
        "hypercalls-other",
        "other hypercalls, for each read",
        C_ONLY,
    ),
    counted(
        "hypercalls-kernel-wait",
        "hypercalls that wait, for each read by the guest's kernel",
        C_ONLY,
    ),
    counted(
        "hypercalls-kernel-other",
        "other hypercalls, for each read by the guest's kernel",
        C_ONLY,
    ),
    timed("guest-cpu", "guest's CPU for 10 000 reads", [0.2; 3], false),
    timed("dom0-cpu", "dom0's CPU for 10 000 reads", [0.5; 3], false),
    timed("lspci-1", "lspci -xxxx, 1 device", LSPCI, false),
    timed("lspci-8", "lspci -xxxx, 8 devices", LSPCI, false),
    timed("lspci-31", "lspci -xxxx, 31 devices", LSPCI, false),
    timed(
        "lspci-net-1",
        "less lspci without -xxxx, 1 device",
        LSPCI,
        false,
    ),
    timed(
        "lspci-net-8",
        "less lspci without -xxxx, 8 devices",
        LSPCI,
        false,
    ),
    timed(
        "lspci-net-31",
        "less lspci without -xxxx, 31 devices",
        LSPCI,
        false,
    ),
    timed(
        "load-1",
        "frontend loaded to 1 device usable",
        [0.2; 3],
        false,
    ),
    timed(
        "load-8",
        "frontend loaded to 8 devices usable",
        [0.2; 3],
        false,
    ),
    timed(
        "load-31",
        "frontend loaded to 31 devices usable",
        [0.2; 3],
        false,
    ),
    timed("load-0", "loading it without a device", NONE, false),
    counted(
        "load-operations-1",
        "operations of that, 1 device",
        [0.15; 3],
    ),
    counted(
        "load-operations-8",
        "operations of that, 8 devices",
        [0.15; 3],
    ),
    counted(
        "load-operations-31",
        "operations of that, 31 devices",
        [0.15; 3],
    ),
    timed("plug-1", "hot-plug with 1 present", [0.1; 3], false),
    timed("plug-31", "hot-plug with 31 present", [0.1; 3], false),
    counted("eoi-delayed", "jiffies_eoi_delayed", NONE),
    counted("spurious", "spurious_events", NONE),
    counted("soak", "reads in a row", NONE),
    counted("soak-eoi-delayed", "jiffies_eoi_delayed after them", NONE),
    counted("soak-spurious", "spurious_events after them", NONE),
    counted("xen-pciback", "text of xen-pciback, bytes", [1.5; 3]),
    counted("xen-pcifront", "text of xen-pcifront, bytes", [1.5; 3]),
    timed(
        "bind-first",
        "new_slot and bind, functions 1 to 16",
        [1.0; 3],
        false,
    ),
    timed(
        "bind-last",
        "new_slot and bind, the last 16 of 226",
        [1.0; 3],
        false,
    ),
    counted(
        "function-memory",
        "dom0's memory for each of them, bytes",
        [1.0; 3],
    ),
    counted(
        "guest-memory",
        "dom0's memory for each connected guest, bytes",
        [1.0; 3],
    ),
    timed(
        "beside-idle",
        "read of a guest beside an idle one",
        NONE,
        false,
    ),
    timed(
        "beside-computing",
        "read of a guest beside one that computes",
        NONE,
        false,
    ),
    timed(
        "beside-flood",
        "read of a guest beside one that floods requests",
        NONE,
        false,
    ),
    counted(
        "flood-ratio",
        "its p99 beside a flood, to that beside an idle one (goal for RR: at most 2)",
        NONE,
    ),
    timed(
        "xenbus-cpu",
        "the xenbus thread's CPU while a guest with 4 functions goes",
        NONE,
        false,
    ),
    counted("xenbus-trips", "round trips to the store in it", NONE),
    timed(
        "xenbus-trip",
        "CPU of one, for a task that does nothing else",
        NONE,
        false,
    ),
    timed(
        "xenbus-answer",
        "until it has taken up another guest's device, with slow resets",
        NONE,
        false,
    ),
];

type Key = (String, String, String);

/// All that was measured.
#[derive(Default)]
pub struct Figures {
    /// By mode, figure and pairing (or `floor`): one for each round.
    samples: BTreeMap<Key, Vec<Sample>>,
    retries: BTreeMap<String, usize>,
    /// What else had to be done again.
    pub again: u32,
    /// How long it took.
    pub seconds: u64,
}

impl Figures {
    /// One more round.
    pub fn add(&mut self, mode: &str, figure: &str, pairing: &str, sample: Sample) {
        let key = (mode.to_owned(), figure.to_owned(), pairing.to_owned());
        self.samples.entry(key).or_default().push(sample);
    }

    /// Connections that were begun again.
    pub fn retries(&mut self, pairing: &str, count: usize) {
        *self.retries.entry(pairing.to_owned()).or_default() += count;
    }

    /// The median of the rounds.
    fn get(&self, mode: &str, figure: &str, pairing: &str, of: fn(&Sample) -> f64) -> Option<f64> {
        let key = (mode.to_owned(), figure.to_owned(), pairing.to_owned());
        let mut all: Vec<f64> = self.samples.get(&key)?.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

fn median(sample: &Sample) -> f64 {
    sample.median
}

fn p99(sample: &Sample) -> f64 {
    sample.p99
}

/// Writes the table, all numbers and the chart into `out`.
pub fn write(figures: &Figures, out: &Path, title: &str) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let mut table = format!("{title}\n");
    let mut bars = Vec::new();
    let mut lines = Vec::new();
    for (at, mode) in super::MODES.iter().enumerate() {
        let part = |figure| figures.get(mode.name, figure, "floor", median);
        let Some(floor) = part("floor") else { continue };
        writeln!(
            table,
            "\n**{}: {}.** The floor is {}: {} for the two events, {} for the read. A write by dom0 takes {}. The two events are {} hypercalls that wait and {} others.\n",
            mode.name,
            mode.title,
            Unit::Time.text(floor),
            Unit::Time.text(part("floor-events").unwrap_or_default()),
            Unit::Time.text(part("floor-read").unwrap_or_default()),
            Unit::Time.text(part("floor-write").unwrap_or_default()),
            Unit::Count.text(part("floor-waits").unwrap_or_default()),
            Unit::Count.text(part("floor-hypercalls").unwrap_or_default()),
        )?;
        let floor = mode.has_latencies().then_some(floor);
        rows(
            figures,
            (mode.name, at),
            floor,
            &mut table,
            &mut lines,
            &mut bars,
        )?;
    }
    writeln!(table, "\n**Of both ends alone.**\n")?;
    rows(
        figures,
        (super::OTHERS, 0),
        None,
        &mut table,
        &mut lines,
        &mut bars,
    )?;
    let retries: Vec<_> = figures
        .retries
        .iter()
        .map(|(p, n)| format!("{p} {n}"))
        .collect();
    writeln!(
        table,
        "\nConnections that were begun again because the frontend had lost its devices: {}. Steps, programs and boots that died and were repeated: {}. The run took {} min.",
        retries.join(", "),
        figures.again,
        figures.seconds.div_ceil(60)
    )?;
    let all: Vec<_> = figures
        .samples
        .iter()
        .map(|((mode, figure, pairing), rounds)| {
            json!({ "mode": mode, "figure": figure, "pairing": pairing, "rounds": rounds })
        })
        .collect();
    let all = json!({
        "pairings": "backend, frontend: C is the stock one, R ours; times in ns",
        "run": title,
        "lines": lines,
        "samples": all,
        "connections_begun_again": figures.retries,
        "repeated": figures.again,
        "seconds": figures.seconds,
    });
    std::fs::write(out.join("result.json"), serde_json::to_string_pretty(&all)?)?;
    std::fs::write(out.join("table.md"), table)?;
    std::fs::write(out.join("bench.svg"), chart(&bars)?)?;
    Ok(())
}

/// The lines of one mode that were measured.
fn rows(
    figures: &Figures,
    (mode, at): (&str, usize),
    floor: Option<f64>,
    table: &mut String,
    lines: &mut Vec<serde_json::Value>,
    bars: &mut Vec<Bar>,
) -> Result<()> {
    table.push_str("| figure | CC | CR | RC | RR | RR/CC | goal | RR/floor | goal | p99 CC | p99 RR |\n|---|---|---|---|---|---|---|---|---|---|---|\n");
    for line in LINES {
        let value = |pairing, of| figures.get(mode, line.key, pairing, of);
        let (cc, Some(rr)) = (value("CC", median), value("RR", median)) else {
            continue;
        };
        let cell = |value: Option<f64>| value.map_or(String::from("-"), |v| line.unit.text(v));
        let ratio = cc.filter(|cc| *cc > 0.0).map_or(f64::NAN, |cc| rr / cc);
        let goal = line.goal[at];
        let goal_text = if goal > 0.0 {
            format!("≤ {goal}")
        } else {
            String::new()
        };
        let to_floor = floor.filter(|_| line.floor).map(|floor| rr / floor);
        writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {goal_text} | {} | {} | {} | {} |",
            line.title,
            cell(cc),
            cell(value("CR", median)),
            cell(value("RC", median)),
            cell(Some(rr)),
            digits(ratio),
            to_floor.map_or(String::new(), digits),
            to_floor.map_or(String::new(), |_| format!("≤ {TO_FLOOR}")),
            cell(value("CC", p99)),
            cell(value("RR", p99)),
        )?;
        let of = |pairing| json!({ "median": value(pairing, median), "p99": value(pairing, p99) });
        lines.push(json!({
            "mode": mode, "figure": line.key, "title": line.title,
            "unit": if line.unit == Unit::Time { "ns" } else { "" },
            "goal": (goal > 0.0).then_some(goal), "ratio": ratio, "to_floor": to_floor,
            "CC": of("CC"), "CR": of("CR"), "RC": of("RC"), "RR": of("RR"),
        }));
        if goal > 0.0 && ratio.is_finite() && ratio > 0.0 {
            bars.push(Bar {
                title: format!("{mode}: {}", line.title),
                ratio,
                goal,
            });
        }
    }
    Ok(())
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Count if value.fract() == 0.0 => format!("{value}"),
            Self::Count => digits(value),
            Self::Time if value < 1e6 => format!("{} us", digits(value / 1e3)),
            Self::Time if value < 1e9 => format!("{} ms", digits(value / 1e6)),
            Self::Time => format!("{} s", digits(value / 1e9)),
        }
    }
}

/// Three digits that count.
fn digits(value: f64) -> String {
    if !value.is_finite() {
        return String::from("-");
    }
    let whole = value.abs().max(1e-9).log10().floor();
    // CAST: between 0 and 6.
    let places = (2.0 - whole).clamp(0.0, 4.0) as usize;
    format!("{value:.places$}")
}

/// One figure of the chart.
struct Bar {
    title: String,
    ratio: f64,
    goal: f64,
}

/// Bars of RR to CC on a logarithmic scale, each with a line at its goal.
fn chart(bars: &[Bar]) -> Result<String> {
    const ROW: usize = 18;
    const LEFT: f64 = 330.0;
    const WIDTH: f64 = 420.0;
    // From 1/1000 to 2.
    let x = |ratio: f64| LEFT + WIDTH * (ratio.clamp(0.001, 2.0).log10() + 3.0) / 3.301;
    let (height, bottom) = (ROW * (bars.len() + 3), ROW * (bars.len() + 1));
    let mut svg = format!(
        "<!-- SPDX-License-Identifier: GPL-2.0 -->\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 820 {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"820\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"13\" font-size=\"12\">Our drivers on both ends, as a share of what the stock ones need (less is better); black: the goal</text>\n"
    );
    for tick in [0.001, 0.01, 0.1, 1.0] {
        let x = x(tick);
        writeln!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{ROW}\" y2=\"{bottom}\" stroke=\"#ccc\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
            bottom + 14
        )?;
    }
    for (number, bar) in bars.iter().enumerate() {
        let top = ROW * (number + 1);
        let colour = if bar.ratio <= bar.goal {
            "#2a7"
        } else {
            "#c64"
        };
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/><line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{}\" y2=\"{}\" stroke=\"black\" stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{}\">{}</text>",
            LEFT - 6.0,
            top + 13,
            bar.title,
            top + 3,
            x(bar.ratio) - LEFT,
            ROW - 5,
            x(bar.goal),
            x(bar.goal),
            top + 1,
            top + ROW - 1,
            x(bar.ratio).max(x(bar.goal)) + 5.0,
            top + 13,
            digits(bar.ratio),
        )?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
