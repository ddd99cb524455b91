//! What a run is expected to show: `connect.p99 < 20ms`, `error_ratio < 0.1%`, `established >= 100`. Pure.

use std::fmt;

use holdfast_proto::v1::LoadPlan;

use super::counts;
use super::result::Outcome;
use crate::assertion::problem::nearest;

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    text: String,
    signal: Signal,
    comparison: Comparison,
    /// Nanoseconds, a ratio, or a number.
    threshold: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Signal {
    Time(Clock, Statistic),
    Ratio(Count),
    Count(Count),
    There(There),
    /// Established, or answered as expected, a second.
    Rate,
}

/// What the target's kernel says of connections that were established here. It is known of so many at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Established,
    Accepted,
    Served,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Connect,
    Dial,
    Network,
    Exchange,
    Request,
    Jitter,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Quantile(f64),
    Mean,
    Least,
    Most,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Established,
    Error,
    Refused,
    TimedOut,
    Reset,
    Unreachable,
    Lost,
    Closed,
    Requests,
    Answered,
    UnexpectedStatus,
    UnexpectedBody,
    RequestTimedOut,
    RequestLost,
    Malformed,
    Unsent,
    Insecure,
    Reordered,
    Duplicated,
}

impl There {
    /// Whether no more than is known can have been. A process may take a connection where no agent sees it.
    fn is_exact(self, outcome: &Outcome) -> bool {
        let exact_of = outcome.there.and_then(|there| there.exact_of);
        self != Self::Accepted && exact_of.is_some_and(|all| all >= outcome.counts.established)
    }
}

impl Count {
    /// Nothing of it is wanted, and it only grows.
    fn is_of_failures(self) -> bool {
        match self {
            Self::Error
            | Self::Refused
            | Self::TimedOut
            | Self::Reset
            | Self::Unreachable
            | Self::Lost
            | Self::UnexpectedStatus
            | Self::UnexpectedBody
            | Self::RequestTimedOut
            | Self::RequestLost
            | Self::Malformed
            | Self::Unsent
            | Self::Insecure => true,
            Self::Established
            | Self::Closed
            | Self::Requests
            | Self::Answered
            | Self::Reordered
            | Self::Duplicated => false,
        }
    }

    /// A part of the requests, not of the attempts to connect.
    fn is_of_requests(self) -> bool {
        matches!(
            self,
            Self::Requests
                | Self::Answered
                | Self::UnexpectedStatus
                | Self::UnexpectedBody
                | Self::RequestTimedOut
                | Self::RequestLost
                | Self::Malformed
                | Self::Unsent
                | Self::Reordered
                | Self::Duplicated
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
    Equal,
}

/// Whether it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Holds,
    Violated,
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Holds => "holds",
            Self::Violated => "violated",
            Self::Unknown => "unknown",
        })
    }
}

const SHAPE: &str =
    "write connect.p99 < 20ms, error_ratio < 0.1%, established >= 100, lost = 0 or rate > 1000/s";

impl Expectation {
    /// # Errors
    /// With what is wrong and how it is written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fault = |part: &str| format!("the expectation `{text}` {part}; {SHAPE}");
        let at = text
            .find(['<', '>', '='])
            .ok_or_else(|| fault("has no comparison"))?;
        let (signal, rest) = text.split_at(at);
        let (comparison, value) = [
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::MoreOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::More),
            ("=", Comparison::Equal),
        ]
        .into_iter()
        .find_map(|(sign, comparison)| rest.strip_prefix(sign).map(|value| (comparison, value.trim())))
        .ok_or_else(|| fault("has no comparison"))?;
        let signal = signal.trim();
        let signal = Signal::parse(signal).ok_or_else(|| fault(&nothing(signal)))?;
        let threshold = match signal {
            Signal::Time(..) => nanoseconds(value).ok_or_else(|| fault("needs a time with its unit"))?,
            Signal::Ratio(_) => ratio(value).ok_or_else(|| fault("needs a ratio such as 0.1%"))?,
            Signal::Count(_) | Signal::There(_) => number(value).ok_or_else(|| fault("needs a number"))?,
            Signal::Rate => {
                let number = value.strip_suffix("/s").and_then(number);
                number.ok_or_else(|| fault("needs a rate such as 1000/s"))?
            }
        };
        Ok(Self {
            text: text.to_owned(),
            signal,
            comparison,
            threshold,
        })
    }

    /// Whether a run of this plan can show it. What it never has would be unknown at its end, or, of a count, always as good as can be.
    ///
    /// # Errors
    /// If it cannot, with what it can.
    pub fn check(&self, plan: &LoadPlan) -> Result<(), String> {
        let kind = Kind::of(plan);
        let fault = |why: &str| Err(format!("the expectation `{}` {why}", self.text));
        match self.signal {
            Signal::Time(Clock::Exchange, _) if kind == (Kind::Connections { has_payload: false }) => {
                fault("is of payload that goes back and forth: give --payload")
            }
            Signal::Time(Clock::Jitter, statistic)
                if kind == (Kind::Datagrams { is_one_way: true }) && statistic != Statistic::Mean =>
            {
                fault(
                    "is of a mean that the receiver has, which has no percentiles: write jitter.mean, or leave --one-way out",
                )
            }
            _ if self.signal.is_of(kind) => Ok(()),
            _ => fault(&format!(
                "is nothing that such a run shows; it shows {}",
                kind.shows()
            )),
        }
    }

    /// Whether it is of what the target's kernel says.
    pub fn is_of_the_target(&self) -> bool {
        matches!(self.signal, Signal::There(_))
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// What a run showed of it, in words, and whether that is as expected. Nothing passes for lack of data.
    pub fn judge(&self, outcome: &Outcome) -> (String, Verdict) {
        let Some(value) = self.signal.of(outcome) else {
            return ("no data".into(), Verdict::Unknown);
        };
        let holds = self.holds_of(value);
        let mut shown = match self.signal {
            Signal::Time(..) => super::result::human(value as u64),
            Signal::Ratio(_) => format!("{:.3}%", value * 100.0),
            Signal::Count(_) | Signal::There(_) => format!("{value}"),
            Signal::Rate => format!("{value:.0}/s"),
        };
        if !holds && outcome.is_stopped && self.could_come(value) {
            return (format!("{shown} when it was stopped"), Verdict::Unknown);
        }
        if let Signal::There(which) = self.signal
            && !which.is_exact(outcome)
            && self.may_be_more(holds, value, outcome)
        {
            return (format!("{shown} or more"), Verdict::Unknown);
        }
        if self.signal == Signal::Count(Count::Established)
            && let Some(there) = outcome.there.filter(|there| there.missing > 0)
        {
            let by_both = value - there.missing as f64;
            if self.holds_of(by_both) != holds {
                shown += &format!(", and {by_both} by the target's kernel too, as far as its agent has told");
                let is_proven = holds && There::Established.is_exact(outcome);
                let verdict = if is_proven {
                    Verdict::Violated
                } else {
                    Verdict::Unknown
                };
                return (shown, verdict);
            }
        }
        if let Some(doubt) = outcome
            .doubt()
            .filter(|_| self.is_of_generator(holds, value, outcome))
        {
            shown += &format!(", {doubt}");
            return (shown, Verdict::Unknown);
        }
        (shown, if holds { Verdict::Holds } else { Verdict::Violated })
    }

    fn holds_of(&self, value: f64) -> bool {
        match self.comparison {
            Comparison::Less => value < self.threshold,
            Comparison::LessOrEqual => value <= self.threshold,
            Comparison::More => value > self.threshold,
            Comparison::MoreOrEqual => value >= self.threshold,
            Comparison::Equal => value == self.threshold,
        }
    }

    /// Whether it would be otherwise if the target's kernel knew of more than it has told: it can of no more than were established here.
    fn may_be_more(&self, holds: bool, value: f64, outcome: &Outcome) -> bool {
        value < outcome.counts.established as f64
            && match self.comparison {
                Comparison::More | Comparison::MoreOrEqual => !holds,
                Comparison::Less | Comparison::LessOrEqual => holds,
                Comparison::Equal => value <= self.threshold,
            }
    }

    /// Whether a generator that is the limit of what waits for it may have a part in that this holds, or that it does not. Where the loop
    /// is not closed, nor all was due at once, those are the exchanges. Each time is its own too, but for what the kernel measures; of what was counted it only may
    /// have kept things from happening in time.
    fn is_of_generator(&self, holds: bool, value: f64, outcome: &Outcome) -> bool {
        let is_of_exchanges = match self.signal {
            Signal::Time(clock, _) => clock == Clock::Exchange,
            Signal::Ratio(count) | Signal::Count(count) => count == Count::Lost,
            Signal::There(_) | Signal::Rate => false,
        };
        if !outcome.waits_for_the_generator() && !is_of_exchanges {
            return false;
        }
        match self.signal {
            Signal::Time(clock, _) => clock != Clock::Network,
            Signal::Ratio(count) | Signal::Count(count) if count.is_of_failures() => {
                !holds && !self.is_broken_by_answers(outcome)
            }
            // A faster one would have come to more.
            _ => match self.comparison {
                Comparison::More | Comparison::MoreOrEqual => !holds,
                Comparison::Less | Comparison::LessOrEqual => holds,
                Comparison::Equal => value < self.threshold,
            },
        }
    }

    /// Whether what the target answered is enough to break it, were everything else as good as can be. A generator that was slow or
    /// lacked something has no part in that.
    pub fn is_broken_by_answers(&self, outcome: &Outcome) -> bool {
        let (Signal::Ratio(count) | Signal::Count(count)) = self.signal else {
            return false;
        };
        if !count.is_of_failures() {
            return false;
        }
        let answers = Outcome {
            counts: counts::but_for_silences(&outcome.counts, outcome.proven()),
            ..Outcome::default()
        };
        let Some(value) = self.signal.of(&answers) else {
            return false;
        };
        match self.comparison {
            Comparison::Less => value >= self.threshold,
            Comparison::LessOrEqual | Comparison::Equal => value > self.threshold,
            Comparison::More | Comparison::MoreOrEqual => false,
        }
    }

    /// Whether a number that grows while a run lasts is short of what is expected.
    fn could_come(&self, value: f64) -> bool {
        let is_least = matches!(
            self.comparison,
            Comparison::More | Comparison::MoreOrEqual | Comparison::Equal
        );
        matches!(self.signal, Signal::Count(_) | Signal::There(_)) && is_least && value <= self.threshold
    }
}

/// What a plan makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Connections { has_payload: bool },
    Requests,
    Datagrams { is_one_way: bool },
}

impl Kind {
    fn of(plan: &LoadPlan) -> Self {
        match (&plan.http, &plan.udp) {
            (Some(_), _) => Self::Requests,
            (None, Some(udp)) => Self::Datagrams {
                is_one_way: udp.one_way,
            },
            (None, None) => Self::Connections {
                has_payload: plan.payload_bytes > 0,
            },
        }
    }

    /// What can be expected of it, as the help of each command has it.
    fn shows(self) -> &'static str {
        match self {
            Self::Connections { .. } => {
                "connect, dial, network and, with --payload, exchange with .p50 .p99 .p99.9 .mean .min .max; established, errors, refused, \
                 timed_out, reset, unreachable, lost, closed, and their ratios such as error_ratio; rate; where the target has an agent \
                 established_there, accepted, served"
            }
            Self::Requests => {
                "request, response, connect, dial, network with .p50 .p99 .p99.9 .mean .min .max; requests, answered, errors, \
                 unexpected_status, unexpected_body, request_timed_out, request_lost, malformed, unsent, insecure, those of connections such \
                 as refused and timed_out, and their ratios such as error_ratio; rate; where the target has an agent established_there, \
                 accepted, served"
            }
            Self::Datagrams { is_one_way: false } => {
                "request, response and jitter with .p50 .p99 .p99.9 .mean .min .max; requests, answered, errors, request_timed_out, refused, \
                 unreachable, unsent, reordered, duplicated, and their ratios such as error_ratio; rate"
            }
            Self::Datagrams { is_one_way: true } => {
                "jitter.mean; requests, answered, errors, request_timed_out, refused, unreachable, unsent, reordered, duplicated, and their \
                 ratios such as error_ratio; rate"
            }
        }
    }
}

/// Why a name is none, and what is meant, if it is a slip of the finger away.
fn nothing(typed: &str) -> String {
    let (clock, statistic) = typed.split_once('.').unwrap_or((typed, ""));
    let is_of_times = !statistic.is_empty();
    let names = if is_of_times { CLOCKS } else { COUNTS };
    let meant = nearest(clock, names).filter(|meant| *meant != clock);
    match meant {
        Some(meant) if is_of_times => {
            format!("names nothing that a run shows (did you mean {meant}.{statistic}?)")
        }
        Some(meant) => format!("names nothing that a run shows (did you mean {meant}?)"),
        None => "names nothing that a run shows".to_owned(),
    }
}

/// How what a run shows is called.
const CLOCKS: &[&str] = &[
    "connect", "dial", "network", "exchange", "response", "request", "jitter",
];
const COUNTS: &[&str] = &[
    "rate",
    "established",
    "established_ratio",
    "established_there",
    "accepted",
    "served",
    "errors",
    "error_ratio",
    "refused",
    "refused_ratio",
    "timed_out",
    "timed_out_ratio",
    "reset",
    "reset_ratio",
    "unreachable",
    "unreachable_ratio",
    "lost",
    "lost_ratio",
    "closed",
    "closed_ratio",
    "requests",
    "answered",
    "answered_ratio",
    "unexpected_status",
    "unexpected_status_ratio",
    "unexpected_body",
    "unexpected_body_ratio",
    "request_timed_out",
    "request_timed_out_ratio",
    "request_lost",
    "request_lost_ratio",
    "malformed",
    "malformed_ratio",
    "unsent",
    "unsent_ratio",
    "insecure",
    "insecure_ratio",
    "reordered",
    "reordered_ratio",
    "duplicated",
    "duplicated_ratio",
];

impl Signal {
    /// Whether a run of this kind has it.
    fn is_of(self, kind: Kind) -> bool {
        let is_of_datagrams = matches!(kind, Kind::Datagrams { .. });
        let is_of_connections = !is_of_datagrams;
        let is_of_requests = !matches!(kind, Kind::Connections { .. });
        match self {
            Self::Rate => true,
            Self::There(_) => is_of_connections,
            Self::Time(Clock::Connect | Clock::Dial | Clock::Network, _) => is_of_connections,
            Self::Time(Clock::Exchange, _) => kind != (Kind::Datagrams { is_one_way: true }),
            Self::Time(Clock::Request, _) => is_of_requests && kind != (Kind::Datagrams { is_one_way: true }),
            Self::Time(Clock::Jitter, _) => is_of_datagrams,
            Self::Ratio(count) | Self::Count(count) => match count {
                Count::Error | Count::Refused | Count::Unreachable => true,
                Count::Established | Count::TimedOut | Count::Reset | Count::Lost | Count::Closed => {
                    is_of_connections
                }
                Count::Requests
                | Count::Answered
                | Count::RequestTimedOut
                | Count::RequestLost
                | Count::Unsent => is_of_requests,
                Count::UnexpectedStatus | Count::UnexpectedBody | Count::Malformed | Count::Insecure => {
                    kind == Kind::Requests
                }
                Count::Reordered | Count::Duplicated => is_of_datagrams,
            },
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "rate" {
            return Some(Self::Rate);
        }
        if let Some((clock, statistic)) = text.split_once('.') {
            let clock = match clock {
                "connect" => Clock::Connect,
                "dial" => Clock::Dial,
                "network" => Clock::Network,
                // Of a payload, or of a request since it was sent.
                "exchange" | "response" => Clock::Exchange,
                "request" => Clock::Request,
                "jitter" => Clock::Jitter,
                _ => return None,
            };
            let statistic = match statistic {
                "mean" | "avg" => Statistic::Mean,
                "min" => Statistic::Least,
                "max" => Statistic::Most,
                _ => {
                    let percent: f64 = statistic.strip_prefix('p')?.parse().ok()?;
                    Statistic::Quantile(
                        Some(percent).filter(|percent| (0.0..=100.0).contains(percent))? / 100.0,
                    )
                }
            };
            return Some(Self::Time(clock, statistic));
        }
        match text {
            "established_there" => return Some(Self::There(There::Established)),
            "accepted" => return Some(Self::There(There::Accepted)),
            "served" => return Some(Self::There(There::Served)),
            _ => {}
        }
        let (name, is_ratio) = match text.strip_suffix("_ratio") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let count = match name {
            "established" => Count::Established,
            "error" if is_ratio => Count::Error,
            "errors" if !is_ratio => Count::Error,
            "refused" => Count::Refused,
            "timed_out" => Count::TimedOut,
            "reset" => Count::Reset,
            "unreachable" => Count::Unreachable,
            "lost" => Count::Lost,
            "closed" => Count::Closed,
            "requests" => Count::Requests,
            "answered" => Count::Answered,
            "unexpected_status" => Count::UnexpectedStatus,
            "unexpected_body" => Count::UnexpectedBody,
            "request_timed_out" => Count::RequestTimedOut,
            "request_lost" => Count::RequestLost,
            "malformed" => Count::Malformed,
            "unsent" => Count::Unsent,
            "insecure" => Count::Insecure,
            "reordered" => Count::Reordered,
            "duplicated" => Count::Duplicated,
            _ => return None,
        };
        Some(if is_ratio {
            Self::Ratio(count)
        } else {
            Self::Count(count)
        })
    }

    fn of(self, outcome: &Outcome) -> Option<f64> {
        let of = |count: Count| {
            let counts = &outcome.counts;
            match count {
                Count::Established => counts.established,
                // Of a run of requests those are what somebody sees.
                Count::Error if counts.requests > 0 => counts::request_errors(counts),
                Count::Error => counts::errors(counts),
                Count::Refused => counts.refused,
                Count::TimedOut => counts.timed_out,
                Count::Reset => counts.reset,
                Count::Unreachable => counts.unreachable,
                Count::Lost => counts::lost(counts),
                Count::Closed => counts.closed,
                Count::Requests => counts.requests,
                Count::Answered => counts.answered,
                Count::UnexpectedStatus => counts.unexpected_status,
                Count::UnexpectedBody => counts.unexpected_body,
                Count::RequestTimedOut => counts.request_timed_out,
                Count::RequestLost => counts.request_lost,
                Count::Malformed => counts.malformed,
                Count::Unsent => counts.unsent,
                Count::Insecure => counts.insecure,
                Count::Reordered => counts.reordered,
                Count::Duplicated => counts.duplicated,
            }
        };
        match self {
            // One value of each receiver has no percentiles.
            Self::Time(Clock::Jitter, statistic)
                if outcome.is_jitter_mean && statistic != Statistic::Mean =>
            {
                None
            }
            Self::Time(clock, statistic) => {
                let times = match clock {
                    Clock::Connect => &outcome.connect,
                    Clock::Dial => &outcome.dial,
                    Clock::Network => &outcome.network,
                    Clock::Exchange => &outcome.exchange,
                    Clock::Request => &outcome.request,
                    Clock::Jitter => &outcome.jitter,
                };
                (!times.is_empty()).then(|| match statistic {
                    Statistic::Quantile(quantile) => times.value_at_quantile(quantile) as f64,
                    Statistic::Mean => times.mean(),
                    Statistic::Least => times.min() as f64,
                    Statistic::Most => times.max() as f64,
                })
            }
            // What was lost or closed was established before; everything else is a part of the attempts.
            Self::Ratio(count @ (Count::Lost | Count::Closed | Count::Insecure)) => {
                quotient(of(count), outcome.counts.established)
            }
            Self::Ratio(count)
                if count.is_of_requests()
                    || (count == Count::Error && outcome.counts.requests > 0)
                    || (matches!(count, Count::Refused | Count::Unreachable)
                        && counts::are_of_datagrams(&outcome.counts)) =>
            {
                quotient(
                    of(count),
                    outcome.counts.answered + counts::request_errors(&outcome.counts),
                )
            }
            Self::Ratio(count) => quotient(
                of(count),
                counts::decided(&outcome.counts) - outcome.counts.abandoned,
            ),
            Self::Count(count) => {
                (outcome.counts.started + outcome.counts.requests > 0).then(|| of(count) as f64)
            }
            Self::There(which) => outcome.there.map(|there| match which {
                There::Established => there.established as f64,
                There::Accepted => there.accepted as f64,
                There::Served => there.served as f64,
            }),
            Self::Rate => {
                let seconds = outcome.elapsed_ns as f64 / 1e9;
                let made = if outcome.counts.requests > 0 {
                    outcome.counts.answered
                } else {
                    outcome.counts.established
                };
                (seconds > 0.0).then(|| made as f64 / seconds)
            }
        }
    }
}

fn quotient(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

fn number(text: &str) -> Option<f64> {
    text.parse::<f64>()
        .ok()
        .filter(|number| number.is_finite() && *number >= 0.0)
}

/// Of a part in the whole: nothing is more.
fn ratio(text: &str) -> Option<f64> {
    let ratio = match text.strip_suffix('%') {
        Some(percent) => number(percent.trim()).map(|percent| percent / 100.0),
        None => number(text),
    };
    ratio.filter(|ratio| *ratio <= 1.0)
}

fn nanoseconds(text: &str) -> Option<f64> {
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    let factor = match unit.trim() {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    number(text[..text.len() - unit.len()].trim()).map(|number| number * factor)
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::{LoadHttp, LoadUdp};

    use super::*;

    fn outcome() -> Outcome {
        let mut outcome = Outcome {
            elapsed_ns: 2_000_000_000,
            ..Outcome::default()
        };
        outcome.counts.started = 100;
        outcome.counts.established = 98;
        outcome.counts.refused = 2;
        for ms in 1..=98 {
            outcome.connect.record(ms * 1_000_000).unwrap();
        }
        outcome
    }

    #[test]
    fn what_is_expected_is_judged_by_what_was_seen() {
        let check = |text: &str, verdict| {
            let (shown, found) = Expectation::parse(text).unwrap().judge(&outcome());
            assert_eq!(found, verdict, "{text}: {shown}");
        };
        check("connect.p99 < 200ms", Verdict::Holds);
        check("connect.p50 < 20ms", Verdict::Violated);
        check("error_ratio < 0.1%", Verdict::Violated);
        check("error_ratio <= 0.02", Verdict::Holds);
        check("established >= 98", Verdict::Holds);
        check("lost = 0", Verdict::Holds);
        check("rate>10/s", Verdict::Holds);
        // Nothing passes for lack of data.
        check("exchange.p99 < 1s", Verdict::Unknown);
        let (_, nothing) = Expectation::parse("lost = 0").unwrap().judge(&Outcome::default());
        assert_eq!(nothing, Verdict::Unknown);
    }

    #[test]
    fn times_of_a_closed_loop_that_its_generator_limits_are_unknown_and_answers_are_not() {
        let mut saturated = Outcome {
            watched_ns: 4_000_000_000,
            saturated_ns: 3_000_000_000,
            is_closed_loop: true,
            ..outcome()
        };
        saturated.counts.timed_out = 1;
        saturated.network.record_n(2_000_000, 98).unwrap();
        let check = |outcome: &Outcome, text: &str, verdict, part: &str| {
            let (shown, found) = Expectation::parse(text).unwrap().judge(outcome);
            assert_eq!(found, verdict, "{text}: {shown}");
            assert!(shown.contains(part), "{text}: {shown}");
        };
        let limited = "limited by the generator, which had no CPU time left for 75% of the run";
        check(&saturated, "connect.p50 < 20ms", Verdict::Unknown, limited);
        check(&saturated, "connect.p99 < 200ms", Verdict::Unknown, limited);
        // What the kernel measures, what came to pass, and what the target refused, is as it is.
        check(&saturated, "network.p99 < 1ms", Verdict::Violated, "");
        check(&saturated, "rate > 10/s", Verdict::Holds, "");
        check(&saturated, "refused = 0", Verdict::Violated, "");
        check(&saturated, "error_ratio < 1%", Verdict::Violated, "");
        // What did not come to pass in time may be its doing.
        check(&saturated, "rate > 1000/s", Verdict::Unknown, limited);
        check(&saturated, "established = 100", Verdict::Unknown, limited);
        check(&saturated, "timed_out = 0", Verdict::Unknown, limited);
        check(&saturated, "error_ratio < 2.5%", Verdict::Unknown, limited);
        // So may be that it came to no more; but not that it did.
        check(&saturated, "rate < 1000/s", Verdict::Unknown, limited);
        check(&saturated, "established <= 98", Verdict::Unknown, limited);
        check(&saturated, "rate < 10/s", Verdict::Violated, "");
        check(&saturated, "established = 0", Verdict::Violated, "");
        check(&saturated, "established = 98", Verdict::Holds, "");
        check(&saturated, "refused <= 2", Verdict::Holds, "");
        // Of attempts that both ends know it of it is not.
        saturated.confirmed = 1;
        check(&saturated, "timed_out = 0", Verdict::Violated, "");
        check(&saturated, "error_ratio < 2.5%", Verdict::Violated, "");
        // As of attempts that are late, one of a hundred may be.
        saturated.saturated_ns = 40_000_000;
        check(&saturated, "connect.p50 < 20ms", Verdict::Violated, "");
    }

    #[test]
    fn where_only_payload_goes_back_and_forth_the_generator_has_its_part_in_exchanges_alone() {
        let mut saturated = Outcome {
            watched_ns: 4_000_000_000,
            saturated_ns: 3_000_000_000,
            ..outcome()
        };
        saturated.exchange.record_n(2_000_000, 98).unwrap();
        saturated.counts.lost_timed_out = 1;
        let check = |outcome: &Outcome, text: &str, verdict| {
            let (shown, found) = Expectation::parse(text).unwrap().judge(outcome);
            assert_eq!(found, verdict, "{text}: {shown}");
        };
        check(&saturated, "exchange.p99 < 1ms", Verdict::Unknown);
        check(&saturated, "exchange.p99 < 10ms", Verdict::Unknown);
        check(&saturated, "lost = 0", Verdict::Unknown);
        // An open loop is late where its generator is slow.
        check(&saturated, "connect.p50 < 20ms", Verdict::Violated);
        check(&saturated, "connect.p99 < 200ms", Verdict::Holds);
        check(&saturated, "rate > 1000/s", Verdict::Violated);
        check(&saturated, "established <= 98", Verdict::Holds);
        saturated.counts.reset_by_peer = 1;
        check(&saturated, "lost = 0", Verdict::Violated);
        saturated.saturated_ns = 0;
        check(&saturated, "exchange.p99 < 1ms", Verdict::Violated);
    }

    #[test]
    fn jitter_that_only_the_receiver_knows_has_a_mean_and_no_percentiles() {
        let mut outcome = outcome();
        outcome.is_jitter_mean = true;
        outcome.jitter.record(2_000_000).unwrap();
        let check = |text: &str, verdict| {
            let (shown, found) = Expectation::parse(text).unwrap().judge(&outcome);
            assert_eq!(found, verdict, "{text}: {shown}");
        };
        check("jitter.mean < 5ms", Verdict::Holds);
        check("jitter.mean < 1ms", Verdict::Violated);
        for nothing in ["jitter.p99 < 5ms", "jitter.max < 5ms", "jitter.min < 5ms"] {
            check(nothing, Verdict::Unknown);
        }
    }

    #[test]
    fn what_refuses_datagrams_is_a_part_of_them() {
        let mut outcome = Outcome::default();
        outcome.counts.requests = 10;
        outcome.counts.answered = 6;
        outcome.counts.refused = 3;
        outcome.counts.request_timed_out = 1;
        let check = |text: &str, seen: &str| {
            assert_eq!(
                Expectation::parse(text).unwrap().judge(&outcome).0,
                seen,
                "{text}"
            );
        };
        check("refused = 3", "3");
        check("refused_ratio < 50%", "30.000%");
        check("unreachable_ratio < 50%", "0.000%");
        check("errors = 4", "4");
        check("error_ratio < 50%", "40.000%");
        check("request_timed_out_ratio < 50%", "10.000%");
    }

    #[test]
    fn what_a_run_that_was_stopped_could_still_have_shown_is_unknown() {
        let check = |text: &str, verdict| {
            let stopped = Outcome {
                is_stopped: true,
                ..outcome()
            };
            let (shown, found) = Expectation::parse(text).unwrap().judge(&stopped);
            assert_eq!(found, verdict, "{text}: {shown}");
        };
        check("established = 100", Verdict::Unknown);
        check("established >= 100", Verdict::Unknown);
        check("established >= 98", Verdict::Holds);
        // It had come to more already, and what was slow was slow.
        check("established = 90", Verdict::Violated);
        check("errors < 1", Verdict::Violated);
        check("connect.p50 < 20ms", Verdict::Violated);
    }

    #[test]
    fn what_a_run_never_shows_is_not_expected_of_it() {
        let connections = LoadPlan::default();
        let with_payload = LoadPlan {
            payload_bytes: 1,
            ..LoadPlan::default()
        };
        let requests = LoadPlan {
            http: Some(LoadHttp::default()),
            ..LoadPlan::default()
        };
        let datagrams = |one_way| LoadPlan {
            udp: Some(LoadUdp {
                one_way,
                ..LoadUdp::default()
            }),
            ..LoadPlan::default()
        };
        let check = |plan: &LoadPlan, text: &str| Expectation::parse(text).unwrap().check(plan);
        for shown in ["connect.p99 < 1ms", "lost = 0", "error_ratio < 1%", "rate > 1/s"] {
            assert_eq!(check(&connections, shown), Ok(()), "{shown}");
        }
        assert_eq!(check(&with_payload, "exchange.p99 < 1ms"), Ok(()));
        for shown in [
            "request.p99 < 1ms",
            "response.max < 1s",
            "timed_out = 0",
            "insecure = 0",
            "unsent_ratio < 1%",
        ] {
            assert_eq!(check(&requests, shown), Ok(()), "{shown}");
        }
        for shown in [
            "request.p99 < 1ms",
            "jitter.p99 < 1ms",
            "duplicated = 0",
            "refused = 0",
        ] {
            assert_eq!(check(&datagrams(false), shown), Ok(()), "{shown}");
        }
        assert_eq!(check(&datagrams(true), "jitter.mean < 1ms"), Ok(()));
        let is_refused = |plan: &LoadPlan, text: &str, part: &str| {
            let why = check(plan, text).expect_err(text);
            assert!(why.contains(text) && why.contains(part), "{text}: {why}");
        };
        // Of a run of connections this would hold whatever came of it.
        is_refused(&connections, "request_timed_out = 0", "it shows connect");
        is_refused(&connections, "request.p99 < 5ms", "it shows connect");
        is_refused(&connections, "exchange.p99 < 5ms", "--payload");
        is_refused(&requests, "jitter.mean < 5ms", "it shows request");
        is_refused(&datagrams(false), "connect.p99 < 5ms", "it shows request");
        is_refused(&datagrams(true), "jitter.p99 < 5ms", "jitter.mean");
        is_refused(&datagrams(true), "request.p99 < 5ms", "it shows jitter.mean");
    }

    #[test]
    fn a_slip_of_the_finger_is_told_with_what_is_meant() {
        let check = |typed: &str, meant: &str| {
            let error = Expectation::parse(typed).expect_err(typed);
            assert!(
                error.contains(&format!("did you mean {meant}?")),
                "{typed}: {error}"
            );
        };
        check("conect.p99 < 1ms", "connect.p99");
        check("error_rate < 1%", "error_ratio");
        check("timedout = 0", "timed_out");
        for name in COUNTS.iter().filter(|name| **name != "rate") {
            assert!(Signal::parse(name).is_some(), "{name}");
        }
        for name in CLOCKS {
            assert!(Signal::parse(&format!("{name}.p99")).is_some(), "{name}");
        }
        let nothing = Expectation::parse("connect.p101 < 1ms").expect_err("no percentile");
        assert!(!nothing.contains("did you mean"), "{nothing}");
    }

    #[test]
    fn what_cannot_be_read_says_how_it_is_written() {
        for bad in [
            "",
            "connect.p99",
            "connect.p99 < 20",
            "connect.p101 < 1ms",
            "conect.p99 < 1ms",
            "error < 1",
            "error_ratio < x%",
            "error_ratio < 2",
            "error_ratio < 101%",
            "rate > 100",
            "lost = -1",
            "errors_ratio < 1%",
            "connect.p99 == 1ms",
        ] {
            let error = Expectation::parse(bad).expect_err(bad);
            assert!(error.contains("connect.p99 < 20ms"), "{error}");
        }
    }
}
