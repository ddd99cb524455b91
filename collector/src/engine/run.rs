//! The task that drives the engine in a collector: a step four times a second, another set when its files change.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, error, info, warn};

use super::Engine;
use super::files::{self, FilesError};
use super::heard::Heard;
use crate::assertion::Set;
use crate::assertion::state::Verdict;
use crate::clock::WallClock;
use crate::metrics::Metrics;
use crate::notify::Ear;
use crate::seat::Seat;
use crate::silence::Silencer;
use crate::store::{Store, StoreError};

/// How often it is looked whether a window can be judged: half of the shortest `every`.
const STEP: Duration = Duration::from_millis(250);

/// Between two steps, however soon the next window is whole: what is whole meanwhile is judged together.
const BREATH: Duration = Duration::from_millis(50);

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The pause after a failure of the store.
const PAUSE: Duration = Duration::from_secs(1);

/// What a folder declares.
#[derive(Clone, Debug)]
pub struct Declared {
    pub folder: PathBuf,
    pub set: Set,
    /// The files as they were before they were read: what changes from then on is a change, also while the store is waited for.
    seen: Footprint,
}

/// What changes when a file does: names, sizes and times.
type Footprint = Vec<(PathBuf, u64, Option<SystemTime>)>;

impl Declared {
    pub fn read(folder: PathBuf) -> Result<Self, FilesError> {
        let seen = footprint(&folder);
        let (_, set) = files::load(std::slice::from_ref(&folder))?;
        Ok(Self { folder, set, seen })
    }
}

/// What is judged now, for those who ask.
#[derive(Clone, Debug)]
pub struct SharedSet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    set: RwLock<Arc<Set>>,
    trouble: RwLock<Trouble>,
}

/// What is to be known about judging beside its verdicts, in words, with the next step.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// The files are wrong, so another set is judged than what they declare.
    pub wrong: Option<String>,
    /// Since when, however often they were changed meanwhile.
    wrong_since_ns: Option<i64>,
    /// What is declared cannot be judged.
    pub failing: Option<String>,
}

impl SharedSet {
    pub fn new(set: Set) -> Self {
        Self(Arc::new(Shared {
            set: RwLock::new(Arc::new(set)),
            trouble: RwLock::default(),
        }))
    }

    pub fn trouble(&self) -> Trouble {
        let trouble = self.0.trouble.read();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn now_right(&self) {
        let mut trouble = self.0.trouble.write().unwrap_or_else(PoisonError::into_inner);
        (trouble.wrong, trouble.wrong_since_ns) = (None, None);
    }

    /// `told`: what is wrong, and what to do.
    fn now_wrong(&self, now_ns: i64, told: &str) {
        let mut trouble = self.0.trouble.write().unwrap_or_else(PoisonError::into_inner);
        let since = second(*trouble.wrong_since_ns.get_or_insert(now_ns));
        trouble.wrong = Some(format!(
            "the files are wrong since {since}, so those from before are judged: {told}"
        ));
    }

    fn now_failing(&self, failing: Option<String>) {
        let mut trouble = self.0.trouble.write().unwrap_or_else(PoisonError::into_inner);
        trouble.failing = failing;
    }

    /// Another one, by address, once it was replaced.
    pub fn now(&self) -> Arc<Set> {
        // What it guards is replaced as a whole.
        self.0.set.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, set: Set) {
        *self.0.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }
}

/// The task: judges what is declared, until the collector stops.
pub struct Judge {
    pub store: Arc<dyn Store>,
    /// What agents say here.
    pub heard: Heard,
    pub declared: Declared,
    pub shared: SharedSet,
    /// Who is told what was stored.
    pub ear: Ear,
    pub silencer: Arc<Silencer>,
    /// Only who has it judges.
    pub seat: Arc<Seat>,
    pub metrics: Arc<Metrics>,
    pub clock: WallClock,
    /// Made with the collector: until somebody asks for it, this signal ends a process.
    pub hang_up: Option<Signal>,
    /// True once the collector stops.
    pub stopping: watch::Receiver<bool>,
}

/// The signal that has the files read again. `None`: it cannot be heard.
pub fn hang_up() -> Option<Signal> {
    signal(SignalKind::hangup()).ok()
}

impl Judge {
    pub async fn run(mut self) {
        let Declared {
            folder,
            set,
            mut seen,
        } = self.declared.clone();
        let mut engine = self.engine(set, self.clock.now_ns());
        info!(assertions = engine.set().assertions.len(), folder = %folder.display(), "judging");
        let mut hang_up = self.hang_up.take();
        let mut ticks = tokio::time::interval(STEP);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let (mut is_resumed, mut is_failing) = (false, false);
        let mut stepped = Instant::now();
        loop {
            let is_hung_up = tokio::select! {
                biased;
                // An error means that the collector is gone already.
                _ = self.stopping.wait_for(|stopping| *stopping) => break,
                () = hung_up(&mut hang_up) => true,
                _ = ticks.tick() => false,
                () = whole(&self.heard, stepped) => false,
            };
            stepped = Instant::now();
            if is_hung_up || looked.elapsed() >= LOOK {
                looked = Instant::now();
                let now = footprint(&folder);
                if is_hung_up || now != seen {
                    seen = now;
                    self.reload(&mut engine, &folder);
                }
            }
            let outcome = self.step(&mut engine, &mut is_resumed).await;
            self.ear.stored(&engine.take_written());
            match outcome {
                Ok(()) if is_failing => {
                    is_failing = false;
                    self.shared.now_failing(None);
                    info!("assertions are judged again");
                }
                Ok(()) => {}
                // Another collector judges now, or this one was late to write: the next step finds out.
                Err(StoreError::LeaseEnded) => {}
                Err(error) => {
                    self.metrics.assertions.failures.inc();
                    if !is_failing {
                        is_failing = true;
                        let since = second(self.clock.now_ns());
                        self.shared.now_failing(Some(format!(
                            "cannot be judged since {since}: {error}; see the log of holdfast serve, and whether the store answers"
                        )));
                        warn!(%error, "assertions cannot be judged; windows wait");
                    }
                    ticks.reset_after(PAUSE);
                }
            }
        }
        if is_resumed {
            // What was put off; where it cannot be written, whoever judges next comes to it again.
            if let Err(error) = engine.write(self.clock.now_ns()).await {
                debug!(%error, "the last verdicts are not written");
            }
        }
    }

    async fn step(&self, engine: &mut Engine, is_resumed: &mut bool) -> Result<(), StoreError> {
        if !self.seat.look(engine.declares()).await? {
            // Whatever it knew, the one who judges knows better.
            *is_resumed = false;
            self.heard.listens(None);
            self.metrics.assertions.is_judging.set(0);
            for (verdict, _) in engine.verdicts() {
                self.metrics
                    .assertions
                    .verdicts
                    .with_label_values(&[verdict.name()])
                    .set(0);
            }
            return Ok(());
        }
        let now_ns = self.clock.now_ns();
        if !*is_resumed {
            *engine = self.engine(engine.set().clone(), now_ns);
            engine.resume(now_ns).await?;
            self.heard.listens(Some(engine.listening()));
            *is_resumed = true;
            self.metrics.assertions.is_judging.set(1);
        }
        engine.silence(self.silencer.now().await?);
        let begun = Instant::now();
        let stepped = engine.step(now_ns).await;
        let shown = &self.metrics.assertions;
        // Another engine begins to count anew, and this one may be given up while the store is away.
        shown.given_up.inc_by(std::mem::take(&mut engine.given_up));
        self.heard.listens(Some(engine.listening()));
        let step = stepped?;
        self.ear.judged(now_ns);
        shown.seconds.inc_by(begun.elapsed().as_secs_f64());
        shown.windows.inc_by(step.judged);
        shown.declared.set(engine.set().assertions.len() as i64);
        for (verdict, count) in engine.verdicts() {
            shown
                .verdicts
                .with_label_values(&[verdict.name()])
                .set(count as i64);
        }
        for record in step.records.iter().filter(|record| record.is_transition) {
            let (assertion, key, cause) = (&record.assertion, &record.key, &record.cause);
            let verdict = record.machine.verdict.name();
            match record.machine.verdict {
                Verdict::Violated => warn!(assertion, key, condition = record.condition, "violated"),
                Verdict::Unknown => info!(assertion, key, cause, "unknown"),
                _ => info!(assertion, key, verdict, "verdict"),
            }
        }
        Ok(())
    }

    /// One that knows nothing yet.
    fn engine(&self, set: Set, now_ns: i64) -> Engine {
        let mut engine = Engine::new(self.store.clone(), set, now_ns, true);
        engine.keep_written();
        engine.sit(self.seat.clone());
        engine.listen_to(self.heard.clone());
        engine.ask_as_they_go();
        engine
    }

    /// A set that is wrong is not taken: the one before is judged on.
    fn reload(&self, engine: &mut Engine, folder: &std::path::Path) {
        match Declared::read(folder.to_owned()) {
            Ok(declared) => {
                self.shared.put(declared.set.clone());
                self.shared.now_right();
                engine.replace(declared.set, self.clock.now_ns());
                self.metrics.assertions.is_current.set(1);
                info!(
                    assertions = engine.set().assertions.len(),
                    "took up the assertions anew"
                );
            }
            Err(problem) => {
                self.metrics.assertions.is_current.set(0);
                let told = problem.to_string();
                let told = format!(
                    "{}; `holdfast check {}` shows all of it",
                    told.lines().next().unwrap_or_default(),
                    folder.display()
                );
                self.shared.now_wrong(self.clock.now_ns(), &told);
                error!("the assertions are wrong, those from before are judged on: {problem}");
            }
        }
    }
}

/// `2026-03-01T12:00:00Z`.
fn second(ns: i64) -> humantime::Rfc3339Timestamp {
    let since = Duration::from_nanos(ns.max(0).unsigned_abs());
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since)
}

/// Returns once a window can be judged that was waited for, but not at once after a step.
async fn whole(heard: &Heard, stepped: Instant) {
    heard.whole().await;
    tokio::time::sleep_until(stepped + BREATH).await;
}

async fn hung_up(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn footprint(folder: &std::path::Path) -> Footprint {
    let paths = match std::fs::read_dir(folder) {
        Ok(entries) => entries.filter_map(Result::ok).map(|entry| entry.path()).collect(),
        // A file alone, or nothing any more.
        Err(_) => vec![folder.to_owned()],
    };
    let of = |path: PathBuf| {
        let meta = std::fs::metadata(&path);
        let size = meta.as_ref().map_or(0, std::fs::Metadata::len);
        (path, size, meta.and_then(|meta| meta.modified()).ok())
    };
    let mut files: Footprint = paths.into_iter().map(of).collect();
    files.sort();
    files
}
