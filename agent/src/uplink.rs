//! The way to the collector: the only file of the agent that knows gRPC.
//!
//! One stream; on it a hello, then every unanswered batch from the oldest on, then new ones as they are sealed. A
//! batch leaves the spool only when the collector has answered it. When the connection breaks, everything that is
//! unanswered is sent again on the next one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_proto::v1::{
    AgentMessage, Batch, CollectorMessage, Status, Stream, Welcome, agent_message, collector_message,
    uplink_client::UplinkClient,
};
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    identity::Identity,
    spool::{BatchId, Next, Sealed, Spool},
};

/// The pause after the first failure, and the longest one; each failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long a connection may take to come about, the collector's welcome included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that carries nothing is tried so often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How often the counters are sent.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the collector may take to end its side.
const GOODBYE: Duration = Duration::from_secs(1);

/// Messages that wait in front of the HTTP/2 stream.
const SEND_QUEUE: usize = 4;

/// HTTP/2 windows: one stream carries everything, so it may use the whole connection.
const WINDOW_BYTES: u32 = 4 << 20;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("cannot connect")]
    Connect(#[source] tonic::transport::Error),
    #[error("no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Silent,
    #[error("{}", .0.message())]
    Refused(tonic::Status),
    #[error("the connection broke: {}", .0.message())]
    Broken(tonic::Status),
    #[error("the collector closed the connection")]
    Closed,
    #[error("the collector did not speak Holdfast's protocol: it began with something else than a welcome")]
    NoWelcome,
}

/// The address of a collector, checked.
#[derive(Clone, Debug)]
pub struct Collector {
    url: String,
    endpoint: Endpoint,
}

impl Collector {
    /// Understands a URL such as `http://127.0.0.1:7443`.
    ///
    /// # Errors
    /// With a text for people if it is not one.
    pub fn parse(url: &str) -> Result<Self, String> {
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| format!("{url:?} must begin with http://"))?;
        if rest.trim_end_matches('/').is_empty() {
            return Err(format!("{url:?} names no host: try http://127.0.0.1:7443"));
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| format!("{url:?}: {error}"))?;
        Ok(Self {
            url: url.to_owned(),
            endpoint: endpoint
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .tcp_nodelay(true),
        })
    }
}

/// Sends what the spool holds until `shutdown` turns true; then until the spool is empty, or the connection fails.
///
/// A collector that is away is tried again with growing pauses; the log has one line per change of state.
/// `status` reads the counters, once a second.
pub async fn run(
    collector: &Collector,
    identity: &Identity,
    spool: &Arc<Spool>,
    mut shutdown: watch::Receiver<bool>,
    status: impl Fn() -> Option<Status>,
) {
    let mut pause = FIRST_PAUSE;
    let mut reported: Option<String> = None;
    loop {
        let began = Instant::now();
        let mut was_connected = false;
        let session = Session {
            collector,
            identity,
            spool,
            status: &status,
        };
        let error = match session.run(&mut shutdown, &mut was_connected).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if was_connected {
            reported = None;
            if began.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
        }
        let text = format!("{:#}", anyhow::Error::new(error));
        if reported.as_ref() != Some(&text) {
            tracing::warn!(
                collector = %collector.url,
                "no connection to the collector: {text}; trying again with pauses of up to {} s, nothing is lost \
                 until the spool is full",
                LONGEST_PAUSE.as_secs()
            );
            reported = Some(text);
        }
        if *shutdown.borrow() {
            return;
        }
        tokio::select! {
            () = sleep(jittered(pause)) => {}
            _ = shutdown.wait_for(|&stop| stop) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Between half and all of a pause, so that the agents of a collector that restarts do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let nanoseconds = crate::clock::wall_now().subsec_nanos();
    pause.mul_f64(0.5 + f64::from(nanoseconds % 1_000) / 2_000.0)
}

/// One connection.
struct Session<'a, F> {
    collector: &'a Collector,
    identity: &'a Identity,
    spool: &'a Arc<Spool>,
    status: &'a F,
}

impl<F: Fn() -> Option<Status>> Session<'_, F> {
    async fn run(
        &self,
        shutdown: &mut watch::Receiver<bool>,
        was_connected: &mut bool,
    ) -> Result<(), SessionError> {
        let (outgoing, queue) = mpsc::channel(SEND_QUEUE);
        // Room for it is certain: the queue is new.
        let _ = outgoing.try_send(message(agent_message::Body::Hello(self.identity.hello())));
        let (mut incoming, welcome) = timeout(CONNECT_TIMEOUT, self.open(queue))
            .await
            .map_err(|_| SessionError::Silent)??;
        tracing::info!(collector = %self.collector.url, version = %welcome.collector_version, "connected to the collector");
        *was_connected = true;
        self.exchange(outgoing, &mut incoming, &welcome, shutdown).await
    }

    async fn open(
        &self,
        queue: mpsc::Receiver<AgentMessage>,
    ) -> Result<(Streaming<CollectorMessage>, Welcome), SessionError> {
        let channel: Channel = self
            .collector
            .endpoint
            .connect()
            .await
            .map_err(SessionError::Connect)?;
        let mut client = UplinkClient::new(channel);
        let mut incoming = client
            .deliver(ReceiverStream::new(queue))
            .await
            .map_err(SessionError::Refused)?
            .into_inner();
        match incoming.message().await.map_err(SessionError::Refused)? {
            Some(CollectorMessage {
                body: Some(collector_message::Body::Welcome(welcome)),
            }) => Ok((incoming, welcome)),
            Some(_) => Err(SessionError::NoWelcome),
            None => Err(SessionError::Closed),
        }
    }

    /// Batches out, answers in. Sending never keeps an answer from being read: each waits for the other's buffer.
    async fn exchange(
        &self,
        outgoing: mpsc::Sender<AgentMessage>,
        incoming: &mut Streaming<CollectorMessage>,
        welcome: &Welcome,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), SessionError> {
        let max_in_flight = welcome.max_batches_in_flight.max(1) as usize;
        let mut in_flight = 0_usize;
        let mut sent_position = 0;
        let mut status_tick = interval(STATUS_INTERVAL);
        status_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = *shutdown.borrow();
        let mut pending_status = None;

        loop {
            if stopping && self.spool.next(0).is_none() && pending_status.is_none() {
                self.say_goodbye(outgoing, incoming).await;
                return Ok(());
            }
            let batch = if in_flight < max_in_flight {
                self.spool.next(sent_position)
            } else {
                None
            };
            let has_outgoing = batch.is_some() || pending_status.is_some();
            tokio::select! {
                answer = incoming.message() => match answer {
                    Ok(Some(message)) => in_flight = in_flight.saturating_sub(self.take(message)),
                    Ok(None) => return Err(SessionError::Closed),
                    Err(status) if status.code() == Code::InvalidArgument => return Err(SessionError::Refused(status)),
                    Err(status) => return Err(SessionError::Broken(status)),
                },
                permit = outgoing.reserve(), if has_outgoing => {
                    // The stream is gone; what it died of comes with the next answer.
                    let Ok(permit) = permit else { return Err(SessionError::Closed) };
                    if let Some(status) = pending_status.take() {
                        permit.send(message(agent_message::Body::Status(status)));
                    } else if let Some((position, next)) = batch {
                        sent_position = position;
                        if let Some(sealed) = self.load(position, next).await {
                            in_flight += 1;
                            permit.send(sealed_message(&sealed));
                        }
                    }
                }
                () = self.spool.appended(), if batch.is_none() => {}
                _ = status_tick.tick() => {
                    pending_status = (self.status)();
                    for gap in self.spool.take_gaps() {
                        tracing::warn!(rows = gap.rows, reason = ?gap.reason, "rows were dropped, and counted");
                    }
                }
                _ = shutdown.wait_for(|&stop| stop), if !stopping => stopping = true,
            }
        }
    }

    /// The final counters, then the end of our side; the collector ends its own once it has read everything.
    async fn say_goodbye(
        &self,
        outgoing: mpsc::Sender<AgentMessage>,
        incoming: &mut Streaming<CollectorMessage>,
    ) {
        if let Some(status) = (self.status)() {
            // A connection that breaks now has nothing left to lose but this.
            let _ = outgoing.send(message(agent_message::Body::Status(status))).await;
        }
        drop(outgoing);
        let _ = timeout(GOODBYE, async {
            while let Ok(Some(_)) = incoming.message().await {}
        })
        .await;
    }

    /// A batch that is next, read from disk if it is there only; the disk may be slow, the answers shall not wait.
    async fn load(&self, position: u64, next: Next) -> Option<Sealed> {
        match next {
            Next::Ready(sealed) => Some(sealed),
            Next::Stored => {
                let spool = Arc::clone(self.spool);
                tokio::task::spawn_blocking(move || spool.load(position))
                    .await
                    .ok()?
            }
        }
    }

    fn id(&self, stream: i32, sequence: u64) -> BatchId {
        let stream = Stream::try_from(stream).unwrap_or(Stream::Unspecified);
        BatchId {
            epoch: self.identity.epoch,
            stream,
            sequence,
        }
    }

    /// Carries out an answer; gives the number of batches that it answers.
    fn take(&self, message: CollectorMessage) -> usize {
        match message.body {
            Some(collector_message::Body::Acknowledgement(acknowledgement)) => {
                for &sequence in &acknowledgement.sequences {
                    self.spool.acknowledge(self.id(acknowledgement.stream, sequence));
                }
                acknowledgement.sequences.len()
            }
            Some(collector_message::Body::Refusal(refusal)) => {
                tracing::error!(sequence = refusal.sequence, reason = %refusal.reason, "the collector refused a batch");
                self.spool.refuse(self.id(refusal.stream, refusal.sequence));
                1
            }
            // A second welcome, or something that a newer collector says.
            Some(collector_message::Body::Welcome(_)) | None => 0,
        }
    }
}

fn sealed_message(sealed: &Sealed) -> AgentMessage {
    let batch = Batch::decode(sealed.encoded.clone()).expect("a batch that this agent encoded");
    message(agent_message::Body::Batch(batch))
}

fn message(body: agent_message::Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}
