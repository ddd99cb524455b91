//! Whether what was said last of a key still stands, and why not where it does not: a verdict that nobody renews says nothing
//! of now.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use humantime::parse_rfc3339_weak;
use serde::{Deserialize, Serialize};

use super::run::SharedSet;
use super::{HEARTBEAT_NS, ns};
use crate::assertion::Assertion;
use crate::seat::{Occupant, Seat};
use crate::store::StoreError;
use crate::store::verdicts::{RARE_NS, Reach};

/// Beyond the time that a window may wait for its evidence: the store's minutes, and a store that is slow.
const SLACK_NS: i64 = 60_000_000_000;

/// Within what time one is told again that is not declared here, beside its window's length, which is the most that its `every`
/// can be: `deadline` is ten minutes at most.
const UNDECLARED_NS: i64 = HEARTBEAT_NS + 2 * 600_000_000_000 + SLACK_NS;

/// Of one that is not declared here, the longest `every`. Only windows of objectives are longer, and these are judged each minute.
const LONGEST_NS: i64 = 86_400_000_000_000;

/// How far back from the last verdict of all a key may have been judged that is judged still, at least: a minute, `every` where
/// windows are not rare, and the longest `deadline`.
const LEAST_REACH_NS: i64 = 15 * 60_000_000_000;

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
    /// What is judged may be declared elsewhere.
    has_others: bool,
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
        let is_ours = *seat.is_ours().borrow();
        // Where another one judges, it does so by its own files.
        let trouble = judged
            .filter(|_| is_ours)
            .map(SharedSet::trouble)
            .unwrap_or_default();
        let set = judged.map(SharedSet::now);
        let assertions = set.iter().flat_map(|set| &set.assertions);
        Ok(Self {
            nobody,
            failing: trouble.failing,
            wrong: trouble.wrong,
            renewed_ns: assertions
                .map(|assertion| (assertion.name.clone(), renewed_ns(assertion)))
                .collect(),
            has_others: !is_ours,
        })
    }

    /// From when on keys have been judged that are judged still, if the last one of all was at `newest_ns`.
    pub fn reach(&self, newest_ns: i64) -> Reach {
        let longest_ns = self.renewed_ns.values().copied().max().unwrap_or_default();
        let (mut least_ns, mut rare_ns) = (LEAST_REACH_NS, longest_ns);
        if self.has_others {
            least_ns = least_ns.max(UNDECLARED_NS + RARE_NS);
            rare_ns = rare_ns.max(UNDECLARED_NS + LONGEST_NS);
        }
        Reach {
            since_ns: newest_ns.saturating_sub(least_ns),
            rare_since_ns: newest_ns.saturating_sub(rare_ns.max(least_ns)),
        }
    }

    /// `age`: since the window's end. `window`: how long it was.
    fn age(&self, assertion: &str, age: Duration, window: Duration) -> Age {
        if let Some(nobody) = &self.nobody {
            return Age {
                is_stale: true,
                note: nobody.clone(),
            };
        }
        let renewed_ns = self.renewed_ns.get(assertion).copied();
        let renewed_ns = renewed_ns.unwrap_or_else(|| UNDECLARED_NS + ns(window).min(LONGEST_NS));
        let is_stale = ns(age) > renewed_ns;
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

    /// Puts to rows what is to be known of their age: JSON, an object a line, with `assertion`, `age_s` and the window.
    pub fn annotate(&self, lines: &str) -> Bytes {
        #[derive(Deserialize)]
        struct Row {
            assertion: String,
            age_s: u64,
            #[serde(default)]
            window_from: String,
            #[serde(default)]
            window_to: String,
        }
        impl Row {
            fn window(&self) -> Option<Duration> {
                let [from, to] =
                    [&self.window_from, &self.window_to].map(|time| parse_rfc3339_weak(time).ok());
                to?.duration_since(from?).ok()
            }
        }
        let mut text = String::with_capacity(lines.len());
        for line in lines.lines() {
            let row: Option<Row> = serde_json::from_str(line).ok();
            let annotated = row.and_then(|row| {
                let age = Duration::from_secs(row.age_s);
                let age = self.age(&row.assertion, age, row.window().unwrap_or_default());
                let age = serde_json::to_string(&age).ok()?;
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
            has_others: false,
        }
    }

    #[test]
    fn a_verdict_is_old_once_it_ought_to_have_been_told_again() {
        let check = |standing: &Standing, assertion: &str, age_s: u64, is_stale: bool, note: &str| {
            let age = standing.age(assertion, Duration::from_secs(age_s), Duration::from_secs(3_600));
            assert_eq!(age.is_stale, is_stale, "{assertion} {age_s}");
            assert!(
                age.note.starts_with(note) && age.note.is_empty() == note.is_empty(),
                "{age:?}"
            );
        };
        check(&standing(), "a", 130, false, "");
        check(&standing(), "a", 131, true, "it ought to have been judged");
        // Of one that is declared elsewhere it is not known how often it is told.
        check(&standing(), "b", 22 * 60 + 3_600, false, "");
        check(&standing(), "b", 22 * 60 + 3_601, true, "it ought");
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

    /// The view `verdicts` knows of no files, so all is declared elsewhere.
    #[test]
    fn the_view_of_now_reaches_as_far_back() {
        const VIEW: &str = include_str!("../store/views/verdicts.sql");
        let minute_ns = 60_000_000_000;
        for (bound, times) in [
            (format!("- INTERVAL {} MINUTE\n", LEAST_REACH_NS / minute_ns), 1),
            (format!("- INTERVAL {} MINUTE,\n", UNDECLARED_NS / minute_ns), 1),
            (
                format!(
                    "- INTERVAL 1 DAY - INTERVAL {} MINUTE AND",
                    UNDECLARED_NS / minute_ns
                ),
                2,
            ),
            (format!(">= {RARE_NS}\n"), 1),
        ] {
            assert_eq!(VIEW.matches(&bound).count(), times, "{bound}");
        }
        assert_eq!(LONGEST_NS, 24 * 60 * minute_ns);
    }

    #[test]
    fn rows_are_told_their_age_and_keep_all_else() {
        let lines = "{\"assertion\":\"a\",\"key\":\"}\",\"age_s\":131}\n{\"assertion\":\"a\",\"age_s\":1}\n\
                     {\"assertion\":\"rare\",\"window_from\":\"2026-03-01 23:00:00.000000000\",\
                     \"window_to\":\"2026-03-02 01:00:00.500000000\",\"age_s\":8000}\n";
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
        assert_eq!(rows[2]["is_stale"], false, "its windows last two hours");
    }

    #[test]
    fn what_is_judged_rarely_is_looked_for_further_back() {
        let check = |renewed_ns: i64, has_others: bool, since_ns: i64, rare_since_ns: i64| {
            let standing = Standing {
                renewed_ns: BTreeMap::from([("a".to_owned(), renewed_ns)]),
                has_others,
                ..standing()
            };
            let reach = Reach {
                since_ns: -since_ns,
                rare_since_ns: -rare_since_ns,
            };
            assert_eq!(standing.reach(0), reach, "{renewed_ns} {has_others}");
        };
        let two_days_ns = 2 * LONGEST_NS;
        check(1, false, LEAST_REACH_NS, LEAST_REACH_NS);
        check(two_days_ns, false, LEAST_REACH_NS, two_days_ns);
        // Of what is declared elsewhere it is not known how rarely it is judged.
        let others_ns = UNDECLARED_NS + RARE_NS;
        check(1, true, others_ns, UNDECLARED_NS + LONGEST_NS);
        check(two_days_ns, true, others_ns, two_days_ns);
    }
}
