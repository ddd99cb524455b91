//! An agent's disk in memory. It forgets what was not synced when power is lost, keeps everything when only the
//! process is killed, and fails, fills up and rots on demand.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use fastrand::Rng;
use holdfast_agent::spool::disk::Disk;

use crate::oracle::BatchName;

/// The header of a record in a segment, as the spool writes it: where length and name are.
const HEADER_BYTES: usize = 52;

/// The disk of one node; its copies are the same disk.
#[derive(Clone)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>);

struct State {
    rng: Rng,
    segments: BTreeMap<u64, Segment>,
    health: Health,
}

#[derive(Clone, Default)]
struct Segment {
    bytes: Vec<u8>,
    synced: usize,
    /// Whether the folder's entry was ever synced.
    is_listed: bool,
    /// The records that were written whole: where each is, and its name.
    records: Vec<(Range<usize>, BatchName)>,
    /// What is not what was written.
    rotten: Vec<Range<usize>>,
}

/// How the disk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Well,
    /// Takes a part of what is written.
    Full,
    /// Gives, and takes nothing.
    ReadOnly,
}

/// What ends an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process; the system goes on and writes what it was given.
    Killed,
    /// The machine.
    PowerLost,
}

impl MemoryDisk {
    pub(crate) fn new(rng: Rng) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng,
            segments: BTreeMap::new(),
            health: Health::Well,
        })))
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.lock().health = health;
    }

    /// The batches whose records are whole.
    pub(crate) fn durable(&self) -> BTreeSet<BatchName> {
        let state = self.lock();
        let records = state.segments.values().flat_map(|segment| {
            let whole = segment.records.iter().filter(|(at, _)| !segment.is_rotten(at));
            whole.map(|(_, name)| *name)
        });
        records.collect()
    }

    /// Whether a record can be lost for another reason than that it was not written.
    pub(crate) fn is_rotten(&self) -> bool {
        self.lock()
            .segments
            .values()
            .any(|segment| !segment.rotten.is_empty())
    }

    /// What a crash leaves.
    pub(crate) fn crash(&self, crash: Crash) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if crash == Crash::Killed {
            return;
        }
        let rng = &mut state.rng;
        state.segments.retain(|_, segment| {
            let unsynced = segment.bytes.len() - segment.synced;
            let kept = segment.synced + rng.usize(0..=unsynced);
            // A file can be as long as it was, with zeros where its data never arrived.
            if kept < segment.bytes.len() && rng.bool() {
                segment.bytes[kept..].fill(0);
                segment.rotten.push(kept..segment.bytes.len());
            } else {
                segment.bytes.truncate(kept);
            }
            let length = segment.bytes.len();
            segment.records.retain(|(at, _)| at.end <= length);
            segment.synced = length;
            segment.is_listed || rng.bool()
        });
        state
            .segments
            .values_mut()
            .for_each(|segment| segment.is_listed = true);
    }

    /// Flips a bit somewhere; gives the batches that may be lost by it.
    pub(crate) fn rot(&self) -> Vec<BatchName> {
        let mut guard = self.lock();
        let State { rng, segments, .. } = &mut *guard;
        let mut full: Vec<_> = segments
            .values_mut()
            .filter(|segment| !segment.bytes.is_empty())
            .collect();
        if full.is_empty() {
            return Vec::new();
        }
        let chosen = rng.usize(0..full.len());
        let segment = &mut full[chosen];
        let place = rng.usize(0..segment.bytes.len());
        segment.bytes[place] ^= 1 << rng.u32(0..8);
        segment.rotten.push(place..place + 1);
        let harmed = segment.records.iter().filter(|(at, _)| at.contains(&place));
        harmed.map(|(_, name)| *name).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Segment {
    fn is_rotten(&self, at: &Range<usize>) -> bool {
        let overlaps = |rotten: &Range<usize>| rotten.start < at.end && at.start < rotten.end;
        self.rotten.iter().any(overlaps)
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match self.health {
            Health::ReadOnly => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            Health::Well | Health::Full => Ok(()),
        }
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.lock().segments.keys().copied().collect())
    }

    fn read(&self, segment: u64) -> io::Result<Bytes> {
        let state = self.lock();
        let found = state.segments.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        Ok(found.bytes.clone().into())
    }

    fn read_part(&self, segment: u64, at: u64, bytes: usize) -> io::Result<Bytes> {
        let state = self.lock();
        let found = state.segments.get(&segment).ok_or(io::ErrorKind::NotFound)?;
        let part = found.bytes.get(at as usize..at as usize + bytes);
        Ok(Bytes::copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?))
    }

    fn append(&self, segment: u64, bytes: &[u8]) -> io::Result<()> {
        let mut guard = self.lock();
        guard.check()?;
        let state = &mut *guard;
        let taken = if state.health == Health::Full {
            state.rng.usize(0..bytes.len())
        } else {
            bytes.len()
        };
        let found = state.segments.entry(segment).or_default();
        let begin = found.bytes.len();
        found.bytes.extend_from_slice(&bytes[..taken]);
        let mut at = 0;
        while at < bytes.len() {
            let (name, length) = record(&bytes[at..]);
            if at + length <= taken {
                found.records.push((begin + at..begin + at + length, name));
            }
            at += length;
        }
        if taken < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn truncate(&self, segment: u64, bytes: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.check()?;
        let found = state.segments.entry(segment).or_default();
        let bytes = bytes as usize;
        found.bytes.truncate(bytes);
        found.synced = found.synced.min(bytes);
        found.records.retain(|(at, _)| at.end <= bytes);
        found.rotten.retain(|rotten| rotten.start < bytes);
        Ok(())
    }

    fn sync(&self, segment: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.check()?;
        state
            .segments
            .values_mut()
            .for_each(|segment| segment.is_listed = true);
        let found = state.segments.get_mut(&segment).ok_or(io::ErrorKind::NotFound)?;
        found.synced = found.bytes.len();
        Ok(())
    }

    fn remove(&self, segment: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.check()?;
        let found = state.segments.remove(&segment);
        found.map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn reads_wait(&self) -> bool {
        false
    }
}

/// The name and the length of the record that begins here.
fn record(bytes: &[u8]) -> (BatchName, usize) {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!(&bytes[..3], b"HFS", "a record of the spool");
    let name = BatchName {
        epoch: long(12),
        stream: word(48) as i32,
        sequence: long(20),
    };
    (name, HEADER_BYTES + word(4) as usize)
}
