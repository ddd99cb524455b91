//! When a batch is full: by rows, by bytes, by age, at the end of a UTC day, and when the clock is set. Pure but for the names of services: the
//! times are arguments.
//!
//! A batch is numbered when it is sealed and never changes again; sent again, it is the same bytes.

use std::{sync::Arc, time::Duration};

use holdfast_agent_ebpf::event::{ConnectionRecord, flag, state, step_offset_ns, step_state};
use holdfast_proto::v1::{Process, Stream, batch};

use crate::{
    clock::Clock, counters::RowsByNetns, seal::Sealer, spool::Sealed, wire::ConnectionRows,
    workloads::Workloads,
};

/// When to seal.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Rows in a batch at most.
    pub rows: usize,
    /// Encoded bytes in a batch at most, by the estimate of [`Packed::estimated_bytes`].
    pub bytes: usize,
    /// The oldest row waits so long at most.
    pub age: Duration,
    /// The same while batches pile up in the spool: nobody waits for these rows, and what is known of a batch takes memory, however
    /// few rows it has.
    pub age_behind: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // 8,192 rows are 60 ms of the highest connection rate that two cores reach, and already amortise the
        // dictionaries; 200 ms leaves most of a second for the way into the store.
        Self {
            rows: 8_192,
            bytes: 1 << 20,
            age: Duration::from_millis(200),
            age_behind: Duration::from_secs(2),
        }
    }
}

/// Rows of one stream, as the packed columns of a batch that is being filled.
pub trait Packed: Default {
    /// What the kernel tells.
    type Row;

    const STREAM: Stream;

    /// Rows so far.
    fn len(&self) -> usize;

    /// Whether there is no row.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An upper bound of the encoded size, in bytes.
    fn estimated_bytes(&self) -> usize;

    /// Adds a row.
    fn push(&mut self, row: &Self::Row, clock: Clock);

    /// The finished columns, once their processes are named.
    fn finish(self, name: impl FnOnce(&mut [Process])) -> batch::Columns;

    /// Inode of the row's network namespace.
    fn netns(row: &Self::Row) -> u32;

    /// Whether nothing more follows that the counters wait for.
    fn is_end(row: &Self::Row) -> bool;

    /// The wall time at which the kernel made the row, in nanoseconds since the Unix epoch: what the store partitions by.
    fn recorded_ns(row: &Self::Row, clock: Clock) -> u64;

    /// The wall time at which what it tells was decided, in nanoseconds since the Unix epoch, if that was earlier.
    fn decided_ns(row: &Self::Row, clock: Clock) -> u64;
}

/// Fills batches of one stream.
pub struct Batcher<R = ConnectionRows> {
    limits: Limits,
    sealer: Sealer,
    /// Who names the services of its processes; `None`: nobody.
    workloads: Option<Arc<Workloads>>,
    rows: R,
    /// When the oldest row came. Meaningless without rows, as what is below.
    oldest: Duration,
    /// When the kernel made the first and the last of them; all on one UTC day.
    first_ns: u64,
    last_ns: u64,
    /// When the first of them was decided or made: a connection that ended before it was announced is one record, made
    /// later than its attempt was decided.
    earliest_ns: u64,
    by_netns: RowsByNetns,
    /// What their times were made by.
    clock: Clock,
}

/// A clock that is off by less was not set, it was slewed.
const SLEW_NS: u64 = 1_000_000_000;

/// Nanoseconds of a UTC day, which no batch spans two of.
pub(crate) const DAY_NS: u64 = 86_400_000_000_000;

impl<R: Packed> Batcher<R> {
    /// An empty one for a start of the agent; the first batch has the sequence 1.
    pub fn new(limits: Limits, epoch: u64, boot_id: &str) -> Self {
        Self {
            limits,
            sealer: Sealer::new(epoch, boot_id),
            workloads: None,
            rows: R::default(),
            oldest: Duration::ZERO,
            first_ns: 0,
            last_ns: 0,
            earliest_ns: 0,
            by_netns: RowsByNetns::new(),
            clock: Clock::with_offset_ns(0),
        }
    }

    /// Has the services of its processes named.
    pub fn named_by(mut self, workloads: Arc<Workloads>) -> Self {
        self.workloads = Some(workloads);
        self
    }

    /// Adds a row at the monotonic time `now`. Gives back the batch that the row did not belong to any more, or the one
    /// that it filled.
    pub fn push(&mut self, row: &R::Row, clock: Clock, now: Duration) -> Option<(Sealed, RowsByNetns)> {
        let recorded_ns = R::recorded_ns(row, clock);
        let is_another_day = recorded_ns / DAY_NS != self.first_ns / DAY_NS;
        let is_another_clock = clock.offset_ns().abs_diff(self.clock.offset_ns()) >= SLEW_NS;
        let before = if !self.rows.is_empty() && (is_another_day || is_another_clock) {
            self.seal()
        } else {
            None
        };
        if self.rows.is_empty() {
            self.oldest = now;
            (self.first_ns, self.last_ns) = (recorded_ns, recorded_ns);
            self.earliest_ns = recorded_ns;
            self.clock = clock;
        }
        self.earliest_ns = self.earliest_ns.min(R::decided_ns(row, clock)).min(recorded_ns);
        self.first_ns = self.first_ns.min(recorded_ns);
        self.last_ns = self.last_ns.max(recorded_ns);
        let rows = self.by_netns.entry(R::netns(row)).or_default();
        rows.add(R::is_end(row));
        self.rows.push(row, clock);
        if self.rows.len() >= self.limits.rows || self.rows.estimated_bytes() >= self.limits.bytes {
            debug_assert!(before.is_none(), "limits hold more than one row");
            return before.or_else(|| self.seal());
        }
        before
    }

    /// Gives the batch that has waited long enough at the monotonic time `now`. `is_behind`: batches pile up.
    pub fn tick(&mut self, now: Duration, is_behind: bool) -> Option<(Sealed, RowsByNetns)> {
        let age = if is_behind {
            self.limits.age_behind
        } else {
            self.limits.age
        };
        if !self.rows.is_empty() && now.saturating_sub(self.oldest) >= age {
            return self.seal();
        }
        None
    }

    /// When the first of the rows that wait was decided or made; `None` without rows.
    pub fn earliest_ns(&self) -> Option<u64> {
        (!self.rows.is_empty()).then_some(self.earliest_ns)
    }

    /// Gives what is there, however little, and how many rows of each namespace are in it.
    pub fn seal(&mut self) -> Option<(Sealed, RowsByNetns)> {
        if self.rows.is_empty() {
            return None;
        }
        let rows = std::mem::take(&mut self.rows);
        let len = rows.len();
        let columns = rows.finish(|processes| {
            if let Some(workloads) = &self.workloads {
                workloads.name(processes);
            }
        });
        let span_ns = self.earliest_ns..=self.last_ns;
        let sealed = self
            .sealer
            .seal_span(R::STREAM, len, span_ns, Some(self.clock), columns);
        Some((sealed, std::mem::take(&mut self.by_netns)))
    }
}

impl Packed for ConnectionRows {
    type Row = ConnectionRecord;

    const STREAM: Stream = Stream::Connections;

    fn len(&self) -> usize {
        self.len()
    }

    fn estimated_bytes(&self) -> usize {
        self.estimated_bytes()
    }

    fn push(&mut self, record: &ConnectionRecord, clock: Clock) {
        self.push(record, clock);
    }

    fn finish(self, name: impl FnOnce(&mut [Process])) -> batch::Columns {
        let mut columns = self.finish();
        name(&mut columns.processes);
        batch::Columns::Connections(columns)
    }

    fn netns(record: &ConnectionRecord) -> u32 {
        record.netns
    }

    fn is_end(record: &ConnectionRecord) -> bool {
        record.flags & flag::FINAL != 0
    }

    /// By its last step.
    fn recorded_ns(record: &ConnectionRecord, clock: Clock) -> u64 {
        let offset_ns = record.steps().last().map_or(0, |&step| step_offset_ns(step));
        // To the microsecond after the opening, as the store will compute it.
        clock
            .wall_ns(record.opened_ns)
            .saturating_add(offset_ns / 1_000 * 1_000)
    }

    /// Of a first record, when its attempt was.
    fn decided_ns(record: &ConnectionRecord, clock: Clock) -> u64 {
        let established = record
            .steps()
            .iter()
            .find(|&&step| step_state(step) == state::ESTABLISHED);
        match established {
            Some(&step) if record.flags & flag::FIRST != 0 => clock
                .wall_ns(record.opened_ns)
                .saturating_add(step_offset_ns(step)),
            _ => Self::recorded_ns(record, clock),
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_agent_ebpf::{
        event::{role, state, step},
        limits::PATH_STEPS,
    };
    use proptest::prelude::*;

    use super::*;
    use crate::counters::Rows;

    const CLOCK: Clock = Clock::with_offset_ns(0);

    fn closed_at(wall_ns: u64) -> ConnectionRecord {
        let mut path = [0; PATH_STEPS];
        path[0] = step(state::SYN_SENT, 0);
        path[1] = step(state::CLOSE, 1_000);
        ConnectionRecord {
            opened_ns: wall_ns - 1_000,
            path,
            path_len: 2,
            role: role::ACTIVE,
            flags: flag::FIRST | flag::FINAL,
            ..ConnectionRecord::ZERO
        }
    }

    fn batcher(rows: usize) -> Batcher {
        Batcher::new(
            Limits {
                rows,
                ..Limits::default()
            },
            7,
            "boot",
        )
    }

    #[test]
    fn a_batch_is_as_old_as_the_first_decision_in_it() {
        let mut batcher = batcher(10);
        assert_eq!(batcher.earliest_ns(), None);
        let mut path = [0; PATH_STEPS];
        path[0] = step(state::SYN_SENT, 0);
        path[1] = step(state::ESTABLISHED, 5_000);
        path[2] = step(state::CLOSE, 90_000);
        let short = ConnectionRecord {
            opened_ns: DAY_NS,
            path,
            path_len: 3,
            ..closed_at(DAY_NS + 1_000)
        };
        batcher.push(&closed_at(DAY_NS + 80_000), CLOCK, Duration::ZERO);
        batcher.push(&short, CLOCK, Duration::ZERO);
        assert_eq!(batcher.earliest_ns(), Some(DAY_NS + 5_000));
        // An announced connection was decided in a batch of its own.
        let ended = ConnectionRecord {
            flags: flag::FINAL,
            opened_ns: DAY_NS - 1_000_000_000,
            ..short
        };
        let (batch, _) = batcher
            .push(&ended, CLOCK, Duration::ZERO)
            .expect("it is of the day before");
        assert_eq!(
            (batch.first_ns, batcher.earliest_ns()),
            (DAY_NS + 5_000, Some(DAY_NS - 999_910_000))
        );
    }

    #[test]
    fn a_full_batch_is_sealed_with_the_row_that_filled_it() {
        let mut batcher = batcher(3);
        assert!(batcher.push(&closed_at(DAY_NS), CLOCK, Duration::ZERO).is_none());
        assert!(batcher.push(&closed_at(DAY_NS), CLOCK, Duration::ZERO).is_none());
        let (batch, _) = batcher
            .push(&closed_at(DAY_NS), CLOCK, Duration::ZERO)
            .expect("a full batch");
        assert_eq!((batch.rows, batch.id.sequence, batch.id.epoch), (3, 1, 7));
        assert!(batcher.seal().is_none());
    }

    #[test]
    fn a_batch_is_sealed_by_the_age_of_its_oldest_row() {
        let mut batcher = batcher(100);
        assert!(
            batcher.tick(Duration::from_secs(9), false).is_none(),
            "nothing to seal"
        );
        batcher.push(&closed_at(DAY_NS), CLOCK, Duration::from_secs(10));
        batcher.push(&closed_at(DAY_NS), CLOCK, Duration::from_millis(10_199));
        assert!(batcher.tick(Duration::from_millis(10_199), false).is_none());
        assert!(batcher.tick(Duration::from_millis(11_999), true).is_none());
        assert_eq!(
            batcher
                .tick(Duration::from_millis(10_200), false)
                .expect("an old batch")
                .0
                .rows,
            2
        );
    }

    #[test]
    fn a_batch_is_sealed_by_its_size() {
        let mut batcher: Batcher = Batcher::new(
            Limits {
                rows: 1_000_000,
                bytes: 10_000,
                age: Duration::MAX,
                age_behind: Duration::MAX,
            },
            7,
            "boot",
        );
        let sealed = (0..1_000).find_map(|_| batcher.push(&closed_at(DAY_NS), CLOCK, Duration::ZERO));
        let (batch, by_netns) = sealed.expect("a batch of its size");
        assert!(batch.encoded.len() <= 10_000);
        assert!(batch.rows > 50, "{} rows", batch.rows);
        assert_eq!(
            by_netns,
            RowsByNetns::from([(
                0,
                Rows {
                    ends: batch.rows.into(),
                    announced: 0
                }
            )])
        );
    }

    #[test]
    fn a_batch_never_spans_midnight() {
        let mut batcher = batcher(100);
        assert!(
            batcher
                .push(&closed_at(DAY_NS - 1_000), CLOCK, Duration::ZERO)
                .is_none()
        );
        let (yesterday, _) = batcher
            .push(&closed_at(DAY_NS), CLOCK, Duration::ZERO)
            .expect("the day before");
        assert_eq!((yesterday.rows, yesterday.id.sequence), (1, 1));
        assert_eq!(batcher.seal().expect("today").0.id.sequence, 2);
    }

    proptest! {
        #[test]
        fn no_row_is_lost_and_no_sequence_is_skipped(
            gaps in prop::collection::vec((0..DAY_NS, 0..500_u64), 0..200), limit in 2..20_usize
        ) {
            let mut batcher = batcher(limit);
            let (mut wall, mut now) = (DAY_NS, Duration::ZERO);
            let mut sealed = Vec::new();
            for (row, (wall_step, step_ms)) in gaps.iter().enumerate() {
                wall += wall_step / 50;
                now += Duration::from_millis(*step_ms);
                sealed.extend(batcher.tick(now, false));
                let netns = row as u32 % 3;
                let flags = if row % 4 == 0 { flag::FIRST } else { flag::FINAL };
                sealed.extend(batcher.push(&ConnectionRecord { netns, flags, ..closed_at(wall) }, CLOCK, now));
            }
            sealed.extend(batcher.seal());
            prop_assert_eq!(sealed.iter().map(|(batch, _)| batch.rows as usize).sum::<usize>(), gaps.len());
            for (index, (batch, _)) in sealed.iter().enumerate() {
                prop_assert_eq!(batch.id.sequence, index as u64 + 1);
                prop_assert_eq!(batch.first_ns / DAY_NS, batch.last_ns / DAY_NS);
                prop_assert!(batch.rows as usize <= limit);
                let by_netns = crate::wire::rows_by_netns(&batch.encoded);
                prop_assert_eq!(by_netns.as_ref(), Some(&sealed[index].1));
            }
        }
    }
}
