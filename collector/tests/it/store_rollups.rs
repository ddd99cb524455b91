//! The rollup, against what the raw rows add up to.

use std::collections::BTreeMap;

use holdfast_collector::store::{
    Access, Store,
    buckets::{bucket, bucket_sql, middle, middle_sql},
    migrations,
    rollups::{self, NodeMinute},
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::store_engine::{answer, ask, database, query};
use crate::store_rows::{NOON_NS, Row, SECOND_NS, Value, insert_ends};

const MINUTE_NS: i64 = 60 * SECOND_NS;
const OUTCOMES: [&str; 8] = [
    "established",
    "refused",
    "timed_out",
    "reset",
    "unreachable",
    "aborted",
    "pending",
    "failed",
];
const CLOSE_REASONS: [&str; 7] = [
    "none",
    "finished",
    "reset_by_peer",
    "reset_by_process",
    "timed_out",
    "unreachable",
    "failed",
];

async fn tables() -> impl Store {
    let store = database();
    migrations::apply(&store, NOON_NS).await.unwrap();
    // The rows of these tests are older than any retention.
    for table in ["connection_records", "connection_minutes"] {
        store
            .execute(&format!("ALTER TABLE {table} REMOVE TTL"))
            .await
            .unwrap();
    }
    store
}

/// A record, as far as the rollup looks at it.
#[derive(Clone, Debug)]
struct Record {
    node: &'static str,
    comm: &'static str,
    is_active: bool,
    port: u16,
    outcome: usize,
    reason: usize,
    is_first: bool,
    is_final: bool,
    recorded_ns: i64,
    /// From `decided_at` to `recorded_at`; zero for what is still open.
    open_us: u64,
    connect_us: u64,
    bytes: u64,
}

fn record() -> impl Strategy<Value = Record> {
    let key = (
        prop::sample::select(vec!["web-1", "web-2", "o'brien\\\t"]),
        prop::sample::select(vec!["nginx", "curl"]),
        any::<bool>(),
        prop::sample::select(vec![80_u16, 5432]),
    );
    let end = (0..OUTCOMES.len(), 0..CLOSE_REASONS.len(), 1..4_u8);
    let times = (
        0..180 * SECOND_NS,
        prop::sample::select(vec![0, 1_000_000, 300_000_000_u64]),
    );
    let sizes = (0..40_u32, any::<u64>(), 0..1_000_000_u64);
    (key, end, times, sizes).prop_map(|(key, end, times, (shift, number, bytes))| {
        let (node, comm, is_active, port) = key;
        let (outcome, reason, flags) = end;
        let is_final = flags & 2 != 0;
        // What has ended is decided.
        let outcome = if is_final && OUTCOMES[outcome] == "pending" {
            0
        } else {
            outcome
        };
        Record {
            node,
            comm,
            is_active,
            port,
            outcome,
            reason,
            is_first: flags & 1 != 0,
            is_final,
            recorded_ns: NOON_NS + times.0,
            open_us: if is_final { times.1 } else { 0 },
            connect_us: number >> 24 >> shift,
            bytes,
        }
    })
}

impl Record {
    fn is_decided(&self) -> bool {
        OUTCOMES[self.outcome] != "pending"
    }

    fn decided_ns(&self) -> i64 {
        self.recorded_ns - self.open_us as i64 * 1000
    }

    fn duration_us(&self) -> u64 {
        if self.is_final {
            self.connect_us + self.open_us
        } else {
            0
        }
    }

    fn unit(&self) -> NodeMinute {
        NodeMinute {
            minute: NodeMinute::minute_of(self.recorded_ns),
            node: self.node.to_owned(),
        }
    }

    fn row(&self) -> Row {
        let time = |ns: i64| Value::Number(ns.cast_unsigned());
        let number = |is: bool| Value::Number(u64::from(is));
        let (own, other) = if self.is_active {
            ("remote_port", "local_port")
        } else {
            ("local_port", "remote_port")
        };
        vec![
            ("node", self.node.into()),
            ("comm", self.comm.into()),
            (
                "role",
                Value::Word(if self.is_active { "active" } else { "passive" }),
            ),
            (own, u64::from(self.port).into()),
            (other, 40_000.into()),
            ("outcome", Value::Word(OUTCOMES[self.outcome])),
            ("close_reason", Value::Word(CLOSE_REASONS[self.reason])),
            ("is_first", number(self.is_first)),
            ("is_final", number(self.is_final)),
            ("recorded_at", time(self.recorded_ns)),
            ("connect_us", self.connect_us.into()),
            ("duration_us", self.duration_us().into()),
            ("bytes_sent", self.bytes.into()),
            ("bytes_received", (self.bytes / 2).into()),
            ("retransmits", (self.bytes % 3).into()),
            ("syn_retransmits", (self.bytes % 2).into()),
        ]
    }
}

type Key = (i64, String, String, bool, u16);
type Histogram = BTreeMap<u16, u64>;

/// What a line of `attempts_1m`, or of `connections_1m`, adds up to: counts and sums, and the histogram.
type Sums = BTreeMap<Key, (Vec<u64>, Histogram)>;

fn attempts_of(records: &[Record]) -> Sums {
    let mut sums = Sums::new();
    for record in records.iter().filter(|record| record.is_first) {
        let at_ns = if record.is_decided() {
            record.decided_ns()
        } else {
            record.recorded_ns
        };
        let (counts, histogram) = entry(&mut sums, record, at_ns, OUTCOMES.len() + 1);
        counts[record.outcome] += 1;
        counts[OUTCOMES.len()] += record.bytes % 2;
        if OUTCOMES[record.outcome] == "established" {
            *histogram.entry(bucket(record.connect_us)).or_default() += 1;
        }
    }
    sums
}

fn connections_of(records: &[Record]) -> Sums {
    let mut sums = Sums::new();
    for record in records.iter().filter(|record| record.is_final) {
        let (counts, histogram) = entry(&mut sums, record, record.recorded_ns, CLOSE_REASONS.len() + 3);
        counts[0] += 1;
        if record.reason > 0 {
            counts[record.reason] += 1;
        }
        let sizes = [record.bytes, record.bytes / 2, record.bytes % 3];
        for (count, size) in counts[CLOSE_REASONS.len()..].iter_mut().zip(sizes) {
            *count += size;
        }
        if OUTCOMES[record.outcome] == "established" {
            *histogram.entry(bucket(record.duration_us())).or_default() += 1;
        }
    }
    sums
}

fn entry<'a>(
    sums: &'a mut Sums,
    record: &Record,
    at_ns: i64,
    counts: usize,
) -> &'a mut (Vec<u64>, Histogram) {
    let key = (
        at_ns / MINUTE_NS,
        record.node.to_owned(),
        record.comm.to_owned(),
        record.is_active,
        record.port,
    );
    sums.entry(key)
        .or_insert_with(|| (vec![0; counts], Histogram::new()))
}

/// A line of the answer: minute, node, comm, whether it is active and the port; counts; buckets and their counts.
type Line = ([String; 5], Vec<u64>, (Vec<u16>, Vec<u64>));

/// The same from a view.
async fn read(store: &dyn Store, view: &str, counts: &[String], histogram: &str) -> Sums {
    let sums: Vec<_> = counts.iter().map(|count| format!("sum({count})")).collect();
    let sql = format!(
        "SELECT [toJSONString(intDiv(toUnixTimestamp(minute), 60)), node, comm, toString(role = 'active'), toString(port)], \
         [{}], sumMap({histogram}_buckets, {histogram}_counts) AS histogram \
         FROM {view} GROUP BY minute, node, comm, role, port",
        sums.join(", ")
    );
    let mut question = query(&sql, Access::Internal);
    question.format = "JSONCompactEachRow".into();
    let text = answer(store, question).await.unwrap();
    text.lines()
        .map(|line| {
            let (key, counts, (buckets, amounts)): Line = serde_json::from_str(line).unwrap();
            let [minute, node, comm, is_active, port] = key;
            let key = (
                minute.parse().unwrap(),
                node,
                comm,
                is_active == "1",
                port.parse().unwrap(),
            );
            (key, (counts, buckets.into_iter().zip(amounts).collect()))
        })
        .collect()
}

async fn check(store: &dyn Store, records: &[Record]) {
    let mut counts = OUTCOMES.map(String::from).to_vec();
    counts.push("syn_retransmits".into());
    assert_eq!(
        read(store, "attempts_1m", &counts, "connect").await,
        attempts_of(records)
    );
    let mut counts = vec!["connections".to_owned()];
    counts.extend(CLOSE_REASONS[1..].iter().map(|reason| format!("closed_{reason}")));
    counts.extend(["bytes_sent", "bytes_received", "retransmits"].map(String::from));
    assert_eq!(
        read(store, "connections_1m", &counts, "duration").await,
        connections_of(records)
    );
}

fn units(records: &[Record]) -> Vec<NodeMinute> {
    let mut units: Vec<_> = records.iter().map(Record::unit).collect();
    units.sort();
    units.dedup();
    units
}

/// Records that are the same in every run.
fn records(count: usize, seed: u8) -> Vec<Record> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..count)
        .map(|_| record().new_tree(&mut runner).unwrap().current())
        .collect()
}

async fn insert(store: &dyn Store, name: &str, records: &[Record]) {
    let rows: Vec<_> = records.iter().map(Record::row).collect();
    insert_ends(store, name, &rows).await;
}

#[tokio::test]
async fn it_is_what_the_raw_rows_add_up_to_however_late_they_come_and_however_often_it_is_computed() {
    let store = tables().await;
    let records = records(3_000, 1);
    let mut stored = 0;
    for (number, part) in records.chunks(700).enumerate() {
        insert(&store, &format!("b{number}"), part).await;
        stored += part.len();
        // What the part touched, computed as one collector does and as two that do not know of each other.
        let touched = units(part);
        rollups::recompute(&store, &touched).await.unwrap();
        let (one, other) = tokio::join!(
            rollups::recompute(&store, &touched[..touched.len() / 2]),
            rollups::recompute(&store, &touched)
        );
        one.and(other).unwrap();
        check(&store, &records[..stored]).await;
    }
    store
        .execute("OPTIMIZE TABLE connection_minutes FINAL")
        .await
        .unwrap();
    check(&store, &records).await;
}

#[tokio::test]
async fn only_the_minutes_and_nodes_that_were_named_are_computed() {
    let store = tables().await;
    let records = records(300, 2);
    insert(&store, "b", &records).await;
    let all = units(&records);
    let some: Vec<_> = all.iter().step_by(2).cloned().collect();
    rollups::recompute(&store, &some).await.unwrap();
    let of_some: Vec<_> = records
        .iter()
        .filter(|record| some.contains(&record.unit()))
        .cloned()
        .collect();
    check(&store, &of_some).await;
    rollups::recompute(&store, &[]).await.unwrap();
    check(&store, &of_some).await;
}

#[tokio::test]
async fn what_is_behind_is_found_from_the_store_alone() {
    let store = tables().await;
    let records = records(500, 3);
    insert(&store, "b1", &records[..400]).await;
    let noon = u32::try_from(NOON_NS / (24 * 60 * MINUTE_NS)).unwrap();
    let days = rollups::days(&store).await.unwrap();
    assert_eq!(
        days.iter().map(|day| (day.day, day.records)).collect::<Vec<_>>(),
        [(noon, 400)]
    );
    let all = units(&records[..400]);
    assert_eq!(rollups::behind(&store, noon, 1_000).await.unwrap(), all);
    assert_eq!(rollups::behind(&store, noon, 2).await.unwrap(), all[..2]);
    assert_eq!(rollups::behind(&store, noon + 1, 1_000).await.unwrap(), []);
    rollups::recompute(&store, &all).await.unwrap();
    assert_eq!(rollups::behind(&store, noon, 1_000).await.unwrap(), []);
    insert(&store, "b2", &records[400..401]).await;
    assert_eq!(
        rollups::behind(&store, noon, 1_000).await.unwrap(),
        units(&records[400..401])
    );
}

#[tokio::test]
async fn minutes_whose_raw_rows_are_past_their_retention_stay() {
    let store = tables().await;
    let records = records(200, 4);
    insert(&store, "b", &records).await;
    let all = units(&records);
    rollups::recompute(&store, &all).await.unwrap();
    store.execute("TRUNCATE TABLE connection_records").await.unwrap();
    assert_eq!(rollups::days(&store).await.unwrap(), []);
    rollups::recompute(&store, &all).await.unwrap();
    check(&store, &records).await;
}

#[tokio::test]
async fn buckets_are_the_same_in_rust_and_in_sql() {
    let store = tables().await;
    // Each power of two, each bound of a bucket, and what is next to them.
    let mut numbers: Vec<u64> = (0..64)
        .flat_map(|octave| (0..32).map(move |step| (1 << octave) + ((step << octave) >> 5)))
        .collect();
    numbers = numbers
        .iter()
        .flat_map(|&number| [number - 1, number, number + 1])
        .chain([0, u64::MAX])
        .collect();
    let list = numbers
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",");
    let sql = format!(
        "SELECT toUInt64(arrayJoin([{list}])) AS number, {} AS bucket, {}",
        bucket_sql("number"),
        middle_sql("bucket")
    );
    let text = ask(&store, &sql).await;
    assert_eq!(text.lines().count(), numbers.len());
    for (line, number) in text.lines().zip(numbers) {
        let fields: Vec<_> = line.split('\t').collect();
        assert_eq!(fields[0], number.to_string());
        assert_eq!(fields[1].parse::<u16>().unwrap(), bucket(number), "{number}");
        assert_eq!(
            fields[2].parse::<f64>().unwrap(),
            middle(bucket(number)),
            "{number}"
        );
    }
    // The views have the expression in their own text.
    let text = ask(&store, "SELECT create_table_query FROM system.tables WHERE name IN ('attempts_1m', 'connections_1m', 'latency_1m') AND database = currentDatabase()").await;
    let middle_of_a_view = ask(
        &store,
        &format!(
            "SELECT formatQuery('SELECT {}') FORMAT TSVRaw",
            middle_sql("bucket")
        ),
    )
    .await;
    let expression = middle_of_a_view
        .split_whitespace()
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(text.matches(&expression).count(), 3, "{expression} in {text}");
}

#[tokio::test]
async fn quantiles_are_within_two_percent_and_of_all_nodes_together() {
    let store = tables().await;
    let records = records(4_000, 5);
    insert(&store, "b", &records).await;
    rollups::recompute(&store, &units(&records)).await.unwrap();
    let text = ask(
        &store,
        "SELECT l.p50_us, r.p50, l.p90_us, r.p90, l.p99_us, r.p99, l.established, r.n FROM latency_1m AS l \
         JOIN (SELECT toStartOfMinute(decided_at) AS minute, role, count() AS n, quantileExactLow(0.5)(connect_us) AS p50, \
         arraySort(groupArray(connect_us)) AS sorted, \
         sorted[toUInt64(ceil(0.9 * n))] AS p90, sorted[toUInt64(ceil(0.99 * n))] AS p99 \
         FROM attempts WHERE outcome = 'established' GROUP BY minute, role) AS r USING (minute, role)",
    )
    .await;
    assert!(text.lines().count() >= 8, "{text}");
    for line in text.lines() {
        let numbers: Vec<f64> = line.split('\t').map(|number| number.parse().unwrap()).collect();
        for pair in numbers[..6].chunks(2) {
            assert!((pair[0] - pair[1]).abs() <= pair[1] / 50.0, "{line}");
        }
        assert_eq!(numbers[6], numbers[7], "{line}");
    }
}
