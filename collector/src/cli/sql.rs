//! `holdfast sql`.

use std::io::{self, Read, Write};

use anyhow::{Context, anyhow};
use holdfast_proto::v1::SqlRequest;

use super::Failure;
use super::client::Reach;

/// Run one read-only SQL statement.
///
/// It reads the tables `connections`, `attempts`, `nodes` and so on (SHOW TABLES lists them; DESCRIBE TABLE says
/// what their columns mean), and can change nothing. Ctrl-C cancels it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast sql 'DESCRIBE TABLE connections'
  holdfast sql 'SELECT remote_port, count() FROM attempts GROUP BY 1 ORDER BY 2 DESC LIMIT 10'
  holdfast sql 'SELECT quantile(0.99)(connect_us) FROM attempts WHERE remote_port = 5432'
  holdfast sql --format CSVWithNames - < report.sql > report.csv")]
pub(super) struct Args {
    /// The statement, or `-` to read it from stdin
    #[arg(value_name = "SQL", allow_hyphen_values = true, value_parser = not_an_option)]
    sql: String,

    /// One of ClickHouse's output formats, such as CSVWithNames, Vertical or JSON [default: a table]
    #[arg(long, value_name = "FORMAT", conflicts_with = "json")]
    format: Option<String>,

    #[command(flatten)]
    reach: Reach,
}

/// As two words are taken for the same, misspelled, by the command line's parser.
const SIMILAR: f64 = 0.7;

/// A statement may begin with a comment, and with nothing else that looks like an option.
fn not_an_option(text: &str) -> Result<String, String> {
    let is_comment = text.starts_with("--") && text.contains(char::is_whitespace);
    if text.starts_with('-') && text != "-" && !is_comment {
        let options = ["--format", "--json", "--collector", "--help"];
        let similar = |option: &&str| strsim::jaro_winkler(text, option);
        let nearest = options.iter().max_by(|a, b| similar(a).total_cmp(&similar(b)));
        let hint = nearest.filter(|option| similar(option) >= SIMILAR);
        let hint = hint.map_or(String::new(), |option| format!("; did you mean {option}?"));
        return Err(format!(
            "there is no such option, and no statement begins like this{hint}"
        ));
    }
    Ok(text.to_owned())
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let Args { sql, format, reach } = args;
    let request = SqlRequest {
        sql: statement(sql)?,
        format: format.unwrap_or_else(|| default_format(&reach)),
    };
    let mut client = reach.connect().await?;
    let answer = async {
        let mut chunks = client
            .sql(request)
            .await
            .map_err(|status| reach.failure(&status))?
            .into_inner();
        let mut stdout = io::stdout().lock();
        while let Some(chunk) = chunks.message().await.map_err(|status| reach.failure(&status))? {
            stdout.write_all(&chunk.data)?;
        }
        stdout.flush()?;
        Ok(())
    };
    // Leaving drops the call, and that cancels the query.
    tokio::select! {
        outcome = answer => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failure::Undone(anyhow!("cancelled"))),
    }
}

fn statement(sql: String) -> Result<String, Failure> {
    if sql != "-" {
        return Ok(sql);
    }
    let mut text = String::new();
    let read = io::stdin()
        .lock()
        .read_to_string(&mut text)
        .context("cannot read the statement from stdin");
    read.map_err(Failure::Undone)?;
    Ok(text)
}

fn default_format(reach: &Reach) -> String {
    let format = match (reach.json, super::colours(&io::stdout())) {
        (true, _) => "JSONEachRow",
        (false, true) => "PrettyCompactMonoBlock",
        (false, false) => "PrettyCompactNoEscapesMonoBlock",
    };
    format.to_owned()
}
