//! Every way in which an attempt or a connection ends, made for real, each with its own outcome.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use holdfast_agent::outcome::{Resets, resets};
use holdfast_agent_ebpf::{
    event::state::{CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_RECV, SYN_SENT},
    peer::Trouble,
};
use holdfast_proto::v1::{CloseReason, LocalCause, Outcome};

use crate::{
    host::Host,
    watch::{Watch, check, check_cause, states},
};

/// A host whose packets to 192.0.2.0/24 vanish without a word, and the router that swallows them.
pub(crate) fn host_before_a_black_hole() -> (Host, Host) {
    let (host, router) = (Host::new(), Host::new());
    host.connect(&router);
    host.ip("route add default via 10.0.0.2");
    router.sysctl("ipv4/ip_forward", "1");
    router.ip("route add blackhole 192.0.2.0/24");
    (host, router)
}

pub(crate) const IN_THE_HOLE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 80);

/// A socket on which connect() was called and has not ended.
fn start_to_connect(host: &Host, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else {
        panic!("an IPv4 address")
    };
    host.run(move || {
        // SAFETY: plain system calls; the descriptor is owned from here on, the address lives through the call.
        unsafe {
            let fd = libc::socket(
                libc::AF_INET,
                libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                0,
            );
            let socket = OwnedFd::from_raw_fd(fd);
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*to.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            let size = size_of::<libc::sockaddr_in>() as u32;
            assert_eq!(
                libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size),
                -1
            );
            assert_eq!(
                std::io::Error::last_os_error().raw_os_error(),
                Some(libc::EINPROGRESS)
            );
            TcpStream::from(socket)
        }
    })
}

/// Makes close() send a reset.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option's value is a linger, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn a_finished_connection_has_its_path_and_payload_on_both_ends() {
    for address in ["127.0.0.1", "::1"] {
        let host = Host::new();
        let mut watch = Watch::on(&host);
        let (listener, to) = host.listen(address);
        let mut client = host.dial(to).expect("a connection");
        let (mut server, from) = listener.accept().expect("a connection");
        client.write_all(b"twelve bytes").expect("sent");
        server.read_exact(&mut [0; 12]).expect("received");
        server.write_all(b"four").expect("sent");
        client.read_exact(&mut [0; 4]).expect("received");
        drop(client);
        assert_eq!(server.read(&mut [0; 1]).expect("the end"), 0);
        drop(server);

        let (active, passive) = watch.both_ends();
        check(&active, (Outcome::Established, CloseReason::Finished));
        check(&passive, (Outcome::Established, CloseReason::Finished));
        assert_eq!(
            states(&active),
            [SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE]
        );
        assert_eq!(
            states(&passive),
            [SYN_RECV, ESTABLISHED, CLOSE_WAIT, LAST_ACK, CLOSE]
        );
        assert_eq!((active.local_port, active.remote_port), (from.port(), to.port()));
        assert_eq!(
            (passive.local_port, passive.remote_port),
            (to.port(), from.port())
        );
        assert_eq!(active.local_address, passive.remote_address);
        assert_eq!(active.netns, host.netns);
        assert_ne!(active.cookie, 0);
        assert_ne!(active.cookie, passive.cookie);
        // The peer's FIN comes after the active end's socket is gone, and into the passive one.
        let payload = |record: &holdfast_agent_ebpf::event::ConnectionRecord| {
            let fin = u64::from(record.flags & holdfast_agent_ebpf::event::flag::FIN_RECEIVED != 0);
            (
                record.bytes_sent - record.bytes_retransmitted,
                record.bytes_received - fin,
            )
        };
        assert_eq!((payload(&active), payload(&passive)), ((12, 4), (4, 12)));
    }
}

#[test]
fn payload_is_right_when_the_peer_closes_first_and_when_half_closed() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let mut client = host.dial(to).expect("a connection");
    let (mut server, _) = listener.accept().expect("a connection");
    client.write_all(b"abc").expect("sent");
    client.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(server.read_to_end(&mut Vec::new()).expect("received"), 3);
    server.write_all(b"defgh").expect("sent");
    drop(server);
    assert_eq!(client.read_to_end(&mut Vec::new()).expect("received"), 5);
    drop(client);

    let (active, passive) = watch.both_ends();
    let received = |record: &holdfast_agent_ebpf::event::ConnectionRecord| {
        record.bytes_received - u64::from(record.flags & holdfast_agent_ebpf::event::flag::FIN_RECEIVED != 0)
    };
    assert_eq!((received(&active), received(&passive)), (5, 3));
    check(&active, (Outcome::Established, CloseReason::Finished));
}

#[test]
fn a_closed_port_is_refused() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let error = host
        .dial("127.0.0.1:9".parse().expect("an address"))
        .expect_err("nobody listens");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    let record = watch.only();
    check(&record, (Outcome::Refused, CloseReason::None));
    check_cause(&record, LocalCause::RefusedByPeer);
    assert_eq!(resets(&record), RECEIVED);
    assert_eq!(states(&record), [SYN_SENT, CLOSE]);
    assert_eq!(record.remote_port, 9);
}

#[test]
fn a_refusal_by_an_icmp_message_is_no_refusal_by_the_peer() {
    let (host, _router) = host_before_a_black_hole();
    let mut watch = Watch::on(&host);
    let socket = start_to_connect(&host, IN_THE_HOLE);
    host.run(move || {
        let from = socket.local_addr().expect("an address");
        // As a firewall that rejects says it, which need not be the peer.
        inject_port_unreachable(from, IN_THE_HOLE, sequence(&socket));
        drop(socket);
    });
    let record = watch.only();
    check(&record, (Outcome::Refused, CloseReason::None));
    check_cause(&record, LocalCause::IcmpPortUnreachable);
}

#[test]
fn the_kernel_gives_up_on_dropped_packets_and_it_is_a_timeout() {
    let (host, _router) = host_before_a_black_hole();
    host.sysctl("ipv4/tcp_syn_retries", "1");
    let mut watch = Watch::on(&host);
    let error = host.dial(IN_THE_HOLE).expect_err("no answer");
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    let record = watch.only();
    check(&record, (Outcome::TimedOut, CloseReason::None));
    check_cause(&record, LocalCause::NoAnswer);
    // How often it tries also depends on tcp_syn_linear_timeouts, which older kernels lack.
    assert!(record.syn_retransmits >= 1);
}

#[test]
fn a_process_that_gives_up_on_unanswered_syns_timed_out() {
    let (host, _router) = host_before_a_black_hole();
    let mut watch = Watch::on(&host);
    let limit = Duration::from_millis(1_300);
    host.run(move || TcpStream::connect_timeout(&IN_THE_HOLE, limit))
        .expect_err("no answer");
    let record = watch.only();
    check(&record, (Outcome::TimedOut, CloseReason::None));
    assert_eq!((record.error, record.syn_retransmits), (0, 1));
}

#[test]
fn a_process_that_closes_while_connecting_aborted() {
    let (host, _router) = host_before_a_black_hole();
    let mut watch = Watch::on(&host);
    drop(start_to_connect(&host, IN_THE_HOLE));
    let record = watch.only();
    check(&record, (Outcome::Aborted, CloseReason::None));
    check_cause(&record, LocalCause::ProcessGaveUp);
}

#[test]
fn a_router_without_a_route_makes_it_unreachable() {
    let (host, router) = (Host::new(), Host::new());
    host.connect(&router);
    host.ip("route add default via 10.0.0.2");
    router.sysctl("ipv4/ip_forward", "1");
    router.ip("route add unreachable 192.0.2.0/24");
    let mut watch = Watch::on(&host);
    let error = host
        .dial("192.0.2.1:80".parse().expect("an address"))
        .expect_err("no route");
    assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH));
    let record = watch.only();
    check(&record, (Outcome::Unreachable, CloseReason::None));
    check_cause(&record, LocalCause::HostUnreachable);
    assert_eq!(states(&record), [SYN_SENT, CLOSE]);
}

#[test]
fn a_reset_in_the_handshake_is_no_refusal() {
    let (host, router) = host_before_a_black_hole();
    let mut watch = Watch::on(&host);
    // The router speaks for the peer: it answers the SYN with a SYN, as in a simultaneous open, and then with a reset.
    let socket = start_to_connect(&host, IN_THE_HOLE);
    let from = host.run({
        let socket = socket.try_clone().expect("a descriptor");
        move || socket.local_addr().expect("an address")
    });
    router.run(move || {
        inject(IN_THE_HOLE, from, 1_000, 0, SYN);
        inject(IN_THE_HOLE, from, 1_001, 0, RST);
    });
    let record = watch.only();
    check(&record, (Outcome::Reset, CloseReason::None));
    check_cause(&record, LocalCause::ResetByPeer);
    assert_eq!(states(&record), [SYN_SENT, SYN_RECV, CLOSE]);
    drop(socket);
}

#[test]
fn a_reset_ends_an_established_connection_and_both_ends_say_who_did_it() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let (server, _) = listener.accept().expect("a connection");
    reset_on_close(&server);
    drop(server);
    thread::sleep(Duration::from_millis(20));
    drop(client);

    let (active, passive) = watch.both_ends();
    check(&active, (Outcome::Established, CloseReason::ResetByPeer));
    check(&passive, (Outcome::Established, CloseReason::ResetByProcess));
    check_cause(&active, LocalCause::ResetByPeer);
    check_cause(&passive, LocalCause::None);
    assert_eq!((resets(&active), resets(&passive)), (RECEIVED, SENT));
}

const NO_RESET: Resets = Resets {
    sent: false,
    received: false,
};
const SENT: Resets = Resets {
    sent: true,
    received: false,
};
const RECEIVED: Resets = Resets {
    sent: false,
    received: true,
};

#[test]
fn a_reset_that_answers_a_segment_is_noted_at_the_attempt_that_goes_on() {
    let (host, router) = host_before_a_black_hole();
    let mut watch = Watch::on(&host);
    let socket = start_to_connect(&host, IN_THE_HOLE);
    let from = host.run({
        let socket = socket.try_clone().expect("a descriptor");
        move || socket.local_addr().expect("an address")
    });
    // It acknowledges what was never sent (tcp_rcv_synsent_state_process(), net/ipv4/tcp_input.c).
    router.run(move || inject(IN_THE_HOLE, from, 1_000, 1, SYN | ACK));
    let sent = |watch: &Watch| {
        let mut sent = 0;
        let each = |_, counts: [u64; _]| sent += counts[Trouble::ResetsSent as usize];
        watch.peers.each(each).expect("the map of peers");
        sent
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while sent(&watch) == 0 {
        assert!(Instant::now() < deadline, "no reset");
        thread::sleep(Duration::from_millis(5));
    }
    drop(socket);
    let record = watch.only();
    assert_eq!(record.steps().len(), 2, "it went on");
    assert_eq!(resets(&record), SENT);
}

#[test]
fn a_process_that_does_not_read_everything_sends_a_reset() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let mut client = host.dial(to).expect("a connection");
    let (server, _) = listener.accept().expect("a connection");
    client.write_all(b"unread").expect("sent");
    server.peek(&mut [0; 6]).expect("it is there");
    drop(server);
    assert!(client.read(&mut [0; 1]).is_err(), "reset");
    drop(client);
    let (active, passive) = watch.both_ends();
    assert_eq!((resets(&active), resets(&passive)), (RECEIVED, SENT));
}

#[test]
fn an_end_that_nobody_cut_short_has_no_resets() {
    let host = Host::new();
    let mut watch = Watch::on(&host);
    let (listener, to) = host.listen("127.0.0.1");
    let client = host.dial(to).expect("a connection");
    let (mut server, _) = listener.accept().expect("a connection");
    drop(client);
    assert_eq!(server.read(&mut [0; 1]).expect("the end"), 0);
    drop(server);
    let (active, passive) = watch.both_ends();
    assert_eq!((resets(&active), resets(&passive)), (NO_RESET, NO_RESET));
}

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Sends one TCP segment as if it came from `from`, by a raw socket.
fn inject(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledgement: u32, flags: u8) {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (from, to) else {
        panic!("IPv4 addresses")
    };
    let mut segment = Vec::with_capacity(20);
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    // A header of five words, the flags, a window of 64 KiB, the checksum, no urgent pointer.
    segment.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut summed = [from.ip().octets(), to.ip().octets()].concat();
    summed.extend([0, libc::IPPROTO_TCP as u8, 0, segment.len() as u8]);
    summed.extend(&segment);
    segment[16..18].copy_from_slice(&(!ones_complement(&summed)).to_be_bytes());

    let mut packet = ipv4_header(from, to, libc::IPPROTO_TCP, segment.len());
    packet.extend(segment);
    send_raw(to, &packet);
}

/// An IPv4 header for so many bytes; the kernel fills in the rest.
fn ipv4_header(from: SocketAddrV4, to: SocketAddrV4, protocol: i32, payload_bytes: usize) -> Vec<u8> {
    let mut header = vec![
        0x45,
        0,
        0,
        20 + payload_bytes as u8,
        0,
        0,
        0,
        0,
        64,
        protocol as u8,
        0,
        0,
    ];
    header.extend(from.ip().octets());
    header.extend(to.ip().octets());
    header
}

/// The next sequence number that a socket sends with, as those read it who move connections between machines.
fn sequence(stream: &TcpStream) -> u32 {
    const TCP_SEND_QUEUE: i32 = 2;
    let set = |option, value: i32| {
        // SAFETY: the option's value is an integer, which lives through the call.
        let result = unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                option,
                (&raw const value).cast(),
                size_of::<i32>() as u32,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    set(libc::TCP_REPAIR, 1);
    set(libc::TCP_REPAIR_QUEUE, TCP_SEND_QUEUE);
    let (mut next, mut size) = (0_u32, size_of::<u32>() as u32);
    // SAFETY: both places live through the call, and the first has the size that the second says.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUEUE_SEQ,
            (&raw mut next).cast(),
            &raw mut size,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // Off again, without the probe that would go out with it.
    set(libc::TCP_REPAIR, -1);
    next
}

/// Tells the host that its SYN found no port, by an ICMP message that quotes the SYN.
fn inject_port_unreachable(host: SocketAddr, asked: SocketAddr, next_sequence: u32) {
    const DESTINATION_UNREACHABLE: u8 = 3;
    const PORT_UNREACHABLE: u8 = 3;
    let (SocketAddr::V4(host), SocketAddr::V4(asked)) = (host, asked) else {
        panic!("IPv4 addresses")
    };
    let mut message = vec![DESTINATION_UNREACHABLE, PORT_UNREACHABLE, 0, 0, 0, 0, 0, 0];
    message.extend(ipv4_header(host, asked, libc::IPPROTO_TCP, 20));
    // Its ports and its sequence number, which the kernel compares with what it sent.
    message.extend(host.port().to_be_bytes());
    message.extend(asked.port().to_be_bytes());
    message.extend(next_sequence.wrapping_sub(1).to_be_bytes());
    let sum = ones_complement(&message);
    message[2..4].copy_from_slice(&(!sum).to_be_bytes());
    let mut packet = ipv4_header(asked, host, libc::IPPROTO_ICMP, message.len());
    packet.extend(message);
    send_raw(host, &packet);
}

/// The sum of the checksums of the Internet.
fn ones_complement(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn send_raw(to: SocketAddrV4, packet: &[u8]) {
    // SAFETY: plain system calls; the address and the packet live through them.
    unsafe {
        let fd = libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_RAW,
        );
        assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
        let socket = OwnedFd::from_raw_fd(fd);
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr {
                s_addr: u32::from(*to.ip()).to_be(),
            },
            sin_zero: [0; 8],
        };
        let sent = libc::sendto(
            socket.as_raw_fd(),
            packet.as_ptr().cast(),
            packet.len(),
            0,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        );
        assert_eq!(sent, packet.len() as isize, "{}", std::io::Error::last_os_error());
    }
}
