//! `holdfast check`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use holdfast_proto::v1::{AssertionFile, CheckRequest};

use super::Failure;
use super::client::{Lines, Reach};
use super::verdicts::{self, Row};
use crate::assertion::reference;
use crate::config::Span;
use crate::engine::files;

/// Check files of assertions: whether they are right, and with --once or --for whether they hold.
///
/// Without --once and --for no collector is asked. What fails, also if not yet for as long as it has to, does not hold.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast check assertions/
  holdfast check --once assertions/
  holdfast check --for 5m --junit report.xml assertions/ && deploy
  holdfast check --signals
  holdfast check --schema > assertions.schema.json

Exit codes: 0 all hold (or: the files are right), 1 something does not, 2 a file is wrong, or there is no assertion in it,
3 something cannot be told, 4 it could not be done.")]
pub(super) struct Args {
    /// Files, or folders with files that end in .yaml
    #[arg(value_name = "FILES", required_unless_present_any = ["signals", "schema"])]
    files: Vec<PathBuf>,

    /// Judge the windows that ended last, once
    #[arg(long, conflicts_with = "span")]
    once: bool,

    /// Judge for so long from now on
    #[arg(long = "for", id = "span", value_name = "TIME")]
    span: Option<Span>,

    /// Write what came of it to a file that build servers read
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    /// Print what can be asserted, and stop
    #[arg(long)]
    signals: bool,

    /// Print a JSON schema of the files for editors, and stop
    #[arg(long, conflicts_with = "signals")]
    schema: bool,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    if args.signals {
        stdout.write_all(reference::signals_document().as_bytes())?;
        return Ok(stdout.flush()?);
    }
    if args.schema {
        let schema = serde_json::to_string_pretty(&reference::schema())
            .map_err(|error| Failure::Undone(error.into()))?;
        writeln!(stdout, "{schema}")?;
        return Ok(());
    }
    let (files, set) = files::load(&args.files).map_err(|error| Failure::Usage(error.into()))?;
    if !args.once && args.span.is_none() {
        if args.junit.is_some() {
            return Err(Failure::Usage(anyhow!(
                "--junit needs --once or --for: nothing is judged without"
            )));
        }
        let noun = if set.assertions.len() == 1 {
            "assertion is"
        } else {
            "assertions are"
        };
        super::tell(&format!("{} {noun} right", set.assertions.len()));
        return Ok(());
    }
    drop(stdout);
    let request = CheckRequest {
        files: files
            .into_iter()
            .map(|(name, text)| AssertionFile { name, text })
            .collect(),
        for_ns: args
            .span
            .map_or(0, |span| u64::try_from(span.0.as_nanos()).unwrap_or(u64::MAX)),
        since_ns: 0,
    };
    let judged = judge(&args.reach, request, |row| {
        if args.reach.json {
            println_row(row)
        } else {
            super::tell(&format!("{}: {}", row.assertion, row.sentence()));
            Ok(())
        }
    })
    .await?;
    let mut stdout = io::stdout().lock();
    if args.reach.json {
        for row in &judged.last {
            writeln!(stdout, "{}", row.line)?;
        }
    } else {
        stdout.write_all(verdicts::text(&judged.last, false).as_bytes())?;
    }
    stdout.flush()?;
    if let Some(path) = &args.junit {
        std::fs::write(path, junit(&judged.last))
            .with_context(|| format!("cannot write {}", path.display()))
            .map_err(Failure::Undone)?;
    }
    judged.outcome()
}

fn println_row(row: &Row) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{}", row.line)?;
    Ok(())
}

/// What came of judging.
pub(super) struct Judged {
    /// Something was violated, though it may hold again.
    was_violated: bool,
    pub(super) last: Vec<Row>,
}

impl Judged {
    fn outcome(&self) -> Result<(), Failure> {
        let any = |verdict: &str| self.last.iter().any(|row| row.verdict == verdict);
        if self.was_violated || any("violated") || any("pending") {
            return Err(Failure::DoesNotHold);
        }
        if any("unknown") {
            return Err(Failure::Unknown);
        }
        Ok(())
    }
}

/// Has the collector judge; `changed` is called for every change.
pub(super) async fn judge(
    reach: &Reach,
    request: CheckRequest,
    mut changed: impl FnMut(&Row) -> Result<(), Failure>,
) -> Result<Judged, Failure> {
    let mut client = reach.connect().await?;
    let chunks = client
        .check(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut judged = Judged {
        was_violated: false,
        last: Vec::new(),
    };
    let mut waiting = Waiting::default();
    loop {
        let next = tokio::select! {
            next = lines.next() => next,
            () = waiting.show() => continue,
            _ = tokio::signal::ctrl_c() => return Err(Failure::Undone(anyhow!("cancelled"))),
        };
        waiting.hide();
        let Some(text) = next.map_err(|status| reach.failure(&status))? else {
            break;
        };
        for line in text.lines() {
            let row = Row::parse(line)?;
            if row.is_final {
                judged.last.push(row);
            } else {
                judged.was_violated |= row.verdict == "violated";
                changed(&row)?;
            }
        }
    }
    if judged.last.is_empty() {
        return Err(Failure::Undone(anyhow!(
            "the collector at {} stopped",
            reach.collector
        )));
    }
    Ok(judged)
}

/// Says on a terminal that it is waited, and how long already: judging an hour of the past takes some seconds.
struct Waiting {
    began: Instant,
    is_shown: bool,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            is_shown: false,
        }
    }
}

impl Waiting {
    /// Returns every second, after it has shown the time. Where nobody would see it, never.
    async fn show(&mut self) {
        if !io::stderr().is_terminal() {
            return std::future::pending().await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let _ = write!(io::stderr(), "\r  judging, {} s ", self.began.elapsed().as_secs());
        self.is_shown = true;
    }

    fn hide(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}

/// As build servers read it: a failure for what does not hold, an error for what cannot be told.
fn junit(rows: &[Row]) -> String {
    let count = |verdicts: &[&str]| {
        rows.iter()
            .filter(|row| verdicts.contains(&row.verdict.as_str()))
            .count()
    };
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"holdfast\" tests=\"{}\" failures=\"{}\" \
         errors=\"{}\">\n",
        rows.len(),
        count(&["violated", "pending"]),
        count(&["unknown"])
    );
    for row in rows {
        let name = if row.key.is_empty() {
            row.assertion.clone()
        } else {
            format!("{} [{}]", row.assertion, row.key)
        };
        let (name, reason) = (escaped(&name), escaped(&row.reason()));
        let inside = match row.verdict.as_str() {
            "holds" => String::new(),
            "unknown" => format!("<error type=\"unknown\" message=\"{reason}\"/>"),
            verdict => format!("<failure type=\"{verdict}\" message=\"{reason}\"/>"),
        };
        text.push_str(&format!(
            "    <testcase classname=\"holdfast\" name=\"{name}\">{inside}</testcase>\n"
        ));
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

/// Text within XML; what XML cannot hold at all becomes a question mark.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push('?'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(verdict: &str, cause: &str) -> Row {
        Row::parse(&format!(
            r#"{{"assertion":"a <b>","key":"from.node=\"x\"","verdict":"{verdict}","cause":"{cause}","condition":"connect.count > 1",
                "value":0.0,"samples":3,"is_final":true}}"#
        ))
        .unwrap()
    }

    #[test]
    fn a_build_server_is_told_what_fails_and_what_is_not_known() {
        let text = junit(&[
            row("holds", ""),
            row("violated", ""),
            row("unknown", "web-1 is silent"),
        ]);
        assert!(text.contains("tests=\"3\" failures=\"1\" errors=\"1\""), "{text}");
        let name = "name=\"a &lt;b&gt; [from.node=&quot;x&quot;]\"";
        assert!(text.contains(&format!("{name}></testcase>")), "{text}");
        assert!(
            text.contains(
                "<failure type=\"violated\" message=\"0, expected connect.count &gt; 1, 3 samples\"/>"
            ),
            "{text}"
        );
        assert!(
            text.contains("<error type=\"unknown\" message=\"web-1 is silent\"/>"),
            "{text}"
        );
    }

    #[test]
    fn what_fails_weighs_more_than_what_is_not_known() {
        let outcome = |rows: Vec<Row>, was_violated| {
            Judged {
                was_violated,
                last: rows,
            }
            .outcome()
        };
        assert!(outcome(vec![row("holds", "")], false).is_ok());
        assert!(matches!(
            outcome(vec![row("holds", "")], true),
            Err(Failure::DoesNotHold)
        ));
        assert!(matches!(
            outcome(vec![row("unknown", "x"), row("pending", "")], false),
            Err(Failure::DoesNotHold)
        ));
        assert!(matches!(
            outcome(vec![row("unknown", "x"), row("holds", "")], false),
            Err(Failure::Unknown)
        ));
    }
}
