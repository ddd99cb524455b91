//! A collector in this process, on a database of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_collector::config::{Limits, Retention};
use holdfast_collector::door::{AGENTS_PACE, Pace};
use holdfast_collector::serve::{self, Listening};
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{Store, migrations};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::store_engine;
use crate::synthetic::now_ns;

/// A database with all tables and no rows.
pub(crate) async fn database() -> Arc<Embedded> {
    let store = store_engine::database();
    migrations::apply(&store, now_ns()).await.unwrap();
    Arc::new(store)
}

/// An empty folder for this process; what an earlier process left under the same name is gone.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", folder.display()),
        _ => fs::create_dir_all(&folder).unwrap(),
    }
    folder
}

/// The one number that a question is answered with.
pub(crate) async fn number(store: &Embedded, sql: &str) -> u64 {
    let text = store_engine::ask(store, sql).await;
    text.trim()
        .parse()
        .unwrap_or_else(|_| panic!("{sql} gave {text:?}"))
}

/// The status and the body of a page at an address.
pub(crate) async fn page(address: SocketAddr, path: &str) -> (u16, String) {
    try_page(address, path).await.expect("somebody listens")
}

/// The same; `None` while nobody listens.
pub(crate) async fn try_page(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some((status, body.to_owned()))
}

/// Those of the tests: gathering does not take longer than it has to, and agents that report nothing may stay.
pub(crate) fn limits() -> Limits {
    Limits {
        max_batch_bytes: 1 << 20,
        gather_interval: Duration::from_millis(100),
        agents_pace: Pace {
            next: None,
            ..AGENTS_PACE
        },
        ..Limits::default()
    }
}

pub(crate) struct Collector {
    /// Of gRPC.
    pub(crate) address: SocketAddr,
    web: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<anyhow::Result<()>>,
}

impl Collector {
    /// On a store whose tables are there.
    pub(crate) async fn start(store: Arc<dyn Store>) -> Self {
        Self::start_with(store, limits(), true).await
    }

    /// On a store that may be away, and where the tables have to be made.
    pub(crate) async fn start_on_any(store: Arc<dyn Store>) -> Self {
        Self::start_with(store, limits(), false).await
    }

    pub(crate) async fn start_with(store: Arc<dyn Store>, limits: Limits, is_prepared: bool) -> Self {
        let agents = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let browsers = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, web) = (agents.local_addr().unwrap(), browsers.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let listening = Listening { agents, browsers };
        let shutdown = async {
            let _ = stopped.await;
        };
        let running = if is_prepared {
            tokio::spawn(serve::collect(store, limits, listening, shutdown))
        } else {
            tokio::spawn(serve::collect_once_ready(
                store,
                Retention::default(),
                limits,
                listening,
                shutdown,
            ))
        };
        Self {
            address,
            web,
            stop,
            running,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The status and the body of a page.
    pub(crate) async fn page(&self, path: &str) -> (u16, String) {
        page(self.web, path).await
    }

    /// Waits until the collector has read so many batches.
    pub(crate) async fn received(&self, batches: u64) {
        let line = format!("holdfast_batches_received_total {batches}\n");
        while !self.page("/metrics").await.1.contains(&line) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        // It does not listen any more if it failed, and then says so below.
        let _ = self.stop.send(());
        self.running.await.unwrap()
    }
}
