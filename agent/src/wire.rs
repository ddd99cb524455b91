//! Rows become packed columns here, one at a time, as they are decoded from the ring: a batch is never held as rows.

use std::{hash::Hash, time::Duration};

use holdfast_agent_ebpf::event::{ConnectionRecord, SocketReport, flag, step_offset_ns, step_state};
use holdfast_proto::{
    FLAG_FINAL, FLAG_FIRST, FLAG_RESET_RECEIVED, FLAG_RESET_SENT,
    v1::{ConnectionColumns, Listener, Path, Process, Stream},
};
use prost::Message;
use rustc_hash::FxHashMap;

use crate::{
    cause::local_cause,
    clock::Clock,
    counters::{Rows, RowsByNetns},
    network::Queues,
    outcome::{close_reason, outcome, resets},
    spool::Sealed,
};

const AF_INET: u8 = 2;

/// Connection records, as the columns of a batch that is being filled.
#[derive(Default)]
pub struct ConnectionRows {
    columns: ConnectionColumns,
    // The columns of one byte a row; protobuf's `bytes`, once the batch is sealed.
    syn_retransmits: Vec<u8>,
    error: Vec<u8>,
    role: Vec<u8>,
    outcome: Vec<u8>,
    close_reason: Vec<u8>,
    attribution: Vec<u8>,
    flags: Vec<u8>,
    local_cause: Vec<u8>,
    streamed: Vec<u8>,
    processes: Dictionary<ProcessKey>,
    paths: Dictionary<PathKey>,
    addresses: Dictionary<[u8; 16]>,
    last_opened_ns: i64,
    last_cookie: i64,
    estimated_bytes: usize,
}

/// Bytes that a row takes at most when its dictionaries already know its words, by the widths of its varints: an
/// upper bound is what a limit on the size of a batch needs.
const ROW_BYTES: usize = 96;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ProcessKey {
    pub(crate) pid: u32,
    pub(crate) netns: u32,
    pub(crate) cgroup_id: u64,
    pub(crate) comm: [u8; 16],
}

/// Likewise what a word takes at most that the dictionaries do not know.
pub(crate) const PROCESS_BYTES: usize = 48;
pub(crate) const ADDRESS_BYTES: usize = 18;

impl ProcessKey {
    fn of(record: &ConnectionRecord) -> Self {
        Self {
            pid: record.pid,
            netns: record.netns,
            cgroup_id: record.cgroup_id,
            comm: record.comm,
        }
    }

    /// As it travels, not named yet.
    pub(crate) fn process(&self) -> Process {
        Process {
            pid: self.pid,
            comm: text(&self.comm),
            cgroup_id: self.cgroup_id,
            netns: self.netns,
            service: String::new(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PathKey {
    states: [u8; 8],
    len: u8,
    truncated: bool,
}

/// The rows of a batch as the counters follow them: connections and transitions by namespace, syscalls in calls, all others in rows.
pub fn counted_rows(sealed: &Sealed) -> RowsByNetns {
    let together = |ends| RowsByNetns::from([(0, Rows { ends, announced: 0 })]);
    match sealed.id.stream {
        Stream::Connections => rows_by_netns(&sealed.encoded).unwrap_or_default(),
        Stream::Transitions => transitions_by_netns(&sealed.encoded).unwrap_or_default(),
        Stream::Syscalls => {
            let columns = CallsOutline::decode(&*sealed.encoded).ok();
            let calls = columns.and_then(|outline| outline.syscalls);
            together(calls.map_or(0, |columns| columns.calls.iter().sum()))
        }
        _ => together(sealed.rows.into()),
    }
}

/// When a batch was sealed, by the boot clock, if that was on the boot of this name, and one clock dated all of it.
pub fn sealed_at(sealed: &Sealed, boot_id: &str) -> Option<Duration> {
    let outline = ClockOutline::decode(&*sealed.encoded).ok()?;
    let is_known = outline.clock_ns != 0 && outline.boot_id == boot_id;
    let boot_ns = sealed
        .last_ns
        .checked_add_signed(outline.clock_ns.checked_neg()?)?;
    is_known.then_some(Duration::from_nanos(boot_ns))
}

/// The part of a batch that tells by which clock it was dated, by the same tags.
#[derive(Clone, PartialEq, Message)]
struct ClockOutline {
    #[prost(string, tag = "4")]
    boot_id: String,
    #[prost(sint64, tag = "5")]
    clock_ns: i64,
}

/// The part of a batch of syscalls that tells how many calls there were, by the same tags.
#[derive(Clone, PartialEq, Message)]
struct CallsOutline {
    #[prost(message, optional, tag = "12")]
    syscalls: Option<CallsColumn>,
}

#[derive(Clone, PartialEq, Message)]
struct CallsColumn {
    #[prost(uint64, repeated, tag = "6")]
    calls: Vec<u64>,
}

/// How many rows of each network namespace are in an encoded batch of connections; `None` if it is none.
///
/// Reads no more of it than that takes: after a crash a whole spool is counted.
pub fn rows_by_netns(encoded: &[u8]) -> Option<RowsByNetns> {
    let columns = BatchOutline::decode(encoded).ok()?.connections?;
    let mut rows = RowsByNetns::new();
    for (process, flags) in columns.process.iter().zip(&columns.flags) {
        let netns = columns.processes.get(*process as usize)?.netns;
        rows.entry(netns).or_default().add(flags & FLAG_FINAL != 0);
    }
    Some(rows)
}

/// Likewise of a batch of transitions.
fn transitions_by_netns(encoded: &[u8]) -> Option<RowsByNetns> {
    let columns = BatchOutline::decode(encoded).ok()?.transitions?;
    let mut rows = RowsByNetns::new();
    for process in columns.process {
        let netns = columns.processes.get(process as usize)?.netns;
        rows.entry(netns).or_default().ends += 1;
    }
    Some(rows)
}

/// The part of a [`holdfast_proto::v1::Batch`] that tells what its rows are and where from, by the same tags.
#[derive(Clone, PartialEq, Message)]
struct BatchOutline {
    #[prost(message, optional, tag = "10")]
    connections: Option<ColumnsOutline>,
    #[prost(message, optional, tag = "19")]
    transitions: Option<TransitionsOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct TransitionsOutline {
    #[prost(uint32, repeated, tag = "4")]
    process: Vec<u32>,
    #[prost(message, repeated, tag = "30")]
    processes: Vec<ProcessOutline>,
}

#[derive(Clone, PartialEq, Message)]
struct ColumnsOutline {
    #[prost(uint32, repeated, tag = "3")]
    process: Vec<u32>,
    #[prost(bytes = "bytes", tag = "22")]
    flags: bytes::Bytes,
    #[prost(message, repeated, tag = "30")]
    processes: Vec<ProcessOutline>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ProcessOutline {
    #[prost(uint32, tag = "4")]
    netns: u32,
}

impl ConnectionRows {
    /// Rows so far.
    pub fn len(&self) -> usize {
        self.role.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.role.is_empty()
    }

    /// An upper bound of the encoded size, in bytes.
    pub fn estimated_bytes(&self) -> usize {
        self.estimated_bytes
    }

    /// Adds a row.
    pub fn push(&mut self, record: &ConnectionRecord, clock: Clock) {
        let columns = &mut self.columns;
        self.estimated_bytes += ROW_BYTES;

        let opened_ns = clock.wall_ns(record.opened_ns) as i64;
        columns
            .opened_ns_delta
            .push(opened_ns.wrapping_sub(self.last_opened_ns));
        self.last_opened_ns = opened_ns;
        let cookie = record.cookie as i64;
        columns.cookie_delta.push(cookie.wrapping_sub(self.last_cookie));
        self.last_cookie = cookie;

        let process = ProcessKey::of(record);
        columns.process.push(self.processes.index(process, || {
            self.estimated_bytes += PROCESS_BYTES;
            columns.processes.push(process.process());
        }));

        let path = path_of(record);
        columns.path.push(self.paths.index(path, || {
            self.estimated_bytes += 16;
            columns.paths.push(Path {
                states: path.states[..usize::from(path.len)].to_vec().into(),
                truncated: path.truncated,
            });
        }));
        // Whole microseconds of the offsets, then differences: they add up to the truncated offset, without drift.
        let mut before_us = 0;
        for &step in record.steps().iter().skip(1) {
            let offset_us = step_offset_ns(step) / 1_000;
            columns.step_us.push(offset_us.saturating_sub(before_us));
            before_us = before_us.max(offset_us);
        }

        for (address, column) in [
            (&record.local_address, &mut columns.local_address),
            (&record.remote_address, &mut columns.remote_address),
        ] {
            let mapped = mapped(address, record.family);
            column.push(self.addresses.index(mapped, || {
                self.estimated_bytes += ADDRESS_BYTES;
                columns.addresses.push(mapped.to_vec().into());
            }));
        }
        columns.local_port.push(record.local_port.into());
        columns.remote_port.push(record.remote_port.into());

        columns
            .bytes_sent
            .push(record.bytes_sent.saturating_sub(record.bytes_retransmitted));
        let fin = u64::from(record.flags & flag::FIN_RECEIVED != 0);
        columns
            .bytes_received
            .push(record.bytes_received.saturating_sub(fin));
        columns.segments_sent.push(record.segments_sent);
        columns.segments_received.push(record.segments_received);
        columns.retransmits.push(record.retransmits);
        columns.srtt_us.push(record.srtt_us);

        self.syn_retransmits.push(record.syn_retransmits);
        // Linux' socket errors end at 133; what does not fit is none of them.
        self.error.push(u8::try_from(record.error).unwrap_or(u8::MAX));
        self.role.push(record.role);
        self.outcome.push(outcome(record) as u8);
        self.close_reason.push(close_reason(record) as u8);
        self.attribution.push(record.attribution);
        self.flags.push(wire_flags(record));
        self.local_cause.push(local_cause(record) as u8);
        self.streamed.push(record.streamed);
        columns.accept_wait.push(record.accept_wait);
    }

    /// The finished columns.
    pub fn finish(mut self) -> ConnectionColumns {
        if self.columns.accept_wait.iter().all(|&wait| wait == 0) {
            self.columns.accept_wait.clear();
        }
        ConnectionColumns {
            syn_retransmits: self.syn_retransmits.into(),
            error: self.error.into(),
            role: self.role.into(),
            outcome: self.outcome.into(),
            close_reason: self.close_reason.into(),
            attribution: self.attribution.into(),
            flags: self.flags.into(),
            local_cause: self.local_cause.into(),
            // Most batches have none.
            streamed: if self.streamed.iter().all(|&steps| steps == 0) {
                Vec::new().into()
            } else {
                self.streamed.into()
            },
            ..self.columns
        }
    }
}

/// A listener as a survey found it.
pub fn listener(report: &SocketReport, namespace: Option<Queues>) -> Listener {
    let record = &report.record;
    Listener {
        cookie: record.cookie,
        address: mapped(&record.local_address, record.family).to_vec().into(),
        port: record.local_port.into(),
        process: Some(ProcessKey::of(record).process()),
        attribution: record.attribution.into(),
        backlog: report.backlog,
        backlog_limit: report.backlog_limit,
        drops: report.drops,
        namespace_overflows: namespace.map(|queues| queues.overflows),
        namespace_drops: namespace.map(|queues| queues.drops),
    }
}

fn wire_flags(record: &ConnectionRecord) -> u8 {
    let resets = resets(record);
    let bits = [
        (record.flags & flag::FIRST != 0, FLAG_FIRST),
        (record.flags & flag::FINAL != 0, FLAG_FINAL),
        (resets.sent, FLAG_RESET_SENT),
        (resets.received, FLAG_RESET_RECEIVED),
    ];
    let set = bits.into_iter().filter(|(is_set, _)| *is_set);
    set.fold(0, |wire, (_, bit)| wire | bit)
}

fn path_of(record: &ConnectionRecord) -> PathKey {
    let mut states = [0; 8];
    for (state, &step) in states.iter_mut().zip(record.steps()) {
        *state = step_state(step);
    }
    PathKey {
        states,
        len: record.steps().len() as u8,
        truncated: record.flags & flag::PATH_TRUNCATED != 0,
    }
}

/// The address as IPv6, IPv4 as ::ffff:a.b.c.d.
pub(crate) fn mapped(address: &[u32; 4], family: u8) -> [u8; 16] {
    let mut mapped = [0; 16];
    if family == AF_INET {
        mapped[10..12].fill(0xff);
        mapped[12..].copy_from_slice(&address[0].to_ne_bytes());
    } else {
        for (bytes, word) in mapped.chunks_exact_mut(4).zip(address) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
    }
    mapped
}

/// A zero-padded name from the kernel. Names are bytes there; what is not UTF-8 is replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Numbers the distinct values of a batch in order of first use. The value before is often the value again.
pub(crate) struct Dictionary<K> {
    indexes: FxHashMap<K, u32>,
    last: Option<(K, u32)>,
}

impl<K> Default for Dictionary<K> {
    fn default() -> Self {
        Self {
            indexes: FxHashMap::default(),
            last: None,
        }
    }
}

impl<K: Copy + Eq + Hash> Dictionary<K> {
    pub(crate) fn index(&mut self, key: K, on_new: impl FnOnce()) -> u32 {
        if let Some((last, index)) = self.last
            && last == key
        {
            return index;
        }
        let next = self.indexes.len() as u32;
        let index = *self.indexes.entry(key).or_insert_with(|| {
            on_new();
            next
        });
        self.last = Some((key, index));
        index
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

    fn record(opened_ns: u64, offsets_ns: &[u64]) -> ConnectionRecord {
        let states = [
            state::SYN_SENT,
            state::ESTABLISHED,
            state::FIN_WAIT1,
            state::FIN_WAIT2,
            state::CLOSE,
        ];
        let mut path = [0; PATH_STEPS];
        for (index, &offset) in offsets_ns.iter().enumerate() {
            path[index] = step(states[index], offset);
        }
        ConnectionRecord {
            opened_ns,
            path,
            path_len: offsets_ns.len() as u8,
            role: role::ACTIVE,
            family: AF_INET,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
            local_address: [u32::from_ne_bytes([127, 0, 0, 1]), 0, 0, 0],
            remote_address: [u32::from_ne_bytes([127, 0, 0, 2]), 0, 0, 0],
            flags: flag::FIRST | flag::FINAL,
            ..ConnectionRecord::ZERO
        }
    }

    fn columns(records: &[ConnectionRecord]) -> ConnectionColumns {
        let mut rows = ConnectionRows::default();
        for record in records {
            rows.push(record, Clock::with_offset_ns(1_000));
        }
        rows.finish()
    }

    #[test]
    fn words_that_repeat_travel_once() {
        let columns = columns(&[record(1, &[0, 10]), record(2, &[0, 10]), record(3, &[0])]);
        assert_eq!(columns.processes.len(), 1);
        assert_eq!(columns.processes[0].comm, "curl");
        assert_eq!(columns.paths.len(), 2);
        assert_eq!(columns.path, [0, 0, 1]);
        assert_eq!(columns.addresses.len(), 2);
        assert_eq!(
            (&columns.local_address[..], &columns.remote_address[..]),
            (&[0, 0, 0][..], &[1, 1, 1][..])
        );
        assert_eq!(
            &columns.addresses[0][..],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]
        );
    }

    #[test]
    fn payload_is_counted_without_retransmissions_and_without_the_fin() {
        let columns = columns(&[ConnectionRecord {
            bytes_sent: 300,
            bytes_retransmitted: 100,
            bytes_received: 51,
            flags: flag::FIRST | flag::FINAL | flag::FIN_RECEIVED,
            ..record(1, &[0])
        }]);
        assert_eq!((columns.bytes_sent[0], columns.bytes_received[0]), (200, 50));
    }

    proptest! {
        #[test]
        fn times_survive_the_differences(
            rows in prop::collection::vec((0..1_u64 << 50, prop::collection::vec(0..1_u64 << 50, 1..5)), 1..50)
        ) {
            let records: Vec<_> = rows
                .iter()
                .map(|(opened, offsets)| {
                    let mut offsets = offsets.clone();
                    offsets.sort_unstable();
                    offsets[0] = 0;
                    (*opened, offsets)
                })
                .collect();
            let columns = columns(&records.iter().map(|(opened, offsets)| record(*opened, offsets)).collect::<Vec<_>>());

            let mut opened_ns = 0;
            let mut steps = columns.step_us.iter();
            for (row, (opened, offsets)) in records.iter().enumerate() {
                opened_ns += columns.opened_ns_delta[row];
                prop_assert_eq!(opened_ns as u64, opened + 1_000);
                let mut offset_us = 0;
                for offset_ns in &offsets[1..] {
                    offset_us += steps.next().expect("a step");
                    prop_assert_eq!(offset_us, offset_ns / 1_000);
                }
            }
            prop_assert_eq!(steps.next(), None);
        }
    }
}
