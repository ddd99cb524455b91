//! Batches of what is looked at from time to time: each look is sealed at once, and numbered within its stream.

use std::collections::BTreeMap;

use holdfast_proto::v1::{Batch, Stream, batch};
use prost::Message;

use crate::spool::{BatchId, Sealed};

/// Makes looks into batches of one start of the agent. A stream has one of these only.
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

    /// A look at `now_ns`, in nanoseconds since the Unix epoch.
    pub fn seal(&mut self, stream: Stream, rows: usize, now_ns: u64, columns: batch::Columns) -> Sealed {
        let last = self.last.entry(stream.into()).or_default();
        *last += 1;
        let batch = Batch {
            stream: stream.into(),
            sequence: *last,
            rows: rows as u32,
            boot_id: self.boot_id.clone(),
            columns: Some(columns),
        };
        Sealed {
            id: BatchId {
                epoch: self.epoch,
                stream,
                sequence: *last,
            },
            rows: batch.rows,
            first_ns: now_ns,
            last_ns: now_ns,
            encoded: batch.encode_to_vec().into(),
        }
    }
}
