//! Which of the batches that come on one stream are new, so that none is stored twice whatever its agent sends. Pure.
//!
//! An agent sends its batches in order and lists those without an answer in its hello, before anything else. What it
//! did not list and does not number higher than everything that the store has of it was answered before; what it
//! sends a second time was sent once. Neither reaches the store.

use std::collections::HashMap;

use holdfast_proto::v1::{BatchRange, Stream};

use super::agent::Unwelcome;

/// Ranges of unanswered batches of one agent. Each of its starts adds one or two; a spool keeps a day.
const MAX_RANGES: usize = 16_384;

/// Unanswered batches of one agent. Sealed one a second, a day of them and ten times more.
const MAX_UNANSWERED: u64 = 1 << 20;

/// The start of an agent, and one of its kinds of rows.
type Series = (u64, Stream);

/// What is known of one agent's batches while it is connected.
pub struct Arrivals {
    own_epoch: u64,
    /// Without an answer when the stream began: first and last of each range.
    listed: HashMap<Series, Vec<(u64, u64)>>,
    /// Of those, the ones that were in the store then.
    stored: HashMap<Series, Vec<u64>>,
    /// The highest of the agent's own start that the store had then.
    newest: HashMap<Stream, u64>,
    /// The last new one that came.
    last: HashMap<Series, u64>,
}

/// What a batch is to the collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    New,
    /// The store has it.
    Stored,
    /// It was answered, or will be, under the same name. The text says why that is known.
    Replayed(&'static str),
}

impl Arrivals {
    /// What an agent lists in its hello, checked.
    ///
    /// # Errors
    /// If it is more than an agent can have.
    pub fn new(own_epoch: u64, unanswered: &[BatchRange]) -> Result<Self, Unwelcome> {
        let too_many = Unwelcome::Field {
            field: "the unanswered batches",
            fault: "are more than any agent keeps",
        };
        let batches = unanswered.iter().try_fold(0_u64, |sum, range| {
            let batches = range
                .last_sequence
                .checked_sub(range.first_sequence)?
                .checked_add(1)?;
            sum.checked_add(batches).filter(|sum| *sum <= MAX_UNANSWERED)
        });
        if unanswered.len() > MAX_RANGES || batches.is_none() {
            return Err(too_many);
        }
        let mut listed: HashMap<Series, Vec<(u64, u64)>> = HashMap::new();
        for range in unanswered {
            // Of a stream that this collector does not know nothing will be stored either.
            if let Ok(stream) = Stream::try_from(range.stream) {
                let range_of = listed.entry((range.epoch, stream)).or_default();
                range_of.push((range.first_sequence, range.last_sequence));
            }
        }
        listed.values_mut().for_each(|ranges| ranges.sort_unstable());
        Ok(Self {
            own_epoch,
            listed,
            stored: HashMap::new(),
            newest: HashMap::new(),
            last: HashMap::new(),
        })
    }

    /// The store has these of the listed batches.
    pub fn are_stored(&mut self, stream: Stream, batches: &[(u64, u64)]) {
        for &(epoch, sequence) in batches {
            self.stored.entry((epoch, stream)).or_default().push(sequence);
        }
        for sequences in self.stored.values_mut() {
            sequences.sort_unstable();
        }
    }

    /// The highest of the agent's own start that the store has.
    pub fn newest_stored(&mut self, stream: Stream, sequence: u64) {
        self.newest.insert(stream, sequence);
    }

    /// A batch came.
    pub fn arrived(&mut self, epoch: u64, stream: Stream, sequence: u64) -> Arrival {
        let series = (epoch, stream);
        if self
            .stored
            .get(&series)
            .is_some_and(|stored| stored.binary_search(&sequence).is_ok())
        {
            return Arrival::Stored;
        }
        if self.last.get(&series).is_some_and(|last| sequence <= *last) {
            return Arrival::Replayed("it came before on this connection, or one after it did");
        }
        let is_listed = self.listed.get(&series).is_some_and(|ranges| {
            let after = ranges.partition_point(|(first, _)| *first <= sequence);
            ranges[..after].last().is_some_and(|(_, last)| sequence <= *last)
        });
        if !is_listed {
            if epoch != self.own_epoch {
                return Arrival::Replayed("it is of another start, and not among the unanswered ones");
            }
            if self.newest.get(&stream).is_some_and(|newest| sequence <= *newest) {
                return Arrival::Replayed("later ones were stored, and it is not among the unanswered ones");
            }
        }
        self.last.insert(series, sequence);
        Arrival::New
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u64 = 8;

    fn range(epoch: u64, first_sequence: u64, last_sequence: u64) -> BatchRange {
        BatchRange {
            epoch,
            stream: Stream::Connections.into(),
            first_sequence,
            last_sequence,
        }
    }

    /// Batches of connections, each with what it is.
    fn check(arrivals: &mut Arrivals, expected: &[(u64, u64, char)]) {
        for &(epoch, sequence, expected) in expected {
            let found = match arrivals.arrived(epoch, Stream::Connections, sequence) {
                Arrival::New => 'n',
                Arrival::Stored => 's',
                Arrival::Replayed(_) => 'r',
            };
            assert_eq!(found, expected, "{epoch}/{sequence}");
        }
    }

    #[test]
    fn what_follows_in_order_is_new_and_what_came_is_not() {
        let mut arrivals = Arrivals::new(OWN, &[]).unwrap();
        check(
            &mut arrivals,
            &[
                (OWN, 1, 'n'),
                (OWN, 2, 'n'),
                (OWN, 2, 'r'),
                (OWN, 1, 'r'),
                (OWN, 5, 'n'),
                (OWN, 4, 'r'),
            ],
        );
        // Another kind of rows counts for itself.
        assert_eq!(arrivals.arrived(OWN, Stream::Gaps, 1), Arrival::New);
    }

    #[test]
    fn what_was_listed_is_new_unless_it_is_stored() {
        let mut arrivals = Arrivals::new(OWN, &[range(7, 9, 9), range(7, 3, 5), range(OWN, 1, 4)]).unwrap();
        arrivals.are_stored(Stream::Connections, &[(OWN, 3), (7, 4)]);
        arrivals.newest_stored(Stream::Connections, 6);
        check(
            &mut arrivals,
            &[
                (7, 3, 'n'),
                (7, 4, 's'),
                (7, 4, 's'),
                (7, 5, 'n'),
                (7, 6, 'r'),
                (7, 8, 'r'),
                (7, 9, 'n'),
                (7, 10, 'r'),
                (6, 1, 'r'),
                (OWN, 1, 'n'),
                (OWN, 3, 's'),
                (OWN, 4, 'n'),
                (OWN, 5, 'r'),
                (OWN, 6, 'r'),
                (OWN, 7, 'n'),
            ],
        );
    }

    #[test]
    fn nobody_lists_more_than_there_can_be() {
        for unanswered in [
            vec![range(7, 1, u64::MAX)],
            vec![range(7, 2, 1)],
            vec![range(7, 0, u64::MAX)],
            vec![range(7, 1, MAX_UNANSWERED), range(7, 1, 1)],
            vec![range(7, 1, 1); MAX_RANGES + 1],
        ] {
            assert!(Arrivals::new(OWN, &unanswered).is_err());
        }
        assert!(Arrivals::new(OWN, &[range(7, 1, MAX_UNANSWERED)]).is_ok());
    }
}
