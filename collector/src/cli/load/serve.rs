//! `holdfast load serve`: a target to try load on, which takes as many connections as it is told, for as long.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use holdfast_proto::datagram::{self, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::ctrl_c;
use tokio::time::{Instant, interval, sleep, timeout_at};

use super::received::Listener;
use super::run::at_least_one;
use crate::cli::Failure;
use crate::config::Span;

/// Accept connections and send back what comes, as a target to try load on.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast load serve                                  echo on 127.0.0.1:8888
  holdfast load serve --udp --listen 0.0.0.0:5000      the other end of holdfast load udp
  holdfast load serve --accept 50 --lifetime 2s        the first 50 connections only, each for 2 seconds")]
pub(super) struct Args {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", allow_hyphen_values = true, default_value = "127.0.0.1:8888", value_parser = address)]
    listen: SocketAddr,

    /// Accept so many connections, and no more: the others wait in the kernel's queue [default: all]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one())]
    accept: Option<u64>,

    /// Close each connection after this time [default: when the peer does]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    lifetime: Option<Span>,

    /// Take datagrams instead: send back those that want to be, count those that do not, and tell who asks
    #[arg(long, conflicts_with_all = ["accept", "lifetime"])]
    udp: bool,

    /// How often there is a line
    #[arg(
        short,
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        default_value = "1s"
    )]
    interval: Span,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("`{text}` is no address to listen on; write IP:PORT with a port from 0 (any) to 65535")
    })
}

/// What was served.
#[derive(Default)]
struct Served {
    accepted: AtomicU64,
    open: AtomicU64,
}

/// Before accept() is tried again where it failed: a file is free when a connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// As long as nobody waits for.
const EVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if args.interval.0.is_zero() {
        return Err(Failure::Usage(anyhow!(
            "--interval 0s is no time between two lines: write more than 0, like 1s"
        )));
    }
    if args.udp {
        return datagrams(&args).await;
    }
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| Failure::Undone(anyhow!("cannot listen on {}: {error}", args.listen)))?;
    let address = listener.local_addr().unwrap_or(args.listen);
    crate::cli::tell(&format!("listening on {address}; Ctrl-C ends it"));
    let served = Arc::new(Served::default());
    let lifetime = args.lifetime.map_or(EVER, |span| span.0);
    let mut tick = interval(args.interval.0);
    let mut told = (u64::MAX, u64::MAX);
    // It was said already that something is lacking.
    let mut is_short = false;
    loop {
        let accepted = served.accepted.load(Ordering::Relaxed);
        let has_room = args.accept.is_none_or(|most| accepted < most);
        tokio::select! {
            _ = ctrl_c() => return Ok(()),
            taken = listener.accept(), if has_room => {
                let stream = match taken {
                    Ok((stream, _)) => stream,
                    // It was reset in the queue: the next one may do.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                    // It stays in the queue, so that the next call fails at once.
                    Err(error) => {
                        if !is_short {
                            crate::cli::tell(&format!(
                                "cannot accept, and tries again: {error}; those that come wait in the kernel's queue (ulimit -n \
                                 of this shell is the limit of open files)"
                            ));
                        }
                        is_short = true;
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                served.accepted.fetch_add(1, Ordering::Relaxed);
                served.open.fetch_add(1, Ordering::Relaxed);
                let served = served.clone();
                tokio::spawn(async move {
                    echo(stream, Instant::now() + lifetime).await;
                    served.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            _ = tick.tick() => {
                let now = (accepted, served.open.load(Ordering::Relaxed));
                if now != told {
                    told = now;
                    crate::cli::tell(&format!("accepted {}, open {}", now.0, now.1));
                }
            }
        }
    }
}

/// Senders whose counts are kept; the one that was heard of longest ago is forgotten for the next.
const SENDERS: usize = 10_000;

/// A sender, by its address and its own tag.
type Sender = (SocketAddr, u64);

async fn datagrams(args: &Args) -> Result<(), Failure> {
    let socket = UdpSocket::bind(args.listen)
        .await
        .map_err(|error| Failure::Undone(anyhow!("cannot listen on {}: {error}", args.listen)))?;
    let address = socket.local_addr().unwrap_or(args.listen);
    crate::cli::tell(&format!("listening on {address} for datagrams; Ctrl-C ends it"));
    let mut tick = interval(args.interval.0);
    let mut senders: HashMap<Sender, (Instant, Listener)> = HashMap::new();
    let (mut returned, mut counted, mut told) = (0_u64, 0_u64, (0, 0));
    let mut buffer = vec![0; 65_536];
    let began = Instant::now();
    loop {
        tokio::select! {
            _ = ctrl_c() => return Ok(()),
            // An error is of one that was sent: its receiver is gone.
            Ok((length, from)) = socket.recv_from(&mut buffer) => {
                let now = Instant::now();
                let bytes = &buffer[..length];
                match datagram::read(bytes) {
                    Some(one) if one.kind == Kind::OneWay => {
                        counted += 1;
                        let sender = (from, one.tag);
                        if !senders.contains_key(&sender) && senders.len() >= SENDERS {
                            forget_the_oldest(&mut senders);
                        }
                        let known = senders.entry(sender).or_insert_with(|| (now, Listener::default()));
                        known.0 = now;
                        known.1.take(one, (now - began).as_nanos() as u64);
                    }
                    Some(question) if question.kind == Kind::Question => {
                        let known = senders.get(&(from, question.tag));
                        let heard = known.map(|(_, listener)| listener.heard()).unwrap_or_default();
                        let _ = socket.send_to(&datagram::write_heard(question.tag, heard), from).await;
                    }
                    // Whatever else comes is sent back, as an echo server does.
                    _ => {
                        returned += 1;
                        let _ = socket.send_to(bytes, from).await;
                    }
                }
            }
            _ = tick.tick() => {
                if told != (returned, counted) {
                    told = (returned, counted);
                    crate::cli::tell(&format!("sent back {returned}, counted {counted} of {} senders", senders.len()));
                }
            }
        }
    }
}

fn forget_the_oldest(senders: &mut HashMap<Sender, (Instant, Listener)>) {
    let oldest = senders.iter().min_by_key(|(_, (heard, _))| *heard);
    if let Some(sender) = oldest.map(|(sender, _)| *sender) {
        senders.remove(&sender);
    }
}

/// Sends back what comes until the peer closes, or time is up.
async fn echo(mut stream: TcpStream, end: Instant) {
    let mut buffer = vec![0; 4096];
    let serve = async {
        while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(&buffer[..bytes]).await.is_err() {
                return;
            }
        }
    };
    let _ = timeout_at(end, serve).await;
}
