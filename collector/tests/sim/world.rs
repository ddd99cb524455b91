//! One seed is one world: how many agents and collectors, how they are configured, and what befalls them when. After
//! its last misfortune a world is healed; then everything must drain, and the books must balance.

use std::{
    cell::Cell,
    collections::BTreeMap,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use holdfast_agent::{batch, spool};
use holdfast_collector::{clock::WallClock, config::Limits};
use tokio::{
    runtime::Builder,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    disk::{Crash, Health},
    engine::{Counts, Engine, Lapse, Weather},
    network::{Break, Cut, Network},
    node::{Node, Shape},
    oracle::Oracle,
    trace::Trace,
};

/// 2026-11-22, midnight UTC.
const MIDNIGHT_NS: i64 = 20_414 * 86_400_000_000_000;

const SECOND_NS: i64 = 1_000_000_000;

/// Everything has to be answered so long after the last misfortune. The longest waits follow one another: the agent
/// learns late that its connection is dead, pauses before it dials, is told to wait for its former batches.
const HEALED_WITHIN: Duration = Duration::from_secs(180);

/// After everything is answered: the last counters still have to be sent and stored.
const LAST_COUNTERS: Duration = Duration::from_secs(3);

/// How often the healed world is looked at.
const LOOK: Duration = Duration::from_millis(500);

thread_local! {
    /// A task of the world on this thread has panicked.
    pub(crate) static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// How a world ended.
pub(crate) struct Ending {
    pub(crate) fault: Option<String>,
    pub(crate) trace: Trace,
    /// Virtual time.
    pub(crate) took: Duration,
    pub(crate) rows: u64,
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug)]
enum Step {
    Crash(usize, Crash),
    StopAgent(usize),
    StartAgent(usize),
    PauseAgent(usize, bool),
    SetClock(usize, i64),
    Disk(usize, Health),
    Rot(usize),
    Break(usize, Break),
    Partition(usize, bool),
    Cut(usize, Cut),
    Reroute(usize),
    /// From one living collector to another.
    Move(usize, Break),
    PauseCollector(usize, bool),
    KillCollector(usize),
    StopCollector(usize),
    StartCollector(usize),
    Weather(Weather),
    RestartStore,
}

/// Lives through the world of a seed, on a store with a lapse or without.
pub(crate) fn run(seed: u64, lapse: Lapse) -> Ending {
    PANICKED.set(false);
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let trace = {
        let _inside = runtime.enter();
        Trace::new()
    };
    let rows =
        panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(live(seed, lapse, &trace)))).unwrap_or(0);
    let took = runtime.block_on(async { trace.elapsed() });
    // Before the verdict: what still ran must not panic either.
    drop(runtime);
    if PANICKED.get() {
        trace.fault(|| "something panicked, see above".into());
    }
    Ending {
        fault: trace.first_fault(),
        trace,
        took,
        rows,
    }
}

struct World {
    trace: Trace,
    oracle: Oracle,
    engine: Arc<Engine>,
    network: Arc<Network>,
    nodes: Vec<Node>,
    collectors: usize,
    /// Whether the store goes with its collector.
    is_embedded: bool,
}

/// Gives the number of rows.
async fn live(seed: u64, lapse: Lapse, trace: &Trace) -> u64 {
    let mut rng = Rng::with_seed(seed);
    let began_ns = MIDNIGHT_NS - rng.i64(0..60) * SECOND_NS;
    let oracle = Oracle::new(trace.clone());
    let node_count = [1, 1, 2, 2, 3, 4][rng.usize(0..6)];
    let collectors = [1, 1, 1, 2, 2, 3][rng.usize(0..6)];
    let is_embedded = collectors == 1 && rng.bool();
    let engine = Engine::new(trace.clone(), oracle.clone(), rng.fork(), !is_embedded, lapse);
    let clock = trace.clone();
    let clock = WallClock::new(move || began_ns + clock.elapsed().as_nanos() as i64);
    let gather_bytes = 64 << 10 << rng.u32(0..5);
    let limits = Limits {
        // As in the product's configuration: the room is for sixteen of the largest messages at least.
        max_batch_bytes: gather_bytes / 16,
        gather_rows: [20, 100_000][rng.usize(0..2)],
        gather_bytes,
        ..Limits::default()
    };
    let network = Network::new(
        trace.clone(),
        oracle.clone(),
        engine.clone(),
        limits,
        clock,
        rng.fork(),
        (node_count, collectors),
    );
    let shape = Shape {
        batch: batch::Limits {
            rows: rng.usize(2..30),
            ..batch::Limits::default()
        },
        spool: spool::Limits {
            // A batch of 30 rows has some 2 kB.
            memory_bytes: [40_000, 120_000, 1 << 20][rng.usize(0..3)],
            disk_bytes: [10_000, 1 << 20][rng.usize(0..2)],
            ..spool::Limits::default()
        },
        began_ns,
        has_refused_rows: rng.u8(0..4) == 0,
    };
    let nodes = (0..node_count)
        .map(|number| {
            Node::new(
                number,
                shape,
                rng.fork(),
                trace.clone(),
                oracle.clone(),
                network.clone(),
            )
        })
        .collect();
    let mut world = World {
        trace: trace.clone(),
        oracle,
        engine,
        network,
        nodes,
        collectors,
        is_embedded,
    };
    world.suffer(&mut rng).await;
    world.heal().await
}

impl World {
    /// Everything starts, and misfortunes follow one another.
    async fn suffer(&mut self, rng: &mut Rng) {
        for collector in 0..self.collectors {
            self.network.start_collector(collector);
        }
        for node in &mut self.nodes {
            node.start();
        }
        let began = Instant::now();
        let mut steps = self.misfortunes(rng);
        while let Some(((at, _), step)) = steps.pop_first() {
            sleep_until(began + at).await;
            self.apply(step).await;
            self.nodes.iter().for_each(Node::check_bounds);
        }
    }

    /// What befalls this world: each misfortune, and a while later its end.
    fn misfortunes(&self, rng: &mut Rng) -> BTreeMap<(Duration, usize), Step> {
        let mut steps = BTreeMap::new();
        let mut at_ms = rng.u64(100..3_000);
        for _ in 0..rng.usize(1..10) {
            let node = rng.usize(0..self.nodes.len());
            let collector = rng.usize(0..self.collectors);
            let ends_ms = at_ms + [100, 1_000, 5_000, 20_000][rng.usize(0..4)] + rng.u64(0..1_000);
            let (begin, end) = match rng.u8(0..25) {
                0 | 1 => (Step::Crash(node, Crash::Killed), Some(Step::StartAgent(node))),
                2 => (Step::Crash(node, Crash::PowerLost), Some(Step::StartAgent(node))),
                3 => (Step::StopAgent(node), Some(Step::StartAgent(node))),
                4 => (Step::PauseAgent(node, true), Some(Step::PauseAgent(node, false))),
                5 => (Step::SetClock(node, clock_step_ns(rng)), None),
                6 => (
                    Step::Disk(node, Health::Full),
                    Some(Step::Disk(node, Health::Well)),
                ),
                7 => (
                    Step::Disk(node, Health::ReadOnly),
                    Some(Step::Disk(node, Health::Well)),
                ),
                8 => (Step::Rot(node), None),
                9 => (Step::Break(node, Break::Reset), None),
                10 => (Step::Break(node, Break::AgentVanishes), None),
                11 => (Step::Break(node, Break::CollectorVanishes), None),
                12 => (Step::Partition(node, true), Some(Step::Partition(node, false))),
                13 if self.collectors > 1 => {
                    (Step::Reroute(node), Some(Step::Break(node, Break::AgentVanishes)))
                }
                13 | 14 => (
                    Step::KillCollector(collector),
                    Some(Step::StartCollector(collector)),
                ),
                15 => (
                    Step::StopCollector(collector),
                    Some(Step::StartCollector(collector)),
                ),
                16 => (Step::Weather(Weather::Away), Some(Step::Weather(Weather::Fair))),
                17 if rng.bool() => (Step::Weather(Weather::Slow), Some(Step::Weather(Weather::Fair))),
                17 => (Step::Weather(Weather::Far), Some(Step::Weather(Weather::Fair))),
                18 => (
                    Step::Weather(Weather::Uncertain),
                    Some(Step::Weather(Weather::Fair)),
                ),
                19 => {
                    let to_agent = rng.bool();
                    let cut = Cut {
                        to_agent,
                        to_collector: !to_agent,
                    };
                    (Step::Cut(node, cut), Some(Step::Cut(node, Cut::default())))
                }
                20 | 21 if self.collectors > 1 => {
                    let breaks = [Break::Reset, Break::AgentVanishes, Break::CollectorVanishes];
                    let mut move_on = || Step::Move(node, breaks[rng.usize(0..3)]);
                    (move_on(), Some(move_on()))
                }
                20..=22 => (
                    Step::PauseCollector(collector, true),
                    Some(Step::PauseCollector(collector, false)),
                ),
                23 => (Step::Weather(Weather::Full), Some(Step::Weather(Weather::Fair))),
                _ if rng.bool() => (Step::Weather(Weather::Sick), Some(Step::Weather(Weather::Fair))),
                _ => (Step::RestartStore, None),
            };
            steps.insert((Duration::from_millis(at_ms), steps.len()), begin);
            if let Some(end) = end {
                steps.insert((Duration::from_millis(ends_ms), steps.len()), end);
            }
            at_ms += [50, 1_000, 4_000][rng.usize(0..3)] + rng.u64(0..1_000);
        }
        steps
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Crash(node, crash) => self.nodes[node].crash(crash).await,
            Step::StopAgent(node) => self.nodes[node].stop().await,
            Step::StartAgent(node) => self.nodes[node].start(),
            Step::PauseAgent(node, is_paused) => self.nodes[node].pause(is_paused),
            Step::SetClock(node, by_ns) => self.nodes[node].set_clock(by_ns),
            Step::Disk(node, health) => self.nodes[node].set_disk(health),
            Step::Rot(node) => self.nodes[node].rot_disk(),
            Step::Break(node, how) => self.network.break_node(node, how),
            Step::Partition(node, is_partitioned) => {
                self.trace.note(
                    "a partition (node, whether)",
                    [node as u64, u64::from(is_partitioned), 0, 0],
                );
                self.network.partition(node, is_partitioned);
            }
            Step::Cut(node, cut) => {
                self.trace.note(
                    "a cut (node, to the collector, to the agent)",
                    [
                        node as u64,
                        u64::from(cut.to_collector),
                        u64::from(cut.to_agent),
                        0,
                    ],
                );
                self.network.cut(node, cut);
            }
            Step::Reroute(node) => self.network.reroute(node),
            Step::Move(node, how) => {
                self.trace.note("an agent moves (node)", [node as u64, 0, 0, 0]);
                self.network.reroute(node);
                self.network.break_node(node, how);
            }
            Step::PauseCollector(collector, is_paused) => self.network.pause_collector(collector, is_paused),
            Step::KillCollector(collector) => {
                self.network.kill_collector(collector);
                if self.is_embedded {
                    self.engine.restart();
                }
            }
            Step::StopCollector(collector) => {
                self.network.stop_collector(collector).await;
                if self.is_embedded {
                    self.engine.restart();
                }
            }
            Step::StartCollector(collector) => self.network.start_collector(collector),
            Step::Weather(weather) => {
                self.trace.note("the store (weather)", [weather as u64, 0, 0, 0]);
                self.engine.set_weather(weather);
            }
            Step::RestartStore => {
                self.trace.note("the store restarts", [0; 4]);
                self.engine.restart();
            }
        }
    }

    /// Everything works again and no more connections come: all that there is must be answered. Gives the number of
    /// rows.
    async fn heal(&mut self) -> u64 {
        self.trace.note("the world is healed", [0; 4]);
        self.engine.set_weather(Weather::Fair);
        for collector in 0..self.collectors {
            self.network.start_collector(collector);
            self.network.pause_collector(collector, false);
        }
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.set_disk(Health::Well);
            node.correct_clock();
            self.network.partition(number, false);
            self.network.cut(number, Cut::default());
            node.pause(false);
            node.fall_quiet();
            node.start();
        }
        let healed = Instant::now();
        let mut drained = false;
        while !drained {
            if healed.elapsed() > HEALED_WITHIN {
                self.trace.fault(|| {
                    format!("not everything is answered {HEALED_WITHIN:?} after the last misfortune")
                });
                return 0;
            }
            sleep(LOOK).await;
            self.nodes.iter().for_each(Node::check_bounds);
            if self.is_drained() {
                // Gaps are sealed once a second: only what stays so is drained.
                sleep(LAST_COUNTERS).await;
                drained = self.is_drained();
            }
        }
        self.check()
    }

    fn is_drained(&self) -> bool {
        self.nodes.iter().all(|node| node.is_drained(&self.engine))
    }

    /// The books: every row in one place, and every counter of the agents that run as the store has it.
    fn check(&self) -> u64 {
        let ends = self.oracle.check();
        for (node, epoch, stages) in self.nodes.iter().filter_map(Node::counted) {
            let ends = ends.get(&(node, epoch)).copied().unwrap_or_default();
            let places = [
                stages.received + stages.announced,
                stages.acknowledged,
                stages.dropped,
                stages.refused,
            ];
            if places != [ends.emitted, ends.stored, ends.in_gaps, ends.refused] {
                self.trace.fault(|| {
                    format!("node {node}, start {epoch}: the agent counts {stages:?}, it is {ends:?}")
                });
            }
            let counts = Counts {
                received: stages.received,
                announced: stages.announced,
                acknowledged: stages.acknowledged,
                dropped: stages.dropped,
                refused: stages.refused,
            };
            if ends.emitted > 0 && self.engine.ledger(node, epoch) != Some(counts) {
                self.trace.fault(|| {
                    format!(
                        "node {node}, start {epoch}: the agent counts {counts:?}, the store has {:?}",
                        self.engine.ledger(node, epoch)
                    )
                });
            }
        }
        ends.values().map(|ends| ends.emitted).sum()
    }
}

/// Seconds, hours or days, back or forth; now and then to where midnight is near.
fn clock_step_ns(rng: &mut Rng) -> i64 {
    // Up to 58 days.
    let seconds = [2, 60, 7_200, 80_000, 300_000, 5_000_000][rng.usize(0..6)];
    (rng.i64(-seconds..seconds)) * SECOND_NS
}
