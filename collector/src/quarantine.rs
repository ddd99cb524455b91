//! Batches that will never be stored as they are, set aside with the reason so that somebody can look at them: what
//! the decoder refuses in a sound envelope, and what the store refuses for its content.
//!
//! A side road: nothing waits for it. What it cannot take (too many of one agent, a store that is away for long) is
//! counted and not set aside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::v1::{Batch, Stream};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::warn;

use crate::clock::WallClock;
use crate::ingest::agent::Agent;
use crate::metrics::Metrics;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::REFUSED_BATCHES;
use crate::store::{Block, Store, StoreError};

/// Of one batch, its first bytes: enough to see what is wrong with it.
const MAX_ENCODED_BYTES: usize = 64 << 10;

/// Of one reason; the store may quote a row.
const MAX_REASON_BYTES: usize = 1 << 10;

/// Batches that wait to be set aside: with their bytes, 4 MiB.
const QUEUE: usize = 64;

/// Batches of one agent that are set aside at once, and how often another one is after that. What is wrong with one
/// is mostly wrong with the next.
const BURST: u32 = 16;
const EVERY: Duration = Duration::from_secs(10);

/// Agents whose last refusals are remembered; past that all are as if they had none.
const AGENTS: usize = 10_000;

/// How long a store that is away is left alone, and how often it is tried for the same batches.
const PAUSE: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 12;

/// The way in.
#[derive(Clone)]
pub struct Quarantine {
    refused: mpsc::Sender<Refused>,
    allowances: Arc<Mutex<HashMap<String, Allowance>>>,
    metrics: Arc<Metrics>,
    clock: WallClock,
}

/// A batch that was refused.
struct Refused {
    agent: Arc<Agent>,
    epoch: u64,
    stream: i32,
    sequence: u64,
    refused_at_ns: i64,
    reason: String,
    rows: u32,
    encoded_bytes: u64,
    /// Its first bytes.
    encoded: Bytes,
}

/// What may still be set aside of one agent.
struct Allowance {
    left: u32,
    since: Instant,
}

/// The name of a batch within its agent.
#[derive(Clone, Copy)]
pub struct RefusedName {
    pub epoch: u64,
    /// As it travelled: it may be one that this collector does not know.
    pub stream: i32,
    pub sequence: u64,
}

/// Starts it. The handle ends once every [`Quarantine`] is gone and what it had was stored, or given up.
pub fn start(store: Arc<dyn Store>, metrics: Arc<Metrics>, clock: WallClock) -> (Quarantine, JoinHandle<()>) {
    let (refused, waiting) = mpsc::channel(QUEUE);
    let quarantine = Quarantine {
        refused,
        allowances: Arc::default(),
        metrics: metrics.clone(),
        clock,
    };
    (quarantine, tokio::spawn(store_all(store, metrics, waiting)))
}

impl Quarantine {
    /// Sets a batch aside, if there is room for it. Never waits.
    pub fn set_aside(&self, agent: &Arc<Agent>, name: RefusedName, encoded: &Bytes, reason: &str) {
        let is_taken = self.allows(&agent.id, Instant::now())
            && self
                .refused
                .try_send(Refused {
                    agent: agent.clone(),
                    epoch: name.epoch,
                    stream: name.stream,
                    sequence: name.sequence,
                    refused_at_ns: self.clock.now_ns(),
                    reason: clip(reason).to_owned(),
                    rows: Batch::decode(encoded.clone()).map_or(0, |batch| batch.rows),
                    encoded_bytes: encoded.len() as u64,
                    // A copy: the rest of the batch is not to be kept for it.
                    encoded: Bytes::copy_from_slice(&encoded[..encoded.len().min(MAX_ENCODED_BYTES)]),
                })
                .is_ok();
        if !is_taken {
            self.metrics.not_set_aside.inc();
        }
    }

    /// Whether one more of an agent's is set aside now.
    fn allows(&self, agent_id: &str, now: Instant) -> bool {
        let mut allowances = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        if allowances.len() >= AGENTS {
            allowances.clear();
        }
        let allowance = allowances.entry(agent_id.to_owned()).or_insert(Allowance {
            left: BURST,
            since: now,
        });
        let regained = now.duration_since(allowance.since).as_nanos() / EVERY.as_nanos();
        if regained > 0 {
            let regained = u32::try_from(regained).unwrap_or(u32::MAX);
            allowance.left = allowance.left.saturating_add(regained).min(BURST);
            allowance.since = now;
        }
        let is_allowed = allowance.left > 0;
        allowance.left -= u32::from(is_allowed);
        is_allowed
    }
}

/// The beginning of a reason.
fn clip(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(MAX_REASON_BYTES)]
}

/// Stores what comes, all that waits at once.
async fn store_all(store: Arc<dyn Store>, metrics: Arc<Metrics>, mut waiting: mpsc::Receiver<Refused>) {
    let mut batches = Vec::with_capacity(QUEUE);
    while waiting.recv_many(&mut batches, QUEUE).await > 0 {
        match insert(&*store, &batches).await {
            Ok(()) => metrics.set_aside.inc_by(batches.len() as u64),
            Err(reason) => {
                metrics.not_set_aside.inc_by(batches.len() as u64);
                warn!(
                    batches = batches.len(),
                    reason, "refused batches cannot be set aside"
                );
            }
        }
        batches.clear();
    }
}

async fn insert(store: &dyn Store, batches: &[Refused]) -> Result<(), String> {
    let block = block(batches).map_err(|error| error.to_string())?;
    let first = &batches[0];
    let token = format!(
        "refused-{}-{}-{}",
        first.refused_at_ns, first.epoch, first.sequence
    );
    let mut away = String::new();
    for _ in 0..ATTEMPTS {
        match store.insert(REFUSED_BATCHES.name, &token, block.clone()).await {
            Ok(()) => return Ok(()),
            Err(StoreError::Rejected { message, .. }) => return Err(message),
            Err(error) => away = error.to_string(),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(away)
}

fn block(batches: &[Refused]) -> Result<Block, BlockError> {
    fn column<'a, T>(batches: &'a [Refused], value: impl Fn(&'a Refused) -> T) -> Vec<T> {
        batches.iter().map(value).collect()
    }
    let own = |index: usize| u32::try_from(index).expect("a queue of them at most");
    let indexes: Vec<u32> = (0..batches.len()).map(own).collect();
    let mut block = BlockBuilder::new(&REFUSED_BATCHES, batches.len())?;
    block.low_cardinality(
        "node",
        &column(batches, |batch| batch.agent.node.as_str()),
        &indexes,
    )?;
    block.low_cardinality(
        "agent_id",
        &column(batches, |batch| batch.agent.id.as_str()),
        &indexes,
    )?;
    block.u64s("agent_epoch", &column(batches, |batch| batch.epoch))?;
    block.low_cardinality(
        "stream",
        &column(batches, |batch| stream_name(batch.stream)),
        &indexes,
    )?;
    block.u64s("sequence", &column(batches, |batch| batch.sequence))?;
    block.datetimes("refused_at", &column(batches, |batch| batch.refused_at_ns))?;
    block.strings("reason", &column(batches, |batch| batch.reason.as_str()))?;
    block.u32s("rows", &column(batches, |batch| batch.rows))?;
    block.u64s("encoded_bytes", &column(batches, |batch| batch.encoded_bytes))?;
    block.blobs("encoded", &column(batches, |batch| &batch.encoded[..]))?;
    block.finish()
}

/// The protocol's name of it: `STREAM_GAPS` is `gaps`.
fn stream_name(stream: i32) -> String {
    Stream::try_from(stream)
        .ok()
        .filter(|stream| *stream != Stream::Unspecified)
        .and_then(|stream| stream.as_str_name().strip_prefix("STREAM_"))
        .map_or_else(|| format!("unknown ({stream})"), str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_has_so_many_set_aside_and_then_one_now_and_then() {
        let (refused, _waiting) = mpsc::channel(1);
        let quarantine = Quarantine {
            refused,
            allowances: Arc::default(),
            metrics: Arc::new(Metrics::new(&[]).unwrap()),
            clock: WallClock::new(|| 0),
        };
        let start = Instant::now();
        let allowed = |agent: &str, now| (0..100).filter(|_| quarantine.allows(agent, now)).count();
        assert_eq!(allowed("a", start), BURST as usize);
        assert_eq!(allowed("b", start), BURST as usize);
        assert_eq!(allowed("a", start + EVERY / 2), 0);
        assert_eq!(allowed("a", start + 2 * EVERY), 2);
        assert_eq!(allowed("a", start + 1000 * EVERY), BURST as usize);
    }

    #[test]
    fn a_stream_is_called_as_in_the_protocol() {
        assert_eq!(stream_name(Stream::OpenConnections.into()), "open_connections");
        assert_eq!(stream_name(0), "unknown (0)");
        assert_eq!(stream_name(99), "unknown (99)");
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(clip("short"), "short");
        let long = "ä".repeat(MAX_REASON_BYTES);
        assert_eq!(clip(&format!("x{long}")).len(), MAX_REASON_BYTES - 1);
    }
}
