//! Assertions on the real engine: made-up pasts, judged window by window.

use std::sync::Arc;
use std::time::Duration;

use holdfast_collector::assertion::Set;
use holdfast_collector::assertion::state::Verdict;
use holdfast_collector::engine::trial::{self, Outcome};
use holdfast_collector::engine::{Engine, files};
use holdfast_collector::store::Store;

use crate::harness::{database, number};
use crate::store_engine;
use crate::synthetic::now_ns;

const SECOND_NS: i64 = 1_000_000_000;

fn declared(text: &str) -> Set {
    files::declared(&[("a.yaml".to_owned(), text.to_owned())]).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs the first test of a file.
async fn tried(text: &str) -> Outcome {
    let set = declared(text);
    let store: Arc<dyn Store> = database().await;
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
async fn what_was_said_goes_on_after_the_engine_was_killed() {
    let text = "
assertions:
  - { name: a, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, for: 40s, by: from.node }
tests:
  - { assertion: a, given: { web-1 -> db-1: '5ms x20s, refused x100s' }, expect: { 110s: Violated } }
";
    let set = declared(text);
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    // Lays the past down.
    trial::run(store.clone(), &set, &set.tests[0], begin_ns)
        .await
        .unwrap();

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

#[tokio::test]
async fn the_examples_pass_their_own_tests() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let set = files::declared(&files::read(&[path]).unwrap()).unwrap();
    assert_eq!(set.assertions.len(), 10);
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
