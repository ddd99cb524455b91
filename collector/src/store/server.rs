//! A ClickHouse server over HTTP: the store at scale, and wherever libchdb does not exist.

use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use bytes::Bytes;
use clickhouse::{Client, error::Error, query::BytesCursor};
use futures_util::Stream;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::percent_decode_str;
use rustls::CertificateError;
use url::Url;

use super::{
    Access, Block, Chunks, Query, Store, StoreError, answer_to, claims,
    layout::{ClusterNameError, LEASE_COMMENT, Layout},
    read_only, statement,
};
use crate::trust::{self, TrustError};

/// The database of a URL that names none.
const DEFAULT_DATABASE: &str = "holdfast";

/// A person's query that takes longer is stopped.
const READ_ONLY_MAX_SECONDS: u64 = 300;
/// A person's query that takes more memory is stopped.
const READ_ONLY_MAX_BYTES: u64 = 2 << 30;

/// A server that takes a block no further for so long is not there any more.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// A block that is not durable after so long has an unknown outcome.
const INSERT_TIMEOUT: Duration = Duration::from_secs(120);

/// How often, and after which pauses, a query that is to end is told so: it may be on its way still.
const KILL_ATTEMPTS: u32 = 20;
const KILL_EVERY: Duration = Duration::from_millis(50);

/// Begins the id of every query of a collector.
const QUERY_ID_PREFIX: &str = "holdfast-";

/// How often the inserts that run are looked for until they have ended.
const FENCE_EVERY: Duration = Duration::from_millis(50);

const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// Shorter than a server keeps a connection that is not used (3 s where its configuration says nothing).
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a URL is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerUrlError {
    #[error("{url:?} is no URL of a ClickHouse server, such as http://user@host:8123/holdfast: {reason}")]
    Malformed { url: String, reason: String },
    #[error("{url:?} is no URL of a ClickHouse server: it begins with neither http:// nor https://")]
    Scheme { url: String },
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// A database on a server.
#[derive(Clone)]
pub struct Server {
    /// Without credentials, for messages.
    url: Arc<str>,
    database: Arc<str>,
    layout: Layout,
    client: Client,
    queries: Arc<QueryIds>,
    /// Random: collectors on different machines may have all else in common.
    writer: u64,
}

/// In a cluster, rows that are inserted go to their shards at once, not later.
const FOREGROUND: (&str, &str) = ("distributed_foreground_insert", "1");

/// In a cluster, an insert is answered once its rows are on the disks of most replicas of each shard, in one place in
/// the order of the shard's inserts, and a question can ask for all that was answered so.
const CLUSTER_INSERT_SETTINGS: [(&str, &str); 3] = [
    FOREGROUND,
    ("insert_quorum", "auto"),
    ("insert_quorum_parallel", "0"),
];

/// Names queries on the server: unique over processes and their restarts.
struct QueryIds {
    prefix: String,
    next: AtomicU64,
}

impl Server {
    /// A server by its URL: `http://user:password@host:port/database`, or https, where its certificate has to come
    /// from an authority of this machine. `password` is for those who keep it out of the URL, and wins. Nothing is
    /// sent yet.
    pub fn new(url: &str, password: Option<&str>) -> Result<Self, ServerUrlError> {
        Self::trusting(url, password, None)
    }

    /// The same with the authorities of a PEM file, and no others.
    pub fn trusting(
        url: &str,
        password: Option<&str>,
        authorities: Option<&Path>,
    ) -> Result<Self, ServerUrlError> {
        // A password must not end in a message.
        let shown = || match url.rsplit_once('@') {
            Some((_, host)) => format!("...@{host}"),
            None => url.to_owned(),
        };
        let malformed = |reason: String| ServerUrlError::Malformed { url: shown(), reason };
        let parsed = Url::parse(url).map_err(|error| malformed(error.to_string()))?;
        let is_secure = match parsed.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(ServerUrlError::Scheme { url: shown() }),
        };
        if parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(malformed("settings cannot be given here".into()));
        }
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8();
            decoded
                .map(String::from)
                .map_err(|error| malformed(error.to_string()))
        };
        let database = match decode(parsed.path().trim_matches('/'))? {
            path if path.is_empty() => DEFAULT_DATABASE.to_owned(),
            path => path,
        };
        statement::name(&database).map_err(|error| malformed(format!("database {error}")))?;
        let mut base = parsed.clone();
        base.set_path("/");
        // Of a URL with a host, which every URL of HTTP has, these cannot fail.
        let _ = (base.set_username(""), base.set_password(None));

        let client = if is_secure {
            secure_client(authorities)?
        } else {
            Client::default()
        };
        let mut client = client.with_url(base.as_str());
        if !parsed.username().is_empty() {
            client = client.with_user(decode(parsed.username())?);
        }
        if let Some(password) = password {
            client = client.with_password(password);
        } else if let Some(password) = parsed.password() {
            client = client.with_password(decode(password)?);
        }
        let started_ns = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos());
        let queries = QueryIds {
            prefix: format!("{QUERY_ID_PREFIX}{}-{started_ns:x}", std::process::id()),
            next: AtomicU64::new(0),
        };
        Ok(Self {
            url: base.as_str().into(),
            database: database.into(),
            layout: Layout::OneServer,
            client,
            queries: Arc::new(queries),
            writer: RandomState::new().build_hasher().finish(),
        })
    }

    /// The same server as one of a cluster, on all of which the tables lie. `name` is what the servers call the
    /// cluster, or a macro of theirs such as `{cluster}`.
    pub fn in_cluster(self, name: &str) -> Result<Self, ClusterNameError> {
        Ok(Self {
            layout: Layout::cluster(name, &self.database)?,
            ..self
        })
    }

    /// Another database of the same server.
    pub fn database(&self, name: &str) -> Result<Self, StoreError> {
        Ok(Self {
            database: statement::name(name)?.into(),
            layout: self.layout.in_database(name),
            ..self.clone()
        })
    }

    fn client(&self, access: Access) -> Client {
        let client = self.client.clone().with_database(&*self.database);
        match access {
            Access::Internal => client,
            // All settings of a request are checked against the user's own before any applies, so `readonly` does
            // not hinder the others here, and does hinder those of the statement.
            Access::ReadOnly => client
                .with_setting("readonly", "1")
                .with_setting("max_execution_time", READ_ONLY_MAX_SECONDS.to_string())
                .with_setting("max_memory_usage", READ_ONLY_MAX_BYTES.to_string()),
        }
    }

    /// Starts a query without judging it. The server has answered when this returns.
    async fn start(&self, query: &Query) -> Result<Answer, StoreError> {
        let id = self.queries.next();
        let mut request = self
            .client(query.access)
            .query_raw(&query.sql)
            .with_setting("query_id", id.clone());
        for (name, value) in &query.params {
            request = request.with_setting(format!("param_{name}"), value);
        }
        let cursor = request
            .fetch_bytes(&query.format)
            .map_err(|error| self.error(&error))?;
        let mut answer = Answer {
            server: self.clone(),
            id,
            cursor,
            first: None,
            ended: false,
        };
        // A statement that fails at once is an error of the call, not of its answer.
        answer.first = answer.next().await?;
        Ok(answer)
    }

    /// Refuses everything but one statement that only reads the database.
    async fn check_reads(&self, query: &Query) -> Result<(), StoreError> {
        let sql = query.sql.as_str();
        let ask = |text: String, params| Query {
            sql: text,
            params,
            format: "TSVRaw".into(),
            access: Access::ReadOnly,
        };
        // Fails unless the text is exactly one statement. It is a value here, so that no part of it can run.
        let params = vec![("sql".to_owned(), statement::text_value(sql))];
        self.whole(ask("SELECT formatQuery({sql:String})".into(), params))
            .await?;
        let tree = self
            .whole(ask(format!("EXPLAIN AST {sql}"), query.params.clone()))
            .await?;
        read_only::check(sql, &tree).map_err(StoreError::rejected)
    }

    async fn whole(&self, query: Query) -> Result<String, StoreError> {
        let mut answer = self.start(&query).await?;
        let mut whole = Vec::new();
        while let Some(part) = answer.next().await? {
            whole.extend_from_slice(&part);
        }
        Ok(String::from_utf8_lossy(&whole).into_owned())
    }

    fn error(&self, error: &Error) -> StoreError {
        let unavailable = |reason: &dyn fmt::Display| {
            StoreError::unavailable(format!(
                "the ClickHouse server at {} does not answer: {reason}",
                self.url
            ))
        };
        match error {
            Error::BadResponse(text) if text.contains("Code: ") => StoreError::from_clickhouse(text),
            // The status alone: of a proxy, or of something that is no ClickHouse.
            Error::BadResponse(status) if status.starts_with('4') => {
                StoreError::rejected(format!("{} is no ClickHouse server, it says {status}", self.url))
            }
            Error::BadResponse(text) => unavailable(text),
            Error::Network(source) if is_of_a_stranger(source.as_ref()) => unavailable(
                &"its certificate is from no authority that is trusted here; name a file with the right one with --store-ca",
            ),
            Error::Network(source) => unavailable(&causes(source.as_ref())),
            Error::TimedOut => unavailable(&"it took too long"),
            other => StoreError::rejected(other.to_string()),
        }
    }
}

/// A client that speaks TLS. The pauses are those of the one that does not, which `clickhouse` makes by itself.
fn secure_client(authorities: Option<&Path>) -> Result<Client, TrustError> {
    let mut connector = HttpConnector::new();
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(trust::client(authorities)?)
        .https_only()
        .enable_http1()
        .wrap_connector(connector);
    let client = legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .build(connector);
    Ok(Client::with_http_client(client))
}

/// Whether the server showed a certificate of an authority that is not known here.
fn is_of_a_stranger(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut layers = std::iter::successors(Some(error), |error| match error.downcast_ref::<io::Error>() {
        // Its source is that of what it wraps.
        Some(wrapper) => wrapper.get_ref().map(|inner| inner as _),
        None => error.source(),
    });
    layers.any(|layer| {
        layer.downcast_ref::<rustls::Error>()
            == Some(&rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer,
            ))
    })
}

/// An error with what caused it: hyper's own text is only its outermost layer.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let layers = std::iter::successors(Some(error), |error| error.source());
    layers.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl QueryIds {
    fn next(&self) -> String {
        format!("{}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

#[async_trait]
impl Store for Server {
    async fn prepare(&self) -> Result<(), StoreError> {
        // Without a database: a request that names one which does not exist fails.
        let template = format!("CREATE DATABASE IF NOT EXISTS {}{{everywhere}}", self.database);
        let sql = self.layout.statements(&template).concat();
        self.client
            .query_raw(&sql)
            .execute()
            .await
            .map_err(|error| self.error(&error))
    }

    fn writer(&self) -> Option<u64> {
        Some(self.writer)
    }

    async fn fence(&self) -> Result<(), StoreError> {
        let mut began: Option<HashSet<String>> = None;
        loop {
            let (processes, id) = self.layout.processes();
            let running = Query {
                sql: format!(
                    "SELECT {id} FROM {processes} WHERE query_kind = 'Insert' \
                     AND startsWith({id}, {{all:String}})"
                ),
                params: vec![("all".into(), QUERY_ID_PREFIX.into())],
                format: "TabSeparated".into(),
                access: Access::Internal,
            };
            let running: HashSet<String> = claims::in_time(answer_to(self, running))
                .await?
                .lines()
                .map(str::to_owned)
                .collect();
            let began = began.get_or_insert_with(|| running.clone());
            if began.is_disjoint(&running) {
                return Ok(());
            }
            tokio::time::sleep(FENCE_EVERY).await;
        }
    }

    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        let sql = format!(
            "{} FORMAT Native",
            statement::insert(table, token, block.columns)?
        );
        let mut insert = self
            .client(Access::Internal)
            .insert_formatted_with(sql)
            .with_timeouts(Some(SEND_TIMEOUT), Some(INSERT_TIMEOUT))
            // The answer comes when the rows are durable, not when they are queued.
            .with_setting("async_insert", "0")
            .with_setting("wait_end_of_query", "1")
            .with_setting("query_id", self.queries.next());
        if self.layout != Layout::OneServer {
            for (name, value) in CLUSTER_INSERT_SETTINGS {
                insert = insert.with_setting(name, value);
            }
        }
        if let Some(deadline_ms) = block.deadline_ms {
            insert = insert.with_setting("log_comment", format!("{LEASE_COMMENT}{deadline_ms}"));
        }
        insert
            .send(block.native)
            .await
            .map_err(|error| self.error(&error))?;
        insert.end().await.map_err(|error| self.error(&error))
    }

    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        if query.access == Access::ReadOnly {
            self.check_reads(&query).await?;
        }
        Ok(Box::pin(self.start(&query).await?))
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.derive(sql, vec![]).await
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        let mut request = self
            .client(Access::Internal)
            .query_raw(sql)
            .with_setting("wait_end_of_query", "1");
        for (name, value) in params {
            request = request.with_setting(format!("param_{name}"), value);
        }
        if self.layout != Layout::OneServer {
            request = request.with_setting(FOREGROUND.0, FOREGROUND.1);
        }
        request.execute().await.map_err(|error| self.error(&error))
    }

    fn layout(&self) -> Layout {
        self.layout.clone()
    }
}

/// An answer. Dropped before its end, it ends the query on the server.
struct Answer {
    server: Server,
    id: String,
    cursor: BytesCursor,
    first: Option<Bytes>,
    ended: bool,
}

impl Answer {
    async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        std::future::poll_fn(|context| self.poll(context))
            .await
            .transpose()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, StoreError>>> {
        if let Some(part) = self.first.take() {
            return Poll::Ready(Some(Ok(part)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let part = ready!(self.cursor.poll_next(context));
        // After an error there is nothing to end either.
        self.ended = !matches!(part, Ok(Some(_)));
        Poll::Ready(part.map_err(|error| self.server.error(&error)).transpose())
    }
}

impl Stream for Answer {
    type Item = Result<Bytes, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(context)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and its connections with it.
        if let (false, Ok(runtime)) = (self.ended, tokio::runtime::Handle::try_current()) {
            runtime.spawn(kill(self.server.clone(), std::mem::take(&mut self.id)));
        }
    }
}

/// Ends a query, as soon as the server knows of it.
async fn kill(server: Server, id: String) {
    // Not as an `Answer`: a kill that is given up, for the server hangs, is not killed in turn.
    let ask = async || {
        let request = server
            .client(Access::Internal)
            .query_raw("KILL QUERY WHERE query_id = {id:String} ASYNC")
            .with_setting("param_id", id.clone());
        let killed = request.fetch_bytes("TabSeparated");
        let killed = match killed {
            Ok(mut killed) => killed.collect().await,
            Err(error) => Err(error),
        };
        killed.map_err(|error| server.error(&error))
    };
    for _ in 0..KILL_ATTEMPTS {
        match claims::in_time(ask()).await {
            Ok(killed) if !killed.is_empty() => return,
            Ok(_) => tokio::time::sleep(KILL_EVERY).await,
            Err(error) => return tracing::debug!("a query could not be ended: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, expected: &str) {
        let server = Server::new(url, None).unwrap();
        assert_eq!(format!("{} {}", server.url, server.database), expected);
    }

    fn check_error(url: &str, expected: &str) {
        assert_eq!(Server::new(url, None).err().unwrap().to_string(), expected);
    }

    #[test]
    fn a_url_names_the_server_and_the_database() {
        check("http://localhost:8123", "http://localhost:8123/ holdfast");
        check(
            "http://me:secret@ch.internal:8123/prod/",
            "http://ch.internal:8123/ prod",
        );
        check(
            "https://me@ch.internal:8443/prod",
            "https://ch.internal:8443/ prod",
        );
    }

    #[test]
    fn a_url_that_is_none_is_an_error_without_its_password() {
        check_error(
            "ftp://me:secret@host/x",
            "\"...@host/x\" is no URL of a ClickHouse server: it begins with neither http:// nor https://",
        );
        check_error(
            "http://me:secret@host/a-b",
            "\"...@host/a-b\" is no URL of a ClickHouse server, such as http://user@host:8123/holdfast: database \"a-b\" \
             cannot be a name: use letters, digits and _",
        );
        check_error(
            "http://me:secret@host:99999/",
            "\"...@host:99999/\" is no URL of a ClickHouse server, such as http://user@host:8123/holdfast: invalid port \
             number",
        );
        check_error(
            "http://host/?readonly=0",
            "\"http://host/?readonly=0\" is no URL of a ClickHouse server, such as http://user@host:8123/holdfast: \
             settings cannot be given here",
        );
    }
}
