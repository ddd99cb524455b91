//! The `Query` service: what people and their tools ask. SQL of theirs is passed on as read-only; everything else is
//! one of the store's prepared questions.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use holdfast_proto::v1::query_server::Query as QueryService;
use holdfast_proto::v1::{
    CausesRequest, CheckRequest, Chunk, ConnectionsRequest, ExplainRequest, LedgerRequest, ListenersRequest,
    LoadMessage, NodesRequest, NotificationsRequest, OverheadRequest, ProbesRequest, RunUpdate, RunsRequest,
    SetProbesRequest, SetProbesResponse, SetSilenceRequest, SilencesRequest, SqlRequest, StopRunRequest,
    StopRunResponse, SuggestRequest, SyscallsRequest, TransitionsRequest, VerdictsRequest, load_message,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::assertion::Set;
use crate::assertion::problem::instead;
use crate::clock::WallClock;
use crate::control::{Control, ControlError};
use crate::engine::check::{self, Extent};
use crate::engine::heard::Heard;
use crate::engine::run::SharedSet;
use crate::engine::standing::Standing;
use crate::engine::suggest::{self, SuggestError, Wanted};
use crate::engine::{explain, files};
use crate::filter::Filter;
use crate::metrics::Metrics;
use crate::runs::{self, Desk, Runs};
use crate::seat::Seat;
use crate::silence::{SilenceError, Silencer};
use crate::store::condition::filterable;
use crate::store::native::Column;
use crate::store::questions::{self, Follower};
use crate::store::{
    self, Access, Chunks, Query, Store, StoreError, notifications, schema, silences, verdicts,
};

/// Largest part of an answer that is sent at once. Clients accept 4 MiB by default.
const CHUNK_BYTES: usize = 1 << 20;

/// How often a follower's next rows are asked for.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

/// Parts that wait for a slow follower; it is asked for no more rows until it has read them.
const FOLLOW_CHUNKS: usize = 4;

/// What ends an answer that is not complete when the collector is told to stop.
const STOPS: &str = "it stops, so this was not told to the end; ask again once it runs again";

/// The format of a SQL answer when the caller names none.
const DEFAULT_FORMAT: &str = "TabSeparatedWithNames";

/// People's side of the collector.
pub struct Questions {
    pub store: Arc<dyn Store>,
    pub control: Arc<Control>,
    pub silencer: Arc<Silencer>,
    pub seat: Arc<Seat>,
    pub runs: Arc<Runs>,
    pub metrics: Arc<Metrics>,
    pub clock: WallClock,
    /// When agents could be heard here.
    pub heard: Heard,
    /// What is judged; none where nothing is.
    pub assertions: Option<SharedSet>,
    /// True once the collector stops: answers end.
    pub stopping: watch::Receiver<bool>,
}

type Answer = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;
type Updates = Pin<Box<dyn Stream<Item = Result<RunUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl QueryService for Questions {
    type SqlStream = Answer;
    type ConnectionsStream = Answer;
    type TransitionsStream = Answer;
    type CausesStream = Answer;
    type ListenersStream = Answer;
    type NodesStream = Answer;
    type LedgerStream = Answer;
    type SyscallsStream = Answer;
    type OverheadStream = Answer;
    type ProbesStream = Answer;
    type VerdictsStream = Answer;
    type ExplainStream = Answer;
    type CheckStream = Answer;
    type NotificationsStream = Answer;
    type SetSilenceStream = Answer;
    type SilencesStream = Answer;
    type SuggestStream = Answer;
    type LoadStream = Updates;
    type RunsStream = Answer;

    async fn sql(&self, request: Request<SqlRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("sql");
        let SqlRequest { sql, format } = request.into_inner();
        let format = if format.is_empty() {
            DEFAULT_FORMAT.to_owned()
        } else {
            format
        };
        let query = Query {
            sql,
            params: Vec::new(),
            format,
            access: Access::ReadOnly,
        };
        self.ask(query).await
    }

    async fn connections(&self, request: Request<ConnectionsRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("connections");
        let ConnectionsRequest {
            filter,
            last_ns,
            follow,
            limit,
            open,
        } = request.into_inner();
        if open {
            if follow {
                return Err(Status::invalid_argument(
                    "what is open cannot be followed: ask again, it is looked at every 10 s",
                ));
            }
            let filter = filter_of(&filter, schema::open_connections())?;
            return self
                .ask(questions::open_connections(filter.as_ref(), limit))
                .await;
        }
        let filter = filter_of(&filter, schema::connections())?;
        let last_ns = i64::try_from(last_ns).unwrap_or(i64::MAX);
        if follow {
            let follower = Follower::new(filter.as_ref(), self.clock.now_ns(), last_ns, limit);
            return Ok(self.follow(follower));
        }
        if last_ns == 0 {
            return Err(Status::invalid_argument(
                "how far back? `last` is zero, which needs `follow`",
            ));
        }
        self.ask(questions::connections(
            filter.as_ref(),
            self.clock.now_ns().saturating_sub(last_ns),
            limit,
        ))
        .await
    }

    async fn transitions(&self, request: Request<TransitionsRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("transitions");
        let TransitionsRequest {
            filter,
            last_ns,
            follow,
            limit,
        } = request.into_inner();
        let filter = filter_of(&filter, schema::transitions())?;
        let last_ns = i64::try_from(last_ns).unwrap_or(i64::MAX);
        if follow {
            let follower = Follower::of_transitions(filter.as_ref(), self.clock.now_ns(), last_ns, limit);
            return Ok(self.follow(follower));
        }
        if last_ns == 0 {
            return Err(Status::invalid_argument(
                "how far back? `last` is zero, which needs `follow`",
            ));
        }
        self.ask(questions::transitions(
            filter.as_ref(),
            self.clock.now_ns().saturating_sub(last_ns),
            limit,
        ))
        .await
    }

    async fn listeners(&self, _: Request<ListenersRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("listeners");
        self.ask(questions::listeners()).await
    }

    async fn nodes(&self, _: Request<NodesRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("nodes");
        self.ask(questions::nodes()).await
    }

    async fn ledger(&self, request: Request<LedgerRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("ledger");
        self.ask(questions::ledger(request.into_inner().all_starts)).await
    }

    async fn set_probes(
        &self,
        request: Request<SetProbesRequest>,
    ) -> Result<Response<SetProbesResponse>, Status> {
        self.metrics.queried("set_probes");
        match self.control.want(request.into_inner()).await {
            Ok(revision) => Ok(Response::new(SetProbesResponse { revision })),
            Err(ControlError::Request(text)) => Err(Status::invalid_argument(text)),
            Err(ControlError::Store(error)) => Err(status(&error)),
        }
    }

    async fn probes(&self, _: Request<ProbesRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("probes");
        let rows = self.control.show().await.map_err(|error| status(&error))?;
        let mut text = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut text, &row).map_err(|error| Status::internal(error.to_string()))?;
            text.push(b'\n');
        }
        let chunks = stream::iter(cut(text.into()).into_iter().map(Ok));
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn overhead(&self, request: Request<OverheadRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("overhead");
        let last_ns = i64::try_from(request.into_inner().last_ns).unwrap_or(i64::MAX);
        if last_ns == 0 {
            return Err(Status::invalid_argument("how far back? `last` is zero"));
        }
        self.ask(questions::overhead(self.clock.now_ns().saturating_sub(last_ns)))
            .await
    }

    async fn verdicts(&self, request: Request<VerdictsRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("verdicts");
        let VerdictsRequest { name, history_ns } = request.into_inner();
        let now_ns = self.clock.now_ns();
        if history_ns > 0 {
            let back_ns = i64::try_from(history_ns).unwrap_or(i64::MAX);
            return self
                .ask(verdicts::history(&name, now_ns.saturating_sub(back_ns)))
                .await;
        }
        self.verdicts_of_now(&name, now_ns)
            .await
            .map_err(|error| status(&error))
    }

    async fn notifications(
        &self,
        request: Request<NotificationsRequest>,
    ) -> Result<Response<Answer>, Status> {
        self.metrics.queried("notifications");
        let last_ns = i64::try_from(request.into_inner().last_ns).unwrap_or(i64::MAX);
        if last_ns == 0 {
            return Err(Status::invalid_argument("how far back? `last` is zero"));
        }
        self.ask(notifications::shown(self.clock.now_ns().saturating_sub(last_ns)))
            .await
    }

    async fn set_silence(&self, request: Request<SetSilenceRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("set_silence");
        let set = self.judged()?;
        let silenced = self.silencer.set(request.into_inner(), &set).await;
        match silenced {
            Ok(ids) => self.ask(silences::shown_of(&ids)).await,
            Err(SilenceError::Request(text)) => Err(Status::invalid_argument(text)),
            Err(SilenceError::Store(error)) => Err(status(&error)),
        }
    }

    async fn silences(&self, request: Request<SilencesRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("silences");
        self.ask(silences::shown(request.into_inner().all)).await
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("explain");
        let text = self.explanation(&request.into_inner().name)?;
        let chunks = cut(Bytes::from(text)).into_iter().map(Ok);
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("check");
        let request = request.into_inner();
        let files: Vec<_> = request
            .files
            .into_iter()
            .map(|file| (file.name, file.text))
            .collect();
        let set = files::declared(&files)
            .map_err(|error| Status::invalid_argument(within_a_header(error.to_string())))?;
        let span = |ns: u64| Duration::from_nanos(ns);
        let extent = match (request.since_ns, request.for_ns) {
            (0, 0) => Extent::Once,
            (0, for_ns) => Extent::For(span(for_ns)),
            (since_ns, _) => Extent::Since(span(since_ns)),
        };
        let (answer, lines) = mpsc::channel(FOLLOW_CHUNKS);
        let (cut_short, is_cut_short) = oneshot::channel();
        let (store, clock, stopping) = (self.store.clone(), self.clock.clone(), self.stopping.clone());
        let heard = self.heard.clone();
        tokio::spawn(async move {
            let checked = check::check(store, set, &clock, extent, &heard, &answer);
            tokio::select! {
                outcome = checked => if let Err(error) = outcome {
                    // A caller that is gone does not want the error either.
                    let _ = answer.send(Err(error)).await;
                },
                () = answer.closed() => {}
                () = told(stopping) => {
                    let _ = cut_short.send(Status::unavailable(STOPS));
                }
            }
        });
        let messages = ReceiverStream::new(lines).flat_map(|line| match line {
            Ok(text) => stream::iter(cut(Bytes::from(text))).map(Ok).left_stream(),
            Err(error) => stream::iter([Err(status(&error))]).right_stream(),
        });
        // What was cut short must not be taken for all that there was to say: of some keys it may be.
        let end = stream::once(is_cut_short).filter_map(|cut_short| ready(cut_short.ok().map(Err)));
        Ok(Response::new(Box::pin(messages.chain(end))))
    }

    async fn suggest(&self, request: Request<SuggestRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("suggest");
        let SuggestRequest { from, to, since_ns } = request.into_inner();
        let typed = |text: String| Some(text).filter(|text| !text.is_empty());
        let wanted = Wanted {
            from: typed(from),
            to: typed(to),
            since: Duration::from_nanos(since_ns),
        };
        let found = suggest::suggest(self.store.clone(), &wanted, self.clock.now_ns());
        let suggested = tokio::select! {
            suggested = found => suggested.map_err(|error| match error {
                SuggestError::Wrong(why) => Status::invalid_argument(why),
                SuggestError::Store(error) => status(&error),
            })?,
            () = told(self.stopping.clone()) => return Err(Status::unavailable(STOPS)),
        };
        let mut lines = String::new();
        for object in suggested.json() {
            lines.push_str(&format!("{}\n", serde_json::json!({ "suggested": object })));
        }
        for why in &suggested.left_out {
            lines.push_str(&format!("{}\n", serde_json::json!({ "left_out": why })));
        }
        lines.push_str(&format!("{}\n", serde_json::json!({ "yaml": suggested.yaml() })));
        let chunks = cut(Bytes::from(lines)).into_iter().map(Ok);
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn load(&self, request: Request<Streaming<LoadMessage>>) -> Result<Response<Updates>, Status> {
        self.metrics.queried("load");
        let mut said = request.into_inner();
        let first = said.message().await?.and_then(|message| message.body);
        let Some(load_message::Body::Begin(begin)) = first else {
            return Err(Status::invalid_argument("a run begins with what it is"));
        };
        let (updates, updated) = mpsc::channel(UPDATES);
        let desk = Desk {
            runs: self.runs.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            stopping: self.stopping.clone(),
        };
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            let stop = async move {
                let asked = async {
                    // It says stop, or nothing more: a caller that only listens has not left.
                    while let Ok(Some(message)) = said.message().await {
                        if matches!(message.body, Some(load_message::Body::Stop(_))) {
                            return;
                        }
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = asked => {}
                    () = told(stopping) => {}
                }
            };
            if let Err(status) = runs::load(&desk, begin, stop, &updates).await {
                // A caller that is gone does not want the error either.
                let _ = updates.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(updated))))
    }

    async fn runs(&self, request: Request<RunsRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("runs");
        let RunsRequest {
            run_id,
            limit,
            seconds,
        } = request.into_inner();
        if run_id.is_empty() {
            return self.ask(store::runs::runs("", limit)).await;
        }
        // One that is asked for by its name is shown with what has become known since.
        let rows = store::runs::rows(&*self.store, &run_id, limit).await;
        let mut text = String::new();
        for line in &rows.map_err(|error| status(&error))? {
            let known = runs::known::complete(&*self.store, line, seconds).await;
            text += &known.map_err(|error| status(&error))?;
            text.push('\n');
        }
        // Second by second, a large mesh is more than a message holds.
        let chunks = cut(text.into()).into_iter().map(Ok);
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    async fn stop_run(&self, request: Request<StopRunRequest>) -> Result<Response<StopRunResponse>, Status> {
        self.metrics.queried("stop_run");
        let run_id = request.into_inner().run_id;
        if self.runs.stop(&run_id) {
            return Ok(Response::new(StopRunResponse {}));
        }
        Err(Status::not_found(format!(
            "this collector drives no run whose id begins with {run_id:?}, or several; holdfast runs lists them"
        )))
    }

    async fn causes(&self, request: Request<CausesRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("causes");
        let request = request.into_inner();
        let filter = filter_of(&request.filter, schema::attempt_causes())?;
        if request.last_ns == 0 {
            return Err(Status::invalid_argument("how far back? `last` is zero"));
        }
        let last_ns = i64::try_from(request.last_ns).unwrap_or(i64::MAX);
        self.ask(questions::attempt_causes(
            filter.as_ref(),
            self.clock.now_ns().saturating_sub(last_ns),
            request.limit,
        ))
        .await
    }

    async fn syscalls(&self, request: Request<SyscallsRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("syscalls");
        let request = request.into_inner();
        let filter = filter_of(&request.filter, schema::syscalls())?;
        if request.last_ns == 0 {
            return Err(Status::invalid_argument("how far back? `last` is zero"));
        }
        let last_ns = i64::try_from(request.last_ns).unwrap_or(i64::MAX);
        self.ask(questions::syscalls(
            filter.as_ref(),
            self.clock.now_ns().saturating_sub(last_ns),
            request.limit,
            request.by(),
        ))
        .await
    }
}

/// Longest text of a status: it travels in a header of 16 KiB at most, and takes up to three bytes for each of these.
const STATUS_BYTES: usize = 4_000;

fn within_a_header(mut text: String) -> String {
    if text.len() > STATUS_BYTES {
        text.truncate(text.floor_char_boundary(STATUS_BYTES));
        text.push_str("...\nand more: `holdfast check FILES` shows all of it");
    }
    text
}

/// Updates of a run that wait for a slow caller.
const UPDATES: usize = 8;

impl Questions {
    /// What is judged now.
    fn judged(&self) -> Result<Arc<Set>, Status> {
        match &self.assertions {
            Some(assertions) => Ok(assertions.now()),
            None => Err(Status::failed_precondition(
                "this collector judges nothing: start it with --assertions DIR",
            )),
        }
    }

    /// What was said last of every key, and whether it still stands.
    async fn verdicts_of_now(&self, name: &str, now_ns: i64) -> Result<Response<Answer>, StoreError> {
        let standing = Standing::now(self.assertions.as_ref(), &self.seat).await?;
        // Where nobody judges any more, how it stood then.
        let newest_ns = verdicts::newest_ns(&*self.store).await?;
        let reach = standing.reach(newest_ns.map_or(now_ns, |newest_ns| newest_ns.min(now_ns)));
        let chunks = self.store.query(verdicts::latest(name, reach, now_ns)).await?;
        let annotated = chunks.scan(Vec::new(), move |partial: &mut Vec<u8>, chunk| {
            let annotated = chunk.map(|data| {
                partial.extend_from_slice(&data);
                let end = partial
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |at| at + 1);
                let rest = partial.split_off(end);
                let lines = std::mem::replace(partial, rest);
                standing.annotate(&String::from_utf8_lossy(&lines))
            });
            std::future::ready(Some(annotated))
        });
        Ok(Response::new(Box::pin(
            messages(Box::pin(annotated)).take_until(Box::pin(told(self.stopping.clone()))),
        )))
    }

    /// The declared assertion's explanation, or the objective's.
    fn explanation(&self, name: &str) -> Result<String, Status> {
        let set = self.judged()?;
        explain::text(&set, name, self.clock.now_ns()).ok_or_else(|| {
            Status::invalid_argument(format!(
                "there is no assertion `{name}`, {}",
                instead(name, explain::names(&set))
            ))
        })
    }

    async fn ask(&self, query: Query) -> Result<Response<Answer>, Status> {
        let chunks = self.store.query(query).await.map_err(|error| status(&error))?;
        // When the caller leaves, the parts are dropped with the stream, which ends the query.
        Ok(Response::new(Box::pin(
            messages(chunks).take_until(Box::pin(told(self.stopping.clone()))),
        )))
    }

    /// Sends rows as they are stored, until the caller leaves or the collector stops.
    fn follow(&self, follower: Follower) -> Response<Answer> {
        let (answer, chunks) = mpsc::channel(FOLLOW_CHUNKS);
        let (store, stopping, clock) = (self.store.clone(), self.stopping.clone(), self.clock.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = follow(&*store, &clock, follower, &answer) => {}
                () = answer.closed() => {}
                () = told(stopping) => {}
            }
        });
        Response::new(Box::pin(ReceiverStream::new(chunks)))
    }
}

/// Asks for what came since the last time, again and again. Ends when the question itself is refused.
async fn follow(
    store: &dyn Store,
    clock: &WallClock,
    mut follower: Follower,
    answer: &mpsc::Sender<Result<Chunk, Status>>,
) {
    let mut ticks = tokio::time::interval(FOLLOW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if !follower.has_more() {
            ticks.tick().await;
        }
        match follower.poll(store, clock.now_ns()).await {
            Ok(None) => {}
            Ok(Some(chunks)) => {
                let mut messages = messages(chunks);
                while let Some(message) = messages.next().await {
                    let is_end = message.is_err();
                    if answer.send(message).await.is_err() || is_end {
                        return;
                    }
                }
            }
            // The store is away: what is stored once it is back is found then.
            Err(StoreError::Unavailable { .. } | StoreError::Full { .. } | StoreError::LeaseEnded) => {
                ticks.tick().await;
            }
            Err(error @ StoreError::Rejected { .. }) => {
                // A caller that is gone does not want the error either.
                let _ = answer.send(Err(status(&error))).await;
                return;
            }
        }
    }
}

/// The parts of an answer as messages.
fn messages(chunks: Chunks) -> impl Stream<Item = Result<Chunk, Status>> + Send + Unpin {
    chunks.flat_map(|chunk| match chunk {
        Ok(data) => stream::iter(cut(data)).map(Ok).left_stream(),
        Err(error) => stream::iter([Err(status(&error))]).right_stream(),
    })
}

/// An answer's part in pieces of bounded size.
fn cut(mut data: Bytes) -> Vec<Chunk> {
    let mut chunks = Vec::with_capacity(data.len().div_ceil(CHUNK_BYTES));
    while !data.is_empty() {
        let size = data.len().min(CHUNK_BYTES);
        chunks.push(Chunk {
            data: data.split_to(size),
        });
    }
    chunks
}

/// `None`: everything fits.
fn filter_of(text: &str, columns: impl Iterator<Item = &'static Column>) -> Result<Option<Filter>, Status> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let columns = filterable(columns);
    let filter =
        Filter::parse(text, &columns).map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Some(filter))
}

async fn told(mut stopping: watch::Receiver<bool>) {
    // An error means that the collector is already gone.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// What a failure of the store means to the one who asked.
fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Rejected { message, .. } => Status::invalid_argument(message),
        StoreError::Full { message } => {
            Status::unavailable(format!("the disk of the store is full: {message}"))
        }
        away @ (StoreError::Unavailable { .. } | StoreError::LeaseEnded) => {
            Status::unavailable(format!("the store does not answer: {away}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_not_called_a_store_that_is_away() {
        let told = |error: StoreError| status(&error).message().to_owned();
        let message = || "cannot reserve 1.00 MiB".to_owned();
        assert_eq!(
            told(StoreError::Full { message: message() }),
            "the disk of the store is full: cannot reserve 1.00 MiB"
        );
        assert_eq!(
            told(StoreError::Unavailable { message: message() }),
            "the store does not answer: cannot reserve 1.00 MiB"
        );
    }

    #[test]
    fn an_answer_is_cut_without_losing_any_of_it() {
        let data = Bytes::from((0..2 * CHUNK_BYTES + 5).map(|at| at as u8).collect::<Vec<u8>>());
        let chunks = cut(data.clone());
        assert_eq!(
            chunks.iter().map(|chunk| chunk.data.len()).collect::<Vec<_>>(),
            [CHUNK_BYTES, CHUNK_BYTES, 5]
        );
        assert_eq!(
            chunks.into_iter().flat_map(|chunk| chunk.data).collect::<Bytes>(),
            data
        );
        assert!(cut(Bytes::new()).is_empty());
    }
}
