//! The counters of the kernel side, per network namespace, cumulative since the programs were loaded.

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Connections that began: SYN_SENT for an active end, SYN_RECV for a passive one.
    Opened,
    /// Connections that reached CLOSE and had an entry.
    Closed,
    /// Connections that began while the map was full.
    Untracked,
    /// Connections that reached CLOSE without an entry: older than the programs, or untracked.
    Unseen,
    /// Records for which the ring buffer had no room.
    Lost,
    /// Connections that began in a network namespace that the configuration leaves out.
    Filtered,
    /// Listeners that could not be remembered because the map was full.
    ListenersUntracked,
    /// Connections whose end the hook missed: their socket was opened again.
    Superseded,
}

impl Counter {
    /// Every counter, in order.
    pub const ALL: [Self; 8] = [
        Self::Opened,
        Self::Closed,
        Self::Untracked,
        Self::Unseen,
        Self::Lost,
        Self::Filtered,
        Self::ListenersUntracked,
        Self::Superseded,
    ];
}

/// All counters of one network namespace on one CPU: a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts(pub [u64; 8]);

const _: () = assert!(Counter::ALL.len() <= 8);

impl Counts {
    /// One of them.
    pub const fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}
