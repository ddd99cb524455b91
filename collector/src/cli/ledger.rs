//! `holdfast ledger`: whether every connection end that the kernel counted is somewhere.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use holdfast_proto::v1::LedgerRequest;
use holdfast_proto::v1::query_client::QueryClient;
use serde::Deserialize;
use tonic::transport::Channel;

use super::Failure;
use super::client::{Lines, Reach};
use super::table::{Align, BAD, Cell, FAINT, GOOD, Table};

/// How often `--watch` asks: as often as the agents report.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Show whether every connection end that the kernel counted is in the store, or in a counter.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One row for each network namespace of each agent's latest start. It closes when
  OPENED   = CLOSED + OPEN + UNTRACKED + superseded     in the kernel
  CLOSED   = RECEIVED + LOST + what is in the ring      between kernel and agent
  RECEIVED = batching + WAITING + ACKED + DROPPED + REFUSED   in the agent
  STORED   = ACKED, or more while acknowledgements are on their way
A difference is shown in red. Exit code 0: every row closes, 1: one does not.

Examples:
  holdfast ledger
  holdfast ledger --watch
  holdfast ledger --all --json | jq 'select(.lost > 0)'")]
pub(super) struct Args {
    /// Show it again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// Every start of every agent, not only the latest
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut client = args.reach.connect().await?;
    loop {
        let closes = show(&args, &mut client).await?;
        if !args.watch {
            return if closes { Ok(()) } else { Err(Failure::DoesNotHold) };
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Prints the ledger once; tells whether it closes.
async fn show(args: &Args, client: &mut QueryClient<Channel>) -> Result<bool, Failure> {
    let reach = &args.reach;
    let request = LedgerRequest { all_starts: args.all };
    let chunks = client
        .ledger(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut rows = Vec::new();
    let mut stdout = io::stdout().lock();
    while let Some(text) = lines.next().await.map_err(|status| reach.failure(&status))? {
        for line in text.lines() {
            let row: Row = serde_json::from_str(line)
                .with_context(|| format!("the collector answers with a row of another version: {line}"))
                .map_err(Failure::Undone)?;
            rows.push(row);
        }
        if reach.json {
            stdout.write_all(text.as_bytes())?;
        }
    }
    let closes = rows.iter().all(Row::closes);
    if !reach.json {
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        let mut table = Table::new(COLUMNS, super::colours(&io::stdout()));
        table.fit(&cells);
        if args.watch && super::colours(&io::stdout()) {
            // Clear the screen and go to its top.
            stdout.write_all(b"\x1b[2J\x1b[H")?;
        }
        stdout.write_all(table.head().as_bytes())?;
        for row in &cells {
            stdout.write_all(table.line(row).as_bytes())?;
        }
        if rows.is_empty() {
            super::tell(&format!(
                "no agent has reported yet; run holdfast-agent run --collector {} on a node",
                reach.collector
            ));
        }
    }
    stdout.flush()?;
    Ok(closes)
}

/// A row of `ledger`, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
struct Row {
    node: String,
    netns: u32,
    observed_at: String,
    opened: u64,
    closed: u64,
    open: u64,
    untracked: u64,
    lost: u64,
    missed: u64,
    received: u64,
    unacknowledged: u64,
    acknowledged: u64,
    dropped: u64,
    refused: u64,
    rows_stored: u64,
    kernel_difference: i64,
    ring_difference: i64,
    agent_difference: i64,
    store_difference: i64,
}

const COLUMNS: [(&str, Align); 17] = [
    ("NODE", Align::Left),
    ("NETNS", Align::Right),
    ("AT (UTC)", Align::Left),
    ("OPENED", Align::Right),
    ("OPEN", Align::Right),
    ("CLOSED", Align::Right),
    ("UNTRACKED", Align::Right),
    ("MISSED", Align::Right),
    ("LOST", Align::Right),
    ("RECEIVED", Align::Right),
    ("WAITING", Align::Right),
    ("DROPPED", Align::Right),
    ("REFUSED", Align::Right),
    ("ACKED", Align::Right),
    ("STORED", Align::Right),
    ("DIFFERENCE", Align::Right),
    ("CLOSES", Align::Left),
];

impl Row {
    /// What neither a counter nor the way of a running agent explains. What is in the ring, and what is stored and
    /// waits for its acknowledgement, is on its way.
    fn difference(&self) -> i64 {
        let on_its_way = 0..=self.unacknowledged.cast_signed();
        let unexplained_in_store = if on_its_way.contains(&self.store_difference) {
            0
        } else {
            self.store_difference
        };
        self.kernel_difference + self.ring_difference.min(0) + self.agent_difference + unexplained_in_store
    }

    fn closes(&self) -> bool {
        self.kernel_difference == 0
            && self.ring_difference >= 0
            && self.agent_difference == 0
            && self.difference() == 0
            && self.missed == 0
    }

    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let bad_above_zero = |count: u64| {
            let style = if count == 0 { FAINT } else { BAD };
            Cell::styled(count.to_string(), style)
        };
        [
            self.node.clone().into(),
            self.netns.to_string().into(),
            Cell::styled(self.observed_at.get(..19).unwrap_or(&self.observed_at), FAINT),
            self.opened.to_string().into(),
            self.open.to_string().into(),
            self.closed.to_string().into(),
            bad_above_zero(self.untracked),
            bad_above_zero(self.missed),
            bad_above_zero(self.lost),
            self.received.to_string().into(),
            self.unacknowledged.to_string().into(),
            bad_above_zero(self.dropped),
            bad_above_zero(self.refused),
            self.acknowledged.to_string().into(),
            self.rows_stored.to_string().into(),
            bad_above_zero(self.difference().unsigned_abs()),
            if self.closes() {
                Cell::styled("yes", GOOD)
            } else {
                Cell::styled("no", BAD)
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_is_no_difference() {
        let row = Row {
            unacknowledged: 10,
            ring_difference: 5,
            store_difference: 10,
            ..Row::default()
        };
        assert!(row.closes());
    }

    #[test]
    fn what_nothing_explains_is_a_difference() {
        let check = |row: Row, expected: i64| {
            assert!(!row.closes(), "{row:?}");
            assert_eq!(row.difference(), expected, "{row:?}");
        };
        check(
            Row {
                kernel_difference: 2,
                ..Row::default()
            },
            2,
        );
        check(
            Row {
                ring_difference: -3,
                ..Row::default()
            },
            -3,
        );
        check(
            Row {
                agent_difference: 1,
                ..Row::default()
            },
            1,
        );
        check(
            Row {
                store_difference: 4,
                unacknowledged: 3,
                ..Row::default()
            },
            4,
        );
        check(
            Row {
                store_difference: -1,
                ..Row::default()
            },
            -1,
        );
        check(
            Row {
                missed: 1,
                ..Row::default()
            },
            0,
        );
    }
}
