//! The door of the gRPC port: how many connections there may be at once, and how long one may stay that has asked nothing yet.
//!
//! Streams are bounded where agents are let in (`ingest`), and by their hello; a connection without a stream is seen by
//! nobody there. Here each takes one of so many places, and loses it when its first request does not come in time.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::Connected;

use crate::metrics::{Metrics, refusal};

/// How long a connection may take to its first request.
pub const SILENCE: Duration = Duration::from_secs(10);

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
    silence: Duration,
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
            has_asked: Arc::new(AtomicBool::new(false)),
        };
        Some(Ok(Connection {
            stream,
            caller,
            silence: Some(Box::pin(tokio::time::sleep(silence))),
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
    has_asked: Arc<AtomicBool>,
}

impl Caller {
    /// A request has come on the connection.
    pub fn asks(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
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
    /// Until the first request; `None` once it has come.
    silence: Option<Pin<Box<Sleep>>>,
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
        if this.caller.has_asked.load(Ordering::Relaxed) {
            this.silence = None;
        }
        // Whatever else it sends meanwhile.
        if let Some(silence) = &mut this.silence
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn door(
        places: usize,
        silence: Duration,
    ) -> (
        SocketAddr,
        Arc<Metrics>,
        impl Stream<Item = io::Result<Connection>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(&[]).unwrap());
        let connections = connections(listener, places, silence, metrics.clone());
        (address, metrics, connections)
    }

    fn refused(metrics: &Metrics, reason: &str) -> bool {
        let line = format!("holdfast_refusals_total{{reason=\"{reason}\"}} 1\n");
        metrics.exposition().unwrap().contains(&line)
    }

    #[tokio::test]
    async fn who_finds_no_place_is_closed_and_a_place_comes_free() {
        let (address, metrics, connections) = door(1, Duration::from_secs(3_600)).await;
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
        let (address, metrics, connections) = door(2, Duration::from_millis(20)).await;
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
        served.connect_info().asks();
        tokio::time::sleep(Duration::from_millis(40)).await;
        asking.write_all(b"x").await.unwrap();
        assert_eq!(served.read_u8().await.unwrap(), b'x');
    }
}
