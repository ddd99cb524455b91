//! `holdfast serve --assertions` as a process, which can be killed and told to read its files again, and a node that it watches.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use holdfast_proto::v1::{Status, collector_message};
use serde_json::Value;

use crate::command_line::serve;
use crate::synthetic::{Agent, now_ns};

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A collector that judges what a folder declares.
pub(crate) struct Serving {
    process: Child,
    url: String,
    web: SocketAddr,
    /// What it has logged so far.
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    /// A node that is watched: where there is none, nothing is known.
    node: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Says again and again that everything is delivered, as long as the collector is there.
async fn report(collector: SocketAddr) {
    let mut agent = Agent::connect(collector, "a1").await;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    loop {
        ticks.tick().await;
        let now_ns = now_ns() as u64;
        let status = Status {
            observed_at_ns: now_ns,
            epoch: 7,
            watermark_ns: now_ns,
            attempts_watermark_ns: now_ns,
            ..Status::default()
        };
        agent.report(status).await;
        loop {
            match agent.hear().await {
                Ok(Some(collector_message::Body::Receipt(_))) => break,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// The address behind `name=http://` in a line of the log.
fn address_in(line: &str, name: &str) -> SocketAddr {
    let (_, rest) = line.split_once(&format!("{name}=http://")).unwrap();
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

impl Serving {
    /// With a node that it watches.
    pub(crate) fn start(store: &Path, assertions: &Path) -> Self {
        let mut serving = Self::start_alone(store, assertions);
        serving.watch();
        serving
    }

    /// Nobody is watched yet.
    pub(crate) fn start_alone(store: &Path, assertions: &Path) -> Self {
        Self::begin(store, &["--assertions".as_ref(), assertions.as_os_str()])
    }

    /// Nothing is judged.
    pub(crate) fn start_judging_nothing(store: &Path) -> Self {
        Self::begin(store, &[])
    }

    fn begin(store: &Path, arguments: &[&OsStr]) -> Self {
        let store = format!("embedded:{}", store.display());
        let mut process = serve(&store).args(arguments).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let log = Arc::<(Mutex<Vec<String>>, Condvar)>::default();
        let heard = log.clone();
        // It is read for as long as it goes on, or its writer would be blocked.
        std::thread::spawn(move || {
            for line in lines {
                heard.0.lock().unwrap().push(line);
                heard.1.notify_all();
            }
        });
        let ready = said(&log, "that it is ready", |lines| {
            lines.iter().find(|line| line.contains("ready")).cloned()
        });
        let collector = address_in(&ready, "collector");
        Self {
            process,
            url: format!("http://{collector}"),
            web: address_in(&ready, "web"),
            log,
            node: None,
        }
    }

    /// From now on there is a node, `node-a1`, of which everything is known.
    pub(crate) fn watch(&mut self) {
        let address = self.url.strip_prefix("http://").unwrap().parse().unwrap();
        self.node = Some(tokio::spawn(report(address)));
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(arguments)
            .args(["--collector", &self.url])
            .env("USER", "ann")
            .env_remove("SUDO_USER")
            .output()
            .unwrap()
    }

    /// What a command prints.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn rows(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.run(&[arguments, &["--json"]].concat());
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits until some assertion has this verdict.
    pub(crate) fn comes_to(&self, verdict: &str) {
        self.wait(verdict, |row| row["verdict"] == verdict);
    }

    /// Waits until a verdict is like this.
    pub(crate) fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let started = Instant::now();
        loop {
            let rows = self.rows(&["verdicts"]);
            if rows.iter().any(&is_so) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "never {what}: {rows:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until so many lines of the log have this in them, and gives what was logged from the last of them on.
    pub(crate) fn logs(&self, part: &str, times: usize) -> String {
        said(&self.log, &format!("{part}, {times} times"), |lines| {
            let with = |line: &String| line.contains(part);
            let is_enough = lines.iter().filter(|line| with(line)).count() >= times;
            let last = lines.iter().rposition(with)?;
            is_enough.then(|| lines[last..].join("\n"))
        })
    }

    /// How many lines of the log have this in them.
    pub(crate) fn logged(&self, part: &str) -> usize {
        let lines = self.log.0.lock().unwrap();
        lines.iter().filter(|line| line.contains(part)).count()
    }

    /// Waits until one of its own numbers is that.
    pub(crate) fn counts(&self, name: &str, value: u64) {
        let line = format!("{name} {value}");
        let started = Instant::now();
        loop {
            let mut stream = TcpStream::connect(self.web).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let mut page = String::new();
            stream.read_to_string(&mut page).unwrap();
            if page.lines().any(|found| found == line) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "never {line}:\n{page}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.process.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    /// As a crash ends it: SIGKILL.
    pub(crate) fn kill(mut self) {
        if let Some(node) = &self.node {
            node.abort();
        }
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Waits until a log has what is looked for.
fn said<T>(
    log: &(Mutex<Vec<String>>, Condvar),
    what: &str,
    mut find: impl FnMut(&[String]) -> Option<T>,
) -> T {
    let mut lines = log.0.lock().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find(&lines) {
            return found;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "it never said {what}: {lines:#?}");
        lines = log.1.wait_timeout(lines, left).unwrap().0;
    }
}
