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

/// A collector with a store of its own.
struct Collector {
    program: Program,
    url: String,
    _folder: tempfile::TempDir,
}

impl Collector {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (port, web) = (free_port(), free_port());
        let store = format!("embedded:{}", folder.path().display());
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
            _folder: folder,
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

fn start_agent(collector: &Collector, host: &Host, name: &str) -> Program {
    let netns = host.netns_path();
    let agent = Program::start(
        "holdfast-agent",
        &[
            "run",
            "--collector",
            &collector.url,
            "--name",
            name,
            "--netns",
            &netns,
        ],
    );
    // It says hello after its programs are attached.
    wait_for("node in the store", || {
        let sql = format!("SELECT count() AS n FROM nodes WHERE node = '{name}'");
        (collector.number(&sql) == 1).then_some(())
    });
    agent
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
    let agent = start_agent(&collector, &host, "end-to-end");

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

    // And the counters agree, from the hook to the acknowledgement.
    let ledger = &collector.sql("SELECT * FROM ledger WHERE stream = 'connections'")[0];
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
    ] {
        assert_eq!(number(&ledger[counter]), expected, "{counter} in {ledger}");
    }
    collector.program.stop();
}

#[test]
fn an_agent_that_is_there_before_its_collector_delivers_everything_once_it_comes() {
    let host = Host::new();
    let folder = tempfile::tempdir().expect("a folder");
    let (port, web) = (free_port(), free_port());
    let (url, netns) = (format!("http://127.0.0.1:{port}"), host.netns_path());
    let agent = Program::start(
        "holdfast-agent",
        &["run", "--collector", &url, "--name", "early", "--netns", &netns],
    );
    // The programs are attached when a connection is answered by a count; without a collector there is nobody to
    // ask, so give them what loading takes many times over.
    thread::sleep(Duration::from_secs(2));
    let (listener, to) = host.listen("127.0.0.1");
    for _ in 0..50 {
        let client = host.dial(to).expect("a connection");
        drop(listener.accept().expect("a connection"));
        drop(client);
    }

    let store = format!("embedded:{}", folder.path().display());
    let listen = format!("127.0.0.1:{port}");
    let web = format!("127.0.0.1:{web}");
    let program = Program::start(
        "holdfast",
        &["serve", "--listen", &listen, "--web", &web, "--store", &store],
    );
    let collector = Collector {
        program,
        url,
        _folder: folder,
    };
    wait_for("rows of the time before the collector", || {
        let output = Command::new(binary("holdfast"))
            .args([
                "sql",
                "SELECT count() FROM connections",
                "--format",
                "TSV",
                "--collector",
                &collector.url,
            ])
            .output()
            .ok()?;
        (String::from_utf8_lossy(&output.stdout).trim() == "100").then_some(())
    });
    agent.stop();
    collector.program.stop();
}
