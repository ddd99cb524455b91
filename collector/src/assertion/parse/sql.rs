//! `sql:`: a question in the words of the one who asserts. What it may do the store decides when it is asked; what can be
//! told from the text alone is told at once, with its place.

use super::{Fields, Problem, text};
use crate::assertion::condition::Condition;
use crate::assertion::document::{Node, Source};
use crate::assertion::signal::Rows;

/// Functions of ClickHouse that reach beyond the database's tables and views, in lower case: to files, networks, other
/// servers, and what is below tables.
const REACHING: [&str; 34] = [
    "arrowflight",
    "deltalake",
    "dictionary",
    "fuzzjson",
    "hudi",
    "iceberg",
    "loop",
    "merge",
    "mergetreeanalyzeindexes",
    "mergetreeindex",
    "mergetreeprojection",
    "ytsaurus",
    "file",
    "filecluster",
    "url",
    "urlcluster",
    "s3",
    "s3cluster",
    "gcs",
    "hdfs",
    "hdfscluster",
    "azureblobstorage",
    "remote",
    "remotesecure",
    "cluster",
    "clusterallreplicas",
    "mysql",
    "postgresql",
    "mongodb",
    "redis",
    "sqlite",
    "odbc",
    "jdbc",
    "executable",
];

/// Databases that are the server's own.
const OF_THE_SERVER: [&str; 2] = ["system", "information_schema"];

/// The question; none where there is no `sql`.
pub(super) fn question(fields: &Fields<'_>) -> Result<Option<String>, Problem> {
    let Some(node) = fields.get("sql") else {
        return Ok(None);
    };
    for other in ["from", "to", "where", "ignore", "by", "quorum"] {
        if let Some(node) = fields.get(other) {
            let message =
                format!("`{other}` does not go with `sql`: the question itself says what it is about");
            return Err(fields.source.problem(node.place, message));
        }
    }
    let sql = text(fields.source, node)?.trim();
    check(fields.source, node, sql)?;
    Ok(Some(sql.to_owned()))
}

fn check(source: Source<'_>, node: &Node, sql: &str) -> Result<(), Problem> {
    let fault = |message: String| Err(source.problem(node.place, message));
    let words = words(sql);
    let first = words.first().map_or("", |word| word.text.as_str());
    if !matches!(first, "select" | "with") {
        return fault(format!(
            "`sql` is one SELECT, which reads and does nothing else; this begins with `{first}`"
        ));
    }
    let is_reaching = |word: &&Word| word.is_called && REACHING.contains(&word.text.as_str());
    if let Some(Word { text, .. }) = words.iter().find(is_reaching) {
        return fault(format!(
            "`{text}()` reaches beyond the database: `sql` reads its tables and views only"
        ));
    }
    let is_of_the_server = |word: &&Word| word.has_dot && OF_THE_SERVER.contains(&word.text.as_str());
    if let Some(Word { text, .. }) = words.iter().find(is_of_the_server) {
        return fault(format!(
            "`{text}.` is about the server, not about what was seen: `sql` reads Holdfast's tables and views only"
        ));
    }
    if words
        .windows(2)
        .any(|pair| pair[0].text == "into" && pair[1].text == "outfile")
    {
        return fault("`INTO OUTFILE` writes a file: `sql` only reads".to_owned());
    }
    if words.iter().any(|word| word.text == "format" && !word.is_called) {
        return fault("`sql` has no FORMAT: its answer is read by the collector".to_owned());
    }
    for parameter in ["from", "until"] {
        if !sql.contains(&format!("{{{parameter}:")) {
            return fault(format!(
                "`sql` does not use the window: write {{{parameter}:DateTime64(9, 'UTC')}} where its {} goes",
                if parameter == "from" { "begin" } else { "end" }
            ));
        }
    }
    Ok(())
}

/// A word of a statement.
#[derive(Debug)]
struct Word {
    /// In lower case.
    text: String,
    /// A parenthesis follows.
    is_called: bool,
    /// A dot follows: it is the name of what something is in.
    has_dot: bool,
}

/// The words of a statement, without what is text or a comment. Names in quotes are words too.
fn words(sql: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let next = after.strip_prefix(['"', '`']).unwrap_or(after).trim_start();
            words.push(Word {
                text: word.to_ascii_lowercase(),
                is_called: next.starts_with('('),
                has_dot: next.starts_with('.'),
            });
            rest = after;
        } else if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else if first == '\'' {
            rest = behind_quote(&rest[1..]);
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    words
}

fn behind_quote(text: &str) -> &str {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '\'' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

/// `value` is what `sql` gives, and nothing else is asserted of it.
pub(super) fn check_conditions(
    fields: &Fields<'_>,
    expect: &[Condition],
    is_sql: bool,
) -> Result<(), Problem> {
    let is_value = |condition: &Condition| condition.signal.signal.rows == Rows::Sql;
    let other = expect.iter().find(|condition| is_value(condition) != is_sql);
    match other {
        None => Ok(()),
        Some(condition) if is_sql => Err(fields.wrong(
            "expect",
            &format!(
                "about `value` where there is `sql`; `{}` is not",
                condition.signal
            ),
        )),
        Some(_) => Err(fields.wrong("expect", "about `value` only with `sql`, which says what it is")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_quoted_is_no_word() {
        let found =
            words("SELECT count() AS value /* file() */ FROM t WHERE x = 'it''s file(1)' -- url()\n AND y");
        let found: Vec<_> = found.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(
            found,
            [
                "select", "count", "as", "value", "from", "t", "where", "x", "and", "y"
            ]
        );
    }

    #[test]
    fn a_name_in_quotes_is_a_word_and_what_is_in_it_is_told_by_its_dot() {
        for text in [
            "system.one",
            "SYSTEM . one",
            "`system`.`one`",
            "\"system\" .\"one\"",
        ] {
            let found = words(text);
            assert_eq!(
                (found[0].text.as_str(), found[0].has_dot),
                ("system", true),
                "{text}"
            );
        }
        assert!(words("`mergeTreeIndex` (a)")[0].is_called);
        assert!(!words("SELECT system FROM t")[1].has_dot);
    }
}
