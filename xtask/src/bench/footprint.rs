//! The benchmark `footprint`: what an agent takes where nothing happens, and what it takes where its table of connections is
//! full.
//!
//! The agent watches a namespace of its own, so that neither this machine's other work nor the collector's connection to it is
//! in the figures; the programs are started for everything that the machine does all the same, and for system calls the agent
//! counts everybody's. Its CPU is that of `/proc/PID/stat`, of a whole minute; its memory is VmRSS, the most of several looks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::load::Engine;
use super::rounds::Comparison;
use super::{Measurement, Subject, take_turns};
use crate::netns::Netns;
use crate::up::system::{Binaries, System};
use crate::workspace;

/// After the start, before the minute: the survey, the first batches, what the agent tells once.
const SETTLING: Duration = Duration::from_secs(15);
const MINUTE: Duration = Duration::from_secs(60);

/// What an agent follows by default (`limits::CONNECTIONS`), two ends a connection.
const TRACKED: u64 = 65_536;
/// No process may open files, and no pair of addresses has ports, for all of them.
const TARGETS: [&str; 4] = [
    "127.0.0.1:8000",
    "127.0.0.2:8000",
    "127.0.0.3:8000",
    "127.0.0.4:8000",
];
const HELD_MILLIS: u64 = 300_000;
/// Until the agent has reported that all are open.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);
/// Two of the looks at all that is open, which the agent makes every 10 s, and more when they are large.
const LOOKED_AT: Duration = Duration::from_secs(30);
const LOOK_PAUSE: Duration = Duration::from_millis(250);

const UNIT: &str = "% of a core, idle";
const IDLE_MB: &str = "resident, idle, MB";
const FULL_MB: &str = "resident, 65,536 connections, MB";
const FULL_CPU: &str = "% of a core, 65,536 connections held";

const MOST_CPU: f64 = 0.5;
const MOST_MB: f64 = 40.0;

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let binaries = Binaries::build(false)?;
    let engine = Engine::build()?;
    let mut subjects: Vec<Box<dyn Subject>> = vec![Box::new(Agent {
        binaries: &binaries,
        engine: &engine,
    })];
    take_turns(UNIT, &mut subjects, rounds)
}

struct Agent<'a> {
    binaries: &'a Binaries,
    engine: &'a Engine,
}

impl Subject for Agent<'_> {
    fn name(&self) -> &'static str {
        "holdfast-agent"
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let inode = fs::metadata(netns.path())?.ino();
        let state_dir = workspace::fresh_dir("bench-footprint")?;
        let system = System::start_here_watching(self.binaries, &state_dir, &netns, &AtomicBool::new(false))?;
        thread::sleep(SETTLING);
        let idle_cpu = used(&system, MINUTE, |_| Ok(()))?;
        let idle_bytes = system.agents_resident_bytes()?;

        let each = TRACKED / 2 / TARGETS.len() as u64;
        let _held = TARGETS
            .iter()
            .map(|target| self.engine.hold(&netns, target, each, HELD_MILLIS))
            .collect::<anyhow::Result<Vec<_>>>()?;
        wait_until_open(&system, inode)?;
        let mut most_bytes = 0;
        let full_cpu = used(&system, LOOKED_AT, |system| {
            most_bytes = most_bytes.max(system.agents_resident_bytes()?);
            Ok(())
        })?;
        let open = tracked(&system, inode)?;
        ensure!(
            open == TRACKED,
            "no figure: {open} of {TRACKED} connections were followed to the end"
        );
        system.stop()?;
        Ok(Measurement {
            cost: idle_cpu,
            figures: vec![
                (IDLE_MB, megabytes(idle_bytes)),
                (FULL_MB, megabytes(most_bytes)),
                (FULL_CPU, full_cpu),
            ],
            note: format!(
                "{:.1} MB idle, {:.1} MB with {open}",
                megabytes(idle_bytes),
                megabytes(most_bytes)
            ),
        })
    }
}

/// The share of a core, in percent, that the agent uses for so long, while something looks at it.
fn used(
    system: &System,
    span: Duration,
    mut look: impl FnMut(&System) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let (started, before) = (Instant::now(), system.cpu()?.agents);
    while started.elapsed() < span {
        look(system)?;
        thread::sleep(LOOK_PAUSE);
    }
    let used = system.cpu()?.agents - before;
    Ok(used.as_secs_f64() / started.elapsed().as_secs_f64() * 100.0)
}

/// How many ends the agent follows, by its last report.
fn tracked(system: &System, netns: u64) -> anyhow::Result<u64> {
    system.number(&format!(
        "SELECT sum(opened - closed - untracked) FROM ledger WHERE stream = 'connections' AND netns = {netns}"
    ))
}

fn wait_until_open(system: &System, netns: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let open = tracked(system, netns)?;
        if open == TRACKED {
            return Ok(());
        }
        ensure!(
            started.elapsed() < OPEN_PATIENCE,
            "no figure: after {} s {open} of {TRACKED} connections are followed",
            OPEN_PATIENCE.as_secs()
        );
        thread::sleep(Duration::from_millis(500));
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// An error if a median is beyond its target.
pub(super) fn judge(comparison: &Comparison) -> anyhow::Result<()> {
    comparison.at_most(
        "holdfast-agent",
        &[(None, UNIT, MOST_CPU), (Some(FULL_MB), FULL_MB, MOST_MB)],
    )
}
