//! What a message looks like to the one who gets it. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ring::hmac;
use serde_json::{Value, json};

use super::book::{Message, Notification};
use crate::assertion::condition::{Condition, value_text};
use crate::assertion::receiver::{ALERTMANAGER_REPEAT, Kind, Receiver, label_name};
use crate::assertion::state::Verdict;
use crate::clock::{ns, utc};

/// The form of what is sent; it counts up when a field changes its meaning.
const VERSION: u32 = 1;

/// An Alertmanager takes an alert for resolved once it was not told of it for so many times of `repeat`.
const ENDS_AFTER_REPEATS: u32 = 4;

/// An HTTP request but for its secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is appended to the path of the URL.
    pub path: &'static str,
    pub body: String,
    pub headers: Vec<(&'static str, String)>,
}

/// The request that tells a message. `now_ns`: when it is sent.
pub fn request(receiver: &Receiver, message: &Message, now_ns: i64) -> Request {
    let body = match &receiver.kind {
        Kind::Webhook { body: None, .. } => everything(message).to_string(),
        Kind::Webhook {
            body: Some(template), ..
        } => template.fill(|field| field_text(message, field)),
        Kind::Alertmanager => {
            let repeat = receiver.repeat.unwrap_or(ALERTMANAGER_REPEAT);
            alerts(message, now_ns.saturating_add(ns(repeat * ENDS_AFTER_REPEATS))).to_string()
        }
        Kind::Slack => json!({ "text": slack_text(message) }).to_string(),
        // Nothing is queued for it.
        Kind::DeadMansSwitch { .. } => String::new(),
    };
    let path = match receiver.kind {
        Kind::Alertmanager => "/api/v2/alerts",
        _ => "",
    };
    Request {
        path,
        body,
        headers: vec![("idempotency-key", message.id.clone())],
    }
}

/// The header of a signed request: `t=SECONDS,v1=HEX`, where HEX is the HMAC-SHA256 of `SECONDS.BODY`. The time is in what
/// is signed, so that nobody can send an old request again later and pass it off as new.
pub fn signature(secret: &str, now_ns: i64, body: &str) -> String {
    let seconds = now_ns.div_euclid(1_000_000_000);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

fn everything(message: &Message) -> Value {
    json!({
        "version": VERSION,
        "id": message.id,
        "receiver": message.receiver,
        "assertion": message.assertion,
        "verdict": worst(message),
        "summary": summary(message),
        "notifications": notifications(message),
    })
}

fn notifications(message: &Message) -> Value {
    message.notifications.iter().map(whole).collect()
}

fn whole(notification: &Notification) -> Value {
    let change = &notification.change;
    json!({
        "id": notification.id,
        "assertion": change.assertion,
        "key": change.key,
        "verdict": change.said(),
        "told_before": notification.told_before.map(Verdict::name),
        "repeat": notification.repeat,
        "since": utc(change.since_ns),
        "window_from": utc(change.window_from_ns),
        "window_to": utc(change.window_to_ns),
        "judged_at": utc(change.judged_ns),
        "condition": change.condition,
        "value": change.value,
        "samples": change.samples,
        "loss": change.loss,
        "cause": change.cause,
        "evidence": serde_json::from_str::<Value>(&change.evidence).unwrap_or_default(),
        "severity": change.severity,
        "labels": change.labels,
        "revision": change.revision,
        "description": notification.description,
        "runbook": notification.runbook,
        "text": line(notification),
    })
}

/// An alert is told apart by its labels. What a key is now fires under a label of its own, and what it was told to be before
/// is resolved.
fn alerts(message: &Message, ends_ns: i64) -> Value {
    let mut alerts: BTreeMap<(&str, &str, Verdict), Value> = BTreeMap::new();
    for notification in &message.notifications {
        let change = &notification.change;
        let (assertion, key) = (change.assertion.as_str(), change.key.as_str());
        if let Some(before) = notification.told_before
            && before != Verdict::Holds
            && (before != change.verdict || change.is_over())
        {
            // What is judged no more was open until now.
            let ended_ns = if change.is_over() {
                change.judged_ns
            } else {
                change.window_to_ns
            };
            let resolved = json!({
                "labels": alert_labels(notification, before),
                "annotations": annotations(notification),
                "endsAt": utc(ended_ns),
            });
            alerts.insert((assertion, key, before), resolved);
        }
        if change.verdict != Verdict::Holds && !change.is_over() {
            let firing = json!({
                "labels": alert_labels(notification, change.verdict),
                "annotations": annotations(notification),
                "startsAt": utc(change.since_ns),
                "endsAt": utc(ends_ns),
            });
            alerts.insert((assertion, key, change.verdict), firing);
        }
    }
    alerts.into_values().collect()
}

fn alert_labels(notification: &Notification, verdict: Verdict) -> BTreeMap<String, String> {
    let change = &notification.change;
    let of_assertion = change.labels.iter();
    let mut labels: BTreeMap<String, String> = of_assertion
        .map(|(name, value)| (label_name(name), value.clone()))
        .collect();
    labels.insert("alertname".into(), change.assertion.clone());
    labels.insert("verdict".into(), verdict.name().into());
    for (name, value) in [("key", &change.key), ("severity", &change.severity)] {
        if !value.is_empty() {
            labels.insert(name.into(), value.clone());
        }
    }
    labels
}

fn annotations(notification: &Notification) -> Value {
    let mut annotations = BTreeMap::from([("summary", line(notification))]);
    for (name, value) in [
        ("description", &notification.description),
        ("runbook_url", &notification.runbook),
    ] {
        if !value.is_empty() {
            annotations.insert(name, value.clone());
        }
    }
    json!(annotations)
}

/// A line for each verdict, and what to do. Of several assertions, first what they have in common. `&`, `<` and `>` mean
/// something there, and are written as Slack wants them.
fn slack_text(message: &Message) -> String {
    let mut lines: Vec<String> = message.notifications.iter().map(line).collect();
    let first = &message.notifications[0];
    if message.assertion.is_empty() {
        lines.insert(0, summary(message));
    } else {
        let whole = [&first.description, &first.runbook].into_iter();
        lines.extend(whole.filter(|text| !text.is_empty()).cloned());
    }
    lines
        .join("\n")
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// In the order of who should get up first.
fn worst(message: &Message) -> &'static str {
    const ORDER: [Verdict; 4] = [
        Verdict::Violated,
        Verdict::Unknown,
        Verdict::Pending,
        Verdict::Holds,
    ];
    // What has become of each key is its last verdict in the message.
    let latest: BTreeMap<(&str, &str), &str> = message
        .notifications
        .iter()
        .map(|one| {
            (
                (one.change.assertion.as_str(), one.change.key.as_str()),
                one.change.said(),
            )
        })
        .collect();
    ORDER
        .into_iter()
        .map(Verdict::name)
        .find(|verdict| latest.values().any(|found| found == verdict))
        .unwrap_or("ended")
}

/// `web reaches the database: 2 of 3 verdicts violated`, or of several assertions `web-1 is silent: 12 of 12 verdicts unknown, of
/// 7 assertions`.
fn summary(message: &Message) -> String {
    let several = match message.notifications.as_slice() {
        [one] => return line(one),
        several => several,
    };
    let worst = worst(message);
    let of_worst = || several.iter().filter(|one| one.change.said() == worst);
    let count = format!("{} of {} verdicts {worst}", of_worst().count(), several.len());
    if !message.assertion.is_empty() {
        return format!("{}: {count}", message.assertion);
    }
    let assertions: BTreeSet<_> = several.iter().map(|one| &one.change.assertion).collect();
    let causes: BTreeSet<_> = of_worst().map(|one| one.change.cause.as_str()).collect();
    let why = match causes.len() {
        1 => causes
            .first()
            .map(|cause| (*cause).to_owned())
            .unwrap_or_default(),
        several => format!("{several} reasons"),
    };
    let why = if why.is_empty() { why } else { format!("{why}: ") };
    format!("{why}{count}, of {} assertions", assertions.len())
}

/// `web reaches the database [from.node web-1]: violated since 12:00:00: 35ms, expected connect.p99 < 20ms, 812 samples`.
pub fn line(notification: &Notification) -> String {
    let change = &notification.change;
    let key = match change.key.as_str() {
        "" => String::new(),
        key => format!(" [{key}]"),
    };
    let is_still = match notification.repeat {
        0 => "",
        _ => "still ",
    };
    let correction = match change.revision {
        0 => "",
        _ => " (said otherwise before; its rows came late)",
    };
    let why = if change.cause.is_empty() {
        let value = match (change.value, Condition::read_back(&change.condition)) {
            (Some(value), Some(condition)) => value_text(condition.signal.signal.unit, value),
            (Some(value), None) => value.to_string(),
            (None, _) => "nothing".to_owned(),
        };
        let samples = if change.samples == 1 { "sample" } else { "samples" };
        let lost = change.loss.filter(|loss| *loss > 0);
        let lost = lost.map(|loss| format!(", {loss} lost"));
        let kernel = top_cause(&change.evidence).map(|cause| format!("; {cause}"));
        format!(
            "{value}, expected {}, {} {samples}{}{}",
            change.condition,
            change.samples,
            lost.unwrap_or_default(),
            kernel.unwrap_or_default()
        )
    } else {
        change.cause.clone()
    };
    format!(
        "{}{key}: {is_still}{} since {}: {why}{correction}",
        change.assertion,
        change.said(),
        utc(change.since_ns)
    )
}

/// The cause that both ends tell of most attempts, or else their own kernel.
pub fn top_cause(evidence: &str) -> Option<String> {
    let evidence: Value = serde_json::from_str(evidence).ok()?;
    let causes = evidence["causes"].as_array()?;
    let is_decided = |cause: &&Value| cause["by"] != "its own kernel";
    let cause = causes.iter().find(is_decided).or(causes.first())?;
    cause["cause"].as_str().map(str::to_owned)
}

fn field_text(message: &Message, field: &str) -> String {
    let first = &message.notifications[0];
    match field {
        "id" => message.id.clone(),
        "receiver" => message.receiver.clone(),
        "assertion" => message.assertion.clone(),
        "verdict" => worst(message).to_owned(),
        "keys" => {
            let mut keys: Vec<_> = message
                .notifications
                .iter()
                .map(|one| one.change.key.as_str())
                .collect();
            keys.dedup();
            keys.join(", ")
        }
        "count" => message.notifications.len().to_string(),
        "summary" => summary(message),
        "text" => message
            .notifications
            .iter()
            .map(line)
            .collect::<Vec<_>>()
            .join("\n"),
        "severity" => first.change.severity.clone(),
        "labels" => json!(first.change.labels).to_string(),
        "description" => first.description.clone(),
        "runbook" => first.runbook.clone(),
        _ => notifications(message).to_string(),
    }
}

#[cfg(test)]
#[path = "body/tests.rs"]
mod tests;
