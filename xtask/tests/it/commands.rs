//! The commands, as the shell sees them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments);
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn setup_check_changes_nothing_and_names_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    // Only what this test puts there can be found.
    let output = xtask(&["setup", "--check"])
        .env("HOLDFAST_CACHE", cache.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        table
            .lines()
            .any(|line| line.starts_with("missing") && line.contains("libchdb")),
        "{table}"
    );
    assert!(
        table.contains(&format!("cache: {}", cache.path().display())),
        "{table}"
    );
    assert!(
        stderr(&output).contains("cargo xtask setup"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        fs::read_dir(cache.path()).unwrap().count(),
        0,
        "something was written"
    );
}

#[test]
fn a_download_with_another_checksum_is_refused_and_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let programs = tempfile::tempdir().unwrap();
    // What a broken mirror does: the right name, other bytes.
    let npm = programs.path().join("npm");
    fs::write(
        &npm,
        "#!/bin/sh\necho other > chdb-lib-linux-x64-gnu-26.7.3-stable.1.tgz\n",
    )
    .unwrap();
    fs::set_permissions(&npm, fs::Permissions::from_mode(0o755)).unwrap();
    let linker = cache.path().join("bpf-linker-0.10.1/bin");
    fs::create_dir_all(&linker).unwrap();
    fs::write(linker.join("bpf-linker"), "").unwrap();

    let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
    // `test` wants the library and no packages beyond those that are there if this runs; it gets no further.
    let output = xtask(&["test"])
        .env("HOLDFAST_CACHE", cache.path())
        .env("PATH", path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("instead of c0d32b129e98"),
        "{}",
        stderr(&output)
    );
    let left: Vec<_> = fs::read_dir(cache.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["bpf-linker-0.10.1"]);
}

#[test]
fn arguments_that_make_no_sense_end_with_2_and_say_why() {
    for (arguments, reason) in [
        (&["up", "--for", "30"][..], "no unit"),
        (&["up", "--nodes", "1"], "1 is not in 2..=50"),
        (&["up", "--no-traffic", "--load"], "cannot be used with"),
        (&["bench", "everything"], "probes"),
        (&["fly"], "unrecognized subcommand"),
    ] {
        let output = xtask(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            stderr(&output).contains(reason),
            "{arguments:?}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn without_root_up_says_how_to_get_it() {
    // As root, which the tests usually are, somebody else is asked to.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("xtask");
    fs::copy(env!("CARGO_BIN_EXE_xtask"), &program).unwrap();

    let output = command.arg(&program).arg("up").output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr(&output));
    let message = stderr(&output);
    assert!(message.contains("needs root; type: sudo"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}
