//! The tables of today, as inserts and filters see them. How a database came to have them is in [`super::migrations`];
//! a test holds the two together.

use super::{
    Store, StoreError, answer,
    native::{Column, Kind, Table, names},
    statement,
};

/// What a release creates a database with, and what it keeps rows for unless it is told otherwise.
pub const RETENTION_DAYS: u32 = 30;

pub static CONNECTION_RECORDS: Table = Table {
    name: "connection_records",
    columns: &CONNECTION_RECORDS_COLUMNS,
    column_names: &names(&CONNECTION_RECORDS_COLUMNS),
};

pub static NODE_SESSIONS: Table = Table {
    name: "node_sessions",
    columns: &NODE_SESSIONS_COLUMNS,
    column_names: &names(&NODE_SESSIONS_COLUMNS),
};

pub static AGENT_SAMPLES: Table = Table {
    name: "agent_samples",
    columns: &AGENT_SAMPLES_COLUMNS,
    column_names: &names(&AGENT_SAMPLES_COLUMNS),
};

pub static GAP_RECORDS: Table = Table {
    name: "gap_records",
    columns: &GAP_RECORDS_COLUMNS,
    column_names: &names(&GAP_RECORDS_COLUMNS),
};

pub static LEDGER_SAMPLES: Table = Table {
    name: "ledger_samples",
    columns: &LEDGER_SAMPLES_COLUMNS,
    column_names: &names(&LEDGER_SAMPLES_COLUMNS),
};

/// Rows are removed by a DateTime, which ends in 2106: a sum beyond it wraps around, and everything is removed.
pub const RETENTION_DAYS_MAX: u32 = 3_650;

/// The tables that hold rows of the agents.
pub static TABLES: [&Table; 4] = [&CONNECTION_RECORDS, &GAP_RECORDS, &NODE_SESSIONS, &LEDGER_SAMPLES];

/// Columns of `connection_records` that its views do without.
const NOT_IN_VIEWS: [&str; 2] = ["is_first", "is_final"];

/// Columns of `connection_records` that say something only once the end is closed.
const ONLY_IN_CONNECTIONS: [&str; 8] = [
    "duration_us",
    "bytes_sent",
    "bytes_received",
    "segments_sent",
    "segments_received",
    "retransmits",
    "srtt_us",
    "close_reason",
];

/// The columns of the view `connections`.
pub fn connections() -> impl Iterator<Item = &'static Column> {
    CONNECTION_RECORDS_COLUMNS
        .iter()
        .filter(|column| !NOT_IN_VIEWS.contains(&column.name))
}

/// The columns of the view `attempts`.
pub fn attempts() -> impl Iterator<Item = &'static Column> {
    connections().filter(|column| !ONLY_IN_CONNECTIONS.contains(&column.name))
}

/// Has rows of a table removed once they are `days` old. Changes the table only if it has another number.
pub async fn retain(store: &dyn Store, table: &Table, days: u32) -> Result<(), StoreError> {
    if !(1..=RETENTION_DAYS_MAX).contains(&days) {
        let message = format!(
            "retention of {} is {days} days, it has to be from 1 to {RETENTION_DAYS_MAX}",
            table.name
        );
        return Err(StoreError::rejected(message));
    }
    let name = statement::name(table.name)?;
    let kept = format!(
        "SELECT extract(engine_full, 'TTL toDateTime\\((\\w+)\\) \\+ toIntervalDay\\({days}\\)') \
         FROM system.tables WHERE database = currentDatabase() AND name = '{name}'"
    );
    if !answer(store, &kept).await?.trim().is_empty() {
        return Ok(());
    }
    let time = format!(
        "SELECT extract(engine_full, 'PARTITION BY toDate\\((\\w+)\\)') \
         FROM system.tables WHERE database = currentDatabase() AND name = '{name}'"
    );
    let time = answer(store, &time).await?;
    let time = statement::name(time.trim())?;
    store
        .execute(&format!(
            "ALTER TABLE {name} MODIFY TTL toDateTime({time}) + INTERVAL {days} DAY"
        ))
        .await
}

type Names = &'static [(&'static str, i8)];

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind }
}

// The numbers are those of the protocol's enums.
const ROLE: Names = &[("active", 1), ("passive", 2)];
const OUTCOME: Names = &[
    ("established", 1),
    ("refused", 2),
    ("timed_out", 3),
    ("reset", 4),
    ("unreachable", 5),
    ("aborted", 6),
    ("pending", 7),
    ("failed", 8),
];
const CLOSE_REASON: Names = &[
    ("none", 0),
    ("finished", 1),
    ("reset_by_peer", 2),
    ("reset_by_process", 3),
    ("timed_out", 4),
    ("unreachable", 5),
    ("failed", 6),
];
const ATTRIBUTION: Names = &[("unknown", 0), ("exact", 1), ("listener", 2), ("snapshot", 3)];
const STREAM: Names = &[("connections", 1)];
const GAP_STREAM: Names = &[("connections", 1), ("gaps", 2)];
const GAP_REASON: Names = &[
    ("spool_full", 1),
    ("spool_unreadable", 2),
    ("ring_full", 3),
    ("epoch_end", 4),
];

const CONNECTION_RECORDS_COLUMNS: [Column; 38] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("role", Kind::Enum8(ROLE)),
    column("outcome", Kind::Enum8(OUTCOME)),
    column("recorded_at", Kind::DateTime64),
    column("opened_at", Kind::DateTime64),
    column("decided_at", Kind::DateTime64),
    column("closed_at", Kind::DateTime64),
    column("pid", Kind::UInt32),
    column("comm", Kind::LowCardinality),
    column("attribution", Kind::Enum8(ATTRIBUTION)),
    column("netns", Kind::UInt32),
    column("cgroup_id", Kind::UInt64),
    column("local_ip", Kind::IPv6),
    column("local_port", Kind::UInt16),
    column("remote_ip", Kind::IPv6),
    column("remote_port", Kind::UInt16),
    column("connect_us", Kind::UInt64),
    column("duration_us", Kind::UInt64),
    column("bytes_sent", Kind::UInt64),
    column("bytes_received", Kind::UInt64),
    column("segments_sent", Kind::UInt32),
    column("segments_received", Kind::UInt32),
    column("retransmits", Kind::UInt32),
    column("syn_retransmits", Kind::UInt8),
    column("srtt_us", Kind::UInt32),
    column("errno", Kind::UInt16),
    column("local_cause", Kind::LowCardinality),
    column("close_reason", Kind::Enum8(CLOSE_REASON)),
    column("path", Kind::LowCardinality),
    column("path_us", Kind::ArrayUInt64),
    column("cookie", Kind::UInt64),
    column("is_first", Kind::Bool),
    column("is_final", Kind::Bool),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const NODE_SESSIONS_COLUMNS: [Column; 12] = [
    column("node", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("connected_at", Kind::DateTime64),
    column("remote", Kind::String),
    column("labels", Kind::StringMap),
    column("version", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("kernel", Kind::LowCardinality),
    column("architecture", Kind::LowCardinality),
    column("observed_netns", Kind::LowCardinality),
    column("missing_features", Kind::ArrayString),
];

const AGENT_SAMPLES_COLUMNS: [Column; 10] = [
    column("node", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("observed_at", Kind::DateTime64),
    column("clock_offset_ns", Kind::Int64),
    column("clock_error_ns", Kind::UInt64),
    column("spool_batches", Kind::UInt64),
    column("spool_memory_bytes", Kind::UInt64),
    column("spool_disk_bytes", Kind::UInt64),
    column("spool_disk_failed", Kind::Bool),
];

const GAP_RECORDS_COLUMNS: [Column; 13] = [
    column("node", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("stream", Kind::Enum8(GAP_STREAM)),
    column("reason", Kind::Enum8(GAP_REASON)),
    column("rows", Kind::UInt64),
    column("first_sequence", Kind::UInt64),
    column("last_sequence", Kind::UInt64),
    column("first_at", Kind::DateTime64),
    column("last_at", Kind::DateTime64),
    column("recorded_at", Kind::DateTime64),
    column("reported_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const LEDGER_SAMPLES_COLUMNS: [Column; 21] = [
    column("node", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("stream", Kind::Enum8(STREAM)),
    column("netns", Kind::UInt32),
    column("observed_at", Kind::DateTime64),
    column("opened", Kind::UInt64),
    column("closed", Kind::UInt64),
    column("open", Kind::UInt64),
    column("untracked", Kind::UInt64),
    column("unseen", Kind::UInt64),
    column("lost", Kind::UInt64),
    column("filtered", Kind::UInt64),
    column("received", Kind::UInt64),
    column("batching", Kind::UInt64),
    column("unacknowledged", Kind::UInt64),
    column("acknowledged", Kind::UInt64),
    column("dropped", Kind::UInt64),
    column("refused", Kind::UInt64),
    column("superseded", Kind::UInt64),
    column("missed", Kind::UInt64),
];
