//! A run on this node: starts the workers, collects what they counted, keeps to the caps, and stops them.

use std::{
    collections::VecDeque,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use rustix::process::{Resource, getrlimit};

use super::{
    datagrams, held,
    memory::Memory,
    outcome::Outcome,
    plan::{Arrivals, Nonsense, Plan, share},
    ports, requests,
    saturation::Saturation,
    serving::{LOOK, Served},
    tally::Tally,
    tls::Terms,
    worker::{Filled, Part, Shared, monotonic_ns, work},
};
use crate::setting::Setting;

/// How often the workers are asked, and the caps looked at.
const COLLECT: Duration = Duration::from_millis(200);

/// File descriptors that a run leaves to the rest of the agent.
const FILES_LEFT: u64 = 64;

/// A plan that lasts exactly as long as is allowed ends with its last answers, a little later: so much is not held against it. With
/// [`COLLECT`], and what the workers take to hear of it, it is less than a second.
const GRACE: Duration = Duration::from_millis(500);

/// A run that nobody has wanted for so long is stopped, in nanoseconds. With [`COLLECT`] it is less than a second.
const ORPHANED_NS: u64 = 700_000_000;

/// CPU time that is used a second is looked at over so long: with [`COLLECT`], and what the workers take to hear of it, a run that uses more ends within
/// a second of beginning to.
const RECENT: Duration = Duration::from_millis(750);

/// Threads of a run: a generator thread that shares its CPU is late.
const MOST_THREADS: u64 = 4;

/// What a run may use while it lasts. Checked against the plan before it begins, and again while it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Caps {
    /// Attempts, or requests, a second.
    pub per_second: f64,
    /// Payload, both ways.
    pub bytes: u64,
    /// CPUs of the generator's threads.
    pub cpus: f64,
    pub duration: Duration,
}

/// What a run has used when the caps are looked at.
struct Used {
    bytes: u64,
    elapsed: Duration,
    /// Lately, a second.
    cpus: f64,
    /// Of a closed loop in some second, lately; see [`Made`]. Any other makes no more than it was asked for, and what is late at once.
    made: u64,
}

/// CPU time that was used since the run's start, at moments not longer ago than [`RECENT`], and at the one before those.
pub(super) struct Recent(VecDeque<(Duration, Duration)>);

impl Default for Recent {
    fn default() -> Self {
        Self(VecDeque::from([Default::default()]))
    }
}

impl Recent {
    /// What is used a second now that so much was used since the start. Of one that began only now it is what it comes to if it uses no more.
    /// `read` is when the first of what adds up to `used` was read: so a thread that is always busy uses one CPU and never more.
    pub(super) fn cpus(&mut self, read: Duration, elapsed: Duration, used: Duration) -> f64 {
        self.0.push_back((read, used));
        let is_enough = |&(at, _): &(Duration, Duration)| elapsed.saturating_sub(at) >= RECENT;
        while self.0.get(1).is_some_and(is_enough) {
            self.0.pop_front();
        }
        let (since, before) = self.0[0];
        let passed = elapsed.saturating_sub(since).max(RECENT);
        used.saturating_sub(before).as_secs_f64() / passed.as_secs_f64()
    }
}

/// How many attempts were made since the run's start, at moments not longer ago than [`MADE`].
struct Made(VecDeque<(Duration, u64)>);

/// What was made is looked at over so long: a loop that is only a little faster than it may be is so in all of it.
const MADE: Duration = Duration::from_secs(5);

impl Made {
    fn new() -> Self {
        Self(VecDeque::from([Default::default()]))
    }

    /// How many were made within some second, at least, now that there were `made` at `now`: of those of less than a second all, and of
    /// those of two seconds half of them. A burst is what it is, and not what it would come to if it went on. `counted` is when the first
    /// thread said how many it had made, so that no time is taken for shorter than it was.
    fn most_in_a_second(&mut self, counted: Duration, now: Duration, made: u64) -> u64 {
        self.0.retain(|&(at, _)| now.saturating_sub(at) <= MADE);
        let in_a_second = |&(at, before): &(Duration, u64)| {
            let passed_ns = now.saturating_sub(at).as_nanos() as u64;
            (made - before).div_ceil(passed_ns.div_ceil(1_000_000_000).max(1))
        };
        let most = self.0.iter().map(in_a_second).max();
        self.0.push_back((counted, made));
        most.unwrap_or(0)
    }
}

impl Used {
    /// Which cap is exceeded by one of `together` generators, among which the caps are divided, with the setting that would do for
    /// all of them, as far as can be told in the middle.
    fn beyond(&self, caps: Caps, plan: &Plan, together: u64) -> Option<String> {
        let all = together as f64;
        let whole = plan.sending().saturating_add(plan.hold);
        let of_each = if together > 1 {
            format!(" for each of {together} targets")
        } else {
            String::new()
        };
        let bytes = caps.bytes / together;
        if self.bytes > bytes {
            // As fast as so far, a quarter more.
            let parts = (whole.as_secs_f64() / self.elapsed.as_secs_f64().max(1e-3)).max(1.0);
            let wanted = (self.bytes as f64 * parts * 1.25 * all / f64::from(1 << 20)).ceil();
            return Some(format!(
                "{} bytes were exchanged, and no more than {bytes}{of_each} are allowed here: {}",
                self.bytes,
                Setting("load-bytes").to(&format!("{wanted:.0}MiB"))
            ));
        }
        if self.elapsed > caps.duration.saturating_add(GRACE) {
            // What is under way may take as long as it may.
            let wanted = whole.max(self.elapsed).saturating_add(plan.timeout);
            return Some(format!(
                "the run lasted {} s, and no more than {} s are allowed here: {}",
                self.elapsed.as_secs(),
                caps.duration.as_secs_f64(),
                Setting("load-duration").to(&format!("{}s", wanted.as_secs().saturating_add(1)))
            ));
        }
        let (cpus, made, most) = (self.cpus, self.made, caps.per_second / all);
        if made as f64 > most {
            // A quarter more than it made now.
            let wanted = (made as f64 * all * 1.25).ceil();
            return Some(format!(
                "{made} attempts/s were made, and no more than {most:.0}/s{of_each} are allowed here: {}",
                Setting("load-rate").to(&wanted.to_string())
            ));
        }
        let most = caps.cpus / all;
        (cpus > most).then(|| {
            // A tenth more than it took now.
            let wanted = (cpus * all * 11.0).ceil() / 10.0;
            format!(
                "the run used {cpus:.2} CPUs, and no more than {most:.2}{of_each} are allowed here: {}",
                Setting("load-cpus").to(&wanted.to_string())
            )
        })
    }
}

/// What a run takes that is ready to begin.
#[derive(Debug)]
pub struct Prepared {
    pub plan: Arc<Plan>,
    pub sources: Vec<IpAddr>,
    /// What is said of those that were given and are not there.
    pub remark: Option<String>,
    /// Of requests over TLS.
    pub terms: Option<Terms>,
    pub threads: u64,
    /// Connections that may be open or under way at once.
    pub at_once: u64,
    /// Why no more.
    pub bound: Bound,
    /// So its sockets are no files, but of io_uring's own.
    pub lacks_files: bool,
    /// Where it is seen how much there is.
    pub memory: Memory,
    /// Generators at the same time, this one among them, that share the caps.
    pub together: u64,
    /// What this node does meanwhile as a target of the same run; it counts as what the generators do.
    pub served: Option<Arc<Served>>,
}

impl Prepared {
    /// The part of one generator in what was served: bytes, and CPU time.
    fn served(&self) -> (u64, Duration) {
        let (bytes, cpu) = self
            .served
            .as_ref()
            .map(|served| served.so_far())
            .unwrap_or_default();
        (bytes / self.together, cpu.div_f64(self.together as f64))
    }
}

/// What keeps the connections that are open at once from being more.
#[derive(Clone, Debug)]
pub struct Bound {
    /// What becomes of an attempt beyond them.
    pub outcome: Outcome,
    /// What is said of it, with what would allow more.
    pub remark: String,
}

impl Bound {
    fn by_files(files: u64) -> Self {
        Self {
            outcome: Outcome::LocalFiles,
            remark: format!(
                "more than {files} connections at once were due, and no more open files are left of this agent's limit: raise LimitNOFILE \
                 (ulimit -n) of the agent, or use more agents"
            ),
        }
    }
}

/// What happened since the report before.
#[derive(Clone, Debug)]
pub struct Report {
    /// From the run's start to this report.
    pub elapsed: Duration,
    pub tally: Tally,
    /// Established now, and the most since the run's start.
    pub open: u64,
    pub most_open: u64,
    /// CPU time of the generator's threads since the run's start.
    pub cpu: Duration,
    /// Of what waits for answers, of all threads together since the run's start: the time that they were watched for, and of that what they
    /// had none left in, see [`Saturation`].
    pub watched: Duration,
    pub saturated: Duration,
    /// When the first attempt was made, in nanoseconds since the run's start.
    pub first_ns: Option<u64>,
    pub end: Option<End>,
}

impl Report {
    /// This report and the one after it as one.
    pub fn and_then(mut self, later: Self) -> Self {
        self.tally.add(&later.tally);
        Self {
            tally: self.tally,
            ..later
        }
    }
}

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Finished,
    Stopped,
    /// One of this node's caps was reached; names it.
    Capped(String),
    /// The generator itself failed.
    Failed(String),
    /// Nobody said any more that the run is wanted.
    Orphaned,
}

/// Whether this machine can make the load, before any of it is made.
///
/// # Errors
/// With the figures, if it lacks ports or file descriptors.
pub fn prepare(mut plan: Plan) -> Result<Prepared, Nonsense> {
    let (ours, others) = ports::of_this_node(&plan.sources)?;
    plan.sources = ours;
    let remark = ports::not_here(&others);
    let in_range = ports::in_range()
        .map_err(|error| Nonsense(format!("the range of local ports cannot be read: {error}")))?;
    let sources =
        ports::sources(&plan, in_range, || ports::equals(&plan.targets)).map_err(
            |refused| match &remark {
                Some(remark) => Nonsense(format!("{refused} ({remark})")),
                None => refused,
            },
        )?;
    let files =
        free_files().map_err(|error| Nonsense(format!("the open files cannot be counted: {error}")))?;
    let at_once = plan.at_once();
    // A rate is allowed to begin: its connections rarely take as long as they may, and what finds no file says so.
    let is_certain = !matches!(plan.arrivals, Arrivals::Stages(_));
    let lacks_files = is_certain && at_once > files;
    if lacks_files {
        let without_files = match held::is_of(&plan) {
            true => held::check(),
            false => Err("only connections that are counted and send nothing do without".into()),
        };
        if let Err(reason) = without_files {
            return Err(Nonsense(format!(
                "{at_once} connections at once need as many open files, and {files} are left of this agent's limit: raise \
                 LimitNOFILE (ulimit -n) of the agent, use more agents, or ask for less ({reason})"
            )));
        }
    }
    let terms = match &plan.http {
        Some(http) => http
            .tls
            .as_ref()
            .map(|tls| Terms::new(tls, http.version))
            .transpose()?,
        None => None,
    };
    let places = plan.places();
    let room = if lacks_files { places } else { places.min(files) };
    let cpus = thread::available_parallelism().map_or(1, |count| count.get() as u64);
    Ok(Prepared {
        threads: cpus.min(MOST_THREADS).min(at_once).min(room).max(1),
        at_once: room,
        bound: Bound::by_files(files),
        lacks_files,
        memory: Memory::default(),
        together: 1,
        served: None,
        plan: Arc::new(plan),
        sources,
        remark,
        terms,
    })
}

fn free_files() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let used = std::fs::read_dir("/proc/self/fd")?.count() as u64;
    Ok(limit.saturating_sub(used + FILES_LEFT))
}

/// Makes the load from `start_ns` of the monotonic clock on, and reports every `interval`; the last report has an end.
/// Blocks until then.
///
/// # Errors
/// If no thread can be started.
pub fn generate(
    prepared: &Prepared,
    caps: Caps,
    start_ns: u64,
    interval: Duration,
    shared: &Arc<Shared>,
    mut report: impl FnMut(Report),
) -> io::Result<()> {
    let bound = Arc::new(prepared.bound.clone());
    let sources: Arc<[IpAddr]> = prepared.sources.clone().into();
    let mut workers = Vec::new();
    for thread in 0..prepared.threads {
        let (blank, blanks) = sync_channel(1);
        let (filled, filled_there) = sync_channel(2);
        let part = Part {
            plan: Arc::clone(&prepared.plan),
            thread,
            threads: prepared.threads,
            sources: Arc::clone(&sources),
            terms: prepared.terms.clone(),
            at_once: share(prepared.at_once, thread, prepared.threads).max(1) as usize,
            bound: Arc::clone(&bound),
            is_bound: prepared.at_once < prepared.plan.places(),
            start_ns,
            shared: Arc::clone(shared),
            blanks,
            filled,
            saturation: Saturation::default(),
        };
        let lacks_files = prepared.lacks_files;
        let handle = thread::Builder::new()
            .name(format!("load-{thread}"))
            .spawn(move || {
                if part.plan.udp.is_some() {
                    datagrams::work(part)
                } else if part.plan.http.is_some() {
                    requests::work(part)
                } else if lacks_files {
                    held::work(part)
                } else {
                    work(part)
                }
            });
        match handle {
            Ok(handle) => workers.push(Collected::new(blank, filled_there, handle)),
            Err(error) => {
                shared.stop.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
    }
    collect(workers, (caps, prepared), start_ns, interval, shared, &mut report);
    Ok(())
}

/// A worker, from the outside.
struct Collected {
    blank: SyncSender<Tally>,
    filled: Receiver<Filled>,
    handle: Option<thread::JoinHandle<io::Result<()>>>,
    spare: Option<Tally>,
    cpu: Duration,
    watched: Duration,
    saturated: Duration,
    first_ns: Option<u64>,
    at_ns: u64,
}

impl Collected {
    fn new(
        blank: SyncSender<Tally>,
        filled: Receiver<Filled>,
        handle: thread::JoinHandle<io::Result<()>>,
    ) -> Self {
        Self {
            blank,
            filled,
            handle: Some(handle),
            spare: None,
            cpu: Duration::ZERO,
            watched: Duration::ZERO,
            saturated: Duration::ZERO,
            first_ns: None,
            at_ns: 0,
        }
    }

    /// Adds what was counted since the last time. False once the worker has ended.
    fn collect(&mut self, sum: &mut Tally) -> bool {
        let blank = self.spare.take().unwrap_or_default();
        // One that waits for the start has not taken the one before; one that has ended has its last tally in the channel.
        if let Err(TrySendError::Full(blank)) = self.blank.try_send(blank) {
            self.spare = Some(blank);
        }
        loop {
            let mut filled = match self.filled.recv_timeout(COLLECT) {
                Ok(filled) => filled,
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            };
            sum.add(&filled.tally);
            self.cpu = filled.cpu;
            (self.watched, self.saturated) = (filled.watched, filled.saturated);
            self.first_ns = filled.first_ns;
            self.at_ns = filled.at_ns;
            if !filled.is_last {
                filled.tally.clear();
                self.spare = Some(filled.tally);
                return true;
            }
        }
    }
}

fn collect(
    mut workers: Vec<Collected>,
    (caps, prepared): (Caps, &Prepared),
    start_ns: u64,
    interval: Duration,
    shared: &Shared,
    report: &mut impl FnMut(Report),
) {
    let mut end: Option<End> = None;
    let mut since_report = Tally::default();
    if let Some(remark) = &prepared.remark {
        since_report.remark(remark.clone());
    }
    let mut next_report = interval;
    let (mut bytes, mut made) = (0, 0);
    let (mut recent, mut recently_made) = (Recent::default(), Made::new());
    let is_closed = matches!(prepared.plan.arrivals, Arrivals::Closed { .. });
    loop {
        let exchanged = |tally: &Tally| tally.bytes_sent + tally.bytes_received;
        // Requests, if there are any, or else attempts.
        let attempted = |tally: &Tally| match prepared.plan.http {
            Some(_) => tally.requests,
            None => tally.started,
        };
        let (bytes_before, made_before) = (exchanged(&since_report), attempted(&since_report));
        let mut running = 0;
        for worker in &mut workers {
            if worker.handle.is_some() && worker.collect(&mut since_report) {
                running += 1;
            } else if let Some(handle) = worker.handle.take() {
                let failure = match handle.join() {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error.to_string()),
                    Err(_) => Some("a thread of the generator panicked".to_owned()),
                };
                if let Some(failure) = failure {
                    shared.stop.store(true, Ordering::Relaxed);
                    end = Some(End::Failed(failure));
                }
            }
        }
        let elapsed = Duration::from_nanos(monotonic_ns().saturating_sub(start_ns));
        let cpu: Duration = workers.iter().map(|worker| worker.cpu).sum();
        bytes += exchanged(&since_report) - bytes_before;
        made += attempted(&since_report) - made_before;
        if end.is_none() && running > 0 {
            let (served_bytes, served_cpu) = prepared.served();
            let counted = workers
                .iter()
                .filter(|worker| worker.handle.is_some())
                .map(|worker| Duration::from_nanos(worker.at_ns))
                .min()
                .unwrap_or(elapsed);
            // What is served is looked at now and then.
            let since_look = prepared.served.as_ref().map_or(Duration::ZERO, |_| LOOK);
            let read = counted.min(elapsed.saturating_sub(since_look));
            let made = if is_closed { made } else { 0 };
            let used = Used {
                bytes: bytes + served_bytes,
                elapsed,
                cpus: recent.cpus(read, elapsed, cpu + served_cpu),
                made: recently_made.most_in_a_second(counted, elapsed, made),
            };
            let beyond = used.beyond(caps, &prepared.plan, prepared.together);
            let capped = beyond.or_else(|| prepared.memory.shortage());
            if let Some(reason) = capped {
                shared.stop.store(true, Ordering::Relaxed);
                end = Some(End::Capped(reason));
            }
        }
        let beat_ns = load(&shared.beat_ns);
        if end.is_none() && running > 0 && beat_ns > 0 && monotonic_ns().saturating_sub(beat_ns) > ORPHANED_NS
        {
            shared.stop.store(true, Ordering::Relaxed);
            end = Some(End::Orphaned);
        }
        let is_over = running == 0;
        if is_over || elapsed >= next_report {
            next_report = elapsed + interval;
            let ended = workers
                .iter()
                .map(|worker| worker.at_ns)
                .max()
                .map(Duration::from_nanos);
            let is_stopped = shared.stop.load(Ordering::Relaxed);
            report(Report {
                // Nothing was made after the workers' end.
                elapsed: ended.filter(|_| is_over).unwrap_or(elapsed),
                tally: std::mem::take(&mut since_report),
                open: shared.open.load(Ordering::Relaxed),
                most_open: load(&shared.most_open),
                cpu,
                watched: workers.iter().map(|worker| worker.watched).sum(),
                saturated: workers.iter().map(|worker| worker.saturated).sum(),
                first_ns: workers.iter().filter_map(|worker| worker.first_ns).min(),
                end: is_over.then(|| {
                    let natural = if is_stopped { End::Stopped } else { End::Finished };
                    end.take().unwrap_or(natural)
                }),
            });
        }
        if is_over {
            return;
        }
        thread::sleep(COLLECT);
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::load::plan::tests::count;

    #[test]
    fn a_cap_names_the_setting_that_does_for_all_of_it() {
        let caps = Caps {
            per_second: 1_000.0,
            bytes: 100 << 20,
            cpus: 1.0,
            duration: Duration::from_secs(60),
        };
        let mut plan = count(10);
        (plan.hold, plan.timeout) = (Duration::from_secs(40), Duration::from_secs(5));
        let check = |used: (u64, u64, f64, u64), together, parts: &[&str]| {
            let used = Used {
                bytes: used.0 << 20,
                elapsed: Duration::from_secs(used.1),
                cpus: used.2,
                made: used.3,
            };
            let beyond = used.beyond(caps, &plan, together).unwrap_or_default();
            assert_eq!(beyond.is_empty(), parts.is_empty(), "{beyond}");
            for part in parts {
                assert!(beyond.contains(part), "{beyond}");
            }
        };
        check((100, 60, 1.0, 1_000), 1, &[]);
        // A tenth of it has passed.
        check((101, 4, 0.0, 0), 1, &["HOLDFAST_LOAD_BYTES=1263MiB"]);
        check(
            (51, 40, 0.0, 0),
            2,
            &[
                "no more than 52428800 for each of 2 targets",
                "HOLDFAST_LOAD_BYTES=128MiB",
            ],
        );
        check((0, 60, 0.0, 0), 1, &[]);
        check(
            (0, 61, 0.0, 0),
            1,
            &["60 s are allowed", "HOLDFAST_LOAD_DURATION=67s"],
        );
        check((0, 1, 1.31, 0), 1, &["1.31 CPUs", "HOLDFAST_LOAD_CPUS=1.5 "]);
        check((0, 1, 0.6, 0), 2, &["0.60 CPUs", "HOLDFAST_LOAD_CPUS=1.4 "]);
        check(
            (0, 1, 0.0, 2_000),
            1,
            &["2000 attempts/s", "HOLDFAST_LOAD_RATE=2500 "],
        );
        check(
            (0, 1, 0.0, 600),
            2,
            &["no more than 500/s for each", "HOLDFAST_LOAD_RATE=1500 "],
        );
    }

    #[test]
    fn what_is_used_a_second_is_seen_before_a_second_is_over() {
        // Nothing at first, and then a little more than one CPU.
        for begins_ms in (0..2_000).step_by(70) {
            let mut recent = Recent::default();
            let mut used = |at_ms: u64| {
                let used_ms = at_ms.saturating_sub(begins_ms) as f64 * 1.05;
                let at = Duration::from_millis(at_ms);
                recent.cpus(at, at, Duration::from_secs_f64(used_ms / 1e3))
            };
            let seen_ms = (0..).step_by(200).find(|at_ms| used(*at_ms) > 1.0);
            let after_ms = seen_ms.expect("seen") - begins_ms;
            assert!((700..1_000).contains(&after_ms), "{after_ms}");
        }
        // Each moment's use counts once, and what was long ago no more.
        let mut recent = Recent::default();
        let ms = Duration::from_millis;
        let mut used = |at_ms, used_ms| recent.cpus(ms(at_ms), ms(at_ms), ms(used_ms));
        assert_eq!(used(300, 750), 1.0);
        assert_eq!(used(1_000, 750), 0.75);
        assert_eq!(used(2_000, 850), 0.1);
        // Of one that is always busy, be it looked at some time after it was read.
        let mut recent = Recent::default();
        for (read_ms, at_ms) in [(400, 420), (800, 801), (1_200, 1_215), (1_600, 1_600)] {
            assert!(recent.cpus(ms(read_ms), ms(at_ms), ms(read_ms)) <= 1.0);
        }
    }

    /// The most that are seen in a second where so many are made in each of so many fifths of a second.
    fn most_in_a_second(fifths: impl IntoIterator<Item = u64>) -> u64 {
        let (mut recent, mut made) = (Made::new(), 0);
        let seen = fifths.into_iter().enumerate().map(|(fifth, more)| {
            made += more;
            // A look takes a little as well.
            let at = Duration::from_millis((fifth as u64 + 1) * 203);
            recent.most_in_a_second(at, at, made)
        });
        seen.max().unwrap_or(0)
    }

    #[test]
    fn a_closed_loop_has_the_rate_of_a_whole_second() {
        // All at once, and then none for as long as they are held.
        let burst = |number| std::iter::once(number).chain([0; 60]);
        assert_eq!(most_in_a_second(burst(900)), 900);
        assert_eq!(most_in_a_second(burst(1_001)), 1_001);
        assert_eq!(most_in_a_second(burst(900).chain(burst(1_001))), 1_001);
        // Bursts that are more than a second apart.
        let apart = [900, 0, 0, 0, 0].repeat(20);
        assert_eq!(most_in_a_second(apart), 900);
        // As many as are allowed all the time, and a tenth more, be it late.
        let steadily = |in_a_fifth| [in_a_fifth; 50];
        assert!(most_in_a_second(steadily(200)) <= 1_000);
        assert!(most_in_a_second(steadily(223)) > 1_000);
        assert!(most_in_a_second(steadily(100).into_iter().chain(steadily(223))) > 1_000);
        // A thread that has not said for long how many it made may have made them meanwhile.
        let mut recent = Made::new();
        let ms = Duration::from_millis;
        recent.most_in_a_second(ms(100), ms(900), 10);
        assert_eq!(recent.most_in_a_second(ms(1_200), ms(1_200), 1_990), 995);
    }

    #[test]
    fn a_source_that_is_not_there_is_named() {
        let target = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut plan = count(1);
        plan.targets = vec![target.local_addr().expect("its address")];
        // The second is of the documentation's network, which nobody has.
        plan.sources = ["127.0.0.1", "198.51.100.1"]
            .map(|source| source.parse().expect("an address"))
            .to_vec();
        let mut many = plan.clone();
        many.arrivals = Arrivals::Count {
            connections: 65_536,
            pause: Duration::ZERO,
        };
        let refused = prepare(many).expect_err("too few ports").0;
        assert!(
            refused.contains("65536 ports") && refused.contains("198.51.100.1 is not of this node"),
            "{refused}"
        );
        let caps = Caps {
            per_second: 1e6,
            bytes: 1,
            cpus: 1e6,
            duration: Duration::from_secs(3600),
        };
        let prepared = prepare(plan).expect("one that is there");
        let mut said = Vec::new();
        let begin_ns = monotonic_ns();
        generate(&prepared, caps, begin_ns, COLLECT, &Arc::default(), |report| {
            said.extend(report.tally.remarks);
        })
        .expect("a thread");
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("198.51.100.1 is not of this node"), "{said:?}");
    }
}
