//! Telling people: when a verdict changes, receivers get a message, at least once, whatever is killed meanwhile.
//!
//! ```text
//! engine (stored changes) -> Ear -> Notifier: a book for each receiver decides -> stored as queued -> a task for each receiver
//! ```
//!
//! Verdicts are stored first. What is to be told follows from them and from what the store says was told ([`book`], pure);
//! it is stored as queued, and only then sent ([`deliver`]) as [`body`] writes it. So a collector that was killed anywhere
//! on that way comes to the same messages under the same ids, and nothing is held in memory alone. The evaluation hands its
//! changes over and waits for nobody.

pub mod body;
pub mod book;
mod deliver;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::assertion::Set;
use crate::assertion::cause::Over;
use crate::assertion::receiver::{Kind, Receiver};
use crate::clock::{WallClock, ns};
use crate::engine::REMEMBERED_NS;
use crate::engine::run::SharedSet;
use crate::seat::Seat;
use crate::silence::{Silencer, Silences};
use crate::store::verdicts::{Record, Standings, Stood};
use crate::store::{Store, StoreError, notifications, verdicts};

use book::{About, Book, Change, Message};
use deliver::Deliveries;

/// Steps of the engine whose changes wait to be heard. Past that they are looked for in the store.
const MOST_UNHEARD: usize = 1_024;

/// How often it is looked whether a message is due.
const TICK: Duration = Duration::from_millis(250);

/// The pause after a failure of the store.
const PAUSE: Duration = Duration::from_secs(1);

/// How far back every change is looked for at a start: what was not told when the collector ended is told if it is younger. Of
/// what is older, only how it stands.
const LOOK_BACK_NS: i64 = 24 * 3_600_000_000_000;

/// From when a change is judged until it is heard, at most, as long as the store answers. What was silenced before that is
/// held back; what was sent all the same is known to have been told.
const HEARD_WITHIN_NS: i64 = 5_000_000_000;

/// Where the engine says what it has stored. It never waits.
#[derive(Clone, Debug)]
pub struct Ear {
    stored: mpsc::Sender<Vec<Change>>,
    is_missed: Arc<AtomicBool>,
    judged_ns: Arc<AtomicI64>,
}

/// The other end of an [`Ear`].
#[derive(Debug)]
pub struct Heard {
    stored: mpsc::Receiver<Vec<Change>>,
    is_missed: Arc<AtomicBool>,
    judged_ns: Arc<AtomicI64>,
}

pub fn ear() -> (Ear, Heard) {
    let (sender, receiver) = mpsc::channel(MOST_UNHEARD);
    let is_missed = Arc::new(AtomicBool::new(false));
    let judged_ns = Arc::new(AtomicI64::new(i64::MIN));
    let ear = Ear {
        stored: sender,
        is_missed: is_missed.clone(),
        judged_ns: judged_ns.clone(),
    };
    let heard = Heard {
        stored: receiver,
        is_missed,
        judged_ns,
    };
    (ear, heard)
}

impl Ear {
    /// Everything that could be judged then was.
    pub fn judged(&self, now_ns: i64) {
        self.judged_ns.store(now_ns, Ordering::Relaxed);
    }

    /// Takes what is in the store now.
    pub fn stored(&self, records: &[Record]) {
        let changes: Vec<_> = records.iter().filter_map(Change::of).collect();
        if !changes.is_empty() && self.stored.try_send(changes).is_err() {
            self.is_missed.store(true, Ordering::Relaxed);
        }
    }
}

/// The task: decides what is told, and has it sent, until the collector stops.
pub struct Notifier {
    pub store: Arc<dyn Store>,
    pub shared: SharedSet,
    pub heard: Heard,
    pub silencer: Arc<Silencer>,
    /// Who judges tells, and nobody else.
    pub seat: Arc<Seat>,
    pub clock: WallClock,
    /// True once the collector stops.
    pub stopping: watch::Receiver<bool>,
}

/// What the task knows.
struct Desk {
    set: Arc<Set>,
    silences: Arc<Silences>,
    books: BTreeMap<String, Book>,
    /// Decided, and not stored yet.
    unwritten: Vec<Message>,
    /// The books are those of the set.
    is_ready: bool,
}

impl Notifier {
    pub async fn run(mut self) {
        let mut desk = Desk {
            set: self.shared.now(),
            silences: Arc::default(),
            books: BTreeMap::new(),
            unwritten: Vec::new(),
            is_ready: false,
        };
        let mut deliveries = Deliveries::default();
        let is_ours = self.seat.is_ours();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            let heard = tokio::select! {
                biased;
                // An error means that the collector is gone already.
                _ = self.stopping.wait_for(|stopping| *stopping) => break,
                heard = self.heard.stored.recv(), if desk.is_ready => heard,
                _ = ticks.tick() => None,
            };
            if !*is_ours.borrow() {
                // What this collector knew and was about to send, the one who judges finds in the store.
                desk.is_ready = false;
                desk.books.clear();
                desk.unwritten.clear();
                deliveries.end().await;
                continue;
            }
            let now_ns = self.clock.now_ns();
            if let Some(changes) = heard {
                desk.silences = self.silencer.known();
                desk.hear(&changes, now_ns);
            }
            match self.step(&mut desk, &mut deliveries, now_ns).await {
                Ok(()) => {
                    if std::mem::take(&mut is_failing) {
                        info!("what is to be told is decided again");
                    }
                }
                // Another collector judges now, or this one was late: it is decided again.
                Err(StoreError::LeaseEnded) => self.seat.read_the_clock_again(),
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(%error, "the store is away; what is to be told waits");
                    }
                    ticks.reset_after(PAUSE);
                }
            }
        }
        deliveries.end().await;
    }

    async fn step(
        &self,
        desk: &mut Desk,
        deliveries: &mut Deliveries,
        now_ns: i64,
    ) -> Result<(), StoreError> {
        // Nothing is told by somebody who does not know of what nobody is told.
        desk.silences = self.silencer.now().await?;
        let set = self.shared.now();
        if !Arc::ptr_eq(&set, &desk.set) {
            desk.set = set;
            desk.is_ready = false;
        }
        if self.heard.is_missed.swap(false, Ordering::Relaxed) {
            desk.is_ready = false;
            desk.books.clear();
        }
        if !desk.is_ready {
            self.begin(desk, now_ns).await?;
            deliveries.follow(
                &desk.set.receivers,
                &self.store,
                &self.seat,
                &self.clock,
                &self.heard.judged_ns,
            );
            desk.is_ready = true;
        }
        for (name, book) in &mut desk.books {
            let quiet = |change: &Change| desk.silences.quiet(change.subject(), now_ns);
            if book.is_any_to_repeat(now_ns, quiet) {
                // Of a receiver that is down, or slow, ever more would wait.
                let mut unsent = notifications::unsent_ids(&*self.store, name, now_ns).await?;
                let unwritten = desk.unwritten.iter().flat_map(|message| &message.notifications);
                unsent.extend(unwritten.map(|notification| notification.id.clone()));
                book.put_off(now_ns, |id| unsent.contains(id));
            }
            desk.unwritten.extend(book.due(now_ns, quiet));
        }
        while let Some(message) = desk.unwritten.first() {
            let deadline_ms = self.seat.deadline_ms().await?;
            notifications::queue(&*self.store, message, deadline_ms).await?;
            let message = desk.unwritten.remove(0);
            deliveries.wake(&message.receiver);
        }
        Ok(())
    }

    /// Opens the books of receivers that are new, or others than they were.
    async fn begin(&self, desk: &mut Desk, now_ns: i64) -> Result<(), StoreError> {
        let set = desk.set.clone();
        desk.books
            .retain(|_, book| set.receivers.iter().any(|receiver| receiver == book.receiver()));
        let is_declared = |name: &str| set.assertions.iter().any(|assertion| assertion.name == name);
        let why = |name: &str| {
            if is_declared(name) {
                Over::NotJudged
            } else {
                Over::NotDeclared
            }
        };
        for book in desk.books.values_mut() {
            let is_silenced = |change: &Change| desk.silences.cover(change.subject(), now_ns);
            book.settle(now_ns, |assertion, _| is_declared(assertion), why, is_silenced);
        }
        let new: Vec<&Receiver> = set
            .receivers
            .iter()
            .filter(|receiver| !desk.books.contains_key(&receiver.name))
            // It is told nothing.
            .filter(|receiver| !matches!(receiver.kind, Kind::DeadMansSwitch { .. }))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        // What was decided for them is decided again, or is not theirs any more.
        desk.unwritten
            .retain(|message| desk.books.contains_key(&message.receiver));
        let changes = self.changes(&set, now_ns).await?;
        let past = self.silencer.past().await?;
        let mut standing = None;
        for receiver in new {
            let begun_ns = notifications::begun(&*self.store, receiver, now_ns).await?;
            let told = notifications::told(
                &*self.store,
                &receiver.name,
                now_ns.saturating_sub(2 * LOOK_BACK_NS),
            )
            .await?;
            let mut book = Book::new(receiver.clone(), begun_ns, told);
            let silences = &desk.silences;
            let unsent_ns = ns(receiver.group_wait);
            let is_silenced = |change: &Change| {
                let (of, at_ns) = (change.subject(), change.judged_ns);
                let sent_ns = at_ns.saturating_add(unsent_ns).saturating_add(HEARD_WITHIN_NS);
                past.touch(of, at_ns, sent_ns) || silences.cover(of, now_ns)
            };
            book.replay(
                changes.clone(),
                now_ns,
                |assertion| about(&set, assertion),
                is_silenced,
            );
            // Of keys that were forgotten without a word there is no change to hear.
            if book.is_any_open() {
                if standing.is_none() {
                    standing = Some(self.standing(&set).await?);
                }
                let standing = standing.iter().flatten();
                let judged: BTreeSet<(&str, &str)> = standing
                    .map(|known| (known.assertion.as_str(), known.key_text.as_str()))
                    .collect();
                let is_silenced = |change: &Change| silences.cover(change.subject(), now_ns);
                let is_judged = |assertion: &str, key: &str| judged.contains(&(assertion, key));
                book.settle(now_ns, is_judged, why, is_silenced);
            }
            info!(receiver = receiver.name, "tells what changes");
            desk.books.insert(receiver.name.clone(), book);
        }
        Ok(())
    }
}

impl Notifier {
    /// What there may be to tell: every change of late, and how those keys stand that have not changed for longer. A key that
    /// was judged no more when its assertion was judged last is gone, and so is what it came to.
    async fn changes(&self, set: &Set, now_ns: i64) -> Result<Vec<Change>, StoreError> {
        let since_ns = now_ns.saturating_sub(LOOK_BACK_NS);
        let mut changes = notifications::changes(&*self.store, since_ns).await?;
        if changes.iter().all(|change| change.judged_ns > since_ns) {
            return Ok(changes);
        }
        let fingerprints: BTreeMap<&str, u32> = set
            .assertions
            .iter()
            .map(|assertion| (assertion.name.as_str(), assertion.fingerprint()))
            .collect();
        let stood = self.standing(set).await?;
        let standing: BTreeSet<(&str, &str)> = stood
            .iter()
            .filter(|known| fingerprints.get(known.assertion.as_str()) == Some(&known.fingerprint))
            .map(|known| (known.assertion.as_str(), known.key_text.as_str()))
            .collect();
        changes.retain(|change| {
            change.judged_ns > since_ns
                || standing.contains(&(change.assertion.as_str(), change.key.as_str()))
        });
        Ok(changes)
    }

    /// Keys of the set's assertions that were judged about when their assertion was judged last.
    async fn standing(&self, set: &Set) -> Result<Vec<Stood>, StoreError> {
        let names: Vec<&str> = set
            .assertions
            .iter()
            .map(|assertion| assertion.name.as_str())
            .collect();
        let Standings { known: stood, .. } = verdicts::stood(&*self.store, &names, REMEMBERED_NS).await?;
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for known in &stood {
            let last_ns = last.entry(known.assertion.clone()).or_insert(i64::MIN);
            *last_ns = (*last_ns).max(known.machine.judged_ns);
        }
        let remembered_ns = |assertion| ns(set.remembered_for(assertion));
        let remembered: BTreeMap<&str, i64> = set
            .assertions
            .iter()
            .map(|assertion| (assertion.name.as_str(), remembered_ns(assertion)))
            .collect();
        let is_standing = |known: &Stood| {
            let name = known.assertion.as_str();
            let last_ns = last.get(name).copied().unwrap_or(i64::MIN);
            let remembered_ns = remembered.get(name).copied().unwrap_or_default();
            known.machine.judged_ns >= last_ns.saturating_sub(remembered_ns)
        };
        Ok(stood.into_iter().filter(is_standing).collect())
    }
}

impl Desk {
    fn hear(&mut self, changes: &[Change], now_ns: i64) {
        for change in changes {
            let is_silenced = self.silences.cover(change.subject(), now_ns);
            for book in self.books.values_mut() {
                let about = about(&self.set, &change.assertion);
                book.hear(change, about, now_ns, is_silenced);
            }
        }
    }
}

fn about(set: &Set, name: &str) -> About {
    let assertion = set.assertions.iter().find(|assertion| assertion.name == name);
    assertion.map_or_else(About::default, |assertion| About {
        description: assertion.description.clone(),
        runbook: assertion.runbook.clone(),
    })
}
