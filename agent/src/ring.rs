//! Draining the ring buffer: the agent's own thread between the kernel and the batches. Nothing here waits for
//! anything but the kernel, so a slow collector or a full disk never fills the ring.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use aya::maps::{MapData, RingBuf};
use holdfast_agent_ebpf::event::ConnectionRecord;

use crate::{
    batch::Batcher,
    clock::Clock,
    counters::{Counters, RowsByNetns},
    spool::{Sealed, Spool},
};

/// How often the ring is looked at. 50 wake-ups a second cost less than 0.1% of a core, and at 380,000 records a
/// second 1.6 MB wait meanwhile. Polling instead would return for every record, and a wake-up from the kernel side
/// costs the process that is observed more than its record does.
const TICK: Duration = Duration::from_millis(20);

/// The thread's niceness, where the system allows it: on a machine whose cores are all busy it must come in time, or
/// the ring overflows. It works for microseconds at a time.
const NICENESS: i32 = -10;

/// Records that are taken at one go before batches are looked after.
const DRAIN_RECORDS: usize = 65_536;

/// The thread that drains the ring, for as long as it is not stopped.
pub struct Drain {
    thread: JoinHandle<()>,
    stop: Arc<AtomicBool>,
}

impl Drain {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        ring: RingBuf<MapData>,
        batcher: Batcher,
        spool: Arc<Spool>,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut intake = Intake {
            ring,
            batcher,
            spool,
            counters,
            uncounted: RowsByNetns::new(),
        };
        let thread = thread::Builder::new()
            .name("ring".into())
            .spawn(move || {
                // On Linux the niceness is a thread's own. Without CAP_SYS_NICE it stays as it is.
                let _ = rustix::process::nice(NICENESS);
                let started = Instant::now();
                loop {
                    // Asked before the last drain: what the kernel wrote until then is still taken.
                    let last = stopped.load(Ordering::Acquire);
                    if intake.drain(started.elapsed()) == DRAIN_RECORDS {
                        continue;
                    }
                    if last {
                        intake.finish();
                        return;
                    }
                    thread::sleep(TICK);
                }
            })
            .context("cannot start the thread that drains the ring buffer")?;
        Ok(Self { thread, stop })
    }

    /// Takes what is still in the ring, seals the last batch and ends the thread.
    pub fn finish(self) {
        self.stop.store(true, Ordering::Release);
        if self.thread.join().is_err() {
            tracing::error!("the thread that drains the ring buffer panicked: its last records are lost");
        }
    }
}

/// What stands between the ring and the spool.
struct Intake {
    ring: RingBuf<MapData>,
    batcher: Batcher,
    spool: Arc<Spool>,
    counters: Arc<Counters>,
    /// Rows taken and not counted yet: counting goes through a lock, so it is done once a batch or a drain.
    uncounted: RowsByNetns,
}

impl Intake {
    /// Takes what the ring holds, up to [`DRAIN_RECORDS`], and hands full or old batches on.
    fn drain(&mut self, now: Duration) -> usize {
        let clock = Clock::read();
        let mut taken = 0;
        while taken < DRAIN_RECORDS {
            let Some(item) = self.ring.next() else { break };
            taken += 1;
            let Some(record) = ConnectionRecord::from_bytes(&item) else {
                self.counters.malformed();
                continue;
            };
            drop(item);
            *self.uncounted.entry(record.netns).or_default() += 1;
            let sealed = self.batcher.push(&record, clock, now);
            self.hand_on(sealed);
        }
        let sealed = self.batcher.tick(now);
        self.count();
        self.hand_on(sealed);
        taken
    }

    /// Seals what is left.
    fn finish(&mut self) {
        let sealed = self.batcher.seal();
        self.hand_on(sealed);
    }

    fn hand_on(&mut self, sealed: Option<(Sealed, RowsByNetns)>) {
        if let Some((sealed, rows)) = sealed {
            self.count();
            self.spool.append(sealed, rows);
        }
    }

    fn count(&mut self) {
        self.counters.received(&std::mem::take(&mut self.uncounted));
    }
}
