//! The benchmark `throughput`: the highest rate of connections that this machine reaches, and whether every end of
//! them is in the store afterwards.
//!
//! The workload leaves no core free, so agent and collector compete with it for every microsecond: what they take is
//! part of the slow-down, and a ring that is not emptied in time shows as lost. The CPU of agent and collector is
//! taken until both have nothing left to do, so neither what is stored late nor ClickHouse's merges are left out.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;

use super::churn::Churn;
use super::rounds::Comparison;
use super::{Measurement, Subject, take_turns, wait_until_idle};
use crate::failure::Failure;
use crate::netns::{self, Netns};
use crate::up::system::{Binaries, Cpu, System};
use crate::workspace;

/// As many as the machine that the published figures are from has cores.
const THREADS: u32 = 2;
/// Long enough to fill every buffer on the way.
const FLOOD: Duration = Duration::from_secs(5);
/// Before each turn, for caches and for ClickHouse's first insert.
const WARM_UP: Duration = Duration::from_millis(200);
/// How long the agent's last counters may take to be in the store.
const LEDGER_PATIENCE: Duration = Duration::from_secs(15);
/// Two reports of an agent.
const REPORTS: Duration = Duration::from_secs(2);
const UNIT: &str = "connections/s";

pub(super) fn compare(rounds: u32) -> anyhow::Result<Comparison> {
    let binaries = Binaries::build(false)?;
    let churn = Churn::build()?;
    netns::remove_leftovers()?;
    let mut subjects: Vec<Box<dyn Subject>> = vec![
        Box::new(Nothing { churn: &churn }),
        Box::new(Holdfast {
            binaries: &binaries,
            churn: &churn,
        }),
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
        self.churn.flood(&netns, THREADS, WARM_UP)?;
        let work = self.churn.flood(&netns, THREADS, FLOOD)?;
        Ok(Measurement {
            cost: work.pairs_per_second(),
            figures: vec![("workload, us of CPU per connection", work.cpu_us_per_pair())],
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
        let inode = fs::metadata(format!("/run/netns/{}", netns.name()))?.ino();
        let state_dir = workspace::fresh_dir("bench-throughput")?;
        let system = System::start_here(self.binaries, &state_dir, &[], &AtomicBool::new(false))?;
        let stored = || system.number(&format!("SELECT count() FROM connections WHERE netns = {inode}"));

        self.churn.flood(&netns, THREADS, WARM_UP)?;
        idle(&system)?;
        let (rows_before, ledger_before) = (stored()?, Ledger::wait(&system, inode)?);
        let before = idle(&system)?;
        let work = self.churn.flood(&netns, THREADS, FLOOD)?;
        let ended = Instant::now();
        let after = idle(&system)?;
        let settled = ended.elapsed();
        let ledger = Ledger::wait(&system, inode)?.since(&ledger_before);
        let rows = stored()? - rows_before;
        system.stop()?;

        // A figure says something only if every end is a row, or was lost in the ring where the rate shows as that.
        let expected = 2 * work.pairs;
        let otherwise = ledger.dropped + ledger.refused + ledger.untracked;
        if rows + ledger.lost != expected || otherwise > 0 {
            let message = format!(
                "no figure: {rows} of {expected} rows are in the store; the agent counted {ledger}; see {}",
                state_dir.display()
            );
            return Err(Failure::Check(message).into());
        }
        let per_row = |cpu: Duration| cpu.as_secs_f64() * 1e6 / rows as f64;
        let (agent, collector) = (
            per_row(after.agents - before.agents),
            per_row(after.collector - before.collector),
        );
        let note = format!(
            "{rows} of {expected} rows stored ({ledger}); {:.1} us a row; idle after {:.1} s",
            agent + collector,
            settled.as_secs_f64()
        );
        Ok(Measurement {
            cost: work.pairs_per_second(),
            figures: vec![
                ("workload, us of CPU per connection", work.cpu_us_per_pair()),
                ("agent, us of CPU per stored row", agent),
                ("collector with engine, us of CPU per stored row", collector),
                ("all three, us of CPU per stored row", agent + collector),
                ("rows expected", expected as f64),
                ("rows stored", rows as f64),
                ("lost", ledger.lost as f64),
                ("dropped", ledger.dropped as f64),
                ("refused", ledger.refused as f64),
                ("untracked", ledger.untracked as f64),
                ("unseen", ledger.unseen as f64),
            ],
            note,
        })
    }
}

/// Waits until agent and collector have nothing left to do, and says what they had used by then.
fn idle(system: &System) -> anyhow::Result<Cpu> {
    wait_until_idle(|| {
        let cpu = system.cpu()?;
        Ok(cpu.agents + cpu.collector)
    })?;
    system.cpu()
}

/// What the agent counted as not stored of one namespace, since it started.
struct Ledger {
    lost: u64,
    dropped: u64,
    refused: u64,
    untracked: u64,
    unseen: u64,
}

impl Ledger {
    /// What was counted after an earlier reading.
    fn since(&self, earlier: &Self) -> Self {
        Self {
            lost: self.lost - earlier.lost,
            dropped: self.dropped - earlier.dropped,
            refused: self.refused - earlier.refused,
            untracked: self.untracked - earlier.untracked,
            unseen: self.unseen - earlier.unseen,
        }
    }

    /// Waits for the counters of a namespace that were read after now, and whose rows are stored with the reports before.
    fn wait(system: &System, netns: u64) -> anyhow::Result<Self> {
        let from_ms = (SystemTime::now().duration_since(UNIX_EPOCH)? + REPORTS).as_millis();
        let fresh = format!(
            "FROM ledger WHERE stream = 'connections' AND netns = {netns} AND reported_at > fromUnixTimestamp64Milli(toInt64({from_ms}))"
        );
        let started = Instant::now();
        while system.number(&format!("SELECT count() {fresh}"))? == 0 {
            ensure!(
                started.elapsed() < LEDGER_PATIENCE,
                "the agent's counters did not reach the store within {} s",
                LEDGER_PATIENCE.as_secs()
            );
            thread::sleep(Duration::from_millis(200));
        }
        let column = |name: &str| system.number(&format!("SELECT {name} {fresh}"));
        Ok(Self {
            lost: column("lost")?,
            dropped: column("dropped")?,
            refused: column("refused")?,
            untracked: column("untracked")?,
            unseen: column("unseen")?,
        })
    }
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            lost,
            dropped,
            refused,
            untracked,
            unseen,
        } = self;
        write!(
            out,
            "lost {lost}, dropped {dropped}, refused {refused}, untracked {untracked}, unseen {unseen}"
        )
    }
}
