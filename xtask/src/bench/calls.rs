//! `cargo xtask calls` (hidden): the work of the benchmark `syscalls`. Makes system calls that do next to nothing and says
//! how much CPU each took. [`Calls`] is how the benchmark runs it.

use std::fs::File;
use std::io::PipeWriter;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, anyhow, ensure};
use clap::ValueEnum;
use rustix::process::Pid;
use serde_json::{Value, json};

use super::churn::{Churn, cpu_ns};

/// The last id that a process can have, and with the usual limit none has.
const NOBODY: Option<Pid> = Pid::from_raw((1 << 22) - 1);

/// How often an idle process makes a few calls.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a crowd may take until each of its processes made a call.
const SETTLING: Duration = Duration::from_secs(2);

/// Make system calls, or wait.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which
    #[arg(long, value_enum, default_value_t = Kind::Getppid)]
    kind: Kind,

    /// So many in each thread
    #[arg(long, default_value_t = 0)]
    calls: u32,

    #[arg(long, default_value_t = 1)]
    threads: u32,

    /// Make a call a second instead, until stdin ends
    #[arg(long)]
    idle: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// The cheapest call that enters the kernel.
    Getppid,
    /// Reads /dev/null.
    Read,
    /// Asks for the process group of nobody: ESRCH.
    Fail,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.idle {
        return idle();
    }
    let (kind, calls) = (arguments.kind, arguments.calls);
    let threads: Vec<_> = (0..arguments.threads)
        .map(|_| thread::spawn(move || make(kind, calls)))
        .collect();
    let mut ns = 0;
    for thread in threads {
        ns += thread.join().map_err(|_| anyhow!("a thread panicked"))??;
    }
    println!(
        "{}",
        json!({"ns_per_call": ns as f64 / f64::from(calls * arguments.threads)})
    );
    Ok(())
}

/// Gives the CPU that the calls took.
fn make(kind: Kind, calls: u32) -> anyhow::Result<u64> {
    let null = File::open("/dev/null")?;
    let before = cpu_ns()?;
    let mut byte = [0];
    for _ in 0..calls {
        match kind {
            Kind::Getppid => _ = rustix::process::getppid(),
            Kind::Read => _ = rustix::io::read(&null, &mut byte)?,
            Kind::Fail => ensure!(
                rustix::process::getpgid(NOBODY).is_err(),
                "somebody has the last id"
            ),
        }
    }
    Ok(cpu_ns()? - before)
}

/// Another process that is there, and has a place in every table.
fn idle() -> anyhow::Result<()> {
    thread::spawn(|| {
        loop {
            let _ = rustix::process::getppid();
            thread::sleep(IDLE_INTERVAL);
        }
    });
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    Ok(())
}

/// The work, built with optimisation.
pub(super) struct Calls {
    program: PathBuf,
}

impl Calls {
    pub(super) fn build() -> anyhow::Result<Self> {
        let program = Churn::build()?.into_program();
        Ok(Self { program })
    }

    /// CPU of a call in nanoseconds, of so many in each of so many threads.
    pub(super) fn ns_per_call(&self, kind: Kind, calls: u32, threads: u32) -> anyhow::Result<f64> {
        let kind = kind.to_possible_value().context("a kind without a name")?;
        let output = Command::new(&self.program)
            .args(["calls", "--kind", kind.get_name()])
            .args(["--calls", &calls.to_string(), "--threads", &threads.to_string()])
            .output()?;
        ensure!(
            output.status.success(),
            "the workload failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let result: Value = serde_json::from_slice(&output.stdout).context("the workload printed no JSON")?;
        result["ns_per_call"]
            .as_f64()
            .context("the workload printed no ns_per_call")
    }

    /// Starts so many processes that make a few calls a second, and returns once they do.
    pub(super) fn crowd(&self, processes: u32) -> anyhow::Result<Crowd> {
        let (end, hold) = io::pipe()?;
        let mut crowd = Crowd {
            processes: Vec::new(),
            hold: Some(hold),
        };
        for _ in 0..processes {
            let child = Command::new(&self.program)
                .args(["calls", "--idle"])
                .stdin(end.try_clone()?)
                .stdout(Stdio::null())
                .spawn()
                .context("cannot start as many processes")?;
            crowd.processes.push(child);
        }
        thread::sleep(SETTLING);
        Ok(crowd)
    }
}

/// Processes that end with this.
pub(super) struct Crowd {
    processes: Vec<Child>,
    /// The other end of their stdin.
    hold: Option<PipeWriter>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.hold.take());
        for process in &mut self.processes {
            let _ = process.wait();
        }
    }
}
