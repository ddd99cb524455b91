//! The `Uplink` service: what agents dial. It lets an agent in, checks every message before anything is kept, and
//! hands checked parcels to `gather`, which stores and acknowledges them.
//!
//! A batch with a fault is refused by itself and does not hold up those behind it; a message that cannot be read, or
//! is out of place, ends the stream with a status. Reading waits while there is no room: the stream then fills up to
//! the agent.

pub mod agent;
pub mod decode;
pub mod registry;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_proto::PROTOCOL;
use holdfast_proto::v1::{
    Acknowledgement, AgentMessage, BatchRange, CollectorMessage, Hello, SealedBatch, StatusReceipt,
    Stream as RowStream, Welcome, Window, agent_message, collector_message, uplink_server::Uplink,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::config::Limits;
use crate::gather::{BatchName, Content, Intake, Receipt, Reply};
use crate::metrics::{Metrics, refusal};
use crate::store::{Store, questions};
use agent::{Agent, Unwelcome};
use decode::{AgentSample, Decoded, Malformed, Rows};
use registry::Registry;

/// Unacknowledged batches of one agent. Enough that an agent of small batches can fill half a second of gathering.
const BATCHES_IN_FLIGHT: u32 = 256;

/// How long the batches of an agent's former connection may take to be settled: longer than the store takes to come
/// back from a restart. The agent tries again after that.
const FENCE_TIMEOUT: Duration = Duration::from_secs(25);

/// Replies that no batch has a place for: the welcome, and the status that ends a stream.
const EXTRA_REPLIES: usize = 2;

/// How long a connected agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Agents' side of the collector.
pub struct Ingest {
    pub store: Arc<dyn Store>,
    /// The agents that are connected.
    pub registry: Arc<Registry>,
    pub intake: Intake,
    pub metrics: Arc<Metrics>,
    pub limits: Limits,
    /// True once the collector stops: nothing more is read, what was read is stored and acknowledged.
    pub stopping: watch::Receiver<bool>,
}

type Replies = std::pin::Pin<Box<dyn Stream<Item = Result<CollectorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Uplink for Ingest {
    type DeliverStream = Replies;

    async fn deliver(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Replies>, Status> {
        let (replies, outgoing) = mpsc::channel::<Reply>(BATCHES_IN_FLIGHT as usize + EXTRA_REPLIES);
        let (ending, end) = mpsc::channel::<Status>(1);
        let session = Session {
            store: self.store.clone(),
            registry: self.registry.clone(),
            intake: self.intake.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits,
            stopping: self.stopping.clone(),
            replies,
            remote: request
                .remote_addr()
                .map_or_else(String::new, |address| address.to_string()),
        };
        let messages = request.into_inner();
        tokio::spawn(async move {
            if let Err(status) = session.run(messages).await {
                // Nobody listens once the agent is gone.
                let _ = ending.send(status).await;
            }
        });
        // The replies end when the session and every receipt of its batches are gone; then comes the status, if any.
        let replies = ReceiverStream::new(outgoing).map(|reply| Ok(reply.message));
        let end = ReceiverStream::new(end).map(Err);
        Ok(Response::new(Box::pin(replies.chain(end))))
    }
}

/// One stream of one agent.
struct Session {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    intake: Intake,
    metrics: Arc<Metrics>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
    replies: mpsc::Sender<Reply>,
    /// Where the agent connected from, address and port.
    remote: String,
}

impl Session {
    /// Lets the agent in and takes what it delivers, until it leaves or the collector stops. The status is the
    /// agent's fault.
    async fn run(self, mut messages: Streaming<AgentMessage>) -> Result<(), Status> {
        let mut stopping = self.stopping.clone();
        let hello = tokio::select! {
            hello = self.hello(&mut messages) => hello?,
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
        };
        let Some(mut hello) = hello else { return Ok(()) };
        let unanswered = std::mem::take(&mut hello.unanswered);
        let agent = Arc::new(Agent::try_from(hello).map_err(|unwelcome| self.turn_away(&unwelcome))?);
        let mut seat = self
            .registry
            .seat(&agent, &self.remote)
            .map_err(|taken| self.turn_away(&Unwelcome::Taken(taken)))?;
        let deliveries = async {
            let _connected = Connected::new(&self.metrics, &agent);
            self.fence(&seat.slots).await?;
            let known = self.known(&agent, &unanswered).await?;
            self.welcome().await;
            for acknowledgement in known {
                self.say(collector_message::Body::Acknowledgement(acknowledgement))
                    .await;
            }
            let content = Content::Session {
                connected_at_ns: now_ns(),
                remote: self.remote.clone(),
            };
            self.intake.put(&agent, content, None).await;
            loop {
                let message = messages
                    .message()
                    .await
                    .map_err(|status| self.unreadable(&agent, &status))?;
                let Some(message) = message else { return Ok(()) };
                self.take(&agent, &seat.slots, message).await?;
            }
        };
        tokio::select! {
            outcome = deliveries => outcome,
            _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
            // Another connection of the same agent has taken over; this one only waits to be noticed dead.
            () = seat.displaced.displaced() => Ok(()),
        }
    }

    /// Waits until every batch of the agent's former connections is settled: what is in the store then is all that
    /// will be there of them.
    async fn fence(&self, slots: &Arc<Semaphore>) -> Result<(), Status> {
        let all = slots.clone().acquire_many_owned(BATCHES_IN_FLIGHT);
        match tokio::time::timeout(FENCE_TIMEOUT, all).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::unavailable(
                "batches of this agent's former connection wait for the store, which is away",
            )),
        }
    }

    /// Which of the batches that the agent holds are in the store already.
    async fn known(&self, agent: &Agent, unanswered: &[BatchRange]) -> Result<Vec<Acknowledgement>, Status> {
        let mut known = Vec::new();
        for range in unanswered {
            let Ok(stream) = RowStream::try_from(range.stream) else {
                continue;
            };
            let sequences =
                questions::stored_sequences(&*self.store, &agent.node, &agent.id, stream, range).await;
            let sequences = sequences.map_err(|error| {
                Status::unavailable(format!("the store cannot say which batches it has: {error}"))
            })?;
            if !sequences.is_empty() {
                known.push(Acknowledgement {
                    epoch: range.epoch,
                    stream: range.stream,
                    sequences,
                });
            }
        }
        Ok(known)
    }

    /// The agent's first message; `None` when it left without one.
    async fn hello(&self, messages: &mut Streaming<AgentMessage>) -> Result<Option<Hello>, Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello came within 10 s"))?;
        let first = first.inspect_err(|_| self.metrics.refused(refusal::UNREADABLE))?;
        match first.map(|message| message.body) {
            None => Ok(None),
            Some(Some(agent_message::Body::Hello(hello))) => Ok(Some(hello)),
            Some(_) => Err(self.turn_away(&Unwelcome::NoHello)),
        }
    }

    fn turn_away(&self, unwelcome: &Unwelcome) -> Status {
        warn!(%unwelcome, "an agent was turned away");
        match unwelcome {
            Unwelcome::Protocol { .. } => {
                self.metrics.refused(refusal::PROTOCOL);
                Status::failed_precondition(unwelcome.to_string())
            }
            Unwelcome::Taken(_) => {
                self.metrics.refused(refusal::HELLO);
                Status::already_exists(unwelcome.to_string())
            }
            Unwelcome::NoHello | Unwelcome::Field { .. } => {
                self.metrics.refused(refusal::HELLO);
                Status::invalid_argument(unwelcome.to_string())
            }
        }
    }

    async fn welcome(&self) {
        let welcome = Welcome {
            protocol: PROTOCOL,
            collector_version: env!("CARGO_PKG_VERSION").to_owned(),
            max_batch_bytes: self.limits.max_batch_bytes as u64,
            window: Some(Window {
                batches: BATCHES_IN_FLIGHT,
                bytes: (self.limits.gather_bytes / 2) as u64,
            }),
        };
        self.say(collector_message::Body::Welcome(welcome)).await;
    }

    async fn say(&self, body: collector_message::Body) {
        let message = CollectorMessage { body: Some(body) };
        // It fails when the agent is gone, which reading tells as well.
        let _ = self.replies.send(Reply { message, slot: None }).await;
    }

    fn unreadable(&self, agent: &Agent, status: &Status) -> Status {
        // A connection that broke is no fault of the message.
        if !matches!(status.code(), tonic::Code::Internal | tonic::Code::OutOfRange) {
            return status.clone();
        }
        self.metrics.refused(refusal::UNREADABLE);
        warn!(
            node = agent.node,
            agent = agent.id,
            reason = status.message(),
            "a message cannot be read"
        );
        Status::invalid_argument(status.message())
    }

    async fn take(
        &self,
        agent: &Arc<Agent>,
        slots: &Arc<Semaphore>,
        message: AgentMessage,
    ) -> Result<(), Status> {
        match message.body {
            Some(agent_message::Body::Batch(batch)) => {
                self.take_batch(agent, slots, batch).await;
                Ok(())
            }
            Some(agent_message::Body::Status(status)) => {
                let received_at_ns = now_ns();
                let receipt = StatusReceipt {
                    observed_at_ns: status.observed_at_ns,
                    received_at_ns: received_at_ns.unsigned_abs(),
                };
                let message = CollectorMessage {
                    body: Some(collector_message::Body::Receipt(receipt)),
                };
                // An agent that does not read its answers does without this one.
                let _ = self.replies.try_send(Reply { message, slot: None });
                let epoch = if status.epoch == 0 {
                    agent.epoch
                } else {
                    status.epoch
                };
                let sample = AgentSample::from(&status);
                match decode::status(status, received_at_ns) {
                    Ok((observed_at_ns, counters)) => {
                        let content = Content::Sample {
                            epoch,
                            observed_at_ns,
                            sample,
                        };
                        self.intake.put(agent, content, None).await;
                        if counters.is_empty() {
                            return Ok(());
                        }
                        let content = Content::Ledger {
                            epoch,
                            observed_at_ns,
                            counters,
                        };
                        self.intake.put(agent, content, None).await;
                    }
                    Err(malformed) => self.count_refusal(agent, 0, &malformed),
                }
                Ok(())
            }
            Some(agent_message::Body::Hello(_)) => {
                self.metrics.refused(refusal::HELLO);
                Err(Status::invalid_argument("a second Hello in one stream"))
            }
            None => {
                self.metrics.refused(refusal::UNREADABLE);
                Err(Status::invalid_argument(
                    "a message of no known kind: upgrade the collector",
                ))
            }
        }
    }

    async fn take_batch(&self, agent: &Arc<Agent>, slots: &Arc<Semaphore>, sealed: SealedBatch) {
        self.metrics.batches_received.inc();
        // Waits while the agent has as many unacknowledged batches as it may.
        let slot = slots.clone().acquire_owned().await;
        let slot = slot.expect("the slots are never closed");
        let receipt = Receipt {
            epoch: sealed.epoch,
            stream: RowStream::try_from(sealed.stream).unwrap_or(RowStream::Unspecified),
            sequence: sealed.sequence,
            replies: self.replies.clone(),
            slot,
        };
        let name = |boot_id| BatchName {
            epoch: receipt.epoch,
            sequence: receipt.sequence,
            boot_id,
        };
        if sealed.encoded.len() > self.limits.max_batch_bytes {
            self.metrics.refused(refusal::UNREADABLE);
            let reason = format!(
                "{} bytes, and a batch has {} at most",
                sealed.encoded.len(),
                self.limits.max_batch_bytes
            );
            return receipt.refuse(reason);
        }
        match decode::sealed(sealed, now_ns()) {
            Ok(Decoded { boot_id, rows }) => {
                let batch = name(boot_id);
                let content = match rows {
                    Rows::Connections(columns) => Content::Connections { batch, columns },
                    Rows::Gaps(gaps) => Content::Gaps { batch, gaps },
                };
                self.intake.put(agent, content, Some(receipt)).await;
            }
            Err(malformed) => {
                self.count_refusal(agent, receipt.sequence, &malformed);
                receipt.refuse(malformed.to_string());
            }
        }
    }

    fn count_refusal(&self, agent: &Agent, sequence: u64, malformed: &Malformed) {
        self.metrics.refused(malformed.kind());
        warn!(node = agent.node, agent = agent.id, sequence, reason = %malformed, "a message was refused");
    }
}

/// Counts an agent while its stream is open.
struct Connected<'a> {
    metrics: &'a Metrics,
    agent: &'a Agent,
}

impl<'a> Connected<'a> {
    fn new(metrics: &'a Metrics, agent: &'a Agent) -> Self {
        metrics.agents_connected.inc();
        info!(
            node = agent.node,
            agent = agent.id,
            epoch = agent.epoch,
            version = agent.version,
            "agent connected"
        );
        Self { metrics, agent }
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.metrics.agents_connected.dec();
        info!(
            node = self.agent.node,
            agent = self.agent.id,
            epoch = self.agent.epoch,
            "agent left"
        );
    }
}

/// The collector's wall clock.
pub fn now_ns() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}
