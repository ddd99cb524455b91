//! Which collector judges assertions and tells of them, where several share a store: one at a time.
//!
//! Who judges has claimed the seat as agents are claimed ([`crate::claims`]), so what it writes is fenced in the same way: a
//! collector that has lost the seat, however late it notices, writes no verdict and queues no message after the next one
//! has begun. That it is alive it says again and again, by the store's clock. When it has been silent for a while, or has
//! ended in peace, another one takes the seat, and goes on where the stored verdicts end. Nobody waits where one process
//! alone can use the store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::claims::Claims;
use crate::store::{Store, StoreError, seat};

/// What is claimed. No agent has a blank in its id.
const SEAT: &str = "the judge of assertions";

/// How often the one who judges says so, and the others look.
const BEAT: Duration = Duration::from_secs(2);

/// Who has been silent for so long judges no more. Five beats: a store that is slow to insert is no reason to change.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The seat, as one collector sees it.
pub struct Seat {
    store: Arc<dyn Store>,
    claims: Claims,
    patience: Duration,
    /// How others know this collector.
    host: String,
    is_ours: watch::Sender<bool>,
    looked: Mutex<Looked>,
}

/// Who has the seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Whoever uses the store: there is nobody else.
    Anybody,
    Somebody,
    /// Who had it last, if that is known, and for how long it has been silent.
    Nobody(Option<(String, Duration)>),
}

#[derive(Default)]
struct Looked {
    at: Option<Instant>,
    /// Who had the seat then, and what was said of it.
    other: String,
}

impl Seat {
    /// `patience`: who is silent for so long judges no more.
    pub fn new(store: Arc<dyn Store>, patience: Duration) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            claims: Claims::start(store.clone()),
            patience,
            host: host.trim().to_owned(),
            is_ours: watch::Sender::new(false),
            looked: Mutex::default(),
            store,
        }
    }

    /// Who judges now, as far as the store knows.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn occupant(&self) -> Result<Occupant, StoreError> {
        if self.store.writer().is_none() {
            return Ok(Occupant::Anybody);
        }
        if *self.is_ours.borrow() {
            return Ok(Occupant::Somebody);
        }
        Ok(match seat::holder(&*self.store, SEAT).await? {
            Some(holder) if !holder.is_released && holder.silent < self.patience => Occupant::Somebody,
            Some(holder) if !holder.host.is_empty() => Occupant::Nobody(Some((holder.host, holder.silent))),
            _ => Occupant::Nobody(None),
        })
    }

    /// Whether this collector judges, and whenever that changes.
    pub fn is_ours(&self) -> watch::Receiver<bool> {
        self.is_ours.subscribe()
    }

    /// Looks who judges, and takes the seat if nobody does. `declares` is a number made of what this collector would judge.
    /// True: this collector judges, and nobody else writes verdicts any more.
    ///
    /// # Errors
    /// If the store does not answer. Nothing has changed then.
    pub async fn look(&self, declares: u32) -> Result<bool, StoreError> {
        let Some(collector) = self.store.writer() else {
            self.is_ours.send_replace(true);
            return Ok(true);
        };
        let mut looked = self.looked.lock().await;
        let now = Instant::now();
        if looked.at.is_some_and(|at| now.duration_since(at) < BEAT) {
            return Ok(*self.is_ours.borrow());
        }
        let was_ours = *self.is_ours.borrow();
        let holder = seat::holder(&*self.store, SEAT).await?;
        let is_ours = match &holder {
            // Whoever lost it forgets first what it knew, also where it is free again already.
            _ if was_ours => {
                let is_held = |holder: &seat::Holder| holder.collector == collector && !holder.is_released;
                holder.as_ref().is_some_and(is_held)
            }
            // A claim that others may still write against is none yet: it is taken on.
            Some(holder) if holder.collector == collector => self.take(None).await?,
            Some(holder) if !holder.is_released && holder.silent < self.patience => {
                self.follow(holder, declares, &mut looked);
                false
            }
            Some(_) | None => self.take(holder.as_ref()).await?,
        };
        if is_ours {
            seat::beat(&*self.store, collector, &self.host, declares).await?;
        }
        looked.at = Some(now);
        if self.is_ours.send_replace(is_ours) && !is_ours {
            warn!(
                "this collector judges no more: it was not heard of for too long, and another one took over"
            );
        }
        if is_ours {
            looked.other.clear();
        }
        Ok(is_ours)
    }

    fn follow(&self, holder: &seat::Holder, declares: u32, looked: &mut Looked) {
        let is_other = holder.declares != declares;
        let said = format!("{} {} {is_other}", holder.collector, holder.host);
        if std::mem::replace(&mut looked.other, said.clone()) == said {
            return;
        }
        let host = &holder.host;
        info!(
            host,
            "another collector on this store judges assertions; this one takes over when it is gone"
        );
        if is_other {
            warn!(
                host,
                "it has other assertions than this one: what is declared only here is not judged; give all collectors the same"
            );
        }
    }

    /// Takes the seat. Whether nobody else did.
    async fn take(&self, holder: Option<&seat::Holder>) -> Result<bool, StoreError> {
        match self.claims.take_over(SEAT).await {
            Ok(()) => {
                match holder.filter(|holder| !holder.is_released) {
                    None => info!("this collector judges assertions"),
                    Some(holder) => {
                        let silent_s = holder.silent.as_secs();
                        info!(
                            former = holder.host,
                            silent_s, "this collector judges assertions: the one that did is silent"
                        );
                    }
                }
                Ok(true)
            }
            // Another one, or the store is away: the next look says which.
            Err(why) => {
                tracing::debug!("the seat was not taken: {why}");
                Ok(false)
            }
        }
    }

    /// Until when an insert of this collector's verdicts or messages may begin, as in [`Block`](crate::store::Block).
    ///
    /// # Errors
    /// [`StoreError::LeaseEnded`] if another collector judges now.
    pub async fn deadline_ms(&self) -> Result<Option<u64>, StoreError> {
        let lease = self.claims.lease(BTreeSet::from([SEAT])).await?;
        if lease.lost.is_empty() {
            return Ok(lease.deadline_ms);
        }
        // The next look finds out who has it.
        self.looked.lock().await.at = None;
        Err(StoreError::LeaseEnded)
    }

    /// After a failure the next deadline is a new one.
    pub fn read_the_clock_again(&self) {
        self.claims.read_the_clock_again();
    }

    /// Leaves the seat: nothing of this collector's is on its way. The next one need not wait.
    pub async fn leave(&self) {
        if self.is_ours.send_replace(false) {
            self.claims.release().await;
        }
    }
}
