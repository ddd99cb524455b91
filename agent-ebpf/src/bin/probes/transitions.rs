//! Every transition as an event of its own, for those who asked for it: into a ring buffer of their own, so that many of
//! them never take the room of a connection's record.
//!
//! A step that was handed over is marked in its connection's record, which tells the others: so each transition is told
//! once, however often they are switched on and off while the connection lives.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    macros::map,
    maps::{PerCpuArray, RingBuf},
    programs::BtfTracePointContext,
};
use holdfast_agent_ebpf::{
    control::Control,
    counter::Counter,
    event::{ConnectionRecord, Transition, attribution, role, state, step_offset_ns, step_state},
    limits::{COMM_BYTES, PATH_STEPS, TRANSITION_RING_BYTES},
};

use crate::{
    control,
    counters::{count, slot},
    kernel::{Sock, current_process, now_ns},
    table,
    tcp_state::{emit, name, name_local},
};

#[map]
static TRANSITIONS: RingBuf = RingBuf::with_byte_size(TRANSITION_RING_BYTES, 0);

/// Where what is known of a listener is put together, which has no record: too large for the stack.
#[map]
static LISTENER_RECORD: PerCpuArray<ConnectionRecord> = PerCpuArray::with_max_entries(1, 0);

/// A connection has taken a step while transitions are streamed. Its record is handed over from here, where that was the
/// last: by then it says which of its steps were.
///
/// After everything else, and with nothing of it: what the verifier knows of the ways that lead here it would follow all
/// through the filters.
#[inline(never)]
pub(crate) fn stepped(ctx: &BtfTracePointContext, sock: Sock) {
    let record = table::record(sock.key());
    if record.is_null() {
        // Who it is of, nobody knows.
        if sock.is_observed() {
            let counter_slot = slot(sock.netns());
            count(counter_slot, Counter::Transitions);
            count(counter_slot, Counter::TransitionsUntracked);
        }
        return;
    }
    // SAFETY: the entry is live; the socket's lock makes this program the record's only writer.
    let record = unsafe { &mut *record };
    // They may have been switched off a moment ago.
    if let Some(control) = control::streaming() {
        stream(control, sock, record);
    }
    if step_state(record.path[last(record)]) == state::CLOSE {
        emit(ctx, sock, record);
        table::release(sock.key());
    }
}

/// The place of the last step.
#[inline(always)]
fn last(record: &ConnectionRecord) -> usize {
    (record.path_len as usize).wrapping_sub(1) & (PATH_STEPS - 1)
}

/// Streams the last step of a path. The first of a passive end comes with its second: the kernel makes its socket first and
/// fills it afterwards, both within the call that ends the handshake.
#[inline(always)]
fn stream(control: &Control, sock: Sock, record: &mut ConnectionRecord) {
    let last = last(record);
    if last == 0 && record.role == role::PASSIVE {
        return;
    }
    if record.local_port == 0 {
        name_local(sock, record);
    }
    let is_wanted = control::streams(control, record);
    if last == 1
        && record.role == role::PASSIVE
        && record.streamed & 1 == 0
        && record.before == state::SYN_RECV
    {
        hand_over(record, 0, state::LISTEN, is_wanted);
    }
    hand_over(record, last, record.before, is_wanted);
}

#[inline(never)]
fn hand_over(record: &mut ConnectionRecord, index: usize, from: u8, is_wanted: bool) {
    count(record.counter_slot, Counter::Transitions);
    if !is_wanted {
        count(record.counter_slot, Counter::TransitionsFiltered);
        return;
    }
    let step = record.path[index & (PATH_STEPS - 1)];
    let at_ns = record.opened_ns.wrapping_add(step_offset_ns(step));
    if output(record, at_ns, from, step_state(step), index as u8 + 1) {
        record.streamed |= 1 << index;
    }
}

/// A socket begins to listen, or ends it, both in a call of its owner.
#[inline(never)]
pub(crate) fn listener(control: &Control, sock: Sock, from: u8, to: u8) {
    let Some(record) = LISTENER_RECORD.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's entry, and only this program uses it, which the kernel does not start inside itself.
    let record = unsafe { &mut *record };
    record.role = role::PASSIVE;
    name(sock, record);
    name_local(sock, record);
    let mut comm = [0; COMM_BYTES];
    record.pid = current_process(&mut comm);
    record.comm = comm;
    record.attribution = if record.pid == 0 {
        attribution::UNKNOWN
    } else {
        attribution::EXACT
    };
    record.counter_slot = slot(record.netns);
    record.opened_ns = now_ns();
    count(record.counter_slot, Counter::Transitions);
    if control::streams(control, record) {
        output(record, record.opened_ns, from, to, 0);
    } else {
        count(record.counter_slot, Counter::TransitionsFiltered);
    }
}

/// Whether there was room for it; if not, it is counted.
#[inline(always)]
fn output(record: &ConnectionRecord, at_ns: u64, from: u8, to: u8, step: u8) -> bool {
    let Some(mut entry) = TRANSITIONS.reserve::<Transition>(0) else {
        count(record.counter_slot, Counter::TransitionsLost);
        return false;
    };
    let place = entry.as_mut_ptr();
    // SAFETY: the room is ours until it is submitted, and every member is written.
    unsafe {
        (*place).at_ns = at_ns;
        (*place).opened_ns = record.opened_ns;
        (*place).cookie = record.cookie;
        (*place).cgroup_id = record.cgroup_id;
        (*place).local_address = record.local_address;
        (*place).remote_address = record.remote_address;
        (*place).comm = record.comm;
        (*place).netns = record.netns;
        (*place).pid = record.pid;
        (*place).local_port = record.local_port;
        (*place).remote_port = record.remote_port;
        (*place).family = record.family;
        (*place).role = record.role;
        (*place).attribution = record.attribution;
        (*place).from = from;
        (*place).to = to;
        (*place).step = step;
        (*place).reserved = [0; 6];
    }
    entry.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}
