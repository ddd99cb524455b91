//! What the agent counts between the ring and the collector: by network namespace, cumulative since it started, never
//! reset. With the kernel's counts it is the ledger: every row is in exactly one place.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use holdfast_agent_ebpf::counter::Counter;
use holdfast_proto::v1::{Status, Stream, StreamCounters};

use crate::{clock, probes::KernelCounts};

/// Rows of a batch, by the inode of the network namespace that they are from.
pub type RowsByNetns = BTreeMap<u32, u64>;

/// What became of rows that were in the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The collector has them.
    Acknowledged,
    /// The collector will never have them.
    Refused,
    /// The spool was full.
    Dropped,
}

/// The agent's counters.
#[derive(Debug, Default)]
pub struct Counters(Mutex<BTreeMap<u32, Stages>>);

/// Rows of one namespace, by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Taken out of the ring.
    pub received: u64,
    /// In no sealed batch yet; a level, not a sum.
    pub batching: u64,
    /// In sealed batches without an answer; a level, not a sum.
    pub unacknowledged: u64,
    pub acknowledged: u64,
    pub dropped: u64,
    pub refused: u64,
}

impl Counters {
    /// Rows came out of the ring, and wait for their batch to be sealed.
    pub fn received(&self, rows: &RowsByNetns) {
        self.change(rows, |stages, rows| {
            stages.received += rows;
            stages.batching += rows;
        });
    }

    /// Something came out of the ring that is no record: programs and agent differ. It is discarded at once.
    pub fn malformed(&self) {
        let mut namespaces = self.lock();
        let stages = namespaces.entry(0).or_default();
        stages.received += 1;
        stages.dropped += 1;
    }

    /// Their batch was sealed and is in the spool.
    pub fn sealed(&self, rows: &RowsByNetns) {
        self.change(rows, |stages, rows| {
            stages.batching -= rows;
            stages.unacknowledged += rows;
        });
    }

    /// Their batch left the spool.
    pub fn ended(&self, rows: &RowsByNetns, end: End) {
        self.change(rows, |stages, rows| {
            stages.unacknowledged -= rows;
            *match end {
                End::Acknowledged => &mut stages.acknowledged,
                End::Refused => &mut stages.refused,
                End::Dropped => &mut stages.dropped,
            } += rows;
        });
    }

    /// All namespaces together.
    pub fn total(&self) -> Stages {
        self.lock()
            .values()
            .fold(Stages::default(), |sum, stages| Stages {
                received: sum.received + stages.received,
                batching: sum.batching + stages.batching,
                unacknowledged: sum.unacknowledged + stages.unacknowledged,
                acknowledged: sum.acknowledged + stages.acknowledged,
                dropped: sum.dropped + stages.dropped,
                refused: sum.refused + stages.refused,
            })
    }

    /// What was counted, as it travels; the rest of the status is not counted here. The kernel was read before: what it
    /// has handed over since is not here yet, never the other way round.
    pub fn status(&self, kernel: &KernelCounts) -> Status {
        let stages = self.lock().clone();
        let netns = kernel
            .namespaces
            .keys()
            .chain(stages.keys())
            .copied()
            .collect::<std::collections::BTreeSet<_>>();
        let row = |netns: u32| {
            let stages = stages.get(&netns).copied().unwrap_or_default();
            let count = |counter| kernel.of(netns, counter);
            let gone = count(Counter::Untracked) + count(Counter::Closed) + count(Counter::Superseded);
            StreamCounters {
                stream: Stream::Connections.into(),
                netns,
                opened: count(Counter::Opened),
                closed: count(Counter::Closed),
                // The counters of the CPUs are read one after another while the kernel goes on: never below zero.
                open: count(Counter::Opened).saturating_sub(gone),
                untracked: count(Counter::Untracked),
                unseen: count(Counter::Unseen),
                lost: count(Counter::Lost),
                filtered: count(Counter::Filtered),
                superseded: count(Counter::Superseded),
                missed: if netns == 0 { kernel.missed } else { 0 },
                received: stages.received,
                batching: stages.batching,
                unacknowledged: stages.unacknowledged,
                acknowledged: stages.acknowledged,
                dropped: stages.dropped,
                refused: stages.refused,
            }
        };
        Status {
            observed_at_ns: clock::wall_now().as_nanos() as u64,
            streams: netns.into_iter().map(row).collect(),
            ..Status::default()
        }
    }

    fn change(&self, rows: &RowsByNetns, change: impl Fn(&mut Stages, u64)) {
        if rows.is_empty() {
            return;
        }
        let mut namespaces = self.lock();
        for (&netns, &rows) in rows {
            change(namespaces.entry(netns).or_default(), rows);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Stages>> {
        // Consistent between any two statements: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
