//! Who an agent says that it is, checked.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use holdfast_proto::PROTOCOL;
use holdfast_proto::v1::Hello;

use super::registry::NoSeat;

/// Bytes of a name: an agent's id, a node, a label, a version.
const MAX_NAME_BYTES: usize = 256;

/// Addresses of one node.
const MAX_ADDRESSES: usize = 1024;

/// Labels of one node, and features that one kernel can lack.
const MAX_ENTRIES: usize = 64;

/// Ranges of batches of earlier starts, and such starts: an agent speaks for 64 at most.
const MAX_UNSETTLED: usize = 4096;

/// The other end of a stream. Its id, node and epoch go into every row that it delivers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub id: String,
    pub epoch: u64,
    pub node: String,
    pub labels: BTreeMap<String, String>,
    pub version: String,
    pub boot_id: String,
    pub kernel: String,
    pub architecture: String,
    pub observed_netns: String,
    pub missing_features: Vec<String>,
    /// Of its interfaces, in the text form of IPv6: IPv4 is ::ffff:a.b.c.d.
    pub addresses: Vec<String>,
}

/// Why an agent is not welcome. The text goes back to it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwelcome {
    #[error("the agent speaks protocol {theirs} and this collector {PROTOCOL}: upgrade the {upgrade}")]
    Protocol { theirs: u32, upgrade: &'static str },
    #[error("the first message must be Hello")]
    NoHello,
    #[error(transparent)]
    NoSeat(NoSeat),
    #[error("{field} of the agent {fault}")]
    Field {
        field: &'static str,
        fault: &'static str,
    },
}

impl TryFrom<Hello> for Agent {
    type Error = Unwelcome;

    fn try_from(hello: Hello) -> Result<Self, Unwelcome> {
        if hello.protocol != PROTOCOL {
            let upgrade = if hello.protocol < PROTOCOL {
                "agent"
            } else {
                "collector"
            };
            return Err(Unwelcome::Protocol {
                theirs: hello.protocol,
                upgrade,
            });
        }
        if hello.epoch == 0 {
            return Err(Unwelcome::Field {
                field: "the epoch",
                fault: "is zero",
            });
        }
        if hello.labels.len() > MAX_ENTRIES || hello.missing_features.len() > MAX_ENTRIES {
            let fault = "have more than 64 entries";
            return Err(Unwelcome::Field {
                field: "the labels or missing features",
                fault,
            });
        }
        if hello.unsettled.len() > MAX_UNSETTLED || hello.predecessors.len() > MAX_UNSETTLED {
            return Err(Unwelcome::Field {
                field: "the unsettled batches or predecessors",
                fault: "are more than any agent has",
            });
        }
        let label_texts = hello.labels.iter().flat_map(|(key, value)| [key, value]);
        for text in label_texts.chain(&hello.missing_features) {
            check_name("a label or feature", text)?;
        }
        for (field, text) in [
            ("the version", &hello.version),
            ("the boot id", &hello.boot_id),
            ("the kernel", &hello.kernel),
            ("the architecture", &hello.architecture),
            ("the observed network namespace", &hello.observed_netns),
            ("the id", &hello.agent_id),
            ("the node", &hello.node),
        ] {
            check_name(field, text)?;
        }
        for (field, text) in [("the id", &hello.agent_id), ("the node", &hello.node)] {
            if text.is_empty() {
                return Err(Unwelcome::Field {
                    field,
                    fault: "is empty",
                });
            }
        }
        Ok(Self {
            id: hello.agent_id,
            epoch: hello.epoch,
            node: hello.node,
            labels: hello.labels.into_iter().collect(),
            version: hello.version,
            boot_id: hello.boot_id,
            kernel: hello.kernel,
            architecture: hello.architecture,
            observed_netns: hello.observed_netns,
            missing_features: hello.missing_features,
            addresses: addresses(&hello.addresses)?,
        })
    }
}

fn addresses(addresses: &[bytes::Bytes]) -> Result<Vec<String>, Unwelcome> {
    let field = "the addresses";
    if addresses.len() > MAX_ADDRESSES {
        let fault = "have more than 1024 entries";
        return Err(Unwelcome::Field { field, fault });
    }
    let text = |address: &bytes::Bytes| {
        let octets = <[u8; 16]>::try_from(&address[..]).map_err(|_| Unwelcome::Field {
            field,
            fault: "have one that is not of 16 bytes",
        })?;
        Ok(Ipv6Addr::from(octets).to_string())
    };
    addresses.iter().map(text).collect()
}

fn check_name(field: &'static str, text: &str) -> Result<(), Unwelcome> {
    let fault = match text {
        text if text.len() > MAX_NAME_BYTES => "has more than 256 bytes",
        text if text.chars().any(char::is_control) => "has a control character",
        _ => return Ok(()),
    };
    Err(Unwelcome::Field { field, fault })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL,
            agent_id: "a1".to_owned(),
            epoch: 7,
            node: "web-1".to_owned(),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            ..Hello::default()
        }
    }

    fn check(hello: Hello, expected: &str) {
        assert_eq!(Agent::try_from(hello).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_fitting_hello_is_welcome() {
        let agent = Agent::try_from(hello()).unwrap();
        assert_eq!(
            (agent.id.as_str(), agent.epoch, agent.node.as_str()),
            ("a1", 7, "web-1")
        );
        assert_eq!(agent.labels["role"], "web");
    }

    #[test]
    fn another_protocol_says_which_side_to_upgrade() {
        let old = Hello {
            protocol: PROTOCOL - 1,
            ..hello()
        };
        check(
            old,
            "the agent speaks protocol 0 and this collector 1: upgrade the agent",
        );
        let new = Hello {
            protocol: PROTOCOL + 1,
            ..hello()
        };
        check(
            new,
            "the agent speaks protocol 2 and this collector 1: upgrade the collector",
        );
    }

    #[test]
    fn names_are_bounded_and_printable() {
        check(
            Hello {
                agent_id: String::new(),
                ..hello()
            },
            "the id of the agent is empty",
        );
        check(Hello { epoch: 0, ..hello() }, "the epoch of the agent is zero");
        check(
            Hello {
                node: "n".repeat(257),
                ..hello()
            },
            "the node of the agent has more than 256 bytes",
        );
        check(
            Hello {
                kernel: "6.1\u{1b}[2J".to_owned(),
                ..hello()
            },
            "the kernel of the agent has a control character",
        );
        let labels = (0..65).map(|n| (n.to_string(), String::new())).collect();
        check(
            Hello { labels, ..hello() },
            "the labels or missing features of the agent have more than 64 entries",
        );
    }
}
