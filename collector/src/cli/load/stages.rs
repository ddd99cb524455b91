//! Rates and stages as people write them. Pure.

use std::str::FromStr;
use std::time::Duration;

use holdfast_proto::v1::LoadStage;

use crate::config::Span;

/// More than any machine makes; agents refuse more (`holdfast_agent::load::plan`).
const MOST_PER_SECOND: f64 = 1e7;

/// Connections a second: `500/s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate(pub(super) f64);

impl Rate {
    fn number(text: &str) -> Option<f64> {
        let number = text.trim().strip_suffix("/s")?;
        number.trim().parse().ok()
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = Self::number(text)
            .filter(|rate| rate.is_finite() && *rate > 0.0)
            .ok_or_else(|| format!("`{text}` is no rate, which is more than 0/s; write it like 500/s"))?;
        if rate > MOST_PER_SECOND {
            return Err(format!(
                "`{text}` is more than {MOST_PER_SECOND:.0}/s, the highest rate"
            ));
        }
        Ok(Self(rate))
    }
}

/// Stages, one after another: `0 -> 5000/s in 2m, hold 5m, 100/s for 30s`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stages(pub(super) Vec<LoadStage>);

impl FromStr for Stages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = |part: &str| {
            format!(
                "`{}` is no stage; write them like 0 -> 5000/s in 2m, hold 5m, 100/s for 30s",
                part.trim()
            )
        };
        let mut stages: Vec<LoadStage> = Vec::new();
        for part in text.split(',') {
            // That it is too high says more than how stages are written.
            let is_too_high = |word: &&str| Rate::number(word).is_some_and(|rate| rate > MOST_PER_SECOND);
            if let Some(rate) = part.split_whitespace().find(is_too_high) {
                rate.parse::<Rate>()?;
            }
            let reached = stages.last().map(|stage| stage.to_per_second);
            stages.push(stage(part.trim(), reached).ok_or_else(|| fault(part))?);
        }
        Ok(Self(stages))
    }
}

/// One stage, after one that reached the rate `reached`.
fn stage(text: &str, reached: Option<f64>) -> Option<LoadStage> {
    let made = |from: f64, to: f64, duration: &str| {
        let Span(duration) = duration.trim().parse().ok()?;
        let duration_ns = u64::try_from(duration.as_nanos()).ok()?;
        (duration > Duration::ZERO).then_some(LoadStage {
            from_per_second: from,
            to_per_second: to,
            duration_ns,
        })
    };
    if let Some(duration) = text.strip_prefix("hold ") {
        let rate = reached?;
        return made(rate, rate, duration);
    }
    if let Some((from, rest)) = text.split_once("->") {
        let (to, duration) = rest.split_once(" in ")?;
        let from = from.trim();
        // Nothing has no unit.
        let from = if from == "0" {
            0.0
        } else {
            from.parse::<Rate>().ok()?.0
        };
        let to = to.trim();
        let to = if to == "0" {
            0.0
        } else {
            to.parse::<Rate>().ok()?.0
        };
        return made(from, to, duration);
    }
    let (rate, duration) = text.split_once(" for ")?;
    let Rate(rate) = rate.parse().ok()?;
    made(rate, rate, duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_is_too_fast_says_how_fast_one_may_be() {
        for wrong in [
            "0 -> 99999999/s in 2m",
            "5/s for 1s, 5/s -> 2e7/s in 2m",
            "1e8/s for 3s",
        ] {
            let error = wrong.parse::<Stages>().unwrap_err();
            assert!(error.contains("more than 10000000/s"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_rate_is_positive_and_no_more_than_a_machine_could_make() {
        assert_eq!("0.5/s".parse(), Ok(Rate(0.5)));
        for wrong in ["500", "0/s", "-3/s", "inf/s", "NaN/s", "/s"] {
            assert!(wrong.parse::<Rate>().unwrap_err().contains("500/s"), "{wrong}");
        }
        assert!(
            "1e99/s"
                .parse::<Rate>()
                .unwrap_err()
                .contains("more than 10000000/s")
        );
    }

    #[test]
    fn stages_follow_one_another() {
        let Stages(stages) = "0 -> 5000/s in 2m, hold 5m, 100/s for 30s, 100/s -> 0 in 1s"
            .parse()
            .unwrap();
        let read: Vec<_> = stages
            .iter()
            .map(|stage| {
                (
                    stage.from_per_second,
                    stage.to_per_second,
                    stage.duration_ns / 1_000_000_000,
                )
            })
            .collect();
        assert_eq!(
            read,
            [
                (0.0, 5000.0, 120),
                (5000.0, 5000.0, 300),
                (100.0, 100.0, 30),
                (100.0, 0.0, 1)
            ]
        );
    }

    #[test]
    fn what_is_no_stage_is_named() {
        for bad in [
            "",
            "hold 5m",
            "5000/s",
            "5000 for 1m",
            "-1/s for 1m",
            "1/s for 0s",
            "0 -> x/s in 1m",
            "1/s for 1m,",
        ] {
            let error = bad.parse::<Stages>().expect_err(bad);
            assert!(error.contains("write them like"), "{error}");
        }
        assert!(
            "500".parse::<Rate>().is_err()
                && "0/s".parse::<Rate>().is_err()
                && "inf/s".parse::<Rate>().is_err()
        );
    }
}
