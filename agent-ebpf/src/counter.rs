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
    Elsewhere,
    /// Listeners that could not be remembered because the map was full.
    ListenersUntracked,
    /// Connections whose end the hook missed: their socket was opened again.
    Superseded,
    /// Attempts that ended before a segment of theirs left: connect() found no route, no free port, or was forbidden.
    /// They count as opened and closed; the kernel's own counters do not know them.
    Unsent,
    /// Connections that a survey found without an entry and gave one: older than the programs, or their opening was
    /// missed.
    Seeded,
    /// Connections that reached CLOSE, had an entry, and were hidden by the filter.
    Filtered,
    /// Connections that began and were not followed, because only one in so many is.
    SampledOut,
    /// Transitions of connections and listeners while they were streamed.
    Transitions,
    /// Of these, those of connections without an entry: not followed, untracked, or older than the programs.
    TransitionsUntracked,
    /// Of these, those that were not wanted.
    TransitionsFiltered,
    /// Of these, those for which their ring buffer had no room.
    TransitionsLost,
}

impl Counter {
    /// Every counter, in order.
    pub const ALL: [Self; 16] = [
        Self::Opened,
        Self::Closed,
        Self::Untracked,
        Self::Unseen,
        Self::Lost,
        Self::Elsewhere,
        Self::ListenersUntracked,
        Self::Superseded,
        Self::Unsent,
        Self::Seeded,
        Self::Filtered,
        Self::SampledOut,
        Self::Transitions,
        Self::TransitionsUntracked,
        Self::TransitionsFiltered,
        Self::TransitionsLost,
    ];
}

/// Words of [`Counts`]: two cache lines, the second for what is rarely counted.
pub const WORDS: usize = 16;

/// All counters of one network namespace on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts(pub [u64; WORDS]);

const _: () = assert!(Counter::ALL.len() <= WORDS);

impl Counts {
    /// One of them.
    pub const fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }
}
