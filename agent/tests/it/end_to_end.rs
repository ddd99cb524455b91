//! From the kernel to the query, with nothing replaced: the real agent, the real collector, the real ClickHouse, and
//! a program that is not ours.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{host::Host, transitions};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program of ours, ended when the test is.
pub(crate) struct Program {
    child: Child,
    name: &'static str,
}

impl Program {
    pub(crate) fn start(name: &'static str, arguments: &[&str]) -> Self {
        Self::spawn(name, Command::new(binary(name)).args(arguments))
    }

    /// With these capabilities alone, as setpriv(1) writes them.
    pub(crate) fn start_with_capabilities(
        name: &'static str,
        arguments: &[&str],
        capabilities: &str,
    ) -> Self {
        let mut command = Command::new("setpriv");
        let bounds = format!("--bounding-set=-all,{capabilities}");
        command.arg(bounds).arg(binary(name)).args(arguments);
        Self::spawn(name, &mut command)
    }

    fn spawn(name: &'static str, command: &mut Command) -> Self {
        let child = command
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { child, name }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it without a word: SIGKILL.
    pub(crate) fn kill(self) {
        drop(self);
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) {
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
pub(crate) fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_holdfast-agent")).with_file_name(name);
    assert!(
        path.exists(),
        "{} is missing: build the whole workspace first, with its examples",
        path.display()
    );
    path
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A collector with the embedded store.
pub(crate) struct Collector {
    program: Program,
    pub(crate) url: String,
    _folder: Option<tempfile::TempDir>,
}

impl Collector {
    /// With a store of its own.
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let collector = Self::start_on(folder.path(), free_port(), free_port());
        Self {
            _folder: Some(folder),
            ..collector
        }
    }

    /// With the store in a folder that the test keeps.
    pub(crate) fn start_on(folder: &Path, port: u16, web: u16) -> Self {
        Self::start_that(folder, port, web, &[])
    }

    /// With further arguments.
    pub(crate) fn start_that(folder: &Path, port: u16, web: u16, arguments: &[&str]) -> Self {
        Self::start_at(&format!("embedded:{}", folder.display()), port, web, arguments)
    }

    /// On a store as `--store` takes it.
    pub(crate) fn start_at(store: &str, port: u16, web: u16, arguments: &[&str]) -> Self {
        let (listen, web) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{web}"));
        let mut all = vec!["serve", "--listen", &listen, "--web", &web, "--store", store];
        all.extend(arguments);
        let program = Program::start("holdfast", &all);
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

    /// Ends it without a word: SIGKILL.
    pub(crate) fn kill(self) {
        self.program.kill();
    }

    /// The rows of a query, by column name.
    pub(crate) fn sql(&self, sql: &str) -> Vec<Value> {
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

    pub(crate) fn number(&self, sql: &str) -> u64 {
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
pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| {
        value
            .as_str()
            .and_then(|text| text.parse().ok())
            .expect("a number")
    })
}

pub(crate) fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
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
pub(crate) fn start_agent(url: &str, host: &Host, name: &str, state: &Path) -> Program {
    start_agent_with_ring(url, host, name, state, "8MiB")
}

fn start_agent_with_ring(url: &str, host: &Host, name: &str, state: &Path, ring: &str) -> Program {
    start_agent_that(url, host, name, state, &["--ring", ring], &[])
}

/// With further arguments, and variables of its environment.
pub(crate) fn start_agent_that(
    url: &str,
    host: &Host,
    name: &str,
    state: &Path,
    arguments: &[&str],
    variables: &[(&str, &str)],
) -> Program {
    let mut command = agent(url, host, name, state);
    command.args(arguments).envs(variables.iter().copied());
    Program::spawn("holdfast-agent", &mut command)
}

/// What starts an agent that watches a host.
fn agent(url: &str, host: &Host, name: &str, state: &Path) -> Command {
    let mut command = Command::new(binary("holdfast-agent"));
    command.args(["run", "--collector", url, "--name", name]);
    command
        .args(["--netns", &host.netns_path(), "--state"])
        .arg(state);
    // A busy machine is no reason to see less here.
    command.args(["--max-cpu", "off"]);
    command
}

/// The same, with what it says in a file.
fn start_agent_to(
    log: &tempfile::NamedTempFile,
    url: &str,
    host: &Host,
    name: &str,
    state: &Path,
) -> Program {
    let mut command = agent(url, host, name, state);
    command.stderr(log.reopen().expect("a file"));
    Program::spawn("holdfast-agent", &mut command)
}

/// Waits until a node has said hello, which it does after its programs are attached.
pub(crate) fn wait_for_node(collector: &Collector, name: &str) {
    wait_for("node in the store", || {
        let sql = format!("SELECT count() AS n FROM nodes WHERE node = '{name}'");
        (collector.number(&sql) == 1).then_some(())
    });
}

/// Opens and closes connections inside a host.
pub(crate) fn connections(host: &Host, count: usize) {
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
fn system_calls_of_a_foreign_program_are_in_the_store_to_the_call() {
    let collector = Collector::start();
    let host = Host::new();
    let state = tempfile::tempdir().expect("a folder");
    let agent = start_agent(&collector.url, &host, "calls", state.path());
    wait_for_node(&collector, "calls");
    let program = "
import os, threading
def work():
    for _ in range(3_000): os.getpgid(0)
    for _ in range(200):
        try: os.getpgid(0x3ffffff)
        except ProcessLookupError: pass
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(os.getpid())
";
    let output = host.run(move || {
        Command::new("python3")
            .args(["-c", program])
            .output()
            .expect("python3")
    });
    let pid = String::from_utf8(output.stdout).expect("a number");
    agent.stop();

    let rows = collector.sql(&format!(
        "SELECT sum(calls) AS calls, sum(errors) AS errors, sumMap(errnos, errno_calls) AS by_errno, any(comm) AS comm, \
         sum(measured) AS measured FROM syscalls WHERE pid = {} AND syscall = 'getpgid'",
        pid.trim()
    ));
    let row = &rows[0];
    assert_eq!(
        (
            number(&row["calls"]),
            number(&row["errors"]),
            row["comm"].as_str()
        ),
        (12_800, 800, Some("python3"))
    );
    let (errnos, calls) = (&row["by_errno"][0], &row["by_errno"][1]);
    assert_eq!((number(&errnos[0]), number(&calls[0])), (3, 800));
    // One in 16, at random: 800, and a standard deviation of 27.
    assert!((600..1_000).contains(&number(&row["measured"])), "{row}");
    // Another network namespace is not seen.
    let elsewhere = "SELECT count() AS n FROM syscalls WHERE comm = 'holdfast'";
    assert_eq!(collector.number(elsewhere), 0);

    // Its last word is on its way into the store.
    let ledger = wait_for("a report that counts what is stored", || {
        let rows = collector.sql("SELECT * FROM ledger WHERE stream = 'syscalls'");
        let row = rows.into_iter().next()?;
        (number(&row["received"]) >= number(&row["rows_stored"])).then_some(row)
    });
    assert!(number(&ledger["elsewhere"]) > 0, "{ledger}");
    for counter in [
        "missed",
        "dropped",
        "refused",
        "batching",
        "agent_difference",
        "kernel_difference",
    ] {
        assert_eq!(number(&ledger[counter]), 0, "{counter} in {ledger}");
    }
    assert_eq!(
        number(&ledger["rows_stored"]),
        number(&ledger["received"]),
        "{ledger}"
    );
    let status = Command::new(binary("holdfast"))
        .args(["ledger", "--collector", &collector.url])
        .output()
        .expect("holdfast ledger");
    assert!(
        status.status.success(),
        "{}",
        String::from_utf8_lossy(&status.stdout)
    );

    let shown = Command::new(binary("holdfast"))
        .args([
            "syscalls",
            "--by",
            "process",
            "--where",
            "syscall = 'getpgid'",
            "--collector",
            &collector.url,
        ])
        .output()
        .expect("holdfast syscalls");
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(
        shown.contains(&format!("python3[{}]", pid.trim())) && shown.contains("ESRCH 800"),
        "{shown}"
    );
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
        ("unsent", 0),
        ("witnessed", 20_000),
        ("witness_difference", 0),
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

#[test]
fn every_connection_is_in_the_store_or_in_a_counter_however_often_the_agent_is_killed() {
    let collector = Collector::start();
    let host = Host::new();
    let state = tempfile::tempdir().expect("a folder");
    let mut starts = 0;
    let mut start = || {
        starts += 1;
        let agent = start_agent(&collector.url, &host, "mortal", state.path());
        wait_for("the next start", || {
            let sql = "SELECT uniqExact(agent_epoch) AS n FROM agent_samples";
            (collector.number(sql) >= starts).then_some(())
        });
        agent
    };
    let mut agent = start();

    // Connections that outlive every start: announced by each, found open by the next.
    let (listener, to) = host.listen("127.0.0.1");
    let held: Vec<_> = (0..5)
        .map(|_| {
            (
                host.dial(to).expect("a connection"),
                listener.accept().expect("a connection"),
            )
        })
        .collect();

    // A foreign load, and kills at moments that nobody chose.
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign/prefork.py");
    let start_load = || {
        host.run(move || {
            Command::new("python3")
                .args([program, "30000", "3", "6"])
                .stdout(Stdio::null())
                .spawn()
                .expect("python3")
        })
    };
    let mut load = start_load();
    for pause_ms in [700, 20, 1_500, 150] {
        thread::sleep(Duration::from_millis(pause_ms));
        if load.try_wait().expect("our own child").is_some() {
            load = start_load();
        }
        agent.kill();
        agent = start();
    }
    load.wait().expect("our own child");
    drop(held);
    connections(&host, 10);

    // Every start is accounted for to the end, and together they have what the namespace itself counted.
    let namespace = format!("FROM ledger WHERE netns = {}", host.netns);
    let sum = |columns: &str| collector.number(&format!("SELECT sum({columns}) AS n {namespace}"));
    let seen = snmp(&host, "ActiveOpens") + snmp(&host, "PassiveOpens");
    wait_for("the last word on every start that was killed", || {
        let ended = "countIf(NOT is_final) <= 1";
        let ended = collector.number(&format!("SELECT {ended} AS n {namespace}"));
        (ended == 1 && sum("witnessed") == seen).then_some(())
    });
    agent.stop();
    // Of every stream.
    wait_for("the last word on the last start", || {
        let open = format!(
            "SELECT countIf(NOT is_final) AS n FROM ledger WHERE stream != 'connections' OR netns = {}",
            host.netns
        );
        (collector.number(&open) == 0).then_some(())
    });
    let ledger = Command::new(binary("holdfast"))
        .args(["ledger", "--all", "--collector", &collector.url])
        .output()
        .expect("holdfast ledger");
    let text = String::from_utf8_lossy(&ledger.stdout);
    // It says no only where the hook, on this machine, was interrupted by the event that it should have seen.
    let missed = collector.number("SELECT sum(missed) AS n FROM ledger");
    assert!(ledger.status.success() || missed > 0, "{text}");
    let open = "countIf(kernel_difference != 0 OR ring_difference != 0 OR agent_difference != 0 OR store_difference != 0)";
    assert_eq!(
        collector.number(&format!("SELECT {open} AS n FROM ledger")),
        0,
        "{text}"
    );

    let stored = collector.number("SELECT count() AS n FROM connections");
    let distinct = "SELECT uniqExact(netns, cookie, opened_at, role) AS n FROM connections";
    assert_eq!(collector.number(distinct), stored, "nothing twice");
    assert_eq!(sum("rows_stored - announced"), stored);
    assert_eq!(sum("acknowledged - announced"), stored);
    let everywhere = "rows_stored + ended + lost + untracked + superseded + dropped + refused + open";
    assert_eq!(
        sum(&format!(
            "{everywhere} - announced - seeded - unsent + witness_difference"
        )),
        seen,
        "{text}"
    );
    // So it is of what the agent made itself, under all its starts; what was lost of it is a gap of its stream.
    let streams =
        "SELECT uniqExact(stream) AS n FROM ledger WHERE stream != 'connections' AND rows_stored > 0";
    assert!(collector.number(streams) >= 3, "{text}");
    let differing = "SELECT countIf(gap_rows != ended) AS n FROM \
                     (SELECT stream, sum(ended) AS ended FROM ledger GROUP BY stream) AS counted LEFT JOIN \
                     (SELECT stream, sum(rows) AS gap_rows FROM gaps WHERE reason = 'epoch_end' GROUP BY stream) AS gap \
                     USING (stream)";
    assert_eq!(collector.number(differing), 0, "{text}");
    // What the kills took is dated.
    let gaps = "FROM gaps WHERE reason = 'epoch_end' AND stream = 'connections'";
    assert_eq!(
        collector.number(&format!("SELECT sum(rows) AS n {gaps}")),
        sum("ended")
    );
    assert!(sum("ended") > 0, "the kills took something with them");
    assert_eq!(
        collector.number(&format!("SELECT countIf(at_least) AS n {gaps}")),
        0
    );
    collector.program.stop();
}

#[test]
fn what_a_full_ring_loses_is_a_gap() {
    let collector = Collector::start();
    let host = Host::new();
    let state = tempfile::tempdir().expect("a folder");
    let agent = start_agent_with_ring(&collector.url, &host, "narrow", state.path(), "4KiB");
    wait_for_node(&collector, "narrow");
    connections(&host, 500);
    let lost = "SELECT sum(lost) AS n FROM ledger";
    let gaps = format!(
        "SELECT sum(rows) AS n FROM gaps WHERE reason = 'ring_full' AND netns = {} AND NOT at_least AND last_at > first_at",
        host.netns
    );
    wait_for("a gap for what was lost", || {
        let lost = collector.number(lost);
        (lost > 0 && lost == collector.number(&gaps)).then_some(())
    });
    agent.stop();
    let stored = collector.number("SELECT count() AS n FROM connections");
    assert_eq!(stored + collector.number(lost), 1_000);
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

/// A file system of its own, gone with the test.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn that_is(options: &str) -> Self {
        let mounted = Self(tempfile::tempdir().expect("a folder"));
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "holdfast-test"]);
        let status = mount.arg(mounted.path()).status().expect("mount");
        assert!(status.success(), "{mount:?}: {status}");
        mounted
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever has a file open there is ended before or after.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[test]
fn a_disk_that_takes_nothing_is_said_and_nothing_is_lost_while_the_agent_lives() {
    let host = Host::new();
    let state = Mounted::that_is("ro");
    let log = tempfile::NamedTempFile::new().expect("a file");
    let said = || std::fs::read_to_string(log.path()).expect("the log");
    let (data, port, web) = (tempfile::tempdir().expect("a folder"), free_port(), free_port());
    let url = format!("http://127.0.0.1:{port}");
    let agent = start_agent_to(&log, &url, &host, "hard", state.path());
    wait_for("the agent's programs", || {
        said().contains("watching TCP connections").then_some(())
    });
    connections(&host, 50);
    let log = said();
    assert!(
        log.contains("Read-only file system") && log.contains("is kept in memory"),
        "{log}"
    );

    let collector = Collector::start_on(data.path(), port, web);
    let all = "SELECT countIf(role = 'active') AS active FROM connections";
    wait_for("every connection", || (collector.number(all) == 50).then_some(()));
    let failed = "SELECT countIf(spool_disk_failed) AS n FROM nodes";
    wait_for("the status to say so", || {
        (collector.number(failed) == 1).then_some(())
    });
    agent.stop();
    assert_eq!(collector.number(all), 50, "{}", said());
    let ledger = Command::new(binary("holdfast"))
        .args(["ledger", "--collector", &collector.url])
        .output()
        .expect("holdfast ledger");
    assert!(
        ledger.status.success(),
        "{}{}",
        String::from_utf8_lossy(&ledger.stdout),
        said()
    );
    collector.program.stop();
}

#[test]
fn what_waited_in_memory_for_a_full_disk_is_in_a_gap_as_old_as_it_once_its_start_is_killed() {
    let host = Host::new();
    let state = Mounted::that_is("size=1m");
    let (data, port, web) = (tempfile::tempdir().expect("a folder"), free_port(), free_port());
    let url = format!("http://127.0.0.1:{port}");
    let log = tempfile::NamedTempFile::new().expect("a file");
    let said = || std::fs::read_to_string(log.path()).expect("the log");
    let agent = start_agent_to(&log, &url, &host, "full", state.path());
    wait_for("the agent's programs", || {
        connections(&host, 1);
        (files(state.path(), "segment") > 0).then_some(())
    });
    let filler = state.path().join("filler");
    let mut file = std::fs::File::create(&filler).expect("a file");
    while file.write_all(&[1; 512]).is_ok() {}
    drop(file);
    // The last page of a segment has some room yet.
    wait_for("the disk to be full", || {
        connections(&host, 1);
        said().contains("No space left").then_some(())
    });
    connections(&host, 1);
    let made = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    // Its state is written meanwhile, over and over: it has room of its own.
    for _ in 0..5 {
        thread::sleep(Duration::from_secs(1));
        connections(&host, 10);
    }
    agent.kill();
    std::fs::remove_file(filler).expect("the file");

    let collector = Collector::start_on(data.path(), port, web);
    let agent = start_agent(&url, &host, "full", state.path());
    let gap = "FROM gaps WHERE reason = 'epoch_end' AND stream = 'connections' AND rows > 0";
    wait_for("the gap", || {
        (collector.number(&format!("SELECT sum(rows) AS n {gap}")) >= 40).then_some(())
    });
    let first = format!("SELECT toUnixTimestamp64Nano(min(first_at)) AS n {gap}");
    let first_ns = u128::from(collector.number(&first));
    assert!(first_ns <= made.as_nanos(), "{first_ns}, made {made:?}");
    let minute_ns = 60_000_000_000;
    assert!(
        first_ns + minute_ns > made.as_nanos(),
        "{first_ns}, made {made:?}"
    );
    agent.stop();
    collector.program.stop();
}

#[test]
fn what_stays_open_is_an_attempt_within_a_second_and_shown_until_it_ends() {
    let collector = Collector::start();
    let (host, router) = (Host::new(), Host::new());
    host.connect(&router);
    host.ip("route add default via 10.0.0.2");
    router.sysctl("ipv4/ip_forward", "1");
    router.ip("route add blackhole 192.0.2.0/24");
    let (old_listener, old_to) = host.listen("127.0.0.1");
    let old = host.dial(old_to).expect("a connection");
    let old_server = old_listener.accept().expect("a connection").0;

    let state = tempfile::tempdir().expect("a folder");
    let (netns, folder) = (host.netns_path(), state.path().display().to_string());
    let agent = Program::start(
        "holdfast-agent",
        &[
            "run",
            "--collector",
            &collector.url,
            "--name",
            "opener",
            "--netns",
            &netns,
            "--state",
            &folder,
        ],
    );
    wait_for_node(&collector, "opener");

    // A handshake is there long before its connection ends. The median of several: a test machine stutters.
    let (listener, to) = host.listen("127.0.0.1");
    let mut held = Vec::new();
    let mut waits = Vec::new();
    for round in 1..=5 {
        let client = host.dial(to).expect("a connection");
        let began = Instant::now();
        held.push((client, listener.accept().expect("a connection").0));
        let sql = format!(
            "SELECT count() AS n FROM attempts WHERE local_port = {0} OR remote_port = {0}",
            to.port()
        );
        wait_for("both ends of the attempt", || {
            (collector.number(&sql) == 2 * round).then_some(())
        });
        waits.push(began.elapsed());
    }
    waits.sort_unstable();
    assert!(waits[2] < Duration::from_millis(1_500), "{waits:?}");
    assert_eq!(
        collector.number("SELECT count() AS n FROM connections"),
        0,
        "nothing has ended"
    );

    // An attempt that nobody answers is shown as well, though nothing is decided.
    let waiting = host.run(|| {
        thread::spawn(|| TcpStream::connect_timeout(&([192, 0, 2, 1], 80).into(), Duration::from_secs(20)))
    });
    let pending = "SELECT count() AS n FROM open_connections WHERE outcome = 'pending' AND remote_port = 80 \
                   AND remote_ip = toIPv6('192.0.2.1')";
    wait_for("the attempt that waits", || {
        (collector.number(pending) == 1).then_some(())
    });

    // What is open, what is older than the agent included, with its owner.
    let open = "SELECT count() AS n FROM open_connections WHERE outcome = 'established'";
    wait_for("what is open", || (collector.number(open) == 12).then_some(()));
    let me = std::process::id();
    let owned = format!("{open} AND pid = {me} AND attribution != 'unknown'");
    assert_eq!(collector.number(&owned), 12);
    let listeners = format!("SELECT uniq(local_port) AS n FROM listeners WHERE pid = {me}");
    wait_for("both listeners", || {
        (collector.number(&listeners) == 2).then_some(())
    });

    drop(held);
    drop((old, old_server));
    let ended = "SELECT count() AS n FROM connections WHERE outcome = 'established'";
    wait_for("the ends", || (collector.number(ended) == 12).then_some(()));
    wait_for("nothing open", || (collector.number(open) == 0).then_some(()));
    // The old ones were attempted before anyone looked.
    let attempts = "SELECT count() AS n FROM attempts WHERE outcome = 'established'";
    assert_eq!(collector.number(attempts), 10);

    agent.stop();
    // Its last word is on its way into the store.
    wait_for("a ledger that closes", || {
        let ledger = Command::new(binary("holdfast"))
            .args(["ledger", "--collector", &collector.url])
            .stdout(Stdio::null())
            .status()
            .expect("holdfast ledger");
        ledger.success().then_some(())
    });
    let seeded = "SELECT sum(seeded) AS n FROM ledger";
    assert_eq!(collector.number(seeded), 2);
    drop(waiting);
}

/// Takes and closes connections as fast as two threads can, until it is told to stop.
fn load(host: &Host, stop: &Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    let (listener, to) = host.listen("127.0.0.1");
    let (server_stop, client_stop) = (Arc::clone(stop), Arc::clone(stop));
    thread::spawn(move || {
        listener.set_nonblocking(true).expect("a listener");
        while !server_stop.load(Ordering::Relaxed) {
            if listener.accept().is_err() {
                thread::yield_now();
            }
        }
    });
    let clients = move || {
        let mut made = 0;
        while !client_stop.load(Ordering::Relaxed) {
            if let Ok(client) = TcpStream::connect(to) {
                // A reset leaves no TIME_WAIT, so the ports do not run out.
                crate::outcomes::reset_on_close(&client);
                made += 1;
            }
        }
        made
    };
    let path = host.netns_path();
    thread::spawn(move || {
        let file = std::fs::File::open(path).expect("the namespace");
        nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).expect("root");
        clients()
    })
}

#[test]
fn a_budget_that_is_too_small_gives_up_named_steps_and_says_so_everywhere() {
    let collector = Collector::start();
    let host = Host::new();
    let state = tempfile::tempdir().expect("a folder");
    let (netns, folder) = (host.netns_path(), state.path().display().to_string());
    let agent = Program::start(
        "holdfast-agent",
        &[
            "run",
            "--collector",
            &collector.url,
            "--name",
            "poor",
            "--netns",
            &netns,
            "--state",
            &folder,
            "--transitions",
            "all",
            "--max-cpu",
            "0.001%",
            "--overhead-every",
            "1s",
        ],
    );
    wait_for_node(&collector, "poor");
    let stop = Arc::new(AtomicBool::new(false));
    let clients = load(&host, &stop);
    wait_for("last step", || {
        let sql =
            "SELECT count() AS n FROM overhead WHERE node = 'poor' AND next_step = 'connections_1_in_64'";
        (collector.number(sql) > 0).then_some(())
    });
    // Under the last step, most connections are counted instead of followed.
    wait_for("connections that are sampled out", || {
        let sql = "SELECT max(sampled_out) AS n FROM ledger WHERE stream = 'connections'";
        (collector.number(sql) > 100).then_some(())
    });
    let nodes =
        collector.sql("SELECT step, resident_bytes, budget_ppm, cpu_ppm FROM nodes WHERE node = 'poor'");
    assert_eq!(nodes[0]["step"], "connections_1_in_64", "{nodes:?}");
    assert!(number(&nodes[0]["resident_bytes"]) > 1 << 20, "{nodes:?}");
    assert_eq!(number(&nodes[0]["budget_ppm"]), 10, "{nodes:?}");
    stop.store(true, Ordering::Relaxed);
    let made = clients.join().expect("the clients");
    agent.stop();

    let changes = collector.sql(
        "SELECT step, next_step FROM overhead WHERE node = 'poor' AND step != next_step ORDER BY ended_at",
    );
    let changes: Vec<_> = changes
        .iter()
        .map(|row| {
            (
                row["step"].as_str().expect("a step"),
                row["next_step"].as_str().expect("a step"),
            )
        })
        .collect();
    assert_eq!(
        changes,
        [
            ("full", "syscalls_off"),
            ("syscalls_off", "transitions_off"),
            ("transitions_off", "connections_1_in_4"),
            ("connections_1_in_4", "connections_1_in_16"),
            ("connections_1_in_16", "connections_1_in_64"),
        ]
    );
    // The kernel measured the programs that ran.
    let programs = collector.sql(
        "SELECT sum(runs) AS n, sum(ns) AS ns FROM overhead \
         ARRAY JOIN programs AS name, program_runs AS runs, program_run_ns AS ns WHERE name = 'inet_sock_set_state'",
    );
    assert!(
        number(&programs[0]["n"]) > 0 && number(&programs[0]["ns"]) > 0,
        "{programs:?}"
    );
    // The rows that are left, and the rest in the ledger.
    let ledger = wait_for("last word of the agent", || {
        let sql = "SELECT * FROM ledger WHERE stream = 'connections' AND opened > 0 AND is_final";
        collector.sql(sql).into_iter().next()
    });
    assert!(number(&ledger["opened"]) >= made, "{ledger}, {made} made");
    for difference in [
        "kernel_difference",
        "ring_difference",
        "agent_difference",
        "store_difference",
    ] {
        assert_eq!(number(&ledger[difference]), 0, "{difference} in {ledger}");
    }
    assert_eq!(
        number(&ledger["closed"]) + number(&ledger["sampled_out"]) + number(&ledger["open"]),
        number(&ledger["opened"]),
        "{ledger}"
    );
    let output = Command::new(binary("holdfast"))
        .args(["overhead", "--collector", &collector.url])
        .output()
        .expect("holdfast overhead");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["poor", "inet_sock_set_state", "syscalls_off -> transitions_off"] {
        assert!(text.contains(part), "{text}");
    }
}

/// What `holdfast probe` prints, and whether it ended with 0.
fn probe(collector: &Collector, arguments: &[&str]) -> (String, bool) {
    let output = Command::new(binary("holdfast"))
        .arg("probe")
        .args(arguments)
        .args(["--collector", &collector.url])
        .output()
        .expect("holdfast probe");
    let text = [output.stdout, output.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        output.status.success(),
    )
}

#[test]
fn what_a_node_allows_is_changed_while_its_agent_runs_and_outlives_agent_and_collector() {
    let data = tempfile::tempdir().expect("a folder");
    let (port, web) = (free_port(), free_port());
    let collector = Collector::start_on(data.path(), port, web);
    let host = Host::new();
    let state = tempfile::tempdir().expect("a folder");
    let start_agent = |url: &str| {
        let (netns, folder) = (host.netns_path(), state.path().display().to_string());
        let arguments = [
            "run",
            "--collector",
            url,
            "--name",
            "told",
            "--label",
            "role=db",
            "--netns",
            &netns,
            "--state",
            &folder,
            "--max-cpu",
            "off",
            "--control",
            "filters,syscalls=sampled",
        ];
        Program::start("holdfast-agent", &arguments)
    };
    let agent = start_agent(&collector.url);
    wait_for_node(&collector, "told");
    let (wanted, to) = host.listen("127.0.0.1");
    let ports = format!("ports={}", to.port());
    let (text, is_applied) = probe(
        &collector,
        &[
            "set",
            "--where",
            "role=db",
            "--wait",
            "60s",
            &ports,
            "syscalls=off",
        ],
    );
    assert!(is_applied && text.matches("applied").count() == 2, "{text}");
    connections(&host, 5);
    for _ in 0..3 {
        let client = host.dial(to).expect("a connection");
        drop(wanted.accept().expect("a connection"));
        drop(client);
    }
    wait_for("connections that the filter lets pass", || {
        (collector.number("SELECT count() AS n FROM connections") == 6).then_some(())
    });
    wait_for("those that it hides in the ledger", || {
        let sql = "SELECT max(filtered) AS n FROM ledger WHERE stream = 'connections'";
        (collector.number(sql) == 10).then_some(())
    });
    let (hidden, to_hidden) = host.listen("127.0.0.1");
    let held = host.dial(to_hidden).expect("a connection");
    let held = (held, hidden.accept().expect("a connection"));
    wait_for("what a look at what is open does not show in the ledger", || {
        let sql = "SELECT max(filtered) AS n FROM ledger WHERE stream = 'open_connections'";
        (collector.number(sql) >= 2).then_some(())
    });
    drop(held);

    // What the node does not allow is refused, and the reason says how it could be.
    let (text, is_applied) = probe(
        &collector,
        &[
            "set",
            "--node",
            "told",
            "--wait",
            "60s",
            "syscalls=full",
            "listeners=off",
        ],
    );
    assert!(!is_applied, "{text}");
    for part in [
        "--control filters,syscalls=full ",
        "--control filters,syscalls=sampled,streams ",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let (text, is_right) = probe(&collector, &["set", "syscalls=off"]);
    assert!(!is_right && text.contains("--node NAME"), "{text}");

    // Both start again: the settings are those of before.
    agent.stop();
    collector.program.stop();
    let collector = Collector::start_on(data.path(), port, web);
    let agent = start_agent(&collector.url);
    wait_for("word of the second start", || {
        let sql = "SELECT uniqExact(agent_epoch) AS n FROM probe_reports WHERE node = 'told'";
        (collector.number(sql) == 2).then_some(())
    });
    wait_for("settings of before", || {
        let (text, _) = probe(&collector, &["show"]);
        let line = text.lines().find(|line| line.contains(" ports "))?.to_owned();
        (line.contains(&to.port().to_string()) && line.contains("applied")).then_some(())
    });
    let (text, is_applied) = probe(&collector, &["set", "--all", "--wait", "60s", "ports=default"]);
    assert!(is_applied && text.contains("any"), "{text}");
    agent.stop();
    let closes = Command::new(binary("holdfast"))
        .args(["ledger", "--collector", &collector.url])
        .status()
        .expect("holdfast ledger");
    assert!(closes.success());
}

/// A cgroup (v2) of a test, removed when the test is done.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    /// `path` is below the mount.
    pub(crate) fn new(path: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("/proc");
        let root = mounts
            .lines()
            .find_map(|line| {
                line.split_once(" cgroup2 ")?
                    .0
                    .split(' ')
                    .nth(1)
                    .map(PathBuf::from)
            })
            .expect("cgroups of version 2");
        let folder = root.join(path);
        std::fs::create_dir_all(&folder).expect("a cgroup: these tests need root");
        Self(folder)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have ended. The folder above stays if somebody else uses it.
        let _ = std::fs::remove_dir(&self.0);
        if let Some(above) = self.0.parent() {
            let _ = std::fs::remove_dir(above);
        }
    }
}

#[test]
fn a_connection_carries_the_service_of_its_cgroup_and_a_view_says_who_that_is() {
    let collector = Collector::start();
    let host = Host::new();
    let state = tempfile::tempdir().expect("a folder");
    let slice = format!("holdfast-{}.slice", std::process::id());
    let before = Cgroup::new(&format!("{slice}/shop-before.service"));
    let (netns, folder) = (host.netns_path(), state.path().display().to_string());
    let agent = Program::start(
        "holdfast-agent",
        &[
            "run",
            "--collector",
            &collector.url,
            "--name",
            "named",
            "--netns",
            &netns,
            "--state",
            &folder,
            "--max-cpu",
            "off",
            "--service",
            "unit=shop-*.service -> shop",
        ],
    );
    wait_for_node(&collector, "named");
    // One that the agent found, one that comes while it runs, and one that no rule names.
    let after = Cgroup::new(&format!("{slice}/shop-after.service"));
    let plain = Cgroup::new(&format!("{slice}/plain@1.service"));
    let (listener, to) = host.listen("127.0.0.1");
    for cgroup in [&before, &after, &plain] {
        let procs = cgroup.0.join("cgroup.procs").display().to_string();
        let port = to.port();
        let child = host.run(move || {
            // As a service manager does it: the process joins the cgroup, then becomes the program.
            let script = format!(
                "echo $$ > {procs} && exec python3 -c \
                 'import socket; socket.create_connection((\"127.0.0.1\", {port})).close()'"
            );
            Command::new("sh").args(["-c", &script]).spawn().expect("a shell")
        });
        drop(listener.accept().expect("a connection"));
        let status = { child }.wait().expect("our own child");
        assert!(status.success());
    }
    wait_for("the connections of three cgroups", || {
        let sql = "SELECT count() AS n FROM connections WHERE role = 'active' AND service != ''";
        (collector.number(sql) == 3).then_some(())
    });
    wait_for("the names of three cgroups", || {
        (collector.number("SELECT count() AS n FROM cgroups WHERE unit != '' AND path LIKE '/holdfast-%'")
            == 3)
            .then_some(())
    });
    let rows = collector.sql(
        "SELECT service, unit, cgroup_path FROM connection_workloads WHERE role = 'active' ORDER BY recorded_at",
    );
    let found: Vec<_> = rows
        .iter()
        .map(|row| {
            ["service", "unit", "cgroup_path"].map(|column| row[column].as_str().expect("a text").to_owned())
        })
        .collect();
    let expected = [
        ("shop", "shop-before"),
        ("shop", "shop-after"),
        ("plain", "plain@1"),
    ]
    .map(|(service, unit)| {
        [
            service.to_owned(),
            format!("{unit}.service"),
            format!("/{slice}/{unit}.service"),
        ]
    });
    assert_eq!(found, expected);
    agent.stop();
    // System calls are delivered at the end, and known by the same names.
    wait_for("the system calls", || {
        let sql = "SELECT uniqExact(cgroup_id) AS n FROM syscalls WHERE service IN ('shop', 'plain') AND comm = 'python3'";
        (collector.number(sql) == 3).then_some(())
    });
    let output = Command::new(binary("holdfast"))
        .args(["syscalls", "--by", "cgroup", "--collector", &collector.url])
        .output()
        .expect("holdfast syscalls");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&format!("/{slice}/plain@1.service")), "{text}");
}

#[test]
fn transitions_are_in_the_store_once_and_the_ledger_closes() {
    let collector = Collector::start();
    let host = Host::new();
    let folder = tempfile::tempdir().expect("a folder");
    let agent = start_agent_that(
        &collector.url,
        &host,
        "streams",
        folder.path(),
        &["--control", "transitions"],
        &[],
    );
    wait_for_node(&collector, "streams");
    let set = |value: &str| {
        let setting = format!("transitions={value}");
        let output = std::process::Command::new(binary("holdfast"))
            .args(["probe", "set", "--all", &setting, "--collector", &collector.url])
            .args(["--wait", "60s"])
            .output()
            .expect("holdfast probe set");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    };
    let (_listener, _) = transitions::connections(&host, 5);
    set(&format!("namespaces={}", host.netns));
    let (listener, port) = transitions::connections(&host, 20);
    // Open ones are here too.
    let client = host
        .dial(listener.local_addr().expect("its address"))
        .expect("a connection");
    let server = listener.accept().expect("a connection");
    wait_for("the transitions of an open connection", || {
        let sql = format!(
            "SELECT count() AS n FROM transitions WHERE is_streamed AND to_state = 'ESTABLISHED' \
             AND {port} IN (local_port, remote_port)"
        );
        (collector.number(&sql) == 42).then_some(())
    });
    drop((client, server, listener));
    wait_for("every end", || {
        (collector.number("SELECT count() AS n FROM connections") == 52).then_some(())
    });
    agent.stop();
    let steps = collector.number("SELECT sum(length(path_us)) AS n FROM connections");
    let (all, streamed) = (
        collector.number("SELECT count() AS n FROM transitions WHERE step > 0"),
        collector.number("SELECT count() AS n FROM transitions WHERE step > 0 AND is_streamed"),
    );
    assert_eq!(all, steps, "each once");
    let of_the_first = collector.number(&format!(
        "SELECT sum(length(path_us)) AS n FROM connections WHERE {port} NOT IN (local_port, remote_port)"
    ));
    assert_eq!(streamed, steps - of_the_first);
    let distinct = "SELECT uniqExact(netns, cookie, step) AS n FROM transitions WHERE step > 0";
    assert_eq!(collector.number(distinct), steps);
    let listened = "SELECT from_state, to_state FROM transitions WHERE step = 0 ORDER BY at";
    let listened: Vec<Value> = collector.sql(listened);
    assert_eq!(listened.len(), 2, "{listened:?}");

    // Listeners are events of their own.
    let sql = format!(
        "SELECT * FROM ledger WHERE stream = 'transitions' AND netns = {}",
        host.netns
    );
    let ledger = wait_for("the last counters", || {
        let row = collector.sql(&sql).pop()?;
        (number(&row["acknowledged"]) == streamed + 2).then_some(row)
    });
    for (counter, expected) in [
        ("opened", streamed + 2),
        ("rows_stored", streamed + 2),
        ("lost", 0),
        ("filtered", 0),
        ("kernel_difference", 0),
        ("ring_difference", 0),
        ("agent_difference", 0),
        ("store_difference", 0),
    ] {
        assert_eq!(number(&ledger[counter]), expected, "{counter} in {ledger}");
    }
    let shown = std::process::Command::new(binary("holdfast"))
        .args(["transitions", "--where", "to_state = \"LISTEN\""])
        .args(["--collector", &collector.url])
        .output()
        .expect("holdfast transitions");
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.contains(&format!("127.0.0.1:{port}")), "{shown}");
}
