//! Reading a network namespace from the inside: its addresses and the counters that the kernel keeps for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use holdfast_proto::v1::Namespace;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use super::Queues;
use crate::witness::visitor::{Visitor, text_of};

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

    fn take_in(&mut self, snmp: &str, netstat: &str) {
        for (name, value) in counters(snmp, "Tcp:") {
            match name {
                "OutRsts" => self.resets_sent = value,
                "AttemptFails" => self.attempt_fails = value,
                "EstabResets" => self.established_resets = value,
                "RetransSegs" => self.retransmits = value,
                _ => {}
            }
        }
        for (name, value) in counters(netstat, "TcpExt:") {
            match name {
                "ListenOverflows" => self.listen_overflows = value,
                "ListenDrops" => self.listen_drops = value,
                "TCPReqQFullDrop" => self.syn_queue_drops = value,
                "SyncookiesSent" => self.syn_cookies = value,
                _ => {}
            }
        }
    }
}

/// Reads what the kernel keeps for each namespace, into memory that is used again.
pub(super) struct Reader {
    visitor: Visitor,
    snmp: Vec<u8>,
    netstat: Vec<u8>,
}

impl Reader {
    /// Of the thread that the visitor is of.
    pub(super) fn new(visitor: Visitor) -> Self {
        Self {
            visitor,
            snmp: Vec::new(),
            netstat: Vec::new(),
        }
    }

    /// Reads namespaces, each by a path that stands for it. One that cannot be read is not in the answer.
    pub(super) fn read_all(&mut self, paths: &BTreeMap<u32, PathBuf>) -> BTreeMap<u32, Reading> {
        let Self {
            visitor,
            snmp,
            netstat,
        } = self;
        let namespaces = paths.iter().map(|(&netns, path)| (netns, path.as_path()));
        visitor.visit_all(namespaces, || {
            let mut reading = Reading {
                addresses: addresses(),
                ..Reading::default()
            };
            let snmp = text_of("/proc/thread-self/net/snmp", snmp).ok()?;
            let netstat = text_of("/proc/thread-self/net/netstat", netstat).ok()?;
            reading.take_in(snmp, netstat);
            Some(reading)
        })
    }
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
fn counters<'a>(text: &'a str, group: &str) -> impl Iterator<Item = (&'a str, u64)> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(group));
    let (names, values) = lines.next().zip(lines.next()).unwrap_or_default();
    let names = names.split_ascii_whitespace();
    let values = values.split_ascii_whitespace();
    names
        .zip(values)
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
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

    fn of(snmp: &str, netstat: &str) -> Reading {
        let mut reading = Reading::default();
        reading.take_in(snmp, netstat);
        reading
    }

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
        assert_eq!(of(SNMP, NETSTAT), expected);
        assert_eq!(of("", "TcpExt: ListenDrops"), Reading::default());
    }

    #[test]
    fn a_full_queue_and_a_lost_address_are_news_and_a_retransmission_is_none() {
        let before = of(SNMP, NETSTAT);
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
