//! Keeps what agents say of their probes, beside the reading of their streams: the store may be slow, or away. Of one
//! agent only the latest report waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::warn;

use crate::store::Store;
use crate::store::probes::{self, Report};

/// Agents whose reports wait. A report has 64 KiB at most.
const MOST_WAITING: usize = 1_024;

/// Reports that come within this are stored together. Whoever set something waits that much longer for the answers.
const GATHERING: Duration = Duration::from_millis(100);

/// By agent.
type Waiting = HashMap<String, Report>;

/// The way to the task that stores. It ends once all copies are gone.
#[derive(Clone)]
pub struct Reports {
    waiting: Arc<Mutex<Waiting>>,
    wake: mpsc::Sender<()>,
}

impl Reports {
    /// Starts the task.
    pub fn start(store: Arc<dyn Store>) -> Self {
        let (wake, woken) = mpsc::channel(1);
        let waiting = Arc::<Mutex<Waiting>>::default();
        tokio::spawn(store_all(store, waiting.clone(), woken));
        Self { waiting, wake }
    }

    /// Has a report stored by and by. What cannot be kept is said again when its agent comes again.
    pub(super) fn keep(&self, report: Report) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MOST_WAITING && !waiting.contains_key(&report.agent_id) {
            warn!(
                node = report.node,
                "what the probes of an agent do is not kept: those of {MOST_WAITING} others wait for the store"
            );
            return;
        }
        waiting.insert(report.agent_id.clone(), report);
        // Full, it was woken already and has not looked yet.
        let _ = self.wake.try_send(());
    }
}

async fn store_all(store: Arc<dyn Store>, waiting: Arc<Mutex<Waiting>>, mut woken: mpsc::Receiver<()>) {
    while woken.recv().await.is_some() {
        tokio::time::sleep(GATHERING).await;
        let due = std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let due: Vec<Report> = due.into_values().collect();
        if due.is_empty() {
            continue;
        }
        if let Err(error) = probes::reported(&*store, &due).await {
            warn!(
                agents = due.len(),
                "what the probes of agents do is not kept: {error}"
            );
        }
    }
}
