//! `holdfast test`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};

use super::Failure;
use crate::assertion::Set;
use crate::clock::WallClock;
use crate::engine::{files, trial};
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
    let failed = runtime
        .block_on(test(&set, args.verbose))
        .map_err(Failure::Undone)?;
    let passed = set.tests.len() - failed;
    super::tell(&format!("{passed} passed, {failed} failed"));
    if failed > 0 {
        Err(Failure::DoesNotHold)
    } else {
        Ok(())
    }
}

/// How many tests failed.
async fn test(set: &Set, verbose: bool) -> anyhow::Result<usize> {
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
        let said = if is_right { "passed" } else { "failed" };
        writeln!(
            stdout,
            "{said}: {} ({}:{})",
            trial.assertion, trial.file, trial.place.line
        )?;
        if verbose || !is_right {
            stdout.write_all(outcome.text().as_bytes())?;
        }
        stdout.flush()?;
    }
    Ok(failed)
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
