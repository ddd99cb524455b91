//! One thread of the generator where the limit of open files is in the way: makes a count of connections and holds them,
//! each watched for its end, by io_uring. Its sockets lie in tables of the rings ("direct descriptors") and take no files.
//!
//! A ring's table is as long as the limit of files allows, so there are as many rings as it takes; an epoll tells which
//! of them has something to say. What TCP_INFO knows of a handshake cannot be asked here, so `network` and
//! `syn_retransmits` stay empty: the kernel's own records have both.
#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    io, mem,
    net::SocketAddr,
    num::NonZeroU64,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr,
    sync::atomic::Ordering,
    time::Duration,
};

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, squeue::Flags, types};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use rustix::{
    event::epoll,
    io::Errno,
    process::{Resource, getrlimit},
};

use super::{
    outcome::{Loss, Outcome},
    plan::{Arrivals, Close},
    schedule::Schedule,
    tally::{LATE_NS, Tally},
    wait::wait,
    worker::{EVENTS, Holding, LONGEST_SLEEP_NS, Part, READ_BYTES, SPIN_NS, wait_for_the_start},
};

/// Connections of one ring; no table may be longer (IORING_MAX_FIXED_FILES is 2^20, the limit of files comes before).
const MOST_OF_A_RING: u64 = 1 << 15;

/// Requests that a ring takes at once.
const QUEUE: u32 = 1024;

/// Requests of an attempt: socket, three options, connect.
const STEPS: usize = 5;

/// Attempts that are made before what came is looked at.
const BURST: usize = 64;

/// Connections of a ring that are closed before what came is looked at.
const CLOSED_AT_ONCE: usize = 128;

/// Ends that are waited for after everything was closed.
const LAST_ENDS: Duration = Duration::from_secs(10);

/// Says why this kernel cannot do it, if it cannot.
///
/// # Errors
/// io_uring is switched off, or the kernel is older than Linux 6.11, the first that binds and sets options by it.
pub fn check() -> Result<(), String> {
    let ring = IoUring::new(8).map_err(|error| format!("io_uring is not to be had: {error}"))?;
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| format!("io_uring says nothing of what it can: {error}"))?;
    if probe.is_supported(opcode::Bind::CODE) {
        Ok(())
    } else {
        Err("without files it takes io_uring of Linux 6.11".into())
    }
}

/// What a request of a ring was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    /// Anything before connect(): it only answers if it failed.
    Prepare,
    Connect,
    Receive,
    /// What ends something: its answer says nothing.
    End,
}

impl Step {
    const ALL: [Self; 4] = [Self::Prepare, Self::Connect, Self::Receive, Self::End];

    fn of(self, connection: usize) -> u64 {
        (self as u64) << 56 | connection as u64
    }

    fn from(data: u64) -> (Self, usize) {
        let step = Self::ALL[(data >> 56) as usize % Self::ALL.len()];
        (step, (data & ((1 << 56) - 1)) as usize)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Dialing,
    Held,
    /// Closed by us, and its receive has not ended yet.
    Closing,
    Over,
}

struct Connection {
    due_ns: u64,
    began_ns: u64,
    /// What failed before connect(), or zero.
    errno: i32,
    phase: Phase,
}

struct Ring {
    uring: IoUring,
    /// Ends that are still to come of what was closed.
    closing: usize,
}

/// What requests have the address of. Options are read when their request runs, which may be after it was submitted: so this
/// lies where it stays.
struct Given {
    targets: Vec<SockaddrStorage>,
    sources: Vec<SockaddrStorage>,
    on: libc::c_int,
    reset_at_close: libc::linger,
}

struct Worker {
    part: Part,
    schedule: Schedule,
    epoll: OwnedFd,
    rings: Vec<Ring>,
    of_a_ring: usize,
    given: Box<Given>,
    connections: Vec<Connection>,
    deadlines: VecDeque<(u64, usize)>,
    undecided: u64,
    open: u64,
    holding: Holding,
    first_ns: Option<u64>,
    tally: Tally,
}

/// Makes the connections of a part, and holds them as long as the plan says or until it is stopped.
///
/// # Errors
/// If there is no ring to be had; what becomes of a connection is in the tally.
pub fn work(part: Part) -> io::Result<()> {
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let mut worker = Worker::new(part)?;
    wait_for_the_start(&mut worker.part);
    worker.generate()?;
    worker.finish()
}

fn raw(address: SocketAddr) -> SockaddrStorage {
    SockaddrStorage::from(address)
}

fn size_of<T>(_: &T) -> u32 {
    mem::size_of::<T>() as u32
}

impl Worker {
    fn new(part: Part) -> io::Result<Self> {
        let plan = &part.plan;
        let schedule = Schedule::new(
            &plan.arrivals,
            plan.first + plan.step * part.thread,
            plan.step * part.threads,
        );
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(MOST_OF_A_RING);
        let of_a_ring = limit.clamp(1, MOST_OF_A_RING) as usize;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut rings = Vec::new();
        for index in 0..schedule.remaining().div_ceil(of_a_ring as u64) {
            rings.push(Ring::new(&epoll, index, of_a_ring)?);
        }
        let given = Given {
            targets: plan.targets.iter().copied().map(raw).collect(),
            sources: part
                .sources
                .iter()
                .map(|source| raw(SocketAddr::new(*source, 0)))
                .collect(),
            on: 1,
            reset_at_close: libc::linger {
                l_onoff: 1,
                l_linger: 0,
            },
        };
        Ok(Self {
            connections: Vec::with_capacity(schedule.remaining() as usize),
            schedule,
            epoll,
            rings,
            of_a_ring,
            given: Box::new(given),
            deadlines: VecDeque::new(),
            undecided: 0,
            open: 0,
            holding: Holding::default(),
            first_ns: None,
            tally: Tally::default(),
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
            self.look_at_the_clock(now_ns)?;
            self.send()?;
            let is_over = |until_ns| now_ns >= until_ns || self.open == 0;
            if self.part.is_stopped() || self.holding.until_ns.is_some_and(is_over) {
                return Ok(());
            }
            self.wait(&mut events, self.sleep_ns())?;
        }
    }

    /// Sleeps until a ring has something to say, and hears it.
    fn wait(&mut self, events: &mut Vec<epoll::Event>, sleep_ns: u64) -> io::Result<()> {
        wait(&self.epoll, events, sleep_ns)?;
        for event in events.drain(..) {
            self.hear(event.data.u64() as usize)?;
        }
        Ok(())
    }

    fn sleep_ns(&self) -> u64 {
        let now_ns = self.part.now();
        let left_ns = |at_ns: u64| at_ns.saturating_sub(now_ns);
        let deadline_ns = self.deadlines.front().map(|(at_ns, _)| left_ns(*at_ns));
        let end_ns = self.holding.until_ns.map(left_ns);
        let attempt_ns = self
            .schedule
            .peek()
            .map(|due_ns| left_ns(due_ns).saturating_sub(SPIN_NS));
        let soonest = [deadline_ns, end_ns, attempt_ns].into_iter().flatten().min();
        soonest.unwrap_or(LONGEST_SLEEP_NS).min(LONGEST_SLEEP_NS)
    }

    fn look_at_the_clock(&mut self, now_ns: u64) -> io::Result<()> {
        while let Some((at_ns, index)) = self.deadlines.front().copied() {
            let is_dialing = self.connections[index].phase == Phase::Dialing;
            if is_dialing && at_ns > now_ns {
                break;
            }
            self.deadlines.pop_front();
            if is_dialing {
                self.fail(index, Outcome::TimedOut, now_ns);
                self.abandon(index, Step::Connect)?;
            }
        }
        let is_decided = self.schedule.peek().is_none() && self.undecided == 0;
        self.holding.look(&mut self.part, is_decided, now_ns);
        Ok(())
    }

    /// Makes the attempts that are due.
    fn send(&mut self) -> io::Result<()> {
        let mut used = None;
        for _ in 0..BURST {
            let now_ns = self.part.now();
            match self.schedule.peek() {
                Some(due_ns) if due_ns <= now_ns => {
                    self.schedule.advance();
                    self.tally.lateness.saturating_record(now_ns - due_ns);
                    self.tally.late += u64::from(now_ns - due_ns >= LATE_NS);
                    let ring = self.connections.len() / self.of_a_ring;
                    if used.is_some_and(|used| used != ring) {
                        self.rings[ring - 1].submit()?;
                    }
                    used = Some(ring);
                    self.attempt(due_ns, now_ns)?;
                }
                _ => break,
            }
        }
        match used {
            Some(ring) => self.rings[ring].submit(),
            None => Ok(()),
        }
    }

    fn attempt(&mut self, due_ns: u64, now_ns: u64) -> io::Result<()> {
        self.tally.started += 1;
        self.tally.lacks_handshakes = true;
        self.first_ns.get_or_insert(now_ns);
        let index = self.connections.len();
        self.connections.push(Connection {
            due_ns,
            began_ns: now_ns,
            errno: 0,
            phase: Phase::Dialing,
        });
        self.undecided += 1;
        let timeout_ns = self.part.plan.timeout.as_nanos() as u64;
        self.deadlines
            .push_back((now_ns.saturating_add(timeout_ns), index));

        let turn = index + usize::try_from(self.part.thread).unwrap_or(0);
        let targets = &self.given.targets;
        let target = &targets[turn % targets.len()];
        let domain = target.family().map_or(libc::AF_INET, |family| family as i32);
        let place = (index % self.of_a_ring) as u32;
        let socket = types::Fixed(place);
        let slot = types::DestinationSlot::try_from_slot_target(place).expect("a place of the table");
        let is_reset = self.part.plan.close == Close::Reset;
        let source = match self.given.sources.len() {
            0 => None,
            many => Some(&self.given.sources[turn / targets.len() % many]),
        };
        let option = |level, name, value: *const libc::c_void, length| {
            opcode::SetSockOpt::new(socket, level as u32, name as u32, value, length).build()
        };
        let given = &self.given;
        let steps = [
            Some(
                opcode::Socket::new(domain, libc::SOCK_STREAM, 0)
                    .file_index(Some(slot))
                    .build(),
            ),
            is_reset.then(|| {
                let value = &given.reset_at_close;
                let length = size_of(value);
                option(
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    (&raw const *value).cast(),
                    length,
                )
            }),
            // The port is chosen at connect(), when the target is known: so one port serves many targets.
            source.map(|_| {
                let value = &given.on;
                option(
                    libc::IPPROTO_IP,
                    libc::IP_BIND_ADDRESS_NO_PORT,
                    (&raw const *value).cast(),
                    size_of(value),
                )
            }),
            source.map(|source| opcode::Bind::new(socket, source.as_ptr(), source.len()).build()),
        ];
        let ring = &mut self.rings[index / self.of_a_ring];
        ring.make_room(STEPS)?;
        for step in steps.into_iter().flatten() {
            let step = step
                .flags(Flags::IO_LINK | Flags::SKIP_SUCCESS)
                .user_data(Step::Prepare.of(index));
            // SAFETY: addresses and options lie in `given`, which does not change.
            unsafe { ring.push(&step) };
        }
        let connect = opcode::Connect::new(socket, target.as_ptr(), target.len())
            .build()
            .user_data(Step::Connect.of(index));
        // SAFETY: as above.
        unsafe { ring.push(&connect) };
        Ok(())
    }

    /// Takes what a ring has to say.
    fn hear(&mut self, ring: usize) -> io::Result<()> {
        let now_ns = self.part.now();
        loop {
            let next = self.rings[ring].uring.completion().next();
            let Some(entry) = next else { break };
            self.heard(&entry, now_ns)?;
        }
        self.rings[ring].submit()
    }

    fn heard(&mut self, entry: &cqueue::Entry, now_ns: u64) -> io::Result<()> {
        let (step, index) = Step::from(entry.user_data());
        let (result, phase) = (entry.result(), self.connections[index].phase);
        match (step, phase) {
            (Step::Prepare, Phase::Dialing) if result != -libc::ECANCELED => {
                self.connections[index].errno = -result;
            }
            (Step::Connect, Phase::Dialing) if result == 0 => {
                self.established(index, now_ns);
                self.listen(index)?;
            }
            // A reset of the SYN is a refusal (tcp_reset, net/ipv4/tcp_input.c): this one came after the handshake.
            (Step::Connect, Phase::Dialing) if matches!(-result, libc::ECONNRESET | libc::EPIPE) => {
                self.established(index, now_ns);
                self.lose(index, Loss::of(Errno::from_raw_os_error(-result)), now_ns)?;
            }
            (Step::Connect, Phase::Dialing) => {
                let errno = match self.connections[index].errno {
                    0 => -result,
                    errno => errno,
                };
                self.fail(index, Outcome::of(Errno::from_raw_os_error(errno)), now_ns);
                self.close_place(index)?;
            }
            (Step::Receive, Phase::Held) if result > 0 => {
                self.tally.bytes_received += result as u64;
                self.listen(index)?;
            }
            (Step::Receive, Phase::Held) if matches!(-result, libc::EAGAIN | libc::EINTR) => {
                self.listen(index)?;
            }
            (Step::Receive, Phase::Held) => {
                let loss = match result {
                    0 => Loss::ClosedByPeer,
                    _ => Loss::of(Errno::from_raw_os_error(-result)),
                };
                self.lose(index, loss, now_ns)?;
            }
            (Step::Receive, Phase::Closing) => {
                self.connections[index].phase = Phase::Over;
                self.rings[index / self.of_a_ring].closing -= 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn established(&mut self, index: usize, now_ns: u64) {
        let connection = &mut self.connections[index];
        connection.phase = Phase::Held;
        self.tally.outcome(Outcome::Established);
        self.tally
            .connect
            .saturating_record(now_ns.saturating_sub(connection.due_ns));
        self.tally
            .dial
            .saturating_record(now_ns.saturating_sub(connection.began_ns));
        self.undecided -= 1;
        self.open += 1;
        let shared = &self.part.shared;
        let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
        shared.most_open.fetch_max(open, Ordering::Relaxed);
    }

    /// Waits for what comes, to learn of the connection's end.
    fn listen(&mut self, index: usize) -> io::Result<()> {
        let place = types::Fixed((index % self.of_a_ring) as u32);
        // What comes is discarded (MSG_TRUNC, tcp(7)), so there is no buffer that would have to outlive the ring.
        let receive = opcode::Recv::new(place, ptr::null_mut(), READ_BYTES as u32)
            .flags(libc::MSG_TRUNC)
            .build()
            .user_data(Step::Receive.of(index));
        let ring = &mut self.rings[index / self.of_a_ring];
        ring.make_room(1)?;
        // SAFETY: it has no address.
        unsafe { ring.push(&receive) };
        Ok(())
    }

    fn fail(&mut self, index: usize, outcome: Outcome, now_ns: u64) {
        let connection = &mut self.connections[index];
        connection.phase = Phase::Over;
        self.tally.outcome(outcome);
        self.tally
            .error
            .saturating_record(now_ns.saturating_sub(connection.due_ns));
        self.undecided -= 1;
    }

    fn lose(&mut self, index: usize, loss: Loss, now_ns: u64) -> io::Result<()> {
        self.tally.lost(loss, now_ns);
        self.not_open();
        self.connections[index].phase = Phase::Over;
        self.close_place(index)
    }

    fn not_open(&mut self) {
        self.open -= 1;
        self.part.shared.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// Closes a socket of which no request is under way. There may be none.
    fn close_place(&mut self, index: usize) -> io::Result<()> {
        let close = opcode::Close::new(types::Fixed((index % self.of_a_ring) as u32))
            .build()
            .flags(Flags::SKIP_SUCCESS)
            .user_data(Step::End.of(index));
        let ring = &mut self.rings[index / self.of_a_ring];
        ring.make_room(1)?;
        // SAFETY: it has no address.
        unsafe { ring.push(&close) };
        Ok(())
    }

    /// Takes back the request that is under way, and closes the socket whether there was one or not.
    fn abandon(&mut self, index: usize, step: Step) -> io::Result<()> {
        let cancel = opcode::AsyncCancel::new(step.of(index))
            .build()
            .flags(Flags::IO_HARDLINK | Flags::SKIP_SUCCESS)
            .user_data(Step::End.of(index));
        let ring = &mut self.rings[index / self.of_a_ring];
        ring.make_room(2)?;
        // SAFETY: it has no address.
        unsafe { ring.push(&cancel) };
        self.close_place(index)
    }

    /// Closes what is open, some at a time, and says what is left to say.
    fn finish(mut self) -> io::Result<()> {
        let now_ns = self.part.now();
        for index in 0..self.connections.len() {
            match self.connections[index].phase {
                Phase::Dialing => {
                    self.fail(index, Outcome::Abandoned, now_ns);
                    self.abandon(index, Step::Connect)?;
                }
                Phase::Held => {
                    self.tally.closed += 1;
                    self.not_open();
                    self.connections[index].phase = Phase::Closing;
                    self.rings[index / self.of_a_ring].closing += 1;
                    self.abandon(index, Step::Receive)?;
                }
                Phase::Closing | Phase::Over => {}
            }
            if index % CLOSED_AT_ONCE == 0 {
                self.hear(index / self.of_a_ring)?;
            }
        }
        // A ring that is dropped takes its time to close what it still has, where nobody sees it.
        let until_ns = self.part.now() + LAST_ENDS.as_nanos() as u64;
        let mut events = Vec::with_capacity(EVENTS);
        for ring in &mut self.rings {
            ring.submit()?;
        }
        while self.rings.iter().any(|ring| ring.closing > 0) && self.part.now() < until_ns {
            self.wait(&mut events, LONGEST_SLEEP_NS)?;
        }
        let tally = mem::take(&mut self.tally);
        self.part.hand_over(tally, self.first_ns, true);
        Ok(())
    }
}

impl Ring {
    fn new(watch: &OwnedFd, index: u64, places: usize) -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_cqsize((places as u32).next_power_of_two().max(QUEUE))
            .build(QUEUE)?;
        uring.submitter().register_files_sparse(places as u32)?;
        // SAFETY: the ring has this descriptor for as long as it lives, which is longer than this call.
        let descriptor = unsafe { BorrowedFd::borrow_raw(uring.as_raw_fd()) };
        let data = epoll::EventData::new_u64(index);
        epoll::add(watch, descriptor.as_fd(), data, epoll::EventFlags::IN)?;
        Ok(Self { uring, closing: 0 })
    }

    /// Hands over what waits, if there is not room for so many more: requests that are linked have to come together.
    fn make_room(&mut self, requests: usize) -> io::Result<()> {
        let queue = self.uring.submission();
        let has_room = queue.capacity() - queue.len() >= requests;
        drop(queue);
        if has_room { Ok(()) } else { self.submit() }
    }

    /// # Safety
    /// What the request has the address of has to live until it was submitted and, if it is written to, answered.
    unsafe fn push(&mut self, request: &squeue::Entry) {
        // SAFETY: by the caller.
        let pushed = unsafe { self.uring.submission().push(request) };
        pushed.expect("room was made for it");
    }

    fn submit(&mut self) -> io::Result<()> {
        while !self.uring.submission().is_empty() {
            match self.uring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether a plan is one that can be made so.
pub fn is_of(plan: &super::plan::Plan) -> bool {
    matches!(plan.arrivals, Arrivals::Count { .. })
        && plan.http.is_none()
        && plan.udp.is_none()
        && plan.payload.is_none()
}
