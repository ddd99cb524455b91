//! Reading kernel structures: the only file that knows pointers.
//!
//! `OFFSETS` is frozen before the programs are loaded, so the verifier reads it as constants and checks every
//! access against the kernel's own BTF types. No `bpf_probe_read_kernel`: the pointers that a tp_btf program gets
//! are typed, and what they lead to may be read directly (a fault reads as zero).

use core::ptr;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_probe_read_kernel,
    generated::{
        bpf_get_current_comm, bpf_get_current_task, bpf_get_current_task_btf, bpf_get_socket_cookie,
        bpf_ktime_get_boot_ns, bpf_skc_to_tcp_sock, bpf_task_pt_regs,
    },
};
use holdfast_agent_ebpf::{
    limits::COMM_BYTES,
    offset::{ABSENT, MEMBERS, Member},
    peer::NO_REASON,
};

use crate::packet::Way;

#[unsafe(no_mangle)]
static OFFSETS: [u32; MEMBERS] = [ABSENT; MEMBERS];

/// The inode of the only network namespace to observe; zero: all.
#[unsafe(no_mangle)]
static ONLY_NETNS: u32 = 0;

/// The reasons for which the kernel drops a packet that are a filter's, in the order of
/// [`holdfast_agent_ebpf::peer::FILTER_REASONS`].
#[unsafe(no_mangle)]
static FILTER_REASONS: [u32; 6] = [NO_REASON; 6];

#[inline(always)]
pub(crate) fn offset(member: Member) -> u32 {
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

/// Writes the command name of the running process, and gives its thread group id; zero for a thread of the kernel, which
/// also closes what processes left behind (delayed_fput, fs/file_table.c; unix_gc, net/unix/garbage.c).
///
/// The process's name is that of its first thread; others often have names of their own.
#[inline(always)]
pub(crate) fn current_process(comm: &mut [u8; COMM_BYTES]) -> u32 {
    const PF_KTHREAD: u32 = 0x0020_0000;
    // SAFETY: the running task has a leader, which outlives it; the verifier checks the reads against task_struct.
    unsafe {
        let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
        if read::<u32>(task, Member::TaskFlags) & PF_KTHREAD != 0 {
            return 0;
        }
        let offset = offset(Member::TaskComm);
        if offset == ABSENT {
            // The helper writes as many bytes as it is told, zero-padded.
            bpf_get_current_comm(comm.as_mut_ptr().cast(), COMM_BYTES as u32);
        } else {
            let name = follow(task, Member::TaskGroupLeader)
                .add(offset as usize)
                .cast::<u64>();
            let words = [ptr::read_volatile(name), ptr::read_volatile(name.add(1))];
            *comm = core::mem::transmute::<[u64; 2], [u8; COMM_BYTES]>(words);
        }
    }
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// Whether the configuration wants a network namespace, by its inode.
#[inline(always)]
pub(crate) fn is_observed(netns: u32) -> bool {
    let only = only_netns();
    only == 0 || only == netns
}

#[inline(always)]
fn only_netns() -> u32 {
    // SAFETY: a plain global. Volatile, or the compiler would use the value it sees here.
    unsafe { ptr::read_volatile(&raw const ONLY_NETNS) }
}

/// A kernel structure of whose type the verifier knows nothing: read with `bpf_probe_read_kernel`, which a kernel that
/// is locked down for confidentiality forbids.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Foreign(u64);

impl Foreign {
    /// Reads a member; zero where this kernel has none, and where there is nothing to read.
    #[inline(always)]
    pub(crate) fn read<T: Copy + Default>(self, member: Member) -> T {
        let offset = offset(member);
        if offset == ABSENT {
            return T::default();
        }
        // SAFETY: the helper takes any address.
        unsafe { bpf_probe_read_kernel((self.0 + u64::from(offset)) as *const T) }.unwrap_or_default()
    }

    /// What a member points to; `None` for null.
    #[inline(always)]
    pub(crate) fn follow(self, member: Member) -> Option<Self> {
        let pointer = self.read::<u64>(member);
        (pointer != 0).then_some(Self(pointer))
    }

    /// Of a socket: its name in our maps, as [`Sock::key`] makes it. The distance from the global is that from the running
    /// task, whose address is a number from one helper and a pointer from another.
    #[inline(always)]
    pub(crate) fn key(self, task: Task) -> u64 {
        // SAFETY: no preconditions.
        let address: u64 = unsafe { bpf_get_current_task() };
        let distance = (task.0 as u64).wrapping_sub(&raw const OFFSETS as u64);
        self.0.wrapping_sub(address).wrapping_add(distance)
    }
}

/// A `struct sock *` that the tracepoint handed out.
#[derive(Clone, Copy)]
pub(crate) struct Sock(*const u8);

impl Sock {
    #[inline(always)]
    pub(crate) fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// Whether there is none.
    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.0.is_null()
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

    /// Inode of the socket's file, by which /proc/PID/fd names it; zero for a socket without a file.
    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        // SAFETY: each member leads to the next; what is freed meanwhile reads as zero or as something old.
        unsafe {
            let socket = follow(self.0, Member::SkSocket);
            let file = follow(socket, Member::SocketFile);
            read(follow(file, Member::FileInode), Member::InodeNumber)
        }
    }

    #[inline(always)]
    pub(crate) fn backlog(self) -> u32 {
        self.read(Member::SkBacklog)
    }

    #[inline(always)]
    pub(crate) fn backlog_limit(self) -> u32 {
        self.read(Member::SkBacklogLimit)
    }

    #[inline(always)]
    pub(crate) fn drops(self) -> u32 {
        self.read(Member::SkDrops)
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

    /// `SOCK_DEAD` (include/net/sock.h): no process has it any more (sock_orphan()).
    #[inline(always)]
    pub(crate) fn is_orphan(self) -> bool {
        const SOCK_DEAD: u64 = 1 << 0;
        self.read::<u64>(Member::SkFlags) & SOCK_DEAD != 0
    }

    /// Whether nobody will read what arrives: by close(), shutdown(), or since the peer has said that nothing will.
    #[inline(always)]
    pub(crate) fn reads_no_more(self) -> bool {
        const RCV_SHUTDOWN: u8 = 1;
        self.read::<u8>(Member::SkShutdown) & RCV_SHUTDOWN != 0
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
        let only = only_netns();
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

    /// Writes the local address in network order, IPv4 into the first word.
    #[inline(always)]
    pub(crate) fn local_address(self, to: &mut [u32; 4]) {
        self.copy_address(Member::SkLocalV4, Member::SkLocalV6, to);
    }

    /// Writes the remote address in network order, IPv4 into the first word.
    #[inline(always)]
    pub(crate) fn remote_address(self, to: &mut [u32; 4]) {
        self.copy_address(Member::SkRemoteV4, Member::SkRemoteV6, to);
    }

    #[inline(always)]
    fn copy_address(self, v4: Member, v6: Member, to: &mut [u32; 4]) {
        const AF_INET: u16 = 2;
        // Each way reads its own members: choosing between two pointers first is what the verifier refuses.
        if self.family() == AF_INET {
            to[0] = self.read(v4);
        } else {
            self.copy_v6(v6, to);
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

    /// Its TCP state.
    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        self.read(Member::SkState)
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
    /// The socket that it is.
    #[inline(always)]
    pub(crate) fn sock(self) -> Sock {
        Sock(self.0)
    }

    /// Reads a member of the tcp_sock, or of the inet_sock that it begins with.
    #[inline(always)]
    pub(crate) fn read<T: Copy + Default>(self, member: Member) -> T {
        // SAFETY: only members of these two structures are read through this method.
        unsafe { read(self.0, member) }
    }
}

/// A `struct sk_buff *`.
#[derive(Clone, Copy)]
pub(crate) struct Packet(*const u8);

impl Packet {
    #[inline(always)]
    pub(crate) fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// Whether there is none.
    #[inline(always)]
    pub(crate) fn is_none(self) -> bool {
        self.0.is_null()
    }

    /// The address of its network header.
    #[inline(always)]
    pub(crate) fn network_header(self) -> u64 {
        // SAFETY: members of the packet; `head` is read as a number.
        unsafe {
            read::<u64>(self.0, Member::SkbHead)
                .wrapping_add(read::<u16>(self.0, Member::SkbNetworkHeader).into())
        }
    }

    /// The inode of the network namespace that it is in: its device's, or that of the socket that sends it.
    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        // SAFETY: each member leads to the next; null reads as zero, but the verifier wants to see that of a socket
        // checked.
        unsafe {
            let of_device = read(
                follow(follow(self.0, Member::SkbDevice), Member::DeviceNet),
                Member::NetInode,
            );
            let socket = follow(self.0, Member::SkbSocket);
            if of_device != 0 || socket.is_null() {
                return of_device;
            }
            read(follow(socket, Member::SkNet), Member::NetInode)
        }
    }

    /// Which way it went, if this reason to drop it is a filter's. On its way out it has no device yet, but for the
    /// filters that a device or a cgroup has on that side.
    #[inline(always)]
    pub(crate) fn way_of_filter(self, reason: u32) -> Option<Way> {
        for (place, known) in FILTER_REASONS.iter().enumerate() {
            // SAFETY: a plain global. Volatile, or the compiler would use the value it sees here.
            if reason == unsafe { ptr::read_volatile(known) } {
                const TC_EGRESS: usize = 2;
                const BPF_CGROUP_EGRESS: usize = 5;
                // SAFETY: a member of the packet.
                let device = unsafe { read::<u64>(self.0, Member::SkbDevice) };
                let is_out = matches!(place, TC_EGRESS | BPF_CGROUP_EGRESS) || device == 0;
                return Some(if is_out { Way::Out } else { Way::In });
            }
        }
        None
    }
}

/// The running task.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const u8);

impl Task {
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: no preconditions; the task outlives the program.
        Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
    }

    #[inline(always)]
    fn read<T: Copy + Default>(self, member: Member) -> T {
        // SAFETY: only members of the task are read through this method.
        unsafe { read(self.0, member) }
    }

    /// The thread's id in the first pid namespace, which the kernel calls a pid.
    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.read(Member::TaskPid)
    }

    /// The id of its process in the first pid namespace, which the kernel calls a thread group.
    #[inline(always)]
    pub(crate) fn pid(self) -> u32 {
        self.read(Member::TaskTgid)
    }

    /// Whether no other thread of its process is left. Asked by threads that exit.
    #[inline(always)]
    pub(crate) fn is_last_of_its_process(self) -> bool {
        // SAFETY: `signal` is that of the running task, which holds it until it is reaped.
        unsafe { read::<u32>(follow(self.0, Member::TaskSignal), Member::SignalLive) == 0 }
    }

    /// Whether the configuration wants this task's network namespace. A task that exits has none any more.
    #[inline(always)]
    pub(crate) fn is_observed(self) -> bool {
        let only = only_netns();
        // SAFETY: the task holds its namespaces, and they hold theirs; null reads as zero.
        only == 0
            || only
                == unsafe {
                    let namespaces = follow(self.0, Member::TaskNamespaces);
                    read::<u32>(follow(namespaces, Member::NamespacesNet), Member::NetInode)
                }
    }

    /// Whether the running call is numbered as 32-bit programs do it: `bit` is that of the architecture.
    #[inline(always)]
    pub(crate) fn is_compat(self, bit: u32) -> bool {
        self.read::<u32>(Member::TaskCompat) & bit != 0
    }

    /// An open file, by its descriptor. The table of descriptors is an array of pointers, of which the verifier knows no
    /// types.
    #[inline(always)]
    pub(crate) fn file(self, fd: u32) -> Option<Foreign> {
        // SAFETY: a running task has its files; each member leads to the next.
        let (entries, files) = unsafe {
            let table = follow(follow(self.0, Member::TaskFiles), Member::FilesTable);
            (
                read::<u32>(table, Member::TableEntries),
                read::<u64>(table, Member::TableFiles),
            )
        };
        if fd >= entries {
            return None;
        }
        // SAFETY: the helper takes any address.
        let file = unsafe { bpf_probe_read_kernel((files + u64::from(fd) * 8) as *const u64) }.ok()?;
        (file != 0).then_some(Foreign(file))
    }

    /// The registers with which it entered the kernel (`bpf_task_pt_regs`, 5.15).
    #[inline(always)]
    pub(crate) fn regs(self) -> Regs {
        // SAFETY: the helper takes any task.
        Regs(unsafe { bpf_task_pt_regs(self.0.cast_mut().cast()) } as *const u8)
    }
}

/// A `struct pt_regs *`.
#[derive(Clone, Copy)]
pub(crate) struct Regs(*const u8);

impl Regs {
    #[inline(always)]
    pub(crate) fn new(pointer: *const u8) -> Self {
        Self(pointer)
    }

    /// An argument of the call.
    #[inline(always)]
    pub(crate) fn argument(self, member: Member) -> u64 {
        // SAFETY: a member of the registers.
        unsafe { read(self.0, member) }
    }

    /// The number of the call that the task is in.
    #[inline(always)]
    pub(crate) fn number(self) -> u32 {
        // SAFETY: a member of the registers.
        unsafe { read(self.0, Member::RegsNumber) }
    }
}
