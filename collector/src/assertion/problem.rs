//! What is wrong with a file of assertions, and where: file, line, column, the line itself and a caret below the place.

use std::fmt;

/// A place in a text. Counted from one, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    /// So many characters to the right.
    pub fn right(self, characters: usize) -> Self {
        Self {
            line: self.line,
            column: self.column + characters,
        }
    }
}

/// One fault of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    pub place: Place,
    pub message: String,
    /// The line, for the caret; empty where there is none.
    pub text: String,
}

impl Problem {
    pub fn new(file: &str, text: &str, place: Place, message: impl Into<String>) -> Self {
        let line = text.lines().nth(place.line.saturating_sub(1));
        Self {
            file: file.to_owned(),
            place,
            message: message.into(),
            // A tab has another width than the blank that the caret is pushed by.
            text: line.unwrap_or_default().replace('\t', " "),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(f, "{}:{line}:{column}: {}", self.file, self.message)?;
        if !self.text.trim().is_empty() {
            write!(f, "\n  {}\n  {:>column$}", self.text, '^')?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

/// `did you mean X?`, or what there is.
pub fn instead<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    match nearest(typed, &names) {
        Some(meant) => format!("did you mean {meant}?"),
        None => format!("there are: {}", names.join(", ")),
    }
}

/// The name that is a slip of the finger away: at most a third of its letters differ.
fn nearest<'a>(typed: &str, names: &[&'a str]) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&typed, &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= name.len().div_ceil(3))
        .min()
        .map(|(_, name)| name)
}
