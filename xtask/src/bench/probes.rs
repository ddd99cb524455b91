//! The benchmark `probes`: what an observer in the kernel costs those who are observed. This file has TCP connections,
//! [`super::syscalls`] has system calls.
//!
//! Only the CPU of the observed process counts here; that of the observer's own processes is in the notes. Every
//! turn has a fresh network namespace, because connections in TIME_WAIT change the result.

use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::calls::Calls;
use super::churn::Churn;
use super::rounds::Comparison;
use super::{Measurement, Subject, take_turns};
use crate::netns::{self, Netns};
use crate::up::system::{Binaries, System};
use crate::{process, workspace};
use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Connections of one turn: about a second of CPU with nothing attached.
const PAIRS: u32 = 50_000;
/// Connections before each turn, for caches, and until a tool shows that it is attached.
const WARM_UP_PAIRS: u32 = 2_000;
/// How long a tool may take to load its programs.
const ATTACH_PATIENCE: Duration = Duration::from_secs(20);
/// How long rows may take to be in the store.
const STORE_PATIENCE: Duration = Duration::from_secs(20);
const UNIT: &str = "us of CPU per pair";
/// The same work in several threads, beside many processes.
const CROWDED: &str = "8 threads beside 2,000 processes, us of CPU per pair";
const BUSY_THREADS: u32 = 8;
const PAIRS_OF_EACH: u32 = 6_000;
const PROCESSES: u32 = 2_000;

/// All defaults: the work's eleven system calls a pair are counted, too.
const DEFAULT: &str = "holdfast";
const CONNECTIONS: &str = "holdfast, only TCP";
const TRANSITIONS: &str = "holdfast, transitions all";
/// What the work may cost with an observer, as a ratio to its cost without.
const TARGETS: [(&str, f64); 3] = [(DEFAULT, 1.10), (CONNECTIONS, 1.10), (TRANSITIONS, 1.20)];

const BPFTRACE_PROGRAM: &str = "tracepoint:sock:inet_sock_set_state \
    { printf(\"%s %d %d -> %d\\n\", comm, pid, args->oldstate, args->newstate); }";

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let binaries = Binaries::build(false)?;
    let work = &Work::build()?;
    netns::remove_leftovers()?;
    let tool = |name, arguments: &[&'static str]| -> Box<dyn Subject> {
        Box::new(Tool {
            name,
            arguments: arguments.to_vec(),
            work,
        })
    };
    let holdfast = |name, settings| -> Box<dyn Subject> {
        Box::new(Holdfast {
            name,
            settings,
            binaries: &binaries,
            work,
        })
    };
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(Nothing { work }),
        holdfast(DEFAULT, &[]),
        holdfast(CONNECTIONS, &["--syscalls", "off"]),
        holdfast(TRANSITIONS, &["--syscalls", "off", "--transitions", "all"]),
        tool("tcplife", &[]),
        tool("tcpstates", &[]),
        tool("bpftrace", &["-e", BPFTRACE_PROGRAM]),
    ];
    take_turns(UNIT, &mut subjects, rounds)
}

/// What each subject adds to the work, as a ratio within each round, and whether that is within the target.
pub(super) fn verdict(comparison: &Comparison) -> String {
    let mut text = String::from("ratio to nothing attached: median (min..max)\n");
    for (subject, target) in TARGETS {
        for (figure, load) in [
            (None, "one thread"),
            (Some(CROWDED), "8 threads, 2,000 processes"),
        ] {
            let Some(ratio) = comparison.ratio(subject, figure) else {
                continue;
            };
            let verdict = if ratio.median <= target { "within" } else { "OVER" };
            writeln!(text, "  {subject:28}  {load:28}  {ratio}  {verdict} {target:.2}")
                .expect("a string takes everything");
        }
    }
    text
}

/// The work of a turn.
struct Work {
    churn: Churn,
    calls: Calls,
}

impl Work {
    fn build() -> anyhow::Result<Self> {
        Ok(Self {
            churn: Churn::build()?,
            calls: Calls::build()?,
        })
    }

    /// Once everything is warm and attached.
    fn measure(&self, netns: &Netns) -> anyhow::Result<Measurement> {
        let cost = self.churn.run(netns, PAIRS)?.cpu_us_per_pair();
        let crowd = self.calls.crowd(PROCESSES)?;
        let crowded = self.churn.run_in_threads(netns, PAIRS_OF_EACH, BUSY_THREADS)?;
        drop(crowd);
        Ok(Measurement {
            cost,
            figures: vec![(CROWDED, crowded.cpu_us_per_pair())],
            note: String::new(),
        })
    }

    fn pairs() -> u32 {
        PAIRS + BUSY_THREADS * PAIRS_OF_EACH
    }
}

struct Nothing<'a> {
    work: &'a Work,
}

impl Subject for Nothing<'_> {
    fn name(&self) -> &'static str {
        "nothing attached"
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        self.work.churn.run(&netns, WARM_UP_PAIRS)?;
        self.work.measure(&netns)
    }
}

/// The real agent, with a real collector, storing every row.
struct Holdfast<'a> {
    name: &'static str,
    settings: &'static [&'static str],
    binaries: &'a Binaries,
    work: &'a Work,
}

impl Subject for Holdfast<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let state_dir = workspace::fresh_dir("bench-probes")?;
        let stop = AtomicBool::new(false);
        let system = System::start_here(self.binaries, &state_dir, self.settings, &stop)?;
        self.work.churn.run(&netns, WARM_UP_PAIRS)?;
        let before = system.cpu()?;
        let mut measurement = self.work.measure(&netns)?;

        // It only counts if it did its work: both ends of every pair are in the store.
        let inode = fs::metadata(format!("/run/netns/{}", netns.name()))?.ino();
        let expected = u64::from(2 * (WARM_UP_PAIRS + Work::pairs()));
        let rows = wait_for_rows(&system, inode, expected)?;
        let streamed = if self.name == TRANSITIONS {
            wait_for_transitions(&system, inode)?
        } else {
            String::new()
        };
        let after = system.cpu()?;
        system.stop()?;
        ensure!(rows == expected, "{rows} rows of {expected} are in the store");
        let per_pair = |cpu: Duration| cpu.as_secs_f64() * 1e6 / f64::from(Work::pairs());
        let (agent, collector) = (
            per_pair(after.agents - before.agents),
            per_pair(after.collector - before.collector),
        );
        measurement.note = format!(
            "{rows} of {expected} rows stored{streamed}; per pair, agent {agent:.1} us, collector {collector:.1} us"
        );
        Ok(measurement)
    }
}

fn wait_for_rows(system: &System, netns: u64, expected: u64) -> anyhow::Result<u64> {
    let started = Instant::now();
    loop {
        let rows = system.number(&format!("SELECT count() FROM connections WHERE netns = {netns}"))?;
        if rows >= expected || started.elapsed() > STORE_PATIENCE {
            return Ok(rows);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Every step of every path has to be an event of its own in the store.
fn wait_for_transitions(system: &System, netns: u64) -> anyhow::Result<String> {
    let started = Instant::now();
    let of = |what: &str| system.number(&format!("SELECT {what} WHERE netns = {netns}"));
    let steps = of("sum(length(path_us)) FROM connections")?;
    loop {
        let streamed = of("countIf(is_streamed AND step > 0) FROM transitions")?;
        if streamed == steps {
            return Ok(format!(", {streamed} transitions streamed"));
        }
        ensure!(
            started.elapsed() < STORE_PATIENCE,
            "{streamed} transitions of {steps} are in the store"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

/// A tracing tool that prints a line per event.
struct Tool<'a> {
    name: &'static str,
    arguments: Vec<&'static str>,
    work: &'a Work,
}

impl Subject for Tool<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let program =
            process::find_program(self.name).with_context(|| format!("{} is missing", self.name))?;
        // The tools want tracefs. Mounted in a mount namespace of their own, it is gone with them.
        let script =
            "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; exec \"$@\"";
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let printed = count_bytes(child.stdout.take().context("the tool has no output")?);
        let measured = self.measure_attached(&netns, &printed);
        kill_process(Pid::from_child(&child), Signal::INT)?;
        child.wait()?;
        let bytes = printed.load(Ordering::Relaxed);
        let mut measurement = measured?;
        measurement.note = format!("printed {} bytes a pair", bytes / u64::from(Work::pairs()));
        Ok(measurement)
    }
}

impl Tool<'_> {
    fn measure_attached(&self, netns: &Netns, printed: &AtomicU64) -> anyhow::Result<Measurement> {
        let started = Instant::now();
        // Its output comes in blocks: what a warm-up makes it print fills the first one.
        while printed.load(Ordering::Relaxed) < 4096 {
            if started.elapsed() > ATTACH_PATIENCE {
                bail!(
                    "{} printed nothing for {} s",
                    self.name,
                    ATTACH_PATIENCE.as_secs()
                );
            }
            self.work.churn.run(netns, WARM_UP_PAIRS)?;
        }
        self.work.measure(netns)
    }
}

/// Reads everything, as fast as it comes, and counts it.
fn count_bytes(mut output: impl Read + Send + 'static) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let shared = count.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(bytes @ 1..) = output.read(&mut buffer) {
            shared.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    });
    count
}
