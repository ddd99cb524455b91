//! The benchmark `path`: whether the connect times that the load engine reports are those of the kernel, over a path of 2 ms.
//!
//! Two hosts are network namespaces, and between them is a third in which `delay_line` hands each frame on a millisecond later. An
//! agent watches the client's; its records say how long each handshake took. The engine says it twice: `dial` from connect()
//! until its thread knew, which has the thread's own waiting in it, and `network` by TCP_INFO.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::load::{Engine, Target, number};
use super::rounds::{Comparison, Target as Want};
use super::{Measurement, Subject, take_turns};
use crate::netns::{self, Netns};
use crate::up::system::{Binaries, System, build_examples};
use crate::workspace;

const DELAY_US: &str = "1000";
const SERVER: &str = "198.18.255.2";
const FIRST_PORT: u16 = 8_001;
const STORE_PATIENCE: Duration = Duration::from_secs(30);

const UNIT: &str = "us by which network p99 is off the kernel's";
const NETWORK_P50: &str = "network p50 off by, us";
const DIAL_P50: &str = "dial p50 off by, us";
const DIAL_P99: &str = "dial p99 off by, us";
const KERNEL_P50: &str = "the kernel's p50, us";
const KERNEL_P99: &str = "the kernel's p99, us";
const MOST_US: f64 = 10.0;

/// What the engine does, and what the target does with a connection.
const SUBJECTS: [(&str, &[&str], &[&str]); 2] = [
    ("64 in flight", &["--concurrency", "64", "--millis", "3000"], &[]),
    (
        "3,000 in flight",
        &["--count", "3000", "--hold", "100"],
        &["--keep"],
    ),
];

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let binaries = Binaries::build(false)?;
    let engine = Engine::build()?;
    let line = build_examples(&["holdfast-agent"], &["delay_line"])?.join("delay_line");
    let path = Path::create(&line)?;
    let inode = fs::metadata(path.client.path())?.ino();
    let state_dir = workspace::fresh_dir("bench-path")?;
    let system = System::start_here_watching(&binaries, &state_dir, &path.client, &AtomicBool::new(false))?;
    let mut subjects: Vec<Box<dyn Subject>> = SUBJECTS
        .iter()
        .zip(0..)
        .map(|(&(name, arguments, target), place)| {
            Box::new(InFlight {
                name,
                arguments,
                target,
                engine: &engine,
                path: &path,
                system: &system,
                inode,
                // Which port says which turn a row is of.
                port: FIRST_PORT + place * 1_000,
            }) as Box<dyn Subject>
        })
        .collect();
    let comparison = take_turns(UNIT, &mut subjects, rounds)?;
    drop(subjects);
    system.stop()?;
    Ok(comparison)
}

/// Two hosts and what is between them.
struct Path {
    client: Netns,
    server: Netns,
    _line: Target,
    _between: Netns,
}

impl Path {
    fn create(program: &std::path::Path) -> anyhow::Result<Self> {
        let (client, server, between) = (
            Netns::create("client")?,
            Netns::create("server")?,
            Netns::create("line")?,
        );
        for (host, inner, address) in [
            (&client, "p0", "198.18.255.1/24"),
            (&server, "p1", "198.18.255.2/24"),
        ] {
            netns::ip(&[
                "-netns",
                host.name(),
                "link",
                "add",
                "e0",
                "type",
                "veth",
                "peer",
                "name",
                inner,
                "netns",
                between.name(),
            ])?;
            between.ip(&["link", "set", inner, "up", "promisc", "on"])?;
            host.ip(&["address", "add", address, "dev", "e0"])?;
            host.ip(&["link", "set", "e0", "up"])?;
        }
        let line = Target::start(&between, program, &["p0", "p1", "--micros", DELAY_US])?;
        Ok(Self {
            client,
            server,
            _line: line,
            _between: between,
        })
    }
}

struct InFlight<'a> {
    name: &'static str,
    arguments: &'static [&'static str],
    target: &'static [&'static str],
    engine: &'a Engine,
    path: &'a Path,
    system: &'a System,
    inode: u64,
    port: u16,
}

impl InFlight<'_> {
    fn stored(&self, what: &str) -> anyhow::Result<u64> {
        self.system.number(&format!(
            "SELECT toUInt64({what}) FROM attempts WHERE role = 'active' AND netns = {} AND remote_port = {} \
             AND outcome = 'established'",
            self.inode, self.port
        ))
    }
}

impl Subject for InFlight<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        self.port += 1;
        let address = format!("{SERVER}:{}", self.port);
        let _target = self
            .engine
            .start_at(&self.path.server, "accept", &address, self.target)?;
        let result = self.engine.make_to(&self.path.client, &address, self.arguments)?;
        let made = number(&result, "/started")?;
        let begun = Instant::now();
        while (self.stored("count()")? as f64) < made {
            ensure!(
                begun.elapsed() < STORE_PATIENCE,
                "no figure: of {made} connections {} are stored",
                self.stored("count()")?
            );
            thread::sleep(Duration::from_millis(200));
        }
        let kernel_us = |share: f64| {
            Ok::<_, anyhow::Error>(self.stored(&format!("quantileExactLow({share})(connect_us)"))? as f64)
        };
        let (kernel_p50, kernel_p99) = (kernel_us(0.5)?, kernel_us(0.99)?);
        let off = |pointer: &str, kernel: f64| {
            Ok::<_, anyhow::Error>((number(&result, pointer)? / 1e3 - kernel).abs())
        };
        Ok(Measurement {
            cost: off("/network/p99_ns", kernel_p99)?,
            figures: vec![
                (NETWORK_P50, off("/network/p50_ns", kernel_p50)?),
                (DIAL_P50, off("/dial/p50_ns", kernel_p50)?),
                (DIAL_P99, off("/dial/p99_ns", kernel_p99)?),
                (KERNEL_P50, kernel_p50),
                (KERNEL_P99, kernel_p99),
            ],
            note: format!("{made} connections"),
        })
    }
}

/// Whether the reported network times are those of the kernel.
pub(super) fn verdict(comparison: &Comparison) -> String {
    let mut text = String::from("targets:\n");
    for (subject, ..) in SUBJECTS {
        for (figure, what) in [(Some(NETWORK_P50), "p50"), (None, "p99")] {
            let what = format!("{subject}: network {what} off the kernel's by, us");
            text += &Want::AtMost(MOST_US).line(&what, comparison.spread(subject, figure));
        }
    }
    text
}
