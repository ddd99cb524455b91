//! ClickHouse as a library in this process: the store of a fresh machine.
//!
//! One engine on one data folder, a bounded number of connections to it for each purpose, so that people's queries
//! cannot take those that inserts need. The engine's calls block; each runs on a thread of tokio's blocking pool.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::spawn_blocking,
};

use super::{
    Access, Block, Chunks, Query, Store, StoreError,
    chdb::{Chdb, Classified, Connection, EngineError, LibraryError},
    lock::{FolderLock, LockError},
    read_only, statement, writes,
};

/// Inserts that run at once: one is written while the next is sorted.
const INSERT_CONNECTIONS: usize = 2;
/// Queries and statements of Holdfast's own that run at once.
const INTERNAL_CONNECTIONS: usize = 4;
/// Queries of people that run at once; the next ones wait.
const READ_ONLY_CONNECTIONS: usize = 4;

/// A person's query that takes longer is stopped.
const READ_ONLY_MAX_SECONDS: u64 = 300;
/// A person's query that takes more memory is stopped.
const READ_ONLY_MAX_BYTES: u64 = 2 << 30;

/// The engine's configuration. There has to be one: without it the engine reads a `config.xml` that happens to lie in
/// the working directory. The defaults are for a machine that does nothing else: nine tenths of its memory, and 5 GiB
/// for marks.
fn engine_config(memory_bytes: Option<u64>) -> String {
    let memory = match memory_bytes {
        None => "<max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>".to_owned(),
        Some(bytes) => format!(
            "<max_server_memory_usage>{bytes}</max_server_memory_usage>\n    \
             <max_server_memory_usage_to_ram_ratio>1</max_server_memory_usage_to_ram_ratio>"
        ),
    };
    let marks = memory_bytes.map_or(MARK_BYTES, |bytes| MARK_BYTES.min(bytes / 8));
    format!("<clickhouse>\n    {memory}\n    <mark_cache_size>{marks}</mark_cache_size>\n</clickhouse>\n")
}

/// What the engine may keep of the marks of its parts.
const MARK_BYTES: u64 = 256 << 20;

/// What the library has on by default and a server has not: bare expressions as statements, and functions that read
/// the process's own binary and memory map.
const AS_ON_A_SERVER: [&str; 2] = ["--implicit_select=0", "--allow_introspection_functions=0"];

/// Parts of an answer that wait for a slow reader; at about 64 KiB to 1 MiB each.
const CHUNKS_IN_FLIGHT: usize = 4;

/// How often a query that is to end is told so, until it has.
const KILL_EVERY: Duration = Duration::from_millis(20);

/// Why the embedded store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Library(#[from] LibraryError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(
        "the engine cannot open the data folder {} (its own words are above): it is damaged, its disk is full or \
         read-only, or this process has another one open",
        dir.display()
    )]
    Refused { dir: PathBuf },
    #[error("the data folder {} cannot be prepared", dir.display())]
    Prepare { dir: PathBuf, source: StoreError },
    #[error("cannot write {}", path.display())]
    Config { path: PathBuf, source: std::io::Error },
}

/// A database of the engine in this process.
#[derive(Clone)]
pub struct Embedded {
    engine: Arc<Engine>,
    database: String,
}

/// The engine, its connections and its folder. Members are dropped in this order: the folder is let go of last.
struct Engine {
    inserts: Lane,
    internal: Lane,
    read_only: Lane,
    /// Ends queries on the other connections.
    control: Mutex<Connection>,
    _exit: Exit,
    _lock: FolderLock,
}

impl Drop for Engine {
    fn drop(&mut self) {
        writes::end();
    }
}

/// How the process ends after the engine was closed: the engine made statics as long as it was used, and their destructors run
/// before what was registered when it was opened.
struct Exit(&'static Chdb);

impl Drop for Exit {
    fn drop(&mut self) {
        self.0.skip_destructors_at_exit();
    }
}

/// What a connection is for.
#[derive(Clone, Copy)]
enum Purpose {
    Insert,
    Internal,
    ReadOnly,
}

impl Engine {
    fn lane(&self, purpose: Purpose) -> &Lane {
        match purpose {
            Purpose::Insert => &self.inserts,
            Purpose::Internal => &self.internal,
            Purpose::ReadOnly => &self.read_only,
        }
    }
}

/// Connections for one purpose.
struct Lane {
    /// One for each connection that is idle or about to be.
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Session>>,
}

struct Session {
    connection: Connection,
    /// The database that the connection is in.
    database: String,
    running: Arc<Running>,
}

/// What runs on a connection now, for those who want to end it.
struct Running {
    /// The connection's `log_comment`, which is in `system.processes`.
    label: String,
    /// The number of the query, as `QUERIES` gave it.
    query: Mutex<Option<u64>>,
}

/// Names queries within this process.
static QUERIES: AtomicU64 = AtomicU64::new(0);

impl Embedded {
    /// Opens the data folder `dir` with the engine at `library`, and makes `database` if it is not there.
    ///
    /// Blocks for about half a second. The engine lives until every clone and every answer is dropped; a process can
    /// have one at a time.
    pub fn open(dir: &Path, library: &Path, database: &str) -> Result<Self, OpenError> {
        Self::open_within(dir, library, database, None)
    }

    /// The same; the engine may take so much memory: `None`, half of the machine's.
    pub fn open_within(
        dir: &Path,
        library: &Path,
        database: &str,
        memory_bytes: Option<u64>,
    ) -> Result<Self, OpenError> {
        let chdb = Chdb::load(library)?;
        let lock = FolderLock::take(dir)?;
        writes::guard(dir);
        let config = dir.join("engine.xml");
        std::fs::write(&config, engine_config(memory_bytes)).map_err(|source| OpenError::Config {
            path: config.clone(),
            source,
        })?;
        let config = format!("--config-file={}", config.display());
        let path = format!("--path={}", engine_dir(dir).display());
        let connect = |label: String, settings: &[String]| {
            let arguments = [config.clone(), path.clone(), format!("--log_comment={label}")];
            let arguments: Vec<String> = arguments
                .into_iter()
                .chain(AS_ON_A_SERVER.map(String::from))
                .chain(settings.iter().cloned())
                .collect();
            let connection = chdb
                .connect(&arguments)
                .ok_or_else(|| OpenError::Refused { dir: dir.to_owned() })?;
            let running = Arc::new(Running {
                label,
                query: Mutex::new(None),
            });
            Ok::<_, OpenError>(Session {
                connection,
                database: String::new(),
                running,
            })
        };
        let lane = |name: &str, connections: usize, settings: &[String]| {
            let sessions = (0..connections)
                .map(|number| connect(format!("holdfast-{name}-{number}"), settings))
                .collect::<Result<Vec<_>, _>>()?;
            Ok::<_, OpenError>(Lane {
                permits: Arc::new(Semaphore::new(connections)),
                idle: Mutex::new(sessions),
            })
        };
        let control = Mutex::new(connect("holdfast-control".into(), &[])?.connection);
        let engine = Engine {
            inserts: lane("insert", INSERT_CONNECTIONS, &[])?,
            internal: lane("internal", INTERNAL_CONNECTIONS, &[])?,
            read_only: lane(
                "read-only",
                READ_ONLY_CONNECTIONS,
                &[
                    "--readonly=1".into(),
                    // Of a view of joins the engine (26.7) looks for the length of a text where none is stored.
                    "--optimize_functions_to_subcolumns=0".into(),
                    format!("--max_execution_time={READ_ONLY_MAX_SECONDS}"),
                    format!("--max_memory_usage={READ_ONLY_MAX_BYTES}"),
                ],
            )?,
            control,
            _exit: Exit(chdb),
            _lock: lock,
        };
        let store = Self {
            engine: Arc::new(engine),
            database: String::new(),
        }
        .database(database)
        .map_err(|source| OpenError::Prepare {
            dir: dir.to_owned(),
            source,
        })?;
        chdb.skip_destructors_at_exit();
        Ok(store)
    }

    /// Another database of the same engine, made if it is not there.
    pub fn database(&self, name: &str) -> Result<Self, StoreError> {
        let create = format!("CREATE DATABASE IF NOT EXISTS {}", statement::name(name)?);
        relock(&self.engine.control).execute(&create, "Null", &[])?;
        Ok(Self {
            engine: self.engine.clone(),
            database: name.into(),
        })
    }

    async fn lease(&self, purpose: Purpose) -> Result<Lease, StoreError> {
        let lane = self.engine.lane(purpose);
        let permit = lane.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|_| StoreError::unavailable("the store is closed"))?;
        let session = relock(&lane.idle).pop();
        let session =
            session.ok_or_else(|| StoreError::unavailable("a connection to the engine was lost"))?;
        Ok(Lease {
            session: Some(session),
            purpose,
            engine: self.engine.clone(),
            _permit: permit,
        })
    }

    /// Runs `work` on a connection, on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        purpose: Purpose,
        work: impl FnOnce(&mut Session) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut lease = self.lease(purpose).await?;
        let database = self.database.clone();
        spawn_blocking(move || {
            let session = lease.session();
            session.enter(&database)?;
            work(session)
        })
        .await
        .map_err(|error| StoreError::unavailable(format!("a thread of the store ended early: {error}")))?
    }
}

/// Where the engine keeps its files; the lock stays outside, since the engine owns everything below.
pub fn engine_dir(dir: &Path) -> PathBuf {
    dir.join("clickhouse")
}

#[async_trait]
impl Store for Embedded {
    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        let sql = statement::insert(table, token, block.columns)?;
        self.blocking(Purpose::Insert, move |session| {
            Ok(session.connection.insert(&sql, "Native", &block.native)?)
        })
        .await
    }

    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        let purpose = match query.access {
            Access::ReadOnly => Purpose::ReadOnly,
            Access::Internal => Purpose::Internal,
        };
        let mut lease = self.lease(purpose).await?;
        let database = self.database.clone();
        let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let number = QUERIES.fetch_add(1, Ordering::Relaxed);
        let running = lease.session().running.clone();
        *relock(&running.query) = Some(number);
        let mut parts = Parts {
            receiver,
            first: None,
            engine: self.engine.clone(),
            running,
            number,
        };
        spawn_blocking(move || {
            let session = lease.session();
            let outcome = stream(session, &database, &query, &sender);
            // From here on nobody kills what runs on this connection.
            *relock(&session.running.query) = None;
            if outcome.is_err() || sender.is_closed() {
                session.connection.settle();
            }
            if let Err(error) = outcome {
                // A reader that is gone does not want the error either.
                let _ = sender.blocking_send(Err(error));
            }
        });
        // A statement that fails at once is an error of the call, not of its answer.
        parts.first = parts.receiver.recv().await.transpose()?;
        Ok(Box::pin(parts))
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.derive(sql, vec![]).await
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        let sql = sql.to_owned();
        self.blocking(Purpose::Internal, move |session| {
            session.connection.execute(&sql, "Null", &params)?;
            Ok(())
        })
        .await
    }
}

/// Runs a query and hands on its parts, until the end or until nobody wants them.
fn stream(
    session: &mut Session,
    database: &str,
    query: &Query,
    parts: &mpsc::Sender<Result<Bytes, StoreError>>,
) -> Result<(), StoreError> {
    session.enter(database)?;
    let connection = &mut session.connection;
    if query.access == Access::ReadOnly && !is_select(connection, query)? {
        let whole = connection.execute(&query.sql, &query.format, &query.params)?;
        // A reader that is gone does not want it.
        let _ = parts.blocking_send(Ok(whole.into()));
        return Ok(());
    }
    let mut answer = connection.start(&query.sql, &query.format, &query.params)?;
    while let Some(part) = answer.fetch()? {
        if parts.blocking_send(Ok(part.into())).is_err() {
            break;
        }
    }
    Ok(())
}

/// Refuses everything but one statement that only reads the database, and says whether it is a SELECT: the engine
/// streams no others.
fn is_select(connection: &mut Connection, query: &Query) -> Result<bool, StoreError> {
    let sql = query.sql.as_str();
    match connection.classify(sql)? {
        Classified::Reads => {}
        Classified::DoesMore => {
            return Err(StoreError::rejected(
                "only statements that read are allowed: SELECT, SHOW, DESCRIBE, EXPLAIN",
            ));
        }
        Classified::Several => return Err(StoreError::rejected("one statement at a time, please")),
        Classified::Unparsable => return Err(syntax_error(connection, sql)),
    }
    let tree = connection.execute(&format!("EXPLAIN AST {sql}"), "TSVRaw", &query.params)?;
    let tree = String::from_utf8_lossy(&tree);
    read_only::check(sql, &tree).map_err(StoreError::rejected)?;
    Ok(tree.starts_with("Select"))
}

/// The parser's message for a text that is no statement. The text is a value here, so that no part of it can run.
fn syntax_error(connection: &mut Connection, sql: &str) -> StoreError {
    let params = [("sql".to_owned(), statement::text_value(sql))];
    match connection.execute("SELECT formatQuery({sql:String})", "Null", &params) {
        Ok(_) => StoreError::rejected("not a statement"),
        Err(error) => error.into(),
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        Self::from_clickhouse(&error.0)
    }
}

impl Session {
    fn enter(&mut self, database: &str) -> Result<(), StoreError> {
        if self.database != database {
            let sql = format!("USE {}", statement::name(database)?);
            self.connection.execute(&sql, "Null", &[])?;
            database.clone_into(&mut self.database);
        }
        Ok(())
    }
}

/// A connection in use. Goes back to its lane before its permit does.
struct Lease {
    session: Option<Session>,
    purpose: Purpose,
    engine: Arc<Engine>,
    _permit: OwnedSemaphorePermit,
}

impl Lease {
    fn session(&mut self) -> &mut Session {
        self.session
            .as_mut()
            .expect("a lease has its session until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            relock(&self.engine.lane(self.purpose).idle).push(session);
        }
    }
}

/// An answer. Dropped before its end, it ends the query: cancelling the stream would wait for the part that is being
/// computed, which for an aggregate is the whole query.
struct Parts {
    first: Option<Bytes>,
    receiver: mpsc::Receiver<Result<Bytes, StoreError>>,
    engine: Arc<Engine>,
    running: Arc<Running>,
    number: u64,
}

impl Stream for Parts {
    type Item = Result<Bytes, StoreError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.first.take() {
            Some(part) => Poll::Ready(Some(Ok(part))),
            None => self.receiver.poll_recv(context),
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.receiver.close();
        if *relock(&self.running.query) != Some(self.number) {
            return;
        }
        let (engine, running, number) = (self.engine.clone(), self.running.clone(), self.number);
        // A thread of its own: the blocking pool may be going down with the runtime, and waits for this very query.
        let killer = std::thread::Builder::new().name("holdfast-kill".into());
        if let Err(error) = killer.spawn(move || kill(&engine, &running, number)) {
            tracing::warn!("a query runs on although nobody waits for it: {error}");
        }
    }
}

/// Ends a query, unless its connection has gone on to another one. Repeats: a query that is just being started is
/// not in `system.processes` yet.
fn kill(engine: &Engine, running: &Running, number: u64) {
    let sql = format!(
        "KILL QUERY WHERE Settings['log_comment'] = '{}' ASYNC",
        running.label
    );
    loop {
        {
            // Held during the call: the connection cannot go on to another query meanwhile.
            let current = relock(&running.query);
            if *current != Some(number) {
                return;
            }
            if let Err(error) = relock(&engine.control).execute(&sql, "Null", &[]) {
                tracing::debug!("a query could not be ended: {}", error.0);
            }
        }
        std::thread::sleep(KILL_EVERY);
    }
}

/// What the mutexes guard is valid at every point, so a panic elsewhere does not matter.
fn relock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
