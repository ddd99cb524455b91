//! One thread of the generator for requests: each is made when it is due, on a connection that is free, or on a new one as long
//! as there may be more. One that finds none waits, and its time counts: somebody would have waited as well.
//!
//! As in [`super::worker`], by epoll alone; see there for how the clock is watched.

use std::{collections::VecDeque, io, mem, num::NonZeroU64, os::fd::OwnedFd, sync::atomic::Ordering};

use rustix::{
    event::epoll,
    io::Errno,
    net::{RecvFlags, SendFlags, connect, connect_unspec, recv, send},
};

use super::{
    http::{Http, Malformed, Version},
    http1::Response,
    http2::{self, Ended, How, Session},
    moments::{Moment, Moments},
    outcome::{Answer, Loss, Outcome},
    plan::{Arrivals, Close, share},
    schedule::Schedule,
    socket::{self, Handshake},
    tally::{LATE_NS, Tally},
    tls::{Secure, Terms, Trouble},
    wait::wait,
    worker::{EVENTS, FAILED, LONGEST_SLEEP_NS, Part, READ_BYTES, SPIN_NS, wait_for_the_start},
};

/// Requests that are taken from the schedule before what came is looked at.
const BURST: usize = 256;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Dialing,
    /// The handshake of TLS.
    Securing,
    Open,
}

/// A request under way.
struct Busy {
    due_ns: u64,
    sent_ns: u64,
    /// Bytes of it that were handed over.
    written: usize,
    serial: u32,
}

/// A place for a connection.
struct Link {
    socket: Option<OwnedFd>,
    is_ipv4: bool,
    phase: Phase,
    /// Changes with each use: what was noted for an earlier one is stale.
    generation: u32,
    target: u16,
    dialled_ns: u64,
    secure: Option<Box<Secure>>,
    /// Of HTTP/2, once it is open.
    session: Option<Box<Session>>,
    /// Of HTTP/1.1: the request under way, and what has come of its response.
    busy: Option<Busy>,
    response: Response,
    /// Stands among those that take a request.
    is_listed: bool,
    /// The number of the last request on it.
    serial: u32,
}

impl Link {
    fn is_idle(&self) -> bool {
        self.busy.is_none()
            && self
                .session
                .as_ref()
                .is_none_or(|session| session.under_way() == 0)
    }

    fn is_under_way(&self, serial: u32) -> bool {
        match &self.session {
            Some(session) => session.has(serial),
            None => self.busy.as_ref().is_some_and(|busy| busy.serial == serial),
        }
    }

    /// Whether what is under way here now may take so long, and not an earlier request or use.
    fn awaits(&self, of: &Use) -> bool {
        self.generation == of.generation
            && match of.wait {
                Wait::Connection => matches!(self.phase, Phase::Dialing | Phase::Securing),
                Wait::Request(serial) => self.is_under_way(serial),
            }
    }
}

/// What takes too long at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// The connection itself.
    Connection,
    Request(u32),
}

/// What a moment is noted for.
struct Use {
    link: u32,
    generation: u32,
    wait: Wait,
}

struct Requests {
    part: Part,
    http: Http,
    /// The request as HTTP/1.1 and as HTTP/2 has it.
    bytes: Vec<u8>,
    request: http2::Request,
    terms: Option<Terms>,
    schedule: Schedule,
    /// Requests at once in a closed loop; zero: an open one.
    concurrency: u64,
    epoll: OwnedFd,
    links: Vec<Link>,
    free: Vec<u32>,
    /// Connections that take a request, and perhaps some that do not any more.
    ready: Vec<u32>,
    /// When those requests were due that have no connection yet.
    waiting: VecDeque<u64>,
    /// When the last of them was due that found more connections to be needed than this machine has room for; those before it did, too.
    held_up_ns: Option<u64>,
    deadlines: Moments<Use>,
    opening: u64,
    under_way: u64,
    open: u64,
    turn: usize,
    is_local: bool,
    /// That requests wait for more connections than there may be was said.
    is_bound_told: bool,
    first_ns: Option<u64>,
    tally: Tally,
    scratch: Vec<u8>,
}

/// Makes and follows the requests of a part, until all are done or the run is stopped.
///
/// # Errors
/// If there is no epoll to be had.
///
/// # Panics
/// If the plan has no request.
pub fn work(part: Part) -> io::Result<()> {
    // A sleep of the default slack would be 50 us longer than it was asked to be.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let mut requests = Requests::new(part)?;
    wait_for_the_start(&mut requests.part);
    requests.generate()?;
    requests.finish();
    Ok(())
}

impl Requests {
    fn new(part: Part) -> io::Result<Self> {
        let plan = &part.plan;
        let http = plan.http.clone().expect("a plan with a request");
        let (first, step) = (plan.first + plan.step * part.thread, plan.step * part.threads);
        let concurrency = match plan.arrivals {
            Arrivals::Closed { concurrency, .. } => share(concurrency, first, step),
            _ => 0,
        };
        Ok(Self {
            bytes: http.bytes(),
            request: http2::Request::of(&http),
            terms: part.terms.clone(),
            schedule: Schedule::new(&plan.arrivals, first, step),
            concurrency,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            links: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
            waiting: VecDeque::new(),
            held_up_ns: None,
            deadlines: Moments::default(),
            opening: 0,
            under_way: 0,
            open: 0,
            turn: usize::try_from(part.thread).unwrap_or(0),
            is_local: plan.targets.iter().all(|target| target.ip().is_loopback()),
            is_bound_told: false,
            first_ns: None,
            tally: Tally::default(),
            scratch: vec![0; READ_BYTES],
            http,
            part,
        })
    }

    fn timeout_ns(&self) -> u64 {
        self.part.plan.timeout.as_nanos() as u64
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
            self.take_what_is_due(now_ns);
            self.serve();
            if self.part.shared.stop.load(Ordering::Relaxed) || self.is_done() {
                return Ok(());
            }
            let slept_ns = wait(&self.epoll, &mut events, self.sleep_ns())?;
            self.part.saturation.slept(slept_ns);
            for event in events.drain(..) {
                self.follow(event.data.u64() as u32, event.flags);
            }
        }
    }

    /// How long nothing is due.
    fn sleep_ns(&self) -> u64 {
        let now_ns = self.part.now();
        let moment_ns = self.deadlines.next_ns();
        let waiting_ns = self.waiting.front().map(|due_ns| due_ns + self.timeout_ns());
        let sleep_ns = moment_ns
            .into_iter()
            .chain(waiting_ns)
            .min()
            .map_or(LONGEST_SLEEP_NS, |at_ns| at_ns.saturating_sub(now_ns));
        let request_ns = self.schedule.peek().map_or(LONGEST_SLEEP_NS, |due_ns| {
            due_ns.saturating_sub(now_ns).saturating_sub(SPIN_NS)
        });
        sleep_ns.min(request_ns).min(LONGEST_SLEEP_NS)
    }

    fn is_done(&self) -> bool {
        let is_made = match self.part.plan.arrivals {
            Arrivals::Closed { duration, .. } => self.part.now() >= duration.as_nanos() as u64,
            _ => self.schedule.peek().is_none(),
        };
        // A connection begins after the request that it was opened for was due, and so has its time when that has none any more. What
        // becomes of it is waited for: else it would be the run that ended it, and nothing said of the target.
        is_made && self.waiting.is_empty() && self.under_way == 0 && self.opening == 0
    }

    /// Ends what has taken too long.
    fn look_at_the_clock(&mut self, now_ns: u64) {
        while let Some(Use { link, wait, .. }) = self.deadlines.take_due(now_ns, |moment| {
            self.links[moment.of.link as usize].awaits(&moment.of)
        }) {
            match wait {
                Wait::Connection if self.links[link as usize].phase == Phase::Dialing => {
                    let asked = self.asked(link);
                    self.tally.no_handshake(asked);
                    self.refused(link, Outcome::TimedOut);
                }
                Wait::Connection => self.not_secured_in_time(link, now_ns),
                Wait::Request(serial) => self.too_late(link, serial, now_ns),
            }
        }
        let timeout_ns = self.timeout_ns();
        let is_too_late = |due_ns: &u64| due_ns + timeout_ns <= now_ns;
        if self.waiting.front().is_some_and(is_too_late) {
            // The time of a request is over before that of the connection that was to carry it.
            let is_dialing = self.links.iter().any(|link| link.phase == Phase::Dialing);
            while self.waiting.front().is_some_and(is_too_late) {
                self.unsent();
                self.tally.unanswered += u64::from(is_dialing);
            }
        }
    }

    fn too_late(&mut self, index: u32, serial: u32, now_ns: u64) {
        self.tally.withheld += u64::from(self.is_withheld(index));
        let Some(session) = &mut self.links[index as usize].session else {
            return self.drop_link(index, Answer::TimedOut);
        };
        if let Some((due_ns, _)) = session.give_up(serial) {
            self.failed(Answer::TimedOut, due_ns, now_ns);
            self.flush(index);
            self.list(index);
        }
    }

    /// Whether a request that is under way has no answer though the target has it all, and this thread missed nothing that came: however slow
    /// it is, that is none of its doing.
    fn is_withheld(&self, index: u32) -> bool {
        let link = &self.links[index as usize];
        let is_written = match (&link.session, &link.busy) {
            (Some(session), _) => session.output().is_empty(),
            (None, Some(busy)) => busy.written == self.bytes.len(),
            (None, None) => false,
        };
        let is_secured = link.secure.as_ref().is_none_or(|secure| secure.is_written());
        is_written
            && is_secured
            && link
                .socket
                .as_ref()
                .is_some_and(|socket| socket::is_withheld(socket, self.part.plan.timeout))
    }

    /// Takes the requests that are due.
    fn take_what_is_due(&mut self, now_ns: u64) {
        if let Arrivals::Closed { duration, .. } = self.part.plan.arrivals {
            if now_ns < duration.as_nanos() as u64 {
                while self.under_way + (self.waiting.len() as u64) < self.concurrency {
                    self.tally.requests += 1;
                    self.waiting.push_back(now_ns);
                }
            }
            return;
        }
        for _ in 0..BURST {
            match self.schedule.peek() {
                Some(due_ns) if due_ns <= now_ns => {
                    self.schedule.advance();
                    self.tally.lateness.saturating_record(now_ns - due_ns);
                    self.tally.late += u64::from(now_ns - due_ns >= LATE_NS);
                    self.tally.requests += 1;
                    self.waiting.push_back(due_ns);
                }
                _ => return,
            }
        }
    }

    /// Gives those that wait a connection, and opens what is lacking.
    fn serve(&mut self) {
        while let Some(&due_ns) = self.waiting.front() {
            if let Some(index) = self.ready.pop() {
                self.links[index as usize].is_listed = false;
                if self.has_room(index) {
                    self.next_waiting();
                    self.begin(index, due_ns);
                }
                continue;
            }
            let will_be_served = self.opening * u64::from(self.http.streams);
            let in_use = self.links.len() - self.free.len();
            if will_be_served >= self.waiting.len() as u64 {
                return;
            }
            if in_use >= self.part.at_once {
                if self.part.is_bound {
                    self.held_up_ns = self.waiting.back().copied();
                }
                return;
            }
            self.dial();
        }
    }

    /// Takes the request that waits longest. A wait that this machine is the reason of is no matter of the target, however it ends.
    fn next_waiting(&mut self) -> Option<u64> {
        let due_ns = self.waiting.pop_front()?;
        if self.held_up_ns.is_some_and(|held_up_ns| due_ns <= held_up_ns) {
            self.tally.hindered += 1;
            if !mem::replace(&mut self.is_bound_told, true) {
                self.tally.remark(self.part.bound.remark.clone());
            }
        }
        Some(due_ns)
    }

    fn has_room(&self, index: u32) -> bool {
        let link = &self.links[index as usize];
        link.phase == Phase::Open
            && match &link.session {
                None => link.busy.is_none(),
                Some(session) => session.has_room(self.http.streams),
            }
    }

    /// Notes that a connection takes a request, if it does.
    fn list(&mut self, index: u32) {
        if self.has_room(index) && !self.links[index as usize].is_listed {
            self.links[index as usize].is_listed = true;
            self.ready.push(index);
        }
    }

    fn note(&mut self, index: u32, wait: Wait, now_ns: u64) {
        let at_ns = now_ns.saturating_add(self.timeout_ns());
        let links = &self.links;
        let of = Use {
            link: index,
            generation: links[index as usize].generation,
            wait,
        };
        // A connection that is established has as many as it has streams, and before that one.
        let places = links.len() * (self.http.streams as usize).max(1);
        self.deadlines.note(at_ns, of, places, |moment: &Moment<Use>| {
            links[moment.of.link as usize].awaits(&moment.of)
        });
    }

    fn dial(&mut self) {
        let now_ns = self.part.now();
        self.first_ns.get_or_insert(now_ns);
        self.tally.started += 1;
        let turn = self.turn;
        self.turn = self.turn.wrapping_add(1);
        let target = turn % self.part.plan.targets.len();
        let index = match self.take_link(turn, target) {
            Ok(index) => index,
            Err(errno) => {
                self.tally.outcome(Outcome::of(errno));
                self.unsent();
                return;
            }
        };
        let link = &mut self.links[index as usize];
        link.phase = Phase::Dialing;
        link.target = target as u16;
        link.dialled_ns = now_ns;
        self.opening += 1;
        let (mut answer, mut handshake) = (self.connect(index), None);
        if self.is_local && answer == Err(Errno::INPROGRESS) {
            // On this machine it is over already.
            handshake = self.links[index as usize]
                .socket
                .as_ref()
                .and_then(socket::established);
            answer = if handshake.is_some() {
                Ok(())
            } else {
                self.connect(index)
            };
        }
        self.answered(index, answer, handshake);
        if matches!(self.links[index as usize].phase, Phase::Dialing | Phase::Securing) {
            self.note(index, Wait::Connection, now_ns);
        }
    }

    fn connect(&self, index: u32) -> Result<(), Errno> {
        let link = &self.links[index as usize];
        let socket = link.socket.as_ref().expect("a link that dials has a socket");
        connect(socket, &self.part.plan.targets[usize::from(link.target)])
    }

    /// A place with a socket: one that was used before, if there is one, or a new one.
    fn take_link(&mut self, turn: usize, target: usize) -> Result<u32, Errno> {
        let address = self.part.plan.targets[target];
        let index = self.free.pop().unwrap_or_else(|| {
            self.links.push(Link {
                socket: None,
                is_ipv4: address.is_ipv4(),
                phase: Phase::Free,
                generation: 0,
                target: 0,
                dialled_ns: 0,
                secure: None,
                session: None,
                busy: None,
                response: Response::default(),
                is_listed: false,
                serial: 0,
            });
            (self.links.len() - 1) as u32
        });
        let link = &mut self.links[index as usize];
        link.generation = link.generation.wrapping_add(1);
        if link.socket.is_none() || link.is_ipv4 != address.is_ipv4() {
            let sources = &self.part.sources;
            let source =
                (!sources.is_empty()).then(|| sources[turn / self.part.plan.targets.len() % sources.len()]);
            let is_reset = self.part.plan.close == Close::Reset;
            let opened = socket::open_watched(&self.epoll, index, address, source, is_reset);
            match opened {
                Ok(socket) => {
                    link.socket = Some(socket);
                    link.is_ipv4 = address.is_ipv4();
                }
                Err(errno) => {
                    self.free.push(index);
                    return Err(errno);
                }
            }
        }
        Ok(index)
    }

    /// Something happened to a socket. Which is found out by asking, so a stale event does no harm.
    fn follow(&mut self, index: u32, flags: epoll::EventFlags) {
        match self.links[index as usize].phase {
            Phase::Free => {}
            Phase::Dialing => {
                let asked = flags.intersects(FAILED).then(|| self.asked(index)).flatten();
                let answer = self.connect(index);
                self.answered(index, answer, asked);
            }
            Phase::Securing => self.secure(index),
            Phase::Open => {
                self.flush(index);
                self.listen(index);
                let is_closed = flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP);
                // What came with the end was read, and nothing more will: the next request needs another connection.
                let link = &self.links[index as usize];
                if is_closed && link.phase == Phase::Open && link.is_idle() {
                    self.close(index);
                }
            }
        }
    }

    /// What the kernel says of a handshake, whether it is over or not.
    fn asked(&self, index: u32) -> Option<Handshake> {
        let socket = self.links[index as usize].socket.as_ref();
        socket.and_then(socket::handshake)
    }

    /// Takes what connect() said, and what the kernel said of the handshake, if it was asked already.
    fn answered(&mut self, index: u32, answer: Result<(), Errno>, handshake: Option<Handshake>) {
        match answer {
            Ok(()) | Err(Errno::ISCONN) => self.established(index, handshake),
            Err(Errno::INPROGRESS | Errno::ALREADY | Errno::INTR) => {}
            Err(errno) => {
                self.tally.no_handshake(handshake);
                self.refused(index, Outcome::of(errno));
            }
        }
    }

    fn established(&mut self, index: u32, handshake: Option<Handshake>) {
        let now_ns = self.part.now();
        let link = &mut self.links[index as usize];
        let waited_ns = now_ns.saturating_sub(link.dialled_ns);
        self.tally.outcome(Outcome::Established);
        self.tally.connect.saturating_record(waited_ns);
        self.tally.dial.saturating_record(waited_ns);
        let handshake = handshake.or_else(|| link.socket.as_ref().and_then(socket::handshake));
        if let Some(handshake) = handshake {
            self.tally.handshake(handshake);
        }
        self.open += 1;
        let shared = &self.part.shared;
        let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
        if open > shared.most_open.load(Ordering::Relaxed) {
            shared.most_open.fetch_max(open, Ordering::Relaxed);
        }
        let Some(terms) = &self.terms else {
            return self.speak(index);
        };
        link.phase = Phase::Securing;
        match Secure::new(terms) {
            Ok(secure) => {
                link.secure = Some(Box::new(secure));
                self.secure(index);
            }
            Err(trouble) => self.not_secured(index, &trouble),
        }
    }

    fn secure(&mut self, index: u32) {
        let link = &mut self.links[index as usize];
        let (Some(socket), Some(secure)) = (&link.socket, &mut link.secure) else {
            return;
        };
        match secure.handshake(socket) {
            Ok(true) => self.speak(index),
            Ok(false) => {}
            Err(trouble) => self.not_secured(index, &trouble),
        }
    }

    /// The connection takes requests from now on.
    fn speak(&mut self, index: u32) {
        self.opening -= 1;
        let link = &mut self.links[index as usize];
        link.phase = Phase::Open;
        link.session = (self.http.version == Version::Http2).then(Box::default);
        self.list(index);
    }

    /// Sends a request on a connection that takes one.
    fn begin(&mut self, index: u32, due_ns: u64) {
        let now_ns = self.part.now();
        self.first_ns.get_or_insert(now_ns);
        self.under_way += 1;
        let link = &mut self.links[index as usize];
        let serial = if let Some(session) = &mut link.session {
            session.send(&self.request, due_ns, now_ns)
        } else {
            link.serial = link.serial.wrapping_add(1);
            link.response.begin(self.http.is_head());
            link.busy = Some(Busy {
                due_ns,
                sent_ns: now_ns,
                written: 0,
                serial: link.serial,
            });
            link.serial
        };
        self.note(index, Wait::Request(serial), now_ns);
        self.flush(index);
        self.list(index);
    }

    /// Writes what there is to write, until the socket takes no more.
    fn flush(&mut self, index: u32) {
        let link = &mut self.links[index as usize];
        let Some(socket) = &link.socket else { return };
        let written = match (&mut link.session, &mut link.busy, &mut link.secure) {
            (None, Some(busy), None) => {
                let mut result = Ok(());
                while busy.written < self.bytes.len() {
                    match send(socket, &self.bytes[busy.written..], SendFlags::NOSIGNAL) {
                        Ok(bytes) => {
                            busy.written += bytes;
                            self.tally.bytes_sent += bytes as u64;
                        }
                        Err(Errno::INTR) => {}
                        Err(errno) => {
                            result = Err(Trouble::Socket(errno));
                            break;
                        }
                    }
                }
                result
            }
            (None, Some(busy), Some(secure)) => {
                let rest = &self.bytes[busy.written..];
                self.tally.bytes_sent += rest.len() as u64;
                busy.written = self.bytes.len();
                if rest.is_empty() {
                    secure.flush(socket)
                } else {
                    secure.send(socket, rest)
                }
            }
            (None, None, None) => Ok(()),
            (None, None, Some(secure)) => secure.flush(socket),
            (Some(session), _, None) => {
                let mut result = Ok(());
                while !session.output().is_empty() {
                    match send(socket, session.output(), SendFlags::NOSIGNAL) {
                        Ok(bytes) => {
                            session.written(bytes);
                            self.tally.bytes_sent += bytes as u64;
                        }
                        Err(Errno::INTR) => {}
                        Err(errno) => {
                            result = Err(Trouble::Socket(errno));
                            break;
                        }
                    }
                }
                result
            }
            (Some(session), _, Some(secure)) => {
                let bytes = session.output().len();
                self.tally.bytes_sent += bytes as u64;
                let result = if bytes == 0 {
                    secure.flush(socket)
                } else {
                    secure.send(socket, session.output())
                };
                session.written(bytes);
                result
            }
        };
        match written {
            Ok(()) | Err(Trouble::Socket(Errno::AGAIN)) => {}
            // Perhaps the answer came before: what there is to read says how it ended.
            Err(Trouble::Socket(_)) => {}
            Err(trouble) => {
                self.remark(trouble.in_words());
                self.drop_link(index, Answer::Malformed);
            }
        }
    }

    /// Reads what has come, until there is nothing more.
    fn listen(&mut self, index: u32) {
        let mut scratch = mem::take(&mut self.scratch);
        while self.links[index as usize].phase == Phase::Open {
            let link = &mut self.links[index as usize];
            let Some(socket) = &link.socket else { break };
            let read = match &mut link.secure {
                None => match recv(socket, scratch.as_mut_slice(), RecvFlags::empty()) {
                    Ok((bytes, _)) => Ok(bytes),
                    Err(errno) => Err(Trouble::Socket(errno)),
                },
                Some(secure) => secure.recv(socket, &mut scratch),
            };
            match read {
                Ok(0) => self.ended(index),
                Ok(bytes) => {
                    self.tally.bytes_received += bytes as u64;
                    if !self.heard(index, &scratch[..bytes]) {
                        break;
                    }
                }
                Err(Trouble::Socket(Errno::AGAIN)) => break,
                Err(Trouble::Socket(Errno::INTR)) => {}
                Err(Trouble::Socket(_)) => self.drop_link(index, Answer::Lost),
                Err(trouble) => {
                    self.remark(trouble.in_words());
                    self.drop_link(index, Answer::Malformed);
                }
            }
        }
        self.scratch = scratch;
    }

    /// Takes what came; false if nothing more is expected now.
    fn heard(&mut self, index: u32, bytes: &[u8]) -> bool {
        let now_ns = self.part.now();
        let wanted = self.http.wanted();
        let link = &mut self.links[index as usize];
        if let Some(session) = &mut link.session {
            let mut ended = Vec::new();
            let taken = session.take(bytes, &self.request, wanted, |end| ended.push(end));
            self.end_all(&ended, now_ns);
            return match taken {
                Ok(()) => {
                    self.go_on(index);
                    true
                }
                Err(malformed) => {
                    self.malformed(index, malformed);
                    false
                }
            };
        }
        if link.busy.is_none() {
            self.remark("a server sent what nobody asked for".into());
            self.close(index);
            return false;
        }
        match link.response.take(bytes, wanted) {
            Ok(false) => true,
            Ok(true) => {
                self.complete(index, now_ns);
                // With TLS more of it may lie in its own buffers; of a socket epoll tells.
                self.links[index as usize].secure.is_some()
            }
            Err(malformed) => {
                self.malformed(index, malformed);
                false
            }
        }
    }

    /// Takes what became of requests of HTTP/2.
    fn end_all(&mut self, ended: &[Ended], now_ns: u64) {
        for end in ended {
            match end.how {
                How::Answered { status, has_wanted } => {
                    self.judge(status, has_wanted, end.due_ns, end.sent_ns, now_ns);
                }
                How::Reset => self.failed(Answer::Lost, end.due_ns, now_ns),
                How::Unprocessed => {
                    // Nobody has begun with it: it waits for another connection, since when it was due.
                    self.under_way -= 1;
                    self.waiting.push_front(end.due_ns);
                }
            }
        }
    }

    /// Whether a connection of HTTP/2 takes more requests, after something came on it.
    fn go_on(&mut self, index: u32) {
        self.flush(index);
        let link = &self.links[index as usize];
        let is_over = !self.http.keep_alive || link.session.as_ref().is_some_and(|session| session.is_over());
        if link.phase == Phase::Open
            && link.is_idle()
            && is_over
            && link.session.as_ref().is_some_and(|session| session.has_served())
        {
            self.close(index);
        } else {
            self.list(index);
        }
    }

    fn malformed(&mut self, index: u32, malformed: Malformed) {
        self.remark(malformed.to_string());
        self.drop_link(index, Answer::Malformed);
    }

    /// The peer has closed.
    fn ended(&mut self, index: u32) {
        let link = &self.links[index as usize];
        if link.is_idle() {
            self.close(index);
        } else if link.session.is_none() && link.response.closed() {
            let now_ns = self.part.now();
            self.complete(index, now_ns);
        } else {
            self.drop_link(index, Answer::Lost);
        }
    }

    /// The answer to the request of a connection of HTTP/1.1 is complete.
    fn complete(&mut self, index: u32, now_ns: u64) {
        let link = &mut self.links[index as usize];
        let Some(done) = link.busy.take() else { return };
        let response = &link.response;
        let (status, has_wanted) = (response.status, response.body.has_wanted);
        // An answer that comes before all of the request is out says that the rest is not wanted.
        let is_last = response.is_last || !self.http.keep_alive || done.written < self.bytes.len();
        self.judge(status, has_wanted, done.due_ns, done.sent_ns, now_ns);
        if is_last {
            self.close(index);
        } else {
            self.list(index);
        }
    }

    fn judge(&mut self, status: u16, has_wanted: bool, due_ns: u64, sent_ns: u64, now_ns: u64) {
        self.under_way -= 1;
        *self.tally.statuses.entry(status).or_insert(0) += 1;
        let answer = if !self.http.expects(status) {
            Answer::UnexpectedStatus
        } else if self.http.wanted().is_some() && !has_wanted {
            Answer::UnexpectedBody
        } else {
            Answer::Expected
        };
        self.tally.answer(answer);
        self.tally
            .request
            .saturating_record(now_ns.saturating_sub(due_ns));
        self.tally
            .exchange
            .saturating_record(now_ns.saturating_sub(sent_ns));
    }

    /// A request that was sent has no answer.
    fn failed(&mut self, answer: Answer, due_ns: u64, now_ns: u64) {
        self.under_way -= 1;
        self.tally.answer(answer);
        self.tally.error.saturating_record(now_ns.saturating_sub(due_ns));
    }

    /// The request that waits longest finds no connection; false if none waits.
    fn unsent(&mut self) -> bool {
        let first = self.next_waiting();
        if let Some(due_ns) = first {
            let now_ns = self.part.now();
            self.tally.answer(Answer::Unsent);
            self.tally.error.saturating_record(now_ns.saturating_sub(due_ns));
        }
        first.is_some()
    }

    /// A connection that did not come about; a request goes with it, or a target that refuses would be asked for ever.
    fn refused(&mut self, index: u32, outcome: Outcome) {
        self.tally.outcome(outcome);
        self.opening -= 1;
        self.release(index, false);
        let is_answer = matches!(outcome, Outcome::Refused | Outcome::Reset | Outcome::Unreachable);
        let is_unsent = u64::from(self.unsent());
        match outcome {
            Outcome::TimedOut => self.tally.unanswered += is_unsent,
            _ if is_answer => self.tally.denied += is_unsent,
            _ => {}
        }
    }

    fn not_secured(&mut self, index: u32, trouble: &Trouble) {
        let now_ns = self.part.now();
        self.remark(trouble.in_words());
        match trouble {
            Trouble::Socket(errno) if !trouble.is_of_the_peer() => {
                self.lose(index, Loss::of(*errno), now_ns);
            }
            _ => {
                self.tally.insecure += 1;
                self.opening -= 1;
                self.close(index);
                self.tally.denied += u64::from(self.unsent());
            }
        }
    }

    fn not_secured_in_time(&mut self, index: u32, now_ns: u64) {
        self.remark("the handshake of TLS took too long".into());
        self.lose(index, Loss::TimedOut, now_ns);
    }

    /// Nothing says that the peer cannot be trusted: a connection was established, and lost before it took a request.
    fn lose(&mut self, index: u32, loss: Loss, now_ns: u64) {
        self.tally.lost(loss, now_ns);
        self.opening -= 1;
        self.not_open();
        self.release(index, false);
        self.unsent();
    }

    fn remark(&mut self, why: String) {
        self.tally.remark(why);
    }

    /// The connection is of no more use, and what was under way on it has no answer.
    fn drop_link(&mut self, index: u32, answer: Answer) {
        let now_ns = self.part.now();
        let link = &mut self.links[index as usize];
        let mut due: Vec<u64> = link.busy.take().map(|busy| busy.due_ns).into_iter().collect();
        if let Some(session) = &mut link.session {
            due.extend(session.drain().map(|(due_ns, _)| due_ns));
        }
        for due_ns in due {
            self.failed(answer, due_ns, now_ns);
        }
        self.close(index);
    }

    /// Closes a connection that was established.
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
        let link = &mut self.links[index as usize];
        link.phase = Phase::Free;
        link.secure = None;
        link.session = None;
        let is_kept = keep
            && self.part.plan.close == Close::Reset
            && link
                .socket
                .as_ref()
                .is_some_and(|socket| connect_unspec(socket).is_ok());
        if !is_kept {
            link.socket = None;
        }
        self.free.push(index);
    }

    /// Closes what is open and says what is left to say.
    fn finish(mut self) {
        for index in 0..self.links.len() as u32 {
            match self.links[index as usize].phase {
                Phase::Free => {}
                Phase::Dialing => {
                    let asked = self.asked(index);
                    self.tally.no_handshake(asked);
                    self.tally.outcome(Outcome::Abandoned);
                    self.opening -= 1;
                    self.release(index, false);
                }
                Phase::Securing => {
                    self.opening -= 1;
                    self.close(index);
                }
                Phase::Open => self.drop_link(index, Answer::Abandoned),
            }
        }
        while self.next_waiting().is_some() {
            self.tally.answer(Answer::Abandoned);
        }
        let tally = mem::take(&mut self.tally);
        self.part.hand_over(tally, self.first_ns, true);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::{http::tests::get, plan::tests::count, worker::tests::part};

    #[test]
    fn requests_leave_no_more_deadlines_than_there_are_places() {
        let mut plan = count(1);
        plan.timeout = Duration::from_secs(600);
        plan.http = Some(get());
        let timeout_ns = plan.timeout.as_nanos() as u64;
        let mut requests = Requests::new(part(plan)).expect("an epoll");
        for _ in 0..2 {
            requests.take_link(0, 0).expect("a socket");
        }
        requests.links[0].phase = Phase::Dialing;
        requests.note(0, Wait::Connection, 0);
        requests.links[1].phase = Phase::Open;
        for sent_ns in 1..=100_000 {
            let serial = sent_ns as u32;
            requests.links[1].busy = Some(Busy {
                due_ns: sent_ns,
                sent_ns,
                written: 0,
                serial,
            });
            requests.note(1, Wait::Request(serial), sent_ns);
            assert!(requests.deadlines.are_few(requests.links.len()));
        }
        // What is under way is still to be looked at.
        let links = &requests.links;
        let awaited = std::iter::from_fn(|| {
            let is_awaited = |moment: &Moment<Use>| links[moment.of.link as usize].awaits(&moment.of);
            requests.deadlines.take_due(timeout_ns + 100_000, is_awaited)
        });
        let awaited: Vec<Wait> = awaited.map(|of| of.wait).collect();
        assert_eq!(awaited, [Wait::Connection, Wait::Request(100_000)]);
    }
}
