//! What an assertion means, in words, and how it is asked for.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::assertion::condition::duration_text;
use crate::assertion::coverage::Window;
use crate::assertion::evaluate::members_text;
use crate::assertion::plan::{self, Place};
use crate::assertion::signal::QUANTILES;
use crate::assertion::{Assertion, NoData, Pace, Set, Subject, TargetPlace};
use crate::clock::ns;
use crate::store::evidence;

/// The text about the assertion of that name, or about each rule of the objective; `None`: there is none.
pub fn text(set: &Set, name: &str, now_ns: i64) -> Option<String> {
    let named = |assertion: &Assertion| assertion.name == name;
    if let Some(index) = set.assertions.iter().position(named) {
        return of_assertion(set, index, now_ns);
    }
    let is_rule = |assertion: &Assertion| assertion.burn.as_ref().is_some_and(|burn| burn.slo == name);
    let rules = (0..set.assertions.len()).filter(|&index| is_rule(&set.assertions[index]));
    let rules: Vec<_> = rules
        .filter_map(|index| of_assertion(set, index, now_ns))
        .collect();
    if rules.is_empty() {
        return None;
    }
    let noun = if rules.len() == 1 { "rule" } else { "rules" };
    let count = rules.len();
    Some(format!(
        "{name}\nan objective of {count} {noun}\n\n{}",
        rules.join("\n")
    ))
}

/// Every name that there is something to say about.
pub fn names(set: &Set) -> impl Iterator<Item = &str> {
    let names = set.assertions.iter().map(|assertion| assertion.name.as_str());
    let burns = set
        .assertions
        .iter()
        .filter_map(|assertion| assertion.burn.as_ref());
    let objectives: BTreeSet<_> = burns.map(|burn| burn.slo.as_str()).collect();
    names.chain(objectives)
}

fn of_assertion(set: &Set, index: usize, now_ns: i64) -> Option<String> {
    let assertion = &set.assertions[index];
    let mut text = format!("{}\n", assertion.name);
    if !assertion.description.is_empty() {
        text.push_str(&format!("{}\n", assertion.description));
    }
    let origin = &assertion.origin;
    text.push_str(&format!(
        "declared in {}, line {}\n\n",
        origin.file, origin.place.line
    ));
    text.push_str(&meaning(assertion, set.expected_for()));
    text.push_str("\nSignals\n");
    for condition in &assertion.expect {
        let signal = condition.signal.signal;
        text.push_str(&format!("  {}: {}", condition.signal, signal.about));
        if let Some(quantile) = condition.signal.quantile {
            let share = f64::from(10_000 - QUANTILES[quantile].1) / 100.0;
            text.push_str(&format!("; at most {share}% of them may reach the limit"));
        }
        text.push_str(&format!(
            ".\n    Read at {}, from {}.\n",
            signal.end.about(),
            signal.rows.about()
        ));
    }
    text.push_str("\nQuestions (their answer is told apart for each assertion afterwards)\n");
    let schedules = plan::schedules(set);
    let found = schedules.iter().find_map(|schedule| {
        let planned = schedule
            .assertions
            .iter()
            .find(|planned| planned.assertion == index)?;
        Some((schedule, planned))
    });
    let (schedule, planned) = found?;
    let to_ns = now_ns - now_ns.rem_euclid(1_000_000_000);
    let mut asked = Vec::new();
    for place in &planned.conditions {
        match place {
            Place::Agents => {}
            Place::Class { class, .. } if asked.contains(class) => {}
            Place::Class { class, .. } => {
                asked.push(*class);
                let class = &schedule.classes[*class];
                let window = Window {
                    from_ns: to_ns - ns(class.over),
                    to_ns,
                };
                let question = evidence::question(class, window, true);
                text.push_str(&format!("  {}\n", question.sql));
                for (name, value) in question.params {
                    text.push_str(&format!("    {name} = {value}\n"));
                }
            }
        }
    }
    if asked.is_empty() {
        text.push_str("  none: it is about what the agents report of themselves\n");
    }
    Some(text)
}

/// The assertion as sentences.
fn meaning(assertion: &Assertion, expected_for: Duration) -> String {
    let mut lines = Vec::new();
    let whose = match &assertion.subject {
        Subject::Client { from, to } => {
            let port = to.port.map(|port| format!(", port {port}")).unwrap_or_default();
            let place = match &to.place {
                None => "anywhere".to_owned(),
                Some(TargetPlace::Nodes(members)) => format!("nodes of {}", members_text(members)),
                Some(TargetPlace::Address(address)) => address.to_string(),
                Some(TargetPlace::Network(network)) => format!("{}/{}", network.address, network.bits),
            };
            format!(
                "connections from nodes of {} to {place}{port}",
                members_text(from)
            )
        }
        Subject::Server { on, port, from } => {
            let port = port.map(|port| format!(", port {port}")).unwrap_or_default();
            let from = from
                .as_ref()
                .map(|from| format!(", from nodes of {}", members_text(from)))
                .unwrap_or_default();
            format!("what listens on nodes of {}{port}{from}", members_text(on))
        }
    };
    let filtered = if assertion.filter.is_some() {
        ", of which `where` and `ignore` choose some"
    } else {
        ""
    };
    if assertion.sql.is_some() {
        lines.push(
            "It is about what its own question finds; every node of it has to have reported.".to_owned(),
        );
    } else {
        lines.push(format!("It is about {whose}{filtered}."));
    }
    if let Some(burn) = &assertion.burn {
        lines.push(format!(
            "It is a part of the objective `{}`: it fails where the budget is used up {} times faster than it may be, in both \
             windows.",
            burn.slo, burn.factor
        ));
    }
    let expected: Vec<_> = assertion.expect.iter().map(ToString::to_string).collect();
    lines.push(format!(
        "Every {}, the last {} are looked at: {}.",
        duration_text(assertion.every),
        duration_text(assertion.over),
        expected.join(", and ")
    ));
    let by: Vec<_> = assertion.by.iter().map(|dimension| dimension.name()).collect();
    match (by.is_empty(), assertion.quorum) {
        (true, _) => lines.push("There is one verdict, for all of it together.".to_owned()),
        (false, None) => lines.push(format!("There is a verdict for each {}.", by.join(", "))),
        (false, Some(quorum)) => lines.push(format!(
            "There is one verdict: it has to hold for {}% of each {}.",
            quorum.share * 100.0,
            by.join(", ")
        )),
    }
    lines.push(match assertion.pace {
        Pace::For(time) if time.is_zero() => "One window that fails is a violation.".to_owned(),
        Pace::For(time) => format!(
            "It is violated once every window of {} failed, and Pending before.",
            duration_text(time)
        ),
        Pace::Of { failures, windows } => {
            format!("It is violated once {failures} of the last {windows} windows failed.")
        }
    });
    if !assertion.clear_after.is_zero() {
        lines.push(format!(
            "A violation is over once it held for {}.",
            duration_text(assertion.clear_after)
        ));
    }
    if !assertion.hold.is_zero() {
        lines.push(format!(
            "A violation lasts {} at least.",
            duration_text(assertion.hold)
        ));
    }
    let samples = assertion.min_samples.max(1);
    let few = match assertion.no_data {
        NoData::Unknown => "is Unknown",
        NoData::Holds => "passes",
        NoData::Violated => "fails",
    };
    if assertion.min_samples > 0
        || assertion
            .expect
            .iter()
            .any(crate::assertion::condition::Condition::needs_rows)
    {
        lines.push(format!("A window with fewer than {samples} samples {few}."));
    }
    lines.push(format!(
        "It is Unknown while a node that would see the rows is silent, restarted, lost rows of the window, or has not delivered \
         them within {}.",
        duration_text(assertion.deadline)
    ));
    lines.push(format!(
        "A node is expected for {} after it was heard last, and for as long as it is declared.",
        duration_text(expected_for)
    ));
    lines.join("\n") + "\n"
}
