//! `cargo xtask torture`: real load, while agents, collector and engine are killed, paused, cut off, given full disks
//! and wrong clocks, at random by a seed. Afterwards every connection that the kernel counted has to be in the store
//! exactly once, or in a counter.
//!
//! A file for each part of it: [`faults`], what goes wrong and when; [`world`], what it happens to; [`load`], the
//! connections; [`verdict`], what has to be true afterwards; [`record`], what was survived so far.

mod faults;
pub(crate) mod load;
mod record;
mod verdict;
mod volume;
mod world;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};

use crate::failure::Failure;
use crate::setup::{self, Need};
use crate::up::system::Binaries;
use crate::{netns, process, span, workspace};
use faults::{Fault, Victim, What};
use record::{Run, Tally};
use verdict::Verdict;
use world::{Programs, World};

/// Kill, pause, cut off and fill up the whole system under load, and check that no connection is lost or counted twice.
///
/// Nodes are network namespaces, each with a real agent; the collector has its own. A seed determines what goes wrong
/// and when; it is printed first. Afterwards everything is mended, and the kernel's own counters are held against
/// the store: exit code 0 if every connection is there once or in a counter, 1 with what is wrong and where the logs
/// are if not. Needs root.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long things go wrong in one run
    #[arg(long, default_value_t = 3.0, value_parser = minutes)]
    minutes: f64,

    /// What goes wrong and when [default: any; with --kills: the one behind the last in the record]
    #[arg(long)]
    seed: Option<u64>,

    /// Run one seed after the other until the record has so many kills that were survived; after Ctrl-C, the same
    /// again goes on from there
    #[arg(long, value_name = "N")]
    kills: Option<u64>,

    /// Connections a second on each node
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(2..=5_000))]
    rate: u32,

    /// Seconds for which an agent that was killed or stopped is left to work, before either is done to it again; of
    /// what the kernel counted, nine tenths have to be stored then, and not in counters. With 0 it is struck whenever
    /// the storm says so: most agents do not live until they work, and no share is asked for
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(0..=3_600), value_name = "SECONDS")]
    life: u32,

    /// Nodes, each with an agent
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,

    /// Where ClickHouse runs [default: inside with an even seed, apart with an odd one]
    #[arg(long, value_enum)]
    engine: Option<Engine>,

    /// Append the outcome of every run to this file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    /// Keep the logs and the data of a run that holds, too
    #[arg(long)]
    keep: bool,

    /// Do not wait until the minutes of the rollup are closed
    #[arg(long = "brief", hide = true)]
    is_brief: bool,

    /// Run what `cargo test` builds, without optimisation
    #[arg(long, hide = true)]
    as_tested: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    /// In the collector's process
    Inside,
    /// In a process of its own behind ClickHouse's HTTP interface, which is killed apart from the collector
    Apart,
}

/// What is kept of all runs, in the tree.
const RECORD: &str = "docs/torture.jsonl";
/// Of the short run: its 15 seconds have a fault of nearly every kind.
const SHORT_SEED: u64 = 2;
/// How often it is looked what is due.
const TICK: Duration = Duration::from_millis(5);
/// How often a sign of life is printed.
const PROGRESS: Duration = Duration::from_secs(15);
/// What ended by itself is started again after so long, as a service manager does.
const RESTART: Duration = Duration::from_secs(1);
/// What is stored at least of what the kernel counted, where agents are left to work: each strike takes a few seconds
/// of what its node counts, which is down, starting, or not on a disk yet.
const STORED_SHARE: f64 = 0.9;
/// So long after the store was in trouble the collector may still end of it.
const STORE_TROUBLE: Duration = Duration::from_secs(20);

/// The short run of `cargo xtask test`, on what it built.
pub(crate) fn briefly() -> anyhow::Result<()> {
    run(&Arguments {
        minutes: 0.25,
        seed: Some(SHORT_SEED),
        kills: None,
        rate: 200,
        // Its few seconds are for restarts.
        life: 0,
        nodes: 2,
        engine: None,
        record: None,
        keep: false,
        is_brief: true,
        as_tested: true,
    })
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.1..=600.0).contains(&minutes) => Ok(minutes),
        _ => Err(format!("`{text}` is no number of minutes from 0.1 to 600")),
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        process::is_root(),
        "torture loads BPF programs and makes network namespaces: run this as root"
    );
    let stop = process::stop_on_signals()?;
    let record = match (&arguments.record, arguments.kills) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(_)) => Some(workspace::root().join(RECORD)),
        (None, None) => None,
    };
    let mut sum = record
        .as_deref()
        .map(record::sum)
        .transpose()?
        .unwrap_or_default();
    let any = SystemTime::now()
        .duration_since(UNIX_EPOCH)?
        .subsec_nanos()
        .into();
    let mut seed = arguments
        .seed
        .unwrap_or_else(|| match (arguments.kills, sum.last_seed) {
            (None, _) => any,
            (Some(_), last) => last.map_or(1, |last| last + 1),
        });
    eprintln!("seed {seed}: `cargo xtask torture --seed {seed}` does the same again");
    setup::provide(&[Need::Build, Need::Up])?;
    let binaries = Binaries::build(arguments.as_tested)?;
    if !arguments.as_tested {
        Binaries::build_engine()?;
    }
    let revision = revision();
    netns::remove_leftovers()?;
    let root = workspace::target_dir()?.join("torture");
    volume::unmount_leftovers(&root, netns::is_xtask)?;

    loop {
        if arguments.kills.is_some_and(|kills| sum.kills >= kills) {
            println!("{} kills survived in {} runs", sum.kills, sum.runs);
            return Ok(());
        }
        let engine = arguments.engine.unwrap_or(if seed.is_multiple_of(2) {
            Engine::Inside
        } else {
            Engine::Apart
        });
        let programs = Programs {
            agent: binaries.agent.clone(),
            holdfast: binaries.holdfast.clone(),
            load: workspace::own_program()?,
            engine: (engine == Engine::Apart).then(|| binaries.clickhouse_http.clone()),
        };
        let folder = root.join(format!("{}-{seed}", std::process::id()));
        let outcome = endure(arguments, &programs, seed, &folder, &stop)?;
        let Some((tally, verdict)) = outcome else {
            bail!("interrupted; nothing was recorded of seed {seed}")
        };
        let run = Run {
            seed,
            seconds: arguments.minutes * 60.0,
            life: arguments.life,
            revision: &revision,
            engine: if engine == Engine::Inside {
                "inside"
            } else {
                "apart"
            },
            tally: &tally,
            verdict: &verdict,
        };
        if let Some(path) = &record {
            run.append(path)?;
            sum = record::sum(path)?;
        }
        report(seed, &tally, &verdict);
        if !verdict.holds() {
            let message = format!(
                "seed {seed} does not hold; logs and data are in {}",
                folder.display()
            );
            return Err(Failure::Check(message).into());
        }
        if arguments.keep {
            println!("logs and data are in {}", folder.display());
        } else {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        if arguments.kills.is_none() {
            return Ok(());
        }
        seed += 1;
    }
}

fn report(seed: u64, tally: &Tally, verdict: &Verdict) {
    for (index, account) in verdict.accounts.iter().enumerate() {
        println!(
            "  node {}: {} opened by the kernel's count + {} found open + {} announced = {} rows stored + {} ended with an \
             agent + {} lost, dropped or refused + {} open or untracked; {} starts, {} events missed",
            index + 1,
            account.opens,
            account.seeded,
            account.announced,
            account.stored,
            account.ended,
            account.lost,
            account.other,
            account.starts,
            account.missed
        );
    }
    for fault in &verdict.faults {
        println!("  WRONG: {fault}");
    }
    let holds = if verdict.holds() { "holds" } else { "DOES NOT HOLD" };
    println!(
        "seed {seed} {holds}: {} kills; {:.1} % of what was counted are stored; {tally}",
        tally.kills(),
        verdict.stored_share() * 100.0
    );
}

/// One run; `None` if it was interrupted.
fn endure(
    arguments: &Arguments,
    programs: &Programs,
    seed: u64,
    folder: &Path,
    stop: &AtomicBool,
) -> anyhow::Result<Option<(Tally, Verdict)>> {
    let logs = folder.join("log");
    let mut world = World::create(programs, folder, arguments.nodes.into())?;
    let faults = faults::schedule(
        seed,
        world.stage(),
        Duration::from_secs_f64(arguments.minutes * 60.0),
        Duration::from_secs(arguments.life.into()),
    );
    world.start_load(arguments.rate, seed, &logs)?;
    let mut storm = Storm::new(faults, &logs)?;
    let survived = storm.rage(&mut world, stop)?;
    if !survived {
        return Ok(None);
    }
    world.mend_all()?;
    world.stop_load()?;
    eprintln!("-- everything is mended; waiting for what is on its way");
    let mut verdict = verdict::judge(&mut world, !arguments.is_brief)?;
    if arguments.life > 0 && verdict.stored_share() < STORED_SHARE {
        verdict.faults.push(format!(
            "of what the kernel counted {:.1} % are stored, less than {:.0} %: the agents hardly worked",
            verdict.stored_share() * 100.0,
            STORED_SHARE * 100.0
        ));
    }
    verdict.faults.extend(storm.unexplained);
    verdict.faults.extend(verdict::panics(&logs)?);
    if arguments.keep || !verdict.holds() {
        world.keep(folder)?;
    }
    Ok(Some((storm.tally, verdict)))
}

/// A schedule that is under way.
struct Storm {
    faults: Vec<Fault>,
    /// What is to be mended, the next first.
    broken: BinaryHeap<(Reverse<Duration>, usize)>,
    /// What [`Self::broken`] counts.
    mends: Vec<What>,
    tally: Tally,
    /// Processes that ended although nothing was done to them, or to the store that they need.
    unexplained: Vec<String>,
    diary: File,
    store_trouble_until: Duration,
}

impl Storm {
    fn new(faults: Vec<Fault>, logs: &Path) -> anyhow::Result<Self> {
        let path = logs.join("faults.log");
        Ok(Self {
            faults,
            broken: BinaryHeap::new(),
            mends: Vec::new(),
            tally: Tally::default(),
            unexplained: Vec::new(),
            diary: File::create(&path).with_context(|| format!("cannot write {}", path.display()))?,
            store_trouble_until: Duration::ZERO,
        })
    }

    /// Lets everything happen in its time; false if it was interrupted.
    fn rage(&mut self, world: &mut World, stop: &AtomicBool) -> anyhow::Result<bool> {
        let began = Instant::now();
        let mut reported = Duration::ZERO;
        let mut coming = std::mem::take(&mut self.faults).into_iter().peekable();
        while coming.peek().is_some() || !self.broken.is_empty() {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let now = began.elapsed();
            while let Some(fault) = coming.next_if(|fault| fault.at <= now) {
                self.strike(world, &fault, now)?;
            }
            while let Some(&(Reverse(at), number)) = self.broken.peek()
                && at <= now
            {
                self.broken.pop();
                self.note(now, "mend", &self.mends[number].clone())?;
                world.mend(self.mends[number])?;
            }
            self.look_after(world, now)?;
            if now >= reported + PROGRESS {
                reported = now;
                eprintln!(
                    "-- {}: {} kills; {}",
                    span::show(now),
                    self.tally.kills(),
                    self.tally
                );
            }
            thread::sleep(TICK);
        }
        Ok(true)
    }

    fn strike(&mut self, world: &mut World, fault: &Fault, now: Duration) -> anyhow::Result<()> {
        if !world.strike(fault.what)? {
            return Ok(());
        }
        self.note(now, "strike", &fault.what)?;
        self.tally.add(kind(fault.what));
        let victim = matches!(
            fault.what,
            What::Kill(Victim::Engine) | What::Pause(Victim::Engine)
        );
        if victim || fault.what == What::FillStore {
            self.store_trouble_until = self.store_trouble_until.max(now + fault.lasts + STORE_TROUBLE);
        }
        // A clock that is wrong stays so, until it is set again.
        if !matches!(fault.what, What::SetClock(..)) {
            self.mend_at(now + fault.lasts, fault.what);
        }
        Ok(())
    }

    fn mend_at(&mut self, at: Duration, what: What) {
        self.mends.push(what);
        self.broken.push((Reverse(at), self.mends.len() - 1));
    }

    /// Starts again what ended by itself.
    fn look_after(&mut self, world: &mut World, now: Duration) -> anyhow::Result<()> {
        for (victim, how) in world.ended() {
            self.note(now, "ended", &how)?;
            self.tally.add("ended_by_themselves");
            // A collector may give up on a store that is broken; it may not crash.
            let may_give_up = victim == Victim::Collector && now < self.store_trouble_until;
            if !(may_give_up && how.contains("exit status: 4")) {
                self.unexplained.push(format!("after {}: {how}", span::show(now)));
            }
            self.mend_at(now + RESTART, What::Kill(victim));
        }
        Ok(())
    }

    fn note(&mut self, now: Duration, what: &str, about: &dyn std::fmt::Debug) -> anyhow::Result<()> {
        writeln!(self.diary, "{:9.3} {what} {about:?}", now.as_secs_f64()).context("cannot write faults.log")
    }
}

/// What the record calls it.
fn kind(what: What) -> &'static str {
    match what {
        What::Kill(Victim::Agent(_)) => "agent_kills",
        What::Kill(Victim::Collector) => "collector_kills",
        What::Kill(Victim::Engine) => "engine_kills",
        What::Pause(_) => "pauses",
        What::CutOff(_) | What::Mute(_) | What::Deafen(_) => "partitions",
        What::FillSpool(_) | What::FillStore => "full_disks",
        What::SetClock(..) => "clock_jumps",
    }
}

/// The commit that is tortured.
fn revision() -> String {
    let mut git = Command::new("git");
    let output = git
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(workspace::root())
        .output();
    // Without git, or without a repository, there is nothing to name.
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
