//! What it costs to judge a thousand assertions over a hundred nodes while rows come in.
//!
//! `cargo run --release --example judging_cost -- FOLDER RATE SECONDS`: fills an embedded store in FOLDER with what a
//! hundred nodes would have delivered in the last eleven minutes at RATE rows a second, goes on delivering in real time, first
//! alone and then with the engine judging, SECONDS each, and prints one JSON object: the cores that each took, so that the
//! difference is what judging costs, with its questions to the store and the verdicts that it writes, each of which is counted; which windows were
//! judged, and how long after their end; and whether every verdict about a quantile is that of the sorted values.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use holdfast_collector::assertion::Set;
use holdfast_collector::assertion::cause::OffReason;
use holdfast_collector::assertion::condition::Limit;
use holdfast_collector::assertion::coverage::{Report, Watch};
use holdfast_collector::assertion::signal::QUANTILES;
use holdfast_collector::engine::heard::Heard;
use holdfast_collector::engine::{Engine, files};
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::verdicts::Record;
use holdfast_collector::store::{Access, Block, Chunks, Query, Store, StoreError, library, migrations};
use serde_json::json;

const SECOND_NS: i64 = 1_000_000_000;
const NODES: u32 = 100;
/// Nodes of one group; assertions are about groups, as people write them.
const GROUP: u32 = 10;
const SERVICES: u32 = 20;
/// The longest window and a minute.
const PAST_S: i64 = 660;
/// Rows of one insert while the past is laid down, in seconds.
const PAST_STEP_S: i64 = 10;
/// As `serve` steps.
const STEP: Duration = Duration::from_millis(250);
/// As the collector gathers.
const GATHER: Duration = Duration::from_millis(500);
/// Until judging costs what it goes on to cost: the schedule of the longest windows and a quarter.
const WARM_UP: Duration = Duration::from_secs(75);
/// What the agents' marks are behind.
const MARK_NS: i64 = SECOND_NS / 2;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rate, seconds] = &arguments[..] else {
        bail!("say where, how many rows a second, and for how long: judging_cost FOLDER RATE SECONDS");
    };
    let (rate, seconds): (i64, u64) = (rate.parse()?, seconds.parse()?);
    let store = Arc::new(Embedded::open(
        Path::new(folder),
        &library::locate()?,
        "holdfast",
    )?);
    migrations::apply(&*store, now_ns()).await?;
    let set = declared()?;

    let heard = Heard::default();
    let mut feeder = Feeder {
        store: Arc::clone(&store),
        heard: heard.clone(),
        rate,
        threads: 2,
        until_ns: now_ns() - PAST_S * SECOND_NS,
    };
    feeder.sessions().await?;
    eprintln!("laying down {} rows", rate * PAST_S);
    let began = Instant::now();
    while feeder.until_ns < now_ns() - PAST_STEP_S * SECOND_NS {
        feeder.feed(feeder.until_ns + PAST_STEP_S * SECOND_NS).await?;
    }
    feeder.feed(now_ns()).await?;
    feeder.threads = 1;
    eprintln!("laid down after {} s", began.elapsed().as_secs());

    // Merges of the past end first: they are nobody's.
    settle().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let feeding = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(GATHER);
        while !stopped.load(Ordering::Relaxed) {
            ticks.tick().await;
            feeder.feed(now_ns()).await?;
        }
        anyhow::Ok(feeder)
    });
    let span = Duration::from_secs(seconds);
    tokio::time::sleep(Duration::from_secs(5)).await;
    eprintln!("taking rows in");
    let (began, cpu) = (Instant::now(), cpu_time()?);
    tokio::time::sleep(span).await;
    let alone = (cpu_time()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64();

    let counted = Arc::new(Counted {
        store: Arc::clone(&store),
        asked: Mutex::default(),
    });
    let start_ns = now_ns();
    let mut engine = Engine::new(counted.clone(), set.clone(), start_ns, true);
    engine.listen_to(heard);
    let mut ticks = tokio::time::interval(STEP);
    let mut judged = Judged::default();
    // The first round reads ten minutes at once and writes a verdict for every key, and a minute passes until the longest
    // windows are put together of parts: that is not what it costs to go on.
    let mut first = Judged::default();
    judge(&mut engine, &mut ticks, WARM_UP, &mut first).await?;
    eprintln!("judging too");
    counted.take();
    let (began, cpu) = (Instant::now(), cpu_time()?);
    judge(&mut engine, &mut ticks, span, &mut judged).await?;
    let both = (cpu_time()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    // Every window that has ended by now is to be judged, those too whose rows are still on their way.
    let end_ns = now_ns();
    engine.stop_at(end_ns);
    let mut last = Judged::default();
    let patience = Instant::now() + LAST_WINDOWS;
    while !engine.is_done(now_ns()) && Instant::now() < patience {
        judge(&mut engine, &mut ticks, STEP, &mut last).await?;
    }
    let asked: serde_json::Map<_, _> = counted
        .take()
        .into_iter()
        .map(|(what, Asked { times, waited })| {
            let each_ms = waited.as_secs_f64() * 1e3 / times as f64;
            let per_second = times as f64 / began.elapsed().as_secs_f64();
            (
                what,
                json!({ "per_second": per_second, "milliseconds_each": each_ms }),
            )
        })
        .collect();
    let keys: usize = engine.verdicts().iter().map(|(_, count)| count).sum();
    stop.store(true, Ordering::Relaxed);
    feeding.await??;

    let (cells, wrong) = compare(&store, &set).await?;
    // Those of each schedule end at whole multiples of its `every`.
    let expected: i64 = EVERY_MS
        .into_iter()
        .map(|every_ms| {
            let every_ns = every_ms * 1_000_000;
            end_ns.div_euclid(every_ns) - (start_ns - 1).div_euclid(every_ns)
        })
        .sum();
    println!(
        "{}",
        json!({
            "rows_per_second": rate,
            "assertions": set.assertions.len(),
            "keys": keys,
            "cores_feeding": alone,
            "cores_both": both,
            "cores_judging": both - alone,
            "windows_expected": expected,
            "windows_judged": first.windows + judged.windows + last.windows,
            "windows_given_up": engine.given_up,
            "shortest_every_ms": EVERY_MS.into_iter().min(),
            "longest_step_ms": judged.longest.as_secs_f64() * 1e3,
            "longest_first_step_ms": first.longest.as_secs_f64() * 1e3,
            "most_lag_ms": judged.most_lag_ms,
            "quantile_cells": cells,
            "quantile_cells_wrong": wrong,
            "asked": asked,
        })
    );
    Ok(())
}

/// 250 assertions of each class: 5 s by node, a minute by node, a minute by pair, ten minutes by service.
fn declared() -> anyhow::Result<Set> {
    let mut text = String::from("groups:\n");
    for group in 0..NODES / GROUP {
        text.push_str(&format!("  group-{group}: group = g{group}\n"));
    }
    text.push_str("assertions:\n");
    let classes = [
        ("5s", "from.node"),
        ("1m", "from.node"),
        ("1m", "[from.node, to.node]"),
        ("10m", "service"),
    ];
    for (class, (over, by)) in classes.into_iter().enumerate() {
        for number in 0..250_u32 {
            let group = number % (NODES / GROUP);
            // Limits around what the values are, so that some hold and some do not.
            let limit = 200 + 37 * (number % 50);
            let expect = match number % 5 {
                0 => format!("connect.p99 < {limit}us"),
                1 => format!("connect.p50 < {limit}us"),
                2 => format!("connect.p99.9 < {}us", limit * 3),
                3 => "connect.refused_ratio < 0.5%".to_owned(),
                _ => format!("connect.p95 < {limit}us, connect.failed_ratio < 1%"),
            };
            let to = if by.contains("to.node") { ", to: all" } else { "" };
            text.push_str(&format!(
                "  - {{ name: 'c{class} n{number}', from: group-{group}{to}, expect: [{expect}], over: {over}, by: {by} }}\n"
            ));
        }
    }
    Ok(files::declared(&[("bench.yaml".to_owned(), text)])?)
}

/// The store as the engine sees it, and what it asks.
struct Counted {
    store: Arc<Embedded>,
    asked: Mutex<BTreeMap<String, Asked>>,
}

#[derive(Default)]
struct Asked {
    times: u64,
    /// Until the whole of the answer was there.
    waited: Duration,
}

impl Counted {
    fn note(&self, what: String, began: Instant) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = asked.entry(what).or_default();
        asked.times += 1;
        asked.waited += began.elapsed();
    }

    /// What was asked since the last call.
    fn take(&self) -> BTreeMap<String, Asked> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Which table a question is about, how much of it, and what for: rows for people have an order, sums have none.
fn about(query: &Query) -> String {
    let tables = query.sql.split("FROM ").skip(1);
    let mut names = tables.filter(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()));
    let name = names
        .next()
        .and_then(|rest| rest.split([' ', ')']).next())
        .unwrap_or("nothing");
    let at = |name: &str| {
        let value = query.params.iter().find(|(known, _)| known == name)?;
        value.1.parse::<f64>().ok()
    };
    let of = match (at("from"), at("until")) {
        (Some(from), Some(until)) => format!(" of {:.1} s", until - from),
        _ => String::new(),
    };
    let sums = if query.sql.contains("groupArrayIf") {
        ", sums"
    } else {
        ""
    };
    let by: String = [
        ("remote_ip AS l_remote", " by remote"),
        ("service AS l_service", " by service"),
    ]
    .into_iter()
    .filter_map(|(label, name)| query.sql.contains(label).then_some(name))
    .collect();
    format!("{name}{of}{sums}{by}")
}

#[async_trait]
impl Store for Counted {
    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        let began = Instant::now();
        let outcome = self.store.insert(table, token, block).await;
        self.note(format!("insert into {table}"), began);
        outcome
    }

    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        let (what, began) = (about(&query), Instant::now());
        let parts: Vec<_> = self.store.query(query).await?.try_collect().await?;
        self.note(what, began);
        Ok(Box::pin(futures_util::stream::iter(parts.into_iter().map(Ok))))
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        self.store.execute(sql).await
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        self.store.derive(sql, params).await
    }
}

/// How often the windows of 5 s, of a minute and of ten minutes are judged.
const EVERY_MS: [i64; 3] = [500, 5_000, 60_000];

/// Until the last windows are judged: longer than any deadline.
const LAST_WINDOWS: Duration = Duration::from_secs(20);

struct Feeder {
    store: Arc<Embedded>,
    /// What the agents say, as `serve` hands it to who judges.
    heard: Heard,
    rate: i64,
    /// That make the rows and their parts: of the past as many as there are cores, then one, as the collector inserts.
    threads: u32,
    /// Everything before was delivered.
    until_ns: i64,
}

impl Feeder {
    async fn sessions(&self) -> anyhow::Result<()> {
        let sql = format!(
            "INSERT INTO node_sessions (node, agent_id, agent_epoch, connected_at, remote, labels, addresses) SELECT \
             concat('node-', toString(number)) AS node, node, 1, fromUnixTimestamp64Nano({{at:Int64}}, 'UTC'), \
             '127.0.0.1:1', map('group', concat('g', toString(intDiv(number, {GROUP})))), \
             [concat('::ffff:10.0.0.', toString(number + 1))] FROM numbers({NODES})"
        );
        let params = vec![("at".to_owned(), self.until_ns.to_string())];
        Ok(self.store.derive(&sql, params).await?)
    }

    /// Delivers rows and reports up to a time.
    async fn feed(&mut self, to_ns: i64) -> anyhow::Result<()> {
        let from_ns = self.until_ns;
        let span_ns = to_ns - from_ns;
        let rows = i64::try_from(i128::from(span_ns) * i128::from(self.rate) / i128::from(SECOND_NS))?;
        if rows <= 0 {
            return Ok(());
        }
        // Times that spread as real ones do: one in a hundred is ten times as long. One attempt in 200 is refused.
        let sql = format!(
            "INSERT INTO connection_records (node, service, role, outcome, recorded_at, comm, local_ip, local_port, \
             remote_ip, remote_port, connect_us, duration_us, segments_sent, srtt_us, is_first, is_final, agent_id, \
             agent_epoch, sequence) \
             WITH sipHash64(number, {{from:Int64}}) AS h, sipHash64(h, 1) AS h2, h % {NODES} AS own, \
             (own * 7 + intDiv(h, 1000) % 10) % {NODES} AS other, number % 2 = 0 AS is_active, \
             h2 % 200 = 0 AS is_refused \
             SELECT concat('node-', toString(own)), concat('service-', toString(intDiv(h2, 4096) % {SERVICES})), \
             if(is_active, 'active', 'passive'), if(is_refused, 'refused', 'established'), \
             fromUnixTimestamp64Nano({{from:Int64}} + toInt64(number * {{step:Int64}}), 'UTC'), \
             concat('comm-', toString(h2 % 8)), toIPv6(concat('10.0.0.', toString(own + 1))), \
             if(is_active, 32768 + h2 % 28000, 5432), toIPv6(concat('10.0.0.', toString(other + 1))), \
             if(is_active, 5432, 32768 + h2 % 28000), \
             toUInt64(if(intDiv(h2, 7) % 100 = 0, 10, 1) * (150 + intDiv(h2, 65536) % 300)), 0, 4, 200, true, true, \
             concat('node-', toString(own)), 1, 1 FROM numbers_mt({{rows:UInt64}}) \
             SETTINGS max_threads = {threads}, max_insert_threads = {threads}, max_block_size = 100000",
            threads = self.threads
        );
        let params = [
            ("from", from_ns.to_string()),
            ("step", (span_ns / rows).to_string()),
            ("rows", rows.to_string()),
        ];
        let params = params.map(|(name, value)| (name.to_owned(), value));
        self.store.derive(&sql, params.into()).await?;
        // A report for each second of it.
        let first = from_ns.div_euclid(SECOND_NS) + 1;
        let count = to_ns.div_euclid(SECOND_NS) - first + 1;
        if count > 0 {
            let sql = format!(
                "INSERT INTO agent_samples (node, agent_id, agent_epoch, observed_at, received_at, watermark_at, \
                 attempts_watermark_at, syscalls_since, listeners_since, open_connections_since) \
                 WITH fromUnixTimestamp64Nano(({{first:Int64}} + toInt64(intDiv(number, {NODES}))) * {SECOND_NS}, 'UTC') AS at \
                 SELECT concat('node-', toString(number % {NODES})) AS node, node, 1, at, at, \
                 at - toIntervalNanosecond({MARK_NS}), at - toIntervalNanosecond({MARK_NS}), at, at, at \
                 FROM numbers({{reports:UInt64}})"
            );
            let params = [
                ("first", first.to_string()),
                ("reports", (count * i64::from(NODES)).to_string()),
            ];
            let params = params.map(|(name, value)| (name.to_owned(), value));
            self.store.derive(&sql, params.into()).await?;
            let at_ns = (first + count - 1) * SECOND_NS;
            for node in 0..NODES {
                self.heard.put(Report {
                    node: format!("node-{node}"),
                    agent_epoch: 1,
                    observed_ns: at_ns,
                    received_ns: at_ns,
                    records_ns: at_ns - MARK_NS,
                    attempts_ns: at_ns - MARK_NS,
                    watches: [Watch {
                        since_ns: at_ns,
                        off: OffReason::Unsaid,
                    }; 3],
                    ..Report::default()
                });
            }
        }
        self.until_ns = to_ns;
        Ok(())
    }
}

#[derive(Default)]
struct Judged {
    windows: u64,
    longest: Duration,
    most_lag_ms: i64,
}

async fn judge(
    engine: &mut Engine,
    ticks: &mut tokio::time::Interval,
    span: Duration,
    judged: &mut Judged,
) -> anyhow::Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        ticks.tick().await;
        let begun = Instant::now();
        let step = engine.step(now_ns()).await?;
        judged.windows += step.judged;
        judged.longest = judged.longest.max(begun.elapsed());
        let lags = step
            .records
            .iter()
            .map(|record| (record.judged_ns - record.window_to_ns) / 1_000_000);
        judged.most_lag_ms = lags.fold(judged.most_lag_ms, i64::max);
    }
    Ok(())
}

/// Holds what is said of quantiles against the sorted values: how many there are, and how many are otherwise.
async fn compare(store: &Arc<Embedded>, set: &Set) -> anyhow::Result<(u64, u64)> {
    let now_ns = now_ns() - 5 * SECOND_NS;
    let mut engine = Engine::new(store.clone(), set.clone(), now_ns - 60 * SECOND_NS, false);
    engine.stop_at(now_ns);
    let mut first: BTreeMap<(String, String), Record> = BTreeMap::new();
    // The first window of each key has a record.
    for record in engine.step(now_ns + 4 * SECOND_NS).await?.records {
        let place = (record.assertion.clone(), record.key.clone());
        first.entry(place).or_insert(record);
    }
    let (mut cells, mut wrong) = (0, 0);
    // By window and quantile, of each node.
    let mut sorted: BTreeMap<(i64, i64, u32), BTreeMap<String, u64>> = BTreeMap::new();
    for assertion in &set.assertions {
        let condition = &assertion.expect[0];
        let (Some(quantile), Limit::Microseconds(limit)) = (condition.signal.quantile, condition.limit)
        else {
            continue;
        };
        let of_10_000 = QUANTILES[quantile].1;
        // The classes by node: 5 s and a minute.
        if !assertion.name.starts_with("c0") && !assertion.name.starts_with("c1") {
            continue;
        }
        for ((name, key), record) in &first {
            if *name != assertion.name {
                continue;
            }
            let window = (record.window_from_ns, record.window_to_ns, of_10_000);
            if let Entry::Vacant(place) = sorted.entry(window) {
                place.insert(exact(store, window).await?);
            }
            let value = key
                .rsplit_once('=')
                .and_then(|(_, value)| sorted[&window].get(value))
                .with_context(|| format!("{key} has no values"))?;
            let readings: serde_json::Value = serde_json::from_str(&record.evidence)?;
            let passed = readings["readings"][0]["passed"].as_bool();
            cells += 1;
            wrong += u64::from(passed != Some(*value < limit));
        }
    }
    ensure!(cells > 0, "nothing was compared");
    Ok((cells, wrong))
}

/// The smallest time that so many of 10,000 are at or below, by node.
async fn exact(
    store: &Arc<Embedded>,
    (from_ns, to_ns, of_10_000): (i64, i64, u32),
) -> anyhow::Result<BTreeMap<String, u64>> {
    let query = Query {
        sql: format!(
            "SELECT node, arraySort(groupArray(connect_us))[intDiv(count() * {of_10_000} + 9999, 10000)] \
             FROM attempts WHERE role = 'active' AND outcome = 'established' \
             AND decided_at > fromUnixTimestamp64Nano(toInt64({from_ns}), 'UTC') \
             AND decided_at <= fromUnixTimestamp64Nano(toInt64({to_ns}), 'UTC') GROUP BY node"
        ),
        params: vec![],
        format: "TSV".to_owned(),
        access: Access::Internal,
    };
    let parts: Vec<bytes::Bytes> = store.query(query).await?.try_collect().await?;
    let text = String::from_utf8(parts.concat())?;
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once('\t').context("two columns")?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// Waits until the engine has nothing left to do.
async fn settle() -> anyhow::Result<()> {
    for _ in 0..120 {
        let cpu = cpu_time()?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        if cpu_time()? - cpu < Duration::from_millis(100) {
            break;
        }
    }
    Ok(())
}

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// CPU time of this process, all threads (proc(5), PID/stat: utime and stime in hundredths of a second).
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat
        .rsplit_once(')')
        .context("/proc/self/stat has another form")?
        .1;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(Duration::from_millis(10 * ticks.iter().sum::<u64>()))
}
