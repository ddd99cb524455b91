//! Which agents this collector may insert batches of, where several collectors share a store. `ingest` takes an agent
//! over before it lets it in, `gather` asks before it inserts.
//!
//! An agent may leave a collector that lives on and still has batches of it: gathered, or in an insert that is tried
//! again. The next collector looks up what is stored and has the rest sent again, so none of those may come later.
//! Therefore an agent belongs to the collector that claimed it last, which is a row in the store:
//!
//! - Before an insert a collector reads the store's clock, then whether its claims still hold. What it has lost it
//!   drops; the rest it may begin to insert within [`LEASE`] of that reading. The store itself holds it to that
//!   ([`Block::deadline_ms`](crate::store::Block)): however long the collector, its host or the network pauses between
//!   question and insert, what comes late is refused.
//! - A collector that takes an agent over claims it, reads the store's clock, and waits for a lease from there. Whoever
//!   did not see the claim had read the clock before it, so his lease has ended. Inserts that had begun by then are in
//!   the store's list of what runs, and are waited for ([`Store::fence`]). What is in the store now is all there will be.
//!
//! Only the store's clock counts. Agents know nothing of this. A collector that ended in peace says so, and nobody waits
//! for its leases; a store that only one process can use has none.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use crate::store::{
    Store, StoreError,
    claims::{self, Standing, clocks_differ_ms},
};

/// How long a collector may begin inserts after it read the store's clock. Much longer than question and insert take
/// on a busy store, and what an agent waits for at most when it leaves a collector that did not end in peace.
pub const LEASE: Duration = Duration::from_secs(3);

/// A reading of the store's clock is used for so long. What is left of its lease then is enough to begin an insert.
const READING: Duration = Duration::from_secs(1);

/// Agents that are claimed with one insert: they come by thousands when a collector has ended.
const AT_ONCE: usize = 1_024;

/// Claims that are remembered. Past that all are forgotten, and an agent that connects again is claimed again.
const REMEMBERED: usize = 65_536;

/// One collector's claims. Its copies are the same.
#[derive(Clone)]
pub struct Claims {
    store: Arc<dyn Store>,
    /// `None` where nobody else can insert.
    shared: Option<Shared>,
}

#[derive(Clone)]
struct Shared {
    collector: u64,
    waiting: mpsc::Sender<Waiting>,
    held: Arc<Mutex<Held>>,
    /// The last reading of the store's clock, and when it was asked for.
    reading: Arc<Mutex<Option<(Instant, u64)>>>,
}

/// By agent.
type Held = HashMap<String, Claim>;

/// A claim of this collector.
#[derive(Clone, Copy)]
struct Claim {
    number: u64,
    /// Others' leases have ended then, by the store's clock in milliseconds; zero: there were none.
    alone_at_ms: u64,
}

/// An agent that is to be claimed.
struct Waiting {
    agent_id: String,
    /// When its claim is worth something, or why it is not.
    answer: oneshot::Sender<Result<u64, String>>,
}

/// What may be inserted of a block.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// As in [`Block`](crate::store::Block).
    pub deadline_ms: Option<u64>,
    /// Agents that another collector has claimed: nothing of theirs.
    pub lost: BTreeSet<String>,
}

impl Claims {
    /// Starts the task that claims. It ends once all copies are gone.
    pub fn start(store: Arc<dyn Store>) -> Self {
        let shared = store.writer().map(|collector| {
            let (waiting, due) = mpsc::channel(AT_ONCE);
            let held = Arc::<Mutex<Held>>::default();
            tokio::spawn(claim_all(store.clone(), collector, held.clone(), due));
            Shared {
                collector,
                waiting,
                held,
                reading: Arc::default(),
            }
        });
        Self { store, shared }
    }

    /// Takes an agent over from whoever has it. When this returns, nothing that anybody was given of it before comes
    /// into the store any more. What this collector itself has of it must be settled.
    ///
    /// # Errors
    /// In words, if the store cannot say so now.
    pub async fn take_over(&self, agent_id: &str) -> Result<(), String> {
        if let Some(shared) = &self.shared {
            let (answer, answered) = oneshot::channel();
            let agent_id = agent_id.to_owned();
            let stopping = "the collector stops";
            let waiting = Waiting { agent_id, answer };
            shared.waiting.send(waiting).await.map_err(|_| stopping)?;
            let alone_at_ms = answered.await.map_err(|_| stopping)??;
            wait_until(&*self.store, alone_at_ms)
                .await
                .map_err(|error| error.to_string())?;
        }
        self.store.fence().await.map_err(|error| error.to_string())
    }

    /// What may be inserted of a block with batches of these agents.
    pub async fn lease(&self, agents: BTreeSet<&str>) -> Result<Lease, StoreError> {
        let Some(shared) = &self.shared else {
            return Ok(Lease::default());
        };
        // The clock first: whatever was claimed before this reading is seen.
        let now_ms = shared.clock_ms(&*self.store).await?;
        let agents: Vec<String> = agents.into_iter().map(str::to_owned).collect();
        let standings = claims::standings(&*self.store, &agents, shared.collector).await?;
        let ours = standings
            .into_iter()
            .filter(|standing| standing.collector == shared.collector);
        let ours: BTreeSet<String> = ours.map(|standing| standing.agent_id).collect();
        Ok(Lease {
            deadline_ms: Some(now_ms + LEASE.as_millis() as u64),
            lost: agents.into_iter().filter(|agent| !ours.contains(agent)).collect(),
        })
    }

    /// After a failure the next lease is a new one.
    pub fn read_the_clock_again(&self) {
        if let Some(shared) = &self.shared {
            *shared.reading() = None;
        }
    }

    /// Something of these agents may still be on its way: they are not released.
    pub fn forget<'a>(&self, agents: impl Iterator<Item = &'a str>) {
        if let Some(shared) = &self.shared {
            let mut held = shared.held();
            for agent in agents {
                held.remove(agent);
            }
        }
    }

    /// How long an insert may still begin whose outcome is not known.
    pub fn longest_lease(&self) -> Duration {
        LEASE + Duration::from_millis(clocks_differ_ms(&*self.store))
    }

    /// Says that nothing is on its way from this collector any more. Without it the next one waits for its leases.
    pub async fn release(&self) {
        let Some(shared) = &self.shared else { return };
        // One that others' leases may stand against is none to hand on.
        let now_ms = claims::now_ms(&*self.store).await.unwrap_or(0);
        let agents: Vec<String> = {
            let held = shared.held();
            let alone = held.iter().filter(|(_, claim)| claim.alone_at_ms <= now_ms);
            let alone: BTreeSet<&String> = alone.map(|(agent_id, _)| agent_id).collect();
            alone.into_iter().cloned().collect()
        };
        for agents in agents.chunks(AT_ONCE) {
            if let Err(error) = claims::release(&*self.store, agents, shared.collector).await {
                return tracing::debug!(
                    "agents were not released, they wait for their next collector: {error}"
                );
            }
        }
    }
}

impl Shared {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reading(&self) -> std::sync::MutexGuard<'_, Option<(Instant, u64)>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store's clock, not later than now.
    async fn clock_ms(&self, store: &dyn Store) -> Result<u64, StoreError> {
        let asked_at = Instant::now();
        if let Some((_, now_ms)) = self
            .reading()
            .filter(|(at, _)| asked_at.duration_since(*at) < READING)
        {
            return Ok(now_ms);
        }
        let now_ms = claims::now_ms(store).await?;
        *self.reading() = Some((asked_at, now_ms));
        Ok(now_ms)
    }
}

/// Returns once the store's clock has come so far.
async fn wait_until(store: &dyn Store, at_ms: u64) -> Result<(), StoreError> {
    if at_ms == 0 {
        return Ok(());
    }
    loop {
        match at_ms.checked_sub(claims::now_ms(store).await?) {
            None | Some(0) => return Ok(()),
            Some(left_ms) => sleep(Duration::from_millis(left_ms)).await,
        }
    }
}

/// Claims what waits, all at once.
async fn claim_all(
    store: Arc<dyn Store>,
    collector: u64,
    held: Arc<Mutex<Held>>,
    mut due: mpsc::Receiver<Waiting>,
) {
    let mut waiting = Vec::new();
    while due.recv_many(&mut waiting, AT_ONCE).await > 0 {
        let agents: BTreeSet<&str> = waiting.iter().map(|one| one.agent_id.as_str()).collect();
        let agents: Vec<String> = agents.into_iter().map(str::to_owned).collect();
        let outcome = claim(&*store, collector, &held, agents).await;
        for Waiting { agent_id, answer } in waiting.drain(..) {
            let of_agent = match &outcome {
                Ok(claims) => claims
                    .get(&agent_id)
                    .map(|claim| claim.alone_at_ms)
                    .ok_or_else(|| "another collector takes this agent over at the same time".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            // Whoever gave up does not listen.
            let _ = answer.send(of_agent);
        }
    }
}

/// Claims these agents, but for those that this collector has already. Those that another one got are not in the
/// answer.
async fn claim(
    store: &dyn Store,
    collector: u64,
    held: &Mutex<Held>,
    mut agents: Vec<String>,
) -> Result<Held, StoreError> {
    let lock = || held.lock().unwrap_or_else(PoisonError::into_inner);
    let is_ours = |standing: &Standing| standing.collector == collector;
    let mut claimed = Held::new();
    let known: Vec<String> = {
        let held = lock();
        agents
            .iter()
            .filter(|agent| held.contains_key(*agent))
            .cloned()
            .collect()
    };
    if !known.is_empty() {
        for standing in claims::standings(store, &known, collector).await? {
            let claim = lock().get(&standing.agent_id).copied();
            let claim = claim.filter(|claim| is_ours(&standing) && claim.number == standing.claim);
            claimed.extend(claim.map(|claim| (standing.agent_id, claim)));
        }
        agents.retain(|agent| !claimed.contains_key(agent));
    }
    if agents.is_empty() {
        return Ok(claimed);
    }
    claims::claim(store, &agents, collector).await?;
    // After it is there for all to see: a lease that ignores it is of a reading before this one.
    let now_ms = claims::now_ms(store).await?;
    let ended_ms = now_ms + LEASE.as_millis() as u64 + clocks_differ_ms(store);
    for standing in claims::standings(store, &agents, collector)
        .await?
        .into_iter()
        .filter(is_ours)
    {
        let claim = Claim {
            number: standing.claim,
            alone_at_ms: if standing.is_contested { ended_ms } else { 0 },
        };
        claimed.insert(standing.agent_id, claim);
    }
    let mut held = lock();
    if held.len() + claimed.len() > REMEMBERED {
        held.clear();
    }
    held.extend(claimed.iter().map(|(agent, claim)| (agent.clone(), *claim)));
    Ok(claimed)
}
