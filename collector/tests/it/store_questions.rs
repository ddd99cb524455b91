//! The prepared questions, asked of real rows.

use std::future::ready;
use std::{
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use futures_util::TryStreamExt;
use holdfast_collector::{
    filter::Filter,
    store::{
        Access, Store,
        condition::filterable,
        embedded::Embedded,
        migrations,
        questions::{self, Follower},
        schema,
    },
};
use serde_json::Value as Json;

use crate::{
    store_engine::{Rephrased, answer, ask, database, query},
    store_rows::{
        NOON_NS, Row, SECOND_NS, Value, end, insert_agent_samples, insert_ends, insert_samples,
        insert_sessions, with,
    },
};

async fn migrated() -> Embedded {
    let store = database();
    migrations::apply(&store, NOON_NS).await.unwrap();
    // The rows of tests are from a fixed day, which the default would remove.
    for table in schema::TABLES {
        schema::retain(&store, table.name, 3_650).await.unwrap();
    }
    store
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, &filterable(schema::connections())).unwrap()
}

fn rows(text: &str) -> Vec<Json> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn comms(store: &dyn Store, condition: &str) -> String {
    let question = questions::connections(Some(&filter(condition)), 0, 0);
    let found = rows(&answer(store, question).await.unwrap());
    found
        .iter()
        .map(|row| row["comm"].as_str().unwrap())
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test]
async fn filters_find_what_they_say() {
    let store = migrated().await;
    let row = |second: i64, comm: &str, values: [(&'static str, Value); 4]| {
        let row = with(end("a", 1, NOON_NS + second * SECOND_NS), [("comm", comm.into())]);
        with(row, values)
    };
    let values = |port: u64, ip: &'static str, outcome: &'static str, us: u64| {
        [
            ("remote_port", port.into()),
            ("remote_ip", Value::Ip(ip)),
            ("outcome", Value::Word(outcome)),
            ("connect_us", us.into()),
        ]
    };
    insert_ends(
        &store,
        "1",
        &[
            row(1, "nginx", values(80, "10.0.0.1", "established", 100)),
            row(2, "it's", values(5432, "10.255.0.1", "refused", 20_000)),
            row(3, "back\\slash", values(443, "11.0.0.1", "timed_out", 30_000_000)),
            row(4, "six", values(443, "fe80::1", "established", 5)),
        ],
    )
    .await;
    for (condition, expected) in [
        ("remote_port = 5432", "it's"),
        (
            "remote_port in (80, 443) and not remote_port = 80",
            "back\\slash six",
        ),
        ("comm = 'it''s'", "it's"),
        ("comm = \"back\\slash\"", "back\\slash"),
        ("comm like '%i%'", "nginx it's six"),
        ("comm not like '%i%'", "back\\slash"),
        ("outcome = refused", "it's"),
        ("outcome in (refused, timed_out)", "it's back\\slash"),
        ("outcome != established", "it's back\\slash"),
        ("remote_ip = 10.0.0.1", "nginx"),
        ("remote_ip in 10.0.0.0/8", "nginx it's"),
        ("remote_ip not in (10.0.0.0/8, fe80::/10)", "back\\slash"),
        ("remote_ip in ::ffff:0:0/96", "nginx it's back\\slash"),
        ("connect_us >= 20ms", "it's back\\slash"),
        ("connect_us < 0.1ms or connect_us = 30s", "back\\slash six"),
        ("closed_at <= '2026-01-01 12:00:02'", "nginx it's"),
        (
            "closed_at > '2026-01-01T12:00:02Z' and role = active",
            "back\\slash six",
        ),
        (
            "agent_epoch = 7 and sequence = 1 and cookie = 0 and node = 'a'",
            "nginx it's back\\slash six",
        ),
    ] {
        assert_eq!(comms(&store, condition).await, expected, "{condition}");
    }
}

#[tokio::test]
async fn every_column_that_can_be_filtered_by_can_be_compared() {
    let store = migrated().await;
    for column in filterable(schema::connections()) {
        use holdfast_collector::filter::Kind;
        let value = match column.kind {
            Kind::Number { .. } => "0",
            Kind::Text => "''",
            Kind::Word(words) => words[0].0,
            Kind::Address => "::",
            Kind::Time => "'1970-01-01'",
        };
        for text in [
            format!("{} = {value}", column.name),
            format!("{} not in ({value}, {value})", column.name),
        ] {
            assert_eq!(comms(&store, &text).await, "", "{text}");
        }
    }
}

#[tokio::test]
async fn the_newest_connections_come_oldest_first() {
    let store = migrated().await;
    let ends: Vec<Row> = (0..10_u64)
        .map(|n| {
            with(
                end("a", 1, NOON_NS + n.cast_signed() * SECOND_NS),
                [("cookie", n.into())],
            )
        })
        .collect();
    insert_ends(&store, "1", &ends).await;
    let cookies = async |since_ns, limit| {
        let found = rows(
            &answer(&store, questions::connections(None, since_ns, limit))
                .await
                .unwrap(),
        );
        found
            .iter()
            .map(|row| row["cookie"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(cookies(0, 3).await, [7, 8, 9]);
    assert_eq!(cookies(NOON_NS + 8 * SECOND_NS, 0).await, [8, 9]);
    assert_eq!(cookies(0, 0).await, (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_connection_that_is_open_is_an_attempt_and_not_a_connection() {
    let store = migrated().await;
    insert_ends(
        &store,
        "1",
        &[
            with(
                end("a", 1, NOON_NS),
                [("is_final", 0.into()), ("outcome", Value::Word("established"))],
            ),
            with(
                end("a", 1, NOON_NS),
                [("is_first", 0.into()), ("outcome", Value::Word("established"))],
            ),
            with(end("a", 1, NOON_NS), [("outcome", Value::Word("refused"))]),
        ],
    )
    .await;
    let counts = "SELECT (SELECT count() FROM attempts), (SELECT count() FROM connections)";
    assert_eq!(ask(&store, counts).await, "2\t2\n");
    let outcomes = rows(&answer(&store, questions::outcomes(0)).await.unwrap());
    assert_eq!(
        outcomes,
        [
            serde_json::json!({"role": "active", "outcome": "established", "attempts": 1}),
            serde_json::json!({"role": "active", "outcome": "refused", "attempts": 1}),
        ]
    );
}

/// The cookies of the rows of one poll, so many seconds after noon, oldest first.
async fn poll(follower: &mut Follower, store: &dyn Store, second: i64) -> Vec<u64> {
    let now_ns = NOON_NS + second * SECOND_NS;
    let Some(parts) = follower.poll(store, now_ns).await.unwrap() else {
        return vec![];
    };
    let parts: Vec<_> = parts.try_collect().await.unwrap();
    let text = String::from_utf8(parts.concat()).unwrap();
    rows(&text)
        .iter()
        .map(|row| row["cookie"].as_u64().unwrap())
        .collect()
}

#[tokio::test]
async fn following_shows_each_row_once_in_whatever_order_batches_arrive() {
    let store = migrated().await;
    let batch = async |agent: &str, sequence: u64, seconds: i64, cookies: &[u64]| {
        let at = NOON_NS + seconds * SECOND_NS;
        let ends: Vec<Row> = cookies
            .iter()
            .map(|&cookie| with(end(agent, sequence, at), [("cookie", cookie.into())]))
            .collect();
        insert_ends(&store, &format!("{}-{sequence}", agent.len()), &ends).await;
    };
    batch("it's \\ a", 1, -600, &[1]).await;
    batch("it's \\ a", 2, -1, &[2]).await;
    let mut last_minute = Follower::new(None, NOON_NS, 60 * SECOND_NS, 0);
    let mut only_new = Follower::new(Some(&filter("cookie != 4")), NOON_NS, 0, 0);
    assert_eq!(poll(&mut last_minute, &store, 0).await, [2]);
    assert_eq!(poll(&mut only_new, &store, 0).await, [0; 0]);

    // Out of order within an agent, another agent, an older time, two rows in one batch.
    batch("it's \\ a", 5, 2, &[5]).await;
    batch("b", 9, 1, &[9]).await;
    assert_eq!(poll(&mut last_minute, &store, 3).await, [9, 5]);
    assert_eq!(poll(&mut only_new, &store, 3).await, [9, 5]);
    assert_eq!(poll(&mut last_minute, &store, 3).await, [0; 0]);

    // What is old comes when everything is looked at again.
    batch("it's \\ a", 3, -1200, &[3, 33]).await;
    batch("it's \\ a", 4, 3, &[4]).await;
    batch("b", 1, 0, &[10]).await;
    assert_eq!(poll(&mut last_minute, &store, 5).await, [10, 4]);
    assert_eq!(poll(&mut only_new, &store, 5).await, [10]);
    assert_eq!(poll(&mut last_minute, &store, 10).await, [3, 33]);
    assert_eq!(poll(&mut only_new, &store, 10).await, [3, 33]);
    assert_eq!(poll(&mut only_new, &store, 30).await, [0; 0]);
}

#[tokio::test]
async fn following_begins_in_one_order_however_many_agents_there_are() {
    // Too many for the URL of one question, each with one row; 7 and 1000 have no divisor in common.
    const AGENTS: u64 = 1_000;
    let store = migrated().await;
    let insert = |agents: &str, sequence: u64| {
        format!(
            "INSERT INTO connection_records (node, agent_id, agent_epoch, sequence, recorded_at, cookie, is_first, is_final) \
             SELECT concat('a-node-with-a-long-name-', toString(number * 7 % {AGENTS})) AS node, node, 7, {sequence}, \
             fromUnixTimestamp64Nano({NOON_NS} - toInt64({AGENTS} - number) * 1000000), \
             {sequence} * {AGENTS} + number, true, true FROM numbers({agents})"
        )
    };
    store.execute(&insert(&AGENTS.to_string(), 1)).await.unwrap();
    // It gets another batch when it is asked for rows.
    let next = Mutex::new(Some(insert("10", 2)));
    let busy = Rephrased(store.clone(), move |sql: String| {
        let is_for_rows = sql.contains("FROM connections ");
        let batch = is_for_rows.then(|| next.lock().unwrap().take()).flatten();
        let store = store.clone();
        async move {
            if let Some(batch) = batch {
                store.execute(&batch).await.unwrap();
            }
            sql
        }
    });
    let mut newest = Follower::new(None, NOON_NS, 60 * SECOND_NS, 500);
    let mut follower = Follower::new(None, NOON_NS, 60 * SECOND_NS, 0);
    let all: Vec<u64> = (AGENTS..2 * AGENTS).collect();
    assert_eq!(poll(&mut follower, &busy, 0).await, all);
    let since: Vec<u64> = (2 * AGENTS..2 * AGENTS + 10).collect();
    assert_eq!(poll(&mut follower, &busy, 1).await, since);
    assert_eq!(poll(&mut follower, &busy, 11).await, [0; 0]);
    assert_eq!(poll(&mut newest, &busy, 0).await, all[500..]);
}

#[tokio::test]
async fn following_reads_what_is_new_and_little_of_what_is_there() {
    const RATE: i64 = 8_000;
    const OLD_SECONDS: i64 = 300;
    let store = migrated().await;
    // Rows of 20 nodes with a batch each second, between these seconds.
    let record = async |from: i64, until: i64| {
        let (rows, from_ns) = ((until - from) * RATE, NOON_NS + from * SECOND_NS);
        let sql = format!(
            "INSERT INTO connection_records (node, agent_id, agent_epoch, sequence, recorded_at, cookie, is_first, \
             is_final) SELECT concat('node-', toString(number % 20)) AS node, node, 7, \
             1000 + {from} + intDiv(number, {RATE}), \
             fromUnixTimestamp64Nano({from_ns} + intDiv(toInt64(number) * 1000000000, {RATE})), \
             number, true, true FROM numbers({rows})"
        );
        store.execute(&sql).await.unwrap();
    };
    record(-OLD_SECONDS, 0).await;
    let mut follower = Follower::new(None, NOON_NS, SECOND_NS, 0);
    assert_eq!(
        poll(&mut follower, &store, 0).await.len() as i64,
        RATE,
        "the last second"
    );

    record(0, 1).await;
    // Parts of other times are not read, and of a part that is of this time as well a few granules of each node.
    let frugal = Rephrased(store.clone(), |sql| {
        ready(format!("{sql} SETTINGS max_rows_to_read = 400000"))
    });
    assert_eq!(poll(&mut follower, &frugal, 1).await.len() as i64, RATE);
    record(1, 2).await;
    // With everything of the last hour looked at once more.
    assert_eq!(poll(&mut follower, &frugal, 12).await.len() as i64, RATE);
    let all = "SELECT cookie FROM connections";
    let error = answer(&frugal, query(all, Access::Internal)).await.unwrap_err();
    assert!(error.to_string().contains("TOO_MANY_ROWS"), "{error}");
}

fn now_ns() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

#[tokio::test]
async fn a_node_is_up_while_its_agent_is_heard_of() {
    let store = migrated().await;
    let at = |ns: i64| Value::Number(ns.cast_unsigned());
    let now = now_ns();
    let session = |node: &str, epoch: u64, ns: i64| {
        vec![
            ("node", node.into()),
            ("agent_id", node.into()),
            ("agent_epoch", epoch.into()),
            ("connected_at", at(ns)),
        ]
    };
    let sample = |node: &str, epoch: u64, ns: i64| {
        vec![
            ("node", node.into()),
            ("agent_id", node.into()),
            ("agent_epoch", epoch.into()),
            ("observed_at", at(ns)),
            ("received_at", at(ns)),
        ]
    };
    insert_sessions(
        &store,
        "1",
        &[
            session("reports", 1, now - 7_200 * SECOND_NS),
            session("reports", 2, now - 3_600 * SECOND_NS),
            session("new", 1, now),
            session("silent", 1, now - 3_600 * SECOND_NS),
        ],
    )
    .await;
    insert_agent_samples(
        &store,
        "1",
        &[
            sample("reports", 1, now - 4_000 * SECOND_NS),
            sample("reports", 2, now),
            sample("silent", 1, now - 60 * SECOND_NS),
        ],
    )
    .await;
    let nodes = rows(&answer(&store, questions::nodes()).await.unwrap());
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| {
            (
                node["node"].as_str().unwrap(),
                node["up"].as_bool().unwrap(),
                node["agent_epoch"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        nodes,
        [("new", true, 1), ("reports", true, 2), ("silent", false, 1)]
    );
}

#[tokio::test]
async fn the_ledger_has_the_latest_counters_beside_the_rows_that_are_stored() {
    let store = migrated().await;
    let sample = |netns: u64, second: i64, acknowledged: u64| -> Row {
        vec![
            ("node", "a".into()),
            ("agent_id", "a".into()),
            ("agent_epoch", 7.into()),
            ("netns", netns.into()),
            (
                "observed_at",
                Value::Number((NOON_NS + second * SECOND_NS).cast_unsigned()),
            ),
            ("acknowledged", acknowledged.into()),
        ]
    };
    insert_samples(
        &store,
        "1",
        &[
            sample(1, 0, 0),
            sample(1, 1, 2),
            sample(2, 1, 1),
            sample(0, 1, 3),
            sample(3, 1, 0),
        ],
    )
    .await;
    let ends: Vec<Row> = [1_u64, 1, 2]
        .map(|netns| with(end("a", 1, NOON_NS), [("netns", netns.into())]))
        .into();
    insert_ends(&store, "1", &ends).await;
    let ledger = "SELECT netns, acknowledged, rows_stored, store_difference FROM ledger ORDER BY netns";
    assert_eq!(
        answer(&store, query(ledger, Access::ReadOnly)).await.unwrap(),
        "0\t3\t0\t-3\n1\t2\t2\t0\n2\t1\t1\t0\n3\t0\t0\t0\n"
    );
}

#[tokio::test]
async fn the_latest_counters_are_those_that_counted_most_also_when_a_clock_was_set_back() {
    let store = migrated().await;
    let sample = |second: i64, opened: u64, acknowledged: u64, is_final: u64| -> Row {
        vec![
            ("node", "a".into()),
            ("agent_id", "a".into()),
            ("agent_epoch", 7.into()),
            ("netns", 1.into()),
            (
                "observed_at",
                Value::Number((NOON_NS + second * SECOND_NS).cast_unsigned()),
            ),
            ("opened", opened.into()),
            ("acknowledged", acknowledged.into()),
            ("is_final", is_final.into()),
        ]
    };
    let latest = "SELECT opened, acknowledged, is_final FROM ledger";
    insert_samples(&store, "1", &[sample(3_600, 5, 4, 0), sample(0, 5, 5, 0)]).await;
    assert_eq!(
        answer(&store, query(latest, Access::ReadOnly)).await.unwrap(),
        "5\t5\tfalse\n"
    );
    // The next start speaks for one that was killed, by a clock that was set back once more.
    insert_samples(&store, "2", &[sample(-3_600, 5, 5, 1)]).await;
    assert_eq!(
        answer(&store, query(latest, Access::ReadOnly)).await.unwrap(),
        "5\t5\ttrue\n"
    );
}

#[tokio::test]
async fn rows_that_a_table_no_longer_keeps_are_told_by_how_many_there_can_be() {
    const DAY: i64 = 24 * 3_600 * SECOND_NS;
    let store = migrated().await;
    let now = now_ns();
    let sample = |epoch: i64, age: i64, received: u64| -> Row {
        vec![
            ("node", "a".into()),
            ("agent_id", "a".into()),
            ("agent_epoch", (epoch / 1_000_000).cast_unsigned().into()),
            ("netns", 1.into()),
            ("observed_at", (now - age).cast_unsigned().into()),
            ("received", received.into()),
            ("acknowledged", received.into()),
        ]
    };
    let ends = |epoch: i64, age: i64, count: u64| {
        let end = with(
            end("a", 1, now - age),
            [
                ("netns", Value::Number(1)),
                ("agent_epoch", (epoch / 1_000_000).cast_unsigned().into()),
            ],
        );
        vec![end; count.try_into().unwrap()]
    };
    // One start runs for 40 days, one ended 35 days ago, and one is of today.
    let (running, ended, young) = (now - 40 * DAY, now - 41 * DAY, now - SECOND_NS);
    insert_samples(
        &store,
        "1",
        &[
            sample(running, 39 * DAY, 5),
            sample(running, 31 * DAY, 7),
            sample(running, 28 * DAY, 8),
            sample(running, 0, 20),
            sample(ended, 35 * DAY, 3),
            sample(young, 0, 4),
        ],
    )
    .await;
    let rows = [
        ends(running, 39 * DAY, 5),
        ends(running, 31 * DAY, 2),
        ends(running, 29 * DAY, 1),
        ends(running, SECOND_NS, 12),
        ends(ended, 35 * DAY, 3),
        ends(young, 0, 4),
    ];
    insert_ends(&store, "1", &rows.concat()).await;
    let ledger = "SELECT rows_stored, may_have_expired, store_difference FROM ledger ORDER BY agent_epoch";
    let told = async || answer(&store, query(ledger, Access::ReadOnly)).await.unwrap();
    assert_eq!(told().await, "3\t0\t0\n20\t0\t0\n4\t0\t0\n");
    schema::retain(&store, "connection_records", 30).await.unwrap();
    store
        .execute("OPTIMIZE TABLE connection_records FINAL")
        .await
        .unwrap();
    // Of the one that runs, one row of the eight can be so old only if a clock was set by a day.
    assert_eq!(told().await, "0\t3\t-3\n13\t8\t-7\n4\t0\t0\n");
    // Without a retention nothing expires.
    store
        .execute("ALTER TABLE connection_records REMOVE TTL")
        .await
        .unwrap();
    assert_eq!(told().await, "0\t0\t-3\n13\t0\t-7\n4\t0\t0\n");
}

#[tokio::test]
async fn one_statement_says_what_of_the_ledger_closes() {
    let store = migrated().await;
    let now = now_ns();
    // Heard of a minute ago, or in an hour: however long this takes, that is no silence.
    let heard = |agent_id: &'static str, epoch: u64, age_s: i64| -> Row {
        let at = Value::Number((now - age_s * SECOND_NS).cast_unsigned());
        vec![
            ("node", agent_id.into()),
            ("agent_id", agent_id.into()),
            ("agent_epoch", epoch.into()),
            ("observed_at", at.clone()),
            ("received_at", at),
        ]
    };
    let samples = [
        heard("live", 7, -3_600),
        heard("live", 8, -3_600),
        heard("quiet", 7, 60),
        heard("short", 7, -3_600),
    ];
    insert_agent_samples(&store, "1", &samples).await;
    let sample = |agent_id: &'static str, epoch: u64, netns: u64, counters: &[(&'static str, u64)]| -> Row {
        let mut row: Row = vec![
            ("node", agent_id.into()),
            ("agent_id", agent_id.into()),
            ("agent_epoch", epoch.into()),
            ("netns", netns.into()),
            ("observed_at", Value::Number(now.cast_unsigned())),
        ];
        row.extend(counters.iter().map(|(name, count)| (*name, (*count).into())));
        row
    };
    let mut rows = vec![
        // Everything is somewhere, on its way included.
        sample(
            "live",
            8,
            1,
            &[
                ("opened", 9),
                ("closed", 9),
                ("lost", 2),
                ("received", 7),
                ("batching", 7),
            ],
        ),
        // What is in the ring since a moment ago; and what came out of it in no report of half a minute.
        sample(
            "live",
            8,
            2,
            &[("opened", 9), ("closed", 9), ("received", 7), ("batching", 7)],
        ),
        // An open that nobody saw, and one that a counted miss explains.
        sample("live", 8, 4, &[("witnessed", 3), ("is_witnessed", 1)]),
        sample("quiet", 7, 4, &[("witnessed", 3), ("is_witnessed", 1)]),
        sample("quiet", 7, 0, &[("missed", 3)]),
        sample(
            "quiet",
            7,
            1,
            &[("opened", 1), ("closed", 1), ("received", 1), ("batching", 1)],
        ),
        sample("quiet", 7, 2, &[("received", 1), ("opened", 1), ("closed", 1)]),
        // A last word has nothing left in the ring, and nothing on its way.
        sample("short", 7, 1, &[("is_final", 1)]),
        sample("short", 7, 2, &[("is_final", 1), ("opened", 1), ("closed", 1)]),
        // More is stored than was counted: of a start that goes on, and of one that has a successor.
        sample("short", 7, 5, &[]),
        sample("live", 7, 5, &[]),
    ];
    for report in 0..30 {
        rows.push(sample(
            "live",
            8,
            3,
            &[
                ("opened", 9 + report),
                ("closed", 9 + report),
                ("received", 7 + report),
                ("batching", 7 + report),
            ],
        ));
    }
    // The ring is slow, but what was in it half a minute ago has come.
    for report in 0..30 {
        rows.push(sample(
            "live",
            8,
            6,
            &[
                ("opened", 9 + report),
                ("closed", 9 + report),
                ("received", 5 + report),
                ("batching", 5 + report),
            ],
        ));
    }
    insert_samples(&store, "1", &rows).await;
    let stored = |agent_id: &'static str| {
        with(
            end(agent_id, 1, now),
            [("netns", 5.into()), ("agent_epoch", 7.into())],
        )
    };
    insert_ends(&store, "1", &[stored("short"), stored("live")]).await;
    let ledger = "SELECT agent_id, agent_epoch, netns, balance, closes, difference FROM ledger \
                  ORDER BY agent_id, agent_epoch, netns";
    let told = answer(&store, query(ledger, Access::ReadOnly)).await.unwrap();
    assert_eq!(
        told.lines().collect::<Vec<_>>(),
        [
            "live\t7\t5\topen\tfalse\t1",
            "live\t8\t1\tcloses\ttrue\t0",
            "live\t8\t2\tcloses\ttrue\t0",
            "live\t8\t3\tcloses\ttrue\t0",
            "live\t8\t4\topen\tfalse\t3",
            "live\t8\t6\tcloses\ttrue\t0",
            "quiet\t7\t0\tsilent\t\\N\t0",
            "quiet\t7\t1\tsilent\t\\N\t0",
            "quiet\t7\t2\topen\tfalse\t1",
            "quiet\t7\t4\tsilent\t\\N\t0",
            "short\t7\t1\tcloses\ttrue\t0",
            "short\t7\t2\topen\tfalse\t1",
            "short\t7\t5\twaits\t\\N\t0",
        ]
    );
    // Half a minute later two of them are nowhere still.
    let mut rows = Vec::new();
    for _ in 0..29 {
        rows.push(sample(
            "live",
            8,
            2,
            &[("opened", 9), ("closed", 9), ("received", 7), ("batching", 7)],
        ));
    }
    insert_samples(&store, "2", &rows).await;
    let missing =
        "SELECT balance, ring_overdue, difference FROM ledger WHERE netns = 2 AND agent_id = 'live'";
    assert_eq!(
        answer(&store, query(missing, Access::ReadOnly)).await.unwrap(),
        "open\t2\t2\n"
    );
}
