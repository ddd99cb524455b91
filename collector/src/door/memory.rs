//! What all questions together take: their bytes, from the first that comes until the answer is whole or nobody waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A question of so many bytes is a small one: for these a quarter is left by all others.
const SMALL_BYTES: usize = 16 << 10;

/// The memory of questions.
#[derive(Debug)]
pub struct Memory {
    bytes: usize,
    held: AtomicUsize,
}

impl Memory {
    /// All questions together take so many bytes at most.
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            held: AtomicUsize::new(0),
        })
    }

    pub(super) fn hold(self: &Arc<Self>) -> Held {
        Held {
            memory: self.clone(),
            bytes: AtomicUsize::new(0),
        }
    }
}

/// What one question takes of it, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<Memory>,
    bytes: AtomicUsize,
}

impl Held {
    /// So many bytes more have come. False, and nothing more is held, if there is no room for them.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let whole = self.memory.bytes;
        let is_small = self.bytes.load(Ordering::Relaxed) + bytes <= SMALL_BYTES;
        let most = if is_small { whole } else { whole / 4 * 3 };
        let taken = self
            .memory
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|held| *held <= most)
            });
        if taken.is_ok() {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// What is above `bytes` was read and is needed no more.
    pub(super) fn shrink_to(&self, bytes: usize) {
        let before = self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.memory
            .held
            .fetch_sub(before.saturating_sub(bytes), Ordering::Relaxed);
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_take_no_more_than_there_is_and_give_it_back() {
        let memory = Memory::new(8 * SMALL_BYTES);
        let large = memory.hold();
        assert!(large.take(6 * SMALL_BYTES));
        // The rest is for small ones.
        let other = memory.hold();
        assert!(!large.take(1) && !other.take(SMALL_BYTES + 1));
        let small: Vec<Held> = (0..2).map(|_| memory.hold()).collect();
        assert!(small.iter().all(|held| held.take(SMALL_BYTES)));
        assert!(!other.take(1));
        large.shrink_to(SMALL_BYTES);
        assert!(other.take(SMALL_BYTES + 1));
        drop((large, other, small));
        assert_eq!(memory.held.load(Ordering::Relaxed), 0);
    }
}
