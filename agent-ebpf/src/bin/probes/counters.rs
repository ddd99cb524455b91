//! Counting, where the hook runs: one per-CPU array, a slot for each [`Counter`], never reset.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use holdfast_agent_ebpf::counter::Counter;

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// Adds one, and tells whether it was this CPU's first: the moment to say so in the log, once.
#[inline(always)]
pub(crate) fn count(counter: Counter) -> bool {
    let Some(slot) = COUNTERS.get_ptr_mut(counter.slot()) else {
        return false;
    };
    // SAFETY: the pointer is to this CPU's slot, checked by the lookup. A program of this kind is not preempted by
    // itself on the same CPU, and nobody else writes the map.
    unsafe {
        *slot += 1;
        *slot == 1
    }
}
