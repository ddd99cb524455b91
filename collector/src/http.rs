//! A small HTTP client for what the collector sends by itself: one request, one answer, a connection of its own. Whom
//! TLS trusts is in [`crate::trust`].
//!
//! A redirect is an answer like any other: nothing is sent to where it points. Proxies of the environment are not used.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::{Host, Url};

use crate::trust::{self, TrustError};

/// What is read of an answer; more is not needed to know what is wrong.
const ANSWER_BYTES: usize = 16 << 10;

/// A request.
#[derive(Debug)]
pub struct Request<'a> {
    pub url: &'a Url,
    /// `None`: those of the machine.
    pub authorities: Option<&'a Path>,
    /// Lower case names.
    pub headers: &'a [(&'static str, String)],
    /// JSON by POST; `None`: GET.
    pub body: Option<String>,
    /// For all of it: name, connection, TLS, answer.
    pub timeout: Duration,
}

/// An answer, its body as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// Why there is no answer. The URL is not part of it, since its path may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{host} cannot be reached: {cause}")]
    Unreachable { host: String, cause: std::io::Error },
    #[error("no TLS with {host}: {cause}")]
    Insecure { host: String, cause: String },
    #[error("{host} gave no answer within {timeout:?}")]
    Late { host: String, timeout: Duration },
    #[error("no answer of {host}: {cause}")]
    Broken { host: String, cause: hyper::Error },
    #[error(transparent)]
    Authorities(#[from] TrustError),
    #[error("a request cannot be made of it: {0}")]
    Request(hyper::http::Error),
}

/// Sends a request, and waits for the answer.
pub async fn send(request: Request<'_>) -> Result<Answer, HttpError> {
    let host = request.url.host_str().unwrap_or_default().to_owned();
    let timeout = request.timeout;
    match tokio::time::timeout(timeout, exchange(request, &host)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(HttpError::Late { host, timeout }),
    }
}

async fn exchange(request: Request<'_>, host: &str) -> Result<Answer, HttpError> {
    let port = request.url.port_or_known_default().unwrap_or(80);
    let unreachable = |cause| HttpError::Unreachable {
        host: format!("{host}:{port}"),
        cause,
    };
    let stream = match request.url.host() {
        Some(Host::Ipv4(address)) => TcpStream::connect((address, port)).await,
        Some(Host::Ipv6(address)) => TcpStream::connect((address, port)).await,
        _ => TcpStream::connect((host, port)).await,
    };
    let stream = stream.map_err(unreachable)?;
    if request.url.scheme() != "https" {
        return over(stream, request, host).await;
    }
    let config = trust::client(request.authorities)?;
    let insecure = |cause: String| HttpError::Insecure {
        host: host.to_owned(),
        cause,
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(bare.to_owned()).map_err(|error| insecure(error.to_string()))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| insecure(error.to_string()))?;
    over(stream, request, host).await
}

async fn over<S>(stream: S, request: Request<'_>, host: &str) -> Result<Answer, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |cause| HttpError::Broken {
        host: host.to_owned(),
        cause,
    };
    let authority = match request.url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let path = match request.url.query() {
        Some(query) => format!("{}?{query}", request.url.path()),
        None => request.url.path().to_owned(),
    };
    let method = if request.body.is_some() { "POST" } else { "GET" };
    let mut made = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("holdfast/", env!("CARGO_PKG_VERSION")));
    if request.body.is_some() {
        made = made.header(CONTENT_TYPE, "application/json");
    }
    for (name, value) in request.headers {
        made = made.header(*name, value);
    }
    let body = Full::new(Bytes::from(request.body.unwrap_or_default()));
    let made = made.body(body).map_err(HttpError::Request)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let driven = tokio::spawn(connection);
    let outcome = async {
        let answer = sender.send_request(made).await.map_err(broken)?;
        let status = answer.status().as_u16();
        // One that is too long is as good as none: its status says enough.
        let body = Limited::new(answer.into_body(), ANSWER_BYTES).collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        Ok(Answer {
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }
    .await;
    driven.abort();
    outcome
}

#[cfg(test)]
#[path = "http/tests.rs"]
mod tests;
