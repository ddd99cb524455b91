//! What the questions that people ask cost on a large store, and what keeping the rollup up to date costs.
//!
//! `cargo run --release --example query_cost -- FOLDER ROWS`: fills an embedded store in FOLDER with one day of ROWS
//! rows, unless it is there, and prints what that took. Then each line on its input, `warm N` or `cold N`, asks
//! question N, and prints what it took; `cold`: the engine has forgotten its marks (the caller makes the kernel forget
//! the files). Every answer is one JSON object in a line.

use std::io::{BufRead, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use futures_util::TryStreamExt;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::rollups::{self, NodeMinute};
use holdfast_collector::store::{Access, Query, Store, library, migrations, schema};
use serde_json::json;

const NODES: u32 = 100;
const SERVICES: u32 = 50;
/// Nodes that each service runs on.
const INSTANCES: u32 = 10;
const DAY_S: u64 = 24 * 3600;
/// Rows are inserted as time goes on, as they would come, so that parts and merges are those of a day.
const STEPS: u64 = 144;
const STEP_MINUTES: u32 = (DAY_S / 60 / STEPS) as u32;
/// A statement of the rollup, as the collector bounds it.
const UNITS_A_STATEMENT: usize = 1_000;
/// A kept store may be asked for so long; the rows of a release are removed earlier.
const RETENTION_DAYS: u32 = 3_650;
/// The processor's time is counted in hundredths of a second: a question is asked so often for a finer mean.
const WARM_REPEATS: u32 = 10;

/// The questions, as people type them. `{begin}` is the first second of the day that is in the store.
const QUESTIONS: [&str; 6] = [
    // p99 latency per minute of one service over a day
    "SELECT minute, established, p99_us FROM latency_1m WHERE service = 'service-07' AND role = 'active' \
     AND minute >= {begin} AND minute < {begin} + INTERVAL 1 DAY ORDER BY minute",
    // top talkers
    "SELECT node, service, sum(bytes_sent) AS sent, sum(bytes_received) AS received \
     FROM connections_1m WHERE minute >= {begin} AND minute < {begin} + INTERVAL 1 DAY \
     GROUP BY ALL ORDER BY sent + received DESC LIMIT 20",
    // whom one talker talks to
    "SELECT remote_ip, sum(bytes_sent) AS sent, sum(bytes_received) AS received FROM connections \
     WHERE service = 'service-07' AND node = 'node-014' GROUP BY remote_ip ORDER BY sent + received DESC LIMIT 20",
    // failures of a node
    "SELECT service, role, outcome, remote_ip, remote_port, count() AS failures FROM attempts \
     WHERE node = 'node-042' AND outcome != 'established' GROUP BY ALL ORDER BY failures DESC LIMIT 100",
    // who talks to a port
    "SELECT node, service, comm, sum(connections) AS ends, sum(bytes_sent) AS sent FROM connections_1m \
     WHERE role = 'active' AND port = 8007 AND minute >= {begin} \
     AND minute < {begin} + INTERVAL 1 DAY GROUP BY ALL ORDER BY ends DESC LIMIT 100",
    // who talked to a port in the last hour, address by address
    "SELECT node, service, local_ip, remote_ip, count() AS ends FROM connections \
     WHERE remote_port = 8007 AND role = 'active' AND recorded_at >= {begin} + INTERVAL 23 HOUR \
     GROUP BY ALL ORDER BY ends DESC LIMIT 100",
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rows] = &arguments[..] else {
        bail!("say where and how many: query_cost FOLDER ROWS");
    };
    let rows: u64 = rows.parse()?;
    let store = Embedded::open(Path::new(folder), &library::locate()?, "holdfast")?;
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as i64;
    migrations::apply(&store, now_ns).await?;
    for table in [schema::CONNECTION_RECORDS.name, rollups::TABLE] {
        schema::retain(&store, table, RETENTION_DAYS).await?;
    }
    // Yesterday, so that it is over.
    let mut day = (now_ns as u64 / 1_000_000_000 / DAY_S - 1) as u32;
    let mut filled = None;
    match &rollups::days(&store).await?[..] {
        [found] if found.records == rows && rollups::behind(&store, found.day, 1).await?.is_empty() => {
            day = found.day;
        }
        found => {
            ensure!(
                found.is_empty(),
                "{folder} has other rows: remove it, and it is filled anew"
            );
            filled = Some(fill(&store, day, rows).await?);
        }
    }
    let bytes = |table: &str| {
        format!(
            "SELECT sum(bytes_on_disk), sum(rows), count() FROM system.parts WHERE active \
             AND database = currentDatabase() AND table = '{table}'"
        )
    };
    let raw = ask(&store, &bytes(schema::CONNECTION_RECORDS.name), day).await?;
    let rolled = ask(&store, &bytes(rollups::TABLE), day).await?;
    answer(&json!({
        "raw": raw.trim(),
        "rolled": rolled.trim(),
        "insert_us_per_row": filled.as_ref().map(|filled| filled.insert_us),
        "rollup_us_per_row": filled.as_ref().map(|filled| filled.rollup_us),
    }))?;

    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (temperature, number) = line.split_once(' ').context("write `warm N` or `cold N`")?;
        let question = QUESTIONS
            .get(number.parse::<usize>()?)
            .context("there is no such question")?;
        let times = match temperature {
            "cold" => {
                store.execute("SYSTEM DROP MARK CACHE").await?;
                store.execute("SYSTEM DROP UNCOMPRESSED CACHE").await?;
                1
            }
            _ => WARM_REPEATS,
        };
        let (cpu, started) = (cpu_time()?, Instant::now());
        let mut lines = 0;
        for _ in 0..times {
            lines = ask(&store, question, day).await?.lines().count();
        }
        let (cpu, wall) = ((cpu_time()? - cpu) / times, started.elapsed() / times);
        answer(&json!({
            "cpu_ms": cpu.as_secs_f64() * 1e3,
            "wall_ms": wall.as_secs_f64() * 1e3,
            "lines": lines,
        }))?;
    }
    Ok(())
}

fn answer(value: &serde_json::Value) -> anyhow::Result<()> {
    println!("{value}");
    Ok(std::io::stdout().flush()?)
}

/// As `holdfast sql` asks.
async fn ask(store: &Embedded, sql: &str, day: u32) -> anyhow::Result<String> {
    let query = Query {
        sql: sql.replace(
            "{begin}",
            &format!("toDateTime({}, 'UTC')", u64::from(day) * DAY_S),
        ),
        params: vec![],
        format: "TSV".to_owned(),
        access: Access::ReadOnly,
    };
    let parts: Vec<bytes::Bytes> = store.query(query).await?.try_collect().await?;
    Ok(String::from_utf8(parts.concat())?)
}

/// CPU time for each raw row, microseconds. The merges that went on meanwhile are in it.
struct Filled {
    insert_us: f64,
    rollup_us: f64,
}

/// A day of rows, each ten minutes of it followed by their rollup.
async fn fill(store: &Embedded, day: u32, rows: u64) -> anyhow::Result<Filled> {
    let sql = fill_sql();
    let (mut insert, mut rollup) = (Duration::ZERO, Duration::ZERO);
    for step in 0..STEPS {
        let first = rows * step / STEPS;
        let count = rows * (step + 1) / STEPS - first;
        let params = [
            ("first", first),
            ("count", count),
            ("begin_ns", u64::from(day) * DAY_S * 1_000_000_000),
            ("step_ns", DAY_S * 1_000_000_000 / rows.max(1)),
        ];
        let params = params.map(|(name, value)| (name.to_owned(), value.to_string()));
        let before = cpu_time()?;
        store.derive(&sql, params.into()).await?;
        let between = cpu_time()?;
        // A step's first row may still be of the minute before: minutes are computed once they are closed.
        if let Some(closed) = step.checked_sub(1) {
            compute(store, day, closed).await?;
        }
        insert += between - before;
        rollup += cpu_time()? - between;
        if (step + 1) % 12 == 0 {
            eprintln!("  {} of {} rows", first + count, rows);
        }
    }
    let between = cpu_time()?;
    compute(store, day, STEPS - 1).await?;
    rollup += cpu_time()? - between;
    let behind = rollups::behind(store, day, 1).await?;
    ensure!(behind.is_empty(), "the rollup is behind: {behind:?}");
    let per_row = |cpu: Duration| cpu.as_secs_f64() * 1e6 / rows as f64;
    Ok(Filled {
        insert_us: per_row(insert),
        rollup_us: per_row(rollup),
    })
}

/// The rollup of a step.
async fn compute(store: &Embedded, day: u32, step: u64) -> anyhow::Result<()> {
    let begin = day * (DAY_S / 60) as u32 + step as u32 * STEP_MINUTES;
    let units: Vec<_> = (begin..begin + STEP_MINUTES)
        .flat_map(|minute| (0..NODES).map(move |node| (minute, format!("node-{node:03}"))))
        .map(|(minute, node)| NodeMinute { minute, node })
        .collect();
    for units in units.chunks(UNITS_A_STATEMENT) {
        rollups::recompute(store, units).await?;
    }
    Ok(())
}

/// Rows as agents would deliver them: services that call each other, some much more than others; both ends of every
/// connection; latencies, durations and sizes that spread as real ones do; one attempt in 150 that fails. All of it by
/// hashes of the row's number, so that every run has the same rows.
fn fill_sql() -> String {
    // Four bytes of a hash added up are nearly normal: mean 510, standard deviation 148.
    let normal = |hash: &str| {
        let byte = |at: u32| format!("bitAnd(bitShiftRight({hash}, {at}), 255)");
        format!(
            "({} + {} + {} + {} - 510) / 148",
            byte(0),
            byte(8),
            byte(16),
            byte(24)
        )
    };
    let name = |kind: &str, number: &str, digits: u32| {
        format!("concat('{kind}-', leftPad(toString({number}), {digits}, '0'))")
    };
    format!(
        "INSERT INTO connection_records (node, service, role, outcome, recorded_at, pid, comm, attribution, netns, \
         cgroup_id, local_ip, local_port, remote_ip, remote_port, connect_us, duration_us, bytes_sent, bytes_received, \
         segments_sent, segments_received, retransmits, syn_retransmits, srtt_us, errno, close_reason, path, step_us, \
         cookie, is_first, is_final, agent_id, boot_id, agent_epoch, sequence) \
         WITH {{first:UInt64}} + number AS row, intDiv(row, 2) AS pair, row % 2 = 0 AS is_active, \
         sipHash64(pair, 0) AS h1, sipHash64(pair, 1) AS h2, sipHash64(pair, 2) AS h3, \
         toUInt8({SERVICES} * pow((h1 % 65536) / 65536, 2)) AS client, \
         (client * 7 + (h2 % 3) * 11 + 1) % {SERVICES} AS server, \
         (client * 2 + 7 * (bitShiftRight(h1, 16) % {INSTANCES})) % {NODES} AS client_node, \
         (server * 2 + 7 * (bitShiftRight(h1, 24) % {INSTANCES})) % {NODES} AS server_node, \
         if(is_active, client, server) AS own, if(is_active, client_node, server_node) AS own_node, \
         if(is_active, server_node, client_node) AS other_node, \
         {normal_2} AS z1, {normal_3} AS z2, bitShiftRight(h3, 32) % 10000 AS fate, 32768 + h2 % 28000 AS ephemeral, \
         multiIf(fate < 50, 'refused', fate < 60, 'timed_out', fate < 65, 'reset', 'established') AS ended, \
         toUInt64(if(ended = 'timed_out', 3e6 + z1 * 1e3, exp(5.5 + 0.6 * z1) + h3 % 64)) AS connect, \
         connect + if(ended != 'established', 0, toUInt64(if(bitShiftRight(h2, 40) % 50 = 0, exp(17 + z2), \
         exp(8 + 1.2 * z2)))) AS duration, \
         if(ended = 'established', toUInt64(exp(7 + 1.5 * z2)), 0) AS request, \
         if(ended = 'established', toUInt64(exp(9 + 1.5 * z1)), 0) AS reply \
         SELECT {own_node}, {own}, if(is_active, 'active', 'passive'), ended, \
         fromUnixTimestamp64Nano(toInt64({{begin_ns:UInt64}} + row * {{step_ns:UInt64}}), 'UTC'), \
         1000 + own * 16 + h1 % 4, {comm}, if(is_active, 'exact', 'listener'), 4026531840, 100 + own, \
         toIPv6(concat('10.0.0.', toString(own_node))), if(is_active, ephemeral, 8000 + server), \
         toIPv6(concat('10.0.0.', toString(other_node))), if(is_active, 8000 + server, ephemeral), \
         connect, duration, if(is_active, request, reply), if(is_active, reply, request), 3 + intDiv(request, 1400), \
         3 + intDiv(reply, 1400), if(fate < 200, 1, 0), if(ended = 'timed_out', 2, 0), toUInt64(exp(5.3 + 0.6 * z1)), \
         multiIf(ended = 'refused', 111, ended = 'timed_out', 110, ended = 'reset', 104, 0), \
         multiIf(ended != 'established', 'none', fate < 300, 'reset_by_peer', fate < 350, 'reset_by_process', 'finished'), \
         multiIf(ended != 'established', if(is_active, 'SYN_SENT>CLOSE', 'SYN_RECV>CLOSE'), \
         is_active, 'SYN_SENT>ESTABLISHED>FIN_WAIT1>FIN_WAIT2>CLOSE', 'SYN_RECV>ESTABLISHED>CLOSE_WAIT>LAST_ACK>CLOSE'), \
         if(ended = 'established', [90 + h1 % 64, 20 + h2 % 16], []), 1000000 + pair, true, true, \
         {agent}, 'b1', 7, intDiv(row, 800000) + 1 \
         FROM numbers({{count:UInt64}}) \
         SETTINGS max_threads = 1, max_insert_threads = 1, min_insert_block_size_rows = 100000, max_block_size = 100000",
        normal_2 = normal("h2"),
        normal_3 = normal("h3"),
        own_node = name("node", "own_node", 3),
        own = name("service", "own", 2),
        comm = name("comm", "own", 2),
        agent = name("agent", "own_node", 3),
    )
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
