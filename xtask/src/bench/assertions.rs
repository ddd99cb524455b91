//! The benchmark `assertions`: what it costs to judge a thousand assertions over a hundred nodes in four classes (5 s by node,
//! a minute by node, a minute by pair, ten minutes by service) while rows come in.
//!
//! The collector's example `judging_cost` is all of it in one process, with the embedded store: it takes rows in alone, and
//! then with the tasks of a collector that judge and tell, so what judging costs is the difference of two neighbouring minutes,
//! with its questions to the store and its verdicts in it. The first 75 s of judging are not in it, nor is what is judged after the second
//! minute, when the last windows are waited for; that no window is missed, and how late verdicts were at first, is of all of it.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::failure::Failure;
use crate::up::system::build_examples;
use crate::workspace;

/// From when the last rows of a window are there until its verdicts are stored, for all but one in a hundred: what a violation may
/// take from the failure itself on (see `verdict-latency`).
const MOST_P99_MS: f64 = 2_000.0;
/// And for all: `deadline`, for which rows are waited for.
const MOST_MS: f64 = 10_000.0;

/// Rows a second, and the cores that judging may take meanwhile.
const RATES: [(u64, f64); 2] = [(20_000, 0.25), (100_000, 0.75)];

/// Measures each rate once, prints a line for each, and fails where one is beyond its limits.
pub(super) fn run(seconds: u64, as_json: bool) -> anyhow::Result<()> {
    let program = build_examples(&["holdfast-collector"], &["judging_cost"])?.join("judging_cost");
    let mut faults = Vec::new();
    for (rate, most_cores) in RATES {
        let folder = workspace::fresh_dir("bench-assertions")?;
        let output = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(&program)
            .arg(&folder)
            .args([rate.to_string(), seconds.to_string()])
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(
            output.status.success(),
            "judging_cost ended with {}",
            output.status
        );
        let found: Value = serde_json::from_slice(&output.stdout).context("judging_cost prints an object")?;
        let figure = |name: &str| {
            found[name]
                .as_f64()
                .with_context(|| format!("no {name} in {found}"))
        };
        let (cells, wrong) = quantiles(&found)?;
        if as_json {
            println!("{found}");
        } else {
            println!(
                "{rate:>7} rows/s: {:.3} cores for judging {} assertions, {} keys (at most {most_cores}); {} of {} windows judged, {} \
                 given up; stored after {:.0} ms (p50), {:.0} ms (p99), {} ms at most ({} ms while it began); quantiles: {wrong} of \
                 {cells} otherwise than the sorted values",
                figure("cores_judging")?,
                found["assertions"],
                found["keys"],
                found["windows_judged"],
                found["windows_expected"],
                found["windows_given_up"],
                figure("stored_after_p50_ms")?,
                figure("stored_after_p99_ms")?,
                found["stored_after_most_ms"],
                found["stored_after_most_at_first_ms"],
            );
        }
        if figure("cores_judging")? > most_cores {
            faults.push(format!("{rate} rows/s: more than {most_cores} cores"));
        }
        if figure("windows_judged")? != figure("windows_expected")? || figure("windows_given_up")? > 0.0 {
            faults.push(format!("{rate} rows/s: windows were missed"));
        }
        if figure("stored_after_p99_ms")? > MOST_P99_MS || figure("stored_after_most_ms")? > MOST_MS {
            faults.push(format!(
                "{rate} rows/s: verdicts were stored later than {MOST_P99_MS} ms (p99) or {MOST_MS} ms after their rows"
            ));
        }
        if wrong > 0 {
            faults.push(format!(
                "{rate} rows/s: quantiles are not those of the sorted values"
            ));
        }
    }
    workspace::fresh_dir("bench-assertions")?;
    if faults.is_empty() {
        return Ok(());
    }
    Err(Failure::Check(faults.join("; ")).into())
}

/// How many verdicts about quantiles were compared, of all classes, and how many are otherwise than the sorted values.
fn quantiles(found: &Value) -> anyhow::Result<(u64, u64)> {
    let classes = found["quantiles"].as_array();
    let classes = classes.with_context(|| format!("no quantiles in {found}"))?;
    ensure!(
        classes.len() == 4,
        "quantiles of all four classes are to be compared: {found}"
    );
    let sum = |name: &str| classes.iter().filter_map(|class| class[name].as_u64()).sum();
    Ok((sum("cells"), sum("wrong")))
}
