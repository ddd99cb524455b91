//! The `tests:` of a file: `web-1 -> db-1: "5ms x60s, refused x180s"`, and what is expected when.

use std::time::Duration;

use super::{Fields, Reader, entries, find, text};
use crate::assertion::condition::duration;
use crate::assertion::document::{Node, Source, Value};
use crate::assertion::problem::{Place, Problem, instead};
use crate::assertion::signal::Rows;
use crate::assertion::state::Verdict;
use crate::filter::Column;

/// Longest past of a test.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// A test of one assertion.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    pub assertion: String,
    /// Never empty.
    pub links: Vec<Link>,
    pub expect: Vec<(Duration, Verdict)>,
    pub file: String,
    pub place: Place,
}

/// What happens between two nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub from: String,
    pub to: String,
    /// One after another.
    pub spans: Vec<(Event, Duration)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Connections that are established after so long.
    Established(Duration),
    Refused,
    TimedOut,
    Reset,
    Unreachable,
    /// The server's queue of connections that wait for accept() is full: attempts are dropped, and time out.
    QueueFull,
    /// Nobody connects, and the agents say so.
    Nothing,
    /// Nothing is heard of the client's agent.
    Silent,
    /// The client's agent reports that rows are missing.
    Lost,
}

const EVENTS: [(&str, Event); 8] = [
    ("refused", Event::Refused),
    ("timed_out", Event::TimedOut),
    ("reset", Event::Reset),
    ("unreachable", Event::Unreachable),
    ("queue_full", Event::QueueFull),
    ("nothing", Event::Nothing),
    ("silent", Event::Silent),
    ("lost", Event::Lost),
];

/// The keys of a test.
pub static TEST_KEYS: [(&str, &str); 3] = [
    ("assertion", "the name of the assertion that is tested"),
    (
        "given",
        "what happens: `web-1 -> db-1: \"5ms x60s, refused x3m\"`; a time (established after so long), refused, timed_out, reset, \
         unreachable, queue_full (of the server, and attempts time out), nothing, silent or lost, and for how long",
    ),
    (
        "expect",
        "what is said of the window that ended then: `{ 60s: Holds, 4m: Violated }`",
    ),
];

impl Trial {
    /// Until the last thing that happens or is expected.
    pub fn length(&self) -> Duration {
        let links = self.links.iter().map(Link::length);
        let expected = self.expect.iter().map(|(at, _)| *at);
        links.chain(expected).max().unwrap_or_default()
    }
}

impl Link {
    fn length(&self) -> Duration {
        self.spans.iter().map(|(_, time)| *time).sum()
    }

    /// What happens after so long.
    pub fn at(&self, after: Duration) -> Option<&Event> {
        let mut end = Duration::ZERO;
        self.spans
            .iter()
            .find(|(_, time)| {
                end += *time;
                after < end
            })
            .map(|(event, _)| event)
    }
}

impl<'a, F: Fn(Rows) -> Vec<Column>> Reader<'a, F> {
    pub(super) fn trials(&mut self, source: Source<'a>, root: &'a Node) {
        let Value::Map(entries) = &root.value else { return };
        let Some(list) = find(entries, "tests") else {
            return;
        };
        let items = match &list.value {
            Value::List(items) => items,
            Value::Empty => return,
            _ => {
                let message = format!("`tests` is a list (`- assertion: ...`), this is {}", list.what());
                return self.problems.push(source.problem(list.place, message));
            }
        };
        for item in items {
            if self.is_enough() {
                break;
            }
            if let Some(trial) = self.trial(source, item) {
                self.set.tests.push(trial);
            }
        }
    }

    /// Each key is read for itself, as those of an assertion are.
    fn trial(&mut self, source: Source<'a>, item: &'a Node) -> Option<Trial> {
        let fields = Fields {
            source,
            item,
            entries: self.keep(entries(source, item, "a test"))?,
        };
        let known = TEST_KEYS.map(|(name, _)| name);
        let is_known = self.check_keys(source, fields.entries, &known);
        let needed = |reader: &mut Self, key: &str| {
            let found = fields.get(key);
            if found.is_none() && is_known {
                let problem = source.problem(item.place, format!("this test has no `{key}`"));
                reader.problems.push(problem);
            }
            found
        };
        let name = needed(self, "assertion").and_then(|node| {
            let outcome = self.tested(source, node);
            Some((self.keep(outcome)?, node.place))
        });
        let links = needed(self, "given").and_then(|node| self.keep(links(source, node)));
        let expect = needed(self, "expect").and_then(|node| self.keep(expectations(source, node)));
        let (name, place) = name?;
        let trial = Trial {
            assertion: name,
            links: links?,
            expect: expect?,
            file: source.file.to_owned(),
            place,
        };
        if trial.length() > LONGEST {
            let problem = source.problem(item.place, "a test is about 6h at most");
            self.problems.push(problem);
            return None;
        }
        Some(trial)
    }

    /// The name of the assertion that a test is of.
    fn tested(&self, source: Source<'_>, node: &Node) -> Result<String, Problem> {
        let name = text(source, node)?;
        // The rules of an objective that is wrong are not there.
        let objective = name.rsplit_once(": ").map(|(objective, _)| objective);
        let may_be_wrong = !self.problems.is_empty()
            && objective.is_some_and(|objective| self.names.contains_key(objective));
        if !self.names.contains_key(name) && !may_be_wrong && !self.misses_assertions {
            let known = self.names.keys().map(String::as_str);
            let message = format!("there is no assertion `{name}`, {}", instead(name, known));
            return Err(source.problem(node.place, message));
        }
        let burns = self.set.assertions.iter().filter_map(|known| {
            let is_of_it = known.burn.as_ref().is_some_and(|burn| burn.slo == name);
            is_of_it.then(|| format!("`{}`", known.name))
        });
        let rules: Vec<_> = burns.collect();
        if !rules.is_empty() {
            let rules = rules.join(", ");
            let message = format!("`{name}` is an objective: test one of its rules, {rules}");
            return Err(source.problem(node.place, message));
        }
        Ok(name.to_owned())
    }
}

fn links(source: Source<'_>, given: &Node) -> Result<Vec<Link>, Problem> {
    let links: Vec<Link> = entries(source, given, "`given`")?
        .iter()
        .map(|(pair, events)| link(source, pair, events))
        .collect::<Result<_, _>>()?;
    if links.is_empty() {
        return Err(source.problem(given.place, "`given` is empty: nothing would happen"));
    }
    Ok(links)
}

fn expectations(source: Source<'_>, expected: &Node) -> Result<Vec<(Duration, Verdict)>, Problem> {
    let expect: Vec<_> = entries(source, expected, "`expect`")?
        .iter()
        .map(|(at, verdict)| expectation(source, at, verdict))
        .collect::<Result<_, _>>()?;
    if expect.is_empty() {
        return Err(source.problem(expected.place, "`expect` is empty: nothing would be tested"));
    }
    Ok(expect)
}

fn expectation(source: Source<'_>, at: &Node, verdict: &Node) -> Result<(Duration, Verdict), Problem> {
    let at_text = text(source, at)?;
    let time = duration(at_text).ok_or_else(|| {
        let message = format!("`{at_text}` is no time with its unit, such as 90s");
        source.problem(at.place, message)
    })?;
    let name = text(source, verdict)?;
    let said = Verdict::named(name).ok_or_else(|| {
        let known = ["Holds", "Pending", "Violated", "Unknown"];
        let message = format!("`{name}` is no verdict, {}", instead(name, known.into_iter()));
        source.problem(verdict.place, message)
    })?;
    Ok((time, said))
}

fn link(source: Source<'_>, pair: &Node, events: &Node) -> Result<Link, Problem> {
    let pair_text = text(source, pair)?;
    let names = pair_text
        .split_once("->")
        .map(|(from, to)| (from.trim(), to.trim()));
    let Some((from, to)) = names.filter(|(from, to)| !from.is_empty() && !to.is_empty() && from != to) else {
        let message = format!("`{pair_text}` is not like `web-1 -> db-1`: one node that connects to another");
        return Err(source.problem(pair.place, message));
    };
    let mut character = 0;
    let mut spans = Vec::new();
    let events_text = text(source, events)?;
    for part in events_text.split(',') {
        let blanks = part.chars().take_while(|c| c.is_whitespace()).count();
        let typed = part.trim();
        let fault = |message: String| Err(source.problem_within(events, character + blanks, message));
        let Some((what, time)) = typed.rsplit_once('x') else {
            return fault(format!(
                "`{typed}` is not like `refused x3m`: what happens, and for how long"
            ));
        };
        let what = what.trim();
        let event = EVENTS
            .iter()
            .find(|(name, _)| *name == what)
            .map(|(_, event)| *event);
        let Some(event) = event.or_else(|| duration(what).map(Event::Established)) else {
            let known = EVENTS.iter().map(|(name, _)| *name);
            return fault(format!(
                "`{what}` is neither a time nor something that happens, {}",
                instead(what, known)
            ));
        };
        let Some(time) = duration(time.trim()).filter(|time| !time.is_zero()) else {
            return fault(format!("`{}` is no time with its unit, such as 60s", time.trim()));
        };
        spans.push((event, time));
        character += part.chars().count() + 1;
    }
    Ok(Link {
        from: from.to_owned(),
        to: to.to_owned(),
        spans,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assertion::parse;
    use crate::store::evidence::columns;

    fn read(test: &str) -> Result<Trial, String> {
        let text = format!(
            "assertions:\n  - {{ name: a, expect: connect.count > 1, over: 5s }}\ntests:\n  - {{ assertion: a, {test} }}\n"
        );
        parse::set(
            &[Source {
                file: "a",
                text: &text,
            }],
            columns,
        )
        .map(|mut set| set.tests.remove(0))
        .map_err(|problems| problems[0].message.clone())
    }

    #[test]
    fn a_test_is_read() {
        let trial = read(
            r#"given: { web-1 -> db-1: "5ms x60s, refused x3m" }, expect: { 60s: Holds, 5m: violated }"#,
        );
        let trial = trial.expect("it is right");
        assert_eq!(trial.length(), Duration::from_secs(300));
        assert_eq!(trial.links[0].at(Duration::from_secs(60)), Some(&Event::Refused));
        assert_eq!(trial.links[0].at(Duration::from_secs(240)), None);
        assert_eq!(trial.expect[1], (Duration::from_secs(300), Verdict::Violated));
    }

    #[test]
    fn a_fault_of_a_test_is_told() {
        for (test, message) in [
            ("expect: { 1s: Holds }", "this test has no `given`"),
            (
                "given: { x: '5ms x1s' }, expect: { 1s: Holds }",
                "`x` is not like `web-1 -> db-1`: one node that connects to another",
            ),
            (
                "given: { a -> b: 'refusd x1s' }, expect: { 1s: Holds }",
                "`refusd` is neither a time nor something that happens, did you mean refused?",
            ),
            (
                "given: { a -> b: 'refused' }, expect: { 1s: Holds }",
                "`refused` is not like `refused x3m`: what happens, and for how long",
            ),
            (
                "given: { a -> b: 'refused x3' }, expect: { 1s: Holds }",
                "`3` is no time with its unit, such as 60s",
            ),
            (
                "given: { a -> b: 'refused x3s' }, expect: { 1: Holds }",
                "`1` is no time with its unit, such as 90s",
            ),
            (
                "given: { a -> b: 'refused x3s' }, expect: { 1s: Hold }",
                "`Hold` is no verdict, did you mean Holds?",
            ),
            (
                "given: { a -> b: 'refused x3s' }, expect: {}",
                "`expect` is empty: nothing would be tested",
            ),
            (
                "given: { a -> b: 'refused x1d' }, expect: { 1s: Holds }",
                "a test is about 6h at most",
            ),
        ] {
            assert_eq!(read(test).expect_err(test), message);
        }
    }
}
