//! Which rows speak against a condition: of whom, and what is bad about them. Pure; `store/worst.rs` asks for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::condition::Condition;
use super::evaluate::{Key, Moment};
use super::signal::{End, Measure, Rows, Sum, Times};
use super::{Assertion, Dimension, Subject, Target, TargetPlace};
use crate::filter::{Filter, Network, Operator, Value};

/// The rows of a key that a condition is about, and which of them are the worst.
#[derive(Clone, Debug, PartialEq)]
pub struct Suspects {
    pub rows: Rows,
    pub is_server: bool,
    pub worst: Worst,
    pub filter: Filter,
}

/// What makes a row worse than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worst {
    /// It took longer.
    Longest(Times),
    /// It counts at all, or for more.
    Most(Sum),
    /// Of listeners: its queue was fuller.
    Fullest,
}

/// `None`: the condition is not about rows that can be shown.
pub fn suspects(
    assertion: &Assertion,
    condition: &Condition,
    key: &Key,
    moment: &Moment<'_>,
) -> Option<Suspects> {
    let signal = condition.signal.signal;
    let rows = match signal.rows {
        Rows::Attempts | Rows::Connections | Rows::Listeners | Rows::Syscalls | Rows::Open => signal.rows,
        Rows::Namespaces | Rows::Overhead | Rows::Sql | Rows::Agents => return None,
    };
    let worst = match signal.measure {
        Measure::Sum(sum) | Measure::PerSecond(sum) | Measure::Ratio(sum, _) => Worst::Most(sum),
        // A row of syscalls has the latencies of many calls.
        Measure::Quantiles(Times::Syscall) => return None,
        Measure::Quantiles(times) | Measure::Largest(times) => Worst::Longest(times),
        Measure::Fullest => Worst::Fullest,
        Measure::Value | Measure::Agent(_) => return None,
    };
    let is_target = signal.end == End::Target && matches!(assertion.subject, Subject::Client { .. });
    let part = |dimension| {
        let at = assertion.by.iter().position(|known| *known == dimension)?;
        key.get(at).map(String::as_str)
    };
    let members = |of: &super::group::Members| -> Vec<&str> {
        let nodes = moment.nodes(of);
        nodes.map(|node| node.labelled.node.as_str()).collect()
    };
    let (own, other, port) = match &assertion.subject {
        Subject::Client { to, .. } if is_target => {
            let own = match (part(Dimension::ToNode), &to.place) {
                (Some(node), _) => vec![node],
                (None, Some(TargetPlace::Nodes(of))) => members(of),
                _ => return None,
            };
            (own, Other::Any, to.port)
        }
        Subject::Client { from, to } => {
            let own = part(Dimension::FromNode).map_or_else(|| members(from), |node| vec![node]);
            let other = match part(Dimension::ToNode) {
                Some(node) => Other::Named(node),
                None => Other::of(to, members),
            };
            (own, other, to.port)
        }
        Subject::Server { on, port, from } => {
            let own = part(Dimension::OnNode).map_or_else(|| members(on), |node| vec![node]);
            let other = match (part(Dimension::FromNode), from) {
                (Some(node), _) => Other::Named(node),
                (None, Some(from)) => Other::Nodes(members(from)),
                (None, None) => Other::Any,
            };
            (own, other, *port)
        }
    };
    let is_server =
        is_target || signal.end != End::Either || matches!(assertion.subject, Subject::Server { .. });
    let mut all = vec![among(
        "node",
        own.iter().map(|node| Value::Text((*node).to_owned())),
    )];
    if let Some(values) = other.values(&own, moment) {
        all.push(among("remote_ip", values));
    }
    let port = part(Dimension::Port).and_then(|port| port.parse().ok()).or(port);
    if let Some(port) = port {
        let is_local = is_server || rows == Rows::Listeners;
        let column = if is_local { "local_port" } else { "remote_port" };
        all.push(equal(column, Value::Number(u64::from(port))));
    }
    for (dimension, column) in [(Dimension::Service, "service"), (Dimension::Comm, "comm")] {
        if let Some(text) = part(dimension) {
            all.push(equal(column, Value::Text(text.to_owned())));
        }
    }
    if !condition.syscalls.is_empty() {
        let names = condition.syscalls.iter().cloned().map(Value::Text);
        all.push(among("syscall", names));
    }
    if signal.end != End::Target {
        all.extend(assertion.filter.clone());
    }
    Some(Suspects {
        rows,
        is_server,
        worst,
        filter: Filter::And(all),
    })
}

/// Who is at the other end.
enum Other<'a> {
    Any,
    /// A node, or an address that is no node's.
    Named(&'a str),
    Nodes(Vec<&'a str>),
    Network(Network),
}

impl<'a> Other<'a> {
    fn of(to: &Target, members: impl Fn(&super::group::Members) -> Vec<&'a str>) -> Self {
        match &to.place {
            None => Self::Any,
            Some(TargetPlace::Nodes(of)) => Self::Nodes(members(of)),
            Some(TargetPlace::Address(address)) => Self::Network(Network {
                address: *address,
                bits: if address.is_ipv4() { 32 } else { 128 },
            }),
            Some(TargetPlace::Network(network)) => Self::Network(*network),
        }
    }

    /// The addresses; none: whatever they are. `own`: the nodes at this end, which see themselves on loopback.
    fn values(&self, own: &[&str], moment: &Moment<'_>) -> Option<Vec<Value>> {
        let of_nodes = |names: &[&str]| {
            let nodes = moment.roster.nodes.iter();
            let named = nodes.filter(|node| names.contains(&node.labelled.node.as_str()));
            let addresses = named.flat_map(|node| &node.addresses);
            let mut values: Vec<Value> = addresses
                .map(|address| Value::Address(IpAddr::V6(*address).to_canonical()))
                .collect();
            if own.iter().any(|node| names.contains(node)) {
                let loopback = Network {
                    address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    bits: 8,
                };
                values.push(Value::Network(loopback));
                values.push(Value::Address(IpAddr::V6(Ipv6Addr::LOCALHOST)));
            }
            values
        };
        match self {
            Self::Any => None,
            Self::Named(name) => Some(match name.parse::<IpAddr>() {
                Ok(address) => vec![Value::Address(address)],
                Err(_) => of_nodes(&[name]),
            }),
            Self::Nodes(names) => Some(of_nodes(names)),
            Self::Network(network) => Some(vec![Value::Network(*network)]),
        }
    }
}

fn among(column: &'static str, values: impl IntoIterator<Item = Value>) -> Filter {
    Filter::In {
        column,
        negated: false,
        values: values.into_iter().collect(),
    }
}

fn equal(column: &'static str, value: Value) -> Filter {
    Filter::Compare {
        column,
        operator: Operator::Equal,
        value,
    }
}
