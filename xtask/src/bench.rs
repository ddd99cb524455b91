//! `cargo xtask bench`: benchmarks that can be trusted on a shared machine.
//!
//! The subjects of a benchmark take turns (A B C, A B C, ...) so that a slow minute hits them all alike; what counts
//! is the CPU time that the work took, not the time on the wall; and each round is compared within itself, with the
//! subject that it names as its baseline.

mod assertions;
pub(crate) mod calls;
pub(crate) mod churn;
mod footprint;
mod ingest;
mod load;
mod load_http;
mod million;
pub(crate) mod mix;
mod path;
mod probes;
mod query;
mod recording;
mod rounds;
mod start;
mod syscalls;
mod throughput;
mod verdict_latency;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use clap::ValueEnum;

use crate::process;
use crate::setup::{self, Need};
use rounds::Comparison;

/// Processes are idle when they take less than a twentieth of a core for so long. They report and look after
/// themselves once a second; merges of what was inserted begin within less.
const IDLE_SPAN: Duration = Duration::from_secs(3);
const IDLE_CPU: Duration = Duration::from_millis(150);
/// How long they may take to become idle: ten minutes of the highest rate leave minutes of merges.
const IDLE_PATIENCE: Duration = Duration::from_secs(600);

/// Measure, against a baseline in the same run.
///
/// Prints a table of medians with their spread, and a row for docs/BENCHMARKS.md. Needs root. On a shared machine
/// absolute times move by 2x with the neighbours: trust the ratios.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure
    #[arg(value_enum)]
    name: Benchmark,

    /// Rounds; every subject runs once in each [default: 5; of `verdict-latency`, 100]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,

    /// Of `ingest`, instead of the rounds: a single turn of so many minutes, and whether the memory stays flat
    #[arg(long, conflicts_with = "rounds", value_parser = clap::value_parser!(u32).range(1..=1440))]
    minutes: Option<u32>,

    /// Of `assertions`: how long rows come in alone, and then how long they are judged
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=3600))]
    seconds: u64,

    /// Of `query`: rows in the store
    #[arg(long, default_value_t = 100_000_000, value_parser = clap::value_parser!(u64).range(1_000_000..=1_000_000_000))]
    rows: u64,

    /// Of `query`: leave the store (target/bench-query, 3 GB for 100 million rows) for the next time
    #[arg(long)]
    keep: bool,

    /// Print a JSON object instead of each table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Benchmark {
    /// CPU per TCP connection pair on loopback (connect, accept, 4 bytes each way, close): nothing attached, Holdfast,
    /// Holdfast without system calls, tcplife, tcpstates and bpftrace; then all that `syscalls` measures
    Probes,
    /// Two threads open and close TCP connections on loopback as fast as they can, with and without Holdfast: how
    /// many, how many of their ends are in the store, and the CPU that each stored end took of agent and collector
    Throughput,
    /// What an agent recorded of real traffic, sent again by 1 agent and by 50 at once as fast as it is acknowledged,
    /// into the embedded store and over HTTP: rows a second, CPU, memory, and bytes on the wire and on disk
    Ingest,
    /// What the questions that people ask cost on a store of 100 million rows: latency of a service, top talkers,
    /// failures of a node, who talks to a port. Exit code 1 if one takes 300 ms of CPU
    Query,
    /// The load engine by itself: connections opened and closed as fast as two threads can, 19,000 held to one target, and how
    /// late attempts are at 1,000/s and 10,000/s; then HTTP/1.1 beside wrk, ab, hey, h2load and oha
    Load,
    /// Whether the connect times that the load engine reports are the kernel's, over a path of 2 ms, with 64 and with 3,000 in
    /// flight
    Path,
    /// A million connections held for five minutes while an agent runs: losses, memory, and whether what the agent could not
    /// follow is counted to the connection. Once, without rounds. Exit code 1 if not
    Million,
    /// From `holdfast load` until the first SYN leaves, with three agents, and how far apart they begin; a run a round. Exit
    /// code 1 if the median is beyond 300 ms, or 1 ms
    Start,
    /// 1,000 assertions over 100 nodes in four classes, while 20,000 and 100,000 rows a second come in: cores for
    /// judging, windows that were missed, and whether quantiles are judged as the sorted values say. Exit code 1 if not
    Assertions,
    /// From a connection that fails in the kernel until its assertion (`over: 5s`) is stored as violated; a failure a
    /// round. Exit code 1 if the median is beyond 1.2 s or the 99th of a hundred beyond 2 s
    VerdictLatency,
    /// CPU of an agent where nothing happens, over a minute, and its memory with 65,536 open connections. Exit code 1 beyond 0.5 %
    /// of a core or 40 MB
    Footprint,
    /// CPU per system call: nothing attached, Holdfast counting, with a sample of latencies, with all of them, and
    /// bpftrace doing the same; also with 8 busy threads and 2,000 processes
    Syscalls,
}

impl Arguments {
    fn rounds(&self) -> u32 {
        // With fewer than a hundred, a 99th is the maximum.
        let default = match self.name {
            Benchmark::VerdictLatency => 100,
            _ => 5,
        };
        self.rounds.unwrap_or(default)
    }
}

/// One of the things that are compared.
trait Subject {
    fn name(&self) -> &'static str;
    /// Does the work once and says what it cost, in the benchmark's unit.
    fn measure(&mut self) -> anyhow::Result<Measurement>;
}

/// What one turn cost.
struct Measurement {
    cost: f64,
    /// What else was measured, by a name with its unit; the same ones, in the same order, in every turn.
    figures: Vec<(&'static str, f64)>,
    /// What else is worth knowing about it; shown for the last round.
    note: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        process::is_root(),
        "benchmarks load BPF programs and make network namespaces: run this as root"
    );
    if arguments.minutes.is_some() && !matches!(arguments.name, Benchmark::Ingest) {
        let message = "--minutes is for `bench ingest` only\n";
        clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, message).exit();
    }
    if matches!(arguments.name, Benchmark::Load) {
        setup::provide(&[Need::Build, Need::Peers])?;
    } else {
        setup::provide(&[Need::Build, Need::Up, Need::Bench])?;
    }
    if let Some(minutes) = arguments.minutes {
        return ingest::endure(minutes);
    }
    let comparison = match arguments.name {
        Benchmark::Probes => probes::compare(arguments.rounds())?,
        Benchmark::Throughput => throughput::compare(arguments.rounds())?,
        Benchmark::Ingest => ingest::compare(arguments.rounds())?,
        Benchmark::Query => {
            let scale = query::Scale {
                rows: arguments.rows,
                keep: arguments.keep,
            };
            query::compare(arguments.rounds(), &scale)?
        }
        Benchmark::Load => load::churn(arguments.rounds())?,
        Benchmark::Footprint => footprint::compare(arguments.rounds())?,
        Benchmark::Syscalls => syscalls::compare(arguments.rounds())?,
        Benchmark::Path => path::compare(arguments.rounds())?,
        Benchmark::Assertions => return assertions::run(arguments.seconds, arguments.json),
        Benchmark::Start => start::compare(arguments.rounds())?,
        Benchmark::Million => return million::run(arguments.json),
        Benchmark::VerdictLatency => return verdict_latency::run(arguments.rounds(), arguments.json),
    };
    show(arguments, &comparison);
    match arguments.name {
        Benchmark::Probes => {
            say(arguments, &probes::verdict(&comparison));
            let calls = syscalls::compare(arguments.rounds())?;
            show(arguments, &calls);
            say(arguments, &syscalls::verdict(&calls));
        }
        Benchmark::Syscalls => say(arguments, &syscalls::verdict(&comparison)),
        Benchmark::Path => say(arguments, &path::verdict(&comparison)),
        Benchmark::Query => query::judge(&comparison)?,
        Benchmark::Footprint => footprint::judge(&comparison)?,
        Benchmark::Start => {
            say(arguments, &start::verdict(&comparison));
            start::judge(&comparison)?;
        }
        Benchmark::Load => {
            let held = load::held(arguments.rounds())?;
            show(arguments, &held);
            let rates = load::rates(arguments.rounds())?;
            show(arguments, &rates);
            say(arguments, &load::verdict(&comparison, &held, &rates));
            let kept = load_http::kept(arguments.rounds())?;
            show(arguments, &kept);
            let fresh = load_http::fresh(arguments.rounds())?;
            show(arguments, &fresh);
            let exact = load_http::exact(arguments.rounds())?;
            for comparison in &exact {
                show(arguments, comparison);
            }
            say(arguments, &load_http::verdict(&kept, &fresh, &exact));
        }
        Benchmark::Throughput
        | Benchmark::Ingest
        | Benchmark::Million
        | Benchmark::Assertions
        | Benchmark::VerdictLatency => {}
    }
    Ok(())
}

fn show(arguments: &Arguments, comparison: &Comparison) {
    if arguments.json {
        println!("{}", comparison.to_json());
    } else {
        print!("{comparison}");
        println!("\nfor docs/BENCHMARKS.md, {} rounds:\n", arguments.rounds());
        print!("{}", comparison.to_markdown());
    }
}

/// What people read beside the tables.
fn say(arguments: &Arguments, text: &str) {
    if !arguments.json {
        print!("\n{text}");
    }
}

/// Lets the subjects take turns; the first is the baseline.
fn take_turns(
    unit: &'static str,
    subjects: &mut [Box<dyn Subject + '_>],
    rounds: u32,
) -> anyhow::Result<Comparison> {
    let mut comparison = Comparison::new(unit, subjects.iter().map(|subject| subject.name()));
    for round in 1..=rounds {
        for (index, subject) in subjects.iter_mut().enumerate() {
            let measurement = subject.measure()?;
            eprintln!(
                "  round {round}/{rounds}  {:24} {:9.2} {unit}  {}",
                subject.name(),
                measurement.cost,
                measurement.note
            );
            comparison.add(index, measurement);
        }
    }
    Ok(comparison)
}

/// Waits until those whose CPU time this gives have nothing left to do.
fn wait_until_idle(cpu: impl Fn() -> anyhow::Result<Duration>) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut before = cpu()?;
    while started.elapsed() < IDLE_PATIENCE {
        thread::sleep(IDLE_SPAN);
        let now = cpu()?;
        if now - before <= IDLE_CPU {
            return Ok(());
        }
        before = now;
    }
    bail!("still busy {} s after the work", IDLE_PATIENCE.as_secs())
}
