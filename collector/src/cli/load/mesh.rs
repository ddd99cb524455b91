//! `holdfast load mesh`.

use anyhow::anyhow;
use holdfast_proto::v1::{LoadCount, LoadMesh};

use super::run::{Asked, Each, Load, at_least_one, make, nanoseconds, whole};
use crate::cli::Failure;
use crate::config::Span;

/// Open TCP connections from each agent of some groups to every other, and show who reaches whom, and how fast.
///
/// Each agent takes connections for as long as the run lasts, at the address from which it reaches the collector, and makes the same
/// load to every other: a number, a rate or a concurrency is that of each pair. Agents only load, and only let others load
/// them, where their own configuration allows it (holdfast-agent run --load-targets): each has to allow its own address too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast load mesh --groups web,db                    10 connections of each pair of agents with role=web or role=db
  holdfast load mesh --groups a,b,c --by zone --rate 20/s --for 1m --expect 'connect.p99 < 5ms'
  holdfast load mesh --groups web --port 7444           where firewalls let only one port through

What can be expected is what load tcp knows, of all pairs together; the pairs are in the result (pairs, with --json),
second by second with holdfast run show ID --json (pair_seconds) and --html, and in the table load_samples (node, to_node).

Exit codes: 0 it holds (nothing expected: no errors and no losses of any pair), 1 it does not, 2 a wrong call, 3 unknown: the
agents were the limit, the kernel of a target did not establish what was established here or no process took it (unless what is
expected is of that), or there is no data, 4 it could not be done.")]
pub(super) struct Args {
    /// Groups: values of the label, separated by commas
    #[arg(long, value_name = "NAME,...", required = true, value_delimiter = ',')]
    groups: Vec<String>,

    /// The label that has the group of a node
    #[arg(long, value_name = "LABEL", default_value = "role")]
    by: String,

    /// Where each agent takes connections [default: where there is a free port]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true, value_parser = whole::<u16>(1..=65_535))]
    port: Option<u16>,

    /// Connections of each pair, one after another
    #[arg(short, long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), default_value_t = 10, conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    connections: u64,

    /// Pause between two of them
    #[arg(short, long, value_name = "TIME", allow_hyphen_values = true, default_value = "100ms", conflicts_with_all = ["rate", "stages", "concurrency", "find_max"])]
    sleep: Span,

    #[command(flatten)]
    each: Each,

    #[command(flatten)]
    asked: Asked,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if args.groups.iter().any(String::is_empty) {
        return Err(Failure::Usage(anyhow!(
            "a group without a name; write --groups web,db"
        )));
    }
    let what = format!("each of {}={} to every other", args.by, args.groups.join(","));
    let load = Load {
        plan: args.each.plan()?,
        targets: vec![format!("mesh of {}={}", args.by, args.groups.join(","))],
        named: vec![what],
        count: LoadCount {
            connections: args.connections,
            pause_ns: nanoseconds("--sleep", args.sleep)?,
        },
        of_what: "connections of each pair",
        mesh: Some(LoadMesh {
            label: args.by,
            groups: args.groups,
            port: args.port.unwrap_or(0).into(),
        }),
    };
    make(&args.asked, &load).await
}
