//! Looks at network namespaces and at trouble with peers, checked.

use holdfast_proto::v1::{Namespace, NamespaceRows, Peer, PeerRows};

use super::{Malformed, length, observed_at};

/// Addresses of one namespace: an agent tells 256.
const MAX_ADDRESSES: usize = 1024;

const ADDRESS_BYTES: usize = 16;

/// A look at the network namespaces of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespaces {
    /// When, by the agent's clock.
    pub observed_at_ns: i64,
    pub namespaces: Vec<Namespace>,
}

/// Trouble with peers in one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Peers {
    pub began_at_ns: i64,
    pub ended_at_ns: i64,
    pub peers: Vec<Peer>,
}

impl Namespaces {
    /// Memory that the rows occupy, give or take the allocator's part.
    pub fn heap_bytes(&self) -> usize {
        let addresses: usize = self
            .namespaces
            .iter()
            .map(|namespace| namespace.addresses.len())
            .sum();
        self.namespaces.len() * size_of::<Namespace>()
            + addresses * (size_of::<bytes::Bytes>() + ADDRESS_BYTES)
    }
}

impl Peers {
    /// Memory that the rows occupy, give or take the allocator's part.
    pub fn heap_bytes(&self) -> usize {
        self.peers.len() * (size_of::<Peer>() + ADDRESS_BYTES)
    }
}

pub(super) fn namespaces(look: NamespaceRows, rows: usize, now_ns: i64) -> Result<Namespaces, Malformed> {
    if look.namespaces.len() != rows {
        return Err(length("namespaces", look.namespaces.len(), rows));
    }
    for (index, namespace) in look.namespaces.iter().enumerate() {
        let fault = |fault| Malformed::Entry {
            dictionary: "namespaces",
            index,
            fault,
        };
        if namespace.addresses.len() > MAX_ADDRESSES {
            return Err(fault("has more than 1024 addresses"));
        }
        if namespace
            .addresses
            .iter()
            .any(|address| address.len() != ADDRESS_BYTES)
        {
            return Err(fault("has an address that is not 16 bytes long"));
        }
    }
    Ok(Namespaces {
        observed_at_ns: observed_at(look.observed_at_ns, now_ns)?,
        namespaces: look.namespaces,
    })
}

pub(super) fn peers(look: PeerRows, rows: usize, now_ns: i64) -> Result<Peers, Malformed> {
    if look.peers.len() != rows {
        return Err(length("peers", look.peers.len(), rows));
    }
    for (index, peer) in look.peers.iter().enumerate() {
        let fault = |fault| Malformed::Entry {
            dictionary: "peers",
            index,
            fault,
        };
        if peer.address.len() != ADDRESS_BYTES {
            return Err(fault("has an address that is not 16 bytes long"));
        }
        if peer.port > u32::from(u16::MAX) {
            return Err(fault("has a port above 65535"));
        }
    }
    let (began_at_ns, ended_at_ns) = (
        observed_at(look.began_ns, now_ns)?,
        observed_at(look.ended_ns, now_ns)?,
    );
    if began_at_ns > ended_at_ns {
        return Err(Malformed::Time {
            row: 0,
            fault: "not from the earlier to the later",
        });
    }
    Ok(Peers {
        began_at_ns,
        ended_at_ns,
        peers: look.peers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: i64 = 1_772_366_400_000_000_000;

    fn namespace(change: fn(&mut Namespace)) -> Result<Namespaces, Malformed> {
        let mut namespace = Namespace {
            netns: 7,
            addresses: vec![vec![1; 16].into()],
            ..Namespace::default()
        };
        change(&mut namespace);
        let look = NamespaceRows {
            observed_at_ns: NOW_NS as u64,
            namespaces: vec![namespace],
        };
        namespaces(look, 1, NOW_NS)
    }

    fn trouble(change: fn(&mut PeerRows)) -> Result<Peers, Malformed> {
        let mut look = PeerRows {
            began_ns: NOW_NS as u64 - 1,
            ended_ns: NOW_NS as u64,
            peers: vec![Peer {
                address: vec![1; 16].into(),
                port: 80,
                filtered: 1,
                ..Peer::default()
            }],
        };
        change(&mut look);
        peers(look, 1, NOW_NS)
    }

    #[test]
    fn namespaces_have_addresses_of_one_length_and_not_too_many() {
        assert!(namespace(|_| {}).is_ok());
        assert!(namespace(|namespace| namespace.addresses.push(vec![1; 4].into())).is_err());
        assert!(namespace(|namespace| namespace.addresses = vec![vec![1; 16].into(); 1025]).is_err());
    }

    #[test]
    fn trouble_with_peers_is_checked_like_rows() {
        assert!(trouble(|_| {}).is_ok());
        assert!(trouble(|look| look.peers[0].port = 65_536).is_err());
        assert!(trouble(|look| look.peers[0].address = vec![].into()).is_err());
        assert!(trouble(|look| look.peers.clear()).is_err());
        assert!(trouble(|look| look.began_ns += 2).is_err());
        assert!(trouble(|look| look.ended_ns = u64::MAX).is_err());
    }
}
