//! `holdfast silence` and `holdfast silences`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use anyhow::anyhow;
use holdfast_proto::v1::{Chunk, SetSilenceRequest, SilencesRequest};
use serde::Deserialize;
use tonic::Streaming;

use super::Failure;
use super::client::{Reach, print};
use super::table::{Align, Cell, FAINT, GOOD};
use crate::config::Span;

/// Have nobody told of an assertion for a while.
///
/// It is judged and shown as before, and says that it is silenced. What is not told meanwhile waits, and what then still is so is
/// told when the silence is over. A dead man's switch is never silenced. Without anything, what is silenced now is shown.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast silence 'web reaches the database' --for 2h --because 'the switch is replaced'
  holdfast silence 'web reaches the database' --key from.node=web-1 --for 1d --because 'web-1 is taken out'
  holdfast silence --label team=db --for 30m --because 'upgrade, see ticket 4711'
  holdfast silence 'web reaches the database' --end --because 'done early'

Exit codes: 0 done, 2 a wrong call or a name that there is not, 4 it could not be done.")]
pub(super) struct One {
    /// The assertion, or the objective with all of its rules
    name: Option<String>,

    /// How long, from 1s to 30d; none lasts for ever
    #[arg(long = "for", value_name = "TIME", conflicts_with = "end")]
    lasts: Option<Span>,

    /// Why, for those who wonder
    #[arg(long, value_name = "TEXT")]
    because: Option<String>,

    /// End what was declared, before its time: all silences of the name, or those for just these keys and labels
    #[arg(long)]
    end: bool,

    /// Only verdicts whose key has this part, as `holdfast verdicts` shows it; may be given several times
    #[arg(long = "key", value_name = "DIMENSION=VALUE")]
    keys: Vec<String>,

    /// Only assertions with this label, or this severity; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,

    #[command(flatten)]
    reach: Reach,
}

/// Show what is silenced, who said so, and why.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast silences
  holdfast silences --all --json | jq 'select(.said_by == \"ann@work\")'")]
pub(super) struct Args {
    /// All that there ever were
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    reach: Reach,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut client = args.reach.connect().await?;
    let silences = client
        .silences(SilencesRequest { all: args.all })
        .await
        .map_err(|status| args.reach.failure(&status))?;
    let nothing = if args.all {
        "there never was a silence"
    } else {
        "nothing is silenced"
    };
    show(&args.reach, silences.into_inner(), nothing).await
}

pub(super) async fn one(one: One) -> Result<(), Failure> {
    let request = match request(&one) {
        Ok(Some(request)) => request,
        Ok(None) => {
            let (all, reach) = (false, one.reach);
            return run(Args { all, reach }).await;
        }
        Err(text) => return Err(Failure::Usage(anyhow!(text))),
    };
    let mut client = one.reach.connect().await?;
    let silenced = client
        .set_silence(request)
        .await
        .map_err(|status| one.reach.failure(&status))?;
    show(&one.reach, silenced.into_inner(), "").await
}

/// What is asked for; `None`: what there is.
fn request(one: &One) -> Result<Option<SetSilenceRequest>, &'static str> {
    let is_bare = one.name.is_none() && one.keys.is_empty() && one.labels.is_empty();
    if is_bare && one.lasts.is_none() && !one.end && one.because.is_none() {
        return Ok(None);
    }
    if one.name.is_none() && one.labels.is_empty() {
        return Err("what is to be silent? write the name of an assertion, or --label KEY=VALUE");
    }
    let for_ns = match (&one.lasts, one.end) {
        (None, true) => 0,
        (None, false) => return Err("for how long? --for 2h; or --end for what there is"),
        (Some(Span(time)), _) if time.is_zero() => {
            return Err("a silence for no time is none; --end ends one");
        }
        (Some(Span(time)), _) => u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
    };
    let Some(because) = &one.because else {
        return Err("why? --because \"...\" says it to those who wonder");
    };
    let labels: std::collections::HashMap<_, _> = one.labels.iter().cloned().collect();
    if labels.len() < one.labels.len() {
        return Err("one label has two values");
    }
    Ok(Some(SetSilenceRequest {
        name: one.name.clone().unwrap_or_default(),
        keys: one.keys.clone(),
        labels,
        for_ns,
        because: because.clone(),
        said_by: caller(),
    }))
}

/// Who calls, as this machine knows it: `ann@work`. Who became root by sudo is still who he was.
fn caller() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()));
    let user = named.unwrap_or_else(|| {
        let id = std::fs::metadata("/proc/self").map(|process| process.uid());
        id.map_or_else(|_| "unknown".to_owned(), |id| format!("uid {id}"))
    });
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => user,
        host => format!("{user}@{host}"),
    }
}

async fn show(reach: &Reach, rows: Streaming<Chunk>, nothing: &str) -> Result<(), Failure> {
    print(reach, rows, COLUMNS, |row: &Row| [row.cells()], nothing).await
}

const COLUMNS: [(&str, Align); 6] = [
    ("STATE", Align::Left),
    ("UNTIL (UTC)", Align::Left),
    ("ASSERTION", Align::Left),
    ("ONLY", Align::Left),
    ("BY", Align::Left),
    ("BECAUSE", Align::Left),
];

#[derive(Debug, Deserialize)]
struct Row {
    state: String,
    until: String,
    assertion: String,
    keys: Vec<String>,
    labels: BTreeMap<String, String>,
    said_by: String,
    because: String,
    ended_by: String,
    ended_because: String,
}

impl Row {
    fn cells(&self) -> [Cell; COLUMNS.len()] {
        let labels = self.labels.iter().map(|(name, value)| format!("{name}={value}"));
        let only: Vec<_> = self.keys.iter().cloned().chain(labels).collect();
        let because = match self.ended_by.as_str() {
            "" => self.because.clone(),
            by => format!("{}; ended by {by}: {}", self.because, self.ended_because),
        };
        [
            Cell::styled(
                self.state.clone(),
                if self.state == "active" { GOOD } else { FAINT },
            ),
            Cell::styled(self.until.get(..19).unwrap_or(&self.until), FAINT),
            if self.assertion.is_empty() {
                Cell::styled("any", FAINT)
            } else {
                self.assertion.clone().into()
            },
            only.join(", ").into(),
            self.said_by.clone().into(),
            because.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        one: One,
    }

    fn asked(line: &[&str]) -> Result<Option<SetSilenceRequest>, String> {
        let line = Line::try_parse_from([&["silence"], line].concat()).map_err(|error| error.to_string())?;
        request(&line.one).map_err(str::to_owned)
    }

    fn check_refused(line: &[&str], expected: &str) {
        let refused = asked(line).unwrap_err();
        assert!(refused.contains(expected), "{line:?}: {refused}");
    }

    #[test]
    fn a_silence_says_of_what_how_long_and_why() {
        let request = asked(&[
            "a",
            "--for",
            "2h",
            "--because",
            "b",
            "--key",
            "from.node=web-1",
            "--label",
            "x=y",
        ]);
        let request = request.unwrap().unwrap();
        assert_eq!((&*request.name, &*request.because), ("a", "b"));
        assert_eq!(request.for_ns, 7_200_000_000_000);
        assert_eq!(request.keys, ["from.node=web-1"]);
        assert_eq!(request.labels["x"], "y");
        assert!(!request.said_by.is_empty());
        let end = asked(&["a", "--end", "--because", "b"]).unwrap().unwrap();
        assert_eq!(end.for_ns, 0);
        assert_eq!(asked(&[]), Ok(None));
    }

    #[test]
    fn what_is_missing_is_asked_for() {
        check_refused(&["a", "--because", "b"], "for how long?");
        check_refused(&["a", "--for", "2h"], "why?");
        check_refused(&["--for", "2h", "--because", "b"], "what is to be silent?");
        check_refused(
            &["--key", "from.node=a", "--for", "2h", "--because", "b"],
            "what is to be silent?",
        );
        check_refused(&["a", "--for", "0s", "--because", "b"], "for no time");
        check_refused(
            &["a", "--for", "2h", "--end", "--because", "b"],
            "cannot be used with",
        );
        check_refused(&["a", "--for", "soon", "--because", "b"], "soon");
        check_refused(
            &["a", "--label", "x", "--for", "2h", "--because", "b"],
            "KEY=VALUE",
        );
    }

    #[test]
    fn a_silence_is_shown_with_who_said_so() {
        let row: Row = serde_json::from_str(
            r#"{"state":"ended","until":"2026-03-01 12:00:00.5","assertion":"","keys":["from.node=web-1"],
                "labels":{"team":"db"},"said_by":"ann@work","because":"repair","ended_by":"bob@home",
                "ended_because":"done"}"#,
        )
        .unwrap();
        assert_eq!(
            row.cells().map(|cell| cell.text).join("|"),
            "ended|2026-03-01 12:00:00|any|from.node=web-1, team=db|ann@work|repair; ended by bob@home: done"
        );
    }
}
