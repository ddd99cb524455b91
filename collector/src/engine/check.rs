//! Judging assertions that somebody brings along: now, for a while, or over the past. Nothing of it is stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Engine;
use super::heard::Heard;
use crate::assertion::Set;
use crate::assertion::coverage::{FOUND_WITHIN, Listening};
use crate::assertion::state::Verdict;
use crate::clock::{self, WallClock, ns};
use crate::store::verdicts::Record;
use crate::store::{Store, StoreError, evidence};

/// How often is looked whether a window can be judged.
const STEP: Duration = Duration::from_millis(250);

/// Windows of one schedule that the past is cut into at most: what is asked for more often is then judged less often.
const MOST_WINDOWS: u128 = 10_000;

/// Which windows are judged.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// One of each schedule, the last one.
    Once,
    /// Those that end within this time from now on.
    For(Duration),
    /// Those that ended within this time until now.
    Since(Duration),
}

/// Judges a set. A line of JSON for each change of a verdict, and at the end one with the verdicts of all keys.
/// `heard`: when agents could be heard.
pub async fn check(
    store: Arc<dyn Store>,
    mut set: Set,
    clock: &WallClock,
    extent: Extent,
    heard: &Heard,
    answer: &mpsc::Sender<Result<String, StoreError>>,
) -> Result<(), StoreError> {
    let now_ns = clock.now_ns();
    let patience = set
        .assertions
        .iter()
        .map(|assertion| assertion.deadline)
        .max()
        .unwrap_or_default();
    let (begin_ns, end_ns) = match extent {
        Extent::Once => (now_ns, now_ns),
        Extent::For(time) => (now_ns, now_ns.saturating_add(ns(time))),
        Extent::Since(time) => (now_ns.saturating_sub(ns(time)), now_ns),
    };
    if let Extent::Since(time) = extent {
        for assertion in &mut set.assertions {
            while time.as_nanos() / assertion.every.as_nanos() > MOST_WINDOWS {
                assertion.every *= 2;
            }
        }
    }
    let mut engine = Engine::new(store.clone(), set, begin_ns, false);
    match extent {
        // It has ended, and what it came to is told whatever it is.
        Extent::Once => engine.only_last_until(end_ns),
        Extent::For(_) | Extent::Since(_) => engine.stop_at(end_ns),
    }
    // Agents may be on their way back to a collector that has just begun to listen.
    let patience_ns = ns(patience.max(FOUND_WITHIN)) + engine.settles_ns() + 5_000_000_000;
    let opened = match extent {
        Extent::Since(_) => None,
        Extent::Once | Extent::For(_) => opened(&*store, heard, now_ns, patience_ns).await?,
    };
    if matches!(extent, Extent::Since(_)) {
        // What comes of the past is counted: nobody reads what spoke against each verdict of it.
        engine.without_worst();
        engine.is_past_until(now_ns);
    }
    let mut beginnings = matches!(extent, Extent::For(_)).then(|| Beginnings {
        begin_ns,
        excused: BTreeMap::new(),
    });
    let mut latest: BTreeMap<(String, String), Record> = BTreeMap::new();
    let mut virtual_ns = begin_ns;
    loop {
        let is_past = matches!(extent, Extent::Since(_)) && virtual_ns < now_ns;
        let at_ns = if is_past { virtual_ns } else { clock.now_ns() };
        if let Some(opened) = opened {
            // How long a step takes here is no pause in which nobody listened.
            engine.listen(heard.listening().unwrap_or_else(|| opened.until(at_ns)));
        }
        let step = engine.step(at_ns).await?;
        for record in step.records {
            let place = (record.assertion.clone(), record.key.clone());
            let told = match (extent, &mut beginnings) {
                (Extent::Once, _) => Vec::new(),
                (_, Some(beginnings)) => {
                    let every_ns = engine.every_ns(&record.assertion);
                    beginnings.told(&record, !latest.contains_key(&place), every_ns)
                }
                (_, None) => Vec::from_iter(record.is_transition.then(|| record.clone())),
            };
            for record in told {
                if answer.send(Ok(format!("{}\n", shown(&record)))).await.is_err() {
                    return Ok(());
                }
            }
            latest.insert(place, record);
        }
        // Who could not be heard for a while has the time from then on, once.
        let listening_ns = engine.listening().from_ns().min(at_ns);
        let last_ns = listening_ns.clamp(end_ns, end_ns.saturating_add(patience_ns));
        if engine.is_done(at_ns) || at_ns > last_ns.saturating_add(patience_ns) {
            break;
        }
        if is_past {
            virtual_ns += ns(engine.shortest()).max(250_000_000);
        } else {
            tokio::time::sleep(STEP).await;
        }
    }
    for mut line in last_lines(&engine, &latest, clock.now_ns()) {
        line["is_final"] = json!(true);
        if answer.send(Ok(format!("{line}\n"))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Since when agents could be heard here, where no judge knows better. `None`: they are not let in.
async fn opened(
    store: &dyn Store,
    heard: &Heard,
    now_ns: i64,
    patience_ns: i64,
) -> Result<Option<Listening>, StoreError> {
    let Some(opened_ns) = heard.opened_ns() else {
        return Ok(None);
    };
    let is_new = now_ns < opened_ns.saturating_add(patience_ns);
    let before_ns = match heard.listening() {
        None if is_new => evidence::last_heard(store, opened_ns).await?,
        _ => None,
    };
    Ok(Some(Listening::since(opened_ns, before_ns.unwrap_or(opened_ns))))
}

/// How every key stands at the end; and which assertions were not judged for everybody.
fn last_lines(engine: &Engine, latest: &BTreeMap<(String, String), Record>, now_ns: i64) -> Vec<Value> {
    let unknown = |name: &str, key: &str, cause: &str| json!({ "assertion": name, "key": key, "verdict": "unknown", "cause": cause });
    let unjudged: BTreeMap<_, _> = engine.unjudged(now_ns).into_iter().collect();
    let standings = engine.standings(latest).into_iter();
    let mut lines: Vec<Value> = standings
        .filter_map(|(name, key, record)| match record {
            Some(record) => Some(shown(record)),
            None if unjudged.contains_key(&name) => None,
            None => Some(unknown(&name, &key, "no window of it could be judged")),
        })
        .collect();
    lines.extend(unjudged.iter().map(|(name, waited_for)| {
        let waited_for = match waited_for.len() {
            0 => "its rows".to_owned(),
            1..=3 => Vec::from_iter(waited_for.iter().map(String::as_str)).join(", "),
            nodes => format!("{nodes} nodes"),
        };
        unknown(
            name,
            "",
            &format!("it was not judged for everybody: {waited_for} did not come in time"),
        )
    }));
    lines
}

/// What keys begin with. That a key is unknown from its first window on is told, once; except where only the time before the check is
/// not known, in windows that reach back to it.
struct Beginnings {
    begin_ns: i64,
    /// What was not told, by assertion and key.
    excused: BTreeMap<(String, String), Record>,
}

impl Beginnings {
    /// What is told of a record: what its key began with, if that is known only now, and the record if its verdict changed.
    fn told(&mut self, record: &Record, is_first: bool, every_ns: i64) -> Vec<Record> {
        let mut told = Vec::from_iter(self.take(record, is_first, every_ns));
        // To the engine the first verdict of a key is a change, whichever it is.
        let is_beginning = is_first && record.machine.verdict == Verdict::Unknown;
        if record.is_transition && !is_beginning {
            told.push(record.clone());
        }
        told
    }

    /// Takes what came to a key; gives what is to be told of its beginning. `every_ns`: from one of its windows to the next.
    fn take(&mut self, record: &Record, is_first: bool, every_ns: i64) -> Option<Record> {
        let place = (record.assertion.clone(), record.key.clone());
        let is_unknown = record.machine.verdict == Verdict::Unknown;
        if is_first && is_unknown {
            if record.window_from_ns >= self.begin_ns || !record.is_of_beginning {
                return Some(record.clone());
            }
            self.excused.insert(place, record.clone());
            return None;
        }
        let excused = self.excused.remove(&place)?;
        // Of what stays as it is only some windows are heard of: the last one that was unknown is the one before a change.
        let last_from_ns = match is_unknown {
            true => record.window_from_ns,
            false => record.window_from_ns - every_ns,
        };
        if last_from_ns >= self.begin_ns {
            return Some(if is_unknown { record.clone() } else { excused });
        }
        if is_unknown {
            if !record.is_of_beginning {
                return Some(record.clone());
            }
            self.excused.insert(place, excused);
        }
        None
    }
}

/// A verdict for the one who asked.
pub fn shown(record: &Record) -> Value {
    json!({
        "assertion": record.assertion,
        "key": record.key,
        "verdict": record.machine.verdict.name(),
        "previous": record.previous.name(),
        "window_to": utc(record.window_to_ns),
        "since": utc(record.machine.since_ns),
        "condition": record.condition,
        "value": record.value,
        "threshold": record.threshold,
        "samples": record.samples,
        "loss": record.loss,
        "cause": record.cause,
        "evidence": record.evidence,
        "flaps": record.machine.flaps,
    })
}

/// `2026-03-01 12:00:00.500`, UTC.
pub fn utc(ns: i64) -> String {
    clock::utc(ns).replace('T', " ").trim_end_matches('Z').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assertion::cause::Cause;
    use crate::assertion::state::Machine;

    const SECOND: i64 = 1_000_000_000;
    const BEGIN: i64 = 1_000 * SECOND;

    /// A verdict of the window of ten seconds that ended so long after the check began.
    fn record(after_s: i64, verdict: Verdict, cause: Option<&Cause>) -> Record {
        let to_ns = BEGIN + after_s * SECOND;
        let mut machine = Machine::new(to_ns);
        machine.verdict = verdict;
        Record {
            node: String::new(),
            assertion: "a".into(),
            key: String::new(),
            key_values: Vec::new(),
            previous: Verdict::Unknown,
            is_transition: false,
            window_from_ns: to_ns - 10 * SECOND,
            window_to_ns: to_ns,
            judged_ns: to_ns,
            cause: cause.map(ToString::to_string).unwrap_or_default(),
            is_of_beginning: cause.is_some_and(Cause::is_of_beginning),
            condition: String::new(),
            value: None,
            threshold: 0.0,
            samples: 0,
            loss: None,
            silenced: false,
            severity: String::new(),
            labels: Vec::new(),
            evidence: String::new(),
            revision: 0,
            fingerprint: 0,
            machine,
        }
    }

    #[test]
    fn that_a_key_is_unknown_from_the_start_is_told_unless_only_the_time_before_is_not_known() {
        let web = || "web".to_owned();
        let not_watched = Some(Cause::NotWatched { node: web() });
        let no_data = Some(Cause::TooFewSamples {
            samples: 0,
            needed: 1,
        });
        let silent = Some(Cause::Silent { node: web() });
        let check = |records: &[(i64, Verdict, &Option<Cause>)], expected: &[i64]| {
            let mut beginnings = Beginnings {
                begin_ns: BEGIN,
                excused: BTreeMap::new(),
            };
            let records = records
                .iter()
                .map(|(at, verdict, cause)| record(*at, *verdict, cause.as_ref()));
            let mut previous = None;
            let told = records.enumerate().flat_map(|(at, mut record)| {
                let verdict = record.machine.verdict;
                record.is_transition = previous.replace(verdict) != Some(verdict);
                beginnings.told(&record, at == 0, SECOND)
            });
            let told: Vec<_> = told
                .map(|record| (record.window_to_ns - BEGIN) / SECOND)
                .collect();
            assert_eq!(told, expected);
        };
        let (unknown, holds) = (Verdict::Unknown, Verdict::Holds);
        check(&[(1, unknown, &not_watched), (8, holds, &None)], &[8]);
        check(&[(1, unknown, &no_data), (10, holds, &None)], &[10]);
        // The window that ended after 11 seconds lay within the check and was unknown still.
        check(&[(1, unknown, &not_watched), (12, holds, &None)], &[1, 12]);
        check(&[(1, unknown, &silent), (8, holds, &None)], &[1, 8]);
        check(&[(10, unknown, &not_watched), (20, holds, &None)], &[10, 20]);
        check(
            &[
                (1, unknown, &not_watched),
                (5, unknown, &silent),
                (8, holds, &None),
            ],
            &[5, 8],
        );
        check(&[(1, holds, &None), (8, unknown, &silent)], &[1, 8]);
    }
}
