//! What a receiver makes of the datagrams of one sender: how many came, twice, out of their order, and how evenly. Pure.

use std::collections::BTreeSet;

use holdfast_proto::datagram::{Datagram, Heard};

/// Numbers ahead of the first that is missing that are remembered of a sender: more than any path turns around.
const MOST_AHEAD: usize = 65_536;

/// What a receiver remembers of one sender.
#[derive(Debug, Default)]
pub(super) struct Listener {
    heard: Heard,
    /// All before it were received, or given up.
    next: u64,
    ahead: BTreeSet<u64>,
    greatest: Option<u64>,
    /// The time of travel of the last one, between two clocks: only differences mean something.
    last_trip_ns: Option<i64>,
    jitter_ns: f64,
}

impl Listener {
    /// Takes one that came at a time of the receiver's clock.
    pub(super) fn take(&mut self, datagram: Datagram, now_ns: u64) {
        let number = datagram.number;
        if number < self.next || !self.ahead.insert(number) {
            self.heard.duplicated += 1;
            return;
        }
        self.heard.received += 1;
        if self.greatest.is_some_and(|greatest| greatest > number) {
            self.heard.reordered += 1;
        }
        self.greatest = self.greatest.max(Some(number));
        while self.ahead.remove(&self.next) {
            self.next += 1;
        }
        while self.ahead.len() > MOST_AHEAD {
            // What is missing before is lost; should it come after all, it counts as one that came twice.
            if let Some(first) = self.ahead.pop_first() {
                self.next = first + 1;
            }
        }
        let trip_ns = now_ns.wrapping_sub(datagram.sent_ns) as i64;
        if let Some(last_ns) = self.last_trip_ns.replace(trip_ns) {
            let difference = trip_ns.wrapping_sub(last_ns).unsigned_abs() as f64;
            self.jitter_ns += (difference - self.jitter_ns) / 16.0;
        }
    }

    pub(super) fn heard(&self) -> Heard {
        Heard {
            jitter_ns: self.jitter_ns as u64,
            ..self.heard
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use holdfast_proto::datagram::Kind;

    use super::*;

    fn one(number: u64, sent_ns: u64) -> Datagram {
        Datagram {
            kind: Kind::OneWay,
            tag: 7,
            number,
            sent_ns,
        }
    }

    #[test]
    fn losses_repetitions_and_changes_of_order_are_told_apart() {
        let mut listener = Listener::default();
        for number in [0, 1, 3, 2, 2, 6, 1] {
            listener.take(one(number, 0), 0);
        }
        let heard = listener.heard();
        assert_eq!((heard.received, heard.duplicated, heard.reordered), (5, 2, 1));
    }

    #[test]
    fn an_even_delay_has_no_jitter_and_an_uneven_one_has() {
        let (mut even, mut uneven) = (Listener::default(), Listener::default());
        for number in 0..1_000 {
            let sent_ns = number * 1_000_000;
            even.take(one(number, sent_ns), sent_ns + 5_000_000);
            uneven.take(one(number, sent_ns), sent_ns + 5_000_000 + number % 2 * 100_000);
        }
        assert_eq!(even.heard().jitter_ns, 0);
        assert!(
            (99_000..=100_000).contains(&uneven.heard().jitter_ns),
            "{:?}",
            uneven.heard()
        );
    }

    proptest! {
        #[test]
        fn each_number_counts_once(numbers in prop::collection::vec(0..200u64, 0..500)) {
            let mut listener = Listener::default();
            for &number in &numbers {
                listener.take(one(number, 0), 0);
            }
            let different: BTreeSet<_> = numbers.iter().collect();
            let heard = listener.heard();
            prop_assert_eq!(heard.received, different.len() as u64);
            prop_assert_eq!(heard.received + heard.duplicated, numbers.len() as u64);
        }
    }
}
