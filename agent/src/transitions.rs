//! Every transition on its way, where they are streamed: packed columns, one row at a time, sealed as [`crate::batch`] seals
//! those of connections. Pure but for the names of services: the times are arguments.

use std::{sync::Arc, time::Duration};

use holdfast_agent_ebpf::event::Transition;
use holdfast_proto::v1::{self, Process, Stream, TransitionColumns, batch};
use prost::Message;

use crate::{
    batch::{DAY_NS, Limits},
    clock::Clock,
    counters::RowsByNetns,
    spool::{BatchId, Sealed},
    wire::{Dictionary, ProcessKey, mapped, text},
    workloads::Workloads,
};

/// Bytes that a row takes at most when its dictionaries already know its words.
const ROW_BYTES: usize = 64;

/// Transitions, as the columns of a batch that is being filled.
#[derive(Default)]
struct TransitionRows {
    columns: TransitionColumns,
    // The columns of one byte a row; protobuf's `bytes`, once the batch is sealed.
    role: Vec<u8>,
    attribution: Vec<u8>,
    from: Vec<u8>,
    to: Vec<u8>,
    step: Vec<u8>,
    processes: Dictionary<ProcessKey>,
    addresses: Dictionary<[u8; 16]>,
    last_at_ns: i64,
    last_cookie: i64,
    estimated_bytes: usize,
}

impl TransitionRows {
    fn push(&mut self, transition: &Transition, at_ns: u64) {
        let columns = &mut self.columns;
        self.estimated_bytes += ROW_BYTES;
        let at_ns = at_ns as i64;
        columns.at_ns_delta.push(at_ns.wrapping_sub(self.last_at_ns));
        self.last_at_ns = at_ns;
        columns
            .open_ns
            .push(transition.at_ns.saturating_sub(transition.opened_ns));
        let cookie = transition.cookie as i64;
        columns.cookie_delta.push(cookie.wrapping_sub(self.last_cookie));
        self.last_cookie = cookie;

        let process = ProcessKey {
            pid: transition.pid,
            netns: transition.netns,
            cgroup_id: transition.cgroup_id,
            comm: transition.comm,
        };
        columns.process.push(self.processes.index(process, || {
            self.estimated_bytes += 48;
            columns.processes.push(Process {
                pid: process.pid,
                comm: text(&process.comm),
                cgroup_id: process.cgroup_id,
                netns: process.netns,
                service: String::new(),
            });
        }));
        for (address, column) in [
            (&transition.local_address, &mut columns.local_address),
            (&transition.remote_address, &mut columns.remote_address),
        ] {
            let mapped = mapped(address, transition.family);
            column.push(self.addresses.index(mapped, || {
                self.estimated_bytes += 18;
                columns.addresses.push(mapped.to_vec().into());
            }));
        }
        columns.local_port.push(transition.local_port.into());
        columns.remote_port.push(transition.remote_port.into());
        self.role.push(transition.role);
        self.attribution.push(transition.attribution);
        self.from.push(transition.from);
        self.to.push(transition.to);
        self.step.push(transition.step);
    }

    fn finish(self) -> TransitionColumns {
        TransitionColumns {
            role: self.role.into(),
            attribution: self.attribution.into(),
            from_state: self.from.into(),
            to_state: self.to.into(),
            step: self.step.into(),
            ..self.columns
        }
    }
}

/// Fills batches of the stream of transitions.
pub struct TransitionBatcher {
    limits: Limits,
    epoch: u64,
    boot_id: String,
    /// Who names the services of its processes; `None`: nobody.
    workloads: Option<Arc<Workloads>>,
    rows: TransitionRows,
    /// When the oldest row came. Meaningless without rows, as the two below.
    oldest: Duration,
    first_ns: u64,
    last_ns: u64,
    by_netns: RowsByNetns,
    last_sequence: u64,
}

impl TransitionBatcher {
    /// An empty one for a start of the agent; the first batch has the sequence 1.
    pub fn new(limits: Limits, epoch: u64, boot_id: &str) -> Self {
        Self {
            limits,
            epoch,
            boot_id: boot_id.to_owned(),
            workloads: None,
            rows: TransitionRows::default(),
            oldest: Duration::ZERO,
            first_ns: 0,
            last_ns: 0,
            by_netns: RowsByNetns::new(),
            last_sequence: 0,
        }
    }

    /// Has the services of its processes named.
    pub fn named_by(mut self, workloads: Arc<Workloads>) -> Self {
        self.workloads = Some(workloads);
        self
    }

    /// Adds a transition at the monotonic time `now`. Gives back the batch that it did not belong to any more, or the one
    /// that it filled.
    pub fn push(
        &mut self,
        transition: &Transition,
        clock: Clock,
        now: Duration,
    ) -> Option<(Sealed, RowsByNetns)> {
        let at_ns = clock.wall_ns(transition.at_ns);
        let is_another_day = at_ns / DAY_NS != self.first_ns / DAY_NS;
        let before = if !self.rows.to.is_empty() && is_another_day {
            self.seal()
        } else {
            None
        };
        if self.rows.to.is_empty() {
            self.oldest = now;
            (self.first_ns, self.last_ns) = (at_ns, at_ns);
        }
        self.first_ns = self.first_ns.min(at_ns);
        self.last_ns = self.last_ns.max(at_ns);
        self.by_netns.entry(transition.netns).or_default().add(true);
        self.rows.push(transition, at_ns);
        if self.rows.to.len() >= self.limits.rows || self.rows.estimated_bytes >= self.limits.bytes {
            return before.or_else(|| self.seal());
        }
        before
    }

    /// Gives the batch that has waited long enough at the monotonic time `now`.
    pub fn tick(&mut self, now: Duration) -> Option<(Sealed, RowsByNetns)> {
        if !self.rows.to.is_empty() && now.saturating_sub(self.oldest) >= self.limits.age {
            return self.seal();
        }
        None
    }

    /// Gives what is there, however little, and how many rows of each namespace are in it.
    pub fn seal(&mut self) -> Option<(Sealed, RowsByNetns)> {
        if self.rows.to.is_empty() {
            return None;
        }
        let rows = std::mem::take(&mut self.rows);
        let len = rows.to.len();
        let mut columns = rows.finish();
        if let Some(workloads) = &self.workloads {
            workloads.name(&mut columns.processes);
        }
        self.last_sequence += 1;
        let batch = v1::Batch {
            stream: Stream::Transitions.into(),
            sequence: self.last_sequence,
            rows: len as u32,
            boot_id: self.boot_id.clone(),
            columns: Some(batch::Columns::Transitions(columns)),
        };
        let sealed = Sealed {
            id: BatchId {
                epoch: self.epoch,
                stream: Stream::Transitions,
                sequence: self.last_sequence,
            },
            rows: batch.rows,
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            encoded: batch.encode_to_vec().into(),
        };
        Some((sealed, std::mem::take(&mut self.by_netns)))
    }
}

#[cfg(test)]
mod tests {
    use holdfast_agent_ebpf::event::{role, state};

    use super::*;
    use crate::counters::Rows;

    const CLOCK: Clock = Clock::with_offset_ns(0);

    fn transition(at_ns: u64, netns: u32) -> Transition {
        Transition {
            at_ns,
            opened_ns: at_ns - 1_000,
            cookie: 9,
            cgroup_id: 3,
            local_address: [u32::from_ne_bytes([127, 0, 0, 1]), 0, 0, 0],
            remote_address: [u32::from_ne_bytes([127, 0, 0, 2]), 0, 0, 0],
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            netns,
            pid: 7,
            local_port: 40_000,
            remote_port: 80,
            family: 2,
            role: role::ACTIVE,
            attribution: 1,
            from: state::SYN_SENT,
            to: state::ESTABLISHED,
            step: 2,
            reserved: [0; 6],
        }
    }

    fn batcher(rows: usize) -> TransitionBatcher {
        let limits = Limits {
            rows,
            ..Limits::default()
        };
        TransitionBatcher::new(limits, 7, "boot")
    }

    fn columns(sealed: &Sealed) -> TransitionColumns {
        let batch = v1::Batch::decode(sealed.encoded.clone()).expect("a batch");
        match batch.columns {
            Some(batch::Columns::Transitions(columns)) => columns,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_batch_is_full_or_old_and_counts_its_rows_by_namespace() {
        let mut batcher = batcher(3);
        for netns in [1, 2] {
            assert!(
                batcher
                    .push(&transition(DAY_NS + 5_000, netns), CLOCK, Duration::ZERO)
                    .is_none()
            );
        }
        let (sealed, rows) = batcher
            .push(&transition(DAY_NS + 4_000, 1), CLOCK, Duration::ZERO)
            .expect("a full batch");
        assert_eq!((sealed.rows, sealed.id.sequence), (3, 1));
        assert_eq!(
            (sealed.first_ns, sealed.last_ns),
            (DAY_NS + 4_000, DAY_NS + 5_000)
        );
        let ends = |ends| Rows { ends, announced: 0 };
        assert_eq!(rows, RowsByNetns::from([(1, ends(2)), (2, ends(1))]));
        let columns = columns(&sealed);
        assert_eq!(columns.at_ns_delta, [DAY_NS as i64 + 5_000, 0, -1_000]);
        assert_eq!(columns.open_ns, [1_000; 3]);
        assert_eq!((columns.processes.len(), columns.addresses.len()), (2, 2));
        assert_eq!(&columns.to_state[..], [state::ESTABLISHED; 3]);

        batcher.push(&transition(DAY_NS + 6_000, 1), CLOCK, Duration::ZERO);
        let age = Limits::default().age;
        assert!(batcher.tick(age - Duration::from_nanos(1)).is_none());
        assert_eq!(batcher.tick(age).expect("an old batch").0.id.sequence, 2);
        assert!(batcher.seal().is_none());
    }

    #[test]
    fn a_batch_never_spans_midnight() {
        let mut batcher = batcher(100);
        assert!(
            batcher
                .push(&transition(2 * DAY_NS - 1, 1), CLOCK, Duration::ZERO)
                .is_none()
        );
        let (yesterday, _) = batcher
            .push(&transition(2 * DAY_NS, 1), CLOCK, Duration::ZERO)
            .expect("the day before");
        assert_eq!(yesterday.rows, 1);
        assert_eq!(batcher.seal().expect("today").0.rows, 1);
    }
}
