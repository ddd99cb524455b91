//! The thread that sweeps the tables, and hands an interval's batches to the spool.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use holdfast_proto::v1::{Stream, StreamCounters};

use super::{
    Mode,
    columns::{Frame, SyscallBatcher},
    interval::Interval,
    kernel::KernelSide,
    sweep::{Sweeper, Totals},
};
use crate::{
    clock::Moment,
    counters::{Counters, Rows, RowsByNetns, Stages},
    probes::ProbeError,
    spool::Spool,
};

/// How long an interval is. Ten seconds keep a row for each process and syscall affordable: a busy node makes a few
/// hundred rows a second of it.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// How often the thread looks whether ended processes hold too many slots. Sweeping as often, it gives back a full table
/// within half a second.
const TICK: Duration = Duration::from_millis(250);

/// What the sweeps have counted so far, for the ledger, and since when without a break.
#[derive(Debug, Default)]
pub struct Counted {
    totals: Mutex<Totals>,
    /// Nanoseconds since the Unix epoch. Zero: calls are not counted.
    since_ns: AtomicU64,
}

impl Counted {
    fn set(&self, totals: Totals) {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }

    /// Since when every call is counted, nanoseconds since the Unix epoch. Zero: they are not.
    pub fn since_ns(&self) -> u64 {
        self.since_ns.load(Ordering::Acquire)
    }

    /// The counters of the stream, with what the agent did with the calls. These were read before: what was counted
    /// meanwhile is still in the tables, by this account.
    pub fn counters(&self, stages: Stages) -> StreamCounters {
        let totals = *self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        StreamCounters {
            opened: totals.calls,
            closed: totals.calls,
            unseen: totals.others,
            elsewhere: totals.hidden,
            missed: totals.missed,
            unmeasured: totals.unrecorded,
            evicted: totals.evicted,
            ..stages.counters(Stream::Syscalls, 0)
        }
    }
}

/// What is to be counted, as long as nobody says otherwise.
#[derive(Debug)]
pub struct Wanted(Mutex<Mode>);

impl Wanted {
    /// At first this.
    pub fn new(mode: Mode) -> Self {
        Self(Mutex::new(mode))
    }

    /// From now on this; the thread sees it within [`TICK`].
    pub fn set(&self, mode: Mode) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }

    /// What was said last.
    pub fn get(&self) -> Mode {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attaches and detaches what a mode needs.
pub type Switch = Box<dyn FnMut(Mode) -> Result<(), ProbeError> + Send>;

/// The thread, for as long as it is not stopped.
pub struct Watch {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    /// Starts it, and has it count what is wanted. What it finds goes to `counted`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        kernel: KernelSide,
        wanted: Arc<Wanted>,
        switch: Switch,
        batcher: SyscallBatcher,
        counted: Arc<Counted>,
        spool: Arc<Spool>,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut rounds = Rounds {
            sweeper: Sweeper::new(kernel),
            interval: Interval::default(),
            began: Moment::now(),
            mode: Mode::Off,
            is_used: false,
            wanted,
            switch,
            batcher,
            spool,
            counters,
            counted,
            taken: 0,
        };
        // Before anybody hears of this start: what is counted is counted from then on.
        rounds.change();
        let thread = thread::Builder::new()
            .name("syscalls".into())
            .spawn(move || {
                let mut due = Instant::now() + INTERVAL;
                loop {
                    // Asked before the last sweep: what was counted until then is still taken.
                    let last = stopped.load(Ordering::Acquire);
                    let is_due = Instant::now() >= due;
                    if last || is_due || rounds.sweeper.is_pressed() {
                        rounds.sweep();
                    }
                    if last || is_due {
                        rounds.hand_on();
                        due += INTERVAL;
                    }
                    if last {
                        return;
                    }
                    if rounds.change() {
                        due = Instant::now() + INTERVAL;
                    }
                    thread::park_timeout(TICK);
                }
            })
            .context("cannot start the thread that reads the syscalls' tables")?;
        Ok(Self { thread, stop })
    }

    /// Takes what is still in the tables, seals the last batches and ends the thread.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the thread that reads the syscalls' tables panicked: its last interval is lost");
        }
    }
}

struct Rounds {
    sweeper: Sweeper,
    interval: Interval,
    began: Moment,
    /// What is counted.
    mode: Mode,
    /// Something was ever counted.
    is_used: bool,
    wanted: Arc<Wanted>,
    switch: Switch,
    batcher: SyscallBatcher,
    spool: Arc<Spool>,
    counters: Arc<Counters>,
    counted: Arc<Counted>,
    /// Calls that the counters know of.
    taken: u64,
}

impl Rounds {
    /// Counts what is wanted from now on, if that is something else. The interval ends: all of its calls were counted in
    /// one way.
    fn change(&mut self) -> bool {
        let wanted = self.wanted.get();
        if wanted == self.mode {
            return false;
        }
        // Nothing is attached, and what threads' places remember is of long ago. At first they are empty, and clearing
        // them would make all of them resident.
        if self.mode == Mode::Off && self.is_used {
            self.sweeper.clear();
        }
        let since_ns = self.counted.since_ns();
        if wanted == Mode::Off {
            // Told before it is so, and that they are counted only once they are.
            self.counted.since_ns.store(0, Ordering::Release);
        }
        if let Err(error) = (self.switch)(wanted) {
            self.counted.since_ns.store(since_ns, Ordering::Release);
            tracing::error!(
                "syscalls are counted as before ({}), not {wanted}: {:#}",
                self.mode,
                anyhow::Error::new(error)
            );
            self.wanted.set(self.mode);
            return false;
        }
        if self.mode != Mode::Off {
            self.sweep();
            self.hand_on();
        }
        self.began = Moment::now();
        if self.mode == Mode::Off {
            self.counted
                .since_ns
                .store(self.began.wall_ns(), Ordering::Release);
        }
        self.mode = wanted;
        self.is_used = true;
        true
    }

    fn sweep(&mut self) {
        if let Err(error) = self.sweeper.sweep(&mut self.interval) {
            tracing::error!("syscalls are not read: {:#}", anyhow::Error::new(error));
            return;
        }
        let totals = self.sweeper.totals();
        self.counted.set(totals);
        self.counters.received_calls(totals.calls - self.taken);
        self.taken = totals.calls;
    }

    fn hand_on(&mut self) {
        let ended = Moment::now();
        let frame = Frame {
            began: std::mem::replace(&mut self.began, ended),
            ended,
            measured_one_in: self.mode.measured_one_in(),
        };
        let callers = std::mem::take(&mut self.interval).finish();
        for batch in self.batcher.seal(frame, &callers) {
            self.spool
                .append(batch.sealed, RowsByNetns::from([(0, calls(batch.calls))]));
        }
    }
}

/// As the counters take it: the stream has no namespaces, and is counted in calls.
fn calls(calls: u64) -> Rows {
    Rows {
        ends: calls,
        announced: 0,
    }
}
