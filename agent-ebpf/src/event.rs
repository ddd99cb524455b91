//! What travels from the programs to the agent: through the ring buffer, and through the survey's file.

use crate::limits::{COMM_BYTES, PATH_STEPS};

/// TCP states by the kernel's numbers (include/net/tcp_states.h; the same since 2.6).
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;
}

/// Values of `ConnectionRecord::role`.
pub mod role {
    pub const ACTIVE: u8 = 1;
    pub const PASSIVE: u8 = 2;
}

/// Values of `ConnectionRecord::attribution`; the protocol's numbers.
pub mod attribution {
    pub const UNKNOWN: u8 = 0;
    pub const EXACT: u8 = 1;
    pub const LISTENER: u8 = 2;
    pub const SNAPSHOT: u8 = 3;
}

/// Bits of `ConnectionRecord::flags`.
pub mod flag {
    /// The first record of its connection.
    pub const FIRST: u8 = 1;
    /// The last record of its connection.
    pub const FINAL: u8 = 2;
    /// The path had more steps than fit; the last place holds the last one.
    pub const PATH_TRUNCATED: u8 = 4;
    /// The peer's FIN arrived (`SOCK_DONE`), and `bytes_received` counts it.
    pub const FIN_RECEIVED: u8 = 8;
    /// The handshake succeeded.
    pub const ESTABLISHED: u8 = 16;
    /// It was there before the programs were, or its opening was missed: `opened_ns` is when it was found, its path
    /// begins then, and its role is a conclusion from the listeners of its port.
    pub const SEEDED: u8 = 32;
    /// A reset from the peer arrived.
    pub const RESET_RECEIVED: u8 = 64;
    /// It ended before a SYN left; `error` is what connect() returned, or zero where that is not known. A path of CLOSE
    /// alone: it did not even get to SYN_SENT.
    pub const UNSENT: u8 = 128;
}

/// Values of `ConnectionRecord::reset_sent`.
pub mod reset {
    /// A reset was sent while the socket was open.
    pub const BEFORE: u8 = 1;
    /// A reset ended it: it leaves with CLOSE, or right after it.
    pub const LAST: u8 = 2;
}

/// One step of a path: the state in the upper 4 bits, nanoseconds since the opening in the lower 60 (36 years).
pub const fn step(state: u8, offset_ns: u64) -> u64 {
    ((state as u64) << 60) | (offset_ns & ((1 << 60) - 1))
}

/// The state of a step.
pub const fn step_state(step: u64) -> u8 {
    (step >> 60) as u8
}

/// The offset of a step, in nanoseconds since the opening.
pub const fn step_offset_ns(step: u64) -> u64 {
    step & ((1 << 60) - 1)
}

/// One end of one TCP connection, as the kernel saw it, with its whole history.
///
/// Byte order is the machine's, except for the addresses. Larger members come first: there is no padding, so the
/// ring buffer never carries stale kernel memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectionRecord {
    /// `bpf_get_socket_cookie`: names a socket on one machine, not a connection (a socket can be reused).
    pub cookie: u64,
    /// CLOCK_BOOTTIME, in nanoseconds.
    pub opened_ns: u64,
    /// See [`step`]; the first `path_len` are valid.
    pub path: [u64; PATH_STEPS],
    /// The id of the socket's cgroup (v2); zero where the kernel does not say.
    pub cgroup_id: u64,
    /// Payload bytes handed to the network, retransmissions included.
    pub bytes_sent: u64,
    /// Of these, retransmissions.
    pub bytes_retransmitted: u64,
    /// Bytes of sequence space that arrived in order; one more than the payload with [`flag::FIN_RECEIVED`].
    pub bytes_received: u64,
    /// Four words as they lie in memory, which is network order; IPv4 in the first one.
    pub local_address: [u32; 4],
    pub remote_address: [u32; 4],
    /// The command name, zero-padded.
    pub comm: [u8; COMM_BYTES],
    /// Inode of the network namespace.
    pub netns: u32,
    /// The thread group id; zero where unknown.
    pub pid: u32,
    pub segments_sent: u32,
    pub segments_received: u32,
    /// All segments, SYNs included.
    pub retransmits: u32,
    /// Zero where no round trip was measured.
    pub srtt_us: u32,
    pub local_port: u16,
    pub remote_port: u16,
    /// `sk_err`: an errno, or zero. With [`flag::UNSENT`] what connect() returned.
    pub error: u16,
    /// AF_INET (2) or AF_INET6 (10).
    pub family: u8,
    /// See [`role`].
    pub role: u8,
    /// See [`attribution`].
    pub attribution: u8,
    /// See [`flag`].
    pub flags: u8,
    pub path_len: u8,
    /// Retransmissions before the handshake ended.
    pub syn_retransmits: u8,
    /// Where the kernel side counts what happens in the network namespace; means nothing outside it.
    pub counter_slot: u32,
    /// Of a passive end: from the end of its handshake until accept() returned it, in microseconds, and one more; zero
    /// where that is not known.
    pub accept_wait: u32,
    /// Which steps of the path were streamed as transitions of their own: a bit each, the lowest for the first.
    pub streamed: u8,
    /// The state before the last step.
    pub before: u8,
    /// See [`reset`]; zero: none that the kernel side knows of. What close() and disconnect send before the peer has
    /// acknowledged a FIN comes after CLOSE, when the record is gone: that can be told from `before`.
    pub reset_sent: u8,
    pub reserved: u8,
}

const _: () = assert!(size_of::<ConnectionRecord>() == 208);

/// One transition of one TCP socket, while they are streamed.
///
/// As a [`ConnectionRecord`], its members are in an order without padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Transition {
    /// CLOCK_BOOTTIME, in nanoseconds.
    pub at_ns: u64,
    /// Of its connection, likewise; of a listener the same as `at_ns`.
    pub opened_ns: u64,
    pub cookie: u64,
    pub cgroup_id: u64,
    /// As in a [`ConnectionRecord`]. The local port of an active end is zero while it has none: at SYN_SENT.
    pub local_address: [u32; 4],
    pub remote_address: [u32; 4],
    pub comm: [u8; COMM_BYTES],
    pub netns: u32,
    pub pid: u32,
    pub local_port: u16,
    pub remote_port: u16,
    pub family: u8,
    /// See [`role`]; a listener's is passive.
    pub role: u8,
    pub attribution: u8,
    /// See [`state`].
    pub from: u8,
    pub to: u8,
    /// Which step of its connection's path it is: 1, 2, ... Those beyond its room are all the last; a listener's is zero.
    pub step: u8,
    pub reserved: [u8; 6],
}

const _: () = assert!(size_of::<Transition>() == 104);

/// What the agent finds of a connection in the table of those that are open: one word, zero where there is nothing to do. A
/// time, so that the agent cannot take that of a later connection in the same place.
pub mod notice {
    /// An attempt that began then waits for its answer.
    pub const fn pending(opened_ns: u64) -> u64 {
        opened_ns << 1
    }

    /// The handshake of a connection that was opened then has succeeded, and the members that name it are complete. Either
    /// side takes it: the agent's sweep with a compare-and-exchange, the hook at CLOSE with an exchange. Whoever does makes
    /// the first record, so there is exactly one.
    pub const fn unannounced(opened_ns: u64) -> u64 {
        opened_ns << 1 | 1
    }

    pub const fn is_unannounced(notice: u64) -> bool {
        notice & 1 != 0
    }

    pub const fn opened_ns(notice: u64) -> u64 {
        notice >> 1
    }
}

/// Whether a connection is in the sample of those that are open: all of them, halved so many times. By its cookie, so that
/// it is the same ones every time. Cookies follow each other, and the two ends of a connection on one machine take turns,
/// so they are spread first: by 2^64 divided by the golden ratio.
pub const fn is_in_sample(cookie: u64, halvings: u32) -> bool {
    cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15) <= u64::MAX >> (halvings & 63)
}

/// A socket as a survey found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SocketReport {
    /// A connection as it stands now, volumes included. Of a listener: its names and its owner.
    pub record: ConnectionRecord,
    /// Inode of the socket, by which /proc names its owners; zero where it has none.
    pub inode: u64,
    /// Of a listener: connections that wait for accept(), how many may, and how many were turned away.
    pub backlog: u32,
    pub backlog_limit: u32,
    pub drops: u32,
    /// See [`state`].
    pub state: u8,
    /// 1: an open connection without a place in the table, which is full. Its record has its names and nothing else.
    pub is_untracked: u8,
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<SocketReport>() == 232);

impl Transition {
    /// Reads a transition as its ring buffer hands it out; `None` if it has another size.
    #[cfg(not(target_arch = "bpf"))]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        decode(bytes)
    }
}

impl SocketReport {
    /// Reads a report as the survey writes it; `None` if it has another size.
    #[cfg(not(target_arch = "bpf"))]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        decode(bytes)
    }
}

impl ConnectionRecord {
    /// Nothing is known: what the other records are written as differences from.
    pub const ZERO: Self = Self {
        cookie: 0,
        opened_ns: 0,
        path: [0; PATH_STEPS],
        cgroup_id: 0,
        bytes_sent: 0,
        bytes_retransmitted: 0,
        bytes_received: 0,
        local_address: [0; 4],
        remote_address: [0; 4],
        comm: [0; COMM_BYTES],
        netns: 0,
        pid: 0,
        segments_sent: 0,
        segments_received: 0,
        retransmits: 0,
        srtt_us: 0,
        local_port: 0,
        remote_port: 0,
        error: 0,
        family: 0,
        role: 0,
        attribution: 0,
        flags: 0,
        path_len: 0,
        syn_retransmits: 0,
        counter_slot: 0,
        accept_wait: 0,
        streamed: 0,
        before: 0,
        reset_sent: 0,
        reserved: 0,
    };

    /// Reads a record as the ring buffer hands it out; `None` if it has another size.
    #[cfg(not(target_arch = "bpf"))]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        decode(bytes)
    }

    /// The steps of the path that are valid.
    pub fn steps(&self) -> &[u64] {
        &self.path[..(self.path_len as usize).min(PATH_STEPS)]
    }
}

#[cfg(not(target_arch = "bpf"))]
#[allow(unsafe_code)]
fn decode<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() != size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, every bit pattern is valid for a plain type, and read_unaligned asks for no
    // alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Types of integers only, without padding.
#[cfg(not(target_arch = "bpf"))]
trait Plain: Copy {}

#[cfg(not(target_arch = "bpf"))]
impl Plain for ConnectionRecord {}

#[cfg(not(target_arch = "bpf"))]
impl Plain for SocketReport {}

#[cfg(not(target_arch = "bpf"))]
impl Plain for Transition {}
