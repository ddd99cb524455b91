//! From a tree of YAML to assertions: every key is known, every value has the form that its key wants, and every name
//! means something. A key that would do nothing is an error.

pub mod receivers;
mod slo;
mod sql;
pub mod trial;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::condition::{self, Condition, Fault};
use super::document::{self, Node, Source, Value};
use super::evaluate::members_text;
use super::group::{self, ALL, Members};
use super::problem::{Problem, instead};
use super::receiver::label_name;
use super::signal::{End, Measure, Rows};
use super::{Assertion, Dimension, NoData, Origin, Pace, Quorum, Set, Subject, Target, TargetPlace};
use crate::filter::{Column, Filter, Network};

/// In all files together.
pub const MOST_ASSERTIONS: usize = 10_000;
pub const MOST_GROUPS: usize = 500;
pub const MOST_NODES: usize = 10_000;
/// Of one assertion. Each is held against all others.
pub const MOST_CONDITIONS: usize = 100;
/// That are told at once: nothing is read after so many.
pub const MOST_FAULTS: usize = 200;
const NAME_CHARS: usize = 120;

/// How long after a window's end its evidence may come, where the assertion does not say.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Bounds of how long nodes are expected: longer than it takes to tell that one is silent, and the reports of so long are looked
/// through every few seconds.
const SHORTEST_EXPECTATION: Duration = Duration::from_secs(60);
const LONGEST_EXPECTATION: Duration = Duration::from_secs(86_400);

/// A key of an assertion, for the parser, the documentation and the JSON schema.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    pub name: &'static str,
    pub shape: Shape,
    pub about: &'static str,
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Text,
    /// One or several.
    Texts,
    Time,
    Number,
    /// One of these.
    Word(&'static [&'static str]),
    TextMap,
}

const fn key(name: &'static str, shape: Shape, about: &'static str) -> Key {
    Key { name, shape, about }
}

/// The keys of an assertion.
#[rustfmt::skip]
pub static KEYS: [Key; 24] = [
    key("name", Shape::Text, "what it is called; unique in all files"),
    key("description", Shape::Text, "what it is for, for those who are woken up by it"),
    key("from", Shape::Text, "the clients: a group, or an expression over labels [all]"),
    key("to", Shape::Text, "where they connect to: a group, an address or a network, with a port behind a colon [anywhere]"),
    key("on", Shape::Text, "instead of from and to: the servers, or the nodes, with a port behind a colon"),
    key("where", Shape::Text, "only these rows, as in `holdfast connections --where`"),
    key("ignore", Shape::Text, "not these rows"),
    key("expect", Shape::Texts, "what has to be true of every window: one condition, or several"),
    key("slo", Shape::Text, "instead of `expect` and `over`: what is to hold in the long run, such as `connect.failed_ratio < 0.1%`; each rule of `burn` is an assertion of its own, called `NAME: RULE`"),
    key("burn", Shape::TextMap, "with `slo`: rules such as `page-1h: 14.4x over 1h and 5m` (the budget is used up so many times faster than it may be, in both windows), or `off`; they replace or extend [page-1h: 14.4x over 1h and 5m, page-6h: 6x over 6h and 30m, ticket-1d: 3x over 1d and 2h, ticket-3d: 1x over 3d and 6h]"),
    key("sql", Shape::Text, "a question of your own, for `expect: value < ...`: it reads only, has the window as {from:DateTime64(9, 'UTC')} and {until:DateTime64(9, 'UTC')}, and gives a column `value`; its other columns name the row"),
    key("over", Shape::Time, "how long a window is, from 1s to 1d"),
    key("every", Shape::Time, "how often a window is judged [500ms for windows up to 10s, 5s up to 5m, else 1m]"),
    key("by", Shape::Texts, "one verdict for each: from.node, to.node, on.node, service, comm, port"),
    key("for", Shape::Text, "how long it fails before it is violated: a time, or `3 of 5` windows [0s]"),
    key("clear_after", Shape::Time, "how long it holds before a violation is over [0s]"),
    key("hold", Shape::Time, "how long a violation lasts at least [0s]"),
    key("deadline", Shape::Time, "how long after a window's end its evidence may come, before it is Unknown [10s]"),
    key("min_samples", Shape::Number, "with fewer rows in the window it is Unknown [1 for ratios, times and the like, else 0]"),
    key("no_data", Shape::Word(&["unknown", "holds", "violated"]), "what a window means that has too few rows though everybody watched [unknown]"),
    key("quorum", Shape::Text, "one verdict for all keys of `by`: `>= 95% of nodes` have to hold"),
    key("severity", Shape::Text, "passed on with notifications"),
    key("labels", Shape::TextMap, "passed on with notifications"),
    key("runbook", Shape::Text, "passed on with notifications: what to do"),
];

/// The keys of a file.
pub static FILE_KEYS: [(&str, &str); 6] = [
    (
        "groups",
        "names for nodes: a group is an expression over labels, such as `role = web and zone in (a, b)`",
    ),
    ("assertions", "what should hold: a list"),
    (
        "tests",
        "what is said of made-up connections, for `holdfast test`: a list",
    ),
    ("receivers", "who is told when a verdict changes: a list"),
    (
        "nodes",
        "nodes that are missed also if nothing was ever heard of them, or not for as long as `expect_nodes_for` says, each with its labels until its agent tells its own: `web-1: { role: web }`",
    ),
    (
        "expect_nodes_for",
        "how long all other nodes are expected, and missed, after they were heard last: from 1m to 1d, no less than the longest `deadline`; in one of the files [1h]",
    ),
];

/// Reads files. `columns` tells what can be filtered by.
pub fn set(sources: &[Source<'_>], columns: impl Fn(Rows) -> Vec<Column>) -> Result<Set, Vec<Problem>> {
    let mut reader = Reader {
        columns: &columns,
        problems: Vec::new(),
        misses_groups: false,
        misses_assertions: false,
        set: Set::default(),
        groups: BTreeMap::new(),
        nodes: BTreeMap::new(),
        expectation: None,
        names: BTreeMap::new(),
        receivers: BTreeMap::new(),
    };
    let mut files = Vec::new();
    for &source in sources {
        match document::read(source) {
            Ok(Some(root)) => files.push((source, root)),
            Ok(None) => {}
            Err(problem) => {
                reader.problems.push(problem);
                reader.misses_all();
            }
        }
    }
    // Groups of every file come first: an assertion may name one of another file.
    for (source, root) in &files {
        let outcome = reader.file(*source, root);
        reader.keep(outcome);
    }
    reader.check_groups();
    for (source, root) in &files {
        reader.assertions(*source, root);
    }
    reader.check_expectation();
    for (source, root) in &files {
        reader.trials(*source, root);
        reader.receivers(*source, root);
    }
    reader.problems.truncate(MOST_FAULTS);
    if reader.problems.is_empty() {
        Ok(reader.set)
    } else {
        Err(reader.problems)
    }
}

struct Reader<'a, F> {
    columns: &'a F,
    problems: Vec<Problem>,
    /// Groups may be declared where it could not be read, so one that is not known may be there.
    misses_groups: bool,
    /// Likewise of assertions.
    misses_assertions: bool,
    set: Set,
    /// Where each group is defined.
    groups: BTreeMap<String, (Source<'a>, &'a Node)>,
    /// Where each node is declared.
    nodes: BTreeMap<String, Origin>,
    /// Where it is said how long nodes are expected.
    expectation: Option<(Source<'a>, &'a Node)>,
    /// Where each assertion is.
    names: BTreeMap<String, Origin>,
    /// Where each receiver is.
    receivers: BTreeMap<String, Origin>,
}

impl<'a, F: Fn(Rows) -> Vec<Column>> Reader<'a, F> {
    fn keep<T>(&mut self, outcome: Result<T, Problem>) -> Option<T> {
        outcome.map_err(|problem| self.problems.push(problem)).ok()
    }

    /// Whether more faults than these would not be told.
    fn is_enough(&self) -> bool {
        self.problems.len() >= MOST_FAULTS
    }

    fn misses_all(&mut self) {
        (self.misses_groups, self.misses_assertions) = (true, true);
    }

    fn file(&mut self, source: Source<'a>, root: &'a Node) -> Result<(), Problem> {
        let entries = entries(source, root, "a file of assertions").inspect_err(|_| self.misses_all())?;
        let known = FILE_KEYS.map(|(name, _)| name);
        if !self.check_keys(source, entries, &known) {
            self.misses_all();
        }
        if let Some(nodes) = find(entries, "nodes") {
            let outcome = self::entries(source, nodes, "`nodes`");
            for (name, labels) in self.keep(outcome).unwrap_or_default() {
                if self.is_enough() {
                    break;
                }
                let outcome = self.node(source, name, labels);
                self.keep(outcome);
            }
        }
        if let Some(time) = find(entries, "expect_nodes_for") {
            let outcome = self.expectation(source, time);
            self.keep(outcome);
        }
        let Some(groups) = find(entries, "groups") else {
            return Ok(());
        };
        let groups = self::entries(source, groups, "`groups`").inspect_err(|_| self.misses_groups = true)?;
        for (name, definition) in groups {
            if self.is_enough() {
                break;
            }
            let outcome = self.group(source, name, definition);
            self.keep(outcome);
        }
        Ok(())
    }

    /// Whether all of these keys are known. Each that is not is told.
    fn check_keys(&mut self, source: Source<'a>, entries: &[(Node, Node)], known: &[&str]) -> bool {
        let before = self.problems.len();
        for (name, _) in entries {
            if self.is_enough() {
                break;
            }
            let Some(text) = self.keep(text(source, name)) else {
                continue;
            };
            if !known.contains(&text) {
                let message = format!("unknown key `{text}`, {}", instead(text, known.iter().copied()));
                self.problems.push(source.problem(name.place, message));
            }
        }
        self.problems.len() == before
    }

    fn group(&mut self, source: Source<'a>, name: &'a Node, definition: &'a Node) -> Result<(), Problem> {
        let name_text = checked_name(source, name).inspect_err(|_| self.misses_groups = true)?;
        if name_text == ALL {
            return Err(source.problem(name.place, "`all` is every node, and needs no definition"));
        }
        if let Some((other, earlier)) = self.groups.get(name_text) {
            let (file, line) = (other.file, earlier.place.line);
            let message = format!("the group `{name_text}` is defined in {file}, line {line} already");
            return Err(source.problem(name.place, message));
        }
        if self.groups.len() == MOST_GROUPS {
            self.misses_groups = true;
            return Err(source.problem(name.place, format!("more than {MOST_GROUPS} groups")));
        }
        let members = members(source, definition);
        // One that is wrong is there all the same, for those that name it.
        let nobody = Members::Or(Vec::new());
        self.groups.insert(name_text.to_owned(), (source, definition));
        self.set.groups.insert(
            name_text.to_owned(),
            members.as_ref().map_or(nobody, Members::clone),
        );
        members.map(|_| ())
    }

    fn node(&mut self, source: Source<'a>, name: &'a Node, labels: &'a Node) -> Result<(), Problem> {
        let name_text = checked_name(source, name)?;
        if let Some(earlier) = self.nodes.get(name_text) {
            let message = format!(
                "the node `{name_text}` is declared in {}, line {} already",
                earlier.file, earlier.place.line
            );
            return Err(source.problem(name.place, message));
        }
        if self.nodes.len() == MOST_NODES {
            return Err(source.problem(name.place, format!("more than {MOST_NODES} nodes")));
        }
        let labels = text_map(source, entries(source, labels, &format!("`{name_text}`"))?)?;
        let origin = Origin {
            file: source.file.to_owned(),
            place: name.place,
        };
        self.nodes.insert(name_text.to_owned(), origin);
        self.set.nodes.insert(name_text.to_owned(), labels);
        Ok(())
    }

    fn expectation(&mut self, source: Source<'a>, node: &'a Node) -> Result<(), Problem> {
        if let Some((other, earlier)) = self.expectation {
            let (file, line) = (other.file, earlier.place.line);
            let message =
                format!("`expect_nodes_for` is in {file}, line {line} already, and holds for all files");
            return Err(source.problem(node.place, message));
        }
        self.expectation = Some((source, node));
        let text = text(source, node)?;
        let wrong = |expected: &str| source.problem(node.place, format!("`expect_nodes_for` is {expected}"));
        let time = condition::duration_of_any_length(text).ok_or_else(|| {
            wrong(&format!(
                "a time with its unit, such as 30m or 6h; `{text}` is none"
            ))
        })?;
        if !(SHORTEST_EXPECTATION..=LONGEST_EXPECTATION).contains(&time) {
            return Err(wrong(
                "from 1m to 1d: a node that is to be missed for longer is declared, under `nodes`",
            ));
        }
        self.set.expect_nodes_for = Some(time);
        Ok(())
    }

    /// A node that is silent is told to be, before it is not expected any more.
    fn check_expectation(&mut self) {
        let Some((source, node)) = self.expectation else {
            return;
        };
        let longest = self
            .set
            .assertions
            .iter()
            .max_by_key(|assertion| assertion.deadline);
        let Some(longest) = longest.filter(|longest| longest.deadline > self.set.expected_for()) else {
            return;
        };
        let message = format!(
            "`expect_nodes_for` is no less than the longest `deadline`, which is {} of `{}`",
            condition::duration_text(longest.deadline),
            longest.name
        );
        self.problems.push(source.problem(node.place, message));
    }

    fn check_groups(&mut self) {
        if self.misses_groups {
            return;
        }
        let Some((name, fault)) = group::fault(&self.set.groups) else {
            return;
        };
        if let Some((source, definition)) = self.groups.get(&name) {
            let problem = source.problem_within(definition, fault.character, fault.message);
            self.problems.push(problem);
        }
        // What names it would be told of the same fault again.
        for name in self.set.groups.keys().cloned().collect::<Vec<_>>() {
            self.set.groups.insert(name, Members::Or(Vec::new()));
        }
    }

    /// What a file lists under a key of its own; nothing if that is left out.
    fn items(&mut self, source: Source<'a>, root: &'a Node, key: &str) -> &'a [Node] {
        let Value::Map(entries) = &root.value else {
            return &[];
        };
        let Some(list) = find(entries, key) else {
            return &[];
        };
        match &list.value {
            Value::List(items) => items,
            Value::Empty => &[],
            _ => {
                let message = format!("`{key}` is a list (`- name: ...`), this is {}", list.what());
                self.problems.push(source.problem(list.place, message));
                self.misses_assertions |= key == "assertions";
                &[]
            }
        }
    }

    fn assertions(&mut self, source: Source<'a>, root: &'a Node) {
        for item in self.items(source, root, "assertions") {
            if self.is_enough() {
                break;
            }
            let before = self.problems.len();
            let assertions = self.assertion(source, item);
            let problems = &mut self.problems[before..];
            problems.sort_by_key(|problem| (problem.place.line, problem.place.column));
            if problems.is_empty() {
                self.set.assertions.extend(assertions.into_iter().flatten());
            }
        }
    }

    /// One, or one for each rule of an objective. Each key is read for itself, so that all that is wrong with them is told at
    /// once; what depends on a key that is wrong is not looked at.
    fn assertion(&mut self, source: Source<'a>, item: &'a Node) -> Option<Vec<Assertion>> {
        let Some(entries) = self.keep(entries(source, item, "an assertion")) else {
            self.misses_assertions = true;
            return None;
        };
        let known = KEYS.map(|key| key.name);
        let is_known = self.check_keys(source, entries, &known);
        let fields = Fields {
            source,
            item,
            entries,
        };
        // What is missing may be what stands under a key that nobody knows.
        let is_due = |key: &str| is_known || fields.get(key).is_some();

        let name = match is_due("name") {
            true => {
                let outcome = self.name(&fields);
                self.keep(outcome)
            }
            false => None,
        };
        self.misses_assertions |= name.is_none();
        let burns = slo::rules(&fields);
        let burns = burns.map_err(|problems| self.problems.extend(problems)).ok();
        let sql = self.keep(sql::question(&fields));
        let expect = match burns.as_ref().and_then(|burns| burns.first()) {
            Some(burn) => Some(burn.conditions.to_vec()),
            None if fields.get("slo").is_some() || !is_due("expect") => None,
            None => self.expect(&fields),
        };
        let expect = expect.filter(|expect| {
            let outcome = sql::check_conditions(&fields, expect, fields.get("sql").is_some());
            self.keep(outcome).is_some()
        });
        let are_places = self.check_places(&fields);
        let subject = match (&expect, &sql) {
            (Some(expect), Some(_)) if are_places => {
                let outcome = self.subject(&fields, expect);
                self.keep(outcome)
            }
            _ => None,
        };
        let window = match burns.as_ref().and_then(|burns| burns.first()) {
            Some(burn) => Some((burn.long, slo::EVERY)),
            None if fields.get("slo").is_some() => None,
            None => {
                let over = match is_due("over") {
                    true => self.keep(over(&fields, expect.as_deref().unwrap_or_default())),
                    false => None,
                };
                let every = match over {
                    Some(over) => self.keep(every(&fields, over)),
                    None => self.keep(fields.time("every")).flatten(),
                };
                over.zip(every)
            }
        };
        let dimensions = self.keep(dimensions(&fields));
        let by = match (dimensions, &subject, &expect) {
            (Some(dimensions), Some(subject), Some(expect)) => {
                self.keep(by(&fields, dimensions, subject, expect))
            }
            _ => None,
        };
        let share = self.keep(quorum_share(&fields));
        let quorum = match (share, &by) {
            (Some(share), Some(by)) => self.keep(quorum(&fields, share, by)),
            _ => None,
        };
        let filter = expect.as_ref().and_then(|expect| {
            let wanted = self.filter(&fields, "where", expect);
            let ignored = self.filter(&fields, "ignore", expect);
            let (wanted, ignored) = (self.keep(wanted), self.keep(ignored));
            let (wanted, ignored) = (wanted?, ignored?);
            let ignored = ignored.map(|filter| Filter::Not(Box::new(filter)));
            Some(match (wanted, ignored) {
                (Some(wanted), Some(ignored)) => Some(Filter::And(vec![wanted, ignored])),
                (one, other) => one.or(other),
            })
        });
        let pace = self.keep(pace(&fields));
        let [clear_after, hold] =
            ["clear_after", "hold"].map(|key| self.keep(fields.time(key)).map(Option::unwrap_or_default));
        let deadline = self.keep(deadline(&fields));
        let min_samples = self.keep(fields.number("min_samples"));
        let no_data = self.keep(fields.word("no_data"));
        let [description, severity, runbook] =
            ["description", "severity", "runbook"].map(|key| self.keep(fields.text_or(key, "")));
        let labels = self.labels(&fields);

        let (name, origin) = name?;
        let (over, every) = window?;
        let subject = subject?;
        let groups = self.groups_of(&subject);
        let assertion = Assertion {
            name,
            description: description?,
            subject,
            filter: filter?,
            min_samples: min_samples?.unwrap_or(0),
            expect: expect?,
            over,
            burn: None,
            sql: sql?,
            every,
            by: by?,
            pace: pace?,
            clear_after: clear_after?,
            hold: hold?,
            deadline: deadline?,
            no_data: match no_data? {
                Some("holds") => NoData::Holds,
                Some("violated") => NoData::Violated,
                _ => NoData::Unknown,
            },
            quorum: quorum?,
            severity: severity?,
            labels: labels?,
            runbook: runbook?,
            groups,
            origin,
        };
        let burns = burns?;
        if burns.is_empty() {
            return Some(vec![assertion]);
        }
        let parts: Vec<_> = burns.iter().map(|burn| slo::part(&assertion, burn)).collect();
        for part in &parts {
            let outcome = self.claim_name(source, &part.name, &part.origin);
            self.keep(outcome)?;
        }
        Some(parts)
    }

    fn name(&mut self, fields: &Fields<'a>) -> Result<(String, Origin), Problem> {
        let node = fields.needed("name")?;
        let name = checked_name(fields.source, node)?;
        if self.names.len() == MOST_ASSERTIONS {
            let message = format!("more than {MOST_ASSERTIONS} assertions");
            return Err(fields.source.problem(node.place, message));
        }
        let origin = Origin {
            file: fields.source.file.to_owned(),
            place: node.place,
        };
        self.claim_name(fields.source, name, &origin)?;
        Ok((name.to_owned(), origin))
    }

    fn claim_name(&mut self, source: Source<'_>, name: &str, origin: &Origin) -> Result<(), Problem> {
        if let Some(earlier) = self.names.get(name) {
            let (file, line) = (&earlier.file, earlier.place.line);
            let message = format!("the assertion `{name}` is in {file}, line {line} already");
            return Err(source.problem(origin.place, message));
        }
        self.names.insert(name.to_owned(), origin.clone());
        Ok(())
    }

    /// All of them, or what is wrong with each.
    fn expect(&mut self, fields: &Fields<'a>) -> Option<Vec<Condition>> {
        let source = fields.source;
        let node = self.keep(fields.needed("expect"))?;
        let place = node.place;
        let lines = fields.texts("expect");
        if lines.is_empty() || node.value == Value::Empty {
            let problem = source.problem(place, "`expect` is empty: nothing would be asserted");
            self.problems.push(problem);
            return None;
        }
        let count = lines.len();
        if let Some(node) = lines.get(MOST_CONDITIONS) {
            let message = format!("`expect` has at most {MOST_CONDITIONS} conditions, this one has {count}");
            self.problems.push(source.problem(node.place, message));
            return None;
        }
        let mut known: Vec<Condition> = Vec::with_capacity(count);
        for node in lines {
            let read = text(source, node)
                .and_then(|text| Condition::parse(text).map_err(|fault| within(source, node, fault)));
            let Some(condition) = self.keep(read) else {
                continue;
            };
            if let Some(other) = known.iter().find(|other| other.contradicts(&condition)) {
                let message = format!("`{condition}` and `{other}` can never hold together");
                self.problems.push(source.problem(node.place, message));
                continue;
            }
            known.push(condition);
        }
        (known.len() == count).then_some(known)
    }

    /// Whether each place that is named can be one.
    fn check_places(&mut self, fields: &Fields<'a>) -> bool {
        let from = fields
            .get("from")
            .map(|node| self.members(fields.source, node).map(|_| ()));
        let [to, on] = ["to", "on"].map(|key| {
            let node = fields.get(key)?;
            Some(self.target(fields.source, node).map(|_| ()))
        });
        let mut are_right = true;
        for outcome in [from, to, on].into_iter().flatten() {
            are_right &= self.keep(outcome).is_some();
        }
        are_right
    }

    /// What is passed on with notifications, under names of its own.
    fn labels(&mut self, fields: &Fields<'a>) -> Option<BTreeMap<String, String>> {
        let labels = self.keep(fields.text_map("labels"))?;
        let names: Vec<&Node> = match fields.get("labels").map(|node| &node.value) {
            Some(Value::Map(entries)) => entries.iter().map(|(name, _)| name).collect(),
            _ => Vec::new(),
        };
        let mut passed_on: BTreeMap<String, &str> = BTreeMap::new();
        let before = self.problems.len();
        for node in names {
            if self.is_enough() {
                break;
            }
            let name = self.keep(text(fields.source, node))?;
            let message = if name.trim().is_empty() {
                "a label has a name".to_owned()
            } else if let Some((_, about)) = RESERVED_LABELS.iter().find(|(reserved, _)| *reserved == name) {
                format!("`{name}` is {about} in notifications: give this label another name")
            } else if let Some(other) = passed_on.insert(label_name(name), name) {
                format!(
                    "for an Alertmanager `{name}` and `{other}` are one label: give this one another name"
                )
            } else {
                continue;
            };
            self.problems.push(fields.source.problem(node.place, message));
        }
        (self.problems.len() == before).then_some(labels)
    }

    fn subject(&self, fields: &Fields<'_>, expect: &[Condition]) -> Result<Subject, Problem> {
        let (from, to, on) = (fields.get("from"), fields.get("to"), fields.get("on"));
        let of_nodes = expect
            .iter()
            .find(|condition| !matches!(condition.signal.signal.end, End::Either | End::Target));
        let all = || Members::Group {
            name: ALL.to_owned(),
            character: 0,
        };
        let is_of_agents = expect
            .iter()
            .any(|condition| !condition.signal.signal.rows.has_port());
        if let (Some(condition), Some(node)) = (of_nodes, from.or(to)) {
            let signal = condition.signal;
            let message = format!("`{signal}` is read at {}: use `on`", signal.signal.end.about());
            return Err(fields.source.problem(node.place, message));
        }
        if let (Some(node), Some(_)) = (to, on) {
            return Err(fields.source.problem(
                node.place,
                "`to` is where clients connect to, `on` the end that listens: use one of them",
            ));
        }
        let members_of = |node: Option<&Node>| node.map(|node| self.members(fields.source, node)).transpose();
        if on.is_none() && of_nodes.is_none() {
            return Ok(Subject::Client {
                from: members_of(from)?.unwrap_or_else(all),
                to: match to {
                    Some(node) => self.target(fields.source, node)?,
                    None => Target::default(),
                },
            })
            .and_then(|subject| seen_at_target(fields, expect, subject));
        }
        let Target { place, port } = match on {
            Some(node) => self.target(fields.source, node)?,
            None => Target::default(),
        };
        let on_members = match place {
            None => all(),
            Some(TargetPlace::Nodes(members)) => members,
            Some(_) => {
                return Err(fields.wrong("on", "a group of nodes, not an address: agents look at nodes"));
            }
        };
        if port.is_some() && is_of_agents {
            return Err(fields.wrong("on", "a group without a port: what is asserted has none"));
        }
        Ok(Subject::Server {
            on: on_members,
            port,
            from: members_of(from)?,
        })
    }

    /// What the groups that a subject names are declared as.
    fn groups_of(&self, subject: &Subject) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut left: Vec<&Members> = match subject {
            Subject::Client { from, to } => match &to.place {
                Some(TargetPlace::Nodes(members)) => vec![from, members],
                _ => vec![from],
            },
            Subject::Server { on, from, .. } => [on].into_iter().chain(from).collect(),
        };
        while let Some(members) = left.pop() {
            for (name, _) in members.groups() {
                if let Some(declared) = self.set.groups.get(name)
                    && found.insert(name.to_owned(), members_text(declared)).is_none()
                {
                    left.push(declared);
                }
            }
        }
        found
    }

    fn members(&self, source: Source<'_>, node: &Node) -> Result<Members, Problem> {
        let members = members(source, node)?;
        self.check_members(source, node, &members)?;
        Ok(members)
    }

    fn check_members(&self, source: Source<'_>, node: &Node, members: &Members) -> Result<(), Problem> {
        for (name, character) in members.groups() {
            if name != ALL && !self.set.groups.contains_key(name) && !self.misses_groups {
                let known = self.set.groups.keys().map(String::as_str).chain([ALL]);
                let message = format!(
                    "there is no group `{name}`, {}; one node is `node = {name}`",
                    instead(name, known).trim_end_matches('?')
                );
                return Err(source.problem_within(node, character, message));
            }
        }
        Ok(())
    }

    /// `db:5432`, `10.0.0.0/8`, `[fd00::1]:443`, `role = db:5432`.
    fn target(&self, source: Source<'_>, node: &Node) -> Result<Target, Problem> {
        let text = text(source, node)?;
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Target {
                place: Some(TargetPlace::Address(address)),
                port: None,
            });
        }
        let (place, port) = match text.rsplit_once(':') {
            Some((place, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
                let number = port
                    .parse::<u16>()
                    .ok()
                    .filter(|port| *port != 0)
                    .ok_or_else(|| {
                        let at = place.chars().count() + 1;
                        source.problem_within(node, at, format!("a port is from 1 to 65535, {port} is not"))
                    })?;
                (place.trim_end(), Some(number))
            }
            _ => (text, None),
        };
        let bare = place
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(place);
        let place = if let Ok(address) = bare.parse::<IpAddr>() {
            TargetPlace::Address(address)
        } else if let Some(network) = bare
            .split_once('/')
            .and_then(|(address, bits)| network(address, bits))
        {
            TargetPlace::Network(network.map_err(|message| source.problem(node.place, message))?)
        } else {
            let members = Members::parse(place).map_err(|fault| within(source, node, fault))?;
            self.check_members(source, node, &members)?;
            TargetPlace::Nodes(members)
        };
        Ok(Target {
            place: Some(place),
            port,
        })
    }

    /// The rows that `where` or `ignore` choose; nothing where it is left out.
    fn filter(
        &self,
        fields: &Fields<'_>,
        key: &str,
        expect: &[Condition],
    ) -> Result<Option<Filter>, Problem> {
        let kinds: BTreeSet<Rows> = expect
            .iter()
            .filter(|condition| condition.signal.signal.end != End::Target)
            .map(|condition| condition.signal.signal.rows)
            .collect();
        let Some(node) = fields.get(key) else {
            return Ok(None);
        };
        let text = text(fields.source, node)?;
        let mut filter = None;
        for &rows in &kinds {
            if matches!(rows, Rows::Agents | Rows::Namespaces | Rows::Overhead | Rows::Sql) {
                let message = format!("`{key}` chooses rows, and what is asserted is not made of rows");
                return Err(fields.source.problem(node.place, message));
            }
            let found = Filter::parse(text, &(self.columns)(rows)).map_err(|error| {
                let mut problem = fields
                    .source
                    .problem_within(node, error.column - 1, error.message);
                if error.line > 1 {
                    problem = fields.source.problem(node.place, problem.message);
                }
                problem
            })?;
            filter = Some(found);
        }
        Ok(filter)
    }
}

/// What a notification says under a name of its own, or a receiver and a silence ask for by it.
pub const RESERVED_LABELS: [(&str, &str); 5] = [
    ("alertname", "the assertion"),
    ("assertion", "the assertion"),
    ("key", "the key of the verdict"),
    ("severity", "the `severity` of the assertion"),
    ("verdict", "the verdict"),
];

/// What the listeners tell can only be had where it is known whose they are.
fn seen_at_target(fields: &Fields<'_>, expect: &[Condition], subject: Subject) -> Result<Subject, Problem> {
    let of_target = expect
        .iter()
        .find(|condition| condition.signal.signal.end == End::Target);
    let names_nodes = matches!(
        &subject,
        Subject::Client {
            to: Target {
                place: Some(TargetPlace::Nodes(_)),
                ..
            },
            ..
        }
    );
    match of_target {
        Some(condition) if !names_nodes => {
            let signal = condition.signal;
            let place = fields.get("to").map_or(fields.item.place, |node| node.place);
            let message =
                format!("`{signal}` is seen on the nodes that are connected to: `to` has to name them");
            Err(fields.source.problem(place, message))
        }
        _ => Ok(subject),
    }
}

impl Rows {
    /// Whether they are told apart by the listener's port.
    fn has_port(self) -> bool {
        matches!(
            self,
            Self::Attempts | Self::Connections | Self::Listeners | Self::Open
        )
    }

    /// Whether they are told apart by who it was.
    fn has_owner(self) -> bool {
        self.has_port() || self == Self::Syscalls
    }
}

/// The keys of one assertion.
struct Fields<'a> {
    source: Source<'a>,
    item: &'a Node,
    entries: &'a [(Node, Node)],
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Node> {
        find(self.entries, key)
    }

    fn needed(&self, key: &str) -> Result<&'a Node, Problem> {
        self.get(key).ok_or_else(|| {
            let place = self.item.place;
            self.source
                .problem(place, format!("this assertion has no `{key}`"))
        })
    }

    fn wrong(&self, key: &str, expected: &str) -> Problem {
        let place = self.get(key).map_or(self.item.place, |node| node.place);
        self.source.problem(place, format!("`{key}` is {expected}"))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        self.get(key).map(|node| text(self.source, node)).transpose()
    }

    fn text_or(&self, key: &str, default: &str) -> Result<String, Problem> {
        Ok(self.text(key)?.unwrap_or(default).to_owned())
    }

    fn time(&self, key: &str) -> Result<Option<Duration>, Problem> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        match condition::duration_of_any_length(text) {
            Some(time) if time <= condition::LONGEST => Ok(Some(time)),
            Some(_) => Err(self.too_long(key, text)),
            None => Err(self.wrong(
                key,
                &format!("a time with its unit, such as 30s or 5m; `{text}` is none"),
            )),
        }
    }

    fn too_long(&self, key: &str, text: &str) -> Problem {
        let longest = condition::duration_text(condition::LONGEST);
        self.wrong(key, &format!("{longest} at most; `{text}` is longer"))
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Problem> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(self.wrong(key, &format!("a whole number, `{text}` is none"))),
        }
    }

    fn word(&self, key: &str) -> Result<Option<&'a str>, Problem> {
        let Some(text) = self.text(key)? else {
            return Ok(None);
        };
        let shape = KEYS
            .iter()
            .find(|known| known.name == key)
            .map(|known| known.shape);
        let Some(Shape::Word(words)) = shape else {
            return Ok(None);
        };
        if words.contains(&text) {
            return Ok(Some(text));
        }
        Err(self.wrong(key, &format!("one of {}; `{text}` is none", words.join(", "))))
    }

    fn text_map(&self, key: &str) -> Result<BTreeMap<String, String>, Problem> {
        let Some(node) = self.get(key) else {
            return Ok(BTreeMap::new());
        };
        text_map(self.source, entries(self.source, node, &format!("`{key}`"))?)
    }

    /// One text, or a list of them.
    fn texts(&self, key: &str) -> Vec<&'a Node> {
        match self.get(key) {
            None => Vec::new(),
            Some(Node {
                value: Value::List(items),
                ..
            }) => items.iter().collect(),
            Some(node) => vec![node],
        }
    }
}

fn find<'a>(entries: &'a [(Node, Node)], key: &str) -> Option<&'a Node> {
    let is_named = |name: &Node| matches!(&name.value, Value::Scalar { text, .. } if text == key);
    entries
        .iter()
        .find(|(name, _)| is_named(name))
        .map(|(_, node)| node)
}

fn entries<'a>(source: Source<'_>, node: &'a Node, what: &str) -> Result<&'a [(Node, Node)], Problem> {
    match &node.value {
        Value::Map(entries) => Ok(entries),
        Value::Empty => Ok(&[]),
        _ => Err(source.problem(
            node.place,
            format!("{what} is keys and values, this is {}", node.what()),
        )),
    }
}

fn text_map(source: Source<'_>, entries: &[(Node, Node)]) -> Result<BTreeMap<String, String>, Problem> {
    let texts =
        |(name, value): &(Node, Node)| Ok((text(source, name)?.to_owned(), text(source, value)?.to_owned()));
    entries.iter().map(texts).collect()
}

fn text<'a>(source: Source<'_>, node: &'a Node) -> Result<&'a str, Problem> {
    match &node.value {
        Value::Scalar { text, .. } => Ok(text),
        _ => Err(source.problem(node.place, format!("expected a text, this is {}", node.what()))),
    }
}

fn checked_name<'a>(source: Source<'_>, node: &'a Node) -> Result<&'a str, Problem> {
    let name = text(source, node)?;
    if name.trim() != name || name.is_empty() || name.chars().any(char::is_control) {
        return Err(source.problem(node.place, "a name is a line of text without blanks around it"));
    }
    if name.chars().count() > NAME_CHARS {
        return Err(source.problem(node.place, format!("a name has at most {NAME_CHARS} characters")));
    }
    Ok(name)
}

fn within(source: Source<'_>, node: &Node, fault: Fault) -> Problem {
    source.problem_within(node, fault.character, fault.message)
}

fn members(source: Source<'_>, node: &Node) -> Result<Members, Problem> {
    Members::parse(text(source, node)?).map_err(|fault| within(source, node, fault))
}

/// `None`: it does not look like one.
fn network(address: &str, bits: &str) -> Option<Result<Network, String>> {
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let Some(bits) = bits.parse::<u8>().ok().filter(|bits| *bits <= most) else {
        return Some(Err(format!(
            "a network has a number of bits from 0 to {most}, {bits:?} is none"
        )));
    };
    Some(Ok(Network { address, bits }))
}

fn over(fields: &Fields<'_>, expect: &[Condition]) -> Result<Duration, Problem> {
    fields.needed("over")?;
    // Its own bounds are narrower than those of every time.
    let over = fields.text("over")?.and_then(condition::duration_of_any_length);
    let over = match over {
        Some(over) => over,
        None => fields.time("over")?.unwrap_or_default(),
    };
    if !(Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&over) {
        return Err(fields.wrong("over", "from 1s to 1d"));
    }
    for condition in expect {
        let signal = condition.signal;
        let least = signal.signal.least_window();
        if over < least {
            let least = condition::duration_text(least);
            let expected = format!("at least {least} for `{signal}`: agents look at it from time to time");
            return Err(fields.wrong("over", &expected));
        }
    }
    Ok(over)
}

fn every(fields: &Fields<'_>, over: Duration) -> Result<Duration, Problem> {
    let Some(every) = fields.time("every")? else {
        return Ok(default_every(over));
    };
    let least = Duration::from_millis(500);
    if every < least || every > over || !every.as_millis().is_multiple_of(500) {
        return Err(fields.wrong(
            "every",
            "from 500ms to the window's length, in half seconds: what is between would be missed",
        ));
    }
    Ok(every)
}

/// How often windows of this length are judged.
pub fn default_every(over: Duration) -> Duration {
    match over.as_secs() {
        0..=10 => Duration::from_millis(500),
        11..=300 => Duration::from_secs(5),
        _ => Duration::from_secs(60),
    }
}

/// What `by` names, and where.
fn dimensions<'a>(fields: &Fields<'a>) -> Result<Vec<(Dimension, &'a Node)>, Problem> {
    let mut by: Vec<(Dimension, &Node)> = Vec::new();
    for node in fields.texts("by") {
        let name = text(fields.source, node)?;
        let fault = |message: String| Err(fields.source.problem(node.place, message));
        let Some(dimension) = Dimension::ALL.into_iter().find(|known| known.name() == name) else {
            let known = Dimension::ALL.map(Dimension::name);
            return fault(format!(
                "there is no dimension `{name}`, {}",
                instead(name, known.into_iter())
            ));
        };
        if by.iter().any(|(known, _)| *known == dimension) {
            return fault(format!("`{name}` is there twice"));
        }
        by.push((dimension, node));
    }
    Ok(by)
}

fn by(
    fields: &Fields<'_>,
    dimensions: Vec<(Dimension, &Node)>,
    subject: &Subject,
    expect: &[Condition],
) -> Result<Vec<Dimension>, Problem> {
    let mut by = Vec::new();
    for (dimension, node) in dimensions {
        let fault = |message: String| Err(fields.source.problem(node.place, message));
        let fits = match (dimension, subject) {
            (Dimension::FromNode | Dimension::ToNode, Subject::Client { .. })
            | (Dimension::OnNode, Subject::Server { .. }) => true,
            (Dimension::FromNode, Subject::Server { .. }) => expect
                .iter()
                .all(|condition| condition.signal.signal.end == End::Either),
            (Dimension::OnNode, Subject::Client { .. }) => {
                return fault("`on.node` needs `on`; here it is from.node or to.node".into());
            }
            (Dimension::ToNode, Subject::Server { .. }) => {
                return fault("`to.node` needs `to`; here it is on.node".into());
            }
            (Dimension::Service | Dimension::Comm, _) => expect
                .iter()
                .all(|condition| condition.signal.signal.rows.has_owner()),
            (Dimension::Port, _) => expect
                .iter()
                .all(|condition| condition.signal.signal.rows.has_port()),
        };
        if !fits {
            let name = dimension.name();
            return fault(format!("what is asserted cannot be told apart by `{name}`"));
        }
        by.push(dimension);
    }
    Ok(by)
}

fn pace(fields: &Fields<'_>) -> Result<Pace, Problem> {
    let Some(text) = fields.text("for")? else {
        return Ok(Pace::For(Duration::ZERO));
    };
    if let Some((failures, windows)) = text.split_once(" of ") {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        return match (number(failures), number(windows)) {
            (Some(failures), Some(windows)) if 1 <= failures && failures <= windows && windows <= 64 => {
                Ok(Pace::Of { failures, windows })
            }
            _ => Err(fields.wrong(
                "for",
                &format!("like `3 of 5`, of 64 windows at most; `{text}` is not"),
            )),
        };
    }
    match condition::duration_of_any_length(text) {
        Some(time) if time <= condition::LONGEST => Ok(Pace::For(time)),
        Some(_) => Err(fields.too_long("for", text)),
        None => Err(fields.wrong(
            "for",
            &format!("a time such as 2m, or `3 of 5` windows; `{text}` is neither"),
        )),
    }
}

fn deadline(fields: &Fields<'_>) -> Result<Duration, Problem> {
    let deadline = fields.time("deadline")?.unwrap_or(DEADLINE);
    if !(Duration::from_secs(1)..=Duration::from_secs(600)).contains(&deadline) {
        return Err(fields.wrong(
            "deadline",
            "from 1s to 10m: evidence takes a second or two to come",
        ));
    }
    Ok(deadline)
}

/// Of `>= 95% of nodes`, 0.95.
fn quorum_share(fields: &Fields<'_>) -> Result<Option<f64>, Problem> {
    let Some(text) = fields.text("quorum")? else {
        return Ok(None);
    };
    let wrong = || fields.wrong("quorum", &format!("like `>= 95% of nodes`; `{text}` is not"));
    let rest = text.strip_prefix(">=").ok_or_else(wrong)?.trim_start();
    let (percent, rest) = rest.split_once('%').ok_or_else(wrong)?;
    let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
    if rest.trim() != "of nodes" || !(percent > 0.0 && percent <= 100.0) {
        return Err(wrong());
    }
    Ok(Some(percent / 100.0))
}

fn quorum(fields: &Fields<'_>, share: Option<f64>, by: &[Dimension]) -> Result<Option<Quorum>, Problem> {
    let Some(share) = share else { return Ok(None) };
    match by {
        [Dimension::FromNode | Dimension::ToNode | Dimension::OnNode] => Ok(Some(Quorum { share })),
        _ => Err(fields.wrong(
            "quorum",
            "a share of nodes: it needs `by` with one of from.node, to.node, on.node",
        )),
    }
}

impl Condition {
    /// Whether nothing at all is no value: a sum is zero then, and nothing else is anything. A listener is seen by every
    /// look, so where there is none, nobody looked or nobody listened.
    pub fn needs_rows(&self) -> bool {
        !matches!(
            self.signal.signal.measure,
            Measure::Sum(_) | Measure::PerSecond(_) | Measure::Agent(_)
        ) || self.signal.signal.rows == Rows::Listeners
    }
}

#[cfg(test)]
#[path = "parse/tests.rs"]
mod tests;
