//! Which agents are connected to this collector, one stream each, and how many may be.
//!
//! An agent that reconnects takes its own place over. What its former stream has in flight keeps its slots, which the
//! streams of an agent share: once all are free, nothing of the former stream is on its way to the store any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::agent::Agent;
use super::pace::Pace;
use super::{BATCHES_IN_FLIGHT, COUNTERS_A_SECOND, COUNTERS_AT_ONCE};
use crate::gather::room::Share;

/// Streams whose hello is read at once. The others wait, unread.
const LOBBY: usize = 64;

/// How long it is shown of an agent that another one with its id was turned away: longer than an agent waits before it tries
/// again.
const RIVAL_SHOWN: Duration = Duration::from_secs(120);

/// Streams for each agent that may be connected: its own, and one that is not noticed dead yet.
const STREAMS_PER_AGENT: usize = 2;

pub struct Registry {
    /// The connected agents, the slots of those that have left batches in flight, and the pace of those that reported
    /// much just now.
    agents: Mutex<HashMap<String, Entry>>,
    /// Streams, of agents or of who has not said so yet.
    streams: AtomicUsize,
    /// Held while a hello is read.
    pub(super) lobby: Semaphore,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            agents: Mutex::default(),
            streams: AtomicUsize::new(0),
            lobby: Semaphore::new(LOBBY),
        }
    }
}

/// A stream is open for as long as this lives.
pub struct OpenStream(Arc<Registry>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Entry {
    epoch: u64,
    node: String,
    remote: String,
    since: Instant,
    slots: Arc<Semaphore>,
    share: Arc<Share>,
    pace: Arc<Mutex<Pace>>,
    /// Alive for as long as the stream is.
    stream: Weak<()>,
    displace: watch::Sender<bool>,
    rival: Arc<Mutex<Option<Rival>>>,
}

/// Another agent with the same id, which was turned away.
struct Rival {
    remote: String,
    came_at: Instant,
}

/// A stream's place among the agents.
pub struct Seat {
    /// For each of the agent's batches in flight, whichever of its streams it came on.
    pub slots: Arc<Semaphore>,
    /// What the agent holds of the room, likewise.
    pub share: Arc<Share>,
    /// How fast it may report, likewise: who connects again does not begin anew.
    pub(super) pace: Arc<Mutex<Pace>>,
    pub displaced: Displaced,
    rival: Arc<Mutex<Option<Rival>>>,
    _stream: Arc<()>,
}

impl Seat {
    /// Where another agent with the same id came from that was turned away just now, address and port; empty: there is none.
    pub fn rival(&self, now: Instant) -> String {
        let rival = self.rival.lock().unwrap_or_else(PoisonError::into_inner);
        let is_shown = |rival: &&Rival| now < rival.came_at + RIVAL_SHOWN;
        rival
            .as_ref()
            .filter(is_shown)
            .map_or_else(String::new, |rival| rival.remote.clone())
    }
}

/// Tells a stream that another one of the same agent has taken over.
#[derive(Clone)]
pub struct Displaced(watch::Receiver<bool>);

impl Displaced {
    /// Whether it is so. Who takes over says it before waiting for all slots, so of a stream that gets one afterwards this is true.
    pub fn is_displaced(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it is so.
    pub async fn displaced(&mut self) {
        if self.0.wait_for(|displaced| *displaced).await.is_err() {
            // Nobody can displace it any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Why there is no place for an agent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSeat {
    /// Two agents have one id: a later start of it is connected from elsewhere.
    #[error(
        "another agent with the id {id} (node {node}) is connected from {remote} since {seconds} s and started later: \
         give one of the two another --name, or another /etc/machine-id"
    )]
    Taken {
        id: String,
        node: String,
        remote: String,
        seconds: u64,
    },
    #[error("{max_agents} agents are connected already")]
    Full { max_agents: usize },
}

impl Registry {
    /// A stream was opened; `None` if there are too many.
    pub fn open(self: &Arc<Self>, max_agents: usize) -> Option<OpenStream> {
        let most = max_agents.saturating_mul(STREAMS_PER_AGENT);
        let entered = self
            .streams
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |streams| {
                (streams < most).then_some(streams + 1)
            });
        entered.is_ok().then(|| OpenStream(self.clone()))
    }

    /// A place for a stream. A former stream of the same start of the agent, or of an earlier one, loses its own.
    ///
    /// # Errors
    /// If a later start of the same agent is connected, or as many others as may be.
    pub fn seat(&self, agent: &Agent, remote: &str, max_agents: usize) -> Result<Seat, NoSeat> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        agents.retain(|_, entry| entry.is_used(now));
        let former = agents.get(&agent.id);
        if let Some(former) = former.filter(|former| former.epoch > agent.epoch && former.is_connected()) {
            let rival = Rival {
                remote: remote.to_owned(),
                came_at: now,
            };
            *former.rival.lock().unwrap_or_else(PoisonError::into_inner) = Some(rival);
            return Err(NoSeat::Taken {
                id: agent.id.clone(),
                node: former.node.clone(),
                remote: former.remote.clone(),
                seconds: former.since.elapsed().as_secs(),
            });
        }
        let others = agents
            .iter()
            .filter(|(id, entry)| **id != agent.id && entry.is_connected());
        if others.count() >= max_agents {
            return Err(NoSeat::Full { max_agents });
        }
        let share = former.map_or_else(Arc::default, |former| former.share.clone());
        let slots = former.map_or_else(
            || Arc::new(Semaphore::new(BATCHES_IN_FLIGHT as usize)),
            |former| former.slots.clone(),
        );
        let pace = former.map_or_else(
            || Arc::new(Mutex::new(Pace::new(COUNTERS_A_SECOND, COUNTERS_AT_ONCE, now))),
            |former| former.pace.clone(),
        );
        if let Some(former) = former {
            former.displace.send_replace(true);
        }
        let stream = Arc::new(());
        let (displace, displaced) = watch::channel(false);
        // A connection that broke changes nothing of who else has the id.
        let rival = former.map_or_else(Arc::default, |former| former.rival.clone());
        let entry = Entry {
            epoch: agent.epoch,
            node: agent.node.clone(),
            remote: remote.to_owned(),
            since: now,
            slots: slots.clone(),
            share: share.clone(),
            pace: pace.clone(),
            stream: Arc::downgrade(&stream),
            displace,
            rival: rival.clone(),
        };
        agents.insert(agent.id.clone(), entry);
        Ok(Seat {
            slots,
            share,
            pace,
            displaced: Displaced(displaced),
            rival,
            _stream: stream,
        })
    }
}

impl Entry {
    fn is_connected(&self) -> bool {
        self.stream.strong_count() > 0
    }

    /// Whether it is connected, has batches in flight, or reported much just now.
    fn is_used(&self, now: Instant) -> bool {
        self.is_connected()
            || self.slots.available_permits() < BATCHES_IN_FLIGHT as usize
            || !self
                .pace
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_rested(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(epoch: u64) -> Agent {
        Agent {
            id: "a".to_owned(),
            epoch,
            node: "web-1".to_owned(),
            labels: Default::default(),
            version: String::new(),
            boot_id: String::new(),
            kernel: String::new(),
            architecture: String::new(),
            observed_netns: String::new(),
            missing_features: Vec::new(),
            addresses: Vec::new(),
        }
    }

    fn agent_called(id: &str) -> Agent {
        Agent {
            id: id.to_owned(),
            ..agent(1)
        }
    }

    async fn is_displaced(seat: &mut Seat) -> bool {
        tokio::select! {
            biased;
            () = seat.displaced.displaced() => true,
            () = std::future::ready(()) => false,
        }
    }

    #[tokio::test]
    async fn an_agent_that_comes_again_takes_its_own_place_over() {
        let registry = Registry::default();
        let mut first = registry.seat(&agent(1), "here", 1).unwrap();
        let mut again = registry.seat(&agent(1), "here", 1).unwrap();
        assert!(is_displaced(&mut first).await && !is_displaced(&mut again).await);
        let mut later = registry.seat(&agent(2), "here", 1).unwrap();
        assert!(is_displaced(&mut again).await && !is_displaced(&mut later).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_start_is_turned_away_while_a_later_one_is_connected() {
        let registry = Registry::default();
        let later = registry.seat(&agent(2), "10.0.0.2:5", 1).unwrap();
        assert_eq!(later.rival(Instant::now()), "");
        let taken = registry.seat(&agent(1), "10.0.0.1:5", 1).err().expect("taken");
        let text = taken.to_string();
        assert!(
            text.contains("node web-1") && text.contains("10.0.0.2:5") && text.contains("--name"),
            "{text}"
        );
        assert_eq!(later.rival(Instant::now()), "10.0.0.1:5");
        let again = registry.seat(&agent(2), "10.0.0.2:6", 1).unwrap();
        assert_eq!(again.rival(Instant::now()), "10.0.0.1:5");
        assert_eq!(again.rival(Instant::now() + RIVAL_SHOWN), "");
        drop((later, again));
        assert!(registry.seat(&agent(1), "10.0.0.1:5", 1).is_ok());
    }

    #[tokio::test]
    async fn no_more_agents_than_may_be_are_let_in_but_each_may_come_again() {
        let registry = Registry::default();
        let first = registry.seat(&agent_called("a"), "here", 2).unwrap();
        let _second = registry.seat(&agent_called("b"), "here", 2).unwrap();
        let refused = registry.seat(&agent_called("c"), "here", 2).err();
        assert_eq!(refused, Some(NoSeat::Full { max_agents: 2 }));
        let again = registry.seat(&agent_called("a"), "here", 2).unwrap();
        drop((first, again));
        assert!(registry.seat(&agent_called("c"), "here", 2).is_ok());
    }

    #[test]
    fn streams_are_bounded_and_counted_while_they_are_open() {
        let registry = Arc::new(Registry::default());
        let open: Vec<_> = (0..4).map_while(|_| registry.open(2)).collect();
        assert_eq!(open.len(), 4);
        assert!(registry.open(2).is_none());
        drop(open);
        assert!(registry.open(2).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_connects_again_may_not_report_more_for_that() {
        let registry = Registry::default();
        let take = |seat: &Seat, now| seat.pace.lock().unwrap().take(COUNTERS_AT_ONCE, now);
        let start = Instant::now();
        let first = registry.seat(&agent(1), "here", 1).unwrap();
        assert_eq!(take(&first, start), start);
        drop(first);
        let again = registry.seat(&agent(1), "here", 1).unwrap();
        let rest = Duration::from_secs(1) * COUNTERS_AT_ONCE / COUNTERS_A_SECOND;
        assert_eq!(take(&again, start), start + rest);
        drop(again);
        tokio::time::advance(2 * rest).await;
        let _other = registry.seat(&agent_called("b"), "here", 1).unwrap();
        assert!(!registry.agents.lock().unwrap().contains_key("a"));
    }

    #[tokio::test]
    async fn what_a_former_stream_has_in_flight_keeps_its_slot() {
        let registry = Registry::default();
        let former = registry.seat(&agent(1), "here", 1).unwrap();
        let slot = former.slots.clone().acquire_owned().await.unwrap();
        drop(former);
        let seat = registry.seat(&agent(1), "here", 1).unwrap();
        assert!(seat.slots.try_acquire_many(BATCHES_IN_FLIGHT).is_err());
        drop(slot);
        assert!(seat.slots.try_acquire_many(BATCHES_IN_FLIGHT).is_ok());
    }
}
