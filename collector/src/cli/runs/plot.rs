//! Plots as inline SVG: scales, axes, and marks whose colours are classes of the page. Pure.

use std::fmt::{self, Write};

use crate::runs::result::human;

/// The size of a plot in its own units, and what its axes take of it.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;

/// A text inside of a page: what would be markup is shown, what cannot be in a page at all is replaced.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => formatter.write_str("&amp;")?,
                '<' => formatter.write_str("&lt;")?,
                '>' => formatter.write_str("&gt;")?,
                '"' => formatter.write_str("&quot;")?,
                '\'' => formatter.write_str("&#39;")?,
                '\n' => formatter.write_char('\n')?,
                // Noncharacters and what turns the direction of what follows are no less than controls.
                character if character.is_control() => formatter.write_char('\u{fffd}')?,
                '\u{fffe}' | '\u{ffff}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    formatter.write_char('\u{fffd}')?;
                }
                character => formatter.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// From values to a place on an axis.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
}

impl Scale {
    /// From zero, with room above the highest value.
    pub(super) fn linear(high: f64) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        Self {
            low: 0.0,
            high,
            is_log: false,
        }
    }

    /// Of values above zero.
    pub(super) fn log(low: f64, high: f64) -> Self {
        let low = low.max(f64::MIN_POSITIVE);
        Self {
            low,
            high: high.max(low * 1.01),
            is_log: true,
        }
    }

    /// A log scale for times in nanoseconds that has all of these. None is less than half a microsecond, the least that a bucket tells from
    /// zero.
    pub(super) fn of_times(times_ns: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::MAX, LEAST_NS);
        for ns in times_ns {
            low = low.min(ns.max(LEAST_NS));
            high = high.max(ns);
        }
        Self::log(low.min(high) / 1.3, high * 1.3)
    }

    /// 0 at its lower end, 1 at its upper.
    fn at(&self, value: f64) -> f64 {
        let share = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values on it, not many.
    pub(super) fn ticks(&self) -> Vec<f64> {
        let mut ticks = Vec::new();
        if self.is_log {
            let decades = (self.high / self.low).log10();
            let steps: &[f64] = match decades {
                ..1.3 => &[1.0, 2.0, 3.0, 5.0, 7.0],
                1.3..3.0 => &[1.0, 2.0, 5.0],
                _ => &[1.0],
            };
            let first = self.low.log10().floor() as i32;
            for decade in first..=self.high.log10().ceil() as i32 {
                let values = steps.iter().map(|step| step * 10f64.powi(decade));
                ticks.extend(values.filter(|value| (self.low..=self.high).contains(value)));
            }
            return ticks;
        }
        let rough = self.high / 5.0;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|step| step * magnitude)
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * magnitude);
        ticks.extend(
            (0..=6)
                .map(|tick| f64::from(tick) * step)
                .filter(|value| *value <= self.high * 1.000_001),
        );
        ticks
    }
}

/// What stands for zero on a log scale of times.
pub(super) const LEAST_NS: f64 = 500.0;

/// A time that is a round number.
pub(super) fn time_tick(ns: f64) -> String {
    let (value, unit) = match ns {
        ..999.5 => (ns, "ns"),
        ..999_500.0 => (ns / 1e3, "us"),
        ..999_500_000.0 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", (value * 1e3).round() / 1e3)
}

/// A number that is round, short.
pub(super) fn number_tick(value: f64) -> String {
    match value {
        1e9.. => format!("{}G", (value / 1e7).round() / 1e2),
        1e6.. => format!("{}M", (value / 1e4).round() / 1e2),
        1e4.. => format!("{}k", (value / 1e1).round() / 1e2),
        _ => format!("{}", (value * 1e3).round() / 1e3),
    }
}

/// A plot that marks are put on.
pub(super) struct Plot {
    label: String,
    height: f64,
    x: Scale,
    y: Scale,
    marks: String,
    /// What a pointer finds; above all marks.
    spots: String,
}

impl Plot {
    /// With its axes. `label` is what it shows, for those who cannot see it.
    pub(super) fn new(
        label: &str,
        height: f64,
        (x, x_ticks, x_name): (Scale, Vec<(f64, String)>, &str),
        (y, y_ticks): (Scale, Vec<(f64, String)>),
    ) -> Self {
        let mut plot = Self {
            label: label.to_owned(),
            height,
            x,
            y,
            marks: String::new(),
            spots: String::new(),
        };
        let (left, right) = (LEFT, WIDTH - RIGHT);
        for (value, name) in y_ticks {
            let y = plot.y(value);
            plot.mark(format_args!(
                "<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                left - 7.0,
                y + 4.0,
                Escaped(&name)
            ));
        }
        let floor = height - BOTTOM;
        for (value, name) in x_ticks {
            let x = plot.x(value);
            plot.mark(format_args!(
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{floor}\"/><text x=\"{x:.1}\" y=\"{:.1}\" \
                 text-anchor=\"middle\">{}</text>",
                floor + 16.0,
                Escaped(&name)
            ));
        }
        plot.mark(format_args!(
            "<line class=\"axis\" x1=\"{left}\" x2=\"{right}\" y1=\"{floor}\" y2=\"{floor}\"/><text class=\"name\" x=\"{right}\" \
             y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            height - 6.0,
            Escaped(x_name)
        ));
        plot
    }

    /// Writing to a string does not fail.
    fn mark(&mut self, mark: fmt::Arguments<'_>) {
        let _ = self.marks.write_fmt(mark);
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.at(value) * (WIDTH - RIGHT - LEFT)
    }

    fn y(&self, value: f64) -> f64 {
        self.height - BOTTOM - self.y.at(value) * (self.height - BOTTOM - TOP)
    }

    /// A line through points; it is broken where there is none.
    pub(super) fn line(&mut self, class: &str, points: &[Option<(f64, f64)>]) {
        let path = path(points, |(x, y)| (self.x(x), self.y(y)));
        if !path.is_empty() {
            self.mark(format_args!("<path class=\"line {class}\" d=\"{path}\"/>"));
        }
    }

    /// A filled box between two values of each axis.
    pub(super) fn bar(&mut self, class: &str, (from, to): (f64, f64), (low, high): (f64, f64)) {
        let (x, y) = (self.x(from), self.y(high));
        let (width, height) = (self.x(to) - x, self.y(low) - y);
        // A gap that the eye tells apart, where there is room for one.
        let width = if width > 4.0 { width - 1.0 } else { width };
        self.mark(format_args!(
            "<rect class=\"fill {class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>",
            height.max(if high > low { 0.8 } else { 0.0 })
        ));
    }

    /// A dot with a word beside it.
    pub(super) fn dot(&mut self, class: &str, (x, y): (f64, f64), word: &str) {
        let (x, y) = (self.x(x), self.y(y));
        self.mark(format_args!(
            "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/><text class=\"word\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 8.0,
            y - 7.0,
            Escaped(word)
        ));
    }

    /// A short stroke at the lower edge.
    pub(super) fn tick_mark(&mut self, class: &str, value: f64) {
        let (x, floor) = (self.x(value), self.height - BOTTOM);
        self.mark(format_args!(
            "<line class=\"line {class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{floor}\"/>",
            floor - 9.0
        ));
    }

    /// What is said where a pointer rests.
    pub(super) fn spot(&mut self, (from, to): (f64, f64), words: &str) {
        let (x, end) = (self.x(from), self.x(to));
        let _ = write!(
            self.spots,
            "<rect class=\"spot\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
            (end - x).max(1.0),
            self.height - BOTTOM - TOP,
            Escaped(words)
        );
    }

    pub(super) fn svg(&self) -> String {
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">{}{}</svg>\n",
            self.height,
            Escaped(&self.label),
            self.marks,
            self.spots
        )
    }
}

/// What draws a line through points, each of which lies at `place`; it is broken where there is none.
fn path(points: &[Option<(f64, f64)>], place: impl Fn((f64, f64)) -> (f64, f64)) -> String {
    let mut path = String::new();
    for part in points.split(Option::is_none) {
        let points: Vec<_> = part.iter().flatten().copied().map(&place).collect();
        if let [(x, y)] = points[..] {
            // One alone is a dot.
            let _ = write!(path, "M{:.1} {y:.1}h3", x - 1.5);
        }
        for (index, (x, y)) in points.iter().enumerate().filter(|_| points.len() > 1) {
            let _ = write!(path, "{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' });
        }
    }
    path
}

/// The size of a strip in its own units.
const STRIP: (f64, f64) = (96.0, 20.0);

/// A line without axes, to be compared with others of the same scales: times in nanoseconds over seconds, and below it strokes where something
/// went wrong. `label` is what it shows, for those who cannot see it.
pub(super) fn strip(
    label: &str,
    (seconds, times): (&Scale, &Scale),
    points: &[Option<(f64, f64)>],
    bad: &[f64],
) -> String {
    let (width, height) = STRIP;
    let x = |second| 2.0 + seconds.at(second) * (width - 4.0);
    let line = path(points, |(second, ns)| {
        (x(second), 2.0 + (1.0 - times.at(ns)) * (height - 7.0))
    });
    let strokes: String = bad
        .iter()
        .map(|second| format!("M{:.1} {:.1}v4", x(*second), height - 4.0))
        .collect();
    let mut marks = String::new();
    for (class, path) in [("c1", line), ("bad", strokes)] {
        if !path.is_empty() {
            let _ = write!(marks, "<path class=\"line {class}\" d=\"{path}\"/>");
        }
    }
    format!(
        "<svg class=\"strip\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">{marks}</svg>",
        Escaped(label)
    )
}

/// Names and classes of what is on a plot.
pub(super) fn legend(entries: &[(&str, String)]) -> String {
    let mut text = "<ul class=\"legend\">".to_owned();
    for (class, name) in entries {
        let _ = write!(text, "<li><i class=\"swatch {class}\"></i>{}</li>", Escaped(name));
    }
    text + "</ul>\n"
}

/// A scale of seconds since the start, with its ticks.
pub(super) fn seconds_axis(end_s: f64) -> (Scale, Vec<(f64, String)>, &'static str) {
    let scale = Scale::linear(end_s);
    let ticks = scale.ticks().into_iter().map(|s| (s, number_tick(s))).collect();
    (scale, ticks, "seconds since the start")
}

/// A scale of times in nanoseconds, with its ticks.
pub(super) fn times_axis(times_ns: impl Iterator<Item = f64>) -> (Scale, Vec<(f64, String)>) {
    let scale = Scale::of_times(times_ns);
    let ticks = scale.ticks().into_iter().map(|ns| (ns, time_tick(ns))).collect();
    (scale, ticks)
}

/// A scale of numbers from zero, with its ticks.
pub(super) fn numbers_axis(high: f64) -> (Scale, Vec<(f64, String)>) {
    let scale = Scale::linear(high * 1.05);
    let ticks = scale.ticks().into_iter().map(|value| (value, number_tick(value)));
    let ticks = ticks.collect();
    (scale, ticks)
}

/// A scale of quantiles that gives each nine after the point the same room: 1/(1 - q), up to one in `count`.
pub(super) fn quantiles_axis(count: u64) -> (Scale, Vec<(f64, String)>, &'static str) {
    let end = (count as f64).max(100.0);
    let names = [
        "0%",
        "90%",
        "99%",
        "99.9%",
        "99.99%",
        "99.999%",
        "99.9999%",
        "99.99999%",
    ];
    let mut ticks: Vec<_> = (0..)
        .map(|nines| 10f64.powi(nines))
        .zip(names.map(str::to_owned))
        .collect();
    ticks.insert(1, (2.0, "50%".to_owned()));
    ticks.retain(|(value, _)| *value <= end * 1.01);
    (Scale::log(1.0, end), ticks, "share of all that took no longer")
}

/// A distribution as a line on [`quantiles_axis`]: log buckets of microseconds with their counts, by the time that stands for a
/// bucket in nanoseconds.
pub(super) fn quantiles_line(buckets: &[(f64, u64)]) -> Vec<Option<(f64, f64)>> {
    let total: u64 = buckets.iter().map(|(_, count)| count).sum();
    let place = |below: u64| 1.0 / (1.0 - below as f64 / total as f64);
    let (mut below, mut points) = (0, Vec::new());
    for &(ns, count) in buckets {
        points.push(Some((place(below), ns.max(LEAST_NS))));
        below += count;
        // All of them are no more than one in `total`: the axis has no infinity.
        let reached = if below == total {
            total as f64
        } else {
            place(below)
        };
        points.push(Some((reached, ns.max(LEAST_NS))));
    }
    points
}

/// A time for people, or a dash where there is none.
pub(super) fn human_or_dash(ns: Option<f64>) -> String {
    ns.map_or_else(|| "-".to_owned(), |ns| human(ns as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_becomes_markup() {
        let text = "<a href='x' on=\"y\">&\u{1b}[0m\0\u{202e}\n";
        assert_eq!(
            Escaped(text).to_string(),
            "&lt;a href=&#39;x&#39; on=&quot;y&quot;&gt;&amp;\u{fffd}[0m\u{fffd}\u{fffd}\n"
        );
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(Scale::linear(523.0).ticks(), [0.0, 200.0, 400.0]);
        assert_eq!(
            Scale::linear(0.0).ticks(),
            [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
        );
        assert_eq!(Scale::log(1.0, 1e4).ticks(), [1.0, 10.0, 100.0, 1e3, 1e4]);
        assert_eq!(
            Scale::log(15.0, 250.0).ticks(),
            [20.0, 30.0, 50.0, 70.0, 100.0, 200.0]
        );
        let (low, high) = (3.0, 1e9);
        for ticks in [Scale::log(low, high).ticks(), Scale::linear(high).ticks()] {
            assert!((3..12).contains(&ticks.len()), "{ticks:?}");
        }
        assert_eq!(
            [500.0, 2_000.0, 1e6, 5e10].map(time_tick),
            ["500 ns", "2 us", "1 ms", "50 s"]
        );
    }

    #[test]
    fn a_scale_has_its_ends_and_keeps_what_is_beyond_inside() {
        let scale = Scale::log(10.0, 1_000.0);
        assert_eq!(
            [1.0, 10.0, 100.0, 1_000.0, 1e9].map(|value| scale.at(value)),
            [0.0, 0.0, 0.5, 1.0, 1.0]
        );
        assert_eq!(
            [0.0, 5.0, 20.0].map(|value| Scale::linear(10.0).at(value)),
            [0.0, 0.5, 1.0]
        );
    }

    #[test]
    fn a_distribution_is_drawn_by_its_shares() {
        // 90 of 100 took 1 ms, 9 took 2 ms, one took 50 ms.
        let points = quantiles_line(&[(1e6, 90), (2e6, 9), (5e7, 1)]);
        let points: Vec<_> = points.into_iter().flatten().collect();
        let expected = [
            (1.0, 1e6),
            (10.0, 1e6),
            (10.0, 2e6),
            (100.0, 2e6),
            (100.0, 5e7),
            (100.0, 5e7),
        ];
        for ((x, y), (wanted, ns)) in points.iter().zip(expected) {
            assert!((x - wanted).abs() < 1e-6 && *y == ns, "{points:?}");
        }
    }

    #[test]
    fn a_line_is_broken_where_nothing_is_known() {
        let mut plot = Plot::new("label", 200.0, seconds_axis(10.0), numbers_axis(10.0));
        let before = plot.marks.len();
        plot.line("a", &[Some((0.0, 0.0)), Some((1.0, 1.0)), None, Some((3.0, 1.0))]);
        let path = &plot.marks[before..];
        assert_eq!(
            (path.matches('M').count(), path.matches('L').count()),
            (2, 1),
            "{path}"
        );
    }
}
