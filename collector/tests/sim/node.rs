//! A node of a world: a kernel that reports connections, a disk and a clock, and on them the real agent, from the
//! records that come out of the ring to the connection to the collector. Started, killed and stopped as in real life.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use holdfast_agent::{
    batch::{self, Batcher},
    clock::Clock,
    clock_offset::ClockOffset,
    counters::{self, Counters},
    delivery::Delivery,
    gaps::GapBatcher,
    identity::Identity,
    load::consent::Consent,
    probes::KernelCounts,
    ring::Intake,
    runs::Runs,
    spool::{self, Next, Spool, Upkeep},
    uplink,
};
use holdfast_agent_ebpf::{
    event::{ConnectionRecord, attribution, flag, role, state, step, step_offset_ns},
    limits::PATH_STEPS,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    disk::{Crash, Health, MemoryDisk},
    engine::{Counts, Engine, REFUSED_PORT},
    network::{Break, Cable, Network},
    oracle::{BatchName, Oracle, Row, RowName},
    trace::Trace,
};

/// How long an agent that is told to stop goes on delivering, as in the product.
const FLUSH: Duration = Duration::from_secs(5);

/// How far the boot clock is when a world begins.
const BOOTED_NS: u64 = 1_000_000_000_000;

/// A batch that waits for longer than this is on a disk that works, and survives a kill: the writer's own pause and
/// that after a failure of the disk.
const WRITTEN_WITHIN: Duration = Duration::from_secs(6);

/// The same for a loss of power: the interval of syncs on top.
const SYNCED_WITHIN: Duration = Duration::from_secs(9);

/// What a node is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) batch: batch::Limits,
    pub(crate) spool: spool::Limits,
    /// The wall time when the world begins, in nanoseconds since the Unix epoch.
    pub(crate) began_ns: i64,
    /// Whether some of its rows are such that the store refuses them.
    pub(crate) has_refused_rows: bool,
}

/// A node of a world.
pub(crate) struct Node {
    number: usize,
    shape: Shape,
    rng: Rng,
    trace: Trace,
    oracle: Oracle,
    network: Arc<Network>,
    disk: MemoryDisk,
    /// When the disk last came to be well; `None` while it is not.
    well_since: Option<Duration>,
    /// How far the wall clock was set since the world began.
    clock_set_ns: Arc<AtomicI64>,
    is_paused: Arc<AtomicBool>,
    is_quiet: Arc<AtomicBool>,
    cookies: Arc<AtomicU64>,
    /// What is open in the kernel: it outlives every start of the agent.
    open: Arc<Mutex<Vec<ConnectionRecord>>>,
    last_epoch: u64,
    agent: Option<Agent>,
}

/// One start of the agent.
struct Agent {
    epoch: u64,
    counters: Arc<Counters>,
    spool: Arc<Spool>,
    source: Arc<Mutex<Source>>,
    upkeep: Arc<Mutex<Upkeep>>,
    /// The tasks of the ring's thread and of the writer.
    threads: [JoinHandle<()>; 2],
    uplink: JoinHandle<()>,
    finish: watch::Sender<bool>,
}

impl Node {
    pub(crate) fn new(
        number: usize,
        shape: Shape,
        mut rng: Rng,
        trace: Trace,
        oracle: Oracle,
        network: Arc<Network>,
    ) -> Self {
        Self {
            number,
            shape,
            disk: MemoryDisk::new(rng.fork()),
            rng,
            trace,
            oracle,
            network,
            well_since: Some(Duration::ZERO),
            clock_set_ns: Arc::default(),
            is_paused: Arc::default(),
            is_quiet: Arc::default(),
            // Each node has cookies of its own, so that a row is known by it in the whole world.
            cookies: Arc::new(AtomicU64::new((number as u64 + 1) << 32)),
            open: Arc::default(),
            last_epoch: 0,
            agent: None,
        }
    }

    /// Starts the agent, unless it runs.
    pub(crate) fn start(&mut self) {
        if self.agent.is_some() {
            return;
        }
        let counters = Arc::new(Counters::default());
        let boot_id = "boot";
        let spool = Spool::open(
            self.shape.spool,
            boot_id,
            Some(Box::new(self.disk.clone())),
            Arc::clone(&counters),
        );
        let spool = Arc::new(spool.expect("the disk can be listed"));
        let epoch = (self.wall_now_ns() / 1_000_000).max(self.last_epoch + 1);
        self.last_epoch = epoch;
        self.trace.note(
            "an agent starts (node, epoch, recovered)",
            [self.number as u64, epoch, spool.levels().batches, 0],
        );
        let batcher = Batcher::new(self.shape.batch, epoch, boot_id);
        let source = Arc::new(Mutex::new(Source {
            node: self.number,
            epoch,
            rng: self.rng.fork(),
            trace: self.trace.clone(),
            oracle: self.oracle.clone(),
            intake: Intake::new(batcher, Arc::default(), Arc::clone(&spool), Arc::clone(&counters)),
            spool: Arc::clone(&spool),
            position: 0,
            cookies: Arc::clone(&self.cookies),
            open: Arc::clone(&self.open),
            clock_set_ns: Arc::clone(&self.clock_set_ns),
            shape: self.shape,
        }));
        source.lock().unwrap_or_else(PoisonError::into_inner).seed();
        let upkeep = Arc::new(Mutex::new(Upkeep::default()));
        let appended = Arc::new(Notify::new());

        let identity = Identity {
            agent_id: format!("agent-{}", self.number),
            node: format!("node-{}", self.number),
            labels: Default::default(),
            epoch,
            boot_id: boot_id.into(),
            observed_netns: "all".into(),
            missing_features: Vec::new(),
        };
        let counted = Arc::clone(&counters);
        let mut delivery = Delivery {
            identity,
            spool: Arc::clone(&spool),
            counters: move || {
                Some(counters::status(
                    &counted.stages(),
                    &KernelCounts::default(),
                    |_, _| None,
                ))
            },
            gaps: GapBatcher::new(epoch, boot_id),
            probes: None,
            runs: Runs::new(Consent::nothing()),
            clock: ClockOffset::default(),
            wall_now_ns: self.wall_clock(),
            boot_now: {
                let trace = self.trace.clone();
                Arc::new(move || Duration::from_nanos(BOOTED_NS) + trace.elapsed())
            },
        };
        let cable = Cable {
            network: Arc::clone(&self.network),
            node: self.number,
        };
        let (finish, finished) = watch::channel(false);
        let uplink = tokio::spawn(async move { uplink::run(&cable, &mut delivery, finished).await });
        let threads = [
            tokio::spawn(drain(
                Arc::clone(&source),
                Arc::clone(&self.is_paused),
                Arc::clone(&self.is_quiet),
                Arc::clone(&appended),
                self.rng.fork(),
            )),
            tokio::spawn(write(
                Arc::clone(&spool),
                Arc::clone(&upkeep),
                self.trace.clone(),
                appended,
                self.shape.spool.sync,
                self.rng.fork(),
            )),
        ];
        self.agent = Some(Agent {
            epoch,
            counters,
            spool,
            source,
            upkeep,
            threads,
            uplink,
            finish,
        });
    }

    /// Ends the agent without a word, and perhaps the machine.
    pub(crate) async fn crash(&mut self, crash: Crash) {
        let Some(agent) = self.agent.take() else { return };
        self.trace.note(
            "an agent crashes (node, epoch, machine)",
            [
                self.number as u64,
                agent.epoch,
                u64::from(crash == Crash::PowerLost),
                0,
            ],
        );
        let vanishes = crash == Crash::PowerLost;
        self.network.break_node(
            self.number,
            if vanishes {
                Break::AgentVanishes
            } else {
                Break::Reset
            },
        );
        agent.source.lock().unwrap_or_else(PoisonError::into_inner).look();
        let waiting = agent.waiting();
        agent.end().await;
        self.disk.crash(crash);
        let within = if vanishes { SYNCED_WITHIN } else { WRITTEN_WITHIN };
        let now = self.trace.elapsed();
        let is_known = self.well_since.is_some_and(|since| since + within < now)
            && !self.is_paused()
            && !self.disk.is_rotten();
        self.oracle.ended(
            self.number,
            &self.disk.durable(),
            &waiting,
            is_known.then_some(within),
        );
    }

    /// Ends the agent as the product does when it is told to stop.
    pub(crate) async fn stop(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        self.trace.note(
            "an agent stops (node, epoch)",
            [self.number as u64, agent.epoch, 0, 0],
        );
        agent.threads.iter().for_each(JoinHandle::abort);
        agent
            .source
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish();
        agent.finish.send_replace(true);
        let waiting = agent.waiting();
        let Agent {
            mut uplink,
            spool,
            upkeep,
            ..
        } = agent;
        if timeout(FLUSH, &mut uplink).await.is_err() {
            uplink.abort();
            let _ = uplink.await;
        }
        let is_written =
            upkeep
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .step(&spool, self.trace.elapsed(), true);
        let unanswered: BTreeSet<BatchName> = spool.unanswered().into_iter().map(name).collect();
        let kept: Vec<_> = waiting
            .into_iter()
            .filter(|name| is_written && unanswered.contains(name) && !self.is_cramped())
            .collect();
        let must_be_there = is_written.then_some(Duration::ZERO);
        self.oracle
            .ended(self.number, &self.disk.durable(), &kept, must_be_there);
    }

    /// Stops or continues the process; while it is stopped its links stall as well.
    pub(crate) fn pause(&self, is_paused: bool) {
        self.trace.note(
            "an agent is paused (node, whether)",
            [self.number as u64, u64::from(is_paused), 0, 0],
        );
        self.is_paused.store(is_paused, Ordering::Relaxed);
        self.network.stop_node(self.number, is_paused);
    }

    /// Whether its disk may be too small for what has to wait.
    fn is_cramped(&self) -> bool {
        self.shape.spool.disk_bytes < 1 << 20 || self.disk.is_rotten()
    }

    fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Relaxed)
    }

    /// Sets the wall clock.
    pub(crate) fn set_clock(&self, by_ns: i64) {
        self.trace.note(
            "a clock is set (node, by s)",
            [self.number as u64, (by_ns / 1_000_000_000) as u64, 0, 0],
        );
        self.clock_set_ns.fetch_add(by_ns, Ordering::Relaxed);
    }

    /// Sets the wall clock right.
    pub(crate) fn correct_clock(&self) {
        self.clock_set_ns.store(0, Ordering::Relaxed);
    }

    pub(crate) fn set_disk(&mut self, health: Health) {
        self.trace
            .note("a disk (node, health)", [self.number as u64, health as u64, 0, 0]);
        self.disk.set_health(health);
        self.well_since = (health == Health::Well).then(|| self.trace.elapsed());
    }

    pub(crate) fn rot_disk(&mut self) {
        let lost = self.disk.rot();
        self.trace.note(
            "a bit rots (node, batches)",
            [self.number as u64, lost.len() as u64, 0, 0],
        );
        self.oracle.rotted(self.number, &lost);
    }

    /// No more connections.
    pub(crate) fn fall_quiet(&self) {
        self.is_quiet.store(true, Ordering::Relaxed);
    }

    /// Whether everything that the agent took is answered, and it has told so since.
    pub(crate) fn is_drained(&self, engine: &Engine) -> bool {
        self.agent.as_ref().is_some_and(|agent| {
            let stages = agent.counters.total();
            let counts = Counts {
                received: stages.received,
                announced: stages.announced,
                acknowledged: stages.acknowledged,
                dropped: stages.dropped,
                refused: stages.refused,
            };
            let told = engine.ledger(self.number, agent.epoch).unwrap_or_default();
            stages.batching == 0 && agent.spool.levels().batches == 0 && told == counts
        })
    }

    /// Number, epoch and counters of the agent that runs.
    pub(crate) fn counted(&self) -> Option<(usize, u64, holdfast_agent::counters::Stages)> {
        self.agent
            .as_ref()
            .map(|agent| (self.number, agent.epoch, agent.counters.total()))
    }

    /// Holds the spool against its bounds.
    pub(crate) fn check_bounds(&self) {
        let Some(agent) = &self.agent else { return };
        let levels = agent.spool.levels();
        let limits = self.shape.spool;
        if levels.memory_bytes > limits.memory_bytes {
            self.trace
                .fault(|| format!("node {}: {levels:?} for {limits:?}", self.number));
        }
    }

    fn wall_now_ns(&self) -> u64 {
        (self.wall_clock())()
    }

    fn wall_clock(&self) -> Arc<dyn Fn() -> u64 + Send + Sync> {
        let (trace, set_ns, began_ns) = (
            self.trace.clone(),
            Arc::clone(&self.clock_set_ns),
            self.shape.began_ns,
        );
        Arc::new(move || {
            (trace.elapsed().as_nanos() as i64 + began_ns + set_ns.load(Ordering::Relaxed)) as u64
        })
    }
}

impl Agent {
    /// The batches that wait for an answer and have their bytes.
    fn waiting(&self) -> Vec<BatchName> {
        let mut waiting = Vec::new();
        let mut position = 0;
        while let Some((next, batch)) = self.spool.next(position) {
            position = next;
            // What is on the disk alone is there, or the oracle finds it missing.
            if let Next::Ready(sealed) = batch {
                waiting.push(name(sealed.id));
            }
        }
        waiting
    }

    /// Ends every task; returns when nothing of the agent is left.
    async fn end(self) {
        let Self { threads, uplink, .. } = self;
        for task in threads {
            task.abort();
            let _ = task.await;
        }
        uplink.abort();
        let _ = uplink.await;
    }
}

fn name(id: spool::BatchId) -> BatchName {
    BatchName {
        epoch: id.epoch,
        stream: id.stream as i32,
        sequence: id.sequence,
    }
}

/// The kernel's side of the agent: makes records and hands them over.
struct Source {
    node: usize,
    epoch: u64,
    rng: Rng,
    trace: Trace,
    oracle: Oracle,
    intake: Intake,
    spool: Arc<Spool>,
    /// Up to here the spool was looked at.
    position: u64,
    cookies: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<ConnectionRecord>>>,
    clock_set_ns: Arc<AtomicI64>,
    shape: Shape,
}

impl Source {
    /// What is open when the agent starts is found by its survey: since then, as far as it knows.
    fn seed(&mut self) {
        let found_ns = self.boot_ns();
        for record in self.open().iter_mut() {
            record.opened_ns = found_ns;
            record.path[0] = step(state::ESTABLISHED, 0);
            record.path_len = 1;
            record.flags = flag::SEEDED | flag::ESTABLISHED;
        }
    }

    /// Hands some connections over that have ended just now, and lets others begin that stay open.
    fn burst(&mut self, connections: usize) {
        for _ in 0..connections {
            let cookie = self.cookies.fetch_add(1, Ordering::Relaxed);
            let record = self.record(cookie);
            if self.rng.u8(0..3) > 0 {
                self.hand_over(record);
                continue;
            }
            let established = ConnectionRecord {
                path_len: 2,
                bytes_sent: 0,
                flags: flag::FIRST | flag::ESTABLISHED,
                ..record
            };
            self.open().push(established);
        }
    }

    /// Announces some of what is open and was not announced, and ends some of it.
    fn sweep(&mut self) {
        let mut open = std::mem::take(&mut *self.open());
        let (mut announces, mut kept) = (false, Vec::new());
        for mut record in open.drain(..) {
            if record.flags & flag::FIRST != 0 && self.rng.bool() {
                self.emit(&record);
                self.intake.announce(record, self.clock(), self.trace.elapsed());
                record.flags &= !flag::FIRST;
                announces = true;
            }
            if self.rng.u8(0..8) > 0 {
                kept.push(record);
                continue;
            }
            let last_ns = step_offset_ns(record.path[usize::from(record.path_len) - 1]);
            let ended_ns = last_ns.max(self.boot_ns() - record.opened_ns);
            record.path[usize::from(record.path_len)] = step(state::CLOSE, ended_ns);
            record.path_len += 1;
            record.bytes_sent = self.rng.u64(0..1_000_000);
            record.flags |= flag::FINAL;
            self.hand_over(record);
        }
        *self.open() = kept;
        if announces {
            self.intake.seal();
        }
        self.look();
    }

    /// A record comes out of the ring.
    fn hand_over(&mut self, record: ConnectionRecord) {
        self.emit(&record);
        self.intake.take(record, self.clock(), self.trace.elapsed());
        self.look();
    }

    /// Tells the oracle of a row.
    fn emit(&self, record: &ConnectionRecord) {
        let last_ns = record.steps().last().map_or(0, |&step| step_offset_ns(step));
        let row = Row {
            recorded_ns: self.clock().wall_ns(record.opened_ns) + last_ns / 1_000 * 1_000,
            netns: record.netns,
            remote_port: record.remote_port,
            bytes_sent: record.bytes_sent,
            is_first: record.flags & flag::FIRST != 0,
        };
        let name = RowName {
            cookie: record.cookie,
            is_final: record.flags & flag::FINAL != 0,
        };
        let set_ns = self.clock_set_ns.load(Ordering::Relaxed);
        let made_ns = row.recorded_ns.saturating_add_signed(-set_ns);
        self.oracle.emitted(self.node, self.epoch, name, row, made_ns);
    }

    fn open(&self) -> MutexGuard<'_, Vec<ConnectionRecord>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&mut self) {
        self.intake.tick(self.trace.elapsed());
        self.look();
    }

    fn finish(&mut self) {
        self.intake.seal();
        self.look();
    }

    /// Shows the oracle what is new in the spool.
    fn look(&mut self) {
        while let Some((position, next)) = self.spool.next(self.position) {
            self.position = position;
            if let Next::Ready(sealed) = next {
                self.oracle.sealed(self.node, name(sealed.id), &sealed.encoded);
            }
        }
    }

    fn boot_ns(&self) -> u64 {
        BOOTED_NS + self.trace.elapsed().as_nanos() as u64
    }

    fn clock(&self) -> Clock {
        let wall_at_boot_ns = self.shape.began_ns - BOOTED_NS as i64;
        Clock::with_offset_ns(wall_at_boot_ns + self.clock_set_ns.load(Ordering::Relaxed))
    }

    fn record(&mut self, cookie: u64) -> ConnectionRecord {
        let lasted_ns = self.rng.u64(1_000..20_000_000_000);
        let mut path = [0; PATH_STEPS];
        path[0] = step(state::SYN_SENT, 0);
        path[1] = step(state::ESTABLISHED, lasted_ns / 4);
        path[2] = step(state::FIN_WAIT1, lasted_ns / 2);
        path[3] = step(state::CLOSE, lasted_ns);
        let is_refused = self.shape.has_refused_rows && self.rng.u8(0..100) == 0;
        ConnectionRecord {
            cookie,
            opened_ns: self.boot_ns() - lasted_ns,
            path,
            path_len: 4,
            bytes_sent: self.rng.u64(0..1_000_000),
            comm: *b"simulated\0\0\0\0\0\0\0",
            netns: 1 + self.rng.u32(0..2),
            pid: self.rng.u32(1..5),
            remote_port: if is_refused {
                REFUSED_PORT
            } else {
                self.rng.u16(1_000..)
            },
            family: 2,
            role: role::ACTIVE,
            attribution: attribution::EXACT,
            flags: flag::FIRST | flag::FINAL,
            ..ConnectionRecord::ZERO
        }
    }
}

/// The ring's thread: connections in bursts, and a look at the batches' age in between.
async fn drain(
    source: Arc<Mutex<Source>>,
    is_paused: Arc<AtomicBool>,
    is_quiet: Arc<AtomicBool>,
    appended: Arc<Notify>,
    mut rng: Rng,
) {
    loop {
        sleep(Duration::from_millis(rng.u64(50..600))).await;
        if is_paused.load(Ordering::Relaxed) {
            continue;
        }
        let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_quiet.load(Ordering::Relaxed) && rng.u8(0..3) > 0 {
            source.burst(rng.usize(1..6));
            source.sweep();
        }
        source.tick();
        appended.notify_one();
    }
}

/// The writer's thread.
async fn write(
    spool: Arc<Spool>,
    upkeep: Arc<Mutex<Upkeep>>,
    trace: Trace,
    appended: Arc<Notify>,
    sync: Duration,
    mut rng: Rng,
) {
    loop {
        let works =
            upkeep
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .step(&spool, trace.elapsed(), false);
        if works {
            let _ = timeout(sync, appended.notified()).await;
            // It is not the only thread of the machine.
            sleep(Duration::from_millis(rng.u64(0..300))).await;
        } else {
            sleep(spool::DISK_RETRY).await;
        }
    }
}
