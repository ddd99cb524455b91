//! What the gRPC port does not let in, or not for long: by real sockets, with frames that no library would send.

use std::time::Duration;

use bytes::Bytes;
use holdfast_collector::config::Limits;
use holdfast_collector::door::Pace;
use holdfast_proto::v1::query_client::QueryClient;
use holdfast_proto::v1::uplink_client::UplinkClient;
use holdfast_proto::v1::{
    AgentMessage, CollectorMessage, NodesRequest, SqlRequest, Status, agent_message, collector_message,
};
use http_body_util::StreamBody;
use hyper::body::Frame;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_prost::ProstCodec;

use crate::harness::{self, Collector, database};
use crate::synthetic::{Agent, batch, hello, now_ns, seal};

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `/metrics` has a line.
async fn shows(collector: &Collector, line: &str) {
    let shown = async {
        while !collector
            .page("/metrics")
            .await
            .1
            .lines()
            .any(|found| found == line)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, shown).await.is_err() {
        panic!("{line} is not in\n{}", collector.page("/metrics").await.1);
    }
}

async fn refused(collector: &Collector, reason: &str, count: u64) {
    shows(
        collector,
        &format!("holdfast_refusals_total{{reason=\"{reason}\"}} {count}"),
    )
    .await;
}

fn message(body: agent_message::Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

/// Opens the stream of an agent on a channel, and hears the first answer.
async fn deliver(
    channel: &Channel,
    id: &str,
) -> Result<(mpsc::Sender<AgentMessage>, Streaming<CollectorMessage>), tonic::Status> {
    let (outgoing, messages) = mpsc::channel(4);
    outgoing
        .send(message(agent_message::Body::Hello(hello(id))))
        .await
        .unwrap();
    let mut client = UplinkClient::new(channel.clone());
    let mut incoming = client.deliver(ReceiverStream::new(messages)).await?.into_inner();
    let first = incoming.message().await?.expect("an answer");
    assert!(matches!(first.body, Some(collector_message::Body::Welcome(_))));
    Ok((outgoing, incoming))
}

async fn channel(collector: &Collector) -> Channel {
    let endpoint = Channel::from_shared(collector.url()).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_one_agent() {
    let collector = Collector::start(database().await).await;
    let channel = channel(&collector).await;
    let (outgoing, mut incoming) = deliver(&channel, "a1").await.unwrap();
    let status = deliver(&channel, "a2").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status
            .message()
            .starts_with("this connection has a stream already"),
        "{status:?}"
    );
    refused(&collector, "crowd", 1).await;
    shows(&collector, "holdfast_agents_connected 1").await;

    // The first one does not notice.
    outgoing
        .send(message(agent_message::Body::Batch(seal(7, &batch(1, 10)))))
        .await
        .unwrap();
    loop {
        let answer = incoming.message().await.unwrap().unwrap();
        if let Some(collector_message::Body::Acknowledgement(acknowledgement)) = answer.body {
            assert_eq!(acknowledgement.sequences, [1]);
            break;
        }
    }
    // Once it has left, there is room for another one.
    drop((outgoing, incoming));
    shows(&collector, "holdfast_agents_connected 0").await;
    let _another = deliver(&channel, "a2").await.unwrap();
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_says_nothing_more_is_sent_away_and_one_that_reports_stays() {
    let limits = Limits {
        agents_pace: Pace {
            next: Some(Duration::from_millis(1_500)),
            ..harness::limits().agents_pace
        },
        ..harness::limits()
    };
    let collector = Collector::start_with(database().await, limits, true).await;
    let reporting = Agent::connect(collector.address, "reporting").await;
    let report = async {
        loop {
            let observed_at_ns = now_ns().unsigned_abs();
            let status = Status {
                observed_at_ns,
                ..Status::default()
            };
            reporting.report(status).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let silent = async {
        let mut silent = Agent::connect(collector.address, "silent").await;
        loop {
            match silent.hear().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => break status,
            }
        }
    };
    let status = tokio::select! {
        status = silent => status,
        never = report => match never {},
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    refused(&collector, "silent", 1).await;
    shows(&collector, "holdfast_agents_connected 1").await;
    collector.stop().await.unwrap();
}

/// A peer that says what it wants to, frame by frame (RFC 9113).
struct Peer(TcpStream);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The head of an agent's stream, each field as a literal without an index (RFC 7541, 6.2.2).
fn head() -> Vec<u8> {
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/holdfast.v1.Uplink/Deliver"),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
    .into_iter()
    .flat_map(|(name, value)| {
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    })
    .collect()
}

/// A message as gRPC frames it.
fn framed(message: &AgentMessage) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    [&[0], &(bytes.len() as u32).to_be_bytes()[..], &bytes].concat()
}

impl Peer {
    async fn connect(collector: &Collector) -> Self {
        let mut peer = Self(TcpStream::connect(collector.address).await.unwrap());
        peer.say(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        peer
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn begin(&mut self, stream: u32, hello: &AgentMessage) {
        self.say(&frame(HEADERS, END_HEADERS, stream, &head())).await;
        self.say(&frame(DATA, 0, stream, &framed(hello))).await;
    }

    /// Reads until the collector closes the connection.
    async fn closed(&mut self) {
        let mut bytes = Vec::new();
        let read = self.0.read_to_end(&mut bytes);
        // A reset is an end as well.
        let _ = tokio::time::timeout(PATIENCE, read)
            .await
            .expect("the collector closes it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_a_hundred_streams_takes_one_seat_and_the_others_are_counted() {
    let limits = Limits {
        max_agents: 2,
        ..harness::limits()
    };
    let collector = Collector::start_with(database().await, limits, true).await;
    let mut peer = Peer::connect(&collector).await;
    for number in 0..100 {
        let hello = message(agent_message::Body::Hello(hello(&format!("evil-{number}"))));
        peer.begin(1 + 2 * number, &hello).await;
    }
    refused(&collector, "crowd", 99).await;
    shows(&collector, "holdfast_agents_connected 1").await;
    let _good = Agent::connect(collector.address, "good").await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_does_not_come_to_its_end_takes_its_seat_for_so_long_only() {
    let limits = Limits {
        agents_pace: Pace {
            byte: Duration::from_millis(1_000),
            message: Duration::from_millis(2_000),
            next: None,
        },
        ..harness::limits()
    };
    let collector = Collector::start_with(database().await, limits, true).await;
    let large = framed(&message(agent_message::Body::Batch(seal(7, &batch(1, 1_000)))));
    let half = &large[..large.len() / 2];

    let mut stops = Peer::connect(&collector).await;
    stops
        .begin(1, &message(agent_message::Body::Hello(hello("stops"))))
        .await;
    stops.say(&frame(DATA, 0, 1, half)).await;
    shows(&collector, "holdfast_agents_connected 1").await;
    refused(&collector, "silent", 1).await;
    shows(&collector, "holdfast_agents_connected 0").await;

    // Byte by byte is no way around it.
    let mut trickles = Peer::connect(&collector).await;
    trickles
        .begin(1, &message(agent_message::Body::Hello(hello("trickles"))))
        .await;
    shows(&collector, "holdfast_agents_connected 1").await;
    let trickle = async {
        for byte in half {
            trickles.say(&frame(DATA, 0, 1, &[*byte])).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = refused(&collector, "silent", 2) => {}
        () = trickle => panic!("it may go on for ever"),
    }
    shows(&collector, "holdfast_agents_connected 0").await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http2_is_counted_and_a_look_at_the_port_is_not() {
    let collector = Collector::start(database().await).await;
    // Who looks whether the port is open, and who connects and has nothing to ask.
    drop(TcpStream::connect(collector.address).await.unwrap());
    drop(
        Channel::from_shared(collector.url())
            .unwrap()
            .connect()
            .await
            .unwrap(),
    );

    let mut counted = 0;
    for foreign in [
        &b"GET / HTTP/1.1\r\nHost: collector\r\n\r\n"[..],
        // TLS: the beginning of a handshake.
        &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03],
        &[0xa5; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
    ] {
        let mut peer = Peer(TcpStream::connect(collector.address).await.unwrap());
        peer.say(foreign).await;
        peer.closed().await;
        counted += 1;
        refused(&collector, "http2", counted).await;
    }
    // One that leaves in the middle of the preface.
    let mut leaves = TcpStream::connect(collector.address).await.unwrap();
    leaves.write_all(&PREFACE[..9]).await.unwrap();
    drop(leaves);
    counted += 1;
    refused(&collector, "http2", counted).await;

    for broken in [
        // Data of a stream that was never opened, a head that is no HPACK, and a frame that is larger than any may be.
        frame(DATA, 0, 9, b"what"),
        frame(HEADERS, END_HEADERS, 1, &[0xff; 40]),
        [&[0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1][..], &[0; 1 << 16]].concat(),
    ] {
        let mut peer = Peer::connect(&collector).await;
        // It may be closed before all is said.
        let _ = peer.0.write_all(&broken).await;
        peer.closed().await;
        counted += 1;
        refused(&collector, "http2", counted).await;
    }
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 10)).await;
    assert_eq!(agent.settled(1).await.0, [1]);
    drop(agent);
    shows(&collector, "holdfast_agents_connected 0").await;
    refused(&collector, "http2", counted).await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_method_that_is_not_there_is_refused_in_words_and_counted() {
    let collector = Collector::start(database().await).await;
    let channel = channel(&collector).await;
    let mut client = tonic::client::Grpc::new(channel);
    for (number, path) in [
        "/holdfast.v1.Uplink/Nothing",
        "/holdfast.v1.Query/Nothing",
        "/grpc.health.v1.Health/Check",
        "/",
    ]
    .into_iter()
    .enumerate()
    {
        client.ready().await.unwrap();
        let answer: Result<tonic::Response<CollectorMessage>, _> = client
            .unary(
                tonic::Request::new(NodesRequest::default()),
                PathAndQuery::from_static(path),
                ProstCodec::default(),
            )
            .await;
        let status = answer.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
        assert!(
            status.message().starts_with("this collector has no such method"),
            "{path}: {status:?}"
        );
        refused(&collector, "method", number as u64 + 1).await;
    }
    collector.stop().await.unwrap();
}

/// Begins a question of so many bytes, sends most of it and never the rest; the status once it is refused.
async fn half_asked(mut channel: Channel, bytes: u32) -> Code {
    let mut head = vec![0];
    head.extend(bytes.to_be_bytes());
    let piece = Bytes::from(vec![7; 50 << 10]);
    let pieces =
        std::iter::once(Bytes::from(head)).chain(std::iter::repeat_n(piece, bytes as usize / (51 << 10)));
    let frames = tokio_stream::iter(pieces.map(|bytes| Ok::<_, tonic::Status>(Frame::data(bytes))));
    let body = StreamBody::new(frames.chain(tokio_stream::pending()));
    let request = http::Request::post("/holdfast.v1.Query/Sql")
        .header("content-type", "application/grpc")
        .body(tonic::body::Body::new(body))
        .unwrap();
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .unwrap();
    let answer = channel.call(request).await.unwrap();
    let code = answer.headers().get("grpc-status").expect("refused at once");
    Code::from_bytes(code.as_bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_questions_together_take_so_much_and_small_ones_have_room_besides() {
    let collector = Collector::start(database().await).await;
    let mut asking = tokio::task::JoinSet::new();
    // Of 64 MiB, three quarters are for these, which come to three times 110 MiB.
    for _ in 0..2 {
        let channel = channel(&collector).await;
        for _ in 0..60 {
            asking.spawn(half_asked(channel.clone(), 1_000_000));
        }
    }
    let refused_at_once = async {
        for _ in 0..60 {
            let code = asking.join_next().await.unwrap().unwrap();
            assert_eq!(code, Code::ResourceExhausted);
        }
    };
    tokio::time::timeout(PATIENCE, refused_at_once)
        .await
        .expect("all of it was taken in");

    let mut client = QueryClient::new(channel(&collector).await);
    let question = SqlRequest {
        sql: "SELECT 1".to_owned(),
        format: String::new(),
    };
    client.sql(question).await.expect("a small question");
    asking.shutdown().await;
    collector.stop().await.unwrap();
}
