//! Tables of text, aligned, for people: columns that only grow, so that rows can be printed as they come.

use anstyle::{AnsiColor, Style};

/// To the top of the screen, and clear what is below (ECMA-48, CUP and ED).
pub(super) const CLEAR_SCREEN: &str = "\x1b[H\x1b[J";

/// On which side a column's texts line up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A text and how it looks on a terminal.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) style: Style,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: printable(text.into()),
            style: Style::new(),
        }
    }
}

impl Cell {
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            style,
            ..Self::from(text)
        }
    }
}

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default();
pub(super) const FAINT: Style = Style::new().dimmed();

/// Names come from processes, which choose their own: what would steer the terminal is shown instead of sent.
pub(super) fn printable(text: String) -> String {
    if text.chars().any(char::is_control) {
        text.escape_debug().to_string()
    } else {
        text
    }
}

/// The columns of a table, and how wide they have become.
pub(super) struct Table<const N: usize> {
    columns: [(&'static str, Align); N],
    widths: [usize; N],
    colours: bool,
}

/// Between two columns.
const GAP: &str = "  ";

impl<const N: usize> Table<N> {
    pub(super) fn new(columns: [(&'static str, Align); N], colours: bool) -> Self {
        Self {
            columns,
            widths: columns.map(|(name, _)| name.chars().count()),
            colours,
        }
    }

    /// Makes the columns as wide as these rows need.
    pub(super) fn fit(&mut self, rows: &[[Cell; N]]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
    }

    /// The line with the columns' names.
    pub(super) fn head(&self) -> String {
        self.line(&self.columns.map(|(name, _)| Cell::styled(name, FAINT)))
    }

    /// One row, with its newline.
    pub(super) fn line(&self, row: &[Cell; N]) -> String {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let padding = " ".repeat(self.widths[column].saturating_sub(cell.text.chars().count()));
            let is_left = self.columns[column].1 == Align::Left;
            if !is_left {
                line.push_str(&padding);
            }
            if self.colours {
                line.push_str(&format!("{}{}{:#}", cell.style, cell.text, cell.style));
            } else {
                line.push_str(&cell.text);
            }
            if column + 1 < N {
                if is_left {
                    line.push_str(&padding);
                }
                line.push_str(GAP);
            }
        }
        line.push('\n');
        line
    }
}

/// A time in the unit that suits its size, with three digits: `870 us`, `12.3 ms`, `4.07 s`, `3m 20s`.
pub(super) fn human_us(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{} ms", three_digits(us as f64 / 1e3)),
        1_000_000..120_000_000 => format!("{} s", three_digits(us as f64 / 1e6)),
        _ => {
            let seconds = us / 1_000_000;
            match seconds {
                0..7_200 => format!("{}m {}s", seconds / 60, seconds % 60),
                7_200..172_800 => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
                _ => format!("{}d {}h", seconds / 86_400, seconds / 3600 % 24),
            }
        }
    }
}

/// Likewise, of nanoseconds: `870 ns`, `12.3 us`.
pub(super) fn human_ns(ns: f64) -> String {
    match ns {
        ns if ns < 999.5 => format!("{ns:.0} ns"),
        ns if ns < 999_500.0 => format!("{} us", three_digits(ns / 1e3)),
        ns => human_us((ns / 1e3) as u64),
    }
}

/// A volume in the unit that suits its size (powers of 1000), with three digits: `512 B`, `4.10 kB`, `1.20 GB`.
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1e3;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1e3;
        unit += 1;
    }
    format!("{} {}", three_digits(value), UNITS[unit])
}

fn three_digits(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_only_grow() {
        let mut table = Table::new(
            [("name", Align::Left), ("n", Align::Right), ("", Align::Left)],
            false,
        );
        let long = ["longer name".into(), "10".into(), "x".into()];
        table.fit(std::slice::from_ref(&long));
        assert_eq!(table.head(), "name          n  \n");
        assert_eq!(table.line(&long), "longer name  10  x\n");
        assert_eq!(
            table.line(&["a".into(), "7".into(), "y".into()]),
            "a             7  y\n"
        );
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(Cell::from("a\u{1b}[2Jb").text, "a\\u{1b}[2Jb");
        assert_eq!(Cell::from("näme").text, "näme");
    }

    #[test]
    fn times_are_in_the_unit_that_suits_them() {
        for (us, expected) in [
            (0, "0 us"),
            (870, "870 us"),
            (12_300, "12.3 ms"),
            (999_900, "1000 ms"),
            (4_070_000, "4.07 s"),
            (200_000_000, "3m 20s"),
            (7_260_000_000, "2h 1m"),
            (180_000_000_000, "2d 2h"),
        ] {
            assert_eq!(human_us(us), expected, "{us}");
        }
    }

    #[test]
    fn short_times_are_too() {
        for (ns, expected) in [
            (0.0, "0 ns"),
            (870.4, "870 ns"),
            (12_300.0, "12.3 us"),
            (2e6, "2.00 ms"),
        ] {
            assert_eq!(human_ns(ns), expected, "{ns}");
        }
    }

    #[test]
    fn volumes_are_in_the_unit_that_suits_them() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (4_100, "4.10 kB"),
            (999_900, "1.00 MB"),
            (123_456_789, "123 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(human_bytes(bytes), expected, "{bytes}");
        }
    }
}
