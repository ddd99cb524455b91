//! The ledger of this start of the agent: what the hook, the witness and the agent itself counted, put together; and,
//! once a second, on disk, so that the next start can close the account of one that ended without a word.
//!
//! What is on disk is never behind what the collector is told of gaps and of earlier starts: it waits until the next
//! start would know of it. So nothing is told twice and nothing is forgotten, whenever the agent is killed.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use holdfast_agent_ebpf::counter::Counter;
use holdfast_proto::v1::{Status, Stream, StreamCounters};

use crate::{
    clock::wall_now,
    counters::{self, Counters, Origin, Stages},
    identity::Identity,
    predecessor::{Namespace, Predecessor},
    probes::{KernelCounters, KernelCounts, ProbeError},
    spool::{Books, Gap, GapReason, Spool},
    state::{Journal, Recollection},
    syscalls::watch::Counted,
    witness::Witness,
};

/// How often the state is written: what happened since has to be measured after a crash.
const TICK: Duration = Duration::from_secs(1);

/// A disk that fails may keep gaps from the collector for so long. After that they are told, and could be told again by
/// the next start if this one is killed.
const DISK_PATIENCE: Duration = Duration::from_secs(60);

/// The three who count, and where it is written.
pub struct Ledger {
    epoch: u64,
    boot_id: String,
    kernel: KernelCounters,
    counters: Arc<Counters>,
    /// What is counted of syscalls, where they are.
    syscalls: Option<Arc<Counted>>,
    spool: Arc<Spool>,
    /// The start before this one, which nobody measured yet.
    predecessor: Option<u64>,
    account: Mutex<Account>,
}

struct Account {
    witness: Witness,
    /// The witness goes on when the hook is gone: what it said last counts then.
    is_attached: bool,
    journal: Option<Journal>,
    /// When the disk began to fail.
    failing_since: Option<Instant>,
    /// What the rings had lost, by stream and namespace, and when that was read.
    lost: BTreeMap<(Stream, u32), u64>,
    read_ns: u64,
    /// When this start began to count.
    began_ns: u64,
}

impl Ledger {
    /// For programs that are attached next. `predecessor` is the start before.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn new(
        identity: &Identity,
        kernel: KernelCounters,
        spool: &Arc<Spool>,
        counters: &Arc<Counters>,
        witness: Witness,
        journal: Option<Journal>,
        predecessor: Option<u64>,
    ) -> Result<Self, ProbeError> {
        let ledger = Self {
            epoch: identity.epoch,
            boot_id: identity.boot_id.clone(),
            kernel,
            counters: Arc::clone(counters),
            syscalls: None,
            spool: Arc::clone(spool),
            predecessor,
            account: Mutex::new(Account {
                witness,
                is_attached: true,
                journal,
                failing_since: None,
                lost: BTreeMap::new(),
                read_ns: now_ns(),
                began_ns: now_ns(),
            }),
        };
        // If this start is killed before it has counted anything, the next one measures from here.
        let mut account = ledger.lock();
        account.witness.observe(|| ledger.kernel.read())?;
        ledger.write(&mut account, &KernelCounts::default(), false);
        drop(account);
        Ok(ledger)
    }

    /// Syscalls are counted too.
    pub fn with_syscalls(mut self, counted: Option<Arc<Counted>>) -> Self {
        self.syscalls = counted;
        self
    }

    /// The programs are attached: what was opened until now belongs to the start before.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn attached(&self) -> Result<(), ProbeError> {
        let mut account = self.lock();
        account.witness.begin(|| self.kernel.read())?;
        let counts = self.kernel.read()?;
        account.began_ns = now_ns();
        self.write(&mut account, &counts, false);
        Ok(())
    }

    /// What was open in these namespaces before the programs were attached has been found.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn surveyed(&self, namespaces: impl IntoIterator<Item = u32>) -> Result<(), ProbeError> {
        self.kernel.surveyed(namespaces)
    }

    /// What was counted until now.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn status(&self) -> Result<Status, ProbeError> {
        let stages = self.counters.stages();
        let kernel = self.kernel.read()?;
        Ok(self.counted(&self.lock().witness, &stages, &kernel))
    }

    /// All three together.
    fn counted(&self, witness: &Witness, stages: &BTreeMap<Origin, Stages>, kernel: &KernelCounts) -> Status {
        let mut status = counters::status(stages, kernel, |netns, seen| witness.witnessed(netns, seen));
        if let Some(counted) = &self.syscalls {
            let of_calls = stages.get(&(Stream::Syscalls, 0)).copied().unwrap_or_default();
            status
                .streams
                .retain(|counters| counters.stream() != Stream::Syscalls);
            status.streams.push(counted.counters(of_calls));
        }
        status
    }

    /// Asks the witness a last time; the programs are detached next.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn detach(&self) -> Result<(), ProbeError> {
        let mut account = self.lock();
        account.is_attached = false;
        account.witness.observe_well(|| self.kernel.read())
    }

    /// Everything was said: writes what is left for the next start.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn close(&self) -> Result<(), ProbeError> {
        let counts = self.kernel.read()?;
        self.write(&mut self.lock(), &counts, true);
        Ok(())
    }

    /// What the hook counted.
    ///
    /// # Errors
    /// If the kernel's counters cannot be read.
    pub fn kernel(&self) -> Result<KernelCounts, ProbeError> {
        self.kernel.read()
    }

    /// Reads everything, and writes it.
    fn tick(&self) -> Result<(), ProbeError> {
        let mut account = self.lock();
        let counts = if account.is_attached {
            account.witness.observe(|| self.kernel.read())?
        } else {
            self.kernel.read()?
        };
        let gaps = account.lost_since(&counts, self.epoch, now_ns());
        self.spool.add_gaps(gaps);
        self.write(&mut account, &counts, false);
        Ok(())
    }

    /// What the start before left behind goes until where this one began, which is better known with every reading of
    /// the first seconds. Gives what came to its end with earlier starts.
    fn close_predecessors(&self, account: &Account) -> Vec<Gap> {
        let mut predecessors = self.counters.predecessors();
        if let Some(start) = self.predecessor.and_then(|epoch| predecessors.get_mut(&epoch))
            && !start.is_measured
        {
            let began = account.witness.when_the_hook_began();
            start.measure(&self.boot_id, &began, account.began_ns);
            start.is_measured = account.witness.is_settled();
        }
        predecessors.values_mut().flat_map(Predecessor::close).collect()
    }

    fn write(&self, account: &mut Account, counts: &KernelCounts, is_clean: bool) {
        let gaps = self.close_predecessors(account);
        self.spool.add_gaps(gaps);
        let books = self.spool.books(self.epoch);
        let (held, predecessors) = (books.held, books.predecessors.clone());
        let recollection = self.recollection(account, books, counts, is_clean);
        let result = account
            .journal
            .as_mut()
            .map_or(Ok(()), |journal| journal.write(&recollection));
        let is_known = account.report(&result) || is_clean;
        if is_known {
            self.spool.release(held);
            self.counters.tell(&predecessors);
        }
    }

    /// This start as the next one would know it.
    fn recollection(
        &self,
        account: &Account,
        books: Books,
        counts: &KernelCounts,
        is_clean: bool,
    ) -> Recollection {
        let witness = &account.witness;
        let status = self.counted(witness, &books.stages, counts);
        let announced_ended = |origin: Origin| {
            books
                .stages
                .get(&origin)
                .map_or(0, |stages| stages.announced_ended)
        };
        let mut namespaces: BTreeMap<Origin, Namespace> = status
            .streams
            .into_iter()
            .map(|counters| {
                let origin = (counters.stream(), counters.netns);
                // What is in the kernel's tables, or in none of ours yet, goes with the process. Of connections the
                // witness knows how many that is; of calls nobody does.
                let (opens, is_unknown) = match origin {
                    (Stream::Connections, netns) => {
                        (witness.standing(netns, counts.sent(netns)), !witness.knows(netns))
                    }
                    (stream, _) => (None, matches!(stream, Stream::Syscalls | Stream::Transitions)),
                };
                let namespace = Namespace {
                    counters: StreamCounters {
                        open: if is_clean { counters.open } else { 0 },
                        batching: 0,
                        announced: announced_ended(origin),
                        ..counters
                    },
                    announced_held: 0,
                    opens,
                    at_least: !is_clean && counters.opened > 0 && is_unknown,
                    is_told: false,
                };
                (origin, namespace)
            })
            .collect();
        for (netns, opens) in witness.when_the_hook_began() {
            // The hook has seen nothing in them.
            let origin = (Stream::Connections, netns);
            namespaces.entry(origin).or_insert_with(|| Namespace {
                counters: StreamCounters {
                    stream: Stream::Connections.into(),
                    netns,
                    witnessed: Some(0),
                    ..StreamCounters::default()
                },
                announced_held: 0,
                opens: Some(opens),
                at_least: false,
                is_told: false,
            });
        }
        let mut open = books.unanswered;
        if !is_clean {
            for stream in streams() {
                // Its first rows may be told of before this is written again.
                let origin = (stream, 0);
                namespaces.entry(origin).or_insert_with(|| Namespace {
                    counters: Stages::default().counters(stream, 0),
                    ..Namespace::default()
                });
                let last = books.last_sequences.get(&stream).copied().unwrap_or_default();
                open.entry(stream).or_default().push((last + 1, u64::MAX));
            }
        }
        let mut starts = books.predecessors;
        starts.push(Predecessor {
            epoch: self.epoch,
            boot_id: self.boot_id.clone(),
            observed_ns: account.read_ns,
            ended_ns: account.read_ns,
            unsaved_ns: books.unsaved_ns,
            unanswered_ns: books.unanswered_ns,
            is_clean,
            namespaces,
            open,
            is_measured: is_clean,
            is_settled: false,
        });
        Recollection {
            starts,
            gaps: books.gaps,
            gap_batches: books.gap_batches,
            left_behind: books.left_behind,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        // Readings are independent of each other: a panic elsewhere does not spoil the next one.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// What the rings lost since the last reading, as gaps.
    fn lost_since(&mut self, counts: &KernelCounts, epoch: u64, now_ns: u64) -> Vec<Gap> {
        let mut gaps = Vec::new();
        let of_namespace = |netns: u32| {
            [
                (Stream::Connections, netns, counts.of(netns, Counter::Lost)),
                (
                    Stream::Transitions,
                    netns,
                    counts.of(netns, Counter::TransitionsLost),
                ),
            ]
        };
        for (stream, netns, lost) in counts.namespaces.keys().flat_map(|&netns| of_namespace(netns)) {
            let before = self.lost.insert((stream, netns), lost).unwrap_or_default();
            if lost > before {
                gaps.push(Gap {
                    epoch,
                    stream,
                    netns,
                    first_sequence: 0,
                    last_sequence: 0,
                    first_ns: self.read_ns.min(now_ns),
                    last_ns: now_ns,
                    rows: lost - before,
                    at_least: false,
                    reason: GapReason::RingFull,
                });
            }
        }
        self.read_ns = now_ns;
        gaps
    }

    /// Whether the collector may hear of what was written: it is on disk, or the disk fails for too long.
    fn report(&mut self, result: &io::Result<()>) -> bool {
        match result {
            Err(error) if self.failing_since.is_none() => tracing::error!(
                "what was counted cannot be written: {error}; if this process is killed now, what became of its \
                 last rows is not known"
            ),
            Ok(()) if self.failing_since.is_some() => tracing::info!("what was counted can be written again"),
            _ => {}
        }
        match result {
            Ok(()) => self.failing_since = None,
            Err(_) => self.failing_since = self.failing_since.or_else(|| Some(Instant::now())),
        }
        self.failing_since
            .is_none_or(|since| since.elapsed() > DISK_PATIENCE)
    }
}

/// The thread that keeps the ledger on disk.
pub struct Keeper {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(ledger: &Arc<Ledger>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new().name("ledger".into()).spawn({
            let (ledger, stop) = (Arc::clone(ledger), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    thread::park_timeout(TICK);
                    if let Err(error) = ledger.tick() {
                        tracing::error!("no counters: {:#}", anyhow::Error::new(error));
                    }
                }
            }
        })?;
        Ok(Self { thread, stop })
    }

    /// Writes a last time, and ends the thread.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the thread that keeps the ledger panicked");
        }
    }
}

/// Every stream that there is: they are numbered without a hole.
fn streams() -> impl Iterator<Item = Stream> {
    (Stream::Connections as i32..).map_while(|number| Stream::try_from(number).ok())
}

fn now_ns() -> u64 {
    wall_now().as_nanos() as u64
}
