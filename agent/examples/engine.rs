//! The load engine by itself, without a collector and without probes, and targets for it: what `cargo xtask bench load`
//! measures. Prints one JSON object.

use std::{
    collections::VecDeque,
    fs,
    io::Write,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use hdrhistogram::Histogram;
use holdfast_agent::load::{
    http::{Http, Version},
    outcome::{Answer, Outcome},
    plan::{Arrivals, Close, Plan, Stage},
    run::{Caps, End, generate, prepare},
    tally::Tally,
    worker::{Shared, monotonic_ns},
};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::{
    buffer::spare_capacity,
    event::epoll,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, listen, recv, send,
        socket_with, sockopt,
    },
    process::{Resource, getrlimit, setrlimit},
};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make load, and say what it took
    Tcp(Tcp),
    /// Send requests, and say what it took
    Http {
        /// For each request a connection of its own
        #[arg(long)]
        close: bool,
        #[command(flatten)]
        load: Tcp,
    },
    /// Answer requests without a body with a fixed answer, until killed; says `ready` once it does
    Serve {
        address: SocketAddr,
        /// Each with a listener of its own
        #[arg(long, default_value_t = 1)]
        threads: u32,
    },
    /// Send requests by io_uring and take any bytes for an answer: what a client of that kind costs at least
    Ask {
        target: SocketAddr,
        /// In all, each with one request at a time
        #[arg(long, default_value_t = 64)]
        connections: usize,
        #[arg(long, default_value_t = 2)]
        threads: usize,
        /// How long, in milliseconds
        #[arg(long, default_value_t = 1_000)]
        millis: u64,
    },
    /// Accept connections until killed, and close them once others have come; says `ready` once it does
    Accept {
        address: SocketAddr,
        /// Each with a listener of its own
        #[arg(long, default_value_t = 1)]
        threads: u32,
        /// Keep what was accepted, instead of closing it
        #[arg(long)]
        keep: bool,
    },
    /// Accept connections and keep them, more than there may be open files, until killed; says `ready` once it does
    Keep { address: SocketAddr },
}

#[derive(clap::Args)]
struct Tcp {
    target: SocketAddr,
    /// So many, as fast as possible, and then held
    #[arg(long)]
    count: Option<u64>,
    /// So many a second
    #[arg(long)]
    rate: Option<f64>,
    /// So many at once, the next as soon as one is done
    #[arg(long)]
    concurrency: Option<u64>,
    /// How long, in milliseconds
    #[arg(long, default_value_t = 1_000)]
    millis: u64,
    /// How long connections are held, in milliseconds
    #[arg(long, default_value_t = 0)]
    hold: u64,
    /// Generator threads [default: as many as the engine takes]
    #[arg(long)]
    threads: Option<u64>,
    #[arg(long)]
    source: Vec<IpAddr>,
}

const UNBOUNDED: Caps = Caps {
    per_second: f64::MAX,
    bytes: u64::MAX,
    cpus: f64::MAX,
    duration: Duration::MAX,
};

fn main() -> anyhow::Result<()> {
    // What the agent's unit asks for.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).context("the limit of open files")?;
    match Arguments::parse().command {
        Command::Tcp(tcp) => make(tcp, None),
        Command::Http { close, load } => {
            let http = get(load.target, !close, load.concurrency.unwrap_or(100));
            make(load, Some(http))
        }
        Command::Serve { address, threads } => serve(address, threads),
        Command::Ask {
            target,
            connections,
            threads,
            millis,
        } => ask(target, connections, threads, Duration::from_millis(millis)),
        Command::Accept {
            address,
            threads,
            keep,
        } => accept(address, threads, keep),
        Command::Keep { address } => keep(address),
    }
}

fn get(target: SocketAddr, keep_alive: bool, connections: u64) -> Http {
    Http {
        version: Version::Http1,
        tls: None,
        method: "GET".into(),
        authority: target.to_string(),
        path: "/".into(),
        fields: vec![],
        body: vec![],
        keep_alive,
        streams: 1,
        connections,
        statuses: vec![(200, 200)],
        wanted: vec![],
    }
}

fn make(tcp: Tcp, http: Option<Http>) -> anyhow::Result<()> {
    let duration = Duration::from_millis(tcp.millis);
    let arrivals = match (tcp.count, tcp.rate, tcp.concurrency) {
        (Some(connections), None, None) => Arrivals::Count {
            connections,
            pause: Duration::ZERO,
        },
        (None, Some(rate), None) => Arrivals::Stages(vec![Stage {
            from_per_second: rate,
            to_per_second: rate,
            duration,
        }]),
        (None, None, Some(concurrency)) => Arrivals::Closed {
            concurrency,
            duration,
        },
        _ => anyhow::bail!("one of --count, --rate and --concurrency"),
    };
    let plan = Plan {
        targets: vec![tcp.target],
        arrivals,
        first: 0,
        step: 1,
        hold: Duration::from_millis(tcp.hold),
        timeout: Duration::from_secs(5),
        payload: None,
        http,
        udp: None,
        close: Close::Reset,
        sources: tcp.source,
    };
    let mut prepared = prepare(plan.check()?)?;
    if let Some(threads) = tcp.threads {
        prepared.threads = threads;
    }
    let resident_before = resident_bytes()?;
    let shared = Arc::new(Shared::default());
    let mut sum = Tally::default();
    let mut last = None;
    let mut most_resident = 0;
    generate(
        &prepared,
        UNBOUNDED,
        monotonic_ns() + 5_000_000,
        Duration::from_millis(500),
        &shared,
        |report| {
            most_resident = most_resident.max(resident_bytes().unwrap_or(0));
            sum.add(&report.tally);
            last = Some(report);
        },
    )?;
    let last = last.context("no report")?;
    if !matches!(last.end, Some(End::Finished)) {
        anyhow::bail!("the load ended before its time: {:?}", last.end);
    }
    let outcomes: serde_json::Map<_, _> = Outcome::ALL
        .iter()
        .map(|outcome| (format!("{outcome:?}"), sum.count(*outcome).into()))
        .collect();
    let quantiles = |times: &Histogram<u64>| {
        serde_json::json!({
            "p50_ns": times.value_at_quantile(0.5),
            "p99_ns": times.value_at_quantile(0.99),
            "max_ns": times.max(),
        })
    };
    let result = serde_json::json!({
        "started": sum.started,
        "requests": sum.requests,
        "answered": sum.answers[Answer::Expected as usize],
        "outcomes": outcomes,
        "closed": sum.closed,
        "lost": sum.losses.iter().sum::<u64>(),
        "elapsed_ns": last.elapsed.as_nanos() as u64,
        "cpu_ns": last.cpu.as_nanos() as u64,
        "most_open": last.most_open,
        "resident_before": resident_before,
        "resident_held": most_resident,
        "late": sum.late,
        "lateness": quantiles(&sum.lateness),
        "connect": quantiles(&sum.connect),
        "dial": quantiles(&sum.dial),
        "network": quantiles(&sum.network),
        "request": quantiles(&sum.request),
        "response": quantiles(&sum.exchange),
        "threads": prepared.threads,
    });
    println!("{result}");
    Ok(())
}

/// Memory of this process, in bytes.
fn resident_bytes() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(pages.context("/proc/self/statm")? * rustix::param::page_size() as u64)
}

/// How often the target looks for connections. One that waited for them would be woken for each by the generator's own
/// thread, which on a virtual machine costs more than the connection.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What a thread of the target keeps before it closes the oldest: by then the generator has, whose resets leave nothing. A target
/// that closed first would have its own TIME_WAITs.
const KEPT: usize = 1_024;

fn accept(address: SocketAddr, threads: u32, keep: bool) -> anyhow::Result<()> {
    ensure!(threads > 0, "no thread accepts nothing");
    let listeners: Vec<OwnedFd> = (0..threads)
        .map(|_| listener(address))
        .collect::<rustix::io::Result<_>>()
        .with_context(|| format!("cannot listen on {address}"))?;
    for listener in &listeners {
        rustix::io::ioctl_fionbio(listener, true)?;
    }
    println!("ready");
    std::io::stdout().flush()?;
    let serving: Vec<_> = listeners
        .into_iter()
        .map(|listener| {
            thread::spawn(move || {
                let mut kept = VecDeque::new();
                loop {
                    match accept_with(&listener, SocketFlags::CLOEXEC) {
                        Ok(socket) => {
                            kept.push_back(socket);
                            if !keep && kept.len() > KEPT {
                                kept.pop_front();
                            }
                        }
                        // Or it was reset in the queue, or there is no file for it: the next one may do.
                        Err(_) => thread::sleep(BETWEEN_LOOKS),
                    }
                }
            })
        })
        .collect();
    for thread in serving {
        let _ = thread.join();
    }
    Ok(())
}

/// Accepts that wait at once. A multishot one would do, but when its table is full it accepts one more and closes it.
const WAITING: u32 = 16;

/// Accepts into the tables of rings, one after the other: what lies there is no open file.
#[allow(unsafe_code)]
fn keep(address: SocketAddr) -> anyhow::Result<()> {
    let listener = listener(address).with_context(|| format!("cannot listen on {address}"))?;
    let listener = types::Fd(listener.as_raw_fd());
    let places = getrlimit(Resource::Nofile)
        .current
        .unwrap_or(1 << 15)
        .min(1 << 15) as u32;
    println!("ready");
    std::io::stdout().flush()?;
    let mut full = Vec::new();
    loop {
        let mut ring: IoUring = IoUring::new(WAITING)?;
        ring.submitter().register_files_sparse(places)?;
        let (mut free, mut kept, mut waiting): (Vec<u32>, _, _) = ((0..places).collect(), 0, 0);
        while kept < places {
            while waiting < WAITING
                && let Some(place) = free.pop()
            {
                let slot = types::DestinationSlot::try_from_slot_target(place).expect("a place of the table");
                let accept = opcode::Accept::new(listener, std::ptr::null_mut(), std::ptr::null_mut())
                    .file_index(Some(slot))
                    .build()
                    .user_data(place.into());
                // SAFETY: it has no address, and the listener lives as long as this process.
                unsafe { ring.submission().push(&accept)? };
                waiting += 1;
            }
            ring.submit_and_wait(1)?;
            for entry in ring.completion() {
                waiting -= 1;
                match entry.result() {
                    0 => kept += 1,
                    // It was reset in the queue.
                    _ => free.push(entry.user_data() as u32),
                }
            }
        }
        full.push(ring);
    }
}

/// What every request is answered with. ab speaks HTTP/1.0, and wants to be told that the connection stays.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nServer: engine\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nConnection: keep-alive\r\n\r\nHello, world!";
const LAST_ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: engine\r\nContent-Type: text/plain\r\nContent-Length: 13\r\nConnection: close\r\n\r\nHello, world!";

/// The same answer to all, by epoll: as little as a server can do, so that the clients are what is measured.
fn serve(address: SocketAddr, threads: u32) -> anyhow::Result<()> {
    let listeners: Vec<OwnedFd> = (0..threads)
        .map(|_| listener(address))
        .collect::<rustix::io::Result<_>>()
        .with_context(|| format!("cannot listen on {address}"))?;
    println!("ready");
    std::io::stdout().flush()?;
    let serving: Vec<_> = listeners
        .into_iter()
        .map(|listener| thread::spawn(move || answer_all(&listener)))
        .collect();
    for thread in serving {
        match thread.join() {
            Ok(served) => served?,
            Err(_) => anyhow::bail!("a thread panicked"),
        }
    }
    Ok(())
}

fn answer_all(listener: &OwnedFd) -> anyhow::Result<()> {
    const LISTENER: u64 = u64::MAX;
    rustix::io::ioctl_fionbio(listener, true)?;
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(
        &epoll,
        listener,
        epoll::EventData::new_u64(LISTENER),
        epoll::EventFlags::IN,
    )?;
    let mut connections: Vec<Option<OwnedFd>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut events = Vec::with_capacity(256);
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events.drain(..) {
            let data = event.data.u64();
            if data == LISTENER {
                while let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                    let place = free.pop().unwrap_or_else(|| {
                        connections.push(None);
                        connections.len() - 1
                    });
                    sockopt::set_tcp_nodelay(&socket, true)?;
                    let data = epoll::EventData::new_u64(place as u64);
                    epoll::add(&epoll, &socket, data, epoll::EventFlags::IN)?;
                    connections[place] = Some(socket);
                }
                continue;
            }
            let place = data as usize;
            let Some(socket) = &connections[place] else {
                continue;
            };
            buffer.clear();
            let is_over = match recv(socket, spare_capacity(&mut buffer), RecvFlags::empty()) {
                Ok((0, _)) => true,
                Ok(_) => {
                    // A request of a benchmark comes in one piece.
                    let is_last = has(&buffer, b"onnection: close")
                        || has(&buffer, b" HTTP/1.0\r\n") && !has(&buffer, b"eep-");
                    let answer = if is_last { LAST_ANSWER } else { ANSWER };
                    let requests = buffer.windows(4).filter(|end| end == b"\r\n\r\n").count();
                    let sent =
                        (0..requests).try_for_each(|_| send(socket, answer, SendFlags::NOSIGNAL).map(drop));
                    is_last || sent.is_err()
                }
                Err(Errno::AGAIN | Errno::INTR) => false,
                Err(_) => true,
            };
            if is_over {
                connections[place] = None;
                free.push(place);
            }
        }
    }
}

/// Two entries of a ring for each request and one call for all that are due, and nobody reads what comes: what is left of a client if
/// its calls are taken away.
fn ask(target: SocketAddr, connections: usize, threads: usize, time: Duration) -> anyhow::Result<()> {
    ensure!(
        (1..=connections).contains(&threads),
        "--threads: at least 1, and a connection for each"
    );
    let asking: Vec<_> = (0..threads)
        .map(|thread| {
            let own = connections / threads + usize::from(thread < connections % threads);
            thread::spawn(move || ask_alone(target, own, time))
        })
        .collect();
    let mut answered = 0;
    for thread in asking {
        match thread.join() {
            Ok(counted) => answered += counted?,
            Err(_) => anyhow::bail!("a thread panicked"),
        }
    }
    println!("{{\"answered\": {answered}}}");
    Ok(())
}

/// Answers that came.
#[allow(unsafe_code)]
fn ask_alone(target: SocketAddr, connections: usize, time: Duration) -> anyhow::Result<u64> {
    /// An entry that sends; it says nothing unless it fails.
    const SENT: u64 = u64::MAX;
    let request: &str = format!("GET / HTTP/1.1\r\nHost: {target}\r\n\r\n").leak();
    let buffers = vec![[0u8; 4096]; connections].leak();
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(2 * connections as u32)?;
    let sockets: Vec<TcpStream> = (0..connections)
        .map(|_| {
            let socket = TcpStream::connect(target)?;
            socket.set_nodelay(true)?;
            Ok(socket)
        })
        .collect::<std::io::Result<_>>()
        .with_context(|| format!("cannot connect to {target}"))?;
    let files: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    ring.submitter().register_files(&files)?;
    let mut due: Vec<usize> = (0..connections).collect();
    let (mut answered, end) = (0, Instant::now() + time);
    while Instant::now() < end {
        for place in due.drain(..) {
            let socket = types::Fixed(place as u32);
            let buffer = &mut buffers[place];
            let send = opcode::Send::new(socket, request.as_ptr(), request.len() as u32)
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(SENT);
            let receive = opcode::Recv::new(socket, buffer.as_mut_ptr(), buffer.len() as u32)
                .build()
                .user_data(place as u64);
            // SAFETY: the request and the buffers are never freed, and a buffer is given again only once it was answered into.
            unsafe { ring.submission().push_multiple(&[send, receive])? };
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            ensure!(entry.user_data() != SENT, "a send failed: {}", entry.result());
            ensure!(
                entry.result() > 0,
                "the server closed a connection: {}",
                entry.result()
            );
            answered += 1;
            due.push(entry.user_data() as usize);
        }
    }
    Ok(answered)
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

fn listener(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let listener = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&listener, true)?;
    sockopt::set_socket_reuseport(&listener, true)?;
    bind(&listener, &address)?;
    listen(&listener, 65_535)?;
    Ok(listener)
}
