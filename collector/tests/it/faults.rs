//! What goes wrong on either side loses nothing, adds nothing, and holds up nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::BufMut;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{Block, Chunks, Query, Store, StoreError};
use holdfast_proto::v1::batch::Columns;
use holdfast_proto::v1::uplink_client::UplinkClient;
use holdfast_proto::v1::{
    AgentMessage, CollectorMessage, Hello, Status, Stream, StreamCounters, agent_message, collector_message,
};
use prost::Message;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::harness::{Collector, database, limits, number};
use crate::synthetic::{Agent, batch, hello, now_ns, seal};

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_batch_is_refused_and_counted_and_does_not_block_those_behind_it() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 10)).await;
    let mut bad = batch(2, 10);
    let Some(Columns::Connections(columns)) = &mut bad.columns else {
        unreachable!()
    };
    columns.process[4] = 77;
    agent.deliver(bad).await;
    agent.deliver(batch(3, 10)).await;
    let (acknowledged, refused) = agent.settled(3).await;
    assert_eq!(acknowledged, [1, 3]);
    assert_eq!(
        refused,
        [(
            2,
            "process of row 4 is 77, and the dictionary has 3 entries".to_owned()
        )]
    );
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 20);
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_refusals_total{reason=\"dictionary\"} 1\n"),
        "{metrics}"
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_newer_agent_has_is_refused_with_the_advice_to_upgrade_and_nothing_else_of_it_is() {
    const NEWER: i32 = 99;
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let counted = |stream: i32, dropped: u64| StreamCounters {
        stream,
        opened: 12,
        dropped,
        ..StreamCounters::default()
    };
    let status = Status {
        observed_at_ns: now_ns().unsigned_abs(),
        streams: vec![counted(NEWER, 5), counted(Stream::Connections.into(), 3)],
        ..Status::default()
    };
    agent.report(status).await;
    let mut newer = batch(1, 10);
    newer.stream = NEWER;
    agent.deliver(newer).await;
    let refusal = loop {
        if let Some(collector_message::Body::Refusal(refusal)) = agent.hear().await.unwrap() {
            break refusal;
        }
    };
    // Under another name the agent would wait for an answer for ever.
    assert_eq!((refusal.stream, refusal.sequence, refusal.epoch), (NEWER, 1, 7));
    assert!(refusal.reason.contains("upgrade the collector"), "{refusal:?}");
    agent.deliver(batch(1, 10)).await;
    assert_eq!(agent.settled(1).await.0, [1]);
    // So is a batch by what it says that only a newer agent knows.
    let mut newer = batch(2, 10);
    let Some(Columns::Connections(columns)) = &mut newer.columns else {
        unreachable!()
    };
    columns.outcome = vec![99; 10].into();
    agent.deliver(newer).await;
    let refused = agent.settled(1).await.1;
    let advice = "outcome of row 0 is 99, which this collector does not know: if the agent is newer, upgrade the collector";
    assert_eq!(refused, [(2, advice.to_owned())]);
    collector.stop().await.unwrap();
    for (sql, found) in [
        ("SELECT count() FROM connections", 10),
        ("SELECT sum(opened) FROM ledger WHERE stream = 'connections'", 12),
        // What is nothing to any question here makes no answer incomplete.
        ("SELECT max(dropped) FROM agent_samples", 3),
    ] {
        assert_eq!(number(&store, sql).await, found, "{sql}");
    }
}

/// Waits until so many batches are set aside.
async fn set_aside(collector: &Collector, batches: u64) {
    let line = format!("holdfast_batches_set_aside_total {batches}\n");
    while !collector.page("/metrics").await.1.contains(&line) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_its_content_is_set_aside_with_the_reason() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let mut bad = batch(1, 10);
    let Some(Columns::Connections(columns)) = &mut bad.columns else {
        unreachable!()
    };
    columns.process[4] = 77;
    agent.deliver(bad.clone()).await;
    // Bytes that were changed on the way say nothing of who sealed them.
    let mut harmed = seal(7, &batch(2, 10));
    harmed.checksum ^= 1;
    agent.send(agent_message::Body::Batch(harmed)).await;
    assert_eq!(agent.settled(2).await.1.len(), 2);
    set_aside(&collector, 1).await;

    let encoded = seal(7, &bad).encoded;
    let hex: String = encoded.iter().map(|byte| format!("{byte:02X}")).collect();
    for condition in [
        "node = 'node-a1' AND agent_id = 'a1' AND agent_epoch = 7 AND stream = 'connections' AND sequence = 1",
        "reason = 'process of row 4 is 77, and the dictionary has 3 entries' AND rows = 10",
        "refused_at > now() - INTERVAL 1 MINUTE AND refused_at <= now64(9)",
        &format!("encoded_bytes = {} AND hex(encoded) = '{hex}'", encoded.len()),
    ] {
        let sql = format!("SELECT countIf({condition}) FROM refused_batches");
        assert_eq!(number(&store, &sql).await, 1, "{condition}");
    }
    assert_eq!(number(&store, "SELECT count() FROM refused_batches").await, 1);

    // One agent cannot fill the table: the rest is counted.
    for sequence in 3..=42 {
        bad.sequence = sequence;
        agent.deliver(bad.clone()).await;
    }
    assert_eq!(agent.settled(40).await.1.len(), 40);
    set_aside(&collector, 16).await;
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_batches_not_set_aside_total 25\n"),
        "{metrics}"
    );
    collector.stop().await.unwrap();
    assert_eq!(number(&store, "SELECT count() FROM refused_batches").await, 16);
}

/// Dials, sends this as the first message, and gives the status that the stream ends with.
async fn turned_away(collector: &Collector, first: agent_message::Body) -> tonic::Status {
    let mut agent = Agent::dial(collector.address).await;
    agent.send(first).await;
    agent.hear().await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_fit_is_turned_away_with_the_reason() {
    let collector = Collector::start(database().await).await;
    let old = turned_away(
        &collector,
        agent_message::Body::Hello(Hello {
            protocol: 0,
            ..hello("a1")
        }),
    )
    .await;
    assert_eq!(old.code(), Code::FailedPrecondition);
    assert_eq!(
        old.message(),
        "the agent speaks protocol 0 and this collector 1: upgrade the agent"
    );
    let new = turned_away(
        &collector,
        agent_message::Body::Hello(Hello {
            protocol: 2,
            ..hello("a1")
        }),
    )
    .await;
    assert_eq!(
        new.message(),
        "the agent speaks protocol 2 and this collector 1: upgrade the collector"
    );
    let rude = turned_away(&collector, agent_message::Body::Batch(seal(7, &batch(1, 1)))).await;
    assert_eq!(
        (rude.code(), rude.message()),
        (Code::InvalidArgument, "the first message must be Hello")
    );
    let nameless = turned_away(
        &collector,
        agent_message::Body::Hello(Hello {
            node: String::new(),
            ..hello("a1")
        }),
    )
    .await;
    assert_eq!(
        (nameless.code(), nameless.message()),
        (Code::InvalidArgument, "the node of the agent is empty")
    );
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_refusals_total{reason=\"protocol\"} 2\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("holdfast_refusals_total{reason=\"hello\"} 2\n"),
        "{metrics}"
    );
    assert!(metrics.contains("holdfast_agents_connected 0\n"), "{metrics}");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_ends_its_stream_and_no_other() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut good = Agent::connect(collector.address, "good").await;
    let mut greedy = Agent::connect(collector.address, "greedy").await;
    greedy.deliver(batch(1, 131_072)).await;
    let status = greedy.hear().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("too large"), "{status:?}");
    good.deliver(batch(1, 10)).await;
    assert_eq!(good.settled(1).await.0, [1]);
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 10);
    collector.stop().await.unwrap();
}

/// Bytes on the agents' port, whatever they are; answers as usual.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = CollectorMessage;
    type Encoder = Self;
    type Decoder = <ProstCodec<(), CollectorMessage> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<(), CollectorMessage>::default().decoder()
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = tonic::Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), tonic::Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_compressed_are_refused_and_counted() {
    let collector = Collector::start(database().await).await;
    let mut client = UplinkClient::connect(collector.url()).await.unwrap();
    let mut request = tonic::Request::new(tokio_stream::pending());
    let encoding = "grpc-encoding";
    request.metadata_mut().insert(encoding, "gzip".parse().unwrap());
    let status = client.deliver(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    assert!(status.message().contains("compressed"), "{status:?}");
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_refusals_total{reason=\"unreadable\"} 1\n"),
        "{metrics}"
    );
    collector.stop().await.unwrap();
}

/// Sends these messages on one stream, and gives the status that it ends with.
async fn ends_with(collector: &Collector, messages: &[&[u8]]) -> tonic::Status {
    let channel = Endpoint::from_shared(collector.url())
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let messages: Vec<Vec<u8>> = messages.iter().map(|message| message.to_vec()).collect();
    // The stream stays open: it is the collector that ends it.
    let messages = tokio_stream::iter(messages).chain(tokio_stream::pending());
    let path = PathAndQuery::from_static("/holdfast.v1.Uplink/Deliver");
    let mut answers = client
        .streaming(tonic::Request::new(messages), path, Raw)
        .await
        .unwrap()
        .into_inner();
    loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without a status"),
            Err(status) => return status,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_or_is_out_of_place_ends_its_stream_with_a_status_and_is_counted() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let message = |body| AgentMessage { body: Some(body) }.encode_to_vec();
    let hello = message(agent_message::Body::Hello(hello("a1")));
    let batch = message(agent_message::Body::Batch(seal(7, &batch(1, 10))));
    let garbage = &[0xff_u8; 40][..];
    // Field 15 of another kind: what a newer agent may say.
    let unknown = &[0x7a, 0x00][..];
    for (messages, reason) in [
        (&[garbage][..], "failed to decode Protobuf message"),
        (&[&hello[..hello.len() - 1]], "failed to decode Protobuf message"),
        (&[&hello, garbage], "failed to decode Protobuf message"),
        (
            &[&hello, &batch[..batch.len() - 1]],
            "failed to decode Protobuf message",
        ),
        (&[&[]], "the first message must be Hello"),
        (&[&batch], "the first message must be Hello"),
        (&[&hello, &hello], "a second Hello in one stream"),
        (
            &[&hello, &[]],
            "a message of no known kind: upgrade the collector",
        ),
        (
            &[&hello, unknown],
            "a message of no known kind: upgrade the collector",
        ),
    ] {
        let status = ends_with(&collector, messages).await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(reason), "{status:?} is not {reason:?}");
    }
    let metrics = collector.page("/metrics").await.1;
    for line in [
        "holdfast_refusals_total{reason=\"unreadable\"} 6\n",
        "holdfast_refusals_total{reason=\"hello\"} 3\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert_eq!(number(&store, "SELECT count() FROM connection_records").await, 0);
    collector.stop().await.unwrap();
}

/// A store that is away for some inserts, or refuses those that contain a text.
pub(crate) struct Troubled {
    pub(crate) store: Embedded,
    /// The inserts that suffer from it, by table and token.
    pub(crate) concerns: fn(&str, &str) -> bool,
    /// Inserts that still fail.
    pub(crate) away: AtomicUsize,
    pub(crate) refuses: Option<&'static str>,
    /// Rows that get there in time.
    pub(crate) rows_in_time: usize,
    /// Rows that its disk has room for at once.
    pub(crate) rows_with_room: AtomicUsize,
}

impl Troubled {
    /// Without any trouble.
    pub(crate) fn around(store: Embedded) -> Self {
        Self {
            store,
            concerns: |_, _| true,
            away: AtomicUsize::new(0),
            refuses: None,
            rows_in_time: usize::MAX,
            rows_with_room: AtomicUsize::new(usize::MAX),
        }
    }
}

#[async_trait]
impl Store for Troubled {
    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        if !(self.concerns)(table, token) {
            return self.store.insert(table, token, block).await;
        }
        let is_away = self
            .away
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        if is_away {
            return Err(StoreError::Unavailable {
                message: "gone fishing".to_owned(),
            });
        }
        if block.rows > self.rows_in_time {
            return Err(StoreError::LeaseEnded);
        }
        if block.rows > self.rows_with_room.load(Ordering::SeqCst) {
            return Err(StoreError::Full {
                message: "cannot reserve space".to_owned(),
            });
        }
        let contains = |text: &str| {
            block
                .native
                .windows(text.len())
                .any(|window| window == text.as_bytes())
        };
        if self.refuses.is_some_and(contains) {
            return Err(StoreError::Rejected {
                code: 117,
                message: "not this one".to_owned(),
            });
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
async fn a_store_that_comes_back_has_every_row_once() {
    let store = database().await;
    let troubled = Troubled {
        away: AtomicUsize::new(4),
        ..Troubled::around((*store).clone())
    };
    let collector = Collector::start(Arc::new(troubled)).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    for sequence in 1..=30 {
        agent.deliver(batch(sequence, 100)).await;
    }
    let (mut acknowledged, refused) = agent.settled(30).await;
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, (1..=30).collect::<Vec<_>>());
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 3000);
    assert_eq!(
        number(&store, "SELECT uniqExact(sequence, cookie) FROM connections").await,
        3000
    );
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_store_unavailable_total 4\n"),
        "{metrics}"
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_too_large_for_the_way_to_the_store_is_stored_in_parts() {
    let store = database().await;
    let troubled = Troubled {
        rows_in_time: 250,
        ..Troubled::around((*store).clone())
    };
    let collector = Collector::start(Arc::new(troubled)).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    for sequence in 1..=9 {
        agent.deliver(batch(sequence, 100)).await;
    }
    let (mut acknowledged, refused) = agent.settled(9).await;
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, (1..=9).collect::<Vec<_>>());
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(
        number(&store, "SELECT uniqExact(sequence, cookie) FROM connections").await,
        900
    );
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 900);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_for_which_the_disk_has_no_room_holds_up_none_that_came_with_it() {
    let store = database().await;
    let troubled = Arc::new(Troubled {
        rows_with_room: AtomicUsize::new(50),
        ..Troubled::around((*store).clone())
    });
    let mut limits = limits();
    // All of it is one block.
    limits.gather_interval = Duration::from_secs(2);
    let collector = Collector::start_with(troubled.clone(), limits, true).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 100)).await;
    for sequence in 2..=5 {
        agent.deliver(batch(sequence, 20)).await;
    }
    let (mut acknowledged, refused) = agent.settled(4).await;
    acknowledged.sort_unstable();
    assert_eq!((acknowledged, refused), (vec![2, 3, 4, 5], vec![]));
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 80);
    troubled.rows_with_room.store(usize::MAX, Ordering::SeqCst);
    assert_eq!(agent.settled(1).await, (vec![1], vec![]));
    collector.stop().await.unwrap();
    for counted in ["count()", "uniqExact(sequence, cookie)"] {
        let sql = format!("SELECT {counted} FROM connections");
        assert_eq!(number(&store, &sql).await, 180, "{counted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_batch_that_the_store_refuses_is_refused() {
    let store = database().await;
    let troubled = Troubled {
        refuses: Some("poison"),
        ..Troubled::around((*store).clone())
    };
    let collector = Collector::start(Arc::new(troubled)).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    for sequence in 1..=9 {
        let mut batch = batch(sequence, 20);
        if sequence == 6 {
            let Some(Columns::Connections(columns)) = &mut batch.columns else {
                unreachable!()
            };
            columns.processes[1].comm = "poison".to_owned();
        }
        agent.deliver(batch).await;
    }
    let (mut acknowledged, refused) = agent.settled(9).await;
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, [1, 2, 3, 4, 5, 7, 8, 9]);
    assert_eq!(
        refused,
        [(
            6,
            "the store refuses the rows (code 117): not this one".to_owned()
        )]
    );
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 160);
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_refusals_total{reason=\"store\"} 1\n"),
        "{metrics}"
    );
    // The store that refuses it in its place does not take it aside either, and nothing waits for that.
    while !collector
        .page("/metrics")
        .await
        .1
        .contains("holdfast_batches_not_set_aside_total 1\n")
    {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    collector.stop().await.unwrap();
}
