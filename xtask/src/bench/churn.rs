//! `cargo xtask churn` (hidden): the work of the benchmarks. Opens and closes TCP connections on loopback and says
//! how many, and how much CPU that took. [`Churn`] is how a benchmark runs it.
//!
//! A thread plays both ends: a handshake on loopback happens inside `connect`, so nothing ever waits, no context
//! switch is counted, and what a probe adds is as large a part of the whole as it can be.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, connect_unspec, socket_with};
use serde_json::{Value, json};

use crate::netns::Netns;
use crate::{progress, span, workspace};

/// The connecting side closes first and keeps its port in TIME_WAIT. Past 45% of the ports to one address (28,232 by
/// default) looking for a free one costs more than the connection, so each address is used for fewer.
const PAIRS_PER_ADDRESS: u32 = 10_000;
/// Connections of a flood between two looks at the clock.
const PAIRS_PER_LOOK: u32 = 64;

/// Open and close connections in this network namespace.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// So many in each thread, one after another, each with 4 bytes both ways
    #[arg(long, required_unless_present = "duration")]
    pairs: Option<u32>,

    /// As many as possible in this time (5s), without a byte
    #[arg(long = "for", value_name = "TIME", value_parser = span::parse, conflicts_with = "pairs")]
    duration: Option<Duration>,

    /// Each with a listener of its own
    #[arg(long, default_value_t = 1)]
    threads: u32,
}

/// What was done, and what it took.
#[derive(Clone, Copy, Default)]
pub(super) struct Work {
    pub(super) pairs: u64,
    /// CPU of all threads.
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    let (pairs, cpu_ns) = match arguments.duration {
        Some(duration) => {
            let until = started + duration;
            in_threads(arguments.threads, move || reconnect(until))?
        }
        None => {
            let pairs = arguments.pairs.unwrap_or_default();
            in_threads(arguments.threads, move || politely(pairs))?
        }
    };
    let wall_ns = started.elapsed().as_nanos() as u64;
    println!(
        "{}",
        json!({"pairs": pairs, "cpu_ns": cpu_ns, "wall_ns": wall_ns})
    );
    Ok(())
}

/// Connections as programs make them, one after another.
fn politely(pairs: u32) -> anyhow::Result<(u64, u64)> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let port = listener.local_addr()?.port();
    let before = cpu_ns()?;
    for pair in 0..pairs {
        let [.., high, low] = (pair / PAIRS_PER_ADDRESS + 1).to_be_bytes();
        let address = SocketAddrV4::new(Ipv4Addr::new(127, 1, high, low), port);
        open_and_close(&listener, address).with_context(|| format!("connection {pair} to {address}"))?;
    }
    Ok((pairs.into(), cpu_ns()? - before))
}

fn open_and_close(listener: &TcpListener, address: SocketAddrV4) -> io::Result<()> {
    let mut client = TcpStream::connect(address)?;
    let (mut server, _) = listener.accept()?;
    let mut message = *b"ping";
    client.write_all(&message)?;
    server.read_exact(&mut message)?;
    server.write_all(&message)?;
    client.read_exact(&mut message)?;
    drop(client);
    drop(server);
    Ok(())
}

/// The same in several threads: the connections and the CPU of all of them.
fn in_threads(
    threads: u32,
    work: impl Fn() -> anyhow::Result<(u64, u64)> + Copy + Send + 'static,
) -> anyhow::Result<(u64, u64)> {
    let working: Vec<_> = (0..threads).map(|_| thread::spawn(work)).collect();
    let (mut pairs, mut cpu_ns) = (0, 0);
    for thread in working {
        let work = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        pairs += work.0;
        cpu_ns += work.1;
    }
    Ok((pairs, cpu_ns))
}

/// As many connections as one core can make. One socket connects again and again, to a listener of this thread's own. Dissolving the association sends a RST:
/// nothing is left in TIME_WAIT, and a free port is always found at once.
fn reconnect(until: Instant) -> anyhow::Result<(u64, u64)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let client = socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let before = cpu_ns()?;
    let mut pairs = 0;
    while Instant::now() < until {
        for _ in 0..PAIRS_PER_LOOK {
            reconnect_once(&client, &listener, address)
                .with_context(|| format!("connection {pairs} to {address}"))?;
            pairs += 1;
        }
    }
    Ok((pairs, cpu_ns()? - before))
}

fn reconnect_once(
    client: &impl std::os::fd::AsFd,
    listener: &TcpListener,
    address: SocketAddr,
) -> io::Result<()> {
    connect(client, &address)?;
    let (server, _) = listener.accept()?;
    connect_unspec(client)?;
    drop(server);
    Ok(())
}

/// Time that this thread has spent on a CPU, in nanoseconds. It includes the softirqs that ran on its back, which is
/// most of what TCP on loopback does (on kernels with CONFIG_IRQ_TIME_ACCOUNTING it does not).
pub(super) fn cpu_ns() -> anyhow::Result<u64> {
    const PATH: &str = "/proc/thread-self/schedstat";
    let text = fs::read_to_string(PATH).context("this kernel lacks CONFIG_SCHED_INFO")?;
    let first = text
        .split_whitespace()
        .next()
        .with_context(|| format!("{PATH} is empty"))?;
    first.parse().with_context(|| format!("{PATH} says {first:?}"))
}

/// The work, built with optimisation: its own part in the CPU time shall be small.
pub(super) struct Churn {
    program: PathBuf,
}

impl Churn {
    pub(super) fn build() -> anyhow::Result<Self> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["build", "--release", "--package", "xtask"])
            .current_dir(workspace::root());
        progress::run("building the workload", &mut cargo)?;
        Ok(Self {
            program: workspace::target_dir()?.join("release/xtask"),
        })
    }

    /// The program: it does other work too.
    pub(super) fn into_program(self) -> PathBuf {
        self.program
    }

    /// Opens and closes so many connections in a namespace, as programs do.
    pub(super) fn run(&self, netns: &Netns, pairs: u32) -> anyhow::Result<Work> {
        self.run_in_threads(netns, pairs, 1)
    }

    /// The same in each of so many threads.
    pub(super) fn run_in_threads(&self, netns: &Netns, pairs: u32, threads: u32) -> anyhow::Result<Work> {
        let (pairs, threads) = (pairs.to_string(), threads.to_string());
        self.start(netns, &["--pairs", &pairs, "--threads", &threads])
    }

    /// Opens and closes as many as it can.
    pub(super) fn flood(&self, netns: &Netns, threads: u32, duration: Duration) -> anyhow::Result<Work> {
        let duration = format!("{}ms", duration.as_millis());
        self.start(netns, &["--threads", &threads.to_string(), "--for", &duration])
    }

    fn start(&self, netns: &Netns, arguments: &[&str]) -> anyhow::Result<Work> {
        let mut command = netns.command(&self.program);
        let output = command.arg("churn").args(arguments).output()?;
        ensure!(
            output.status.success(),
            "the workload failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let result: Value = serde_json::from_slice(&output.stdout).context("the workload printed no JSON")?;
        let number = |name: &str| {
            let number = result[name].as_u64();
            number.with_context(|| format!("the workload printed no {name}"))
        };
        Ok(Work {
            pairs: number("pairs")?,
            cpu: Duration::from_nanos(number("cpu_ns")?),
            wall: Duration::from_nanos(number("wall_ns")?),
        })
    }
}

impl Work {
    /// CPU per connection, in microseconds.
    pub(super) fn cpu_us_per_pair(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.pairs as f64
    }

    pub(super) fn pairs_per_second(&self) -> f64 {
        self.pairs as f64 / self.wall.as_secs_f64()
    }
}
