//! What is tortured: nodes made of network namespaces, each with a real agent that is confined to it, joined by a
//! bridge to the collector in a namespace of its own; every agent's spool and the store on a small disk of their own.
//! And what can be done to it. What anyone does here can be undone, and everything goes when this goes out of scope.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::faults::{Stage, Victim, What};
use super::volume::Volume;
use crate::netns::Netns;
use crate::process::{Place, Service};

/// The bench network of RFC 2544, and hosts in it. Nothing leaves the namespaces, so every run uses the same.
const NETWORK: [u8; 3] = [198, 18, 0];
const HUB_HOST: u8 = 1;
const FIRST_NODE_HOST: u8 = 10;
/// Hardware addresses: of a host, and of nobody.
const MAC_PREFIX: &str = "02:00:00:00:00";
const NOBODY_MAC: &str = "02:00:00:00:ff:ff";
/// The collector's port for agents and questions, and the engine's, where it is a process of its own.
const COLLECTOR_PORT: u16 = 7443;
const ENGINE_PORT: u16 = 8123;
/// Whom the engine lets in, as its source says.
const ENGINE_USER: &str = "tester:s3cret%2F%40";
/// The disk of an agent's spool: a storm writes a fraction of it, so it is full only when it is made full.
const SPOOL_MIB: u32 = 24;
/// The disk of the store: the engine alone takes some tens of MiB.
const STORE_MIB: u32 = 512;
/// One node's ring is so small that a pause of a few seconds makes it overflow.
const SMALL_RING: &str = "256KiB";
/// TIME_WAITs that a node keeps: each takes a port, and a connect() that finds none is no attempt by the kernel's
/// counters.
const TIME_WAITS: &str = "2000";
/// How long opening the store and connecting may take on a machine that is all busy.
const START_PATIENCE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(50);
/// What an agent logs once its programs see connections.
const WATCHING: &str = "watching TCP connections";

/// What is run.
pub(super) struct Programs {
    pub(super) agent: PathBuf,
    pub(super) holdfast: PathBuf,
    /// Makes the connections.
    pub(super) load: PathBuf,
    /// ClickHouse as a process of its own; without it the collector has the engine inside.
    pub(super) engine: Option<PathBuf>,
}

/// Dropped from top to bottom: first what runs, then what it runs in.
pub(super) struct World {
    nodes: Vec<Node>,
    collector: Part,
    engine: Option<Part>,
    store: Volume,
    hub: Netns,
    holdfast: PathBuf,
    load: PathBuf,
}

struct Node {
    load: Option<Service>,
    agent: Part,
    spool: Volume,
    /// Holds how far the agent's clock is ahead, in nanoseconds.
    clock: PathBuf,
    /// The hub's end of the cable.
    port: String,
    host: u8,
    netns: Netns,
    inode: u64,
}

/// A process that can be killed and started again.
struct Part {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    netns: String,
    log: PathBuf,
    running: Option<Service>,
}

impl Part {
    fn start(&mut self) -> anyhow::Result<()> {
        if self.running.is_none() {
            let place = Place {
                netns: Some(&self.netns),
                log: Some(self.log.clone()),
                continues_log: true,
            };
            self.running = Some(Service::start(&self.name, &self.program, &self.arguments, place)?);
        }
        Ok(())
    }

    /// Whether there was something to kill.
    fn kill(&mut self) -> anyhow::Result<bool> {
        let Some(service) = self.running.take() else {
            return Ok(false);
        };
        service.kill()?;
        Ok(true)
    }

    /// Whether there was something to pause.
    fn pause(&self) -> anyhow::Result<bool> {
        self.running
            .as_ref()
            .map_or(Ok(false), |service| service.pause().map(|()| true))
    }

    /// How it ended, if it did by itself.
    fn ended(&mut self) -> Option<String> {
        let how = self.running.as_mut()?.ended()?;
        self.running = None;
        Some(how)
    }
}

impl World {
    /// Builds everything and starts it; returns once every agent watches and the collector answers.
    pub(super) fn create(programs: &Programs, folder: &Path, nodes: usize) -> anyhow::Result<Self> {
        let logs = folder.join("log");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let hub = Netns::create("hub")?;
        hub.ip(&["link", "add", "br0", "address", &mac(HUB_HOST), "type", "bridge"])?;
        hub.ip(&["address", "add", &format!("{}/24", host(HUB_HOST)), "dev", "br0"])?;
        hub.ip(&["link", "set", "br0", "up"])?;

        let store = Volume::mount(&folder.join("store"), STORE_MIB)?;
        let in_hub = |name: &str, program: &Path, arguments: Vec<String>| Part {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments,
            netns: hub.name().to_owned(),
            log: logs.join(name).with_extension("log"),
            running: None,
        };
        let engine_at = format!("127.0.0.1:{ENGINE_PORT}");
        let engine = programs.engine.as_deref().map(|program| {
            in_hub(
                "engine",
                program,
                vec![store.path().display().to_string(), engine_at.clone()],
            )
        });
        let url = match &engine {
            Some(_) => format!("http://{ENGINE_USER}@{engine_at}/holdfast"),
            None => format!("embedded:{}", store.path().display()),
        };
        let listen = format!("0.0.0.0:{COLLECTOR_PORT}");
        let arguments = [
            "serve",
            "--listen",
            &listen,
            "--web",
            "127.0.0.1:7070",
            "--store",
            &url,
        ];
        let collector = in_hub(
            "collector",
            &programs.holdfast,
            arguments.map(str::to_owned).into(),
        );
        let nodes = (0..nodes)
            .map(|index| Node::create(index, &hub, &programs.agent, folder, &logs))
            .collect::<anyhow::Result<_>>()?;
        let mut world = Self {
            nodes,
            collector,
            engine,
            store,
            hub,
            holdfast: programs.holdfast.clone(),
            load: programs.load.clone(),
        };
        world.engine.as_mut().map_or(Ok(()), Part::start)?;
        world.collector.start()?;
        for node in &mut world.nodes {
            node.agent.start()?;
        }
        world.wait_for("every agent watches and the collector answers", |world| {
            let watches =
                |node: &Node| fs::read_to_string(&node.agent.log).is_ok_and(|log| log.contains(WATCHING));
            world.nodes.iter().all(watches) && world.ask("SELECT 1").is_ok()
        })?;
        Ok(world)
    }

    pub(super) fn stage(&self) -> Stage {
        Stage {
            nodes: self.nodes.len(),
            has_engine: self.engine.is_some(),
        }
    }

    /// Starts the connections: so many a second on each node.
    pub(super) fn start_load(&mut self, rate: u32, seed: u64, logs: &Path) -> anyhow::Result<()> {
        let addresses: Vec<String> = self
            .nodes
            .iter()
            .map(|node| host(node.host).to_string())
            .collect();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let seed = seed.wrapping_add(index as u64 * 1_000).to_string();
            let mut arguments = vec!["strain".to_owned(), "--rate".to_owned(), rate.to_string()];
            arguments.extend(["--seed".to_owned(), seed]);
            for (_, peer) in addresses.iter().enumerate().filter(|(peer, _)| *peer != index) {
                arguments.extend(["--peer".to_owned(), peer.clone()]);
            }
            let name = format!("load-{}", index + 1);
            let place = Place {
                netns: Some(node.netns.name()),
                log: Some(logs.join(&name).with_extension("log")),
                ..Place::default()
            };
            node.load = Some(Service::start(&name, &self.load, &arguments, place)?);
        }
        Ok(())
    }

    /// Ends the connections; an error if any of the generators had ended by itself.
    pub(super) fn stop_load(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(mut load) = node.load.take() {
                if let Some(how) = load.ended() {
                    bail!(how);
                }
                load.stop()?;
            }
        }
        Ok(())
    }

    /// Lets something go wrong; tells whether it did: what is not there can be neither killed nor paused.
    pub(super) fn strike(&mut self, what: What) -> anyhow::Result<bool> {
        match what {
            What::Kill(victim) => self.part(victim).map_or(Ok(false), Part::kill),
            What::Pause(victim) => self.part(victim).map_or(Ok(false), |part| part.pause()),
            What::CutOff(node) => self.set_link(node, "down").map(|()| true),
            What::Mute(node) => {
                let node = &self.nodes[node];
                redirect(&node.netns, "eth0", HUB_HOST, NOBODY_MAC).map(|()| true)
            }
            What::Deafen(node) => {
                redirect(&self.hub, "br0", self.nodes[node].host, NOBODY_MAC).map(|()| true)
            }
            What::FillSpool(node) => self.nodes[node].spool.fill().map(|()| true),
            What::FillStore => self.store.fill().map(|()| true),
            What::SetClock(node, ahead_ns) => self.nodes[node].set_clock(ahead_ns).map(|()| true),
        }
    }

    /// Mends what a strike broke. What is well already stays well.
    pub(super) fn mend(&mut self, what: What) -> anyhow::Result<()> {
        match what {
            What::Kill(victim) => self.part(victim).map_or(Ok(()), Part::start),
            What::Pause(victim) => {
                let running = self.part(victim).and_then(|part| part.running.as_ref());
                running.map_or(Ok(()), Service::resume)
            }
            What::CutOff(node) => self.set_link(node, "up"),
            What::Mute(node) => redirect(&self.nodes[node].netns, "eth0", HUB_HOST, &mac(HUB_HOST)),
            What::Deafen(node) => {
                let host = self.nodes[node].host;
                redirect(&self.hub, "br0", host, &mac(host))
            }
            What::FillSpool(node) => self.nodes[node].spool.free(),
            What::FillStore => self.store.free(),
            What::SetClock(..) => Ok(()),
        }
    }

    /// Mends everything that may be broken, whoever did it.
    pub(super) fn mend_all(&mut self) -> anyhow::Result<()> {
        let nodes = 0..self.nodes.len();
        self.mend(What::FillStore)?;
        for node in nodes.clone() {
            for what in [
                What::CutOff(node),
                What::Mute(node),
                What::Deafen(node),
                What::FillSpool(node),
            ] {
                self.mend(what)?;
            }
        }
        let agents = nodes.map(Victim::Agent);
        for victim in [Victim::Engine, Victim::Collector].into_iter().chain(agents) {
            self.mend(What::Pause(victim))?;
            self.mend(What::Kill(victim))?;
        }
        Ok(())
    }

    /// Which processes ended without having been killed, and how.
    pub(super) fn ended(&mut self) -> Vec<(Victim, String)> {
        let collector = self.collector.ended().map(|how| (Victim::Collector, how));
        let engine = self
            .engine
            .as_mut()
            .and_then(Part::ended)
            .map(|how| (Victim::Engine, how));
        let agents = self.nodes.iter_mut().enumerate();
        let agents = agents.filter_map(|(index, node)| Some((Victim::Agent(index), node.agent.ended()?)));
        collector.into_iter().chain(engine).chain(agents).collect()
    }

    /// The connection ends that the kernel counted in a node's namespace since it was made.
    pub(super) fn opens(&self, node: usize) -> anyhow::Result<u64> {
        let output = self.nodes[node]
            .netns
            .command(Path::new("cat"))
            .arg("/proc/net/snmp")
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (tcp.next().unwrap_or_default(), tcp.next().unwrap_or_default());
        let counters = names.split(' ').zip(values.split(' '));
        let found: Vec<u64> = counters
            .filter(|(name, _)| ["ActiveOpens", "PassiveOpens"].contains(name))
            .filter_map(|(_, value)| value.parse().ok())
            .collect();
        ensure!(
            found.len() == 2,
            "cannot read /proc/net/snmp of {}: {text:?}",
            self.nodes[node].netns.name()
        );
        Ok(found.iter().sum())
    }

    /// The start of a node's agent that began last, by its log.
    pub(super) fn epoch(&self, node: usize) -> anyhow::Result<u64> {
        let log = &self.nodes[node].agent.log;
        let text = fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
        let start = text.lines().rfind(|line| line.contains(WATCHING));
        let words = start.and_then(|line| line.split("epoch=").nth(1)?.split(' ').next()?.parse().ok());
        words.with_context(|| format!("{} names no epoch", log.display()))
    }

    /// What a node's agent is called.
    pub(super) fn name(&self, node: usize) -> String {
        node_name(node)
    }

    /// The inode of a node's namespace, which its rows carry.
    pub(super) fn inode(&self, node: usize) -> u64 {
        self.nodes[node].inode
    }

    /// The rows that a question is answered with.
    pub(super) fn ask(&self, sql: &str) -> anyhow::Result<Vec<Value>> {
        let output = self
            .command()
            .args(["sql", sql, "--format", "JSONEachRow"])
            .args(self.reach())
            .output()?;
        ensure!(
            output.status.success(),
            "{}, asked: {sql}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8(output.stdout)?;
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// What `holdfast ledger` prints, and whether it says that the ledger closes: not while no agent has reported.
    pub(super) fn ledger(&self) -> anyhow::Result<(bool, String)> {
        let output = self.command().arg("ledger").args(self.reach()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.code() {
            Some(0) => Ok((true, text)),
            Some(1) => Ok((false, text)),
            Some(3) => Ok((false, String::from_utf8_lossy(&output.stderr).into_owned())),
            _ => bail!(
                "holdfast ledger: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        }
    }

    /// Copies what the disks hold to where it stays.
    pub(super) fn keep(&self, folder: &Path) -> anyhow::Result<()> {
        self.store.keep(&folder.join("kept-store"))?;
        for (index, node) in self.nodes.iter().enumerate() {
            node.spool
                .keep(&folder.join(format!("kept-agent-{}", index + 1)))?;
        }
        Ok(())
    }

    fn command(&self) -> Command {
        self.hub.command(&self.holdfast)
    }

    fn reach(&self) -> [String; 2] {
        [
            "--collector".to_owned(),
            format!("http://127.0.0.1:{COLLECTOR_PORT}"),
        ]
    }

    fn part(&mut self, victim: Victim) -> Option<&mut Part> {
        match victim {
            Victim::Agent(node) => Some(&mut self.nodes[node].agent),
            Victim::Collector => Some(&mut self.collector),
            Victim::Engine => self.engine.as_mut(),
        }
    }

    fn set_link(&self, node: usize, state: &str) -> anyhow::Result<()> {
        self.hub.ip(&["link", "set", &self.nodes[node].port, state])
    }

    fn wait_for(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let began = Instant::now();
        while !is_so(self) {
            if let Some((_, how)) = self.ended().pop() {
                bail!("while waiting until {what}: {how}");
            }
            ensure!(began.elapsed() < START_PATIENCE, "gave up waiting until {what}");
            thread::sleep(TICK);
        }
        Ok(())
    }
}

impl Node {
    fn create(index: usize, hub: &Netns, agent: &Path, folder: &Path, logs: &Path) -> anyhow::Result<Self> {
        let name = node_name(index);
        let port = format!("port{index}");
        let number = FIRST_NODE_HOST + index as u8;
        let netns = Netns::create(&name)?;
        let inode = fs::metadata(format!("/run/netns/{}", netns.name()))?.ino();
        let cable = [
            "link",
            "add",
            "eth0",
            "address",
            &mac(number),
            "type",
            "veth",
            "peer",
            "name",
            &port,
        ];
        netns.ip(&[&cable[..], &["netns", hub.name()]].concat())?;
        hub.ip(&["link", "set", &port, "master", "br0", "up"])?;
        netns.ip(&["address", "add", &format!("{}/24", host(number)), "dev", "eth0"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.set("net/ipv4/tcp_max_tw_buckets", TIME_WAITS)?;
        // Both know each other without asking, so that a way that is mended is a way at once.
        redirect(&netns, "eth0", HUB_HOST, &mac(HUB_HOST))?;
        redirect(hub, "br0", number, &mac(number))?;

        let spool = Volume::mount(&folder.join(format!("agent-{}", index + 1)), SPOOL_MIB)?;
        let clock = folder.join(format!("clock-{}", index + 1));
        let ring = if index == 0 { SMALL_RING } else { "8MiB" };
        let arguments = [
            &format!("HOLDFAST_CLOCK_FILE={}", clock.display()),
            &agent.display().to_string(),
            "run",
            "--collector",
            &format!("http://{}:{COLLECTOR_PORT}", host(HUB_HOST)),
            "--name",
            &name,
            "--netns",
            "self",
            "--ring",
            ring,
            // Every row is judged: none may be given up because the machine is busy.
            "--max-cpu",
            "off",
            "--state",
            &spool.path().display().to_string(),
        ];
        let agent = Part {
            name: format!("agent-{}", index + 1),
            program: "env".into(),
            arguments: arguments.map(str::to_owned).into(),
            netns: netns.name().to_owned(),
            log: logs.join(format!("agent-{}.log", index + 1)),
            running: None,
        };
        Ok(Self {
            load: None,
            agent,
            spool,
            clock,
            port,
            host: number,
            netns,
            inode,
        })
    }

    fn set_clock(&self, ahead_ns: i64) -> anyhow::Result<()> {
        // Whole or not at all: the agent reads it all the time.
        let new = self.clock.with_extension("new");
        fs::write(&new, ahead_ns.to_string()).and_then(|()| fs::rename(&new, &self.clock))?;
        Ok(())
    }
}

/// Sends what is for a host to a hardware address: its own, or one that nobody has.
fn redirect(from: &Netns, device: &str, number: u8, mac: &str) -> anyhow::Result<()> {
    let address = host(number).to_string();
    from.ip(&[
        "neighbour",
        "replace",
        &address,
        "lladdr",
        mac,
        "dev",
        device,
        "nud",
        "permanent",
    ])
}

fn node_name(index: usize) -> String {
    format!("node-{}", index + 1)
}

fn host(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number)
}

fn mac(number: u8) -> String {
    format!("{MAC_PREFIX}:{number:02x}")
}
