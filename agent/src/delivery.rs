//! What agent and collector say to each other on one connection, whatever carries it: a hello, then every unanswered
//! batch from the oldest on, then new ones as they are sealed, and the counters once a second.
//!
//! A batch leaves the spool only when the collector has answered it. When the connection breaks, everything that is
//! unanswered is sent again on the next one, under the same name and with the same bytes. The simulation runs this
//! code as it is, over connections of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use holdfast_proto::NO_MESSAGE;
use holdfast_proto::v1::{
    AgentMessage, CollectorMessage, ProbeReport, ProbeSettings, RunEvent, SealedBatch, Status, Stream,
    Welcome, Window, agent_message, collector_message,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_stream::{Stream as Incoming, StreamExt};

use crate::{
    clock_offset::ClockOffset,
    gaps::GapBatcher,
    identity::Identity,
    runs::Runs,
    spool::{BatchId, ENTRY_BYTES, Gap, Next, Sealed, Spool, ranges},
};

/// How often the counters are sent.
pub const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// So long after an acknowledgement of connections the watermark is told, twice: what waits for it is a window that ends within half
/// a second, and the watermark is up to 50 ms old.
const EARLY: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(250)];

/// A status with more counters is told once a second: those of a node with hundreds of namespaces take 100 kB.
const EARLY_COUNTERS: usize = 256;

/// How long the collector may take to welcome the agent.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the collector may take to end its side.
const GOODBYE: Duration = Duration::from_secs(1);

/// What may be in flight where the collector names no bound.
const DEFAULT_WINDOW: Window = Window {
    batches: 16,
    bytes: 16 << 20,
};

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The collector will not have this agent; it says why.
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    #[error("the connection broke: {}", .0.message())]
    Broken(tonic::Status),
    #[error(
        "what the collector says cannot be read: {}: if it{} is of another version than this agent ({}), upgrade the older of \
         the two",
        .status.message(),
        in_brackets(.collector_version),
        env!("CARGO_PKG_VERSION")
    )]
    Unreadable {
        status: tonic::Status,
        /// As the welcome said; empty before it.
        collector_version: String,
    },
    #[error("the collector closed the connection")]
    Closed,
    #[error("no welcome within {} s", WELCOME_TIMEOUT.as_secs())]
    Silent,
    #[error("the collector did not speak Holdfast's protocol: it began with something else than a welcome")]
    NoWelcome,
}

/// A version behind the name of what has it, if it is known.
fn in_brackets(version: &str) -> String {
    match version {
        "" => String::new(),
        version => format!(" ({version})"),
    }
}

impl SessionError {
    /// Of what came after the welcome.
    fn after(welcome: &Welcome, status: tonic::Status) -> Self {
        match status.into() {
            Self::Unreadable { status, .. } => Self::Unreadable {
                status,
                collector_version: welcome.collector_version.clone(),
            },
            other => other,
        }
    }
}

impl From<tonic::Status> for SessionError {
    fn from(status: tonic::Status) -> Self {
        use tonic::Code::{
            AlreadyExists, FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated,
        };
        match status.code() {
            InvalidArgument | FailedPrecondition | AlreadyExists | PermissionDenied | Unauthenticated => {
                Self::Refused(status)
            }
            _ if status.message().starts_with(NO_MESSAGE) => Self::Unreadable {
                status,
                collector_version: String::new(),
            },
            _ => Self::Broken(status),
        }
    }
}

/// Whether a report says something else than the one before, whenever it was made.
fn is_news(report: &Option<ProbeReport>, before: &Option<ProbeReport>) -> bool {
    let said = |report: &Option<ProbeReport>| {
        report.clone().map(|report| ProbeReport {
            observed_at_ns: 0,
            ..report
        })
    };
    said(report) != said(before)
}

/// Tells the wall time, in nanoseconds since the Unix epoch.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Does what the collector wants of the probes, if it wants anything new, and tells what they do.
pub type Control = Box<dyn FnMut(Option<ProbeSettings>) -> ProbeReport + Send + Sync>;

/// Tells the time since the machine was started: no one sets it, and it goes on while the machine sleeps.
pub type BootClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// What outlives a connection.
pub struct Delivery<F> {
    pub identity: Identity,
    pub spool: Arc<Spool>,
    /// Reads the counters; the rest of the status is filled in here.
    pub counters: F,
    pub gaps: GapBatcher,
    /// Does what the collector wants of the probes; `None` where there are none.
    pub probes: Option<Control>,
    pub runs: Runs,
    pub clock: ClockOffset,
    /// Nanoseconds since the Unix epoch.
    pub wall_now_ns: WallClock,
    pub boot_now: BootClock,
}

impl<F: Fn() -> Option<Status>> Delivery<F> {
    /// The first message of a connection.
    pub fn hello(&self) -> AgentMessage {
        let mut hello = self.identity.hello();
        hello.unanswered = ranges(&self.spool.unanswered());
        hello.unsettled = self.spool.unsettled();
        hello.predecessors = self.spool.predecessors();
        message(agent_message::Body::Hello(hello))
    }

    /// Waits for the answer to the hello.
    ///
    /// # Errors
    /// If none comes, or something else.
    pub async fn welcome(
        &self,
        incoming: &mut (impl Incoming<Item = Result<CollectorMessage, tonic::Status>> + Unpin),
    ) -> Result<Welcome, SessionError> {
        match timeout(WELCOME_TIMEOUT, incoming.next())
            .await
            .map_err(|_| SessionError::Silent)?
        {
            Some(Ok(CollectorMessage {
                body: Some(collector_message::Body::Welcome(welcome)),
            })) => {
                self.spool.settle(&welcome);
                Ok(welcome)
            }
            Some(Ok(_)) => Err(SessionError::NoWelcome),
            Some(Err(status)) => Err(status.into()),
            None => Err(SessionError::Closed),
        }
    }

    /// Batches out, answers in, until `shutdown` is true and nothing is left, or the connection ends.
    ///
    /// # Errors
    /// How the connection ended.
    pub async fn exchange(
        &mut self,
        welcome: &Welcome,
        outgoing: mpsc::Sender<AgentMessage>,
        incoming: &mut (impl Incoming<Item = Result<CollectorMessage, tonic::Status>> + Unpin),
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), SessionError> {
        self.spool.nothing_sent();
        let mut flight = Flight::new(
            welcome.window.unwrap_or(DEFAULT_WINDOW),
            self.spool.flight_bytes(),
        );
        let mut sent_position = 0;
        let mut status_tick = interval_at(Instant::now() + STATUS_INTERVAL, STATUS_INTERVAL);
        status_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut early = Early::default();
        let mut stopping = *shutdown.borrow();
        // Before any batch: by its status the collector knows the clock that dated them. The first tick of a timer may come
        // later than the first batch is sent.
        let mut pending_statuses = VecDeque::new();
        self.renew(&mut pending_statuses);
        let mut pending_report = self.report(None);
        let mut last_report = pending_report.clone();
        let mut pending_run: Option<RunEvent> = None;

        loop {
            if stopping && self.spool.is_drained() && pending_statuses.is_empty() {
                self.say_goodbye(outgoing, incoming).await;
                return Ok(());
            }
            let batch = if flight.has_room() {
                self.spool.next(sent_position)
            } else {
                None
            };
            let has_outgoing = batch.is_some()
                || pending_run.is_some()
                || !pending_statuses.is_empty()
                || pending_report.is_some();
            // Sending never keeps an answer from being read, or each side would wait for the other's buffer.
            tokio::select! {
                biased;
                () = told(shutdown), if !stopping => stopping = true,
                _ = status_tick.tick() => {
                    self.renew(&mut pending_statuses);
                    // What the budget gives up, and takes back, is told without a question.
                    let report = self.report(None);
                    if is_news(&report, &last_report) {
                        pending_report.clone_from(&report);
                        last_report = report;
                    }
                }
                () = early.due() => {
                    // One that waits to be sent says it already.
                    let is_waiting = pending_statuses.iter().any(|status| status.epoch == self.identity.epoch);
                    if !is_waiting {
                        pending_statuses.extend(self.early_status());
                    }
                }
                answer = incoming.next() => match answer {
                    Some(Ok(CollectorMessage {
                        body: Some(collector_message::Body::Probes(wanted)),
                    })) => {
                        pending_report = self.report(Some(wanted));
                        last_report.clone_from(&pending_report);
                    }
                    Some(answer) => {
                        let answer =
                            answer.map_err(|status| SessionError::after(welcome, status))?;
                        if acknowledges_connections(&answer) {
                            early.begin();
                        }
                        self.take(answer, &mut flight);
                    }
                    None => return Err(SessionError::Closed),
                },
                event = self.runs.next(), if pending_run.is_none() => pending_run = Some(event),
                permit = outgoing.reserve(), if has_outgoing => {
                    // The connection is gone; what it died of comes with the next answer.
                    let Ok(permit) = permit else { return Err(SessionError::Closed) };
                    if let Some(report) = pending_report.take() {
                        permit.send(message(agent_message::Body::Probes(report)));
                    } else if let Some(status) = pending_statuses.pop_front() {
                        permit.send(message(agent_message::Body::Status(status)));
                    } else if let Some(event) = pending_run.take() {
                        permit.send(message(agent_message::Body::Run(event)));
                    } else if let Some((position, next)) = batch {
                        sent_position = position;
                        if let Some(sealed) = self.load(position, next).await
                            && self.fits(&sealed, welcome)
                            && self.spool.sent(position)
                        {
                            flight.sent(&sealed);
                            permit.send(on_the_wire(&sealed));
                        }
                    }
                }
                () = self.spool.appended(), if batch.is_none() => {}
            }
        }
    }

    /// Adds what there is to tell to what waits.
    fn renew(&mut self, statuses: &mut VecDeque<Status>) {
        self.seal_gaps();
        // The newest of its own replaces one that waits; what is said of earlier starts is said once.
        statuses.retain(|status| status.epoch != self.identity.epoch);
        statuses.extend(self.legacies());
        statuses.extend(self.status());
    }

    /// What the probes do, after what is wanted of them.
    fn report(&mut self, wanted: Option<ProbeSettings>) -> Option<ProbeReport> {
        self.probes.as_mut().map(|control| control(wanted))
    }

    /// The final counters, then the end of our side; the collector ends its own once it has read everything.
    async fn say_goodbye(
        &mut self,
        outgoing: mpsc::Sender<AgentMessage>,
        incoming: &mut (impl Incoming<Item = Result<CollectorMessage, tonic::Status>> + Unpin),
    ) {
        let own = self.status().map(|status| Status {
            is_final: true,
            ..status
        });
        for status in self.legacies().into_iter().chain(own) {
            // A connection that breaks now has nothing left to lose but this.
            let _ = outgoing.send(message(agent_message::Body::Status(status))).await;
        }
        drop(outgoing);
        let _ = timeout(GOODBYE, async {
            while let Some(Ok(_)) = incoming.next().await {}
        })
        .await;
    }

    /// The wall time, and how far it is ahead of the time since the boot, in nanoseconds.
    fn now(&self) -> (u64, i64) {
        let wall_ns = (self.wall_now_ns)();
        let boot_ns = (self.boot_now)().as_nanos() as i64;
        (wall_ns, (wall_ns as i64).saturating_sub(boot_ns))
    }

    fn status(&self) -> Option<Status> {
        let levels = self.spool.levels();
        let watermarks = self.spool.watermarks();
        let (clock_offset_ns, clock_error_ns) = self.clock.best().unwrap_or_default();
        let (observed_at_ns, clock_ns) = self.now();
        (self.counters)().map(|status| Status {
            observed_at_ns,
            clock_ns,
            epoch: self.identity.epoch,
            clock_offset_ns,
            clock_error_ns,
            spool_batches: levels.batches,
            spool_memory_bytes: levels.memory_bytes,
            spool_disk_bytes: levels.disk_bytes,
            spool_disk_failed: levels.disk_failed,
            watermark_ns: watermarks.records_ns,
            attempts_watermark_ns: watermarks.attempts_ns,
            ..status
        })
    }

    /// What is told before its time, unless that is much.
    fn early_status(&self) -> Option<Status> {
        let status = self
            .status()
            .filter(|status| status.streams.len() <= EARLY_COUNTERS)?;
        Some(Status {
            is_early: true,
            ..status
        })
    }

    /// What there is to say of earlier starts.
    fn legacies(&self) -> Vec<Status> {
        let (observed_at_ns, clock_ns) = self.now();
        let at = |status| Status {
            observed_at_ns,
            clock_ns,
            ..status
        };
        self.spool.legacies().into_iter().map(at).collect()
    }

    /// What was dropped since the last time becomes a batch of its own, and is delivered like any other.
    pub(crate) fn seal_gaps(&mut self) {
        self.spool.expire((self.boot_now)());
        let gaps = self.spool.take_gaps();
        for (missing, namespaces) in by_stream(&gaps) {
            tracing::warn!(
                stream = ?missing.stream,
                rows = missing.rows,
                namespaces,
                epoch = missing.epoch,
                sequences = %format_args!("{}..={}", missing.first_sequence, missing.last_sequence),
                reason = ?missing.reason,
                "rows are missing, and counted"
            );
        }
        if let Some(sealed) = self.gaps.seal(&gaps) {
            self.spool.append_new(sealed);
        }
    }

    /// Whether the collector takes a batch of this size. One that it does not take would end every connection.
    fn fits(&self, sealed: &Sealed, welcome: &Welcome) -> bool {
        let bytes = sealed.encoded.len() as u64;
        let fits = welcome.max_batch_bytes == 0 || bytes <= welcome.max_batch_bytes;
        if !fits {
            tracing::error!(
                sequence = sealed.id.sequence,
                "a batch of {bytes} bytes is counted as refused: this collector takes {} at most",
                welcome.max_batch_bytes
            );
            self.spool.refuse(sealed.id);
        }
        fits
    }

    /// A batch that is next, read from disk if it is there only; the disk may be slow, the answers shall not wait.
    async fn load(&self, position: u64, next: Next) -> Option<Sealed> {
        match next {
            Next::Ready(sealed) => Some(sealed),
            Next::Stored if !self.spool.reads_wait() => self.spool.load(position),
            Next::Stored => {
                let spool = Arc::clone(&self.spool);
                tokio::task::spawn_blocking(move || spool.load(position))
                    .await
                    .ok()?
            }
        }
    }

    fn take(&mut self, message: CollectorMessage, flight: &mut Flight) {
        match message.body {
            Some(collector_message::Body::Acknowledgement(acknowledgement)) => {
                for &sequence in &acknowledgement.sequences {
                    let id = id(acknowledgement.epoch, acknowledgement.stream, sequence);
                    flight.answered(id);
                    self.spool.acknowledge(id);
                }
            }
            Some(collector_message::Body::Refusal(refusal)) => {
                tracing::error!(
                    sequence = refusal.sequence,
                    reason = %refusal.reason,
                    "the collector refused a batch"
                );
                let id = id(refusal.epoch, refusal.stream, refusal.sequence);
                flight.answered(id);
                self.spool.refuse(id);
            }
            Some(collector_message::Body::Window(window)) => flight.window = window,
            Some(collector_message::Body::Receipt(receipt)) => {
                // It says what it knows before it reads anything.
                if !std::mem::replace(&mut flight.is_known, true) {
                    self.spool.nothing_else_is_stored();
                }
                self.clock.observe(
                    receipt.observed_at_ns,
                    receipt.received_at_ns,
                    (self.wall_now_ns)(),
                );
            }
            // Taken where its answer is sent.
            Some(collector_message::Body::Probes(_)) => {}
            Some(collector_message::Body::Run(order)) => {
                self.runs.take(order, self.clock.best(), (self.wall_now_ns)());
            }
            // A second welcome, or something that a newer collector says.
            Some(collector_message::Body::Welcome(_)) | None => {}
        }
    }
}

/// Gaps as they are logged: those of all namespaces of a start, a stream and a reason as one, with how many namespaces
/// those are. Zero: they are not told apart.
fn by_stream(gaps: &[Gap]) -> Vec<(Gap, usize)> {
    let mut together = BTreeMap::<_, (Gap, BTreeSet<u32>)>::new();
    for gap in gaps {
        let (sum, namespaces) = together
            .entry((gap.epoch, gap.stream, gap.reason))
            .or_insert_with(|| {
                (
                    Gap {
                        rows: 0,
                        ..gap.clone()
                    },
                    BTreeSet::new(),
                )
            });
        sum.first_sequence = sum.first_sequence.min(gap.first_sequence);
        sum.last_sequence = sum.last_sequence.max(gap.last_sequence);
        sum.rows += gap.rows;
        namespaces.extend((gap.netns != 0).then_some(gap.netns));
    }
    let counted = |(sum, namespaces): (Gap, BTreeSet<u32>)| (sum, namespaces.len());
    together.into_values().map(counted).collect()
}

/// Returns once the agent is told to stop, or nobody can tell it any more.
pub(crate) async fn told(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|&stop| stop).await;
}

fn acknowledges_connections(message: &CollectorMessage) -> bool {
    let of_connections = i32::from(Stream::Connections);
    matches!(&message.body, Some(collector_message::Body::Acknowledgement(acknowledgement)) if acknowledgement.stream == of_connections)
}

/// When the watermark is told before its time.
#[derive(Default)]
struct Early {
    next: VecDeque<Instant>,
}

impl Early {
    /// What is due already stays: acknowledgements that come without a break make no more of them.
    fn begin(&mut self) {
        if self.next.is_empty() {
            self.next.extend(EARLY.map(|after| Instant::now() + after));
        }
    }

    /// Returns once the next one is due, and never where there is none.
    async fn due(&mut self) {
        match self.next.front() {
            Some(&at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
        self.next.pop_front();
    }
}

/// What was sent on this connection and has no answer.
struct Flight {
    window: Window,
    /// The agent's own bound, whatever the window says: of what the spool holds for what is in flight.
    max_bytes: u64,
    batches: HashMap<BatchId, u64>,
    bytes: u64,
    /// The collector has said which of the batches of earlier connections are stored.
    is_known: bool,
}

impl Flight {
    fn new(window: Window, max_bytes: u64) -> Self {
        Self {
            window,
            max_bytes,
            batches: HashMap::new(),
            bytes: 0,
            is_known: false,
        }
    }

    /// One batch is always allowed: a window of nothing would be the end.
    fn has_room(&self) -> bool {
        let held_bytes = self.bytes + self.batches.len() as u64 * ENTRY_BYTES;
        self.batches.is_empty()
            || (self.batches.len() < self.window.batches as usize
                && self.bytes < self.window.bytes
                && held_bytes < self.max_bytes)
    }

    fn sent(&mut self, sealed: &Sealed) {
        let bytes = sealed.encoded.len() as u64;
        self.bytes += bytes;
        self.batches.insert(sealed.id, bytes);
    }

    fn answered(&mut self, id: BatchId) {
        if let Some(bytes) = self.batches.remove(&id) {
            self.bytes -= bytes;
        }
    }
}

fn id(epoch: u64, stream: i32, sequence: u64) -> BatchId {
    // A stream that is unknown here was never sent from here: the id fits no batch.
    BatchId {
        epoch,
        stream: Stream::try_from(stream).unwrap_or(Stream::Unspecified),
        sequence,
    }
}

fn on_the_wire(sealed: &Sealed) -> AgentMessage {
    message(agent_message::Body::Batch(SealedBatch {
        epoch: sealed.id.epoch,
        stream: sealed.id.stream.into(),
        sequence: sealed.id.sequence,
        checksum: crc32fast::hash(&sealed.encoded),
        encoded: sealed.encoded.clone(),
    }))
}

fn message(body: agent_message::Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::Acknowledgement;

    use super::*;
    use crate::{
        load::consent::Consent,
        spool::{self, GapReason},
    };

    fn connections(epoch: u64, sequence: u64) -> BatchId {
        BatchId {
            epoch,
            stream: Stream::Connections,
            sequence,
        }
    }

    /// A spool with three batches.
    fn filled_spool() -> Arc<Spool> {
        let counters = Arc::default();
        let spool =
            Arc::new(Spool::open(spool::Limits::default(), "boot", None, counters).expect("no disk to fail"));
        for sequence in 1..=3 {
            spool.append_new(Sealed {
                id: connections(1, sequence),
                rows: 1,
                first_ns: 5,
                last_ns: 5,
                encoded: vec![0; 10].into(),
            });
        }
        spool
    }

    fn delivery(spool: &Arc<Spool>) -> Delivery<impl Fn() -> Option<Status> + use<>> {
        Delivery {
            identity: Identity {
                agent_id: "a1".to_owned(),
                node: "web-1".to_owned(),
                labels: BTreeMap::new(),
                epoch: 1,
                boot_id: "boot".to_owned(),
                observed_netns: "all".to_owned(),
                missing_features: Vec::new(),
            },
            spool: Arc::clone(spool),
            counters: || Some(Status::default()),
            gaps: GapBatcher::new(1, "boot"),
            probes: None,
            runs: Runs::new(Consent::nothing()),
            clock: ClockOffset::default(),
            wall_now_ns: Arc::new(|| 1_000),
            boot_now: Arc::new(|| Duration::from_nanos(10)),
        }
    }

    #[test]
    fn who_cannot_be_understood_is_to_be_upgraded_or_we_are() {
        let no_message = <CollectorMessage as prost::Message>::decode(&[0x0a, 0x02, 0x20, 0x00, 0x0b][..]);
        let said = tonic::Status::internal(no_message.expect_err("no message").to_string());
        let welcome = Welcome {
            collector_version: "0.0.9".to_owned(),
            ..Welcome::default()
        };
        let after = SessionError::after(&welcome, said.clone()).to_string();
        let both = format!(
            "if it (0.0.9) is of another version than this agent ({}), upgrade the older of the two",
            env!("CARGO_PKG_VERSION")
        );
        assert!(after.ends_with(&both), "{after}");
        let error = SessionError::from(said).to_string();
        assert!(
            error.starts_with("what the collector says cannot be read: failed to decode Protobuf message")
                && error.ends_with("upgrade the older of the two"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_status_comes_before_any_batch() {
        let spool = filled_spool();
        // Many times: a timer that is late is so now and then.
        for _ in 0..200 {
            let mut delivery = delivery(&spool);
            let (outgoing, mut messages) = mpsc::channel(8);
            let (_shutdown, mut stopped) = watch::channel(false);
            let task = tokio::spawn(async move {
                let welcome = Welcome::default();
                let mut incoming = tokio_stream::pending();
                let _ = delivery
                    .exchange(&welcome, outgoing, &mut incoming, &mut stopped)
                    .await;
            });
            match messages.recv().await.and_then(|message| message.body) {
                Some(agent_message::Body::Status(status)) => assert_eq!(status.clock_ns, 990),
                other => panic!("{other:?}"),
            }
            let second = messages.recv().await.and_then(|message| message.body);
            assert!(
                matches!(second, Some(agent_message::Body::Batch(_))),
                "{second:?}"
            );
            task.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_acknowledged_is_told_before_the_second_is_over() {
        let mut delivery = delivery(&filled_spool());
        let (outgoing, mut messages) = mpsc::channel(8);
        let (answers, answered) = mpsc::channel(8);
        let (_shutdown, mut stopped) = watch::channel(false);
        let begun = Instant::now();
        tokio::spawn(async move {
            let mut incoming = tokio_stream::wrappers::ReceiverStream::new(answered);
            let _ = delivery
                .exchange(&Welcome::default(), outgoing, &mut incoming, &mut stopped)
                .await;
        });
        let acknowledge = |stream: Stream, sequence| {
            let acknowledgement = Acknowledgement {
                epoch: 1,
                stream: stream.into(),
                sequences: vec![sequence],
            };
            CollectorMessage {
                body: Some(collector_message::Body::Acknowledgement(acknowledgement)),
            }
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        for sequence in [1, 2] {
            let answer = acknowledge(Stream::Connections, sequence);
            answers.send(Ok(answer)).await.expect("the agent listens");
        }
        // Of other streams nobody is in a hurry to know.
        tokio::time::sleep(Duration::from_millis(600)).await;
        let answer = acknowledge(Stream::Gaps, 1);
        answers.send(Ok(answer)).await.expect("the agent listens");
        let mut statuses = Vec::new();
        while begun.elapsed() < Duration::from_millis(1_500) {
            let Ok(message) = timeout(Duration::from_millis(100), messages.recv()).await else {
                continue;
            };
            if let Some(agent_message::Body::Status(status)) = message.and_then(|message| message.body) {
                statuses.push((begun.elapsed().as_millis(), status.is_early));
            }
        }
        // Read up to 100 ms late, the first ones after the answers were sent.
        let early: Vec<_> = statuses.iter().filter(|(_, is_early)| *is_early).collect();
        let regular = statuses.len() - early.len();
        assert_eq!((early.len(), regular), (2, 2), "{statuses:?}");
    }

    #[test]
    fn the_gaps_of_all_namespaces_are_a_line_of_the_log_for_each_stream_and_reason() {
        let gap = |stream, reason, netns, first_sequence| Gap {
            epoch: 1,
            stream,
            netns,
            first_sequence,
            last_sequence: first_sequence + 1,
            first_ns: 0,
            last_ns: 0,
            rows: 10,
            at_least: false,
            reason,
        };
        let gaps = [
            gap(Stream::Connections, GapReason::SpoolFull, 7, 3),
            gap(Stream::Peers, GapReason::SpoolFull, 0, 1),
            gap(Stream::Connections, GapReason::SpoolFull, 8, 1),
            gap(Stream::Connections, GapReason::Refused, 8, 5),
        ];
        let lines = by_stream(&gaps).into_iter().map(|(sum, namespaces)| {
            let sequences = (sum.first_sequence, sum.last_sequence);
            (sum.stream, sum.reason, sequences, sum.rows, namespaces)
        });
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                (Stream::Connections, GapReason::SpoolFull, (1, 4), 20, 2),
                (Stream::Connections, GapReason::Refused, (5, 6), 10, 1),
                (Stream::Peers, GapReason::SpoolFull, (1, 2), 10, 0),
            ]
        );
    }

    #[test]
    fn neighbours_are_named_together() {
        let ids = [
            connections(2, 1),
            connections(1, 5),
            connections(1, 7),
            connections(1, 6),
            connections(1, 9),
        ];
        let named: Vec<_> = ranges(&ids)
            .iter()
            .map(|range| (range.epoch, range.first_sequence, range.last_sequence))
            .collect();
        assert_eq!(named, [(1, 5, 7), (1, 9, 9), (2, 1, 1)]);
    }

    #[test]
    fn the_window_bounds_batches_and_bytes_but_never_to_nothing() {
        let sealed = |sequence| Sealed {
            id: connections(1, sequence),
            rows: 1,
            first_ns: 0,
            last_ns: 0,
            encoded: vec![0; 10].into(),
        };
        let mut flight = Flight::new(
            Window {
                batches: 2,
                bytes: 1_000,
            },
            u64::MAX,
        );
        flight.sent(&sealed(1));
        assert!(flight.has_room());
        flight.sent(&sealed(2));
        assert!(!flight.has_room(), "two batches");
        flight.answered(connections(1, 1));
        flight.answered(connections(1, 1));
        assert!(flight.has_room());
        flight.window = Window { batches: 0, bytes: 0 };
        assert!(!flight.has_room(), "one is in flight");
        flight.answered(connections(1, 2));
        assert!(flight.has_room(), "nothing is in flight");

        // What the spool is charged for them counts against its half, or nothing unsent would be left to drop.
        let mut flight = Flight::new(DEFAULT_WINDOW, 2 * ENTRY_BYTES);
        flight.sent(&sealed(3));
        assert!(flight.has_room());
        flight.sent(&sealed(4));
        assert!(!flight.has_room(), "two take more than that");
    }
}
