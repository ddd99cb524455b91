//! The group that is being gathered: one block for each table and day. Pure: the time is an argument.

use std::mem::discriminant;

use tokio::time::Instant;

use super::encode::gaps_recorded_at_ns;
use super::{Content, Parcel};
use crate::config::Limits;
use crate::ingest::decode::day;

/// Blocks of one group beyond the first of each kind. More days than this at once have only nodes whose clocks are
/// wrong, or spools of a long outage; their groups are smaller.
const MOST_FURTHER_DAYS: usize = 7;

/// What a block is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Connections { day: u32 },
    Gaps { day: u32 },
    OpenConnections { day: u32 },
    Listeners { day: u32 },
    Namespaces { day: u32 },
    Peers { day: u32 },
    Cgroups { day: u32 },
    Syscalls { day: u32 },
    Transitions { day: u32 },
    Overhead { day: u32 },
    Ledger { day: u32 },
    Samples { day: u32 },
    Sessions { day: u32 },
}

impl Key {
    fn of(content: &Content) -> Self {
        match content {
            Content::Connections { columns, .. } => Self::Connections { day: columns.day },
            Content::Gaps { gaps, .. } => Self::Gaps {
                day: day(gaps_recorded_at_ns(gaps)),
            },
            Content::OpenConnections { look, .. } => Self::OpenConnections {
                day: day(look.observed_at_ns),
            },
            Content::Listeners { look, .. } => Self::Listeners {
                day: day(look.observed_at_ns),
            },
            Content::Namespaces { look, .. } => Self::Namespaces {
                day: day(look.observed_at_ns),
            },
            Content::Cgroups { look, .. } => Self::Cgroups {
                day: day(look.observed_at_ns),
            },
            Content::Peers { look, .. } => Self::Peers {
                day: day(look.ended_at_ns),
            },
            Content::Syscalls { columns, .. } => Self::Syscalls { day: columns.day },
            Content::Transitions { columns, .. } => Self::Transitions { day: columns.day },
            // Checked when the batch came: all intervals ended on one day.
            Content::Overhead { intervals, .. } => Self::Overhead {
                day: intervals
                    .first()
                    .map_or(0, |interval| day(interval.ended_ns.cast_signed())),
            },
            Content::Ledger { observed_at_ns, .. } => Self::Ledger {
                day: day(*observed_at_ns),
            },
            Content::Sample { observed_at_ns, .. } => Self::Samples {
                day: day(*observed_at_ns),
            },
            Content::Session { connected_at_ns, .. } => Self::Sessions {
                day: day(*connected_at_ns),
            },
        }
    }
}

/// The parcels of blocks that are inserted together, in the order in which their first parcels arrived.
pub(super) struct Group {
    pub(super) blocks: Vec<Vec<Parcel>>,
}

/// A group that still takes parcels.
pub(super) struct OpenGroup {
    limits: Limits,
    blocks: Vec<(Key, Vec<Parcel>)>,
    rows: usize,
    /// Blocks of kinds that were there already.
    further_days: usize,
    /// When the first parcel arrived; `None` while there is none.
    since: Option<Instant>,
}

impl OpenGroup {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            blocks: Vec::new(),
            rows: 0,
            further_days: 0,
            since: None,
        }
    }

    pub(super) fn push(&mut self, parcel: Parcel, now: Instant) {
        self.push_as(Key::of(&parcel.content), parcel, now);
    }

    fn push_as(&mut self, key: Key, parcel: Parcel, now: Instant) {
        self.rows += parcel.content.rows();
        self.since.get_or_insert(now);
        if let Some((_, parcels)) = self.blocks.iter_mut().find(|(found, _)| *found == key) {
            return parcels.push(parcel);
        }
        let is_of_its_kind = |(found, _): &(Key, _)| discriminant(found) == discriminant(&key);
        self.further_days += usize::from(self.blocks.iter().any(is_of_its_kind));
        self.blocks.push((key, vec![parcel]));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// It waits for nothing more.
    pub(super) fn is_full(&self) -> bool {
        self.rows >= self.limits.gather_rows || self.further_days >= MOST_FURTHER_DAYS
    }

    /// When it is inserted even if it is not full; `None` while it is empty.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.since.map(|since| since + self.limits.gather_interval)
    }

    /// What was gathered; the next group begins empty.
    pub(super) fn take(&mut self) -> Group {
        self.rows = 0;
        self.further_days = 0;
        self.since = None;
        Group {
            blocks: self.blocks.drain(..).map(|(_, parcels)| parcels).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_proto::v1::StreamCounters;

    use super::*;
    use crate::gather::tests::{batch, parcel, run};

    const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

    fn limits(gather_rows: usize) -> Limits {
        Limits {
            gather_rows,
            ..Limits::default()
        }
    }

    #[test]
    fn it_is_full_with_its_rows_and_due_with_its_age() {
        run(async {
            let mut open = OpenGroup::new(limits(25));
            let start = Instant::now();
            assert_eq!((open.is_empty(), open.due_at()), (true, None));
            open.push(parcel("a", batch(1, 10, 0)).await, start);
            open.push(parcel("b", batch(1, 10, 0)).await, start + Duration::from_secs(9));
            assert_eq!(open.due_at(), Some(start + Limits::default().gather_interval));
            assert!(!open.is_full());
            open.push(parcel("a", batch(2, 10, 0)).await, start);
            assert!(open.is_full());
            let group = open.take();
            assert_eq!(group.blocks.iter().map(Vec::len).collect::<Vec<_>>(), [3]);
            assert_eq!(
                (open.is_empty(), open.is_full(), open.due_at()),
                (true, false, None)
            );
        });
    }

    #[test]
    fn a_block_is_of_one_table_and_one_day() {
        run(async {
            let mut open = OpenGroup::new(limits(1000));
            let ledger = |observed_at_ns| Content::Ledger {
                epoch: 7,
                observed_at_ns,
                is_final: false,
                counters: vec![StreamCounters::default()],
            };
            for content in [
                batch(1, 1, 0),
                ledger(DAY_NS - 1),
                batch(2, 1, 1),
                ledger(DAY_NS),
                batch(3, 1, 0),
                ledger(DAY_NS + 1),
            ] {
                open.push(parcel("a", content).await, Instant::now());
            }
            let sequences = |parcels: &Vec<Parcel>| -> Vec<u64> {
                let sequence = |parcel: &Parcel| match &parcel.content {
                    Content::Connections { batch, .. } => batch.sequence,
                    _ => 0,
                };
                parcels.iter().map(sequence).collect()
            };
            let blocks: Vec<_> = open.take().blocks.iter().map(sequences).collect();
            assert_eq!(blocks, [vec![1, 3], vec![0], vec![2], vec![0, 0]]);
        });
    }

    #[test]
    fn days_are_bounded() {
        run(async {
            let mut open = OpenGroup::new(limits(1000));
            for day in 0..=MOST_FURTHER_DAYS as u32 {
                assert!(!open.is_full());
                open.push(parcel("a", batch(1, 1, day)).await, Instant::now());
            }
            assert!(open.is_full());
            open.take();
            assert!(!open.is_full());
        });
    }

    #[test]
    fn one_block_of_each_kind_leaves_the_group_open() {
        run(async {
            let mut open = OpenGroup::new(limits(1000));
            let day = 20_000;
            let kinds = [
                Key::Connections { day },
                Key::Gaps { day },
                Key::OpenConnections { day },
                Key::Listeners { day },
                Key::Namespaces { day },
                Key::Peers { day },
                Key::Cgroups { day },
                Key::Syscalls { day },
                Key::Overhead { day },
                Key::Ledger { day },
                Key::Samples { day },
                Key::Sessions { day },
            ];
            for kind in kinds {
                open.push_as(kind, parcel("a", batch(1, 1, day)).await, Instant::now());
            }
            assert!(!open.is_full());
            assert_eq!(open.take().blocks.len(), kinds.len());
        });
    }
}
