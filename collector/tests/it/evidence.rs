//! What assertions are judged by, held against rows that are written for it.

use holdfast_collector::assertion::coverage::Window;
use holdfast_collector::assertion::evaluate::LabelledRows;
use holdfast_collector::assertion::plan;
use holdfast_collector::assertion::signal::{Rows, Sum};
use holdfast_collector::assertion::worst::{Suspects, Worst};
use holdfast_collector::engine::files;
use holdfast_collector::filter::{Filter, Value};
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{Store, evidence, worst};
use std::future::ready;

use crate::harness::{database, number};
use crate::store_engine::Rephrased;
use crate::synthetic::now_ns;

const SECOND_NS: i64 = 1_000_000_000;

/// The end of the window that is asked about.
fn until_ns() -> i64 {
    now_ns() - 600 * SECOND_NS
}

/// Writes rows of these columns; what is not named is empty.
async fn write(store: &Embedded, table: &str, columns: &str, rows: &[String]) {
    let rows = rows.join("), (");
    store
        .execute(&format!("INSERT INTO {table} ({columns}) VALUES ({rows})"))
        .await
        .unwrap();
}

fn at(ns: i64) -> String {
    format!("fromUnixTimestamp64Nano(toInt64({ns}), 'UTC')")
}

/// What a condition about server ends is judged by in the minute until then.
async fn asked(store: &Embedded, expect: &str, until_ns: i64) -> Vec<LabelledRows> {
    let text = format!("assertions: [{{ name: a, on: all, expect: '{expect}', over: 60s }}]");
    let set = files::declared(&[("a.yaml".to_owned(), text)]).unwrap();
    let schedules = plan::schedules(&set);
    let window = Window {
        from_ns: until_ns - 60 * SECOND_NS,
        to_ns: until_ns,
    };
    evidence::ask(store, &schedules[0].classes[0], window, false)
        .await
        .unwrap()
        .unwrap()
}

async fn sum(store: &Embedded, expect: &str, sum: Sum, until_ns: i64) -> u64 {
    let rows = asked(store, expect, until_ns).await;
    rows.iter().map(|row| row.sums[sum as usize]).sum()
}

#[tokio::test]
async fn what_ended_since_the_last_look_is_not_open() {
    let (store, until_ns) = (database().await, until_ns());
    let look = until_ns - 5 * SECOND_NS;
    let samples = (1..=4).map(|cookie| format!("'n', 2, 1, {}, 1, {cookie}, 'a', 7", at(look)));
    write(
        &store,
        "connection_samples",
        "node, role, outcome, observed_at, weight, cookie, agent_id, netns",
        &samples.collect::<Vec<_>>(),
    )
    .await;
    let end = |cookie: u64, netns: u32, seconds: i64| {
        format!(
            "'n', 2, 1, {}, true, {cookie}, 'a', {netns}",
            at(look + seconds * SECOND_NS)
        )
    };
    write(
        &store,
        "connection_records",
        "node, role, outcome, recorded_at, is_final, cookie, agent_id, netns",
        // The socket of the second had another connection before it was seen, the third ends after the window, and the
        // fourth's cookie is also that of a socket in another namespace.
        &[end(1, 7, 2), end(2, 7, -2), end(3, 7, 8), end(4, 8, 2)],
    )
    .await;
    assert_eq!(sum(&store, "connections.open > 0", Sum::Rows, until_ns).await, 3);
    assert_eq!(
        sum(&store, "connections.established > 0", Sum::Established, until_ns).await,
        3
    );
}

#[tokio::test]
async fn what_a_new_listener_turned_away_before_anyone_looked_counts() {
    let (store, until_ns) = (database().await, until_ns());
    let look = |agent: &str, cookie: u64, seconds_ago: i64, backlog: u32, drops: u32| {
        let at = at(until_ns - seconds_ago * SECOND_NS);
        format!("'{agent}', {at}, {backlog}, 10, {drops}, {cookie}, '{agent}', 7")
    };
    write(
        &store,
        "listener_samples",
        "node, observed_at, backlog, backlog_limit, drops, cookie, agent_id, netns",
        &[
            // Looked before the window: one listener was there, another began in it.
            look("known", 1, 65, 0, 100),
            look("known", 1, 55, 9, 103),
            look("known", 2, 45, 9, 40),
            look("known", 2, 35, 9, 42),
            // Never looked before: what it found may be as old as the node.
            look("fresh", 3, 50, 9, 1_000),
            look("fresh", 3, 40, 9, 1_005),
        ],
    )
    .await;
    assert_eq!(
        sum(&store, "listener.drops < 1", Sum::Drops, until_ns).await,
        3 + 42 + 5
    );
    // A listener that passes a filter only now is not new.
    let text =
        "assertions: [{ name: a, on: all, expect: listener.drops < 1, over: 60s, where: backlog > 5 }]";
    let set = files::declared(&[("a.yaml".to_owned(), text.to_owned())]).unwrap();
    let window = Window {
        from_ns: until_ns - 60 * SECOND_NS,
        to_ns: until_ns,
    };
    let class = &plan::schedules(&set)[0].classes[0];
    let rows = evidence::ask(&*store, class, window, false)
        .await
        .unwrap()
        .unwrap();
    let passing = rows.iter().filter(|row| row.passes == 1 && row.node == "known");
    assert_eq!(passing.map(|row| row.sums[Sum::Drops as usize]).sum::<u64>(), 42);
}

#[tokio::test]
async fn how_long_a_connection_waited_for_accept_is_judged_where_it_was_seen() {
    let (store, until_ns) = (database().await, until_ns());
    let end = |wait: &str| format!("'n', 2, 1, {}, true, {wait}", at(until_ns - SECOND_NS));
    write(
        &store,
        "connection_records",
        "node, role, outcome, recorded_at, is_final, accept_wait_us",
        &[end("0"), end("900"), end("2000"), end("NULL")],
    )
    .await;
    let rows = asked(&store, "accept_wait.p99 < 2ms", until_ns).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    let histogram = &rows[0].histogram;
    assert_eq!(
        histogram.iter().map(|(.., count)| count).sum::<u64>(),
        3,
        "{rows:?}"
    );
    let reached = histogram.iter().filter(|(_, reached, _)| *reached == 1);
    assert_eq!(reached.map(|(.., count)| count).sum::<u64>(), 1, "{rows:?}");
    assert_eq!(rows[0].largest, 2_000);
}

#[tokio::test]
async fn the_causes_beside_a_verdict_are_of_what_it_is_about() {
    let (store, until_ns) = (database().await, until_ns());
    let decided = at(until_ns - SECOND_NS);
    write(
        &store,
        "connection_records",
        "node, role, outcome, recorded_at, is_first, is_final, local_cause",
        &[format!("'n', 1, 2, {decided}, true, true, 'refused_by_peer'")],
    )
    .await;
    let cause = |outcome: u8, cause: &str, cookie: u8| {
        format!("'n', {outcome}, {decided}, {decided}, '{cause}', {cookie}, 1")
    };
    write(
        &store,
        "cause_records",
        "node, outcome, recorded_at, decided_at, cause, cookie, revision",
        &[
            cause(2, "no_listener", 1),
            cause(3, "filtered", 2),
            cause(1, "listener_full", 3),
        ],
    )
    .await;
    let suspects = refused_of_n();
    let window = Window {
        from_ns: until_ns - 60 * SECOND_NS,
        to_ns: until_ns,
    };
    let (rows, causes) = worst::worst(&*store, &suspects, window).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let named: Vec<_> = causes
        .iter()
        .map(|cause| cause["cause"].as_str().unwrap())
        .collect();
    assert_eq!(named, ["refused_by_peer", "no_listener"]);
}

/// What is suspected of the attempts of `n` that were refused.
fn refused_of_n() -> Suspects {
    Suspects {
        rows: Rows::Attempts,
        is_server: false,
        worst: Worst::Most(Sum::Refused),
        filter: Filter::In {
            column: "node",
            negated: false,
            values: vec![Value::Text("n".to_owned())],
        },
    }
}

/// Such a question fails each time, and the store is there all the same: judging goes on.
#[tokio::test]
async fn a_verdict_stands_without_evidence_that_takes_too_much() {
    let (store, until_ns) = (database().await, until_ns());
    let decided = at(until_ns - SECOND_NS);
    write(
        &store,
        "connection_records",
        "node, role, outcome, recorded_at, is_first, is_final, local_cause",
        &[format!("'n', 1, 2, {decided}, true, true, 'refused_by_peer'")],
    )
    .await;
    let suspects = refused_of_n();
    let window = Window {
        from_ns: until_ns - 60 * SECOND_NS,
        to_ns: until_ns,
    };
    let (rows, _) = worst::worst(&*store, &suspects, window).await.unwrap();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let narrow = Rephrased((*store).clone(), |sql: String| {
        let bounds = "max_memory_usage = 1, max_untracked_memory = 1";
        ready(sql.replace("max_memory_usage = 500000000", bounds))
    });
    let found = worst::worst(&narrow, &suspects, window).await.unwrap();
    assert_eq!(found, (Vec::new(), Vec::new()));
}

/// Questions are about the table below the views. What somebody reads in a view is what is judged.
#[tokio::test]
async fn what_is_asked_for_is_what_the_views_have() {
    let (store, until_ns) = (database().await, until_ns());
    let mut rows = Vec::new();
    for role in [1, 2] {
        // Established, refused, and pending.
        for outcome in [1, 2, 7] {
            for (is_first, is_final) in [(true, true), (true, false), (false, true)] {
                let recorded_at = at(until_ns - 30 * SECOND_NS - rows.len() as i64 * SECOND_NS);
                rows.push(format!(
                    "'n', {role}, {outcome}, {recorded_at}, {is_first}, {is_final}, 1000, 5000000, 'refused_by_peer', [7]"
                ));
            }
        }
    }
    let columns =
        "node, role, outcome, recorded_at, is_first, is_final, connect_us, duration_us, local_cause, step_us";
    write(&store, "connection_records", columns, &rows).await;
    for (view, time, is_any) in [
        ("attempts", "decided_at", "outcome != 'pending'"),
        ("connections", "closed_at", "true"),
    ] {
        let expect = match view {
            "attempts" => "[connect.p50 < 1s, connect.refused = 0]",
            _ => "[connections.closed > 1, connections.bytes_sent > 1B]",
        };
        for (who, role) in [("from", "active"), ("on", "passive")] {
            let text = format!(
                "assertions: [{{ name: a, {who}: all, expect: {expect}, over: 60s, where: opened_at > '2026-01-01' }}]"
            );
            let set = files::declared(&[("a.yaml".to_owned(), text)]).unwrap();
            let class = &plan::schedules(&set)[0].classes[0];
            let window = Window {
                from_ns: until_ns - 60 * SECOND_NS,
                to_ns: until_ns,
            };
            let question = evidence::question(class, window, false).sql;
            assert!(question.contains("FROM connection_records WHERE"), "{question}");
            let found = evidence::ask(&*store, class, window, false)
                .await
                .unwrap()
                .unwrap();
            let found: u64 = found.iter().map(|row| row.sums[Sum::Rows as usize]).sum();
            let sql = format!(
                "SELECT count() FROM {view} WHERE role = '{role}' AND {is_any} AND {time} > {} AND {time} <= {}",
                at(window.from_ns),
                at(window.to_ns)
            );
            let expected = number(&store, &sql).await;
            assert!(expected > 0, "{view} of {role} ends");
            assert_eq!(found, expected, "{view} of {role} ends");
        }
    }
}

#[tokio::test]
async fn the_parts_of_a_stretch_are_what_each_comes_to_alone() {
    let (store, until_ns) = (database().await, until_ns());
    const PART_NS: i64 = 5 * SECOND_NS;
    let begin_ns = until_ns - 4 * PART_NS;
    let row = |node: &str, outcome: u8, ns: i64, connect_us: u64| {
        format!(
            "'{node}', 1, {outcome}, {}, true, true, {connect_us}, {connect_us}",
            at(ns)
        )
    };
    // At both edges of the stretch and of its parts, a nanosecond beside them, and in between.
    let mut rows = Vec::new();
    for part in 0..=4 {
        for beside_ns in [-1, 0, 1, SECOND_NS] {
            let ns = begin_ns + part * PART_NS + beside_ns;
            rows.push(row("a", 1, ns, 40 + part as u64));
            rows.push(row("b", 2, ns, 0));
        }
    }
    // Closed a millisecond ago, decided that much before: in the part before.
    rows.push(format!(
        "'c', 1, 1, {}, true, true, 7, 1007",
        at(begin_ns + PART_NS + 500_000)
    ));
    write(
        &store,
        "connection_records",
        "node, role, outcome, recorded_at, is_first, is_final, connect_us, duration_us",
        &rows,
    )
    .await;
    let text = "assertions: [{ name: a, from: all, expect: [connect.p50 < 42us, connect.refused = 0], over: 20s, \
                by: from.node }]";
    let set = files::declared(&[("a.yaml".to_owned(), text.to_owned())]).unwrap();
    let class = &plan::schedules(&set)[0].classes[0];
    let whole = Window {
        from_ns: begin_ns,
        to_ns: until_ns,
    };
    let sorted = |mut rows: Vec<(u32, LabelledRows)>| {
        for (_, rows) in &mut rows {
            rows.histogram.sort_unstable();
        }
        rows.sort_by(|(part, one), (other_part, other)| (part, &one.node).cmp(&(other_part, &other.node)));
        rows
    };
    let parts = evidence::ask_in_parts(&*store, class, whole, PART_NS)
        .await
        .unwrap();
    let parts = sorted(parts.expect("they are few"));
    let mut alone = Vec::new();
    for part in 0..4_u32 {
        let from_ns = begin_ns + i64::from(part) * PART_NS;
        let window = Window {
            from_ns,
            to_ns: from_ns + PART_NS,
        };
        let rows = evidence::ask(&*store, class, window, false)
            .await
            .unwrap()
            .unwrap();
        let of_one = evidence::ask_in_parts(&*store, class, window, PART_NS)
            .await
            .unwrap();
        let rows: Vec<_> = rows.into_iter().map(|rows| (0, rows)).collect();
        assert_eq!(sorted(of_one.unwrap()), sorted(rows.clone()));
        alone.extend(rows.into_iter().map(|(_, rows)| (part, rows)));
    }
    assert_eq!(parts, sorted(alone));
    // The begin of a part is not in it, its end is; and of `c`, what was decided in the first part.
    let of = |node: &str| {
        let rows = parts.iter().filter(|(_, rows)| rows.node == node);
        rows.map(|(part, rows)| (*part, rows.sums[Sum::Rows as usize]))
            .collect::<Vec<_>>()
    };
    for node in ["a", "b"] {
        assert_eq!(of(node), [(0, 4), (1, 4), (2, 4), (3, 4)], "{node}");
    }
    assert_eq!(of("c"), [(0, 1)]);
}
