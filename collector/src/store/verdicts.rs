//! Verdicts in the store: how they are written, and how the engine finds where it stood.

use std::collections::BTreeMap;

use super::{
    Access, Block, Query, Store, StoreError, answer_to,
    native::{BlockBuilder, BlockError},
    questions::time_value,
    rollups,
    schema::VERDICT_RECORDS,
    statement,
};
use crate::assertion::state::{Machine, Verdict};

/// A row of `verdict_records`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub node: String,
    pub assertion: String,
    pub key: String,
    /// The values of the key, for the engine.
    pub key_values: Vec<String>,
    pub previous: Verdict,
    pub is_transition: bool,
    pub window_from_ns: i64,
    pub window_to_ns: i64,
    pub judged_ns: i64,
    pub cause: String,
    /// [`Cause::is_of_beginning`]. Not stored: who checks for a while asks.
    pub is_of_beginning: bool,
    pub condition: String,
    pub value: Option<f64>,
    pub threshold: f64,
    pub samples: u64,
    /// As in [`Judgement`](crate::assertion::evaluate::Judgement).
    pub loss: Option<u64>,
    pub silenced: bool,
    pub severity: String,
    pub labels: Vec<(String, String)>,
    /// JSON.
    pub evidence: String,
    pub revision: u32,
    pub fingerprint: u32,
    pub machine: Machine,
}

/// The evidence of the last record of a key that is judged no more: none. `views/verdicts.sql` knows it too.
pub const IS_OVER: &str = r#"{"is_over":true}"#;

impl Record {
    /// Whether the key is judged no more.
    pub fn is_over(&self) -> bool {
        self.evidence == IS_OVER
    }

    /// The last record of a key: it is unknown from the last window on, and why nobody will know.
    pub fn over(stood: Stood, cause: String, now_ns: i64) -> Self {
        let previous = stood.machine.verdict;
        // Whatever is judged of the key later is of a later window, however late this is said.
        let at_ns = stood.machine.judged_ns.saturating_add(1);
        let window_from_ns = stood.machine.judged_ns;
        let mut machine = stood.machine;
        machine.verdict = Verdict::Unknown;
        (machine.since_ns, machine.judged_ns) = (at_ns, at_ns);
        Self {
            node: stood.node,
            assertion: stood.assertion,
            key: stood.key_text,
            key_values: stood.key,
            previous,
            is_transition: true,
            window_from_ns,
            window_to_ns: at_ns,
            judged_ns: now_ns,
            cause,
            is_of_beginning: false,
            condition: stood.condition,
            value: None,
            threshold: 0.0,
            samples: 0,
            loss: None,
            silenced: false,
            severity: stood.severity,
            labels: stood.labels,
            evidence: IS_OVER.to_owned(),
            revision: 0,
            fingerprint: stood.fingerprint,
            machine,
        }
    }

    /// Puts what speaks against the condition into its evidence.
    pub fn accuse(&mut self, worst: Vec<serde_json::Value>, causes: Vec<serde_json::Value>) {
        let Ok(serde_json::Value::Object(mut evidence)) = serde_json::from_str(&self.evidence) else {
            return;
        };
        if !worst.is_empty() {
            evidence.insert("worst".to_owned(), worst.into());
        }
        if !causes.is_empty() {
            evidence.insert("causes".to_owned(), causes.into());
        }
        self.evidence = serde_json::Value::Object(evidence).to_string();
    }
}

/// What is stored of a key for the next start, beside its verdict.
#[derive(serde::Serialize, serde::Deserialize)]
struct State {
    key: Vec<String>,
    machine: Machine,
}

/// Where a key stood.
#[derive(Clone, Debug, PartialEq)]
pub struct Stood {
    pub assertion: String,
    pub key: Vec<String>,
    /// As the store has it.
    pub key_text: String,
    pub fingerprint: u32,
    pub machine: Machine,
    /// As its last record had them.
    pub node: String,
    pub condition: String,
    pub severity: String,
    pub labels: Vec<(String, String)>,
}

/// Where keys stood that are judged still.
#[derive(Debug, Default)]
pub struct Standings {
    /// Of the assertions that were asked for.
    pub known: Vec<Stood>,
    /// Of others, which were judged lately.
    pub others: Vec<Stood>,
}

/// Makes verdicts durable, all or none. `deadline_ms` is the block's.
pub async fn write(
    store: &dyn Store,
    token: &str,
    records: &[Record],
    deadline_ms: Option<u64>,
) -> Result<(), StoreError> {
    let mut block = block(records).map_err(|error| StoreError::rejected(error.to_string()))?;
    block.deadline_ms = deadline_ms;
    store.insert(VERDICT_RECORDS.name, token, block).await
}

fn block(records: &[Record]) -> Result<Block, BlockError> {
    let mut block = BlockBuilder::new(&VERDICT_RECORDS, records.len())?;
    let texts = |text: fn(&Record) -> &str| records.iter().map(text).collect::<Vec<_>>();
    let times = |time: fn(&Record) -> i64| records.iter().map(time).collect::<Vec<_>>();
    let verdicts = |verdict: fn(&Record) -> Verdict| {
        let number = |verdict: Verdict| {
            Verdict::ALL
                .iter()
                .position(|known| *known == verdict)
                .unwrap_or_default()
        };
        records
            .iter()
            .map(|record| number(verdict(record)) as i8 + 1)
            .collect::<Vec<_>>()
    };
    let bools = |truth: fn(&Record) -> bool| records.iter().map(truth).collect::<Vec<_>>();
    let states: Vec<String> = records
        .iter()
        .map(|record| {
            let state = State {
                key: record.key_values.clone(),
                machine: record.machine.clone(),
            };
            serde_json::to_string(&state).unwrap_or_default()
        })
        .collect();
    low_cardinality(&mut block, "node", &texts(|record| &record.node))?;
    low_cardinality(&mut block, "assertion", &texts(|record| &record.assertion))?;
    block.strings("key", &texts(|record| &record.key))?;
    block.enums("verdict", &verdicts(|record| record.machine.verdict))?;
    block.enums("previous", &verdicts(|record| record.previous))?;
    block.bools("is_transition", &bools(|record| record.is_transition))?;
    block.datetimes("since", &times(|record| record.machine.since_ns))?;
    block.datetimes("window_from", &times(|record| record.window_from_ns))?;
    block.datetimes("window_to", &times(|record| record.window_to_ns))?;
    block.datetimes("judged_at", &times(|record| record.judged_ns))?;
    block.strings("cause", &texts(|record| &record.cause))?;
    block.strings("condition", &texts(|record| &record.condition))?;
    block.bools("has_value", &bools(|record| record.value.is_some()))?;
    let values: Vec<f64> = records
        .iter()
        .map(|record| record.value.unwrap_or_default())
        .collect();
    block.f64s("value", &values)?;
    let thresholds: Vec<f64> = records.iter().map(|record| record.threshold).collect();
    block.f64s("threshold", &thresholds)?;
    let samples: Vec<u64> = records.iter().map(|record| record.samples).collect();
    block.u64s("samples", &samples)?;
    let losses: Vec<Option<u64>> = records.iter().map(|record| record.loss).collect();
    block.nullable_u64s("loss", &losses)?;
    let lag_us = |record: &Record| (record.judged_ns - record.window_to_ns).max(0).unsigned_abs() / 1_000;
    block.u64s("lag_us", &records.iter().map(lag_us).collect::<Vec<_>>())?;
    let flaps: Vec<u32> = records.iter().map(|record| record.machine.flaps).collect();
    block.u32s("flaps", &flaps)?;
    block.bools("silenced", &bools(|record| record.silenced))?;
    low_cardinality(&mut block, "severity", &texts(|record| &record.severity))?;
    let labels: Vec<_> = records.iter().map(|record| record.labels.clone()).collect();
    block.string_maps("labels", &labels)?;
    block.strings("evidence", &texts(|record| &record.evidence))?;
    block.u32s(
        "revision",
        &records.iter().map(|record| record.revision).collect::<Vec<_>>(),
    )?;
    let fingerprints: Vec<u32> = records.iter().map(|record| record.fingerprint).collect();
    block.u32s("fingerprint", &fingerprints)?;
    block.strings("state", &states)?;
    block.finish()
}

fn low_cardinality(block: &mut BlockBuilder, name: &str, texts: &[&str]) -> Result<(), BlockError> {
    let mut dictionary: Vec<&str> = texts.to_vec();
    dictionary.sort_unstable();
    dictionary.dedup();
    let indexes: Vec<u32> = texts
        .iter()
        .map(|text| dictionary.partition_point(|known| known < text) as u32)
        .collect();
    block.low_cardinality(name, &dictionary, &indexes)
}

/// Where every key of these assertions stood when its assertion was judged last, however long ago: keys that were judged within
/// `back_ns` before that. And likewise of all other assertions that were judged about when the last of all was.
pub async fn stood(store: &dyn Store, names: &[&str], back_ns: i64) -> Result<Standings, StoreError> {
    #[derive(serde::Deserialize)]
    struct Last {
        assertion: String,
        at_ns: String,
    }
    let sql = "SELECT assertion, toString(toUnixTimestamp64Nano(max(judged_at))) AS at_ns FROM verdict_records \
               GROUP BY assertion";
    let last: Vec<Last> = rollups::lines(store, sql.to_owned(), vec![]).await?;
    let mut last: Vec<(&str, i64)> = last
        .iter()
        .map(|last| (last.assertion.as_str(), last.at_ns.parse().unwrap_or_default()))
        .collect();
    let Some(newest_ns) = last.iter().map(|(_, at_ns)| *at_ns).max() else {
        return Ok(Standings::default());
    };
    last.retain(|(assertion, _)| names.contains(assertion));
    // What is judged is judged every minute at least, so one question finds nearly all.
    let since_ns = newest_ns.saturating_sub(back_ns);
    let (mut known, others): (Vec<_>, Vec<_>) = stood_since(store, "", since_ns)
        .await?
        .into_iter()
        .partition(|found| names.contains(&found.assertion.as_str()));
    for (assertion, at_ns) in last {
        if at_ns <= since_ns {
            known.extend(stood_since(store, assertion, at_ns.saturating_sub(back_ns)).await?);
        }
    }
    Ok(Standings { known, others })
}

/// `name`: of this assertion only; empty: of any.
async fn stood_since(store: &dyn Store, name: &str, since_ns: i64) -> Result<Vec<Stood>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Row {
        assertion: String,
        key: String,
        fingerprint: u32,
        state: String,
        node: String,
        condition: String,
        severity: String,
        labels: BTreeMap<String, String>,
        is_over: u8,
    }
    let named = if name.is_empty() {
        "true"
    } else {
        "assertion = {name:String}"
    };
    let sql = format!(
        "SELECT assertion, key, fingerprint, state, node, condition, severity, labels, \
         evidence = '{IS_OVER}' AS is_over FROM verdict_records \
         WHERE {named} AND judged_at > {{since:DateTime64(9, 'UTC')}} \
         ORDER BY window_to DESC, revision DESC LIMIT 1 BY assertion, key"
    );
    let mut params = vec![("since".to_owned(), time_value(since_ns))];
    if !name.is_empty() {
        params.push(("name".to_owned(), statement::text_value(name)));
    }
    let question = Query {
        sql,
        params,
        format: "JSONEachRow".into(),
        access: Access::Internal,
    };
    let answer = answer_to(store, question).await?;
    let stood = answer.lines().filter_map(|line| {
        // One of another version is begun anew.
        let row: Row = serde_json::from_str(line).ok()?;
        if row.is_over == 1 {
            return None;
        }
        let State { key, machine } = serde_json::from_str(&row.state).ok()?;
        Some(Stood {
            assertion: row.assertion,
            key,
            key_text: row.key,
            fingerprint: row.fingerprint,
            machine,
            node: row.node,
            condition: row.condition,
            severity: row.severity,
            labels: row.labels.into_iter().collect(),
        })
    });
    Ok(stood.collect())
}

/// Of one assertion, or of an objective all of its rules; nothing: of all.
fn named(name: &str, params: &mut Vec<(String, String)>) -> &'static str {
    if name.is_empty() {
        return "true";
    }
    params.push(("name".to_owned(), statement::text_value(name)));
    // Only conditions of rules have a window of their own.
    "(assertion = {name:String} OR (startsWith(assertion, concat({name:String}, ': ')) AND position(condition, ' over ') > 0))"
}

/// Every change since then, oldest first.
pub fn history(name: &str, since_ns: i64) -> Query {
    let mut params = Vec::new();
    let named = named(name, &mut params);
    params.push(("since".to_owned(), time_value(since_ns)));
    Query {
        sql: format!(
            "SELECT * FROM verdict_changes WHERE {named} AND judged_at > {{since:DateTime64(9, 'UTC')}} \
             ORDER BY window_to, revision, assertion, key"
        ),
        params,
        format: "JSONEachRow".into(),
        access: Access::Internal,
    }
}

/// When anything was judged last; `None`: nothing ever was.
pub async fn newest_ns(store: &dyn Store) -> Result<Option<i64>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Newest {
        at_ns: String,
    }
    let sql = "SELECT toString(toUnixTimestamp64Nano(max(judged_at))) AS at_ns FROM verdict_records HAVING count() > 0";
    let newest: Vec<Newest> = rollups::lines(store, sql.to_owned(), vec![]).await?;
    Ok(newest.first().and_then(|newest| newest.at_ns.parse().ok()))
}

/// When a key that is judged still was judged last, at the earliest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    pub since_ns: i64,
    /// Of windows of [`RARE_NS`] at least, which may be judged as rarely.
    pub rare_since_ns: i64,
}

/// Windows that are shorter are judged so often that their keys are written every few minutes.
pub const RARE_NS: i64 = 150_000_000_000;

/// Where every key that is judged still stood last, the worst first. Beside the columns of the view `verdicts`, `age_s` says how
/// long before `now_ns` its window ended: where judging is behind, one that was judged just now is old too.
pub fn latest(name: &str, reach: Reach, now_ns: i64) -> Query {
    let mut params = Vec::new();
    let named = named(name, &mut params);
    params.push(("since".to_owned(), time_value(reach.since_ns)));
    params.push(("rare_since".to_owned(), time_value(reach.rare_since_ns)));
    params.push(("now".to_owned(), time_value(now_ns)));
    // The last word on a key has a window of a nanosecond, whatever its windows were.
    let lately = format!(
        "{named} AND judged_at > {{rare_since:DateTime64(9, 'UTC')}} AND (judged_at > {{since:DateTime64(9, 'UTC')}} \
         OR toUnixTimestamp64Nano(window_to) - toUnixTimestamp64Nano(window_from) NOT BETWEEN 2 AND {})",
        RARE_NS - 1
    );
    // Which rows are the last is decided by their short columns: of all others the evidence need not be kept.
    Query {
        sql: format!(
            "SELECT node, assertion, key, verdict, previous, is_transition, since, window_from, window_to, judged_at, cause, \
             condition, has_value, value, threshold, samples, loss, lag_us, flaps, silenced, severity, labels, evidence, revision, \
             toUInt32(greatest(0, dateDiff('second', window_to, {{now:DateTime64(9, 'UTC')}}))) AS age_s FROM verdict_records \
             WHERE {lately} AND (assertion, key, window_to, revision) GLOBAL IN (SELECT assertion, key, last.1, last.2 FROM \
             (SELECT assertion, key, max((window_to, revision)) AS last FROM verdict_records WHERE {lately} \
             GROUP BY assertion, key)) AND evidence != '{IS_OVER}' ORDER BY \
             indexOf(['violated', 'unknown', 'pending', 'holds'], toString(verdict)), assertion, key LIMIT 1 BY assertion, key \
             SETTINGS max_threads = 2, max_memory_usage = 2000000000"
        ),
        params,
        format: "JSONEachRow".into(),
        access: Access::Internal,
    }
}
