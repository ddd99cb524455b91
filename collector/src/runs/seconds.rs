//! What happened in a run second by second, all nodes together. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Slots of a run: longer runs have longer ones, so that a picture or a comparison of a day is no larger than one of a minute.
const MOST_SLOTS: u64 = 600;

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

    #[test]
    fn a_long_run_has_no_more_slots_than_a_short_one() {
        let second = 1_000_000;
        assert_eq!([0, 1, second, 600 * second].map(step_us), [second; 4]);
        assert_eq!(step_us(600 * second + 1), 2 * second);
        assert_eq!(step_us(86_400 * second), 144 * second);
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
