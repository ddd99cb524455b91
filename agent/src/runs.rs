//! The part of this agent in runs: takes what the collector orders, asks this node's consent, and has it done on threads
//! that have nothing to do with delivery. One run at a time: two would be each other's noise.
//!
//! A run lives as long as the collector says that it is wanted. Whatever ends the connection ends it too.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use holdfast_proto::v1::{
    LoadPlan, LoadReport, RunEvent, RunOrder, RunReady, RunRefusal, RunServe, RunServing, run_event,
    run_order,
};
use prost::Message;
use tokio::sync::mpsc;

use crate::load::{
    consent::Consent,
    order,
    plan::Plan,
    run::{End, Prepared, Report, generate, prepare},
    serving::Serving,
    tally::Tally,
    worker::{Shared, monotonic_ns},
};

/// Events that wait for the connection: of a mesh six seconds of reports, at the shortest interval. What finds no place goes with the
/// next report of the same target.
const EVENTS: usize = 64 * MOST_APART;

/// Targets that are loaded each on its own, with a thread for each.
const MOST_APART: usize = 64;

/// The agent's clock against the collector's, and how far off that may be, in nanoseconds; see
/// [`crate::clock_offset::ClockOffset::best`].
type Offset = Option<(i64, u64)>;

/// Runs of this agent.
pub struct Runs {
    consent: Consent,
    events: mpsc::Sender<RunEvent>,
    queue: mpsc::Receiver<RunEvent>,
    current: Option<Current>,
    /// Where other agents of a mesh find this one.
    serving: Option<Serving>,
}

/// A run that was prepared.
struct Current {
    run_id: String,
    /// One for each target, if they are apart.
    shared: Vec<Arc<Shared>>,
    /// Until it is started.
    prepared: Option<(Vec<Prepared>, Duration)>,
    /// Of the threads that make it.
    generators: Vec<thread::JoinHandle<()>>,
    prepared_ns: u64,
}

/// A run that was prepared and not started is forgotten after this, in nanoseconds: its collector is gone.
const FORGOTTEN_NS: u64 = 30_000_000_000;

/// A run that began so long ago, in nanoseconds, is not begun here any more: the clock was set, or this node stood still, and what was due
/// since would be made all at once.
const LATEST_NS: u64 = 1_000_000_000;

impl Current {
    fn is_over(&self) -> bool {
        if self.generators.is_empty() {
            monotonic_ns().saturating_sub(self.prepared_ns) > FORGOTTEN_NS
        } else {
            self.generators.iter().all(thread::JoinHandle::is_finished)
        }
    }
}

impl Runs {
    pub fn new(consent: Consent) -> Self {
        let (events, queue) = mpsc::channel(EVENTS);
        Self {
            consent,
            events,
            queue,
            current: None,
            serving: None,
        }
    }

    /// What there is to tell the collector, as it comes.
    pub async fn next(&mut self) -> RunEvent {
        // It never ends: one end of the channel is ours.
        match self.queue.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Does what the collector orders. `wall_now_ns` is the agent's own clock.
    pub fn take(&mut self, order: RunOrder, offset: Offset, wall_now_ns: u64) {
        let RunOrder { run_id, order } = order;
        match order {
            Some(run_order::Order::Serve(serve)) => {
                let event = match self.serve(&run_id, &serve) {
                    Ok(address) => run_event::Event::Serving(RunServing { address }),
                    Err(reason) => {
                        tracing::warn!(run = run_id, "a run is refused: {reason}");
                        run_event::Event::Refusal(RunRefusal { reason })
                    }
                };
                self.tell(&run_id, event);
            }
            Some(run_order::Order::Prepare(plan)) => match self.prepare(&run_id, &plan) {
                Ok(threads) => {
                    let (clock_offset_ns, clock_error_ns) = offset.unwrap_or((0, u64::MAX));
                    self.tell(
                        &run_id,
                        run_event::Event::Ready(RunReady {
                            clock_offset_ns,
                            clock_error_ns,
                            pid: std::process::id(),
                            threads: threads as u32,
                            plan_crc32: Some(crc32fast::hash(&plan.encode_to_vec())),
                        }),
                    );
                }
                Err(reason) => {
                    tracing::warn!(run = run_id, "a run is refused: {reason}");
                    self.tell(&run_id, run_event::Event::Refusal(RunRefusal { reason }));
                }
            },
            Some(run_order::Order::Start(start)) => {
                // Both at once: the clocks' difference now is what counts.
                let start_wall_ns = start.at_ns.saturating_add_signed(offset.unwrap_or_default().0);
                let ahead_ns = start_wall_ns.saturating_sub(wall_now_ns);
                // Where the difference is not known, nor is that it is late.
                let late_ns = offset.map_or(0, |_| wall_now_ns.saturating_sub(start_wall_ns));
                if late_ns > LATEST_NS {
                    return self.give_up(&run_id, late_ns);
                }
                // What was due meanwhile is made at once, and is as late as it is.
                self.start(&run_id, (monotonic_ns() + ahead_ns).saturating_sub(late_ns));
            }
            Some(run_order::Order::Beat(_)) => {
                if let Some(current) = self.of(&run_id) {
                    for shared in &current.shared {
                        shared.beat_ns.store(monotonic_ns(), Ordering::Relaxed);
                    }
                }
                if let Some(serving) = self.serving.as_ref().filter(|serving| serving.run_id == run_id) {
                    serving.is_wanted();
                }
            }
            Some(run_order::Order::Stop(_)) => {
                if let Some(current) = self.of(&run_id) {
                    for shared in &current.shared {
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    if current.generators.is_empty() {
                        self.current = None;
                    }
                }
            }
            // It ends where it is dropped.
            Some(run_order::Order::Release(_)) => {
                self.serving = self.serving.take().filter(|serving| serving.run_id != run_id);
            }
            // Something that a newer collector says; it hears nothing of us and gives up.
            None => {}
        }
    }

    fn of(&mut self, run_id: &str) -> Option<&mut Current> {
        self.current.as_mut().filter(|current| current.run_id == run_id)
    }

    /// Another run than this one is under way, or this one already.
    fn busy(&self, run_id: &str) -> Result<(), String> {
        let making = self.current.as_ref().filter(|current| !current.is_over());
        let serving = self.serving.as_ref().filter(|serving| serving.run_id != run_id);
        let other = making.map(|current| &current.run_id);
        let other = other.or(serving
            .filter(|serving| serving.is_taking())
            .map(|serving| &serving.run_id));
        match other {
            Some(other) => Err(format!(
                "this agent is busy with the run {other}: wait for it, or stop it with holdfast run stop {other}"
            )),
            None => Ok(()),
        }
    }

    /// Becomes a target of others. That they may be told so is this node's consent to load on itself.
    fn serve(&mut self, run_id: &str, order: &RunServe) -> Result<String, String> {
        self.busy(run_id)?;
        let wanted: SocketAddr = order
            .address
            .parse()
            .map_err(|_| format!("{:?} is no address with a port", order.address))?;
        let serving = Serving::begin(run_id, wanted, &self.consent)?;
        let address = serving.address;
        self.serving = Some(serving);
        Ok(address.to_string())
    }

    fn prepare(&mut self, run_id: &str, wire: &LoadPlan) -> Result<u64, String> {
        self.busy(run_id)?;
        let (plan, interval) = order::plan(wire).map_err(|nonsense| nonsense.to_string())?;
        let plans: Vec<Plan> = if wire.apart {
            let of_one = |target: &SocketAddr| Plan {
                targets: vec![*target],
                ..plan.clone()
            };
            plan.targets.iter().map(of_one).collect()
        } else {
            vec![plan]
        };
        if plans.len() > MOST_APART {
            return Err(format!(
                "{} targets, each on its own, are more than {MOST_APART}: take fewer agents",
                plans.len()
            ));
        }
        self.consent
            .check_all(&plans)
            .map_err(|refused| refused.to_string())?;
        let number = plans.len() as u64;
        let serving = self.serving.as_ref().filter(|serving| serving.run_id == run_id);
        let served = serving.map(|serving| Arc::clone(&serving.served));
        let prepare_one = |plan| {
            let mut prepared = prepare(plan).map_err(|nonsense| nonsense.to_string())?;
            self.consent.bound(&mut prepared, number);
            // Together they use no more than one alone may.
            prepared.together = number;
            prepared.served.clone_from(&served);
            let threads = if number > 1 { 1 } else { prepared.threads };
            prepared.threads = threads.min(self.consent.threads(number, served.is_some()));
            Ok(prepared)
        };
        let prepared: Vec<Prepared> = plans
            .into_iter()
            .map(prepare_one)
            .collect::<Result<_, String>>()?;
        let threads = prepared.iter().map(|prepared| prepared.threads).sum();
        self.current = Some(Current {
            run_id: run_id.to_owned(),
            shared: prepared.iter().map(|_| Arc::default()).collect(),
            prepared: Some((prepared, interval)),
            generators: Vec::new(),
            prepared_ns: monotonic_ns(),
        });
        Ok(threads)
    }

    fn start(&mut self, run_id: &str, start_ns: u64) {
        let caps = self.consent.caps;
        let events = self.events.clone();
        let Some(current) = self.of(run_id) else { return };
        let Some((prepared, interval)) = current.prepared.take() else {
            return;
        };
        for (target, prepared) in prepared.into_iter().enumerate() {
            let shared = Arc::clone(&current.shared[target]);
            shared.beat_ns.store(monotonic_ns(), Ordering::Relaxed);
            tracing::info!(run = run_id, targets = ?prepared.plan.targets, "load begins");
            let mut reports = Reports::new(&events, run_id, target);
            let generator = thread::Builder::new().name("load".into()).spawn(move || {
                let made = generate(&prepared, caps, start_ns, interval, &shared, |report| {
                    reports.send(report);
                });
                if let Err(error) = made {
                    reports.send(never_made(no_thread(&error)));
                }
            });
            match generator {
                Ok(generator) => current.generators.push(generator),
                // Without room nothing is heard of this target, and the collector takes this agent for lost.
                Err(error) => {
                    let _ = events.try_send(report_event(run_id, target, &never_made(no_thread(&error))));
                }
            }
        }
        if current.generators.is_empty() {
            self.current = None;
        }
    }

    /// Begins nothing, and says so.
    fn give_up(&mut self, run_id: &str, late_ns: u64) {
        let Some((prepared, _)) = self.of(run_id).and_then(|current| current.prepared.take()) else {
            return;
        };
        let reason = format!(
            "heard of the start {} ms after it, by its own clock, and did not begin: make the run again",
            late_ns / 1_000_000
        );
        tracing::warn!(run = run_id, "{reason}");
        for target in 0..prepared.len() {
            let never = never_made(reason.clone());
            let _ = self.events.try_send(report_event(run_id, target, &never));
        }
        self.current = None;
    }

    fn tell(&self, run_id: &str, event: run_event::Event) {
        let _ = self.events.try_send(event_of(run_id, event));
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        for shared in self.current.iter().flat_map(|current| &current.shared) {
            shared.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// What is reported of one target, on its thread. Nothing that was counted is left out, however long the connection takes no more.
struct Reports {
    events: mpsc::Sender<RunEvent>,
    run_id: String,
    target: usize,
    /// Found no room, and goes with the next.
    waiting: Option<Report>,
}

impl Reports {
    fn new(events: &mpsc::Sender<RunEvent>, run_id: &str, target: usize) -> Self {
        Self {
            events: events.clone(),
            run_id: run_id.to_owned(),
            target,
            waiting: None,
        }
    }

    /// Only the last one waits for room: its load is over, so there is nothing left to be kept to the caps.
    fn send(&mut self, report: Report) {
        let report = match self.waiting.take() {
            Some(earlier) => earlier.and_then(report),
            None => report,
        };
        if let Some(end) = &report.end {
            tracing::info!(run = self.run_id, target = self.target, ?end, "load ends");
            let event = report_event(&self.run_id, self.target, &report);
            // It fails once the agent ends, which ends its collector's run too.
            let _ = self.events.blocking_send(event);
            return;
        }
        match self.events.try_reserve() {
            Ok(place) => place.send(report_event(&self.run_id, self.target, &report)),
            Err(mpsc::error::TrySendError::Full(())) => self.waiting = Some(report),
            Err(mpsc::error::TrySendError::Closed(())) => {}
        }
    }
}

fn report_event(run_id: &str, target: usize, report: &Report) -> RunEvent {
    let report = LoadReport {
        target: target as u32,
        ..order::report(report)
    };
    event_of(run_id, run_event::Event::Report(report))
}

fn no_thread(error: &std::io::Error) -> String {
    format!("no thread can be started: {error}")
}

/// The only report of what was not begun.
fn never_made(reason: String) -> Report {
    Report {
        elapsed: Duration::ZERO,
        tally: Tally::default(),
        open: 0,
        most_open: 0,
        cpu: Duration::ZERO,
        watched: Duration::ZERO,
        saturated: Duration::ZERO,
        first_ns: None,
        end: Some(End::Failed(reason)),
    }
}

fn event_of(run_id: &str, event: run_event::Event) -> RunEvent {
    RunEvent {
        run_id: run_id.to_owned(),
        event: Some(event),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use holdfast_proto::v1::{LoadCount, LoadEnd, RunStart, load_plan};

    use super::*;
    use crate::load::{outcome::Outcome, run::Caps};

    fn reported(established: u64, end: Option<End>) -> Report {
        let mut tally = Tally::default();
        for _ in 0..established {
            tally.started += 1;
            tally.outcome(Outcome::Established);
            tally.connect.saturating_record(1_000);
        }
        Report {
            elapsed: Duration::from_secs(established),
            tally,
            open: established,
            most_open: established,
            cpu: Duration::from_millis(established),
            watched: Duration::ZERO,
            saturated: Duration::ZERO,
            first_ns: Some(1),
            end,
        }
    }

    /// What an event says of established connections: how many, of how many there are times, and when.
    fn said(event: Option<RunEvent>) -> (u64, u64, bool) {
        let Some(run_event::Event::Report(report)) = event.and_then(|event| event.event) else {
            panic!("a report");
        };
        let mut times = report.connect.as_ref();
        let times: hdrhistogram::Histogram<u64> = hdrhistogram::serialization::Deserializer::new()
            .deserialize(&mut times)
            .expect("times");
        let established = report.counts.expect("counts").established;
        assert_eq!((report.target, times.len()), (3, established));
        (
            established,
            report.elapsed_ns / 1_000_000_000,
            report.end.is_some(),
        )
    }

    const BYTES: u64 = 100_000;

    fn runs() -> Runs {
        Runs::new(Consent {
            targets: vec!["127.0.0.0/8".parse().expect("targets")],
            connections: 2,
            caps: Caps {
                per_second: 1e6,
                bytes: BYTES,
                cpus: 8.0,
                duration: Duration::from_secs(60),
            },
        })
    }

    /// One connection, which is held.
    fn one(target: &TcpListener, hold: Duration) -> LoadPlan {
        LoadPlan {
            targets: vec![target.local_addr().expect("its address").to_string()],
            arrivals: Some(load_plan::Arrivals::Count(LoadCount {
                connections: 1,
                pause_ns: 0,
            })),
            step: 1,
            hold_ns: hold.as_nanos() as u64,
            timeout_ns: 5_000_000_000,
            interval_ns: 100_000_000,
            ..LoadPlan::default()
        }
    }

    /// By this clock the collector's is five seconds behind.
    const NOW_NS: u64 = 1_800_000_000_000_000_000;
    const OFFSET_NS: i64 = 5_000_000_000;

    fn take(runs: &mut Runs, order: run_order::Order) {
        let order = RunOrder {
            run_id: "19ac".into(),
            order: Some(order),
        };
        runs.take(order, Some((OFFSET_NS, 0)), NOW_NS);
    }

    fn start(runs: &mut Runs, late_ns: u64) {
        let at_ns = NOW_NS - OFFSET_NS.unsigned_abs() - late_ns;
        take(runs, run_order::Order::Start(RunStart { at_ns }));
    }

    /// The last report, and how many attempts all of them together say were late: the last one says only what came since the one before.
    fn reports(runs: &mut Runs) -> (LoadReport, u64) {
        let mut late = 0;
        loop {
            let event = runs.queue.blocking_recv().and_then(|event| event.event);
            if let Some(run_event::Event::Report(report)) = event {
                late += report.counts.as_ref().map_or(0, |counts| counts.late);
                if report.end.is_some() {
                    return (report, late);
                }
            }
        }
    }

    fn last_report(runs: &mut Runs) -> LoadReport {
        reports(runs).0
    }

    #[test]
    fn who_hears_of_the_start_late_begins_late_and_says_so() {
        let target = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut runs = runs();
        let mut told_late = |late_ns| {
            take(&mut runs, run_order::Order::Prepare(one(&target, Duration::ZERO)));
            start(&mut runs, late_ns);
            reports(&mut runs)
        };
        // What was due for so long is not made at once.
        let (report, _) = told_late(1_500_000_000);
        assert_eq!((report.end(), report.first_ns), (LoadEnd::Failed, 0));
        assert!(report.reason.contains("1500 ms after it"), "{}", report.reason);
        let (report, late) = told_late(300_000_000);
        assert_eq!(late, 1);
        assert!(report.first_ns >= 300_000_000, "{}", report.first_ns);
    }

    #[test]
    fn a_run_has_no_more_threads_than_it_may_use_cpus() {
        let consent = |cpus| {
            let mut consent = runs().consent.clone();
            (consent.caps.cpus, consent.connections) = (cpus, 1_000);
            consent
        };
        for (cpus, number, is_serving, threads) in [
            (4.0, 1, false, 4),
            (4.0, 1, true, 3),
            (3.9, 1, false, 3),
            (4.0, 3, true, 1),
            // The cap stands, and ends what uses more.
            (4.0, 9, true, 1),
            (0.5, 1, true, 1),
        ] {
            let allowed = consent(cpus).threads(number, is_serving);
            assert_eq!(allowed, threads, "{cpus} {number} {is_serving}");
        }
        // So it is of a run that is prepared, however many CPUs there are.
        let target = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut plan = one(&target, Duration::ZERO);
        plan.arrivals = Some(load_plan::Arrivals::Count(LoadCount {
            connections: 100,
            pause_ns: 0,
        }));
        for (cpus, serves, most) in [(1.5, false, 1), (2.9, true, 1)] {
            let mut runs = Runs::new(consent(cpus));
            if serves {
                let address = "127.0.0.1:0".to_owned();
                take(&mut runs, run_order::Order::Serve(RunServe { address }));
            }
            assert_eq!(runs.prepare("19ac", &plan), Ok(most), "{cpus} {serves}");
        }
    }

    #[test]
    fn what_a_node_serves_for_others_is_kept_to_its_caps_and_ends_the_run_in_its_words() {
        let target = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut runs = runs();
        let address = "127.0.0.1:0".to_owned();
        take(&mut runs, run_order::Order::Serve(RunServe { address }));
        let served = runs.serving.as_ref().expect("it serves").address;
        take(
            &mut runs,
            run_order::Order::Prepare(one(&target, Duration::from_secs(50))),
        );
        start(&mut runs, 0);
        let beating = runs.current.as_ref().expect("a run").shared[0].clone();
        beating.beat_ns.store(0, Ordering::Relaxed);
        let mut stream = TcpStream::connect(served).expect("taken");
        let mut bytes = vec![0; BYTES as usize / 2 + 1];
        stream.write_all(&bytes).expect("sent");
        stream.read_exact(&mut bytes).expect("sent back");
        let report = last_report(&mut runs);
        assert_eq!(report.end(), LoadEnd::Capped, "{}", report.reason);
        assert!(
            report.reason.contains("HOLDFAST_LOAD_BYTES=") && report.elapsed_ns < 2_000_000_000,
            "{report:?}"
        );
        // Where no run is there to end, it ends by itself.
        assert_eq!(stream.read(&mut bytes).unwrap_or(0), 0);
    }

    #[test]
    fn what_finds_no_room_goes_with_the_next_report_and_the_last_one_waits() {
        let (events, mut queue) = mpsc::channel(1);
        let mut reports = Reports::new(&events, "19ac", 3);
        for established in [1, 2, 4] {
            reports.send(reported(established, None));
        }
        assert_eq!(said(queue.try_recv().ok()), (1, 1, false));
        reports.send(reported(8, None));
        reports.send(reported(16, None));
        // The place is taken again, so the end has to wait for it.
        let ending = thread::spawn(move || reports.send(reported(32, Some(End::Finished))));
        assert_eq!(said(queue.blocking_recv()), (14, 8, false));
        assert_eq!(said(queue.blocking_recv()), (48, 32, true));
        ending.join().expect("it ends");
    }

    #[test]
    fn the_end_of_an_agent_keeps_no_thread_that_waits_for_room() {
        let (events, queue) = mpsc::channel(1);
        let mut reports = Reports::new(&events, "19ac", 0);
        reports.send(reported(1, None));
        let ending = thread::spawn(move || reports.send(reported(2, Some(End::Stopped))));
        drop(queue);
        ending.join().expect("it ends");
    }
}
