//! Whether every connection end that the kernel counted is in the store exactly once, or in a counter.
//!
//! The kernel's own count is the namespace's SNMP counters, which no agent touches. What the start of an agent that
//! lives at the end saw must balance in `holdfast ledger`; what was opened before it must be a row of an earlier
//! start, or in a gap. A connection that is open when its agent is killed is in that gap, and the next start finds it
//! and delivers its end: two starts saw it, but it has one first record at most, and one final one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;

use super::world::World;
use crate::span;

/// How long what waits may take to arrive once everything is mended: an agent that was turned away often pauses for
/// 15 s, and its connection may have to be found dead first, which takes 20 s.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long after its end a minute of the rollup may take to be computed: one waits for late rows first.
const ROLLUP_PATIENCE: Duration = Duration::from_secs(120);
/// Agents report once a second.
const TICK: Duration = Duration::from_millis(1_200);
/// Two reports, and the rows of what changed are stored with the first.
const STEADY_MS: u64 = 2_000;

/// What became of the connection ends of one node, in all starts of its agent.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// By the kernel's SNMP counters.
    pub(super) opens: u64,
    /// Found open by a start that had not seen them open.
    pub(super) seeded: u64,
    /// First records of connections that stayed open: a row each, beside that of the end.
    pub(super) announced: u64,
    /// Rows in the store, each once.
    pub(super) stored: u64,
    /// What killed agents took with them, and what was opened while there was none.
    pub(super) ended: u64,
    /// Lost in the ring, dropped or refused.
    pub(super) lost: u64,
    /// Open at the end, or followed by nobody.
    pub(super) other: u64,
    /// Starts of the agent.
    pub(super) starts: u64,
    /// Events that the hook did not see, of all namespaces of this machine: the kernel runs no program inside itself.
    pub(super) missed: u64,
}

/// What was found, and everything that is wrong with it, a line each.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) accounts: Vec<Account>,
    pub(super) faults: Vec<String>,
}

/// Waits until everything has arrived, and judges. Without patience for the rollup, minutes of it may be missing still.
pub(super) fn judge(world: &mut World, awaits_rollup: bool) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let drained = wait_until_drained(world)?;
    if let Err(why) = &drained {
        verdict.faults.push(why.clone());
    }
    for node in 0..world.stage().nodes {
        let account = account(world, node, &mut verdict.faults)?;
        verdict.accounts.push(account);
    }
    agreement(world, &mut verdict.faults)?;
    rollup(world, awaits_rollup, &mut verdict.faults)?;
    let (closes, text) = world.ledger()?;
    if !closes {
        verdict
            .faults
            .push(format!("`holdfast ledger` does not close:\n{text}"));
    }
    Ok(verdict)
}

/// All starts of one node's agent, as the ledger has them.
struct Report {
    /// When the live start reported last, in milliseconds since the Unix epoch; zero: never.
    reported_ms: u64,
    opened: u64,
    /// On its way, of all starts.
    waiting: u64,
    /// Earlier starts whose account is not closed.
    unfinished: u64,
}

impl Report {
    /// `None` until the live start has reported.
    fn read(world: &World, node: usize) -> anyhow::Result<Option<Self>> {
        let (netns, epoch) = (world.inode(node), world.epoch(node)?);
        let rows = world.ask(&format!(
            "SELECT toUnixTimestamp64Milli(maxIf(reported_at, agent_epoch = {epoch})) AS reported_ms, sum(opened) AS opened, \
             sum(batching + unacknowledged + abs(ring_difference) + abs(store_difference)) AS waiting, \
             countIf(agent_epoch != {epoch} AND NOT is_final) AS unfinished \
             FROM ledger WHERE stream = 'connections' AND netns = {netns} HAVING countIf(agent_epoch = {epoch} AND is_witnessed) = 1"
        ))?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(Self {
            reported_ms: number(row, "reported_ms")?,
            opened: number(row, "opened")?,
            waiting: number(row, "waiting")?,
            unfinished: number(row, "unfinished")?,
        }))
    }
}

/// Waits until every agent's reports have said the same for so long that they are stored, and that nothing is on its way.
/// The inner error is what did not come.
fn wait_until_drained(world: &mut World) -> anyhow::Result<Result<(), String>> {
    let began = Instant::now();
    let mut before: BTreeMap<usize, Report> = BTreeMap::new();
    loop {
        let mut late = Vec::new();
        for node in 0..world.stage().nodes {
            let now = match Report::read(world, node) {
                Ok(Some(now)) => now,
                Ok(None) => {
                    late.push(format!(
                        "{} has not reported since its last start",
                        world.name(node)
                    ));
                    continue;
                }
                // A collector that was started last takes its time until it can be asked.
                Err(error) => {
                    late.push(format!("{error:#}"));
                    continue;
                }
            };
            let is_same =
                |former: &Report| former.opened == now.opened && former.waiting == 0 && now.waiting == 0;
            let since = before.get(&node).filter(|former| is_same(former));
            let is_steady = since.is_some_and(|former| now.reported_ms >= former.reported_ms + STEADY_MS);
            if now.unfinished > 0 || !is_steady {
                late.push(format!(
                    "{}: {} of {} opened were on their way, and {} earlier starts were not closed, at {} ms",
                    world.name(node),
                    now.waiting,
                    now.opened,
                    now.unfinished,
                    now.reported_ms
                ));
            }
            if since.is_none() {
                before.insert(node, now);
            }
        }
        if late.is_empty() {
            return Ok(Ok(()));
        }
        let ended: Vec<String> = world.ended().into_iter().map(|(_, how)| how).collect();
        if !ended.is_empty() {
            return Ok(Err(format!(
                "ended with nobody touching it: {}",
                ended.join("; ")
            )));
        }
        if began.elapsed() > PATIENCE {
            let text = late.join("; ");
            return Ok(Err(format!("not drained after {} s: {text}", PATIENCE.as_secs())));
        }
        thread::sleep(TICK);
    }
}

fn account(world: &World, node: usize, faults: &mut Vec<String>) -> anyhow::Result<Account> {
    let netns = world.inode(node);
    let opens = world.opens(node)?;
    let rows = world.ask(&format!(
        "SELECT count() AS records, uniqExact(agent_id, boot_id, netns, cookie, opened_at, is_first, is_final) AS parts \
         FROM connection_records WHERE netns = {netns}"
    ))?;
    let row = rows.first().context("no count of rows")?;
    let (records, parts) = (number(row, "records")?, number(row, "parts")?);
    let name = world.name(node);
    if records != parts {
        faults.push(format!("{name}: {} rows are in the store twice", records - parts));
    }
    // The load never uses a socket again, so a cookie is a connection, whichever starts saw it.
    let rows = world.ask(&format!(
        "SELECT countIf(firsts > 1) AS first_twice, countIf(finals > 1) AS final_twice, countIf(firsts > finals) AS endless, countIf(firsts < finals) AS headless \
         FROM (SELECT countIf(is_first) AS firsts, countIf(is_final) AS finals \
         FROM connection_records WHERE netns = {netns} GROUP BY cookie)"
    ))?;
    let sockets = rows.first().context("no count of sockets")?;
    for (column, what) in [
        ("first_twice", "connections have two first records"),
        ("final_twice", "connections have two ends"),
    ] {
        let connections = number(sockets, column)?;
        if connections > 0 {
            faults.push(format!("{name}: {connections} {what}"));
        }
    }

    let epoch = world.epoch(node)?;
    let rows = world.ask(&format!(
        "SELECT count() AS starts, sum(ended) AS ended, sum(lost + dropped + refused) AS lost, \
         sum(open + untracked + superseded) AS other, sum(unsent) AS unsent, sum(seeded) AS seeded, \
         sum(announced) AS announced, sum(dropped + refused) AS discarded, \
         sum(greatest(witness_difference, 0)) AS unseen, \
         countIf(agent_epoch != {epoch} AND NOT is_final) AS unfinished, \
         countIf(kernel_difference != 0 OR ring_difference != 0 OR agent_difference != 0 OR store_difference != 0) AS open_ledgers \
         FROM ledger WHERE stream = 'connections' AND netns = {netns}"
    ))?;
    let row = rows.first().context("no ledger")?;
    let missed = world.ask(&format!(
        "SELECT sum(misses) AS missed, countIf(unseen > misses) AS unexplained FROM \
         (SELECT greatest(sumIf(missed, netns = 0), sumIf(missed, netns != 0)) AS misses, \
         sum(greatest(witness_difference, 0)) AS unseen FROM ledger \
         WHERE stream = 'connections' AND agent_id LIKE '%/{name}' GROUP BY agent_id, agent_epoch)"
    ))?;
    let missed = missed.first().context("no sum of missed")?;
    if number(missed, "unexplained")? > 0 {
        faults.push(format!(
            "{name}: the namespace opened more than its agent counted and the kernel says that it missed"
        ));
    }
    let account = Account {
        opens,
        seeded: number(row, "seeded")?,
        announced: number(row, "announced")?,
        stored: records,
        ended: number(row, "ended")?,
        lost: number(row, "lost")?,
        other: number(row, "other")?,
        starts: number(row, "starts")?,
        missed: number(missed, "missed")?,
    };
    // What the kernel's counters know, and what they do not.
    let kernel = account.opens + number(row, "unsent")? + account.seeded + account.announced;
    let ours = account.stored + account.ended + account.lost + account.other + number(row, "unseen")?;
    if kernel != ours {
        faults.push(format!(
            "{name}: {kernel} were opened, found or announced, {ours} are accounted for: {account:?}"
        ));
    }
    // A first record without an end is of a connection that is open, or whose end is in a counter; an end without
    // a first record was found open, or its first record was discarded, or it ended with the agent: batches of two
    // days are stored apart, the later one perhaps first.
    let discarded = number(row, "discarded")?;
    for (column, most, what) in [
        (
            "endless",
            account.ended + account.lost + account.other,
            "announced and have no end",
        ),
        (
            "headless",
            account.seeded + account.ended + discarded,
            "ended and have no first record",
        ),
    ] {
        let connections = number(sockets, column)?;
        if connections > most {
            faults.push(format!(
                "{name}: {connections} connections {what}, {most} may be: {account:?}"
            ));
        }
    }
    for (column, what) in [
        ("unfinished", "starts of the agent have no final counters"),
        (
            "open_ledgers",
            "starts of the agent have a ledger that does not close",
        ),
    ] {
        let starts = number(row, column)?;
        if starts > 0 {
            faults.push(format!("{name}: {starts} {what}"));
        }
    }
    Ok(account)
}

/// Whether the tables and views say the same.
fn agreement(world: &World, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let questions = [
        (
            "rows of `connections` and final records",
            "SELECT (SELECT count() FROM connections) AS one, (SELECT countIf(is_final) FROM connection_records) AS other",
        ),
        (
            "rows of `attempts` and first records",
            "SELECT (SELECT count() FROM attempts) AS one, (SELECT countIf(is_first) FROM connection_records) AS other",
        ),
        (
            "gaps, and gaps by what they are about",
            "SELECT count() AS one, uniqExact(agent_id, reported_epoch, sequence, agent_epoch, stream, reason, \
             netns, first_sequence, first_at) AS other FROM gap_records",
        ),
        (
            "rows in gaps that ended with a start, and what the ledger counts as that",
            "SELECT (SELECT sum(rows) FROM gap_records WHERE reason = 'epoch_end') AS one, \
             (SELECT sum(ended) FROM ledger) AS other",
        ),
        (
            "rows of batches that are in a gap, and none",
            "SELECT count() AS one, 0 AS other FROM connection_records AS record INNER JOIN \
             (SELECT agent_id, agent_epoch, first_sequence, last_sequence FROM gap_records \
             WHERE stream = 'connections' AND first_sequence > 0) AS gap \
             ON record.agent_id = gap.agent_id AND record.agent_epoch = gap.agent_epoch \
             WHERE record.sequence BETWEEN gap.first_sequence AND gap.last_sequence",
        ),
        (
            "rows whose times are out of order, and none",
            "SELECT countIf(opened_at > closed_at OR decided_at > closed_at) AS one, 0 AS other FROM connections",
        ),
    ];
    for (what, sql) in questions {
        let rows = world.ask(sql)?;
        let row = rows.first().with_context(|| format!("no answer: {sql}"))?;
        let (one, other) = (number(row, "one")?, number(row, "other")?);
        if one != other {
            faults.push(format!("{what} differ: {one} and {other}"));
        }
    }
    Ok(())
}

/// Whether the rollup adds up to the raw rows in every minute of every node.
fn rollup(world: &World, awaits_rollup: bool, faults: &mut Vec<String>) -> anyhow::Result<()> {
    let compare = |raw: &str, raw_minute: &str, rollup: &str, sums: &[(&str, &str)]| {
        let columns = |side: usize| {
            let columns = sums.iter().enumerate().map(|(number, sum)| {
                let sum = if side == 0 { sum.0 } else { sum.1 };
                format!("toInt64({sum}) AS sum_{number}")
            });
            columns.collect::<Vec<_>>().join(", ")
        };
        let any = |sign: &str| {
            let parts = (0..sums.len()).map(|number| format!("rollup.sum_{number} {sign} raw.sum_{number}"));
            parts.collect::<Vec<_>>().join(" OR ")
        };
        format!(
            "SELECT countIf({}) AS missing, countIf({}) AS too_many FROM \
             (SELECT node, toStartOfMinute({raw_minute}) AS minute, role, {} FROM {raw} GROUP BY ALL) AS raw FULL JOIN \
             (SELECT node, minute, role, {} FROM {rollup} GROUP BY ALL) AS rollup USING (node, minute, role)",
            any("<"),
            any(">"),
            columns(0),
            columns(1)
        )
    };
    let attempts = compare(
        "attempts",
        "decided_at",
        "attempts_1m",
        &[
            ("count()", "sum(attempts)"),
            ("countIf(outcome = 'established')", "sum(established)"),
            ("countIf(outcome = 'refused')", "sum(refused)"),
            (
                "countIf(outcome = 'established')",
                "sum(arraySum(connect_counts))",
            ),
        ],
    );
    let connections = compare(
        "connections",
        "closed_at",
        "connections_1m",
        &[
            ("count()", "sum(connections)"),
            ("countIf(close_reason = 'finished')", "sum(closed_finished)"),
            ("sum(bytes_sent)", "sum(bytes_sent)"),
            ("sum(bytes_received)", "sum(bytes_received)"),
        ],
    );
    for (table, sql) in [("attempts_1m", attempts), ("connections_1m", connections)] {
        let began = Instant::now();
        loop {
            let rows = world.ask(&sql)?;
            let row = rows.first().with_context(|| format!("no answer: {sql}"))?;
            let (missing, too_many) = (number(row, "missing")?, number(row, "too_many")?);
            if too_many > 0 {
                faults.push(format!("{table}: {too_many} minutes have more than the raw rows"));
                break;
            }
            if missing == 0 || !awaits_rollup {
                break;
            }
            if began.elapsed() > ROLLUP_PATIENCE {
                let text = format!(
                    "{missing} minutes have less than the raw rows, after {}",
                    span::show(ROLLUP_PATIENCE)
                );
                faults.push(format!("{table}: {text}"));
                break;
            }
            thread::sleep(TICK);
        }
    }
    Ok(())
}

/// A column as a number. ClickHouse writes 64-bit ones as JSON strings or numbers, by its settings.
fn number(row: &Value, column: &str) -> anyhow::Result<u64> {
    let value = &row[column];
    let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    number.with_context(|| format!("{column} is no number in {row}"))
}

impl Verdict {
    pub(super) fn holds(&self) -> bool {
        self.faults.is_empty()
    }

    /// Rows in the store, by all that is accounted for: connection ends that the kernel counted or that were found
    /// open, and first records. 0 if there was nothing.
    pub(super) fn stored_share(&self) -> f64 {
        let counted = self.total(|account| account.opens + account.seeded + account.announced);
        self.total(|account| account.stored) as f64 / counted.max(1) as f64
    }

    /// All nodes together.
    pub(super) fn total(&self, of: fn(&Account) -> u64) -> u64 {
        self.accounts.iter().map(of).sum()
    }
}

/// What panicked, by the logs.
pub(super) fn panics(logs: &Path) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(logs).with_context(|| format!("cannot list {}", logs.display()))? {
        let path = entry?.path();
        let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
        let panics = text.lines().filter(|line| line.contains("panicked at"));
        found.extend(panics.map(|line| format!("{}: {line}", path.display())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_that_is_stored_is_of_all_that_could_be() {
        let accounts = [(900, 50, 40, 890), (10, 0, 0, 10)];
        let accounts = accounts.map(|(opens, seeded, announced, stored)| Account {
            opens,
            seeded,
            announced,
            stored,
            ..Account::default()
        });
        let verdict = Verdict {
            accounts: accounts.into(),
            ..Verdict::default()
        };
        assert!((verdict.stored_share() - 0.9).abs() < 1e-9);
        assert!(Verdict::default().stored_share().abs() < 1e-9);
    }
}
