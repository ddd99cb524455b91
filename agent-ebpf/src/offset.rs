//! Which members of kernel structures the programs read.
//!
//! The programs carry no CO-RE relocations. The agent looks each member's byte offset up in the running kernel's
//! BTF and passes them all in one frozen global, so the verifier sees constants.

/// Stands for a member that the running kernel lacks. The verifier drops the branches that would read it.
pub const ABSENT: u32 = u32::MAX;

macro_rules! members {
    ($($(#[$doc:meta])* $name:ident: $ty:literal $path:expr;)*) => {
        /// A member of a kernel structure; its value is its place in the `OFFSETS` global.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Member { $($(#[$doc])* $name),* }

        /// How many members there are.
        pub const MEMBERS: usize = [$(Member::$name),*].len();

        /// For each member, in order: the structure it is in, and the path of names that leads to it.
        pub const PATHS: [(&str, &[&str]); MEMBERS] = [$(($ty, &$path)),*];
    };
}

members! {
    SkFamily: "sock" ["__sk_common", "skc_family"];
    SkLocalV4: "sock" ["__sk_common", "skc_rcv_saddr"];
    SkRemoteV4: "sock" ["__sk_common", "skc_daddr"];
    SkLocalV6: "sock" ["__sk_common", "skc_v6_rcv_saddr"];
    SkRemoteV6: "sock" ["__sk_common", "skc_v6_daddr"];
    /// The local port in host order; zero again by the time of CLOSE.
    SkNum: "sock" ["__sk_common", "skc_num"];
    SkRemotePort: "sock" ["__sk_common", "skc_dport"];
    SkNet: "sock" ["__sk_common", "skc_net", "net"];
    SkFlags: "sock" ["__sk_common", "skc_flags"];
    SkErr: "sock" ["sk_err"];
    SkProtocol: "sock" ["sk_protocol"];
    /// The socket's cgroup (v2); since 5.15 a plain pointer, before that a tagged word.
    SkCgroup: "sock" ["sk_cgrp_data", "cgroup"];
    CgroupNode: "cgroup" ["kn"];
    NodeId: "kernfs_node" ["id"];
    NetInode: "net" ["ns", "inum"];
    /// The local port in network order, which survives CLOSE.
    InetLocalPort: "inet_sock" ["inet_sport"];
    TcpBytesSent: "tcp_sock" ["bytes_sent"];
    TcpBytesRetransmitted: "tcp_sock" ["bytes_retrans"];
    TcpBytesReceived: "tcp_sock" ["bytes_received"];
    TcpSegmentsSent: "tcp_sock" ["segs_out"];
    TcpSegmentsReceived: "tcp_sock" ["segs_in"];
    TcpRetransmits: "tcp_sock" ["total_retrans"];
    /// In eighths of a microsecond.
    TcpSrtt: "tcp_sock" ["srtt_us"];
    TaskGroupLeader: "task_struct" ["group_leader"];
    TaskComm: "task_struct" ["comm"];
}
