//! What happened in a run second by second, all nodes together, and of a mesh pair by pair. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::store::buckets::middle;

/// Slots of a run: longer runs have longer ones, so that a picture or a comparison of a day is no larger than one of a minute.
const MOST_SLOTS: u64 = 600;

/// Slots of all pairs of a mesh together: 240 pairs (of 16 nodes) have more than two minutes second by second in them, and they are some 5 MB of
/// JSON. The store has each second of each pair, however many there are.
const MOST_PAIR_SLOTS: u64 = 36_000;

/// A run in slots of equal length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// The length of a slot, whole seconds in microseconds.
    pub step_us: u64,
    /// In their order; a slot in which no node said anything is not among them.
    pub slots: Vec<Slot>,
}

/// What the nodes reported of one slot. A report belongs to the slot that the middle of its interval is in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// How many slots were before.
    pub slot: u64,
    /// When the first interval of its reports began and the last one ended, since the start of the run; a busy node's are longer than a slot.
    pub since_us: u64,
    pub until_us: u64,
    /// How much time the reports are of, of all nodes together, microseconds.
    pub covered_us: u64,
    /// Nodes that reported.
    pub nodes: u64,
    /// Connections that were established at its end.
    pub open: u64,
    /// From when an attempt was due until it was established; the round trips of handshakes; from when a request was due until its answer was
    /// complete: log buckets of microseconds, and how many are in each.
    pub connect: (Vec<u16>, Vec<u64>),
    pub network: (Vec<u16>, Vec<u64>),
    pub request: (Vec<u16>, Vec<u64>),
    /// By name.
    #[serde(flatten)]
    pub counts: BTreeMap<String, u64>,
}

/// The length of the slots of a run that lasted so long, microseconds.
pub fn step_us(elapsed_us: u64) -> u64 {
    elapsed_us.div_ceil(MOST_SLOTS * 1_000_000).max(1) * 1_000_000
}

/// The length of the slots of so many pairs in a run that lasted so long, microseconds.
pub fn pair_step_us(elapsed_us: u64, pairs: u64) -> u64 {
    let most = (MOST_PAIR_SLOTS / pairs.max(1)).clamp(1, MOST_SLOTS);
    elapsed_us.div_ceil(most * 1_000_000).max(1) * 1_000_000
}

/// A mesh in slots of equal length, each pair on its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairSeconds {
    /// The length of a slot, whole seconds in microseconds; longer than a second where the run was long or there are many pairs.
    pub step_us: u64,
    /// In the order of their nodes' names.
    pub pairs: Vec<PairOverTime>,
}

/// What one agent of a mesh did to another, slot by slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairOverTime {
    pub from: String,
    pub to: String,
    /// In their order; a slot without a report is not among them.
    pub slots: Vec<PairSlot>,
}

/// One slot of a pair.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PairSlot {
    /// How many slots were before.
    pub slot: u64,
    /// When the first interval of its reports began and the last one ended, since the start of the run.
    pub since_us: u64,
    pub until_us: u64,
    /// Attempts that were established in it, and that failed.
    pub established: u64,
    pub failed: u64,
    /// Of the times to connect, from when attempts were due, nanoseconds: the middles of log buckets, right to 1.6 %. Absent: none was established.
    #[serde(default)]
    pub connect_p50_ns: Option<u64>,
    #[serde(default)]
    pub connect_p99_ns: Option<u64>,
    #[serde(default)]
    pub connect_max_ns: Option<u64>,
}

impl PairSeconds {
    /// The slots of a pair.
    pub fn of(&self, from: &str, to: &str) -> &[PairSlot] {
        let pair = self.pairs.iter().find(|pair| pair.from == from && pair.to == to);
        pair.map_or(&[], |pair| &pair.slots)
    }
}

/// The slot in which most of the attempts failed, or, where none did, that with the longest times.
pub fn worst(slots: &[PairSlot]) -> Option<&PairSlot> {
    let share = |slot: &PairSlot| slot.failed as f64 / (slot.failed + slot.established).max(1) as f64;
    let decided = slots.iter().filter(|slot| slot.failed + slot.established > 0);
    // Of equals the first.
    decided.rev().max_by(|one, other| {
        let shares = share(one).total_cmp(&share(other));
        shares.then(one.connect_p99_ns.cmp(&other.connect_p99_ns))
    })
}

/// The bucket in which a share of a distribution is reached, nanoseconds.
pub fn quantile_ns((buckets, counts): &(Vec<u16>, Vec<u64>), share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let rank = ((total as f64 * share).ceil() as u64).clamp(1, total.max(1));
    let mut below = 0;
    buckets.iter().zip(counts).find_map(|(bucket, count)| {
        below += count;
        (below >= rank).then(|| middle(*bucket) * 1e3)
    })
}

impl Slot {
    pub fn count(&self, name: &str) -> u64 {
        self.counts.get(name).copied().unwrap_or(0)
    }

    /// So many, as a rate a second of all nodes together: a report of less than a second is not taken for one of a second.
    pub fn per_second(&self, count: u64) -> f64 {
        if self.covered_us == 0 {
            return 0.0;
        }
        count as f64 * self.nodes as f64 * 1e6 / self.covered_us as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::buckets::bucket;

    #[test]
    fn a_long_run_has_no_more_slots_than_a_short_one() {
        let second = 1_000_000;
        assert_eq!([0, 1, second, 600 * second].map(step_us), [second; 4]);
        assert_eq!(step_us(600 * second + 1), 2 * second);
        assert_eq!(step_us(86_400 * second), 144 * second);
    }

    #[test]
    fn the_slots_of_many_pairs_are_no_more_than_those_of_few() {
        let second = 1_000_000;
        // One pair is drawn as a run is; 64 nodes, each with every other, in nine slots at most.
        assert_eq!(
            [0, 1, second, 600 * second].map(|us| pair_step_us(us, 1)),
            [second; 4]
        );
        assert_eq!(pair_step_us(600 * second + 1, 1), 2 * second);
        assert_eq!(pair_step_us(150 * second, 240), second);
        assert_eq!(pair_step_us(60 * second, 64 * 63), 8 * second);
        assert_eq!(pair_step_us(60 * second, u64::MAX), 60 * second);
    }

    #[test]
    fn the_worst_second_is_that_with_the_failures_and_else_the_slowest() {
        let slot = |slot, established, failed, connect_p99_ns| PairSlot {
            slot,
            established,
            failed,
            connect_p99_ns,
            ..PairSlot::default()
        };
        let found = |slots: &[PairSlot]| worst(slots).map(|slot| slot.slot);
        let good = [
            slot(0, 5, 0, Some(10)),
            slot(1, 5, 0, Some(30)),
            slot(2, 5, 0, Some(30)),
        ];
        assert_eq!(found(&good), Some(1));
        let bad = [
            slot(3, 100, 2, Some(90)),
            slot(4, 1, 1, Some(5)),
            slot(5, 0, 0, None),
        ];
        assert_eq!(found(&[&good[..], &bad].concat()), Some(4));
        // A second of which nothing was decided says nothing.
        assert_eq!(found(&bad[2..]), None);
    }

    #[test]
    fn a_quantile_is_the_bucket_that_has_it() {
        let times = ([10, 20, 30].map(bucket).to_vec(), vec![50, 49, 1]);
        assert_eq!(
            [0.5, 0.99, 1.0].map(|share| quantile_ns(&times, share)),
            [Some(1e4), Some(2e4), Some(3e4)]
        );
        assert_eq!(quantile_ns(&(vec![], vec![]), 0.5), None);
    }

    #[test]
    fn a_rate_is_of_the_time_that_is_known() {
        let slot = Slot {
            covered_us: 1_000_000,
            nodes: 2,
            ..Slot::default()
        };
        // Half a second of each of two nodes.
        assert_eq!(slot.per_second(100), 200.0);
        assert_eq!(Slot::default().per_second(100), 0.0);
    }
}
