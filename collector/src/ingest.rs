//! The `Uplink` service: what agents dial. It lets an agent in, checks every message before anything is kept, and
//! hands checked parcels to `gather`, which stores and acknowledges them.
//!
//! A batch with a fault is refused by itself and does not hold up those behind it; a message that cannot be read, or
//! is out of place, ends the stream with a status. Reading waits while there is no room for what an agent sends: the
//! stream then fills up to the agent. So that it rarely comes to that, each agent is told its window, and again when
//! it changes.

pub mod agent;
pub mod arrivals;
pub mod decode;
mod pace;
pub mod registry;
mod repeats;
pub mod reports;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::stream::{PollNext, select_with_strategy};
use holdfast_proto::v1::{
    Acknowledgement, AgentMessage, BatchRange, CollectorMessage, Hello, ProbeReport, SealedBatch,
    StatusReceipt, StoredRows, Stream as RowStream, Welcome, Window, agent_message, collector_message,
    uplink_server::Uplink,
};
use holdfast_proto::{NO_MESSAGE, PROTOCOL};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use crate::clock::WallClock;
use crate::config::Limits;
use crate::control::{Orders, Rules};
use crate::door::Caller;
use crate::engine::heard::Heard;
use crate::gather::{BatchName, Content, Intake, Loss, Receipt, Reply};
use crate::metrics::{Metrics, refusal};
use crate::quarantine::RefusedName;
use crate::runs::Runs;
use crate::store::{Store, probes, questions};
use agent::{Agent, Unwelcome};
use arrivals::{Arrival, Arrivals};
use decode::restamp::NodeClock;
use decode::{AgentSample, Decoded, Malformed};
use registry::{NoSeat, Registry, Seat};
use repeats::Repeats;
use reports::Reports;

/// Unacknowledged batches of one agent. Enough that an agent of small batches can fill half a second of gathering.
pub const BATCHES_IN_FLIGHT: u32 = 256;

/// The streams that batches are of.
const STREAMS: [RowStream; 10] = [
    RowStream::Connections,
    RowStream::Gaps,
    RowStream::Syscalls,
    RowStream::OpenConnections,
    RowStream::Listeners,
    RowStream::Overhead,
    RowStream::Namespaces,
    RowStream::Peers,
    RowStream::Cgroups,
    RowStream::Transitions,
];

/// How long the batches of an agent's former connection may take to be settled: longer than the store takes to come
/// back from a restart. The agent tries again after that.
const FENCE_TIMEOUT: Duration = Duration::from_secs(25);

/// Sequences in one acknowledgement of what the store has already: far below what a message may have.
const KNOWN_AT_ONCE: usize = 4096;

/// What the collector says by itself and the agent has not read yet: the welcome, windows, receipts, orders of runs.
const NOTICES: usize = 16;

/// How often it is looked whether an agent's window should be another.
const WINDOW_INTERVAL: Duration = Duration::from_secs(1);

/// Texts of one report of what probes do.
const MAX_REPORT_BYTES: usize = 64 << 10;

/// Rows of counters that an agent may report a second: twice as many as the largest status has, of which there is one a
/// second.
const COUNTERS_A_SECOND: u32 = 8_192;

/// The same at once: an agent that connects tells of its earlier starts as well.
const COUNTERS_AT_ONCE: u32 = 65_536;

/// What a status counts for beside its rows of counters, and a report of probes beside its settings.
const STATUS_ROWS: u32 = 64;

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
    pub clock: WallClock,
    /// What is wanted of the agents' probes.
    pub rules: watch::Receiver<Arc<Rules>>,
    pub runs: Arc<Runs>,
    pub reports: Reports,
    /// Who judges hears what agents say at once.
    pub heard: Heard,
    /// True once the collector stops: nothing more is read, what was read is stored and acknowledged.
    pub stopping: watch::Receiver<bool>,
}

/// What the collector says on one stream.
pub type Replies = std::pin::Pin<Box<dyn Stream<Item = Result<CollectorMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Uplink for Ingest {
    type DeliverStream = Replies;

    async fn deliver(&self, request: Request<Streaming<AgentMessage>>) -> Result<Response<Replies>, Status> {
        let caller = request.extensions().get::<Caller>();
        let remote = caller.map_or_else(String::new, Caller::remote);
        let local = caller.and_then(Caller::local);
        let only = caller.map(|caller| {
            caller.delivers().ok_or_else(|| {
                self.metrics.refused(refusal::CROWD);
                Status::resource_exhausted(
                    "this connection has a stream already: each agent opens a connection of its own",
                )
            })
        });
        let only = only.transpose()?;
        let messages = request.into_inner().map(move |message| {
            let _until_nobody_reads_it = &only;
            message
        });
        Ok(Response::new(self.accept(remote, local, messages)))
    }
}

impl Ingest {
    /// Takes in the stream of an agent at `remote` that has come to `local`, whatever carries it: a task of its own reads it,
    /// until either side ends it.
    pub fn accept<M>(&self, remote: String, local: Option<SocketAddr>, messages: M) -> Replies
    where
        M: Stream<Item = Result<AgentMessage, Status>> + Send + Unpin + 'static,
    {
        let Some(open) = self.registry.open(self.limits.max_agents) else {
            self.metrics.refused(refusal::CROWD);
            return Box::pin(tokio_stream::once(Err(crowded(self.limits.max_agents))));
        };
        let (replies, outgoing) = mpsc::channel::<Reply>(BATCHES_IN_FLIGHT as usize);
        let (notices, noticed) = mpsc::channel::<CollectorMessage>(NOTICES);
        let (ending, end) = mpsc::channel::<Status>(1);
        let session = Session {
            store: self.store.clone(),
            registry: self.registry.clone(),
            intake: self.intake.clone(),
            metrics: self.metrics.clone(),
            limits: self.limits,
            clock: self.clock.clone(),
            rules: self.rules.clone(),
            runs: self.runs.clone(),
            reports: self.reports.clone(),
            heard: self.heard.clone(),
            stopping: self.stopping.clone(),
            replies,
            notices,
            remote,
            local,
        };
        tokio::spawn(async move {
            let ended = session.run(messages).await;
            // Who is told that it may not stay has left its place by then.
            drop(open);
            if let Err(status) = ended {
                // Nobody listens once the agent is gone.
                let _ = ending.send(status).await;
            }
        });
        // The replies end when the session and every receipt of its batches are gone; then comes the status, if any.
        // What the collector says by itself goes first, the welcome above all.
        let replies = select_with_strategy(
            ReceiverStream::new(noticed).map(Ok),
            ReceiverStream::new(outgoing).map(|reply| Ok(reply.message)),
            |()| PollNext::Left,
        );
        let end = ReceiverStream::new(end).map(Err);
        Box::pin(replies.chain(end))
    }
}

/// An agent that was let in.
struct Visit {
    agent: Arc<Agent>,
    seat: Seat,
    arrivals: Arrivals,
    /// Ends the stream.
    lost: mpsc::Sender<Loss>,
    /// The node's clock by its last status, which comes before any batch.
    clock: NodeClock,
    /// Of its counters, what is stored.
    repeats: Repeats,
    came_at: Instant,
    /// Days by which batches are moved for it, as was said last.
    moved_days: i64,
    /// Whether it was said that it counts a stream that is not known here.
    is_newer_said: bool,
}

impl Visit {
    /// Waits until a status or a report with so many rows may come. An agent that reports more is read more slowly, all
    /// of it.
    async fn pause(&self, rows: u32) {
        let rows = rows.saturating_add(STATUS_ROWS);
        let due_at = {
            let mut pace = self.seat.pace.lock().unwrap_or_else(PoisonError::into_inner);
            pace.take(rows, Instant::now())
        };
        tokio::time::sleep_until(due_at).await;
    }
}

/// What the store has of earlier starts of an agent.
struct Past {
    stored: Vec<StoredRows>,
    /// Those that nothing more will be heard of.
    recorded: Vec<u64>,
}

/// One stream of one agent.
struct Session {
    store: Arc<dyn Store>,
    registry: Arc<Registry>,
    intake: Intake,
    metrics: Arc<Metrics>,
    limits: Limits,
    clock: WallClock,
    rules: watch::Receiver<Arc<Rules>>,
    runs: Arc<Runs>,
    reports: Reports,
    heard: Heard,
    stopping: watch::Receiver<bool>,
    /// Answers to batches: each of those in flight has a place.
    replies: mpsc::Sender<Reply>,
    notices: mpsc::Sender<CollectorMessage>,
    /// Where the agent connected from, address and port, and to.
    remote: String,
    local: Option<SocketAddr>,
}

impl Session {
    /// Lets the agent in and takes what it delivers, until it leaves or the collector stops. The status is the
    /// agent's fault.
    async fn run(
        self,
        mut messages: impl Stream<Item = Result<AgentMessage, Status>> + Unpin,
    ) -> Result<(), Status> {
        let mut stopping = self.stopping.clone();
        let hello = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return Ok(()),
            hello = self.hello(&mut messages) => hello?,
        };
        let Some(mut hello) = hello else { return Ok(()) };
        let unanswered = std::mem::take(&mut hello.unanswered);
        let (unsettled, predecessors) = (hello.unsettled.clone(), hello.predecessors.clone());
        let node = hello.node.clone();
        let agent = Agent::try_from(hello).map_err(|unwelcome| {
            if let Unwelcome::Protocol { .. } = unwelcome {
                self.runs.turned_away(node, &unwelcome);
            }
            self.turn_away(&unwelcome)
        })?;
        let agent = Arc::new(agent);
        let arrivals =
            Arrivals::new(agent.epoch, &unanswered).map_err(|unwelcome| self.turn_away(&unwelcome))?;
        let seat = self
            .registry
            .seat(&agent, &self.remote, self.limits.max_agents)
            .map_err(|no_seat| self.turn_away(&Unwelcome::NoSeat(no_seat)))?;
        let mut displaced = seat.displaced.clone();
        let deliveries = async {
            let _connected = Connected::new(&self.metrics, &agent);
            let _present = self.intake.rooms.enter();
            let (lost, mut losses) = mpsc::channel(1);
            let mut visit = Visit {
                agent: agent.clone(),
                seat,
                arrivals,
                lost,
                clock: NodeClock::default(),
                repeats: Repeats::default(),
                came_at: Instant::now(),
                moved_days: 0,
                is_newer_said: false,
            };
            self.fence(&visit).await?;
            let known = self.known(&mut visit, &unanswered).await?;
            let past = self.past(&visit.agent, &unsettled, &predecessors).await?;
            let window = self.intake.rooms.window(Instant::now());
            self.welcome(window, past).await;
            for acknowledgement in known {
                self.say(collector_message::Body::Acknowledgement(acknowledgement))
                    .await;
            }
            let content = Content::Session {
                connected_at_ns: self.clock.now_ns(),
                remote: self.remote.clone(),
            };
            self.intake.put(&agent, &visit.seat.share, content).await;
            let _member = self.runs.join(&agent, (&self.remote, self.local), &self.notices);
            let taken = async {
                while let Some(message) = messages.next().await {
                    let message = message.map_err(|status| self.unreadable(&status, Some(&agent)))?;
                    self.take(&mut visit, message).await?;
                }
                Ok(())
            };
            tokio::select! {
                biased;
                Some(loss) = losses.recv() => Err(self.let_go(&agent, loss)),
                outcome = taken => outcome,
                never = self.adjust_window(&agent, window) => match never {},
                never = self.order(&agent) => match never {},
            }
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
            // Another connection of the same agent has taken over; this one only waits to be noticed dead.
            () = displaced.displaced() => Ok(()),
            outcome = deliveries => outcome,
        }
    }

    /// Waits until every batch of the agent's former connections is settled, then takes the agent over from other
    /// collectors: what is in the store then is all that will be there of it.
    async fn fence(&self, visit: &Visit) -> Result<(), Status> {
        let settled = async {
            let _all = visit
                .seat
                .slots
                .clone()
                .acquire_many_owned(BATCHES_IN_FLIGHT)
                .await;
            self.intake.claims.take_over(&visit.agent.id).await
        };
        match tokio::time::timeout(FENCE_TIMEOUT, settled).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Status::unavailable(format!(
                "the store cannot say what is on its way to it: {error}"
            ))),
            Err(_) => Err(Status::unavailable(
                "batches of this agent's former connection wait for the store, which is away",
            )),
        }
    }

    /// Looks up which of the batches that the agent holds are in the store already, and what it must not send again.
    async fn known(
        &self,
        visit: &mut Visit,
        unanswered: &[BatchRange],
    ) -> Result<Vec<Acknowledgement>, Status> {
        let Agent { id, node, epoch, .. } = &*visit.agent;
        let mute = |error| Status::unavailable(format!("the store cannot say which batches it has: {error}"));
        let newest = questions::newest_sequences(&*self.store, node, id, &STREAMS, *epoch);
        for (stream, newest) in newest.await.map_err(mute)? {
            visit.arrivals.newest_stored(stream, newest);
        }
        let mut known = Vec::new();
        for stream in STREAMS {
            let of_stream = unanswered.iter().filter(|range| range.stream() == stream);
            let ranges: Vec<BatchRange> = of_stream.copied().collect();
            let mut stored = questions::stored_batches(&*self.store, node, id, stream, &ranges)
                .await
                .map_err(mute)?;
            visit.arrivals.are_stored(stream, &stored);
            stored.sort_unstable();
            for of_epoch in stored.chunk_by(|(one, _), (next, _)| one == next) {
                known.extend(of_epoch.chunks(KNOWN_AT_ONCE).map(|batches| Acknowledgement {
                    epoch: batches[0].0,
                    stream: stream.into(),
                    sequences: batches.iter().map(|(_, sequence)| *sequence).collect(),
                }));
            }
        }
        Ok(known)
    }

    /// What the store has of earlier starts of the agent. Nothing more of them is on its way.
    async fn past(
        &self,
        agent: &Agent,
        unsettled: &[BatchRange],
        predecessors: &[u64],
    ) -> Result<Past, Status> {
        let mute = |error| Status::unavailable(format!("the store cannot say what it has: {error}"));
        let mut by_stream = BTreeMap::<RowStream, Vec<BatchRange>>::new();
        for range in unsettled {
            by_stream.entry(range.stream()).or_default().push(*range);
        }
        let mut stored = Vec::new();
        for (stream, ranges) in by_stream {
            let of_stream = questions::stored_rows(&*self.store, &agent.node, &agent.id, stream, &ranges);
            stored.extend(of_stream.await.map_err(mute)?);
        }
        Ok(Past {
            stored,
            recorded: questions::recorded(&*self.store, &agent.id, predecessors)
                .await
                .map_err(mute)?,
        })
    }

    /// The agent's first message; `None` when it left without one.
    async fn hello(
        &self,
        messages: &mut (impl Stream<Item = Result<AgentMessage, Status>> + Unpin),
    ) -> Result<Option<Hello>, Status> {
        // Not read, a stream holds no more than its HTTP/2 window; read, a message. So few are read at once.
        let first = async {
            let _in_lobby = self.registry.lobby.acquire().await;
            messages.next().await
        };
        let first = tokio::time::timeout(HELLO_TIMEOUT, first).await;
        let first = first.map_err(|_| {
            self.metrics.refused(refusal::SILENT);
            Status::deadline_exceeded("no Hello came within 10 s")
        })?;
        let first = first
            .transpose()
            .map_err(|status| self.unreadable(&status, None))?;
        match first.map(|message| message.body) {
            None => Ok(None),
            Some(Some(agent_message::Body::Hello(hello))) => Ok(Some(hello)),
            Some(_) => Err(self.turn_away(&Unwelcome::NoHello)),
        }
    }

    fn let_go(&self, agent: &Agent, loss: Loss) -> Status {
        let Agent { id, node, .. } = agent;
        match loss {
            Loss::TakenOver => {
                self.metrics.refused(refusal::DUPLICATE);
                warn!(
                    node,
                    agent = id,
                    remote = self.remote,
                    "another collector has taken an agent over that is connected here"
                );
                Status::aborted(format!(
                    "an agent with the id {id} has connected to another collector since: if it goes on, two machines \
                     have this id: give one of them another --name, or another /etc/machine-id"
                ))
            }
            Loss::InDoubt => {
                info!(
                    node,
                    agent = id,
                    "an agent's batches are in doubt: it connects again"
                );
                Status::aborted(
                    "whether batches of this agent are stored is not known here; it is looked up when the agent \
                     connects again",
                )
            }
        }
    }

    fn turn_away(&self, unwelcome: &Unwelcome) -> Status {
        warn!(remote = self.remote, %unwelcome, "an agent was turned away");
        match unwelcome {
            Unwelcome::Protocol { .. } => {
                self.metrics.refused(refusal::PROTOCOL);
                Status::failed_precondition(unwelcome.to_string())
            }
            Unwelcome::NoSeat(NoSeat::Taken { .. }) => {
                self.metrics.refused(refusal::DUPLICATE);
                Status::already_exists(unwelcome.to_string())
            }
            Unwelcome::NoSeat(NoSeat::Full { max_agents }) => {
                self.metrics.refused(refusal::CROWD);
                crowded(*max_agents)
            }
            Unwelcome::NoHello | Unwelcome::Field { .. } => {
                self.metrics.refused(refusal::HELLO);
                Status::invalid_argument(unwelcome.to_string())
            }
        }
    }

    /// Tells the agent its window whenever it has become another.
    async fn adjust_window(&self, agent: &Agent, mut told: Window) -> Infallible {
        let mut ticks = tokio::time::interval(WINDOW_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.metrics.window(&agent.node, &agent.id, told.bytes);
            ticks.tick().await;
            let window = self.intake.rooms.window(Instant::now());
            if is_worth_telling(told, window) {
                let message = CollectorMessage {
                    body: Some(collector_message::Body::Window(window)),
                };
                // An agent that does not read its answers is told later, if it ever reads.
                if self.notices.try_send(message).is_ok() {
                    told = window;
                }
            }
        }
    }

    /// Tells the agent what is wanted of its probes whenever that has become something else.
    async fn order(&self, agent: &Agent) -> Infallible {
        let mut orders = Orders::new(self.rules.clone());
        loop {
            let settings = orders.next(agent).await;
            self.say(collector_message::Body::Probes(settings)).await;
        }
    }

    /// Keeps what an agent says of its probes. What cannot be kept is said again when the agent comes again.
    fn take_report(&self, agent: &Agent, report: ProbeReport) -> Result<(), Status> {
        let texts = |of: &HashMap<String, String>| {
            of.iter()
                .flat_map(|(key, value)| [key.len(), value.len()])
                .sum::<usize>()
        };
        if texts(&report.applied) + texts(&report.refused) > MAX_REPORT_BYTES {
            self.metrics.refused(refusal::UNREADABLE);
            return Err(Status::invalid_argument(
                "a report of more settings than any agent has",
            ));
        }
        let report = probes::Report {
            node: agent.node.clone(),
            agent_id: agent.id.clone(),
            agent_epoch: agent.epoch,
            reported_at_ns: self.clock.now_ns(),
            revision: report.revision,
            applied: report.applied.into_iter().collect(),
            refused: report.refused.into_iter().collect(),
        };
        self.reports.keep(report);
        Ok(())
    }

    async fn welcome(&self, window: Window, past: Past) {
        let welcome = Welcome {
            protocol: PROTOCOL,
            collector_version: env!("CARGO_PKG_VERSION").to_owned(),
            max_batch_bytes: self.limits.max_batch_bytes as u64,
            window: Some(window),
            stored: past.stored,
            recorded: past.recorded,
        };
        self.say(collector_message::Body::Welcome(welcome)).await;
    }

    async fn say(&self, body: collector_message::Body) {
        let message = CollectorMessage { body: Some(body) };
        // It fails when the agent is gone, which reading tells as well.
        let _ = self.notices.send(message).await;
    }

    /// What an agent is told whose message could not be read; `None`: one that did not say hello.
    fn unreadable(&self, status: &Status, agent: Option<&Agent>) -> Status {
        // A connection that broke is no fault of the message.
        if !matches!(status.code(), tonic::Code::Internal | tonic::Code::OutOfRange) {
            if status.code() == tonic::Code::DeadlineExceeded {
                warn!(
                    remote = self.remote,
                    reason = status.message(),
                    "an agent is sent away"
                );
            }
            return status.clone();
        }
        self.metrics.refused(refusal::UNREADABLE);
        let reason = status.message();
        warn!(remote = self.remote, reason, "a message cannot be read");
        if !reason.starts_with(NO_MESSAGE) {
            return Status::invalid_argument(reason);
        }
        let version = agent.map_or_else(String::new, |agent| format!(" ({})", agent.version));
        Status::invalid_argument(format!(
            "{reason}: if the agent{version} is of another version than this collector ({}), upgrade the older of the two",
            env!("CARGO_PKG_VERSION")
        ))
    }

    async fn take(&self, visit: &mut Visit, message: AgentMessage) -> Result<(), Status> {
        let agent = &visit.agent;
        match message.body {
            Some(agent_message::Body::Batch(batch)) => {
                self.take_batch(visit, batch).await;
                Ok(())
            }
            Some(agent_message::Body::Status(mut status)) => {
                let rows = u32::try_from(status.streams.len()).unwrap_or(u32::MAX);
                let received_at_ns = self.clock.now_ns();
                visit.pause(rows).await;
                let receipt = StatusReceipt {
                    observed_at_ns: status.observed_at_ns,
                    received_at_ns: received_at_ns.unsigned_abs(),
                };
                let message = CollectorMessage {
                    body: Some(collector_message::Body::Receipt(receipt)),
                };
                // An agent that does not read its answers does without this one.
                let _ = self.notices.try_send(message);
                let epoch = if status.epoch == 0 {
                    agent.epoch
                } else {
                    status.epoch
                };
                // What the agent measured lags behind a clock that is set.
                visit.clock = NodeClock::of(&status, &agent.boot_id, received_at_ns);
                if !visit.clock.is_wrong_by_days() {
                    visit.moved_days = 0;
                }
                decode::restamp::status(&mut status, received_at_ns);
                if let Some(stream) = decode::leave_out_unknown(&mut status)
                    && !std::mem::replace(&mut visit.is_newer_said, true)
                {
                    warn!(
                        node = agent.node,
                        agent = agent.id,
                        version = agent.version,
                        stream,
                        "the agent has a stream that this collector ({}) does not know, and that is not stored: upgrade the \
                         collector",
                        env!("CARGO_PKG_VERSION")
                    );
                }
                let (sample, is_final, is_early) = (
                    AgentSample::of(&status, received_at_ns, visit.seat.rival(Instant::now())),
                    status.is_final,
                    status.is_early,
                );
                match decode::status(status, received_at_ns) {
                    Ok((observed_at_ns, counters)) => {
                        self.heard.put(sample.report(&agent.node, epoch, observed_at_ns));
                        if is_early {
                            return Ok(());
                        }
                        let counters = if is_final || epoch != agent.epoch {
                            counters
                        } else {
                            visit.repeats.new_of(counters, visit.came_at.elapsed())
                        };
                        // What changed first: whoever sees the report is to see them too.
                        if !counters.is_empty() {
                            let content = Content::Ledger {
                                epoch,
                                observed_at_ns,
                                received_at_ns,
                                is_final,
                                counters,
                            };
                            self.intake.put(agent, &visit.seat.share, content).await;
                        }
                        let content = Content::Sample {
                            epoch,
                            observed_at_ns,
                            sample,
                        };
                        self.intake.put(agent, &visit.seat.share, content).await;
                    }
                    Err(malformed) => self.count_refusal(agent, 0, &malformed),
                }
                Ok(())
            }
            Some(agent_message::Body::Probes(report)) => {
                let settings = report.applied.len() + report.refused.len();
                visit.pause(u32::try_from(settings).unwrap_or(u32::MAX)).await;
                self.take_report(agent, report)
            }
            Some(agent_message::Body::Run(event)) => {
                self.runs.event(agent, event);
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

    async fn take_batch(&self, visit: &mut Visit, sealed: SealedBatch) {
        self.metrics.batches_received.inc();
        let agent = &visit.agent;
        // Waits while the agent has as many unacknowledged batches as it may.
        let slot = visit.seat.slots.clone().acquire_owned().await;
        let slot = slot.expect("the slots are never closed");
        // Whoever took over has asked the store, once all slots were free, what it has. This stream may have been in the middle of
        // what it had read already; nothing of that may come after the answer.
        if visit.seat.displaced.is_displaced() {
            return;
        }
        let receipt = Receipt {
            epoch: sealed.epoch,
            stream: sealed.stream,
            sequence: sealed.sequence,
            replies: self.replies.clone(),
            encoded: sealed.encoded.clone(),
            slot,
            lost: visit.lost.clone(),
        };
        let wire_name = RefusedName {
            epoch: sealed.epoch,
            stream: sealed.stream,
            sequence: sealed.sequence,
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
        // What is not named, or of a stream that is not known, is refused below.
        let stream = RowStream::try_from(sealed.stream).unwrap_or(RowStream::Unspecified);
        if sealed.epoch != 0 && sealed.sequence != 0 && stream != RowStream::Unspecified {
            match visit.arrivals.arrived(sealed.epoch, stream, sealed.sequence) {
                Arrival::New => {}
                Arrival::Stored => {
                    self.metrics.batches_known.inc();
                    return receipt.acknowledge();
                }
                Arrival::Replayed(reason) => {
                    self.metrics.refused(refusal::REPLAYED);
                    let (node, sequence) = (&agent.node, sealed.sequence);
                    warn!(node, agent = agent.id, sequence, reason, "a batch was replayed");
                    return receipt.refuse(format!("the batch was answered already: {reason}"));
                }
            }
        }
        let rooms = &self.intake.rooms;
        let room = rooms
            .take_for_encoded(&visit.seat.share, sealed.encoded.len())
            .await;
        let now_ns = self.clock.now_ns();
        match decode::sealed(&sealed, now_ns, &visit.clock) {
            Ok((Decoded { boot_id, rows }, days)) => {
                if days != 0 && visit.moved_days != days {
                    visit.moved_days = days;
                    warn!(
                        node = agent.node,
                        agent = agent.id,
                        days,
                        "the node's clock is wrong by days, or was, and its rows are moved by as many; set its clock"
                    );
                }
                let batch = name(boot_id);
                let content = Content::of(batch, rows, now_ns);
                self.intake.put_into(room, agent, content, Some(receipt)).await;
            }
            Err(malformed) => {
                self.count_refusal(agent, receipt.sequence, &malformed);
                let reason = malformed.to_string();
                if malformed.is_in_a_sound_envelope() {
                    let quarantine = &self.intake.quarantine;
                    quarantine.set_aside(agent, wire_name, &receipt.encoded, &reason);
                }
                receipt.refuse(reason);
            }
        }
    }

    fn count_refusal(&self, agent: &Agent, sequence: u64, malformed: &Malformed) {
        self.metrics.refused(malformed.kind());
        warn!(node = agent.node, agent = agent.id, sequence, reason = %malformed, "a message was refused");
    }
}

/// Whether an agent should hear of another window: of every smaller one, and of one that is larger by a quarter.
fn is_worth_telling(told: Window, window: Window) -> bool {
    let changed = |told: u64, now: u64| now < told - told / 8 || now > told + told / 4;
    changed(told.bytes, window.bytes) || changed(told.batches.into(), window.batches.into())
}

fn crowded(max_agents: usize) -> Status {
    Status::resource_exhausted(format!(
        "this collector takes {max_agents} agents at most; raise its --max-agents"
    ))
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
        self.metrics.no_window(&self.agent.node, &self.agent.id);
        info!(
            node = self.agent.node,
            agent = self.agent.id,
            epoch = self.agent.epoch,
            "agent left"
        );
    }
}
