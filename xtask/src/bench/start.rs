//! The benchmark `start`: how long it takes from `holdfast load` until the first SYN leaves, with three agents, and how far apart
//! they begin.
//!
//! Each agent is in a network namespace of its own, all on this machine: there is one clock, so what the kernel says of the first
//! attempt of each node is comparable to the nanosecond, and what the run itself says of its skew is checked by it.

use std::fs;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::load::Engine;
use crate::failure::Failure;
use crate::up::lab::Lab;
use crate::up::system::{Binaries, System};
use crate::workspace;

const AGENTS: u8 = 3;
const SETTLING: Duration = Duration::from_secs(10);
const STORE_PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 9_000;
const MOST_START_MS: f64 = 300.0;
const MOST_SKEW_MS: f64 = 1.0;

/// Asks for so many runs, one after another, and prints how each began.
pub(super) fn run(rounds: u32, as_json: bool) -> anyhow::Result<()> {
    let binaries = Binaries::build(false)?;
    let engine = Engine::build()?;
    let state_dir = workspace::target_dir()?.join("bench-start");
    if state_dir.exists() {
        fs::remove_dir_all(&state_dir).with_context(|| format!("cannot empty {}", state_dir.display()))?;
    }
    let lab = Lab::create(AGENTS)?;
    let system = System::start(&binaries, &state_dir, Some(&lab), &AtomicBool::new(false))?;
    let node = lab.nodes().first().context("a lab without nodes")?;
    let address = format!("{}:{PORT}", node.address);
    let _target = engine.start_at(&node.netns, "accept", &address, &[])?;

    // What agents and collector do at their own start is no part of a run's.
    thread::sleep(SETTLING);

    let (mut starts_ms, mut skews_ms, mut reported_ms) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        let asked_ns = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
        // All are due at the common start, ten of them on each agent.
        let run = system.command(&[
            "load",
            "tcp",
            &address,
            "--connections",
            "30",
            "--sleep",
            "0s",
            "--agents",
            "3",
            "--yes",
        ])?;
        let result: Value = serde_json::from_str(run["result"].as_str().context("a run has a result")?)?;
        let reported = result["skew_ns"].as_f64().context("a result has its skew")? / 1e6;
        let first = |function: &str| {
            system.number(&format!(
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
        let start = (earliest - asked_ns) as f64 / 1e6;
        let skew = (latest - earliest) as f64 / 1e6;
        eprintln!(
            "  {round}/{rounds}  first SYN after {start:.0} ms, skew {skew:.3} ms (the run says {reported:.3} ms)"
        );
        starts_ms.push(start);
        skews_ms.push(skew);
        reported_ms.push(reported);
    }
    system.stop()?;
    let (start, skew, reported) = (spread(starts_ms), spread(skews_ms), spread(reported_ms));
    if as_json {
        let object = |[median, least, most]: [f64; 3]| json!({ "median": median, "min": least, "max": most });
        println!(
            "{}",
            json!({ "rounds": rounds, "first_syn_ms": object(start), "skew_ms": object(skew), "reported_skew_ms": object(reported) })
        );
    } else {
        let line = |what: &str, [median, least, most]: [f64; 3]| {
            println!("{what:44} {median:8.3} ({least:.3}..{most:.3}) ms");
        };
        line("from the command to the first SYN", start);
        line("between the nodes' first SYNs, by the kernel", skew);
        line("the same, as the run reports it", reported);
    }
    if start[0] > MOST_START_MS || skew[0] > MOST_SKEW_MS {
        let message = format!(
            "more than {MOST_START_MS} ms to the first SYN, or a skew of more than {MOST_SKEW_MS} ms"
        );
        return Err(Failure::Check(message).into());
    }
    Ok(())
}

/// Median, least and most.
fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[values.len() / 2], values[0], values[values.len() - 1]]
}
