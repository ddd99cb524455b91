//! The benchmark `load`: what the load engine takes and how exact it is, without collector and probes, each turn in a network
//! namespace of its own: TIME_WAITs and ports that an earlier turn left would be part of the next one's figures.
//!
//! The CPU is that of the generator's threads, which on loopback includes most of what the target's kernel does. The target is
//! a process of its own that accepts and does nothing else.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::churn::Churn;
use super::rounds::{Comparison, Target as Want};
use super::{Measurement, Subject, take_turns};
use crate::netns::{self, Netns};
use crate::up::system::build_examples;

/// As many as the machine that the published figures are from has cores.
const THREADS: &str = "2";
const CHURN_MILLIS: u64 = 5_000;

/// More than one source address has ports for, and within the limit of files of most machines.
const HELD: u64 = 19_000;
/// What is taken off the memory: a run that holds so few.
const FEW: u64 = 1_000;
const HOLD_MILLIS: u64 = 1_500;

pub(super) const RATES: [(&str, u64); 2] = [("1,000/s", 1_000), ("10,000/s", 10_000)];
const RATE_MILLIS: u64 = 5_000;

/// What a held connection may take of the generator's memory, in bytes.
pub(super) const BYTES_PER_HELD: f64 = 150.0;

pub(super) const TARGET: &str = "127.0.0.1:8000";

const CHURN_UNIT: &str = "CPU-s per 100,000 connections";
const PER_SECOND: &str = "connections/s";
const TIME_WAITS: &str = "TIME_WAIT left";
const ALL_OPEN: &str = "until all were established, ms";
const BYTES: &str = "memory per held connection, B";
const LATE_P50: &str = "late by, p50, us";
const LATE_P99: &str = "late by, p99, us";

/// The engine with a plan, and its target.
pub(super) struct Engine {
    pub(super) program: PathBuf,
}

impl Engine {
    pub(super) fn build() -> anyhow::Result<Self> {
        let program = build_examples(&["holdfast-agent"], &["engine"])?.join("engine");
        netns::remove_leftovers()?;
        Ok(Self { program })
    }

    /// Makes load in a namespace, and gives what was counted. Nothing may have failed.
    pub(super) fn make(&self, netns: &Netns, arguments: &[&str]) -> anyhow::Result<Value> {
        self.make_to(netns, TARGET, arguments)
    }

    /// Likewise, to another target.
    pub(super) fn make_to(&self, netns: &Netns, target: &str, arguments: &[&str]) -> anyhow::Result<Value> {
        let mut command = netns.command(&self.program);
        let output = command.args(["tcp", target]).args(arguments).output()?;
        ensure!(
            output.status.success(),
            "the load engine failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let result: Value =
            serde_json::from_slice(&output.stdout).context("the load engine printed no JSON")?;
        ensure!(
            result["outcomes"]["Established"] == result["started"],
            "no figure: not all connections were established: {result}"
        );
        Ok(result)
    }

    fn accept(&self, netns: &Netns, arguments: &[&str]) -> anyhow::Result<Target> {
        self.start(netns, "accept", arguments)
    }

    /// Starts a target in a namespace, and waits until it is one.
    pub(super) fn start(&self, netns: &Netns, what: &str, arguments: &[&str]) -> anyhow::Result<Target> {
        self.start_at(netns, what, TARGET, arguments)
    }

    pub(super) fn start_at(
        &self,
        netns: &Netns,
        what: &str,
        address: &str,
        arguments: &[&str],
    ) -> anyhow::Result<Target> {
        Target::start(netns, &self.program, &[&[what, address], arguments].concat())
    }
}

impl Engine {
    /// Opens so many connections within a namespace, and holds them until what this gives goes out of scope: who connects,
    /// and who accepts.
    pub(super) fn hold(
        &self,
        netns: &Netns,
        address: &str,
        connections: u64,
        millis: u64,
    ) -> anyhow::Result<[Target; 2]> {
        let target = self.start_at(netns, "accept", address, &["--keep"])?;
        let (count, hold) = (connections.to_string(), millis.to_string());
        let mut command = netns.command(&self.program);
        command.args(["tcp", address, "--count", &count, "--hold", &hold]);
        let client = Target(command.stdout(Stdio::null()).spawn()?);
        Ok([client, target])
    }
}

/// Ended when this goes out of scope. `ip netns exec` becomes the program, so its process is the target's.
pub(super) struct Target(Child);

impl Target {
    /// Starts a program in a namespace that says `ready`, and waits until it does.
    pub(super) fn start(netns: &Netns, program: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = netns.command(program);
        let mut child = command.args(arguments).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("the target has no output")?;
        let target = Self(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "{} does not come up", program.display());
        Ok(target)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn number(result: &Value, path: &str) -> anyhow::Result<f64> {
    let value = result.pointer(path).and_then(Value::as_f64);
    value.with_context(|| format!("the load engine printed no {path}: {result}"))
}

/// Opened and closed as fast as possible; beside it what the kernel takes for it.
pub(super) fn churn(rounds: u32) -> anyhow::Result<Comparison> {
    let engine = Engine::build()?;
    let floor = Churn::build()?;
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(Floor { floor: &floor }),
        Box::new(Reconnecting { engine: &engine }),
    ];
    take_turns(CHURN_UNIT, &mut subjects, rounds)
}

/// Two threads that play both ends: a loop around the system calls, and nothing else.
struct Floor<'a> {
    floor: &'a Churn,
}

impl Subject for Floor<'_> {
    fn name(&self) -> &'static str {
        "bare system calls"
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let work = self
            .floor
            .flood(&netns, 2, std::time::Duration::from_millis(CHURN_MILLIS))?;
        Ok(Measurement {
            cost: work.cpu_us_per_pair() / 10.0,
            figures: vec![(PER_SECOND, work.pairs_per_second())],
            note: "both ends in one thread".into(),
        })
    }
}

const ENGINE: &str = "holdfast load";

struct Reconnecting<'a> {
    engine: &'a Engine,
}

impl Subject for Reconnecting<'_> {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let _target = self.engine.accept(&netns, &["--threads", THREADS])?;
        let millis = CHURN_MILLIS.to_string();
        let arguments = [
            "--concurrency",
            THREADS,
            "--threads",
            THREADS,
            "--millis",
            &millis,
        ];
        let result = self.engine.make(&netns, &arguments)?;
        let made = number(&result, "/started")?;
        let cpu_s = number(&result, "/cpu_ns")? / 1e9;
        Ok(Measurement {
            cost: cpu_s / made * 1e5,
            figures: vec![
                (PER_SECOND, made / number(&result, "/elapsed_ns")? * 1e9),
                (TIME_WAITS, time_waits(&netns)? as f64),
            ],
            note: String::new(),
        })
    }
}

/// Sockets in TIME_WAIT in a namespace.
fn time_waits(netns: &Netns) -> anyhow::Result<u64> {
    sockets(netns, "tw")
}

/// TCP sockets of a kind in a namespace, by the kernel's names: inuse, tw.
pub(super) fn sockets(netns: &Netns, kind: &str) -> anyhow::Result<u64> {
    let output = netns
        .command(Path::new("cat"))
        .arg("/proc/net/sockstat")
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let words: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("TCP:"))
        .flat_map(str::split_whitespace)
        .collect();
    let found = words.windows(2).find(|pair| pair[0] == kind);
    let found = found.and_then(|pair| pair[1].parse().ok());
    found.with_context(|| format!("/proc/net/sockstat says nothing of {kind}: {text}"))
}

/// Many to one target at once, then held.
pub(super) fn held(rounds: u32) -> anyhow::Result<Comparison> {
    let engine = Engine::build()?;
    let mut subjects: Vec<Box<dyn Subject>> = vec![Box::new(Holding { engine: &engine })];
    take_turns("CPU-s for 19,000 held", &mut subjects, rounds)
}

struct Holding<'a> {
    engine: &'a Engine,
}

impl Holding<'_> {
    fn hold(&self, connections: u64) -> anyhow::Result<Value> {
        let netns = Netns::create("bench")?;
        let _target = self.engine.accept(&netns, &["--keep"])?;
        let (count, hold) = (connections.to_string(), HOLD_MILLIS.to_string());
        self.engine.make(&netns, &["--count", &count, "--hold", &hold])
    }
}

impl Subject for Holding<'_> {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let few = self.hold(FEW)?;
        let many = self.hold(HELD)?;
        ensure!(
            many["most_open"] == HELD,
            "no figure: not all were open at once: {many}"
        );
        let bytes = number(&many, "/resident_held")? - number(&few, "/resident_held")?;
        Ok(Measurement {
            cost: number(&many, "/cpu_ns")? / 1e9,
            figures: vec![
                // All are due at once, so the last one's time is that of all.
                (ALL_OPEN, number(&many, "/connect/max_ns")? / 1e6),
                (BYTES, bytes / (HELD - FEW) as f64),
            ],
            note: String::new(),
        })
    }
}

/// Attempts at even rates, and how late they are made.
pub(super) fn rates(rounds: u32) -> anyhow::Result<Comparison> {
    let engine = Engine::build()?;
    let mut subjects: Vec<Box<dyn Subject>> = RATES
        .iter()
        .map(|&(name, per_second)| {
            let engine = &engine;
            Box::new(Rate {
                engine,
                name,
                per_second,
            }) as Box<dyn Subject>
        })
        .collect();
    take_turns("us of CPU per connection", &mut subjects, rounds)
}

struct Rate<'a> {
    engine: &'a Engine,
    name: &'static str,
    per_second: u64,
}

impl Subject for Rate<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let _target = self.engine.accept(&netns, &[])?;
        let (rate, millis) = (self.per_second.to_string(), RATE_MILLIS.to_string());
        let result = self
            .engine
            .make(&netns, &["--rate", &rate, "--millis", &millis])?;
        let late = |quantile: &str| Ok::<_, anyhow::Error>(number(&result, quantile)? / 1e3);
        Ok(Measurement {
            cost: number(&result, "/cpu_ns")? / 1e3 / number(&result, "/started")?,
            figures: vec![
                (LATE_P50, late("/lateness/p50_ns")?),
                (LATE_P99, late("/lateness/p99_ns")?),
                ("connect from the due time, p99, us", late("/connect/p99_ns")?),
            ],
            note: String::new(),
        })
    }
}

/// Each target beside what was measured: medians, and at most or at least so much.
pub(super) fn verdict(churn: &Comparison, held: &Comparison, rates: &Comparison) -> String {
    let mut text = String::from("targets:\n");
    let mut line =
        |what: &str, target: Want, comparison: &Comparison, subject: &str, figure: Option<&str>| {
            text += &target.line(what, comparison.spread(subject, figure));
        };
    let (cpu, per_second) = (Want::AtMost(1.0), Want::AtLeast(120_000.0));
    line("churn: CPU-s per 100,000 connections", cpu, churn, ENGINE, None);
    line(
        "churn: connections/s",
        per_second,
        churn,
        ENGINE,
        Some(PER_SECOND),
    );
    let none = Want::AtMost(0.0);
    line("churn: TIME_WAIT left", none, churn, ENGINE, Some(TIME_WAITS));
    let (cpu, millis, bytes) = (
        Want::AtMost(0.5),
        Want::AtMost(500.0),
        Want::AtMost(BYTES_PER_HELD),
    );
    line("19,000 held: CPU-s", cpu, held, ENGINE, None);
    let all = "19,000 held: ms until all are established";
    line(all, millis, held, ENGINE, Some(ALL_OPEN));
    let memory = "19,000 held: B of memory a connection";
    line(memory, bytes, held, ENGINE, Some(BYTES));
    for (name, _) in RATES {
        let (p50, p99) = (Want::AtMost(1.0), Want::AtMost(100.0));
        line(
            &format!("{name}: late by, p50, us"),
            p50,
            rates,
            name,
            Some(LATE_P50),
        );
        line(
            &format!("{name}: late by, p99, us"),
            p99,
            rates,
            name,
            Some(LATE_P99),
        );
    }
    text
}
