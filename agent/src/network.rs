//! Trouble that belongs to no connection of this node: what the kernel counts of its network namespaces (full queues,
//! resets) and of their peers (resets, what was sent again, what a filter dropped). A thread of its own looks every
//! second, says what changed at once and everything from time to time; each look is a batch of a stream of its own.

mod readings;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context;
use holdfast_agent_ebpf::peer::{PeerKey, TROUBLES};
use holdfast_proto::v1::{Namespace, NamespaceRows, Peer, PeerRows, Stream, batch};

use self::readings::{Reader, Reading};
use crate::{
    clock::Moment,
    open::LOOK,
    probes::{Peers, ProbeError},
    seal::Sealer,
    spool::Spool,
    wire,
    witness::{places::Places, visitor::Visitor},
};

/// How often is looked.
const TICK: Duration = Duration::from_secs(1);

/// Reading all namespaces takes one part in so many of the time at most: on a node of hundreds it is done less often.
const READING_PART: u32 = 200;

/// Namespaces and peers of one batch at most, so that it fits.
const ROWS: usize = 8_192;

/// A map of peers that is fuller than this is looked at as often as everything else, because each peer costs two system
/// calls; and peers that were quiet for so long then give their places away.
const CROWDED: usize = 1_000;
const QUIET: Duration = Duration::from_secs(600);

/// What the queues of a namespace's listeners turned away since it began, of all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    /// TcpExt ListenOverflows.
    pub overflows: u64,
    /// TcpExt ListenDrops.
    pub drops: u64,
}

/// The same by namespace, as it was read last: at most a look ago. Without those that cannot be read.
pub type QueuesByNetns = Arc<Mutex<BTreeMap<u32, Queues>>>;

/// The thread that looks, for as long as it is not stopped.
pub struct Network {
    thread: JoinHandle<()>,
    stop: std::sync::mpsc::Sender<()>,
}

impl Network {
    /// Starts the thread. `alarm` is set when a listener of a namespace turned somebody away; `queues` has how many it were.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(
        peers: Peers,
        only_netns: Option<u32>,
        alarm: Arc<AtomicBool>,
        queues: QueuesByNetns,
        mut sealer: Sealer,
        spool: Arc<Spool>,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = std::sync::mpsc::channel();
        let mut troubles = Troubles::new(peers);
        let thread = thread::Builder::new()
            .name("network".into())
            .spawn(move || {
                let started = Instant::now();
                let reader = Visitor::new()
                    .inspect_err(|error| tracing::warn!("network namespaces are not looked at: {error}"))
                    .map(Reader::new)
                    .ok();
                let mut namespaces = Namespaces::new(only_netns, reader);
                let mut is_stopped = false;
                while !is_stopped {
                    is_stopped =
                        stopped.recv_timeout(TICK) != Err(std::sync::mpsc::RecvTimeoutError::Timeout);
                    let now = started.elapsed();
                    let look = namespaces.look(now, is_stopped);
                    if look.is_new {
                        let read = &namespaces.last;
                        let read = read.iter().map(|(&netns, reading)| (netns, reading.queues()));
                        *queues.lock().unwrap_or_else(PoisonError::into_inner) = read.collect();
                    }
                    if look.turned_away {
                        alarm.store(true, Ordering::Release);
                    }
                    let at = Moment::now();
                    let of_namespaces = (!look.rows.is_empty()).then(|| {
                        let rows = NamespaceRows {
                            observed_at_ns: at.wall_ns(),
                            namespaces: look.rows,
                        };
                        (
                            Stream::Namespaces,
                            rows.namespaces.len(),
                            batch::Columns::Namespaces(rows),
                        )
                    });
                    let of_peers = match troubles.look(now, at, is_stopped) {
                        Ok(rows) => {
                            rows.map(|rows| (Stream::Peers, rows.peers.len(), batch::Columns::Peers(rows)))
                        }
                        Err(error) => {
                            tracing::warn!("no trouble by peer: {:#}", anyhow::Error::new(error));
                            None
                        }
                    };
                    for (stream, rows, columns) in of_namespaces.into_iter().chain(of_peers) {
                        let sealed = sealer.seal(stream, rows, at, columns);
                        spool.append_new(sealed);
                    }
                }
            })
            .context("cannot start the thread that looks at the network namespaces")?;
        Ok(Self { thread, stop })
    }

    /// Ends the thread after a last look.
    pub fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!(
                "the thread that looks at the network namespaces panicked: nothing of it is reported any more"
            );
        }
    }
}

/// The namespaces, and what was read of them last.
struct Namespaces {
    places: Places,
    /// `None`: where this thread is cannot be told, so nothing is read.
    reader: Option<Reader>,
    only_netns: Option<u32>,
    last: BTreeMap<u32, Reading>,
    next_reading: Duration,
    next_report: Duration,
}

/// What a look at the namespaces found.
#[derive(Default)]
struct Look {
    rows: Vec<Namespace>,
    /// They were read.
    is_new: bool,
    /// A listener turned somebody away since the look before.
    turned_away: bool,
}

impl Namespaces {
    /// The reader is of the thread that looks.
    fn new(only_netns: Option<u32>, reader: Option<Reader>) -> Self {
        Self {
            places: Places::new(Path::new("/proc")),
            reader,
            only_netns,
            last: BTreeMap::new(),
            next_reading: Duration::ZERO,
            next_report: Duration::ZERO,
        }
    }

    /// All of them if it is time to say so, else those that changed; nothing while it is too early to read again.
    fn look(&mut self, now: Duration, is_last: bool) -> Look {
        if now < self.next_reading && !is_last {
            return Look::default();
        }
        let began = Instant::now();
        let is_report = now >= self.next_report || is_last;
        if is_report {
            self.next_report = now + LOOK;
            self.places.search(&BTreeSet::from_iter(self.only_netns), now);
        }
        let mut wanted = self.places.paths();
        wanted.retain(|netns, _| self.only_netns.is_none_or(|only| only == *netns));
        let present = self
            .reader
            .as_mut()
            .map_or_else(BTreeMap::new, |reader| reader.read_all(&wanted));
        self.next_reading = now + (began.elapsed() * READING_PART).clamp(TICK, LOOK) - TICK / 2;
        let mut look = Look {
            is_new: true,
            ..Look::default()
        };
        for (&netns, reading) in &present {
            let before = self.last.get(&netns);
            look.turned_away |= before.is_some_and(|before| before.listen_drops < reading.listen_drops);
            let is_news = before.is_some_and(|before| before.is_in_less_trouble_than(reading));
            if (is_report || is_news) && look.rows.len() < ROWS {
                look.rows.push(reading.row(netns));
            }
        }
        self.last = present;
        look
    }
}

/// What was counted of the peers, and what was said of it.
struct Troubles {
    peers: Peers,
    known: BTreeMap<PeerKeyWords, Known>,
    others: [u64; TROUBLES],
    said: Moment,
    next_look: Duration,
}

/// A [`PeerKey`] that can be put in order.
type PeerKeyWords = [u32; 6];

/// Of one peer: what was said, and when it last changed.
struct Known {
    counts: [u64; TROUBLES],
    changed: Duration,
}

impl Troubles {
    fn new(peers: Peers) -> Self {
        Self {
            peers,
            known: BTreeMap::new(),
            others: [0; TROUBLES],
            said: Moment::now(),
            next_look: Duration::ZERO,
        }
    }

    /// What was counted since the last time that there was something.
    fn look(&mut self, now: Duration, at: Moment, is_last: bool) -> Result<Option<PeerRows>, ProbeError> {
        if now < self.next_look && !is_last {
            return Ok(None);
        }
        let mut rows = Vec::new();
        let (peers, known) = (&self.peers, &mut self.known);
        peers.each(|key, counts| {
            let entry = known.entry(key.words()).or_insert(Known {
                counts: [0; TROUBLES],
                changed: now,
            });
            if entry.counts != counts && rows.len() < ROWS {
                rows.push(row(key, difference(counts, entry.counts)));
                *entry = Known { counts, changed: now };
            }
        })?;
        let others = self.peers.others()?;
        if others != self.others {
            let nobody = PeerKey::from_words([0; 6]);
            rows.push(row(nobody, difference(others, self.others)));
            self.others = others;
        }
        if self.known.len() > CROWDED {
            self.next_look = now + LOOK;
            let (peers, known) = (&mut self.peers, &mut self.known);
            // One that comes back at this very moment may lose a count: it is a statistic, not a row of the ledger.
            known.retain(|key, entry| {
                let stays = now.saturating_sub(entry.changed) < QUIET;
                if !stays {
                    peers.forget(PeerKey::from_words(*key));
                }
                stays
            });
        }
        let began = std::mem::replace(&mut self.said, at);
        Ok((!rows.is_empty()).then_some(PeerRows {
            began_ns: at.wall_ns_of(began),
            ended_ns: at.wall_ns(),
            peers: rows,
        }))
    }
}

fn difference(after: [u64; TROUBLES], before: [u64; TROUBLES]) -> [u64; TROUBLES] {
    std::array::from_fn(|which| after[which].saturating_sub(before[which]))
}

fn row(key: PeerKey, counts: [u64; TROUBLES]) -> Peer {
    let [
        resets_sent,
        resets_received,
        retransmits,
        syn_retransmits,
        syn_ack_retransmits,
        filtered,
    ] = counts;
    Peer {
        netns: key.netns,
        address: wire::mapped(&key.address, key.family as u8).to_vec().into(),
        port: key.port.into(),
        resets_sent,
        resets_received,
        retransmits,
        syn_retransmits,
        syn_ack_retransmits,
        filtered,
    }
}
