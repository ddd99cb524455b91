//! One connection end, from its opening to CLOSE.
//!
//! A record is begun at SYN_SENT (active) or SYN_RECV (passive), every further state is appended to its path, and
//! CLOSE completes it and hands it over. A connection that stays open is announced by the agent, which finds its record
//! in the table once the handshake has succeeded. The tracepoint fires under the socket's lock, so an entry has one writer at a
//! time. It often fires in softirq, where the running task is a stranger: only states that a process reaches by
//! its own call say who owns the socket.

use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::warn;
use holdfast_agent_ebpf::{
    counter::Counter,
    event::{ConnectionRecord, attribution, flag, notice, reset, role, state, step, step_state},
    limits::{COMM_BYTES, PATH_STEPS},
    offset::Member,
};

use crate::{
    connects, control,
    counters::{ELSEWHERE, count, slot},
    kernel::{Sock, TcpSock, current_process, now_ns},
    listeners, ring, table, transitions,
};

/// The hook: one match over where the socket went.
#[inline(always)]
pub(crate) fn changed(ctx: &BtfTracePointContext, sock: Sock, old: u8, new: u8) {
    if !sock.is_tcp() {
        return;
    }
    let is_streaming = control::streaming().is_some();
    match (old, new) {
        (_, state::SYN_SENT) => open(ctx, sock, role::ACTIVE, old, new),
        // A child is a copy of its listener (inet_csk_clone_lock), which may just have been closed.
        (state::LISTEN | state::CLOSE, state::SYN_RECV) => open(ctx, sock, role::PASSIVE, old, new),
        (_, state::LISTEN) => {
            listen(ctx, sock);
            return stream_listener(sock, old, new);
        }
        (state::LISTEN, state::CLOSE) => {
            listeners::forget(sock);
            return stream_listener(sock, old, new);
        }
        _ => advance(ctx, sock, old, new, is_streaming),
    }
    if is_streaming {
        transitions::stepped(ctx, sock);
    }
}

#[inline(always)]
fn open(ctx: &BtfTracePointContext, sock: Sock, role: u8, before: u8, first: u8) {
    if !sock.is_observed() {
        count(ELSEWHERE, Counter::Elsewhere);
        return supersede(sock);
    }
    let counter_slot = slot(sock.netns());
    count(counter_slot, Counter::Opened);
    if !control::follows() {
        count(counter_slot, Counter::SampledOut);
        return supersede(sock);
    }
    let Some(claim) = table::claim(sock.key()) else {
        // That it had an attempt can be told from its cookie, where connect() returns.
        sock.cookie();
        if count(counter_slot, Counter::Untracked) {
            log_table_full(ctx);
        }
        return;
    };
    // SAFETY: the place was claimed for this socket, whose lock makes this program the record's only writer.
    let record = unsafe { &mut *claim.record };
    if claim.is_again {
        count(record.counter_slot, Counter::Superseded);
        // Nobody announces the connection before this one any more.
        claim.place.take_announcement();
    }
    record.opened_ns = now_ns();
    record.counter_slot = counter_slot;
    record.path[0] = step(first, 0);
    record.path_len = 1;
    record.role = role;
    record.flags = flag::FIRST;
    record.syn_retransmits = 0;
    record.accept_wait = 0;
    record.streamed = 0;
    record.reset_sent = 0;
    record.before = before;
    // What names the local end comes later; until then it is not that of an earlier connection.
    record.local_port = 0;
    record.pid = 0;
    record.comm = [0; COMM_BYTES];
    record.attribution = attribution::UNKNOWN;
    if role == role::ACTIVE {
        // connect(): the caller is the owner.
        own(record);
        // Whom it calls is known before the answer: attempts that wait for one can be told apart.
        name(sock, record);
        claim.place.notify(notice::pending(record.opened_ns));
    } else {
        listeners::inherit(sock, record);
    }
}

/// A socket whose connection is not followed may lie where one lay whose end was missed: that one's record shall not go
/// on with its steps.
#[inline(always)]
fn supersede(sock: Sock) {
    if let Some((place, record)) = table::find(sock.key()) {
        // SAFETY: the entry is live; the socket's lock makes this program its only writer.
        count(unsafe { (*record).counter_slot }, Counter::Superseded);
        place.take_announcement();
        place.release();
    }
}

/// A connection that is open takes its next step, or its last.
#[inline(always)]
fn advance(ctx: &BtfTracePointContext, sock: Sock, old: u8, new: u8, is_streaming: bool) {
    let Some((place, record)) = table::find(sock.key()) else {
        if new == state::CLOSE && sock.is_observed() {
            let counter_slot = slot(sock.netns());
            count(counter_slot, Counter::Unseen);
            if is_unsent(sock, old) {
                count(counter_slot, Counter::Unsent);
            }
            if old == state::SYN_SENT {
                connects::failed(sock.cookie());
            }
        }
        return;
    };
    // SAFETY: the entry is live; the socket's lock makes this program the record's only writer.
    let record = unsafe { &mut *record };
    append(record, new);
    record.before = old;
    match new {
        state::ESTABLISHED => {
            establish(sock, record);
            // Not before the rest.
            place.notify(notice::unannounced(record.opened_ns));
        }
        // Reached only from close() or shutdown(): the caller owns the socket (tcp_close_state, net/ipv4/tcp.c).
        state::FIN_WAIT1 => {
            own(record);
            if let Some(tcp) = sock.tcp() {
                note_received(tcp, record);
            }
        }
        state::LAST_ACK => own(record),
        state::CLOSE => {
            // Without an error an established connection only gets here by its owner's close() or disconnect: a
            // reset, a timeout and `ss -K` all set sk_err first.
            if matches!(old, state::ESTABLISHED | state::CLOSE_WAIT) && sock.error() == 0 {
                own(record);
            }
            count(record.counter_slot, Counter::Closed);
            if is_unsent(sock, old) {
                count(record.counter_slot, Counter::Unsent);
                record.flags |= flag::UNSENT;
            }
            let is_unannounced = place.take_announcement();
            if record.flags & flag::ESTABLISHED == 0 {
                name_rest(sock, record);
            } else if !is_unannounced {
                record.flags &= !flag::FIRST;
            }
            // Where its steps are streamed, they are first.
            if !is_streaming {
                emit(ctx, sock, record);
                place.release();
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn establish(sock: Sock, record: &mut ConnectionRecord) {
    name_rest(sock, record);
    record.flags |= flag::ESTABLISHED;
    let Some(tcp) = sock.tcp() else { return };
    record.syn_retransmits = saturate(tcp.read(Member::TcpRetransmits));
}

/// Writes what names the connection and is known from the first call on: everything but the local end of an active
/// one, which gets its port after SYN_SENT (tcp_v4_connect, net/ipv4/tcp_ipv4.c).
#[inline(always)]
pub(crate) fn name(sock: Sock, record: &mut ConnectionRecord) {
    record.cookie = sock.cookie();
    record.cgroup_id = sock.cgroup_id();
    record.netns = sock.netns();
    record.family = sock.family() as u8;
    record.remote_port = sock.remote_port();
    sock.remote_address(&mut record.remote_address);
}

/// Writes what names the local end.
#[inline(always)]
pub(crate) fn name_local(sock: Sock, record: &mut ConnectionRecord) {
    record.local_port = sock.local_port();
    sock.local_address(&mut record.local_address);
}

/// Writes all that names the connection and is not known yet. A passive one has nothing before its handshake ends: the
/// kernel makes its socket first and fills it afterwards (inet_csk_clone_lock, net/ipv4/inet_connection_sock.c).
#[inline(always)]
fn name_rest(sock: Sock, record: &mut ConnectionRecord) {
    if record.role == role::PASSIVE {
        name(sock, record);
    }
    name_local(sock, record);
}

/// Writes the volumes as they stand.
#[inline(always)]
pub(crate) fn measure(tcp: TcpSock, record: &mut ConnectionRecord) {
    record.bytes_sent = tcp.read(Member::TcpBytesSent);
    record.bytes_retransmitted = tcp.read(Member::TcpBytesRetransmitted);
    record.bytes_received = tcp.read(Member::TcpBytesReceived);
    record.segments_sent = tcp.read(Member::TcpSegmentsSent);
    record.segments_received = tcp.read(Member::TcpSegmentsReceived);
    record.retransmits = tcp.read(Member::TcpRetransmits);
    record.srtt_us = tcp.read::<u32>(Member::TcpSrtt) >> 3;
}

/// Notes what had arrived when this side sent its FIN, where the volumes go at the end.
#[inline(always)]
pub(crate) fn note_received(tcp: TcpSock, record: &mut ConnectionRecord) {
    record.segments_received = tcp.read(Member::TcpDataSegmentsReceived);
    record.bytes_received = tcp.read(Member::TcpBytesReceived);
}

/// Whether data came after this side's FIN and was not taken in: nobody reads any more. The kernel answers that with a
/// reset (tcp_rcv_state_process(), net/ipv4/tcp_input.c). Data that had been taken in after the FIN hides it, and a segment
/// that came twice looks the same.
#[inline(always)]
pub(crate) fn is_unread_data(sock: Sock, tcp: TcpSock, record: &ConnectionRecord) -> bool {
    sock.reads_no_more()
        && tcp.read::<u32>(Member::TcpDataSegmentsReceived) > record.segments_received
        && tcp.read::<u64>(Member::TcpBytesReceived) == record.bytes_received
}

/// Whether a socket whose FIN was acknowledged ends with a reset to the peer. From FIN_WAIT2 most are closed without an error
/// because a time-wait entry takes over: in close(), when the socket is an orphan already, or when the peer's FIN arrives.
/// Else its process ended it, with data that it did not read, without lingering, or by connecting anew (__tcp_close() and
/// tcp_disconnect(), net/ipv4/tcp.c), or it was not to wait at all, or data came with the acknowledgement.
#[inline(always)]
fn is_reset_after_fin(sock: Sock, tcp: TcpSock, record: &ConnectionRecord) -> bool {
    record.before == state::FIN_WAIT2
        && record.error == 0
        && !sock.fin_received()
        && (!sock.is_orphan() || tcp.read::<i32>(Member::TcpLinger) < 0 || is_unread_data(sock, tcp, record))
}

#[inline(always)]
fn stream_listener(sock: Sock, old: u8, new: u8) {
    if let Some(control) = control::streaming()
        && sock.is_observed()
    {
        transitions::listener(control, sock, old, new);
    }
}

#[inline(always)]
fn listen(ctx: &BtfTracePointContext, sock: Sock) {
    if sock.is_observed()
        && !listeners::remember(sock)
        && count(slot(sock.netns()), Counter::ListenersUntracked)
    {
        log_listeners_full(ctx);
    }
}

/// The running task made the call that brought the socket here; if it is a process, it owns the socket.
#[inline(always)]
fn own(record: &mut ConnectionRecord) {
    if record.attribution == attribution::EXACT {
        return;
    }
    let mut comm = [0; COMM_BYTES];
    let pid = current_process(&mut comm);
    if pid != 0 {
        record.pid = pid;
        record.comm = comm;
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
        record.streamed &= !(1 << (PATH_STEPS - 1));
    }
}

/// Completes the record with what only the socket knows, and hands it over.
#[inline(always)]
pub(crate) fn emit(ctx: &BtfTracePointContext, sock: Sock, record: &mut ConnectionRecord) {
    let Some(tcp) = sock.tcp() else {
        // A TCP socket that is none: never seen. It is closed, and its record is lost.
        count(record.counter_slot, Counter::Lost);
        return;
    };
    record.error = sock.error();
    if is_reset_after_fin(sock, tcp, record) {
        record.reset_sent = reset::LAST;
    }
    measure(tcp, record);
    if record.flags & flag::ESTABLISHED == 0 {
        record.syn_retransmits = saturate(record.retransmits);
    }
    if sock.fin_received() {
        record.flags |= flag::FIN_RECEIVED;
    }
    record.flags |= flag::FINAL;
    if record.flags & flag::UNSENT != 0 {
        if connects::defer(record) {
            return;
        }
    } else if record.flags & flag::ESTABLISHED == 0 && record.role == role::ACTIVE {
        connects::failed(record.cookie);
    }
    // One that was announced has its end handed over, whatever the filter is by now. What was established when it was
    // found never was.
    let is_unannounced = record.flags & flag::FIRST != 0 || step_state(record.path[0]) == state::ESTABLISHED;
    if is_unannounced && !control::hands_over(record) {
        count(record.counter_slot, Counter::Filtered);
        return;
    }
    if !ring::output(record) && count(record.counter_slot, Counter::Lost) {
        log_ring_full(ctx);
    }
}

/// An attempt that ends before its SYN left is known by its segments: none.
#[inline(always)]
fn is_unsent(sock: Sock, old: u8) -> bool {
    old == state::SYN_SENT
        && sock
            .tcp()
            .is_some_and(|tcp| tcp.read::<u32>(Member::TcpSegmentsSent) == 0)
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
