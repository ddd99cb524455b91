//! One thread of the generator: makes the attempts of its part of the schedule when they are due, and follows each
//! connection to its end, by epoll.
//!
//! A timer wakes 50 us late, a thousand times what an attempt may be late: so the worker sleeps until shortly before
//! the next attempt and looks at the clock from there on.

use std::{
    io, mem,
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender},
    },
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::epoll,
    io::Errno,
    net::{RecvFlags, SendFlags, connect, connect_unspec, recv, send},
    time::{ClockId, clock_gettime},
};

use super::{
    moments::{Moment, Moments},
    outcome::{Loss, Outcome},
    plan::{Arrivals, Close, Plan, share},
    run::Bound,
    saturation::Saturation,
    schedule::Schedule,
    socket::{self, Handshake},
    tally::{LATE_NS, Tally},
    tls::Terms,
    wait::wait,
};

/// So long before an attempt is due the worker stops sleeping, in nanoseconds: what a sleep may be late by.
pub(super) const SPIN_NS: u64 = 60_000;

/// The longest sleep, in nanoseconds: a stop and a question for the tally are noticed after it.
pub(super) const LONGEST_SLEEP_NS: u64 = 20_000_000;

/// Attempts that are made before what came is looked at.
const BURST: usize = 64;

/// Events that are taken at once.
pub(super) const EVENTS: usize = 256;

/// Events of a socket that has something to read, be it its end.
const HEARD: epoll::EventFlags = epoll::EventFlags::IN
    .union(epoll::EventFlags::RDHUP)
    .union(epoll::EventFlags::HUP)
    .union(epoll::EventFlags::ERR);

/// Events of a socket whose connection did not come about, or ended at once. To be told which, connect() is called again, and that the
/// kernel forgets what it counted (tcp_disconnect, net/ipv4/tcp.c): so it is asked before.
pub(super) const FAILED: epoll::EventFlags = epoll::EventFlags::HUP.union(epoll::EventFlags::ERR);

/// What is read at once.
pub(super) const READ_BYTES: usize = 64 << 10;

/// What the workers of a run share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Ends the run.
    pub stop: AtomicBool,
    /// Connections that are established now, and the most that ever were.
    pub open: AtomicU64,
    pub most_open: AtomicU64,
    /// When it was last heard that the run is wanted, by the monotonic clock; zero: nobody has to say so.
    pub beat_ns: AtomicU64,
    /// Workers of a count that have decided all of theirs: it is held from when all have.
    pub settled: AtomicU64,
}

/// The monotonic clock, in nanoseconds.
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

pub(super) fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What a worker is given.
pub struct Part {
    pub plan: Arc<Plan>,
    /// This thread of how many.
    pub thread: u64,
    pub threads: u64,
    pub sources: Arc<[IpAddr]>,
    /// Of requests over TLS.
    pub terms: Option<Terms>,
    /// Most connections that it may have open or under way.
    pub at_once: usize,
    /// Why no more.
    pub bound: Arc<Bound>,
    /// They are fewer than the plan has places for.
    pub is_bound: bool,
    /// The run's start, by the monotonic clock.
    pub start_ns: u64,
    pub shared: Arc<Shared>,
    /// Empty tallies; each is a question for the one that was filled meanwhile.
    pub blanks: Receiver<Tally>,
    pub filled: SyncSender<Filled>,
    /// Of a plan that waits for answers, from the start on: with others a thread looks at the clock before each attempt, and what it lacks
    /// is seen in how late those are.
    pub saturation: Saturation,
}

impl Part {
    /// Nanoseconds since the run's start.
    pub(super) fn now(&self) -> u64 {
        monotonic_ns().saturating_sub(self.start_ns)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// Hands over what was counted. `first_ns` is when the first attempt was made.
    pub(super) fn hand_over(&mut self, tally: Tally, first_ns: Option<u64>, is_last: bool) {
        // Where the next attempt does not wait for one before, only what goes back and forth waits for this thread.
        let is_of_use = matches!(self.plan.arrivals, Arrivals::Closed { .. }) || !tally.exchange.is_empty();
        if is_of_use {
            self.saturation.look();
        } else {
            self.saturation.skip();
        }
        let filled = Filled {
            tally,
            watched: self.saturation.watched,
            saturated: self.saturation.saturated,
            cpu: Duration::from_nanos(nanoseconds(ClockId::ThreadCPUTime)),
            first_ns,
            at_ns: self.now(),
            is_last,
        };
        // Nobody listens when the run was given up.
        let _ = self.filled.send(filled);
    }
}

/// A count is held from when the workers of all its parts have decided theirs.
#[derive(Default)]
pub(super) struct Holding {
    is_settled: bool,
    /// The end of it, once it has begun.
    pub(super) until_ns: Option<u64>,
}

impl Holding {
    pub(super) fn look(&mut self, part: &mut Part, is_decided: bool, now_ns: u64) {
        if is_decided && !self.is_settled {
            self.is_settled = true;
            // Of what follows nothing is waited for.
            part.saturation.look();
            part.shared.settled.fetch_add(1, Ordering::Relaxed);
        }
        let settled = part.shared.settled.load(Ordering::Relaxed);
        if self.is_settled && self.until_ns.is_none() && settled == part.threads {
            self.until_ns = Some(now_ns.saturating_add(part.plan.hold.as_nanos() as u64));
        }
    }
}

/// What a worker hands over.
pub struct Filled {
    pub tally: Tally,
    /// CPU time of the thread so far.
    pub cpu: Duration,
    /// As [`Saturation`] has them.
    pub watched: Duration,
    pub saturated: Duration,
    /// When its first attempt was made, and when it hands over, in nanoseconds since the run's start.
    pub first_ns: Option<u64>,
    pub at_ns: u64,
    /// The worker has ended.
    pub is_last: bool,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Dialing,
    Exchanging,
    Held,
}

/// A place for a connection.
struct Slot {
    socket: Option<OwnedFd>,
    is_ipv4: bool,
    phase: Phase,
    /// Changes with each use: what was noted for an earlier one is stale.
    generation: u32,
    target: u16,
    due_ns: u64,
    /// When connect() was called; then when the present exchange began.
    began_ns: u64,
    sent: u32,
    received: u32,
    rounds_left: u64,
}

impl Slot {
    fn unused(is_ipv4: bool) -> Self {
        Self {
            socket: None,
            is_ipv4,
            phase: Phase::Idle,
            generation: 0,
            target: 0,
            due_ns: 0,
            began_ns: 0,
            sent: 0,
            received: 0,
            rounds_left: 0,
        }
    }

    /// Whether the deadline was noted for what is under way here now, and not for an earlier exchange or use.
    fn awaits(&self, deadline: &Moment<Use>, timeout_ns: u64) -> bool {
        let is_of_now = match self.phase {
            Phase::Dialing => true,
            Phase::Exchanging => deadline.at_ns == self.began_ns.saturating_add(timeout_ns),
            Phase::Idle | Phase::Held => false,
        };
        is_of_now && self.generation == deadline.of.generation
    }

    /// Whether it was noted as the end of what is held here now.
    fn is_held_until(&self, end: &Moment<Use>) -> bool {
        self.phase == Phase::Held && self.generation == end.of.generation
    }
}

/// What a moment is noted for.
struct Use {
    slot: u32,
    generation: u32,
}

struct Worker {
    part: Part,
    schedule: Schedule,
    /// How many at once in a closed loop; zero: an open one.
    concurrency: u64,
    epoll: OwnedFd,
    slots: Vec<Slot>,
    free: Vec<u32>,
    deadlines: Moments<Use>,
    ends: Moments<Use>,
    /// Attempts and exchanges under way.
    undecided: u64,
    open: u64,
    /// The next target and source.
    turn: usize,
    /// A connection of this machine to itself is established as soon as connect() is asked again.
    is_local: bool,
    payload: Vec<u8>,
    holding: Holding,
    /// That there was no room for an attempt was said.
    is_bound_told: bool,
    first_ns: Option<u64>,
    tally: Tally,
    scratch: Vec<u8>,
}

/// Makes and follows the attempts of a part, until all are done or the run is stopped.
///
/// # Errors
/// If there is no epoll to be had; what becomes of a connection is in the tally.
pub fn work(part: Part) -> io::Result<()> {
    // A sleep of the default slack would be 50 us longer than it was asked to be.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let mut worker = Worker::new(part)?;
    wait_for_the_start(&mut worker.part);
    worker.generate()?;
    worker.finish();
    Ok(())
}

/// Sleeps until shortly before the run's start, and looks at the clock from there on.
pub(super) fn wait_for_the_start(part: &mut Part) {
    let is_watched = part.plan.waits_for_answers();
    if is_watched {
        part.saturation.prepare();
    }
    loop {
        let left_ns = part.start_ns.saturating_sub(monotonic_ns());
        if left_ns == 0 || part.shared.stop.load(Ordering::Relaxed) {
            if is_watched {
                part.saturation.begin();
            }
            return;
        }
        match left_ns.saturating_sub(SPIN_NS) {
            // Others may wait for this CPU with a start of theirs: of another agent, or of another thread.
            0 => std::thread::yield_now(),
            sleep_ns => std::thread::sleep(Duration::from_nanos(sleep_ns.min(LONGEST_SLEEP_NS))),
        }
    }
}

impl Worker {
    fn new(part: Part) -> io::Result<Self> {
        let plan = &part.plan;
        let (first, step) = (plan.first + plan.step * part.thread, plan.step * part.threads);
        let concurrency = match plan.arrivals {
            Arrivals::Closed { concurrency, .. } => share(concurrency, first, step),
            _ => 0,
        };
        Ok(Self {
            schedule: Schedule::new(&plan.arrivals, first, step),
            concurrency,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            slots: Vec::new(),
            free: Vec::new(),
            deadlines: Moments::default(),
            ends: Moments::default(),
            undecided: 0,
            open: 0,
            turn: usize::try_from(part.thread).unwrap_or(0),
            is_local: plan.targets.iter().all(|target| target.ip().is_loopback()),
            payload: vec![0x5a; plan.payload.map_or(0, |payload| payload.bytes)],
            holding: Holding::default(),
            is_bound_told: false,
            first_ns: None,
            tally: Tally::default(),
            scratch: Vec::with_capacity(READ_BYTES),
            part,
        })
    }

    fn generate(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            while let Ok(blank) = self.part.blanks.try_recv() {
                let tally = mem::replace(&mut self.tally, blank);
                self.part.hand_over(tally, self.first_ns, false);
            }
            let now_ns = self.part.now();
            self.look_at_the_clock(now_ns);
            let started = self.tally.started;
            self.send();
            if self.part.is_stopped() || self.is_done(now_ns) {
                return Ok(());
            }
            let slept_ns = wait(&self.epoll, &mut events, self.sleep_ns())?;
            let is_idle = slept_ns == 0 && events.is_empty() && self.tally.started == started;
            self.part.saturation.slept(slept_ns);
            if is_idle {
                self.part.saturation.spun(self.part.now().saturating_sub(now_ns));
            }
            for event in events.drain(..) {
                self.follow(event.data.u64() as u32, event.flags);
            }
        }
    }

    /// How long nothing is due.
    fn sleep_ns(&self) -> u64 {
        if self.concurrency > 0 && self.has_room_in_the_loop(self.part.now()) {
            return 0;
        }
        let now_ns = self.part.now();
        let moments = [self.deadlines.next_ns(), self.ends.next_ns()];
        let next_ns = moments.into_iter().flatten().chain(self.holding.until_ns).min();
        let sleep_ns = next_ns.map_or(LONGEST_SLEEP_NS, |at_ns| at_ns.saturating_sub(now_ns));
        let attempt_ns = self.schedule.peek().map_or(LONGEST_SLEEP_NS, |due_ns| {
            due_ns.saturating_sub(now_ns).saturating_sub(SPIN_NS)
        });
        sleep_ns.min(attempt_ns).min(LONGEST_SLEEP_NS)
    }

    /// Ends what has taken too long, and what was held long enough.
    fn look_at_the_clock(&mut self, now_ns: u64) {
        let timeout_ns = self.timeout_ns();
        while let Some(Use { slot, .. }) = self.deadlines.take_due(now_ns, |deadline| {
            self.slots[deadline.of.slot as usize].awaits(deadline, timeout_ns)
        }) {
            match self.slots[slot as usize].phase {
                Phase::Dialing => self.give_up(slot, Outcome::TimedOut, now_ns),
                _ => self.lose(slot, Loss::TimedOut, now_ns),
            }
        }
        while let Some(Use { slot, .. }) = self
            .ends
            .take_due(now_ns, |end| self.slots[end.of.slot as usize].is_held_until(end))
        {
            self.close(slot);
        }
        let is_count = matches!(self.part.plan.arrivals, Arrivals::Count { .. });
        let is_decided = is_count && self.schedule.peek().is_none() && self.undecided == 0;
        self.holding.look(&mut self.part, is_decided, now_ns);
    }

    fn is_done(&self, now_ns: u64) -> bool {
        match &self.part.plan.arrivals {
            Arrivals::Count { .. } => self
                .holding
                .until_ns
                .is_some_and(|until_ns| now_ns >= until_ns || self.open == 0),
            Arrivals::Stages(_) => self.schedule.peek().is_none() && self.undecided == 0 && self.open == 0,
            Arrivals::Closed { duration, .. } => {
                now_ns >= duration.as_nanos() as u64 && self.undecided == 0 && self.open == 0
            }
        }
    }

    fn has_room_in_the_loop(&self, now_ns: u64) -> bool {
        let Arrivals::Closed { duration, .. } = self.part.plan.arrivals else {
            return false;
        };
        self.in_use() < self.concurrency && now_ns < duration.as_nanos() as u64
    }

    /// Connections that are open or under way.
    fn in_use(&self) -> u64 {
        (self.slots.len() - self.free.len()) as u64
    }

    /// Makes the attempts that are due.
    fn send(&mut self) {
        for _ in 0..BURST {
            let now_ns = self.part.now();
            if self.concurrency > 0 {
                if !self.has_room_in_the_loop(now_ns) {
                    return;
                }
                self.attempt(now_ns, now_ns);
                continue;
            }
            match self.schedule.peek() {
                Some(due_ns) if due_ns <= now_ns => {
                    self.schedule.advance();
                    self.tally.lateness.saturating_record(now_ns - due_ns);
                    self.tally.late += u64::from(now_ns - due_ns >= LATE_NS);
                    self.attempt(due_ns, now_ns);
                }
                _ => return,
            }
        }
    }

    fn target(&self, slot: u32) -> SocketAddr {
        self.part.plan.targets[usize::from(self.slots[slot as usize].target)]
    }

    fn timeout_ns(&self) -> u64 {
        self.part.plan.timeout.as_nanos() as u64
    }

    fn attempt(&mut self, due_ns: u64, now_ns: u64) {
        self.tally.started += 1;
        self.first_ns.get_or_insert(now_ns);
        let turn = self.turn;
        self.turn = self.turn.wrapping_add(1);
        let target_index = turn % self.part.plan.targets.len();
        let target = self.part.plan.targets[target_index];
        let index = match self.take_slot(turn, target) {
            Ok(index) => index,
            Err(outcome) => return self.failed(outcome, due_ns),
        };
        let slot = &mut self.slots[index as usize];
        slot.phase = Phase::Dialing;
        slot.target = target_index as u16;
        slot.due_ns = due_ns;
        slot.began_ns = now_ns;
        self.undecided += 1;
        let (mut answer, mut handshake) = (self.dial(index), None);
        if self.is_local && answer == Err(Errno::INPROGRESS) {
            // On this machine it is over already.
            handshake = self.slots[index as usize]
                .socket
                .as_ref()
                .and_then(socket::established);
            answer = if handshake.is_some() {
                Ok(())
            } else {
                self.dial(index)
            };
        }
        self.answered(index, answer, handshake);
        if self.slots[index as usize].phase == Phase::Dialing {
            self.note_deadline(index, now_ns);
        }
    }

    fn dial(&self, index: u32) -> Result<(), Errno> {
        let socket = self.slots[index as usize].socket.as_ref();
        connect(
            socket.expect("a slot that dials has a socket"),
            &self.target(index),
        )
    }

    fn note_deadline(&mut self, index: u32, now_ns: u64) {
        let timeout_ns = self.timeout_ns();
        let slots = &self.slots;
        let of = Use {
            slot: index,
            generation: slots[index as usize].generation,
        };
        let at_ns = now_ns.saturating_add(timeout_ns);
        self.deadlines.note(at_ns, of, slots.len(), |deadline| {
            slots[deadline.of.slot as usize].awaits(deadline, timeout_ns)
        });
    }

    /// A place with a socket: one that was used before, if there is one, or a new one. Else what the attempt ends as.
    fn take_slot(&mut self, turn: usize, target: SocketAddr) -> Result<u32, Outcome> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() >= self.part.at_once => {
                let bound = &self.part.bound;
                if !mem::replace(&mut self.is_bound_told, true) {
                    self.tally.remark(bound.remark.clone());
                }
                return Err(bound.outcome);
            }
            None => {
                self.slots.push(Slot::unused(target.is_ipv4()));
                (self.slots.len() - 1) as u32
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        if slot.socket.is_none() || slot.is_ipv4 != target.is_ipv4() {
            let sources = &self.part.sources;
            let source =
                (!sources.is_empty()).then(|| sources[turn / self.part.plan.targets.len() % sources.len()]);
            let is_reset = self.part.plan.close == Close::Reset;
            let opened = socket::open_watched(&self.epoll, index, target, source, is_reset);
            match opened {
                Ok(socket) => {
                    slot.socket = Some(socket);
                    slot.is_ipv4 = target.is_ipv4();
                }
                Err(errno) => {
                    self.free.push(index);
                    return Err(Outcome::of(errno));
                }
            }
        }
        Ok(index)
    }

    /// Something happened to a socket. Which is found out by asking, so a stale event does no harm.
    fn follow(&mut self, index: u32, flags: epoll::EventFlags) {
        match self.slots[index as usize].phase {
            Phase::Idle => {}
            Phase::Dialing => {
                let asked = flags.intersects(FAILED).then(|| self.asked(index)).flatten();
                let answer = self.dial(index);
                self.answered(index, answer, asked);
                // With the end of the handshake more may have come; it is not told again.
                if flags.intersects(HEARD) {
                    self.listen(index);
                }
            }
            Phase::Exchanging => self.exchange(index),
            // That there is room to write is nothing to read.
            Phase::Held if !flags.intersects(HEARD) => {}
            Phase::Held => self.listen(index),
        }
    }

    /// Takes what connect() said, and what the kernel said of the handshake, if it was asked already.
    fn answered(&mut self, index: u32, answer: Result<(), Errno>, handshake: Option<Handshake>) {
        match answer {
            Ok(()) | Err(Errno::ISCONN) => {
                let now_ns = self.part.now();
                self.established(index, now_ns, handshake);
                self.use_it(index, now_ns);
            }
            // A reset of the SYN is a refusal (tcp_reset, net/ipv4/tcp_input.c): this one came after the handshake.
            Err(errno @ (Errno::CONNRESET | Errno::PIPE)) => {
                let now_ns = self.part.now();
                self.established(index, now_ns, handshake);
                self.slots[index as usize].phase = Phase::Held;
                self.lose(index, Loss::of(errno), now_ns);
            }
            Err(Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) => {}
            Err(errno) => {
                let now_ns = self.part.now();
                self.tally.no_handshake(handshake);
                self.fail(index, Outcome::of(errno), now_ns);
            }
        }
    }

    fn established(&mut self, index: u32, now_ns: u64, handshake: Option<Handshake>) {
        let slot = &mut self.slots[index as usize];
        self.tally.outcome(Outcome::Established);
        self.tally
            .connect
            .saturating_record(now_ns.saturating_sub(slot.due_ns));
        self.tally
            .dial
            .saturating_record(now_ns.saturating_sub(slot.began_ns));
        let handshake = handshake.or_else(|| slot.socket.as_ref().and_then(socket::handshake));
        if let Some(handshake) = handshake {
            self.tally.handshake(handshake);
        }
        self.undecided -= 1;
        self.open += 1;
        let shared = &self.part.shared;
        let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
        if open > shared.most_open.load(Ordering::Relaxed) {
            shared.most_open.fetch_max(open, Ordering::Relaxed);
        }
    }

    fn use_it(&mut self, index: u32, now_ns: u64) {
        let slot = &mut self.slots[index as usize];
        match self.part.plan.payload {
            Some(payload) => {
                slot.phase = Phase::Exchanging;
                slot.rounds_left = payload.rounds;
                (slot.sent, slot.received, slot.began_ns) = (0, 0, now_ns);
                self.undecided += 1;
                self.note_deadline(index, now_ns);
                self.exchange(index);
            }
            None => self.hold(index, now_ns),
        }
    }

    fn hold(&mut self, index: u32, now_ns: u64) {
        let is_count = matches!(self.part.plan.arrivals, Arrivals::Count { .. });
        if !is_count && self.part.plan.hold.is_zero() {
            return self.close(index);
        }
        let slot = &mut self.slots[index as usize];
        slot.phase = Phase::Held;
        if !is_count {
            let of = Use {
                slot: index,
                generation: slot.generation,
            };
            let at_ns = now_ns.saturating_add(self.part.plan.hold.as_nanos() as u64);
            // One that is lost before leaves its end behind.
            let slots = &self.slots;
            self.ends.note(at_ns, of, slots.len(), |end| {
                slots[end.of.slot as usize].is_held_until(end)
            });
        }
    }

    /// Sends what is to be sent and reads what has come back, until either has to wait.
    fn exchange(&mut self, index: u32) {
        let length = self.payload.len();
        loop {
            let slot = &mut self.slots[index as usize];
            let socket = slot.socket.as_ref().expect("a slot that is in use has a socket");
            let (mut is_stuck, mut failure) = (true, None);
            if (slot.sent as usize) < length {
                match send(socket, &self.payload[slot.sent as usize..], SendFlags::NOSIGNAL) {
                    Ok(bytes) => {
                        slot.sent += bytes as u32;
                        self.tally.bytes_sent += bytes as u64;
                        is_stuck = false;
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => failure = Some(Loss::of(errno)),
                }
            }
            self.scratch.clear();
            match recv(socket, spare_capacity(&mut self.scratch), RecvFlags::empty()) {
                Ok((0, _)) => failure = Some(Loss::ClosedByPeer),
                Ok((bytes, _)) => {
                    slot.received = slot.received.saturating_add(bytes as u32);
                    self.tally.bytes_received += bytes as u64;
                    is_stuck = false;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => failure = Some(Loss::of(errno)),
            }
            let now_ns = monotonic_ns().saturating_sub(self.part.start_ns);
            if slot.sent as usize == length && slot.received as usize >= length {
                self.tally
                    .exchange
                    .saturating_record(now_ns.saturating_sub(slot.began_ns));
                slot.rounds_left -= 1;
                (slot.sent, slot.received, slot.began_ns) = (0, 0, now_ns);
                if slot.rounds_left == 0 {
                    self.undecided -= 1;
                    self.hold(index, now_ns);
                    // What came with the last answer is not told again.
                    return self.listen(index);
                }
                self.note_deadline(index, now_ns);
                is_stuck = false;
            }
            if let Some(loss) = failure {
                return self.lose(index, loss, now_ns);
            }
            if is_stuck {
                return;
            }
        }
    }

    /// Reads what a held connection was sent, to learn of its end.
    fn listen(&mut self, index: u32) {
        loop {
            let slot = &self.slots[index as usize];
            let Some(socket) = slot.socket.as_ref().filter(|_| slot.phase == Phase::Held) else {
                return;
            };
            self.scratch.clear();
            let loss = match recv(socket, spare_capacity(&mut self.scratch), RecvFlags::empty()) {
                Ok((0, _)) => Loss::ClosedByPeer,
                Ok((bytes, _)) => {
                    self.tally.bytes_received += bytes as u64;
                    continue;
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(errno) => Loss::of(errno),
            };
            let now_ns = self.part.now();
            return self.lose(index, loss, now_ns);
        }
    }

    /// An attempt that failed before it had a place.
    fn failed(&mut self, outcome: Outcome, due_ns: u64) {
        self.tally.outcome(outcome);
        let waited_ns = self.part.now().saturating_sub(due_ns);
        self.tally.error.saturating_record(waited_ns);
    }

    /// What the kernel says of a handshake, whether it is over or not.
    fn asked(&self, index: u32) -> Option<Handshake> {
        let socket = self.slots[index as usize].socket.as_ref();
        socket.and_then(socket::handshake)
    }

    /// Ends an attempt that the kernel would have gone on with.
    fn give_up(&mut self, index: u32, outcome: Outcome, now_ns: u64) {
        let asked = self.asked(index);
        self.tally.no_handshake(asked);
        self.fail(index, outcome, now_ns);
    }

    fn fail(&mut self, index: u32, outcome: Outcome, now_ns: u64) {
        let due_ns = self.slots[index as usize].due_ns;
        self.tally.outcome(outcome);
        self.tally.error.saturating_record(now_ns.saturating_sub(due_ns));
        self.undecided -= 1;
        self.release(index, false);
    }

    fn lose(&mut self, index: u32, loss: Loss, now_ns: u64) {
        self.tally.lost(loss, now_ns);
        self.undecided -= u64::from(self.slots[index as usize].phase == Phase::Exchanging);
        self.not_open();
        self.release(index, false);
    }

    fn close(&mut self, index: u32) {
        self.tally.closed += 1;
        self.not_open();
        self.release(index, true);
    }

    fn not_open(&mut self) {
        self.open -= 1;
        self.part.shared.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Gives a place back. The socket of a connection that we reset is kept for the next one.
    fn release(&mut self, index: u32, keep: bool) {
        let slot = &mut self.slots[index as usize];
        slot.phase = Phase::Idle;
        let is_kept = keep
            && self.part.plan.close == Close::Reset
            && slot
                .socket
                .as_ref()
                .is_some_and(|socket| connect_unspec(socket).is_ok());
        if !is_kept {
            slot.socket = None;
        }
        self.free.push(index);
    }

    /// Closes what is open and says what is left to say.
    fn finish(mut self) {
        let now_ns = self.part.now();
        for index in 0..self.slots.len() as u32 {
            match self.slots[index as usize].phase {
                Phase::Idle => {}
                Phase::Dialing => self.give_up(index, Outcome::Abandoned, now_ns),
                Phase::Exchanging | Phase::Held => {
                    self.undecided -= u64::from(self.slots[index as usize].phase == Phase::Exchanging);
                    self.tally.closed += 1;
                    self.not_open();
                    self.release(index, false);
                }
            }
        }
        let tally = mem::take(&mut self.tally);
        self.part.hand_over(tally, self.first_ns, true);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::load::plan::tests::count;

    /// All of a plan, for a thread of its own that nobody listens to.
    pub(crate) fn part(plan: Plan) -> Part {
        Part {
            plan: Arc::new(plan),
            thread: 0,
            threads: 1,
            sources: Arc::default(),
            terms: None,
            at_once: 3,
            bound: Arc::new(Bound {
                outcome: Outcome::LocalFiles,
                remark: String::new(),
            }),
            is_bound: false,
            start_ns: monotonic_ns(),
            shared: Arc::default(),
            blanks: sync_channel(1).1,
            filled: sync_channel(1).0,
            saturation: Saturation::default(),
        }
    }

    /// A worker with connections that nothing becomes of by itself.
    fn worker(phases: &[Phase]) -> Worker {
        let mut plan = count(1);
        let long = Duration::from_secs(600);
        (plan.timeout, plan.hold) = (long, long);
        plan.arrivals = Arrivals::Closed {
            concurrency: 3,
            duration: long,
        };
        let mut worker = Worker::new(part(plan)).expect("an epoll");
        worker.slots = phases
            .iter()
            .map(|phase| Slot {
                phase: *phase,
                generation: 7,
                ..Slot::unused(true)
            })
            .collect();
        worker
    }

    #[test]
    fn exchanges_leave_no_more_deadlines_than_there_are_places() {
        let mut worker = worker(&[Phase::Exchanging, Phase::Dialing, Phase::Held]);
        worker.slots[1].generation = 6;
        worker.note_deadline(1, 0);
        worker.slots[1].generation = 7;
        worker.note_deadline(1, 0);
        worker.note_deadline(2, 0);
        for began_ns in 1..=100_000 {
            worker.slots[0].began_ns = began_ns;
            worker.note_deadline(0, began_ns);
            assert!(worker.deadlines.are_few(worker.slots.len()));
        }
        // What is under way is still to be looked at.
        let (timeout_ns, slots) = (worker.timeout_ns(), &worker.slots);
        let awaited = std::iter::from_fn(|| {
            let is_awaited = |moment: &Moment<Use>| slots[moment.of.slot as usize].awaits(moment, timeout_ns);
            worker.deadlines.take_due(u64::MAX, is_awaited)
        });
        let awaited: Vec<u32> = awaited.map(|of| of.slot).collect();
        assert_eq!(awaited, [1, 0]);
    }

    #[test]
    fn connections_that_are_lost_while_they_are_held_leave_no_more_ends_than_there_are_places() {
        let mut worker = worker(&[Phase::Held, Phase::Idle]);
        worker.hold(0, 0);
        for now_ns in 1..=100_000 {
            worker.slots[1].generation += 1;
            worker.hold(1, now_ns);
            assert!(worker.ends.are_few(worker.slots.len()));
        }
        worker.open = 2;
        worker.part.shared.open.store(2, Ordering::Relaxed);
        let hold_ns = worker.part.plan.hold.as_nanos() as u64;
        worker.look_at_the_clock(hold_ns + 99_999);
        assert_eq!((worker.tally.closed, worker.slots[1].phase), (1, Phase::Held));
        worker.look_at_the_clock(hold_ns + 100_000);
        assert_eq!((worker.tally.closed, worker.slots[1].phase), (2, Phase::Idle));
    }
}
