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
        // A tab has another width than the blank that the caret is pushed by.
        let line = line.unwrap_or_default().replace('\t', " ");
        Self {
            file: file.to_owned(),
            place,
            message: visible(&message.into()),
            text: visible(&line),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(f, "{}:{line}:{column}: {}", self.file, self.message)?;
        if !self.text.trim().is_empty() {
            let (shown, column) = around(&self.text, column);
            write!(f, "\n  {shown}\n  {:>column$}", '^')?;
        }
        Ok(())
    }
}

/// A line in which everything can be seen, and nothing is an order to a terminal.
fn visible(line: &str) -> String {
    let seen = |c: char| {
        if is_invisible(c) {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    line.chars().map(seen).collect()
}

/// Beside control characters: blanks that are none, what has no width, and what turns the direction of writing.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{a0}' | '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Characters of a line that are shown.
const SHOWN: usize = 160;

/// Of a long line what is near a column, and where the column is in that.
fn around(line: &str, column: usize) -> (String, usize) {
    if line.chars().count() <= SHOWN {
        return (line.to_owned(), column);
    }
    let skipped = column.saturating_sub(SHOWN / 2);
    let near: String = line.chars().skip(skipped).take(SHOWN).collect();
    let (before, after) = (if skipped > 0 { "..." } else { "" }, "...");
    (format!("{before}{near}{after}"), column - skipped + before.len())
}

impl std::error::Error for Problem {}

/// Of names that are listed: all signals, and not each of ten thousand assertions.
const LISTED_BYTES: usize = 2_000;

/// `did you mean X?`, or what there is.
pub fn instead<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if let Some(meant) = nearest(typed, &names) {
        return format!("did you mean {meant}?");
    }
    let mut bytes = 0;
    let listed = names.iter().take_while(|name| {
        bytes += name.len() + 2;
        bytes <= LISTED_BYTES
    });
    let listed: Vec<&str> = listed.copied().collect();
    match names.len() - listed.len() {
        0 => format!("there are: {}", listed.join(", ")),
        more => format!("there are: {} and {more} more", listed.join(", ")),
    }
}

/// The name that is a slip of the finger away: at most a third of its letters differ.
pub fn nearest<'a>(typed: &str, names: &[&'a str]) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let chars = typed.chars().count();
    // Each letter more is a difference: of a name that is much longer or shorter the others need not be looked for.
    let is_as_long =
        |name: &&&str| name.to_lowercase().chars().count().abs_diff(chars) <= name.len().div_ceil(3);
    names
        .iter()
        .filter(is_as_long)
        .map(|name| (strsim::damerau_levenshtein(&typed, &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= name.len().div_ceil(3))
        // Of two that are as near, one of the same length: letters change places more often than they are missing.
        .min_by_key(|(distance, name)| (*distance, name.len().abs_diff(typed.len()), *name))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_names_that_are_as_near_the_one_of_the_same_length_is_meant() {
        let hint = |typed| instead(typed, ["for", "from", "to", "over"].into_iter());
        assert_eq!(hint("form"), "did you mean from?");
        assert_eq!(hint("fr"), "did you mean for?");
        assert_eq!(hint("severity"), "there are: for, from, to, over");
    }

    #[test]
    fn of_many_names_the_first_are_told_and_how_many_more_there_are() {
        let names: Vec<_> = (0..10_000).map(|at| format!("assertion {at}")).collect();
        let told = instead("something else altogether", names.iter().map(String::as_str));
        assert!(
            told.starts_with("there are: assertion 0, assertion 1, "),
            "{told}"
        );
        assert!(told.len() < 2_100 && told.ends_with(" more"), "{told}");
        let more: usize = told.rsplit(' ').nth(1).unwrap().parse().unwrap();
        assert_eq!(told.matches("assertion ").count() + more, names.len(), "{told}");
        // A text of a megabyte is compared with none of them.
        let long = "x".repeat(1 << 20);
        assert!(instead(&long, names.iter().map(String::as_str)).starts_with("there are: "));
    }

    #[test]
    fn what_cannot_be_seen_is_shown_and_is_no_order_to_a_terminal() {
        let line = "\u{a0}over\u{200b}: \u{1b}[31m1m";
        let place = Place { line: 1, column: 2 };
        let shown = Problem::new("a.yaml", line, place, "unknown key `over\u{200b}`").to_string();
        assert_eq!(
            shown,
            "a.yaml:1:2: unknown key `over\u{fffd}`\n  \u{fffd}over\u{fffd}: \u{fffd}[31m1m\n   ^"
        );
    }

    #[test]
    fn of_a_long_line_what_is_near_the_fault_is_shown() {
        let line = format!("{}fault{}", "[".repeat(1_000), "]".repeat(1_000));
        let place = Place {
            line: 1,
            column: 1_001,
        };
        let shown = Problem::new("a.yaml", &line, place, "wrong").to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "a.yaml:1:1001: wrong");
        assert!(lines[1].len() <= SHOWN + 8, "{shown}");
        let caret = lines[2].find('^').expect("a caret");
        assert_eq!(&lines[1][caret..caret + 5], "fault", "{shown}");
    }
}
