//! What it costs to judge a thousand assertions over a hundred nodes while rows come in.
//!
//! `cargo run --release --example judging_cost -- FOLDER RATE SECONDS`: fills an embedded store in FOLDER with what a
//! hundred nodes would have delivered in the last eleven minutes at RATE rows a second, goes on delivering in real time, first
//! alone and then with the task that judges in a collector ([`Judge`]) and the one that tells, SECONDS each, and prints one JSON object: the
//! cores that each took, so that the difference is what judging costs, with its questions to the store and the verdicts that it
//! writes, each of which is counted; whether every window was judged whose rows came, and how long after the last of them its
//! verdicts were stored; and whether every verdict about a quantile is that of the sorted values.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use holdfast_collector::assertion::cause::OffReason;
use holdfast_collector::assertion::condition::Limit;
use holdfast_collector::assertion::coverage::{Report, Watch};
use holdfast_collector::assertion::signal::QUANTILES;
use holdfast_collector::assertion::state::Verdict;
use holdfast_collector::clock::WallClock;
use holdfast_collector::engine::heard::Heard;
use holdfast_collector::engine::run::{Declared, Judge, SharedSet};
use holdfast_collector::engine::{Engine, files};
use holdfast_collector::metrics::Metrics;
use holdfast_collector::notify::{self, Notifier};
use holdfast_collector::seat::{self, Seat};
use holdfast_collector::silence::Silencer;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::schema::VERDICT_RECORDS;
use holdfast_collector::store::{Access, Block, Chunks, Query, Store, StoreError, library, migrations};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const SECOND_NS: i64 = 1_000_000_000;
const NODES: u32 = 100;
/// Nodes of one group; assertions are about groups, as people write them.
const GROUP: u32 = 10;
const SERVICES: u32 = 20;
/// The longest window and a minute.
const PAST_S: i64 = 660;
/// Rows of one insert while the past is laid down, in seconds.
const PAST_STEP_S: i64 = 10;
/// As the collector gathers.
const GATHER: Duration = Duration::from_millis(500);
/// Until judging costs what it goes on to cost: the schedule of the longest windows and a quarter.
const WARM_UP: Duration = Duration::from_secs(75);
/// What the marks of stored reports are behind.
const MARK_NS: i64 = SECOND_NS / 2;

/// What is judged, a quarter of the assertions each.
struct Class {
    over: &'static str,
    over_s: i64,
    by: &'static str,
    /// The values of `by` as a text, of a row of attempts, in SQL.
    key: &'static str,
    /// Windows that end in the last so many seconds are held against the sorted values.
    compared_s: i64,
}

/// Addresses are those of [`Feeder::sessions`].
const PAIR: &str = concat!(
    "concat(node, ' ', concat('node-', toString(",
    "toUInt32OrZero(splitByChar('.', toString(remote_ip))[4]) - 1)))"
);

const CLASSES: [Class; 4] = [
    Class {
        over: "5s",
        over_s: 5,
        by: "from.node",
        key: "toString(node)",
        compared_s: 10,
    },
    Class {
        over: "1m",
        over_s: 60,
        by: "from.node",
        key: "toString(node)",
        compared_s: 30,
    },
    Class {
        over: "1m",
        over_s: 60,
        by: "[from.node, to.node]",
        key: PAIR,
        compared_s: 30,
    },
    Class {
        over: "10m",
        over_s: 600,
        by: "service",
        key: "toString(service)",
        compared_s: 121,
    },
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rate, seconds] = &arguments[..] else {
        bail!("say where, how many rows a second, and for how long: judging_cost FOLDER RATE SECONDS");
    };
    let (rate, seconds): (i64, u64) = (rate.parse()?, seconds.parse()?);
    let folder = Path::new(folder);
    let store = Arc::new(Embedded::open(
        &folder.join("store"),
        &library::locate()?,
        "holdfast",
    )?);
    migrations::apply(&*store, now_ns()).await?;
    let assertions = folder.join("assertions");
    std::fs::create_dir_all(&assertions)?;
    std::fs::write(assertions.join("bench.yaml"), text_of(&CLASSES.each_ref()))?;
    let declared = Declared::read(assertions)?;
    let assertions = declared.set.assertions.len();

    let heard = Heard::default();
    let mut feeder = Feeder {
        store: Arc::clone(&store),
        heard: heard.clone(),
        rate,
        threads: 2,
        until_ns: now_ns() - PAST_S * SECOND_NS,
        delivered: Vec::new(),
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
        verdicts_ns: Mutex::default(),
    });
    // Between the ends of two windows: it is known which is the first.
    while now_ns().rem_euclid(EVERY_MS[0] * 1_000_000) > 100_000_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let start_ns = now_ns();
    let judging = Judging::start(counted.clone(), declared, heard)?;
    // The first round reads ten minutes at once and writes a verdict for every key, and a minute passes until the longest
    // windows are put together of parts: that is not what it costs to go on.
    tokio::time::sleep(WARM_UP).await;
    eprintln!("judging too");
    counted.take();
    let (began, cpu, begin_ns) = (Instant::now(), cpu_time()?, now_ns());
    tokio::time::sleep(span).await;
    let both = (cpu_time()? - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let per_second = |times: u64| times as f64 / began.elapsed().as_secs_f64();
    let asked: serde_json::Map<_, _> = counted
        .take()
        .into_iter()
        .map(|(what, Asked { times, waited })| {
            let each_ms = waited.as_secs_f64() * 1e3 / times as f64;
            let (per_second, each_ms) = (per_second(times), each_ms);
            (
                what,
                json!({ "per_second": per_second, "milliseconds_each": each_ms }),
            )
        })
        .collect();
    let keys = judging.keys();

    // Every window that has ended by the last delivery is to be judged, those too whose rows are still on their way.
    stop.store(true, Ordering::Relaxed);
    let feeder = feeding.await??;
    // Those of each schedule end at whole multiples of its `every`.
    let expected: i64 = EVERY_MS
        .into_iter()
        .map(|every_ms| {
            let every_ns = every_ms * 1_000_000;
            feeder.until_ns.div_euclid(every_ns) - (start_ns - 1).div_euclid(every_ns)
        })
        .sum();
    let (windows, given_up) = judging.finish(expected.unsigned_abs()).await?;

    let stored_ns = counted.verdicts_ns();
    let lateness = lateness(&store, &feeder.delivered, &stored_ns).await?;
    let within = |from_ns: i64, to_ns: i64| -> Vec<i64> {
        let windows = lateness.range(from_ns + 1..=to_ns);
        let mut late_ms: Vec<_> = windows.flat_map(|(_, late_ms)| late_ms.clone()).collect();
        late_ms.sort_unstable();
        late_ms
    };
    let end_ns = begin_ns + span.as_nanos() as i64;
    let (at_first, late_ms) = (within(start_ns, begin_ns), within(begin_ns, end_ns));
    let of_100 = |share: usize| late_ms.get((late_ms.len() * share).div_ceil(100).saturating_sub(1));
    let compared = compare(&store, feeder.until_ns - 5 * SECOND_NS).await?;
    println!(
        "{}",
        json!({
            "rows_per_second": rate,
            "assertions": assertions,
            "keys": keys,
            "cores_feeding": alone,
            "cores_both": both,
            "cores_judging": both - alone,
            "windows_expected": expected,
            "windows_judged": windows,
            "windows_given_up": given_up,
            "windows_told": late_ms.len(),
            "stored_after_p50_ms": of_100(50),
            "stored_after_p99_ms": of_100(99),
            "stored_after_most_ms": late_ms.last(),
            "stored_after_most_at_first_ms": at_first.last(),
            "quantiles": compared,
            "asked": asked,
        })
    );
    Ok(())
}

/// The tasks of a collector that judge and tell.
struct Judging {
    metrics: Arc<Metrics>,
    stop: watch::Sender<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Judging {
    /// As `serve` starts them.
    fn start(store: Arc<dyn Store>, declared: Declared, told: Heard) -> anyhow::Result<Self> {
        let metrics = Arc::new(Metrics::new(&[])?);
        let (stop, stopping) = watch::channel(false);
        let shared = SharedSet::new(declared.set.clone());
        let silencer = Arc::new(Silencer::new(store.clone(), WallClock::system()));
        let seat = Arc::new(Seat::new(store.clone(), seat::PATIENCE));
        let (ear, heard) = notify::ear();
        let notifier = Notifier {
            store: store.clone(),
            shared: shared.clone(),
            heard,
            silencer: silencer.clone(),
            seat: seat.clone(),
            clock: WallClock::system(),
            stopping: stopping.clone(),
        };
        let judge = Judge {
            store,
            heard: told,
            declared,
            shared,
            ear,
            silencer,
            seat,
            metrics: metrics.clone(),
            clock: WallClock::system(),
            hang_up: None,
            stopping,
        };
        Ok(Self {
            metrics,
            stop,
            tasks: [tokio::spawn(judge.run()), tokio::spawn(notifier.run())],
        })
    }

    fn keys(&self) -> i64 {
        let of = |verdict: Verdict| {
            let shown = &self.metrics.assertions.verdicts;
            shown.with_label_values(&[verdict.name()]).get()
        };
        Verdict::ALL.into_iter().map(of).sum()
    }

    /// Ends once so many windows were judged, or time is up; how many were judged, and how many given up.
    async fn finish(self, expected: u64) -> anyhow::Result<(u64, u64)> {
        let shown = &self.metrics.assertions;
        let patience = Instant::now() + LAST_WINDOWS;
        while shown.windows.get() < expected && Instant::now() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _ = self.stop.send(true);
        for task in self.tasks {
            task.await?;
        }
        Ok((shown.windows.get(), shown.given_up.get()))
    }
}

/// How long after the last of its rows was there the verdicts of a window were stored, milliseconds, by the window's end: of each
/// schedule that wrote any. `delivered`: up to which time everything was there, and when.
async fn lateness(
    store: &Arc<Embedded>,
    delivered: &[(i64, i64)],
    stored_ns: &[i64],
) -> anyhow::Result<BTreeMap<i64, Vec<i64>>> {
    let lines = lines_of(
        store,
        "SELECT toUnixTimestamp64Nano(window_to) AS to, toUnixTimestamp64Nano(max(judged_at)) FROM verdict_records \
         WHERE revision = 0 AND evidence LIKE '%readings%' GROUP BY to, to - toUnixTimestamp64Nano(window_from)"
            .to_owned(),
    )
    .await?;
    let mut late_ms: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for line in lines {
        let (to_ns, judged_ns) = line.split_once('\t').context("two columns")?;
        let (to_ns, judged_ns): (i64, i64) = (to_ns.parse()?, judged_ns.parse()?);
        // What a step says is stored at its end, before the next one begins.
        let stored = stored_ns.iter().find(|at_ns| **at_ns >= judged_ns);
        let delivered = delivered.iter().find(|(until_ns, _)| *until_ns >= to_ns);
        if let (Some(stored_ns), Some((_, at_ns))) = (stored, delivered) {
            let windows = late_ms.entry(to_ns).or_default();
            windows.push((stored_ns - at_ns).max(0) / 1_000_000);
        }
    }
    Ok(late_ms)
}

/// 250 assertions of each class.
fn text_of(classes: &[&Class]) -> String {
    let mut text = String::from("groups:\n");
    for group in 0..NODES / GROUP {
        text.push_str(&format!("  group-{group}: group = g{group}\n"));
    }
    text.push_str("assertions:\n");
    for Class { over, by, .. } in classes {
        for number in 0..250_u32 {
            let group = group_of(number);
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
                "  - {{ name: '{over} {by} {number}', from: group-{group}{to}, expect: [{expect}], over: {over}, by: {by} }}\n"
            ));
        }
    }
    text
}

/// The group that an assertion is about.
fn group_of(number: u32) -> u32 {
    number % (NODES / GROUP)
}

/// The store as the engine sees it, and what it asks.
struct Counted {
    store: Arc<Embedded>,
    asked: Mutex<BTreeMap<String, Asked>>,
    /// When verdicts were stored.
    verdicts_ns: Mutex<Vec<i64>>,
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

    fn verdicts_ns(&self) -> Vec<i64> {
        let stored = self.verdicts_ns.lock();
        stored.unwrap_or_else(PoisonError::into_inner).clone()
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
        if table == VERDICT_RECORDS.name && outcome.is_ok() {
            let mut stored = self.verdicts_ns.lock().unwrap_or_else(PoisonError::into_inner);
            stored.push(now_ns());
        }
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

/// Until the last windows are judged whose rows came. Shorter than the deadline: of what ends later no rows come, and it is judged then.
const LAST_WINDOWS: Duration = Duration::from_secs(8);

struct Feeder {
    store: Arc<Embedded>,
    /// What the agents say, as `serve` hands it to who judges.
    heard: Heard,
    rate: i64,
    /// That make the rows and their parts: of the past as many as there are cores, then one, as the collector inserts.
    threads: u32,
    /// Everything before was delivered.
    until_ns: i64,
    /// Up to when everything was delivered, and when it was.
    delivered: Vec<(i64, i64)>,
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
        // Times that spread as real ones do: one in a hundred is ten times as long. One attempt in 200 is refused. Each is recorded
        // when it is decided: no earlier, for windows look for nothing that was recorded before they began.
        let sql = format!(
            "INSERT INTO connection_records (node, service, role, outcome, recorded_at, comm, local_ip, local_port, \
             remote_ip, remote_port, connect_us, duration_us, segments_sent, srtt_us, is_first, is_final, agent_id, \
             agent_epoch, sequence) \
             WITH sipHash64(number, {{from:Int64}}) AS h, sipHash64(h, 1) AS h2, h % {NODES} AS own, \
             (own * 7 + intDiv(h, 1000) % 10) % {NODES} AS other, number % 2 = 0 AS is_active, \
             h2 % 200 = 0 AS is_refused, \
             toUInt64(if(intDiv(h2, 7) % 100 = 0, 10, 1) * (150 + intDiv(h2, 65536) % 300)) AS took \
             SELECT concat('node-', toString(own)), concat('service-', toString(intDiv(h2, 4096) % {SERVICES})), \
             if(is_active, 'active', 'passive'), if(is_refused, 'refused', 'established'), \
             fromUnixTimestamp64Nano({{from:Int64}} + toInt64(number * {{step:Int64}}), 'UTC'), \
             concat('comm-', toString(h2 % 8)), toIPv6(concat('10.0.0.', toString(own + 1))), \
             if(is_active, 32768 + h2 % 28000, 5432), toIPv6(concat('10.0.0.', toString(other + 1))), \
             if(is_active, 5432, 32768 + h2 % 28000), \
             took, took, 4, 200, true, true, \
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
        self.hear(to_ns);
        self.report(from_ns, to_ns).await?;
        self.until_ns = to_ns;
        Ok(())
    }

    /// What agents say once what they sent was acknowledged: that they have nothing older.
    fn hear(&mut self, until_ns: i64) {
        for node in 0..NODES {
            self.heard.put(Report {
                node: format!("node-{node}"),
                agent_epoch: 1,
                observed_ns: until_ns,
                received_ns: until_ns,
                records_ns: until_ns,
                attempts_ns: until_ns,
                watches: [Watch {
                    since_ns: until_ns,
                    off: OffReason::Unsaid,
                }; 3],
                ..Report::default()
            });
        }
        self.delivered.push((until_ns, now_ns()));
    }

    /// The report of each second, stored for who was not there to hear it.
    async fn report(&self, from_ns: i64, to_ns: i64) -> anyhow::Result<()> {
        let first = from_ns.div_euclid(SECOND_NS) + 1;
        let count = to_ns.div_euclid(SECOND_NS) - first + 1;
        if count <= 0 {
            return Ok(());
        }
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
        Ok(self.store.derive(&sql, params.into()).await?)
    }
}

/// Of a class that is judged otherwise than the sorted values, so many verdicts are told.
const WRONG_ONES_TOLD: u64 = 3;

/// Holds what is said of quantiles in the windows that end until then against the sorted values: of each class how many windows and
/// verdicts there are, and how many of these are otherwise.
async fn compare(store: &Arc<Embedded>, until_ns: i64) -> anyhow::Result<Vec<serde_json::Value>> {
    let mut compared = Vec::new();
    for class in &CLASSES {
        let set = files::declared(&[("bench.yaml".to_owned(), text_of(&[class]))])?;
        let limits: BTreeMap<String, (u32, usize, u64)> = set
            .assertions
            .iter()
            .zip(0..)
            .filter_map(|(assertion, number)| {
                let condition = &assertion.expect[0];
                let (Some(quantile), Limit::Microseconds(limit)) =
                    (condition.signal.quantile, condition.limit)
                else {
                    return None;
                };
                Some((assertion.name.clone(), (group_of(number), quantile, limit)))
            })
            .collect();
        let from_ns = until_ns - class.compared_s * SECOND_NS;
        let mut engine = Engine::new(store.clone(), set, from_ns, false);
        engine.without_worst();
        engine.tell_every_window();
        engine.stop_at(until_ns);
        let step = engine.step(until_ns + 4 * SECOND_NS).await?;
        ensure!(step.judged > 1, "{} by {}: too few windows", class.over, class.by);

        let mut values: BTreeMap<i64, Values> = BTreeMap::new();
        let (mut cells, mut wrong) = (0_u64, 0_u64);
        for record in &step.records {
            let Some((group, quantile, limit)) = limits.get(&record.assertion) else {
                continue;
            };
            let to_ns = record.window_to_ns;
            let of_window = match values.entry(to_ns) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(exact(store, class, to_ns).await?),
            };
            let key = (*group, record.key_values.join(" "));
            let of_key = of_window
                .get(&key)
                .with_context(|| format!("{key:?} has no values"))?;
            let readings: serde_json::Value = serde_json::from_str(&record.evidence)?;
            let passed = readings["readings"][0]["passed"].as_bool();
            cells += 1;
            if passed != Some(of_key[*quantile] < *limit) {
                wrong += 1;
                if wrong <= WRONG_ONES_TOLD {
                    eprintln!(
                        "  {} by {}: {} {} up to {to_ns} is {:?} ({}), and the sorted value {} us of less than {limit}: {}",
                        class.over,
                        class.by,
                        record.assertion,
                        record.key,
                        record.machine.verdict,
                        record.cause,
                        of_key[*quantile],
                        record.evidence
                    );
                }
            }
        }
        ensure!(cells > 0, "{} by {}: nothing was compared", class.over, class.by);
        compared.push(json!({
            "over": class.over, "by": class.by, "windows": values.len(), "cells": cells, "wrong": wrong,
        }));
    }
    Ok(compared)
}

/// By group and key: of each of [`QUANTILES`], the smallest time that so many of 10,000 are at or below.
type Values = BTreeMap<(u32, String), Vec<u64>>;

/// What the window of a class that ended then has, out of the sorted times of its attempts.
async fn exact(store: &Arc<Embedded>, class: &Class, to_ns: i64) -> anyhow::Result<Values> {
    let ranks = QUANTILES.map(|(_, of_10_000)| of_10_000.to_string()).join(", ");
    let (key, from_ns) = (class.key, to_ns - class.over_s * SECOND_NS);
    let sql = format!(
        "SELECT in_group, key, arrayStringConcat(arrayMap(rank -> \
         toString(sorted[intDiv(length(sorted) * rank + 9999, 10000)]), [{ranks}]), ' ') FROM \
         (SELECT intDiv(toUInt32OrZero(splitByChar('-', toString(node))[2]), {GROUP}) AS in_group, {key} AS key, \
         arraySort(groupArray(connect_us)) AS sorted FROM attempts WHERE role = 'active' AND outcome = 'established' \
         AND decided_at > fromUnixTimestamp64Nano(toInt64({from_ns}), 'UTC') \
         AND decided_at <= fromUnixTimestamp64Nano(toInt64({to_ns}), 'UTC') GROUP BY in_group, key)"
    );
    let row = |line: &String| {
        let [group, key, times] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("three columns are not {line}");
        };
        let times = times.split(' ').map(str::parse).collect::<Result<_, _>>()?;
        Ok(((group.parse()?, key.to_owned()), times))
    };
    lines_of(store, sql).await?.iter().map(row).collect()
}

/// Lines of columns that tabs are between.
async fn lines_of(store: &Arc<Embedded>, sql: String) -> anyhow::Result<Vec<String>> {
    let query = Query {
        sql,
        params: vec![],
        format: "TSV".to_owned(),
        access: Access::Internal,
    };
    let parts: Vec<bytes::Bytes> = store.query(query).await?.try_collect().await?;
    let text = String::from_utf8(parts.concat())?;
    Ok(text.lines().map(str::to_owned).collect())
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
