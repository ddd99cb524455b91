//! Gathers what all agents deliver into large blocks and makes them durable: `ingest` puts checked parcels in, the
//! store takes blocks, and only then the agents get their acknowledgements.
//!
//! Two tasks: one builds the next group of blocks while the other inserts the one before it. Memory is bounded by
//! room that a parcel takes on its way in and gives back once it is settled; an agent whose parcel finds no room is
//! not read. Groups are inserted in order, so an agent's batches become durable in its order, except that batches of
//! different days or tables within one group may change places.
//!
//! A parcel is never split. A block has the rows of one table and one day, so it becomes one part, atomically.

mod encode;
mod group;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_proto::v1::{
    Acknowledgement, CollectorMessage, Gap, Refusal, Stream, StreamCounters, collector_message::Body,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::config::Limits;
use crate::health::Health;
use crate::ingest::agent::Agent;
use crate::ingest::decode::{AgentSample, Connections};
use crate::metrics::{Metrics, refusal};
use crate::store::schema::{AGENT_SAMPLES, CONNECTION_RECORDS, GAP_RECORDS, LEDGER_SAMPLES, NODE_SESSIONS};
use crate::store::{Block, Store, StoreError};
use group::{Group, OpenGroup};

/// The first pause before a block is tried again; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause. A store that is back waits no longer than this for its rows.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Parcels between the agents' tasks and the gathering one. Room bounds their memory; this only saves wake-ups.
const QUEUE: usize = 64;

/// The tables that rows go to.
pub const TABLES: [&str; 5] = [
    AGENT_SAMPLES.name,
    CONNECTION_RECORDS.name,
    GAP_RECORDS.name,
    LEDGER_SAMPLES.name,
    NODE_SESSIONS.name,
];

/// What is delivered at once and settled at once.
pub struct Parcel {
    pub agent: Arc<Agent>,
    pub content: Content,
    /// `None` for what is not acknowledged.
    pub receipt: Option<Receipt>,
    /// Memory that the parcel occupies, given back when it is dropped.
    _room: OwnedSemaphorePermit,
}

/// What a batch is called within its agent and stream, and the start of the machine that it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchName {
    /// The start of the agent that sealed it; not always the one that delivers it.
    pub epoch: u64,
    pub sequence: u64,
    pub boot_id: String,
}

/// The rows of a parcel.
pub enum Content {
    Connections {
        batch: BatchName,
        columns: Box<Connections>,
    },
    Gaps {
        batch: BatchName,
        gaps: Vec<Gap>,
    },
    Ledger {
        epoch: u64,
        observed_at_ns: i64,
        counters: Vec<StreamCounters>,
    },
    Sample {
        epoch: u64,
        observed_at_ns: i64,
        sample: AgentSample,
    },
    Session {
        connected_at_ns: i64,
        /// Where the agent connected from.
        remote: String,
    },
}

impl Content {
    fn rows(&self) -> usize {
        match self {
            Self::Connections { columns, .. } => columns.rows,
            Self::Gaps { gaps, .. } => gaps.len(),
            Self::Ledger { counters, .. } => counters.len(),
            Self::Sample { .. } | Self::Session { .. } => 1,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Connections { columns, .. } => columns.heap_bytes(),
            Self::Gaps { gaps, .. } => gaps.len() * size_of::<Gap>(),
            Self::Ledger { counters, .. } => counters.len() * size_of::<StreamCounters>(),
            Self::Sample { .. } | Self::Session { .. } => 0,
        }
    }
}

/// Where an agent waits to hear of a batch.
pub struct Receipt {
    pub epoch: u64,
    pub stream: Stream,
    pub sequence: u64,
    pub replies: mpsc::Sender<Reply>,
    /// The batch's place among those that its agent may have in flight.
    pub slot: OwnedSemaphorePermit,
}

/// An answer to an agent. The channel that carries it has a place for every slot, so sending never waits.
pub struct Reply {
    pub message: CollectorMessage,
    /// Free again once the answer is on its way.
    pub slot: Option<OwnedSemaphorePermit>,
}

impl Receipt {
    /// Tells the agent that the batch will never be stored.
    pub fn refuse(self, reason: String) {
        let refusal = Refusal {
            stream: self.stream.into(),
            sequence: self.sequence,
            reason,
            epoch: self.epoch,
        };
        send(&self.replies, Body::Refusal(refusal), Some(self.slot));
    }
}

fn send(replies: &mpsc::Sender<Reply>, body: Body, slot: Option<OwnedSemaphorePermit>) {
    let reply = Reply {
        message: CollectorMessage { body: Some(body) },
        slot,
    };
    // Full it cannot be; closed it is when the agent went away, which then sends the batch again.
    let _ = replies.try_send(reply);
}

/// The way in. The gathering ends when the last one is dropped.
#[derive(Clone)]
pub struct Intake {
    parcels: mpsc::Sender<Parcel>,
    room: Arc<Semaphore>,
    room_bytes: usize,
    metrics: Arc<Metrics>,
}

impl Intake {
    /// Waits for room and hands the parcel over.
    pub async fn put(&self, agent: &Arc<Agent>, content: Content, receipt: Option<Receipt>) {
        let bytes = (size_of::<Parcel>() + content.heap_bytes()).min(self.room_bytes);
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = self
            .room
            .clone()
            .acquire_many_owned(permits)
            .await
            .expect("the room is never closed");
        self.metrics
            .gathered_bytes
            .set((self.room_bytes - self.room.available_permits()) as i64);
        let parcel = Parcel {
            agent: agent.clone(),
            content,
            receipt,
            _room: room,
        };
        // It is closed only after a shutdown that ran out of patience; the agent keeps what is not acknowledged.
        let _ = self.parcels.send(parcel).await;
    }
}

/// Starts the gathering. The handle ends once every [`Intake`] is gone and everything is settled.
pub fn start(
    store: Arc<dyn Store>,
    limits: Limits,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
) -> (Intake, JoinHandle<()>) {
    let (parcels, incoming) = mpsc::channel(QUEUE);
    let (groups, due) = mpsc::channel(1);
    let room = Arc::new(Semaphore::new(limits.gather_bytes));
    let intake = Intake {
        parcels,
        room: room.clone(),
        room_bytes: limits.gather_bytes,
        metrics: metrics.clone(),
    };
    let settling = Settling {
        store,
        metrics,
        health,
        room,
        room_bytes: limits.gather_bytes,
    };
    tokio::spawn(gather(incoming, limits, groups));
    (intake, tokio::spawn(settling.run(due)))
}

/// Builds groups and hands each over when it is due. Waits when two groups are ahead of it.
async fn gather(mut incoming: mpsc::Receiver<Parcel>, limits: Limits, groups: mpsc::Sender<Group>) {
    let mut open = OpenGroup::new(limits);
    loop {
        let parcel = match open.due_at() {
            None => incoming.recv().await,
            Some(due_at) => match tokio::time::timeout_at(due_at.into(), incoming.recv()).await {
                Ok(parcel) => parcel,
                Err(_) => {
                    if groups.send(open.take()).await.is_err() {
                        return;
                    }
                    continue;
                }
            },
        };
        let Some(parcel) = parcel else { break };
        open.push(parcel, Instant::now());
        if open.is_full() && groups.send(open.take()).await.is_err() {
            return;
        }
    }
    if !open.is_empty() {
        // Nobody is left to hear of a failure.
        let _ = groups.send(open.take()).await;
    }
}

/// The second task: inserts groups and tells the agents.
struct Settling {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    room: Arc<Semaphore>,
    room_bytes: usize,
}

impl Settling {
    async fn run(self, mut due: mpsc::Receiver<Group>) {
        while let Some(group) = due.recv().await {
            for parcels in group.blocks {
                self.settle(parcels).await;
                self.metrics
                    .gathered_bytes
                    .set((self.room_bytes - self.room.available_permits()) as i64);
            }
        }
    }

    /// Stores the parcels of one block. When the store refuses the block, halves of it are tried until what it
    /// refuses is a single parcel: that one is refused, the others are stored, in order.
    async fn settle(&self, parcels: Vec<Parcel>) {
        let mut untried = vec![parcels];
        while let Some(mut parcels) = untried.pop() {
            match self.insert(&parcels).await {
                Ok(()) => self.acknowledge(parcels),
                Err(reason) if parcels.len() == 1 => {
                    for parcel in parcels {
                        self.refuse(parcel, &reason);
                    }
                }
                Err(_) => {
                    let second_half = parcels.split_off(parcels.len() / 2);
                    untried.push(second_half);
                    untried.push(parcels);
                }
            }
        }
    }

    /// Inserts one block, however long the store is away. The error is why the store refuses it.
    async fn insert(&self, parcels: &[Parcel]) -> Result<(), String> {
        let (table, block) = encode::block(parcels).map_err(|error| error.to_string())?;
        let token = token(table, parcels);
        let Block { rows, .. } = block;
        let bytes = block.native.len();
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            match self.store.insert(table, &token, block.clone()).await {
                Ok(()) => {
                    if self.health.answered(Instant::now()) {
                        info!(table, rows, "the store is back");
                    }
                    self.metrics.stored(table, rows, bytes, started.elapsed());
                    return Ok(());
                }
                Err(StoreError::Unavailable { message }) => {
                    self.metrics.store_unavailable.inc();
                    if self.health.failed(&message) {
                        warn!(table, rows, %message, "the store is away; the rows wait");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(StoreError::Rejected { code, message }) if !is_about_the_rows(code) => {
                    self.metrics.store_unavailable.inc();
                    if self.health.failed(&message) {
                        warn!(table, rows, code, %message, "the store refuses inserts, whatever they hold; the rows wait");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(StoreError::Rejected { code, message }) => {
                    self.metrics.store_rejected.inc();
                    return Err(format!("the store refuses the rows (code {code}): {message}"));
                }
            }
        }
    }

    /// One message for each agent, with all of its sequences in the block.
    fn acknowledge(&self, parcels: Vec<Parcel>) {
        let mut open: Vec<Receipt> = parcels.into_iter().filter_map(|parcel| parcel.receipt).collect();
        self.metrics.batches_stored.inc_by(open.len() as u64);
        while let Some(first) = open.first() {
            let (replies, stream, epoch) = (first.replies.clone(), first.stream, first.epoch);
            let (own, others): (Vec<_>, Vec<_>) = open.into_iter().partition(|receipt| {
                (receipt.stream, receipt.epoch) == (stream, epoch) && receipt.replies.same_channel(&replies)
            });
            open = others;
            let sequences = own.iter().map(|receipt| receipt.sequence).collect();
            let slot = own
                .into_iter()
                .map(|receipt| receipt.slot)
                .reduce(|mut all, slot| {
                    all.merge(slot);
                    all
                });
            let acknowledgement = Acknowledgement {
                stream: stream.into(),
                sequences,
                epoch,
            };
            send(&replies, Body::Acknowledgement(acknowledgement), slot);
        }
    }

    fn refuse(&self, parcel: Parcel, reason: &str) {
        self.metrics.refused(refusal::STORE);
        warn!(
            node = parcel.agent.node,
            agent = parcel.agent.id,
            reason,
            "rows refused by the store"
        );
        if let Some(receipt) = parcel.receipt {
            receipt.refuse(reason.to_owned());
        }
    }
}

/// Whether ClickHouse's code speaks of the rows themselves (src/Common/ErrorCodes.cpp), so that they will never be
/// stored. Anything else, a missing table or a missing right, is the store's state, and rows wait until it is mended.
fn is_about_the_rows(code: u32) -> bool {
    matches!(
        code,
        6 // CANNOT_PARSE_TEXT
            | 27 // CANNOT_PARSE_INPUT_ASSERTION_FAILED
            | 33 // CANNOT_READ_ALL_DATA
            | 53 // TYPE_MISMATCH
            | 69 // ARGUMENT_OUT_OF_BOUND
            | 70 // CANNOT_CONVERT_TYPE
            | 72 // CANNOT_PARSE_NUMBER
            | 117 // INCORRECT_DATA
            | 128 // TOO_LARGE_ARRAY_SIZE
            | 131 // TOO_LARGE_STRING_SIZE
            | 190 // SIZES_OF_ARRAYS_DONT_MATCH
            | 321 // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
            | 349 // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
            | 469 // VIOLATED_CONSTRAINT
            | 691 // UNKNOWN_ELEMENT_OF_ENUM
    )
}

/// Names a block by the identities of its parcels, in order: the same parcels in the same composition, tried again,
/// have the same token.
fn token(table: &str, parcels: &[Parcel]) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, table).hash(&mut hasher);
        for Parcel { agent, content, .. } in parcels {
            let name = match content {
                Content::Connections { batch, .. } | Content::Gaps { batch, .. } => {
                    (batch.epoch, batch.sequence)
                }
                Content::Ledger {
                    epoch,
                    observed_at_ns,
                    ..
                }
                | Content::Sample {
                    epoch,
                    observed_at_ns,
                    ..
                } => (*epoch, *observed_at_ns as u64),
                Content::Session { connected_at_ns, .. } => (agent.epoch, *connected_at_ns as u64),
            };
            (&agent.id, name).hash(&mut hasher);
        }
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::decode::tests::decoded;

    /// Runs what needs a semaphore and nothing else.
    pub(super) fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(test);
    }

    pub(super) fn batch(sequence: u64, rows: usize, day: u32) -> Content {
        let columns = Connections {
            rows,
            day,
            ..decoded()
        };
        Content::Connections {
            batch: BatchName {
                epoch: 7,
                sequence,
                boot_id: "boot".to_owned(),
            },
            columns: Box::new(columns),
        }
    }

    pub(super) async fn parcel(agent_id: &str, content: Content) -> Parcel {
        let agent = Agent {
            id: agent_id.to_owned(),
            epoch: 7,
            node: format!("node-{agent_id}"),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            version: "0.1.0".to_owned(),
            boot_id: "b1".to_owned(),
            kernel: "6.18.0".to_owned(),
            architecture: "x86_64".to_owned(),
            observed_netns: "all".to_owned(),
            missing_features: Vec::new(),
        };
        Parcel {
            agent: Arc::new(agent),
            content,
            receipt: None,
            _room: Arc::new(Semaphore::new(1)).acquire_many_owned(1).await.unwrap(),
        }
    }

    #[test]
    fn a_token_names_the_batches_and_their_order() {
        run(async {
            let of = async |parts: &[(&str, u64)]| {
                let mut parcels = Vec::new();
                for (agent, sequence) in parts {
                    parcels.push(parcel(agent, batch(*sequence, 1, 0)).await);
                }
                token("t", &parcels)
            };
            let token = of(&[("a", 1), ("b", 2)]).await;
            assert_eq!(token, of(&[("a", 1), ("b", 2)]).await);
            assert_eq!(token.len(), 32);
            for other in [
                &[("b", 2), ("a", 1)][..],
                &[("a", 1)],
                &[("a", 1), ("b", 3)],
                &[("c", 1), ("b", 2)],
            ] {
                assert_ne!(token, of(other).await, "{other:?}");
            }
        });
    }
}
