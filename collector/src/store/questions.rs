//! The questions that Holdfast itself asks the store, as prepared SQL.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use holdfast_proto::v1::{BatchRange, StoredRows, Stream, SyscallGrouping};

use super::{
    Access, Chunks, Query, Store, StoreError, answer_to,
    condition::Condition,
    schema::{
        CGROUP_RECORDS, CONNECTION_RECORDS, CONNECTION_SAMPLES, GAP_RECORDS, LEDGER_SAMPLES,
        LISTENER_SAMPLES, NAMESPACE_SAMPLES, OVERHEAD_SAMPLES, PEER_SAMPLES, SYSCALL_SAMPLES,
        TRANSITION_EVENTS,
    },
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
    let starts = if all_starts { "" } else { "WHERE is_latest " };
    let sql = format!("SELECT * FROM ledger {starts}ORDER BY node, agent_id, agent_epoch, stream, netns");
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
        newest(
            &CONNECTIONS,
            &format!("recorded_at >= {SINCE} AND {condition}"),
            limit,
        ),
        params,
    )
}

/// Changes of TCP state that pass `filter`, oldest first: those recorded at or after `since_ns` (nanoseconds since the
/// Unix epoch), alone or with the record of their connection, and of these the newest `limit`; zero: all.
pub fn transitions(filter: Option<&Filter>, since_ns: i64, limit: u64) -> Query {
    let Condition { sql, mut params } = filter.map_or_else(Condition::always, Condition::of);
    params.push(("since".into(), time_value(since_ns)));
    query(
        newest(&TRANSITIONS, &format!("recorded_at >= {SINCE} AND {sql}"), limit),
        params,
    )
}

/// Connections and attempts that are open and pass `filter`, the longest open first, `limit` at most; zero: all.
pub fn open_connections(filter: Option<&Filter>, limit: u64) -> Query {
    let Condition { sql, params } = filter.map_or_else(Condition::always, Condition::of);
    let limit = limit_of(limit);
    query(
        format!(
            "SELECT * FROM open_connections WHERE {sql} ORDER BY open_us DESC, node, netns, cookie{limit}"
        ),
        params,
    )
}

/// The listeners of now, as their agents saw them last.
pub fn listeners() -> Query {
    let sql = "SELECT * FROM (SELECT * FROM listeners WHERE observed_at > now64(9, 'UTC') - INTERVAL 25 SECOND \
               ORDER BY observed_at DESC LIMIT 1 BY agent_id, netns, cookie) ORDER BY node, netns, local_port, cookie";
    query(sql.into(), vec![])
}

/// Why attempts that pass `filter` and were recorded at or after `since_ns` failed or were slow: at most `limit`, the latest;
/// zero: all.
pub fn attempt_causes(filter: Option<&Filter>, since_ns: i64, limit: u64) -> Query {
    let Condition { sql, mut params } = filter.map_or_else(Condition::always, Condition::of);
    params.push(("since".into(), time_value(since_ns)));
    let limit = if limit == 0 {
        String::new()
    } else {
        format!(" LIMIT {limit}")
    };
    query(
        format!(
            "SELECT * FROM (SELECT * FROM attempt_causes WHERE recorded_at >= {SINCE} AND {sql} \
             ORDER BY recorded_at DESC, cookie DESC{limit}) ORDER BY recorded_at, cookie"
        ),
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

/// System calls that pass `filter`, of the intervals that ended at or after `since_ns`: added up by node and what `by`
/// says, the most frequent first; at most `limit`, zero: all.
///
/// `calls_per_s` is over the time that the answer covers. Quantiles are those of the measured calls.
pub fn syscalls(filter: Option<&Filter>, since_ns: i64, limit: u64, by: SyscallGrouping) -> Query {
    let Condition {
        sql: condition,
        mut params,
    } = filter.map_or_else(Condition::always, Condition::of);
    params.push(("since".into(), time_value(since_ns)));
    let keys = match by {
        SyscallGrouping::Unspecified => "node, comm, pid, syscall",
        SyscallGrouping::Process => "node, comm, pid",
        SyscallGrouping::Cgroup => "node, cgroup_id",
        SyscallGrouping::Syscall => "node, syscall",
    };
    // What a cgroup was called last.
    let (names, named) = match by {
        SyscallGrouping::Cgroup => (
            "cgroup, ",
            " LEFT JOIN (SELECT node, cgroup_id, argMax(path, observed_at) AS cgroup FROM cgroup_records \
             GROUP BY node, cgroup_id) AS called USING (node, cgroup_id)",
        ),
        _ => ("", ""),
    };
    let limit = limit_of(limit);
    let quantile = |share: &str| {
        format!("if(measured = 0, 0, arrayReduce('quantileExactWeighted({share})', latency.1, latency.2))")
    };
    let sql = format!(
        "SELECT {keys}, {names}calls, errors, round(calls / greatest(covered_ms, 1) * 1000, 1) AS calls_per_s, \
         arrayMap(error -> error.2, frequent) AS errnos, arrayMap(error -> error.1, frequent) AS errno_calls, \
         measured, {p50} AS p50_ns, {p99} AS p99_ns \
         FROM (SELECT {keys}, sum(calls) AS calls, sum(errors) AS errors, sum(measured) AS measured, \
         sumMap(errnos, errno_calls) AS by_errno, \
         arrayReverseSort(arrayZip(by_errno.2, by_errno.1)) AS frequent, \
         sumMap(latency_ns, latency_calls) AS latency, \
         dateDiff('ms', min(min(began_at)) OVER (), max(max(ended_at)) OVER ()) AS covered_ms \
         FROM (SELECT * FROM syscalls WHERE ended_at >= {SINCE} AND {condition}) GROUP BY {keys}) AS counted{named} \
         ORDER BY calls DESC, {keys}{limit}",
        p50 = quantile("0.5"),
        p99 = quantile("0.99"),
    );
    query(sql, params)
}

/// What the agents cost over the intervals that ended at or after `since_ns`, by node and start, and what their budgets
/// changed meanwhile.
pub fn overhead(since_ns: i64) -> Query {
    let sql = format!(
        "SELECT * EXCEPT (runs, times) FROM (SELECT node, agent_id, agent_epoch, max(ended_at) AS last_at, \
         sum(dateDiff('nanosecond', began_at, ended_at)) AS observed_ns, sum(of.measured_ns) AS measured_ns, \
         max(of.cpus) AS cpus, sum(of.agent_cpu_ns) AS agent_cpu_ns, sum(of.programs_cpu_ns) AS programs_cpu_ns, \
         toUInt32(sum(of.agent_cpu_ns + of.programs_cpu_ns) * 1000000 / greatest(1, observed_ns * max(of.cpus))) AS cpu_ppm, \
         argMax(of.budget_ppm, ended_at) AS budget_ppm, argMax(of.next_step, ended_at) AS step, \
         max(of.resident_bytes) AS resident_bytes, max(of.ring_bytes) AS ring_bytes, \
         max(of.ring_peak_bytes) AS ring_peak_bytes, \
         sumMap(of.programs, of.program_runs) AS runs, sumMap(of.programs, of.program_run_ns) AS times, \
         runs.1 AS programs, runs.2 AS program_runs, \
         arrayMap(name -> times.2[indexOf(times.1, name)], runs.1) AS program_run_ns, \
         arraySort(groupArrayIf((of.ended_at, of.step, of.next_step), of.step != of.next_step)) AS changes \
         FROM overhead_samples AS of WHERE ended_at >= {SINCE} \
         GROUP BY node, agent_id, agent_epoch) ORDER BY node, agent_epoch"
    );
    query(sql, vec![("since".into(), time_value(since_ns))])
}

const SINCE: &str = "{since:DateTime64(9, 'UTC')}";

/// Rows that come in batches, and what people see of them.
#[derive(Debug)]
struct Followed {
    /// The table that the batches are in.
    table: &'static str,
    view: &'static str,
    /// Which rows of the view are from that table.
    condition: &'static str,
    /// What the view is ordered by.
    order: &'static str,
}

static CONNECTIONS: Followed = Followed {
    table: CONNECTION_RECORDS.name,
    view: "connections",
    condition: "true",
    order: "closed_at",
};

static TRANSITIONS: Followed = Followed {
    table: TRANSITION_EVENTS.name,
    view: "transitions",
    condition: "is_streamed",
    order: "at, netns, cookie, step",
};

fn newest(of: &Followed, condition: &str, limit: u64) -> String {
    let limit = limit_of(limit);
    let Followed { view, order, .. } = of;
    let latest = order.split(", ").map(|column| format!("{column} DESC"));
    let latest = latest.collect::<Vec<_>>().join(", ");
    format!(
        "SELECT * FROM (SELECT * FROM {view} WHERE {condition} ORDER BY {latest}{limit}) ORDER BY {order}"
    )
}

fn limit_of(limit: u64) -> String {
    if limit == 0 {
        String::new()
    } else {
        format!(" LIMIT {limit}")
    }
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
pub(super) fn time_value(ns: i64) -> String {
    let ns = ns.max(0);
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// What is recorded within so long before a poll is looked for at every poll: longer than a row takes to come, however
/// its agent batches, and than usual clocks differ.
const RECENT_NS: i64 = 120_000_000_000;

/// What is older is looked for only so often: an agent that was cut off delivers late, and a clock may be behind.
const LATE_EVERY_NS: i64 = 10_000_000_000;

/// Rows that are recorded so long before the follower began, but are stored after, are still found. What is older
/// costs more to look for than following is worth.
const LOOKBACK_NS: i64 = 3_600_000_000_000;

/// Batches that are known beyond a hole in an agent's sequence. Some holes never close (a batch that was dropped or
/// refused), so the oldest ones are given up.
const BEYOND_HOLES: usize = 1_024;

/// Finished ends, or transitions that are streamed, as they are stored: each once, whatever the order in which batches of
/// agents arrive.
///
/// A row is found by its batch: an agent numbers its batches, and the rows of a batch are stored at once. Clocks and
/// the order of inserts do not matter. What a poll costs depends on what was recorded lately, not on what is stored:
/// the list of batches is a projection of the table of connections, of whose parts only the recent ones are read.
#[derive(Debug)]
pub struct Follower {
    of: &'static Followed,
    condition: Condition,
    /// What was recorded before is not looked at.
    scan_since_ns: i64,
    /// Only for the first poll: what was recorded before is not shown, and of the rest the newest `limit`.
    first: Option<(i64, u64)>,
    /// When everything since `scan_since_ns` was looked for last.
    looked_back_at_ns: i64,
    seen: BTreeMap<Agent, Seen>,
    /// Batches that are known and were not shown yet, each in the URL of one question.
    waiting: VecDeque<Part>,
}

/// Batches that one question is about, and between which times their rows were recorded.
#[derive(Debug)]
struct Part {
    news: Vec<(Agent, (u64, u64))>,
    recorded_ns: (i64, i64),
    /// Of the first poll: what was recorded before is not shown, and of the rest the newest so many.
    first: Option<(i64, u64)>,
}

/// One start of one agent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
struct Agent {
    node: String,
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

/// Which batch a row is from.
#[derive(Debug, serde::Deserialize)]
struct Origin {
    #[serde(flatten)]
    agent: Agent,
    sequence: u64,
}

/// Batches of one agent that are in the store, and between which times their rows were recorded, in nanoseconds since
/// the Unix epoch.
#[derive(Debug, serde::Deserialize)]
struct Arrival {
    #[serde(flatten)]
    agent: Agent,
    sequences: Vec<u64>,
    first_ns: Vec<i64>,
    last_ns: Vec<i64>,
}

/// Batches that were not shown yet.
#[derive(Debug, Default)]
struct News {
    /// First and last sequences.
    ranges: Vec<(Agent, (u64, u64))>,
    /// Between which times their rows were recorded.
    recorded_ns: Option<(i64, i64)>,
}

impl News {
    fn add(&mut self, agent: &Agent, new: &BTreeMap<u64, (i64, i64)>) {
        let sequences = new.keys().copied().collect();
        let ranges = ranges(&sequences).into_iter();
        self.ranges.extend(ranges.map(|range| (agent.clone(), range)));
        for &(first, last) in new.values() {
            let (from, until) = self.recorded_ns.unwrap_or((first, last));
            self.recorded_ns = Some((from.min(first), until.max(last)));
        }
    }
}

impl Follower {
    /// Of finished ends. The first poll gives the newest `limit` rows (zero: all) of the last `last_ns`; the next ones what
    /// came since.
    pub fn new(filter: Option<&Filter>, now_ns: i64, last_ns: i64, limit: u64) -> Self {
        Self::of(&CONNECTIONS, filter, now_ns, last_ns, limit)
    }

    /// Of transitions, likewise.
    pub fn of_transitions(filter: Option<&Filter>, now_ns: i64, last_ns: i64, limit: u64) -> Self {
        Self::of(&TRANSITIONS, filter, now_ns, last_ns, limit)
    }

    fn of(of: &'static Followed, filter: Option<&Filter>, now_ns: i64, last_ns: i64, limit: u64) -> Self {
        Self {
            of,
            condition: filter.map_or_else(Condition::always, Condition::of),
            scan_since_ns: now_ns.saturating_sub(last_ns.max(LOOKBACK_NS)),
            first: Some((now_ns.saturating_sub(last_ns), limit)),
            looked_back_at_ns: i64::MIN,
            seen: BTreeMap::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Whether the next poll has rows that the last one had no room for.
    pub fn has_more(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The rows that were stored since the last call, oldest first; `None` if no batch was. Where many agents have sent
    /// batches, some of them, and [`Self::has_more`].
    pub async fn poll(&mut self, store: &dyn Store, now_ns: i64) -> Result<Option<Chunks>, StoreError> {
        if let Some(part) = self.waiting.front() {
            let rows = store.query(self.rows(part)).await?;
            self.waiting.pop_front();
            return Ok(Some(rows));
        }
        let looks_back = now_ns.saturating_sub(self.looked_back_at_ns) >= LATE_EVERY_NS;
        let since_ns = if looks_back {
            self.scan_since_ns
        } else {
            self.scan_since_ns.max(now_ns.saturating_sub(RECENT_NS))
        };
        let mut arrivals = String::new();
        for question in self.arrivals(since_ns) {
            arrivals += &answer_to(store, question).await?;
        }
        let mut seen = self.seen.clone();
        let mut news = News::default();
        for line in arrivals.lines() {
            let arrival: Arrival = serde_json::from_str(line).map_err(|error| {
                StoreError::rejected(format!("the store's list of batches, {line:?}: {error}"))
            })?;
            let of_agent = seen.entry(arrival.agent.clone()).or_default();
            let times = arrival.first_ns.into_iter().zip(arrival.last_ns);
            let mut new = BTreeMap::new();
            for (sequence, times) in arrival.sequences.into_iter().zip(times) {
                if of_agent.add(sequence) {
                    new.insert(sequence, times);
                }
            }
            of_agent.close_holes();
            news.add(&arrival.agent, &new);
        }
        let mut parts = VecDeque::new();
        if let Some(recorded_ns) = news.recorded_ns {
            parts.extend(statement::in_parts(&news.ranges, range_bytes).map(|news| Part {
                news: news.to_vec(),
                recorded_ns,
                first: self.first,
            }));
        }
        // Everything of the first poll is shown in one order, and of it only the newest if so many were asked for.
        let rows = match (parts.front(), self.first) {
            (None, _) => None,
            (Some(_), Some((_, limit))) if parts.len() > 1 && limit > 0 => {
                let newest = self.newest_of(store, &parts, limit).await?;
                parts.clear();
                Some(Box::pin(stream::iter([Ok::<_, StoreError>(newest)])) as Chunks)
            }
            (Some(part), Some(_)) if parts.len() > 1 => {
                let rows = self.all_of(store, part, seen.clone()).await?;
                parts.clear();
                Some(rows)
            }
            (Some(part), _) => {
                let rows = store.query(self.rows(part)).await?;
                parts.pop_front();
                Some(rows)
            }
        };
        (self.seen, self.first, self.waiting) = (seen, None, parts);
        if looks_back {
            self.looked_back_at_ns = now_ns;
        }
        Ok(rows)
    }

    /// The rows of all batches that are `seen`, oldest first, of which `part` names some. There may be too many to put them
    /// in order here, so the store does, and is not told which batches: what came since they were listed is left out here.
    async fn all_of(
        &self,
        store: &dyn Store,
        part: &Part,
        seen: BTreeMap<Agent, Seen>,
    ) -> Result<Chunks, StoreError> {
        let (from_ns, until_ns) = part.recorded_ns;
        let since_ns = part.first.map_or(from_ns, |(since_ns, _)| since_ns.max(from_ns));
        let condition = format!(
            "recorded_at >= {SINCE} AND recorded_at <= {{until:DateTime64(9, 'UTC')}} AND {} AND {}",
            self.of.condition, self.condition.sql
        );
        let mut params = self.condition.params.clone();
        params.extend([
            ("since".into(), time_value(since_ns)),
            ("until".into(), time_value(until_ns)),
        ]);
        let rows = store.query(query(newest(self.of, &condition, 0), params)).await?;
        let mut rest = Vec::new();
        Ok(Box::pin(rows.map(move |chunk| {
            rest.extend_from_slice(&chunk?);
            let end = rest
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |at| at + 1);
            let lines: Vec<u8> = rest.drain(..end).collect();
            let mut shown = Vec::with_capacity(lines.len());
            for line in lines.split_inclusive(|&byte| byte == b'\n') {
                let Origin { agent, sequence } = serde_json::from_slice(line).map_err(|error| {
                    let line = String::from_utf8_lossy(line);
                    StoreError::rejected(format!("the store's row {line:?}: {error}"))
                })?;
                if seen.get(&agent).is_some_and(|seen| seen.has(sequence)) {
                    shown.extend_from_slice(line);
                }
            }
            Ok(Bytes::from(shown))
        })))
    }

    /// The newest rows of several parts, oldest first.
    async fn newest_of(
        &self,
        store: &dyn Store,
        parts: &VecDeque<Part>,
        limit: u64,
    ) -> Result<Bytes, StoreError> {
        // What they are ordered by first is a time.
        let column = self.of.order.split(", ").next().unwrap_or_default();
        let mut rows = Vec::new();
        for part in parts {
            for line in answer_to(store, self.rows(part)).await?.lines() {
                let row: serde_json::Value = serde_json::from_str(line)
                    .map_err(|error| StoreError::rejected(format!("the store's row {line:?}: {error}")))?;
                let time = row[column].as_str().unwrap_or_default();
                rows.push((time.to_owned(), format!("{line}\n")));
            }
            // Times are of one length: they are in order as texts. What is of one time comes from one part in its order.
            rows.sort_by(|(one, _), (other, _)| one.cmp(other));
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            rows.drain(..rows.len().saturating_sub(limit));
        }
        let lines: String = rows.into_iter().map(|(_, line)| line).collect();
        Ok(lines.into())
    }

    /// Which batches are in the store that may not have been shown, in as many questions as the known agents need: each
    /// is about those whose checksum leaves one remainder. Written so that the projection `batches` answers.
    fn arrivals(&self, since_ns: i64) -> Vec<Query> {
        let mut questions: usize = 1;
        loop {
            let mut parts = vec![(Vec::new(), Vec::new(), 0); questions];
            for (agent, seen) in &self.seen {
                let part = crc32fast::hash(agent.agent_id.as_bytes()) as usize % questions;
                let (agents, throughs, bytes) = &mut parts[part];
                let name = format!("{}/{}", agent.agent_epoch, agent.agent_id);
                *bytes += statement::text_bytes(&name) + statement::NUMBER_BYTES;
                agents.push(name);
                throughs.push(seen.through);
            }
            // So many starts of one agent are in the last hour that nobody can tell them apart by it: the server will say so.
            let is_hopeless = questions > self.seen.len();
            if is_hopeless
                || parts
                    .iter()
                    .all(|(.., bytes)| *bytes <= statement::MAX_VALUES_BYTES)
            {
                let parts = parts.into_iter().enumerate();
                return parts
                    .map(|(part, (agents, throughs, _))| {
                        arrivals_of(self.of.table, since_ns, &agents, &throughs, (part, questions))
                    })
                    .collect();
            }
            questions *= 2;
        }
    }

    /// The rows of a part.
    fn rows(&self, part: &Part) -> Query {
        let (news, (from_ns, until_ns)) = (&part.news, part.recorded_ns);
        let condition = format!(
            "arrayExists((id, epoch, first, last) -> agent_id = id AND agent_epoch = epoch AND sequence BETWEEN first \
             AND last, {{ids:Array(String)}}, {{epochs:Array(UInt64)}}, {{firsts:Array(UInt64)}}, \
             {{lasts:Array(UInt64)}}) AND node IN {{nodes:Array(String)}} AND recorded_at >= {SINCE} \
             AND recorded_at <= {{until:DateTime64(9, 'UTC')}} AND {} AND {}",
            self.of.condition, self.condition.sql
        );
        let (since_ns, limit) = part.first.unwrap_or((self.scan_since_ns, 0));
        let column = |value: fn(&(Agent, (u64, u64))) -> u64| {
            statement::numbers_value(&news.iter().map(value).collect::<Vec<_>>())
        };
        let texts = |value: fn(&Agent) -> &String| -> Vec<String> {
            news.iter().map(|(agent, _)| value(agent).clone()).collect()
        };
        let nodes: BTreeSet<_> = texts(|agent| &agent.node).into_iter().collect();
        let mut params = self.condition.params.clone();
        params.extend([
            ("since".into(), time_value(since_ns.max(from_ns))),
            ("until".into(), time_value(until_ns)),
            (
                "nodes".into(),
                statement::texts_value(&nodes.into_iter().collect::<Vec<_>>()),
            ),
            (
                "ids".into(),
                statement::texts_value(&texts(|agent| &agent.agent_id)),
            ),
            ("epochs".into(), column(|(agent, _)| agent.agent_epoch)),
            ("firsts".into(), column(|&(_, (first, _))| first)),
            ("lasts".into(), column(|&(_, (_, last))| last)),
        ]);
        query(newest(self.of, &condition, limit), params)
    }
}

impl Seen {
    /// Whether it is new.
    fn add(&mut self, sequence: u64) -> bool {
        sequence > self.through && self.beyond.insert(sequence)
    }

    fn has(&self, sequence: u64) -> bool {
        sequence <= self.through || self.beyond.contains(&sequence)
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

/// Which batches are in the store of agents that leave `part` of `parts`, beyond what is known of some of them.
fn arrivals_of(
    table: &str,
    since_ns: i64,
    agents: &[String],
    throughs: &[u64],
    (part, parts): (usize, usize),
) -> Query {
    let ours = match parts {
        1 => String::new(),
        parts => format!("CRC32(agent_id) % {parts} = {part} AND "),
    };
    // The place of an agent that is not in the list is 0, and so is the element there.
    let sql = format!(
        "SELECT node, agent_id, agent_epoch, groupArray(sequence) AS sequences, groupArray(first) AS first_ns, \
         groupArray(last) AS last_ns FROM \
         (SELECT node, agent_id, agent_epoch, sequence, toUnixTimestamp64Nano(min(recorded_at)) AS first, \
         toUnixTimestamp64Nano(max(recorded_at)) AS last FROM {table} \
         WHERE toStartOfMinute(recorded_at) >= toStartOfMinute({SINCE}) AND {ours}sequence > {{throughs:Array(UInt64)}}\
         [indexOf({{agents:Array(String)}}, concat(toString(agent_epoch), '/', agent_id))] \
         GROUP BY node, agent_id, agent_epoch, sequence) GROUP BY node, agent_id, agent_epoch"
    );
    let params = vec![
        ("since".into(), time_value(since_ns)),
        ("throughs".into(), statement::numbers_value(throughs)),
        ("agents".into(), statement::texts_value(agents)),
    ];
    query(sql, params)
}

/// What a range of batches takes in a URL at most, with its agent's name and that of its node.
fn range_bytes((agent, _): &(Agent, (u64, u64))) -> usize {
    statement::text_bytes(&agent.agent_id) + statement::text_bytes(&agent.node) + 3 * statement::NUMBER_BYTES
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

/// In a cluster, a replica that may lack rows of an answered insert does not answer.
const ALL_OF_IT: &str = "SETTINGS select_sequential_consistency = 1";

/// Ranges of batches that are asked for at once.
const RANGES: usize = 64;

/// Which of these batches of an agent have rows in the store: epochs and sequences. A batch is there whole or not at
/// all.
pub async fn stored_batches(
    store: &dyn Store,
    node: &str,
    agent_id: &str,
    stream: Stream,
    ranges: &[BatchRange],
) -> Result<Vec<(u64, u64)>, StoreError> {
    let Some((table, epoch)) = batches_of(stream) else {
        return Ok(Vec::new());
    };
    let sql = format!(
        "SELECT {epoch}, sequence FROM {table} WHERE node = {{node:String}} AND agent_id = {{agent:String}} \
         AND {} GROUP BY {epoch}, sequence {ALL_OF_IT}",
        in_ranges(epoch)
    );
    let mut stored = Vec::new();
    for ranges in ranges.chunks(RANGES) {
        let mut params = range_params(ranges);
        params.push(("node", statement::text_value(node)));
        params.push(("agent", statement::text_value(agent_id)));
        let answer = answer_to(store, numbers_query(sql.clone(), params)).await?;
        for line in answer.lines() {
            let (epoch, sequence) = line.split_once('\t').unwrap_or_default();
            stored.push((number(epoch)?, number(sequence)?));
        }
    }
    Ok(stored)
}

/// How many rows of these batches of an agent are in the store, by start, and as the ledger counts them: connections and
/// transitions by namespace, syscalls in calls.
pub async fn stored_rows(
    store: &dyn Store,
    node: &str,
    agent_id: &str,
    stream: Stream,
    ranges: &[BatchRange],
) -> Result<Vec<StoredRows>, StoreError> {
    let Some((table, epoch)) = batches_of(stream) else {
        return Ok(Vec::new());
    };
    let (netns, rows, announced) = match stream {
        Stream::Connections => ("netns", "count()", "countIf(NOT is_final)"),
        Stream::Syscalls => ("toUInt32(0)", "sum(calls)", "0"),
        Stream::Transitions => ("netns", "count()", "0"),
        _ => ("toUInt32(0)", "count()", "0"),
    };
    let sql = format!(
        "SELECT {epoch}, {netns} AS origin, {rows}, {announced} FROM {table} WHERE node = {{node:String}} \
         AND agent_id = {{agent:String}} AND {} GROUP BY {epoch}, origin {ALL_OF_IT}",
        in_ranges(epoch)
    );
    let mut stored = Vec::new();
    for ranges in ranges.chunks(RANGES) {
        let mut params = range_params(ranges);
        params.push(("node", statement::text_value(node)));
        params.push(("agent", statement::text_value(agent_id)));
        let answer = answer_to(store, numbers_query(sql.clone(), params)).await?;
        for line in answer.lines() {
            let mut numbers = line.split('\t').map(number);
            let mut next = || {
                numbers
                    .next()
                    .unwrap_or_else(|| Err(StoreError::rejected(format!("{line:?} has too few numbers"))))
            };
            let (epoch, netns, rows, announced) = (next()?, next()?, next()?, next()?);
            // The column has 32 bits.
            stored.push(StoredRows {
                epoch,
                netns: netns as u32,
                rows,
                announced,
                stream: stream.into(),
            });
        }
    }
    Ok(stored)
}

/// Which of these starts of an agent have their final counters in the store.
pub async fn recorded(store: &dyn Store, agent_id: &str, epochs: &[u64]) -> Result<Vec<u64>, StoreError> {
    if epochs.is_empty() {
        return Ok(Vec::new());
    }
    let table = LEDGER_SAMPLES.name;
    let sql = format!(
        "SELECT agent_epoch FROM {table} WHERE agent_id = {{agent:String}} \
         AND has({{epochs:Array(UInt64)}}, agent_epoch) AND is_final GROUP BY agent_epoch {ALL_OF_IT}"
    );
    let mut recorded = Vec::new();
    for epochs in statement::in_parts(epochs, |_| statement::NUMBER_BYTES) {
        let params = vec![
            ("agent", statement::text_value(agent_id)),
            ("epochs", statement::numbers_value(epochs)),
        ];
        let answer = answer_to(store, numbers_query(sql.clone(), params)).await?;
        for line in answer.lines() {
            recorded.push(number(line)?);
        }
    }
    Ok(recorded)
}

/// The condition that a row's batch is in one of some ranges; `epoch` is the column with the start of the agent.
fn in_ranges(epoch: &str) -> String {
    format!(
        "{epoch} BETWEEN {{oldest:UInt64}} AND {{newest:UInt64}} \
         AND arrayExists((epoch, first, last) -> {epoch} = epoch AND sequence BETWEEN first AND last, \
         {{epochs:Array(UInt64)}}, {{firsts:Array(UInt64)}}, {{lasts:Array(UInt64)}})"
    )
}

fn range_params(ranges: &[BatchRange]) -> Vec<(&'static str, String)> {
    let column = |value: fn(&BatchRange) -> u64| ranges.iter().map(value).collect::<Vec<_>>();
    let epochs = column(|range| range.epoch);
    let (oldest, newest) = (epochs.iter().min(), epochs.iter().max());
    vec![
        ("oldest", oldest.copied().unwrap_or_default().to_string()),
        ("newest", newest.copied().unwrap_or_default().to_string()),
        ("epochs", statement::numbers_value(&epochs)),
        (
            "firsts",
            statement::numbers_value(&column(|range| range.first_sequence)),
        ),
        (
            "lasts",
            statement::numbers_value(&column(|range| range.last_sequence)),
        ),
    ]
}

/// The highest sequences of one start of an agent that have rows in the store, by stream; zero: none has.
pub async fn newest_sequences(
    store: &dyn Store,
    node: &str,
    agent_id: &str,
    streams: &[Stream],
    epoch: u64,
) -> Result<Vec<(Stream, u64)>, StoreError> {
    let of_stream = |stream: &Stream| {
        let (table, epoch_column) = batches_of(*stream)?;
        Some(format!(
            "SELECT toInt32({}) AS stream, max(sequence) AS newest FROM (SELECT sequence FROM {table} \
             WHERE node = {{node:String}} AND agent_id = {{agent:String}} AND {epoch_column} = {{epoch:UInt64}} \
             GROUP BY sequence)",
            *stream as i32
        ))
    };
    let of_streams: Vec<_> = streams.iter().filter_map(of_stream).collect();
    if of_streams.is_empty() {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT stream, newest FROM ({}) {ALL_OF_IT}",
        of_streams.join(" UNION ALL ")
    );
    let params = [
        ("node", statement::text_value(node)),
        ("agent", statement::text_value(agent_id)),
        ("epoch", epoch.to_string()),
    ];
    let answer = answer_to(store, numbers_query(sql, params.into())).await?;
    let row = |line: &str| {
        let (stream, newest) = line.split_once('\t').unwrap_or((line, ""));
        let stream = stream
            .parse()
            .ok()
            .and_then(|stream: i32| Stream::try_from(stream).ok());
        let stream = stream.ok_or_else(|| StoreError::rejected(format!("{line:?} is of no stream")))?;
        Ok((stream, number(newest)?))
    };
    answer.lines().map(row).collect()
}

/// The table that batches of a stream go to.
pub fn table_of(stream: Stream) -> Option<&'static str> {
    batches_of(stream).map(|(table, _)| table)
}

/// The table of a stream, and its column with the start of the agent that sealed a batch.
fn batches_of(stream: Stream) -> Option<(&'static str, &'static str)> {
    match stream {
        Stream::Connections => Some((CONNECTION_RECORDS.name, "agent_epoch")),
        Stream::Gaps => Some((GAP_RECORDS.name, "reported_epoch")),
        Stream::OpenConnections => Some((CONNECTION_SAMPLES.name, "agent_epoch")),
        Stream::Listeners => Some((LISTENER_SAMPLES.name, "agent_epoch")),
        Stream::Namespaces => Some((NAMESPACE_SAMPLES.name, "agent_epoch")),
        Stream::Cgroups => Some((CGROUP_RECORDS.name, "agent_epoch")),
        Stream::Peers => Some((PEER_SAMPLES.name, "agent_epoch")),
        Stream::Syscalls => Some((SYSCALL_SAMPLES.name, "agent_epoch")),
        Stream::Transitions => Some((TRANSITION_EVENTS.name, "agent_epoch")),
        Stream::Overhead => Some((OVERHEAD_SAMPLES.name, "agent_epoch")),
        Stream::Unspecified => None,
    }
}

fn numbers_query(sql: String, params: Vec<(&str, String)>) -> Query {
    Query {
        sql,
        params: params
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        format: "TSV".into(),
        access: Access::Internal,
    }
}

fn number(text: &str) -> Result<u64, StoreError> {
    text.parse()
        .map_err(|_| StoreError::rejected(format!("{text:?} is no number")))
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
