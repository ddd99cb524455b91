//! Who was watching, when, and what was lost: the reports of the agents (`agent_samples`), as far as they say whether
//! the rows of a window are all there. Pure; the engine feeds it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::cause::Cause;

/// A window, without its begin: nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Window {
    pub from_ns: i64,
    pub to_ns: i64,
}

/// What an agent said once a second.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
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
    /// Rows that will never come, since the agent started.
    pub missing: u64,
    pub clock_offset_ns: i64,
}

/// What has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    Records,
    /// Attempts by the time they were decided.
    Attempts,
    /// What is read every 10 s, and is in the store soon after.
    Samples,
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
/// What is read every 10 s is sent within this.
const SAMPLES_MARGIN_NS: i64 = 1_000_000_000;
/// Losses and restarts of a node that are remembered; older ones are put together.
const REMEMBERED: usize = 256;

/// Everybody's reports.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    nodes: BTreeMap<String, Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    last: Report,
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
    Missing(u64),
    Clock { ahead: bool },
}

impl Coverage {
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
        known.last = Report {
            node: node.to_owned(),
            agent_epoch: epoch,
            observed_ns: began_ns,
            ..Report::default()
        };
    }

    /// Takes a report, in the order in which they came.
    pub fn hear(&mut self, report: &Report) {
        self.began(&report.node, report.agent_epoch, report.observed_ns);
        let Some(node) = self.nodes.get_mut(&report.node) else {
            return;
        };
        // An agent also speaks for its earlier starts.
        if report.agent_epoch != node.last.agent_epoch || report.received_ns < node.last.received_ns {
            return;
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
        }
        if report.missing > node.last.missing {
            let rows = report.missing - node.last.missing;
            node.flaw(node.last.observed_ns, report.observed_ns, FlawKind::Missing(rows));
        }
        node.last = report.clone();
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
        let is_late = now_ns >= window.to_ns.saturating_add(ns(deadline));
        let late = |cause| {
            if is_late {
                Standing::Incomplete(cause)
            } else {
                Standing::Waiting
            }
        };
        let name = || node.to_owned();
        let Some(known) = self.nodes.get(node) else {
            return late(Cause::Silent { node: name() });
        };
        let last = &known.last;
        let is_heard = now_ns.saturating_sub(last.received_ns) <= ns(HEARD_WITHIN);
        let (until_ns, is_told) = match need {
            Need::Records => (last.records_ns, last.records_ns > 0),
            Need::Samples => (last.records_ns - SAMPLES_MARGIN_NS, last.records_ns > 0),
            Need::Attempts => (last.attempts_ns, last.attempts_ns > 0 || last.records_ns == 0),
        };
        if let Some(flaw) = known.worst(window) {
            // What is known to be wrong stays wrong, however long one waits.
            return Standing::Incomplete(match flaw.kind {
                FlawKind::NotWatched => Cause::NotWatched { node: name() },
                FlawKind::Missing(_) => Cause::Missing {
                    node: name(),
                    rows: self.missing(node, window).unwrap_or_default(),
                },
                FlawKind::Clock { ahead } => Cause::Clock { node: name(), ahead },
            });
        }
        if until_ns >= window.to_ns && is_told {
            return Standing::Complete;
        }
        if is_heard && !is_told {
            return Standing::Incomplete(match need {
                Need::Attempts => Cause::NotAnnounced { node: name() },
                _ => Cause::NotReported { node: name() },
            });
        }
        // What waited for an earlier window in vain is not waited for again.
        let is_gone_for_long = now_ns.saturating_sub(last.received_ns) > ns(deadline).max(ns(HEARD_WITHIN));
        if is_gone_for_long {
            return Standing::Incomplete(Cause::Silent { node: name() });
        }
        if is_heard {
            late(Cause::Behind { node: name() })
        } else {
            late(Cause::Silent { node: name() })
        }
    }

    /// Whether anything was heard of the node within the last 10 s. `None`: nothing ever was.
    pub fn is_up(&self, node: &str, now_ns: i64) -> Option<bool> {
        let last = &self.nodes.get(node)?.last;
        Some(now_ns.saturating_sub(last.received_ns) <= ns(HEARD_WITHIN))
    }

    /// How far what is stored of it is behind.
    pub fn lag_ns(&self, node: &str, now_ns: i64) -> Option<i64> {
        let records_ns = self.nodes.get(node)?.last.records_ns;
        (records_ns > 0).then(|| now_ns.saturating_sub(records_ns).max(0))
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

    /// Rows of a node that are missing in a window.
    pub fn missing(&self, node: &str, window: Window) -> Option<u64> {
        let known = self.nodes.get(node)?;
        let rows = known
            .flaws
            .iter()
            .filter(|flaw| flaw.touches(window))
            .map(|flaw| match flaw.kind {
                FlawKind::Missing(rows) => rows,
                _ => 0,
            });
        Some(rows.sum())
    }

    /// Up to when everything of a node is stored, for evidence. Zero: not known.
    pub fn watermark_ns(&self, node: &str) -> i64 {
        self.nodes.get(node).map_or(0, |node| node.last.records_ns)
    }
}

impl Node {
    fn flaw(&mut self, from_ns: i64, to_ns: i64, kind: FlawKind) {
        let is_same = |flaw: &&mut Flaw| flaw.kind == kind && flaw.from_ns <= to_ns && from_ns <= flaw.to_ns;
        if matches!(kind, FlawKind::Clock { .. })
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

    fn worst(&self, window: Window) -> Option<&Flaw> {
        let rank = |flaw: &&Flaw| match flaw.kind {
            FlawKind::Clock { .. } => 0,
            FlawKind::NotWatched => 1,
            FlawKind::Missing(_) => 2,
        };
        self.flaws
            .iter()
            .filter(|flaw| flaw.touches(window))
            .min_by_key(rank)
    }
}

impl Flaw {
    fn touches(&self, window: Window) -> bool {
        self.from_ns < window.to_ns && self.to_ns > window.from_ns
    }
}

fn ns(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
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
            missing: 0,
            clock_offset_ns: 0,
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
    fn an_agent_that_does_not_announce_is_told_so() {
        let mute = (0..=20).map(|at| Report {
            attempts_ns: 0,
            ..report(at)
        });
        let told = Standing::Incomplete(Cause::NotAnnounced { node: "web".into() });
        assert_eq!(standing(&heard(mute), 19, 20), told);
    }
}
