//! Who was watching, when, and what was lost: the reports of the agents (`agent_samples`), as far as they say whether
//! the rows of a window are all there. Pure; the engine feeds it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::cause::{Cause, OffReason, Switch};
use crate::clock::ns;

/// A window, without its begin: nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    pub from_ns: i64,
    pub to_ns: i64,
}

/// What an agent said once a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub node: String,
    pub agent_epoch: u64,
    /// By the agent's clock, like the two watermarks.
    pub observed_ns: i64,
    /// By the collector's.
    pub received_ns: i64,
    /// Zero: not known.
    pub records_ns: i64,
    pub attempts_ns: i64,
    /// Rows of connections that will never come, since the agent started.
    pub missing: u64,
    /// Of these, what its kernel did not hand over.
    pub lost: u64,
    /// Rows of any kind, but of syscalls, that the agent had and gave up.
    pub dropped: u64,
    /// Calls whose rows will never come.
    pub syscalls_missing: u64,
    /// By [`Switch`].
    pub watches: [Watch; 3],
    pub clock_offset_ns: i64,
}

/// Whether what can be switched is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// By the agent's clock; zero: it is off.
    pub since_ns: i64,
    /// Why it is off.
    pub off: OffReason,
}

/// What has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Records,
    /// Attempts by the time they were decided.
    Attempts,
    /// What is read every 10 s, and is in the store soon after; and what of it can be switched off.
    Samples(Option<Switch>),
    /// What an agent has counted by the window's end, as a report after it says.
    Counts,
    /// What the agent's last report says, which came 10 s before the window's end or later.
    Report,
    /// Whether and what was heard of the agent: nothing, once somebody has listened for long enough.
    Now,
}

impl Need {
    /// Whether rows have to be there, which may be lost.
    pub fn is_of_rows(self) -> bool {
        !matches!(self, Self::Counts | Self::Report | Self::Now)
    }

    /// Whether it is about how an agent is now: what comes later tells nothing of the window.
    pub fn is_of_now(self) -> bool {
        matches!(self, Self::Report | Self::Now)
    }
}

/// How a node stands to a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Every row is there.
    Complete,
    /// They may come yet.
    Waiting,
    Incomplete(Cause),
}

/// A message cannot come before it was sent: more than the error of measuring it, and the clock is ahead.
const AHEAD: Duration = Duration::from_secs(1);
/// A report that is older than this when it comes was held up, or the clock is behind; one cannot tell which.
const BEHIND: Duration = Duration::from_secs(5);
/// An agent reports once a second.
pub const HEARD_WITHIN: Duration = Duration::from_secs(10);
/// An agent finds a collector that is there again within this: the longest pause between two attempts and the time that one
/// may take (`LONGEST_PAUSE` and `CONNECT_TIMEOUT` of `agent/src/uplink.rs`), and its first report.
pub const FOUND_WITHIN: Duration = Duration::from_secs(22);
/// Windows that nobody is waited for in any more are judged within this.
const JUDGED_WITHIN: Duration = Duration::from_secs(5);
/// Whose rows are missed too is called silent, and not behind, once nothing was heard of it for so long: three reports.
const SILENT_AFTER: Duration = Duration::from_secs(3);
/// An agent tells its watermark with its first reports.
const TELLS_WITHIN: Duration = Duration::from_secs(5);
/// What is read every 10 s is sent within this.
const SAMPLES_MARGIN_NS: i64 = 1_000_000_000;
/// Losses and restarts of a node that are remembered; older ones are put together.
const REMEMBERED: usize = 1024;

/// Everybody's reports.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    nodes: BTreeMap<String, Node>,
    listening: Listening,
}

/// When somebody listened, by the collector's clock: who was not heard otherwise was not silent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Listening {
    from_ns: i64,
    /// When somebody listened last before that.
    before_ns: i64,
    /// Zero: pauses do not count, as in a past that is stored.
    until_ns: i64,
}

impl Listening {
    /// `before_ns`: when somebody listened last before.
    pub fn since(from_ns: i64, before_ns: i64) -> Self {
        Self {
            from_ns,
            before_ns: before_ns.min(from_ns),
            until_ns: from_ns,
        }
    }

    /// Since when somebody listens without a pause.
    pub fn from_ns(self) -> i64 {
        self.from_ns
    }

    /// The same, and until then without a pause.
    pub fn until(self, until_ns: i64) -> Self {
        Self { until_ns, ..self }
    }

    /// Who is not heard from then on could have been.
    fn found_by_ns(&self) -> i64 {
        self.from_ns.saturating_add(ns(FOUND_WITHIN))
    }
}

#[derive(Clone, Debug, Default)]
struct Node {
    last: Report,
    /// When this start was heard first, by the collector's clock. Zero: it was not.
    heard_from_ns: i64,
    /// Not watched, and what else of the past makes windows incomplete, in the order in which it became known.
    flaws: VecDeque<Flaw>,
}

#[derive(Clone, Debug)]
struct Flaw {
    from_ns: i64,
    to_ns: i64,
    kind: FlawKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlawKind {
    NotWatched,
    /// Rows of connections, those that were lost and dropped included.
    Missing(u64),
    Lost(u64),
    Dropped(u64),
    MissingCalls(u64),
    Off {
        switch: Switch,
        reason: OffReason,
    },
    Clock {
        ahead: bool,
    },
}

impl FlawKind {
    /// Whether what is needed suffers from it. The lower the number, the rather it is told.
    fn rank(self, need: Need) -> Option<u8> {
        match (self, need) {
            (_, Need::Report | Need::Now) => None,
            (Self::Clock { .. }, _) => Some(0),
            (Self::NotWatched, _) => Some(1),
            (Self::Off { switch, .. }, Need::Samples(Some(needed))) if switch == needed => Some(2),
            (Self::Missing(_), Need::Records | Need::Attempts)
            | (Self::MissingCalls(_), Need::Samples(Some(Switch::Syscalls)))
            | (Self::Dropped(_), Need::Samples(_)) => Some(3),
            _ => None,
        }
    }
}

impl Coverage {
    /// Since when somebody listens: agents that were not heard before are given the time that it takes to find a collector again.
    pub fn listen(&mut self, listening: Listening) {
        self.listening = listening;
    }

    pub fn listening(&self) -> Listening {
        self.listening
    }

    /// Notices that nobody listened for a while, where it was said since when somebody does: the store was away, or the
    /// process stood still. That is a begin too.
    pub fn listen_again(&mut self, now_ns: i64) {
        let until_ns = self.listening.until_ns;
        if until_ns > 0 && now_ns.saturating_sub(until_ns) > ns(HEARD_WITHIN) {
            // Who had no time to come back in between was there before.
            if until_ns >= self.listening.found_by_ns() {
                self.listening.before_ns = until_ns;
            }
            self.listening.from_ns = now_ns;
        }
    }

    /// Since when a node has to have been heard that is expected for so long after. Time in which nobody listened does not
    /// count until those who come back are there, and what waited for the others, for `patience` at most, is judged.
    pub fn expected_since(&self, now_ns: i64, expected_for: Duration, patience: Duration) -> i64 {
        let listening = self.listening;
        let judged_ns = listening
            .from_ns
            .saturating_add(ns(FOUND_WITHIN.max(patience) + JUDGED_WITHIN));
        let is_listening_anew = listening.until_ns > 0 && now_ns < judged_ns;
        let until_ns = if is_listening_anew {
            now_ns.min(listening.before_ns)
        } else {
            now_ns
        };
        until_ns.saturating_sub(ns(expected_for))
    }

    /// What was said until then is heard.
    pub fn listened_until(&mut self, now_ns: i64) {
        if self.listening.until_ns > 0 {
            self.listening.until_ns = now_ns;
        }
    }

    /// A start of an agent began to watch then, whatever was heard of it since.
    pub fn began(&mut self, node: &str, epoch: u64, began_ns: i64) {
        let known = self.nodes.entry(node.to_owned()).or_default();
        if epoch <= known.last.agent_epoch {
            return;
        }
        let from_ns = if known.last.agent_epoch == 0 {
            i64::MIN
        } else {
            known.last.records_ns.min(began_ns)
        };
        known.flaw(from_ns, began_ns, FlawKind::NotWatched);
        known.heard_from_ns = 0;
        known.last = Report {
            node: node.to_owned(),
            agent_epoch: epoch,
            observed_ns: began_ns,
            ..Report::default()
        };
    }

    /// Takes a report, in the order in which they came. Whether it is a new one.
    pub fn hear(&mut self, report: &Report) -> bool {
        self.began(&report.node, report.agent_epoch, report.observed_ns);
        let Some(node) = self.nodes.get_mut(&report.node) else {
            return false;
        };
        // An agent also speaks for its earlier starts. What was heard already is heard again.
        if report.agent_epoch != node.last.agent_epoch || report.received_ns <= node.last.received_ns {
            return false;
        }
        let early_ns = report.observed_ns.saturating_sub(report.received_ns);
        let ahead = early_ns > ns(AHEAD);
        if ahead || early_ns < -ns(BEHIND) {
            // Where its rows should be and where they are.
            let since_ns = if node.last.received_ns == 0 {
                ns(AHEAD)
            } else {
                report.received_ns - node.last.received_ns
            };
            for at_ns in [report.received_ns, report.observed_ns] {
                node.flaw(at_ns.saturating_sub(since_ns), at_ns, FlawKind::Clock { ahead });
            }
            // What its last watermark left open, while the clock was right, is told by the wrong one since.
            let heard_ns = node.last.received_ns;
            let was_early_ns = node.last.observed_ns.saturating_sub(heard_ns);
            if heard_ns > 0 && (-ns(BEHIND)..=ns(AHEAD)).contains(&was_early_ns) {
                let open_ns = node.last.records_ns.min(node.last.attempts_ns);
                let open_ns = open_ns.max(heard_ns - ns(HEARD_WITHIN));
                node.flaw(open_ns, heard_ns, FlawKind::Clock { ahead });
            }
        }
        let last = &node.last;
        let since_ns = last.observed_ns;
        let before = last.watches;
        let grown = |count: fn(&Report) -> u64| count(report).saturating_sub(count(last));
        let grown = [
            FlawKind::Missing(grown(|report| report.missing)),
            FlawKind::Lost(grown(|report| report.lost)),
            FlawKind::Dropped(grown(|report| report.dropped)),
            FlawKind::MissingCalls(grown(|report| report.syscalls_missing)),
        ];
        for kind in grown {
            let rows = kind.missing() + kind.lost() + kind.dropped() + kind.missing_calls();
            if rows > 0 {
                node.flaw(since_ns, report.observed_ns, kind);
            }
        }
        for ((switch, earlier), now) in Switch::ALL.into_iter().zip(before).zip(report.watches) {
            let is_off = now.since_ns == 0;
            let until_ns = if is_off {
                report.observed_ns
            } else {
                // Of one that was set back since, the report's own time is enough.
                now.since_ns.min(report.observed_ns)
            };
            if is_off || now.since_ns > since_ns {
                let reason = if is_off { now.off } else { earlier.off };
                node.flaw(since_ns, until_ns, FlawKind::Off { switch, reason });
            }
        }
        if node.heard_from_ns == 0 {
            node.heard_from_ns = report.received_ns;
        }
        node.last = report.clone();
        true
    }

    /// Forgets what no window from here on reaches.
    pub fn forget_before(&mut self, ns: i64) {
        for node in self.nodes.values_mut() {
            node.flaws.retain(|flaw| flaw.to_ns >= ns);
        }
    }

    /// Whether the rows of a node in a window are all there, now.
    pub fn standing(
        &self,
        node: &str,
        window: Window,
        need: Need,
        now_ns: i64,
        deadline: Duration,
    ) -> Standing {
        let found_by_ns = self.listening.found_by_ns();
        let is_late = now_ns >= window.to_ns.saturating_add(ns(deadline)).max(found_by_ns);
        let late = |cause| {
            if is_late {
                Standing::Incomplete(cause)
            } else {
                Standing::Waiting
            }
        };
        let name = || node.to_owned();
        // That nothing was heard says something of the node once it had the time to find a collector again.
        if need == Need::Now && window.to_ns >= found_by_ns {
            return Standing::Complete;
        }
        let Some(known) = self.nodes.get(node) else {
            return late(Cause::Silent { node: name() });
        };
        let last = &known.last;
        let is_heard = now_ns.saturating_sub(last.received_ns) <= ns(HEARD_WITHIN);
        let is_told = known.is_told(need);
        if let Some(flaw) = known.worst(window, need) {
            // What is known to be wrong stays wrong, however long one waits.
            let missing = |of: fn(FlawKind) -> u64| Cause::Missing {
                node: name(),
                rows: known.counted(window, of),
            };
            return Standing::Incomplete(match flaw.kind {
                FlawKind::NotWatched => Cause::NotWatched { node: name() },
                FlawKind::Missing(_) => missing(FlawKind::missing),
                FlawKind::Lost(_) => missing(FlawKind::lost),
                FlawKind::Dropped(_) => missing(FlawKind::dropped),
                FlawKind::MissingCalls(_) => Cause::MissingCalls {
                    node: name(),
                    calls: known.counted(window, FlawKind::missing_calls),
                },
                FlawKind::Off { switch, reason } => Cause::Off {
                    node: name(),
                    switch,
                    reason,
                },
                FlawKind::Clock { ahead } => Cause::Clock { node: name(), ahead },
            });
        }
        if known.is_there(window, need) {
            return Standing::Complete;
        }
        if is_heard && need.is_of_rows() && known.has_no_watermark() {
            return Standing::Incomplete(Cause::NoWatermark { node: name() });
        }
        if is_heard && !is_told {
            return Standing::Incomplete(match need {
                Need::Attempts => Cause::NotAnnounced { node: name() },
                _ => Cause::NotReported { node: name() },
            });
        }
        // What waited for an earlier window in vain is not waited for again.
        let heard_ns = last.received_ns.max(self.listening.from_ns);
        let is_gone_for_long =
            now_ns >= found_by_ns && now_ns.saturating_sub(heard_ns) > ns(deadline).max(ns(HEARD_WITHIN));
        if is_gone_for_long {
            return Standing::Incomplete(Cause::Silent { node: name() });
        }
        let is_silent = now_ns.saturating_sub(last.received_ns) > ns(SILENT_AFTER);
        if is_silent {
            late(Cause::Silent { node: name() })
        } else {
            late(Cause::Behind { node: name() })
        }
    }

    /// The nodes whose rows until then are all there, as far as they will ever be.
    pub fn settled(&self, need: Need, until_ns: i64) -> impl Iterator<Item = &str> {
        let nodes = self.nodes.iter();
        nodes
            .filter(move |(_, node)| node.until_ns(need) >= until_ns)
            .map(|(name, _)| name.as_str())
    }

    /// How many nodes were ever heard of.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether anything was heard of the node within the 10 s before, or since. `None`: nothing ever was.
    pub fn is_up(&self, node: &str, at_ns: i64) -> Option<bool> {
        let last = &self.nodes.get(node)?.last;
        Some(at_ns.saturating_sub(last.received_ns) <= ns(HEARD_WITHIN))
    }

    /// How far what is stored of it is behind a moment.
    pub fn lag_ns(&self, node: &str, at_ns: i64) -> Option<i64> {
        let records_ns = self.nodes.get(node)?.last.records_ns;
        (records_ns > 0).then(|| at_ns.saturating_sub(records_ns).max(0))
    }

    pub fn clock_offset_ns(&self, node: &str) -> Option<i64> {
        let last = &self.nodes.get(node)?.last;
        // Until it was measured, the report itself tells what is grossly wrong.
        let gross_ns = last.observed_ns.saturating_sub(last.received_ns);
        if gross_ns.unsigned_abs() > AHEAD.as_nanos() as u64 {
            return Some(gross_ns);
        }
        Some(last.clock_offset_ns)
    }

    /// Rows of a node's connections that are missing in a window.
    pub fn missing(&self, node: &str, window: Window) -> Option<u64> {
        Some(self.nodes.get(node)?.counted(window, FlawKind::missing))
    }

    /// Of these, what its kernel did not hand over.
    pub fn lost(&self, node: &str, window: Window) -> Option<u64> {
        Some(self.nodes.get(node)?.counted(window, FlawKind::lost))
    }

    /// Rows of any kind that its agent had and gave up.
    pub fn dropped(&self, node: &str, window: Window) -> Option<u64> {
        Some(self.nodes.get(node)?.counted(window, FlawKind::dropped))
    }

    /// Rows and calls of what is needed of a node that are known to be lost in a window. `None`: none is known to be, and that
    /// none is, is not known either.
    pub fn loss(&self, node: &str, window: Window, needs: &[Need]) -> Option<u64> {
        let known = self.nodes.get(node)?;
        let is_of_clock = |flaw: &Flaw| matches!(flaw.kind, FlawKind::Clock { .. });
        if known.touching(window).any(is_of_clock) {
            // When it was lost is told by a clock that is wrong.
            return None;
        }
        let lost = known.lost(window, needs);
        let is_whole = |need: &Need| known.worst(window, *need).is_none() && known.is_there(window, *need);
        (lost > 0 || needs.iter().all(is_whole)).then_some(lost)
    }
}

impl Node {
    /// Up to when the rows are there. Zero and less: not known.
    fn until_ns(&self, need: Need) -> i64 {
        match need {
            Need::Records => self.last.records_ns,
            Need::Samples(_) => self.last.records_ns - SAMPLES_MARGIN_NS,
            Need::Attempts => self.last.attempts_ns,
            Need::Counts => self.last.observed_ns,
            Need::Report | Need::Now => self.last.received_ns.saturating_add(ns(HEARD_WITHIN)),
        }
    }

    /// Whether it tells up to when the rows are there.
    fn is_told(&self, need: Need) -> bool {
        let last = &self.last;
        match need {
            Need::Records | Need::Samples(_) => last.records_ns > 0,
            Need::Attempts => last.attempts_ns > 0 || last.records_ns == 0,
            Need::Counts | Need::Report | Need::Now => true,
        }
    }

    /// Whether the rows of a window are there, but for those that never come.
    fn is_there(&self, window: Window, need: Need) -> bool {
        self.until_ns(need) >= window.to_ns && self.is_told(need)
    }

    /// Whether its agent is of a revision that had no watermark yet, which had no switches either: a later one may know of
    /// none for a while.
    fn has_no_watermark(&self) -> bool {
        let Report {
            records_ns, watches, ..
        } = &self.last;
        let are_untold = watches.iter().all(|watch| watch.off == OffReason::Untold);
        let heard_ns = self.last.received_ns - self.heard_from_ns;
        *records_ns == 0 && are_untold && heard_ns > ns(TELLS_WITHIN)
    }

    fn flaw(&mut self, from_ns: i64, to_ns: i64, kind: FlawKind) {
        let is_same = |flaw: &&mut Flaw| flaw.kind == kind && flaw.from_ns <= to_ns && from_ns <= flaw.to_ns;
        if matches!(kind, FlawKind::Clock { .. } | FlawKind::Off { .. })
            && let Some(same) = self.flaws.iter_mut().find(is_same)
        {
            (same.from_ns, same.to_ns) = (same.from_ns.min(from_ns), same.to_ns.max(to_ns));
            return;
        }
        if self.flaws.len() == REMEMBERED {
            self.flaws.pop_front();
            if let Some(first) = self.flaws.front_mut() {
                first.from_ns = i64::MIN;
            }
        }
        self.flaws.push_back(Flaw { from_ns, to_ns, kind });
    }

    fn worst(&self, window: Window, need: Need) -> Option<&Flaw> {
        self.touching(window)
            // Before its first start an agent had nothing to count; what came of one start while the next was not there yet,
            // none of them tells.
            .filter(|flaw| need != Need::Counts || !flaw.is_before_all())
            .filter_map(|flaw| Some((flaw.kind.rank(need)?, flaw)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, flaw)| flaw)
    }

    fn touching(&self, window: Window) -> impl Iterator<Item = &Flaw> {
        self.flaws.iter().filter(move |flaw| flaw.touches(window))
    }

    fn counted(&self, window: Window, of: fn(FlawKind) -> u64) -> u64 {
        self.touching(window).map(|flaw| of(flaw.kind)).sum()
    }

    /// Rows and calls that are lost, of what is needed.
    fn lost(&self, window: Window, needs: &[Need]) -> u64 {
        let is_needed = |kind: FlawKind| needs.iter().any(|need| kind.rank(*need).is_some());
        let of_needed = |of: fn(FlawKind) -> u64| -> u64 {
            let needed = self.touching(window).filter(|flaw| is_needed(flaw.kind));
            needed.map(|flaw| of(flaw.kind)).sum()
        };
        let [missing, dropped, calls] =
            [FlawKind::missing, FlawKind::dropped, FlawKind::missing_calls].map(of_needed);
        // What was dropped of connections is missing of them too, so where both are needed it is counted once.
        let not_handed_over = if missing > 0 {
            self.counted(window, FlawKind::lost)
        } else {
            0
        };
        missing.max(not_handed_over + dropped) + calls
    }
}

impl FlawKind {
    fn missing(self) -> u64 {
        match self {
            Self::Missing(rows) => rows,
            _ => 0,
        }
    }

    fn lost(self) -> u64 {
        match self {
            Self::Lost(rows) => rows,
            _ => 0,
        }
    }

    fn dropped(self) -> u64 {
        match self {
            Self::Dropped(rows) => rows,
            _ => 0,
        }
    }

    fn missing_calls(self) -> u64 {
        match self {
            Self::MissingCalls(calls) => calls,
            _ => 0,
        }
    }
}

impl Flaw {
    /// Whether nobody watched before it.
    fn is_before_all(&self) -> bool {
        self.kind == FlawKind::NotWatched && self.from_ns == i64::MIN
    }

    fn touches(&self, window: Window) -> bool {
        self.from_ns < window.to_ns && self.to_ns > window.from_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    /// When the tests begin.
    const T: i64 = 1_000_000 * SECOND;

    /// A report of `web`, so many seconds after the begin, with everything up to half a second before.
    fn report(seconds: i64) -> Report {
        Report {
            node: "web".into(),
            agent_epoch: 1,
            observed_ns: T + seconds * SECOND,
            received_ns: T + seconds * SECOND,
            records_ns: T + seconds * SECOND - SECOND / 2,
            attempts_ns: T + seconds * SECOND - SECOND,
            watches: [Watch {
                since_ns: T - SECOND,
                off: OffReason::Unsaid,
            }; 3],
            ..Report::default()
        }
    }

    fn heard(reports: impl IntoIterator<Item = Report>) -> Coverage {
        let mut coverage = Coverage::default();
        for report in reports {
            coverage.hear(&report);
        }
        coverage
    }

    /// The last 5 seconds before, seen then.
    fn standing(coverage: &Coverage, to: i64, now: i64) -> Standing {
        let window = Window {
            from_ns: T + (to - 5) * SECOND,
            to_ns: T + to * SECOND,
        };
        let now_ns = T + now * SECOND;
        coverage.standing("web", window, Need::Attempts, now_ns, Duration::from_secs(10))
    }

    #[test]
    fn a_window_is_complete_once_the_watermark_has_passed_it() {
        let coverage = heard((0..=20).map(report));
        assert_eq!(standing(&coverage, 19, 20), Standing::Complete);
        assert_eq!(standing(&coverage, 20, 20), Standing::Waiting);
    }

    #[test]
    fn a_silent_node_is_waited_for_once() {
        let coverage = heard((0..=20).map(report));
        let silent = Standing::Incomplete(Cause::Silent { node: "web".into() });
        assert_eq!(standing(&coverage, 22, 29), Standing::Waiting);
        assert_eq!(standing(&coverage, 22, 32), silent);
        assert_eq!(standing(&coverage, 30, 31), silent);
        let unknown = Coverage::default();
        assert_eq!(standing(&unknown, 10, 11), Standing::Waiting);
        assert_eq!(standing(&unknown, 10, 20), silent);
    }

    #[test]
    fn an_agent_that_is_there_and_behind_is_not_called_silent() {
        let stuck = (0..=30).map(|at| Report {
            records_ns: report(at.min(10)).records_ns,
            attempts_ns: report(at.min(10)).attempts_ns,
            ..report(at)
        });
        let behind = Standing::Incomplete(Cause::Behind { node: "web".into() });
        assert_eq!(standing(&heard(stuck), 20, 30), behind);
    }

    #[test]
    fn an_agent_that_was_killed_is_silent_from_the_first_window_that_lacks_its_rows() {
        let coverage = heard((0..=20).map(report));
        let silent = Standing::Incomplete(Cause::Silent { node: "web".into() });
        // The last report came after the end of that window, and before all of its rows.
        assert_eq!(standing(&coverage, 20, 30), silent);
        assert_eq!(standing(&coverage, 21, 31), silent);
        let told = |deadline: u64, now: i64| {
            let window = Window {
                from_ns: T + 15 * SECOND,
                to_ns: T + 20 * SECOND,
            };
            let (now_ns, deadline) = (T + now * SECOND, Duration::from_secs(deadline));
            coverage.standing("web", window, Need::Attempts, now_ns, deadline)
        };
        // With a shorter deadline too, but nobody is silent who is late by one report.
        assert_eq!(told(5, 25), silent);
        let behind = Standing::Incomplete(Cause::Behind { node: "web".into() });
        assert_eq!(told(2, 22), behind);
    }

    #[test]
    fn windows_from_before_an_agent_started_are_not_judged() {
        let mut restarted: Vec<_> = (0..=10).map(report).collect();
        restarted.extend((12..=30).map(|at| Report {
            agent_epoch: 2,
            ..report(at)
        }));
        let coverage = heard(restarted);
        let not_watched = Standing::Incomplete(Cause::NotWatched { node: "web".into() });
        assert_eq!(standing(&coverage, 13, 30), not_watched);
        assert_eq!(standing(&coverage, 17, 30), Standing::Complete);
        assert_eq!(standing(&coverage, 9, 30), Standing::Complete);
        assert_eq!(standing(&coverage, 3, 30), not_watched);
    }

    #[test]
    fn what_was_lost_in_a_window_makes_it_incomplete() {
        let losing = (0..=30).map(|at| Report {
            missing: if at >= 12 { 7 } else { 0 },
            ..report(at)
        });
        let coverage = heard(losing);
        let missing = Standing::Incomplete(Cause::Missing {
            node: "web".into(),
            rows: 7,
        });
        assert_eq!(standing(&coverage, 11, 30), Standing::Complete);
        assert_eq!(standing(&coverage, 12, 30), missing);
        assert_eq!(standing(&coverage, 16, 30), missing);
        assert_eq!(standing(&coverage, 17, 30), Standing::Complete);
    }

    #[test]
    fn what_is_lost_is_counted_of_what_is_needed_and_once() {
        let losing = (0..=30).map(|at| {
            let is_lost = u64::from(at >= 12);
            Report {
                // Of the connections' seven rows the kernel did not hand over three, and the agent dropped four; and two others.
                missing: 7 * is_lost,
                lost: 3 * is_lost,
                dropped: 6 * is_lost,
                syscalls_missing: 20 * is_lost,
                ..report(at)
            }
        });
        let coverage = heard(losing);
        let (samples, calls) = (Need::Samples(None), Need::Samples(Some(Switch::Syscalls)));
        let check = |needs: &[Need], to: i64, expected: Option<u64>| {
            let window = Window {
                from_ns: T + (to - 5) * SECOND,
                to_ns: T + to * SECOND,
            };
            assert_eq!(coverage.loss("web", window, needs), expected, "{needs:?} {to}");
        };
        check(&[Need::Attempts], 14, Some(7));
        check(&[Need::Attempts, Need::Records], 14, Some(7));
        check(&[samples], 14, Some(6));
        check(&[Need::Records, samples], 14, Some(9));
        check(&[calls], 14, Some(26));
        // Before and after nothing was lost.
        check(&[Need::Attempts, samples, calls], 11, Some(0));
        check(&[Need::Attempts, samples, calls], 17, Some(0));
        // What has not come may be lost yet.
        check(&[Need::Attempts], 30, None);
    }

    #[test]
    fn that_nothing_is_lost_is_not_said_where_nobody_knows() {
        let window = Window {
            from_ns: T + 8 * SECOND,
            to_ns: T + 13 * SECOND,
        };
        let loss = |reports: Vec<Report>, need| heard(reports).loss("web", window, &[need]);
        let until_20 = |change: fn(i64) -> Report| (0..=20).map(change).collect::<Vec<_>>();
        assert_eq!(Coverage::default().loss("web", window, &[Need::Attempts]), None);
        assert_eq!(loss(until_20(report), Need::Attempts), Some(0));
        assert_eq!(loss((0..=12).map(report).collect(), Need::Attempts), None);
        // Nobody watched for a while; what is known to be lost in the rest of the window is told all the same.
        let restarted = until_20(|at| Report {
            agent_epoch: if at < 10 { 1 } else { 2 },
            ..report(at)
        });
        assert_eq!(loss(restarted, Need::Attempts), None);
        let losing = until_20(|at| Report {
            agent_epoch: if at < 10 { 1 } else { 2 },
            missing: if at < 12 { 0 } else { 4 },
            ..report(at)
        });
        assert_eq!(loss(losing.clone(), Need::Attempts), Some(4));
        let is_off = until_20(|at| Report {
            watches: [Watch::default(); 3],
            ..report(at)
        });
        let calls = Need::Samples(Some(Switch::Syscalls));
        assert_eq!(loss(is_off.clone(), calls), None);
        assert_eq!(loss(is_off, Need::Attempts), Some(0));
        // By a wrong clock it is not known in which window it was.
        let jumping = losing.into_iter().map(|report| Report {
            received_ns: report.received_ns - 60 * SECOND,
            ..report
        });
        assert_eq!(loss(jumping.collect(), Need::Attempts), None);
    }

    #[test]
    fn what_was_open_when_the_clock_jumped_is_not_called_late() {
        // The watermark of the last good report is 3 s old.
        let good = Report {
            records_ns: T + 7 * SECOND,
            attempts_ns: T + 7 * SECOND,
            ..report(10)
        };
        let wrong = Report {
            observed_ns: T + (11 - 3600) * SECOND,
            records_ns: T + (11 - 3600) * SECOND,
            attempts_ns: T + (11 - 3600) * SECOND,
            ..report(11)
        };
        let coverage = heard([report(9), good, wrong]);
        let window = Window {
            from_ns: T + 8 * SECOND,
            to_ns: T + 9 * SECOND,
        };
        let told = coverage.standing(
            "web",
            window,
            Need::Attempts,
            T + 11 * SECOND,
            Duration::from_secs(10),
        );
        let clock = Cause::Clock {
            node: "web".into(),
            ahead: false,
        };
        assert_eq!(told, Standing::Incomplete(clock));
    }

    #[test]
    fn a_clock_that_jumps_is_told_and_forgotten() {
        let hour = 3600 * SECOND;
        let jumping = (0..=40).map(|at| {
            let off = if (10..20).contains(&at) { hour } else { 0 };
            Report {
                observed_ns: report(at).observed_ns + off,
                records_ns: report(at).records_ns + off,
                attempts_ns: report(at).attempts_ns + off,
                ..report(at)
            }
        });
        let reports: Vec<_> = jumping.collect();
        let clock = Standing::Incomplete(Cause::Clock {
            node: "web".into(),
            ahead: true,
        });
        assert_eq!(standing(&heard(reports[..15].to_vec()), 13, 14), clock);
        // Rows of the hour that it was ahead are in windows of the hour to come.
        assert_eq!(standing(&heard(reports.clone()), 19, 40), clock);
        assert_eq!(standing(&heard(reports.clone()), 8, 40), Standing::Complete);
        assert_eq!(standing(&heard(reports.clone()), 3600, 40), Standing::Waiting);
        assert_eq!(standing(&heard(reports), 3615, 40), clock);
    }

    #[test]
    fn who_was_not_heard_while_nobody_listened_is_not_silent() {
        let mut coverage = heard((0..=20).map(report));
        let silent = Standing::Incomplete(Cause::Silent { node: "web".into() });
        assert_eq!(standing(&coverage, 30, 60), silent);
        coverage.listen(Listening::since(T + 55 * SECOND, T));
        assert_eq!(standing(&coverage, 30, 60), Standing::Waiting);
        coverage.hear(&report(61));
        assert_eq!(standing(&coverage, 30, 61), Standing::Complete);
        coverage.listen(Listening::since(T + 40 * SECOND, T));
        assert_eq!(standing(&coverage, 65, 90), silent);
    }

    #[test]
    fn who_was_not_heard_while_nobody_listened_is_not_called_down() {
        let mut coverage = heard((0..=20).map(report));
        let silent = Standing::Incomplete(Cause::Silent { node: "web".into() });
        let now = |coverage: &Coverage, node: &str, to: i64, now: i64| {
            let window = Window {
                from_ns: T + (to - 5) * SECOND,
                to_ns: T + to * SECOND,
            };
            let deadline = Duration::from_secs(10);
            coverage.standing(node, window, Need::Now, T + now * SECOND, deadline)
        };
        for node in ["web", "never"] {
            assert_eq!(now(&coverage, node, 40, 40), Standing::Complete);
        }
        coverage.listen(Listening::since(T + 55 * SECOND, T));
        // It was heard shortly before.
        assert_eq!(now(&coverage, "web", 30, 56), Standing::Complete);
        assert_eq!(now(&coverage, "web", 40, 56), Standing::Waiting);
        // Its agent may be in the longest pause between two attempts.
        for to in [40, 65, 68] {
            assert_eq!(now(&coverage, "web", to, 68), Standing::Waiting, "{to}");
        }
        let mut back = coverage.clone();
        back.hear(&report(69));
        for to in [40, 65, 69] {
            assert_eq!(now(&back, "web", to, 69), Standing::Complete, "{to}");
            assert_eq!(back.is_up("web", T + to * SECOND), Some(true), "{to}");
        }
        // Somebody has listened for long enough.
        assert_eq!(now(&coverage, "web", 40, 77), silent);
        assert_eq!(now(&coverage, "web", 77, 77), Standing::Complete);
    }

    #[test]
    fn who_was_not_heard_in_a_pause_is_not_called_down() {
        let down_at = |is_followed: bool, at: i64, pause: i64| {
            let mut coverage = Coverage::default();
            if is_followed {
                coverage.listen(Listening::since(T - 60 * SECOND, T));
            }
            for second in 0..=at {
                coverage.listen_again(T + second * SECOND);
                coverage.hear(&report(second));
                coverage.listened_until(T + second * SECOND);
            }
            // The store answers at the second attempt.
            let now_ns = T + (at + pause) * SECOND;
            coverage.listen_again(now_ns - SECOND / 2);
            coverage.listen_again(now_ns);
            coverage.listened_until(now_ns);
            let window = Window {
                from_ns: now_ns - 10 * SECOND,
                to_ns: now_ns - SECOND,
            };
            coverage.standing("web", window, Need::Now, now_ns, Duration::from_secs(10))
        };
        assert_eq!(down_at(true, 20, 60), Standing::Waiting);
        // Of a past that is judged, what was said is stored.
        assert_eq!(down_at(false, 20, 60), Standing::Complete);
    }

    #[test]
    fn time_in_which_nobody_listened_does_not_count_until_agents_are_back() {
        let minute = Duration::from_secs(60);
        let since = |coverage: &Coverage, now: i64, patience: u64| {
            let now_ns = T + now * SECOND;
            (coverage.expected_since(now_ns, minute, Duration::from_secs(patience)) - T) / SECOND
        };
        assert_eq!(since(&Coverage::default(), 100, 10), 40);
        // Nobody was heard for 70 s before a start.
        let mut coverage = Coverage::default();
        coverage.listen(Listening::since(T + 170 * SECOND, T + 100 * SECOND));
        assert_eq!((since(&coverage, 170, 10), since(&coverage, 196, 10)), (40, 40));
        assert_eq!((since(&coverage, 197, 10), since(&coverage, 197, 30)), (137, 40));
        // It stands still before they are back, and later once more.
        coverage.listened_until(T + 175 * SECOND);
        coverage.listen_again(T + 240 * SECOND);
        assert_eq!(since(&coverage, 241, 10), 40);
        coverage.listened_until(T + 300 * SECOND);
        assert_eq!(since(&coverage, 300, 10), 240);
        coverage.listen_again(T + 400 * SECOND);
        assert_eq!((since(&coverage, 400, 10), since(&coverage, 430, 10)), (240, 370));
    }

    #[test]
    fn of_what_is_switched_off_nothing_is_known() {
        let off = |at: i64, watch: Watch| {
            let mut watches = report(at).watches;
            watches[Switch::Syscalls as usize] = watch;
            Report {
                watches,
                ..report(at)
            }
        };
        let is_off = Watch {
            since_ns: 0,
            off: OffReason::Budget,
        };
        let on_again = Watch {
            since_ns: T + 20 * SECOND + SECOND / 2,
            off: OffReason::Unsaid,
        };
        let reports = (0..=60).map(|at| match at {
            10..=20 => off(at, is_off),
            21.. => off(at, on_again),
            _ => report(at),
        });
        let coverage = heard(reports);
        let of = |switch, to: i64| {
            let window = Window {
                from_ns: T + (to - 5) * SECOND,
                to_ns: T + to * SECOND,
            };
            let now_ns = T + 60 * SECOND;
            let need = Need::Samples(Some(switch));
            coverage.standing("web", window, need, now_ns, Duration::from_secs(10))
        };
        let told = Standing::Incomplete(Cause::Off {
            node: "web".into(),
            switch: Switch::Syscalls,
            reason: OffReason::Budget,
        });
        // It may have been switched off just after the last report before, and was on again half a second after 20.
        for (to, expected) in [
            (9, &Standing::Complete),
            (10, &told),
            (25, &told),
            (26, &Standing::Complete),
        ] {
            assert_eq!(of(Switch::Syscalls, to), *expected, "{to}");
        }
        assert_eq!(of(Switch::Listeners, 15), Standing::Complete);
        assert_eq!(standing(&coverage, 15, 60), Standing::Complete);
    }

    #[test]
    fn calls_that_are_missing_are_not_connections_that_are() {
        let losing = (0..=30).map(|at| Report {
            syscalls_missing: if at >= 12 { 7 } else { 0 },
            ..report(at)
        });
        let coverage = heard(losing);
        assert_eq!(standing(&coverage, 14, 30), Standing::Complete);
        let window = Window {
            from_ns: T + 9 * SECOND,
            to_ns: T + 14 * SECOND,
        };
        let need = Need::Samples(Some(Switch::Syscalls));
        let told = coverage.standing("web", window, need, T + 30 * SECOND, Duration::from_secs(10));
        assert_eq!(
            told,
            Standing::Incomplete(Cause::MissingCalls {
                node: "web".into(),
                calls: 7
            })
        );
    }

    #[test]
    fn an_agent_without_a_watermark_is_told_so_unless_it_is_of_a_revision_that_has_one() {
        let mute = |off: OffReason| {
            move |at: i64| Report {
                records_ns: 0,
                attempts_ns: 0,
                watches: [Watch { since_ns: 0, off }; 3],
                ..report(at)
            }
        };
        let told = Standing::Incomplete(Cause::NoWatermark { node: "web".into() });
        let earlier = heard((0..=20).map(mute(OffReason::Untold)));
        assert_eq!(standing(&earlier, 19, 20), told);
        // It has just begun to speak.
        let begins = heard((0..=5).map(mute(OffReason::Untold)));
        assert_eq!(standing(&begins, 5, 5), Standing::Waiting);
        let todays = heard((0..=20).map(mute(OffReason::Budget)));
        assert_eq!(standing(&todays, 19, 20), Standing::Waiting);
    }

    #[test]
    fn an_agent_that_does_not_announce_is_told_so() {
        let mute = (0..=20).map(|at| Report {
            attempts_ns: 0,
            ..report(at)
        });
        let told = Standing::Incomplete(Cause::NotAnnounced { node: "web".into() });
        assert_eq!(standing(&heard(mute), 19, 20), told);
    }
}
