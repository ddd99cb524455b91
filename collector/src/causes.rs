//! Why attempts failed or were slow: joins both ends of a connection with what their namespaces and listeners said around
//! the time, and keeps the cause with its evidence. Continuously, a minute as a whole, out of rows that are stored.
//!
//! `gather` says which minutes have more rows now; each is computed again until nothing comes any more. What was decided
//! from the most rows counts, so computing twice, too early or on two collectors changes nothing, and what waits is only in
//! memory: a collector finds it again at its start by looking for minutes without a cause.

pub mod decide;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock::WallClock;
use crate::metrics::Metrics;
use crate::store::causes::{self, Attempt};
use crate::store::rollups::NodeMinute;
use crate::store::{Store, StoreError};
use decide::{Decision, Index};

/// How often is looked at most. A cause is there soon after the row that it explains, and again once its evidence is complete.
const PASS_EVERY: Duration = Duration::from_secs(2);

/// After a pass the task rests for so many times as long as it took: where rows come by the hundred thousand a second, a pass
/// reads tens of millions of them, and causes must not cost what storing does.
const REST: u32 = 19;

/// However long a pass took.
const MOST_REST: Duration = Duration::from_secs(20);

/// Minutes of one pass: what is late in bulk is computed over many.
const MINUTES_A_PASS: usize = 8;

/// Attempts whose evidence is asked for at once. Their addresses travel in a URL, two of 70 bytes each, and that has 64 KiB
/// at most.
const ATTEMPTS_A_QUESTION: usize = 250;

/// Minutes that wait at once, the newest of them: two days.
const MOST_MINUTES: usize = 2_880;

/// A look at a namespace or a listener says something of attempts so long before.
const LOOKS_BACK_NS: i64 = 30_000_000_000;

/// At its start a collector looks so far back for what nobody computed.
const START_LOOKS_BACK_NS: i64 = 24 * 3600 * 1_000_000_000;

/// The minutes whose attempts are to be explained: the side of those who store rows.
#[derive(Clone, Debug, Default)]
pub struct Minutes {
    waiting: Arc<Mutex<BTreeSet<u32>>>,
}

impl Minutes {
    /// Attempts became durable that were recorded at these times.
    pub fn attempts(&self, recorded_at_ns: &[i64]) {
        let mut last = None;
        for &at_ns in recorded_at_ns {
            let minute = NodeMinute::minute_of(at_ns);
            // Rows of a batch are near each other.
            if last != Some(minute) {
                self.wait(&[minute]);
                last = Some(minute);
            }
        }
    }

    /// Something became durable that says more of attempts around that time.
    pub fn evidence(&self, at_ns: i64) {
        self.wait(&[
            NodeMinute::minute_of(at_ns - LOOKS_BACK_NS),
            NodeMinute::minute_of(at_ns),
        ]);
    }

    fn wait(&self, minutes: &[u32]) {
        let mut waiting = self.lock();
        waiting.extend(minutes);
        while waiting.len() > MOST_MINUTES {
            waiting.pop_first();
        }
    }

    /// The newest minutes that wait.
    fn take(&self, most: usize) -> Vec<u32> {
        let mut waiting = self.lock();
        (0..most).map_while(|_| waiting.pop_last()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        // What it guards is valid at every point.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task: explains what waits, until the collector stops.
pub struct Causes {
    pub store: Arc<dyn Store>,
    pub minutes: Minutes,
    pub clock: WallClock,
    pub metrics: Arc<Metrics>,
    /// True once the collector stops.
    pub stopping: watch::Receiver<bool>,
}

impl Causes {
    pub async fn run(mut self) {
        let mut rest = Duration::ZERO;
        let mut is_behind_known = false;
        let mut is_failing = false;
        loop {
            tokio::select! {
                biased;
                // An error means that the collector is gone already.
                _ = self.stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(rest) => {}
            }
            let began = Instant::now();
            let outcome = self.pass(&mut is_behind_known).await;
            // A store that was away is not tired by what it did not do.
            rest = match outcome {
                Ok(()) => (began.elapsed() * REST).clamp(PASS_EVERY, MOST_REST),
                Err(_) => PASS_EVERY,
            };
            match outcome {
                Ok(()) if is_failing => {
                    is_failing = false;
                    info!("causes are looked for again");
                }
                Ok(()) => {}
                Err(error) => {
                    self.metrics.causes_failures.inc();
                    if !is_failing {
                        is_failing = true;
                        warn!(%error, "causes cannot be looked for; their minutes wait");
                    }
                }
            }
        }
    }

    async fn pass(&self, is_behind_known: &mut bool) -> Result<(), StoreError> {
        if !*is_behind_known {
            let now_ns = self.clock.now_ns();
            let since_ns = now_ns.saturating_sub(START_LOOKS_BACK_NS);
            let behind = causes::minutes_behind(&*self.store, since_ns, now_ns).await?;
            self.minutes.wait(&behind);
            *is_behind_known = true;
        }
        let taken = self.minutes.take(MINUTES_A_PASS);
        for (index, &minute) in taken.iter().enumerate() {
            if let Err(error) = self.explain(minute).await {
                self.minutes.wait(&taken[index..]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Explains the attempts of one minute, and keeps what is new.
    async fn explain(&self, minute: u32) -> Result<(), StoreError> {
        let attempts = causes::suspects(&*self.store, minute).await?;
        if attempts.is_empty() {
            return Ok(());
        }
        let known = causes::revisions(&*self.store, minute).await?;
        let mut decided: Vec<(Attempt, Decision)> = Vec::new();
        for attempts in attempts.chunks(ATTEMPTS_A_QUESTION) {
            let evidence = causes::evidence(&*self.store, attempts).await?;
            let index = Index::of(&evidence);
            decided.extend(attempts.iter().filter_map(|attempt| {
                let decision = index.decide(attempt);
                let is_news = known
                    .get(&causes::name(attempt))
                    .is_none_or(|&revision| revision < decision.revision);
                is_news.then(|| (attempt.clone(), decision))
            }));
        }
        causes::keep(&*self.store, &decided).await?;
        self.metrics.causes_found.inc_by(decided.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE_NS: i64 = 60_000_000_000;

    #[test]
    fn the_newest_minutes_are_explained_first_and_evidence_wakes_the_minute_before() {
        let minutes = Minutes::default();
        minutes.attempts(&[5 * MINUTE_NS, 5 * MINUTE_NS + 1, 7 * MINUTE_NS]);
        minutes.evidence(9 * MINUTE_NS + 1);
        assert_eq!(minutes.take(3), [9, 8, 7]);
        assert_eq!(minutes.take(3), [5]);
        assert_eq!(minutes.take(3), [0; 0]);
    }

    #[test]
    fn too_many_minutes_leave_the_newest() {
        let minutes = Minutes::default();
        for minute in 0..=MOST_MINUTES as i64 {
            minutes.attempts(&[minute * MINUTE_NS]);
        }
        assert_eq!(minutes.lock().len(), MOST_MINUTES);
        assert_eq!(minutes.lock().first(), Some(&1));
    }
}
