//! What waits for its block: one block for each table and day, and whose turn it is. Pure: the time is an argument.
//!
//! All agents together bring rows of one day, of two at midnight. Rows of further days come from nodes whose clocks are
//! wrong and from spools of a long outage, each day a block of its own, however few rows it has. So that these cost whoever
//! brings them and nobody else, a group has the usual day of each table and *one* block beside these, and the agents that
//! bring more take turns at it. What has no turn yet waits for the next group.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio::time::Instant;

use super::{Content, Parcel};
use crate::config::Limits;
use crate::ingest::decode::day;

/// What a block is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    kind: Kind,
    day: u32,
}

/// Each becomes rows of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Connections,
    Gaps,
    OpenConnections,
    Listeners,
    Namespaces,
    Peers,
    Cgroups,
    Syscalls,
    Transitions,
    Overhead,
    Ledger,
    Samples,
    Sessions,
}

impl Key {
    fn of(content: &Content) -> Self {
        let (kind, day) = match content {
            Content::Connections { columns, .. } => (Kind::Connections, columns.day),
            Content::Gaps { told_ns, .. } => (Kind::Gaps, day(*told_ns)),
            Content::OpenConnections { look, .. } => (Kind::OpenConnections, day(look.observed_at_ns)),
            Content::Listeners { look, .. } => (Kind::Listeners, day(look.observed_at_ns)),
            Content::Namespaces { look, .. } => (Kind::Namespaces, day(look.observed_at_ns)),
            Content::Peers { look, .. } => (Kind::Peers, day(look.ended_at_ns)),
            Content::Cgroups { look, .. } => (Kind::Cgroups, day(look.observed_at_ns)),
            Content::Syscalls { columns, .. } => (Kind::Syscalls, columns.day),
            Content::Transitions { columns, .. } => (Kind::Transitions, columns.day),
            // Checked when the batch came: all intervals ended on one day.
            Content::Overhead { intervals, .. } => {
                let first = intervals.first();
                let day = first.map_or(0, |interval| day(interval.ended_ns.cast_signed()));
                (Kind::Overhead, day)
            }
            Content::Ledger { observed_at_ns, .. } => (Kind::Ledger, day(*observed_at_ns)),
            Content::Sample { observed_at_ns, .. } => (Kind::Samples, day(*observed_at_ns)),
            Content::Session { connected_at_ns, .. } => (Kind::Sessions, day(*connected_at_ns)),
        };
        Self { kind, day }
    }
}

/// The parcels of blocks that are inserted together: those of the usual days in the order in which their first parcels
/// arrived, then the one beside them.
pub(super) struct Group {
    pub(super) blocks: Vec<Vec<Parcel>>,
}

/// Everything that is in no group yet. The room that each parcel has bounds it.
pub(super) struct OpenGroup {
    limits: Limits,
    waiting: BTreeMap<Key, Waiting>,
    turns: Turns,
    /// Nothing more comes, so nothing waits for more.
    is_hurried: bool,
    /// When there is a group to take; `None` while nothing waits.
    due_at: Option<Instant>,
}

/// What waits for one block, or for several if it is much. Never without parcels.
struct Waiting {
    /// In the order in which they came.
    parcels: Vec<Parcel>,
    rows: usize,
    /// No parcel of it came before that.
    since: Instant,
}

impl Waiting {
    fn agents(&self) -> impl Iterator<Item = &str> {
        self.parcels.iter().map(|parcel| parcel.agent.id.as_str())
    }

    /// As many parcels as make `rows` rows, an equal number from each agent, in their order.
    fn take(&mut self, rows: usize) -> Vec<Parcel> {
        let all = std::mem::take(&mut self.parcels);
        if self.rows <= rows {
            self.rows = 0;
            return all;
        }
        let mut of_agent: HashMap<&str, usize> = HashMap::new();
        let mut rounds: Vec<(usize, usize)> = Vec::with_capacity(all.len());
        for (index, parcel) in all.iter().enumerate() {
            let round = of_agent.entry(&parcel.agent.id).or_default();
            rounds.push((*round, index));
            *round += 1;
        }
        rounds.sort_unstable();
        let mut is_taken = vec![false; all.len()];
        let mut taken_rows = 0;
        for (_, index) in rounds {
            if taken_rows >= rows {
                break;
            }
            is_taken[index] = true;
            taken_rows += all[index].content.rows();
        }
        self.rows -= taken_rows;
        let mut taken = Vec::new();
        for (parcel, is_taken) in all.into_iter().zip(is_taken) {
            if is_taken {
                taken.push(parcel);
            } else {
                self.parcels.push(parcel);
            }
        }
        taken
    }
}

impl OpenGroup {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: BTreeMap::new(),
            turns: Turns::default(),
            is_hurried: false,
            due_at: None,
        }
    }

    pub(super) fn push(&mut self, parcel: Parcel, now: Instant) {
        self.push_as(Key::of(&parcel.content), parcel, now);
    }

    fn push_as(&mut self, key: Key, parcel: Parcel, now: Instant) {
        self.turns.came(&parcel.agent.id);
        let waiting = self.waiting.entry(key).or_insert_with(|| Waiting {
            parcels: Vec::new(),
            rows: 0,
            since: now,
        });
        waiting.rows += parcel.content.rows();
        waiting.parcels.push(parcel);
        let ripe_at = ripe_at(waiting, &self.limits, self.is_hurried);
        self.due_at = Some(self.due_at.map_or(ripe_at, |due_at| due_at.min(ripe_at)));
    }

    /// Nothing more comes.
    pub(super) fn hurry(&mut self) {
        self.is_hurried = true;
        self.see_what_is_due();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// When there is a group to take, now if that has passed; `None` while nothing waits.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.due_at
    }

    fn see_what_is_due(&mut self) {
        let ripe = self.waiting.values();
        self.due_at = ripe
            .map(|waiting| ripe_at(waiting, &self.limits, self.is_hurried))
            .min();
    }

    /// The blocks whose time has come: those of the usual days, and one other.
    pub(super) fn take(&mut self, now: Instant) -> Group {
        let (mut usual, mut further) = (Vec::new(), Vec::new());
        let all: Vec<Key> = self.waiting.keys().copied().collect();
        for of_kind in all.chunk_by(|one, next| one.kind == next.kind) {
            let usual_day = self.usual(of_kind);
            for key in of_kind {
                let waiting = &self.waiting[key];
                if ripe_at(waiting, &self.limits, self.is_hurried) > now {
                    continue;
                }
                let keys = if *key == usual_day {
                    &mut usual
                } else {
                    &mut further
                };
                keys.push((waiting.since, *key));
            }
        }
        usual.sort_unstable();
        let mut keys: Vec<Key> = usual.into_iter().map(|(_, key)| key).collect();
        keys.extend(self.whose_turn_it_is(&further));
        let blocks = keys.into_iter().map(|key| self.take_block(key)).collect();
        self.see_what_is_due();
        Group { blocks }
    }

    /// The day that most agents bring of one kind; of several the latest.
    fn usual(&self, of_kind: &[Key]) -> Key {
        if let [only] = of_kind {
            return *only;
        }
        let agents = |key: &Key| self.waiting[key].agents().collect::<HashSet<_>>().len();
        *of_kind
            .iter()
            .max_by_key(|key| (agents(key), key.day))
            .expect("a kind has a key")
    }

    /// Of what is of no usual day, the oldest that the agent has whose turn it is. It goes to the end of the queue.
    fn whose_turn_it_is(&mut self, further: &[(Instant, Key)]) -> Option<Key> {
        let (_, (_, key), agent) = further
            .iter()
            .flat_map(|of| self.waiting[&of.1].agents().map(move |agent| (of, agent)))
            .map(|(of, agent)| (self.turns.of(agent), of, agent))
            .min()?;
        let agent = agent.to_owned();
        self.turns.had(&agent);
        Some(*key)
    }

    fn take_block(&mut self, key: Key) -> Vec<Parcel> {
        let Some(waiting) = self.waiting.get_mut(&key) else {
            return Vec::new();
        };
        let taken = waiting.take(self.limits.gather_rows);
        if waiting.parcels.is_empty() {
            self.waiting.remove(&key);
        }
        for parcel in &taken {
            self.turns.left(&parcel.agent.id);
        }
        taken
    }
}

/// When it waits for nothing more.
fn ripe_at(waiting: &Waiting, limits: &Limits, is_hurried: bool) -> Instant {
    if is_hurried || waiting.rows >= limits.gather_rows {
        waiting.since
    } else {
        waiting.since + limits.gather_interval
    }
}

/// The queue of the agents of which something waits: who had its turn, or came anew, is behind all others.
#[derive(Default)]
struct Turns {
    last: u64,
    agents: HashMap<String, Turn>,
}

struct Turn {
    /// The lowest is the next.
    number: u64,
    /// Parcels that wait.
    waiting: usize,
}

impl Turns {
    fn came(&mut self, agent: &str) {
        if let Some(turn) = self.agents.get_mut(agent) {
            turn.waiting += 1;
            return;
        }
        self.last += 1;
        let turn = Turn {
            number: self.last,
            waiting: 1,
        };
        self.agents.insert(agent.to_owned(), turn);
    }

    fn left(&mut self, agent: &str) {
        if let Some(turn) = self.agents.get_mut(agent) {
            turn.waiting -= 1;
            if turn.waiting == 0 {
                self.agents.remove(agent);
            }
        }
    }

    fn had(&mut self, agent: &str) {
        self.last += 1;
        if let Some(turn) = self.agents.get_mut(agent) {
            turn.number = self.last;
        }
    }

    fn of(&self, agent: &str) -> u64 {
        self.agents.get(agent).map_or(u64::MAX, |turn| turn.number)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_proto::v1::StreamCounters;

    use super::*;
    use crate::gather::tests::{batch, parcel, run};

    const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

    fn limits(gather_rows: usize) -> Limits {
        Limits {
            gather_rows,
            gather_interval: Duration::from_secs(1),
            ..Limits::default()
        }
    }

    fn ledger(observed_at_ns: i64) -> Content {
        Content::Ledger {
            epoch: 7,
            observed_at_ns,
            received_at_ns: observed_at_ns,
            is_final: false,
            counters: vec![StreamCounters::default()],
        }
    }

    /// Of each block the agent and the sequence of each parcel, `a1`; what is no batch has the sequence 0.
    fn names(group: &Group) -> Vec<String> {
        let name = |parcel: &Parcel| {
            let sequence = match &parcel.content {
                Content::Connections { batch, .. } => batch.sequence,
                _ => 0,
            };
            format!("{}{sequence}", parcel.agent.id)
        };
        let names = |parcels: &Vec<Parcel>| parcels.iter().map(name).collect::<Vec<_>>().join(" ");
        group.blocks.iter().map(names).collect()
    }

    /// What was brought, as (agent, sequence, rows, day), and the groups that come of it until nothing waits.
    async fn check(gather_rows: usize, brought: &[(&str, u64, usize, u32)], expected: &[&[&str]]) {
        let mut open = OpenGroup::new(limits(gather_rows));
        let start = Instant::now();
        for (number, (agent, sequence, rows, day)) in (0..).zip(brought) {
            let parcel = parcel(agent, batch(*sequence, *rows, *day)).await;
            open.push(parcel, start + Duration::from_millis(number));
        }
        open.hurry();
        let mut groups = Vec::new();
        while !open.is_empty() {
            assert!(open.due_at().is_some());
            groups.push(names(&open.take(start + Duration::from_secs(1))));
        }
        assert_eq!(open.due_at(), None);
        assert!(open.turns.agents.is_empty());
        assert_eq!(groups, expected);
    }

    #[test]
    fn a_block_is_due_with_its_rows_or_with_its_age() {
        run(async {
            let mut open = OpenGroup::new(limits(25));
            let start = Instant::now();
            let later = |ms| start + Duration::from_millis(ms);
            assert_eq!((open.is_empty(), open.due_at()), (true, None));
            open.push(parcel("a", batch(1, 10, 0)).await, start);
            open.push(parcel("b", batch(1, 10, 0)).await, later(900));
            open.push(parcel("b", ledger(0)).await, later(900));
            assert_eq!(open.due_at(), Some(later(1_000)));
            assert_eq!(names(&open.take(later(999))), [""; 0]);
            // The age of one is not that of another.
            open.push(parcel("a", batch(2, 10, 0)).await, later(950));
            assert_eq!(open.due_at(), Some(start));
            assert_eq!(names(&open.take(later(950))), ["a1 b1 a2"]);
            assert_eq!(open.due_at(), Some(later(1_900)));
            assert_eq!(names(&open.take(later(1_900))), ["b0"]);
            assert_eq!((open.is_empty(), open.due_at()), (true, None));
        });
    }

    #[test]
    fn a_block_is_of_one_table_and_one_day() {
        run(async {
            let mut open = OpenGroup::new(limits(1000));
            let start = Instant::now();
            for content in [
                batch(1, 1, 1),
                ledger(DAY_NS - 1),
                batch(2, 1, 0),
                ledger(DAY_NS),
                batch(3, 1, 1),
                ledger(DAY_NS + 1),
            ] {
                open.push(parcel("a", content).await, start);
            }
            let at = start + Duration::from_secs(1);
            let blocks = names(&open.take(at));
            assert_eq!(blocks, ["a1 a3", "a0 a0", "a2"]);
            assert_eq!(open.due_at(), Some(at), "what is left does not wait for more");
            assert_eq!(names(&open.take(at)), ["a0"]);
        });
    }

    #[test]
    fn one_block_of_each_kind_is_in_one_group() {
        run(async {
            let mut open = OpenGroup::new(limits(1000));
            let kinds = [
                Kind::Connections,
                Kind::Gaps,
                Kind::OpenConnections,
                Kind::Listeners,
                Kind::Namespaces,
                Kind::Peers,
                Kind::Cgroups,
                Kind::Syscalls,
                Kind::Transitions,
                Kind::Overhead,
                Kind::Ledger,
                Kind::Samples,
                Kind::Sessions,
            ];
            let start = Instant::now();
            for kind in kinds {
                let key = Key { kind, day: 20_000 };
                open.push_as(key, parcel("a", batch(1, 1, 0)).await, start);
            }
            let group = open.take(start + Duration::from_secs(1));
            assert_eq!(group.blocks.len(), kinds.len());
            assert!(open.is_empty());
        });
    }

    #[test]
    fn many_days_of_one_agent_cost_the_others_a_block_each_time() {
        run(async {
            // It came first, with a spool of four days, and another with the day of today.
            let brought = [
                ("h", 1, 1, 1),
                ("h", 2, 1, 2),
                ("h", 3, 1, 3),
                ("h", 4, 1, 4),
                ("a", 1, 1, 9),
            ];
            check(100, &brought, &[&["a1", "h1"], &["h4", "h2"], &["h3"]]).await;
            // The day that most have is the usual one, whatever the clock of one says.
            let brought = [("h", 1, 1, 20), ("h", 2, 1, 21), ("a", 1, 1, 9), ("b", 1, 1, 9)];
            check(100, &brought, &[&["a1 b1", "h1"], &["h2"]]).await;
        });
    }

    #[test]
    fn agents_take_turns_with_further_days() {
        run(async {
            let brought = [
                ("h", 1, 1, 1),
                ("h", 2, 1, 2),
                ("h", 3, 1, 3),
                ("i", 1, 1, 4),
                ("i", 2, 1, 5),
                ("b", 1, 1, 6),
                ("a", 1, 1, 9),
                ("c", 1, 1, 9),
            ];
            let expected: &[&[&str]] = &[&["a1 c1", "h1"], &["b1", "i1"], &["i2", "h2"], &["h3"]];
            check(100, &brought, expected).await;
        });
    }

    #[test]
    fn a_turn_is_not_lost_to_who_comes_and_goes() {
        run(async {
            let mut open = OpenGroup::new(limits(1000));
            let at = Instant::now();
            for agent in ["x", "y"] {
                open.push(parcel(agent, batch(1, 1, 90)).await, at - Duration::from_secs(1));
            }
            for day in 1..=2 {
                open.push(
                    parcel("w", batch(u64::from(day), 1, day)).await,
                    at - Duration::from_secs(1),
                );
            }
            assert_eq!(names(&open.take(at)), ["x1 y1", "w1"]);
            let mut waited = 0;
            let mut sequence = 1;
            while open.turns.agents.contains_key("w") {
                waited += 1;
                sequence += 1;
                for agent in ["x", "y"] {
                    open.push(
                        parcel(agent, batch(sequence, 1, 90)).await,
                        at - Duration::from_secs(1),
                    );
                }
                let newcomer = parcel(&format!("n{waited}-"), batch(1, 1, 50)).await;
                open.push(newcomer, at - Duration::from_secs(1));
                open.take(at);
                assert!(waited < 3, "newcomers overtake it");
            }
        });
    }

    #[test]
    fn a_block_that_is_too_large_has_as_much_from_each() {
        run(async {
            let brought = [
                ("h", 1, 10, 9),
                ("h", 2, 10, 9),
                ("h", 3, 10, 9),
                ("h", 4, 10, 9),
                ("a", 1, 1, 9),
                ("a", 2, 1, 9),
                ("b", 1, 1, 9),
            ];
            let expected: &[&[&str]] = &[&["h1 h2 a1 b1"], &["h3 h4 a2"]];
            check(20, &brought, expected).await;
        });
    }
}
