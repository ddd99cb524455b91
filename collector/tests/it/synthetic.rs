//! An agent without a kernel: it says hello, sends what it is told to, and hears what the collector answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use holdfast_proto::v1::batch::Columns;
use holdfast_proto::v1::uplink_client::UplinkClient;
use holdfast_proto::v1::{
    AgentMessage, Batch, CollectorMessage, ConnectionColumns, Hello, Path, Process, SealedBatch, Status,
    Stream, Welcome, agent_message, collector_message,
};
use holdfast_proto::{FLAG_FINAL, FLAG_FIRST, PROTOCOL};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Far longer than anything takes: it ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Agent {
    outgoing: mpsc::Sender<AgentMessage>,
    incoming: Streaming<CollectorMessage>,
}

/// A hello that the collector welcomes.
pub(crate) fn hello(id: &str) -> Hello {
    Hello {
        protocol: PROTOCOL,
        agent_id: id.to_owned(),
        epoch: 7,
        node: format!("node-{id}"),
        labels: HashMap::from([("role".to_owned(), "web".to_owned())]),
        version: "0.1.0".to_owned(),
        boot_id: "b1".to_owned(),
        kernel: "6.18.0".to_owned(),
        architecture: "x86_64".to_owned(),
        observed_netns: "all".to_owned(),
        missing_features: vec!["cgroups".to_owned()],
        unanswered: Vec::new(),
        unsettled: Vec::new(),
        predecessors: Vec::new(),
        addresses: Vec::new(),
    }
}

impl Agent {
    /// Connects and sends nothing.
    pub(crate) async fn dial(collector: SocketAddr) -> Self {
        let mut client = UplinkClient::connect(format!("http://{collector}"))
            .await
            .unwrap();
        let (outgoing, messages) = mpsc::channel(1024);
        let incoming = client
            .deliver(ReceiverStream::new(messages))
            .await
            .unwrap()
            .into_inner();
        Self { outgoing, incoming }
    }

    /// Connects and is welcomed.
    pub(crate) async fn connect(collector: SocketAddr, id: &str) -> Self {
        let mut agent = Self::dial(collector).await;
        agent.send(agent_message::Body::Hello(hello(id))).await;
        match agent.hear().await {
            Ok(Some(collector_message::Body::Welcome(Welcome {
                protocol: PROTOCOL, ..
            }))) => agent,
            other => panic!("not welcome: {other:?}"),
        }
    }

    /// Connects with a hello of its own and, once it is welcomed, hears which of its batches are in the store.
    pub(crate) async fn return_with(collector: SocketAddr, hello: Hello) -> (Self, Vec<(u64, u64)>) {
        let mut agent = Self::dial(collector).await;
        agent.send(agent_message::Body::Hello(hello)).await;
        match agent.hear().await {
            Ok(Some(collector_message::Body::Welcome(_))) => {}
            other => panic!("not welcome: {other:?}"),
        }
        // The receipt of a status comes after everything that the collector had to say by itself.
        let observed_at_ns = now_ns() as u64;
        agent
            .report(Status {
                observed_at_ns,
                ..Status::default()
            })
            .await;
        let mut known = Vec::new();
        loop {
            match agent
                .hear()
                .await
                .unwrap()
                .expect("the collector ended the stream")
            {
                collector_message::Body::Acknowledgement(acknowledgement) => {
                    let epoch = acknowledgement.epoch;
                    known.extend(
                        acknowledgement
                            .sequences
                            .iter()
                            .map(|sequence| (epoch, *sequence)),
                    );
                }
                collector_message::Body::Receipt(receipt) => {
                    assert_eq!(receipt.observed_at_ns, observed_at_ns);
                    return (agent, known);
                }
                other => panic!("neither an acknowledgement nor the receipt: {other:?}"),
            }
        }
    }

    pub(crate) async fn send(&self, body: agent_message::Body) {
        self.outgoing
            .send(AgentMessage { body: Some(body) })
            .await
            .unwrap();
    }

    pub(crate) async fn deliver(&self, batch: Batch) {
        self.send(agent_message::Body::Batch(seal(7, &batch))).await;
    }

    pub(crate) async fn report(&self, status: Status) {
        self.send(agent_message::Body::Status(status)).await;
    }

    /// Reports each second from now on, as agents do: one that says nothing for half a minute is sent away.
    pub(crate) fn keep_reporting(&self) {
        let outgoing = self.outgoing.downgrade();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let Some(outgoing) = outgoing.upgrade() else {
                    return;
                };
                let observed_at_ns = now_ns().unsigned_abs();
                let status = Status {
                    observed_at_ns,
                    ..Status::default()
                };
                let message = AgentMessage {
                    body: Some(agent_message::Body::Status(status)),
                };
                if outgoing.send(message).await.is_err() {
                    return;
                }
            }
        });
    }

    /// The collector's next message; `None` when it ended the stream.
    pub(crate) async fn hear(&mut self) -> Result<Option<collector_message::Body>, tonic::Status> {
        let message = tokio::time::timeout(PATIENCE, self.incoming.message())
            .await
            .expect("the collector is silent");
        Ok(message?.map(|message| message.body.expect("a message of no kind")))
    }

    /// Waits until each of `count` batches is acknowledged or refused: acknowledged sequences, and refusals.
    pub(crate) async fn settled(&mut self, count: usize) -> (Vec<u64>, Vec<(u64, String)>) {
        let (mut acknowledged, mut refused) = (Vec::new(), Vec::new());
        while acknowledged.len() + refused.len() < count {
            match self
                .hear()
                .await
                .unwrap()
                .expect("the collector ended the stream")
            {
                collector_message::Body::Acknowledgement(acknowledgement) => {
                    acknowledged.extend(acknowledgement.sequences);
                }
                collector_message::Body::Refusal(refusal) => refused.push((refusal.sequence, refusal.reason)),
                collector_message::Body::Welcome(_) => panic!("welcomed twice"),
                collector_message::Body::Window(_)
                | collector_message::Body::Receipt(_)
                | collector_message::Body::Probes(_)
                | collector_message::Body::Run(_) => {}
            }
        }
        (acknowledged, refused)
    }
}

/// A batch as a start of an agent sends it.
pub(crate) fn seal(epoch: u64, batch: &Batch) -> SealedBatch {
    let encoded = Bytes::from(batch.encode_to_vec());
    SealedBatch {
        epoch,
        stream: batch.stream,
        sequence: batch.sequence,
        checksum: crc32fast::hash(&encoded),
        encoded,
    }
}

pub(crate) fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64
}

/// Finished connections, opened a microsecond after another from a minute ago on: established ones, and each tenth
/// refused. Cookies go on from batch to batch.
pub(crate) fn batch(sequence: u64, rows: u32) -> Batch {
    batch_at(sequence, rows, now_ns() - 60_000_000_000)
}

/// The same, the first of them opened at `opened_ns`.
pub(crate) fn batch_at(sequence: u64, rows: u32, opened_ns: i64) -> Batch {
    let count = rows as usize;
    let is_refused = |row: usize| row % 10 == 9;
    let bytes = |of: fn(bool) -> u8| -> Bytes { (0..count).map(|row| of(is_refused(row))).collect() };
    let columns = ConnectionColumns {
        opened_ns_delta: (0..count)
            .map(|row| if row == 0 { opened_ns } else { 1000 })
            .collect(),
        cookie_delta: (0..count)
            .map(|row| {
                if row == 0 {
                    (sequence * u64::from(rows)) as i64
                } else {
                    1
                }
            })
            .collect(),
        process: (0..count).map(|row| (row % 3) as u32).collect(),
        path: (0..count).map(|row| u32::from(is_refused(row))).collect(),
        step_us: (0..count)
            .flat_map(|row| {
                if is_refused(row) {
                    vec![90]
                } else {
                    vec![120, 1000 + (row % 7) as u64, 30]
                }
            })
            .collect(),
        local_address: vec![0; count],
        remote_address: (0..count).map(|row| 1 + (row % 2) as u32).collect(),
        local_port: (0..count).map(|row| 32_768 + (row % 28_000) as u32).collect(),
        remote_port: (0..count)
            .map(|row| if is_refused(row) { 81 } else { 5432 })
            .collect(),
        bytes_sent: (0..count).map(|row| (row % 5000) as u64).collect(),
        bytes_received: (0..count).map(|row| (row % 90_000) as u64).collect(),
        segments_sent: vec![5; count],
        segments_received: vec![4; count],
        retransmits: vec![0; count],
        syn_retransmits: vec![0; count].into(),
        srtt_us: (0..count).map(|row| 100 + (row % 50) as u32).collect(),
        error: bytes(|is_refused| if is_refused { 111 } else { 0 }),
        role: vec![1; count].into(),
        outcome: bytes(|is_refused| if is_refused { 2 } else { 1 }),
        close_reason: bytes(|is_refused| u8::from(!is_refused)),
        attribution: vec![1; count].into(),
        flags: vec![FLAG_FIRST | FLAG_FINAL; count].into(),
        local_cause: bytes(u8::from),
        streamed: bytes::Bytes::new(),
        accept_wait: Vec::new(),
        processes: ["curl", "nginx", "a \"quoted\"\nname"]
            .into_iter()
            .zip(100..)
            .map(|(comm, pid)| Process {
                pid,
                comm: comm.to_owned(),
                cgroup_id: 9,
                netns: 4_026_531_840,
                service: String::new(),
            })
            .take(count)
            .collect(),
        paths: [&[2_u8, 1, 4, 7][..], &[2, 7]]
            .into_iter()
            .map(|states| Path {
                states: Bytes::from_static(states),
                truncated: false,
            })
            .take(count)
            .collect(),
        addresses: ["::ffff:10.0.0.1", "::ffff:10.0.0.2", "fd00::2"]
            .into_iter()
            .map(|ip| Bytes::copy_from_slice(&ip.parse::<std::net::Ipv6Addr>().unwrap().octets()))
            .collect::<Vec<_>>()
            .into_iter()
            .take(count * 2)
            .collect(),
    };
    Batch {
        stream: Stream::Connections.into(),
        sequence,
        rows,
        boot_id: "b1".to_owned(),
        clock_ns: 0,
        columns: Some(Columns::Connections(columns)),
    }
}
