//! What people ask over gRPC.

use std::collections::HashSet;
use std::time::Duration;

use holdfast_proto::v1::query_client::QueryClient;
use holdfast_proto::v1::{Chunk, ConnectionsRequest, NodesRequest, SqlRequest};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::harness::{Collector, database, number};
use crate::synthetic::{Agent, batch};

async fn client(collector: &Collector) -> QueryClient<Channel> {
    QueryClient::connect(collector.url()).await.unwrap()
}

/// A whole answer.
async fn text(answer: Result<tonic::Response<Streaming<Chunk>>, Status>) -> Result<String, Status> {
    let mut chunks = answer?.into_inner();
    let mut text = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        text.extend_from_slice(&chunk.data);
    }
    Ok(String::from_utf8(text).unwrap())
}

fn sql(sql: &str) -> SqlRequest {
    SqlRequest {
        sql: sql.to_owned(),
        format: "TabSeparated".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_reads_and_streams() {
    let collector = Collector::start(database().await).await;
    let mut client = client(&collector).await;
    assert_eq!(
        text(client.sql(sql("SELECT 1 + 1, 'a'")).await).await.unwrap(),
        "2\ta\n"
    );
    // Far more than one message may have.
    let many = text(client.sql(sql("SELECT number FROM numbers(2000000)")).await)
        .await
        .unwrap();
    assert_eq!(many.lines().count(), 2_000_000);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_of_people_changes_nothing() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 10)).await;
    agent.settled(1).await;
    let mut client = client(&collector).await;
    for statement in [
        "INSERT INTO connection_records (node) VALUES ('x')",
        "DROP TABLE connection_records",
        "ALTER TABLE connection_records DELETE WHERE 1",
        "TRUNCATE TABLE connection_records",
        "CREATE TABLE t (a UInt8) ENGINE = Memory",
        "DROP DATABASE read_only",
        "SET readonly = 0",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 INTO OUTFILE '/tmp/holdfast-test-outfile'",
        "SELECT file('/etc/hostname')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
        "SELECT 1; DROP TABLE connection_records",
        "SYSTEM SHUTDOWN",
        "KILL QUERY WHERE 1",
    ] {
        let status = text(client.sql(sql(statement)).await).await.expect_err(statement);
        assert_eq!(status.code(), Code::InvalidArgument, "{statement}: {status:?}");
        assert!(!status.message().contains('\n'), "{statement}: {status:?}");
    }
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 10);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_sql_names_the_place() {
    let collector = Collector::start(database().await).await;
    let status = text(client(&collector).await.sql(sql("SELECT 1 FROM")).await)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("position 14"), "{status:?}");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_whose_caller_left_is_cancelled() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut client = client(&collector).await;
    let endless = sql("SELECT sum(sipHash64(number, 'left alone')) FROM numbers(1000000000000)");
    let call = tokio::spawn(async move { text(client.sql(endless).await).await });
    let running = "SELECT count() FROM system.processes WHERE query LIKE '%left alone%' AND query NOT LIKE '%processes%'";
    while number(&store, running).await == 0 {
        assert!(!call.is_finished(), "it should run for hours: {:?}", call.await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    call.abort();
    while number(&store, running).await > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    collector.stop().await.unwrap();
}

fn connections(filter: &str) -> ConnectionsRequest {
    ConnectionsRequest {
        filter: filter.to_owned(),
        last_ns: 3_600_000_000_000,
        follow: false,
        limit: 0,
        open: false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_filtered_and_limited() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 100)).await;
    agent.settled(1).await;
    let mut client = client(&collector).await;
    let count = |answer: Result<String, Status>| answer.unwrap().lines().count();
    assert_eq!(count(text(client.connections(connections("")).await).await), 100);
    assert_eq!(
        count(text(client.connections(connections("remote_port = 81")).await).await),
        10
    );
    let both = "remote_port = 5432 and comm = \"curl\"";
    assert_eq!(count(text(client.connections(connections(both)).await).await), 30);
    let limited = ConnectionsRequest {
        limit: 7,
        ..connections("")
    };
    let closed_at = |answer: String| -> Vec<String> {
        answer
            .lines()
            .map(|line| row(line)["closed_at"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = closed_at(text(client.connections(connections("")).await).await.unwrap());
    let newest = closed_at(text(client.connections(limited).await).await.unwrap());
    assert!(all.is_sorted(), "oldest first: {all:?}");
    assert_eq!(newest, all[93..]);
    collector.stop().await.unwrap();
}

fn row(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_filter_shows_the_place() {
    let collector = Collector::start(database().await).await;
    let mut client = client(&collector).await;
    let status = text(client.connections(connections("remote_prt = 1")).await)
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("remote_prt"), "{status:?}");
    let injection = "comm = \"'; DROP TABLE connection_records --\"";
    assert_eq!(
        text(client.connections(connections(injection)).await)
            .await
            .unwrap(),
        ""
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sees_each_row_once() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 50)).await;
    agent.settled(1).await;
    let mut client = client(&collector).await;
    let request = ConnectionsRequest {
        last_ns: 0,
        follow: true,
        ..connections("remote_port = 5432")
    };
    let mut chunks = client.connections(request).await.unwrap().into_inner();
    let mut seen = HashSet::new();
    let mut rows = 0;
    // Batches come while it reads, some of them before its next question and some after.
    let delivered = async {
        for sequence in 2..=11 {
            agent.deliver(batch(sequence, 50)).await;
            agent.settled(1).await;
        }
    };
    let read = async {
        while rows < 450 {
            let chunk = chunks.message().await.unwrap().expect("it goes on");
            for line in String::from_utf8(chunk.data.to_vec()).unwrap().lines() {
                let row = row(line);
                rows += 1;
                assert!(
                    seen.insert((row["sequence"].as_u64(), row["cookie"].as_u64())),
                    "twice: {line}"
                );
                assert_ne!(row["sequence"], 1, "it was stored before: {line}");
            }
        }
    };
    tokio::join!(delivered, read);
    // Nothing more comes: the next questions find nothing.
    let more = tokio::time::timeout(Duration::from_millis(700), chunks.message()).await;
    assert!(more.is_err(), "{more:?}");
    assert_eq!(seen.len(), 450);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_listed_with_what_it_said() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 1)).await;
    agent.settled(1).await;
    let nodes = text(client(&collector).await.nodes(NodesRequest {}).await)
        .await
        .unwrap();
    let node = row(nodes.trim_end());
    assert_eq!(
        (&node["node"], &node["agent_id"]),
        (&"node-a1".into(), &"a1".into())
    );
    assert_eq!(node["labels"]["role"], "web");
    collector.stop().await.unwrap();
}
