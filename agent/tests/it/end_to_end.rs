//! From the kernel to the query, with nothing replaced: the real agent, the real collector, the real ClickHouse, and
//! a program that is not ours.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::host::Host;

const PATIENCE: Duration = Duration::from_secs(60);

/// A program of ours, ended when the test is.
struct Program {
    child: Child,
    name: &'static str,
}

impl Program {
    fn start(name: &'static str, arguments: &[&str]) -> Self {
        let child = Command::new(binary(name))
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child, name }
    }

    /// Ends it without a word: SIGKILL.
    fn kill(self) {
        drop(self);
    }

    /// Asks it to stop, and waits until it has.
    fn stop(mut self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).expect("our own child");
        let status = self.child.wait().expect("our own child");
        assert!(status.success(), "{}: {status}", self.name);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program of this workspace: beside the agent, where one build puts them all.
fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_holdfast-agent")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is missing: build the whole workspace first",
        path.display()
    );
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A collector with the embedded store.
struct Collector {
    program: Program,
    url: String,
    _folder: Option<tempfile::TempDir>,
}

impl Collector {
    /// With a store of its own.
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let collector = Self::start_on(folder.path(), free_port(), free_port());
        Self {
            _folder: Some(folder),
            ..collector
        }
    }

    /// With the store in a folder that the test keeps.
    fn start_on(folder: &Path, port: u16, web: u16) -> Self {
        let store = format!("embedded:{}", folder.display());
        let (listen, web) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{web}"));
        let program = Program::start(
            "holdfast",
            &["serve", "--listen", &listen, "--web", &web, "--store", &store],
        );
        let healthy = || {
            let mut stream = TcpStream::connect(&web).ok()?;
            stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.starts_with("HTTP/1.0 200").then_some(())
        };
        wait_for("a healthy collector", healthy);
        Self {
            program,
            url: format!("http://{listen}"),
            _folder: None,
        }
    }

    /// The rows of a query, by column name.
    fn sql(&self, sql: &str) -> Vec<Value> {
        let output = Command::new(binary("holdfast"))
            .args(["sql", sql, "--format", "JSONEachRow", "--collector", &self.url])
            .output()
            .expect("holdfast sql");
        assert!(
            output.status.success(),
            "{sql}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let text = String::from_utf8(output.stdout).expect("JSON");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    fn number(&self, sql: &str) -> u64 {
        let rows = self.sql(sql);
        let value = rows[0]
            .as_object()
            .expect("a row")
            .values()
            .next()
            .expect("a column");
        number(value)
    }
}

/// ClickHouse writes 64-bit integers as JSON strings.
fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| {
        value
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("a number")
    })
}

fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(
            Instant::now() < deadline,
            "no {what} within {} s",
            PATIENCE.as_secs()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// An agent that watches a host, with a folder for what it keeps.
fn start_agent(url: &str, host: &Host, name: &str, state: &Path) -> Program {
    let (netns, state) = (host.netns_path(), state.display().to_string());
    Program::start(
        "holdfast-agent",
        &[
            "run",
            "--collector",
            url,
            "--name",
            name,
            "--netns",
            &netns,
            "--state",
            &state,
        ],
    )
}

/// Waits until a node has said hello, which it does after its programs are attached.
fn wait_for_node(collector: &Collector, name: &str) {
    wait_for("node in the store", || {
        let sql = format!("SELECT count() AS n FROM nodes WHERE node = '{name}'");
        (collector.number(&sql) == 1).then_some(())
    });
}

/// Opens and closes connections inside a host.
fn connections(host: &Host, count: usize) {
    let (listener, to) = host.listen("127.0.0.1");
    for _ in 0..count {
        let client = host.dial(to).expect("a connection");
        drop(listener.accept().expect("a connection"));
        drop(client);
    }
}

/// One of the namespace's own counters, the witness outside Holdfast.
fn snmp(host: &Host, name: &'static str) -> u64 {
    host.run(move || {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("/proc");
        let mut tcp = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, values) = (tcp.next().expect("names"), tcp.next().expect("values"));
        let place = names.split(' ').position(|word| word == name).expect("a counter");
        values
            .split(' ')
            .nth(place)
            .expect("a value")
            .parse()
            .expect("a number")
    })
}

#[test]
fn ten_thousand_connections_of_a_foreign_program_are_twenty_thousand_rows() {
    let collector = Collector::start();
    let host = Host::new();
    let state = tempfile::tempdir().expect("a folder");
    let agent = start_agent(&collector.url, &host, "end-to-end", state.path());
    wait_for_node(&collector, "end-to-end");

    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/prefork.py");
    let output = host.run(move || {
        Command::new("python3")
            .args([program, "10000", "3", "6"])
            .output()
            .expect("python3")
    });
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let oracle: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    agent.stop();

    // Exactly one row for each end in either view, and nothing else.
    assert_eq!(
        (snmp(&host, "ActiveOpens"), snmp(&host, "PassiveOpens")),
        (10_000, 10_000)
    );
    assert_eq!(collector.number("SELECT count() AS n FROM connections"), 20_000);
    assert_eq!(collector.number("SELECT count() AS n FROM attempts"), 20_000);
    let distinct = "SELECT uniqExact(netns, cookie, opened_at) AS n FROM connections";
    assert_eq!(collector.number(distinct), 20_000);

    // All went well, and the rows say so; 4 bytes each way.
    let right = "SELECT count() AS n FROM connections WHERE outcome = 'established' AND close_reason = 'finished' \
        AND bytes_sent = 4 AND bytes_received = 4 AND retransmits = 0 AND errno = 0";
    assert_eq!(collector.number(right), 20_000);
    for (pattern, name) in [("::ffff:127.0.0.1", "IPv4"), ("::1", "IPv6")] {
        let sql = format!(
            "SELECT count() AS n FROM connections WHERE local_ip = '{pattern}' AND remote_ip = '{pattern}'"
        );
        assert_eq!(collector.number(&sql), 10_000, "{name}");
    }

    // The right process for every one of them, by the processes' own count.
    for (role, own_count) in [("active", &oracle["connected"]), ("passive", &oracle["accepted"])] {
        let rows = collector.sql(&format!(
            "SELECT pid, comm, attribution, count() AS n FROM connections WHERE role = '{role}' \
             GROUP BY pid, comm, attribution"
        ));
        let seen: BTreeMap<u64, u64> = rows
            .iter()
            .map(|row| (number(&row["pid"]), number(&row["n"])))
            .collect();
        let expected: BTreeMap<u64, u64> = own_count
            .as_object()
            .expect("counts by pid")
            .iter()
            .map(|(pid, count)| (pid.parse().expect("a pid"), count.as_u64().expect("a count")))
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(seen, expected, "{role}");
        for row in &rows {
            assert_eq!(
                (row["comm"].as_str(), row["attribution"].as_str()),
                (Some("python3"), Some("exact"))
            );
        }
    }

    // And the counters agree, from the hook to the acknowledgement. The last ones are not acknowledged: they are in
    // the store a moment after the agent has left.
    let sql = format!(
        "SELECT * FROM ledger WHERE stream = 'connections' AND netns = {}",
        host.netns
    );
    let ledger = &wait_for("the last counters", || {
        collector
            .sql(&sql)
            .pop()
            .filter(|row| number(&row["acknowledged"]) == 20_000)
    });
    for (counter, expected) in [
        ("opened", 20_000),
        ("closed", 20_000),
        ("open", 0),
        ("received", 20_000),
        ("acknowledged", 20_000),
        ("lost", 0),
        ("dropped", 0),
        ("refused", 0),
        ("untracked", 0),
        ("unseen", 0),
        ("superseded", 0),
        ("rows_stored", 20_000),
        ("kernel_difference", 0),
        ("ring_difference", 0),
        ("agent_difference", 0),
        ("store_difference", 0),
    ] {
        assert_eq!(number(&ledger[counter]), expected, "{counter} in {ledger}");
    }
    let ledger = Command::new(binary("holdfast"))
        .args(["ledger", "--collector", &collector.url])
        .output()
        .expect("holdfast ledger");
    assert!(
        ledger.status.success(),
        "{}",
        String::from_utf8_lossy(&ledger.stdout)
    );
    collector.program.stop();
}

#[test]
fn rows_outlive_a_killed_agent_and_a_killed_collector() {
    let host = Host::new();
    let (data, state) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let (port, web) = (free_port(), free_port());
    let url = format!("http://127.0.0.1:{port}");

    // Nobody is there to deliver to, and the agent dies without a word.
    let agent = start_agent(&url, &host, "survivor", state.path());
    wait_for("the agent's programs", || {
        connections(&host, 1);
        (files(state.path(), "segment") > 0).then_some(())
    });
    connections(&host, 50);
    // Twice the age at which a batch is sealed; the spool writes it at once.
    thread::sleep(Duration::from_millis(500));
    let seen = snmp(&host, "ActiveOpens") + snmp(&host, "PassiveOpens");
    agent.kill();

    // The next start delivers what the last one saw, under its name, and goes on under its own.
    let collector = Collector::start_on(data.path(), port, web);
    let agent = start_agent(&url, &host, "survivor", state.path());
    wait_for_node(&collector, "survivor");
    wait_for("what the killed agent saw", || {
        // The first connections may have come before the programs.
        let stored = collector.number("SELECT count() AS n FROM connections");
        (stored >= 100 && stored <= seen).then_some(())
    });
    let before = collector.number("SELECT count() AS n FROM connections");

    // The collector dies too, with rows on the way, and comes back on the same data.
    connections(&host, 50);
    collector.program.kill();
    connections(&host, 50);
    let collector = Collector::start_on(data.path(), port, web);
    let expected = before + 200;
    wait_for("what was on the way", || {
        (collector.number("SELECT count() AS n FROM connections") >= expected).then_some(())
    });
    agent.stop();
    assert_eq!(collector.number("SELECT count() AS n FROM connections"), expected);
    let distinct = "SELECT uniqExact(netns, cookie, opened_at, role) AS n FROM connections";
    assert_eq!(collector.number(distinct), expected);
    assert_eq!(
        collector.number("SELECT uniqExact(agent_epoch) AS n FROM connections"),
        2
    );
    collector.program.stop();
}

/// Files with an extension in a folder; none if it is not there.
fn files(folder: &Path, extension: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let has_it = |path: PathBuf| path.extension().is_some_and(|found| found == extension);
    entries.flatten().filter(|entry| has_it(entry.path())).count()
}

#[test]
fn an_agent_that_is_there_before_its_collector_delivers_everything_once_it_comes() {
    let host = Host::new();
    let (data, state) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let (port, web) = (free_port(), free_port());
    let url = format!("http://127.0.0.1:{port}");
    let agent = start_agent(&url, &host, "early", state.path());
    wait_for("the agent's programs", || {
        connections(&host, 1);
        (files(state.path(), "segment") > 0).then_some(())
    });
    let before = snmp(&host, "ActiveOpens");
    connections(&host, 50);

    let collector = Collector::start_on(data.path(), port, web);
    wait_for("rows of the time before the collector", || {
        let sql = "SELECT count() AS n FROM connections WHERE role = 'active'";
        (collector.number(sql) >= 50).then_some(())
    });
    agent.stop();
    let all = collector.number("SELECT count() AS n FROM connections WHERE role = 'active'");
    assert!((50..=before + 50).contains(&all), "{all} rows");
    collector.program.stop();
}
