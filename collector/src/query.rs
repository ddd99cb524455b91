//! The `Query` service: what people and their tools ask. SQL of theirs is passed on as read-only; everything else is
//! one of the store's prepared questions.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use holdfast_proto::v1::query_server::Query as QueryService;
use holdfast_proto::v1::{Chunk, ConnectionsRequest, NodesRequest, SqlRequest};
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::metrics::Metrics;
use crate::store::{Access, Chunks, Query, Store, StoreError};

/// Largest part of an answer that is sent at once. Clients accept 4 MiB by default.
const CHUNK_BYTES: usize = 1 << 20;

/// How often a follower's next rows are asked for.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

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

    async fn sql(&self, request: Request<SqlRequest>) -> Result<Response<Answer>, Status> {
        self.metrics.queried("sql");
        let SqlRequest { sql, format } = request.into_inner();
        let format = if format.is_empty() { DEFAULT_FORMAT.to_owned() } else { format };
        let query = Query { sql, params: Vec::new(), format, access: Access::ReadOnly };
        let chunks = self.store.query(query).await.map_err(|error| status(&error))?;
        Ok(self.answer(chunks))
    }

    async fn connections(&self, request: Request<ConnectionsRequest>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn nodes(&self, _: Request<NodesRequest>) -> Result<Response<Answer>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// What a failure of the store means to the one who asked.
fn status(error: &StoreError) -> Status {
    match error {
        StoreError::Rejected { message, .. } => Status::invalid_argument(message),
        StoreError::Unavailable { message } => Status::unavailable(format!("the store does not answer: {message}")),
    }
}

impl Questions {
    /// Sends the parts of an answer until its end, or until the collector stops. When the caller leaves, the parts
    /// are dropped with the stream, which ends the query.
    fn answer(&self, chunks: Chunks) -> Response<Answer> {
        let messages = chunks.flat_map(|chunk| match chunk {
            Ok(data) => stream::iter(cut(data)).map(Ok).left_stream(),
            Err(error) => stream::iter([Err(status(&error))]).right_stream(),
        });
        let mut stopping = self.stopping.clone();
        let stop = async move {
            // An error means that the collector is already gone.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        Response::new(Box::pin(messages.take_until(Box::pin(stop))))
    }
}

/// An answer's part as messages of bounded size.
fn cut(mut data: Bytes) -> Vec<Chunk> {
    let mut chunks = Vec::with_capacity(data.len().div_ceil(CHUNK_BYTES));
    while !data.is_empty() {
        let size = data.len().min(CHUNK_BYTES);
        chunks.push(Chunk { data: data.split_to(size) });
    }
    chunks
}
