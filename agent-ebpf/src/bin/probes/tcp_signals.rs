//! Signs of trouble: resets, what is sent again, what a filter drops. They are counted by peer; resets are noted at their
//! connections too. A healthy connection reaches none of these hooks but the last, once a pair.

use core::ptr;

use holdfast_agent_ebpf::{
    event::{flag, reset, state},
    peer::{PeerKey, Trouble},
};

use crate::{
    kernel::{Packet, Sock, is_observed},
    packet::{self, Way},
    peers, table, tcp_state,
};

/// A reset arrived that the kernel believes. The hook fires under the socket's lock and before the socket is told
/// (tcp_reset(), net/ipv4/tcp_input.c), so the record that CLOSE completes has it.
///
/// Where data arrives that nobody reads any more, the kernel treats its own end as it does one that the peer resets, and
/// then sends the reset.
#[inline(always)]
pub(crate) fn reset_received(sock: Sock) {
    if let Some((_, record)) = table::find(sock.key()) {
        // SAFETY: the entry is live; the socket's lock makes this program the record's only writer.
        let record = unsafe { &mut *record };
        if matches!(sock.state(), state::FIN_WAIT1 | state::FIN_WAIT2)
            && let Some(tcp) = sock.tcp()
            && tcp_state::is_unread_data(sock, tcp, record)
        {
            record.reset_sent = reset::LAST;
            return;
        }
        record.flags |= flag::RESET_RECEIVED;
    }
    count(sock, Trouble::ResetsReceived);
}

/// A reset is sent: to answer `packet`, or by the socket itself, without one (tcp_send_active_reset(),
/// net/ipv4/tcp_output.c). Without a socket only since 6.10.
#[inline(always)]
pub(crate) fn reset_sent(sock: Sock, cause: Packet) {
    if !sock.is_none() {
        note_reset_sent(sock);
    }
    if cause.is_none() {
        if !sock.is_none() {
            count(sock, Trouble::ResetsSent);
        }
        return;
    }
    let netns = if sock.is_none() {
        cause.netns()
    } else {
        sock.netns()
    };
    if is_observed(netns)
        && let Some(peer) = packet::peer(cause, netns, Way::In)
    {
        peers::count(&peer, Trouble::ResetsSent);
    }
}

/// A socket without a record is a listener, a time-wait entry, or closed by now. The socket's lock may be gone: where a child
/// refuses the packet that completes its handshake, the reset follows the unlocking (tcp_v4_rcv(), net/ipv4/tcp_ipv4.c). So
/// the note is a byte that nobody else writes while the connection lives. It would be another's only if that one took the
/// place between these lines.
#[inline(always)]
fn note_reset_sent(sock: Sock) {
    let record = table::record(sock.key());
    if !record.is_null() {
        // SAFETY: it points to a record of the table, which is never unmapped.
        unsafe { ptr::write_volatile(&raw mut (*record).reset_sent, reset::BEFORE) };
    }
}

/// A segment is sent again. SYN-ACKs are those of simultaneous and fast opens here; those of others have no socket yet.
#[inline(always)]
pub(crate) fn retransmitted(sock: Sock) {
    let trouble = match sock.state() {
        state::SYN_SENT => Trouble::SynRetransmits,
        state::SYN_RECV => Trouble::SynAckRetransmits,
        _ => Trouble::Retransmits,
    };
    count(sock, trouble);
}

/// A SYN-ACK is sent again: nobody answered it. A request begins with what all sockets begin with (struct
/// request_sock, include/net/request_sock.h), so it can be asked for its ends like one.
#[inline(always)]
pub(crate) fn syn_ack_retransmitted(request: Sock) {
    count(request, Trouble::SynAckRetransmits);
}

/// The kernel drops a packet, for this reason.
#[inline(always)]
pub(crate) fn dropped(dropped: Packet, reason: u32) {
    let Some(way) = dropped.way_of_filter(reason) else {
        return;
    };
    let netns = dropped.netns();
    if is_observed(netns)
        && let Some(peer) = packet::peer(dropped, netns, way)
    {
        peers::count(&peer, Trouble::Filtered);
    }
}

#[inline(always)]
fn count(sock: Sock, trouble: Trouble) {
    let netns = sock.netns();
    if !is_observed(netns) {
        return;
    }
    let mut key = PeerKey {
        address: [0; 4],
        netns,
        port: 0,
        family: sock.family(),
    };
    sock.remote_address(&mut key.address);
    peers::count(&key, trouble);
}
