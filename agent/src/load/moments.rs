//! Moments at which something has to be looked at, in order, and no more of them than there are places for what they mean.

use std::collections::VecDeque;

/// Moments that are noted before those that mean nothing any more are looked for, beside two of each place.
const SPARE: usize = 1_024;

/// A queue of them. All of one queue are equally far ahead when they are noted, so they are in order.
pub(super) struct Moments<Of>(VecDeque<Moment<Of>>);

pub(super) struct Moment<Of> {
    pub at_ns: u64,
    pub of: Of,
}

impl<Of> Default for Moments<Of> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<Of> Moments<Of> {
    /// Notes a moment. Of each of `places` one means something at most: the others are forgotten before they are many, since what is over
    /// long before its moment leaves it behind, and the next one comes.
    pub(super) fn note(
        &mut self,
        at_ns: u64,
        of: Of,
        places: usize,
        is_awaited: impl Fn(&Moment<Of>) -> bool,
    ) {
        self.0.push_back(Moment { at_ns, of });
        if self.0.len() > 2 * places + SPARE {
            self.0.retain(is_awaited);
        }
    }

    #[cfg(test)]
    pub(super) fn are_few(&self, places: usize) -> bool {
        self.0.len() <= 2 * places + SPARE
    }

    /// When the first one is.
    pub(super) fn next_ns(&self) -> Option<u64> {
        self.0.front().map(|moment| moment.at_ns)
    }

    /// Takes the first one that means something, once it is due; those before it are forgotten.
    pub(super) fn take_due(&mut self, now_ns: u64, is_awaited: impl Fn(&Moment<Of>) -> bool) -> Option<Of> {
        while let Some(moment) = self.0.pop_front() {
            if !is_awaited(&moment) {
                continue;
            }
            if moment.at_ns > now_ns {
                self.0.push_front(moment);
                return None;
            }
            return Some(moment.of);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_leaves_no_more_moments_than_there_are_places() {
        const AHEAD_NS: u64 = 600_000_000_000;
        let mut moments = Moments::default();
        let places = 3;
        // One that is awaited all the time, and one place that has the next before each is due.
        let mut present = 0;
        moments.note(AHEAD_NS, u64::MAX, places, |_| true);
        for of in 1..=100_000 {
            present = of;
            moments.note(of + AHEAD_NS, of, places, |moment| {
                [u64::MAX, of].contains(&moment.of)
            });
            assert!(moments.are_few(places));
        }
        // What is under way is still to be looked at, when it is due.
        let is_awaited = |moment: &Moment<u64>| [u64::MAX, present].contains(&moment.of);
        assert_eq!(moments.next_ns(), Some(AHEAD_NS));
        assert_eq!(moments.take_due(AHEAD_NS - 1, is_awaited), None);
        assert_eq!(moments.take_due(AHEAD_NS, is_awaited), Some(u64::MAX));
        assert_eq!(moments.take_due(AHEAD_NS, is_awaited), None);
        assert_eq!(moments.next_ns(), Some(AHEAD_NS + present));
        assert_eq!(moments.take_due(u64::MAX, is_awaited), Some(present));
        assert_eq!(moments.next_ns(), None);
    }
}
