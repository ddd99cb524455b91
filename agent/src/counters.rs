//! What the agent counts between the ring and the collector: by network namespace, cumulative since it started, never
//! reset. With the kernel's counts it is the ledger: every row is in exactly one place.

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
    own: Mutex<BTreeMap<u32, Stages>>,
    /// The stream of syscalls, in calls.
    syscalls: Mutex<Stages>,
    /// The stream of transitions.
    transitions: Mutex<BTreeMap<u32, Stages>>,
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

impl Counters {
    /// With earlier starts to speak for.
    pub fn speaking_for(predecessors: Vec<Predecessor>) -> Self {
        let by_epoch = predecessors.into_iter().map(|mut start| {
            // A batch that was open when that was written may have been answered since, and is nowhere to be found
            // but in the store: the collector has to be asked again.
            start.is_settled &= start.open.is_empty();
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
        match predecessors.get_mut(&sealed.id.epoch) {
            Some(start) if sealed.id.stream == Stream::Connections => {
                if !start.open.contains(sealed.id.sequence) {
                    return Legacy::Settled;
                }
                let rows = wire::rows_by_netns(&sealed.encoded).unwrap_or_default();
                start.adopt(&rows);
                Legacy::Rows(rows)
            }
            _ => Legacy::Rows(RowsByNetns::new()),
        }
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

    /// The stream of transitions, by namespace.
    pub fn transitions(&self) -> BTreeMap<u32, Stages> {
        self.lock_transitions().clone()
    }

    fn lock_transitions(&self) -> MutexGuard<'_, BTreeMap<u32, Stages>> {
        self.transitions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something came out of the ring of transitions that is none: programs and agent differ.
    pub fn malformed_transition(&self) {
        let mut namespaces = self.lock_transitions();
        let stages = namespaces.entry(0).or_default();
        stages.received += 1;
        stages.dropped += 1;
    }

    /// Something came out of the ring that is no record: programs and agent differ. It is discarded at once.
    pub fn malformed(&self) {
        let mut namespaces = self.lock();
        let stages = namespaces.entry(0).or_default();
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
        let mut stages = self.syscalls();
        stages.received += calls;
        stages.batching += calls;
    }

    /// The stream of syscalls, in calls.
    pub fn syscalls(&self) -> MutexGuard<'_, Stages> {
        self.syscalls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their batch was sealed and is in the spool.
    pub fn sealed(&self, id: BatchId, rows: &RowsByNetns) {
        self.change(id.stream, rows, |stages, rows| {
            stages.batching -= rows.all();
            stages.unacknowledged += rows.all();
        });
    }

    /// Their batch left the spool.
    pub fn ended(&self, id: BatchId, rows: &RowsByNetns, end: End) {
        if id.stream == Stream::Connections
            && let Some(start) = self.predecessors().get_mut(&id.epoch)
        {
            return start.ended(id.sequence, rows, end);
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

    /// All namespaces together.
    pub fn total(&self) -> Stages {
        self.lock()
            .values()
            .fold(Stages::default(), |sum, stages| Stages {
                received: sum.received + stages.received,
                announced: sum.announced + stages.announced,
                batching: sum.batching + stages.batching,
                unacknowledged: sum.unacknowledged + stages.unacknowledged,
                acknowledged: sum.acknowledged + stages.acknowledged,
                dropped: sum.dropped + stages.dropped,
                refused: sum.refused + stages.refused,
                announced_ended: sum.announced_ended + stages.announced_ended,
            })
    }

    /// All of it, by namespace.
    pub fn stages(&self) -> BTreeMap<u32, Stages> {
        self.lock().clone()
    }

    fn change(&self, stream: Stream, rows: &RowsByNetns, change: impl Fn(&mut Stages, Rows)) {
        if rows.is_empty() {
            return;
        }
        if stream == Stream::Syscalls {
            let mut stages = self.syscalls();
            rows.values().for_each(|rows| change(&mut stages, *rows));
            return;
        }
        let mut namespaces = match stream {
            Stream::Transitions => self.lock_transitions(),
            _ => self.lock(),
        };
        for (&netns, &rows) in rows {
            change(namespaces.entry(netns).or_default(), rows);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Stages>> {
        // Consistent between any two statements: a panic elsewhere does not spoil it.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was counted of transitions, as it travels: of the namespaces where any was streamed. `stages` were read before
/// the kernel, as in [`status`].
pub fn transitions(stages: &BTreeMap<u32, Stages>, kernel: &KernelCounts) -> Vec<StreamCounters> {
    let seen = kernel
        .namespaces
        .iter()
        .filter(|(_, counts)| counts.get(Counter::Transitions) > 0);
    let netns: std::collections::BTreeSet<_> = seen
        .map(|(&netns, _)| netns)
        .chain(stages.keys().copied())
        .collect();
    let row = |netns: u32| {
        let stages = stages.get(&netns).copied().unwrap_or_default();
        let opened = kernel.of(netns, Counter::Transitions);
        let untracked = kernel.of(netns, Counter::TransitionsUntracked);
        StreamCounters {
            stream: Stream::Transitions.into(),
            netns,
            opened,
            closed: opened.saturating_sub(untracked),
            untracked,
            filtered: kernel.of(netns, Counter::TransitionsFiltered),
            lost: kernel.of(netns, Counter::TransitionsLost),
            received: stages.received,
            batching: stages.batching,
            unacknowledged: stages.unacknowledged,
            acknowledged: stages.acknowledged,
            dropped: stages.dropped,
            refused: stages.refused,
            ..StreamCounters::default()
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
    stages: &BTreeMap<u32, Stages>,
    kernel: &KernelCounts,
    witnessed: impl Fn(u32, u64) -> Option<u64>,
) -> Status {
    let netns = kernel
        .namespaces
        .keys()
        .chain(stages.keys())
        .copied()
        .collect::<std::collections::BTreeSet<_>>();
    let row = |netns: u32| {
        let stages = stages.get(&netns).copied().unwrap_or_default();
        let count = |counter| kernel.of(netns, counter);
        let gone = count(Counter::Untracked)
            + count(Counter::Closed)
            + count(Counter::Superseded)
            + count(Counter::SampledOut);
        StreamCounters {
            stream: Stream::Connections.into(),
            netns,
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
                0
            },
            unsent: count(Counter::Unsent),
            witnessed: witnessed(netns, kernel.sent(netns)),
            received: stages.received,
            announced: stages.announced,
            batching: stages.batching,
            unacknowledged: stages.unacknowledged,
            acknowledged: stages.acknowledged,
            dropped: stages.dropped,
            refused: stages.refused,
            ended: 0,
            unmeasured: 0,
            evicted: 0,
        }
    };
    Status {
        streams: netns.into_iter().map(row).collect(),
        ..Status::default()
    }
}
