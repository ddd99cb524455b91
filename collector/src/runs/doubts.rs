//! What a mesh saw of a target that is an agent of the run itself, and that nobody knows yet whether the target was there for: one that
//! is lost resets what it had, which is the run's own doing. What a target reports itself settles what was seen before. Pure.

use std::collections::VecDeque;

use holdfast_proto::v1::LoadCounts;

use super::counts;
use super::result::{ANSWERS, SILENCES};

/// Reports that are told apart; of more the latest are taken together, and are settled later.
const MOST: usize = 8;

/// Of one agent's reports on one target.
#[derive(Default)]
pub struct Doubts {
    /// How long after the start each was made, the earliest first, and what should not be.
    open: VecDeque<(u64, LoadCounts)>,
}

impl Doubts {
    /// A report, in which there may be nothing to doubt.
    pub fn add(&mut self, elapsed_ns: u64, seen: &LoadCounts) {
        if in_words(seen).is_empty() {
            return;
        }
        let is_full = self.open.len() == MOST;
        match self.open.back_mut() {
            Some((latest_ns, sum)) if is_full => {
                *latest_ns = elapsed_ns.max(*latest_ns);
                counts::add(sum, seen);
            }
            _ => self.open.push_back((elapsed_ns, *seen)),
        }
    }

    /// The target was there until so long after the start.
    pub fn settle(&mut self, until_ns: u64) {
        while self.open.front().is_some_and(|(at_ns, _)| *at_ns <= until_ns) {
            self.open.pop_front();
        }
    }

    /// What is not settled.
    pub fn sum(&self) -> LoadCounts {
        let mut sum = LoadCounts::default();
        for (_, seen) in &self.open {
            counts::add(&mut sum, seen);
        }
        sum
    }
}

/// What should not be; empty: all is as it should be.
pub fn in_words(counts: &LoadCounts) -> String {
    let bad = |(name, count): (&str, u64)| {
        let is_bad = count > 0 && (ANSWERS.contains(&name) || SILENCES.contains(&name));
        is_bad.then(|| format!("{count} {}", name.replace('_', " ")))
    };
    let all = counts::NAMES.into_iter().zip(counts::values(counts));
    all.filter_map(bad).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(refused: u64) -> LoadCounts {
        LoadCounts {
            started: 10,
            refused,
            ..LoadCounts::default()
        }
    }

    #[test]
    fn what_was_seen_before_the_target_was_heard_of_counts() {
        let mut doubts = Doubts::default();
        doubts.add(1_000, &seen(1));
        doubts.add(2_000, &seen(0));
        doubts.add(3_000, &seen(2));
        doubts.add(4_000, &seen(4));
        assert_eq!(in_words(&doubts.sum()), "7 refused");
        doubts.settle(999);
        assert_eq!(doubts.sum().refused, 7);
        doubts.settle(3_000);
        assert_eq!(doubts.sum().refused, 4);
        doubts.settle(5_000);
        assert_eq!(in_words(&doubts.sum()), "");
    }

    #[test]
    fn of_a_target_that_is_silent_for_long_nothing_is_forgotten() {
        let mut doubts = Doubts::default();
        for at_ns in 1..=100 {
            doubts.add(at_ns, &seen(1));
        }
        assert_eq!(doubts.open.len(), MOST);
        doubts.settle(99);
        assert_eq!(doubts.sum().refused, 101 - MOST as u64);
        doubts.settle(100);
        assert_eq!(doubts.sum().refused, 0);
    }
}
