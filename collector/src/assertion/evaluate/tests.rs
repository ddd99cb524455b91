use std::collections::BTreeMap;

use super::*;
use crate::assertion::cause::OffReason;
use crate::assertion::coverage::{Report, Watch};
use crate::assertion::document::Source;
use crate::assertion::plan::{Schedule, schedules};
use crate::assertion::{Set, parse};
use crate::store::buckets::bucket;
use crate::store::evidence::columns;

const SECOND: i64 = 1_000_000_000;
const T: i64 = 1_000_000 * SECOND;
const WINDOW: Window = Window {
    from_ns: T,
    to_ns: T + 60 * SECOND,
};

/// `web-1`, `web-2` and `db-1`, which everything up to the window's end was heard of; of those in `silent` nothing for a
/// while.
struct World {
    set: Set,
    schedule: Schedule,
    roster: Roster,
    addresses: Addresses,
    coverage: Coverage,
    now_ns: i64,
    /// Keys that there were before.
    known: BTreeSet<Key>,
}

impl World {
    fn new(assertion: &str, silent: &[&str]) -> Self {
        Self::losing(assertion, silent, |_, _| (0, 0))
    }

    /// `lost`: rows of connections, and system calls, that a node has lost so many seconds after the window's begin.
    fn losing(assertion: &str, silent: &[&str], lost: impl Fn(&str, i64) -> (u64, u64)) -> Self {
        let text = format!(
            "groups: {{ web: role = web, db: role = db }}\nassertions:\n  - {{ name: a, over: 1m, {assertion} }}\n"
        );
        let set = parse::set(
            &[Source {
                file: "a",
                text: &text,
            }],
            columns,
        )
        .unwrap_or_else(|problems| panic!("{problems:?}"));
        let names = [("web-1", "web", 1), ("web-2", "web", 2), ("db-1", "db", 3)];
        let nodes = names.map(|(name, role, at)| Node {
            labelled: Labelled {
                node: name.to_owned(),
                labels: BTreeMap::from([("role".to_owned(), role.to_owned())]),
            },
            addresses: vec![address(at)],
        });
        let roster = Roster { nodes: nodes.into() };
        let mut coverage = Coverage::default();
        for (name, ..) in names {
            let until = if silent.contains(&name) { 30 } else { 62 };
            for at in -10..=until {
                let (missing, syscalls_missing) = lost(name, at);
                coverage.hear(&Report {
                    missing,
                    lost: missing,
                    syscalls_missing,
                    ..report(name, 1, at)
                });
            }
        }
        Self {
            schedule: schedules(&set).remove(0),
            set,
            addresses: Addresses::of(&roster),
            roster,
            coverage,
            now_ns: T + 62 * SECOND,
            known: BTreeSet::new(),
        }
    }

    fn membership(&self) -> Membership {
        Membership::of(
            &self.set.groups,
            &self.roster.nodes.iter().map(|node| &node.labelled),
        )
    }

    fn judge(&self, rows: &[LabelledRows]) -> Vec<Judgement> {
        let membership = self.membership();
        let moment = Moment {
            window: WINDOW,
            now_ns: self.now_ns,
            expected_for: self.set.expected_for(),
            membership: &membership,
            roster: &self.roster,
            addresses: &self.addresses,
            coverage: &self.coverage,
        };
        let assertion = &self.set.assertions[0];
        let observers = Observers::of(assertion, &moment);
        let answers: Vec<_> = self.schedule.classes.iter().map(|_| Ok(rows.to_vec())).collect();
        judge(
            assertion,
            &self.schedule.assertions[0],
            &moment,
            &observers,
            &answers,
            &self.known,
        )
    }

    /// Each key with what it came to, and why.
    fn said(&self, rows: &[LabelledRows]) -> Vec<String> {
        self.judge(rows)
            .iter()
            .map(|judgement| {
                let cause = judgement
                    .cause
                    .as_ref()
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                format!("{} {:?}{cause}", judgement.key.join(","), judgement.outcome)
                    .trim()
                    .to_owned()
            })
            .collect()
    }
}

/// What a start of a node's agent says so many seconds after the window's begin.
fn report(node: &str, agent_epoch: u64, at: i64) -> Report {
    let at_ns = T + at * SECOND;
    Report {
        node: node.to_owned(),
        agent_epoch,
        observed_ns: at_ns,
        received_ns: at_ns,
        records_ns: at_ns - SECOND,
        attempts_ns: at_ns - SECOND,
        watches: on(),
        ..Report::default()
    }
}

/// Everything that can be switched has been on for long.
fn on() -> [Watch; 3] {
    [Watch {
        since_ns: T - 100 * SECOND,
        off: OffReason::Unsaid,
    }; 3]
}

fn address(last: u8) -> Ipv6Addr {
    std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped()
}

/// Attempts of a node to db-1, of which some took longer than the class' bounds reached.
fn attempts(node: &str, established: &[(u64, u8, u64)], refused: u64) -> LabelledRows {
    let mut sums = [0; SUMS];
    let counted: u64 = established.iter().map(|(.., count)| count).sum();
    sums[Sum::Rows as usize] = counted + refused;
    sums[Sum::Established as usize] = counted;
    sums[Sum::Refused as usize] = refused;
    sums[Sum::Failed as usize] = refused;
    LabelledRows {
        node: node.to_owned(),
        remote: Some(address(3)),
        port: 5432,
        service: String::new(),
        comm: String::new(),
        passes: 0,
        sums,
        largest: established.iter().map(|(us, ..)| *us).max().unwrap_or(0),
        fullest: 0.0,
        histogram: established
            .iter()
            .map(|(us, reached, count)| (bucket(*us), *reached, *count))
            .collect(),
    }
}

#[test]
fn a_quantile_is_judged_exactly_by_counting() {
    let world = World::new("from: web, to: 'db:5432', expect: connect.p99 < 20ms", &[]);
    assert_eq!(
        world.said(&[attempts("web-1", &[(5_000, 0, 99), (20_000, 1, 1)], 0)]),
        ["Passed"]
    );
    assert_eq!(
        world.said(&[attempts("web-1", &[(5_000, 0, 98), (20_000, 1, 1)], 0)]),
        ["Failed"]
    );
    // Of the same bucket, on either side of the limit.
    assert_eq!(
        world.said(&[attempts("web-1", &[(19_999, 0, 100)], 0)]),
        ["Passed"]
    );
    assert_eq!(
        world.said(&[attempts("web-1", &[(20_001, 1, 100)], 0)]),
        ["Failed"]
    );
    let judgement = &world.judge(&[attempts("web-1", &[(5_000, 0, 99), (20_000, 1, 1)], 0)])[0];
    let shown = judgement.readings[0].value.unwrap();
    assert!((shown / 5_000.0 - 1.0).abs() < 0.016, "{shown}");
}

#[test]
fn nothing_passes_for_lack_of_data() {
    let ratio = World::new("from: web, expect: connect.refused_ratio < 1%", &[]);
    assert_eq!(ratio.said(&[]), ["Unknown: no data in the window"]);
    let enough = World::new(
        "from: web, expect: connect.refused_ratio < 1%, min_samples: 50",
        &[],
    );
    assert_eq!(
        enough.said(&[attempts("web-1", &[(5, 0, 49)], 0)]),
        ["Unknown: 49 samples, 50 are needed"]
    );
    let sum = World::new("from: web, expect: connect.count >= 1", &[]);
    assert_eq!(sum.said(&[]), ["Failed"]);
    let chosen = World::new(
        "from: web, expect: connect.refused_ratio < 1%, no_data: holds",
        &[],
    );
    assert_eq!(chosen.said(&[]), ["Passed"]);
}

#[test]
fn a_silent_node_makes_unknown_what_depends_on_it_and_nothing_else() {
    let by = "from: web, expect: connect.refused = 0, by: from.node";
    let rows = [attempts("web-2", &[(5, 0, 1)], 0)];
    assert_eq!(World::new(by, &[]).said(&rows), ["web-1 Passed", "web-2 Passed"]);
    assert_eq!(
        World::new(by, &["web-1"]).said(&rows),
        ["web-1 Unknown: web-1 is silent", "web-2 Passed"]
    );
    let together = "from: web, expect: connect.refused = 0";
    assert_eq!(
        World::new(together, &["web-1"]).said(&rows),
        ["Unknown: web-1 is silent"]
    );
    assert_eq!(World::new(together, &["db-1"]).said(&rows), ["Passed"]);
    // One cause for both: the first.
    assert_eq!(
        World::new(together, &["web-2", "web-1"]).said(&rows),
        ["Unknown: web-1 is silent"]
    );
}

#[test]
fn what_is_lost_is_told_of_the_nodes_that_a_key_depends_on() {
    // In the last third of the window: rows of connections, and system calls.
    let lost = |node: &str, at: i64| match (node, at >= 40) {
        ("web-1", true) => (7, 0),
        ("db-1", true) => (5, 20),
        _ => (0, 0),
    };
    let check = |assertion: &str, silent: &[&str], expected: &[Option<u64>]| {
        let judgements = World::losing(assertion, silent, lost).judge(&[]);
        let losses: Vec<_> = judgements.iter().map(|judgement| judgement.loss).collect();
        assert_eq!(losses, expected, "{assertion} {silent:?}");
    };
    let refused = "expect: connect.refused = 0";
    let quorum = "quorum: '>= 50% of nodes'";
    check(
        &format!("from: web, {refused}, by: from.node"),
        &[],
        &[Some(7), Some(0)],
    );
    check(&format!("from: web, {refused}"), &[], &[Some(7)]);
    check(&format!("from: all, {refused}"), &[], &[Some(12)]);
    check(
        &format!("from: all, {refused}, by: from.node, {quorum}"),
        &[],
        &[Some(12)],
    );
    // Each key depends on all clients, and all keys together on each client once.
    let each = format!("from: web, to: all, {refused}, by: to.node");
    check(&each, &[], &[Some(7); 3]);
    check(&format!("{each}, {quorum}"), &[], &[Some(7)]);
    // More may be lost of who is silent, and what is known to be is told.
    check(&format!("from: all, {refused}"), &["web-1"], &[Some(5)]);
    check(&format!("from: web, {refused}"), &["web-1"], &[None]);
    // Of what does not count for it, nothing.
    check("on: db, expect: syscall.errors = 0", &[], &[Some(20)]);
    check(
        "from: web, to: db, expect: connect.syn_dropped = 0",
        &[],
        &[Some(0)],
    );
    check("on: db, expect: agent.lost = 0", &[], &[None]);
}

#[test]
fn that_nothing_is_lost_is_told_where_everything_is_there() {
    let losses = |assertion: &str| -> Vec<_> {
        let judgements = World::new(assertion, &[]).judge(&[]);
        judgements.iter().map(|judgement| judgement.loss).collect()
    };
    assert_eq!(
        losses("from: web, expect: connect.refused = 0, by: from.node"),
        [Some(0), Some(0)]
    );
    assert_eq!(losses("from: web, expect: connect.refused_ratio < 1%"), [Some(0)]);
    assert_eq!(
        losses("from: web, to: db, expect: connect.syn_dropped = 0"),
        [Some(0)]
    );
    assert_eq!(losses("on: all, expect: agent.lag < 5s"), [None]);
}

#[test]
fn a_node_that_may_still_deliver_is_waited_for() {
    let mut world = World::new("from: web, expect: connect.refused = 0, by: from.node", &[]);
    world.coverage = Coverage::default();
    // What is delivered is a second and a half behind.
    let report = |node: &str, at: i64, delivered: i64| Report {
        node: node.to_owned(),
        agent_epoch: 1,
        observed_ns: T + at * SECOND,
        received_ns: T + at * SECOND,
        records_ns: T + delivered * SECOND - 3 * SECOND / 2,
        attempts_ns: T + delivered * SECOND - 3 * SECOND / 2,
        ..Report::default()
    };
    for (node, until) in [("web-1", 61), ("web-2", 62)] {
        for at in -10..=until {
            world.coverage.hear(&report(node, at, at));
        }
    }
    assert_eq!(world.said(&[]), ["web-2 Passed"]);
    world.now_ns = T + 71 * SECOND;
    assert_eq!(
        world.said(&[]),
        ["web-1 Unknown: web-1 is silent", "web-2 Passed"]
    );
    world.coverage.hear(&report("web-1", 70, 61));
    assert_eq!(
        world.said(&[]),
        [
            "web-1 Unknown: web-1 has not delivered everything",
            "web-2 Passed"
        ]
    );
}

#[test]
fn an_end_counts_if_it_goes_where_the_assertion_says() {
    let world = |to: &str| World::new(&format!("from: web, to: '{to}', expect: connect.count = 7"), &[]);
    let rows = [attempts("web-1", &[(5, 0, 7)], 0)];
    for to in [
        "db",
        "db:5432",
        "10.0.0.3",
        "10.0.0.0/29:5432",
        "[::ffff:10.0.0.3]:5432",
        "node = db-1",
    ] {
        assert_eq!(world(to).said(&rows), ["Passed"], "{to}");
    }
    for to in ["web", "db:80", "10.0.0.4", "10.0.1.0/24"] {
        assert_eq!(world(to).said(&rows), ["Failed"], "{to}");
    }
    let other = World::new("from: db, expect: connect.count = 7", &[]);
    assert_eq!(other.said(&rows), ["Failed"]);
}

#[test]
fn an_address_of_two_nodes_is_nobodys_and_loopback_is_ones_own() {
    let mut world = World::new("from: web, to: web, expect: connect.count = 1", &[]);
    let to = |remote| LabelledRows {
        remote: Some(remote),
        ..attempts("web-1", &[(5, 0, 1)], 0)
    };
    assert_eq!(world.said(&[to(address(2))]), ["Passed"]);
    assert_eq!(
        world.said(&[to(std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped())]),
        ["Passed"]
    );
    world.roster.nodes[2].addresses.push(address(2));
    world.addresses = Addresses::of(&world.roster);
    assert_eq!(world.said(&[to(address(2))]), ["Failed"]);
}

#[test]
fn keys_are_what_by_says() {
    let world = World::new(
        "from: web, expect: connect.refused = 0, by: [from.node, to.node, port]",
        &[],
    );
    let rows = [attempts("web-1", &[], 1), attempts("web-2", &[(1, 0, 1)], 0)];
    assert_eq!(
        world.said(&rows),
        ["web-1,db-1,5432 Failed", "web-2,db-1,5432 Passed"]
    );
}

#[test]
fn a_quorum_is_known_when_what_is_unknown_cannot_change_it() {
    let all = "on: all, expect: connect.refused = 0, by: on.node";
    let rows = [attempts("web-1", &[], 1)];
    let world =
        |share: &str, silent: &[&str]| World::new(&format!("{all}, quorum: '>= {share}% of nodes'"), silent);
    assert_eq!(world("60", &[]).said(&rows), ["Passed"]);
    assert_eq!(world("90", &[]).said(&rows), ["Failed"]);
    assert_eq!(world("60", &["web-2"]).said(&rows), ["Unknown: web-2 is silent"]);
    assert_eq!(world("90", &["web-2"]).said(&rows), ["Failed"]);
    assert_eq!(world("30", &["web-2"]).said(&rows), ["Passed"]);
    assert_eq!(
        world("60", &["web-1", "web-2"]).said(&rows),
        ["Unknown: 2 of 3 nodes are unknown"]
    );
}

/// Nodes beyond those that can be judged are not known, and not left out: each of them counts.
#[test]
fn of_too_many_nodes_a_quorum_knows_no_more_than_was_judged() {
    let count = MOST_KEYS + 200;
    let said = |share: &str, refused: usize| {
        let assertion =
            format!("on: all, expect: connect.refused = 0, by: on.node, quorum: '>= {share}% of nodes'");
        let mut world = World::new(&assertion, &[]);
        let names: Vec<_> = (0..count).map(|at| format!("node-{at:04}")).collect();
        let node = |name: &String| Node {
            labelled: Labelled {
                node: name.clone(),
                labels: BTreeMap::new(),
            },
            addresses: Vec::new(),
        };
        world.roster.nodes = names.iter().map(node).collect();
        for name in &names {
            let until_ns = WINDOW.to_ns + 2 * SECOND;
            world.coverage.hear(&Report {
                node: name.clone(),
                agent_epoch: 1,
                observed_ns: T - 10 * SECOND,
                received_ns: T - 10 * SECOND,
                ..Report::default()
            });
            world.coverage.hear(&Report {
                node: name.clone(),
                agent_epoch: 1,
                observed_ns: until_ns,
                received_ns: until_ns,
                records_ns: until_ns,
                attempts_ns: until_ns,
                watches: on(),
                ..Report::default()
            });
        }
        let rows: Vec<_> = names[..refused]
            .iter()
            .map(|name| attempts(name, &[], 1))
            .collect();
        world.said(&rows)
    };
    // 1,000 of 1,200 are 83.3 %.
    assert_eq!(said("80", 0), ["Passed"]);
    let too_many = "Unknown: 1200 keys, of which 1000 are judged: narrow it, or leave something out of `by`";
    assert_eq!(said("95", 0), [too_many]);
    // 61 that fail are more than 5 %, whatever the others do.
    assert_eq!(said("95", 60), [too_many]);
    assert_eq!(said("95", 61), ["Failed"]);
}

#[test]
fn what_the_agents_say_of_themselves_is_judged_without_rows() {
    let up = |silent: &[&str]| World::new("on: all, expect: node.up = true, by: on.node", silent).said(&[]);
    assert_eq!(up(&["web-1"]), ["db-1 Passed", "web-1 Failed", "web-2 Passed"]);
    let lag = World::new("on: all, expect: agent.lag < 5s", &["web-1"]);
    assert_eq!(lag.said(&[]), ["Failed"]);
}

#[test]
fn of_a_silent_node_it_is_not_known_what_it_lost_since_or_what_time_it_has() {
    for expect in [
        "agent.missing = 0",
        "agent.lost = 0",
        "agent.dropped = 0",
        "node.clock_offset < 500ms",
    ] {
        let mut world = World::new(&format!("on: web, expect: {expect}, by: on.node"), &["web-1"]);
        assert_eq!(
            world.said(&[]),
            ["web-1 Unknown: web-1 is silent", "web-2 Passed"],
            "{expect}"
        );
        // What it says next is waited for.
        world.now_ns = T + 65 * SECOND;
        world.coverage = Coverage::default();
        for (node, until) in [("web-1", 59), ("web-2", 60)] {
            for at in 0..=until {
                world.coverage.hear(&report(node, 1, at));
            }
        }
        if expect == "node.clock_offset < 500ms" {
            // No clock is another one a second later.
            assert_eq!(world.said(&[]), ["web-1 Passed", "web-2 Passed"]);
            continue;
        }
        assert_eq!(world.said(&[]), ["web-2 Passed"], "{expect}");
        // What came of a start until the next, nobody tells.
        world.coverage.hear(&report("web-1", 2, 62));
        let restarted = "web-1 Unknown: web-1 was not watched all the time: its agent started";
        assert_eq!(world.said(&[]), [restarted, "web-2 Passed"], "{expect}");
    }
    // That it is not there is known all the same.
    let both = "on: web, expect: [node.clock_offset < 500ms, node.up = true], by: on.node";
    let judged = World::new(both, &["web-1"]).judge(&[]);
    let outcomes: Vec<_> = judged.iter().map(|judgement| judgement.outcome).collect();
    assert_eq!(outcomes, [Outcome::Failed, Outcome::Passed]);
    assert_eq!(judged[0].decisive, 1);
}

#[test]
fn no_calls_are_none_only_where_they_are_counted() {
    let mut world = World::new("on: all, expect: syscall(ptrace).count = 0, by: on.node", &[]);
    assert_eq!(world.said(&[]), ["db-1 Passed", "web-1 Passed", "web-2 Passed"]);
    let mut watches = on();
    watches[Switch::Syscalls as usize] = Watch {
        since_ns: 0,
        off: OffReason::Configuration,
    };
    world.coverage.hear(&Report {
        node: "web-1".into(),
        agent_epoch: 1,
        observed_ns: T + 63 * SECOND,
        received_ns: T + 63 * SECOND,
        records_ns: T + 62 * SECOND,
        attempts_ns: T + 62 * SECOND,
        watches,
        ..Report::default()
    });
    assert_eq!(
        world.said(&[]),
        ["db-1 Passed", "web-1 Passed", "web-2 Passed"],
        "it was off only after the window"
    );
    let mut off = World::new("on: all, expect: syscall(ptrace).count = 0, by: on.node", &[]);
    off.coverage = Coverage::default();
    for name in ["web-1", "web-2", "db-1"] {
        for at in -10..=62 {
            off.coverage.hear(&Report {
                node: name.into(),
                agent_epoch: 1,
                observed_ns: T + at * SECOND,
                received_ns: T + at * SECOND,
                records_ns: T + at * SECOND,
                attempts_ns: T + at * SECOND,
                watches: if name == "web-1" { watches } else { on() },
                ..Report::default()
            });
        }
    }
    assert_eq!(
        off.said(&[]),
        [
            "db-1 Passed",
            "web-1 Unknown: web-1 did not count system calls all the time: its configuration says syscalls=off",
            "web-2 Passed"
        ]
    );
}

#[test]
fn what_a_listener_turned_away_is_seen_at_its_node_and_is_the_same_for_every_client() {
    let text = "from: web, to: 'db:5432', expect: connect.syn_dropped = 0, by: from.node";
    let listener = |node: &str, port, dropped| {
        let mut sums = [0; SUMS];
        sums[Sum::Rows as usize] = 6;
        sums[Sum::Drops as usize] = dropped;
        LabelledRows {
            port,
            remote: None,
            sums,
            ..attempts(node, &[], 0)
        }
    };
    let world = World::new(text, &[]);
    assert_eq!(
        world.said(&[listener("db-1", 5432, 3)]),
        ["web-1 Failed", "web-2 Failed"]
    );
    let other = [
        listener("db-1", 5432, 0),
        listener("db-1", 80, 3),
        listener("web-1", 5432, 3),
    ];
    assert_eq!(world.said(&other), ["web-1 Passed", "web-2 Passed"]);
    // Nobody listens there, or nobody looked.
    assert_eq!(
        world.said(&[listener("db-1", 80, 0)]),
        [
            "web-1 Unknown: no data in the window",
            "web-2 Unknown: no data in the window"
        ]
    );
    let silent = World::new(text, &["db-1"]);
    assert_eq!(
        silent.said(&[listener("db-1", 5432, 0)]),
        ["web-1 Unknown: db-1 is silent", "web-2 Unknown: db-1 is silent"]
    );
    let clients = World::new(text, &["web-2"]);
    assert_eq!(
        clients.said(&[listener("db-1", 5432, 0)]),
        ["web-1 Passed", "web-2 Passed"],
        "nothing of the clients is needed"
    );
}

#[test]
fn a_group_without_nodes_is_unknown() {
    let world = World::new(
        "from: role = cache, expect: connect.refused = 0, by: from.node",
        &[],
    );
    assert_eq!(world.said(&[]), ["Unknown: no node belongs to role = cache"]);
}

#[test]
fn a_node_is_gone_if_it_is_not_there_and_not_if_it_belongs_elsewhere() {
    let mut world = World::new("from: web, expect: connect.refused = 0, by: from.node", &[]);
    // One of another group, and one that nobody has heard of for long.
    world.known = ["db-1", "web-9"].map(|node| vec![node.to_owned()]).into();
    assert_eq!(
        world.said(&[]),
        [
            "web-1 Passed",
            "web-2 Passed",
            "web-9 Unknown: web-9 is gone: silent for 1h, and not expected any more"
        ]
    );
}

#[test]
fn a_target_that_belongs_elsewhere_is_no_key() {
    let keys = |by: &str, expect: &str, known: &[&[&str]]| {
        let mut world = World::new(&format!("from: web, to: db, expect: {expect}, {by}"), &[]);
        let known = known
            .iter()
            .map(|key| key.iter().map(|part| (*part).to_owned()).collect());
        world.known = known.collect();
        world.said(&[])
    };
    // `web-2` was a database once; of `db-9` nobody has heard for long.
    for expect in ["connect.refused = 0", "connect.count < 1"] {
        assert_eq!(
            keys("by: to.node", expect, &[&["web-2"], &["db-9"]]),
            ["db-1 Passed", "db-9 Passed"],
            "{expect}"
        );
        assert_eq!(
            keys(
                "by: [from.node, to.node]",
                expect,
                &[&["web-1", "web-2"], &["web-1", "db-1"]]
            ),
            ["web-1,db-1 Passed"],
            "{expect}"
        );
    }
}

#[test]
fn the_last_node_of_a_group_is_gone_or_no_key_like_any_other() {
    let said = |by: &str, known: &[&str]| {
        let mut world = World::new(
            &format!("from: role = cache, expect: connect.refused = 0, {by}"),
            &[],
        );
        world.known = known.iter().map(|key| vec![(*key).to_owned()]).collect();
        world.said(&[])
    };
    let none = "Unknown: no node belongs to role = cache";
    let gone = "web-9 Unknown: web-9 is gone: silent for 1h, and not expected any more";
    assert_eq!(said("by: from.node", &["db-1"]), [none]);
    assert_eq!(said("by: from.node", &["db-1", "web-9"]), [gone]);
    assert_eq!(
        said("by: from.node, quorum: '>= 50% of nodes'", &["web-9"]),
        [none]
    );
    assert_eq!(said("by: comm", &["curl"]), [format!("curl {none}")]);
}

#[test]
fn where_there_is_no_key_nothing_is_known_and_that_is_said() {
    for (by, no_data) in [
        ("by: service", "Unknown: no data in the window"),
        ("by: [from.node, to.node]", "Unknown: no data in the window"),
        ("by: comm, no_data: holds", "Passed"),
        ("by: comm, no_data: violated", "Failed"),
        (
            "by: to.node, quorum: '>= 50% of nodes'",
            "Unknown: no data in the window",
        ),
    ] {
        let world = |to: &str, silent: &[&str]| {
            let assertion = format!("from: web, to: {to}, expect: connect.refused = 0, {by}");
            World::new(&assertion, silent)
        };
        assert_eq!(world("10.0.0.9", &[]).said(&[]), [no_data], "{by}");
        assert_eq!(
            world("10.0.0.0/24", &["web-2"]).said(&[]),
            ["Unknown: web-2 is silent"],
            "{by}"
        );
        assert_eq!(
            world("role = cache", &[]).said(&[]),
            ["Unknown: no node belongs to role = cache"],
            "{by}"
        );
        // Rows may come yet.
        let mut early = world("10.0.0.9", &["web-2"]);
        early.now_ns = T + 35 * SECOND;
        assert!(early.said(&[]).is_empty(), "{by}");
        let rows = [attempts("web-1", &[(1, 0, 1)], 0)];
        let keys = world("db", &[]).judge(&rows);
        assert_eq!((keys.len(), keys[0].outcome), (1, Outcome::Passed), "{by}");
    }
}

#[test]
fn a_question_without_an_answer_is_unknown() {
    let by = "from: web, expect: connect.refused = 0, by: from.node";
    let quorum = format!("{by}, quorum: '>= 50% of nodes'");
    for (assertion, keys) in [(by, &["web-1", "web-2"][..]), (&quorum, &[""])] {
        let judged = unanswered(&World::new(assertion, &[]));
        let causes: Vec<_> = judged
            .iter()
            .map(|judgement| (judgement.key.join(","), judgement.cause.clone()))
            .collect();
        let expected: Vec<_> = keys
            .iter()
            .map(|key| ((*key).to_owned(), Some(Cause::TooMany { most: 5 })))
            .collect();
        assert_eq!(causes, expected, "{assertion}");
    }
}

/// What a window comes to of which the store gave too much.
fn unanswered(world: &World) -> Vec<Judgement> {
    let membership = world.membership();
    let moment = Moment {
        window: WINDOW,
        now_ns: world.now_ns,
        expected_for: world.set.expected_for(),
        membership: &membership,
        roster: &world.roster,
        addresses: &world.addresses,
        coverage: &world.coverage,
    };
    let assertion = &world.set.assertions[0];
    let observers = Observers::of(assertion, &moment);
    let answers = [Err(Cause::TooMany { most: 5 })];
    judge(
        assertion,
        &world.schedule.assertions[0],
        &moment,
        &observers,
        &answers,
        &BTreeSet::new(),
    )
}
