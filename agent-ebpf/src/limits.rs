//! Every bound of the kernel side. All maps are allocated when the programs are loaded; none grows.

/// Connections that are followed at once, by default. Past it a new one may be counted as untracked.
///
/// The table costs 416 bytes of kernel memory for each: 27 MB at this size.
pub const CONNECTIONS: u32 = 65_536;

/// Keys in a bucket of the table of connections: one cache line.
pub const WAYS: u32 = 8;

/// Places in the table that follows so many connections: at most half of them are used, so that a key finds a place
/// in one of its buckets.
pub const fn slots(connections: u32) -> u32 {
    let slots = (connections * 2).next_power_of_two();
    if slots < WAYS { WAYS } else { slots }
}

/// Network namespaces with counters of their own; those that come later share one set.
pub const NAMESPACES: u32 = 1_024;

/// Listeners whose owners are remembered, by default.
pub const LISTENERS: u32 = 4_096;

/// Bytes of the ring buffer, by default; a power of two and a multiple of the page size.
///
/// At 380,000 connection ends a second, the most that two cores reach (79 MB/s), it bridges 100 ms in which the agent
/// does not run: five of its ticks.
pub const RING_BYTES: u32 = 8 << 20;

/// Steps of a connection's path that a record holds. The longest path that Linux takes has seven: simultaneous
/// open (SYN_SENT, SYN_RECV, ESTABLISHED), simultaneous close (FIN_WAIT1, CLOSING), TIME_WAIT and CLOSE.
pub const PATH_STEPS: usize = 8;

/// Bytes of a task's command name, with its terminating zero (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;
