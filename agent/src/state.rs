//! What the agent keeps on disk from one start to the next: the number of its last start, what it counted, and its
//! spool.
//!
//! What was counted is written once a second, whole or not at all, so that the next start can say what became of every
//! row of one that was killed ([`crate::predecessor`]).

mod slots;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context;
use holdfast_proto::v1::{BatchRange, SealedBatch, Stream, StreamCounters};
use prost::Message;

use self::slots::Slots;
use crate::{
    predecessor::{Held, Namespace, Predecessor},
    sequences::Sequences,
    spool::{
        BatchId, Gap, Sealed,
        disk::{Disk, Folder},
        ranges,
    },
};

/// Where it is kept unless the configuration says otherwise; a folder for each name, because two agents on one
/// machine have two names.
const DEFAULT: &str = "/var/lib/holdfast/agents";

/// How often the file of an idle node is written: a gap begins with what it says.
const WRITE_IDLE: Duration = Duration::from_secs(60);

/// Starts that the agent speaks for at most: more only come together while it is killed again and again without ever
/// reaching a collector.
const PREDECESSORS: usize = 64;

/// The folder, if there is one that can be written.
pub struct State(Option<(PathBuf, Folder)>);

impl State {
    /// Opens the folder, the default one for a node of this name.
    ///
    /// A folder that cannot be made or written leaves the agent in memory only, and the log says so.
    ///
    /// # Errors
    /// If another agent uses the folder: the two would take each other's batches for their own.
    pub fn open(path: Option<&Path>, node: &str) -> anyhow::Result<Self> {
        let path = path.map_or_else(|| Path::new(DEFAULT).join(file_name(node)), Path::to_owned);
        match Folder::open(&path) {
            Ok(folder) => Ok(Self(Some((path, folder)))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(error).with_context(|| format!("cannot use the folder {}", path.display()))
            }
            Err(error) => {
                tracing::warn!(
                    "cannot use the folder {}: {error}; what the collector has not acknowledged is kept in memory \
                     only, and lost with this process",
                    path.display()
                );
                Ok(Self(None))
            }
        }
    }

    /// The number of this start: `now_ms`, but always larger than that of the start before, however the clock was
    /// set meanwhile.
    pub fn next_epoch(&self, now_ms: u64) -> u64 {
        let Some((folder, _)) = &self.0 else { return now_ms };
        let path = folder.join("epoch");
        let next = || {
            let (mut slots, last) = Slots::open(&path)?;
            let last = last.and_then(|last| Some(u64::from_le_bytes(last.try_into().ok()?)));
            let epoch = last.map_or(now_ms, |last| now_ms.max(last + 1));
            Ok((epoch, slots.write(&epoch.to_le_bytes())))
        };
        let (epoch, written) = next().unwrap_or_else(|error| (now_ms, Err(error)));
        if let Err(error) = written {
            tracing::warn!(
                "cannot write {}: {error}; a clock that is set back could give two starts one number",
                path.display()
            );
        }
        epoch
    }

    /// What the start before wrote last, and where this one writes.
    pub fn journal(&self) -> Option<(Journal, Recollection)> {
        let (folder, _) = self.0.as_ref()?;
        let path = folder.join("ledger");
        let (slots, content) = match Slots::open(&path) {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(
                    "cannot open {}: {error}; what becomes of the last rows of this start will not be known",
                    path.display()
                );
                return None;
            }
        };
        let mut recollection = content.map_or_else(Recollection::default, |content| {
            Recollection::decode(&content).unwrap_or_else(|| {
                tracing::error!(
                    "{} cannot be read: what became of the last rows of an earlier start is not known",
                    path.display()
                );
                Recollection::default()
            })
        });
        // Each start measures the one before it and no other.
        if let Some((_, earlier)) = recollection.starts.split_last_mut() {
            earlier.iter_mut().for_each(|start| start.is_measured = true);
        }
        let journal = Journal {
            slots,
            written: Recollection::default(),
            written_at: None,
        };
        Some((journal, recollection))
    }

    /// The disk of the spool.
    pub fn into_disk(self) -> Option<Box<dyn Disk>> {
        self.0.map(|(_, folder)| Box::new(folder) as Box<dyn Disk>)
    }
}

/// The file that outlives this start.
pub struct Journal {
    slots: Slots,
    /// What is in it, but for the times and the looks, and when it was written: an idle node shall not write every second.
    written: Recollection,
    written_at: Option<Instant>,
}

impl Journal {
    /// Writes what is new, so that it survives a loss of power.
    ///
    /// # Errors
    /// The disk's; the former content is whole then.
    pub fn write(&mut self, recollection: &Recollection) -> io::Result<()> {
        let mut timeless = recollection.clone();
        if let Some(own) = timeless.starts.last_mut() {
            (own.observed_ns, own.ended_ns) = (0, 0);
            (own.unsaved_ns, own.unanswered_ns) = (None, None);
            // Looks are made all the time. Where the file is a minute behind them, the spool and the store say what
            // became of them since.
            own.namespaces
                .retain(|(stream, _), _| *stream == Stream::Connections);
            own.open.retain(|stream, _| *stream == Stream::Connections);
        }
        let is_recent = |at: Instant| at.elapsed() < WRITE_IDLE;
        if self.written_at.is_some_and(is_recent) && timeless == self.written {
            return Ok(());
        }
        self.slots.write(&recollection.encode())?;
        (self.written, self.written_at) = (timeless, Some(Instant::now()));
        Ok(())
    }
}

/// What one start leaves to the next.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recollection {
    /// Oldest first; the last one is the start that wrote it.
    pub starts: Vec<Predecessor>,
    /// Counted, and in no batch yet.
    pub gaps: Vec<Gap>,
    /// Batches of gaps that may be on no disk yet.
    pub gap_batches: Vec<Sealed>,
    /// Batches that are in gaps, and that the spool's disk may give back nevertheless.
    pub left_behind: Vec<BatchId>,
}

impl Recollection {
    /// With a checksum in front.
    fn encode(&self) -> Vec<u8> {
        let skipped = self.starts.len().saturating_sub(PREDECESSORS);
        if skipped > 0 {
            tracing::error!(
                starts = skipped,
                "too many starts without a collector: the ledger of the oldest stays open"
            );
        }
        let stored = StoredLedger {
            starts: self.starts[skipped..].iter().map(StoredStart::of).collect(),
            gaps: self.gaps.iter().map(crate::gaps::row).collect(),
            gap_batches: self.gap_batches.iter().map(StoredBatch::of).collect(),
            left_behind: ranges(&self.left_behind),
        };
        let encoded = stored.encode_to_vec();
        let mut bytes = crc32fast::hash(&encoded).to_le_bytes().to_vec();
        bytes.extend(encoded);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (checksum, encoded) = bytes.split_first_chunk::<4>()?;
        if crc32fast::hash(encoded).to_le_bytes() != *checksum {
            return None;
        }
        let stored = StoredLedger::decode(encoded).ok()?;
        Some(Self {
            starts: stored
                .starts
                .into_iter()
                .map(StoredStart::predecessor)
                .collect::<Option<_>>()?,
            gaps: stored
                .gaps
                .iter()
                .map(crate::gaps::from_row)
                .collect::<Option<_>>()?,
            gap_batches: stored
                .gap_batches
                .into_iter()
                .filter_map(StoredBatch::sealed)
                .collect(),
            left_behind: stored.left_behind.iter().flat_map(batches).collect(),
        })
    }
}

/// The content of the file.
#[derive(Clone, PartialEq, Message)]
struct StoredLedger {
    #[prost(message, repeated, tag = "1")]
    starts: Vec<StoredStart>,
    #[prost(message, repeated, tag = "2")]
    gaps: Vec<holdfast_proto::v1::Gap>,
    #[prost(message, repeated, tag = "3")]
    gap_batches: Vec<StoredBatch>,
    #[prost(message, repeated, tag = "4")]
    left_behind: Vec<BatchRange>,
}

fn batches(range: &BatchRange) -> impl Iterator<Item = BatchId> + use<> {
    let (epoch, stream) = (range.epoch, range.stream());
    (range.first_sequence..=range.last_sequence).map(move |sequence| BatchId {
        epoch,
        stream,
        sequence,
    })
}

#[derive(Clone, PartialEq, Message)]
struct StoredStart {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(string, tag = "2")]
    boot_id: String,
    #[prost(uint64, tag = "3")]
    observed_ns: u64,
    #[prost(uint64, tag = "4")]
    ended_ns: u64,
    #[prost(bool, tag = "5")]
    is_clean: bool,
    #[prost(bool, tag = "6")]
    is_settled: bool,
    #[prost(bool, tag = "9")]
    is_measured: bool,
    #[prost(message, repeated, tag = "7")]
    namespaces: Vec<StoredNamespace>,
    #[prost(message, repeated, tag = "10")]
    open: Vec<BatchRange>,
    // Earlier versions do not write these, and skip them.
    #[prost(uint64, optional, tag = "11")]
    unsaved_ns: Option<u64>,
    #[prost(uint64, optional, tag = "12")]
    unanswered_ns: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct StoredNamespace {
    #[prost(message, optional, tag = "1")]
    counters: Option<StreamCounters>,
    #[prost(uint64, optional, tag = "2")]
    opens: Option<u64>,
    #[prost(bool, tag = "3")]
    at_least: bool,
    #[prost(bool, tag = "4")]
    is_told: bool,
}

#[derive(Clone, PartialEq, Message)]
struct StoredBatch {
    #[prost(message, optional, tag = "1")]
    batch: Option<SealedBatch>,
    #[prost(uint32, tag = "2")]
    rows: u32,
    #[prost(uint64, tag = "3")]
    first_ns: u64,
    #[prost(uint64, tag = "4")]
    last_ns: u64,
}

impl StoredStart {
    fn of(start: &Predecessor) -> Self {
        let namespace = |namespace: &Namespace| StoredNamespace {
            // What the spool holds is counted when it is read back.
            counters: Some(StreamCounters {
                unacknowledged: 0,
                ..namespace.counters
            }),
            opens: namespace.opens,
            at_least: namespace.at_least,
            is_told: namespace.is_told,
        };
        Self {
            epoch: start.epoch,
            boot_id: start.boot_id.clone(),
            observed_ns: start.observed_ns,
            ended_ns: start.ended_ns,
            unsaved_ns: start.unsaved_ns,
            unanswered_ns: start.unanswered_ns,
            is_clean: start.is_clean,
            is_settled: start.is_settled,
            is_measured: start.is_measured,
            namespaces: start.namespaces.values().map(namespace).collect(),
            // What the spool holds is in it: nothing is excluded.
            open: start.unsettled(&Held::new()),
        }
    }

    fn predecessor(self) -> Option<Predecessor> {
        let mut namespaces = BTreeMap::new();
        for stored in self.namespaces {
            let counters = stored.counters?;
            let namespace = Namespace {
                counters,
                announced_held: 0,
                opens: stored.opens,
                at_least: stored.at_least,
                is_told: stored.is_told,
            };
            namespaces.insert((counters.stream(), counters.netns), namespace);
        }
        let mut open = BTreeMap::<_, Sequences>::new();
        for range in self.open {
            let sequences = open.entry(range.stream()).or_default();
            sequences.push((range.first_sequence, range.last_sequence));
        }
        Some(Predecessor {
            epoch: self.epoch,
            boot_id: self.boot_id,
            observed_ns: self.observed_ns,
            ended_ns: self.ended_ns,
            unsaved_ns: self.unsaved_ns,
            unanswered_ns: self.unanswered_ns,
            is_clean: self.is_clean,
            namespaces,
            open,
            is_measured: self.is_measured,
            is_settled: self.is_settled,
        })
    }
}

impl StoredBatch {
    fn of(sealed: &Sealed) -> Self {
        Self {
            batch: Some(SealedBatch {
                epoch: sealed.id.epoch,
                stream: sealed.id.stream.into(),
                sequence: sealed.id.sequence,
                checksum: 0,
                encoded: sealed.encoded.clone(),
            }),
            rows: sealed.rows,
            first_ns: sealed.first_ns,
            last_ns: sealed.last_ns,
        }
    }

    fn sealed(self) -> Option<Sealed> {
        let batch = self.batch?;
        Some(Sealed {
            id: BatchId {
                epoch: batch.epoch,
                stream: batch.stream(),
                sequence: batch.sequence,
            },
            rows: self.rows,
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            encoded: batch.encoded,
        })
    }
}

/// A name as a single component of a path.
fn file_name(node: &str) -> String {
    node.chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() || "-_.".contains(letter) {
                letter
            } else {
                '_'
            }
        })
        .collect::<String>()
        .trim_start_matches('.')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::spool::GapReason;

    #[test]
    fn every_start_has_a_larger_number_whatever_the_clock_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let start = |now_ms| {
            State::open(Some(folder.path()), "node")
                .expect("a folder")
                .next_epoch(now_ms)
        };
        assert_eq!(start(1_000), 1_000);
        assert_eq!(start(1_000), 1_001);
        assert_eq!(start(5), 1_002);
        assert_eq!(start(2_000), 2_000);
    }

    #[test]
    fn a_folder_that_cannot_be_made_leaves_the_memory() {
        let state = State::open(Some(Path::new("/proc/no/such/folder")), "node").expect("no folder");
        assert_eq!(state.next_epoch(7), 7);
        assert!(state.journal().is_none());
        assert!(state.into_disk().is_none());
    }

    #[test]
    fn a_node_name_never_leaves_the_folder() {
        assert_eq!(file_name("../../etc/passwd"), "_.._etc_passwd");
        assert_eq!(file_name("web-1.example"), "web-1.example");
    }

    fn recollection(opened: u64) -> Recollection {
        let counters = StreamCounters {
            stream: 1,
            netns: 3,
            opened,
            witnessed: Some(opened),
            ..StreamCounters::default()
        };
        let namespace = Namespace {
            counters,
            announced_held: 0,
            opens: Some(1 << 40),
            at_least: false,
            is_told: true,
        };
        let mut open = Sequences::of([4, 5, 9]);
        open.push((12, u64::MAX));
        let id = BatchId {
            epoch: 7,
            stream: holdfast_proto::v1::Stream::Gaps,
            sequence: 2,
        };
        Recollection {
            starts: vec![Predecessor {
                epoch: 7,
                boot_id: "boot".into(),
                observed_ns: 1,
                ended_ns: 2,
                unsaved_ns: Some(0),
                unanswered_ns: Some(5),
                is_clean: true,
                namespaces: BTreeMap::from([((Stream::Connections, 3), namespace)]),
                open: BTreeMap::from([(Stream::Connections, open), (Stream::Peers, Sequences::of([2]))]),
                is_measured: true,
                is_settled: true,
            }],
            gaps: vec![Gap {
                epoch: 7,
                stream: holdfast_proto::v1::Stream::Connections,
                netns: 3,
                first_sequence: 1,
                last_sequence: 2,
                first_ns: 3,
                last_ns: 4,
                rows: 5,
                at_least: true,
                reason: GapReason::RingFull,
            }],
            gap_batches: vec![Sealed {
                id,
                rows: 1,
                first_ns: 3,
                last_ns: 4,
                encoded: vec![1, 2, 3].into(),
            }],
            left_behind: vec![id],
        }
    }

    #[test]
    fn the_next_start_reads_what_the_last_one_wrote() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || {
            State::open(Some(folder.path()), "node")
                .expect("a folder")
                .journal()
        };
        let (mut journal, before) = open().expect("a journal");
        assert_eq!(before, Recollection::default());
        journal.write(&recollection(1)).expect("written");
        journal.write(&recollection(2)).expect("written");
        assert_eq!(open().expect("a journal").1, recollection(2));
    }

    #[test]
    fn an_idle_start_writes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State::open(Some(folder.path()), "node").expect("a folder");
        let (mut journal, _) = state.journal().expect("a journal");
        journal.write(&recollection(1)).expect("written");
        let slots =
            || [0, 1].map(|slot| fs::read(folder.path().join(format!("ledger.{slot}"))).expect("a slot"));
        let before = slots();
        journal.write(&recollection(1)).expect("nothing to write");
        assert_eq!(slots(), before);
    }

    /// A start as the version before wrote it.
    #[derive(Clone, PartialEq, Message)]
    struct FormerStart {
        #[prost(uint64, tag = "1")]
        epoch: u64,
        #[prost(string, tag = "2")]
        boot_id: String,
        #[prost(uint64, tag = "3")]
        observed_ns: u64,
        #[prost(uint64, tag = "4")]
        ended_ns: u64,
        #[prost(bool, tag = "5")]
        is_clean: bool,
        #[prost(bool, tag = "6")]
        is_settled: bool,
        #[prost(bool, tag = "9")]
        is_measured: bool,
        #[prost(message, repeated, tag = "7")]
        namespaces: Vec<StoredNamespace>,
        #[prost(message, repeated, tag = "10")]
        open: Vec<BatchRange>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct FormerLedger {
        #[prost(message, repeated, tag = "1")]
        starts: Vec<FormerStart>,
    }

    #[test]
    fn what_the_version_before_wrote_is_read_and_what_is_written_it_can_read() {
        let written = recollection(1).encode();
        let former = FormerLedger::decode(&written[4..]).expect("a ledger of the version before");
        let start = &former.starts[0];
        assert_eq!((start.epoch, start.observed_ns, start.ended_ns), (7, 1, 2));
        assert!(start.is_clean && start.is_settled && start.is_measured);
        assert_eq!((start.namespaces.len(), start.open.len()), (1, 4));

        let encoded = former.encode_to_vec();
        let mut bytes = crc32fast::hash(&encoded).to_le_bytes().to_vec();
        bytes.extend(encoded);
        let [expected] = &recollection(1).starts[..] else {
            unreachable!("one start")
        };
        let expected = Predecessor {
            unsaved_ns: None,
            unanswered_ns: None,
            ..expected.clone()
        };
        assert_eq!(Recollection::decode(&bytes).expect("read").starts, [expected]);
    }

    proptest! {
        #[test]
        fn a_file_that_was_damaged_is_not_believed(place in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = recollection(1).encode();
            let place = place.index(bytes.len());
            bytes[place] ^= 1_u8 << bit;
            prop_assert_eq!(Recollection::decode(&bytes), None);
        }
    }
}
