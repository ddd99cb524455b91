//! `holdfast test`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::{Value, json};

use super::Failure;
use crate::assertion::Set;
use crate::assertion::parse::trial::Trial;
use crate::clock::WallClock;
use crate::engine::files;
use crate::engine::trial::{self, Outcome};
use crate::store::embedded::Embedded;
use crate::store::{Store, library, migrations};

/// Run the `tests:` of files of assertions: a made-up past, judged as the real one is.
///
/// No collector is asked: the store is one of this process, and gone afterwards.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast test assertions/
  holdfast test --verbose web.yaml
  holdfast test --json assertions/ | jq 'select(.passed | not)'

A test is

  tests:
    - assertion: web reaches the database
      given: { web-1 -> db-1: \"5ms x60s, refused x180s, silent x120s\" }
      expect: { 60s: Holds, 90s: Pending, 200s: Violated, 330s: Unknown }

Exit codes: 0 all tests passed, 1 one did not, 2 a file is wrong, or there is no test in it, 4 it could not be done.")]
pub(super) struct Args {
    /// Files, or folders with files that end in .yaml
    #[arg(value_name = "FILES", required = true)]
    files: Vec<PathBuf>,

    /// Print the timeline of every test, not only of those that fail
    #[arg(long)]
    verbose: bool,

    /// Print one JSON object a line: a test, with its timeline
    #[arg(long)]
    json: bool,
}

/// The past of a test is so long ago: it is kept, and it is past.
const AGO: Duration = Duration::from_secs(24 * 3600);

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (_, set) = files::load(&args.files).map_err(|error| Failure::Usage(error.into()))?;
    if set.tests.is_empty() {
        let places: Vec<_> = args.files.iter().map(|path| path.display().to_string()).collect();
        return Err(Failure::Usage(anyhow!(
            "there are no tests in {}: write `tests:`",
            places.join(", ")
        )));
    }
    let runtime = tokio::runtime::Runtime::new()
        .context("cannot start")
        .map_err(Failure::Undone)?;
    let failed = runtime.block_on(test(&set, args)).map_err(Failure::Undone)?;
    let passed = set.tests.len() - failed;
    super::tell(&format!("{passed} passed, {failed} failed"));
    if failed > 0 {
        Err(Failure::DoesNotHold)
    } else {
        Ok(())
    }
}

/// How many tests failed.
async fn test(set: &Set, args: &Args) -> anyhow::Result<usize> {
    let folder = Folder::new()?;
    let path = folder.0.clone();
    let engine = tokio::task::spawn_blocking(move || {
        anyhow::Ok(Embedded::open(&path, &library::locate()?, "holdfast")?)
    })
    .await??;
    let now_ns = WallClock::system().now_ns();
    let begin_ns = now_ns - i64::try_from(AGO.as_nanos())?;
    let mut failed = 0;
    for (number, trial) in set.tests.iter().enumerate() {
        let store: Arc<dyn Store> = Arc::new(engine.database(&format!("test_{number}"))?);
        store.prepare().await?;
        migrations::apply(&*store, now_ns).await?;
        let outcome = trial::run(store, set, trial, begin_ns)
            .await
            .with_context(|| format!("the test of `{}`", trial.assertion))?;
        let is_right = outcome.differences.is_empty();
        failed += usize::from(!is_right);
        let mut stdout = io::stdout().lock();
        if args.json {
            writeln!(stdout, "{}", object(trial, &outcome))?;
            continue;
        }
        let said = if is_right { "passed" } else { "failed" };
        writeln!(
            stdout,
            "{said}: {} ({}:{})",
            trial.assertion, trial.file, trial.place.line
        )?;
        if args.verbose || !is_right {
            stdout.write_all(outcome.text().as_bytes())?;
        }
        stdout.flush()?;
    }
    Ok(failed)
}

/// A test and what came of it. Times are seconds from the begin of what is made up.
fn object(trial: &Trial, outcome: &Outcome) -> Value {
    let timeline: Vec<_> = outcome
        .timeline
        .iter()
        .map(|(at, key, verdict, why)| {
            json!({ "at_s": at.as_secs_f64(), "key": key, "verdict": verdict.name(), "why": why })
        })
        .collect();
    let differences: Vec<_> = outcome
        .differences
        .iter()
        .map(|(at, expected, said)| {
            json!({ "at_s": at.as_secs_f64(), "expected": expected.name(), "said": said })
        })
        .collect();
    json!({
        "assertion": trial.assertion,
        "file": trial.file,
        "line": trial.place.line,
        "passed": outcome.differences.is_empty(),
        "timeline": timeline,
        "differences": differences,
    })
}

/// A folder that is gone once it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("holdfast-test-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is in the folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assertion::state::Verdict;

    #[test]
    fn a_program_is_told_what_came_of_a_test() {
        let text = "
assertions: [{ name: a, from: all, expect: connect.count > 1, over: 1m }]
tests: [{ assertion: a, given: { web-1 -> db-1: refused x60s }, expect: { 60s: Holds } }]
";
        let set = files::declared(&[("a.yaml".to_owned(), text.to_owned())]).unwrap();
        let outcome = Outcome {
            assertion: "a".into(),
            timeline: vec![(
                Duration::from_millis(5_500),
                String::new(),
                Verdict::Violated,
                "0".into(),
            )],
            differences: vec![(Duration::from_secs(60), Verdict::Holds, "violated".into())],
        };
        assert_eq!(
            object(&set.tests[0], &outcome),
            json!({
                "assertion": "a", "file": "a.yaml", "line": 3, "passed": false,
                "timeline": [{ "at_s": 5.5, "key": "", "verdict": "violated", "why": "0" }],
                "differences": [{ "at_s": 60.0, "expected": "holds", "said": "violated" }],
            })
        );
    }
}
