//! What a row costs the collector in CPU time: this process is a collector, a child of it is an agent that sends
//! synthetic batches as fast as they are acknowledged.
//!
//! `cargo run --release --example ingest_cost -- [null | FOLDER] [ROWS] [ROWS_PER_BATCH]`: with `null` the store
//! forgets at once, which leaves what decoding, gathering and encoding cost; with a folder it is the embedded one.

#[path = "../tests/it/synthetic.rs"]
#[allow(dead_code)]
mod synthetic;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use async_trait::async_trait;
use holdfast_collector::config::Limits;
use holdfast_collector::serve::{self, Listening};
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{Block, Chunks, Query, Store, StoreError, library, migrations};
use tokio::net::TcpListener;

/// A store that takes everything and keeps nothing.
struct Null;

#[async_trait]
impl Store for Null {
    async fn insert(&self, _: &str, _: &str, _: Block) -> Result<(), StoreError> {
        Ok(())
    }

    async fn query(&self, _: Query) -> Result<Chunks, StoreError> {
        // Whatever is asked, nothing is here.
        Ok(Box::pin(tokio_stream::once(Ok("0\n".into()))))
    }

    async fn execute(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn derive(&self, _: &str, _: Vec<(String, String)>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let (rows, rows_per_batch) = (number(1, 4_000_000)?, number(2, 8_000)? as u32);
    match arguments.first().map(String::as_str) {
        Some("agent") => agent(&arguments[3], rows, rows_per_batch).await,
        Some("null") | None => collector(Arc::new(Null), rows, rows_per_batch).await,
        Some(folder) => {
            let store = Embedded::open(Path::new(folder), &library::locate()?, "holdfast")?;
            migrations::apply(&store, synthetic::now_ns()).await?;
            collector(Arc::new(store), rows, rows_per_batch).await
        }
    }
}

async fn collector(store: Arc<dyn Store>, rows: u64, rows_per_batch: u32) -> anyhow::Result<()> {
    let agents = TcpListener::bind("127.0.0.1:0").await?;
    let browsers = TcpListener::bind("127.0.0.1:0").await?;
    let address = agents.local_addr()?.to_string();
    let mut child = std::process::Command::new(std::env::current_exe()?)
        .args(["agent", &rows.to_string(), &rows_per_batch.to_string(), &address])
        .spawn()?;
    let (cpu, start) = (cpu_time()?, Instant::now());
    let (ended, end) = tokio::sync::oneshot::channel();
    let waiting = std::thread::spawn(move || {
        let status = child.wait();
        // Nobody waits for it if the collector failed first.
        let _ = ended.send(());
        status
    });
    let shutdown = async {
        let _ = end.await;
    };
    serve::collect(store, Limits::default(), Listening { agents, browsers }, shutdown).await?;
    let (cpu, elapsed) = (cpu_time()? - cpu, start.elapsed());
    let status = waiting
        .join()
        .map_err(|_| anyhow::anyhow!("the agent's thread ended early"))??;
    if !status.success() {
        bail!("the agent failed");
    }
    println!(
        "{rows} rows in {:.2} s: {:.0} rows/s, {:.2} us of the collector's CPU a row",
        elapsed.as_secs_f64(),
        rows as f64 / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / rows as f64,
    );
    Ok(())
}

async fn agent(collector: &str, rows: u64, rows_per_batch: u32) -> anyhow::Result<()> {
    /// Batches that wait for their acknowledgement.
    const IN_FLIGHT: usize = 64;
    let batches = rows / u64::from(rows_per_batch);
    let mut agent = synthetic::Agent::connect(collector.parse()?, "bench").await;
    let template = synthetic::batch(1, rows_per_batch);
    let mut waiting = 0;
    for sequence in 1..=batches {
        agent
            .deliver(holdfast_proto::v1::Batch {
                sequence,
                ..template.clone()
            })
            .await;
        waiting += 1;
        while waiting >= IN_FLIGHT {
            waiting -= acknowledged(&mut agent).await?;
        }
    }
    while waiting > 0 {
        waiting -= acknowledged(&mut agent).await?;
    }
    Ok(())
}

async fn acknowledged(agent: &mut synthetic::Agent) -> anyhow::Result<usize> {
    let (acknowledged, refused) = agent.settled(1).await;
    if let Some((sequence, reason)) = refused.first() {
        bail!("batch {sequence} was refused: {reason}");
    }
    Ok(acknowledged.len())
}

/// CPU time of this process, all threads (proc(5), PID/stat: utime and stime in hundredths of a second).
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat
        .rsplit_once(')')
        .context("/proc/self/stat has another form")?
        .1;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
}
