//! When each attempt is due, in nanoseconds from the common start. Pure: attempt `i` of a run has one time, whoever makes
//! it, so the parts of several agents and threads interleave into the whole.

use super::plan::{Arrivals, Stage};

const SECOND_NS: f64 = 1e9;

/// The due times of one part of a run, in order.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    next: u64,
    step: u64,
    total: u64,
}

impl Schedule {
    /// Attempts `first`, `first + step`, ... A closed loop has no times: its schedule is empty.
    pub fn new(arrivals: &Arrivals, first: u64, step: u64) -> Self {
        let total = match arrivals {
            Arrivals::Count { connections, .. } => *connections,
            Arrivals::Stages(stages) => total(stages),
            Arrivals::Closed { .. } => 0,
        };
        Self {
            arrivals: arrivals.clone(),
            next: first,
            step,
            total,
        }
    }

    /// Attempts that are still to come.
    pub fn remaining(&self) -> u64 {
        super::plan::share(self.total, self.next, self.step)
    }

    /// When the next one is due.
    pub fn peek(&self) -> Option<u64> {
        if self.next >= self.total {
            return None;
        }
        Some(match &self.arrivals {
            Arrivals::Count { pause, .. } => {
                u64::try_from(pause.as_nanos().saturating_mul(u128::from(self.next))).unwrap_or(u64::MAX)
            }
            Arrivals::Stages(stages) => due(stages, self.next),
            Arrivals::Closed { .. } => return None,
        })
    }

    /// Goes on to the one after it.
    pub fn advance(&mut self) {
        self.next = self.next.saturating_add(self.step);
    }
}

/// Attempts of all stages together.
pub fn total(stages: &[Stage]) -> u64 {
    // A rounding error must not cost the last attempt of 1,000/s for 3 s.
    (stages.iter().map(area).sum::<f64>() + 1e-6).floor() as u64
}

/// Attempts that a stage comes to: the area under its rate.
fn area(stage: &Stage) -> f64 {
    (stage.from_per_second + stage.to_per_second) / 2.0 * stage.duration.as_secs_f64()
}

/// When as many attempts as `index` should have been made.
fn due(stages: &[Stage], index: u64) -> u64 {
    let (mut before, mut began_ns) = (0.0, 0.0);
    let mut last_ns = 0.0;
    for stage in stages {
        let length_ns = stage.duration.as_secs_f64() * SECOND_NS;
        let inside = index as f64 - before;
        if inside < area(stage) {
            return (began_ns + after(stage, inside).min(stage.duration.as_secs_f64()) * SECOND_NS) as u64;
        }
        before += area(stage);
        began_ns += length_ns;
        last_ns = began_ns;
    }
    last_ns as u64
}

/// How many seconds into a stage `count` attempts have come.
fn after(stage: &Stage, count: f64) -> f64 {
    let Stage {
        from_per_second: from,
        to_per_second: to,
        duration,
    } = *stage;
    let slope = (to - from) / duration.as_secs_f64();
    if slope == 0.0 {
        return count / from;
    }
    // from * t + slope / 2 * t^2 = count, in the form that stays exact when the slope is small.
    let root = (from * from + 2.0 * slope * count).max(0.0).sqrt();
    2.0 * count / (from + root).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn stage(from: f64, to: f64, seconds: f64) -> Stage {
        Stage {
            from_per_second: from,
            to_per_second: to,
            duration: Duration::from_secs_f64(seconds),
        }
    }

    fn times(arrivals: &Arrivals, first: u64, step: u64) -> Vec<u64> {
        let mut schedule = Schedule::new(arrivals, first, step);
        let mut times = Vec::new();
        while let Some(time) = schedule.peek() {
            times.push(time);
            schedule.advance();
        }
        times
    }

    #[test]
    fn a_fixed_rate_is_even() {
        let arrivals = Arrivals::Stages(vec![stage(1_000.0, 1_000.0, 3.0)]);
        let times = times(&arrivals, 0, 1);
        assert_eq!(times.len(), 3_000);
        assert_eq!(times[..3], [0, 1_000_000, 2_000_000]);
    }

    #[test]
    fn a_count_has_its_pause() {
        let arrivals = Arrivals::Count {
            connections: 3,
            pause: Duration::from_millis(10),
        };
        assert_eq!(times(&arrivals, 0, 1), [0, 10_000_000, 20_000_000]);
    }

    #[test]
    fn a_ramp_brings_half_as_many_and_most_of_them_late() {
        let arrivals = Arrivals::Stages(vec![stage(0.0, 1_000.0, 2.0)]);
        let times = times(&arrivals, 0, 1);
        assert_eq!(times.len(), 1_000);
        let first_half = times.iter().filter(|&&time| time < 1_000_000_000).count();
        assert_eq!(first_half, 250);
    }

    proptest! {
        #[test]
        fn the_parts_of_several_agents_are_the_whole_and_in_order(
            stages in prop::collection::vec((0.0..500.0f64, 0.0..500.0f64, 0.1..3.0f64), 1..4),
            step in 1..5u64,
        ) {
            let stages: Vec<_> = stages.into_iter().map(|(from, to, seconds)| stage(from, to, seconds)).collect();
            let end = stages.iter().map(|stage| stage.duration).sum::<Duration>().as_nanos() as u64;
            let arrivals = Arrivals::Stages(stages);
            let whole = times(&arrivals, 0, 1);
            prop_assert!(whole.is_sorted());
            prop_assert!(whole.iter().all(|&time| time <= end));
            let mut parts: Vec<u64> = (0..step).flat_map(|first| times(&arrivals, first, step)).collect();
            parts.sort_unstable();
            prop_assert_eq!(parts, whole);
        }
    }
}
