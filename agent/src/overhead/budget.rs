//! How much CPU time the agent and its programs may take, and what is given up, one named step after another, while they
//! take more. Pure: times and measurements are arguments.

use std::{fmt, num::NonZeroU32, time::Duration};

/// Intervals in a row that have to be over the budget before a step is taken: one alone may be a start, or a burst.
const OVER: u32 = 2;

/// Below this part of the budget what was given up is taken back: it has to have room there.
const RECOVERY_SHARE: f64 = 0.5;

/// How long the cost has to stay below that, at first. Twice as long each time that taking something back was too much.
const PATIENCE: Duration = Duration::from_secs(60);
const MOST_PATIENCE: Duration = Duration::from_secs(3_600);

/// The connections that are followed on the last steps, one in so many.
const SAMPLED: [NonZeroU32; 3] = [
    NonZeroU32::new(4).expect("not zero"),
    NonZeroU32::new(16).expect("not zero"),
    NonZeroU32::new(64).expect("not zero"),
];

/// What is left of what the agent was told to watch. Each gives up what those before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Everything.
    #[default]
    Full,
    /// No system calls are counted.
    SyscallsOff,
    /// And no transitions are streamed.
    TransitionsOff,
    /// And of the connections only one in so many is followed.
    Sampled(NonZeroU32),
}

impl Step {
    const ALL: [Self; 6] = [
        Self::Full,
        Self::SyscallsOff,
        Self::TransitionsOff,
        Self::Sampled(SAMPLED[0]),
        Self::Sampled(SAMPLED[1]),
        Self::Sampled(SAMPLED[2]),
    ];

    /// One connection in so many is followed.
    pub fn followed_one_in(self) -> NonZeroU32 {
        match self {
            Self::Sampled(one_in) => one_in,
            _ => NonZeroU32::MIN,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => out.write_str("full"),
            Self::SyscallsOff => out.write_str("syscalls_off"),
            Self::TransitionsOff => out.write_str("transitions_off"),
            Self::Sampled(one_in) => write!(out, "connections_1_in_{one_in}"),
        }
    }
}

/// What there is to give up: a step that would change nothing is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    pub syscalls: bool,
    pub transitions: bool,
}

/// The budget, and where the agent stands.
#[derive(Clone, Debug)]
pub struct Budget {
    /// The share of the machine's CPU time that may be taken.
    most: f64,
    step: Step,
    /// Intervals in a row that were over it.
    over: u32,
    /// Since when the cost has left room.
    calm_since: Option<Duration>,
    patience: Duration,
    /// When something was taken back last.
    taken_back: Option<Duration>,
}

impl Budget {
    /// Of this share of the machine's CPU time, with nothing given up.
    pub fn new(most: f64) -> Self {
        Self {
            most,
            step: Step::Full,
            over: 0,
            calm_since: None,
            patience: PATIENCE,
            taken_back: None,
        }
    }

    /// The share of the machine's CPU time that may be taken.
    pub fn most(&self) -> f64 {
        self.most
    }

    /// What is left.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Judges an interval that ended at the monotonic time `now`, in which `share` of the machine's CPU time was taken.
    /// Gives what is left from now on, if that is something else than before.
    pub fn judge(&mut self, now: Duration, share: f64, watched: Watched) -> Option<Step> {
        let next = if share > self.most {
            self.calm_since = None;
            self.over += 1;
            if self.over < OVER {
                return None;
            }
            self.down(watched)?
        } else {
            self.over = 0;
            if share >= self.most * RECOVERY_SHARE || self.step == Step::Full {
                self.calm_since = None;
                return None;
            }
            let since = *self.calm_since.get_or_insert(now);
            if now.saturating_sub(since) < self.patience {
                return None;
            }
            self.up(watched)
        };
        if next > self.step {
            let is_relapse = self
                .taken_back
                .is_some_and(|at| now.saturating_sub(at) < self.patience * 2);
            self.patience = if is_relapse {
                (self.patience * 2).min(MOST_PATIENCE)
            } else {
                PATIENCE
            };
        } else {
            self.taken_back = Some(now);
        }
        self.step = next;
        self.over = 0;
        self.calm_since = None;
        Some(next)
    }

    /// The next step down that gives anything up; `None` if there is none.
    fn down(&self, watched: Watched) -> Option<Step> {
        Step::ALL
            .into_iter()
            .filter(|step| *step > self.step)
            .find(|step| gives_up(*step, watched))
    }

    /// The next step up: the one before, past those that give nothing up.
    fn up(&self, watched: Watched) -> Step {
        Step::ALL
            .into_iter()
            .rev()
            .filter(|step| *step < self.step)
            .find(|step| gives_up(*step, watched))
            .unwrap_or_default()
    }
}

fn gives_up(step: Step, watched: Watched) -> bool {
    match step {
        Step::Full => true,
        Step::SyscallsOff => watched.syscalls,
        Step::TransitionsOff => watched.transitions,
        Step::Sampled(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: Watched = Watched {
        syscalls: true,
        transitions: false,
    };
    const INTERVAL: Duration = Duration::from_secs(10);

    /// Judges intervals of these shares, and gives the steps that were taken and after how many intervals.
    fn steps(
        budget: &mut Budget,
        watched: Watched,
        shares: impl IntoIterator<Item = f64>,
    ) -> Vec<(u32, String)> {
        let mut steps = Vec::new();
        for (interval, share) in (1..).zip(shares) {
            if let Some(step) = budget.judge(INTERVAL * interval, share, watched) {
                steps.push((interval, step.to_string()));
            }
        }
        steps
    }

    fn named(steps: &[(u32, &str)]) -> Vec<(u32, String)> {
        steps.iter().map(|&(at, name)| (at, name.to_owned())).collect()
    }

    #[test]
    fn every_second_interval_over_the_budget_takes_a_step_until_there_is_none() {
        let taken = steps(&mut Budget::new(0.01), ALL, [0.02; 12]);
        assert_eq!(
            taken,
            named(&[
                (2, "syscalls_off"),
                (4, "connections_1_in_4"),
                (6, "connections_1_in_16"),
                (8, "connections_1_in_64"),
            ])
        );
    }

    #[test]
    fn transitions_go_before_connections() {
        let watched = Watched {
            transitions: true,
            ..ALL
        };
        let mut budget = Budget::new(0.01);
        assert_eq!(
            steps(&mut budget, watched, [0.02; 6]),
            named(&[
                (2, "syscalls_off"),
                (4, "transitions_off"),
                (6, "connections_1_in_4")
            ])
        );
        assert_eq!(
            steps(&mut budget, watched, [0.001; 14]),
            named(&[(7, "transitions_off"), (14, "syscalls_off")])
        );
    }

    #[test]
    fn a_single_interval_over_it_takes_none() {
        let shares = [0.02, 0.005].repeat(20);
        assert_eq!(steps(&mut Budget::new(0.01), ALL, shares), []);
    }

    #[test]
    fn what_is_not_watched_cannot_be_given_up() {
        let watched = Watched {
            syscalls: false,
            transitions: false,
        };
        let mut budget = Budget::new(0.01);
        assert_eq!(
            steps(&mut budget, watched, [0.02; 2]),
            named(&[(2, "connections_1_in_4")])
        );
        assert_eq!(steps(&mut budget, watched, [0.001; 7]), named(&[(7, "full")]));
    }

    #[test]
    fn what_was_given_up_is_taken_back_step_by_step_after_a_minute_of_room() {
        let mut budget = Budget::new(0.01);
        steps(&mut budget, ALL, [0.02; 4]);
        // Within the budget, and without room for more.
        assert_eq!(steps(&mut budget, ALL, [0.008; 30]), []);
        assert_eq!(
            steps(&mut budget, ALL, [0.004; 14]),
            named(&[(7, "syscalls_off"), (14, "full")])
        );
    }

    #[test]
    fn what_is_too_much_again_is_taken_back_later_each_time() {
        let mut budget = Budget::new(0.01);
        let (mut now, mut waits) = (Duration::ZERO, Vec::new());
        for _ in 0..10 {
            while budget.judge(now, 0.02, ALL).is_none() {
                now += INTERVAL;
            }
            let down = now;
            while budget.judge(now, 0.001, ALL).is_none() {
                now += INTERVAL;
            }
            waits.push((now - down).as_secs());
            now += INTERVAL;
        }
        assert_eq!(waits, [60, 120, 240, 480, 960, 1_920, 3_600, 3_600, 3_600, 3_600]);
    }

    proptest! {
        #[test]
        fn a_step_down_follows_only_too_much_and_a_step_up_only_room(
            shares in prop::collection::vec(0.0..0.03_f64, 0..300)
        ) {
            let mut budget = Budget::new(0.01);
            for (interval, share) in (1..).zip(shares) {
                let before = budget.step();
                match budget.judge(INTERVAL * interval, share, ALL) {
                    Some(step) if step > before => prop_assert!(share > 0.01),
                    Some(step) => prop_assert!(step < before && share < 0.005),
                    None => prop_assert_eq!(budget.step(), before),
                }
            }
        }
    }
}
