//! The collector, top to bottom: open the store, bring its tables up to date, start what gathers and inserts, let
//! agents and people in, and on the way out store and acknowledge what was already taken in.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use holdfast_proto::v1::query_server::QueryServer;
use holdfast_proto::v1::uplink_server::UplinkServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::{info, warn};

use crate::config::{Config, Limits, StoreLocation};
use crate::gather;
use crate::health::{Health, PROBE_INTERVAL};
use crate::ingest::{Ingest, now_ns};
use crate::metrics::Metrics;
use crate::port;
use crate::query::Questions;
use crate::store::embedded::Embedded;
use crate::store::schema::TABLES;
use crate::store::server;
use crate::store::{Store, StoreError, library, migrations, questions, schema};

use crate::web;

/// The database in the embedded store.
const DATABASE: &str = "holdfast";

/// The server's password, for those who keep it out of the URL.
pub const PASSWORD_VARIABLE: &str = "HOLDFAST_STORE_PASSWORD";

const DAY_S: u64 = 24 * 3600;

/// How long a stop waits for the store and for those who are connected.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What a stream may have in flight before the collector reads it: one batch of the usual size.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;

/// The same for all streams of one connection.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// A peer that is silent for so long is asked whether it is still there, and has as long to answer.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// What protobuf puts around a batch.
const ENVELOPE_BYTES: usize = 1024;

/// A SQL text or a filter; nobody types more.
const MAX_QUESTION_BYTES: usize = 1 << 20;

/// Runs the collector until `shutdown` is there and everything that was taken in is stored, or patience ends.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let agents = port::listen(config.listen, "--listen").await?;
    let browsers = port::listen(config.web, "--web").await?;
    info!(store = %config.store, "opening the store");
    let store = open(&config.store)
        .await
        .with_context(|| format!("cannot open the store {}", config.store))?;
    prepare(&*store, config.retention)
        .await
        .context("cannot bring the store's tables up to date")?;
    // A port that was given as 0 has its number only now.
    let (grpc_at, web_at) = (agents.local_addr()?, browsers.local_addr()?);
    info!(collector = %format_args!("http://{grpc_at}"), web = %format_args!("http://{web_at}"), "ready");
    let listening = Listening { agents, browsers };
    collect(store, config.limits, listening, shutdown).await
}

async fn open(location: &StoreLocation) -> anyhow::Result<Arc<dyn Store>> {
    match location {
        StoreLocation::Embedded(folder) => {
            let folder = folder.clone();
            let opening = move || anyhow::Ok(Embedded::open(&folder, &library::locate()?, DATABASE)?);
            Ok(Arc::new(tokio::task::spawn_blocking(opening).await??))
        }
        StoreLocation::Server(url) => {
            let password = std::env::var(PASSWORD_VARIABLE).ok();
            let server = server::Server::new(url, password.as_deref())?;
            server.prepare().await?;
            Ok(Arc::new(server))
        }
    }
}

async fn prepare(store: &dyn Store, retention: Duration) -> anyhow::Result<()> {
    migrations::apply(store, now_ns()).await?;
    let days = u32::try_from(retention.as_secs() / DAY_S).unwrap_or(u32::MAX);
    for table in TABLES {
        schema::retain(store, table, days).await?;
    }
    Ok(())
}

/// The collector's ports, taken.
pub struct Listening {
    /// For gRPC: agents and the CLI.
    pub agents: TcpListener,
    /// For `/metrics` and `/healthz`.
    pub browsers: TcpListener,
}

/// The collector on a store whose tables are up to date.
pub async fn collect(
    store: Arc<dyn Store>,
    limits: Limits,
    listening: Listening,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new(&gather::TABLES).context("cannot make the metrics")?);
    let health = Arc::new(Health::default());
    let (stop, stopping) = watch::channel(false);

    let (intake, settled) = gather::start(store.clone(), limits, metrics.clone(), health.clone());
    let probe = tokio::spawn(probe(store.clone(), health.clone()));
    let ingest = Ingest {
        store: store.clone(),
        registry: Arc::default(),
        intake,
        metrics: metrics.clone(),
        limits,
        stopping: stopping.clone(),
    };
    let questions = Questions {
        store,
        metrics: metrics.clone(),
        stopping: stopping.clone(),
    };
    let mut grpc = tokio::spawn(grpc(
        listening.agents,
        ingest,
        questions,
        limits,
        stopping.clone(),
    ));
    let mut web = tokio::spawn(pages(
        listening.browsers,
        web::Shown { metrics, health },
        stopping,
    ));

    tokio::select! {
        () = shutdown => info!("stopping: storing what was taken in"),
        ended = &mut grpc => ended?.context("the gRPC port failed")?,
        ended = &mut web => ended?.context("the web port failed")?,
    }
    // From here on nothing is read; streams end as their last batches are acknowledged.
    let _ = stop.send(true);
    if tokio::time::timeout(STOP_PATIENCE, settled).await.is_err() {
        warn!("stopped with streams still open; agents keep what was not acknowledged");
    }
    for task in [probe.abort_handle(), grpc.abort_handle(), web.abort_handle()] {
        task.abort();
    }
    Ok(())
}

/// Agents and the CLI. Ends once it is told to stop and every stream has ended.
async fn grpc(
    listener: TcpListener,
    ingest: Ingest,
    questions: Questions,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let uplink = UplinkServer::new(ingest).max_decoding_message_size(limits.max_batch_bytes + ENVELOPE_BYTES);
    let query = QueryServer::new(questions).max_decoding_message_size(MAX_QUESTION_BYTES);
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(uplink)
        .add_service(query);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    server
        .serve_with_incoming_shutdown(incoming, told(stopping))
        .await?;
    Ok(())
}

async fn pages(
    listener: TcpListener,
    shown: web::Shown,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    axum::serve(listener, web::pages(shown))
        .with_graceful_shutdown(told(stopping))
        .await?;
    Ok(())
}

async fn told(mut stopping: watch::Receiver<bool>) {
    // An error means that the collector is already gone.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Asks the store regularly whether it is there.
async fn probe(store: Arc<dyn Store>, health: Arc<Health>) {
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match questions::alive(&*store).await {
            Ok(()) => {
                health.answered(Instant::now());
            }
            Err(StoreError::Rejected { message, .. } | StoreError::Unavailable { message }) => {
                health.failed(&message);
            }
        }
    }
}

/// Ends at SIGINT or SIGTERM.
pub async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        warn!("signals cannot be received; the collector stops only when it is killed");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
