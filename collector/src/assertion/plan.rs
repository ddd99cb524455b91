//! What one question to the store can answer: assertions of the same window whose rows are the same go together, and
//! the question groups the rows by exactly the labels that they are told apart by. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::condition::Condition;
use super::evaluate::wait_alike;
use super::signal::{End, Rows, Times};
use super::{Assertion, Dimension, Set, Subject};
use crate::filter::{Filter, Value};

/// Filters of one class: each is a bit of a number that the rows are grouped by.
const FILTERS: usize = 63;

/// Limits of quantiles in one class. Each row is held against all of them.
const BOUNDS: usize = 64;

/// What is judged together: windows of one length, as often.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub over: Duration,
    pub every: Duration,
    pub classes: Vec<Class>,
    /// Which of the set's assertions, and for each of its conditions where its rows are found.
    pub assertions: Vec<Planned>,
    /// Of those that wait for the same nodes in the same way, the first one: indexes into `assertions`.
    pub watchers: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct Planned {
    /// Index into the set's assertions.
    pub assertion: usize,
    pub conditions: Vec<Place>,
    /// Which of the schedule's watchers waits for whom it waits for.
    pub watcher: usize,
}

/// Where the rows of a condition are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Class {
        class: usize,
        /// Which of the class' filters they pass.
        filter: Option<usize>,
        /// Which of its bounds is the condition's limit.
        bound: Option<usize>,
    },
    /// Not rows: what the collector hears of the agents.
    Agents,
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    pub kind: Kind,
    /// The length of its windows.
    pub over: Duration,
    /// What is asked, where the assertion says it itself.
    pub sql: Option<String>,
    pub labels: Labels,
    pub filters: Vec<Filter>,
    /// Microseconds, ascending. Of each row is told how many of them it reaches.
    pub bounds: Vec<u64>,
}

/// Which rows, and of which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    pub rows: Rows,
    pub is_server: bool,
    /// A histogram of these is made.
    pub times: Option<Times>,
    /// Of syscalls: the errno that calls are counted with.
    pub errno: Option<u16>,
}

/// What rows are told apart by, beside the node that saw them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels {
    pub remote: bool,
    /// The listener's port.
    pub port: bool,
    pub service: bool,
    pub comm: bool,
}

impl Labels {
    /// Of listeners on the nodes that are connected to: only by where they are.
    fn of_target(assertion: &Assertion) -> Self {
        let port = match &assertion.subject {
            Subject::Client { to, .. } => to.port,
            Subject::Server { port, .. } => *port,
        };
        Self {
            port: port.is_some() || assertion.by.contains(&Dimension::Port),
            ..Self::default()
        }
    }

    fn of(assertion: &Assertion) -> Self {
        let by = |dimension| assertion.by.contains(&dimension);
        let (remote, port) = match &assertion.subject {
            Subject::Client { to, .. } => (to.place.is_some() || by(Dimension::ToNode), to.port.is_some()),
            Subject::Server { port, from, .. } => (from.is_some() || by(Dimension::FromNode), port.is_some()),
        };
        Self {
            remote,
            port: port || by(Dimension::Port),
            service: by(Dimension::Service),
            comm: by(Dimension::Comm),
        }
    }
}

/// What has to be asked, and how often. Assertions that are told apart by the same labels share a question.
pub fn schedules(set: &Set) -> Vec<Schedule> {
    let mut schedules: BTreeMap<(Duration, Duration), Schedule> = BTreeMap::new();
    for (index, assertion) in set.assertions.iter().enumerate() {
        let schedule = schedules
            .entry((assertion.over, assertion.every))
            .or_insert_with(|| Schedule {
                over: assertion.over,
                every: assertion.every,
                classes: Vec::new(),
                assertions: Vec::new(),
                watchers: Vec::new(),
            });
        let waits_alike = |&first: &usize| {
            let first = &set.assertions[schedule.assertions[first].assertion];
            wait_alike(first, assertion)
        };
        let watcher = schedule.watchers.iter().position(waits_alike).unwrap_or_else(|| {
            schedule.watchers.push(schedule.assertions.len());
            schedule.watchers.len() - 1
        });
        schedule.assertions.push(Planned {
            assertion: index,
            conditions: vec![Place::Agents; assertion.expect.len()],
            watcher,
        });
    }
    // Sums can be had from the question for a histogram: those come first.
    for is_of_times in [true, false] {
        for schedule in schedules.values_mut() {
            for planned in 0..schedule.assertions.len() {
                let assertion = &set.assertions[schedule.assertions[planned].assertion];
                for (at, condition) in assertion.expect.iter().enumerate() {
                    let is_of_rows = condition.signal.signal.rows != Rows::Agents;
                    if is_of_rows && condition.signal.times().is_some() == is_of_times {
                        let place = schedule.place(assertion, condition);
                        schedule.assertions[planned].conditions[at] = place;
                    }
                }
            }
        }
    }
    let mut schedules: Vec<_> = schedules.into_values().collect();
    schedules.iter_mut().for_each(Schedule::sort_bounds);
    schedules
}

impl Schedule {
    /// Finds a class for a condition, or makes one.
    fn place(&mut self, assertion: &Assertion, condition: &Condition) -> Place {
        let signal = condition.signal.signal;
        let labels = match signal.end {
            End::Target => Labels::of_target(assertion),
            _ => Labels::of(assertion),
        };
        let kind = Kind {
            rows: signal.rows,
            is_server: signal.end != End::Either || matches!(assertion.subject, Subject::Server { .. }),
            times: condition.signal.times(),
            errno: condition.errno,
        };
        let named = (!condition.syscalls.is_empty()).then(|| Filter::In {
            column: "syscall",
            negated: false,
            values: condition.syscalls.iter().cloned().map(Value::Text).collect(),
        });
        let filter = match (
            assertion.filter.as_ref().filter(|_| signal.end != End::Target),
            named,
        ) {
            (Some(one), Some(other)) => Some(Filter::And(vec![one.clone(), other])),
            (one, other) => one.cloned().or(other),
        };
        let bound = condition.counts_from_us();
        let over = condition.over.unwrap_or(assertion.over);
        let sql = assertion.sql.as_ref();
        let takes = |class: &Class| {
            let of = class.kind;
            // Latencies of syscalls are in arrays: a row has many, and would be counted as often.
            let has_sums = of.times != Some(Times::Syscall);
            let has_errno = of.errno == kind.errno || kind.errno.is_none();
            let is_kind = (of.rows, of.is_server) == (kind.rows, kind.is_server)
                && (of.times == kind.times || (kind.times.is_none() && has_sums && has_errno));
            let has_filter = filter
                .as_ref()
                .is_none_or(|filter| class.filters.contains(filter) || class.filters.len() < FILTERS);
            let has_bound =
                bound.is_none_or(|bound| class.bounds.contains(&bound) || class.bounds.len() < BOUNDS);
            let is_same = class.over == over && class.sql.as_ref() == sql;
            is_kind && is_same && class.labels == labels && has_filter && has_bound
        };
        let class = self.classes.iter().position(takes).unwrap_or_else(|| {
            self.classes.push(Class {
                kind,
                over,
                sql: sql.cloned(),
                labels,
                filters: Vec::new(),
                bounds: Vec::new(),
            });
            self.classes.len() - 1
        });
        let of = &mut self.classes[class];
        Place::Class {
            class,
            filter: filter.map(|filter| index_of(&mut of.filters, filter)),
            bound: bound.map(|bound| index_of(&mut of.bounds, bound)),
        }
    }

    fn sort_bounds(&mut self) {
        let sorted = self.classes.iter().map(|class| {
            let mut bounds = class.bounds.clone();
            bounds.sort_unstable();
            bounds
        });
        let sorted: Vec<_> = sorted.collect();
        for place in self
            .assertions
            .iter_mut()
            .flat_map(|planned| &mut planned.conditions)
        {
            if let Place::Class {
                class,
                bound: Some(bound),
                ..
            } = place
            {
                let value = self.classes[*class].bounds[*bound];
                *bound = sorted[*class].partition_point(|other| *other < value);
            }
        }
        for (class, bounds) in self.classes.iter_mut().zip(sorted) {
            class.bounds = bounds;
        }
    }
}

fn index_of<T: PartialEq>(list: &mut Vec<T>, value: T) -> usize {
    list.iter().position(|known| *known == value).unwrap_or_else(|| {
        list.push(value);
        list.len() - 1
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assertion::document::Source;
    use crate::assertion::parse;
    use crate::store::evidence::columns;

    fn planned(text: &str) -> Vec<Schedule> {
        let set = parse::set(&[Source { file: "a", text }], columns).expect("they are right");
        schedules(&set)
    }

    #[test]
    fn what_can_be_asked_at_once_is_asked_at_once() {
        let schedules = planned(
            "assertions:
  - { name: a, from: all, expect: [connect.p99 < 20ms, connect.count > 1], over: 1m, by: from.node }
  - { name: b, from: all, expect: [connect.refused = 0, connect.p50 < 5ms], over: 1m, by: from.node }
  - { name: c, from: all, expect: connect.p99 < 20ms, over: 1m, by: service, where: comm = 'x' }
  - { name: d, on: all, expect: [rtt.p99 < 20ms, node.up = true], over: 5m }
",
        );
        let classes: Vec<_> = schedules.iter().map(|schedule| schedule.classes.len()).collect();
        assert_eq!(classes, [2, 1]);
        let shared = &schedules[0].classes[0];
        assert_eq!(
            (shared.bounds.as_slice(), shared.kind.times),
            ([5_000, 20_000].as_slice(), Some(Times::Connect))
        );
        assert_eq!(
            schedules[0].assertions[1].conditions,
            [
                Place::Class {
                    class: 0,
                    filter: None,
                    bound: None
                },
                Place::Class {
                    class: 0,
                    filter: None,
                    bound: Some(0)
                },
            ]
        );
        assert_eq!(
            schedules[0].assertions[2].conditions,
            [Place::Class {
                class: 1,
                filter: Some(0),
                bound: Some(0)
            }]
        );
        assert_eq!(schedules[1].assertions[0].conditions[1], Place::Agents);
    }
}
