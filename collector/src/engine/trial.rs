//! The `tests:` of a file: a made-up past in a store of its own, judged by the engine that judges the real one, and what
//! it says held against what was expected.
//!
//! A test says who connects to whom and how that goes; the nodes of its left sides are the assertion's `from`, those of
//! the right sides its `to` or `on`. Ten connections a second are made of each line. Agents report once a second, and look at
//! the listener of each server every ten seconds, unless they are silent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::assertion::condition::duration_text;
use crate::assertion::group::Members;
use crate::assertion::parse::trial::{Event, Link, Trial};
use crate::assertion::state::Verdict;
use crate::assertion::{Assertion, Set, Subject, Target, TargetPlace};
use crate::clock::ns;
use crate::store::native::{BlockBuilder, BlockError, Kind, Table};
use crate::store::schema::{AGENT_SAMPLES, CONNECTION_RECORDS, LISTENER_SAMPLES, NODE_SESSIONS};
use crate::store::{Store, StoreError};

const SECOND_NS: i64 = 1_000_000_000;

/// Between two connections of a line.
const BETWEEN_NS: i64 = SECOND_NS / 10;

/// How far an agent's mark of what is stored is behind its report.
const MARK_NS: i64 = SECOND_NS / 2;

/// Between two looks at listeners, as agents do by default.
const LOOK_S: u64 = 10;

/// Connections that a listener's queue holds.
const QUEUE: u64 = 128;

/// The port of the servers where the assertion names none.
const PORT: u16 = 80;

/// Rows of one block.
const BLOCK_ROWS: usize = 100_000;

/// What came of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub assertion: String,
    /// Every change of a verdict: when the window ended, of which key, and why.
    pub timeline: Vec<(Duration, String, Verdict, String)>,
    /// What was expected and is not so: when, what, and what was said instead.
    pub differences: Vec<(Duration, Verdict, String)>,
}

/// Why a test could not be run.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    #[error("there is no assertion `{0}`: nothing would be tested")]
    NoAssertion(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Block(#[from] BlockError),
}

/// Runs a test in a store that has its tables and no rows. `begin_ns`: when its past begins, within the time that rows
/// are kept.
pub async fn run(
    store: Arc<dyn Store>,
    set: &Set,
    trial: &Trial,
    begin_ns: i64,
) -> Result<Outcome, TrialError> {
    let begin_ns = begin_ns.div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    let assertion = set
        .assertions
        .iter()
        .find(|assertion| assertion.name == trial.assertion)
        .ok_or_else(|| TrialError::NoAssertion(trial.assertion.clone()))?;
    let assertion = placed(assertion, trial);
    lay_past(&*store, &assertion, trial, begin_ns).await?;

    let alone = Set {
        groups: set.groups.clone(),
        // Who is there in a test is whom it names.
        nodes: BTreeMap::new(),
        expect_nodes_for: set.expect_nodes_for,
        assertions: vec![assertion.clone()],
        tests: Vec::new(),
        receivers: Vec::new(),
    };
    let end_ns = begin_ns + ns(trial.length());
    let mut engine = Engine::new(store, alone, begin_ns + 1, false);
    engine.stop_at(end_ns);
    engine.without_rollup();
    engine.without_worst();
    let mut timeline = Vec::new();
    let mut now_ns = begin_ns;
    let last_ns = end_ns + ns(assertion.deadline) + 5 * SECOND_NS;
    while now_ns <= last_ns && !engine.is_done(now_ns) {
        for record in engine.step(now_ns).await?.records {
            if record.is_transition && !record.is_over() {
                let at = Duration::from_nanos((record.window_to_ns - begin_ns).max(0).unsigned_abs());
                let why = if record.cause.is_empty() {
                    record.condition
                } else {
                    record.cause
                };
                timeline.push((at, record.key, record.machine.verdict, why));
            }
        }
        now_ns += ns(engine.shortest() / 2).clamp(SECOND_NS / 2, 5 * SECOND_NS / 2);
    }
    timeline.sort_by_key(|(at, ..)| *at);
    let differences = trial.expect.iter().filter_map(|(at, expected)| {
        let said = verdicts_at(&timeline, *at);
        let is_so = !said.is_empty() && said.values().all(|verdict| verdict == expected);
        (!is_so).then(|| (*at, *expected, said_text(&said)))
    });
    let differences = differences.collect();
    Ok(Outcome {
        assertion: assertion.name,
        timeline,
        differences,
    })
}

/// What was said of each key at a moment.
fn verdicts_at(timeline: &[(Duration, String, Verdict, String)], at: Duration) -> BTreeMap<String, Verdict> {
    let until = timeline.iter().filter(|(changed, ..)| *changed <= at);
    let mut said: BTreeMap<_, _> = until
        .map(|(_, key, verdict, _)| (key.clone(), *verdict))
        .collect();
    if said.len() > 1 {
        // What stood there while there were no keys says nothing of those that came.
        said.remove("");
    }
    said
}

fn said_text(said: &BTreeMap<String, Verdict>) -> String {
    let texts: Vec<_> = said
        .iter()
        .map(|(key, verdict)| match key.as_str() {
            "" => verdict.name().to_owned(),
            key => format!("{} [{key}]", verdict.name()),
        })
        .collect();
    if texts.is_empty() {
        "nothing yet".to_owned()
    } else {
        texts.join(", ")
    }
}

/// The assertion with the nodes of the test in the places of its groups.
fn placed(assertion: &Assertion, trial: &Trial) -> Assertion {
    let nodes = |of: fn(&Link) -> &String| {
        let names: BTreeSet<_> = trial.links.iter().map(|link| of(link).clone()).collect();
        Members::Label {
            key: "node".to_owned(),
            values: names.into_iter().collect(),
        }
    };
    let (clients, servers) = (nodes(|link| &link.from), nodes(|link| &link.to));
    let subject = match &assertion.subject {
        Subject::Client { to, .. } => Subject::Client {
            from: clients,
            to: Target {
                place: to.place.as_ref().map(|_| TargetPlace::Nodes(servers)),
                port: to.port,
            },
        },
        Subject::Server { port, from, .. } => Subject::Server {
            on: servers,
            port: *port,
            from: from.as_ref().map(|_| clients),
        },
    };
    Assertion {
        subject,
        ..assertion.clone()
    }
}

fn port(assertion: &Assertion) -> Option<u16> {
    match &assertion.subject {
        Subject::Client { to, .. } => to.port,
        Subject::Server { port, .. } => *port,
    }
}

/// Writes the past of a test of an assertion, all of it as if it had come in time.
pub async fn lay_past(
    store: &dyn Store,
    assertion: &Assertion,
    trial: &Trial,
    begin_ns: i64,
) -> Result<(), TrialError> {
    let port = port(assertion).unwrap_or(PORT);
    lay_down(store, &trial.links, port, begin_ns, trial.length()).await
}

async fn lay_down(
    store: &dyn Store,
    links: &[Link],
    port: u16,
    begin_ns: i64,
    length: Duration,
) -> Result<(), TrialError> {
    let names: BTreeSet<&str> = links
        .iter()
        .flat_map(|link| [link.from.as_str(), link.to.as_str()])
        .collect();
    let nodes: BTreeMap<&str, Ipv4Addr> = names
        .into_iter()
        .zip(1..)
        .map(|(name, number)| (name, Ipv4Addr::from_bits(0x0a00_0000 + number)))
        .collect();
    let mut ends = Vec::new();
    for link in links {
        add_ends(&mut ends, link, &nodes, port, begin_ns);
    }
    let mut block = 0;
    for ends in ends.chunks(BLOCK_ROWS) {
        block += 1;
        let token = format!("trial-{begin_ns}-{block}");
        store
            .insert(CONNECTION_RECORDS.name, &token, connection_records(ends)?)
            .await?;
    }
    let reports = reports(links, &nodes, begin_ns, length);
    let token = format!("trial-{begin_ns}-reports");
    store
        .insert(AGENT_SAMPLES.name, &token, agent_samples(&reports, begin_ns)?)
        .await?;
    let looks = looks(links, begin_ns, length);
    let token = format!("trial-{begin_ns}-listeners");
    store
        .insert(
            LISTENER_SAMPLES.name,
            &token,
            listener_samples(&looks, &nodes, port)?,
        )
        .await?;
    let token = format!("trial-{begin_ns}-nodes");
    store
        .insert(NODE_SESSIONS.name, &token, sessions(&nodes, begin_ns)?)
        .await?;
    Ok(())
}

/// One end of a connection.
struct End {
    node: String,
    is_client: bool,
    outcome: i8,
    recorded_ns: i64,
    local: (Ipv4Addr, u16),
    remote: (Ipv4Addr, u16),
    connect_us: u64,
    duration_us: u64,
    retransmits: u64,
}

/// Segments that an established connection sends, handshake and end included.
const SEGMENTS: u64 = 4;

/// What an attempt sends again before it gives up after three seconds: Linux doubles a wait that begins with one second.
const RESENT_SYNS: u64 = 2;

fn add_ends(ends: &mut Vec<End>, link: &Link, nodes: &BTreeMap<&str, Ipv4Addr>, port: u16, begin_ns: i64) {
    /// Of the enum `outcome`.
    const ESTABLISHED: i8 = 1;
    let (client, server) = (nodes[link.from.as_str()], nodes[link.to.as_str()]);
    let mut span_ns = begin_ns;
    let mut ephemeral = 32_768_u16;
    for (event, time) in &link.spans {
        let end_ns = span_ns + ns(*time);
        let (outcome, connect_us) = match event {
            Event::Established(time) => (
                Some(ESTABLISHED),
                u64::try_from(time.as_micros()).unwrap_or(u64::MAX),
            ),
            Event::Refused => (Some(2), 100),
            Event::TimedOut | Event::QueueFull => (Some(3), 3_000_000),
            Event::Reset => (Some(4), 100),
            Event::Unreachable => (Some(5), 100),
            Event::Nothing | Event::Silent | Event::Lost => (None, 0),
        };
        let is_given_up = matches!(event, Event::TimedOut | Event::QueueFull);
        let retransmits = if is_given_up { RESENT_SYNS } else { 0 };
        let mut at_ns = span_ns + BETWEEN_NS;
        while at_ns <= end_ns && outcome.is_some() {
            ephemeral = ephemeral.checked_add(1).unwrap_or(32_768);
            let outcome = outcome.unwrap_or_default();
            // An established one lasts a millisecond.
            let lasts_us = if outcome == ESTABLISHED { 1_000 } else { 0 };
            ends.push(End {
                node: link.from.clone(),
                is_client: true,
                outcome,
                recorded_ns: at_ns + lasts_us * 1_000,
                local: (client, ephemeral),
                remote: (server, port),
                connect_us,
                duration_us: connect_us + lasts_us.unsigned_abs(),
                retransmits,
            });
            if outcome == ESTABLISHED {
                ends.push(End {
                    node: link.to.clone(),
                    is_client: false,
                    outcome,
                    recorded_ns: at_ns + lasts_us * 1_000,
                    local: (server, port),
                    remote: (client, ephemeral),
                    connect_us: 50,
                    duration_us: 50 + lasts_us.unsigned_abs(),
                    retransmits: 0,
                });
            }
            at_ns += BETWEEN_NS;
        }
        span_ns = end_ns;
    }
}

impl End {
    /// That it sent, those that were sent again included.
    fn segments(&self) -> u64 {
        match self.retransmits {
            0 => SEGMENTS,
            again => 1 + again,
        }
    }
}

/// What an agent reports.
struct Report {
    node: String,
    at_ns: i64,
    missing: u64,
}

fn reports(links: &[Link], nodes: &BTreeMap<&str, Ipv4Addr>, begin_ns: i64, length: Duration) -> Vec<Report> {
    let mut reports = Vec::new();
    for node in nodes.keys() {
        let own: Vec<_> = links.iter().filter(|link| link.from == *node).collect();
        let mut missing = 0;
        // Some seconds more, so that the last windows are not waited for in vain.
        for second in 0..=length.as_secs() as i64 + 4 {
            let end = length.saturating_sub(Duration::from_millis(1));
            let after = Duration::from_secs(second.unsigned_abs()).min(end);
            let is = |event: &Event| own.iter().any(|link| link.at(after) == Some(event));
            if is(&Event::Lost) {
                missing += 1;
            }
            if !is(&Event::Silent) {
                reports.push(Report {
                    node: (*node).to_owned(),
                    at_ns: begin_ns + second * SECOND_NS,
                    missing,
                });
            }
        }
    }
    reports
}

/// What an agent saw of a server's listener.
struct Look<'a> {
    node: &'a str,
    at_ns: i64,
    waiting: u64,
    /// Since the listener began.
    dropped: u64,
}

fn looks(links: &[Link], begin_ns: i64, length: Duration) -> Vec<Look<'_>> {
    let servers: BTreeSet<&str> = links.iter().map(|link| link.to.as_str()).collect();
    let mut looks = Vec::new();
    for node in servers {
        let is_of = |link: &&Link| link.to == node;
        let mut dropped = 0;
        for second in 0..=length.as_secs() + 4 {
            let after = Duration::from_secs(second);
            let full = links.iter().filter(is_of);
            let full = full
                .filter(|link| link.at(after) == Some(&Event::QueueFull))
                .count() as u64;
            let mut own = links.iter().filter(|link| link.from == node);
            let is_silent = own.any(|link| link.at(after) == Some(&Event::Silent));
            if second % LOOK_S == 0 && !is_silent {
                looks.push(Look {
                    node,
                    at_ns: begin_ns + second as i64 * SECOND_NS,
                    waiting: if full > 0 { QUEUE } else { 0 },
                    dropped,
                });
            }
            dropped += full * (SECOND_NS / BETWEEN_NS).unsigned_abs();
        }
    }
    looks
}

fn listener_samples(
    looks: &[Look<'_>],
    nodes: &BTreeMap<&str, Ipv4Addr>,
    port: u16,
) -> Result<crate::store::Block, BlockError> {
    let names = || Values::Texts(looks.iter().map(|look| look.node.to_owned()).collect());
    let each = |number: fn(&Look<'_>) -> u64| Values::Numbers(looks.iter().map(number).collect());
    let all = |number: u64| Values::Numbers(vec![number; looks.len()]);
    let addresses = looks
        .iter()
        .map(|look| nodes[look.node].to_ipv6_mapped().octets());
    let values = BTreeMap::from([
        ("node", names()),
        ("agent_id", names()),
        ("agent_epoch", all(1)),
        (
            "observed_at",
            Values::Times(looks.iter().map(|look| look.at_ns).collect()),
        ),
        ("local_ip", Values::Addresses(addresses.collect())),
        ("local_port", all(port.into())),
        ("netns", all(1)),
        ("cookie", all(1)),
        ("backlog", each(|look| look.waiting)),
        ("backlog_limit", all(QUEUE)),
        ("drops", each(|look| look.dropped)),
        ("sequence", all(1)),
    ]);
    filled(&LISTENER_SAMPLES, looks.len(), &values)
}

fn connection_records(ends: &[End]) -> Result<crate::store::Block, BlockError> {
    let address = |ip: Ipv4Addr| ip.to_ipv6_mapped().octets();
    let each = |number: fn(&End) -> u64| Values::Numbers(ends.iter().map(number).collect());
    let values = BTreeMap::from([
        (
            "node",
            Values::Texts(ends.iter().map(|end| end.node.clone()).collect()),
        ),
        (
            "role",
            Values::Enums(ends.iter().map(|end| if end.is_client { 1 } else { 2 }).collect()),
        ),
        (
            "outcome",
            Values::Enums(ends.iter().map(|end| end.outcome).collect()),
        ),
        (
            "recorded_at",
            Values::Times(ends.iter().map(|end| end.recorded_ns).collect()),
        ),
        (
            "local_ip",
            Values::Addresses(ends.iter().map(|end| address(end.local.0)).collect()),
        ),
        (
            "remote_ip",
            Values::Addresses(ends.iter().map(|end| address(end.remote.0)).collect()),
        ),
        ("local_port", each(|end| end.local.1.into())),
        ("remote_port", each(|end| end.remote.1.into())),
        ("connect_us", each(|end| end.connect_us)),
        ("duration_us", each(|end| end.duration_us)),
        ("segments_sent", each(End::segments)),
        ("retransmits", each(|end| end.retransmits)),
        ("syn_retransmits", each(|end| end.retransmits)),
        ("srtt_us", each(|end| end.connect_us.min(1_000_000))),
        ("is_first", Values::Bools(vec![true; ends.len()])),
        ("is_final", Values::Bools(vec![true; ends.len()])),
        ("agent_epoch", each(|_| 1)),
        ("sequence", each(|_| 1)),
    ]);
    filled(&CONNECTION_RECORDS, ends.len(), &values)
}

fn agent_samples(reports: &[Report], begin_ns: i64) -> Result<crate::store::Block, BlockError> {
    let times =
        |behind_ns: i64| Values::Times(reports.iter().map(|report| report.at_ns - behind_ns).collect());
    // Everything is on.
    let since = || Values::Times(vec![begin_ns; reports.len()]);
    let values = BTreeMap::from([
        (
            "node",
            Values::Texts(reports.iter().map(|report| report.node.clone()).collect()),
        ),
        (
            "agent_id",
            Values::Texts(reports.iter().map(|report| report.node.clone()).collect()),
        ),
        ("agent_epoch", Values::Numbers(vec![1; reports.len()])),
        ("observed_at", times(0)),
        ("received_at", times(0)),
        ("watermark_at", times(MARK_NS)),
        ("attempts_watermark_at", times(MARK_NS)),
        ("syscalls_since", since()),
        ("listeners_since", since()),
        ("open_connections_since", since()),
        (
            "missing",
            Values::Numbers(reports.iter().map(|report| report.missing).collect()),
        ),
    ]);
    filled(&AGENT_SAMPLES, reports.len(), &values)
}

fn sessions(nodes: &BTreeMap<&str, Ipv4Addr>, begin_ns: i64) -> Result<crate::store::Block, BlockError> {
    let names: Vec<String> = nodes.keys().map(|name| (*name).to_owned()).collect();
    let values = BTreeMap::from([
        ("node", Values::Texts(names.clone())),
        ("agent_id", Values::Texts(names.clone())),
        ("agent_epoch", Values::Numbers(vec![1; names.len()])),
        ("connected_at", Values::Times(vec![begin_ns; names.len()])),
        (
            "remote",
            Values::Texts(nodes.values().map(|ip| format!("{ip}:1024")).collect()),
        ),
    ]);
    filled(&NODE_SESSIONS, names.len(), &values)
}

enum Values {
    Texts(Vec<String>),
    Times(Vec<i64>),
    Numbers(Vec<u64>),
    Bools(Vec<bool>),
    Enums(Vec<i8>),
    Addresses(Vec<[u8; 16]>),
}

/// A block of these columns; all others are zero or empty.
fn filled(
    table: &'static Table,
    rows: usize,
    values: &BTreeMap<&str, Values>,
) -> Result<crate::store::Block, BlockError> {
    let mut block = BlockBuilder::new(table, rows)?;
    for column in table.columns {
        let name = column.name;
        let numbers = || match values.get(name) {
            Some(Values::Numbers(numbers)) => numbers.clone(),
            _ => vec![0; rows],
        };
        match column.kind {
            Kind::String | Kind::LowCardinality => {
                let texts = match values.get(name) {
                    Some(Values::Texts(texts)) => texts.clone(),
                    _ => vec![String::new(); rows],
                };
                if column.kind == Kind::String {
                    block.strings(name, &texts)?;
                } else {
                    let dictionary: BTreeSet<&String> = texts.iter().collect();
                    let dictionary: Vec<&String> = dictionary.into_iter().collect();
                    let indexes: Vec<u32> = texts
                        .iter()
                        .map(|text| dictionary.partition_point(|known| *known < text) as u32)
                        .collect();
                    block.low_cardinality(name, &dictionary, &indexes)?;
                }
            }
            Kind::DateTime64 => match values.get(name) {
                Some(Values::Times(times)) => block.datetimes(name, times)?,
                _ => block.datetimes(name, &vec![0; rows])?,
            },
            Kind::Bool => match values.get(name) {
                Some(Values::Bools(bools)) => block.bools(name, bools)?,
                _ => block.bools(name, &vec![false; rows])?,
            },
            Kind::Enum8(names) => match values.get(name) {
                Some(Values::Enums(enums)) => block.enums(name, enums)?,
                _ => block.enums(name, &vec![names.first().map_or(0, |(_, value)| *value); rows])?,
            },
            Kind::IPv6 => match values.get(name) {
                Some(Values::Addresses(addresses)) => block.ipv6s(name, addresses)?,
                _ => block.ipv6s(name, &vec![[0; 16]; rows])?,
            },
            Kind::UInt8 => block.u8s(
                name,
                &numbers().iter().map(|number| *number as u8).collect::<Vec<_>>(),
            )?,
            Kind::UInt16 => block.u16s(
                name,
                &numbers().iter().map(|number| *number as u16).collect::<Vec<_>>(),
            )?,
            Kind::UInt32 => block.u32s(
                name,
                &numbers().iter().map(|number| *number as u32).collect::<Vec<_>>(),
            )?,
            Kind::UInt64 => block.u64s(name, &numbers())?,
            Kind::NullableUInt32 => block.nullable_u32s(name, &vec![None; rows])?,
            Kind::NullableUInt64 => block.nullable_u64s(name, &vec![None; rows])?,
            Kind::Int64 => block.i64s(name, &vec![0; rows])?,
            Kind::Float64 => block.f64s(name, &vec![0.0; rows])?,
            Kind::ArrayUInt16 => block.u16_arrays(name, &vec![0; rows], &[])?,
            Kind::ArrayUInt32 => block.u32_arrays(name, &vec![0; rows], &[])?,
            Kind::ArrayUInt64 => block.u64_arrays(name, &vec![0; rows], &[])?,
            Kind::ArrayString => block.string_arrays::<String>(name, &vec![Vec::new(); rows])?,
            Kind::ArrayIPv6 => block.ipv6_arrays(name, &vec![0; rows], &[])?,
            Kind::StringMap => block.string_maps::<String>(name, &vec![Vec::new(); rows])?,
        }
    }
    block.finish()
}

impl Outcome {
    /// The timeline for people, with what was expected beside it.
    pub fn text(&self) -> String {
        let mut lines: Vec<(Duration, String)> = self
            .timeline
            .iter()
            .map(|(at, key, verdict, why)| {
                let key = if key.is_empty() {
                    String::new()
                } else {
                    format!(" [{key}]")
                };
                (*at, format!("{}{key}: {why}", verdict.name()))
            })
            .collect();
        lines.extend(
            self.differences
                .iter()
                .map(|(at, expected, said)| (*at, format!("! expected {}, it is {said}", expected.name()))),
        );
        lines.sort_by_key(|(at, _)| *at);
        lines
            .into_iter()
            .map(|(at, line)| format!("  {:>7}  {line}\n", duration_text(at)))
            .collect()
    }
}
