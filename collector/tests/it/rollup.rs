//! The rollup of a running collector: it follows what is stored, and a collector that was killed goes on where it was.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_collector::clock::WallClock;
use holdfast_collector::metrics::Metrics;
use holdfast_collector::rollup::{Minutes, Rollup};
use holdfast_collector::store::Store;
use tokio::sync::watch;

use crate::command_line::serve;
use crate::harness::{database, folder, number};
use crate::store_rows::{NOON_NS, SECOND_NS, end, insert_ends};
use crate::synthetic::{Agent, batch_at, now_ns};

const MINUTE_NS: i64 = 60_000_000_000;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Minutes of which the rollup has another number of attempts or finished ends than there are rows.
const DIFFERENCES: &str = "SELECT count() AS n FROM (SELECT minute, sum(raw) AS raw, sum(rolled) AS rolled FROM (\
    SELECT toStartOfMinute(decided_at) AS minute, 1 AS raw, 0 AS rolled FROM attempts UNION ALL \
    SELECT toStartOfMinute(closed_at), 1000000, 0 FROM connections UNION ALL \
    SELECT minute, 0, attempts FROM attempts_1m UNION ALL \
    SELECT minute, 0, 1000000 * connections FROM connections_1m) GROUP BY minute) WHERE raw != rolled";

/// `holdfast serve` as a process.
struct Serving {
    process: Child,
    address: SocketAddr,
}

impl Serving {
    fn start(store: &Path) -> Self {
        let store = format!("embedded:{}", store.display());
        let mut process = serve(&store).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let ready = log
            .find(|line| line.contains("ready"))
            .expect("it says that it is ready");
        let (_, rest) = ready.split_once("collector=http://").unwrap();
        let address = rest.split_whitespace().next().unwrap().parse().unwrap();
        // What it says further on is not waited for, nor does it block it.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, address }
    }

    fn number(&self, sql: &str) -> u64 {
        let output = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args([
                "sql",
                "--json",
                sql,
                "--collector",
                &format!("http://{}", self.address),
            ])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["n"].as_u64().unwrap()
    }

    /// As a crash ends it: SIGKILL.
    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_was_killed_computes_what_it_had_not() {
    const BATCHES: u64 = 200;
    const ROWS: u32 = 50;
    let store = folder("rollup-killed");
    let serving = Serving::start(&store);
    let mut agent = Agent::connect(serving.address, "a1").await;
    let now_ns = now_ns();
    for sequence in 1..=BATCHES {
        let opened_ns = now_ns - (10 + sequence as i64) * MINUTE_NS;
        agent.deliver(batch_at(sequence, ROWS, opened_ns)).await;
    }
    agent.settled(BATCHES as usize).await;
    tokio::task::spawn_blocking(move || {
        assert_eq!(
            serving.number("SELECT count() AS n FROM connections"),
            BATCHES * u64::from(ROWS)
        );
        // Late rows wait for more of them: nothing is computed yet, and what waits is only in memory.
        assert_eq!(serving.number("SELECT count() AS n FROM connection_minutes"), 0);
        serving.kill();
        // Killed on its way through what it finds, at another point each time.
        for after_ms in [0, 100, 300, 900] {
            let serving = Serving::start(&store);
            std::thread::sleep(Duration::from_millis(after_ms));
            serving.kill();
        }
        let serving = Serving::start(&store);
        let started = Instant::now();
        while serving.number(DIFFERENCES) > 0 {
            assert!(started.elapsed() < PATIENCE, "the rollup is still behind");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(
            serving.number("SELECT sum(connections) AS n FROM connections_1m"),
            BATCHES * u64::from(ROWS)
        );
        serving.kill();
    })
    .await
    .unwrap();
}

/// On a clock that a test turns on by waiting: what takes real time is the engine alone.
#[tokio::test(start_paused = true)]
async fn minutes_are_computed_once_they_are_closed_and_again_when_late_rows_come() {
    let store = database().await;
    let noon = tokio::time::Instant::now();
    let clock = WallClock::new(move || NOON_NS + noon.elapsed().as_nanos() as i64);
    let minutes = Minutes::new(clock);
    let metrics = Arc::new(Metrics::new(&[]).unwrap());
    let (stop, stopping) = watch::channel(false);
    let rollup = Rollup {
        store: store.clone(),
        minutes: minutes.clone(),
        metrics: metrics.clone(),
        stopping,
    };
    let rollup = tokio::spawn(rollup.run());
    let deliver = async |name: &str, node: &str, second: i64| {
        let at_ns = NOON_NS + second * SECOND_NS;
        insert_ends(&*store, name, &[end(node, 1, at_ns)]).await;
        minutes.stored(node, &[at_ns]);
    };
    let rolled = async |node: &str| {
        let sql = format!("SELECT sum(connections) FROM connections_1m WHERE node = '{node}'");
        number(&store, &sql).await
    };
    store
        .execute("ALTER TABLE connection_records REMOVE TTL")
        .await
        .unwrap();
    store
        .execute("ALTER TABLE connection_minutes REMOVE TTL")
        .await
        .unwrap();

    deliver("1", "prompt", 5).await;
    deliver("2", "silent", 5).await;
    tokio::time::sleep(Duration::from_secs(63)).await;
    assert_eq!((rolled("prompt").await, rolled("silent").await), (0, 0));
    minutes.delivered("prompt", NOON_NS + 62 * SECOND_NS);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((rolled("prompt").await, rolled("silent").await), (1, 0));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((rolled("prompt").await, rolled("silent").await), (1, 1));

    deliver("3", "prompt", 6).await;
    deliver("4", "prompt", 7).await;
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(rolled("prompt").await, 3);
    assert_eq!(number(&store, DIFFERENCES).await, 0);
    assert_eq!(
        (metrics.rollup_minutes.get(), metrics.rollup_waiting.get()),
        (3, 0)
    );

    // Rows that another collector stored, and did not live to compute: nobody here knows of them.
    insert_ends(&*store, "5", &[end("elsewhere", 1, NOON_NS)]).await;
    tokio::time::sleep(Duration::from_secs(602)).await;
    assert_eq!(rolled("elsewhere").await, 1);

    stop.send(true).unwrap();
    rollup.await.unwrap();
}
