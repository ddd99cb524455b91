//! Columns become batches here: numbered within their stream, and the same bytes ever after.

use std::{collections::BTreeMap, ops::RangeInclusive};

use holdfast_proto::v1::{Batch, Stream, batch};
use prost::Message;

use crate::{
    clock::{Clock, Moment},
    spool::{BatchId, Sealed},
};

/// Makes columns into batches of one start of the agent. A stream has one of these only.
pub struct Sealer {
    epoch: u64,
    boot_id: String,
    /// The last sequence of each stream.
    last: BTreeMap<i32, u64>,
}

impl Sealer {
    /// The first batch of each stream has the sequence 1.
    pub fn new(epoch: u64, boot_id: &str) -> Self {
        Self {
            epoch,
            boot_id: boot_id.to_owned(),
            last: BTreeMap::new(),
        }
    }

    /// The next batch of its stream: `rows` rows of the moment `at`, whose clock dated all of them.
    pub fn seal(&mut self, stream: Stream, rows: usize, at: Moment, columns: batch::Columns) -> Sealed {
        let at_ns = at.wall_ns();
        self.seal_span(stream, rows, at_ns..=at_ns, Some(at.clock), columns)
    }

    /// The next batch of its stream: `rows` rows of between the ends of `span_ns`, in nanoseconds since the Unix epoch by
    /// `clock`; `None`: by more than one.
    pub fn seal_span(
        &mut self,
        stream: Stream,
        rows: usize,
        span_ns: RangeInclusive<u64>,
        clock: Option<Clock>,
        columns: batch::Columns,
    ) -> Sealed {
        let last = self.last.entry(stream.into()).or_default();
        *last += 1;
        let batch = Batch {
            stream: stream.into(),
            sequence: *last,
            rows: rows as u32,
            boot_id: self.boot_id.clone(),
            clock_ns: clock.map_or(0, Clock::offset_ns),
            columns: Some(columns),
        };
        Sealed {
            id: BatchId {
                epoch: self.epoch,
                stream,
                sequence: *last,
            },
            rows: batch.rows,
            first_ns: *span_ns.start(),
            last_ns: *span_ns.end(),
            encoded: batch.encode_to_vec().into(),
        }
    }
}
