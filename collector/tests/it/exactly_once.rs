//! Whatever breaks between an agent and the store, each of its rows is in the store once.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use holdfast_collector::config::Limits;
use holdfast_collector::store::{Store, migrations, server::Server};
use holdfast_proto::v1::batch::Columns;
use holdfast_proto::v1::{
    Batch, BatchRange, Gap, GapReason, GapRows, Hello, Status, Stream, agent_message, collector_message,
};
use tonic::Code;

use crate::clickhouse_http::{PASSWORD, USER};
use crate::harness::{Collector, database, limits, number};
use crate::store_engine;
use crate::synthetic::{Agent, batch, batch_at, hello, now_ns, seal};

const ROWS: u32 = 50;

/// A hello of an agent that has no answer to these batches.
fn hello_with(epoch: u64, unanswered: &[(u64, u64, u64)]) -> Hello {
    let range = |&(epoch, first_sequence, last_sequence): &(u64, u64, u64)| BatchRange {
        epoch,
        stream: Stream::Connections.into(),
        first_sequence,
        last_sequence,
    };
    Hello {
        epoch,
        unanswered: unanswered.iter().map(range).collect(),
        ..hello("a1")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_before_the_acknowledgement_stores_nothing_twice() {
    const BATCHES: u64 = 30;
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let batches: Vec<Batch> = (1..=BATCHES).map(|sequence| batch(sequence, ROWS)).collect();
    // Each connection breaks a little later: before anything was read, in the middle, after it was stored.
    for sent in [1, 7, 19, BATCHES] {
        let (agent, known) = Agent::return_with(collector.address, hello_with(7, &[(7, 1, BATCHES)])).await;
        for batch in &batches[..sent as usize] {
            if !known.contains(&(7, batch.sequence)) {
                agent.deliver(batch.clone()).await;
            }
        }
        drop(agent);
    }
    let (mut agent, known) = Agent::return_with(collector.address, hello_with(7, &[(7, 1, BATCHES)])).await;
    let rest: Vec<_> = batches
        .iter()
        .filter(|batch| !known.contains(&(7, batch.sequence)))
        .collect();
    for batch in &rest {
        agent.deliver((*batch).clone()).await;
    }
    agent.settled(rest.len()).await;
    let rows = BATCHES * u64::from(ROWS);
    assert_eq!(number(&store, "SELECT count() FROM connections").await, rows);
    assert_eq!(
        number(&store, "SELECT uniqExact(cookie) FROM connections").await,
        rows
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_collector_on_the_same_store_knows_what_the_first_one_stored() {
    let store = database().await;
    let first = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(first.address, "a1").await;
    agent.deliver(batch(1, ROWS)).await;
    agent.deliver(batch(2, ROWS)).await;
    agent.settled(2).await;
    first.stop().await.unwrap();

    let second = Collector::start(store.clone()).await;
    // The acknowledgements were lost on the way, say; the third batch was never sent.
    let (mut agent, known) = Agent::return_with(second.address, hello_with(7, &[(7, 1, 3)])).await;
    assert_eq!(known, [(7, 1), (7, 2)]);
    agent.deliver(batch(3, ROWS)).await;
    agent.settled(1).await;
    assert_eq!(
        number(&store, "SELECT count() FROM connections").await,
        3 * u64::from(ROWS)
    );
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_wrong_by_days_has_its_rows_of_today_and_each_once() {
    const DAY_NS: i64 = 24 * 3_600 * 1_000_000_000;
    const MINUTE_NS: i64 = 60_000_000_000;
    let store = database().await;
    // Into the future, and to where retention would remove the rows at once.
    for (id, ahead_ns) in [("fast", 3 * DAY_NS), ("slow", -50 * DAY_NS)] {
        let status = || Status {
            observed_at_ns: (now_ns() + ahead_ns) as u64,
            ..Status::default()
        };
        let batches = [1, 2].map(|sequence| batch_at(sequence, ROWS, now_ns() - MINUTE_NS + ahead_ns));
        let first = Collector::start(store.clone()).await;
        let mut agent = Agent::connect(first.address, id).await;
        agent.report(status()).await;
        agent.deliver(batches[0].clone()).await;
        assert_eq!(agent.settled(1).await, (vec![1], vec![]), "{id}");
        first.stop().await.unwrap();

        // The acknowledgement was lost, say, and another collector hears of a clock that is right.
        let second = Collector::start(store.clone()).await;
        let hello = Hello {
            node: format!("node-{id}"),
            agent_id: id.to_owned(),
            ..hello_with(7, &[(7, 1, 2)])
        };
        let (mut agent, known) = Agent::return_with(second.address, hello).await;
        assert_eq!(known, [(7, 1)], "{id}");
        agent.deliver(batches[0].clone()).await;
        // Then it is wrong again.
        agent.report(status()).await;
        agent.deliver(batches[1].clone()).await;
        let (mut acknowledged, refused) = agent.settled(2).await;
        acknowledged.sort_unstable();
        assert_eq!((acknowledged, refused), (vec![1, 2], vec![]), "{id}");

        let of_node = format!("FROM connections WHERE node = 'node-{id}'");
        let rows = 2 * u64::from(ROWS);
        assert_eq!(
            number(&store, &format!("SELECT count() {of_node}")).await,
            rows,
            "{id}"
        );
        let recent = "closed_at BETWEEN now() - INTERVAL 1 HOUR AND now() + INTERVAL 1 HOUR";
        assert_eq!(
            number(
                &store,
                &format!("SELECT uniqExact(cookie) {of_node} AND {recent}")
            )
            .await,
            rows,
            "{id}"
        );
        second.stop().await.unwrap();
    }
}

/// A collector on a database of a server, that inserts a block only once `batches` are in it.
async fn patient(server: SocketAddr, batches: u32) -> Collector {
    let url = format!("http://{USER}@{server}/handed_over");
    let store = Server::new(&url, Some(PASSWORD)).unwrap();
    store.prepare().await.unwrap();
    migrations::apply(&store, now_ns()).await.unwrap();
    let limits = Limits {
        gather_rows: (batches * ROWS) as usize,
        gather_interval: Duration::from_secs(3_600),
        ..limits()
    };
    Collector::start_with(Arc::new(store), limits, true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_an_agent_has_left_stores_nothing_of_it_any_more() {
    let server = store_engine::server().await;
    let former = patient(server, 4).await;
    let mut left = Agent::connect(former.address, "a1").await;
    let batches: Vec<Batch> = (1..=4).map(|sequence| batch(sequence, ROWS)).collect();
    for batch in &batches[..3] {
        left.deliver(batch.clone()).await;
    }
    former.received(3).await;

    let next = patient(server, 1).await;
    let (mut agent, known) = Agent::return_with(next.address, hello_with(7, &[(7, 1, 4)])).await;
    assert_eq!(known, []);
    for batch in &batches {
        agent.deliver(batch.clone()).await;
    }
    agent.settled(4).await;

    // Its block is full now, and its claim is gone.
    left.deliver(batches[3].clone()).await;
    let ended = loop {
        match left.hear().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::Aborted);
    assert!(ended.message().contains("--name"), "{}", ended.message());
    let metrics = former.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_batches_taken_over_total 4\n"),
        "{metrics}"
    );

    next.stop().await.unwrap();
    let last = patient(server, 1).await;
    let (_, mut known) = Agent::return_with(last.address, hello_with(7, &[(7, 1, 4)])).await;
    known.sort_unstable();
    assert_eq!(known, [(7, 1), (7, 2), (7, 3), (7, 4)]);
    let store = Server::new(&format!("http://{USER}@{server}/handed_over"), Some(PASSWORD)).unwrap();
    let count = "SELECT count(), uniqExact(cookie) FROM connection_records";
    let rows = 4 * ROWS;
    assert_eq!(
        store_engine::ask(&store, count).await,
        format!("{rows}\t{rows}\n")
    );
    last.stop().await.unwrap();
    former.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_an_earlier_start_keep_its_name() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let (mut agent, known) =
        Agent::return_with(collector.address, hello_with(8, &[(7, 1, 1), (8, 1, 1)])).await;
    assert_eq!(known, []);
    agent
        .send(agent_message::Body::Batch(seal(7, &batch(1, 3))))
        .await;
    agent
        .send(agent_message::Body::Batch(seal(8, &batch(1, 4))))
        .await;
    agent.settled(2).await;
    for (epoch, rows) in [(7, 3), (8, 4)] {
        let sql = format!("SELECT count() FROM connections WHERE agent_epoch = {epoch} AND sequence = 1");
        assert_eq!(number(&store, &sql).await, rows);
    }
    let (_, known) = Agent::return_with(collector.address, hello_with(9, &[(7, 1, 1), (8, 1, 2)])).await;
    assert_eq!(known, [(7, 1), (8, 1)]);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_listed_and_is_stored_is_acknowledged_again_and_not_stored_again() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let batches: Vec<Batch> = (1..=3).map(|sequence| batch(sequence, ROWS)).collect();
    let (mut agent, _) = Agent::return_with(collector.address, hello_with(7, &[])).await;
    for batch in &batches[..2] {
        agent.deliver(batch.clone()).await;
    }
    agent.settled(2).await;
    // It sends before it has heard what the store has.
    let mut hasty = Agent::dial(collector.address).await;
    hasty
        .send(agent_message::Body::Hello(hello_with(8, &[(7, 1, 3)])))
        .await;
    for batch in &batches {
        hasty.deliver(batch.clone()).await;
    }
    assert!(matches!(
        hasty.hear().await,
        Ok(Some(collector_message::Body::Welcome(_)))
    ));
    // Once because they were listed, and once because they came.
    let (mut acknowledged, refused) = hasty.settled(5).await;
    acknowledged.sort_unstable();
    assert_eq!((acknowledged, refused), (vec![1, 1, 2, 2, 3], vec![]));
    assert_eq!(
        number(&store, "SELECT count() FROM connections").await,
        3 * u64::from(ROWS)
    );
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_batches_known_total 2\n")
            && metrics.contains("holdfast_refusals_total{reason=\"replayed\"} 0\n"),
        "{metrics}"
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_adds_nothing_even_if_its_agent_does_not_say_so() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let batches: Vec<Batch> = (1..=4).map(|sequence| batch(sequence, ROWS)).collect();
    let (mut agent, _) = Agent::return_with(collector.address, hello_with(7, &[])).await;
    let again = |reason: &str, sequences: &[u64]| -> Vec<(u64, String)> {
        let text = format!("the batch was answered already: {reason}");
        sequences
            .iter()
            .map(|sequence| (*sequence, text.clone()))
            .collect()
    };
    // In flight, and acknowledged, on one connection.
    for sequence in [1, 2, 2, 3] {
        agent.deliver(batches[sequence - 1].clone()).await;
    }
    let (mut acknowledged, refused) = agent.settled(4).await;
    acknowledged.sort_unstable();
    let before = "it came before on this connection, or one after it did";
    assert_eq!((acknowledged, refused), (vec![1, 2, 3], again(before, &[2])));
    agent.deliver(batches[0].clone()).await;
    assert_eq!(agent.settled(1).await, (vec![], again(before, &[1])));
    // On a later one, by an agent that lists nothing: of its own start, and of an earlier one.
    let (mut liar, known) = Agent::return_with(collector.address, hello_with(7, &[])).await;
    assert_eq!(known, []);
    liar.deliver(batches[1].clone()).await;
    liar.deliver(batches[3].clone()).await;
    let (acknowledged, refused) = liar.settled(2).await;
    let unlisted = "later ones were stored, and it is not among the unanswered ones";
    assert_eq!((acknowledged, refused), (vec![4], again(unlisted, &[2])));
    let (mut later, _) = Agent::return_with(collector.address, hello_with(8, &[])).await;
    later.deliver(batches[2].clone()).await;
    let other = "it is of another start, and not among the unanswered ones";
    assert_eq!(later.settled(1).await, (vec![], again(other, &[3])));

    assert_eq!(
        number(&store, "SELECT count() FROM connections").await,
        4 * u64::from(ROWS)
    );
    let metrics = collector.page("/metrics").await.1;
    assert!(
        metrics.contains("holdfast_refusals_total{reason=\"replayed\"} 4\n"),
        "{metrics}"
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_with_one_id_are_told_apart_and_named() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let (later, _) = Agent::return_with(collector.address, hello_with(8, &[])).await;
    let mut earlier = Agent::dial(collector.address).await;
    earlier.send(agent_message::Body::Hello(hello_with(7, &[]))).await;
    let status = earlier.hear().await.expect_err("turned away");
    assert_eq!(status.code(), Code::AlreadyExists);
    let text = status.message();
    assert!(
        text.contains("id a1 (node node-a1)") && text.contains("--name"),
        "{text}"
    );
    later
        .report(Status {
            epoch: 8,
            observed_at_ns: now_ns().unsigned_abs(),
            ..Status::default()
        })
        .await;
    // Who asks for the nodes sees it, too.
    let named = "SELECT count() FROM nodes WHERE agent_epoch = 8 AND startsWith(rival, '127.0.0.1:')";
    let deadline = Instant::now() + Duration::from_secs(30);
    while number(&store, named).await == 0 {
        assert!(Instant::now() < deadline, "nobody is named");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(later);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_comes_again_does_not_wait_for_its_dead_connection() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    // The first connection stays open and silent, as after a network that went away.
    let mut first = Agent::connect(collector.address, "a1").await;
    let (mut second, _) = Agent::return_with(collector.address, hello_with(7, &[])).await;
    second.deliver(batch(1, ROWS)).await;
    second.settled(1).await;
    let ended = first.hear().await;
    assert!(matches!(ended, Ok(None) | Err(_)), "{ended:?}");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_stored_like_what_is_there() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let last_ns = now_ns().unsigned_abs();
    let gap = Gap {
        epoch: 6,
        stream: Stream::Connections.into(),
        first_sequence: 10,
        last_sequence: 12,
        first_ns: last_ns - 1_000,
        last_ns,
        rows: 300,
        reason: GapReason::SpoolFull.into(),
        netns: 0,
        at_least: false,
    };
    agent
        .deliver(Batch {
            stream: Stream::Gaps.into(),
            sequence: 1,
            rows: 1,
            boot_id: "b1".to_owned(),
            clock_ns: 0,
            columns: Some(Columns::Gaps(GapRows { gaps: vec![gap] })),
        })
        .await;
    match agent.hear().await.unwrap() {
        Some(collector_message::Body::Acknowledgement(acknowledgement)) => {
            assert_eq!(
                (acknowledgement.stream(), &acknowledgement.sequences[..]),
                (Stream::Gaps, &[1][..])
            );
        }
        other => panic!("not acknowledged: {other:?}"),
    }
    let sql = "SELECT rows FROM gaps WHERE node = 'node-a1' AND agent_epoch = 6 AND reason = 'spool_full' \
        AND stream = 'connections' AND first_sequence = 10 AND last_sequence = 12 AND first_at < last_at";
    assert_eq!(number(&store, sql).await, 300);
    let unanswered = BatchRange {
        epoch: 7,
        stream: Stream::Gaps.into(),
        first_sequence: 1,
        last_sequence: 5,
    };
    let hello = Hello {
        unanswered: vec![unanswered],
        ..hello("a1")
    };
    let (_, known) = Agent::return_with(collector.address, hello).await;
    assert_eq!(known, [(7, 1)]);
    collector.stop().await.unwrap();
}
