//! The rollup inside the store: `connection_minutes` is computed from `connection_records` by the engine itself, rows
//! never leave it. Which minutes are due is decided in [`crate::rollup`].

use super::{
    Access, Query, Store, StoreError, answer_to,
    buckets::bucket_sql,
    questions::time_value,
    statement::{NUMBER_BYTES, in_parts, numbers_value, text_bytes, texts_value},
};

/// Where the rollup is; people read it by the views `attempts_1m`, `connections_1m` and `latency_1m`.
pub const TABLE: &str = "connection_minutes";

const MINUTE_NS: i64 = 60_000_000_000;
const DAY_NS: i64 = 24 * 60 * MINUTE_NS;

/// What one node recorded in one minute: the rollup computes it as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
pub struct NodeMinute {
    /// Minutes since the Unix epoch, of `recorded_at`.
    pub minute: u32,
    pub node: String,
}

impl NodeMinute {
    /// The minute of a point in time; what was before the epoch counts as its first minute.
    pub fn minute_of(ns: i64) -> u32 {
        u32::try_from(ns.max(0) / MINUTE_NS).unwrap_or(u32::MAX)
    }

    /// When the minute begins, in nanoseconds since the Unix epoch.
    pub fn begin_ns(minute: u32) -> i64 {
        i64::from(minute).saturating_mul(MINUTE_NS)
    }
}

/// The engine's part in one statement is one thread, which leaves the others to inserts, and memory that a group that
/// is larger goes to disk for.
const SETTINGS: &str =
    "max_threads = 1, max_insert_threads = 1, max_bytes_before_external_group_by = 268435456";

/// The outcomes and close reasons that are counted, and the columns that have the counts.
const OUTCOMES: [&str; 8] = [
    "established",
    "refused",
    "timed_out",
    "reset",
    "unreachable",
    "aborted",
    "pending",
    "failed",
];
const CLOSE_REASONS: [&str; 6] = [
    "finished",
    "reset_by_peer",
    "reset_by_process",
    "timed_out",
    "unreachable",
    "failed",
];

/// Computes these minutes of these nodes from the raw rows that are there now. Again, by whoever, and in whatever
/// order, it comes to the same: of two rows for one group the one that was made of more records counts.
///
/// The minutes should be near each other: all that the nodes recorded between the first and the last is read.
pub async fn recompute(store: &dyn Store, units: &[NodeMinute]) -> Result<(), StoreError> {
    for units in in_parts(units, |unit| text_bytes(&unit.node) + NUMBER_BYTES) {
        recompute_part(store, units).await?;
    }
    Ok(())
}

/// As many as fit into one statement.
async fn recompute_part(store: &dyn Store, units: &[NodeMinute]) -> Result<(), StoreError> {
    let minutes = || units.iter().map(|unit| unit.minute);
    let (Some(first), Some(last)) = (minutes().min(), minutes().max()) else {
        return Ok(());
    };
    let nodes: Vec<_> = units.iter().map(|unit| unit.node.clone()).collect();
    let minutes: Vec<_> = minutes().map(u64::from).collect();
    let params = vec![
        ("from".into(), time_value(NodeMinute::begin_ns(first))),
        ("until".into(), time_value(NodeMinute::begin_ns(last) + MINUTE_NS)),
        ("nodes".into(), texts_value(&nodes)),
        ("minutes".into(), numbers_value(&minutes)),
    ];
    store.derive(&recompute_sql(), params).await
}

fn recompute_sql() -> String {
    /// In the order of the statement's columns.
    const KEYS: &str = "minute, decided_minute, node, service, comm, role, port";
    let outcomes = OUTCOMES.map(|outcome| format!("countIf(is_first AND outcome = '{outcome}')"));
    let reasons = CLOSE_REASONS.map(|reason| format!("countIf(is_final AND close_reason = '{reason}')"));
    let sums = [
        "bytes_sent",
        "bytes_received",
        "segments_sent",
        "segments_received",
        "retransmits",
    ];
    let sum_sql = sums.map(|column| format!("sumIf({column}, is_final)"));
    // Which minutes of which nodes are wanted is asked of the groups: of each row it would cost half as much again.
    format!(
        "INSERT INTO {TABLE} ({KEYS}, records, {outcome_columns}, syn_retransmits, connections, \
         {reason_columns}, {sum_columns}, connect_buckets, connect_counts, duration_buckets, duration_counts) \
         SELECT {KEYS}, counts.1, {picked}, {connect}, {duration} FROM (\
         SELECT toStartOfMinute(recorded_at) AS minute, \
         if(is_first AND decided_at != 0, toStartOfMinute(decided_at), minute) AS decided_minute, \
         node, service, comm, role, if(role = 'active', remote_port, local_port) AS port, \
         (count(), {outcomes}, sumIf(syn_retransmits, is_first), countIf(is_final), {reasons}, {sums}) AS counts, \
         arraySort(groupArrayIf({connect_bucket}, is_first AND outcome = 'established')) AS connect, \
         arraySort(groupArrayIf({duration_bucket}, is_final AND outcome = 'established')) AS duration \
         FROM connection_records \
         WHERE recorded_at >= {{from:DateTime64(9, 'UTC')}} AND recorded_at < {{until:DateTime64(9, 'UTC')}} \
         AND node IN {{nodes:Array(String)}} GROUP BY {KEYS}) \
         WHERE (node, intDiv(toUnixTimestamp(minute), 60)) IN \
         arrayZip({{nodes:Array(String)}}, {{minutes:Array(UInt32)}}) SETTINGS {SETTINGS}",
        outcome_columns = OUTCOMES.join(", "),
        reason_columns = CLOSE_REASONS.map(|reason| format!("closed_{reason}")).join(", "),
        sum_columns = sums.join(", "),
        // The tuple's members after the first, in the order of the columns.
        picked = (2..2 + OUTCOMES.len() + 2 + CLOSE_REASONS.len() + sums.len())
            .map(|member| format!("counts.{member}"))
            .collect::<Vec<_>>()
            .join(", "),
        connect = histogram_sql("connect"),
        duration = histogram_sql("duration"),
        outcomes = outcomes.join(", "),
        reasons = reasons.join(", "),
        sums = sum_sql.join(", "),
        connect_bucket = bucket_sql("connect_us"),
        duration_bucket = bucket_sql("duration_us"),
    )
}

/// The distinct elements of a sorted array, and how often each is there. Whole arrays at a time: a lambda that looked
/// into the array would copy it for each element.
fn histogram_sql(sorted: &str) -> String {
    let begins = format!(
        "arrayFilter((place, step) -> place = 1 OR step != 0, arrayEnumerate({sorted}), arrayDifference({sorted}))"
    );
    format!(
        "arrayCompact({sorted}), \
         arrayPopFront(arrayDifference(arrayPushBack({begins}, length({sorted}) + 1)))"
    )
}

/// Rows of one day (UTC) in the raw table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Day {
    /// Days since the Unix epoch.
    pub day: u32,
    pub records: u64,
}

/// The days that have raw rows, newest first. Answered from what the engine knows of its parts, without reading rows.
pub async fn days(store: &dyn Store) -> Result<Vec<Day>, StoreError> {
    let sql = "SELECT toUInt32(date) AS day, records FROM \
               (SELECT toDate(recorded_at) AS date, count() AS records FROM connection_records GROUP BY date) \
               ORDER BY day DESC";
    lines(store, sql.into(), vec![]).await
}

/// Minutes of one day that the rollup has fewer records of than there are raw rows, the oldest `most` of them. Minutes
/// of which it has more are left alone: their raw rows are past their retention.
pub async fn behind(store: &dyn Store, day: u32, most: usize) -> Result<Vec<NodeMinute>, StoreError> {
    let sql = format!(
        "SELECT intDiv(toUnixTimestamp(minute), 60) AS minute, node FROM \
         (SELECT node, toStartOfMinute(recorded_at) AS minute, count() AS records FROM connection_records \
         WHERE recorded_at >= {{from:DateTime64(9, 'UTC')}} AND recorded_at < {{until:DateTime64(9, 'UTC')}} \
         GROUP BY node, minute) AS raw LEFT JOIN \
         (SELECT node, minute, sum(records) AS records FROM {TABLE} FINAL \
         WHERE minute >= {{from:DateTime64(9, 'UTC')}} AND minute < {{until:DateTime64(9, 'UTC')}} \
         GROUP BY node, minute) AS rolled USING (node, minute) \
         WHERE raw.records > rolled.records ORDER BY minute, node LIMIT {most} SETTINGS {SETTINGS}"
    );
    let begin_ns = i64::from(day) * DAY_NS;
    let params = vec![
        ("from".into(), time_value(begin_ns)),
        ("until".into(), time_value(begin_ns + DAY_NS)),
    ];
    lines(store, sql, params).await
}

pub(super) async fn lines<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    sql: String,
    params: Vec<(String, String)>,
) -> Result<Vec<T>, StoreError> {
    let question = Query {
        sql,
        params,
        format: "JSONEachRow".into(),
        access: Access::Internal,
    };
    let answer = answer_to(store, question).await?;
    let line = |line| {
        serde_json::from_str(line)
            .map_err(|error| StoreError::rejected(format!("the store's answer {line:?}: {error}")))
    };
    answer.lines().map(line).collect()
}
