//! Every transition on its way, where they are streamed: packed columns, one row at a time. Pure.

use holdfast_agent_ebpf::event::Transition;
use holdfast_proto::v1::{Process, Stream, TransitionColumns, batch};

use crate::{
    batch::{Batcher, Packed},
    clock::Clock,
    wire::{ADDRESS_BYTES, Dictionary, PROCESS_BYTES, ProcessKey, mapped},
};

/// Bytes that a row takes at most when its dictionaries already know its words.
const ROW_BYTES: usize = 64;

/// Fills batches of the stream of transitions.
pub type TransitionBatcher = Batcher<TransitionRows>;

/// Transitions, as the columns of a batch that is being filled.
#[derive(Default)]
pub struct TransitionRows {
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

impl Packed for TransitionRows {
    type Row = Transition;

    const STREAM: Stream = Stream::Transitions;

    fn len(&self) -> usize {
        self.to.len()
    }

    fn estimated_bytes(&self) -> usize {
        self.estimated_bytes
    }

    fn push(&mut self, transition: &Transition, clock: Clock) {
        let columns = &mut self.columns;
        self.estimated_bytes += ROW_BYTES;
        let at_ns = clock.wall_ns(transition.at_ns) as i64;
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
            self.estimated_bytes += PROCESS_BYTES;
            columns.processes.push(process.process());
        }));
        for (address, column) in [
            (&transition.local_address, &mut columns.local_address),
            (&transition.remote_address, &mut columns.remote_address),
        ] {
            let mapped = mapped(address, transition.family);
            column.push(self.addresses.index(mapped, || {
                self.estimated_bytes += ADDRESS_BYTES;
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

    fn finish(self, name: impl FnOnce(&mut [Process])) -> batch::Columns {
        let mut columns = TransitionColumns {
            role: self.role.into(),
            attribution: self.attribution.into(),
            from_state: self.from.into(),
            to_state: self.to.into(),
            step: self.step.into(),
            ..self.columns
        };
        name(&mut columns.processes);
        batch::Columns::Transitions(columns)
    }

    fn netns(transition: &Transition) -> u32 {
        transition.netns
    }

    fn is_end(_: &Transition) -> bool {
        true
    }

    fn recorded_ns(transition: &Transition, clock: Clock) -> u64 {
        clock.wall_ns(transition.at_ns)
    }

    fn decided_ns(transition: &Transition, clock: Clock) -> u64 {
        Self::recorded_ns(transition, clock)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_agent_ebpf::event::{role, state};
    use holdfast_proto::v1;
    use prost::Message;

    use super::*;
    use crate::{
        batch::{DAY_NS, Limits},
        counters::{Rows, RowsByNetns},
        spool::Sealed,
    };

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
        assert!(batcher.tick(age - Duration::from_nanos(1), false).is_none());
        assert_eq!(batcher.tick(age, false).expect("an old batch").0.id.sequence, 2);
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
