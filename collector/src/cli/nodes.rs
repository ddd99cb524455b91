//! `holdfast nodes`.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_proto::v1::NodesRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{Reach, print};
use super::overhead::{share, step};
use super::table::{Align, BAD, Cell, FAINT, GOOD, human_bytes, human_us};

/// List the nodes that deliver, or did.
///
/// CPU is what the agent and its programs took of the machine in their last interval; PROBES what the agent's budget
/// (--max-cpu) leaves of what it was told to watch: full, or a step. `holdfast overhead` says more. TROUBLE is what is wrong with its
/// delivery: another agent with the same id is turned away, its spool has no disk, batches pile up, its clock is off.
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
    print(
        reach,
        chunks.into_inner(),
        COLUMNS,
        |node: &Node| [node.cells()],
        &format!(
            "no node has delivered yet; run holdfast-agent run --collector {} on one",
            reach.collector
        ),
    )
    .await
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
    cpu_ppm: u32,
    resident_bytes: u64,
    step: String,
    rival: String,
    spool_batches: u64,
    spool_disk_failed: bool,
    clock_offset_ns: i64,
}

/// Batches on their way: more than ever wait for an answer while all is well.
const PILE: u64 = 64;

/// A clock that is further off gives times that people stumble over.
const CLOCK_OFF: Duration = Duration::from_secs(1);

const COLUMNS: [(&str, Align); 12] = [
    ("NODE", Align::Left),
    ("STATE", Align::Left),
    ("LAST SEEN (UTC)", Align::Left),
    ("LABELS", Align::Left),
    ("AGENT", Align::Left),
    ("KERNEL", Align::Left),
    ("OBSERVES", Align::Left),
    ("MISSING", Align::Left),
    ("CPU", Align::Right),
    ("MEMORY", Align::Right),
    ("PROBES", Align::Left),
    ("TROUBLE", Align::Left),
];

impl Node {
    /// What is wrong with its delivery, in words; empty: nothing.
    fn trouble(&self) -> String {
        let mut troubles = Vec::new();
        if !self.rival.is_empty() {
            troubles.push(format!("the same id at {}", self.rival));
        }
        if self.spool_disk_failed {
            troubles.push("spool in memory only".to_owned());
        }
        if self.spool_batches > PILE {
            troubles.push(format!("{} batches wait", self.spool_batches));
        }
        let off = Duration::from_nanos(self.clock_offset_ns.unsigned_abs());
        if off > CLOCK_OFF {
            let side = if self.clock_offset_ns > 0 {
                "ahead"
            } else {
                "behind"
            };
            troubles.push(format!(
                "clock {side} by {}",
                human_us(off.as_micros().try_into().unwrap_or(u64::MAX))
            ));
        }
        troubles.join(", ")
    }

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
            if self.step.is_empty() {
                Cell::styled("-", FAINT)
            } else {
                share(self.cpu_ppm).into()
            },
            if self.step.is_empty() {
                Cell::styled("-", FAINT)
            } else {
                human_bytes(self.resident_bytes).into()
            },
            step(&self.step),
            match self.trouble() {
                none if none.is_empty() => Cell::styled("-", FAINT),
                trouble => Cell::styled(trouble, BAD),
            },
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
            "architecture":"x86_64","observed_netns":"4026531840","missing_features":["cgroups","btf"],
            "cpu_ppm":1234,"resident_bytes":20971520,"step":"syscalls_off","rival":"10.0.0.9:4711","spool_batches":65,
            "spool_disk_failed":true,"clock_offset_ns":-90000000000}"#;
        let node: Node = serde_json::from_str(row).unwrap();
        assert_eq!(
            node.cells().map(|cell| cell.text).join("|"),
            "web-1|up|2026-03-01 12:00:00|role=web,zone=a|0.1.0|6.18.0 x86_64|netns 4026531840|cgroups,btf|0.12%|21.0 MB|syscalls_off|\
             the same id at 10.0.0.9:4711, spool in memory only, 65 batches wait, clock behind by 90.0 s"
        );
    }
}
