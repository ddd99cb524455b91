//! Why an attempt or a connection ended as it did, as far as its own node can tell. Pure, from one record alone.

use holdfast_agent_ebpf::event::{ConnectionRecord, flag, role};
use holdfast_proto::v1::{CloseReason, LocalCause, Outcome};

use crate::outcome::{close_reason, outcome};

/// The cause of a record.
///
/// An error says what the socket was told, not by whom: a firewall that rejects with an ICMP message gives the same
/// ECONNREFUSED as a closed port (tcp_v4_err(), net/ipv4/tcp_ipv4.c), and only the reset itself tells them apart.
pub fn local_cause(record: &ConnectionRecord) -> LocalCause {
    match outcome(record) {
        Outcome::Established => of_an_end(record),
        Outcome::Unspecified | Outcome::Pending => LocalCause::None,
        _ => of_an_attempt(record),
    }
}

fn of_an_attempt(record: &ConnectionRecord) -> LocalCause {
    let error = i32::from(record.error);
    if record.role == role::ACTIVE && record.segments_sent == 0 && error != 0 {
        return unsent(error);
    }
    if is_dissolved(record) {
        return LocalCause::DissolvedByKernel;
    }
    match error {
        0 if record.role == role::ACTIVE && record.syn_retransmits > 0 => LocalCause::NoAnswer,
        0 | libc::ECONNABORTED => LocalCause::ProcessGaveUp,
        libc::ECONNREFUSED if record.flags & flag::RESET_RECEIVED != 0 => LocalCause::RefusedByPeer,
        libc::ECONNREFUSED => LocalCause::IcmpPortUnreachable,
        libc::ECONNRESET | libc::EPIPE => LocalCause::ResetByPeer,
        libc::ETIMEDOUT => LocalCause::NoAnswer,
        error => unreachable(error),
    }
}

/// A socket of a handshake's last segment that nothing was ever sent or heard on: when two CPUs take the same segment, or a copy of it, each
/// makes one, and the one that comes second is dissolved (tcp_v4_syn_recv_sock() and tcp_check_req(), net/ipv4/tcp_ipv4.c and
/// tcp_minisocks.c); so is one for which there is no memory or route. No process ever had it. One with data is of TCP fast open.
fn is_dissolved(record: &ConnectionRecord) -> bool {
    record.role == role::PASSIVE
        && record.error == 0
        && record.segments_sent == 0
        && record.bytes_received == 0
        && record.path_len == 2
}

/// No SYN left: the kernel itself refused.
fn unsent(error: i32) -> LocalCause {
    match error {
        libc::EADDRNOTAVAIL | libc::EADDRINUSE | libc::EAGAIN => LocalCause::NoPort,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::ENETDOWN => LocalCause::NoRoute,
        libc::EPERM | libc::EACCES => LocalCause::LocalFilter,
        _ => LocalCause::None,
    }
}

/// What ICMP messages say (icmp_err_convert, net/ipv4/icmp.c; icmpv6_err_convert, net/ipv6/icmp.c), and the neighbour
/// that does not answer, for which the kernel sends itself one.
fn unreachable(error: i32) -> LocalCause {
    match error {
        libc::EHOSTUNREACH | libc::EHOSTDOWN => LocalCause::HostUnreachable,
        libc::ENETUNREACH | libc::ENONET => LocalCause::NetUnreachable,
        // Only IPv6 tells a prohibition apart; IPv4 says EHOSTUNREACH for it.
        libc::EACCES => LocalCause::IcmpProhibited,
        _ => LocalCause::None,
    }
}

fn of_an_end(record: &ConnectionRecord) -> LocalCause {
    match close_reason(record) {
        CloseReason::ResetByPeer => LocalCause::ResetByPeer,
        CloseReason::TimedOut => LocalCause::NoAnswer,
        CloseReason::Unreachable => unreachable(record.error.into()),
        // It went well, but slowly.
        _ if record.flags & flag::FIRST != 0 && record.syn_retransmits > 0 => LocalCause::SynRetransmitted,
        _ => LocalCause::None,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_agent_ebpf::event::{state, step};

    use super::*;

    fn attempt(error: i32) -> ConnectionRecord {
        let mut record = ConnectionRecord {
            path_len: 2,
            role: role::ACTIVE,
            error: error as u16,
            segments_sent: 1,
            flags: flag::FIRST | flag::FINAL,
            ..ConnectionRecord::ZERO
        };
        record.path[0] = step(state::SYN_SENT, 0);
        record.path[1] = step(state::CLOSE, 1_000);
        record
    }

    fn end(error: i32, syn_retransmits: u8) -> ConnectionRecord {
        let mut record = ConnectionRecord {
            path_len: 3,
            syn_retransmits,
            ..attempt(error)
        };
        record.path[1] = step(state::ESTABLISHED, 1_000);
        record.path[2] = step(state::CLOSE, 2_000);
        record
    }

    fn check(record: &ConnectionRecord, expected: LocalCause) {
        assert_eq!(local_cause(record), expected, "{record:?}");
    }

    #[test]
    fn a_refusal_by_reset_and_one_by_icmp_are_told_apart() {
        let by_icmp = attempt(libc::ECONNREFUSED);
        let by_reset = ConnectionRecord {
            flags: by_icmp.flags | flag::RESET_RECEIVED,
            ..by_icmp
        };
        check(&by_reset, LocalCause::RefusedByPeer);
        check(&by_icmp, LocalCause::IcmpPortUnreachable);
    }

    #[test]
    fn an_attempt_that_never_left_is_no_fault_of_the_path() {
        for (error, cause) in [
            (libc::EADDRNOTAVAIL, LocalCause::NoPort),
            (libc::ENETUNREACH, LocalCause::NoRoute),
            (libc::EPERM, LocalCause::LocalFilter),
        ] {
            let unsent = ConnectionRecord {
                segments_sent: 0,
                ..attempt(error)
            };
            check(&unsent, cause);
        }
        check(&attempt(libc::ENETUNREACH), LocalCause::NetUnreachable);
    }

    #[test]
    fn silence_is_no_answer_whoever_lost_patience() {
        check(&attempt(libc::ETIMEDOUT), LocalCause::NoAnswer);
        let gave_up = |syn_retransmits| ConnectionRecord {
            syn_retransmits,
            ..attempt(0)
        };
        check(&gave_up(1), LocalCause::NoAnswer);
        check(&gave_up(0), LocalCause::ProcessGaveUp);
    }

    #[test]
    fn a_socket_that_nobody_had_gave_nothing_up() {
        let mut dissolved = ConnectionRecord {
            role: role::PASSIVE,
            segments_sent: 0,
            ..attempt(0)
        };
        dissolved.path[0] = step(state::SYN_RECV, 0);
        check(&dissolved, LocalCause::DissolvedByKernel);
        let with_data = ConnectionRecord {
            bytes_received: 5,
            ..dissolved
        };
        check(&with_data, LocalCause::ProcessGaveUp);
        let reset = ConnectionRecord {
            error: libc::ECONNRESET as u16,
            ..dissolved
        };
        check(&reset, LocalCause::ResetByPeer);
        let active = ConnectionRecord {
            role: role::ACTIVE,
            ..dissolved
        };
        check(&active, LocalCause::ProcessGaveUp);
    }

    #[test]
    fn an_end_has_a_cause_only_if_something_went_wrong() {
        check(&end(libc::ECONNRESET, 0), LocalCause::ResetByPeer);
        check(&end(libc::ETIMEDOUT, 0), LocalCause::NoAnswer);
        check(&end(0, 0), LocalCause::None);
        check(&end(0, 2), LocalCause::SynRetransmitted);
        let announced_before = ConnectionRecord {
            flags: flag::FINAL,
            ..end(0, 2)
        };
        check(&announced_before, LocalCause::None);
    }
}
