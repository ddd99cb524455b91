//! Agents of earlier revisions of the same protocol. They say what their own .proto file has (`proto/tests/earlier`), under its
//! numbers, and read with it what today's collector answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use holdfast_collector::assertion::cause::Switch;
use holdfast_collector::assertion::coverage::{Coverage, Need, Standing, Window};
use holdfast_collector::ingest::decode::AgentSample;
use holdfast_proto::v1::{
    AgentMessage, Batch, Cgroup, CgroupRows, Gap, GapReason, GapRows, Listener, ListenerRows, Namespace,
    NamespaceRows, OpenConnections, Overhead, OverheadRows, Peer, PeerRows, Process, SealedBatch, Status,
    Stream, StreamCounters, Watch, agent_message, batch::Columns,
};
use prost::Message;
use protox::prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, ReflectMessage, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;

use crate::harness::{Collector, database, number};
use crate::store_engine::ask;
use crate::synthetic::{batch, hello, now_ns};
use crate::syscalls;

/// The first revision whose agents deliver to today's collector, one from when most streams were there, and the last one that
/// was kept.
const UNDERSTOOD: [&str; 3] = ["5f9364c", "438144c", "0c1c07b"];

/// The draft before batches were sealed, under the same number of the protocol. No release has it.
const DRAFT: &str = "624e217";

/// What a .proto file describes.
struct Revision(DescriptorPool);

impl Revision {
    fn today() -> Self {
        Self::read(&proto().join("proto"), "holdfast/v1.proto")
    }

    fn earlier(commit: &str) -> Self {
        Self::read(&proto().join("tests/earlier"), &format!("{commit}.proto"))
    }

    fn read(include: &Path, source: &str) -> Self {
        let files = protox::compile([source], [include]).unwrap();
        Self(DescriptorPool::from_file_descriptor_set(files).unwrap())
    }

    fn message(&self, name: &str) -> MessageDescriptor {
        self.0
            .get_message_by_name(&format!("holdfast.v1.{name}"))
            .unwrap()
    }

    /// A message of today as this revision writes it: what it calls so, under its own numbers, and nothing else.
    fn bytes_of(&self, name: &str, message: &impl Message) -> Bytes {
        let today = DynamicMessage::decode(Self::today().message(name), &*message.encode_to_vec()).unwrap();
        translated(&today, &self.message(name)).encode_to_vec().into()
    }

    /// What an agent says.
    fn said(&self, body: agent_message::Body) -> Bytes {
        self.bytes_of("AgentMessage", &AgentMessage { body: Some(body) })
    }

    /// A batch as an agent of this revision seals it.
    fn sealed(&self, batch: &Batch) -> SealedBatch {
        let encoded = self.bytes_of("Batch", batch);
        SealedBatch {
            epoch: 7,
            stream: batch.stream,
            sequence: batch.sequence,
            checksum: crc32fast::hash(&encoded),
            encoded,
        }
    }
}

fn proto() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto")
}

/// What of a message another revision has, by the names of its fields and values.
fn translated(message: &DynamicMessage, into: &MessageDescriptor) -> DynamicMessage {
    let mut translation = DynamicMessage::new(into.clone());
    for (field, value) in message.fields() {
        if let Some(known) = into.get_field_by_name(field.name()) {
            translation.set_field(&known, translated_value(value, &field.kind(), &known.kind()));
        }
    }
    translation
}

fn translated_value(value: &Value, from: &Kind, into: &Kind) -> Value {
    match (value, from, into) {
        (Value::List(values), ..) => {
            let values = values.iter().map(|value| translated_value(value, from, into));
            Value::List(values.collect())
        }
        (Value::Map(_), ..) => value.clone(),
        (Value::Message(message), _, Kind::Message(into)) => Value::Message(translated(message, into)),
        (Value::EnumNumber(number), Kind::Enum(from), Kind::Enum(into)) => {
            let name = from.get_value(*number).unwrap().name().to_owned();
            // What the earlier one has no word for it cannot say.
            Value::EnumNumber(into.get_value_by_name(&name).map_or(0, |value| value.number()))
        }
        _ => value.clone(),
    }
}

/// An agent of whatever revision: bytes out, bytes in.
struct Agent {
    outgoing: mpsc::Sender<Bytes>,
    incoming: Streaming<Bytes>,
}

impl Agent {
    async fn dial(collector: &Collector) -> Self {
        let channel = Endpoint::from_shared(collector.url())
            .unwrap()
            .connect()
            .await
            .unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let (outgoing, messages) = mpsc::channel(64);
        let path = PathAndQuery::from_static("/holdfast.v1.Uplink/Deliver");
        let messages = tonic::Request::new(ReceiverStream::new(messages));
        let incoming = client
            .streaming(messages, path, Plain)
            .await
            .unwrap()
            .into_inner();
        Self { outgoing, incoming }
    }

    async fn say(&self, bytes: Bytes) {
        self.outgoing.send(bytes).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Bytes, tonic::Status> {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(30), self.incoming.message());
        Ok(answer
            .await
            .expect("the collector is silent")?
            .expect("it ended the stream"))
    }

    /// Hears until a message has this field, every one read by the revision. Gives that field.
    async fn hear_of(&mut self, revision: &Revision, wanted: &str) -> DynamicMessage {
        loop {
            let bytes = self.hear().await.unwrap();
            let read = read_alike(revision, &bytes);
            let of_kind = read.descriptor().get_field_by_name(wanted).unwrap();
            if read.has_field(&of_kind) {
                return read.get_field(&of_kind).as_message().unwrap().clone();
            }
        }
    }
}

/// Reads what today's collector says by the earlier revision, which has to understand what it has words for.
fn read_alike(revision: &Revision, bytes: &Bytes) -> DynamicMessage {
    let name = "CollectorMessage";
    let known = |message: &DynamicMessage| translated(message, &revision.message(name));
    let earlier = DynamicMessage::decode(revision.message(name), bytes.clone()).unwrap();
    let today = DynamicMessage::decode(Revision::today().message(name), bytes.clone()).unwrap();
    assert_eq!(known(&earlier), known(&today));
    earlier
}

fn number_of(message: &DynamicMessage, field: &str) -> u64 {
    let value = message.get_field_by_name(field).unwrap().into_owned();
    match value {
        Value::U32(number) => number.into(),
        Value::U64(number) => number,
        Value::EnumNumber(number) => number.unsigned_abs().into(),
        other => panic!("{field} is {other:?}"),
    }
}

/// Hands bytes over as they are.
#[derive(Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        into.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

fn counted() -> Status {
    Status {
        observed_at_ns: now_ns().unsigned_abs(),
        epoch: 7,
        streams: vec![StreamCounters {
            stream: Stream::Connections.into(),
            netns: 4_026_531_840,
            opened: 200,
            closed: 200,
            received: 200,
            acknowledged: 200,
            ..StreamCounters::default()
        }],
        ..Status::default()
    }
}

fn gap() -> Batch {
    let second_ns = 1_000_000_000;
    let now_ns = now_ns().unsigned_abs();
    let gap = Gap {
        epoch: 7,
        stream: Stream::Connections.into(),
        first_sequence: 9,
        last_sequence: 12,
        rows: 44,
        first_ns: now_ns - 3 * second_ns,
        last_ns: now_ns - second_ns,
        reason: GapReason::SpoolFull.into(),
        ..Gap::default()
    };
    Batch {
        stream: Stream::Gaps.into(),
        sequence: 1,
        rows: 1,
        boot_id: "b1".to_owned(),
        clock_ns: 0,
        columns: Some(Columns::Gaps(GapRows { gaps: vec![gap] })),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_agents_deliver_to_todays_collector_and_understand_its_answers() {
    for commit in UNDERSTOOD {
        let revision = Revision::earlier(commit);
        let store = database().await;
        let collector = Collector::start(store.clone()).await;
        let mut agent = Agent::dial(&collector).await;

        agent
            .say(revision.said(agent_message::Body::Hello(hello("a1"))))
            .await;
        let welcome = agent.hear_of(&revision, "welcome").await;
        assert_eq!(number_of(&welcome, "protocol"), 1);
        let window = welcome
            .get_field_by_name("window")
            .unwrap()
            .as_message()
            .unwrap()
            .clone();
        assert!(number_of(&window, "batches") > 0 && number_of(&window, "bytes") > 0);

        let status = counted();
        let observed_at_ns = status.observed_at_ns;
        agent
            .say(revision.said(agent_message::Body::Status(status)))
            .await;
        let receipt = agent.hear_of(&revision, "receipt").await;
        assert_eq!(number_of(&receipt, "observed_at_ns"), observed_at_ns);

        for batch in [batch(1, 200), gap()] {
            let sealed = revision.sealed(&batch);
            agent.say(revision.said(agent_message::Body::Batch(sealed))).await;
            let acknowledgement = agent.hear_of(&revision, "acknowledgement").await;
            assert_eq!(
                number_of(&acknowledgement, "stream"),
                u64::try_from(batch.stream).unwrap()
            );
            assert_eq!(number_of(&acknowledgement, "epoch"), 7);
            let sequences = acknowledgement
                .get_field_by_name("sequences")
                .unwrap()
                .into_owned();
            assert_eq!(sequences, Value::List(vec![Value::U64(batch.sequence)]));
        }
        // What is no batch of any revision.
        let mut bad = batch(2, 10);
        bad.rows = 11;
        agent
            .say(revision.said(agent_message::Body::Batch(revision.sealed(&bad))))
            .await;
        let refusal = agent.hear_of(&revision, "refusal").await;
        assert_eq!(
            (number_of(&refusal, "sequence"), number_of(&refusal, "epoch")),
            (2, 7)
        );
        collector.stop().await.unwrap();

        // A row is what it would be today, and what its agent did not say is told as not known.
        let holds = async |condition: &str, table: &str, rows: u64| {
            let sql = format!("SELECT countIf({condition}) FROM {table}");
            assert_eq!(number(&store, &sql).await, rows, "{commit}: {condition}");
        };
        assert_eq!(number(&store, "SELECT count() FROM connections").await, 200);
        for (condition, rows) in [
            (
                "node = 'node-a1' AND agent_epoch = 7 AND sequence = 1 AND role = 'active'",
                200,
            ),
            (
                "attribution = 'exact' AND netns = 4026531840 AND cgroup_id = 9",
                200,
            ),
            ("comm = 'nginx' AND pid = 101", 67),
            (
                "outcome = 'established' AND remote_port = 5432 AND close_reason = 'finished'",
                180,
            ),
            (
                "outcome = 'established' AND connect_us = 120 AND duration_us BETWEEN 1150 AND 1156",
                180,
            ),
            (
                "outcome = 'refused' AND remote_port = 81 AND errno = 111 AND connect_us = 90",
                20,
            ),
            (
                "local_ip = toIPv6('10.0.0.1') AND local_port BETWEEN 32768 AND 32967",
                200,
            ),
            (
                "segments_sent = 5 AND segments_received = 4 AND retransmits = 0",
                200,
            ),
            (
                "opened_at > now() - INTERVAL 2 MINUTE AND closed_at <= now64(9)",
                200,
            ),
            ("accept_wait_us IS NULL AND resets = 'none'", 200),
        ] {
            holds(condition, "connections", rows).await;
        }
        // The one thing that the oldest does not say of a refused attempt.
        let named = u64::from(commit != UNDERSTOOD[0]) * 20;
        holds("local_cause = 'refused_by_peer'", "attempts", named).await;
        holds("local_cause = ''", "attempts", 200 - named).await;
        holds(
            "stream = 'connections' AND first_sequence = 9 AND rows = 44",
            "gaps",
            1,
        )
        .await;
        // Which is another thing than that it is off.
        holds("off['syscalls'] = 'untold'", "agent_samples", 1).await;
        let balance =
            "SELECT opened, rows_stored, is_witnessed, difference FROM ledger WHERE stream = 'connections'";
        assert_eq!(ask(&*store, balance).await, "200\t200\tfalse\t0\n", "{commit}");
    }
}

/// What a status says to who judges, once it went through what a revision has words for.
fn heard(revision: &Revision, status: &Status, received_ns: i64) -> AgentSample {
    let bytes = revision.bytes_of("Status", status);
    AgentSample::of(&Status::decode(bytes).unwrap(), received_ns, String::new())
}

#[test]
fn where_an_earlier_agent_does_not_tell_enough_for_a_verdict_the_reason_is_to_upgrade_it() {
    const SECOND_NS: i64 = 1_000_000_000;
    let began_ns = now_ns();
    let ten_seconds = |revision: &Revision, needs: &[Need]| -> Vec<Standing> {
        let mut coverage = Coverage::default();
        for second in 0..=10 {
            let at_ns = began_ns + second * SECOND_NS;
            let watch = |stream: Stream| Watch {
                stream: stream.into(),
                since_ns: (began_ns - SECOND_NS).unsigned_abs(),
                ..Watch::default()
            };
            let status = Status {
                observed_at_ns: at_ns.unsigned_abs(),
                watermark_ns: at_ns.unsigned_abs(),
                attempts_watermark_ns: at_ns.unsigned_abs(),
                watches: [Stream::Syscalls, Stream::Listeners, Stream::OpenConnections]
                    .map(watch)
                    .to_vec(),
                ..counted()
            };
            coverage.hear(&heard(revision, &status, at_ns).report("web-1", 7, at_ns));
        }
        let window = Window {
            from_ns: began_ns + 2 * SECOND_NS,
            to_ns: began_ns + 7 * SECOND_NS,
        };
        let now_ns = began_ns + 10 * SECOND_NS;
        let standing =
            |need: &Need| coverage.standing("web-1", window, *need, now_ns, Duration::from_secs(10));
        needs.iter().map(standing).collect()
    };
    let needs = [
        Need::Records,
        Need::Attempts,
        Need::Samples(Some(Switch::Syscalls)),
        Need::Samples(Some(Switch::OpenConnections)),
    ];
    let because = |standing: &Standing| match standing {
        Standing::Incomplete(cause) => cause.to_string(),
        other => format!("{other:?}"),
    };
    let complete = "Complete";
    let no_watermark = "web-1 does not tell up to when it has delivered: upgrade its agent";
    let untold = |name| format!("the agent of web-1 does not say whether {name} is on: upgrade it");
    let (syscalls, open) = (&*untold("syscalls"), &*untold("open-connections"));
    for (revision, expected) in [
        (
            Revision::earlier(UNDERSTOOD[0]),
            [no_watermark, no_watermark, syscalls, open],
        ),
        (
            Revision::earlier(UNDERSTOOD[1]),
            [complete, complete, syscalls, open],
        ),
        (Revision::earlier(UNDERSTOOD[2]), [complete; 4]),
        (Revision::today(), [complete; 4]),
    ] {
        let found = ten_seconds(&revision, &needs);
        assert_eq!(found.iter().map(because).collect::<Vec<_>>(), expected);
    }
}

/// A batch of each kind of looks and intervals that an agent made when most streams were there.
fn looks() -> Vec<Batch> {
    let now_ns = now_ns().unsigned_abs();
    let second_ns = 1_000_000_000;
    let Some(Columns::Connections(mut open)) = batch(1, 4).columns else {
        unreachable!()
    };
    open.flags = vec![0; 4].into();
    let process = Process {
        pid: 100,
        comm: "postgres".to_owned(),
        ..Process::default()
    };
    let of = |stream: Stream, rows: u32, columns: Columns| Batch {
        stream: stream.into(),
        sequence: 1,
        rows,
        boot_id: "b1".to_owned(),
        clock_ns: 0,
        columns: Some(columns),
    };
    let address = Bytes::from_static(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 0, 0, 1]);
    vec![
        of(
            Stream::OpenConnections,
            4,
            Columns::OpenConnections(OpenConnections {
                observed_at_ns: now_ns,
                one_in: 1,
                connections: Some(open),
            }),
        ),
        of(
            Stream::Listeners,
            1,
            Columns::Listeners(ListenerRows {
                observed_at_ns: now_ns,
                listeners: vec![Listener {
                    cookie: 9,
                    address: vec![0; 16].into(),
                    port: 5432,
                    process: Some(process),
                    backlog: 3,
                    backlog_limit: 128,
                    ..Listener::default()
                }],
            }),
        ),
        of(
            Stream::Overhead,
            1,
            Columns::Overhead(OverheadRows {
                intervals: vec![Overhead {
                    began_ns: now_ns - 10 * second_ns,
                    ended_ns: now_ns,
                    cpus: 2,
                    agent_cpu_ns: 1_000_000,
                    resident_bytes: 30 << 20,
                    ..Overhead::default()
                }],
            }),
        ),
        of(
            Stream::Namespaces,
            1,
            Columns::Namespaces(NamespaceRows {
                observed_at_ns: now_ns,
                namespaces: vec![Namespace {
                    netns: 4_026_531_840,
                    addresses: vec![address.clone()],
                    listen_overflows: 5,
                    ..Namespace::default()
                }],
            }),
        ),
        of(
            Stream::Peers,
            1,
            Columns::Peers(PeerRows {
                began_ns: now_ns - second_ns,
                ended_ns: now_ns,
                peers: vec![Peer {
                    netns: 4_026_531_840,
                    address,
                    resets_received: 2,
                    ..Peer::default()
                }],
            }),
        ),
        of(
            Stream::Cgroups,
            1,
            Columns::Cgroups(CgroupRows {
                observed_at_ns: now_ns,
                cgroups: vec![Cgroup {
                    id: 9,
                    path: "/system.slice/nginx.service".to_owned(),
                    unit: "nginx.service".to_owned(),
                    ..Cgroup::default()
                }],
            }),
        ),
        syscalls::interval(1),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stream_of_an_earlier_agent_is_stored_as_it_was_meant() {
    let revision = Revision::earlier(UNDERSTOOD[1]);
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::dial(&collector).await;
    agent
        .say(revision.said(agent_message::Body::Hello(hello("a1"))))
        .await;
    agent.hear_of(&revision, "welcome").await;
    for batch in looks() {
        let sealed = revision.sealed(&batch);
        agent.say(revision.said(agent_message::Body::Batch(sealed))).await;
        let acknowledgement = agent.hear_of(&revision, "acknowledgement").await;
        let stream = number_of(&acknowledgement, "stream");
        assert_eq!(stream, u64::try_from(batch.stream).unwrap());
    }
    collector.stop().await.unwrap();
    for (condition, table, rows) in [
        ("remote_port = 5432 AND comm != ''", "open_connections", 4),
        (
            "local_port = 5432 AND backlog = 3 AND backlog_limit = 128 AND pid = 100",
            "listeners",
            1,
        ),
        // What it did not say is not known, which is no zero.
        (
            "namespace_overflows IS NULL AND namespace_drops IS NULL",
            "listeners",
            1,
        ),
        ("resident_bytes = 31457280", "overhead", 1),
        ("netns = 4026531840 AND listen_overflows = 5", "namespaces", 1),
        ("netns = 4026531840 AND resets_received = 2", "peers", 1),
        ("unit = 'nginx.service'", "cgroups", 1),
        ("pid IN (100, 101) AND calls > 0", "syscalls", 3),
    ] {
        let sql = format!("SELECT countIf({condition}) FROM {table}");
        assert_eq!(number(&store, &sql).await, rows, "{condition}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_draft_of_the_protocol_says_is_never_taken_for_something_else() {
    let draft = Revision::earlier(DRAFT);
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::dial(&collector).await;
    agent
        .say(draft.said(agent_message::Body::Hello(hello("a1"))))
        .await;
    // Its welcome had a number where there is a window today, so it goes no further than this.
    let welcome = agent.hear().await.unwrap();
    assert!(DynamicMessage::decode(draft.message("CollectorMessage"), welcome).is_err());
    // One that did would send its batches without an envelope.
    let mut message = DynamicMessage::new(draft.message("AgentMessage"));
    let today =
        DynamicMessage::decode(Revision::today().message("Batch"), &*batch(1, 20).encode_to_vec()).unwrap();
    let unsealed = translated(&today, &draft.message("Batch"));
    message.set_field_by_name("batch", Value::Message(unsealed));
    agent.say(message.encode_to_vec().into()).await;
    agent.hear_of(&Revision::today(), "refusal").await;
    // A status with something else where a yes or no is today.
    agent.say(Bytes::from_static(&[0x1a, 0x02, 0x52, 0x00])).await;
    let status = loop {
        if let Err(status) = agent.hear().await {
            break status;
        }
    };
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(
        status
            .message()
            .contains("if the agent (0.1.0) is of another version than this collector (")
            && status.message().ends_with("upgrade the older of the two"),
        "{status:?}"
    );
    collector.stop().await.unwrap();
    assert_eq!(number(&store, "SELECT count() FROM connection_records").await, 0);
}
