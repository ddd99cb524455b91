//! Datagrams of the load generator on sockets of the test. Needs privileges only for a firewall.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use holdfast_agent::load::{
    outcome::Answer,
    plan::{Arrivals, Plan, Udp},
    run::End,
    tally::Tally,
};
use holdfast_proto::datagram::{self, Datagram, Heard, Kind};

use crate::{
    host::Host,
    load::{UNBOUNDED, count, run},
    signals::filter,
};

/// A socket whose datagrams are each given to `serve`, which says what is sent back, for as long as the test's process lasts.
fn server(mut serve: impl FnMut(Datagram, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("its address");
    thread::spawn(move || {
        let mut buffer = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let one = datagram::read(&buffer[..length]).expect("one of ours");
            for answer in serve(one, &buffer[..length]) {
                socket.send_to(&answer, from).expect("sent");
            }
        }
    });
    address
}

fn datagrams(target: SocketAddr, number: u64, is_one_way: bool) -> Plan {
    Plan {
        udp: Some(Udp {
            bytes: 200,
            is_one_way,
        }),
        ..count(target, number)
    }
}

fn answers(tally: &Tally, answer: Answer) -> u64 {
    let decided: u64 = tally.answers.iter().sum();
    assert_eq!(decided, tally.requests, "every datagram was decided");
    tally.answers[answer as usize]
}

#[test]
fn an_echo_brings_all_back() {
    let (tally, _) = run(
        datagrams(server(|_, bytes| vec![bytes.to_vec()]), 100, false),
        UNBOUNDED,
        |_, _| {},
    );
    assert_eq!((tally.requests, answers(&tally, Answer::Expected)), (100, 100));
    assert_eq!((tally.bytes_sent, tally.bytes_received), (20_000, 20_000));
    assert_eq!((tally.exchange.len(), tally.request.len()), (100, 100));
    assert!(tally.jitter.len() >= 90 && tally.duplicated == 0);
}

#[test]
fn what_is_lost_doubled_or_out_of_order_is_told_apart() {
    // Of each ten: one is lost, one comes twice, and one after the next.
    let mut kept: Option<Vec<u8>> = None;
    let target = server(move |one, bytes| match one.number % 10 {
        0 => vec![],
        1 => vec![bytes.to_vec(), bytes.to_vec()],
        2 => {
            kept = Some(bytes.to_vec());
            vec![]
        }
        3 => [Some(bytes.to_vec()), kept.take()]
            .into_iter()
            .flatten()
            .collect(),
        _ => vec![bytes.to_vec()],
    });
    // One sender: the numbers of two would be mixed up in `kept`.
    let mut plan = datagrams(target, 100, false);
    plan.timeout = Duration::from_secs(5);
    let prepared = plan.at_once();
    assert_eq!(prepared, 1, "one thread, for there is one socket");
    let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
    assert_eq!(
        (
            answers(&tally, Answer::TimedOut),
            answers(&tally, Answer::Expected)
        ),
        (10, 90)
    );
    assert_eq!((tally.duplicated, tally.reordered), (10, 10));
}

#[test]
fn on_a_port_that_nobody_has_each_is_refused_and_none_lost() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        for is_one_way in [false, true] {
            let target = UdpSocket::bind(address)
                .and_then(|socket| socket.local_addr())
                .expect("a port that nobody has");
            // More than there is an answer between two calls.
            let mut plan = datagrams(target, 200, is_one_way);
            plan.timeout = Duration::from_millis(300);
            let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
            assert_eq!(
                (answers(&tally, Answer::Refused), tally.requests),
                (200, 200),
                "{target} {is_one_way} {tally:?}"
            );
            assert!(
                tally.remarks.len() == 1 && tally.remarks[0].contains("nothing listens on that UDP port"),
                "{:?}",
                tally.remarks
            );
        }
    }
}

#[test]
fn a_target_that_goes_away_refuses_only_what_comes_after() {
    // A machine that stood still for a moment has sent all of them before: then once more.
    let is_refused = (0..20).any(|_| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let target = socket.local_addr().expect("its address");
        let server = thread::spawn(move || {
            let mut buffer = [0; 2_048];
            for _ in 0..30 {
                let (length, from) = socket.recv_from(&mut buffer).expect("one of ours");
                socket.send_to(&buffer[..length], from).expect("sent");
            }
        });
        let mut plan = datagrams(target, 100, false);
        plan.timeout = Duration::from_millis(300);
        let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
        server.join().expect("it served");
        // What was in its socket when it went away was never answered: lost, not refused.
        let (refused, lost) = (
            answers(&tally, Answer::Refused),
            answers(&tally, Answer::TimedOut),
        );
        assert_eq!(
            (answers(&tally, Answer::Expected), refused + lost),
            (30, 70),
            "{tally:?}"
        );
        assert_eq!(tally.error.len(), 70);
        refused > 0
    });
    assert!(is_refused, "all that came after were lost");
}

#[test]
fn one_way_its_receiver_says_what_it_has_got() {
    let mut received = 0;
    let target = server(move |one, _| match one.kind {
        Kind::OneWay => {
            received += u64::from(one.number % 4 != 0);
            vec![]
        }
        Kind::Question => {
            let heard = Heard {
                received,
                duplicated: 1,
                reordered: 2,
                jitter_ns: 3_000,
            };
            vec![datagram::write_heard(one.tag, heard).to_vec()]
        }
        Kind::Echo => vec![],
    });
    let (tally, _) = run(datagrams(target, 40, true), UNBOUNDED, |_, _| {});
    assert_eq!(
        (
            answers(&tally, Answer::Expected),
            answers(&tally, Answer::TimedOut)
        ),
        (30, 10)
    );
    assert_eq!((tally.duplicated, tally.reordered, tally.jitter.len()), (1, 2, 1));
}

#[test]
fn a_receiver_that_does_not_say_leaves_it_unknown() {
    let (tally, _) = run(datagrams(server(|_, _| vec![]), 10, true), UNBOUNDED, |_, _| {});
    assert_eq!(answers(&tally, Answer::Abandoned), 10);
    assert!(tally.remarks[0].contains("does not say"), "{:?}", tally.remarks);
}

#[test]
fn a_run_that_is_stopped_asks_what_was_received_all_the_same() {
    let mut received = 0;
    let target = server(move |one, _| {
        received += u64::from(one.kind == Kind::OneWay);
        let heard = Heard {
            received,
            ..Heard::default()
        };
        let is_question = one.kind == Kind::Question;
        is_question
            .then(|| datagram::write_heard(one.tag, heard).to_vec())
            .into_iter()
            .collect()
    });
    let mut plan = datagrams(target, 100_000, true);
    plan.arrivals = Arrivals::Count {
        connections: 100_000,
        pause: Duration::from_millis(1),
    };
    let (tally, last) = run(plan, UNBOUNDED, |_, shared| {
        shared.stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(last.end, Some(End::Stopped));
    assert!(tally.requests > 0);
    assert_eq!(answers(&tally, Answer::Expected), tally.requests);
}

#[test]
fn what_the_firewall_of_this_machine_refuses_is_no_matter_of_the_target() {
    let host = Host::new();
    filter(&host, "output udp dport 9");
    let (tally, _) = host.run(|| {
        let target = SocketAddr::from(([127, 0, 0, 1], 9));
        run(datagrams(target, 20, false), UNBOUNDED, |_, _| {})
    });
    assert_eq!((answers(&tally, Answer::Unsent), tally.hindered), (20, 20));
    // One that nobody listens for was sent.
    let target = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let (tally, _) = run(
        datagrams(target.expect("a port"), 20, false),
        UNBOUNDED,
        |_, _| {},
    );
    assert_eq!((answers(&tally, Answer::Refused), tally.hindered), (20, 0));
}

#[test]
fn what_finds_no_room_in_the_socket_here_was_not_lost_on_the_way() {
    // More of them, and from more threads, than one can read.
    let flood = || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let target = socket.local_addr().expect("its address");
        let flooding = thread::spawn(move || {
            let mut buffer = vec![0; 60_000];
            let (bytes, from) = socket.recv_from(&mut buffer).expect("one of ours");
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            socket.send_to(&buffer, from).expect("sent");
                        }
                    });
                }
            });
            bytes
        });
        let mut plan = datagrams(target, 2, false);
        plan.timeout = Duration::from_millis(500);
        let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
        assert_eq!(flooding.join().expect("it flooded"), 200);
        tally
    };
    let is_told = |tally: &Tally| {
        let remark = tally
            .remarks
            .iter()
            .any(|remark| remark.contains("net.core.rmem_max"));
        assert_eq!(remark, tally.hindered > 0, "{tally:?}");
        remark
    };
    assert!((0..10).any(|_| is_told(&flood())), "nothing was ever dropped");
}
