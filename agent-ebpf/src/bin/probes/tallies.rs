//! What happened, counted: tallies by (slot, number, errno), exact, and latencies by (slot, number, bucket), of the calls
//! that are measured.
//!
//! Two hash tables of our own, for the reasons that `table.rs` gives. A tally's key is shared, and its count is one word a
//! CPU: nothing is locked on the path of every call, and no two CPUs write one cache line. A latency is only counted
//! once in many calls, so its count lies beside its key and is added to atomically.
//!
//! Places are only given back by the agent, once nobody can count in them any more. A hole that this leaves may be taken
//! under a key that is further on in the table too: readers add up what has the same key.

use core::{
    intrinsics::{
        AtomicOrdering::{Relaxed, SeqCst},
        atomic_cxchg, atomic_xadd,
    },
    ptr,
};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::generated::bpf_get_smp_processor_id,
    macros::map,
    maps::{Array, PerCpuArray},
};
use holdfast_agent_ebpf::{
    limits::{LATENCIES as MAX_LATENCIES, LATENCY_WAYS, TALLIES as MAX_TALLIES, WAYS},
    syscall::{Key, Latency, SyscallCounter, SyscallCounts},
};

/// The tallies' keys; zero: free.
#[map]
static TALLIES: Array<[u64; WAYS as usize]> = Array::with_max_entries(MAX_TALLIES / WAYS, BPF_F_MMAPABLE);

/// Their counts: one block of all tallies after another, a block a CPU. The agent gives it its size.
#[map]
static TALLY_COUNTS: Array<u64> = Array::with_max_entries(MAX_TALLIES, BPF_F_MMAPABLE);

#[map]
static LATENCIES: Array<[Latency; LATENCY_WAYS as usize]> =
    Array::with_max_entries(MAX_LATENCIES / LATENCY_WAYS, BPF_F_MMAPABLE);

#[map]
static SYSCALL_COUNTERS: PerCpuArray<SyscallCounts> = PerCpuArray::with_max_entries(1, 0);

/// Buckets less one, whose number is a power of two.
#[unsafe(no_mangle)]
static TALLY_MASK: u32 = MAX_TALLIES / WAYS - 1;

#[unsafe(no_mangle)]
static LATENCY_MASK: u32 = MAX_LATENCIES / LATENCY_WAYS - 1;

/// Buckets that a key may be in.
const PROBES: u32 = 4;

/// See `table.rs`.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// Counts a call.
#[inline(always)]
pub(crate) fn tally(key: Key) {
    // SAFETY: a plain global. Volatile, or the compiler would use the value it sees here.
    let mask = unsafe { ptr::read_volatile(&raw const TALLY_MASK) };
    let hash = key.0.wrapping_mul(SPREAD);
    for probe in 0..PROBES {
        let bucket = bucket(hash, probe, mask);
        let Some(keys) = TALLIES.get_ptr_mut(bucket) else {
            return;
        };
        let keys = keys.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: a bucket has WAYS keys.
            if unsafe { is_ours(keys.add(way as usize), key.0) } {
                // SAFETY: no preconditions.
                let cpu = unsafe { bpf_get_smp_processor_id() };
                let place = bucket * WAYS + way;
                if let Some(count) = TALLY_COUNTS.get_ptr_mut(cpu * (mask + 1) * WAYS + place) {
                    // SAFETY: a program of this kind is not started inside itself on the same CPU, and nobody else
                    // writes this CPU's block.
                    unsafe { *count += 1 };
                }
                return;
            }
        }
    }
    count(SyscallCounter::Untallied);
}

/// Counts a call that was measured.
#[inline(always)]
pub(crate) fn latency(key: Key) {
    // SAFETY: as above.
    let mask = unsafe { ptr::read_volatile(&raw const LATENCY_MASK) };
    let hash = key.0.wrapping_mul(SPREAD);
    for probe in 0..PROBES {
        let Some(latencies) = LATENCIES.get_ptr_mut(bucket(hash, probe, mask)) else {
            return;
        };
        let latencies = latencies.cast::<Latency>();
        for way in 0..LATENCY_WAYS {
            // SAFETY: a bucket has LATENCY_WAYS latencies; their words are aligned, and an atomic addition is one
            // instruction.
            unsafe {
                let latency = latencies.add(way as usize);
                if is_ours(&raw mut (*latency).key, key.0) {
                    atomic_xadd::<u64, u64, { Relaxed }>(&raw mut (*latency).count, 1);
                    return;
                }
            }
        }
    }
    count(SyscallCounter::Unrecorded);
}

/// The bucket of a probe: steps are odd, so that the probes of a key differ.
#[inline(always)]
fn bucket(hash: u64, probe: u32, mask: u32) -> u32 {
    ((hash >> 32) as u32).wrapping_add(probe.wrapping_mul(hash as u32 | 1)) & mask
}

/// Whether the place has our key, or takes it because it was free.
///
/// # Safety
/// The place is an aligned word of a map.
#[inline(always)]
unsafe fn is_ours(place: *mut u64, key: u64) -> bool {
    // SAFETY: the caller's; both are single instructions of BPF.
    unsafe {
        let found = ptr::read_volatile(place);
        if found != 0 {
            return found == key;
        }
        let (before, is_taken) = atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, 0, key);
        is_taken || before == key
    }
}

/// Counts what is not a tally.
#[inline(always)]
pub(crate) fn count(counter: SyscallCounter) {
    if let Some(counts) = SYSCALL_COUNTERS.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's entry.
        unsafe { (*counts).0[counter as usize] += 1 };
    }
}
