//! Reading kernel structures: the only file that knows pointers.
//!
//! `OFFSETS` is frozen before the programs are loaded, so the verifier reads it as constants and checks every
//! access against the kernel's own BTF types. No `bpf_probe_read_kernel`: the pointers that a tp_btf program gets
//! are typed, and what they lead to may be read directly (a fault reads as zero).

use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{
        bpf_get_current_comm, bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_ktime_get_boot_ns,
        bpf_skc_to_tcp_sock,
    },
};
use holdfast_agent_ebpf::{
    limits::COMM_BYTES,
    offset::{ABSENT, MEMBERS, Member},
};

#[unsafe(no_mangle)]
static OFFSETS: [u32; MEMBERS] = [ABSENT; MEMBERS];

/// The inode of the only network namespace to observe; zero: all.
#[unsafe(no_mangle)]
static ONLY_NETNS: u32 = 0;

#[inline(always)]
fn offset(member: Member) -> u32 {
    // SAFETY: the index is a member's own place. Volatile, or the compiler would use the value it sees here.
    unsafe { ptr::read_volatile(&raw const OFFSETS[member as usize]) }
}

/// Reads a member, or gives zero where this kernel has none.
///
/// # Safety
/// `base` points to the structure that the member belongs to, by the verifier's reckoning too.
#[inline(always)]
unsafe fn read<T: Copy + Default>(base: *const u8, member: Member) -> T {
    let offset = offset(member);
    if offset == ABSENT {
        return T::default();
    }
    // SAFETY: the caller's; the verifier checks offset and size against the type.
    unsafe { ptr::read_volatile(base.add(offset as usize).cast()) }
}

/// Like [`read`], for a pointer, null where this kernel has no such member.
///
/// # Safety
/// As [`read`].
#[inline(always)]
unsafe fn follow(base: *const u8, member: Member) -> *const u8 {
    let offset = offset(member);
    if offset == ABSENT {
        return ptr::null();
    }
    // SAFETY: the caller's; the verifier checks offset and size against the type.
    unsafe { ptr::read_volatile(base.add(offset as usize).cast()) }
}

/// Nanoseconds of CLOCK_BOOTTIME.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Writes the command name of the running process, and gives its thread group id.
///
/// The process's name is that of its first thread; others often have names of their own.
#[inline(always)]
pub(crate) fn current_process(comm: &mut [u8; COMM_BYTES]) -> u32 {
    let offset = offset(Member::TaskComm);
    if offset == ABSENT {
        // SAFETY: the helper writes as many bytes as it is told, zero-padded.
        unsafe { bpf_get_current_comm(comm.as_mut_ptr().cast(), COMM_BYTES as u32) };
    } else {
        // SAFETY: the running task has a leader, which outlives it; the verifier checks the reads against task_struct.
        unsafe {
            let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
            let name = follow(task, Member::TaskGroupLeader)
                .add(offset as usize)
                .cast::<u64>();
            let words = [ptr::read_volatile(name), ptr::read_volatile(name.add(1))];
            *comm = core::mem::transmute::<[u64; 2], [u8; COMM_BYTES]>(words);
        }
    }
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// A `struct sock *` that the tracepoint handed out.
#[derive(Clone, Copy)]
pub(crate) struct Sock(*const u8);

impl Sock {
    #[inline(always)]
    pub(crate) fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// The socket's name in our maps for as long as it lives, never zero: its address, as a distance from a global
    /// of ours. The verifier lets nobody calculate with an address, but the difference of two is a number.
    #[inline(always)]
    pub(crate) fn key(self) -> u64 {
        (self.0 as u64).wrapping_sub(&raw const OFFSETS as u64)
    }

    #[inline(always)]
    fn read<T: Copy + Default>(self, member: Member) -> T {
        // SAFETY: only socket members are read through this method.
        unsafe { read(self.0, member) }
    }

    /// Whether it speaks TCP itself. The hook also fires for sockets of SCTP and DCCP, and for the outer sockets of
    /// MPTCP, whose connections are their inner ones, plain TCP.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        const IPPROTO_TCP: u16 = 6;
        offset(Member::SkProtocol) == ABSENT || self.read::<u16>(Member::SkProtocol) == IPPROTO_TCP
    }

    #[inline(always)]
    pub(crate) fn family(self) -> u16 {
        self.read(Member::SkFamily)
    }

    #[inline(always)]
    pub(crate) fn error(self) -> u16 {
        self.read::<u32>(Member::SkErr) as u16
    }

    #[inline(always)]
    pub(crate) fn remote_port(self) -> u16 {
        u16::from_be(self.read(Member::SkRemotePort))
    }

    /// The local port, which this member keeps through CLOSE (`skc_num` is zero by then).
    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        // Every TCP socket is an inet_sock; asked through the tcp_sock, because the verifier knows `sk` as a sock.
        match self.tcp() {
            Some(tcp) => u16::from_be(tcp.read(Member::InetLocalPort)),
            None => 0,
        }
    }

    /// `SOCK_DONE` (include/net/sock.h): tcp_fin() saw the peer's FIN.
    #[inline(always)]
    pub(crate) fn fin_received(self) -> bool {
        const SOCK_DONE: u64 = 1 << 1;
        self.read::<u64>(Member::SkFlags) & SOCK_DONE != 0
    }

    /// The inode of the network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        // SAFETY: `skc_net` points to the socket's struct net, which outlives the socket.
        unsafe { read(follow(self.0, Member::SkNet), Member::NetInode) }
    }

    /// Whether the configuration wants this socket's network namespace.
    #[inline(always)]
    pub(crate) fn is_observed(self) -> bool {
        // SAFETY: a plain global. Volatile, or the compiler would use the value it sees here.
        let only = unsafe { ptr::read_volatile(&raw const ONLY_NETNS) };
        only == 0 || only == self.netns()
    }

    /// The id of the socket's cgroup (v2), zero where the kernel does not say.
    #[inline(always)]
    pub(crate) fn cgroup_id(self) -> u64 {
        if offset(Member::SkCgroup) == ABSENT {
            return 0;
        }
        // SAFETY: the socket holds a reference on its cgroup, and the cgroup on its kernfs node.
        unsafe {
            let cgroup = follow(self.0, Member::SkCgroup);
            read(follow(cgroup, Member::CgroupNode), Member::NodeId)
        }
    }

    /// The socket's cookie, generated by the kernel at the first call (`bpf_get_socket_cookie`, 5.12 here).
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        // SAFETY: the helper takes any sock_common, null included.
        unsafe { bpf_get_socket_cookie(self.0.cast_mut().cast()) }
    }

    /// Writes the local and the remote address in network order, IPv4 into the first word.
    #[inline(always)]
    pub(crate) fn addresses(self, local: &mut [u32; 4], remote: &mut [u32; 4]) {
        const AF_INET: u16 = 2;
        // Each way reads its own members: choosing between two pointers first is what the verifier refuses.
        if self.family() == AF_INET {
            local[0] = self.read(Member::SkLocalV4);
            remote[0] = self.read(Member::SkRemoteV4);
        } else {
            self.copy_v6(Member::SkLocalV6, local);
            self.copy_v6(Member::SkRemoteV6, remote);
        }
    }

    #[inline(always)]
    fn copy_v6(self, member: Member, to: &mut [u32; 4]) {
        let offset = offset(member);
        if offset == ABSENT {
            return;
        }
        for (index, word) in to.iter_mut().enumerate() {
            // SAFETY: an in6_addr has four words; the verifier checks each access.
            *word = unsafe { ptr::read_volatile(self.0.add(offset as usize + 4 * index).cast()) };
        }
    }

    /// The socket as a `struct tcp_sock *`; `None` if it is not a full TCP socket.
    #[inline(always)]
    pub(crate) fn tcp(self) -> Option<TcpSock> {
        // SAFETY: the helper checks what the socket is, and gives null if it is not TCP.
        let pointer = unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut().cast()) }
            .cast_const()
            .cast::<u8>();
        if pointer.is_null() {
            None
        } else {
            Some(TcpSock(pointer))
        }
    }
}

/// A `struct tcp_sock *`.
#[derive(Clone, Copy)]
pub(crate) struct TcpSock(*const u8);

impl TcpSock {
    /// Reads a member of the tcp_sock, or of the inet_sock that it begins with.
    #[inline(always)]
    pub(crate) fn read<T: Copy + Default>(self, member: Member) -> T {
        // SAFETY: only members of these two structures are read through this method.
        unsafe { read(self.0, member) }
    }
}
