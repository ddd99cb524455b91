//! One connection end, from its opening to CLOSE.
//!
//! A record is begun at SYN_SENT (active) or SYN_RECV (passive), every further state is appended to its path, and
//! CLOSE completes it and hands it over. The tracepoint fires under the socket's lock, so an entry has one writer at a
//! time. It often fires in softirq, where the running task is a stranger: only states that a process reaches by
//! its own call say who owns the socket.

use aya_ebpf::{macros::map, maps::HashMap, programs::BtfTracePointContext};
use aya_log_ebpf::warn;
use holdfast_agent_ebpf::{
    counter::Counter,
    event::{ConnectionRecord, attribution, flag, role, state, step},
    limits::{COMM_BYTES, LISTENERS as MAX_LISTENERS, PATH_STEPS},
    offset::Member,
};

use crate::{
    counters::{ELSEWHERE, count, slot},
    kernel::{Sock, current_process, now_ns},
    ring, table,
};

/// Who called listen() on a port, for the ends that come out of it.
#[map]
static LISTENERS: HashMap<ListenerKey, Listener> = HashMap::with_max_entries(MAX_LISTENERS, 0);

#[derive(Clone, Copy)]
#[repr(C)]
struct ListenerKey {
    netns: u32,
    port: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Listener {
    /// The listening socket: with SO_REUSEPORT several share a port, and only the one that is remembered may
    /// take the entry away.
    socket: u64,
    comm: [u8; COMM_BYTES],
    pid: u32,
    reserved: u32,
}

/// The hook: one match over where the socket went.
#[inline(always)]
pub(crate) fn changed(ctx: &BtfTracePointContext, sock: Sock, old: u8, new: u8) {
    if !sock.is_tcp() {
        return;
    }
    match (old, new) {
        (_, state::SYN_SENT) => open(ctx, sock, role::ACTIVE, new),
        (state::LISTEN, state::SYN_RECV) => open(ctx, sock, role::PASSIVE, new),
        (_, state::LISTEN) => listen(ctx, sock),
        (state::LISTEN, state::CLOSE) => unlisten(sock),
        _ => advance(ctx, sock, old, new),
    }
}

#[inline(always)]
fn open(ctx: &BtfTracePointContext, sock: Sock, role: u8, first: u8) {
    if !sock.is_observed() {
        count(ELSEWHERE, Counter::Filtered);
        return;
    }
    let counter_slot = slot(sock.netns());
    count(counter_slot, Counter::Opened);
    let Some(claim) = table::claim(sock.key()) else {
        if count(counter_slot, Counter::Untracked) {
            log_table_full(ctx);
        }
        return;
    };
    // SAFETY: the place was claimed for this socket, whose lock makes this program its only writer.
    let record = unsafe { &mut *claim.record };
    if claim.is_again {
        count(record.counter_slot, Counter::Superseded);
    }
    record.opened_ns = now_ns();
    record.counter_slot = counter_slot;
    record.path[0] = step(first, 0);
    record.path_len = 1;
    record.role = role;
    record.flags = flag::FIRST;
    record.syn_retransmits = 0;
    if role == role::ACTIVE {
        // connect(): the caller is the owner.
        record.pid = current_process(&mut record.comm);
        record.attribution = attribution::EXACT;
    } else {
        record.pid = 0;
        record.comm = [0; COMM_BYTES];
        record.attribution = attribution::UNKNOWN;
    }
}

/// A connection that is open takes its next step, or its last.
#[inline(always)]
fn advance(ctx: &BtfTracePointContext, sock: Sock, old: u8, new: u8) {
    let Some((place, record)) = table::find(sock.key()) else {
        if new == state::CLOSE && sock.is_observed() {
            count(slot(sock.netns()), Counter::Unseen);
        }
        return;
    };
    // SAFETY: the entry is live; the socket's lock makes this program its only writer.
    let record = unsafe { &mut *record };
    append(record, new);
    match new {
        state::ESTABLISHED => establish(sock, record),
        // Reached only from close() or shutdown(): the caller owns the socket (tcp_close_state, net/ipv4/tcp.c).
        state::FIN_WAIT1 | state::LAST_ACK => own(record),
        state::CLOSE => {
            // Without an error an established connection only gets here by its owner's close() or disconnect: a
            // reset, a timeout and `ss -K` all set sk_err first.
            if matches!(old, state::ESTABLISHED | state::CLOSE_WAIT) && sock.error() == 0 {
                own(record);
            }
            count(record.counter_slot, Counter::Closed);
            emit(ctx, sock, record);
            place.release();
        }
        _ => {}
    }
}

#[inline(always)]
fn establish(sock: Sock, record: &mut ConnectionRecord) {
    record.flags |= flag::ESTABLISHED;
    let Some(tcp) = sock.tcp() else { return };
    record.syn_retransmits = saturate(tcp.read(Member::TcpRetransmits));
    if record.role == role::ACTIVE {
        return;
    }
    let key = ListenerKey {
        netns: sock.netns(),
        port: u32::from(u16::from_be(tcp.read(Member::InetLocalPort))),
    };
    if let Some(listener) = LISTENERS.get_ptr(&key) {
        // SAFETY: the entry is live; its bytes are plain integers, replaced as a whole.
        let listener = unsafe { &*listener };
        record.pid = listener.pid;
        record.comm = listener.comm;
        record.attribution = attribution::LISTENER;
    }
}

#[inline(always)]
fn listen(ctx: &BtfTracePointContext, sock: Sock) {
    if !sock.is_observed() {
        return;
    }
    let mut comm = [0; COMM_BYTES];
    let pid = current_process(&mut comm);
    let listener = Listener {
        socket: sock.key(),
        comm,
        pid,
        reserved: 0,
    };
    if LISTENERS.insert(&listener_key(sock), &listener, 0).is_err()
        && count(slot(sock.netns()), Counter::ListenersUntracked)
    {
        log_listeners_full(ctx);
    }
}

#[inline(always)]
fn unlisten(sock: Sock) {
    let key = listener_key(sock);
    let Some(listener) = LISTENERS.get_ptr(&key) else {
        return;
    };
    // SAFETY: the entry is live.
    if unsafe { (*listener).socket } == sock.key() {
        let _ = LISTENERS.remove(&key);
    }
}

#[inline(always)]
fn listener_key(sock: Sock) -> ListenerKey {
    ListenerKey {
        netns: sock.netns(),
        port: u32::from(sock.local_port()),
    }
}

/// The running task made the call that brought the socket here.
#[inline(always)]
fn own(record: &mut ConnectionRecord) {
    if record.attribution != attribution::EXACT {
        record.pid = current_process(&mut record.comm);
        record.attribution = attribution::EXACT;
    }
}

/// Adds a step to the path; past its end the last place is overwritten, and the record says so.
#[inline(always)]
fn append(record: &mut ConnectionRecord, state: u8) {
    let step = step(state, now_ns().wrapping_sub(record.opened_ns));
    let len = record.path_len as usize;
    if len < PATH_STEPS {
        record.path[len] = step;
        record.path_len = len as u8 + 1;
    } else {
        record.path[PATH_STEPS - 1] = step;
        record.flags |= flag::PATH_TRUNCATED;
    }
}

/// Completes the record with what only the socket knows, and hands it over.
#[inline(always)]
fn emit(ctx: &BtfTracePointContext, sock: Sock, record: &mut ConnectionRecord) {
    let Some(tcp) = sock.tcp() else {
        // A TCP socket that is none: never seen. It is closed, and its record is lost.
        count(record.counter_slot, Counter::Lost);
        return;
    };
    record.cookie = sock.cookie();
    record.cgroup_id = sock.cgroup_id();
    record.netns = sock.netns();
    record.bytes_sent = tcp.read(Member::TcpBytesSent);
    record.bytes_retransmitted = tcp.read(Member::TcpBytesRetransmitted);
    record.bytes_received = tcp.read(Member::TcpBytesReceived);
    record.segments_sent = tcp.read(Member::TcpSegmentsSent);
    record.segments_received = tcp.read(Member::TcpSegmentsReceived);
    record.retransmits = tcp.read(Member::TcpRetransmits);
    record.srtt_us = tcp.read::<u32>(Member::TcpSrtt) >> 3;
    record.local_port = u16::from_be(tcp.read(Member::InetLocalPort));
    record.remote_port = sock.remote_port();
    record.error = sock.error();
    record.family = sock.family() as u8;
    sock.addresses(&mut record.local_address, &mut record.remote_address);
    if record.flags & flag::ESTABLISHED == 0 {
        record.syn_retransmits = saturate(record.retransmits);
    }
    if sock.fin_received() {
        record.flags |= flag::FIN_RECEIVED;
    }
    record.flags |= flag::FINAL;
    if !ring::output(record) && count(record.counter_slot, Counter::Lost) {
        log_ring_full(ctx);
    }
}

#[inline(always)]
fn saturate(retransmits: u32) -> u8 {
    if retransmits > 255 { 255 } else { retransmits as u8 }
}

// The programs' own messages, one each per CPU. Functions of their own, off the path of the records: what they are
// made of would fill the instruction cache. Not #[cold]: that would put them in another section, and aya-obj 0.3 takes
// functions at the same address of two sections for one.

#[inline(never)]
fn log_table_full(ctx: &BtfTracePointContext) {
    warn!(
        ctx,
        "the table of connections is full: further ones are counted as untracked"
    );
}

#[inline(never)]
fn log_listeners_full(ctx: &BtfTracePointContext) {
    warn!(
        ctx,
        "the listener map is full: connections of further listeners have no process until they close"
    );
}

#[inline(never)]
fn log_ring_full(ctx: &BtfTracePointContext) {
    warn!(ctx, "the ring buffer is full: records are lost, and counted");
}
