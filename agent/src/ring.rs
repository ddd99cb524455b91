//! Draining the ring buffer, and announcing connections that stay open: the agent's own thread between the kernel and
//! the batches. Nothing here waits for anything but the kernel, so a slow collector or a full disk never fills the ring.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use holdfast_agent_ebpf::{
    event::{ConnectionRecord, Transition, flag},
    limits::RING_BYTES,
};

use crate::{
    batch::Batcher,
    clock::{self, Clock},
    controls::Shown,
    counters::{Counters, RowsByNetns},
    probes::TransitionRing,
    ring_buffer::{HEADER_BYTES, RingBuffer},
    seeds::Seeds,
    spool::{Sealed, Spool},
    table::Table,
    transitions::TransitionBatcher,
    workloads::Workloads,
};

/// How often the ring is looked at while much comes. At 380,000 records a second 1.6 MB wait meanwhile. Polling instead
/// would return for every record, and a wake-up from the kernel side costs the process that is observed more than its record
/// does.
const TICK: Duration = Duration::from_millis(20);

/// How often it is looked at while little comes. A wake-up of an idle core costs some 40 us, and this many of them 0.1 % of
/// it. What may come before it is found out, 4.1 MB at that rate, is half of the default ring; a smaller one is looked at
/// every [`TICK`].
const QUIET_TICK: Duration = Duration::from_millis(50);

/// Little is less than this share of the ring, for at least [`CALM`].
const LITTLE: usize = 64;

/// So long after much came, more is expected.
const CALM: Duration = Duration::from_secs(1);

/// The thread's niceness, where the system allows it: on a machine whose cores are all busy it must come in time, or
/// the ring overflows. It works for microseconds at a time.
const NICENESS: i32 = -10;

/// How often the table of open connections is looked through, which costs some 100 us for the default size. With
/// [`ANNOUNCED_AFTER`], the batch and the way into the store, a handshake is to be seen within a second.
const SWEEP: Duration = Duration::from_millis(200);

/// A connection that is still open so long after its handshake is announced; one that ends before costs one record.
const ANNOUNCED_AFTER: Duration = Duration::from_millis(100);

/// What the kernel made so long before the ring is found empty was in it: a record has its time some microseconds
/// before it is submitted, and its program may be kept from its CPU in between.
const SUBMIT_MARGIN_NS: u64 = 50_000_000;

/// Records that are taken at one go before batches are looked after.
const DRAIN_RECORDS: usize = 65_536;

/// So long after transitions were streamed their ring is still looked at.
const STREAM_END: Duration = Duration::from_secs(1);

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
        ring: RingBuffer,
        transitions: TransitionRing,
        table: Arc<Table>,
        shown: Arc<Shown>,
        mut intake: Intake,
    ) -> anyhow::Result<Self> {
        let mut pace = Pace::of(ring.data_bytes());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut source = Source {
            ring,
            transitions,
            streamed: None,
            is_broken: false,
            table,
            shown,
            swept: Duration::ZERO,
            // They will be, but none was yet: zero would say that this agent never does.
            announced_ns: 1,
            waited_bytes: 0,
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
                    let records = source.drain(&mut intake, started.elapsed());
                    let transitions = source.drain_transitions(&mut intake, started.elapsed());
                    if records == DRAIN_RECORDS || transitions == DRAIN_RECORDS {
                        continue;
                    }
                    source.sweep(&mut intake, started.elapsed());
                    if last {
                        source.announce(&mut intake, Duration::ZERO, started.elapsed());
                        intake.seal();
                        intake.seal_transitions();
                        return;
                    }
                    let waited = if source.streamed.is_some() {
                        usize::MAX
                    } else {
                        std::mem::take(&mut source.waited_bytes)
                    };
                    thread::sleep(pace.until_next(waited, started.elapsed()));
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

/// How long the thread sleeps. The times are arguments.
struct Pace {
    ring_bytes: usize,
    /// When much came last. At the start more is expected than not.
    much: Duration,
}

impl Pace {
    fn of(ring_bytes: usize) -> Self {
        Self {
            ring_bytes,
            much: Duration::ZERO,
        }
    }

    /// Until the next look, when at the monotonic time `now` so many bytes had waited in the ring.
    fn until_next(&mut self, waited_bytes: usize, now: Duration) -> Duration {
        if waited_bytes >= self.ring_bytes / LITTLE {
            self.much = now;
        }
        let is_calm = now.saturating_sub(self.much) >= CALM;
        if is_calm && self.ring_bytes >= RING_BYTES as usize {
            QUIET_TICK
        } else {
            TICK
        }
    }
}

/// Where records come from.
struct Source {
    ring: RingBuffer,
    transitions: TransitionRing,
    /// When transitions were wanted last; `None`: never, or long ago.
    streamed: Option<Duration>,
    /// It was said that their ring cannot be read.
    is_broken: bool,
    /// Where connections that stay open are announced from.
    table: Arc<Table>,
    /// Which of them the filter lets pass: the others stay unannounced, and are hidden by the programs at their end.
    shown: Arc<Shown>,
    /// When the table was last looked through.
    swept: Duration,
    /// Every attempt that was decided before this was announced, but for those whose connection ended meanwhile: their
    /// records are taken with the next drain. Nanoseconds since the Unix epoch.
    announced_ns: u64,
    /// What was taken since the thread slept, in bytes of the ring.
    waited_bytes: usize,
}

impl Source {
    /// Takes what the ring holds, up to [`DRAIN_RECORDS`], and hands full or old batches on.
    fn drain(&mut self, intake: &mut Intake, now: Duration) -> usize {
        let clock = Clock::read();
        let began_ns = clock.wall_ns(clock::boot_now_ns());
        let (mut taken, mut bytes) = (0, 0);
        while taken < DRAIN_RECORDS {
            let Some(item) = self.ring.next() else { break };
            taken += 1;
            bytes += item.len() + HEADER_BYTES;
            match ConnectionRecord::from_bytes(item) {
                Some(record) => intake.take(record, clock, now),
                None => intake.counters.malformed(),
            }
        }
        self.waited_bytes += bytes;
        intake.counters.waited_in_ring(bytes as u64);
        intake.tick(now);
        if taken < DRAIN_RECORDS {
            intake.taken_until(began_ns.saturating_sub(SUBMIT_MARGIN_NS), self.announced_ns);
        }
        taken
    }

    /// Takes the transitions that there are, likewise, while they are streamed and a moment longer: a program that runs
    /// goes on with what it was told.
    fn drain_transitions(&mut self, intake: &mut Intake, now: Duration) -> usize {
        if self.shown.transitions() {
            self.streamed = Some(now);
        }
        let Some(streamed) = self.streamed else {
            return 0;
        };
        let ring = match self.transitions.open() {
            Ok(ring) => ring,
            Err(error) => {
                if !std::mem::replace(&mut self.is_broken, true) {
                    tracing::error!(
                        "transitions are streamed, and cannot be taken: {:#}",
                        anyhow::Error::new(error)
                    );
                }
                return 0;
            }
        };
        let clock = Clock::read();
        let mut taken = 0;
        while taken < DRAIN_RECORDS {
            let Some(item) = ring.next() else { break };
            taken += 1;
            match Transition::from_bytes(item) {
                Some(transition) => intake.take_transition(transition, clock, now),
                None => intake.counters.malformed_transition(),
            }
        }
        intake.tick_transitions(now);
        if taken == 0 && now.saturating_sub(streamed) >= STREAM_END {
            self.transitions.close();
            self.streamed = None;
        }
        taken
    }

    /// Announces what has been open for a while, if it is time to look.
    fn sweep(&mut self, intake: &mut Intake, now: Duration) {
        if now.saturating_sub(self.swept) >= SWEEP {
            self.swept = now;
            self.announce(intake, ANNOUNCED_AFTER, now);
        }
    }

    /// What is announced goes on its way at once.
    fn announce(&mut self, intake: &mut Intake, after: Duration, now: Duration) {
        let clock = Clock::read();
        let until_ns = clock::boot_now_ns().saturating_sub(after.as_nanos() as u64);
        let mut any = false;
        self.table.announce(
            until_ns,
            |record| self.shown.passes(record),
            |record| {
                any = true;
                intake.announce(*record, clock, now);
            },
        );
        if any {
            intake.seal();
        }
        self.announced_ns = clock.wall_ns(until_ns).saturating_sub(SUBMIT_MARGIN_NS);
    }
}

/// What stands between the ring and the spool. The times are arguments.
pub struct Intake {
    batcher: Batcher,
    /// `None`: transitions are discarded as dropped.
    transitions: Option<TransitionBatcher>,
    /// Who owns what is older than the agent.
    seeds: Arc<Seeds>,
    spool: Arc<Spool>,
    counters: Arc<Counters>,
    /// Rows taken and not counted yet: counting goes through a lock, so it is done once a batch or a drain.
    uncounted: RowsByNetns,
    uncounted_transitions: RowsByNetns,
    /// Who knows the cgroups; `None`: nobody.
    workloads: Option<Arc<Workloads>>,
    /// The last one that was asked for, of which process, and what it is called.
    located: (u64, u32, u64),
}

impl Intake {
    /// Into this spool, counted here.
    pub fn new(batcher: Batcher, seeds: Arc<Seeds>, spool: Arc<Spool>, counters: Arc<Counters>) -> Self {
        Self {
            batcher,
            transitions: None,
            seeds,
            spool,
            counters,
            uncounted: RowsByNetns::new(),
            uncounted_transitions: RowsByNetns::new(),
            workloads: None,
            located: (0, 0, 0),
        }
    }

    /// Takes transitions too.
    pub fn with_transitions(mut self, batcher: TransitionBatcher) -> Self {
        self.transitions = Some(batcher);
        self
    }

    /// Has the cgroups of records found while their processes are there.
    pub fn located_by(mut self, workloads: Arc<Workloads>) -> Self {
        self.workloads = Some(workloads);
        self
    }

    /// Says which cgroup a record is of, where the kernel side alone cannot, and looks it up if it is new.
    fn locate(&mut self, cgroup_id: &mut u64, pid: u32) {
        let Some(workloads) = &self.workloads else { return };
        let (last_cgroup_id, last_pid, id) = self.located;
        // The record before is most often of the same process.
        if (last_cgroup_id, last_pid) == (*cgroup_id, pid) {
            *cgroup_id = id;
            return;
        }
        let id = workloads.locate(*cgroup_id, pid);
        self.located = (*cgroup_id, pid, id);
        *cgroup_id = id;
    }

    /// Takes a transition at the monotonic time `now`, and hands the batch on that it filled.
    pub fn take_transition(&mut self, mut transition: Transition, clock: Clock, now: Duration) {
        self.locate(&mut transition.cgroup_id, transition.pid);
        let Some(batcher) = &mut self.transitions else {
            return self.counters.malformed_transition();
        };
        let rows = self.uncounted_transitions.entry(transition.netns).or_default();
        rows.add(true);
        let sealed = batcher.push(&transition, clock, now);
        self.hand_on_transitions(sealed);
    }

    /// Counts the transitions that were taken, and hands the batch on that is old enough at the monotonic time `now`.
    pub fn tick_transitions(&mut self, now: Duration) {
        let is_behind = self.spool.is_behind();
        let sealed = self
            .transitions
            .as_mut()
            .and_then(|batcher| batcher.tick(now, is_behind));
        self.count_transitions();
        self.hand_on_transitions(sealed);
    }

    fn hand_on_transitions(&mut self, sealed: Option<(Sealed, RowsByNetns)>) {
        if let Some((sealed, rows)) = sealed {
            self.count_transitions();
            self.spool.append(sealed, rows);
        }
    }

    fn count_transitions(&mut self) {
        self.counters
            .received_transitions(&std::mem::take(&mut self.uncounted_transitions));
    }

    /// Takes a record at the monotonic time `now`, and hands the batch on that it filled.
    pub fn take(&mut self, mut record: ConnectionRecord, clock: Clock, now: Duration) {
        self.seeds.complete(&mut record);
        self.locate(&mut record.cgroup_id, record.pid);
        self.add(&record, clock, now);
    }

    /// Counts what was taken, and hands the batch on that is old enough at the monotonic time `now`.
    pub fn tick(&mut self, now: Duration) {
        let sealed = self.batcher.tick(now, self.spool.is_behind());
        self.count();
        self.hand_on(sealed);
    }

    /// The ring was empty: everything that the kernel made before `ns` was taken, and every attempt that was decided
    /// before `attempts_ns` (nanoseconds since the Unix epoch). What waits in the open batch is not in the spool yet.
    pub fn taken_until(&mut self, ns: u64, attempts_ns: u64) {
        let connections_ns = self.batcher.earliest_ns();
        let waiting_ns = connections_ns.unwrap_or(u64::MAX);
        let transitions_ns = self.transitions.as_ref().and_then(Batcher::earliest_ns);
        let batching_ns = connections_ns.into_iter().chain(transitions_ns).min();
        self.spool
            .taken_until(ns.min(waiting_ns), attempts_ns.min(waiting_ns), batching_ns);
    }

    /// Takes the first record of a connection that stays open, and hands the batch on that it filled.
    pub fn announce(&mut self, mut record: ConnectionRecord, clock: Clock, now: Duration) {
        self.seeds.complete(&mut record);
        self.locate(&mut record.cgroup_id, record.pid);
        self.add(&record, clock, now);
    }

    fn add(&mut self, record: &ConnectionRecord, clock: Clock, now: Duration) {
        let rows = self.uncounted.entry(record.netns).or_default();
        rows.add(record.flags & flag::FINAL != 0);
        let sealed = self.batcher.push(record, clock, now);
        self.hand_on(sealed);
    }

    /// Seals what is left.
    pub fn seal(&mut self) {
        let sealed = self.batcher.seal();
        self.hand_on(sealed);
    }

    /// Seals what is left of the transitions.
    pub fn seal_transitions(&mut self) {
        let sealed = self.transitions.as_mut().and_then(TransitionBatcher::seal);
        self.hand_on_transitions(sealed);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_is_looked_at_less_often_once_little_came_for_a_while() {
        let bytes = RING_BYTES as usize;
        let mut pace = Pace::of(bytes);
        let mut check = |waited, millis, expected| {
            assert_eq!(
                pace.until_next(waited, Duration::from_millis(millis)),
                expected,
                "{millis}"
            );
        };
        check(0, 0, TICK);
        check(0, 999, TICK);
        check(0, 1_000, QUIET_TICK);
        check(bytes / LITTLE - 1, 1_050, QUIET_TICK);
        check(bytes / LITTLE, 1_100, TICK);
        check(0, 2_099, TICK);
        check(0, 2_100, QUIET_TICK);
    }

    #[test]
    fn a_small_ring_is_always_looked_at_often() {
        let mut pace = Pace::of(RING_BYTES as usize / 2);
        assert_eq!(pace.until_next(0, CALM * 9), TICK);
    }
}
