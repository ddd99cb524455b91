//! Reading the headers of a packet that is in trouble. They lie in plain memory, which no BTF type describes: this is
//! the one place that needs `bpf_probe_read_kernel`, which a kernel in `lockdown=confidentiality` forbids.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use holdfast_agent_ebpf::peer::PeerKey;

use crate::kernel::Packet;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const IPPROTO_TCP: u8 = 6;

/// Which way a packet went.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    In,
    Out,
}

/// The peer of a TCP segment that went this way; `None` if it is none.
#[inline(always)]
pub(crate) fn peer(packet: Packet, netns: u32, way: Way) -> Option<PeerKey> {
    let header = packet.network_header();
    let mut first = [0_u32; 10];
    // IPv6's fixed header is 40 bytes; with IPv4 what follows is read too, which is in the same buffer.
    if !read(header, &mut first) {
        return None;
    }
    let version_and_length = first[0].to_ne_bytes()[0];
    let mut key = PeerKey {
        address: [0; 4],
        netns,
        port: 0,
        family: AF_INET,
    };
    let transport = match version_and_length >> 4 {
        4 => {
            if first[2].to_ne_bytes()[1] != IPPROTO_TCP {
                return None;
            }
            key.address[0] = if way == Way::In { first[3] } else { first[4] };
            header + u64::from(version_and_length & 15) * 4
        }
        6 => {
            if first[1].to_ne_bytes()[2] != IPPROTO_TCP {
                return None;
            }
            key.family = AF_INET6;
            key.address = if way == Way::In {
                [first[2], first[3], first[4], first[5]]
            } else {
                [first[6], first[7], first[8], first[9]]
            };
            header + 40
        }
        _ => return None,
    };
    let mut tcp = [0_u32; 4];
    if !read(transport, &mut tcp) {
        return None;
    }
    let [_, _, port_high, port_low] = tcp[0].to_ne_bytes();
    const SYN_AND_ACK: u8 = 0x12;
    const SYN: u8 = 0x02;
    if tcp[3].to_ne_bytes()[1] & SYN_AND_ACK == SYN {
        key.port = u16::from_be_bytes([port_high, port_low]);
    }
    Some(key)
}

#[inline(always)]
fn read<const WORDS: usize>(from: u64, to: &mut [u32; WORDS]) -> bool {
    // SAFETY: the helper writes as many bytes as `to` has, and checks the address that it reads from.
    let result = unsafe {
        bpf_probe_read_kernel(
            to.as_mut_ptr().cast(),
            size_of::<[u32; WORDS]>() as u32,
            from as *const _,
        )
    };
    result == 0
}
