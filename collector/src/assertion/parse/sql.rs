//! `sql:`: a question in the words of the one who asserts. What it may do the store decides when it is asked; what can be
//! told from the text alone is told at once, with its place.

use super::{Fields, Problem, text};
use crate::assertion::condition::Condition;
use crate::assertion::document::{Node, Source};
use crate::assertion::problem::Place;
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

/// Table functions that make their rows up or out of a question: they read nothing of their own.
const MADE_UP: [&str; 8] = [
    "numbers",
    "numbers_mt",
    "zeros",
    "zeros_mt",
    "values",
    "view",
    "generateseries",
    "generate_series",
];

/// What may stand on the right of `IN` besides: values, not tables.
const LISTS: [&str; 3] = ["tuple", "array", "range"];

/// Functions in whose parentheses FROM is not about tables: `extract(day FROM time)`.
const WITH_FROM: [&str; 4] = ["extract", "trim", "substring", "overlay"];

fn check(source: Source<'_>, node: &Node, sql: &str) -> Result<(), Problem> {
    let of_all = |message: String| Err(source.problem(node.place, message));
    let tokens = match tokens(sql) {
        Ok(tokens) => tokens,
        Err((at, message)) => return Err(source.problem(place_of(source, node, sql, at), message)),
    };
    if let Some((at, message)) = fault(&tokens) {
        return Err(source.problem(place_of(source, node, sql, at), message));
    }
    for parameter in ["from", "until"] {
        if !sql.contains(&format!("{{{parameter}:")) {
            return of_all(format!(
                "`sql` does not use the window: write {{{parameter}:DateTime64(9, 'UTC')}} where its {} goes",
                if parameter == "from" { "begin" } else { "end" }
            ));
        }
    }
    // Which columns `*` stands for is not known here.
    let is_of_all = |pair: &[Token]| {
        let is_begun = ["select", "distinct"].iter().any(|word| pair[0].is(word));
        let is_begun = is_begun || matches!(pair[0].what, What::Symbol(',' | '.'));
        is_begun && pair[1].what == What::Symbol('*')
    };
    let is_value = |token: &Token| token.is("value") || token.is("columns");
    if !tokens.iter().any(is_value) && !tokens.windows(2).any(is_of_all) {
        return of_all(
            "`sql` gives no column `value`, which is what `expect` is about: write `... AS value`".to_owned(),
        );
    }
    Ok(())
}

/// Where that byte of a question stands in its file. The question may be indented, folded or in quotes there, so it is
/// told by how often the same word stood in it before.
fn place_of(source: Source<'_>, node: &Node, sql: &str, at: usize) -> Place {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let rest = &sql[at..];
    let end = rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
    let end = end.max(rest.chars().next().map_or(0, char::len_utf8));
    let word = &rest[..end];
    if word.is_empty() {
        return node.place;
    }
    let before = sql
        .match_indices(word)
        .take_while(|(other, _)| *other < at)
        .count();
    let lines = source
        .text
        .lines()
        .enumerate()
        .skip(node.place.line.saturating_sub(1));
    let found = lines.flat_map(|(number, line)| {
        let skipped = match number + 1 == node.place.line {
            true => node.place.column.saturating_sub(1),
            false => 0,
        };
        let begin = line
            .char_indices()
            .nth(skipped)
            .map_or(line.len(), |(begin, _)| begin);
        line[begin..].match_indices(word).map(move |(offset, _)| Place {
            line: number + 1,
            column: line[..begin + offset].chars().count() + 1,
        })
    });
    found.into_iter().nth(before).unwrap_or(node.place)
}

/// What is wrong with a question, and at which byte.
fn fault(tokens: &[Token]) -> Option<(usize, String)> {
    let first = tokens.first();
    if !first.is_some_and(|first| first.is("select") || first.is("with")) {
        let begin = first.map_or("", |first| first.text.as_str());
        return Some((
            first.map_or(0, |first| first.at),
            format!("`sql` is one SELECT, which reads and does nothing else; this begins with `{begin}`"),
        ));
    }
    let semicolon = tokens.iter().position(|token| token.what == What::Symbol(';'));
    if let Some(end) = semicolon
        && end + 1 < tokens.len()
    {
        return Some((
            tokens[end + 1].at,
            "`sql` is one SELECT: nothing may follow its `;`".to_owned(),
        ));
    }
    let mut tables = Tables::default();
    for (at, token) in tokens.iter().enumerate() {
        let next = |more: usize| tokens.get(at + more);
        let is_next = |symbol: char| next(1).is_some_and(|next| next.what == What::Symbol(symbol));
        let is_called = is_next('(');
        let text = &token.text;
        let reads_table = tables.take(tokens, at);
        if token.is_name() && is_next('.') && OF_THE_SERVER.contains(&text.as_str()) {
            let message = format!(
                "`{text}.` is about the server, not about what was seen: `sql` reads Holdfast's tables and views only"
            );
            return Some((token.at, message));
        }
        let is_reaching = token.is_name() && is_called && REACHING.contains(&text.as_str());
        if is_reaching || (reads_table && is_called && !MADE_UP.contains(&text.as_str())) {
            let message =
                format!("`{text}()` reaches beyond the database: `sql` reads its tables and views only");
            return Some((token.at, message));
        }
        if token.what != What::Word {
            continue;
        }
        if text == "into" && next(1).is_some_and(|next| next.is("outfile")) {
            return Some((
                token.at,
                "`INTO OUTFILE` writes a file: `sql` only reads".to_owned(),
            ));
        }
        if text == "format" && !is_called {
            let message = "`sql` has no FORMAT: its answer is read by the collector";
            return Some((token.at, message.to_owned()));
        }
        let is_set =
            next(1).is_some_and(Token::is_name) && next(2).is_some_and(|next| next.what == What::Symbol('='));
        if text == "settings" && is_set {
            let message = "`sql` has no SETTINGS: what it may use is for the collector to say";
            return Some((token.at, message.to_owned()));
        }
    }
    None
}

/// Where in a question a table is named next.
#[derive(Default)]
struct Tables {
    /// Of the whole question, and of each parenthesis that is open.
    levels: Vec<Level>,
}

#[derive(Clone, Copy, Default)]
struct Level {
    /// Tables are listed: after a comma comes another.
    is_listing: bool,
    /// The next name is that of a table.
    is_next: bool,
    /// FROM is not about tables.
    is_call_with_from: bool,
}

impl Tables {
    /// Takes the next token; whether it names a table, or a function in the place of one.
    fn take(&mut self, tokens: &[Token], at: usize) -> bool {
        let token = &tokens[at];
        let before = |less: usize| at.checked_sub(less).map(|before| &tokens[before]);
        let was = |less: usize, keyword: &str| before(less).is_some_and(|token| token.is(keyword));
        if self.levels.is_empty() {
            self.levels.push(Level::default());
        }
        let depth = self.levels.len() - 1;
        let level = &mut self.levels[depth];
        match token.what {
            What::Symbol('(') => {
                let inner = Level {
                    is_listing: level.is_next,
                    is_next: level.is_next,
                    is_call_with_from: before(1)
                        .is_some_and(|name| name.is_name() && WITH_FROM.contains(&name.text.as_str())),
                };
                level.is_next = false;
                self.levels.push(inner);
                return false;
            }
            What::Symbol(')') => {
                self.levels.pop();
                return false;
            }
            What::Symbol(',') => {
                level.is_next = level.is_listing;
                return false;
            }
            What::Symbol(_) | What::Text => {
                return false;
            }
            What::Word | What::Quoted => {}
        }
        if token.what == What::Word {
            match token.text.as_str() {
                // `a IS DISTINCT FROM b` compares.
                "from" if was(1, "distinct") && (was(2, "is") || was(2, "not")) => return false,
                "from" if level.is_call_with_from => return false,
                "from" => {
                    (level.is_listing, level.is_next) = (true, true);
                    return false;
                }
                // What it joins are values.
                "join" if was(1, "array") => {
                    (level.is_listing, level.is_next) = (false, false);
                    return false;
                }
                "join" => {
                    (level.is_listing, level.is_next) = (true, true);
                    return false;
                }
                "select" | "where" | "prewhere" | "group" | "having" | "window" | "qualify" | "order"
                | "limit" | "offset" | "union" | "intersect" | "except" => {
                    (level.is_listing, level.is_next) = (false, false);
                    return false;
                }
                _ => {}
            }
        }
        // Right of IN a table may stand, also one that a function gives.
        let is_in = was(1, "in") && !LISTS.contains(&token.text.as_str());
        let is_table = level.is_next || is_in;
        // After the name of a database comes that of the table.
        let is_database = tokens
            .get(at + 1)
            .is_some_and(|next| next.what == What::Symbol('.'));
        level.is_next = is_table && is_database;
        is_table
    }
}

/// A part of a question.
#[derive(Debug)]
struct Token {
    what: What,
    /// Of words: in lower case.
    text: String,
    /// The byte it begins at.
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// A keyword, a name or a number.
    Word,
    /// A name in quotes.
    Quoted,
    /// A text in quotes.
    Text,
    Symbol(char),
}

impl Token {
    fn is(&self, name: &str) -> bool {
        self.is_name() && self.text == name
    }

    fn is_name(&self) -> bool {
        matches!(self.what, What::Word | What::Quoted)
    }
}

/// The parts of a question without blanks and comments. What ClickHouse would read as another kind of quote than people
/// expect is a fault: something could hide behind it.
fn tokens(sql: &str) -> Result<Vec<Token>, (usize, String)> {
    let mut tokens = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let at = sql.len() - rest.len();
        // The name of a parameter is no keyword: `{from:DateTime64(9, 'UTC')}`.
        let is_parameter = tokens
            .last()
            .is_some_and(|token: &Token| token.what == What::Symbol('{'));
        let mut put = |what, text: &str, at| {
            tokens.push(Token {
                what,
                text: text.to_ascii_lowercase(),
                at,
            });
        };
        if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            let what = if is_parameter { What::Text } else { What::Word };
            put(what, &rest[..end], at);
            rest = &rest[end..];
        } else if let Some(comment) = rest
            .strip_prefix("--")
            .or(rest.strip_prefix("# "))
            .or(rest.strip_prefix("#!"))
        {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(comment) = rest.strip_prefix("/*") {
            rest = comment.split_once("*/").map_or("", |(_, after)| after);
        } else if matches!(first, '\'' | '"' | '`') {
            let Some(length) = quoted(&rest[1..], first) else {
                return Err((at, format!("this {first} has no end")));
            };
            let inside = &rest[1..=length];
            if first == '\'' {
                put(What::Text, inside, at);
            } else if inside.contains('\\') {
                return Err((at, "a name in quotes has no backslash here".to_owned()));
            } else {
                put(What::Quoted, inside, at + 1);
            }
            rest = &rest[length + 2..];
        } else if matches!(first, '‘' | '’' | '“' | '”') {
            return Err((at, format!("{first} is a quote of prose: write ' or \"")));
        } else if first == '$' {
            return Err((
                at,
                "`$` begins another kind of text in quotes: write '".to_owned(),
            ));
        } else {
            if !first.is_whitespace() {
                put(What::Symbol(first), "", at);
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    Ok(tokens)
}

/// How many bytes stand before the quote that ends a text.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
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
        let found = tokens(
            "SELECT count() AS value /* file() */ FROM t WHERE x = 'it''s file(1)' -- url()\n AND y # z\n",
        )
        .unwrap();
        let names = found.iter().filter(|token| token.is_name());
        let found: Vec<_> = names.map(|token| token.text.as_str()).collect();
        assert_eq!(
            found,
            [
                "select", "count", "as", "value", "from", "t", "where", "x", "and", "y"
            ]
        );
    }

    fn check(sql: &str) -> Option<(usize, String)> {
        match tokens(sql) {
            Ok(tokens) => fault(&tokens),
            Err(fault) => Some(fault),
        }
    }

    #[test]
    fn what_reaches_beyond_the_database_is_refused_however_it_is_written() {
        for (sql, at, message) in [
            ("SELECT 1 FROM system.one", "system", "`system.` is about"),
            ("SELECT 1 FROM SYSTEM . one", "SYSTEM", "`system.` is about"),
            ("SELECT 1 FROM `system`.`one`", "system", "`system.` is about"),
            (
                "SELECT 1 FROM \"system\"/**/.\"tables\"",
                "system",
                "`system.` is about",
            ),
            ("SELECT 1 FROM system -- x\n .one", "system", "`system.` is about"),
            (
                "SELECT 1 FROM \"sys\\x74em\".one",
                "\"sys",
                "a name in quotes has no backslash",
            ),
            ("SELECT $$'$$ FROM system.one WHERE $$'$$", "$$", "`$` begins"),
            ("SELECT 1 FROM “system”.one", "“", "“ is a quote of prose"),
            (
                "SELECT fIlE/**/('/etc/passwd')",
                "fIlE",
                "`file()` reaches beyond",
            ),
            (
                "SELECT 1 FROM icebergLocal('x')",
                "icebergLocal",
                "`iceberglocal()` reaches",
            ),
            (
                "SELECT 1 FROM `icebergLocal` ('x')",
                "icebergLocal",
                "`iceberglocal()` reaches",
            ),
            ("SELECT 1 FROM t, f('x')", "f('x", "`f()` reaches"),
            (
                "SELECT 1 FROM t JOIN u ON g(t.x) = u.x, f('x')",
                "f('x",
                "`f()` reaches",
            ),
            (
                "SELECT 1 FROM t LEFT JOIN f('x') AS u USING x",
                "f('x",
                "`f()` reaches",
            ),
            ("SELECT 1 FROM (FROM f('x') SELECT 1)", "f('x", "`f()` reaches"),
            ("SELECT 1 WHERE x IN f('x')", "f('x", "`f()` reaches"),
            (
                "SELECT {from:DateTime64(9, '}')} FROM f('x')",
                "f('x",
                "`f()` reaches",
            ),
            (
                "SELECT 1; DROP TABLE connections",
                "DROP",
                "`sql` is one SELECT: nothing",
            ),
            (
                "SELECT 1 SETTINGS readonly=0",
                "SETTINGS",
                "`sql` has no SETTINGS",
            ),
            ("SELECT 1 FORMAT Null", "FORMAT", "`sql` has no FORMAT"),
            ("SELECT 1 INTO OUTFILE 'x'", "INTO", "`INTO OUTFILE` writes"),
            ("DROP TABLE connections", "DROP", "`sql` is one SELECT, which"),
            ("SELECT 'x", "'x", "this ' has no end"),
        ] {
            let (found, said) = check(sql).unwrap_or_else(|| panic!("{sql} is refused"));
            assert!(said.starts_with(message), "{sql}: {said}");
            assert_eq!(Some(found), sql.find(at), "{sql}: {said}");
        }
    }

    #[test]
    fn what_only_reads_is_right() {
        for sql in [
            "SELECT count() AS value FROM attempts WHERE role = 'active' GROUP BY node ;  -- the end",
            "WITH a AS (SELECT f(x) FROM t) SELECT g(y), h(z) FROM a, default.b WHERE k(x) > 1 ORDER BY l(x), m(y)",
            "SELECT sum(number) AS value FROM numbers(10)",
            "SELECT 1 FROM t WHERE at > {from:DateTime64(9, 'UTC')} AND at <= {until:DateTime64(9, 'UTC')}",
            "SELECT extract(day FROM toDate(x)), trim(BOTH ' ' FROM lower(y)) FROM t",
            "SELECT 1 FROM t WHERE a IS NOT DISTINCT FROM lower(b) AND c IN tuple(1, 2) AND d IN (1, 2)",
            "SELECT i FROM t ARRAY JOIN range(3) AS i, lower(x) AS j",
            "SELECT system, settings FROM t AS \"a b\" WHERE settings = 1 AND it = 'SETTINGS a = 1; DROP'",
        ] {
            assert_eq!(check(sql), None, "{sql}");
        }
    }

    #[test]
    fn a_fault_has_the_place_of_its_word_in_its_file() {
        let window = "{from:DateTime} < {until:DateTime}";
        let check = |sql: &str, line: usize, word: &str, column: usize| {
            let text = format!(
                "assertions:\n  - name: a system\n    sql: {sql}\n    expect: value < 1\n    over: 1m\n"
            );
            let sources = [Source {
                file: "a.yaml",
                text: &text,
            }];
            let problems = super::super::set(&sources, |_| Vec::new()).expect_err(&text);
            assert_eq!(
                (problems[0].place.line, problems[0].place.column),
                (line, column),
                "{}",
                problems[0]
            );
            let found = text.lines().nth(line - 1).unwrap();
            assert!(found[column - 1..].starts_with(word), "{text}");
        };
        check(
            &format!("SELECT 'a system' AS value FROM system.one WHERE {window}"),
            3,
            "system",
            42,
        );
        check(
            &format!("\"SELECT 1 AS value FROM file('x') WHERE {window}\""),
            3,
            "file",
            34,
        );
        for style in ["|", ">-"] {
            let sql = format!(
                "{style}\n      SELECT 1 AS value -- a system\n      FROM system.one\n      WHERE {window}"
            );
            // Folded, the comment takes the rest with it.
            let sql = if style == "|" {
                sql
            } else {
                sql.replace("-- a system", "")
            };
            check(&sql, 5, "system", 12);
        }
        let no_value = format!("SELECT 1 WHERE {window}");
        check(&no_value, 3, "SELECT", 10);
    }
}
