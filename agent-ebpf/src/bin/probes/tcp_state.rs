//! One connection end, from its opening to CLOSE.
//!
//! An entry is made at SYN_SENT (active) or SYN_RECV (passive), every further state is appended to its path, and
//! CLOSE turns it into one record. The tracepoint fires under the socket's lock, so an entry has one writer at a
//! time. It often fires in softirq, where the running task is a stranger: only states that a process reaches by
//! its own call say who owns the socket.

use aya_ebpf::{macros::map, maps::HashMap, programs::BtfTracePointContext};
use aya_log_ebpf::warn;
use holdfast_agent_ebpf::{
    counter::Counter,
    event::{ConnectionRecord, attribution, flag, role, state, step},
    limits::{COMM_BYTES, CONNECTIONS as MAX_CONNECTIONS, LISTENERS as MAX_LISTENERS, PATH_STEPS},
    offset::Member,
};

use crate::{
    counters::count,
    kernel::{Sock, current_process, now_ns},
    ring,
};

/// Connections that are open, by the address of their socket. It refuses when it is full and never evicts.
#[map]
static CONNECTIONS: HashMap<u64, Connection> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// Who called listen() on a port, for the ends that come out of it.
#[map]
static LISTENERS: HashMap<ListenerKey, Listener> = HashMap::with_max_entries(MAX_LISTENERS, 0);

#[derive(Clone, Copy)]
#[repr(C)]
struct Connection {
    opened_ns: u64,
    path: [u64; PATH_STEPS],
    comm: [u8; COMM_BYTES],
    pid: u32,
    role: u8,
    attribution: u8,
    flags: u8,
    path_len: u8,
    syn_retransmits: u8,
    established: u8,
    reserved: [u8; 6],
}

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
    match (old, new) {
        (_, state::SYN_SENT) => open(ctx, sock, role::ACTIVE, new),
        (state::LISTEN, state::SYN_RECV) => open(ctx, sock, role::PASSIVE, new),
        (_, state::LISTEN) => listen(ctx, sock),
        (state::LISTEN, state::CLOSE) => unlisten(sock),
        (_, state::CLOSE) => close(ctx, sock, old),
        (_, state::ESTABLISHED) => establish(sock),
        _ => step_on(sock, new),
    }
}

#[inline(always)]
fn open(ctx: &BtfTracePointContext, sock: Sock, role: u8, first: u8) {
    if !sock.is_observed() {
        count(Counter::Filtered);
        return;
    }
    let mut connection = Connection {
        opened_ns: now_ns(),
        path: [0; PATH_STEPS],
        comm: [0; COMM_BYTES],
        pid: 0,
        role,
        attribution: attribution::UNKNOWN,
        flags: 0,
        path_len: 1,
        syn_retransmits: 0,
        established: 0,
        reserved: [0; 6],
    };
    connection.path[0] = step(first, 0);
    if role == role::ACTIVE {
        // connect(): the caller is the owner.
        (connection.pid, connection.comm) = current_process();
        connection.attribution = attribution::EXACT;
    }
    count(Counter::Opened);
    if CONNECTIONS.insert(&sock.key(), &connection, 0).is_err() && count(Counter::Untracked) {
        warn!(
            ctx,
            "the connection map is full: further connections are counted as untracked"
        );
    }
}

#[inline(always)]
fn establish(sock: Sock) {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&sock.key()) else {
        return;
    };
    // SAFETY: the entry is live; the socket's lock makes this program its only writer.
    let connection = unsafe { &mut *connection };
    append(connection, state::ESTABLISHED);
    connection.established = 1;
    if let Some(tcp) = sock.tcp() {
        connection.syn_retransmits = saturate(tcp.read(Member::TcpRetransmits));
        if connection.role == role::PASSIVE {
            let key = ListenerKey {
                netns: sock.netns(),
                port: u32::from(u16::from_be(tcp.read(Member::InetLocalPort))),
            };
            if let Some(listener) = LISTENERS.get_ptr(&key) {
                // SAFETY: the entry is live; its bytes are plain integers, replaced as a whole.
                let listener = unsafe { &*listener };
                connection.pid = listener.pid;
                connection.comm = listener.comm;
                connection.attribution = attribution::LISTENER;
            }
        }
    }
}

#[inline(always)]
fn step_on(sock: Sock, new: u8) {
    let Some(connection) = CONNECTIONS.get_ptr_mut(&sock.key()) else {
        return;
    };
    // SAFETY: the entry is live; the socket's lock makes this program its only writer.
    let connection = unsafe { &mut *connection };
    append(connection, new);
    // Reached only from close() or shutdown(): the caller owns the socket (tcp_close_state, net/ipv4/tcp.c).
    if matches!(new, state::FIN_WAIT1 | state::LAST_ACK) {
        own(connection);
    }
}

#[inline(always)]
fn close(ctx: &BtfTracePointContext, sock: Sock, old: u8) {
    let key = sock.key();
    let Some(connection) = CONNECTIONS.get_ptr_mut(&key) else {
        if sock.is_observed() {
            count(Counter::Unseen);
        }
        return;
    };
    // SAFETY: the entry is live; the socket's lock makes this program its only writer.
    let connection = unsafe { &mut *connection };
    append(connection, state::CLOSE);
    // Without an error an established connection only gets here by its owner's close() or disconnect: a reset, a
    // timeout and `ss -K` all set sk_err first.
    if matches!(old, state::ESTABLISHED | state::CLOSE_WAIT) && sock.error() == 0 {
        own(connection);
    }
    count(Counter::Closed);
    emit(ctx, sock, connection);
    let _ = CONNECTIONS.remove(&key);
}

#[inline(always)]
fn listen(ctx: &BtfTracePointContext, sock: Sock) {
    if !sock.is_observed() {
        return;
    }
    let (pid, comm) = current_process();
    let listener = Listener {
        socket: sock.key(),
        comm,
        pid,
        reserved: 0,
    };
    if LISTENERS.insert(&listener_key(sock), &listener, 0).is_err() && count(Counter::ListenersUntracked) {
        warn!(
            ctx,
            "the listener map is full: connections of further listeners have no process until they close"
        );
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
fn own(connection: &mut Connection) {
    if connection.attribution != attribution::EXACT {
        (connection.pid, connection.comm) = current_process();
        connection.attribution = attribution::EXACT;
    }
}

/// Adds a step to the path; past its end the last place is overwritten, and the record says so.
#[inline(always)]
fn append(connection: &mut Connection, state: u8) {
    let step = step(state, now_ns().wrapping_sub(connection.opened_ns));
    let len = connection.path_len as usize;
    if len < PATH_STEPS {
        connection.path[len] = step;
        connection.path_len = len as u8 + 1;
    } else {
        connection.path[PATH_STEPS - 1] = step;
        connection.flags |= flag::PATH_TRUNCATED;
    }
}

#[inline(always)]
fn emit(ctx: &BtfTracePointContext, sock: Sock, connection: &Connection) {
    let Some(tcp) = sock.tcp() else { return };
    let Some(mut entry) = ring::reserve() else {
        if count(Counter::Lost) {
            warn!(ctx, "the ring buffer is full: records are lost, and counted");
        }
        return;
    };
    let (local, remote) = sock.addresses();
    let retransmits = tcp.read(Member::TcpRetransmits);
    let fin = if sock.fin_received() {
        flag::FIN_RECEIVED
    } else {
        0
    };
    entry.write(ConnectionRecord {
        cookie: sock.cookie(),
        opened_ns: connection.opened_ns,
        path: connection.path,
        cgroup_id: sock.cgroup_id(),
        bytes_sent: tcp.read(Member::TcpBytesSent),
        bytes_retransmitted: tcp.read(Member::TcpBytesRetransmitted),
        bytes_received: tcp.read(Member::TcpBytesReceived),
        local_address: bytes(local),
        remote_address: bytes(remote),
        comm: connection.comm,
        netns: sock.netns(),
        pid: connection.pid,
        segments_sent: tcp.read(Member::TcpSegmentsSent),
        segments_received: tcp.read(Member::TcpSegmentsReceived),
        retransmits,
        srtt_us: tcp.read::<u32>(Member::TcpSrtt) >> 3,
        local_port: u16::from_be(tcp.read(Member::InetLocalPort)),
        remote_port: sock.remote_port(),
        error: sock.error(),
        family: sock.family() as u8,
        role: connection.role,
        attribution: connection.attribution,
        flags: connection.flags | flag::FIRST | flag::FINAL | fin,
        path_len: connection.path_len,
        syn_retransmits: if connection.established == 1 {
            connection.syn_retransmits
        } else {
            saturate(retransmits)
        },
        reserved: 0,
    });
    ring::submit(entry);
}

#[inline(always)]
fn saturate(retransmits: u32) -> u8 {
    if retransmits > 255 { 255 } else { retransmits as u8 }
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: sixteen bytes either way; the words are already in network order.
    unsafe { core::mem::transmute(words) }
}
