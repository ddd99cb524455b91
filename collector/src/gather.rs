//! Gathers what all agents deliver into large blocks and makes them durable: `ingest` puts checked parcels in, the
//! store takes blocks, and only then the agents get their acknowledgements.
//!
//! Two tasks: one gathers while the other inserts a group of blocks, and has the next one made when it is done. Memory is
//! bounded by room that a parcel takes on its way in and gives back once it is settled (`room`); an agent whose parcel finds no
//! room is not read. An agent's batches become durable in its order, except that batches of different days or tables may
//! change places: agents take turns with what is of another day than that of all (`group`).
//!
//! A parcel is never split. A block has the rows of one table and one day, so it becomes one part, atomically.

pub mod encode;
mod group;
pub mod room;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_proto::v1::{
    Acknowledgement, CollectorMessage, Gap, Overhead, Refusal, StreamCounters, collector_message::Body,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::claims::{Claims, LEASE, Lease};
use crate::clock::WallClock;
use crate::config::Limits;
use crate::health::Health;
use crate::ingest::agent::Agent;
use crate::ingest::decode::{
    self, AgentSample, Cgroups, Connections, Listeners, Namespaces, OpenConnections, Peers, Rows, Syscalls,
    Transitions,
};
use crate::metrics::{Metrics, refusal};
use crate::quarantine::{self, Quarantine, RefusedName};
use crate::rollup::Minutes;
use crate::store::layout::Layout;
use crate::store::{Store, StoreError};
use group::{Group, OpenGroup};
use room::{Room, Rooms, Share};

/// The first pause before a block is tried again; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause. A store that is back waits no longer than this for its rows.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often it is said that the store's disk is nearly full.
const SAY_HALVED_EVERY: Duration = Duration::from_secs(60);

/// Parcels between the agents' tasks and the gathering one. Room bounds their memory; this only saves wake-ups.
const QUEUE: usize = 64;

/// What is delivered at once and settled at once.
pub struct Parcel {
    pub agent: Arc<Agent>,
    pub content: Content,
    /// `None` for what is not acknowledged.
    pub receipt: Option<Receipt>,
    /// Memory that the parcel occupies, given back when it is dropped.
    _room: Room,
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
        /// When they were told, in nanoseconds since the Unix epoch by the collector's clock: what is missing may be of a day
        /// that a wrong clock said.
        told_ns: i64,
    },
    OpenConnections {
        batch: BatchName,
        look: Box<OpenConnections>,
    },
    Listeners {
        batch: BatchName,
        look: Listeners,
    },
    Namespaces {
        batch: BatchName,
        look: Namespaces,
    },
    Cgroups {
        batch: BatchName,
        look: Cgroups,
    },
    Peers {
        batch: BatchName,
        look: Peers,
    },
    Syscalls {
        batch: BatchName,
        columns: Box<Syscalls>,
    },
    Transitions {
        batch: BatchName,
        columns: Box<Transitions>,
    },
    Overhead {
        batch: BatchName,
        intervals: Vec<Overhead>,
    },
    Ledger {
        epoch: u64,
        observed_at_ns: i64,
        /// By the collector's clock.
        received_at_ns: i64,
        /// Nothing of this start will change any more.
        is_final: bool,
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
    /// The rows of a batch that came at `told_ns` by the collector's clock, in nanoseconds since the Unix epoch.
    pub fn of(batch: BatchName, rows: Rows, told_ns: i64) -> Self {
        match rows {
            Rows::Connections(columns) => Self::Connections { batch, columns },
            Rows::Gaps(gaps) => Self::Gaps { batch, gaps, told_ns },
            Rows::Syscalls(columns) => Self::Syscalls { batch, columns },
            Rows::Transitions(columns) => Self::Transitions { batch, columns },
            Rows::OpenConnections(look) => Self::OpenConnections { batch, look },
            Rows::Listeners(look) => Self::Listeners { batch, look },
            Rows::Overhead(intervals) => Self::Overhead { batch, intervals },
            Rows::Namespaces(look) => Self::Namespaces { batch, look },
            Rows::Peers(look) => Self::Peers { batch, look },
            Rows::Cgroups(look) => Self::Cgroups { batch, look },
        }
    }

    pub fn rows(&self) -> usize {
        match self {
            Self::Connections { columns, .. } => columns.rows,
            Self::Gaps { gaps, .. } => gaps.len(),
            Self::OpenConnections { look, .. } => look.connections.rows,
            Self::Listeners { look, .. } => look.listeners.len(),
            Self::Namespaces { look, .. } => look.namespaces.len(),
            Self::Peers { look, .. } => look.peers.len(),
            Self::Cgroups { look, .. } => look.cgroups.len(),
            Self::Syscalls { columns, .. } => columns.rows,
            Self::Transitions { columns, .. } => columns.rows,
            Self::Overhead { intervals, .. } => intervals.len(),
            Self::Ledger { counters, .. } => counters.len(),
            Self::Sample { .. } | Self::Session { .. } => 1,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Connections { columns, .. } => columns.heap_bytes(),
            Self::Gaps { gaps, .. } => gaps.len() * size_of::<Gap>(),
            Self::OpenConnections { look, .. } => look.connections.heap_bytes(),
            Self::Listeners { look, .. } => look.heap_bytes(),
            Self::Namespaces { look, .. } => look.heap_bytes(),
            Self::Peers { look, .. } => look.heap_bytes(),
            Self::Cgroups { look, .. } => look.heap_bytes(),
            Self::Syscalls { columns, .. } => columns.heap_bytes(),
            Self::Transitions { columns, .. } => columns.heap_bytes(),
            Self::Overhead { intervals, .. } => decode::overhead_bytes(intervals),
            Self::Ledger { counters, .. } => counters.len() * size_of::<StreamCounters>(),
            Self::Sample { .. } | Self::Session { .. } => 0,
        }
    }
}

/// Where an agent waits to hear of a batch.
pub struct Receipt {
    pub epoch: u64,
    /// As it travelled: it may be one that this collector does not know.
    pub stream: i32,
    pub sequence: u64,
    pub replies: mpsc::Sender<Reply>,
    /// The batch as it travelled. Its decoded columns hold on to it in any case.
    pub encoded: Bytes,
    /// The batch's place among those that its agent may have in flight.
    pub slot: OwnedSemaphorePermit,
    /// Ends the stream that the batch came on.
    pub lost: mpsc::Sender<Loss>,
}

/// Why batches were dropped without an answer, and the stream that they came on ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Another collector has the agent.
    TakenOver,
    /// Whether they are stored is not known here: they were in one block with batches of an agent that was taken over.
    InDoubt,
}

/// An answer to an agent. The channel that carries it has a place for every slot, so sending never waits.
pub struct Reply {
    pub message: CollectorMessage,
    /// Free again once the answer is on its way.
    pub slot: Option<OwnedSemaphorePermit>,
}

impl Receipt {
    /// Tells the agent that the batch is in the store.
    pub fn acknowledge(self) {
        let acknowledgement = Acknowledgement {
            stream: self.stream,
            sequences: vec![self.sequence],
            epoch: self.epoch,
        };
        send(
            &self.replies,
            Body::Acknowledgement(acknowledgement),
            Some(self.slot),
        );
    }

    /// Tells the agent that the batch will never be stored.
    pub fn refuse(self, reason: String) {
        let refusal = Refusal {
            stream: self.stream,
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
    pub rooms: Rooms,
    pub quarantine: Quarantine,
    pub claims: Claims,
}

impl Intake {
    /// Waits for room and hands over what is not acknowledged.
    pub async fn put(&self, agent: &Arc<Agent>, share: &Arc<Share>, content: Content) {
        let bytes = size_of::<Parcel>() + content.heap_bytes();
        let room = self.rooms.take(share, bytes).await;
        self.put_into(room, agent, content, None).await;
    }

    /// Hands over what has room already.
    pub async fn put_into(
        &self,
        mut room: Room,
        agent: &Arc<Agent>,
        content: Content,
        receipt: Option<Receipt>,
    ) {
        let encoded_bytes = receipt.as_ref().map_or(0, |receipt| receipt.encoded.len());
        room.shrink_to(size_of::<Parcel>() + content.heap_bytes() + encoded_bytes);
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
    minutes: Minutes,
    clock: WallClock,
) -> (Intake, JoinHandle<()>) {
    let (parcels, incoming) = mpsc::channel(QUEUE);
    let (asking, wanted) = mpsc::channel(1);
    let rooms = Rooms::new(limits.gather_bytes, metrics.clone());
    let (quarantine, set_aside) = quarantine::start(store.clone(), metrics.clone(), clock);
    let claims = Claims::start(store.clone());
    let intake = Intake {
        parcels,
        rooms: rooms.clone(),
        quarantine: quarantine.clone(),
        claims: claims.clone(),
    };
    let settling = Settling {
        store,
        metrics,
        health,
        minutes,
        rooms,
        quarantine,
        claims: claims.clone(),
        said_halved_at: Mutex::default(),
    };
    tokio::spawn(gather(incoming, limits, wanted));
    let settled = async move {
        settling.run(asking).await;
        claims.release().await;
        // It failed only if it panicked, which was said.
        let _ = set_aside.await;
    };
    (intake, tokio::spawn(settled))
}

/// Gathers, and makes a group when one is due and is asked for: as late as that, so that it has all that came meanwhile.
async fn gather(
    mut incoming: mpsc::Receiver<Parcel>,
    limits: Limits,
    mut wanted: mpsc::Receiver<oneshot::Sender<Group>>,
) {
    let mut open = OpenGroup::new(limits);
    let mut asked = None;
    let mut is_ended = false;
    while !(is_ended && open.is_empty()) {
        let due_at = open.due_at();
        let due = async {
            match due_at {
                Some(due_at) => tokio::time::sleep_until(due_at).await,
                None => std::future::pending().await,
            }
        };
        // What is on its way comes first. That has an end: no room becomes free meanwhile.
        tokio::select! {
            biased;
            parcel = incoming.recv(), if !is_ended => match parcel {
                Some(parcel) => open.push(parcel, Instant::now()),
                None => {
                    is_ended = true;
                    open.hurry();
                }
            },
            by = wanted.recv(), if asked.is_none() => match by {
                Some(by) => asked = Some(by),
                // Nobody is left to store anything.
                None => return,
            },
            () = due, if asked.is_some() => {
                let group = open.take(Instant::now());
                if asked.take().is_some_and(|by| by.send(group).is_err()) {
                    return;
                }
            }
        }
    }
}

/// The second task: inserts groups and tells the agents.
struct Settling {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    minutes: Minutes,
    rooms: Rooms,
    quarantine: Quarantine,
    claims: Claims,
    /// When it was said last that blocks are made smaller.
    said_halved_at: Mutex<Option<Instant>>,
}

/// Why a block is not stored.
enum Unsettled {
    /// The store refuses it for its content; the text says why.
    Refused(String),
    /// Other collectors have these agents. Nothing of the block is stored, unless an earlier attempt had an unknown
    /// outcome.
    Lost {
        agents: BTreeSet<String>,
        is_unknown: bool,
    },
    /// It does not reach the store within a lease. Nothing of it is stored.
    Late,
    /// The store's disk has no room for so many rows at once. Nothing of it is stored.
    TooLarge,
}

impl Settling {
    async fn run(self, wanted: mpsc::Sender<oneshot::Sender<Group>>) {
        loop {
            let (by, made) = oneshot::channel();
            if wanted.send(by).await.is_err() {
                return;
            }
            let Ok(group) = made.await else { return };
            let mut put_off = Vec::new();
            for parcels in group.blocks {
                self.rooms.insert_began(Instant::now());
                self.settle(parcels, Some(&mut put_off)).await;
                self.rooms.insert_ended(Instant::now());
                self.rooms.show();
            }
            for parcels in put_off {
                self.rooms.insert_began(Instant::now());
                self.settle(parcels, None).await;
                self.rooms.insert_ended(Instant::now());
                self.rooms.show();
            }
        }
    }

    /// Stores the parcels of one block. When the store refuses the block, halves of it are tried until what it
    /// refuses is a single parcel: that one is refused, the others are stored, in order. So are halves of a block that
    /// is too large for the way to the store, or for what its disk has left; a single parcel for which that has no room is
    /// put off, so that others find theirs, or waited for where nothing may be (`None`). What belongs to agents that
    /// another collector has is dropped.
    async fn settle(&self, parcels: Vec<Parcel>, mut put_off: Option<&mut Vec<Vec<Parcel>>>) {
        let mut untried = vec![parcels];
        while let Some(mut parcels) = untried.pop() {
            self.health.insert_began(Instant::now());
            let inserted = self.insert(&parcels, put_off.is_some()).await;
            // A half of what is late or too large has waited as long as the whole.
            let is_to_be_halved = matches!(inserted, Err(Unsettled::Late | Unsettled::TooLarge));
            let had_failed = !is_to_be_halved && self.health.insert_ended();
            if had_failed && inserted.is_ok() {
                info!("the store takes rows again");
            }
            match inserted {
                Ok(()) => {
                    self.tell_rollup(&parcels);
                    self.acknowledge(parcels);
                }
                // Those of others may be stored, or come to be, under the token of the whole block: whoever asks the
                // store then, and not we, knows.
                Err(Unsettled::Lost {
                    agents,
                    is_unknown: true,
                }) => self.let_go(parcels, &agents, true),
                Err(Unsettled::Lost { agents, .. }) => {
                    let (lost, kept) = parcels
                        .into_iter()
                        .partition(|parcel| agents.contains(&parcel.agent.id));
                    self.let_go(lost, &agents, false);
                    if !kept.is_empty() {
                        untried.push(kept);
                    }
                }
                Err(Unsettled::Refused(reason)) if parcels.len() == 1 => {
                    for parcel in parcels {
                        self.refuse(parcel, &reason);
                    }
                }
                Err(Unsettled::TooLarge) if parcels.len() == 1 => {
                    let put_off = put_off
                        .as_mut()
                        .expect("where nothing may be put off it is waited");
                    put_off.push(parcels);
                }
                Err(Unsettled::Refused(_) | Unsettled::Late | Unsettled::TooLarge) => {
                    let second_half = parcels.split_off(parcels.len() / 2);
                    untried.push(second_half);
                    untried.push(parcels);
                }
            }
        }
    }

    /// Inserts one block, however long the store is away. `may_be_put_off`: a single parcel need not wait for room.
    async fn insert(&self, parcels: &[Parcel], may_be_put_off: bool) -> Result<(), Unsettled> {
        let contents = parcels.iter().map(|parcel| (&*parcel.agent, &parcel.content));
        let (table, mut block) =
            encode::block(contents).map_err(|error| Unsettled::Refused(error.to_string()))?;
        let token = token(table, parcels);
        let (rows, bytes) = (block.rows, block.native.len());
        let mut is_unknown = false;
        let mut times_late = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let inserted = match self.lease(parcels).await {
                Ok(lease) if !lease.lost.is_empty() => {
                    return Err(Unsettled::Lost {
                        agents: lease.lost,
                        is_unknown,
                    });
                }
                Ok(lease) => {
                    block.deadline_ms = lease.deadline_ms;
                    let inserted = self.store.insert(table, &token, block.clone()).await;
                    let says_so = matches!(inserted, Err(StoreError::LeaseEnded | StoreError::Full { .. }));
                    let is_known_absent = says_so && self.store.layout() == Layout::OneServer;
                    is_unknown |= inserted.is_err() && !is_known_absent;
                    inserted
                }
                Err(error) => Err(error),
            };
            match inserted {
                Ok(()) => {
                    self.health.answered(Instant::now());
                    self.metrics.stored(table, rows, bytes, started.elapsed());
                    return Ok(());
                }
                Err(StoreError::Full { message }) => {
                    if parcels.len() > 1 && !is_unknown {
                        self.metrics.blocks_halved.inc();
                        self.say_halved(&message);
                        return Err(Unsettled::TooLarge);
                    }
                    self.metrics.store_unavailable.inc();
                    if may_be_put_off && !is_unknown {
                        return Err(Unsettled::TooLarge);
                    }
                    if self.health.insert_failed(
                        &format!("the disk of the store is full: {message}"),
                        Instant::now(),
                    ) {
                        warn!(table, rows, %message, "the disk of the store is full: the rows wait until there is space");
                    }
                    self.claims.read_the_clock_again();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error @ (StoreError::Unavailable { .. } | StoreError::LeaseEnded)) => {
                    let message = error.to_string();
                    self.metrics.store_unavailable.inc();
                    if matches!(error, StoreError::LeaseEnded) {
                        // The first time something may have paused, and its lease was not a new one.
                        times_late += 1;
                        if times_late > 1 && !is_unknown && parcels.len() > 1 {
                            return Err(Unsettled::Late);
                        }
                        if times_late == 2 {
                            warn!(
                                table,
                                rows,
                                bytes,
                                "the link to the store is too slow for a block within {LEASE:?}; it is tried again"
                            );
                        }
                    }
                    if self.health.insert_failed(&message, Instant::now()) {
                        warn!(table, rows, %message, "the store is away; the rows wait");
                    }
                    self.claims.read_the_clock_again();
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(StoreError::Rejected { code, message }) if !is_about_the_rows(code) => {
                    self.metrics.store_unavailable.inc();
                    if self.health.insert_failed(&message, Instant::now()) {
                        warn!(table, rows, code, %message, "the store refuses inserts, whatever they hold; the rows wait");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(StoreError::Rejected { code, message }) => {
                    self.metrics.store_rejected.inc();
                    let reason = format!("the store refuses the rows (code {code}): {message}");
                    return Err(Unsettled::Refused(reason));
                }
            }
        }
    }

    /// The disk is nearly full: whoever reads the log hears of it before nothing fits any more.
    fn say_halved(&self, message: &str) {
        let now = Instant::now();
        let mut said_at = self.said_halved_at.lock().unwrap_or_else(PoisonError::into_inner);
        if said_at.is_none_or(|said_at| now.duration_since(said_at) >= SAY_HALVED_EVERY) {
            *said_at = Some(now);
            warn!(
                %message,
                "the disk of the store is nearly full: rows are stored in smaller blocks while these find room; make space \
                 there, or shorten --retention"
            );
        }
    }

    /// What may be inserted now of a block. Of what agents report and never send again, whoever brings it, everything.
    async fn lease(&self, parcels: &[Parcel]) -> Result<Lease, StoreError> {
        let batches = parcels.iter().filter(|parcel| parcel.receipt.is_some());
        let agents: BTreeSet<&str> = batches.map(|parcel| parcel.agent.id.as_str()).collect();
        if agents.is_empty() {
            return Ok(Lease::default());
        }
        self.claims.lease(agents).await
    }

    /// Drops batches without an answer and ends their streams: agents send them again, to whoever has them then. Other
    /// collectors have the agents in `taken`. An agent that comes back before an insert with an unknown outcome has ended, as the store sees to it, waits for that.
    fn let_go(&self, parcels: Vec<Parcel>, taken: &BTreeSet<String>, is_unknown: bool) {
        let mut slots = Vec::new();
        if is_unknown {
            self.claims
                .forget(parcels.iter().map(|parcel| parcel.agent.id.as_str()));
        }
        for parcel in parcels {
            self.metrics.batches_lost.inc();
            let loss = if taken.contains(&parcel.agent.id) {
                Loss::TakenOver
            } else {
                Loss::InDoubt
            };
            if let Some(Receipt { lost, slot, .. }) = parcel.receipt {
                // One is enough to end the stream.
                let _ = lost.try_send(loss);
                slots.push(slot);
            }
        }
        if is_unknown {
            let longest = self.claims.longest_lease();
            tokio::spawn(async move {
                tokio::time::sleep(longest).await;
                drop(slots);
            });
        }
    }

    /// Says which minutes have more rows now.
    fn tell_rollup(&self, parcels: &[Parcel]) {
        for Parcel { agent, content, .. } in parcels {
            match content {
                Content::Connections { columns, .. } => {
                    self.minutes.stored(&agent.node, &columns.recorded_at_ns);
                    self.minutes.causes.attempts(&columns.recorded_at_ns);
                }
                Content::Namespaces { look, .. } => self.minutes.causes.evidence(look.observed_at_ns),
                Content::Listeners { look, .. } => self.minutes.causes.evidence(look.observed_at_ns),
                Content::Peers { look, .. } => self.minutes.causes.evidence(look.ended_at_ns),
                Content::Sample {
                    observed_at_ns,
                    sample,
                    ..
                } if sample.spool_batches == 0 => self.minutes.delivered(&agent.node, *observed_at_ns),
                _ => {}
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
                stream,
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
            let name = RefusedName {
                epoch: receipt.epoch,
                stream: receipt.stream,
                sequence: receipt.sequence,
            };
            self.quarantine
                .set_aside(&parcel.agent, name, &receipt.encoded, reason);
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
                Content::Connections { batch, .. }
                | Content::Gaps { batch, .. }
                | Content::OpenConnections { batch, .. }
                | Content::Listeners { batch, .. }
                | Content::Overhead { batch, .. }
                | Content::Namespaces { batch, .. }
                | Content::Peers { batch, .. }
                | Content::Cgroups { batch, .. }
                | Content::Transitions { batch, .. }
                | Content::Syscalls { batch, .. } => (batch.epoch, batch.sequence),
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
            addresses: Vec::new(),
        };
        Parcel {
            agent: Arc::new(agent),
            content,
            receipt: None,
            _room: Rooms::new(1, Arc::new(Metrics::new(&[]).unwrap()))
                .take(&Arc::default(), 1)
                .await,
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
