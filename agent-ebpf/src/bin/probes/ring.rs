//! The ring buffer.
//!
//! No wake-up per event: it would cost more than the record itself. The agent comes on its own tick; only when much
//! is waiting does an output wake it.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    macros::map,
    maps::RingBuf,
};
use holdfast_agent_ebpf::{
    event::ConnectionRecord,
    limits::{RING_BYTES, WAKE_BYTES},
};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);

/// Bytes past [`WAKE_BYTES`] within which an output wakes the agent: many records, so that the crossing is never
/// missed, but few enough that a late agent is not woken by every record.
const WAKE_WINDOW_BYTES: u64 = 16 * size_of::<ConnectionRecord>() as u64;

/// Copies a record to the agent; false when the ring is full.
#[inline(always)]
pub(crate) fn output(record: &ConnectionRecord) -> bool {
    let waiting = EVENTS.query(u64::from(BPF_RB_AVAIL_DATA));
    let crossing = waiting >= WAKE_BYTES && waiting < WAKE_BYTES + WAKE_WINDOW_BYTES;
    let flags = if crossing {
        BPF_RB_FORCE_WAKEUP
    } else {
        BPF_RB_NO_WAKEUP
    };
    EVENTS
        .output::<ConnectionRecord>(record, u64::from(flags))
        .is_ok()
}
