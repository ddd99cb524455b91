//! The benchmark `syscalls`: what counting system calls costs those who make them.
//!
//! The calls are the cheapest there are, so that what is added is as large a part of the whole as it can be. Only the CPU
//! of the threads that make them counts.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::calls::{Calls, Kind};
use super::rounds::Comparison;
use super::{Measurement, Subject, take_turns};
use crate::up::system::Binaries;
use crate::{process, workspace};

/// Calls of one turn in one thread: a tenth of a second with nothing attached.
const CALLS: u32 = 1_000_000;
/// In each of several threads.
const CALLS_OF_MANY: u32 = 300_000;
const WARM_UP_CALLS: u32 = 100_000;
const BUSY_THREADS: u32 = 8;
const PROCESSES: u32 = 2_000;
/// After an observer has attached: what it reads of this machine at its start may take the core beside.
const SETTLING: Duration = Duration::from_secs(3);
const UNIT: &str = "ns of CPU per getppid";

const READ: &str = "read of /dev/null, ns";
const FAIL: &str = "failing getpgid, ns";
const BUSY: &str = "getppid in 8 threads, ns";
const CROWDED: &str = "getppid in 8 threads beside 2,000 processes, ns";

const COUNTS: &str = "holdfast, counts";
const SAMPLED: &str = "holdfast, sampled";
const FULL: &str = "holdfast, full";
const EMPTY_AT_RETURN: &str = "empty, at the return";
const EMPTY_AT_BOTH: &str = "empty, at both ends";
const BPFTRACE_EMPTY: &str = "bpftrace, nothing";
const BPFTRACE_COUNT: &str = "bpftrace, count";
const BPFTRACE_HISTOGRAM: &str = "bpftrace, histogram";

/// What may be added to a call, in nanoseconds.
const TARGETS: [(&str, f64); 2] = [(COUNTS, 35.0), (SAMPLED, 80.0)];

/// Says once a tenth of a second that it is attached.
const TICK: &str = "interval:ms:100 { printf(\"attached\\n\"); }";
/// What it costs that anybody looks, from where Holdfast does: the kernel takes another way into and out of a call then, and
/// enters a program that does nothing. What Holdfast adds beyond that is its own. Counts are taken at the return alone.
const EMPTY: &str = include_str!("empty_program.py");
/// The same through perf, as the programs below.
const EMPTY_PROGRAM: &str = "tracepoint:raw_syscalls:sys_exit { }";
const COUNT_PROGRAM: &str = "tracepoint:raw_syscalls:sys_exit { @[pid, args->id] = count(); }";
const HISTOGRAM_PROGRAM: &str = "tracepoint:raw_syscalls:sys_enter { @began[tid] = nsecs; } \
    tracepoint:raw_syscalls:sys_exit /@began[tid]/ \
    { @took[pid, args->id] = hist(nsecs - @began[tid]); delete(@began[tid]); }";

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let agent = &Binaries::build(false)?.agent;
    let calls = &Calls::build()?;
    let holdfast = |name, mode| -> Box<dyn Subject> {
        Box::new(Attached {
            name,
            calls,
            start: Box::new(move || start_agent(agent, mode)),
        })
    };
    let bpftrace = |name, program| -> Box<dyn Subject> {
        Box::new(Attached {
            name,
            calls,
            start: Box::new(move || start_bpftrace(program)),
        })
    };
    let empty = |name, hooks: &'static [&str]| -> Box<dyn Subject> {
        Box::new(Attached {
            name,
            calls,
            start: Box::new(move || start_empty(hooks)),
        })
    };
    let mut subjects = [
        Box::new(Nothing { calls }) as Box<dyn Subject>,
        holdfast(COUNTS, "counts"),
        holdfast(SAMPLED, "sampled"),
        holdfast(FULL, "full"),
        empty(EMPTY_AT_RETURN, &["sys_exit"]),
        empty(EMPTY_AT_BOTH, &["sys_enter", "sys_exit"]),
        bpftrace(BPFTRACE_EMPTY, EMPTY_PROGRAM),
        bpftrace(BPFTRACE_COUNT, COUNT_PROGRAM),
        bpftrace(BPFTRACE_HISTOGRAM, HISTOGRAM_PROGRAM),
    ];
    take_turns(UNIT, &mut subjects, rounds)
}

/// What each subject adds to each kind of call, and whether that is within the target.
pub(super) fn verdict(comparison: &Comparison) -> String {
    let mut text = String::from("added to each call, ns: median (min..max)\n");
    for subject in [
        COUNTS,
        SAMPLED,
        FULL,
        EMPTY_AT_RETURN,
        EMPTY_AT_BOTH,
        BPFTRACE_EMPTY,
        BPFTRACE_COUNT,
        BPFTRACE_HISTOGRAM,
    ] {
        let target = TARGETS
            .iter()
            .find(|(name, _)| *name == subject)
            .map(|(_, ns)| *ns);
        for (figure, call) in [
            (None, "getppid"),
            (Some(READ), "read"),
            (Some(FAIL), "failing getpgid"),
            (Some(BUSY), "getppid, 8 threads"),
            (Some(CROWDED), "getppid, 8 threads, 2,000 processes"),
        ] {
            let Some(added) = comparison.added(subject, figure) else {
                continue;
            };
            let verdict = match target {
                Some(ns) if added.median <= ns => format!("  within {ns:.0}"),
                Some(ns) => format!("  OVER {ns:.0}"),
                None => String::new(),
            };
            writeln!(text, "  {subject:20}  {call:36}  {added}{verdict}").expect("a string takes everything");
        }
    }
    text
}

fn measure(calls: &Calls) -> anyhow::Result<Measurement> {
    calls.ns_per_call(Kind::Getppid, WARM_UP_CALLS, 1)?;
    let cost = calls.ns_per_call(Kind::Getppid, CALLS, 1)?;
    let mut figures = vec![
        (READ, calls.ns_per_call(Kind::Read, CALLS, 1)?),
        (FAIL, calls.ns_per_call(Kind::Fail, CALLS, 1)?),
        (
            BUSY,
            calls.ns_per_call(Kind::Getppid, CALLS_OF_MANY, BUSY_THREADS)?,
        ),
    ];
    let crowd = calls.crowd(PROCESSES)?;
    figures.push((
        CROWDED,
        calls.ns_per_call(Kind::Getppid, CALLS_OF_MANY, BUSY_THREADS)?,
    ));
    drop(crowd);
    Ok(Measurement {
        cost,
        figures,
        note: String::new(),
    })
}

struct Nothing<'a> {
    calls: &'a Calls,
}

impl Subject for Nothing<'_> {
    fn name(&self) -> &'static str {
        "nothing attached"
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        measure(self.calls)
    }
}

/// An observer that is attached while the calls are made.
struct Attached<'a> {
    name: &'static str,
    calls: &'a Calls,
    start: Box<dyn Fn() -> anyhow::Result<Observer> + 'a>,
}

impl Subject for Attached<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let observer = (self.start)()?;
        thread::sleep(SETTLING);
        let measurement = measure(self.calls);
        observer.stop()?;
        measurement
    }
}

/// An observer's process, and what it prints, which somebody has to read.
struct Observer {
    child: Child,
    reader: thread::JoinHandle<()>,
}

impl Observer {
    /// Waits until a line says that it is attached.
    fn attached(mut child: Child, output: impl Read + Send + 'static, word: &str) -> anyhow::Result<Self> {
        let mut output = BufReader::new(output);
        let mut said = String::new();
        loop {
            let begin = said.len();
            let is_over = output.read_line(&mut said)? == 0;
            if said[begin..].contains(word) {
                break;
            }
            if is_over {
                child.wait()?;
                anyhow::bail!("it ended before it was attached: {}", said.trim());
            }
        }
        let reader = thread::spawn(move || _ = io::copy(&mut output, &mut io::sink()));
        Ok(Self { child, reader })
    }

    fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        self.child.wait()?;
        let _ = self.reader.join();
        Ok(())
    }
}

/// The real agent. It has no collector, so that only its programs are at work.
fn start_agent(agent: &Path, mode: &str) -> anyhow::Result<Observer> {
    let state = workspace::fresh_dir("bench-syscalls")?;
    let mut child = Command::new(agent)
        .args([
            "run",
            "--collector",
            "http://127.0.0.1:1",
            "--syscalls",
            mode,
            "--state",
        ])
        .arg(&state)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", agent.display()))?;
    let output = child.stderr.take().context("the agent has no output")?;
    Observer::attached(child, output, "watching")
}

fn start_empty(hooks: &[&str]) -> anyhow::Result<Observer> {
    let mut child = Command::new("python3")
        .args(["-c", EMPTY])
        .args(hooks)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start python3")?;
    let output = child.stdout.take().context("python3 has no output")?;
    Observer::attached(child, output, "attached")
}

fn start_bpftrace(program: &str) -> anyhow::Result<Observer> {
    let bpftrace = process::find_program("bpftrace").context("bpftrace is missing")?;
    // It wants tracefs. Mounted in a mount namespace of its own, it is gone with it.
    let script =
        "mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing; exec \"$@\"";
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(bpftrace)
        .args(["-B", "line", "-e", &format!("{program} {TICK}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start bpftrace")?;
    let output: ChildStdout = child.stdout.take().context("bpftrace has no output")?;
    ensure!(child.try_wait()?.is_none(), "bpftrace ended at once");
    Observer::attached(child, output, "attached")
}
