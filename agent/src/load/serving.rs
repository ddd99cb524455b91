//! This node as a target of others: takes connections of a run and sends back what comes, on a thread of its own, for as long as
//! the run is wanted.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::time::ClockId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, oneshot},
    time::sleep,
};

use super::{
    consent::{Consent, Refused},
    run::{Caps, Recent},
    worker::{monotonic_ns, nanoseconds},
};

/// A run may take so long to begin, and may not be heard of for so long while it lasts, in nanoseconds.
const UNTIL_BEGUN_NS: u64 = 30_000_000_000;
const SILENCE_NS: u64 = 2_000_000_000;

/// How often that is looked at, and the thread's CPU time. Generators of the run look at this every 200 ms.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// What the generators beside it do not end in so many looks after a cap was reached is ended here: nobody else may be there to do so.
const LOOKS_BEYOND: u32 = 30;

/// What was done for others so far.
#[derive(Debug, Default)]
pub struct Served {
    /// Payload, both ways.
    bytes: AtomicU64,
    /// Of the thread, in nanoseconds, when it was looked at last.
    cpu_ns: AtomicU64,
}

impl Served {
    /// Bytes of payload, and CPU time.
    pub fn so_far(&self) -> (u64, Duration) {
        (
            self.bytes.load(Ordering::Relaxed),
            Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed)),
        )
    }
}

/// Connections are taken until this is dropped.
#[derive(Debug)]
pub struct Serving {
    pub run_id: String,
    pub address: SocketAddr,
    /// Until when it is wanted, by the monotonic clock.
    until_ns: Arc<AtomicU64>,
    pub served: Arc<Served>,
    _end: oneshot::Sender<()>,
}

impl Serving {
    /// Takes connections at `wanted`, if this node allows load on itself there, and at most as many at once as it allows; the others wait
    /// in the kernel's queue.
    ///
    /// # Errors
    /// If it cannot; says what to do.
    pub fn begin(run_id: &str, wanted: SocketAddr, consent: &Consent) -> Result<Self, String> {
        // All addresses at once are more than any that is allowed: at [::] the kernel takes what comes over IPv4 too (net.ipv6.bindv6only).
        if wanted.ip().to_canonical().is_unspecified() {
            return Err(format!(
                "others cannot be sent to {wanted}: an address of this node has to be named, and its configuration allows load on that or not"
            ));
        }
        let of_others = |refused: Refused| format!("others would load this node: {refused}");
        // Nobody takes a port of this node that its configuration does not give.
        if wanted.port() != 0 {
            consent.check_target(wanted).map_err(of_others)?;
        }
        let cannot = |error: std::io::Error| {
            format!(
                "cannot take connections at {wanted}: {error}; the address has to be one of this node and the port free, see \
                 holdfast load mesh --port"
            )
        };
        let listener = TcpListener::bind(wanted).map_err(cannot)?;
        listener.set_nonblocking(true).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        if wanted.port() == 0 {
            consent.check_any_port(address).map_err(|refused| {
                format!(
                    "{}; or name a port that is allowed, see holdfast load mesh --port",
                    of_others(refused)
                )
            })?;
        }
        let until_ns = Arc::new(AtomicU64::new(monotonic_ns() + UNTIL_BEGUN_NS));
        let (end, ended) = oneshot::channel();
        let served = Arc::<Served>::default();
        let (until, caps, counted) = (Arc::clone(&until_ns), consent.caps, Arc::clone(&served));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(cannot)?;
        let most = usize::try_from(consent.connections)
            .unwrap_or(usize::MAX)
            .min(Semaphore::MAX_PERMITS);
        thread::Builder::new()
            .name("load-serve".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = ended => {}
                        () = unwanted(&until) => {}
                        () = beyond(caps, &counted) => {}
                        () = take(listener, most, &counted) => {}
                    }
                });
            })
            .map_err(cannot)?;
        Ok(Self {
            run_id: run_id.to_owned(),
            address,
            until_ns,
            served,
            _end: end,
        })
    }

    /// Whether it is not over yet, by the time that it is wanted for.
    pub fn is_taking(&self) -> bool {
        monotonic_ns() < self.until_ns.load(Ordering::Relaxed)
    }

    /// The run is still wanted.
    pub fn is_wanted(&self) {
        self.until_ns
            .store(monotonic_ns() + SILENCE_NS, Ordering::Relaxed);
    }
}

async fn unwanted(until_ns: &AtomicU64) {
    while monotonic_ns() < until_ns.load(Ordering::Relaxed) {
        sleep(LOOK).await;
    }
}

/// Keeps account of what is served, until a cap was reached and nobody has ended the run for it.
async fn beyond(caps: Caps, served: &Served) {
    let (mut recent, begun_ns, mut looks_left) = (Recent::default(), monotonic_ns(), LOOKS_BEYOND);
    let mut is_beyond = false;
    while looks_left > 0 {
        sleep(LOOK).await;
        served
            .cpu_ns
            .store(nanoseconds(ClockId::ThreadCPUTime), Ordering::Relaxed);
        let (bytes, cpu) = served.so_far();
        let elapsed = Duration::from_nanos(monotonic_ns() - begun_ns);
        is_beyond |= bytes > caps.bytes || recent.cpus(elapsed, elapsed, cpu) > caps.cpus;
        looks_left -= u32::from(is_beyond);
    }
}

async fn take(listener: TcpListener, most: usize, served: &Arc<Served>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let room = Arc::new(Semaphore::new(most));
    loop {
        // It is never closed.
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        // One that was reset in the queue, or for which there is no file: the next one may do.
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = Arc::clone(served);
                tokio::spawn(async move {
                    echo(stream, &served).await;
                    drop(place);
                });
            }
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

/// Sends back what comes until the peer closes.
async fn echo(mut stream: TcpStream, served: &Served) {
    let mut buffer = vec![0; 4096];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
        served.bytes.fetch_add(2 * bytes as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn what_comes_is_sent_back_until_the_run_ends() {
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let consent = Consent {
            targets: vec!["127.0.0.0/8".parse().expect("targets")],
            connections: 2,
            ..Consent::nothing()
        };
        let serving = Serving::begin("19ac", any, &consent).expect("a free port");
        let address = serving.address;
        let mut stream = TcpStream::connect(address).expect("taken");
        let mut echoed = [0; 5];
        stream.write_all(b"hello").expect("sent");
        stream.read_exact(&mut echoed).expect("sent back");
        assert_eq!(&echoed, b"hello");
        // Nobody else can have it.
        let taken = Serving::begin("19ad", address, &consent).expect_err("taken");
        assert!(taken.contains("--port"), "{taken}");
        drop(serving);
        // The connection ends with it.
        assert_eq!(stream.read(&mut echoed).unwrap_or(0), 0);
        // What is allowed of IPv6 is no consent to what comes over IPv4.
        let ipv6_only = Consent {
            targets: vec!["::/0".parse().expect("targets")],
            ..consent.clone()
        };
        for everywhere in [
            "[::]:0",
            "0.0.0.0:0",
            "[::ffff:0.0.0.0]:0",
            "[::ffff:127.0.0.1]:0",
        ] {
            let wanted = everywhere.parse().expect("an address");
            assert!(
                Serving::begin("19ad", wanted, &ipv6_only).is_err(),
                "{everywhere}"
            );
        }
        // Where it is not allowed nobody takes anything.
        let refused = |wanted: SocketAddr| {
            let nowhere = Consent {
                targets: vec!["127.0.0.0/8:1".parse().expect("targets")],
                ..consent.clone()
            };
            let refused = Serving::begin("19ae", wanted, &nowhere).expect_err("not allowed");
            assert!(refused.contains("--load-targets"), "{refused}");
            refused
        };
        let said = refused(address);
        assert!(
            said.contains(&format!("127.0.0.1/32:{}", address.port())),
            "{said}"
        );
        // A port that the kernel chose once would not be the one that it chooses next.
        let said = refused(any);
        assert!(!said.contains("127.0.0.1/32:"), "{said}");
        for part in ["127.0.0.0/8:1 127.0.0.1/32", "load mesh --port"] {
            assert!(said.contains(part), "{said}");
        }
    }
}
