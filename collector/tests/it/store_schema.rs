//! The schema that migrations make, against what the code believes of it.

use holdfast_collector::store::{
    Store,
    migrations::{self, MigrationError, NEWEST},
    native::{Column, Kind},
    schema::{self, CONNECTION_RECORDS, RETENTION_DAYS, TABLES},
};

use crate::store_engine::{ask, database};

/// 2026-01-01, in nanoseconds.
const NOW_NS: i64 = 1_767_225_600_000_000_000;

async fn columns(store: &dyn Store, table: &str) -> Vec<(String, String)> {
    let sql = format!(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = '{table}' \
         ORDER BY position FORMAT TSVRaw"
    );
    let text = ask(store, &sql).await;
    text.lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(a, b)| (a.into(), b.into()))
        .collect()
}

fn declared<'a>(columns: impl Iterator<Item = &'a Column>) -> Vec<(String, String)> {
    columns
        .map(|column| (column.name.to_owned(), column.kind.sql()))
        .collect()
}

#[tokio::test]
async fn the_tables_are_those_that_inserts_expect() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    for table in TABLES {
        assert_eq!(
            columns(&store, table.name).await,
            declared(table.columns.iter()),
            "{}",
            table.name
        );
    }
    assert_eq!(
        columns(&store, "connections").await,
        declared(schema::connections())
    );
    assert_eq!(columns(&store, "attempts").await, declared(schema::attempts()));
}

#[tokio::test]
async fn every_column_and_every_table_has_a_comment() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    let columns =
        "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND comment = ''";
    assert_eq!(ask(&store, columns).await, "");
    let tables = "SELECT name FROM system.tables WHERE database = currentDatabase() AND comment = ''";
    assert_eq!(ask(&store, tables).await, "");
    let views = "SELECT groupArray(name) FROM (SELECT name FROM system.tables WHERE database = currentDatabase() \
                 AND engine = 'View' ORDER BY name)";
    assert_eq!(
        ask(&store, views).await,
        "['attempts','connections','gaps','ledger','nodes']\n"
    );
    // A number that is a time or a size says so in its comment, not only in its name.
    for (suffix, unit) in [("_us", "microseconds"), ("bytes_", "bytes"), ("_at", "UTC")] {
        let missing = format!(
            "SELECT table, name, comment FROM system.columns WHERE database = currentDatabase() \
             AND position(name, '{suffix}') AND NOT position(comment, '{unit}')"
        );
        assert_eq!(ask(&store, &missing).await, "");
    }
}

#[tokio::test]
async fn migrations_run_once_and_may_be_interrupted_anywhere() {
    let store = database();
    // As a crash leaves it: the statements ran, the step was not noted.
    migrations::apply(&store, NOW_NS).await.unwrap();
    store.execute("TRUNCATE TABLE schema_migrations").await.unwrap();
    migrations::apply(&store, NOW_NS + 1).await.unwrap();
    migrations::apply(&store, NOW_NS + 2).await.unwrap();
    let applied = ask(
        &store,
        "SELECT version, toUnixTimestamp64Nano(applied_at) FROM schema_migrations ORDER BY version",
    )
    .await;
    let expected: Vec<_> = (1..=NEWEST)
        .map(|version| format!("{version}\t{}\n", NOW_NS + 1))
        .collect();
    assert_eq!(applied, expected.concat());
}

#[tokio::test]
async fn a_database_of_a_newer_collector_is_left_alone() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    store
        .execute("INSERT INTO schema_migrations SELECT 99, 'from the future', now()")
        .await
        .unwrap();
    let error = migrations::apply(&store, NOW_NS).await.unwrap_err();
    assert!(matches!(error, MigrationError::Newer { found: 99 }));
    assert_eq!(
        error.to_string(),
        format!("the database has schema 99, this collector knows {NEWEST} at most: upgrade the collector")
    );
}

#[tokio::test]
async fn retention_is_changed_only_where_it_differs() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    let changed = "SELECT name, extract(engine_full, 'TTL (.*) SETTINGS') FROM system.tables \
                   WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name != 'schema_migrations' \
                   ORDER BY name FORMAT TSVRaw";
    let modified = "SELECT sum(metadata_version) FROM system.tables WHERE database = currentDatabase()";
    let before = ask(&store, modified).await;
    for table in TABLES {
        schema::retain(&store, table, RETENTION_DAYS).await.unwrap();
    }
    assert_eq!(ask(&store, modified).await, before);
    schema::retain(&store, &CONNECTION_RECORDS, 7).await.unwrap();
    assert_eq!(
        ask(&store, changed).await,
        "agent_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         connection_records\ttoDateTime(recorded_at) + toIntervalDay(7)\n\
         gap_records\ttoDateTime(recorded_at) + toIntervalDay(30)\n\
         ledger_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         node_sessions\ttoDateTime(connected_at) + toIntervalDay(30)\n"
    );
}

#[tokio::test]
async fn a_retention_that_would_remove_everything_is_refused() {
    let store = database();
    for days in [0, 3_651, 36_500, u32::MAX] {
        let error = schema::retain(&store, &CONNECTION_RECORDS, days)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("connection_records") && error.contains("from 1 to 3650"),
            "{error}"
        );
    }
}

#[test]
fn enums_are_those_of_the_protocol() {
    use holdfast_proto::v1::{Attribution, CloseReason, Outcome, Role, Stream};
    let check = |column: &str, name_of: &dyn Fn(i32) -> Option<String>, prefix: &str| {
        let column = TABLES
            .iter()
            .flat_map(|table| table.columns)
            .find(|found| found.name == column)
            .unwrap();
        let Kind::Enum8(declared) = column.kind else {
            panic!("{} is no enum", column.name)
        };
        let of_the_protocol: Vec<_> = (0..64)
            .filter_map(|value| name_of(value).map(|name| (name, value)))
            .map(|(name, value)| (name.strip_prefix(prefix).unwrap().to_lowercase(), value))
            .filter(|(name, _)| name != "unspecified")
            .collect();
        let declared: Vec<_> = declared
            .iter()
            .map(|&(name, value)| (name.to_owned(), i32::from(value)))
            .collect();
        assert_eq!(declared, of_the_protocol, "{}", column.name);
    };
    check(
        "role",
        &|n| Role::try_from(n).ok().map(|v| v.as_str_name().into()),
        "ROLE_",
    );
    check(
        "outcome",
        &|n| Outcome::try_from(n).ok().map(|v| v.as_str_name().into()),
        "OUTCOME_",
    );
    check(
        "close_reason",
        &|n| CloseReason::try_from(n).ok().map(|v| v.as_str_name().into()),
        "CLOSE_REASON_",
    );
    check(
        "attribution",
        &|n| Attribution::try_from(n).ok().map(|v| v.as_str_name().into()),
        "ATTRIBUTION_",
    );
    check(
        "stream",
        &|n| Stream::try_from(n).ok().map(|v| v.as_str_name().into()),
        "STREAM_",
    );
}
