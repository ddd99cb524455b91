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

use crate::{batch::Batcher, clock::Clock, counters::Counters, spool::Spool};

/// How often the ring is looked at. 50 wake-ups a second cost less than 0.1% of a core, and at 200,000 records a
/// second 0.8 MB wait meanwhile. Polling instead would return for every record, and a wake-up from the kernel side
/// costs the process that is observed more than its record does.
const TICK: Duration = Duration::from_millis(20);

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
        mut ring: RingBuf<MapData>,
        mut batcher: Batcher,
        spool: Arc<Spool>,
        counters: Arc<Counters>,
    ) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("ring".into())
            .spawn(move || {
                let started = Instant::now();
                loop {
                    // Asked before the last drain: what the kernel wrote until then is still taken.
                    let last = stopped.load(Ordering::Acquire);
                    let taken = drain(&mut ring, &mut batcher, &spool, &counters, started);
                    if taken == DRAIN_RECORDS {
                        continue;
                    }
                    if last {
                        batcher.seal().into_iter().for_each(|sealed| spool.append(sealed));
                        counters.batching.store(0, Ordering::Relaxed);
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

/// Takes what the ring holds, up to [`DRAIN_RECORDS`], and hands full or old batches on.
fn drain(
    ring: &mut RingBuf<MapData>,
    batcher: &mut Batcher,
    spool: &Spool,
    counters: &Counters,
    started: Instant,
) -> usize {
    let clock = Clock::read();
    let now = started.elapsed();
    let mut taken = 0;
    while taken < DRAIN_RECORDS {
        let Some(item) = ring.next() else { break };
        taken += 1;
        match ConnectionRecord::from_bytes(&item) {
            Some(record) => batcher
                .push(&record, clock, now)
                .into_iter()
                .for_each(|sealed| spool.append(sealed)),
            None => {
                counters.malformed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    batcher
        .tick(now)
        .into_iter()
        .for_each(|sealed| spool.append(sealed));
    counters.received.fetch_add(taken as u64, Ordering::Relaxed);
    counters
        .batching
        .store(batcher.waiting_rows() as u64, Ordering::Relaxed);
    taken
}
