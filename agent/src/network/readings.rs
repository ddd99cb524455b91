//! Reading a network namespace from the inside: its addresses and the counters that the kernel keeps for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    net::IpAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use holdfast_proto::v1::Namespace;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Queues;

/// Addresses of one namespace that are told; a router may have many more.
const ADDRESSES: usize = 256;

/// What was read of one namespace. The counters are the kernel's (Documentation/networking/snmp_counter.rst),
/// cumulative since the namespace began; zero where it does not have one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Those of interfaces that are up and have a carrier, IPv4 as ::ffff:a.b.c.d; without loopback.
    addresses: BTreeSet<[u8; 16]>,
    listen_overflows: u64,
    pub(super) listen_drops: u64,
    syn_queue_drops: u64,
    syn_cookies: u64,
    resets_sent: u64,
    attempt_fails: u64,
    established_resets: u64,
    retransmits: u64,
}

impl Reading {
    /// Whether something happened since that others ask for when they look for a cause. Retransmissions and the like
    /// go on all the time: they alone are no news.
    pub(super) fn is_in_less_trouble_than(&self, later: &Self) -> bool {
        let news = |reading: &Self| {
            (
                reading.listen_overflows,
                reading.listen_drops,
                reading.syn_queue_drops,
            )
        };
        news(self) != news(later) || self.addresses != later.addresses
    }

    pub(super) fn queues(&self) -> Queues {
        Queues {
            overflows: self.listen_overflows,
            drops: self.listen_drops,
        }
    }

    pub(super) fn row(&self, netns: u32) -> Namespace {
        Namespace {
            netns,
            addresses: self
                .addresses
                .iter()
                .map(|address| address.to_vec().into())
                .collect(),
            listen_overflows: self.listen_overflows,
            listen_drops: self.listen_drops,
            syn_queue_drops: self.syn_queue_drops,
            syn_cookies: self.syn_cookies,
            resets_sent: self.resets_sent,
            attempt_fails: self.attempt_fails,
            established_resets: self.established_resets,
            retransmits: self.retransmits,
        }
    }

    fn of_counters(snmp: &str, netstat: &str) -> Self {
        let tcp = counters(snmp, "Tcp:");
        let extended = counters(netstat, "TcpExt:");
        let of = |counters: &BTreeMap<&str, u64>, name| counters.get(name).copied().unwrap_or_default();
        Self {
            addresses: BTreeSet::new(),
            listen_overflows: of(&extended, "ListenOverflows"),
            listen_drops: of(&extended, "ListenDrops"),
            syn_queue_drops: of(&extended, "TCPReqQFullDrop"),
            syn_cookies: of(&extended, "SyncookiesSent"),
            resets_sent: of(&tcp, "OutRsts"),
            attempt_fails: of(&tcp, "AttemptFails"),
            established_resets: of(&tcp, "EstabResets"),
            retransmits: of(&tcp, "RetransSegs"),
        }
    }
}

/// Reads namespaces, each by a path that stands for it. One that cannot be read is not in the answer. A thread of its own
/// goes there: it ends where it went.
pub(super) fn read_all(paths: BTreeMap<u32, PathBuf>) -> BTreeMap<u32, Reading> {
    let visit = move || {
        let visit = |(netns, path): (u32, PathBuf)| Some((netns, read_inside(netns, &path)?));
        paths.into_iter().filter_map(visit).collect()
    };
    let thread = thread::Builder::new().name("namespaces".into()).spawn(visit);
    thread
        .ok()
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

fn read_inside(netns: u32, path: &Path) -> Option<Reading> {
    // The agent's own needs no capability.
    if u64::from(netns) != fs::metadata("/proc/thread-self/ns/net").ok()?.ino() {
        let namespace = File::open(path).ok()?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        // A task may have left meanwhile.
        (u64::from(netns) == fs::metadata("/proc/thread-self/ns/net").ok()?.ino()).then_some(())?;
    }
    let snmp = fs::read_to_string("/proc/thread-self/net/snmp").ok()?;
    let netstat = fs::read_to_string("/proc/thread-self/net/netstat").ok()?;
    Some(Reading {
        addresses: addresses(),
        ..Reading::of_counters(&snmp, &netstat)
    })
}

fn addresses() -> BTreeSet<[u8; 16]> {
    let Ok(interfaces) = getifaddrs() else {
        return BTreeSet::new();
    };
    let working = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => return None,
        };
        let mapped = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        (interface.flags.contains(working) && !ip.is_loopback()).then(|| mapped.octets())
    };
    interfaces.filter_map(address).take(ADDRESSES).collect()
}

/// The counters of one group of /proc/net/snmp or netstat: a line of names, and a line of values.
fn counters<'a>(text: &'a str, group: &str) -> BTreeMap<&'a str, u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return BTreeMap::new();
    };
    let names = names.split_ascii_whitespace();
    let values = values.split_ascii_whitespace();
    names
        .zip(values)
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "\
Ip: Forwarding DefaultTTL
Ip: 1 64
Tcp: RtoAlgorithm AttemptFails EstabResets MaxConn RetransSegs OutRsts
Tcp: 1 7 8 -1 9 10
";
    const NETSTAT: &str = "\
TcpExt: SyncookiesSent ListenOverflows ListenDrops
TcpExt: 4 5 6
IpExt: InNoRoutes
IpExt: 0
";

    #[test]
    fn counters_are_found_by_name_and_those_that_the_kernel_lacks_are_zero() {
        let expected = Reading {
            listen_overflows: 5,
            listen_drops: 6,
            syn_cookies: 4,
            resets_sent: 10,
            attempt_fails: 7,
            established_resets: 8,
            retransmits: 9,
            ..Reading::default()
        };
        assert_eq!(Reading::of_counters(SNMP, NETSTAT), expected);
        assert_eq!(
            Reading::of_counters("", "TcpExt: ListenDrops"),
            Reading::default()
        );
    }

    #[test]
    fn a_full_queue_and_a_lost_address_are_news_and_a_retransmission_is_none() {
        let before = Reading::of_counters(SNMP, NETSTAT);
        let later = |change: fn(&mut Reading)| {
            let mut later = before.clone();
            change(&mut later);
            before.is_in_less_trouble_than(&later)
        };
        assert!(later(|later| later.listen_overflows += 1));
        assert!(later(|later| later.addresses = BTreeSet::from([[1; 16]])));
        assert!(!later(|later| later.retransmits += 1));
    }
}
