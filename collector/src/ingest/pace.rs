//! How fast something may come: so much at once, and so much a second after that. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What may come of one kind.
pub(super) struct Pace {
    a_second: u32,
    at_once: u32,
    /// When all of it may come again that may come at once.
    full_at: Instant,
}

impl Pace {
    pub(super) fn new(a_second: u32, at_once: u32, now: Instant) -> Self {
        Self {
            a_second,
            at_once,
            full_at: now,
        }
    }

    /// When so many more may come; they count as come.
    pub(super) fn take(&mut self, count: u32, now: Instant) -> Instant {
        self.full_at = self.full_at.max(now) + self.takes(count.min(self.at_once));
        now.max(self.full_at - self.takes(self.at_once))
    }

    /// Nothing is left of what came.
    pub(super) fn is_rested(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    fn takes(&self, count: u32) -> Duration {
        Duration::from_secs(1) * count / self.a_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_much_comes_at_once_and_the_rest_by_and_by() {
        let start = Instant::now() + Duration::from_secs(3_600);
        let mut pace = Pace::new(10, 30, start);
        let mut check = |count, at_s: u64, due_s: u64| {
            let at = start + Duration::from_secs(at_s);
            assert_eq!(
                pace.take(count, at),
                start + Duration::from_secs(due_s),
                "{count} at {at_s}"
            );
        };
        check(30, 0, 0);
        check(10, 0, 1);
        check(20, 1, 3);
        // What was not used does not add up beyond that.
        check(30, 1_000, 1_000);
        check(10, 1_000, 1_001);
        // More than there can be at once is as much as there can be.
        check(u32::MAX, 1_001, 1_004);
    }
}
