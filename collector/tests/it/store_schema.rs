//! The schema that migrations make, against what the code believes of it.

use holdfast_collector::store::{
    Access, Query, Store,
    layout::Layout,
    migrations::{self, MigrationError, NEWEST},
    native::{Column, Kind},
    schema::{self, CONNECTION_RECORDS, RETAINED, RETENTION_DAYS, TABLES},
    statement::text_value,
};

use crate::store_engine::{answer, ask, database, query};

/// 2026-01-01, in nanoseconds.
const NOW_NS: i64 = 1_767_225_600_000_000_000;

async fn columns(store: &dyn Store, table: &str) -> Vec<(String, String)> {
    let sql = format!(
        "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = '{table}' \
         AND default_kind = '' ORDER BY position FORMAT TSVRaw"
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
    assert_eq!(
        columns(&store, "open_connections").await,
        declared(schema::open_connections())
    );
    assert_eq!(columns(&store, "listeners").await, declared(schema::listeners()));
    assert_eq!(
        columns(&store, "transitions").await,
        declared(schema::transitions())
    );
    let syscalls: Vec<_> = columns(&store, "syscalls").await;
    assert!(
        declared(schema::syscalls())
            .iter()
            .all(|column| syscalls.contains(column))
    );
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
        "['attempt_causes','attempts','attempts_1m','cgroups','connection_workloads','connections','connections_1m',\
         'gaps','judges','latency_1m','ledger','listeners','namespaces','nodes','notifications','open_connections','overhead',\
         'peers','run_results','runs','silences','syscalls','transitions','verdict_changes','verdicts']\n"
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

/// What of it is for a cluster is carried out in `store_cluster`, but for replicas and what runs on all servers.
#[tokio::test]
async fn every_statement_parses_for_one_server_and_for_a_cluster() {
    let store = database();
    let cluster = Layout::cluster("{cluster}", "holdfast").unwrap();
    let parse = async |statement: &str| {
        let question = Query {
            sql: "SELECT formatQuery({statement:String})".into(),
            params: vec![("statement".into(), text_value(statement))],
            format: "TSVRaw".into(),
            access: Access::Internal,
        };
        answer(&store, question)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{statement}"))
    };
    for statement in migrations::all_statements(&Layout::OneServer) {
        let parsed = parse(&statement).await;
        assert!(!parsed.contains("CLUSTER") && !parsed.contains('{'), "{parsed}");
    }
    let (mut tables, mut distributed) = (0, 0);
    for statement in migrations::all_statements(&cluster) {
        let parsed = parse(&statement).await;
        assert!(parsed.contains("ON CLUSTER `{cluster}`"), "{parsed}");
        let replicated = ["MergeTree", "ReplacingMergeTree"]
            .map(|engine| format!("ENGINE = Replicated{engine}('/clickhouse/tables/"));
        if replicated.iter().any(|engine| parsed.contains(engine)) {
            tables += 1;
        }
        if parsed.contains("ENGINE = Distributed('{cluster}', 'holdfast', ") {
            distributed += 1;
        }
        // People read all shards: a view never names what is on one.
        let is_view = parsed.starts_with("CREATE OR REPLACE VIEW");
        assert!(!is_view || !parsed.contains("_local"), "{parsed}");
    }
    // Every table but the list of migrations, the claims, who judges, and what people want, which are the same on every server.
    assert_eq!((tables, distributed), (RETAINED.len() + 5, RETAINED.len()));
}

/// Two services on ten nodes for an hour, each a client of the other, and one attempt in fifty fails.
const ROWS: u64 = 400_000;

#[tokio::test]
async fn what_people_ask_reads_a_small_part() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    schema::retain(&store, CONNECTION_RECORDS.name, 3_650)
        .await
        .unwrap();
    let fill = format!(
        "INSERT INTO connection_records (node, service, role, outcome, recorded_at, connect_us, duration_us, local_port, \
         remote_port, agent_id, agent_epoch, sequence, is_first, is_final) \
         SELECT concat('node-', toString(number % 10)) AS node, if(intDiv(number, 10) % 2, 'web', 'db') AS service, \
         if(intDiv(number, 20) % 2, 'active', 'passive') AS role, \
         if(intDiv(number, 40) % 50, 'established', 'refused') AS outcome, \
         fromUnixTimestamp64Nano({NOW_NS} + intDiv(toInt64(number) * 3600000000000, {ROWS})), 100, 2000, \
         if(role = 'active', 20000 + number % 40000, if(service = 'db', 5432, 80)), \
         if(role = 'active', if(service = 'db', 80, 5432), 20000 + number % 40000), \
         node, 7, 1 + intDiv(number, 10000), true, true FROM numbers({ROWS})"
    );
    store.execute(&fill).await.unwrap();
    let explain = async |sql: &str| answer(&store, query(sql, Access::ReadOnly)).await.unwrap();
    for (question, most) in [
        // The order.
        (
            "attempts WHERE service = 'web' AND role = 'active' AND outcome = 'established'",
            3,
        ),
        ("attempts WHERE node = 'node-3' AND outcome != 'established'", 3),
        ("connections WHERE service = 'db' AND node = 'node-3'", 3),
        // The indexes.
        ("connections WHERE remote_port = 5432", 3),
        ("connections WHERE local_port = 5432", 3),
        // Of another time than all of a part.
        ("attempts WHERE decided_at >= '2026-01-02'", ROWS),
    ] {
        let estimate = explain(&format!("EXPLAIN ESTIMATE SELECT count() FROM {question}")).await;
        let read: u64 = estimate
            .split('\t')
            .nth(3)
            .map_or(0, |rows| rows.parse().unwrap());
        assert!(read <= ROWS / most, "{question} reads {read}");
        let found = ask(&store, &format!("SELECT count() FROM {question}")).await;
        assert!(
            found != "0\n" || question.contains("01-02"),
            "{question} finds nothing"
        );
    }
    // The projection.
    for question in [
        "SELECT * FROM ledger",
        "SELECT agent_epoch, sequence FROM connection_records WHERE node = 'node-3' AND agent_id = 'node-3' \
         AND agent_epoch = 7 AND sequence > 1 GROUP BY agent_epoch, sequence",
    ] {
        let plan = explain(&format!("EXPLAIN {question}")).await;
        assert!(plan.contains("ReadFromMergeTree (batches)"), "{plan}");
    }
}

/// Of a view of joins the engine (26.7) may look for a length that is stored nowhere.
#[tokio::test]
async fn people_may_ask_of_every_text_whether_it_is_empty() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    let texts = "SELECT table, name FROM system.columns WHERE database = currentDatabase() AND type LIKE '%String%' \
                 AND type NOT LIKE 'Array%' AND type NOT LIKE 'Map%' AND type NOT LIKE 'Tuple%' FORMAT TSVRaw";
    let texts = ask(&store, texts).await;
    assert!(texts.contains("run_results\trun_id\n"), "{texts}");
    for text in texts.lines() {
        let (table, name) = text.split_once('\t').unwrap();
        let question = format!("SELECT count() FROM `{table}` WHERE `{name}` = '' AND NOT empty(`{name}`)");
        let found = answer(&store, query(&question, Access::ReadOnly)).await;
        assert!(
            found.as_ref().is_ok_and(|count| count == "0\n"),
            "{question}: {found:?}"
        );
    }
}

#[tokio::test]
async fn what_was_reported_last_is_known_without_reading_all_reports() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    // The second word of each start has counted more, and is of a clock that was set back.
    for table in ["ledger_samples", "agent_samples", "overhead_samples"] {
        let columns = match table {
            "ledger_samples" => "observed_at, opened, closed, open",
            "agent_samples" => "observed_at, received_at, spool_batches, clock_error_ns",
            _ => "began_at, ended_at, cpus, resident_bytes",
        };
        let values = match table {
            "ledger_samples" => "now64(9) - number, 7 + number, 5, 2 + number",
            "agent_samples" => "now64(9) - number, now64(9) + number, number, 3",
            _ => "now64(9) + number, now64(9) + number + 1, 1, number",
        };
        store
            .execute(&format!(
                "INSERT INTO {table} (node, agent_id, agent_epoch, {columns}) \
                 SELECT 'n' AS node, node, 1, {values} FROM numbers(2)"
            ))
            .await
            .unwrap();
    }
    store
        .execute("INSERT INTO node_sessions (node, agent_id, agent_epoch, connected_at) VALUES ('n', 'n', 1, now64(9))")
        .await
        .unwrap();
    assert_eq!(
        ask(
            &store,
            "SELECT opened, closed, open, kernel_difference, is_latest FROM ledger"
        )
        .await,
        "8\t5\t3\t0\ttrue\n"
    );
    assert_eq!(
        ask(
            &store,
            "SELECT spool_batches, clock_error_ns, resident_bytes, up FROM nodes"
        )
        .await,
        "1\t3\t1\ttrue\n"
    );
    for (view, reads) in [("ledger", 4), ("nodes", 2)] {
        let plan = answer(
            &store,
            query(&format!("EXPLAIN SELECT * FROM {view}"), Access::ReadOnly),
        );
        let plan = plan.await.unwrap();
        assert_eq!(
            plan.matches("ReadFromMergeTree (latest)").count(),
            reads,
            "{plan}"
        );
    }
}

#[tokio::test]
async fn a_column_says_the_same_in_its_table_and_in_its_views() {
    let store = database();
    migrations::apply(&store, NOW_NS).await.unwrap();
    let differing = "SELECT name, groupUniqArray(comment) AS comments, groupUniqArray(type) AS types \
                     FROM system.columns WHERE database = currentDatabase() \
                     AND table IN ('connection_records', 'connections', 'attempts', 'transitions') \
                     GROUP BY name HAVING length(comments) > 1 OR length(types) > 1";
    assert_eq!(ask(&store, differing).await, "");
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
                   WHERE database = currentDatabase() AND engine LIKE '%MergeTree' AND name NOT IN ('schema_migrations', 'agent_claims', 'probe_settings', 'silence_records', 'judge_beats') \
                   ORDER BY name FORMAT TSVRaw";
    let modified = "SELECT sum(metadata_version) FROM system.tables WHERE database = currentDatabase()";
    let before = ask(&store, modified).await;
    for (table, _) in RETAINED {
        schema::retain(&store, table, RETENTION_DAYS).await.unwrap();
    }
    assert_eq!(ask(&store, modified).await, before);
    schema::retain(&store, CONNECTION_RECORDS.name, 7).await.unwrap();
    assert_eq!(
        ask(&store, changed).await,
        "agent_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         cause_records\ttoDateTime(recorded_at) + toIntervalDay(30)\n\
         cgroup_records\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         connection_minutes\ttoDateTime(minute) + toIntervalDay(30)\n\
         connection_records\ttoDateTime(recorded_at) + toIntervalDay(7)\n\
         connection_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         gap_records\ttoDateTime(recorded_at) + toIntervalDay(30)\n\
         ledger_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         listener_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         load_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         namespace_samples\ttoDateTime(observed_at) + toIntervalDay(30)\n\
         node_sessions\ttoDateTime(connected_at) + toIntervalDay(30)\n\
         notification_records\ttoDateTime(at) + toIntervalDay(30)\n\
         overhead_samples\ttoDateTime(ended_at) + toIntervalDay(30)\n\
         peer_samples\ttoDateTime(ended_at) + toIntervalDay(30)\n\
         probe_reports\ttoDateTime(reported_at) + toIntervalDay(30)\n\
         refused_batches\ttoDateTime(refused_at) + toIntervalDay(30)\n\
         run_records\ttoDateTime(began_at) + toIntervalDay(30)\n\
         syscall_samples\ttoDateTime(ended_at) + toIntervalDay(30)\n\
         transition_events\ttoDateTime(recorded_at) + toIntervalDay(30)\n\
         verdict_records\ttoDateTime(judged_at) + toIntervalDay(30)\n"
    );
}

#[tokio::test]
async fn a_retention_that_would_remove_everything_is_refused() {
    let store = database();
    for days in [0, 3_651, 36_500, u32::MAX] {
        let error = schema::retain(&store, CONNECTION_RECORDS.name, days)
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
