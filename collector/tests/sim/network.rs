//! The collectors of a world and the links to them: delays, stalls, breaks that one side notices late, and what was
//! on its way arriving after all.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use holdfast_agent::uplink::{ConnectionError, Dial};
use holdfast_collector::{
    clock::WallClock,
    config::Limits,
    engine::heard::Heard,
    gather::{self, Intake},
    health::Health,
    ingest::{Ingest, registry::Registry, reports::Reports},
    metrics::Metrics,
    rollup::Minutes,
    store::{Store, schema::TABLES},
};
use holdfast_proto::v1::{AgentMessage, CollectorMessage, agent_message, collector_message};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::Status;

use crate::{
    engine::{Connection, Engine},
    oracle::{BatchName, Oracle},
    trace::Trace,
};

/// Messages on their way in one direction at most.
const IN_FLIGHT: usize = 16;

/// How long a collector that is told to stop has, as in the product.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How long dialling takes to give up where nothing answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Flows,
    /// Nothing moves for now.
    Stalls,
    /// Nothing moves any more, and this side of it learns so after a while; what was on its way arrives then or never.
    Breaks {
        noticed_after: Duration,
        arrives: bool,
    },
}

/// The network of one world.
pub(crate) struct Network {
    trace: Trace,
    oracle: Oracle,
    engine: Arc<Engine>,
    limits: Limits,
    clock: WallClock,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    collectors: Vec<Option<Collector>>,
    links: BTreeMap<u64, Link>,
    last_link: u64,
    /// By node: where it dials first, whether its process is stopped, whether it dials in vain, and what gets through.
    routes: Vec<usize>,
    stopped: Vec<bool>,
    partitioned: Vec<bool>,
    cut: Vec<Cut>,
}

/// Directions in which nothing gets through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) to_collector: bool,
    pub(crate) to_agent: bool,
}

struct Link {
    node: usize,
    collector: usize,
    to_collector: watch::Sender<Fate>,
    to_agent: watch::Sender<Fate>,
}

/// One start of one collector.
struct Collector {
    store: Arc<dyn Store>,
    is_alive: Arc<AtomicBool>,
    registry: Arc<Registry>,
    intake: Intake,
    metrics: Arc<Metrics>,
    settled: JoinHandle<()>,
    is_paused: watch::Sender<bool>,
    /// One for each stream: the order in which they learn of the stop is then always the same.
    stops: Vec<watch::Sender<bool>>,
}

/// How a connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// Both sides learn of it at once.
    Reset,
    /// The collector learns of it late.
    AgentVanishes,
    /// The agent learns of it late.
    CollectorVanishes,
}

impl Network {
    pub(crate) fn new(
        trace: Trace,
        oracle: Oracle,
        engine: Arc<Engine>,
        limits: Limits,
        clock: WallClock,
        rng: Rng,
        (nodes, collectors): (usize, usize),
    ) -> Arc<Self> {
        Arc::new(Self {
            trace,
            oracle,
            engine,
            limits,
            clock,
            state: Mutex::new(State {
                rng,
                collectors: (0..collectors).map(|_| None).collect(),
                links: BTreeMap::new(),
                last_link: 0,
                routes: (0..nodes).map(|node| node % collectors).collect(),
                stopped: vec![false; nodes],
                partitioned: vec![false; nodes],
                cut: vec![Cut::default(); nodes],
            }),
        })
    }

    pub(crate) fn start_collector(&self, number: usize) {
        if self.lock().collectors[number].is_some() {
            return;
        }
        self.trace.note("a collector starts", [number as u64, 0, 0, 0]);
        let is_alive = Arc::new(AtomicBool::new(true));
        let (is_paused, paused) = watch::channel(false);
        let store: Arc<dyn Store> = Arc::new(Connection::new(self.engine.clone(), is_alive.clone(), paused));
        let metrics = Arc::new(Metrics::new(&TABLES.map(|table| table.name)).expect("metrics"));
        let (intake, settled) = gather::start(
            store.clone(),
            self.limits,
            metrics.clone(),
            Arc::new(Health::default()),
            Minutes::new(self.clock.clone()),
            self.clock.clone(),
        );
        self.lock().collectors[number] = Some(Collector {
            store,
            is_alive,
            registry: Arc::default(),
            intake,
            metrics,
            settled,
            is_paused,
            stops: Vec::new(),
        });
    }

    /// Ends a collector at once: what it was about to do never happens.
    pub(crate) fn kill_collector(&self, number: usize) {
        let Some(collector) = self.lock().collectors[number].take() else {
            return;
        };
        self.trace.note("a collector is killed", [number as u64, 0, 0, 0]);
        collector.is_alive.store(false, Ordering::Relaxed);
        self.break_links(|link| link.collector == number, None);
    }

    /// Ends a collector as the product does when it is told to.
    pub(crate) async fn stop_collector(&self, number: usize) {
        let Some(collector) = self.lock().collectors[number].take() else {
            return;
        };
        self.trace.note("a collector stops", [number as u64, 0, 0, 0]);
        let Collector {
            is_alive,
            intake,
            settled,
            is_paused,
            stops,
            ..
        } = collector;
        for stop in stops {
            stop.send_replace(true);
        }
        drop(intake);
        let in_time = timeout(STOP_PATIENCE, settled).await.is_ok();
        self.trace.note(
            "a collector has stopped (number, in time)",
            [number as u64, u64::from(in_time), 0, 0],
        );
        is_alive.store(false, Ordering::Relaxed);
        drop(is_paused);
        self.break_links(|link| link.collector == number, None);
    }

    /// Breaks the links of a node.
    pub(crate) fn break_node(&self, node: usize, how: Break) {
        self.break_links(|link| link.node == node, Some(how));
    }

    fn break_links(&self, which: impl Fn(&Link) -> bool, how: Option<Break>) {
        let mut guard = self.lock();
        let State { links, rng, .. } = &mut *guard;
        links.retain(|number, link| {
            if !which(link) {
                return true;
            }
            let how = how.unwrap_or_else(|| {
                if rng.u8(0..4) == 0 {
                    Break::CollectorVanishes
                } else {
                    Break::Reset
                }
            });
            let late = Duration::from_millis(rng.u64(1_000..40_000));
            let soon = Duration::from_millis(rng.u64(0..10));
            let (agent, collector) = match how {
                Break::Reset => (soon, soon),
                Break::AgentVanishes => (soon, late),
                // The agent asks whether the collector is there, and has its answer within 20 s.
                Break::CollectorVanishes => (late / 2, soon),
            };
            let arrives = rng.bool();
            self.trace.note(
                "a link breaks (link, node, collector, arrives)",
                [
                    *number,
                    link.node as u64,
                    link.collector as u64,
                    u64::from(arrives),
                ],
            );
            link.to_collector.send_replace(Fate::Breaks {
                noticed_after: collector,
                arrives,
            });
            link.to_agent.send_replace(Fate::Breaks {
                noticed_after: agent,
                arrives: false,
            });
            false
        });
    }

    /// Stops or continues the process of a node: its links stall.
    pub(crate) fn stop_node(&self, node: usize, is_stopped: bool) {
        self.lock().stopped[node] = is_stopped;
        self.set_fates();
    }

    /// Nothing gets through to or from a node, or all does again. Its links stay, and stall.
    pub(crate) fn partition(&self, node: usize, is_partitioned: bool) {
        self.lock().partitioned[node] = is_partitioned;
        self.set_fates();
    }

    /// Nothing gets through in these directions on the links that a node has.
    pub(crate) fn cut(&self, node: usize, cut: Cut) {
        self.lock().cut[node] = cut;
        self.set_fates();
    }

    /// Stops or continues the process of a collector: nothing comes from it or goes to it, the store included.
    pub(crate) fn pause_collector(&self, number: usize, is_paused: bool) {
        if let Some(collector) = &self.lock().collectors[number] {
            self.trace.note(
                "a collector is paused (number, whether)",
                [number as u64, u64::from(is_paused), 0, 0],
            );
            collector.is_paused.send_replace(is_paused);
        }
        self.set_fates();
    }

    fn set_fates(&self) {
        let state = self.lock();
        for link in state.links.values() {
            let (to_collector, to_agent) = state.fates(link.node, link.collector);
            link.to_collector.send_replace(to_collector);
            link.to_agent.send_replace(to_agent);
        }
    }

    /// Has a node dial another collector first.
    pub(crate) fn reroute(&self, node: usize) {
        let mut state = self.lock();
        state.routes[node] = (state.routes[node] + 1) % state.collectors.len();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What a link between these two does now: to the collector, and to the agent.
    fn fates(&self, node: usize, collector: usize) -> (Fate, Fate) {
        let collector = self.collectors[collector].as_ref();
        let is_paused = collector.is_some_and(|collector| *collector.is_paused.borrow());
        let stalls = is_paused || self.stopped[node] || self.partitioned[node];
        let fate = |is_cut| {
            if stalls || is_cut {
                Fate::Stalls
            } else {
                Fate::Flows
            }
        };
        (fate(self.cut[node].to_collector), fate(self.cut[node].to_agent))
    }
}

/// A node's way to the collectors.
pub(crate) struct Cable {
    pub(crate) network: Arc<Network>,
    pub(crate) node: usize,
}

impl Dial for Cable {
    type Incoming = ReceiverStream<Result<CollectorMessage, Status>>;

    async fn dial(&self, queue: mpsc::Receiver<AgentMessage>) -> Result<Self::Incoming, ConnectionError> {
        let network = &self.network;
        let pause = network.lock().rng.u64(0..20);
        sleep(Duration::from_millis(pause)).await;
        if network.lock().partitioned[self.node] {
            sleep(CONNECT_TIMEOUT).await;
            return Err(ConnectionError::Connect("timed out".into()));
        }
        self.connect(queue)
            .ok_or_else(|| ConnectionError::Connect("connection refused".into()))
    }

    fn address(&self) -> &str {
        "the simulation"
    }
}

impl Cable {
    /// A new link to the collector that the route leads to, or to another one that is up.
    fn connect(&self, queue: mpsc::Receiver<AgentMessage>) -> Option<<Self as Dial>::Incoming> {
        let network = &self.network;
        let mut guard = network.lock();
        let state = &mut *guard;
        let first = state.routes[self.node];
        let count = state.collectors.len();
        let is_up = |number: &usize| state.collectors[*number].is_some();
        let number = (0..count).map(|next| (first + next) % count).find(is_up)?;
        let (to_collector, to_agent) = state.fates(self.node, number);
        let collector = state.collectors[number].as_mut()?;

        let (stop, stopping) = watch::channel(false);
        collector.stops.push(stop);
        let ingest = Ingest {
            reports: Reports::start(collector.store.clone()),
            // Nothing is judged.
            heard: Heard::default(),
            store: collector.store.clone(),
            registry: collector.registry.clone(),
            intake: collector.intake.clone(),
            metrics: collector.metrics.clone(),
            limits: network.limits,
            clock: network.clock.clone(),
            // Nothing is wanted.
            rules: watch::channel(Arc::default()).1,
            runs: Arc::default(),
            stopping,
        };
        let (to_collector, collector_fate) = watch::channel(to_collector);
        let (to_agent, agent_fate) = watch::channel(to_agent);
        state.last_link += 1;
        let link = state.last_link;
        network.trace.note(
            "a link (number, node, collector)",
            [link, self.node as u64, number as u64, 0],
        );
        state.links.insert(
            link,
            Link {
                node: self.node,
                collector: number,
                to_collector,
                to_agent,
            },
        );
        // Most links are quick; the others show what happens while something is on its way.
        let latency_ms = [0, 0, 3, 200][state.rng.usize(0..4)];
        let (up_rng, down_rng) = (state.rng.fork(), state.rng.fork());

        let (up, messages) = mpsc::channel(1);
        let (down, incoming) = mpsc::channel(1);
        let replies = ingest.accept(format!("node-{}", self.node), None, ReceiverStream::new(messages));
        let (oracle, trace, node) = (network.oracle.clone(), network.trace.clone(), self.node);
        let requests = ReceiverStream::new(queue).map(move |message| {
            if let Some(agent_message::Body::Batch(batch)) = &message.body {
                let stream = batch.stream as u64;
                trace.note(
                    "sent (link, epoch, stream, sequence)",
                    [link, batch.epoch, stream, batch.sequence],
                );
                oracle.sent(node, batch);
            }
            Ok(message)
        });
        let (oracle, trace) = (network.oracle.clone(), network.trace.clone());
        let replies = replies.map(move |reply| {
            if let Ok(message) = &reply {
                observe(&oracle, &trace, node, link, message);
            }
            reply
        });
        tokio::spawn(
            Pump {
                latency_ms,
                rng: up_rng,
                fate: collector_fate,
            }
            .run(requests, up),
        );
        tokio::spawn(
            Pump {
                latency_ms,
                rng: down_rng,
                fate: agent_fate,
            }
            .run(replies, down),
        );
        Some(ReceiverStream::new(incoming))
    }
}

/// Holds what a collector says against what is stored.
fn observe(oracle: &Oracle, trace: &Trace, node: usize, link: u64, message: &CollectorMessage) {
    match &message.body {
        Some(collector_message::Body::Acknowledgement(acknowledgement)) => {
            for &sequence in &acknowledgement.sequences {
                let (epoch, stream) = (acknowledgement.epoch, acknowledgement.stream);
                trace.note(
                    "acknowledged (link, epoch, stream, sequence)",
                    [link, epoch, stream as u64, sequence],
                );
                oracle.acknowledged(
                    node,
                    BatchName {
                        epoch,
                        stream,
                        sequence,
                    },
                );
            }
        }
        Some(collector_message::Body::Refusal(refusal)) => {
            let (epoch, stream, sequence) = (refusal.epoch, refusal.stream, refusal.sequence);
            trace.note(
                "refused (link, epoch, stream, sequence)",
                [link, epoch, stream as u64, sequence],
            );
            let name = BatchName {
                epoch,
                stream,
                sequence,
            };
            // The store refuses rows, and the collector times of a clock that is days off.
            if !["constraint", "the time of row"]
                .iter()
                .any(|known| refusal.reason.contains(known))
            {
                trace.fault(|| format!("batch {name:?} of node {node} was refused: {}", refusal.reason));
            }
            oracle.refused(node, name);
        }
        _ => {}
    }
}

/// One direction of a link.
struct Pump {
    latency_ms: u64,
    rng: Rng,
    fate: watch::Receiver<Fate>,
}

impl Pump {
    async fn run<T: Send + 'static>(
        mut self,
        mut source: impl Stream<Item = Result<T, Status>> + Unpin,
        sink: mpsc::Sender<Result<T, Status>>,
    ) {
        let mut on_the_way = VecDeque::new();
        let mut has_ended = false;
        loop {
            let fate = *self.fate.borrow_and_update();
            match fate {
                Fate::Flows => {}
                Fate::Stalls => {
                    if self.fate.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Fate::Breaks {
                    noticed_after,
                    arrives,
                } => {
                    sleep(noticed_after).await;
                    while let Some((_, message)) = on_the_way.pop_front().filter(|_| arrives) {
                        if sink.send(message).await.is_err() {
                            return;
                        }
                    }
                    // Its other end may have left by itself.
                    let _ = sink.send(Err(Status::unavailable("the connection broke"))).await;
                    return;
                }
            }
            if has_ended && on_the_way.is_empty() {
                return;
            }
            let due_at = on_the_way.front().map_or_else(Instant::now, |(at, _)| *at);
            tokio::select! {
                biased;
                changed = self.fate.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                permit = async { sleep_until(due_at).await; sink.reserve().await }, if !on_the_way.is_empty() => {
                    let (Ok(permit), Some((_, message))) = (permit, on_the_way.pop_front()) else { break };
                    permit.send(message);
                }
                message = source.next(), if !has_ended && on_the_way.len() < IN_FLIGHT => match message {
                    Some(message) => {
                        let delay = Duration::from_millis(self.rng.u64(0..=self.latency_ms));
                        let earliest = on_the_way.back().map_or_else(Instant::now, |(at, _)| *at);
                        on_the_way.push_back((earliest.max(Instant::now() + delay), message));
                    }
                    None => has_ended = true,
                },
            }
        }
        // Nobody takes it any more; whoever still speaks learns that from the other direction.
        while source.next().await.is_some() {}
    }
}
