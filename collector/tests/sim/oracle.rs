//! Knows what every agent's kernel reported, and so what has to become of it: each row is in the store once, or in
//! one gap, or refused once, or was nowhere but in the memory of an agent that was killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_proto::{
    FLAG_FINAL,
    v1::{Batch, SealedBatch, Stream, batch::Columns},
};
use prost::Message;

use crate::{engine::REFUSED_PORT, trace::Trace};

const DAY_NS: u64 = 86_400_000_000_000;

/// A batch's name within its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BatchName {
    pub(crate) epoch: u64,
    pub(crate) stream: i32,
    pub(crate) sequence: u64,
}

/// A row by its connection and by whether it is the last of it. Cookies are never used again in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowName {
    pub(crate) cookie: u64,
    pub(crate) is_final: bool,
}

/// What the agent's kernel said of a connection, as far as the store must know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// To the microsecond after the opening.
    pub(crate) recorded_ns: u64,
    pub(crate) netns: u32,
    pub(crate) remote_port: u16,
    pub(crate) bytes_sent: u64,
    pub(crate) is_first: bool,
}

/// Rows that are missing, as a gap says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) epoch: u64,
    pub(crate) stream: i32,
    /// Zero: rows of all namespaces.
    pub(crate) netns: u32,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) rows: u64,
}

/// The oracle of one world; its copies are the same.
#[derive(Clone)]
pub(crate) struct Oracle {
    trace: Trace,
    state: Arc<Mutex<State>>,
}

/// How many gaps name a batch of a node with rows of a namespace, or of all where that is zero.
type Covered = BTreeMap<(usize, BatchName, u32), u64>;

#[derive(Default)]
struct State {
    rows: BTreeMap<RowName, Emitted>,
    batches: BTreeMap<(usize, BatchName), Sealed>,
    /// Gaps that are in the store, by the node that reported them.
    gaps: Vec<(usize, Gap)>,
}

struct Emitted {
    node: usize,
    epoch: u64,
    row: Row,
    /// When it really was made, in nanoseconds since the Unix epoch, whatever the node's clock said.
    made_ns: u64,
    batch: Option<BatchName>,
    is_excused: bool,
}

struct Sealed {
    at: Duration,
    checksum: u32,
    rows: Vec<RowName>,
    gaps: Vec<Gap>,
    is_stored: bool,
    is_refused: bool,
}

/// What became of the rows of one start of an agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) emitted: u64,
    pub(crate) stored: u64,
    pub(crate) in_gaps: u64,
    pub(crate) refused: u64,
}

impl Oracle {
    pub(crate) fn new(trace: Trace) -> Self {
        Self {
            trace,
            state: Arc::default(),
        }
    }

    /// The kernel of a node handed a record over, or its agent announced a connection, and this start took it.
    pub(crate) fn emitted(&self, node: usize, epoch: u64, name: RowName, row: Row, made_ns: u64) {
        let emitted = Emitted {
            node,
            epoch,
            row,
            made_ns,
            batch: None,
            is_excused: false,
        };
        if self.lock().rows.insert(name, emitted).is_some() {
            self.trace
                .fault(|| format!("{name:?} of node {node} was made twice"));
        }
    }

    /// A batch is in an agent's spool. Seen again, it must be the same.
    pub(crate) fn sealed(&self, node: usize, name: BatchName, encoded: &[u8]) {
        let checksum = crc32fast::hash(encoded);
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(known) = state.batches.get(&(node, name)) {
            if known.checksum != checksum {
                self.trace
                    .fault(|| format!("batch {name:?} of node {node} has changed"));
            }
            return;
        }
        let batch = Batch::decode(encoded).expect("the agent seals what can be read");
        let mut sealed = Sealed {
            at: self.trace.elapsed(),
            checksum,
            rows: Vec::new(),
            gaps: Vec::new(),
            is_stored: false,
            is_refused: false,
        };
        match batch.columns {
            Some(Columns::Connections(columns)) => {
                let mut cookie = 0_u64;
                for (delta, flags) in columns.cookie_delta.into_iter().zip(&columns.flags) {
                    cookie = cookie.wrapping_add_signed(delta);
                    let is_final = flags & FLAG_FINAL != 0;
                    let row = RowName { cookie, is_final };
                    sealed.rows.push(row);
                    let emitted = state.rows.get_mut(&row).expect("the agent invents no rows");
                    if emitted.batch.replace(name).is_some() {
                        self.trace.fault(|| format!("{row:?} is in two batches"));
                    }
                }
            }
            Some(Columns::Gaps(gaps)) => sealed.gaps.extend(gaps.gaps.iter().map(|gap| Gap {
                epoch: gap.epoch,
                stream: gap.stream,
                netns: gap.netns,
                first: gap.first_sequence,
                last: gap.last_sequence,
                rows: gap.rows,
            })),
            _ => self
                .trace
                .fault(|| format!("batch {name:?} of node {node} has columns that no agent here makes")),
        }
        self.trace.note(
            "sealed (node, epoch, stream, sequence)",
            [node as u64, name.epoch, name.stream as u64, name.sequence],
        );
        state.batches.insert((node, name), sealed);
    }

    /// A batch is on its way to a collector.
    pub(crate) fn sent(&self, node: usize, batch: &SealedBatch) {
        let name = BatchName {
            epoch: batch.epoch,
            stream: batch.stream,
            sequence: batch.sequence,
        };
        let checksum = self.lock().batches.get(&(node, name)).map(|known| known.checksum);
        match checksum {
            Some(known) if known == crc32fast::hash(&batch.encoded) => {}
            // Gaps are sealed by the delivery itself: here they may be seen first.
            None if batch.stream == Stream::Gaps as i32 => self.sealed(node, name, &batch.encoded),
            known => self
                .trace
                .fault(|| format!("batch {name:?} of node {node} was sent as {known:?}")),
        }
    }

    /// A collector says that a batch is stored.
    pub(crate) fn acknowledged(&self, node: usize, name: BatchName) {
        let is_stored = self
            .lock()
            .batches
            .get(&(node, name))
            .is_some_and(|batch| batch.is_stored);
        if !is_stored {
            self.trace
                .fault(|| format!("batch {name:?} of node {node} was acknowledged and is not in the store"));
        }
    }

    /// A collector says that a batch will never be stored.
    pub(crate) fn refused(&self, node: usize, name: BatchName) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(batch) = state.batches.get_mut(&(node, name)) else {
            return;
        };
        batch.is_refused = true;
        // However the clock of the node is set, that is no reason.
        let is_wrong = |row| {
            state
                .rows
                .get(row)
                .is_some_and(|emitted| emitted.row.remote_port == REFUSED_PORT)
        };
        if !batch.rows.iter().any(is_wrong) {
            self.trace
                .fault(|| format!("batch {name:?} of node {node} was refused, and nothing is wrong with it"));
        }
    }

    /// The rows of a batch were made durable, all at once.
    pub(crate) fn stored(&self, node: usize, name: BatchName, rows: &[(RowName, Row)]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(batch) = state.batches.get_mut(&(node, name)) else {
            self.trace
                .fault(|| format!("batch {name:?} of node {node} was stored and never sealed"));
            return;
        };
        if std::mem::replace(&mut batch.is_stored, true) {
            self.trace
                .fault(|| format!("batch {name:?} of node {node} was stored twice"));
        }
        if !rows.iter().map(|(row, _)| row).eq(&batch.rows) {
            self.trace
                .fault(|| format!("batch {name:?} of node {node} was stored with other rows"));
        }
        for (name, row) in rows {
            let known = state.rows.get(name).map(|emitted| emitted.row);
            // A clock that was wrong by days is corrected by whole ones, however it was set before the row came here.
            let moved_ns = known.map_or(0, |known| known.recorded_ns.abs_diff(row.recorded_ns));
            let is_same = known.is_some_and(|known| {
                Row {
                    recorded_ns: row.recorded_ns,
                    ..known
                } == *row
            });
            let made_ns = state.rows.get(name).map_or(0, |emitted| emitted.made_ns);
            let is_elsewhere = row.recorded_ns.abs_diff(made_ns) > DAY_NS;
            if !is_same || !moved_ns.is_multiple_of(DAY_NS) || is_elsewhere {
                self.trace
                    .fault(|| format!("{name:?}: the kernel said {known:?}, the store has {row:?}"));
            }
        }
    }

    /// The gaps of a batch were made durable, all at once.
    pub(crate) fn gaps_stored(&self, node: usize, name: BatchName, gaps: &[Gap]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(batch) = state.batches.get_mut(&(node, name)) else {
            self.trace
                .fault(|| format!("gaps {name:?} of node {node} were stored and never sealed"));
            return;
        };
        if std::mem::replace(&mut batch.is_stored, true) {
            self.trace
                .fault(|| format!("gaps {name:?} of node {node} were stored twice"));
        }
        if batch.gaps != gaps {
            self.trace
                .fault(|| format!("gaps {name:?} of node {node} were stored as others"));
        }
        state.gaps.extend(gaps.iter().map(|gap| (node, *gap)));
    }

    /// The sequences of a range that have rows in the store.
    pub(crate) fn stored_sequences(&self, node: usize, first: BatchName, last: BatchName) -> Vec<u64> {
        let state = self.lock();
        let range = state.batches.range((node, first)..=(node, last));
        range
            .filter(|(_, batch)| batch.is_stored)
            .map(|((_, name), _)| name.sequence)
            .collect()
    }

    /// An agent ended. What was neither stored nor on its disk went with it: the account of that is closed by the next
    /// start's ledger, which is not in these worlds. What waited for an answer for longer than `written_within` has to
    /// be on its disk, if that is known.
    pub(crate) fn ended(
        &self,
        node: usize,
        durable: &BTreeSet<BatchName>,
        waiting: &[BatchName],
        written_within: Option<Duration>,
    ) {
        let now = self.trace.elapsed();
        let mut guard = self.lock();
        let state = &mut *guard;
        for name in waiting {
            let batch = &state.batches[&(node, *name)];
            let is_overdue = written_within.is_some_and(|within| batch.at + within < now);
            if is_overdue && !durable.contains(name) && !batch.is_stored {
                self.trace.fault(|| {
                    format!(
                        "batch {name:?} of node {node}, sealed at {:?}, is not on the disk",
                        batch.at
                    )
                });
            }
        }
        for emitted in state.rows.values_mut().filter(|emitted| emitted.node == node) {
            let is_safe = emitted
                .batch
                .is_some_and(|name| durable.contains(&name) || state.batches[&(node, name)].is_stored);
            emitted.is_excused |= !is_safe;
        }
    }

    /// These may be lost without a word: their bytes rotted.
    pub(crate) fn rotted(&self, node: usize, names: &[BatchName]) {
        let mut guard = self.lock();
        let state = &mut *guard;
        for name in names {
            for row in state
                .batches
                .get(&(node, *name))
                .map_or(&[][..], |batch| &batch.rows)
            {
                if let Some(emitted) = state.rows.get_mut(row) {
                    emitted.is_excused = true;
                }
            }
        }
    }

    /// At the end of a world: whether each row is in one place, and each connection has one first record at most,
    /// whichever starts saw it. Gives the ends of each start's rows.
    pub(crate) fn check(&self) -> BTreeMap<(usize, u64), Ends> {
        let guard = self.lock();
        let state = &*guard;
        let mut covered = Covered::new();
        for (node, gap) in &state.gaps {
            self.cover(state, *node, gap, &mut covered);
        }
        let mut ends = BTreeMap::<_, Ends>::new();
        let mut attempted = BTreeSet::new();
        for (row, emitted) in &state.rows {
            let key = emitted.batch.map(|name| (emitted.node, name));
            let batch = key.and_then(|key| state.batches.get(&key));
            let stored = u64::from(batch.is_some_and(|batch| batch.is_stored));
            let in_gaps_of = |netns| {
                let covered = key.and_then(|(node, name)| covered.get(&(node, name, netns)));
                covered.copied().unwrap_or(0)
            };
            let in_gaps: u64 = in_gaps_of(0) + in_gaps_of(emitted.row.netns);
            // A refusal that never arrived is none: the agent may have dropped the batch then.
            let refused = u64::from(in_gaps == 0 && batch.is_some_and(|batch| batch.is_refused));
            let places = stored + refused + in_gaps;
            if places > 1 || (places == 0 && !emitted.is_excused) {
                self.trace.fault(|| {
                    format!(
                        "{row:?} of node {}, batch {:?}: stored {stored}, in gaps {in_gaps}, refused {refused}",
                        emitted.node, emitted.batch
                    )
                });
            }
            if emitted.row.is_first && !attempted.insert(row.cookie) {
                self.trace
                    .fault(|| format!("the connection {} has two first records", row.cookie));
            }
            let of_start = ends.entry((emitted.node, emitted.epoch)).or_default();
            of_start.emitted += 1;
            of_start.stored += stored;
            of_start.in_gaps += in_gaps;
            of_start.refused += refused;
        }
        ends
    }

    /// Counts the batches that a gap names; a gap in the stream of gaps names those that the lost gaps named.
    fn cover(&self, state: &State, node: usize, gap: &Gap, covered: &mut Covered) {
        let mut rows = 0;
        for sequence in gap.first..=gap.last {
            let name = BatchName {
                epoch: gap.epoch,
                stream: gap.stream,
                sequence,
            };
            let Some(batch) = state.batches.get(&(node, name)) else {
                self.trace
                    .fault(|| format!("a gap of node {node} names {name:?}, which never was"));
                continue;
            };
            *covered.entry((node, name, gap.netns)).or_default() += 1;
            let is_meant = |row: &&RowName| gap.netns == 0 || state.rows[row].row.netns == gap.netns;
            let meant = batch.rows.iter().filter(is_meant).count();
            let is_an_end = sequence == gap.first || sequence == gap.last;
            if meant == 0 && batch.gaps.is_empty() && is_an_end {
                self.trace
                    .fault(|| format!("{gap:?} of node {node}: {name:?} has no rows of it"));
            }
            rows += meant.max(batch.gaps.len()) as u64;
            if gap.stream == Stream::Gaps as i32 {
                for lost in &batch.gaps {
                    self.cover(state, node, lost, covered);
                }
            }
        }
        if rows != gap.rows {
            self.trace
                .fault(|| format!("{gap:?} of node {node}: these batches have {rows} rows"));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
