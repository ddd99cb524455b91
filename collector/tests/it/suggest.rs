//! `holdfast suggest`: what it suggests can be declared, and holds.

use std::fs;

use holdfast_collector::engine::{files, trial};
use holdfast_collector::store::Store;

use crate::command_line::{holdfast, output, stderr, stdout};
use crate::harness::{Collector, database, folder};
use crate::synthetic::now_ns;

const MINUTE_NS: i64 = 60_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_suggested_is_accepted_and_holds() {
    let store = database().await;
    // Half an hour until now, and another one: whoever checks what is suggested may take its time.
    let past = "
assertions:
  - { name: a, from: all, to: 'all:5432', expect: connect.count < 1_000_000, over: 1m }
tests:
  - assertion: a
    given: { web-1 -> db-1: '4ms x60m', web-2 -> db-1: '4ms x25m, refused x5s, 4ms x34m' }
    expect: { 1m: Holds }
";
    let set = files::declared(&[("past.yaml".to_owned(), past.to_owned())]).unwrap();
    let begin_ns = (now_ns() - 30 * MINUTE_NS).div_euclid(MINUTE_NS) * MINUTE_NS;
    trial::lay_past(&*store, &set.assertions[0], &set.tests[0], begin_ns)
        .await
        .unwrap();
    // What web-1 asks its kernel for, ten times a second, for as long.
    let calls = format!(
        "INSERT INTO syscall_samples (node, comm, syscall, pid, processes, began_at, ended_at, calls, agent_id, agent_epoch, sequence) \
         SELECT 'web-1', 'nginx', 'accept4', 7, 1, fromUnixTimestamp64Nano({begin_ns} + number * 1000000000) AS began_at, \
         began_at + INTERVAL 1 SECOND, 10, 'web-1', 1, 1 FROM numbers(3600)"
    );
    store.execute(&calls).await.unwrap();
    let collector = Collector::start(store).await;
    let url = collector.url();
    let suggest = async |more: &[&str]| {
        let arguments = ["suggest", "--since", "12m", "--collector", &url];
        output(holdfast(&[&arguments, more].concat())).await
    };
    let folder = folder("suggest");
    for (more, expected) in [
        (
            &[][..],
            [
                "from: \"all\"",
                "connect.p99 < 10ms",
                "connect.failed_ratio < 10%",
                "connect.rate > 10/s",
            ],
        ),
        (
            &["--from", "web-1", "--to", "db-1:5432"][..],
            [
                "from: \"node = 'web-1'\"",
                "connect.p99 < 10ms",
                "connect.failed_ratio < 0.5%",
                "of 12 windows, 7200 samples",
            ],
        ),
    ] {
        let found = suggest(more).await;
        assert_eq!(found.status.code(), Some(0), "{}", stderr(&found));
        for part in expected {
            assert!(stdout(&found).contains(part), "{part}:\n{}", stdout(&found));
        }
        for part in [
            "turns nobody away",
            "listener.drops = 0",
            "syscall(accept4).error_ratio <",
        ] {
            assert!(stdout(&found).contains(part), "{part}:\n{}", stdout(&found));
        }
        let file = folder.join("suggested.yaml");
        fs::write(&file, stdout(&found)).unwrap();
        let file = file.to_str().unwrap();
        let checked = output(holdfast(&["check", "--once", "--collector", &url, file])).await;
        assert_eq!(
            checked.status.code(),
            Some(0),
            "{}{}",
            stdout(&checked),
            stderr(&checked)
        );
    }

    let objects = stdout(&suggest(&["--json"]).await);
    assert!(objects.lines().count() > 4, "{objects}");
    let of_pairs = |object: &serde_json::Value| object["to"].is_string();
    let objects: Vec<serde_json::Value> = objects
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(objects.iter().any(|object| !of_pairs(object)), "{objects:?}");
    for object in objects.iter().filter(|object| of_pairs(object)) {
        assert_eq!(
            (&object["windows"], &object["to"]),
            (&12.into(), &"all:5432".into()),
            "{object}"
        );
    }

    for (more, code, why) in [
        (
            &["--from", "db-1", "--to", "web-1"][..],
            3,
            "nobody connected to anything of that",
        ),
        (&["--from", "wbe-1"][..], 2, "no node is called `wbe-1`"),
        (&["--to", "db-1:0"][..], 2, "a port is from 1 to 65535"),
        (&["--from", "role ="][..], 2, "`role =`: "),
    ] {
        let found = suggest(more).await;
        assert_eq!(found.status.code(), Some(code), "{}", stderr(&found));
        assert!(stderr(&found).contains(why), "{}", stderr(&found));
        assert_eq!(stdout(&found), "");
    }
    let short = output(holdfast(&["suggest", "--since", "5m", "--collector", &url])).await;
    assert_eq!(short.status.code(), Some(2), "{}", stderr(&short));
    collector.stop().await.unwrap();
}
