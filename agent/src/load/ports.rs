//! Where attempts come from. A pair of source address and target has as many connections as there are ports, and
//! long before they run out the kernel's search for a free one becomes the load: at half of the range connect() goes
//! from 8 us to 550 us of CPU (inet_hash_connect, net/ipv4/inet_hashtables.c, takes odd ports last). So a run stays below.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

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

/// The sources that are given: first those that are addresses of this node, then the others, which may be of other nodes that make the same
/// run.
///
/// # Errors
/// Names them if none is of this node.
pub fn of_this_node(given: &[IpAddr]) -> Result<(Vec<IpAddr>, Vec<IpAddr>), Nonsense> {
    // Asked of UDP, where a bound address is in nobody's way.
    let is_ours = |source: &IpAddr| UdpSocket::bind((*source, 0)).is_ok();
    let (ours, others): (Vec<IpAddr>, Vec<IpAddr>) = given.iter().copied().partition(is_ours);
    if ours.is_empty() && !others.is_empty() {
        return Err(Nonsense(format!(
            "nothing can be sent from {} here: give an address of this node with --source, or take nodes that have it with --node",
            in_words(&others)
        )));
    }
    Ok((ours, others))
}

/// What is said of given sources that this node does not have; nothing if there are none.
pub fn not_here(others: &[IpAddr]) -> Option<String> {
    let verb = if others.len() == 1 { "is" } else { "are" };
    (!others.is_empty()).then(|| {
        format!(
            "of the addresses that --source gives {} {verb} not of this node, and nothing is sent from there here",
            in_words(others)
        )
    })
}

fn in_words(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    addresses.join(" ")
}

/// The addresses of this node that are as good as the one that the kernel would choose, that one among them: on the same interface and in the same
/// network, for answers find their way to them then. None if it would choose differently for some of the targets, or does not say.
pub fn equals(targets: &[SocketAddr]) -> Vec<IpAddr> {
    let chosen: Option<Vec<IpAddr>> = targets.iter().map(source_to).collect();
    let Some([first, others @ ..]) = chosen.as_deref() else {
        return vec![];
    };
    if others.iter().any(|other| other != first) {
        return vec![];
    }
    let all: Vec<(String, IpAddr, IpAddr)> = getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|of| Some((of.interface_name, ip(of.address?)?, ip(of.netmask?)?)))
        .collect();
    beside(&all, *first)
}

/// Of addresses with their interfaces and masks, those on the same interface and in the same network as `first`, which is one of them.
fn beside(all: &[(String, IpAddr, IpAddr)], first: IpAddr) -> Vec<IpAddr> {
    let Some((interface, _, mask)) = all.iter().find(|(_, address, _)| *address == first) else {
        return vec![];
    };
    let network = |address: IpAddr| match (address, *mask) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => Some(IpAddr::V4(address & mask)),
        (IpAddr::V6(address), IpAddr::V6(mask)) => Some(IpAddr::V6(address & mask)),
        _ => None,
    };
    all.iter()
        .filter(|(name, address, _)| device(name) == device(interface) && network(*address) == network(first))
        .map(|(_, address, _)| *address)
        .collect()
}

/// The interface that an address is on, which may have a label of its own: `eth0:1` is on `eth0`.
fn device(name: &str) -> &str {
    name.split(':').next().unwrap_or(name)
}

/// From where the kernel would reach a target: nothing is sent for it.
fn source_to(target: &SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, Some(v6)) => Some(IpAddr::V6(v6.ip())),
        _ => None,
    }
}

fn parse(range: &str) -> Option<u64> {
    let mut numbers = range.split_whitespace().map(str::parse::<u64>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    (first <= last).then(|| last - first + 1)
}

/// The addresses to connect from so that the rule is kept, or none: the kernel's choice. Loopback has addresses enough; elsewhere they are given,
/// or this node's `own`, see [`equals`].
///
/// # Errors
/// With the figures, if those do not suffice.
pub fn sources(
    plan: &Plan,
    ports_in_range: u64,
    own: impl FnOnce() -> Vec<IpAddr>,
) -> Result<Vec<IpAddr>, Nonsense> {
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
    let wanted = sources_for(plan.ports() + plan.may_linger());
    let mut there = plan.sources.clone();
    if there.is_empty() && wanted > 1 {
        there = own();
        there.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        if there.len() == 1 {
            there.clear();
        }
    }
    if needed <= there.len().max(1) as u64 {
        return Ok(there);
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
    use std::{mem, time::Duration};

    use super::*;
    use crate::load::plan::{Arrivals, Close, tests::count};

    #[test]
    fn the_range_is_counted_with_both_ends() {
        assert_eq!(parse("32768\t60999\n"), Some(28_232));
        assert_eq!(parse("5 4"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn of_the_sources_a_node_takes_those_that_are_its_own() {
        let address = |source: &str| source.parse::<IpAddr>().expect("an address");
        // The second is of the documentation's network, which nobody has.
        let (ours, others) = (address("127.0.0.1"), address("192.0.2.1"));
        assert_eq!(of_this_node(&[]), Ok((vec![], vec![])));
        assert_eq!(of_this_node(&[others, ours]), Ok((vec![ours], vec![others])));
        let refused = of_this_node(&[others]).expect_err("not here").to_string();
        assert!(
            refused.contains("192.0.2.1") && refused.contains("--source"),
            "{refused}"
        );
    }

    #[test]
    fn loopback_gets_as_many_sources_as_it_needs() {
        let sources = |plan: &Plan, ports| sources(plan, ports, Vec::new);
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
        let own = |number: u8| move || (1..=number).map(|last| [10, 0, 0, last].into()).collect();
        let error = sources(&plan, 28_232, own(1))
            .expect_err("one source")
            .to_string();
        assert!(
            error.contains("20000 ports") && error.contains("give 2 addresses"),
            "{error}"
        );
        plan.sources = vec!["10.0.0.1".parse().expect("one"), "10.0.0.2".parse().expect("two")];
        assert_eq!(sources(&plan, 28_232, own(0)), Ok(plan.sources.clone()));
        // Of this node's own as many as are needed.
        let two = mem::take(&mut plan.sources);
        assert_eq!(sources(&plan, 28_232, own(3)), Ok(two));
        // What a loop may leave behind has as many as there are, and the run what it may come to.
        plan.close = Close::Finish;
        plan.arrivals = Arrivals::Closed {
            concurrency: 100,
            duration: Duration::from_secs(60),
        };
        assert_eq!(sources(&plan, 28_232, own(3)), Ok(own(3)()));
        plan.close = Close::Reset;
        assert_eq!(sources(&plan, 28_232, own(3)), Ok(vec![]));
    }

    #[test]
    fn the_kernels_choice_is_among_its_equals() {
        let equals = |targets: &[&str]| {
            let targets: Vec<SocketAddr> = targets
                .iter()
                .map(|target| target.parse().expect("a target"))
                .collect();
            equals(&targets)
        };
        let loopback: IpAddr = "127.0.0.1".parse().expect("an address");
        assert!(equals(&["127.0.0.1:9", "127.0.0.1:10"]).contains(&loopback));
        // No address is good for both.
        assert_eq!(equals(&["127.0.0.1:9", "[::1]:9"]), Vec::<IpAddr>::new());
    }

    #[test]
    fn an_address_with_a_label_is_on_the_interface_that_it_is_on() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let of = |name: &str, text: &str| (name.to_owned(), address(text), address("255.255.255.0"));
        let all = [
            of("eth0", "10.0.0.1"),
            of("eth0:1", "10.0.0.2"),
            of("eth0:2", "10.0.1.2"),
            of("eth01", "10.0.0.3"),
        ];
        let both = vec![address("10.0.0.1"), address("10.0.0.2")];
        for first in &both {
            assert_eq!(beside(&all, *first), both);
        }
    }
}
