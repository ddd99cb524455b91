//! Which slot a process' calls are counted in: from its first call that is seen, until it ends or becomes another
//! program.
//!
//! The table of slots is keyed by the process' id, and made like `table.rs`. It refuses when it is full: a process without
//! a slot shares one. An ended slot is found by nobody; the agent gives it back.

use core::{
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg},
    ptr,
};

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE, helpers::generated::bpf_get_current_cgroup_id, macros::map, maps::Array,
};
use holdfast_agent_ebpf::{
    limits::{SYSCALL_SLOTS, WAYS},
    syscall::{FIRST_SLOT, HIDDEN_SLOT, OTHER_SLOT, SlotOwner, SyscallCounter, process_key},
};

use crate::{
    kernel::{Task, current_process, now_ns},
    tallies,
};

/// The keys (see [`process_key`]); zero: free.
#[map]
static PROCESSES: Array<[u64; WAYS as usize]> = Array::with_max_entries(SYSCALL_SLOTS / WAYS, BPF_F_MMAPABLE);

/// Who has the slots, each at the place of its key.
#[map]
static SLOT_OWNERS: Array<SlotOwner> = Array::with_max_entries(SYSCALL_SLOTS, BPF_F_MMAPABLE);

/// Buckets less one, whose number is a power of two.
#[unsafe(no_mangle)]
static PROCESS_MASK: u32 = SYSCALL_SLOTS / WAYS - 1;

/// Buckets that a key may be in.
const PROBES: u32 = 4;

/// See `table.rs`.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The slot of the running process. What is left out by the configuration is decided here, once for each thread.
#[inline(never)]
pub(crate) fn slot_of_current(pid: u32) -> u32 {
    if !Task::current().is_observed() {
        return HIDDEN_SLOT;
    }
    let key = process_key::of(pid);
    // Looked for everywhere before a free place is taken: one process, one slot.
    if let Some(place) = find(key) {
        return FIRST_SLOT + place;
    }
    match take(key) {
        Some(place) => {
            describe(place);
            FIRST_SLOT + place
        }
        None => {
            tallies::count(SyscallCounter::Slotless);
            OTHER_SLOT
        }
    }
}

/// The process ended, or is another program from here on.
#[inline(never)]
pub(crate) fn end(pid: u32) -> u32 {
    let key = process_key::of(pid);
    for probe in 0..PROBES {
        let Some(keys) = PROCESSES.get_ptr_mut(bucket(key, probe)) else {
            return 0;
        };
        let keys = keys.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: a bucket has WAYS keys, aligned; single instructions of BPF.
            unsafe {
                let place = keys.add(way as usize);
                if ptr::read_volatile(place) == key {
                    ptr::write_volatile(place, process_key::ended(key));
                }
            }
        }
    }
    0
}

#[inline(always)]
fn find(key: u64) -> Option<u32> {
    for probe in 0..PROBES {
        let bucket = bucket(key, probe);
        let keys = PROCESSES.get_ptr(bucket)?.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: a bucket has WAYS keys; volatile, because other CPUs write them.
            if unsafe { ptr::read_volatile(keys.add(way as usize)) } == key {
                return Some(bucket * WAYS + way);
            }
        }
    }
    None
}

#[inline(always)]
fn take(key: u64) -> Option<u32> {
    for probe in 0..PROBES {
        let bucket = bucket(key, probe);
        let keys = PROCESSES.get_ptr_mut(bucket)?.cast::<u64>();
        for way in 0..WAYS {
            // SAFETY: a bucket has WAYS keys, aligned; single instructions of BPF.
            let is_ours = unsafe {
                let place = keys.add(way as usize);
                ptr::read_volatile(place) == 0 && {
                    let (before, is_taken) = atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(place, 0, key);
                    // Another thread of the process may have been faster.
                    is_taken || before == key
                }
            };
            if is_ours {
                return Some(bucket * WAYS + way);
            }
        }
    }
    None
}

#[inline(always)]
fn describe(place: u32) {
    let Some(owner) = SLOT_OWNERS.get_ptr_mut(place) else {
        return;
    };
    // SAFETY: the entry is live. Two threads that come at once write the same.
    unsafe {
        (*owner).began_ns = now_ns();
        (*owner).cgroup_id = bpf_get_current_cgroup_id();
        current_process(&mut (*owner).comm);
        ptr::write_volatile(&raw mut (*owner).is_complete, 1);
    }
}

#[inline(always)]
fn bucket(key: u64, probe: u32) -> u32 {
    let hash = key.wrapping_mul(SPREAD);
    // SAFETY: a plain global. Volatile, or the compiler would use the value it sees here.
    let mask = unsafe { ptr::read_volatile(&raw const PROCESS_MASK) };
    ((hash >> 32) as u32).wrapping_add(probe.wrapping_mul(hash as u32 | 1)) & mask
}
