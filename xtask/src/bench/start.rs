//! The benchmark `start`: how long it takes from `holdfast load` until the first SYN leaves, with three agents, and how far apart
//! they begin.
//!
//! Each agent is in a network namespace of its own, all on this machine: there is one clock, so what the kernel says of the first
//! attempt of each node is comparable to the nanosecond, and what the run itself says of its skew is checked by it.

use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde_json::Value;

use super::load::Engine;
use super::rounds::{Comparison, Target};
use super::{Measurement, Subject, take_turns};
use crate::up::lab::Lab;
use crate::up::system::{Binaries, System};
use crate::workspace;

const AGENTS: u8 = 3;
const SETTLING: Duration = Duration::from_secs(10);
const STORE_PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 9_000;

const RUN: &str = "holdfast load";
const UNIT: &str = "ms until the first SYN";
const SKEW: &str = "between the nodes' first SYNs, by the kernel, ms";
const REPORTED: &str = "the same, as the run reports it, ms";
const MOST_START_MS: f64 = 300.0;
const MOST_SKEW_MS: f64 = 1.0;

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let binaries = Binaries::build(false)?;
    let engine = Engine::build()?;
    let state_dir = workspace::fresh_dir("bench-start")?;
    let lab = Lab::create(AGENTS)?;
    let system = System::start(&binaries, &state_dir, Some(&lab), &AtomicBool::new(false))?;
    let node = lab.nodes().first().context("a lab without nodes")?;
    let address = format!("{}:{PORT}", node.address);
    let _target = engine.start_at(&node.netns, "accept", &address, &[])?;
    // What agents and collector do at their own start is no part of a run's.
    thread::sleep(SETTLING);

    let run = Run {
        system: &system,
        address,
    };
    let comparison = take_turns(UNIT, &mut [Box::new(run) as Box<dyn Subject>], rounds)?;
    system.stop()?;
    Ok(comparison)
}

/// One run, from the command to its result.
struct Run<'a> {
    system: &'a System,
    address: String,
}

impl Subject for Run<'_> {
    fn name(&self) -> &'static str {
        RUN
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let asked_ns = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
        let agents = AGENTS.to_string();
        // All are due at the common start, ten of them on each agent.
        let run = self.system.command(&[
            "load",
            "tcp",
            &self.address,
            "--connections",
            "30",
            "--sleep",
            "0s",
            "--agents",
            &agents,
            "--yes",
        ])?;
        let result: Value = serde_json::from_str(run["result"].as_str().context("a run has a result")?)?;
        let reported_ns = result["skew_ns"].as_f64().context("a result has its skew")?;
        let first = |function: &str| {
            self.system.number(&format!(
                "SELECT {function}(first) FROM (SELECT toUnixTimestamp64Nano(min(opened_at)) AS first FROM attempts \
                 WHERE role = 'active' AND remote_port = {PORT} \
                 AND opened_at >= fromUnixTimestamp64Nano(toInt64({asked_ns}), 'UTC') GROUP BY node)"
            ))
        };
        let waiting = Instant::now();
        while first("count")? < u64::from(AGENTS) {
            ensure!(
                waiting.elapsed() < STORE_PATIENCE,
                "no figure: not every node's attempts are stored"
            );
            thread::sleep(Duration::from_millis(100));
        }
        let (earliest, latest) = (first("min")?, first("max")?);
        let milliseconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        Ok(Measurement {
            cost: milliseconds(asked_ns, earliest),
            figures: vec![
                (SKEW, milliseconds(earliest, latest)),
                (REPORTED, reported_ns / 1e6),
            ],
            note: String::new(),
        })
    }
}

/// Each target beside what was measured.
pub(super) fn verdict(comparison: &Comparison) -> String {
    let (start, skew) = (Target::AtMost(MOST_START_MS), Target::AtMost(MOST_SKEW_MS));
    format!(
        "targets:\n{}{}{}",
        start.line(UNIT, comparison.spread(RUN, None)),
        skew.line(SKEW, comparison.spread(RUN, Some(SKEW))),
        skew.line(REPORTED, comparison.spread(RUN, Some(REPORTED)))
    )
}

/// An error if a median is beyond its target.
pub(super) fn judge(comparison: &Comparison) -> anyhow::Result<()> {
    comparison.at_most(
        RUN,
        &[(None, UNIT, MOST_START_MS), (Some(SKEW), SKEW, MOST_SKEW_MS)],
    )
}
