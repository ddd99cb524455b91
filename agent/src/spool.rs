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
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use holdfast_proto::v1::{BatchRange, Status, Stream, Welcome};
use tokio::sync::Notify;

pub use self::segment::{BatchId, Sealed};
use self::{
    disk::Disk,
    segment::{Scan, Tail, record_bytes},
};
use crate::{
    counters::{Counters, End, Legacy, Origin, Rows, RowsByNetns, Stages},
    predecessor::{Held, Predecessor},
    sequences::Sequences,
    wire,
};

/// A segment is closed once it has so many bytes: small enough that a few answered batches free disk soon, large
/// enough that a day without a collector makes hundreds of files, not millions.
const SEGMENT_BYTES: u64 = 8 << 20;

/// A disk of few bytes has smaller segments: one of them is what goes when it is full.
const SEGMENTS_OF_A_DISK: u64 = 8;

/// So many batches without an answer are a pile: a collector takes 256 of an agent at a time.
const PILE: usize = 1_024;

/// Batches that were dropped after they had been sent, and about which the store has not been asked yet. They take no
/// memory to speak of; past so many they are given up at once.
const MOST_DOUBTS: usize = 4_096;

/// What a batch without an answer takes in memory beside its bytes and beside the names of further namespaces: its entry, its
/// places in the indexes, and what the allocator and half-empty nodes add. Measured: 360 bytes for each of 100,000 batches of
/// one namespace, 391 for each of 50,000; rounded up, since an index that has just been doubled takes 32 bytes more
/// (`what_is_charged_for_a_batch_is_what_it_takes` of the integration tests).
pub const ENTRY_BYTES: u64 = 448;

/// The same for each namespace that a batch has rows of, beyond the first.
const NAMESPACE_BYTES: u64 = 48;

/// So many namespaces are told apart in a run of batches that are missing; the rows of all others are in a gap of none: the
/// books have all gaps, and are written once a second.
const NAMESPACES_OF_A_RUN: usize = 256;

/// Bytes that are written at one go.
const WRITE_BYTES: usize = 4 << 20;

/// How long a disk that failed is left alone.
pub const DISK_RETRY: Duration = Duration::from_secs(5);

/// The bounds of the spool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What batches take in memory, with what is known of each; of those that are on disk only, the latter.
    pub memory_bytes: u64,
    /// Bytes of all segments on disk.
    pub disk_bytes: u64,
    /// A batch that is older than this is dropped: nobody asks for it any more. After a reboot it begins anew.
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
    /// Zero where it is not told apart.
    pub netns: u32,
    pub first_sequence: u64,
    pub last_sequence: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    pub rows: u64,
    /// There may be more.
    pub at_least: bool,
    pub reason: GapReason,
}

/// Why rows are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GapReason {
    /// The spool reached one of its bounds while the collector was away.
    SpoolFull,
    /// The batch could not be read back from the disk.
    SpoolUnreadable,
    /// The kernel's ring was full.
    RingFull,
    /// The start ended without a word.
    EpochEnd,
    /// The collector refused the batch for its content.
    Refused,
}

/// What the spool and the counters say at one moment, for the next start to know.
pub struct Books {
    pub stages: BTreeMap<Origin, Stages>,
    pub predecessors: Vec<Predecessor>,
    /// The batches of this start that have no answer.
    pub unanswered: BTreeMap<Stream, Sequences>,
    /// The last one of each stream that was sealed.
    pub last_sequences: BTreeMap<Stream, u64>,
    /// Gaps that are in no batch yet.
    pub gaps: Vec<Gap>,
    /// Batches of gaps that are in memory only.
    pub gap_batches: Vec<Sealed>,
    /// How many of them are held back until the books are on disk.
    pub held: usize,
    /// Batches that are in gaps and whose bytes are on the disk still, or may be again.
    pub left_behind: Vec<BatchId>,
    /// What of this start is on no disk was made from here on: rows that are in no batch yet, and batches that are in memory only or
    /// not safe from a loss of power. Nanoseconds since the Unix epoch; `None`: not known.
    pub unsaved_ns: Option<u64>,
    /// What of it has no answer was made from here on, wherever it is; `None` likewise.
    pub unanswered_ns: Option<u64>,
}

/// Where the spool stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Batches without an answer.
    pub batches: u64,
    /// What they take in memory.
    pub memory_bytes: u64,
    /// Bytes of all segments.
    pub disk_bytes: u64,
    /// There is no disk, or it refused the last write; what is unanswered is in memory only.
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
    /// Boxed: a node of the tree that grows at one end is half empty.
    entries: BTreeMap<u64, Box<Entry>>,
    places: HashMap<BatchId, u64>,
    last_position: u64,
    /// Up to here every entry is on disk, but for those of `unhoused`: they are written in order.
    written_position: u64,
    /// Entries whose segment had to go, and which are to be written again.
    unhoused: BTreeSet<u64>,
    /// Up to here no entry is in memory any more, but for batches of gaps.
    evicted_position: u64,
    /// Up to here every entry was left by an earlier start.
    recovered_position: u64,
    /// Up to here it is known when each entry is too old.
    aged_position: u64,
    /// Encoded bytes in memory.
    encoded_bytes: u64,
    /// What is known of each batch, its bytes aside; without those that are dropped and in doubt, which have a bound.
    known_bytes: u64,
    /// When the rows of each entry begin, with its position: the least is how far back something waits.
    beginnings: BTreeSet<(u64, u64)>,
    /// Every batch that is queued, by start and stream.
    names: BTreeMap<(u64, Stream), Sequences>,
    /// When each entry that an earlier start left is too old, once that is known: they lie in no order of age.
    expiries: BTreeSet<(Duration, u64)>,
    segments: BTreeMap<u64, Segment>,
    /// The segment that is appended to; it was made by this process.
    current: Option<u64>,
    /// A segment with an unknown part of a write that failed behind its end.
    torn: Option<u64>,
    /// Entries that are dropped and in doubt.
    doubts: BTreeSet<u64>,
    gaps: Vec<Gap>,
    /// Of each start, stream and reason the batches that came into gaps last, one right after the other.
    runs: HashMap<(u64, Stream, GapReason), Run>,
    /// Whether the next start is told of gaps before the collector is: or it would tell of them again.
    is_journalled: bool,
    /// Batches of gaps that wait for it, and what the counters follow of them.
    held: Vec<(Sealed, RowsByNetns)>,
    /// The last batch of each stream that was appended.
    last_sequences: BTreeMap<Stream, u64>,
    /// Everything that the kernel made before this was appended, and every attempt that was decided before that; in
    /// nanoseconds since the Unix epoch. Zero: nobody said so.
    taken_until_ns: u64,
    announced_until_ns: u64,
    /// The earliest row that is in an open batch, of whatever stream; `None` if there is none.
    batching_ns: Option<u64>,
}

/// Up to when everything has its answer, in nanoseconds since the Unix epoch. Zero: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// Of what the kernel made.
    pub records_ns: u64,
    /// Of attempts that were decided.
    pub attempts_ns: u64,
}

/// Batches of one start and stream without one between them that is not missing too, and the gaps that have their rows.
struct Run {
    last_sequence: u64,
    /// Where in [`Queue::gaps`] the one of a namespace is.
    places: HashMap<u32, usize>,
}

struct Entry {
    id: BatchId,
    rows: u32,
    first_ns: u64,
    last_ns: u64,
    /// The rows by namespace, as a slice: a map's node takes ten times what one namespace does. Empty if they are not
    /// counted: those of an earlier start that nobody speaks for.
    counted: Box<[(u32, Rows)]>,
    /// How many those were when it came.
    namespaces: u32,
    /// By the boot clock. `None` until [`Spool::expire`] has seen it.
    expires_at: Option<Duration>,
    /// On the connection of now.
    is_sent: bool,
    /// The store may have it: it was sent, and nobody has said yet that it did not arrive.
    is_in_doubt: bool,
    /// It had to go. While it is in doubt it waits, without its bytes, for what the collector finds in the store: it
    /// must not be counted as missing when it is there.
    dropped: Option<GapReason>,
    /// `None` once it is on disk and memory was short.
    encoded: Option<Bytes>,
    /// `None` while it is in memory only.
    place: Option<Place>,
    /// The segment that still has its bytes, once it gave its place back.
    left_in: Option<u64>,
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
    /// What in it is not safe from a loss of power was made from here on, by the wall clock. `None`: all of it is safe.
    unsynced_ns: Option<u64>,
    /// Batches in it that are in a counter for good: no later start may find them. One that speaks for theirs knows from its account,
    /// those after it do not.
    left_behind: Vec<BatchId>,
}

impl Spool {
    /// A spool of a start on the boot of this name. With a disk, what earlier starts left there comes first.
    ///
    /// # Errors
    /// If the disk cannot be listed. A segment that cannot be read is left alone, and the log says so.
    pub fn open(
        limits: Limits,
        boot_id: &str,
        disk: Option<Box<dyn Disk>>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let mut queue = Queue::default();
        if let Some(disk) = &disk {
            let mut is_whole = true;
            for number in disk.list()? {
                match disk.read(number) {
                    Ok(bytes) => {
                        is_whole &= queue.recover(number, &bytes, &counters, |sealed| {
                            Some(wire::sealed_at(sealed, boot_id)?.saturating_add(limits.age))
                        });
                    }
                    Err(error) => {
                        is_whole = false;
                        tracing::error!(segment = number, "a segment of the spool cannot be read: {error}");
                    }
                }
            }
            queue.order_gaps();
            if !is_whole {
                counters
                    .predecessors()
                    .values_mut()
                    .for_each(Predecessor::spoiled);
            }
        }
        let spool = Self {
            queue: Mutex::new(queue),
            appended: Notify::new(),
            work: Condvar::new(),
            limits,
            disk_failed: AtomicBool::new(disk.is_none()),
            disk,
            counters,
        };
        spool.bound_memory(&mut spool.lock());
        Ok(spool)
    }

    /// Appends a sealed batch of this start whose rows are counted already, as they wait for it: `rows`. Never waits; if
    /// the memory is full, the oldest batch goes.
    pub fn append(&self, sealed: Sealed, rows: RowsByNetns) {
        let mut queue = self.lock();
        queue.last_sequences.insert(sealed.id.stream, sealed.id.sequence);
        self.counters.sealed(sealed.id, &rows);
        self.enqueue(&mut queue, sealed, rows);
    }

    /// Appends a batch of this start whose rows came into being with it, and counts them. Never waits, likewise.
    pub fn append_new(&self, sealed: Sealed) {
        let rows = wire::counted_rows(&sealed);
        let mut queue = self.lock();
        queue.last_sequences.insert(sealed.id.stream, sealed.id.sequence);
        self.counters.made(sealed.id, &rows);
        if queue.is_journalled && sealed.id.stream == Stream::Gaps {
            queue.held.push((sealed, rows));
        } else {
            self.enqueue(&mut queue, sealed, rows);
        }
    }

    fn enqueue(&self, queue: &mut Queue, sealed: Sealed, rows: RowsByNetns) {
        queue.encoded_bytes += sealed.encoded.len() as u64;
        queue.insert(Entry {
            id: sealed.id,
            rows: sealed.rows,
            first_ns: sealed.first_ns,
            last_ns: sealed.last_ns,
            namespaces: u32::try_from(rows.len()).unwrap_or(u32::MAX),
            counted: rows.into_iter().collect(),
            expires_at: None,
            is_sent: false,
            is_in_doubt: false,
            dropped: None,
            encoded: Some(sealed.encoded),
            place: None,
            left_in: None,
        });
        self.bound_memory(queue);
        self.appended.notify_one();
        self.work.notify_one();
    }

    /// A batch is about to be sent on the connection of now. While others can go, it is not dropped for want of memory:
    /// it may be stored already, and would be counted twice. False if it was dropped since [`Self::next`] gave it: it
    /// is in a gap, and must not be sent.
    pub fn sent(&self, position: u64) -> bool {
        let mut queue = self.lock();
        let entry = queue.entries.get_mut(&position);
        let Some(entry) = entry.filter(|entry| entry.dropped.is_none()) else {
            return false;
        };
        entry.is_sent = true;
        entry.is_in_doubt = true;
        true
    }

    /// A new connection: nothing was sent or told on it.
    pub fn nothing_sent(&self) {
        self.lock()
            .entries
            .values_mut()
            .for_each(|entry| entry.is_sent = false);
        self.counters.nothing_told();
    }

    /// The collector has acknowledged all of the batches in this connection's hello that the store has: what was not
    /// sent since is not there. What of it was dropped becomes a gap.
    pub fn nothing_else_is_stored(&self) {
        let mut queue = self.lock();
        let mut missing = Vec::new();
        for (&position, entry) in queue.entries.iter_mut().filter(|(_, entry)| !entry.is_sent) {
            entry.is_in_doubt = false;
            missing.extend(entry.dropped.map(|reason| (position, reason)));
        }
        for (position, reason) in missing {
            self.drop_entry(&mut queue, position, reason);
        }
    }

    /// What may be in flight at most, in bytes and what is charged beside them, so that there is always something unsent to
    /// drop.
    pub fn flight_bytes(&self) -> u64 {
        self.limits.memory_bytes / 2
    }

    /// The first batch behind a position, and its own position. Positions begin above zero.
    pub fn next(&self, after: u64) -> Option<(u64, Next)> {
        let queue = self.lock();
        let mut behind = queue.entries.range(after + 1..);
        let (&position, entry) = behind.find(|(_, entry)| entry.dropped.is_none())?;
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

    /// Whether [`Self::load`] may keep its thread waiting.
    pub fn reads_wait(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.reads_wait())
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
        let queue = self.lock();
        let held = queue.held.iter().map(|(sealed, _)| sealed.id);
        queue.entries.values().map(|entry| entry.id).chain(held).collect()
    }

    /// Whether batches pile up: many more than are ever on their way.
    pub fn is_behind(&self) -> bool {
        self.lock().entries.len() > PILE
    }

    /// Whether nothing waits for an answer, nor a batch of gaps for the books.
    pub fn is_drained(&self) -> bool {
        let queue = self.lock();
        queue.entries.is_empty() && queue.held.is_empty()
    }

    /// Takes over what an earlier start could not tell any more, and holds batches of gaps back from now on, until
    /// [`Self::release`].
    pub fn journal(&self, gaps: Vec<Gap>, gap_batches: Vec<Sealed>, left_behind: &[BatchId]) {
        let mut queue = self.lock();
        queue.is_journalled = true;
        queue.gaps.extend(gaps);
        for id in left_behind {
            let position = queue.places.get(id).copied();
            if let Some(entry) = position.and_then(|position| queue.remove(position)) {
                queue.leave_behind(&entry);
            }
        }
        for sealed in gap_batches {
            if !queue.places.contains_key(&sealed.id)
                && let Legacy::Rows(rows) = self.counters.adopt(&sealed)
            {
                queue.held.push((sealed, rows));
            }
        }
    }

    /// Adds gaps that came about elsewhere; more of the same is the same gap.
    pub fn add_gaps(&self, gaps: Vec<Gap>) {
        let mut queue = self.lock();
        for gap in gaps {
            let same = queue.gaps.iter_mut().find(|waiting| {
                Gap {
                    rows: gap.rows,
                    ..(*waiting).clone()
                } == gap
            });
            match same {
                Some(waiting) => waiting.rows += gap.rows,
                None => queue.gaps.push(gap),
            }
        }
    }

    /// What the next start must know, all of one moment; `epoch` is this start.
    pub fn books(&self, epoch: u64) -> Books {
        let queue = self.lock();
        let unsaved = queue.unsaved(epoch);
        let mut predecessors: Vec<_> = self.counters.predecessors().values().cloned().collect();
        for start in &mut predecessors {
            let unsaved_ns = unsaved.get(&start.epoch).copied();
            start.unsaved_ns = start.unsaved_ns.map(|ns| ns.min(unsaved_ns.unwrap_or(ns)));
        }
        let in_no_batch_ns = queue.in_no_batch_ns();
        let oldest_ns = queue.beginnings.first().map(|(first_ns, _)| *first_ns);
        let waiting = queue.of_gaps().filter(|entry| entry.place.is_none());
        let gap_batches = waiting
            .filter_map(Entry::sealed)
            .chain(queue.held.iter().map(|(sealed, _)| sealed.clone()));
        Books {
            stages: self.counters.stages(),
            predecessors,
            unsaved_ns: in_no_batch_ns
                .into_iter()
                .chain(unsaved.get(&epoch).copied())
                .min(),
            unanswered_ns: in_no_batch_ns.into_iter().chain(oldest_ns).min(),
            unanswered: queue.held_of(epoch),
            last_sequences: queue.last_sequences.clone(),
            gaps: queue.gaps.clone(),
            gap_batches: gap_batches.collect(),
            held: queue.held.len(),
            left_behind: queue
                .segments
                .values()
                .flat_map(|segment| segment.left_behind.iter().copied())
                .collect(),
        }
    }

    /// The first so many batches of gaps that were held back may go.
    pub fn release(&self, held: usize) {
        // At no moment is one in neither place.
        let mut queue = self.lock();
        let released: Vec<_> = queue.held.drain(..held).collect();
        for (sealed, rows) in released {
            self.enqueue(&mut queue, sealed, rows);
        }
    }

    /// The batches of earlier starts that nobody knows about, for the collector to say.
    pub fn unsettled(&self) -> Vec<BatchRange> {
        let queue = self.lock();
        let predecessors = self.counters.predecessors();
        predecessors
            .values()
            .flat_map(|start| start.unsettled(&queue.held_of(start.epoch)))
            .collect()
    }

    /// The earlier starts that are spoken for.
    pub fn predecessors(&self) -> Vec<u64> {
        self.counters.predecessors().keys().copied().collect()
    }

    /// The collector answered [`Self::unsettled`] and [`Self::predecessors`].
    pub fn settle(&self, welcome: &Welcome) {
        let mut queue = self.lock();
        let mut predecessors = self.counters.predecessors();
        for epoch in &welcome.recorded {
            if predecessors.get(epoch).is_some_and(|start| start.is_measured) {
                predecessors.remove(epoch);
                queue.count_no_more(*epoch);
            }
        }
        for start in predecessors.values_mut() {
            start.settle(&welcome.stored, &queue.held_of(start.epoch));
        }
    }

    /// What there is to tell of earlier starts on this connection.
    pub fn legacies(&self) -> Vec<Status> {
        self.counters.untold()
    }

    /// The gaps since the last call.
    pub fn take_gaps(&self) -> Vec<Gap> {
        let mut queue = self.lock();
        queue.runs.clear();
        std::mem::take(&mut queue.gaps)
    }

    /// Everything that the kernel made before `ns` was appended, and every attempt that was decided before `attempts_ns`.
    /// `batching_ns`: the earliest row that is in an open batch, of whatever stream.
    pub fn taken_until(&self, ns: u64, attempts_ns: u64, batching_ns: Option<u64>) {
        let mut queue = self.lock();
        (queue.taken_until_ns, queue.announced_until_ns) = (ns, attempts_ns);
        queue.batching_ns = batching_ns;
    }

    /// Up to when nothing waits: neither a batch for its answer, nor a gap for its batch.
    pub fn watermarks(&self) -> Watermarks {
        let queue = self.lock();
        let batches = queue
            .beginnings
            .first()
            .map(|(first_ns, _)| *first_ns)
            .into_iter();
        let gaps = queue.gaps.iter().map(|gap| gap.first_ns);
        let held = queue.held.iter().map(|(sealed, _)| sealed.first_ns);
        let oldest_ns = batches.chain(gaps).chain(held).min().unwrap_or(u64::MAX);
        let records_ns = queue.taken_until_ns.min(oldest_ns);
        Watermarks {
            records_ns,
            attempts_ns: queue.announced_until_ns.min(records_ns),
        }
    }

    /// Where the spool stands.
    pub fn levels(&self) -> Levels {
        let queue = self.lock();
        Levels {
            batches: queue.entries.len() as u64,
            memory_bytes: queue.memory_bytes(),
            disk_bytes: queue.disk_bytes(),
            disk_failed: self.disk_failed.load(Ordering::Relaxed),
        }
    }

    /// Drops what is older than the bound. To be called every now and then, with the boot clock and the wall clock, in
    /// nanoseconds since the Unix epoch.
    ///
    /// Drops what is too old. A batch ages by the boot clock, for the wall clock may be set: one that an earlier start left on
    /// this boot from when it was sealed, any other from when it is first seen here.
    pub fn expire(&self, boot_now: Duration) {
        let mut guard = self.lock();
        let queue = &mut *guard;
        let recovered = queue.recovered_position;
        for (&position, entry) in queue.entries.range_mut(queue.aged_position + 1..) {
            let expires_at = entry.expires_at.unwrap_or(boot_now + self.limits.age);
            entry.expires_at = Some(expires_at);
            if position <= recovered {
                queue.expiries.insert((expires_at, position));
            }
        }
        queue.aged_position = queue.last_position;
        let is_old = |entry: &Entry| entry.expires_at.is_some_and(|at| at <= boot_now);
        let own = queue.entries.range(recovered + 1..);
        let waiting = own.filter(|(_, entry)| entry.dropped.is_none());
        let expired = waiting
            .take_while(|(_, entry)| is_old(entry))
            .map(|(&position, _)| position);
        // What earlier starts left lies in no order of age: streams differ.
        let left = queue
            .expiries
            .iter()
            .take_while(|(expires_at, _)| *expires_at <= boot_now);
        let expired: Vec<_> = left.map(|&(_, position)| position).chain(expired).collect();
        for position in expired {
            self.drop_entry(queue, position, GapReason::SpoolFull);
        }
    }

    /// Writes what is in memory only, and frees what is answered; gives the number of bytes written.
    ///
    /// # Errors
    /// The disk's. Everything stays in memory then.
    pub fn persist(&self) -> io::Result<usize> {
        let Some(disk) = &self.disk else { return Ok(0) };
        // What was written of a batch that is dropped meanwhile must not come back at the next start. Nobody else writes
        // to segments, and whoever appends does not wait for the disk.
        if let Some((torn, bytes)) = self.torn() {
            disk.truncate(torn, bytes)?;
        }
        let (number, begin, batches) = {
            let mut queue = self.lock();
            queue.torn = None;
            let number = queue.segment_to_append(self.segment_bytes());
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
            self.lock().torn = Some(number);
            return Err(error);
        }
        let dead = {
            let mut queue = self.lock();
            queue.written(number, buffer.len() as u64, &places);
            self.bound_memory(&mut queue);
            self.bound_disk(&mut queue);
            queue.dead_segments(self.segment_bytes())
        };
        for number in dead {
            disk.remove(number)?;
            self.lock().forget_segment(number);
        }
        Ok(buffer.len())
    }

    /// The segment with something behind its end, and where that is.
    fn torn(&self) -> Option<(u64, u64)> {
        let queue = self.lock();
        let torn = queue.torn?;
        Some((torn, queue.segments.get(&torn)?.bytes))
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
                segment.unsynced_ns = None;
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
        let Some(entry) = entry else { return };
        self.counters.ended(id, &entry.rows_by_netns(), end);
        // One of gaps would be told by another that is refused likewise. And without a journal the next start would find a batch
        // that is on the disk, have it refused again, and tell of it again.
        let is_told_once = queue.is_journalled || self.disk.is_none();
        if end == End::Refused && id.stream != Stream::Gaps && is_told_once {
            queue.add_gap(&entry, GapReason::Refused);
            queue.leave_behind(&entry);
        }
    }

    fn drop_entry(&self, queue: &mut Queue, position: u64, reason: GapReason) {
        if queue.is_doubtful(position) {
            queue.strip(position, reason);
        } else if let Some(entry) = queue.remove(position) {
            self.counters
                .ended(entry.id, &entry.rows_by_netns(), End::Dropped);
            queue.add_gap(&entry, reason);
            queue.leave_behind(&entry);
        }
    }

    fn segment_bytes(&self) -> u64 {
        SEGMENT_BYTES.min(self.limits.disk_bytes / SEGMENTS_OF_A_DISK)
    }

    /// Forgets the bytes of what is on disk, oldest first, and drops what is not, until the memory is within its
    /// bound.
    fn bound_memory(&self, queue: &mut Queue) {
        let limit = self.limits.memory_bytes;
        if queue.memory_bytes() <= limit {
            return;
        }
        let mut excess = queue.memory_bytes() - limit;
        let on_disk = queue.evicted_position + 1..queue.written_position.max(queue.evicted_position) + 1;
        for (&position, entry) in queue.entries.range_mut(on_disk) {
            if excess == 0 {
                break;
            }
            if entry.id.stream != Stream::Gaps
                && let Some(encoded) = entry.encoded.take()
            {
                excess = excess.saturating_sub(encoded.len() as u64);
                queue.encoded_bytes -= encoded.len() as u64;
            }
            queue.evicted_position = position;
        }
        // Three quarters of the memory are for what is known of batches: of as many as that the disk can hold the bytes. Where
        // they are small, more do not fit, whatever the disk has left.
        while queue.memory_bytes() > limit && queue.known_bytes > limit / 4 * 3 {
            let present = queue.entries.iter().filter(|(_, entry)| entry.dropped.is_none());
            let Some(position) = first_to_drop(present) else {
                break;
            };
            self.drop_entry(queue, position, GapReason::SpoolFull);
        }
        while queue.memory_bytes() > limit {
            let unwritten = queue.entries.range(queue.evicted_position + 1..);
            let in_memory = unwritten.filter(|(_, entry)| entry.encoded.is_some());
            let Some(position) = first_to_drop(in_memory) else {
                break;
            };
            self.drop_entry(queue, position, GapReason::SpoolFull);
        }
    }

    /// Drops whole segments, oldest first, until the disk is within its bound. The gaps in them stay: they tell of what is
    /// dropped, and are a few.
    fn bound_disk(&self, queue: &mut Queue) {
        while queue.needed_bytes(self.segment_bytes()) > self.limits.disk_bytes {
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
                if !queue.unhouse(position) {
                    self.drop_entry(queue, position, GapReason::SpoolFull);
                }
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

/// Of entries in their order the oldest that was not sent, or else the oldest: what was sent may be stored. What tells of
/// those that were dropped goes last.
fn first_to_drop<'a>(mut entries: impl Iterator<Item = (&'a u64, &'a Box<Entry>)> + Clone) -> Option<u64> {
    let mut rows = entries
        .clone()
        .filter(|(_, entry)| entry.id.stream != Stream::Gaps);
    let unsent = rows.clone().find(|(_, entry)| !entry.is_sent);
    let first = unsent.or_else(|| rows.next()).or_else(|| entries.next());
    first.map(|(&position, _)| position)
}

impl Entry {
    fn rows_by_netns(&self) -> RowsByNetns {
        self.counted.iter().copied().collect()
    }

    /// Its rows by namespace; 0 where they are not told apart: it is not known, or calls are counted and not rows.
    fn rows_told_apart(&self) -> Vec<(u32, u64)> {
        let told: Vec<_> = self
            .counted
            .iter()
            .map(|&(netns, rows)| (netns, rows.all()))
            .collect();
        if told.iter().map(|(_, rows)| rows).sum::<u64>() == u64::from(self.rows) {
            told
        } else {
            vec![(0, self.rows.into())]
        }
    }

    /// What it takes in memory, the batch's own bytes aside.
    fn known_bytes(&self) -> u64 {
        ENTRY_BYTES + NAMESPACE_BYTES * u64::from(self.namespaces).saturating_sub(1)
    }

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
    fn memory_bytes(&self) -> u64 {
        self.encoded_bytes + self.known_bytes
    }

    /// Batches of gaps.
    fn of_gaps(&self) -> impl Iterator<Item = &Entry> {
        let named = self
            .names
            .iter()
            .filter(|((_, stream), _)| *stream == Stream::Gaps);
        let ids = named.flat_map(|(&(epoch, stream), sequences)| {
            sequences.numbers().map(move |sequence| BatchId {
                epoch,
                stream,
                sequence,
            })
        });
        ids.filter_map(|id| self.entries.get(self.places.get(&id)?).map(|entry| &**entry))
    }

    fn insert(&mut self, entry: Entry) {
        self.last_position += 1;
        self.known_bytes += entry.known_bytes();
        self.beginnings.insert((entry.first_ns, self.last_position));
        let names = self.names.entry((entry.id.epoch, entry.id.stream)).or_default();
        names.insert(entry.id.sequence);
        self.places.insert(entry.id, self.last_position);
        self.entries.insert(self.last_position, Box::new(entry));
    }

    fn remove(&mut self, position: u64) -> Option<Entry> {
        let mut entry = *self.entries.remove(&position)?;
        self.places.remove(&entry.id);
        self.unhoused.remove(&position);
        self.beginnings.remove(&(entry.first_ns, position));
        let key = (entry.id.epoch, entry.id.stream);
        if let Some(names) = self.names.get_mut(&key) {
            names.remove(entry.id.sequence);
            if names.is_empty() {
                self.names.remove(&key);
            }
        }
        self.forget_expiry(&entry, position);
        if entry.dropped.is_some() {
            self.doubts.remove(&position);
        } else {
            self.known_bytes -= entry.known_bytes();
        }
        self.release(&mut entry);
        Some(entry)
    }

    fn forget_expiry(&mut self, entry: &Entry, position: u64) {
        if position <= self.recovered_position
            && let Some(expires_at) = entry.expires_at
        {
            self.expiries.remove(&(expires_at, position));
        }
    }

    /// Whether the entry must wait for what the collector knows before it may be called missing.
    fn is_doubtful(&self, position: u64) -> bool {
        let is_in_doubt = |entry: &Entry| entry.is_in_doubt && entry.dropped.is_none();
        self.doubts.len() < MOST_DOUBTS
            && self
                .entries
                .get(&position)
                .is_some_and(|entry| is_in_doubt(entry))
    }

    /// Drops an entry's bytes, in memory and on disk, and leaves its name.
    fn strip(&mut self, position: u64, reason: GapReason) {
        let Some(mut entry) = self.entries.remove(&position) else {
            return;
        };
        self.release(&mut entry);
        self.unhoused.remove(&position);
        self.forget_expiry(&entry, position);
        self.known_bytes -= entry.known_bytes();
        entry.dropped = Some(reason);
        self.doubts.insert(position);
        self.entries.insert(position, entry);
    }

    /// Gives back what an entry occupies.
    fn release(&mut self, entry: &mut Entry) {
        self.encoded_bytes -= entry.encoded.take().map_or(0, |encoded| encoded.len() as u64);
        self.leave(entry);
    }

    /// Gives back an entry's place on disk.
    fn leave(&mut self, entry: &mut Entry) {
        if let Some(place) = entry.place.take()
            && let Some(segment) = self.segments.get_mut(&place.segment)
        {
            segment.unanswered -= 1;
            entry.left_in = Some(place.segment);
        }
    }

    /// Takes a batch of gaps out of its segment; false: it is another batch. Its bytes are in memory.
    fn unhouse(&mut self, position: u64) -> bool {
        let is_of_gaps = |entry: &Entry| entry.id.stream == Stream::Gaps && entry.encoded.is_some();
        if !self.entries.get(&position).is_some_and(|entry| is_of_gaps(entry)) {
            return false;
        }
        if let Some(mut entry) = self.entries.remove(&position) {
            self.leave(&mut entry);
            self.entries.insert(position, entry);
            self.unhoused.insert(position);
        }
        true
    }

    /// Remembers, for as long as the segment is there, that a batch in it is in a gap.
    fn leave_behind(&mut self, entry: &Entry) {
        if let Some(segment) = entry.left_in.and_then(|segment| self.segments.get_mut(&segment)) {
            segment.left_behind.push(entry.id);
        }
    }

    /// Takes in what an earlier start left in a segment. `expires_at`: when a batch is too old, by the boot clock, if that is
    /// known.
    /// False: batches that were written whole are lost. What was not written whole at the end is none: it was still in memory, or
    /// not safe from a loss of power.
    fn recover(
        &mut self,
        number: u64,
        bytes: &Bytes,
        counters: &Counters,
        expires_at: impl Fn(&Sealed) -> Option<Duration>,
    ) -> bool {
        let Scan {
            records,
            harmed,
            tail,
        } = segment::scan(bytes);
        let harmed_tail = if let Tail::Harmed(bytes) = tail { bytes } else { 0 };
        let harmed_bytes = harmed.iter().map(ExactSizeIterator::len).sum::<usize>() + harmed_tail;
        if harmed_bytes > 0 {
            tracing::error!(
                segment = number,
                bytes = harmed_bytes,
                batches = records.len(),
                "the disk has spoiled a part of the spool: what was in it is counted with the end of its start, the batches \
                 before and behind it are whole"
            );
        }
        if let Tail::Torn(bytes) = tail {
            tracing::warn!(
                segment = number,
                bytes,
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
            let Legacy::Rows(counted) = counters.adopt(&sealed) else {
                // The start after this one may find it still, and the account of its own start gone.
                let segment = self.segments.entry(number).or_default();
                segment.left_behind.push(sealed.id);
                continue;
            };
            self.segments.entry(number).or_default().unanswered += 1;
            let place = Place {
                segment: number,
                at: at as u64,
                bytes: record_bytes(&sealed),
            };
            // Not a part of the whole segment, which would stay in memory with it.
            let encoded = (sealed.id.stream == Stream::Gaps).then(|| Bytes::copy_from_slice(&sealed.encoded));
            self.encoded_bytes += encoded.as_ref().map_or(0, |encoded| encoded.len() as u64);
            self.insert(Entry {
                id: sealed.id,
                rows: sealed.rows,
                first_ns: sealed.first_ns,
                last_ns: sealed.last_ns,
                namespaces: u32::try_from(counted.len()).unwrap_or(u32::MAX),
                counted: counted.into_iter().collect(),
                expires_at: expires_at(&sealed),
                is_sent: false,
                is_in_doubt: true,
                dropped: None,
                encoded,
                place: Some(place),
                left_in: None,
            });
        }
        self.written_position = self.last_position;
        self.evicted_position = self.last_position;
        self.recovered_position = self.last_position;
        harmed_bytes == 0
    }

    /// Batches of gaps that left a segment which had to go lie behind later ones ([`Self::unhouse`]). What was read back is sent in its
    /// own order: a collector takes what comes after a later one for one that was answered.
    fn order_gaps(&mut self) {
        let of_gaps = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.id.stream == Stream::Gaps);
        let positions: Vec<u64> = of_gaps.map(|(&position, _)| position).collect();
        let mut entries = Vec::with_capacity(positions.len());
        for position in &positions {
            if let Some(entry) = self.entries.remove(position) {
                self.beginnings.remove(&(entry.first_ns, *position));
                entries.push(entry);
            }
        }
        entries.sort_by_key(|entry| (entry.id.epoch, entry.id.sequence));
        for (position, entry) in positions.into_iter().zip(entries) {
            self.beginnings.insert((entry.first_ns, position));
            self.places.insert(entry.id, position);
            self.entries.insert(position, entry);
        }
    }

    /// The segment that takes the next batches.
    fn segment_to_append(&mut self, segment_bytes: u64) -> u64 {
        if let Some(current) = self.current
            && self
                .segments
                .get(&current)
                .is_some_and(|segment| segment.bytes < segment_bytes)
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
        let unhoused = self
            .unhoused
            .iter()
            .filter_map(|position| self.entries.get_key_value(position));
        unhoused
            .chain(self.entries.range(self.written_position + 1..))
            .filter_map(|(&position, entry)| Some((position, entry.sealed()?)))
            .take_while(|(_, sealed)| {
                let fits = bytes == 0 || bytes + sealed.encoded.len() <= WRITE_BYTES;
                bytes += sealed.encoded.len();
                fits
            })
            .collect()
    }

    fn has_unwritten(&self) -> bool {
        let mut unwritten = self.entries.range(self.written_position + 1..);
        !self.unhoused.is_empty() || unwritten.any(|(_, entry)| entry.encoded.is_some())
    }

    /// When what is in no batch was made at the earliest: in the kernel's ring, or in an open batch. `None`: not known.
    fn in_no_batch_ns(&self) -> Option<u64> {
        let is_known = self.taken_until_ns > 0;
        let batching_ns = self.batching_ns.unwrap_or(u64::MAX);
        is_known.then_some(self.taken_until_ns.min(batching_ns))
    }

    /// When the earliest row was made of those batches, by start, that are not safe on a disk; `own` is this start, the only one
    /// whose batches are written. What tells of gaps is in the books.
    fn unsaved(&self, own: u64) -> BTreeMap<u64, u64> {
        // What had to go and is in doubt has no bytes any more.
        let doubtful = self
            .doubts
            .iter()
            .filter_map(|position| self.entries.get(position));
        let unwritten = self
            .entries
            .range(self.written_position + 1..)
            .map(|(_, entry)| entry);
        let entries = doubtful.chain(unwritten);
        let in_memory = entries
            .filter(|entry| entry.place.is_none() && entry.id.stream != Stream::Gaps)
            .map(|entry| (entry.id.epoch, entry.first_ns));
        let segments = self.segments.values();
        let unsynced = segments.filter_map(|segment| Some((own, segment.unsynced_ns?)));
        let mut unsaved = BTreeMap::new();
        for (epoch, first_ns) in in_memory.chain(unsynced) {
            let earliest_ns = unsaved.entry(epoch).or_insert(first_ns);
            *earliest_ns = first_ns.min(*earliest_ns);
        }
        unsaved
    }

    fn written(&mut self, number: u64, bytes: u64, places: &[(u64, Place)]) {
        let segment = self.segments.entry(number).or_default();
        segment.bytes += bytes;
        segment.is_synced &= bytes == 0;
        if let Some((last, _)) = places.last() {
            self.written_position = self.written_position.max(*last);
        }
        for (position, place) in places {
            self.unhoused.remove(position);
            // Batches of gaps are in the books until they are on disk, and would be as old as what they tell of.
            if let Some(entry) = self.entries.get(position)
                && entry.id.stream != Stream::Gaps
            {
                let unsynced_ns = segment.unsynced_ns.unwrap_or(u64::MAX);
                segment.unsynced_ns = Some(unsynced_ns.min(entry.first_ns));
            }
            // It may have been answered or dropped meanwhile.
            if let Some(entry) = self
                .entries
                .get_mut(position)
                .filter(|entry| entry.dropped.is_none())
            {
                entry.place = Some(*place);
                segment.unanswered += 1;
            }
        }
    }

    /// Whether a segment holds nothing that is needed, and will not be written to.
    fn is_dead(&self, number: u64, segment: &Segment, segment_bytes: u64) -> bool {
        segment.unanswered == 0
            && segment.bytes > 0
            && (self.current != Some(number) || segment.bytes >= segment_bytes)
    }

    /// Those that can be removed: what has to leave a segment is written elsewhere first.
    fn dead_segments(&self, segment_bytes: u64) -> Vec<u64> {
        let left = self
            .unhoused
            .iter()
            .filter_map(|position| self.entries.get(position));
        let left: BTreeSet<u64> = left.filter_map(|entry| entry.left_in).collect();
        let segments = self.segments.iter();
        segments
            .filter(|(number, segment)| self.is_dead(**number, segment, segment_bytes))
            .map(|(&number, _)| number)
            .filter(|number| !left.contains(number))
            .collect()
    }

    fn forget_segment(&mut self, number: u64) {
        self.segments.remove(&number);
        if self.current == Some(number) {
            self.current = None;
        }
    }

    /// Bytes of the segments that are not about to be removed.
    fn needed_bytes(&self, segment_bytes: u64) -> u64 {
        let segments = self.segments.iter();
        segments
            .filter(|(number, segment)| !self.is_dead(**number, segment, segment_bytes))
            .map(|(_, segment)| segment.bytes)
            .sum()
    }

    fn disk_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// The last word on a start is said: nobody counts what is left of it.
    fn count_no_more(&mut self, epoch: u64) {
        for entry in self.entries.values_mut().filter(|entry| entry.id.epoch == epoch) {
            entry.counted = Box::default();
        }
        for (_, rows) in self
            .held
            .iter_mut()
            .filter(|(sealed, _)| sealed.id.epoch == epoch)
        {
            rows.clear();
        }
    }

    /// The sequences of a start's batches without an answer, in order.
    fn held_of(&self, epoch: u64) -> Held {
        let first = (epoch, Stream::Unspecified);
        let mut held: Held = self
            .names
            .range(first..)
            .take_while(|((of, _), _)| *of == epoch)
            .map(|(&(_, stream), sequences)| (stream, sequences.clone()))
            .collect();
        for (sealed, _) in self.held.iter().filter(|(sealed, _)| sealed.id.epoch == epoch) {
            held.entry(sealed.id.stream)
                .or_default()
                .insert(sealed.id.sequence);
        }
        held
    }

    /// A batch is missing: its rows are added to the gaps of their namespaces where the batch right before it is missing too, for
    /// an hour without a collector is a gap of each stream and namespace, not ten thousand.
    fn add_gap(&mut self, entry: &Entry, reason: GapReason) {
        let id = entry.id;
        let run = self
            .runs
            .entry((id.epoch, id.stream, reason))
            .or_insert_with(|| Run {
                last_sequence: id.sequence,
                places: HashMap::new(),
            });
        if run.last_sequence + 1 != id.sequence {
            run.places.clear();
        }
        run.last_sequence = id.sequence;
        for (netns, rows) in entry.rows_told_apart() {
            let is_told_apart = run.places.contains_key(&netns) || run.places.len() < NAMESPACES_OF_A_RUN;
            let netns = if is_told_apart { netns } else { 0 };
            if let Some(gap) = run.places.get(&netns).map(|&place| &mut self.gaps[place]) {
                gap.last_sequence = id.sequence;
                gap.first_ns = gap.first_ns.min(entry.first_ns);
                gap.last_ns = gap.last_ns.max(entry.last_ns);
                gap.rows += rows;
                continue;
            }
            run.places.insert(netns, self.gaps.len());
            self.gaps.push(Gap {
                epoch: id.epoch,
                stream: id.stream,
                netns,
                first_sequence: id.sequence,
                last_sequence: id.sequence,
                first_ns: entry.first_ns,
                last_ns: entry.last_ns,
                rows,
                at_least: false,
                reason,
            });
        }
    }
}

/// Names batches by ranges: a day without a collector is one line, not a million.
pub(crate) fn ranges(ids: &[BatchId]) -> Vec<BatchRange> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    let mut ranges: Vec<BatchRange> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some(range)
                if (range.epoch, range.stream()) == (id.epoch, id.stream)
                    && range.last_sequence + 1 == id.sequence =>
            {
                range.last_sequence = id.sequence;
            }
            _ => ranges.push(BatchRange {
                epoch: id.epoch,
                stream: id.stream.into(),
                first_sequence: id.sequence,
                last_sequence: id.sequence,
            }),
        }
    }
    ranges
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
    let started = Instant::now();
    let mut upkeep = Upkeep::default();
    loop {
        let stopping = stop.load(Ordering::Acquire);
        let has_failed = !upkeep.step(spool, started.elapsed(), stopping);
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

/// What the writer does whenever it wakes. The time is an argument, so that the simulation can be the writer.
#[derive(Debug, Default)]
pub struct Upkeep {
    synced_at: Duration,
}

impl Upkeep {
    /// Writes what is unwritten at the monotonic time `now`, and syncs if that is due or this is the `last` time.
    /// False if the disk failed: then it is left alone for [`DISK_RETRY`].
    pub fn step(&mut self, spool: &Spool, now: Duration, last: bool) -> bool {
        // Without a disk nothing fails, and nothing comes to work again either.
        if spool.disk.is_none() {
            return true;
        }
        let result = self.write_and_sync(spool, now, last);
        let had_failed = spool.disk_failed.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) if !had_failed => {
                tracing::error!(
                    "the spool's disk fails: {error}; unanswered batches are kept in memory only"
                );
            }
            Ok(()) if had_failed => tracing::info!("the spool's disk works again"),
            _ => {}
        }
        result.is_ok()
    }

    fn write_and_sync(&mut self, spool: &Spool, now: Duration, last: bool) -> io::Result<()> {
        while spool.persist()? > 0 {}
        if last || now.saturating_sub(self.synced_at) >= spool.limits.sync {
            spool.sync()?;
            self.synced_at = now;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{OnceLock, Weak};

    use proptest::prelude::*;

    use holdfast_proto::v1::{Batch, StreamCounters};
    use prost::Message;

    use super::{disk::Folder, *};
    use crate::counters::Rows;

    const ROWS: u32 = 10;
    const BOOT: &str = "this boot";

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

    /// The same, and it says on which boot it was sealed, and how far the wall clock was ahead of that.
    fn dated(sequence: u64) -> Sealed {
        let clock_ns = 1_800_000_000_000_000_000;
        let batch = Batch {
            boot_id: BOOT.into(),
            clock_ns,
            ..Batch::default()
        };
        let sealed = sealed(1, sequence);
        Sealed {
            last_ns: clock_ns as u64 + sealed.last_ns,
            encoded: batch.encode_to_vec().into(),
            ..sealed
        }
    }

    fn open(limits: Limits, disk: Option<Box<dyn Disk>>) -> (Spool, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        (
            Spool::open(limits, BOOT, disk, Arc::clone(&counters)).expect("a spool"),
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

    /// Memory for so many of [`sealed`].
    const fn memory_for(batches: u64) -> u64 {
        batches * (1_000 + ENTRY_BYTES)
    }

    fn on_disk(path: &std::path::Path, limits: Limits) -> (Spool, Arc<Counters>) {
        open(limits, Some(Box::new(Folder::open(path).expect("a folder"))))
    }

    fn append(spool: &Spool, sealed: Sealed) {
        let rows = RowsByNetns::from([(
            1,
            Rows {
                ends: sealed.rows.into(),
                announced: 0,
            },
        )]);
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
                let (epoch, sequence) = (batch.id.epoch, batch.id.sequence);
                assert!(
                    batch == sealed(epoch, sequence) || batch == dated(sequence),
                    "byte for byte"
                );
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
    fn the_watermark_waits_for_answers_and_for_gaps() {
        let (spool, _) = in_memory(1 << 20);
        let at = |records_ns, attempts_ns| Watermarks {
            records_ns,
            attempts_ns,
        };
        assert_eq!(spool.watermarks(), at(0, 0));
        spool.taken_until(1_000, 900, None);
        assert_eq!(spool.watermarks(), at(1_000, 900));
        append(&spool, sealed(1, 3));
        append(&spool, sealed(1, 4));
        assert_eq!(spool.watermarks(), at(300, 300));
        spool.acknowledge(sealed(1, 3).id);
        assert_eq!(spool.watermarks(), at(400, 400));
        // What was dropped is a gap that nobody was told of yet.
        let age = spool.limits.age;
        spool.expire(Duration::ZERO);
        spool.expire(age);
        assert_eq!(spool.watermarks(), at(400, 400));
        assert_eq!(spool.take_gaps().len(), 1);
        assert_eq!(spool.watermarks(), at(1_000, 900));
    }

    #[test]
    fn a_full_memory_drops_the_oldest_batches_and_they_are_one_gap() {
        let (spool, counters) = in_memory(memory_for(2));
        for sequence in 1..=4 {
            append(&spool, sealed(1, sequence));
        }
        assert_eq!(sent(&spool), [(1, 3), (1, 4)]);
        let gap = Gap {
            epoch: 1,
            stream: Stream::Connections,
            netns: 1,
            first_sequence: 1,
            last_sequence: 2,
            first_ns: 100,
            last_ns: 299,
            rows: 20,
            at_least: false,
            reason: GapReason::SpoolFull,
        };
        assert_eq!(spool.take_gaps(), [gap]);
        assert_eq!(spool.take_gaps(), []);
        check(&counters, [20, 0, 20, 0]);
    }

    #[test]
    fn what_the_collector_refuses_is_a_gap_unless_it_tells_of_gaps_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits::default();
        let (spool, counters) = on_disk(folder.path(), limits);
        spool.journal(Vec::new(), Vec::new(), &[]);
        for sequence in 1..=4 {
            append(&spool, sealed(1, sequence));
        }
        let of_gaps = BatchId {
            stream: Stream::Gaps,
            ..id(9)
        };
        spool.append_new(Sealed {
            id: of_gaps,
            ..sealed(1, 9)
        });
        spool.release(1);
        spool.persist().expect("written");
        for refused in [id(2), id(3), id(3), of_gaps] {
            spool.refuse(refused);
        }
        spool.acknowledge(id(1));
        let gap = Gap {
            epoch: 1,
            stream: Stream::Connections,
            netns: 1,
            first_sequence: 2,
            last_sequence: 3,
            first_ns: 200,
            last_ns: 399,
            rows: 20,
            at_least: false,
            reason: GapReason::Refused,
        };
        assert_eq!(spool.take_gaps(), [gap]);
        assert_eq!(spool.unanswered(), [id(4)]);
        check(&counters, [10, 10, 0, 20]);

        let mut left_behind = spool.books(1).left_behind;
        drop(spool);
        // One start knows of the refusal by the account of the first, those after it do not.
        let account = Predecessor {
            epoch: 1,
            boot_id: BOOT.into(),
            observed_ns: 0,
            ended_ns: 0,
            unsaved_ns: None,
            unanswered_ns: None,
            is_clean: true,
            namespaces: BTreeMap::new(),
            open: BTreeMap::from([(Stream::Connections, Sequences::of([4]))]),
            is_measured: true,
            is_settled: false,
        };
        for known in [vec![account], Vec::new(), Vec::new()] {
            let counters = Arc::new(Counters::speaking_for(known));
            let disk = Folder::open(folder.path()).expect("a folder");
            let next = Spool::open(limits, BOOT, Some(Box::new(disk)), counters).expect("a spool");
            next.journal(Vec::new(), Vec::new(), &left_behind);
            let unanswered = next.unanswered();
            let refused = unanswered.iter().filter(|id| [2, 3].contains(&id.sequence));
            assert_eq!(refused.count(), 0, "it would be refused again, and a gap again");
            assert!(unanswered.contains(&id(4)), "{unanswered:?}");
            left_behind = next.books(2).left_behind;
        }
    }

    #[test]
    fn what_was_sent_is_dropped_last() {
        let (spool, counters) = in_memory(memory_for(2));
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
        // The first one may be stored: nobody has said yet that it is not.
        check(&counters, [30, 0, 10, 0]);
    }

    #[test]
    fn what_was_sent_and_had_to_go_is_missing_only_once_the_collector_does_not_know_it() {
        let (spool, counters) = in_memory(memory_for(2));
        append(&spool, sealed(1, 1));
        append(&spool, sealed(1, 2));
        spool.sent(1);
        spool.sent(2);
        append(&spool, sealed(1, 3));
        append(&spool, sealed(1, 4));
        // All of it was sent or is new: the new ones went first, then those that were sent.
        spool.sent(4);
        append(&spool, sealed(1, 5));
        append(&spool, sealed(1, 6));
        let before = counters.total();
        assert_eq!(before.dropped + before.unacknowledged, 60);
        // The connection breaks. The next hello still names what was sent, the collector knows the first one.
        spool.nothing_sent();
        assert!(spool.unanswered().contains(&id(1)) && spool.unanswered().contains(&id(2)));
        spool.acknowledge(id(1));
        spool.nothing_else_is_stored();
        let missing: u64 = spool.take_gaps().iter().map(|gap| gap.rows).sum();
        let stages = counters.total();
        assert_eq!((stages.acknowledged, stages.dropped), (10, missing));
        assert_eq!(
            stages.unacknowledged,
            10 * sent(&spool).len() as u64,
            "no doubts are left"
        );
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
        let nothing = Levels {
            disk_failed: true,
            ..Levels::default()
        };
        assert_eq!(spool.levels(), nothing);
    }

    #[test]
    fn where_there_is_no_disk_it_counts_as_failed_and_stays_so() {
        let (spool, _) = in_memory(1 << 20);
        append(&spool, sealed(1, 1));
        let mut upkeep = Upkeep::default();
        for second in 0..3 {
            assert!(spool.levels().disk_failed, "what waits is in memory only");
            assert!(upkeep.step(&spool, Duration::from_secs(second), false));
        }
        assert!(spool.levels().disk_failed);
        let folder = tempfile::tempdir().expect("a folder");
        assert!(!on_disk(folder.path(), Limits::default()).0.levels().disk_failed);
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
                memory_bytes: 2 * 30 * ENTRY_BYTES,
                ..Limits::default()
            },
        );
        for sequence in 1..=30 {
            append(&spool, sealed(1, sequence));
            spool.persist().expect("written");
        }
        assert_eq!(sent(&spool).len(), 30, "all of them, from memory and from disk");
        assert!(spool.levels().memory_bytes <= 2 * 30 * ENTRY_BYTES);
        check(&counters, [300, 0, 0, 0]);
    }

    #[test]
    fn a_full_disk_bound_drops_the_oldest_segment() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            memory_bytes: 1 << 20,
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
        assert!(levels.batches >= 16, "two segments of three are left: {levels:?}");
    }

    #[test]
    fn gaps_outlive_the_segment_that_they_were_in_and_every_other_batch() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            memory_bytes: memory_for(20),
            disk_bytes: 20_000,
            ..Limits::default()
        };
        let of_gaps = Sealed {
            id: BatchId {
                stream: Stream::Gaps,
                ..sealed(1, 1).id
            },
            ..sealed(1, 1)
        };
        let fill = |spool: &Spool, sequences: std::ops::RangeInclusive<u64>| {
            for sequence in sequences {
                append(spool, sealed(1, sequence));
                spool.persist().expect("written");
            }
        };
        let is_kept = |spool: &Spool| spool.unanswered().contains(&of_gaps.id);
        {
            let (spool, _) = on_disk(folder.path(), limits);
            spool.append_new(of_gaps.clone());
            spool.persist().expect("written");
            fill(&spool, 1..=100);
            assert!(is_kept(&spool));
        }
        // A crash: it is in a segment that is there, and stays.
        let (spool, _) = on_disk(folder.path(), limits);
        assert!(is_kept(&spool));
        fill(&spool, 101..=200);
        assert!(is_kept(&spool));
        let levels = spool.levels();
        assert!(levels.disk_bytes <= limits.disk_bytes, "{levels:?}");
        assert!(levels.memory_bytes <= limits.memory_bytes, "{levels:?}");

        // Where nothing else is left to drop, the bound holds nevertheless.
        let (spool, _) = in_memory(memory_for(2));
        for sequence in 1..=5 {
            spool.append_new(Sealed {
                id: BatchId {
                    sequence,
                    ..of_gaps.id
                },
                ..of_gaps.clone()
            });
        }
        assert_eq!(spool.levels().batches, 2);
    }

    #[test]
    fn gaps_that_left_their_segment_are_sent_in_their_order_after_a_crash() {
        let limits = Limits {
            disk_bytes: 6_000,
            ..Limits::default()
        };
        let of_gaps = |sequence| Sealed {
            id: BatchId {
                stream: Stream::Gaps,
                ..sealed(1, sequence).id
            },
            ..sealed(1, sequence)
        };
        let is_of_gaps = |id: &BatchId| id.stream == Stream::Gaps;
        let mut were_behind = 0;
        for length in 10..100 {
            let folder = tempfile::tempdir().expect("a folder");
            let (spool, _) = on_disk(folder.path(), limits);
            for sequence in 1..=length {
                if sequence == 1 || sequence == 20 {
                    spool.append_new(of_gaps(1 + sequence / 20));
                }
                append(&spool, sealed(1, sequence));
                spool.persist().expect("written");
            }
            drop(spool);
            let disk = Folder::open(folder.path()).expect("a folder");
            let segments = disk.list().expect("a folder");
            let written: Vec<_> = segments
                .into_iter()
                .flat_map(|number| segment::scan(&disk.read(number).expect("a segment")).records)
                .map(|(_, sealed)| sealed.id)
                .filter(is_of_gaps)
                .map(|id| id.sequence)
                .collect();
            drop(disk);
            were_behind += usize::from(written.last() == Some(&1) && written.contains(&2));
            let (spool, _) = on_disk(folder.path(), limits);
            let sent: Vec<_> = spool.unanswered().into_iter().filter(is_of_gaps).collect();
            assert!(
                sent.is_sorted_by_key(|id| id.sequence),
                "{length}: {sent:?}, written {written:?}"
            );
        }
        assert!(were_behind > 0, "on disk none came to lie behind a later one");
    }

    #[test]
    fn a_small_disk_is_not_emptied_when_it_is_full() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            disk_bytes: 20_000,
            ..Limits::default()
        };
        let (spool, _) = on_disk(folder.path(), limits);
        for sequence in 1..=40 {
            append(&spool, sealed(1, sequence));
            spool.persist().expect("written");
        }
        let levels = spool.levels();
        assert!(levels.disk_bytes <= limits.disk_bytes, "{levels:?}");
        assert!(levels.batches >= 14, "{levels:?}");
    }

    #[test]
    fn what_was_dropped_while_the_uplink_waited_is_not_sent() {
        let (spool, _) = in_memory(memory_for(2));
        append(&spool, sealed(1, 1));
        let (position, _) = spool.next(0).expect("a batch");
        for sequence in 2..=40 {
            append(&spool, sealed(1, sequence));
        }
        assert!(!spool.take_gaps().is_empty() && !spool.sent(position));
        let (position, _) = spool.next(position).expect("a later batch");
        assert!(spool.sent(position));
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
        let at = Duration::from_nanos;
        for sequence in 1..=10 {
            append(&spool, sealed(1, sequence));
            spool.expire(at(sequence * 100));
        }
        spool.expire(at(1_000));
        assert_eq!(sent(&spool).first(), Some(&(1, 6)));
        check(&counters, [50, 0, 50, 0]);
    }

    #[test]
    fn what_an_earlier_start_left_on_this_boot_is_as_old_as_it_is_and_of_another_one_as_if_it_came_now() {
        let at = Duration::from_nanos;
        let limits = Limits {
            age: at(500),
            ..Limits::default()
        };
        let folder = tempfile::tempdir().expect("a folder");
        let open = |boot_id| {
            let disk: Box<dyn Disk> = Box::new(Folder::open(folder.path()).expect("a folder"));
            Spool::open(limits, boot_id, Some(disk), Arc::default()).expect("a spool")
        };
        {
            let first = open(BOOT);
            (1..=4).for_each(|sequence| first.append(dated(sequence), RowsByNetns::new()));
            first.persist().expect("written");
        }
        // Sealed at 199, 299, 399 and 499 by the boot clock.
        let next = open(BOOT);
        next.expire(at(699));
        assert_eq!(sent(&next).first(), Some(&(1, 2)));
        next.expire(at(799));
        assert_eq!(sent(&next).first(), Some(&(1, 3)));
        drop(next);

        let rebooted = open("another boot");
        rebooted.expire(at(5_000));
        rebooted.expire(at(5_499));
        assert_eq!(sent(&rebooted).len(), 4);
        rebooted.expire(at(5_500));
        assert!(sent(&rebooted).is_empty());
    }

    #[test]
    fn what_is_in_a_gap_and_on_the_disk_is_not_found_by_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits::default();
        let of_listeners = |sequence| {
            let sealed = sealed(1, sequence);
            let id = BatchId {
                stream: Stream::Listeners,
                ..sealed.id
            };
            Sealed { id, ..sealed }
        };
        let unanswered = |spool: &Spool| -> Vec<u64> {
            let ids = spool.unanswered();
            ids.iter().map(|id| id.sequence).collect()
        };
        let mut left_behind = {
            let (first, _) = on_disk(folder.path(), limits);
            for sequence in 1..=3 {
                first.append_new(of_listeners(sequence));
            }
            first.persist().expect("written");
            first.expire(Duration::ZERO);
            first.append_new(of_listeners(4));
            first.expire(limits.age);
            first.persist().expect("written");
            assert_eq!((unanswered(&first), first.take_gaps().len()), (vec![4], 1));
            first.books(1).left_behind
        };
        for _ in 0..2 {
            let (next, _) = on_disk(folder.path(), limits);
            assert_eq!(unanswered(&next), [1, 2, 3, 4]);
            next.journal(Vec::new(), Vec::new(), &left_behind);
            assert_eq!(unanswered(&next), [4]);
            left_behind = next.books(2).left_behind;
            assert_eq!(left_behind.len(), 3);
        }
    }

    #[test]
    fn what_comes_into_being_as_a_batch_is_counted_from_then_on_and_by_the_next_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits::default();
        let origin = (Stream::Listeners, 0);
        let look = |sequence| {
            let mut look = sealed(1, sequence);
            look.id.stream = Stream::Listeners;
            look
        };
        let counters = {
            let (first, counters) = on_disk(folder.path(), limits);
            (1..=4).for_each(|sequence| first.append_new(look(sequence)));
            first.persist().expect("written");
            first.acknowledge(look(1).id);
            let books = first.books(1);
            assert_eq!(books.unanswered[&Stream::Listeners], Sequences::of([2, 3, 4]));
            assert_eq!(books.last_sequences[&Stream::Listeners], 4);
            let stages = counters.stages()[&origin];
            assert_eq!(
                (stages.received, stages.unacknowledged, stages.acknowledged),
                (40, 30, 10)
            );
            stages.counters(origin.0, origin.1)
        };
        // Of 4 the state says that it was answered, but the disk has it still.
        let predecessor = Predecessor {
            epoch: 1,
            boot_id: "boot".into(),
            observed_ns: 0,
            ended_ns: 0,
            unsaved_ns: None,
            unanswered_ns: None,
            is_clean: false,
            namespaces: BTreeMap::from([(
                origin,
                crate::predecessor::Namespace {
                    counters: StreamCounters {
                        opened: 40,
                        unacknowledged: 0,
                        ..counters
                    },
                    ..Default::default()
                },
            )]),
            open: BTreeMap::from([(Stream::Listeners, Sequences::of([2, 3]))]),
            is_measured: true,
            is_settled: false,
        };
        let counters = Arc::new(Counters::speaking_for(vec![predecessor]));
        let disk = Folder::open(folder.path()).expect("a folder");
        let next = Spool::open(limits, BOOT, Some(Box::new(disk)), Arc::clone(&counters)).expect("a spool");
        let waiting: Vec<_> = next.unanswered().iter().map(|id| id.sequence).collect();
        assert_eq!(waiting, [2, 3], "1 and 4 are in a counter for good");
        next.acknowledge(look(2).id);
        next.refuse(look(3).id);
        let start = counters.predecessors()[&1].clone();
        let of_look = start.namespaces[&origin].counters;
        assert_eq!(
            (of_look.unacknowledged, of_look.acknowledged, of_look.refused),
            (0, 20, 10)
        );
        assert!(start.is_empty() && counters.stages().is_empty());
    }

    #[test]
    fn what_is_left_of_a_start_whose_last_word_is_said_is_counted_no_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let left = {
            let (first, _) = on_disk(folder.path(), Limits::default());
            let mut look = sealed(1, 1);
            look.id.stream = Stream::Listeners;
            first.append_new(look.clone());
            first.persist().expect("written");
            look.id
        };
        let predecessor = Predecessor {
            epoch: 1,
            boot_id: "boot".into(),
            observed_ns: 0,
            ended_ns: 0,
            unsaved_ns: None,
            unanswered_ns: None,
            is_clean: true,
            namespaces: BTreeMap::new(),
            open: BTreeMap::from([(Stream::Listeners, Sequences::of([1]))]),
            is_measured: true,
            is_settled: false,
        };
        let counters = Arc::new(Counters::speaking_for(vec![predecessor]));
        let disk = Folder::open(folder.path()).expect("a folder");
        let next = Spool::open(
            Limits::default(),
            BOOT,
            Some(Box::new(disk)),
            Arc::clone(&counters),
        )
        .expect("a spool");
        assert!(!next.is_drained());
        next.settle(&Welcome {
            recorded: vec![1],
            ..Welcome::default()
        });
        assert!(counters.predecessors().is_empty());
        next.acknowledge(left);
        assert!(next.is_drained() && counters.stages().is_empty());
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
        fn truncate(&self, segment: u64, bytes: u64) -> io::Result<()> {
            self.0.truncate(segment, bytes)
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

    /// A disk whose next write breaks off at its end, when all is written. It calls nothing while the queue is locked.
    struct OnceFull(Folder, AtomicBool, Arc<OnceLock<Weak<Spool>>>);

    impl Disk for OnceFull {
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
            self.0.append(segment, bytes)?;
            if self.1.swap(false, Ordering::Relaxed) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(())
        }
        fn truncate(&self, segment: u64, bytes: u64) -> io::Result<()> {
            let spool = self.2.get().and_then(Weak::upgrade).expect("its spool");
            assert!(
                spool.queue.try_lock().is_ok(),
                "whoever appends would wait for the disk"
            );
            self.0.truncate(segment, bytes)
        }
        fn sync(&self, segment: u64) -> io::Result<()> {
            self.0.sync(segment)
        }
        fn remove(&self, segment: u64) -> io::Result<()> {
            self.0.remove(segment)
        }
    }

    fn unsaved(spool: &Spool) -> (Option<u64>, Option<u64>) {
        let books = spool.books(1);
        (books.unsaved_ns, books.unanswered_ns)
    }

    #[test]
    fn the_books_say_since_when_what_was_made_may_be_lost() {
        let folder = tempfile::tempdir().expect("a folder");
        let (spool, _) = on_disk(folder.path(), Limits::default());
        assert_eq!(unsaved(&spool), (None, None));
        spool.taken_until(10_000, 10_000, None);
        assert_eq!(unsaved(&spool), (Some(10_000), Some(10_000)));
        append(&spool, sealed(1, 3));
        append(&spool, sealed(1, 4));
        assert_eq!(unsaved(&spool), (Some(300), Some(300)), "in memory");
        spool.persist().expect("written");
        assert_eq!(
            unsaved(&spool),
            (Some(300), Some(300)),
            "a loss of power takes it"
        );
        spool.sync().expect("synced");
        assert_eq!(unsaved(&spool), (Some(10_000), Some(300)));
        append(&spool, sealed(1, 2));
        assert_eq!(unsaved(&spool), (Some(200), Some(200)));
        spool.acknowledge(id(2));
        spool.taken_until(10_000, 10_000, Some(9_000));
        assert_eq!(unsaved(&spool), (Some(9_000), Some(300)), "an open batch");
        // What tells of gaps is in the books, however old these are.
        let mut of_gaps = sealed(1, 1);
        of_gaps.id.stream = Stream::Gaps;
        spool.append_new(of_gaps);
        assert_eq!(unsaved(&spool).0, Some(9_000));
        spool.persist().expect("written");
        assert_eq!(unsaved(&spool).0, Some(9_000));
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_unsaved_for_as_long_as_it_waits() {
        let folder = tempfile::tempdir().expect("a folder");
        let disk = FullDisk(Folder::open(folder.path()).expect("a folder"));
        let (spool, _) = open(Limits::default(), Some(Box::new(disk)));
        for sequence in 2..=9 {
            append(&spool, sealed(1, sequence));
            spool.persist().expect_err("a full disk");
        }
        spool.taken_until(90_000, 90_000, None);
        assert_eq!(unsaved(&spool).0, Some(200));
        spool.acknowledge(id(2));
        assert_eq!(unsaved(&spool).0, Some(300));
    }

    #[test]
    fn what_had_to_go_and_is_in_doubt_is_unsaved_of_whatever_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let account = |unsaved_ns| Predecessor {
            epoch: 1,
            boot_id: BOOT.into(),
            observed_ns: 5_000,
            ended_ns: 5_000,
            unsaved_ns,
            unanswered_ns: Some(100),
            is_clean: false,
            namespaces: BTreeMap::new(),
            open: BTreeMap::from([(Stream::Connections, Sequences::of([1, 2]))]),
            is_measured: true,
            is_settled: false,
        };
        {
            let (first, _) = on_disk(folder.path(), Limits::default());
            append(&first, sealed(1, 1));
            append(&first, sealed(1, 2));
            first.persist().expect("written");
        }
        let counters = Arc::new(Counters::speaking_for(vec![account(Some(4_000))]));
        let disk = Folder::open(folder.path()).expect("a folder");
        let spool = Spool::open(Limits::default(), BOOT, Some(Box::new(disk)), counters).expect("a spool");
        let of_first = |spool: &Spool| spool.books(2).predecessors[0].unsaved_ns;
        assert_eq!(of_first(&spool), Some(4_000));
        let age = spool.limits.age;
        spool.expire(Duration::ZERO);
        spool.expire(age);
        assert_eq!(spool.unanswered().len(), 2, "the store may have them");
        assert_eq!(
            of_first(&spool),
            Some(100),
            "and if not, they may end with this start"
        );
    }

    #[test]
    fn what_a_bad_disk_has_spoiled_costs_what_it_spoiled_and_its_start_says_how_old_that_may_be() {
        let open_harmed = |harm: &dyn Fn(&mut Vec<u8>)| {
            let folder = tempfile::tempdir().expect("a folder");
            {
                let (first, _) = on_disk(folder.path(), Limits::default());
                (1..=4).for_each(|sequence| append(&first, sealed(1, sequence)));
                first.persist().expect("written");
            }
            let file = folder.path().join(format!("{:020}.segment", 1));
            let mut bytes = std::fs::read(&file).expect("a segment");
            harm(&mut bytes);
            std::fs::write(&file, bytes).expect("written");
            let account = Predecessor {
                epoch: 1,
                boot_id: BOOT.into(),
                observed_ns: 5_000,
                ended_ns: 5_000,
                unsaved_ns: Some(4_000),
                unanswered_ns: Some(100),
                is_clean: false,
                namespaces: BTreeMap::new(),
                open: BTreeMap::from([(Stream::Connections, Sequences::of([1, 2, 3, 4]))]),
                is_measured: true,
                is_settled: false,
            };
            let counters = Arc::new(Counters::speaking_for(vec![account]));
            let disk = Folder::open(folder.path()).expect("a folder");
            let limits = Limits::default();
            let next =
                Spool::open(limits, BOOT, Some(Box::new(disk)), Arc::clone(&counters)).expect("a spool");
            let unsaved_ns = counters.predecessors()[&1].unsaved_ns;
            let sequences: Vec<_> = sent(&next).into_iter().map(|(_, sequence)| sequence).collect();
            let asked: Vec<_> = next
                .unsettled()
                .iter()
                .map(|range| range.first_sequence)
                .collect();
            (sequences, asked, unsaved_ns)
        };
        let record = record_bytes(&sealed(1, 1));
        let whole = open_harmed(&|_| {});
        assert_eq!(whole, (vec![1, 2, 3, 4], vec![], Some(4_000)));
        let body = open_harmed(&|bytes| bytes[record + 500] ^= 4);
        assert_eq!(body, (vec![1, 3, 4], vec![2], Some(100)));
        let length = open_harmed(&|bytes| bytes[record + 5] ^= 4);
        assert_eq!(length, body);
        // What was not written whole was not on the disk by the books either.
        let torn = open_harmed(&|bytes| bytes.truncate(3 * record + 60));
        assert_eq!(torn, (vec![1, 2, 3], vec![4], Some(4_000)));
    }

    #[test]
    fn what_a_failed_write_left_does_not_come_back_once_it_was_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let user = Arc::new(OnceLock::new());
        let disk = OnceFull(
            Folder::open(folder.path()).expect("a folder"),
            AtomicBool::new(true),
            Arc::clone(&user),
        );
        let limits = Limits {
            memory_bytes: memory_for(1),
            ..Limits::default()
        };
        let spool = Arc::new(open(limits, Some(Box::new(disk))).0);
        user.set(Arc::downgrade(&spool)).expect("the only one");
        append(&spool, sealed(1, 1));
        spool.persist().expect_err("a full disk");
        append(&spool, sealed(1, 2));
        assert_eq!(spool.take_gaps().len(), 1, "the first one had to go");
        spool.persist().expect("written");
        drop(spool);
        let (spool, _) = on_disk(folder.path(), limits);
        assert_eq!(sent(&spool), [(1, 2)]);
    }

    #[test]
    fn of_what_earlier_starts_left_the_old_goes_wherever_it_lies() {
        let folder = tempfile::tempdir().expect("a folder");
        let limits = Limits {
            age: Duration::from_nanos(500),
            ..Limits::default()
        };
        {
            let (first, _) = on_disk(folder.path(), limits);
            [9, 1, 8, 2]
                .into_iter()
                .for_each(|sequence| append(&first, dated(sequence)));
            first.persist().expect("written");
        }
        let (next, _) = on_disk(folder.path(), limits);
        append(&next, sealed(2, 1));
        next.expire(Duration::from_nanos(sealed(1, 2).last_ns + 500));
        assert_eq!(sent(&next), [(1, 9), (1, 8), (2, 1)]);
    }

    #[test]
    fn streams_that_are_dropped_by_turns_make_one_gap_each() {
        let (spool, _) = in_memory(0);
        for sequence in 1..=20 {
            append(&spool, sealed(1, sequence));
            let mut other = sealed(1, sequence);
            other.id.stream = Stream::Listeners;
            spool.append_new(other);
        }
        let gaps = spool.take_gaps();
        assert_eq!(gaps.len(), 2, "{gaps:?}");
        assert!(
            gaps.iter()
                .all(|gap| (gap.first_sequence, gap.last_sequence, gap.rows) == (1, 20, 200))
        );
    }

    /// Appends a batch with so many rows of each namespace.
    fn append_of(spool: &Spool, sequence: u64, rows: &[(u32, u64)]) {
        let ends = |&(netns, ends): &(u32, u64)| (netns, Rows { ends, announced: 0 });
        let by_netns: RowsByNetns = rows.iter().map(ends).collect();
        spool.counters.received(&by_netns);
        let batch = Sealed {
            rows: rows.iter().map(|(_, rows)| *rows as u32).sum(),
            ..sealed(1, sequence)
        };
        spool.append(batch, by_netns);
    }

    /// Namespace, first and last sequence, and rows of each gap.
    fn told(spool: &Spool) -> Vec<(u32, u64, u64, u64)> {
        let gaps = spool.take_gaps();
        gaps.iter()
            .map(|gap| (gap.netns, gap.first_sequence, gap.last_sequence, gap.rows))
            .collect()
    }

    #[test]
    fn what_is_missing_is_told_by_namespace() {
        let (spool, _) = in_memory(0);
        append_of(&spool, 1, &[(7, 2), (8, 3)]);
        append_of(&spool, 2, &[(7, 1)]);
        append_of(&spool, 3, &[(8, 5), (9, 1)]);
        assert_eq!(told(&spool), [(7, 1, 2, 3), (8, 1, 3, 8), (9, 3, 3, 1)]);
        // The gaps of before are told: those that follow are others.
        append_of(&spool, 4, &[(7, 1)]);
        assert_eq!(told(&spool), [(7, 4, 4, 1)]);
    }

    #[test]
    fn a_batch_that_is_not_missing_is_between_two_gaps_of_each_namespace() {
        let (spool, _) = in_memory(1 << 20);
        for sequence in 1..=5 {
            append_of(&spool, sequence, &[(7, 1), (8, 1 + sequence % 2)]);
        }
        spool.acknowledge(id(3));
        let age = spool.limits.age;
        spool.expire(Duration::ZERO);
        spool.expire(age);
        let expected = [(7, 1, 2, 2), (8, 1, 2, 3), (7, 4, 5, 2), (8, 4, 5, 3)];
        assert_eq!(told(&spool), expected);
    }

    #[test]
    fn of_more_namespaces_than_can_be_told_the_rest_is_told_together() {
        let (spool, counters) = in_memory(0);
        let most = NAMESPACES_OF_A_RUN as u32;
        let rows: Vec<_> = (1..=most + 50).map(|netns| (netns, 2)).collect();
        append_of(&spool, 1, &rows);
        append_of(&spool, 2, &rows);
        let told = told(&spool);
        assert_eq!(told.len(), NAMESPACES_OF_A_RUN + 1);
        assert_eq!(told.last(), Some(&(0, 1, 2, 200)));
        let rows: u64 = told.iter().map(|(.., rows)| rows).sum();
        assert_eq!(rows, counters.total().dropped);
    }

    #[test]
    fn what_nobody_speaks_for_and_calls_are_told_of_no_namespace() {
        let (spool, _) = in_memory(0);
        spool.append(sealed(1, 1), RowsByNetns::new());
        let of_calls = Sealed {
            id: BatchId {
                stream: Stream::Syscalls,
                ..id(1)
            },
            ..sealed(1, 1)
        };
        let calls = RowsByNetns::from([(
            0,
            Rows {
                ends: 5_000,
                announced: 0,
            },
        )]);
        spool.counters.received_calls(5_000);
        spool.append(of_calls, calls);
        assert_eq!(told(&spool), [(0, 1, 1, 10), (0, 1, 1, 10)]);
    }

    proptest! {
        /// Whatever happens in whatever order, every batch is waiting, answered or in a gap, and comes back whole
        /// after a crash if it was written.
        #[test]
        fn no_batch_disappears(steps in prop::collection::vec((0..6_u8, 1..60_u64), 1..80)) {
            let folder = tempfile::tempdir().expect("a folder");
            let limits = Limits { memory_bytes: memory_for(8) + 2 * 40 * ENTRY_BYTES, disk_bytes: 30_000, ..Limits::default() };
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
                // A collector that knows nothing.
                spool.nothing_else_is_stored();
                gone += spool.take_gaps().iter().map(|gap| gap.rows / u64::from(ROWS)).sum::<u64>();
                prop_assert_eq!(spool.levels().batches + answered + gone, appended);
            }
        }
    }
}
