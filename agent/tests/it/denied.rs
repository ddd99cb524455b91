//! connect() that fails before a SYN leaves: an attempt like any other, though no state of its socket tells of it.

use std::{
    io::{Error, ErrorKind},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use holdfast_agent::{
    probes::Options,
    syscalls::{Mode, kernel::Sizes},
};
use holdfast_agent_ebpf::{
    counter::Counter,
    event::{ConnectionRecord, attribution, flag, role, state},
};
use holdfast_proto::v1::{CloseReason, Outcome};

use crate::{
    host::Host,
    watch::{Watch, check, states},
};

/// One connect() of a socket that exists already; the errno, or zero.
pub(crate) fn connect(socket: &OwnedFd, to: SocketAddr) -> i32 {
    let (v4, v6);
    let (address, bytes): (*const libc::sockaddr, usize) = match to {
        SocketAddr::V4(to) => {
            v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(to.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            ((&raw const v4).cast(), size_of_val(&v4))
        }
        SocketAddr::V6(to) => {
            v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: to.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: to.ip().octets(),
                },
                sin6_scope_id: 0,
            };
            ((&raw const v6).cast(), size_of_val(&v6))
        }
    };
    // SAFETY: the address lives through the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), address, bytes as u32) };
    if result == 0 {
        0
    } else {
        Error::last_os_error().raw_os_error().unwrap_or(-1)
    }
}

/// A TCP socket that waits for nothing, or does.
pub(crate) fn socket(to: SocketAddr, flags: i32) -> OwnedFd {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: a plain system call; the descriptor is owned from here on.
    unsafe {
        let fd = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0);
        assert!(fd >= 0, "{}", Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// The ways to watch: without counting syscalls, with, and after both were switched.
const WAYS: [&[Mode]; 3] = [&[], &[Mode::Counts], &[Mode::Counts, Mode::Off]];

/// How often a test is tried when returns of calls were missed.
const ATTEMPTS: usize = 10;

/// Runs a test in every way to watch; once more if it fails and the kernel says that it started no program for some
/// returns: on kernels that preempt tasks in the program that sees them (docs/KERNELS.md), those of others are missed.
fn in_every_way(host: &Host, test: impl Fn(&mut Watch)) {
    for modes in WAYS {
        for attempt in 1..=ATTEMPTS {
            let mut watch = watch(host, modes);
            let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(&mut watch))) else {
                break;
            };
            let missed = watch.returns_missed();
            if missed == 0 || attempt == ATTEMPTS {
                resume_unwind(panic);
            }
            eprintln!("{missed} returns were missed: once more");
        }
    }
}

fn watch(host: &Host, modes: &[Mode]) -> Watch {
    let mut watch = Watch::with(Options {
        only_netns: Some(host.netns),
        syscalls: (!modes.is_empty()).then(Sizes::none),
        ..Options::default()
    });
    modes.iter().for_each(|&mode| watch.count_syscalls(mode));
    watch
}

fn check_denied(record: &ConnectionRecord, host: &Host, to: SocketAddr, errno: i32) {
    check(record, (Outcome::Unreachable, CloseReason::None));
    assert_eq!(states(record), [state::CLOSE]);
    assert_eq!(i32::from(record.error), errno);
    assert_eq!(record.flags, flag::FIRST | flag::FINAL | flag::UNSENT);
    assert_eq!((record.role, record.netns), (role::ACTIVE, host.netns));
    assert_eq!(
        (record.attribution, record.pid),
        (attribution::EXACT, std::process::id())
    );
    assert_eq!(record.remote_port, to.port());
    match to {
        SocketAddr::V4(to) => assert_eq!(
            (record.family, record.remote_address[0].to_ne_bytes()),
            (2, to.ip().octets())
        ),
        SocketAddr::V6(to) => {
            let words = record.remote_address.map(u32::to_ne_bytes);
            assert_eq!((record.family, words.concat()), (10, to.ip().octets().to_vec()));
        }
    }
}

#[test]
fn an_attempt_without_a_route_has_its_errno_its_process_and_whom_it_asked_for() {
    let host = Host::new();
    for (kind, range) in [
        ("prohibit", "198.51.100.0/26"),
        ("unreachable", "198.51.100.64/26"),
        ("blackhole", "198.51.100.128/26"),
    ] {
        host.ip(&format!("route add {kind} {range}"));
    }
    in_every_way(&host, |watch| {
        let cases = [
            ("192.0.2.1:80", libc::ENETUNREACH),
            ("[2001:db8::1]:443", libc::ENETUNREACH),
            ("198.51.100.1:80", libc::EACCES),
            ("198.51.100.65:80", libc::EHOSTUNREACH),
            ("198.51.100.129:80", libc::EINVAL),
            ("127.255.255.255:80", libc::ENETUNREACH),
        ];
        for (index, (to, errno)) in cases.into_iter().enumerate() {
            let to = address(to);
            let error = host.dial(to).expect_err("no way there");
            assert_eq!(error.raw_os_error(), Some(errno), "{to}");
            let records = watch.wait_for(index + 1);
            check_denied(&records[index], &host, to, errno);
        }
        let counts = watch.counts();
        for counter in [Counter::Opened, Counter::Closed, Counter::Unsent] {
            assert_eq!(counts.of(host.netns, counter), cases.len() as u64, "{counter:?}");
        }
        assert_eq!(counts.sent(host.netns), 0);
    });
}

#[test]
fn an_attempt_without_a_free_port_has_its_errno() {
    let host = Host::new();
    host.sysctl("ipv4/ip_local_port_range", "40000 40001");
    let (_listener, to) = host.listen("127.0.0.1");
    in_every_way(&host, |watch| {
        let held: Vec<_> = std::iter::from_fn(|| host.dial(to).ok()).collect();
        let record = watch.only();
        check(&record, (Outcome::Failed, CloseReason::None));
        assert_eq!(i32::from(record.error), libc::EADDRNOTAVAIL);
        assert_eq!(states(&record), [state::SYN_SENT, state::CLOSE]);
        assert_eq!(record.flags, flag::FIRST | flag::FINAL | flag::UNSENT);
        assert_eq!(
            (record.attribution, record.pid),
            (attribution::EXACT, std::process::id())
        );
        drop(held);
    });
}

#[test]
fn an_error_that_is_fetched_later_is_no_second_attempt() {
    let (host, router) = (Host::new(), Host::new());
    host.connect(&router);
    host.ip("route add default via 10.0.0.2");
    router.sysctl("ipv4/ip_forward", "1");
    router.ip("route add unreachable 192.0.2.0/24");
    in_every_way(&host, |watch| {
        for (index, (to, errno)) in [
            ("10.0.0.2:9", libc::ECONNREFUSED),
            ("192.0.2.1:80", libc::EHOSTUNREACH),
        ]
        .into_iter()
        .enumerate()
        {
            let to = address(to);
            let socket = host.run(move || socket(to, libc::SOCK_NONBLOCK));
            let attempt = host.run({
                let socket = socket.try_clone().expect("a descriptor");
                move || connect(&socket, to)
            });
            assert_eq!(attempt, libc::EINPROGRESS);
            let records = watch.wait_for(2 * index + 1);
            assert_eq!(i32::from(records[2 * index].error), errno);
            // The error is fetched; then the same socket goes nowhere in earnest.
            let nowhere = address("127.255.255.255:80");
            let (fetched, denied) = host.run(move || (connect(&socket, to), connect(&socket, nowhere)));
            assert_eq!((fetched, denied), (errno, libc::ENETUNREACH));
            let records = watch.wait_for(2 * index + 2);
            check_denied(&records[2 * index + 1], &host, nowhere, libc::ENETUNREACH);
        }
        assert_eq!(watch.drain().len(), 4);
    });
}

#[test]
fn what_is_no_attempt_of_tcp_is_none_here() {
    let host = Host::new();
    in_every_way(&host, |watch| {
        let (listener, to) = host.listen("127.0.0.1");
        host.run(move || {
            let udp = UdpSocket::bind("127.0.0.1:0").expect("a socket");
            assert!(udp.connect("192.0.2.1:53").is_err());
            let missing = std::os::unix::net::UnixStream::connect("/no/such/socket");
            assert_eq!(missing.expect_err("nobody").kind(), ErrorKind::NotFound);
            // Connected already, and no socket at all.
            let client = OwnedFd::from(TcpStream::connect(to).expect("a connection"));
            assert_eq!(connect(&client, to), libc::EISCONN);
            let file = OwnedFd::from(std::fs::File::open("/dev/null").expect("a file"));
            assert_eq!(connect(&file, to), libc::ENOTSOCK);
        });
        drop(listener);
        let (active, _) = watch.both_ends();
        assert_eq!(active.remote_port, to.port());
        assert_eq!(watch.counts().of(host.netns, Counter::Unsent), 0);
    });
}
