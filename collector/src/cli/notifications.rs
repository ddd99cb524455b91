//! `holdfast notifications`.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use holdfast_proto::v1::NotificationsRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{self, Reach};
use super::table::{Align, BAD, CLEAR_SCREEN, Cell, FAINT, GOOD, Table};
use crate::config::Span;

/// Show what receivers were told, what waits, and why it could not be delivered.
///
/// Receivers are declared beside the assertions, under `receivers:`. What is told is stored before it is sent, and sent until
/// it is answered, at least once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
STATE: queued (not tried yet), failed (it is tried again), sent, or given_up (after `give_up_after` of the receiver).

Examples:
  holdfast notifications
  holdfast notifications --watch
  holdfast notifications --last 7d --json | jq 'select(.state != \"sent\")'")]
pub(super) struct Args {
    /// Show them again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// How far back; what waits is always shown
    #[arg(long, value_name = "TIME", default_value = "1d")]
    last: Span,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    loop {
        let rows = fetch(&args).await?;
        let mut stdout = io::stdout().lock();
        if args.watch && stdout.is_terminal() && !args.reach.json {
            write!(stdout, "{CLEAR_SCREEN}")?;
        }
        if args.reach.json {
            for row in &rows {
                writeln!(stdout, "{}", row.line)?;
            }
        } else {
            stdout.write_all(text(&rows).as_bytes())?;
            if rows.is_empty() {
                super::tell("nobody was told anything within that time; holdfast verdicts says what holds");
            }
        }
        stdout.flush()?;
        drop(stdout);
        if !args.watch {
            return Ok(());
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

async fn fetch(args: &Args) -> Result<Vec<Row>, Failure> {
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let request = NotificationsRequest {
        last_ns: u64::try_from(args.last.0.as_nanos()).unwrap_or(u64::MAX),
    };
    let chunks = client
        .notifications(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let rows = client::rows(reach, chunks.into_inner()).await?;
    let with_line = |(row, line): (Row, String)| Row { line, ..row };
    Ok(rows.into_iter().map(with_line).collect())
}

#[derive(Debug, Deserialize)]
struct Row {
    queued_at: String,
    receiver: String,
    assertion: String,
    key: String,
    verdict: String,
    state: String,
    attempts: u32,
    reason: String,
    /// As it came.
    #[serde(skip)]
    line: String,
}

const COLUMNS: [(&str, Align); 7] = [
    ("QUEUED (UTC)", Align::Left),
    ("RECEIVER", Align::Left),
    ("ASSERTION", Align::Left),
    ("KEY", Align::Left),
    ("VERDICT", Align::Left),
    ("STATE", Align::Left),
    ("", Align::Left),
];

impl Row {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let time = self.queued_at.get(..19).unwrap_or(&self.queued_at);
        let attempts = match self.attempts {
            0 => String::new(),
            1 => self.reason.clone(),
            attempts => format!("{}, {attempts} attempts", self.reason),
        };
        [
            Cell::styled(time, FAINT),
            self.receiver.clone().into(),
            self.assertion.clone().into(),
            self.key.clone().into(),
            self.verdict.clone().into(),
            match self.state.as_str() {
                "sent" => Cell::styled("sent", GOOD),
                "queued" => Cell::styled("queued", FAINT),
                state => Cell::styled(state, BAD),
            },
            attempts.into(),
        ]
    }
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let cells: Vec<_> = rows.iter().map(Row::cells).collect();
    let mut table = Table::new(COLUMNS, super::colours(&io::stdout()));
    table.fit(&cells);
    let mut text = table.head();
    for row in &cells {
        text.push_str(&table.line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_shown_with_what_has_become_of_it() {
        let row: Row = serde_json::from_str(
            r#"{"queued_at":"2026-03-01 12:00:00.123456789","receiver":"on-call","assertion":"a","key":"from.node web-1",
                "verdict":"violated","state":"failed","attempts":3,"reason":"answered 503: later"}"#,
        )
        .unwrap();
        assert_eq!(
            row.cells().map(|cell| cell.text).join("|"),
            "2026-03-01 12:00:00|on-call|a|from.node web-1|violated|failed|answered 503: later, 3 attempts"
        );
    }
}
