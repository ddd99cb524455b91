//! The listeners: who called listen() on a port, for the ends that come out of it.

use aya_ebpf::{bindings::BPF_NOEXIST, macros::map, maps::HashMap};
use holdfast_agent_ebpf::{
    event::{ConnectionRecord, attribution},
    limits::{COMM_BYTES, LISTENERS as MAX_LISTENERS},
    listener::{Listener, ListenerKey},
};

use crate::kernel::{Sock, current_process};

#[map]
static LISTENERS: HashMap<ListenerKey, Listener> = HashMap::with_max_entries(MAX_LISTENERS, 0);

/// The running process called listen(). False if there is no room to remember it.
#[inline(always)]
pub(crate) fn remember(sock: Sock) -> bool {
    let mut comm = [0; COMM_BYTES];
    let pid = current_process(&mut comm);
    let quality = if pid == 0 {
        attribution::UNKNOWN
    } else {
        attribution::LISTENER
    };
    let listener = Listener {
        socket: sock.key(),
        comm,
        pid,
        attribution: quality.into(),
    };
    LISTENERS.insert(&key(sock), &listener, 0).is_ok()
}

/// A listener was found whose owner nobody saw; the agent looks for one. False if there is no room.
#[inline(always)]
pub(crate) fn found(sock: Sock) -> bool {
    let key = key(sock);
    let listener = Listener {
        socket: sock.key(),
        comm: [0; COMM_BYTES],
        pid: 0,
        attribution: attribution::UNKNOWN.into(),
    };
    LISTENERS.insert(&key, &listener, u64::from(BPF_NOEXIST)).is_ok() || LISTENERS.get_ptr(&key).is_some()
}

/// The socket listens no more.
#[inline(always)]
pub(crate) fn forget(sock: Sock) {
    let key = key(sock);
    let Some(listener) = LISTENERS.get_ptr(&key) else {
        return;
    };
    // SAFETY: the entry is live.
    if unsafe { (*listener).socket } == sock.key() {
        let _ = LISTENERS.remove(&key);
    }
}

/// Gives an end the owner of the listener that it comes out of, until it has one of its own; a listener has itself. False
/// if nobody listens on its port: then it is no passive end, as far as can be known.
///
/// A listener on the end's own address goes before one on all addresses, as in the kernel (compute_score(),
/// net/ipv4/inet_hashtables.c). At SYN_RECV the socket is bound as its listener on some kernels, and as itself on others
/// (inet_csk_clone_lock(), net/ipv4/inet_connection_sock.c).
#[inline(always)]
pub(crate) fn inherit(sock: Sock, record: &mut ConnectionRecord) -> bool {
    let bound = key(sock);
    let any = ListenerKey { address: 0, ..bound };
    give(&bound, record)
        || give(&any, record)
        // A dual-stack listener, and an end of it that speaks IPv4.
        || give(&ListenerKey { family: AF_INET6, ..any }, record)
}

#[inline(always)]
fn give(key: &ListenerKey, record: &mut ConnectionRecord) -> bool {
    let Some(listener) = LISTENERS.get_ptr(key) else {
        return false;
    };
    // SAFETY: the entry is live; its bytes are plain integers, replaced as a whole.
    let listener = unsafe { &*listener };
    record.pid = listener.pid;
    record.comm = listener.comm;
    record.attribution = listener.attribution as u8;
    true
}

#[inline(always)]
fn key(sock: Sock) -> ListenerKey {
    let mut address = [0; 4];
    sock.local_address(&mut address);
    ListenerKey::new(sock.netns(), sock.family(), address, sock.local_port())
}

const AF_INET6: u16 = 10;
