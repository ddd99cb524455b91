//! What is more than is taken, of keys and of answers: it is said, nothing is made up, and what is known stays known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_collector::assertion::Set;
use holdfast_collector::assertion::state::Verdict;
use holdfast_collector::engine::{Engine, files, trial};
use holdfast_collector::store::Store;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::verdicts::Record;

use crate::harness::{database, number};
use crate::store_engine;
use crate::synthetic::now_ns;

const SECOND_NS: i64 = 1_000_000_000;

/// A store in which `web-1` and `db-1` are watched for ten minutes, and when these began.
async fn watched(assertion: &str) -> (Arc<Embedded>, Set, i64) {
    let text = format!(
        "assertions:\n  - {assertion}\ntests:\n  - {{ assertion: a, given: {{ web-1 -> db-1: 'nothing x10m' }}, \
         expect: {{ 1m: Holds }} }}\n"
    );
    let set = files::declared(&[("a.yaml".to_owned(), text)]).unwrap_or_else(|error| panic!("{error}"));
    let store = database().await;
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    (store, set, begin_ns)
}

/// Writes attempts of `web-1`, one for each `number` below `count`; the other columns by it, in SQL.
pub(crate) async fn attempts(store: &Embedded, count: u64, columns: &[(&str, String)]) {
    let mut all = BTreeMap::from([
        ("node", "'web-1'".to_owned()),
        ("role", "'active'".to_owned()),
        ("outcome", "'established'".to_owned()),
        ("connect_us", "5000".to_owned()),
        ("duration_us", "connect_us".to_owned()),
        ("remote_port", "5432".to_owned()),
        ("is_first", "true".to_owned()),
        ("is_final", "true".to_owned()),
        ("agent_id", "'web-1'".to_owned()),
        ("agent_epoch", "1".to_owned()),
        ("sequence", "1".to_owned()),
    ]);
    all.extend(columns.iter().cloned());
    let names: Vec<_> = all.keys().copied().collect();
    let values: Vec<_> = all
        .iter()
        .map(|(name, value)| format!("{value} AS {name}"))
        .collect();
    store
        .execute(&format!(
            "INSERT INTO connection_records ({}) SELECT {} FROM numbers({count})",
            names.join(", "),
            values.join(", ")
        ))
        .await
        .unwrap();
}

/// A time by its nanoseconds, in SQL.
pub(crate) fn at(ns: &str) -> String {
    format!("fromUnixTimestamp64Nano(toInt64({ns}), 'UTC')")
}

/// An address of 10.16.0.0/12 by its number, in SQL.
fn address(number: &str) -> String {
    format!("toIPv6(concat('::ffff:', IPv4NumToString(toUInt32(0x0a100000 + {number}))))")
}

/// Every change that was stored, by its key: when its window ended, in seconds, and what was said.
async fn changes(store: &Embedded, begin_ns: i64) -> BTreeMap<String, Vec<(i64, String)>> {
    let sql = format!(
        "SELECT key, intDiv(toUnixTimestamp64Nano(window_to) - {begin_ns}, {SECOND_NS}) AS at, verdict FROM verdict_records \
         WHERE is_transition ORDER BY key, at"
    );
    let mut changes = BTreeMap::<_, Vec<_>>::new();
    for line in store_engine::ask(store, &sql).await.lines() {
        let [key, at, verdict] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        changes
            .entry(key.to_owned())
            .or_default()
            .push((at.parse().unwrap(), verdict.to_owned()));
    }
    changes
}

#[tokio::test]
async fn more_keys_than_are_judged_are_told_and_push_none_out_that_has_a_state() {
    let (store, set, begin_ns) = watched(
        "{ name: a, from: all, expect: connect.refused = 0, over: 10s, every: 5s, by: [from.node, comm], for: 60s }",
    )
    .await;
    // Every five seconds an attempt of each of so many programs, from then until then.
    let programs = async |prefix: &str, count: u64, (from, until): (u64, u64), outcome: &str| {
        let rounds = (until - from) / 5;
        let seconds = format!("{from} + 5 * intDiv(number, {count})");
        let columns = [
            (
                "recorded_at",
                at(&format!("{begin_ns} + ({seconds}) * {SECOND_NS} + 1")),
            ),
            (
                "comm",
                format!("concat('{prefix}-', leftPad(toString(number % {count}), 4, '0'))"),
            ),
            ("outcome", format!("'{outcome}'")),
        ];
        attempts(&store, count * rounds, &columns).await;
    };
    // First there is room, and one of the programs begins to fail. Then come many more, whose names are before theirs.
    programs("m", 600, (0, 240), "established").await;
    programs("z", 1, (0, 30), "established").await;
    programs("z", 1, (30, 240), "refused").await;
    programs("b", 1_200, (60, 150), "established").await;

    let start = || Engine::new(store.clone(), set.clone(), begin_ns + 1, true);
    let mut engine = start();
    let mut said: Vec<Record> = Vec::new();
    for second in 0..230 {
        // Killed while there are too many, and while the one that fails is pending: what stood goes on.
        if second == 80 {
            engine = start();
            engine.resume(begin_ns + second * SECOND_NS).await.unwrap();
        }
        said.extend(engine.step(begin_ns + second * SECOND_NS).await.unwrap().records);
    }

    let changes = changes(&store, begin_ns).await;
    let of = |program: &str| {
        let found = changes.get(&format!("from.node=web-1, comm={program}"));
        let found = found.unwrap_or_else(|| panic!("nothing was said of {program}"));
        found
            .iter()
            .map(|(at, said)| (*at, said.as_str()))
            .collect::<Vec<_>>()
    };
    // It failed since the window that ended 35 s in, and 60 s later it is violated, whoever came and was killed meanwhile.
    let failing: Vec<_> = of("z-0000").into_iter().filter(|(at, _)| *at > 20).collect();
    assert_eq!(failing, [(35, "pending"), (95, "violated")]);
    for at in 0..600 {
        let (_, last) = *of(&format!("m-{at:04}")).last().unwrap();
        assert_eq!(last, "holds", "m-{at:04}");
    }
    // The rest of the room is for those who came, the first of them; of all others one word is said, with the cause.
    let judged = |prefix: &str| {
        let prefix = format!("from.node=web-1, comm={prefix}-");
        changes.keys().filter(|key| key.starts_with(&prefix)).count()
    };
    assert_eq!((judged("m"), judged("z"), judged("b")), (600, 1, 399));
    assert_eq!(changes.len(), 1_001, "and the one that stands for the others");
    // Its last word is said once all of them are judged.
    let unknown = || "unknown".to_owned();
    assert_eq!(changes["..."], [(65, unknown()), (155, unknown())]);
    let beyond: BTreeSet<_> = said
        .iter()
        .filter(|record| record.key == "..." && !record.is_over())
        .map(|record| (record.machine.verdict, record.cause.as_str()))
        .collect();
    let cause = "1801 keys, of which 1000 are judged: narrow it, or leave something out of `by`";
    assert_eq!(beyond, BTreeSet::from([(Verdict::Unknown, cause)]));
    let last = said.iter().rfind(|record| record.key == "...").unwrap();
    assert!(last.is_over(), "{last:?}");
    assert_eq!(last.cause, "its assertion has no such key any more");
    // What was never judged was never said to be anything.
    let never =
        "SELECT count() FROM verdict_records WHERE key LIKE '%comm=b-0399' OR key LIKE '%comm=b-1199'";
    assert_eq!(number(&store, never).await, 0);
}

/// What a window of five minutes came to that ended `until` seconds in, and how many questions that took.
async fn judged_at(engine: &mut Engine, begin_ns: i64, until: i64) -> (Record, u64) {
    let asked = engine.asked;
    let mut records = engine
        .step(begin_ns + (until + 1) * SECOND_NS)
        .await
        .unwrap()
        .records;
    assert_eq!(records.len(), 1, "{records:?}");
    let record = records.remove(0);
    assert_eq!(record.window_to_ns, begin_ns + until * SECOND_NS);
    (record, engine.asked - asked)
}

/// Sixty parts of two thousand ends each are more than an answer may have, and each half of them is not.
#[tokio::test]
async fn what_is_too_much_for_one_answer_is_asked_for_by_halves_and_is_exact() {
    const ENDS: u64 = 2_000;
    const PARTS: u64 = 60;
    let count = ENDS * PARTS;
    // One in a hundred may take as long.
    for (slow, verdict) in [
        (count / 100, Verdict::Holds),
        (count / 100 + 1, Verdict::Violated),
    ] {
        let (store, set, begin_ns) = watched(
            "{ name: a, from: all, to: '10.16.0.0/12:5432', expect: connect.p99 < 20ms, over: 5m, every: 5s }",
        )
        .await;
        // The slow ones are spread over all parts.
        let columns = [
            (
                "recorded_at",
                at(&format!(
                    "{begin_ns} + (1 + 5 * (number % {PARTS})) * {SECOND_NS}"
                )),
            ),
            ("remote_ip", address(&format!("intDiv(number, {PARTS})"))),
            (
                "connect_us",
                format!("if(number % 97 = 0 AND intDiv(number, 97) < {slow}, 20000, 5000)"),
            ),
        ];
        attempts(&store, count, &columns).await;
        let slow_rows = "SELECT countIf(connect_us = 20000) FROM connection_records";
        assert_eq!(number(&store, slow_rows).await, slow);

        let mut engine = Engine::new(store, set, begin_ns + 299 * SECOND_NS, false);
        engine.without_worst();
        engine.tell_every_window();
        let (record, asked) = judged_at(&mut engine, begin_ns, 300).await;
        assert_eq!((record.machine.verdict, record.cause.as_str()), (verdict, ""));
        assert_eq!(record.samples, count);
        // Of everything, and of each half.
        assert_eq!(asked, 3);
        // The next window is asked about for what is new.
        let (record, asked) = judged_at(&mut engine, begin_ns, 305).await;
        assert_eq!((record.samples, asked), (count - ENDS, 1));
    }
}

/// A part that cannot be cut further, or parts that are too much once they are put together: it is said, and nothing else is.
#[tokio::test]
async fn what_is_too_much_for_any_answer_is_unknown_until_it_is_over() {
    const CAUSE: &str = "more than 100000 combinations of labels in one window: narrow it with `where`";
    let ends = 100_001;
    let at_once = at(&format!("{{begin}} + 3 * {SECOND_NS}"));
    let spread = at(&format!("{{begin}} + (1 + 5 * (number % 60)) * {SECOND_NS}"));
    for recorded_at in [at_once, spread] {
        let (store, set, begin_ns) = watched(
            "{ name: a, from: all, to: '10.16.0.0/12:5432', expect: connect.refused = 0, over: 5m, every: 5s }",
        )
        .await;
        let recorded_at = recorded_at.replace("{begin}", &begin_ns.to_string());
        let columns = [
            ("recorded_at", recorded_at.clone()),
            ("remote_ip", address("number")),
        ];
        attempts(&store, ends, &columns).await;
        let mut engine = Engine::new(store, set, begin_ns + 299 * SECOND_NS, false);
        engine.without_worst();
        engine.tell_every_window();
        // The second window has at least one part of the ends less.
        for (until, verdict, cause) in [(300, Verdict::Unknown, CAUSE), (305, Verdict::Holds, "")] {
            let (record, _) = judged_at(&mut engine, begin_ns, until).await;
            let said = (record.machine.verdict, record.cause.as_str());
            assert_eq!(said, (verdict, cause), "{until} of {recorded_at}");
        }
    }
}
