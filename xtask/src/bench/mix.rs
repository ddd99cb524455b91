//! `cargo xtask mix` (hidden): the varied traffic that `bench ingest` records. Servers and clients of a small shop,
//! each a process of its own, open real connections in this network namespace: short ones and kept ones, over IPv4 and
//! IPv6, from thousands of addresses, with bytes of all sizes, closed by either side, reset by either side, or refused.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::net::sockopt::{set_socket_linger, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::netns::Netns;
use crate::span;

/// Every address of these networks is this namespace's own.
const NETWORK: &str = "10.20.0.0/16";
const NETWORK_V6: &str = "fd20::/64";
/// One connection of so many goes over IPv6.
const V6_SHARE: u64 = 5;
/// A client waits so long between two conversations, on average.
const PAUSE: Duration = Duration::from_millis(3);
/// And between two requests of one.
const THINK: Duration = Duration::from_millis(2);
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Nobody listens there.
const CLOSED_PORT: u16 = 9100;
/// The lengths of the request and of the answer, and how the conversation goes on.
const HEAD_BYTES: usize = 9;

/// Make the traffic of several services and their clients.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long
    #[arg(long = "for", value_name = "TIME", value_parser = span::parse)]
    duration: Duration,

    /// Be only this one of the programs
    #[arg(long)]
    program: Option<String>,
}

struct Server {
    name: &'static str,
    /// The last part of its addresses.
    host: u16,
    port: u16,
    threads: u64,
    /// Bytes of its answers, from and to.
    answers: (u32, u32),
}

const SERVERS: [Server; 5] = [
    Server {
        name: "nginx",
        host: 10,
        port: 443,
        threads: 24,
        answers: (200, 200_000),
    },
    Server {
        name: "api",
        host: 11,
        port: 8080,
        threads: 24,
        answers: (100, 30_000),
    },
    Server {
        name: "auth",
        host: 12,
        port: 8443,
        threads: 12,
        answers: (60, 2_000),
    },
    Server {
        name: "postgres",
        host: 13,
        port: 5432,
        threads: 16,
        answers: (40, 60_000),
    },
    Server {
        name: "redis-server",
        host: 14,
        port: 6379,
        threads: 16,
        answers: (5, 2_000),
    },
];

struct Client {
    name: &'static str,
    threads: u64,
    /// It has so many addresses, from this one on in its networks.
    addresses: (u16, u16),
    /// Whom it talks to: indices of `SERVERS`. None: it asks where nobody listens.
    servers: &'static [usize],
}

const CLIENTS: [Client; 5] = [
    Client {
        name: "browser",
        threads: 32,
        addresses: (0x4000, 0x4000),
        servers: &[0],
    },
    Client {
        name: "gateway",
        threads: 16,
        addresses: (0x0100, 12),
        servers: &[1, 1, 2],
    },
    Client {
        name: "api-worker",
        threads: 20,
        addresses: (0x0200, 24),
        servers: &[3, 3, 4, 4, 4, 2],
    },
    Client {
        name: "cron",
        threads: 4,
        addresses: (0x0300, 2),
        servers: &[1, 3],
    },
    Client {
        name: "prober",
        threads: 4,
        addresses: (0x0400, 1),
        servers: &[],
    },
];

/// Makes a namespace what the traffic needs: the addresses, and no ports that are kept for a minute by the thousand.
pub(super) fn prepare(netns: &Netns) -> anyhow::Result<()> {
    netns.ip(&["route", "add", "local", NETWORK, "dev", "lo"])?;
    netns.ip(&["-6", "route", "add", "local", NETWORK_V6, "dev", "lo"])?;
    netns.set("net/ipv6/ip_nonlocal_bind", "1")?;
    netns.set("net/ipv4/ip_local_port_range", "16384 65000")?;
    netns.set("net/ipv4/tcp_max_tw_buckets", "20000")
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let until = Instant::now() + arguments.duration;
    match &arguments.program {
        Some(name) => be(name, until),
        None => start_all(arguments.duration),
    }
}

/// All programs, each in a process of its own.
fn start_all(duration: Duration) -> anyhow::Result<()> {
    let servers = SERVERS.iter().map(|server| server.name);
    let mut children = Vec::new();
    for name in servers.chain(CLIENTS.iter().map(|client| client.name)) {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([
            "mix",
            "--program",
            name,
            "--for",
            &format!("{}ms", duration.as_millis()),
        ]);
        children.push((
            name,
            command
                .stdin(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot start {name}"))?,
        ));
    }
    for (name, mut child) in children {
        let status = child.wait()?;
        ensure!(status.success(), "{name} failed ({status})");
    }
    Ok(())
}

/// One of the programs. Its threads have its name, which is what the kernel reports.
fn be(name: &str, until: Instant) -> anyhow::Result<()> {
    if let Some(server) = SERVERS.iter().find(|server| server.name == name) {
        for address in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let listener = listen((address, server.port).into())?;
            for thread in 0..server.threads {
                let (listener, numbers) = (listener.try_clone()?, Numbers::new(name, thread));
                spawn(name, move || serve(&listener, numbers))?;
            }
        }
    } else {
        let client = CLIENTS.iter().find(|client| client.name == name);
        let client = client.with_context(|| format!("there is no program {name}"))?;
        for thread in 0..client.threads {
            let numbers = Numbers::new(name, thread);
            spawn(name, move || use_servers(client, numbers))?;
        }
    }
    thread::sleep(until.saturating_duration_since(Instant::now()));
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work)?;
    Ok(())
}

/// The kernel takes ::1 and 127.0.0.1 for two: the IPv6 socket serves IPv6 only.
fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    bind(&socket, &address).with_context(|| format!("cannot listen on {address}"))?;
    rustix::net::listen(&socket, 512)?;
    Ok(socket.into())
}

fn serve(listener: &TcpListener, mut numbers: Numbers) {
    loop {
        // A client that fails is the client's affair; the next one is served.
        let _ = listener
            .accept()
            .and_then(|(stream, _)| answer(stream, &mut numbers));
    }
}

/// How a conversation goes on after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    ClientCloses,
    ServerCloses,
    ClientResets,
    ServerResets,
    /// The client says that it is done and reads to the end.
    ClientIsDone,
}

const THENS: [Then; 6] = [
    Then::GoOn,
    Then::ClientCloses,
    Then::ServerCloses,
    Then::ClientResets,
    Then::ServerResets,
    Then::ClientIsDone,
];

fn answer(mut stream: TcpStream, numbers: &mut Numbers) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let mut head = [0; HEAD_BYTES];
        stream.read_exact(&mut head)?;
        let length =
            |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        buffer.resize(length(0), 0);
        stream.read_exact(&mut buffer)?;
        if numbers.one_in(50) {
            thread::sleep(numbers.about(THINK));
        }
        buffer.resize(length(4), b'x');
        stream.write_all(&buffer)?;
        match THENS.get(usize::from(head[8])) {
            Some(Then::GoOn) => {}
            Some(Then::ServerResets) => return Ok(set_socket_linger(&stream, Some(Duration::ZERO))?),
            Some(Then::ServerCloses) => return Ok(()),
            // To the end that the client makes.
            _ => return wait_for_the_end(&mut stream),
        }
    }
}

fn wait_for_the_end(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

fn use_servers(client: &Client, mut numbers: Numbers) {
    loop {
        thread::sleep(numbers.about(PAUSE));
        // Failing is what some of them are for.
        let _ = converse(client, &mut numbers);
    }
}

/// One connection: connect, ask and be answered once or several times, and end it in one of the ways.
fn converse(client: &Client, numbers: &mut Numbers) -> io::Result<()> {
    let server = match client.servers {
        [] => &SERVERS[numbers.below(SERVERS.len() as u64) as usize],
        servers => &SERVERS[servers[numbers.below(servers.len() as u64) as usize]],
    };
    let port = if client.servers.is_empty() {
        CLOSED_PORT
    } else {
        server.port
    };
    let (first, count) = client.addresses;
    let source = first + numbers.below(count.into()) as u16;
    let v6 = numbers.one_in(V6_SHARE);
    let mut stream = dial(address(source, v6), (address(server.host, v6), port).into())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;

    let requests = if numbers.one_in(3) {
        2 + numbers.below(10)
    } else {
        1
    };
    let mut buffer = Vec::new();
    for request in 1..=requests {
        let then = if request < requests {
            Then::GoOn
        } else {
            numbers.ending()
        };
        let asked = numbers.between(40, 4_000);
        let answered = numbers.between(server.answers.0, server.answers.1);
        buffer.clear();
        buffer.extend(asked.to_be_bytes());
        buffer.extend(answered.to_be_bytes());
        buffer.push(THENS.iter().position(|one| *one == then).unwrap_or(0) as u8);
        buffer.resize(HEAD_BYTES + asked as usize, b'?');
        stream.write_all(&buffer)?;
        buffer.resize(answered as usize, 0);
        stream.read_exact(&mut buffer)?;
        match then {
            Then::GoOn => thread::sleep(numbers.about(THINK)),
            Then::ClientCloses => {}
            Then::ClientResets => set_socket_linger(&stream, Some(Duration::ZERO))?,
            Then::ClientIsDone => {
                stream.shutdown(Shutdown::Write)?;
                wait_for_the_end(&mut stream)?;
            }
            Then::ServerCloses | Then::ServerResets => {
                wait_for_the_end(&mut stream)?;
            }
        }
    }
    Ok(())
}

fn address(host: u16, v6: bool) -> IpAddr {
    let [high, low] = host.to_be_bytes();
    if v6 {
        Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, 0, host).into()
    } else {
        Ipv4Addr::new(10, 20, high, low).into()
    }
}

fn dial(source: IpAddr, target: SocketAddr) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::from((source, 0)))?;
    connect(&socket, &target)?;
    Ok(socket.into())
}

/// Random numbers, the same ones in every run (splitmix64).
struct Numbers(u64);

impl Numbers {
    /// Those of one thread of a program.
    fn new(program: &str, thread: u64) -> Self {
        let name = program
            .bytes()
            .fold(0_u64, |sum, byte| sum.rotate_left(8) ^ u64::from(byte));
        Self(name.wrapping_add(thread << 32))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Exponentially distributed around a mean, as times between independent events are.
    fn about(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.part()).ln())
    }

    /// Evenly distributed by order of magnitude, as lengths of messages are, more or less.
    fn between(&mut self, least: u32, most: u32) -> u32 {
        let (least, most) = (f64::from(least).ln(), f64::from(most).ln());
        (least + self.part() * (most - least)).exp() as u32
    }

    fn ending(&mut self) -> Then {
        match self.below(100) {
            0..50 => Then::ClientCloses,
            50..85 => Then::ServerCloses,
            85..92 => Then::ClientIsDone,
            92..97 => Then::ClientResets,
            _ => Then::ServerResets,
        }
    }
}
