//! The load generator against real listeners on loopback. Needs no privileges.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use holdfast_agent::load::{
    consent::Consent,
    held,
    memory::Memory,
    outcome::{Loss, Outcome},
    plan::{Arrivals, Close, Payload, Plan, Stage},
    run::{Caps, End, Prepared, Report, generate, prepare},
    tally::Tally,
    worker::{Shared, monotonic_ns},
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::host::Host;

/// Longer than a busy machine takes for anything here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A listener whose connections are each given to `serve`, for as long as the test's process lasts.
pub(crate) fn server(mut serve: impl FnMut(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    thread::spawn(move || listener.incoming().flatten().for_each(&mut serve));
    address
}

/// One that keeps what it accepts.
fn keeper() -> SocketAddr {
    let mut kept = Vec::new();
    server(move |stream| kept.push(stream))
}

fn echo(mut stream: TcpStream) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..bytes]).is_err() {
                return;
            }
        }
    });
}

pub(crate) fn count(target: SocketAddr, connections: u64) -> Plan {
    Plan {
        targets: vec![target],
        arrivals: Arrivals::Count {
            connections,
            pause: Duration::from_micros(100),
        },
        first: 0,
        step: 1,
        hold: Duration::ZERO,
        timeout: PATIENCE,
        payload: None,
        http: None,
        udp: None,
        close: Close::Reset,
        sources: vec![],
    }
}

pub(crate) const UNBOUNDED: Caps = Caps {
    per_second: f64::MAX,
    bytes: u64::MAX,
    cpus: f64::MAX,
    duration: Duration::MAX,
};

/// Everything that a run counted, and its last report.
pub(crate) fn run(plan: Plan, caps: Caps, at_report: impl FnMut(&Report, &Shared)) -> (Tally, Report) {
    run_prepared(&prepared(plan), caps, at_report)
}

pub(crate) fn prepared(plan: Plan) -> Prepared {
    prepare(plan.check().expect("a plan that makes sense")).expect("the machine can make it")
}

/// The same as on a machine that has not files enough for it.
fn run_without_files(plan: Plan) -> (Tally, Report) {
    held::check().expect("io_uring of Linux 6.11 or later");
    let prepared = Prepared {
        lacks_files: true,
        ..prepared(plan)
    };
    run_prepared(&prepared, UNBOUNDED, |_, _| {})
}

pub(crate) fn run_prepared(
    prepared: &Prepared,
    caps: Caps,
    mut at_report: impl FnMut(&Report, &Shared),
) -> (Tally, Report) {
    let shared = Arc::new(Shared::default());
    let (mut sum, mut last) = (Tally::default(), None);
    generate(
        prepared,
        caps,
        monotonic_ns(),
        Duration::from_millis(200),
        &shared,
        |report| {
            at_report(&report, &shared);
            sum.add(&report.tally);
            last = Some(report);
        },
    )
    .expect("threads");
    let last = last.expect("a last report");
    assert!(last.end.is_some(), "the last report has an end");
    assert_eq!(last.open, 0, "nothing is left open");
    assert_eq!(sum.started, sum.decided(), "every attempt was decided");
    (sum, last)
}

#[test]
fn a_count_is_established_held_at_once_and_closed() {
    let (tally, last) = run(count(keeper(), 150), UNBOUNDED, |_, _| {});
    assert!(!tally.lacks_handshakes);
    assert_eq!(last.end, Some(End::Finished));
    assert_eq!(tally.count(Outcome::Established), 150);
    assert_eq!((tally.errors(), tally.closed, last.most_open), (0, 150, 150));
    assert_eq!((tally.connect.len(), tally.network.len()), (150, 150));
    assert!(tally.network.value_at_quantile(0.5) <= tally.connect.max());
}

#[test]
fn a_machine_that_is_short_of_memory_ends_the_run_within_a_second() {
    let folder = tempfile::tempdir().expect("a folder");
    let meminfo = |available: u64| {
        let text = format!("MemTotal: 1000000 kB\nMemAvailable: {available} kB\n");
        fs::write(folder.path().join("meminfo"), text).expect("written");
    };
    meminfo(900_000);
    let prepared = Prepared {
        memory: Memory::at(folder.path(), folder.path()),
        ..prepared(Plan {
            hold: Duration::from_secs(60),
            ..count(keeper(), 50)
        })
    };
    let mut short_since: Option<Instant> = None;
    let (tally, last) = run_prepared(&prepared, UNBOUNDED, |report, _| {
        if report.open == 50 && short_since.is_none() {
            meminfo(40_000);
            short_since = Some(Instant::now());
        }
    });
    let ended_after = short_since.expect("all were open").elapsed();
    assert!(ended_after < Duration::from_secs(1), "{ended_after:?}");
    let Some(End::Capped(reason)) = last.end else {
        panic!("{:?}", last.end);
    };
    assert!(
        reason.contains("39 of the 976 MiB of memory of this node are left"),
        "{reason}"
    );
    assert_eq!((tally.closed, tally.errors()), (50, 0), "all were closed by us");
}

#[test]
fn a_closed_port_refuses() {
    let address = nobody();
    let (tally, _) = run(count(address, 20), UNBOUNDED, |_, _| {});
    assert_eq!(tally.count(Outcome::Refused), 20);
    assert_eq!((tally.error.len(), tally.connect.len()), (20, 0));
}

#[test]
fn what_has_no_files_is_established_held_and_closed_as_well() {
    let sources: [IpAddr; 2] = ["127.9.0.1", "127.9.0.2"].map(|source| source.parse().expect("an address"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    let accepting = thread::spawn(move || {
        let accept = |_| listener.accept().expect("each can be accepted");
        (0..150)
            .map(accept)
            .map(|(stream, from)| (from.ip(), stream))
            .collect::<Vec<_>>()
    });
    let mut plan = count(address, 150);
    plan.sources = sources.to_vec();
    let (tally, last) = run_without_files(plan);
    assert_eq!(last.end, Some(End::Finished));
    assert_eq!(tally.count(Outcome::Established), 150);
    assert_eq!((tally.errors(), tally.closed, last.most_open), (0, 150, 150));
    assert_eq!(tally.connect.len(), 150);
    // Nobody could ask: that is not the same as none.
    assert!(tally.lacks_handshakes && tally.network.is_empty());
    let accepted = accepting.join().expect("all were accepted");
    for source in sources {
        assert_eq!(accepted.iter().filter(|(from, _)| *from == source).count(), 75);
    }
}

#[test]
fn what_has_no_files_is_refused_or_times_out_as_well() {
    let address = nobody();
    let (tally, _) = run_without_files(count(address, 20));
    assert_eq!(tally.count(Outcome::Refused), 20);

    let (_listener, address) = full_after_three();
    let mut plan = count(address, 10);
    plan.timeout = Duration::from_millis(600);
    let (tally, _) = run_without_files(plan);
    assert!(tally.count(Outcome::TimedOut) >= 5, "{:?}", tally.outcomes);
    assert!(tally.error.min() >= 599_000_000, "{}", tally.error.min());
}

#[test]
fn the_end_of_what_has_no_files_is_seen_as_well() {
    for (is_reset, loss) in [(false, Loss::ClosedByPeer), (true, Loss::ResetByPeer)] {
        let address = server(move |mut stream| {
            if is_reset {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("set");
            } else {
                stream.write_all(b"twelve bytes").expect("sent");
            }
        });
        let mut plan = count(address, 10);
        plan.hold = PATIENCE;
        let (tally, last) = run_without_files(plan);
        assert_eq!(tally.losses[loss as usize], 10, "{loss:?}: {:?}", tally.losses);
        assert_eq!((timed_losses(&tally), tally.closed), (10, 0));
        assert_eq!(tally.bytes_received, if is_reset { 0 } else { 120 });
        assert!(last.elapsed < PATIENCE);
    }
}

/// A listener that takes three, and nobody accepts.
pub(crate) fn full_after_three() -> (OwnedFd, SocketAddr) {
    let listener = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    rustix::net::bind(&listener, &any).expect("bound");
    rustix::net::listen(&listener, 2).expect("listening");
    let address = rustix::net::getsockname(&listener).expect("its address");
    (listener, SocketAddr::try_from(address).expect("an IP address"))
}

#[test]
fn a_queue_that_nobody_empties_times_out() {
    let (_listener, address) = full_after_three();
    let mut plan = count(address, 10);
    // After a second each SYN is sent again (TCP_TIMEOUT_INIT, include/net/tcp.h).
    plan.timeout = Duration::from_millis(1_400);
    let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
    // A backlog of 2 holds three. A SYN is answered while there is room, and the ACK refused when there is none any more: what
    // dials at the same moment on another CPU is established too, for its own side.
    let at_once = thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64);
    let established = tally.count(Outcome::Established);
    assert!((3..3 + at_once).contains(&established), "{established}");
    let timed_out = tally.count(Outcome::TimedOut);
    assert_eq!(timed_out, 10 - established);
    assert!(tally.error.min() >= 1_399_000_000, "{}", tally.error.min());
    assert!(
        tally.syn_retransmits >= timed_out,
        "{}: {timed_out}",
        tally.syn_retransmits
    );
}

#[test]
fn a_silent_target_keeps_what_a_rate_comes_to_and_no_attempt_lacks_room() {
    let (_listener, address) = full_after_three();
    let plan = Plan {
        arrivals: Arrivals::Stages(vec![Stage {
            from_per_second: 200.0,
            to_per_second: 200.0,
            duration: Duration::from_secs(2),
        }]),
        timeout: Duration::from_millis(500),
        ..count(address, 1)
    };
    let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
    let limited: u64 = Outcome::ALL
        .iter()
        .filter(|outcome| outcome.is_local_limit())
        .map(|&outcome| tally.count(outcome))
        .sum();
    assert_eq!(limited, 0, "{:?}: {:?}", tally.outcomes, tally.remarks);
    let established = tally.count(Outcome::Established);
    assert_eq!(tally.count(Outcome::TimedOut), 400 - established);
    assert!(established < 100, "{established}");
}

#[test]
fn attempts_beyond_what_the_node_allows_at_once_are_told_with_the_setting_that_would_allow_them() {
    let consent = Consent {
        connections: 20,
        ..Consent::nothing()
    };
    let mut prepared = prepared(Plan {
        arrivals: Arrivals::Stages(vec![Stage {
            from_per_second: 100.0,
            to_per_second: 100.0,
            duration: Duration::from_secs(2),
        }]),
        hold: Duration::from_secs(1),
        timeout: Duration::from_millis(500),
        ..count(keeper(), 1)
    });
    consent.bound(&mut prepared, 1);
    let (tally, last) = run_prepared(&prepared, UNBOUNDED, |_, _| {});
    assert!(last.most_open <= 20, "{}", last.most_open);
    let forbidden = tally.count(Outcome::LocalFilter);
    assert!(forbidden > 0, "{:?}", tally.outcomes);
    assert_eq!(tally.count(Outcome::Established) + forbidden, 200);
    let [remark] = &tally.remarks[..] else {
        panic!("one remark: {:?}", tally.remarks);
    };
    for part in [
        "more than 20 connections at once were due",
        "--load-connections 150",
    ] {
        assert!(remark.contains(part), "{remark}");
    }
}

#[test]
fn what_one_connection_is_allowed_for_is_no_thread_more() {
    let mut prepared = prepared(Plan {
        arrivals: Arrivals::Stages(vec![Stage {
            from_per_second: 1_000.0,
            to_per_second: 1_000.0,
            duration: Duration::from_millis(100),
        }]),
        hold: Duration::from_millis(300),
        ..count(keeper(), 1)
    });
    let consent = Consent {
        connections: 1,
        ..Consent::nothing()
    };
    consent.bound(&mut prepared, 1);
    let (tally, last) = run_prepared(&prepared, UNBOUNDED, |_, _| {});
    assert_eq!((tally.count(Outcome::Established), last.most_open), (1, 1));
}

fn timed_losses(tally: &Tally) -> u64 {
    tally.lost_at.iter().map(|lost| lost.count).sum()
}

#[test]
fn a_peer_that_closes_or_resets_is_seen_while_connections_are_held() {
    for (is_reset, loss) in [(false, Loss::ClosedByPeer), (true, Loss::ResetByPeer)] {
        let address = server(move |stream| {
            if is_reset {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("set");
            }
        });
        let mut plan = count(address, 10);
        plan.hold = PATIENCE;
        let (tally, last) = run(plan, UNBOUNDED, |_, _| {});
        assert_eq!(tally.losses[loss as usize], 10, "{loss:?}: {:?}", tally.losses);
        assert_eq!((timed_losses(&tally), tally.closed), (10, 0));
        // Nothing is left to hold.
        assert!(last.elapsed < PATIENCE);
    }
}

#[test]
fn what_is_sent_comes_back_as_often_as_was_asked() {
    let mut plan = count(server(echo), 8);
    plan.payload = Some(Payload {
        bytes: 9_000,
        rounds: 5,
    });
    let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
    assert_eq!(tally.exchange.len(), 40);
    assert_eq!((tally.bytes_sent, tally.bytes_received), (360_000, 360_000));
}

#[test]
fn an_answer_that_does_not_come_is_a_loss_and_not_a_wait() {
    let mut plan = count(keeper(), 3);
    plan.payload = Some(Payload { bytes: 10, rounds: 1 });
    plan.timeout = Duration::from_millis(300);
    let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
    assert_eq!(tally.losses[Loss::TimedOut as usize], 3);
}

#[test]
fn a_rate_makes_all_its_attempts_however_late_it_is() {
    let mut plan = count(keeper(), 1);
    plan.arrivals = Arrivals::Stages(vec![Stage {
        from_per_second: 100.0,
        to_per_second: 900.0,
        duration: Duration::from_secs(1),
    }]);
    for close in [Close::Reset, Close::Finish] {
        plan.close = close;
        let (tally, _) = run(plan.clone(), UNBOUNDED, |_, _| {});
        assert_eq!((tally.started, tally.closed), (500, 500));
        assert_eq!(tally.lateness.len(), 500);
    }
}

#[test]
fn two_parts_of_a_run_make_the_whole() {
    let address = keeper();
    let part = |first| {
        let mut plan = count(address, 25);
        (plan.first, plan.step) = (first, 2);
        run(plan, UNBOUNDED, |_, _| {}).0.started
    };
    assert_eq!((part(0), part(1)), (13, 12));
}

#[test]
fn a_closed_loop_keeps_so_many_at_once_and_no_more() {
    let mut plan = count(keeper(), 1);
    plan.arrivals = Arrivals::Closed {
        concurrency: 3,
        duration: Duration::from_millis(500),
    };
    plan.hold = Duration::from_millis(1);
    let (tally, last) = run(plan, UNBOUNDED, |_, _| {});
    assert!(tally.started > 3, "{}", tally.started);
    assert_eq!(last.most_open, 3);
}

/// A port that nobody listens on.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port that nobody listens on")
}

/// Connections one after the other, as fast as they go.
fn closed_loop(target: SocketAddr, concurrency: u64) -> Plan {
    let mut plan = count(target, 1);
    plan.arrivals = Arrivals::Closed {
        concurrency,
        duration: Duration::from_millis(1_500),
    };
    plan
}

#[test]
fn a_closed_loop_says_whether_its_threads_had_time_left() {
    let check = |last: &Report, saturated: RangeInclusive<f64>| {
        let share = last.saturated.as_secs_f64() / last.watched.as_secs_f64();
        assert!(
            last.watched >= last.elapsed && saturated.contains(&share),
            "of {:?} watched for {:?} and saturated for {:?}",
            last.elapsed,
            last.watched,
            last.saturated
        );
    };
    // Nothing keeps it but itself: so many do not all wait for ksoftirqd of a busy machine at once.
    let (_, last) = run(closed_loop(nobody(), 400), UNBOUNDED, |_, _| {});
    check(&last, 0.5..=1.0);
    // Waits for the target.
    let slow = server(|mut stream| {
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                thread::sleep(Duration::from_millis(20));
                let _ = stream.write_all(&buffer[..bytes]);
            }
        });
    });
    let mut plan = closed_loop(slow, 2);
    plan.payload = Some(Payload { bytes: 8, rounds: 10 });
    let (_, last) = run(plan, UNBOUNDED, |_, _| {});
    check(&last, 0.0..=0.2);
    // In an open loop it is seen in how late attempts are.
    let (_, last) = run(count(keeper(), 10), UNBOUNDED, |_, _| {});
    assert_eq!((last.watched, last.saturated), (Duration::ZERO, Duration::ZERO));
}

#[test]
fn payload_that_goes_back_and_forth_waits_for_the_threads_whenever_its_connection_was_due() {
    let mut plan = count(server(echo), 4);
    plan.payload = Some(Payload {
        bytes: 8,
        rounds: 20_000,
    });
    plan.hold = Duration::from_secs(1);
    let (tally, last) = run(plan.clone(), UNBOUNDED, |_, _| {});
    assert_eq!(tally.exchange.len(), 80_000);
    // Of the time that connections are only held nothing is said.
    let threads = prepared(plan.clone()).threads as u32;
    assert!(
        last.watched > Duration::ZERO && last.watched < (last.elapsed - Duration::from_millis(700)) * threads,
        "{:?} of {:?} on each of {threads} threads",
        last.watched,
        last.elapsed
    );
    plan.payload = Some(Payload { bytes: 8, rounds: 1 });
    let (_, last) = run(plan, UNBOUNDED, |_, _| {});
    assert_eq!(last.watched, Duration::ZERO);
}

/// Threads that end with this, however that comes.
#[derive(Default)]
struct Spinners {
    is_over: Arc<AtomicBool>,
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_thread_that_waits_for_a_cpu_has_no_time_left_either() {
    let target = nobody();
    let starved = thread::spawn(move || {
        let mut one = CpuSet::new();
        one.set(0).expect("a first CPU");
        // Threads have what the one has that starts them.
        sched_setaffinity(Pid::from_raw(0), &one).expect("a CPU of its own");
        let spinners = Spinners::default();
        for _ in 0..3 {
            let is_over = Arc::clone(&spinners.is_over);
            thread::spawn(move || while !is_over.load(Ordering::Relaxed) {});
        }
        run(closed_loop(target, 400), UNBOUNDED, |_, _| {}).1
    });
    let last = starved.join().expect("a run");
    // It had little of its CPU, and waited for the rest; now and then for ksoftirqd, which had none either, and that is the network.
    assert!(
        last.cpu < last.watched / 2,
        "{:?} of {:?}",
        last.cpu,
        last.watched
    );
    assert!(
        last.saturated > last.watched / 2,
        "{:?} of {:?}",
        last.saturated,
        last.watched
    );
}

#[test]
fn a_run_that_is_stopped_ends_with_what_it_has() {
    let mut plan = count(keeper(), 10);
    plan.hold = Duration::from_secs(3600);
    let (tally, last) = run(plan, UNBOUNDED, |_, shared| {
        shared.stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(last.end, Some(End::Stopped));
    assert_eq!(tally.closed, tally.count(Outcome::Established));
    assert!(last.elapsed < PATIENCE);
}

#[test]
fn a_cap_that_is_reached_stops_the_run_and_names_its_setting() {
    let mut plan = count(server(echo), 2);
    plan.payload = Some(Payload {
        bytes: 60_000,
        rounds: 1_000_000,
    });
    let caps = Caps {
        bytes: 1_000_000,
        ..UNBOUNDED
    };
    let (_, last) = run(plan, caps, |_, _| {});
    assert!(last.elapsed < Duration::from_secs(1), "{:?}", last.elapsed);
    match last.end {
        Some(End::Capped(reason)) => assert!(reason.contains("HOLDFAST_LOAD_BYTES="), "{reason}"),
        end => panic!("{end:?}"),
    }
}

#[test]
fn a_closed_loop_that_is_faster_than_is_allowed_is_stopped_within_a_second() {
    let mut plan = closed_loop(nobody(), 8);
    plan.arrivals = Arrivals::Closed {
        concurrency: 8,
        duration: PATIENCE,
    };
    let caps = Caps {
        per_second: 100.0,
        ..UNBOUNDED
    };
    let (tally, last) = run(plan, caps, |_, _| {});
    assert!(last.elapsed < Duration::from_secs(1), "{:?}", last.elapsed);
    assert!(tally.started > 80, "{}", tally.started);
    let Some(End::Capped(reason)) = last.end else {
        panic!("{:?}", last.end);
    };
    assert!(
        reason.contains("no more than 100/s are allowed here") && reason.contains("HOLDFAST_LOAD_RATE="),
        "{reason}"
    );
}

#[test]
fn a_cap_on_how_long_a_run_lasts_stops_it_within_a_second() {
    let allowed = Duration::from_millis(500);
    let plan = Plan {
        hold: PATIENCE,
        ..count(keeper(), 3)
    };
    let caps = Caps {
        duration: allowed,
        ..UNBOUNDED
    };
    let (_, last) = run(plan, caps, |_, _| {});
    assert!(
        last.elapsed > allowed && last.elapsed < allowed + Duration::from_secs(1),
        "{:?}",
        last.elapsed
    );
    let Some(End::Capped(reason)) = last.end else {
        panic!("{:?}", last.end);
    };
    assert!(reason.contains("HOLDFAST_LOAD_DURATION="), "{reason}");
}

#[test]
fn a_cap_on_cpus_stops_what_uses_more() {
    let mut plan = closed_loop(nobody(), 8);
    plan.arrivals = Arrivals::Closed {
        concurrency: 8,
        duration: PATIENCE,
    };
    let caps = Caps {
        cpus: 0.01,
        ..UNBOUNDED
    };
    let (_, last) = run(plan, caps, |_, _| {});
    assert!(last.elapsed < Duration::from_secs(1), "{:?}", last.elapsed);
    let Some(End::Capped(reason)) = last.end else {
        panic!("{:?}", last.end);
    };
    assert!(
        reason.contains("and no more than 0.01 are allowed here") && reason.contains("HOLDFAST_LOAD_CPUS="),
        "{reason}"
    );
}

#[test]
fn a_run_that_nobody_wants_any_more_ends_within_a_second() {
    let plan = Plan {
        hold: PATIENCE,
        ..count(keeper(), 3)
    };
    let ended_after = || {
        let mut last_beat: Option<Duration> = None;
        let (tally, last) = run(plan.clone(), UNBOUNDED, |report, shared| {
            last_beat.get_or_insert_with(|| {
                shared.beat_ns.store(monotonic_ns(), Ordering::Relaxed);
                report.elapsed
            });
        });
        assert_eq!((last.end, tally.closed), (Some(End::Orphaned), 3));
        last.elapsed - last_beat.expect("a report")
    };
    // Of several the shortest: a machine may stand still for a moment.
    let all: Vec<Duration> = (0..3).map(|_| ended_after()).collect();
    let shortest = all.iter().min().expect("three");
    assert!(
        (Duration::from_millis(700)..Duration::from_secs(1)).contains(shortest),
        "{all:?}"
    );
}

#[test]
fn where_one_source_has_too_few_ports_the_others_of_the_node_are_taken_too() {
    let host = Host::new();
    // All of 10.9.0.0/24 is this host then, and no source of it, nor is another network's.
    for address in ["10.9.0.1/24", "10.9.0.2/24", "10.8.0.1/24"] {
        host.ip(&format!("addr add {address} dev lo"));
    }
    host.sysctl("ipv4/ip_local_port_range", "30001 30100");
    let (sources, tally) = host.run(|| {
        let listener = TcpListener::bind("10.9.0.7:80").expect("a listener");
        let prepared = prepared(count(listener.local_addr().expect("its address"), 60));
        let (tally, _) = run_prepared(&prepared, UNBOUNDED, |_, _| {});
        (prepared.sources, tally)
    });
    let expected: [IpAddr; 2] = ["10.9.0.1", "10.9.0.2"].map(|source| source.parse().expect("an address"));
    assert_eq!(sources, expected);
    assert_eq!(tally.count(Outcome::Established), 60, "{tally:?}");
}
