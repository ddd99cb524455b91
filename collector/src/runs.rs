//! Runs: work that several agents begin at one moment, and what came of it.
//!
//! A run is driven by one task. It asks the agents that it chose whether they may and can; when all have said yes, it names
//! the moment to begin; while the run lasts it says ten times a second that it is still wanted, and takes the reports in;
//! at the end, however that came, it judges and stores. All but this file, `runs/known.rs` and `runs/unstored.rs` is pure.

pub mod compare;
pub mod concurrent;
pub mod counts;
pub mod doubts;
pub mod expect;
pub mod known;
pub mod plan;
pub mod result;
pub mod seconds;
pub mod unstored;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_proto::v1::{
    CollectorMessage, LoadCounts, LoadEnd, LoadMesh, LoadPlan, LoadReport, LoadRequest, LoadStage, RunBeat,
    RunBegun, RunEvent, RunOrder, RunProgress, RunReady, RunRelease, RunResult, RunServe, RunStart, RunStop,
    RunUpdate, collector_message, load_plan, run_event, run_order, run_update,
};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tonic::Status;
use tracing::{info, warn};

use crate::clock::WallClock;
use crate::ingest::agent::{Agent, Unwelcome};
use crate::store::runs::{self as store_runs, LoadSample, RunRecord};
use crate::store::{Store, StoreError};
use concurrent::{Concurrent, Source};
use doubts::Doubts;
use expect::Expectation;
use plan::Plan;
use result::{Cause, Connections, Kernel, Outcome, Pair, PartOf, Summary, Times, buckets, decode};
use unstored::Unstored;

/// How long the agents may take to say whether they will.
const REGISTRATION: Duration = Duration::from_secs(5);

/// From the last agent's yes to the common start: longer than an order travels.
const LEAD: Duration = Duration::from_millis(60);

/// How often the agents hear that the run is wanted; they stop after 700 ms without.
const BEAT: Duration = Duration::from_millis(100);

/// An agent that has not reported for so long after its report was due is lost.
const SILENCE: Duration = Duration::from_secs(5);

/// How long the records of the kernel are waited for after the end: where there are none at all, perhaps because the agents see
/// no connections, and where some of them or the causes of failures are still to come.
const KERNEL_PATIENCE: Duration = Duration::from_secs(3);
const KERNEL_COMPLETE: Duration = Duration::from_secs(10);
const KERNEL_PAUSE: Duration = Duration::from_millis(300);

/// How often a collector that stops looks whether its runs have ended.
const ENDED_PAUSE: Duration = Duration::from_millis(20);

/// By how much a clock may part from another in a second while something sets it right: what Linux slews at most (adjtimex(2)), in millionths.
const CLOCK_DRIFT_PPM: u64 = 500;

/// What an agent makes of the kernel's time may be so far from its own clock, in nanoseconds. Two runs are further apart: see [`LEAD`].
const CLOCK_GRAIN_NS: i64 = 10_000_000;

/// Events of each agent that wait for the task of a run: more than a second of reports.
const EVENTS_PER_AGENT: usize = 16;

/// Samples that wait for the store.
const MOST_SAMPLES: usize = 16_384;

/// How long it is known that an agent was turned away, which comes again every 10 s at least; of how many; and how long a node's name
/// may be for that, in bytes.
const TURNED_AWAY: Duration = Duration::from_secs(60);
const MOST_TURNED_AWAY: usize = 64;
const LONGEST_NAME: usize = 256;

/// The end of a run as whoever made it is told.
#[derive(serde::Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    record: &'a RunRecord,
    is_stored: bool,
}

/// The connected agents as runs see them, and the runs that are under way.
#[derive(Default)]
pub struct Runs {
    members: Mutex<HashMap<String, Member>>,
    active: Mutex<HashMap<String, Active>>,
    /// Nodes whose agents were turned away for the version that they speak: when last, and what they were told.
    turned_away: Mutex<BTreeMap<String, (Instant, String)>>,
    /// Ends of runs that wait for the store.
    unstored: Unstored,
}

/// An agent that can be ordered.
#[derive(Clone)]
struct Member {
    agent: Arc<Agent>,
    /// Where its stream comes from, and where it comes to, if it comes over the network.
    remote: Option<IpAddr>,
    local: Option<IpAddr>,
    /// Weak, for a stream ends when nobody can say anything on it any more.
    orders: mpsc::WeakSender<CollectorMessage>,
}

#[derive(Clone)]
struct Active {
    /// With the id of the agent that it is of.
    events: mpsc::Sender<(String, RunEvent)>,
    /// Events that found no place.
    missed: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
}

/// An agent is a member for as long as this lives.
pub struct Membership {
    runs: Arc<Runs>,
    agent: Arc<Agent>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = lock(&self.runs.members);
        let is_own = |member: &mut Member| Arc::ptr_eq(&member.agent, &self.agent);
        if members.get_mut(&self.agent.id).is_some_and(is_own) {
            members.remove(&self.agent.id);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runs {
    /// An agent was welcomed that came from `remote` to `local`, and hears what is sent to `orders`.
    pub fn join(
        self: &Arc<Self>,
        agent: &Arc<Agent>,
        (remote, local): (&str, Option<SocketAddr>),
        orders: &mpsc::Sender<CollectorMessage>,
    ) -> Membership {
        let remote = remote.parse::<SocketAddr>().ok();
        let member = Member {
            agent: agent.clone(),
            remote: remote.map(|remote| remote.ip().to_canonical()),
            local: local.map(|local| local.ip().to_canonical()),
            orders: orders.downgrade(),
        };
        lock(&self.turned_away).remove(&agent.node);
        lock(&self.members).insert(agent.id.clone(), member);
        Membership {
            runs: self.clone(),
            agent: agent.clone(),
        }
    }

    /// An agent said something of a run. What is over is of no interest. Never waits, for the agent's batches come on
    /// the same stream.
    pub fn event(&self, agent: &Agent, event: RunEvent) {
        let active = lock(&self.active).get(&event.run_id).cloned();
        if let Some(active) = active
            && let Err(mpsc::error::TrySendError::Full(_)) = active.events.try_send((agent.id.clone(), event))
        {
            active.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn are_under_way(&self) -> bool {
        !lock(&self.active).is_empty()
    }

    /// Waits until no run is under way: each is stored by then, or never will be.
    pub async fn ended(&self) {
        while self.are_under_way() {
            sleep(ENDED_PAUSE).await;
        }
    }

    /// Stops the run whose id begins so. False if none is under way that does, or several are.
    pub fn stop(&self, run_id: &str) -> bool {
        let active = lock(&self.active);
        let mut found = active
            .iter()
            .filter(|(id, _)| !run_id.is_empty() && id.starts_with(run_id));
        match (found.next(), found.next()) {
            (Some((_, active)), None) => active.stop.send(true).is_ok(),
            _ => false,
        }
    }

    /// An agent speaks another version: whoever misses it is told which side to upgrade. Its node's name was not looked at yet.
    pub fn turned_away(&self, node: String, unwelcome: &Unwelcome) {
        let mut turned_away = lock(&self.turned_away);
        turned_away.retain(|_, (at, _)| at.elapsed() < TURNED_AWAY);
        let is_name = node.len() <= LONGEST_NAME && !node.chars().any(char::is_control);
        let has_room = turned_away.len() < MOST_TURNED_AWAY || turned_away.contains_key(&node);
        if is_name && has_room {
            turned_away.insert(node, (Instant::now(), unwelcome.to_string()));
        }
    }

    /// A failure to find agents, with those of these nodes, or of any, that came and were turned away.
    fn missing(&self, reason: String, nodes: &[String]) -> Status {
        let mut reason = reason;
        for (node, (at, why)) in &*lock(&self.turned_away) {
            if at.elapsed() < TURNED_AWAY && (nodes.is_empty() || nodes.contains(node)) {
                reason += &format!("{BELOW}{node} was turned away: {why}");
            }
        }
        Status::failed_precondition(reason)
    }

    /// The agents that a run is for, by node.
    fn chosen(&self, request: &LoadRequest) -> Result<Vec<Member>, Status> {
        let mut members: Vec<Member> = lock(&self.members).values().cloned().collect();
        members.sort_by(|one, other| {
            (&one.agent.node, &one.agent.id).cmp(&(&other.agent.node, &other.agent.id))
        });
        for node in &request.nodes {
            if !members.iter().any(|member| member.agent.node == *node) {
                let reason =
                    format!("no agent of a node {node} is connected to this collector; {WHERE_AGENTS_ARE}");
                return Err(self.missing(reason, std::slice::from_ref(node)));
            }
        }
        members.retain(|member| {
            let agent = &member.agent;
            let is_named = request.nodes.is_empty() || request.nodes.contains(&agent.node);
            is_named
                && request
                    .labels
                    .iter()
                    .all(|(key, value)| agent.labels.get(key) == Some(value))
        });
        if let Some(mesh) = &request.mesh {
            return of_mesh(members, mesh).map_err(|status| self.missing(status.message().to_owned(), &[]));
        }
        let wanted = request.agents as usize;
        if members.is_empty() || members.len() < wanted {
            let labels: Vec<_> = request
                .labels
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            let of_which = if labels.is_empty() {
                String::new()
            } else {
                format!(" with {}", labels.join(","))
            };
            let reason = format!(
                "{} agents{of_which} are connected and {} are needed; {WHERE_AGENTS_ARE}",
                members.len(),
                wanted.max(1)
            );
            return Err(self.missing(reason, &request.nodes));
        }
        if wanted > 0 {
            members.truncate(wanted);
        }
        Ok(members)
    }
}

/// Before what is told in a line of its own, below how the command begins.
const BELOW: &str = "\n          ";

/// The next step of whoever misses agents. A collector that has just begun is dialled again after 15 s at most.
const WHERE_AGENTS_ARE: &str =
    "holdfast nodes lists them, and those that lost their collector are back within 15 s";

/// A node, and the version of its agent where that is not the collector's: what one of them asks for the other may not know.
fn in_words(agent: &Agent) -> String {
    let own = env!("CARGO_PKG_VERSION");
    if agent.version == own {
        return agent.node.clone();
    }
    format!(
        "{} (its agent is {:?} and this collector {own:?}: upgrade the older one)",
        agent.node, agent.version
    )
}

/// Most agents of a mesh: each makes load to every other, and the pairs are their square.
const MOST_OF_MESH: usize = 64;

/// Those of the groups, of which each has one at least.
fn of_mesh(mut members: Vec<Member>, mesh: &LoadMesh) -> Result<Vec<Member>, Status> {
    let group = |member: &Member| member.agent.labels.get(&mesh.label).cloned();
    members.retain(|member| group(member).is_some_and(|group| mesh.groups.contains(&group)));
    for wanted in &mesh.groups {
        if !members
            .iter()
            .any(|member| group(member).as_ref() == Some(wanted))
        {
            return Err(Status::failed_precondition(format!(
                "no connected agent has the label {}={wanted}; holdfast nodes lists them",
                mesh.label
            )));
        }
    }
    match members.len() {
        2..=MOST_OF_MESH => Ok(members),
        number => Err(Status::failed_precondition(format!(
            "{number} agents are of these groups: a mesh has from 2 to {MOST_OF_MESH}"
        ))),
    }
}

/// Where others reach the agents of a mesh, each at the address that its stream comes from. One that is beside the collector comes
/// from its loopback, where only others there find it: it is where those from elsewhere reach the collector.
fn addresses(members: &[&Member]) -> Result<Vec<IpAddr>, Status> {
    let is_beside = |member: &Member| member.remote.is_some_and(|remote| remote.is_loopback());
    let are_all_beside = members.iter().all(|member| is_beside(member));
    let from_elsewhere = members.iter().filter(|member| !is_beside(member));
    let reached: BTreeSet<IpAddr> = from_elsewhere.filter_map(|member| member.local).collect();
    members
        .iter()
        .map(|member| {
            let remote = member.remote.filter(|_| are_all_beside || !is_beside(member));
            remote.map_or_else(|| beside(&member.agent, &reached), Ok)
        })
        .collect()
}

/// The address of an agent on the collector's host, which others reach at `reached`.
fn beside(agent: &Agent, reached: &BTreeSet<IpAddr>) -> Result<IpAddr, Status> {
    let is_of_network = |address: &IpAddr| {
        let is_of_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        !address.is_loopback() && !is_of_link
    };
    let own = agent.addresses.iter();
    let own = own.filter_map(|address| Some(address.parse::<IpAddr>().ok()?.to_canonical()));
    let own: BTreeSet<IpAddr> = own.filter(is_of_network).collect();
    // A collector behind a forwarded port is reached at addresses that are not the host's.
    let both: BTreeSet<IpAddr> = own.intersection(reached).copied().collect();
    let only = |addresses: &BTreeSet<IpAddr>| addresses.first().copied().filter(|_| addresses.len() == 1);
    only(&both).or_else(|| only(&own)).ok_or_else(|| {
        let candidates = if both.is_empty() { &own } else { &both };
        let candidates: Vec<String> = candidates.iter().map(ToString::to_string).collect();
        let candidates = match candidates.as_slice() {
            [] => "it named none but the loopback's".to_owned(),
            some => format!("it may be any of {}", some.join(", ")),
        };
        Status::failed_precondition(format!(
            "nobody knows at which address the others reach {}, whose agent dials the collector over the loopback: {candidates}; let it \
             dial by the address that the others reach (--collector of the agent)",
            agent.node
        ))
    })
}

/// What a run needs beside its agents.
pub struct Desk {
    pub runs: Arc<Runs>,
    pub store: Arc<dyn Store>,
    pub clock: WallClock,
    /// True once the collector stops: a run ends with what there is.
    pub stopping: watch::Receiver<bool>,
}

/// The part of one agent.
struct Part {
    member: Member,
    ready: Option<RunReady>,
    /// The CRC-32 of the plan that it was sent.
    plan_crc32: u32,
    last_heard: Instant,
    open: u64,
    most_open: u64,
    concurrent: Concurrent,
    cpu_ns: u64,
    first_ns: u64,
    /// What it alone reported.
    counts: LoadCounts,
    lateness: hdrhistogram::Histogram<u64>,
    /// Where the others of a mesh reach it.
    address: Option<SocketAddr>,
    /// What it does to each other of a mesh; else what it does to all targets.
    toward: Vec<Toward>,
    /// Why it ended before its part was done.
    trouble: String,
    /// Nothing more comes of it.
    is_over: bool,
    /// Nor is it a target of the others of a mesh any more, against the run's will.
    is_gone: bool,
}

/// What one agent does to one target, or to all that are not told apart.
#[derive(Default)]
struct Toward {
    /// The node and where it was reached; empty where targets are not told apart.
    node: String,
    address: String,
    /// Before the report that ended it, when its connections are closed; absent: that one was the only one.
    open: Option<u64>,
    said: Source,
    cpu_ns: u64,
    /// Of the generator's threads, where something waits for answers.
    watched_ns: u64,
    saturated_ns: u64,
    lacks_handshakes: bool,
    is_over: bool,
    counts: LoadCounts,
    /// Of these, what counts only if the target was there still.
    doubts: Doubts,
    /// Log buckets of microseconds.
    connect: BTreeMap<u16, u64>,
    network: BTreeMap<u16, u64>,
}

impl Toward {
    fn pair(&self, from: &str) -> Pair {
        let times = |buckets: &BTreeMap<u16, u64>| {
            let buckets: Vec<_> = buckets.iter().map(|(bucket, count)| (*bucket, *count)).collect();
            Times::of_buckets(&buckets)
        };
        Pair {
            from: from.to_owned(),
            to: self.node.clone(),
            address: self.address.clone(),
            counts: result::known(counts::named(&self.counts), self.lacks_handshakes),
            connect: times(&self.connect),
            network: times(&self.network),
            is_over: self.is_over,
        }
    }
}

impl Part {
    fn node(&self) -> &str {
        &self.member.agent.node
    }

    /// It is gone; gives its node.
    fn lose(&mut self) -> String {
        self.is_over = true;
        self.is_gone = true;
        self.trouble = "was lost in the middle".to_owned();
        self.node().to_owned()
    }

    /// All that it does to whatever target, added up.
    fn sum(&self, of: fn(&Toward) -> u64) -> u64 {
        self.toward.iter().map(of).fold(0, u64::saturating_add)
    }

    /// Asks it whether it may and can.
    fn prepare(&mut self, run_id: &str, plan: LoadPlan) {
        self.plan_crc32 = crc32fast::hash(&plan.encode_to_vec());
        self.order(run_id, run_order::Order::Prepare(plan));
    }

    /// False if the agent is gone. One that does not read is told the next time.
    fn order(&self, run_id: &str, order: run_order::Order) -> bool {
        let Some(orders) = self.member.orders.upgrade() else {
            return false;
        };
        let order = RunOrder {
            run_id: run_id.to_owned(),
            order: Some(order),
        };
        let message = CollectorMessage {
            body: Some(collector_message::Body::Run(order)),
        };
        !matches!(
            orders.try_send(message),
            Err(mpsc::error::TrySendError::Closed(_))
        )
    }
}

/// A run under way.
struct Run<'a> {
    desk: &'a Desk,
    id: String,
    request: LoadRequest,
    plan: LoadPlan,
    expectations: Vec<Expectation>,
    parts: BTreeMap<String, Part>,
    outcome: Outcome,
    /// Recorded since the last update.
    since_update: hdrhistogram::Histogram<u64>,
    samples: Vec<LoadSample>,
    /// Samples that found no place among those that wait.
    samples_dropped: u64,
    sample_blocks: u64,
    /// Events that found no place.
    missed: Arc<AtomicU64>,
    began_at_ns: i64,
    /// How often the agents report.
    interval_ns: u64,
    concurrent: Concurrent,
    most_open: u64,
    open_at_end: Option<u64>,
    /// What ended the run before it was done.
    trouble: Vec<String>,
}

/// Makes a run of load and tells `updates` of it, until it is over. `stop` ends it early, as does a caller that leaves.
///
/// # Errors
/// If it cannot begin, or was stopped before; says why.
pub async fn load(
    desk: &Desk,
    request: LoadRequest,
    stop: impl Future<Output = ()>,
    updates: &mpsc::Sender<Result<RunUpdate, Status>>,
) -> Result<(), Status> {
    let expectations: Result<Vec<_>, _> = request
        .expect
        .iter()
        .map(|text| Expectation::parse(text))
        .collect();
    let expectations = expectations.map_err(Status::invalid_argument)?;
    let plan = request
        .plan
        .clone()
        .ok_or_else(|| Status::invalid_argument("a run without a plan"))?;
    for expectation in &expectations {
        expectation.check(&plan).map_err(Status::invalid_argument)?;
    }
    if request.mesh.is_some() && (plan.http.is_some() || plan.udp.is_some()) {
        return Err(Status::invalid_argument("a mesh is of TCP connections"));
    }
    let members = desk.runs.chosen(&request)?;
    let now_ns = desk.clock.now_ns();
    // Milliseconds, then what tells the runs of one millisecond and of several collectors apart.
    let id = format!(
        "{:x}{:03x}",
        now_ns / 1_000_000,
        (now_ns / 1_000 + i64::from(std::process::id())) & 0xfff
    );
    let of_each = match request.mesh {
        Some(_) => EVENTS_PER_AGENT * members.len(),
        None => EVENTS_PER_AGENT,
    };
    let (events, mut arriving) = mpsc::channel(of_each * members.len());
    let missed = Arc::<AtomicU64>::default();
    let (stopper, mut stopped) = watch::channel(false);
    lock(&desk.runs.active).insert(
        id.clone(),
        Active {
            events,
            missed: missed.clone(),
            stop: stopper,
        },
    );
    let _registered = Registered {
        runs: &desk.runs,
        id: &id,
    };
    let now = Instant::now();
    let part = |member: Member| Part {
        member,
        ready: None,
        plan_crc32: 0,
        last_heard: now,
        open: 0,
        most_open: 0,
        concurrent: Concurrent::default(),
        cpu_ns: 0,
        first_ns: 0,
        counts: LoadCounts::default(),
        lateness: Outcome::default().lateness,
        address: None,
        toward: vec![Toward::default()],
        trouble: String::new(),
        is_over: false,
        is_gone: false,
    };
    let is_jitter_mean = plan.udp.is_some_and(|udp| udp.one_way);
    let mut run = Run {
        desk,
        id: id.clone(),
        plan,
        expectations,
        parts: members
            .into_iter()
            .map(|member| (member.agent.id.clone(), part(member)))
            .collect(),
        outcome: Outcome {
            is_jitter_mean,
            ..Outcome::default()
        },
        since_update: Outcome::default().connect,
        samples: Vec::new(),
        samples_dropped: 0,
        sample_blocks: 0,
        missed,
        began_at_ns: 0,
        interval_ns: request.interval_ns.clamp(100_000_000, 1_000_000_000),
        concurrent: Concurrent::default(),
        most_open: 0,
        open_at_end: None,
        trouble: Vec::new(),
        request,
    };
    let stop = async {
        tokio::select! {
            () = stop => {}
            () = updates.closed() => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    };
    let mut stop = std::pin::pin!(stop);
    let registered = tokio::select! {
        registered = run.register(&mut arriving) => registered,
        () = &mut stop => Err(Status::cancelled("stopped before it began: no load was made")),
    };
    if let Err(status) = registered {
        run.tell_all(|| run_order::Order::Stop(RunStop {}));
        run.release();
        return Err(status);
    }
    let begun = RunBegun {
        run_id: id.clone(),
        nodes: run.nodes(),
    };
    let _ = updates.send(Ok(update(run_update::Body::Begun(begun)))).await;
    run.begin();
    run.follow(&mut arriving, stop, updates).await;
    let result = run.conclude().await;
    let _ = updates.send(Ok(update(run_update::Body::Result(result)))).await;
    Ok(())
}

struct Registered<'a> {
    runs: &'a Runs,
    id: &'a str,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.runs.active).remove(self.id);
    }
}

fn update(body: run_update::Body) -> RunUpdate {
    RunUpdate { body: Some(body) }
}

impl Run<'_> {
    fn nodes(&self) -> Vec<String> {
        self.parts.values().map(|part| part.node().to_owned()).collect()
    }

    fn tell_all(&self, order: impl Fn() -> run_order::Order) {
        for part in self.parts.values() {
            part.order(&self.id, order());
        }
    }

    /// Every agent says that it may and can, or the run does not begin.
    async fn register(&mut self, arriving: &mut mpsc::Receiver<(String, RunEvent)>) -> Result<(), Status> {
        let interval_ns = self.interval_ns;
        if let Some(mesh) = self.request.mesh.clone() {
            self.serve(&mesh, arriving).await?;
            for part in self.parts.values_mut() {
                let plan = LoadPlan {
                    targets: part.toward.iter().map(|toward| toward.address.clone()).collect(),
                    first: 0,
                    step: 1,
                    interval_ns,
                    apart: true,
                    ..self.plan.clone()
                };
                part.prepare(&self.id, plan);
            }
        } else {
            let step = self.parts.len() as u64;
            for (first, part) in self.parts.values_mut().enumerate() {
                let plan = LoadPlan {
                    first: first as u64,
                    step,
                    interval_ns,
                    ..self.plan.clone()
                };
                part.prepare(&self.id, plan);
            }
        }
        self.answers(arriving, |part| part.ready.is_some()).await
    }

    /// Every agent of a mesh becomes a target, and all learn where.
    async fn serve(
        &mut self,
        mesh: &LoadMesh,
        arriving: &mut mpsc::Receiver<(String, RunEvent)>,
    ) -> Result<(), Status> {
        let port = u16::try_from(mesh.port)
            .map_err(|_| Status::invalid_argument(format!("{} is no port", mesh.port)))?;
        let members: Vec<_> = self.parts.values().map(|part| &part.member).collect();
        for (part, address) in self.parts.values().zip(addresses(&members)?) {
            let address = SocketAddr::new(address, port).to_string();
            part.order(&self.id, run_order::Order::Serve(RunServe { address }));
        }
        self.answers(arriving, |part| part.address.is_some()).await?;
        let all: Vec<(String, SocketAddr)> = self
            .parts
            .values()
            .filter_map(|part| Some((part.node().to_owned(), part.address?)))
            .collect();
        for (own, part) in self.parts.values_mut().enumerate() {
            let others = all.iter().enumerate().filter(|(other, _)| *other != own);
            part.toward = others
                .map(|(_, (node, address))| Toward {
                    node: node.clone(),
                    address: address.to_string(),
                    ..Toward::default()
                })
                .collect();
        }
        self.plan.targets = all.iter().map(|(_, address)| address.to_string()).collect();
        Ok(())
    }

    /// Waits until every agent has answered, or one has refused.
    async fn answers(
        &mut self,
        arriving: &mut mpsc::Receiver<(String, RunEvent)>,
        has_answered: fn(&Part) -> bool,
    ) -> Result<(), Status> {
        let deadline = Instant::now() + REGISTRATION;
        let mut refused = Vec::new();
        while self
            .parts
            .values()
            .any(|part| !has_answered(part) && !part.is_over)
        {
            let Ok(Some((agent_id, event))) = timeout_at(deadline, arriving.recv()).await else {
                let is_silent = |part: &&Part| !has_answered(part) && !part.is_over;
                let silent: Vec<_> = self
                    .parts
                    .values()
                    .filter(is_silent)
                    .map(|part| in_words(&part.member.agent))
                    .collect();
                let silent = format!(
                    "no answer from {} within {} s: the agent may not know such runs, or its link is slow, or it hangs; its log says more",
                    silent.join(", "),
                    REGISTRATION.as_secs()
                );
                refused.insert(0, silent);
                return Err(Status::unavailable(refused.join(BELOW)));
            };
            let Some(part) = self.parts.get_mut(&agent_id) else {
                continue;
            };
            match event.event {
                Some(run_event::Event::Ready(ready)) if ready.plan_crc32 == Some(part.plan_crc32) => {
                    part.ready = Some(ready);
                }
                // What it does not know of the plan it would leave out, and make other load.
                Some(run_event::Event::Ready(_)) => {
                    part.is_over = true;
                    refused.push(format!(
                        "{}: its agent ({:?}) is older than this collector and knows only a part of what is asked for: upgrade the agent",
                        part.node(),
                        part.member.agent.version
                    ));
                }
                Some(run_event::Event::Serving(serving)) => match serving.address.parse() {
                    Ok(address) => part.address = Some(address),
                    Err(_) => {
                        part.is_over = true;
                        refused.push(format!("{}: {:?} is no address", part.node(), serving.address));
                    }
                },
                Some(run_event::Event::Refusal(refusal)) => {
                    part.is_over = true;
                    refused.push(format!("{}: {}", part.node(), refusal.reason));
                }
                _ => {}
            }
        }
        if refused.is_empty() {
            Ok(())
        } else {
            Err(Status::failed_precondition(refused.join(BELOW)))
        }
    }

    /// Names the moment, and writes down that the run began.
    fn begin(&mut self) {
        self.began_at_ns = self.desk.clock.now_ns() + LEAD.as_nanos() as i64;
        let at_ns = self.began_at_ns.unsigned_abs();
        self.tell_all(|| run_order::Order::Start(RunStart { at_ns }));
        info!(run = self.id, nodes = ?self.nodes(), targets = ?self.request.targets, "a run begins");
        let ended_at_ns = self.began_at_ns.saturating_add(longest_ns(&self.plan));
        // What whoever asks needs to find the run's connections, should there never be a result.
        let opening = Summary {
            plan: Some(Plan::of(&self.request, &self.plan)),
            connections: self.connections(ended_at_ns),
            ..Summary::default()
        };
        let opening = serde_json::to_string(&opening).expect("numbers and texts");
        let record = RunRecord {
            revision: 1,
            state: "running",
            ended_at_ns,
            ..self.record(String::new(), vec![], opening)
        };
        // Beside the run: the store may be slow, the start shall not wait.
        let store = self.desk.store.clone();
        tokio::spawn(async move {
            if let Err(error) = store_runs::record(&*store, &record).await {
                warn!(run = record.run_id, %error, "the beginning of a run cannot be stored");
            }
        });
    }

    fn record(&self, verdict: String, reasons: Vec<String>, result: String) -> RunRecord {
        RunRecord {
            run_id: self.id.clone(),
            revision: 2,
            state: if self.outcome.is_stopped {
                "stopped"
            } else {
                "finished"
            },
            verdict,
            began_at_ns: self.began_at_ns,
            ended_at_ns: self.desk.clock.now_ns(),
            nodes: self.nodes(),
            targets: self.request.targets.clone(),
            expect: self.request.expect.clone(),
            reasons,
            result,
        }
    }

    /// Takes reports in until every agent has sent its last, or is lost.
    async fn follow(
        &mut self,
        arriving: &mut mpsc::Receiver<(String, RunEvent)>,
        mut stop: impl Future<Output = ()> + Unpin,
        updates: &mpsc::Sender<Result<RunUpdate, Status>>,
    ) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tick = interval(Duration::from_nanos(self.request.interval_ns.max(100_000_000)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.reset();
        // One at a time, beside the beats: the store may be slow.
        let mut storing = JoinSet::new();
        let now = Instant::now();
        self.parts.values_mut().for_each(|part| part.last_heard = now);
        let mut stopping = self.desk.stopping.clone();
        while self.parts.values().any(|part| !part.is_over) {
            tokio::select! {
                biased;
                // The streams of agents end with it: nothing more comes of them.
                _ = stopping.wait_for(|stopping| *stopping) => {
                    self.leave();
                    break;
                }
                () = &mut stop, if !self.outcome.is_stopped => {
                    self.outcome.is_stopped = true;
                    self.tell_all(|| run_order::Order::Stop(RunStop {}));
                }
                _ = beat.tick() => self.beat(),
                event = arriving.recv() => {
                    if let Some((agent_id, RunEvent { event: Some(run_event::Event::Report(report)), .. })) = event {
                        self.take(&agent_id, &report);
                    }
                }
                _ = tick.tick() => {
                    let progress = self.progress();
                    // A caller that does not read is told the next time.
                    let _ = updates.try_send(Ok(update(run_update::Body::Progress(progress))));
                    if storing.is_empty() {
                        self.store_samples(&mut storing);
                    }
                }
                Some(stored) = storing.join_next() => self.stored(stored),
            }
        }
        let progress = self.progress();
        let _ = updates
            .send(Ok(update(run_update::Body::Progress(progress))))
            .await;
        while let Some(stored) = storing.join_next().await {
            self.stored(stored);
        }
        self.store_samples(&mut storing);
        while let Some(stored) = storing.join_next().await {
            self.stored(stored);
        }
        let missed = self.missed.load(Ordering::Relaxed);
        if missed > 0 {
            self.trouble.push(format!(
                "{missed} reports of agents were not taken in: the collector was busy"
            ));
        }
        if self.samples_dropped > 0 {
            self.trouble.push(format!(
                "{} samples of the run could not be stored: the store was slow",
                self.samples_dropped
            ));
        }
    }

    /// The collector stops: so do the agents, and what they did since their last reports nobody hears.
    fn leave(&mut self) {
        self.outcome.is_stopped = true;
        self.tell_all(|| run_order::Order::Stop(RunStop {}));
        for part in self.parts.values_mut().filter(|part| !part.is_over) {
            part.is_over = true;
            part.trouble = "had not told its end when the collector stopped".to_owned();
        }
        self.trouble.push(
            "the collector was stopped: what its agents did after their last reports is not known".into(),
        );
    }

    /// Says that the run is still wanted. An agent that is gone or silent is lost, and the run ends with it.
    fn beat(&mut self) {
        let is_mesh = self.request.mesh.is_some();
        let mut lost = Vec::new();
        for part in self.parts.values_mut() {
            // One of a mesh that is done is a target of the others still.
            if part.is_gone || part.is_over && !is_mesh {
                continue;
            }
            let is_there = part.order(&self.id, run_order::Order::Beat(RunBeat {}));
            let is_silent = !part.is_over && part.last_heard.elapsed() > SILENCE;
            if !is_there || is_silent {
                lost.push(part.lose());
            }
        }
        for node in lost {
            self.fail(format!("the agent of {node} was lost in the middle"));
        }
    }

    /// Nobody of a mesh has to be a target any more. One that is not there to hear it was lost before the others were done.
    fn release(&mut self) {
        if self.request.mesh.is_none() {
            return;
        }
        for part in self.parts.values_mut().filter(|part| !part.is_gone) {
            if !part.order(&self.id, run_order::Order::Release(RunRelease {})) {
                let node = part.lose();
                self.trouble
                    .push(format!("the agent of {node} was lost in the middle"));
            }
        }
    }

    /// The run is over for all, if it was not asked for that the others go on; what they have done so far is kept.
    fn fail(&mut self, reason: String) {
        warn!(run = self.id, reason, "a run is in trouble");
        self.trouble.push(reason);
        if !self.request.keep_going {
            self.tell_all(|| run_order::Order::Stop(RunStop {}));
        }
    }

    fn take(&mut self, agent_id: &str, report: &LoadReport) {
        let Some(part) = self.parts.get_mut(agent_id) else {
            return;
        };
        let node = part.node().to_owned();
        part.last_heard = Instant::now();
        if part.toward.len() <= report.target as usize {
            part.is_over = true;
            return self.fail(format!(
                "{node} reports on a target {} that it has not",
                report.target
            ));
        }
        if let Err(unreadable) = self.outcome.add(&node, report) {
            part.is_over = true;
            part.trouble = unreadable.to_string();
            return self.fail(format!("the report of {node}: {unreadable}"));
        }
        counts::add(&mut part.counts, &report.counts.unwrap_or_default());
        if let Ok(Some(lateness)) = decode(&report.lateness) {
            // It grows as it must.
            let _ = part.lateness.add(lateness);
        }
        if part.first_ns == 0 || (1..part.first_ns).contains(&report.first_ns) {
            part.first_ns = report.first_ns;
        }
        let is_last = report.end.is_some();
        let connect = decode(&report.connect).ok().flatten();
        let network = decode(&report.network).ok().flatten();
        let toward = &mut part.toward[report.target as usize];
        let open_then = (report.open, report.most_open);
        let more = toward.said.take(report.elapsed_ns, open_then, self.interval_ns);
        toward.cpu_ns = report.cpu_ns;
        (toward.watched_ns, toward.saturated_ns) = (report.watched_ns, report.saturated_ns);
        toward.lacks_handshakes |= report.lacks_handshakes;
        toward.is_over = is_last;
        let counts = report.counts.unwrap_or_default();
        counts::add(&mut toward.counts, &counts);
        toward.doubts.add(report.elapsed_ns, &counts);
        for (sum, times) in [(&mut toward.connect, &connect), (&mut toward.network, &network)] {
            for (bucket, count) in times.as_ref().map(buckets).unwrap_or_default() {
                *sum.entry(bucket).or_insert(0) += count;
            }
        }
        if !is_last {
            toward.open = Some(report.open);
        }
        let to_node = toward.node.clone();
        part.open = part.sum(|toward| toward.open.unwrap_or(0));
        let most_at_once = part.concurrent.add(more).max(report.most_open);
        part.most_open = part.most_open.max(part.open).max(most_at_once);
        part.cpu_ns = part.sum(|toward| toward.cpu_ns);
        let most_of_part = part.most_open;
        // What is open now, also where it is no more than that of one target.
        let open_now = match part.toward.as_slice() {
            [_] => report.open,
            _ => part.open,
        };
        let request = decode(&report.request).ok().flatten();
        // What somebody waits for, who comes.
        if let Some(times) = request.as_ref().or(connect.as_ref()) {
            // Both grow as they must.
            let _ = self.since_update.add(times);
        }
        let sample = LoadSample {
            node: node.clone(),
            to_node,
            observed_at_ns: self.began_at_ns.saturating_add_unsigned(report.elapsed_ns),
            elapsed_us: report.elapsed_ns / 1_000,
            open: open_now,
            most_open: most_of_part,
            cpu_us: part.cpu_ns / 1_000,
            counts: report.counts.unwrap_or_default(),
            lacks_handshakes: report.lacks_handshakes,
            connect,
            network,
            request,
        };
        if self.samples.len() < MOST_SAMPLES {
            self.samples.push(sample);
        } else {
            self.samples_dropped += 1;
        }
        if part.toward.iter().all(|toward| toward.is_over) {
            part.is_over = true;
        }
        let end = report.end.and_then(|end| LoadEnd::try_from(end).ok());
        match end {
            Some(LoadEnd::Capped | LoadEnd::Failed) => part.trouble.clone_from(&report.reason),
            // Soon it is no target of others either.
            Some(LoadEnd::Orphaned) => {
                part.is_gone = true;
                part.trouble = "did not hear of the collector in time".to_owned();
            }
            _ => {}
        }
        self.is_there(agent_id, report.elapsed_ns);
        let open: u64 = self.parts.values().map(|part| part.open).sum();
        let most_at_once = self.concurrent.add(more).max(most_of_part);
        self.most_open = self.most_open.max(open).max(most_at_once);
        match end {
            Some(LoadEnd::Capped | LoadEnd::Failed) => self.fail(format!("{node}: {}", report.reason)),
            Some(LoadEnd::Orphaned) => self.fail(format!(
                "{node} did not hear of the collector in time and stopped"
            )),
            _ => {}
        }
    }

    /// An agent reported so long after the start: until then it was a target of the others of a mesh.
    fn is_there(&mut self, agent_id: &str, elapsed_ns: u64) {
        for toward in self.toward(agent_id) {
            toward.doubts.settle(elapsed_ns);
        }
    }

    /// What all others of a mesh do to an agent.
    fn toward(&mut self, agent_id: &str) -> impl Iterator<Item = &mut Toward> {
        let place = self.parts.keys().position(|id| id == agent_id);
        let place = place.filter(|_| self.request.mesh.is_some());
        // Each has the others in the order of all, without itself.
        let parts = self.parts.values_mut().enumerate();
        parts.filter_map(move |(own, part)| {
            let place = place.filter(|place| *place != own)?;
            part.toward.get_mut(place - usize::from(place > own))
        })
    }

    /// What came of agents of a mesh after they were last heard of, which is the run's own doing. Says so among what ended it.
    fn own_doing(&mut self) -> LoadCounts {
        let gone = self.parts.iter().filter(|(_, part)| part.is_gone);
        let gone: Vec<(String, String)> = gone
            .map(|(id, part)| (id.clone(), part.node().to_owned()))
            .collect();
        let mut all = LoadCounts::default();
        for (id, node) in gone {
            let mut of_one = LoadCounts::default();
            for toward in self.toward(&id) {
                counts::add(&mut of_one, &toward.doubts.sum());
            }
            let bad = doubts::in_words(&of_one);
            if !bad.is_empty() {
                self.trouble.push(format!(
                    "what was seen of {node} as a target after it was last heard of proves nothing: {bad}"
                ));
            }
            counts::add(&mut all, &of_one);
        }
        all
    }

    fn progress(&mut self) -> RunProgress {
        let counts = self.outcome.counts;
        let mut connect = Vec::new();
        if !self.since_update.is_empty() {
            use hdrhistogram::serialization::{Serializer, V2Serializer};
            // A vector takes everything.
            let _ = V2Serializer::new().serialize(&self.since_update, &mut connect);
            self.since_update.reset();
        }
        RunProgress {
            elapsed_ns: self.outcome.elapsed_ns,
            open: counts.established - counts.closed - counts::lost(&counts),
            counts: Some(counts),
            planned: planned(&self.plan) * self.schedules(),
            connect: connect.into(),
        }
    }

    /// How often the plan is carried out: of a mesh by each pair, else by all agents together.
    fn schedules(&self) -> u64 {
        match self.request.mesh {
            Some(_) => self.parts.values().map(|part| part.toward.len() as u64).sum(),
            None => 1,
        }
    }

    fn store_samples(&mut self, storing: &mut JoinSet<Result<(), StoreError>>) {
        let samples = std::mem::take(&mut self.samples);
        self.sample_blocks += 1;
        let (store, id, block) = (self.desk.store.clone(), self.id.clone(), self.sample_blocks);
        storing.spawn(async move { store_runs::sample(&*store, &id, block, &samples).await });
    }

    fn stored(&mut self, stored: Result<Result<(), StoreError>, JoinError>) {
        let error = match stored {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.trouble
            .push(format!("samples of the run could not be stored: {error}"));
    }

    /// Judges the run and stores its end.
    async fn conclude(mut self) -> RunResult {
        self.release();
        // Before the generators closed what they had: what they lost was not open.
        let counts = self.outcome.counts;
        self.open_at_end = match self.plan.arrivals {
            Some(load_plan::Arrivals::Count(_)) => {
                Some(counts.established.saturating_sub(counts::lost(&counts)))
            }
            _ => {
                let all = self.parts.values().flat_map(|part| &part.toward);
                all.map(|toward| toward.open).sum()
            }
        };
        let ended_at_ns = self.desk.clock.now_ns();
        let connections = self.connections(ended_at_ns);
        let kernel = self.kernel(&connections).await;
        let own_doing = self.own_doing();
        self.outcome.confirmed = kernel
            .as_ref()
            .map_or(0, |kernel| kernel.confirmed(counts.abandoned));
        self.outcome.there = kernel.as_ref().and_then(Kernel::there);
        self.outcome.is_closed_loop = matches!(self.plan.arrivals, Some(load_plan::Arrivals::Loop(_)));
        self.outcome.is_burst = is_burst(&self.plan);
        self.look_at_generators();
        let mut summary = Summary::of(&self.outcome, &self.expectations);
        summary.own_doing = counts::named(&own_doing);
        // Of a mesh each makes the first attempt.
        let is_mesh = self.request.mesh.is_some();
        // By how much each began after its own first attempt was due.
        let lag_ns = |(first, part): (usize, &Part)| {
            (part.first_ns > 0).then(|| {
                part.first_ns
                    .saturating_sub(due_ns(&self.plan, if is_mesh { 0 } else { first as u64 }))
            })
        };
        let lags: Vec<u64> = self.parts.values().enumerate().filter_map(lag_ns).collect();
        summary.parts = self
            .parts
            .values()
            .enumerate()
            .map(|(first, part)| PartOf {
                node: part.node().to_owned(),
                counts: result::known(
                    counts::named(&part.counts),
                    part.toward.iter().any(|toward| toward.lacks_handshakes),
                ),
                most_open: part.most_open,
                cpu_ns: part.cpu_ns,
                watched_ns: part.sum(|toward| toward.watched_ns),
                saturated_ns: part.sum(|toward| toward.saturated_ns),
                lateness: Times::of(&part.lateness),
                lag_ns: lag_ns((first, part)),
                clock_error_ns: part.ready.map_or(0, |ready| ready.clock_error_ns),
                trouble: part.trouble.clone(),
            })
            .collect();
        summary.skew_ns = lags.iter().max().unwrap_or(&0) - lags.iter().min().unwrap_or(&0);
        let mut errors: Vec<u64> = self
            .parts
            .values()
            .filter_map(|part| part.ready)
            .map(|ready| ready.clock_error_ns)
            .collect();
        errors.sort_unstable();
        summary.skew_error_ns = if errors.len() < 2 {
            0
        } else {
            errors
                .iter()
                .rev()
                .take(2)
                .fold(0, |sum: u64, error| sum.saturating_add(*error))
        };
        if is_mesh {
            summary.pairs = self
                .parts
                .values()
                .flat_map(|part| part.toward.iter().map(|toward| toward.pair(part.node())))
                .collect();
        }
        summary.cpu_ns = self.parts.values().map(|part| part.cpu_ns).sum();
        // Reports come one after another; what is open at the end is open at once.
        summary.most_open = self.most_open.max(self.open_at_end.unwrap_or(0));
        summary.open_at_end = self.open_at_end;
        summary.limits.splice(0..0, self.trouble.iter().cloned());
        summary.kernel = kernel;
        summary.connections = connections;
        summary.plan = Some(Plan::of(&self.request, &self.plan));
        let (verdict, reasons) = summary.verdict();
        let result = serde_json::to_string(&summary).expect("numbers and texts");
        let mut record = self.record(verdict.to_string(), reasons, result);
        record.ended_at_ns = ended_at_ns;
        if !self.trouble.is_empty() {
            record.state = "failed";
        }
        info!(
            run = self.id,
            state = record.state,
            verdict = record.verdict,
            "a run ends"
        );
        let stored = self.desk.runs.unstored.store(&self.desk.store, &record).await;
        let is_stored = stored.is_ok();
        record.reasons.extend(stored.err());
        let told = Told {
            record: &record,
            is_stored,
        };
        RunResult {
            json: serde_json::to_string(&told).expect("numbers and texts"),
        }
    }

    /// Whether the generators were the limit of what waits for answers.
    fn look_at_generators(&mut self) {
        let outcome = &mut self.outcome;
        for part in self.parts.values() {
            let watched_ns = part.sum(|toward| toward.watched_ns);
            let saturated_ns = part.sum(|toward| toward.saturated_ns);
            outcome.watched_ns = outcome.watched_ns.saturating_add(watched_ns);
            outcome.saturated_ns = outcome.saturated_ns.saturating_add(saturated_ns);
        }
    }

    /// How the run's connections are found among all.
    fn connections(&self, ended_at_ns: i64) -> Connections {
        Connections {
            generators: self
                .parts
                .values()
                .filter_map(|part| part.ready.map(|ready| (part.node().to_owned(), ready.pid)))
                .collect(),
            targets: self
                .plan
                .targets
                .iter()
                .filter_map(|target| target.parse().ok())
                .map(mapped)
                .collect(),
            began_at_ns: self.began_at_ns,
            ended_at_ns,
            margin_ns: self.margin_ns(ended_at_ns),
        }
    }

    /// How far off the clocks of its nodes may be from ours, as they said before it began, until it ends.
    fn margin_ns(&self, ended_at_ns: i64) -> i64 {
        let ready = self.parts.values().filter_map(|part| part.ready);
        let off_ns = ready.map(|ready| {
            ready
                .clock_offset_ns
                .unsigned_abs()
                .saturating_add(ready.clock_error_ns)
        });
        let lasts_ns = ended_at_ns.abs_diff(self.began_at_ns);
        let drift_ns = lasts_ns / 1_000_000 * CLOCK_DRIFT_PPM;
        let margin_ns = off_ns.max().unwrap_or(0).saturating_add(drift_ns);
        i64::try_from(margin_ns)
            .unwrap_or(i64::MAX)
            .saturating_add(CLOCK_GRAIN_NS)
    }

    /// What the kernels recorded of the run's connections at both ends, as soon as it is all there, or what there is by then.
    async fn kernel(&self, connections: &Connections) -> Option<Kernel> {
        let expected = counts::decided(&self.outcome.counts) - counts::local_limits(&self.outcome.counts);
        let failed = counts::errors(&self.outcome.counts) - counts::local_limits(&self.outcome.counts);
        let began = Instant::now();
        let is_target_watched = store_runs::is_target_watched(&*self.desk.store, connections).await;
        // Where the store does not say, the records will.
        let is_target_watched = is_target_watched.unwrap_or(false);
        loop {
            let is_target_awaited = is_target_watched && began.elapsed() < KERNEL_PATIENCE;
            match store_runs::kernel(&*self.desk.store, connections).await {
                Ok(kernel) => {
                    // A run ends with its connections: how they ended comes a moment later.
                    let ended: u64 = kernel.ends.iter().map(|ends| ends.connections).sum();
                    let are_ends_there = ended >= kernel.established || kernel.ends.len() >= store_runs::WAYS;
                    let is_complete = kernel.attempts >= expected
                        && kernel.explained() >= failed
                        && are_ends_there
                        && kernel.are_all_at_target()
                        && !(is_target_awaited && kernel.lacks_ends_at_target())
                        && !kernel.causes.iter().any(Cause::is_awaited);
                    let patience = if kernel.attempts == 0 {
                        KERNEL_PATIENCE
                    } else {
                        KERNEL_COMPLETE
                    };
                    let is_stopping = *self.desk.stopping.borrow();
                    if is_complete || is_stopping || began.elapsed() >= patience {
                        return (kernel.attempts > 0).then_some(kernel);
                    }
                }
                Err(error) => {
                    warn!(run = self.id, %error, "the kernel's records of a run cannot be read");
                    return None;
                }
            }
            sleep(KERNEL_PAUSE).await;
        }
    }
}

/// An address as the store has it.
fn mapped(target: SocketAddr) -> (String, u16) {
    let address = match target.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    (address.to_string(), target.port())
}

/// Attempts of a whole plan; zero where only the target knows.
pub fn planned(plan: &LoadPlan) -> u64 {
    match &plan.arrivals {
        Some(load_plan::Arrivals::Count(count)) => count.connections,
        Some(load_plan::Arrivals::Stages(stages)) => {
            (stages.stages.iter().map(area).sum::<f64>() + 1e-6) as u64
        }
        _ => 0,
    }
}

/// Whether all attempts of a plan are due at once.
fn is_burst(plan: &LoadPlan) -> bool {
    matches!(&plan.arrivals, Some(load_plan::Arrivals::Count(count)) if count.pause_ns == 0)
}

/// When attempt `first` of a plan is due, in nanoseconds, as the agents reckon it too.
fn due_ns(plan: &LoadPlan, first: u64) -> u64 {
    match &plan.arrivals {
        Some(load_plan::Arrivals::Count(count)) => count.pause_ns.saturating_mul(first),
        Some(load_plan::Arrivals::Stages(stages)) => due_in(&stages.stages, first as f64),
        _ => 0,
    }
}

/// When so many attempts have been due, in nanoseconds; after the last stage where there are not so many.
fn due_in(stages: &[LoadStage], mut attempts: f64) -> u64 {
    let mut began_ns = 0;
    for stage in stages {
        let of_stage = area(stage);
        if attempts < of_stage {
            return began_ns + (after_seconds(stage, attempts) * 1e9) as u64;
        }
        attempts -= of_stage;
        began_ns += stage.duration_ns;
    }
    began_ns
}

/// How far into a stage so many attempts are due: `from * t + slope * t^2 / 2` until `t`.
fn after_seconds(stage: &LoadStage, attempts: f64) -> f64 {
    let (from, to) = (stage.from_per_second, stage.to_per_second);
    let slope = (to - from) / (stage.duration_ns as f64 / 1e9);
    let root = (from * from + 2.0 * slope * attempts).max(0.0).sqrt();
    2.0 * attempts / (from + root).max(f64::MIN_POSITIVE)
}

/// Attempts that a stage comes to: the area under its rate.
fn area(stage: &LoadStage) -> f64 {
    (stage.from_per_second + stage.to_per_second) / 2.0 * stage.duration_ns as f64 / 1e9
}

/// The longest that a plan lasts if every answer comes: the last attempt, its handshake, its hold. A request may wait, and then wait once more
/// for a connection that was opened when it had waited almost as long as it may.
fn longest_ns(plan: &LoadPlan) -> i64 {
    let sending = match &plan.arrivals {
        Some(load_plan::Arrivals::Count(count)) => count.connections.saturating_mul(count.pause_ns),
        Some(load_plan::Arrivals::Stages(stages)) => stages
            .stages
            .iter()
            .fold(0, |sum: u64, stage| sum.saturating_add(stage.duration_ns)),
        Some(load_plan::Arrivals::Loop(closed)) => closed.duration_ns,
        None => 0,
    };
    let waits = if plan.http.is_some() { 2 } else { 1 };
    let longest = sending
        .saturating_add(plan.timeout_ns.saturating_mul(waits))
        .saturating_add(plan.hold_ns);
    i64::try_from(longest).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use holdfast_agent::load::order;
    use holdfast_agent::load::plan::Plan as AgentPlan;
    use holdfast_agent::load::schedule::Schedule;
    use holdfast_proto::v1::{LoadCount, LoadHttp, LoadStages};

    use super::*;

    /// A plan, and the same as an agent has it.
    fn planned_there(arrivals: load_plan::Arrivals, http: Option<LoadHttp>) -> (LoadPlan, AgentPlan) {
        let wire = LoadPlan {
            targets: vec!["127.0.0.1:80".into()],
            arrivals: Some(arrivals),
            step: 1,
            timeout_ns: 5_000_000_000,
            // Connections of requests are not held.
            hold_ns: if http.is_some() { 0 } else { 2_000_000_000 },
            rounds: 1,
            interval_ns: 1_000_000_000,
            http,
            ..LoadPlan::default()
        };
        let (plan, _) = order::plan(&wire).expect("a plan");
        (wire, plan)
    }

    fn stages(stages: &[(f64, f64, u64)]) -> load_plan::Arrivals {
        let stages = stages
            .iter()
            .map(|&(from_per_second, to_per_second, seconds)| LoadStage {
                from_per_second,
                to_per_second,
                duration_ns: seconds * 1_000_000_000,
            });
        load_plan::Arrivals::Stages(LoadStages {
            stages: stages.collect(),
        })
    }

    #[test]
    fn a_first_attempt_is_due_when_its_agent_makes_it() {
        let count = LoadCount {
            connections: 9,
            pause_ns: 7_000_000,
        };
        for arrivals in [
            load_plan::Arrivals::Count(count),
            stages(&[(100.0, 100.0, 5)]),
            stages(&[(0.0, 400.0, 5)]),
            stages(&[(400.0, 0.0, 5)]),
            // Half an attempt in the first second, and the others in the minute after it.
            stages(&[(0.0, 1.0, 1), (0.1, 0.1, 60)]),
            stages(&[(0.0, 0.0, 3), (1.0, 5.0, 10)]),
        ] {
            let (wire, plan) = planned_there(arrivals, None);
            for first in 0..4 {
                let due = due_ns(&wire, first);
                let there = Schedule::new(&plan.arrivals, first, 1).peek().expect("a time");
                assert!(
                    due.abs_diff(there) < 1_000,
                    "{first} of {wire:?}: {due}, {there} there"
                );
            }
        }
    }

    #[test]
    fn a_run_lasts_as_long_as_its_agents_say() {
        let http = LoadHttp {
            version: 1,
            method: "GET".into(),
            authority: "web".into(),
            path: "/".into(),
            connections: 4,
            streams: 1,
            ..LoadHttp::default()
        };
        for http in [None, Some(http)] {
            let (wire, plan) = planned_there(stages(&[(10.0, 10.0, 5)]), http);
            assert_eq!(longest_ns(&wire), plan.longest().as_nanos() as i64, "{wire:?}");
        }
    }

    #[test]
    fn what_could_not_be_counted_of_a_pair_is_not_zero() {
        let again = |lacks_handshakes| {
            let toward = Toward {
                lacks_handshakes,
                ..Toward::default()
            };
            toward.pair("web-1").counts.get(counts::OF_HANDSHAKES).copied()
        };
        assert_eq!((again(false), again(true)), (Some(0), None));
    }

    /// Where a mesh reaches its agents, each with where its stream comes from and to, and its own addresses.
    fn reached(members: &[(&str, &str, &[&str])]) -> Result<Vec<String>, String> {
        let member = |&(remote, local, own): &(&str, &str, &[&str])| {
            let hello = holdfast_proto::v1::Hello {
                protocol: holdfast_proto::PROTOCOL,
                agent_id: "7f3a".into(),
                epoch: 1,
                boot_id: "boot".into(),
                node: "db-1".into(),
                ..Default::default()
            };
            let agent = Agent {
                addresses: own.iter().map(|address| (*address).to_owned()).collect(),
                ..Agent::try_from(hello).expect("a hello")
            };
            Member {
                agent: Arc::new(agent),
                remote: remote.parse().ok(),
                local: local.parse().ok(),
                orders: mpsc::channel(1).0.downgrade(),
            }
        };
        let members: Vec<_> = members.iter().map(member).collect();
        addresses(&members.iter().collect::<Vec<_>>())
            .map(|addresses| addresses.iter().map(ToString::to_string).collect())
            .map_err(|status| status.message().to_owned())
    }

    #[test]
    fn an_agent_beside_the_collector_is_where_the_others_reach_the_collector() {
        let own = ["::ffff:10.0.0.1", "::ffff:172.17.0.1", "fe80::1", "::1"];
        let beside = ("127.0.0.1", "127.0.0.1", &own[..]);
        let elsewhere = ("10.0.0.2", "10.0.0.1", &["::ffff:10.0.0.2"][..]);
        let bridge = ("172.17.0.2", "172.17.0.1", &["::ffff:172.17.0.2"][..]);
        let is = |members: &[(&str, &str, &[&str])], addresses: &[&str]| {
            let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
            assert_eq!(reached(members), Ok(addresses));
        };
        is(&[beside, elsewhere], &["10.0.0.1", "10.0.0.2"]);
        // All of them there find each other by the loopback.
        is(&[beside, beside], &["127.0.0.1", "127.0.0.1"]);
        // A port that is forwarded is none of the host's: one address of its own will do.
        let forwarded = ("10.0.0.2", "192.0.2.1", &["::ffff:10.0.0.2"][..]);
        let simple = ("127.0.0.1", "127.0.0.1", &own[..1]);
        is(&[simple, forwarded], &["10.0.0.1", "10.0.0.2"]);
        // Nobody guesses.
        let is_refused = |members: &[(&str, &str, &[&str])], part: &str| {
            let refused = reached(members).expect_err("nobody knows");
            assert!(
                refused.contains(part) && refused.contains("--collector"),
                "{refused}"
            );
        };
        is_refused(&[beside, elsewhere, bridge], "any of 10.0.0.1, 172.17.0.1");
        is_refused(&[beside, forwarded], "any of 10.0.0.1, 172.17.0.1");
        is_refused(&[("127.0.0.1", "127.0.0.1", &["::1"]), elsewhere], "none but");
    }
}
