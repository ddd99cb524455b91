//! What agents deliver is in the store, once, before they hear so.

use holdfast_proto::v1::{Status, Stream, StreamCounters};

use crate::harness::{Collector, database, number};
use crate::synthetic::{Agent, batch, batch_at, now_ns};

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_in_the_store_before_the_acknowledgement() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 1000)).await;
    assert_eq!(agent.settled(1).await, (vec![1], vec![]));
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 1000);
    assert_eq!(number(&store, "SELECT count() FROM attempts").await, 1000);
    assert_eq!(
        number(
            &store,
            "SELECT count() FROM connections WHERE outcome = 'refused' AND connect_us = 90"
        )
        .await,
        100
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_says_what_the_agent_saw() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let opened_ns = (now_ns() - 5_000_000_000) / 1000 * 1000;
    agent.deliver(batch_at(3, 10, opened_ns)).await;
    agent.settled(1).await;
    let row = |condition: &str| format!("SELECT count() FROM connections WHERE cookie = 30 AND {condition}",);
    for condition in [
        "node = 'node-a1' AND agent_epoch = 7 AND sequence = 3",
        &format!("toUnixTimestamp64Nano(opened_at) = {opened_ns}"),
        &format!("toUnixTimestamp64Nano(decided_at) = {}", opened_ns + 120_000),
        &format!("toUnixTimestamp64Nano(closed_at) = {}", opened_ns + 1_150_000),
        "role = 'active' AND outcome = 'established' AND close_reason = 'finished' AND attribution = 'exact'",
        "pid = 100 AND comm = 'curl' AND cgroup_id = 9 AND netns = 4026531840",
        "local_ip = toIPv6('10.0.0.1') AND local_port = 32768",
        "remote_ip = toIPv6('10.0.0.2') AND remote_port = 5432",
        "connect_us = 120 AND duration_us = 1150 AND srtt_us = 100",
        "bytes_sent = 0 AND bytes_received = 0",
    ] {
        assert_eq!(number(&store, &row(condition)).await, 1, "{condition}");
    }
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_many_agents_are_all_stored_once() {
    const AGENTS: u64 = 5;
    const BATCHES: u64 = 20;
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agents = Vec::new();
    for id in 0..AGENTS {
        let agent = Agent::connect(collector.address, &format!("a{id}")).await;
        for sequence in 1..=BATCHES {
            agent.deliver(batch(sequence, 70)).await;
        }
        agents.push(agent);
    }
    for agent in &mut agents {
        let (mut acknowledged, refused) = agent.settled(BATCHES as usize).await;
        acknowledged.sort_unstable();
        assert_eq!(acknowledged, (1..=BATCHES).collect::<Vec<_>>());
        assert!(refused.is_empty(), "{refused:?}");
    }
    let sets = "SELECT uniqExact(node, sequence, cookie) FROM connections";
    assert_eq!(number(&store, sets).await, AGENTS * BATCHES * 70);
    assert_eq!(
        number(&store, "SELECT count() FROM connections").await,
        AGENTS * BATCHES * 70
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_different_days_are_stored_together() {
    const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    for (sequence, days) in [(1, 0), (2, 1), (3, 0), (4, 2)] {
        agent
            .deliver(batch_at(sequence, 10, now_ns() - 60_000_000_000 - days * DAY_NS))
            .await;
    }
    let (mut acknowledged, _) = agent.settled(4).await;
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, [1, 2, 3, 4]);
    assert_eq!(
        number(&store, "SELECT uniqExact(toDate(closed_at)) FROM connections").await,
        3
    );
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 40);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_delivers_and_what_it_counted_is_stored() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let counters = StreamCounters {
        stream: Stream::Connections.into(),
        opened: 12,
        lost: 3,
        ..StreamCounters::default()
    };
    agent
        .report(Status {
            observed_at_ns: now_ns() as u64,
            streams: vec![counters],
            ..Status::default()
        })
        .await;
    // Parcels of one agent are stored in order: once the batch is, so is what came before.
    agent.deliver(batch(1, 1)).await;
    agent.settled(1).await;
    assert_eq!(
        number(
            &store,
            "SELECT count() FROM nodes WHERE node = 'node-a1' AND kernel = '6.18.0'"
        )
        .await,
        1
    );
    assert_eq!(
        number(
            &store,
            "SELECT sum(lost) FROM ledger WHERE node = 'node-a1' AND opened = 12"
        )
        .await,
        3
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_stores_and_acknowledges_what_was_taken_in() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 10)).await;
    collector.received(1).await;
    let (stopped, (acknowledged, _)) = tokio::join!(collector.stop(), agent.settled(1));
    assert!(stopped.is_ok(), "{stopped:?}");
    assert_eq!(acknowledged, [1]);
    assert_eq!(agent.hear().await.unwrap(), None);
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 10);
}
