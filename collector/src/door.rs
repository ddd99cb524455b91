//! The door of the gRPC port: how many connections there may be at once, what each may have open, how long one may stay
//! that asks nothing, and the count of what is sent away before any service sees it.
//!
//! Streams are bounded where agents are let in (`ingest`), and by their hello; a connection without a stream is seen by
//! nobody there. Here each takes one of so many places, and loses it when its first request does not come in time, or
//! none for long after the last one has its answer. An agent has one request open for as long as it is there, and no
//! connection has two of that kind.

mod body;
mod memory;
mod refused;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::server::Connected;

use crate::metrics::{Metrics, refusal};
pub use body::Pace;
use body::Paced;
pub use memory::Memory;
use refused::{Outgoing, Told};

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

/// How long is waited for what agents say. They report each second, and a batch of 4 MiB comes in time at 14 KB/s.
pub const AGENTS_PACE: Pace = Pace {
    byte: Duration::from_secs(30),
    message: Duration::from_secs(300),
    next: Some(Duration::from_secs(30)),
};

/// How long is waited for what is asked: one message, and whoever starts a run may say something more at any time.
pub const ASKING_PACE: Pace = Pace {
    byte: Duration::from_secs(30),
    message: Duration::from_secs(60),
    next: None,
};

/// Memory that all questions together take at most. The largest, of 1 MiB, comes to 25 MiB of it where it has lists.
pub const QUESTION_BYTES: usize = 64 << 20;

/// Requests that one connection may have open. A program that asks a lot at once has what is more wait, as HTTP/2 tells
/// it; what comes all the same is reset.
pub const STREAMS: u32 = 64;

/// What HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
            preface: Preface::Coming(0),
            outgoing: Outgoing::default(),
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
    /// One of them is an agent's stream.
    has_agent: AtomicBool,
}

/// The stream of an agent is open for as long as this lives.
#[derive(Debug)]
pub struct Delivering(Arc<Requests>);

impl Drop for Delivering {
    fn drop(&mut self) {
        self.0.has_agent.store(false, Ordering::Release);
    }
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

    /// An agent's stream has come on the connection; `None` if it has one.
    pub fn delivers(&self) -> Option<Delivering> {
        let had_one = self.requests.has_agent.swap(true, Ordering::AcqRel);
        (!had_one).then(|| Delivering(self.requests.clone()))
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
    preface: Preface,
    outgoing: Outgoing,
    metrics: Arc<Metrics>,
    _place: OwnedSemaphorePermit,
}

/// What a connection began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Preface {
    /// So many bytes of [`PREFACE`].
    Coming(usize),
    /// All of it.
    Whole,
    /// Something else, and that is counted.
    Foreign,
}

impl Preface {
    /// What it is with these bytes more; none: the connection ended.
    fn with(self, bytes: &[u8]) -> Self {
        let Self::Coming(known) = self else { return self };
        let expected = &PREFACE[known..];
        let compared = expected.len().min(bytes.len());
        if expected[..compared] != bytes[..compared] || (bytes.is_empty() && known > 0) {
            Self::Foreign
        } else if compared == expected.len() {
            Self::Whole
        } else {
            Self::Coming(known + compared)
        }
    }
}

impl Connection {
    /// These bytes have come; none: the peer has ended it.
    fn came(&mut self, bytes: &[u8]) {
        let preface = self.preface.with(bytes);
        let before = std::mem::replace(&mut self.preface, preface);
        if preface == Preface::Foreign && before != Preface::Foreign {
            self.metrics.refused(refusal::HTTP2);
        }
    }

    /// These bytes have gone out.
    fn went(&mut self, bytes: &[u8]) {
        let Self {
            preface,
            outgoing,
            metrics,
            ..
        } = self;
        outgoing.take(bytes, |told| match told {
            Told::Crowd => metrics.refused(refusal::CROWD),
            // It was counted, as what it is.
            Told::BrokenConnection if *preface == Preface::Foreign => {}
            Told::BrokenStream | Told::BrokenConnection => metrics.refused(refusal::HTTP2),
        });
    }
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
        let had = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if let Poll::Ready(read) = &read {
            match read {
                Ok(()) => this.came(&buffer.filled()[had..]),
                Err(_) => this.came(&[]),
            }
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.went(&bytes[..written]);
        }
        written
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(mut left)) = written {
            for slice in slices {
                let of_this = left.min(slice.len());
                self.went(&slice[..of_this]);
                left -= of_this;
            }
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// A service whose requests count for their connections until their answers are whole, and are read at a pace.
#[derive(Clone)]
pub struct Counted<S> {
    pub service: S,
    pub pace: Pace,
    /// Of what is asked; `None` where something else bounds what comes in.
    pub memory: Option<Arc<Memory>>,
    pub metrics: Arc<Metrics>,
}

impl<S: NamedService> NamedService for Counted<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let asking = request.extensions().get::<Caller>().map(Caller::asks);
        let held = self
            .memory
            .as_ref()
            .map(|memory| Arc::new(memory.hold(request.uri().path())));
        let request =
            request.map(|body| Body::new(Paced::new(body, self.pace, held.clone(), self.metrics.clone())));
        let answer = self.service.call(request);
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let answer = answer.await?;
            // Services answer this only for a method that they do not have.
            let is_unknown = answer
                .headers()
                .get(Status::GRPC_STATUS)
                .is_some_and(|code| code == UNIMPLEMENTED);
            let answer = if is_unknown { unknown(&metrics) } else { answer };
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _until_the_body_is_dropped = (&asking, &held);
                    frame
                }))
            }))
        })
    }
}

/// The status of a method that is not there, as it travels.
const UNIMPLEMENTED: &str = "12";

/// The answer to a request for what the collector does not have, which is counted.
pub fn unknown(metrics: &Metrics) -> http::Response<Body> {
    metrics.refused(refusal::METHOD);
    let status =
        Status::unimplemented("this collector has no such method: it is of another version than who asks");
    status.into_http()
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

    #[test]
    fn a_preface_is_known_in_any_pieces_and_so_is_what_is_none() {
        let read = |pieces: &[&[u8]]| {
            pieces
                .iter()
                .fold(Preface::Coming(0), |preface, piece| preface.with(piece))
        };
        assert_eq!(read(&[&[PREFACE, b"more"].concat()]), Preface::Whole);
        for at in 1..PREFACE.len() {
            let (first, last) = PREFACE.split_at(at);
            assert_eq!(read(&[first]), Preface::Coming(at));
            assert_eq!(read(&[first, last, b""]), Preface::Whole);
            assert_eq!(read(&[first, b""]), Preface::Foreign);
            assert_eq!(read(&[first, b"\0"]), Preface::Foreign);
        }
        assert_eq!(read(&[b"GET / HTTP/1.1\r\n"]), Preface::Foreign);
        // Whoever only looks whether the port is open has sent nothing.
        assert_eq!(read(&[b""]), Preface::Coming(0));
    }

    #[tokio::test]
    async fn a_connection_has_one_stream_of_an_agent_at_a_time() {
        let (address, _, connections) = door(2, PATIENT).await;
        tokio::pin!(connections);
        let _agents = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        let one = connections.next().await.unwrap().unwrap().connect_info();
        let other = connections.next().await.unwrap().unwrap().connect_info();
        let first = one.delivers().expect("it has none");
        assert!(one.clone().delivers().is_none());
        assert!(other.delivers().is_some());
        drop(first);
        assert!(one.delivers().is_some());
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
