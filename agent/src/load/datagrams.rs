//! One thread of the generator for datagrams: each is sent when it is due and carries its number, so that what comes back, or what
//! its receiver counts, tells which were lost, came twice, or out of their order. What ICMP says of one quotes it, so that a port on which
//! nothing listens is told from a loss.
//!
//! As in [`super::worker`], by epoll alone; see there for how the clock is watched.

use std::{collections::VecDeque, io, mem, num::NonZeroU64, os::fd::OwnedFd};

use holdfast_proto::datagram::{self, Datagram, Heard, Kind};
use rustix::{
    event::epoll,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::{
    outcome::{Answer, Outcome},
    plan::Udp,
    schedule::Schedule,
    socket::{self, Complaint},
    tally::{LATE_NS, Tally},
    wait::wait,
    worker::{EVENTS, LONGEST_SLEEP_NS, Part, READ_BYTES, SPIN_NS, monotonic_ns, wait_for_the_start},
};

/// Datagrams that are sent before what came is looked at.
const BURST: usize = 64;

/// Bytes that a socket may hold for us: answers come in bursts, and one that finds no room would count as lost on the path.
const BUFFER_BYTES: usize = 4 << 20;

/// How often a receiver is asked for what it counted before it is given up, and how long each time is waited.
const QUESTIONS: u32 = 10;
const QUESTION_NS: u64 = 200_000_000;

/// How often one is sent whose sending only told what became of those before it: more than come between two calls.
const TRIES: usize = 4;

/// What ICMP says of a port that no socket has. Hosts say it only so often, a second and to each other host (RFC 1812, 4.3.2.8; Linux:
/// net.ipv4.icmp_ratelimit).
const REFUSED: &str = "refused: nothing listens on that UDP port (by ICMP, which hosts send only so many of: those that nothing was said of count as lost)";

/// What is said where this machine dropped what came.
const NO_ROOM: &str = "answers were dropped here, for a socket of this node had no room for them: raise net.core.rmem_max on it, or ask for less of each agent";

/// A datagram that was sent.
#[derive(Clone, Copy)]
struct Flight {
    due_ns: u64,
    sent_ns: u64,
    /// It is back, or was refused.
    is_decided: bool,
}

/// One socket, to one target.
struct Lane {
    socket: OwnedFd,
    /// Names the lane to its receiver.
    tag: u64,
    /// Those that were sent last; the first has the number `first`.
    flights: VecDeque<Flight>,
    first: u64,
    /// The greatest number that came back, and how long that took.
    greatest: Option<u64>,
    last_trip_ns: Option<u64>,
    /// What its receiver says that it has got.
    heard: Option<Heard>,
    /// Of those that were sent one way, the ones that ICMP said did not arrive.
    undelivered: u64,
    /// The question what its receiver has got was refused: nobody answers it.
    is_deaf: bool,
}

impl Lane {
    /// What its receiver has got is not known, and it may say so still.
    fn is_asked(&self) -> bool {
        self.heard.is_none() && self.first > 0 && !self.is_deaf
    }
}

struct Datagrams {
    part: Part,
    udp: Udp,
    schedule: Schedule,
    epoll: OwnedFd,
    lanes: Vec<Lane>,
    turn: usize,
    /// The bytes of a datagram; its head is written anew for each.
    bytes: Vec<u8>,
    under_way: u64,
    first_ns: Option<u64>,
    tally: Tally,
    scratch: Vec<u8>,
}

/// Sends and follows the datagrams of a part, until all are decided or the run is stopped.
///
/// # Errors
/// If there is no epoll or no socket to be had.
///
/// # Panics
/// If the plan has no datagrams.
pub fn work(part: Part) -> io::Result<()> {
    // A sleep of the default slack would be 50 us longer than it was asked to be.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let mut datagrams = Datagrams::new(part)?;
    wait_for_the_start(&mut datagrams.part);
    datagrams.generate()?;
    datagrams.finish()
}

impl Datagrams {
    fn new(part: Part) -> io::Result<Self> {
        let plan = &part.plan;
        let udp = plan.udp.expect("a plan with datagrams");
        let (first, step) = (plan.first + plan.step * part.thread, plan.step * part.threads);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut lanes = Vec::new();
        for (index, &target) in plan.targets.iter().enumerate() {
            let source = (!part.sources.is_empty()).then(|| part.sources[index % part.sources.len()]);
            let socket = socket::open_datagrams(target, source, BUFFER_BYTES)?;
            epoll::add(
                &epoll,
                &socket,
                epoll::EventData::new_u64(index as u64),
                epoll::EventFlags::IN,
            )?;
            // Unlike that of any other lane that its receiver knows.
            let tag = monotonic_ns().rotate_left(20)
                ^ (u64::from(std::process::id()) << 32)
                ^ (first << 16)
                ^ index as u64;
            lanes.push(Lane {
                socket,
                tag,
                flights: VecDeque::new(),
                first: 0,
                greatest: None,
                last_trip_ns: None,
                heard: None,
                undelivered: 0,
                is_deaf: false,
            });
        }
        Ok(Self {
            schedule: Schedule::new(&plan.arrivals, first, step),
            epoll,
            lanes,
            turn: usize::try_from(part.thread).unwrap_or(0),
            bytes: vec![0x5a; udp.bytes],
            under_way: 0,
            first_ns: None,
            tally: Tally::default(),
            scratch: vec![0; READ_BYTES],
            udp,
            part,
        })
    }

    fn timeout_ns(&self) -> u64 {
        self.part.plan.timeout.as_nanos() as u64
    }

    fn generate(&mut self) -> io::Result<()> {
        loop {
            while let Ok(blank) = self.part.blanks.try_recv() {
                let tally = mem::replace(&mut self.tally, blank);
                self.part.hand_over(tally, self.first_ns, false);
            }
            let now_ns = self.part.now();
            self.give_up(now_ns);
            self.send();
            if self.part.is_stopped() || (self.schedule.peek().is_none() && self.under_way == 0) {
                return Ok(());
            }
            self.wait(self.sleep_ns())?;
        }
    }

    /// Takes what comes within a time.
    fn wait(&mut self, sleep_ns: u64) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        wait(&self.epoll, &mut events, sleep_ns)?;
        for event in events {
            let (index, flags) = (event.data.u64() as usize, event.flags);
            // Until they are taken, epoll tells of them.
            if flags.contains(epoll::EventFlags::ERR) {
                self.hear_complaints(index);
            }
            self.listen(index);
        }
        Ok(())
    }

    /// How long nothing is due.
    fn sleep_ns(&self) -> u64 {
        let now_ns = self.part.now();
        let lost_ns = self
            .lanes
            .iter()
            .filter_map(|lane| lane.flights.front())
            .map(|flight| (flight.sent_ns + self.timeout_ns()).saturating_sub(now_ns))
            .min()
            .unwrap_or(LONGEST_SLEEP_NS);
        let due_ns = self.schedule.peek().map_or(LONGEST_SLEEP_NS, |due_ns| {
            due_ns.saturating_sub(now_ns).saturating_sub(SPIN_NS)
        });
        lost_ns.min(due_ns).min(LONGEST_SLEEP_NS)
    }

    /// Sends what is due.
    fn send(&mut self) {
        for _ in 0..BURST {
            let now_ns = self.part.now();
            let Some(due_ns) = self.schedule.peek().filter(|due_ns| *due_ns <= now_ns) else {
                return;
            };
            self.schedule.advance();
            self.first_ns.get_or_insert(now_ns);
            self.tally.requests += 1;
            self.tally.lateness.saturating_record(now_ns - due_ns);
            self.tally.late += u64::from(now_ns - due_ns >= LATE_NS);
            let index = self.turn % self.lanes.len();
            self.turn = self.turn.wrapping_add(1);
            let lane = &mut self.lanes[index];
            let number = lane.first + lane.flights.len() as u64;
            let kind = if self.udp.is_one_way {
                Kind::OneWay
            } else {
                Kind::Echo
            };
            datagram::write(
                &mut self.bytes,
                Datagram {
                    kind,
                    tag: lane.tag,
                    number,
                    sent_ns: now_ns,
                },
            );
            match self.hand_over(index) {
                Ok(bytes) => {
                    let lane = &mut self.lanes[index];
                    self.tally.bytes_sent += bytes as u64;
                    if self.udp.is_one_way {
                        // It is decided at the end, when its receiver says what it has got.
                        lane.first += 1;
                    } else {
                        self.under_way += 1;
                        lane.flights.push_back(Flight {
                            due_ns,
                            sent_ns: now_ns,
                            is_decided: false,
                        });
                    }
                }
                Err(errno) => {
                    // Full are the queues of this machine.
                    let is_local = errno == Errno::AGAIN || Outcome::of(errno).is_local_limit();
                    self.tally.hindered += u64::from(is_local);
                    self.tally.answer(Answer::Unsent);
                    self.tally.remark(format!("a datagram cannot be sent: {errno}"));
                }
            }
        }
    }

    /// Gives the kernel what is in `bytes`. An error that it has for the socket is of one before, and is told once, instead of sending.
    fn hand_over(&mut self, index: usize) -> Result<usize, Errno> {
        let mut sent = Err(Errno::AGAIN);
        for _ in 0..TRIES {
            sent = send(&self.lanes[index].socket, &self.bytes, SendFlags::NOSIGNAL);
            if sent.is_ok() || !self.hear_complaints(index) {
                break;
            }
        }
        sent
    }

    /// Takes what was said of those that a lane sent; false: nothing was.
    fn hear_complaints(&mut self, index: usize) -> bool {
        let mut is_any = false;
        while let Some(complaint) = socket::complaint(&self.lanes[index].socket, &mut self.scratch) {
            is_any = true;
            self.hear(index, complaint);
        }
        is_any
    }

    /// Decides the datagram that is quoted. Of one that was decided before, or is not told, nothing changes: it is lost in its time.
    fn hear(&mut self, index: usize, complaint: Complaint) {
        let answer = match Outcome::of(complaint.errno) {
            Outcome::Refused => Answer::Refused,
            Outcome::Unreachable => Answer::Unreachable,
            _ => {
                let errno = complaint.errno;
                return self.tally.remark(format!("of a datagram that was sent: {errno}"));
            }
        };
        self.tally.remark(match answer {
            Answer::Refused => REFUSED.to_owned(),
            _ => format!("unreachable: {} (by ICMP)", complaint.errno),
        });
        let lane = &mut self.lanes[index];
        let quoted = datagram::read(&self.scratch[..complaint.quoted]);
        let Some(quoted) = quoted.filter(|quoted| quoted.tag == lane.tag) else {
            return;
        };
        match quoted.kind {
            Kind::Question => lane.is_deaf |= answer == Answer::Refused,
            Kind::OneWay if quoted.number < lane.first && lane.undelivered < lane.first => {
                lane.undelivered += 1;
                self.tally.answer(answer);
            }
            Kind::OneWay => {}
            Kind::Echo => {
                let place = quoted.number.checked_sub(lane.first);
                let flight = place.and_then(|place| lane.flights.get_mut(usize::try_from(place).ok()?));
                if let Some(flight) = flight.filter(|flight| !flight.is_decided) {
                    flight.is_decided = true;
                    let due_ns = flight.due_ns;
                    self.under_way -= 1;
                    self.tally.answer(answer);
                    let now_ns = self.part.now();
                    self.tally.error.saturating_record(now_ns.saturating_sub(due_ns));
                }
            }
        }
    }

    /// Counts as lost what is not back in time, and forgets what is decided.
    fn give_up(&mut self, now_ns: u64) {
        let timeout_ns = self.timeout_ns();
        for lane in &mut self.lanes {
            while let Some(flight) = lane.flights.front() {
                if !flight.is_decided {
                    if flight.sent_ns + timeout_ns > now_ns {
                        break;
                    }
                    self.under_way -= 1;
                    self.tally.answer(Answer::TimedOut);
                    self.tally
                        .error
                        .saturating_record(now_ns.saturating_sub(flight.due_ns));
                }
                lane.flights.pop_front();
                lane.first += 1;
            }
        }
    }

    fn listen(&mut self, index: usize) {
        loop {
            let lane = &mut self.lanes[index];
            match recv(&lane.socket, self.scratch.as_mut_slice(), RecvFlags::empty()) {
                Ok((bytes, _)) => {
                    self.tally.bytes_received += bytes as u64;
                    let now_ns = self.part.now();
                    self.heard(index, bytes, now_ns);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Of one that was sent.
                Err(_) if self.hear_complaints(index) => {}
                Err(_) => return,
            }
        }
    }

    fn heard(&mut self, index: usize, bytes: usize, now_ns: u64) {
        let lane = &mut self.lanes[index];
        let bytes = &self.scratch[..bytes];
        if let Some((tag, heard)) = datagram::read_heard(bytes) {
            if tag == lane.tag {
                lane.heard = Some(heard);
            }
            return;
        }
        let Some(back) = datagram::read(bytes).filter(|back| back.tag == lane.tag && back.kind == Kind::Echo)
        else {
            self.tally.remark("a datagram came that is none of ours".into());
            return;
        };
        let place = back.number.checked_sub(lane.first);
        let flight = place.and_then(|place| lane.flights.get_mut(usize::try_from(place).ok()?));
        let Some(flight) = flight.filter(|flight| !flight.is_decided) else {
            // It was back before, or given up: either way it is decided.
            self.tally.duplicated += 1;
            return;
        };
        flight.is_decided = true;
        self.under_way -= 1;
        let trip_ns = now_ns.saturating_sub(flight.sent_ns);
        self.tally.answer(Answer::Expected);
        self.tally.exchange.saturating_record(trip_ns);
        self.tally
            .request
            .saturating_record(now_ns.saturating_sub(flight.due_ns));
        if lane.greatest.is_some_and(|greatest| greatest > back.number) {
            self.tally.reordered += 1;
        }
        lane.greatest = lane.greatest.max(Some(back.number));
        if let Some(last_ns) = lane.last_trip_ns.replace(trip_ns) {
            self.tally.jitter.saturating_record(trip_ns.abs_diff(last_ns));
        }
    }

    /// Asks the receivers what they have got, if only they know, and says what is left to say.
    fn finish(mut self) -> io::Result<()> {
        if self.udp.is_one_way {
            self.ask()?;
        }
        for lane in &self.lanes {
            let dropped = socket::dropped(&lane.socket);
            if dropped > 0 {
                self.tally.hindered += dropped;
                self.tally.remark(NO_ROOM.to_owned());
            }
            for flight in &lane.flights {
                if !flight.is_decided {
                    self.tally.answer(Answer::Abandoned);
                }
            }
            if !self.udp.is_one_way {
                continue;
            }
            // Of the others nothing was said.
            let delivered = lane.first - lane.undelivered;
            let Some(heard) = lane.heard else {
                self.tally.answers[Answer::Abandoned as usize] += delivered;
                if delivered > 0 {
                    self.tally.remark(
                        "the target does not say what it has got (holdfast load serve --udp does): what was lost is not known"
                            .into(),
                    );
                }
                continue;
            };
            let received = heard.received.min(delivered);
            self.tally.answers[Answer::Expected as usize] += received;
            self.tally.answers[Answer::TimedOut as usize] += delivered - received;
            self.tally.duplicated += heard.duplicated;
            self.tally.reordered += heard.reordered;
            if heard.jitter_ns > 0 {
                self.tally.jitter.saturating_record(heard.jitter_ns);
            }
        }
        let tally = mem::take(&mut self.tally);
        self.part.hand_over(tally, self.first_ns, true);
        Ok(())
    }

    fn ask(&mut self) -> io::Result<()> {
        for _ in 0..QUESTIONS {
            let mut is_complete = true;
            for lane in &mut self.lanes {
                if lane.is_asked() {
                    is_complete = false;
                    datagram::write(
                        &mut self.bytes,
                        Datagram {
                            kind: Kind::Question,
                            tag: lane.tag,
                            number: lane.first,
                            sent_ns: 0,
                        },
                    );
                    let _ = send(&lane.socket, &self.bytes, SendFlags::NOSIGNAL);
                }
            }
            if is_complete {
                return Ok(());
            }
            let until_ns = self.part.now() + QUESTION_NS;
            while self.part.now() < until_ns && self.lanes.iter().any(Lane::is_asked) {
                self.wait(LONGEST_SLEEP_NS)?;
            }
            // One answer is waited for then, too: without it all that was sent would be known of nothing.
            if self.part.is_stopped() {
                return Ok(());
            }
        }
        Ok(())
    }
}
