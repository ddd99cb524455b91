//! Whether two runs differ, and whether that can be told: intervals by a bootstrap over blocks of seconds. Pure.
//!
//! Attempts that are made at the same time share their fate: one stall delays all that fall into it. Taken one by one they
//! would seem to know a percentile far better than they do. What is drawn again and again is therefore whole stretches of
//! seconds (a moving block bootstrap; Künsch 1989), each with everything that happened in them. The drawing is seeded: the same runs always give the same
//! answer.
//!
//! What the intervals know is how much each run varied within itself. What differs from one run to the next, such as who else used the
//! machines, is in no single run.

use serde::Serialize;

use super::counts::{ERRORS, LOSSES, REFUSALS, REQUEST_ERRORS};
use super::result::{Summary, Times};
use super::seconds::{Seconds, Slot};
use crate::store::buckets::middle;

/// How often seconds are drawn.
const DRAWS: usize = 2_000;

/// Of each interval; five of them are judged, so of comparisons of equal runs one in twenty at most finds any difference.
const CONFIDENCE: f64 = 0.99;

/// A run of fewer seconds has too few blocks to draw from.
const FEWEST_SLOTS: usize = 10;

/// Times that differ by less than two buckets are wide are not told apart, nor are those within two microseconds.
const BUCKETS_APART: f64 = 2.0 / 32.0;
const LEAST_APART_NS: f64 = 2_000.0;

/// Runs of which such shares of connections were lost are not told to be the same.
const LOST_APART: f64 = 0.01;

/// What is compared of two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    P50,
    P90,
    P99,
    Max,
    /// Established, or answered as expected, a second, while attempts were made.
    Rate,
    /// Failed attempts, or requests, of all that were decided; of connections with those that were lost.
    ErrorRatio,
}

impl Statistic {
    /// Whether it is one of the times, which may be the generator's own.
    pub fn is_time(self) -> bool {
        !matches!(self, Self::Rate | Self::ErrorRatio)
    }
}

const STATISTICS: [Statistic; 6] = [
    Statistic::P50,
    Statistic::P90,
    Statistic::P99,
    Statistic::Max,
    Statistic::Rate,
    Statistic::ErrorRatio,
];

/// What can be told of the second run against the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shown {
    Better,
    Worse,
    /// No difference that can be told.
    Same,
    /// The runs do not say.
    Unknown,
}

/// One statistic of both runs: nanoseconds, a rate a second, or a ratio.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub statistic: Statistic,
    /// Absent where there is nothing to make it of.
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// Of `b - a`; absent where it cannot be told.
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub shown: Shown,
}

/// Two runs side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Whether times are of requests, else of connections; from when they were due.
    pub is_of_requests: bool,
    pub differences: Vec<Difference>,
    /// Seconds of each run in which attempts were made, and how many of them are drawn together.
    pub seconds: [usize; 2],
    pub block: usize,
    /// Why nothing can be told, where it cannot.
    pub doubts: Vec<String>,
    /// Why nothing can be told of times, where the rest can be.
    pub doubts_of_times: Vec<String>,
}

impl Comparison {
    /// Nothing can be told, if there is any such reason.
    pub fn doubt(&mut self, reasons: Vec<String>) {
        if !reasons.is_empty() {
            self.forget(|_| true);
            self.doubts.splice(0..0, reasons);
        }
    }

    /// Nothing can be told of times, if there is any such reason.
    pub fn doubt_times(&mut self, reasons: Vec<String>) {
        if !reasons.is_empty() {
            self.forget(Statistic::is_time);
            self.doubts_of_times.extend(reasons);
        }
    }

    /// Whether one run is said to fail more than the other.
    fn tells_errors(&self) -> bool {
        let mut of_errors = self.differences.iter();
        let of_errors = of_errors.find(|difference| difference.statistic == Statistic::ErrorRatio);
        of_errors.is_some_and(|difference| matches!(difference.shown, Shown::Better | Shown::Worse))
    }

    fn forget(&mut self, is_doubted: impl Fn(Statistic) -> bool) {
        for difference in &mut self.differences {
            if is_doubted(difference.statistic) {
                difference.shown = Shown::Unknown;
            }
        }
    }

    /// What all of it comes to: worse if anything is.
    pub fn shown(&self) -> Shown {
        let any = |wanted| {
            self.differences
                .iter()
                .any(|difference| difference.shown == wanted)
        };
        if !self.doubts.is_empty() {
            Shown::Unknown
        } else if any(Shown::Worse) {
            Shown::Worse
        } else if any(Shown::Better) {
            Shown::Better
        } else if any(Shown::Same) {
            Shown::Same
        } else {
            Shown::Unknown
        }
    }
}

/// Compares run `b` with run `a`. With the same plan the same seconds of both are drawn together, so that a rate that climbs is no
/// difference.
pub fn compare(a: (&Summary, &Seconds), b: (&Summary, &Seconds), same_plan: bool) -> Comparison {
    compare_by(a, b, same_plan, DRAWS)
}

fn compare_by(
    (a, a_seconds): (&Summary, &Seconds),
    (b, b_seconds): (&Summary, &Seconds),
    same_plan: bool,
    draws: usize,
) -> Comparison {
    let is_of_requests = [a, b]
        .iter()
        .any(|summary| summary.counts.get("requests").is_some_and(|count| *count > 0));
    let runs = [(a, a_seconds), (b, b_seconds)].map(|(summary, seconds)| {
        let errors: &[&[&str]] = match (is_of_requests, summary.is_of_datagrams()) {
            (true, true) => &[&REQUEST_ERRORS, &REFUSALS],
            (true, false) => &[&REQUEST_ERRORS],
            (false, _) => &[&ERRORS],
        };
        Drawn::of(seconds, is_of_requests, &errors.concat())
    });
    let made_in = runs.each_ref().map(|run| run.made_in);
    let fewest = made_in[0].min(made_in[1]);
    let block = (fewest as f64).cbrt().ceil() as usize;
    let mut doubts = Vec::new();
    if fewest < FEWEST_SLOTS {
        doubts.push(format!(
            "too short to tell: attempts were made in {} and {} seconds, {FEWEST_SLOTS} are needed",
            made_in[0], made_in[1]
        ));
    }
    if a_seconds.step_us != b_seconds.step_us {
        doubts.push("one run was so much longer that its seconds are kept together in the store, and the other's are not".into());
    }
    let drawn = if doubts.is_empty() {
        draw(&runs, block, same_plan, draws)
    } else {
        Vec::new()
    };
    let times = |summary: &Summary| {
        let times = if is_of_requests {
            &summary.request
        } else {
            &summary.connect
        };
        (times.count > 0).then(|| times.clone())
    };
    let (a_times, b_times) = (times(a), times(b));
    let of_times = |of: fn(&Times) -> u64| {
        let value = |times: &Option<Times>| times.as_ref().map(|times| of(times) as f64);
        (value(&a_times), value(&b_times))
    };
    let whole = runs.each_ref().map(Drawn::whole);
    let statistics = [
        (Statistic::P50, of_times(|times| times.p50_ns)),
        (Statistic::P90, of_times(|times| times.p90_ns)),
        (Statistic::P99, of_times(|times| times.p99_ns)),
        (Statistic::Max, of_times(|times| times.max_ns)),
        (Statistic::Rate, (whole[0].rate(), whole[1].rate())),
        (
            Statistic::ErrorRatio,
            (whole[0].error_ratio(), whole[1].error_ratio()),
        ),
    ];
    let differences = statistics
        .into_iter()
        .map(|(statistic, (a, b))| difference(statistic, a, b, &drawn))
        .collect();
    let mut comparison = Comparison {
        is_of_requests,
        differences,
        seconds: made_in,
        block,
        doubts,
        doubts_of_times: Vec::new(),
    };
    // One moment in which all are lost is drawn or not: that alone says nothing, and nor are these runs the same.
    let are_lost_apart = (whole[0].lost_ratio() - whole[1].lost_ratio()).abs() >= LOST_APART;
    if are_lost_apart
        && matches!(comparison.shown(), Shown::Same | Shown::Better)
        && !comparison.tells_errors()
    {
        comparison.doubt(vec![format!(
            "{} connections of one run were lost and {} of the other, in so few seconds that they may have been one event",
            whole[0].lost, whole[1].lost
        )]);
    }
    comparison
}

fn difference(statistic: Statistic, a: Option<f64>, b: Option<f64>, drawn: &[Apart]) -> Difference {
    let mut difference = Difference {
        statistic,
        a,
        b,
        low: None,
        high: None,
        shown: Shown::Unknown,
    };
    // The longest of a run says nothing of the longest of the next: no drawing from the run can.
    if statistic == Statistic::Max {
        return difference;
    }
    let mut apart: Vec<f64> = drawn
        .iter()
        .filter_map(|apart| apart[statistic as usize])
        .collect();
    // A draw without any attempt has no value; few of them do not matter.
    let (Some(a), Some(b), false) = (a, b, apart.len() * 10 < drawn.len() * 9 || apart.is_empty()) else {
        return difference;
    };
    apart.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| apart[((apart.len() - 1) as f64 * share).round() as usize];
    let (low, high) = (at((1.0 - CONFIDENCE) / 2.0), at(f64::midpoint(1.0, CONFIDENCE)));
    difference.low = Some(low);
    difference.high = Some(high);
    let least = match statistic {
        Statistic::Rate | Statistic::ErrorRatio => 0.0,
        _ => (a.max(b) * BUCKETS_APART).max(LEAST_APART_NS),
    };
    let is_more_better = statistic == Statistic::Rate;
    difference.shown = if (b - a).abs() < least || (low <= 0.0 && high >= 0.0) {
        Shown::Same
    } else if (low > 0.0) == is_more_better {
        Shown::Better
    } else {
        Shown::Worse
    };
    difference
}

/// One second as it is drawn.
struct Second {
    times: Vec<(u16, u64)>,
    good: u64,
    failed: u64,
    /// Of connections, those that ended without the generator's doing, whenever they were established.
    lost: u64,
    /// Of all nodes together; none where no attempt was made.
    covered_us: f64,
}

/// The seconds of a run in which attempts were made or connections were lost, in their order.
struct Drawn {
    slots: Vec<Second>,
    /// Of these, those in which attempts were made.
    made_in: usize,
}

/// Several seconds together.
#[derive(Clone, Default)]
struct Whole {
    /// By bucket.
    times: Vec<u64>,
    good: u64,
    failed: u64,
    lost: u64,
    covered_us: f64,
}

impl Drawn {
    fn of(seconds: &Seconds, is_of_requests: bool, errors: &[&str]) -> Self {
        let good = if is_of_requests { "answered" } else { "established" };
        let losses: &[&str] = if is_of_requests { &[] } else { &LOSSES };
        let sum = |slot: &Slot, names: &[&str]| names.iter().map(|name| slot.count(name)).sum::<u64>();
        let is_made = |slot: &Slot| slot.count("started") + slot.count("requests") > 0;
        let second = |slot: &Slot| {
            let (ids, numbers) = if is_of_requests {
                &slot.request
            } else {
                &slot.connect
            };
            Second {
                times: ids.iter().copied().zip(numbers.iter().copied()).collect(),
                good: slot.count(good),
                failed: sum(slot, errors),
                lost: sum(slot, losses),
                covered_us: match is_made(slot) {
                    true => slot.covered_us as f64 / slot.nodes.max(1) as f64,
                    false => 0.0,
                },
            }
        };
        let is_drawn = |slot: &&Slot| is_made(slot) || sum(slot, losses) > 0;
        Self {
            slots: seconds.slots.iter().filter(is_drawn).map(second).collect(),
            made_in: seconds.slots.iter().filter(|slot| is_made(slot)).count(),
        }
    }

    fn whole(&self) -> Whole {
        let mut whole = Whole::default();
        self.slots.iter().for_each(|slot| whole.add(slot));
        whole
    }
}

impl Whole {
    fn add(&mut self, second: &Second) {
        for &(bucket, count) in &second.times {
            let bucket = usize::from(bucket);
            if bucket >= self.times.len() {
                self.times.resize(bucket + 1, 0);
            }
            self.times[bucket] += count;
        }
        self.good += second.good;
        self.failed += second.failed;
        self.lost += second.lost;
        self.covered_us += second.covered_us;
    }

    fn rate(&self) -> Option<f64> {
        (self.covered_us > 0.0).then(|| self.good as f64 * 1e6 / self.covered_us)
    }

    fn error_ratio(&self) -> Option<f64> {
        let decided = self.good + self.failed;
        (decided > 0).then(|| (self.failed + self.lost) as f64 / decided as f64)
    }

    fn lost_ratio(&self) -> f64 {
        self.lost as f64 / self.good.max(1) as f64
    }

    fn quantile_ns(&self, share: f64) -> Option<f64> {
        let total: u64 = self.times.iter().sum();
        let rank = (total as f64 * share).ceil() as u64;
        let mut below = 0;
        let bucket = self.times.iter().position(|count| {
            below += count;
            below >= rank.max(1)
        })?;
        Some(middle(bucket as u16) * 1e3)
    }

    fn value(&self, statistic: Statistic) -> Option<f64> {
        match statistic {
            Statistic::P50 => self.quantile_ns(0.5),
            Statistic::P90 => self.quantile_ns(0.9),
            Statistic::P99 => self.quantile_ns(0.99),
            Statistic::Max => None,
            Statistic::Rate => self.rate(),
            Statistic::ErrorRatio => self.error_ratio(),
        }
    }
}

/// How far two runs are apart in each statistic.
type Apart = [Option<f64>; STATISTICS.len()];

/// How far both runs are apart, made anew again and again out of stretches of their own seconds. A stretch that reaches the end goes on at the
/// beginning, so that no second is drawn less often than others.
fn draw(runs: &[Drawn; 2], block: usize, together: bool, draws: usize) -> Vec<Apart> {
    let mut random = Random(0x686f_6c64_6661_7374);
    let lengths = runs.each_ref().map(|run| run.slots.len());
    let longest = lengths[0].max(lengths[1]);
    let mut starts = Vec::new();
    (0..draws)
        .map(|_| {
            starts.clear();
            starts.extend((0..longest.div_ceil(block)).map(|_| random.below(longest)));
            let mut both = [0, 1].map(|_| Whole::default());
            for (which, whole) in both.iter_mut().enumerate() {
                let length = lengths[which];
                if !together {
                    starts.clear();
                    starts.extend((0..length.div_ceil(block)).map(|_| random.below(length)));
                }
                let around = if together { longest } else { length };
                let indexes = starts
                    .iter()
                    .flat_map(|start| (0..block).map(move |step| (start + step) % around))
                    .take(around);
                // Of runs that are drawn together one may be a little longer.
                for second in indexes.filter_map(|index| runs[which].slots.get(index)) {
                    whole.add(second);
                }
            }
            let [a, b] = &both;
            STATISTICS.map(|statistic| Some(b.value(statistic)? - a.value(statistic)?))
        })
        .collect()
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The upper half of a product: even enough for lengths of hundreds.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::buckets::bucket;

    /// A run of which each second's times depend on those of the second before, `scale` times as long as others', and of which
    /// so many in a thousand fail.
    fn run(random: &mut Random, seconds: u64, scale: f64, failures: u64) -> (Summary, Seconds) {
        let mut level = 0.0_f64;
        let mut whole = hdrhistogram::Histogram::<u64>::new(3).unwrap();
        let slots = (0..seconds).map(|slot| {
            let uniform = random.below(2_001) as f64 / 1_000.0 - 1.0;
            level = 0.7 * level + 0.3 * uniform;
            let mut times = std::collections::BTreeMap::new();
            for step in 1..=50 {
                let us = (level.exp() * scale * 20.0 * f64::from(step)) as u64;
                whole.record(us * 1_000).unwrap();
                *times.entry(bucket(us)).or_insert(0) += 2;
            }
            let failed = (0..100)
                .filter(|_| random.below(1_000) < failures as usize)
                .count() as u64;
            Slot {
                slot,
                covered_us: 1_000_000,
                nodes: 1,
                connect: times.into_iter().unzip(),
                counts: [
                    ("started", 100),
                    ("established", 100 - failed),
                    ("refused", failed),
                ]
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
                ..Slot::default()
            }
        });
        let slots = slots.collect();
        let summary = Summary {
            connect: Times::of(&whole),
            ..Summary::default()
        };
        (
            summary,
            Seconds {
                step_us: 1_000_000,
                slots,
            },
        )
    }

    fn shown(comparison: &Comparison, statistic: Statistic) -> Shown {
        let found = comparison
            .differences
            .iter()
            .find(|difference| difference.statistic == statistic);
        found.unwrap().shown
    }

    fn compared(a: &(Summary, Seconds), b: &(Summary, Seconds)) -> Comparison {
        compare_by((&a.0, &a.1), (&b.0, &b.1), true, 200)
    }

    #[test]
    fn of_equal_runs_few_are_said_to_differ() {
        let mut random = Random(7);
        let mut wrong = 0;
        for _ in 0..40 {
            let (a, b) = (run(&mut random, 120, 1.0, 10), run(&mut random, 120, 1.0, 10));
            let comparison = compared(&a, &b);
            wrong += usize::from(comparison.shown() != Shown::Same);
        }
        // One in twenty at most is what is promised of long runs; blocks of a short one know a little less.
        assert!(wrong <= 5, "{wrong} of 40");
    }

    #[test]
    fn what_is_slower_or_fails_more_is_worse_and_the_other_way_round_better() {
        let mut random = Random(11);
        let (a, b) = (run(&mut random, 120, 1.0, 5), run(&mut random, 120, 2.0, 100));
        let (there, back) = (compared(&a, &b), compared(&b, &a));
        for statistic in [
            Statistic::P50,
            Statistic::P90,
            Statistic::P99,
            Statistic::ErrorRatio,
            Statistic::Rate,
        ] {
            assert_eq!(shown(&there, statistic), Shown::Worse, "{there:?}");
            assert_eq!(shown(&back, statistic), Shown::Better, "{back:?}");
        }
        assert_eq!((there.shown(), back.shown()), (Shown::Worse, Shown::Better));
        assert_eq!(shown(&there, Statistic::Max), Shown::Unknown);
    }

    #[test]
    fn what_loses_more_of_its_connections_is_worse_and_where_that_was_one_moment_nobody_knows() {
        let lose = |run: &mut (Summary, Seconds), slots: std::ops::Range<u64>, each: u64| {
            for slot in slots {
                let known = run.1.slots.iter_mut().find(|known| known.slot == slot);
                let lost = ("reset_by_peer".to_owned(), each);
                match known {
                    Some(slot) => slot.counts.extend([lost]),
                    None => run.1.slots.push(Slot {
                        slot,
                        covered_us: 1_000_000,
                        nodes: 1,
                        counts: [lost].into(),
                        ..Slot::default()
                    }),
                }
            }
        };
        let healthy = run(&mut Random(23), 60, 1.0, 0);
        // Reset as they are made; held, and reset one after another; and all at once.
        for (slots, each, expected) in [
            (0..60, 100, Shown::Worse),
            (60..180, 50, Shown::Worse),
            (180..181, 6_000, Shown::Unknown),
        ] {
            let mut bad = run(&mut Random(23), 60, 1.0, 0);
            lose(&mut bad, slots, each);
            let comparison = compared(&healthy, &bad);
            assert_eq!(comparison.shown(), expected, "{comparison:?}");
            assert_eq!(comparison.seconds, [60, 60]);
            let rate = &comparison.differences[Statistic::Rate as usize];
            assert_eq!(rate.a, rate.b, "{comparison:?}");
        }
        // One of thousands is what chance does.
        let mut one = run(&mut Random(23), 60, 1.0, 0);
        lose(&mut one, 60..61, 1);
        assert_eq!(compared(&healthy, &one).shown(), Shown::Same);
    }

    #[test]
    fn the_same_runs_give_the_same_answer_and_a_run_is_no_other_than_itself() {
        let mut random = Random(13);
        let (a, b) = (run(&mut random, 60, 1.0, 10), run(&mut random, 60, 1.1, 10));
        let json = |comparison: &Comparison| serde_json::to_string(comparison).unwrap();
        assert_eq!(json(&compared(&a, &b)), json(&compared(&a, &b)));
        let itself = compared(&a, &a);
        assert_eq!(itself.shown(), Shown::Same);
        assert!(
            itself
                .differences
                .iter()
                .all(|difference| difference.low.is_none_or(|low| low == 0.0)),
            "{itself:?}"
        );
    }

    #[test]
    fn a_run_that_is_too_short_or_empty_tells_nothing() {
        let mut random = Random(17);
        let (long, short) = (run(&mut random, 60, 1.0, 0), run(&mut random, 9, 1.0, 0));
        let comparison = compared(&long, &short);
        assert_eq!(comparison.shown(), Shown::Unknown);
        assert!(
            comparison.doubts[0].contains("60 and 9 seconds, 10 are needed"),
            "{comparison:?}"
        );
        let nothing = (Summary::default(), Seconds::default());
        assert_eq!(compared(&nothing, &nothing).shown(), Shown::Unknown);
        assert_eq!(compared(&long, &nothing).shown(), Shown::Unknown);
    }

    #[test]
    fn runs_of_different_plans_are_drawn_apart() {
        let mut random = Random(19);
        let (a, b) = (run(&mut random, 60, 1.0, 5), run(&mut random, 90, 3.0, 5));
        let comparison = compare_by((&a.0, &a.1), (&b.0, &b.1), false, 300);
        assert_eq!(shown(&comparison, Statistic::P50), Shown::Worse, "{comparison:?}");
        assert_eq!((comparison.seconds, comparison.block), ([60, 90], 4));
    }
}
