//! One window of one assertion: from the rows that the store added up, and from who was watching, to what each key came
//! to and with which values. Pure.
//!
//! Quantiles are judged by counting, so the verdict is exact: `p99 < 20ms` holds if at most one row in a hundred took
//! 20 ms or more. The value that is shown comes from a histogram and is within 1.6 %.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::cause::Cause;
use super::condition::Condition;
use super::coverage::{Coverage, Need, Standing, Window};
use super::group::{Labelled, Members};
use super::plan::{Place, Planned};
use super::signal::{Measure, OfAgent, QUANTILES, Rows, Sum};
use super::state::Outcome;
use super::{Assertion, Dimension, NoData, Subject, Target, TargetPlace};
use crate::filter::Operator;

/// Keys of one assertion.
pub const MOST_KEYS: usize = 1_000;

/// Stands for the keys beyond.
const BEYOND: &str = "...";

/// How many kinds of sums there are.
pub const SUMS: usize = 13;

/// What the rows with the same labels add up to.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledRows {
    pub node: String,
    /// Labels that the class does not tell apart are empty.
    pub remote: Option<Ipv6Addr>,
    pub port: u16,
    pub service: String,
    pub comm: String,
    /// Which of the class' filters they pass.
    pub passes: u64,
    pub sums: [u64; SUMS],
    /// Microseconds.
    pub largest: u64,
    /// Of listeners: the fullest queue against its limit.
    pub fullest: f64,
    /// Log buckets of times (`store/buckets.rs`), how many of the class' bounds they reach, and how many rows it are.
    pub histogram: Vec<(u16, u8, u64)>,
}

/// The nodes that are expected to be there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Roster {
    pub nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub labelled: Labelled,
    pub addresses: Vec<Ipv6Addr>,
}

/// The values of the dimensions of `by`, in its order.
pub type Key = Vec<String>;

/// What one window of one key came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    pub key: Key,
    pub outcome: Outcome,
    /// Why it is unknown.
    pub cause: Option<Cause>,
    /// One for each condition, if there was something to read.
    pub readings: Vec<Reading>,
    /// Which of them decided.
    pub decisive: usize,
}

/// What a condition was held against.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// In the signal's unit; none where nothing was there.
    pub value: Option<f64>,
    pub samples: u64,
    /// `None`: too few samples.
    pub passed: Option<bool>,
}

/// A window that is to be judged, and what is known of it.
pub struct Moment<'a> {
    pub window: Window,
    /// By the collector's clock.
    pub now_ns: i64,
    pub groups: &'a BTreeMap<String, Members>,
    pub roster: &'a Roster,
    pub addresses: &'a Addresses,
    pub coverage: &'a Coverage,
}

/// Whose address it is.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    nodes: HashMap<Ipv6Addr, Option<String>>,
}

impl Addresses {
    /// An address that two nodes have is nobody's.
    pub fn of(roster: &Roster) -> Self {
        let mut nodes: HashMap<Ipv6Addr, Option<String>> = HashMap::new();
        for node in &roster.nodes {
            for address in &node.addresses {
                let name = &node.labelled.node;
                nodes
                    .entry(*address)
                    .and_modify(|owner| {
                        if owner.as_ref() != Some(name) {
                            *owner = None;
                        }
                    })
                    .or_insert_with(|| Some(name.clone()));
            }
        }
        Self { nodes }
    }

    /// The node that an end of `node` sees there; its own for loopback.
    fn node_at<'a>(&'a self, address: Ipv6Addr, node: &'a str) -> Option<&'a str> {
        if IpAddr::V6(address).to_canonical().is_loopback() {
            return Some(node);
        }
        self.nodes.get(&address)?.as_deref()
    }
}

/// What is added up for one condition of one key.
#[derive(Clone, Debug, Default)]
struct Cell {
    sums: [u64; SUMS],
    largest: u64,
    fullest: f64,
    histogram: Vec<(u16, u8, u64)>,
}

impl Cell {
    fn add(&mut self, rows: &LabelledRows) {
        for (sum, more) in self.sums.iter_mut().zip(rows.sums) {
            *sum = sum.saturating_add(more);
        }
        self.largest = self.largest.max(rows.largest);
        self.fullest = self.fullest.max(rows.fullest);
        self.histogram.extend_from_slice(&rows.histogram);
    }

    fn sum(&self, sum: Sum) -> u64 {
        self.sums[sum as usize]
    }

    fn times(&self) -> u64 {
        self.histogram.iter().map(|(.., count)| count).sum()
    }

    /// How many times reach the bound.
    fn reaching(&self, bound: usize) -> u64 {
        let reaching = self
            .histogram
            .iter()
            .filter(|(_, reached, _)| usize::from(*reached) > bound);
        reaching.map(|(.., count)| count).sum()
    }

    /// The bucket that the quantile falls into, of 10,000.
    fn quantile(&self, of_10_000: u32) -> Option<u16> {
        let mut sorted: Vec<_> = self
            .histogram
            .iter()
            .map(|(bucket, _, count)| (*bucket, *count))
            .collect();
        sorted.sort_unstable();
        // The smallest time that so many are at or below.
        let rank = (u128::from(self.times()) * u128::from(of_10_000))
            .div_ceil(10_000)
            .max(1);
        let mut seen = 0;
        sorted
            .into_iter()
            .find(|(_, count)| {
                seen += u128::from(*count);
                seen >= rank
            })
            .map(|(bucket, _)| bucket)
    }
}

/// Who sees the rows of an assertion, and how they stand to the window.
pub struct Observers<'a> {
    nodes: Vec<(&'a str, Standing)>,
}

impl<'a> Observers<'a> {
    pub fn of(assertion: &Assertion, moment: &Moment<'a>) -> Self {
        let needs: Vec<_> = needs(&assertion.expect).collect();
        let members = assertion.observers();
        let nodes = moment
            .roster
            .nodes
            .iter()
            .filter(|node| members.contains(&node.labelled, moment.groups));
        let standing = |node: &'a Node| {
            let name = node.labelled.node.as_str();
            let each = needs.iter().map(|need| {
                moment
                    .coverage
                    .standing(name, moment.window, *need, moment.now_ns, assertion.deadline)
            });
            (name, each.fold(Standing::Complete, worse))
        };
        Self {
            nodes: nodes.map(standing).collect(),
        }
    }

    /// Whether there is anyone to be waited for, and anyone who is not.
    pub fn waiting(&self) -> (bool, bool) {
        let waits = |(_, standing): &(&str, Standing)| *standing == Standing::Waiting;
        (
            self.nodes.iter().any(waits),
            self.nodes.is_empty() || !self.nodes.iter().all(waits),
        )
    }
}

fn needs(expect: &[Condition]) -> impl Iterator<Item = Need> {
    let needs: BTreeSet<u8> = expect
        .iter()
        .filter_map(|condition| match condition.signal.signal.rows {
            Rows::Attempts => Some(0),
            Rows::Connections => Some(1),
            Rows::Listeners | Rows::Syscalls => Some(2),
            Rows::Agents => None,
        })
        .collect();
    needs
        .into_iter()
        .map(|need| [Need::Attempts, Need::Records, Need::Samples][usize::from(need)])
}

fn worse(one: Standing, other: Standing) -> Standing {
    match (one, other) {
        // To wait when it is known already that it cannot be told would tell nothing more.
        (Standing::Incomplete(one), Standing::Incomplete(other)) => Standing::Incomplete(one.min(other)),
        (incomplete @ Standing::Incomplete(_), _) | (_, incomplete @ Standing::Incomplete(_)) => incomplete,
        (Standing::Waiting, _) | (_, Standing::Waiting) => Standing::Waiting,
        _ => Standing::Complete,
    }
}

/// What was found of each class of the schedule.
pub type Answers = [Result<Vec<LabelledRows>, Cause>];

/// Judges a window for every key that need not be waited for any more. `known`: keys that there were before, which are
/// judged also when they have no rows.
pub fn judge(
    assertion: &Assertion,
    planned: &Planned,
    moment: &Moment<'_>,
    observers: &Observers<'_>,
    answers: &Answers,
    known: &BTreeSet<Key>,
) -> Vec<Judgement> {
    if observers.nodes.is_empty() {
        let cause = Cause::NoNodes {
            members: members_text(assertion.observers()),
        };
        let keys = if assertion.quorum.is_some() || known.is_empty() {
            BTreeSet::from([Key::new()])
        } else {
            known.clone()
        };
        return keys.into_iter().map(|key| unknown(key, cause.clone())).collect();
    }
    let cells = match cells(assertion, planned, moment, observers, answers) {
        Ok(cells) => cells,
        Err(cause) => {
            let keys = expected(assertion, moment, observers, known, &HashMap::new());
            let judgements = keys.into_iter().map(|key| unknown(key, cause.clone()));
            return judgements.collect();
        }
    };
    let mut keys = expected(assertion, moment, observers, known, &cells);
    let all = keys.len();
    let mut judgements = Vec::with_capacity(all.min(MOST_KEYS));
    if all > MOST_KEYS {
        keys = keys.into_iter().take(MOST_KEYS).collect();
        let cause = Cause::TooManyKeys {
            keys: all,
            most: MOST_KEYS,
        };
        judgements.push(unknown(vec![BEYOND.to_owned()], cause));
    }
    let everybody = observers
        .nodes
        .iter()
        .map(|(_, standing)| standing.clone())
        .fold(Standing::Complete, worse);
    let own = assertion
        .by
        .iter()
        .position(|dimension| *dimension == assertion.own_node());
    let mut is_waiting = false;
    for key in keys {
        let standing = match own.map(|at| &key[at]) {
            None => everybody.clone(),
            Some(node) => match observers.nodes.iter().find(|(name, _)| name == node) {
                Some((_, standing)) => standing.clone(),
                None => Standing::Incomplete(Cause::Gone { node: node.clone() }),
            },
        };
        match standing {
            Standing::Waiting => is_waiting = true,
            Standing::Incomplete(cause) => judgements.push(unknown(key, cause)),
            Standing::Complete => {
                let found = cells.get(&key).map_or(&[][..], Vec::as_slice);
                judgements.push(judge_key(assertion, planned, moment, observers, key, found));
            }
        }
    }
    match assertion.quorum {
        None => judgements,
        Some(_) if is_waiting => Vec::new(),
        Some(quorum) => vec![judge_quorum(quorum.share, &judgements)],
    }
}

fn unknown(key: Key, cause: Cause) -> Judgement {
    Judgement {
        key,
        outcome: Outcome::Unknown,
        cause: Some(cause),
        readings: Vec::new(),
        decisive: 0,
    }
}

/// The keys of a window: those that have to be there, those that have rows, and those that had some before.
fn expected(
    assertion: &Assertion,
    moment: &Moment<'_>,
    observers: &Observers<'_>,
    known: &BTreeSet<Key>,
    cells: &HashMap<Key, Vec<Cell>>,
) -> BTreeSet<Key> {
    let mut keys: BTreeSet<Key> = cells.keys().cloned().collect();
    if assertion.quorum.is_none() {
        keys.extend(
            known
                .iter()
                .filter(|key| {
                    key.len() == assertion.by.len() && key.first().is_none_or(|first| first != BEYOND)
                })
                .cloned(),
        );
    }
    match assertion.by.as_slice() {
        [] => {
            keys.insert(Key::new());
        }
        [only] if *only == assertion.own_node() => {
            keys.extend(observers.nodes.iter().map(|(node, _)| vec![(*node).to_owned()]));
        }
        [Dimension::ToNode] => {
            if let Subject::Client {
                to:
                    Target {
                        place: Some(TargetPlace::Nodes(members)),
                        ..
                    },
                ..
            } = &assertion.subject
            {
                let nodes = moment.roster.nodes.iter();
                let targets = nodes.filter(|node| members.contains(&node.labelled, moment.groups));
                keys.extend(targets.map(|node| vec![node.labelled.node.clone()]));
            }
        }
        _ => {}
    }
    keys
}

/// Adds up the rows of each key, for each condition.
fn cells(
    assertion: &Assertion,
    planned: &Planned,
    moment: &Moment<'_>,
    observers: &Observers<'_>,
    answers: &Answers,
) -> Result<HashMap<Key, Vec<Cell>>, Cause> {
    let remote = Remote::of(assertion, moment);
    let observing: HashSet<&str> = observers.nodes.iter().map(|(node, _)| *node).collect();
    let mut cells: HashMap<Key, Vec<Cell>> = HashMap::new();
    for (condition, place) in planned.conditions.iter().enumerate() {
        let Place::Class { class, filter, .. } = *place else {
            continue;
        };
        let answer = answers[class].as_ref().map_err(Clone::clone)?;
        for rows in answer {
            let passes = filter.is_none_or(|filter| rows.passes >> filter & 1 == 1);
            if !passes || !observing.contains(rows.node.as_str()) {
                continue;
            }
            let Some(key) = remote.key(assertion, moment, rows) else {
                continue;
            };
            let cell = cells
                .entry(key)
                .or_insert_with(|| vec![Cell::default(); planned.conditions.len()]);
            cell[condition].add(rows);
        }
    }
    Ok(cells)
}

/// Which ends on the other side count.
struct Remote<'a> {
    place: Option<RemotePlace<'a>>,
    port: Option<u16>,
}

enum RemotePlace<'a> {
    Nodes(HashSet<&'a str>),
    Range(Ipv6Addr, Ipv6Addr),
}

impl<'a> Remote<'a> {
    fn of(assertion: &Assertion, moment: &Moment<'a>) -> Self {
        let nodes = |members: &Members| {
            let nodes = moment.roster.nodes.iter();
            let members = nodes.filter(|node| members.contains(&node.labelled, moment.groups));
            RemotePlace::Nodes(members.map(|node| node.labelled.node.as_str()).collect())
        };
        let v6 = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        match &assertion.subject {
            Subject::Client { to, .. } => Self {
                place: to.place.as_ref().map(|place| match place {
                    TargetPlace::Nodes(members) => nodes(members),
                    TargetPlace::Address(address) => RemotePlace::Range(v6(*address), v6(*address)),
                    TargetPlace::Network(network) => {
                        let (first, last) = network.range();
                        RemotePlace::Range(v6(first), v6(last))
                    }
                }),
                port: to.port,
            },
            Subject::Server { port, from, .. } => Self {
                place: from.as_ref().map(nodes),
                port: *port,
            },
        }
    }

    /// The key that rows belong to; none if they do not count.
    fn key(&self, assertion: &Assertion, moment: &Moment<'_>, rows: &LabelledRows) -> Option<Key> {
        if self.port.is_some_and(|port| port != rows.port) {
            return None;
        }
        let other = || moment.addresses.node_at(rows.remote?, &rows.node);
        match &self.place {
            None => {}
            Some(RemotePlace::Nodes(nodes)) => {
                other().filter(|node| nodes.contains(node))?;
            }
            Some(RemotePlace::Range(first, last)) => {
                rows.remote.filter(|remote| (first..=last).contains(&remote))?;
            }
        }
        let is_client = matches!(assertion.subject, Subject::Client { .. });
        let dimension = |dimension: &Dimension| match dimension {
            Dimension::FromNode if is_client => rows.node.clone(),
            Dimension::OnNode => rows.node.clone(),
            Dimension::FromNode | Dimension::ToNode => match other() {
                Some(node) => node.to_owned(),
                // An address that is no node's stands for itself.
                None => rows.remote.map_or_else(String::new, |remote| {
                    IpAddr::V6(remote).to_canonical().to_string()
                }),
            },
            Dimension::Service => rows.service.clone(),
            Dimension::Comm => rows.comm.clone(),
            Dimension::Port => rows.port.to_string(),
        };
        Some(assertion.by.iter().map(dimension).collect())
    }
}

fn judge_key(
    assertion: &Assertion,
    planned: &Planned,
    moment: &Moment<'_>,
    observers: &Observers<'_>,
    key: Key,
    cells: &[Cell],
) -> Judgement {
    let empty = Cell::default();
    let own = assertion
        .by
        .iter()
        .position(|dimension| *dimension == assertion.own_node());
    let nodes: Vec<&str> = match own {
        Some(at) => vec![key[at].as_str()],
        None => observers.nodes.iter().map(|(node, _)| *node).collect(),
    };
    let readings: Vec<Reading> = assertion
        .expect
        .iter()
        .zip(&planned.conditions)
        .enumerate()
        .map(|(at, (condition, place))| match place {
            Place::Agents => read_agents(condition, &nodes, moment),
            Place::Class { bound, .. } => {
                let cell = cells.get(at).unwrap_or(&empty);
                read(condition, cell, *bound, assertion, moment.window)
            }
        })
        .collect();
    let failed = readings.iter().position(|reading| reading.passed == Some(false));
    let lacking = readings.iter().position(|reading| reading.passed.is_none());
    let no_data = |at: usize| match assertion.no_data {
        NoData::Unknown => (
            Outcome::Unknown,
            Some(too_few(assertion, &readings[at], at, &nodes)),
        ),
        NoData::Holds => (Outcome::Passed, None),
        NoData::Violated => (Outcome::Failed, None),
    };
    let (decisive, (outcome, cause)) = match (failed, lacking) {
        (Some(at), _) => (at, (Outcome::Failed, None)),
        (None, Some(at)) => (at, no_data(at)),
        (None, None) => (0, (Outcome::Passed, None)),
    };
    Judgement {
        key,
        outcome,
        cause,
        readings,
        decisive,
    }
}

fn too_few(assertion: &Assertion, reading: &Reading, at: usize, nodes: &[&str]) -> Cause {
    let condition = &assertion.expect[at];
    if condition.signal.signal.rows == Rows::Agents {
        return Cause::NotReported {
            node: nodes.join(", "),
        };
    }
    Cause::TooFewSamples {
        samples: reading.samples,
        needed: needed(assertion, condition),
    }
}

fn needed(assertion: &Assertion, condition: &Condition) -> u64 {
    assertion.min_samples.max(u64::from(condition.needs_rows()))
}

/// Holds a condition against what was added up.
fn read(
    condition: &Condition,
    cell: &Cell,
    bound: Option<usize>,
    assertion: &Assertion,
    window: Window,
) -> Reading {
    let (value, samples) = match condition.signal.signal.measure {
        Measure::Sum(sum) => (Some(cell.sum(sum) as f64), cell.sum(Sum::Rows)),
        Measure::PerSecond(sum) => {
            let seconds = (window.to_ns - window.from_ns) as f64 / 1e9;
            (Some(cell.sum(sum) as f64 / seconds), cell.sum(Sum::Rows))
        }
        Measure::Ratio(part, whole) => {
            let whole = cell.sum(whole);
            let value = (whole > 0).then(|| cell.sum(part) as f64 / whole as f64);
            (value, whole)
        }
        Measure::Quantiles(_) => {
            let (_, of_10_000) = QUANTILES[condition.signal.quantile.unwrap_or_default()];
            let value = cell.quantile(of_10_000).map(crate::store::buckets::middle);
            (value, cell.times())
        }
        Measure::Largest(_) => {
            let samples = cell.times();
            ((samples > 0).then_some(cell.largest as f64), samples)
        }
        Measure::Fullest => {
            let samples = cell.sum(Sum::Rows);
            ((samples > 0).then_some(cell.fullest), samples)
        }
        Measure::Agent(_) => (None, 0),
    };
    let is_enough = samples >= needed(assertion, condition);
    let passed = match (condition.signal.signal.measure, bound) {
        (Measure::Quantiles(_), Some(bound)) => {
            let (_, of_10_000) = QUANTILES[condition.signal.quantile.unwrap_or_default()];
            let above = u128::from(cell.reaching(bound)) * 10_000;
            let is_below = above <= u128::from(samples) * u128::from(10_000 - of_10_000);
            let wants_below = matches!(condition.operator, Operator::Less | Operator::LessOrEqual);
            Some(is_below == wants_below)
        }
        _ => value.map(|value| condition.admits(value)),
    };
    Reading {
        value,
        samples,
        passed: passed.filter(|_| is_enough),
    }
}

/// Of several nodes the worst counts.
fn read_agents(condition: &Condition, nodes: &[&str], moment: &Moment<'_>) -> Reading {
    let Measure::Agent(what) = condition.signal.signal.measure else {
        return Reading::default();
    };
    let of = |node: &&str| match what {
        OfAgent::Up => moment
            .coverage
            .is_up(node, moment.now_ns)
            .or(Some(false))
            .map(|is_up| f64::from(u8::from(is_up))),
        OfAgent::ClockOffset => moment
            .coverage
            .clock_offset_ns(node)
            .map(|offset_ns| (offset_ns.unsigned_abs() / 1_000) as f64),
        OfAgent::Lag => moment
            .coverage
            .lag_ns(node, moment.now_ns)
            .map(|ns| (ns / 1_000) as f64),
        OfAgent::Missing => moment
            .coverage
            .missing(node, moment.window)
            .map(|rows| rows as f64),
    };
    let values: Option<Vec<f64>> = nodes.iter().map(of).collect();
    let value = values.map(|values| {
        let values = values.into_iter();
        match what {
            OfAgent::Up => values.fold(1.0, f64::min),
            OfAgent::Missing => values.sum(),
            OfAgent::ClockOffset | OfAgent::Lag => values.fold(0.0, f64::max),
        }
    });
    Reading {
        value,
        samples: nodes.len() as u64,
        passed: value.map(|value| condition.admits(value)),
    }
}

/// One judgement of all: it is known as soon as what is not known cannot change it.
fn judge_quorum(share: f64, each: &[Judgement]) -> Judgement {
    let count = |outcome| {
        each.iter()
            .filter(|judgement| judgement.outcome == outcome)
            .count()
    };
    let (passed, unknown) = (count(Outcome::Passed), count(Outcome::Unknown));
    let needed = (share * each.len() as f64 - 1e-9).ceil() as usize;
    let (outcome, cause) = if passed >= needed {
        (Outcome::Passed, None)
    } else if passed + unknown < needed {
        (Outcome::Failed, None)
    } else {
        let keys = each.len();
        let only = each.iter().filter_map(|judgement| judgement.cause.as_ref()).min();
        let cause = match only {
            Some(cause) if unknown == 1 => cause.clone(),
            _ => Cause::Quorum { unknown, keys },
        };
        (Outcome::Unknown, Some(cause))
    };
    // Shown is the first that has to do with it.
    let shown = each
        .iter()
        .find(|judgement| judgement.outcome == outcome && !judgement.readings.is_empty());
    Judgement {
        key: Key::new(),
        outcome,
        cause,
        readings: shown
            .map(|judgement| judgement.readings.clone())
            .unwrap_or_default(),
        decisive: shown.map_or(0, |judgement| judgement.decisive),
    }
}

/// A group as people wrote it.
pub fn members_text(members: &Members) -> String {
    match members {
        Members::Group { name, .. } => name.clone(),
        Members::Label { key, values } if values.len() == 1 => format!("{key} = {}", values[0]),
        Members::Label { key, values } => format!("{key} in ({})", values.join(", ")),
        Members::Not(inner) => format!("not ({})", members_text(inner)),
        Members::And(parts) => joined(parts, " and "),
        Members::Or(parts) => joined(parts, " or "),
    }
}

fn joined(parts: &[Members], word: &str) -> String {
    let parts: Vec<_> = parts
        .iter()
        .map(|part| match part {
            Members::And(_) | Members::Or(_) => format!("({})", members_text(part)),
            part => members_text(part),
        })
        .collect();
    parts.join(word)
}

/// When a window is not waited for any longer, whoever is silent.
pub fn is_overdue(window: Window, now_ns: i64, deadline: Duration) -> bool {
    let deadline_ns = i64::try_from(deadline.as_nanos()).unwrap_or(i64::MAX);
    now_ns >= window.to_ns.saturating_add(deadline_ns)
}

/// How a key is written: `from.node=web-1, service=shop`.
pub fn key_text(by: &[Dimension], key: &Key) -> String {
    if key.len() != by.len() {
        return key.join(", ");
    }
    let parts: Vec<_> = by
        .iter()
        .zip(key)
        .map(|(dimension, value)| format!("{}={value}", dimension.name()))
        .collect();
    parts.join(", ")
}

#[cfg(test)]
#[path = "evaluate/tests.rs"]
mod tests;
