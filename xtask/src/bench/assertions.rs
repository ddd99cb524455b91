//! The benchmark `assertions`: what it costs to judge a thousand assertions over a hundred nodes in four classes (5 s by node,
//! a minute by node, a minute by pair, ten minutes by service) while rows come in.
//!
//! The collector's example `judging_cost` is all of it in one process, with the embedded store: it takes rows in alone, and
//! then with the engine that `serve` has, so what judging costs is the difference of two neighbouring minutes, with its
//! questions to the store and its verdicts in it. The first 75 s of judging are not in it, nor is what is judged after the second
//! minute, when the last windows are waited for: no step of these is bounded; the longest one of the start is told.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::failure::Failure;
use crate::up::system::build_examples;
use crate::workspace;

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
        if as_json {
            println!("{found}");
        } else {
            println!(
                "{rate:>7} rows/s: {:.3} cores for judging {} assertions, {} keys (at most {most_cores}); {} of {} windows judged, {} \
                 given up, longest step {:.0} ms ({:.0} ms while it began); quantiles: {} of {} otherwise than the sorted values",
                figure("cores_judging")?,
                found["assertions"],
                found["keys"],
                found["windows_judged"],
                found["windows_expected"],
                found["windows_given_up"],
                figure("longest_step_ms")?,
                figure("longest_first_step_ms")?,
                found["quantile_cells_wrong"],
                found["quantile_cells"],
            );
        }
        if figure("cores_judging")? > most_cores {
            faults.push(format!("{rate} rows/s: more than {most_cores} cores"));
        }
        if figure("windows_judged")? != figure("windows_expected")? || figure("windows_given_up")? > 0.0 {
            faults.push(format!("{rate} rows/s: windows were missed"));
        }
        // A step judges all schedules, so one that is longer has windows wait that end meanwhile.
        if figure("longest_step_ms")? > figure("shortest_every_ms")? {
            faults.push(format!(
                "{rate} rows/s: a step was longer than the {} ms between two windows",
                found["shortest_every_ms"]
            ));
        }
        if figure("quantile_cells_wrong")? > 0.0 {
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
