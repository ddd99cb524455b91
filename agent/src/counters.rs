//! What the agent counts between the ring and the collector: by stream and network namespace, cumulative since it
//! started, never reset. With the kernel's counts it is the ledger: every row is in exactly one place.
//!
//! Connections are counted by namespace from the ring on, syscalls in calls from the kernel's tables on. The rows of every
//! other stream come into being as a batch; they are counted as the spool takes it, whatever they are of.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use holdfast_agent_ebpf::counter::Counter;
use holdfast_proto::v1::{Status, Stream, StreamCounters};

use crate::{
    predecessor::Predecessor,
    probes::KernelCounts,
    spool::{BatchId, Sealed},
    wire,
};

/// What is counted together: a stream, and the inode of a network namespace. That is zero for the streams whose rows are
/// counted for all namespaces together, which are all but connections and transitions.
pub type Origin = (Stream, u32);

/// Rows of a batch, by the inode of the network namespace that they are from.
pub type RowsByNetns = BTreeMap<u32, Rows>;

/// Rows of one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Final records: ends of connections.
    pub ends: u64,
    /// First records of connections that stay open.
    pub announced: u64,
}

impl Rows {
    /// One more, of a record that is the last of its connection or is not.
    pub fn add(&mut self, is_final: bool) {
        *if is_final {
            &mut self.ends
        } else {
            &mut self.announced
        } += 1;
    }

    /// Of both kinds.
    pub fn all(self) -> u64 {
        self.ends + self.announced
    }
}

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

/// The agent's counters: its own, and those of earlier starts that it speaks for.
#[derive(Debug, Default)]
pub struct Counters {
    own: Mutex<BTreeMap<Origin, Stages>>,
    /// By epoch.
    predecessors: Mutex<BTreeMap<u64, Predecessor>>,
    /// What may be told of them, and whether it was on the connection of now.
    told: Mutex<BTreeMap<u64, (Status, bool)>>,
    /// The most bytes that one look found in the ring, since that was asked last.
    ring_peak_bytes: AtomicU64,
}

/// What the counters know of a batch that an earlier start left.
#[derive(Debug, PartialEq, Eq)]
pub enum Legacy {
    /// It is in a counter for good: it was answered, and not removed from the disk yet.
    Settled,
    /// The rows of it that the counters follow from here on; none if nobody speaks for that start.
    Rows(RowsByNetns),
}

/// Rows of one namespace, by where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages {
    /// Taken out of the ring.
    pub received: u64,
    /// First records of connections that stay open, taken from the table.
    pub announced: u64,
    /// Rows that a look would have made, hidden by the filter; what comes through a ring the kernel side counts.
    pub filtered: u64,
    /// In no sealed batch yet; a level, not a sum.
    pub batching: u64,
    /// In sealed batches without an answer; a level, not a sum.
    pub unacknowledged: u64,
    pub acknowledged: u64,
    pub dropped: u64,
    pub refused: u64,
    /// Of these three, first records of connections that stay open.
    pub announced_ended: u64,
}

impl Stages {
    /// As they travel.
    pub fn counters(&self, stream: Stream, netns: u32) -> StreamCounters {
        StreamCounters {
            stream: stream.into(),
            netns,
            received: self.received,
            announced: self.announced,
            filtered: self.filtered,
            batching: self.batching,
            unacknowledged: self.unacknowledged,
            acknowledged: self.acknowledged,
            dropped: self.dropped,
            refused: self.refused,
            ..StreamCounters::default()
        }
    }
}

impl Counters {
    /// With earlier starts to speak for.
    pub fn speaking_for(predecessors: Vec<Predecessor>) -> Self {
        let by_epoch = predecessors.into_iter().map(|mut start| {
            // A batch that was open when that was written may have been answered since, and is nowhere to be found
            // but in the store: the collector has to be asked again.
            start.is_settled &= start.is_empty();
            (start.epoch, start)
        });
        Self {
            predecessors: Mutex::new(by_epoch.collect()),
            ..Self::default()
        }
    }

    /// Takes in a batch that was read back from the disk.
    pub fn adopt(&self, sealed: &Sealed) -> Legacy {
        let mut predecessors = self.predecessors();
        let Some(start) = predecessors.get_mut(&sealed.id.epoch) else {
            return Legacy::Rows(RowsByNetns::new());
        };
        if !start.is_open(sealed.id) {
            return Legacy::Settled;
        }
        let rows = wire::counted_rows(sealed);
        start.adopt(sealed.id.stream, &rows);
        Legacy::Rows(rows)
    }

    /// What may be told of earlier starts: they are on disk like this.
    pub fn tell(&self, predecessors: &[Predecessor]) {
        let present = self.predecessors();
        let mut told = self.told();
        told.retain(|epoch, _| present.contains_key(epoch));
        for start in predecessors {
            let status = start.status();
            let is_new = told.get(&start.epoch).is_none_or(|(before, _)| *before != status);
            if start.is_settled && is_new && present.contains_key(&start.epoch) {
                told.insert(start.epoch, (status, false));
            }
        }
    }

    /// What is to be told of earlier starts and was not told yet on the connection of now.
    pub fn untold(&self) -> Vec<Status> {
        let mut told = self.told();
        let untold = told.values_mut().filter(|(_, is_told)| !is_told);
        untold
            .map(|(status, is_told)| {
                *is_told = true;
                status.clone()
            })
            .collect()
    }

    /// A new connection: nothing was told on it.
    pub fn nothing_told(&self) {
        self.told().values_mut().for_each(|(_, is_told)| *is_told = false);
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<u64, (Status, bool)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The earlier starts, by epoch.
    pub fn predecessors(&self) -> MutexGuard<'_, BTreeMap<u64, Predecessor>> {
        self.predecessors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows came out of the ring, or were made from the table, and wait for their batch to be sealed.
    pub fn received(&self, rows: &RowsByNetns) {
        self.change(Stream::Connections, rows, |stages, rows| {
            stages.received += rows.ends;
            stages.announced += rows.announced;
            stages.batching += rows.all();
        });
    }

    /// Transitions came out of their ring, and wait for their batch to be sealed.
    pub fn received_transitions(&self, rows: &RowsByNetns) {
        self.change(Stream::Transitions, rows, |stages, rows| {
            stages.received += rows.ends;
            stages.batching += rows.ends;
        });
    }

    /// Something came out of the ring of transitions that is none: programs and agent differ.
    pub fn malformed_transition(&self) {
        let mut origins = self.lock();
        let stages = origins.entry((Stream::Transitions, 0)).or_default();
        stages.received += 1;
        stages.dropped += 1;
    }

    /// Something came out of the ring that is no record: programs and agent differ. It is discarded at once.
    pub fn malformed(&self) {
        let mut origins = self.lock();
        let stages = origins.entry((Stream::Connections, 0)).or_default();
        stages.received += 1;
        stages.dropped += 1;
    }

    /// So many bytes waited in the ring.
    pub fn waited_in_ring(&self, bytes: u64) {
        self.ring_peak_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    /// The most that waited in the ring since the last call, in bytes.
    pub fn take_ring_peak(&self) -> u64 {
        self.ring_peak_bytes.swap(0, Ordering::Relaxed)
    }

    /// Calls came out of the kernel's tables, and wait for their interval to end.
    pub fn received_calls(&self, calls: u64) {
        let mut origins = self.lock();
        let stages = origins.entry((Stream::Syscalls, 0)).or_default();
        stages.received += calls;
        stages.batching += calls;
    }

    /// A look would have made so many rows more, but for the filter.
    pub fn hidden(&self, stream: Stream, rows: u64) {
        if rows > 0 {
            self.lock().entry((stream, 0)).or_default().filtered += rows;
        }
    }

    /// Their batch was sealed and is in the spool.
    pub fn sealed(&self, id: BatchId, rows: &RowsByNetns) {
        self.change(id.stream, rows, |stages, rows| {
            stages.batching -= rows.all();
            stages.unacknowledged += rows.all();
        });
    }

    /// Rows that came into being as a batch are in the spool.
    pub fn made(&self, id: BatchId, rows: &RowsByNetns) {
        self.change(id.stream, rows, |stages, rows| {
            stages.received += rows.ends;
            stages.announced += rows.announced;
            stages.unacknowledged += rows.all();
        });
    }

    /// Their batch left the spool.
    pub fn ended(&self, id: BatchId, rows: &RowsByNetns, end: End) {
        if let Some(start) = self.predecessors().get_mut(&id.epoch) {
            return start.ended(id, rows, end);
        }
        self.change(id.stream, rows, |stages, rows| {
            stages.unacknowledged -= rows.all();
            stages.announced_ended += rows.announced;
            *match end {
                End::Acknowledged => &mut stages.acknowledged,
                End::Refused => &mut stages.refused,
                End::Dropped => &mut stages.dropped,
            } += rows.all();
        });
    }

    /// All connections, of whatever namespace.
    pub fn total(&self) -> Stages {
        self.lock()
            .iter()
            .filter(|((stream, _), _)| *stream == Stream::Connections)
            .fold(Stages::default(), |sum, (_, stages)| Stages {
                received: sum.received + stages.received,
                announced: sum.announced + stages.announced,
                filtered: sum.filtered + stages.filtered,
                batching: sum.batching + stages.batching,
                unacknowledged: sum.unacknowledged + stages.unacknowledged,
                acknowledged: sum.acknowledged + stages.acknowledged,
                dropped: sum.dropped + stages.dropped,
                refused: sum.refused + stages.refused,
                announced_ended: sum.announced_ended + stages.announced_ended,
            })
    }

    /// All of it.
    pub fn stages(&self) -> BTreeMap<Origin, Stages> {
        self.lock().clone()
    }

    fn change(&self, stream: Stream, rows: &RowsByNetns, change: impl Fn(&mut Stages, Rows)) {
        if rows.is_empty() {
            return;
        }
        let mut origins = self.lock();
        for (&netns, &rows) in rows {
            change(origins.entry((stream, netns)).or_default(), rows);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Origin, Stages>> {
        // Consistent between any two statements: a panic elsewhere does not spoil it.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn namespaces_of(stages: &BTreeMap<Origin, Stages>, of: Stream) -> impl Iterator<Item = u32> {
    let origins = stages.keys().filter(move |(stream, _)| *stream == of);
    origins.map(|(_, netns)| *netns)
}

/// What was counted of transitions, as it travels: of the namespaces where any was streamed. `stages` were read before
/// the kernel, as in [`status`].
fn transitions(stages: &BTreeMap<Origin, Stages>, kernel: &KernelCounts) -> Vec<StreamCounters> {
    let seen = kernel
        .namespaces
        .iter()
        .filter(|(_, counts)| counts.get(Counter::Transitions) > 0);
    let netns: std::collections::BTreeSet<_> = seen
        .map(|(&netns, _)| netns)
        .chain(namespaces_of(stages, Stream::Transitions))
        .collect();
    let row = |netns: u32| {
        let stages = stages
            .get(&(Stream::Transitions, netns))
            .copied()
            .unwrap_or_default();
        let opened = kernel.of(netns, Counter::Transitions);
        let untracked = kernel.of(netns, Counter::TransitionsUntracked);
        StreamCounters {
            opened,
            closed: opened.saturating_sub(untracked),
            untracked,
            filtered: kernel.of(netns, Counter::TransitionsFiltered),
            lost: kernel.of(netns, Counter::TransitionsLost),
            ..stages.counters(Stream::Transitions, netns)
        }
    };
    netns.into_iter().map(row).collect()
}

/// What was counted, as it travels; the time and the rest of the status are not counted here. `witnessed` gives what the
/// witness says of a namespace in which the hook counted so many.
///
/// The stages were read before the kernel: what it handed over meanwhile is in the ring, by this account, never the
/// other way round.
pub fn status(
    stages: &BTreeMap<Origin, Stages>,
    kernel: &KernelCounts,
    witnessed: impl Fn(u32, u64) -> Option<u64>,
) -> Status {
    let netns = kernel
        .namespaces
        .keys()
        .copied()
        .chain(namespaces_of(stages, Stream::Connections))
        .collect::<std::collections::BTreeSet<_>>();
    let row = |netns: u32| {
        let stages = stages
            .get(&(Stream::Connections, netns))
            .copied()
            .unwrap_or_default();
        let count = |counter| kernel.of(netns, counter);
        let gone = count(Counter::Untracked)
            + count(Counter::Closed)
            + count(Counter::Superseded)
            + count(Counter::SampledOut);
        StreamCounters {
            opened: count(Counter::Opened),
            closed: count(Counter::Closed),
            // The counters of the CPUs are read one after another while the kernel goes on: never below zero.
            open: (count(Counter::Opened) + count(Counter::Seeded)).saturating_sub(gone),
            seeded: count(Counter::Seeded),
            untracked: count(Counter::Untracked),
            unseen: count(Counter::Unseen),
            lost: count(Counter::Lost),
            filtered: count(Counter::Filtered),
            sampled_out: count(Counter::SampledOut),
            elsewhere: count(Counter::Elsewhere),
            superseded: count(Counter::Superseded),
            missed: if netns == 0 {
                kernel.missed + kernel.missed_returns
            } else {
                kernel.overlooked.get(&netns).copied().unwrap_or_default()
            },
            unsent: count(Counter::Unsent),
            witnessed: witnessed(netns, kernel.sent(netns)),
            ..stages.counters(Stream::Connections, netns)
        }
    };
    let others = stages
        .iter()
        .filter(|((stream, _), _)| !matches!(stream, Stream::Connections | Stream::Transitions))
        .map(|(&(stream, netns), stages)| StreamCounters {
            // They begin in the agent, or where it reads them.
            opened: stages.received + stages.filtered,
            closed: stages.received + stages.filtered,
            ..stages.counters(stream, netns)
        });
    Status {
        streams: netns
            .into_iter()
            .map(row)
            .chain(others)
            .chain(transitions(stages, kernel))
            .collect(),
        ..Status::default()
    }
}
