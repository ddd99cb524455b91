//! `cargo xtask up`, whole: real programs, real namespaces, real traffic.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for two attempts that time out after 3 s.
const LONG_ENOUGH: &str = "9s";

fn up(state: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command
        .args(["up", "--as-tested", "--state"])
        .arg(state)
        .args(arguments);
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The two counts, of this run and in all, in the summary's row for a role and an outcome.
fn counts(output: &Output, role: &str, outcome: &str) -> (u64, u64) {
    let summary = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = summary
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = row
        .filter(|words| words.len() == 4)
        .find(|words| words[0] == role && words[1] == outcome);
    let row = row.unwrap_or_else(|| panic!("no {role} {outcome} in {}", text(output)));
    (row[2].parse().unwrap(), row[3].parse().unwrap())
}

fn namespaces_of(pid: u32) -> Vec<String> {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.starts_with(&format!("hf-{pid}-")))
        .collect()
}

#[test]
fn up_with_nodes_sees_each_outcome_loses_nothing_leaves_nothing_and_continues() {
    let state = tempfile::tempdir().unwrap();
    let mut seen_before = 0;
    for run in 1..=2 {
        let child = up(state.path(), &["--nodes", "3", "--for", LONG_ENOUGH])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        for (role, outcome) in [
            ("active", "established"),
            ("passive", "established"),
            ("active", "refused"),
            ("active", "timed_out"),
        ] {
            assert!(
                counts(&output, role, outcome).0 > 0,
                "no {role} {outcome}: {}",
                text(&output)
            );
        }
        assert!(text(&output).contains("lost 0, dropped 0"), "{}", text(&output));
        assert_eq!(namespaces_of(pid), Vec::<String>::new());

        // A busy machine may stop an agent before its last batch is acknowledged; the next run delivers it then.
        let (now, in_all) = counts(&output, "active", "refused");
        assert!(
            in_all >= seen_before + now,
            "run {run} does not continue with what was stored: {in_all} in all, {seen_before} before and {now} now"
        );
        seen_before = in_all;
    }
}

#[test]
fn what_a_killed_up_leaves_behind_ends_by_itself_or_with_the_next_up() {
    let state = tempfile::tempdir().unwrap();
    let mut killed = up(state.path(), &["--nodes", "2"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = killed.id();
    let mut lines = BufReader::new(killed.stderr.take().unwrap()).lines();
    let services: Vec<u32> = lines
        .by_ref()
        .map(Result::unwrap)
        .skip_while(|line| !line.starts_with("running"))
        .take_while(|line| line.starts_with("running"))
        .map(|line| {
            line.split("(process ")
                .nth(1)
                .unwrap()
                .trim_end_matches(')')
                .parse()
                .unwrap()
        })
        .collect();
    assert_eq!(services.len(), 4, "two agents and two generators of traffic");
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(
        namespaces_of(pid).len(),
        3,
        "two nodes and the bridge between them"
    );

    // Nobody told them to end but the kernel.
    let deadline = Instant::now() + Duration::from_secs(15);
    while services
        .iter()
        .any(|service| Path::new(&format!("/proc/{service}")).exists())
    {
        assert!(Instant::now() < deadline, "some of {services:?} still run");
        thread::sleep(Duration::from_millis(50));
    }
    let output = up(state.path(), &["--nodes", "2", "--for", "1s"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(namespaces_of(pid), Vec::<String>::new());
}
