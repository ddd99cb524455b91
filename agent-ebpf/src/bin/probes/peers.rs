//! Counts of trouble by peer. The map refuses when it is full; what found no place is counted together.

use core::intrinsics::{AtomicOrdering::SeqCst, atomic_xadd};

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    macros::map,
    maps::{Array, HashMap},
};
use holdfast_agent_ebpf::{
    limits::PEERS as MAX_PEERS,
    peer::{PeerKey, TROUBLES, Trouble},
};

type Counts = [u64; TROUBLES];

#[map]
static PEERS: HashMap<PeerKey, Counts> = HashMap::with_max_entries(MAX_PEERS, 0);

/// Of the peers that found no place.
#[map]
static OTHER_PEERS: Array<Counts> = Array::with_max_entries(1, 0);

/// Adds one.
#[inline(never)]
pub(crate) fn count(key: &PeerKey, trouble: Trouble) {
    let counts = match PEERS.get_ptr_mut(key) {
        Some(counts) => Some(counts),
        None => {
            let _ = PEERS.insert(key, &[0; TROUBLES], u64::from(BPF_NOEXIST));
            // Another CPU may have been faster: then its entry counts.
            PEERS.get_ptr_mut(key).or_else(|| OTHER_PEERS.get_ptr_mut(0))
        }
    };
    if let Some(counts) = counts {
        // SAFETY: the entry is live and aligned; the hooks run on all CPUs, so this is one atomic instruction.
        unsafe { atomic_xadd::<u64, u64, { SeqCst }>(&raw mut (*counts)[trouble as usize], 1) };
    }
}
