//! An interval becomes batches of the stream of syscalls: packed columns, with every name once. Pure: the times are
//! arguments.

use std::sync::Arc;

use holdfast_agent_ebpf::limits::COMM_BYTES;
use holdfast_proto::v1::{Stream, SyscallCaller, SyscallColumns, batch};
use rustc_hash::FxHashMap;

use super::{
    interval::{Caller, Calls, Sum},
    names::name,
};
use crate::{clock::Moment, seal::Sealer, spool::Sealed, wire::text, workloads::Workloads};

/// Rows of a batch.
const ROWS: usize = 8_192;

/// Encoded bytes of a batch, at most: a row takes so many, an errno or a bucket so many more, and a caller.
const BYTES: usize = 1 << 20;
const ROW_BYTES: usize = 24;
const DETAIL_BYTES: usize = 13;
const CALLER_BYTES: usize = 64;

/// What all rows of an interval have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub began: Moment,
    pub ended: Moment,
    /// One call in so many was measured; zero: none.
    pub measured_one_in: u32,
}

/// Seals batches of the stream of syscalls.
pub struct SyscallBatcher {
    sealer: Sealer,
    /// Who names the callers' services; `None`: nobody.
    workloads: Option<Arc<Workloads>>,
}

/// A batch, and how many calls are in its rows.
pub struct SealedCalls {
    pub sealed: Sealed,
    pub calls: u64,
}

impl SyscallBatcher {
    /// For a start of the agent; the first batch has the sequence 1.
    pub fn new(epoch: u64, boot_id: &str) -> Self {
        Self {
            sealer: Sealer::new(epoch, boot_id),
            workloads: None,
        }
    }

    /// Has the services of the callers named.
    pub fn named_by(mut self, workloads: Arc<Workloads>) -> Self {
        self.workloads = Some(workloads);
        self
    }

    /// As many batches as the interval needs; none if there was no call.
    pub fn seal(&mut self, frame: Frame, callers: &[(Caller, Calls)]) -> Vec<SealedCalls> {
        let mut sealed = Vec::new();
        let mut rows = Rows::new(frame);
        for (caller, calls) in callers {
            for (&number, sum) in &calls.by_number {
                rows.push(*caller, calls.processes, number, sum);
                if rows.columns.calls.len() >= ROWS || rows.estimated_bytes >= BYTES {
                    let full = std::mem::replace(&mut rows, Rows::new(frame));
                    sealed.push(self.seal_rows(full));
                }
            }
        }
        if !rows.columns.calls.is_empty() {
            sealed.push(self.seal_rows(rows));
        }
        sealed
    }

    fn seal_rows(&mut self, rows: Rows) -> SealedCalls {
        let Rows {
            ended, mut columns, ..
        } = rows;
        if let Some(workloads) = &self.workloads {
            for caller in columns.callers.iter_mut().filter(|caller| caller.processes > 0) {
                caller.cgroup_id = workloads.locate(caller.cgroup_id, caller.pid);
                caller.service = workloads.service(caller.cgroup_id, &caller.comm);
            }
        }
        let (calls, count) = (columns.calls.iter().sum(), columns.calls.len());
        let columns = batch::Columns::Syscalls(columns);
        SealedCalls {
            // The store dates the rows by the interval's end.
            sealed: self.sealer.seal(Stream::Syscalls, count, ended, columns),
            calls,
        }
    }
}

/// Rows, as the columns of a batch that is being filled.
struct Rows {
    ended: Moment,
    columns: SyscallColumns,
    callers: FxHashMap<Caller, u32>,
    names: FxHashMap<&'static str, u32>,
    estimated_bytes: usize,
}

impl Rows {
    fn new(frame: Frame) -> Self {
        Self {
            ended: frame.ended,
            columns: SyscallColumns {
                began_ns: frame.ended.wall_ns_of(frame.began),
                ended_ns: frame.ended.wall_ns(),
                measured_one_in: frame.measured_one_in,
                ..SyscallColumns::default()
            },
            callers: FxHashMap::default(),
            names: FxHashMap::default(),
            estimated_bytes: 0,
        }
    }

    fn push(&mut self, caller: Caller, processes: u32, number: u16, sum: &Sum) {
        let columns = &mut self.columns;
        let next = columns.callers.len() as u32;
        columns
            .caller
            .push(*self.callers.entry(caller).or_insert_with(|| {
                columns.callers.push(described(caller, processes));
                self.estimated_bytes += CALLER_BYTES;
                next
            }));
        let next = columns.names.len() as u32;
        columns
            .name
            .push(*self.names.entry(name(number)).or_insert_with_key(|name| {
                columns.names.push((*name).to_owned());
                self.estimated_bytes += name.len() + 2;
                next
            }));
        columns.calls.push(sum.calls());
        let failed = sum.results.iter().filter(|(errno, _)| **errno != 0);
        let before = columns.errno.len();
        for (&errno, &calls) in failed {
            columns.errno.push(errno.into());
            columns.failed.push(calls);
        }
        let errnos = columns.errno.len() - before;
        columns.errnos.push(errnos as u32);
        for (&bucket, &calls) in &sum.latencies {
            columns.bucket.push(bucket.into());
            columns.measured.push(calls);
        }
        columns.buckets.push(sum.latencies.len() as u32);
        self.estimated_bytes += ROW_BYTES + DETAIL_BYTES * (errnos + sum.latencies.len());
    }
}

fn described(caller: Caller, processes: u32) -> SyscallCaller {
    let described = |pid, comm: [u8; COMM_BYTES], cgroup_id| SyscallCaller {
        pid,
        comm: text(&comm),
        cgroup_id,
        service: String::new(),
        processes,
    };
    match caller {
        Caller::Process {
            pid, comm, cgroup_id, ..
        } => described(pid, comm, cgroup_id),
        Caller::Ended { comm, cgroup_id } => described(0, comm, cgroup_id),
        Caller::Others => SyscallCaller::default(),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1;
    use prost::Message;

    use super::*;
    use crate::{clock::Clock, syscalls::interval::Interval};

    const FRAME: Frame = Frame {
        began: at(1_000),
        ended: at(2_000),
        measured_one_in: 16,
    };

    const fn at(boot_ns: u64) -> Moment {
        Moment {
            clock: Clock::with_offset_ns(0),
            boot_ns,
        }
    }

    fn process(pid: u32) -> Caller {
        Caller::Process {
            pid,
            began_ns: 1,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            cgroup_id: 9,
        }
    }

    fn columns(sealed: &Sealed) -> SyscallColumns {
        let batch = v1::Batch::decode(sealed.encoded.clone()).expect("a batch");
        assert_eq!(
            (batch.stream(), batch.sequence),
            (Stream::Syscalls, sealed.id.sequence)
        );
        match batch.columns {
            Some(batch::Columns::Syscalls(columns)) => columns,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_row_has_its_calls_errors_and_latencies_and_names_travel_once() {
        let mut interval = Interval::default();
        interval.returned(process(1), 0, 0, 5);
        interval.returned(process(1), 0, 11, 2);
        interval.returned(process(1), 0, 4, 1);
        interval.took(process(1), 0, 80, 3);
        interval.returned(process(2), 0, 0, 7);
        let sealed = SyscallBatcher::new(7, "boot").seal(FRAME, &interval.finish());
        assert_eq!(sealed.len(), 1);
        assert_eq!((sealed[0].calls, sealed[0].sealed.rows), (15, 2));
        let columns = columns(&sealed[0].sealed);
        assert_eq!(
            (columns.began_ns, columns.ended_ns, columns.measured_one_in),
            (1_000, 2_000, 16)
        );
        assert_eq!(
            (&columns.caller[..], &columns.name[..]),
            (&[0, 1][..], &[0, 0][..])
        );
        assert_eq!(
            (columns.names.len(), columns.callers[0].comm.as_str()),
            (1, "curl")
        );
        assert_eq!(columns.calls, [8, 7]);
        assert_eq!(
            (&columns.errnos[..], &columns.errno[..], &columns.failed[..]),
            (&[2, 0][..], &[4, 11][..], &[1, 2][..])
        );
        assert_eq!(
            (&columns.buckets[..], &columns.bucket[..], &columns.measured[..]),
            (&[1, 0][..], &[80][..], &[3][..])
        );
    }

    #[test]
    fn a_large_interval_is_several_batches_and_no_row_is_missing() {
        let mut interval = Interval::default();
        for pid in 1..=3_000 {
            for number in 0..10 {
                interval.returned(process(pid), number, 0, 1);
                for bucket in 0..8 {
                    interval.took(process(pid), number, 80 + bucket, u64::MAX / 1_000_000);
                }
            }
        }
        let mut batcher = SyscallBatcher::new(7, "boot");
        let sealed = batcher.seal(FRAME, &interval.finish());
        assert_eq!(sealed.iter().map(|batch| batch.sealed.rows).sum::<u32>(), 30_000);
        assert_eq!(sealed.iter().map(|batch| batch.calls).sum::<u64>(), 30_000);
        for (index, batch) in sealed.iter().enumerate() {
            assert_eq!(batch.sealed.id.sequence, index as u64 + 1);
            assert!(
                batch.sealed.encoded.len() <= BYTES + 1_024,
                "{}",
                batch.sealed.encoded.len()
            );
        }
        assert!(batcher.seal(FRAME, &[]).is_empty());
    }
}
