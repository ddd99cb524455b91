//! What the programs count and whom they name, and that nothing escapes them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use holdfast_agent::probes::Options;
use holdfast_agent_ebpf::{
    counter::Counter,
    event::{attribution, role},
};

use crate::{host::Host, watch::Watch};

/// Opens and closes connections one after another, each finished before the next.
fn connections(host: &Host, count: usize) {
    let (listener, to) = host.listen("127.0.0.1");
    host.run(move || {
        for _ in 0..count {
            let client = TcpStream::connect(to).expect("a connection");
            let (mut server, _) = listener.accept().expect("a connection");
            drop(client);
            server.read_to_end(&mut Vec::new()).expect("the end");
        }
    });
}

#[test]
fn another_namespace_is_not_seen_but_counted() {
    let (observed, other) = (Host::new(), Host::new());
    let mut watch = Watch::on(&observed);
    let elsewhere_before = watch.counts().total(Counter::Elsewhere);
    connections(&other, 10);
    connections(&observed, 3);
    assert_eq!(watch.wait_for(6).len(), 6);
    assert!(watch.drain().iter().all(|record| record.netns == observed.netns));
    // At least: other tests and the rest of the machine go on.
    assert!(watch.counts().total(Counter::Elsewhere) >= elsewhere_before + 20);
    assert_eq!(watch.counts().total(Counter::Opened), 6);
}

#[test]
fn what_a_full_ring_loses_is_counted_to_the_event() {
    let host = Host::new();
    let mut watch = Watch::with(Options {
        only_netns: Some(host.netns),
        ring_bytes: 4096,
        ..Options::default()
    });
    connections(&host, 100);
    // Both ends of every connection were closed before connections() returned, but for the last FIN's way.
    thread::sleep(Duration::from_millis(50));
    let received = watch.drain().len() as u64;
    let counts = watch.counts();
    assert_eq!(counts.total(Counter::Closed), 200, "{counts:?} {}", host.netns);
    assert!(received > 0 && counts.total(Counter::Lost) > 0, "{counts:?}");
    assert_eq!(received + counts.total(Counter::Lost), 200);
}

#[test]
fn what_a_full_map_refuses_is_counted_as_untracked() {
    let host = Host::new();
    let mut watch = Watch::with(Options {
        only_netns: Some(host.netns),
        connections: 8,
        ..Options::default()
    });
    let (listener, to) = host.listen("127.0.0.1");
    let held: Vec<_> = (0..10)
        .map(|_| {
            (
                host.dial(to).expect("a connection"),
                listener.accept().expect("a connection"),
            )
        })
        .collect();
    let counts = watch.counts();
    let open = counts.total(Counter::Opened) - counts.total(Counter::Untracked);
    assert_eq!(counts.total(Counter::Opened), 20);
    // The kernel may keep a few entries more than asked for in its per-CPU free lists, but never fewer.
    assert!((8..20).contains(&open), "{open} of 20 were tracked");

    drop(held);
    watch.wait_for(open as usize);
    thread::sleep(Duration::from_millis(50));
    let counts = watch.counts();
    assert_eq!(counts.total(Counter::Closed), open);
    assert_eq!(
        counts.total(Counter::Opened),
        counts.total(Counter::Closed) + counts.total(Counter::Untracked)
    );
    // The untracked ones are seen again when they close, and not taken for anything else.
    assert_eq!(counts.total(Counter::Unseen), counts.total(Counter::Untracked));
}

#[test]
fn a_connection_older_than_the_programs_is_counted_as_unseen() {
    let host = Host::new();
    let (listener, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let server = listener.accept().expect("a connection");
    let mut watch = Watch::on(&host);
    drop((client, server));
    thread::sleep(Duration::from_millis(50));
    assert_eq!(watch.drain(), []);
    assert_eq!(watch.counts().total(Counter::Unseen), 2);
}

#[test]
fn a_socket_that_connects_twice_is_two_connections() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    host.run(move || {
        let stream = TcpStream::connect(to).expect("a connection");
        let address = libc::sockaddr {
            sa_family: libc::AF_UNSPEC as u16,
            sa_data: [0; 14],
        };
        // SAFETY: the address lives through the call. AF_UNSPEC dissolves the connection and keeps the socket.
        let result = unsafe {
            libc::connect(
                std::os::fd::AsRawFd::as_raw_fd(&stream),
                &raw const address,
                size_of::<libc::sockaddr>() as u32,
            )
        };
        assert_eq!(result, 0);
        let std::net::SocketAddr::V4(to) = to else {
            panic!("IPv4")
        };
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: to.port().to_be(),
            sin_addr: libc::in_addr {
                s_addr: u32::from(*to.ip()).to_be(),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: as above.
        let result = unsafe {
            libc::connect(
                std::os::fd::AsRawFd::as_raw_fd(&stream),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_in>() as u32,
            )
        };
        assert_eq!(result, 0);
        drop(stream);
        let mut accepted = 0;
        listener.set_nonblocking(true).expect("non-blocking");
        while accepted < 2 {
            if let Ok((stream, _)) = listener.accept() {
                drop(stream);
                accepted += 1;
            }
        }
    });
    let records = watch.wait_for(4);
    let active: Vec<_> = records
        .iter()
        .filter(|record| record.role == role::ACTIVE)
        .collect();
    assert_eq!(active.len(), 2, "{records:#?}");
    assert_eq!(active[0].cookie, active[1].cookie, "one socket");
    assert_ne!(active[0].opened_ns, active[1].opened_ns, "two connections");
}

#[test]
fn the_process_that_serves_is_named_not_the_one_that_listens() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    // A foreign program: it listens, forks, and the child accepts and closes.
    let server = host.run(|| {
        Command::new("python3")
            .args(["-c", FORKED_SERVER])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3")
    });
    let mut server = server;
    let mut reader = std::io::BufReader::new(server.stdout.take().expect("its output"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line).expect("a line");
    let (port, child) = line.trim().split_once(' ').expect("port and pid");
    let (port, child): (u16, u32) = (port.parse().expect("a port"), child.parse().expect("a pid"));

    let mut client = host.dial(([127, 0, 0, 1], port).into()).expect("a connection");
    client.write_all(b"x").expect("sent");
    client.read_to_end(&mut Vec::new()).expect("the end");
    drop(client);
    assert!(server.wait().expect("it ended").success());

    let (active, passive) = watch.both_ends();
    assert_eq!(
        (active.attribution, active.pid),
        (attribution::EXACT, std::process::id())
    );
    assert_eq!((passive.attribution, passive.pid), (attribution::EXACT, child));
    assert_eq!(&passive.comm[..7], b"python3");
}

const FORKED_SERVER: &str = "
import os, socket
listener = socket.create_server(('127.0.0.1', 0))
child = os.fork()
if child == 0:
    connection, _ = listener.accept()
    connection.recv(1)
    connection.close()
    os._exit(0)
print(listener.getsockname()[1], child, flush=True)
os.waitpid(child, 0)
";

#[test]
fn a_process_is_named_by_its_first_thread() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    // The host's thread has no name of its own; give it one, as runtimes do with their workers.
    host.run(move || {
        let name = c"a-worker";
        // SAFETY: the name is a C string, which lives through the call.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
        drop(TcpStream::connect(to).expect("a connection"));
    });
    drop(listener.accept().expect("a connection"));
    let (active, _) = watch.both_ends();
    let process = std::fs::read_to_string("/proc/self/comm").expect("the name of the first thread");
    let comm = String::from_utf8_lossy(&active.comm);
    assert_eq!(comm.trim_end_matches('\0'), process.trim());
}

#[test]
fn an_mptcp_connection_is_its_inner_tcp_connection_and_the_counters_agree() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let program = "
import socket
listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
listener.bind(('127.0.0.1', 0)); listener.listen()
client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
client.connect(listener.getsockname())
server, _ = listener.accept()
client.send(b'ping'); assert server.recv(4) == b'ping'
client.close(); server.recv(1); server.close(); listener.close()
";
    let output = host.run(move || {
        Command::new("python3")
            .args(["-c", program])
            .output()
            .expect("python3")
    });
    let error = String::from_utf8_lossy(&output.stderr);
    if error.contains("Protocol not available") || error.contains("Protocol not supported") {
        eprintln!("this kernel has no MPTCP: nothing to see");
        return;
    }
    assert!(output.status.success(), "{error}");
    let (active, passive) = watch.both_ends();
    assert_eq!(active.local_port, passive.remote_port);
    thread::sleep(Duration::from_millis(50));
    let counts = watch.counts();
    assert_eq!(
        (counts.total(Counter::Opened), counts.total(Counter::Closed)),
        (2, 2)
    );
    assert_eq!(counts.total(Counter::Lost), 0);
}
