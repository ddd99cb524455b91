//! A collector in this process, on a database of its own.
//!
//! A process can have one engine. Tests that share a process share it, each with its own database.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use holdfast_collector::config::Limits;
use holdfast_collector::serve::{self, Listening};
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{self, Access, Query, Store, library};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

static ENGINE: OnceLock<Embedded> = OnceLock::new();

/// A database with all tables and no rows.
pub async fn database(name: &str) -> Arc<Embedded> {
    let engine = ENGINE.get_or_init(|| {
        let folder = folder(&format!("engine-{}", std::process::id()));
        Embedded::open(&folder, &library::locate().unwrap(), "holdfast").unwrap()
    });
    let store = engine.database(name).unwrap();
    store::migrations::run(&store, Duration::from_secs(30 * 24 * 3600))
        .await
        .unwrap();
    Arc::new(store)
}

/// An empty folder for this process; what an earlier process left under the same name is gone.
pub fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", folder.display()),
        _ => fs::create_dir_all(&folder).unwrap(),
    }
    folder
}

/// The one number that a question is answered with.
pub async fn number(store: &Embedded, sql: &str) -> u64 {
    let query = Query {
        sql: sql.to_owned(),
        params: Vec::new(),
        format: "TabSeparated".to_owned(),
        access: Access::Internal,
    };
    let mut chunks = store.query(query).await.unwrap();
    let mut text = Vec::new();
    while let Some(chunk) = chunks.next().await {
        text.extend_from_slice(&chunk.unwrap());
    }
    let text = String::from_utf8(text).unwrap();
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{sql} gave {text:?}"))
}

pub struct Collector {
    /// Of gRPC.
    pub address: SocketAddr,
    web: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Collector {
    pub async fn start(store: Arc<dyn Store>) -> Self {
        let agents = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let browsers = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, web) = (agents.local_addr().unwrap(), browsers.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let limits = Limits {
            gather_interval: Duration::from_millis(100),
            ..Limits::default()
        };
        let listening = Listening { agents, browsers };
        let shutdown = async {
            let _ = stopped.await;
        };
        let running = tokio::spawn(serve::collect(store, limits, listening, shutdown));
        Self {
            address,
            web,
            stop,
            running,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The status and the body of a page.
    pub async fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.web).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }

    /// Waits until the collector has read so many batches.
    pub async fn received(&self, batches: u64) {
        let line = format!("holdfast_batches_received_total {batches}\n");
        while !self.page("/metrics").await.1.contains(&line) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        // It does not listen any more if it failed, and then says so below.
        let _ = self.stop.send(());
        self.running.await.unwrap()
    }
}
