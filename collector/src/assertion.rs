//! Assertions: what people declare should hold, and what it takes to judge it. Pure: no I/O, no SQL, no clock; the time
//! is an argument, rows come from `store/evidence.rs`, and [`crate::engine`] drives it.
//!
//! A file goes through [`document`] (YAML with places) and [`parse`] (what it means); [`signal`] is the table of what
//! can be asserted, [`condition`] one line of `expect`, [`group`] who it is about. [`plan`] puts together what one query
//! can answer and [`parts`] what windows share, [`evaluate`] judges a window from its rows and from who was watching ([`coverage`]), and [`state`] makes
//! verdicts of it; [`worst`] tells which rows speak against them. [`receiver`] is who is told. [`reference`] writes the documentation and the JSON schema from the same tables.

pub mod cause;
pub mod condition;
pub mod coverage;
pub mod document;
pub mod evaluate;
pub mod group;
pub mod limit;
pub mod parse;
pub mod parts;
pub mod plan;
pub mod problem;
pub mod receiver;
pub mod reference;
pub mod signal;
pub mod state;
pub mod worst;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use cause::EXPECTED_FOR;
use condition::Condition;
use group::Members;
use parse::trial::Trial;
use problem::Place;
use receiver::Receiver;

use crate::filter::{Filter, Network};

/// Everything that is declared, of all files together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Set {
    pub groups: BTreeMap<String, Members>,
    /// Nodes that are expected whether or not they were heard, each with its labels until its agent tells its own.
    pub nodes: BTreeMap<String, BTreeMap<String, String>>,
    /// How long all others are expected after they were heard last. `None`: the files do not say.
    pub expect_nodes_for: Option<Duration>,
    /// By name, in the order of the files.
    pub assertions: Vec<Assertion>,
    pub tests: Vec<Trial>,
    /// Who is told.
    pub receivers: Vec<Receiver>,
}

/// One thing that should hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    pub name: String,
    pub description: String,
    pub subject: Subject,
    /// Which rows count; `None`: all.
    pub filter: Option<Filter>,
    /// All must hold. Never empty.
    pub expect: Vec<Condition>,
    /// The window; with `burn` the longer one.
    pub over: Duration,
    /// One of the two windows of an objective's budget: it fails when both of its conditions do.
    pub burn: Option<Burn>,
    /// What is asked, in the words of the one who asserts it; its answer is what `value` is.
    pub sql: Option<String>,
    /// How often a window is judged.
    pub every: Duration,
    /// One verdict for each combination of these; empty: one for all rows together.
    pub by: Vec<Dimension>,
    pub pace: Pace,
    /// It has to hold for so long before a violation is over.
    pub clear_after: Duration,
    /// A violation lasts at least so long.
    pub hold: Duration,
    /// How long after a window's end its evidence may still come.
    pub deadline: Duration,
    pub min_samples: u64,
    pub no_data: NoData,
    pub quorum: Option<Quorum>,
    pub severity: String,
    pub labels: BTreeMap<String, String>,
    pub runbook: String,
    /// The groups that it names, and those that these name, as they are declared.
    pub groups: BTreeMap<String, String>,
    pub origin: Origin,
}

/// Where an assertion is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub file: String,
    pub place: Place,
}

/// How fast the budget of an objective is used up: so many times faster than it may be, over a long window and a short
/// one. The long one says that it matters, the short one that it still goes on (Beyer and others, The Site Reliability
/// Workbook, 2018, chapter 5).
#[derive(Clone, Debug, PartialEq)]
pub struct Burn {
    /// The assertion that was written, of which this is a part.
    pub slo: String,
    pub factor: f64,
    pub short: Duration,
}

/// Whose ends are looked at.
#[derive(Clone, Debug, PartialEq)]
pub enum Subject {
    /// Those that called connect(), on the nodes of `from`.
    Client { from: Members, to: Target },
    /// Those that came out of a listener on the nodes of `on`; or, for signals of nodes, these nodes.
    Server {
        on: Members,
        port: Option<u16>,
        /// Only connections from these nodes.
        from: Option<Members>,
    },
}

/// Where connections go to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Target {
    /// `None`: anywhere.
    pub place: Option<TargetPlace>,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TargetPlace {
    /// Any address of these nodes.
    Nodes(Members),
    Address(IpAddr),
    Network(Network),
}

/// What verdicts are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    FromNode,
    ToNode,
    OnNode,
    Service,
    Comm,
    /// The listener's.
    Port,
}

impl Dimension {
    pub const ALL: [Self; 6] = [
        Self::FromNode,
        Self::ToNode,
        Self::OnNode,
        Self::Service,
        Self::Comm,
        Self::Port,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::FromNode => "from.node",
            Self::ToNode => "to.node",
            Self::OnNode => "on.node",
            Self::Service => "service",
            Self::Comm => "comm",
            Self::Port => "port",
        }
    }
}

/// When windows that fail make a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Once they have failed for so long without a break.
    For(Duration),
    /// Once so many of the last so many failed.
    Of { failures: u32, windows: u32 },
}

/// What a window without rows means where rows are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoData {
    Unknown,
    Holds,
    Violated,
}

/// How many of the keys have to hold for the whole to hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quorum {
    /// Of one.
    pub share: f64,
}

impl Set {
    /// How long a node that is not declared is expected after it was heard last.
    pub fn expected_for(&self) -> Duration {
        self.expect_nodes_for.unwrap_or(EXPECTED_FOR)
    }

    /// How long a key of an assertion is judged after anything was seen of it: longer than its nodes are expected, and than it
    /// takes until it is judged again.
    pub fn remembered_for(&self, assertion: &Assertion) -> Duration {
        2 * self.expected_for().max(assertion.every)
    }
}

impl Assertion {
    /// The dimension that names the node whose agent sees the rows.
    pub fn own_node(&self) -> Dimension {
        match self.subject {
            Subject::Client { .. } => Dimension::FromNode,
            Subject::Server { .. } => Dimension::OnNode,
        }
    }

    /// The nodes whose agents see the rows.
    pub fn observers(&self) -> &Members {
        match &self.subject {
            Subject::Client { from, .. } => from,
            Subject::Server { on, .. } => on,
        }
    }

    /// The window in which everybody has to have watched. Of a long window of a budget nobody would know anything
    /// once an agent had been started anew; so it is the short one, and the long one is what there is.
    pub fn watched_over(&self) -> Duration {
        self.burn.as_ref().map_or(self.over, |burn| burn.short)
    }

    /// What its verdicts depend on. When it changes, what was found before says nothing any more.
    pub fn fingerprint(&self) -> u32 {
        let Self {
            subject,
            filter,
            expect,
            over,
            every,
            by,
            pace,
            clear_after,
            hold,
            min_samples,
            no_data,
            quorum,
            burn,
            sql,
            groups,
            ..
        } = self;
        let mut text = format!(
            "{subject:?} {filter:?} {expect:?} {over:?} {every:?} {by:?} {pace:?} {clear_after:?} {hold:?} {min_samples} \
             {no_data:?} {quorum:?} {burn:?} {sql:?}"
        );
        // Who belongs to a group changes as nodes come and go; whom it is about is another matter.
        for (name, members) in groups {
            text += &format!(" {name}: {members}");
        }
        crc32fast::hash(text.as_bytes())
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(time) => f.write_str(&condition::duration_text(*time)),
            Self::Of { failures, windows } => write!(f, "{failures} of {windows}"),
        }
    }
}
