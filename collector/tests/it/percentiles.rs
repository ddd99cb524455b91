//! Verdicts about percentiles, in windows and by keys as people mix them, each held against the values themselves, sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_collector::assertion::Set;
use holdfast_collector::assertion::signal::QUANTILES;
use holdfast_collector::assertion::state::Verdict;
use holdfast_collector::engine::{Engine, files, trial};
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::verdicts::Record;

use crate::bounds::{at, attempts};
use crate::harness::database;
use crate::store_engine;
use crate::synthetic::now_ns;

const SECOND_NS: i64 = 1_000_000_000;

/// `n-1` to `n-4`, at the addresses 10.0.0.1 to 10.0.0.4: a test's nodes have them by the order of their names.
const NODES: &str = "{ n-1 -> n-2: 'nothing x13m', n-3 -> n-4: 'nothing x13m' }";

/// Thirty attempts a second for twelve minutes.
const ATTEMPTS: u64 = 30 * 720;

/// The windows that are judged end in this stretch, in seconds from the beginning: two of the longest, at 660 and 720.
const JUDGED: (i64, i64) = (655, 720);

/// Windows of one length, told apart by the same.
struct Class {
    over: &'static str,
    over_s: i64,
    by: &'static str,
    key: fn(&Attempt) -> Vec<String>,
    /// That end in the stretch.
    windows: usize,
    /// How many keys there are.
    keys: usize,
}

const CLASSES: [Class; 4] = [
    Class {
        over: "5s",
        over_s: 5,
        by: "from.node",
        key: |attempt| vec![attempt.node.clone()],
        windows: 131,
        keys: 4,
    },
    Class {
        over: "1m",
        over_s: 60,
        by: "from.node",
        key: |attempt| vec![attempt.node.clone()],
        windows: 14,
        keys: 4,
    },
    Class {
        over: "1m",
        over_s: 60,
        by: "[from.node, to.node]",
        key: |attempt| vec![attempt.node.clone(), attempt.other.clone()],
        windows: 14,
        keys: 12,
    },
    Class {
        over: "10m",
        over_s: 600,
        by: "service",
        key: |attempt| vec![attempt.service.clone()],
        windows: 2,
        keys: 3,
    },
];

struct Attempt {
    node: String,
    other: String,
    service: String,
    decided_ns: i64,
    connect_us: u64,
}

/// Attempts of four nodes among each other, whose times lie anywhere between 0.1 and 100 ms.
async fn lay_attempts(store: &Embedded, begin_ns: i64) {
    let own = "cityHash64(number, 'own') % 4";
    let columns = [
        (
            "recorded_at",
            at(&format!(
                "{begin_ns} + number * {} + 1",
                720 * SECOND_NS as u64 / ATTEMPTS
            )),
        ),
        ("node", format!("concat('n-', toString(1 + {own}))")),
        (
            "remote_ip",
            format!(
                "toIPv6(concat('::ffff:10.0.0.', toString(1 + ({own} + 1 + cityHash64(number, 'other') % 3) % 4)))"
            ),
        ),
        (
            "service",
            "concat('s-', toString(cityHash64(number, 'service') % 3))".to_owned(),
        ),
        (
            "connect_us",
            "toUInt64(pow(10, 2 + 3 * (cityHash64(number, 'time') % 1000003) / 1000003))".to_owned(),
        ),
    ];
    attempts(store, ATTEMPTS, &columns).await;
}

async fn laid_attempts(store: &Embedded) -> Vec<Attempt> {
    let sql = "SELECT node, toString(remote_ip), service, toUnixTimestamp64Nano(decided_at), connect_us FROM attempts";
    let text = store_engine::ask(store, sql).await;
    let attempt = |line: &str| {
        let [node, other, service, decided, connect] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        Attempt {
            node: node.to_owned(),
            other: other.replace("::ffff:10.0.0.", "n-"),
            service: service.to_owned(),
            decided_ns: decided.parse().unwrap(),
            connect_us: connect.parse().unwrap(),
        }
    };
    text.lines().map(attempt).collect()
}

/// The times of each key in the window that ended then, sorted.
fn sorted(class: &Class, attempts: &[Attempt], to_ns: i64) -> BTreeMap<Vec<String>, Vec<u64>> {
    let mut sorted: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    let within = to_ns - class.over_s * SECOND_NS + 1..=to_ns;
    for attempt in attempts.iter().filter(|known| within.contains(&known.decided_ns)) {
        sorted
            .entry((class.key)(attempt))
            .or_default()
            .push(attempt.connect_us);
    }
    sorted.values_mut().for_each(|times| times.sort_unstable());
    sorted
}

/// The least of them that so many of 10,000 are at or below.
fn exact(sorted: &[u64], of_10_000: u32) -> u64 {
    let rank = (sorted.len() * of_10_000 as usize).div_ceil(10_000);
    sorted[rank - 1]
}

/// Twelve minutes of four nodes that were watched and made attempts; when they began.
async fn laid_past(store: &Arc<Embedded>) -> i64 {
    let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    let watched = format!(
        "assertions: [{{ name: a, from: all, expect: connect.refused = 0, over: 5s }}]\n\
         tests: [{{ assertion: a, given: {NODES}, expect: {{ 1m: Holds }} }}]\n"
    );
    let watched = files::declared(&[("a.yaml".to_owned(), watched)]).unwrap();
    trial::lay_past(&**store, &watched.assertions[0], &watched.tests[0], begin_ns)
        .await
        .unwrap();
    lay_attempts(store, begin_ns).await;
    begin_ns
}

/// Limits are what percentiles are and a microsecond more: nothing that is a bit off would be the same on both sides of it.
#[tokio::test]
async fn verdicts_about_percentiles_are_those_of_the_sorted_values() {
    let store = database().await;
    let begin_ns = laid_past(&store).await;
    let attempts = laid_attempts(&store).await;
    assert_eq!(attempts.len() as u64, ATTEMPTS);

    // By what the keys' percentiles are in the last window.
    let mut text = "assertions:\n".to_owned();
    let mut meant = BTreeMap::new();
    for (number, class) in CLASSES.iter().enumerate() {
        let last = sorted(class, &attempts, begin_ns + JUDGED.1 * SECOND_NS);
        for (quantile, of_10_000) in QUANTILES {
            let values: BTreeSet<u64> = last.values().map(|times| exact(times, of_10_000)).collect();
            for limit in values.iter().flat_map(|value| [*value, value + 1]) {
                let name = format!("{number} {quantile} {limit}");
                text.push_str(&format!(
                    "  - {{ name: {name}, from: all, to: all, expect: connect.{quantile} < {limit}us, over: {}, by: {} }}\n",
                    class.over, class.by
                ));
                meant.insert(name, (number, of_10_000, limit));
            }
        }
    }
    let set = files::declared(&[("a.yaml".to_owned(), text)]).unwrap_or_else(|error| panic!("{error}"));
    // All of it at once, and as it goes on.
    for steps in [vec![JUDGED.1 + 5], (JUDGED.0..=JUDGED.1 + 5).collect()] {
        let mut engine = judging(&store, set.clone(), begin_ns);
        let mut records = Vec::new();
        for second in steps {
            let step = engine.step(begin_ns + second * SECOND_NS).await.unwrap();
            records.extend(step.records);
        }
        check(&records, &meant, &attempts);
    }
}

/// Judges the stretch that [`JUDGED`] is.
fn judging(store: &Arc<Embedded>, set: Set, begin_ns: i64) -> Engine {
    let mut engine = Engine::new(store.clone(), set, begin_ns + JUDGED.0 * SECOND_NS, false);
    engine.without_worst();
    engine.tell_every_window();
    engine.ask_as_they_go();
    engine.stop_at(begin_ns + JUDGED.1 * SECOND_NS);
    engine
}

/// That everything was judged, and as the sorted values are. `meant`: of which class an assertion is, its quantile and its limit.
fn check(records: &[Record], meant: &BTreeMap<String, (usize, u32, u64)>, attempts: &[Attempt]) {
    let mut values = BTreeMap::new();
    let mut compared: [BTreeSet<(i64, Vec<String>)>; 4] = Default::default();
    let mut verdicts = BTreeMap::new();
    for record in records {
        let (number, of_10_000, limit) = meant[&record.assertion];
        let class = &CLASSES[number];
        let of_window = values
            .entry((number, record.window_to_ns))
            .or_insert_with(|| sorted(class, attempts, record.window_to_ns));
        let value = exact(&of_window[&record.key_values], of_10_000);
        let expected = if value < limit {
            Verdict::Holds
        } else {
            Verdict::Violated
        };
        assert_eq!(
            record.machine.verdict, expected,
            "{value} us over {} by {}: {record:?}",
            class.over, class.by
        );
        compared[number].insert((record.window_to_ns, record.key_values.clone()));
        // At the limit itself, and right below it.
        if value.abs_diff(limit) <= 1 && value <= limit {
            *verdicts.entry((number, expected)).or_insert(0) += 1;
        }
    }
    for (number, class) in CLASSES.iter().enumerate() {
        assert_eq!(
            compared[number].len(),
            class.windows * class.keys,
            "class {number}"
        );
        for verdict in [Verdict::Holds, Verdict::Violated] {
            let times = verdicts.get(&(number, verdict)).copied().unwrap_or(0);
            assert!(
                times >= QUANTILES.len(),
                "class {number}: {verdict:?} {times} times"
            );
        }
    }
}

/// Windows that are judged once a minute share minutes, and a minute is asked for by and by: all of it at once would keep the
/// windows waiting that are judged twice a second.
#[tokio::test]
async fn a_minute_that_windows_share_is_asked_for_while_it_goes_on() {
    let store = database().await;
    let begin_ns = laid_past(&store).await;
    let text =
        "assertions: [{ name: a, from: all, to: all, expect: connect.p99 < 1ms, over: 10m, by: service }]";
    let set = files::declared(&[("a.yaml".to_owned(), text.to_owned())]).unwrap();
    let mut engine = judging(&store, set, begin_ns);
    let mut asked = Vec::new();
    for second in JUDGED.0..=JUDGED.1 + 5 {
        let before = engine.asked;
        engine.step(begin_ns + second * SECOND_NS).await.unwrap();
        asked.extend((before..engine.asked).map(|_| second / 10 * 10));
    }
    // What is over of its minute, ten seconds at a time, and the first window as a whole; when the next one ends, the last of its
    // minute is all that is missing.
    assert_eq!(
        asked,
        [650, 650, 650, 650, 650, 660, 670, 680, 690, 700, 710, 720]
    );
}
