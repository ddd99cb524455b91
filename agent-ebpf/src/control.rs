//! What the agent may change while the programs run: which connections are followed, which are handed over, and whose
//! transitions are streamed. The programs look at it where it is cheap: at an opening and at a CLOSE; and once at each
//! other transition, whether there is anything to look at.

use crate::{event::ConnectionRecord, limits::COMM_BYTES};

/// Values of one kind in a filter. The programs compare with each of them.
pub const FILTER_VALUES: usize = 16;

/// Address families (include/linux/socket.h).
pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

/// `Control::largest_followed` when all connections are followed.
pub const ALL: u32 = u32::MAX;

/// What the programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Control {
    pub filter: Filter,
    /// A connection is followed if a random number of 32 bits is at most this.
    pub largest_followed: u32,
    /// Zero: the filter has nothing in it, and is not looked at.
    pub is_filtering: u32,
    /// Of what `filter` lets pass, whose transitions are streamed.
    pub streamed: Filter,
    /// Zero: nobody's.
    pub is_streaming: u32,
    /// Zero: `streamed` has nothing in it, and is not looked at: everybody's.
    pub is_selecting: u32,
}

/// Which connections are handed over: those that fit every kind of which there are values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Filter {
    pub cgroups: [u64; FILTER_VALUES],
    /// Command names, zero-padded, as two words each.
    pub comms: [[u64; COMM_BYTES / 8]; FILTER_VALUES],
    pub networks: [Network; FILTER_VALUES],
    /// Thread group ids.
    pub pids: [u32; FILTER_VALUES],
    /// Inodes of network namespaces.
    pub namespaces: [u32; FILTER_VALUES],
    pub ports: [u16; FILTER_VALUES],
    pub cgroup: Choice,
    /// Of `comms` and `pids` together: a process fits by either.
    pub process: Choice,
    pub network: Choice,
    pub port: Choice,
    pub namespace: Choice,
    /// So that there is no padding.
    pub reserved: [u8; 6],
}

/// How the values of a kind are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Choice {
    /// Zero: every connection fits.
    pub is_set: u8,
    /// Not zero: a connection fits if it has none of the values.
    pub is_negated: u8,
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Network {
    /// As [`ConnectionRecord::local_address`].
    pub address: [u32; 4],
    pub mask: [u32; 4],
    /// [`AF_INET`] or [`AF_INET6`]; zero: no network.
    pub family: u32,
}

impl Network {
    pub const NONE: Self = Self {
        address: [0; 4],
        mask: [0; 4],
        family: 0,
    };

    #[inline(always)]
    fn has(&self, address: &[u32; 4]) -> bool {
        address[0] & self.mask[0] == self.address[0]
            && address[1] & self.mask[1] == self.address[1]
            && address[2] & self.mask[2] == self.address[2]
            && address[3] & self.mask[3] == self.address[3]
    }

    /// Whether a network of IPv4 has an address that an IPv6 socket has for one of IPv4: ::ffff:a.b.c.d.
    #[inline(always)]
    fn has_mapped(&self, address: &[u32; 4]) -> bool {
        address[3] & self.mask[0] == self.address[0]
            && address[2] == 0xffff_u32.to_be()
            && address[1] == 0
            && address[0] == 0
    }
}

impl Choice {
    #[inline(always)]
    fn allows(self, is_found: bool) -> bool {
        is_found != (self.is_negated != 0)
    }
}

impl Filter {
    /// Everything passes.
    pub const NONE: Self = Self {
        cgroups: [0; FILTER_VALUES],
        comms: [[0; COMM_BYTES / 8]; FILTER_VALUES],
        networks: [Network::NONE; FILTER_VALUES],
        pids: [0; FILTER_VALUES],
        namespaces: [0; FILTER_VALUES],
        ports: [0; FILTER_VALUES],
        cgroup: Choice {
            is_set: 0,
            is_negated: 0,
        },
        process: Choice {
            is_set: 0,
            is_negated: 0,
        },
        network: Choice {
            is_set: 0,
            is_negated: 0,
        },
        port: Choice {
            is_set: 0,
            is_negated: 0,
        },
        namespace: Choice {
            is_set: 0,
            is_negated: 0,
        },
        reserved: [0; 6],
    };

    /// Whether a connection is handed over. Ports and addresses are those of either end.
    #[inline(always)]
    pub fn passes(&self, record: &ConnectionRecord) -> bool {
        (self.port.is_set == 0 || self.port.allows(self.has_port(record)))
            && (self.network.is_set == 0 || self.network.allows(self.has_network(record)))
            && (self.cgroup.is_set == 0 || self.cgroup.allows(self.has_cgroup(record)))
            && (self.process.is_set == 0 || self.process.allows(self.has_process(record)))
            && (self.namespace.is_set == 0 || self.namespace.allows(self.has_namespace(record)))
    }

    // A place without a value holds zero, which no port, process, cgroup or namespace is. The loops are over constants, and end
    // where a value fits: what is added up instead the verifier follows in all its combinations. Functions of their
    // own, so that it is done with one before it begins the next.

    #[cfg_attr(target_arch = "bpf", inline(never))]
    fn has_port(&self, record: &ConnectionRecord) -> bool {
        for port in &self.ports {
            if *port != 0 && (*port == record.local_port || *port == record.remote_port) {
                return true;
            }
        }
        false
    }

    #[cfg_attr(target_arch = "bpf", inline(never))]
    fn has_network(&self, record: &ConnectionRecord) -> bool {
        for network in &self.networks {
            if network.family == record.family as u32 {
                if network.has(&record.local_address) || network.has(&record.remote_address) {
                    return true;
                }
            } else if network.family == AF_INET
                && (network.has_mapped(&record.local_address) || network.has_mapped(&record.remote_address))
            {
                return true;
            }
        }
        false
    }

    #[cfg_attr(target_arch = "bpf", inline(never))]
    fn has_cgroup(&self, record: &ConnectionRecord) -> bool {
        for cgroup in &self.cgroups {
            if *cgroup != 0 && *cgroup == record.cgroup_id {
                return true;
            }
        }
        false
    }

    #[cfg_attr(target_arch = "bpf", inline(never))]
    fn has_namespace(&self, record: &ConnectionRecord) -> bool {
        for namespace in &self.namespaces {
            if *namespace != 0 && *namespace == record.netns {
                return true;
            }
        }
        false
    }

    #[cfg_attr(target_arch = "bpf", inline(never))]
    fn has_process(&self, record: &ConnectionRecord) -> bool {
        let comm = words(&record.comm);
        for pid in &self.pids {
            if *pid != 0 && *pid == record.pid {
                return true;
            }
        }
        for wanted in &self.comms {
            if wanted[0] != 0 && wanted[0] == comm[0] && wanted[1] == comm[1] {
                return true;
            }
        }
        false
    }
}

/// A command name as a filter has it.
#[inline(always)]
pub const fn words(comm: &[u8; COMM_BYTES]) -> [u64; COMM_BYTES / 8] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *comm;
    [
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
    ]
}

impl Control {
    /// All connections are followed, and handed over, and no transition is streamed.
    pub const NONE: Self = Self {
        filter: Filter::NONE,
        largest_followed: ALL,
        is_filtering: 0,
        streamed: Filter::NONE,
        is_streaming: 0,
        is_selecting: 0,
    };
}

/// 64-bit words of a [`Control`].
pub const CONTROL_WORDS: usize = size_of::<Control>() / 8;
const _: () = assert!(size_of::<Control>().is_multiple_of(8));

#[cfg(not(target_arch = "bpf"))]
impl Control {
    /// As it lies in memory.
    pub fn to_words(&self) -> [u64; CONTROL_WORDS] {
        let mut bytes = Vec::with_capacity(size_of::<Self>());
        self.filter.write(&mut bytes);
        bytes.extend(self.largest_followed.to_ne_bytes());
        bytes.extend(self.is_filtering.to_ne_bytes());
        self.streamed.write(&mut bytes);
        bytes.extend(self.is_streaming.to_ne_bytes());
        bytes.extend(self.is_selecting.to_ne_bytes());
        let mut words = [0; CONTROL_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Filter {
    fn write(&self, bytes: &mut Vec<u8>) {
        self.cgroups
            .iter()
            .chain(self.comms.iter().flatten())
            .for_each(|word| bytes.extend(word.to_ne_bytes()));
        for network in &self.networks {
            let words = network
                .address
                .iter()
                .chain(&network.mask)
                .chain([&network.family]);
            words.for_each(|word| bytes.extend(word.to_ne_bytes()));
        }
        let words = self.pids.iter().chain(&self.namespaces);
        words.for_each(|word| bytes.extend(word.to_ne_bytes()));
        self.ports
            .iter()
            .for_each(|port| bytes.extend(port.to_ne_bytes()));
        for choice in [self.cgroup, self.process, self.network, self.port, self.namespace] {
            bytes.extend([choice.is_set, choice.is_negated]);
        }
        bytes.extend(self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ConnectionRecord {
        let mut comm = [0; COMM_BYTES];
        comm[..5].copy_from_slice(b"nginx");
        ConnectionRecord {
            family: 2,
            local_address: [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0],
            remote_address: [u32::from_ne_bytes([192, 168, 7, 9]), 0, 0, 0],
            local_port: 40_000,
            remote_port: 5_432,
            pid: 77,
            cgroup_id: 9,
            comm,
            ..ConnectionRecord::ZERO
        }
    }

    fn check(expected: bool, set: impl Fn(&mut Filter)) {
        let mut filter = Filter::NONE;
        set(&mut filter);
        assert_eq!(filter.passes(&record()), expected, "{filter:?}");
    }

    const ONE_OF: Choice = Choice {
        is_set: 1,
        is_negated: 0,
    };
    const NONE_OF: Choice = Choice {
        is_set: 1,
        is_negated: 1,
    };

    #[test]
    fn a_filter_without_values_passes_everything() {
        check(true, |_| {});
    }

    #[test]
    fn a_port_of_either_end_counts() {
        for (port, choice, expected) in [
            (5_432, ONE_OF, true),
            (40_000, ONE_OF, true),
            (80, ONE_OF, false),
            (5_432, NONE_OF, false),
            (80, NONE_OF, true),
        ] {
            check(expected, |filter| {
                filter.ports[3] = port;
                filter.port = choice;
            });
        }
    }

    #[test]
    fn an_address_is_in_a_network_of_its_family() {
        for (address, mask, family, expected) in [
            ([192, 168, 0, 0], [255, 255, 0, 0], 2, true),
            ([192, 168, 7, 8], [255, 255, 255, 255], 2, false),
            ([0, 0, 0, 0], [0, 0, 0, 0], 2, true),
            ([0, 0, 0, 0], [0, 0, 0, 0], 10, false),
        ] {
            check(expected, |filter| {
                filter.networks[15] = Network {
                    address: [u32::from_ne_bytes(address), 0, 0, 0],
                    mask: [u32::from_ne_bytes(mask), 0, 0, 0],
                    family,
                };
                filter.network = ONE_OF;
            });
        }
    }

    #[test]
    fn a_network_of_ipv4_has_its_addresses_on_ipv6_sockets_too() {
        let mapped = |octets| [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(octets)];
        let passes = |network: Network, remote_address| {
            let mut filter = Filter::NONE;
            filter.networks[15] = network;
            filter.network = ONE_OF;
            filter.passes(&ConnectionRecord {
                family: AF_INET6 as u8,
                local_address: [u32::from_ne_bytes([10, 0, 0, 1]), 0, 0, 0],
                remote_address,
                ..record()
            })
        };
        let ten = Network {
            address: [u32::from_ne_bytes([10, 0, 0, 0]), 0, 0, 0],
            mask: [u32::from_ne_bytes([255, 0, 0, 0]), 0, 0, 0],
            family: AF_INET,
        };
        let everything = Network {
            family: AF_INET6,
            ..Network::NONE
        };
        assert!(passes(ten, mapped([10, 7, 7, 7])));
        assert!(!passes(ten, mapped([11, 7, 7, 7])));
        assert!(!passes(ten, [0, 0, 0, u32::from_ne_bytes([10, 7, 7, 7])]));
        assert!(passes(everything, mapped([10, 7, 7, 7])));
    }

    #[test]
    fn a_process_fits_by_its_name_or_its_id_and_every_kind_has_to_fit() {
        let mut comm = [0; COMM_BYTES];
        comm[..5].copy_from_slice(b"nginx");
        check(true, |filter| {
            filter.comms[0] = words(&comm);
            filter.pids[0] = 1;
            filter.process = ONE_OF;
        });
        check(true, |filter| {
            filter.pids[15] = 77;
            filter.process = ONE_OF;
        });
        check(false, |filter| {
            filter.pids[15] = 77;
            filter.process = ONE_OF;
            filter.cgroups[0] = 8;
            filter.cgroup = ONE_OF;
        });
    }

    #[test]
    fn a_namespace_is_one_of_those_that_are_wanted() {
        for (namespace, choice, expected) in [(4, ONE_OF, true), (5, ONE_OF, false), (4, NONE_OF, false)] {
            let mut filter = Filter::NONE;
            filter.namespaces[7] = namespace;
            filter.namespace = choice;
            let record = ConnectionRecord { netns: 4, ..record() };
            assert_eq!(filter.passes(&record), expected, "{namespace} {choice:?}");
        }
    }

    #[test]
    fn the_words_are_what_lies_in_memory() {
        use std::mem::offset_of;

        let control = Control {
            largest_followed: 7,
            is_filtering: 1,
            filter: Filter {
                port: NONE_OF,
                ports: [3; FILTER_VALUES],
                ..Filter::NONE
            },
            streamed: Filter {
                namespace: ONE_OF,
                namespaces: [5; FILTER_VALUES],
                ..Filter::NONE
            },
            is_streaming: 8,
            is_selecting: 9,
        };
        let words = control.to_words();
        let ports = offset_of!(Control, filter) + offset_of!(Filter, ports);
        assert_eq!(words[ports / 8], 0x0003_0003_0003_0003);
        let namespaces = offset_of!(Control, streamed) + offset_of!(Filter, namespaces);
        assert_eq!(words[namespaces / 8], 0x0000_0005_0000_0005);
        let chosen = offset_of!(Control, streamed) + offset_of!(Filter, namespace);
        assert_eq!(words[chosen / 8].to_ne_bytes()[chosen % 8..][..2], [1, 0]);
        for (place, value) in [
            (offset_of!(Control, largest_followed), 7_u32),
            (offset_of!(Control, is_filtering), 1),
            (offset_of!(Control, is_streaming), 8),
            (offset_of!(Control, is_selecting), 9),
        ] {
            assert_eq!(
                words[place / 8].to_ne_bytes()[place % 8..][..4],
                value.to_ne_bytes()
            );
        }
    }
}
