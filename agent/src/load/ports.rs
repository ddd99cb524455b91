//! Where attempts come from. A pair of source address and target has as many connections as there are ports, and
//! long before they run out the kernel's search for a free one becomes the load: at half of the range connect() goes
//! from 8 us to 550 us of CPU (inet_hash_connect, net/ipv4/inet_hashtables.c, takes odd ports last). So a run stays below.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use super::plan::{Nonsense, Plan};

/// Of a port range, as much as is used: percent.
pub const FILL_PERCENT: u64 = 45;

/// The kernel's setting for both IPv4 and IPv6, of the network namespace that reads it.
const RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Ports of this namespace that connect() chooses from.
///
/// # Errors
/// If the kernel does not say.
pub fn in_range() -> io::Result<u64> {
    let text = fs::read_to_string(RANGE)?;
    parse(&text).ok_or_else(|| io::Error::other(format!("{RANGE} says {text:?}, which is no range")))
}

/// Whether sources are addresses of this node.
///
/// # Errors
/// Names the first one that is not.
pub fn check_sources(sources: &[IpAddr]) -> Result<(), Nonsense> {
    for source in sources {
        // Asked of UDP, where a bound address is in nobody's way.
        UdpSocket::bind((*source, 0)).map_err(|error| {
            Nonsense(format!(
                "nothing can be sent from the source {source} here ({error}): give an address of this node with --source, or take \
                 nodes that have it with --node"
            ))
        })?;
    }
    Ok(())
}

fn parse(range: &str) -> Option<u64> {
    let mut numbers = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then(|| last - first + 1)
}

/// The addresses to connect from so that the rule is kept. Loopback has addresses enough; elsewhere they are given.
///
/// # Errors
/// With the figures, if those that are given do not suffice.
pub fn sources(plan: &Plan, ports_in_range: u64) -> Result<Vec<IpAddr>, Nonsense> {
    let usable = (ports_in_range * FILL_PERCENT / 100).max(1);
    let targets = plan.targets.len() as u64;
    let sources_for = |ports: u64| ports.div_ceil(targets).div_ceil(usable).max(1);
    let is_local = |target: &SocketAddr| matches!(target.ip(), IpAddr::V4(address) if address.is_loopback());
    if plan.sources.is_empty() && plan.targets.iter().all(is_local) {
        // 127.1.0.0/16, a few times what any machine can hold open.
        match sources_for(plan.ports() + plan.may_linger()) {
            1 => return Ok(vec![]),
            needed @ ..=60_000 => return Ok((0..needed as u16).map(local_source).collect()),
            _ => {}
        }
    }
    let needed = sources_for(plan.ports());
    let given = plan.sources.len().max(1) as u64;
    if needed <= given {
        return Ok(plan.sources.clone());
    }
    Err(Nonsense(format!(
        "{} ports are needed to {}, and one source address has {usable} of {ports_in_range} (the kernel's search for a \
         free port grows steep past {FILL_PERCENT}%): give {needed} addresses with --source, or ask for less",
        plan.ports().div_ceil(targets),
        plan.targets[0],
    )))
}

fn local_source(index: u16) -> IpAddr {
    // Neither .0 nor .255: nothing minds, but people do.
    let [high, low] = [index / 250, index % 250].map(|part| part as u8);
    IpAddr::V4(Ipv4Addr::new(127, 1, high, low + 1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::plan::{Arrivals, Close, tests::count};

    #[test]
    fn the_range_is_counted_with_both_ends() {
        assert_eq!(parse("32768\t60999\n"), Some(28_232));
        assert_eq!(parse("5 4"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_source_is_an_address_of_this_node() {
        let check = |source: &str| check_sources(&[source.parse().expect("an address")]);
        assert_eq!(check("127.0.0.1"), Ok(()));
        // Of the documentation's network, which nobody has.
        let refused = check("192.0.2.1").expect_err("not here").to_string();
        assert!(
            refused.contains("192.0.2.1") && refused.contains("--source"),
            "{refused}"
        );
    }

    #[test]
    fn loopback_gets_as_many_sources_as_it_needs() {
        assert_eq!(sources(&count(12_704), 28_232), Ok(vec![]));
        let two: Vec<IpAddr> = vec![
            "127.1.0.1".parse().expect("one"),
            "127.1.0.2".parse().expect("two"),
        ];
        assert_eq!(sources(&count(12_705), 28_232), Ok(two.clone()));
        // What a loop may leave behind takes its ports too; elsewhere nobody knows how many that are.
        let mut plan = count(1);
        plan.arrivals = Arrivals::Closed {
            concurrency: 100,
            duration: Duration::from_secs(60),
        };
        (plan.hold, plan.close) = (Duration::from_millis(400), Close::Finish);
        assert_eq!(sources(&plan, 28_232), Ok(two));
        plan.targets = vec!["10.0.0.5:80".parse().expect("an address")];
        assert_eq!(sources(&plan, 28_232), Ok(vec![]));
    }

    #[test]
    fn elsewhere_too_few_sources_are_refused_with_the_figures() {
        let mut plan = count(20_000);
        plan.targets = vec!["10.0.0.5:80".parse().expect("an address")];
        let error = sources(&plan, 28_232).expect_err("one source").to_string();
        assert!(
            error.contains("20000 ports") && error.contains("give 2 addresses"),
            "{error}"
        );
        plan.sources = vec!["10.0.0.1".parse().expect("one"), "10.0.0.2".parse().expect("two")];
        assert_eq!(sources(&plan, 28_232), Ok(plan.sources.clone()));
    }
}
