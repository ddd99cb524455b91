//! Which limit a signal gets that was always kept: the worst that was seen, some room, and a round figure. Pure.

use super::condition::value_text;
use super::signal::Unit;

/// Windows that a signal has to be known of.
pub const FEWEST_WINDOWS: usize = 10;

/// Rows that each of them has to have, or a window of few says nothing of the next one.
pub const FEWEST_SAMPLES: u64 = 20;

/// How much worse than the worst of the past it may get; and the other way round, how much less than the least.
const ROOM: f64 = 2.0;

/// Times below this are the machine's own trembling, not the network's; microseconds.
const LEAST_TIME_US: f64 = 1_000.0;

/// No ratio is promised more exactly than a thousandth.
const LEAST_RATIO: f64 = 0.001;

/// A ratio above this would be kept by what is broken, too.
const MOST_RATIO: f64 = 0.5;

/// In which direction a signal gets worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// More is worse, and there is always some.
    More,
    /// Any is bad: it is asserted only where there was none.
    Any,
    /// Less is worse.
    Less,
}

/// A window of the past.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Past {
    /// In the signal's unit; times in microseconds.
    pub value: f64,
    /// Rows that it was made of.
    pub samples: u64,
}

/// A limit, and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// `< 20ms`.
    pub text: String,
    pub median: f64,
    pub worst: f64,
    pub windows: usize,
    pub samples: u64,
}

/// The limit for a signal of that unit, or why there is none, in words. `samples`: how many a
/// window has to have to say anything.
pub fn limit(unit: Unit, bad: Bad, samples: u64, past: &[Past]) -> Result<Limit, String> {
    if past.len() < FEWEST_WINDOWS {
        return Err(format!(
            "{} of its windows are known, {FEWEST_WINDOWS} are needed",
            past.len()
        ));
    }
    let fewest = past.iter().map(|window| window.samples).min().unwrap_or(0);
    if fewest < samples {
        return Err(format!("a window had {fewest} samples, each needs {samples}"));
    }
    let mut values: Vec<f64> = past.iter().map(|window| window.value).collect();
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    let (least, most) = (values[0], values[values.len() - 1]);
    let (text, worst) = match (bad, unit) {
        (Bad::Any, _) if most > 0.0 => {
            return Err(format!("it came to {} in one window", value_text(unit, most)));
        }
        (Bad::Any, _) => ("= 0".to_owned(), most),
        (Bad::Less, _) => {
            let floor = round_down(least / ROOM);
            if floor <= 0.0 {
                return Err("it came to nothing in one window".to_owned());
            }
            (format!("> {}", value_text(unit, floor)), least)
        }
        (Bad::More, Unit::Ratio) => {
            // In the smallest window that was seen, two rows more are still no alarm.
            let few = ROOM / fewest.max(1) as f64;
            let most_allowed = round_up((most * ROOM).max(few).max(LEAST_RATIO));
            if most_allowed > MOST_RATIO {
                return Err(format!(
                    "it came to {} of as few as {fewest} samples: its limit would be kept by anything",
                    value_text(unit, most)
                ));
            }
            (format!("< {}", value_text(unit, most_allowed)), most)
        }
        (Bad::More, Unit::Count) => {
            let most_allowed = round_up((most * ROOM).max(2.0));
            (format!("<= {}", value_text(unit, most_allowed)), most)
        }
        (Bad::More, Unit::Time) => {
            let most_allowed = round_up((most * ROOM).max(LEAST_TIME_US));
            (format!("< {}", whole_time(most_allowed)), most)
        }
        (Bad::More, _) => {
            let most_allowed = round_up(most * ROOM);
            (format!("< {}", value_text(unit, most_allowed)), most)
        }
    };
    Ok(Limit {
        text,
        median,
        worst,
        windows: past.len(),
        samples: past.iter().map(|window| window.samples).sum(),
    })
}

/// The figures that people choose.
const FIGURES: [f64; 4] = [1.0, 2.0, 3.0, 5.0];

/// The least round figure that is not below a value.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powf(value.log10().floor());
    // A hair, or 0.3 / 0.1 would be more than 3.
    let found = FIGURES
        .iter()
        .find(|figure| *figure * scale >= value * (1.0 - 1e-9));
    found.map_or(10.0 * scale, |figure| figure * scale)
}

/// The largest round figure that is not above a value.
fn round_down(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let scale = 10_f64.powf(value.log10().floor());
    let found = FIGURES
        .iter()
        .rev()
        .find(|figure| *figure * scale <= value * (1.0 + 1e-9));
    found.map_or(scale, |figure| figure * scale)
}

/// Microseconds in the largest unit that leaves no rest: seconds at most, which round figures have none of beyond.
fn whole_time(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.0}s", (us / 1e6).ceil()),
        us => format!("{:.0}ms", (us / 1e3).ceil()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(values: &[f64], samples: u64) -> Vec<Past> {
        let window = |value: &f64| Past {
            value: *value,
            samples,
        };
        values.iter().map(window).collect()
    }

    fn check(unit: Unit, bad: Bad, values: &[f64], samples: u64, expected: Result<&str, &str>) {
        let found = limit(unit, bad, FEWEST_SAMPLES, &past(values, samples));
        match (found, expected) {
            (Ok(limit), Ok(text)) => assert_eq!(limit.text, text, "{values:?}"),
            (Err(why), Err(part)) => assert!(why.contains(part), "{why}"),
            (found, _) => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_limit_is_the_worst_with_room_and_round() {
        let mut values = [3_000.0; 20];
        values[7] = 8_000.0;
        check(Unit::Time, Bad::More, &values, 100, Ok("< 20ms"));
        check(Unit::Time, Bad::More, &[80.0; 10], 100, Ok("< 1ms"));
        check(Unit::Time, Bad::More, &[700_000.0; 10], 100, Ok("< 2s"));
        check(Unit::Time, Bad::More, &[1.5e8; 10], 100, Ok("< 300s"));
        check(Unit::Count, Bad::More, &[0.0; 10], 100, Ok("<= 2"));
        check(Unit::Count, Bad::More, &[7.0; 10], 100, Ok("<= 20"));
        check(Unit::Count, Bad::Any, &[0.0; 10], 100, Ok("= 0"));
        check(Unit::Rate, Bad::Less, &[9.7; 10], 100, Ok("> 3/s"));
        check(Unit::Rate, Bad::Less, &[0.25; 10], 100, Ok("> 0.1/s"));
    }

    #[test]
    fn a_ratio_that_was_never_there_leaves_room_for_two_rows_of_the_smallest_window() {
        check(Unit::Ratio, Bad::More, &[0.0; 10], 600, Ok("< 0.5%"));
        check(Unit::Ratio, Bad::More, &[0.0; 10], 1_000_000, Ok("< 0.1%"));
        check(Unit::Ratio, Bad::More, &[0.02; 10], 600, Ok("< 5%"));
    }

    #[test]
    fn what_is_not_known_well_enough_is_not_promised() {
        check(Unit::Time, Bad::More, &[80.0; 9], 100, Err("9 of its windows"));
        check(Unit::Time, Bad::More, &[80.0; 10], 19, Err("19 samples"));
        check(Unit::Count, Bad::Any, &[1.0; 10], 100, Err("came to 1"));
        check(Unit::Rate, Bad::Less, &[0.0; 10], 100, Err("nothing"));
        check(Unit::Ratio, Bad::More, &[0.6; 10], 100, Err("kept by anything"));
    }

    #[test]
    fn what_was_seen_keeps_the_limit() {
        for value in (1..2_000).map(|step| f64::from(step) * 0.37) {
            let up = round_up(value);
            let down = round_down(value);
            assert!(up >= value * 0.999_999 && up <= value * 2.01, "{value} {up}");
            assert!(
                down <= value * 1.000_001 && down >= value / 2.01,
                "{value} {down}"
            );
        }
    }
}
