//! `holdfast explain`.

use std::io::{self, Write};

use holdfast_proto::v1::{ExplainRequest, VerdictsRequest};
use serde_json::{Value, json};

use super::Failure;
use super::client::{Lines, Reach};
use super::verdicts::{self, Row};

/// Say what an assertion means, how the store is asked, and what was found last.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast explain 'web reaches the database'")]
pub(super) struct Args {
    /// The name of an assertion that the collector judges, or of an objective
    #[arg(value_name = "NAME")]
    name: String,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let request = ExplainRequest {
        name: args.name.clone(),
    };
    let chunks = client
        .explain(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    let mut lines = Lines::new(chunks.into_inner());
    let mut text = String::new();
    while let Some(more) = lines.next().await.map_err(|status| reach.failure(&status))? {
        text.push_str(&more);
    }
    let request = VerdictsRequest {
        name: args.name,
        history_ns: 0,
    };
    let rows = verdicts::fetch(reach, request).await?;
    let mut stdout = io::stdout().lock();
    if reach.json {
        writeln!(stdout, "{}", object(&text, &rows)?)?;
        return Ok(stdout.flush()?);
    }
    stdout.write_all(text.as_bytes())?;
    writeln!(stdout, "\nVerdicts")?;
    for row in &rows {
        writeln!(stdout, "  {}", row.sentence())?;
        for line in row.evidence() {
            writeln!(stdout, "    {line}")?;
        }
    }
    for note in verdicts::notes(&rows) {
        writeln!(stdout, "  {note}")?;
    }
    if rows.is_empty() {
        writeln!(stdout, "  none yet")?;
    }
    stdout.flush()?;
    Ok(())
}

/// What is said, and each verdict as `holdfast verdicts --json` has it.
fn object(text: &str, rows: &[Row]) -> Result<Value, Failure> {
    let parsed = rows.iter().map(|row| serde_json::from_str(&row.line));
    let verdicts: Vec<Value> = parsed
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::Undone(error.into()))?;
    Ok(json!({ "text": text, "verdicts": verdicts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_objects_and_no_texts() {
        let line = r#"{"assertion":"a","verdict":"holds","condition":"connect.count > 1","value":2.5}"#;
        let object = object("a\n", &[Row::parse(line).unwrap()]).unwrap();
        assert_eq!(object["text"], "a\n");
        assert_eq!(object["verdicts"][0]["value"], 2.5);
    }
}
