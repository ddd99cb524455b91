//! The tables of today, as inserts and filters see them. How a database came to have them is in [`super::migrations`];
//! a test holds the two together.

use super::{
    Store, StoreError, answer,
    native::{Column, Kind, Table, names},
    rollups, statement,
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

pub static OVERHEAD_SAMPLES: Table = Table {
    name: "overhead_samples",
    columns: &OVERHEAD_SAMPLES_COLUMNS,
    column_names: &names(&OVERHEAD_SAMPLES_COLUMNS),
};

pub static CGROUP_RECORDS: Table = Table {
    name: "cgroup_records",
    columns: &CGROUP_RECORDS_COLUMNS,
    column_names: &names(&CGROUP_RECORDS_COLUMNS),
};

pub static PROBE_REPORTS: Table = Table {
    name: "probe_reports",
    columns: &PROBE_REPORTS_COLUMNS,
    column_names: &names(&PROBE_REPORTS_COLUMNS),
};

pub static CONNECTION_SAMPLES: Table = Table {
    name: "connection_samples",
    columns: &CONNECTION_SAMPLES_COLUMNS,
    column_names: &names(&CONNECTION_SAMPLES_COLUMNS),
};

pub static LISTENER_SAMPLES: Table = Table {
    name: "listener_samples",
    columns: &LISTENER_SAMPLES_COLUMNS,
    column_names: &names(&LISTENER_SAMPLES_COLUMNS),
};

pub static REFUSED_BATCHES: Table = Table {
    name: "refused_batches",
    columns: &REFUSED_BATCHES_COLUMNS,
    column_names: &names(&REFUSED_BATCHES_COLUMNS),
};

pub static SYSCALL_SAMPLES: Table = Table {
    name: "syscall_samples",
    columns: &SYSCALL_SAMPLES_COLUMNS,
    column_names: &names(&SYSCALL_SAMPLES_COLUMNS),
};

pub static TRANSITION_EVENTS: Table = Table {
    name: "transition_events",
    columns: &TRANSITION_EVENTS_COLUMNS,
    column_names: &names(&TRANSITION_EVENTS_COLUMNS),
};

pub static NAMESPACE_SAMPLES: Table = Table {
    name: "namespace_samples",
    columns: &NAMESPACE_SAMPLES_COLUMNS,
    column_names: &names(&NAMESPACE_SAMPLES_COLUMNS),
};

pub static PEER_SAMPLES: Table = Table {
    name: "peer_samples",
    columns: &PEER_SAMPLES_COLUMNS,
    column_names: &names(&PEER_SAMPLES_COLUMNS),
};

pub static VERDICT_RECORDS: Table = Table {
    name: "verdict_records",
    columns: &VERDICT_RECORDS_COLUMNS,
    column_names: &names(&VERDICT_RECORDS_COLUMNS),
};

pub static NOTIFICATION_RECORDS: Table = Table {
    name: "notification_records",
    columns: &NOTIFICATION_RECORDS_COLUMNS,
    column_names: &names(&NOTIFICATION_RECORDS_COLUMNS),
};

pub static RUN_RECORDS: Table = Table {
    name: "run_records",
    columns: &RUN_RECORDS_COLUMNS,
    column_names: &names(&RUN_RECORDS_COLUMNS),
};

pub static LOAD_SAMPLES: Table = Table {
    name: "load_samples",
    columns: &LOAD_SAMPLES_COLUMNS,
    column_names: &names(&LOAD_SAMPLES_COLUMNS),
};

pub static CAUSE_RECORDS: Table = Table {
    name: "cause_records",
    columns: &CAUSE_RECORDS_COLUMNS,
    column_names: &names(&CAUSE_RECORDS_COLUMNS),
};

/// Rows are removed by a DateTime, which ends in 2106: a sum beyond it wraps around, and everything is removed.
pub const RETENTION_DAYS_MAX: u32 = 3_650;

/// The tables that rows go to.
pub static TABLES: [&Table; 20] = [
    &CONNECTION_RECORDS,
    &GAP_RECORDS,
    &NODE_SESSIONS,
    &AGENT_SAMPLES,
    &LEDGER_SAMPLES,
    &CONNECTION_SAMPLES,
    &LISTENER_SAMPLES,
    &REFUSED_BATCHES,
    &SYSCALL_SAMPLES,
    &TRANSITION_EVENTS,
    &OVERHEAD_SAMPLES,
    &NAMESPACE_SAMPLES,
    &PEER_SAMPLES,
    &PROBE_REPORTS,
    &CGROUP_RECORDS,
    &VERDICT_RECORDS,
    &NOTIFICATION_RECORDS,
    &RUN_RECORDS,
    &LOAD_SAMPLES,
    &CAUSE_RECORDS,
];

/// Every table that rows leave when they are old enough, and what people call it: the view that shows it, if one does.
pub const RETAINED: [(&str, &str); 21] = [
    (CONNECTION_RECORDS.name, "connections"),
    (rollups::TABLE, "connections_1m"),
    (GAP_RECORDS.name, "gaps"),
    (NODE_SESSIONS.name, "nodes"),
    (AGENT_SAMPLES.name, AGENT_SAMPLES.name),
    (LEDGER_SAMPLES.name, "ledger"),
    (CONNECTION_SAMPLES.name, "open_connections"),
    (LISTENER_SAMPLES.name, "listeners"),
    (REFUSED_BATCHES.name, REFUSED_BATCHES.name),
    (SYSCALL_SAMPLES.name, "syscalls"),
    (TRANSITION_EVENTS.name, "transitions"),
    (OVERHEAD_SAMPLES.name, "overhead"),
    (NAMESPACE_SAMPLES.name, "namespaces"),
    (PEER_SAMPLES.name, "peers"),
    (PROBE_REPORTS.name, PROBE_REPORTS.name),
    (CGROUP_RECORDS.name, "cgroups"),
    (VERDICT_RECORDS.name, "verdicts"),
    (NOTIFICATION_RECORDS.name, "notifications"),
    (RUN_RECORDS.name, "runs"),
    (LOAD_SAMPLES.name, LOAD_SAMPLES.name),
    (CAUSE_RECORDS.name, "attempt_causes"),
];

/// The table of [`RETAINED`] with this name, its own or the one that people know.
pub fn table_called(name: &str) -> Option<&'static str> {
    let mut tables = RETAINED.into_iter();
    tables
        .find(|(table, called)| [*table, *called].contains(&name))
        .map(|(table, _)| table)
}

/// Columns of the view `connections` that say something only once the end is closed.
const ONLY_IN_CONNECTIONS: [&str; 10] = [
    "duration_us",
    "bytes_sent",
    "bytes_received",
    "segments_sent",
    "segments_received",
    "retransmits",
    "srtt_us",
    "accept_wait_us",
    "close_reason",
    "resets",
];

/// The columns of the view `connections`.
pub fn connections() -> impl Iterator<Item = &'static Column> {
    CONNECTIONS_COLUMNS.iter()
}

/// The columns of the view `attempts`.
pub fn attempts() -> impl Iterator<Item = &'static Column> {
    connections().filter(|column| !ONLY_IN_CONNECTIONS.contains(&column.name))
}

/// The columns of the view `open_connections`.
pub fn open_connections() -> impl Iterator<Item = &'static Column> {
    OPEN_CONNECTIONS_COLUMNS.iter()
}

/// The columns of the view `transitions`.
pub fn transitions() -> impl Iterator<Item = &'static Column> {
    TRANSITIONS_COLUMNS.iter()
}

/// The columns of the view `listeners`.
pub fn listeners() -> impl Iterator<Item = &'static Column> {
    LISTENER_SAMPLES_COLUMNS
        .iter()
        .filter(|column| !["boot_id", "agent_epoch", "sequence"].contains(&column.name))
}

/// The columns of the view `attempt_causes`.
pub fn attempt_causes() -> impl Iterator<Item = &'static Column> {
    CAUSE_RECORDS_COLUMNS.iter()
}

/// The columns of the view `syscalls`.
pub fn syscalls() -> impl Iterator<Item = &'static Column> {
    SYSCALLS_COLUMNS.iter()
}

/// Has rows of a table removed once they are `days` old. Changes the table only if it has another number.
pub async fn retain(store: &dyn Store, table: &str, days: u32) -> Result<(), StoreError> {
    if !(1..=RETENTION_DAYS_MAX).contains(&days) {
        let message =
            format!("retention of {table} is {days} days, it has to be from 1 to {RETENTION_DAYS_MAX}");
        return Err(StoreError::rejected(message));
    }
    let layout = store.layout();
    let rows = layout.rows_of(table);
    let name = statement::name(&rows)?;
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
    let template =
        format!("ALTER TABLE {{rows {table}}} MODIFY TTL toDateTime({time}) + INTERVAL {days} DAY");
    for statement in layout.statements(&template) {
        store.execute(&statement).await?;
    }
    Ok(())
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
const RESETS: Names = &[("none", 0), ("sent", 1), ("received", 2), ("both", 3)];
const ATTRIBUTION: Names = &[("unknown", 0), ("exact", 1), ("listener", 2), ("snapshot", 3)];
// Those of `causes::decide::Cause`.
const CAUSE: Names = &[
    ("unknown", 0),
    ("no_listener", 1),
    ("listener_full", 2),
    ("filtered", 3),
    ("rejected", 4),
    ("dropped_on_path", 5),
    ("reply_dropped", 6),
    ("host_down", 7),
    ("host_silent", 8),
    ("host_unreachable", 9),
    ("net_unreachable", 10),
    ("no_route", 11),
    ("no_port", 12),
    ("local_filter", 13),
    ("process_gave_up", 14),
    ("reset_in_handshake", 15),
    ("no_answer", 16),
    ("dropped_by_listener", 17),
];
const STREAM: Names = &[
    ("connections", 1),
    ("gaps", 2),
    ("syscalls", 3),
    ("open_connections", 4),
    ("listeners", 5),
    ("overhead", 6),
    ("namespaces", 7),
    ("peers", 8),
    ("cgroups", 9),
    ("transitions", 10),
];
const GAP_REASON: Names = &[
    ("spool_full", 1),
    ("spool_unreadable", 2),
    ("ring_full", 3),
    ("epoch_end", 4),
    ("refused", 5),
];

const CONNECTION_RECORDS_COLUMNS: [Column; 38] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("role", Kind::Enum8(ROLE)),
    column("outcome", Kind::Enum8(OUTCOME)),
    column("recorded_at", Kind::DateTime64),
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
    column("step_us", Kind::ArrayUInt64),
    column("cookie", Kind::UInt64),
    column("is_first", Kind::Bool),
    column("is_final", Kind::Bool),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
    column("streamed", Kind::UInt8),
    column("accept_wait_us", Kind::NullableUInt32),
    column("resets", Kind::Enum8(RESETS)),
];

const TRANSITION_EVENTS_COLUMNS: [Column; 22] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("role", Kind::Enum8(ROLE)),
    column("recorded_at", Kind::DateTime64),
    column("opened_at", Kind::DateTime64),
    column("step", Kind::UInt8),
    column("from_state", Kind::LowCardinality),
    column("to_state", Kind::LowCardinality),
    column("pid", Kind::UInt32),
    column("comm", Kind::LowCardinality),
    column("attribution", Kind::Enum8(ATTRIBUTION)),
    column("netns", Kind::UInt32),
    column("cgroup_id", Kind::UInt64),
    column("local_ip", Kind::IPv6),
    column("local_port", Kind::UInt16),
    column("remote_ip", Kind::IPv6),
    column("remote_port", Kind::UInt16),
    column("cookie", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const TRANSITIONS_COLUMNS: [Column; 23] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("role", Kind::Enum8(ROLE)),
    column("opened_at", Kind::DateTime64),
    column("at", Kind::DateTime64),
    column("step", Kind::UInt8),
    column("from_state", Kind::LowCardinality),
    column("to_state", Kind::LowCardinality),
    column("pid", Kind::UInt32),
    column("comm", Kind::LowCardinality),
    column("netns", Kind::UInt32),
    column("cgroup_id", Kind::UInt64),
    column("local_ip", Kind::IPv6),
    column("local_port", Kind::UInt16),
    column("remote_ip", Kind::IPv6),
    column("remote_port", Kind::UInt16),
    column("recorded_at", Kind::DateTime64),
    column("cookie", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
    column("is_streamed", Kind::Bool),
];

const CONNECTIONS_COLUMNS: [Column; 38] = [
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
    column("accept_wait_us", Kind::NullableUInt32),
    column("errno", Kind::UInt16),
    column("local_cause", Kind::LowCardinality),
    column("close_reason", Kind::Enum8(CLOSE_REASON)),
    column("resets", Kind::Enum8(RESETS)),
    column("path", Kind::LowCardinality),
    column("path_us", Kind::ArrayUInt64),
    column("cookie", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const NODE_SESSIONS_COLUMNS: [Column; 13] = [
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
    column("addresses", Kind::ArrayString),
];

const AGENT_SAMPLES_COLUMNS: [Column; 22] = [
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
    column("received_at", Kind::DateTime64),
    column("watermark_at", Kind::DateTime64),
    column("attempts_watermark_at", Kind::DateTime64),
    column("missing", Kind::UInt64),
    column("lost", Kind::UInt64),
    column("dropped", Kind::UInt64),
    column("syscalls_missing", Kind::UInt64),
    column("syscalls_since", Kind::DateTime64),
    column("listeners_since", Kind::DateTime64),
    column("open_connections_since", Kind::DateTime64),
    column("off", Kind::StringMap),
    column("rival", Kind::LowCardinality),
];

const GAP_RECORDS_COLUMNS: [Column; 15] = [
    column("node", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("stream", Kind::Enum8(STREAM)),
    column("reason", Kind::Enum8(GAP_REASON)),
    column("netns", Kind::UInt32),
    column("rows", Kind::UInt64),
    column("at_least", Kind::Bool),
    column("first_sequence", Kind::UInt64),
    column("last_sequence", Kind::UInt64),
    column("first_at", Kind::DateTime64),
    column("last_at", Kind::DateTime64),
    column("recorded_at", Kind::DateTime64),
    column("reported_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const REFUSED_BATCHES_COLUMNS: [Column; 10] = [
    column("node", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("stream", Kind::LowCardinality),
    column("sequence", Kind::UInt64),
    column("refused_at", Kind::DateTime64),
    column("reason", Kind::String),
    column("rows", Kind::UInt32),
    column("encoded_bytes", Kind::UInt64),
    column("encoded", Kind::String),
];

const RUN_RECORDS_COLUMNS: [Column; 12] = [
    column("node", Kind::LowCardinality),
    column("run_id", Kind::String),
    column("revision", Kind::UInt8),
    column("state", Kind::LowCardinality),
    column("verdict", Kind::LowCardinality),
    column("began_at", Kind::DateTime64),
    column("ended_at", Kind::DateTime64),
    column("nodes", Kind::ArrayString),
    column("targets", Kind::ArrayString),
    column("expect", Kind::ArrayString),
    column("reasons", Kind::ArrayString),
    column("result", Kind::String),
];

const LOAD_SAMPLES_COLUMNS: [Column; 47] = [
    column("node", Kind::LowCardinality),
    column("to_node", Kind::LowCardinality),
    column("run_id", Kind::LowCardinality),
    column("observed_at", Kind::DateTime64),
    column("elapsed_us", Kind::UInt64),
    column("open", Kind::UInt64),
    column("most_open", Kind::UInt64),
    column("cpu_us", Kind::UInt64),
    column("started", Kind::UInt64),
    column("established", Kind::UInt64),
    column("refused", Kind::UInt64),
    column("timed_out", Kind::UInt64),
    column("reset", Kind::UInt64),
    column("unreachable", Kind::UInt64),
    column("local_files", Kind::UInt64),
    column("local_ports", Kind::UInt64),
    column("local_filter", Kind::UInt64),
    column("abandoned", Kind::UInt64),
    column("failed", Kind::UInt64),
    column("closed", Kind::UInt64),
    column("closed_by_peer", Kind::UInt64),
    column("reset_by_peer", Kind::UInt64),
    column("lost_timed_out", Kind::UInt64),
    column("lost_unreachable", Kind::UInt64),
    column("lost_failed", Kind::UInt64),
    column("late", Kind::UInt64),
    column("syn_retransmits", Kind::NullableUInt64),
    column("bytes_sent", Kind::UInt64),
    column("bytes_received", Kind::UInt64),
    column("requests", Kind::UInt64),
    column("answered", Kind::UInt64),
    column("unexpected_status", Kind::UInt64),
    column("unexpected_body", Kind::UInt64),
    column("request_timed_out", Kind::UInt64),
    column("request_lost", Kind::UInt64),
    column("malformed", Kind::UInt64),
    column("unsent", Kind::UInt64),
    column("request_abandoned", Kind::UInt64),
    column("insecure", Kind::UInt64),
    column("reordered", Kind::UInt64),
    column("duplicated", Kind::UInt64),
    column("connect_buckets", Kind::ArrayUInt16),
    column("connect_counts", Kind::ArrayUInt64),
    column("network_buckets", Kind::ArrayUInt16),
    column("network_counts", Kind::ArrayUInt64),
    column("request_buckets", Kind::ArrayUInt16),
    column("request_counts", Kind::ArrayUInt64),
];

const LEDGER_SAMPLES_COLUMNS: [Column; 33] = [
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
    column("unsent", Kind::UInt64),
    column("seeded", Kind::UInt64),
    column("announced", Kind::UInt64),
    column("witnessed", Kind::UInt64),
    column("is_witnessed", Kind::Bool),
    column("ended", Kind::UInt64),
    column("is_final", Kind::Bool),
    column("unmeasured", Kind::UInt64),
    column("evicted", Kind::UInt64),
    column("sampled_out", Kind::UInt64),
    column("elsewhere", Kind::UInt64),
    column("received_at", Kind::DateTime64),
];

const CGROUP_RECORDS_COLUMNS: [Column; 18] = [
    column("node", Kind::LowCardinality),
    column("cgroup_id", Kind::UInt64),
    column("observed_at", Kind::DateTime64),
    column("service", Kind::LowCardinality),
    column("path", Kind::String),
    column("unit", Kind::LowCardinality),
    column("runtime", Kind::LowCardinality),
    column("container_id", Kind::String),
    column("container_name", Kind::LowCardinality),
    column("pod_uid", Kind::String),
    column("pod_name", Kind::LowCardinality),
    column("pod_namespace", Kind::LowCardinality),
    column("pod_owner", Kind::LowCardinality),
    column("pod_labels", Kind::StringMap),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const PROBE_REPORTS_COLUMNS: [Column; 7] = [
    column("node", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("reported_at", Kind::DateTime64),
    column("revision", Kind::UInt64),
    column("applied", Kind::StringMap),
    column("refused", Kind::StringMap),
];

const OVERHEAD_SAMPLES_COLUMNS: [Column; 20] = [
    column("node", Kind::LowCardinality),
    column("began_at", Kind::DateTime64),
    column("ended_at", Kind::DateTime64),
    column("cpus", Kind::UInt32),
    column("agent_cpu_ns", Kind::UInt64),
    column("programs_cpu_ns", Kind::UInt64),
    column("measured_ns", Kind::UInt64),
    column("programs", Kind::ArrayString),
    column("program_runs", Kind::ArrayUInt64),
    column("program_run_ns", Kind::ArrayUInt64),
    column("resident_bytes", Kind::UInt64),
    column("ring_bytes", Kind::UInt64),
    column("ring_peak_bytes", Kind::UInt64),
    column("budget_ppm", Kind::UInt32),
    column("step", Kind::LowCardinality),
    column("next_step", Kind::LowCardinality),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const CAUSE_RECORDS_COLUMNS: [Column; 30] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("recorded_at", Kind::DateTime64),
    column("opened_at", Kind::DateTime64),
    column("decided_at", Kind::DateTime64),
    column("outcome", Kind::Enum8(OUTCOME)),
    column("local_cause", Kind::LowCardinality),
    column("cause", Kind::Enum8(CAUSE)),
    column("is_confirmed", Kind::Bool),
    column("evidence", Kind::String),
    column("pid", Kind::UInt32),
    column("comm", Kind::LowCardinality),
    column("netns", Kind::UInt32),
    column("local_ip", Kind::IPv6),
    column("local_port", Kind::UInt16),
    column("remote_ip", Kind::IPv6),
    column("remote_port", Kind::UInt16),
    column("syn_retransmits", Kind::UInt8),
    column("errno", Kind::UInt16),
    column("peer_node", Kind::LowCardinality),
    column("peer_netns", Kind::UInt32),
    column("listener_drops", Kind::UInt64),
    column("listen_overflows", Kind::UInt64),
    column("filtered", Kind::UInt64),
    column("resets_sent", Kind::UInt64),
    column("alike", Kind::UInt64),
    column("cookie", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("revision", Kind::UInt64),
];

const NAMESPACE_SAMPLES_COLUMNS: [Column; 16] = [
    column("node", Kind::LowCardinality),
    column("observed_at", Kind::DateTime64),
    column("netns", Kind::UInt32),
    column("addresses", Kind::ArrayIPv6),
    column("listen_overflows", Kind::UInt64),
    column("listen_drops", Kind::UInt64),
    column("syn_queue_drops", Kind::UInt64),
    column("syn_cookies", Kind::UInt64),
    column("resets_sent", Kind::UInt64),
    column("attempt_fails", Kind::UInt64),
    column("established_resets", Kind::UInt64),
    column("retransmits", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const PEER_SAMPLES_COLUMNS: [Column; 16] = [
    column("node", Kind::LowCardinality),
    column("began_at", Kind::DateTime64),
    column("ended_at", Kind::DateTime64),
    column("netns", Kind::UInt32),
    column("peer_ip", Kind::IPv6),
    column("port", Kind::UInt16),
    column("resets_sent", Kind::UInt64),
    column("resets_received", Kind::UInt64),
    column("retransmits", Kind::UInt64),
    column("syn_retransmits", Kind::UInt64),
    column("syn_ack_retransmits", Kind::UInt64),
    column("filtered", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const SYSCALL_SAMPLES_COLUMNS: [Column; 21] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("comm", Kind::LowCardinality),
    column("syscall", Kind::LowCardinality),
    column("pid", Kind::UInt32),
    column("cgroup_id", Kind::UInt64),
    column("processes", Kind::UInt32),
    column("began_at", Kind::DateTime64),
    column("ended_at", Kind::DateTime64),
    column("calls", Kind::UInt64),
    column("errors", Kind::UInt64),
    column("errnos", Kind::ArrayUInt16),
    column("errno_calls", Kind::ArrayUInt64),
    column("measured_one_in", Kind::UInt32),
    column("measured", Kind::UInt64),
    column("latency_buckets", Kind::ArrayUInt16),
    column("latency_calls", Kind::ArrayUInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

/// Without `latency_ns`, which nothing is filtered by.
const SYSCALLS_COLUMNS: [Column; 17] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("comm", Kind::LowCardinality),
    column("syscall", Kind::LowCardinality),
    column("pid", Kind::UInt32),
    column("cgroup_id", Kind::UInt64),
    column("processes", Kind::UInt32),
    column("began_at", Kind::DateTime64),
    column("ended_at", Kind::DateTime64),
    column("calls", Kind::UInt64),
    column("errors", Kind::UInt64),
    column("errnos", Kind::ArrayUInt16),
    column("errno_calls", Kind::ArrayUInt64),
    column("measured_one_in", Kind::UInt32),
    column("measured", Kind::UInt64),
    column("latency_buckets", Kind::ArrayUInt16),
    column("latency_calls", Kind::ArrayUInt64),
];

const CONNECTION_SAMPLES_COLUMNS: [Column; 30] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("role", Kind::Enum8(ROLE)),
    column("outcome", Kind::Enum8(OUTCOME)),
    column("observed_at", Kind::DateTime64),
    column("opened_at", Kind::DateTime64),
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
    column("bytes_sent", Kind::UInt64),
    column("bytes_received", Kind::UInt64),
    column("segments_sent", Kind::UInt32),
    column("segments_received", Kind::UInt32),
    column("retransmits", Kind::UInt32),
    column("syn_retransmits", Kind::UInt8),
    column("srtt_us", Kind::UInt32),
    column("path", Kind::LowCardinality),
    column("weight", Kind::UInt32),
    column("cookie", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
];

const OPEN_CONNECTIONS_COLUMNS: [Column; 28] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("role", Kind::Enum8(ROLE)),
    column("outcome", Kind::Enum8(OUTCOME)),
    column("observed_at", Kind::DateTime64),
    column("opened_at", Kind::DateTime64),
    column("open_us", Kind::UInt64),
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
    column("bytes_sent", Kind::UInt64),
    column("bytes_received", Kind::UInt64),
    column("segments_sent", Kind::UInt32),
    column("segments_received", Kind::UInt32),
    column("retransmits", Kind::UInt32),
    column("syn_retransmits", Kind::UInt8),
    column("srtt_us", Kind::UInt32),
    column("path", Kind::LowCardinality),
    column("weight", Kind::UInt32),
    column("cookie", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
];

const LISTENER_SAMPLES_COLUMNS: [Column; 20] = [
    column("node", Kind::LowCardinality),
    column("service", Kind::LowCardinality),
    column("observed_at", Kind::DateTime64),
    column("local_ip", Kind::IPv6),
    column("local_port", Kind::UInt16),
    column("pid", Kind::UInt32),
    column("comm", Kind::LowCardinality),
    column("attribution", Kind::Enum8(ATTRIBUTION)),
    column("netns", Kind::UInt32),
    column("cgroup_id", Kind::UInt64),
    column("backlog", Kind::UInt32),
    column("backlog_limit", Kind::UInt32),
    column("drops", Kind::UInt32),
    column("cookie", Kind::UInt64),
    column("agent_id", Kind::LowCardinality),
    column("boot_id", Kind::LowCardinality),
    column("agent_epoch", Kind::UInt64),
    column("sequence", Kind::UInt64),
    column("namespace_overflows", Kind::NullableUInt64),
    column("namespace_drops", Kind::NullableUInt64),
];

/// The numbers are those of [`super::notifications::State`].
const NOTIFICATION_STATE: Names = &[
    ("begun", 1),
    ("queued", 2),
    ("failed", 3),
    ("sent", 4),
    ("given_up", 5),
];

const NOTIFICATION_RECORDS_COLUMNS: [Column; 14] = [
    column("node", Kind::LowCardinality),
    column("receiver", Kind::LowCardinality),
    column("message", Kind::String),
    column("state", Kind::Enum8(NOTIFICATION_STATE)),
    column("at", Kind::DateTime64),
    column("attempt", Kind::UInt32),
    column("reason", Kind::String),
    column("place", Kind::UInt32),
    column("notification", Kind::String),
    column("assertion", Kind::LowCardinality),
    column("key", Kind::String),
    column("verdict", Kind::LowCardinality),
    column("window_to", Kind::DateTime64),
    column("facts", Kind::String),
];

/// The numbers are those of [`crate::assertion::state::Verdict::ALL`], from one.
const VERDICT: Names = &[("holds", 1), ("pending", 2), ("violated", 3), ("unknown", 4)];

const VERDICT_RECORDS_COLUMNS: [Column; 26] = [
    column("node", Kind::LowCardinality),
    column("assertion", Kind::LowCardinality),
    column("key", Kind::String),
    column("verdict", Kind::Enum8(VERDICT)),
    column("previous", Kind::Enum8(VERDICT)),
    column("is_transition", Kind::Bool),
    column("since", Kind::DateTime64),
    column("window_from", Kind::DateTime64),
    column("window_to", Kind::DateTime64),
    column("judged_at", Kind::DateTime64),
    column("cause", Kind::String),
    column("condition", Kind::String),
    column("has_value", Kind::Bool),
    column("value", Kind::Float64),
    column("threshold", Kind::Float64),
    column("samples", Kind::UInt64),
    column("loss", Kind::NullableUInt64),
    column("lag_us", Kind::UInt64),
    column("flaps", Kind::UInt32),
    column("silenced", Kind::Bool),
    column("severity", Kind::LowCardinality),
    column("labels", Kind::StringMap),
    column("evidence", Kind::String),
    column("revision", Kind::UInt32),
    column("fingerprint", Kind::UInt32),
    column("state", Kind::String),
];
