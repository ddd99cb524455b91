//! How many connections several sources had at once, from reports that each make in their own time. Pure.
//!
//! Two maxima of two agents need not have come at one moment. They are added up within one interval of reports, so that the sum is
//! of the same second and not of the whole run.

use std::collections::BTreeMap;

/// Intervals that reports may still come for; the reports of one come within a second or so.
const SLOTS: usize = 32;

/// What one source, an agent or one target of its, said last.
#[derive(Debug, Default)]
pub struct Source {
    elapsed_ns: u64,
    open: u64,
    most_open: u64,
    slot: u64,
    counted: u64,
}

/// What a report adds to what was open in an interval.
#[derive(Clone, Copy, Debug)]
pub struct More {
    slot: u64,
    count: u64,
}

impl Source {
    /// Takes what was open when a report was made, and the most since the start. A report belongs to the slot that the middle of its
    /// interval is in.
    pub fn take(&mut self, elapsed_ns: u64, (open, most_open): (u64, u64), slot_ns: u64) -> More {
        let slot = (self.elapsed_ns / 2 + elapsed_ns / 2) / slot_ns.max(1);
        // Where there were more than ever, that is the most of the interval; else it is known of its ends alone.
        let peak = if most_open > self.most_open {
            most_open
        } else {
            self.open.max(open)
        };
        if slot != self.slot {
            (self.slot, self.counted) = (slot, 0);
        }
        let count = peak.saturating_sub(self.counted);
        self.counted += count;
        (self.elapsed_ns, self.open, self.most_open) = (elapsed_ns, open, most_open);
        More { slot, count }
    }
}

/// The sums of all sources.
#[derive(Debug, Default)]
pub struct Concurrent {
    slots: BTreeMap<u64, u64>,
    most: u64,
}

impl Concurrent {
    /// Adds what a report adds; gives the most until now.
    pub fn add(&mut self, more: More) -> u64 {
        let sum = self.slots.entry(more.slot).or_insert(0);
        *sum = sum.saturating_add(more.count);
        self.most = self.most.max(*sum);
        if self.slots.len() > SLOTS {
            self.slots.pop_first();
        }
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// The most of two sources that report so: which one, when in milliseconds, what was open and the most since the start.
    fn check(reports: &[(usize, u64, u64, u64)], expected: u64) {
        let mut sources = [Source::default(), Source::default()];
        let mut concurrent = Concurrent::default();
        let mut most = 0;
        for &(source, elapsed_ms, open, most_open) in reports {
            let more = sources[source].take(elapsed_ms * 1_000_000, (open, most_open), SECOND_NS);
            most = concurrent.add(more);
        }
        assert_eq!(most, expected, "{reports:?}");
    }

    #[test]
    fn what_two_agents_had_in_one_interval_adds_up_though_they_report_once_and_have_nothing_open_then() {
        check(&[(0, 1_200, 0, 4), (1, 1_200, 0, 4)], 8);
    }

    #[test]
    fn what_two_agents_had_at_different_times_does_not() {
        check(
            &[
                (0, 1_000, 0, 500),
                (1, 1_000, 0, 0),
                (0, 2_000, 0, 500),
                (1, 2_000, 0, 300),
            ],
            500,
        );
    }

    #[test]
    fn what_stays_open_counts_in_each_interval() {
        check(
            &[
                (0, 1_000, 500, 500),
                (1, 1_000, 0, 0),
                (0, 2_000, 500, 500),
                (1, 2_000, 300, 300),
                // The last report comes when all is closed.
                (0, 2_900, 0, 500),
                (1, 2_900, 0, 400),
            ],
            900,
        );
    }

    #[test]
    fn several_reports_of_one_interval_are_one_source() {
        check(&[(0, 400, 5, 5), (0, 800, 7, 8), (0, 1_100, 0, 8)], 8);
    }
}
