//! What every store promises, of each: the embedded one, the server one over a stand-in with the real engine, and
//! the server one over a real server where `CLICKHOUSE_URL` names one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use holdfast_collector::filter::Filter;
use holdfast_collector::ingest::decode;
use holdfast_collector::store::condition::filterable;
use holdfast_collector::store::{
    Access, Block, Query, Store, StoreError, migrations,
    native::{BlockBuilder, Column, Kind, Table, names},
    questions::{self, Follower},
    schema,
    server::Server,
};

use crate::{
    clickhouse_http,
    store_engine::{self, answer, ask, database, query},
    store_rows::{NOON_NS, SECOND_NS, end, insert_ends},
};

type Shared = Arc<dyn Store>;

/// Runs each test against each store.
macro_rules! contract {
    ($($test:ident)*) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::embedded()).await;
            })*
        }
        mod server {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(super::stand_in().await).await;
            })*
        }
        mod real_server {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                if let Some(store) = super::real(stringify!($test)).await {
                    super::$test(store).await;
                }
            })*
        }
    };
}

contract! {
    rows_that_were_inserted_are_read_back
    the_same_block_with_the_same_token_adds_nothing
    a_block_that_does_not_fit_its_table_leaves_nothing
    a_block_is_one_part
    rows_that_look_like_sql_are_rows
    parameters_are_values_whatever_they_contain
    formats_are_those_of_clickhouse
    statements_at_fault_are_rejected_with_their_code
    a_person_may_only_read
    a_person_may_not_reach_beyond_the_database
    a_large_answer_arrives_whole
    an_error_in_the_middle_of_an_answer_is_not_its_end
    a_query_that_nobody_waits_for_ends
    migrations_and_retention_work
    prepared_questions_can_be_asked
    inserts_and_queries_run_at_once
}

fn embedded() -> Shared {
    Arc::new(database())
}

async fn stand_in() -> Shared {
    let address = store_engine::server().await;
    let password =
        percent_encoding::utf8_percent_encode(clickhouse_http::PASSWORD, percent_encoding::NON_ALPHANUMERIC);
    // A name for each: the stand-ins share their engine.
    let url = format!(
        "http://{}:{password}@{address}/served_{}",
        clickhouse_http::USER,
        address.port()
    );
    let server = Server::new(&url, None).unwrap();
    server.prepare().await.unwrap();
    Arc::new(server)
}

async fn real(test: &str) -> Option<Shared> {
    let Ok(url) = std::env::var("CLICKHOUSE_URL") else {
        eprintln!("skipped: CLICKHOUSE_URL names no server");
        return None;
    };
    let server = Server::new(&url, None)
        .unwrap()
        .database(&format!("holdfast_test_{test}"))
        .unwrap();
    server.prepare().await.unwrap();
    for table in ["t", "wide"] {
        server
            .execute(&format!("DROP TABLE IF EXISTS {table} SYNC"))
            .await
            .unwrap();
    }
    let tables = schema::RETAINED.iter().map(|(table, _)| *table);
    for table in tables.chain(["schema_migrations"]) {
        server
            .execute(&format!("DROP TABLE IF EXISTS {table} SYNC"))
            .await
            .unwrap();
    }
    Some(Arc::new(server))
}

const COLUMNS: [Column; 2] = [
    Column {
        name: "n",
        kind: Kind::UInt64,
    },
    Column {
        name: "text",
        kind: Kind::LowCardinality,
    },
];
static TABLE: Table = Table {
    name: "t",
    columns: &COLUMNS,
    column_names: &names(&COLUMNS),
};

async fn create(store: &Shared) {
    let sql = "CREATE TABLE t (n UInt64, text LowCardinality(String)) ENGINE = MergeTree ORDER BY n \
               SETTINGS fsync_after_insert = 1, non_replicated_deduplication_window = 100";
    store.execute(sql).await.unwrap();
}

fn block(numbers: &[u64], text: &str) -> Block {
    let mut block = BlockBuilder::new(&TABLE, numbers.len()).unwrap();
    block.u64s("n", numbers).unwrap();
    block.low_cardinality_constant("text", text).unwrap();
    block.finish().unwrap()
}

async fn rows_that_were_inserted_are_read_back(store: Shared) {
    create(&store).await;
    store.insert("t", "1", block(&[1, 2, 3], "a")).await.unwrap();
    store.insert("t", "2", block(&[4], "b")).await.unwrap();
    assert_eq!(
        ask(&*store, "SELECT * FROM t ORDER BY n").await,
        "1\ta\n2\ta\n3\ta\n4\tb\n"
    );
}

async fn the_same_block_with_the_same_token_adds_nothing(store: Shared) {
    create(&store).await;
    for token in ["1", "1", "2"] {
        store.insert("t", token, block(&[1, 2], "a")).await.unwrap();
    }
    assert_eq!(ask(&*store, "SELECT count() FROM t").await, "4\n");
}

async fn a_block_that_does_not_fit_its_table_leaves_nothing(store: Shared) {
    create(&store).await;
    let whole = block(&[1, 2, 3], "a");
    let torn = Block {
        native: whole.native.slice(..whole.native.len() - 1),
        ..whole.clone()
    };
    assert!(matches!(
        store.insert("t", "1", torn).await,
        Err(StoreError::Rejected { .. })
    ));
    let unknown = Block {
        columns: &["n", "nonsense"],
        ..whole.clone()
    };
    assert!(matches!(
        store.insert("t", "2", unknown).await,
        Err(StoreError::Rejected { code: 16, .. })
    ));
    match store.insert("nowhere", "3", whole).await {
        Err(StoreError::Rejected { code: 60, message }) => assert!(message.contains("nowhere"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(ask(&*store, "SELECT count() FROM t").await, "0\n");
    // The connection is as good as before.
    store.insert("t", "4", block(&[1], "a")).await.unwrap();
    assert_eq!(ask(&*store, "SELECT count() FROM t").await, "1\n");
}

/// The engine makes a part atomically, so a block is atomic as long as it is one.
async fn a_block_is_one_part(store: Shared) {
    create(&store).await;
    store.execute("SYSTEM STOP MERGES t").await.unwrap();
    // What is gathered by default, and the most that can be: `gather_rows` and a batch of the largest size.
    let most = 1_000_000 + u64::from(decode::MAX_ROWS);
    for (token, rows) in [("1", 100_000), ("2", 100_000), ("3", most)] {
        let numbers: Vec<u64> = (0..rows).collect();
        store.insert("t", token, block(&numbers, "a")).await.unwrap();
    }
    let parts = "SELECT groupArray(rows) FROM (SELECT rows FROM system.parts WHERE active \
                 AND database = currentDatabase() AND table = 't' ORDER BY name)";
    assert_eq!(ask(&*store, parts).await, format!("[100000,100000,{most}]\n"));
}

async fn rows_that_look_like_sql_are_rows(store: Shared) {
    create(&store).await;
    let text = "\n\n; DROP TABLE t;\n\nDROP TABLE t\n\n'); --";
    store.insert("t", "1", block(&[1], text)).await.unwrap();
    let read = ask(&*store, "SELECT count(), any(text) FROM t FORMAT TSVRaw").await;
    assert_eq!(read, format!("1\t{text}\n"));
}

async fn parameters_are_values_whatever_they_contain(store: Shared) {
    use holdfast_collector::store::statement::text_value;
    for text in [
        "",
        "it's",
        "a\\b",
        "tab\there",
        "two\nlines\r\n",
        "{p:String} ?",
        "'; DROP TABLE t",
        "ü€𝄞",
        "a\0b",
    ] {
        let found = answer(
            &*store,
            Query {
                sql: "SELECT {p:String}, length({p:String}), {q:Array(UInt64)}[2]".into(),
                params: vec![("p".into(), text_value(text)), ("q".into(), "[7,8]".into())],
                format: "TSVRaw".into(),
                access: Access::Internal,
            },
        );
        assert_eq!(found.await.unwrap(), format!("{text}\t{}\t8\n", text.len()));
    }
}

async fn formats_are_those_of_clickhouse(store: Shared) {
    let formatted = async |format: &str| {
        let query = Query {
            format: format.into(),
            ..query("SELECT 1 AS a, 'x' AS b", Access::ReadOnly)
        };
        answer(&*store, query).await
    };
    assert_eq!(formatted("JSONEachRow").await.unwrap(), "{\"a\":1,\"b\":\"x\"}\n");
    assert_eq!(formatted("CSVWithNames").await.unwrap(), "\"a\",\"b\"\n1,\"x\"\n");
    assert!(formatted("PrettyCompact").await.unwrap().contains("│ 1 │ x │"));
    match formatted("Nonsense").await {
        Err(StoreError::Rejected { code: 73, message }) => assert!(message.contains("Nonsense"), "{message}"),
        other => panic!("{other:?}"),
    }
}

async fn statements_at_fault_are_rejected_with_their_code(store: Shared) {
    for access in [Access::Internal, Access::ReadOnly] {
        for (sql, code, word) in [
            ("SELECT * FROM nowhere", 60, "nowhere"),
            ("SELECT nonsense", 47, "nonsense"),
            ("SELECT sum(", 62, "yntax error"),
            ("SELECT toUInt8('x')", 6, "x"),
        ] {
            match answer(&*store, query(sql, access)).await {
                Err(StoreError::Rejected { code: found, message }) => {
                    assert_eq!(found, code, "{sql}: {message}");
                    assert!(
                        message.contains(word) && !message.contains('\n'),
                        "{sql}: {message}"
                    );
                }
                other => panic!("{sql}: {other:?}"),
            }
        }
    }
    assert!(matches!(
        store.execute("CREATE NONSENSE").await,
        Err(StoreError::Rejected { code: 62, .. })
    ));
}

async fn a_person_may_only_read(store: Shared) {
    create(&store).await;
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("answer");
    let into_file = format!("SELECT 1 INTO OUTFILE '{}'", file.display());
    for sql in [
        "INSERT INTO t VALUES (1, 'a')",
        "DROP TABLE t",
        "CREATE TABLE u (a Int8) ENGINE = Memory",
        "ALTER TABLE t DELETE WHERE 1",
        "SYSTEM STOP MERGES",
        "SET max_threads = 1",
        "USE default",
        "KILL QUERY WHERE 1",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_execution_time = 0",
        &into_file,
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE t",
    ] {
        let found = answer(&*store, query(sql, Access::ReadOnly)).await;
        assert!(
            matches!(found, Err(StoreError::Rejected { .. })),
            "{sql}: {found:?}"
        );
    }
    assert!(!file.exists());
    assert_eq!(ask(&*store, "SELECT count() FROM t").await, "0\n");
    for (sql, expected) in [
        ("SELECT count() FROM t", "0\n"),
        ("SELECT 1;", "1\n"),
        ("WITH 2 AS x SELECT x -- why not", "2\n"),
        ("SELECT 'a?b'", "a?b\n"),
    ] {
        assert_eq!(
            answer(&*store, query(sql, Access::ReadOnly)).await.unwrap(),
            expected,
            "{sql}"
        );
    }
    assert!(
        answer(&*store, query("DESCRIBE t", Access::ReadOnly))
            .await
            .unwrap()
            .starts_with("n\tUInt64")
    );
}

async fn a_person_may_not_reach_beyond_the_database(store: Shared) {
    for sql in [
        "SELECT file('/etc/hostname')",
        "SELECT arrayMap(file, ['/etc/hostname'])",
        "SELECT * APPLY (file) FROM (SELECT '/etc/hostname' AS x)",
        "SHOW TABLES WHERE name = file('/etc/hostname')",
        "SELECT * FROM file('/etc/hostname', 'LineAsString', 'a String')",
        "DESCRIBE file('/etc/hostname')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')",
        "SELECT * FROM s3('http://127.0.0.1:1/a.csv')",
        "SELECT * FROM remote('127.0.0.1:1', 'system', 'one')",
        "SELECT * FROM mergeTreeIndex(currentDatabase(), 'connection_records')",
        "SELECT * FROM numbers(1), merge(currentDatabase(), 'connection')",
        "SELECT * FROM executable('id', 'TSV', 'a String')",
        "SELECT 1; SELECT toDate(file('/etc/hostname'))",
    ] {
        let found = answer(&*store, query(sql, Access::ReadOnly)).await;
        assert!(
            matches!(found, Err(StoreError::Rejected { .. })),
            "{sql}: {found:?}"
        );
    }
}

async fn a_large_answer_arrives_whole(store: Shared) {
    let mut parts = store
        .query(query("SELECT number FROM numbers(3000000)", Access::ReadOnly))
        .await
        .unwrap();
    let (mut bytes, mut last, mut count) = (0, Vec::new(), 0);
    while let Some(part) = parts.next().await {
        let part = part.unwrap();
        bytes += part.len();
        count += 1;
        last = part.to_vec();
    }
    let expected: usize = [
        (10, 2),
        (90, 3),
        (900, 4),
        (9_000, 5),
        (90_000, 6),
        (900_000, 7),
        (2_000_000, 8),
    ]
    .iter()
    .map(|(numbers, length)| numbers * length)
    .sum();
    assert_eq!(bytes, expected);
    assert!(last.ends_with(b"2999999\n"));
    assert!(count > 10, "{count} parts: it was not streamed");
}

async fn an_error_in_the_middle_of_an_answer_is_not_its_end(store: Shared) {
    let sql = "SELECT throwIf(number = 9000000, 'half way') FROM numbers(10000000)";
    let mut parts = store.query(query(sql, Access::ReadOnly)).await.unwrap();
    while let Some(part) = parts.next().await {
        if part.is_err() {
            assert!(parts.next().await.is_none());
            return;
        }
    }
    panic!("the answer ended without its error");
}

async fn a_query_that_nobody_waits_for_ends(store: Shared) {
    // Years of work without a row, and one that never ends.
    let label = Instant::now().elapsed().as_nanos() ^ u128::from(std::process::id());
    for sql in [
        format!(
            "SELECT count() AS dropped_{label} FROM numbers(1000000000) AS a CROSS JOIN numbers(1000000000) AS b"
        ),
        format!("SELECT number AS dropped_{label} FROM system.numbers"),
    ] {
        let started = tokio::time::timeout(
            Duration::from_millis(500),
            store.query(query(&sql, Access::ReadOnly)),
        );
        drop(started.await);
        let running = format!(
            "SELECT count() FROM system.processes WHERE query LIKE '%dropped\\_{label}%' AND query NOT LIKE '%LIKE%'"
        );
        let dropped_at = Instant::now();
        while ask(&*store, &running).await != "0\n" {
            assert!(dropped_at.elapsed() < Duration::from_secs(10), "{sql} still runs");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn migrations_and_retention_work(store: Shared) {
    migrations::apply(&*store, NOON_NS).await.unwrap();
    migrations::apply(&*store, NOON_NS).await.unwrap();
    for table in schema::TABLES {
        schema::retain(&*store, table.name, 3_650).await.unwrap();
    }
    insert_ends(
        &*store,
        "1",
        &[end("a", 1, NOON_NS), end("b", 1, NOON_NS + SECOND_NS)],
    )
    .await;
    let found = answer(
        &*store,
        query(
            "SELECT node, recorded_at FROM connections ORDER BY node",
            Access::ReadOnly,
        ),
    );
    assert_eq!(
        found.await.unwrap(),
        "a\t2026-01-01 12:00:00.000000000\nb\t2026-01-01 12:00:01.000000000\n"
    );
}

async fn prepared_questions_can_be_asked(store: Shared) {
    migrations::apply(&*store, NOON_NS).await.unwrap();
    for table in schema::TABLES {
        schema::retain(&*store, table.name, 3_650).await.unwrap();
    }
    let mut follower = Follower::new(None, NOON_NS, 0, 0);
    assert!(follower.poll(&*store, NOON_NS).await.unwrap().is_none());
    insert_ends(&*store, "1", &[end("it's \\ a", 1, NOON_NS)]).await;
    let rows: Vec<_> = follower
        .poll(&*store, NOON_NS)
        .await
        .unwrap()
        .unwrap()
        .collect()
        .await;
    assert!(
        matches!(&rows[..], [Ok(row)] if row.starts_with(b"{\"node\":\"it's \\\\ a\"")),
        "{rows:?}"
    );
    assert!(follower.poll(&*store, NOON_NS).await.unwrap().is_none());

    let columns = filterable(schema::connections());
    for (filter, found) in [
        ("node = 'it''s \\ a' and remote_ip in ::/0", 1),
        ("node like '%\\\\%'", 1),
        ("node = 'b'", 0),
    ] {
        let filter = Filter::parse(filter, &columns).unwrap();
        let rows = answer(&*store, questions::connections(Some(&filter), NOON_NS, 5))
            .await
            .unwrap();
        assert_eq!(rows.lines().count(), found, "{filter}");
    }
    let outcomes = answer(&*store, questions::outcomes(0)).await.unwrap();
    assert_eq!(
        outcomes,
        "{\"role\":\"active\",\"outcome\":\"established\",\"attempts\":1}\n"
    );
    assert_eq!(answer(&*store, questions::nodes()).await.unwrap(), "");
}

async fn inserts_and_queries_run_at_once(store: Shared) {
    create(&store).await;
    let inserts = (0..20_u64).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { store.insert("t", &n.to_string(), block(&[n; 100], "a")).await })
    });
    let queries = (0..20).map(|_| {
        let store = store.clone();
        tokio::spawn(
            async move { answer(&*store, query("SELECT count() % 100 FROM t", Access::ReadOnly)).await },
        )
    });
    let (inserts, queries): (Vec<_>, Vec<_>) = (inserts.collect(), queries.collect());
    for insert in inserts {
        insert.await.unwrap().unwrap();
    }
    for query in queries {
        // A block is there whole or not at all.
        assert_eq!(query.await.unwrap().unwrap(), "0\n");
    }
    assert_eq!(ask(&*store, "SELECT count() FROM t").await, "2000\n");
}
