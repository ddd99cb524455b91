//! Sealed batches between the ring and the collector, until they are answered.
//!
//! A queue in memory, oldest first, and behind it a log of segments on disk that survives the agent. The ring's
//! thread appends and never waits for anything: a thread of its own ([`Writer`]) writes what is not answered yet. A
//! batch that is answered before its turn is never written at all; a segment is removed once all its batches are
//! answered. What a crash leaves behind is read back at the next start and sent again under its old name.
//!
//! Everything is bounded, in memory and on disk. When a bound is reached the oldest batch is dropped, counted, and
//! becomes a [`Gap`]. A disk that is full, read-only or broken leaves the memory, and the log says so.

pub mod disk;
pub mod segment;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_proto::v1::Stream;
use tokio::sync::Notify;

pub use self::segment::{BatchId, Sealed};
use self::{disk::Disk, segment::record_bytes};
use crate::counters::{Counters, End, RowsByNetns};

/// A segment is closed once it has so many bytes: small enough that a few answered batches free disk soon, large
/// enough that a day without a collector makes hundreds of files, not millions.
const SEGMENT_BYTES: u64 = 8 << 20;

/// Bytes that are written at one go.
const WRITE_BYTES: usize = 4 << 20;

/// How long a disk that failed is left alone.
const DISK_RETRY: Duration = Duration::from_secs(5);

/// The bounds of the spool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Encoded bytes in memory.
    pub memory_bytes: u64,
    /// Bytes of all segments on disk.
    pub disk_bytes: u64,
    /// A batch that is older than this is dropped: nobody asks for it any more.
    pub age: Duration,
    /// What was appended is safe from a loss of power after so long at most.
    pub sync: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 64 << 20,
            disk_bytes: 512 << 20,
            age: Duration::from_secs(24 * 3600),
            sync: Duration::from_secs(1),
        }
    }
}

/// Rows that will never reach the store: which, from when to when, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub epoch: u64,
    pub stream: Stream,
    pub first_sequence: u64,
    pub last_sequence: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    pub rows: u64,
    pub reason: GapReason,
}

/// Why rows are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GapReason {
    /// The spool reached one of its bounds while the collector was away.
    SpoolFull,
    /// The batch could not be read back from the disk.
    SpoolUnreadable,
}

/// Where the spool stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Batches without an answer.
    pub batches: u64,
    /// Encoded bytes in memory.
    pub memory_bytes: u64,
    /// Bytes of all segments.
    pub disk_bytes: u64,
    /// The disk refused the last write; what is unanswered is in memory only.
    pub disk_failed: bool,
}

/// What the uplink sends next.
#[derive(Debug)]
pub enum Next {
    /// In memory.
    Ready(Sealed),
    /// On disk only: [`Spool::load`] reads it.
    Stored,
}

/// The queue, shared by the ring's thread, the writer and the uplink.
pub struct Spool {
    queue: Mutex<Queue>,
    appended: Notify,
    /// Wakes the writer.
    work: Condvar,
    limits: Limits,
    disk: Option<Box<dyn Disk>>,
    disk_failed: AtomicBool,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Queue {
    /// Oldest first, by a number that only grows.
    entries: BTreeMap<u64, Entry>,
    places: HashMap<BatchId, u64>,
    last_position: u64,
    /// Up to here every entry is on disk: they are written in order.
    written_position: u64,
    /// Up to here no entry is in memory any more.
    evicted_position: u64,
    memory_bytes: u64,
    segments: BTreeMap<u64, Segment>,
    /// The segment that is appended to; it was made by this process.
    current: Option<u64>,
    gaps: Vec<Gap>,
}

struct Entry {
    id: BatchId,
    rows: u32,
    first_ns: u64,
    last_ns: u64,
    /// The rows by namespace; empty if they are not counted: gaps, and batches of an earlier start.
    counted: RowsByNetns,
    is_sent: bool,
    /// `None` once it is on disk and memory was short.
    encoded: Option<Bytes>,
    /// `None` while it is in memory only.
    place: Option<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    segment: u64,
    at: u64,
    bytes: usize,
}

#[derive(Default)]
struct Segment {
    bytes: u64,
    unanswered: usize,
    is_synced: bool,
}

impl Spool {
    /// A spool. With a disk, what earlier starts left there comes first.
    ///
    /// # Errors
    /// If the disk cannot be listed. A segment that cannot be read is left alone, and the log says so.
    pub fn open(limits: Limits, disk: Option<Box<dyn Disk>>, counters: Arc<Counters>) -> io::Result<Self> {
        let mut queue = Queue::default();
        if let Some(disk) = &disk {
            for number in disk.list()? {
                match disk.read(number) {
                    Ok(bytes) => queue.recover(number, &bytes),
                    Err(error) => {
                        tracing::error!(segment = number, "a segment of the spool cannot be read: {error}");
                    }
                }
            }
        }
        Ok(Self {
            queue: Mutex::new(queue),
            appended: Notify::new(),
            work: Condvar::new(),
            limits,
            disk,
            disk_failed: AtomicBool::new(false),
            counters,
        })
    }

    /// Appends a sealed batch. Never waits; if the memory is full, the oldest batch goes. `rows` is what the counters
    /// shall follow: empty for a stream that is not counted.
    pub fn append(&self, sealed: Sealed, rows: RowsByNetns) {
        let mut queue = self.lock();
        self.counters.sealed(&rows);
        queue.memory_bytes += sealed.encoded.len() as u64;
        queue.insert(Entry {
            id: sealed.id,
            rows: sealed.rows,
            first_ns: sealed.first_ns,
            last_ns: sealed.last_ns,
            counted: rows,
            is_sent: false,
            encoded: Some(sealed.encoded),
            place: None,
        });
        self.bound_memory(&mut queue);
        drop(queue);
        self.appended.notify_one();
        self.work.notify_one();
    }

    /// A batch was sent on the connection of now. While others can go, it is not dropped for want of memory: it may
    /// be stored already, and would be counted twice.
    pub fn sent(&self, position: u64) {
        if let Some(entry) = self.lock().entries.get_mut(&position) {
            entry.is_sent = true;
        }
    }

    /// A new connection: nothing was sent on it.
    pub fn nothing_sent(&self) {
        self.lock()
            .entries
            .values_mut()
            .for_each(|entry| entry.is_sent = false);
    }

    /// What may be in flight at most, in bytes, so that there is always something unsent to drop.
    pub fn flight_bytes(&self) -> u64 {
        self.limits.memory_bytes / 2
    }

    /// The first batch behind a position, and its own position. Positions begin above zero.
    pub fn next(&self, after: u64) -> Option<(u64, Next)> {
        let queue = self.lock();
        let (&position, entry) = queue.entries.range(after + 1..).next()?;
        Some((position, entry.sealed().map_or(Next::Stored, Next::Ready)))
    }

    /// Reads a batch that is on disk. `None` if it is gone by now, or cannot be read, which makes it a gap.
    pub fn load(&self, position: u64) -> Option<Sealed> {
        let place = {
            let queue = self.lock();
            let entry = queue.entries.get(&position)?;
            if let Some(sealed) = entry.sealed() {
                return Some(sealed);
            }
            entry.place?
        };
        let disk = self.disk.as_ref()?;
        let part = disk.read_part(place.segment, place.at, place.bytes);
        if let Some((sealed, _)) = part.ok().and_then(|part| segment::read(&part, 0)) {
            return Some(sealed);
        }
        let mut queue = self.lock();
        self.drop_entry(&mut queue, position, GapReason::SpoolUnreadable);
        None
    }

    /// Waits until something was appended since the last wait.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// The collector has it for good. An answer to a batch that is not here any more changes nothing.
    pub fn acknowledge(&self, id: BatchId) {
        self.answer(id, End::Acknowledged);
    }

    /// The collector will never have it.
    pub fn refuse(&self, id: BatchId) {
        self.answer(id, End::Refused);
    }

    /// Every batch without an answer, oldest first.
    pub fn unanswered(&self) -> Vec<BatchId> {
        self.lock().entries.values().map(|entry| entry.id).collect()
    }

    /// The gaps since the last call.
    pub fn take_gaps(&self) -> Vec<Gap> {
        std::mem::take(&mut self.lock().gaps)
    }

    /// Where the spool stands.
    pub fn levels(&self) -> Levels {
        let queue = self.lock();
        Levels {
            batches: queue.entries.len() as u64,
            memory_bytes: queue.memory_bytes,
            disk_bytes: queue.disk_bytes(),
            disk_failed: self.disk_failed.load(Ordering::Relaxed),
        }
    }

    /// Drops what is older than the bound at the wall time `now_ns`.
    pub fn expire(&self, now_ns: u64) {
        let oldest_ns = now_ns.saturating_sub(self.limits.age.as_nanos() as u64);
        let mut queue = self.lock();
        while let Some((&position, entry)) = queue.entries.first_key_value() {
            if entry.last_ns >= oldest_ns {
                break;
            }
            self.drop_entry(&mut queue, position, GapReason::SpoolFull);
        }
    }

    /// Writes what is in memory only, and frees what is answered; gives the number of bytes written.
    ///
    /// # Errors
    /// The disk's. Everything stays in memory then.
    pub fn persist(&self) -> io::Result<usize> {
        let Some(disk) = &self.disk else { return Ok(0) };
        let (number, begin, batches) = {
            let mut queue = self.lock();
            let number = queue.segment_to_append();
            (number, queue.segments[&number].bytes, queue.unwritten())
        };
        let mut buffer = Vec::with_capacity(batches.iter().map(|(_, sealed)| record_bytes(sealed)).sum());
        let mut places = Vec::with_capacity(batches.len());
        for (position, sealed) in &batches {
            let at = begin + buffer.len() as u64;
            segment::write(sealed, &mut buffer);
            places.push((
                *position,
                Place {
                    segment: number,
                    at,
                    bytes: record_bytes(sealed),
                },
            ));
        }
        if !buffer.is_empty()
            && let Err(error) = disk.append(number, &buffer)
        {
            // An unknown part was written: go on in another file.
            self.lock().current = None;
            return Err(error);
        }
        let dead = {
            let mut queue = self.lock();
            queue.written(number, buffer.len() as u64, &places);
            self.bound_memory(&mut queue);
            self.bound_disk(&mut queue);
            queue.take_dead_segments()
        };
        for number in dead {
            disk.remove(number)?;
        }
        Ok(buffer.len())
    }

    /// Makes what was written safe from a loss of power.
    ///
    /// # Errors
    /// The disk's.
    pub fn sync(&self) -> io::Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let unsynced: Vec<_> = {
            let queue = self.lock();
            queue
                .segments
                .iter()
                .filter(|(_, segment)| !segment.is_synced && segment.bytes > 0)
                .map(|(&n, _)| n)
                .collect()
        };
        for number in unsynced {
            let bytes = self.lock().segments.get(&number).map(|segment| segment.bytes);
            disk.sync(number)?;
            if let Some(segment) = self.lock().segments.get_mut(&number)
                && Some(segment.bytes) == bytes
            {
                segment.is_synced = true;
            }
        }
        Ok(())
    }

    fn answer(&self, id: BatchId, end: End) {
        let mut queue = self.lock();
        let entry = queue
            .places
            .get(&id)
            .copied()
            .and_then(|position| queue.remove(position));
        if let Some(entry) = entry {
            self.counters.ended(&entry.counted, end);
        }
    }

    fn drop_entry(&self, queue: &mut Queue, position: u64, reason: GapReason) {
        if let Some(entry) = queue.remove(position) {
            self.counters.ended(&entry.counted, End::Dropped);
            queue.add_gap(&entry, reason);
        }
    }

    /// Forgets the bytes of what is on disk, oldest first, and drops what is not, until the memory is within its
    /// bound.
    fn bound_memory(&self, queue: &mut Queue) {
        if queue.memory_bytes <= self.limits.memory_bytes {
            return;
        }
        let mut excess = queue.memory_bytes - self.limits.memory_bytes;
        let on_disk = queue.evicted_position + 1..queue.written_position.max(queue.evicted_position) + 1;
        for (&position, entry) in queue.entries.range_mut(on_disk) {
            if excess == 0 {
                break;
            }
            if let Some(encoded) = entry.encoded.take() {
                excess = excess.saturating_sub(encoded.len() as u64);
                queue.memory_bytes -= encoded.len() as u64;
            }
            queue.evicted_position = position;
        }
        while queue.memory_bytes > self.limits.memory_bytes {
            let mut in_memory = queue.entries.range(queue.evicted_position + 1..);
            let oldest = in_memory
                .clone()
                .find(|(_, entry)| !entry.is_sent)
                .or_else(|| in_memory.next());
            let Some((&position, _)) = oldest else { break };
            self.drop_entry(queue, position, GapReason::SpoolFull);
        }
    }

    /// Drops whole segments, oldest first, until the disk is within its bound.
    fn bound_disk(&self, queue: &mut Queue) {
        while queue.disk_bytes() > self.limits.disk_bytes {
            let Some((&oldest, _)) = queue.segments.iter().find(|(_, segment)| segment.unanswered > 0) else {
                break;
            };
            let lost: Vec<_> = queue
                .entries
                .iter()
                .filter(|(_, entry)| entry.place.is_some_and(|place| place.segment == oldest))
                .map(|(&position, _)| position)
                .collect();
            for position in lost {
                self.drop_entry(queue, position, GapReason::SpoolFull);
            }
            if queue.current == Some(oldest) {
                queue.current = None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // A queue is consistent between any two of its statements: a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The batch, if it is in memory.
    fn sealed(&self) -> Option<Sealed> {
        Some(Sealed {
            id: self.id,
            rows: self.rows,
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            encoded: self.encoded.clone()?,
        })
    }
}

impl Queue {
    fn insert(&mut self, entry: Entry) {
        self.last_position += 1;
        self.places.insert(entry.id, self.last_position);
        self.entries.insert(self.last_position, entry);
    }

    fn remove(&mut self, position: u64) -> Option<Entry> {
        let entry = self.entries.remove(&position)?;
        self.places.remove(&entry.id);
        self.memory_bytes -= entry.encoded.as_ref().map_or(0, |encoded| encoded.len() as u64);
        if let Some(segment) = entry
            .place
            .and_then(|place| self.segments.get_mut(&place.segment))
        {
            segment.unanswered -= 1;
        }
        Some(entry)
    }

    /// Takes in what an earlier start left in a segment.
    fn recover(&mut self, number: u64, bytes: &Bytes) {
        let (records, end) = segment::scan(bytes);
        if end < bytes.len() {
            tracing::warn!(
                segment = number,
                bytes = bytes.len() - end,
                "the spool ends in a batch that was not written whole: it is counted with the end of that start"
            );
        }
        let segment = self.segments.entry(number).or_default();
        segment.bytes = bytes.len() as u64;
        segment.is_synced = true;
        for (at, sealed) in records {
            // After a failed write the same batch may be in two segments.
            if self.places.contains_key(&sealed.id) {
                continue;
            }
            self.segments.entry(number).or_default().unanswered += 1;
            let place = Place {
                segment: number,
                at: at as u64,
                bytes: record_bytes(&sealed),
            };
            self.insert(Entry {
                id: sealed.id,
                rows: sealed.rows,
                first_ns: sealed.first_ns,
                last_ns: sealed.last_ns,
                counted: RowsByNetns::new(),
                is_sent: false,
                encoded: None,
                place: Some(place),
            });
        }
        self.written_position = self.last_position;
        self.evicted_position = self.last_position;
    }

    /// The segment that takes the next batches.
    fn segment_to_append(&mut self) -> u64 {
        if let Some(current) = self.current
            && self
                .segments
                .get(&current)
                .is_some_and(|segment| segment.bytes < SEGMENT_BYTES)
        {
            return current;
        }
        let number = self.segments.last_key_value().map_or(1, |(&last, _)| last + 1);
        self.segments.insert(number, Segment::default());
        self.current = Some(number);
        number
    }

    /// The oldest batches that are in memory only, up to [`WRITE_BYTES`].
    fn unwritten(&self) -> Vec<(u64, Sealed)> {
        let mut bytes = 0;
        self.entries
            .range(self.written_position + 1..)
            .filter_map(|(&position, entry)| Some((position, entry.sealed()?)))
            .take_while(|(_, sealed)| {
                let fits = bytes == 0 || bytes + sealed.encoded.len() <= WRITE_BYTES;
                bytes += sealed.encoded.len();
                fits
            })
            .collect()
    }

    fn has_unwritten(&self) -> bool {
        self.entries.range(self.written_position + 1..).next().is_some()
    }

    fn written(&mut self, number: u64, bytes: u64, places: &[(u64, Place)]) {
        let segment = self.segments.entry(number).or_default();
        segment.bytes += bytes;
        segment.is_synced &= bytes == 0;
        if let Some((last, _)) = places.last() {
            self.written_position = *last;
        }
        for (position, place) in places {
            // It may have been answered meanwhile.
            if let Some(entry) = self.entries.get_mut(position) {
                entry.place = Some(*place);
                segment.unanswered += 1;
            }
        }
    }

    /// Forgets the segments that hold nothing unanswered, but for the one that is written to.
    fn take_dead_segments(&mut self) -> Vec<u64> {
        let current = self.current;
        let is_dead = |number: u64, segment: &Segment| {
            segment.unanswered == 0
                && segment.bytes > 0
                && (current != Some(number) || segment.bytes >= SEGMENT_BYTES)
        };
        let dead: Vec<_> = self
            .segments
            .iter()
            .filter(|(number, segment)| is_dead(**number, segment))
            .map(|(&n, _)| n)
            .collect();
        for number in &dead {
            self.segments.remove(number);
            if self.current == Some(*number) {
                self.current = None;
            }
        }
        dead
    }

    fn disk_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Adds to the last gap where the two touch: an hour without a collector is one gap, not ten thousand.
    fn add_gap(&mut self, entry: &Entry, reason: GapReason) {
        let id = entry.id;
        if let Some(gap) = self.gaps.last_mut()
            && (gap.epoch, gap.stream, gap.reason) == (id.epoch, id.stream, reason)
            && gap.last_sequence + 1 == id.sequence
        {
            gap.last_sequence = id.sequence;
            gap.first_ns = gap.first_ns.min(entry.first_ns);
            gap.last_ns = gap.last_ns.max(entry.last_ns);
            gap.rows += u64::from(entry.rows);
            return;
        }
        self.gaps.push(Gap {
            epoch: id.epoch,
            stream: id.stream,
            first_sequence: id.sequence,
            last_sequence: id.sequence,
            first_ns: entry.first_ns,
            last_ns: entry.last_ns,
            rows: entry.rows.into(),
            reason,
        });
    }
}

/// The thread that keeps the disk up with the memory.
pub struct Writer {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    spool: Arc<Spool>,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(spool: &Arc<Spool>) -> io::Result<Self> {
        let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::clone(spool));
        let thread = thread::Builder::new().name("spool".into()).spawn({
            let stop = Arc::clone(&stop);
            move || write_until(&stopped, &stop)
        })?;
        Ok(Self {
            thread,
            stop,
            spool: Arc::clone(spool),
        })
    }

    /// Writes and syncs what is left, and ends the thread.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Release);
        self.spool.work.notify_one();
        if self.thread.join().is_err() {
            tracing::error!("the thread that writes the spool panicked");
        }
    }
}

fn write_until(spool: &Spool, stop: &AtomicBool) {
    let mut last_sync = Instant::now();
    loop {
        let stopping = stop.load(Ordering::Acquire);
        let sync = stopping || last_sync.elapsed() >= spool.limits.sync;
        let result = write_all(spool, sync, &mut last_sync);
        let had_failed = spool.disk_failed.swap(result.is_err(), Ordering::Relaxed);
        let has_failed = result.is_err();
        match result {
            Err(error) if !had_failed => {
                tracing::error!(
                    "the spool's disk fails: {error}; unanswered batches are kept in memory only"
                );
            }
            Ok(()) if had_failed => tracing::info!("the spool's disk works again"),
            _ => {}
        }
        if stopping {
            return;
        }
        let pause = if has_failed { DISK_RETRY } else { spool.limits.sync };
        let queue = spool.lock();
        if !stop.load(Ordering::Acquire) && (has_failed || !queue.has_unwritten()) {
            let _unused = spool.work.wait_timeout(queue, pause);
        }
    }
}

fn write_all(spool: &Spool, sync: bool, last_sync: &mut Instant) -> io::Result<()> {
    while spool.persist()? > 0 {}
    if sync {
        spool.sync()?;
        *last_sync = Instant::now();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{disk::Folder, *};

    const ROWS: u32 = 10;

    fn sealed(epoch: u64, sequence: u64) -> Sealed {
        Sealed {
            id: BatchId {
                epoch,
                stream: Stream::Connections,
                sequence,
            },
            rows: ROWS,
            first_ns: sequence * 100,
            last_ns: sequence * 100 + 99,
            encoded: vec![sequence as u8; 1_000].into(),
        }
    }

    fn open(limits: Limits, disk: Option<Box<dyn Disk>>) -> (Spool, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        (
            Spool::open(limits, disk, Arc::clone(&counters)).expect("a spool"),
            counters,
        )
    }

    fn in_memory(memory_bytes: u64) -> (Spool, Arc<Counters>) {
        open(
            Limits {
                memory_bytes,
                ..Limits::default()
            },
            None,
        )
    }

    fn on_disk(path: &std::path::Path, limits: Limits) -> (Spool, Arc<Counters>) {
        open(limits, Some(Box::new(Folder::open(path).expect("a folder"))))
    }

    fn append(spool: &Spool, sealed: Sealed) {
        let rows = RowsByNetns::from([(1, sealed.rows.into())]);
        spool.counters.received(&rows);
        spool.append(sealed, rows);
    }

    /// The sequences that would be sent, in order, read from disk where they are there only.
    fn sent(spool: &Spool) -> Vec<(u64, u64)> {
        let mut ids = Vec::new();
        let mut position = 0;
        while let Some((next, batch)) = spool.next(position) {
            position = next;
            let batch = match batch {
                Next::Ready(sealed) => Some(sealed),
                Next::Stored => spool.load(position),
            };
            if let Some(batch) = batch {
                assert_eq!(batch, sealed(batch.id.epoch, batch.id.sequence), "byte for byte");
                ids.push((batch.id.epoch, batch.id.sequence));
            }
        }
        ids
    }

    fn check(counters: &Counters, expected: [u64; 4]) {
        let stages = counters.total();
        assert_eq!(
            [
                stages.unacknowledged,
                stages.acknowledged,
                stages.dropped,
                stages.refused
            ],
            expected,
            "unacknowledged, acknowledged, dropped, refused"
        );
    }

    fn id(sequence: u64) -> BatchId {
        sealed(1, sequence).id
    }

    #[test]
    fn a_full_memory_drops_the_oldest_batches_and_they_are_one_gap() {
        let (spool, counters) = in_memory(2_000);
        for sequence in 1..=4 {
            append(&spool, sealed(1, sequence));
        }
        assert_eq!(sent(&spool), [(1, 3), (1, 4)]);
        let gap = Gap {
            epoch: 1,
            stream: Stream::Connections,
            first_sequence: 1,
            last_sequence: 2,
            first_ns: 100,
            last_ns: 299,
            rows: 20,
            reason: GapReason::SpoolFull,
        };
        assert_eq!(spool.take_gaps(), [gap]);
        assert_eq!(spool.take_gaps(), []);
        check(&counters, [20, 0, 20, 0]);
    }

    #[test]
    fn what_was_sent_is_dropped_last() {
        let (spool, counters) = in_memory(2_000);
        append(&spool, sealed(1, 1));
        append(&spool, sealed(1, 2));
        spool.sent(1);
        append(&spool, sealed(1, 3));
        assert_eq!(
            sent(&spool),
            [(1, 1), (1, 3)],
            "the oldest that was not sent is gone"
        );
        spool.nothing_sent();
        append(&spool, sealed(1, 4));
        assert_eq!(sent(&spool), [(1, 3), (1, 4)]);
        check(&counters, [20, 0, 20, 0]);
    }

    #[test]
    fn every_row_is_counted_once_whatever_the_order_of_the_answers() {
        let (spool, counters) = in_memory(1 << 20);
        for sequence in 1..=3 {
            append(&spool, sealed(1, sequence));
        }
        spool.acknowledge(id(3));
        spool.refuse(id(1));
        spool.acknowledge(id(3));
        spool.acknowledge(id(7));
        check(&counters, [10, 10, 0, 10]);
        assert_eq!(sent(&spool), [(1, 2)]);
        spool.acknowledge(id(2));
        assert_eq!(spool.levels(), Levels::default());
    }

    #[test]
    fn unanswered_batches_outlive_the_process_under_their_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let (spool, _) = on_disk(folder.path(), Limits::default());
        for sequence in 1..=3 {
            append(&spool, sealed(1, sequence));
        }
        spool.acknowledge(id(2));
        spool.persist().expect("written");
        // A crash: nothing is finished, nothing is told.
        drop(spool);

        let (spool, counters) = on_disk(folder.path(), Limits::default());
        append(&spool, sealed(2, 1));
        assert_eq!(sent(&spool), [(1, 1), (1, 3), (2, 1)]);
        // Its counters are its own: what an earlier start sealed was counted there.
        check(&counters, [10, 0, 0, 0]);
        spool.acknowledge(sealed(1, 1).id);
        spool.acknowledge(sealed(1, 3).id);
        check(&counters, [10, 0, 0, 0]);
        spool.persist().expect("written");
        drop(spool);
        let folder = Folder::open(folder.path()).expect("a folder");
        assert_eq!(
            folder.list().expect("a list"),
            [2],
            "the old segment is gone, the new one is there"
        );
    }

    #[test]
    fn a_batch_that_is_answered_first_is_never_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let (spool, _) = on_disk(folder.path(), Limits::default());
        append(&spool, sealed(1, 1));
        spool.acknowledge(id(1));
        assert_eq!(spool.persist().expect("nothing to write"), 0);
    }

    #[test]
    fn memory_is_given_back_once_a_batch_is_on_disk() {
        let folder = tempfile::tempdir().expect("a folder");
        let (spool, counters) = on_disk(
            folder.path(),
            Limits {
                memory_bytes: 3_000,
                ..Limits::default()
            },
        );
        for sequence in 1..=30 {
            append(&spool, sealed(1, sequence));
            spool.persist().expect("written");
        }
        assert_eq!(sent(&spool).len(), 30, "all of them, from memory and from disk");
        assert!(spool.levels().memory_bytes <= 3_000);
        check(&counters, [300, 0, 0, 0]);
    }

    #[test]
    fn a_full_disk_bound_drops_the_oldest_segment() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            memory_bytes: 0,
            disk_bytes: 3 * SEGMENT_BYTES,
            ..Limits::default()
        };
        let (spool, counters) = on_disk(
            folder.path(),
            Limits {
                memory_bytes: 20 << 20,
                ..limits
            },
        );
        let big = |sequence| Sealed {
            encoded: vec![0; 1 << 20].into(),
            ..sealed(1, sequence)
        };
        for sequence in 1..=40 {
            append(&spool, big(sequence));
            spool.persist().expect("written");
        }
        let levels = spool.levels();
        assert!(levels.disk_bytes <= limits.disk_bytes, "{levels:?}");
        let gaps = spool.take_gaps();
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert_eq!(gaps[0].first_sequence, 1);
        assert_eq!(gaps[0].rows, counters.total().dropped);
        assert_eq!(levels.batches + gaps[0].rows / u64::from(ROWS), 40);
    }

    #[test]
    fn an_old_batch_is_dropped_by_its_age() {
        let (spool, counters) = open(
            Limits {
                age: Duration::from_nanos(500),
                ..Limits::default()
            },
            None,
        );
        for sequence in 1..=10 {
            append(&spool, sealed(1, sequence));
        }
        spool.expire(1_000);
        assert_eq!(sent(&spool).first(), Some(&(1, 5)));
        check(&counters, [60, 0, 40, 0]);
    }

    #[test]
    fn two_agents_cannot_share_a_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let _first = Folder::open(folder.path()).expect("a folder");
        // flock is by open file: even this process cannot take it twice.
        assert_eq!(
            Folder::open(folder.path()).err().expect("refused").kind(),
            io::ErrorKind::WouldBlock
        );
    }

    /// A disk that fails, as a full one does: after a part of the bytes.
    struct FullDisk(Folder);

    impl Disk for FullDisk {
        fn list(&self) -> io::Result<Vec<u64>> {
            self.0.list()
        }
        fn read(&self, segment: u64) -> io::Result<Bytes> {
            self.0.read(segment)
        }
        fn read_part(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Bytes> {
            self.0.read_part(segment, at, bytes)
        }
        fn append(&self, segment: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.append(segment, &bytes[..bytes.len() / 2])?;
            Err(io::ErrorKind::StorageFull.into())
        }
        fn sync(&self, segment: u64) -> io::Result<()> {
            self.0.sync(segment)
        }
        fn remove(&self, segment: u64) -> io::Result<()> {
            self.0.remove(segment)
        }
    }

    #[test]
    fn a_full_disk_leaves_the_memory() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = FullDisk(Folder::open(folder.path()).expect("a folder"));
        let (spool, counters) = open(Limits::default(), Some(Box::new(disk)));
        append(&spool, sealed(1, 1));
        assert_eq!(
            spool.persist().expect_err("a full disk").kind(),
            io::ErrorKind::StorageFull
        );
        assert_eq!(sent(&spool), [(1, 1)]);
        check(&counters, [10, 0, 0, 0]);
        drop(spool);
        // What was written of it is no batch, and does no harm.
        let (spool, _) = on_disk(folder.path(), Limits::default());
        assert_eq!(sent(&spool), []);
    }

    proptest! {
        /// Whatever happens in whatever order, every batch is waiting, answered or in a gap, and comes back whole
        /// after a crash if it was written.
        #[test]
        fn no_batch_disappears(steps in prop::collection::vec((0..6_u8, 1..60_u64), 1..80)) {
            let folder = tempfile::tempdir().expect("a folder");
            let limits = Limits { memory_bytes: 8_000, disk_bytes: 30_000, ..Limits::default() };
            let mut epoch = 1;
            let (mut spool, _) = on_disk(folder.path(), limits);
            let (mut appended, mut answered, mut gone, mut sequence) = (0_u64, 0_u64, 0_u64, 0_u64);
            for (step, number) in steps {
                match step {
                    0 | 1 => {
                        sequence += 1;
                        appended += 1;
                        append(&spool, sealed(epoch, sequence));
                    }
                    2 => { spool.persist().expect("written"); }
                    3 => {
                        let waiting = spool.unanswered();
                        if let Some(&id) = waiting.get(number as usize % waiting.len().max(1)) {
                            answered += 1;
                            spool.acknowledge(id);
                        }
                    }
                    4 => {
                        prop_assert_eq!(sent(&spool).len() as u64, spool.levels().batches);
                    }
                    _ => {
                        // A crash after everything was written: nothing may be missing but what a gap names.
                        while spool.persist().expect("written") > 0 {}
                        gone += spool.take_gaps().iter().map(|gap| gap.rows / u64::from(ROWS)).sum::<u64>();
                        let waiting = spool.unanswered();
                        drop(spool);
                        epoch += 1;
                        sequence = 0;
                        spool = on_disk(folder.path(), limits).0;
                        for id in waiting {
                            prop_assert!(spool.unanswered().contains(&id), "{:?} is gone", id);
                        }
                        // Answered batches may come back: the store knows them.
                        answered -= spool.levels().batches + answered + gone - appended;
                    }
                }
                gone += spool.take_gaps().iter().map(|gap| gap.rows / u64::from(ROWS)).sum::<u64>();
                prop_assert_eq!(spool.levels().batches + answered + gone, appended);
            }
        }
    }
}
