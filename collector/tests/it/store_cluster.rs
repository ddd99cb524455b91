//! The layout of a cluster, carried out by the engine: every statement of the schema, and a collector on what comes of
//! them. The cluster has one server, this engine, and its Distributed tables are real. The library can start no replica and
//! run nothing `ON CLUSTER`, so these two things, and nothing else, are taken out of the statements.

use std::sync::Arc;

use async_trait::async_trait;
use holdfast_collector::store::{
    Access, Block, Chunks, Query, Store, StoreError,
    layout::Layout,
    migrations,
    schema::{self, RETAINED},
    server::Server,
};
use holdfast_proto::v1::{BatchRange, Stream};

use crate::clickhouse_http::{PASSWORD, USER};
use crate::harness::Collector;
use crate::store_engine::{self, CLUSTER, answer, ask, query};
use crate::synthetic::{Agent, batch, hello, now_ns};

/// The only server of a cluster.
struct Only(Server);

/// A statement for a cluster as the only server of one can carry it out.
fn alone(sql: &str) -> String {
    let mut sql = sql.replace(&format!(" ON CLUSTER '{CLUSTER}'"), "");
    for engine in ["ReplicatedMergeTree", "ReplicatedReplacingMergeTree"] {
        while let Some(at) = sql.find(&format!("{engine}('")) {
            let arguments = at + engine.len() + 1;
            let end = arguments + sql[arguments..].find(')').unwrap();
            // Behind the place in Keeper and the name of the replica.
            let rest = sql[arguments..end]
                .splitn(3, ',')
                .nth(2)
                .unwrap_or_default()
                .trim();
            let plain = format!("{}({rest})", engine.trim_start_matches("Replicated"));
            sql.replace_range(at..=end, &plain);
        }
    }
    sql.replace(
        " replicated_deduplication_window",
        " non_replicated_deduplication_window",
    )
}

#[async_trait]
impl Store for Only {
    fn writer(&self) -> Option<u64> {
        self.0.writer()
    }

    async fn fence(&self) -> Result<(), StoreError> {
        self.0.fence().await
    }

    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        self.0.insert(table, token, block).await
    }

    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        self.0.query(query).await
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.0.execute(&alone(sql)).await
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        self.0.derive(sql, params).await
    }

    fn layout(&self) -> Layout {
        self.0.layout()
    }
}

async fn only(database: &str) -> Arc<Only> {
    let address = store_engine::server().await;
    let url = format!("http://{USER}@{address}/{database}");
    // Its database is made `ON CLUSTER` otherwise.
    Server::new(&url, Some(PASSWORD))
        .unwrap()
        .prepare()
        .await
        .unwrap();
    let server = Server::new(&url, Some(PASSWORD)).unwrap();
    let store = Only(server.in_cluster(CLUSTER).unwrap());
    migrations::apply(&store, now_ns()).await.unwrap();
    Arc::new(store)
}

async fn number(store: &Only, sql: &str) -> u64 {
    ask(store, sql).await.trim().parse().unwrap()
}

#[test]
fn nothing_but_replicas_and_where_it_runs_is_taken_out_of_a_statement() {
    let cluster = Layout::cluster(CLUSTER, "d").unwrap();
    for statement in migrations::all_statements(&cluster) {
        let alone = alone(&statement);
        assert!(
            !alone.contains("Replicated") && !alone.contains("ON CLUSTER"),
            "{alone}"
        );
        assert_eq!(
            alone.contains("Distributed("),
            statement.contains("Distributed("),
            "{alone}"
        );
    }
    assert_eq!(
        alone(
            "ENGINE = ReplicatedReplacingMergeTree('/clickhouse/{shard}/{table}', '{replica}', version) ORDER BY a"
        ),
        "ENGINE = ReplacingMergeTree(version) ORDER BY a"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_of_a_cluster_is_made_and_every_view_of_it_reads_all_shards() {
    let store = only("cluster_schema").await;
    let distributed =
        "SELECT count() FROM system.tables WHERE database = currentDatabase() AND engine = 'Distributed'";
    assert_eq!(number(&store, distributed).await, RETAINED.len() as u64);
    // A table and all shards together are told the same by every step.
    let columns = async |table: &str| {
        let sql = format!(
            "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = '{table}' \
             AND default_kind != 'MATERIALIZED' ORDER BY name"
        );
        ask(&*store, &sql).await
    };
    for (table, _) in RETAINED {
        assert_eq!(
            columns(table).await,
            columns(&format!("{table}_local")).await,
            "{table}"
        );
        schema::retain(&*store, table, 17).await.unwrap();
        let ttl = format!(
            "SELECT countIf(position(create_table_query, 'toIntervalDay(17)') > 0) FROM system.tables \
             WHERE database = currentDatabase() AND name = '{table}_local'"
        );
        assert_eq!(number(&store, &ttl).await, 1, "{table}");
    }
    let views =
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine = 'View' ORDER BY name";
    let views = ask(&*store, views).await;
    assert!(views.lines().count() > 20, "{views}");
    let mut broken = Vec::new();
    for view in views.lines() {
        let read = format!("SELECT * FROM {view}");
        if let Err(error) = answer(&*store, query(&read, Access::ReadOnly)).await {
            broken.push(format!("{view}: {error}"));
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    // With one shard its own part is all there is, so no answer tells which of the two a view reads.
    let of_one_shard = "SELECT count() FROM system.tables WHERE database = currentDatabase() AND engine = 'View' \
                        AND position(create_table_query, '_local') > 0";
    assert_eq!(number(&store, of_one_shard).await, 0);
    // What was done is remembered, on every server.
    migrations::apply(&*store, now_ns()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_delivers_into_a_cluster_once() {
    let store = only("cluster_delivery").await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let mut other = Agent::connect(collector.address, "b1").await;
    for sequence in 1..=3 {
        agent.deliver(batch(sequence, 100)).await;
        other.deliver(batch(sequence, 50)).await;
    }
    for agent in [&mut agent, &mut other] {
        let (mut acknowledged, refused) = agent.settled(3).await;
        acknowledged.sort_unstable();
        assert_eq!((acknowledged, refused), (vec![1, 2, 3], vec![]));
    }
    collector.stop().await.unwrap();
    for (table, rows) in [
        ("connections", 450),
        ("attempts", 450),
        ("connection_records_local", 450),
    ] {
        assert_eq!(
            number(&store, &format!("SELECT count() FROM {table}")).await,
            rows,
            "{table}"
        );
    }
    assert_eq!(number(&store, "SELECT count() FROM nodes").await, 2);

    // Another collector takes the agent over, knows what is stored, and adds nothing.
    let collector = Collector::start(only_again("cluster_delivery").await).await;
    let mut back = hello("a1");
    back.unanswered = vec![BatchRange {
        epoch: 7,
        stream: Stream::Connections.into(),
        first_sequence: 2,
        last_sequence: 4,
    }];
    let (mut agent, known) = Agent::return_with(collector.address, back).await;
    assert_eq!(known, [(7, 2), (7, 3)]);
    for sequence in 2..=4 {
        agent.deliver(batch(sequence, 100)).await;
    }
    let (mut acknowledged, refused) = agent.settled(3).await;
    acknowledged.sort_unstable();
    assert_eq!((acknowledged, refused), (vec![2, 3, 4], vec![]));
    collector.stop().await.unwrap();
    assert_eq!(number(&store, "SELECT count() FROM connections").await, 550);
    let once = "SELECT uniqExact(node, sequence, cookie) FROM connections";
    assert_eq!(number(&store, once).await, 550);
}

/// The same database to another collector.
async fn only_again(database: &str) -> Arc<Only> {
    let address = store_engine::server().await;
    let url = format!("http://{USER}@{address}/{database}");
    let server = Server::new(&url, Some(PASSWORD)).unwrap();
    Arc::new(Only(server.in_cluster(CLUSTER).unwrap()))
}
