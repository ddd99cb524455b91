//! Counts of a run, by name: what adds them up, stores them and shows them goes through one list. Pure.

use std::collections::BTreeMap;

use holdfast_proto::v1::LoadCounts;

/// How many counts there are.
pub const COUNTS: usize = 33;

/// The one that is not known where sockets could not be asked of their handshakes.
pub const OF_HANDSHAKES: &str = "syn_retransmits";

/// Their names, as fields of the message and columns of the store are called.
pub const NAMES: [&str; COUNTS] = [
    "started",
    "established",
    "refused",
    "timed_out",
    "reset",
    "unreachable",
    "local_files",
    "local_ports",
    "local_filter",
    "abandoned",
    "failed",
    "closed",
    "closed_by_peer",
    "reset_by_peer",
    "lost_timed_out",
    "lost_unreachable",
    "lost_failed",
    "late",
    "syn_retransmits",
    "bytes_sent",
    "bytes_received",
    "requests",
    "answered",
    "unexpected_status",
    "unexpected_body",
    "request_timed_out",
    "request_lost",
    "malformed",
    "unsent",
    "request_abandoned",
    "insecure",
    "reordered",
    "duplicated",
];

/// Their values, in the order of [`NAMES`].
pub fn values(counts: &LoadCounts) -> [u64; COUNTS] {
    [
        counts.started,
        counts.established,
        counts.refused,
        counts.timed_out,
        counts.reset,
        counts.unreachable,
        counts.local_files,
        counts.local_ports,
        counts.local_filter,
        counts.abandoned,
        counts.failed,
        counts.closed,
        counts.closed_by_peer,
        counts.reset_by_peer,
        counts.lost_timed_out,
        counts.lost_unreachable,
        counts.lost_failed,
        counts.late,
        counts.syn_retransmits,
        counts.bytes_sent,
        counts.bytes_received,
        counts.requests,
        counts.answered,
        counts.unexpected_status,
        counts.unexpected_body,
        counts.request_timed_out,
        counts.request_lost,
        counts.malformed,
        counts.unsent,
        counts.request_abandoned,
        counts.insecure,
        counts.reordered,
        counts.duplicated,
    ]
}

/// The same with their names.
pub fn named(counts: &LoadCounts) -> BTreeMap<String, u64> {
    NAMES
        .iter()
        .map(|name| (*name).to_owned())
        .zip(values(counts))
        .collect()
}

/// Adds `other` to `counts`.
pub fn add(counts: &mut LoadCounts, other: &LoadCounts) {
    counts.started = counts.started.saturating_add(other.started);
    counts.established = counts.established.saturating_add(other.established);
    counts.refused = counts.refused.saturating_add(other.refused);
    counts.timed_out = counts.timed_out.saturating_add(other.timed_out);
    counts.reset = counts.reset.saturating_add(other.reset);
    counts.unreachable = counts.unreachable.saturating_add(other.unreachable);
    counts.local_files = counts.local_files.saturating_add(other.local_files);
    counts.local_ports = counts.local_ports.saturating_add(other.local_ports);
    counts.local_filter = counts.local_filter.saturating_add(other.local_filter);
    counts.abandoned = counts.abandoned.saturating_add(other.abandoned);
    counts.failed = counts.failed.saturating_add(other.failed);
    counts.closed = counts.closed.saturating_add(other.closed);
    counts.closed_by_peer = counts.closed_by_peer.saturating_add(other.closed_by_peer);
    counts.reset_by_peer = counts.reset_by_peer.saturating_add(other.reset_by_peer);
    counts.lost_timed_out = counts.lost_timed_out.saturating_add(other.lost_timed_out);
    counts.lost_unreachable = counts.lost_unreachable.saturating_add(other.lost_unreachable);
    counts.lost_failed = counts.lost_failed.saturating_add(other.lost_failed);
    counts.late = counts.late.saturating_add(other.late);
    counts.syn_retransmits = counts.syn_retransmits.saturating_add(other.syn_retransmits);
    counts.bytes_sent = counts.bytes_sent.saturating_add(other.bytes_sent);
    counts.bytes_received = counts.bytes_received.saturating_add(other.bytes_received);
    counts.requests = counts.requests.saturating_add(other.requests);
    counts.answered = counts.answered.saturating_add(other.answered);
    counts.unexpected_status = counts.unexpected_status.saturating_add(other.unexpected_status);
    counts.unexpected_body = counts.unexpected_body.saturating_add(other.unexpected_body);
    counts.request_timed_out = counts.request_timed_out.saturating_add(other.request_timed_out);
    counts.request_lost = counts.request_lost.saturating_add(other.request_lost);
    counts.malformed = counts.malformed.saturating_add(other.malformed);
    counts.unsent = counts.unsent.saturating_add(other.unsent);
    counts.request_abandoned = counts.request_abandoned.saturating_add(other.request_abandoned);
    counts.insecure = counts.insecure.saturating_add(other.insecure);
    counts.reordered = counts.reordered.saturating_add(other.reordered);
    counts.duplicated = counts.duplicated.saturating_add(other.duplicated);
}

/// What [`errors`] adds up, by name.
pub const ERRORS: [&str; 8] = [
    "refused",
    "timed_out",
    "reset",
    "unreachable",
    "local_files",
    "local_ports",
    "local_filter",
    "failed",
];

/// Whether these are all counts of a run of datagrams. What refuses those, or cannot be reached, is counted where it is counted of attempts to
/// connect: they have none of these.
pub fn are_of_datagrams(counts: &LoadCounts) -> bool {
    counts.requests > 0 && counts.started == 0
}

/// Attempts that were decided and not established, but for those that the end of the run cut off.
pub fn errors(counts: &LoadCounts) -> u64 {
    if are_of_datagrams(counts) {
        return 0;
    }
    sum(counts, &ERRORS)
}

fn sum(counts: &LoadCounts, names: &[&str]) -> u64 {
    let all = NAMES.iter().zip(values(counts));
    all.filter(|(name, _)| names.contains(name))
        .map(|(_, count)| count)
        .sum()
}

/// Of these, those of which the machine that made the load was the reason.
pub fn local_limits(counts: &LoadCounts) -> u64 {
    counts.local_files + counts.local_ports + counts.local_filter
}

/// Of counts that may be the generator's own slowness: how much of each is known not to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Proven {
    /// Attempts that timed out for what the kernels of both ends know to be behind the generator.
    pub timed_out: u64,
    /// Requests that were not sent for such a cause, or because their connections were answered so.
    pub unsent: u64,
    /// Requests that the target's kernel had, and nothing came from there in all their time.
    pub request_timed_out: u64,
}

/// The same, had everything gone well that was not answered with a failure: what only waited too long, and what the machine that made the
/// load could not do, may be the generator's own doing, but for what is `proven`.
pub fn but_for_silences(counts: &LoadCounts, proven: Proven) -> LoadCounts {
    let timed_out = proven.timed_out.min(counts.timed_out);
    let unsent = proven.unsent.min(counts.unsent);
    let request_timed_out = proven.request_timed_out.min(counts.request_timed_out);
    let attempts = counts.timed_out - timed_out + counts.failed + local_limits(counts);
    let requests =
        counts.request_timed_out - request_timed_out + counts.request_lost + counts.unsent - unsent;
    LoadCounts {
        timed_out,
        failed: 0,
        local_files: 0,
        local_ports: 0,
        local_filter: 0,
        established: counts.established + attempts,
        lost_timed_out: 0,
        lost_unreachable: 0,
        lost_failed: 0,
        request_timed_out,
        request_lost: 0,
        unsent,
        answered: counts.answered + requests,
        ..*counts
    }
}

/// What [`lost`] adds up, by name.
pub const LOSSES: [&str; 5] = [
    "closed_by_peer",
    "reset_by_peer",
    "lost_timed_out",
    "lost_unreachable",
    "lost_failed",
];

/// Established connections that ended without the generator's doing.
pub fn lost(counts: &LoadCounts) -> u64 {
    sum(counts, &LOSSES)
}

/// Attempts that are decided.
pub fn decided(counts: &LoadCounts) -> u64 {
    counts.established + errors(counts) + counts.abandoned
}

/// What [`request_errors`] adds up, by name.
pub const REQUEST_ERRORS: [&str; 6] = [
    "unexpected_status",
    "unexpected_body",
    "request_timed_out",
    "request_lost",
    "malformed",
    "unsent",
];

/// What ICMP says of datagrams, which is an error of theirs as well.
pub const REFUSALS: [&str; 2] = ["refused", "unreachable"];

/// Requests, or datagrams, that were decided and not answered as expected.
pub fn request_errors(counts: &LoadCounts) -> u64 {
    let refusals = if are_of_datagrams(counts) {
        sum(counts, &REFUSALS)
    } else {
        0
    };
    sum(counts, &REQUEST_ERRORS) + refusals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_an_error_of_an_attempt_or_of_a_datagram_and_never_of_both() {
        let check = |requests, started, expected| {
            let counts = LoadCounts {
                requests,
                started,
                refused: 3,
                unreachable: 1,
                request_timed_out: 2,
                ..LoadCounts::default()
            };
            assert_eq!((errors(&counts), request_errors(&counts)), expected);
        };
        // Datagrams, requests over connections, and connections alone.
        check(10, 0, (0, 6));
        check(10, 5, (4, 2));
        check(0, 5, (4, 2));
    }
}
