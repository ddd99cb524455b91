//! How the commands reach a collector, and what they make of its answers.

use std::error::Error as _;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, anyhow};
use holdfast_proto::v1::Chunk;
use holdfast_proto::v1::query_client::QueryClient;
use serde::de::DeserializeOwned;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::Failure;
use super::table::{Align, Cell, Table};

/// A collector that does not answer within this is taken for away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A collector that is asked and says nothing is pinged so often, and is taken for gone when it does not answer for so long: one
/// that is stopped, or a network that drops everything, would keep the command waiting for ever.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(20);

/// Collectors cut their answers at a megabyte.
const MAX_CHUNK_BYTES: usize = 16 << 20;

/// Which collector to ask, and in which form to answer.
#[derive(Debug, clap::Args)]
pub(super) struct Reach {
    /// The collector to ask
    #[arg(
        long,
        env = "HOLDFAST_COLLECTOR",
        value_name = "URL",
        default_value = "http://127.0.0.1:7443"
    )]
    pub(super) collector: String,

    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs a command on one thread: it waits for the collector and for little else.
pub(super) fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Undone(anyhow!(error).context("cannot start")))?;
    let outcome = runtime.block_on(command);
    // A name that is looked up still is nobody's any more: a command that was interrupted ends at once.
    runtime.shutdown_background();
    outcome
}

impl Reach {
    pub(super) async fn connect(&self) -> Result<QueryClient<Channel>, Failure> {
        let url = &self.collector;
        let endpoint = Endpoint::from_shared(url.clone())
            .ok()
            .filter(|endpoint| endpoint.uri().scheme_str() == Some("http"))
            .ok_or_else(|| {
                Failure::Usage(anyhow!(
                    "`{url}` is no address of a collector; write http://HOST:7443"
                ))
            })?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .tcp_nodelay(true)
            .connect()
            .await;
        let channel = channel.map_err(|error| {
            let cause = cause(&error);
            Failure::Undone(anyhow!(
                "cannot reach the collector at {url}: {cause}; is \"holdfast serve\" running there?"
            ))
        })?;
        Ok(QueryClient::new(channel).max_decoding_message_size(MAX_CHUNK_BYTES))
    }

    /// What a status of the collector means to the one who asked.
    pub(super) fn failure(&self, status: &Status) -> Failure {
        let message = status.message();
        match status.code() {
            Code::InvalidArgument => Failure::Usage(anyhow!("{message}")),
            Code::Unimplemented => Failure::Undone(anyhow!(
                "what answers at {} does not know this call of holdfast {}: it is a collector of another version, and the older of both is to \
                 be upgraded, or it is no collector",
                self.collector,
                env!("CARGO_PKG_VERSION")
            )),
            _ if status.source().is_some() => Failure::Undone(anyhow!(
                "lost the collector at {}: {}; see whether \"holdfast serve\" still runs there and what its log says, then ask \
                 again",
                self.collector,
                cause(status)
            )),
            Code::Unavailable => Failure::Undone(anyhow!("the collector at {}: {message}", self.collector)),
            _ => Failure::Undone(anyhow!("{message}")),
        }
    }
}

/// The innermost cause, in words: what the system said when the system said something.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    loop {
        let hyper = innermost.downcast_ref::<hyper::Error>();
        if hyper.is_some_and(hyper::Error::is_timeout) {
            return "it does not answer any more".to_owned();
        }
        match innermost.source() {
            Some(source) => innermost = source,
            None => break,
        }
    }
    // HTTP/2 keeps what the system said to itself.
    let http2 = innermost.downcast_ref::<h2::Error>().and_then(h2::Error::get_io);
    let system = innermost.downcast_ref::<io::Error>().or(http2);
    match system.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
            "it closed the connection".to_owned()
        }
        _ => innermost.to_string(),
    }
}

/// Prints an answer: as it comes with `--json`, else as a table, or what `nothing` says where there are no rows. A row is
/// as many lines of the table as `cells` makes of it.
pub(super) async fn print<R, L, const N: usize>(
    reach: &Reach,
    chunks: Streaming<Chunk>,
    columns: [(&'static str, Align); N],
    cells: impl Fn(&R) -> L,
    nothing: &str,
) -> Result<(), Failure>
where
    R: DeserializeOwned,
    L: IntoIterator<Item = [Cell; N]>,
{
    let mut lines = Lines::new(chunks);
    let mut rows = Vec::new();
    let mut stdout = io::stdout().lock();
    while let Some(text) = lines.next().await.map_err(|status| reach.failure(&status))? {
        if reach.json {
            stdout.write_all(text.as_bytes())?;
            continue;
        }
        for line in text.lines() {
            rows.extend(cells(&row(line)?));
        }
    }
    if !reach.json {
        let mut table = Table::new(columns, super::colours(&io::stdout()));
        table.fit(&rows);
        stdout.write_all(table.head().as_bytes())?;
        for row in &rows {
            stdout.write_all(table.line(row).as_bytes())?;
        }
        if rows.is_empty() {
            super::tell(nothing);
        }
    }
    stdout.flush()?;
    Ok(())
}

/// A row of an answer.
pub(super) fn row<R: DeserializeOwned>(line: &str) -> Result<R, Failure> {
    serde_json::from_str(line)
        .with_context(|| format!("the collector answers with a row of another version: {line}"))
        .map_err(Failure::Undone)
}

/// All rows of an answer, each with its line.
pub(super) async fn rows<R: DeserializeOwned>(
    reach: &Reach,
    chunks: Streaming<Chunk>,
) -> Result<Vec<(R, String)>, Failure> {
    let mut lines = Lines::new(chunks);
    let mut rows = Vec::new();
    while let Some(text) = lines.next().await.map_err(|status| reach.failure(&status))? {
        for line in text.lines() {
            rows.push((row(line)?, line.to_owned()));
        }
    }
    Ok(rows)
}

/// The lines of an answer, whatever chunks it comes in.
pub(super) struct Lines {
    chunks: Streaming<Chunk>,
    /// What came and has no newline yet.
    partial: Vec<u8>,
}

impl Lines {
    pub(super) fn new(chunks: Streaming<Chunk>) -> Self {
        Self {
            chunks,
            partial: Vec::new(),
        }
    }

    /// The next whole lines, as many as came at once, with their newlines. `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Status> {
        loop {
            let Some(chunk) = self.chunks.message().await? else {
                let rest = std::mem::take(&mut self.partial);
                return Ok((!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned()));
            };
            self.partial.extend_from_slice(&chunk.data);
            if let Some(newline) = self.partial.iter().rposition(|byte| *byte == b'\n') {
                let rest = self.partial.split_off(newline + 1);
                let lines = std::mem::replace(&mut self.partial, rest);
                return Ok(Some(String::from_utf8_lossy(&lines).into_owned()));
            }
        }
    }
}
