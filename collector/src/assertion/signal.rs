//! What can be asserted: the one table of signals. The parser, `holdfast check --signals`, docs/SIGNALS.md and the JSON
//! schema are made from it, so none of them knows a signal that the others do not.

use std::fmt;
use std::time::Duration;

/// Where a signal is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// The end that called connect(), or with `on:` the one that came out of a listener.
    Either,
    /// The end that listens: `on:`.
    Server,
    /// The end that listens, also where the rest is read at the clients: `to`, or `on:`.
    Target,
    /// The node itself: `on:`.
    Node,
}

/// Which rows a signal is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rows {
    /// `attempts`, by `decided_at`.
    Attempts,
    /// `connections`, by `closed_at`.
    Connections,
    /// `listeners`, by `observed_at`.
    Listeners,
    /// `syscalls`, by `ended_at`.
    Syscalls,
    /// What was open when the agents looked last: `connection_samples`, by `observed_at`.
    Open,
    /// `namespaces`, by `observed_at`.
    Namespaces,
    /// `overhead_samples`, by `ended_at`.
    Overhead,
    /// The answer to an assertion's own `sql`.
    Sql,
    /// What the collector hears of the agents themselves; no rows.
    Agents,
}

/// What a signal's numbers count. Literals carry the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `20ms`; kept in microseconds.
    Time,
    /// `0.1%`; kept as a share.
    Ratio,
    /// `3`.
    Count,
    /// `100/s`.
    Rate,
    /// `10MB`.
    Bytes,
    /// `true`, `false`.
    Truth,
    /// `0.5`: whatever it is of.
    Number,
}

/// What is added up over the rows of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sum {
    /// The rows themselves; of syscalls, calls.
    Rows,
    Established,
    Refused,
    TimedOut,
    /// Decided, and neither established nor given up by the process itself.
    Failed,
    SynRetransmits,
    BytesSent,
    BytesReceived,
    Retransmits,
    SegmentsSent,
    Resets,
    /// Of listeners: how many connections they turned away within the window.
    Drops,
    Errors,
    /// Of syscalls: calls that failed with the errno that the condition names.
    Errno,
    /// Of what is open: attempts that wait for an answer.
    Waiting,
    /// Of namespaces: connections that found the queue of a listener full.
    Overflows,
}

/// Times of which quantiles are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Times {
    /// `connect_us` of established attempts.
    Connect,
    /// `duration_us` of established connections.
    Duration,
    /// `srtt_us` where one was measured.
    RoundTrip,
    /// `accept_wait_us` where accept() was seen to return the connection.
    AcceptWait,
    /// Latencies of syscalls that were measured, in nanoseconds and within 8 %.
    Syscall,
}

/// How a signal comes out of what was added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    Sum(Sum),
    /// A sum for each second of the window.
    PerSecond(Sum),
    /// The first over the second; nothing where the second is zero.
    Ratio(Sum, Sum),
    /// One for each of [`QUANTILES`].
    Quantiles(Times),
    Largest(Times),
    /// The fullest queue, against its limit; or the largest part of the machine that an agent took.
    Fullest,
    /// What the question says itself.
    Value,
    /// Of the agents, what the collector knows without asking the store for rows.
    Agent(OfAgent),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfAgent {
    Up,
    ClockOffset,
    Lag,
    Missing,
    Lost,
    Dropped,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Of quantiles without its last part, which is one of [`QUANTILES`].
    pub name: &'static str,
    pub end: End,
    pub rows: Rows,
    pub unit: Unit,
    pub measure: Measure,
    /// What it can come to.
    pub range: Range,
    pub about: &'static str,
}

/// What a signal can come to, in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    Any,
    FromZero,
    /// Of ratios: a part of all.
    ZeroToOne,
}

impl Range {
    /// The least and the most, both of them in it if they are finite.
    pub fn ends(self) -> (f64, f64) {
        match self {
            Self::Any => (f64::NEG_INFINITY, f64::INFINITY),
            Self::FromZero => (0.0, f64::INFINITY),
            Self::ZeroToOne => (0.0, 1.0),
        }
    }
}

impl Unit {
    const fn range(self) -> Range {
        match self {
            Self::Time | Self::Count | Self::Rate | Self::Bytes => Range::FromZero,
            Self::Ratio | Self::Truth => Range::ZeroToOne,
            Self::Number => Range::Any,
        }
    }
}

/// A quantile's name and how many of 10,000 values are at or below it.
pub const QUANTILES: [(&str, u32); 6] = [
    ("p50", 5_000),
    ("p75", 7_500),
    ("p90", 9_000),
    ("p95", 9_500),
    ("p99", 9_900),
    ("p99.9", 9_990),
];

const fn signal(
    name: &'static str,
    end: End,
    rows: Rows,
    unit: Unit,
    measure: Measure,
    about: &'static str,
) -> Signal {
    Signal {
        name,
        end,
        rows,
        unit,
        measure,
        range: match measure {
            // A queue takes one more than its limit, and CPU time and the time that passed are not measured at one moment.
            Measure::Fullest => Range::FromZero,
            _ => unit.range(),
        },
        about,
    }
}

use Measure::{Agent, Fullest, Largest, PerSecond, Quantiles, Ratio};
use Rows::{Agents, Attempts, Connections, Listeners, Namespaces, Open, Overhead, Syscalls};

/// The table.
#[rustfmt::skip]
pub static SIGNALS: [Signal; 40] = [
    signal("connect.count", End::Either, Attempts, Unit::Count, Measure::Sum(Sum::Rows),
        "attempts to open a connection that were decided, well or badly"),
    signal("connect.rate", End::Either, Attempts, Unit::Rate, PerSecond(Sum::Rows),
        "attempts to open a connection that were decided, well or badly, for each second of the window"),
    signal("connect", End::Either, Attempts, Unit::Time, Quantiles(Times::Connect),
        "how long established attempts took from the opening until the handshake ended, by the kernel's clock"),
    signal("connect.max", End::Either, Attempts, Unit::Time, Largest(Times::Connect),
        "the longest that an established attempt took from the opening until the handshake ended, by the kernel's clock"),
    signal("connect.refused", End::Either, Attempts, Unit::Count, Measure::Sum(Sum::Refused),
        "attempts that were refused"),
    signal("connect.refused_ratio", End::Either, Attempts, Unit::Ratio, Ratio(Sum::Refused, Sum::Rows),
        "refused attempts of all decided ones"),
    signal("connect.timeout_ratio", End::Either, Attempts, Unit::Ratio, Ratio(Sum::TimedOut, Sum::Rows),
        "attempts that timed out, or that the process gave up with a SYN unanswered, of all decided ones"),
    signal("connect.failed", End::Either, Attempts, Unit::Count, Measure::Sum(Sum::Failed),
        "attempts that did not become connections: refused, timed out, reset, unreachable or failed otherwise"),
    signal("connect.failed_ratio", End::Either, Attempts, Unit::Ratio, Ratio(Sum::Failed, Sum::Rows),
        "attempts that did not become connections (refused, timed out, reset, unreachable or failed otherwise), of all decided ones"),
    signal("connect.syn_retransmits", End::Either, Attempts, Unit::Count, Measure::Sum(Sum::SynRetransmits),
        "segments that were sent again before a handshake ended"),
    signal("connect.syn_dropped", End::Target, Listeners, Unit::Count, Measure::Sum(Sum::Drops),
        "connections that the listeners turned away, most often because their queue was full, whoever the client was"),
    signal("connect.pending", End::Either, Open, Unit::Count, Measure::Sum(Sum::Waiting),
        "attempts that had waited for their answer for a second when the agents looked last; they look every second"),
    signal("connections.open", End::Either, Open, Unit::Count, Measure::Sum(Sum::Rows),
        "connections, and attempts that wait, that were open when the agents looked last, less those that have ended since; they look every 10 s"),
    signal("connections.established", End::Either, Open, Unit::Count, Measure::Sum(Sum::Established),
        "established connections that were open when the agents looked last, less those that have ended since; they look every 10 s"),
    signal("connections.opened", End::Either, Attempts, Unit::Count, Measure::Sum(Sum::Established),
        "connections that were established"),
    signal("connections.closed", End::Either, Connections, Unit::Count, Measure::Sum(Sum::Rows),
        "ends of connections that were closed, attempts that failed included"),
    signal("connections.duration", End::Either, Connections, Unit::Time, Quantiles(Times::Duration),
        "how long connections that ended had lasted"),
    signal("connections.bytes_sent", End::Either, Connections, Unit::Bytes, Measure::Sum(Sum::BytesSent),
        "payload that connections that ended had sent, without retransmissions"),
    signal("connections.bytes_received", End::Either, Connections, Unit::Bytes, Measure::Sum(Sum::BytesReceived),
        "payload that connections that ended had received"),
    signal("connections.retransmit_ratio", End::Either, Connections, Unit::Ratio,
        Ratio(Sum::Retransmits, Sum::SegmentsSent),
        "segments that were sent again, of all segments that connections that ended had sent"),
    signal("connections.resets", End::Either, Connections, Unit::Count, Measure::Sum(Sum::Resets),
        "established connections that ended with a reset, from either side"),
    signal("rtt", End::Either, Connections, Unit::Time, Quantiles(Times::RoundTrip),
        "the smoothed round trip time of connections as they ended"),
    signal("accept_wait", End::Server, Connections, Unit::Time, Quantiles(Times::AcceptWait),
        "how long connections that ended had waited in the queue of their listener until accept() returned them; those alone of which that was seen"),
    signal("listener.backlog_ratio", End::Server, Listeners, Unit::Ratio, Fullest,
        "the fullest accept queue that an agent saw, against its limit; agents look every 10 s"),
    signal("listener.drops", End::Server, Listeners, Unit::Count, Measure::Sum(Sum::Drops),
        "connections that listeners turned away by the looks of the window, since the look before it; of a listener that began since, all"),
    signal("listener.overflows", End::Server, Namespaces, Unit::Count, Measure::Sum(Sum::Overflows),
        "connections that found the queue of any listener of the node full by the looks of the window, since the look before it; also where the listener is gone"),
    signal("syscall.count", End::Node, Syscalls, Unit::Count, Measure::Sum(Sum::Rows),
        "calls that returned, every one counted"),
    signal("syscall.rate", End::Node, Syscalls, Unit::Rate, PerSecond(Sum::Rows),
        "calls that returned, every one counted, for each second of the window"),
    signal("syscall.errors", End::Node, Syscalls, Unit::Count, Measure::Sum(Sum::Errors),
        "calls that failed"),
    signal("syscall.error_ratio", End::Node, Syscalls, Unit::Ratio, Ratio(Sum::Errors, Sum::Rows),
        "calls that failed, of all calls"),
    signal("syscall.errno", End::Node, Syscalls, Unit::Count, Measure::Sum(Sum::Errno),
        "calls that failed with one errno: `syscall(connect).errno(ECONNREFUSED)`"),
    signal("syscall", End::Node, Syscalls, Unit::Time, Quantiles(Times::Syscall),
        "how long the calls took that were measured; within 8 %, and judged by that"),
    signal("agent.cpu", End::Node, Overhead, Unit::Ratio, Measure::Fullest,
        "the largest part of the machine's CPU time that the agent and its programs took in 10 s"),
    signal("value", End::Node, Rows::Sql, Unit::Number, Measure::Value,
        "of an assertion with `sql`: the column `value` of its answer, a verdict for each row"),
    signal("agent.missing", End::Node, Agents, Unit::Count, Agent(OfAgent::Missing),
        "rows of connections that the agent or the kernel had to give up, so that nobody will see them"),
    signal("agent.lost", End::Node, Agents, Unit::Count, Agent(OfAgent::Lost),
        "rows of connections that the kernel did not hand over, so that nobody will see them: a full ring, a full table, a missed event; what an agent that was killed lost nobody knows, and the window is unknown"),
    signal("agent.dropped", End::Node, Agents, Unit::Count, Agent(OfAgent::Dropped),
        "rows of any kind that the agent had and gave up, since its spool was full or the collector refused them"),
    signal("agent.lag", End::Node, Agents, Unit::Time, Agent(OfAgent::Lag),
        "how far what is stored of the node is behind the collector's clock"),
    signal("node.up", End::Node, Agents, Unit::Truth, Agent(OfAgent::Up),
        "the node's agent was heard of within the last 10 s"),
    signal("node.clock_offset", End::Node, Agents, Unit::Time, Agent(OfAgent::ClockOffset),
        "how far the node's clock is from the collector's, in either direction"),
];

/// A signal as an assertion names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub signal: &'static Signal,
    /// Which of [`QUANTILES`], where the signal has them.
    pub quantile: Option<usize>,
}

/// Every name that an assertion can use.
pub fn names() -> impl Iterator<Item = String> {
    SIGNALS.iter().flat_map(|signal| {
        let quantiles: &[_] = match signal.measure {
            Quantiles(_) => &QUANTILES,
            _ => &[],
        };
        let plain = quantiles.is_empty().then(|| signal.name.to_owned());
        let each = quantiles
            .iter()
            .map(|(quantile, _)| format!("{}.{quantile}", signal.name));
        plain.into_iter().chain(each.collect::<Vec<_>>())
    })
}

impl Chosen {
    pub fn named(name: &str) -> Option<Self> {
        SIGNALS.iter().find_map(|signal| match signal.measure {
            Quantiles(_) => {
                let last = name.strip_prefix(signal.name)?.strip_prefix('.')?;
                let quantile = QUANTILES.iter().position(|(quantile, _)| *quantile == last)?;
                Some(Self {
                    signal,
                    quantile: Some(quantile),
                })
            }
            _ => (signal.name == name).then_some(Self {
                signal,
                quantile: None,
            }),
        })
    }

    /// What quantiles and the largest are of.
    pub fn times(self) -> Option<Times> {
        match self.signal.measure {
            Quantiles(times) | Largest(times) => Some(times),
            _ => None,
        }
    }
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.signal.name)?;
        match self.quantile {
            Some(quantile) => write!(f, ".{}", QUANTILES[quantile].0),
            None => Ok(()),
        }
    }
}

impl End {
    pub fn about(self) -> &'static str {
        match self {
            Self::Either => "the client's (`from`, `to`), or with `on` the server's",
            Self::Server => "the server's (`on`)",
            Self::Target => "the server's (`to`, or `on`)",
            Self::Node => "the node (`on`)",
        }
    }
}

impl Rows {
    /// Which rows, and by which of their times they belong to a window.
    pub fn about(self) -> &'static str {
        match self {
            Attempts => "`attempts` by `decided_at`",
            Connections => "`connections` by `closed_at`",
            Listeners => "`listeners` by `observed_at`",
            Syscalls => "`syscalls` by `ended_at`",
            Open => "`connection_samples` by `observed_at`",
            Namespaces => "`namespaces` by `observed_at`",
            Overhead => "`overhead_samples` by `ended_at`",
            Self::Sql => "the answer to `sql`",
            Agents => "what the agent reports",
        }
    }
}

impl Signal {
    /// How short a window may be: it has to have two looks or intervals in it.
    pub fn least_window(&self) -> Duration {
        Duration::from_secs(match (self.rows, self.measure) {
            (Attempts | Connections | Agents | Rows::Sql, _) => 1,
            (Open, Measure::Sum(Sum::Waiting)) => 5,
            (Open, _) => 30,
            (Listeners | Syscalls | Namespaces | Overhead, _) => 20,
        })
    }
}

impl Unit {
    pub fn example(self) -> &'static str {
        match self {
            Self::Time => "20ms",
            Self::Ratio => "0.1%",
            Self::Count => "0",
            Self::Rate => "100/s",
            Self::Bytes => "10MB",
            Self::Truth => "true",
            Self::Number => "0.5",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_name_means_one_signal() {
        let all: Vec<_> = names().collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        for name in all {
            assert_eq!(Chosen::named(&name).expect("a signal").to_string(), name);
        }
        for none in ["connect", "connect.p42", "connect.p99.", "", "rtt", "syscall"] {
            assert_eq!(Chosen::named(none), None, "{none}");
        }
    }
}
