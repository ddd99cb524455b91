//! `holdfast backtest`: what would have been said of the past, as a timeline, and what of it is nobody's verdict.

use std::fs;
use std::path::Path;

use holdfast_collector::engine::{check, files, trial};
use serde_json::Value;

use crate::command_line::{holdfast, output, stderr, stdout};
use crate::harness::{Collector, database, folder, number};
use crate::synthetic::now_ns;

const MINUTE_NS: i64 = 60_000_000_000;

/// Nobody listens at this port: binding it needs a privilege that nobody uses for it.
const NOBODY: &str = "http://127.0.0.1:1";

const REFUSED: &str = "
assertions:
  - { name: nobody is refused, from: all, to: 'all:5432', expect: connect.refused = 0, over: 1m, every: 1m, by: from.node }
  - { name: it is fast, from: all, to: 'all:5432', expect: connect.p99 < 20ms, over: 1m, every: 1m, by: from.node }
";

/// A file of a test, in a folder of its own.
fn file(name: &str, text: &str) -> String {
    let file = folder(name).join("a.yaml");
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

async fn backtest(arguments: &[&str]) -> std::process::Output {
    output(holdfast(&[&["backtest"], arguments].concat())).await
}

/// The objects of an answer: first every change, then where each key stands.
fn objects(text: &str) -> (Vec<Value>, Vec<Value>) {
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .partition(|object| object["is_final"] != true)
}

fn verdicts(rows: &[Value], assertion: &str, key: &str) -> Vec<(String, String)> {
    let of_it = rows
        .iter()
        .filter(|row| row["assertion"] == assertion && row["key"] == key);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    of_it
        .map(|row| (text(&row["verdict"]), text(&row["window_to"])))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_empty_store_nothing_is_known_and_nothing_is_claimed() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let (url, file) = (collector.url(), file("backtest-empty", REFUSED));

    let said = backtest(&["--since", "10m", "--collector", &url, &file]).await;
    assert_eq!(said.status.code(), Some(0), "{}", stderr(&said));
    let text = stdout(&said);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("VERDICT"), "{text}");
    let unknown = |name: &str| {
        let of_it = lines
            .iter()
            .filter(|line| line.starts_with("unknown ") && line.contains(name));
        of_it
            .filter(|line| line.ends_with("no node belongs to all"))
            .count()
    };
    assert_eq!(
        (unknown("nobody is refused"), unknown("it is fast")),
        (1, 1),
        "{text}"
    );
    assert!(lines.contains(&"nobody is refused: once unknown"), "{text}");
    for verdict in ["holds", "violated", "pending"] {
        assert!(!text.contains(verdict), "{text}");
    }

    let said = backtest(&["--since", "10m", "--json", "--collector", &url, &file]).await;
    assert_eq!((said.status.code(), stderr(&said)), (Some(0), String::new()));
    let (changes, last) = objects(&stdout(&said));
    for rows in [&changes, &last] {
        assert_eq!(rows.len(), 2, "{rows:?}");
        assert!(rows.iter().all(|row| row["verdict"] == "unknown"), "{rows:?}");
    }
    // What would have been said is not what was said.
    assert_eq!(number(&store, "SELECT count() FROM verdict_records").await, 0);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_told_change_by_change_and_stored_nowhere() {
    let store = database().await;
    let past = format!(
        "{REFUSED}
tests:
  - assertion: nobody is refused
    given: {{ web-1 -> db-1: '5ms x10m, refused x4m, 5ms x46m', web-2 -> db-1: '5ms x60m' }}
    expect: {{ 2m: Holds }}
"
    );
    let set = files::declared(&[("past.yaml".to_owned(), past)]).unwrap();
    // Half an hour until now, and another one: whoever is asked may take his time.
    let begin_ns = (now_ns() - 30 * MINUTE_NS).div_euclid(MINUTE_NS) * MINUTE_NS;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    let collector = Collector::start(store.clone()).await;
    let (url, file) = (collector.url(), file("backtest-past", REFUSED));
    let minute = |minutes: i64| check::utc(begin_ns + minutes * MINUTE_NS);

    let said = backtest(&["--since", "25m", "--json", "--collector", &url, &file]).await;
    assert_eq!(said.status.code(), Some(0), "{}", stderr(&said));
    let (changes, last) = objects(&stdout(&said));
    let key = "from.node=web-1";
    let of = |assertion, key| {
        let mut told = verdicts(&changes, assertion, key);
        let (first, _) = told.remove(0);
        assert_eq!(first, "holds", "{changes:?}");
        told
    };
    // The first window with a refusal ended 11 minutes in, the last one 14 minutes in.
    let expected = [
        ("violated".to_owned(), minute(11)),
        ("holds".to_owned(), minute(15)),
    ];
    assert_eq!(of("nobody is refused", key), expected);
    // Of attempts that all failed there is no time.
    let expected = [
        ("unknown".to_owned(), minute(11)),
        ("holds".to_owned(), minute(15)),
    ];
    assert_eq!(of("it is fast", key), expected);
    assert_eq!(of("nobody is refused", "from.node=web-2"), []);
    assert!(
        changes.is_sorted_by_key(|change| change["window_to"].as_str().unwrap()),
        "{changes:?}"
    );
    // Of each key where it stands: three nodes, of which the database asks for nothing and so is never refused.
    assert_eq!(last.len(), 6, "{last:?}");
    let stands = |assertion, key: &str| verdicts(&last, assertion, key)[0].0.clone();
    assert_eq!(stands("nobody is refused", key), "holds");
    assert_eq!(stands("it is fast", "from.node=db-1"), "unknown");

    // What is violated is what was asked for, and no failure of who asked.
    let said = backtest(&["--since", "25m", "--collector", &url, &file]).await;
    assert_eq!(said.status.code(), Some(0), "{}", stderr(&said));
    let text = stdout(&said);
    let violated: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("violated "))
        .collect();
    assert_eq!(violated.len(), 1, "{text}");
    for part in [&minute(11)[..19], key, "expected connect.refused = 0"] {
        assert!(violated[0].contains(part), "{part}: {text}");
    }
    let total = "nobody is refused: 4 times holds, once violated";
    assert!(text.lines().any(|line| line == total), "{text}");

    // A past that is over before it began to fail, and one within which it never stopped.
    let said = backtest(&["--since", "5m", "--json", "--collector", &url, &file]).await;
    let (changes, _) = objects(&stdout(&said));
    assert!(
        changes.iter().all(|change| change["verdict"] != "violated"),
        "{changes:?}"
    );
    assert_eq!(number(&store, "SELECT count() FROM verdict_records").await, 0);
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_cannot_be_answered_says_why_with_its_code() {
    let right = file("backtest-right", REFUSED);
    let wrong = file(
        "backtest-wrong",
        "assertions:\n  - { name: a, expect: connect.refsed = 0, over: 1m }\n",
    );
    let missing = Path::new(&right)
        .with_file_name("missing.yaml")
        .display()
        .to_string();
    for (arguments, code, expected) in [
        (
            &[right.as_str()][..],
            4,
            format!(
                "cannot reach the collector at {NOBODY}: connection refused; is \"holdfast serve\" running there?"
            ),
        ),
        (&[&wrong], 2, format!("{wrong}:2:24: ")),
        (&[&right, &wrong], 2, "did you mean connect.refused?".to_owned()),
        (&[&missing], 2, format!("cannot read {missing}: ")),
        (
            &["--since", "0s", &right],
            2,
            "--since is 0s: nothing would be judged".to_owned(),
        ),
        (
            &["--since", "yesterday", &right],
            2,
            "`yesterday` is no length of time".to_owned(),
        ),
        (&[], 2, "<FILES>...".to_owned()),
    ] {
        let said = backtest(&[&["--collector", NOBODY], arguments].concat()).await;
        assert_eq!(said.status.code(), Some(code), "{arguments:?}: {}", stderr(&said));
        assert!(
            stderr(&said).contains(&expected),
            "{arguments:?}: {}",
            stderr(&said)
        );
        assert_eq!(stdout(&said), "", "{arguments:?}");
    }
}
