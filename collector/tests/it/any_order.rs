//! An agent, a collector and ClickHouse go and come in any order, and nobody has to do anything about it: every row is
//! in the store once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_collector::store::server::Server;
use holdfast_proto::v1::uplink_client::UplinkClient;
use holdfast_proto::v1::{
    AgentMessage, BatchRange, Hello, SealedBatch, Stream, agent_message, collector_message,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::clickhouse_http::{PASSWORD, USER};
use crate::harness::Collector;
use crate::store_engine::{ServerProcess, ask};
use crate::synthetic::{Agent, batch, hello, seal};

/// Far longer than it takes: it ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(180);

const ROWS: u32 = 20;

/// An address that nobody listens at.
async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

fn server(address: SocketAddr, database: &str) -> Server {
    Server::new(&format!("http://{USER}@{address}/{database}"), Some(PASSWORD)).unwrap()
}

async fn count(store: &Server, sql: &str) -> u64 {
    ask(store, sql).await.trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_waits_for_its_store_with_open_ports_and_tells_agents_to_wait() {
    let address = free_address().await;
    let store = server(address, "waited_for");
    let collector = Collector::start_on_any(Arc::new(store.clone())).await;

    let mut body = String::new();
    while !body.contains("refused") {
        let (status, found) = collector.page("/healthz").await;
        assert_eq!(status, 503);
        body = found;
    }
    assert!(body.contains("the store's tables are not ready yet"), "{body}");
    let mut client = UplinkClient::connect(collector.url()).await.unwrap();
    let (_outgoing, messages) = mpsc::channel(1);
    let told = client.deliver(ReceiverStream::new(messages)).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable);
    assert!(
        told.message().starts_with("the collector waits for its store: "),
        "{told:?}"
    );

    let clickhouse = ServerProcess::start(address).await;
    tokio::time::timeout(PATIENCE, async {
        while collector.page("/healthz").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the collector goes on once its store is there");
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, ROWS)).await;
    agent.settled(1).await;

    // And once more while agents are connected.
    clickhouse.kill().await;
    agent.deliver(batch(2, ROWS)).await;
    collector.received(2).await;
    let _clickhouse = ServerProcess::start(address).await;
    assert_eq!(agent.settled(1).await.0, [2]);
    assert_eq!(
        count(&store, "SELECT uniqExact(sequence, cookie) FROM connections").await,
        2 * u64::from(ROWS)
    );
    assert_eq!(
        count(&store, "SELECT count() FROM connections").await,
        2 * u64::from(ROWS)
    );
    collector.stop().await.unwrap();
}

/// What an agent has no answer to; it outlives the agent, as a spool on disk does.
#[derive(Default)]
struct Spool(Mutex<BTreeMap<u64, SealedBatch>>);

impl Spool {
    fn unanswered(&self) -> Vec<SealedBatch> {
        self.0.lock().unwrap().values().cloned().collect()
    }

    /// Seals a batch in a start of the agent.
    fn append(&self, epoch: u64, sequence: u64) {
        let sealed = seal(epoch, &batch(sequence, ROWS));
        self.0.lock().unwrap().insert(sequence, sealed);
    }

    fn answered(&self, sequence: u64) {
        self.0.lock().unwrap().remove(&sequence);
    }
}

/// Delivers what the spool holds, over as many connections as it takes, until it is killed.
fn start_agent(spool: Arc<Spool>, epoch: u64, collector: SocketAddr) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            // How a connection ends does not matter.
            let _ = one_connection(&spool, epoch, collector).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

async fn one_connection(
    spool: &Spool,
    epoch: u64,
    collector: SocketAddr,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let unanswered = spool.unanswered();
    let mut client = UplinkClient::connect(format!("http://{collector}")).await?;
    let (outgoing, messages) = mpsc::channel(4);
    let range = |sealed: &SealedBatch| BatchRange {
        epoch: sealed.epoch,
        stream: Stream::Connections.into(),
        first_sequence: sealed.sequence,
        last_sequence: sealed.sequence,
    };
    let hello = Hello {
        epoch,
        unanswered: unanswered.iter().map(range).collect(),
        ..hello("a1")
    };
    let message = |body| AgentMessage { body: Some(body) };
    outgoing.send(message(agent_message::Body::Hello(hello))).await?;
    let mut incoming = client.deliver(ReceiverStream::new(messages)).await?.into_inner();
    let mut is_welcome = false;
    let mut next_sequence = 0;
    loop {
        let batch = spool
            .unanswered()
            .into_iter()
            .find(|sealed| is_welcome && sealed.sequence > next_sequence);
        tokio::select! {
            answer = incoming.message() => match answer?.ok_or("ended")?.body.ok_or("no body")? {
                collector_message::Body::Welcome(_) => is_welcome = true,
                collector_message::Body::Acknowledgement(acknowledgement) => {
                    for sequence in acknowledgement.sequences {
                        spool.answered(sequence);
                    }
                }
                collector_message::Body::Refusal(refusal) => panic!("refused: {refusal:?}"),
                _ => {}
            },
            permit = outgoing.reserve(), if batch.is_some() => {
                let batch = batch.expect("there is one");
                next_sequence = batch.sequence;
                permit?.send(message(agent_message::Body::Batch(batch)));
            }
            () = tokio::time::sleep(Duration::from_millis(5)), if batch.is_none() => {}
        }
    }
}

/// `holdfast serve`, to be killed.
fn start_collector(address: SocketAddr, store: SocketAddr) -> Child {
    let store = format!("http://{USER}@{store}/any_order");
    Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["serve", "--web", "127.0.0.1:0", "--gather-interval", "20ms"])
        .args(["--listen", &address.to_string(), "--store", &store])
        .env("HOLDFAST_STORE_PASSWORD", PASSWORD)
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// The parts that come and go.
struct Parts {
    spool: Arc<Spool>,
    /// The start of the agent that is running, or was the last one.
    epoch: u64,
    collector_at: SocketAddr,
    clickhouse_at: SocketAddr,
    agent: Option<JoinHandle<()>>,
    collector: Option<Child>,
    clickhouse: Option<ServerProcess>,
}

impl Parts {
    async fn start(&mut self, part: char) {
        match part {
            'A' => {
                self.epoch += 1;
                let agent = start_agent(self.spool.clone(), self.epoch, self.collector_at);
                self.agent = Some(agent);
            }
            'C' => self.collector = Some(start_collector(self.collector_at, self.clickhouse_at)),
            _ => self.clickhouse = Some(ServerProcess::start(self.clickhouse_at).await),
        }
    }

    async fn kill(&mut self, part: char) {
        match part {
            'A' => {
                let agent = self.agent.take().unwrap();
                agent.abort();
                // It never ends by itself, unless a batch was refused.
                assert!(agent.await.unwrap_err().is_cancelled());
            }
            'C' => {
                let mut collector = self.collector.take().unwrap();
                collector.kill().unwrap();
                collector.wait().unwrap();
            }
            _ => self.clickhouse.take().unwrap().kill().await,
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(collector) = &mut self.collector {
            let _ = collector.kill();
            let _ = collector.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_three_come_and_go_in_any_order_and_every_row_is_there_once() {
    const BATCHES_PER_ROUND: u64 = 40;
    // A start in one order, later a kill in another; each part is the first and the last of each.
    const ROUNDS: [(&str, &str); 6] = [
        ("ACH", "HCA"),
        ("CHA", "CAH"),
        ("HAC", "AHC"),
        ("HCA", "ACH"),
        ("CAH", "CHA"),
        ("AHC", "HAC"),
    ];
    let mut parts = Parts {
        spool: Arc::default(),
        epoch: 0,
        collector_at: free_address().await,
        clickhouse_at: free_address().await,
        agent: None,
        collector: None,
        clickhouse: None,
    };
    let mut sequence = 0;
    for (round, (start, kill)) in ROUNDS.into_iter().enumerate() {
        for part in start.chars() {
            parts.start(part).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        // Every other round ends in the middle of its deliveries.
        let enough = if round % 2 == 0 {
            0
        } else {
            BATCHES_PER_ROUND as usize / 2
        };
        let appended = async {
            for _ in 0..BATCHES_PER_ROUND {
                sequence += 1;
                parts.spool.append(parts.epoch, sequence);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            while parts.spool.unanswered().len() > enough {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, appended)
            .await
            .unwrap_or_else(|_| panic!("round {round} ({start}) delivers nothing"));
        for part in kill.chars() {
            sequence += 1;
            parts.spool.append(parts.epoch, sequence);
            parts.kill(part).await;
        }
    }
    for part in "CAH".chars() {
        parts.start(part).await;
    }
    let delivered = async {
        while !parts.spool.unanswered().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, delivered)
        .await
        .expect("everything is delivered in the end");
    let store = server(parts.clickhouse_at, "any_order");
    let rows = sequence * u64::from(ROWS);
    assert_eq!(count(&store, "SELECT count() FROM connections").await, rows);
    assert_eq!(
        count(&store, "SELECT uniqExact(sequence, cookie) FROM connections").await,
        rows
    );
}
