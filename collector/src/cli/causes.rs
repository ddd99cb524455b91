//! `holdfast causes`.

use std::net::Ipv6Addr;

use holdfast_proto::v1::CausesRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{Reach, print};
use super::connections::{endpoint, process};
use super::table::{Align, BAD, Cell, FAINT};
use crate::config::Span;

/// Show why attempts to connect failed, or were slow because a SYN was lost.
///
/// A cause is found by looking at both ends, where both have an agent, at the listener and its queue, at what the filters
/// dropped, and at who has the address. It is there some seconds after the attempt, and may change while more becomes
/// known. One with a question mark says only what the client's own node knows.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A filter is as for `holdfast connections`; `holdfast sql 'DESCRIBE TABLE attempt_causes'` lists the columns and says what
each cause means.

Examples:
  holdfast causes
  holdfast causes --where 'cause = \"listener_full\"' --last 1d
  holdfast causes --json | jq -r '[.remote_ip, .remote_port, .cause, .evidence] | @tsv'
  holdfast sql 'SELECT cause, count() FROM attempt_causes GROUP BY cause'")]
pub(super) struct Args {
    /// Only the attempts that fit
    #[arg(
        long = "where",
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,

    /// How far back
    #[arg(long, value_name = "TIME", default_value = "1h")]
    last: Span,

    /// At most so many attempts, the latest; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let request = CausesRequest {
        filter: args.filter.clone(),
        last_ns: u64::try_from(args.last.0.as_nanos()).unwrap_or(u64::MAX),
        limit: args.limit,
    };
    let chunks = client
        .causes(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    print(
        reach,
        chunks.into_inner(),
        COLUMNS,
        |row: &Row| [row.cells()],
        "no attempt failed or was slow in that time, as far as the collector knows",
    )
    .await
}

/// A row of `attempt_causes`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Row {
    node: String,
    decided_at: String,
    outcome: String,
    cause: String,
    is_confirmed: bool,
    evidence: String,
    pid: u32,
    comm: String,
    remote_ip: Ipv6Addr,
    remote_port: u16,
    alike: u64,
}

const COLUMNS: [(&str, Align); 8] = [
    ("DECIDED (UTC)", Align::Left),
    ("NODE", Align::Left),
    ("PROCESS", Align::Left),
    ("TO", Align::Left),
    ("OUTCOME", Align::Left),
    ("CAUSE", Align::Left),
    ("ALIKE", Align::Right),
    ("EVIDENCE", Align::Left),
];

impl Row {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let cause = if self.is_confirmed {
            Cell::styled(&self.cause, BAD)
        } else {
            format!("{}?", self.cause).into()
        };
        [
            // To the millisecond.
            Cell::styled(self.decided_at.get(..23).unwrap_or(&self.decided_at), FAINT),
            self.node.clone().into(),
            process(&self.comm, self.pid).into(),
            endpoint(self.remote_ip, self.remote_port).into(),
            self.outcome.clone().into(),
            cause,
            self.alike.to_string().into(),
            self.evidence.clone().into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_shown_with_its_evidence_and_a_question_mark_if_only_one_side_says_so() {
        let row = |is_confirmed: bool| {
            let row = format!(
                r#"{{"node":"web-1","decided_at":"2026-03-01 12:00:00.123456789","outcome":"timed_out",
                "cause":"listener_full","is_confirmed":{is_confirmed},"evidence":"2 SYNs went unanswered","pid":7,
                "comm":"curl","remote_ip":"::ffff:10.0.0.2","remote_port":80,"alike":3,"peer_node":"db-1"}}"#
            );
            let row: Row = serde_json::from_str(&row).unwrap();
            row.cells().map(|cell| cell.text).join("|")
        };
        assert_eq!(
            row(true),
            "2026-03-01 12:00:00.123|web-1|curl[7]|10.0.0.2:80|timed_out|listener_full|3|2 SYNs went unanswered"
        );
        assert!(row(false).contains("|listener_full?|"));
    }
}
