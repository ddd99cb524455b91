//! Whether what was said last of a key still stands, and why not where it does not: a verdict that nobody renews says nothing
//! of now.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::run::SharedSet;
use super::{HEARTBEAT_NS, ns};
use crate::assertion::Assertion;
use crate::seat::{Occupant, Seat};
use crate::store::StoreError;

/// Beyond the time that a window may wait for its evidence: the store's minutes, and a store that is slow.
const SLACK_NS: i64 = 60_000_000_000;

/// Of an assertion that is not declared here, whose windows may be of any length.
const UNDECLARED_NS: i64 = 15 * 60_000_000_000;

/// How far back from the last verdict of all a key may have been judged that is judged still, at least.
const LEAST_REACH_NS: i64 = UNDECLARED_NS;

/// Who judges, and what stands in the way.
pub struct Standing {
    /// Why nobody judges, and what to do.
    nobody: Option<String>,
    /// Why what is declared is not judged, though somebody tries.
    failing: Option<String>,
    /// What is wrong with the files.
    wrong: Option<String>,
    /// Within what time each assertion is told again at least.
    renewed_ns: BTreeMap<String, i64>,
}

/// What is put to a row.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Age {
    /// It says nothing of now.
    is_stale: bool,
    /// Why, or what else there is to know, and what to do. Empty: nothing.
    note: String,
}

impl Standing {
    /// `judged`: what is judged here, if anything is.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn now(judged: Option<&SharedSet>, seat: &Seat) -> Result<Self, StoreError> {
        let nobody = match seat.occupant().await? {
            Occupant::Anybody if judged.is_some() => None,
            Occupant::Anybody => {
                Some("this collector judges nothing: start it with --assertions DIR".to_owned())
            }
            Occupant::Somebody => None,
            Occupant::Nobody(None) => Some("no collector judges: start one with --assertions DIR".to_owned()),
            Occupant::Nobody(Some((host, silent))) => {
                let silent_s = silent.as_secs();
                Some(format!(
                    "no collector judges: the one on {host} did, and is silent for {silent_s}s; start it, or another one, with \
                     --assertions DIR"
                ))
            }
        };
        let trouble = judged.map(SharedSet::trouble).unwrap_or_default();
        let set = judged.map(SharedSet::now);
        let assertions = set.iter().flat_map(|set| &set.assertions);
        Ok(Self {
            nobody,
            failing: trouble.failing,
            wrong: trouble.wrong,
            renewed_ns: assertions
                .map(|assertion| (assertion.name.clone(), renewed_ns(assertion)))
                .collect(),
        })
    }

    /// From when on keys have been judged that are judged still, if the last one of all was at `newest_ns`.
    pub fn since_ns(&self, newest_ns: i64) -> i64 {
        let longest_ns = self.renewed_ns.values().copied().max().unwrap_or_default();
        newest_ns.saturating_sub(longest_ns.max(LEAST_REACH_NS))
    }

    fn age(&self, assertion: &str, age_s: u64) -> Age {
        if let Some(nobody) = &self.nobody {
            return Age {
                is_stale: true,
                note: nobody.clone(),
            };
        }
        let renewed_ns = self.renewed_ns.get(assertion).copied().unwrap_or(UNDECLARED_NS);
        let is_stale = Duration::from_secs(age_s).as_nanos() > i128::from(renewed_ns).unsigned_abs();
        let note = match (&self.failing, &self.wrong) {
            (Some(failing), _) => failing.clone(),
            (_, Some(wrong)) => wrong.clone(),
            _ if is_stale => {
                "it ought to have been judged since: see the log of the collector that judges, which stands still or is behind"
                    .to_owned()
            }
            _ => String::new(),
        };
        Age { is_stale, note }
    }

    /// Puts to rows what is to be known of their age: JSON, an object a line, with `assertion` and `age_s`.
    pub fn annotate(&self, lines: &str) -> Bytes {
        #[derive(Deserialize)]
        struct Row {
            assertion: String,
            age_s: u64,
        }
        let mut text = String::with_capacity(lines.len());
        for line in lines.lines() {
            let row: Option<Row> = serde_json::from_str(line).ok();
            let annotated = row.and_then(|row| {
                let age = serde_json::to_string(&self.age(&row.assertion, row.age_s)).ok()?;
                Some(format!("{},{}", line.strip_suffix('}')?, age.strip_prefix('{')?))
            });
            text.push_str(annotated.as_deref().unwrap_or(line));
            text.push('\n');
        }
        text.into()
    }
}

/// Within what time after its window's end a verdict that stays is told again, however late its evidence may come.
fn renewed_ns(assertion: &Assertion) -> i64 {
    // The window that is shown may have been judged at once, and the one that it is told again with only at its deadline.
    HEARTBEAT_NS
        .saturating_add(ns(assertion.every))
        .saturating_add(ns(assertion.deadline).saturating_mul(2))
        .saturating_add(SLACK_NS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing() -> Standing {
        Standing {
            nobody: None,
            failing: None,
            wrong: None,
            renewed_ns: BTreeMap::from([("a".to_owned(), 130_000_000_000)]),
        }
    }

    #[test]
    fn a_verdict_is_old_once_it_ought_to_have_been_told_again() {
        let check = |standing: &Standing, assertion: &str, age_s: u64, is_stale: bool, note: &str| {
            let age = standing.age(assertion, age_s);
            assert_eq!(age.is_stale, is_stale, "{assertion} {age_s}");
            assert!(
                age.note.starts_with(note) && age.note.is_empty() == note.is_empty(),
                "{age:?}"
            );
        };
        check(&standing(), "a", 130, false, "");
        check(&standing(), "a", 131, true, "it ought to have been judged");
        // Of one that is declared elsewhere it is not known how often it is told.
        check(&standing(), "b", 900, false, "");
        check(&standing(), "b", 901, true, "it ought");
        let failing = Standing {
            failing: Some("cannot be judged".to_owned()),
            ..standing()
        };
        check(&failing, "a", 5, false, "cannot be judged");
        check(&failing, "a", 131, true, "cannot be judged");
        let wrong = Standing {
            wrong: Some("the files are wrong".to_owned()),
            ..standing()
        };
        check(&wrong, "a", 5, false, "the files are wrong");
        let nobody = Standing {
            nobody: Some("nobody judges".to_owned()),
            ..standing()
        };
        check(&nobody, "a", 0, true, "nobody judges");
    }

    #[test]
    fn rows_are_told_their_age_and_keep_all_else() {
        let lines = "{\"assertion\":\"a\",\"key\":\"}\",\"age_s\":131}\n{\"assertion\":\"a\",\"age_s\":1}\n";
        let annotated = standing().annotate(lines);
        let rows: Vec<serde_json::Value> = std::str::from_utf8(&annotated)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(
            (&rows[0]["key"], &rows[0]["is_stale"]),
            (&"}".into(), &true.into())
        );
        assert_eq!(
            (&rows[1]["age_s"], &rows[1]["is_stale"], &rows[1]["note"]),
            (&1.into(), &false.into(), &"".into())
        );
    }

    #[test]
    fn what_is_judged_rarely_is_looked_for_further_back() {
        let standing = |renewed_ns| Standing {
            renewed_ns: BTreeMap::from([("a".to_owned(), renewed_ns)]),
            ..standing()
        };
        let day_ns = 86_400_000_000_000;
        assert_eq!(standing(1).since_ns(day_ns), day_ns - LEAST_REACH_NS);
        assert_eq!(standing(day_ns).since_ns(2 * day_ns), day_ns);
    }
}
