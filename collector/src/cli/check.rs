//! `holdfast check`.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use holdfast_proto::v1::{AssertionFile, CheckRequest};

use super::Failure;
use super::client::{Lines, Reach};
use super::verdicts::{self, Row};
use super::whole_file;
use crate::assertion::{Set, reference};
use crate::config::Span;
use crate::engine::files;

const EXAMPLES: &str = "\
Examples:
  holdfast check assertions/
  holdfast check --once assertions/
  holdfast check --for 5m --junit report.xml assertions/ && deploy
  holdfast check --signals
  holdfast check --schema > assertions.schema.json

Exit codes: 0 all hold (or: the files are right), 1 something does not, 2 a file is wrong, or there is no assertion in it,
3 something cannot be told, 4 it could not be done, or was interrupted.";

fn long_help() -> String {
    format!(
        "{EXAMPLES}\n\nWhat can be asserted (--signals: at which end and over which rows each is read):\n{}",
        reference::signals_in_lines()
    )
}

/// Check files of assertions: whether they are right, and with --once or --for whether they hold.
///
/// Without --once and --for no collector is asked. What fails, also if not yet for as long as it has to, does not hold. Of
/// --for the worst counts that was said of each key: what was violated or unknown is so, also if it holds at the end.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
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
        if args.reach.json {
            for line in declared(&set) {
                writeln!(stdout, "{line}")?;
            }
        }
        stdout.flush()?;
        super::tell(&format!("{} {noun} right", set.assertions.len()));
        return Ok(());
    }
    drop(stdout);
    if args.span.is_some_and(|span| span.0.is_zero()) {
        return Err(Failure::Usage(anyhow!(
            "--for is 0s: nothing would be judged; --once judges the windows that ended last"
        )));
    }
    if let Some(path) = &args.junit {
        whole_file::check(path)?;
    }
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
    let worst = judged.worst();
    if args.reach.json {
        for (last, worst) in judged.last.iter().zip(&worst) {
            writeln!(stdout, "{}", json_line(last, worst)?)?;
        }
    } else {
        stdout.write_all(verdicts::text(&worst, false).as_bytes())?;
        for row in worst.iter().filter(|row| is_failing(row)) {
            writeln!(stdout, "\n{}", title(row))?;
            for line in row.evidence() {
                writeln!(stdout, "  {line}")?;
            }
        }
    }
    stdout.flush()?;
    if let Some(path) = &args.junit {
        whole_file::write(path, &junit(&worst))?;
    }
    judged.outcome()
}

/// Each assertion of files that are right, and where it is.
fn declared(set: &Set) -> impl Iterator<Item = serde_json::Value> {
    set.assertions.iter().map(|assertion| {
        let origin = &assertion.origin;
        serde_json::json!({ "assertion": assertion.name, "file": origin.file, "line": origin.place.line })
    })
}

fn println_row(row: &Row) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{}", row.line)?;
    Ok(())
}

/// What came of judging.
pub(super) struct Judged {
    /// The worst that was said of a key before the end, by assertion and key: the first that was violated, or else unknown.
    before: BTreeMap<(String, String), Row>,
    pub(super) last: Vec<Row>,
}

/// How bad a verdict is at the end.
fn badness(verdict: &str) -> u8 {
    match verdict {
        "violated" => 3,
        "pending" => 2,
        "unknown" => 1,
        _ => 0,
    }
}

/// How bad it is to have had a verdict. What failed, but not for as long as it has to, is no more than it was allowed.
fn badness_before(verdict: &str) -> u8 {
    match verdict {
        "pending" => 0,
        verdict => badness(verdict),
    }
}

fn is_failing(row: &Row) -> bool {
    matches!(row.verdict.as_str(), "violated" | "pending")
}

/// Of which assertion, and which key of it.
fn title(row: &Row) -> String {
    if row.key.is_empty() {
        row.assertion.clone()
    } else {
        format!("{} [{}]", row.assertion, row.key)
    }
}

/// The last verdict of a key; under `worst` what was said before, if that is worse.
fn json_line(last: &Row, worst: &Row) -> Result<String, Failure> {
    if worst.is_final {
        return Ok(last.line.clone());
    }
    let parsed = |line: &str| serde_json::from_str(line).map_err(|error| Failure::Undone(error.into()));
    let mut line: serde_json::Value = parsed(&last.line)?;
    line["worst"] = parsed(&worst.line)?;
    Ok(line.to_string())
}

impl Judged {
    fn heard(&mut self, row: Row) {
        if row.is_final {
            self.last.push(row);
            return;
        }
        let badness = badness_before(&row.verdict);
        let place = (row.assertion.clone(), row.key.clone());
        let known = self.before.get(&place);
        if badness > known.map_or(0, |known| badness_before(&known.verdict)) {
            self.before.insert(place, row);
        }
    }

    /// The worst that was said of each key, in the order of the last.
    fn worst(&self) -> Vec<Row> {
        let of_key = |last: &Row| {
            let before = self.before.get(&(last.assertion.clone(), last.key.clone()));
            match before {
                Some(before) if badness_before(&before.verdict) > badness(&last.verdict) => {
                    let mut worst = before.clone();
                    let window_to = verdicts::second(&before.window_to);
                    let end = match last.verdict.as_str() {
                        "holds" => "holds".to_owned(),
                        verdict => format!("is {verdict}"),
                    };
                    worst.when = format!("in the window until {window_to}, at the end it {end}");
                    worst
                }
                _ => last.clone(),
            }
        };
        self.last.iter().map(of_key).collect()
    }

    fn outcome(&self) -> Result<(), Failure> {
        let worst = self.worst();
        let any = |verdict: &str| worst.iter().any(|row| row.verdict == verdict);
        if any("violated") || any("pending") {
            return Err(Failure::DoesNotHold);
        }
        if any("unknown") {
            return Err(Failure::Unknown);
        }
        Ok(())
    }
}

/// Has the collector judge; `changed` is called for every change. An interrupt ends it at any time, also while the collector is
/// not reached yet.
pub(super) async fn judge(
    reach: &Reach,
    request: CheckRequest,
    changed: impl FnMut(&Row) -> Result<(), Failure>,
) -> Result<Judged, Failure> {
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err(Failure::Undone(anyhow!(
            "interrupted before all was judged: nothing is said of whether it holds"
        ))),
        judged = hear(reach, request, changed) => judged,
    }
}

async fn hear(
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
        before: BTreeMap::new(),
        last: Vec::new(),
    };
    let mut waiting = Waiting::default();
    loop {
        let next = tokio::select! {
            next = lines.next() => next,
            () = waiting.show() => continue,
        };
        waiting.hide();
        let Some(text) = next.map_err(|status| reach.failure(&status))? else {
            break;
        };
        for line in text.lines() {
            let row = Row::parse(line)?;
            if !row.is_final {
                changed(&row)?;
            }
            judged.heard(row);
        }
    }
    if judged.last.is_empty() {
        return Err(Failure::Undone(anyhow!(
            "the collector at {} ended its answer before there was any: ask again once \"holdfast serve\" runs there",
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

impl Drop for Waiting {
    fn drop(&mut self) {
        self.hide();
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
        let (name, reason) = (escaped(&title(row)), escaped(&row.reason()));
        let evidence: Vec<_> = row.evidence().iter().map(|line| escaped(line)).collect();
        let element = |name: &str, verdict: &str| match evidence.is_empty() {
            true => format!("<{name} type=\"{verdict}\" message=\"{reason}\"/>"),
            false => format!(
                "<{name} type=\"{verdict}\" message=\"{reason}\">{}</{name}>",
                evidence.join("\n")
            ),
        };
        let inside = match row.verdict.as_str() {
            "holds" => String::new(),
            "unknown" => element("error", "unknown"),
            verdict => element("failure", verdict),
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
    fn a_build_server_is_told_what_speaks_against_it() {
        let evidence = r#"{"readings":[{"condition":"connect.count > 1","value":"0","samples":3,"passed":false}],
            "causes":[{"cause":"no_listener","attempts":"2","by":"both"}],"worst":[{"node":"web-1"}]}"#;
        let line = serde_json::json!({
            "assertion": "a", "verdict": "violated", "condition": "connect.count > 1", "value": 0.0, "samples": 3,
            "evidence": evidence, "is_final": true,
        });
        let text = junit(&[Row::parse(&line.to_string()).unwrap()]);
        let expected = "message=\"0, expected connect.count &gt; 1, 3 samples; no_listener\">connect.count &gt; 1: 0 of 3 samples, fails\n\
                        cause by both: no_listener, 2 attempts\nworst: node web-1</failure>";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_is_right_is_named_with_its_place() {
        let text = "assertions:\n  - { name: a, from: all, expect: connect.count > 1, over: 1m }\n  - { name: b, from: all, expect: connect.count > 2, over: 1m }\n";
        let set = files::declared(&[("a.yaml".to_owned(), text.to_owned())]).unwrap();
        let lines: Vec<_> = declared(&set).map(|line| line.to_string()).collect();
        assert_eq!(
            lines,
            [
                r#"{"assertion":"a","file":"a.yaml","line":2}"#,
                r#"{"assertion":"b","file":"a.yaml","line":3}"#
            ]
        );
    }

    /// What was said of one key, the last of it at the end.
    fn judged(said: &[(&str, &str)]) -> Judged {
        let mut judged = Judged {
            before: BTreeMap::new(),
            last: Vec::new(),
        };
        let (last, before) = said.split_last().unwrap();
        for (verdict, cause) in before {
            let line = row(verdict, cause)
                .line
                .replace("\"is_final\":true", "\"window_to\":\"2026-03-01 12:00:05.500\"");
            judged.heard(Row::parse(&line).unwrap());
        }
        judged.heard(row(last.0, last.1));
        judged
    }

    #[test]
    fn the_worst_that_was_said_counts_and_not_what_is_said_last() {
        let outcome = |said: &[(&str, &str)]| judged(said).outcome();
        let holds = ("holds", "");
        assert!(outcome(&[holds]).is_ok());
        assert!(outcome(&[("pending", ""), holds]).is_ok());
        for failing in [
            &[("violated", ""), holds][..],
            &[("violated", ""), ("unknown", "x"), holds],
            &[("unknown", "x"), ("violated", ""), holds],
            &[("violated", ""), ("unknown", "x")],
            &[("unknown", "x"), ("pending", "")],
        ] {
            assert!(
                matches!(outcome(failing), Err(Failure::DoesNotHold)),
                "{failing:?}"
            );
        }
        for unknown in [&[holds, ("unknown", "x"), holds][..], &[("unknown", "x")]] {
            assert!(matches!(outcome(unknown), Err(Failure::Unknown)), "{unknown:?}");
        }
    }

    #[test]
    fn of_what_holds_again_the_build_server_and_programs_are_told_what_it_was_and_when() {
        let judged = judged(&[("unknown", "web-1 is silent"), ("holds", "")]);
        let worst = judged.worst();
        let text = junit(&worst);
        assert!(text.contains("failures=\"0\" errors=\"1\""), "{text}");
        let message =
            "message=\"web-1 is silent; in the window until 2026-03-01 12:00:05, at the end it holds\"";
        assert!(text.contains(message), "{text}");
        let line = json_line(&judged.last[0], &worst[0]).unwrap();
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&line["verdict"], &line["worst"]["verdict"]),
            (&"holds".into(), &"unknown".into())
        );
    }

    #[test]
    fn what_fails_weighs_more_than_what_is_not_known() {
        let outcome = |rows: Vec<Row>| {
            Judged {
                before: BTreeMap::new(),
                last: rows,
            }
            .outcome()
        };
        assert!(matches!(
            outcome(vec![row("unknown", "x"), row("pending", "")]),
            Err(Failure::DoesNotHold)
        ));
        assert!(matches!(
            outcome(vec![row("unknown", "x"), row("holds", "")]),
            Err(Failure::Unknown)
        ));
    }
}
