//! One agent cannot slow the others down, and all of them together cannot take more memory than was configured.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_collector::config::Limits;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::schema::CONNECTION_RECORDS;
use holdfast_collector::store::server::Server;
use holdfast_collector::store::{Block, Chunks, Query, Store, StoreError, migrations};
use holdfast_proto::v1::uplink_client::UplinkClient;
use holdfast_proto::v1::{AgentMessage, Status, Window, agent_message, collector_message};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::clickhouse_http::{PASSWORD, USER};
use crate::harness::{self, Collector, database, number};
use crate::store_engine::{ServerProcess, ask};
use crate::synthetic::{Agent, batch, batch_at, hello, now_ns, seal};

const MIB: usize = 1 << 20;

/// Rows of a batch as large as agents make them.
const LARGE: u32 = 4096;

/// Sends large batches as fast as they are taken, whatever its window, and reads no answer.
fn start_hostile(collector: std::net::SocketAddr) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut client = UplinkClient::connect(format!("http://{collector}"))
            .await
            .unwrap();
        let (outgoing, messages) = mpsc::channel(2);
        let _unread = client.deliver(ReceiverStream::new(messages)).await.unwrap();
        let message = |body| AgentMessage { body: Some(body) };
        outgoing
            .send(message(agent_message::Body::Hello(hello("hostile"))))
            .await
            .unwrap();
        let mut large = batch(1, LARGE);
        loop {
            outgoing
                .send(message(agent_message::Body::Batch(seal(7, &large))))
                .await
                .unwrap();
            large.sequence += 1;
        }
    })
}

/// Delivers one batch after another; gives how long each took to be durable, sorted.
async fn latencies(collector: std::net::SocketAddr, id: String, batches: u64) -> Vec<Duration> {
    let mut agent = Agent::connect(collector, &id).await;
    let mut latencies = Vec::new();
    for sequence in 1..=batches {
        let began = Instant::now();
        agent.deliver(batch(sequence, 100)).await;
        assert_eq!(agent.settled(1).await.0, [sequence]);
        latencies.push(began.elapsed());
    }
    latencies
}

/// The 95th percentile of what so many agents at once see.
async fn p95(collector: std::net::SocketAddr, name: &str, agents: u64) -> Duration {
    let tasks: Vec<_> = (0..agents)
        .map(|number| tokio::spawn(latencies(collector, format!("{name}-{number}"), 10)))
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    all[all.len() * 95 / 100]
}

async fn gathered_bytes(collector: &Collector) -> usize {
    gauge(&collector.page("/metrics").await.1, "holdfast_gathered_bytes ")
}

fn gauge(metrics: &str, name: &str) -> usize {
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or_else(|| panic!("{name} is not in\n{metrics}"));
    line.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_and_a_slow_agent_do_not_slow_the_others_down() {
    const NORMAL: u64 = 20;
    const ROOM: usize = 64 * MIB;
    let limits = Limits {
        gather_bytes: ROOM,
        ..harness::limits()
    };
    let store = database().await;
    let collector = Collector::start_with(store.clone(), limits, true).await;
    let undisturbed = p95(collector.address, "alone", NORMAL).await;

    let hostile = start_hostile(collector.address);
    let mut slow = Agent::connect(collector.address, "slow").await;
    for sequence in 1..=100 {
        slow.deliver(batch(sequence, 10)).await;
    }
    let slow = tokio::spawn(async move {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            slow.settled(1).await;
        }
    });
    let address = collector.address;
    let normal = tokio::spawn(async move { p95(address, "disturbed", NORMAL).await });
    let mut most = 0;
    while !normal.is_finished() {
        most = most.max(gathered_bytes(&collector).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let disturbed = normal.await.unwrap();
    assert!(!hostile.is_finished());
    hostile.abort();
    slow.abort();

    // Two blocks are ahead of a row at most, and they are of what the hostile one's share holds.
    let bound = undisturbed * 4 + Duration::from_secs(1);
    assert!(
        disturbed < bound,
        "{disturbed:?}, and {undisturbed:?} while they are alone"
    );
    assert!(
        most < ROOM / 4,
        "{most} bytes are taken of {ROOM}, most of it by one agent of 22"
    );
    let rows = "SELECT countIf(node LIKE 'node-disturbed-%') FROM connections";
    assert_eq!(number(&store, rows).await, NORMAL * 10 * 100);
    let hostile_rows = "SELECT countIf(node = 'node-hostile') FROM connections";
    assert!(number(&store, hostile_rows).await > u64::from(LARGE));
    collector.stop().await.unwrap();
}

/// A store that inserts connections only while its gate is open, and notes whose they are.
struct Gated {
    store: Embedded,
    gate: Semaphore,
    /// Of each block of connections, in order, whether it has rows of the healthy node.
    has_healthy: Mutex<Vec<bool>>,
}

#[async_trait]
impl Store for Gated {
    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        if table == CONNECTION_RECORDS.name {
            self.gate.acquire().await.unwrap().forget();
            let name = b"node-healthy";
            let is_healthy = block.native.windows(name.len()).any(|window| window == name);
            self.has_healthy.lock().unwrap().push(is_healthy);
        }
        self.store.insert(table, token, block).await
    }

    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        self.store.query(query).await
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.store.execute(sql).await
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        self.store.derive(sql, params).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_spool_of_many_days_keeps_the_others_waiting_for_one_block() {
    const DAYS: u64 = 12;
    const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
    let store = database().await;
    let gated = Arc::new(Gated {
        store: (*store).clone(),
        gate: Semaphore::new(0),
        has_healthy: Mutex::default(),
    });
    // What has come is due, so the order is that of the turns, however fast this machine is.
    let limits = Limits {
        gather_interval: Duration::ZERO,
        ..harness::limits()
    };
    let collector = Collector::start_with(gated.clone(), limits, true).await;
    let mut old = Agent::connect(collector.address, "old").await;
    let today_ns = now_ns() - 60_000_000_000;
    for sequence in 1..=DAYS {
        let days_ago = sequence.cast_signed();
        old.deliver(batch_at(sequence, 10, today_ns - days_ago * DAY_NS))
            .await;
    }
    collector.received(DAYS).await;
    let mut healthy = Agent::connect(collector.address, "healthy").await;
    healthy.deliver(batch(1, 10)).await;
    // The receipt comes once the batch before it waits for its block.
    let observed_at_ns = now_ns().unsigned_abs();
    let status = Status {
        observed_at_ns,
        ..Status::default()
    };
    healthy.report(status).await;
    while !matches!(
        healthy.hear().await.unwrap(),
        Some(collector_message::Body::Receipt(_))
    ) {}

    gated.gate.add_permits(1_000);
    assert_eq!(healthy.settled(1).await, (vec![1], vec![]));
    let blocks = gated.has_healthy.lock().unwrap().clone();
    let before = blocks.iter().position(|has_healthy| *has_healthy).unwrap();
    assert!(
        before <= 2,
        "{before} blocks of the old agent went before it: {blocks:?}"
    );
    let (mut settled, refused) = old.settled(DAYS as usize).await;
    settled.sort_unstable();
    assert_eq!((settled, refused), ((1..=DAYS).collect(), vec![]));
    assert_eq!(
        number(&store, "SELECT count() FROM connections").await,
        (DAYS + 1) * 10
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_agents_than_were_configured_are_let_in() {
    let limits = Limits {
        max_agents: 2,
        ..harness::limits()
    };
    let collector = Collector::start_with(database().await, limits, true).await;
    let _first = Agent::connect(collector.address, "a1").await;
    let second = Agent::connect(collector.address, "a2").await;
    let mut third = Agent::dial(collector.address).await;
    third.send(agent_message::Body::Hello(hello("a3"))).await;
    let status = third.hear().await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status
            .message()
            .starts_with("this collector takes 2 agents at most"),
        "{status:?}"
    );
    // Who says nothing counts as well: two are connected, two more may be about to say who they are.
    let _silent = (
        Agent::dial(collector.address).await,
        Agent::dial(collector.address).await,
    );
    let mut fifth = Agent::dial(collector.address).await;
    assert_eq!(fifth.hear().await.unwrap_err().code(), Code::ResourceExhausted);
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_refusals_total{reason=\"crowd\"} 2\n"),
        "{metrics}"
    );
    drop((second, _silent));
    let welcome = async {
        loop {
            let mut agent = Agent::dial(collector.address).await;
            agent.send(agent_message::Body::Hello(hello("a3"))).await;
            if agent.hear().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), welcome)
        .await
        .expect("a place is free again");
    collector.stop().await.unwrap();
}

/// `holdfast serve`, killed at the end.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Serving {
    fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        gauge(&status.replace(" kB", ""), "VmRSS:") * 1024
    }
}

/// Waits for a window with more or with fewer bytes than one before.
async fn hear_window(agent: &mut Agent, is_wanted: impl Fn(&Window) -> bool) -> Window {
    loop {
        if let Some(collector_message::Body::Window(window)) = agent.hear().await.unwrap()
            && is_wanted(&window)
        {
            return window;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_bounded_and_windows_follow_while_the_store_is_away() {
    const ROOM: usize = 64 * MIB;
    const AGENTS: u64 = 6;
    const BATCHES: u64 = 40;
    let clickhouse = ServerProcess::start("127.0.0.1:0".parse().unwrap()).await;
    let clickhouse_at = clickhouse.address();
    let store = format!("http://{USER}@{clickhouse_at}/bounded");
    let tables = Server::new(&store, Some(PASSWORD)).unwrap();
    tables.prepare().await.unwrap();
    migrations::apply(&tables, now_ns()).await.unwrap();

    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let (address, web) = (free(), free());
    let serving = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["serve", "--store", &store])
        .args(["--listen", &address.to_string(), "--web", &web.to_string()])
        .args([
            "--gather-bytes",
            &ROOM.to_string(),
            "--max-batch-bytes",
            "2097152",
        ])
        .args(["--gather-interval", "100ms"])
        .env("HOLDFAST_STORE_PASSWORD", PASSWORD)
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let serving = Serving(serving);
    let metrics = async || harness::page(web, "/metrics").await.1;
    let ready = async {
        while harness::try_page(web, "/healthz")
            .await
            .is_none_or(|(status, _)| status != 200)
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ready)
        .await
        .unwrap();
    let idle_bytes = serving.resident_bytes();

    let mut observer = Agent::dial(address).await;
    observer.send(agent_message::Body::Hello(hello("observer"))).await;
    let Ok(Some(collector_message::Body::Welcome(welcome))) = observer.hear().await else {
        panic!("not welcome");
    };
    observer.keep_reporting();
    let alone = welcome.window.unwrap();
    assert_eq!(alone.bytes, (ROOM / 2 / 4) as u64);

    let mut agents = Vec::new();
    for number in 0..AGENTS {
        let agent = Agent::connect(address, &format!("flood-{number}")).await;
        agent.keep_reporting();
        agents.push(agent);
    }
    clickhouse.kill().await;
    for agent in &agents {
        let mut large = batch(1, LARGE);
        for sequence in 1..=BATCHES {
            large.sequence = sequence;
            agent.deliver(large.clone()).await;
        }
    }
    let lowered = hear_window(&mut observer, |window| {
        window.bytes <= (ROOM / (AGENTS as usize + 2) / 4 / 4) as u64
    })
    .await;
    assert!(lowered.batches < alone.batches, "{lowered:?}");
    // Nothing comes in any more.
    let mut before = 0;
    loop {
        let received = gauge(&metrics().await, "holdfast_batches_received_total ");
        if received == before && received > 0 {
            break;
        }
        before = received;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!((before as u64) < AGENTS * BATCHES, "{before} batches were read");
    let held = gauge(&metrics().await, "holdfast_gathered_bytes ");
    assert!((ROOM / 3..=ROOM).contains(&held), "{held}");
    // What is held, the block that is tried again, and a batch and its messages for each agent.
    let grown = serving.resident_bytes() - idle_bytes;
    assert!(grown < 2 * ROOM, "{grown} bytes for {held} bytes of rows");

    let _clickhouse = ServerProcess::start(clickhouse_at).await;
    for agent in &mut agents {
        let (acknowledged, refused) = agent.settled(BATCHES as usize).await;
        assert_eq!((acknowledged.len() as u64, refused), (BATCHES, vec![]));
    }
    drop(agents);
    let raised = hear_window(&mut observer, |window| window.bytes == alone.bytes).await;
    assert_eq!(raised.batches, alone.batches);
    let line = format!(
        "holdfast_window_bytes{{agent=\"observer\",node=\"node-observer\"}} {}\n",
        alone.bytes
    );
    let shown = metrics().await;
    assert!(shown.contains(&line), "{shown}");
    let count = ask(&tables, "SELECT count() FROM connections").await;
    assert_eq!(count.trim(), (AGENTS * BATCHES * u64::from(LARGE)).to_string());
}
