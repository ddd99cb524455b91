//! What a collector says of real agents when they, or it, are in trouble: what it holds is true, what it calls violated fails, and
//! whatever is not known is unknown, for one named reason.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    end_to_end::{
        Collector, Program, binary, connections, free_port, number, start_agent_that, wait_for, wait_for_node,
    },
    host::Host,
};

/// `for` of the assertion below.
const FOR_MS: u64 = 4_000;

const DECLARED: &str = "
assertions:
  - name: reached
    from: all
    expect: connect.refused_ratio < 1%
    over: 2s
    by: from.node
    for: 4s
    deadline: 6s
    min_samples: 1
";

/// Each of the others is about the same nodes, so a node that is silent is one cause for all of them.
const MORE: &str = "
  - { name: quick, from: all, expect: connect.p50 < 10s, over: 2s, by: from.node, deadline: 6s, min_samples: 1 }
";

/// Two that are judged by each attempt alone: one that is violated once it failed for long enough, and one that is at once.
const OF_EACH: &str = "
assertions:
  - { name: reached, from: all, expect: connect.refused = 0, over: 2s, by: from.node, for: 4s, deadline: 6s, min_samples: 1 }
  - { name: at once, from: all, expect: connect.refused = 0, over: 2s, by: from.node, deadline: 6s, min_samples: 1 }
";

/// `over` of them.
const OVER_MS: u64 = 2_000;

/// How long the store is away, and whether it is killed meanwhile; half of the time, attempts fail. It hangs at first: two thirds of a
/// minute are longer than the collector waits for it to take anything.
const AWAY: [(Duration, bool); 2] = [(Duration::from_secs(60), true), (Duration::from_secs(12), false)];

fn now_ms() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    time.as_millis() as u64
}

/// Connections within a host, one every 20 ms, until it is dropped.
struct Traffic {
    /// Of each attempt that failed, before and after connect(), milliseconds.
    failures: Arc<Mutex<Vec<(u64, u64)>>>,
    stop: Arc<AtomicBool>,
    /// Also to a port that nobody listens on.
    fails: Arc<AtomicBool>,
    is_idle: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Traffic {
    fn within(host: &Arc<Host>) -> Self {
        let flag = || Arc::new(AtomicBool::new(false));
        let (stop, fails, is_idle) = (flag(), flag(), flag());
        let (listener, open) = host.listen("127.0.0.1");
        let closed =
            host.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|bound| bound.local_addr()));
        let closed = closed.expect("a port that was free");
        let failures = Arc::<Mutex<Vec<(u64, u64)>>>::default();
        let failed = failures.clone();
        let (host, flags) = (host.clone(), (stop.clone(), fails.clone(), is_idle.clone()));
        let thread = thread::spawn(move || {
            let (stop, fails, is_idle) = flags;
            while !stop.load(Ordering::Relaxed) {
                if !is_idle.load(Ordering::Relaxed) {
                    let client = host.dial(open).expect("a connection");
                    drop((listener.accept().expect("a connection"), client));
                    if fails.load(Ordering::Relaxed) {
                        let before = now_ms();
                        host.dial(closed).expect_err("nobody listens there");
                        failed.lock().expect("nobody panicked").push((before, now_ms()));
                    }
                }
                thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            failures,
            stop,
            fails,
            is_idle,
            thread: Some(thread),
        }
    }

    /// Whether an attempt failed in the window of [`OVER_MS`] that ended then: `None` if it did just at its begin or end.
    fn failed_until(&self, to_ms: u64) -> Option<bool> {
        let from_ms = to_ms - OVER_MS;
        let failures = self.failures.lock().expect("nobody panicked");
        // The clock of these times is read to the millisecond.
        let is_within = |(before, after): &(u64, u64)| *before > from_ms && after + 1 < to_ms;
        let may_be_within = |(before, after): &(u64, u64)| *after + 1 > from_ms && *before <= to_ms;
        if failures.iter().any(is_within) {
            return Some(true);
        }
        (!failures.iter().any(may_be_within)).then_some(false)
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    fn rest(&self, is_idle: bool) {
        self.is_idle.store(is_idle, Ordering::Relaxed);
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// ClickHouse as a process of its own, which can be killed, paused, and started again.
struct Engine {
    program: Option<Program>,
    folder: tempfile::TempDir,
    address: String,
}

impl Engine {
    fn start() -> Self {
        let mut engine = Self {
            program: None,
            folder: tempfile::tempdir().expect("a folder"),
            address: format!("127.0.0.1:{}", free_port()),
        };
        engine.start_again();
        engine
    }

    fn start_again(&mut self) {
        let folder = self.folder.path().display().to_string();
        self.program = Some(Program::start(
            "examples/clickhouse_http",
            &[&folder, &self.address],
        ));
    }

    fn kill(&mut self) {
        self.program.take().expect("it runs").kill();
    }

    fn signal(&self, signal: Signal) {
        let program = self.program.as_ref().expect("it runs");
        kill(Pid::from_raw(program.id() as i32), signal).expect("our own child");
    }

    /// The store, as `holdfast serve` takes it; whom the engine lets in is in its source.
    fn store(&self) -> String {
        format!("http://tester:s3cret%2F%40@{}/holdfast", self.address)
    }
}

/// A collector that judges, which can be killed and started again.
struct Judge {
    collector: Option<Collector>,
    /// `None`: the collector has it inside.
    engine: Option<Engine>,
    data: tempfile::TempDir,
    declared: tempfile::TempDir,
    ports: (u16, u16),
}

impl Judge {
    fn start() -> Self {
        Self::start_with(DECLARED, None)
    }

    fn start_with(declared: &str, engine: Option<Engine>) -> Self {
        let folder = || tempfile::tempdir().expect("a folder");
        let mut judge = Self {
            collector: None,
            engine,
            data: folder(),
            declared: folder(),
            ports: (free_port(), free_port()),
        };
        judge.declare(declared);
        judge.start_again();
        judge
    }

    fn declare(&self, text: &str) {
        // Whole or not at all: the folder is read while it is written to.
        let (new, file) = (
            self.declared.path().join("new"),
            self.declared.path().join("a.yaml"),
        );
        fs::write(&new, text).expect("a file");
        fs::rename(&new, &file).expect("a file");
    }

    fn start_again(&mut self) {
        let declared = self.declared.path().display().to_string();
        let (port, web) = self.ports;
        let store = match &self.engine {
            Some(engine) => engine.store(),
            None => format!("embedded:{}", self.data.path().display()),
        };
        let collector = Collector::start_at(&store, port, web, &["--assertions", &declared]);
        self.collector = Some(collector);
    }

    fn kill(&mut self) {
        self.collector.take().expect("it runs").kill();
    }

    fn asked(&self) -> &Collector {
        self.collector.as_ref().expect("it runs")
    }

    /// Of what was said last of a node: the verdict, its cause, and when the window ended, milliseconds.
    fn said(&self, assertion: &str, node: &str) -> Option<(String, String, u64)> {
        let sql = format!(
            "SELECT verdict, cause, toUnixTimestamp64Milli(window_to) AS at FROM verdict_records WHERE assertion = '{assertion}' \
             AND position(key, '{node}') > 0 ORDER BY window_to DESC, revision DESC LIMIT 1"
        );
        let row = self.asked().sql(&sql).into_iter().next()?;
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        Some((text("verdict"), text("cause"), number(&row["at"])))
    }

    /// Waits until that is said of a node, and gives the end of the window and the cause.
    fn wait_for(&self, node: &str, verdict: &str) -> (u64, String) {
        wait_for(&format!("{verdict} of {node}"), || {
            let (said, cause, at) = self.said("reached", node)?;
            (said == verdict).then_some((at, cause))
        })
    }

    /// Waits until a node is unknown for that, and gives the cause.
    fn wait_for_cause(&self, node: &str, part: &str) -> String {
        wait_for(&format!("{node} unknown because of {part}"), || {
            let (said, cause, _) = self.said("reached", node)?;
            (said == "unknown" && cause.contains(part)).then_some(cause)
        })
    }

    /// All that was said of windows that ended since then and was written down, also what was said otherwise later.
    fn all_said(&self, since_ms: u64) -> Vec<Said> {
        self.said_of(since_ms, "")
    }

    /// The same, of each window what was said in the end.
    fn last_said(&self, since_ms: u64) -> Vec<Said> {
        self.said_of(since_ms, "LIMIT 1 BY assertion, key, window_to")
    }

    fn said_of(&self, since_ms: u64, limit: &str) -> Vec<Said> {
        let sql = format!(
            "SELECT assertion, key, verdict, cause, toUnixTimestamp64Milli(window_to) AS at, flaps FROM verdict_records \
             WHERE toUnixTimestamp64Milli(window_to) > {since_ms} ORDER BY window_to, revision DESC {limit}"
        );
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let said = |row: serde_json::Value| Said {
            assertion: text(&row["assertion"]),
            node: text(&row["key"]).replace("from.node=", ""),
            verdict: text(&row["verdict"]),
            cause: text(&row["cause"]),
            at_ms: number(&row["at"]),
            flaps: number(&row["flaps"]),
        };
        self.asked().sql(&sql).into_iter().map(said).collect()
    }

    fn count(&self, which: &str) -> u64 {
        let sql = format!("SELECT count() AS n FROM verdict_records WHERE {which}");
        self.asked().number(&sql)
    }

    /// When a node was first said to be that, of windows that ended later.
    fn first(&self, node: &str, verdict: &str, since_ms: u64) -> u64 {
        let sql = format!(
            "SELECT min(toUnixTimestamp64Milli(window_to)) AS n FROM verdict_records WHERE assertion = 'reached' AND revision = 0 \
             AND position(key, '{node}') > 0 AND verdict = '{verdict}' AND toUnixTimestamp64Milli(window_to) > {since_ms}"
        );
        self.asked().number(&sql)
    }
}

/// What was said of a window.
#[derive(Clone, Debug)]
struct Said {
    assertion: String,
    node: String,
    verdict: String,
    cause: String,
    at_ms: u64,
    flaps: u64,
}

struct Node {
    name: &'static str,
    host: Arc<Host>,
    traffic: Traffic,
    agent: Option<Program>,
    state: tempfile::TempDir,
    clock: PathBuf,
}

impl Node {
    fn start(judge: &Judge, name: &'static str) -> Self {
        let host = Arc::new(Host::new());
        let traffic = Traffic::within(&host);
        let state = tempfile::tempdir().expect("a folder");
        let clock = state.path().join("clock");
        let mut node = Self {
            name,
            host,
            traffic,
            agent: None,
            state,
            clock,
        };
        node.start_agent(judge, "8MiB");
        wait_for_node(judge.asked(), name);
        node
    }

    fn start_agent(&mut self, judge: &Judge, ring: &str) {
        let url = &judge.asked().url;
        let state = self.state.path().join("state");
        let clock = self.clock.display().to_string();
        self.agent = Some(start_agent_that(
            url,
            &self.host,
            self.name,
            &state,
            &["--ring", ring, "--syscalls", "off"],
            &[("HOLDFAST_CLOCK_FILE", &clock)],
        ));
    }

    fn signal(&self, signal: Signal) {
        let agent = self.agent.as_ref().expect("it runs");
        kill(Pid::from_raw(agent.id() as i32), signal).expect("our own child");
    }
}

#[test]
fn no_trouble_of_agents_or_collector_makes_a_verdict_false() {
    let mut judge = Judge::start();
    let (alpha, mut beta) = (Node::start(&judge, "alpha"), Node::start(&judge, "beta"));
    judge.wait_for("alpha", "holds");
    let (began, _) = judge.wait_for("beta", "holds");

    // A collector that is killed while it is pending: `for` goes on where it was.
    alpha.traffic.fail(true);
    judge.wait_for("alpha", "pending");
    judge.kill();
    thread::sleep(Duration::from_secs(1));
    judge.start_again();
    judge.wait_for("alpha", "violated");
    let (pending, violated) = (
        judge.first("alpha", "pending", began),
        judge.first("alpha", "violated", began),
    );
    check_wait(violated - pending);

    // And while it is violated: nothing is told twice, and it is over once, when it is.
    let changes = "is_transition AND assertion = 'reached' AND position(key, 'alpha') > 0";
    let before = judge.count(changes);
    judge.kill();
    judge.start_again();
    // Some windows later.
    thread::sleep(Duration::from_secs(3));
    alpha.traffic.fail(false);
    let (held, _) = judge.wait_for("alpha", "holds");
    assert_eq!(judge.count(changes), before + 1);

    // A reload while it is pending: what means the same goes on.
    alpha.traffic.fail(true);
    judge.wait_for("alpha", "pending");
    judge.declare(&format!("{DECLARED}{MORE}"));
    judge.wait_for("alpha", "violated");
    let (pending, violated) = (
        judge.first("alpha", "pending", held),
        judge.first("alpha", "violated", held),
    );
    check_wait(violated - pending);
    alpha.traffic.fail(false);
    judge.wait_for("alpha", "holds");

    // A node that is silent: one cause for all that depends on it, and nothing else depends on it. What it delivers late is judged
    // again.
    beta.signal(Signal::SIGSTOP);
    let cause = judge.wait_for_cause("beta", "beta");
    assert_eq!(cause, "beta is silent");
    wait_for("the same of the other assertion", || {
        let (said, other, _) = judge.said("quick", "beta")?;
        (said == "unknown" && other == cause).then_some(())
    });
    beta.signal(Signal::SIGCONT);
    judge.wait_for("beta", "holds");
    wait_for("windows that were judged again", || {
        (judge.count("position(key, 'beta') > 0 AND revision > 0 AND verdict = 'holds'") > 0).then_some(())
    });

    // No rows, and so nothing to divide by.
    beta.traffic.rest(true);
    judge.wait_for_cause("beta", "no data in the window");
    beta.traffic.rest(false);
    judge.wait_for("beta", "holds");

    // A clock that is set.
    fs::write(&beta.clock, "-3600000000000").expect("a file");
    judge.wait_for_cause("beta", "clock");
    fs::remove_file(&beta.clock).expect("a file");
    judge.wait_for("beta", "holds");

    // Another start, with a ring that is too small for a moment.
    beta.agent.take().expect("it runs").stop();
    beta.start_agent(&judge, "4KiB");
    // Or silent, where a busy machine takes longer for that than rows are waited for.
    let cause = judge.wait_for_cause("beta", "beta");
    let known = [
        "beta was not watched all the time: its agent started",
        "beta is silent",
    ];
    assert!(known.contains(&cause.as_str()), "{cause}");
    judge.wait_for("beta", "holds");
    beta.signal(Signal::SIGSTOP);
    connections(&beta.host, 100);
    beta.signal(Signal::SIGCONT);
    judge.wait_for_cause("beta", "missing");
    judge.wait_for("beta", "holds");

    // One that is gone for good: there is one word for it, and nothing else is made the reason meanwhile.
    beta.agent.take().expect("it runs").kill();
    let killed_ms = now_ms();
    let cause = judge.wait_for_cause("beta", "beta");
    assert_eq!(cause, "beta is silent");
    wait_for("the same of the other assertion", || {
        let (said, other, _) = judge.said("quick", "beta")?;
        (said == "unknown" && other == cause).then_some(())
    });
    let since = judge.all_said(killed_ms);
    let of_beta = since.iter().filter(|said| said.node == "beta");
    for said in of_beta {
        let expected = ("unknown", "beta is silent");
        assert_eq!((said.verdict.as_str(), said.cause.as_str()), expected, "{said:?}");
    }

    // Nothing ever failed on beta, whatever became of its evidence, and nothing was unknown of alpha for that.
    for verdict in ["violated", "pending"] {
        let which = format!("position(key, 'beta') > 0 AND verdict = '{verdict}'");
        assert_eq!(judge.count(&which), 0, "{verdict}");
    }
    let which = "position(key, 'alpha') > 0 AND verdict = 'unknown' AND position(cause, 'beta') > 0";
    assert_eq!(judge.count(which), 0);
    // Of all that happened to it, nothing else was made a reason.
    let causes =
        "SELECT DISTINCT cause FROM verdict_records WHERE verdict = 'unknown' AND position(key, 'beta') > 0";
    for row in judge.asked().sql(causes) {
        let cause = row["cause"].as_str().unwrap_or_default();
        let known = [
            "beta has not delivered everything",
            "beta is silent",
            "no data in the window",
            "the clock of beta is behind the collector's",
            "beta was not watched all the time: its agent started",
            "rows of beta are missing",
        ];
        assert!(known.iter().any(|known| cause.contains(known)), "{cause}");
    }
    // What the collector shows is what it stored.
    let output = Command::new(binary("holdfast"))
        .args(["verdicts", "--json", "--collector", &judge.asked().url])
        .output()
        .expect("holdfast verdicts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("\"unknown\"") && text.contains("\"holds\""),
        "{text}"
    );
}

/// `for` is by the time of the windows, whoever judged them: had it begun anew, it would have taken two seconds more.
fn check_wait(waited_ms: u64) {
    assert!((FOR_MS..FOR_MS + 1_000).contains(&waited_ms), "{waited_ms} ms");
}

/// Values that flap, and a store that is away for a minute, hanging and then killed, and for a moment. What is said in the end of every window is what
/// the kernel was asked for in it.
#[test]
fn a_store_that_is_away_and_values_that_flap_make_no_verdict_false() {
    let mut judge = Judge::start_with(OF_EACH, Some(Engine::start()));
    let nodes = [Node::start(&judge, "alpha"), Node::start(&judge, "beta")];
    let alpha = &nodes[0].traffic;
    for node in &nodes {
        judge.wait_for(node.name, "holds");
    }
    let began_ms = now_ms();
    let holds_since = |judge: &Judge, since_ms: u64| {
        for assertion in ["reached", "at once"] {
            wait_for("that it holds again", || {
                let (said, _, at) = judge.said(assertion, "alpha")?;
                (said == "holds" && at > since_ms).then_some(())
            });
        }
    };

    // Never for as long as it has to.
    const FLAPS: u64 = 4;
    let flap = || {
        alpha.fail(true);
        thread::sleep(Duration::from_millis(500));
        alpha.fail(false);
        thread::sleep(Duration::from_millis(3_500));
    };
    for _ in 1..FLAPS {
        flap();
    }
    holds_since(&judge, now_ms() - 3_500);

    // For longer than that, and all of it while the store is away.
    for (away, is_killed) in AWAY {
        let engine = judge.engine.as_mut().expect("it is apart");
        engine.signal(Signal::SIGSTOP);
        thread::sleep(away / 6);
        alpha.fail(true);
        thread::sleep(away / 2);
        alpha.fail(false);
        let failed_ms = now_ms();
        if is_killed {
            engine.kill();
        }
        thread::sleep(away / 3);
        if is_killed {
            engine.start_again();
        } else {
            engine.signal(Signal::SIGCONT);
        }
        holds_since(&judge, failed_ms);
    }
    // It is judged on, as before.
    flap();
    holds_since(&judge, now_ms() - 3_500);

    // Everything is delivered in the end, so nothing is unknown in the end. Where nothing is waited for, each burst is a violation;
    // else those that lasted are.
    let expected = [
        ("at once", "alpha", FLAPS + AWAY.len() as u64),
        ("reached", "alpha", AWAY.len() as u64),
        ("at once", "beta", 0),
        ("reached", "beta", 0),
    ];
    wait_for("every violation, once", || {
        let said = judge.last_said(began_ms);
        let is_known = said.iter().all(|said| said.verdict != "unknown");
        let is_so = expected
            .iter()
            .all(|(assertion, node, times)| violations(&said, assertion, node) == (*times, *times));
        (is_known && is_so).then_some(())
    });
    // Whenever it was said, it was so; and meanwhile there was one reason why nothing was known.
    for one in judge.all_said(began_ms) {
        if one.verdict == "unknown" {
            assert_eq!(one.cause, format!("{} has not delivered everything", one.node));
            continue;
        }
        let node = nodes.iter().find(|node| node.name == one.node).expect("a node");
        let is_failure = ["pending", "violated"].contains(&one.verdict.as_str());
        if let Some(failed) = node.traffic.failed_until(one.at_ms) {
            assert_eq!(is_failure, failed, "{one:?}");
        }
    }
}

/// How often a node came to violate an assertion, by the changes that were written, and by what the state counts.
fn violations(said: &[Said], assertion: &str, node: &str) -> (u64, u64) {
    let of_it = said
        .iter()
        .filter(|said| said.assertion == assertion && said.node == node);
    let mut verdicts: Vec<_> = of_it.clone().map(|said| said.verdict.as_str()).collect();
    verdicts.dedup();
    let violated = verdicts.iter().filter(|verdict| **verdict == "violated");
    (
        violated.count() as u64,
        of_it.map(|said| said.flaps).max().unwrap_or(0),
    )
}
