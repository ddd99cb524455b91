//! Sealed batches between the ring and the collector, oldest first: bounded, in memory.
//!
//! The ring's thread appends and never waits: when the bound is reached the oldest batch is dropped, and counted.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use holdfast_proto::v1::Batch;
use prost::Message;
use tokio::sync::Notify;

use crate::counters::Counters;

/// Batches that the collector has not answered.
pub struct Spool {
    queue: Mutex<Queue>,
    appended: Notify,
    max_bytes: usize,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Queue {
    /// In order of sequence.
    batches: VecDeque<Stored>,
    bytes: usize,
    /// Batches dropped since the last one that was reported.
    dropped: u64,
}

struct Stored {
    batch: Arc<Batch>,
    bytes: usize,
}

impl Spool {
    /// An empty spool that holds at most `max_bytes` of encoded batches.
    pub fn new(max_bytes: usize, counters: Arc<Counters>) -> Self {
        Self {
            queue: Mutex::default(),
            appended: Notify::new(),
            max_bytes,
            counters,
        }
    }

    /// Appends sealed batches, in order of sequence.
    pub fn append_all(&self, batches: impl IntoIterator<Item = Batch>) {
        for batch in batches {
            self.append(batch);
        }
    }

    fn append(&self, batch: Batch) {
        let bytes = batch.encoded_len();
        let mut queue = self.lock();
        self.counters
            .unacknowledged
            .fetch_add(batch.rows.into(), Ordering::Relaxed);
        queue.bytes += bytes;
        queue.batches.push_back(Stored {
            batch: Arc::new(batch),
            bytes,
        });
        while queue.bytes > self.max_bytes {
            let Some(oldest) = queue.batches.pop_front() else {
                break;
            };
            queue.bytes -= oldest.bytes;
            queue.dropped += 1;
            self.leave(&oldest.batch, &self.counters.dropped);
        }
        drop(queue);
        self.appended.notify_one();
    }

    /// The first batch after a sequence.
    pub fn after(&self, sequence: u64) -> Option<Arc<Batch>> {
        let queue = self.lock();
        let index = queue
            .batches
            .partition_point(|stored| stored.batch.sequence <= sequence);
        queue.batches.get(index).map(|stored| Arc::clone(&stored.batch))
    }

    /// Waits until something was appended since the last wait.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// Whether every batch was answered.
    pub fn is_empty(&self) -> bool {
        self.lock().batches.is_empty()
    }

    /// The collector has it for good. An answer to a batch that is not here any more (dropped, or answered
    /// before) changes nothing.
    pub fn acknowledge(&self, sequence: u64) {
        if let Some(batch) = self.remove(sequence) {
            self.leave(&batch, &self.counters.acknowledged);
        }
    }

    /// The collector will never have it.
    pub fn refuse(&self, sequence: u64) {
        if let Some(batch) = self.remove(sequence) {
            self.leave(&batch, &self.counters.refused);
        }
    }

    /// Batches dropped since the last call.
    pub fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    fn remove(&self, sequence: u64) -> Option<Arc<Batch>> {
        let mut queue = self.lock();
        let index = queue
            .batches
            .binary_search_by_key(&sequence, |stored| stored.batch.sequence)
            .ok()?;
        let stored = queue.batches.remove(index)?;
        queue.bytes -= stored.bytes;
        Some(stored.batch)
    }

    fn leave(&self, batch: &Batch, to: &std::sync::atomic::AtomicU64) {
        let rows = u64::from(batch.rows);
        self.counters.unacknowledged.fetch_sub(rows, Ordering::Relaxed);
        to.fetch_add(rows, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is consistent between any two of its statements: a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::Stream;

    use super::*;

    fn batch(sequence: u64) -> Batch {
        Batch {
            stream: Stream::Connections.into(),
            sequence,
            rows: 10,
            columns: None,
        }
    }

    fn spool(max_batches: usize) -> (Spool, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        (
            Spool::new(batch(1).encoded_len() * max_batches, Arc::clone(&counters)),
            counters,
        )
    }

    fn check(counters: &Counters, expected: [u64; 4]) {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!(
            [
                read(&counters.unacknowledged),
                read(&counters.acknowledged),
                read(&counters.dropped),
                read(&counters.refused)
            ],
            expected,
            "unacknowledged, acknowledged, dropped, refused"
        );
    }

    #[test]
    fn a_full_spool_drops_the_oldest_batch_and_counts_its_rows() {
        let (spool, counters) = spool(2);
        spool.append_all([batch(1), batch(2), batch(3)]);
        assert_eq!(spool.after(0).expect("the oldest that is left").sequence, 2);
        assert_eq!((spool.take_dropped(), spool.take_dropped()), (1, 0));
        check(&counters, [20, 0, 10, 0]);
    }

    #[test]
    fn every_row_is_counted_once_whatever_the_order_of_the_answers() {
        let (spool, counters) = spool(9);
        spool.append_all([batch(1), batch(2), batch(3)]);
        spool.acknowledge(3);
        spool.refuse(1);
        spool.acknowledge(3);
        spool.acknowledge(7);
        check(&counters, [10, 10, 0, 10]);
        assert_eq!(spool.after(0).expect("the one without an answer").sequence, 2);
        assert!(spool.after(2).is_none());
        spool.acknowledge(2);
        assert!(spool.is_empty());
    }
}
