//! The `Uplink` service: what agents dial. It lets an agent in, checks every message before anything is kept, and
//! hands checked parcels to `gather`, which stores and acknowledges them.
//!
//! A batch with a fault is refused by itself and does not hold up those behind it; a message that cannot be read, or
//! is out of place, ends the stream with a status. Reading waits while there is no room: the stream then fills up to
//! the agent.

pub mod agent;
pub mod decode;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use holdfast_proto::PROTOCOL;
use holdfast_proto::v1::{
    AgentMessage, Batch, CollectorMessage, Hello, Stream as RowStream, Welcome, agent_message,
    collector_message, uplink_server::Uplink,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::config::Limits;
use crate::gather::{Content, Intake, Receipt, Reply};
use crate::metrics::{Metrics, refusal};
use agent::{Agent, Unwelcome};
use decode::Malformed;

/// Unacknowledged batches of one agent. Enough that an agent of small batches can fill half a second of gathering.
const BATCHES_IN_FLIGHT: u32 = 256;

/// Replies that no batch has a place for: the welcome, and the status that ends a stream.
const EXTRA_REPLIES: usize = 2;

/// How long a connected agent may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Agents' side of the collector.
pub struct Ingest {
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
            intake: self.intake.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits,
            stopping: self.stopping.clone(),
            slots: Arc::new(Semaphore::new(BATCHES_IN_FLIGHT as usize)),
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
    intake: Intake,
    metrics: Arc<Metrics>,
    limits: Limits,
    stopping: watch::Receiver<bool>,
    /// Places for unacknowledged batches.
    slots: Arc<Semaphore>,
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
        let Some(hello) = hello else { return Ok(()) };
        let agent = Arc::new(Agent::try_from(hello).map_err(|unwelcome| self.turn_away(&unwelcome))?);
        let _connected = Connected::new(&self.metrics, &agent);
        self.welcome().await;
        let deliveries = async {
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
                self.take(&agent, message).await?;
            }
        };
        tokio::select! {
            outcome = deliveries => outcome,
            _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
        }
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
            max_batches_in_flight: BATCHES_IN_FLIGHT,
        };
        let message = CollectorMessage {
            body: Some(collector_message::Body::Welcome(welcome)),
        };
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

    async fn take(&self, agent: &Arc<Agent>, message: AgentMessage) -> Result<(), Status> {
        match message.body {
            Some(agent_message::Body::Batch(batch)) => self.take_batch(agent, batch).await,
            Some(agent_message::Body::Status(status)) => {
                match decode::status(status, now_ns()) {
                    // An agent without streams yet only says that it lives, which its stream says too.
                    Ok((_, counters)) if counters.is_empty() => {}
                    Ok((observed_at_ns, counters)) => {
                        let content = Content::Ledger {
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

    async fn take_batch(&self, agent: &Arc<Agent>, batch: Batch) -> Result<(), Status> {
        self.metrics.batches_received.inc();
        let slot = self.slot().await;
        let (stream, sequence) = (batch.stream, batch.sequence);
        match decode::connections(batch, now_ns()) {
            Ok(columns) => {
                let receipt = Receipt {
                    stream: RowStream::Connections,
                    sequence,
                    replies: self.replies.clone(),
                    slot,
                };
                let content = Content::Connections {
                    sequence,
                    columns: Box::new(columns),
                };
                self.intake.put(agent, content, Some(receipt)).await;
            }
            Err(malformed) => {
                self.count_refusal(agent, sequence, &malformed);
                let stream = RowStream::try_from(stream).unwrap_or(RowStream::Unspecified);
                let receipt = Receipt {
                    stream,
                    sequence,
                    replies: self.replies.clone(),
                    slot,
                };
                receipt.refuse(malformed.to_string());
            }
        }
        Ok(())
    }

    /// Waits while the agent has as many unacknowledged batches as it may.
    async fn slot(&self) -> OwnedSemaphorePermit {
        self.slots
            .clone()
            .acquire_owned()
            .await
            .expect("the slots are never closed")
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
