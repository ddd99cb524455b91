//! `holdfast backtest`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::anyhow;
use holdfast_proto::v1::{AssertionFile, CheckRequest};

use super::Failure;
use super::check;
use super::client::Reach;
use super::verdicts;
use crate::config::Span;
use crate::engine::files;

/// Say what files of assertions would have said of the past.
///
/// Every window since then is judged by what is stored, in its order. Over a long time windows are judged less often than live,
/// 10,000 of each assertion at most.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast backtest --since 1h assertions/
  holdfast backtest --since 7d --json new.yaml

Exit codes: 0 the past was judged, whatever came of it, 2 a wrong call or a wrong file, or there is no assertion in it,
4 it could not be done.")]
pub(super) struct Args {
    /// Files, or folders with files that end in .yaml
    #[arg(value_name = "FILES", required = true)]
    files: Vec<PathBuf>,

    /// How far back
    #[arg(long, value_name = "TIME", default_value = "1h")]
    since: Span,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if args.since.0.is_zero() {
        return Err(Failure::Usage(anyhow!("--since is 0s: nothing would be judged")));
    }
    let (files, _) = files::load(&args.files).map_err(|error| Failure::Usage(error.into()))?;
    let request = CheckRequest {
        files: files
            .into_iter()
            .map(|(name, text)| AssertionFile { name, text })
            .collect(),
        for_ns: 0,
        since_ns: u64::try_from(args.since.0.as_nanos()).unwrap_or(u64::MAX),
    };
    let mut changes: Vec<verdicts::Row> = Vec::new();
    let judged = check::judge(&args.reach, request, |row| {
        changes.push(verdicts::Row::parse(&row.line)?);
        Ok(())
    })
    .await?;
    // Those of long windows come later than those of short ones.
    changes.sort_by(|one, other| one.window_to.cmp(&other.window_to));
    let mut stdout = io::stdout().lock();
    if args.reach.json {
        for row in changes.iter().chain(&judged.last) {
            writeln!(stdout, "{}", row.line)?;
        }
        return Ok(stdout.flush()?);
    }
    stdout.write_all(verdicts::text(&changes, true).as_bytes())?;
    let mut by_name: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for row in &changes {
        *by_name
            .entry(&row.assertion)
            .or_default()
            .entry(&row.verdict)
            .or_default() += 1;
    }
    writeln!(stdout)?;
    for (name, counts) in by_name {
        let each: Vec<_> = counts
            .iter()
            .map(|(verdict, count)| match count {
                1 => format!("once {verdict}"),
                _ => format!("{count} times {verdict}"),
            })
            .collect();
        writeln!(stdout, "{name}: {}", each.join(", "))?;
    }
    stdout.flush()?;
    Ok(())
}
