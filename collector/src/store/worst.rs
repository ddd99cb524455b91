//! The rows that speak against a verdict, and the causes of them as the kernel named them.

use super::{
    Access, Query, Store, StoreError, answer_to,
    condition::Condition,
    evidence::{below, is_about_its_size, is_of_sum},
    questions::time_value,
};
use crate::assertion::coverage::Window;
use crate::assertion::signal::{Rows, Sum, Times};
use crate::assertion::worst::{Suspects, Worst};

/// Rows of one verdict. Who wants more asks for them with the same condition.
const MOST_ROWS: usize = 5;

const MOST_CAUSES: usize = 5;

/// Evidence is worth a second look at the rows, and not a long one.
const SETTINGS: &str = "SETTINGS max_threads = 1, max_execution_time = 5, max_memory_usage = 500000000, \
                        optimize_use_projections = 0, optimize_use_implicit_projections = 0";

/// What speaks against a condition in a window: the worst rows, and how many there are of each cause. Of a question that
/// the store refuses, or that takes more than it may, nothing: the verdict stands without.
pub async fn worst(
    store: &dyn Store,
    suspects: &Suspects,
    window: Window,
) -> Result<(Vec<serde_json::Value>, Vec<serde_json::Value>), StoreError> {
    let rows = answer(store, worst_rows(suspects, window)).await?;
    let causes = match suspects.rows {
        Rows::Attempts if !rows.is_empty() => {
            let mut causes = answer(store, own_causes(suspects, window)).await?;
            causes.extend(answer(store, decided_causes(suspects, window)).await?);
            causes
        }
        _ => Vec::new(),
    };
    Ok((rows, causes))
}

async fn answer(store: &dyn Store, question: Option<Query>) -> Result<Vec<serde_json::Value>, StoreError> {
    let Some(question) = question else {
        return Ok(Vec::new());
    };
    match answer_to(store, question).await {
        Ok(answer) => Ok(answer
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()),
        Err(StoreError::Rejected { message, .. }) => {
            // A filter may name a column that causes do not have.
            tracing::debug!("the evidence of a verdict is not found: {message}");
            Ok(Vec::new())
        }
        Err(error) if is_about_its_size(&error) => {
            // It would take as much the next time, and the store is there.
            tracing::debug!("the evidence of a verdict takes too much: {error}");
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn query(suspects: &Suspects, window: Window, sql: impl FnOnce(&str) -> String) -> Query {
    let Condition {
        sql: condition,
        params,
    } = Condition::of(&suspects.filter);
    let mut params = params;
    params.push(("from".to_owned(), time_value(window.from_ns)));
    params.push(("until".to_owned(), time_value(window.to_ns)));
    Query {
        sql: sql(&condition),
        params,
        format: "JSONEachRow".into(),
        access: Access::Internal,
    }
}

fn role(suspects: &Suspects) -> &'static str {
    if suspects.is_server { "passive" } else { "active" }
}

/// Which rows count, and by what they are the worse.
fn order(suspects: &Suspects) -> (String, &'static str) {
    let of = |sum: Sum| is_of_sum(suspects.rows, sum).unwrap_or("true").to_owned();
    match suspects.worst {
        Worst::Longest(Times::Connect) => ("outcome = 'established'".into(), "connect_us"),
        Worst::Longest(Times::Duration) => ("outcome = 'established'".into(), "duration_us"),
        Worst::Longest(Times::RoundTrip | Times::Syscall) => ("srtt_us > 0".into(), "srtt_us"),
        Worst::Longest(Times::AcceptWait) => ("accept_wait_us IS NOT NULL".into(), "accept_wait_us"),
        Worst::Fullest => ("true".into(), "backlog / greatest(backlog_limit, 1)"),
        Worst::Most(sum) => (
            of(sum),
            match (suspects.rows, sum) {
                (_, Sum::SynRetransmits) => "syn_retransmits",
                (_, Sum::BytesSent) => "bytes_sent",
                (_, Sum::BytesReceived) => "bytes_received",
                (_, Sum::Retransmits) => "retransmits",
                (Rows::Listeners, _) => "drops",
                (Rows::Syscalls, Sum::Errors | Sum::Errno) => "errors",
                (Rows::Syscalls, _) => "calls",
                (Rows::Open, _) => "open_us",
                (Rows::Connections, _) => "duration_us",
                _ => "connect_us",
            },
        ),
    }
}

fn worst_rows(suspects: &Suspects, window: Window) -> Option<Query> {
    let (which, order) = order(suspects);
    let role = role(suspects);
    let (table, of_view) = below(suspects.rows).unwrap_or(("", "true"));
    let ends = "concat(toString(local_ip), ' ', toString(local_port)) AS local, \
                concat(toString(remote_ip), ' ', toString(remote_port)) AS remote";
    let (columns, from, time) = match suspects.rows {
        Rows::Attempts => (
            format!("node, decided_at AS at, service, comm, pid, {ends}, outcome, local_cause, errno, connect_us, syn_retransmits"),
            table.to_owned(),
            format!("{of_view} AND role = '{role}' AND outcome != 'pending' AND recorded_at > {{from:DateTime64(9, 'UTC')}} AND decided_at"),
        ),
        Rows::Connections => (
            format!("node, closed_at AS at, service, comm, pid, {ends}, outcome, close_reason, duration_us, bytes_sent, bytes_received, retransmits, srtt_us, accept_wait_us"),
            table.to_owned(),
            // When it was closed.
            format!("{of_view} AND role = '{role}' AND recorded_at"),
        ),
        Rows::Listeners => (
            "node, observed_at AS at, service, comm, pid, concat(toString(local_ip), ' ', toString(local_port)) AS local, \
             backlog, backlog_limit, drops"
                .to_owned(),
            "listeners".to_owned(),
            "observed_at".to_owned(),
        ),
        Rows::Syscalls => (
            "node, ended_at AS at, service, comm, pid, syscall, calls, errors, errnos, errno_calls".to_owned(),
            "syscalls".to_owned(),
            "ended_at".to_owned(),
        ),
        Rows::Open => (
            format!("node, observed_at AS at, service, comm, pid, {ends}, outcome, open_us, syn_retransmits"),
            "(SELECT *, toUInt64(greatest(dateDiff('microsecond', opened_at, observed_at), 0)) AS open_us \
             FROM connection_samples WHERE observed_at > {until:DateTime64(9, 'UTC')} - INTERVAL 25 SECOND)"
                .to_owned(),
            format!("role = '{role}' AND observed_at"),
        ),
        Rows::Namespaces | Rows::Overhead | Rows::Sql | Rows::Agents => return None,
    };
    Some(query(suspects, window, |condition| {
        format!(
            "SELECT {columns} FROM {from} WHERE {time} > {{from:DateTime64(9, 'UTC')}} AND at <= {{until:DateTime64(9, 'UTC')}} \
             AND {which} AND {condition} ORDER BY {order} DESC, at DESC LIMIT {MOST_ROWS} {SETTINGS}"
        )
    }))
}

/// How many failed for which reason, as far as their own kernel can tell.
fn own_causes(suspects: &Suspects, window: Window) -> Option<Query> {
    if matches!(suspects.worst, Worst::Longest(_)) {
        // Those that took long were established.
        return None;
    }
    let (which, _) = order(suspects);
    let role = role(suspects);
    let (table, of_view) = below(suspects.rows)?;
    Some(query(suspects, window, |condition| {
        format!(
            "SELECT toString(local_cause) AS cause, count() AS attempts, 'its own kernel' AS by FROM {table} \
             WHERE {of_view} AND role = '{role}' AND outcome NOT IN ('pending', 'established') \
             AND recorded_at > {{from:DateTime64(9, 'UTC')}} AND decided_at > {{from:DateTime64(9, 'UTC')}} \
             AND decided_at <= {{until:DateTime64(9, 'UTC')}} AND {which} AND {condition} \
             GROUP BY cause ORDER BY attempts DESC LIMIT {MOST_CAUSES} {SETTINGS}"
        )
    }))
}

/// What both ends together tell of those that count, as far as it was decided yet: those of the last minutes too, since what
/// goes on has the same cause.
fn decided_causes(suspects: &Suspects, window: Window) -> Option<Query> {
    if suspects.is_server {
        return None;
    }
    let (which, _) = order(suspects);
    Some(query(suspects, window, |condition| {
        format!(
            "SELECT toString(cause) AS cause, count() AS attempts, if(max(is_confirmed), 'both ends', 'one end') AS by, \
             argMax(evidence, decided_at) AS evidence FROM attempt_causes \
             WHERE decided_at > {{from:DateTime64(9, 'UTC')}} - INTERVAL 2 MINUTE \
             AND decided_at <= {{until:DateTime64(9, 'UTC')}} AND cause != 'unknown' AND {which} AND {condition} \
             GROUP BY cause ORDER BY attempts DESC LIMIT {MOST_CAUSES} {SETTINGS}"
        )
    }))
}
