//! Batches of a node whose clock is wrong by days. Their rows would lie in partitions of the far future, or in such that
//! retention removes at once. They are moved by whole days, so that what was sealed of one day stays of one day; what is left
//! is a wrong clock as any other, which `nodes` shows.
//!
//! A batch says by which clock its times were made, a status which clock it is now, both against the time since the boot: so
//! it is known how wrong the clock was then, however often it was set since. What an earlier boot made is held against the clock
//! as it is, as far as that explains it.
//!
//! A batch that is sent again may be moved otherwise, for that clock was set meanwhile. That adds nothing: batches are known by
//! their names, whenever their rows are, and only those that the store does not have are taken.

use holdfast_proto::v1::{Batch, Status, batch::Columns};

use super::DAY_NS;

/// A clock that is wrong by so much less than whole days is wrong by those: what it says was on its way for a while.
const SLACK_NS: i64 = DAY_NS / 24;

/// By how many whole days a clock is wrong that is ahead of ours by `offset_ns`.
fn whole_days(offset_ns: i64) -> i64 {
    offset_ns.saturating_add(offset_ns.signum() * SLACK_NS) / DAY_NS
}

/// A node's clock, as a status told it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeClock {
    /// How far it is ahead of ours, in nanoseconds; zero: that is not known.
    pub ahead_ns: i64,
    /// How far it is ahead of the time since the boot of this name, in nanoseconds; zero: the agent does not tell.
    pub clock_ns: i64,
    pub boot_id: String,
}

/// How far the clock of a node is ahead of ours, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Now; it may have been set since the times were made. Zero: that is not known.
    Now(i64),
    /// When the times were made.
    Then(i64),
}

impl NodeClock {
    /// As a status tells it that was made just now, on the boot of this name.
    pub fn of(status: &Status, boot_id: &str, now_ns: i64) -> Self {
        Self {
            ahead_ns: offset_ns(status, now_ns),
            clock_ns: status.clock_ns,
            boot_id: boot_id.to_owned(),
        }
    }

    /// Whether it is more than a wrong clock as any other.
    pub fn is_wrong_by_days(&self) -> bool {
        whole_days(self.ahead_ns) != 0
    }

    /// Of the clock by which the times of a batch were made.
    pub(super) fn ahead(&self, batch: &Batch) -> Ahead {
        if self.clock_ns == 0 || batch.clock_ns == 0 || batch.boot_id != self.boot_id {
            return Ahead::Now(self.ahead_ns);
        }
        let set_ns = batch.clock_ns.saturating_sub(self.clock_ns);
        Ahead::Then(self.ahead_ns.saturating_add(set_ns))
    }
}

impl Ahead {
    pub(super) fn whole_days(self) -> i64 {
        let (Self::Now(ns) | Self::Then(ns)) = self;
        whole_days(ns)
    }
}

/// Days by which something is to be moved that an agent made at `at_ns` by its clock. Zero where that clock was right.
pub(super) fn days(at_ns: i64, now_ns: i64, ahead: Ahead) -> i64 {
    let off = ahead.whole_days();
    let ahead_ns = at_ns.saturating_sub(now_ns);
    let is_explained = ahead_ns.saturating_sub(off.saturating_mul(DAY_NS)) <= DAY_NS;
    // Nothing was made later than now: what lies there was dated by the clock as it is, if that explains it.
    let is_of_that_clock = matches!(ahead, Ahead::Then(_)) || off > 0 && ahead_ns > 0;
    if is_of_that_clock && is_explained {
        return -off;
    }
    // The clock was set since, or what it says is not known.
    if ahead_ns > DAY_NS {
        return -(ahead_ns / DAY_NS + i64::from(ahead_ns % DAY_NS != 0));
    }
    // What was made before the clock was set back is younger than that.
    let age_ns = now_ns.saturating_sub(at_ns).saturating_add(SLACK_NS);
    if off < 0 && age_ns >= (-off).saturating_mul(DAY_NS) {
        return -off;
    }
    0
}

/// Moves the times of a batch.
pub(super) fn shift(columns: &mut Columns, days: i64) {
    let by_ns = days.saturating_mul(DAY_NS);
    let delta = |deltas: &mut Vec<i64>| {
        if let Some(first) = deltas.first_mut() {
            *first = first.saturating_add(by_ns);
        }
    };
    let time = |ns: &mut u64| *ns = ns.saturating_add_signed(by_ns);
    match columns {
        Columns::Connections(columns) => delta(&mut columns.opened_ns_delta),
        Columns::OpenConnections(look) => {
            time(&mut look.observed_at_ns);
            if let Some(columns) = &mut look.connections {
                delta(&mut columns.opened_ns_delta);
            }
        }
        Columns::Listeners(look) => time(&mut look.observed_at_ns),
        Columns::Namespaces(look) => time(&mut look.observed_at_ns),
        Columns::Cgroups(look) => time(&mut look.observed_at_ns),
        Columns::Peers(look) => {
            time(&mut look.began_ns);
            time(&mut look.ended_ns);
        }
        Columns::Syscalls(columns) => {
            time(&mut columns.began_ns);
            time(&mut columns.ended_ns);
        }
        Columns::Transitions(columns) => delta(&mut columns.at_ns_delta),
        Columns::Overhead(rows) => {
            for interval in &mut rows.intervals {
                time(&mut interval.began_ns);
                time(&mut interval.ended_ns);
            }
        }
        Columns::Gaps(rows) => {
            for gap in &mut rows.gaps {
                time(&mut gap.first_ns);
                time(&mut gap.last_ns);
            }
        }
    }
}

/// How far the clock that a status was made by is ahead of ours, if it was made just now.
fn offset_ns(status: &Status, now_ns: i64) -> i64 {
    let at_ns = i64::try_from(status.observed_at_ns).unwrap_or(i64::MAX);
    at_ns.saturating_sub(now_ns)
}

/// Moves the times of a status that was made just now by as many days as the clock is wrong.
pub fn status(status: &mut Status, now_ns: i64) {
    let by_ns = -whole_days(offset_ns(status, now_ns)).saturating_mul(DAY_NS);
    if by_ns == 0 {
        return;
    }
    let watches = status.watches.iter_mut().map(|watch| &mut watch.since_ns);
    let times = [
        &mut status.observed_at_ns,
        &mut status.watermark_ns,
        &mut status.attempts_watermark_ns,
    ];
    // Zero is no time.
    for ns in times.into_iter().chain(watches).filter(|ns| **ns != 0) {
        *ns = ns.saturating_add_signed(by_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: i64 = 1_800_000_000 * 1_000_000_000;

    #[test]
    fn a_clock_that_is_wrong_by_days_is_corrected_by_whole_ones() {
        let (half, minute) = (DAY_NS / 2, DAY_NS / 1_440);
        for (off_ns, days_moved) in [
            (0, 0),
            (half, 0),
            (-half, 0),
            (3 * DAY_NS, -3),
            (3 * DAY_NS - minute, -3),
            (3 * DAY_NS + half, -3),
            (-DAY_NS + minute, 1),
            (-DAY_NS - half, 1),
            (-50 * DAY_NS, 50),
            (-50 * DAY_NS - half, 50),
        ] {
            assert_eq!(
                days(NOW_NS + off_ns, NOW_NS, Ahead::Now(off_ns)),
                days_moved,
                "{off_ns}"
            );
            // On its way for a while.
            let late_ns = NOW_NS + off_ns - minute;
            assert_eq!(days(late_ns, NOW_NS, Ahead::Now(off_ns)), days_moved, "{off_ns}");
        }
    }

    #[test]
    fn what_was_made_while_the_clock_was_right_stays() {
        let hour = DAY_NS / 24;
        assert_eq!(days(NOW_NS - hour, NOW_NS, Ahead::Now(3 * DAY_NS)), 0);
        assert_eq!(days(NOW_NS - 7 * DAY_NS, NOW_NS, Ahead::Now(-50 * DAY_NS)), 0);
    }

    #[test]
    fn what_waited_long_under_a_clock_that_is_ahead_is_moved_all_the_same() {
        assert_eq!(days(NOW_NS + DAY_NS / 2, NOW_NS, Ahead::Now(3 * DAY_NS)), -3);
        assert_eq!(days(NOW_NS - 52 * DAY_NS, NOW_NS, Ahead::Now(-50 * DAY_NS)), 50);
    }

    #[test]
    fn a_clock_that_is_not_known_or_was_set_since_is_at_most_now() {
        for offset_ns in [0, -DAY_NS, DAY_NS * 3 / 2] {
            assert_eq!(
                days(NOW_NS + 3 * DAY_NS, NOW_NS, Ahead::Now(offset_ns)),
                -3,
                "{offset_ns}"
            );
            assert_eq!(
                days(NOW_NS + 3 * DAY_NS + 1, NOW_NS, Ahead::Now(offset_ns)),
                -4,
                "{offset_ns}"
            );
        }
        assert!(
            days(i64::MAX, NOW_NS, Ahead::Now(0)) < 0 && days(i64::MIN, NOW_NS, Ahead::Now(i64::MIN)) > 0
        );
    }

    #[test]
    fn what_waited_while_the_clock_was_set_is_moved_by_what_it_was_wrong_then() {
        let told = |set_days: i64, boot_id: &str| Batch {
            clock_ns: 5 + set_days * DAY_NS,
            boot_id: boot_id.to_owned(),
            ..Batch::default()
        };
        let right = NodeClock {
            ahead_ns: 0,
            clock_ns: 5,
            boot_id: "b1".to_owned(),
        };
        let wrong = NodeClock {
            ahead_ns: 10 * DAY_NS,
            clock_ns: 5 + 10 * DAY_NS,
            ..right.clone()
        };
        for clock in [&right, &wrong] {
            for set_days in [-46, 0, 3, 10] {
                let ahead = clock.ahead(&told(set_days, "b1"));
                assert_eq!(ahead, Ahead::Then(set_days * DAY_NS));
                let at_ns = NOW_NS - 60_000_000_000 + set_days * DAY_NS;
                assert_eq!(days(at_ns, NOW_NS, ahead), -set_days);
            }
        }
        // Of an earlier boot nothing is known, nor of an agent that does not tell.
        assert_eq!(wrong.ahead(&told(3, "b0")), Ahead::Now(10 * DAY_NS));
        assert_eq!(wrong.ahead(&Batch::default()), Ahead::Now(10 * DAY_NS));
        // Nothing lies in the future, whatever is told.
        let lie = right.ahead(&told(0, "b1"));
        assert_eq!(days(NOW_NS + 9 * DAY_NS, NOW_NS, lie), -9);
    }

    #[test]
    fn a_status_is_moved_with_all_its_times_and_none_that_is_absent() {
        let at = |off_days: i64| (NOW_NS + off_days * DAY_NS) as u64;
        for off_days in [-50, 0, 3] {
            let mut moved = Status {
                observed_at_ns: at(off_days),
                watermark_ns: at(off_days) - 5,
                attempts_watermark_ns: 0,
                ..Status::default()
            };
            status(&mut moved, NOW_NS);
            let times = (
                moved.observed_at_ns,
                moved.watermark_ns,
                moved.attempts_watermark_ns,
            );
            assert_eq!(times, (at(0), at(0) - 5, 0), "{off_days}");
        }
    }
}
