//! `cargo xtask strain` (hidden): the load of the torture, one process on each node. Real TCP connections to the node
//! itself and to the other nodes, at a steady rate, that end in every way: each side closes first, each side resets,
//! nobody listens, or both hold the connection for seconds.
//!
//! Everything is bounded: threads, sockets that are held, and how long anyone waits. What a cut link keeps from being
//! made in its time is left out, not made up for.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::sockopt::set_socket_linger;

use super::faults::Dice;

/// Where every node listens.
pub(super) const PORT: u16 = 9000;
/// Where nobody listens.
const CLOSED_PORT: u16 = 9001;
/// Threads that accept: one that talks to a node behind a cut link is stuck for [`PATIENCE`].
const ACCEPTORS: usize = 4;
/// How long anyone waits for the other side.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the rate is looked after.
const TICK: Duration = Duration::from_millis(5);
/// What may be made up for after a slow moment.
const ARREARS: Duration = Duration::from_millis(100);
/// Connections that each side holds at most, and how long: longer than most agents live.
const HELD: usize = 64;
const HOLD: Duration = Duration::from_secs(5);

/// Make connections until killed.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The other nodes
    #[arg(long)]
    peer: Vec<IpAddr>,
    /// Connections a second
    #[arg(long)]
    rate: u32,
    /// Determines what the connections are like
    #[arg(long)]
    seed: u64,
}

/// What the client asks of the server, as the byte that it sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    ServerCloses = b'S' as isize,
    ClientCloses = b'C' as isize,
    ServerResets = b'R' as isize,
    ClientResets = b'r' as isize,
    Held = b'H' as isize,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut listeners = Vec::new();
    for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::from((address, PORT));
        listeners.push(TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?);
    }
    let holder = hold();
    for _ in 0..ACCEPTORS {
        for listener in &listeners {
            let (listener, holder) = (listener.try_clone()?, holder.clone());
            spawn("strain-server", move || serve(&listener, &holder))?;
        }
    }
    let locals = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    // Each has a share of its own: what is cut off shall not slow down what is not.
    let groups = [&locals[..], &arguments.peer[..]];
    for (group, salt) in groups.into_iter().zip(1..).filter(|(group, _)| !group.is_empty()) {
        let (targets, holder) = (group.to_vec(), holder.clone());
        let (rate, dice) = (arguments.rate / 2, Dice::new(arguments.seed.wrapping_add(salt)));
        spawn("strain-client", move || strain(&targets, rate, dice, &holder))?;
    }
    loop {
        thread::park();
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.with_context(|| format!("cannot start {name}")).map(drop)
}

fn serve(listener: &TcpListener, holder: &SyncSender<TcpStream>) {
    for stream in listener.incoming() {
        // A client that is gone is its own affair.
        let _ = stream.and_then(|stream| answer(stream, holder));
    }
}

fn answer(mut stream: TcpStream, holder: &SyncSender<TcpStream>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut wish = [0; 1];
    stream.read_exact(&mut wish)?;
    stream.write_all(&wish)?;
    match wish[0] {
        wish if wish == Ending::ServerCloses as u8 => {}
        wish if wish == Ending::ServerResets as u8 => set_socket_linger(&stream, Some(Duration::ZERO))?,
        wish if wish == Ending::Held as u8 => {
            // Full: it is closed now.
            let _ = holder.try_send(stream);
        }
        _ => wait_for_end(&mut stream)?,
    }
    Ok(())
}

fn strain(targets: &[IpAddr], rate: u32, mut dice: Dice, holder: &SyncSender<TcpStream>) {
    let pause = Duration::from_secs(1) / rate.max(1);
    let mut due = Instant::now();
    loop {
        let now = Instant::now();
        due = due.max(now.checked_sub(ARREARS).unwrap_or(now));
        while due <= Instant::now() {
            let target = targets[dice.below(targets.len() as u64) as usize];
            // Most that fail are meant to.
            let _ = connect(target, dice.below(100), holder);
            due += pause;
        }
        thread::sleep(TICK);
    }
}

fn connect(target: IpAddr, draw: u64, holder: &SyncSender<TcpStream>) -> io::Result<()> {
    let ending = match draw {
        0..10 => return TcpStream::connect_timeout(&(target, CLOSED_PORT).into(), PATIENCE).map(drop),
        10..40 => Ending::ServerCloses,
        40..70 => Ending::ClientCloses,
        70..84 => Ending::ServerResets,
        84..98 => Ending::ClientResets,
        _ => Ending::Held,
    };
    let mut stream = TcpStream::connect_timeout(&(target, PORT).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[ending as u8])?;
    stream.read_exact(&mut [0])?;
    match ending {
        Ending::ServerCloses | Ending::ServerResets => wait_for_end(&mut stream)?,
        Ending::ClientCloses => {}
        Ending::ClientResets => set_socket_linger(&stream, Some(Duration::ZERO))?,
        Ending::Held => {
            let _ = holder.try_send(stream);
        }
    }
    Ok(())
}

fn wait_for_end(stream: &mut TcpStream) -> io::Result<()> {
    stream.read(&mut [0]).map(drop)
}

/// Keeps what it is given for [`HOLD`].
fn hold() -> SyncSender<TcpStream> {
    let (held, holding) = sync_channel(HELD);
    thread::spawn(move || release(&holding));
    held
}

fn release(holding: &Receiver<TcpStream>) {
    while let Ok(stream) = holding.recv() {
        // More come than are let go of, so the queue is full, and each waits for all before it.
        thread::sleep(HOLD / HELD as u32);
        drop(stream);
    }
}
