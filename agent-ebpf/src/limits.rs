//! Every bound of the kernel side. All maps are allocated when the programs are loaded; none grows.

/// Connections that are followed at once, by default. Past it a new one may be counted as untracked.
///
/// The table costs 448 bytes of kernel memory for each: 29 MB at this size.
pub const CONNECTIONS: u32 = 65_536;

/// Keys in a bucket of the table of connections: one cache line.
pub const WAYS: u32 = 8;

/// Places in the table that follows so many connections: at most half of them are used, so that a key finds a place
/// in one of its buckets.
pub const fn slots(connections: u32) -> u32 {
    let slots = (connections * 2).next_power_of_two();
    if slots < WAYS { WAYS } else { slots }
}

/// Places of the table whose notices are looked through together, where any of them was written: a page.
pub const REGION: u32 = 512;

/// Regions of so many places.
pub const fn regions(places: u32) -> u32 {
    places.div_ceil(REGION)
}

/// Network namespaces with counters of their own; those that come later share one set.
pub const NAMESPACES: u32 = 1_024;

/// Listeners whose owners are remembered, by default.
pub const LISTENERS: u32 = 4_096;

/// Peers that trouble is counted for one by one; that with others is counted together. 120 bytes each.
pub const PEERS: u32 = 8_192;

/// Bytes of the ring buffer, by default; a power of two and a multiple of the page size.
///
/// At 380,000 connection ends a second, the most that two cores reach (79 MB/s), it bridges 100 ms in which the agent
/// does not run: five of its ticks, and two of those that it makes while little comes.
pub const RING_BYTES: u32 = 8 << 20;

/// Bytes of the ring buffer of transitions, by default, likewise. It has memory of the agent only while they are streamed.
///
/// At 800,000 transitions a second, the most that two cores reach (90 MB/s), it bridges 45 ms: two ticks.
pub const TRANSITION_RING_BYTES: u32 = 4 << 20;

/// Attempts that failed, remembered until connect() has told its caller why; the oldest go.
pub const FAILED_ATTEMPTS: u32 = 4_096;

/// Attempts that connect() ended before a SYN left and is about to tell its caller of: no more than threads that are in
/// that call at one moment.
pub const UNSENT_ATTEMPTS: u32 = 1_024;

/// Steps of a connection's path that a record holds. The longest path that Linux takes has seven: simultaneous
/// open (SYN_SENT, SYN_RECV, ESTABLISHED), simultaneous close (FIN_WAIT1, CLOSING), TIME_WAIT and CLOSE.
pub const PATH_STEPS: usize = 8;

/// Bytes of a task's command name, with its terminating zero (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;

/// Processes whose syscalls are counted one by one; the calls of those that come later are counted as those of
/// "other". A slot is free again a moment after its process ended.
pub const SYSCALL_SLOTS: u32 = 4_096;

/// Places for (process, syscall, errno): 8 bytes for each and 8 more on each CPU.
pub const TALLIES: u32 = 131_072;

/// Places for (process, syscall, bucket of the latency), 16 bytes each.
pub const LATENCIES: u32 = 131_072;

/// Latencies in a bucket of their table: one cache line.
pub const LATENCY_WAYS: u32 = 4;

/// Places for threads, by their id: as many as there can be ids, but not more than so many. Two threads in one place
/// are still counted exactly; what suffers is that their calls are rarely measured, and cost more.
pub const THREADS: u32 = 131_072;
