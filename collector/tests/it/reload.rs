//! Files of assertions that change while they are judged: a set that is wrong is not taken, and that is said.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command_line::serve;
use crate::harness::folder;
use crate::serving::Serving;

const WRONG: &str = "the assertions are wrong, those from before are judged on";
const TAKEN: &str = "took up the assertions anew";
const IS_CURRENT: &str = "holdfast_assertions_current";
const DECLARED: &str = "holdfast_assertions";

/// Assertions of these names, each of which holds as soon as there is a node.
fn declared(names: &[&str]) -> String {
    let each = names
        .iter()
        .map(|name| format!("  - {{ name: {name}, from: all, expect: connect.refused = 0, over: 1s }}\n"));
    format!("assertions:\n{}", each.collect::<String>())
}

/// Whole or not at all, and as one change: the folder is looked at while it is written to.
fn write(folder: &Path, text: &str) {
    let new = folder.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file(folder)).unwrap();
}

fn file(folder: &Path) -> PathBuf {
    folder.join("a.yaml")
}

fn is(name: &'static str, verdict: &'static str) -> impl Fn(&Value) -> bool {
    move |row| row["assertion"] == name && row["verdict"] == verdict
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_that_is_wrong_is_not_taken_and_that_is_said_until_it_is_right() {
    let (store, assertions) = (folder("reload-store"), folder("reload-assertions"));
    write(&assertions, &declared(&["first"]));
    let mut serving = Serving::start_alone(&store, &assertions);
    serving.wait("nothing is known", is("first", "unknown"));
    serving.counts(IS_CURRENT, 1);
    serving.counts(DECLARED, 1);

    // A change that is wrong: found by itself, and said with its place.
    write(
        &assertions,
        "assertions:\n  - { name: other, expect: connect.refsed = 0, over: 1s }\n",
    );
    let said = serving.logs(WRONG, 1);
    let place = format!("{}:2:28: ", file(&assertions).display());
    assert!(
        said.contains(&place) && said.contains("did you mean connect.refused?"),
        "{said}"
    );
    assert!(
        said.lines().next().is_some_and(|line| line.contains("ERROR")),
        "{said}"
    );
    serving.counts(IS_CURRENT, 0);
    let wrong_since = |serving: &Serving| {
        let rows = serving.rows(&["verdicts"]);
        let note = rows[0]["note"].as_str().unwrap();
        let since = note.strip_prefix("the files are wrong since ").expect(note);
        since.split_once(',').unwrap().0.to_owned()
    };
    let since = wrong_since(&serving);
    // What is asked about is what is judged.
    assert!(serving.run(&["explain", "first"]).contains("connect.refused"));
    assert_eq!(serving.output(&["explain", "other"]).status.code(), Some(2));
    // What was judged is judged on: there is a node only now.
    serving.watch();
    serving.wait("the old set is judged on", is("first", "holds"));
    serving.counts(DECLARED, 1);

    // The same files again at SIGHUP, which is said again: nobody changed them.
    assert_eq!(serving.logged(WRONG), 1, "once for each change");
    serving.signal("HUP");
    serving.logs(WRONG, 2);
    serving.counts(IS_CURRENT, 0);

    // No assertion at all is wrong too, and so is no folder.
    fs::remove_file(file(&assertions)).unwrap();
    let said = serving.logs(WRONG, 3);
    let nothing = format!("there are no assertions in {}", assertions.display());
    assert!(said.contains(&nothing), "{said}");
    fs::remove_dir(&assertions).unwrap();
    let said = serving.logs(WRONG, 4);
    let nowhere = format!("cannot read {}", assertions.display());
    assert!(said.contains(&nowhere), "{said}");
    assert_eq!(serving.logged(TAKEN), 0);
    let judged: Vec<_> = serving.rows(&["verdicts"]);
    assert!(judged.iter().all(is("first", "holds")), "{judged:?}");
    // They are judged now, though by what is declared no more.
    for row in &judged {
        assert_eq!(row["is_stale"], false, "{row}");
        let note = row["note"].as_str().unwrap();
        assert!(
            note.starts_with("the files are wrong since ") && note.contains(&nowhere),
            "{note}"
        );
    }
    assert!(serving.run(&["verdicts"]).contains("the files are wrong since "));
    assert_eq!(wrong_since(&serving), since, "they were wrong all the time");

    // One that is right is taken, by itself and at SIGHUP, and the one that means the same goes on.
    fs::create_dir(&assertions).unwrap();
    write(&assertions, &declared(&["first", "second"]));
    serving.logs(TAKEN, 1);
    serving.counts(IS_CURRENT, 1);
    serving.counts(DECLARED, 2);
    serving.wait("the new one is judged", is("second", "holds"));
    let judged = serving.rows(&["verdicts"]);
    assert!(judged.iter().all(|row| row["note"] == ""), "{judged:?}");
    let changes = serving.rows(&["verdicts", "--history", "first"]);
    let verdicts: Vec<_> = changes
        .iter()
        .map(|row| row["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(verdicts.last(), Some(&"holds"), "{changes:?}");
    assert_eq!(
        verdicts.iter().filter(|said| **said == "holds").count(),
        1,
        "{changes:?}"
    );
    serving.signal("HUP");
    serving.logs(TAKEN, 2);
    serving.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verdicts_that_nobody_judges_any_more_are_old_and_say_so() {
    let (store, assertions) = (folder("stale-store"), folder("stale-assertions"));
    write(&assertions, &declared(&["first"]));
    let serving = Serving::start(&store, &assertions);
    serving.wait("it is judged", is("first", "holds"));
    serving.kill();

    let serving = Serving::start_judging_nothing(&store);
    let why = "this collector judges nothing: start it with --assertions DIR";
    let output = serving.output(&["verdicts", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let row: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(is("first", "holds")(&row), "{row}");
    assert_eq!(
        (&row["is_stale"], &row["note"]),
        (&true.into(), &why.into()),
        "{row}"
    );
    assert!(row["age_s"].as_u64().is_some_and(|age| age < 60), "{row}");
    let output = serving.output(&["verdicts"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("holds (old)") && text.contains("; not judged for "),
        "{text}"
    );
    assert!(
        text.ends_with(&format!("all old, which says nothing of now: {why}\n")),
        "{text}"
    );
    serving.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_objective_is_explained_and_looked_back_at_by_its_name() {
    let (store, assertions) = (folder("objective-store"), folder("objective-assertions"));
    write(
        &assertions,
        "assertions:\n  - { name: in the long run, from: all, slo: connect.failed_ratio < 0.1% }\n",
    );
    let serving = Serving::start_alone(&store, &assertions);
    let text = serving.run(&["explain", "in the long run"]);
    for part in [
        "an objective of 4 rules",
        "in the long run: page-1h",
        "in the long run: ticket-3d",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let output = serving.output(&["explain", "in the lng run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("did you mean in the long run?"), "{said}");
    // Its windows are judged once they are whole: so far there is nothing to look back at.
    let output = serving.output(&["verdicts", "--history", "in the long run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(
        said.contains("no verdict of that name has changed within that time"),
        "{said}"
    );
    serving.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_alone_is_looked_at_for_changes_too() {
    let (store, assertions) = (folder("reload-file-store"), folder("reload-file"));
    write(&assertions, &declared(&["first"]));
    let serving = Serving::start_alone(&store, &file(&assertions));
    write(&assertions, "assertions: 7\n");
    serving.logs(WRONG, 1);
    serving.counts(IS_CURRENT, 0);
    write(&assertions, &declared(&["first", "second"]));
    serving.logs(TAKEN, 1);
    serving.counts(IS_CURRENT, 1);
    serving.wait("the new one is judged", is("second", "unknown"));
    serving.kill();
}

#[test]
fn a_hang_up_while_the_store_is_waited_for_ends_nothing() {
    let assertions = folder("reload-waiting");
    write(&assertions, &declared(&["first"]));
    // Nobody listens there: binding that port needs a privilege that nobody uses for it.
    let store = "http://somebody@127.0.0.1:1/holdfast";
    let mut serving = serve(store)
        .args(["--assertions".as_ref(), assertions.as_os_str()])
        .spawn()
        .unwrap();
    let mut log = BufReader::new(serving.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    log.find(|line| line.contains("the store is away"))
        .expect("it says what it waits for");
    for signal in ["-HUP", "-TERM"] {
        let id = serving.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
    }
    let status = serving.wait().unwrap();
    assert!(status.success(), "{status}");
}
