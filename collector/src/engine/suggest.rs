//! Assertions that hold: what was always so within a time, with room, as a file that can be declared.
//!
//! Who connected to whom says what there is to assert. Each signal of it is put to the same engine that judges, over
//! windows of the past, with a limit that nearly everything keeps; what the windows came to is what its limit is made of
//! (`assertion/limit.rs`). So evidence that is incomplete counts here as little as in a verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Engine, files};
use crate::assertion::cause::EXPECTED_FOR;
use crate::assertion::condition::value_text;
use crate::assertion::evaluate::{Addresses, Roster};
use crate::assertion::group::{ALL, Labelled, Members};
use crate::assertion::limit::{Bad, FEWEST_SAMPLES, FEWEST_WINDOWS, Limit, Past, limit};
use crate::assertion::signal::Unit;
use crate::assertion::state::Verdict;
use crate::clock::ns;
use crate::store::history::{self, Traffic};
use crate::store::{Store, StoreError, evidence};

const SECOND_NS: i64 = 1_000_000_000;

/// The length of the windows that are looked at, and of those that are suggested.
const OVER: &str = "1m";
const OVER_NS: i64 = 60 * SECOND_NS;

/// Windows of the past at most: of a longer time, evenly spread ones.
const MOST_WINDOWS: i64 = 240;

/// What is delivered later than this is not waited for.
const BEHIND_NS: i64 = 15 * SECOND_NS;

/// Pairs of who connects and to what; the most frequent ones.
const MOST_PAIRS: usize = 20;

/// System calls of a group; likewise.
const MOST_CALLS: usize = 3;

/// Labels by which nodes are usually told apart; the first that any node has is taken.
const GROUPING: [&str; 5] = ["role", "service", "app", "tier", "group"];

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Nodes as in a file, or the value of a label, or a node's name; none: whoever connected.
    pub from: Option<String>,
    /// Likewise, with a port where it is only about one; or an address.
    pub to: Option<String>,
    pub since: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum SuggestError {
    #[error("{0}")]
    Wrong(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Suggested {
    pub assertions: Vec<Suggestion>,
    /// What is not suggested, and why.
    pub left_out: Vec<String>,
}

/// An assertion and the limits of its conditions.
#[derive(Clone, Debug)]
pub struct Suggestion {
    name: String,
    subject: Subject,
    conditions: Vec<(&'static Asked, String, Limit)>,
    /// Windows that could not be judged.
    unknown: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Pair { from: String, to: String },
    On(String),
}

/// A signal that is looked at.
#[derive(Debug)]
struct Asked {
    unit: Unit,
    /// What a window of the past is held against: whatever is worth a suggestion keeps it.
    always: &'static str,
    bad: Bad,
    /// How many a window has to have to say anything.
    samples: u64,
}

const fn asked(unit: Unit, always: &'static str, bad: Bad, samples: u64) -> Asked {
    Asked {
        unit,
        always,
        bad,
        samples,
    }
}

static TIME: Asked = asked(Unit::Time, "< 1d", Bad::More, FEWEST_SAMPLES);
static RATIO: Asked = asked(Unit::Ratio, "< 100%", Bad::More, FEWEST_SAMPLES);
static COUNT: Asked = asked(Unit::Count, "< 1_000_000_000_000", Bad::More, FEWEST_SAMPLES);
static FLOOR: Asked = asked(Unit::Rate, "< 1_000_000_000/s", Bad::Less, FEWEST_SAMPLES);
static NONE: Asked = asked(Unit::Count, "< 1_000_000_000_000", Bad::Any, 1);

/// Of who connects to whom.
static OF_PAIRS: [(&str, &Asked); 6] = [
    ("connect.p99", &TIME),
    ("connect.failed_ratio", &RATIO),
    ("connect.refused_ratio", &RATIO),
    ("connect.syn_retransmits", &COUNT),
    ("connect.rate", &FLOOR),
    ("rtt.p99", &TIME),
];

/// What may be asserted, before it is known whether it can be.
struct Candidate {
    name: String,
    subject: Subject,
    signals: Vec<(String, &'static Asked)>,
}

pub async fn suggest(store: Arc<dyn Store>, wanted: &Wanted, now_ns: i64) -> Result<Suggested, SuggestError> {
    let until_ns = (now_ns - BEHIND_NS).div_euclid(OVER_NS) * OVER_NS;
    let since_ns = until_ns - i64::try_from(wanted.since.as_nanos()).unwrap_or(i64::MAX / 2);
    let windows = (until_ns - since_ns) / OVER_NS;
    if windows < FEWEST_WINDOWS as i64 {
        return Err(SuggestError::Wrong(format!(
            "the past has to have {FEWEST_WINDOWS} windows of {OVER} or more: say --since {FEWEST_WINDOWS}m at least"
        )));
    }
    let roster = evidence::roster(&*store, now_ns, now_ns.saturating_sub(ns(EXPECTED_FOR))).await?;
    if roster.nodes.is_empty() {
        return Err(SuggestError::Wrong(
            "no node was heard of within the last hour: what holds now is not known of any".to_owned(),
        ));
    }
    let traffic = history::traffic(&*store, since_ns, until_ns).await?;
    let mut suggested = Suggested::default();
    let pairs = pairs(wanted, &roster, &traffic, &mut suggested.left_out)?;
    let mut candidates = of_pairs(&pairs);
    let calls = history::calls(&*store, since_ns, until_ns).await?;
    candidates.extend(of_calls(&pairs, &roster, &calls));
    if candidates.is_empty() {
        return Ok(suggested);
    }
    // Evenly spread, and each a whole number of minutes after the other.
    let every_ns = (windows + MOST_WINDOWS - 1) / MOST_WINDOWS * OVER_NS;
    let seen = look(store, &candidates, every_ns, since_ns, until_ns).await?;
    for (at, candidate) in candidates.into_iter().enumerate() {
        suggested.take(candidate, at, &seen);
    }
    Ok(suggested)
}

/// The nodes that one side is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// What it is called.
    title: String,
    /// As in a file.
    text: String,
}

/// Who connects to what; the server's side with its port, the clients' nodes, and the servers'.
struct Pair {
    from: Place,
    to: String,
    title: String,
    /// None: the other end is no node.
    servers: Option<Place>,
    port: Option<u16>,
}

fn members(text: &str) -> Result<Members, SuggestError> {
    Members::parse(text).map_err(|fault| SuggestError::Wrong(format!("`{text}`: {}", fault.message)))
}

/// A value as groups are written with it.
fn quoted(value: &str) -> String {
    if value.contains('\'') {
        format!("\"{value}\"")
    } else {
        format!("'{value}'")
    }
}

/// What somebody typed: an expression over labels, or one word of it.
fn place(typed: &str, roster: &Roster) -> Result<Place, SuggestError> {
    let wanted = members(typed)?;
    let Members::Group { name, .. } = &wanted else {
        let groups = wanted.groups();
        if let Some((group, _)) = groups.iter().find(|(group, _)| *group != ALL) {
            return Err(SuggestError::Wrong(format!(
                "`{typed}`: there is no group `{group}` here; write the label, as in `role = {group}`"
            )));
        }
        return Ok(Place {
            title: typed.to_owned(),
            text: typed.to_owned(),
        });
    };
    let placed = |text: String| Place {
        title: name.clone(),
        text,
    };
    if name == ALL {
        return Ok(placed(ALL.to_owned()));
    }
    let nodes = || roster.nodes.iter().map(|node| &node.labelled);
    let keys: BTreeSet<&String> = nodes().flat_map(|node| node.labels.keys()).collect();
    let preferred = GROUPING.iter().copied();
    let others = keys.iter().map(|key| key.as_str());
    let has = |key: &str| nodes().any(|node| node.labels.get(key) == Some(name));
    if let Some(key) = preferred.chain(others).find(|key| has(key)) {
        return Ok(placed(format!("{} = {}", word(key), quoted(name))));
    }
    if nodes().any(|node| node.node == *name) {
        return Ok(placed(format!("node = {}", quoted(name))));
    }
    let known: BTreeSet<String> = nodes()
        .flat_map(|node| node.labels.iter().map(|(key, value)| format!("{key} = {value}")))
        .collect();
    let known: Vec<_> = known.into_iter().take(8).collect();
    let hint = if known.is_empty() {
        "the nodes have no labels".to_owned()
    } else {
        format!("there are {}", known.join(", "))
    };
    Err(SuggestError::Wrong(format!(
        "no node is called `{name}`, and none has a label with that value; {hint}"
    )))
}

/// A label's name, which may have to be quoted.
fn word(key: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if !key.is_empty() && key.chars().all(is_plain) && !["and", "or", "not", "in"].contains(&key) {
        key.to_owned()
    } else {
        quoted(key)
    }
}

/// The groups that a node belongs to of itself.
fn place_of(node: &Labelled, key: Option<&str>) -> Place {
    match key {
        None => Place {
            title: ALL.to_owned(),
            text: ALL.to_owned(),
        },
        Some(key) => match node.labels.get(key) {
            Some(value) => Place {
                title: value.clone(),
                text: format!("{} = {}", word(key), quoted(value)),
            },
            None => Place {
                title: format!("node {}", node.node),
                text: format!("node = {}", quoted(&node.node)),
            },
        },
    }
}

/// The other side as somebody typed it.
enum Target {
    Any,
    Nodes(Place, Option<u16>),
    /// An address or a network: as in a file.
    Address(String),
}

fn target(typed: Option<&str>, roster: &Roster) -> Result<Target, SuggestError> {
    let Some(typed) = typed else {
        return Ok(Target::Any);
    };
    if typed.parse::<IpAddr>().is_ok() {
        return Ok(Target::Address(typed.to_owned()));
    }
    let (before, port) = match typed.rsplit_once(':') {
        Some((before, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            let number = port.parse::<u16>().ok().filter(|port| *port != 0);
            let wrong = || SuggestError::Wrong(format!("a port is from 1 to 65535, {port} is not"));
            (before.trim_end(), Some(number.ok_or_else(wrong)?))
        }
        _ => (typed, None),
    };
    let bare = before.trim_start_matches('[').trim_end_matches(']');
    let address = bare.split_once('/').map_or(bare, |(address, _)| address);
    if address.parse::<IpAddr>().is_ok() {
        return Ok(Target::Address(typed.to_owned()));
    }
    Ok(Target::Nodes(place(before, roster)?, port))
}

/// Who connected to what within the time, the most frequent first.
fn pairs(
    wanted: &Wanted,
    roster: &Roster,
    traffic: &[Traffic],
    left_out: &mut Vec<String>,
) -> Result<Vec<Pair>, SuggestError> {
    let addresses = Addresses::of(roster);
    let no_group = |_: &str| false;
    let nodes: BTreeMap<&str, &Labelled> = roster
        .nodes
        .iter()
        .map(|node| (node.labelled.node.as_str(), &node.labelled))
        .collect();
    let has = |key: &&str| nodes.values().any(|node| node.labels.contains_key(*key));
    let key = GROUPING.iter().copied().find(|key| has(key));
    let typed_from = wanted
        .from
        .as_deref()
        .map(|typed| place(typed, roster))
        .transpose()?;
    let target = target(wanted.to.as_deref(), roster)?;
    if let Target::Address(text) = &target {
        let from = typed_from.unwrap_or_else(|| place_of(&Labelled::default(), None));
        return Ok(vec![Pair {
            title: text.clone(),
            to: text.clone(),
            from,
            servers: None,
            port: None,
        }]);
    }
    let is_in = |place: &Place, node: &Labelled| -> Result<bool, SuggestError> {
        Ok(members(&place.text)?.contains(node, &no_group))
    };
    let mut counts: BTreeMap<(Place, Option<Place>, String, u16), u64> = BTreeMap::new();
    for row in traffic {
        // A node that is not expected any more holds nothing.
        let Some(client) = nodes.get(row.node.as_str()) else {
            continue;
        };
        let from = match &typed_from {
            Some(place) if is_in(place, client)? => place.clone(),
            Some(_) => continue,
            None => place_of(client, key),
        };
        let server = addresses.node_at(row.remote, &row.node);
        let server = server.and_then(|name| nodes.get(name));
        let (servers, text) = match (&target, server) {
            (Target::Nodes(place, port), Some(server)) => {
                if port.is_some_and(|port| port != row.port) || !is_in(place, server)? {
                    continue;
                }
                (Some(place.clone()), place.text.clone())
            }
            (Target::Nodes(..), None) => continue,
            (_, Some(server)) => {
                let place = place_of(server, key);
                let text = place.text.clone();
                (Some(place), text)
            }
            (_, None) => (
                None,
                match IpAddr::V6(row.remote).to_canonical() {
                    IpAddr::V4(address) => address.to_string(),
                    IpAddr::V6(address) => format!("[{address}]"),
                },
            ),
        };
        *counts.entry((from, servers, text, row.port)).or_default() += row.attempts;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, attempts)| std::cmp::Reverse(*attempts));
    if counts.is_empty() {
        left_out.push("nobody connected to anything of that within the time".to_owned());
    }
    if counts.len() > MOST_PAIRS {
        left_out.push(format!(
            "of {} pairs of who connects to what, the {MOST_PAIRS} most frequent are looked at: --from and --to choose others",
            counts.len()
        ));
        counts.truncate(MOST_PAIRS);
    }
    let pair = |((from, servers, text, port), _): ((Place, Option<Place>, String, u16), u64)| Pair {
        title: format!("{}:{port}", servers.as_ref().map_or(&text, |place| &place.title)),
        to: format!("{text}:{port}"),
        from,
        servers,
        port: Some(port),
    };
    Ok(counts.into_iter().map(pair).collect())
}

fn of_pairs(pairs: &[Pair]) -> Vec<Candidate> {
    let mut candidates: Vec<_> = pairs
        .iter()
        .map(|pair| Candidate {
            name: format!("{} reaches {}", pair.from.title, pair.title),
            subject: Subject::Pair {
                from: pair.from.text.clone(),
                to: pair.to.clone(),
            },
            signals: OF_PAIRS
                .iter()
                .map(|(name, asked)| ((*name).to_owned(), *asked))
                .collect(),
        })
        .collect();
    let listening: BTreeSet<_> = pairs
        .iter()
        .filter_map(|pair| Some((pair.servers.as_ref()?, pair.port?)))
        .collect();
    candidates.extend(listening.into_iter().map(|(place, port)| Candidate {
        name: format!("{}:{port} turns nobody away", place.title),
        subject: Subject::On(format!("{}:{port}", place.text)),
        signals: vec![("listener.drops".to_owned(), &NONE)],
    }));
    candidates
}

/// The most frequent system calls of the groups that the pairs are of.
fn of_calls(pairs: &[Pair], roster: &Roster, calls: &[(String, String, u64)]) -> Vec<Candidate> {
    let no_group = |_: &str| false;
    let places: BTreeSet<&Place> = pairs
        .iter()
        .flat_map(|pair| [Some(&pair.from), pair.servers.as_ref()])
        .flatten()
        .collect();
    let of_place = |place: &Place| {
        let members = Members::parse(&place.text).ok()?;
        let inside: BTreeSet<&str> = roster
            .nodes
            .iter()
            .filter(|node| members.contains(&node.labelled, &no_group))
            .map(|node| node.labelled.node.as_str())
            .collect();
        let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
        for (node, syscall, calls) in calls {
            if inside.contains(node.as_str()) {
                *counts.entry(syscall).or_default() += calls;
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
        let signals = counts.iter().take(MOST_CALLS);
        let signals: Vec<_> = signals
            .map(|(syscall, _)| (format!("syscall({syscall}).error_ratio"), &RATIO))
            .collect();
        (!signals.is_empty()).then(|| Candidate {
            name: format!("system calls of {} succeed as ever", place.title),
            subject: Subject::On(place.text.clone()),
            signals,
        })
    };
    places.into_iter().filter_map(of_place).collect()
}

/// What the windows of each candidate's signals came to; how many of them are not known.
type Seen = BTreeMap<String, (Vec<Past>, usize)>;

fn trial_name(candidate: usize, signal: usize) -> String {
    format!("{candidate} {signal}")
}

/// Puts every signal alone to an engine that judges the past.
async fn look(
    store: Arc<dyn Store>,
    candidates: &[Candidate],
    every_ns: i64,
    since_ns: i64,
    until_ns: i64,
) -> Result<Seen, SuggestError> {
    let mut text = String::from("assertions:\n");
    for (at, candidate) in candidates.iter().enumerate() {
        for (number, (signal, asked)) in candidate.signals.iter().enumerate() {
            let name = trial_name(at, number);
            let expect = json!(format!("{signal} {}", asked.always));
            text.push_str(&format!(
                "- {{ name: \"{name}\", {}, expect: {expect}, over: {OVER}, every: {}s }}\n",
                candidate.subject.yaml(", "),
                every_ns / SECOND_NS
            ));
        }
    }
    let set = files::declared(&[("suggestions".to_owned(), text)])
        .map_err(|error| SuggestError::Wrong(error.to_string()))?;
    let mut engine = Engine::new(store, set, since_ns + 1, false);
    engine.stop_at(until_ns);
    engine.tell_every_window();
    let mut seen = Seen::new();
    let mut virtual_ns = since_ns;
    loop {
        for record in engine.step(virtual_ns).await?.records {
            let (past, unknown) = seen.entry(record.assertion).or_default();
            match record.value {
                Some(value) if record.machine.verdict != Verdict::Unknown => past.push(Past {
                    value,
                    samples: record.samples,
                }),
                _ => *unknown += 1,
            }
        }
        // Windows that wait for rows are given up at their deadline.
        if engine.is_done(virtual_ns) || virtual_ns > until_ns + 2 * every_ns {
            break;
        }
        virtual_ns += every_ns / 4;
    }
    Ok(seen)
}

impl Subject {
    /// Its keys, as texts in quotes.
    fn yaml(&self, between: &str) -> String {
        match self {
            Self::Pair { from, to } => format!("from: {}{between}to: {}", json!(from), json!(to)),
            Self::On(on) => format!("on: {}", json!(on)),
        }
    }
}

impl Suggested {
    fn take(&mut self, candidate: Candidate, at: usize, seen: &Seen) {
        let mut conditions = Vec::new();
        let mut unknown = 0;
        for (number, (signal, asked)) in candidate.signals.into_iter().enumerate() {
            let none = (Vec::new(), 0);
            let (past, missed) = seen.get(&trial_name(at, number)).unwrap_or(&none);
            match limit(asked.unit, asked.bad, asked.samples, past) {
                Ok(limit) => {
                    unknown = unknown.max(*missed);
                    conditions.push((asked, signal, limit));
                }
                Err(why) => {
                    let missed = match missed {
                        0 => String::new(),
                        missed => format!("; {missed} could not be judged"),
                    };
                    self.left_out.push(format!(
                        "{}: {signal} is not suggested: {why}{missed}",
                        candidate.name
                    ));
                }
            }
        }
        if !conditions.is_empty() {
            self.assertions.push(Suggestion {
                name: candidate.name,
                subject: candidate.subject,
                conditions,
                unknown,
            });
        }
    }

    /// A file of them; empty without any.
    pub fn yaml(&self) -> String {
        if self.assertions.is_empty() {
            return String::new();
        }
        let mut text = format!(
            "# What held, with room: each limit is twice the worst window that was seen, or half of the least, and round.\n\
             # A window is a minute; one of fewer than {FEWEST_SAMPLES} samples says nothing. Read them before you keep them.\n\
             assertions:\n"
        );
        for suggestion in &self.assertions {
            text.push_str(&format!(
                "  - name: {}\n    {}\n    over: {OVER}\n",
                json!(suggestion.name),
                suggestion.subject.yaml("\n    ")
            ));
            if suggestion.unknown > 0 {
                text.push_str(&format!(
                    "    # {} windows could not be judged and are not counted\n",
                    suggestion.unknown
                ));
            }
            text.push_str("    expect:\n");
            for (asked, signal, limit) in &suggestion.conditions {
                let value = |value| value_text(asked.unit, value);
                let extreme = if asked.bad == Bad::Less { "least" } else { "worst" };
                text.push_str(&format!(
                    "      - {signal} {} # median {}, {extreme} {} of {} windows, {} samples\n",
                    limit.text,
                    value(limit.median),
                    value(limit.worst),
                    limit.windows,
                    limit.samples
                ));
            }
        }
        text
    }

    /// The same as objects, one for each condition.
    pub fn json(&self) -> Vec<Value> {
        let of = |suggestion: &Suggestion| {
            let each = suggestion.conditions.iter().map(|(_, signal, limit)| {
                let mut object = json!({
                    "assertion": suggestion.name, "expect": format!("{signal} {}", limit.text), "over": OVER,
                    "median": limit.median, "worst": limit.worst, "windows": limit.windows,
                    "windows_unknown": suggestion.unknown, "samples": limit.samples,
                });
                match &suggestion.subject {
                    Subject::Pair { from, to } => {
                        object["from"] = json!(from);
                        object["to"] = json!(to);
                    }
                    Subject::On(on) => object["on"] = json!(on),
                }
                object
            });
            each.collect::<Vec<_>>()
        };
        self.assertions.iter().flat_map(of).collect()
    }
}
