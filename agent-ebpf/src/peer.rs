//! Trouble with peers, counted in the kernel by network namespace and address.

/// What is counted. A healthy connection counts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Trouble {
    /// Resets that were sent to the peer. With a port: because a SYN asked for a port that nobody listens on.
    ResetsSent,
    /// Resets that arrived and were believed.
    ResetsReceived,
    /// Segments of established connections that were sent again.
    Retransmits,
    /// SYNs that were sent again.
    SynRetransmits,
    /// SYN-ACKs that were sent again.
    SynAckRetransmits,
    /// TCP segments from or to the peer that a filter of this namespace dropped: netfilter, tc, XDP or a BPF program
    /// of a socket or cgroup. With a port: SYNs.
    Filtered,
}

/// How many kinds there are.
pub const TROUBLES: usize = 6;

/// Where it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PeerKey {
    /// The peer's, four words as they lie in memory, IPv4 in the first one.
    pub address: [u32; 4],
    /// Inode of the network namespace.
    pub netns: u32,
    /// The port that a SYN was for, where it was about a SYN that found no socket; else zero, so that the ports of clients
    /// do not fill the map.
    pub port: u16,
    /// AF_INET (2) or AF_INET6 (10).
    pub family: u16,
}

const _: () = assert!(size_of::<PeerKey>() == 24);

impl PeerKey {
    /// As the map holds it.
    #[cfg(not(target_arch = "bpf"))]
    pub fn words(self) -> [u32; 6] {
        let [port_low, port_high] = self.port.to_ne_bytes();
        let [family_low, family_high] = self.family.to_ne_bytes();
        let [a, b, c, d] = self.address;
        let last = u32::from_ne_bytes([port_low, port_high, family_low, family_high]);
        [a, b, c, d, self.netns, last]
    }

    /// From words as the map holds them.
    #[cfg(not(target_arch = "bpf"))]
    pub fn from_words(words: [u32; 6]) -> Self {
        let [a, b, c, d, netns, last] = words;
        let [port_low, port_high, family_low, family_high] = last.to_ne_bytes();
        Self {
            address: [a, b, c, d],
            netns,
            port: u16::from_ne_bytes([port_low, port_high]),
            family: u16::from_ne_bytes([family_low, family_high]),
        }
    }
}

/// Reasons for which the kernel drops a packet that are a filter's, by the kernel's names (enum skb_drop_reason,
/// include/net/dropreason-core.h; since 5.17). Their numbers differ between kernels and are looked up in its BTF.
pub const FILTER_REASONS: [&str; 6] = [
    "SKB_DROP_REASON_NETFILTER_DROP",
    "SKB_DROP_REASON_TC_INGRESS",
    "SKB_DROP_REASON_TC_EGRESS",
    "SKB_DROP_REASON_XDP",
    "SKB_DROP_REASON_SOCKET_FILTER",
    "SKB_DROP_REASON_BPF_CGROUP_EGRESS",
];

/// Stands for a reason that this kernel does not know: none has this number.
pub const NO_REASON: u32 = u32::MAX;
