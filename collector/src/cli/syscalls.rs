//! `holdfast syscalls`.

use std::io::{self, Write};
use std::time::Duration;

use clap::ValueEnum;
use holdfast_proto::v1::query_client::QueryClient;
use holdfast_proto::v1::{SyscallGrouping, SyscallsRequest};
use serde::Deserialize;
use syscalls::Errno;
use tonic::transport::Channel;

use super::Failure;
use super::client::{self, Lines, Reach};
use super::table::{Align, BAD, CLEAR_SCREEN, Cell, FAINT, Table, human_ns};
use crate::config::Span;

/// How often `--top` asks. Agents deliver every ten seconds, each at its own moment.
const TOP_INTERVAL: Duration = Duration::from_secs(2);

/// How far back without `--last`, and with `--top`: three intervals of an agent.
const LAST: Span = Span(Duration::from_secs(300));
const LAST_TOP: Span = Span(Duration::from_secs(30));

/// Errnos of a row that are shown, the most frequent ones.
const ERRNOS: usize = 3;

/// Show which system calls the nodes' processes make: how often, how they fail, and how long they take.
///
/// Calls and errors are exact; latencies are those of a random sample, unless the agent measures every call. Without
/// `--by`, a line for each process and system call.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A filter is as for `holdfast connections`; `holdfast sql 'DESCRIBE TABLE syscalls'` lists the columns.
ERESTARTSYS and the like are calls that a signal interrupted: made again by the kernel, or ended with EINTR.

Examples:
  holdfast syscalls --top
  holdfast syscalls --by syscall --last 1h
  holdfast syscalls --by process --where 'node = \"web-1\" and errors > 0'
  holdfast syscalls --where 'syscall = \"connect\"' --json --limit 0")]
pub(super) struct Args {
    /// Show it again every 2 s, over the last 30 s, until Ctrl-C
    #[arg(long)]
    top: bool,

    /// Add up by process, cgroup or system call
    #[arg(long, value_enum)]
    by: Option<By>,

    /// Only the calls that fit
    #[arg(
        long = "where",
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,

    /// How far back [default: 5m; with --top 30s]
    #[arg(long, value_name = "TIME")]
    last: Option<Span>,

    /// At most so many lines, those with the most calls; 0: all
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u64,

    #[command(flatten)]
    reach: Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Process,
    Cgroup,
    Syscall,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut client = args.reach.connect().await?;
    loop {
        show(&args, &mut client).await?;
        if !args.top {
            return Ok(());
        }
        tokio::time::sleep(TOP_INTERVAL).await;
    }
}

async fn show(args: &Args, client: &mut QueryClient<Channel>) -> Result<(), Failure> {
    let reach = &args.reach;
    let last = args.last.unwrap_or(if args.top { LAST_TOP } else { LAST });
    let by = match args.by {
        None => SyscallGrouping::Unspecified,
        Some(By::Process) => SyscallGrouping::Process,
        Some(By::Cgroup) => SyscallGrouping::Cgroup,
        Some(By::Syscall) => SyscallGrouping::Syscall,
    };
    let request = SyscallsRequest {
        filter: args.filter.clone(),
        last_ns: u64::try_from(last.0.as_nanos()).unwrap_or(u64::MAX),
        limit: args.limit,
        by: by.into(),
    };
    let chunks = client
        .syscalls(request)
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
            let row: Row = client::row(line)?;
            rows.push(row.cells());
        }
    }
    if !reach.json {
        let colours = super::colours(&io::stdout());
        let mut table = Table::new(columns(args.by), colours);
        table.fit(&rows);
        if args.top && colours {
            stdout.write_all(CLEAR_SCREEN.as_bytes())?;
        }
        stdout.write_all(table.head().as_bytes())?;
        for row in &rows {
            stdout.write_all(table.line(row).as_bytes())?;
        }
        if rows.is_empty() {
            super::tell(
                "no system calls; an agent delivers them every 10 s, unless it runs with --syscalls off",
            );
        }
    }
    stdout.flush()?;
    Ok(())
}

/// A row of the answer. What it is not added up by is absent.
#[derive(Debug, Deserialize)]
struct Row {
    node: String,
    comm: Option<String>,
    pid: Option<u32>,
    cgroup_id: Option<u64>,
    /// Its path, empty where nobody told it.
    cgroup: Option<String>,
    syscall: Option<String>,
    calls: u64,
    calls_per_s: f64,
    errors: u64,
    errnos: Vec<u16>,
    errno_calls: Vec<u64>,
    measured: u64,
    p50_ns: f64,
    p99_ns: f64,
}

const COLUMNS: usize = 9;

fn columns(by: Option<By>) -> [(&'static str, Align); COLUMNS] {
    let (who, what) = match by {
        None => ("PROCESS", "SYSCALL"),
        Some(By::Process) => ("PROCESS", ""),
        Some(By::Cgroup) => ("CGROUP", ""),
        Some(By::Syscall) => ("SYSCALL", ""),
    };
    [
        ("NODE", Align::Left),
        (who, Align::Left),
        (what, Align::Left),
        ("CALLS", Align::Right),
        ("PER S", Align::Right),
        ("P50", Align::Right),
        ("P99", Align::Right),
        ("ERRORS", Align::Right),
        ("", Align::Left),
    ]
}

impl Row {
    fn cells(&self) -> [Cell; COLUMNS] {
        let process = self.comm.as_deref().map(|comm| match (comm, self.pid) {
            ("", _) => "(others)".to_owned(),
            (comm, None | Some(0)) => comm.to_owned(),
            (comm, Some(pid)) => format!("{comm}[{pid}]"),
        });
        let path = self.cgroup.clone().filter(|path| !path.is_empty());
        let cgroup = path.or_else(|| self.cgroup_id.map(|id| id.to_string()));
        let syscall = self.syscall.clone();
        let mut keys = [process, cgroup, syscall].into_iter().flatten();
        let mut key = || Cell::from(keys.next().unwrap_or_default());
        let time = |ns| {
            if self.measured == 0 {
                Cell::styled("-", FAINT)
            } else {
                human_ns(ns).into()
            }
        };
        [
            self.node.clone().into(),
            key(),
            key(),
            self.calls.to_string().into(),
            format!("{:.1}", self.calls_per_s).into(),
            time(self.p50_ns),
            time(self.p99_ns),
            Cell::styled(
                self.errors.to_string(),
                if self.errors == 0 { FAINT } else { BAD },
            ),
            Cell::styled(self.frequent_errors(), FAINT),
        ]
    }

    /// `EAGAIN 120, ECONNRESET 3`.
    fn frequent_errors(&self) -> String {
        let name = |errno: u16| {
            let name = Errno::new(errno.into()).name();
            name.map_or_else(|| format!("errno {errno}"), str::to_owned)
        };
        let errors = self.errnos.iter().zip(&self.errno_calls);
        let mut texts: Vec<_> = errors
            .take(ERRNOS)
            .map(|(errno, calls)| format!("{} {calls}", name(*errno)))
            .collect();
        if self.errnos.len() > ERRNOS {
            texts.push("...".to_owned());
        }
        texts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: &str, expected: &str) {
        let row: Row = serde_json::from_str(row).unwrap();
        let texts = row.cells().map(|cell| cell.text);
        assert_eq!(texts.join("|"), expected);
    }

    #[test]
    fn a_line_names_what_it_is_added_up_by() {
        let numbers = r#""calls":12,"calls_per_s":1.2,"errors":3,"errnos":[11,512,9,4],"errno_calls":[1,1,1,1],
            "measured":2,"p50_ns":870,"p99_ns":12300"#;
        let values = "12|1.2|870 ns|12.3 us|3|EAGAIN 1, ERESTARTSYS 1, EBADF 1, ...";
        check(
            &format!(r#"{{"node":"a","comm":"nginx","pid":7,"syscall":"read",{numbers}}}"#),
            &format!("a|nginx[7]|read|{values}"),
        );
        check(
            &format!(r#"{{"node":"a","comm":"sh","pid":0,{numbers}}}"#),
            &format!("a|sh||{values}"),
        );
        check(
            &format!(r#"{{"node":"a","comm":"","pid":0,{numbers}}}"#),
            &format!("a|(others)||{values}"),
        );
        check(
            &format!(r#"{{"node":"a","cgroup_id":3,"cgroup":"",{numbers}}}"#),
            &format!("a|3||{values}"),
        );
        check(
            &format!(r#"{{"node":"a","cgroup_id":3,"cgroup":"/system.slice/cron.service",{numbers}}}"#),
            &format!("a|/system.slice/cron.service||{values}"),
        );
    }

    #[test]
    fn what_was_not_measured_has_no_latency() {
        check(
            r#"{"node":"a","syscall":"read","calls":2,"calls_per_s":0.2,"errors":0,"errnos":[],"errno_calls":[],
                "measured":0,"p50_ns":0,"p99_ns":0}"#,
            "a|read||2|0.2|-|-|0|",
        );
    }
}
