//! What a record means: how the attempt ended, and how the connection did, and the resets in it. Pure, from one record alone.

use holdfast_agent_ebpf::event::{ConnectionRecord, flag, reset, role, state, step_state};
use holdfast_proto::v1::{CloseReason, Outcome};

/// How the attempt to open the connection ended.
///
/// Sources for the errors: tcp_reset() (net/ipv4/tcp_input.c) says ECONNREFUSED for a reset in SYN_SENT and
/// ECONNRESET in SYN_RECV; tcp_v4_err() (tcp_ipv4.c) hands on what an ICMP message means; tcp_write_err()
/// (tcp_timer.c) says ETIMEDOUT or the soft error before it.
pub fn outcome(record: &ConnectionRecord) -> Outcome {
    if visited(record, state::ESTABLISHED) {
        return Outcome::Established;
    }
    if record.flags & flag::FINAL == 0 {
        return Outcome::Pending;
    }
    match i32::from(record.error) {
        error if error != 0 && record.flags & flag::UNSENT != 0 => unsent(error),
        // The process gave up. If SYNs had gone unanswered by then, nobody was there: a process with a time limit
        // of its own sees exactly that.
        0 if record.role == role::ACTIVE && record.syn_retransmits > 0 => Outcome::TimedOut,
        0 | libc::ECONNABORTED => Outcome::Aborted,
        libc::ECONNREFUSED => Outcome::Refused,
        libc::ETIMEDOUT => Outcome::TimedOut,
        libc::ECONNRESET | libc::EPIPE => Outcome::Reset,
        error if is_unreachable(error) => Outcome::Unreachable,
        _ => Outcome::Failed,
    }
}

/// What connect() meant that failed before a SYN left: there is no way to the destination, as the routes have it or a policy
/// (EPERM; fib_props in net/ipv4/fib_semantics.c: a blackhole gives EINVAL, a prohibition EACCES), or the node is short of
/// something, of ports for example.
fn unsent(error: i32) -> Outcome {
    match error {
        libc::EPERM | libc::EINVAL | libc::ENETDOWN | libc::ENODEV => Outcome::Unreachable,
        error if is_unreachable(error) => Outcome::Unreachable,
        _ => Outcome::Failed,
    }
}

/// How an established connection ended.
pub fn close_reason(record: &ConnectionRecord) -> CloseReason {
    if record.flags & flag::FINAL == 0 || !visited(record, state::ESTABLISHED) {
        return CloseReason::None;
    }
    match i32::from(record.error) {
        // Whatever the error is then: for data that nobody reads any more the kernel gives its own socket the peer's.
        _ if record.reset_sent == reset::LAST => CloseReason::ResetByProcess,
        0 if fins_both_ways(record) => CloseReason::Finished,
        0 | libc::ECONNABORTED => CloseReason::ResetByProcess,
        // EPIPE: a reset after the peer's FIN (tcp_reset() in CLOSE_WAIT).
        libc::ECONNRESET | libc::EPIPE | libc::ECONNREFUSED => CloseReason::ResetByPeer,
        libc::ETIMEDOUT => CloseReason::TimedOut,
        error if is_unreachable(error) => CloseReason::Unreachable,
        _ => CloseReason::Failed,
    }
}

/// Resets that were part of an attempt or a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resets {
    pub sent: bool,
    pub received: bool,
}

/// Which resets were sent and received, as far as the record has it.
pub fn resets(record: &ConnectionRecord) -> Resets {
    Resets {
        sent: record.reset_sent != 0 || is_closed_by_reset(record),
        received: record.flags & flag::RESET_RECEIVED != 0,
    }
}

/// Whether the process' close(), or what else ends a connection by its process, sent a reset. That comes after CLOSE
/// (__tcp_close() and tcp_disconnect(), net/ipv4/tcp.c), but is sure: without an error nothing else leads to CLOSE from these
/// states, other than the end of the whole namespace and a process that moves its connection away (TCP_REPAIR). Of FIN_WAIT2
/// the kernel side says whether a reset is the last, since most sockets leave it because a time-wait entry takes over.
fn is_closed_by_reset(record: &ConnectionRecord) -> bool {
    record.flags & flag::FINAL != 0
        && record.error == 0
        && visited(record, state::ESTABLISHED)
        && matches!(
            record.before,
            state::ESTABLISHED | state::CLOSE_WAIT | state::FIN_WAIT1
        )
}

/// The errors that ICMP messages turn into (icmp_err_convert in net/ipv4/icmp.c, icmpv6_err_convert in
/// net/ipv6/icmp.c), but for those that mean a closed port.
fn is_unreachable(error: i32) -> bool {
    matches!(
        error,
        libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::ENOPROTOOPT
            | libc::EOPNOTSUPP
            | libc::EMSGSIZE
            | libc::EACCES
            | libc::EPROTO
    )
}

fn visited(record: &ConnectionRecord, wanted: u8) -> bool {
    record.steps().iter().any(|&step| step_state(step) == wanted)
}

/// Whether this side sent its FIN and nothing cut the exchange short. In FIN_WAIT2 our FIN is acknowledged; Linux
/// then ends the socket and leaves the wait for the peer's to a time-wait entry that has no trace point.
fn fins_both_ways(record: &ConnectionRecord) -> bool {
    [
        state::FIN_WAIT2,
        state::LAST_ACK,
        state::CLOSING,
        state::TIME_WAIT,
    ]
    .iter()
    .any(|&wanted| visited(record, wanted))
}

#[cfg(test)]
mod tests {
    use holdfast_agent_ebpf::{event::step, limits::PATH_STEPS};

    use super::*;

    fn ended(role: u8, states: &[u8], error: i32, syn_retransmits: u8) -> ConnectionRecord {
        let mut path = [0; PATH_STEPS];
        for (index, &state) in states.iter().enumerate() {
            path[index] = step(state, index as u64 * 1_000);
        }
        ConnectionRecord {
            path,
            path_len: states.len() as u8,
            role,
            error: error as u16,
            syn_retransmits,
            flags: flag::FIRST | flag::FINAL,
            before: states.iter().rev().nth(1).copied().unwrap_or_default(),
            ..ConnectionRecord::ZERO
        }
    }

    fn check(record: &ConnectionRecord, expected: (Outcome, CloseReason)) {
        assert_eq!((outcome(record), close_reason(record)), expected, "{record:?}");
    }

    #[test]
    fn an_attempt_that_fails_is_named_by_its_error() {
        let failed =
            |error, retransmits| ended(role::ACTIVE, &[state::SYN_SENT, state::CLOSE], error, retransmits);
        check(
            &failed(libc::ECONNREFUSED, 0),
            (Outcome::Refused, CloseReason::None),
        );
        check(
            &failed(libc::ETIMEDOUT, 6),
            (Outcome::TimedOut, CloseReason::None),
        );
        check(
            &failed(libc::EHOSTUNREACH, 0),
            (Outcome::Unreachable, CloseReason::None),
        );
        check(
            &failed(libc::ENETUNREACH, 1),
            (Outcome::Unreachable, CloseReason::None),
        );
        check(&failed(libc::EBADMSG, 0), (Outcome::Failed, CloseReason::None));
        check(
            &ended(
                role::ACTIVE,
                &[state::SYN_SENT, state::SYN_RECV, state::CLOSE],
                libc::ECONNRESET,
                0,
            ),
            (Outcome::Reset, CloseReason::None),
        );
    }

    #[test]
    fn giving_up_is_an_abort_until_a_syn_went_unanswered() {
        let gave_up = |retransmits| ended(role::ACTIVE, &[state::SYN_SENT, state::CLOSE], 0, retransmits);
        check(&gave_up(0), (Outcome::Aborted, CloseReason::None));
        check(&gave_up(1), (Outcome::TimedOut, CloseReason::None));
    }

    #[test]
    fn an_established_connection_stays_established_however_it_ends() {
        use state::*;
        let active = |states: &[u8], error| ended(role::ACTIVE, states, error, 0);
        check(
            &active(&[SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE], 0),
            (Outcome::Established, CloseReason::Finished),
        );
        check(
            &active(&[SYN_SENT, ESTABLISHED, CLOSE_WAIT, LAST_ACK, CLOSE], 0),
            (Outcome::Established, CloseReason::Finished),
        );
        check(
            &active(&[SYN_SENT, ESTABLISHED, FIN_WAIT1, CLOSING, CLOSE], 0),
            (Outcome::Established, CloseReason::Finished),
        );
        check(
            &active(&[SYN_SENT, ESTABLISHED, CLOSE], 0),
            (Outcome::Established, CloseReason::ResetByProcess),
        );
        check(
            &active(&[SYN_SENT, ESTABLISHED, CLOSE], libc::ECONNRESET),
            (Outcome::Established, CloseReason::ResetByPeer),
        );
        check(
            &active(&[SYN_SENT, ESTABLISHED, CLOSE_WAIT, CLOSE], libc::EPIPE),
            (Outcome::Established, CloseReason::ResetByPeer),
        );
        check(
            &active(&[SYN_SENT, ESTABLISHED, FIN_WAIT1, CLOSE], libc::ETIMEDOUT),
            (Outcome::Established, CloseReason::TimedOut),
        );
    }

    #[test]
    fn a_process_that_cuts_a_connection_short_sends_a_reset() {
        use state::*;
        let sent = |states: &[u8], error| resets(&ended(role::ACTIVE, states, error, 0)).sent;
        assert!(sent(&[SYN_SENT, ESTABLISHED, CLOSE], 0));
        assert!(sent(&[SYN_SENT, ESTABLISHED, CLOSE_WAIT, CLOSE], 0));
        assert!(sent(&[SYN_SENT, ESTABLISHED, FIN_WAIT1, CLOSE], 0));
        assert!(!sent(&[SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE], 0));
        assert!(!sent(&[SYN_SENT, ESTABLISHED, CLOSE_WAIT, LAST_ACK, CLOSE], 0));
        assert!(!sent(&[SYN_SENT, ESTABLISHED, CLOSE], libc::ECONNRESET));
        assert!(!sent(&[SYN_SENT, CLOSE], 0));
        // Still open.
        let open = ConnectionRecord {
            flags: flag::FIRST,
            ..ended(role::ACTIVE, &[SYN_SENT, ESTABLISHED, FIN_WAIT1], 0, 0)
        };
        assert_eq!(resets(&open), Resets::default());
    }

    #[test]
    fn a_reset_that_ends_a_connection_is_the_process_own_whatever_the_error() {
        use state::*;
        for (states, error) in [
            (vec![SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE], 0),
            (
                vec![SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE],
                libc::ECONNRESET,
            ),
            (vec![SYN_SENT, ESTABLISHED, FIN_WAIT1, CLOSE], libc::ECONNRESET),
        ] {
            let record = ConnectionRecord {
                reset_sent: reset::LAST,
                ..ended(role::ACTIVE, &states, error, 0)
            };
            check(&record, (Outcome::Established, CloseReason::ResetByProcess));
            let told = resets(&record);
            assert!(told.sent && !told.received, "{record:?}");
        }
    }

    #[test]
    fn resets_that_the_kernel_side_saw_are_told_whatever_the_end() {
        let timed_out = ended(
            role::PASSIVE,
            &[state::SYN_RECV, state::ESTABLISHED, state::CLOSE],
            libc::ETIMEDOUT,
            0,
        );
        let record = ConnectionRecord {
            reset_sent: reset::BEFORE,
            flags: timed_out.flags | flag::RESET_RECEIVED,
            ..timed_out
        };
        let both = Resets {
            sent: true,
            received: true,
        };
        assert_eq!(resets(&record), both);
        assert_eq!(resets(&timed_out), Resets::default());
    }

    #[test]
    fn a_record_of_an_open_connection_has_no_close_reason() {
        let mut record = ended(role::ACTIVE, &[state::SYN_SENT], 0, 0);
        record.flags = flag::FIRST;
        check(&record, (Outcome::Pending, CloseReason::None));
        let mut record = ended(role::ACTIVE, &[state::SYN_SENT, state::ESTABLISHED], 0, 0);
        record.flags = flag::FIRST;
        check(&record, (Outcome::Established, CloseReason::None));
    }
}
