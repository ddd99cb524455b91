//! Which minutes of the rollup are due, and the task that has them computed.
//!
//! `gather` says of every block that became durable which minutes of which nodes it has rows of. A minute is due once
//! it is closed: its node's agent has reported from after it with nothing left to deliver, or [`LATENESS`] has passed.
//! Rows that come later make their minute due again. The store computes a minute as a whole, from the raw rows that
//! are there (`store/rollups.rs`), so computing one too early, twice, or on two collectors costs time and nothing else.
//!
//! What is waiting is only in memory: a collector that was killed finds it again by comparing the raw rows with the
//! rollup, at its start and from time to time, which also finds what another collector left behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use crate::causes;
use crate::clock::WallClock;
use crate::metrics::Metrics;
use crate::store::rollups::{self, Day, NodeMinute};
use crate::store::{Store, StoreError};

/// How long after its end a minute waits for its rows, unless its agent says that it has delivered them. Rows that come
/// after that are collected for as long.
const LATENESS: Duration = Duration::from_secs(10);

/// An agent that reports at T may hold rows from shortly before: those that are in the ring and in the open batch.
const REPORT_MARGIN_NS: i64 = 2_000_000_000;

/// A minute that lasts longer from now is of a node whose clock is ahead, and is over by then.
const LONGEST_MINUTE: Duration = Duration::from_secs(60);

/// How often is looked whether something is due. Minutes of many nodes end together: one statement takes them all.
const PASS_EVERY: Duration = Duration::from_secs(1);

/// How often the raw rows are compared with the rollup, day by day where something changed.
const COMPARE_EVERY: Duration = Duration::from_secs(600);

/// A statement computes so many minutes at most. It costs some 20 ms besides its rows.
const UNITS_A_STATEMENT: usize = 1_000;

/// And so many minutes from the first to the last: what lies between them is read.
const STATEMENT_MINUTES: u32 = 10;

/// A comparison finds so many minutes at most, and the rest once these are computed.
const UNITS_A_COMPARISON: usize = 20_000;

/// Minutes that wait at once, some 10 MB of them. What is beyond is found by comparing.
const MOST_UNITS: usize = 100_000;

/// Nodes whose reports are remembered. The minutes of others wait until [`LATENESS`] has passed.
const MOST_NODES: usize = 65_536;

/// The pause after a failure of the store.
const PAUSE: Duration = Duration::from_secs(5);

/// The minutes that are waiting to be computed: the side of those who store rows.
#[derive(Clone)]
pub struct Minutes {
    waiting: Arc<Mutex<Waiting>>,
    clock: WallClock,
    /// Those whose attempts are to be explained.
    pub causes: causes::Minutes,
}

impl Minutes {
    pub fn new(clock: WallClock) -> Self {
        Self {
            waiting: Arc::default(),
            clock,
            causes: causes::Minutes::default(),
        }
    }

    /// Rows of a node became durable, which were recorded at these times.
    pub fn stored(&self, node: &str, recorded_at_ns: &[i64]) {
        let now = self.now();
        let mut waiting = self.lock();
        let mut last = None;
        for &at_ns in recorded_at_ns {
            let minute = NodeMinute::minute_of(at_ns);
            // Rows of a batch are near each other.
            if last != Some(minute) {
                waiting.stored(node, minute, now);
                last = Some(minute);
            }
        }
    }

    /// A node's agent reported, by its own clock then, that it had nothing left to deliver.
    pub fn delivered(&self, node: &str, until_ns: i64) {
        self.lock().delivered(node, until_ns, Instant::now());
    }

    fn now(&self) -> Now {
        Now {
            wall_ns: self.clock.now_ns(),
            at: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // What it guards is valid at every point.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two clocks: minutes are the wall clock's, but a jump of it must not make anything wait.
#[derive(Clone, Copy, Debug)]
struct Now {
    /// Nanoseconds since the Unix epoch.
    wall_ns: i64,
    at: Instant,
}

/// The minutes that are waiting. Pure: the time is an argument.
#[derive(Debug, Default)]
struct Waiting {
    nodes: HashMap<String, Node>,
    /// Minutes of all nodes.
    units: usize,
    /// There were too many: some are not here.
    is_incomplete: bool,
}

#[derive(Debug, Default)]
struct Node {
    /// Up to here its agent has delivered everything, by the node's clock. Zero until it says so.
    delivered_until_ns: i64,
    minutes: BTreeMap<u32, Due>,
}

/// When a minute is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    at: Instant,
    /// It was closed before: its rows are late, and more of them may follow.
    is_late: bool,
}

impl Waiting {
    fn stored(&mut self, node: &str, minute: u32, now: Now) {
        let end_ns = end_ns(minute);
        let known = self.nodes.get(node);
        if known.is_some_and(|node| node.minutes.contains_key(&minute)) {
            return;
        }
        let is_late = match known.map_or(0, |node| node.delivered_until_ns) {
            0 => now.wall_ns >= end_ns.saturating_add(LATENESS.as_nanos() as i64),
            until_ns => until_ns >= end_ns.saturating_add(REPORT_MARGIN_NS),
        };
        let at = now.at + LATENESS;
        let at = if is_late { at } else { at + until_end(minute, now) };
        self.wait(node, minute, Due { at, is_late });
    }

    fn wait(&mut self, node: &str, minute: u32, due: Due) {
        if self.units >= MOST_UNITS {
            self.is_incomplete = true;
            return;
        }
        let Some(node) = self.node(node) else {
            self.is_incomplete = true;
            return;
        };
        if let std::collections::btree_map::Entry::Vacant(place) = node.minutes.entry(minute) {
            place.insert(due);
            self.units += 1;
        }
    }

    /// A node's place; none if there are too many with minutes that wait.
    fn node(&mut self, name: &str) -> Option<&mut Node> {
        if !self.nodes.contains_key(name) {
            if self.nodes.len() >= MOST_NODES {
                self.nodes.retain(|_, node| !node.minutes.is_empty());
            }
            if self.nodes.len() >= MOST_NODES {
                return None;
            }
        }
        Some(self.nodes.entry(name.to_owned()).or_default())
    }

    fn delivered(&mut self, node: &str, until_ns: i64, now: Instant) {
        let Some(node) = self.node(node) else { return };
        node.delivered_until_ns = node.delivered_until_ns.max(until_ns);
        let closed = node
            .minutes
            .iter_mut()
            .take_while(|(minute, _)| end_ns(**minute).saturating_add(REPORT_MARGIN_NS) <= until_ns);
        for (_, due) in closed.filter(|(_, due)| !due.is_late) {
            due.at = due.at.min(now);
        }
    }

    /// Takes the oldest minutes that are due, `most` of them at most, all of one day and near each other.
    fn take(&mut self, now: Instant, most: usize) -> Vec<NodeMinute> {
        /// Of a day, UTC.
        const MINUTES: u32 = 24 * 60;
        let mut due: Vec<NodeMinute> = Vec::new();
        for (name, node) in &self.nodes {
            let ready = node.minutes.iter().filter(|(_, due)| due.at <= now);
            due.extend(ready.map(|(&minute, _)| NodeMinute {
                minute,
                node: name.clone(),
            }));
        }
        due.sort_unstable();
        let first = due.first().map_or(0, |unit| unit.minute);
        due.truncate(most);
        due.retain(|unit| {
            unit.minute / MINUTES == first / MINUTES && unit.minute - first < STATEMENT_MINUTES
        });
        for unit in &due {
            if let Some(node) = self.nodes.get_mut(&unit.node)
                && node.minutes.remove(&unit.minute).is_some()
            {
                self.units -= 1;
            }
        }
        due
    }

    /// How long the oldest minute that waits has been over.
    fn lag(&self, now_ns: i64) -> Duration {
        let oldest = self.nodes.values().filter_map(|node| node.minutes.keys().next());
        let lag_ns = oldest.min().map_or(0, |&minute| now_ns - end_ns(minute));
        Duration::from_nanos(u64::try_from(lag_ns).unwrap_or(0))
    }
}

fn end_ns(minute: u32) -> i64 {
    NodeMinute::begin_ns(minute).saturating_add(NodeMinute::begin_ns(1))
}

/// How long a minute still lasts.
fn until_end(minute: u32, now: Now) -> Duration {
    let left_ns = u64::try_from(end_ns(minute) - now.wall_ns).unwrap_or(0);
    Duration::from_nanos(left_ns).min(LONGEST_MINUTE)
}

/// The task: has what is due computed, until the collector stops.
pub struct Rollup {
    pub store: Arc<dyn Store>,
    pub minutes: Minutes,
    pub metrics: Arc<Metrics>,
    /// True once the collector stops.
    pub stopping: watch::Receiver<bool>,
}

impl Rollup {
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(PASS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut comparison = Comparison::default();
        let mut is_failing = false;
        loop {
            tokio::select! {
                biased;
                // An error means that the collector is gone already.
                _ = self.stopping.wait_for(|stopping| *stopping) => return,
                _ = ticks.tick() => {}
            }
            let outcome = self.pass(&mut comparison).await;
            self.show();
            match outcome {
                Ok(()) if is_failing => {
                    is_failing = false;
                    info!("the rollup goes on");
                }
                Ok(()) => {}
                Err(error) => {
                    self.metrics.rollup_failures.inc();
                    if !is_failing {
                        is_failing = true;
                        warn!(%error, "the rollup cannot be computed; its minutes wait");
                    }
                    ticks.reset_after(PAUSE);
                }
            }
        }
    }

    /// Looks for what is behind, at most one day of it, and has computed what is due, at most one statement of it.
    async fn pass(&self, comparison: &mut Comparison) -> Result<(), StoreError> {
        if std::mem::take(&mut self.minutes.lock().is_incomplete) {
            self.metrics.rollup_overflows.inc();
            comparison.begin_anew();
        }
        let now = self.minutes.now();
        let due = self.minutes.lock().take(now.at, UNITS_A_STATEMENT);
        // What a comparison found by the thousand is computed before there is another one.
        if due.is_empty() || !comparison.found_many {
            comparison.step(&*self.store, &self.minutes).await?;
        }
        if due.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        if let Err(error) = rollups::recompute(&*self.store, &due).await {
            let mut waiting = self.minutes.lock();
            for unit in due {
                let again = Due {
                    at: now.at,
                    is_late: true,
                };
                waiting.wait(&unit.node, unit.minute, again);
            }
            return Err(error);
        }
        self.metrics.rollup_minutes.inc_by(due.len() as u64);
        self.metrics
            .rollup_seconds
            .inc_by(started.elapsed().as_secs_f64());
        Ok(())
    }

    fn show(&self) {
        let waiting = self.minutes.lock();
        let lag = waiting.lag(self.minutes.clock.now_ns());
        self.metrics.rollup_waiting.set(waiting.units as i64);
        self.metrics.rollup_lag_seconds.set(lag.as_secs_f64());
    }
}

/// Where the comparison of the raw rows with the rollup stands.
#[derive(Default)]
struct Comparison {
    /// When the days were last listed; `None`: they are to be listed now.
    listed: Option<Instant>,
    /// Days that are to be compared, the newest last.
    days: Vec<Day>,
    /// The last one found as many minutes as it may.
    found_many: bool,
    /// How many raw rows each day had when it was compared and nothing else was behind than what waits since.
    compared: HashMap<u32, u64>,
}

impl Comparison {
    /// Something is missing, nobody knows of which day.
    fn begin_anew(&mut self) {
        *self = Self::default();
    }

    /// Lists the days if that is due, and compares one of them.
    async fn step(&mut self, store: &dyn Store, minutes: &Minutes) -> Result<(), StoreError> {
        if self.days.is_empty() && self.listed.is_none_or(|listed| listed.elapsed() >= COMPARE_EVERY) {
            let mut days = rollups::days(store).await?;
            self.compared
                .retain(|day, _| days.iter().any(|found| found.day == *day));
            days.retain(|day| self.compared.get(&day.day) != Some(&day.records));
            days.reverse();
            self.days = days;
            self.listed = Some(Instant::now());
        }
        let Some(&Day { day, records }) = self.days.last() else {
            return Ok(());
        };
        let behind = rollups::behind(store, day, UNITS_A_COMPARISON).await?;
        self.found_many = behind.len() == UNITS_A_COMPARISON;
        let now = minutes.now();
        let mut waiting = minutes.lock();
        for unit in behind {
            // Its rows have been there for a while: only a minute that is not over waits for more.
            let left = until_end(unit.minute, now);
            let at = if left.is_zero() {
                now.at
            } else {
                now.at + left + LATENESS
            };
            waiting.wait(&unit.node, unit.minute, Due { at, is_late: false });
        }
        if !self.found_many {
            self.days.pop();
            self.compared.insert(day, records);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_NS: i64 = 1_000_000_000;
    /// The minute that the tests are about.
    const MINUTE: u32 = 29_454_480;

    /// A moment so many seconds after the minute began.
    fn at(start: Instant, seconds: u64) -> Now {
        Now {
            wall_ns: NodeMinute::begin_ns(MINUTE) + seconds as i64 * SECOND_NS,
            at: start + Duration::from_secs(seconds),
        }
    }

    fn unit(node: &str, minute: u32) -> NodeMinute {
        NodeMinute {
            minute,
            node: node.to_owned(),
        }
    }

    #[test]
    fn a_minute_is_due_once_it_is_over_and_its_rows_had_time_to_come() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        waiting.stored("a", MINUTE, at(start, 5));
        waiting.stored("a", MINUTE, at(start, 59));
        assert_eq!(waiting.take(at(start, 69).at, 10), []);
        assert_eq!(waiting.take(at(start, 70).at, 10), [unit("a", MINUTE)]);
        assert_eq!((waiting.take(at(start, 999).at, 10), waiting.units), (vec![], 0));
    }

    #[test]
    fn an_agent_that_delivered_everything_closes_its_own_minutes() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        for node in ["a", "b"] {
            waiting.stored(node, MINUTE, at(start, 5));
        }
        let now = at(start, 62);
        waiting.delivered("a", now.wall_ns - 1, now.at);
        assert_eq!(waiting.take(now.at, 10), []);
        waiting.delivered("a", now.wall_ns, now.at);
        assert_eq!(waiting.take(now.at, 10), [unit("a", MINUTE)]);
    }

    #[test]
    fn late_rows_make_their_minute_due_again_but_not_for_each_block() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        waiting.delivered("a", at(start, 62).wall_ns, at(start, 62).at);
        for seconds in 63..70 {
            waiting.stored("a", MINUTE, at(start, seconds));
            waiting.delivered("a", at(start, seconds).wall_ns, at(start, seconds).at);
            assert_eq!(waiting.take(at(start, seconds).at, 10), []);
        }
        assert_eq!(waiting.take(at(start, 73).at, 10), [unit("a", MINUTE)]);
        waiting.stored("a", MINUTE, at(start, 74));
        assert_eq!(waiting.take(at(start, 84).at, 10), [unit("a", MINUTE)]);
    }

    #[test]
    fn a_clock_that_is_wrong_makes_nothing_wait_for_long() {
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let now = at(start, 0);
        for minute in [0, MINUTE - 60, MINUTE + 60, u32::MAX] {
            waiting.stored("a", minute, now);
        }
        assert_eq!(waiting.take(start + LATENESS, 1), [unit("a", 0)]);
        let latest = start + LATENESS + LONGEST_MINUTE;
        let left: Vec<_> = (0..3).map(|_| waiting.take(latest, 10)[0].minute).collect();
        assert_eq!(left, [MINUTE - 60, MINUTE + 60, u32::MAX]);
    }

    #[test]
    fn what_is_taken_at_once_is_of_one_day_the_oldest_first() {
        const DAY: u32 = 24 * 60;
        let (mut waiting, start) = (Waiting::default(), Instant::now());
        let begin = MINUTE - MINUTE % DAY - DAY;
        for (node, minute) in [("b", begin), ("a", begin - 1), ("a", begin + 1), ("a", begin)] {
            waiting.stored(node, minute, at(start, 0));
        }
        let now = start + LATENESS;
        assert_eq!(
            waiting.lag(at(start, 0).wall_ns),
            Duration::from_secs(u64::from(MINUTE - begin) * 60)
        );
        assert_eq!(waiting.take(now, 10), [unit("a", begin - 1)]);
        assert_eq!(waiting.take(now, 2), [unit("a", begin), unit("b", begin)]);
        assert_eq!(waiting.take(now, 10), [unit("a", begin + 1)]);
        assert_eq!(waiting.lag(at(start, 0).wall_ns), Duration::ZERO);
    }

    #[test]
    fn memory_is_bounded_and_what_is_beyond_is_known_to_be_missing() {
        let (mut waiting, now) = (Waiting::default(), at(Instant::now(), 0));
        for minute in 0..MOST_UNITS as u32 {
            waiting.stored("a", minute, now);
        }
        assert!(!waiting.is_incomplete);
        waiting.stored("a", 0, now);
        assert!(!waiting.is_incomplete);
        waiting.stored("b", 0, now);
        assert_eq!((waiting.is_incomplete, waiting.units), (true, MOST_UNITS));

        let mut waiting = Waiting::default();
        for node in 0..=MOST_NODES {
            waiting.delivered(&node.to_string(), 1, now.at);
        }
        // Those that nothing waits of were forgotten to make room.
        assert!(waiting.nodes.len() <= MOST_NODES && waiting.nodes.contains_key(&MOST_NODES.to_string()));
    }

    proptest! {
        /// Whatever is stored and reported in whatever order, each minute that has rows since it was last computed is
        /// computed in time.
        #[test]
        fn nothing_is_forgotten(steps in prop::collection::vec((0..5_u64, 0..3_u32, 0..4_u8), 1..60)) {
            let (mut waiting, start) = (Waiting::default(), Instant::now());
            let mut stored: BTreeMap<u32, u64> = BTreeMap::new();
            let mut seconds = 0;
            for (passes, minute, what) in steps {
                seconds += passes;
                let now = at(start, seconds);
                match what {
                    0 => waiting.delivered("a", now.wall_ns, now.at),
                    1 => for unit in waiting.take(now.at, 10) {
                        stored.remove(&unit.minute);
                    },
                    _ => {
                        waiting.stored("a", MINUTE + minute, now);
                        stored.entry(MINUTE + minute).or_insert(seconds);
                    }
                }
                let held: Vec<_> = waiting.nodes.values().flat_map(|node| node.minutes.keys().copied()).collect();
                prop_assert_eq!(&held, &stored.keys().copied().collect::<Vec<_>>());
            }
            let latest = at(start, seconds).at + LATENESS + LONGEST_MINUTE;
            let taken = waiting.take(latest, 10).len();
            prop_assert_eq!(taken, stored.len());
        }
    }
}
