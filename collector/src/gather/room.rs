//! The memory for what was read and is not stored, and its division among the agents.
//!
//! Each agent may hold an equal share; one more share than there are agents is cut, so that there is room for whoever
//! comes next. An agent whose next batch does not fit in its share is not read, whatever window it was told; one that
//! holds nothing may always have one batch, so that nobody starves, however many they are. All together never hold
//! more than the whole. What waits for the whole is let in by turns, one batch an agent.
//!
//! From its share an agent is told its window. It becomes smaller as well while the store does not keep up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_proto::v1::Window;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::ingest::BATCHES_IN_FLIGHT;
use crate::metrics::Metrics;

/// What a batch occupies once it is decoded, as a multiple of its encoded bytes: of the usual ones.
const USUAL_EXPANSION: usize = 4;

/// The same of the worst: rows of one byte in each column, with a process and a path each.
const WORST_EXPANSION: usize = 10;

/// A window is not less than a batch of the usual size.
const LEAST_WINDOW_BYTES: u64 = 256 << 10;

/// Batches that are in flight at least, so that they can be gathered at all.
const LEAST_WINDOW_BATCHES: u32 = 8;

/// An insert that takes longer is not keeping up: agents' rows are to be durable within a second or two.
const SLOW_INSERT: Duration = Duration::from_secs(2);

/// How long a slow insert counts after it has ended, if none follows.
const SLOW_FOR: Duration = Duration::from_secs(5);

/// The whole, shared by the agents' tasks and the inserting one.
#[derive(Clone)]
pub struct Rooms(Arc<Whole>);

struct Whole {
    bytes: usize,
    free: Arc<Semaphore>,
    /// Connections that are welcome now.
    present: AtomicUsize,
    inserts: Mutex<Inserts>,
    metrics: Arc<Metrics>,
}

/// How the store keeps up.
#[derive(Default)]
struct Inserts {
    /// `None` while nothing is inserted.
    began_at: Option<Instant>,
    /// When the last one ended, and what it took.
    last: Option<(Instant, Duration)>,
}

/// What one agent holds, on all of its connections.
#[derive(Default)]
pub struct Share {
    held_bytes: AtomicUsize,
    freed: Notify,
}

/// An agent's connection counts among those that share for as long as this lives.
pub struct Present(Rooms);

/// A part of the room, given back when it is dropped.
pub struct Room {
    permit: OwnedSemaphorePermit,
    share: Arc<Share>,
    rooms: Rooms,
}

impl Rooms {
    pub fn new(bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Whole {
            bytes,
            free: Arc::new(Semaphore::new(bytes)),
            present: AtomicUsize::new(0),
            inserts: Mutex::default(),
            metrics,
        }))
    }

    /// One connection more shares from now on.
    pub fn enter(&self) -> Present {
        self.0.present.fetch_add(1, Ordering::Relaxed);
        Present(self.clone())
    }

    /// Waits until an agent may hold so many bytes more.
    pub async fn take(&self, share: &Arc<Share>, bytes: usize) -> Room {
        let bytes = bytes.min(self.0.bytes);
        loop {
            let freed = share.freed.notified();
            let held = share.held_bytes.load(Ordering::Acquire);
            if held == 0 || held + bytes <= self.share_bytes() {
                break;
            }
            freed.await;
        }
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        let permit = self.0.free.clone().acquire_many_owned(permits).await;
        let permit = permit.expect("the room is never closed");
        share.held_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.show();
        Room {
            permit,
            share: share.clone(),
            rooms: self.clone(),
        }
    }

    /// Waits until an agent may hold a batch of so many encoded bytes, whatever is in it.
    pub async fn take_for_encoded(&self, share: &Arc<Share>, encoded_bytes: usize) -> Room {
        self.take(share, encoded_bytes.saturating_mul(WORST_EXPANSION))
            .await
    }

    /// What each agent may hold.
    fn share_bytes(&self) -> usize {
        self.0.bytes / (self.0.present.load(Ordering::Relaxed) + 1)
    }

    fn held_bytes(&self) -> usize {
        self.0.bytes - self.0.free.available_permits()
    }

    /// What an agent may have in flight now.
    pub fn window(&self, now: Instant) -> Window {
        let pressure = self.pressure(now);
        let bytes = (self.share_bytes() / USUAL_EXPANSION) as u64 >> pressure;
        Window {
            batches: (BATCHES_IN_FLIGHT >> pressure).max(LEAST_WINDOW_BATCHES),
            bytes: bytes.max(LEAST_WINDOW_BYTES),
        }
    }

    /// How often windows are halved for the sake of the store.
    fn pressure(&self, now: Instant) -> u32 {
        let inserts = self.0.inserts.lock().unwrap_or_else(PoisonError::into_inner);
        let running = inserts
            .began_at
            .map_or(Duration::ZERO, |began_at| now.duration_since(began_at));
        let last = inserts
            .last
            .filter(|(ended_at, _)| now.duration_since(*ended_at) < SLOW_FOR)
            .map_or(Duration::ZERO, |(_, took)| took);
        let held = self.held_bytes();
        if running.max(last) >= SLOW_INSERT || held > self.0.bytes / 4 * 3 {
            2
        } else {
            u32::from(held > self.0.bytes / 2)
        }
    }

    /// An insert begins, for the first time or again.
    pub(super) fn insert_began(&self, now: Instant) {
        let mut inserts = self.0.inserts.lock().unwrap_or_else(PoisonError::into_inner);
        inserts.began_at.get_or_insert(now);
    }

    /// It is settled.
    pub(super) fn insert_ended(&self, now: Instant) {
        let mut inserts = self.0.inserts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(began_at) = inserts.began_at.take() {
            inserts.last = Some((now, now.duration_since(began_at)));
        }
    }

    /// Has the metrics show what is held.
    pub(super) fn show(&self) {
        self.0.metrics.gathered_bytes.set(self.held_bytes() as i64);
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.0.present.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Room {
    /// Gives back what is above `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        if let Some(rest) = self
            .permit
            .num_permits()
            .checked_sub(bytes)
            .and_then(|rest| self.permit.split(rest))
        {
            self.share.give_back(rest.num_permits());
            drop(rest);
            self.rooms.show();
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The room itself is given back behind this, and shown by whoever takes or shrinks next, or settles.
        self.share.give_back(self.permit.num_permits());
    }
}

impl Share {
    fn give_back(&self, bytes: usize) {
        self.held_bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const MIB: usize = 1 << 20;

    fn rooms(bytes: usize) -> Rooms {
        Rooms::new(bytes, Arc::new(Metrics::new(&[]).unwrap()))
    }

    /// Takes what can be taken at once.
    fn take(rooms: &Rooms, share: &Arc<Share>, bytes: usize) -> Option<Room> {
        let taking = pin!(rooms.take(share, bytes));
        match taking.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(room) => Some(room),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_agent_cannot_take_the_room_of_the_others() {
        let rooms = rooms(100);
        let _present: Vec<_> = (0..4).map(|_| rooms.enter()).collect();
        let greedy = Arc::default();
        let mut held = Vec::new();
        while let Some(room) = take(&rooms, &greedy, 5) {
            held.push(room);
        }
        // A fifth of it: four are there, and another may come.
        assert_eq!(held.len(), 4);
        for _ in 0..4 {
            assert!(take(&rooms, &Arc::default(), 20).is_some());
        }
        held.pop();
        assert!(take(&rooms, &greedy, 5).is_some());
    }

    #[test]
    fn who_holds_nothing_may_have_one_batch_of_any_size() {
        let rooms = rooms(100);
        let _present: Vec<_> = (0..50).map(|_| rooms.enter()).collect();
        let agent = Arc::default();
        let room = take(&rooms, &agent, 60).expect("the first one");
        assert!(take(&rooms, &agent, 1).is_none());
        assert!(
            take(&rooms, &Arc::default(), 60).is_none(),
            "all together have a bound"
        );
        drop(room);
        assert!(take(&rooms, &agent, 1000).is_some(), "more than there is");
    }

    #[test]
    fn what_turns_out_smaller_gives_the_rest_back() {
        let rooms = rooms(100);
        let agent = Arc::default();
        let mut room = take(&rooms, &agent, 50).unwrap();
        room.shrink_to(10);
        room.shrink_to(30);
        assert_eq!(rooms.held_bytes(), 10);
        assert!(take(&rooms, &agent, 90).is_some());
        drop(room);
        assert_eq!(agent.held_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(rooms.held_bytes(), 0);
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_its_own_room_is_free() {
        let rooms = rooms(100);
        let _present = rooms.enter();
        let agent: Arc<Share> = Arc::default();
        let first = rooms.take(&agent, 40).await;
        let waiting = tokio::spawn({
            let (rooms, agent) = (rooms.clone(), agent.clone());
            async move { rooms.take(&agent, 40).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }

    #[test]
    fn windows_follow_the_agents_and_the_store() {
        let rooms = rooms(64 * MIB);
        let start = Instant::now();
        let check_at = |now: Instant, batches: u32, bytes: usize| {
            let expected = Window {
                batches,
                bytes: bytes as u64,
            };
            assert_eq!(rooms.window(now), expected);
        };
        let check = |batches: u32, bytes: usize| check_at(start, batches, bytes);
        let first = rooms.enter();
        check(256, 8 * MIB);
        let others: Vec<_> = (0..6).map(|_| rooms.enter()).collect();
        check(256, 2 * MIB);

        // The store takes longer and longer.
        rooms.insert_began(start);
        check(256, 2 * MIB);
        let slow = start + SLOW_INSERT;
        check_at(slow, 64, MIB / 2);
        rooms.insert_ended(slow);
        check_at(slow, 64, MIB / 2);
        check_at(slow + SLOW_FOR, 256, 2 * MIB);
        rooms.insert_began(slow);
        rooms.insert_ended(slow + Duration::from_millis(50));
        check_at(slow + Duration::from_millis(50), 256, 2 * MIB);

        // What waits for it becomes more.
        let held = take(&rooms, &Arc::default(), 33 * MIB);
        assert!(held.is_some());
        check(128, MIB);
        let more = take(&rooms, &Arc::default(), 16 * MIB);
        assert!(more.is_some());
        check(64, MIB / 2);
        drop((held, more));
        check(256, 2 * MIB);

        // However many they are, one batch is in the window.
        let crowd: Vec<_> = (0..1000).map(|_| rooms.enter()).collect();
        check(256, LEAST_WINDOW_BYTES as usize);
        drop((others, crowd));
        check(256, 8 * MIB);
        drop(first);
    }
}
