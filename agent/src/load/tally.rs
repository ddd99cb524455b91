//! What a generator counted: outcomes, losses, and the distributions of times. Pure; tallies add up exactly, those of
//! threads to an agent's and those of agents to the run's.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::{
    outcome::{Answer, Loss, Outcome},
    socket::Handshake,
};

/// Times are told apart to a thousandth of their value, and never finer than this, in nanoseconds.
const FINEST_NS: u64 = 64;

/// Longer ones count as this: nanoseconds. Longer than any handshake lasts.
const LONGEST_NS: u64 = 300_000_000_000;

/// Round trips are told in microseconds by the kernel, and told apart to a ten-thousandth of their value: at 40 ms that is 2 us.
const FINEST_ROUND_TRIP_NS: u64 = 1_000;
const DIGITS_OF_ROUND_TRIPS: u8 = 4;

/// An attempt that was made so much after it was due counts as late, in nanoseconds: what a quiet machine never is.
pub const LATE_NS: u64 = 1_000_000;

/// Times of losses that are kept, of each tally; all are counted. A report of a second has room for each of its milliseconds.
pub const LOSSES: usize = 1_024;

/// Losses by one cause within this have one time, in nanoseconds: a target that dies takes thousands with it.
const AT_ONCE_NS: u64 = 1_000_000;

/// Different remarks that are kept, and statuses that are told apart; servers can be strange.
pub const REMARKS: usize = 8;

/// Connections that were lost in one millisecond by one cause, and when the first of them was, in nanoseconds since the run's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub at_ns: u64,
    pub loss: Loss,
    pub count: u64,
}

impl Lost {
    fn is_at_once_with(&self, other: &Self) -> bool {
        self.loss == other.loss && self.at_ns / AT_ONCE_NS == other.at_ns / AT_ONCE_NS
    }
}

/// Counts and times, since the tally was begun.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Attempts that were begun.
    pub started: u64,
    pub outcomes: [u64; Outcome::ALL.len()],
    pub losses: [u64; Loss::ALL.len()],
    /// When connections were lost: the first [`LOSSES`] of these.
    pub lost_at: Vec<Lost>,
    /// Connections that we closed.
    pub closed: u64,
    /// Of `started`: attempts made [`LATE_NS`] or more after they were due.
    pub late: u64,
    /// SYNs that were sent again, whatever became of the attempt.
    pub syn_retransmits: u64,
    /// Handshakes that could not be asked about: of these nothing is in `syn_retransmits` and `network`.
    pub lacks_handshakes: bool,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Requests that were due, and how they ended.
    pub requests: u64,
    pub answers: [u64; Answer::ALL.len()],
    /// Of what was unsent: requests whose connection was not to be had because the target, or somebody on the way to it, said so.
    pub denied: u64,
    /// Of what was unsent: requests that waited in vain while nothing answered an attempt to connect.
    pub unanswered: u64,
    /// Of those that timed out: requests that the target's kernel had, and nothing came from there in all their time.
    pub withheld: u64,
    /// Requests and datagrams that this machine held up, did not send, or dropped the answers of: they say nothing of the target.
    pub hindered: u64,
    /// By status, of all answers.
    pub statuses: BTreeMap<u16, u64>,
    /// Datagrams that came out of their order, and those that came again.
    pub reordered: u64,
    pub duplicated: u64,
    /// Connections whose handshake of TLS failed. One that took too long is lost instead.
    pub insecure: u64,
    /// What went wrong, in words: the first [`REMARKS`] that differ.
    pub remarks: Vec<String>,
    /// From when an attempt was due until it was established: what somebody would have waited.
    pub connect: Histogram<u64>,
    /// From the call of connect() until the generator knew that it was established.
    pub dial: Histogram<u64>,
    /// The handshake's round trip as the kernel measured it: what the network took.
    pub network: Histogram<u64>,
    /// From when an attempt was due until it failed; of requests, from when one was due until it failed, not of their connections.
    pub error: Histogram<u64>,
    /// From when a payload, or a request, was sent until all of it, or of the answer, was back.
    pub exchange: Histogram<u64>,
    /// From when a request was due until its answer was complete: what somebody would have waited.
    pub request: Histogram<u64>,
    /// How much longer or shorter a datagram took than the one before.
    pub jitter: Histogram<u64>,
    /// From when an attempt was due until it was made.
    pub lateness: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            started: 0,
            outcomes: [0; Outcome::ALL.len()],
            losses: [0; Loss::ALL.len()],
            lost_at: Vec::new(),
            closed: 0,
            late: 0,
            syn_retransmits: 0,
            lacks_handshakes: false,
            bytes_sent: 0,
            bytes_received: 0,
            requests: 0,
            answers: [0; Answer::ALL.len()],
            denied: 0,
            unanswered: 0,
            withheld: 0,
            hindered: 0,
            statuses: BTreeMap::new(),
            reordered: 0,
            duplicated: 0,
            insecure: 0,
            remarks: Vec::new(),
            connect: times(),
            dial: times(),
            network: round_trips(),
            error: times(),
            exchange: times(),
            request: times(),
            jitter: times(),
            lateness: times(),
        }
    }
}

/// A distribution of nanoseconds.
pub fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(FINEST_NS, LONGEST_NS, 3).expect("the bounds are in order")
}

/// A distribution of round trips. It grows to what is recorded, for most of the range is beyond what a handshake takes.
fn round_trips() -> Histogram<u64> {
    let bounds = (FINEST_ROUND_TRIP_NS, 2 * FINEST_ROUND_TRIP_NS);
    let mut times = Histogram::new_with_bounds(bounds.0, bounds.1, DIGITS_OF_ROUND_TRIPS)
        .expect("the bounds are in order");
    times.auto(true);
    times
}

impl Tally {
    pub fn outcome(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }

    pub fn count(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// What the kernel says of a handshake.
    pub fn handshake(&mut self, handshake: Handshake) {
        self.syn_retransmits += u64::from(handshake.syn_retransmits);
        if let Some(round_trip) = handshake.round_trip {
            // It grows as it must.
            let _ = self.network.record(round_trip.as_nanos() as u64);
        }
    }

    /// Likewise of one that did not come about: it has no round trip.
    pub fn no_handshake(&mut self, handshake: Option<Handshake>) {
        self.syn_retransmits += handshake.map_or(0, |handshake| handshake.syn_retransmits.into());
    }

    pub fn lost(&mut self, loss: Loss, at_ns: u64) {
        self.losses[loss as usize] += 1;
        let lost = Lost {
            at_ns,
            loss,
            count: 1,
        };
        // Time goes on: one of the same moment is among the last.
        self.lost_at_once(lost, Loss::ALL.len());
    }

    /// Adds to one of the same moment among the last so many, or to the end while there is room.
    fn lost_at_once(&mut self, lost: Lost, among: usize) {
        let mut last = self.lost_at.iter_mut().rev().take(among);
        if let Some(known) = last.find(|known| known.is_at_once_with(&lost)) {
            known.at_ns = known.at_ns.min(lost.at_ns);
            known.count += lost.count;
        } else if self.lost_at.len() < LOSSES {
            self.lost_at.push(lost);
        }
    }

    pub fn answer(&mut self, answer: Answer) {
        self.answers[answer as usize] += 1;
    }

    pub fn remark(&mut self, remark: String) {
        if self.remarks.len() < REMARKS && !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    /// Attempts that were decided.
    pub fn decided(&self) -> u64 {
        self.outcomes.iter().sum()
    }

    /// Of these, all that were not established, but for those that the end of the run cut off.
    pub fn errors(&self) -> u64 {
        self.decided() - self.count(Outcome::Established) - self.count(Outcome::Abandoned)
    }

    /// Begins anew, in the memory that it has.
    pub fn clear(&mut self) {
        self.started = 0;
        self.outcomes = Default::default();
        self.losses = Default::default();
        self.lost_at.clear();
        self.closed = 0;
        self.late = 0;
        self.syn_retransmits = 0;
        self.lacks_handshakes = false;
        self.bytes_sent = 0;
        self.bytes_received = 0;
        self.requests = 0;
        self.answers = Default::default();
        self.denied = 0;
        self.unanswered = 0;
        self.withheld = 0;
        self.hindered = 0;
        self.statuses.clear();
        self.reordered = 0;
        self.duplicated = 0;
        self.insecure = 0;
        self.remarks.clear();
        for times in [
            &mut self.connect,
            &mut self.dial,
            &mut self.network,
            &mut self.error,
            &mut self.exchange,
            &mut self.request,
            &mut self.jitter,
            &mut self.lateness,
        ] {
            // Two hundred kilobytes each, and a run fills a few of them.
            if !times.is_empty() {
                times.reset();
            }
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.started += other.started;
        for (mine, theirs) in self.outcomes.iter_mut().zip(other.outcomes) {
            *mine += theirs;
        }
        for (mine, theirs) in self.losses.iter_mut().zip(other.losses) {
            *mine += theirs;
        }
        for &lost in &other.lost_at {
            self.lost_at_once(lost, LOSSES);
        }
        self.closed += other.closed;
        self.late += other.late;
        self.syn_retransmits += other.syn_retransmits;
        self.lacks_handshakes |= other.lacks_handshakes;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.requests += other.requests;
        for (mine, theirs) in self.answers.iter_mut().zip(other.answers) {
            *mine += theirs;
        }
        self.denied += other.denied;
        self.unanswered += other.unanswered;
        self.withheld += other.withheld;
        self.hindered += other.hindered;
        for (&status, count) in &other.statuses {
            *self.statuses.entry(status).or_insert(0) += count;
        }
        self.reordered += other.reordered;
        self.duplicated += other.duplicated;
        self.insecure += other.insecure;
        for remark in &other.remarks {
            self.remark(remark.clone());
        }
        for (mine, theirs) in [
            (&mut self.connect, &other.connect),
            (&mut self.dial, &other.dial),
            (&mut self.network, &other.network),
            (&mut self.error, &other.error),
            (&mut self.exchange, &other.exchange),
            (&mut self.request, &other.request),
            (&mut self.jitter, &other.jitter),
            (&mut self.lateness, &other.lateness),
        ] {
            if !theirs.is_empty() {
                mine.add(theirs).expect("they have the same bounds, or grow");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percentiles_of_the_parts_together_are_those_of_the_whole(
            values in prop::collection::vec((1u64..10_000_000_000, 0usize..3), 1..200),
        ) {
            let mut parts = [Tally::default(), Tally::default(), Tally::default()];
            let mut whole = Tally::default();
            for (value, part) in values {
                parts[part].connect.saturating_record(value);
                whole.connect.saturating_record(value);
            }
            let mut sum = Tally::default();
            for part in &parts {
                sum.add(part);
            }
            for quantile in [0.0, 0.5, 0.9, 0.99, 1.0] {
                prop_assert_eq!(
                    sum.connect.value_at_quantile(quantile),
                    whole.connect.value_at_quantile(quantile)
                );
            }
        }
    }

    #[test]
    fn round_trips_are_told_apart_by_two_microseconds_at_forty_milliseconds() {
        let (mut tally, mut sum) = (Tally::default(), Tally::default());
        for micros in [43_239, 20, 4_000_000] {
            let round_trip = Some(Duration::from_micros(micros));
            tally.handshake(Handshake {
                round_trip,
                syn_retransmits: 0,
            });
        }
        tally.handshake(Handshake {
            round_trip: None,
            syn_retransmits: 2,
        });
        sum.add(&tally);
        assert_eq!((sum.network.len(), sum.syn_retransmits), (3, 2));
        for (quantile, micros) in [(0.0, 20), (0.5, 43_239), (1.0, 4_000_000)] {
            let off_ns = sum.network.value_at_quantile(quantile).abs_diff(micros * 1_000);
            assert!(
                off_ns <= 512.max(micros * 1_000 / 10_000),
                "{micros}: off by {off_ns} ns"
            );
        }
    }

    #[test]
    fn every_loss_is_counted_and_those_of_one_moment_have_one_time() {
        let timed = |tally: &Tally| -> u64 { tally.lost_at.iter().map(|lost| lost.count).sum() };
        let mut tally = Tally::default();
        for at_ns in 0..5_000 {
            tally.lost(Loss::ResetByPeer, 7_000_000 + at_ns);
            tally.lost(Loss::ClosedByPeer, 7_000_000 + at_ns);
        }
        assert_eq!(tally.losses[Loss::ResetByPeer as usize], 5_000);
        assert_eq!((tally.lost_at.len(), timed(&tally)), (2, 10_000));
        let mut sum = tally.clone();
        sum.add(&tally);
        assert_eq!((sum.lost_at.len(), timed(&sum)), (2, 20_000));
        assert_eq!(sum.lost_at[0].at_ns, 7_000_000);
        // Of more moments than there is room for the first are kept.
        for at_ms in 8..8 + LOSSES as u64 {
            sum.lost(Loss::ResetByPeer, at_ms * AT_ONCE_NS);
        }
        assert_eq!(
            (sum.lost_at.len(), timed(&sum)),
            (LOSSES, 20_000 + LOSSES as u64 - 2)
        );
    }
}
