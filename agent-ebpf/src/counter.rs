//! The counters of the kernel side: slots of one per-CPU array, cumulative since the programs were loaded.

/// What a slot of the `COUNTERS` map counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
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
}

impl Counter {
    /// Every counter, in the order of its slot.
    pub const ALL: [Self; 7] = [
        Self::Opened,
        Self::Closed,
        Self::Untracked,
        Self::Unseen,
        Self::Lost,
        Self::Filtered,
        Self::ListenersUntracked,
    ];

    /// The slot in the `COUNTERS` map.
    pub const fn slot(self) -> u32 {
        self as u32
    }
}
