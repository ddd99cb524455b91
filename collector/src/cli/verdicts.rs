//! `holdfast verdicts`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use holdfast_proto::v1::VerdictsRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{self, Lines, Reach};
use super::table::{Align, BAD, CLEAR_SCREEN, Cell, FAINT, GOOD, Table};
use crate::assertion::condition::{Condition, value_text};
use crate::assertion::problem::instead;
use crate::config::Span;
use crate::notify::body::top_cause;

/// Show what holds, what does not, and what cannot be told.
///
/// A verdict is Holds, Pending (it fails, but not for long enough yet), Violated, or Unknown: the evidence does not tell, and
/// the last column says why. Where anything is lost of what a verdict rests on, LOST says how much (-: nobody knows whether
/// there is, or it rests on no rows but on what agents report of themselves). One that nobody judges any more is marked as
/// old, and says nothing of now: with one of these the exit code is 3, else 0, whatever the verdicts are (holdfast check
/// --once tells by its exit code).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast verdicts
  holdfast verdicts --watch
  holdfast verdicts --history 'web reaches the database' --last 7d
  holdfast verdicts --json | jq 'select(.verdict == \"violated\")'")]
pub(super) struct Args {
    /// Show them again every second, until Ctrl-C
    #[arg(long, conflicts_with = "history")]
    watch: bool,

    /// Every change of one assertion, oldest first
    #[arg(long, value_name = "NAME")]
    history: Option<String>,

    /// With --history: how far back
    #[arg(long, value_name = "TIME", default_value = "1d", requires = "history")]
    last: Span,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let request = VerdictsRequest {
        name: args.history.clone().unwrap_or_default(),
        history_ns: match &args.history {
            Some(_) => u64::try_from(args.last.0.as_nanos()).unwrap_or(u64::MAX),
            None => 0,
        },
    };
    loop {
        let rows = fetch(&args.reach, request.clone()).await?;
        if rows.is_empty()
            && let Some(name) = &args.history
        {
            check_name(&args.reach, name).await?;
        }
        let mut stdout = io::stdout().lock();
        if args.watch && stdout.is_terminal() && !args.reach.json {
            write!(stdout, "{CLEAR_SCREEN}")?;
        }
        if args.reach.json {
            for row in &rows {
                writeln!(stdout, "{}", row.line)?;
            }
        } else {
            stdout.write_all(text(&rows, args.history.is_some()).as_bytes())?;
            if rows.is_empty() {
                super::tell(match &args.history {
                    Some(_) => "no verdict of that name has changed within that time",
                    None => "no verdicts; a collector judges what --assertions DIR declares",
                });
            }
        }
        stdout.flush()?;
        drop(stdout);
        if !args.watch {
            return match rows.iter().any(|row| row.is_stale) {
                true => Err(Failure::Unknown),
                false => Ok(()),
            };
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// # Errors
/// If there is no verdict of an assertion of this name.
async fn check_name(reach: &Reach, name: &str) -> Result<(), Failure> {
    let rows = fetch(reach, VerdictsRequest::default()).await?;
    let names: BTreeSet<&str> = rows.iter().flat_map(Row::names).collect();
    if names.is_empty() || names.contains(name) {
        return Ok(());
    }
    Err(Failure::Usage(anyhow::anyhow!(
        "there is no verdict of an assertion `{name}`, {}",
        instead(name, names.into_iter())
    )))
}

/// Asks for verdicts.
pub(super) async fn fetch(reach: &Reach, request: VerdictsRequest) -> Result<Vec<Row>, Failure> {
    let mut client = reach.connect().await?;
    let chunks = client
        .verdicts(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut rows = Vec::new();
    while let Some(text) = lines.next().await.map_err(|status| reach.failure(&status))? {
        for line in text.lines() {
            rows.push(Row::parse(line)?);
        }
    }
    Ok(rows)
}

/// A verdict, as it is shown.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Row {
    pub(super) assertion: String,
    #[serde(default)]
    pub(super) key: String,
    pub(super) verdict: String,
    #[serde(default)]
    since: String,
    #[serde(default)]
    pub(super) window_to: String,
    #[serde(default)]
    condition: String,
    #[serde(default)]
    value: Option<f64>,
    /// Of the store's rows, whose value is never absent.
    #[serde(default)]
    has_value: Option<bool>,
    #[serde(default)]
    samples: serde_json::Value,
    /// A number, or a text with one. Null: not known.
    #[serde(default)]
    loss: serde_json::Value,
    #[serde(default)]
    pub(super) cause: String,
    #[serde(default)]
    evidence: String,
    #[serde(default)]
    silenced: bool,
    #[serde(default)]
    revision: u32,
    #[serde(default)]
    pub(super) is_final: bool,
    /// How long ago its window ended, seconds.
    #[serde(default)]
    age_s: u64,
    /// Nobody judges it any more, or judging is behind: it says nothing of now.
    #[serde(default)]
    is_stale: bool,
    /// Why, or what else there is to know.
    #[serde(default)]
    note: String,
    /// What is to be said besides of when it was.
    #[serde(skip)]
    pub(super) when: String,
    /// As it came.
    #[serde(skip)]
    pub(super) line: String,
}

impl Row {
    pub(super) fn parse(line: &str) -> Result<Self, Failure> {
        let row: Self = client::row(line)?;
        Ok(Self {
            line: line.to_owned(),
            ..row
        })
    }

    /// What it can be asked for by: its assertion, and the objective that this is a rule of.
    fn names(&self) -> impl Iterator<Item = &str> {
        let is_rule = self.condition.contains(" over ");
        let objective = self.assertion.rsplit_once(": ").filter(|_| is_rule);
        std::iter::once(self.assertion.as_str()).chain(objective.map(|(objective, _)| objective))
    }

    fn value(&self) -> String {
        let value = self.value.filter(|_| self.has_value != Some(false));
        match (value, Condition::read_back(&self.condition)) {
            (Some(value), Some(condition)) => value_text(condition.signal.signal.unit, value),
            _ => String::new(),
        }
    }

    /// Why it is what it is.
    pub(super) fn reason(&self) -> String {
        let mut reason = self.first_reason();
        if !self.when.is_empty() {
            reason = format!("{reason}; {}", self.when);
        }
        if self.is_stale {
            reason = format!("{reason}; not judged for {}", age(self.age_s));
        }
        match self.revision {
            0 => reason,
            revision => format!("{reason} (revision {revision}: its rows came late)"),
        }
    }

    /// How much of what it rests on is lost. `None`: that is not known.
    fn loss(&self) -> Option<u64> {
        plain(&self.loss).parse().ok()
    }

    fn first_reason(&self) -> String {
        if !self.cause.is_empty() {
            return self.cause.clone();
        }
        let samples = plain(&self.samples);
        let rows = if samples == "1" { "sample" } else { "samples" };
        match self.value().as_str() {
            "" => self.condition.clone(),
            value => {
                let cause = top_cause(&self.evidence).map(|cause| format!("; {cause}"));
                let cause = cause.unwrap_or_default();
                format!("{value}, expected {}, {samples} {rows}{cause}", self.condition)
            }
        }
    }

    fn shown_verdict(&self) -> String {
        match self.is_stale {
            true => format!("{} (old)", self.verdict),
            false => self.verdict.clone(),
        }
    }

    pub(super) fn sentence(&self) -> String {
        let key = if self.key.is_empty() {
            String::new()
        } else {
            format!(" [{}]", self.key)
        };
        format!(
            "{}{key} since {}: {}",
            self.shown_verdict(),
            second(&self.since),
            self.reason()
        )
    }

    fn found(&self) -> Evidence {
        serde_json::from_str(&self.evidence).unwrap_or_default()
    }

    /// What each condition was held against, the causes as the kernels named them, and the worst rows.
    pub(super) fn evidence(&self) -> Vec<String> {
        let found = self.found();
        let readings = found.readings.iter().map(|reading| {
            let passed = match reading.passed {
                Some(true) => "holds",
                Some(false) => "fails",
                None => "not known",
            };
            let value = reading.value.as_deref().unwrap_or("nothing");
            format!(
                "{}: {value} of {} samples, {passed}",
                reading.condition, reading.samples
            )
        });
        let causes = found.causes.iter().map(|cause| {
            let more = match cause.evidence.as_str() {
                "" => String::new(),
                evidence => format!(": {evidence}"),
            };
            format!(
                "cause by {}: {}, {} attempts{more}",
                cause.by,
                cause.cause,
                plain(&cause.attempts)
            )
        });
        let worst = found.worst.iter().map(|row| format!("worst: {}", row_text(row)));
        let lost = self.loss().map(|loss| match loss {
            0 => "lost: nothing of the window".to_owned(),
            loss => format!("lost: {loss} of the window"),
        });
        readings.chain(causes).chain(worst).chain(lost).collect()
    }
}

#[derive(Debug, Default, Deserialize)]
struct Evidence {
    #[serde(default)]
    readings: Vec<Reading>,
    #[serde(default)]
    worst: Vec<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Debug, Deserialize)]
struct Reading {
    condition: String,
    value: Option<String>,
    samples: u64,
    passed: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Cause {
    cause: String,
    attempts: serde_json::Value,
    by: String,
    #[serde(default)]
    evidence: String,
}

/// Numbers of 64 bits come as texts.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `node web-1, at 2026-03-01 12:00:00.123, remote 10.0.0.3 5432`: what is not empty, IPv4 as people write it.
fn row_text(row: &serde_json::Map<String, serde_json::Value>) -> String {
    let parts = row.iter().filter_map(|(name, value)| {
        let text = plain(value).replace("::ffff:", "");
        (!matches!(text.as_str(), "" | "0" | "[]")).then(|| format!("{name} {text}"))
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// To the second: `2026-03-01 12:00:00`.
pub(super) fn second(time: &str) -> &str {
    time.get(..19).unwrap_or(time)
}

const COLUMNS: [(&str, Align); 7] = [
    ("VERDICT", Align::Left),
    // Left out where nothing is.
    ("SILENCED", Align::Left),
    ("SINCE (UTC)", Align::Left),
    ("ASSERTION", Align::Left),
    ("KEY", Align::Left),
    // Left out where nothing is known to be.
    ("LOST", Align::Right),
    ("WHY", Align::Left),
];

pub(super) fn text(rows: &[Row], is_history: bool) -> String {
    let cells: Vec<[Cell; 7]> = rows
        .iter()
        .map(|row| {
            let style = match row.verdict.as_str() {
                _ if row.is_stale => FAINT,
                "holds" => GOOD,
                "violated" => BAD,
                _ => anstyle::AnsiColor::Yellow.on_default(),
            };
            let time = if is_history { &row.window_to } else { &row.since };
            [
                Cell::styled(row.shown_verdict(), style),
                if row.silenced { "silenced" } else { "" }.into(),
                Cell::styled(second(time), FAINT),
                row.assertion.clone().into(),
                row.key.clone().into(),
                // Nothing is not the same as not known.
                row.loss().map_or("-".to_owned(), |loss| loss.to_string()).into(),
                row.reason().into(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let is_any_silenced = rows.iter().any(|row| row.silenced);
    let is_any_lost = rows.iter().any(|row| row.loss() > Some(0));
    let mut text = match (is_any_silenced, is_any_lost) {
        (true, true) => lines(COLUMNS, &cells),
        (true, false) => chosen([0, 1, 2, 3, 4, 6], &cells),
        (false, true) => chosen([0, 2, 3, 4, 5, 6], &cells),
        (false, false) => chosen([0, 2, 3, 4, 6], &cells),
    };
    if !is_history {
        text.push_str(&totals(rows));
    }
    text
}

/// The table of these of [`COLUMNS`].
fn chosen<const N: usize>(columns: [usize; N], cells: &[[Cell; 7]]) -> String {
    let cells = cells.iter().map(|row| columns.map(|column| row[column].clone()));
    lines(columns.map(|column| COLUMNS[column]), &cells.collect::<Vec<_>>())
}

fn lines<const N: usize>(columns: [(&'static str, Align); N], cells: &[[Cell; N]]) -> String {
    let mut table = Table::new(columns, super::colours(&io::stdout()));
    table.fit(cells);
    let mut text = table.head();
    for row in cells {
        text.push_str(&table.line(row));
    }
    text
}

/// `5 verdicts: 3 hold, 2 unknown (web-1 is silent)`.
pub(super) fn totals(rows: &[Row]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
    for row in rows {
        *counts.entry(&row.verdict).or_default() += 1;
        if row.verdict == "unknown" {
            *causes.entry(&row.cause).or_default() += 1;
        }
    }
    let each = ["violated", "pending", "unknown", "holds"]
        .into_iter()
        .filter_map(|verdict| {
            let count = counts.get(verdict)?;
            Some(format!("{count} {verdict}"))
        });
    let noun = if rows.len() == 1 { "verdict" } else { "verdicts" };
    let mut text = format!("{} {noun}: {}\n", rows.len(), each.collect::<Vec<_>>().join(", "));
    let silenced = rows.iter().filter(|row| row.silenced).count();
    if silenced > 0 {
        text.push_str(&format!(
            "{silenced} silenced: nobody is told of them, holdfast silences says why\n"
        ));
    }
    for (cause, count) in causes {
        text.push_str(&format!("{count} unknown: {cause}\n"));
    }
    for line in notes(rows) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// How many verdicts are old, and what is to be known about them.
pub(super) fn notes(rows: &[Row]) -> Vec<String> {
    let mut stale: BTreeMap<&str, usize> = BTreeMap::new();
    let mut others = BTreeSet::new();
    for row in rows {
        if row.is_stale {
            *stale.entry(&row.note).or_default() += 1;
        } else if !row.note.is_empty() {
            others.insert(row.note.as_str());
        }
    }
    let stale = stale.into_iter().map(|(note, count)| {
        let of = if count == rows.len() {
            "all".to_owned()
        } else {
            count.to_string()
        };
        format!("{of} old, which says nothing of now: {note}")
    });
    stale.chain(others.into_iter().map(str::to_owned)).collect()
}

/// Whole seconds, minutes, hours or days.
fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(verdict: &str, silenced: bool) -> Row {
        let line = serde_json::json!({
            "assertion": "a", "key": "from.node=web-1", "verdict": verdict, "since": "2026-03-01 12:00:00.5",
            "condition": "count = 0", "silenced": silenced,
        });
        Row::parse(&line.to_string()).unwrap()
    }

    #[test]
    fn what_is_silenced_is_shown_and_says_so() {
        let text = text(&[row("violated", true), row("holds", false)], false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "VERDICT   SILENCED  SINCE (UTC)          ASSERTION  KEY              WHY",
                "violated  silenced  2026-03-01 12:00:00  a          from.node=web-1  count = 0",
                "holds               2026-03-01 12:00:00  a          from.node=web-1  count = 0",
                "2 verdicts: 1 violated, 1 holds",
                "1 silenced: nobody is told of them, holdfast silences says why",
            ]
        );
    }

    #[test]
    fn what_is_lost_is_shown_where_anything_is_and_told_of_each_verdict() {
        let row = |key: &str, loss: serde_json::Value| {
            let line = serde_json::json!({
                "assertion": "a", "key": key, "verdict": "unknown", "since": "2026-03-01 12:00:00.5", "cause": "why", "loss": loss,
            });
            Row::parse(&line.to_string()).unwrap()
        };
        let rows = [
            row("a", "7".into()),
            row("b", 0.into()),
            row("c", serde_json::Value::Null),
        ];
        let lines: Vec<String> = text(&rows, false).lines().map(str::to_owned).collect();
        assert_eq!(
            lines[..4],
            [
                "VERDICT  SINCE (UTC)          ASSERTION  KEY  LOST  WHY",
                "unknown  2026-03-01 12:00:00  a          a       7  why",
                "unknown  2026-03-01 12:00:00  a          b       0  why",
                "unknown  2026-03-01 12:00:00  a          c       -  why",
            ]
        );
        let told: Vec<_> = rows.iter().flat_map(Row::evidence).collect();
        assert_eq!(told, ["lost: 7 of the window", "lost: nothing of the window"]);
        assert!(!text(&rows[1..], false).contains("LOST"));
    }

    #[test]
    fn what_nobody_judges_any_more_is_marked_and_says_why() {
        let old = serde_json::json!({
            "assertion": "a", "verdict": "holds", "since": "2026-03-01 12:00:00.5", "condition": "count = 0",
            "age_s": 725, "is_stale": true, "note": "no collector judges",
        });
        let old = Row::parse(&old.to_string()).unwrap();
        assert_eq!(
            text(&[old.clone(), row("holds", false)], false)
                .lines()
                .collect::<Vec<_>>(),
            [
                "VERDICT      SINCE (UTC)          ASSERTION  KEY              WHY",
                "holds (old)  2026-03-01 12:00:00  a                           count = 0; not judged for 12m",
                "holds        2026-03-01 12:00:00  a          from.node=web-1  count = 0",
                "2 verdicts: 2 holds",
                "1 old, which says nothing of now: no collector judges",
            ]
        );
        assert_eq!(
            notes(&[old]),
            ["all old, which says nothing of now: no collector judges"]
        );
    }

    #[test]
    fn a_rule_can_be_asked_for_by_its_objective() {
        let of = |assertion: &str, condition: &str| {
            let line =
                serde_json::json!({ "assertion": assertion, "verdict": "holds", "condition": condition });
            let row = Row::parse(&line.to_string()).unwrap();
            row.names().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            of("shop: fast: page-1h", "connect.failed_ratio < 1.44% over 1h"),
            ["shop: fast: page-1h", "shop: fast"]
        );
        assert_eq!(of("shop: fast", "connect.p99 < 5ms"), ["shop: fast"]);
    }

    #[test]
    fn where_nothing_is_silenced_there_is_no_word_of_it() {
        let text = text(&[row("holds", false)], false);
        assert!(text.starts_with("VERDICT  SINCE (UTC)"), "{text}");
        assert!(!text.to_lowercase().contains("silenced"), "{text}");
    }
}
