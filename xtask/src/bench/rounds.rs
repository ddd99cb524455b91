//! What came out of the rounds of a benchmark. Pure.

use std::fmt::{self, Write};

use serde_json::{Map, Value, json};

use super::Measurement;

pub(super) struct Comparison {
    unit: &'static str,
    results: Vec<Subject>,
}

struct Subject {
    name: &'static str,
    /// One a round.
    costs: Vec<f64>,
    /// Likewise, by name.
    figures: Vec<(&'static str, Vec<f64>)>,
    /// Of the last round.
    note: String,
}

impl Subject {
    fn values(&self, figure: Option<&str>) -> Option<Vec<f64>> {
        match figure {
            None => Some(self.costs.clone()),
            Some(name) => {
                let found = self.figures.iter().find(|(other, _)| *other == name);
                found.map(|(_, values)| values.clone())
            }
        }
    }
}

use crate::failure::Failure;

/// The middle of some numbers, and how far they reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    min: f64,
    max: f64,
}

impl Comparison {
    /// The first subject is the one that the others are compared with.
    pub(super) fn new(unit: &'static str, names: impl Iterator<Item = &'static str>) -> Self {
        let results = names
            .map(|name| Subject {
                name,
                costs: Vec::new(),
                figures: Vec::new(),
                note: String::new(),
            })
            .collect();
        Self { unit, results }
    }

    pub(super) fn add(&mut self, subject: usize, measurement: Measurement) {
        let subject = &mut self.results[subject];
        subject.costs.push(measurement.cost);
        subject.note = measurement.note;
        for (name, value) in measurement.figures {
            match subject.figures.iter_mut().find(|figure| figure.0 == name) {
                Some((_, values)) => values.push(value),
                None => subject.figures.push((name, vec![value])),
            }
        }
    }

    /// An error, for the exit code 1, that names each median of a subject (its cost, or a figure) that is beyond its limit.
    pub(super) fn at_most(&self, subject: &str, limits: &[(Option<&str>, &str, f64)]) -> anyhow::Result<()> {
        let missed: Vec<String> = limits
            .iter()
            .filter_map(|&(figure, what, most)| {
                let median = self.spread(subject, figure)?.median;
                (median > most).then(|| format!("{what}: {median:.2}, more than {most}"))
            })
            .collect();
        if missed.is_empty() {
            return Ok(());
        }
        Err(Failure::Check(missed.join("; ")).into())
    }

    /// Each subject's costs, and its ratio to the baseline of the same round.
    fn rows(&self) -> impl Iterator<Item = (&Subject, Spread, Spread)> {
        let baseline = &self.results[0].costs;
        self.results.iter().map(move |subject| {
            let ratios = subject
                .costs
                .iter()
                .zip(baseline)
                .map(|(cost, base)| cost / base)
                .collect();
            (subject, Spread::of(subject.costs.clone()), Spread::of(ratios))
        })
    }

    /// What a subject adds to the baseline of the same round: to the cost (`None`), or to a figure.
    pub(super) fn added(&self, subject: &str, figure: Option<&str>) -> Option<Spread> {
        let baseline = self.results.first()?;
        self.compared(subject, baseline, figure, |value, base| value - base)
    }

    /// A subject's ratio to the baseline of the same round: of the cost (`None`), or of a figure.
    pub(super) fn ratio(&self, subject: &str, figure: Option<&str>) -> Option<Spread> {
        let baseline = self.results.first()?;
        self.compared(subject, baseline, figure, |value, base| value / base)
    }

    /// Likewise, to another subject.
    pub(super) fn ratio_to(&self, subject: &str, peer: &str, figure: Option<&str>) -> Option<Spread> {
        let peer = self.results.iter().find(|other| other.name == peer)?;
        self.compared(subject, peer, figure, |value, base| value / base)
    }

    /// A subject's cost (`None`), or one of its figures.
    pub(super) fn spread(&self, subject: &str, figure: Option<&str>) -> Option<Spread> {
        let subject = self.results.iter().find(|other| other.name == subject)?;
        subject.values(figure).map(Spread::of)
    }

    /// A subject held against another, round by round.
    fn compared(
        &self,
        subject: &str,
        baseline: &Subject,
        figure: Option<&str>,
        compare: fn(f64, f64) -> f64,
    ) -> Option<Spread> {
        let baseline = baseline.values(figure)?;
        let subject = self.results.iter().find(|other| other.name == subject)?;
        let subject = subject.values(figure)?;
        let compared = subject
            .iter()
            .zip(&baseline)
            .map(|(&value, &base)| compare(value, base));
        Some(Spread::of(compared.collect()))
    }

    pub(super) fn to_json(&self) -> Value {
        let spread = |spread: Spread| json!({"median": spread.median, "min": spread.min, "max": spread.max});
        let row = |(subject, cost, ratio): (&Subject, Spread, Spread)| {
            let rounds = &subject.costs;
            let figures: Map<String, Value> = subject
                .figures
                .iter()
                .map(|(name, values)| {
                    (
                        (*name).to_owned(),
                        json!({"spread": spread(Spread::of(values.clone())), "rounds": values}),
                    )
                })
                .collect();
            json!({"name": subject.name, "cost": spread(cost), "ratio": spread(ratio), "rounds": rounds, "figures": figures, "note": subject.note})
        };
        json!({"unit": self.unit, "baseline": self.results[0].name, "subjects": self.rows().map(row).collect::<Vec<_>>()})
    }

    pub(super) fn to_markdown(&self) -> String {
        let mut text = format!(
            "| subject | {} (min..max) | ratio (min..max) |\n|---|---|---|\n",
            self.unit
        );
        for (subject, cost, ratio) in self.rows() {
            let name = subject.name;
            writeln!(text, "| {name} | {cost} | {ratio} |").expect("a string takes everything");
        }
        if self.results.iter().any(|subject| !subject.figures.is_empty()) {
            text.push_str("\n| subject | figure | median (min..max) |\n|---|---|---|\n");
        }
        for subject in &self.results {
            for (name, values) in &subject.figures {
                let spread = Spread::of(values.clone());
                writeln!(text, "| {} | {name} | {spread} |", subject.name)
                    .expect("a string takes everything");
            }
        }
        text
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{:24}  {:26}  {:24}", "subject", self.unit, "ratio")?;
        for (subject, cost, ratio) in self.rows() {
            let (cost, ratio) = (cost.to_string(), ratio.to_string());
            writeln!(
                out,
                "{:24}  {cost:26}  {ratio:24}  {}",
                subject.name, subject.note
            )?;
            for (name, values) in &subject.figures {
                let spread = Spread::of(values.clone()).to_string();
                writeln!(out, "  {name:46}  {spread}")?;
            }
        }
        Ok(())
    }
}

impl Spread {
    pub(super) fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let middle = numbers.len() / 2;
        let median = if numbers.len() % 2 == 1 {
            numbers[middle]
        } else {
            f64::midpoint(numbers[middle - 1], numbers[middle])
        };
        Self {
            median,
            min: numbers[0],
            max: numbers[numbers.len() - 1],
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Two decimals say nothing about thousands.
        let decimals = if self.median >= 1000.0 { 0 } else { 2 };
        let Self { median, min, max } = self;
        write!(out, "{median:.decimals$} ({min:.decimals$}..{max:.decimals$})")
    }
}

/// What a median is to be.
#[derive(Clone, Copy)]
pub(super) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_reached(self, median: f64) -> bool {
        match self {
            Self::AtMost(limit) => median <= limit,
            Self::AtLeast(limit) => median >= limit,
        }
    }

    /// The target, the figure with its spread, and whether it is reached; no figure, no line.
    pub(super) fn line(self, what: &str, spread: Option<Spread>) -> String {
        let Some(spread) = spread else {
            return String::new();
        };
        let (sign, limit) = match self {
            Self::AtMost(limit) => ("<=", limit),
            Self::AtLeast(limit) => (">=", limit),
        };
        // Ratios to peers are told apart by their third digit.
        let limit = (limit * 1e3).round() / 1e3;
        let decimals = if spread.median >= 1000.0 { 0 } else { 3 };
        let Spread { median, min, max } = spread;
        let figure = format!("{median:.decimals$} ({min:.decimals$}..{max:.decimals$})");
        let verdict = if self.is_reached(median) {
            "reached"
        } else {
            "MISSED"
        };
        format!("  {what:52} {sign} {limit:<8} {figure:30} {verdict}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_rounds_lies_between_the_middle_two() {
        assert_eq!(
            Spread::of(vec![9.0, 1.0, 2.0, 4.0]),
            Spread {
                median: 3.0,
                min: 1.0,
                max: 9.0
            }
        );
        assert_eq!(
            Spread::of(vec![5.0, 1.0, 3.0]),
            Spread {
                median: 3.0,
                min: 1.0,
                max: 5.0
            }
        );
    }

    fn measured(cost: f64, figures: Vec<(&'static str, f64)>) -> Measurement {
        Measurement {
            cost,
            figures,
            note: String::new(),
        }
    }

    #[test]
    fn a_figure_beside_the_cost_has_its_own_spread() {
        let mut comparison = Comparison::new("us", ["nothing", "probe"].into_iter());
        for rows in [4000.0, 5000.0, 9000.0] {
            comparison.add(0, measured(1.0, vec![]));
            comparison.add(1, measured(1.0, vec![("rows", rows), ("lost", 0.0)]));
        }
        let json = comparison.to_json();
        assert_eq!(json["subjects"][1]["figures"]["rows"]["spread"]["median"], 5000.0);
        assert!(
            comparison
                .to_markdown()
                .ends_with("| probe | rows | 5000 (4000..9000) |\n| probe | lost | 0.00 (0.00..0.00) |\n")
        );
    }

    #[test]
    fn what_is_added_is_added_within_its_round() {
        let mut comparison = Comparison::new("ns", ["nothing", "probe"].into_iter());
        for (base, cost) in [(100.0, 130.0), (300.0, 340.0), (100.0, 131.0)] {
            comparison.add(0, measured(base, vec![("read", 2.0 * base)]));
            comparison.add(1, measured(cost, vec![("read", 2.0 * cost)]));
        }
        let median = |figure| comparison.added("probe", figure).map(|added| added.median);
        assert_eq!((median(None), median(Some("read"))), (Some(31.0), Some(62.0)));
        assert_eq!(
            (median(Some("write")), comparison.added("other", None)),
            (None, None)
        );
    }

    #[test]
    fn a_target_is_reached_by_the_median_and_a_peer_is_met_in_its_own_round() {
        let mut comparison = Comparison::new("us", ["wrk", "ours", "oha"].into_iter());
        for slow in [1.0, 3.0, 1.0] {
            comparison.add(0, measured(4.0 * slow, vec![]));
            comparison.add(1, measured(2.0 * slow, vec![("rate", 9.0)]));
            comparison.add(2, measured(8.0 * slow, vec![]));
        }
        let ratio = comparison.ratio_to("ours", "oha", None);
        let line = Target::AtMost(1.0 / 3.0).line("CPU over oha's", ratio);
        assert!(
            line.contains("<= 0.333") && line.ends_with("0.250 (0.250..0.250)           reached\n"),
            "{line}"
        );
        let line = Target::AtLeast(10.0).line("rate", comparison.spread("ours", Some("rate")));
        assert!(line.contains(">= 10 ") && line.ends_with("MISSED\n"), "{line}");
        assert_eq!(
            Target::AtLeast(1.0).line("none", comparison.ratio_to("ours", "ab", None)),
            ""
        );
    }

    #[test]
    fn a_ratio_is_taken_within_its_round_so_a_slow_round_does_not_count() {
        let mut comparison = Comparison::new("us", ["nothing", "probe"].into_iter());
        // The machine is three times as slow in the second round.
        for (base, cost) in [(20.0, 22.0), (60.0, 66.0), (20.0, 22.0)] {
            comparison.add(0, measured(base, vec![]));
            comparison.add(1, measured(cost, vec![]));
        }
        let json = comparison.to_json();
        assert_eq!(json["baseline"], "nothing");
        assert_eq!(
            json["subjects"][1]["ratio"],
            json!({"median": 1.1, "min": 1.1, "max": 1.1})
        );
        assert!(
            comparison
                .to_markdown()
                .ends_with("| probe | 22.00 (22.00..66.00) | 1.10 (1.10..1.10) |\n")
        );
    }
}
