//! `holdfast nodes`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Context;
use holdfast_proto::v1::NodesRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{Lines, Reach};
use super::table::{Align, BAD, Cell, FAINT, Table};

/// List the nodes that deliver, or did.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast nodes
  holdfast nodes --json | jq .node")]
pub(super) struct Args {
    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let chunks = client.nodes(NodesRequest {}).await.map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut rows = Vec::new();
    let mut stdout = io::stdout().lock();
    while let Some(text) = lines.next().await.map_err(|status| reach.failure(&status))? {
        if reach.json {
            stdout.write_all(text.as_bytes())?;
            continue;
        }
        for line in text.lines() {
            let node: Node = serde_json::from_str(line)
                .with_context(|| format!("the collector answers with a row of another version: {line}"))
                .map_err(Failure::Undone)?;
            rows.push(node.cells());
        }
    }
    if !reach.json {
        let mut table = Table::new(COLUMNS, super::colours(&io::stdout()));
        table.fit(&rows);
        stdout.write_all(table.head().as_bytes())?;
        for row in &rows {
            stdout.write_all(table.line(row).as_bytes())?;
        }
        if rows.is_empty() {
            eprintln!("no node has delivered yet; run holdfast-agent run --collector {} on one", reach.collector);
        }
    }
    stdout.flush()?;
    Ok(())
}
