//! The benchmark `million`: a million connections held to one target for minutes while an agent runs, each watched for loss, and
//! what the agent says of them.
//!
//! By default it follows 65,536 ends for certain, and so many more as find a place; of the two million it must say of each other one
//! that it was not followed, by a count that is right to the connection. Both ends are on this machine, in a namespace of their own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::load::{BYTES_PER_HELD, Engine, number, sockets};
use super::rounds::{Spread, Target};
use crate::failure::Failure;
use crate::netns::Netns;
use crate::up::system::{Binaries, System};
use crate::workspace;

const HELD: u64 = 1_000_000;
/// A connection has two ends, and both are here.
const ENDS: u64 = 2 * HELD;
const HOLD: Duration = Duration::from_secs(300);

/// What an agent follows by default at least (`limits::CONNECTIONS`).
const TRACKED: u64 = 65_536;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// Until the agent has reported all of it once the load has ended.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the agent has said so far of the connections of the namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Said {
    opened: u64,
    closed: u64,
    open: u64,
    untracked: u64,
    /// Not followed either, because following all took more CPU than the agent may take.
    sampled_out: u64,
    lost: u64,
    witnessed: u64,
    stored: u64,
}

/// Holds them once, and prints what came of it; an error if one was lost, or if the agent says anything else than what was.
pub(super) fn run(as_json: bool) -> anyhow::Result<()> {
    let binaries = Binaries::build(false)?;
    let engine = Engine::build()?;
    let netns = Netns::create("bench")?;
    let inode = fs::metadata(netns.path())?.ino();
    let state_dir = workspace::fresh_dir("bench-million")?;
    let system = System::start_here_watching(&binaries, &state_dir, &netns, &AtomicBool::new(false))?;
    let free_before = free_bytes()?;
    let before = system.cpu()?;

    let target = engine.start(&netns, "keep", &[])?;
    let (result, most_open, most_bytes, least_free) = thread::scope(|scope| {
        let (made, load) = mpsc::channel();
        let (engine, netns) = (&engine, &netns);
        scope.spawn(move || {
            let (count, hold) = (HELD.to_string(), HOLD.as_millis().to_string());
            // The receiver is gone only if this has failed already.
            let _ = made.send(engine.make(netns, &["--count", &count, "--hold", &hold]));
        });
        let (mut most_open, mut most_bytes, mut least_free) = (0, 0, u64::MAX);
        loop {
            match load.recv_timeout(LOOK) {
                Ok(result) => return Ok((result?, most_open, most_bytes, least_free)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the load engine's thread died"),
            }
            let said = said(&system, inode)?;
            most_open = most_open.max(said.open);
            most_bytes = most_bytes.max(system.agents_resident_bytes()?);
            least_free = least_free.min(free_bytes()?);
            eprintln!(
                "  {} ends, by the agent {} opened, {} followed, {} not",
                sockets(netns, "inuse")?,
                said.opened,
                said.open,
                said.untracked + said.sampled_out
            );
        }
    })?;
    drop(target);
    let said = wait_until_closed(&system, inode)?;
    let cpu = system.cpu()?;
    let left = (sockets(&netns, "inuse")?, sockets(&netns, "tw")?);
    system.stop()?;

    // All are due at once, so the last one's time is that of all.
    let all_open_s = number(&result, "/connect/max_ns")? / 1e9;
    let bytes = (number(&result, "/resident_held")? - number(&result, "/resident_before")?) / HELD as f64;
    let held = Held {
        most: number(&result, "/most_open")?,
        lost: number(&result, "/lost")?,
        seconds: number(&result, "/elapsed_ns")? / 1e9 - all_open_s,
        bytes,
    };
    let found = json!({
        "held": result["most_open"],
        "lost": result["lost"],
        "seconds_until_all_were_open": all_open_s,
        "seconds_held": held.seconds,
        "generator_cpu_s": number(&result, "/cpu_ns")? / 1e9,
        "generator_bytes_per_connection": bytes,
        "agent_cpu_s": (cpu.agents - before.agents).as_secs_f64(),
        "agent_most_resident_mb": most_bytes as f64 / 1e6,
        "kernel_bytes_per_connection": free_before.saturating_sub(least_free) / HELD,
        "agent_opened": said.opened,
        "agent_followed": most_open,
        "agent_untracked": said.untracked,
        "agent_sampled_out": said.sampled_out,
        "agent_lost": said.lost,
        "rows_stored": said.stored,
        "sockets_left": left.0,
        "time_wait_left": left.1,
    });
    if as_json {
        println!("{found}");
    } else {
        let figures = found.as_object().context("it is an object")?;
        for (name, value) in figures {
            let value = match value.as_f64() {
                Some(value) if !value.fract().eq(&0.0) => format!("{value:.2}"),
                _ => value.to_string(),
            };
            println!("{:36} {value:>12}", name.replace('_', " "));
        }
        print!("\n{}", verdict(&held, said, most_open, left));
    }
    judge(&result, said, most_open, left).map_err(|error| Failure::Check(error.to_string()).into())
}

/// What the generator says of its connections.
struct Held {
    most: f64,
    lost: f64,
    /// From when all were open until the end.
    seconds: f64,
    /// Of memory a connection.
    bytes: f64,
}

/// Each target beside what was measured.
fn verdict(held: &Held, said: Said, most_open: u64, left: (u64, u64)) -> String {
    let ends = said.opened.abs_diff(ENDS) + said.witnessed.abs_diff(ENDS);
    let uncounted = (ENDS - most_open.min(ENDS)).abs_diff(said.untracked + said.sampled_out);
    let at_most = |limit| Target::AtMost(limit);
    let lines = [
        ("held at once", Target::AtLeast(HELD as f64), held.most),
        ("held for, s", Target::AtLeast(HOLD.as_secs_f64()), held.seconds),
        ("lost", at_most(0.0), held.lost),
        ("B of memory a connection", at_most(BYTES_PER_HELD), held.bytes),
        ("ends opened, off by", at_most(0.0), ends as f64),
        (
            "ends neither followed nor counted as not",
            at_most(0.0),
            uncounted as f64,
        ),
        (
            "sockets and TIME_WAITs left",
            at_most(0.0),
            (left.0 + left.1) as f64,
        ),
    ];
    let line =
        |(what, target, figure): (&str, Target, f64)| target.line(what, Some(Spread::of(vec![figure])));
    format!("targets:\n{}", lines.map(line).concat())
}

fn judge(result: &Value, said: Said, most_open: u64, left: (u64, u64)) -> anyhow::Result<()> {
    ensure!(
        result["most_open"] == HELD && result["lost"] == 0,
        "not all were held to the end: {} at most, {} lost",
        result["most_open"],
        result["lost"]
    );
    ensure!(
        said.opened == ENDS && said.witnessed == ENDS,
        "{ENDS} ends were opened; the agent says {}, SNMP {}",
        said.opened,
        said.witnessed
    );
    ensure!(
        most_open >= TRACKED && said.untracked + said.sampled_out == ENDS - most_open,
        "of {ENDS} ends the agent followed {most_open} at once, of which {TRACKED} are certain; it says that {} were untracked and {} \
         left out by its budget, which is not {} together",
        said.untracked,
        said.sampled_out,
        ENDS - most_open
    );
    ensure!(
        left == (0, 0),
        "{} sockets and {} TIME_WAITs are left",
        left.0,
        left.1
    );
    Ok(())
}

/// By the agent's last report.
fn said(system: &System, netns: u64) -> anyhow::Result<Said> {
    let number = |column: &str| {
        system.number(&format!(
            "SELECT sum({column}) FROM ledger WHERE stream = 'connections' AND netns = {netns}"
        ))
    };
    Ok(Said {
        opened: number("opened")?,
        closed: number("closed")?,
        open: number("open")?,
        untracked: number("untracked")?,
        sampled_out: number("sampled_out")?,
        lost: number("lost")?,
        witnessed: number("witnessed")?,
        stored: number("rows_stored")?,
    })
}

/// Once nothing is open any more and two reports say the same.
fn wait_until_closed(system: &System, netns: u64) -> anyhow::Result<Said> {
    let started = Instant::now();
    let mut last = Said::default();
    loop {
        thread::sleep(LOOK);
        let now = said(system, netns)?;
        if now == last && now.open == 0 && now.opened > 0 {
            return Ok(now);
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "no figure: {} s after the load the agent still says {now:?}",
            PATIENCE.as_secs()
        );
        last = now;
    }
}

/// Memory that this machine could give away, in bytes.
fn free_bytes() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kilobytes.context("/proc/meminfo says nothing of MemAvailable")? * 1024)
}
