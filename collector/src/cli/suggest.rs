//! `holdfast suggest`.

use std::io::{self, Write};

use anyhow::Context;
use holdfast_proto::v1::SuggestRequest;
use serde_json::Value;

use super::Failure;
use super::client::{Lines, Reach};
use crate::config::Span;

/// Suggest assertions that hold now, with limits from what was seen.
///
/// A file of assertions goes to stdout: for each pair of who connects to what, the signals that were known in every minute
/// of the time, each with twice its worst value (or half of its least) as the limit and what it rests on beside. What
/// is not suggested, and why, goes to stderr.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast suggest > assertions/suggested.yaml
  holdfast suggest --from web --to db:5432 --since 1d
  holdfast suggest --from 'role = web and zone = a' --to 10.0.0.5:5432 | tee new.yaml && holdfast check --once new.yaml

Exit codes: 0 there are suggestions, 2 a wrong call, 3 nothing can be suggested: too little is known, 4 it could not be done.")]
pub(super) struct Args {
    /// Who connects: an expression over labels, a label's value, or a node's name [default: everybody, by their labels]
    #[arg(long, value_name = "NODES")]
    from: Option<String>,

    /// To what: likewise, also with a port; or an address [default: whatever they connect to]
    #[arg(long, value_name = "NODES[:PORT]")]
    to: Option<String>,

    /// How far back
    #[arg(long, value_name = "TIME", default_value = "1h")]
    since: Span,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let request = SuggestRequest {
        from: args.from.unwrap_or_default(),
        to: args.to.unwrap_or_default(),
        since_ns: u64::try_from(args.since.0.as_nanos()).unwrap_or(u64::MAX),
    };
    let chunks = client
        .suggest(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut stdout = io::stdout().lock();
    let mut is_any = false;
    while let Some(text) = lines.next().await.map_err(|status| reach.failure(&status))? {
        for line in text.lines() {
            let object: Value = serde_json::from_str(line)
                .context("the collector's answer is not understood")
                .map_err(Failure::Undone)?;
            if let Some(why) = object["left_out"].as_str() {
                super::tell(why);
            } else if let Some(file) = object["yaml"].as_str() {
                is_any |= !file.is_empty();
                if !reach.json {
                    stdout.write_all(file.as_bytes())?;
                }
            } else if reach.json {
                writeln!(stdout, "{}", object["suggested"])?;
            }
        }
    }
    stdout.flush()?;
    if !is_any {
        super::tell("nothing can be suggested: too little is known of that time");
        return Err(Failure::Unknown);
    }
    Ok(())
}
