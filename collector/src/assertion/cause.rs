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
    /// The agent is there, and what it saw is not all stored yet.
    Behind {
        node: String,
    },
    /// Rows of the window will never come.
    Missing {
        node: String,
        rows: u64,
    },
    /// The agent does not tell of attempts before their connection ends.
    NotAnnounced {
        node: String,
    },
    /// The node left: nothing was heard of it for so long that it is not expected any more.
    Gone {
        node: String,
    },
    /// More keys than are kept.
    TooManyKeys {
        keys: usize,
        most: usize,
    },
    /// Nobody judged the windows in between.
    NotJudged,
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

impl Cause {
    /// The node that it is about.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Silent { node }
            | Self::Clock { node, .. }
            | Self::NotWatched { node }
            | Self::Behind { node }
            | Self::Missing { node, .. }
            | Self::NotAnnounced { node }
            | Self::Gone { node }
            | Self::NotReported { node } => Some(node),
            _ => None,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(message) => write!(f, "the store did not answer: {message}"),
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
            Self::Behind { node } => write!(f, "{node} has not delivered everything"),
            Self::Missing { node, rows } => write!(f, "{rows} rows of {node} are missing"),
            Self::NotAnnounced { node } => {
                write!(
                    f,
                    "{node} tells of attempts only when connections end: upgrade its agent"
                )
            }
            Self::Gone { node } => {
                write!(
                    f,
                    "{node} is gone: silent for {}, and not expected any more",
                    duration_text(EXPECTED_FOR)
                )
            }
            Self::TooManyKeys { keys, most } => {
                write!(
                    f,
                    "{keys} keys, of which the first {most} are judged: narrow it, or leave something out of `by`"
                )
            }
            Self::NotJudged => f.write_str("nobody judged the windows before"),
            Self::TooFewSamples { samples: 0, .. } => f.write_str("no data in the window"),
            Self::TooFewSamples { samples, needed } => write!(f, "{samples} samples, {needed} are needed"),
            Self::Quorum { unknown, keys } => write!(f, "{unknown} of {keys} nodes are unknown"),
            Self::NotReported { node } => write!(f, "{node} has not reported it"),
        }
    }
}

/// A node that was heard of within this time is expected to be there.
pub const EXPECTED_FOR: Duration = Duration::from_secs(3600);
