//! What is missing travels like what is there: gaps are rows of a stream of their own, delivered exactly once.

use holdfast_proto::v1::{self, GapRows, Stream, batch};

use crate::{
    seal::Sealer,
    spool::{Gap, GapReason, Sealed},
};

/// Seals gaps into batches of the stream of gaps.
pub struct GapBatcher(Sealer);

impl GapBatcher {
    /// For a start of the agent; the first batch has the sequence 1.
    pub fn new(epoch: u64, boot_id: &str) -> Self {
        Self(Sealer::new(epoch, boot_id))
    }

    /// One batch with all of them; `None` if there is no gap.
    pub fn seal(&mut self, gaps: &[Gap]) -> Option<Sealed> {
        let first_ns = gaps.iter().map(|gap| gap.first_ns).min()?;
        let last_ns = gaps.iter().map(|gap| gap.last_ns).max()?;
        let columns = batch::Columns::Gaps(GapRows {
            gaps: gaps.iter().map(row).collect(),
        });
        let span_ns = first_ns..=last_ns;
        Some(self.0.seal_span(Stream::Gaps, gaps.len(), span_ns, None, columns))
    }
}

/// A gap as it travels.
pub fn row(gap: &Gap) -> v1::Gap {
    let reason = match gap.reason {
        GapReason::SpoolFull => v1::GapReason::SpoolFull,
        GapReason::SpoolUnreadable => v1::GapReason::SpoolUnreadable,
        GapReason::RingFull => v1::GapReason::RingFull,
        GapReason::EpochEnd => v1::GapReason::EpochEnd,
        GapReason::Refused => v1::GapReason::Refused,
    };
    v1::Gap {
        epoch: gap.epoch,
        stream: gap.stream.into(),
        first_sequence: gap.first_sequence,
        last_sequence: gap.last_sequence,
        first_ns: gap.first_ns,
        last_ns: gap.last_ns,
        rows: gap.rows,
        reason: reason.into(),
        netns: gap.netns,
        at_least: gap.at_least,
    }
}

/// The gap that travels as `row`, if this agent can have made it.
pub fn from_row(row: &v1::Gap) -> Option<Gap> {
    let reason = match row.reason() {
        v1::GapReason::SpoolFull => GapReason::SpoolFull,
        v1::GapReason::SpoolUnreadable => GapReason::SpoolUnreadable,
        v1::GapReason::RingFull => GapReason::RingFull,
        v1::GapReason::EpochEnd => GapReason::EpochEnd,
        v1::GapReason::Refused => GapReason::Refused,
        v1::GapReason::Unspecified => return None,
    };
    Some(Gap {
        epoch: row.epoch,
        stream: row.stream(),
        netns: row.netns,
        first_sequence: row.first_sequence,
        last_sequence: row.last_sequence,
        first_ns: row.first_ns,
        last_ns: row.last_ns,
        rows: row.rows,
        at_least: row.at_least,
        reason,
    })
}
