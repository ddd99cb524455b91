//! The systemd units, as systemd itself reads them.

use std::fs;
use std::path::Path;
use std::process::Command;

const UNITS: [&str; 2] = ["holdfast-agent.service", "holdfast-collector.service"];

/// Writes a copy of a unit whose program exists on every machine: whether ours is installed is not the question.
fn with_existing_program(unit: &str, folder: &Path) -> std::path::PathBuf {
    let original = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/systemd")
        .join(unit);
    let text = fs::read_to_string(original).unwrap();
    let program = format!(
        "ExecStart=/usr/bin/{}",
        if unit.contains("agent") {
            "holdfast-agent"
        } else {
            "holdfast"
        }
    );
    assert!(text.contains(&program), "{unit} does not run {program}");
    let copy = folder.join(unit);
    fs::write(&copy, text.replace(&program, "ExecStart=/usr/bin/env")).unwrap();
    copy
}

#[test]
fn systemd_finds_nothing_to_complain_about_in_the_units() {
    let folder = tempfile::tempdir().unwrap();
    for unit in UNITS {
        let copy = with_existing_program(unit, folder.path());
        let output = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&copy)
            .output()
            .unwrap();
        // It ends with 0 when it only warns, and an unknown setting is only a warning.
        let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() && complaints.is_empty(),
            "{unit}: {complaints}"
        );
    }
}

#[test]
fn the_units_leave_their_programs_little_to_do_harm_with() {
    // systemd's own score of exposure, from 0 to 10, times ten; a unit without any hardening has 96.
    const MOST_EXPOSED: &str = "--threshold=25";
    let folder = tempfile::tempdir().unwrap();
    for unit in UNITS {
        let copy = with_existing_program(unit, folder.path());
        let mut command = Command::new("systemd-analyze");
        let output = command
            .args(["security", "--offline=true", MOST_EXPOSED])
            .arg(&copy)
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{unit}: {report}");
    }
}
