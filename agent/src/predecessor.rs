//! An earlier start of this agent, for which the agent of today speaks: what became of its rows, until every one of
//! them is somewhere for good and the store says so. Pure.
//!
//! It begins with what that start had counted when it wrote its state last, up to a second before its end. What
//! happened after that is measured, not remembered: the witness says how many connections were opened since, the store
//! which batches it has, the spool which ones are left. What is missing then came to its end with the start.

use std::collections::BTreeMap;

use holdfast_proto::v1::{BatchRange, Status, StoredRows, Stream, StreamCounters};

use crate::{
    counters::{End, Origin, RowsByNetns},
    sequences::Sequences,
    spool::{BatchId, Gap, GapReason},
};

/// The sequences of a start's batches that the spool holds, in order.
pub type Held = BTreeMap<Stream, Sequences>;

/// An earlier start.
#[derive(Clone, Debug, PartialEq)]
pub struct Predecessor {
    pub epoch: u64,
    pub boot_id: String,
    /// When it counted last.
    pub observed_ns: u64,
    /// When the start after it began to count: what was opened until then is its own.
    pub ended_ns: u64,
    /// What of it was on no disk when it counted last was made from here on: rows that wait in memory while the disk is full may be
    /// much older than that. `None`: not known, an earlier version wrote it.
    pub unsaved_ns: Option<u64>,
    /// What of it had no answer then was made from here on, wherever it was; `None` likewise.
    pub unanswered_ns: Option<u64>,
    /// It said that it would end: nothing was open in it that counts, nothing was on its way.
    pub is_clean: bool,
    pub namespaces: BTreeMap<Origin, Namespace>,
    /// Batches that are in no counter for good: the spool holds them, or the store may have them.
    pub open: BTreeMap<Stream, Sequences>,
    /// What was opened until the start after it is known for good.
    pub is_measured: bool,
    /// The collector said on some connection of this start, or of one that left nothing open, what it has of it.
    pub is_settled: bool,
}

/// A stream and a namespace of an earlier start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Namespace {
    /// `announced` has the first records that are in a counter for good; the others are gone, or in the spool.
    pub counters: StreamCounters,
    /// First records that the spool holds.
    pub announced_held: u64,
    /// Opens since the namespace began, by the witness, up to which they are in `counters.opened`. `None` where they
    /// could not be read at the end, and of all streams but connections.
    pub opens: Option<u64>,
    /// There may have been some that nobody counted: connections, where the witness could never read it, or cannot since;
    /// calls, which only the kernel's tables knew.
    pub at_least: bool,
    /// It has a gap.
    pub is_told: bool,
}

impl Predecessor {
    /// Takes in what the witness says now, at `now_ns`: what was opened since the last state has no record, and never
    /// will. The witness of another start of the machine says nothing.
    pub fn measure(&mut self, boot_id: &str, opens: &BTreeMap<u32, u64>, now_ns: u64) {
        if self.is_clean {
            return;
        }
        self.ended_ns = now_ns.max(self.observed_ns);
        for ((_, netns), namespace) in &mut self.namespaces {
            // One that could not be read any more at the end was gone.
            let Some(since) = namespace.opens else { continue };
            match opens.get(netns).filter(|_| self.boot_id == boot_id) {
                Some(&until) if since <= until => {
                    namespace.counters.opened += until - since;
                    namespace.counters.witnessed = namespace
                        .counters
                        .witnessed
                        .map(|witnessed| witnessed + (until - since));
                    namespace.opens = Some(until);
                }
                _ => namespace.at_least |= namespace.counters.opened > 0,
            }
        }
    }

    /// The disk has lost batches that it had: what is missing may be anything that had no answer.
    pub fn spoiled(&mut self) {
        self.unsaved_ns = self.unsaved_ns.into_iter().chain(self.unanswered_ns).min();
    }

    /// Whether a batch is in no counter for good.
    pub fn is_open(&self, id: BatchId) -> bool {
        let open = self.open.get(&id.stream);
        open.is_some_and(|open| open.contains(id.sequence))
    }

    /// Whether every batch is in a counter for good.
    pub fn is_empty(&self) -> bool {
        self.open.values().all(Sequences::is_empty)
    }

    /// The spool still has rows of it.
    pub fn adopt(&mut self, stream: Stream, rows: &RowsByNetns) {
        for (&netns, rows) in rows {
            let namespace = self.namespace((stream, netns));
            namespace.counters.unacknowledged += rows.all();
            namespace.announced_held += rows.announced;
        }
    }

    /// A batch of it left the spool.
    pub fn ended(&mut self, id: BatchId, rows: &RowsByNetns, end: End) {
        if let Some(open) = self.open.get_mut(&id.stream) {
            open.remove(id.sequence);
        }
        for (&netns, rows) in rows {
            let namespace = self.namespace((id.stream, netns));
            namespace.announced_held -= rows.announced;
            let counters = &mut namespace.counters;
            counters.unacknowledged -= rows.all();
            counters.announced += rows.announced;
            *match end {
                End::Acknowledged => &mut counters.acknowledged,
                End::Refused => &mut counters.refused,
                End::Dropped => &mut counters.dropped,
            } += rows.all();
        }
    }

    /// The batches that neither a counter nor the spool knows, of which `held` are the sequences.
    pub fn unsettled(&self, held: &Held) -> Vec<BatchRange> {
        let mut unsettled = Vec::new();
        for (&stream, open) in &self.open {
            let mut unknown = open.clone();
            for sequence in held.get(&stream).into_iter().flat_map(Sequences::numbers) {
                unknown.remove(sequence);
            }
            let range = |&(first_sequence, last_sequence): &(u64, u64)| BatchRange {
                epoch: self.epoch,
                stream: stream.into(),
                first_sequence,
                last_sequence,
            };
            unsettled.extend(unknown.ranges().iter().map(range));
        }
        unsettled
    }

    /// The collector has told what it has of [`Self::unsettled`].
    pub fn settle(&mut self, stored: &[StoredRows], held: &Held) {
        let epoch = self.epoch;
        for stored in stored.iter().filter(|stored| stored.epoch == epoch) {
            // A collector that knew of nothing else left the stream out.
            let stream = match stored.stream() {
                Stream::Unspecified => Stream::Connections,
                stream => stream,
            };
            let counters = &mut self.namespace((stream, stored.netns)).counters;
            counters.acknowledged += stored.rows;
            counters.announced += stored.announced;
        }
        self.open = held.clone();
        self.is_settled = true;
    }

    /// Closes the account once it is settled: what is nowhere came to its end with the start, and is a gap.
    pub fn close(&mut self) -> Vec<Gap> {
        if !self.is_settled {
            return Vec::new();
        }
        let first_ns = self.observed_ns.min(self.unsaved_ns.unwrap_or(u64::MAX));
        let (epoch, last_ns) = (self.epoch, self.ended_ns);
        // What was read or made after the last state was written is known of connections only.
        let is_cut = !self.is_clean;
        let gap = |(&(stream, netns), namespace): (&Origin, &mut Namespace)| {
            let rows = namespace.end();
            let is_gap = rows > 0 || (namespace.at_least && !namespace.is_told);
            namespace.is_told |= is_gap;
            is_gap.then_some(Gap {
                epoch,
                stream,
                netns,
                first_sequence: 0,
                last_sequence: 0,
                first_ns,
                last_ns,
                rows,
                at_least: namespace.at_least || (is_cut && stream != Stream::Connections),
                reason: GapReason::EpochEnd,
            })
        };
        self.namespaces.iter_mut().filter_map(gap).collect()
    }

    /// What is known of it, as it travels; the time is not told here.
    pub fn status(&self) -> Status {
        Status {
            epoch: self.epoch,
            streams: self
                .namespaces
                .iter()
                // In most of a machine's namespaces nothing ever happens; 0 is always there, of every stream.
                .filter(|((_, netns), namespace)| *netns == 0 || namespace.counters.opened > 0)
                .map(|(_, namespace)| StreamCounters {
                    announced: namespace.counters.announced + namespace.announced_held,
                    ..namespace.counters
                })
                .collect(),
            is_final: self.is_settled && self.is_measured && self.is_empty(),
            ..Status::default()
        }
    }

    fn namespace(&mut self, origin: Origin) -> &mut Namespace {
        let namespace = self.namespaces.entry(origin).or_default();
        (namespace.counters.stream, namespace.counters.netns) = (origin.0.into(), origin.1);
        namespace
    }
}

impl Namespace {
    /// Closes the account: what is opened and nowhere is added to `ended`, and given.
    fn end(&mut self) -> u64 {
        let counters = &mut self.counters;
        let rows = counters.unacknowledged + counters.acknowledged + counters.dropped + counters.refused;
        counters.received = rows.saturating_sub(counters.announced + self.announced_held);
        counters.closed = counters.received + counters.lost + counters.filtered;
        let elsewhere = counters.closed
            + counters.open
            + counters.untracked
            + counters.superseded
            + counters.sampled_out
            + counters.ended;
        // Attempts without a SYN, of which the witness does not know, may have followed the last state.
        counters.opened = counters.opened.max(elsewhere.saturating_sub(counters.seeded));
        let missing = counters.opened + counters.seeded - elsewhere;
        counters.ended += missing;
        missing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::counters::{Counters, Rows};

    const NETNS: u32 = 5;

    fn predecessor(counters: StreamCounters, opens: Option<u64>) -> Predecessor {
        let mut sequences = Sequences::default();
        sequences.push((4, u64::MAX));
        let namespace = Namespace {
            counters,
            announced_held: 0,
            opens,
            at_least: false,
            is_told: false,
        };
        Predecessor {
            epoch: 7,
            boot_id: "boot".into(),
            observed_ns: 1_000,
            ended_ns: 1_000,
            unsaved_ns: None,
            unanswered_ns: None,
            is_clean: false,
            namespaces: BTreeMap::from([((Stream::Connections, NETNS), namespace)]),
            open: BTreeMap::from([(Stream::Connections, sequences)]),
            is_measured: false,
            is_settled: false,
        }
    }

    fn held(sequences: &[u64]) -> Held {
        Held::from([(Stream::Connections, Sequences::of(sequences.iter().copied()))])
    }

    fn id(stream: Stream, sequence: u64) -> BatchId {
        BatchId {
            epoch: 7,
            stream,
            sequence,
        }
    }

    fn settle(predecessor: &mut Predecessor, rows: u64, sequences: &[u64]) -> Vec<Gap> {
        predecessor.settle(&[stored(rows)], &held(sequences));
        predecessor.close()
    }

    fn stored(rows: u64) -> StoredRows {
        StoredRows {
            epoch: 7,
            netns: NETNS,
            rows,
            announced: 0,
            stream: Stream::Connections.into(),
        }
    }

    fn ends(ends: u64) -> RowsByNetns {
        RowsByNetns::from([(NETNS, Rows { ends, announced: 0 })])
    }

    /// The equations of the ledger.
    fn closes(counters: &StreamCounters) -> bool {
        counters.opened + counters.seeded
            == counters.closed
                + counters.open
                + counters.untracked
                + counters.superseded
                + counters.sampled_out
                + counters.ended
            && counters.closed == counters.received + counters.lost + counters.filtered
            && counters.received + counters.announced
                == counters.unacknowledged + counters.acknowledged + counters.dropped + counters.refused
    }

    #[test]
    fn what_was_opened_and_is_nowhere_is_a_gap_once() {
        let counters = StreamCounters {
            opened: 100,
            acknowledged: 60,
            dropped: 5,
            lost: 3,
            ..StreamCounters::default()
        };
        let mut predecessor = predecessor(counters, Some(1_000));
        predecessor.measure("boot", &BTreeMap::from([(NETNS, 1_020)]), 3_000);
        predecessor.adopt(Stream::Connections, &ends(10));
        assert_eq!(
            predecessor
                .unsettled(&held(&[5]))
                .iter()
                .map(|range| (range.first_sequence, range.last_sequence))
                .collect::<Vec<_>>(),
            [(4, 4), (6, u64::MAX)]
        );
        assert_eq!(predecessor.close(), [], "nothing is known yet");
        let gaps = settle(&mut predecessor, 7, &[5]);
        let [gap] = &gaps[..] else { panic!("{gaps:?}") };
        assert_eq!(
            (gap.rows, gap.first_ns, gap.last_ns, gap.at_least),
            (120 - 60 - 5 - 3 - 10 - 7, 1_000, 3_000, false)
        );
        assert!(!predecessor.status().is_final);
        predecessor.is_measured = true;
        assert!(!predecessor.status().is_final, "the spool holds a batch");
        assert_eq!(settle(&mut predecessor, 0, &[5]), []);
        predecessor.ended(id(Stream::Connections, 5), &ends(10), End::Acknowledged);
        let status = predecessor.status();
        assert!(status.is_final && closes(&status.streams[0]), "{status:?}");
        assert_eq!(status.streams[0].acknowledged, 77);
    }

    #[test]
    fn first_records_are_rows_and_no_ends() {
        let counters = StreamCounters {
            opened: 90,
            seeded: 10,
            acknowledged: 60,
            announced: 20,
            ..StreamCounters::default()
        };
        let mut predecessor = predecessor(counters, Some(1_000));
        predecessor.measure("boot", &BTreeMap::from([(NETNS, 1_000)]), 3_000);
        let rows = RowsByNetns::from([(
            NETNS,
            Rows {
                ends: 5,
                announced: 4,
            },
        )]);
        predecessor.adopt(Stream::Connections, &rows);
        predecessor.settle(
            &[StoredRows {
                announced: 3,
                ..stored(10)
            }],
            &held(&[5]),
        );
        let gaps = predecessor.close();
        assert_eq!(gaps[0].rows, 100 - (60 - 20) - 5 - (10 - 3));
        assert!(closes(&predecessor.status().streams[0]));
        predecessor.ended(id(Stream::Connections, 5), &rows, End::Dropped);
        assert_eq!(predecessor.close(), []);
        let counters = predecessor.status().streams[0];
        assert!(closes(&counters), "{counters:?}");
        assert_eq!((counters.announced, counters.dropped), (27, 9));
    }

    #[test]
    fn a_batch_that_was_answered_after_the_state_was_written_is_not_missing() {
        let counters = StreamCounters {
            opened: 30,
            acknowledged: 20,
            ..StreamCounters::default()
        };
        // The spool held one more batch then; it is not there any more.
        let written = Predecessor {
            open: BTreeMap::from([(Stream::Connections, Sequences::of([5]))]),
            is_measured: true,
            is_settled: true,
            ..predecessor(counters, Some(1_000))
        };
        let next = Counters::speaking_for(vec![written]);
        let mut starts = next.predecessors();
        let start = starts.get_mut(&7).expect("the start");
        assert_eq!(start.close(), [], "the collector was not asked");
        assert_eq!(settle(start, 10, &[]), []);
        let status = start.status();
        assert!(status.is_final && closes(&status.streams[0]), "{status:?}");
        assert_eq!(status.streams[0].acknowledged, 30);
    }

    #[test]
    fn what_a_killed_start_made_and_is_nowhere_is_a_gap_of_its_stream() {
        let of = |stream: Stream, received, acknowledged, at_least| {
            let counters = StreamCounters {
                stream: stream.into(),
                opened: received,
                closed: received,
                received,
                acknowledged,
                ..StreamCounters::default()
            };
            let namespace = Namespace {
                counters,
                at_least,
                ..Namespace::default()
            };
            ((stream, 0), namespace)
        };
        let mut predecessor = Predecessor {
            namespaces: BTreeMap::from([
                of(Stream::Syscalls, 500, 500, true),
                of(Stream::Peers, 30, 10, false),
                of(Stream::Listeners, 20, 20, false),
            ]),
            open: [Stream::Syscalls, Stream::Peers, Stream::Listeners]
                .map(|stream| (stream, Sequences::of([4, 5, 6])))
                .into(),
            is_measured: true,
            ..predecessor(StreamCounters::default(), None)
        };
        let together = |ends| RowsByNetns::from([(0, Rows { ends, announced: 0 })]);
        predecessor.adopt(Stream::Peers, &together(8));
        let held = Held::from([(Stream::Peers, Sequences::of([5]))]);
        assert_eq!(
            predecessor.unsettled(&held).len(),
            4,
            "4, 6 of peers, all of the others"
        );
        let in_store = |stream: Stream, rows| StoredRows {
            stream: stream.into(),
            netns: 0,
            ..stored(rows)
        };
        // Calls that were delivered after the last word, and a batch of peers.
        predecessor.settle(
            &[in_store(Stream::Syscalls, 70), in_store(Stream::Peers, 5)],
            &held,
        );
        let gaps: Vec<_> = predecessor.close();
        let gaps: Vec<_> = gaps
            .iter()
            .map(|gap| (gap.stream, gap.rows, gap.at_least))
            .collect();
        assert_eq!(gaps, [(Stream::Syscalls, 0, true), (Stream::Peers, 7, true)]);
        assert_eq!(predecessor.close(), [], "it is said once");
        assert!(!predecessor.status().is_final);
        predecessor.ended(id(Stream::Peers, 5), &together(8), End::Acknowledged);
        let status = predecessor.status();
        assert!(status.is_final && status.streams.iter().all(closes), "{status:?}");
        let places = |counters: &StreamCounters| (counters.opened, counters.acknowledged, counters.ended);
        assert_eq!(
            status.streams.iter().map(places).collect::<Vec<_>>(),
            [(570, 570, 0), (20, 20, 0), (30, 23, 7)]
        );
    }

    #[test]
    fn a_gap_begins_with_the_oldest_row_that_it_may_have() {
        let first_ns = |unsaved_ns, is_spoiled: bool| {
            let counters = StreamCounters {
                opened: 10,
                ..StreamCounters::default()
            };
            let mut start = Predecessor {
                unsaved_ns,
                unanswered_ns: unsaved_ns.map(|_| 200),
                ..predecessor(counters, Some(1_000))
            };
            if is_spoiled {
                start.spoiled();
            }
            start.measure("boot", &BTreeMap::from([(NETNS, 1_000)]), 3_000);
            let gaps = settle(&mut start, 0, &[]);
            assert_eq!((gaps.len(), gaps[0].last_ns), (1, 3_000));
            gaps[0].first_ns
        };
        assert_eq!(first_ns(Some(400), false), 400, "a batch in memory");
        assert_eq!(first_ns(Some(1_100), false), 1_000, "all was on disk");
        assert_eq!(first_ns(Some(400), true), 200, "a batch on disk, which lost it");
        assert_eq!(first_ns(None, true), 1_000, "an earlier version wrote it");
    }

    #[test]
    fn another_start_of_the_machine_leaves_a_lower_bound() {
        let counters = StreamCounters {
            opened: 10,
            acknowledged: 10,
            ..StreamCounters::default()
        };
        let mut predecessor = predecessor(counters, Some(1_000));
        predecessor.measure("another boot", &BTreeMap::from([(NETNS, 3)]), 3_000);
        let gaps = settle(&mut predecessor, 0, &[]);
        assert_eq!(gaps.len(), 1);
        assert!(gaps[0].at_least && gaps[0].rows == 0);
        assert_eq!(predecessor.close(), [], "it is said once");
    }

    #[test]
    fn a_start_that_stopped_leaves_no_gap_for_what_was_open() {
        let counters = StreamCounters {
            opened: 10,
            open: 4,
            acknowledged: 6,
            ..StreamCounters::default()
        };
        let mut predecessor = Predecessor {
            is_clean: true,
            ..predecessor(counters, Some(1_000))
        };
        predecessor.measure("boot", &BTreeMap::from([(NETNS, 9_000)]), 3_000);
        assert_eq!(settle(&mut predecessor, 0, &[]), []);
        assert!(closes(&predecessor.status().streams[0]));
    }

    proptest! {
        /// Wherever the rows went, whenever the start ended and however often its successors did: the ledger closes,
        /// and the gaps have what is nowhere else.
        #[test]
        fn every_row_is_somewhere(
            known in prop::array::uniform8(0..1_000_u64), since in 0..1_000_u64, later in 0..500_u64, held in 0..300_u64,
            restarts in 1..4_usize
        ) {
            let [acknowledged, dropped, refused, lost, untracked, filtered, sampled_out, on_its_way] = known;
            let counters = StreamCounters {
                opened: known.iter().sum(),
                acknowledged, dropped, refused, lost, untracked, filtered, sampled_out,
                ..StreamCounters::default()
            };
            let mut predecessor = predecessor(counters, Some(50));
            // Of what was on its way and came since, some is in the store, some in the spool, the rest is gone.
            let all = on_its_way + since;
            let held = held.min(all);
            let in_store = later.min(all - held);
            predecessor.measure("boot", &BTreeMap::from([(NETNS, 50 + since / 2)]), 2_000);
            predecessor.measure("boot", &BTreeMap::from([(NETNS, 50 + since)]), 3_000);
            predecessor.adopt(Stream::Connections, &ends(held));
            let mut missing = settle(&mut predecessor, in_store, &[9]);
            for _ in 1..restarts {
                missing.extend(settle(&mut predecessor, 0, &[9]));
            }
            // The baseline of the start after it turned out to be a little higher.
            predecessor.measure("boot", &BTreeMap::from([(NETNS, 53 + since)]), 3_000);
            missing.extend(predecessor.close());
            predecessor.ended(id(Stream::Connections, 9), &ends(held), End::Acknowledged);
            missing.extend(settle(&mut predecessor, 0, &[]));
            let rows: u64 = missing.iter().map(|gap| gap.rows).sum();
            prop_assert_eq!(rows, all - held - in_store + 3);
            predecessor.is_measured = true;
            let status = predecessor.status();
            prop_assert!(status.is_final && closes(&status.streams[0]));
            prop_assert_eq!(status.streams[0].acknowledged, acknowledged + held + in_store);
            prop_assert_eq!(status.streams[0].ended, rows);
        }
    }
}
