//! The ring buffer. Nothing here wakes the agent, which would cost more than the record itself: it comes on a tick of
//! its own, often enough for the ring's size.

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, macros::map, maps::RingBuf};
use holdfast_agent_ebpf::{event::ConnectionRecord, limits::RING_BYTES};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Copies a record to the agent; false when the ring is full.
#[inline(always)]
pub(crate) fn output(record: &ConnectionRecord) -> bool {
    EVENTS
        .output::<ConnectionRecord>(record, u64::from(BPF_RB_NO_WAKEUP))
        .is_ok()
}
