//! The embedded store: what a person's SQL may do, how queries end, whose folder it is.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use holdfast_collector::store::{Access, Store, StoreError, embedded::Embedded, library, writes};

use crate::store_engine::{answer, ask, data_folder, database, query};

/// Runs a statement as a person would, and gives the error, which there must be.
async fn refusal(store: &Embedded, sql: &str) -> String {
    match answer(store, query(sql, Access::ReadOnly)).await {
        Ok(rows) => panic!("{sql} was allowed and gave {rows:?}"),
        Err(StoreError::Rejected { message, .. }) => message,
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

#[tokio::test]
async fn a_person_may_read() {
    let store = database();
    store
        .execute("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
        .await
        .unwrap();
    store
        .execute("INSERT INTO t SELECT number FROM numbers(3)")
        .await
        .unwrap();
    for (sql, expected) in [
        ("SELECT sum(a) FROM t", "3\n"),
        ("select max(a) from t;", "2\n"),
        ("SELECT 1 -- a; comment", "1\n"),
        ("/* a; comment */ SELECT ';'", ";\n"),
        ("WITH x AS (SELECT a FROM t) SELECT count() FROM x", "3\n"),
        ("(SELECT 1) UNION ALL (SELECT 1)", "1\n1\n"),
        (
            "SELECT arrayMap(x -> x + 1, [1, 2]), quantile(0.5)(a) OVER () FROM t LIMIT 1",
            "[2,3]\t1\n",
        ),
        ("SELECT count() FROM numbers(5)", "5\n"),
        ("SHOW TABLES", "t\n"),
        ("DESCRIBE t", "a\tUInt64\t\t\t\t\t\n"),
        ("SELECT a FROM t WHERE a = 1 FORMAT CSV", "1\n"),
        ("SELECT value FROM system.settings WHERE name = 'readonly'", "1\n"),
    ] {
        assert_eq!(
            answer(&store, query(sql, Access::ReadOnly)).await.unwrap(),
            expected,
            "{sql}"
        );
    }
    assert!(
        answer(&store, query("EXPLAIN SELECT a FROM t", Access::ReadOnly))
            .await
            .unwrap()
            .contains("ReadFromMergeTree")
    );
}

#[tokio::test]
async fn a_person_may_not_write() {
    let store = database();
    store
        .execute("CREATE TABLE t (a UInt64) ENGINE = MergeTree ORDER BY a")
        .await
        .unwrap();
    for sql in [
        "INSERT INTO t VALUES (1)",
        "INSERT INTO t SELECT 1",
        "CREATE TABLE u (a Int8) ENGINE = Memory",
        "CREATE TEMPORARY TABLE u (a Int8)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE FUNCTION f AS x -> x",
        "CREATE DATABASE d",
        "DROP TABLE t",
        "TRUNCATE TABLE t",
        "ALTER TABLE t DELETE WHERE 1",
        "DELETE FROM t WHERE 1",
        "OPTIMIZE TABLE t",
        "RENAME TABLE t TO u",
        "ATTACH TABLE t",
        "DETACH TABLE t",
        "SYSTEM STOP MERGES",
        "SYSTEM SHUTDOWN",
        "KILL QUERY WHERE 1",
        "USE default",
        "GRANT SELECT ON *.* TO x",
        "BACKUP TABLE t TO File('x')",
        "RESTORE TABLE t FROM File('x')",
        "BEGIN TRANSACTION",
        "EXISTS TABLE \"/etc/hostname\"",
    ] {
        let message = refusal(&store, sql).await;
        assert!(message.contains("only statements that read"), "{sql}: {message}");
    }
    assert_eq!(ask(&store, "SELECT count() FROM t").await, "0\n");
    assert_eq!(
        ask(
            &store,
            "SELECT name FROM system.tables WHERE database = currentDatabase()"
        )
        .await,
        "t\n"
    );
}

#[tokio::test]
async fn a_person_may_not_change_settings() {
    let store = database();
    assert!(
        refusal(&store, "SET max_execution_time = 0")
            .await
            .contains("only statements that read")
    );
    for sql in [
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_execution_time = 0",
        "SELECT * FROM (SELECT 1 SETTINGS max_memory_usage = 0)",
    ] {
        let message = refusal(&store, sql).await;
        let refused = ["in readonly mode", "settings cannot be changed"]
            .iter()
            .any(|words| message.contains(words));
        assert!(refused, "{sql}: {message}");
    }
}

#[tokio::test]
async fn a_person_may_not_reach_beyond_the_database() {
    let store = database();
    let outside = tempfile::tempdir().unwrap();
    let (file, out) = (outside.path().join("secret.csv"), outside.path().join("out"));
    std::fs::write(&file, "4711\n").unwrap();
    let (file, out) = (file.display(), out.display());
    for sql in [
        format!("SELECT file('{file}')"),
        format!("SELECT FILE('{file}')"),
        format!("SELECT `file`('{file}')"),
        format!("SELECT arrayMap(file, ['{file}'])"),
        format!("SELECT * APPLY (file) FROM (SELECT '{file}' AS x)"),
        format!("SELECT * APPLY (x -> file(x)) FROM (SELECT '{file}' AS x)"),
        format!("SELECT * REPLACE (file('{file}') AS x) FROM (SELECT 1 AS x)"),
        format!("WITH (SELECT file('{file}')) AS x SELECT x"),
        format!("SELECT 1 ORDER BY file('{file}')"),
        format!(
            "SELECT number FROM numbers(2) ORDER BY number WITH FILL INTERPOLATE (number AS file('{file}'))"
        ),
        format!("SELECT count() FROM numbers(2) GROUP BY file('{file}')"),
        format!("SELECT sum(1) OVER (PARTITION BY file('{file}'))"),
        format!("SELECT sum(1) OVER w WINDOW w AS (PARTITION BY file('{file}'))"),
        format!("SELECT 1 LIMIT 1 BY file('{file}')"),
        format!("SELECT 1 FROM numbers(1) ARRAY JOIN [file('{file}')] AS x"),
        format!("EXPLAIN SELECT file('{file}')"),
        format!("SHOW TABLES WHERE name = file('{file}')"),
        format!("SHOW COLUMNS FROM tables FROM system WHERE field = file('{file}')"),
        format!("SELECT * FROM file('{file}')"),
        format!("SELECT * FROM file('{file}', 'CSV', 'a UInt64')"),
        format!("DESCRIBE file('{file}')"),
        format!("SELECT * FROM \"{file}\""),
        format!("SELECT * FROM default.\"{file}\""),
        format!("DESCRIBE default.\"{file}\""),
        format!("SHOW CREATE TABLE default.\"{file}\""),
        format!("SELECT 1 INTO OUTFILE '{out}'"),
        format!("SELECT * FROM filesystem('{}')", outside.path().display()),
        format!("SELECT * FROM sqlite('{file}', 't')"),
        format!(
            "SELECT * FROM format(JSONEachRow, 'a Int8, b String DEFAULT file(''{file}'')', '{{\"a\":1}}')"
        ),
        format!("SELECT * FROM values('a Int8, b String DEFAULT file(''{file}'')', (1))"),
        "SELECT * FROM url('http://127.0.0.1:1/', 'CSV', 'a String')".into(),
        "SELECT * FROM url('http://127.0.0.1:1/')".into(),
        "SELECT * FROM s3('http://127.0.0.1:1/a.csv')".into(),
        "SELECT * FROM remote('127.0.0.1:1', 'system', 'one')".into(),
        "SELECT * FROM mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')".into(),
        "SELECT * FROM postgresql('127.0.0.1:1', 'a', 'b', 'c', 'd')".into(),
        "SELECT * FROM iceberg('http://127.0.0.1:1/x')".into(),
        "SELECT * FROM executable('cat', 'TSV', 'a String')".into(),
        "SELECT 1 WHERE 1 IN (SELECT * FROM url('http://127.0.0.1:1/'))".into(),
        "SELECT * FROM (SELECT 1) AS a JOIN url('http://127.0.0.1:1/') AS b ON 1".into(),
        "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT 1))".into(),
        "SELECT * FROM eval('SELECT 1')".into(),
        "SELECT catboostEvaluate('/etc/hostname', 1)".into(),
        "SELECT aiGenerate('x', 'y')".into(),
    ] {
        let message = refusal(&store, &sql).await;
        assert!(!message.contains("4711"), "{sql}: {message}");
        // Most are refused by us; what is a name of a file, by the engine.
        let refused = [
            "is not allowed",
            "are not allowed",
            "only statements that read",
            "readonly mode",
            "READONLY",
            "UNKNOWN",
        ];
        assert!(
            refused.iter().any(|words| message.contains(words)),
            "{sql}: {message}"
        );
    }
    assert!(!outside.path().join("out").exists());
}

#[tokio::test]
async fn a_person_may_run_one_statement_at_a_time() {
    let store = database();
    for sql in [
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP TABLE t",
        "SELECT 1;; SELECT 2",
    ] {
        let message = refusal(&store, sql).await;
        assert!(
            message.contains("one statement at a time") || message.contains("yntax error"),
            "{sql}: {message}"
        );
    }
}

#[tokio::test]
async fn text_that_does_not_parse_never_runs_in_part() {
    let store = database();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "4711").unwrap();
    for sql in ["", ";", "SELEC 1", "SELECT (", "SELECT 'a", "hello\nworld\t\\"] {
        assert!(!refusal(&store, sql).await.is_empty(), "{sql}");
    }
    let leak = format!("SELECT toDate(file('{}')); SELECT (", secret.path().display());
    let message = refusal(&store, &leak).await;
    assert!(
        message.contains("yntax error") && !message.contains("4711"),
        "{message}"
    );
}

#[tokio::test]
async fn an_error_keeps_the_code_of_the_engine_and_is_one_line() {
    let store = database();
    match answer(&store, query("SELECT nope\nFROM nowhere", Access::ReadOnly)).await {
        Err(StoreError::Rejected { code: 60, message }) => {
            assert!(
                message.contains("nowhere") && !message.contains('\n') && !message.contains("version"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}

/// Waits until no other query of the process contains `text`.
async fn until_gone(store: &Embedded, text: &str) -> Duration {
    let start = Instant::now();
    let sql = format!(
        "SELECT count() FROM system.processes WHERE query LIKE '%{text}%' AND query NOT LIKE '%system.processes%'"
    );
    while ask(store, &sql).await != "0\n" {
        assert!(start.elapsed() < Duration::from_secs(20), "the query still runs");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_nobody_waits_for_ends_before_its_first_row() {
    let store = database();
    // Years of work without a row.
    let sql = "SELECT count() FROM numbers(1000000000) AS never_done CROSS JOIN numbers(1000000000) AS b";
    let waiting = tokio::time::timeout(
        Duration::from_millis(300),
        store.query(query(sql, Access::ReadOnly)),
    );
    assert!(waiting.await.is_err(), "the query should still be running");
    let took = until_gone(&store, "never_done").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled_even_before_it_has_started() {
    let store = database();
    for _ in 0..20 {
        let sql =
            "SELECT count() FROM numbers(1000000000) AS hardly_begun CROSS JOIN numbers(1000000000) AS b";
        let waiting = tokio::time::timeout(
            Duration::from_micros(200),
            store.query(query(sql, Access::ReadOnly)),
        );
        assert!(waiting.await.is_err(), "the query should still be running");
    }
    // All four connections are free again, or this one would wait for years.
    assert_eq!(
        answer(&store, query("SELECT 1", Access::ReadOnly)).await.unwrap(),
        "1\n"
    );
    until_gone(&store, "hardly_begun").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_is_held_back_and_ends_when_it_is_dropped() {
    let store = database();
    let mut parts = store
        .query(query(
            "SELECT number AS endless FROM system.numbers",
            Access::ReadOnly,
        ))
        .await
        .unwrap();
    for _ in 0..3 {
        parts.next().await.unwrap().unwrap();
    }
    drop(parts);
    let took = until_gone(&store, "endless").await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_the_middle_of_an_answer_ends_it() {
    let store = database();
    let sql = "SELECT throwIf(number = 5000000, 'half way') FROM numbers(10000000)";
    let mut parts = store.query(query(sql, Access::ReadOnly)).await.unwrap();
    let error = loop {
        match parts.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the answer ended without its error"),
        }
    };
    assert!(error.to_string().contains("half way"), "{error}");
    assert!(parts.next().await.is_none());
}

#[tokio::test]
async fn a_query_of_a_person_has_a_bound_on_its_memory() {
    let store = database();
    let sql = "SELECT length(groupArray(number)) FROM numbers(1000000000)";
    match answer(&store, query(sql, Access::ReadOnly)).await {
        Err(StoreError::Unavailable { message }) => assert!(message.contains("emory limit"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_folder_in_use_by_another_process_is_an_error_that_names_the_process() {
    drop(database());
    let said = open_elsewhere(&data_folder(), Path::new("."));
    let expected = format!(
        "{} is in use by process {}",
        data_folder().display(),
        std::process::id()
    );
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn a_damaged_folder_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("clickhouse"), "not a folder").unwrap();
    let said = open_elsewhere(dir.path(), Path::new("."));
    let expected = format!("the engine cannot open the data folder {}", dir.path().display());
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn a_configuration_that_lies_in_the_working_directory_is_not_read() {
    let (dir, working_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(working_dir.path().join("config.xml"), "<clickhouse><nonsense").unwrap();
    let said = open_elsewhere(dir.path(), working_dir.path());
    assert!(said.contains("opened, and it says 1"), "{said}");
}

#[test]
fn a_process_that_used_the_engine_ends_as_it_wants_to() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        // Checks the exit code, which a fault on the way out would change.
        open_elsewhere(dir.path(), Path::new("."));
    }
}

#[test]
fn the_engine_has_the_bound_that_it_was_given() {
    let dir = tempfile::tempdir().unwrap();
    let said = open_elsewhere_within(dir.path(), Path::new("."), "1500000000");
    assert!(said.contains("within 1500000000\n"), "{said}");
}

/// Opens a folder in a process of its own, and gives what that says.
fn open_elsewhere(folder: &Path, working_dir: &Path) -> String {
    open_elsewhere_within(folder, working_dir, "")
}

/// The same, with a bound for the engine's memory; empty: none of its own.
fn open_elsewhere_within(folder: &Path, working_dir: &Path, memory_bytes: &str) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store_embedded::opens_the_folder_it_is_given",
            "--nocapture",
            "--ignored",
        ])
        .env("HOLDFAST_TEST_FOLDER", folder)
        .env("HOLDFAST_TEST_MEMORY", memory_bytes)
        .current_dir(working_dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {said}", output.status);
    assert!(said.contains("1 passed"), "{said}");
    said
}

#[tokio::test]
#[ignore = "run by the tests above, in a process of its own"]
async fn opens_the_folder_it_is_given() {
    let folder = std::env::var("HOLDFAST_TEST_FOLDER").unwrap();
    let memory_bytes = std::env::var("HOLDFAST_TEST_MEMORY").unwrap().parse().ok();
    let library = library::locate().unwrap();
    match Embedded::open_within(Path::new(&folder), &library, "test", memory_bytes) {
        Ok(store) => {
            // Something for the engine's threads to be busy with when the process ends.
            for sql in [
                "CREATE TABLE IF NOT EXISTS t (a UInt64) ENGINE = MergeTree ORDER BY a",
                "INSERT INTO t SELECT number FROM numbers(1000000)",
                "INSERT INTO t SELECT number FROM numbers(1000000)",
            ] {
                store.execute(sql).await.unwrap();
            }
            println!("opened, and it says {}", ask(&store, "SELECT 1").await);
            let bound = "SELECT value FROM system.server_settings WHERE name = 'max_server_memory_usage'";
            println!("within {}", ask(&store, bound).await);
            std::mem::forget(store);
        }
        Err(error) => println!("{error}"),
    }
}

/// Runs a test that is ignored in a process of its own, with `HOLDFAST_TEST_FOLDER` on a disk of this size.
pub(crate) fn pass_on_a_disk_of(size: &str, test: &str) {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(arguments[0])
            .args(&arguments[1..])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    run(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        &format!("size={size}"),
        "holdfast-test",
    ]);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--ignored"])
        .env("HOLDFAST_TEST_FOLDER", dir.path())
        .output();
    run(&["umount"]);
    let output = output.unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{}: {said}",
        output.status
    );
}

#[test]
fn a_disk_that_is_full_keeps_the_engine_waiting_and_takes_nothing_from_it() {
    pass_on_a_disk_of("96m", "store_embedded::merges_on_a_disk_that_is_full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above, in a process of its own"]
async fn merges_on_a_disk_that_is_full() {
    let folder = PathBuf::from(std::env::var("HOLDFAST_TEST_FOLDER").unwrap());
    writes::wait_for_space();
    let store = Embedded::open(&folder.join("data"), &library::locate().unwrap(), "test").unwrap();
    let table = "CREATE TABLE t (a UInt64, b String) ENGINE = MergeTree ORDER BY a";
    store.execute(table).await.unwrap();
    let (filler, rest) = (folder.join("filler"), folder.join("rest"));
    let (mut stored, mut waits) = (0, 0);
    for round in 0..12 {
        for rows in [500, 3_000, 10_000] {
            let insert =
                format!("INSERT INTO t SELECT number, toString(rand64(number)) FROM numbers({rows})");
            store.execute(&insert).await.unwrap();
            stored += rows;
        }
        // Enough is free that the merge begins.
        fill(&filler);
        let file = std::fs::File::options().write(true).open(&filler).unwrap();
        file.set_len(file.metadata().unwrap().len() - FREE_BYTES).unwrap();
        let merging = tokio::spawn({
            let store = store.clone();
            async move { store.execute("OPTIMIZE TABLE t FINAL").await }
        });
        tokio::time::sleep(Duration::from_millis(round % 4)).await;
        fill(&rest);
        for _ in 0..20 {
            waits += usize::from(writes::are_waiting());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::remove_file(&rest).unwrap();
        std::fs::remove_file(&filler).unwrap();
        merging.await.unwrap().unwrap();
        // Everything of it is read.
        let sums = ask(&store, "SELECT count(), sum(length(b)) > 0 FROM t").await;
        assert_eq!(sums, format!("{stored}\t1\n"), "round {round}");
    }
    assert!(waits > 0, "no merge met a full disk");
    std::mem::forget(store);
}

/// What a merge of all rows takes, twice.
const FREE_BYTES: u64 = 8 << 20;

/// Writes a file until nothing fits beside it.
pub(crate) fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let mut chunk = 1 << 20;
    while chunk >= 4_096 {
        if file.write_all(&vec![1; chunk]).is_err() {
            chunk /= 2;
        }
    }
}
