//! Connections that stay open: seen as soon as their handshake is over, and exactly once.

use std::{
    collections::HashMap,
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use holdfast_agent::{outcome::outcome, probes::Options};
use holdfast_agent_ebpf::event::{ConnectionRecord, attribution, flag, role, state};
use holdfast_proto::v1::{CloseReason, Outcome};

use crate::{
    host::Host,
    watch::{Watch, check, states},
};

fn is_first(record: &ConnectionRecord) -> bool {
    record.flags & flag::FIRST != 0
}

fn end(records: &[ConnectionRecord], role: u8) -> ConnectionRecord {
    let found: Vec<_> = records.iter().filter(|record| record.role == role).collect();
    assert_eq!(found.len(), 1, "{records:#?}");
    *found[0]
}

#[test]
fn a_connection_that_stays_open_is_announced_once_and_its_end_is_no_second_attempt() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let server = listener.accept().expect("a connection").0;

    let first = watch.announce();
    assert_eq!(first.len(), 2, "{first:#?}");
    let (active, passive) = (end(&first, role::ACTIVE), end(&first, role::PASSIVE));
    assert_eq!(states(&active), [state::SYN_SENT, state::ESTABLISHED]);
    assert_eq!(states(&passive), [state::SYN_RECV, state::ESTABLISHED]);
    for record in [active, passive] {
        check(&record, (Outcome::Established, CloseReason::None));
        assert_eq!(record.flags, flag::FIRST | flag::ESTABLISHED);
        assert_eq!((record.netns, record.pid), (host.netns, std::process::id()));
    }
    assert_eq!(
        (active.attribution, passive.attribution),
        (attribution::EXACT, attribution::LISTENER)
    );
    assert_eq!(active.remote_port, to.port());
    assert_eq!(
        (active.local_port, active.remote_port),
        (passive.remote_port, passive.local_port)
    );
    assert_eq!(
        (active.local_address[0], active.remote_address[0]),
        (passive.remote_address[0], passive.local_address[0])
    );
    assert_eq!(watch.announce(), [], "once");

    drop((client, server));
    let (active_end, passive_end) = watch.both_ends();
    for (first, last) in [(active, active_end), (passive, passive_end)] {
        assert_eq!(last.flags & (flag::FIRST | flag::FINAL), flag::FINAL);
        assert_eq!((first.cookie, first.opened_ns), (last.cookie, last.opened_ns));
        assert_eq!(last.path[..2], first.path[..2], "the handshake is repeated");
        assert_eq!(outcome(&last), Outcome::Established);
    }
}

#[test]
fn an_open_passive_end_has_the_owner_of_its_listener_however_that_is_bound() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    for (bound, called) in [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
    ] {
        let (listener, at) = host.listen(bound);
        let to = (called.parse::<std::net::IpAddr>().expect("an address"), at.port()).into();
        let client = host.dial(to).expect("a connection");
        let server = listener.accept().expect("a connection").0;
        let passive = end(&watch.announce(), role::PASSIVE);
        assert_eq!(
            (passive.attribution, passive.pid),
            (attribution::LISTENER, std::process::id()),
            "{called} at a listener on {bound}"
        );
        drop((client, server));
    }
}

#[test]
fn a_connection_that_ends_before_the_sweep_costs_one_record() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("::1");
    let client = host.dial(to).expect("a connection");
    drop((client, listener.accept().expect("a connection")));
    let (active, passive) = watch.both_ends();
    assert!(is_first(&active) && is_first(&passive));
    assert_eq!(watch.announce(), []);
}

#[test]
fn an_attempt_that_is_not_decided_is_not_announced() {
    let (host, silent) = (Host::new(), Host::new());
    host.connect(&silent);
    silent.ip("route add blackhole 10.0.0.1/32");
    let mut watch = Watch::on(&host);
    let attempt = host.run(|| {
        thread::spawn(|| TcpStream::connect_timeout(&([10, 0, 0, 2], 9).into(), Duration::from_millis(300)))
    });
    thread::sleep(Duration::from_millis(100));
    assert_eq!(watch.announce(), []);
    attempt.join().expect("a thread").expect_err("nobody answers");
    assert!(is_first(&watch.only()));
}

/// Sweep and close race for every connection: whoever wins, each has one first record and one final one.
#[test]
fn the_race_of_sweep_and_close_never_makes_two_first_records_and_never_none() {
    const CONNECTIONS: usize = 5_000;
    let host = Host::new();
    // Two ends at a time: a small table is swept so often that the race is close on every machine.
    let mut watch = Watch::with(Options {
        only_netns: Some(host.netns),
        connections: 64,
        ..Options::default()
    });
    let (listener, to) = host.listen("127.0.0.1");
    static DONE: AtomicBool = AtomicBool::new(false);
    let load = thread::spawn(move || {
        host.run(move || {
            for _ in 0..CONNECTIONS {
                let client = TcpStream::connect(to).expect("a connection");
                drop((client, listener.accept().expect("a connection")));
            }
        });
        DONE.store(true, Ordering::Release);
        host
    });
    let mut announced = 0;
    let mut firsts: HashMap<(u64, u64), usize> = HashMap::new();
    let mut count = |record: &ConnectionRecord| {
        *firsts.entry((record.cookie, record.opened_ns)).or_default() += usize::from(is_first(record));
    };
    while !DONE.load(Ordering::Acquire) {
        for record in watch.announce() {
            announced += 1;
            count(&record);
        }
        watch.drain();
    }
    drop(load.join().expect("the load"));
    // What the hook missed (the kernel starts no program inside itself) is counted, of the whole machine: of so many
    // ends at most, the opening or the close went unseen.
    let missed = watch.counts().missed as usize;
    let records = watch.wait_for(2 * CONNECTIONS - missed);
    records.iter().for_each(&mut count);
    let ends = 2 * CONNECTIONS - missed..=2 * CONNECTIONS;
    assert!(
        ends.contains(&records.len()),
        "{} with {missed} missed",
        records.len()
    );
    assert!(
        ends.contains(&firsts.len()),
        "{} with {missed} missed",
        firsts.len()
    );
    let other = firsts.values().filter(|&&first| first != 1).count();
    assert_eq!(other, 0, "connections with no first record or with two");
    assert!(announced > 0, "no race at all");
}
