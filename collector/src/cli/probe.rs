//! `holdfast probe`.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::anyhow;
use holdfast_proto::v1::query_client::QueryClient;
use holdfast_proto::v1::{ProbesRequest, SetProbesRequest};
use serde::Deserialize;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::Failure;
use super::client::{self, Reach};
use super::table::{Align, BAD, Cell, FAINT, GOOD, Table};
use crate::config::Span;

/// How often it is looked whether the agents have answered.
const LOOK: Duration = Duration::from_millis(250);

/// Change what agents watch while they run, or show it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Set(Set),
    Show(Show),
}

/// Say what agents shall watch from now on.
///
/// It holds for the nodes that are named, or have the labels, or all: those of now and those to come, until another value
/// is set; the latest holds. An agent takes what its own configuration allows (holdfast-agent run --control), and says
/// why it refuses the rest.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Settings (default takes one back: as the node's own configuration says):
  ports=80,443              only connections with one of these ports at either end; !22: without it; any
  addresses=10.0.0.0/8      likewise, of either end
  cgroups=/system.slice/x   likewise, by path below the mount of cgroup v2, or by id; not what is below it
  processes=nginx,1234      likewise, by command name or pid
  namespaces=web,4026532281 likewise, network namespaces by name in /run/netns or inode
  connections=1/16          follow one connection in 16; all
  syscalls=off              off, counts, sampled, sampled=N, full
  transitions=all           stream each change of TCP state: closed (none), all, or of whom, as above:
                            transitions='ports=5432;processes=postgres'
  open-connections=off      report looks at what is open: on, off
  listeners=off             likewise
What a filter hides and what is not followed is counted: FILTERED and SAMPLED OUT of holdfast ledger.

Examples:
  holdfast probe set --node web-1 ports=!22 syscalls=full
  holdfast probe set --where role=db syscalls=counts
  holdfast probe set --all syscalls=default

Exit codes: 0 applied everywhere, 1 refused, or not answered in time, 2 a wrong call, 4 it could not be done.")]
struct Set {
    /// The node that it is for; may be given several times
    #[arg(long = "node", value_name = "NAME")]
    nodes: Vec<String>,

    /// The nodes that it is for: those with this label; with several, those that have all of them
    #[arg(long = "where", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,

    /// For every node
    #[arg(long, conflicts_with_all = ["nodes", "labels"])]
    all: bool,

    /// What is set
    #[arg(value_name = "SETTING=VALUE", required = true, value_parser = pair)]
    values: Vec<(String, String)>,

    /// How long to wait for the agents' answers
    #[arg(long, value_name = "TIME", default_value = "5s")]
    wait: Span,

    #[command(flatten)]
    reach: Reach,
}

/// Show what is wanted of each agent, and what it watches.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
STATE: default (as the node's own configuration says), applied, refused, or pending (the agent has not answered).

Examples:
  holdfast probe show
  holdfast probe show --json | jq 'select(.state == \"refused\")'")]
struct Show {
    #[command(flatten)]
    reach: Reach,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Set(set) => set_probes(set).await,
        Command::Show(Show { reach }) => {
            let mut client = reach.connect().await?;
            let rows = ask(&reach, &mut client).await?;
            print(&reach, &rows)?;
            if rows.is_empty() {
                super::tell("no node has delivered yet; holdfast nodes says who did");
            }
            Ok(())
        }
    }
}

async fn set_probes(set: Set) -> Result<(), Failure> {
    if set.nodes.is_empty() && set.labels.is_empty() && !set.all {
        return Err(Failure::Usage(anyhow!(
            "for which nodes? --node NAME, --where KEY=VALUE, or --all"
        )));
    }
    let values: HashMap<_, _> = set.values.iter().cloned().collect();
    if values.len() < set.values.len() {
        return Err(Failure::Usage(anyhow!("one setting has two values")));
    }
    let reach = &set.reach;
    let mut client = reach.connect().await?;
    let request = SetProbesRequest {
        nodes: set.nodes.clone(),
        labels: set.labels.iter().cloned().collect(),
        values,
    };
    let answer = client.set_probes(request).await;
    let revision = answer
        .map_err(|status| reach.failure(&status))?
        .into_inner()
        .revision;
    let until = Instant::now() + set.wait.0;
    let rows = loop {
        let rows: Vec<_> = ask(reach, &mut client)
            .await?
            .into_iter()
            .filter(|row| row.revision >= revision)
            .filter(|row| set.values.iter().any(|(key, _)| *key == row.key))
            .collect();
        let is_open = |row: &Row| row.up && row.state == "pending";
        if !rows.iter().any(is_open) || Instant::now() >= until {
            break rows;
        }
        tokio::time::sleep(LOOK).await;
    };
    print(reach, &rows)?;
    if rows.is_empty() {
        super::tell("no node fits yet; it holds for those to come");
    }
    if rows
        .iter()
        .all(|row| ["applied", "default"].contains(&row.state.as_str()))
    {
        Ok(())
    } else {
        Err(Failure::DoesNotHold)
    }
}

async fn ask(reach: &Reach, client: &mut QueryClient<Channel>) -> Result<Vec<Row>, Failure> {
    let chunks = client
        .probes(ProbesRequest {})
        .await
        .map_err(|status| reach.failure(&status))?;
    let rows = client::rows(reach, chunks.into_inner()).await?;
    let with_line = |(row, line): (Row, String)| Row {
        line: format!("{line}\n"),
        ..row
    };
    Ok(rows.into_iter().map(with_line).collect())
}

fn print(reach: &Reach, rows: &[Row]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    if reach.json {
        for row in rows {
            stdout.write_all(row.line.as_bytes())?;
        }
    } else {
        let cells: Vec<_> = rows.iter().map(Row::cells).collect();
        let mut table = Table::new(COLUMNS, super::colours(&io::stdout()));
        table.fit(&cells);
        stdout.write_all(table.head().as_bytes())?;
        for row in &cells {
            stdout.write_all(table.line(row).as_bytes())?;
        }
    }
    stdout.flush()?;
    Ok(())
}

/// A row of the answer: one setting of one node.
#[derive(Debug, Default, Deserialize)]
struct Row {
    node: String,
    up: bool,
    key: String,
    value: String,
    wanted: String,
    state: String,
    reason: String,
    revision: u64,
    /// As it came.
    #[serde(skip)]
    line: String,
}

const COLUMNS: [(&str, Align); 6] = [
    ("NODE", Align::Left),
    ("SETTING", Align::Left),
    ("IN FORCE", Align::Left),
    ("WANTED", Align::Left),
    ("STATE", Align::Left),
    ("", Align::Left),
];

impl Row {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let or_dash = |text: &str| {
            if text.is_empty() {
                Cell::styled("-", FAINT)
            } else {
                text.into()
            }
        };
        let reason = match self.state.as_str() {
            "pending" if !self.up => "the node is silent",
            _ => &self.reason,
        };
        [
            self.node.clone().into(),
            self.key.clone().into(),
            or_dash(&self.value),
            or_dash(&self.wanted),
            match self.state.as_str() {
                "applied" => Cell::styled("applied", GOOD),
                "default" => Cell::styled("default", FAINT),
                state => Cell::styled(state, BAD),
            },
            reason.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: &str, expected: &str) {
        let row: Row = serde_json::from_str(row).unwrap();
        assert_eq!(row.cells().map(|cell| cell.text).join("|"), expected);
    }

    #[test]
    fn a_setting_is_shown_with_what_is_in_force_and_what_is_wanted() {
        check(
            r#"{"node":"a","up":true,"key":"syscalls","value":"sampled","wanted":"full","state":"refused",
                "reason":"not here","revision":7}"#,
            "a|syscalls|sampled|full|refused|not here",
        );
        check(
            r#"{"node":"a","up":false,"key":"ports","value":"any","wanted":"80","state":"pending","reason":"",
                "revision":7}"#,
            "a|ports|any|80|pending|the node is silent",
        );
        check(
            r#"{"node":"a","up":true,"key":"ports","value":"any","wanted":"","state":"default","reason":"",
                "revision":0}"#,
            "a|ports|any|-|default|",
        );
    }

    #[test]
    fn a_pair_has_a_name_and_a_value() {
        assert_eq!(pair("ports=!22"), Ok(("ports".to_owned(), "!22".to_owned())));
        for bad in ["ports", "=80", "ports="] {
            assert!(pair(bad).is_err(), "{bad}");
        }
    }
}
