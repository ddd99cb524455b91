//! One line of `expect:`, such as `connect.p99 < 20ms`: a signal, a comparison and a limit in the signal's unit.

use std::cmp::Ordering;
use std::fmt;
use std::time::Duration;

use super::problem::instead;
use super::signal::{Chosen, Measure, Range, Rows, Signal, Unit, names};
use crate::filter::Operator;

/// A condition that can be judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub signal: Chosen,
    /// Of `syscall(read, write)`: which ones. Empty: all.
    pub syscalls: Vec<String>,
    /// Of `syscall.errno(ECONNREFUSED)`: which one.
    pub errno: Option<u16>,
    pub operator: Operator,
    pub limit: Limit,
    /// The window, where it is another than the assertion's: of `slo`.
    pub over: Option<Duration>,
}

/// A limit in its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    Microseconds(u64),
    /// Of one: 0.001 is 0.1 %.
    Ratio(f64),
    Count(u64),
    PerSecond(f64),
    Bytes(u64),
    Truth(bool),
    Number(f64),
}

/// Why a text is no condition: at which of its characters, counted from zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub character: usize,
    pub message: String,
}

fn fault<T>(character: usize, message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault {
        character,
        message: message.into(),
    })
}

const OPERATORS: [(&str, Operator); 8] = [
    // Longer ones first.
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("!=", Operator::NotEqual),
    ("<>", Operator::NotEqual),
    ("==", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
    ("=", Operator::Equal),
];

impl Condition {
    /// # Errors
    /// Also for what no value, or any value, of the signal passes.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let condition = Self::read(text)?;
        if let Some(message) = condition.foregone() {
            let character = first_operator(text).map_or(0, |(at, _)| text[..at].chars().count());
            return fault(character, message);
        }
        Ok(condition)
    }

    fn read(text: &str) -> Result<Self, Fault> {
        let Some((at, &(sign, operator))) = first_operator(text) else {
            return fault(
                text.chars().count(),
                "expected a comparison such as `connect.p99 < 20ms`",
            );
        };
        let (before, errno) = with_errno(text[..at].trim_end())?;
        let (name, syscalls) = named(before)?;
        let Some(signal) = Chosen::named(&name) else {
            let all: Vec<_> = names().collect();
            let message = format!(
                "there is no signal `{name}`, {}",
                instead(&name, all.iter().map(String::as_str))
            );
            return fault(0, message);
        };
        if !syscalls.is_empty() && !name.starts_with("syscall.") && signal.signal.rows != Rows::Syscalls {
            return fault(
                0,
                format!("only `syscall` takes names in brackets, `{name}` does not"),
            );
        }
        if (signal.signal.name == "syscall.errno") != errno.is_some() {
            return fault(
                0,
                "the errno comes in brackets behind `syscall.errno`, as in `syscall(connect).errno(ECONNREFUSED) = 0`",
            );
        }
        let at = at + sign.len();
        let typed = text[at..].trim();
        let character = text[..at].chars().count() + leading_blanks(&text[at..]);
        let limit = limit(typed, signal).map_err(|message| Fault { character, message })?;
        let is_exact = matches!(operator, Operator::Equal | Operator::NotEqual);
        let has_no_equal = matches!(signal.signal.unit, Unit::Time | Unit::Rate);
        if is_exact && has_no_equal {
            return fault(
                text[..at - sign.len()].chars().count(),
                format!("`{signal}` is never exactly something: use <, <=, > or >="),
            );
        }
        if !is_exact && signal.signal.unit == Unit::Truth {
            return fault(
                text[..at - sign.len()].chars().count(),
                format!("`{signal}` is true or false: use ="),
            );
        }
        Ok(Self {
            signal,
            syscalls,
            errno,
            operator,
            limit,
            over: None,
        })
    }

    /// Reads what was written of one: with its window, if it has one of its own.
    pub fn read_back(text: &str) -> Option<Self> {
        let (text, over) = match text.rsplit_once(" over ") {
            Some((text, over)) => (text, Some(duration(over)?)),
            None => (text, None),
        };
        Some(Self {
            over,
            ..Self::read(text).ok()?
        })
    }

    /// What is wrong with it where the signal's range alone decides.
    fn foregone(&self) -> Option<String> {
        let Signal { range, unit, .. } = *self.signal.signal;
        let (least, most) = range.ends();
        let limit = self.limit.value();
        let never_holds = match self.operator {
            Operator::Less => limit <= least,
            Operator::LessOrEqual => limit < least,
            Operator::Greater => limit >= most,
            Operator::GreaterOrEqual => limit > most,
            Operator::Equal => !(least..=most).contains(&limit),
            Operator::NotEqual => false,
        };
        let never_fails = match self.operator {
            Operator::Less => limit > most,
            Operator::LessOrEqual => limit >= most,
            Operator::Greater => limit < least,
            Operator::GreaterOrEqual => limit <= least,
            Operator::Equal => false,
            Operator::NotEqual => !(least..=most).contains(&limit),
        };
        let signal = self.signal;
        let range = || match range {
            Range::Any => "any number".to_owned(),
            Range::FromZero => format!("{} or more", value_text(unit, 0.0)),
            Range::ZeroToOne => format!("from {} to {}", value_text(unit, 0.0), value_text(unit, 1.0)),
        };
        if never_holds {
            return Some(format!("this can never hold: `{signal}` is {}", range()));
        }
        never_fails.then(|| {
            format!(
                "this can never fail: `{signal}` is {}; choose another limit",
                range()
            )
        })
    }

    /// Whether no window can pass both.
    pub fn contradicts(&self, other: &Self) -> bool {
        let is_of_same = self.signal.signal == other.signal.signal
            && (&self.syscalls, self.errno, self.over) == (&other.syscalls, other.errno, other.over);
        if !is_of_same {
            return false;
        }
        match self.signal.quantile.cmp(&other.signal.quantile) {
            Ordering::Equal => !self.leaves_room_with(other),
            // A lower quantile is never more than a higher one.
            Ordering::Less => self.is_above(other),
            Ordering::Greater => other.is_above(self),
        }
    }

    /// Whether a value passes both.
    fn leaves_room_with(&self, other: &Self) -> bool {
        if self.is_above(other) || other.is_above(self) {
            return false;
        }
        let excludes = |excluding: &Self, only: &Self| {
            excluding.operator == Operator::NotEqual
                && only.operator == Operator::Equal
                && excluding.limit == only.limit
        };
        !excludes(self, other) && !excludes(other, self)
    }

    /// Whether all that passes is more than all that passes the other.
    fn is_above(&self, other: &Self) -> bool {
        let (Some((least, has_least)), Some((most, has_most))) = (self.least(), other.most()) else {
            return false;
        };
        let is_whole = matches!(self.signal.signal.unit, Unit::Count | Unit::Bytes);
        // Between two numbers that follow each other is no third one.
        let is_empty_between = is_whole && !has_least && !has_most && most - least <= 1.0;
        least > most || (least == most && !(has_least && has_most)) || is_empty_between
    }

    /// Below which nothing passes, and whether that itself does.
    fn least(&self) -> Option<(f64, bool)> {
        match self.operator {
            Operator::Equal | Operator::GreaterOrEqual => Some((self.limit.value(), true)),
            Operator::Greater => Some((self.limit.value(), false)),
            _ => None,
        }
    }

    /// Above which nothing passes, and whether that itself does.
    fn most(&self) -> Option<(f64, bool)> {
        match self.operator {
            Operator::Equal | Operator::LessOrEqual => Some((self.limit.value(), true)),
            Operator::Less => Some((self.limit.value(), false)),
            _ => None,
        }
    }

    /// Whether a value passes. Quantiles are not judged by their value but by counting: see [`Self::counts_from_us`].
    pub fn admits(&self, value: f64) -> bool {
        let limit = self.limit.value();
        match self.operator {
            Operator::Equal => value == limit,
            Operator::NotEqual => value != limit,
            Operator::Less => value < limit,
            Operator::LessOrEqual => value <= limit,
            Operator::Greater => value > limit,
            Operator::GreaterOrEqual => value >= limit,
        }
    }

    /// Of a quantile: from which time on (microseconds) its values are counted. `p99 < T` says that at most 1 % of the
    /// values are T or more; `p99 <= T` that at most 1 % are more than T, and values are whole.
    pub fn counts_from_us(&self) -> Option<u64> {
        let (Measure::Quantiles(_), Limit::Microseconds(limit)) = (self.signal.signal.measure, self.limit)
        else {
            return None;
        };
        match self.operator {
            Operator::Less | Operator::GreaterOrEqual => Some(limit),
            _ => Some(limit.saturating_add(1)),
        }
    }
}

impl Limit {
    /// As a number in the signal's unit.
    pub fn value(self) -> f64 {
        match self {
            Self::Microseconds(number) | Self::Count(number) | Self::Bytes(number) => number as f64,
            Self::Ratio(number) | Self::PerSecond(number) | Self::Number(number) => number,
            Self::Truth(truth) => f64::from(u8::from(truth)),
        }
    }
}

fn first_operator(text: &str) -> Option<(usize, &'static (&'static str, Operator))> {
    text.char_indices().find_map(|(at, _)| {
        let found = OPERATORS.iter().find(|(sign, _)| text[at..].starts_with(sign))?;
        Some((at, found))
    })
}

fn leading_blanks(text: &str) -> usize {
    text.chars().take_while(|c| c.is_whitespace()).count()
}

/// `syscall(connect).errno(ECONNREFUSED)` is `syscall(connect).errno` of that one.
fn with_errno(text: &str) -> Result<(&str, Option<u16>), Fault> {
    let Some((before, typed)) = text
        .strip_suffix(')')
        .and_then(|text| text.rsplit_once(".errno("))
    else {
        return Ok((text, None));
    };
    let before = &text[..before.len() + ".errno".len()];
    let typed = typed.trim();
    match errnos().find(|(name, _)| *name == typed) {
        Some((_, errno)) => Ok((before, Some(errno))),
        None => {
            let names: Vec<_> = errnos().map(|(name, _)| name).collect();
            let message = match instead(typed, names.into_iter()) {
                hint if hint.starts_with("did you mean") => format!("there is no errno `{typed}`, {hint}"),
                _ => format!(
                    "there is no errno `{typed}`; they are named as in errno(3), such as ECONNREFUSED"
                ),
            };
            fault(before.chars().count() + 1, message)
        }
    }
}

/// Those that callers see (include/uapi/asm-generic/errno.h).
fn errnos() -> impl Iterator<Item = (&'static str, u16)> {
    (1..=133_u16).filter_map(|errno| Some((syscalls::Errno::new(errno.into()).name()?, errno)))
}

/// `syscall(read, write).count` is `syscall.count` of these two.
fn named(text: &str) -> Result<(String, Vec<String>), Fault> {
    let Some((name, rest)) = text.split_once('(') else {
        return Ok((text.to_owned(), Vec::new()));
    };
    let Some((arguments, rest)) = rest.split_once(')') else {
        return fault(name.chars().count(), "this bracket is not closed");
    };
    let mut syscalls = Vec::new();
    let mut character = name.chars().count() + 1;
    for argument in arguments.split(',') {
        let typed = argument.trim();
        if !syscall_names().any(|known| known == typed) {
            let known: Vec<_> = syscall_names().collect();
            let message = match instead(typed, known.into_iter()) {
                hint if hint.starts_with("did you mean") => format!("there is no syscall `{typed}`, {hint}"),
                _ => format!("there is no syscall `{typed}`"),
            };
            return fault(character + leading_blanks(argument), message);
        }
        syscalls.push(typed.to_owned());
        character += argument.chars().count() + 1;
    }
    Ok((format!("{}{rest}", name.trim()), syscalls))
}

/// Of this architecture, and of none of our own.
fn syscall_names() -> impl Iterator<Item = &'static str> {
    syscalls::Sysno::iter().map(|number| number.name())
}

/// `0.1%`, `20ms`, `10MB`, `100/s`, `3`, `true`: what the signal is counted in.
fn limit(typed: &str, signal: Chosen) -> Result<Limit, String> {
    let unit = signal.signal.unit;
    let wrong = |kind: &str| {
        if let Some((first, _)) = typed.split_once(" and ") {
            format!("a condition ends after `{first}`: make `expect` a list, with one condition in each item")
        } else if typed.is_empty() {
            format!("expected {kind} such as {}, got the end", unit.example())
        } else {
            format!(
                "`{signal}` is {kind}, such as {}; `{typed}` is none",
                unit.example()
            )
        }
    };
    match unit {
        Unit::Time => duration(typed)
            .and_then(|time| u64::try_from(time.as_micros()).ok())
            .map(Limit::Microseconds)
            .ok_or_else(|| wrong("a time with its unit")),
        Unit::Ratio => {
            let share = typed
                .strip_suffix('%')
                .and_then(|number| decimal(number.trim_end()));
            let share = share.ok_or_else(|| wrong("a share in percent"))? / 100.0;
            Ok(Limit::Ratio(share))
        }
        Unit::Count => whole(typed)
            .map(Limit::Count)
            .ok_or_else(|| wrong("a whole number")),
        Unit::Rate => typed
            .strip_suffix("/s")
            .and_then(|number| decimal(number.trim_end()))
            .map(Limit::PerSecond)
            .ok_or_else(|| wrong("a number for each second")),
        Unit::Bytes => bytes(typed)
            .map(Limit::Bytes)
            .ok_or_else(|| wrong("a size with its unit")),
        Unit::Truth => match typed {
            "true" => Ok(Limit::Truth(true)),
            "false" => Ok(Limit::Truth(false)),
            _ => Err(wrong("true or false")),
        },
        Unit::Number => {
            let (positive, sign) = typed
                .strip_prefix('-')
                .map_or((typed, 1.0), |positive| (positive, -1.0));
            let number = decimal(positive).map(|number| Limit::Number(sign * number));
            number.ok_or_else(|| wrong("a number"))
        }
    }
}

/// No time that is asked for is longer: a year and more is a slip of the keyboard.
pub const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// `90s`, `1.5h`, `500ms`; never without a unit, never below a microsecond, never above [`LONGEST`].
pub fn duration(text: &str) -> Option<Duration> {
    duration_of_any_length(text).filter(|time| *time <= LONGEST)
}

/// The same, but as long as it likes, up to some centuries.
pub fn duration_of_any_length(text: &str) -> Option<Duration> {
    /// Names and nanoseconds.
    const UNITS: [(&str, u64); 6] = [
        ("us", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
        ("d", 86_400_000_000_000),
    ];
    let (number, unit) = split_unit(text);
    let (_, ns) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let ns = decimal(number)? * *ns as f64;
    // What is too large for 64 bits is the largest number of them.
    Some(Duration::from_nanos(ns.round() as u64 / 1_000 * 1_000))
}

fn bytes(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 9] = [
        ("B", 1),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ];
    let (number, unit) = split_unit(text);
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    Some((decimal(number)? * *factor as f64).round() as u64)
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start())
}

/// No sign, no exponent, no infinity.
fn decimal(text: &str) -> Option<f64> {
    let plain = text.replace('_', "");
    let is_plain = plain.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && plain.starts_with(|c: char| c.is_ascii_digit())
        && plain.ends_with(|c: char| c.is_ascii_digit());
    if is_plain { plain.parse().ok() } else { None }
}

fn whole(text: &str) -> Option<u64> {
    let plain = text.replace('_', "");
    if !plain.is_empty() && plain.bytes().all(|byte| byte.is_ascii_digit()) {
        plain.parse().ok()
    } else {
        None
    }
}

/// A length of time as it is written here: the largest unit that leaves no rest.
pub fn duration_text(time: Duration) -> String {
    let us = time.as_micros();
    for (unit, factor) in [
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
    ] {
        if us != 0 && us.is_multiple_of(factor) {
            return format!("{}{unit}", us / factor);
        }
    }
    if us == 0 {
        "0s".to_owned()
    } else {
        format!("{us}us")
    }
}

/// A value in a signal's unit, as people read it.
pub fn value_text(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time => match value {
            us if us < 1_000.0 => format!("{us:.0}us"),
            us if us < 1_000_000.0 => format!("{}ms", short(us / 1e3)),
            us if us < 120_000_000.0 => format!("{}s", short(us / 1e6)),
            us => format!("{}m", short(us / 60e6)),
        },
        Unit::Ratio => format!("{}%", short(value * 100.0)),
        Unit::Count => format!("{value:.0}"),
        Unit::Rate => format!("{}/s", short(value)),
        Unit::Bytes => match value {
            bytes if bytes < 1e3 => format!("{bytes:.0}B"),
            bytes if bytes < 1e6 => format!("{}kB", short(bytes / 1e3)),
            bytes if bytes < 1e9 => format!("{}MB", short(bytes / 1e6)),
            bytes => format!("{}GB", short(bytes / 1e9)),
        },
        Unit::Truth => (value != 0.0).to_string(),
        Unit::Number => short(value),
    }
}

/// Three digits, without zeros at the end.
fn short(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.signal.to_string();
        let name = if self.syscalls.is_empty() {
            name
        } else {
            name.replacen("syscall", &format!("syscall({})", self.syscalls.join(", ")), 1)
        };
        let errno = self
            .errno
            .and_then(|errno| syscalls::Errno::new(errno.into()).name());
        let name = match errno {
            Some(errno) => format!("{name}({errno})"),
            None => name,
        };
        let sign = match self.operator {
            Operator::Equal => "=",
            Operator::NotEqual => "!=",
            Operator::Less => "<",
            Operator::LessOrEqual => "<=",
            Operator::Greater => ">",
            Operator::GreaterOrEqual => ">=",
        };
        let limit = match self.limit {
            Limit::Microseconds(us) => duration_text(Duration::from_micros(us)),
            limit => value_text(self.signal.signal.unit, limit.value()),
        };
        write!(f, "{name} {sign} {limit}")?;
        match self.over {
            Some(over) => write!(f, " over {}", duration_text(over)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_read_and_written_alike() {
        for text in [
            "connect.p99 < 20ms",
            "connect.p99.9 <= 1500us",
            "connect.refused_ratio < 0.1%",
            "connect.count >= 100",
            "connect.rate > 0.5/s",
            "connections.bytes_sent < 10MB",
            "syscall(read, write).error_ratio < 1%",
            "syscall(connect).errno(ECONNREFUSED) = 0",
            "syscall.errno(EMFILE) = 0",
            "syscall(fsync).p99 < 50ms",
            "node.up = true",
            "value < 0.5",
            "value >= -1.5",
            "listener.drops = 0",
        ] {
            assert_eq!(Condition::parse(text).expect(text).to_string(), text);
        }
        assert_eq!(
            Condition::parse("connect.p99<0.02s").map(|condition| condition.to_string()),
            Ok("connect.p99 < 20ms".to_owned())
        );
    }

    #[test]
    fn a_fault_says_what_was_expected() {
        for (text, character, message) in [
            (
                "connect.p99",
                11,
                "expected a comparison such as `connect.p99 < 20ms`",
            ),
            (
                "connect.p98 < 1ms",
                0,
                "there is no signal `connect.p98`, did you mean connect.p90?",
            ),
            (
                "connect.p99 < 20",
                14,
                "`connect.p99` is a time with its unit, such as 20ms; `20` is none",
            ),
            (
                "connect.p99 <",
                13,
                "expected a time with its unit such as 20ms, got the end",
            ),
            (
                "connect.p99 = 1ms",
                12,
                "`connect.p99` is never exactly something: use <, <=, > or >=",
            ),
            (
                "connect.refused_ratio < 0.001",
                24,
                "`connect.refused_ratio` is a share in percent, such as 0.1%; `0.001` is none",
            ),
            (
                "connect.refused_ratio < 101%",
                22,
                "this can never fail: `connect.refused_ratio` is from 0% to 100%; choose another limit",
            ),
            (
                "connect.count < -1",
                16,
                "`connect.count` is a whole number, such as 0; `-1` is none",
            ),
            (
                "connect.rate < 5",
                15,
                "`connect.rate` is a number for each second, such as 100/s; `5` is none",
            ),
            (
                "syscall(raed).count < 1",
                8,
                "there is no syscall `raed`, did you mean read?",
            ),
            (
                "connect(read).count < 1",
                0,
                "only `syscall` takes names in brackets, `connect.count` does not",
            ),
            (
                "syscall.errno(ECONREFUSED) = 0",
                14,
                "there is no errno `ECONREFUSED`, did you mean ECONNREFUSED?",
            ),
            (
                "syscall(connect).errno = 0",
                0,
                "the errno comes in brackets behind `syscall.errno`, as in `syscall(connect).errno(ECONNREFUSED) = 0`",
            ),
            (
                "node.up = true and agent.cpu < 5%",
                10,
                "a condition ends after `true`: make `expect` a list, with one condition in each item",
            ),
            ("node.up < true", 8, "`node.up` is true or false: use ="),
        ] {
            let fault = Condition::parse(text).expect_err(text);
            assert_eq!(
                (fault.character, fault.message.as_str()),
                (character, message),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_range_of_a_signal_decides_is_refused() {
        for (text, message) in [
            (
                "connect.count < 0",
                "this can never hold: `connect.count` is 0 or more",
            ),
            (
                "connect.count >= 0",
                "this can never fail: `connect.count` is 0 or more; ",
            ),
            (
                "connect.p99 < 0ms",
                "this can never hold: `connect.p99` is 0us or more",
            ),
            (
                "connect.p99 >= 0ms",
                "this can never fail: `connect.p99` is 0us or more; ",
            ),
            (
                "connect.rate >= 0/s",
                "this can never fail: `connect.rate` is 0/s or more; ",
            ),
            ("connections.bytes_sent < 0B", "this can never hold: "),
            (
                "connect.failed_ratio <= 100%",
                "this can never fail: `connect.failed_ratio` is from 0% to 100%; ",
            ),
            ("connect.failed_ratio >= 0%", "this can never fail: "),
            ("connect.failed_ratio != 101%", "this can never fail: "),
            ("connect.failed_ratio > 100%", "this can never hold: "),
            ("connect.failed_ratio >= 101%", "this can never hold: "),
            ("connect.failed_ratio = 101%", "this can never hold: "),
            ("connect.failed_ratio < 0%", "this can never hold: "),
            (
                "listener.backlog_ratio >= 0%",
                "this can never fail: `listener.backlog_ratio` is 0% or more; ",
            ),
        ] {
            let fault = Condition::parse(text).expect_err(text);
            assert!(fault.message.starts_with(message), "{text}: {}", fault.message);
            assert_eq!(Some(fault.character), text.find(['<', '>', '=', '!']), "{text}");
            // What is stored of it is read still.
            assert!(Condition::read_back(text).is_some(), "{text}");
        }
        for text in [
            "connect.count <= 0",
            "connect.count > 0",
            "connect.p99 <= 0ms",
            "connect.failed_ratio < 100%",
            "connect.failed_ratio >= 100%",
            "connect.failed_ratio > 0%",
            "connect.failed_ratio = 0%",
            "listener.backlog_ratio <= 100%",
            "listener.backlog_ratio > 100%",
            "agent.cpu <= 100%",
            "node.up != true",
            "node.up = false",
            "value >= 0",
            "value < -1",
        ] {
            Condition::parse(text).expect(text);
        }
    }

    #[test]
    fn two_conditions_that_no_window_passes_are_known() {
        let check = |one: &str, other: &str, expected: bool| {
            let [first, second] = [one, other].map(|text| Condition::parse(text).expect(text));
            assert_eq!(first.contradicts(&second), expected, "{one}, {other}");
            assert_eq!(second.contradicts(&first), expected, "{other}, {one}");
        };
        check("connect.p99 < 5ms", "connect.p99 > 10ms", true);
        check("connect.p99 < 5ms", "connect.p99 >= 5ms", true);
        check("connect.p99 < 5ms", "connect.p50 > 10ms", true);
        check("connect.count = 0", "connect.count > 5", true);
        check("connect.count = 0", "connect.count = 1", true);
        check("connect.count = 3", "connect.count != 3", true);
        check("connect.count > 3", "connect.count < 4", true);
        check("node.up = true", "node.up = false", true);
        check("syscall(read).count = 0", "syscall(read).count > 0", true);

        check("connect.p99 < 10ms", "connect.p99 > 5ms", false);
        check("connect.p99 <= 5ms", "connect.p99 >= 5ms", false);
        check("connect.p50 < 5ms", "connect.p99 > 10ms", false);
        check("connect.p99 < 5ms", "rtt.p99 > 10ms", false);
        check("connect.count > 3", "connect.count < 5", false);
        check("connect.count != 3", "connect.count != 4", false);
        check("connect.rate > 3/s", "connect.rate < 4/s", false);
        check("syscall(read).count = 0", "syscall(write).count > 0", false);
        check("syscall.errno(EMFILE) = 0", "syscall.errno(ENFILE) > 0", false);
    }

    #[test]
    fn quantiles_are_judged_by_counting() {
        let from = |text| Condition::parse(text).expect(text).counts_from_us();
        assert_eq!(from("connect.p99 < 20ms"), Some(20_000));
        assert_eq!(from("connect.p99 >= 20ms"), Some(20_000));
        assert_eq!(from("connect.p99 <= 20ms"), Some(20_001));
        assert_eq!(from("connect.p99 > 20ms"), Some(20_001));
        assert_eq!(from("connect.max < 20ms"), None);
    }
}
