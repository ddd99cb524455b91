//! `holdfast runs` and `holdfast run`.

mod compare;
mod page;
mod plot;

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::builder::NonEmptyStringValueParser;
use holdfast_proto::v1::{RunsRequest, StopRunRequest};
use serde::Deserialize;
use tonic::Code;

use super::Failure;
use super::client::{Lines, Reach};
use super::load::at_least_one;
use super::table::{Align, BAD, Cell, FAINT, GOOD, Table};
use crate::runs::result::{Ends, Kernel, Pair, PartOf, Summary, Times, human, share};
use crate::runs::seconds::{PairSeconds, Seconds};

/// List runs, the latest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast runs
  holdfast runs --json | jq 'select(.verdict != \"holds\")'")]
pub(super) struct Args {
    #[command(flatten)]
    reach: Reach,

    /// Most runs
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), default_value_t = 20)]
    limit: u64,
}

/// Show one run, compare it with another, or stop it.
#[derive(Debug, clap::Args)]
pub(super) struct One {
    #[command(subcommand)]
    command: OneCommand,
}

#[derive(Debug, clap::Subcommand)]
enum OneCommand {
    Show(Show),
    Compare(compare::Args),
    Stop(Stop),
}

/// Show what came of a run, as text, as JSON, or as one page of HTML that needs nothing else.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast run show 19ac
  holdfast run show 19ac --html run.html")]
struct Show {
    /// The run, or how its id begins
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    run_id: String,

    /// Write a page with pictures there instead; - for stdout
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    html: Option<PathBuf>,

    #[command(flatten)]
    reach: Reach,
}

/// Stop a run that is under way.
#[derive(Debug, clap::Args)]
struct Stop {
    /// The run, or how its id begins
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    run_id: String,

    #[command(flatten)]
    reach: Reach,
}

/// A row of `runs`.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    pub(super) run_id: String,
    pub(super) state: String,
    pub(super) verdict: String,
    #[serde(default)]
    began_at: String,
    #[serde(default)]
    ended_at: String,
    pub(super) nodes: Vec<String>,
    pub(super) targets: Vec<String>,
    pub(super) reasons: Vec<String>,
    /// JSON.
    result: String,
    /// Only where it was asked for.
    #[serde(default)]
    seconds: Seconds,
    /// Likewise, and only of a mesh.
    #[serde(default)]
    pair_seconds: PairSeconds,
    /// False where its collector says that it could not store the result.
    #[serde(default = "is_stored")]
    pub(super) is_stored: bool,
}

/// What comes from the store is.
fn is_stored() -> bool {
    true
}

/// Times of losses that are told.
const TIMES_OF_LOSSES: usize = 10;

const COLUMNS: [(&str, Align); 7] = [
    ("RUN", Align::Left),
    ("BEGAN (UTC)", Align::Left),
    ("STATE", Align::Left),
    ("VERDICT", Align::Left),
    ("FROM", Align::Left),
    ("TARGETS", Align::Left),
    ("WHY", Align::Left),
];

impl Row {
    pub(super) fn parse(line: &str) -> Result<Self, Failure> {
        serde_json::from_str(line)
            .with_context(|| format!("the collector answers with a run of another version: {line}"))
            .map_err(Failure::Undone)
    }

    /// What is known of it.
    pub(super) fn summary(&self) -> Result<Summary, Failure> {
        serde_json::from_str(&self.result)
            .with_context(|| format!("the result of the run {} is of another version", self.run_id))
            .map_err(Failure::Undone)
    }

    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let verdict = match self.verdict.as_str() {
            "holds" => Cell::styled("holds", GOOD),
            "violated" => Cell::styled("violated", BAD),
            other => other.into(),
        };
        [
            self.run_id.clone().into(),
            Cell::styled(self.began_at.get(..19).unwrap_or(&self.began_at), FAINT),
            self.state.clone().into(),
            verdict,
            self.nodes.join(",").into(),
            self.targets.join(",").into(),
            self.reasons.join("; ").into(),
        ]
    }
}

async fn rows(reach: &Reach, run_id: &str, limit: u64, seconds: bool) -> Result<Vec<String>, Failure> {
    let mut client = reach.connect().await?;
    let request = RunsRequest {
        run_id: run_id.to_owned(),
        limit,
        seconds,
    };
    let chunks = client
        .runs(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut rows = Vec::new();
    while let Some(text) = lines.next().await.map_err(|status| reach.failure(&status))? {
        rows.extend(text.lines().map(str::to_owned));
    }
    Ok(rows)
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let lines = rows(&args.reach, "", args.limit, false).await?;
    let mut stdout = io::stdout().lock();
    if args.reach.json {
        for line in &lines {
            writeln!(stdout, "{line}")?;
        }
        return Ok(());
    }
    let cells: Result<Vec<_>, _> = lines
        .iter()
        .map(|line| Row::parse(line).map(|row| row.cells()))
        .collect();
    let cells = cells?;
    let mut table = Table::new(COLUMNS, super::colours(&io::stdout()));
    table.fit(&cells);
    stdout.write_all(table.head().as_bytes())?;
    for row in &cells {
        stdout.write_all(table.line(row).as_bytes())?;
    }
    if cells.is_empty() {
        super::tell("there were no runs yet; holdfast load tcp HOST:PORT makes one");
    }
    Ok(())
}

pub(super) async fn one(args: One) -> Result<(), Failure> {
    match args.command {
        OneCommand::Show(show) => self::show(&show).await,
        OneCommand::Compare(args) => compare::run(&args).await,
        OneCommand::Stop(stop) => {
            let mut client = stop.reach.connect().await?;
            let request = StopRunRequest {
                run_id: stop.run_id.clone(),
            };
            if let Err(status) = client.stop_run(request).await {
                // None, or several, that are called so are a wrong call; one that is over cannot be stopped.
                if status.code() == Code::NotFound {
                    let row = Row::parse(&found(&stop.reach, &stop.run_id, false).await?)?;
                    return Err(Failure::Undone(anyhow!(cannot_stop(&row))));
                }
                return Err(stop.reach.failure(&status));
            }
            super::tell(&format!("the run {} is being stopped", stop.run_id));
            Ok(())
        }
    }
}

/// Why a run that there is is not under way here.
fn cannot_stop(row: &Row) -> String {
    let run_id = &row.run_id;
    match row.state.as_str() {
        "running" => format!(
            "the run {run_id} is driven by another collector, or its collector has just ended and its agents with it: stop it where it was begun"
        ),
        state => format!(
            "the run {run_id} is {state}, so there is nothing to stop; holdfast run show {run_id} tells what came of it"
        ),
    }
}

/// The one run that is called so.
async fn found(reach: &Reach, run_id: &str, seconds: bool) -> Result<String, Failure> {
    let mut lines = rows(reach, run_id, 2, seconds).await?;
    match (lines.pop(), lines.is_empty()) {
        (None, _) => Err(Failure::Usage(anyhow!(
            "there is no run {run_id}; holdfast runs lists them"
        ))),
        (Some(line), true) => Ok(line),
        (Some(_), false) => Err(Failure::Usage(anyhow!(
            "the ids of several runs begin with {run_id}; give more of it"
        ))),
    }
}

async fn show(args: &Show) -> Result<(), Failure> {
    let with_seconds = args.html.is_some() || args.reach.json;
    let line = found(&args.reach, &args.run_id, with_seconds).await?;
    let mut stdout = io::stdout().lock();
    if args.reach.json {
        writeln!(stdout, "{line}")?;
        return Ok(());
    }
    let row = Row::parse(&line)?;
    let summary = row.summary()?;
    if let Some(path) = &args.html {
        drop(stdout);
        return super::whole_file::write(path, &page::page(&row, &summary, &row.seconds));
    }
    stdout.write_all(report(&row, &summary).as_bytes())?;
    Ok(())
}

/// A run for people.
pub(super) fn report(row: &Row, summary: &Summary) -> String {
    let mut text = format!(
        "--- run {}: {} from {} to {}\n",
        row.run_id,
        row.state,
        row.nodes.join(", "),
        row.targets.join(", ")
    );
    if !summary.is_over {
        text += match row.state.as_str() {
            "lost" => {
                "there is no result: its collector ended before it did, and its agents stopped within a second of that; this is \
                 what came until then:\n"
            }
            _ => "it runs; this is what came until now:\n",
        };
    }
    text += &body(summary);
    if !row.verdict.is_empty() {
        text += &format!("verdict: {}\n", row.verdict);
    }
    for reason in &row.reasons {
        text += &format!("  {reason}\n");
    }
    text
}

fn body(summary: &Summary) -> String {
    let count = |name: &str| summary.counts.get(name).copied().unwrap_or(0);
    let nonzero = |names: &[&str]| {
        let parts: Vec<_> = names
            .iter()
            .filter(|name| count(name) > 0)
            .map(|name| format!("{} {}", count(name), name.replace('_', " ")))
            .collect();
        if parts.is_empty() {
            "none".to_owned()
        } else {
            parts.join(", ")
        }
    };
    let is_of_requests = count("requests") > 0;
    let is_of_datagrams = summary.is_of_datagrams();
    let mut text = String::new();
    if let Some(plan) = &summary.plan {
        let facts: Vec<_> = plan
            .facts()
            .into_iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        text += &format!("plan:         {}\n", facts.join("; "));
    }
    if is_of_requests {
        text += &format!(
            "{:13} {} in {}: {} answered as expected\n",
            if is_of_datagrams {
                "datagrams:"
            } else {
                "requests:"
            },
            count("requests"),
            human(summary.elapsed_ns),
            count("answered")
        );
        // Those of datagrams, which have no connections, are counted as those of attempts.
        let errors: &[&str] = if is_of_datagrams {
            &[
                "refused",
                "unreachable",
                "request_timed_out",
                "request_lost",
                "unsent",
                "request_abandoned",
            ]
        } else {
            &[
                "unexpected_status",
                "unexpected_body",
                "request_timed_out",
                "request_lost",
                "malformed",
                "unsent",
                "request_abandoned",
            ]
        };
        text += &format!("  errors:     {}\n", nonzero(errors));
        if summary.withheld > 0 {
            text += &format!(
                "              {} of those that timed out were in the target's kernel, and nothing came back\n",
                summary.withheld
            );
        }
        let statuses: Vec<_> = summary
            .statuses
            .iter()
            .map(|(status, count)| format!("{status}: {count}"))
            .collect();
        if !statuses.is_empty() {
            text += &format!("  statuses:   {}\n", statuses.join(", "));
        }
        if count("reordered") + count("duplicated") > 0 {
            text += &format!(
                "  order:      {} came out of it, {} came again\n",
                count("reordered"),
                count("duplicated")
            );
        }
        text += &lines_of_remarks(summary);
    }
    if !is_of_datagrams {
        text += &lines_of_connections(summary, &nonzero);
    }
    if !is_of_requests {
        text += &lines_of_remarks(summary);
    }
    text += &lines_of_losses(summary);
    text += &format!(
        "{:13} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n",
        "times", "count", "min", "avg", "dev", "p50", "p99", "p99.9", "max"
    );
    for (name, times) in [
        ("connect", &summary.connect),
        ("dial", &summary.dial),
        ("network", &summary.network),
        ("request", &summary.request),
        (
            if is_of_requests { "response" } else { "exchange" },
            &summary.exchange,
        ),
        ("jitter", &summary.jitter),
        ("error", &summary.error),
        ("late by", &summary.lateness),
    ] {
        if name == "jitter" && summary.is_jitter_mean() {
            text += &line_of_mean(times);
        } else {
            text += &line_of(name, times);
        }
    }
    if is_of_requests {
        text += "              request: from when it was due until its answer was complete; response: since it was sent\n";
    }
    if is_of_datagrams {
        return text + &lines_of_generator(summary);
    }
    text += "              connect: from when it was due; dial: from connect(); network: the handshake's round trip by TCP_INFO\n";
    text += &matrix(&summary.pairs);
    if let Some(kernel) = &summary.kernel {
        text += &lines_of_kernel(kernel, summary.lacks_handshakes);
    } else {
        text += "kernel:       no records of these connections came in time\n";
    }
    text + &lines_of_generator(summary)
}

/// What agents say of it: what went wrong, and what would allow more.
fn lines_of_remarks(summary: &Summary) -> String {
    let line = |remark: &String| format!("              {remark}\n");
    summary.remarks.iter().map(line).collect()
}

/// How the agents did, and what was expected of the run.
fn lines_of_generator(summary: &Summary) -> String {
    let count = |name: &str| summary.counts.get(name).copied().unwrap_or(0);
    let mut text = String::new();
    // Of a run that was cut off, what came in time has no distribution of it.
    let of_all = match summary.lateness.count {
        0 => String::new(),
        due => format!(" of {due}"),
    };
    text += &format!(
        "generator:    {} CPU, {}{of_all} late by 1 ms or more, {}{} sent, {} received\n",
        human(summary.cpu_ns),
        count("late"),
        if summary.is_of_datagrams() {
            String::new()
        } else {
            match summary.lacks_handshakes {
                true => "SYNs sent again not counted, ".to_owned(),
                false => format!("{} SYNs sent again, ", count("syn_retransmits")),
            }
        },
        bytes(count("bytes_sent")),
        bytes(count("bytes_received"))
    );
    text += &line_of_saturation(summary);
    if summary.parts.len() > 1 || summary.parts.iter().any(|part| !part.trouble.is_empty()) {
        for part in &summary.parts {
            text += &line_of_part(part);
        }
    }
    if summary.skew_error_ns > 0 {
        text += &format!(
            "start:        nodes within {} of each other, give or take {}\n",
            human(summary.skew_ns),
            human(summary.skew_error_ns)
        );
    }
    for judged in &summary.expectations {
        text += &format!(
            "expect:       {}: {} ({})\n",
            judged.expected, judged.seen, judged.verdict
        );
    }
    text
}

/// Of a closed loop, of a burst, and of payload that goes back and forth: whether it was the generator that everything waited for.
fn line_of_saturation(summary: &Summary) -> String {
    if !summary.doubt.is_empty() {
        return format!(
            "              {}: all times but network's may be its own\n",
            summary.doubt
        );
    }
    if !summary.exchange_doubt.is_empty() {
        return format!(
            "              {}: the times of exchanges may be its own\n",
            summary.exchange_doubt
        );
    }
    match summary.watched_ns {
        0 => String::new(),
        watched_ns => format!(
            "              no CPU time left for {} of the run\n",
            share(summary.saturated_ns, watched_ns)
        ),
    }
}

/// What came of the attempts to connect.
fn lines_of_connections(summary: &Summary, nonzero: &dyn Fn(&[&str]) -> String) -> String {
    let count = |name: &str| summary.counts.get(name).copied().unwrap_or(0);
    let mut text = format!(
        "attempts:     {} in {}: {} established\n",
        count("started"),
        human(summary.elapsed_ns),
        count("established")
    );
    text += &format!(
        "errors:       {}\n",
        nonzero(&[
            "refused",
            "timed_out",
            "reset",
            "unreachable",
            "failed",
            "local_files",
            "local_ports",
            "local_filter",
            "abandoned",
            "insecure",
        ])
    );
    text += &format!(
        "connections:  {} concurrent at {}, {}{} closed by us; lost: {}\n",
        summary.most_open,
        // Until a run of several is over, what each had alone is all that is known.
        if summary.is_over || summary.parts.len() < 2 {
            "most"
        } else {
            "least"
        },
        summary
            .open_at_end
            .map_or_else(String::new, |open| format!("{open} established at the end, ")),
        count("closed"),
        nonzero(&[
            "closed_by_peer",
            "reset_by_peer",
            "lost_timed_out",
            "lost_unreachable",
            "lost_failed"
        ])
    );
    text
}

/// Jitter that the receivers averaged.
fn line_of_mean(times: &Times) -> String {
    if times.count == 0 {
        return String::new();
    }
    format!(
        "  jitter      {} in the mean, by the receiver (RFC 3550); one way there are no percentiles\n",
        human(times.mean_ns)
    )
}

fn line_of(name: &str, times: &Times) -> String {
    if times.count == 0 {
        return String::new();
    }
    let [min, avg, dev, p50, p99, p999, max] = [
        times.min_ns,
        times.mean_ns,
        times.dev_ns,
        times.p50_ns,
        times.p99_ns,
        times.p999_ns,
        times.max_ns,
    ]
    .map(human);
    format!(
        "  {name:11} {:>9} {min:>9} {avg:>9} {dev:>9} {p50:>9} {p99:>9} {p999:>9} {max:>9}\n",
        times.count
    )
}

/// Columns of a matrix for people; who has more nodes reads the page or the JSON.
const MATRIX_COLUMNS: usize = 12;

/// Who reached whom: p50 and p99 of the times to connect, and how many failed.
fn matrix(pairs: &[Pair]) -> String {
    let names: BTreeSet<&str> = pairs.iter().map(|pair| pair.from.as_str()).collect();
    if names.is_empty() {
        return String::new();
    }
    let cell = |from: &str, to: &str| {
        let pair = pairs.iter().find(|pair| pair.from == from && pair.to == to);
        pair.map_or_else(|| "-".to_owned(), in_short)
    };
    let mut text =
        "pairs:        p50 / p99 from when due, and what failed of all; from the left to the right\n"
            .to_owned();
    if names.len() > MATRIX_COLUMNS {
        let mut worst: Vec<&Pair> = pairs.iter().collect();
        worst.sort_by_key(|pair| std::cmp::Reverse((pair.failed().0, pair.connect.p99_ns)));
        for pair in worst.iter().take(MATRIX_COLUMNS) {
            text += &format!("              {} -> {}: {}\n", pair.from, pair.to, in_short(pair));
        }
        return text
            + &format!(
                "              and {} pairs more: --json and --html have them\n",
                pairs.len().saturating_sub(MATRIX_COLUMNS)
            );
    }
    let mut rows = vec![
        [""].into_iter()
            .chain(names.iter().copied())
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    ];
    for from in &names {
        let cells = names.iter().map(|to| cell(from, to));
        rows.push([(*from).to_owned()].into_iter().chain(cells).collect());
    }
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..=names.len()).map(width).collect();
    for row in &rows {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text += &format!("              {}\n", cells.join("  ").trim_end());
    }
    text
}

/// A pair in a few characters.
fn in_short(pair: &Pair) -> String {
    let (failed, all) = pair.failed();
    let times = match pair.connect.count {
        0 => "-".to_owned(),
        _ => format!("{} / {}", human(pair.connect.p50_ns), human(pair.connect.p99_ns)),
    };
    match (failed, pair.is_over) {
        (0, true) => times,
        (0, false) => times + ", lost",
        (failed, _) => format!("{times}, {failed} of {all} failed"),
    }
}

/// When connections were lost, the first times of them.
fn lines_of_losses(summary: &Summary) -> String {
    let mut text = String::new();
    for lost in summary.lost.iter().take(TIMES_OF_LOSSES) {
        let until = match lost.last_ns.saturating_sub(lost.at_ns) {
            0..1_000_000 => String::new(),
            _ => format!(" to {}", human(lost.last_ns)),
        };
        text += &format!(
            "              {} {} after {}{until} ({})\n",
            lost.count,
            lost.cause.replace('_', " "),
            human(lost.at_ns),
            lost.node
        );
    }
    let more = summary.lost.len().saturating_sub(TIMES_OF_LOSSES);
    if more > 0 {
        text += &format!("              and at {more} more times: --json has them\n");
    }
    let (all, timed) = summary.losses();
    if timed < all {
        text += &format!(
            "              of {} of {all} losses no time was kept\n",
            all - timed
        );
    }
    text
}

/// What one agent did.
fn line_of_part(part: &PartOf) -> String {
    let count = |name: &str| part.counts.get(name).copied().unwrap_or(0);
    let (made, of_what) = match count("requests") {
        0 => (count("started"), "attempts"),
        requests => (requests, "requests"),
    };
    let mut line = format!(
        "              {}: {made} {of_what}, {} CPU, {} late by 1 ms or more",
        part.node,
        human(part.cpu_ns),
        count("late")
    );
    if part.lateness.count > 0 {
        line += &format!(" (p99 {})", human(part.lateness.p99_ns));
    }
    if part.watched_ns > 0 {
        line += &format!(
            ", no CPU time left for {}",
            share(part.saturated_ns, part.watched_ns)
        );
    }
    if !part.trouble.is_empty() {
        line += &format!("; {}", part.trouble);
    }
    line + "\n"
}

/// What processes of the target did with those that were established there.
fn taken(kernel: &Kernel) -> String {
    match (kernel.taken_by_target, kernel.served_by_target) {
        (0, 0) => "no process is known to have taken one, and none was answered".to_owned(),
        (0, served) => format!("no process is known to have taken one, and {served} were answered"),
        (taken, served) => format!("a process took {taken} or more, and answered {served}"),
    }
}

/// What the kernels of both ends recorded, which alone knows of SYNs that were sent again where the generator could not count them.
fn lines_of_kernel(kernel: &Kernel, lacks_handshakes: bool) -> String {
    let times = match kernel.established {
        0 => String::new(),
        _ => format!(
            " (p50 {}, p99 {})",
            human(kernel.connect_p50_us * 1_000),
            human(kernel.connect_p99_us * 1_000)
        ),
    };
    let mut text = format!(
        "kernel:       {} attempts recorded: {} established{times}, {} refused, {} timed out, {} aborted by the generator\n",
        kernel.attempts, kernel.established, kernel.refused, kernel.timed_out, kernel.aborted
    );
    if let Some(again) = kernel
        .syn_retransmits
        .filter(|again| *again > 0 || lacks_handshakes)
    {
        text += &format!("              {again} SYNs sent again\n");
    }
    let by = |ends: &Ends| match (ends.comm.as_str(), ends.pid) {
        ("", 0) => String::new(),
        (comm, pid) => format!(" {comm} ({pid})"),
    };
    for ends in &kernel.ends {
        text += &format!(
            "              {} {} here ({}{})\n",
            ends.connections,
            ends.close_reason.replace('_', " "),
            ends.node,
            by(ends)
        );
    }
    if kernel.seen_by_target > 0 {
        text += &format!(
            "at target:    {} of {} established there too; {}\n",
            kernel.seen_by_target,
            kernel.established,
            taken(kernel)
        );
    } else if kernel.established > 0 {
        text += "at target:    no agent saw the other ends";
        text += match kernel.ambiguous {
            0 => "\n",
            _ => ", where they can be told\n",
        };
    }
    if kernel.ambiguous > 0 {
        text += &format!("              {}\n", on_ambiguous(kernel.ambiguous));
    }
    for ends in &kernel.ends_at_target {
        let span_ns = (ends.last_at_ns - ends.first_at_ns).unsigned_abs();
        let within = if ends.connections > 1 {
            format!(", within {}", human(span_ns))
        } else {
            String::new()
        };
        text += &format!(
            "              {} {} there{within} ({}{})\n",
            ends.connections,
            ends.close_reason.replace('_', " "),
            ends.node,
            by(ends)
        );
    }
    for cause in &kernel.causes {
        let certainty = if cause.is_confirmed {
            ""
        } else {
            ", as far as this end knows"
        };
        let slow = if cause.outcome == "established" {
            "slow"
        } else {
            cause.outcome.as_str()
        };
        text += &format!(
            "cause:        {} {}: {}{certainty}\n              {}\n",
            cause.attempts,
            slow.replace('_', " "),
            cause.cause.replace('_', " "),
            cause.evidence
        );
    }
    text
}

/// Why of so many connections the other end is not known.
fn on_ambiguous(connections: u64) -> String {
    format!(
        "{connections} went between addresses that several nodes have: their other ends are only told on the client's own node"
    )
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runs::result::Lost;

    #[test]
    fn losses_are_told_with_their_times_and_whether_these_are_all() {
        let told = |times: u64, count| {
            let lost = |second: u64| Lost {
                node: "web-1".into(),
                at_ns: second * 1_000_000_000,
                last_ns: second * 1_000_000_000,
                cause: "reset_by_peer".into(),
                count,
            };
            lines_of_losses(&Summary {
                counts: [("reset_by_peer".to_owned(), 5_000)].into(),
                lost: (1..=times).map(lost).collect(),
                ..Summary::default()
            })
        };
        assert_eq!(
            told(1, 5_000),
            "              5000 reset by peer after 1.00 s (web-1)\n"
        );
        let many = told(12, 100);
        assert!(
            many.ends_with("and at 2 more times: --json has them\n              of 3800 of 5000 losses no time was kept\n"),
            "{many}"
        );
    }

    #[test]
    fn where_the_generator_could_not_count_what_the_kernel_did_is_told_though_it_is_zero() {
        let told = |lacks_handshakes, again| {
            let summary = Summary {
                lacks_handshakes,
                kernel: Some(Kernel {
                    attempts: 5,
                    syn_retransmits: again,
                    ..Kernel::default()
                }),
                ..Summary::default()
            };
            let text = body(&summary);
            text.lines().any(|line| line.trim_start() == "0 SYNs sent again")
        };
        assert!(told(true, Some(0)));
        assert!(!told(true, None) && !told(true, Some(1)) && !told(false, Some(0)));
    }
}
