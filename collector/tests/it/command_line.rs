//! `holdfast` as a process: what it prints where, and its exit codes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

use crate::clickhouse_http;
use crate::harness::{Collector, database, folder};
use crate::store_engine;
use crate::synthetic::{Agent, batch};

/// Nobody listens at this port: binding it needs a privilege that nobody uses for it.
const NOBODY: &str = "http://127.0.0.1:1";

pub(crate) fn holdfast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command
        .args(arguments)
        .env_remove("HOLDFAST_COLLECTOR")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// `holdfast serve` on ports of its own, whose log can be read.
pub(crate) fn serve(store: &str) -> Command {
    let ports = ["--listen", "127.0.0.1:0", "--web", "127.0.0.1:0"];
    let mut command = holdfast(&["serve", "--store", store]);
    command.args(ports).stderr(Stdio::piped());
    command
}

/// Runs it off the runtime's threads: the collector that it asks is on them.
pub(crate) async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// It fails with this code and one line.
async fn check(arguments: &[&str], code: i32, expected: &str) {
    let output = output(holdfast(arguments)).await;
    assert_eq!(
        stderr(&output),
        format!("holdfast: {expected}\n"),
        "{arguments:?}"
    );
    assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    assert_eq!(stdout(&output), "", "{arguments:?}");
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_named() {
    let expected = format!(
        "cannot reach the collector at {NOBODY}: connection refused; is \"holdfast serve\" running there?"
    );
    for command in [
        &["nodes"][..],
        &["ledger"],
        &["connections"],
        &["sql", "SELECT 1"],
    ] {
        check(&[command, &["--collector", NOBODY]].concat(), 4, &expected).await;
    }
}

#[tokio::test]
async fn the_collector_can_be_named_in_the_environment() {
    let mut command = holdfast(&["nodes"]);
    command.env("HOLDFAST_COLLECTOR", "http://127.0.0.1:2");
    let output = output(command).await;
    assert!(
        stderr(&output).contains("http://127.0.0.1:2: connection refused"),
        "{}",
        stderr(&output)
    );
}

#[tokio::test]
async fn an_address_that_is_none_is_a_usage_error() {
    check(
        &["nodes", "--collector", "db:7443"],
        2,
        "`db:7443` is no address of a collector; write http://HOST:7443",
    )
    .await;
}

#[tokio::test]
async fn unknown_flags_and_stores_and_keys_are_usage_errors() {
    let config = folder("bad-config").join("holdfast.toml");
    std::fs::write(&config, "# a comment\nlisten_at = \"127.0.0.1:1\"\n").unwrap();
    let config = config.to_str().unwrap();
    for (arguments, expected) in [
        (&["nodes", "--jsn"][..], "unexpected argument '--jsn' found"),
        (
            &["serve", "--store", "http://ada:secret@db:8123/a-b"],
            "\"...@db:8123/a-b\" is no URL of a ClickHouse server",
        ),
        (
            &["serve", "--store", "redis://x"],
            "unknown store `redis://x`; write embedded:DIR, or http://USER@HOST:8123/DATABASE",
        ),
        (
            &["serve", "--retention", "soon"],
            "`soon` is no length of time; write it like 500ms, 5m or 30d",
        ),
        (
            &["serve", "--config", config],
            ":2:1: unknown key `listen_at`; did you mean `listen`?",
        ),
        (
            &["serve", "--config", "/nowhere/holdfast.toml"],
            "cannot read the settings in /nowhere/holdfast.toml: ",
        ),
    ] {
        let output = output(holdfast(arguments)).await;
        assert!(
            stderr(&output).contains(expected),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

/// Options of `load` with values that make no sense: the option as the error names it, the value, and what the error says is allowed. Nobody has to
/// be there for that.
#[tokio::test]
async fn a_number_of_load_that_makes_no_sense_is_told_with_its_option_and_what_is_allowed() {
    const WHOLE: &str = "whole number from 1 on";
    const TIME: &str = "write it like 500ms, 5m or 30d";
    const RATE: &str = "is no rate, which is more than 0/s; write it like 500/s";
    let tcp = &["tcp", "127.0.0.1:9", "-y"][..];
    let http = &["http", "http://127.0.0.1:9/", "-y"][..];
    let udp = &["udp", "127.0.0.1:9", "-y"][..];
    let mesh = &["mesh", "--groups", "a", "-y"][..];
    let serve = &["serve"][..];
    type Case<'a> = (&'a [&'a [&'a str]], &'a str, &'a [&'a str], &'a str);
    let cases: &[Case<'_>] = &[
        (
            &[tcp, http, mesh],
            "--connections",
            &["0", "-1", "1.5", "x", "99999999999999999999"],
            WHOLE,
        ),
        (&[http], "--requests", &["0", "-1", ""], WHOLE),
        (&[udp], "--number", &["0", "-1", "1e3"], WHOLE),
        (&[tcp, http, udp, mesh], "--sleep", &["-1ms", "5", "x"], TIME),
        (&[tcp, mesh], "--hold", &["-1s", "5"], TIME),
        (&[tcp, mesh], "--hold", &["600years"], "at most 584 years"),
        (
            &[tcp, mesh],
            "--dial-timeout",
            &["0s", "0ms"],
            "more than 0, like 500ms",
        ),
        (&[tcp, mesh], "--dial-timeout", &["-5s", "5"], TIME),
        (&[http, udp], "--timeout", &["0s"], "more than 0, like 500ms"),
        (&[http, udp], "--timeout", &["-5s", "5"], TIME),
        (
            &[tcp, mesh],
            "--payload",
            &["0", "-1", "65537", "x"],
            "whole number from 1 to 65536",
        ),
        (&[tcp, mesh], "--rounds", &["0", "-1"], WHOLE),
        (
            &[tcp, http, udp, mesh],
            "--rate",
            &["0/s", "-5/s", "5", "NaN/s"],
            RATE,
        ),
        (
            &[tcp, http, udp, mesh],
            "--rate",
            &["20000000/s"],
            "the highest rate",
        ),
        (
            &[tcp, http, udp, mesh],
            "--stages",
            &["-1/s for 1m", "0 -> 5/s in 0s", "hold 5m"],
            "write them like",
        ),
        (&[tcp, http, mesh], "--concurrency", &["0", "-1"], WHOLE),
        (&[tcp, http, udp, mesh], "--for", &["-1s", "5"], TIME),
        (
            &[tcp, http, udp, mesh],
            "--interval",
            &["0s", "99ms"],
            "at least 100ms",
        ),
        (&[tcp, http, udp, mesh], "--interval", &["-1s"], TIME),
        (
            &[tcp, http, udp],
            "--agents",
            &["0", "-1", "4294967296"],
            "whole number from 1 to 4294967295",
        ),
        (
            &[tcp, http, udp, mesh],
            "--expect",
            &["established >= -1", "connect.p99 < -5ms"],
            "write connect.p99 < 20ms",
        ),
        (
            &[tcp, http, udp, mesh],
            "--find-max",
            &["error_ratio < 101%"],
            "write connect.p99 < 20ms",
        ),
        (
            &[http],
            "--status",
            &["0", "-1", "1000", "299-200"],
            "from 100 to 999; write 200 or 200-299",
        ),
        (
            &[udp],
            "--bytes",
            &["0", "-1", "39", "65508"],
            "whole number from 40 to 65507",
        ),
        (
            &[mesh],
            "--port",
            &["0", "-1", "65536", "x"],
            "whole number from 1 to 65535",
        ),
        (&[serve], "--accept", &["0", "-1", "x"], WHOLE),
        (&[serve], "--lifetime", &["-1s", "5"], TIME),
        (&[serve], "--interval", &["0s"], "more than 0, like 1s"),
        (&[serve], "--interval", &["-1s"], TIME),
        (
            &[serve],
            "--listen",
            &["127.0.0.1:65536", "-1", "web:80"],
            "write IP:PORT",
        ),
    ];
    let fails = async |arguments: Vec<&str>, parts: &[&str]| {
        let output = output(holdfast(&arguments)).await;
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{arguments:?}: no {part:?} in {said}");
        }
    };
    for (kinds, option, values, allowed) in cases {
        for (kind, value) in kinds
            .iter()
            .flat_map(|kind| values.iter().map(move |value| (kind, value)))
        {
            let arguments = [&["load"], *kind, &[*option, *value]].concat();
            fails(arguments, &[option, value, allowed]).await;
        }
    }
    fails(
        [&["load"], tcp, &["--stages", "0 -> 0 in 1s"]].concat(),
        &["--stages comes to no attempt"],
    )
    .await;
    // What is written after --rate, or beside it.
    for (kind, options, parts) in [
        (
            tcp,
            &["--rate", "5/s", "--for", "0s"][..],
            &["--for 0s", "more than 0"][..],
        ),
        (
            udp,
            &["--rate", "0.001/s", "--for", "1s"],
            &["--rate comes to no attempt", "a higher rate, or for longer"],
        ),
        (
            http,
            &["--concurrency", "5", "--for", "0s"],
            &["--for 0s", "more than 0"],
        ),
        (
            http,
            &["--http2", "--streams", "0"],
            &["--streams", "`0`", "from 1 to"],
        ),
        (
            udp,
            &["--find-max", "error_ratio < 1%", "--for", "0s"],
            &["--for 0s", "more than 0"],
        ),
    ] {
        fails([&["load"], kind, options].concat(), parts).await;
    }
    for (target, parts) in [
        (
            &["tcp", "web:0", "-y"][..],
            &["`web:0`", "the port 0", "from 1 to 65535"][..],
        ),
        (&["tcp", "web:-1", "-y"], &["the port -1", "from 1 to 65535"]),
        (
            &["tcp", "web", "65536", "-y"],
            &["the port 65536", "from 1 to 65535"],
        ),
        (
            &["udp", "web:65536", "-y"],
            &["the port 65536", "from 1 to 65535"],
        ),
        (
            &["http", "http://web:0/", "-y"],
            &["`http://web:0/`", "from 1 to 65535"],
        ),
    ] {
        fails([&["load"], target].concat(), parts).await;
    }
    fails(vec!["runs", "--limit", "-1"], &["--limit", "`-1`", WHOLE]).await;
}

/// Whoever asserts nothing would be told that all holds.
#[tokio::test]
async fn where_nothing_is_asserted_that_is_a_usage_error_and_the_place_is_named() {
    let empty = folder("no-assertions");
    // What does not end in .yaml, an editor's own file, and files that declare nothing.
    let other = folder("other-files");
    let right = "assertions: [{ name: a, expect: connect.refused = 0, over: 5s }]\n";
    std::fs::write(other.join("a.yaml.txt"), right).unwrap();
    std::fs::write(other.join(".a.yaml"), right).unwrap();
    std::fs::create_dir(other.join("deeper")).unwrap();
    std::fs::write(other.join("deeper/a.yaml"), right).unwrap();
    let groups = folder("groups-alone");
    std::fs::write(groups.join("a.yaml"), "groups: { web: role = web }\n").unwrap();
    std::fs::write(groups.join("b.yaml"), "").unwrap();
    std::fs::write(groups.join("c.yaml"), "assertions: []\n").unwrap();
    let nowhere = empty.join("nowhere");

    let nothing = |place: &std::path::Path| {
        format!(
            "there are no assertions in {}: write a file that ends in .yaml with `assertions:`",
            place.display()
        )
    };
    let unreadable = format!(
        "cannot read {}: No such file or directory (os error 2)",
        nowhere.display()
    );
    for (place, expected) in [
        (&empty, nothing(&empty)),
        (&other, nothing(&other)),
        (&groups, nothing(&groups)),
        (&nowhere, unreadable),
    ] {
        let place = place.to_str().unwrap();
        // None of them gets as far as to a port, a store or a collector.
        let serve = ["serve", "--listen", "127.0.0.1:1", "--store", "embedded:/nowhere"];
        check(&[&serve[..], &["--assertions", place]].concat(), 2, &expected).await;
        check(&["check", place], 2, &expected).await;
        check(&["check", "--once", "--collector", NOBODY, place], 2, &expected).await;
        check(
            &["check", "--for", "1s", "--collector", NOBODY, place],
            2,
            &expected,
        )
        .await;
        check(&["test", place], 2, &expected).await;
        check(&["backtest", "--collector", NOBODY, place], 2, &expected).await;
    }
    let mut command = holdfast(&["serve", "--listen", "127.0.0.1:1", "--store", "embedded:/nowhere"]);
    command.env("HOLDFAST_ASSERTIONS", &empty);
    let output = output(command).await;
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains(&nothing(&empty)), "{}", stderr(&output));

    let right = other.join("a.yaml.txt");
    let right = right.to_str().unwrap();
    let nobody = ["--collector", NOBODY];
    // What would be found out only after the last window.
    let report = empty.join("no/such/report.xml");
    let report = report.to_str().unwrap();
    check(
        &[&["check", "--for", "5m", "--junit", report, right], &nobody[..]].concat(),
        2,
        &format!("cannot write {report}: No such file or directory (os error 2); give another path"),
    )
    .await;
    check(
        &[&["check", "--for", "0s", right], &nobody[..]].concat(),
        2,
        "--for is 0s: nothing would be judged; --once judges the windows that ended last",
    )
    .await;

    let untested = folder("no-tests");
    std::fs::copy(right, untested.join("a.yaml")).unwrap();
    let expected = format!("there are no tests in {}: write `tests:`", untested.display());
    check(&["test", untested.to_str().unwrap()], 2, &expected).await;
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_owner() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = output(holdfast(&[
        "serve",
        "--listen",
        &address,
        "--store",
        "embedded:/nowhere",
    ]))
    .await;
    let line = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{line}");
    let expected = format!("[{}]; choose another with --listen\n", std::process::id());
    assert!(
        line.starts_with(&format!("holdfast: cannot listen at {address}: port "))
            && line.ends_with(&expected),
        "{line}"
    );
}

#[tokio::test]
async fn a_missing_engine_is_named() {
    let folder = folder("no-engine");
    let mut command = holdfast(&["serve", "--listen", "127.0.0.1:0", "--web", "127.0.0.1:0"]);
    command
        .arg("--store")
        .arg(format!("embedded:{}", folder.display()))
        .env("HOLDFAST_LIBCHDB", "/nowhere/libchdb.so");
    let output = output(command).await;
    let last = stderr(&output).lines().last().unwrap().to_owned();
    assert!(
        last.starts_with("holdfast: cannot open the store embedded:") && last.contains("/nowhere/libchdb.so"),
        "{last}"
    );
    assert_eq!(output.status.code(), Some(4), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_prints_a_table_or_what_it_is_asked_for() {
    let collector = Collector::start(database().await).await;
    let url = collector.url();
    let printed = async |arguments: &[&str]| {
        let output = output(holdfast(&[&["sql", "--collector", &url], arguments].concat())).await;
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    let table = printed(&["SELECT 1 AS a, 'x' AS b"]).await;
    assert!(
        table.contains("┌─a─┬─b─┐") && !table.contains('\u{1b}'),
        "{table}"
    );
    assert_eq!(printed(&["--json", "SELECT 1 AS a"]).await, "{\"a\":1}\n");
    assert_eq!(
        printed(&["--format", "CSVWithNames", "SELECT 1 AS a, 'x' AS b"]).await,
        "\"a\",\"b\"\n1,\"x\"\n"
    );
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_is_read_from_stdin() {
    let collector = Collector::start(database().await).await;
    let mut command = holdfast(&["sql", "--json", "-", "--collector", &collector.url()]);
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"SELECT\n 2 AS a").unwrap();
        child.wait_with_output().unwrap()
    });
    assert_eq!(stdout(&output.await.unwrap()), "{\"a\":2}\n");
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_sql_is_one_line_and_a_usage_error() {
    let collector = Collector::start(database().await).await;
    let output = output(holdfast(&[
        "sql",
        "SELECT FROM WHERE",
        "--collector",
        &collector.url(),
    ]))
    .await;
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains("position"), "{}", stderr(&output));
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_a_table_or_json_lines() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    agent.deliver(batch(1, 30)).await;
    agent.settled(1).await;
    let url = collector.url();
    let table = output(holdfast(&[
        "connections",
        "--where",
        "outcome = \"refused\"",
        "--collector",
        &url,
    ]))
    .await;
    assert!(table.status.success(), "{}", stderr(&table));
    let lines: Vec<String> = stdout(&table).lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(lines[0].starts_with("TIME (UTC)"), "{lines:#?}");
    assert!(
        lines[1].contains("->  10.0.0.1:32777  ") && lines[1].contains("  refused  "),
        "{lines:#?}"
    );
    let outcome_column = lines[0].find("OUTCOME").unwrap();
    assert!(
        lines[1..]
            .iter()
            .all(|line| line[outcome_column..].starts_with("refused")),
        "{lines:#?}"
    );

    let json = output(holdfast(&[
        "connections",
        "--json",
        "--limit",
        "5",
        "--collector",
        &url,
    ]))
    .await;
    let lines = stdout(&json);
    assert_eq!(lines.lines().count(), 5);
    for line in lines.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(row["node"], "node-a1");
    }

    let bad = output(holdfast(&[
        "connections",
        "--where",
        "remote_prt = 1",
        "--collector",
        &url,
    ]))
    .await;
    assert_eq!(bad.status.code(), Some(2), "{}", stderr(&bad));
    assert!(stderr(&bad).contains("remote_prt"), "{}", stderr(&bad));
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let collector = Collector::start(database().await).await;
    let mut command = holdfast(&[
        "sql",
        "SELECT * FROM system.numbers",
        "--format",
        "TSV",
        "--collector",
        &collector.url(),
    ]);
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut first)
            .unwrap();
        assert_eq!(first, "0\n");
        child.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    assert_eq!(stderr(&output), "");
    assert!(output.status.success());
    collector.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_with_totals_at_an_interrupt() {
    let collector = Collector::start(database().await).await;
    let mut agent = Agent::connect(collector.address, "a1").await;
    let mut child = holdfast(&[
        "connections",
        "--follow",
        "--json",
        "--collector",
        &collector.url(),
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It may not have asked yet when the first batches are stored: go on until it sees one.
    let seen = tokio::task::spawn_blocking(move || {
        let seen = lines.next().unwrap().unwrap();
        (seen, lines)
    });
    let mut sequence = 0;
    while !seen.is_finished() {
        sequence += 1;
        agent.deliver(batch(sequence, 1)).await;
        agent.settled(1).await;
    }
    let (first, _open) = seen.await.unwrap();
    assert!(first.contains("\"outcome\":\"established\""), "{first}");
    signal(&child, "INT");
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let totals = stderr(&output);
    assert!(
        totals.contains(" established") && totals.contains("connection"),
        "{totals}"
    );
    collector.stop().await.unwrap();
}

/// A folder with an assertion about whoever there is.
fn asserted(name: &str) -> String {
    let folder = folder(name);
    let text = "assertions: [{ name: a, from: all, expect: connect.refused = 0, over: 5s }]\n";
    std::fs::write(folder.join("a.yaml"), text).unwrap();
    folder.display().to_string()
}

/// Nobody who gives up is told that it holds, or nothing at all, also where the collector has not said a word yet.
#[test]
fn judging_that_is_interrupted_before_anything_is_said_could_not_be_done() {
    let place = asserted("interrupted");
    // The kernel takes connections here, and nobody answers on them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    for command in [&["check", "--once"][..], &["check", "--for", "5m"], &["backtest"]] {
        let child = holdfast(&[command, &["--collector", &url, &place]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let _connection = silent.accept().unwrap();
        signal(&child, "INT");
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            stderr(&output),
            "holdfast: interrupted before all was judged: nothing is said of whether it holds\n",
            "{command:?}"
        );
        assert_eq!(output.status.code(), Some(4), "{command:?}");
        assert_eq!(stdout(&output), "", "{command:?}");
    }
}

/// Judges for a minute, and once it was told something, `ends` ends the collector. Gives what came of it.
async fn checked_while(url: &str, place: &str, ends: impl Future<Output = ()>) -> Output {
    let mut child = holdfast(&["check", "--for", "1m", "--collector", url, place])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let (first, mut log) = tokio::task::spawn_blocking(move || {
        let mut first = String::new();
        log.read_line(&mut first).unwrap();
        (first, log)
    })
    .await
    .unwrap();
    assert!(first.starts_with("a: "), "{first}");
    ends.await;
    tokio::task::spawn_blocking(move || {
        let mut told = Vec::new();
        log.read_to_end(&mut told).unwrap();
        let output = child.wait_with_output().unwrap();
        Output {
            stderr: told,
            ..output
        }
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_whose_collector_goes_away_names_it_and_could_not_be_done() {
    let place = asserted("goes-away");
    let check = |output: &Output, expected: &str| {
        // Whatever else was told, was told once.
        let told = stderr(output);
        assert_eq!(told, format!("{expected}\n"));
        assert_eq!(output.status.code(), Some(4), "{told}");
        assert_eq!(stdout(output), "");
    };

    // One that is killed says nothing any more.
    let mut serving = serve(&format!("embedded:{}", folder("killed").display()))
        .spawn()
        .unwrap();
    let url = collector_of(&mut serving);
    let killed = async {
        serving.kill().unwrap();
        serving.wait().unwrap();
    };
    let output = checked_while(&url, &place, killed).await;
    let expected = format!(
        "holdfast: lost the collector at {url}: it closed the connection; see whether \"holdfast serve\" still runs there and what \
         its log says, then ask again"
    );
    check(&output, &expected);

    // One that stops in peace says that what it told is not all.
    let collector = Collector::start(database().await).await;
    let url = collector.url();
    let stopped = async { collector.stop().await.unwrap() };
    let output = checked_while(&url, &place, stopped).await;
    let expected = format!(
        "holdfast: the collector at {url}: it stops, so this was not told to the end; ask again once it runs again"
    );
    check(&output, &expected);
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn serve_runs_stops_at_a_signal_and_keeps_its_folder_to_itself() {
    let store = format!("embedded:{}", folder("serve").display());
    let mut serving = serve(&store).spawn().unwrap();
    let url = collector_of(&mut serving);

    let answer = output(holdfast(&[
        "sql",
        "--json",
        "SELECT count() AS n FROM connections",
        "--collector",
        &url,
    ]))
    .await;
    assert_eq!(
        (stdout(&answer), stderr(&answer)),
        ("{\"n\":0}\n".to_owned(), String::new())
    );

    let second = output(serve(&store)).await;
    assert_eq!(second.status.code(), Some(4));
    let last = stderr(&second).lines().last().unwrap().to_owned();
    assert!(
        last.starts_with("holdfast: cannot open the store embedded:"),
        "{last}"
    );

    signal(&serving, "TERM");
    assert!(serving.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_keeps_its_rows_on_a_server_whose_password_is_in_the_environment() {
    let address = store_engine::server().await;
    let store = format!("http://{}@{address}/from_serve", clickhouse_http::USER);
    let mut command = serve(&store);
    command.env("HOLDFAST_STORE_PASSWORD", clickhouse_http::PASSWORD);
    let (mut serving, url) = tokio::task::spawn_blocking(move || {
        let mut serving = command.spawn().unwrap();
        let url = collector_of(&mut serving);
        (serving, url)
    })
    .await
    .unwrap();
    let answer = output(holdfast(&[
        "sql",
        "--json",
        "SELECT currentDatabase() AS d",
        "--collector",
        &url,
    ]))
    .await;
    assert_eq!(
        (stdout(&answer), stderr(&answer)),
        ("{\"d\":\"from_serve\"}\n".to_owned(), String::new())
    );
    signal(&serving, "TERM");
    assert!(
        tokio::task::spawn_blocking(move || serving.wait().unwrap().success())
            .await
            .unwrap()
    );

    // Without the password it waits until the server lets it in, and says so once.
    let mut command = serve(&store);
    command.env("HOLDFAST_STORE_PASSWORD", "wrong");
    let waiting = tokio::task::spawn_blocking(move || {
        let mut serving = command.spawn().unwrap();
        let log = BufReader::new(serving.stderr.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let waiting = log
            .into_iter()
            .find(|line| line.contains("the store is away"))
            .expect("it says what it waits for");
        signal(&serving, "TERM");
        assert!(serving.wait().unwrap().success());
        waiting
    });
    let waiting = waiting.await.unwrap();
    assert!(
        waiting.contains("Authentication failed") && !waiting.contains("wrong"),
        "{waiting}"
    );
}

/// The address of a collector, once it says that it is ready.
fn collector_of(serving: &mut Child) -> String {
    let mut log = BufReader::new(serving.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    log.find(|line| line.contains("ready"))
        .expect("it says that it is ready")
        .split(' ')
        .find_map(|word| word.strip_prefix("collector="))
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn completions_are_for_the_shell_that_was_named() {
    for (shell, expected) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef holdfast"),
        ("fish", "complete -c holdfast"),
    ] {
        let output = output(holdfast(&["completions", shell])).await;
        assert!(
            output.status.success() && stdout(&output).contains(expected),
            "{shell}"
        );
    }
}
