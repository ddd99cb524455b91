//! The benchmark `probe-cost`: what an observer in the kernel costs those who are observed.
//!
//! Only the CPU of the observed process counts here; that of the observer's own processes is in the notes. Every
//! turn has a fresh network namespace, because connections in TIME_WAIT change the result.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

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

const BPFTRACE_PROGRAM: &str = "tracepoint:sock:inet_sock_set_state \
    { printf(\"%s %d %d -> %d\\n\", comm, pid, args->oldstate, args->newstate); }";

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let binaries = Binaries::build(false)?;
    let churn = Churn::build()?;
    netns::remove_leftovers()?;
    let tool = |name, arguments: &[&'static str]| -> Box<dyn Subject> {
        Box::new(Tool {
            name,
            arguments: arguments.to_vec(),
            churn: &churn,
        })
    };
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(Nothing { churn: &churn }),
        Box::new(Holdfast {
            binaries: &binaries,
            churn: &churn,
        }),
        tool("tcplife", &[]),
        tool("tcpstates", &[]),
        tool("bpftrace", &["-e", BPFTRACE_PROGRAM]),
    ];
    take_turns(UNIT, &mut subjects, rounds)
}

struct Nothing<'a> {
    churn: &'a Churn,
}

impl Subject for Nothing<'_> {
    fn name(&self) -> &'static str {
        "nothing attached"
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        self.churn.run(&netns, WARM_UP_PAIRS)?;
        Ok(Measurement {
            cost: self.churn.run(&netns, PAIRS)?.cpu_us_per_pair(),
            figures: Vec::new(),
            note: String::new(),
        })
    }
}

/// The real agent, with a real collector, storing every row.
struct Holdfast<'a> {
    binaries: &'a Binaries,
    churn: &'a Churn,
}

impl Subject for Holdfast<'_> {
    fn name(&self) -> &'static str {
        "holdfast"
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let netns = Netns::create("bench")?;
        let state_dir = workspace::target_dir()?.join("bench-probe-cost");
        if state_dir.exists() {
            fs::remove_dir_all(&state_dir)
                .with_context(|| format!("cannot empty {}", state_dir.display()))?;
        }
        let system = System::start(self.binaries, &state_dir, None, &AtomicBool::new(false))?;
        self.churn.run(&netns, WARM_UP_PAIRS)?;
        let before = system.cpu()?;
        let cost = self.churn.run(&netns, PAIRS)?.cpu_us_per_pair();

        // It only counts if it did its work: both ends of every pair are in the store.
        let inode = fs::metadata(format!("/run/netns/{}", netns.name()))?.ino();
        let expected = u64::from(2 * (WARM_UP_PAIRS + PAIRS));
        let rows = wait_for_rows(&system, inode, expected)?;
        let after = system.cpu()?;
        system.stop()?;
        ensure!(rows == expected, "{rows} rows of {expected} are in the store");
        let per_pair = |cpu: Duration| cpu.as_secs_f64() * 1e6 / f64::from(PAIRS);
        let (agent, collector) = (
            per_pair(after.agents - before.agents),
            per_pair(after.collector - before.collector),
        );
        let note = format!(
            "{rows} of {expected} rows stored; per pair, agent {agent:.1} us, collector {collector:.1} us"
        );
        Ok(Measurement {
            cost,
            figures: Vec::new(),
            note,
        })
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

/// A tracing tool that prints a line per event.
struct Tool<'a> {
    name: &'static str,
    arguments: Vec<&'static str>,
    churn: &'a Churn,
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
        let cost = self.measure_attached(&netns, &printed);
        kill_process(Pid::from_child(&child), Signal::INT)?;
        child.wait()?;
        let bytes = printed.load(Ordering::Relaxed);
        Ok(Measurement {
            cost: cost?,
            figures: Vec::new(),
            note: format!("printed {} bytes a pair", bytes / u64::from(PAIRS)),
        })
    }
}

impl Tool<'_> {
    fn measure_attached(&self, netns: &Netns, printed: &AtomicU64) -> anyhow::Result<f64> {
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
            self.churn.run(netns, WARM_UP_PAIRS)?;
        }
        Ok(self.churn.run(netns, PAIRS)?.cpu_us_per_pair())
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
