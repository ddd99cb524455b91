//! The way to the collector: the only file of the agent that knows gRPC, but for [`crate::workloads::cri`]. What is said on
//! it is in [`crate::delivery`].

use std::{future::Future, time::Duration};

use holdfast_proto::v1::{AgentMessage, CollectorMessage, Status, uplink_client::UplinkClient};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::Endpoint;

use crate::delivery::{Delivery, SessionError, WELCOME_TIMEOUT, told};

/// The pause after the first failure, and the longest one; each failure doubles it. A collector that is there again calls
/// nobody down for so long (`FOUND_WITHIN` of `collector/src/assertion/coverage.rs`).
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that carries nothing is tried so often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Messages that wait in front of the HTTP/2 stream.
const SEND_QUEUE: usize = 4;

/// HTTP/2 windows: one stream carries everything, so it may use the whole connection.
const WINDOW_BYTES: u32 = 4 << 20;

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// The last cause of an error: what the system said. Those above it only say where it passed.
pub(crate) fn innermost(error: &tonic::transport::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
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

/// Brings connections about. A trait, because the simulation has links of its own.
pub trait Dial {
    /// What the collector says on a connection.
    type Incoming: Stream<Item = Result<CollectorMessage, tonic::Status>> + Unpin + Send;

    /// Opens a connection that carries what comes out of `queue`, until it breaks or the queue ends.
    fn dial(
        &self,
        queue: mpsc::Receiver<AgentMessage>,
    ) -> impl Future<Output = Result<Self::Incoming, ConnectionError>> + Send;

    /// Where it leads, for the log.
    fn address(&self) -> &str;
}

impl Dial for Collector {
    type Incoming = tonic::Streaming<CollectorMessage>;

    async fn dial(&self, queue: mpsc::Receiver<AgentMessage>) -> Result<Self::Incoming, ConnectionError> {
        let channel = self
            .endpoint
            .connect()
            .await
            .map_err(|error| ConnectionError::Connect(innermost(&error)))?;
        let mut client = UplinkClient::new(channel);
        let opened = timeout(WELCOME_TIMEOUT, client.deliver(ReceiverStream::new(queue)))
            .await
            .map_err(|_| SessionError::Silent)?;
        Ok(opened.map_err(SessionError::from)?.into_inner())
    }

    fn address(&self) -> &str {
        &self.url
    }
}

/// Delivers until `shutdown` turns true; then until nothing is left, or the connection fails.
///
/// A collector that is away is tried again with growing pauses; the log has one line per change of state.
pub async fn run<F: Fn() -> Option<Status>>(
    collector: &impl Dial,
    delivery: &mut Delivery<F>,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut pause = FIRST_PAUSE;
    let mut reported: Option<String> = None;
    loop {
        let began = Instant::now();
        let mut was_connected = false;
        let error = match session(collector, delivery, &mut shutdown, &mut was_connected).await {
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
                collector = %collector.address(),
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
            biased;
            () = sleep(jittered(pause, (delivery.wall_now_ns)())) => {}
            () = told(&mut shutdown) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Between half and all of a pause, so that the agents of a collector that restarts do not come back in step.
/// The last digits of the clock are random enough for that.
fn jittered(pause: Duration, wall_now_ns: u64) -> Duration {
    let digits = (wall_now_ns % 1_000) as u32;
    pause.mul_f64(0.5 + f64::from(digits) / 2_000.0)
}

/// One connection, from dialling to its end.
async fn session<F: Fn() -> Option<Status>>(
    collector: &impl Dial,
    delivery: &mut Delivery<F>,
    shutdown: &mut watch::Receiver<bool>,
    was_connected: &mut bool,
) -> Result<(), ConnectionError> {
    // Without a collector there are gaps too, and they are safer on disk.
    delivery.seal_gaps();
    let (outgoing, queue) = mpsc::channel(SEND_QUEUE);
    // Room for it is certain: the queue is new.
    let _ = outgoing.try_send(delivery.hello());
    let mut incoming = collector.dial(queue).await?;
    let welcome = delivery.welcome(&mut incoming).await?;
    tracing::info!(collector = %collector.address(), version = %welcome.collector_version, "connected to the collector");
    *was_connected = true;
    delivery
        .exchange(&welcome, outgoing, &mut incoming, shutdown)
        .await?;
    Ok(())
}
