//! What goes wrong on either side loses nothing, adds nothing, and holds up nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{Block, Chunks, Query, Store, StoreError};
use holdfast_proto::v1::batch::Columns;
use holdfast_proto::v1::{Hello, agent_message};
use tonic::Code;

use crate::harness::{Collector, database, number};
use crate::synthetic::{Agent, batch, hello, seal};

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

/// A store that is away for some inserts, or refuses those that contain a text.
struct Troubled {
    store: Embedded,
    /// Inserts that still fail.
    away: AtomicUsize,
    refuses: Option<&'static str>,
}

#[async_trait]
impl Store for Troubled {
    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        let is_away = self
            .away
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok();
        if is_away {
            return Err(StoreError::Unavailable {
                message: "gone fishing".to_owned(),
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_comes_back_has_every_row_once() {
    let store = database().await;
    let troubled = Troubled {
        store: (*store).clone(),
        away: AtomicUsize::new(4),
        refuses: None,
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
async fn only_the_batch_that_the_store_refuses_is_refused() {
    let store = database().await;
    let troubled = Troubled {
        store: (*store).clone(),
        away: AtomicUsize::new(0),
        refuses: Some("poison"),
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
    collector.stop().await.unwrap();
}
