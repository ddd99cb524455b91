//! What the agent counts between the ring and the collector, cumulative since it started, never reset.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_agent_ebpf::counter::Counter;
use holdfast_proto::v1::{Status, Stream, StreamCounters};

use crate::{clock, probes::KernelCounts};

/// Rows by what became of them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Taken out of the ring.
    pub received: AtomicU64,
    /// Of these: not a record that this agent knows. Zero, unless programs and agent differ.
    pub malformed: AtomicU64,
    /// In no sealed batch yet; a level, not a sum.
    pub batching: AtomicU64,
    /// In sealed batches that the collector has not answered; a level, not a sum.
    pub unacknowledged: AtomicU64,
    pub acknowledged: AtomicU64,
    /// Discarded because the spool was full.
    pub dropped: AtomicU64,
    /// Refused by the collector for their content.
    pub refused: AtomicU64,
}

impl Counters {
    /// The row that the collector stores.
    pub fn status(&self, kernel: KernelCounts) -> Status {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (opened, closed) = (kernel.get(Counter::Opened), kernel.get(Counter::Closed));
        let untracked = kernel.get(Counter::Untracked);
        Status {
            observed_at_ns: clock::wall_now().as_nanos() as u64,
            streams: vec![StreamCounters {
                stream: Stream::Connections.into(),
                netns: 0,
                opened,
                closed,
                // The counters are read one after another while the kernel goes on: never below zero.
                open: opened.saturating_sub(untracked).saturating_sub(closed),
                untracked,
                unseen: kernel.get(Counter::Unseen),
                lost: kernel.get(Counter::Lost),
                filtered: kernel.get(Counter::Filtered),
                received: read(&self.received),
                batching: read(&self.batching),
                unacknowledged: read(&self.unacknowledged),
                acknowledged: read(&self.acknowledged),
                dropped: read(&self.dropped),
                refused: read(&self.refused),
            }],
        }
    }
}
