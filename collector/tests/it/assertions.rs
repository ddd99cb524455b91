//! Assertions on the real engine: made-up pasts, judged window by window.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use holdfast_collector::assertion::Set;
use holdfast_collector::assertion::state::{Machine, Verdict};
use holdfast_collector::clock::WallClock;
use holdfast_collector::engine::check::{self, Extent};
use holdfast_collector::engine::heard::Heard;
use holdfast_collector::engine::run::{Declared, Judge, SharedSet};
use holdfast_collector::engine::trial::{self, Outcome};
use holdfast_collector::engine::{Engine, files};
use holdfast_collector::metrics::Metrics;
use holdfast_collector::notify;
use holdfast_collector::notify::book::Change;
use holdfast_collector::seat::{self, Seat};
use holdfast_collector::silence::Silencer;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::server::Server;
use holdfast_collector::store::verdicts::{self, Reach, Record, Stood};
use holdfast_collector::store::{Block, Chunks, Query, Store, StoreError, migrations, notifications};

use tokio::sync::watch;

use crate::clickhouse_http::{PASSWORD, USER};
use crate::harness::{database, folder, number};
use crate::store_engine;
use crate::synthetic::now_ns;

const SECOND_NS: i64 = 1_000_000_000;

fn declared(text: &str) -> Set {
    files::declared(&[("a.yaml".to_owned(), text.to_owned())]).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the first test of a file.
async fn tried(text: &str) -> Outcome {
    tried_on(database().await, text).await
}

async fn tried_on(store: Arc<dyn Store>, text: &str) -> Outcome {
    let set = declared(text);
    trial::run(store, &set, &set.tests[0], now_ns() - 3_600 * SECOND_NS)
        .await
        .unwrap()
}

/// Every expectation of the first test of a file is met.
async fn check(text: &str) {
    let outcome = tried(text).await;
    assert!(outcome.differences.is_empty(), "{}", outcome.text());
    assert!(!outcome.timeline.is_empty());
}

#[tokio::test]
async fn what_fails_is_pending_and_then_violated_and_a_silent_node_is_unknown() {
    check(
        "
assertions:
  - name: web reaches the database
    from: all
    to: all:5432
    expect: [connect.p99 < 20ms, connect.refused_ratio < 0.1%]
    over: 10s
    every: 5s
    by: from.node
    for: 30s
tests:
  - assertion: web reaches the database
    given: { web-1 -> db-1: '5ms x30s, refused x60s, silent x60s' }
    expect: { 30s: Holds, 40s: Pending, 80s: Violated, 120s: Unknown }
",
    )
    .await;
}

#[tokio::test]
async fn a_percentile_is_judged_exactly_at_its_limit() {
    for (limit, verdict) in [("20ms", "Violated"), ("20001us", "Holds")] {
        check(&format!(
            "
assertions:
  - {{ name: a, from: all, to: all, expect: connect.p99 < {limit}, over: 10s, every: 5s }}
tests:
  - assertion: a
    given: {{ web-1 -> db-1: '20ms x30s' }}
    expect: {{ 30s: {verdict} }}
"
        ))
        .await;
    }
}

#[tokio::test]
async fn the_servers_end_and_finished_connections_are_judged_too() {
    for expect in [
        "connect.count = 100",
        "connect.p50 < 1ms",
        "connections.closed = 100",
        "rtt.p99 < 1ms",
        "connections.duration.p50 > 1ms",
    ] {
        check(&format!(
            "
assertions:
  - {{ name: a, on: 'all:80', expect: '{expect}', over: 10s, every: 5s, by: [on.node, port] }}
tests:
  - assertion: a
    given: {{ web-1 -> db-1: '20ms x40s' }}
    expect: {{ 35s: Holds }}
"
        ))
        .await;
    }
}

#[tokio::test]
async fn one_silent_node_stalls_nothing_but_what_depends_on_it() {
    let outcome = tried(
        "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, by: from.node }
tests:
  - assertion: a
    given: { web-1 -> db-1: '5ms x20s, silent x40s', web-2 -> db-1: '5ms x30s, refused x30s' }
    expect: { 60s: Holds }
",
    )
    .await;
    let said = |key: &str| -> Vec<(u64, Verdict)> {
        let of_key = outcome
            .timeline
            .iter()
            .filter(|(_, found, ..)| found.ends_with(key));
        of_key
            .map(|(at, _, verdict, _)| (at.as_secs(), *verdict))
            .collect()
    };
    // The first windows began before anybody watched.
    let silent = said("web-1");
    assert!(
        matches!(
            silent[..],
            [
                (0, Verdict::Unknown),
                (5, Verdict::Holds),
                (19..=21, Verdict::Unknown)
            ]
        ),
        "{silent:?}"
    );
    let other = said("web-2");
    assert!(
        matches!(
            other[..],
            [
                (0, Verdict::Unknown),
                (5, Verdict::Holds),
                (30, Verdict::Violated)
            ]
        ),
        "{other:?}"
    );
}

#[tokio::test]
async fn loss_in_a_window_makes_it_unknown_and_says_whose() {
    let outcome = tried(
        "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s }
tests:
  - assertion: a
    given: { web-1 -> db-1: '5ms x20s, lost x3s, 5ms x30s' }
    expect: { 15s: Holds, 23s: Unknown, 50s: Holds }
",
    )
    .await;
    assert!(outcome.differences.is_empty(), "{}", outcome.text());
    let unknown = outcome
        .timeline
        .iter()
        .filter(|(at, _, verdict, _)| *verdict == Verdict::Unknown && at.as_secs() > 5);
    let causes: Vec<_> = unknown.map(|(.., cause)| cause.as_str()).collect();
    assert_eq!(causes, ["1 rows of web-1 are missing"], "{}", outcome.text());
}

#[tokio::test]
async fn how_much_is_lost_is_stored_with_a_verdict_and_told() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x20s, lost x1s, 5ms x30s' }, expect: { 15s: Holds } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    let mut engine = Engine::new(store.clone(), set, begin_ns + 1, true);
    stepped(&mut engine, begin_ns, 0, 40).await;
    let changes = "SELECT verdict, cause, loss FROM verdict_changes WHERE node = 'web-1' ORDER BY window_to FORMAT TSVRaw";
    let said = store_engine::ask(&*store, changes).await;
    let said: Vec<_> = said.lines().collect();
    // Before its agent was there nobody counted.
    assert_eq!(
        said,
        [
            "unknown\tweb-1 was not watched all the time: its agent started\t\\N",
            "holds\t\t0",
            "unknown\t1 rows of web-1 are missing\t1",
            "holds\t\t0",
        ]
    );
    let told = notifications::changes(&*store, begin_ns).await.unwrap();
    let told = told.iter().filter(|change| change.key == "from.node=web-1");
    let losses: BTreeSet<_> = told.map(|change| (change.verdict.name(), change.loss)).collect();
    assert_eq!(
        losses,
        BTreeSet::from([("unknown", None), ("unknown", Some(1)), ("holds", Some(0))])
    );
    for query in [
        verdicts::history("a", begin_ns),
        verdicts::latest(
            "a",
            Reach {
                since_ns: begin_ns,
                rare_since_ns: begin_ns,
            },
            begin_ns + 40 * SECOND_NS,
        ),
    ] {
        let answer = store_engine::answer(&*store, query).await.unwrap();
        let of_node: Vec<serde_json::Value> = answer
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|row: &serde_json::Value| row["node"] == "web-1")
            .collect();
        assert_eq!(of_node.last().unwrap()["loss"], 0, "{answer}");
    }
}

/// A store with the past that the one test of these assertions makes, and when it began.
async fn laid_down(text: &str) -> (Arc<Embedded>, Set, i64) {
    let set = declared(text);
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    trial::run(store.clone(), &set, &set.tests[0], begin_ns)
        .await
        .unwrap();
    (store, set, begin_ns)
}

#[tokio::test]
async fn what_was_said_goes_on_after_the_engine_was_killed() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, for: 40s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x20s, refused x100s' }, expect: { 110s: Violated } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    let mut engine = Engine::new(store.clone(), set.clone(), begin_ns + 1, true);
    let mut now = begin_ns;
    // Killed while it is pending, without a word: what it knows is in the store.
    while now < begin_ns + 45 * SECOND_NS {
        engine.step(now).await.unwrap();
        now += SECOND_NS / 2;
    }
    let last = "SELECT verdict FROM verdict_records WHERE node = 'web-1' ORDER BY window_to DESC LIMIT 1";
    assert_eq!(store_engine::ask(&*store, last).await.trim(), "pending");
    drop(engine);
    now += 10 * SECOND_NS;
    let mut engine = Engine::new(store.clone(), set, now, true);
    engine.resume(now).await.unwrap();
    while now < begin_ns + 100 * SECOND_NS {
        engine.step(now).await.unwrap();
        now += SECOND_NS / 2;
    }
    assert_eq!(store_engine::ask(&*store, last).await.trim(), "violated");
    let transitions = "SELECT count() FROM verdict_records WHERE is_transition AND verdict = 'violated'";
    assert_eq!(number(&store, transitions).await, 1);
    // It failed since the window that ended 21 s in, or a little later, whoever judged it: 40 s after that it is violated.
    let when = format!(
        "SELECT toUnixTimestamp64Nano(since) - {begin_ns} FROM verdict_records WHERE is_transition AND verdict = 'violated'"
    );
    let since = Duration::from_nanos(number(&store, &when).await);
    assert!((60..=62).contains(&since.as_secs()), "{since:?}");
}

#[tokio::test]
async fn a_violation_goes_on_after_the_engine_was_killed_and_is_over_when_it_is() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, clear_after: 40s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x20s, refused x20s, 5ms x80s' }, expect: { 30s: Violated } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    let mut engine = Engine::new(store.clone(), set.clone(), begin_ns + 1, true);
    let last = "SELECT verdict FROM verdict_records WHERE node = 'web-1' ORDER BY window_to DESC LIMIT 1";
    let mut now = begin_ns;
    // Killed while it fails, and again while it holds and has not held for long enough.
    for until in [30, 60, 120] {
        while now < begin_ns + until * SECOND_NS {
            engine.step(now).await.unwrap();
            now += SECOND_NS / 2;
        }
        if until < 120 {
            assert_eq!(
                store_engine::ask(&*store, last).await.trim(),
                "violated",
                "{until}"
            );
            now += 5 * SECOND_NS;
            engine = Engine::new(store.clone(), set.clone(), now, true);
            engine.resume(now).await.unwrap();
        }
    }
    let changes = format!(
        "SELECT verdict, intDiv(toUnixTimestamp64Nano(since) - {begin_ns}, {SECOND_NS}) FROM verdict_records \
         WHERE node = 'web-1' AND is_transition AND verdict != 'unknown' ORDER BY window_to"
    );
    let said = store_engine::ask(&*store, &changes).await;
    let said: Vec<_> = said.lines().map(|line| line.split_once('\t').unwrap()).collect();
    let verdicts: Vec<_> = said.iter().map(|(verdict, _)| *verdict).collect();
    assert_eq!(verdicts, ["holds", "violated", "holds"], "{said:?}");
    // The last window with a refusal ended 45 s in; 40 s later it has held for long enough.
    let over: i64 = said[2].1.parse().unwrap();
    assert!((84..=87).contains(&over), "{said:?}");
}

#[tokio::test]
async fn nothing_passes_and_nothing_fails_for_want_of_rows() {
    for (expect, more, verdict) in [
        // Of nothing there is no percentile, and no part of it failed.
        ("connect.p99 < 20ms", "", "Unknown"),
        ("connect.refused_ratio < 1%", "", "Unknown"),
        ("connections.retransmit_ratio < 1%", "", "Unknown"),
        ("connect.refused_ratio < 1%", ", no_data: holds", "Holds"),
        ("connect.refused_ratio < 1%", ", no_data: violated", "Violated"),
        // How often nothing happened is known.
        ("connect.refused = 0", "", "Holds"),
        ("connect.count = 0", "", "Holds"),
        ("connect.count > 0", "", "Violated"),
    ] {
        check(&format!(
            "
assertions:
  - {{ name: a, from: all, to: all, expect: {expect}, over: 10s, every: 5s{more} }}
tests:
  - {{ assertion: a, given: {{ web-1 -> db-1: '5ms x20s, nothing x30s' }}, expect: {{ 45s: {verdict} }} }}
"
        ))
        .await;
    }
}

/// While no collector ran nobody was heard: who comes back was there, and who does not is down since then.
#[tokio::test]
async fn who_was_not_heard_while_no_collector_ran_is_not_called_down_for_it() {
    let text = "
assertions:
  - { name: a, on: all, expect: node.up = true, over: 10s, every: 1s, for: 1m, by: on.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: 'nothing x350s' }, expect: { 20s: Holds } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    let mut engine = Engine::new(store.clone(), set.clone(), begin_ns + 1, true);
    stepped(&mut engine, begin_ns, 0, 60).await;
    drop(engine);
    hear_nobody(&store, begin_ns + 60 * SECOND_NS, begin_ns + 245 * SECOND_NS).await;
    let now_ns = begin_ns + 240 * SECOND_NS;
    let mut engine = Engine::new(store, set, now_ns, true);
    engine.resume(now_ns).await.unwrap();
    let mut said = Vec::new();
    for quarter in 0..4 * 100 {
        let step = engine.step(now_ns + quarter * SECOND_NS / 4).await.unwrap();
        said.extend(step.records.into_iter().filter(|record| record.is_transition));
    }
    let of = |node: &str| {
        let of_node = said.iter().filter(|record| record.node == node);
        let changes = of_node.map(|record| {
            (
                (record.window_to_ns - begin_ns) / SECOND_NS,
                record.machine.verdict,
            )
        });
        changes.collect::<Vec<_>>()
    };
    assert_eq!(of("web-1"), []);
    // Up to ten seconds after it was heard last it was there.
    assert_eq!(
        of("db-1"),
        [
            (71, Verdict::Unknown),
            (262, Verdict::Pending),
            (322, Verdict::Violated)
        ]
    );
}

/// Forgets what agents reported from a time on, and what web-1 did until it was back.
async fn hear_nobody(store: &Embedded, from_ns: i64, back_ns: i64) {
    let heard = format!(
        "CREATE TABLE heard ENGINE = MergeTree ORDER BY (node, observed_at) AS SELECT * FROM agent_samples \
         WHERE received_at <= fromUnixTimestamp64Nano({from_ns}, 'UTC') \
         OR (node = 'web-1' AND received_at >= fromUnixTimestamp64Nano({back_ns}, 'UTC'))"
    );
    for sql in [&heard, "TRUNCATE TABLE agent_samples"] {
        store.execute(sql).await.unwrap();
    }
    let again = "INSERT INTO agent_samples SELECT * FROM heard";
    store.derive(again, Vec::new()).await.unwrap();
}

/// For longer than nodes are expected: they are not given up for it, and what needs them does not hold without them.
#[tokio::test]
async fn who_was_not_heard_while_the_collector_stood_still_is_neither_down_nor_gone() {
    let text = "
expect_nodes_for: 1m
assertions:
  - { name: up, on: all, expect: node.up = true, over: 10s, every: 1s, by: on.node }
  - { name: none, from: all, expect: connect.refused = 0, over: 5s, every: 1s }
tests:
  - { assertion: up, given: { web-1 -> db-1: 'nothing x170s' }, expect: { 20s: Holds } }
";
    let set = declared(text);
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    hear_nobody(&store, begin_ns + 60 * SECOND_NS, begin_ns + 142 * SECOND_NS).await;
    let mut engine = Engine::new(store, set, begin_ns + 40 * SECOND_NS, true);
    engine.resume(begin_ns + 40 * SECOND_NS).await.unwrap();
    let mut said = Vec::new();
    for second in (40..60).chain(130..165) {
        let step = engine.step(begin_ns + second * SECOND_NS).await.unwrap();
        let changes = step.records.into_iter().filter(|record| record.is_transition);
        said.extend(changes.map(|record| {
            let at = (record.window_to_ns - begin_ns) / SECOND_NS;
            (at, record.assertion, record.node, record.machine.verdict)
        }));
    }
    said.retain(|(at, ..)| *at > 59);
    said.sort_by_key(|(at, assertion, ..)| (*at, assertion.clone()));
    let expected = [
        (60, "none", "", Verdict::Unknown),
        (71, "up", "db-1", Verdict::Unknown),
        // It could have come back, and is missed no more once all that waited for it is judged.
        (152, "up", "db-1", Verdict::Violated),
        (159, "none", "", Verdict::Holds),
        (159, "up", "db-1", Verdict::Unknown),
    ];
    let expected =
        expected.map(|(at, assertion, node, verdict)| (at, assertion.to_owned(), node.to_owned(), verdict));
    assert_eq!(said, expected);
}

/// Long after anybody judged, and while another assertion was judged all along.
#[tokio::test]
async fn what_was_said_is_found_again_however_long_nobody_judged() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node }
  - { name: b, from: all, to: all, expect: connect.count < 1_000_000, over: 5s, every: 1s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x20s, refused x40s' }, expect: { 50s: Violated } }
";
    let set = declared(text);
    let store = database().await;
    let now = now_ns();
    let begin_ns = (now - 9 * 86_400 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    trial::run(store.clone(), &set, &set.tests[0], begin_ns)
        .await
        .unwrap();
    let mut engine = Engine::new(store.clone(), set.clone(), begin_ns + 1, true);
    for second in 0..50 {
        engine.step(begin_ns + second * SECOND_NS).await.unwrap();
    }
    drop(engine);
    let later = "INSERT INTO verdict_records SELECT * REPLACE (now64(9, 'UTC') AS judged_at, now64(9, 'UTC') AS window_to) \
                 FROM verdict_records WHERE assertion = 'b' ORDER BY window_to DESC LIMIT 1";
    store.execute(later).await.unwrap();

    let violated = |engine: &Engine| {
        let verdicts = engine.verdicts();
        verdicts
            .iter()
            .find(|(verdict, _)| *verdict == Verdict::Violated)
            .unwrap()
            .1
    };
    let mut engine = Engine::new(store.clone(), set, now, true);
    assert_eq!(violated(&engine), 0);
    engine.resume(now).await.unwrap();
    assert_eq!(violated(&engine), 1);
    // Who tells of it finds it too: the last change of each key, and nothing twice.
    let changes = notifications::changes(&*store, now - 86_400 * SECOND_NS)
        .await
        .unwrap();
    let of_a: Vec<_> = changes.iter().filter(|change| change.assertion == "a").collect();
    let keys: BTreeSet<_> = of_a.iter().map(|change| &change.key).collect();
    assert_eq!(keys.len(), of_a.len(), "{changes:?}");
    let is_violated = |change: &&&Change| change.verdict == Verdict::Violated;
    assert_eq!(of_a.iter().filter(is_violated).count(), 1, "{changes:?}");
}

#[tokio::test]
async fn a_reload_keeps_what_means_the_same() {
    let set = |threshold: &str, about: &str| {
        declared(&format!(
            "
assertions:
  - {{ name: a, description: '{about}', from: all, to: all, expect: connect.refused {threshold}, over: 5s, every: 1s, for: 30s }}
tests:
  - {{ assertion: a, given: {{ web-1 -> db-1: '5ms x20s, refused x100s' }}, expect: {{ 110s: Violated }} }}
"
        ))
    };
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    let first = set("= 0", "one");
    trial::run(store.clone(), &first, &first.tests[0], begin_ns)
        .await
        .unwrap();
    let mut engine = Engine::new(store.clone(), first, begin_ns + 1, false);
    let mut said = Vec::new();
    for step in 0..140 {
        let now = begin_ns + step * SECOND_NS / 2;
        match step {
            80 => engine.replace(set("= 0", "another text"), now),
            120 => engine.replace(set("< 1", "another meaning"), now),
            _ => {}
        }
        let records = engine.step(now).await.unwrap().records;
        said.extend(
            records
                .into_iter()
                .filter(|record| record.is_transition)
                .map(|record| (step / 2, record.machine.verdict)),
        );
    }
    let verdicts: Vec<_> = said.iter().map(|(_, verdict)| *verdict).collect();
    // Begun anew where it means something else.
    assert_eq!(
        verdicts,
        [
            Verdict::Unknown,
            Verdict::Holds,
            Verdict::Pending,
            Verdict::Violated,
            Verdict::Pending
        ],
        "{said:?}"
    );
}

/// A store that answers nothing while it is away, and in bad times not every question.
struct Shaky {
    store: Arc<dyn Store>,
    /// It answers one question in so many; zero: none.
    one_in: AtomicU64,
    asked: AtomicU64,
}

impl Shaky {
    fn check(&self) -> Result<(), StoreError> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        match self.one_in.load(Ordering::Relaxed) {
            1 => Ok(()),
            one_in if one_in > 0 && asked.is_multiple_of(one_in) => Ok(()),
            _ => Err(StoreError::Unavailable {
                message: "the store is away".into(),
            }),
        }
    }
}

#[async_trait::async_trait]
impl Store for Shaky {
    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        self.check()?;
        self.store.insert(table, token, block).await
    }

    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        self.check()?;
        self.store.query(query).await
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.check()?;
        self.store.execute(sql).await
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        self.check()?;
        self.store.derive(sql, params).await
    }
}

fn transitions(records: &[Record], begin_ns: i64) -> Vec<(String, i64, Verdict)> {
    let changes = records.iter().filter(|record| record.is_transition);
    let mut changes: Vec<_> = changes
        .map(|record| {
            let at = (record.window_to_ns - begin_ns) / SECOND_NS;
            (
                format!("{} {}", record.assertion, record.key),
                at,
                record.machine.verdict,
            )
        })
        .collect();
    changes.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
    changes
}

#[tokio::test]
async fn a_store_that_is_away_for_a_minute_delays_verdicts_and_changes_none() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node, for: 10s }
  - { name: b, from: all, to: all, expect: connect.refused_ratio < 10%, over: 10s, every: 5s }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x30s, refused x30s, 5ms x20s, refused x100s' }, expect: { 110s: Violated } }
";
    let set = declared(text);
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    let mut outcomes = Vec::new();
    for is_shaky in [false, true] {
        let store = database().await;
        trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
            .await
            .unwrap();
        let shaky = Arc::new(Shaky {
            store: store.clone(),
            one_in: AtomicU64::new(1),
            asked: AtomicU64::new(0),
        });
        let mut engine = Engine::new(shaky.clone(), set.clone(), begin_ns + 1, true);
        for half in 0..300 {
            let one_in = match half {
                _ if !is_shaky => 1,
                // It answers some questions and not others, is away for a minute, and back.
                60..80 => 3,
                80..200 => 0,
                200..220 => 2,
                _ => 1,
            };
            shaky.one_in.store(one_in, Ordering::Relaxed);
            let stepped = engine.step(begin_ns + half * SECOND_NS / 2).await;
            assert!(one_in != 1 || stepped.is_ok(), "{:?}", stepped.err());
        }
        assert_eq!((engine.given_up, engine.waiting()), (0, 0));
        // What was stored, not what was said: nothing is lost on the way.
        let sql = format!(
            "SELECT assertion, key, intDiv(toUnixTimestamp64Nano(window_to) - {begin_ns}, {SECOND_NS}) AS at, verdict \
             FROM verdict_records WHERE is_transition ORDER BY assertion, key, at"
        );
        outcomes.push(store_engine::ask(&*store, &sql).await);
    }
    assert!(outcomes[0].contains("violated"), "{}", outcomes[0]);
    assert_eq!(outcomes[0], outcomes[1]);
}

#[tokio::test]
async fn a_store_that_stays_away_is_what_there_is_to_say() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 60s, every: 10s }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x5m' }, expect: { 110s: Holds } }
";
    let set = declared(text);
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    let store = database().await;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    // Everything but the rows themselves.
    store
        .execute("RENAME TABLE connection_records TO elsewhere")
        .await
        .unwrap();
    let mut engine = Engine::new(store, set, begin_ns + 1, false);
    let mut said = Vec::new();
    for second in 0..250 {
        if let Ok(step) = engine.step(begin_ns + second * SECOND_NS).await {
            said.extend(step.records);
        }
    }
    assert!(!said.is_empty());
    for record in &said {
        assert_eq!(record.machine.verdict, Verdict::Unknown);
        assert!(
            record.cause.starts_with("the store did not answer: "),
            "{}",
            record.cause
        );
    }
}

#[tokio::test]
async fn a_node_that_is_gone_for_good_is_told_and_then_not_expected_any_more() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.count < 1_000_000, over: 1m, every: 1m, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: 'nothing x4m', web-2 -> db-1: 'nothing x4m' }, expect: { 3m: Holds } }
";
    let set = declared(text);
    let store = database().await;
    let begin_ns = (now_ns() - 4 * 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    // web-2 goes on for two hours more, web-1 and db-1 leave for good.
    let sql = "INSERT INTO agent_samples SELECT * REPLACE (observed_at + toIntervalSecond(5 * number) AS observed_at, \
               received_at + toIntervalSecond(5 * number) AS received_at, watermark_at + toIntervalSecond(5 * number) AS watermark_at, \
               attempts_watermark_at + toIntervalSecond(5 * number) AS attempts_watermark_at) FROM \
               (SELECT * FROM agent_samples WHERE node = 'web-2' ORDER BY observed_at DESC LIMIT 1) AS last \
               CROSS JOIN (SELECT number FROM numbers(1, 1600)) AS later";
    store
        .derive(
            &sql.replace("SELECT * REPLACE", "SELECT last.* REPLACE"),
            Vec::new(),
        )
        .await
        .unwrap();
    let mut engine = Engine::new(store, set, begin_ns + 1, false);
    let mut said = Vec::new();
    for step in 0..480 {
        let records = engine
            .step(begin_ns + step * 15 * SECOND_NS)
            .await
            .unwrap()
            .records;
        said.extend(records.into_iter().map(|record| (step / 4, record)));
    }
    let of = |node: &str| {
        let of_node = said.iter().filter(|(_, record)| record.key.ends_with(node));
        of_node.collect::<Vec<_>>()
    };
    let gone = of("web-1");
    let causes: Vec<&str> = gone
        .iter()
        .filter(|(_, record)| record.machine.verdict == Verdict::Unknown)
        .map(|(_, record)| record.cause.as_str())
        .collect();
    assert!(causes.contains(&"web-1 is silent"), "{causes:?}");
    // It is said until the end of the time for which nodes are expected, and then no more.
    let (last, record) = gone.last().expect("something was said of it");
    assert!((60..70).contains(last), "{last} minutes: {}", record.cause);
    assert!(record.cause.starts_with("web-1 is gone"), "{}", record.cause);
    let here = of("web-2");
    assert!(
        here.last()
            .is_some_and(|(last, record)| *last >= 118 && record.machine.verdict == Verdict::Holds)
    );
    let wrong = said
        .iter()
        .any(|(_, record)| matches!(record.machine.verdict, Verdict::Violated | Verdict::Pending));
    assert!(!wrong);
}

#[tokio::test]
async fn a_node_that_is_declared_is_missed_if_it_never_came_and_however_long_it_is_gone() {
    let text = "
nodes: { web-1: { role: web }, web-9: }
assertions:
  - { name: a, from: all, expect: connect.count < 1_000_000, over: 1m, every: 1m, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: 'nothing x4m', web-2 -> db-1: 'nothing x4m' }, expect: { 3m: Holds } }
";
    let mut set = declared(text);
    // In a test nobody is missed whom it does not name.
    check(text).await;

    let store = database().await;
    let begin_ns = (now_ns() - 4 * 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    let mut engine = Engine::new(store, set.clone(), begin_ns + 1, false);
    let mut said: BTreeMap<String, (Verdict, String)> = BTreeMap::new();
    let mut pass = async |engine: &mut Engine, minutes: std::ops::Range<i64>| {
        for quarter in 4 * minutes.start..4 * minutes.end {
            for record in engine
                .step(begin_ns + quarter * 15 * SECOND_NS)
                .await
                .unwrap()
                .records
            {
                said.insert(record.key, (record.machine.verdict, record.cause));
            }
        }
        said.clone()
    };
    let of = |said: &BTreeMap<String, (Verdict, String)>, node: &str| {
        let found = said.iter().find(|(key, _)| key.ends_with(node));
        found.map(|(_, found)| found.clone()).expect("it was judged")
    };
    let silent = |node: &str| (Verdict::Unknown, format!("{node} is silent"));
    let found = pass(&mut engine, 0..4).await;
    assert_eq!(of(&found, "web-1").0, Verdict::Holds);
    assert_eq!(of(&found, "web-9"), silent("web-9"));
    // Of those that left, who is declared is silent, and the other one is gone.
    let found = pass(&mut engine, 4..90).await;
    assert_eq!(of(&found, "web-1"), silent("web-1"));
    assert!(of(&found, "web-2").1.starts_with("web-2 is gone"), "{found:?}");
    // Who is declared no more is missed no more.
    set.nodes.clear();
    engine.replace(set, begin_ns + 90 * 60 * SECOND_NS);
    let found = pass(&mut engine, 90..94).await;
    assert!(!of(&found, "web-9").1.ends_with("is silent"), "{found:?}");
}

#[tokio::test]
async fn how_long_a_node_is_expected_is_what_the_files_say() {
    let text = |expected: &str| {
        format!(
            "
{expected}
assertions:
  - {{ name: a, from: all, expect: connect.count < 1_000_000, over: 10s, every: 10s }}
tests:
  - assertion: a
    given: {{ web-1 -> web-2: 'nothing x1m, silent x5m', web-2 -> web-1: 'nothing x6m' }}
    expect: {{ 30s: Holds, 2m: Unknown, 3m: Unknown, 5m: Holds }}
"
        )
    };
    // A test judges as the collector does: without it, five minutes are not long enough.
    check(&text("expect_nodes_for: 3m")).await;
    let outcome = tried(&text("")).await;
    assert_eq!(outcome.differences.len(), 1, "{}", outcome.text());

    // It is taken up with the files.
    let (store, mut set, begin_ns) = laid_down(&text("")).await;
    let mut engine = Engine::new(store, set.clone(), begin_ns + 1, false);
    engine.tell_every_window();
    let last = async |engine: &mut Engine, minutes: std::ops::Range<i64>| {
        let mut said = Vec::new();
        for second in (60 * minutes.start..60 * minutes.end).step_by(5) {
            said.extend(engine.step(begin_ns + second * SECOND_NS).await.unwrap().records);
        }
        let last = said.last().expect("it was judged");
        (last.machine.verdict, last.cause.clone())
    };
    let silent = (Verdict::Unknown, "web-1 is silent".to_owned());
    assert_eq!(last(&mut engine, 0..3).await, silent);
    set.expect_nodes_for = Some(Duration::from_secs(60));
    engine.replace(set.clone(), begin_ns + 180 * SECOND_NS);
    assert_eq!(last(&mut engine, 3..4).await, (Verdict::Holds, String::new()));
    set.expect_nodes_for = Some(Duration::from_secs(600));
    engine.replace(set, begin_ns + 240 * SECOND_NS);
    assert_eq!(last(&mut engine, 4..5).await, silent);
}

#[tokio::test]
async fn of_a_node_that_is_gone_it_is_told_how_long_it_was_expected() {
    let text = "
expect_nodes_for: 3m
assertions:
  - { name: a, from: all, expect: connect.count < 1_000_000, over: 10s, every: 10s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: 'nothing x1m, silent x5m', db-1 -> web-2: 'nothing x6m' }, expect: { 30s: Holds } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    let mut engine = Engine::new(store, set, begin_ns + 1, false);
    let mut said = Vec::new();
    for second in (0..300).step_by(5) {
        said.extend(engine.step(begin_ns + second * SECOND_NS).await.unwrap().records);
    }
    let last = said.iter().rfind(|record| record.node == "web-1").unwrap();
    assert_eq!(
        last.cause,
        "web-1 is gone: silent for 3m, and not expected any more"
    );
    assert!(last.is_over());
}

#[tokio::test]
async fn what_flaps_is_violated_by_its_share_and_counted() {
    let outcome = tried(
        "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 2s, every: 2s, for: 3 of 5, clear_after: 8s }
tests:
  - assertion: a
    given: { web-1 -> db-1: '5ms x20s, refused x2s, 5ms x2s, refused x2s, 5ms x2s, refused x2s, 5ms x2s, refused x2s, 5ms x26s' }
    expect: { 20s: Holds, 22s: Pending, 24s: Holds, 30s: Violated, 60s: Holds }
",
    )
    .await;
    assert!(outcome.differences.is_empty(), "{}", outcome.text());
    let violations = outcome
        .timeline
        .iter()
        .filter(|(_, _, verdict, _)| *verdict == Verdict::Violated);
    assert_eq!(violations.count(), 1, "{}", outcome.text());
}

#[tokio::test]
async fn a_question_of_ones_own_reads_only_and_what_goes_wrong_with_it_is_its_own() {
    let of = |sql: &str, expect: &str| {
        format!(
            "
assertions:
  - {{ name: a, sql: \"{sql}\", expect: 'value {expect}', over: 10s, every: 5s, deadline: 5s }}
tests:
  - assertion: a
    given: {{ web-1 -> db-1: '5ms x30s, refused x60s', web-2 -> db-1: '5ms x90s' }}
    expect: {{ 30s: Holds, 80s: Violated }}
"
        )
    };
    let window = "decided_at > {from:DateTime64(9, 'UTC')} AND decided_at <= {until:DateTime64(9, 'UTC')}";
    let by_node = tried(&of(
        &format!("SELECT node, countIf(outcome = 'refused') AS value FROM attempts WHERE role = 'active' AND {window} GROUP BY node"),
        "< 1",
    ))
    .await;
    let said: Vec<_> = by_node
        .timeline
        .iter()
        .map(|(at, key, verdict, _)| (at.as_secs(), key.as_str(), *verdict))
        .collect();
    assert!(
        said.contains(&(35, "node=web-1", Verdict::Violated)),
        "{said:?}\n{}",
        by_node.text()
    );
    assert!(
        said.iter()
            .all(|(_, key, verdict)| *key != "node=web-2" || *verdict != Verdict::Violated),
        "{said:?}"
    );
    for (sql, cause) in [
        (format!("SELECT nothing AS value FROM attempts WHERE {window}"), "its `sql` failed: "),
        (
            format!("SELECT * FROM (SELECT count() AS number FROM attempts WHERE {window})"),
            "its `sql` failed: its answer has no column `value`",
        ),
        // The parser does not know every function that reaches beyond the database, the store does.
        (
            format!("SELECT count() + length(showCertificate()) AS value FROM attempts WHERE {window}"),
            "its `sql` failed: ",
        ),
        (
            "SELECT sum(cityHash64(number)) AS value FROM numbers(100000000000) WHERE {from:String} != {until:String}"
                .to_owned(),
            "its `sql` failed: no answer within 5 s",
        ),
    ] {
        let set = declared(&of(&sql, "< 1"));
        let store = database().await;
        let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
        trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
            .await
            .unwrap();
        let mut engine = Engine::new(store, set, begin_ns + 19 * SECOND_NS, false);
        engine.stop_at(begin_ns + 21 * SECOND_NS);
        let mut said = Vec::new();
        for second in 20..30 {
            said.extend(engine.step(begin_ns + second * SECOND_NS).await.unwrap().records);
        }
        assert_eq!(transitions(&said, begin_ns).len(), 1, "{sql}: {said:?}");
        assert_eq!(said[0].machine.verdict, Verdict::Unknown);
        assert!(said[0].cause.starts_with(cause), "{sql}: {}", said[0].cause);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_of_ones_own_reads_only_on_a_server_too() {
    let address = store_engine::server().await;
    let window = "decided_at > {from:DateTime64(9, 'UTC')} AND decided_at <= {until:DateTime64(9, 'UTC')}";
    for (name, sql, verdict, cause) in [
        (
            "own_words",
            format!(
                "SELECT node, countIf(outcome = 'refused') AS value FROM attempts WHERE role = 'active' AND {window} GROUP BY node"
            ),
            Verdict::Violated,
            "value < 1",
        ),
        (
            "own_mistake",
            format!("SELECT nothing AS value FROM attempts WHERE {window}"),
            Verdict::Unknown,
            "its `sql` failed: ",
        ),
        (
            "own_reach",
            format!("SELECT count() + length(showCertificate()) AS value FROM attempts WHERE {window}"),
            Verdict::Unknown,
            "its `sql` failed: ",
        ),
    ] {
        let url = format!("http://{USER}@{address}/{name}_{}", address.port());
        let store = Server::new(&url, Some(PASSWORD)).unwrap();
        store.prepare().await.unwrap();
        migrations::apply(&store, now_ns()).await.unwrap();
        let outcome = tried_on(
            Arc::new(store),
            &format!(
                "
assertions:
  - {{ name: a, sql: \"{sql}\", expect: 'value < 1', over: 10s, every: 5s, deadline: 5s }}
tests:
  - assertion: a
    given: {{ web-1 -> db-1: '5ms x20s, refused x20s' }}
    expect: {{ 40s: Violated }}
"
            ),
        )
        .await;
        let last = outcome.timeline.last();
        assert!(
            last.is_some_and(|(_, _, said, why)| *said == verdict && why.starts_with(cause)),
            "{sql}:\n{}",
            outcome.text()
        );
    }
}

/// A clock that shows `ns` when it is read first, and goes so many times as fast as others.
fn clock_from(ns: i64, speed: i64) -> WallClock {
    let started = OnceLock::new();
    WallClock::new(move || {
        let elapsed = started.get_or_init(Instant::now).elapsed();
        ns + speed * elapsed.as_nanos() as i64
    })
}

/// What a check tells.
async fn checked(
    store: Arc<Embedded>,
    set: Set,
    clock: &WallClock,
    extent: Extent,
    heard: &Heard,
) -> Vec<serde_json::Value> {
    let (answer, lines) = tokio::sync::mpsc::channel(100);
    check::check(store, set, clock, extent, heard, &answer)
        .await
        .unwrap();
    drop(answer);
    let lines = tokio_stream::wrappers::ReceiverStream::new(lines);
    let row = |line: Result<String, StoreError>| serde_json::from_str(&line.unwrap()).unwrap();
    lines.map(row).collect().await
}

/// As the assertions that the collector judges itself: who was not heard may have had nobody to speak to.
#[tokio::test]
async fn a_check_right_after_a_start_calls_nobody_down_who_is_on_the_way_back() {
    let text = "
assertions:
  - { name: a, on: all, expect: node.up = true, over: 10s, every: 1s, by: on.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: 'nothing x350s' }, expect: { 20s: Holds } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    hear_nobody(&store, begin_ns + 60 * SECOND_NS, begin_ns + 245 * SECOND_NS).await;
    let now_ns = begin_ns + 240 * SECOND_NS;
    let extents = [Extent::Once, Extent::For(Duration::from_secs(15))];
    // From one look to the next a check takes so many quarters of a second of its clock: more than ten seconds of it are no
    // pause of the collector either.
    for (extent, started_s, speed, expected) in [
        (extents[0], 60, 20, "violated"),
        (extents[0], 60, 50, "violated"),
        (extents[0], 238, 20, "unknown"),
        (extents[1], 238, 20, "unknown"),
    ] {
        let heard = Heard::default();
        heard.open(begin_ns + started_s * SECOND_NS);
        let clock = clock_from(now_ns, speed);
        let rows = checked(store.clone(), set.clone(), &clock, extent, &heard).await;
        let said: BTreeSet<_> = rows
            .iter()
            .filter(|row| row["key"] == "on.node=db-1")
            .map(|row| row["verdict"].as_str().unwrap())
            .collect();
        assert_eq!(
            said,
            BTreeSet::from([expected]),
            "{extent:?} {started_s} {speed}: {rows:?}"
        );
    }
}

#[tokio::test]
async fn a_check_of_now_tells_of_the_last_window_of_each_assertion() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 1s }
  - { name: b, from: all, expect: connect.failed_ratio < 100%, over: 30m }
tests:
  - { assertion: a, given: { web-1 -> db-1: 'refused x50s, 5ms x45s, nothing x25s' }, expect: { 30s: Violated } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    // A minute takes a second: long windows wait for their minutes.
    let clock = clock_from(begin_ns + 110 * SECOND_NS, 60);
    let mut told = Vec::new();
    for row in checked(store, set, &clock, Extent::Once, &Heard::default()).await {
        let window_ns = [("a", 110), ("b", 60)].map(|(name, after_s)| (name, begin_ns + after_s * SECOND_NS));
        let (name, to_ns) = window_ns
            .into_iter()
            .find(|(name, _)| row["assertion"] == *name)
            .unwrap();
        assert_eq!(row["window_to"], check::utc(to_ns), "{name}: {row}");
        told.push((name, row["verdict"].as_str().unwrap().to_owned()));
    }
    told.sort_unstable();
    assert_eq!(told, [("a", "holds".to_owned()), ("b", "unknown".to_owned())]);
}

#[tokio::test]
async fn a_budget_burns_where_it_does_in_both_windows() {
    let text = |given: &str, expect: &str| {
        format!(
            "
assertions:
  - {{ name: a, from: all, to: all, slo: connect.failed_ratio < 1%, burn: {{ page-1h: off, page-6h: off, ticket-1d: off, ticket-3d: off, fast: 10x over 10m and 2m }} }}
tests:
  - {{ assertion: 'a: fast', given: {{ web-1 -> db-1: '{given}' }}, expect: {expect} }}
"
        )
    };
    // 10 % of ten minutes is one minute; the short window has to fail at the same time.
    check(&text(
        "5ms x12m, refused x3m, 5ms x5m",
        "{ 12m: Holds, 14m: Violated, 16m: Violated, 17m: Holds, 20m: Holds }",
    ))
    .await;
    // A blip that fills the short window alone.
    check(&text(
        "5ms x12m, refused x30s, 5ms x5m",
        "{ 12m: Holds, 13m: Holds, 14m: Holds, 17m: Holds }",
    ))
    .await;
}

#[tokio::test]
async fn a_test_of_what_is_not_declared_is_no_test_that_passed() {
    let mut set = declared(
        "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x10s' }, expect: { 10s: Holds } }
",
    );
    set.tests[0].assertion = "b".to_owned();
    let outcome = trial::run(
        database().await,
        &set,
        &set.tests[0],
        now_ns() - 3_600 * SECOND_NS,
    )
    .await;
    let error = outcome.expect_err("there is no `b`").to_string();
    assert_eq!(error, "there is no assertion `b`: nothing would be tested");
}

#[tokio::test]
async fn long_windows_are_read_from_minutes_and_come_to_the_same() {
    use holdfast_collector::assertion::{coverage::Window, plan};
    use holdfast_collector::store::evidence;
    let set = declared(
        "
assertions:
  - { name: a, from: all, expect: [connect.failed_ratio < 1%, connect.count > 1], over: 40m, every: 1m, by: [from.node, port] }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x20m, refused x15m, timed_out x10m' }, expect: { 110s: Violated } }
",
    );
    let store = database().await;
    let begin_ns = (now_ns() - 2 * 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    let first = u32::try_from(begin_ns / (60 * SECOND_NS)).unwrap();
    let units: Vec<_> = (first..first + 46)
        .flat_map(|minute| ["web-1", "db-1"].map(|node| (minute, node.to_owned())))
        .map(|(minute, node)| holdfast_collector::store::rollups::NodeMinute { minute, node })
        .collect();
    holdfast_collector::store::rollups::recompute(&*store, &units)
        .await
        .unwrap();
    let schedule = &plan::schedules(&set)[0];
    assert_eq!(schedule.classes.len(), 1);
    // No row is of these very moments, which a minute has and a window does not; a window may begin within a minute.
    for after_ms in [0, 50_050] {
        let from_ns = begin_ns + after_ms * SECOND_NS / 1_000;
        let window = Window {
            from_ns,
            to_ns: from_ns + 40 * 60 * SECOND_NS,
        };
        let mut answers = Vec::new();
        for has_rollup in [true, false] {
            let sql = evidence::question(&schedule.classes[0], window, has_rollup).sql;
            assert_eq!(sql.contains("attempts_1m"), has_rollup);
            let mut rows = evidence::ask(&*store, &schedule.classes[0], window, has_rollup)
                .await
                .unwrap()
                .unwrap();
            rows.sort_by(|one, other| (&one.node, one.port).cmp(&(&other.node, other.port)));
            answers.push(rows);
        }
        assert!(!answers[0].is_empty());
        assert_eq!(answers[0], answers[1], "{after_ms} ms after the minute");
    }
}

/// Each of them says what it is for, and is seen to hold and to be violated.
#[tokio::test]
async fn the_examples_pass_their_own_tests() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let set = files::declared(&files::read(&[path]).unwrap()).unwrap();
    assert_eq!(set.assertions.len(), 10);
    let untested = |name: &String| set.tests.iter().all(|test| test.assertion != *name);
    let untested: Vec<_> = set
        .assertions
        .iter()
        .map(|known| &known.name)
        .filter(|name| untested(name))
        .collect();
    assert!(untested.is_empty(), "without a test: {untested:?}");
    for known in &set.assertions {
        assert!(
            !known.description.is_empty(),
            "{} says not what it is for",
            known.name
        );
        let tests = set.tests.iter().filter(|test| test.assertion == known.name);
        let expected: BTreeSet<_> = tests
            .flat_map(|test| &test.expect)
            .map(|(_, said)| *said)
            .collect();
        // One that never fails may be one that cannot.
        for verdict in [Verdict::Holds, Verdict::Violated] {
            assert!(expected.contains(&verdict), "{} is never {verdict:?}", known.name);
        }
    }
    for (number, test) in set.tests.iter().enumerate() {
        let store: Arc<dyn Store> = database().await;
        let begin_ns = now_ns() - 4 * 3_600 * SECOND_NS;
        let outcome = trial::run(store, &set, test, begin_ns).await.unwrap();
        assert!(
            outcome.differences.is_empty(),
            "test {number} of {}:\n{}",
            test.assertion,
            outcome.text()
        );
    }
}

#[tokio::test]
async fn what_is_judged_no_more_gets_a_last_word_also_by_the_next_engine() {
    let named = |name: &str| {
        declared(&format!(
            "
assertions:
  - {{ name: {name}, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node }}
tests:
  - {{ assertion: {name}, given: {{ web-1 -> db-1: 'refused x100s' }}, expect: {{ 50s: Violated }} }}
"
        ))
    };
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    let first = named("a");
    trial::run(store.clone(), &first, &first.tests[0], begin_ns)
        .await
        .unwrap();
    let mut engine = Engine::new(store.clone(), first, begin_ns + 1, true);
    for step in 0..60 {
        engine.step(begin_ns + step * SECOND_NS / 2).await.unwrap();
    }
    let last_of = |name: &str| {
        format!(
            "SELECT evidence FROM verdict_records WHERE assertion = '{name}' AND node = 'web-1' ORDER BY window_to DESC LIMIT 1"
        )
    };
    // Renamed while it is judged.
    engine.replace(named("b"), begin_ns + 30 * SECOND_NS);
    for step in 60..90 {
        engine.step(begin_ns + step * SECOND_NS / 2).await.unwrap();
    }
    let said = store_engine::ask(&*store, &last_of("a")).await;
    assert!(said.contains("is_over"), "{said}");
    let said = store_engine::ask(&*store, &last_of("b")).await;
    assert!(said.contains("readings"), "{said}");
    // Renamed while nobody judged.
    drop(engine);
    let now = begin_ns + 46 * SECOND_NS;
    let mut engine = Engine::new(store.clone(), named("c"), now, true);
    engine.resume(now).await.unwrap();
    engine.step(now).await.unwrap();
    let said = store_engine::ask(&*store, &last_of("b")).await;
    assert!(said.contains("is_over"), "{said}");
}

/// Steps twice a second from then until then, in seconds after `begin_ns`, and gives what was said.
async fn stepped(engine: &mut Engine, begin_ns: i64, from: i64, until: i64) -> Vec<Record> {
    let mut said = Vec::new();
    for half in 2 * from..2 * until {
        let step = engine.step(begin_ns + half * SECOND_NS / 2).await.unwrap();
        said.extend(step.records);
    }
    said
}

#[tokio::test]
async fn what_stood_for_a_group_without_nodes_gets_a_last_word_once_there_is_one() {
    let text = "
assertions:
  - { name: a, from: node = web-1, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x60s' }, expect: { 50s: Holds } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    let mut engine = Engine::new(store.clone(), set, begin_ns - 20 * SECOND_NS, true);
    let said = stepped(&mut engine, begin_ns, -20, 40).await;
    let of_nobody: Vec<_> = said.iter().filter(|record| record.key.is_empty()).collect();
    assert_eq!(of_nobody[0].cause, "no node belongs to node = web-1");
    let last = of_nobody.last().unwrap();
    assert!(last.is_over(), "{last:?}");
    assert_eq!(last.cause, "its assertion has no such key any more");
    // What is said of the node that came is another key's.
    let now = said
        .iter()
        .rfind(|record| record.key == "from.node=web-1")
        .unwrap();
    assert!(!now.is_over() && now.machine.verdict == Verdict::Holds, "{now:?}");
    // The view shows what is judged.
    let last = "SELECT key, evidence = '{\"is_over\":true}' FROM verdict_records ORDER BY window_to DESC LIMIT 1 BY key";
    let stored = store_engine::ask(&*store, last).await;
    let mut stored: Vec<_> = stored.lines().collect();
    stored.sort_unstable();
    assert_eq!(stored, ["\t1", "from.node=web-1\t0"]);
}

#[tokio::test]
async fn keys_that_another_meaning_does_not_have_get_a_last_word_and_the_same_key_goes_on() {
    let set = |by: &str, limit: &str| {
        declared(&format!(
            "
assertions:
  - {{ name: a, from: all, to: all, expect: connect.refused {limit}, over: 5s, every: 1s, {by} }}
tests:
  - {{ assertion: a, given: {{ web-1 -> db-1: 'refused x150s' }}, expect: {{ 50s: Violated }} }}
"
        ))
    };
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    let first = set("by: from.node", "= 0");
    trial::run(store.clone(), &first, &first.tests[0], begin_ns)
        .await
        .unwrap();
    let mut engine = Engine::new(store, first, begin_ns + 1, false);
    stepped(&mut engine, begin_ns, 0, 20).await;
    // Another limit, the same keys: that is no end.
    engine.replace(set("by: from.node", "< 1"), begin_ns + 20 * SECOND_NS);
    let said = stepped(&mut engine, begin_ns, 20, 40).await;
    let ended: Vec<_> = said.iter().filter(|record| record.is_over()).collect();
    assert!(ended.is_empty(), "{ended:?}");
    assert!(said.iter().any(|record| record.key == "from.node=web-1"));
    // Other keys: those from before are told to be over, once nothing can come to them any more.
    engine.replace(set("for: 0s", "= 0"), begin_ns + 40 * SECOND_NS);
    let said = stepped(&mut engine, begin_ns, 40, 140).await;
    let ended: Vec<_> = said
        .iter()
        .filter(|record| record.is_over())
        .map(|record| (record.key.as_str(), record.previous, record.cause.as_str()))
        .collect();
    let cause = "its assertion has no such key any more";
    assert!(
        ended.contains(&("from.node=web-1", Verdict::Violated, cause)),
        "{ended:?}"
    );
    assert!(ended.iter().all(|(key, _, _)| !key.is_empty()), "{ended:?}");
    assert!(
        said.iter()
            .any(|record| record.key.is_empty() && record.machine.verdict == Verdict::Violated)
    );
}

#[tokio::test]
async fn another_reason_why_it_is_unknown_is_stored_soon_and_not_with_every_window() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x30s, lost x30s, silent x60s' }, expect: { 20s: Holds } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    let mut every = Engine::new(store.clone(), set.clone(), begin_ns + 1, false);
    every.tell_every_window();
    let all = stepped(&mut every, begin_ns, 0, 120).await;
    let mut engine = Engine::new(store, set, begin_ns + 1, true);
    let written = stepped(&mut engine, begin_ns, 0, 120).await;
    let first = |records: &[Record], part: &str| {
        let is_so = |record: &&Record| record.key == "from.node=web-1" && record.cause.contains(part);
        let record = records.iter().find(is_so);
        record.unwrap_or_else(|| panic!("{part}: {records:#?}")).judged_ns
    };
    for part in ["are missing", "is silent"] {
        let late_ns = first(&written, part) - first(&all, part);
        assert!(
            (0..=10 * SECOND_NS).contains(&late_ns),
            "{part}: {late_ns} ns later"
        );
    }
    let rows = written
        .iter()
        .filter(|record| record.key == "from.node=web-1")
        .count();
    assert!(rows < 12, "{rows} rows in two minutes");
}

#[tokio::test]
async fn what_is_found_first_after_a_time_without_judging_is_stored_before_all_else_is_judged() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 1s, every: 500ms, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: 'refused x100s' }, expect: { 50s: Violated } }
";
    let (store, set, begin_ns) = laid_down(text).await;
    // Who only looks is told of all of it at once.
    let mut engine = Engine::new(store.clone(), set.clone(), begin_ns + 1, false);
    let judged = engine.step(begin_ns + 90 * SECOND_NS).await.unwrap().judged;
    assert!(judged > 160, "{judged} of 180 windows");

    let mut engine = Engine::new(store.clone(), set, begin_ns + 1, true);
    let step = engine.step(begin_ns + 90 * SECOND_NS).await.unwrap();
    assert!((1..=40).contains(&step.judged), "{} windows at once", step.judged);
    let stored = "SELECT count() FROM verdict_records WHERE node = 'web-1' AND verdict = 'violated'";
    assert!(number(&store, stored).await > 0);
    let mut judged = step.judged;
    for _ in 0..10 {
        judged += engine.step(begin_ns + 90 * SECOND_NS).await.unwrap().judged;
    }
    assert!(judged > 160, "{judged} of 180 windows");
}

#[tokio::test]
async fn an_objective_is_asked_for_by_its_name_and_is_all_of_its_rules() {
    let store = database().await;
    let now_ns = now_ns();
    let record = |assertion: &str, condition: &str, judged_ns: i64| {
        let stood = Stood {
            assertion: assertion.to_owned(),
            key: Vec::new(),
            key_text: String::new(),
            fingerprint: 1,
            machine: Machine::new(judged_ns),
            node: String::new(),
            condition: condition.to_owned(),
            severity: String::new(),
            labels: Vec::new(),
        };
        Record {
            evidence: "{}".to_owned(),
            window_from_ns: judged_ns - SECOND_NS,
            window_to_ns: judged_ns,
            ..Record::over(stood, String::new(), judged_ns)
        }
    };
    let records = [
        record("shop: page-1h", "connect.failed_ratio < 1.44% over 1h", now_ns),
        record(
            "shop: ticket-3d",
            "connect.failed_ratio < 0.1% over 3d",
            now_ns - 900 * SECOND_NS,
        ),
        // Judged just now, of a window that ended long ago.
        Record {
            window_to_ns: now_ns - 700 * SECOND_NS,
            ..record("shop: page-6h", "connect.failed_ratio < 0.6% over 6h", now_ns)
        },
        // Assertions of their own, whatever they are called.
        record("shop: fast", "connect.p99 < 5ms", now_ns),
        record("shopping", "connect.p99 < 5ms over 1h", now_ns),
    ];
    verdicts::write(&*store, "t", &records, None).await.unwrap();
    let names = async |query: Query| {
        let answer = store_engine::answer(&*store, query).await.unwrap();
        let rows = answer
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let mut rows: Vec<_> = rows
            .map(|row| {
                (
                    row["assertion"].as_str().unwrap().to_owned(),
                    row["age_s"].as_u64(),
                )
            })
            .collect();
        rows.sort();
        rows
    };
    let hour_ns = 3_600 * SECOND_NS;
    let reach = |back_ns: i64, rare_back_ns: i64| Reach {
        since_ns: now_ns - back_ns,
        rare_since_ns: now_ns - rare_back_ns,
    };
    let told = |names: &[(&str, Option<u64>)]| -> Vec<_> {
        names
            .iter()
            .map(|(name, age)| ((*name).to_owned(), *age))
            .collect()
    };
    assert_eq!(
        names(verdicts::history("shop", now_ns - hour_ns)).await,
        told(&[
            ("shop: page-1h", None),
            ("shop: page-6h", None),
            ("shop: ticket-3d", None)
        ])
    );
    assert_eq!(
        names(verdicts::history("shop: fast", now_ns - hour_ns)).await,
        told(&[("shop: fast", None)])
    );
    assert_eq!(verdicts::newest_ns(&*store).await.unwrap(), Some(now_ns));
    assert_eq!(
        names(verdicts::latest(
            "shop",
            reach(hour_ns, hour_ns),
            now_ns + 5 * SECOND_NS
        ))
        .await,
        told(&[
            ("shop: page-1h", Some(5)),
            ("shop: page-6h", Some(705)),
            ("shop: ticket-3d", Some(905))
        ])
    );

    // What has long windows may be judged rarely, and what is judged no more is so also if it had long windows.
    let rare = |assertion: &str, ago_s: i64, window_s: i64| {
        let to_ns = now_ns - ago_s * SECOND_NS;
        let mut record = record(assertion, "connect.refused = 0", to_ns);
        record.window_from_ns = to_ns - window_s * SECOND_NS;
        record.machine.judged_ns = to_ns;
        record
    };
    let gone = rare("gone", 5_000, 7_200);
    let stood = Stood {
        assertion: gone.assertion.clone(),
        key: Vec::new(),
        key_text: String::new(),
        fingerprint: 1,
        machine: gone.machine.clone(),
        node: String::new(),
        condition: String::new(),
        severity: String::new(),
        labels: Vec::new(),
    };
    let records = [
        rare("rare", 4_000, 7_200),
        rare("rare", 5_000, 7_200),
        rare("often", 4_000, 10),
        gone,
        Record::over(stood, "no more".to_owned(), now_ns - 4_500 * SECOND_NS),
    ];
    verdicts::write(&*store, "rare", &records, None).await.unwrap();
    for (name, expected) in [("rare", Some(4_000)), ("often", None), ("gone", None)] {
        let found = names(verdicts::latest(name, reach(hour_ns, 24 * hour_ns), now_ns)).await;
        let expected: Vec<_> = expected
            .map(|age| (name.to_owned(), Some(age)))
            .into_iter()
            .collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[tokio::test]
async fn the_view_of_now_shows_what_is_judged_rarely_until_it_is_over() {
    let text = "
assertions:
  - { name: often, from: all, to: all, expect: connect.refused = 0, over: 1m, every: 30s, by: from.node }
  - { name: rare, from: all, to: all, expect: connect.refused = 0, over: 20m, every: 10m, by: from.node }
tests:
  - { assertion: rare, given: { web-1 -> db-1: '5ms x60m' }, expect: { 50m: Holds } }
";
    let set = declared(text);
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(600 * SECOND_NS) * 600 * SECOND_NS;
    trial::lay_past(&*store, &set.assertions[1], &set.tests[0], begin_ns)
        .await
        .unwrap();
    let mut engine = Engine::new(store.clone(), set.clone(), begin_ns + 1, true);
    for half in 0..=2 * 41 {
        engine.step(begin_ns + 30 * half * SECOND_NS).await.unwrap();
    }
    // Now is 20 to 30 minutes later: `often` is judged no more.
    let shown = "SELECT assertion, verdict FROM verdicts WHERE node = 'web-1' ORDER BY assertion";
    assert_eq!(store_engine::ask(&*store, shown).await, "rare\tholds\n");
    let until = "SELECT toUnixTimestamp64Nano(window_to) FROM verdicts WHERE node = 'web-1'";
    let until_ns = i64::try_from(number(&store, until).await).unwrap();
    assert_eq!(until_ns, begin_ns + 40 * 60 * SECOND_NS);
    // The last word on it hides it at once.
    let mut less = set;
    less.assertions.remove(1);
    engine.replace(less, begin_ns + 42 * 60 * SECOND_NS);
    engine.step(begin_ns + 42 * 60 * SECOND_NS).await.unwrap();
    assert_eq!(store_engine::ask(&*store, shown).await, "");
}

/// What was judged so many minutes ago, of windows of so many seconds, and whether it is of now.
#[tokio::test]
async fn the_view_of_now_leaves_out_what_ought_to_have_been_judged_again() {
    let store = database().await;
    let now_ns = now_ns();
    let judged = |name: &str, minutes: i64, window_s: i64, condition: &str| {
        let to_ns = now_ns - 60 * minutes * SECOND_NS;
        let stood = Stood {
            assertion: name.to_owned(),
            key: Vec::new(),
            key_text: String::new(),
            fingerprint: 1,
            machine: Machine::new(to_ns),
            node: String::new(),
            condition: condition.to_owned(),
            severity: String::new(),
            labels: Vec::new(),
        };
        Record {
            evidence: "{}".to_owned(),
            window_from_ns: to_ns - window_s * SECOND_NS,
            window_to_ns: to_ns,
            ..Record::over(stood, String::new(), to_ns)
        }
    };
    let (of_one, of_rule) = ("connect.refused = 0", "connect.failed_ratio < 1% over 1d");
    let day_s = 86_400;
    let records = [
        judged("short, 14 min ago", 14, 5, of_one),
        judged("short, 16 min ago", 16, 5, of_one),
        judged("an hour, 81 min ago", 81, 3_600, of_one),
        judged("an hour, 83 min ago", 83, 3_600, of_one),
        judged("a day, 24 hours ago", 24 * 60, day_s, of_one),
        judged("a day, 25 hours ago", 25 * 60, day_s, of_one),
        // Each minute, however long its windows are.
        judged("a rule, 14 min ago", 14, day_s, of_rule),
        judged("a rule, 16 min ago", 16, day_s, of_rule),
    ];
    verdicts::write(&*store, "t", &records, None).await.unwrap();
    let shown = "SELECT assertion FROM verdicts ORDER BY assertion";
    let shown = store_engine::ask(&*store, shown).await;
    let shown: Vec<_> = shown.lines().collect();
    assert_eq!(
        shown,
        [
            "a day, 24 hours ago",
            "a rule, 14 min ago",
            "an hour, 81 min ago",
            "short, 14 min ago"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_are_given_up_are_counted_where_one_sees_it() {
    let folder = folder("given-up");
    let text = "assertions: [{ name: a, from: all, expect: connect.refused = 0, over: 1s, every: 500ms }]\n";
    std::fs::write(folder.join("a.yaml"), text).unwrap();
    let declared = Declared::read(folder).unwrap();
    let store: Arc<dyn Store> = database().await;
    let metrics = Arc::new(Metrics::new(&[]).unwrap());
    let now = Arc::new(AtomicI64::new(now_ns().div_euclid(SECOND_NS) * SECOND_NS));
    let shown = now.clone();
    let clock = WallClock::new(move || shown.load(Ordering::Relaxed));
    let (ear, _heard) = notify::ear();
    let (stop, stopping) = watch::channel(false);
    let judge = Judge {
        store: store.clone(),
        heard: Heard::default(),
        shared: SharedSet::new(declared.set.clone()),
        declared,
        ear,
        silencer: Arc::new(Silencer::new(store.clone(), clock.clone())),
        seat: Arc::new(Seat::new(store, seat::PATIENCE)),
        metrics: metrics.clone(),
        clock,
        hang_up: None,
        stopping,
    };
    let judging = tokio::spawn(judge.run());
    let figure = |name: &str| -> u64 {
        let text = metrics.exposition().unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|figure| figure.parse().ok()).unwrap()
    };
    let comes_to = async |name: &str, expected: u64| {
        let started = Instant::now();
        while figure(name) != expected {
            let found = figure(name);
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "{name} is {found}, not {expected}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (judged, given_up) = (
        "holdfast_assertion_windows_total",
        "holdfast_assertion_windows_given_up_total",
    );
    comes_to(judged, 1).await;
    assert_eq!(figure(given_up), 0);
    // Five minutes in which nobody judged are 600 windows, of which the last 240 are judged still.
    now.fetch_add(300 * SECOND_NS, Ordering::Relaxed);
    comes_to(judged, 241).await;
    assert_eq!(figure(given_up), 360);
    stop.send(true).unwrap();
    judging.await.unwrap();
}
