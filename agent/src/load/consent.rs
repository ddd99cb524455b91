//! What this node's own configuration allows of load. The collector asks; only the node decides. Every refusal names the
//! setting that would allow what was refused.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use super::{
    outcome::Outcome,
    plan::Plan,
    run::{Bound, Caps, Prepared},
};
use crate::setting::Setting;

/// Bits before the IPv4 address in an IPv6 address that stands for it: `::ffff:0:0/96` (RFC 4291, 2.5.5.2).
const MAPPED_PREFIX: u8 = 96;

/// Addresses and ports that may be loaded: `10.0.0.0/8:80,8000-8999`, `[fd00::]/8:443` or, for all ports, `127.0.0.0/8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    network: IpAddr,
    prefix: u8,
    /// Inclusive; empty: all.
    ports: Vec<(u16, u16)>,
    text: String,
}

impl Targets {
    fn allow(&self, target: SocketAddr) -> bool {
        // The kernel speaks IPv4 to `::ffff:10.0.0.1` (tcp_v6_connect, net/ipv6/tcp_ipv6.c), so that is what it is judged as.
        let in_network = match (self.network, target.ip().to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => same_prefix(
                u128::from(u32::from(network)) << 96,
                u128::from(u32::from(address)) << 96,
                self.prefix,
            ),
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                same_prefix(network.into(), address.into(), self.prefix)
            }
            _ => false,
        };
        let is_of = |&(first, last): &(u16, u16)| (first..=last).contains(&target.port());
        in_network && (self.ports.is_empty() || self.ports.iter().any(is_of))
    }
}

fn same_prefix(network: u128, address: u128, prefix: u8) -> bool {
    (network ^ address)
        .checked_shr(128 - u32::from(prefix))
        .unwrap_or(0)
        == 0
}

impl FromStr for Targets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = |part: &str| {
            format!("{text:?}: {part}; write 10.0.0.0/8, 10.0.0.0/8:80,8000-8999 or [fd00::]/8:443")
        };
        // The ports begin after the last colon outside of the brackets that an IPv6 address with ports needs.
        let bracket = text.rfind(']').unwrap_or(0);
        let is_bare_ipv6 = !text.starts_with('[') && text.matches(':').count() > 1;
        let (network, ports) = match text[bracket..].find(':').filter(|_| !is_bare_ipv6) {
            Some(at) => (&text[..bracket + at], Some(&text[bracket + at + 1..])),
            None => (text, None),
        };
        let (address, prefix) = match network.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (network, None),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let network: IpAddr = address.parse().map_err(|_| fault("no network"))?;
        let longest = if network.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(|| fault("no length of a prefix"))?,
        };
        // As the addresses that are looked for in it.
        let (network, prefix) = match network.to_canonical() {
            ipv4 @ IpAddr::V4(_) if network.is_ipv6() && prefix >= MAPPED_PREFIX => {
                (ipv4, prefix - MAPPED_PREFIX)
            }
            _ => (network, prefix),
        };
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            match (first.parse::<u16>(), last.parse::<u16>()) {
                (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
                _ => Err(fault("no ports")),
            }
        };
        let ports = ports.map_or(Ok(Vec::new()), |ports| ports.split(',').map(range).collect())?;
        Ok(Self {
            network,
            prefix,
            ports,
            text: text.to_owned(),
        })
    }
}

/// What is allowed.
#[derive(Clone, Debug)]
pub struct Consent {
    pub targets: Vec<Targets>,
    pub connections: u64,
    pub caps: Caps,
}

/// Why a run is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Consent {
    /// No target at all.
    pub fn nothing() -> Self {
        Self {
            targets: vec![],
            connections: 0,
            caps: Caps {
                per_second: 0.0,
                bytes: 0,
                cpus: 0.0,
                duration: Duration::ZERO,
            },
        }
    }

    /// Whether load on a target is allowed at all; of an address of this node, also whether others may be told to load it.
    ///
    /// # Errors
    /// With the setting that would allow it.
    pub fn check_target(&self, target: SocketAddr) -> Result<(), Refused> {
        self.check_with(target, &format!(":{}", target.port()))
    }

    /// The same of an address whose port the kernel chose: another time it chooses another one, so what is advised is the address alone.
    ///
    /// # Errors
    /// As [`Self::check_target`].
    pub fn check_any_port(&self, target: SocketAddr) -> Result<(), Refused> {
        self.check_with(target, "")
    }

    /// `wanted_ports` are those that a refusal advises to allow, as they are written.
    fn check_with(&self, target: SocketAddr, wanted_ports: &str) -> Result<(), Refused> {
        if self.targets.iter().any(|allowed| allowed.allow(target)) {
            return Ok(());
        }
        let allowed: Vec<_> = self.targets.iter().map(|targets| targets.text.as_str()).collect();
        let (prefix, address) = match target.ip().to_canonical() {
            IpAddr::V4(address) => (32, address.to_string()),
            IpAddr::V6(address) => (128, format!("[{address}]")),
        };
        let wanted = format!("{address}/{prefix}{wanted_ports}");
        let all: Vec<_> = allowed.iter().copied().chain([wanted.as_str()]).collect();
        Err(Refused(format!(
            "load on {target} is not allowed here (allowed: {}): {}",
            if allowed.is_empty() {
                "nothing".into()
            } else {
                allowed.join(" ")
            },
            Setting("load-targets").to(&all.join(" "))
        )))
    }

    /// Of plans that are carried out at the same time.
    ///
    /// # Errors
    /// With the setting that would allow them.
    pub fn check_all(&self, plans: &[Plan]) -> Result<(), Refused> {
        plans.iter().try_for_each(|plan| self.check(plan))?;
        let at_once: u64 = plans.iter().map(Plan::at_once).fold(0, u64::saturating_add);
        let is_certain = |plan: &Plan| !matches!(plan.arrivals, super::plan::Arrivals::Stages(_));
        if at_once > self.connections && plans.iter().any(is_certain) {
            return Err(Refused(format!(
                "{at_once} connections at once, to {} targets together, are more than the {} that are allowed here: {}",
                plans.len(),
                self.connections,
                Setting("load-connections").to(&at_once.to_string())
            )));
        }
        let rate: f64 = plans.iter().map(Plan::at_least_per_second).sum();
        if rate > self.caps.per_second {
            return Err(Refused(format!(
                "{rate:.0} connections/s, to {} targets together, are more than the {:.0}/s that are allowed here: {}",
                plans.len(),
                self.caps.per_second,
                Setting("load-rate").to(&format!("{:.0}", rate.ceil()))
            )));
        }
        Ok(())
    }

    /// Keeps one of `number` runs that are made at the same time to its part of the connections: what a rate comes to is not known before.
    pub fn bound(&self, prepared: &mut Prepared, number: u64) {
        let allowed = (self.connections / number).max(1);
        let plan = &prepared.plan;
        if prepared.at_once <= allowed {
            return;
        }
        // More than were enough so far, if the machine was late.
        let wanted = plan.at_once().max(allowed + allowed / 10 + 1).min(plan.places());
        let of_each = if number > 1 { " to each target" } else { "" };
        prepared.bound = Bound {
            outcome: Outcome::LocalFilter,
            remark: format!(
                "more than {allowed} connections at once{of_each} were due, and no more are allowed here: {}",
                Setting("load-connections").to(&wanted.saturating_mul(number).to_string())
            ),
        };
        prepared.at_once = allowed;
        prepared.threads = prepared.threads.min(allowed);
    }

    /// Threads of one of `number` runs that are made at the same time. Each may keep a CPU busy, and so may the one that serves others
    /// meanwhile: of more than the cap has CPUs for a run at full speed would be ended for being no more than fast. Less than one there is
    /// not.
    pub fn threads(&self, number: u64, is_serving: bool) -> u64 {
        let left = self.caps.cpus - f64::from(u8::from(is_serving));
        ((left / number as f64) as u64).max(1)
    }

    /// # Errors
    /// With the setting that would allow the plan.
    pub fn check(&self, plan: &Plan) -> Result<(), Refused> {
        let refused = |text: String| Err(Refused(text));
        plan.targets
            .iter()
            .try_for_each(|target| self.check_target(*target))?;
        // Of a rate it is what may be open at once; more are an outcome of the run and not opened, see [`Self::bound`].
        let at_once = plan.at_once();
        if at_once > self.connections && !matches!(plan.arrivals, super::plan::Arrivals::Stages(_)) {
            return refused(format!(
                "{at_once} connections at once are more than the {} that are allowed here: {}",
                self.connections,
                Setting("load-connections").to(&at_once.to_string())
            ));
        }
        let rate = plan.at_least_per_second();
        if rate > self.caps.per_second {
            return refused(format!(
                "{rate:.0} connections/s are more than the {:.0}/s that are allowed here: {}",
                self.caps.per_second,
                Setting("load-rate").to(&format!("{:.0}", rate.ceil()))
            ));
        }
        let duration = plan.sending().saturating_add(plan.hold);
        if duration > self.caps.duration {
            let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
            return refused(format!(
                "{seconds} s are longer than the {} s that are allowed here: {}",
                self.caps.duration.as_secs(),
                Setting("load-duration").to(&format!("{seconds}s"))
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::{Arrivals, tests::count};

    fn allows(targets: &str, target: &str) -> bool {
        let targets: Targets = targets.parse().expect("targets");
        targets.allow(target.parse().expect("a target"))
    }

    #[test]
    fn networks_and_ports_are_what_they_say() {
        assert!(allows("127.0.0.0/8", "127.1.2.3:9"));
        assert!(!allows("127.0.0.0/8", "128.0.0.1:9"));
        assert!(allows("10.0.0.5", "10.0.0.5:80") && !allows("10.0.0.5", "10.0.0.6:80"));
        assert!(allows("0.0.0.0/0:80,8000-8999", "1.2.3.4:8500"));
        assert!(!allows("0.0.0.0/0:80,8000-8999", "1.2.3.4:9000"));
        assert!(allows("::1", "[::1]:443") && allows("[fd00::]/8:443", "[fd12::1]:443"));
        assert!(!allows("[fd00::]/8:443", "[fd12::1]:80"));
        assert!(!allows("0.0.0.0/0", "[::1]:80"));
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/8:",
            "10.0.0.0/8:0",
            "10.0.0.0/8:9-1",
            "web:80",
            "[::1",
        ] {
            let parsed = bad.parse::<Targets>();
            assert!(parsed.is_err() || bad == "[::1", "{bad:?}: {parsed:?}");
        }
    }

    #[test]
    fn an_ipv4_address_in_the_dress_of_ipv6_is_allowed_where_the_ipv4_address_is() {
        assert!(!allows("::/0", "[::ffff:10.66.0.14]:8888"));
        assert!(!allows("[::ffff:0:0]/64", "[::ffff:10.66.0.14]:8888"));
        assert!(allows("10.66.0.0/16:8888", "[::ffff:10.66.0.14]:8888"));
        assert!(!allows("10.66.0.0/16:8888", "[::ffff:10.67.0.14]:8888"));
        assert!(!allows("10.66.0.0/16:8888", "[::ffff:10.66.0.14]:8889"));
        // Likewise of a network.
        for target in ["10.66.0.14:8888", "[::ffff:10.66.0.14]:8888"] {
            assert!(allows("::ffff:10.66.0.0/112", target), "{target}");
            assert!(!allows("::ffff:10.67.0.0/112", target), "{target}");
        }
        let ipv6_only = Consent {
            targets: vec!["::/0".parse().expect("targets")],
            ..Consent::nothing()
        };
        let target = "[::ffff:10.66.0.14]:8888".parse().expect("a target");
        let refused = ipv6_only.check_target(target).expect_err("IPv4").0;
        assert!(refused.contains("10.66.0.14/32:8888"), "{refused}");
    }

    #[test]
    fn every_refusal_names_the_setting_that_would_allow_it() {
        let consent = Consent {
            targets: vec!["127.0.0.0/8".parse().expect("targets")],
            connections: 100,
            caps: Caps {
                per_second: 1_000.0,
                bytes: 0,
                cpus: 1.0,
                duration: Duration::from_secs(60),
            },
        };
        let check = |change: fn(&mut Plan), setting: &str| {
            let mut plan = count(100);
            plan.arrivals = Arrivals::Count {
                connections: 100,
                pause: Duration::from_millis(10),
            };
            change(&mut plan);
            match consent.check(&plan) {
                Ok(()) => assert_eq!(setting, ""),
                Err(refused) => assert!(!setting.is_empty() && refused.0.contains(setting), "{refused}"),
            }
        };
        check(|_| {}, "");
        check(
            |plan| plan.targets[0].set_ip("10.0.0.1".parse().expect("an address")),
            "--load-targets \"127.0.0.0/8 10.0.0.1/32:80\"",
        );
        check(|plan| plan.hold = Duration::from_secs(60), "--load-duration");
        let counted = |connections, pause_us| Arrivals::Count {
            connections,
            pause: Duration::from_micros(pause_us),
        };
        let mut plan = count(1);
        plan.arrivals = counted(101, 10_000);
        assert!(
            consent
                .check(&plan)
                .expect_err("many")
                .0
                .contains("--load-connections")
        );
        plan.arrivals = counted(100, 900);
        assert!(consent.check(&plan).expect_err("fast").0.contains("--load-rate"));
        // A closed loop makes as many at once as it has.
        let at_once = |concurrency| {
            let mut plan = count(1);
            plan.arrivals = Arrivals::Closed {
                concurrency,
                duration: Duration::from_secs(10),
            };
            let slow = Consent {
                caps: Caps {
                    per_second: 50.0,
                    ..consent.caps
                },
                ..consent.clone()
            };
            slow.check(&plan)
        };
        assert_eq!(at_once(50), Ok(()));
        assert!(at_once(51).expect_err("fast").0.contains("--load-rate 51"));
        // Each alone would be allowed.
        plan.arrivals = counted(40, 2_500);
        let two = [plan.clone(), plan.clone()];
        assert!(consent.check_all(&two).is_ok());
        let three = [plan.clone(), plan.clone(), plan];
        let many = consent.check_all(&three).expect_err("many").0;
        assert!(
            many.contains("120 connections at once, to 3 targets") && many.contains("--load-connections"),
            "{many}"
        );
    }
}
