//! Counting, where the hook runs: per CPU, per network namespace, never reset.
//!
//! A namespace gets a slot when something is first counted in it. Past the last slot, namespaces share the slot 0, as
//! do those that the configuration leaves out.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
};
use holdfast_agent_ebpf::{
    counter::{Counter, Counts},
    limits::NAMESPACES as MAX_NAMESPACES,
};

#[map]
static COUNTERS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(MAX_NAMESPACES, 0);

/// The slots, by the inode of the namespace.
#[map]
static NAMESPACES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_NAMESPACES, 0);

/// How many slots were given out beside the slot 0.
#[map]
static SLOTS_USED: Array<u32> = Array::with_max_entries(1, 0);

/// The namespace that this CPU looked up last: most often it is asked for again.
#[map]
static LAST_NAMESPACE: PerCpuArray<Namespace> = PerCpuArray::with_max_entries(1, 0);

#[derive(Clone, Copy)]
#[repr(C)]
struct Namespace {
    inode: u32,
    slot: u32,
}

/// The slot of what belongs to no namespace that is observed.
pub(crate) const ELSEWHERE: u32 = 0;

/// The slot of a namespace, by its inode. For the state hook alone: what runs with interrupts on may be interrupted by
/// the hook between the two words, which are then of two namespaces. Others [`look_up`].
#[inline(always)]
pub(crate) fn slot(inode: u32) -> u32 {
    let Some(last) = LAST_NAMESPACE.get_ptr_mut(0) else {
        return ELSEWHERE;
    };
    // SAFETY: the pointer is to this CPU's entry; a program of this kind is not preempted by itself on the same CPU.
    unsafe {
        if (*last).inode != inode {
            *last = Namespace {
                inode,
                slot: look_up(inode),
            };
        }
        (*last).slot
    }
}

/// The slot of a namespace, for programs that the hook may interrupt: its memory is not theirs to write.
#[inline(never)]
pub(crate) fn look_up(inode: u32) -> u32 {
    if let Some(slot) = NAMESPACES.get_ptr(&inode) {
        // SAFETY: the entry is live.
        return unsafe { *slot };
    }
    let Some(used) = SLOTS_USED.get_ptr_mut(0) else {
        return ELSEWHERE;
    };
    // Sequentially consistent, or LLVM emits an addition that does not fetch, and takes what was added for the result.
    // SAFETY: the entry is live and aligned; one instruction of BPF.
    let slot = unsafe { atomic_xadd::<u32, u32, { SeqCst }>(used, 1) } + 1;
    if slot >= MAX_NAMESPACES {
        return ELSEWHERE;
    }
    if NAMESPACES.insert(&inode, &slot, u64::from(BPF_NOEXIST)).is_ok() {
        return slot;
    }
    // Another CPU may have been faster: then its slot counts, and this one stays empty. Without either nobody would read it.
    // SAFETY: the entry is live.
    NAMESPACES
        .get_ptr(&inode)
        .map_or(ELSEWHERE, |slot| unsafe { *slot })
}

/// Adds one, in a program that the hook may interrupt on the same CPU.
#[inline(always)]
pub(crate) fn count_beside(slot: u32, counter: Counter) {
    if let Some(counts) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: the pointer is to this CPU's entry, checked by the lookup; one instruction of BPF.
        unsafe { atomic_xadd::<u64, u64, { SeqCst }>(&raw mut (*counts).0[counter as usize], 1) };
    }
}

/// Adds one, and tells whether it was this CPU's first in the slot: the moment to say so in the log, once. For the state
/// hook alone; others [`count_beside`].
#[inline(always)]
pub(crate) fn count(slot: u32, counter: Counter) -> bool {
    let Some(counts) = COUNTERS.get_ptr_mut(slot) else {
        return false;
    };
    // SAFETY: the pointer is to this CPU's entry, checked by the lookup. A program of this kind is not preempted by
    // itself on the same CPU, and whoever it interrupts adds atomically.
    unsafe {
        let count = &mut (*counts).0[counter as usize];
        *count += 1;
        *count == 1
    }
}
