//! What there is to assert anything about: who connected to whom, and which system calls were made.

use std::net::Ipv6Addr;

use super::{Access, Query, Store, StoreError, answer_to, questions::time_value};

/// Pairs of a node and what it connected to, the most frequent first.
const MOST_PAIRS: usize = 5_000;

/// System calls, likewise.
const MOST_CALLS: usize = 2_000;

const SETTINGS: &str = "SETTINGS max_threads = 2, max_execution_time = 60, max_memory_usage = 2000000000";

/// Attempts of one node to one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    pub node: String,
    pub remote: Ipv6Addr,
    pub port: u16,
    pub attempts: u64,
}

/// Attempts that were decided after `since_ns` and until `until_ns`.
pub async fn traffic(store: &dyn Store, since_ns: i64, until_ns: i64) -> Result<Vec<Traffic>, StoreError> {
    let sql = format!(
        "SELECT node, toString(remote_ip), remote_port, toString(count()) FROM attempts \
         WHERE role = 'active' AND outcome != 'pending' AND recorded_at > {{since:DateTime64(9, 'UTC')}} \
         AND decided_at > {{since:DateTime64(9, 'UTC')}} AND decided_at <= {{until:DateTime64(9, 'UTC')}} \
         GROUP BY node, remote_ip, remote_port ORDER BY count() DESC LIMIT {MOST_PAIRS} {SETTINGS}"
    );
    let rows: Vec<(String, String, u16, String)> = rows(store, sql, since_ns, until_ns).await?;
    Ok(rows
        .into_iter()
        .filter_map(|(node, remote, port, attempts)| {
            Some(Traffic {
                node,
                remote: remote.parse().ok()?,
                port,
                attempts: attempts.parse().ok()?,
            })
        })
        .collect())
}

/// Which system calls returned on which node after `since_ns` and until `until_ns`, the most frequent first.
pub async fn calls(
    store: &dyn Store,
    since_ns: i64,
    until_ns: i64,
) -> Result<Vec<(String, String, u64)>, StoreError> {
    let sql = format!(
        "SELECT node, toString(syscall), toString(sum(calls)) FROM syscalls \
         WHERE ended_at > {{since:DateTime64(9, 'UTC')}} AND ended_at <= {{until:DateTime64(9, 'UTC')}} \
         GROUP BY node, syscall ORDER BY sum(calls) DESC LIMIT {MOST_CALLS} {SETTINGS}"
    );
    let rows: Vec<(String, String, String)> = rows(store, sql, since_ns, until_ns).await?;
    Ok(rows
        .into_iter()
        .filter_map(|(node, syscall, calls)| Some((node, syscall, calls.parse().ok()?)))
        .collect())
}

async fn rows<R: serde::de::DeserializeOwned>(
    store: &dyn Store,
    sql: String,
    since_ns: i64,
    until_ns: i64,
) -> Result<Vec<R>, StoreError> {
    let question = Query {
        sql,
        params: vec![
            ("since".to_owned(), time_value(since_ns)),
            ("until".to_owned(), time_value(until_ns)),
        ],
        format: "JSONCompactEachRow".into(),
        access: Access::Internal,
    };
    let answer = answer_to(store, question).await?;
    let row = |line| {
        serde_json::from_str(line)
            .map_err(|error| StoreError::rejected(format!("the store's answer {line:?}: {error}")))
    };
    answer.lines().map(row).collect()
}
