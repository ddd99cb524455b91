//! Rows that come late. A window that was judged while a node was silent, or had not delivered everything, is judged again
//! once the node has: the keys that were unknown for its sake get what the window really came to, and what was said of
//! the windows after is worked out again from there. What is said otherwise than before is written with a revision.
//!
//! Only what is unknown for want of rows that may come is kept for that, for so many windows of a schedule. It is in memory
//! only: after a restart of the collector, what was said before stays.

use std::collections::VecDeque;

use super::{Active, Engine, Kept, MINUTES_SETTLE_NS, Said, Step, advance, ns, phase_ns, record, rules};
use crate::assertion::condition::Condition;
use crate::assertion::coverage::{Need, Standing, Window};
use crate::assertion::evaluate::{Judgement, Key, Observers, is_owing};
use crate::assertion::state::{Machine, Verdict};
use crate::store::StoreError;

/// Windows of a schedule that are judged again if their rows come: 20 minutes of those that are judged most often.
const MOST_LATE: usize = 2_400;

/// Windows of keys that are kept for it in all. Past this the oldest are left as they are.
const MOST_KEPT: usize = 500_000;

/// Windows that are judged again in one step: four steps a second, so they are made up for much faster than they came.
const AT_ONCE: usize = 8;

/// A window that was judged without rows that may come yet.
pub(super) struct Late {
    window: Window,
    /// Who owes which rows, of which part of the window.
    owing: Vec<(String, Need, Window)>,
    /// When somebody's rows had come first.
    came_ns: Option<i64>,
}

/// What was said of a key's windows, from the first one on that may come to something else.
pub(super) struct History {
    /// Where the key stood before; none: it began here.
    base: Option<Machine>,
    windows: VecDeque<Past>,
}

struct Past {
    window: Window,
    judgement: Judgement,
    verdict: Verdict,
    since_ns: i64,
    is_written: bool,
    revision: u32,
    /// The judgement is another one than when it was said.
    is_changed: bool,
}

impl History {
    pub(super) fn beginning(base: Option<Machine>) -> Self {
        Self {
            base,
            windows: VecDeque::new(),
        }
    }

    /// Another window was judged.
    pub(super) fn push(&mut self, window: Window, judgement: Judgement, machine: &Machine, is_written: bool) {
        self.windows.push_back(Past {
            window,
            judgement,
            verdict: machine.verdict,
            since_ns: machine.since_ns,
            is_written,
            revision: 0,
            is_changed: false,
        });
    }

    /// Puts in what a window came to after all. Whether that is news.
    fn put(&mut self, window: Window, judgement: &Judgement) -> bool {
        match self
            .windows
            .binary_search_by_key(&window.to_ns, |past| past.window.to_ns)
        {
            Ok(at) => {
                let past = &mut self.windows[at];
                let is_news = past.judgement.may_come && past.judgement != *judgement;
                if is_news {
                    past.judgement = judgement.clone();
                    past.is_changed = true;
                }
                is_news
            }
            // The key is older than was known.
            Err(0) if self.base.is_none() => {
                self.windows.push_front(Past {
                    window,
                    judgement: judgement.clone(),
                    verdict: Verdict::Unknown,
                    since_ns: 0,
                    is_written: false,
                    revision: 0,
                    is_changed: true,
                });
                true
            }
            Err(_) => false,
        }
    }
}

impl Engine {
    /// Keeps a window in mind whose rows may come yet.
    pub(super) fn remember(&mut self, at: usize, window: Window, now_ns: i64) {
        let moment = self.moment(window, now_ns);
        let mut owing: Vec<(String, Need, Window)> = Vec::new();
        for assertion in self.watchers(at) {
            for node in Observers::of(assertion, &moment).owing(assertion, &moment) {
                if !owing.contains(&node) {
                    owing.push(node);
                }
            }
        }
        if owing.is_empty() {
            return;
        }
        let late = &mut self.schedules[at].late;
        if late.len() == MOST_LATE {
            late.pop_front();
        }
        let place = late.partition_point(|other| other.window.to_ns < window.to_ns);
        let came_ns = None;
        late.insert(
            place,
            Late {
                window,
                owing,
                came_ns,
            },
        );
    }

    /// When the oldest window begins that is to be judged yet, or again.
    pub(super) fn oldest_ns(&self) -> Option<i64> {
        let oldest = |active: &Active| {
            let late = active.late.front().map(|late| late.window.from_ns);
            let open = active.open.front().map(|tick| tick.window.from_ns);
            late.into_iter().chain(open).min()
        };
        self.schedules.iter().filter_map(oldest).min()
    }

    /// Judges windows again whose rows have come, and works out anew what follows from them.
    pub(super) async fn revise(&mut self, at: usize, now_ns: i64, step: &mut Step) -> Result<(), StoreError> {
        let mut touched: Vec<(usize, Key)> = Vec::new();
        let mut judged = 0;
        let mut place = 0;
        while judged < AT_ONCE
            && let Some(late) = self.schedules[at].late.get(place)
        {
            let window = late.window;
            let patience = self.patience(at);
            let still = late.owing.iter().filter(|(node, need, part)| {
                let standing = self.coverage.standing(node, *part, *need, now_ns, patience);
                // One that was given up and is heard again is waited for again.
                is_owing(&standing) || standing == Standing::Waiting
            });
            let still: Vec<_> = still.cloned().collect();
            if still.len() == late.owing.len() {
                place += 1;
                continue;
            }
            if self.reads_minutes(at) {
                let came_ns = *self.schedules[at].late[place].came_ns.get_or_insert(now_ns);
                if now_ns < came_ns + MINUTES_SETTLE_NS {
                    place += 1;
                    continue;
                }
            }
            for (assertion, judgements) in self.find(at, window, now_ns, false).await? {
                for judgement in judgements {
                    if self.put(assertion, window, &judgement) {
                        self.schedules[at].keeps_past = true;
                        touched.push((assertion, judgement.key));
                    }
                }
            }
            judged += 1;
            if still.is_empty() {
                self.schedules[at].late.remove(place);
            } else {
                self.schedules[at].late[place].owing = still;
                self.schedules[at].late[place].came_ns = None;
                place += 1;
            }
        }
        touched.sort();
        touched.dedup();
        for (assertion, key) in touched {
            self.say_again(at, assertion, &key, now_ns, step);
        }
        self.prune(at);
        Ok(())
    }

    /// Whether it is news of a key.
    fn put(&mut self, assertion: usize, window: Window, judgement: &Judgement) -> bool {
        let assertion = &self.set.assertions[assertion];
        let is_of_now = |condition: &Condition| condition.signal.signal.need().is_some_and(Need::is_of_now);
        if assertion.expect.iter().any(is_of_now) {
            // How an agent is, it tells of now, and that window is long over.
            return false;
        }
        let keys = self.keys.entry(assertion.name.clone()).or_default();
        match keys.get_mut(&judgement.key) {
            Some(kept) => kept
                .history
                .as_mut()
                .is_some_and(|history| history.put(window, judgement)),
            // Only rows make a key that there was not.
            None if judgement.readings.iter().any(|reading| reading.samples > 0) => {
                let mut history = History::beginning(None);
                history.put(window, judgement);
                let kept = Kept {
                    machine: Machine::new(window.to_ns),
                    written_ns: i64::MIN,
                    phase_ns: phase_ns(&assertion.name, &judgement.key),
                    seen_ns: window.to_ns,
                    is_silenced: false,
                    cause: None,
                    history: Some(history),
                };
                keys.insert(judgement.key.clone(), kept);
                true
            }
            None => false,
        }
    }

    /// Works out from its windows what is to be said of a key, and writes what was said otherwise.
    fn say_again(&mut self, at: usize, assertion: usize, key: &Key, now_ns: i64, step: &mut Step) {
        let every_ns = ns(self.schedules[at].schedule.every);
        let (assertion, fingerprint) = (&self.set.assertions[assertion], self.fingerprints[assertion]);
        let kept = self
            .keys
            .get_mut(&assertion.name)
            .and_then(|keys| keys.get_mut(key));
        let Some((kept, mut history)) = kept.and_then(|kept| {
            let history = kept.history.take()?;
            Some((kept, history))
        }) else {
            return;
        };
        let rules = rules(assertion);
        let mut machine = history.base.clone();
        let last = history.windows.len().saturating_sub(1);
        for (place, past) in history.windows.iter_mut().enumerate() {
            let next = advance(
                &rules,
                machine.as_ref(),
                past.window.to_ns,
                every_ns,
                past.judgement.outcome,
            );
            let is_other = past.is_changed || next.machine.verdict != past.verdict;
            let is_said_otherwise =
                is_other && (next.machine.verdict != past.verdict || next.machine.since_ns != past.since_ns);
            if is_said_otherwise && (past.is_written || next.is_transition || place == last) {
                past.revision += 1;
                past.is_written = true;
                let said = Said {
                    previous: next.previous,
                    is_transition: next.is_transition,
                    machine: next.machine.clone(),
                    revision: past.revision,
                    fingerprint,
                };
                step.records.push(record(
                    assertion,
                    past.judgement.clone(),
                    past.window,
                    now_ns,
                    said,
                ));
            }
            (past.verdict, past.since_ns) = (next.machine.verdict, next.machine.since_ns);
            past.is_changed = false;
            machine = Some(next.machine);
        }
        if let Some(machine) = machine {
            kept.machine = machine;
        }
        kept.history = Some(history);
    }

    /// Forgets what cannot change any more.
    fn prune(&mut self, at: usize) {
        let active = &self.schedules[at];
        if !active.keeps_past {
            return;
        }
        let mut kept_windows = 0;
        // Who need not be waited for is judged in windows that are open yet.
        let late_ns = active.late.front().map(|late| late.window.to_ns);
        let open_ns = active.open.front().map(|tick| tick.window.to_ns);
        let first_ns = late_ns.into_iter().chain(open_ns).min();
        let every_ns = ns(active.schedule.every);
        for planned in &active.schedule.assertions {
            let assertion = &self.set.assertions[planned.assertion];
            let rules = rules(assertion);
            let Some(keys) = self.keys.get_mut(&assertion.name) else {
                continue;
            };
            for kept in keys.values_mut() {
                let Some(history) = &mut kept.history else {
                    continue;
                };
                while let Some(past) = history.windows.front()
                    && first_ns.is_none_or(|first_ns| past.window.to_ns < first_ns)
                {
                    let base = history.base.as_ref();
                    let next = advance(&rules, base, past.window.to_ns, every_ns, past.judgement.outcome);
                    history.base = Some(next.machine);
                    history.windows.pop_front();
                }
                kept_windows += history.windows.len();
                if history.windows.is_empty() {
                    kept.history = None;
                }
            }
        }
        let active = &mut self.schedules[at];
        active.keeps_past = kept_windows > 0;
        if kept_windows > MOST_KEPT {
            active.late.pop_front();
        }
    }
}
