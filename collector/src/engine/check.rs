//! Judging assertions that somebody brings along: now, for a while, or over the past. Nothing of it is stored.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Engine;
use crate::assertion::Set;
use crate::clock::WallClock;
use crate::store::verdicts::Record;
use crate::store::{Store, StoreError};

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
pub async fn check(
    store: Arc<dyn Store>,
    mut set: Set,
    clock: &WallClock,
    extent: Extent,
    answer: &mpsc::Sender<Result<String, StoreError>>,
) -> Result<(), StoreError> {
    let now_ns = clock.now_ns();
    let longest = set
        .assertions
        .iter()
        .map(|assertion| assertion.every)
        .max()
        .unwrap_or_default();
    let patience = set
        .assertions
        .iter()
        .map(|assertion| assertion.deadline)
        .max()
        .unwrap_or_default();
    let (begin_ns, end_ns) = match extent {
        // The last window of each schedule has ended.
        Extent::Once => (now_ns - ns(longest) + 1, now_ns),
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
    let mut engine = Engine::new(store, set, begin_ns, false);
    engine.stop_at(end_ns);
    engine.without_worst();
    if matches!(extent, Extent::Since(_)) {
        engine.is_past_until(now_ns);
    }
    let mut latest: BTreeMap<(String, String), Record> = BTreeMap::new();
    let mut virtual_ns = begin_ns;
    loop {
        let is_past = matches!(extent, Extent::Since(_)) && virtual_ns < now_ns;
        let at_ns = if is_past { virtual_ns } else { clock.now_ns() };
        let step = engine.step(at_ns).await?;
        for record in step.records {
            if record.is_transition && !matches!(extent, Extent::Once) {
                let line = format!("{}\n", shown(&record));
                if answer.send(Ok(line)).await.is_err() {
                    return Ok(());
                }
            }
            latest.insert((record.assertion.clone(), record.key.clone()), record);
        }
        if engine.is_done(at_ns) || at_ns > end_ns.saturating_add(ns(patience) + 5_000_000_000) {
            break;
        }
        if is_past {
            virtual_ns += ns(engine.shortest()).max(250_000_000);
        } else {
            tokio::time::sleep(STEP).await;
        }
    }
    for (name, key, record) in engine.standings(&latest) {
        let line = match record {
            Some(record) => shown(record),
            None => json!({ "assertion": name, "key": key, "verdict": "unknown",
                "cause": "no window of it could be judged" }),
        };
        let mut line = line;
        line["is_final"] = json!(true);
        if answer.send(Ok(format!("{line}\n"))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
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
        "cause": record.cause,
        "flaps": record.machine.flaps,
    })
}

/// `2026-03-01 12:00:00.500`, UTC.
pub fn utc(ns: i64) -> String {
    let time = std::time::UNIX_EPOCH + Duration::from_nanos(ns.max(0).unsigned_abs());
    let text = humantime::format_rfc3339_millis(time).to_string();
    text.replace('T', " ").trim_end_matches('Z').to_owned()
}

fn ns(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}
