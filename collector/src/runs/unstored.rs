//! Results of runs that the store does not take, since it is full or away: they wait in memory and are tried again, as long as the collector
//! is there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::store::runs::{self as store_runs, RunRecord};
use crate::store::{Store, StoreError};

/// How often a result is tried to be stored while who asked for the run waits, and the pause between.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// How long it is tried after that, how often, and how many wait for it: a result is tens of kilobytes.
const PATIENCE: Duration = Duration::from_secs(3_600);
const LATER: Duration = Duration::from_secs(2);
const MOST_WAITING: usize = 256;

/// What waits. It is given up with this.
#[derive(Default)]
pub struct Unstored(Mutex<JoinSet<()>>);

impl Unstored {
    /// Stores the end of a run.
    ///
    /// # Errors
    /// Why it is not stored yet, or will not be, in words.
    pub async fn store(&self, store: &Arc<dyn Store>, record: &RunRecord) -> Result<(), String> {
        let mut attempts = 1;
        let error = loop {
            match store_runs::record(&**store, record).await {
                Ok(()) => return Ok(()),
                Err(error) if may_pass(&error) && attempts < ATTEMPTS => sleep(PAUSE).await,
                Err(error) => break error,
            }
            attempts += 1;
        };
        warn!(run = record.run_id, %error, "the end of a run cannot be stored");
        if !may_pass(&error) || !self.wait(store, record) {
            return Err(format!("the result could not be stored: {error}"));
        }
        Err(format!(
            "the result is not stored yet: {error}; the collector tries it for an hour, and holdfast run show {} has it then",
            record.run_id
        ))
    }

    /// Tries it again beside everything else. False if too many wait.
    fn wait(&self, store: &Arc<dyn Store>, record: &RunRecord) -> bool {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.try_join_next().is_some() {}
        if waiting.len() >= MOST_WAITING {
            return false;
        }
        let (store, record) = (Arc::clone(store), record.clone());
        waiting.spawn(async move {
            let began = Instant::now();
            loop {
                sleep(LATER).await;
                match store_runs::record(&*store, &record).await {
                    Ok(()) => {
                        info!(run = record.run_id, "the end of a run is stored after all");
                        return;
                    }
                    Err(error) if may_pass(&error) && began.elapsed() < PATIENCE => {}
                    Err(error) => {
                        warn!(run = record.run_id, %error, "the end of a run is not stored: it is given up");
                        return;
                    }
                }
            }
        });
        true
    }
}

fn may_pass(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { .. } | StoreError::Full { .. })
}
