//! Runs of load end to end: the command line, a collector, and the parts of agents that make load and talk.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use holdfast_agent::clock;
use holdfast_agent::clock_offset::ClockOffset;
use holdfast_agent::counters::Counters;
use holdfast_agent::delivery::Delivery;
use holdfast_agent::gaps::GapBatcher;
use holdfast_agent::identity::Identity;
use holdfast_agent::load::consent::Consent;
use holdfast_agent::load::run::Caps;
use holdfast_agent::runs::Runs;
use holdfast_agent::spool::{self, Spool};
use holdfast_agent::uplink;
use holdfast_collector::runs::known;
use holdfast_collector::runs::result::{Connections, Kernel, Summary, Times, buckets};
use holdfast_collector::runs::seconds::{Slot, worst};
use holdfast_collector::store::Store;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::runs::{self as store_runs, LoadSample};
use holdfast_proto::PROTOCOL;
use holdfast_proto::v1::{
    Hello, LoadCounts, RunEvent, RunReady, agent_message, collector_message, run_event, run_order,
};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::faults::Troubled;
use crate::harness::{Collector, database, number};
use crate::synthetic;

/// An agent without probes that allows load on loopback.
struct Generator {
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Generator {
    fn start(collector: &Collector, node: &str, connections: u64) -> Self {
        Self::start_with_rate(collector, node, connections, 1e6)
    }

    fn start_with_rate(collector: &Collector, node: &str, connections: u64, per_second: f64) -> Self {
        Self::start_as(
            collector,
            node,
            "client",
            "127.0.0.0/8",
            (connections, per_second),
        )
    }

    /// One of a role, which allows these targets, and so many connections at once and a second.
    fn start_as(
        collector: &Collector,
        node: &str,
        role: &str,
        targets: &str,
        (connections, per_second): (u64, f64),
    ) -> Self {
        let counters = Arc::new(Counters::default());
        let spool = Spool::open(spool::Limits::default(), "boot", None, Arc::clone(&counters))
            .expect("no disk to fail");
        let consent = Consent {
            targets: vec![targets.parse().expect("targets")],
            connections,
            caps: Caps {
                per_second,
                bytes: u64::MAX,
                cpus: f64::MAX,
                duration: Duration::from_secs(600),
            },
        };
        let mut delivery = Delivery {
            identity: Identity {
                agent_id: format!("agent-{node}"),
                node: node.to_owned(),
                labels: [("role".to_owned(), role.to_owned())].into(),
                epoch: 1,
                boot_id: "boot".to_owned(),
                observed_netns: "all".to_owned(),
                missing_features: Vec::new(),
            },
            spool: Arc::new(spool),
            counters: || Some(Default::default()),
            gaps: GapBatcher::new(1, "boot"),
            probes: None,
            runs: Runs::new(consent),
            clock: ClockOffset::default(),
            wall_now_ns: Arc::new(|| clock::wall_now().as_nanos() as u64),
            boot_now: Arc::new(|| Duration::from_nanos(clock::boot_now_ns())),
        };
        let collector = uplink::Collector::parse(&collector.url()).expect("an address");
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(async move { uplink::run(&collector, &mut delivery, stopped).await });
        Self { stop, running }
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        self.running.await.expect("it ends");
    }
}

/// A listener that keeps what it accepts, for as long as the test lasts.
async fn keeper() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    address
}

async fn holdfast(collector: &Collector, arguments: &[&str]) -> Output {
    begin(collector, arguments).await.unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Until so many agents are connected.
async fn agents(collector: &Collector, wanted: usize) {
    loop {
        let output = holdfast(collector, &["nodes", "--json"]).await;
        if stdout(&output).lines().count() == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_two_agents_is_one_whole_and_its_result_is_kept() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let generators = ["web-1", "web-2"].map(|node| Generator::start(&collector, node, 1_000));
    agents(&collector, 2).await;
    let target = keeper().await.to_string();

    let arguments = [
        "load",
        "tcp",
        &target,
        "-y",
        "-c",
        "101",
        "-s",
        "1ms",
        "--from",
        "role=client",
        "--expect",
        "established = 101",
        "--expect",
        "connect.p50 < 10s",
    ];
    let output = holdfast(&collector, &arguments).await;
    let (said, report) = (stderr(&output), stdout(&output));
    // A busy machine may be late, which is said, and proves nothing.
    let is_late = report.contains("lack CPU");
    assert_eq!(
        output.status.code(),
        Some(if is_late { 3 } else { 0 }),
        "{report}{said}"
    );
    assert!(
        report.contains("attempts:     101 in") && report.contains("101 established"),
        "{report}"
    );
    assert!(report.contains("errors:       none"), "{report}");
    assert!(report.contains("finished from web-1, web-2 to"), "{report}");
    assert!(
        report.contains("Total: 101, Dialing: 0, Established: 0, Closed: 101, Error: 0, Not initiated: 0"),
        "{report}"
    );

    assert_eq!(
        number(&store, "SELECT sum(established) FROM run_results").await,
        101
    );
    assert_eq!(
        number(&store, "SELECT min(established) FROM run_results").await,
        50
    );
    assert_eq!(
        number(&store, "SELECT sum(arraySum(connect_counts)) FROM load_samples").await,
        101
    );
    let id = crate::store_engine::ask(&*store, "SELECT run_id FROM runs WHERE state = 'finished'").await;
    let shown = holdfast(&collector, &["run", "show", id.trim()]).await;
    let shown = stdout(&shown);
    assert!(report.ends_with(&shown), "{report}\n{shown}");
    let listed = stdout(&holdfast(&collector, &["runs"]).await);
    assert!(
        listed.contains(id.trim()) && listed.contains("web-1,web-2"),
        "{listed}"
    );

    // As a page too, which is there as a whole or not at all.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.html").to_str().unwrap().to_owned();
    let page = async |path: &str| holdfast(&collector, &["run", "show", id.trim(), "--html", path]).await;
    assert_eq!(page(&path).await.status.code(), Some(0));
    let written = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, stdout(&page("-").await));
    assert!(
        written.contains("<data value=\"101\">101</data>") && written.ends_with("</html>\n"),
        "{written}"
    );
    let full = page("/dev/full").await;
    assert_eq!(full.status.code(), Some(2));
    assert!(
        stderr(&full).contains("cannot write /dev/full: No space left on device"),
        "{}",
        stderr(&full)
    );

    // What was asked for and who did what is kept with it, and what happened second by second adds up to the whole.
    let plan = format!(
        "plan:         protocol TCP; load 101 connections, one every 1.00 ms; addresses {target}; agents all of role=client;"
    );
    assert!(report.contains(&plan), "{report}");
    assert!(
        report.contains("  web-1: 51 attempts,") && report.contains("  web-2: 50 attempts,"),
        "{report}"
    );
    let seconds = holdfast_collector::store::runs::seconds(&*store, id.trim())
        .await
        .unwrap();
    let sum = |of: &dyn Fn(&Slot) -> u64| seconds.slots.iter().map(of).sum::<u64>();
    assert_eq!(seconds.step_us, 1_000_000);
    assert_eq!(sum(&|slot| slot.count("established")), 101);
    assert_eq!(sum(&|slot| slot.connect.1.iter().sum()), 101);
    assert_eq!(
        sum(&|slot| slot.covered_us),
        number(&store, "SELECT sum(elapsed_us) FROM run_results").await
    );

    // A run of less than a second says nothing against another.
    let again = holdfast(&collector, &["load", "tcp", &target, "-y", "-c", "3", "--json"]).await;
    let again: Value = serde_json::from_str(&stdout(&again)).unwrap();
    let again = again["run_id"].as_str().expect("its id");
    let compared = holdfast(&collector, &["run", "compare", id.trim(), again]).await;
    assert_eq!(compared.status.code(), Some(3), "{}", stderr(&compared));
    let words = stdout(&compared);
    assert!(
        words.contains("too short to tell") && words.contains("error ratio"),
        "{words}"
    );

    for generator in generators {
        generator.stop().await;
    }
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_begin_says_why_and_what_would_help() {
    let collector = Collector::start(database().await).await;
    let check = async |arguments: &[&str], code: i32, parts: &[&str]| {
        let output = holdfast(&collector, &[&["load", "tcp"], arguments].concat()).await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    };
    check(
        &["127.0.0.1:9", "-y"],
        4,
        &["0 agents are connected and 1 are needed", "holdfast nodes"],
    )
    .await;
    let generator = Generator::start(&collector, "web-1", 50);
    agents(&collector, 1).await;
    check(&["127.0.0.1:9"], 2, &["no terminal", "--yes"]).await;
    check(&["127.0.0.1", "-y"], 2, &["has no port"]).await;
    check(
        &["no.such.host.invalid:80", "-y"],
        2,
        &[
            "cannot resolve `no.such.host.invalid:80`",
            "not by the agents",
            "getent hosts",
            "192.0.2.7:80",
        ],
    )
    .await;
    check(
        &["10.0.0.1:80", "-y"],
        4,
        &["web-1", "--load-targets", " 10.0.0.1/32:80"],
    )
    .await;
    check(&["127.0.0.1:9", "-y", "-c", "51"], 4, &["--load-connections"]).await;
    check(
        &["127.0.0.1:9", "-y", "-c", "0"],
        2,
        &["--connections", "`0` is no whole number from 1 on"],
    )
    .await;
    check(
        &["127.0.0.1:9", "-y", "--expect", "connect.p99 < 20"],
        2,
        &["needs a time with its unit"],
    )
    .await;
    check(
        &["127.0.0.1:9", "-y", "--expect", "request_timed_out = 0"],
        2,
        &[
            "`request_timed_out = 0` is nothing that such a run shows",
            "it shows connect",
        ],
    )
    .await;
    check(
        &["127.0.0.1:9", "-y", "--expect", "error_rate < 1%"],
        2,
        &["did you mean error_ratio?"],
    )
    .await;
    check(
        &["127.0.0.1:9", "-y", "--from", "role=web", "--from", "role=db"],
        2,
        &["no node has both role=web and role=db", "--node"],
    )
    .await;
    check(
        &["127.0.0.1:9", "-y", "--node", "db-1"],
        4,
        &["no agent of a node db-1"],
    )
    .await;
    check(&["127.0.0.1:9", "-y", "--rate", "5"], 2, &["500/s"]).await;
    check(
        &["127.0.0.1:9", "-y", "--source", "::1"],
        2,
        &["one is IPv4, the other IPv6"],
    )
    .await;
    check(
        &["127.0.0.1:9", "-y", "-c", "5", "--source", "192.0.2.1"],
        4,
        &["web-1", "192.0.2.1", "--source"],
    )
    .await;
    let check_udp = async |arguments: &[&str], part: &str| {
        let output = holdfast(
            &collector,
            &[&["load", "udp", "127.0.0.1:9", "-y"], arguments].concat(),
        )
        .await;
        let said = stderr(&output);
        assert!(output.status.code() == Some(2) && said.contains(part), "{said}");
    };
    check_udp(&["--bytes", "1"], "`1` is no whole number from 40 to 65507").await;
    check_udp(&["--concurrency", "5", "--for", "1s"], "a number or a rate").await;
    check(
        &["127.0.0.1:9", "-y", "--for", "5s"],
        2,
        &["--rate or --concurrency"],
    )
    .await;
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_refuses_is_named_and_does_not_hold() {
    let collector = Collector::start(database().await).await;
    let generator = Generator::start(&collector, "web-1", 50);
    agents(&collector, 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    drop(listener);
    let output = holdfast(
        &collector,
        &["load", "tcp", &target, "-y", "-c", "10", "-s", "20ms", "--json"],
    )
    .await;
    let row: serde_json::Value = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    let result: serde_json::Value = serde_json::from_str(row["result"].as_str().unwrap()).unwrap();
    assert_eq!(result["counts"]["refused"], 10, "{row}");
    let is_late = row["verdict"] == "unknown";
    assert_eq!(output.status.code(), Some(if is_late { 3 } else { 1 }), "{row}");
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_or_whose_agent_leaves_ends_and_is_kept() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let generator = Generator::start(&collector, "web-1", 50);
    agents(&collector, 1).await;
    let target = keeper().await.to_string();
    let hold = ["load", "tcp", target.as_str(), "-y", "-c", "5", "--hold", "5m"];

    // Stopped by somebody else.
    let running = holdfast(&collector, &hold);
    let stopping = async {
        loop {
            let id =
                crate::store_engine::ask(&*store, "SELECT run_id FROM runs WHERE state = 'running'").await;
            // How it begins is enough.
            let stopped = holdfast(&collector, &["run", "stop", id.trim().get(..8).unwrap_or("")]).await;
            if !id.is_empty() && stopped.status.success() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (output, ()) = tokio::join!(running, stopping);
    // Perhaps before all five were there.
    let report = stdout(&output);
    assert!(
        report.contains("stopped from web-1") && report.contains("closed by us; lost: none"),
        "{report}"
    );

    // What is over cannot be stopped; what never was is a wrong call, as it is to show it.
    let id = crate::store_engine::ask(&*store, "SELECT run_id FROM runs").await;
    for (called, code, said) in [
        (id.trim(), 4, "is stopped, so there is nothing to stop"),
        ("nonex", 2, "there is no run nonex"),
        ("", 2, "a value is required"),
    ] {
        let output = holdfast(&collector, &["run", "stop", called]).await;
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
    for called in [
        ["run", "show", ""].as_slice(),
        &["run", "compare", id.trim(), id.trim()],
    ] {
        let output = holdfast(&collector, called).await;
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    }

    // What cannot be told, since the disk is full, goes on and is stored all the same.
    for (lines, is_told_of) in [("--json", false), ("--debug", true)] {
        let arguments = ["-y", "-c", "20", "-s", "30ms", "-i", "100ms", lines];
        let output = to_full_disk(&collector, &[&["load", "tcp", &target], &arguments[..]].concat()).await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert_eq!(
            said.contains("goes on and is told no further"),
            is_told_of,
            "{said}"
        );
        let (_, id) = said.split_once("holdfast run show ").expect("where it is found");
        let shown = holdfast(&collector, &["run", "show", id.split(' ').next().unwrap_or("")]).await;
        let shown = stdout(&shown);
        assert!(
            shown.contains("finished from web-1") && shown.contains("20 established"),
            "{said}{shown}"
        );
    }

    // The agent leaves in the middle.
    let running = holdfast(&collector, &hold);
    let leaving = async {
        while number(&store, "SELECT count() FROM runs WHERE state = 'running'").await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        generator.stop().await;
    };
    let (output, ()) = tokio::join!(running, leaving);
    assert_eq!(output.status.code(), Some(3), "{}", stdout(&output));
    assert!(
        stdout(&output).contains("the agent of web-1 was lost in the middle"),
        "{}",
        stdout(&output)
    );
    assert_eq!(
        number(&store, "SELECT count() FROM runs WHERE state = 'failed'").await,
        1
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_stopped_in_peace_leaves_no_run_without_an_end() {
    until_undisturbed(ends_with_its_collector).await;
}

/// False if the run ended before, since the machine stood still.
async fn ends_with_its_collector() -> bool {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let generator = Generator::start(&collector, "web-1", 1_000);
    agents(&collector, 1).await;
    let target = keeper().await.to_string();
    let arguments = [
        "load", "tcp", &target, "-y", "-c", "10", "-s", "1ms", "--hold", "5m",
    ];
    let run = begin(&collector, &arguments);
    let is_held = are_held(&store, 10, &run).await;
    collector.stop().await.unwrap();
    let sql = "SELECT concat(state, ' ', verdict, ': ', arrayStringConcat(reasons, '; ')) FROM runs";
    let end = crate::store_engine::ask(&*store, sql).await;
    let output = run.await.unwrap();
    generator.stop().await;
    if !is_held || end.contains("did not hear of the collector") {
        return false;
    }
    assert!(
        end.starts_with("failed unknown: the collector was stopped"),
        "{end}"
    );
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_agents_held_at_once_is_added_up_in_a_run_of_one_report() {
    let collector = Collector::start(database().await).await;
    let generators = ["web-1", "web-2"].map(|node| Generator::start(&collector, node, 50));
    agents(&collector, 2).await;
    let target = keeper().await.to_string();
    let closed = ["--concurrency", "8", "--for", "600ms", "--hold", "100ms"];
    let run = [
        &["load", "tcp", &target, "-y", "--from", "role=client"][..],
        &closed,
    ]
    .concat();
    let output = holdfast(&collector, &run).await;
    let report = stdout(&output);
    assert!(
        report.contains("connections:  8 concurrent at most, ") && !report.contains("established at the end"),
        "{report}"
    );
    assert!(
        stderr(&output).contains("8 connections at once, from all agents with role=client"),
        "{}",
        stderr(&output)
    );
    for generator in generators {
        generator.stop().await;
    }
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_a_rate_finds_no_room_for_are_told_with_what_would_allow_them() {
    let collector = Collector::start(database().await).await;
    let generator = Generator::start(&collector, "web-1", 5);
    agents(&collector, 1).await;
    let target = keeper().await.to_string();
    let rate = ["--rate", "100/s", "--for", "500ms", "--hold", "5s"];
    let output = holdfast(&collector, &[&["load", "tcp", &target, "-y"], &rate[..]].concat()).await;
    let report = stdout(&output);
    assert_eq!(output.status.code(), Some(3), "{report}");
    assert!(
        report.contains("more than 5 connections at once were due") && report.contains("--load-connections"),
        "{report}"
    );
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_generator_limits_in_a_closed_loop_is_unknown_and_answers_are_not() {
    let collector = Collector::start(database().await).await;
    let generator = Generator::start(&collector, "web-1", 200);
    agents(&collector, 1).await;
    // Nobody listens there, so nothing but the generator takes its time.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // The kernel answers for a queue that has room for all.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(4096).unwrap();
    let somebody = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    for (target, expected, code) in [
        (nobody, "error_ratio >= 0%", 0),
        (nobody, "rate > 1000000/s", 3),
        (nobody, "refused = 0", 1),
        (somebody, "connect.p99 < 60s", 3),
    ] {
        let target = target.to_string();
        let closed = [
            "load",
            "tcp",
            &target,
            "-y",
            "--concurrency",
            "100",
            "--for",
            "600ms",
        ];
        let output = holdfast(&collector, &[&closed[..], &["--expect", expected]].concat()).await;
        let report = stdout(&output);
        assert_eq!(output.status.code(), Some(code), "{expected}: {report}");
        assert!(
            report.contains("limited by the generator, which had no CPU time left for"),
            "{report}"
        );
    }
    accepting.abort();
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_payload_that_goes_back_and_forth_a_run_says_whether_the_generator_was_its_limit() {
    let collector = Collector::start(database().await).await;
    let generator = Generator::start(&collector, "web-1", 50);
    agents(&collector, 1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let echoing = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    let run = [
        "load",
        "tcp",
        &target,
        "-y",
        "-c",
        "4",
        "-s",
        "1ms",
        "--payload",
        "8",
    ];
    let said = "no CPU time left for";
    let output = holdfast(&collector, &[&run[..], &["--rounds", "5000"]].concat()).await;
    assert!(stdout(&output).contains(said), "{}", stdout(&output));
    let output = holdfast(&collector, &run).await;
    assert!(!stdout(&output).contains(said), "{}", stdout(&output));
    echoing.abort();
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[test]
fn a_target_without_files_says_so_once_and_goes_on() {
    use std::io::{BufRead, BufReader};
    let serve = format!(
        "ulimit -n 40; exec {} load serve --listen 127.0.0.1:0 --interval 50ms",
        env!("CARGO_BIN_EXE_holdfast")
    );
    let mut target = Command::new("sh")
        .args(["-c", &serve])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(target.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let listens = said.next().unwrap();
    let words = listens.strip_prefix("listening on ").expect("where");
    let address: SocketAddr = words.split(';').next().unwrap().parse().unwrap();
    let connect = || std::net::TcpStream::connect(address).unwrap();
    let all: Vec<_> = (0..60).map(|_| connect()).collect();
    let mut lines: Vec<String> = said
        .by_ref()
        .take_while(|line| !line.contains("cannot accept"))
        .collect();
    // Each that ends makes room for one that waits.
    drop(all);
    lines.extend(said.by_ref().take_while(|line| *line != "accepted 60, open 0"));
    assert!(
        !lines.iter().any(|line| line.contains("cannot accept")),
        "{lines:?}"
    );
    target.kill().unwrap();
    target.wait().unwrap();
}

/// A command that is given Ctrl-C once something has happened.
async fn interrupted(
    collector: &Collector,
    arguments: &[&str],
    after: impl AsyncFnOnce(&JoinHandle<Output>),
) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command
        .args(arguments)
        .env("HOLDFAST_COLLECTOR", collector.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id().to_string();
    let running = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    after(&running).await;
    assert!(!running.is_finished(), "it ended by itself");
    let sent = Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(sent.success());
    running.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_a_run_in_each_phase_and_what_is_known_is_told() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let generator = Generator::start(&collector, "web-1", 50);
    agents(&collector, 1).await;
    let target = keeper().await.to_string();
    let asked = ["load", "tcp", target.as_str(), "-y", "-i", "100ms"];
    for (more, established) in [
        // In the middle of the attempts, of holding, and of a search.
        (&["-c", "50", "-s", "10s"][..], 1),
        (&["-c", "5", "-s", "1ms", "--hold", "5m"], 5),
        (
            &["--find-max", "connect.p99 < 60s", "--rate", "20/s", "--for", "5m"],
            1,
        ),
    ] {
        let arguments = [&asked[..], more].concat();
        let output = interrupted(&collector, &arguments, async |run| {
            assert!(are_held(&store, established, run).await, "it ended by itself");
        })
        .await;
        let (report, said) = (stdout(&output), stderr(&output));
        assert!(said.contains("stopping; once more"), "{said}");
        assert!(
            report.contains("stopped from web-1") && report.contains("closed by us; lost: none"),
            "{report}"
        );
        let is_search = more.contains(&"--find-max");
        // A machine that stood still says so.
        let is_unknown = is_search || report.contains("verdict: unknown");
        assert_eq!(
            output.status.code(),
            Some(if is_unknown { 3 } else { 0 }),
            "{report}"
        );
        if is_search {
            assert!(report.contains("holds at no rate that was tried"), "{report}");
        }
    }
    let open = "SELECT count() FROM runs WHERE state != 'stopped'";
    assert_eq!(number(&store, open).await, 0);

    // An agent that does not answer whether it will: nothing has begun.
    let mut silent = synthetic::Agent::connect(collector.address, "silent").await;
    agents(&collector, 2).await;
    loop {
        let arguments = [&asked[..], &["--node", "node-silent"]].concat();
        let output = interrupted(&collector, &arguments, async |_| {
            loop {
                if let Some(collector_message::Body::Run(order)) = silent.hear().await.unwrap()
                    && matches!(order.order, Some(run_order::Order::Prepare(_)))
                {
                    return;
                }
            }
        })
        .await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(4), "{said}");
        if said.contains("stopped before it began: no load was made") {
            break;
        }
        // The machine stood still for longer than an agent may take.
        assert!(said.contains("no answer from node-silent"), "{said}");
    }
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_version_is_missed_by_name_and_what_to_upgrade_is_said() {
    let collector = Collector::start(database().await).await;
    for (protocol, upgrade) in [(PROTOCOL + 1, "collector"), (PROTOCOL - 1, "agent")] {
        let mut agent = synthetic::Agent::dial(collector.address).await;
        let hello = Hello {
            protocol,
            ..synthetic::hello("a1")
        };
        agent.send(agent_message::Body::Hello(hello)).await;
        let told = agent.hear().await.expect_err("it is turned away");
        let upgrade = format!("upgrade the {upgrade}");
        assert!(told.message().contains(&upgrade), "{told}");
        for choice in [&[][..], &["--node", "node-a1"]] {
            let asked = ["load", "tcp", "127.0.0.1:9", "-y"];
            let output = holdfast(&collector, &[&asked[..], choice].concat()).await;
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(4), "{said}");
            assert!(
                said.contains("node-a1 was turned away") && said.contains(&upgrade),
                "{said}"
            );
        }
        let output = holdfast(
            &collector,
            &["load", "tcp", "127.0.0.1:9", "-y", "--node", "db-1"],
        )
        .await;
        assert!(!stderr(&output).contains("turned away"), "{}", stderr(&output));
    }
    // One that speaks the protocol and does not know what is asked of it.
    let mut agent = synthetic::Agent::dial(collector.address).await;
    let hello = Hello {
        version: "0.0.9".to_owned(),
        ..synthetic::hello("a2")
    };
    agent.send(agent_message::Body::Hello(hello)).await;
    agent.hear().await.expect("it is welcome");
    agents(&collector, 1).await;
    let output = holdfast(&collector, &["load", "tcp", "127.0.0.1:9", "-y"]).await;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    let own = env!("CARGO_PKG_VERSION");
    let versions =
        format!("node-a2 (its agent is \"0.0.9\" and this collector \"{own}\": upgrade the older one)");
    assert!(
        said.contains("no answer from") && said.contains(&versions),
        "{said}"
    );
    // What another one refuses is told as well.
    let generator = Generator::start(&collector, "web-1", 50);
    agents(&collector, 2).await;
    let output = holdfast(&collector, &["load", "tcp", "10.0.0.1:9", "-y", "--agents", "2"]).await;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        said.contains("no answer from node-a2") && said.contains("web-1:") && said.contains("--load-targets"),
        "{said}"
    );
    generator.stop().await;
    // One that answers and would leave out what it does not know: it says nothing of the plan, or knows another one.
    let ready = RunReady {
        pid: 1,
        threads: 1,
        ..RunReady::default()
    };
    for plan_crc32 in [None, Some(7)] {
        let running = holdfast(&collector, &["load", "tcp", "127.0.0.1:9", "-y"]);
        let answering = async {
            loop {
                let message = agent.hear().await.expect("an order");
                let Some(collector_message::Body::Run(order)) = message else {
                    continue;
                };
                if matches!(order.order, Some(run_order::Order::Prepare(_))) {
                    let ready = RunReady { plan_crc32, ..ready };
                    let event = RunEvent {
                        run_id: order.run_id,
                        event: Some(run_event::Event::Ready(ready)),
                    };
                    agent.send(agent_message::Body::Run(event)).await;
                }
            }
        };
        // Of the run before it heard too.
        let output = tokio::select! {
            output = running => output,
            () = answering => unreachable!("it answers as long as it is asked"),
        };
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(
            said.contains("node-a2: its agent (\"0.0.9\") is older than this collector")
                && said.ends_with("upgrade the agent\n"),
            "{said}"
        );
    }
    collector.stop().await.unwrap();
}

/// A server of HTTP/1.1 that answers everything alike, for as long as the test lasts.
async fn web() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                // A request of the test comes in one piece.
                while let Ok(1..) = stream.read(&mut request).await {
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Whether a run was late, which proves nothing and is a matter of the machine; else its exit code.
fn code(output: &Output) -> Option<i32> {
    let code = output.status.code();
    if stdout(output).contains("lack CPU") {
        // What the target answered counts all the same.
        assert!(matches!(code, Some(1 | 3)), "{}", stdout(output));
        return code.filter(|code| *code != 3);
    }
    code
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_datagrams_are_judged_by_what_came_back() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let generator = Generator::start(&collector, "web-1", 100);
    agents(&collector, 1).await;

    let url = format!("http://{}/a", web().await);
    let get = [
        "load",
        "http",
        &url,
        "-y",
        "-n",
        "20",
        "-s",
        "5ms",
        "--expect",
        "answered = 20",
    ];
    let output = holdfast(&collector, &get).await;
    let report = stdout(&output);
    assert!(
        matches!(code(&output), Some(0) | None),
        "{report}{}",
        stderr(&output)
    );
    assert!(
        report.contains("requests:     20 in") && report.contains("20 answered as expected"),
        "{report}"
    );
    assert!(
        report.contains("statuses:   200: 20") && report.contains("\n  request "),
        "{report}"
    );
    assert_eq!(
        number(&store, "SELECT sum(arraySum(request_counts)) FROM load_samples").await,
        20
    );
    let other = [
        "load",
        "http",
        &url,
        "-y",
        "-n",
        "5",
        "--status",
        "404",
        "--contains",
        "hello",
    ];
    let output = holdfast(&collector, &other).await;
    assert!(matches!(code(&output), Some(1) | None), "{}", stdout(&output));
    assert!(
        stdout(&output).contains("5 unexpected status"),
        "{}",
        stdout(&output)
    );

    // A server whose kernel takes what its process does not look at: nobody's slowness but its own, however late it was asked.
    let silent = format!("http://{}/", keeper().await);
    let waits = [
        "load", "http", &silent, "-y", "-n", "3", "-s", "1ms", "-t", "300ms",
    ];
    let output = holdfast(&collector, &waits).await;
    let report = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{report}{}", stderr(&output));
    assert!(
        report.contains("errors:     3 request timed out\n")
            && report.contains("in the target's kernel, and nothing came back"),
        "{report}"
    );

    // Our own receiver, of which only a process of its own is one.
    let port = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let target = format!("127.0.0.1:{port}");
    let mut receiver = Command::new(env!("CARGO_BIN_EXE_holdfast"))
        .args(["load", "serve", "--udp", "--listen", &target])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let probe = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    probe.connect(&target).await.unwrap();
    loop {
        // Refused until it listens.
        let _ = probe.send(b"are you there").await;
        let answer = tokio::time::timeout(Duration::from_millis(100), probe.recv(&mut [0; 64])).await;
        if matches!(answer, Ok(Ok(13))) {
            break;
        }
    }
    for way in [&["--bytes", "100"][..], &["--one-way"]] {
        let udp = [&["load", "udp", &target, "-y", "-n", "30", "-s", "1ms"], way].concat();
        let output = holdfast(&collector, &udp).await;
        let report = stdout(&output);
        assert!(
            matches!(code(&output), Some(0) | None),
            "{report}{}",
            stderr(&output)
        );
        assert!(
            report.contains("datagrams:    30 in") && report.contains("30 answered as expected"),
            "{report}"
        );
    }
    receiver.kill().unwrap();
    receiver.wait().unwrap();

    // Nobody has the port any more. What a kernel says of that is an answer, however late it was asked.
    for way in [&["--bytes", "100"][..], &["--one-way"]] {
        let udp = [&["load", "udp", &target, "-y", "-n", "30", "-s", "1ms"], way].concat();
        let output = holdfast(&collector, &udp).await;
        let report = stdout(&output);
        assert_eq!(output.status.code(), Some(1), "{report}{}", stderr(&output));
        for part in [
            "datagrams:    30 in",
            "errors:     30 refused\n",
            "Refused: 30,",
            "refused: nothing listens on that UDP port (by ICMP",
            "verdict: violated\n  refused: 30, nothing listens on that UDP port\n",
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
        assert!(!report.contains("timed out"), "{report}");
    }
    let expected = [
        "load",
        "udp",
        &target,
        "-y",
        "-n",
        "10",
        "-s",
        "1ms",
        "--json",
        "--expect",
        "refused = 10",
        "--expect",
        "refused_ratio > 99%",
        "--expect",
        "error_ratio > 99%",
    ];
    let output = holdfast(&collector, &expected).await;
    assert!(
        matches!(code(&output), Some(0) | None),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );
    let row: Value = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    let result: Value = serde_json::from_str(row["result"].as_str().unwrap()).unwrap();
    let count = |name: &str| result["counts"][name].as_u64().unwrap();
    assert_eq!(
        (
            count("requests"),
            count("refused"),
            count("request_timed_out"),
            count("started")
        ),
        (10, 10, 0, 0)
    );
    let id = row["run_id"].as_str().unwrap();
    assert_eq!(
        number(
            &store,
            &format!("SELECT refused FROM run_results WHERE run_id = '{id}'")
        )
        .await,
        10
    );
    let page = holdfast(&collector, &["run", "show", id, "--html", "-"]).await;
    let page = stdout(&page);
    assert!(
        page.contains("refused: nothing listens on that UDP port (10)")
            && !page.contains("no answer in time"),
        "{page}"
    );
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_rate_is_searched_and_a_limit_of_the_agents_is_told_apart() {
    let collector = Collector::start(database().await).await;
    let generator = Generator::start_with_rate(&collector, "web-1", 1_000, 50.0);
    agents(&collector, 1).await;
    let target = keeper().await.to_string();
    let search = |target: &str, rate: &str| {
        let arguments = [
            "load",
            "tcp",
            target,
            "-y",
            "--rate",
            rate,
            "--for",
            "200ms",
            "--find-max",
            "connect.p99 < 10s",
        ];
        arguments.map(str::to_owned)
    };
    let run = async |arguments: [String; 10]| {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        holdfast(&collector, &arguments).await
    };
    let output = run(search(&target, "40/s")).await;
    let report = stdout(&output);
    assert_eq!(output.status.code(), Some(3), "{report}{}", stderr(&output));
    assert!(report.contains("the agents were the limit at"), "{report}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap().to_string();
    drop(listener);
    let output = run(search(&closed, "10/s")).await;
    let report = stdout(&output);
    // A machine that is late proves nothing.
    assert!(
        matches!(output.status.code(), Some(1 | 3)),
        "{report}{}",
        stderr(&output)
    );
    assert!(report.contains("holds at no rate that was tried"), "{report}");
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_agent_of_a_mesh_reaches_every_other_and_every_pair_is_told() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let enough = (1_000, 1e6);
    let generators = [
        Generator::start_as(&collector, "web-1", "web", "127.0.0.0/8", enough),
        Generator::start_as(&collector, "db-1", "db", "127.0.0.0/8", enough),
        Generator::start_as(&collector, "db-2", "db", "127.0.0.0/8", enough),
        Generator::start_as(&collector, "safe-1", "safe", "10.0.0.0/8", enough),
    ];
    agents(&collector, 4).await;
    let mesh = async |groups: &str, more: &[&str]| {
        let arguments = [
            &["load", "mesh", "--groups", groups, "-y", "-c", "5", "-s", "10ms"],
            more,
        ]
        .concat();
        holdfast(&collector, &arguments).await
    };

    let output = mesh(
        "web,db",
        &["--expect", "established = 30", "--payload", "100", "--json"],
    )
    .await;
    let row: serde_json::Value = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    assert!(
        matches!(code(&output), Some(0) | None),
        "{row}{}",
        stderr(&output)
    );
    let result: serde_json::Value = serde_json::from_str(row["result"].as_str().unwrap()).unwrap();
    let mut pairs = Vec::new();
    for pair in result["pairs"].as_array().unwrap() {
        assert_eq!(
            (&pair["counts"]["established"], &pair["connect"]["count"]),
            (&5.into(), &5.into()),
            "{pair}"
        );
        pairs.push(format!(
            "{}-{}",
            pair["from"].as_str().unwrap(),
            pair["to"].as_str().unwrap()
        ));
        // Nobody is a target once the run is over.
        let address = pair["address"].as_str().unwrap();
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    pairs.sort();
    assert_eq!(
        pairs,
        [
            "db-1-db-2",
            "db-1-web-1",
            "db-2-db-1",
            "db-2-web-1",
            "web-1-db-1",
            "web-1-db-2"
        ]
    );
    assert_eq!(result["counts"]["bytes_received"], 3_000, "{result}");
    let id = row["run_id"].as_str().unwrap();
    let shown = stdout(&holdfast(&collector, &["run", "show", id]).await);
    assert!(
        shown.contains("pairs:") && shown.contains("mesh each of role=web,db to every other"),
        "{shown}"
    );
    let page = stdout(&holdfast(&collector, &["run", "show", id, "--html", "-"]).await);
    assert!(
        page.contains("Who reached whom") && page.matches("--heat:").count() == 6,
        "{page}"
    );

    // What the store has of each second and pair adds up to each pair, and all of it to the whole, to the last bucket.
    let whole = format!(
        "SELECT sumMap(connect_buckets, connect_counts) AS whole FROM load_samples WHERE run_id = '{id}'"
    );
    let whole = crate::store_engine::ask(&*store, &format!("{whole} FORMAT JSONEachRow")).await;
    let whole: Value = serde_json::from_str(&whole).unwrap();
    let buckets = result["buckets"]["connect"].as_array().unwrap();
    let column = |of: usize| Value::Array(buckets.iter().map(|pair| pair[of].clone()).collect());
    assert_eq!(whole["whole"], serde_json::json!([column(0), column(1)]));
    let shown = stdout(&holdfast(&collector, &["run", "show", id, "--json"]).await);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let over_time = shown["pair_seconds"]["pairs"].as_array().unwrap();
    assert_eq!(over_time.len(), 6, "{shown}");
    for pair in over_time {
        let slots = pair["slots"].as_array().unwrap();
        let established: u64 = slots
            .iter()
            .map(|slot| slot["established"].as_u64().unwrap())
            .sum();
        assert_eq!(established, 5, "{pair}");
    }

    // Whoever does not want to be loaded says so, and how it is allowed.
    let output = mesh("web,safe", &[]).await;
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(
        [
            "safe-1: others would load this node",
            "--load-targets \"10.0.0.0/8 127.0.0.1/32\"",
            "load mesh --port"
        ]
        .iter()
        .all(|part| said.contains(part)),
        "{said}"
    );
    let output = mesh("web,cache", &[]).await;
    assert_eq!(output.status.code(), Some(4));
    assert!(stderr(&output).contains("role=cache"), "{}", stderr(&output));
    let output = mesh("web", &[]).await;
    assert!(stderr(&output).contains("from 2 to"), "{}", stderr(&output));
    for generator in generators {
        generator.stop().await;
    }
    collector.stop().await.unwrap();
}

/// A run that is made meanwhile.
fn begin(collector: &Collector, arguments: &[&str]) -> JoinHandle<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command
        .args(arguments)
        .env("HOLDFAST_COLLECTOR", collector.url())
        .stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap())
}

/// A command whose output finds no room.
async fn to_full_disk(collector: &Collector, arguments: &[&str]) -> Output {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command
        .args(arguments)
        .env("HOLDFAST_COLLECTOR", collector.url())
        .stdin(Stdio::null())
        .stdout(full);
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// Waits until the run that is under way has reported so many established connections. False if it ended before.
async fn are_held(store: &Embedded, wanted: u64, run: &JoinHandle<Output>) -> bool {
    let sql = "SELECT sum(established) FROM load_samples WHERE run_id IN (SELECT run_id FROM runs WHERE state = 'running')";
    while !run.is_finished() {
        if number(store, sql).await >= wanted {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

/// What came of a run; `None` if the machine stood still for so long that its agents or its collector gave it up.
fn undisturbed(output: &Output) -> Option<(Value, Value)> {
    let Some(line) = stdout(output).lines().last().map(str::to_owned) else {
        let said = stderr(output);
        assert!(said.contains("no answer from"), "{said}");
        return None;
    };
    let row: Value = serde_json::from_str(&line).unwrap();
    let result = serde_json::from_str(row["result"].as_str().unwrap()).unwrap();
    let is_disturbed = row["reasons"]
        .to_string()
        .contains("did not hear of the collector");
    (!is_disturbed).then_some((row, result))
}

/// Does it again as long as the machine disturbs it.
async fn until_undisturbed(attempt: impl AsyncFn() -> bool) {
    for _ in 0..10 {
        if attempt().await {
            return;
        }
    }
    panic!("the machine stands still too often");
}

const HELD_MESH: [&str; 13] = [
    "load", "mesh", "--groups", "db", "-y", "-c", "4", "-s", "1ms", "--hold", "5m", "-i", "100ms",
];

/// Three agents that make a mesh of 24 connections and hold them, and what ends it.
async fn mesh_until(
    end: impl AsyncFn(&Collector, &Embedded, &mut VecDeque<Generator>),
    check: impl Fn(&Value, &Value, Option<i32>),
) -> bool {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let start = |node| Generator::start_as(&collector, node, "db", "127.0.0.0/8", (1_000, 1e6));
    let mut generators = VecDeque::from(["db-1", "db-2", "db-3"].map(start));
    agents(&collector, 3).await;
    let run = begin(&collector, &[&HELD_MESH[..], &["--json"]].concat());
    let are_held = are_held(&store, 24, &run).await;
    if are_held {
        end(&collector, &store, &mut generators).await;
    }
    let output = run.await.unwrap();
    let found = undisturbed(&output).filter(|_| are_held);
    if let Some((row, result)) = &found {
        check(row, result, output.status.code());
    }
    for generator in generators {
        generator.stop().await;
    }
    collector.stop().await.unwrap();
    found.is_some()
}

/// Stops the only run; one that has ended by itself is not there any more.
async fn stop_the_run(collector: &Collector, store: &Embedded) {
    let id = crate::store_engine::ask(store, "SELECT run_id FROM runs").await;
    holdfast(collector, &["run", "stop", id.trim()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stop_of_a_mesh_takes_no_target_away_from_anybody() {
    // Each holds what it has to every other: whoever hears it first is a target still.
    until_undisturbed(async || {
        mesh_until(
            async |collector, store, _| stop_the_run(collector, store).await,
            |row, result, _| {
                assert_eq!(row["state"], "stopped", "{row}");
                assert_eq!(result["lost"], Value::Array(vec![]), "{row}");
                assert_ne!(row["verdict"], "violated", "{row}");
            },
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_leaves_a_mesh_is_not_held_against_it() {
    until_undisturbed(async || {
        mesh_until(
            // With it goes what it held for the others.
            async |_, _, generators| generators.pop_front().unwrap().stop().await,
            |row, _, code| {
                assert_eq!(
                    (&row["state"], &row["verdict"], code),
                    (&"failed".into(), &"unknown".into(), Some(3)),
                    "{row}"
                );
                let lost = "the agent of db-1 was lost in the middle";
                assert!(row["reasons"].to_string().contains(lost), "{row}");
            },
        )
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_without_an_agent_where_that_is_asked_for() {
    until_undisturbed(goes_on_without_an_agent).await;
}

async fn goes_on_without_an_agent() -> bool {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let [first, second] = ["web-1", "web-2"].map(|node| Generator::start(&collector, node, 50));
    agents(&collector, 2).await;
    let target = keeper().await.to_string();
    let held = [
        "load", "tcp", &target, "-y", "-c", "8", "-s", "1ms", "--hold", "5m", "-i", "100ms",
    ];
    let more = ["--agents", "2", "--json", "--keep-going"];
    let run = begin(&collector, &[&held[..], &more].concat());
    let are_held = are_held(&store, 8, &run).await;
    second.stop().await;
    // Ten times a second it is said that the run is wanted, which is when somebody is missed.
    let sql = "SELECT count() FROM load_samples WHERE node = 'web-1'";
    let until = number(&store, sql).await + 30;
    while !run.is_finished() && number(&store, sql).await < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let has_gone_on = !run.is_finished();
    stop_the_run(&collector, &store).await;
    let output = run.await.unwrap();
    let found = undisturbed(&output).filter(|_| are_held);
    if let Some((row, result)) = &found {
        assert!(has_gone_on, "the run ended with its agent: {row}");
        // What the other one held it closed itself.
        assert_eq!(
            (&result["counts"]["established"], &result["counts"]["closed"]),
            (&8.into(), &4.into()),
            "{row}"
        );
        let lost = "the agent of web-2 was lost in the middle";
        assert!(row["reasons"].to_string().contains(lost), "{row}");
        assert_eq!(
            (&row["verdict"], output.status.code()),
            (&"unknown".into(), Some(3)),
            "{row}"
        );
    }
    first.stop().await;
    collector.stop().await.unwrap();
    found.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_finds_no_room_is_stored_once_there_is_some() {
    let store = database().await;
    let full = Arc::new(Troubled {
        concerns: |table, token| table == "run_records" && token.ends_with("-2"),
        rows_with_room: AtomicUsize::new(0),
        ..Troubled::around((*store).clone())
    });
    let collector = Collector::start(full.clone()).await;
    let generator = Generator::start(&collector, "web-1", 50);
    agents(&collector, 1).await;
    let target = keeper().await.to_string();
    let asked = ["load", "tcp", &target, "-y", "-c", "3"];
    let report = stdout(&holdfast(&collector, &asked).await);
    assert!(
        report.contains("verdict: holds") || report.contains("lack CPU"),
        "{report}"
    );
    assert!(
        report.contains("the result is not stored yet: ") && report.contains("cannot reserve space"),
        "{report}"
    );
    // Nor is there room for the report: that the result is stored is not said.
    let said = stderr(&to_full_disk(&collector, &asked).await);
    assert!(
        said.contains("is over and cannot be told; its verdict is") && said.contains("not stored yet"),
        "{said}"
    );
    let ended = "SELECT count() FROM runs WHERE state = 'finished' AND NOT arrayExists(why -> why LIKE '%not stored%', reasons)";
    assert_eq!(number(&store, ended).await, 0);
    full.rows_with_room.store(usize::MAX, Ordering::SeqCst);
    let waiting = std::time::Instant::now();
    while number(&store, ended).await < 2 {
        assert!(waiting.elapsed() < Duration::from_secs(60), "it is not stored");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    generator.stop().await;
    collector.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_run_without_a_result_could_not_count_is_not_zero() {
    let store = database().await;
    let sample = |node: &str, lacks_handshakes, elapsed_us| LoadSample {
        node: node.into(),
        to_node: String::new(),
        observed_at_ns: synthetic::now_ns(),
        elapsed_us,
        open: 0,
        most_open: 0,
        cpu_us: 0,
        counts: LoadCounts {
            started: 10,
            syn_retransmits: if lacks_handshakes { 0 } else { 2 },
            ..LoadCounts::default()
        },
        lacks_handshakes,
        connect: None,
        network: None,
        request: None,
    };
    for (run_id, lacks_handshakes, expected) in [("a", false, Some(6)), ("b", true, None)] {
        let samples = [
            sample("web-1", false, 1_000_000),
            sample("web-2", lacks_handshakes, 1_000_000),
            sample("web-2", false, 2_000_000),
        ];
        store_runs::sample(&*store, run_id, 1, &samples).await.unwrap();
        let result = serde_json::to_string(&Summary::default()).unwrap();
        let line = serde_json::json!({ "run_id": run_id, "result": result }).to_string();
        let line = known::complete(&*store, &line, true).await.unwrap();
        let row: Value = serde_json::from_str(&line).unwrap();
        let summary: Summary = serde_json::from_str(row["result"].as_str().unwrap()).unwrap();
        let again = |counts: &BTreeMap<String, u64>| counts.get("syn_retransmits").copied();
        assert_eq!(summary.counts["started"], 30);
        assert_eq!(
            (again(&summary.counts), summary.lacks_handshakes),
            (expected, lacks_handshakes)
        );
        let of_parts: Vec<_> = summary.parts.iter().map(|part| again(&part.counts)).collect();
        assert_eq!(of_parts, [Some(2), expected.map(|_| 4)], "{run_id}");
        assert_eq!(row["seconds"]["slots"].as_array().unwrap().len(), 2, "{row}");
        let sql =
            format!("SELECT countIf(syn_retransmits IS NULL) FROM run_results WHERE run_id = '{run_id}'");
        assert_eq!(number(&store, &sql).await, u64::from(lacks_handshakes));
    }
}

#[tokio::test]
async fn a_mesh_is_kept_by_second_and_pair_and_its_percentiles_are_those_of_all_together() {
    let store = database().await;
    let mut all = Histogram::<u64>::new(3).unwrap();
    let mut samples = Vec::new();
    // Three seconds of two nodes, each with two others: one pair is slow in the second, and one fails in the third.
    for second in 1..=3 {
        for (node, to_node) in [("a", "b"), ("a", "c"), ("b", "a"), ("b", "c")] {
            let mut connect = Histogram::new(3).unwrap();
            let is_slow = (second, node, to_node) == (2, "a", "c");
            let refused = if (second, node, to_node) == (3, "b", "c") {
                20
            } else {
                0
            };
            for attempt in 0..(100 - refused) {
                let us = if is_slow { 50_000 } else { 200 } + attempt;
                connect.record(us * 1_000).unwrap();
            }
            all.add(&connect).unwrap();
            samples.push(LoadSample {
                node: node.into(),
                to_node: to_node.into(),
                observed_at_ns: synthetic::now_ns(),
                // The reports of a node come one after another.
                elapsed_us: second * 1_000_000 + samples.len() as u64,
                open: 7,
                most_open: 7,
                cpu_us: 0,
                counts: LoadCounts {
                    started: 100,
                    established: 100 - refused,
                    refused,
                    ..LoadCounts::default()
                },
                lacks_handshakes: false,
                connect: Some(connect),
                network: None,
                request: None,
            });
        }
    }
    store_runs::sample(&*store, "mesh", 1, &samples).await.unwrap();

    let pairs = store_runs::pair_seconds(&*store, "mesh").await.unwrap();
    assert_eq!((pairs.step_us, pairs.pairs.len()), (1_000_000, 4));
    assert!(pairs.pairs.iter().all(|pair| pair.slots.len() == 3), "{pairs:?}");
    let second = |from, to, slot: usize| pairs.of(from, to)[slot].clone();
    let is_near = |ns: Option<u64>, us: f64| (ns.unwrap() as f64 / us / 1e3 - 1.0).abs() < 0.017;
    assert!(is_near(second("a", "b", 1).connect_p99_ns, 298.0));
    assert!(is_near(second("a", "c", 1).connect_p50_ns, 50_049.0));
    assert_eq!(
        (second("b", "c", 2).established, second("b", "c", 2).failed),
        (80, 20)
    );
    assert_eq!(worst(pairs.of("a", "c")).map(|slot| slot.slot), Some(1));
    assert_eq!(worst(pairs.of("b", "c")).map(|slot| slot.slot), Some(2));

    // Together they are one run, of which each second has what was made in it.
    let seconds = store_runs::seconds(&*store, "mesh").await.unwrap();
    let of_slots: Vec<_> = seconds
        .slots
        .iter()
        .map(|slot| {
            (
                slot.count("started"),
                slot.nodes,
                slot.open,
                slot.per_second(100).round(),
            )
        })
        .collect();
    assert_eq!(of_slots, [(400, 2, 14, 100.0); 3]);
    // It has no result: what there is of it is by pair too, and its percentiles are exactly those of all that was recorded.
    let result = serde_json::to_string(&Summary::default()).unwrap();
    let line = serde_json::json!({ "run_id": "mesh", "result": result }).to_string();
    let line = known::complete(&*store, &line, true).await.unwrap();
    let row: Value = serde_json::from_str(&line).unwrap();
    let summary: Summary = serde_json::from_str(row["result"].as_str().unwrap()).unwrap();
    assert_eq!(summary.buckets["connect"], buckets(&all));
    assert_eq!(summary.connect, Times::of_buckets(&buckets(&all)));
    let of_pairs: Vec<_> = summary
        .pairs
        .iter()
        .map(|pair| {
            (
                pair.from.as_str(),
                pair.to.as_str(),
                pair.failed(),
                pair.connect.count,
            )
        })
        .collect();
    assert_eq!(
        of_pairs,
        [
            ("a", "b", (0, 300), 300),
            ("a", "c", (0, 300), 300),
            ("b", "a", (0, 300), 300),
            ("b", "c", (20, 300), 280)
        ]
    );
    assert_eq!(row["pair_seconds"]["pairs"].as_array().unwrap().len(), 4);
}

/// A moment in SQL.
fn moment(at_ns: i64) -> String {
    format!("fromUnixTimestamp64Nano(toInt64({at_ns}), 'UTC')")
}

/// What the kernels recorded of a run of two nodes, each of which made one connection between the same two addresses and ports, where two came
/// out of a listener of `theirs`.
async fn both_ends(store: &Embedded, (local, remote): (&str, &str), theirs: (&str, u32)) -> Kernel {
    let began_at_ns = synthetic::now_ns() - 60_000_000_000;
    let at = moment(began_at_ns);
    let record = |node: &str, netns: u32, is_active: bool| {
        let ((from, from_port), (to, to_port), role) = match is_active {
            true => ((local, 40_000), (remote, 80), "active"),
            false => ((remote, 80), (local, 40_000), "passive"),
        };
        let pid = if is_active { 7 } else { 9 };
        format!(
            "('{node}', '{role}', 'established', {at}, true, true, {pid}, {netns}, \
             toIPv6('{from}'), {from_port}, toIPv6('{to}'), {to_port}, 'exact', 5)"
        )
    };
    store.execute("TRUNCATE TABLE connection_records").await.unwrap();
    let rows = [
        record("web-1", 1, true),
        record("web-2", 1, true),
        record(theirs.0, theirs.1, false),
        record(theirs.0, theirs.1, false),
    ];
    store
        .execute(&format!(
            "INSERT INTO connection_records (node, role, outcome, recorded_at, is_first, is_final, pid, netns, \
             local_ip, local_port, remote_ip, remote_port, attribution, bytes_sent) VALUES {}",
            rows.join(", ")
        ))
        .await
        .unwrap();
    let run = Connections {
        generators: vec![("web-1".into(), 7), ("web-2".into(), 7)],
        targets: vec![(remote.into(), 80)],
        began_at_ns,
        ended_at_ns: began_at_ns + 1_000_000_000,
        margin_ns: 0,
    };
    let kernel = store_runs::kernel(store, &run).await.unwrap();
    assert_eq!(kernel.established, 2, "{kernel:?}");
    kernel
}

/// How many of them were seen at the other end, where all that is told of those has to agree.
fn seen_there(kernel: &Kernel) -> u64 {
    let seen = kernel.seen_by_target;
    let told = (
        kernel.taken_by_target,
        kernel.served_by_target,
        kernel.expected_at_target,
    );
    assert_eq!(told, (seen, seen, seen), "{kernel:?}");
    let ended: u64 = kernel.ends_at_target.iter().map(|ends| ends.connections).sum();
    assert_eq!(ended, if seen == 0 { 0 } else { 2 }, "{kernel:?}");
    seen
}

#[tokio::test]
async fn the_other_end_of_a_connection_that_never_left_its_namespace_is_not_looked_for_elsewhere() {
    let store = database().await;
    let check = async |pair: (&str, &str), theirs: (&str, u32), expected: u64| {
        let kernel = both_ends(&store, pair, theirs).await;
        assert_eq!(seen_there(&kernel), expected, "{pair:?} {theirs:?}");
    };
    for inside in [
        ("::ffff:127.0.0.1", "::ffff:127.0.0.2"),
        ("::1", "::1"),
        ("::ffff:172.17.0.1", "::ffff:172.17.0.1"),
    ] {
        check(inside, ("web-2", 1), 1).await;
        // Another namespace of that node, and another node, have a loopback of their own.
        check(inside, ("web-2", 2), 0).await;
        check(inside, ("db-1", 1), 0).await;
    }
    // What went over a network is found wherever it came to.
    check(("::ffff:10.0.0.1", "::ffff:10.0.0.2"), ("db-1", 1), 2).await;
}

#[tokio::test]
async fn between_addresses_that_several_nodes_have_the_other_end_is_only_known_on_the_same_node() {
    let store = database().await;
    let began_at_ns = synthetic::now_ns() - 60_000_000_000;
    let (client, server) = ("::ffff:172.17.0.2", "::ffff:172.17.0.1");
    let owners = async |owners: &[(&str, u32, &str)]| {
        store.execute("TRUNCATE TABLE namespace_samples").await.unwrap();
        if owners.is_empty() {
            return;
        }
        let rows: Vec<_> = owners
            .iter()
            .map(|(node, netns, ip)| {
                format!("('{node}', {netns}, {}, [toIPv6('{ip}')])", moment(began_at_ns))
            })
            .collect();
        store
            .execute(&format!(
                "INSERT INTO namespace_samples (node, netns, observed_at, addresses) VALUES {}",
                rows.join(", ")
            ))
            .await
            .unwrap();
    };
    let check = async |theirs: (&str, u32), expected: (u64, u64)| {
        let kernel = both_ends(&store, (client, server), theirs).await;
        assert_eq!((seen_there(&kernel), kernel.ambiguous), expected, "{theirs:?}");
    };
    // A bridge of containers on each of three nodes: the same two addresses in each.
    let bridge = |node| [(node, 1, client), (node, 2, server)];
    owners(&[bridge("web-1"), bridge("web-2"), bridge("db-1")].concat()).await;
    check(("db-1", 2), (0, 2)).await;
    check(("web-2", 2), (1, 2)).await;
    // An agent that may not enter the namespaces of containers knows of the bridge alone.
    owners(&[("web-1", 2, server), ("db-1", 2, server)]).await;
    check(("db-1", 2), (0, 2)).await;
    // Containers alone: where the server is, one may have come from there.
    owners(&[("web-1", 1, client), ("db-1", 1, client), ("db-1", 2, server)]).await;
    check(("db-1", 2), (0, 2)).await;
    // Whoever saw a connection from an address that one node has saw that one, also where several have the server's.
    owners(&[("web-1", 1, client), ("db-1", 2, server), ("db-2", 2, server)]).await;
    check(("db-1", 2), (2, 0)).await;
    // Where nobody said what addresses there are, they are taken as they come.
    owners(&[]).await;
    check(("db-1", 2), (2, 0)).await;
}

#[tokio::test]
async fn what_the_kernels_of_targets_did_not_establish_and_no_process_took_is_told_of_each_target() {
    let store = database().await;
    let began_at_ns = synthetic::now_ns() - 60_000_000_000;
    let at = format!("fromUnixTimestamp64Nano(toInt64({began_at_ns}), 'UTC')");
    // Of three targets 10.0.0.2 has all and takes none, 10.0.0.3 has half and takes them, and 10.0.0.4 has no agent. Each is sent four.
    let mut rows = Vec::new();
    for port in 0..4 {
        for target in 2..=4 {
            rows.push(format!(
                "('web-1', 'active', {at}, 7, toIPv6('::ffff:10.0.0.1'), {}, toIPv6('::ffff:10.0.0.{target}'), 80, 'exact', NULL, 0, 'established', true, true)",
                40_000 + port
            ));
        }
        let there = |target: u8, took: &str, lasted_us: u64| {
            format!(
                "('db-{target}', 'passive', {at}, 9, toIPv6('::ffff:10.0.0.{target}'), 80, toIPv6('::ffff:10.0.0.1'), {}, 'listener', {took}, {lasted_us}, 'established', true, true)",
                40_000 + port
            )
        };
        // The last one was closed too soon to tell.
        rows.push(there(2, "NULL", if port == 3 { 1_000 } else { 200_000 }));
        if port % 2 == 0 {
            rows.push(there(3, "5", 200_000));
        }
    }
    store
        .execute(&format!(
            "INSERT INTO connection_records (node, role, recorded_at, pid, local_ip, local_port, remote_ip, remote_port, attribution, \
             accept_wait_us, duration_us, outcome, is_first, is_final) VALUES {}",
            rows.join(", ")
        ))
        .await
        .unwrap();
    let run = Connections {
        generators: vec![("web-1".into(), 7)],
        targets: (2..=4)
            .map(|target| (format!("::ffff:10.0.0.{target}"), 80))
            .collect(),
        began_at_ns,
        ended_at_ns: began_at_ns + 1_000_000_000,
        margin_ns: 0,
    };
    let ask = async || store_runs::kernel(&*store, &run).await.unwrap();
    let kernel = ask().await;
    assert_eq!(
        (kernel.established, kernel.expected_at_target),
        (12, 8),
        "{kernel:?}"
    );
    assert_eq!(
        (kernel.seen_by_target, kernel.taken_by_target),
        (6, 2),
        "{kernel:?}"
    );
    assert_eq!(
        (kernel.untaken_by_target, kernel.left_out_at_target),
        (3, 0),
        "{kernel:?}"
    );

    assert!(!kernel.is_settled_at_target);

    // Agents say when all of theirs is there, each by its own clock, and one that left some out may have left out these.
    let at = |seconds: i64| moment(began_at_ns + seconds * 1_000_000_000);
    let sample = async |(node, start): (&str, u64),
                        (seconds, attempts): (i64, i64),
                        ahead_ns: i64,
                        missing: u64| {
        store
            .execute(&format!(
                "INSERT INTO agent_samples (node, agent_id, agent_epoch, observed_at, watermark_at, attempts_watermark_at, \
                 clock_offset_ns, missing) VALUES ('{node}', '{node}', {start}, {}, {}, {}, {ahead_ns}, {missing})",
                at(seconds),
                at(seconds),
                at(attempts)
            ))
            .await
            .unwrap();
    };
    let ahead_ns = 1_500_000_000;
    sample(("db-2", 1), (4, 4), 0, 0).await;
    sample(("db-3", 1), (-10, -10), 0, 70).await;
    sample(("db-3", 1), (4, 4), ahead_ns, 70).await;
    assert!(!ask().await.is_settled_at_target);
    // Attempts may come later than what is over.
    sample(("db-3", 1), (14, 4), ahead_ns, 70).await;
    assert!(!ask().await.is_settled_at_target);
    sample(("db-3", 1), (15, 15), ahead_ns, 75).await;
    // One that was started again before the run is not waited for.
    sample(("db-2", 0), (-10, -10), 0, 0).await;
    let kernel = ask().await;
    assert_eq!(
        (kernel.is_settled_at_target, kernel.left_out_at_target),
        (true, 5),
        "{kernel:?}"
    );

    // What is missing says something where nobody else is known to have the address, and the clock is near enough to look by.
    let addresses = async |owners: &[(&str, u8)]| {
        store.execute("TRUNCATE TABLE namespace_samples").await.unwrap();
        let rows: Vec<_> = owners
            .iter()
            .map(|(node, target)| format!("('{node}', 1, {}, [toIPv6('::ffff:10.0.0.{target}')])", at(0)))
            .collect();
        let rows = rows.join(", ");
        let insert = "INSERT INTO namespace_samples (node, netns, observed_at, addresses) VALUES";
        store.execute(&format!("{insert} {rows}")).await.unwrap();
    };
    assert_eq!(ask().await.untold_at_target, 2);
    let own = [("web-1", 1), ("db-2", 2), ("db-3", 3)];
    addresses(&own).await;
    assert_eq!(ask().await.untold_at_target, 0);
    // Nor does it of what was answered, wherever it was.
    store
        .execute(&format!(
            "INSERT INTO connection_records (node, role, recorded_at, pid, local_ip, local_port, remote_ip, remote_port, outcome, \
             is_final, bytes_received) VALUES ('web-1', 'active', {}, 7, toIPv6('::ffff:10.0.0.1'), 40001, \
             toIPv6('::ffff:10.0.0.3'), 80, 'established', true, 10)",
            at(0)
        ))
        .await
        .unwrap();
    assert_eq!(ask().await.untold_at_target, 1);
    addresses(&[&own[..], &[("lb-1", 3)]].concat()).await;
    assert_eq!(ask().await.untold_at_target, 2);
    addresses(&own).await;
    sample(("db-3", 1), (16, 16), 5_000_000_000, 75).await;
    assert_eq!(ask().await.untold_at_target, 2);
}
