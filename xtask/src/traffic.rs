//! `cargo xtask traffic` (hidden): real TCP traffic for `up` to show. Each kind runs in a thread of its own, whose
//! name is what the kernel reports as the process's command.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How long a server waits for a request, and a client for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A request or an answer of ours is smaller.
const MESSAGE_BYTES: usize = 1024;
/// The pause between attempts that fail on purpose, and between polite requests.
const PAUSE: Duration = Duration::from_secs(1);
/// How often the load catches up with its rate.
const LOAD_TICK: Duration = Duration::from_millis(5);

/// Make traffic until killed.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Answer HTTP requests here
    #[arg(long)]
    serve: Vec<SocketAddr>,
    /// Ask this HTTP server once a second
    #[arg(long)]
    fetch: Vec<SocketAddr>,
    /// Connect where nobody listens, once a second
    #[arg(long)]
    refused: Vec<SocketAddr>,
    /// Connect where nobody answers, again and again
    #[arg(long)]
    silent: Vec<SocketAddr>,
    /// Ask this HTTP server at the rate of --rate
    #[arg(long)]
    load: Vec<SocketAddr>,
    /// Connections a second for each --load
    #[arg(long, default_value_t = 1000)]
    rate: u32,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let rate = arguments.rate;
    // Everyone must find the listeners.
    for &address in &arguments.serve {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        spawn("http-server", move || serve(&listener))?;
    }
    for &address in &arguments.fetch {
        spawn("http-client", move || repeat(PAUSE, || fetch(address)))?;
    }
    // Where nobody answers, the kernel gives up by itself; nothing here decides the outcome.
    for (name, addresses) in [
        ("refused-client", &arguments.refused),
        ("silent-client", &arguments.silent),
    ] {
        for &address in addresses {
            spawn(name, move || {
                repeat(PAUSE, || TcpStream::connect(address).map(drop))
            })?;
        }
    }
    for &address in &arguments.load {
        spawn("load-client", move || load(address, rate))?;
    }
    loop {
        thread::park();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .with_context(|| format!("cannot start {name}"))?;
    Ok(())
}

fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        // A client that fails is the client's affair; the next one is served.
        let _ = stream.and_then(answer);
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    // To its end: closing with a part of it unread would reset the connection.
    let mut request = Vec::with_capacity(MESSAGE_BYTES);
    while !request.ends_with(b"\r\n\r\n") {
        let mut part = [0; MESSAGE_BYTES];
        match stream.read(&mut part)? {
            0 => return Ok(()),
            _ if request.len() > MESSAGE_BYTES => return Err(io::ErrorKind::InvalidData.into()),
            bytes => request.extend(&part[..bytes]),
        }
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\nholds\n")
}

fn fetch(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::with_capacity(MESSAGE_BYTES);
    stream.read_to_end(&mut answer).map(drop)
}

fn repeat(pause: Duration, attempt: impl Fn() -> io::Result<()>) -> ! {
    loop {
        // First, so that the listeners of other processes are up.
        thread::sleep(pause);
        // Failing is what some of them are for.
        let _ = attempt();
    }
}

/// Keeps to the rate on average: what a slow moment left out follows at once.
fn load(address: SocketAddr, rate: u32) -> ! {
    let started = Instant::now();
    let mut made = 0_u64;
    loop {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while made < due {
            let _ = fetch(address);
            made += 1;
        }
        thread::sleep(LOAD_TICK);
    }
}
