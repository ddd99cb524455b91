use super::super::book::Change;
use super::*;
use crate::assertion::receiver::Template;
use std::time::Duration;

fn notification(key: &str, verdict: Verdict) -> Notification {
    Notification {
        id: format!("id-{key}"),
        told_before: None,
        repeat: 0,
        description: "web needs its \"database\"".into(),
        runbook: "https://wiki/db".into(),
        change: Change {
            assertion: "web reaches the database".into(),
            key: key.into(),
            verdict,
            since_ns: 1_772_366_400_000_000_000,
            window_from_ns: 1_772_366_390_000_000_000,
            window_to_ns: 1_772_366_400_000_000_000,
            judged_ns: 1_772_366_401_500_000_000,
            condition: "connect.p99 < 20ms".into(),
            value: Some(35_000.0),
            samples: 812,
            loss: Some(0),
            cause: String::new(),
            evidence: r#"{"readings":[]}"#.into(),
            severity: "page".into(),
            labels: [("team".to_owned(), "db".to_owned())].into(),
            revision: 0,
            fingerprint: 1,
        },
    }
}

fn message(notifications: Vec<Notification>) -> Message {
    Message {
        id: "m1".into(),
        receiver: "on-call".into(),
        assertion: "web reaches the database".into(),
        queued_ns: 0,
        notifications,
    }
}

fn receiver(kind: Kind) -> Receiver {
    Receiver {
        name: "on-call".into(),
        kind,
        url: crate::assertion::receiver::Given::Text("http://localhost".into()),
        ca_file: None,
        matches: BTreeMap::new(),
        on: vec![],
        group_wait: Duration::ZERO,
        repeat: None,
        per_minute: 1,
        give_up_after: Duration::ZERO,
        timeout: Duration::ZERO,
    }
}

#[test]
fn of_several_assertions_what_they_have_in_common_is_said_first() {
    let of = |assertion: &str, cause: &str| {
        let mut told = notification("from.node web-1", Verdict::Unknown);
        told.change.assertion = assertion.into();
        told.change.cause = cause.into();
        told
    };
    let said = |notifications: Vec<Notification>| {
        let message = Message {
            assertion: String::new(),
            ..message(notifications)
        };
        let request = request(&receiver(Kind::Slack), &message, 0);
        let body: Value = serde_json::from_str(&request.body).unwrap();
        let text = body["text"].as_str().unwrap();
        text.lines().next().unwrap().to_owned()
    };
    let silent = "web-1 is silent";
    assert_eq!(
        said(vec![of("a", silent), of("b", silent)]),
        "web-1 is silent: 2 of 2 verdicts unknown, of 2 assertions"
    );
    assert_eq!(
        said(vec![of("a", silent), of("b", silent), of("b", "web-2 is silent")]),
        "2 reasons: 3 of 3 verdicts unknown, of 2 assertions"
    );
    // The worst of each key of each assertion.
    let mut violated = of("b", "");
    violated.change.verdict = Verdict::Violated;
    assert_eq!(
        said(vec![violated, of("a", silent)]),
        "1 of 2 verdicts violated, of 2 assertions"
    );
}

#[test]
fn a_webhook_without_a_template_gets_everything() {
    let kind = Kind::Webhook {
        body: None,
        secret: None,
    };
    let two = message(vec![
        notification("from.node web-1", Verdict::Holds),
        notification("from.node web-2", Verdict::Violated),
    ]);
    let request = request(&receiver(kind), &two, 0);
    assert_eq!(request.headers, [("idempotency-key", "m1".to_owned())]);
    let body: Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(body["verdict"], "violated");
    assert_eq!(
        body["summary"],
        "web reaches the database: 1 of 2 verdicts violated"
    );
    let second = &body["notifications"][1];
    assert_eq!(second["id"], "id-from.node web-2");
    assert_eq!(second["since"], "2026-03-01T12:00:00.000Z");
    assert_eq!(
        second["text"],
        "web reaches the database [from.node web-2]: violated since 2026-03-01T12:00:00.000Z: 35ms, expected connect.p99 < 20ms, \
         812 samples"
    );
    assert_eq!(second["evidence"]["readings"], json!([]));
    assert_eq!((&second["samples"], &second["loss"]), (&json!(812), &json!(0)));
}

#[test]
fn a_template_gets_its_fields() {
    let template = Template::parse(
        r#"{"v": "${verdict}", "k": "${keys}", "n": ${count}, "l": ${labels}, "d": "${description}", "all": ${notifications}}"#,
    )
    .unwrap();
    let kind = Kind::Webhook {
        body: Some(template),
        secret: None,
    };
    let one = message(vec![notification("from.node web-1", Verdict::Unknown)]);
    let body: Value = serde_json::from_str(&request(&receiver(kind), &one, 0).body).unwrap();
    assert_eq!(body["v"], "unknown");
    assert_eq!(body["k"], "from.node web-1");
    assert_eq!(body["n"], 1);
    assert_eq!(body["l"], json!({ "team": "db" }));
    assert_eq!(body["d"], "web needs its \"database\"");
    assert_eq!(body["all"][0]["key"], "from.node web-1");
}

/// By another program: `printf '1772366400.{"a":1}' | openssl dgst -sha256 -hmac s3cret`.
#[test]
fn a_signature_is_the_hmac_of_time_and_body() {
    assert_eq!(
        signature("s3cret", 1_772_366_400_999_999_999, r#"{"a":1}"#),
        format!("t=1772366400,v1={EXPECTED_HMAC}")
    );
}

const EXPECTED_HMAC: &str = "b417797e7d7b61c510208fca568d792c3d58cb9b0040792aba7f74bb2adfcbfe";

#[test]
fn an_alertmanager_is_told_what_fires_and_what_is_resolved() {
    let mut first = notification("from.node web-1", Verdict::Unknown);
    first.told_before = Some(Verdict::Violated);
    first.change.labels.insert("cost-centre".into(), "7".into());
    let mut second = notification("from.node web-2", Verdict::Violated);
    let mut third = notification("from.node web-2", Verdict::Holds);
    third.told_before = Some(Verdict::Violated);
    second.told_before = None;
    let now_ns = 1_772_366_500_000_000_000;
    let told = message(vec![first, second, third]);
    let request = request(&receiver(Kind::Alertmanager), &told, now_ns);
    assert_eq!(request.path, "/api/v2/alerts");
    let alerts: Value = serde_json::from_str(&request.body).unwrap();
    let said: Vec<_> = alerts
        .as_array()
        .unwrap()
        .iter()
        .map(|alert| {
            let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
            let labels = &alert["labels"];
            [
                text(&labels["key"]),
                text(&labels["verdict"]),
                text(&alert["startsAt"]),
                text(&alert["endsAt"]),
            ]
        })
        .collect();
    let since = "2026-03-01T12:00:00.000Z";
    // Four minutes after it is sent.
    let later = "2026-03-01T12:05:40.000Z";
    assert_eq!(
        said,
        [
            ["from.node web-1", "violated", "-", since],
            ["from.node web-1", "unknown", since, later],
            ["from.node web-2", "violated", "-", since],
        ]
    );
    let labels = &alerts[0]["labels"];
    assert_eq!(labels["alertname"], "web reaches the database");
    assert_eq!(labels["cost_centre"], "7");
    assert_eq!(alerts[0]["annotations"]["runbook_url"], "https://wiki/db");
}

#[test]
fn an_alertmanager_tells_the_same_key_of_two_assertions_apart() {
    let first = notification("from.node web-1", Verdict::Violated);
    let mut second = first.clone();
    second.change.assertion = "web reaches the cache".into();
    let told = alerts(&message(vec![first, second]), i64::MAX);
    assert_eq!(told.as_array().map(Vec::len), Some(2), "{told}");
}

#[test]
fn slack_gets_a_text_that_means_what_it_says() {
    let one = message(vec![notification("", Verdict::Violated)]);
    let body: Value = serde_json::from_str(&request(&receiver(Kind::Slack), &one, 0).body).unwrap();
    assert_eq!(
        body["text"],
        "web reaches the database: violated since 2026-03-01T12:00:00.000Z: 35ms, expected connect.p99 &lt; 20ms, 812 \
         samples\nweb needs its \"database\"\nhttps://wiki/db"
    );
}

#[test]
fn a_line_names_the_cause_that_the_kernels_tell() {
    let mut one = notification("", Verdict::Violated);
    one.change.samples = 1;
    let check = |one: &Notification, end: &str| {
        let text = line(one);
        assert!(text.ends_with(end), "{text}");
    };
    check(&one, "expected connect.p99 < 20ms, 1 sample");
    one.change.loss = Some(7);
    check(&one, "1 sample, 7 lost");
    one.change.loss = None;
    one.change.evidence = json!({ "causes": [
        { "cause": "refused", "by": "its own kernel" },
        { "cause": "no_listener", "by": "both ends" },
    ] })
    .to_string();
    check(&one, "1 sample; no_listener");
}

#[test]
fn of_a_key_that_is_judged_no_more_an_alertmanager_is_told_the_end() {
    let mut one = notification("from.node web-1", Verdict::Unknown);
    one.told_before = Some(Verdict::Violated);
    one.change.cause = "its assertion has no such key any more".into();
    one.change.evidence = crate::store::verdicts::IS_OVER.into();
    let told = alerts(&message(vec![one.clone()]), i64::MAX);
    assert_eq!(told.as_array().map(Vec::len), Some(1), "{told}");
    assert_eq!(told[0]["labels"]["verdict"], "violated");
    assert_eq!(told[0]["endsAt"], "2026-03-01T12:00:01.500Z");
    assert!(line(&one).contains("]: ended since "), "{}", line(&one));
    assert_eq!(worst(&message(vec![one])), "ended");
}
