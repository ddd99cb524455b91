//! `holdfast ledger`: whether every connection end that the kernel counted is somewhere, and every other row that an
//! agent made.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use holdfast_proto::v1::query_client::QueryClient;
use holdfast_proto::v1::{LedgerRequest, NodesRequest};
use serde::Deserialize;
use tonic::transport::Channel;

use super::Failure;
use super::client::{self, Reach};
use super::table::{Align, BAD, CLEAR_SCREEN, Cell, FAINT, GOOD, Table};

/// How often `--watch` asks: as often as the agents report.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Rows that are stored and not counted yet: how often it is looked whether a later report counts them. Agents report
/// once a second; an agent whose reports do not come is silent after 15 s, so that has an end.
const LATER_INTERVAL: Duration = Duration::from_millis(500);

/// How long that may take before it is said what is waited for.
const UNSAID: Duration = Duration::from_secs(3);

/// How long in all. Then it cannot be told.
const PATIENCE: Duration = Duration::from_secs(60);

/// Show whether every connection end that the kernel counted, and every other row, is in the store or in a counter.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One row for the connections of each network namespace of each agent's latest start, and one for each of its other streams,
all namespaces together. System calls are counted in calls: STORED is the calls in the rows. All others are counted in
rows, from when the agent made them (OPENED, CLOSED, RECEIVED), or would have but for a filter (FILTERED). It closes when
  OPENED   = CLOSED + OPEN + UNTRACKED + SAMPLED OUT + superseded + ENDED   in the kernel
  CLOSED   = RECEIVED + LOST + FILTERED + what is in the ring   between kernel and agent
  RECEIVED = batching + WAITING + ACKED + DROPPED + REFUSED   in the agent
  STORED   = ACKED, or more while acknowledgements are on their way; what was stored since an agent's last report
             has to be in its next one
  WITNESS  = OPENED - unsent + opens that were missed, by the kernel's own SNMP counters of the namespace; fewer there
             are none (restored connections, say). - where they cannot be read.
MISSED are events that the kernel did not show to the programs, because one came while they ran on the same CPU. The kernel
counts them for all namespaces together, which is the row of namespace 0; the row of a namespace has the opens that its
WITNESS knows and the programs do not, or connections whose end alone was seen. It closes if there are no more opens that the
WITNESS alone knows than the kernel counted misses, or than there were such ends. An end that was missed
leaves a connection in OPEN that is gone, until its memory is used again.
ENDED is what a start that was killed took with it: connections that were open, in the ring, or opened before the
next start, and rows that it had not delivered. It is in gaps. A difference is shown in red.
CLOSES says expired where rows were acknowledged and are not stored, and are no more than the start had made when its table's
retention (serve --retention) begins: it closes as far as can be told, and whether they were stored cannot be told any more.
CLOSES says silent where nothing was heard of a start for 15 seconds, and it had no last word: what it counted since then nobody
knows. What had left the kernel's tables half a minute ago and is neither RECEIVED nor in a counter does not close.
What an agent counts whose id another one has already is nowhere: it is turned away, and named below the table.
Exit code 0: every row closes or is expired, 1: one does not, 3: it cannot be told: a start is silent, an agent was turned away,
or no agent has reported. A node that is gone for good is silent until its reports expire: leave it out with --without.
With --json each row says in `closes` whether it does: true, false, or null, and in `balance` why. SQL says the same:
  holdfast sql 'SELECT node, stream, netns, balance, difference FROM ledger WHERE closes IS DISTINCT FROM true'

Examples:
  holdfast ledger
  holdfast ledger --watch
  holdfast ledger --without old-1 --without old-2
  holdfast ledger --all --json | jq 'select(.lost > 0)'")]
pub(super) struct Args {
    /// Show it again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// Every start of every agent, not only the latest
    #[arg(long)]
    all: bool,

    /// Of this node alone; may be given more than once
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,

    /// Of all nodes but this one, which is gone for good, say; may be given more than once
    #[arg(long, value_name = "NAME", conflicts_with = "node")]
    without: Vec<String>,

    #[command(flatten)]
    reach: Reach,
}

impl Args {
    fn is_about(&self, node: &str) -> bool {
        let has = |names: &[String]| names.iter().any(|name| name == node);
        (self.node.is_empty() || has(&self.node)) && !has(&self.without)
    }

    /// Names that no row has are most likely misspelt.
    fn check_names(&self, rows: &[Row]) -> Result<(), Failure> {
        let known: BTreeSet<&str> = rows.iter().map(|row| row.node.as_str()).collect();
        let mut given = self.node.iter().chain(&self.without);
        match given.find(|name| !known.contains(name.as_str())) {
            Some(name) if !known.is_empty() => Err(Failure::Usage(anyhow!(
                "no node {name} has reported; those that have: {}",
                Vec::from_iter(known).join(", ")
            ))),
            _ => Ok(()),
        }
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut client = args.reach.connect().await?;
    let mut has_answered = false;
    loop {
        let outcome = show(&args, &mut client).await;
        match outcome {
            Ok(()) | Err(Failure::DoesNotHold | Failure::Unknown) if args.watch => has_answered = true,
            // It may be started again, and whoever watches wants to see that.
            Err(Failure::Undone(error)) if has_answered => super::tell(&format!("{error:#}; asking again")),
            outcome => return outcome,
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Prints the ledger once. It fails if that does not close.
async fn show(args: &Args, client: &mut QueryClient<Channel>) -> Result<(), Failure> {
    let mut rows = ask(args, client).await?;
    args.check_names(&rows)?;
    let has_anybody_reported = !rows.is_empty();
    rows.retain(|row| args.is_about(&row.node));
    let began = Instant::now();
    let mut is_said = false;
    // Whoever watches sees the next report by itself.
    while !args.watch && began.elapsed() < PATIENCE && rows.iter().any(|row| row.balance == Balance::Waits) {
        tokio::time::sleep(LATER_INTERVAL).await;
        let mut later = ask(args, client).await?;
        later.retain(|row| args.is_about(&row.node));
        count_later(&mut rows, &later);
        if !later.iter().any(|row| row.balance == Balance::Waits) {
            rows = later;
        } else if !is_said && began.elapsed() > UNSAID {
            is_said = true;
            super::tell(
                "rows are stored that no report has counted yet: waiting for the agents' next reports",
            );
        }
    }
    let reach = &args.reach;
    let mut stdout = io::stdout().lock();
    if reach.json {
        for row in &rows {
            stdout.write_all(row.text.as_bytes())?;
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
    if rows.is_empty() && has_anybody_reported {
        super::tell("all nodes that have reported are left out");
        return Err(Failure::Unknown);
    }
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
    let expired: u64 = rows.iter().map(|row| row.expired).sum();
    if !reach.json && !args.watch && expired > 0 {
        super::tell(&format!(
            "{expired} rows were acknowledged, and may since have been removed by the retention of their tables (expired); to \
             check longer, keep them longer: holdfast serve --retention"
        ));
    }
    if !reach.json && !args.watch {
        for words in about_the_silent(args, &rows) {
            super::tell(&words);
        }
    }
    if args.watch {
        return outcome(&rows);
    }
    let rivals = rivals(args, client).await?;
    for rival in &rivals {
        super::tell(&rival.in_words());
    }
    match outcome(&rows) {
        Ok(()) if !rivals.is_empty() => Err(Failure::Unknown),
        outcome => outcome,
    }
}

/// An agent that delivers nothing, since another one has its id.
#[derive(Debug, Deserialize)]
struct Rival {
    node: String,
    /// Where the other one connected from.
    remote: String,
    /// Where this one did; empty: there is none.
    rival: String,
}

impl Rival {
    fn in_words(&self) -> String {
        let Self { node, remote, rival } = self;
        format!(
            "two agents say that they are {node}: the one at {remote} delivers, the one at {rival} is turned away, and what it \
             counts is not here: give one of them another --name"
        )
    }
}

/// Agents that are turned away now.
async fn rivals(args: &Args, client: &mut QueryClient<Channel>) -> Result<Vec<Rival>, Failure> {
    let reach = &args.reach;
    let chunks = client
        .nodes(NodesRequest {})
        .await
        .map_err(|status| reach.failure(&status))?;
    let nodes = client::rows(reach, chunks.into_inner()).await?;
    let nodes = nodes.into_iter().map(|(node, _): (Rival, _)| node);
    let rivals = nodes.filter(|node| !node.rival.is_empty() && args.is_about(&node.node));
    Ok(rivals.collect())
}

/// What all rows come to. A difference is certain, whatever cannot be told of others.
fn outcome(rows: &[Row]) -> Result<(), Failure> {
    let any = |balance: Balance| rows.iter().any(|row| row.balance == balance);
    if any(Balance::Open) {
        Err(Failure::DoesNotHold)
    } else if any(Balance::Silent) || any(Balance::Waits) {
        Err(Failure::Unknown)
    } else {
        Ok(())
    }
}

/// The nodes with a start that is silent, and since when, to the second.
fn silent(rows: &[Row]) -> BTreeSet<(&str, &str)> {
    let silent = rows.iter().filter(|row| row.balance == Balance::Silent);
    silent
        .map(|row| {
            (
                row.node.as_str(),
                row.reported_at.get(..19).unwrap_or(&row.reported_at),
            )
        })
        .collect()
}

/// The nodes that may be gone for good: of which nothing else is told than that they are silent.
fn may_be_gone(rows: &[Row]) -> BTreeSet<&str> {
    let names = |is_silent: bool| -> BTreeSet<&str> {
        let of_kind = rows
            .iter()
            .filter(|row| (row.balance == Balance::Silent) == is_silent);
        of_kind.map(|row| row.node.as_str()).collect()
    };
    &names(true) - &names(false)
}

/// What is to be said of each silent node, and how the question is asked without those that are gone for good. Which these are is
/// not known here.
fn about_the_silent(args: &Args, rows: &[Row]) -> Vec<String> {
    let gone = may_be_gone(rows);
    // Where all are silent nothing would be left, and the fault is likely another one.
    let is_anyone_heard = rows.iter().any(|row| row.balance != Balance::Silent);
    let mut words = Vec::new();
    for (node, since) in silent(rows) {
        let mut line = format!(
            "{node} is silent since {since} UTC: what it counted since then cannot be told before it reports again"
        );
        if is_anyone_heard && gone.contains(node) {
            let name = quoted(node);
            line.push_str(&match args.node.is_empty() {
                true => format!("; if it is gone for good: --without {name}"),
                false => format!("; if it is gone for good, ask without --node {name}"),
            });
        }
        words.push(line);
    }
    if is_anyone_heard && !gone.is_empty() && args.node.is_empty() {
        let mut command = format!("holdfast ledger --collector {}", quoted(&args.reach.collector));
        if args.all {
            command.push_str(" --all");
        }
        for node in &args.without {
            command.push_str(&format!(" --without {}", quoted(node)));
        }
        words.push(format!(
            "leave out those alone that are gone for good, each with its --without: {command}"
        ));
    }
    words
}

/// A name as a shell takes it for one.
fn quoted(name: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_plain) {
        return name.to_owned();
    }
    format!("'{}'", name.replace('\'', r"'\''"))
}

async fn ask(args: &Args, client: &mut QueryClient<Channel>) -> Result<Vec<Row>, Failure> {
    let reach = &args.reach;
    let request = LedgerRequest { all_starts: args.all };
    let chunks = client
        .ledger(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let rows = client::rows(reach, chunks.into_inner()).await?;
    let with_text = |(row, line): (Row, String)| Row {
        text: format!("{line}\n"),
        ..row
    };
    Ok(rows.into_iter().map(with_text).collect())
}

/// Rows whose stored ones are all counted in a later report close.
fn count_later(rows: &mut [Row], later: &[Row]) {
    let account = |row: &Row| {
        (
            row.agent_id.clone(),
            row.agent_epoch,
            row.stream.clone(),
            row.netns,
        )
    };
    let later: HashMap<_, &Row> = later.iter().map(|row| (account(row), row)).collect();
    for row in rows.iter_mut().filter(|row| row.balance == Balance::Waits) {
        let Some(later) = later.get(&account(row)) else {
            continue;
        };
        if row.rows_stored <= later.acknowledged + later.unacknowledged {
            row.text = row.text.replace(
                r#""balance":"waits","closes":null"#,
                r#""balance":"closes","closes":true"#,
            );
            row.balance = Balance::Closes;
        } else if later.balance == Balance::Silent {
            row.text = row.text.replace(r#""balance":"waits""#, r#""balance":"silent""#);
            row.balance = Balance::Silent;
        }
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
    netns: u32,
    observed_at: String,
    reported_at: String,
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
    is_witnessed: bool,
    witnessed: u64,
    witness_difference: i64,
    expired: u64,
    difference: u64,
    balance: Balance,
}

/// What a row of the ledger comes to, as the view of that name says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Balance {
    #[default]
    Closes,
    Open,
    /// All of it but rows that are not stored, and are so old that their table may have removed them.
    Expired,
    /// Nothing was heard of the start for a while, and it had no last word.
    Silent,
    /// More is stored than a running agent had counted when it reported last.
    Waits,
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

impl Row {
    /// Opens that the witness knows and the programs do not.
    fn unseen_opens(&self) -> u64 {
        self.witness_difference.max(0).unsigned_abs()
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
            } else if self.balance == Balance::Open && self.unseen_opens() > 0 {
                Cell::styled(self.witnessed.to_string(), BAD)
            } else {
                self.witnessed.to_string().into()
            },
            self.open.to_string().into(),
            self.closed.to_string().into(),
            faint_zero(self.filtered),
            faint_zero(self.sampled_out),
            bad_above_zero(self.untracked),
            bad_above_zero(self.missed.max(self.unseen_opens())),
            bad_above_zero(self.lost),
            bad_above_zero(self.ended),
            self.received.to_string().into(),
            self.unacknowledged.to_string().into(),
            bad_above_zero(self.dropped),
            bad_above_zero(self.refused),
            self.acknowledged.to_string().into(),
            self.rows_stored.to_string().into(),
            bad_above_zero(self.difference),
            match self.balance {
                Balance::Closes => Cell::styled("yes", GOOD),
                Balance::Expired => Cell::styled("expired", FAINT),
                Balance::Open => Cell::styled("no", BAD),
                Balance::Silent => Cell::styled("silent", BAD),
                Balance::Waits => Cell::styled("waits", FAINT),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str) -> Row {
        let defaults = serde_json::json!({
            "node": "n", "agent_id": "a", "agent_epoch": 7, "stream": "peers", "netns": 0,
            "observed_at": "2026-03-01 12:00:00.5", "reported_at": "2026-03-01 12:00:01.5",
            "opened": 0, "closed": 0, "open": 0, "untracked": 0, "sampled_out": 0, "filtered": 0, "ended": 0, "lost": 0,
            "missed": 0, "received": 0, "unacknowledged": 0, "acknowledged": 0, "dropped": 0, "refused": 0,
            "rows_stored": 0, "is_witnessed": false, "witnessed": 0, "witness_difference": 0, "expired": 0,
            "difference": 0, "balance": "closes"
        });
        let mut all = defaults.as_object().unwrap().clone();
        let given: serde_json::Value = serde_json::from_str(line).unwrap();
        all.extend(given.as_object().unwrap().clone());
        let mut row: Row = serde_json::from_value(all.into()).unwrap();
        row.text = format!("{line}\n");
        row
    }

    #[test]
    fn a_difference_is_certain_and_a_silent_start_is_not() {
        let check = |balances: &[&str], expected: &str| {
            let of = |balance: &&str| row(&format!(r#"{{"balance":"{balance}"}}"#));
            let rows: Vec<Row> = balances.iter().map(of).collect();
            let outcome = match outcome(&rows) {
                Ok(()) => "holds",
                Err(Failure::DoesNotHold) => "does not hold",
                Err(Failure::Unknown) => "unknown",
                Err(other) => panic!("{other:?}"),
            };
            assert_eq!(outcome, expected, "{balances:?}");
        };
        check(&["closes", "expired"], "holds");
        check(&["closes", "silent"], "unknown");
        check(&["waits"], "unknown");
        check(&["silent", "open", "closes"], "does not hold");
    }

    #[test]
    fn a_silent_node_is_named_once_with_its_time() {
        let rows = [
            row(r#"{"balance":"silent","stream":"gaps"}"#),
            row(r#"{"balance":"silent"}"#),
            row(r#"{"node":"other"}"#),
        ];
        let named: Vec<_> = silent(&rows).into_iter().collect();
        assert_eq!(named, [("n", "2026-03-01 12:00:01")]);
    }

    #[test]
    fn each_silent_node_has_its_own_way_to_be_left_out_and_none_is_left_out_unasked() {
        let check = |args: &[&[&str]; 2], rows: &[(&str, &str)], expected: &[&str]| {
            let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let args = Args {
                watch: false,
                all: !args[1].is_empty(),
                node: names(args[0]),
                without: names(args[1]),
                reach: Reach {
                    collector: "http://[::1]:7443".to_owned(),
                    json: false,
                },
            };
            let rows: Vec<Row> = rows
                .iter()
                .map(
                    |(node, balance)| row(&serde_json::json!({"node": node, "balance": balance}).to_string()),
                )
                .collect();
            let fixed = " is silent since 2026-03-01 12:00:01 UTC: what it counted since then cannot be told before it \
                         reports again";
            let words: Vec<String> = about_the_silent(&args, &rows)
                .into_iter()
                .map(|words| words.replace(fixed, ""))
                .collect();
            assert_eq!(words, expected);
        };
        let nobody: &[&[&str]; 2] = &[&[], &[]];
        check(nobody, &[("a", "closes")], &[]);
        check(nobody, &[("a", "silent"), ("b", "silent")], &["a", "b"]);
        check(nobody, &[("a", "silent"), ("a", "open"), ("b", "closes")], &["a"]);
        let rows = [("a", "silent"), ("it's b", "silent"), ("c", "closes")];
        let lines = [
            "a; if it is gone for good: --without a",
            r"it's b; if it is gone for good: --without 'it'\''s b'",
        ];
        let last = "leave out those alone that are gone for good, each with its --without: \
                    holdfast ledger --collector 'http://[::1]:7443'";
        check(nobody, &rows, &[lines[0], lines[1], last]);
        let again = format!("{last} --all --without old");
        check(&[&[], &["old"]], &rows, &[lines[0], lines[1], &again]);
        check(
            &[&["a", "c"], &[]],
            &[rows[0], rows[2]],
            &["a; if it is gone for good, ask without --node a"],
        );
    }

    #[test]
    fn what_was_stored_since_the_last_report_has_to_be_in_a_later_one() {
        let stored = |netns: u32| {
            row(&format!(
                r#"{{"netns":{netns},"rows_stored":130,"balance":"waits","closes":null}}"#
            ))
        };
        let counted = |netns: u32, acknowledged: u64, balance: &str| {
            row(&format!(
                r#"{{"netns":{netns},"acknowledged":{acknowledged},"unacknowledged":10,"balance":"{balance}"}}"#
            ))
        };
        let mut rows = [stored(1), stored(2), stored(3), stored(4)];
        let later = [
            counted(1, 120, "waits"),
            counted(2, 119, "waits"),
            counted(3, 119, "silent"),
        ];
        count_later(&mut rows, &later);
        use Balance::{Closes, Silent, Waits};
        assert_eq!(
            rows.each_ref().map(|row| row.balance),
            [Closes, Waits, Silent, Waits]
        );
        let expected = "{\"netns\":1,\"rows_stored\":130,\"balance\":\"closes\",\"closes\":true}\n";
        assert_eq!(rows[0].text, expected);
    }
}
