//! The collector, top to bottom: open the store, start what gathers and inserts, open the ports, bring the store's
//! tables up to date, let agents and people in, and on the way out store and acknowledge what was already taken in.
//!
//! A store that is away, at the start or later, is waited for: nobody has to start the parts in an order.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use holdfast_proto::v1::query_server::QueryServer;
use holdfast_proto::v1::uplink_server::UplinkServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::causes::Causes;
use crate::clock::WallClock;
use crate::config::{Config, Limits, Retention, StoreLocation};
use crate::control::Control;
use crate::door::{self, Caller, Counted};
use crate::engine::heard::Heard;
use crate::engine::run::{Declared, Judge, SharedSet, hang_up};
use crate::gather;
use crate::health::{Health, PROBE_INTERVAL};
use crate::ingest::{Ingest, reports::Reports};
use crate::metrics::{Metrics, refusal};
use crate::notify::{self, Notifier};
use crate::port;
use crate::query::Questions;
use crate::rollup::{Minutes, Rollup};
use crate::runs::Runs;
use crate::seat::{self, Seat};
use crate::silence::Silencer;
use crate::store::embedded::Embedded;
use crate::store::schema::{RETAINED, TABLES};
use crate::store::server;
use crate::store::{Store, StoreError, library, migrations, questions, schema, writes};
use crate::web;

/// The database in the embedded store.
const DATABASE: &str = "holdfast";

/// The server's password, for those who keep it out of the URL.
pub const PASSWORD_VARIABLE: &str = "HOLDFAST_STORE_PASSWORD";

/// How long a stop waits for the store and for those who are connected.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How long who made a run may take to hear how it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The first pause before a store that is away is tried again, and the longest one; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

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
pub async fn run(
    config: Config,
    assertions: Option<Declared>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let agents = port::listen(config.listen, "--listen").await?;
    let browsers = port::listen(config.web, "--web").await?;
    info!(store = %config.store, "opening the store");
    let store = open(&config.store, config.engine_memory_bytes)
        .await
        .with_context(|| format!("cannot open the store {}", config.store))?;
    let listening = Listening { agents, browsers };
    serve(
        store,
        Some(config.retention),
        config.limits,
        listening,
        assertions,
        shutdown,
    )
    .await
}

async fn open(location: &StoreLocation, memory_bytes: Option<u64>) -> anyhow::Result<Arc<dyn Store>> {
    match location {
        StoreLocation::Embedded(folder) => {
            let folder = folder.clone();
            let opening = move || {
                let library = library::locate()?;
                writes::wait_for_space();
                anyhow::Ok(Embedded::open_within(&folder, &library, DATABASE, memory_bytes)?)
            };
            Ok(Arc::new(tokio::task::spawn_blocking(opening).await??))
        }
        StoreLocation::Server {
            url,
            authorities,
            cluster,
        } => {
            let password = std::env::var(PASSWORD_VARIABLE).ok();
            let server = server::Server::trusting(url, password.as_deref(), authorities.as_deref())?;
            Ok(Arc::new(match cluster {
                Some(name) => server.in_cluster(name)?,
                None => server,
            }))
        }
    }
}

/// Brings the store's tables up to date, however long the store is away, and lets everybody in.
async fn prepare(
    store: Arc<dyn Store>,
    retention: Retention,
    health: Arc<Health>,
    heard: Heard,
) -> anyhow::Result<()> {
    let mut pause = FIRST_PAUSE;
    while let Err(error) = bring_up_to_date(&*store, &retention).await {
        let text = match error {
            PrepareError::Away(text) => text,
            PrepareError::Final(error) => return Err(error),
        };
        if health.failed(&text) {
            warn!("the store is away, agents are told to wait: {text}");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    if health.answered(Instant::now()) {
        info!("the store is back");
    }
    heard.open(WallClock::system().now_ns());
    health.ready();
    Ok(())
}

/// Why the tables are not up to date.
enum PrepareError {
    /// The same again may succeed. In words.
    Away(String),
    Final(anyhow::Error),
}

impl From<StoreError> for PrepareError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Rejected { .. } => Self::Final(error.into()),
            away => Self::Away(away.to_string()),
        }
    }
}

impl From<migrations::MigrationError> for PrepareError {
    fn from(error: migrations::MigrationError) -> Self {
        if error.is_worth_another_try() {
            Self::Away(format!("{:#}", anyhow::Error::new(error)))
        } else {
            Self::Final(error.into())
        }
    }
}

async fn bring_up_to_date(store: &dyn Store, retention: &Retention) -> Result<(), PrepareError> {
    store.prepare().await?;
    migrations::apply(store, WallClock::system().now_ns()).await?;
    for (table, _) in RETAINED {
        schema::retain(store, table, retention.days(table)).await?;
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
    serve(store, None, limits, listening, None, shutdown).await
}

/// The collector on a store whose tables are up to date, and what it judges.
pub async fn collect_and_judge(
    store: Arc<dyn Store>,
    limits: Limits,
    listening: Listening,
    assertions: Declared,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    serve(store, None, limits, listening, Some(assertions), shutdown).await
}

/// The collector on a store that may be away, and whose tables may be of an older version or not there.
pub async fn collect_once_ready(
    store: Arc<dyn Store>,
    retention: Retention,
    limits: Limits,
    listening: Listening,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    serve(store, Some(retention), limits, listening, None, shutdown).await
}

/// `retention` is `None` where the tables are up to date.
async fn serve(
    store: Arc<dyn Store>,
    retention: Option<Retention>,
    limits: Limits,
    listening: Listening,
    assertions: Option<Declared>,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new(&TABLES.map(|table| table.name)).context("cannot make the metrics")?);
    let health = Arc::new(Health::default());
    let (stop, stopping) = watch::channel(false);

    // A port that was given as 0 has its number only now.
    let (grpc_at, web_at) = (listening.agents.local_addr()?, listening.browsers.local_addr()?);

    let minutes = Minutes::new(WallClock::system());
    let (intake, settled) = gather::start(
        store.clone(),
        limits,
        metrics.clone(),
        health.clone(),
        minutes.clone(),
        WallClock::system(),
    );
    let mut causes = Some(Causes {
        store: store.clone(),
        minutes: minutes.causes.clone(),
        clock: WallClock::system(),
        metrics: metrics.clone(),
        stopping: stopping.clone(),
    });
    let mut explaining = None;
    let mut rollup = Some(Rollup {
        store: store.clone(),
        minutes,
        metrics: metrics.clone(),
        stopping: stopping.clone(),
    });
    let shared = assertions
        .as_ref()
        .map(|declared| SharedSet::new(declared.set.clone()));
    let silencer = Arc::new(Silencer::new(store.clone(), WallClock::system()));
    let seat = Arc::new(Seat::new(store.clone(), seat::PATIENCE));
    let (ear, heard) = notify::ear();
    let mut notifier = shared.clone().map(|shared| Notifier {
        store: store.clone(),
        shared,
        heard,
        silencer: silencer.clone(),
        seat: seat.clone(),
        clock: WallClock::system(),
        stopping: stopping.clone(),
    });
    let told = Heard::default();
    let mut judge = assertions.zip(shared.clone()).map(|(declared, shared)| Judge {
        store: store.clone(),
        heard: told.clone(),
        declared,
        shared,
        ear,
        silencer: silencer.clone(),
        seat: seat.clone(),
        metrics: metrics.clone(),
        clock: WallClock::system(),
        hang_up: hang_up(),
        stopping: stopping.clone(),
    });
    let mut rolling = None;
    let mut judging = None;
    let mut telling = None;
    let mut preparing = match retention {
        Some(retention) => tokio::spawn(prepare(store.clone(), retention, health.clone(), told.clone())),
        None => {
            told.open(WallClock::system().now_ns());
            health.ready();
            tokio::spawn(async { Ok(()) })
        }
    };
    let probe = tokio::spawn(probe(store.clone(), health.clone()));
    let control = Arc::new(Control::new(store.clone(), WallClock::system()));
    let runs = Arc::new(Runs::default());
    let ingest = Ingest {
        reports: Reports::start(store.clone()),
        heard: told.clone(),
        store: store.clone(),
        registry: Arc::default(),
        intake,
        metrics: metrics.clone(),
        limits,
        clock: WallClock::system(),
        rules: control.rules(),
        runs: runs.clone(),
        stopping: stopping.clone(),
    };
    let questions = Questions {
        store,
        control: control.clone(),
        silencer,
        seat: seat.clone(),
        runs: runs.clone(),
        metrics: metrics.clone(),
        clock: WallClock::system(),
        heard: told,
        assertions: shared,
        stopping: stopping.clone(),
    };
    let stopping_too = stopping.clone();
    let mut grpc = tokio::spawn(grpc(
        listening.agents,
        ingest,
        questions,
        limits,
        health.clone(),
        stopping.clone(),
    ));
    let mut web = tokio::spawn(pages(
        listening.browsers,
        web::Shown { metrics, health },
        stopping,
    ));

    tokio::pin!(shutdown);
    let mut is_ready = false;
    loop {
        tokio::select! {
            () = &mut shutdown => break info!("stopping: storing what was taken in"),
            ended = &mut grpc => break ended?.context("the gRPC port failed")?,
            ended = &mut web => break ended?.context("the web port failed")?,
            prepared = &mut preparing, if !is_ready => {
                prepared?.context("cannot bring the store's tables up to date")?;
                is_ready = true;
                rolling = rollup.take().map(|rollup| tokio::spawn(rollup.run()));
                judging = judge.take().map(|judge| tokio::spawn(judge.run()));
                telling = notifier.take().map(|notifier| tokio::spawn(notifier.run()));
                let (control, stopping) = (control.clone(), stopping_too.clone());
                tokio::spawn(async move { control.follow(stopping).await });
                explaining = causes.take().map(|causes| tokio::spawn(causes.run()));
                info!(collector = %format_args!("http://{grpc_at}"), web = %format_args!("http://{web_at}"), "ready");
            }
        }
    }
    // From here on nothing is read; streams end as their last batches are acknowledged.
    let has_runs = runs.are_under_way();
    let _ = stop.send(true);
    let (settled, ended) = tokio::join!(
        tokio::time::timeout(STOP_PATIENCE, settled),
        tokio::time::timeout(STOP_PATIENCE, runs.ended()),
    );
    if settled.is_err() {
        warn!("stopped with streams still open; agents keep what was not acknowledged");
    }
    if ended.is_err() {
        warn!("stopped with runs under way; they are shown as lost");
    } else if has_runs && !grpc.is_finished() {
        let _ = tokio::time::timeout(LAST_WORDS, &mut grpc).await;
    }
    // A statement that runs is waited for; what waits is found at the next start.
    for task in [rolling, explaining].into_iter().flatten() {
        let _ = tokio::time::timeout(STOP_PATIENCE, task).await;
    }
    let mut have_ended = true;
    for task in [judging, telling].into_iter().flatten() {
        have_ended &= tokio::time::timeout(STOP_PATIENCE, task).await.is_ok();
    }
    if have_ended {
        // Otherwise something may still be on its way, and the next one waits for it.
        let _ = tokio::time::timeout(STOP_PATIENCE, seat.leave()).await;
    }
    for task in [
        preparing.abort_handle(),
        probe.abort_handle(),
        grpc.abort_handle(),
        web.abort_handle(),
    ] {
        task.abort();
    }
    // A disk that is full by now is not waited for.
    writes::end();
    Ok(())
}

/// Agents and the CLI, let in once the store is ready. Ends once it is told to stop and every stream has ended.
async fn grpc(
    listener: TcpListener,
    ingest: Ingest,
    questions: Questions,
    limits: Limits,
    health: Arc<Health>,
    stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let metrics = ingest.metrics.clone();
    let admit = {
        let metrics = metrics.clone();
        move |request: Request<()>| {
            // One that is turned away here is a request as well.
            if let Some(caller) = request.extensions().get::<Caller>() {
                drop(caller.asks());
            }
            // Nobody else would count it: such a request does not reach its service.
            if let Some(encoding) = request.metadata().get("grpc-encoding")
                && encoding != "identity"
            {
                metrics.refused(refusal::UNREADABLE);
                return Err(Status::unimplemented(
                    "messages that are compressed are not taken: send them as they are",
                ));
            }
            match health.why_not_ready() {
                None => Ok(request),
                Some(reason) => Err(Status::unavailable(reason)),
            }
        }
    };
    let uplink = UplinkServer::new(ingest).max_decoding_message_size(limits.max_batch_bytes + ENVELOPE_BYTES);
    let query = QueryServer::new(questions).max_decoding_message_size(MAX_QUESTION_BYTES);
    // What no service has is a request as well.
    let unknown = {
        let metrics = metrics.clone();
        move |request: http::Request<axum::body::Body>| {
            if let Some(caller) = request.extensions().get::<Caller>() {
                drop(caller.asks());
            }
            std::future::ready(door::unknown(&metrics).map(axum::body::Body::new))
        }
    };
    let uplink = Counted {
        service: uplink,
        pace: limits.agents_pace,
        memory: None,
        metrics: metrics.clone(),
    };
    let query = Counted {
        service: query,
        pace: door::ASKING_PACE,
        memory: Some(door::Memory::new(door::QUESTION_BYTES)),
        metrics: metrics.clone(),
    };
    let services = Routes::new(InterceptedService::new(uplink, admit.clone()))
        .add_service(InterceptedService::new(query, admit))
        .into_axum_router()
        .fallback(unknown);
    let server = Server::builder()
        .max_concurrent_streams(door::STREAMS)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_routes(Routes::from(services));
    let places = door::places(limits.max_agents);
    let incoming = door::connections(listener, places, door::PATIENCE, metrics);
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
        if health.why_not_ready().is_some() {
            // The preparation asks often enough, and there may be no database to ask yet.
            continue;
        }
        if writes::are_waiting() {
            health.failed("its disk is full");
            continue;
        }
        match questions::alive(&*store).await {
            Ok(()) => {
                health.answered(Instant::now());
            }
            Err(error) => {
                health.failed(&error.to_string());
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
