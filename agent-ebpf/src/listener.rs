//! Who listens on a port: what the programs remember, and the agent completes for listeners that are older than it.

use crate::limits::COMM_BYTES;

/// Where one listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ListenerKey {
    /// Inode of the network namespace.
    pub netns: u32,
    /// The address that the listener is bound to, folded; zero: any.
    pub address: u32,
    pub port: u16,
    /// AF_INET (2) or AF_INET6 (10).
    pub family: u16,
}

impl ListenerKey {
    /// The key of a listener that is bound to an address, given as its words; IPv4 in the first.
    #[inline(always)]
    pub const fn new(netns: u32, family: u16, address: [u32; 4], port: u16) -> Self {
        let [a, b, c, d] = address;
        // Rotated, or ::1:1 would be ::. Two that fold to the same word share a place, as with SO_REUSEPORT.
        let address = a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d.rotate_left(24);
        Self {
            netns,
            address,
            port,
            family,
        }
    }
}

const _: () = assert!(size_of::<ListenerKey>() == 12);

#[cfg(not(target_arch = "bpf"))]
impl ListenerKey {
    /// As it lies in memory.
    pub const fn words(&self) -> [u32; 3] {
        let [a, b] = self.port.to_ne_bytes();
        let [c, d] = self.family.to_ne_bytes();
        [self.netns, self.address, u32::from_ne_bytes([a, b, c, d])]
    }
}

#[cfg(not(target_arch = "bpf"))]
impl Listener {
    /// As it lies in memory.
    pub fn words(&self) -> [u64; 4] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.socket.to_ne_bytes());
        bytes[8..24].copy_from_slice(&self.comm);
        bytes[24..28].copy_from_slice(&self.pid.to_ne_bytes());
        bytes[28..].copy_from_slice(&self.attribution.to_ne_bytes());
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }

    /// From its words in memory.
    pub fn from_words(words: [u64; 4]) -> Self {
        let mut comm = [0; COMM_BYTES];
        comm[..8].copy_from_slice(&words[1].to_ne_bytes());
        comm[8..].copy_from_slice(&words[2].to_ne_bytes());
        let [a, b, c, d, e, f, g, h] = words[3].to_ne_bytes();
        Self {
            socket: words[0],
            comm,
            pid: u32::from_ne_bytes([a, b, c, d]),
            attribution: u32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// The owner of the listener there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Listener {
    /// The listening socket: with SO_REUSEPORT several share a port, and only the one that is remembered may
    /// take the entry away.
    pub socket: u64,
    /// The command name, zero-padded.
    pub comm: [u8; COMM_BYTES],
    /// The thread group id; zero where nobody knows yet.
    pub pid: u32,
    /// See [`crate::event::attribution`]: `LISTENER`, or `SNAPSHOT` where the owner was read from /proc.
    pub attribution: u32,
}

const _: () = assert!(size_of::<Listener>() == 32);
