//! Why one attempt failed or was slow, out of what both ends and their namespaces say. Pure: everything is an argument.
//!
//! A cause is `confirmed` when the other end's node says it too, or when the attempt never left its own. What an agent did
//! not see is no evidence: without an agent at the other end the cause says no more than the client knows.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::Ipv6Addr;

use serde::Deserialize;

use crate::store::causes::{Attempt, ListenerSample, NamespaceSample, PassiveEnd, PeerSample};

/// Agents look at namespaces and listeners every 10 s, on a busy node later: what was there this long before an attempt,
/// or is there this long after it, was there all the time.
const LOOK_NS: i64 = 25_000_000_000;

/// Clocks of two nodes differ, and an interval of trouble with peers lasts a second.
const SLACK_NS: i64 = 2_000_000_000;

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[repr(i8)]
pub enum Cause {
    Unknown = 0,
    NoListener = 1,
    ListenerFull = 2,
    Filtered = 3,
    Rejected = 4,
    DroppedOnPath = 5,
    ReplyDropped = 6,
    HostDown = 7,
    HostSilent = 8,
    HostUnreachable = 9,
    NetUnreachable = 10,
    NoRoute = 11,
    NoPort = 12,
    LocalFilter = 13,
    ProcessGaveUp = 14,
    ResetInHandshake = 15,
    NoAnswer = 16,
    DroppedByListener = 17,
}

/// A cause with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub cause: Cause,
    pub is_confirmed: bool,
    /// In words, with the rows and counters to look at.
    pub evidence: String,
    /// Where the other end is; empty and zero where no agent has seen its address.
    pub peer_node: String,
    pub peer_netns: u32,
    /// How much the listener's drops and its namespace's overflows grew around the attempt.
    pub listener_drops: u64,
    pub listen_overflows: u64,
    /// How many TCP segments a filter of either namespace dropped between the two, and how many resets said that nobody
    /// listens.
    pub filtered: u64,
    pub resets_sent: u64,
    /// Rows that were looked at. Rows are only ever added, so of two decisions the one of the most rows is right.
    pub revision: u64,
}

/// What there is to decide from: rows of all nodes around the attempts of a minute.
#[derive(Debug, Default)]
pub struct Evidence {
    /// In order of time, as all others.
    pub namespaces: Vec<NamespaceSample>,
    pub listeners: Vec<ListenerSample>,
    pub peers: Vec<PeerSample>,
    pub passives: Vec<PassiveEnd>,
}

/// A network namespace on one start of one machine.
type Home<'a> = (&'a str, u32);

/// The local address and port of an end, and the remote ones.
type FourTuple = (Ipv6Addr, u16, Ipv6Addr, u16);

/// The evidence by what is asked of it: a flood of failures is decided against hundreds of thousands of rows, a few of which
/// concern each of them.
#[derive(Debug)]
pub struct Index<'a> {
    looks: HashMap<Home<'a>, Vec<&'a NamespaceSample>>,
    looks_by_address: HashMap<Ipv6Addr, Vec<&'a NamespaceSample>>,
    listeners: HashMap<(Home<'a>, u16), Vec<&'a ListenerSample>>,
    peers: HashMap<(Home<'a>, Ipv6Addr), Vec<&'a PeerSample>>,
    passives: HashMap<FourTuple, Vec<&'a PassiveEnd>>,
}

impl<'a> Index<'a> {
    pub fn of(evidence: &'a Evidence) -> Self {
        let addresses =
            |look: &'a NamespaceSample| look.addresses.iter().map(move |&address| (address, look));
        Self {
            looks: grouped(
                evidence
                    .namespaces
                    .iter()
                    .map(|look| ((&*look.boot_id, look.netns), look)),
            ),
            looks_by_address: grouped(evidence.namespaces.iter().flat_map(addresses)),
            listeners: grouped(evidence.listeners.iter().map(|listener| {
                let home = (&*listener.boot_id, listener.netns);
                ((home, listener.local_port), listener)
            })),
            peers: grouped(evidence.peers.iter().map(|peer| {
                let home = (&*peer.boot_id, peer.netns);
                ((home, peer.peer_ip), peer)
            })),
            passives: grouped(evidence.passives.iter().map(|end| {
                let tuple = (end.local_ip, end.local_port, end.remote_ip, end.remote_port);
                (tuple, end)
            })),
        }
    }

    /// Decides one attempt.
    pub fn decide(&self, attempt: &Attempt) -> Decision {
        let here: Home<'_> = (&attempt.boot_id, attempt.netns);
        let there = self.find_home(attempt);
        let mut scene = Scene::of(attempt, self, here, there);
        let (cause, is_confirmed, why) = scene.judge(attempt);
        let mut lines = vec![why];
        lines.append(&mut scene.said);
        Decision {
            cause,
            is_confirmed,
            evidence: lines.join("; "),
            peer_node: scene.node,
            peer_netns: there.map_or(0, |(_, netns)| netns),
            listener_drops: scene.listener_drops,
            listen_overflows: scene.listen_overflows,
            filtered: scene.filtered_here + scene.filtered_there,
            resets_sent: scene.resets_sent,
            revision: scene.rows,
        }
    }

    /// The namespace that has the address: the one whose end is there by its 4-tuple, else the only one that had the
    /// address, else the only one on the same machine.
    fn find_home<'b>(&'b self, attempt: &'b Attempt) -> Option<Home<'b>> {
        if is_loopback(attempt.remote_ip) || attempt.remote_ip == attempt.local_ip {
            return Some((&attempt.boot_id, attempt.netns));
        }
        if let Some(end) = self.other_end(attempt) {
            return Some((&end.boot_id, end.netns));
        }
        let mut homes: Vec<Home<'b>> = rows(&self.looks_by_address, &attempt.remote_ip)
            .filter(|look| look.observed_ns <= attempt.decided_ns + LOOK_NS)
            .map(|look| (look.boot_id.as_str(), look.netns))
            .collect();
        homes.sort_unstable();
        homes.dedup();
        if homes.len() > 1 {
            homes.retain(|(boot_id, _)| *boot_id == attempt.boot_id);
        }
        match homes[..] {
            [home] => Some(home),
            _ => None,
        }
    }

    /// The same two addresses and ports, opened while the attempt lasted.
    fn other_end(&self, attempt: &Attempt) -> Option<&PassiveEnd> {
        let tuple = (
            attempt.remote_ip,
            attempt.remote_port,
            attempt.local_ip,
            attempt.local_port,
        );
        let meanwhile = (attempt.opened_ns - SLACK_NS)..=(attempt.decided_ns + SLACK_NS);
        rows(&self.passives, &tuple).find(|end| meanwhile.contains(&end.opened_ns))
    }
}

/// Rows by their keys, each in the order that they have.
fn grouped<K: Eq + Hash, T>(rows: impl Iterator<Item = (K, T)>) -> HashMap<K, Vec<T>> {
    let mut groups: HashMap<K, Vec<T>> = HashMap::new();
    for (key, row) in rows {
        groups.entry(key).or_default().push(row);
    }
    groups
}

fn rows<'b, K: Eq + Hash, T>(
    groups: &'b HashMap<K, Vec<&'b T>>,
    key: &K,
) -> impl DoubleEndedIterator<Item = &'b T> + Clone {
    groups.get(key).into_iter().flatten().copied()
}

fn is_loopback(ip: Ipv6Addr) -> bool {
    ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback())
}

/// What is known of one attempt from all sides.
#[derive(Debug, Default)]
struct Scene {
    is_home_known: bool,
    /// The node of the other end.
    node: String,
    has_passive_end: bool,
    /// Looks at the home from the attempt's beginning to the first one after its end, with the address and without it.
    looks_with: u64,
    looks_without: u64,
    has_listener: bool,
    /// A look at the listeners came before or after, so that none means none.
    was_looked_at: bool,
    is_full: bool,
    listener_drops: u64,
    listen_overflows: u64,
    filtered_here: u64,
    filtered_there: u64,
    resets_sent: u64,
    syn_acks_again: u64,
    /// Of this very attempt: its SYN was taken and answered, and the answer answered again.
    own_syn_acks_again: u64,
    /// Of one of the two nodes it is not known what filters dropped and which resets were sent.
    is_blind: bool,
    said: Vec<String>,
    rows: u64,
}

impl Scene {
    fn of(attempt: &Attempt, index: &Index<'_>, here: Home<'_>, there: Option<Home<'_>>) -> Self {
        let mut scene = Self {
            is_home_known: there.is_some(),
            rows: 1,
            ..Self::default()
        };
        scene.filtered_here = scene.trouble(index, here, attempt.remote_ip, attempt, |peer| {
            if [0, attempt.remote_port].contains(&peer.port) {
                peer.filtered
            } else {
                0
            }
        });
        if scene.filtered_here > 0 {
            scene.said.push(format!(
                "a filter of its own namespace {} dropped {} segments from or to {}",
                here.1,
                scene.filtered_here,
                shown(attempt.remote_ip)
            ));
        }
        let Some(there) = there else {
            return scene;
        };
        scene.look_at_namespace(attempt, index, there);
        scene.look_at_listeners(attempt, index, there);
        scene.look_at_trouble(attempt, index, here, there);
        let is_blind = |look: &&NamespaceSample| !look.sees_signals;
        if let Some(blind) = [here, there]
            .iter()
            .find_map(|home| rows(&index.looks, home).rev().find(is_blind))
        {
            scene.is_blind = true;
            scene.said.push(format!(
                "the kernel of {} does not show its agent all of what filters drop and which resets are sent (tcp_signals, \
                 see holdfast-agent check)",
                blind.node
            ));
        }
        if let Some(end) = index.other_end(attempt) {
            scene.has_passive_end = true;
            scene.own_syn_acks_again = end.syn_retransmits.into();
            scene.rows += 1;
            scene.node.clone_from(&end.node);
            scene.said.push(format!(
                "the other end is on {}: {}[{}], {} after {} SYN-ACKs sent again",
                end.node, end.comm, end.pid, end.outcome, end.syn_retransmits
            ));
        }
        scene
    }

    fn look_at_namespace(&mut self, attempt: &Attempt, index: &Index<'_>, there: Home<'_>) {
        let looks = rows(&index.looks, &there);
        if let Some(last) = looks.clone().next_back() {
            self.node.clone_from(&last.node);
        }
        let until_ns = attempt.decided_ns + LOOK_NS;
        let is_needed = !is_loopback(attempt.remote_ip) && attempt.remote_ip != attempt.local_ip;
        let (mut before, mut after) = (None, None);
        for sample in looks {
            if sample.observed_ns <= attempt.opened_ns {
                before = Some(sample);
                continue;
            }
            if sample.observed_ns > until_ns {
                break;
            }
            after = Some(sample);
            self.rows += 1;
            if !is_needed || sample.addresses.contains(&attempt.remote_ip) {
                self.looks_with += 1;
            } else {
                self.looks_without += 1;
            }
            if sample.observed_ns >= attempt.decided_ns {
                break;
            }
        }
        if let (Some(before), Some(after)) = (before, after) {
            self.listen_overflows = after.listen_overflows.saturating_sub(before.listen_overflows);
            let drops = after.listen_drops.saturating_sub(before.listen_drops);
            if drops > 0 {
                self.said.push(format!(
                    "of all listeners of namespace {} on {}, ListenDrops grew by {drops} and ListenOverflows by {}",
                    there.1, self.node, self.listen_overflows
                ));
            }
        }
    }

    fn look_at_listeners(&mut self, attempt: &Attempt, index: &Index<'_>, there: Home<'_>) {
        let around = (attempt.opened_ns - LOOK_NS)..=(attempt.decided_ns + LOOK_NS);
        let samples: Vec<&ListenerSample> = rows(&index.listeners, &(there, attempt.remote_port))
            .filter(|sample| around.contains(&sample.observed_ns) && sample.takes(attempt))
            .collect();
        self.was_looked_at = self.looks_with > 0;
        self.has_listener = !samples.is_empty();
        self.rows += samples.len() as u64;
        let mut cookies: Vec<u64> = samples.iter().map(|sample| sample.cookie).collect();
        cookies.sort_unstable();
        cookies.dedup();
        for cookie in cookies {
            let of_it = || samples.iter().filter(|sample| sample.cookie == cookie);
            let before = of_it()
                .filter(|sample| sample.observed_ns <= attempt.opened_ns)
                .map(|sample| sample.drops)
                .next_back();
            let last = of_it().map(|sample| sample.drops).max().unwrap_or(0);
            // One that nobody saw before began with none.
            self.listener_drops += u64::from(last - before.unwrap_or(0).min(last));
            self.is_full |= of_it().any(|sample| sample.backlog > sample.backlog_limit);
        }
        if let Some(fullest) = samples.iter().max_by_key(|sample| sample.backlog) {
            self.said.push(format!(
                "{}[{}] listens on port {} of namespace {} on {}: at most {} of {} waited, {} turned away meanwhile",
                fullest.comm,
                fullest.pid,
                attempt.remote_port,
                there.1,
                fullest.node,
                fullest.backlog,
                fullest.backlog_limit,
                self.listener_drops
            ));
        } else if self.was_looked_at {
            self.said.push(format!(
                "nobody was seen to listen on port {} of namespace {} on {}",
                attempt.remote_port, there.1, self.node
            ));
        }
    }

    fn look_at_trouble(&mut self, attempt: &Attempt, index: &Index<'_>, here: Home<'_>, there: Home<'_>) {
        let peer = attempt.local_ip;
        let of_port = |peer: &PeerSample, count: u64| {
            if peer.port == attempt.remote_port {
                count
            } else {
                0
            }
        };
        self.resets_sent = self.trouble(index, there, peer, attempt, |peer| {
            of_port(peer, peer.resets_sent)
        });
        self.syn_acks_again = self.trouble(index, there, peer, attempt, |peer| peer.syn_ack_retransmits);
        if here != there {
            self.filtered_there =
                self.trouble(index, there, peer, attempt, |peer| of_port(peer, peer.filtered));
        }
        for (count, what) in [
            (
                self.resets_sent,
                "resets, because nobody listened there, were sent",
            ),
            (self.syn_acks_again, "SYN-ACKs were sent again"),
        ] {
            if count > 0 {
                self.said.push(format!(
                    "{count} {what} to {} by namespace {} on {}",
                    shown(peer),
                    there.1,
                    self.node
                ));
            }
        }
        if self.filtered_there > 0 {
            self.said.push(format!(
                "a filter of namespace {} on {} dropped {} SYNs of {} to port {}",
                there.1,
                self.node,
                self.filtered_there,
                shown(peer),
                attempt.remote_port
            ));
        }
    }

    /// Adds up what a namespace counted of a peer while the attempt lasted.
    fn trouble(
        &mut self,
        index: &Index<'_>,
        home: Home<'_>,
        peer_ip: Ipv6Addr,
        attempt: &Attempt,
        count: impl Fn(&PeerSample) -> u64,
    ) -> u64 {
        let mut sum = 0;
        for peer in rows(&index.peers, &(home, peer_ip)) {
            let is_then = peer.ended_ns >= attempt.opened_ns - SLACK_NS
                && peer.began_ns <= attempt.decided_ns + SLACK_NS;
            let counted = if is_then { count(peer) } else { 0 };
            sum += counted;
            self.rows += u64::from(counted > 0);
        }
        sum
    }

    fn judge(&self, attempt: &Attempt) -> (Cause, bool, String) {
        let of_the_client = |cause, why: &str| (cause, true, why.to_owned());
        match attempt.local_cause.as_str() {
            "no_route" => of_the_client(Cause::NoRoute, "its namespace has no route to the address"),
            "no_port" => of_the_client(Cause::NoPort, "its namespace had no free port"),
            "local_filter" => of_the_client(Cause::LocalFilter, "a policy of its node forbids it"),
            // A device without a carrier drops what it is given, and the kernel counts no SYN as sent again.
            "process_gave_up" | "host_unreachable" if self.looks_without > 0 && self.looks_with == 0 => {
                self.of_a_host_that_is_down()
            }
            "process_gave_up" => self.of_giving_up(attempt),
            "refused_by_peer" => self.of_a_refusal(),
            "icmp_port_unreachable" | "icmp_prohibited" => (
                Cause::Rejected,
                self.filtered_here + self.filtered_there > 0,
                "an ICMP message refused it: a firewall rejects, not the port".into(),
            ),
            "host_unreachable" => (
                Cause::HostUnreachable,
                false,
                "an ICMP message said so, or its neighbour did not answer".into(),
            ),
            "net_unreachable" => (
                Cause::NetUnreachable,
                false,
                "an ICMP message said that a router has no route".into(),
            ),
            "reset_by_peer" => (
                Cause::ResetInHandshake,
                self.resets_sent > 0,
                "a reset ended the handshake after its first step".into(),
            ),
            "no_answer" | "syn_retransmitted" => self.of_silence(attempt),
            _ => (Cause::Unknown, false, format!("the error was {}", attempt.errno)),
        }
    }

    fn of_a_refusal(&self) -> (Cause, bool, String) {
        let by_reset = "a reset answered the SYN";
        if self.resets_sent > 0 {
            return (Cause::NoListener, true, by_reset.into());
        }
        if self.has_listener {
            return (
                Cause::Rejected,
                !self.is_blind,
                format!("{by_reset}, but its namespace sent none and somebody listens: a firewall rejects"),
            );
        }
        let unseen = if self.is_home_known {
            ""
        } else {
            ", and no agent has seen the address"
        };
        (
            Cause::NoListener,
            self.was_looked_at,
            format!("{by_reset}{unseen}"),
        )
    }

    fn of_a_host_that_is_down(&self) -> (Cause, bool, String) {
        let why = format!(
            "{} has had the address and has it no more: its interface is down or gone",
            self.node
        );
        (Cause::HostDown, true, why)
    }

    /// A process waits less long than the kernel, often for a second or less: what was seen of its SYNs meanwhile is why no answer
    /// came. That nothing was seen says nothing of one that may have been on its way.
    fn of_giving_up(&self, attempt: &Attempt) -> (Cause, bool, String) {
        let syns = u32::from(attempt.syn_retransmits) + 1;
        let unanswered = format!("{syns} SYNs went unanswered until the process gave up");
        let why = "the process gave up before an answer was due";
        self.of_what_was_lost(&unanswered)
            .unwrap_or_else(|| (Cause::ProcessGaveUp, true, why.to_owned()))
    }

    /// Who was seen to drop what was sent or answered.
    fn of_what_was_lost(&self, unanswered: &str) -> Option<(Cause, bool, String)> {
        let confirmed = |cause| Some((cause, true, unanswered.to_owned()));
        if self.filtered_here + self.filtered_there > 0 {
            return confirmed(Cause::Filtered);
        }
        if self.is_full || (self.listener_drops > 0 && self.listen_overflows > 0) {
            return confirmed(Cause::ListenerFull);
        }
        // What the listener dropped was another's if it has answered this one more than once.
        if self.listener_drops > 0 && self.own_syn_acks_again == 0 {
            return confirmed(Cause::DroppedByListener);
        }
        (self.syn_acks_again + self.own_syn_acks_again > 0).then(|| {
            (
                Cause::ReplyDropped,
                true,
                format!("{unanswered}, but they arrived: the answer was lost on its way back"),
            )
        })
    }

    /// A SYN, or its answer, was lost.
    fn of_silence(&self, attempt: &Attempt) -> (Cause, bool, String) {
        let unanswered = format!("{} SYNs went unanswered", u32::from(attempt.syn_retransmits) + 1);
        let unanswered = if attempt.outcome == "established" {
            format!(
                "it was established after {} SYNs were sent again",
                attempt.syn_retransmits
            )
        } else {
            unanswered
        };
        if let Some(seen) = self.of_what_was_lost(&unanswered) {
            return seen;
        }
        if !self.is_home_known {
            return (
                Cause::NoAnswer,
                false,
                format!("{unanswered}, and no agent has seen the address"),
            );
        }
        match (self.looks_with, self.looks_without) {
            (0, 0) => (
                Cause::HostSilent,
                false,
                format!(
                    "{unanswered}, and {}'s agent says nothing of that time",
                    self.node
                ),
            ),
            (0, _) => {
                let (cause, is_confirmed, why) = self.of_a_host_that_is_down();
                (cause, is_confirmed, format!("{unanswered}; {why}"))
            }
            _ if self.is_blind => (
                Cause::DroppedOnPath,
                false,
                format!(
                    "{unanswered}; {} has the address and sent no answer that was seen",
                    self.node
                ),
            ),
            _ => (
                Cause::DroppedOnPath,
                true,
                format!(
                    "{unanswered}; {} has the address, filtered nothing, and sent no answer: they were lost before it",
                    self.node
                ),
            ),
        }
    }
}

/// As people write it.
fn shown(ip: Ipv6Addr) -> String {
    ip.to_ipv4_mapped()
        .map_or_else(|| ip.to_string(), |ip| ip.to_string())
}

impl ListenerSample {
    /// Whether an attempt at its port is for it.
    fn takes(&self, attempt: &Attempt) -> bool {
        let any = [
            Ipv6Addr::UNSPECIFIED,
            std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        ];
        self.local_ip == attempt.remote_ip || any.contains(&self.local_ip)
    }
}

#[cfg(test)]
mod tests;
