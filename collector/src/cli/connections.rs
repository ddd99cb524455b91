//! `holdfast connections`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::net::Ipv6Addr;

use anyhow::anyhow;
use holdfast_proto::v1::ConnectionsRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{self, Lines, Reach};
use super::table::{Align, BAD, Cell, FAINT, GOOD, Table, human_bytes, human_us};
use crate::config::Span;

/// List finished connections, follow them as they are stored, or list what is open.
///
/// A row is one end of one connection: of a connection between two observed processes there are two. `->` is the end
/// that called connect(), `<-` the one that came out of a listener. RTT is the smoothed round trip time at the end, or now;
/// RESENT are segments that were sent again, SYNs included.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A filter compares columns with =, !=, <, <=, >, >=, in (..) and like, and combines comparisons with
and, or, not and brackets; numbers may have units (20ms, 4MB), addresses a prefix (10.0.0.0/8).
`holdfast sql 'DESCRIBE TABLE connections'` lists the columns.

Examples:
  holdfast connections --last 5m
  holdfast connections --follow --where 'remote_port = 5432 and outcome != \"established\"'
  holdfast connections --open --where 'outcome = \"pending\"'
  holdfast connections --where 'comm = \"nginx\"' --limit 20
  holdfast connections --json --last 1d --limit 0 > connections.jsonl")]
pub(super) struct Args {
    /// Go on with connections as they are stored, until Ctrl-C
    #[arg(long)]
    follow: bool,

    /// What is open now instead, the longest open first: every agent looks every 10 seconds, and every second at
    /// attempts that wait for an answer
    #[arg(long, conflicts_with_all = ["follow", "last"])]
    open: bool,

    /// Only the connections that fit
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
    let request = ConnectionsRequest {
        filter: args.filter.clone(),
        last_ns: last.map_or(0, |span| u64::try_from(span.0.as_nanos()).unwrap_or(u64::MAX)),
        follow: args.follow,
        limit: args.limit,
        open: args.open,
    };
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let chunks = client
        .connections(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut view = View::new(reach.json, args.follow);
    view.begin()?;
    let interrupted = loop {
        let next = tokio::select! {
            next = lines.next() => next,
            _ = tokio::signal::ctrl_c() => break true,
        };
        match next.map_err(|status| reach.failure(&status)) {
            Ok(Some(rows)) => view.show(&rows)?,
            Ok(None) => break false,
            Err(failure) => {
                view.end()?;
                return Err(failure);
            }
        }
    };
    view.end()?;
    if args.follow && !interrupted {
        return Err(Failure::Undone(anyhow!(
            "the collector at {} stopped",
            reach.collector
        )));
    }
    if !reach.json {
        for (node, one_in) in &view.samples {
            super::tell(&format!(
                "{node} has many open: it tells of one in {one_in}, always the same ones (weight with --json)"
            ));
        }
    }
    if args.limit > 0 && view.shown == args.limit && !args.follow {
        super::tell(&format!(
            "these are the {} {}; --limit 0 lists all",
            if args.open { "longest open" } else { "newest" },
            args.limit
        ));
    }
    Ok(())
}

/// A row of `connections` or of `open_connections`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Connection {
    #[serde(alias = "observed_at")]
    closed_at: String,
    node: String,
    pid: u32,
    comm: String,
    role: String,
    local_ip: Ipv6Addr,
    local_port: u16,
    remote_ip: Ipv6Addr,
    remote_port: u16,
    outcome: String,
    /// Of one that is open: none.
    #[serde(default)]
    close_reason: String,
    #[serde(default)]
    resets: String,
    connect_us: u64,
    #[serde(alias = "open_us")]
    duration_us: u64,
    bytes_sent: u64,
    bytes_received: u64,
    retransmits: u32,
    /// Zero where none was measured.
    srtt_us: u64,
    /// Of one that is open: it stands for so many.
    #[serde(default)]
    weight: u32,
}

const COLUMNS: [(&str, Align); 13] = [
    ("TIME (UTC)", Align::Left),
    ("NODE", Align::Left),
    ("PROCESS", Align::Left),
    ("", Align::Left),
    ("LOCAL", Align::Left),
    ("REMOTE", Align::Left),
    ("OUTCOME", Align::Left),
    ("CONNECT", Align::Right),
    ("DURATION", Align::Right),
    ("SENT", Align::Right),
    ("RECEIVED", Align::Right),
    ("RTT", Align::Right),
    ("RESENT", Align::Right),
];

impl Connection {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let is_established = self.outcome == "established";
        // While an attempt waits, that is not known yet, nor is what was sent again.
        let is_pending = self.outcome == "pending";
        let unknown = || Cell::styled("-", FAINT);
        let (outcome, style) = match self.close_reason.as_str() {
            "" | "none" | "finished" => (self.outcome.clone(), if is_established { GOOD } else { BAD }),
            // `established` goes without saying when the end is what is notable.
            reason if is_established => (reason.replace('_', " "), BAD),
            reason => (format!("{}, {}", self.outcome, reason.replace('_', " ")), BAD),
        };
        let outcome = outcome.replace('_', " ") + self.resets_beside();
        [
            // To the millisecond: `2026-03-01 12:00:00.123`.
            Cell::styled(self.closed_at.get(..23).unwrap_or(&self.closed_at), FAINT),
            self.node.clone().into(),
            process(&self.comm, self.pid).into(),
            if self.role == "active" { "->" } else { "<-" }.into(),
            endpoint(self.local_ip, self.local_port).into(),
            endpoint(self.remote_ip, self.remote_port).into(),
            Cell::styled(outcome, style),
            if is_pending {
                unknown()
            } else {
                human_us(self.connect_us).into()
            },
            human_us(self.duration_us).into(),
            human_bytes(self.bytes_sent).into(),
            human_bytes(self.bytes_received).into(),
            match self.srtt_us {
                0 => unknown(),
                us => human_us(us).into(),
            },
            match self.retransmits {
                _ if is_pending => unknown(),
                0 => Cell::styled("0", FAINT),
                count => Cell::styled(count.to_string(), BAD),
            },
        ]
    }
}

impl Connection {
    /// What its resets say beyond the outcome: that a reset ended it, the outcome says already.
    fn resets_beside(&self) -> &'static str {
        let is_received_told =
            self.close_reason == "reset_by_peer" || ["refused", "reset"].contains(&self.outcome.as_str());
        let is_sent_told = self.close_reason == "reset_by_process";
        match self.resets.as_str() {
            "sent" if !is_sent_told => ", reset sent",
            "received" if !is_received_told => ", reset received",
            "both" if is_received_told => ", reset sent",
            "both" if is_sent_told => ", reset received",
            "both" => ", resets both ways",
            _ => "",
        }
    }
}

pub(super) fn process(comm: &str, pid: u32) -> String {
    if pid == 0 {
        "?".to_owned()
    } else {
        format!("{comm}[{pid}]")
    }
}

/// An attempt that waits, or that never left, has no port that is known: `127.0.0.1:?`.
pub(super) fn endpoint(ip: Ipv6Addr, port: u16) -> String {
    let port = match port {
        0 => "?".to_owned(),
        port => port.to_string(),
    };
    match ip.to_ipv4_mapped() {
        Some(ip) => format!("{ip}:{port}"),
        None => format!("[{ip}]:{port}"),
    }
}

/// What is on the screen, or in the pipe.
struct View {
    json: bool,
    table: Table<{ COLUMNS.len() }>,
    /// Totals are kept at the bottom of the terminal while rows come.
    live_totals: bool,
    /// Totals are printed once, at the end.
    final_totals: bool,
    outcomes: BTreeMap<String, u64>,
    shown: u64,
    /// The nodes that show a part of what is open, and one in how many.
    samples: BTreeMap<String, u32>,
}

impl View {
    fn new(json: bool, follow: bool) -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self {
            json,
            table: Table::new(COLUMNS, super::colours(&io::stdout())),
            live_totals: follow && is_terminal && !json,
            final_totals: follow && (!is_terminal || json),
            outcomes: BTreeMap::new(),
            shown: 0,
            samples: BTreeMap::new(),
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        // The head needs to know how wide the first rows are, unless nobody knows when they will come.
        if self.live_totals {
            self.table.fit(&[typical_row()]);
            let mut stdout = io::stdout().lock();
            stdout.write_all(self.table.head().as_bytes())?;
            write!(stdout, "{}", self.totals())?;
            stdout.flush()?;
        }
        Ok(())
    }

    fn show(&mut self, lines: &str) -> Result<(), Failure> {
        let mut connections = Vec::new();
        for line in lines.lines() {
            let connection: Connection = client::row(line)?;
            self.count(&connection);
            connections.push(connection);
        }
        let mut stdout = io::stdout().lock();
        if self.json {
            stdout.write_all(lines.as_bytes())?;
        } else {
            let rows: Vec<_> = connections.iter().map(Connection::cells).collect();
            self.table.fit(&rows);
            let mut text = String::new();
            if self.live_totals {
                text.push_str(CLEAR_LINE);
            } else if self.shown == 0 {
                text.push_str(&self.table.head());
            }
            for row in &rows {
                text.push_str(&self.table.line(row));
            }
            if self.live_totals {
                text.push_str(&self.totals());
            }
            stdout.write_all(text.as_bytes())?;
        }
        stdout.flush()?;
        self.shown += connections.len() as u64;
        Ok(())
    }

    fn count(&mut self, connection: &Connection) {
        *self.outcomes.entry(connection.outcome.clone()).or_default() += 1;
        if connection.weight > 1 {
            self.samples.insert(connection.node.clone(), connection.weight);
        }
    }

    fn end(&self) -> io::Result<()> {
        if self.live_totals {
            writeln!(io::stdout())?;
        } else if self.final_totals {
            super::tell(&self.totals());
        } else if self.shown == 0 && !self.json {
            super::tell("no connections");
        }
        Ok(())
    }

    /// `12 connections: 10 established, 2 refused`.
    fn totals(&self) -> String {
        let total: u64 = self.outcomes.values().sum();
        let each: Vec<_> = self
            .outcomes
            .iter()
            .map(|(outcome, count)| format!("{count} {}", outcome.replace('_', " ")))
            .collect();
        let noun = if total == 1 { "connection" } else { "connections" };
        match each.is_empty() {
            true => format!("{total} {noun}"),
            false => format!("{total} {noun}: {}", each.join(", ")),
        }
    }
}

/// To the line's begin, and clear it (ECMA-48, EL).
const CLEAR_LINE: &str = "\r\x1b[K";

/// As wide as most rows: the head of a live table is printed before the first one.
fn typical_row() -> [Cell; COLUMNS.len()] {
    let connection = Connection {
        closed_at: "2026-03-01 12:00:00.000".to_owned(),
        node: "node".to_owned(),
        pid: 100_000,
        comm: "postgres".to_owned(),
        role: "active".to_owned(),
        local_ip: Ipv6Addr::LOCALHOST,
        local_port: 40_000,
        remote_ip: "::ffff:192.168.100.100".parse().expect("it is an address"),
        remote_port: 40_000,
        outcome: "established".to_owned(),
        close_reason: "finished".to_owned(),
        resets: "none".to_owned(),
        connect_us: 12_300,
        duration_us: 12_300,
        bytes_sent: 4_100,
        bytes_received: 4_100,
        retransmits: 10,
        srtt_us: 12_300,
        weight: 0,
    };
    connection.cells()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(outcome: &str, close_reason: &str) -> Connection {
        let row = format!(
            r#"{{"closed_at":"2026-03-01 12:00:00.123456789","node":"web-1","pid":7,"comm":"curl","role":"active",
                "local_ip":"::ffff:10.0.0.1","local_port":40000,"remote_ip":"fd00::2","remote_port":443,
                "outcome":"{outcome}","close_reason":"{close_reason}","connect_us":870,"duration_us":12300,
                "bytes_sent":512,"bytes_received":4100,"srtt_us":0,"retransmits":0,"a_later_column":[1]}}"#
        );
        serde_json::from_str(&row).unwrap()
    }

    #[test]
    fn a_row_is_shown_in_human_units() {
        let texts = connection("established", "finished")
            .cells()
            .map(|cell| cell.text);
        assert_eq!(
            texts.join("|"),
            "2026-03-01 12:00:00.123|web-1|curl[7]|->|10.0.0.1:40000|[fd00::2]:443|established|870 us|12.3 ms|512 B|4.10 kB|-|0"
        );
    }

    #[test]
    fn what_is_open_is_shown_as_it_stands_and_a_sample_is_named_as_one() {
        let open = |node: &str, weight: u32| -> Connection {
            let row = format!(
                r#"{{"node":"{node}","service":"","role":"passive","outcome":"established",
                "observed_at":"2026-03-01 12:00:00.123456789","open_us":172800000000,"pid":7,"comm":"postgres",
                "local_ip":"::ffff:10.0.0.1","local_port":5432,"remote_ip":"::ffff:10.0.0.2","remote_port":40000,
                "connect_us":870,"bytes_sent":512,"bytes_received":4100,"retransmits":3,"srtt_us":12300,
                "weight":{weight}}}"#
            );
            serde_json::from_str(&row).unwrap()
        };
        assert_eq!(
            open("db-1", 1).cells().map(|cell| cell.text).join("|"),
            "2026-03-01 12:00:00.123|db-1|postgres[7]|<-|10.0.0.1:5432|10.0.0.2:40000|established|870 us|2d 0h|512 B|\
             4.10 kB|12.3 ms|3"
        );
        let waiting = Connection {
            outcome: "pending".to_owned(),
            role: "active".to_owned(),
            local_port: 0,
            connect_us: 0,
            bytes_sent: 0,
            bytes_received: 0,
            retransmits: 0,
            srtt_us: 0,
            ..open("db-1", 1)
        };
        assert_eq!(
            waiting.cells().map(|cell| cell.text).join("|"),
            "2026-03-01 12:00:00.123|db-1|postgres[7]|->|10.0.0.1:?|10.0.0.2:40000|pending|-|2d 0h|0 B|0 B|-|-"
        );
        let mut view = View::new(true, false);
        view.count(&open("db-1", 1));
        view.count(&open("db-2", 32));
        assert_eq!(view.samples, [("db-2".to_owned(), 32)].into());
    }

    #[test]
    fn an_end_that_is_not_normal_is_named() {
        let outcome = |outcome, reason| connection(outcome, reason).cells()[6].text.clone();
        assert_eq!(outcome("refused", "none"), "refused");
        assert_eq!(outcome("timed_out", "none"), "timed out");
        assert_eq!(outcome("established", "reset_by_peer"), "reset by peer");
    }

    #[test]
    fn resets_are_named_where_the_outcome_does_not_say_so() {
        let outcome = |outcome, reason, resets: &str| {
            let row = Connection {
                resets: resets.to_owned(),
                ..connection(outcome, reason)
            };
            row.cells()[6].text.clone()
        };
        assert_eq!(outcome("refused", "none", "received"), "refused");
        assert_eq!(
            outcome("established", "reset_by_process", "sent"),
            "reset by process"
        );
        assert_eq!(
            outcome("established", "timed_out", "sent"),
            "timed out, reset sent"
        );
        assert_eq!(
            outcome("established", "finished", "received"),
            "established, reset received"
        );
        assert_eq!(
            outcome("established", "reset_by_peer", "both"),
            "reset by peer, reset sent"
        );
        assert_eq!(
            outcome("established", "finished", "both"),
            "established, resets both ways"
        );
        // Of what is open nothing is said.
        assert_eq!(outcome("established", "", ""), "established");
    }

    #[test]
    fn totals_count_by_outcome() {
        let mut view = View::new(true, true);
        assert_eq!(view.totals(), "0 connections");
        view.outcomes = [("established".to_owned(), 2), ("timed_out".to_owned(), 1)].into();
        assert_eq!(view.totals(), "3 connections: 2 established, 1 timed out");
    }
}
