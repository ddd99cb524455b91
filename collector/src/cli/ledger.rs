//! `holdfast ledger`: whether every connection end that the kernel counted is somewhere, and every other row that an
//! agent made.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use holdfast_proto::v1::LedgerRequest;
use holdfast_proto::v1::query_client::QueryClient;
use serde::Deserialize;
use tonic::transport::Channel;

use super::Failure;
use super::client::{Lines, Reach};
use super::table::{Align, BAD, CLEAR_SCREEN, Cell, FAINT, GOOD, Table};

/// How often `--watch` asks: as often as the agents report.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Rows that are stored and not counted yet: how often it is looked whether a later report counts them, and how
/// often at most. Agents report once a second.
const LATER_INTERVAL: Duration = Duration::from_millis(500);
const LATER_LOOKS: u32 = 8;

/// Show whether every connection end that the kernel counted, and every other row, is in the store or in a counter.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One row for the connections of each network namespace of each agent's latest start, and one for each of its other streams,
all namespaces together. System calls are counted in calls: STORED is the calls in the rows. All others are counted in
rows, from when the agent made them (OPENED, CLOSED, RECEIVED). It closes when
  OPENED   = CLOSED + OPEN + UNTRACKED + SAMPLED OUT + superseded + ENDED   in the kernel
  CLOSED   = RECEIVED + LOST + FILTERED + what is in the ring   between kernel and agent
  RECEIVED = batching + WAITING + ACKED + DROPPED + REFUSED   in the agent
  STORED   = ACKED, or more while acknowledgements are on their way; what was stored since an agent's last report
             has to be in its next one
  WITNESS  = OPENED - unsent + opens that were missed, by the kernel's own SNMP counters of the namespace; fewer there
             are none (restored connections, say). - where they cannot be read.
MISSED are events that the kernel did not show to the programs, because one came while they ran on the same CPU. The kernel
counts them for all namespaces together, which is the row of namespace 0; the row of a namespace has the opens that its
WITNESS knows and the programs do not. It closes if there are no more of those than misses. An end that was missed
leaves a connection in OPEN that is gone, until its memory is used again.
ENDED is what a start that was killed took with it: connections that were open, in the ring, or opened before the
next start, and rows that it had not delivered. It is in gaps. A difference is shown in red.
CLOSES says expired where rows were acknowledged and are not stored, and are no more than the start had made when its table's
retention (serve --retention) begins: it closes as far as can be told, and whether they were stored cannot be told any more.
Exit code 0: every row closes or is expired, 1: one does not, 3: no agent has reported. With --json each row says in `closes`
whether it does: true, false, or null with `expired`, the number of rows.

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
        let outcome = show(&args, &mut client).await;
        match outcome {
            Ok(()) | Err(Failure::DoesNotHold | Failure::Unknown) if args.watch => {}
            outcome => return outcome,
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Prints the ledger once. It fails if that does not close.
async fn show(args: &Args, client: &mut QueryClient<Channel>) -> Result<(), Failure> {
    let mut rows = ask(args, client).await?;
    for _ in 0..LATER_LOOKS {
        if !rows.iter().any(Row::is_ahead) {
            break;
        }
        tokio::time::sleep(LATER_INTERVAL).await;
        let later = ask(args, client).await?;
        count_later(&mut rows, &later);
        if !later.iter().any(Row::is_ahead) {
            rows = later;
        }
    }
    let reach = &args.reach;
    let mut stdout = io::stdout().lock();
    if reach.json {
        for row in &rows {
            stdout.write_all(row.line().as_bytes())?;
        }
    } else {
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        let mut table = Table::new(COLUMNS, super::colours(&io::stdout()));
        table.fit(&cells);
        if args.watch && super::colours(&io::stdout()) {
            stdout.write_all(CLEAR_SCREEN.as_bytes())?;
        }
        stdout.write_all(table.head().as_bytes())?;
        for row in &cells {
            stdout.write_all(table.line(row).as_bytes())?;
        }
    }
    stdout.flush()?;
    if rows.is_empty() {
        super::tell(&format!(
            "no agent has reported yet; run holdfast-agent run --collector {} on a node",
            reach.collector
        ));
        return Err(Failure::Unknown);
    }
    if !reach.json && !args.watch && rows.iter().any(|row| row.refused > 0) {
        super::tell(
            "rows were refused for their content: holdfast sql \"SELECT node, refused_at, sequence, rows, reason FROM \
             refused_batches ORDER BY refused_at\" shows which, and why",
        );
    }
    let expired: u64 = rows.iter().map(Row::expired).sum();
    if !reach.json && !args.watch && expired > 0 {
        super::tell(&format!(
            "{expired} rows were acknowledged, and may since have been removed by the retention of their tables (expired); to \
             check longer, keep them longer: holdfast serve --retention"
        ));
    }
    if rows.iter().any(|row| row.balance() == Balance::Open) {
        Err(Failure::DoesNotHold)
    } else {
        Ok(())
    }
}

async fn ask(args: &Args, client: &mut QueryClient<Channel>) -> Result<Vec<Row>, Failure> {
    let reach = &args.reach;
    let request = LedgerRequest { all_starts: args.all };
    let chunks = client
        .ledger(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut rows = Vec::new();
    while let Some(chunk) = lines.next().await.map_err(|status| reach.failure(&status))? {
        for line in chunk.lines() {
            let mut row: Row = serde_json::from_str(line)
                .with_context(|| format!("the collector answers with a row of another version: {line}"))
                .map_err(Failure::Undone)?;
            line.clone_into(&mut row.text);
            rows.push(row);
        }
    }
    mark_former(&mut rows);
    mark_counted_misses(&mut rows);
    Ok(rows)
}

/// Tells the rows whose stored ones are all counted in a later report.
fn count_later(rows: &mut [Row], later: &[Row]) {
    let counted: HashMap<_, u64> = later
        .iter()
        .map(|row| ((row.account(), row.netns), row.acknowledged + row.unacknowledged))
        .collect();
    for row in rows.iter_mut().filter(|row| row.is_ahead()) {
        let counted = counted.get(&(row.account(), row.netns));
        row.is_counted_later = counted.is_some_and(|&counted| row.rows_stored <= counted);
    }
}

/// A row of `ledger`, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
struct Row {
    /// All of it, an object.
    #[serde(skip)]
    text: String,
    node: String,
    agent_id: String,
    agent_epoch: u64,
    stream: String,
    /// There is a later start of the agent.
    #[serde(skip)]
    is_former: bool,
    /// The kernel counted at least as many misses as all namespaces of this start together have opens that nobody saw.
    #[serde(skip)]
    is_miss_counted: bool,
    /// A later report counts all rows that were stored when this one was asked for.
    #[serde(skip)]
    is_counted_later: bool,
    netns: u32,
    observed_at: String,
    opened: u64,
    closed: u64,
    open: u64,
    untracked: u64,
    sampled_out: u64,
    filtered: u64,
    ended: u64,
    lost: u64,
    missed: u64,
    received: u64,
    unacknowledged: u64,
    acknowledged: u64,
    dropped: u64,
    refused: u64,
    rows_stored: u64,
    may_have_expired: u64,
    is_witnessed: bool,
    witnessed: u64,
    witness_difference: i64,
    kernel_difference: i64,
    ring_difference: i64,
    agent_difference: i64,
    store_difference: i64,
}

const COLUMNS: [(&str, Align); 22] = [
    ("NODE", Align::Left),
    ("STREAM", Align::Left),
    ("NETNS", Align::Right),
    ("AT (UTC)", Align::Left),
    ("OPENED", Align::Right),
    ("WITNESS", Align::Right),
    ("OPEN", Align::Right),
    ("CLOSED", Align::Right),
    ("FILTERED", Align::Right),
    ("SAMPLED OUT", Align::Right),
    ("UNTRACKED", Align::Right),
    ("MISSED", Align::Right),
    ("LOST", Align::Right),
    ("ENDED", Align::Right),
    ("RECEIVED", Align::Right),
    ("WAITING", Align::Right),
    ("DROPPED", Align::Right),
    ("REFUSED", Align::Right),
    ("ACKED", Align::Right),
    ("STORED", Align::Right),
    ("DIFFERENCE", Align::Right),
    ("CLOSES", Align::Left),
];

/// Tells the starts of an agent that have a later one.
fn mark_former(rows: &mut [Row]) {
    let mut latest: HashMap<String, u64> = HashMap::new();
    for row in &*rows {
        let epoch = latest.entry(row.agent_id.clone()).or_default();
        *epoch = row.agent_epoch.max(*epoch);
    }
    for row in rows {
        row.is_former = latest.get(&row.agent_id) > Some(&row.agent_epoch);
    }
}

/// Tells the starts whose unseen opens are no more than the events that the kernel says it did not show to the
/// programs. Each miss explains one open at most, and nothing else does.
fn mark_counted_misses(rows: &mut [Row]) {
    let mut uncounted: HashMap<(String, u64, String), i64> = HashMap::new();
    for row in &*rows {
        *uncounted.entry(row.account()).or_default() += row.unseen_opens() - row.missed.cast_signed();
    }
    for row in rows {
        row.is_miss_counted = uncounted
            .get(&row.account())
            .is_some_and(|uncounted| *uncounted <= 0);
    }
}

/// What a row of the ledger comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Balance {
    Closes,
    /// All of it but rows that are not stored, and are so old that their table may have removed them.
    Expired,
    Open,
}

impl Row {
    /// What is counted together: all namespaces of a start.
    fn account(&self) -> (String, u64, String) {
        (self.agent_id.clone(), self.agent_epoch, self.stream.clone())
    }

    /// Opens that the witness knows and the programs do not.
    fn unseen_opens(&self) -> i64 {
        self.witness_difference.max(0)
    }

    /// The same, where no counter explains them.
    fn unexplained_opens(&self) -> i64 {
        if self.is_miss_counted {
            0
        } else {
            self.unseen_opens()
        }
    }

    /// What neither a counter nor the way of a running agent explains. What is in the ring, and what is stored and
    /// waits for its acknowledgement, is on its way.
    fn difference(&self) -> u64 {
        let on_its_way = if self.is_counted_later {
            0..=i64::MAX
        } else {
            0..=self.unacknowledged.cast_signed()
        };
        let unexplained_in_store = if on_its_way.contains(&self.store_difference) || self.expired() > 0 {
            0
        } else {
            self.store_difference
        };
        // What is too much in one place does not make up for what is missing in another.
        [
            self.kernel_difference,
            self.ring_difference.min(0),
            self.agent_difference,
            unexplained_in_store,
            self.unexplained_opens(),
        ]
        .map(i64::unsigned_abs)
        .iter()
        .sum()
    }

    /// More is stored than a running agent had counted when it reported last.
    fn is_ahead(&self) -> bool {
        !self.is_former && !self.is_counted_later && self.store_difference > self.unacknowledged.cast_signed()
    }

    /// Rows that were acknowledged and are not stored, where all of them may have been removed by their table.
    fn expired(&self) -> u64 {
        let gone = self.store_difference.min(0).unsigned_abs();
        if gone <= self.may_have_expired { gone } else { 0 }
    }

    fn balance(&self) -> Balance {
        match (self.difference(), self.expired()) {
            (0, 0) => Balance::Closes,
            (0, _) => Balance::Expired,
            _ => Balance::Open,
        }
    }

    /// The row in JSON, with what it comes to.
    fn line(&self) -> String {
        let fields = self.text.trim_end().trim_end_matches('}');
        let closes = match self.balance() {
            Balance::Closes => "true",
            Balance::Expired => "null",
            Balance::Open => "false",
        };
        format!("{fields},\"expired\":{},\"closes\":{closes}}}\n", self.expired())
    }

    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let bad_above_zero = |count: u64| {
            let style = if count == 0 { FAINT } else { BAD };
            Cell::styled(count.to_string(), style)
        };
        // By configuration, so no fault.
        let faint_zero = |count: u64| match count {
            0 => Cell::styled("0", FAINT),
            count => count.to_string().into(),
        };
        [
            self.node.clone().into(),
            self.stream.clone().into(),
            self.netns.to_string().into(),
            Cell::styled(self.observed_at.get(..19).unwrap_or(&self.observed_at), FAINT),
            self.opened.to_string().into(),
            if !self.is_witnessed {
                Cell::styled("-", FAINT)
            } else if self.unexplained_opens() > 0 {
                Cell::styled(self.witnessed.to_string(), BAD)
            } else {
                self.witnessed.to_string().into()
            },
            self.open.to_string().into(),
            self.closed.to_string().into(),
            faint_zero(self.filtered),
            faint_zero(self.sampled_out),
            bad_above_zero(self.untracked),
            bad_above_zero(self.missed + self.unseen_opens().unsigned_abs()),
            bad_above_zero(self.lost),
            bad_above_zero(self.ended),
            self.received.to_string().into(),
            self.unacknowledged.to_string().into(),
            bad_above_zero(self.dropped),
            bad_above_zero(self.refused),
            self.acknowledged.to_string().into(),
            self.rows_stored.to_string().into(),
            bad_above_zero(self.difference()),
            match self.balance() {
                Balance::Closes => Cell::styled("yes", GOOD),
                Balance::Expired => Cell::styled("expired", FAINT),
                Balance::Open => Cell::styled("no", BAD),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_former_start_delivered_and_nobody_counted_is_a_difference() {
        let row = |agent_epoch, stream: &str| Row {
            agent_epoch,
            stream: stream.to_owned(),
            store_difference: 100,
            ..Row::default()
        };
        let mut rows = [row(1, "syscalls"), row(1, "peers"), row(2, "syscalls")];
        mark_former(&mut rows);
        assert!(
            rows.iter()
                .all(|row| row.difference() == 100 && row.balance() == Balance::Open)
        );
        assert_eq!(rows.map(|row| row.is_ahead()), [false, false, true]);
    }

    #[test]
    fn rows_that_their_table_may_have_removed_are_no_difference_and_no_balance() {
        let row = |store_difference, may_have_expired| Row {
            text: "{\"stream\":\"peers\"}\n".to_owned(),
            store_difference,
            may_have_expired,
            ..Row::default()
        };
        let check = |row: Row, expected: Balance, line: &str| {
            assert_eq!(row.balance(), expected, "{row:?}");
            assert_eq!(row.line(), format!("{{\"stream\":\"peers\",{line}}}\n"));
        };
        check(row(0, 100), Balance::Closes, "\"expired\":0,\"closes\":true");
        check(
            row(-100, 100),
            Balance::Expired,
            "\"expired\":100,\"closes\":null",
        );
        check(row(-101, 100), Balance::Open, "\"expired\":0,\"closes\":false");
        check(row(-1, 0), Balance::Open, "\"expired\":0,\"closes\":false");
        // Too many rows are not those that are gone, and age excuses nothing but rows.
        check(row(1, 100), Balance::Open, "\"expired\":0,\"closes\":false");
        let broken = Row {
            agent_difference: 1,
            ..row(-100, 100)
        };
        assert_eq!((broken.balance(), broken.difference()), (Balance::Open, 1));
    }

    #[test]
    fn what_is_on_its_way_is_no_difference() {
        let row = Row {
            unacknowledged: 10,
            ring_difference: 5,
            store_difference: 10,
            ..Row::default()
        };
        assert_eq!(row.balance(), Balance::Closes);
    }

    #[test]
    fn what_was_stored_since_the_last_report_has_to_be_in_a_later_one() {
        let stored = |netns| Row {
            netns,
            acknowledged: 100,
            unacknowledged: 5,
            rows_stored: 130,
            store_difference: 30,
            ..Row::default()
        };
        let counted = |netns, acknowledged| Row {
            netns,
            acknowledged,
            unacknowledged: 10,
            ..Row::default()
        };
        let mut rows = [stored(1), stored(2), stored(3)];
        count_later(&mut rows, &[counted(1, 120), counted(2, 119)]);
        assert_eq!(
            rows.map(|row| row.balance()),
            [Balance::Closes, Balance::Open, Balance::Open]
        );
    }

    #[test]
    fn what_nothing_explains_is_a_difference() {
        let check = |row: Row, expected: u64| {
            assert_eq!(row.balance(), Balance::Open, "{row:?}");
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
            3,
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
            1,
        );
        check(
            Row {
                kernel_difference: 2,
                agent_difference: -2,
                ..Row::default()
            },
            4,
        );
        check(
            Row {
                witness_difference: 2,
                ..Row::default()
            },
            2,
        );
    }

    #[test]
    fn opens_that_nobody_saw_need_a_miss_each_that_the_kernel_counted() {
        let row = |agent_epoch, netns, missed, witness_difference| Row {
            agent_epoch,
            netns,
            missed,
            witness_difference,
            is_witnessed: true,
            ..Row::default()
        };
        let check = |mut rows: Vec<Row>, expected: &[bool]| {
            mark_counted_misses(&mut rows);
            let closes: Vec<_> = rows.iter().map(|row| row.balance() == Balance::Closes).collect();
            assert_eq!(closes, expected, "{rows:?}");
        };
        check(vec![row(1, 0, 3, 0), row(1, 5, 0, 0)], &[true, true]);
        check(
            vec![row(1, 0, 3, 0), row(1, 5, 0, 1), row(1, 6, 0, 2)],
            &[true, true, true],
        );
        check(
            vec![row(1, 0, 2, 0), row(1, 5, 0, 1), row(1, 6, 0, 2)],
            &[true, false, false],
        );
        // Opens that the witness does not know make no room for others.
        check(
            vec![row(1, 0, 0, 0), row(1, 5, 0, -7), row(1, 6, 0, 1)],
            &[true, true, false],
        );
        // Nor does what another start missed.
        check(
            vec![row(1, 0, 9, 0), row(2, 0, 0, 0), row(2, 5, 0, 1)],
            &[true, true, false],
        );
    }

    #[test]
    fn a_miss_excuses_nothing_but_opens() {
        for broken in [
            Row {
                kernel_difference: 1,
                ..Row::default()
            },
            Row {
                ring_difference: -1,
                ..Row::default()
            },
            Row {
                agent_difference: 1,
                ..Row::default()
            },
            Row {
                store_difference: -1,
                ..Row::default()
            },
        ] {
            let mut rows = [Row { missed: 9, ..broken }];
            mark_counted_misses(&mut rows);
            assert_eq!(rows[0].balance(), Balance::Open, "{rows:?}");
        }
    }
}
