//! A run on a terminal while it is made: a few lines that are drawn again in their place. What they say is pure.
//!
//! Nothing of the terminal is changed that would have to be restored: however the command ends, what is left is text.

use std::io::{self, IsTerminal, Write};

use holdfast_proto::v1::{LoadCounts, RunProgress};
use terminal_size::{Height, Width, terminal_size_of};

use crate::cli::table::printable;
use crate::runs::counts;
use crate::runs::result::{decode, human};

/// Updates that are remembered; no terminal shows more.
const HISTORY: usize = 400;

/// What is shown besides the numbers of the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    pub(super) run_id: String,
    pub(super) nodes: Vec<String>,
    pub(super) targets: Vec<String>,
    /// How long attempts are made, where that is known beforehand; nanoseconds.
    pub(super) lasts_ns: Option<u64>,
}

/// What is known of the run.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    subject: Subject,
    last: RunProgress,
    /// Of each update: attempts or requests that came out well, a second; and p50 and p99 in nanoseconds where anything did.
    rates: Vec<f64>,
    p50s: Vec<Option<u64>>,
    p99s: Vec<Option<u64>>,
}

impl State {
    pub(super) fn new(subject: Subject) -> Self {
        Self {
            subject,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, progress: RunProgress) {
        let good = |progress: &RunProgress| {
            let counts: LoadCounts = progress.counts.unwrap_or_default();
            if counts.requests > 0 {
                counts.answered
            } else {
                counts.established
            }
        };
        let elapsed_ns = progress.elapsed_ns.saturating_sub(self.last.elapsed_ns);
        // Nobody has reported since: nothing is known to be otherwise.
        if elapsed_ns == 0 {
            return;
        }
        let more = good(&progress).saturating_sub(good(&self.last));
        self.rates.push(more as f64 * 1e9 / elapsed_ns as f64);
        let times = decode(&progress.connect).ok().flatten();
        let at = |share| times.as_ref().map(|times| times.value_at_quantile(share));
        self.p50s.push(at(0.5));
        self.p99s.push(at(0.99));
        if self.rates.len() > HISTORY {
            self.rates.remove(0);
            self.p50s.remove(0);
            self.p99s.remove(0);
        }
        self.last = progress;
    }

    /// What is shown in so many columns: no line is wider.
    pub(super) fn lines(&self, width: usize) -> Vec<String> {
        let all: LoadCounts = self.last.counts.unwrap_or_default();
        let subject = &self.subject;
        let seconds = format!("{:.1}s", self.last.elapsed_ns as f64 / 1e9);
        let head = format!(
            "run {} from {} to {}",
            subject.run_id,
            subject.nodes.join(", "),
            subject.targets.join(", ")
        );
        let mut lines = vec![between(&printable(head), &seconds, width)];
        let made = all.requests.max(all.started);
        let progress = match (self.last.planned, subject.lasts_ns) {
            (planned @ 1.., _) => Some((made as f64 / planned as f64, format!("{made} of {planned}"))),
            (0, Some(ns @ 1..)) => Some((
                self.last.elapsed_ns as f64 / ns as f64,
                format!("{made} in {} of {}", human(self.last.elapsed_ns), human(ns)),
            )),
            _ => None,
        };
        if let Some((share, words)) = progress {
            lines.push(bar(share, &words, width));
        }
        let last_rate = self
            .rates
            .last()
            .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}/s"));
        let rates: Vec<_> = self.rates.iter().map(|rate| Some(*rate)).collect();
        lines.push(spark("rate", &last_rate, &rates, width));
        for (name, times) in [("p50", &self.p50s), ("p99", &self.p99s)] {
            // The last that is known: an update without an attempt has none.
            let last = times.iter().rev().flatten().next();
            let last = last.map_or_else(|| "-".to_owned(), |ns| human(*ns));
            let logs: Vec<_> = times
                .iter()
                .map(|ns| ns.map(|ns| (ns.max(1) as f64).ln()))
                .collect();
            lines.push(spark(name, &last, &logs, width));
        }
        lines.push(fit(&outcomes(&all, self.last.open), width));
        lines
    }
}

/// Where every attempt is, in words; what there is none of is left out.
fn outcomes(all: &LoadCounts, open: u64) -> String {
    let mut words = Vec::new();
    if all.requests > 0 {
        words.push(format!("{} answered", all.answered));
        let decided = all.answered + counts::request_errors(all) + all.request_abandoned;
        words.push(format!("{} under way", all.requests.saturating_sub(decided)));
    } else {
        words.push(format!("{} established", all.established));
        words.push(format!(
            "{} dialing",
            all.started.saturating_sub(counts::decided(all))
        ));
    }
    if all.started > 0 {
        words.push(format!("{open} open"));
    }
    let bad = counts::NAMES
        .iter()
        .zip(counts::values(all))
        .filter(|(name, count)| {
            *count > 0
                && !matches!(
                    **name,
                    "started"
                        | "established"
                        | "closed"
                        | "late"
                        | "bytes_sent"
                        | "bytes_received"
                        | "requests"
                        | "answered"
                )
        });
    words.extend(bad.map(|(name, count)| format!("{count} {}", name.replace('_', " "))));
    if all.late > 0 {
        words.push(format!("{} late by 1 ms", all.late));
    }
    words.join(", ")
}

/// Columns that a character takes at most: of those beyond ASCII only the ones that are drawn here are known to take one.
fn columns(character: char) -> usize {
    match character {
        ' '..='~' | '▁'..='█' | '━' | '┄' | '…' => 1,
        _ => 2,
    }
}

/// The beginning of a text that has room.
fn fit(text: &str, width: usize) -> String {
    let mut room = width;
    let whole: usize = text.chars().map(columns).sum();
    if whole <= width {
        return text.to_owned();
    }
    let kept = text.chars().take_while(|character| {
        let has_room = columns(*character) < room;
        room = room.saturating_sub(columns(*character));
        has_room
    });
    let mut kept: String = kept.collect();
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// A text at the left and one at the right, which is kept.
fn between(left: &str, right: &str, width: usize) -> String {
    let room = width.saturating_sub(right.chars().count() + 2);
    let left = fit(left, room);
    let used: usize = left.chars().map(columns).sum();
    fit(
        &format!("{left}{}  {right}", " ".repeat(room.saturating_sub(used))),
        width,
    )
}

/// How far it is.
fn bar(share: f64, words: &str, width: usize) -> String {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    let words = format!("{:>4.0}%  {words}", share * 100.0);
    let room = width.saturating_sub(words.chars().count() + 2).min(60);
    let full = (share * room as f64).floor() as usize;
    fit(
        &format!("{}{} {words}", "━".repeat(full), "┄".repeat(room - full)),
        width,
    )
}

/// A name, the last value, and the ones before it as far as there is room, each as high as it is among those that are shown.
fn spark(name: &str, last: &str, values: &[Option<f64>], width: usize) -> String {
    let words = format!("{name:<5}{last:>10}  ");
    let room = width.saturating_sub(words.chars().count());
    let shown = &values[values.len().saturating_sub(room)..];
    let (mut low, mut high) = (f64::MAX, f64::MIN);
    for value in shown.iter().flatten() {
        low = low.min(*value);
        high = high.max(*value);
    }
    let line = shown.iter().map(|value| match value {
        None => ' ',
        Some(value) if high > low => {
            let step = ((value - low) / (high - low) * 7.0).round() as u32;
            char::from_u32(u32::from('▁') + step.min(7)).unwrap_or(' ')
        }
        // All alike.
        Some(_) => '▄',
    });
    fit(&(words + &line.collect::<String>()), width)
}

/// The lines as they are on the terminal.
pub(super) struct View {
    state: State,
    /// The columns of each line that is there now.
    drawn: Vec<usize>,
}

impl View {
    /// None where there is no terminal that lines can be drawn on again, or it is too small.
    pub(super) fn open(subject: Subject) -> Option<Self> {
        let is_plain = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        if is_plain || !io::stdout().is_terminal() {
            return None;
        }
        let view = Self {
            state: State::new(subject),
            drawn: Vec::new(),
        };
        let (width, height) = size()?;
        (width >= 40 && height > view.state.lines(width).len() + 2).then_some(view)
    }

    pub(super) fn show(&mut self, progress: RunProgress) -> io::Result<()> {
        self.state.add(progress);
        let Some((width, _)) = size() else {
            return Ok(());
        };
        // The last column is left free: what is written there makes some terminals go on in the next line.
        let lines = self.state.lines(width.saturating_sub(1));
        let text = redraw(&self.drawn, &lines, width);
        self.drawn = lines.iter().map(|line| line.chars().map(columns).sum()).collect();
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }

    /// Says something beside it: it makes room, and is drawn below at the next update.
    pub(super) fn say(&mut self, line: &str) {
        self.clear();
        crate::cli::tell(line);
    }

    fn clear(&mut self) {
        if let Some((width, _)) = size().filter(|_| !self.drawn.is_empty()) {
            let text = redraw(&self.drawn, &[], width);
            let mut stdout = io::stdout().lock();
            // Of a terminal that is gone nothing is left to clear.
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
        self.drawn.clear();
    }
}

impl Drop for View {
    /// The report takes its place.
    fn drop(&mut self) {
        self.clear();
    }
}

fn size() -> Option<(usize, usize)> {
    let (Width(width), Height(height)) = terminal_size_of(io::stdout())?;
    Some((usize::from(width), usize::from(height)))
}

/// What draws `lines` where lines of so many columns are, in one piece, so that none of it is seen half-way. A terminal that was made narrower has
/// broken the old lines into several.
fn redraw(drawn: &[usize], lines: &[String], width: usize) -> String {
    let rows: usize = drawn
        .iter()
        .map(|columns| columns.div_ceil(width.max(1)).max(1))
        .sum();
    // A synchronized update, which terminals that do not know it ignore.
    let mut text = "\x1b[?2026h".to_owned();
    if rows > 0 {
        text += &format!("\x1b[{rows}A");
    }
    text.push('\r');
    for line in lines {
        text += line;
        text += "\x1b[K\n";
    }
    // What else was there before.
    text += "\x1b[J\x1b[?2026l";
    text
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::{Serializer, V2Serializer};
    use proptest::prelude::*;

    use super::*;

    fn progress(second: u64, counts: LoadCounts, planned: u64, us: &[u64]) -> RunProgress {
        let mut connect = Vec::new();
        if !us.is_empty() {
            let mut times = Histogram::<u64>::new(3).unwrap();
            us.iter().for_each(|us| times.record(us * 1_000).unwrap());
            V2Serializer::new().serialize(&times, &mut connect).unwrap();
        }
        RunProgress {
            elapsed_ns: second * 1_000_000_000,
            counts: Some(counts),
            open: 7,
            planned,
            connect: connect.into(),
        }
    }

    fn subject() -> Subject {
        Subject {
            run_id: "19ac".into(),
            nodes: vec!["web-1".into()],
            targets: vec!["db:80".into()],
            lasts_ns: None,
        }
    }

    fn established(established: u64, refused: u64) -> LoadCounts {
        LoadCounts {
            started: established + refused,
            established,
            refused,
            ..LoadCounts::default()
        }
    }

    #[test]
    fn a_run_is_a_few_lines() {
        let mut state = State::new(subject());
        state.add(progress(1, established(100, 0), 400, &[100]));
        state.add(progress(2, established(150, 10), 400, &[100, 12_000]));
        // Nobody has reported since.
        state.add(progress(2, established(150, 10), 400, &[]));
        state.add(progress(3, established(150, 50), 400, &[]));
        assert_eq!(
            state.lines(60),
            [
                "run 19ac from web-1 to db:80                            3.0s",
                &format!("{}{}   50%  200 of 400", "━".repeat(20), "┄".repeat(21)),
                "rate      0.0/s  █▅▁",
                "p50      100 us  ▄▄ ",
                "p99     12.0 ms  ▁█ ",
                "150 established, 0 dialing, 7 open, 50 refused",
            ]
        );
    }

    #[test]
    fn requests_and_time_are_shown_where_that_is_what_is_known() {
        let mut state = State::new(Subject {
            lasts_ns: Some(10_000_000_000),
            ..subject()
        });
        let counts = LoadCounts {
            requests: 30,
            answered: 20,
            unexpected_status: 4,
            late: 3,
            ..LoadCounts::default()
        };
        state.add(progress(5, counts, 0, &[]));
        let lines = state.lines(80);
        assert!(lines[1].ends_with("50%  30 in 5.00 s of 10.0 s"), "{lines:?}");
        assert_eq!(
            lines[5],
            "20 answered, 6 under way, 4 unexpected status, 3 late by 1 ms"
        );
    }

    #[test]
    fn a_datagram_that_was_refused_is_not_under_way() {
        let counts = LoadCounts {
            requests: 30,
            answered: 20,
            refused: 7,
            request_timed_out: 1,
            ..LoadCounts::default()
        };
        assert_eq!(
            outcomes(&counts, 0),
            "20 answered, 2 under way, 7 refused, 1 request timed out"
        );
    }

    #[test]
    fn lines_are_drawn_over_the_old_ones_however_wide_the_terminal_is_now() {
        let lines = ["one".to_owned(), "two".to_owned()];
        assert_eq!(
            redraw(&[], &lines, 80),
            "\x1b[?2026h\rone\x1b[K\ntwo\x1b[K\n\x1b[J\x1b[?2026l"
        );
        assert!(redraw(&[70, 0, 5], &lines, 80).contains("\x1b[3A\r"));
        assert!(redraw(&[70, 0, 5], &lines, 30).contains("\x1b[5A\r"));
        assert_eq!(redraw(&[3], &[], 80), "\x1b[?2026h\x1b[1A\r\x1b[J\x1b[?2026l");
    }

    #[test]
    fn names_cannot_steer_the_terminal() {
        let mut subject = subject();
        subject.targets = vec!["\x1b[2Jweb\n".into()];
        let lines = State::new(subject).lines(80);
        assert!(
            lines.iter().all(|line| !line.contains(['\x1b', '\n'])),
            "{lines:?}"
        );
    }

    proptest! {
        #[test]
        fn no_line_is_wider_than_there_is_room(
            width in 0..150_usize,
            node in "\\PC{0,60}",
            updates in prop::collection::vec((0..1_000_u64, 0..1_000_u64, prop::collection::vec(1..1_000_000_u64, 0..4)), 0..30),
            planned in prop::sample::select(vec![0_u64, 1, 5_000, u64::MAX]),
            lasts_ns in prop::sample::select(vec![None, Some(0), Some(5_000_000_000)]),
        ) {
            let mut state = State::new(Subject { nodes: vec![node], lasts_ns, ..subject() });
            for (second, (good, bad, us)) in updates.iter().enumerate() {
                state.add(progress(second as u64, established(*good, *bad), planned, us));
            }
            for line in state.lines(width) {
                let columns: usize = line.chars().map(columns).sum();
                prop_assert!(columns <= width, "{columns} in {width}: {line:?}");
            }
        }
    }
}
