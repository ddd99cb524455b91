//! What receivers are told, in the store: the table `notification_records`. What that is good for is in
//! [`crate::notify`].

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Access, Query, Store, StoreError,
    native::{BlockBuilder, BlockError},
    questions::time_value,
    rollups::lines,
    schema::NOTIFICATION_RECORDS,
    statement::text_value,
};
use crate::assertion::receiver::Receiver;
use crate::assertion::state::Verdict;
use crate::notify::book::{Change, Message, Notification};

/// What a row says. The numbers are those of the column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Begun = 1,
    Queued = 2,
    Failed = 3,
    Sent = 4,
    GivenUp = 5,
}

/// Messages that are looked at at once, the oldest.
const MOST_UNSENT: usize = 200;

/// What was queued longer ago is not sent any more: nobody tries for so long.
const UNSENT_FOR_NS: i64 = 8 * 24 * 3_600_000_000_000;

/// A message that is neither sent nor given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Unsent {
    pub message: String,
    /// Empty: of several.
    pub assertion: String,
    pub queued_ns: i64,
    /// How often it was tried, and when last.
    pub attempts: u32,
    pub tried_ns: i64,
    pub notifications: Vec<Notification>,
}

/// How an attempt went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub receiver: String,
    pub message: String,
    pub assertion: String,
    pub state: State,
    pub at_ns: i64,
    /// From one.
    pub attempt: u32,
    pub reason: String,
}

/// A row, but for what is the same in all of a block.
struct Row<'a> {
    assertion: &'a str,
    attempt: u32,
    reason: &'a str,
    place: u32,
    notification: &'a str,
    key: &'a str,
    verdict: &'a str,
    window_to_ns: i64,
    facts: String,
}

impl<'a> Row<'a> {
    fn plain(assertion: &'a str, attempt: u32, reason: &'a str) -> Self {
        Self {
            assertion,
            attempt,
            reason,
            place: 0,
            notification: "",
            key: "",
            verdict: "",
            window_to_ns: 0,
            facts: String::new(),
        }
    }
}

fn block(
    (receiver, message): (&str, &str),
    (state, at_ns): (State, i64),
    rows: &[Row<'_>],
) -> Result<super::Block, BlockError> {
    fn column<'a, T>(rows: &'a [Row<'_>], value: impl Fn(&'a Row<'_>) -> T) -> Vec<T> {
        rows.iter().map(value).collect()
    }
    let own: Vec<u32> = (0..rows.len() as u32).collect();
    let mut block = BlockBuilder::new(&NOTIFICATION_RECORDS, rows.len())?;
    block.low_cardinality_constant("node", "")?;
    block.low_cardinality_constant("receiver", receiver)?;
    block.strings("message", &vec![message; rows.len()])?;
    block.enums("state", &vec![state as i8; rows.len()])?;
    block.datetimes("at", &vec![at_ns; rows.len()])?;
    block.u32s("attempt", &column(rows, |row| row.attempt))?;
    block.strings("reason", &column(rows, |row| row.reason))?;
    block.u32s("place", &column(rows, |row| row.place))?;
    block.strings("notification", &column(rows, |row| row.notification))?;
    block.low_cardinality("assertion", &column(rows, |row| row.assertion), &own)?;
    block.strings("key", &column(rows, |row| row.key))?;
    block.low_cardinality("verdict", &column(rows, |row| row.verdict), &own)?;
    block.datetimes("window_to", &column(rows, |row| row.window_to_ns))?;
    block.strings("facts", &column(rows, |row| row.facts.as_str()))?;
    block.finish()
}

async fn write(
    store: &dyn Store,
    token: &str,
    block: Result<super::Block, BlockError>,
) -> Result<(), StoreError> {
    let block = block.map_err(|error| StoreError::rejected(error.to_string()))?;
    store.insert(NOTIFICATION_RECORDS.name, token, block).await
}

/// Since when a receiver is told, as it is defined now. That is now if it was defined otherwise before, or not at all.
pub async fn begun(store: &dyn Store, receiver: &Receiver, now_ns: i64) -> Result<i64, StoreError> {
    #[derive(serde::Deserialize)]
    struct Found {
        message: String,
        at_ns: String,
    }
    let sql = "SELECT message, toString(toUnixTimestamp64Nano(at)) AS at_ns FROM notification_records \
               WHERE receiver = {receiver:String} AND state = 'begun' ORDER BY at DESC LIMIT 1";
    let params = vec![("receiver".to_owned(), text_value(&receiver.name))];
    let found: Vec<Found> = lines(store, sql.to_owned(), params).await?;
    let definition = format!("{:08x}", receiver.fingerprint());
    if let Some(found) = found.first()
        && found.message == definition
        && let Ok(at_ns) = found.at_ns.parse()
    {
        return Ok(at_ns);
    }
    let rows = [Row::plain("", 0, "")];
    let block = block((&receiver.name, &definition), (State::Begun, now_ns), &rows);
    write(store, &format!("begun-{definition}-{now_ns}"), block).await?;
    Ok(now_ns)
}

/// What a receiver was told, oldest first: everything since then, and of each key the last before.
pub async fn told(
    store: &dyn Store,
    receiver: &str,
    since_ns: i64,
) -> Result<Vec<(i64, Notification)>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Found {
        at_ns: String,
        facts: String,
    }
    let sql = "SELECT toString(toUnixTimestamp64Nano(at)) AS at_ns, facts FROM \
               (SELECT at, place, notification, any(facts) AS facts FROM \
               (SELECT * FROM notification_records WHERE receiver = {receiver:String} AND state = 'queued' \
               AND at > {since:DateTime64(9, 'UTC')} UNION ALL \
               SELECT * FROM (SELECT * FROM notification_records WHERE receiver = {receiver:String} AND state = 'queued' \
               AND at <= {since:DateTime64(9, 'UTC')} ORDER BY at DESC, place DESC LIMIT 1 BY assertion, key)) \
               GROUP BY at, place, notification) ORDER BY at, place";
    let params = vec![
        ("receiver".to_owned(), text_value(receiver)),
        ("since".to_owned(), time_value(since_ns)),
    ];
    let found: Vec<Found> = lines(store, sql.to_owned(), params).await?;
    let told = found.into_iter().filter_map(|found| {
        // One of another version was told, but of what is not known.
        let notification = serde_json::from_str(&found.facts).ok()?;
        Some((found.at_ns.parse().ok()?, notification))
    });
    Ok(told.collect())
}

/// Every change of a verdict that was judged since, and of each key the last one before.
pub async fn changes(store: &dyn Store, since_ns: i64) -> Result<Vec<Change>, StoreError> {
    const SINCE: &str = "judged_at > {since:DateTime64(9, 'UTC')} AND (is_transition OR revision > 0)";
    const BEFORE: &str = "judged_at <= {since:DateTime64(9, 'UTC')} AND (is_transition OR revision > 0) \
                          ORDER BY window_to DESC, revision DESC LIMIT 1 BY assertion, key";
    let mut changes = changes_where(store, SINCE, since_ns).await?;
    changes.extend(changes_where(store, BEFORE, since_ns).await?);
    Ok(changes)
}

async fn changes_where(store: &dyn Store, which: &str, since_ns: i64) -> Result<Vec<Change>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Found {
        assertion: String,
        key: String,
        verdict: Verdict,
        /// Nanoseconds, of: since, the window's begin and end, and when it was judged.
        times: [String; 4],
        condition: String,
        has_value: bool,
        value: Option<f64>,
        samples: String,
        loss: Option<String>,
        cause: String,
        evidence: String,
        severity: String,
        labels: BTreeMap<String, String>,
        revision: u32,
        fingerprint: u32,
    }
    let sql = format!(
        "SELECT assertion, key, toString(verdict) AS verdict, \
               arrayMap(time -> toString(toUnixTimestamp64Nano(time)), [since, window_from, window_to, judged_at]) AS times, \
               condition, has_value, value, toString(samples) AS samples, toString(loss) AS loss, cause, evidence, severity, labels, revision, \
               fingerprint FROM verdict_records WHERE {which}"
    );
    let params = vec![("since".to_owned(), time_value(since_ns))];
    let found: Vec<Found> = lines(store, sql, params).await?;
    let number = |text: &str| text.parse().unwrap_or_default();
    let changes = found.into_iter().map(|found| Change {
        since_ns: number(&found.times[0]),
        window_from_ns: number(&found.times[1]),
        window_to_ns: number(&found.times[2]),
        judged_ns: number(&found.times[3]),
        assertion: found.assertion,
        key: found.key,
        verdict: found.verdict,
        condition: found.condition,
        value: found.value.filter(|_| found.has_value),
        samples: found.samples.parse().unwrap_or_default(),
        loss: found.loss.and_then(|loss| loss.parse().ok()),
        cause: found.cause,
        evidence: found.evidence,
        severity: found.severity,
        labels: found.labels,
        revision: found.revision,
        fingerprint: found.fingerprint,
    });
    Ok(changes.collect())
}

/// Makes a message durable, all of it or nothing. The same again adds nothing that counts. `deadline_ms` is the block's.
pub async fn queue(store: &dyn Store, message: &Message, deadline_ms: Option<u64>) -> Result<(), StoreError> {
    let rows: Vec<Row<'_>> = message
        .notifications
        .iter()
        .zip(0..)
        .map(|(notification, place)| Row {
            place,
            notification: &notification.id,
            key: &notification.change.key,
            verdict: notification.change.said(),
            window_to_ns: notification.change.window_to_ns,
            facts: serde_json::to_string(notification).unwrap_or_default(),
            ..Row::plain(&notification.change.assertion, 0, "")
        })
        .collect();
    let named = (&*message.receiver, &*message.id);
    let block = block(named, (State::Queued, message.queued_ns), &rows).map(|mut block| {
        block.deadline_ms = deadline_ms;
        block
    });
    write(
        store,
        &format!("queued-{}-{}", message.id, message.queued_ns),
        block,
    )
    .await
}

/// Writes down how an attempt went.
pub async fn settle(store: &dyn Store, outcome: &Outcome) -> Result<(), StoreError> {
    let rows = [Row::plain(&outcome.assertion, outcome.attempt, &outcome.reason)];
    let named = (&*outcome.receiver, &*outcome.message);
    let block = block(named, (outcome.state, outcome.at_ns), &rows);
    let token = format!(
        "attempt-{}-{}-{}",
        outcome.message, outcome.attempt, outcome.at_ns
    );
    write(store, &token, block).await
}

/// What is still to be sent to a receiver, oldest first: of each assertion the first, since the others wait for it.
pub async fn unsent(store: &dyn Store, receiver: &str, now_ns: i64) -> Result<Vec<Unsent>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Found {
        message: String,
        about: String,
        queued_ns: String,
        attempts: u32,
        tried_ns: String,
        facts: Vec<(u32, String)>,
    }
    let sql = "SELECT message, \
               if(uniqExactIf(assertion, state = 'queued') > 1, '', anyIf(assertion, state = 'queued')) AS about, \
               toString(toUnixTimestamp64Nano(minIf(at, state = 'queued') AS queued_at)) AS queued_ns, \
               max(attempt) AS attempts, toString(toUnixTimestamp64Nano(maxIf(at, state = 'failed'))) AS tried_ns, \
               arraySort(groupUniqArrayIf((place, facts), state = 'queued')) AS facts FROM notification_records \
               WHERE receiver = {receiver:String} AND state != 'begun' AND at > {since:DateTime64(9, 'UTC')} \
               GROUP BY message HAVING countIf(state IN ('sent', 'given_up')) = 0 AND countIf(state = 'queued') > 0 \
               ORDER BY queued_at, message LIMIT 1 BY if(about = '', message, about) LIMIT {most:UInt64}";
    let params = vec![
        ("receiver".to_owned(), text_value(receiver)),
        (
            "since".to_owned(),
            time_value(now_ns.saturating_sub(UNSENT_FOR_NS)),
        ),
        ("most".to_owned(), MOST_UNSENT.to_string()),
    ];
    let found: Vec<Found> = lines(store, sql.to_owned(), params).await?;
    let unsent = found.into_iter().map(|found| Unsent {
        message: found.message,
        assertion: found.about,
        queued_ns: found.queued_ns.parse().unwrap_or_default(),
        attempts: found.attempts,
        tried_ns: found.tried_ns.parse().unwrap_or_default(),
        notifications: found
            .facts
            .iter()
            .filter_map(|(_, facts)| serde_json::from_str(facts).ok())
            .collect(),
    });
    Ok(unsent.collect())
}

/// The ids of notifications that are still to be sent to a receiver.
pub async fn unsent_ids(
    store: &dyn Store,
    receiver: &str,
    now_ns: i64,
) -> Result<BTreeSet<String>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Found {
        ids: Vec<String>,
    }
    let sql = "SELECT groupUniqArrayIf(notification, state = 'queued') AS ids FROM notification_records \
               WHERE receiver = {receiver:String} AND state != 'begun' AND at > {since:DateTime64(9, 'UTC')} \
               GROUP BY message HAVING countIf(state IN ('sent', 'given_up')) = 0";
    let since_ns = now_ns.saturating_sub(UNSENT_FOR_NS);
    let params = vec![
        ("receiver".to_owned(), text_value(receiver)),
        ("since".to_owned(), time_value(since_ns)),
    ];
    let found: Vec<Found> = lines(store, sql.to_owned(), params).await?;
    Ok(found.into_iter().flat_map(|found| found.ids).collect())
}

/// What was queued since, or waits, oldest first.
pub fn shown(since_ns: i64) -> Query {
    Query {
        sql: "SELECT * FROM notifications WHERE queued_at > {since:DateTime64(9, 'UTC')} OR state IN ('queued', 'failed') \
              ORDER BY queued_at, receiver, message, window_to, key"
            .into(),
        params: vec![("since".to_owned(), time_value(since_ns))],
        format: "JSONEachRow".into(),
        access: Access::Internal,
    }
}
