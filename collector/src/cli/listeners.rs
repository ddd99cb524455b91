//! `holdfast listeners`.

use std::net::Ipv6Addr;

use holdfast_proto::v1::ListenersRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{Reach, print};
use super::connections::{endpoint, process};
use super::table::{Align, BAD, Cell, FAINT};

/// List who listens, how many wait for accept(), and how many were turned away.
///
/// Each agent looks every 10 seconds; this is its latest look. A queue is full when more wait than its limit:
/// then the kernel drops what arrives, and clients time out although the port is open. NETNS OVERFLOWS counts that for all
/// listeners of the network namespace since it began, those that are gone included.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast listeners
  holdfast listeners --json | jq 'select(.backlog > .backlog_limit)'
  holdfast sql 'SELECT node, local_port, max(backlog / backlog_limit) FROM listeners GROUP BY ALL'")]
pub(super) struct Args {
    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let chunks = client
        .listeners(ListenersRequest {})
        .await
        .map_err(|status| reach.failure(&status))?;
    print(
        reach,
        chunks.into_inner(),
        COLUMNS,
        |listener: &Listener| [listener.cells()],
        "no agent has seen a listener within 25 seconds; holdfast nodes says who is up",
    )
    .await
}

/// A row of `listeners`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Listener {
    node: String,
    observed_at: String,
    local_ip: Ipv6Addr,
    local_port: u16,
    pid: u32,
    comm: String,
    netns: u32,
    backlog: u32,
    backlog_limit: u32,
    drops: u32,
    namespace_overflows: Option<u64>,
}

const COLUMNS: [(&str, Align); 9] = [
    ("NODE", Align::Left),
    ("PROCESS", Align::Left),
    ("LISTENS ON", Align::Left),
    ("NETNS", Align::Right),
    ("WAITING", Align::Right),
    ("LIMIT", Align::Right),
    ("TURNED AWAY", Align::Right),
    ("NETNS OVERFLOWS", Align::Right),
    ("SEEN (UTC)", Align::Left),
];

impl Listener {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let bad_if = |is_bad: bool, count: u32| {
            if is_bad {
                Cell::styled(count.to_string(), BAD)
            } else {
                count.to_string().into()
            }
        };
        [
            self.node.clone().into(),
            process(&self.comm, self.pid).into(),
            endpoint(self.local_ip, self.local_port).into(),
            self.netns.to_string().into(),
            bad_if(self.backlog > self.backlog_limit, self.backlog),
            self.backlog_limit.to_string().into(),
            bad_if(self.drops > 0, self.drops),
            self.namespace_overflows
                .map_or_else(|| "?".to_owned(), |count| count.to_string())
                .into(),
            // To the second: `2026-03-01 12:00:00`.
            Cell::styled(self.observed_at.get(..19).unwrap_or(&self.observed_at), FAINT),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_shown_with_its_queue() {
        let row = r#"{"node":"db-1","service":"","observed_at":"2026-03-01 12:00:00.123456789",
            "local_ip":"::ffff:0.0.0.0","local_port":5432,"pid":77,"comm":"postgres","attribution":"listener",
            "netns":4026531840,"cgroup_id":1,"backlog":3,"backlog_limit":2,"drops":9,"namespace_overflows":11,"cookie":5,"agent_id":"a"}"#;
        let listener: Listener = serde_json::from_str(row).unwrap();
        assert_eq!(
            listener.cells().map(|cell| cell.text).join("|"),
            "db-1|postgres[77]|0.0.0.0:5432|4026531840|3|2|9|11|2026-03-01 12:00:00"
        );
    }
}
