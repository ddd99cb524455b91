//! The benchmark `ingest`: how many rows a second the collector takes, and what a row costs, from the agent's socket
//! to the disk of the store.
//!
//! Rows are those that a real agent recorded of real, varied traffic (`recording`), sent by a process (the agent's
//! example `replay`) that copies batches and does little else. A row counts once it is acknowledged; CPU is taken from
//! before the first until everybody is idle again, so ClickHouse's merges are in it. With HTTP, the store is a process
//! of its own: the engine behind the stand-in for a server that the tests use.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::rounds::Comparison;
use super::{Measurement, Subject, recording, take_turns, wait_until_idle};
use crate::failure::Failure;
use crate::process::{Place, Service};
use crate::up::system::{Binaries, System, build_examples};
use crate::{netns, span, workspace};

/// How long rows are sent in a turn: long enough for merges of merges.
const TURN: Duration = Duration::from_secs(20);
/// How often memory is looked at.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Memory is flat when its median in the last quarter of the time exceeds that in the second quarter by less. The
/// first quarter fills caches.
const FLAT: f64 = 1.1;
/// How long the stand-in for a server may take to open its engine.
const FRONT_PATIENCE: Duration = Duration::from_secs(30);
const UNIT: &str = "us of CPU per row";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const STORED: &str = "SELECT count() FROM connection_records";
const PARTS: &str =
    "FROM system.parts WHERE active AND database = currentDatabase() AND table = 'connection_records'";

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let bench = Bench::prepare()?;
    let subject = |name, agents, over_http, rows| -> Box<dyn Subject + '_> {
        Box::new(Replay {
            name,
            bench: &bench,
            agents,
            over_http,
            rows,
        })
    };
    let mut subjects = vec![
        subject("embedded, 1 agent", 1, false, Rows::During(TURN)),
        subject("embedded, 50 agents", 50, false, Rows::During(TURN)),
        subject("HTTP, 1 agent", 1, true, Rows::During(TURN)),
        subject("HTTP, 50 agents", 50, true, Rows::During(TURN)),
        subject("the recording once", 1, false, Rows::Once),
    ];
    take_turns(UNIT, &mut subjects, rounds)
}

/// One long turn of 50 agents, and whether memory stays flat.
pub(super) fn endure(minutes: u32) -> anyhow::Result<()> {
    let bench = Bench::prepare()?;
    let replay = Replay {
        name: "embedded, 50 agents",
        bench: &bench,
        agents: 50,
        over_http: false,
        rows: Rows::During(Duration::from_secs(60 * u64::from(minutes))),
    };
    let turn = replay.turn()?;
    for (name, value) in turn.figures() {
        println!("{name:46}  {value:.2}");
    }
    println!("\nresident memory of the collector with its engine, MiB, minute by minute:");
    for minute in turn.resident_bytes.chunks(60) {
        println!("  {:.0}", mebibytes(median(minute)));
    }
    let quarter = turn.resident_bytes.len() / 4;
    ensure!(quarter > 0, "too short to say anything about memory");
    let (early, late) = (
        median(&turn.resident_bytes[quarter..2 * quarter]),
        median(&turn.resident_bytes[3 * quarter..]),
    );
    let verdict = format!(
        "{:.0} MiB in the second quarter, {:.0} MiB in the last",
        mebibytes(early),
        mebibytes(late)
    );
    if late as f64 > early as f64 * FLAT {
        return Err(Failure::Check(format!("memory grows: {verdict}")).into());
    }
    println!("memory is flat: {verdict}");
    Ok(())
}

/// What all turns need.
struct Bench {
    binaries: Binaries,
    replay: PathBuf,
    store_bytes: PathBuf,
    recording: PathBuf,
}

impl Bench {
    fn prepare() -> anyhow::Result<Self> {
        let binaries = Binaries::build(false)?;
        let examples = build_examples(
            &["holdfast-agent", "holdfast-collector"],
            &["replay", "clickhouse_http", "store_bytes"],
        )?;
        netns::remove_leftovers()?;
        let recording = recording::provide(&binaries)?;
        Ok(Self {
            binaries,
            replay: examples.join("replay"),
            store_bytes: examples.join("store_bytes"),
            recording,
        })
    }
}

/// What is sent in a turn.
#[derive(Clone, Copy)]
enum Rows {
    /// The recording again and again, as fast as it is acknowledged.
    During(Duration),
    /// As it was recorded: what that takes on disk is what real rows take.
    Once,
}

struct Replay<'a> {
    name: &'static str,
    bench: &'a Bench,
    agents: u32,
    over_http: bool,
    rows: Rows,
}

/// What came out of a turn.
struct Turn {
    rows: u64,
    sending: Duration,
    generator: Duration,
    collector: Duration,
    /// The process of the store, if that is another one.
    front: Option<Duration>,
    message_bytes: u64,
    wire_bytes: u64,
    disk_bytes: u64,
    parts: u64,
    /// Of the recording: what is left once everything is merged into one part.
    merged_bytes: Option<u64>,
    /// Of the collector, or where the store is another process, of both.
    resident_bytes: Vec<u64>,
}

impl Subject for Replay<'_> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn measure(&mut self) -> anyhow::Result<Measurement> {
        let turn = self.turn()?;
        Ok(Measurement {
            cost: turn.us_per_row(turn.cpu()),
            figures: turn.figures(),
            note: format!("{} rows in {}", turn.rows, span::show(turn.sending)),
        })
    }
}

impl Replay<'_> {
    fn turn(&self) -> anyhow::Result<Turn> {
        let state_dir = workspace::fresh_dir("bench-ingest")?;
        let data = state_dir.join("data");
        let mut front = self
            .over_http
            .then(|| Front::start(self.bench, &state_dir))
            .transpose()?;
        let store = match &front {
            Some(front) => front.url.clone(),
            None => format!("embedded:{}", data.display()),
        };
        let stop = AtomicBool::new(false);
        let mut system =
            System::start_collector(&self.bench.binaries, &state_dir, LOOPBACK, &store, None, &stop)?;

        let before = cpu(&system, front.as_ref())?;
        let (sent, resident_bytes) = self.send(&mut system, front.as_mut())?;
        wait_until_idle(|| {
            let (collector, front) = cpu(&system, front.as_ref())?;
            Ok(collector + front)
        })?;
        let after = cpu(&system, front.as_ref())?;
        let number = |name: &str| {
            let number = sent[name].as_u64();
            number.with_context(|| format!("the replaying agents printed no {name}"))
        };
        let rows = number("rows")?;
        let stored = system.number(STORED)?;
        if stored != rows {
            let message = format!("no figure: {rows} rows were acknowledged, and {stored} are in the store");
            return Err(Failure::Check(message).into());
        }
        let disk_bytes = system.number(&format!("SELECT sum(bytes_on_disk) {PARTS}"))?;
        let parts = system.number(&format!("SELECT count() {PARTS}"))?;
        system.stop()?;
        let (collector, front_cpu) = (after.0 - before.0, after.1 - before.1);
        let front = front
            .map(|front| front.service.stop().map(|_| front_cpu))
            .transpose()?;
        let merged_bytes = match self.rows {
            Rows::Once => Some(self.merged_bytes(&data)?),
            Rows::During(_) => None,
        };
        Ok(Turn {
            rows,
            sending: Duration::from_nanos(number("wall_ns")?),
            generator: Duration::from_nanos(number("cpu_ns")?),
            collector,
            front,
            message_bytes: number("message_bytes")?,
            wire_bytes: number("wire_bytes")?,
            disk_bytes,
            parts,
            merged_bytes,
            resident_bytes,
        })
    }

    /// Runs the replaying agents to their end; gives what they printed, and the memory that the others occupied.
    fn send(&self, system: &mut System, mut front: Option<&mut Front>) -> anyhow::Result<(Value, Vec<u64>)> {
        // Like every service, it ends with us.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&self.bench.replay)
            .args([
                "--collector",
                &system.listen().to_string(),
                "--agents",
                &self.agents.to_string(),
            ])
            .arg("--recording")
            .arg(&self.bench.recording);
        if let Rows::During(duration) = self.rows {
            command.args(["--seconds", &duration.as_secs().to_string()]);
        }
        let mut agents = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the replaying agents")?;
        let mut resident_bytes = Vec::new();
        let mut sampled = Instant::now();
        while agents.try_wait()?.is_none() {
            thread::sleep(Duration::from_millis(20));
            let died = system
                .collector()
                .ended()
                .or_else(|| front.as_mut()?.service.ended());
            if let Some(why) = died {
                // What they say of it does not matter.
                let _ = agents.kill().and_then(|()| agents.wait());
                bail!(why);
            }
            if sampled.elapsed() >= SAMPLE_EVERY {
                sampled += SAMPLE_EVERY;
                let in_front = front
                    .as_ref()
                    .map_or(Ok(0), |front| front.service.resident_bytes())?;
                resident_bytes.push(system.collector().resident_bytes()? + in_front);
            }
        }
        let output = agents.wait_with_output()?;
        ensure!(
            output.status.success(),
            "the replaying agents failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let sent = serde_json::from_slice(&output.stdout).context("the replaying agents printed no JSON")?;
        Ok((sent, resident_bytes))
    }

    fn merged_bytes(&self, data: &Path) -> anyhow::Result<u64> {
        let output = Command::new(&self.bench.store_bytes)
            .arg(data)
            .arg("--merged")
            .output()?;
        ensure!(
            output.status.success(),
            "cannot merge {}: {}",
            data.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8(output.stdout)?;
        let tables: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let table = tables.iter().find(|table| table["table"] == "connection_records");
        let bytes = table.and_then(|table| table["bytes"].as_u64());
        bytes.with_context(|| format!("no size of the merged table in {text}"))
    }
}

impl Turn {
    /// Of everything that took part: both ends of the uplink, the collector, the engine.
    fn cpu(&self) -> Duration {
        self.generator + self.collector + self.front.unwrap_or_default()
    }

    fn us_per_row(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.rows as f64
    }

    fn figures(&self) -> Vec<(&'static str, f64)> {
        let per_row = |bytes: u64| bytes as f64 / self.rows as f64;
        let mut figures = vec![
            ("rows/s", self.rows as f64 / self.sending.as_secs_f64()),
            ("all, us of CPU per row", self.us_per_row(self.cpu())),
        ];
        match self.front {
            None => figures.push((
                "collector with engine, us of CPU per row",
                self.us_per_row(self.collector),
            )),
            Some(front) => figures.extend([
                ("collector, us of CPU per row", self.us_per_row(self.collector)),
                ("engine behind HTTP, us of CPU per row", self.us_per_row(front)),
            ]),
        }
        figures.extend([
            (
                "replaying agents, us of CPU per row",
                self.us_per_row(self.generator),
            ),
            ("messages, bytes per row", per_row(self.message_bytes)),
            ("written to the sockets, bytes per row", per_row(self.wire_bytes)),
            ("on disk, bytes per row", per_row(self.disk_bytes)),
            ("parts", self.parts as f64),
        ]);
        figures.extend(
            self.merged_bytes
                .map(|bytes| ("on disk when merged, bytes per row", per_row(bytes))),
        );
        let most = self.resident_bytes.iter().max().copied();
        figures.extend(most.map(|bytes| ("most resident memory, MiB", mebibytes(bytes))));
        figures
    }
}

/// CPU of the collector, and of the store if that is another process.
fn cpu(system: &System, front: Option<&Front>) -> anyhow::Result<(Duration, Duration)> {
    let front = front.map_or(Ok(Duration::ZERO), |front| front.service.cpu())?;
    Ok((system.cpu()?.collector, front))
}

/// The engine in a process of its own, which speaks HTTP.
struct Front {
    service: Service,
    url: String,
}

impl Front {
    fn start(bench: &Bench, state_dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(state_dir).with_context(|| format!("cannot make {}", state_dir.display()))?;
        let log = state_dir.join("clickhouse_http.log");
        let folder = state_dir.join("server").display().to_string();
        let place = Place {
            log: Some(log.clone()),
            ..Place::default()
        };
        let arguments = [folder, format!("{LOOPBACK}:0")];
        let mut service = Service::start(
            "ClickHouse over HTTP",
            &bench.binaries.clickhouse_http,
            &arguments,
            place,
        )?;
        let started = Instant::now();
        while started.elapsed() < FRONT_PATIENCE {
            if let Some(why) = service.ended() {
                bail!(why);
            }
            let text = fs::read_to_string(&log).unwrap_or_default();
            if let Some(url) = text.lines().find(|line| line.starts_with("http://")) {
                return Ok(Self {
                    url: url.to_owned(),
                    service,
                });
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!(
            "the stand-in for a server does not serve after {}; see {}",
            span::show(FRONT_PATIENCE),
            log.display()
        )
    }
}

fn median(samples: &[u64]) -> u64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples[samples.len() / 2]
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
