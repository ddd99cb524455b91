//! The agent's clock against the collector's, measured on the stream. Pure.
//!
//! A status says when it was sent, its receipt when it arrived. The middle of the round trip is held against the
//! arrival, so the error is at most half the round trip (as in NTP); of the last ones the shortest trip counts.

use std::collections::VecDeque;

/// Round trips that are remembered: with one a second, long enough to meet a quiet moment, short enough to follow
/// clocks that drift.
const TRIPS: usize = 16;

/// The last round trips.
#[derive(Debug, Default)]
pub struct ClockOffset {
    /// Offset and error, in nanoseconds.
    trips: VecDeque<(i64, u64)>,
}

impl ClockOffset {
    /// Takes in a round trip: when the status was sent and its receipt came, by the agent's clock, and when the status
    /// arrived, by the collector's.
    pub fn observe(&mut self, sent_ns: u64, received_ns: u64, returned_ns: u64) {
        // A clock that was set back meanwhile measures nothing.
        let Some(trip_ns) = returned_ns.checked_sub(sent_ns) else {
            return;
        };
        let middle_ns = sent_ns + trip_ns / 2;
        if self.trips.len() == TRIPS {
            self.trips.pop_front();
        }
        self.trips
            .push_back((middle_ns.wrapping_sub(received_ns) as i64, trip_ns / 2));
    }

    /// How far the agent's clock is ahead of the collector's, and how far off that may be, in nanoseconds.
    pub fn best(&self) -> Option<(i64, u64)> {
        self.trips.iter().copied().min_by_key(|(_, error_ns)| *error_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_trip_counts() {
        let mut clock = ClockOffset::default();
        assert_eq!(clock.best(), None);
        clock.observe(1_000, 400, 1_400);
        assert_eq!(clock.best(), Some((800, 200)));
        clock.observe(2_000, 1_220, 2_040);
        assert_eq!(clock.best(), Some((800, 20)));
        clock.observe(3_000, 5_000, 3_100);
        assert_eq!(clock.best(), Some((800, 20)));
    }

    #[test]
    fn old_trips_are_forgotten_and_a_clock_set_back_measures_nothing() {
        let mut clock = ClockOffset::default();
        clock.observe(1_000, 1_000, 1_002);
        clock.observe(2_000, 2_000, 1_000);
        assert_eq!(clock.best(), Some((1, 1)));
        for _ in 0..TRIPS {
            clock.observe(10_000, 5_000, 10_100);
        }
        assert_eq!(clock.best(), Some((5_050, 50)));
    }
}
