//! The processes of one `up`: the collector, the agents, the traffic, and the live view.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::lab::{CLOSED_PORT, HTTP_PORT, LAB_NETWORK, Lab};
use crate::netns::Netns;
use crate::process::{Place, Service};
use crate::{progress, space, span, workspace};

/// Where the collector listens, if nobody else does.
const COLLECTOR_PORT: u16 = 7443;
const WEB_PORT: u16 = 7070;
/// How often ports are chosen anew because somebody else was faster.
const PORT_ATTEMPTS: u32 = 5;
/// The traffic of `--load`, which the live view leaves out, has a server of its own.
const LOAD_PORT: u16 = 8090;
const LOAD_RATE: usize = 1000;
/// Opening the store replays what the last run left, and agents wait up to 10 s between two attempts to connect.
const START_PATIENCE: Duration = Duration::from_secs(60);
const START_TICK: Duration = Duration::from_millis(50);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What is run.
pub(crate) struct Binaries {
    pub(crate) agent: PathBuf,
    pub(crate) holdfast: PathBuf,
    /// The stand-in for a ClickHouse server; optimised, it is there only after [`Self::build_engine`].
    pub(crate) clickhouse_http: PathBuf,
}

impl Binaries {
    /// `as_tested` takes what `cargo test` builds too, without optimisation: after it there is nothing left to build.
    pub(crate) fn build(as_tested: bool) -> anyhow::Result<Self> {
        // What is tested was looked at before the tests.
        if !as_tested {
            space::check(space::OPTIMISED)?;
        }
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        if as_tested {
            cargo.args(["test", "--workspace", "--no-run"]);
        } else {
            cargo.args([
                "build",
                "--release",
                "--package",
                "holdfast-agent",
                "--package",
                "holdfast-collector",
            ]);
        }
        cargo.current_dir(workspace::root());
        progress::run("building the agent and the collector", &mut cargo)?;
        let folder = workspace::target_dir()?.join(if as_tested { "debug" } else { "release" });
        Ok(Self {
            agent: folder.join("holdfast-agent"),
            holdfast: folder.join("holdfast"),
            clickhouse_http: folder.join("examples/clickhouse_http"),
        })
    }

    /// Builds the stand-in for a ClickHouse server too; what `cargo test` builds includes it.
    pub(crate) fn build_engine() -> anyhow::Result<()> {
        build_examples(&["holdfast-collector"], &["clickhouse_http"]).map(drop)
    }
}

/// Builds examples of some packages with optimisation, and says where they are.
pub(crate) fn build_examples(packages: &[&str], examples: &[&str]) -> anyhow::Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release"]).current_dir(workspace::root());
    for package in packages {
        cargo.args(["--package", package]);
    }
    for example in examples {
        cargo.args(["--example", example]);
    }
    progress::run(&format!("building {}", examples.join(", ")), &mut cargo)?;
    Ok(workspace::target_dir()?.join("release/examples"))
}

/// Dropped from top to bottom when something fails; [`System::finish`] is the orderly end.
pub(crate) struct System {
    view: Option<Service>,
    traffic: Vec<Service>,
    agents: Vec<Service>,
    collector: Service,
    holdfast: PathBuf,
    state_dir: PathBuf,
    /// Where the collector listens for agents and questions, and for browsers.
    listen: SocketAddr,
    web: SocketAddr,
    /// Wall clock, in nanoseconds since 1970: what opened later belongs to this run.
    started_ns: u128,
}

/// CPU time, in user and kernel mode.
pub(crate) struct Cpu {
    pub(crate) agents: Duration,
    pub(crate) collector: Duration,
}

impl System {
    /// Starts the collector and an agent on each node, and returns once every agent is connected.
    pub(crate) fn start(
        binaries: &Binaries,
        state_dir: &Path,
        lab: Option<&Lab>,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let Some(lab) = lab else {
            return Self::start_here(binaries, state_dir, &[], stop);
        };
        let examples = workspace::root().join("deploy/examples");
        let mut system =
            Self::start_collector_of(binaries, state_dir, lab.gateway().into(), Some(&examples), stop)?;
        for node in lab.nodes() {
            let label = format!("role={}", node.role);
            let settings = [
                "--name",
                &node.name,
                "--label",
                &label,
                "--netns",
                "self",
                "--control",
                "all",
                // Nobody but the lab has these addresses.
                "--load-targets",
                LAB_NETWORK,
            ];
            let name = format!("{} agent", node.name);
            system.start_agent(&binaries.agent, &name, Some(node.netns.name()), &settings)?;
        }
        system.wait_for_agents(stop)?;
        Ok(system)
    }

    /// Starts the collector and an agent that sees all of this machine, with further settings, and returns once it is
    /// connected.
    pub(crate) fn start_here(
        binaries: &Binaries,
        state_dir: &Path,
        settings: &[&str],
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let mut system = Self::start_collector_of(binaries, state_dir, LOOPBACK, None, stop)?;
        let settings = [&["--netns", "all", "--control", "all"], settings].concat();
        system.start_agent(&binaries.agent, "agent", None, &settings)?;
        system.wait_for_agents(stop)?;
        Ok(system)
    }

    /// Likewise, with an agent that sees one network namespace alone, whatever else happens on this machine.
    pub(crate) fn start_here_watching(
        binaries: &Binaries,
        state_dir: &Path,
        netns: &Netns,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let mut system = Self::start_collector_of(binaries, state_dir, LOOPBACK, None, stop)?;
        let path = netns.path();
        system.start_agent(&binaries.agent, "agent", None, &["--netns", &path])?;
        system.wait_for_agents(stop)?;
        Ok(system)
    }

    /// Likewise, with a collector that judges what a folder declares.
    pub(crate) fn start_here_judging(
        binaries: &Binaries,
        state_dir: &Path,
        assertions: &Path,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let mut system = Self::start_collector_of(binaries, state_dir, LOOPBACK, Some(assertions), stop)?;
        system.start_agent(&binaries.agent, "agent", None, &["--netns", "all"])?;
        system.wait_for_agents(stop)?;
        Ok(system)
    }

    /// Starts a collector with a store of its own in this folder.
    fn start_collector_of(
        binaries: &Binaries,
        state_dir: &Path,
        address: IpAddr,
        assertions: Option<&Path>,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let store = format!("embedded:{}", state_dir.join("data").display());
        Self::start_collector(binaries, state_dir, address, &store, assertions, stop)
    }

    fn wait_for_agents(&mut self, stop: &AtomicBool) -> anyhow::Result<()> {
        let expected = self.agents.len();
        self.wait("every agent is connected", stop, |system| {
            system.connected_agents() >= Some(expected)
        })
    }

    /// Starts a collector alone, and returns once it answers. `store` is what its `--store` takes.
    pub(crate) fn start_collector(
        binaries: &Binaries,
        state_dir: &Path,
        address: IpAddr,
        store: &str,
        assertions: Option<&Path>,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let mut attempts = 1;
        loop {
            let listen = free_port(address, COLLECTOR_PORT)?;
            let web = free_port(LOOPBACK, WEB_PORT)?;
            let started = Self::start_collector_at(listen, web, binaries, state_dir, store, assertions, stop);
            // Another program may take a port between our look at it and the collector's start.
            let is_taken = [listen, web].iter().any(|&port| TcpListener::bind(port).is_err());
            if started.is_ok() || !is_taken || attempts == PORT_ATTEMPTS {
                return started;
            }
            attempts += 1;
        }
    }

    fn start_collector_at(
        listen: SocketAddr,
        web: SocketAddr,
        binaries: &Binaries,
        state_dir: &Path,
        store: &str,
        assertions: Option<&Path>,
        stop: &AtomicBool,
    ) -> anyhow::Result<Self> {
        let logs = state_dir.join("log");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let started_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();

        let mut arguments: Vec<String> = [
            "serve",
            "--listen",
            &listen.to_string(),
            "--web",
            &web.to_string(),
            "--store",
            store,
        ]
        .map(str::to_owned)
        .into();
        if let Some(folder) = assertions {
            arguments.extend(["--assertions".to_owned(), folder.display().to_string()]);
        }
        let place = Place {
            netns: None,
            log: Some(logs.join("collector.log")),
            ..Place::default()
        };
        let collector = Service::start("collector", &binaries.holdfast, &arguments, place)?;

        let mut system = Self {
            view: None,
            traffic: Vec::new(),
            agents: Vec::new(),
            collector,
            holdfast: binaries.holdfast.clone(),
            state_dir: state_dir.to_owned(),
            listen,
            web,
            started_ns,
        };
        system.wait("the collector answers", stop, |system| {
            system.get("/healthz").is_some()
        })?;
        Ok(system)
    }

    fn start_agent(
        &mut self,
        program: &Path,
        name: &str,
        netns: Option<&str>,
        settings: &[&str],
    ) -> anyhow::Result<()> {
        let collector = self.url();
        // What it keeps from one start to the next stays with the rest of our data.
        let state = self.state_dir.join("agents").join(name).display().to_string();
        let arguments: Vec<String> = ["run", "--collector", &collector, "--state", &state]
            .iter()
            .chain(settings)
            .map(|&word| word.to_owned())
            .collect();
        let place = self.place(name, netns);
        self.agents
            .push(Service::start(name, program, &arguments, place)?);
        Ok(())
    }

    pub(super) fn start_traffic(&mut self, lab: Option<&Lab>, heavy: bool) -> anyhow::Result<()> {
        let Some(lab) = lab else {
            let server = free_port(LOOPBACK, HTTP_PORT)?;
            let closed = free_port(LOOPBACK, CLOSED_PORT)?;
            let mut arguments = vec![("--serve", server), ("--fetch", server), ("--refused", closed)];
            if heavy {
                let loaded = SocketAddr::from((LOOPBACK, LOAD_PORT));
                arguments.extend([("--serve", loaded), ("--load", loaded)]);
            }
            return self.start_generator("traffic", None, &arguments, LOAD_RATE);
        };

        let (web, clients) = lab.nodes().split_first().context("a lab has nodes")?;
        let at_web = |port| SocketAddr::from((web.address, port));
        let (server, closed, loaded) = (at_web(HTTP_PORT), at_web(CLOSED_PORT), at_web(LOAD_PORT));
        self.start_generator(
            &format!("{} traffic", web.name),
            Some(web.netns.name()),
            &[("--serve", server), ("--serve", loaded)],
            0,
        )?;
        for client in clients {
            let mut arguments = vec![
                ("--fetch", server),
                ("--refused", closed),
                ("--silent", lab.silent()),
            ];
            if heavy {
                arguments.push(("--load", loaded));
            }
            self.start_generator(
                &format!("{} traffic", client.name),
                Some(client.netns.name()),
                &arguments,
                LOAD_RATE / clients.len(),
            )?;
        }
        Ok(())
    }

    fn start_generator(
        &mut self,
        name: &str,
        netns: Option<&str>,
        work: &[(&str, SocketAddr)],
        rate: usize,
    ) -> anyhow::Result<()> {
        let program = workspace::own_program()?;
        let mut arguments = vec!["traffic".to_owned(), "--rate".to_owned(), rate.to_string()];
        arguments.extend(
            work.iter()
                .flat_map(|(flag, address)| [(*flag).to_owned(), address.to_string()]),
        );
        let place = self.place(name, netns);
        self.traffic
            .push(Service::start(name, &program, &arguments, place)?);
        Ok(())
    }

    /// A service's log has the service's name.
    fn place<'a>(&self, service: &str, netns: Option<&'a str>) -> Place<'a> {
        let log = self
            .state_dir
            .join("log")
            .join(service.replace(' ', "-"))
            .with_extension("log");
        Place {
            netns,
            log: Some(log),
            ..Place::default()
        }
    }

    /// Prints what runs, and how to ask it.
    pub(super) fn introduce(&self) {
        let holdfast = self.holdfast.display();
        let flag = if self.listen == SocketAddr::from((LOOPBACK, COLLECTOR_PORT)) {
            String::new()
        } else {
            format!(" --collector {}", self.url())
        };
        eprintln!(
            "\ncollector  {}   metrics http://{}/metrics",
            self.url(),
            self.web
        );
        eprintln!(
            "data       {}   logs {}",
            self.state_dir.join("data").display(),
            self.state_dir.join("log").display()
        );
        for service in self.agents.iter().chain(&self.traffic) {
            eprintln!("running    {} (process {})", service.name(), service.pid());
        }
        eprintln!(
            "ask        {holdfast} sql{flag} \"SELECT role, outcome, count() FROM attempts GROUP BY ALL\"\n"
        );
    }

    /// Shows connections as they finish.
    pub(super) fn follow(&mut self, heavy: bool) -> anyhow::Result<()> {
        let mut arguments = vec!["connections".to_owned(), "--follow".to_owned()];
        arguments.extend(["--collector".to_owned(), self.url()]);
        if heavy {
            eprintln!(
                "(the connections of the load, port {LOAD_PORT}, are stored and counted, but not listed)"
            );
            let filter = format!("local_port != {LOAD_PORT} and remote_port != {LOAD_PORT}");
            arguments.extend(["--where".to_owned(), filter]);
        }
        self.view = Some(Service::start(
            "live view",
            &self.holdfast,
            &arguments,
            Place::default(),
        )?);
        Ok(())
    }

    /// Why one of the services ended, if one has.
    pub(super) fn ended(&mut self) -> Option<String> {
        let services = [&mut self.collector]
            .into_iter()
            .chain(&mut self.agents)
            .chain(&mut self.traffic);
        services.chain(&mut self.view).find_map(Service::ended)
    }

    /// One line about this run so far.
    pub(super) fn totals(&self) -> anyhow::Result<String> {
        let since = self.since();
        let rows = self.ask(&format!(
            "SELECT (SELECT count() FROM attempts WHERE opened_at >= {since}) AS attempts, \
             (SELECT count() FROM connections WHERE closed_at >= {since}) AS finished"
        ))?;
        let row = rows.first().context("no totals")?;
        let losses = self.losses()?;
        Ok(format!(
            "{} attempts, {} finished ends; {losses}",
            show(row, "attempts"),
            show(row, "finished")
        ))
    }

    /// Stops everything, in the order in which nothing that was seen gets lost, and prints the summary.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.stop_observers()?;
        self.summarise()?;
        self.stop_collector()
    }

    /// Stops everything without a summary.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.stop_observers()?;
        self.stop_collector()
    }

    fn stop_observers(&mut self) -> anyhow::Result<()> {
        for service in self.traffic.drain(..) {
            service.stop()?;
        }
        for agent in self.agents.drain(..) {
            let name = agent.name().to_owned();
            let status = agent.stop()?;
            ensure!(
                status.success(),
                "{name} did not end well ({status}); see {}",
                self.state_dir.display()
            );
        }
        // The view goes last: what the agents had left is shown too.
        self.view.take().map_or(Ok(()), |view| view.stop().map(drop))
    }

    fn stop_collector(self) -> anyhow::Result<()> {
        let status = self.collector.stop()?;
        ensure!(
            status.success(),
            "the collector did not end well ({status}); see {}",
            self.state_dir.display()
        );
        Ok(())
    }

    fn summarise(&self) -> anyhow::Result<()> {
        let since = self.since();
        let rows = self.ask(&format!(
            "SELECT toString(role) AS role, toString(outcome) AS outcome, \
             countIf(opened_at >= {since}) AS now, count() AS all \
             FROM attempts GROUP BY role, outcome ORDER BY role, now DESC"
        ))?;
        println!(
            "\n{:10} {:12} {:>12} {:>12}",
            "role", "outcome", "this run", "in all"
        );
        for row in &rows {
            let column = |name| show(row, name);
            println!(
                "{:10} {:12} {:>12} {:>12}",
                column("role"),
                column("outcome"),
                column("now"),
                column("all")
            );
        }
        println!("{}", self.losses()?);
        Ok(())
    }

    /// What the agents of this run counted as not stored.
    fn losses(&self) -> anyhow::Result<String> {
        let rows = self.ask(&format!(
            "SELECT sum(lost) AS lost, sum(dropped) AS dropped, sum(refused) AS refused, \
             sum(untracked) AS untracked FROM ledger WHERE stream = 'connections' AND observed_at >= {}",
            self.since()
        ))?;
        let row = rows.first().context("no ledger")?;
        let words =
            ["lost", "dropped", "refused", "untracked"].map(|name| format!("{name} {}", show(row, name)));
        Ok(words.join(", "))
    }

    /// CPU time that the processes have used so far.
    pub(crate) fn cpu(&self) -> anyhow::Result<Cpu> {
        let agents = self.agents.iter().map(Service::cpu).sum::<anyhow::Result<_>>()?;
        Ok(Cpu {
            agents,
            collector: self.collector.cpu()?,
        })
    }

    /// Memory that the agents occupy now.
    pub(crate) fn agents_resident_bytes(&self) -> anyhow::Result<u64> {
        self.agents.iter().map(Service::resident_bytes).sum()
    }

    /// The last line that a command of the collector prints as JSON, whatever it says by its exit code.
    ///
    /// # Errors
    /// If it prints none.
    pub(crate) fn command(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let output = Command::new(&self.holdfast)
            .args(arguments)
            .args(["--json", "--collector", &self.url()])
            .output()
            .with_context(|| format!("cannot run {}", self.holdfast.display()))?;
        let text = String::from_utf8(output.stdout)?;
        let Some(last) = text.lines().last() else {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        };
        serde_json::from_str(last).with_context(|| format!("not JSON: {last}"))
    }

    /// The one number that a query gives.
    pub(crate) fn number(&self, sql: &str) -> anyhow::Result<u64> {
        let rows = self.ask(sql)?;
        let value = rows
            .first()
            .and_then(Value::as_object)
            .and_then(|row| row.values().next());
        let value = value.with_context(|| format!("no row: {sql}"))?;
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        number.with_context(|| format!("{value} is not a number: {sql}"))
    }

    fn since(&self) -> String {
        format!("fromUnixTimestamp64Nano(toInt64({}))", self.started_ns)
    }

    /// The collector's process.
    pub(crate) fn collector(&mut self) -> &mut Service {
        &mut self.collector
    }

    /// Where the collector listens for agents.
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }

    fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    fn ask(&self, sql: &str) -> anyhow::Result<Vec<Value>> {
        let url = self.url();
        let output = Command::new(&self.holdfast)
            .args(["sql", sql, "--format", "JSONEachRow", "--collector", &url])
            .output()
            .with_context(|| format!("cannot run {}", self.holdfast.display()))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8(output.stdout)?;
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    fn connected_agents(&self) -> Option<usize> {
        let metrics = self.get("/metrics")?;
        metrics
            .lines()
            .find_map(|line| line.strip_prefix("holdfast_agents_connected "))?
            .parse()
            .ok()
    }

    /// The body of a successful answer from the collector's web port.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.web, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.web
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    fn wait(&mut self, what: &str, stop: &AtomicBool, is_so: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let started = Instant::now();
        while !is_so(self) {
            if let Some(why) = self.ended() {
                bail!(why);
            }
            ensure!(
                !stop.load(Ordering::Relaxed),
                "interrupted while waiting until {what}"
            );
            ensure!(
                started.elapsed() < START_PATIENCE,
                "gave up waiting until {what} after {}; see {}",
                span::show(START_PATIENCE),
                self.state_dir.join("log").display()
            );
            thread::sleep(START_TICK);
        }
        Ok(())
    }
}

/// The preferred port if nobody has it, else any that is free.
fn free_port(address: IpAddr, preferred: u16) -> anyhow::Result<SocketAddr> {
    let is_free = |port| TcpListener::bind((address, port)).and_then(|listener| listener.local_addr());
    let found = is_free(preferred)
        .or_else(|_| is_free(0))
        .with_context(|| format!("no free port on {address}"))?;
    if found.port() != preferred {
        eprintln!("port {preferred} is taken; using {} instead", found.port());
    }
    Ok(found)
}

/// A column as text. ClickHouse writes 64-bit numbers as JSON strings or numbers, by its settings.
fn show(row: &Value, column: &str) -> String {
    match row.get(column) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => "?".to_owned(),
    }
}
