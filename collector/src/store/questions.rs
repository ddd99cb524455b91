//! The questions that Holdfast itself asks the store, as prepared SQL.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_proto::v1::{BatchRange, Stream};

use super::{
    Access, Chunks, Query, Store, StoreError, answer_to,
    condition::Condition,
    schema::{CONNECTION_RECORDS, GAP_RECORDS},
    statement,
};
use crate::filter::Filter;

/// How answers are formatted: one JSON object a line.
const FORMAT: &str = "JSONEachRow";

/// The nodes, by name.
pub fn nodes() -> Query {
    query("SELECT * FROM nodes ORDER BY node".into(), vec![])
}

/// The ledger: one row for each start of each agent, or only for the latest one, and each network namespace.
pub fn ledger(all_starts: bool) -> Query {
    let starts = if all_starts {
        ""
    } else {
        "WHERE (agent_id, agent_epoch) IN (SELECT agent_id, max(agent_epoch) FROM ledger_samples GROUP BY agent_id) "
    };
    let sql = format!("SELECT * FROM ledger {starts}ORDER BY node, agent_id, agent_epoch, netns");
    query(sql, vec![])
}

/// Finished ends that pass `filter`, oldest first: those recorded at or after `since_ns` (nanoseconds since the Unix
/// epoch), and of these the newest `limit`; zero: all.
pub fn connections(filter: Option<&Filter>, since_ns: i64, limit: u64) -> Query {
    let Condition {
        sql: condition,
        mut params,
    } = filter.map_or_else(Condition::always, Condition::of);
    params.push(("since".into(), time_value(since_ns)));
    query(
        newest(&format!("recorded_at >= {SINCE} AND {condition}"), limit),
        params,
    )
}

/// How many attempts there were of each role and outcome, the most frequent first.
pub fn outcomes(since_ns: i64) -> Query {
    let sql = format!(
        "SELECT role, outcome, count() AS attempts FROM attempts WHERE recorded_at >= {SINCE} \
         GROUP BY role, outcome ORDER BY attempts DESC, role, outcome"
    );
    query(sql, vec![("since".into(), time_value(since_ns))])
}

const SINCE: &str = "{since:DateTime64(9, 'UTC')}";

fn newest(condition: &str, limit: u64) -> String {
    let limit = if limit == 0 {
        String::new()
    } else {
        format!(" LIMIT {limit}")
    };
    format!(
        "SELECT * FROM (SELECT * FROM connections WHERE {condition} ORDER BY closed_at DESC{limit}) ORDER BY closed_at"
    )
}

fn query(sql: String, params: Vec<(String, String)>) -> Query {
    Query {
        sql,
        params,
        format: FORMAT.into(),
        access: Access::Internal,
    }
}

/// A point in time as the value of a parameter.
fn time_value(ns: i64) -> String {
    let ns = ns.max(0);
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// Rows that are recorded so long before the follower began, but are stored after, are still found: an agent that
/// was cut off delivers late. What is older costs more to look for than following is worth.
const LOOKBACK_NS: i64 = 3_600_000_000_000;

/// Batches that are known beyond a hole in an agent's sequence. Some holes never close (a batch that was dropped or
/// refused), so the oldest ones are given up.
const BEYOND_HOLES: usize = 1_024;

/// Finished ends as they are stored: each once, whatever the order in which batches of agents arrive.
///
/// A row is found by its batch: an agent numbers its batches, and the rows of a batch are stored at once. Clocks and
/// the order of inserts do not matter.
#[derive(Debug)]
pub struct Follower {
    condition: Condition,
    /// What was recorded before is not looked at.
    scan_since_ns: i64,
    /// Only for the first poll: what was recorded before is not shown, and of the rest the newest `limit`.
    first: Option<(i64, u64)>,
    seen: BTreeMap<Agent, Seen>,
}

/// One start of one agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
struct Agent {
    agent_id: String,
    agent_epoch: u64,
}

/// The batches of one agent that were shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// All up to this one.
    through: u64,
    /// These as well.
    beyond: BTreeSet<u64>,
}

/// Batches of one agent that are in the store.
#[derive(Debug, serde::Deserialize)]
struct Arrival {
    #[serde(flatten)]
    agent: Agent,
    sequences: Vec<u64>,
}

impl Follower {
    /// The first poll gives the newest `limit` rows (zero: all) of the last `last_ns`; the next ones what came since.
    pub fn new(filter: Option<&Filter>, now_ns: i64, last_ns: i64, limit: u64) -> Self {
        Self {
            condition: filter.map_or_else(Condition::always, Condition::of),
            scan_since_ns: now_ns.saturating_sub(last_ns.max(LOOKBACK_NS)),
            first: Some((now_ns.saturating_sub(last_ns), limit)),
            seen: BTreeMap::new(),
        }
    }

    /// The rows that were stored since the last call, oldest first; `None` if no batch was.
    pub async fn poll(&mut self, store: &dyn Store) -> Result<Option<Chunks>, StoreError> {
        let arrivals = answer_to(store, self.arrivals()).await?;
        let mut seen = self.seen.clone();
        let mut news = Vec::new();
        for line in arrivals.lines() {
            let arrival: Arrival = serde_json::from_str(line).map_err(|error| {
                StoreError::rejected(format!("the store's list of batches, {line:?}: {error}"))
            })?;
            let of_agent = seen.entry(arrival.agent.clone()).or_default();
            let new: BTreeSet<u64> = arrival
                .sequences
                .into_iter()
                .filter(|&sequence| of_agent.add(sequence))
                .collect();
            of_agent.close_holes();
            news.extend(
                ranges(&new)
                    .into_iter()
                    .map(|range| (arrival.agent.clone(), range)),
            );
        }
        let first = self.first;
        if news.is_empty() {
            self.first = None;
            return Ok(None);
        }
        let rows = store.query(self.rows(&news, first)).await?;
        (self.seen, self.first) = (seen, None);
        Ok(Some(rows))
    }

    /// Which batches are in the store that may not have been shown.
    fn arrivals(&self) -> Query {
        let agents: Vec<_> = self
            .seen
            .keys()
            .map(|agent| format!("{}/{}", agent.agent_epoch, agent.agent_id))
            .collect();
        let throughs: Vec<_> = self.seen.values().map(|seen| seen.through).collect();
        // The place of an agent that is not in the list is 0, and so is the element there.
        let sql = format!(
            "SELECT agent_id, agent_epoch, groupUniqArray(sequence) AS sequences FROM connection_records \
             WHERE recorded_at >= {SINCE} AND sequence > {{throughs:Array(UInt64)}}\
             [indexOf({{agents:Array(String)}}, concat(toString(agent_epoch), '/', agent_id))] \
             GROUP BY agent_id, agent_epoch"
        );
        let params = vec![
            ("since".into(), time_value(self.scan_since_ns)),
            ("throughs".into(), statement::numbers_value(&throughs)),
            ("agents".into(), statement::texts_value(&agents)),
        ];
        query(sql, params)
    }

    /// The rows of new batches.
    fn rows(&self, news: &[(Agent, (u64, u64))], first: Option<(i64, u64)>) -> Query {
        let condition = format!(
            "arrayExists((id, epoch, first, last) -> agent_id = id AND agent_epoch = epoch AND sequence BETWEEN first \
             AND last, {{ids:Array(String)}}, {{epochs:Array(UInt64)}}, {{firsts:Array(UInt64)}}, \
             {{lasts:Array(UInt64)}}) AND recorded_at >= {SINCE} AND {}",
            self.condition.sql
        );
        let (since_ns, limit) = first.unwrap_or((self.scan_since_ns, 0));
        let column = |value: fn(&(Agent, (u64, u64))) -> u64| {
            statement::numbers_value(&news.iter().map(value).collect::<Vec<_>>())
        };
        let ids: Vec<_> = news.iter().map(|(agent, _)| agent.agent_id.clone()).collect();
        let mut params = self.condition.params.clone();
        params.extend([
            ("since".into(), time_value(since_ns)),
            ("ids".into(), statement::texts_value(&ids)),
            ("epochs".into(), column(|(agent, _)| agent.agent_epoch)),
            ("firsts".into(), column(|&(_, (first, _))| first)),
            ("lasts".into(), column(|&(_, (_, last))| last)),
        ]);
        query(newest(&condition, limit), params)
    }
}

impl Seen {
    /// Whether it is new.
    fn add(&mut self, sequence: u64) -> bool {
        sequence > self.through && self.beyond.insert(sequence)
    }

    fn close_holes(&mut self) {
        while let Some(&next) = self.beyond.first() {
            if next > self.through + 1 && self.beyond.len() <= BEYOND_HOLES {
                return;
            }
            self.beyond.pop_first();
            self.through = next;
        }
    }
}

/// First and last of each run without holes.
fn ranges(sequences: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &sequence in sequences {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == sequence => *last = sequence,
            _ => ranges.push((sequence, sequence)),
        }
    }
    ranges
}

/// Which sequences of a range of an agent's batches have rows in the store. A batch is there whole or not at all.
pub async fn stored_sequences(
    store: &dyn Store,
    node: &str,
    agent_id: &str,
    stream: Stream,
    range: &BatchRange,
) -> Result<Vec<u64>, StoreError> {
    let (table, epoch) = match stream {
        Stream::Connections => (CONNECTION_RECORDS.name, "agent_epoch"),
        Stream::Gaps => (GAP_RECORDS.name, "reported_epoch"),
        Stream::Unspecified => return Ok(Vec::new()),
    };
    let sql = format!(
        "SELECT DISTINCT sequence FROM {table} WHERE node = {{node:String}} AND agent_id = {{agent:String}} \
         AND {epoch} = {{epoch:UInt64}} AND sequence BETWEEN {{first:UInt64}} AND {{last:UInt64}} ORDER BY sequence"
    );
    let params = [
        ("node", node.to_owned()),
        ("agent", agent_id.to_owned()),
        ("epoch", range.epoch.to_string()),
        ("first", range.first_sequence.to_string()),
        ("last", range.last_sequence.to_string()),
    ];
    let question = Query {
        sql,
        params: params.map(|(name, value)| (name.to_owned(), value)).into(),
        format: "TSV".into(),
        access: Access::Internal,
    };
    let answer = answer_to(store, question).await?;
    answer
        .lines()
        .map(|line| {
            line.parse()
                .map_err(|_| StoreError::rejected(format!("{line:?} is no sequence")))
        })
        .collect()
}

/// Whether the store answers at all.
pub async fn alive(store: &dyn Store) -> Result<(), StoreError> {
    answer_to(store, query("SELECT 1".into(), vec![])).await.map(drop)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_become_ranges() {
        assert_eq!(ranges(&[1, 2, 3, 5, 7, 8].into()), [(1, 3), (5, 5), (7, 8)]);
        assert_eq!(ranges(&[].into()), []);
    }

    #[test]
    fn holes_that_never_close_are_given_up() {
        let mut seen = Seen::default();
        for sequence in (2..).step_by(2).take(3 * BEYOND_HOLES) {
            assert!(seen.add(sequence));
            seen.close_holes();
        }
        assert_eq!(seen.beyond.len(), BEYOND_HOLES);
        assert!(!seen.add(1));
    }

    proptest! {
        #[test]
        fn every_batch_is_new_once_in_any_order(order in Just((1..200_u64).collect::<Vec<_>>()).prop_shuffle()) {
            let mut seen = Seen::default();
            for sequence in &order {
                prop_assert!(seen.add(*sequence));
                seen.close_holes();
                prop_assert!(!seen.add(*sequence));
            }
            prop_assert_eq!(seen, Seen { through: 199, beyond: BTreeSet::new() });
        }
    }
}
