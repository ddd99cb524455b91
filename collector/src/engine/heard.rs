//! What agents said last, from their streams straight to the engine: by way of the store it would come half a second later.
//! An agent's watermark passes only what the store has acknowledged, so the rows that it speaks for are there already. It
//! is stored as well, for everybody else and for the next start; what agents tell other collectors comes from there.
//! And back, since when they could say anything.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use crate::assertion::coverage::{Listening, Report};

/// Nodes whose reports wait to be taken. More than agents may be connected.
const MOST_WAITING: usize = 100_000;

/// The way from the streams to the engine.
#[derive(Clone, Debug, Default)]
pub struct Heard(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    /// Somebody's windows are whole.
    whole: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_taken: bool,
    /// By node, the last one of its newest start: all that an agent counts goes on from one report to the next.
    latest: HashMap<String, Report>,
    awaited: Vec<Awaited>,
    /// Since when agents are let in.
    opened_ns: Option<i64>,
    /// When it was listened, as who judges here knows it.
    listening: Option<Listening>,
}

/// A window that waits for nodes.
#[derive(Debug)]
pub struct Awaited {
    pub until_ns: i64,
    pub nodes: HashSet<String>,
}

impl Heard {
    /// From now on somebody takes what is put.
    pub(super) fn begin(&self) {
        self.lock().is_taken = true;
    }

    /// Takes what an agent says.
    pub fn put(&self, report: Report) {
        let mut state = self.lock();
        if !state.is_taken {
            return;
        }
        let mut is_whole = false;
        state.awaited.retain_mut(|window| {
            if report.attempts_ns >= window.until_ns {
                window.nodes.remove(&report.node);
            }
            is_whole |= window.nodes.is_empty();
            !window.nodes.is_empty()
        });
        let is_known = state.latest.contains_key(&report.node);
        if is_known || state.latest.len() < MOST_WAITING {
            let newer = |known: &Report| known.agent_epoch > report.agent_epoch;
            if !state.latest.get(&report.node).is_some_and(newer) {
                state.latest.insert(report.node.clone(), report);
            }
        }
        drop(state);
        if is_whole {
            self.0.whole.notify_one();
        }
    }

    /// Agents are let in from now on.
    pub fn open(&self, now_ns: i64) {
        self.lock().opened_ns = Some(now_ns);
    }

    /// Since when agents are let in; `None`: they are not yet.
    pub(super) fn opened_ns(&self) -> Option<i64> {
        self.lock().opened_ns
    }

    /// Says when it was listened; `None`: nobody judges here any more.
    pub(super) fn listens(&self, listening: Option<Listening>) {
        self.lock().listening = listening;
    }

    /// When it was listened; `None`: nobody judges here.
    pub(super) fn listening(&self) -> Option<Listening> {
        self.lock().listening
    }

    /// What was said since the last call, in the order in which it came.
    pub(super) fn take(&self) -> Vec<Report> {
        let latest = std::mem::take(&mut self.lock().latest);
        let mut reports: Vec<_> = latest.into_values().collect();
        reports.sort_unstable_by_key(|report| report.received_ns);
        reports
    }

    /// Who is waited for, by what was taken so far.
    pub(super) fn await_nodes(&self, mut awaited: Vec<Awaited>) {
        let mut state = self.lock();
        for window in &mut awaited {
            let is_there = |report: &Report| report.attempts_ns >= window.until_ns;
            let latest = &state.latest;
            window
                .nodes
                .retain(|node| !latest.get(node).is_some_and(is_there));
        }
        let is_whole = awaited.iter().any(|window| window.nodes.is_empty());
        awaited.retain(|window| !window.nodes.is_empty());
        state.awaited = awaited;
        drop(state);
        if is_whole {
            self.0.whole.notify_one();
        }
    }

    /// Returns once somebody who was waited for last has been heard.
    pub(super) async fn whole(&self) {
        self.0.whole.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // What it guards is changed in one go.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(node: &str, epoch: u64, ns: i64) -> Report {
        Report {
            node: node.to_owned(),
            agent_epoch: epoch,
            received_ns: ns,
            attempts_ns: ns,
            ..Report::default()
        }
    }

    #[test]
    fn of_each_node_the_last_report_of_its_newest_start_is_taken() {
        let heard = Heard::default();
        heard.put(report("a", 1, 1));
        assert_eq!(heard.take(), [], "nobody takes anything yet");
        heard.begin();
        for said in [
            report("a", 1, 1),
            report("b", 2, 2),
            report("b", 1, 4),
            report("a", 1, 3),
        ] {
            heard.put(said);
        }
        assert_eq!(heard.take(), [report("b", 2, 2), report("a", 1, 3)]);
        assert_eq!(heard.take(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_one_that_a_window_waits_for_wakes() {
        let heard = Heard::default();
        heard.begin();
        let is_woken = async || {
            let nothing = std::time::Duration::from_secs(1);
            tokio::time::timeout(nothing, heard.whole()).await.is_ok()
        };
        heard.await_nodes(vec![Awaited {
            until_ns: 10,
            nodes: ["a", "b"].map(str::to_owned).into(),
        }]);
        heard.put(report("a", 1, 10));
        heard.put(report("b", 1, 9));
        assert!(!is_woken().await);
        heard.put(report("c", 1, 11));
        assert!(!is_woken().await);
        heard.put(report("b", 1, 10));
        assert!(is_woken().await);
        heard.put(report("b", 1, 11));
        assert!(!is_woken().await, "once");
        // Who said it before anybody waited.
        let of_c = Awaited {
            until_ns: 11,
            nodes: ["c".to_owned()].into(),
        };
        heard.await_nodes(vec![of_c]);
        assert!(is_woken().await);
    }
}
