//! The same past twice: once as it came in time, once with nodes that were cut off and delivered later, in any order. What
//! is said in the end of every window is the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_collector::assertion::Set;
use holdfast_collector::assertion::state::Verdict;
use holdfast_collector::engine::{Engine, files, trial};
use holdfast_collector::store::Store;
use holdfast_collector::store::verdicts::Record;

use crate::harness::database;
use crate::synthetic::now_ns;

const SECOND_NS: i64 = 1_000_000_000;

/// How far a mark of what is stored is behind its report.
const MARK_NS: i64 = SECOND_NS / 2;

const NODES: [&str; 3] = ["web-1", "web-2", "db-1"];

/// How long the world is, in seconds.
const LENGTH: i64 = 80;

/// A world's randomness: the same seed is the same world (Steele, Lea and Flood, Fast Splittable Pseudorandom Number
/// Generators, 2014).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: i64) -> i64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound.unsigned_abs()) as i64
    }
}

/// Links on which connections succeed and fail in turns.
fn past(dice: &mut Dice) -> String {
    let link = |dice: &mut Dice| {
        let (mut left, mut spans) = (LENGTH, Vec::new());
        while left > 0 {
            let time = (3 + dice.below(15)).min(left);
            let event = ["5ms", "refused", "5ms", "nothing"][dice.below(4) as usize];
            spans.push(format!("{event} x{time}s"));
            left -= time;
        }
        spans.join(", ")
    };
    format!(
        "{{ web-1 -> db-1: '{}', web-2 -> db-1: '{}' }}",
        link(dice),
        link(dice)
    )
}

fn declared(past: &str) -> Set {
    let text = format!(
        "
assertions:
  - {{ name: each, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node }}
  - {{ name: slow, from: all, to: all, expect: connect.refused_ratio < 20%, over: 5s, every: 1s, by: from.node, for: 4s, clear_after: 3s }}
  - {{ name: often, from: all, to: all, expect: connect.failed = 0, over: 5s, every: 1s, for: 3 of 5 }}
  - {{ name: most, from: all, to: all, expect: connect.refused = 0, over: 5s, every: 1s, by: from.node, quorum: '>= 60% of nodes' }}
tests:
  - {{ assertion: each, given: {past}, expect: {{ 5s: Holds }} }}
"
    );
    files::declared(&[("a.yaml".to_owned(), text)]).unwrap_or_else(|error| panic!("{error}"))
}

/// An assertion and its key.
type Place = (String, String);

/// By the end of the window: the revision, whether the verdict changed, and to which.
type Windows = BTreeMap<i64, (u32, bool, Verdict)>;

/// What was said in the end, of each key: the windows with which the verdict changed. A later revision of a window replaces
/// what was said of it before.
#[derive(Default)]
struct Said {
    windows: BTreeMap<Place, Windows>,
    revised: usize,
}

impl Said {
    fn take(&mut self, records: Vec<Record>) {
        for record in records {
            self.revised += usize::from(record.revision > 0);
            let windows = self.windows.entry((record.assertion, record.key)).or_default();
            let said = windows
                .entry(record.window_to_ns)
                .or_insert((0, false, Verdict::Unknown));
            assert!(
                record.revision == 0 || record.revision > said.0,
                "revisions count up"
            );
            *said = (record.revision, record.is_transition, record.machine.verdict);
        }
    }

    fn changes(&self, begin_ns: i64) -> BTreeMap<Place, Vec<(i64, Verdict)>> {
        let changes = |windows: &Windows| {
            let mut last = None;
            let mut changes = Vec::new();
            for (at_ns, (_, is_transition, verdict)) in windows {
                if *is_transition && last != Some(*verdict) {
                    changes.push(((at_ns - begin_ns) / SECOND_NS, *verdict));
                    last = Some(*verdict);
                }
            }
            changes
        };
        self.windows
            .iter()
            .map(|(key, windows)| (key.clone(), changes(windows)))
            .collect()
    }
}

/// A node that is cut off now and then: what it has to deliver, and when it can.
struct Node {
    name: &'static str,
    /// Since when, until when, in seconds.
    cuts: Vec<(i64, i64)>,
    /// Seconds of rows that are not delivered yet; zero is the first.
    waiting: Vec<i64>,
}

impl Node {
    fn is_cut(&self, at: i64) -> bool {
        self.cuts
            .iter()
            .any(|(from, until)| (*from..*until).contains(&at))
    }
}

async fn in_time(set: &Set, begin_ns: i64) -> Said {
    let store: Arc<dyn Store> = database().await;
    lay(&*store, set, begin_ns).await;
    let mut engine = Engine::new(store, set.clone(), begin_ns + 1, false);
    engine.stop_at(begin_ns + (LENGTH - 1) * SECOND_NS);
    let mut said = Said::default();
    for half in 0..(LENGTH + 15) * 2 {
        let step = engine.step(begin_ns + half * SECOND_NS / 2).await.unwrap();
        said.take(step.records);
    }
    said
}

async fn lay(store: &dyn Store, set: &Set, begin_ns: i64) {
    trial::lay_past(store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
}

async fn late(set: &Set, begin_ns: i64, dice: &mut Dice) -> Said {
    let store: Arc<dyn Store> = database().await;
    lay(&*store, set, begin_ns).await;
    // All of it is held back.
    for sql in [
        "CREATE TABLE held ENGINE = MergeTree ORDER BY (node, recorded_at) AS SELECT * FROM connection_records",
        "TRUNCATE TABLE connection_records",
        "CREATE TABLE reported ENGINE = MergeTree ORDER BY (node, observed_at) AS SELECT * FROM agent_samples",
        "TRUNCATE TABLE agent_samples",
    ] {
        store.execute(sql).await.unwrap();
    }
    let mut nodes = NODES.map(|name| {
        let mut cuts = Vec::new();
        let mut at = 8 + dice.below(20);
        while at < LENGTH - 30 {
            let until = (at + 4 + dice.below(30)).min(LENGTH - 25);
            cuts.push((at, until));
            at = until + 5 + dice.below(20);
        }
        Node {
            name,
            cuts,
            waiting: Vec::new(),
        }
    });
    let mut engine = Engine::new(store.clone(), set.clone(), begin_ns + 1, false);
    engine.stop_at(begin_ns + (LENGTH - 1) * SECOND_NS);
    let mut said = Said::default();
    for half in 0..(LENGTH + 25) * 2 {
        let now_ns = begin_ns + half * SECOND_NS / 2;
        let second = half / 2;
        for node in &mut nodes {
            if half % 2 == 0 && second > 0 {
                node.waiting.push(second - 1);
            }
            if node.is_cut(second) {
                continue;
            }
            // A few batches at a time, in any order.
            for _ in 0..5.min(node.waiting.len()) {
                let which = dice.below(node.waiting.len() as i64) as usize;
                let batch = node.waiting.swap_remove(which);
                deliver(&*store, node.name, begin_ns + batch * SECOND_NS).await;
            }
            if half % 2 == 0 {
                let oldest_ns = node
                    .waiting
                    .iter()
                    .min()
                    .map(|batch| begin_ns + batch * SECOND_NS);
                let mark_ns = oldest_ns.unwrap_or(i64::MAX).min(now_ns - MARK_NS);
                report(&*store, node.name, now_ns, mark_ns).await;
            }
        }
        said.take(engine.step(now_ns).await.unwrap().records);
    }
    said
}

/// Puts a second's rows of a node into the store.
async fn deliver(store: &dyn Store, node: &str, from_ns: i64) {
    let sql = "INSERT INTO connection_records SELECT * FROM held WHERE node = {node:String} \
               AND recorded_at > fromUnixTimestamp64Nano({from:Int64}, 'UTC') \
               AND recorded_at <= fromUnixTimestamp64Nano({until:Int64}, 'UTC')";
    let params = vec![
        ("node".to_owned(), node.to_owned()),
        ("from".to_owned(), from_ns.to_string()),
        ("until".to_owned(), (from_ns + SECOND_NS).to_string()),
    ];
    store.derive(sql, params).await.unwrap();
}

/// A report like any other of the node, at another time and with another mark.
async fn report(store: &dyn Store, node: &str, now_ns: i64, mark_ns: i64) {
    let sql = "INSERT INTO agent_samples SELECT * REPLACE (fromUnixTimestamp64Nano({now:Int64}, 'UTC') AS observed_at, \
               fromUnixTimestamp64Nano({now:Int64}, 'UTC') AS received_at, \
               fromUnixTimestamp64Nano({mark:Int64}, 'UTC') AS watermark_at, \
               fromUnixTimestamp64Nano({mark:Int64}, 'UTC') AS attempts_watermark_at) FROM \
               (SELECT * FROM reported WHERE node = {node:String} ORDER BY observed_at LIMIT 1)";
    let params = vec![
        ("node".to_owned(), node.to_owned()),
        ("now".to_owned(), now_ns.to_string()),
        ("mark".to_owned(), mark_ns.to_string()),
    ];
    store.derive(sql, params).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_come_late_and_in_any_order_come_to_the_same_verdicts() {
    let mut revised = 0;
    for seed in 1..=2 {
        let mut dice = Dice(seed);
        let set = declared(&past(&mut dice));
        let begin_ns = (now_ns() - 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
        let expected = in_time(&set, begin_ns).await;
        assert_eq!(expected.revised, 0, "seed {seed}: nothing came late");
        let said = late(&set, begin_ns, &mut dice).await;
        assert_eq!(said.changes(begin_ns), expected.changes(begin_ns), "seed {seed}");
        revised += said.revised;
    }
    assert!(
        revised > 10,
        "only {revised} verdicts were revised: nothing was tried"
    );
}

/// However long after: what another node lost meanwhile is not forgotten.
#[tokio::test]
async fn a_window_that_is_judged_again_lacks_what_it_lacked() {
    let text = "
assertions:
  - { name: a, from: all, expect: connect.count < 1_000_000, over: 1m, every: 1m }
tests:
  - assertion: a
    given: { web-1 -> db-1: 'nothing x2m, lost x5s, nothing x70m', web-2 -> db-1: 'nothing x2m, silent x65m, nothing x8m' }
    expect: { 2m: Holds }
";
    let set = files::declared(&[("a.yaml".to_owned(), text.to_owned())]);
    let set = set.unwrap_or_else(|error| panic!("{error}"));
    let store: Arc<dyn Store> = database().await;
    let begin_ns = (now_ns() - 4 * 3_600 * SECOND_NS).div_euclid(60 * SECOND_NS) * 60 * SECOND_NS;
    lay(&*store, &set, begin_ns).await;
    let mut engine = Engine::new(store, set, begin_ns + 1, false);
    engine.tell_every_window();
    // By the minute with which a window ended.
    let mut last: BTreeMap<i64, Record> = BTreeMap::new();
    let mut revised = 0;
    for half in 0..2 * 75 {
        let step = engine.step(begin_ns + half * 30 * SECOND_NS).await.unwrap();
        for record in step.records {
            revised += usize::from(record.revision > 0);
            last.insert((record.window_to_ns - begin_ns) / (60 * SECOND_NS), record);
        }
    }
    assert!(revised > 50, "{revised} windows were judged again");
    assert_eq!(last[&3].machine.verdict, Verdict::Unknown, "{:?}", last[&3]);
    assert_eq!(last[&5].machine.verdict, Verdict::Holds, "{:?}", last[&5]);
}
