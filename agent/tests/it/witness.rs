//! The kernel's own counters against the hook: both count the same connections, to the last one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use holdfast_agent::{
    probes::Options,
    witness::{Witness, places::Places},
};
use holdfast_agent_ebpf::counter::Counter;

use crate::{host::Host, watch::Watch};

/// The witness of a host, with its baseline.
fn witness_of(host: &Host, watch: &Watch) -> Witness {
    let mut witness = Witness::new(Some(host.netns));
    witness.observe_well(|| Ok(watch.counts())).expect("counters");
    witness
}

/// Checks that the two agree, on so many connections that sent a SYN or answered one, and so many that did not.
fn check(host: &Host, watch: &Watch, witness: &mut Witness, sent: u64, unsent: u64) {
    let counts = witness.observe(|| Ok(watch.counts())).expect("counters");
    assert_eq!(counts.of(host.netns, Counter::Unsent), unsent);
    assert_eq!(counts.sent(host.netns), sent);
    assert_eq!(witness.witnessed(host.netns, sent), Some(sent));
}

#[test]
fn the_kernels_own_counters_and_the_hook_agree_whatever_becomes_of_a_connection() {
    let host = Host::new();
    let (listener, to) = host.listen("127.0.0.1");
    // Before the programs: the baseline.
    drop((
        host.dial(to).expect("a connection"),
        listener.accept().expect("a connection"),
    ));
    let watch = Watch::on(&host);
    let mut witness = witness_of(&host, &watch);
    check(&host, &watch, &mut witness, 0, 0);

    // Established, both ends.
    drop((
        host.dial(to).expect("a connection"),
        listener.accept().expect("a connection"),
    ));
    check(&host, &watch, &mut witness, 2, 0);
    // Refused: one end.
    let nobody: SocketAddr = "127.0.0.1:9".parse().expect("an address");
    host.dial(nobody).expect_err("nobody listens");
    check(&host, &watch, &mut witness, 3, 0);
    // Never accepted.
    let client = host.dial(to).expect("a connection");
    drop(listener);
    drop(client);
    check(&host, &watch, &mut witness, 5, 0);
    // No route: an attempt that the kernel does not count, nor do we as one that sent a SYN.
    let nowhere: SocketAddr = "192.0.2.1:80".parse().expect("an address");
    host.dial(nowhere).expect_err("no route");
    check(&host, &watch, &mut witness, 5, 1);
}

#[test]
fn an_end_without_a_beginning_tells_that_the_beginning_was_missed() {
    let host = Host::new();
    let (listener, to) = host.listen("127.0.0.1");
    let connect = || {
        let client = host.dial(to).expect("a connection");
        (client, listener.accept().expect("a connection"))
    };
    let (old, missed) = (connect(), connect());
    let watch = Watch::on(&host);
    // Older than the programs, and gone before there was a survey.
    drop(old);
    watch.wait_until(|counts| counts.of(host.netns, Counter::Unseen) == 2);
    // No survey was made, so the other one has no record, just as if its beginning had not been shown to the programs.
    watch.call_surveyed(&host);
    assert_eq!(watch.counts().overlooked.get(&host.netns), Some(&0));
    drop((connect(), missed));
    watch.wait_until(|counts| counts.of(host.netns, Counter::Unseen) == 4);
    assert_eq!(watch.counts().overlooked.get(&host.netns), Some(&2));
}

#[test]
fn ends_of_old_connections_without_room_in_the_table_are_not_beginnings_that_were_missed() {
    let host = Host::new();
    let (listener, to) = host.listen("127.0.0.1");
    let old: Vec<_> = (0..20)
        .map(|_| {
            let client = host.dial(to).expect("a connection");
            (client, listener.accept().expect("a connection"))
        })
        .collect();
    let mut watch = Watch::with(Options {
        only_netns: Some(host.netns),
        connections: 8,
        ..Options::default()
    });
    let (_, found) = watch.seed(&host);
    assert_eq!(found.connections + found.untracked, 40, "{found:?}");
    assert!(found.untracked >= 24, "16 places: {found:?}");
    // Or the ends of the others would be taken for what was missed.
    assert!(found.surveyed.is_empty(), "{found:?}");
    drop(old);
    watch.wait_until(|counts| counts.of(host.netns, Counter::Closed) == found.connections as u64);
    watch.wait_until(|counts| counts.of(host.netns, Counter::Unseen) == found.untracked as u64);
}

#[test]
fn an_attempt_without_a_free_port_is_counted_apart() {
    let host = Host::new();
    host.sysctl("ipv4/ip_local_port_range", "40000 40003");
    let (_listener, to) = host.listen("127.0.0.1");
    let watch = Watch::on(&host);
    let mut witness = witness_of(&host, &watch);
    let (mut held, mut failed) = (Vec::new(), 0);
    for _ in 0..10 {
        match host.dial(to) {
            Ok(stream) => held.push(stream),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
                failed += 1;
            }
        }
    }
    assert!(failed > 0 && !held.is_empty(), "{failed} of 10 failed");
    check(&host, &watch, &mut witness, 2 * held.len() as u64, failed);
}

#[test]
fn the_witness_is_exact_once_a_crowd_has_passed() {
    static ATTACHED: AtomicBool = AtomicBool::new(false);
    let host = Host::new();
    let (listener, to) = host.listen("127.0.0.1");
    let crowd = host.run(move || {
        let server = thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                drop(stream);
            }
        });
        let clients: Vec<_> = (0..4)
            .map(|_| {
                thread::spawn(move || {
                    // Loading takes seconds on some machines: slowly, or the ports are used up by then.
                    while !ATTACHED.load(Ordering::Acquire) {
                        drop(TcpStream::connect(to).expect("a connection"));
                        thread::sleep(Duration::from_millis(2));
                    }
                    (0..1_000).all(|_| TcpStream::connect(to).is_ok())
                })
            })
            .collect();
        (server, clients)
    });
    // The programs are attached, and the baseline is taken, in the middle of it.
    let watch = Watch::on(&host);
    let mut witness = witness_of(&host, &watch);
    ATTACHED.store(true, Ordering::Release);
    for client in crowd.1 {
        assert!(client.join().expect("a client"), "it had all its connections");
        witness.observe(|| Ok(watch.counts())).expect("counters");
    }
    // The last passive ends come about after their clients' connect() returned.
    thread::sleep(Duration::from_millis(50));
    let counts = witness.observe(|| Ok(watch.counts())).expect("counters");
    assert!(counts.sent(host.netns) > 100, "{counts:?}");
    // What the hook missed, the witness did not: of all the machine's events, so many at most are opens of this host.
    let sent = counts.sent(host.netns);
    let witnessed = witness.witnessed(host.netns, sent).expect("it can be read");
    assert!(
        (sent..=sent + counts.missed).contains(&witnessed),
        "{witnessed} witnessed, {counts:?}"
    );
}

/// A namespace that only its name keeps, removed when the test ends.
struct Named(String);

impl Named {
    fn new() -> Self {
        let name = format!("holdfast-witness-{}", std::process::id());
        Self::ip(&["netns", "add", &name]);
        Self(name)
    }

    fn ip(arguments: &[&str]) {
        let status = Command::new("ip")
            .args(arguments)
            .status()
            .expect("the command ip");
        assert!(status.success(), "ip {arguments:?}");
    }

    fn inode(&self) -> u32 {
        let metadata = fs::metadata(Path::new("/run/netns").join(&self.0)).expect("it is mounted");
        metadata.ino() as u32
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

#[test]
fn a_namespace_without_any_task_is_read_from_inside() {
    let named = Named::new();
    Named::ip(&["netns", "exec", &named.0, "ip", "link", "set", "lo", "up"]);
    let connect = "import socket\ns = socket.create_server(('127.0.0.1', 0))\nc = socket.create_connection(s.getsockname())";
    Named::ip(&["netns", "exec", &named.0, "python3", "-c", connect]);
    let mut places = Places::new(Path::new("/proc"));
    let opens = places.opens(&BTreeSet::from([named.inode()]), Duration::ZERO);
    assert_eq!(opens, BTreeMap::from([(named.inode(), 2)]));
    // The test's own threads are where they were.
    let here = fs::metadata("/proc/self/ns/net").expect("/proc").ino();
    assert_eq!(
        fs::metadata("/proc/thread-self/ns/net").expect("/proc").ino(),
        here
    );
}
