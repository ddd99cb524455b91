//! What [`crate::causes`] asks the store, and where it keeps what it found. Everything is bounded: attempts of a minute,
//! and rows of evidence.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv6Addr;

use serde::Deserialize;

use super::native::{BlockBuilder, BlockError};
use super::questions::time_value;
use super::rollups::{NodeMinute, lines};
use super::schema::CAUSE_RECORDS;
use super::statement::{numbers_value, texts_value};
use super::{Store, StoreError};
use crate::causes::decide::{Decision, Evidence};

/// Attempts of one minute that get a cause of their own: so many of a kind (node, namespace, destination, outcome), and so
/// many of all. The first of each kind stand for the others.
const ATTEMPTS_ALIKE: usize = 20;
const ATTEMPTS: usize = 2_000;

/// Rows of each kind of evidence.
const ROWS: usize = 200_000;

const SECOND_NS: i64 = 1_000_000_000;

/// A kernel that gives up on an attempt does so after 130 s with the usual settings: evidence is from so long before its
/// end.
const BEFORE_NS: i64 = 200 * SECOND_NS;

/// One thread: the others are for inserts.
const SETTINGS: &str = "max_threads = 1";

/// Until so long after.
const AFTER_NS: i64 = 30 * SECOND_NS;

/// Who has an address is looked for this far back: a host that is down says nothing any more.
const ADDRESS_NS: i64 = 600 * SECOND_NS;

/// An attempt that failed, or was established only after a SYN was sent again.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attempt {
    pub node: String,
    pub service: String,
    pub agent_id: String,
    pub agent_epoch: u64,
    pub boot_id: String,
    pub netns: u32,
    pub cookie: u64,
    pub recorded_ns: i64,
    pub opened_ns: i64,
    pub decided_ns: i64,
    pub pid: u32,
    pub comm: String,
    pub local_ip: Ipv6Addr,
    pub local_port: u16,
    pub remote_ip: Ipv6Addr,
    pub remote_port: u16,
    pub outcome: String,
    pub outcome_number: i8,
    pub syn_retransmits: u8,
    pub errno: u16,
    pub local_cause: String,
    /// Attempts of the same kind in the minute, this one included.
    pub alike: u64,
}

/// A look at a namespace.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NamespaceSample {
    pub boot_id: String,
    pub netns: u32,
    pub node: String,
    pub observed_ns: i64,
    /// Those of its addresses that were asked for.
    pub addresses: Vec<Ipv6Addr>,
    pub listen_overflows: u64,
    pub listen_drops: u64,
    /// Its agent's kernel shows what filters drop and which resets are sent.
    pub sees_signals: bool,
}

/// A look at a listener.
#[derive(Clone, Debug, Deserialize)]
pub struct ListenerSample {
    pub boot_id: String,
    pub netns: u32,
    pub node: String,
    pub cookie: u64,
    pub local_ip: Ipv6Addr,
    pub local_port: u16,
    pub pid: u32,
    pub comm: String,
    pub observed_ns: i64,
    pub backlog: u32,
    pub backlog_limit: u32,
    pub drops: u32,
}

/// Trouble that a namespace had with a peer.
#[derive(Clone, Debug, Deserialize)]
pub struct PeerSample {
    pub boot_id: String,
    pub netns: u32,
    pub peer_ip: Ipv6Addr,
    pub port: u16,
    pub began_ns: i64,
    pub ended_ns: i64,
    pub resets_sent: u64,
    pub syn_ack_retransmits: u64,
    pub filtered: u64,
}

/// An end that came out of a listener.
#[derive(Clone, Debug, Deserialize)]
pub struct PassiveEnd {
    pub boot_id: String,
    pub netns: u32,
    pub node: String,
    pub local_ip: Ipv6Addr,
    pub local_port: u16,
    pub remote_ip: Ipv6Addr,
    pub remote_port: u16,
    pub opened_ns: i64,
    pub outcome: String,
    pub syn_retransmits: u8,
    pub pid: u32,
    pub comm: String,
}

/// Attempts that failed or were slow.
const SUSPICIOUS: &str = "role = 'active' AND is_first AND \
    (outcome NOT IN ('established', 'pending') OR (outcome = 'established' AND syn_retransmits > 0))";

/// The attempts of a minute (since the Unix epoch) that want a cause.
pub async fn suspects(store: &dyn Store, minute: u32) -> Result<Vec<Attempt>, StoreError> {
    let sql = format!(
        "SELECT node, service, agent_id, agent_epoch, boot_id, netns, cookie, \
         toUnixTimestamp64Nano(recorded_at) AS recorded_ns, toUnixTimestamp64Nano(opened_at) AS opened_ns, \
         toUnixTimestamp64Nano(decided_at) AS decided_ns, pid, comm, local_ip, local_port, remote_ip, remote_port, \
         outcome, toInt8(outcome) AS outcome_number, syn_retransmits, errno, local_cause, \
         count() OVER (PARTITION BY node, netns, remote_ip, remote_port, outcome) AS alike \
         FROM connection_records WHERE {} AND {SUSPICIOUS} ORDER BY recorded_at, cookie \
         LIMIT {ATTEMPTS_ALIKE} BY node, netns, remote_ip, remote_port, outcome LIMIT {ATTEMPTS} SETTINGS {SETTINGS}",
        within("recorded_at")
    );
    let begin_ns = NodeMinute::begin_ns(minute);
    lines(store, sql, window(begin_ns, begin_ns + 60 * SECOND_NS)).await
}

/// Minutes from `since_ns` on that have attempts that want a cause and none that has one.
pub async fn minutes_behind(store: &dyn Store, since_ns: i64, until_ns: i64) -> Result<Vec<u32>, StoreError> {
    #[derive(Deserialize)]
    struct Minute {
        minute: u32,
    }
    let sql = format!(
        "SELECT DISTINCT intDiv(toUnixTimestamp(recorded_at), 60) AS minute FROM connection_records \
         WHERE {} AND {SUSPICIOUS} AND minute GLOBAL NOT IN \
         (SELECT intDiv(toUnixTimestamp(recorded_at), 60) FROM {} WHERE {}) ORDER BY minute SETTINGS {SETTINGS}",
        within("recorded_at"),
        CAUSE_RECORDS.name,
        within("recorded_at")
    );
    let minutes: Vec<Minute> = lines(store, sql, window(since_ns, until_ns)).await?;
    Ok(minutes.into_iter().map(|minute| minute.minute).collect())
}

/// What all nodes say of the time around these attempts.
pub async fn evidence(store: &dyn Store, attempts: &[Attempt]) -> Result<Evidence, StoreError> {
    let ips = |ip: fn(&Attempt) -> Ipv6Addr| distinct(attempts.iter().map(|attempt| ip(attempt).to_string()));
    let numbers = |number: fn(&Attempt) -> u64| distinct(attempts.iter().map(number));
    let (remote_ips, local_ips) = (ips(|attempt| attempt.remote_ip), ips(|attempt| attempt.local_ip));
    let both = distinct(remote_ips.iter().chain(&local_ips).cloned());
    let opened_ns = attempts
        .iter()
        .map(|attempt| attempt.opened_ns)
        .min()
        .unwrap_or(0);
    let decided_ns = attempts
        .iter()
        .map(|attempt| attempt.decided_ns)
        .max()
        .unwrap_or(0);
    // One that is stuck for hours is explained by its end.
    let from_ns = opened_ns.max(decided_ns - BEFORE_NS) - AFTER_NS;
    let until_ns = decided_ns + AFTER_NS;

    let own: Vec<u64> = numbers(|attempt| attempt.netns.into());
    let sql = format!(
        "SELECT boot_id, netns, node, toUnixTimestamp64Nano(observed_at) AS observed_ns, \
         arrayFilter(ip -> has({{ips:Array(IPv6)}}, ip), namespace_samples.addresses) AS addresses, listen_overflows, \
         listen_drops, toBool((agent_id, agent_epoch) GLOBAL NOT IN (SELECT agent_id, agent_epoch FROM node_sessions \
         WHERE has(missing_features, 'tcp_signals'))) AS sees_signals FROM namespace_samples WHERE {around} AND (netns IN {{own:Array(UInt64)}} OR (boot_id, netns) \
         GLOBAL IN (SELECT boot_id, netns FROM namespace_samples WHERE {around} \
         AND hasAny(addresses, {{ips:Array(IPv6)}}))) ORDER BY observed_at LIMIT {ROWS} SETTINGS {SETTINGS}",
        around = within("observed_at")
    );
    let mut params = window(
        opened_ns.min(from_ns).max(decided_ns - BEFORE_NS) - ADDRESS_NS,
        until_ns,
    );
    params.push(("ips".into(), texts_value(&remote_ips)));
    params.push(("own".into(), numbers_value(&own)));
    let namespaces: Vec<NamespaceSample> = lines(store, sql, params).await?;

    let homes = distinct(namespaces.iter().map(|sample| u64::from(sample.netns)).chain(own));
    let ports = numbers(|attempt| attempt.remote_port.into());
    let sql = format!(
        "SELECT boot_id, netns, node, cookie, local_ip, local_port, pid, comm, \
         toUnixTimestamp64Nano(observed_at) AS observed_ns, backlog, backlog_limit, drops FROM listener_samples \
         WHERE {} AND netns IN {{homes:Array(UInt64)}} AND local_port IN {{ports:Array(UInt64)}} \
         ORDER BY observed_at LIMIT {ROWS} SETTINGS {SETTINGS}",
        within("observed_at")
    );
    let mut params = window(from_ns, until_ns);
    params.push(("homes".into(), numbers_value(&homes)));
    params.push(("ports".into(), numbers_value(&ports)));
    let listeners = lines(store, sql, params).await?;

    let sql = format!(
        "SELECT boot_id, netns, peer_ip, port, toUnixTimestamp64Nano(began_at) AS began_ns, \
         toUnixTimestamp64Nano(ended_at) AS ended_ns, resets_sent, syn_ack_retransmits, filtered FROM peer_samples \
         WHERE {} AND netns IN {{homes:Array(UInt64)}} AND peer_ip IN {{ips:Array(IPv6)}} \
         ORDER BY ended_at LIMIT {ROWS} SETTINGS {SETTINGS}",
        within("ended_at")
    );
    let mut params = window(from_ns, until_ns);
    params.push(("homes".into(), numbers_value(&homes)));
    params.push(("ips".into(), texts_value(&both)));
    let peers = lines(store, sql, params).await?;

    let sql = format!(
        "SELECT boot_id, netns, node, local_ip, local_port, remote_ip, remote_port, \
         toUnixTimestamp64Nano(opened_at) AS opened_ns, outcome, syn_retransmits, pid, comm FROM connection_records \
         WHERE {} AND role = 'passive' AND is_first AND local_port IN {{ports:Array(UInt64)}} \
         AND remote_port IN {{clients:Array(UInt64)}} AND remote_ip IN {{ips:Array(IPv6)}} \
         ORDER BY recorded_at LIMIT {ROWS} SETTINGS {SETTINGS}",
        within("recorded_at")
    );
    let mut params = window(from_ns, until_ns);
    params.push(("ports".into(), numbers_value(&ports)));
    params.push((
        "clients".into(),
        numbers_value(&numbers(|attempt| attempt.local_port.into())),
    ));
    params.push(("ips".into(), texts_value(&local_ips)));
    let passives = lines(store, sql, params).await?;
    Ok(Evidence {
        namespaces,
        listeners,
        peers,
        passives,
    })
}

/// Which attempt it is.
type Name = (String, u32, u64, i64);

/// The revisions that a minute's attempts have.
pub async fn revisions(store: &dyn Store, minute: u32) -> Result<HashMap<Name, u64>, StoreError> {
    #[derive(Deserialize)]
    struct Revision {
        agent_id: String,
        netns: u32,
        cookie: u64,
        opened_ns: i64,
        latest: u64,
    }
    let sql = format!(
        "SELECT agent_id, netns, cookie, toUnixTimestamp64Nano(opened_at) AS opened_ns, max(revision) AS latest \
         FROM {} WHERE {} GROUP BY agent_id, netns, cookie, opened_at",
        CAUSE_RECORDS.name,
        within("recorded_at")
    );
    let begin_ns = NodeMinute::begin_ns(minute);
    let known: Vec<Revision> = lines(store, sql, window(begin_ns, begin_ns + 60 * SECOND_NS)).await?;
    let name = |row: Revision| ((row.agent_id, row.netns, row.cookie, row.opened_ns), row.latest);
    Ok(known.into_iter().map(name).collect())
}

/// The name of an attempt, as in [`revisions`].
pub fn name(attempt: &Attempt) -> Name {
    (
        attempt.agent_id.clone(),
        attempt.netns,
        attempt.cookie,
        attempt.opened_ns,
    )
}

/// Keeps decisions. The same again changes nothing: of one attempt the latest revision is shown.
pub async fn keep(store: &dyn Store, decided: &[(Attempt, Decision)]) -> Result<(), StoreError> {
    if decided.is_empty() {
        return Ok(());
    }
    let block = block(decided).map_err(|error| StoreError::rejected(error.to_string()))?;
    let mut hasher = DefaultHasher::new();
    for (attempt, decision) in decided {
        (name(attempt), decision.revision).hash(&mut hasher);
    }
    let token = format!("causes-{:016x}", hasher.finish());
    store.insert(CAUSE_RECORDS.name, &token, block).await
}

fn block(decided: &[(Attempt, Decision)]) -> Result<super::Block, BlockError> {
    fn each<T>(decided: &[(Attempt, Decision)], value: impl Fn(&Attempt, &Decision) -> T) -> Vec<T> {
        decided
            .iter()
            .map(|(attempt, decision)| value(attempt, decision))
            .collect()
    }
    let texts = |block: &mut BlockBuilder, name: &str, text: fn(&(Attempt, Decision)) -> &str| {
        let mut dictionary: Vec<&str> = Vec::new();
        let mut places = HashMap::new();
        let indices: Vec<u32> = decided
            .iter()
            .map(|row| {
                *places.entry(text(row)).or_insert_with(|| {
                    dictionary.push(text(row));
                    dictionary.len() as u32 - 1
                })
            })
            .collect();
        block.low_cardinality(name, &dictionary, &indices)
    };
    let mut block = BlockBuilder::new(&CAUSE_RECORDS, decided.len())?;
    texts(&mut block, "node", |(attempt, _)| &attempt.node)?;
    texts(&mut block, "service", |(attempt, _)| &attempt.service)?;
    block.datetimes("recorded_at", &each(decided, |attempt, _| attempt.recorded_ns))?;
    block.datetimes("opened_at", &each(decided, |attempt, _| attempt.opened_ns))?;
    block.datetimes("decided_at", &each(decided, |attempt, _| attempt.decided_ns))?;
    block.enums("outcome", &each(decided, |attempt, _| attempt.outcome_number))?;
    texts(&mut block, "local_cause", |(attempt, _)| &attempt.local_cause)?;
    block.enums("cause", &each(decided, |_, decision| decision.cause as i8))?;
    block.bools(
        "is_confirmed",
        &each(decided, |_, decision| decision.is_confirmed),
    )?;
    block.strings(
        "evidence",
        &each(decided, |_, decision| decision.evidence.clone()),
    )?;
    block.u32s("pid", &each(decided, |attempt, _| attempt.pid))?;
    texts(&mut block, "comm", |(attempt, _)| &attempt.comm)?;
    block.u32s("netns", &each(decided, |attempt, _| attempt.netns))?;
    block.ipv6s("local_ip", &each(decided, |attempt, _| attempt.local_ip.octets()))?;
    block.u16s("local_port", &each(decided, |attempt, _| attempt.local_port))?;
    block.ipv6s(
        "remote_ip",
        &each(decided, |attempt, _| attempt.remote_ip.octets()),
    )?;
    block.u16s("remote_port", &each(decided, |attempt, _| attempt.remote_port))?;
    block.u8s(
        "syn_retransmits",
        &each(decided, |attempt, _| attempt.syn_retransmits),
    )?;
    block.u16s("errno", &each(decided, |attempt, _| attempt.errno))?;
    texts(&mut block, "peer_node", |(_, decision)| &decision.peer_node)?;
    block.u32s("peer_netns", &each(decided, |_, decision| decision.peer_netns))?;
    block.u64s(
        "listener_drops",
        &each(decided, |_, decision| decision.listener_drops),
    )?;
    block.u64s(
        "listen_overflows",
        &each(decided, |_, decision| decision.listen_overflows),
    )?;
    block.u64s("filtered", &each(decided, |_, decision| decision.filtered))?;
    block.u64s("resets_sent", &each(decided, |_, decision| decision.resets_sent))?;
    block.u64s("alike", &each(decided, |attempt, _| attempt.alike))?;
    block.u64s("cookie", &each(decided, |attempt, _| attempt.cookie))?;
    texts(&mut block, "agent_id", |(attempt, _)| &attempt.agent_id)?;
    block.u64s("agent_epoch", &each(decided, |attempt, _| attempt.agent_epoch))?;
    block.u64s("revision", &each(decided, |_, decision| decision.revision))?;
    block.finish()
}

/// Rows of a span of time, by this column.
fn within(column: &str) -> String {
    format!("{column} >= {{from:DateTime64(9, 'UTC')}} AND {column} < {{until:DateTime64(9, 'UTC')}}")
}

fn window(from_ns: i64, until_ns: i64) -> Vec<(String, String)> {
    vec![
        ("from".into(), time_value(from_ns)),
        ("until".into(), time_value(until_ns)),
    ]
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}
