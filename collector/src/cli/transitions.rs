//! `holdfast transitions`.

use std::io::{self, IsTerminal, Write};
use std::net::Ipv6Addr;

use anyhow::anyhow;
use holdfast_proto::v1::TransitionsRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{self, Lines, Reach};
use super::connections::{endpoint, process};
use super::table::{Align, Cell, FAINT, Table, human_ns};
use crate::config::Span;

/// List changes of TCP state, or follow them.
///
/// The record of a finished connection tells every state that it went through, so these are always here once it is closed.
/// Where an agent is told to (holdfast-agent run --transitions, holdfast probe set transitions=...), each change is
/// here as it happens, those of listeners too, and --follow shows it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A filter compares columns with =, !=, <, <=, >, >=, in (..) and like, and combines comparisons with
and, or, not and brackets. `holdfast sql 'DESCRIBE TABLE transitions'` lists the columns.

Examples:
  holdfast probe set --node db-1 'transitions=ports=5432'
  holdfast transitions --follow --where 'local_port = 5432'
  holdfast transitions --last 5m --where 'to_state = \"CLOSE_WAIT\"'")]
pub(super) struct Args {
    /// Go on with those that are streamed as they are stored, until Ctrl-C
    #[arg(long)]
    follow: bool,

    /// Only those that fit
    #[arg(
        long = "where",
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,

    /// How far back [default: 1h; with --follow nothing that was stored before]
    #[arg(long, value_name = "TIME")]
    last: Option<Span>,

    /// At most so many of the stored ones, the newest; 0: all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u64,

    #[command(flatten)]
    reach: Reach,
}

/// How far back without `--last` and without `--follow`.
const LAST: Span = Span(std::time::Duration::from_secs(3600));

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let last = args.last.or((!args.follow).then_some(LAST));
    let request = TransitionsRequest {
        filter: args.filter,
        last_ns: last.map_or(0, |span| u64::try_from(span.0.as_nanos()).unwrap_or(u64::MAX)),
        follow: args.follow,
        limit: args.limit,
    };
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let chunks = client
        .transitions(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut table = Table::new(COLUMNS, super::colours(&io::stdout()));
    let mut shown = 0;
    if args.follow && io::stdout().is_terminal() && !reach.json {
        super::tell("waiting for transitions that are streamed; holdfast probe show says whose are");
    }
    let interrupted = loop {
        let next = tokio::select! {
            next = lines.next() => next,
            _ = tokio::signal::ctrl_c() => break true,
        };
        match next.map_err(|status| reach.failure(&status))? {
            Some(text) => shown += show(reach.json, &mut table, shown, &text)?,
            None => break false,
        }
    };
    if args.follow && !interrupted {
        return Err(Failure::Undone(anyhow!(
            "the collector at {} stopped",
            reach.collector
        )));
    }
    if shown == 0 && !reach.json && !args.follow {
        super::tell("no transitions");
    }
    if args.limit > 0 && shown == args.limit && !args.follow {
        super::tell(&format!(
            "these are the newest {}; --limit 0 lists all",
            args.limit
        ));
    }
    Ok(())
}

/// Prints rows after those that were shown, and gives how many they are.
fn show(json: bool, table: &mut Table<{ COLUMNS.len() }>, shown: u64, lines: &str) -> Result<u64, Failure> {
    let mut stdout = io::stdout().lock();
    if json {
        stdout.write_all(lines.as_bytes())?;
    } else {
        let mut rows = Vec::new();
        for line in lines.lines() {
            let transition: Transition = client::row(line)?;
            rows.push(transition.cells());
        }
        table.fit(&rows);
        if shown == 0 {
            stdout.write_all(table.head().as_bytes())?;
        }
        for row in &rows {
            stdout.write_all(table.line(row).as_bytes())?;
        }
    }
    stdout.flush()?;
    Ok(lines.lines().count() as u64)
}

/// A row of `transitions`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Transition {
    at: String,
    opened_at: String,
    node: String,
    pid: u32,
    comm: String,
    role: String,
    step: u8,
    local_ip: Ipv6Addr,
    local_port: u16,
    remote_ip: Ipv6Addr,
    remote_port: u16,
    from_state: String,
    to_state: String,
}

const COLUMNS: [(&str, Align); 9] = [
    ("TIME (UTC)", Align::Left),
    ("NODE", Align::Left),
    ("PROCESS", Align::Left),
    ("", Align::Left),
    ("LOCAL", Align::Left),
    ("REMOTE", Align::Left),
    ("FROM", Align::Left),
    ("TO", Align::Left),
    ("AFTER", Align::Right),
];

impl Transition {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let is_of_listener = self.step == 0;
        let (sign, remote) = match self.role.as_str() {
            _ if is_of_listener => ("", String::new()),
            "active" => ("->", endpoint(self.remote_ip, self.remote_port)),
            _ => ("<-", endpoint(self.remote_ip, self.remote_port)),
        };
        let after = match nanoseconds_of_day(&self.at)
            .zip(nanoseconds_of_day(&self.opened_at))
            // Another day: the columns tell.
            .filter(|_| self.at.get(..10) == self.opened_at.get(..10) && !is_of_listener)
        {
            Some((at, opened)) => human_ns(at.saturating_sub(opened) as f64),
            None => String::new(),
        };
        [
            // To the microsecond: `2026-03-01 12:00:00.123456`.
            Cell::styled(self.at.get(..26).unwrap_or(&self.at), FAINT),
            self.node.clone().into(),
            process(&self.comm, self.pid).into(),
            sign.into(),
            endpoint(self.local_ip, self.local_port).into(),
            remote.into(),
            Cell::styled(self.from_state.as_str(), FAINT),
            self.to_state.clone().into(),
            after.into(),
        ]
    }
}

/// Of `2026-03-01 12:00:00.123456789`: since midnight.
fn nanoseconds_of_day(time: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| time.get(range)?.parse::<u64>().ok();
    let seconds = (number(11..13)? * 60 + number(14..16)?) * 60 + number(17..19)?;
    Some(seconds * 1_000_000_000 + number(20..29)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(role: &str, step: u8) -> String {
        let row = format!(
            r#"{{"node":"db-1","service":"","role":"{role}","opened_at":"2026-03-01 12:00:00.123456789",
            "at":"2026-03-01 12:00:00.123500000","step":{step},"from_state":"SYN_RECV","to_state":"ESTABLISHED",
            "pid":77,"comm":"postgres","netns":1,"cgroup_id":1,"local_ip":"::ffff:10.0.0.1","local_port":5432,
            "remote_ip":"fd00::2","remote_port":40000,"is_streamed":true}}"#
        );
        let transition: Transition = serde_json::from_str(&row).unwrap();
        transition.cells().map(|cell| cell.text).join("|")
    }

    #[test]
    fn a_transition_is_shown_with_both_ends_and_how_long_it_took() {
        assert_eq!(
            shown("passive", 2),
            "2026-03-01 12:00:00.123500|db-1|postgres[77]|<-|10.0.0.1:5432|[fd00::2]:40000|SYN_RECV|ESTABLISHED|43.2 us"
        );
    }

    #[test]
    fn a_listener_has_no_other_end() {
        assert!(shown("passive", 0).contains("postgres[77]||10.0.0.1:5432||SYN_RECV|ESTABLISHED|"));
    }
}
