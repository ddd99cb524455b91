//! Every bound of the kernel side. All maps are allocated when the programs are loaded; none grows.

/// Connections that are followed at once, by default. Past it a new one is counted as untracked.
///
/// The preallocated map costs about 260 bytes of kernel memory an entry: 17 MB at this size.
pub const CONNECTIONS: u32 = 65_536;

/// Listeners whose owners are remembered, by default.
pub const LISTENERS: u32 = 4_096;

/// Bytes of the ring buffer, by default; a power of two and a multiple of the page size.
///
/// At 200,000 connection ends a second (48 MB/s) it bridges 80 ms in which the agent does not run.
pub const RING_BYTES: u32 = 4 << 20;

/// The ring wakes the agent once this much is waiting; below it the agent comes by itself on its tick.
pub const WAKE_BYTES: u64 = 256 << 10;

/// Steps of a connection's path that a record holds. The longest path that Linux takes has seven: simultaneous
/// open (SYN_SENT, SYN_RECV, ESTABLISHED), simultaneous close (FIN_WAIT1, CLOSING), TIME_WAIT and CLOSE.
pub const PATH_STEPS: usize = 8;

/// Bytes of a task's command name, with its terminating zero (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;
