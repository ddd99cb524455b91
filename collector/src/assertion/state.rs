//! From windows to verdicts: what one key has come to, window by window. Pure: the time is that of the window's end, so
//! the same windows come to the same verdicts whenever they are judged.
//!
//! What is not known says nothing for either side: it breaks a failure that has not lasted long enough yet, and a
//! recovery likewise, but it neither begins nor ends a violation.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Pace;
use crate::clock::ns;

/// What a window came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Unknown,
}

/// What is said of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Holds,
    /// It fails, but not for long enough yet.
    Pending,
    Violated,
    Unknown,
}

impl Verdict {
    pub const ALL: [Self; 4] = [Self::Holds, Self::Pending, Self::Violated, Self::Unknown];

    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Pending => "pending",
            Self::Violated => "violated",
            Self::Unknown => "unknown",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|verdict| verdict.name() == name.to_ascii_lowercase())
    }
}

/// What makes a violation, and what ends one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub pace: Pace,
    pub clear_after: Duration,
    pub hold: Duration,
}

/// Where a key stands. All of it is stored with its verdict, so that it goes on after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub verdict: Verdict,
    /// Since the end of which window; nanoseconds since the Unix epoch, like all times here.
    pub since_ns: i64,
    /// The last window that was judged.
    pub judged_ns: i64,
    /// Since when every window failed.
    failing_since_ns: Option<i64>,
    /// Since when it is violated, whatever is said while nothing is known.
    violated_since_ns: Option<i64>,
    /// Since when every window of a violation passed.
    passing_since_ns: Option<i64>,
    /// The last windows that were known, the latest in the lowest bit; set: it failed.
    recent: u64,
    /// How often it became violated.
    pub flaps: u32,
}

impl Machine {
    /// A key that nothing is known of.
    pub fn new(at_ns: i64) -> Self {
        Self {
            verdict: Verdict::Unknown,
            since_ns: at_ns,
            judged_ns: 0,
            failing_since_ns: None,
            violated_since_ns: None,
            passing_since_ns: None,
            recent: 0,
            flaps: 0,
        }
    }

    /// Takes the window that ended at `at_ns`; gives the verdict before if it is another one now.
    pub fn step(&mut self, rules: &Rules, at_ns: i64, outcome: Outcome) -> Option<Verdict> {
        self.judged_ns = at_ns;
        match outcome {
            Outcome::Unknown => {
                self.failing_since_ns = None;
                self.passing_since_ns = None;
            }
            Outcome::Failed => {
                self.recent = self.recent << 1 | 1;
                self.passing_since_ns = None;
                let since_ns = *self.failing_since_ns.get_or_insert(at_ns);
                let is_violated = match rules.pace {
                    Pace::For(time) => lasted(since_ns, at_ns, time),
                    Pace::Of { failures, windows } => self.failures(windows) >= failures,
                };
                if is_violated && self.violated_since_ns.is_none() {
                    self.violated_since_ns = Some(at_ns);
                    self.flaps = self.flaps.saturating_add(1);
                }
            }
            Outcome::Passed => {
                self.recent <<= 1;
                self.failing_since_ns = None;
                self.pass(rules, at_ns);
            }
        }
        let verdict = match outcome {
            Outcome::Unknown => Verdict::Unknown,
            _ if self.violated_since_ns.is_some() => Verdict::Violated,
            Outcome::Failed => Verdict::Pending,
            Outcome::Passed => Verdict::Holds,
        };
        let before = std::mem::replace(&mut self.verdict, verdict);
        (before != verdict).then(|| {
            self.since_ns = at_ns;
            before
        })
    }

    fn pass(&mut self, rules: &Rules, at_ns: i64) {
        let Some(violated_ns) = self.violated_since_ns else {
            return;
        };
        if let Pace::Of { failures, windows } = rules.pace
            && self.failures(windows) >= failures
        {
            return;
        }
        let since_ns = *self.passing_since_ns.get_or_insert(at_ns);
        if lasted(since_ns, at_ns, rules.clear_after) && lasted(violated_ns, at_ns, rules.hold) {
            (self.violated_since_ns, self.passing_since_ns) = (None, None);
        }
    }

    /// Of the last so many windows that were known.
    fn failures(&self, windows: u32) -> u32 {
        let mask = u64::MAX
            .checked_shr(64 - windows.clamp(1, 64))
            .unwrap_or(u64::MAX);
        (self.recent & mask).count_ones()
    }
}

fn lasted(since_ns: i64, at_ns: i64, time: Duration) -> bool {
    at_ns.saturating_sub(since_ns) >= ns(time)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn rules(pace: Pace, clear_after: u64, hold: u64) -> Rules {
        Rules {
            pace,
            clear_after: Duration::from_secs(clear_after),
            hold: Duration::from_secs(hold),
        }
    }

    fn for_seconds(seconds: u64) -> Pace {
        Pace::For(Duration::from_secs(seconds))
    }

    /// A letter for each window, one a second: passed, failed, ? for unknown; and one for each verdict.
    fn check(rules: &Rules, windows: &str, verdicts: &str) {
        let mut machine = Machine::new(0);
        let mut said = String::new();
        for (at, window) in windows.chars().enumerate() {
            let outcome = match window {
                'p' => Outcome::Passed,
                'f' => Outcome::Failed,
                _ => Outcome::Unknown,
            };
            machine.step(rules, at as i64 * SECOND, outcome);
            said.push(match machine.verdict {
                Verdict::Holds => 'H',
                Verdict::Pending => 'P',
                Verdict::Violated => 'V',
                Verdict::Unknown => '?',
            });
        }
        assert_eq!(said, verdicts, "{windows}");
    }

    #[test]
    fn it_is_violated_once_it_failed_for_long_enough() {
        check(&rules(for_seconds(0), 0, 0), "ppfpf", "HHVHV");
        check(&rules(for_seconds(3), 0, 0), "pfffffp", "HPPPVVH");
        check(&rules(for_seconds(3), 0, 0), "fffpfff", "PPPHPPP");
    }

    #[test]
    fn what_is_not_known_breaks_a_failure_and_does_not_end_a_violation() {
        check(&rules(for_seconds(3), 0, 0), "fff?ffff", "PPP?PPPV");
        check(&rules(for_seconds(0), 2, 0), "f?fpp?ppp", "V?VVV?VVH");
        check(&rules(for_seconds(0), 0, 0), "f???p", "V???H");
    }

    #[test]
    fn a_violation_is_over_once_it_held_for_long_enough() {
        check(&rules(for_seconds(0), 2, 0), "fppfppp", "VVVVVVH");
        check(&rules(for_seconds(0), 0, 3), "fppppf", "VVVHHV");
    }

    #[test]
    fn so_many_of_so_many() {
        let of = Pace::Of {
            failures: 3,
            windows: 5,
        };
        check(&rules(of, 0, 0), "fpfpfppp", "PHPHVHHH");
        check(&rules(of, 0, 0), "ff?f?p", "PP?V?V");
        check(&rules(of, 2, 0), "fffppppp", "PPVVVVVH");
    }

    #[test]
    fn flaps_are_counted() {
        let mut machine = Machine::new(0);
        for (at, outcome) in [Outcome::Failed, Outcome::Passed, Outcome::Failed, Outcome::Failed]
            .into_iter()
            .enumerate()
        {
            machine.step(&rules(for_seconds(0), 0, 0), at as i64, outcome);
        }
        assert_eq!(machine.flaps, 2);
    }

    /// What is said after these windows, found by looking at all of them again and again.
    fn model(rules: &Rules, windows: &[(i64, Outcome)]) -> (Verdict, u32) {
        let run = |until: usize, of: Outcome| {
            let from = windows[..=until].iter().rposition(|(_, outcome)| *outcome != of);
            from.map_or(0, |at| at + 1)
        };
        let at = |index: usize| windows[index].0;
        let long = |from: usize, until: usize, time: Duration| {
            from <= until && Duration::from_nanos((at(until) - at(from)) as u64) >= time
        };
        let failed_of = |until: usize, count: usize| {
            let known = windows[..=until]
                .iter()
                .filter(|(_, outcome)| *outcome != Outcome::Unknown);
            let last: Vec<_> = known.rev().take(count).collect();
            last.iter()
                .filter(|(_, outcome)| *outcome == Outcome::Failed)
                .count()
        };
        let mut violated: Option<usize> = None;
        let mut flaps = 0;
        for now in 0..windows.len() {
            let is_failure = windows[now].1 == Outcome::Failed
                && match rules.pace {
                    Pace::For(time) => long(run(now, Outcome::Failed), now, time),
                    Pace::Of { failures, windows } => failed_of(now, windows as usize) >= failures as usize,
                };
            if is_failure && violated.is_none() {
                violated = Some(now);
                flaps += 1;
            }
            let Some(since) = violated else { continue };
            if windows[now].1 != Outcome::Passed {
                continue;
            }
            // Where the recovery began: the first of the passes up to now after the violation in which it could.
            let mut from = run(now, Outcome::Passed).max(since);
            if let Pace::Of { failures, windows } = rules.pace {
                while from <= now && failed_of(from, windows as usize) >= failures as usize {
                    from += 1;
                }
            }
            if long(from, now, rules.clear_after) && long(since, now, rules.hold) {
                violated = None;
            }
        }
        let verdict = match windows.last().map(|(_, outcome)| *outcome) {
            None | Some(Outcome::Unknown) => Verdict::Unknown,
            _ if violated.is_some() => Verdict::Violated,
            Some(Outcome::Failed) => Verdict::Pending,
            Some(Outcome::Passed) => Verdict::Holds,
        };
        (verdict, flaps)
    }

    fn outcomes() -> impl Strategy<Value = Vec<(i64, Outcome)>> {
        let outcome = prop_oneof![
            3 => Just(Outcome::Passed),
            3 => Just(Outcome::Failed),
            1 => Just(Outcome::Unknown)
        ];
        prop::collection::vec((1..4_i64, outcome), 1..60).prop_map(|windows| {
            let mut at = 0;
            windows
                .into_iter()
                .map(|(passed, outcome)| {
                    at += passed * SECOND;
                    (at, outcome)
                })
                .collect()
        })
    }

    fn paces() -> impl Strategy<Value = Pace> {
        prop_oneof![
            (0..6_u64).prop_map(for_seconds),
            (1..5_u32, 0..4_u32).prop_map(|(failures, more)| Pace::Of {
                failures,
                windows: failures + more,
            })
        ]
    }

    proptest! {
        #[test]
        fn it_says_what_looking_at_everything_again_says(
            windows in outcomes(), pace in paces(), clear_after in 0..5_u64, hold in 0..8_u64
        ) {
            let rules = rules(pace, clear_after, hold);
            let mut machine = Machine::new(0);
            for judged in 0..windows.len() {
                let (at, outcome) = windows[judged];
                machine.step(&rules, at, outcome);
                prop_assert_eq!((machine.verdict, machine.flaps), model(&rules, &windows[..=judged]));
                // A restart in between changes nothing.
                let stored = serde_json::to_string(&machine).unwrap();
                machine = serde_json::from_str(&stored).unwrap();
            }
        }
    }
}
