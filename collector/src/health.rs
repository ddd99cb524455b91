//! Whether the collector can do its work: it can once its store's tables are up to date, and while its store answers.
//! The start, inserts and a regular question report what they saw; `/healthz`, the gRPC port and the retries' log lines
//! ask.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How old the store's last answer may be. The regular question comes every [`PROBE_INTERVAL`]; this lets two of them
/// be late.
const RECENT: Duration = Duration::from_secs(10);

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
        } = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut reasons = Vec::new();
        if !is_ready {
            reasons.push("the store's tables are not ready yet".to_owned());
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
    fn only_a_change_is_news() {
        let health = Health::default();
        assert!(health.failed("away"));
        assert!(!health.failed("still away"));
        assert!(health.answered(Instant::now()));
        assert!(!health.answered(Instant::now()));
    }
}
