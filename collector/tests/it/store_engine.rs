//! The one engine of this test process: libchdb has one data folder in a process, so each test gets a database.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;
use holdfast_collector::store::{
    Access, Block, Chunks, Query, Store, StoreError, embedded::Embedded, library,
};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::clickhouse_http::{self, Running};

/// A fresh database of the engine of this process.
pub(crate) fn database() -> Embedded {
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let number = DATABASES.fetch_add(1, Ordering::Relaxed);
    engine().database(&format!("test_{number}")).unwrap()
}

/// A store whose questions are asked in other words, once these are known.
pub(crate) struct Rephrased<Words>(pub(crate) Embedded, pub(crate) Words);

#[async_trait]
impl<Words, Known> Store for Rephrased<Words>
where
    Words: Fn(String) -> Known + Send + Sync + 'static,
    Known: Future<Output = String> + Send,
{
    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        let sql = (self.1)(query.sql).await;
        self.0.query(Query { sql, ..query }).await
    }

    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        self.0.insert(table, token, block).await
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.0.execute(sql).await
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        self.0.derive(sql, params).await
    }
}

/// A ClickHouse server with the engine of this process, on a free port, until the runtime ends; gives its address.
pub(crate) async fn server() -> SocketAddr {
    ServerProcess::start("127.0.0.1:0".parse().unwrap()).await.address
}

/// A ClickHouse server that speaks TLS under the name `localhost`, until the runtime ends: its port, and the authority that
/// vouches for it, as PEM.
pub(crate) async fn secure_server() -> (u16, String) {
    let server = server().await;
    let authority = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(authority.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![authority.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                // Whoever does not trust us goes away in the handshake.
                let Ok(mut stream) = tls.accept(stream).await else {
                    return;
                };
                let mut plain = TcpStream::connect(server).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut plain).await;
            });
        }
    });
    (port, authority.cert.pem())
}

/// A ClickHouse server that can be killed, and started again with its data.
pub(crate) struct ServerProcess {
    address: SocketAddr,
    serving: JoinHandle<()>,
    running: Running,
}

impl ServerProcess {
    pub(crate) async fn start(address: SocketAddr) -> Self {
        engine();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let running = Running::default();
        let running_there = running.clone();
        let serving = tokio::spawn(async move {
            clickhouse_http::serve(listener, &data_folder(), running_there).await;
        });
        Self {
            address,
            serving,
            running,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// It is gone at once, its connections included. Nobody is told the outcome of what it was told, but nothing of it
    /// is still to come.
    pub(crate) async fn kill(self) {
        self.serving.abort();
        assert!(self.serving.await.unwrap_err().is_cancelled());
        drop(self.running.write().await);
    }
}

/// The folder that the engine of this process works in.
pub(crate) fn data_folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("engine-{}", std::process::id()))
}

fn engine() -> &'static Embedded {
    static ENGINE: OnceLock<Embedded> = OnceLock::new();
    ENGINE.get_or_init(|| {
        remove_leftovers();
        let more = data_folder().join("engine.d");
        std::fs::create_dir_all(&more).unwrap();
        std::fs::write(more.join("cluster.xml"), cluster()).unwrap();
        let library = library::locate().unwrap();
        Embedded::open(&data_folder(), &library, "test").unwrap()
    })
}

/// A cluster that this engine is the only server of.
pub(crate) const CLUSTER: &str = "one";

/// What the engine reads beside its configuration. A replica at its own port is itself; nobody listens there.
fn cluster() -> String {
    format!(
        "<clickhouse><tcp_port>9000</tcp_port><remote_servers><{CLUSTER}><shard><internal_replication>true\
         </internal_replication><replica><host>127.0.0.1</host><port>9000</port></replica></shard></{CLUSTER}>\
         </remote_servers></clickhouse>"
    )
}

/// The engine lives as long as the process, so its folder is removed by a later one.
fn remove_leftovers() {
    for entry in std::fs::read_dir(env!("CARGO_TARGET_TMPDIR"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("engine-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

pub(crate) fn query(sql: &str, access: Access) -> Query {
    Query {
        sql: sql.into(),
        params: vec![],
        format: "TSV".into(),
        access,
    }
}

/// The whole answer, as text.
pub(crate) async fn answer(store: &dyn Store, query: Query) -> Result<String, StoreError> {
    let parts: Vec<Bytes> = store.query(query).await?.try_collect().await?;
    Ok(String::from_utf8(parts.concat()).unwrap())
}

/// The whole answer to a query of Holdfast's own, which must succeed.
pub(crate) async fn ask(store: &dyn Store, sql: &str) -> String {
    answer(store, query(sql, Access::Internal)).await.unwrap()
}
