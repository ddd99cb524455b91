//! Which members of kernel structures the programs read.
//!
//! The programs carry no CO-RE relocations. The agent looks each member's byte offset up in the running kernel's
//! BTF and passes them all in one frozen global, so the verifier sees constants.

/// Stands for a member that the running kernel lacks. The verifier drops the branches that would read it.
pub const ABSENT: u32 = u32::MAX;

/// Of `struct thread_info`: see `SyscallNumbers::compat`.
const COMPAT: &str = if cfg!(target_arch = "aarch64") {
    "flags"
} else {
    "status"
};

/// Of `struct pt_regs`: the first three arguments of a call. On Arm the result takes the first one's place, of which there
/// is a copy.
const ARGUMENTS: [&[&str]; 3] = if cfg!(target_arch = "aarch64") {
    [&["orig_x0"], &["regs", "1"], &["regs", "2"]]
} else {
    [&["di"], &["si"], &["dx"]]
};

/// Of `struct pt_regs`.
const NUMBER: &str = if cfg!(target_arch = "aarch64") {
    "syscallno"
} else {
    "orig_ax"
};

macro_rules! members {
    ($($(#[$doc:meta])* $name:ident: $ty:literal $path:expr;)*) => {
        /// A member of a kernel structure; its value is its place in the `OFFSETS` global.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Member { $($(#[$doc])* $name),* }

        /// How many members there are.
        pub const MEMBERS: usize = [$(Member::$name),*].len();

        /// For each member, in order: the structure it is in, and the path of names that leads to it. A number stands for
        /// an element of an array of 64-bit words.
        pub const PATHS: [(&str, &[&str]); MEMBERS] = [$(($ty, $path)),*];
    };
}

members! {
    SkFamily: "sock" &["__sk_common", "skc_family"];
    SkLocalV4: "sock" &["__sk_common", "skc_rcv_saddr"];
    SkRemoteV4: "sock" &["__sk_common", "skc_daddr"];
    SkLocalV6: "sock" &["__sk_common", "skc_v6_rcv_saddr"];
    SkRemoteV6: "sock" &["__sk_common", "skc_v6_daddr"];
    /// The local port in host order; zero again by the time of CLOSE.
    SkNum: "sock" &["__sk_common", "skc_num"];
    SkRemotePort: "sock" &["__sk_common", "skc_dport"];
    SkNet: "sock" &["__sk_common", "skc_net", "net"];
    SkState: "sock" &["__sk_common", "skc_state"];
    SkFlags: "sock" &["__sk_common", "skc_flags"];
    SkErr: "sock" &["sk_err"];
    /// Which ways the process has shut, or the peer's FIN.
    SkShutdown: "sock" &["sk_shutdown"];
    SkProtocol: "sock" &["sk_protocol"];
    /// The socket's cgroup (v2); since 5.15 a plain pointer, before that a tagged word.
    SkCgroup: "sock" &["sk_cgrp_data", "cgroup"];
    /// Connections that wait for accept(), and how many may.
    SkBacklog: "sock" &["sk_ack_backlog"];
    SkBacklogLimit: "sock" &["sk_max_ack_backlog"];
    SkDrops: "sock" &["sk_drops", "counter"];
    SkCookie: "sock" &["__sk_common", "skc_cookie", "counter"];
    SkSocket: "sock" &["sk_socket"];
    SocketFile: "socket" &["file"];
    SocketSock: "socket" &["sk"];
    /// Of a socket's file: the socket.
    FilePrivate: "file" &["private_data"];
    FileInode: "file" &["f_inode"];
    InodeNumber: "inode" &["i_ino"];
    CgroupNode: "cgroup" &["kn"];
    NodeId: "kernfs_node" &["id"];
    NetInode: "net" &["ns", "inum"];
    /// The local port in network order, which survives CLOSE.
    InetLocalPort: "inet_sock" &["inet_sport"];
    TcpBytesSent: "tcp_sock" &["bytes_sent"];
    TcpBytesRetransmitted: "tcp_sock" &["bytes_retrans"];
    TcpBytesReceived: "tcp_sock" &["bytes_received"];
    TcpSegmentsSent: "tcp_sock" &["segs_out"];
    TcpSegmentsReceived: "tcp_sock" &["segs_in"];
    /// Of these, the ones with data, whatever became of it (4.6).
    TcpDataSegmentsReceived: "tcp_sock" &["data_segs_in"];
    TcpRetransmits: "tcp_sock" &["total_retrans"];
    /// How long a socket waits in FIN_WAIT2 that no process has any more; negative: not at all (TCP_LINGER2).
    TcpLinger: "tcp_sock" &["linger2"];
    /// In eighths of a microsecond.
    TcpSrtt: "tcp_sock" &["srtt_us"];
    SkbHead: "sk_buff" &["head"];
    /// Where the network header begins, from `head`.
    SkbNetworkHeader: "sk_buff" &["network_header"];
    SkbDevice: "sk_buff" &["dev"];
    SkbSocket: "sk_buff" &["sk"];
    DeviceNet: "net_device" &["nd_net", "net"];
    TaskFlags: "task_struct" &["flags"];
    TaskGroupLeader: "task_struct" &["group_leader"];
    TaskComm: "task_struct" &["comm"];
    TaskPid: "task_struct" &["pid"];
    TaskTgid: "task_struct" &["tgid"];
    TaskFiles: "task_struct" &["files"];
    FilesTable: "files_struct" &["fdt"];
    /// How many descriptors there is room for.
    TableEntries: "fdtable" &["max_fds"];
    TableFiles: "fdtable" &["fd"];
    TaskSignal: "task_struct" &["signal"];
    /// Threads of the process that have not begun to exit.
    SignalLive: "signal_struct" &["live", "counter"];
    TaskNamespaces: "task_struct" &["nsproxy"];
    NamespacesNet: "nsproxy" &["net_ns"];
    /// Says, by a bit that depends on the architecture, that the running call is one of a 32-bit program.
    TaskCompat: "task_struct" &["thread_info", COMPAT];
    /// The number of the running call.
    RegsNumber: "pt_regs" &[NUMBER];
    RegsArgument0: "pt_regs" ARGUMENTS[0];
    RegsArgument1: "pt_regs" ARGUMENTS[1];
    RegsArgument2: "pt_regs" ARGUMENTS[2];
}
