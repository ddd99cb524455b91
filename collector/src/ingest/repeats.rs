//! Counters that say what was stored already. Agents report every second; a row for each stream of an idle node would be
//! most of what the store has of it. Pure: the time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_proto::v1::StreamCounters;

/// Even so a row is stored now and then: retention removes the old ones, and a row that was lost with the collector's store
/// is made good.
const AGAIN: Duration = Duration::from_secs(60);

/// What was stored last of an agent's latest start.
#[derive(Debug, Default)]
pub(super) struct Repeats(HashMap<(i32, u32), (StreamCounters, Duration)>);

impl Repeats {
    /// Those of a report that are worth a row. `now` is since any fixed moment.
    pub(super) fn new_of(&mut self, counters: Vec<StreamCounters>, now: Duration) -> Vec<StreamCounters> {
        let mut before = std::mem::take(&mut self.0);
        let mut new = Vec::new();
        // What a report does not have is forgotten, so there are never more than it may have.
        for counters in counters {
            let key = (counters.stream, counters.netns);
            let stored = before.remove(&key).filter(|(stored, at)| {
                *stored == counters && is_through(&counters) && now.saturating_sub(*at) < AGAIN
            });
            let is_new = stored.is_none();
            if is_new {
                new.push(counters);
            }
            self.0.insert(key, stored.unwrap_or((counters, now)));
        }
        new
    }
}

/// Nothing is on its way out of the kernel: how long it has been is told by the reports.
fn is_through(counters: &StreamCounters) -> bool {
    let out = counters.lost.saturating_add(counters.filtered);
    counters.closed == out.saturating_add(counters.received)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(netns: u32, closed: u64, received: u64) -> StreamCounters {
        StreamCounters {
            netns,
            closed,
            received,
            ..StreamCounters::default()
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_did_not_change_is_stored_once_a_minute() {
        let mut repeats = Repeats::default();
        let report = vec![counters(1, 5, 5), counters(2, 7, 7)];
        assert_eq!(repeats.new_of(report.clone(), at(0)), report);
        assert_eq!(repeats.new_of(report.clone(), at(1)), []);
        let changed = vec![counters(1, 5, 5), counters(2, 8, 8)];
        assert_eq!(repeats.new_of(changed.clone(), at(2)), changed[1..]);
        assert_eq!(repeats.new_of(changed.clone(), at(59)), []);
        assert_eq!(repeats.new_of(changed.clone(), at(60)), changed[..1]);
        assert_eq!(repeats.new_of(changed.clone(), at(62)), changed[1..]);
    }

    #[test]
    fn what_is_in_the_ring_is_stored_with_every_report() {
        let mut repeats = Repeats::default();
        let report = vec![counters(1, 5, 4)];
        for second in 0..3 {
            assert_eq!(repeats.new_of(report.clone(), at(second)), report);
        }
    }

    #[test]
    fn counters_that_cannot_be_are_no_fault() {
        let mut report = vec![counters(1, 5, u64::MAX)];
        report[0].lost = u64::MAX;
        assert_eq!(Repeats::default().new_of(report.clone(), at(0)), report);
        assert!(!is_through(&report[0]));
    }

    #[test]
    fn what_a_report_left_out_is_new_in_the_next() {
        let mut repeats = Repeats::default();
        let report = vec![counters(1, 5, 5)];
        repeats.new_of(report.clone(), at(0));
        assert_eq!(repeats.new_of(Vec::new(), at(1)), []);
        assert_eq!(repeats.new_of(report.clone(), at(2)), report);
    }
}
