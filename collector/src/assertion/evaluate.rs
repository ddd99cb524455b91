//! One window of one assertion: from the rows that the store added up, and from who was watching, to what each key came
//! to and with which values. Pure.
//!
//! Quantiles are judged by counting, so the verdict is exact: `p99 < 20ms` holds if at most one row in a hundred took
//! 20 ms or more. The value that is shown comes from a histogram and is within 1.6 %.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::cause::{Cause, Switch};
use super::condition::Condition;
use super::coverage::{Coverage, Need, Standing, Window};
use super::group::{Labelled, Members, Membership};
use super::plan::{Place, Planned};
use super::signal::{End, Measure, OfAgent, QUANTILES, Rows, Signal, Sum, Times};
use super::state::Outcome;
use super::{Assertion, Dimension, NoData, Subject, Target, TargetPlace};
use crate::filter::Operator;

/// Keys of one assertion that are judged. Of more, those go on that were judged before; the others have to wait until one of
/// these is forgotten.
pub const MOST_KEYS: usize = 1_000;

/// Stands for the keys beyond.
const BEYOND: &str = "...";

/// Whether a key goes on for as long as it is judged, however long nothing is seen of it: those that stand for other keys or
/// for none, and nodes that are expected to be there.
pub fn is_standing(assertion: &Assertion, key: &Key, roster: &Roster) -> bool {
    match (key.as_slice(), assertion.by.as_slice()) {
        ([], _) => true,
        ([only], _) if only == BEYOND => true,
        ([only], [by]) if *by == assertion.own_node() || *by == Dimension::ToNode => is_in(roster, only),
        _ => false,
    }
}

fn is_in(roster: &Roster, name: &str) -> bool {
    roster.nodes.iter().any(|node| node.labelled.node == name)
}

/// How many kinds of sums there are.
pub const SUMS: usize = 16;

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

/// The nodes that are expected to be there: those that were heard lately ([`Set::expected_for`](super::Set::expected_for)), and
/// those that are declared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Roster {
    pub nodes: Vec<Node>,
}

impl Roster {
    /// Whoever is in it, and of these, with their labels, who is not.
    pub fn with(&self, declared: &BTreeMap<String, BTreeMap<String, String>>) -> Self {
        let there: BTreeSet<&str> = self
            .nodes
            .iter()
            .map(|node| node.labelled.node.as_str())
            .collect();
        let missing = declared.iter().filter(|(node, _)| !there.contains(node.as_str()));
        let missing = missing.map(|(node, labels)| Node {
            labelled: Labelled {
                node: node.clone(),
                labels: labels.clone(),
            },
            addresses: Vec::new(),
        });
        Self {
            nodes: self.nodes.iter().cloned().chain(missing).collect(),
        }
    }
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
    /// Rows that it depends on, or system calls, that are known to be lost. `None`: none is known to be, and that none is, is
    /// not known either; or it depends on none.
    pub loss: Option<u64>,
    /// It is unknown for want of rows that may come yet: it may be judged again.
    pub may_come: bool,
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
    /// How long a node is in the roster after it was heard last.
    pub expected_for: Duration,
    pub roster: &'a Roster,
    /// Of this roster.
    pub membership: &'a Membership,
    pub addresses: &'a Addresses,
    pub coverage: &'a Coverage,
}

impl<'a> Moment<'a> {
    /// The nodes that belong to these.
    pub fn nodes(&self, members: &Members) -> impl Iterator<Item = &'a Node> {
        let nodes = self.roster.nodes.iter().enumerate();
        nodes
            .filter(|(at, node)| self.membership.contains(members, *at, &node.labelled))
            .map(|(_, node)| node)
    }
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
    pub fn node_at<'a>(&'a self, address: Ipv6Addr, node: &'a str) -> Option<&'a str> {
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
        // Of values that are below zero too.
        self.fullest = if self.sum(Sum::Rows) == rows.sums[Sum::Rows as usize] {
            rows.fullest
        } else {
            self.fullest.max(rows.fullest)
        };
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

/// What there is of rows that something depends on.
#[derive(Clone)]
struct Seen {
    standing: Standing,
    /// As in [`Judgement`].
    loss: Option<u64>,
}

impl Seen {
    fn and(self, other: Self) -> Self {
        Self {
            standing: worse(self.standing, other.standing),
            loss: match (self.loss, other.loss) {
                (Some(one), Some(other)) => Some(one.saturating_add(other)),
                (one, other) => one.or(other).filter(|known| *known > 0),
            },
        }
    }
}

/// Who sees the rows of an assertion, and how they stand to the window.
pub struct Observers<'a> {
    nodes: Vec<(&'a str, Seen)>,
    /// Where clients connect to, if anything is read there too.
    targets: Vec<(&'a str, Seen)>,
    /// What there is of nodes that nothing is needed of.
    nothing_needed: Seen,
}

impl<'a> Observers<'a> {
    pub fn of(assertion: &Assertion, moment: &Moment<'a>) -> Self {
        let (window, coverage) = (watched(assertion, moment), moment.coverage);
        let (own, of_targets) = needs(assertion);
        // What agents report of themselves is made of no rows.
        let nothing_lost = own
            .iter()
            .chain(&of_targets)
            .any(|need| need.is_of_rows())
            .then_some(0);
        let seen = |members: &Members, needs: Vec<Need>| {
            let seen = |node: &'a Node| {
                let name = node.labelled.node.as_str();
                let each = needs
                    .iter()
                    .map(|need| coverage.standing(name, window, *need, moment.now_ns, assertion.deadline));
                let standing = each.fold(Standing::Complete, worse);
                let loss = match standing {
                    Standing::Complete => nothing_lost,
                    Standing::Waiting | Standing::Incomplete(_) => {
                        nothing_lost.and_then(|_| coverage.loss(name, window, &needs))
                    }
                };
                (name, Seen { standing, loss })
            };
            moment.nodes(members).map(seen).collect()
        };
        Self {
            nodes: seen(assertion.observers(), own),
            targets: match target_members(assertion) {
                Some(members) if !of_targets.is_empty() => seen(members, of_targets),
                _ => Vec::new(),
            },
            nothing_needed: Seen {
                standing: Standing::Complete,
                loss: nothing_lost,
            },
        }
    }

    /// What there is of all of these.
    fn all(&self, nodes: &[(&str, Seen)]) -> Seen {
        let each = nodes.iter().map(|(_, seen)| seen.clone());
        each.fold(self.nothing_needed.clone(), Seen::and)
    }

    /// Who is not waited for any more, and may deliver yet; and of what kind of rows.
    pub fn owing(&self, assertion: &Assertion, moment: &Moment<'_>) -> Vec<(String, Need, Window)> {
        let mut owing = Vec::new();
        let (own, of_targets) = needs(assertion);
        let own = self.nodes.iter().map(|node| (node, &own));
        let targets = self.targets.iter().map(|node| (node, &of_targets));
        for ((name, seen), needs) in own.chain(targets) {
            if !is_owing(&seen.standing) {
                continue;
            }
            for &need in needs.iter().filter(|need| !need.is_of_now()) {
                let (now_ns, deadline) = (moment.now_ns, assertion.deadline);
                let window = watched(assertion, moment);
                let standing = moment.coverage.standing(name, window, need, now_ns, deadline);
                if is_owing(&standing) {
                    owing.push(((*name).to_owned(), need, window));
                }
            }
        }
        owing
    }

    /// Whose rows it is about.
    pub fn names(&self) -> impl Iterator<Item = &'a str> {
        self.nodes.iter().chain(&self.targets).map(|(node, _)| *node)
    }

    /// Those who are waited for.
    pub fn awaited(&self) -> impl Iterator<Item = &'a str> {
        let all = self.nodes.iter().chain(&self.targets);
        let waiting = all.filter(|(_, seen)| seen.standing == Standing::Waiting);
        waiting.map(|(node, _)| *node)
    }

    /// Whether there is anyone to be waited for, and anyone who is not.
    pub fn waiting(&self) -> (bool, bool) {
        let waits = |(_, seen): &(&str, Seen)| seen.standing == Standing::Waiting;
        let mut all = self.nodes.iter().chain(&self.targets);
        let is_any_ready = self.targets.iter().all(|node| !waits(node))
            && (self.nodes.is_empty() || !self.nodes.iter().all(waits));
        (all.any(waits), is_any_ready)
    }
}

/// Whether two assertions that are judged together wait for the same nodes, in the same way.
pub fn wait_alike(one: &Assertion, other: &Assertion) -> bool {
    needs(one) == needs(other)
        && one.observers() == other.observers()
        && target_members(one) == target_members(other)
        && (one.deadline, one.watched_over()) == (other.deadline, other.watched_over())
}

/// The part of a window in which everybody has to have watched.
fn watched(assertion: &Assertion, moment: &Moment<'_>) -> Window {
    let over_ns = i64::try_from(assertion.watched_over().as_nanos()).unwrap_or(i64::MAX);
    Window {
        from_ns: moment.window.to_ns.saturating_sub(over_ns),
        to_ns: moment.window.to_ns,
    }
}

/// Whether the rows are missing, and may come yet.
pub fn is_owing(standing: &Standing) -> bool {
    matches!(standing, Standing::Incomplete(cause) if cause.may_pass())
}

/// What has to be there of the observers, and of the nodes that they connect to.
fn needs(assertion: &Assertion) -> (Vec<Need>, Vec<Need>) {
    let (mut own, mut of_targets) = (Vec::new(), Vec::new());
    for condition in &assertion.expect {
        let Some(need) = condition.signal.signal.need() else {
            continue;
        };
        let needs = if is_of_target(assertion, condition) {
            &mut of_targets
        } else {
            &mut own
        };
        if !needs.contains(&need) {
            needs.push(need);
        }
    }
    // What a question of one's own reads is seen by the names of its tables; one too many is watched rather than one too few.
    if let Some(sql) = &assertion.sql {
        for (name, switch) in [
            ("syscall", Switch::Syscalls),
            ("listener", Switch::Listeners),
            ("open_connections", Switch::OpenConnections),
            ("connection_samples", Switch::OpenConnections),
        ] {
            let need = Need::Samples(Some(switch));
            if sql.contains(name) && !own.contains(&need) {
                own.push(need);
            }
        }
    }
    (own, of_targets)
}

/// Whether a condition is read at the other end than the assertion is about.
fn is_of_target(assertion: &Assertion, condition: &Condition) -> bool {
    condition.signal.signal.end == End::Target && matches!(assertion.subject, Subject::Client { .. })
}

/// The nodes that clients connect to, if they are named.
fn target_members(assertion: &Assertion) -> Option<&Members> {
    match &assertion.subject {
        Subject::Client {
            to:
                Target {
                    place: Some(TargetPlace::Nodes(members)),
                    ..
                },
            ..
        } => Some(members),
        _ => None,
    }
}

impl Rows {
    /// What has to be there of an agent for a sum over them to be right.
    pub fn need(self) -> Option<Need> {
        match self {
            Self::Attempts => Some(Need::Attempts),
            Self::Connections => Some(Need::Records),
            Self::Listeners => Some(Need::Samples(Some(Switch::Listeners))),
            Self::Syscalls => Some(Need::Samples(Some(Switch::Syscalls))),
            Self::Open => Some(Need::Samples(Some(Switch::OpenConnections))),
            Self::Namespaces | Self::Overhead => Some(Need::Samples(None)),
            // Whatever is asked: attempts come last.
            Self::Sql => Some(Need::Attempts),
            Self::Agents => None,
        }
    }
}

impl Signal {
    /// What has to be there of an agent for a reading to be right.
    pub fn need(&self) -> Option<Need> {
        match self.measure {
            Measure::Agent(OfAgent::Up | OfAgent::Lag) => Some(Need::Now),
            Measure::Agent(OfAgent::ClockOffset) => Some(Need::Report),
            Measure::Agent(OfAgent::Missing | OfAgent::Lost | OfAgent::Dropped) => Some(Need::Counts),
            _ => self.rows.need(),
        }
    }
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
        let mut judgements = Vec::new();
        if assertion.quorum.is_none() {
            judgements.extend(known.iter().filter_map(|key| {
                let cause = match own_node(assertion, key) {
                    None => cause.clone(),
                    Some(node) => gone(moment, node)?,
                };
                Some(unknown(key.clone(), cause))
            }));
        }
        if judgements.is_empty() {
            judgements.push(unknown(Key::new(), cause));
        }
        return judgements;
    }
    let (cells, targets) = match cells(assertion, planned, moment, observers, answers) {
        Ok(found) => found,
        Err(cause) => {
            let keys = if assertion.quorum.is_some() {
                // It has one verdict, whatever its keys are.
                BTreeSet::from([Key::new()])
            } else {
                expected(assertion, moment, observers, known, &HashMap::new())
            };
            let judgements = keys.into_iter().map(|key| unknown(key, cause.clone()));
            return judgements.collect();
        }
    };
    let mut keys = expected(assertion, moment, observers, known, &cells);
    let found = keys.len();
    let mut judgements = Vec::with_capacity(found.min(MOST_KEYS));
    if found > MOST_KEYS {
        // What has a state goes on, whatever comes to it: a violation is not forgotten because others came.
        let (older, newer): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| known.contains(key));
        keys = older.into_iter().chain(newer).take(MOST_KEYS).collect();
        let cause = Cause::TooManyKeys {
            keys: found,
            most: MOST_KEYS,
        };
        judgements.push(unknown(vec![BEYOND.to_owned()], cause));
    }
    let (everybody, all_targets) = (observers.all(&observers.nodes), observers.all(&observers.targets));
    let target = assertion
        .by
        .iter()
        .position(|dimension| *dimension == Dimension::ToNode);
    let members = target_members(assertion).map(|members| {
        let nodes = moment.nodes(members);
        nodes
            .map(|node| node.labelled.node.as_str())
            .collect::<HashSet<_>>()
    });
    let mut is_waiting = false;
    for key in keys {
        // Where there is no key, anybody's rows might have told of one.
        let seen = match own_node(assertion, &key) {
            None => everybody.clone(),
            Some(node) => match observers.nodes.iter().find(|(name, _)| name == node) {
                Some((_, seen)) => seen.clone(),
                None => match gone(moment, node) {
                    None => continue,
                    Some(cause) => Seen {
                        standing: Standing::Incomplete(cause),
                        loss: None,
                    },
                },
            },
        };
        let target = target.and_then(|at| key.get(at));
        // So it is with the other end.
        if let (Some(node), Some(members)) = (target, &members)
            && !members.contains(node.as_str())
            && is_in(moment.roster, node)
        {
            continue;
        }
        let of_target = target.and_then(|target| observers.targets.iter().find(|(name, _)| name == target));
        let Seen { standing, loss } = match of_target {
            Some((_, of_target)) => seen.and(of_target.clone()),
            None => seen.and(all_targets.clone()),
        };
        let judgement = match standing {
            Standing::Waiting => {
                is_waiting = true;
                continue;
            }
            Standing::Incomplete(cause) => {
                let failing = judge_failing(assertion, moment, observers, &key);
                failing.unwrap_or_else(|| unknown(key, cause))
            }
            Standing::Complete if key.len() < assertion.by.len() => judge_nothing(assertion, moment, key),
            Standing::Complete => {
                let found = cells.get(&key).map_or(&[][..], Vec::as_slice);
                judge_key(assertion, planned, moment, observers, key, found, &targets)
            }
        };
        judgements.push(Judgement { loss, ..judgement });
    }
    match assertion.quorum {
        None => judgements,
        Some(_) if is_waiting => Vec::new(),
        Some(quorum) => {
            let beyond = found.saturating_sub(MOST_KEYS);
            let judgement = judge_quorum(quorum.share, &judgements, beyond);
            // Keys may depend on the same nodes.
            let loss = everybody.and(all_targets).loss;
            vec![Judgement { loss, ..judgement }]
        }
    }
}

/// The node that a key names as its own.
fn own_node<'k>(assertion: &Assertion, key: &'k Key) -> Option<&'k String> {
    let mut by = assertion.by.iter();
    key.get(by.position(|dimension| *dimension == assertion.own_node())?)
}

/// Why nothing is known of a node that is not among those that an assertion is about. `None`: it is there and belongs here no
/// more, so that what names it is no key.
fn gone(moment: &Moment<'_>, node: &str) -> Option<Cause> {
    (!is_in(moment.roster, node)).then(|| Cause::Gone {
        node: node.to_owned(),
        expected_for: moment.expected_for,
    })
}

/// What fails whatever is not known: a condition that needs no rows, such as `node.up = true`.
fn judge_failing(
    assertion: &Assertion,
    moment: &Moment<'_>,
    observers: &Observers<'_>,
    key: &Key,
) -> Option<Judgement> {
    let is_of_now = |condition: &Condition| condition.signal.signal.need() == Some(Need::Now);
    if !assertion.expect.iter().any(is_of_now) {
        return None;
    }
    let mut by = assertion.by.iter();
    let own = by.position(|dimension| *dimension == assertion.own_node());
    let own = own.and_then(|at| key.get(at));
    let nodes = observers.nodes.iter().map(|(node, _)| *node);
    let nodes: Vec<&str> = nodes.filter(|node| own.is_none_or(|own| own == node)).collect();
    let is_known = |node: &&str| {
        let (window, now_ns, deadline) = (moment.window, moment.now_ns, assertion.deadline);
        let standing = moment
            .coverage
            .standing(node, window, Need::Now, now_ns, deadline);
        standing == Standing::Complete
    };
    let are_known = !nodes.is_empty() && nodes.iter().all(is_known);
    let reading = |condition: &Condition| {
        if are_known && is_of_now(condition) {
            read_agents(condition, &nodes, moment)
        } else {
            Reading::default()
        }
    };
    let readings: Vec<Reading> = assertion.expect.iter().map(reading).collect();
    let decisive = readings
        .iter()
        .position(|reading| reading.passed == Some(false))?;
    Some(Judgement {
        key: key.clone(),
        outcome: Outcome::Failed,
        cause: None,
        readings,
        decisive,
        loss: None,
        may_come: false,
    })
}

/// There is no key: no node that has to be there, and no row that would tell of one.
fn judge_nothing(assertion: &Assertion, moment: &Moment<'_>, key: Key) -> Judgement {
    if let Some(members) = target_members(assertion)
        && moment.nodes(members).next().is_none()
    {
        let members = members_text(members);
        return unknown(key, Cause::NoNodes { members });
    }
    let needed = assertion.min_samples.max(1);
    let nothing = unknown(key, Cause::TooFewSamples { samples: 0, needed });
    let outcome = match assertion.no_data {
        NoData::Unknown => return nothing,
        NoData::Holds => Outcome::Passed,
        NoData::Violated => Outcome::Failed,
    };
    Judgement {
        outcome,
        cause: None,
        ..nothing
    }
}

fn unknown(key: Key, cause: Cause) -> Judgement {
    Judgement {
        key,
        outcome: Outcome::Unknown,
        may_come: cause.may_pass(),
        cause: Some(cause),
        readings: Vec::new(),
        decisive: 0,
        loss: None,
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
    if assertion.sql.is_some() {
        // What its rows are called, and nothing else.
        keys.extend(known.iter().filter(|key| !key.is_empty()).cloned());
    } else {
        keys.extend(lasting(assertion, moment, observers, known));
    }
    // That there is none is said too.
    if keys.is_empty() {
        keys.insert(Key::new());
    }
    keys
}

/// The keys that are judged whether or not they have rows: those that have to be there, and those that had rows before.
fn lasting(
    assertion: &Assertion,
    moment: &Moment<'_>,
    observers: &Observers<'_>,
    known: &BTreeSet<Key>,
) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
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
                let targets = moment.nodes(members);
                keys.extend(targets.map(|node| vec![node.labelled.node.clone()]));
            }
        }
        _ => {}
    }
    keys
}

/// What listeners add up to, by condition and by the parts of a key that they are told apart by.
type Targets = HashMap<(usize, Key), Cell>;

/// The parts of a key that tell listeners apart.
fn of_listener(by: &[Dimension], key: &[String]) -> Key {
    let parts = by.iter().zip(key);
    let told = parts.filter(|(dimension, _)| matches!(dimension, Dimension::ToNode | Dimension::Port));
    told.map(|(_, value)| value.clone()).collect()
}

/// Adds up the rows of each key, for each condition.
fn cells(
    assertion: &Assertion,
    planned: &Planned,
    moment: &Moment<'_>,
    observers: &Observers<'_>,
    answers: &Answers,
) -> Result<(HashMap<Key, Vec<Cell>>, Targets), Cause> {
    let mut targets = Targets::new();
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
            if is_of_target(assertion, &assertion.expect[condition]) {
                let is_there = observers.targets.iter().any(|(node, _)| *node == rows.node);
                if is_there && remote.port.is_none_or(|port| port == rows.port) {
                    let told = assertion.by.iter().filter_map(|dimension| match dimension {
                        Dimension::ToNode => Some(rows.node.clone()),
                        Dimension::Port => Some(rows.port.to_string()),
                        _ => None,
                    });
                    let place = (condition, told.collect());
                    targets.entry(place).or_default().add(rows);
                }
                continue;
            }
            if assertion.sql.is_some() {
                let key = Some(rows.comm.clone()).filter(|key| !key.is_empty());
                let cell = cells
                    .entry(key.into_iter().collect())
                    .or_insert_with(|| vec![Cell::default(); planned.conditions.len()]);
                cell[condition].add(rows);
                continue;
            }
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
    Ok((cells, targets))
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
            let nodes = moment.nodes(members);
            RemotePlace::Nodes(nodes.map(|node| node.labelled.node.as_str()).collect())
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
    targets: &Targets,
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
                let cell = if is_of_target(assertion, condition) {
                    targets.get(&(at, of_listener(&assertion.by, &key)))
                } else {
                    cells.get(at)
                };
                let cell = cell.unwrap_or(&empty);
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
    let passed = readings.iter().position(|reading| reading.passed == Some(true));
    // A budget burns only if it does in both windows.
    let passed = passed.filter(|_| assertion.burn.is_some());
    let (decisive, (outcome, cause)) = match (passed, failed, lacking) {
        (Some(at), ..) => (at, (Outcome::Passed, None)),
        (None, Some(_), Some(at)) if assertion.burn.is_some() => (at, no_data(at)),
        (None, Some(at), _) => (at, (Outcome::Failed, None)),
        (None, None, Some(at)) => (at, no_data(at)),
        (None, None, None) => (0, (Outcome::Passed, None)),
    };
    Judgement {
        key,
        outcome,
        cause,
        readings,
        decisive,
        loss: None,
        may_come: false,
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
        Measure::Quantiles(times) => {
            let (_, of_10_000) = QUANTILES[condition.signal.quantile.unwrap_or_default()];
            let middle = cell.quantile(of_10_000).map(crate::store::buckets::middle);
            // Those of syscalls are of nanoseconds.
            let per_us = if times == Times::Syscall { 1_000.0 } else { 1.0 };
            (middle.map(|middle| middle / per_us), cell.times())
        }
        Measure::Largest(_) => {
            let samples = cell.times();
            ((samples > 0).then_some(cell.largest as f64), samples)
        }
        Measure::Fullest => {
            let samples = cell.sum(Sum::Rows);
            ((samples > 0).then_some(cell.fullest), samples)
        }
        Measure::Value => {
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
    let counted = |rows: Option<u64>| rows.map(|rows| rows as f64);
    let of = |node: &&str| match what {
        OfAgent::Up => moment
            .coverage
            .is_up(node, moment.window.to_ns)
            .or(Some(false))
            .map(|is_up| f64::from(u8::from(is_up))),
        OfAgent::ClockOffset => moment
            .coverage
            .clock_offset_ns(node)
            .map(|offset_ns| (offset_ns.unsigned_abs() / 1_000) as f64),
        OfAgent::Lag => moment
            .coverage
            .lag_ns(node, moment.window.to_ns)
            .map(|ns| (ns / 1_000) as f64),
        OfAgent::Missing => counted(moment.coverage.missing(node, moment.window)),
        OfAgent::Lost => counted(moment.coverage.lost(node, moment.window)),
        OfAgent::Dropped => counted(moment.coverage.dropped(node, moment.window)),
    };
    let values: Option<Vec<f64>> = nodes.iter().map(of).collect();
    let value = values.map(|values| {
        let values = values.into_iter();
        match what {
            OfAgent::Up => values.fold(1.0, f64::min),
            OfAgent::Missing | OfAgent::Lost | OfAgent::Dropped => values.sum(),
            OfAgent::ClockOffset | OfAgent::Lag => values.fold(0.0, f64::max),
        }
    });
    Reading {
        value,
        samples: nodes.len() as u64,
        passed: value.map(|value| condition.admits(value)),
    }
}

/// One judgement of all: it is known as soon as what is not known cannot change it. `beyond`: keys that were not judged, for
/// which one judgement stands.
fn judge_quorum(share: f64, each: &[Judgement], beyond: usize) -> Judgement {
    let count = |outcome| {
        each.iter()
            .filter(|judgement| judgement.outcome == outcome)
            .count()
    };
    let more = beyond.saturating_sub(1);
    let (passed, unknown) = (count(Outcome::Passed), count(Outcome::Unknown) + more);
    let keys = each.len() + more;
    let needed = (share * keys as f64 - 1e-9).ceil() as usize;
    let (outcome, cause) = if passed >= needed {
        (Outcome::Passed, None)
    } else if passed + unknown < needed {
        (Outcome::Failed, None)
    } else {
        let only = each.iter().filter_map(|judgement| judgement.cause.as_ref()).min();
        let cause = match only {
            Some(cause) if unknown == 1 || unknown == beyond => cause.clone(),
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
        loss: None,
        may_come: outcome == Outcome::Unknown && each.iter().any(|judgement| judgement.may_come),
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
