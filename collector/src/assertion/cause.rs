//! Why nothing can be said. One cause for each verdict, and the same text for all that share it: a hundred assertions
//! over a silent node have one thing to tell.

use std::fmt;
use std::time::Duration;

use super::condition::duration_text;

/// Why a window is not judged. In the order in which they matter: of several the first is told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The store did not answer the question, in its words.
    Store(String),
    /// The assertion's own question failed, in the store's words.
    Sql(String),
    /// The question has more rows of answer than are taken.
    TooMany {
        most: usize,
    },
    /// No node belongs to the group, or did lately.
    NoNodes {
        members: String,
    },
    /// Nothing was heard of the node's agent.
    Silent {
        node: String,
    },
    /// The node's clock and the collector's disagree: what belongs to the window cannot be told.
    Clock {
        node: String,
        ahead: bool,
    },
    /// The node's agent was not running in all of the window.
    NotWatched {
        node: String,
    },
    /// The agent does not look at it, or did not all the time.
    Off {
        node: String,
        switch: Switch,
        reason: OffReason,
    },
    /// The agent is there, and what it saw is not all stored yet.
    Behind {
        node: String,
    },
    /// Rows of the window will never come.
    Missing {
        node: String,
        rows: u64,
    },
    /// Likewise of syscalls.
    MissingCalls {
        node: String,
        calls: u64,
    },
    /// The agent does not tell of attempts before their connection ends.
    NotAnnounced {
        node: String,
    },
    /// The agent does not tell up to when everything that it saw is stored.
    NoWatermark {
        node: String,
    },
    /// The node left: nothing was heard of it for as long as it was expected.
    Gone {
        node: String,
        expected_for: Duration,
    },
    /// More keys than are kept.
    TooManyKeys {
        keys: usize,
        most: usize,
    },
    TooFewSamples {
        samples: u64,
        needed: u64,
    },
    /// So many of the keys of a quorum are not known that it may hold or not.
    Quorum {
        unknown: usize,
        keys: usize,
    },
    /// The node has reported nothing that tells.
    NotReported {
        node: String,
    },
}

/// What of an agent can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Switch {
    Syscalls,
    Listeners,
    OpenConnections,
}

impl Switch {
    pub const ALL: [Self; 3] = [Self::Syscalls, Self::Listeners, Self::OpenConnections];

    /// As `holdfast probe set` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syscalls => "syscalls",
            Self::Listeners => "listeners",
            Self::OpenConnections => "open-connections",
        }
    }

    fn absent(self) -> &'static str {
        match self {
            Self::Syscalls => "did not count system calls all the time",
            Self::Listeners => "did not look at listeners all the time",
            Self::OpenConnections => "did not look at open connections all the time",
        }
    }
}

/// Why it is off, or was last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OffReason {
    Configuration,
    Collector,
    Budget,
    Kernel,
    /// The agent does not say whether it is on.
    Untold,
    /// It was switched on, and why it was off before was not heard.
    #[default]
    Unsaid,
}

impl OffReason {
    /// How [`Self::Untold`] is stored.
    pub const UNTOLD: &str = "untold";

    pub fn named(name: &str) -> Self {
        match name {
            "configuration" => Self::Configuration,
            "collector" => Self::Collector,
            "budget" => Self::Budget,
            "kernel" => Self::Kernel,
            Self::UNTOLD => Self::Untold,
            _ => Self::Unsaid,
        }
    }

    /// What cannot be told of `node`, and why.
    fn text(self, node: &str, switch: Switch) -> String {
        let name = switch.name();
        let why = match self {
            Self::Untold => {
                return format!("the agent of {node} does not say whether {name} is on: upgrade it");
            }
            Self::Configuration => format!("its configuration says {name}=off"),
            Self::Collector => format!("`holdfast probe set {name}=off`"),
            Self::Budget => format!("its CPU budget switched {name} off"),
            Self::Kernel => format!("its kernel or its capabilities do not allow {name}"),
            Self::Unsaid => format!("{name} was off"),
        };
        format!("{node} {}: {why}", switch.absent())
    }
}

impl Cause {
    /// Whether what is missing may come yet.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Behind { .. })
    }

    /// Whether it is the same but for its figures.
    pub fn is_like(&self, other: &Self) -> bool {
        let text = |cause: &Self| -> String {
            let text = cause.to_string();
            text.chars().filter(|c| !c.is_ascii_digit()).collect()
        };
        self == other
            || std::mem::discriminant(self) == std::mem::discriminant(other)
                && self.node() == other.node()
                && text(self) == text(other)
    }

    /// The node that it is about.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Silent { node }
            | Self::Clock { node, .. }
            | Self::NotWatched { node }
            | Self::Off { node, .. }
            | Self::Behind { node }
            | Self::Missing { node, .. }
            | Self::MissingCalls { node, .. }
            | Self::NotAnnounced { node }
            | Self::NoWatermark { node }
            | Self::Gone { node, .. }
            | Self::NotReported { node } => Some(node),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(message) => write!(f, "the store did not answer: {message}"),
            Self::Sql(message) => write!(f, "its `sql` failed: {message}"),
            Self::TooMany { most } => {
                write!(
                    f,
                    "more than {most} combinations of labels in one window: narrow it with `where`"
                )
            }
            Self::NoNodes { members } => write!(f, "no node belongs to {members}"),
            Self::Silent { node } => write!(f, "{node} is silent"),
            Self::Clock { node, ahead } => {
                let side = if *ahead { "ahead of" } else { "behind" };
                write!(f, "the clock of {node} is {side} the collector's")
            }
            Self::NotWatched { node } => write!(f, "{node} was not watched all the time: its agent started"),
            Self::Off { node, switch, reason } => f.write_str(&reason.text(node, *switch)),
            Self::Behind { node } => write!(f, "{node} has not delivered everything"),
            Self::Missing { node, rows } => write!(f, "{rows} rows of {node} are missing"),
            Self::MissingCalls { node, calls } => write!(f, "{calls} system calls of {node} are missing"),
            Self::NotAnnounced { node } => {
                write!(
                    f,
                    "{node} tells of attempts only when connections end: upgrade its agent"
                )
            }
            Self::NoWatermark { node } => {
                write!(
                    f,
                    "{node} does not tell up to when it has delivered: upgrade its agent"
                )
            }
            Self::Gone { node, expected_for } => {
                write!(
                    f,
                    "{node} is gone: silent for {}, and not expected any more",
                    duration_text(*expected_for)
                )
            }
            Self::TooManyKeys { keys, most } => {
                write!(
                    f,
                    "{keys} keys, of which {most} are judged: narrow it, or leave something out of `by`"
                )
            }
            Self::TooFewSamples { samples: 0, .. } => f.write_str("no data in the window"),
            Self::TooFewSamples { samples, needed } => write!(f, "{samples} samples, {needed} are needed"),
            Self::Quorum { unknown, keys } => write!(f, "{unknown} of {keys} nodes are unknown"),
            Self::NotReported { node } => write!(f, "{node} has not reported it"),
        }
    }
}

/// Why a key is judged no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    NotDeclared,
    /// Others came in its place, or its assertion means something else now.
    NoSuchKey,
    /// For so long.
    Unseen(Duration),
    /// Only that nobody judges it is known.
    NotJudged,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDeclared => f.write_str("no assertion of this name is declared any more"),
            Self::NoSuchKey => f.write_str("its assertion has no such key any more"),
            Self::Unseen(time) => write!(f, "nothing was seen of it for {}", duration_text(*time)),
            Self::NotJudged => f.write_str("nobody judges it any more"),
        }
    }
}

impl Cause {
    /// Whether it says no more than that nothing is known of a time in which nobody watched, or nothing happened, yet.
    pub fn is_of_beginning(&self) -> bool {
        matches!(
            self,
            Self::NotWatched { .. } | Self::NotReported { .. } | Self::TooFewSamples { .. }
        )
    }
}

/// A node that was heard of within this time is expected to be there, where the files do not say otherwise.
pub const EXPECTED_FOR: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_like_another_one_that_differs_in_its_figures_alone() {
        let node = |name: &str| name.to_owned();
        let missing = |name: &str, rows| Cause::Missing {
            node: node(name),
            rows,
        };
        let off = |switch, reason| Cause::Off {
            node: node("web-1"),
            switch,
            reason,
        };
        let clock = |ahead| Cause::Clock {
            node: node("web-1"),
            ahead,
        };
        let few = |samples| Cause::TooFewSamples { samples, needed: 50 };
        let sql = |text: &str| Cause::Sql(text.to_owned());
        let store = |text: &str| Cause::Store(text.to_owned());
        for (one, other, is_like) in [
            (missing("web-1", 1), missing("web-1", 200), true),
            (missing("web-1", 1), missing("web-2", 1), false),
            (few(3), few(49), true),
            (few(0), few(3), false),
            (clock(true), clock(false), false),
            (
                off(Switch::Listeners, OffReason::Budget),
                off(Switch::Listeners, OffReason::Collector),
                false,
            ),
            (
                off(Switch::Listeners, OffReason::Unsaid),
                off(Switch::Syscalls, OffReason::Unsaid),
                false,
            ),
            (sql("took 10.5 seconds"), sql("took 11.4 seconds"), true),
            (sql("no table a"), sql("no column b"), false),
            (store("refused"), store("timed out"), false),
        ] {
            assert_eq!(one.is_like(&other), is_like, "{one:?} and {other:?}");
        }
    }
}
