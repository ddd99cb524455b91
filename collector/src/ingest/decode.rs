//! From a batch as it travelled to columns as they are stored: every check that a batch must pass, and what the
//! collector derives from a path's steps. Pure: no I/O, the time is an argument.
//!
//! Columns are worked on whole. Where a column is stored as it travels, its vector is kept, not copied; rows as such
//! never exist.

mod cgroups;
mod network;
pub mod restamp;
mod syscalls;
mod transitions;

use bytes::Bytes;
use holdfast_proto::v1::{
    self, Attribution, Batch, CloseReason, ConnectionColumns, Gap, GapReason, Listener, ListenerRows,
    LocalCause, OffReason, Outcome, Overhead, Path, Process, Role, SealedBatch, Status, Stream,
    StreamCounters, Watch, batch::Columns,
};
use holdfast_proto::{FLAG_FINAL, FLAG_FIRST, FLAG_RESET_RECEIVED, FLAG_RESET_SENT};
use prost::Message;

use crate::assertion::cause::{self, Switch};
use crate::assertion::coverage::{self, Report};

pub use cgroups::Cgroups;
pub use network::{Namespaces, Peers};
pub use syscalls::Syscalls;
pub use transitions::Transitions;

/// Rows of one batch. An agent seals at a few thousand; this bounds what one message can make the collector hold.
pub const MAX_ROWS: u32 = 1 << 17;

/// Steps of one path. Linux takes seven at most and a record holds eight.
const MAX_STEPS: usize = 16;

/// The largest number of a TCP state (TCP_NEW_SYN_RECV, include/net/tcp_states.h).
const MAX_STATE: u8 = 12;

const STATE_ESTABLISHED: u8 = 1;
const STATE_CLOSE: u8 = 7;

/// Microseconds between two steps: 8.9 years. 15 of them, in nanoseconds, still fit a time of this century.
const MAX_STEP_US: u64 = 1 << 48;

/// The kernel's command names have 15 bytes; other sources of names may be a little longer.
const MAX_COMM_BYTES: usize = 64;

const MAX_SERVICE_BYTES: usize = 256;

/// The kernel's boot id is a UUID in text.
const MAX_BOOT_ID_BYTES: usize = 64;

/// Counters in one status: two streams in every namespace of a crowded node.
const MAX_COUNTERS: usize = 4096;

/// Switches of one status. There are three.
const MAX_WATCHES: usize = 64;

/// 2000-01-01. A node without a clock of its own may still be near 1970, but then it has nothing to say about time.
const EARLIEST_NS: i64 = 946_684_800 * 1_000_000_000;

/// How far a node's clock may be ahead of ours: a day, so that no partition is made far in the future.
const AHEAD_NS: i64 = DAY_NS;

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// No clock is believed to be further, whatever is known of it: in the year 2116, from where any duration can be added.
const UNTIL_NS: i64 = i64::MAX / 2;

/// What is wrong with a message. The text goes back to the agent and to the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("stream {0} is unknown to this collector: upgrade the collector")]
    Stream(i32),
    #[error("stream 0, which no agent has")]
    NoStream,
    #[error("sequence 0 (the first is 1)")]
    Sequence,
    #[error(
        "no columns of its stream that this collector knows: if the agent is newer, upgrade the collector"
    )]
    Columns,
    #[error("bytes that do not match their checksum")]
    Checksum,
    #[error("bytes that are no batch to this collector: if the agent is newer, upgrade the collector")]
    Unreadable,
    #[error("another name inside than outside")]
    Name,
    #[error("a boot id that is too long or cannot be printed")]
    BootId,
    #[error("{0} rows (a batch has 1 to {MAX_ROWS})")]
    Rows(u32),
    #[error("{column} has {found} entries, not {expected}")]
    Length {
        column: &'static str,
        found: u64,
        expected: u64,
    },
    #[error("{column} of row {row} is {value} ({allowed})")]
    Value {
        column: &'static str,
        row: usize,
        value: u64,
        allowed: &'static str,
    },
    #[error(
        "{column} of row {row} is {value}, which this collector does not know: if the agent is newer, upgrade the collector"
    )]
    Unknown {
        column: &'static str,
        row: usize,
        value: u64,
    },
    #[error("{column} of row {row} is {index}, and the dictionary has {entries} entries")]
    Index {
        column: &'static str,
        row: usize,
        index: u32,
        entries: usize,
    },
    #[error("entry {index} of {dictionary} {fault}")]
    Entry {
        dictionary: &'static str,
        index: usize,
        fault: &'static str,
    },
    #[error("the time of row {row} is {fault}")]
    Time { row: usize, fault: &'static str },
    #[error("rows of more than one day (UTC)")]
    Days,
    #[error("status with {0}")]
    Status(&'static str),
}

impl Malformed {
    /// Every kind, as it is counted.
    pub const KINDS: [&str; 9] = [
        "bytes",
        "stream",
        "sequence",
        "columns",
        "value",
        "dictionary",
        "time",
        "days",
        "status",
    ];

    /// Whether the bytes are those that were sealed under the name that they came with, so that they say something of
    /// who sealed them.
    pub fn is_in_a_sound_envelope(&self) -> bool {
        !matches!(
            self,
            Self::Checksum | Self::Sequence | Self::Name | Self::Status(_)
        )
    }

    /// The kind of fault, as it is counted: one of [`Self::KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stream(_) | Self::NoStream => "stream",
            Self::Checksum | Self::Unreadable => "bytes",
            Self::Sequence | Self::Name | Self::BootId => "sequence",
            Self::Columns | Self::Rows(_) | Self::Length { .. } => "columns",
            Self::Value { .. } | Self::Unknown { .. } => "value",
            Self::Index { .. } | Self::Entry { .. } => "dictionary",
            Self::Time { .. } => "time",
            Self::Days => "days",
            Self::Status(_) => "status",
        }
    }
}

/// The connection ends of one batch, checked. All vectors but the dictionaries have one entry a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    pub rows: usize,
    /// The day of every row's `recorded_at`, counted from the epoch.
    pub day: u32,
    /// When a final record's end was closed; else when the handshake ended; else when the last step was taken. The
    /// one time that is stored to the nanosecond: all others are whole microseconds before it.
    pub recorded_at_ns: Vec<i64>,
    /// From opening to the handshake's end, good or bad; zero while it has not been decided.
    pub connect_us: Vec<u64>,
    /// From opening to CLOSE; zero for what is still open.
    pub duration_us: Vec<u64>,
    pub cookie: Vec<u64>,
    pub process: Vec<u32>,
    pub path: Vec<u32>,
    /// The times of the steps that the columns above do not tell, row after row, in microseconds: without the
    /// opening, the step at which the handshake ended, and a final record's last. Of a final record before its end,
    /// since the steps that close a connection follow close upon each other; of others since the opening.
    pub step_us: Vec<u64>,
    /// Where each row's steps end in `step_us`.
    pub step_ends: Vec<u64>,
    pub local_address: Vec<u32>,
    pub remote_address: Vec<u32>,
    pub local_port: Vec<u32>,
    pub remote_port: Vec<u32>,
    pub bytes_sent: Vec<u64>,
    pub bytes_received: Vec<u64>,
    pub segments_sent: Vec<u32>,
    pub segments_received: Vec<u32>,
    pub retransmits: Vec<u32>,
    pub syn_retransmits: Bytes,
    pub srtt_us: Vec<u32>,
    pub error: Bytes,
    pub role: Bytes,
    pub outcome: Bytes,
    pub close_reason: Bytes,
    pub attribution: Bytes,
    pub flags: Bytes,
    pub local_cause: Bytes,
    /// Which steps of the path were streamed as transitions of their own.
    pub streamed: Bytes,
    /// As it travels: one more than it is, or zero.
    pub accept_wait: Vec<u32>,
    pub processes: Vec<Process>,
    pub paths: Vec<Path>,
    pub addresses: Vec<[u8; 16]>,
}

impl Connections {
    /// Memory that the columns occupy, give or take the allocator's part.
    pub fn heap_bytes(&self) -> usize {
        // Seven columns of 8 bytes, ten of 4, nine of one.
        const ROW_BYTES: usize = 7 * 8 + 10 * 4 + 9;
        let text: usize = self
            .processes
            .iter()
            .map(|process| process.comm.len() + process.service.len())
            .sum();
        self.rows * ROW_BYTES
            + self.step_us.len() * 8
            + self.processes.len() * size_of::<Process>()
            + self.paths.len() * (size_of::<Path>() + MAX_STEPS)
            + self.addresses.len() * 16
            + text
    }
}

/// What a batch brings.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    Connections(Box<Connections>),
    Gaps(Vec<Gap>),
    OpenConnections(Box<OpenConnections>),
    Listeners(Listeners),
    Namespaces(Namespaces),
    Peers(Peers),
    Cgroups(Cgroups),
    Syscalls(Box<Syscalls>),
    Transitions(Box<Transitions>),
    Overhead(Vec<Overhead>),
}

impl Rows {
    /// When the latest of them was made, by the agent's clock, in nanoseconds since the Unix epoch.
    pub fn latest_ns(&self) -> i64 {
        let latest = |times: &[i64]| times.iter().copied().max().unwrap_or_default();
        let signed = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
        match self {
            Self::Connections(connections) => latest(&connections.recorded_at_ns),
            Self::OpenConnections(look) => look.observed_at_ns,
            Self::Listeners(look) => look.observed_at_ns,
            Self::Namespaces(look) => look.observed_at_ns,
            Self::Cgroups(look) => look.observed_at_ns,
            Self::Peers(peers) => peers.ended_at_ns,
            Self::Syscalls(syscalls) => syscalls.ended_at_ns,
            Self::Transitions(transitions) => latest(&transitions.recorded_at_ns),
            Self::Overhead(rows) => signed(rows.iter().map(|row| row.ended_ns).max().unwrap_or_default()),
            Self::Gaps(gaps) => signed(gaps.iter().map(|gap| gap.last_ns).max().unwrap_or_default()),
        }
    }
}

/// A look at what is open on a node, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenConnections {
    /// When, by the agent's clock.
    pub observed_at_ns: i64,
    /// Each row of an established connection stands for so many.
    pub one_in: u32,
    /// Neither first nor final records: `recorded_at` is when they were opened, and of any day.
    pub connections: Connections,
}

/// A look at the listeners of a node, checked: each has a process.
#[derive(Clone, Debug, PartialEq)]
pub struct Listeners {
    /// When, by the agent's clock.
    pub observed_at_ns: i64,
    pub listeners: Vec<Listener>,
}

impl Listeners {
    /// Memory that the rows occupy, give or take the allocator's part.
    pub fn heap_bytes(&self) -> usize {
        let text = |process: &Process| process.comm.len() + process.service.len();
        self.listeners
            .iter()
            .map(|listener| size_of::<Listener>() + 16 + listener.process.as_ref().map_or(0, text))
            .sum()
    }
}

/// A batch as it is stored: its rows, and the start of the machine that they are from.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    pub boot_id: String,
    pub rows: Rows,
}

/// Opens a sealed batch, checks everything in it and derives what is stored. `now_ns` is the collector's time. Where the node's
/// clock was wrong by days, the rows are moved by as many, which are given.
pub fn sealed(
    sealed: &SealedBatch,
    now_ns: i64,
    clock: &restamp::NodeClock,
) -> Result<(Decoded, i64), Malformed> {
    let batch = open(sealed)?;
    let ahead = clock.ahead(&batch);
    let days = match derive(batch, UNTIL_NS) {
        Ok(decoded) => match restamp::days(decoded.rows.latest_ns(), now_ns, ahead) {
            0 => return Ok((decoded, 0)),
            days => days,
        },
        // From before clocks were set.
        Err(malformed @ Malformed::Time { .. }) => match ahead.whole_days() {
            0 => return Err(malformed),
            off => -off,
        },
        Err(malformed) => return Err(malformed),
    };
    let mut batch = open(sealed)?;
    if let Some(columns) = &mut batch.columns {
        restamp::shift(columns, days);
    }
    derive(batch, now_ns).map(|decoded| (decoded, days))
}

fn open(sealed: &SealedBatch) -> Result<Batch, Malformed> {
    if crc32fast::hash(&sealed.encoded) != sealed.checksum {
        return Err(Malformed::Checksum);
    }
    let batch = Batch::decode(sealed.encoded.clone()).map_err(|_| Malformed::Unreadable)?;
    if sealed.epoch == 0 || sealed.sequence == 0 {
        return Err(Malformed::Sequence);
    }
    if (batch.stream, batch.sequence) != (sealed.stream, sealed.sequence) {
        return Err(Malformed::Name);
    }
    Ok(batch)
}

/// The stream with this number, which is one that agents have.
fn stream_of(number: i32) -> Result<Stream, Malformed> {
    match Stream::try_from(number) {
        Ok(Stream::Unspecified) => Err(Malformed::NoStream),
        Ok(stream) => Ok(stream),
        Err(_) => Err(Malformed::Stream(number)),
    }
}

fn derive(batch: Batch, now_ns: i64) -> Result<Decoded, Malformed> {
    if batch.rows == 0 || batch.rows > MAX_ROWS {
        return Err(Malformed::Rows(batch.rows));
    }
    let is_fitting = batch.boot_id.len() <= MAX_BOOT_ID_BYTES && !batch.boot_id.contains(char::is_control);
    if !is_fitting {
        return Err(Malformed::BootId);
    }
    let rows = batch.rows as usize;
    let rows = match (stream_of(batch.stream)?, batch.columns) {
        (Stream::Connections, Some(Columns::Connections(columns))) => {
            Rows::Connections(Box::new(connections(columns, rows, Records::Ended, now_ns)?))
        }
        (Stream::OpenConnections, Some(Columns::OpenConnections(look))) => {
            Rows::OpenConnections(Box::new(open_connections(look, rows, now_ns)?))
        }
        (Stream::Listeners, Some(Columns::Listeners(look))) => {
            Rows::Listeners(listeners(look, rows, now_ns)?)
        }
        (Stream::Namespaces, Some(Columns::Namespaces(look))) => {
            Rows::Namespaces(network::namespaces(look, rows, now_ns)?)
        }
        (Stream::Cgroups, Some(Columns::Cgroups(look))) => {
            Rows::Cgroups(cgroups::cgroups(look, rows, now_ns)?)
        }
        (Stream::Peers, Some(Columns::Peers(look))) => Rows::Peers(network::peers(look, rows, now_ns)?),
        (Stream::Gaps, Some(Columns::Gaps(gaps))) => Rows::Gaps(check_gaps(gaps.gaps, rows)?),
        (Stream::Syscalls, Some(Columns::Syscalls(columns))) => {
            Rows::Syscalls(Box::new(syscalls::syscalls(columns, rows, now_ns)?))
        }
        (Stream::Transitions, Some(Columns::Transitions(columns))) => {
            Rows::Transitions(Box::new(transitions::transitions(columns, rows, now_ns)?))
        }
        (Stream::Overhead, Some(Columns::Overhead(overhead))) => {
            Rows::Overhead(check_overhead(overhead.intervals, rows, now_ns)?)
        }
        (
            Stream::Connections
            | Stream::Gaps
            | Stream::OpenConnections
            | Stream::Listeners
            | Stream::Overhead
            | Stream::Namespaces
            | Stream::Peers
            | Stream::Cgroups
            | Stream::Transitions
            | Stream::Syscalls
            | Stream::Unspecified,
            _,
        ) => return Err(Malformed::Columns),
    };
    Ok(Decoded {
        boot_id: batch.boot_id,
        rows,
    })
}

/// Programs of one interval, and bytes of the name of one or of a step.
const MAX_PROGRAMS: usize = 64;
const MAX_PROGRAM_NAME_BYTES: usize = 64;

fn check_overhead(intervals: Vec<Overhead>, rows: usize, now_ns: i64) -> Result<Vec<Overhead>, Malformed> {
    if intervals.len() != rows {
        return Err(length("intervals", intervals.len(), rows));
    }
    let latest_ns = now_ns.saturating_add(AHEAD_NS);
    for (row, interval) in intervals.iter().enumerate() {
        let time_fault = |fault| Malformed::Time { row, fault };
        let ended_ns = i64::try_from(interval.ended_ns).unwrap_or(i64::MAX);
        if interval.began_ns > interval.ended_ns {
            return Err(time_fault("of an interval that ends before it begins"));
        }
        if interval.began_ns < EARLIEST_NS as u64 {
            return Err(time_fault("before the year 2000; is the node's clock set?"));
        }
        if ended_ns > latest_ns {
            return Err(time_fault(
                "more than a day ahead of the collector; is the node's clock right?",
            ));
        }
        if day(ended_ns) != day(intervals[0].ended_ns.cast_signed()) {
            return Err(Malformed::Days);
        }
        if interval.programs.len() > MAX_PROGRAMS {
            return Err(length("programs", interval.programs.len(), MAX_PROGRAMS));
        }
        let names = interval.programs.iter().map(|program| &program.name);
        for (index, name) in names.chain([&interval.step, &interval.next_step]).enumerate() {
            if name.len() > MAX_PROGRAM_NAME_BYTES || name.contains(char::is_control) {
                return Err(Malformed::Entry {
                    dictionary: "programs",
                    index,
                    fault: "has a name that is too long or cannot be printed",
                });
            }
        }
    }
    Ok(intervals)
}

/// Memory that the rows of a batch of overhead occupy, give or take the allocator's part.
pub fn overhead_bytes(intervals: &[Overhead]) -> usize {
    intervals
        .iter()
        .map(|interval| {
            size_of::<Overhead>()
                + interval.programs.len() * (size_of::<v1::ProgramRuns>() + MAX_PROGRAM_NAME_BYTES)
        })
        .sum()
}

fn check_gaps(gaps: Vec<Gap>, rows: usize) -> Result<Vec<Gap>, Malformed> {
    if gaps.len() != rows {
        return Err(length("gaps", gaps.len(), rows));
    }
    for (row, gap) in gaps.iter().enumerate() {
        stream_of(gap.stream)?;
        match GapReason::try_from(gap.reason) {
            Ok(GapReason::Unspecified) => {
                return Err(Malformed::Value {
                    column: "reason",
                    row,
                    value: 0,
                    allowed: "a gap has a reason",
                });
            }
            Ok(_) => {}
            Err(_) => {
                return Err(Malformed::Unknown {
                    column: "reason",
                    row,
                    value: gap.reason as u64,
                });
            }
        }
        if gap.first_ns > gap.last_ns || i64::try_from(gap.last_ns).is_err() {
            return Err(Malformed::Time {
                row,
                fault: "not from the earlier to the later",
            });
        }
    }
    Ok(gaps)
}

fn open_connections(
    look: v1::OpenConnections,
    rows: usize,
    now_ns: i64,
) -> Result<OpenConnections, Malformed> {
    if look.one_in == 0 {
        return Err(Malformed::Value {
            column: "one_in",
            row: 0,
            value: 0,
            allowed: "at least 1",
        });
    }
    let columns = look.connections.ok_or(Malformed::Columns)?;
    Ok(OpenConnections {
        observed_at_ns: observed_at(look.observed_at_ns, now_ns)?,
        one_in: look.one_in,
        connections: connections(columns, rows, Records::Open, now_ns)?,
    })
}

fn listeners(look: ListenerRows, rows: usize, now_ns: i64) -> Result<Listeners, Malformed> {
    if look.listeners.len() != rows {
        return Err(length("listeners", look.listeners.len(), rows));
    }
    for (row, listener) in look.listeners.iter().enumerate() {
        let fault = |fault| Malformed::Entry {
            dictionary: "listeners",
            index: row,
            fault,
        };
        if listener.address.len() != 16 {
            return Err(fault("has an address that is not 16 bytes long"));
        }
        if listener.port > u32::from(u16::MAX) {
            return Err(fault("has a port above 65535"));
        }
        if Attribution::try_from(listener.attribution).is_err() {
            return Err(Malformed::Unknown {
                column: "attribution",
                row,
                value: listener.attribution as u64,
            });
        }
        if listener.process.is_none() {
            return Err(fault("has no process"));
        }
        check_processes(listener.process.as_slice(), rows)?;
    }
    Ok(Listeners {
        observed_at_ns: observed_at(look.observed_at_ns, now_ns)?,
        listeners: look.listeners,
    })
}

/// The time of a look.
fn observed_at(observed_at_ns: u64, now_ns: i64) -> Result<i64, Malformed> {
    i64::try_from(observed_at_ns)
        .ok()
        .filter(|time| (EARLIEST_NS..=now_ns.saturating_add(AHEAD_NS)).contains(time))
        .ok_or(Malformed::Time {
            row: 0,
            fault: "before 2000 or more than a day ahead of the collector",
        })
}

/// What the rows of a batch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Records {
    /// First records, final ones, or both at once.
    Ended,
    /// Neither: connections as they stand.
    Open,
}

/// Checks the columns of a batch of `rows` connection ends, and derives what is stored.
fn connections(
    mut columns: ConnectionColumns,
    rows: usize,
    records: Records,
    now_ns: i64,
) -> Result<Connections, Malformed> {
    if columns.streamed.is_empty() {
        columns.streamed = vec![0; rows].into();
    }
    if columns.accept_wait.is_empty() {
        columns.accept_wait = vec![0; rows];
    }
    // Agents of this protocol's first days name no causes.
    if columns.local_cause.is_empty() {
        columns.local_cause = vec![0; rows].into();
    }
    check_lengths(&columns, rows)?;
    check_processes(&columns.processes, rows)?;
    let shapes = path_shapes(&columns.paths, rows)?;
    let addresses = addresses(&columns.addresses, rows)?;
    check_index("process", &columns.process, columns.processes.len())?;
    check_index("path", &columns.path, shapes.len())?;
    check_index("local_address", &columns.local_address, addresses.len())?;
    check_index("remote_address", &columns.remote_address, addresses.len())?;
    check_ports("local_port", &columns.local_port)?;
    check_ports("remote_port", &columns.remote_port)?;
    let is_told = |value: u8| value != 0;
    check_bytes("role", &columns.role, "each end has a role", is_told)?;
    check_known::<Role>("role", &columns.role)?;
    check_bytes(
        "outcome",
        &columns.outcome,
        "each attempt has an outcome",
        is_told,
    )?;
    check_known::<Outcome>("outcome", &columns.outcome)?;
    check_known::<CloseReason>("close_reason", &columns.close_reason)?;
    check_known::<Attribution>("attribution", &columns.attribution)?;
    check_known::<LocalCause>("local_cause", &columns.local_cause)?;
    const FLAGS: u8 = FLAG_FIRST | FLAG_FINAL | FLAG_RESET_SENT | FLAG_RESET_RECEIVED;
    check_meaning("flags", &columns.flags, |value| value & !FLAGS == 0)?;
    let without_resets = |value: u8| value & !(FLAG_RESET_SENT | FLAG_RESET_RECEIVED);
    match records {
        Records::Ended => check_bytes("flags", &columns.flags, "first, final or both", |value| {
            without_resets(value) != 0
        })?,
        Records::Open => check_bytes("flags", &columns.flags, "neither first nor final", |value| {
            without_resets(value) == 0
        })?,
    }
    let times = derive_times(&columns, &shapes, records, now_ns)?;
    Ok(Connections {
        rows,
        day: times.day,
        recorded_at_ns: times.recorded_at_ns,
        connect_us: times.connect_us,
        duration_us: times.duration_us,
        cookie: running_sums(&columns.cookie_delta),
        process: columns.process,
        path: columns.path,
        step_us: times.step_us,
        step_ends: times.step_ends,
        local_address: columns.local_address,
        remote_address: columns.remote_address,
        local_port: columns.local_port,
        remote_port: columns.remote_port,
        bytes_sent: columns.bytes_sent,
        bytes_received: columns.bytes_received,
        segments_sent: columns.segments_sent,
        segments_received: columns.segments_received,
        retransmits: columns.retransmits,
        syn_retransmits: columns.syn_retransmits,
        srtt_us: columns.srtt_us,
        error: columns.error,
        role: columns.role,
        outcome: columns.outcome,
        close_reason: columns.close_reason,
        attribution: columns.attribution,
        flags: columns.flags,
        local_cause: columns.local_cause,
        streamed: columns.streamed,
        accept_wait: columns.accept_wait,
        processes: columns.processes,
        paths: columns.paths,
        addresses,
    })
}

fn check_lengths(columns: &ConnectionColumns, rows: usize) -> Result<(), Malformed> {
    let lengths = [
        ("opened_ns_delta", columns.opened_ns_delta.len()),
        ("cookie_delta", columns.cookie_delta.len()),
        ("process", columns.process.len()),
        ("path", columns.path.len()),
        ("local_address", columns.local_address.len()),
        ("remote_address", columns.remote_address.len()),
        ("local_port", columns.local_port.len()),
        ("remote_port", columns.remote_port.len()),
        ("bytes_sent", columns.bytes_sent.len()),
        ("bytes_received", columns.bytes_received.len()),
        ("segments_sent", columns.segments_sent.len()),
        ("segments_received", columns.segments_received.len()),
        ("retransmits", columns.retransmits.len()),
        ("syn_retransmits", columns.syn_retransmits.len()),
        ("srtt_us", columns.srtt_us.len()),
        ("error", columns.error.len()),
        ("role", columns.role.len()),
        ("outcome", columns.outcome.len()),
        ("close_reason", columns.close_reason.len()),
        ("attribution", columns.attribution.len()),
        ("flags", columns.flags.len()),
        ("local_cause", columns.local_cause.len()),
        ("streamed", columns.streamed.len()),
        ("accept_wait", columns.accept_wait.len()),
    ];
    match lengths.into_iter().find(|(_, found)| *found != rows) {
        Some((column, found)) => Err(length(column, found, rows)),
        None => Ok(()),
    }
}

fn length(column: &'static str, found: usize, expected: usize) -> Malformed {
    Malformed::Length {
        column,
        found: found as u64,
        expected: expected as u64,
    }
}

/// A dictionary is in order of first use: it cannot have more entries than the rows have places for.
fn check_entries(dictionary: &'static str, entries: usize, places: usize) -> Result<(), Malformed> {
    if entries > places {
        return Err(Malformed::Entry {
            dictionary,
            index: places,
            fault: "is used by no row",
        });
    }
    Ok(())
}

fn check_processes(processes: &[Process], rows: usize) -> Result<(), Malformed> {
    check_entries("processes", processes.len(), rows)?;
    for (index, process) in processes.iter().enumerate() {
        let fault = |fault| {
            Err(Malformed::Entry {
                dictionary: "processes",
                index,
                fault,
            })
        };
        if process.comm.len() > MAX_COMM_BYTES {
            return fault("has a comm of more than 64 bytes");
        }
        if process.service.len() > MAX_SERVICE_BYTES {
            return fault("has a service of more than 256 bytes");
        }
    }
    Ok(())
}

/// What the steps of a path mean for the times of its rows.
struct PathShape {
    /// Steps after the first, which is at the opening.
    offsets: usize,
    /// The step at which the handshake ended: ESTABLISHED or CLOSE, whichever came first.
    decided: Option<usize>,
    /// The last step is CLOSE.
    closes: bool,
}

fn path_shapes(paths: &[Path], rows: usize) -> Result<Vec<PathShape>, Malformed> {
    check_entries("paths", paths.len(), rows)?;
    let shape = |(index, path): (usize, &Path)| {
        let fault = |fault| Malformed::Entry {
            dictionary: "paths",
            index,
            fault,
        };
        let states = &path.states;
        let last = *states.last().ok_or_else(|| fault("has no steps"))?;
        if states.len() > MAX_STEPS {
            return Err(fault("has more than 16 steps"));
        }
        if states.iter().any(|state| *state == 0 || *state > MAX_STATE) {
            return Err(fault("has a state that TCP does not have"));
        }
        Ok(PathShape {
            offsets: states.len() - 1,
            decided: states
                .iter()
                .position(|state| [STATE_ESTABLISHED, STATE_CLOSE].contains(state)),
            closes: last == STATE_CLOSE,
        })
    };
    paths.iter().enumerate().map(shape).collect()
}

fn addresses(entries: &[Bytes], rows: usize) -> Result<Vec<[u8; 16]>, Malformed> {
    const DICTIONARY: &str = "addresses";
    check_entries(DICTIONARY, entries.len(), 2 * rows)?;
    let address = |(index, entry): (usize, &Bytes)| {
        let fault = "is not 16 bytes long";
        entry.as_ref().try_into().map_err(|_| Malformed::Entry {
            dictionary: DICTIONARY,
            index,
            fault,
        })
    };
    entries.iter().enumerate().map(address).collect()
}

fn check_index(column: &'static str, indexes: &[u32], entries: usize) -> Result<(), Malformed> {
    match indexes.iter().position(|index| *index as usize >= entries) {
        Some(row) => Err(Malformed::Index {
            column,
            row,
            index: indexes[row],
            entries,
        }),
        None => Ok(()),
    }
}

fn check_ports(column: &'static str, ports: &[u32]) -> Result<(), Malformed> {
    match ports.iter().position(|port| *port > u32::from(u16::MAX)) {
        Some(row) => Err(Malformed::Value {
            column,
            row,
            value: ports[row].into(),
            allowed: "a port is at most 65535",
        }),
        None => Ok(()),
    }
}

fn check_bytes(
    column: &'static str,
    values: &[u8],
    allowed: &'static str,
    is_allowed: impl Fn(u8) -> bool,
) -> Result<(), Malformed> {
    match position_of_other(values, is_allowed) {
        Some(row) => Err(Malformed::Value {
            column,
            row,
            value: values[row].into(),
            allowed,
        }),
        None => Ok(()),
    }
}

/// Checks a column of numbers of an enumeration: one that is not in it is a newer agent's.
fn check_known<E: TryFrom<i32>>(column: &'static str, values: &[u8]) -> Result<(), Malformed> {
    check_meaning(column, values, |value| E::try_from(i32::from(value)).is_ok())
}

/// Checks a column for values that mean nothing here.
fn check_meaning(
    column: &'static str,
    values: &[u8],
    is_known: impl Fn(u8) -> bool,
) -> Result<(), Malformed> {
    match position_of_other(values, is_known) {
        Some(row) => Err(Malformed::Unknown {
            column,
            row,
            value: values[row].into(),
        }),
        None => Ok(()),
    }
}

/// The first row with a value that is not allowed.
fn position_of_other(values: &[u8], is_allowed: impl Fn(u8) -> bool) -> Option<usize> {
    // 256 values, thousands of rows: ask once for each value.
    let allowed: [bool; 256] = std::array::from_fn(|value| is_allowed(value as u8));
    values.iter().position(|value| !allowed[usize::from(*value)])
}

/// The column whose differences these are. It wraps: a cookie is any 64 bits.
fn running_sums(deltas: &[i64]) -> Vec<u64> {
    let mut sum = 0_u64;
    let next = |delta: &i64| {
        sum = sum.wrapping_add_signed(*delta);
        sum
    };
    deltas.iter().map(next).collect()
}

struct Times {
    day: u32,
    recorded_at_ns: Vec<i64>,
    connect_us: Vec<u64>,
    duration_us: Vec<u64>,
    step_us: Vec<u64>,
    step_ends: Vec<u64>,
}

/// Derives the times of every row from its opening and the steps of its path, in one pass.
fn derive_times(
    columns: &ConnectionColumns,
    shapes: &[PathShape],
    records: Records,
    now_ns: i64,
) -> Result<Times, Malformed> {
    let steps: usize = columns
        .path
        .iter()
        .map(|path| shapes[*path as usize].offsets)
        .sum();
    if columns.step_us.len() != steps {
        return Err(length("step_us", columns.step_us.len(), steps));
    }
    let rows = columns.path.len();
    let latest_ns = now_ns.saturating_add(AHEAD_NS);
    let mut times = Times {
        day: 0,
        recorded_at_ns: Vec::with_capacity(rows),
        connect_us: Vec::with_capacity(rows),
        duration_us: Vec::with_capacity(rows),
        // Of a final record the handshake's end and the last step are told otherwise.
        step_us: Vec::with_capacity(steps.saturating_sub(2 * rows)),
        step_ends: Vec::with_capacity(rows),
    };
    let mut opened_ns = 0_i64;
    let mut remaining = columns.step_us.as_slice();
    for (row, path) in columns.path.iter().enumerate() {
        let time_fault = |fault| Malformed::Time { row, fault };
        opened_ns = opened_ns
            .checked_add(columns.opened_ns_delta[row])
            .filter(|opened_ns| *opened_ns >= EARLIEST_NS)
            .ok_or_else(|| time_fault("before the year 2000; is the node's clock set?"))?;
        if opened_ns > latest_ns {
            return Err(time_fault(
                "more than a day ahead of the collector; is the node's clock right?",
            ));
        }
        let shape = &shapes[*path as usize];
        let (own, rest) = remaining.split_at(shape.offsets);
        remaining = rest;
        if let Some(step_us) = own.iter().find(|step_us| **step_us > MAX_STEP_US) {
            return Err(Malformed::Value {
                column: "step_us",
                row,
                value: *step_us,
                allowed: "at most 8.9 years",
            });
        }
        let is_pending = i32::from(columns.outcome[row]) == Outcome::Pending as i32;
        if is_pending != shape.decided.is_none() {
            return Err(Malformed::Value {
                column: "outcome",
                row,
                value: columns.outcome[row].into(),
                allowed: "pending without ESTABLISHED or CLOSE in its path, and only then",
            });
        }
        let is_final = columns.flags[row] & FLAG_FINAL != 0;
        if is_final && !shape.closes {
            let allowed = "a final record's path ends with CLOSE";
            return Err(Malformed::Value {
                column: "path",
                row,
                value: (*path).into(),
                allowed,
            });
        }
        let last_us: u64 = own.iter().sum();
        let connect_us = shape.decided.map_or(0, |step| own[..step].iter().sum());
        let recorded_us = if records == Records::Open {
            0
        } else if is_final || is_pending {
            last_us
        } else {
            connect_us
        };
        let recorded_at_ns = opened_ns + (recorded_us * 1000) as i64;
        if recorded_at_ns > latest_ns {
            return Err(time_fault(
                "more than a day ahead of the collector; is the node's clock right?",
            ));
        }
        let day = day(recorded_at_ns);
        if row == 0 {
            times.day = day;
        } else if times.day != day && records == Records::Ended {
            return Err(Malformed::Days);
        }
        let mut since_opening_us = 0;
        for (before, step_us) in own.iter().enumerate() {
            since_opening_us += step_us;
            let step = before + 1;
            let is_told = shape.decided == Some(step) || (is_final && step == shape.offsets);
            if !is_told {
                times.step_us.push(if is_final {
                    last_us - since_opening_us
                } else {
                    since_opening_us
                });
            }
        }
        times.step_ends.push(times.step_us.len() as u64);
        times.recorded_at_ns.push(recorded_at_ns);
        times.connect_us.push(connect_us);
        times.duration_us.push(if is_final { last_us } else { 0 });
    }
    Ok(times)
}

/// The day of a time, counted from the epoch: the partition that a row with this time is in.
pub fn day(time_ns: i64) -> u32 {
    u32::try_from(time_ns.div_euclid(DAY_NS)).unwrap_or_default()
}

/// Where an agent stood when it sent a status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentSample {
    /// The agent's clock against the collector's, positive: ahead; and how far off that may be. Zero and zero until
    /// it was measured.
    pub clock_offset_ns: i64,
    pub clock_error_ns: u64,
    pub spool_batches: u64,
    pub spool_memory_bytes: u64,
    pub spool_disk_bytes: u64,
    pub spool_disk_failed: bool,
    /// When the status came, by the collector's clock; nanoseconds since the Unix epoch, like the next two.
    pub received_at_ns: i64,
    /// Everything before is in the store, by the agent's clock. Zero: not known.
    pub watermark_ns: i64,
    pub attempts_watermark_ns: i64,
    /// Rows of connections that will never be in the store, since the start of the agent: lost, or left out by
    /// configuration.
    pub missing: u64,
    /// Of these, what the kernel did not hand over.
    pub lost: u64,
    /// Rows of all streams but that of syscalls that the agent had and gave up.
    pub dropped: u64,
    /// Calls whose rows will never be in the store, since the start of the agent.
    pub syscalls_missing: u64,
    /// Since when each stream that can be switched is on, by the agent's clock; zero: it is off.
    pub syscalls_since_ns: i64,
    pub listeners_since_ns: i64,
    pub open_since_ns: i64,
    /// Of [`SWITCHED`], those that are off, and why; or of which the agent does not say whether they are on.
    pub off: [Option<&'static str>; 3],
    /// Where another agent with the same id was turned away just now, address and port; empty: there is none.
    pub rival: String,
}

/// The streams that can be switched, by the names that `holdfast probe set` has for them.
pub const SWITCHED: [(Stream, &str); 3] = [
    (Stream::Syscalls, "syscalls"),
    (Stream::Listeners, "listeners"),
    (Stream::OpenConnections, "open-connections"),
];

fn off_reason(watch: &Watch) -> &'static str {
    match watch.off() {
        OffReason::Unspecified => "",
        OffReason::Configuration => "configuration",
        OffReason::Collector => "collector",
        OffReason::Budget => "budget",
        OffReason::Kernel => "kernel",
    }
}

impl AgentSample {
    pub fn of(status: &Status, received_at_ns: i64, rival: String) -> Self {
        let time = |ns: u64| i64::try_from(ns).unwrap_or(0);
        let of_connections = |counters: &&StreamCounters| counters.stream() == Stream::Connections;
        let missing = |counters: &StreamCounters| {
            [
                counters.lost,
                counters.untracked,
                counters.missed,
                counters.dropped,
                counters.refused,
                counters.ended,
                counters.filtered,
                counters.sampled_out,
            ]
            .into_iter()
            .fold(0, u64::saturating_add)
        };
        let added = |stream: Stream, count: fn(&StreamCounters) -> u64| {
            let of_stream = status
                .streams
                .iter()
                .filter(|counters| counters.stream() == stream);
            of_stream.map(count).fold(0, u64::saturating_add)
        };
        let watch = |stream: Stream| status.watches.iter().find(|watch| watch.stream() == stream);
        let since_ns = |stream| watch(stream).map_or(0, |watch| time(watch.since_ns));
        let off = SWITCHED.map(|(stream, _)| match watch(stream) {
            Some(watch) if watch.since_ns != 0 => None,
            Some(watch) => Some(off_reason(watch)),
            // An agent of an earlier revision, which says of none whether it is on.
            None => Some(cause::OffReason::UNTOLD),
        });
        let lost = |counters: &StreamCounters| {
            [counters.lost, counters.untracked, counters.missed, counters.ended]
                .into_iter()
                .fold(0, u64::saturating_add)
        };
        let dropped = |counters: &StreamCounters| counters.dropped.saturating_add(counters.refused);
        Self {
            lost: added(Stream::Connections, lost),
            dropped: status
                .streams
                .iter()
                .filter(|counters| counters.stream() != Stream::Syscalls)
                .map(dropped)
                .fold(0, u64::saturating_add),
            syscalls_missing: added(Stream::Syscalls, lost).saturating_add(added(Stream::Syscalls, dropped)),
            syscalls_since_ns: since_ns(Stream::Syscalls),
            listeners_since_ns: since_ns(Stream::Listeners),
            open_since_ns: since_ns(Stream::OpenConnections),
            off,
            received_at_ns,
            watermark_ns: time(status.watermark_ns),
            attempts_watermark_ns: time(status.attempts_watermark_ns),
            missing: status
                .streams
                .iter()
                .filter(of_connections)
                .map(missing)
                .fold(0, u64::saturating_add),
            clock_offset_ns: status.clock_offset_ns,
            clock_error_ns: status.clock_error_ns,
            spool_batches: status.spool_batches,
            spool_memory_bytes: status.spool_memory_bytes,
            spool_disk_bytes: status.spool_disk_bytes,
            spool_disk_failed: status.spool_disk_failed,
            rival,
        }
    }
}

impl AgentSample {
    /// What says of a start of an agent whether its rows are all there, as it is read from the store.
    pub fn report(&self, node: &str, epoch: u64, observed_at_ns: i64) -> Report {
        let since_ns = |switch| match switch {
            Switch::Syscalls => self.syscalls_since_ns,
            Switch::Listeners => self.listeners_since_ns,
            Switch::OpenConnections => self.open_since_ns,
        };
        let off = |switch: Switch| {
            let of_stream = SWITCHED.iter().zip(self.off);
            let reason = of_stream
                .filter(|((_, name), _)| *name == switch.name())
                .find_map(|(_, reason)| reason);
            reason.map_or(cause::OffReason::Unsaid, cause::OffReason::named)
        };
        Report {
            node: node.to_owned(),
            agent_epoch: epoch,
            observed_ns: observed_at_ns,
            received_ns: self.received_at_ns,
            records_ns: self.watermark_ns,
            attempts_ns: self.attempts_watermark_ns,
            missing: self.missing,
            lost: self.lost,
            dropped: self.dropped,
            syscalls_missing: self.syscalls_missing,
            watches: Switch::ALL.map(|switch| coverage::Watch {
                since_ns: since_ns(switch),
                off: off(switch),
            }),
            clock_offset_ns: self.clock_offset_ns,
        }
    }
}

/// Leaves out of a status what is counted of streams that this collector does not know, as a newer agent may have them.
/// Gives one of these.
pub fn leave_out_unknown(status: &mut Status) -> Option<i32> {
    let mut unknown = None;
    status.streams.retain(|counters| {
        let is_known = Stream::try_from(counters.stream).is_ok();
        if !is_known {
            unknown = Some(counters.stream);
        }
        is_known
    });
    unknown
}

/// Checks a status message: what the agent counted, for each stream and namespace.
pub fn status(status: Status, now_ns: i64) -> Result<(i64, Vec<StreamCounters>), Malformed> {
    let observed_at_ns = i64::try_from(status.observed_at_ns)
        .ok()
        .filter(|time| (EARLIEST_NS..=now_ns.saturating_add(AHEAD_NS)).contains(time))
        .ok_or(Malformed::Status(
            "a time before 2000 or more than a day ahead of the collector",
        ))?;
    if status.streams.len() > MAX_COUNTERS {
        return Err(Malformed::Status("more than 4096 counters"));
    }
    if status.watches.len() > MAX_WATCHES {
        return Err(Malformed::Status("more than 64 switches"));
    }
    for counters in &status.streams {
        stream_of(counters.stream)?;
    }
    Ok((observed_at_ns, status.streams))
}

#[cfg(test)]
pub(crate) mod tests;
