//! The `Query` service: what people and their tools ask. SQL of theirs is passed on as read-only; everything else is
//! one of the store's prepared questions.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use holdfast_proto::v1::query_server::Query as QueryService;
use holdfast_proto::v1::{Chunk, ConnectionsRequest, LedgerRequest, NodesRequest, SqlRequest};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::filter::Filter;
use crate::ingest::now_ns;
use crate::metrics::Metrics;
use crate::store::condition::filterable;
use crate::store::questions::{self, Follower};
use crate::store::{Access, Chunks, Query, Store, StoreError, schema};

/// Largest part of an answer that is sent at once. Clients accept 4 MiB by default.
const CHUNK_BYTES: usize = 1 << 20;

/// How often a follower's next rows are asked for.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

/// Parts that wait for a slow follower; it is asked for no more rows until it has read them.
const FOLLOW_CHUNKS: usize = 4;

/// The format of a SQL answer when the caller names none.
const DEFAULT_FORMAT: &str = "TabSeparatedWithNames";

/// People's side of the collector.
pub struct Questions {
    pub store: Arc<dyn Store>,
    pub metrics: Arc<Metrics>,
    /// True once the collector stops: answers end.
    pub stopping: watch::Receiver<bool>,
}

type Answer = Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl QueryService for Questions {
    type SqlStream = Answer;
    type ConnectionsStream = Answer;
    type NodesStream = Answer;
    type LedgerStream = Answer;

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
        } = request.into_inner();
        let filter = filter_of(&filter)?;
        let last_ns = i64::try_from(last_ns).unwrap_or(i64::MAX);
        if follow {
            let follower = Follower::new(filter.as_ref(), now_ns(), last_ns, limit);
            return Ok(self.follow(follower));
        }
        if last_ns == 0 {
            return Err(Status::invalid_argument(
                "how far back? `last` is zero, which needs `follow`",
            ));
        }
        self.ask(questions::connections(
            filter.as_ref(),
            now_ns().saturating_sub(last_ns),
            limit,
        ))
        .await
    }

    async fn nodes(&self, _: Request<NodesRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("nodes");
        self.ask(questions::nodes()).await
    }

    async fn ledger(&self, request: Request<LedgerRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("ledger");
        self.ask(questions::ledger(request.into_inner().all_starts)).await
    }
}

impl Questions {
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
        let (store, stopping) = (self.store.clone(), self.stopping.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = follow(&*store, follower, &answer) => {}
                () = answer.closed() => {}
                () = told(stopping) => {}
            }
        });
        Response::new(Box::pin(ReceiverStream::new(chunks)))
    }
}

/// Asks for what came since the last time, again and again. Ends when the question itself is refused.
async fn follow(store: &dyn Store, mut follower: Follower, answer: &mpsc::Sender<Result<Chunk, Status>>) {
    let mut ticks = tokio::time::interval(FOLLOW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match follower.poll(store).await {
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
            Err(StoreError::Unavailable { .. }) => {}
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
fn filter_of(text: &str) -> Result<Option<Filter>, Status> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let columns = filterable(schema::connections());
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
        StoreError::Unavailable { message } => {
            Status::unavailable(format!("the store does not answer: {message}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
