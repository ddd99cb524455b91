//! YAML as a tree whose every node knows its place. What could make a small file large or its meaning unclear is
//! refused: anchors and aliases, tags, several documents, keys given twice, and whatever is deeper or larger than
//! people write.

use saphyr_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::{Place, Problem};

/// Largest file. Thousands of assertions fit.
pub const FILE_BYTES: usize = 1 << 20;
/// Longest line. Each value of it is looked for in it.
const LINE_CHARS: usize = 2_000;
/// Values in a file, keys included.
const NODES: usize = 100_000;
/// Deepest nesting: a test's lists are four deep.
const DEPTH: usize = 16;

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `offset`: how many characters of the line stand before the text's first; none where the text is not in the
    /// file as it is (folded, escaped), so that a place in it cannot be told.
    Scalar {
        text: String,
        offset: Option<usize>,
    },
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    /// Nothing at all: `key:`.
    Empty,
}

/// A file that was read.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    pub fn problem(&self, place: Place, message: impl Into<String>) -> Problem {
        Problem::new(self.file, self.text, place, message)
    }

    /// A fault at a character of a scalar.
    pub fn problem_within(&self, node: &Node, character: usize, message: impl Into<String>) -> Problem {
        let place = match node.value {
            Value::Scalar {
                offset: Some(offset), ..
            } => node.place.right(offset + character),
            _ => node.place,
        };
        self.problem(place, message)
    }
}

impl Node {
    pub fn what(&self) -> &'static str {
        match self.value {
            Value::Scalar { .. } => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map of keys and values",
            Value::Empty => "nothing",
        }
    }
}

/// A list or a map that is not complete yet.
enum Open {
    List(Vec<Node>),
    Map(Vec<(Node, Node)>, Option<Node>),
}

/// Reads a file; `None` if there is nothing in it.
pub fn read(source: Source<'_>) -> Result<Option<Node>, Problem> {
    if source.text.len() > FILE_BYTES {
        let message = format!("a file of assertions has at most {FILE_BYTES} bytes, this one has more");
        return Err(Problem {
            file: source.file.to_owned(),
            place: Place { line: 1, column: 1 },
            message,
            // Its first line may be all of it.
            text: String::new(),
        });
    }
    let lines: Vec<&str> = source.text.lines().collect();
    if let Some(at) = lines
        .iter()
        .position(|line| line.chars().nth(LINE_CHARS).is_some())
    {
        let place = Place {
            line: at + 1,
            column: LINE_CHARS + 1,
        };
        return Err(Problem {
            file: source.file.to_owned(),
            place,
            message: format!("a line has at most {LINE_CHARS} characters"),
            text: String::new(),
        });
    }
    let mut open: Vec<(Place, Open)> = Vec::new();
    let mut root = None;
    let mut nodes = 0;
    let mut documents = 0;
    for event in Parser::new_from_str(source.text) {
        let (event, span) = event.map_err(|error| {
            let mark = error.marker();
            let place = Place {
                line: mark.line().max(1),
                column: mark.col() + 1,
            };
            source.problem(place, no_yaml(error.info()))
        })?;
        let place = place(&span);
        nodes += 1;
        if nodes > NODES {
            return Err(source.problem(place, format!("more than {NODES} values in one file")));
        }
        let done = match event {
            Event::Alias(_) => return Err(source.problem(place, ALIASES)),
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor != 0 =>
            {
                return Err(source.problem(place, ALIASES));
            }
            Event::Scalar(_, _, _, Some(_))
            | Event::SequenceStart(_, Some(_))
            | Event::MappingStart(_, Some(_)) => {
                return Err(source.problem(place, "tags (!...) mean nothing here; leave it out"));
            }
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(source.problem(place, "one document a file: make this a file of its own"));
                }
                continue;
            }
            Event::Scalar(text, style, ..) => Node {
                place,
                value: scalar(&lines, &text, style, &span),
            },
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() == DEPTH {
                    return Err(source.problem(place, format!("nested deeper than {DEPTH}")));
                }
                let list = matches!(event, Event::SequenceStart(..));
                open.push((
                    place,
                    if list {
                        Open::List(Vec::new())
                    } else {
                        Open::Map(Vec::new(), None)
                    },
                ));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some((place, Open::List(items))) => Node {
                    place,
                    value: Value::List(items),
                },
                Some((place, Open::Map(entries, _))) => Node {
                    place,
                    value: Value::Map(entries),
                },
                None => continue,
            },
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
        };
        match open.last_mut() {
            None => root = Some(done),
            Some((_, Open::List(items))) => items.push(done),
            Some((_, Open::Map(entries, key))) => match key.take() {
                Some(name) => entries.push((name, done)),
                None => *key = Some(new_key(source, entries, done)?),
            },
        }
    }
    Ok(root.filter(|node| node.value != Value::Empty))
}

const ALIASES: &str =
    "anchors and aliases (&name, *name) are not supported: write it out, or make it a group";

/// What the parser says, and of what people run into what to do.
fn no_yaml(said: &str) -> String {
    const ADVICE: [(&str, &str); 9] = [
        (
            "mapping values are not allowed",
            "a text with `: ` in it stands in quotes, and the keys of one map begin in one column",
        ),
        (
            "unexpected character",
            "a text that begins with it stands in quotes",
        ),
        ("unknown anchor", ALIASES),
        ("quoted scalar", "the quote that begins here has to be closed"),
        ("tab", "indent with blanks, not with tabs"),
        (
            "expected key",
            "the keys of one map begin in one column; is this line, or one above it, moved?",
        ),
        (
            "expected '-'",
            "the keys of one map begin in one column; is this line, or one above it, moved?",
        ),
        ("expected ','", "a bracket above has to be closed"),
        ("illegal placement of ':'", "a bracket above has to be closed"),
    ];
    match ADVICE.iter().find(|(part, _)| said.contains(part)) {
        Some((_, advice)) => format!("this is no YAML: {said}; {advice}"),
        None => format!("this is no YAML: {said}"),
    }
}

fn place(span: &Span) -> Place {
    Place {
        line: span.start.line(),
        column: span.start.col() + 1,
    }
}

fn scalar(lines: &[&str], text: &str, style: ScalarStyle, span: &Span) -> Value {
    if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null") {
        return Value::Empty;
    }
    let quotes = usize::from(matches!(
        style,
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted
    ));
    // As it stands in the file, or a place in it would be another one there.
    let line = lines.get(span.start.line() - 1).copied().unwrap_or_default();
    let as_is = line
        .chars()
        .skip(span.start.col() + quotes)
        .take(text.chars().count());
    Value::Scalar {
        offset: as_is.eq(text.chars()).then_some(quotes),
        text: text.to_owned(),
    }
}

fn new_key(source: Source<'_>, entries: &[(Node, Node)], key: Node) -> Result<Node, Problem> {
    let Value::Scalar { text, .. } = &key.value else {
        return Err(source.problem(key.place, format!("a key is a text, this is {}", key.what())));
    };
    let earlier = entries
        .iter()
        .find(|(name, _)| matches!(&name.value, Value::Scalar { text: name, .. } if name == text));
    if let Some((earlier, _)) = earlier {
        let message = format!("`{text}` was given in line {} already", earlier.place.line);
        return Err(source.problem(key.place, message));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let source = Source { file: "a.yaml", text };
        let problem = read(source).expect_err(text);
        assert_eq!(problem.to_string(), expected);
    }

    #[test]
    fn a_fault_has_its_place_and_its_line() {
        check(
            "a: 1\nb: 2\na: 3\n",
            "a.yaml:3:1: `a` was given in line 1 already\n  a: 3\n  ^",
        );
        for text in ["a: &x 1\nb: *x\n", "a: &x [1]\n", "a: &x { b: 1 }\n"] {
            let problem = read(Source { file: "a.yaml", text }).expect_err(text);
            assert_eq!(
                (problem.place.line, problem.message.as_str()),
                (1, ALIASES),
                "{text}"
            );
        }
        check(
            "a: !!int 3\n",
            "a.yaml:1:4: tags (!...) mean nothing here; leave it out\n  a: !!int 3\n     ^",
        );
        check(
            "a: 1\n---\nb: 2\n",
            "a.yaml:2:1: one document a file: make this a file of its own\n  ---\n  ^",
        );
    }

    #[test]
    fn what_is_no_yaml_says_what_to_do() {
        for (text, advice) in [
            ("a: web: reaches\n", "a text with `: ` in it stands in quotes"),
            ("a\nb: c\n", "the keys of one map begin in one column"),
            ("a: @b\n", "a text that begins with it stands in quotes"),
            ("a: *b\n", ALIASES),
            ("a: \"b\nc: d\n", "the quote that begins here has to be closed"),
            ("a:\n\tb: c\n", "indent with blanks"),
            ("a: b\n\tc: d\n", "indent with blanks"),
            (
                "a:\n    b: c\n  d: e\n",
                "the keys of one map begin in one column",
            ),
            (
                "a:\n  - b: c\n   d: e\n",
                "the keys of one map begin in one column",
            ),
            ("a: [b\nc: d\n", "a bracket above has to be closed"),
            ("a: {b\nc: d\n", "a bracket above has to be closed"),
        ] {
            let problem = read(Source { file: "a", text }).expect_err(text);
            assert!(
                problem.message.starts_with("this is no YAML: ") && problem.message.contains(advice),
                "{text:?}: {}",
                problem.message
            );
        }
    }

    #[test]
    fn what_would_grow_is_refused() {
        let bomb = "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        assert!(
            read(Source {
                file: "a",
                text: bomb
            })
            .is_err()
        );
        let deep = "[".repeat(10_000);
        assert!(
            read(Source {
                file: "a",
                text: &deep
            })
            .is_err()
        );
        let many = format!("[{}]", "1,".repeat(NODES + 1));
        assert!(
            read(Source {
                file: "a",
                text: &many
            })
            .is_err()
        );
    }

    #[test]
    fn an_empty_file_is_nothing() {
        for text in ["", "\n# a comment\n", "---\n", "~"] {
            assert_eq!(read(Source { file: "a", text }), Ok(None), "{text:?}");
        }
    }
}
