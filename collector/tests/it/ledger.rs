//! `holdfast ledger` as a process, on an agent's own counters: what it shows, in which colour, and its exit codes.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use holdfast_collector::store::embedded::Embedded;
use holdfast_proto::v1::{Hello, Status, Stream, StreamCounters, agent_message};
use serde_json::Value as Json;

use crate::command_line::{holdfast, output, stderr, stdout};
use crate::harness::{Collector, database, number};
use crate::store_rows::{Row, Value, insert_agent_samples, insert_samples};
use crate::synthetic::{Agent, batch, hello, now_ns};

const SECOND_NS: i64 = 1_000_000_000;

/// Red, as a terminal is told to write.
const RED: &str = "\u{1b}[31m";

/// What an agent has counted that opened so many connections and delivered `acknowledged` of them.
fn status_of(opened: u64, acknowledged: u64) -> Status {
    Status {
        observed_at_ns: now_ns().cast_unsigned(),
        epoch: 7,
        streams: vec![StreamCounters {
            stream: Stream::Connections.into(),
            netns: 4_026_531_840,
            opened,
            closed: acknowledged,
            received: acknowledged,
            acknowledged,
            ..StreamCounters::default()
        }],
        ..Status::default()
    }
}

/// Reports, and waits until that is stored: the `count`th report.
async fn report(agent: &Agent, status: Status, store: &Embedded, count: u64) {
    agent.report(status).await;
    while number(store, "SELECT count() FROM agent_samples").await < count {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// An agent that delivered ten connections, of which it says that it opened `opened`.
async fn reporting(collector: &Collector, store: &Embedded, opened: u64) -> Agent {
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 10)).await;
    agent.settled(1).await;
    report(&agent, status_of(opened, 10), store, 1).await;
    agent
}

fn ledger(collector: &Collector, arguments: &[&str]) -> Command {
    let url = collector.url();
    holdfast(&[&["ledger", "--collector", &url], arguments].concat())
}

/// The same on a terminal.
fn on_a_terminal(command: &Command) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let mut terminal = Command::new("script");
    terminal
        .args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    terminal
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_closes_ends_with_0() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let _agent = reporting(&collector, &store, 10).await;
    let shown = output(ledger(&collector, &[])).await;
    assert_eq!(shown.status.code(), Some(0), "{}", stderr(&shown));
    let text = stdout(&shown);
    let row = text.lines().nth(1).unwrap_or_default();
    assert!(row.starts_with("node-a1") && row.ends_with("yes"), "{text}");
    assert!(!text.contains('\u{1b}'), "this is no terminal: {text:?}");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_ends_with_1_and_is_red_on_a_terminal() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let _agent = reporting(&collector, &store, 12).await;
    let shown = output(ledger(&collector, &["--json"])).await;
    assert_eq!(shown.status.code(), Some(1), "{}", stderr(&shown));
    let row: Json = serde_json::from_str(stdout(&shown).trim()).unwrap();
    assert_eq!(row["closes"], Json::Bool(false), "{row}");
    assert_eq!(
        (&row["difference"], &row["balance"]),
        (&2.into(), &"open".into()),
        "{row}"
    );

    let shown = output(on_a_terminal(&ledger(&collector, &[]))).await;
    let text = stdout(&shown);
    assert_eq!(shown.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("{RED}no")), "{text:?}");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_told_ends_with_3_and_says_why() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let nobody = output(ledger(&collector, &[])).await;
    assert_eq!(nobody.status.code(), Some(3));
    let expected = format!(
        "no agent has reported yet; run holdfast-agent run --collector {} on a node\n",
        collector.url()
    );
    assert_eq!(stderr(&nobody), expected);
    let without = output(ledger(&collector, &["--without", "db-1"])).await;
    assert_eq!((without.status.code(), stderr(&without)), (Some(3), expected));

    let minute_ago = Value::Number((now_ns() - 60 * SECOND_NS).cast_unsigned());
    let heard: Row = vec![
        ("node", "db-1".into()),
        ("agent_id", "quiet".into()),
        ("agent_epoch", 7.into()),
        ("observed_at", minute_ago.clone()),
        ("received_at", minute_ago.clone()),
    ];
    insert_agent_samples(&*store, "1", &[heard]).await;
    let counted: Row = vec![
        ("node", "db-1".into()),
        ("agent_id", "quiet".into()),
        ("agent_epoch", 7.into()),
        ("netns", 1.into()),
        ("observed_at", minute_ago),
    ];
    insert_samples(&*store, "1", &[counted]).await;
    let silent = output(ledger(&collector, &[])).await;
    assert_eq!(silent.status.code(), Some(3), "{}", stdout(&silent));
    assert!(stdout(&silent).contains("silent"), "{}", stdout(&silent));
    assert!(
        stderr(&silent).starts_with("db-1 is silent since "),
        "{}",
        stderr(&silent)
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_turned_away_is_named_and_what_it_counts_cannot_be_told() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let agent = reporting(&collector, &store, 10).await;
    let mut second = Agent::dial(collector.address).await;
    let earlier_start = Hello {
        epoch: 6,
        boot_id: "another machine".to_owned(),
        ..hello("a1")
    };
    second.send(agent_message::Body::Hello(earlier_start)).await;
    let status = second.hear().await.expect_err("the id is taken");
    assert_eq!(status.code(), tonic::Code::AlreadyExists, "{status:?}");
    report(&agent, status_of(10, 10), &store, 2).await;

    let shown = output(ledger(&collector, &[])).await;
    assert_eq!(shown.status.code(), Some(3), "{}", stdout(&shown));
    let said = stderr(&shown);
    assert!(
        said.starts_with("two agents say that they are node-a1: the one at 127.0.0.1:")
            && said.ends_with("give one of them another --name\n"),
        "{said}"
    );
    let url = collector.url();
    let nodes = output(holdfast(&["nodes", "--collector", &url])).await;
    assert!(
        stdout(&nodes).contains("the same id at 127.0.0.1:"),
        "{}",
        stdout(&nodes)
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_left_out_by_name_and_a_name_that_nobody_has_is_a_usage_error() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let _agent = reporting(&collector, &store, 12).await;
    let code = async |arguments: &[&str]| {
        let shown = output(ledger(&collector, arguments)).await;
        (
            shown.status.code(),
            stdout(&shown).lines().count(),
            stderr(&shown),
        )
    };
    let (code_of_one, lines, _) = code(&["--node", "node-a1"]).await;
    assert_eq!((code_of_one, lines), (Some(1), 2));
    let (code_of_none, lines, said) = code(&["--without", "node-a1"]).await;
    assert_eq!((code_of_none, lines), (Some(3), 1));
    assert_eq!(said, "all nodes that have reported are left out\n");
    let (wrong, _, said) = code(&["--without", "node-a2"]).await;
    assert_eq!(
        (wrong, said.as_str()),
        (
            Some(2),
            "holdfast: no node node-a2 has reported; those that have: node-a1\n"
        )
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_sees_each_second_what_became_of_it() {
    let store = database().await;
    let collector = Collector::start(store.clone()).await;
    let mut agent = reporting(&collector, &store, 12).await;
    let mut command = ledger(&collector, &["--watch"]);
    let mut watching = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (said, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let stdout = BufReader::new(watching.stdout.take().unwrap());
    let stderr = BufReader::new(watching.stderr.take().unwrap());
    let told = said.clone();
    let readers = [
        tokio::task::spawn_blocking(move || stdout.lines().for_each(|line| drop(said.send(line.unwrap())))),
        tokio::task::spawn_blocking(move || stderr.lines().for_each(|line| drop(told.send(line.unwrap())))),
    ];
    let mut wait_for = async |wanted: &str| {
        let found = async {
            while let Some(line) = lines.recv().await {
                if line.trim_end().ends_with(wanted) {
                    return;
                }
            }
            panic!("it ended without a line that ends with {wanted:?}");
        };
        tokio::time::timeout(Duration::from_secs(30), found)
            .await
            .unwrap_or_else(|_| panic!("no line ends with {wanted:?}"));
    };
    wait_for(" no").await;
    // Two more are delivered: it closes while it is watched.
    agent.deliver(batch(2, 2)).await;
    agent.settled(1).await;
    report(&agent, status_of(12, 12), &store, 2).await;
    wait_for(" yes").await;
    drop(agent);
    collector.stop().await.unwrap();
    wait_for("; asking again").await;
    watching.kill().unwrap();
    watching.wait().unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
}
