//! `cargo xtask bench`: benchmarks that can be trusted on a shared machine.
//!
//! The subjects of a benchmark take turns (A B C, A B C, ...) so that a slow minute hits them all alike; what counts
//! is the CPU time that the work took, not the time on the wall; and each round is compared within itself, with the
//! subject that it names as its baseline.

pub(crate) mod churn;
mod probe_cost;
mod rounds;
mod throughput;

use anyhow::ensure;
use clap::ValueEnum;

use crate::process;
use crate::setup::{self, Need};
use rounds::Comparison;

/// Measure, against a baseline in the same run.
///
/// Prints a table of medians with their spread, and a row for docs/BENCHMARKS.md. Needs root. On a shared machine
/// absolute times move by 2x with the neighbours: trust the ratios.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure
    #[arg(value_enum)]
    name: Benchmark,

    /// Rounds; every subject runs once in each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Benchmark {
    /// CPU per TCP connection pair on loopback (connect, accept, 4 bytes each way, close): nothing attached, Holdfast,
    /// tcplife, tcpstates and bpftrace
    ProbeCost,
    /// Two threads open and close TCP connections on loopback as fast as they can, with and without Holdfast: how
    /// many, how many of their ends are in the store, and the CPU that each stored end took of agent and collector
    Throughput,
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
    setup::provide(&[Need::Build, Need::Up, Need::Bench])?;
    let comparison = match arguments.name {
        Benchmark::ProbeCost => probe_cost::compare(arguments.rounds)?,
        Benchmark::Throughput => throughput::compare(arguments.rounds)?,
    };
    if arguments.json {
        println!("{}", comparison.to_json());
    } else {
        print!("{comparison}");
        println!("\nfor docs/BENCHMARKS.md, {} rounds:\n", arguments.rounds);
        print!("{}", comparison.to_markdown());
    }
    Ok(())
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
