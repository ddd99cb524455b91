//! `holdfast nodes`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Context;
use holdfast_proto::v1::NodesRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{Lines, Reach};
use super::table::{Align, BAD, Cell, FAINT, GOOD, Table};

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
    let chunks = client
        .nodes(NodesRequest {})
        .await
        .map_err(|status| reach.failure(&status))?;
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
            super::tell(&format!(
                "no node has delivered yet; run holdfast-agent run --collector {} on one",
                reach.collector
            ));
        }
    }
    stdout.flush()?;
    Ok(())
}

/// A row of `nodes`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Node {
    node: String,
    up: bool,
    last_seen: String,
    labels: BTreeMap<String, String>,
    version: String,
    kernel: String,
    architecture: String,
    observed_netns: String,
    missing_features: Vec<String>,
}

const COLUMNS: [(&str, Align); 8] = [
    ("NODE", Align::Left),
    ("STATE", Align::Left),
    ("LAST SEEN (UTC)", Align::Left),
    ("LABELS", Align::Left),
    ("AGENT", Align::Left),
    ("KERNEL", Align::Left),
    ("OBSERVES", Align::Left),
    ("MISSING", Align::Left),
];

impl Node {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let labels: Vec<_> = self
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let observes = match self.observed_netns.as_str() {
            "all" => "all".to_owned(),
            inode => format!("netns {inode}"),
        };
        [
            self.node.clone().into(),
            if self.up {
                Cell::styled("up", GOOD)
            } else {
                Cell::styled("silent", BAD)
            },
            // To the second: `2026-03-01 12:00:00`.
            Cell::styled(self.last_seen.get(..19).unwrap_or(&self.last_seen), FAINT),
            labels.join(",").into(),
            self.version.clone().into(),
            format!("{} {}", self.kernel, self.architecture).into(),
            observes.into(),
            self.missing_features.join(",").into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_shown_with_what_it_said() {
        let row = r#"{"node":"web-1","up":true,"last_seen":"2026-03-01 12:00:00.123456789","agent_id":"a1",
            "agent_epoch":7,"labels":{"role":"web","zone":"a"},"version":"0.1.0","kernel":"6.18.0",
            "architecture":"x86_64","observed_netns":"4026531840","missing_features":["cgroups","btf"]}"#;
        let node: Node = serde_json::from_str(row).unwrap();
        assert_eq!(
            node.cells().map(|cell| cell.text).join("|"),
            "web-1|up|2026-03-01 12:00:00|role=web,zone=a|0.1.0|6.18.0 x86_64|netns 4026531840|cgroups,btf"
        );
    }
}
