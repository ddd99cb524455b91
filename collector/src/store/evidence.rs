//! What assertions are judged by, as SQL: one question for each class of a schedule, and who was watching.
//!
//! The question of a class has two levels. The inner one groups the rows of the window by exactly the labels that the
//! class is told apart by, by which of its filters they pass (a bit each), and by the log bucket of their time and how
//! many limits it reaches; the outer one makes one row of each combination of labels. What belongs to which assertion
//! is decided in [`crate::assertion::evaluate`], so an assertion more costs the engine nothing.

use std::net::Ipv6Addr;

use super::{
    Access, Query, Store, StoreError, answer_to,
    buckets::bucket_sql,
    condition::{Condition, filterable},
    questions::time_value,
    schema, statement,
};
use crate::assertion::cause::{Cause, EXPECTED_FOR};
use crate::assertion::coverage::{Report, Window};
use crate::assertion::evaluate::{LabelledRows, Node, Roster, SUMS};
use crate::assertion::group::Labelled;
use crate::assertion::plan::Class;
use crate::assertion::signal::{Rows, Sum, Times};
use crate::filter;

/// Combinations of labels in one answer. A hundred nodes that talk to each other over ten ports are as many.
const MOST_ROWS: usize = 100_000;

/// What the engine may take for one question, and how long.
const SETTINGS: &str = "SETTINGS max_threads = 1, max_execution_time = 20, max_rows_to_group_by = 5000000, \
                        group_by_overflow_mode = 'throw', max_memory_usage = 1000000000";

/// What rows of a kind can be filtered by.
pub fn columns(rows: Rows) -> Vec<filter::Column> {
    match rows {
        Rows::Attempts => filterable(schema::attempts()),
        Rows::Connections => filterable(schema::connections()),
        Rows::Listeners => filterable(schema::listeners()),
        Rows::Syscalls => filterable(schema::syscalls()),
        Rows::Agents => Vec::new(),
    }
}

/// Asks the question of a class about a window. The outer error is the store's, the inner one about the question.
pub async fn ask(
    store: &dyn Store,
    class: &Class,
    window: Window,
) -> Result<Result<Vec<LabelledRows>, Cause>, StoreError> {
    let answer = match answer_to(store, question(class, window)).await {
        Ok(answer) => answer,
        Err(StoreError::Rejected { message, .. }) => return Ok(Err(Cause::Store(message))),
        Err(error) => return Err(error),
    };
    let rows: Result<Vec<_>, _> = answer.lines().map(row).collect();
    let rows = rows?;
    if rows.len() > MOST_ROWS {
        return Ok(Err(Cause::TooMany { most: MOST_ROWS }));
    }
    Ok(Ok(rows))
}

/// The question of a class about a window.
pub fn question(class: &Class, window: Window) -> Query {
    let mut params = Vec::new();
    let sql = match class.kind.rows {
        Rows::Listeners => of_listeners(class, &mut params),
        _ => of_rows(class, &mut params),
    };
    params.push(("from".to_owned(), time_value(window.from_ns)));
    params.push(("until".to_owned(), time_value(window.to_ns)));
    if !class.bounds.is_empty() {
        params.push(("bounds".to_owned(), statement::numbers_value(&class.bounds)));
    }
    Query {
        sql,
        params,
        format: "JSONCompactEachRow".into(),
        access: Access::Internal,
    }
}

/// The labels' expressions, in the order of [`LabelledRows`]. What is not told apart is constant.
fn labels(class: &Class) -> [String; 5] {
    let port = match class.kind.rows {
        Rows::Attempts | Rows::Connections if !class.kind.is_server => "remote_port",
        _ => "local_port",
    };
    let label = |is_told: bool, expression: &str, constant: &str| {
        if is_told {
            expression.to_owned()
        } else {
            constant.to_owned()
        }
    };
    [
        "node".to_owned(),
        label(class.labels.remote, "remote_ip", "''"),
        label(class.labels.port, port, "0"),
        label(class.labels.service, "service", "''"),
        label(class.labels.comm, "comm", "''"),
    ]
}

/// Which of the filters rows pass, a bit each.
fn passes(class: &Class, params: &mut Vec<(String, String)>) -> String {
    if class.filters.is_empty() {
        return "toUInt64(0)".to_owned();
    }
    let bits = class.filters.iter().enumerate().map(|(bit, filter)| {
        let condition = Condition::of(filter);
        let mut sql = condition.sql;
        // Each filter counts its parameters from zero. Last ones first, so that p1 is not taken for the begin of p10.
        for (name, value) in condition.params.into_iter().rev() {
            sql = sql.replace(&format!("{{{name}:"), &format!("{{f{bit}{name}:"));
            params.push((format!("f{bit}{name}"), value));
        }
        format!("bitShiftLeft(toUInt64({sql}), {bit})")
    });
    bits.collect::<Vec<_>>().join(" + ")
}

fn of_rows(class: &Class, params: &mut Vec<(String, String)>) -> String {
    let kind = class.kind;
    let role = if kind.is_server { "passive" } else { "active" };
    let (table, time, condition) = match kind.rows {
        Rows::Attempts => (
            "attempts",
            "decided_at",
            format!("role = '{role}' AND outcome != 'pending'"),
        ),
        Rows::Connections => ("connections", "closed_at", format!("role = '{role}'")),
        _ => ("syscalls", "ended_at", "true".to_owned()),
    };
    // Of attempts, what the partitions are told by: none is recorded before it was decided.
    let recorded = match kind.rows {
        Rows::Attempts | Rows::Connections => " AND recorded_at > {from:DateTime64(9, 'UTC')}",
        _ => "",
    };
    let (value, has_value) = match kind.times {
        Some(Times::Connect) => ("connect_us", "outcome = 'established'"),
        Some(Times::Duration) => ("duration_us", "outcome = 'established'"),
        Some(Times::RoundTrip) => ("toUInt64(srtt_us)", "srtt_us > 0"),
        None => ("toUInt64(0)", "false"),
    };
    let (bucket, reached) = if kind.times.is_none() {
        ("toUInt16(0)".to_owned(), "0".to_owned())
    } else {
        let reached = if class.bounds.is_empty() {
            "0".to_owned()
        } else {
            format!("arrayCount(bound -> {value} >= bound, {{bounds:Array(UInt64)}})")
        };
        (
            format!("if({has_value}, {}, toUInt16(0))", bucket_sql(value)),
            format!("if({has_value}, {reached}, 0)"),
        )
    };
    let sums = sums(kind.rows).map(|sum| sum.unwrap_or_else(|| "toUInt64(0)".to_owned()));
    let inner_sums: Vec<_> = sums
        .iter()
        .enumerate()
        .map(|(at, sql)| format!("{sql} AS s{at}"))
        .collect();
    let outer_sums: Vec<_> = (0..SUMS).map(|at| format!("toString(sum(s{at}))")).collect();
    let [node, remote, port, service, comm] = labels(class);
    let passes = passes(class, params);
    format!(
        "SELECT node, toString(l_remote), l_port, l_service, l_comm, toString(l_passes), [{outer_sums}], \
         toString(max(largest)), 0, groupArrayIf((bucket, reached, toString(timed)), timed > 0) FROM \
         (SELECT {node} AS node, {remote} AS l_remote, {port} AS l_port, {service} AS l_service, {comm} AS l_comm, \
         {passes} AS l_passes, {bucket} AS bucket, {reached} AS reached, countIf({has_value}) AS timed, \
         maxIf({value}, {has_value}) AS largest, {inner_sums} FROM {table} \
         WHERE {time} > {{from:DateTime64(9, 'UTC')}} AND {time} <= {{until:DateTime64(9, 'UTC')}}{recorded} \
         AND {condition} GROUP BY node, l_remote, l_port, l_service, l_comm, l_passes, bucket, reached) \
         GROUP BY node, l_remote, l_port, l_service, l_comm, l_passes LIMIT {limit} {SETTINGS}",
        outer_sums = outer_sums.join(", "),
        inner_sums = inner_sums.join(", "),
        limit = MOST_ROWS + 1,
    )
}

/// Of each listener what it turned away between the first look and the last one, and how full its queue was.
fn of_listeners(class: &Class, params: &mut Vec<(String, String)>) -> String {
    let [node, _, port, service, comm] = labels(class);
    let passes = passes(class, params);
    let drops = Sum::Drops as usize;
    let sums: Vec<_> = (0..SUMS)
        .map(|at| match at {
            at if at == Sum::Rows as usize => "toString(sum(looks))".to_owned(),
            at if at == drops => "toString(sum(dropped))".to_owned(),
            _ => "'0'".to_owned(),
        })
        .collect();
    format!(
        "SELECT l_node, '', l_port, l_service, l_comm, toString(l_passes), [{sums}], '0', max(fullest), [] FROM \
         (SELECT {node} AS l_node, {port} AS l_port, {service} AS l_service, {comm} AS l_comm, {passes} AS l_passes, \
         agent_id, netns, cookie, count() AS looks, max(drops) - min(drops) AS dropped, \
         max(backlog / greatest(backlog_limit, 1)) AS fullest FROM listeners \
         WHERE observed_at > {{from:DateTime64(9, 'UTC')}} AND observed_at <= {{until:DateTime64(9, 'UTC')}} \
         GROUP BY l_node, l_port, l_service, l_comm, l_passes, agent_id, netns, cookie) \
         GROUP BY l_node, l_port, l_service, l_comm, l_passes LIMIT {limit} {SETTINGS}",
        sums = sums.join(", "),
        limit = MOST_ROWS + 1,
    )
}

/// What each of the sums is, of rows that have it.
fn sums(rows: Rows) -> [Option<String>; SUMS] {
    let mut sums: [Option<String>; SUMS] = Default::default();
    let mut is = |sum: Sum, sql: &str| sums[sum as usize] = Some(sql.to_owned());
    match rows {
        Rows::Attempts => {
            is(Sum::Rows, "count()");
            is(Sum::Established, "countIf(outcome = 'established')");
            is(Sum::Refused, "countIf(outcome = 'refused')");
            is(Sum::TimedOut, "countIf(outcome = 'timed_out')");
            is(Sum::Failed, "countIf(outcome NOT IN ('established', 'aborted'))");
            is(Sum::SynRetransmits, "sum(syn_retransmits)");
        }
        Rows::Connections => {
            is(Sum::Rows, "count()");
            is(Sum::BytesSent, "sum(bytes_sent)");
            is(Sum::BytesReceived, "sum(bytes_received)");
            is(Sum::Retransmits, "sum(retransmits)");
            is(Sum::SegmentsSent, "sum(segments_sent)");
            is(
                Sum::Resets,
                "countIf(close_reason IN ('reset_by_peer', 'reset_by_process'))",
            );
        }
        Rows::Syscalls => {
            is(Sum::Rows, "sum(calls)");
            is(Sum::Errors, "sum(errors)");
        }
        Rows::Listeners | Rows::Agents => {}
    }
    sums
}

/// Numbers of 64 bits are quoted, or a reader of JSON would round them.
#[derive(serde::Deserialize)]
struct Row(
    String,
    String,
    u16,
    String,
    String,
    String,
    Vec<String>,
    String,
    f64,
    Vec<(u16, u8, String)>,
);

fn row(line: &str) -> Result<LabelledRows, StoreError> {
    let wrong = || StoreError::rejected(format!("the store's answer, {line:?}, is no row of evidence"));
    let Row(node, remote, port, service, comm, passes, texts, largest, fullest, histogram) =
        serde_json::from_str(line).map_err(|_| wrong())?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let mut sums = [0; SUMS];
    for (sum, text) in sums.iter_mut().zip(&texts) {
        *sum = number(text)?;
    }
    let histogram = histogram
        .iter()
        .map(|(bucket, reached, count)| Ok((*bucket, *reached, number(count)?)));
    Ok(LabelledRows {
        node,
        remote: remote.parse::<Ipv6Addr>().ok(),
        port,
        service,
        comm,
        passes: number(&passes)?,
        sums,
        largest: number(&largest)?,
        fullest,
        histogram: histogram.collect::<Result<_, StoreError>>()?,
    })
}

/// What the agents reported after `since_ns` and until `until_ns` by the collector's clock, in the order in which it came.
pub async fn reports(store: &dyn Store, since_ns: i64, until_ns: i64) -> Result<Vec<Report>, StoreError> {
    // A node's clock may be wrong by much; what it says is a day's partition away at most, or it is not looked for.
    let sql = "SELECT node, toString(agent_epoch) AS agent_epoch, toUnixTimestamp64Nano(observed_at) AS observed_ns, \
               toUnixTimestamp64Nano(received_at) AS received_ns, toUnixTimestamp64Nano(watermark_at) AS records_ns, \
               toUnixTimestamp64Nano(attempts_watermark_at) AS attempts_ns, toString(missing) AS missing, \
               clock_offset_ns FROM agent_samples \
               WHERE observed_at > {since:DateTime64(9, 'UTC')} - INTERVAL 1 DAY \
               AND received_at > {since:DateTime64(9, 'UTC')} AND received_at <= {until:DateTime64(9, 'UTC')} \
               ORDER BY received_at, observed_at";
    let params = vec![
        ("since".to_owned(), time_value(since_ns)),
        ("until".to_owned(), time_value(until_ns)),
    ];
    lines::<ReportRow>(store, sql, params)
        .await
        .map(|rows| rows.into_iter().map(Report::from).collect())
}

/// When each start of an agent that was heard of within the last hour before `now_ns` was first heard of: node, epoch,
/// and nanoseconds since the Unix epoch by the node's clock.
pub async fn starts(store: &dyn Store, now_ns: i64) -> Result<Vec<(String, u64, i64)>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Start {
        node: String,
        epoch: String,
        began_ns: serde_json::Value,
    }
    let sql = "SELECT node, toString(agent_epoch) AS epoch, toUnixTimestamp64Nano(min(observed_at)) AS began_ns \
               FROM agent_samples WHERE received_at <= {now:DateTime64(9, 'UTC')} GROUP BY node, agent_epoch \
               HAVING max(received_at) > {since:DateTime64(9, 'UTC')} ORDER BY agent_epoch";
    let since_ns = now_ns.saturating_sub(EXPECTED_FOR.as_nanos() as i64);
    let params = vec![
        ("since".to_owned(), time_value(since_ns)),
        ("now".to_owned(), time_value(now_ns)),
    ];
    let starts: Vec<Start> = lines(store, sql, params).await?;
    Ok(starts
        .into_iter()
        .map(|start| {
            (
                start.node,
                start.epoch.parse().unwrap_or(0),
                signed(&start.began_ns),
            )
        })
        .collect())
}

/// The nodes that were heard of within the last hour before `now_ns`, by name.
pub async fn roster(store: &dyn Store, now_ns: i64) -> Result<Roster, StoreError> {
    #[derive(serde::Deserialize)]
    struct Known {
        node: String,
        labels: std::collections::BTreeMap<String, String>,
        addresses: Vec<String>,
    }
    // Where it connected from is an address of it, as far as its network does not change addresses on the way.
    let sql = "SELECT node, labels, arrayPushBack(addresses, remote) AS addresses FROM \
               (SELECT * FROM node_sessions WHERE connected_at <= {now:DateTime64(9, 'UTC')} \
               ORDER BY connected_at DESC LIMIT 1 BY node) WHERE connected_at > {since:DateTime64(9, 'UTC')} \
               OR node IN (SELECT node FROM agent_samples WHERE observed_at > {since:DateTime64(9, 'UTC')} - INTERVAL 1 DAY \
               AND received_at > {since:DateTime64(9, 'UTC')} AND received_at <= {now:DateTime64(9, 'UTC')}) \
               ORDER BY node";
    let params = vec![
        (
            "since".to_owned(),
            time_value(now_ns.saturating_sub(EXPECTED_FOR.as_nanos() as i64)),
        ),
        ("now".to_owned(), time_value(now_ns)),
    ];
    let known: Vec<Known> = lines(store, sql, params).await?;
    let node = |known: Known| Node {
        addresses: known.addresses.iter().filter_map(|text| address(text)).collect(),
        labelled: Labelled {
            node: known.node,
            labels: known.labels,
        },
    };
    Ok(Roster {
        nodes: known.into_iter().map(node).collect(),
    })
}

/// An address, alone or with a port; loopback is everybody's.
fn address(text: &str) -> Option<Ipv6Addr> {
    let ip = text
        .parse()
        .or_else(|_| text.parse().map(|at: std::net::SocketAddr| at.ip()))
        .ok()?;
    let mapped = match ip {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        std::net::IpAddr::V6(ip) => ip,
    };
    (!std::net::IpAddr::V6(mapped).to_canonical().is_loopback()).then_some(mapped)
}

/// Numbers of 64 bits come as numbers or as texts, as the store's settings have it.
#[derive(serde::Deserialize)]
struct ReportRow {
    node: String,
    agent_epoch: String,
    observed_ns: serde_json::Value,
    received_ns: serde_json::Value,
    records_ns: serde_json::Value,
    attempts_ns: serde_json::Value,
    missing: String,
    clock_offset_ns: serde_json::Value,
}

impl From<ReportRow> for Report {
    fn from(row: ReportRow) -> Self {
        Self {
            node: row.node,
            agent_epoch: row.agent_epoch.parse().unwrap_or(0),
            observed_ns: signed(&row.observed_ns),
            received_ns: signed(&row.received_ns),
            records_ns: signed(&row.records_ns),
            attempts_ns: signed(&row.attempts_ns),
            missing: row.missing.parse().unwrap_or(0),
            clock_offset_ns: signed(&row.clock_offset_ns),
        }
    }
}

fn signed(value: &serde_json::Value) -> i64 {
    value
        .as_i64()
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
        .unwrap_or(0)
}

async fn lines<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    sql: &str,
    params: Vec<(String, String)>,
) -> Result<Vec<T>, StoreError> {
    let question = Query {
        sql: sql.to_owned(),
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
