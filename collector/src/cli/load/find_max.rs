//! `--find-max`: the highest rate at which a target does what is expected of it. Pure; each step is a run like any other.
//!
//! The rate is doubled until a run does not hold (or halved until one does), then the gap is halved, by ratio, until it is
//! small. A run whose agents were the limit, or that is unknown for another reason, ends the way up as well, and is told apart: beyond it nothing
//! is known.

/// So close to the limit is close enough: the least rate that does not hold over the highest that does.
const CLOSE_ENOUGH: f64 = 1.05;

/// Runs of one search: from any rate to any other and down to a few percent takes fewer.
const MOST_STEPS: usize = 40;

/// What a run at a rate showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Holds,
    DoesNotHold,
    /// The agents were the limit.
    Unknown,
    /// Neither they nor the target: its kernel says otherwise, or something is not known.
    Unproven,
}

/// A search under way.
#[derive(Debug)]
pub(super) struct Search {
    lowest: f64,
    highest: f64,
    steps: usize,
    /// The highest rate that holds.
    pub(super) holds: Option<f64>,
    /// The least that does not, and whether that says something of the target.
    pub(super) fails: Option<(f64, Shown)>,
}

impl Search {
    /// Neither less nor more is ever tried, a second.
    pub(super) fn new(lowest: f64, highest: f64) -> Self {
        Self {
            lowest,
            highest,
            steps: 0,
            holds: None,
            fails: None,
        }
    }

    /// Takes what the run at `rate` showed, and gives the rate to try next.
    pub(super) fn next(&mut self, rate: f64, shown: Shown) -> Option<f64> {
        self.steps += 1;
        match shown {
            Shown::Holds => self.holds = Some(rate),
            Shown::DoesNotHold | Shown::Unknown | Shown::Unproven => self.fails = Some((rate, shown)),
        }
        if self.steps >= MOST_STEPS {
            return None;
        }
        let next = match (self.holds, self.fails) {
            (Some(holds), None) => (holds * 2.0).min(self.highest),
            (None, Some((fails, _))) => fails / 2.0,
            (Some(holds), Some((fails, _))) if fails / holds <= CLOSE_ENOUGH => return None,
            (Some(holds), Some((fails, _))) => (holds * fails).sqrt(),
            (None, None) => return None,
        };
        // Whole numbers are what people read.
        let next = next.round();
        let is_new = self.holds != Some(next) && self.fails.is_none_or(|(fails, _)| fails != next);
        (next >= self.lowest && is_new).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a target that holds up to `limit`; the agents do up to `agents`.
    fn found(first: f64, limit: f64, agents: f64) -> Search {
        let mut search = Search::new(1.0, 10_000_000.0);
        let mut next = Some(first);
        while let Some(rate) = next {
            let shown = match rate {
                rate if rate > agents => Shown::Unknown,
                rate if rate > limit => Shown::DoesNotHold,
                _ => Shown::Holds,
            };
            next = search.next(rate, shown);
        }
        search
    }

    #[test]
    fn the_limit_is_found_from_below_and_from_above() {
        for first in [1.0, 100.0, 3_000.0, 1_000_000.0] {
            for limit in [7.0, 950.0, 12_345.0] {
                let search = found(first, limit, f64::MAX);
                let (holds, fails) = (search.holds.expect("a rate"), search.fails.expect("a rate"));
                assert!(holds <= limit && limit < fails.0, "{search:?}");
                assert!(
                    fails.0 / holds <= CLOSE_ENOUGH || fails.0 - holds <= 1.0,
                    "{search:?}"
                );
                assert!(search.steps < 30, "{search:?}");
            }
        }
    }

    #[test]
    fn a_limit_of_the_agents_is_none_of_the_target() {
        let search = found(100.0, 1e9, 700.0);
        assert_eq!(search.fails.map(|(_, shown)| shown), Some(Shown::Unknown));
        assert!(search.holds.is_some_and(|holds| holds <= 700.0), "{search:?}");
    }

    #[test]
    fn a_rate_that_comes_to_no_attempt_is_not_tried() {
        let mut search = Search::new(5.0, 10_000_000.0);
        assert_eq!(search.next(10.0, Shown::DoesNotHold), Some(5.0));
        assert_eq!(search.next(5.0, Shown::DoesNotHold), None);
    }

    #[test]
    fn a_target_that_never_holds_ends_the_search() {
        let search = found(100.0, 0.0, f64::MAX);
        assert_eq!((search.holds, search.steps), (None, 8));
    }
}
