//! What happened in a world, in order, with its virtual time. The same seed gives the same trace to the last number.

use std::{
    fmt::Write,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Events at the end of a failed world that are printed.
const SHOWN: usize = 400;

/// The record of one world, and its first fault.
#[derive(Clone)]
pub(crate) struct Trace {
    began: Instant,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    events: Vec<(Duration, &'static str, [u64; 4])>,
    fault: Option<String>,
}

impl Trace {
    /// Begins now, which is inside the world's runtime.
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            state: Arc::default(),
        }
    }

    /// Virtual time since the world began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Something happened; the numbers say to whom and what.
    pub(crate) fn note(&self, what: &'static str, numbers: [u64; 4]) {
        let at = self.elapsed();
        self.lock().events.push((at, what, numbers));
    }

    /// Something happened that must not; the first one is kept.
    pub(crate) fn fault(&self, fault: impl FnOnce() -> String) {
        let mut state = self.lock();
        if state.fault.is_none() {
            let at = state.events.last().map_or(Duration::ZERO, |(at, ..)| *at);
            state.fault = Some(format!("{at:?}: {}", fault()));
        }
    }

    pub(crate) fn first_fault(&self) -> Option<String> {
        self.lock().fault.clone()
    }

    /// Names the whole trace.
    pub(crate) fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for event in &self.lock().events {
            event.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The last events, a line each.
    pub(crate) fn text(&self) -> String {
        let state = self.lock();
        let skipped = state.events.len().saturating_sub(SHOWN);
        let mut text = format!("{skipped} events before these\n");
        for (at, what, numbers) in &state.events[skipped..] {
            let _ = writeln!(text, "{:>10.3} s  {what}  {numbers:?}", at.as_secs_f64());
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
