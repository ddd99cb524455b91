//! `slo: connect.failed_ratio < 0.1%`: an objective, judged by how fast its budget is used up. Each rule looks at a long
//! window and at a short one, and is an assertion of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Fields, MOST_FAULTS, Problem, condition, entries, text, within};
use crate::assertion::condition::{Condition, Limit, duration_text};
use crate::assertion::document::{Node, Source};
use crate::assertion::signal::{Measure, Unit};
use crate::assertion::{Assertion, Burn};
use crate::filter::Operator;

/// How often a rule is judged: its windows are whole minutes.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// The longest window: rows are kept for 30 days unless somebody says otherwise.
const LONGEST: Duration = Duration::from_secs(28 * 86_400);

/// The rules that there are without `burn`: name, factor, windows in minutes, and the severity of a violation. The first
/// uses up 2 % of the budget of 30 days within its long window, the next 5 %, and the last two 10 % (Beyer and others, The
/// Site Reliability Workbook, 2018, chapter 5).
const STANDARD: [(&str, f64, u64, u64, &str); 4] = [
    ("page-1h", 14.4, 60, 5, "page"),
    ("page-6h", 6.0, 360, 30, "page"),
    ("ticket-1d", 3.0, 1_440, 120, "ticket"),
    ("ticket-3d", 1.0, 4_320, 360, "ticket"),
];

/// One rule of an objective.
pub(super) struct Rule {
    name: String,
    factor: f64,
    pub(super) long: Duration,
    short: Duration,
    severity: &'static str,
    /// Of the long window, and of the short one.
    pub(super) conditions: [Condition; 2],
}

#[derive(Clone, Copy)]
struct Pair {
    factor: f64,
    long: Duration,
    short: Duration,
    severity: &'static str,
}

/// The rules of an assertion with `slo`, or all that is wrong with its keys; none without it.
pub(super) fn rules(fields: &Fields<'_>) -> Result<Vec<Rule>, Vec<Problem>> {
    let source = fields.source;
    let Some(node) = fields.get("slo") else {
        return match fields.get("burn") {
            Some(node) => {
                let problem =
                    source.problem(node.place, "`burn` needs `slo`: the objective whose budget burns");
                Err(vec![problem])
            }
            None => Ok(Vec::new()),
        };
    };
    let others = ["expect", "over", "every", "sql", "quorum"].into_iter();
    let mut problems: Vec<_> = others
        .filter_map(|other| {
            let message =
                format!("`{other}` does not go with `slo`, which has windows and conditions of its own");
            Some(source.problem(fields.get(other)?.place, message))
        })
        .collect();
    let objective = objective(fields, node).map_err(|problem| problems.push(problem));
    let pairs = pairs(fields).map_err(|faults| problems.extend(faults));
    let (Ok((objective, budget)), Ok(pairs), true) = (objective, pairs, problems.is_empty()) else {
        return Err(problems);
    };
    let rules = pairs.into_iter().map(|(name, pair)| {
        let limit = pair.factor * budget;
        if limit >= 1.0 {
            let unit = Unit::Ratio;
            let message = format!(
                "the rule `{name}` could never fail: {} times {} of all is all of them; choose a smaller factor in `burn`, or \
                 leave it out with `{name}: off`",
                pair.factor,
                condition::value_text(unit, budget)
            );
            return Err(vec![source.problem(node.place, message)]);
        }
        let condition = |over| Condition {
            limit: Limit::Ratio(limit),
            over: Some(over),
            ..objective.clone()
        };
        Ok(Rule {
            conditions: [condition(pair.long), condition(pair.short)],
            name,
            factor: pair.factor,
            long: pair.long,
            short: pair.short,
            severity: pair.severity,
        })
    });
    rules.collect()
}

/// What is to hold in the long run, and which share of it may go wrong.
fn objective(fields: &Fields<'_>, node: &Node) -> Result<(Condition, f64), Problem> {
    let source = fields.source;
    let objective = Condition::parse(text(source, node)?).map_err(|fault| within(source, node, fault))?;
    let is_below = matches!(objective.operator, Operator::Less | Operator::LessOrEqual);
    match (objective.signal.signal.measure, objective.limit) {
        (Measure::Ratio(..), Limit::Ratio(budget)) if is_below && budget > 0.0 => Ok((objective, budget)),
        _ => Err(fields.wrong(
            "slo",
            "a ratio of what may go wrong, above zero, such as `connect.failed_ratio < 0.1%`",
        )),
    }
}

/// The standard ones, changed by `burn`.
fn pairs(fields: &Fields<'_>) -> Result<BTreeMap<String, Pair>, Vec<Problem>> {
    let minutes = |minutes| Duration::from_secs(minutes * 60);
    let mut pairs: BTreeMap<String, Pair> = STANDARD
        .into_iter()
        .map(|(name, factor, long, short, severity)| {
            let pair = Pair {
                factor,
                long: minutes(long),
                short: minutes(short),
                severity,
            };
            (name.to_owned(), pair)
        })
        .collect();
    let Some(node) = fields.get("burn") else {
        return Ok(pairs);
    };
    let rules = entries(fields.source, node, "`burn`").map_err(|problem| vec![problem])?;
    let changed = rules
        .iter()
        .map(|(name, rule)| change(fields.source, &mut pairs, name, rule));
    let mut problems: Vec<_> = changed.filter_map(Result::err).take(MOST_FAULTS).collect();
    if problems.is_empty() && pairs.is_empty() {
        let message = "no rule is left: nothing would be judged";
        problems.push(fields.source.problem(node.place, message));
    }
    match problems.is_empty() {
        true => Ok(pairs),
        false => Err(problems),
    }
}

/// Takes a line of `burn`.
fn change(
    source: Source<'_>,
    pairs: &mut BTreeMap<String, Pair>,
    name: &Node,
    rule: &Node,
) -> Result<(), Problem> {
    let name_text = super::checked_name(source, name)?;
    let rule_text = text(source, rule)?;
    if rule_text == "off" {
        if pairs.remove(name_text).is_none() {
            let known: Vec<_> = pairs.keys().cloned().collect();
            let message = format!("there is no rule `{name_text}`; there are {}", known.join(", "));
            return Err(source.problem(name.place, message));
        }
        return Ok(());
    }
    let pair = pair(rule_text).map_err(|message| source.problem(rule.place, message))?;
    pairs.insert(name_text.to_owned(), pair);
    Ok(())
}

/// `14.4x over 1h and 5m`.
fn pair(typed: &str) -> Result<Pair, String> {
    let wrong = || format!("expected a rule such as `14.4x over 1h and 5m`, or `off`; got `{typed}`");
    let (factor, windows) = typed.split_once("x over ").ok_or_else(wrong)?;
    let (long, short) = windows.split_once(" and ").ok_or_else(wrong)?;
    let factor: f64 = factor.trim().parse().map_err(|_| wrong())?;
    let time = |text: &str| condition::duration(text.trim()).ok_or_else(wrong);
    let (long, short) = (time(long)?, time(short)?);
    if !(factor.is_finite() && factor > 0.0) {
        return Err(wrong());
    }
    let is_whole =
        |time: Duration| !time.is_zero() && time.subsec_nanos() == 0 && time.as_secs().is_multiple_of(60);
    if !is_whole(long) || !is_whole(short) {
        return Err("windows of a budget are whole minutes".to_owned());
    }
    if short >= long || long > LONGEST {
        let longest = duration_text(LONGEST);
        return Err(format!(
            "the first window is the longer one, and at most {longest}; `{typed}` is not so"
        ));
    }
    Ok(Pair {
        factor,
        long,
        short,
        severity: "",
    })
}

/// The assertion that a rule is.
pub(super) fn part(written: &Assertion, rule: &Rule) -> Assertion {
    let severity = if written.severity.is_empty() {
        rule.severity.to_owned()
    } else {
        written.severity.clone()
    };
    Assertion {
        name: format!("{}: {}", written.name, rule.name),
        expect: rule.conditions.to_vec(),
        over: rule.long,
        every: EVERY,
        burn: Some(Burn {
            slo: written.name.clone(),
            factor: rule.factor,
            short: rule.short,
        }),
        severity,
        ..written.clone()
    }
}
