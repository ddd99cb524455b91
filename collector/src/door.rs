//! The door of the gRPC port: how many connections there may be at once, and how long one may stay that asks nothing.
//!
//! Streams are bounded where agents are let in (`ingest`), and by their hello; a connection without a stream is seen by
//! nobody there. Here each takes one of so many places, and loses it when its first request does not come in time, or
//! none for long after the last one has its answer. An agent has one request open for as long as it is there.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::server::Connected;

use crate::metrics::{Metrics, refusal};

/// How long a connection may be without a request.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Before its first one.
    pub first: Duration,
    /// After the last one has its answer.
    pub next: Duration,
}

/// A program that asks every now and then finds its connection still there; who has forgotten it keeps nobody out.
pub const PATIENCE: Patience = Patience {
    first: Duration::from_secs(10),
    next: Duration::from_secs(60),
};

/// Connections of people and programs that ask, beside those of agents.
const ASKING: usize = 64;

/// Connections at once for so many agents: each has one, and perhaps one that is not noticed dead yet.
pub fn places(max_agents: usize) -> usize {
    2 * max_agents + ASKING
}

/// The connections that come in. One that finds no place is closed at once, and counted.
pub fn connections(
    listener: TcpListener,
    places: usize,
    patience: Patience,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = io::Result<Connection>> {
    let free = Arc::new(Semaphore::new(places));
    TcpListenerStream::new(listener).filter_map(move |accepted| {
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => return Some(Err(error)),
        };
        let Ok(place) = free.clone().try_acquire_owned() else {
            metrics.refused(refusal::CROWD);
            return None;
        };
        // It fails if the peer is gone, which reading tells.
        let _ = stream.set_nodelay(true);
        let caller = Caller {
            remote: stream.peer_addr().ok(),
            local: stream.local_addr().ok(),
            requests: Arc::default(),
        };
        Some(Ok(Connection {
            stream,
            caller,
            patience,
            silence: None,
            metrics: metrics.clone(),
            _place: place,
        }))
    })
}

/// Who a request is from.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `None` if the connection broke before it could be asked.
    remote: Option<SocketAddr>,
    local: Option<SocketAddr>,
    requests: Arc<Requests>,
}

/// The requests of one connection.
#[derive(Debug, Default)]
struct Requests {
    /// Since it was opened.
    begun: AtomicU64,
    ended: AtomicU64,
}

/// A request has no whole answer yet for as long as this lives.
#[derive(Debug)]
pub struct Asking(Arc<Requests>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

impl Caller {
    /// A request has come on the connection.
    #[must_use]
    pub fn asks(&self) -> Asking {
        self.requests.begun.fetch_add(1, Ordering::Release);
        Asking(self.requests.clone())
    }

    /// Address and port; empty if they are not known.
    pub fn remote(&self) -> String {
        self.remote.map_or_else(String::new, |remote| remote.to_string())
    }

    /// Which of this host's addresses it has come to.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }
}

/// A connection that has a place.
pub struct Connection {
    stream: TcpStream,
    caller: Caller,
    patience: Patience,
    /// While no request is open: until when one has to come, and how many had begun when that was set.
    silence: Option<(Pin<Box<Sleep>>, u64)>,
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // In this order: one that ends in between looks open, and the next look finds it ended.
        let ended = this.caller.requests.ended.load(Ordering::Acquire);
        let begun = this.caller.requests.begun.load(Ordering::Acquire);
        if ended < begun {
            this.silence = None;
        } else if this.silence.as_ref().is_none_or(|(_, known)| *known != begun) {
            let Patience { first, next } = this.patience;
            let patience = if begun == 0 { first } else { next };
            this.silence = Some((Box::pin(tokio::time::sleep(patience)), begun));
        }
        // Whatever else it sends meanwhile.
        if let Some((silence, _)) = &mut this.silence
            && silence.as_mut().poll(context).is_ready()
        {
            this.silence = None;
            this.metrics.refused(refusal::SILENT);
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "no request came in time",
            )));
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A service whose requests count for their connections until their answers are whole.
#[derive(Clone, Debug)]
pub struct Counted<S>(pub S);

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let asking = request.extensions().get::<Caller>().map(Caller::asks);
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _until_the_body_is_dropped = &asking;
                    frame
                }))
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn door(
        places: usize,
        patience: Patience,
    ) -> (
        SocketAddr,
        Arc<Metrics>,
        impl Stream<Item = io::Result<Connection>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(&[]).unwrap());
        let connections = connections(listener, places, patience, metrics.clone());
        (address, metrics, connections)
    }

    const PATIENT: Patience = Patience {
        first: Duration::from_secs(3_600),
        next: Duration::from_secs(3_600),
    };

    fn refused(metrics: &Metrics, reason: &str) -> bool {
        let line = format!("holdfast_refusals_total{{reason=\"{reason}\"}} 1\n");
        metrics.exposition().unwrap().contains(&line)
    }

    #[tokio::test]
    async fn who_finds_no_place_is_closed_and_a_place_comes_free() {
        let (address, metrics, connections) = door(1, PATIENT).await;
        tokio::pin!(connections);
        let mut first = TcpStream::connect(address).await.unwrap();
        let mut served = connections.next().await.unwrap().unwrap();
        let mut crowded = TcpStream::connect(address).await.unwrap();
        tokio::select! {
            _ = connections.next() => panic!("there is one place"),
            end = crowded.read_u8() => assert!(end.is_err(), "it is closed"),
        }
        assert!(refused(&metrics, "crowd"));
        first.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        drop(served);
        let _third = TcpStream::connect(address).await.unwrap();
        connections.next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn who_sends_bytes_and_no_request_is_sent_away() {
        let patience = Patience {
            first: Duration::from_millis(20),
            ..PATIENT
        };
        let (address, metrics, connections) = door(2, patience).await;
        tokio::pin!(connections);
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut served = connections.next().await.unwrap().unwrap();
        silent.write_all(b"PRI").await.unwrap();
        let error = loop {
            match served.read_u8().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(refused(&metrics, "silent"));

        let mut asking = TcpStream::connect(address).await.unwrap();
        let mut served = connections.next().await.unwrap().unwrap();
        drop(served.connect_info().asks());
        tokio::time::sleep(Duration::from_millis(40)).await;
        asking.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
    }

    #[tokio::test]
    async fn who_has_his_answer_and_asks_no_more_is_sent_away() {
        let patience = Patience {
            next: Duration::from_millis(20),
            ..PATIENT
        };
        let (address, metrics, connections) = door(1, patience).await;
        tokio::pin!(connections);
        let mut asking = TcpStream::connect(address).await.unwrap();
        let mut served = connections.next().await.unwrap().unwrap();
        let caller = served.connect_info();
        let (first, second) = (caller.asks(), caller.asks());
        drop(first);
        // One is open, however long.
        asking.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
        tokio::time::sleep(3 * patience.next).await;
        asking.write_all(b"y").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'y');
        assert!(!refused(&metrics, "silent"));
        drop(second);
        let error = served.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(refused(&metrics, "silent"));
        drop(served);
        let _next = TcpStream::connect(address).await.unwrap();
        connections.next().await.unwrap().unwrap();
    }
}
