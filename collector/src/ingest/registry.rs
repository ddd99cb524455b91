//! Which agents are connected to this collector, one stream each.
//!
//! An agent that reconnects takes its own place over. What its former stream has in flight keeps its slots, which the
//! streams of an agent share: once all are free, nothing of the former stream is on its way to the store any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use tokio::sync::{Semaphore, watch};

use super::BATCHES_IN_FLIGHT;
use super::agent::Agent;

/// The connected agents, and the slots of those that have left batches in flight.
#[derive(Default)]
pub struct Registry(Mutex<HashMap<String, Entry>>);

struct Entry {
    epoch: u64,
    node: String,
    remote: String,
    since: SystemTime,
    slots: Arc<Semaphore>,
    /// Alive for as long as the stream is.
    stream: Weak<()>,
    displace: watch::Sender<bool>,
}

/// A stream's place among the agents.
pub struct Seat {
    /// For each of the agent's batches in flight, whichever of its streams it came on.
    pub slots: Arc<Semaphore>,
    pub displaced: Displaced,
    _stream: Arc<()>,
}

/// Tells a stream that another one of the same agent has taken over.
pub struct Displaced(watch::Receiver<bool>);

impl Displaced {
    /// Returns once it is so.
    pub async fn displaced(&mut self) {
        if self.0.wait_for(|displaced| *displaced).await.is_err() {
            // Nobody can displace it any more.
            std::future::pending::<()>().await;
        }
    }
}

/// Two agents have one id: a later start of it is connected from elsewhere.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "another agent with the id {id} (node {node}) is connected from {remote} since {seconds} s and started later: \
     give one of the two another --name, or another /etc/machine-id"
)]
pub struct Taken {
    id: String,
    node: String,
    remote: String,
    seconds: u64,
}

impl Registry {
    /// A place for a stream. A former stream of the same start of the agent, or of an earlier one, loses its own.
    ///
    /// # Errors
    /// If a later start of the same agent is connected.
    pub fn seat(&self, agent: &Agent, remote: &str) -> Result<Seat, Taken> {
        let mut agents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        agents.retain(|_, entry| entry.is_used());
        let former = agents.get(&agent.id);
        if let Some(former) = former.filter(|former| former.epoch > agent.epoch && former.is_connected()) {
            return Err(Taken {
                id: agent.id.clone(),
                node: former.node.clone(),
                remote: former.remote.clone(),
                seconds: former.since.elapsed().unwrap_or_default().as_secs(),
            });
        }
        let slots = former.map_or_else(
            || Arc::new(Semaphore::new(BATCHES_IN_FLIGHT as usize)),
            |former| former.slots.clone(),
        );
        if let Some(former) = former {
            former.displace.send_replace(true);
        }
        let stream = Arc::new(());
        let (displace, displaced) = watch::channel(false);
        let entry = Entry {
            epoch: agent.epoch,
            node: agent.node.clone(),
            remote: remote.to_owned(),
            since: SystemTime::now(),
            slots: slots.clone(),
            stream: Arc::downgrade(&stream),
            displace,
        };
        agents.insert(agent.id.clone(), entry);
        Ok(Seat {
            slots,
            displaced: Displaced(displaced),
            _stream: stream,
        })
    }
}

impl Entry {
    fn is_connected(&self) -> bool {
        self.stream.strong_count() > 0
    }

    /// Whether it is connected, or has batches in flight.
    fn is_used(&self) -> bool {
        self.is_connected() || self.slots.available_permits() < BATCHES_IN_FLIGHT as usize
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
        let mut first = registry.seat(&agent(1), "here").unwrap();
        let mut again = registry.seat(&agent(1), "here").unwrap();
        assert!(is_displaced(&mut first).await && !is_displaced(&mut again).await);
        let mut later = registry.seat(&agent(2), "here").unwrap();
        assert!(is_displaced(&mut again).await && !is_displaced(&mut later).await);
    }

    #[tokio::test]
    async fn an_earlier_start_is_turned_away_while_a_later_one_is_connected() {
        let registry = Registry::default();
        let later = registry.seat(&agent(2), "10.0.0.2:5").unwrap();
        let taken = registry.seat(&agent(1), "10.0.0.1:5").err().expect("taken");
        let text = taken.to_string();
        assert!(
            text.contains("node web-1") && text.contains("10.0.0.2:5") && text.contains("--name"),
            "{text}"
        );
        drop(later);
        assert!(registry.seat(&agent(1), "10.0.0.1:5").is_ok());
    }

    #[tokio::test]
    async fn what_a_former_stream_has_in_flight_keeps_its_slot() {
        let registry = Registry::default();
        let former = registry.seat(&agent(1), "here").unwrap();
        let slot = former.slots.clone().acquire_owned().await.unwrap();
        drop(former);
        let seat = registry.seat(&agent(1), "here").unwrap();
        assert!(seat.slots.try_acquire_many(BATCHES_IN_FLIGHT).is_err());
        drop(slot);
        assert!(seat.slots.try_acquire_many(BATCHES_IN_FLIGHT).is_ok());
    }
}
