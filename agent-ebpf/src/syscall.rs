//! Syscalls, as the kernel side counts them: who makes them (a *slot*), which and how they ended (a *tally*), and how
//! long they took (a *latency*). All three live in tables that the agent maps and reads; nothing travels.
//!
//! Every call ends in exactly one tally: that of its slot, its number and its errno (zero: it succeeded). So the calls
//! of a process, or of a number, are a sum that misses nothing and counts nothing twice.

use crate::limits::COMM_BYTES;

/// The number under which everything goes that has no name: calls of 32-bit programs, which have other numbers, and
/// numbers that no kernel knows. All tables of the 64-bit architectures end well below it.
pub const OTHER_NUMBER: u16 = 511;

/// The largest errno (`MAX_ERRNO`, include/linux/err.h). From 512 on they are the kernel's own: a call that a signal
/// interrupts returns one of these, and is then made again or gives EINTR.
pub const MAX_ERRNO: i64 = 4095;

/// The slot of all processes that found no slot of their own.
pub const OTHER_SLOT: u32 = 0;

/// The slot of all processes that the configuration leaves out.
pub const HIDDEN_SLOT: u32 = 1;

/// The slot of the process whose key lies in the first place of the table; the others follow.
pub const FIRST_SLOT: u32 = 2;

/// Bits of a slot's number where it is packed with others.
pub const SLOT_BITS: u32 = 20;

/// What a slot is called in the table of processes: taken, and by whom.
pub mod process_key {
    const TAKEN: u64 = 1 << 63;
    /// The process is gone, or has become another one by execve(): no new thread finds the slot, and the agent may
    /// take what was counted in it and give it back.
    const ENDED: u64 = 1 << 62;

    /// Of a process that runs.
    pub const fn of(pid: u32) -> u64 {
        TAKEN | pid as u64
    }

    /// Of the same process, once it has ended.
    pub const fn ended(key: u64) -> u64 {
        key | ENDED
    }

    pub const fn is_ended(key: u64) -> bool {
        key & ENDED != 0
    }

    /// The thread group id.
    pub const fn pid(key: u64) -> u32 {
        key as u32
    }
}

/// Who has a slot. The hook fills it after it took the slot, and `is_complete` last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SlotOwner {
    /// CLOCK_BOOTTIME in nanoseconds, when the slot was taken.
    pub began_ns: u64,
    /// The id of the process' cgroup (v2).
    pub cgroup_id: u64,
    /// The name of its first thread, zero-padded.
    pub comm: [u8; COMM_BYTES],
    /// Not zero once the rest is there.
    pub is_complete: u64,
}

/// A thread, in the place that its id leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Thread {
    /// Whose place this is, and its process' slot, in one word so that two threads whose ids lead to one place cannot mix
    /// them up: see [`Thread::word`]. Zero: nobody's.
    pub word: u64,
    /// When the running call began, by CLOCK_MONOTONIC in nanoseconds, if it is one of those that are measured.
    pub began_ns: u64,
    /// The state of the thread's own random numbers, which choose the calls that are measured.
    pub random: u64,
    pub reserved: u64,
}

const _: () = assert!(size_of::<Thread>() == 32);

impl Thread {
    /// The word of a thread. Ids have 22 bits at most (`PID_MAX_LIMIT`, include/linux/threads.h).
    pub const fn word(pid: u32, tid: u32, slot: u32) -> u64 {
        (pid as u64) << 42 | (tid as u64) << SLOT_BITS | slot as u64
    }

    /// Whether two words are of the same thread.
    pub const fn is_same(a: u64, b: u64) -> bool {
        (a ^ b) >> SLOT_BITS == 0
    }

    /// The slot in a word.
    pub const fn slot(word: u64) -> u32 {
        word as u32 & ((1 << SLOT_BITS) - 1)
    }
}

/// The name of a tally (`detail`: the errno) or of a latency (`detail`: the bucket). Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub u64);

impl Key {
    const TAKEN: u64 = 1 << 63;

    pub const fn new(slot: u32, number: u16, detail: u16) -> Self {
        Self(Self::TAKEN | (slot as u64) << 32 | (number as u64) << 16 | detail as u64)
    }

    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & ((1 << SLOT_BITS) - 1)
    }

    pub const fn number(self) -> u16 {
        (self.0 >> 16) as u16
    }

    pub const fn detail(self) -> u16 {
        self.0 as u16
    }
}

/// A latency: how many measured calls took so long. Shared by all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Latency {
    /// See [`Key`]; zero: free.
    pub key: u64,
    pub count: u64,
}

/// The bucket of a latency: below 8 ns each nanosecond has its own; from there on each octave (2^n to 2^(n+1)) has eight of
/// equal width, so that the middle of a bucket is within 1/16 (6 %) of whatever fell into it.
#[inline(always)]
pub const fn bucket(latency_ns: u64) -> u16 {
    if latency_ns < 8 {
        return latency_ns as u16;
    }
    let octave = highest_bit(latency_ns);
    ((octave - 2) << 3) as u16 | ((latency_ns >> (octave - 3)) & 7) as u16
}

/// The smallest latency in a bucket, in nanoseconds.
pub const fn bucket_begin_ns(bucket: u16) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    (8 | (bucket as u64 & 7)) << ((bucket >> 3) - 1)
}

/// Buckets that there are.
pub const BUCKETS: u16 = bucket(u64::MAX) + 1;

/// The place of the highest bit that is set. BPF has no instruction for it before its fifth version.
#[inline(always)]
const fn highest_bit(mut number: u64) -> u32 {
    let mut place = 0;
    let mut step = 32;
    while step > 0 {
        if number >> step != 0 {
            number >>= step;
            place += step;
        }
        step /= 2;
    }
    place
}

/// What is counted beside the tallies, per CPU, cumulative since the programs were loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SyscallCounter {
    /// Calls whose tally found no place in the table.
    Untallied,
    /// Measured calls whose latency found no place in the table.
    Unrecorded,
    /// Threads that found no slot for their process.
    Slotless,
}

/// All of them on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SyscallCounts(pub [u64; 4]);

/// What the programs must know of the architecture; frozen when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Abi {
    /// The numbers of the calls that do not return.
    Exit,
    ExitGroup,
    /// The number of the call that takes its own number away.
    RtSigreturn,
    /// The calls that return twice: in the caller and, as zero, in the new task. Where there are fewer, one again.
    Fork,
    Vfork,
    Clone,
    Clone3,
    /// The number of exit_group for 32-bit programs.
    CompatExitGroup,
    /// The bit of `Member::TaskCompat` that is set while a 32-bit program's call runs.
    CompatBit,
    /// The number of connect(), or [`NO_NUMBER`] where its errors are not read.
    Connect,
    /// Those of accept() and accept4(), likewise.
    Accept,
    Accept4,
}

/// Entries of the global that holds them.
pub const ABI_ENTRIES: usize = 12;

/// Which program reads what connect() returns; one at a time, so that no attempt is seen twice.
pub mod watcher {
    pub const NOBODY: u32 = 0;
    /// The one that does nothing else.
    pub const OWN: u32 = 1;
    /// The one that counts syscalls.
    pub const COUNTING: u32 = 2;
}

/// What a call's number is when the kernel has none for it, or no more (`rt_sigreturn` takes it away).
pub const NO_NUMBER: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_hole() {
        for next in 1..BUCKETS {
            let begin = bucket_begin_ns(next);
            assert_eq!((bucket(begin), bucket(begin - 1)), (next, next - 1));
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, 495));
        assert_eq!(bucket(2_048) - bucket(1_024), 8);
    }

    #[test]
    fn what_is_packed_can_be_unpacked() {
        let key = Key::new((1 << SLOT_BITS) - 1, OTHER_NUMBER, 4_095);
        assert_eq!(
            (key.slot(), key.number(), key.detail()),
            ((1 << SLOT_BITS) - 1, OTHER_NUMBER, 4_095)
        );
        let largest = (1 << 22) - 1;
        let word = Thread::word(largest, largest, 77);
        assert_eq!(Thread::slot(word), 77);
        assert!(Thread::is_same(word, Thread::word(largest, largest, OTHER_SLOT)));
        assert!(!Thread::is_same(word, Thread::word(largest, largest - 1, 77)));
        assert!(!Thread::is_same(word, Thread::word(largest - 1, largest, 77)));
        let gone = process_key::ended(process_key::of(largest));
        assert_eq!(
            (process_key::pid(gone), process_key::is_ended(gone)),
            (largest, true)
        );
    }
}
