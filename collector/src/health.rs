//! Whether the collector can do its work: it can once its store's tables are up to date, and while its store answers and
//! takes rows. The start, inserts and a regular question report what they saw; `/healthz`, the gRPC port and the retries'
//! log lines ask.
//!
//! A store may answer every question and take no rows (its disk is full, a table is missing or read-only), so what inserts
//! saw is kept apart, and no answered question makes up for it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How old the store's last answer may be. The regular question comes every [`PROBE_INTERVAL`]; this lets two of them
/// be late.
const RECENT: Duration = Duration::from_secs(10);

/// How long the oldest block may wait until it is stored. An insert takes milliseconds, and a few seconds on a machine in
/// trouble.
const STORED_WITHIN: Duration = Duration::from_secs(10);

/// How often the store is asked whether it is there.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(3);

/// What is known of the store.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// `None`: it has not answered yet.
    answered_at: Option<Instant>,
    /// Why it did not answer the last time; `None` when it did.
    fault: Option<String>,
    /// Its tables are up to date.
    is_ready: bool,
    /// The block that is on its way to it; `None` while there is none.
    waiting: Option<Waiting>,
}

/// A block that is not stored yet.
#[derive(Clone, Debug)]
struct Waiting {
    since: Instant,
    /// Why the store did not take it the last time; `None` while it is tried for the first time.
    fault: Option<String>,
}

impl Health {
    /// The store answered. True when it had not answered the time before.
    pub fn answered(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.answered_at = Some(now);
        state.fault.take().is_some()
    }

    /// The store did not answer. True when it had answered the time before.
    pub fn failed(&self, fault: &str) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.fault.replace(fault.to_owned()).is_none()
    }

    /// A block is to be stored. One that waits already, of which this is a part, keeps its time.
    pub fn insert_began(&self, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting.get_or_insert(Waiting {
            since: now,
            fault: None,
        });
    }

    /// The store did not take the block, which waits on. True when that is news.
    pub fn insert_failed(&self, fault: &str, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = state.waiting.get_or_insert(Waiting {
            since: now,
            fault: None,
        });
        waiting.fault.replace(fault.to_owned()).is_none()
    }

    /// The block does not wait any more: it is stored, or the store has refused its rows, or another collector has them. True
    /// when the store had not taken it at first.
    pub fn insert_ended(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .waiting
            .take()
            .is_some_and(|waiting| waiting.fault.is_some())
    }

    /// The store's tables are up to date: from now on agents and questions are let in.
    pub fn ready(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_ready = true;
    }

    /// Why nobody is let in yet; `None` once the store was ready.
    pub fn why_not_ready(&self) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_ready {
            return None;
        }
        let fault = state.fault.as_deref().unwrap_or("its tables are being prepared");
        Some(format!("the collector waits for its store: {fault}"))
    }

    /// Why the collector cannot do its work; empty when it can.
    pub fn reasons(&self, now: Instant) -> Vec<String> {
        let State {
            answered_at,
            fault,
            is_ready,
            waiting,
        } = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut reasons = Vec::new();
        if !is_ready {
            reasons.push("the store's tables are not ready yet".to_owned());
        }
        if let Some(Waiting { since, fault }) = waiting {
            let waited = now.saturating_duration_since(since);
            if waited > STORED_WITHIN {
                let fault = fault
                    .as_deref()
                    .unwrap_or("the store has not answered its insert");
                let seconds = waited.as_secs();
                reasons.push(format!("rows have waited to be stored for {seconds} s: {fault}"));
            }
        }
        match answered_at {
            Some(at) if now.saturating_duration_since(at) <= RECENT => {
                // One answer that failed in between is no reason, except for what a start waits for.
                if !is_ready {
                    reasons.extend(fault);
                }
                return reasons;
            }
            Some(at) => {
                let seconds = now.saturating_duration_since(at).as_secs();
                reasons.push(format!("the store has not answered for {seconds} s"));
            }
            None => reasons.push("the store has not answered yet".to_owned()),
        }
        reasons.extend(fault);
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_well_only_while_answers_are_recent() {
        let health = Health::default();
        let start = Instant::now();
        health.ready();
        assert_eq!(health.reasons(start), ["the store has not answered yet"]);
        health.answered(start);
        assert!(health.reasons(start + RECENT).is_empty());
        assert!(health.failed("connection refused"));
        assert!(health.reasons(start + RECENT).is_empty());
        let late = start + RECENT + Duration::from_secs(2);
        assert_eq!(
            health.reasons(late),
            ["the store has not answered for 12 s", "connection refused"]
        );
    }

    #[test]
    fn nobody_is_let_in_before_the_tables_are_ready() {
        let health = Health::default();
        let start = Instant::now();
        health.answered(start);
        assert_eq!(health.reasons(start), ["the store's tables are not ready yet"]);
        health.failed("connection refused");
        assert_eq!(
            health.why_not_ready().as_deref(),
            Some("the collector waits for its store: connection refused")
        );
        health.ready();
        assert_eq!(health.why_not_ready(), None);
        assert!(health.reasons(start).is_empty());
    }

    #[test]
    fn a_block_that_waits_is_a_reason_however_often_questions_are_answered() {
        let health = Health::default();
        let start = Instant::now();
        health.ready();
        health.insert_began(start);
        assert!(health.insert_failed("read-only", start));
        let late = start + STORED_WITHIN + Duration::from_secs(1);
        health.answered(late);
        let reasons = ["rows have waited to be stored for 11 s: read-only"];
        assert_eq!(health.reasons(late), reasons);
        // Half of it is tried instead.
        health.insert_began(late);
        assert!(!health.insert_failed("read-only", late));
        assert_eq!(health.reasons(late), reasons);
        assert!(health.insert_ended());
        assert!(health.reasons(late).is_empty());
        assert!(!health.insert_ended());
    }

    #[test]
    fn an_insert_without_an_answer_is_a_reason_and_a_new_block_has_its_own_time() {
        let health = Health::default();
        let start = Instant::now();
        health.ready();
        health.insert_began(start);
        assert!(!health.insert_ended(), "it went well");
        let late = start + STORED_WITHIN + Duration::from_secs(1);
        health.answered(late);
        health.insert_began(late);
        assert!(health.reasons(late + STORED_WITHIN).is_empty());
        let later = late + STORED_WITHIN + Duration::from_secs(1);
        health.answered(later);
        assert_eq!(
            health.reasons(later),
            ["rows have waited to be stored for 11 s: the store has not answered its insert"]
        );
    }

    #[test]
    fn only_a_change_is_news() {
        let health = Health::default();
        assert!(health.failed("away"));
        assert!(!health.failed("still away"));
        assert!(health.answered(Instant::now()));
        assert!(!health.answered(Instant::now()));
    }
}
