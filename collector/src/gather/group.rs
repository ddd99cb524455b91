//! The group that is being gathered: one block for each table and day. Pure: the time is an argument.

use std::time::Instant;

use super::{Content, Parcel};
use crate::config::Limits;
use crate::ingest::decode::day;

/// Blocks of one group. More days than this at once have only nodes whose clocks are wrong, or spools of a long
/// outage; their groups are smaller.
const MOST_BLOCKS: usize = 8;

/// What a block is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Connections { day: u32 },
    Ledger { day: u32 },
    Sessions { day: u32 },
}

impl Key {
    fn of(content: &Content) -> Self {
        match content {
            Content::Connections { columns, .. } => Self::Connections { day: columns.day },
            Content::Ledger { observed_at_ns, .. } => Self::Ledger {
                day: day(*observed_at_ns),
            },
            Content::Session { connected_at_ns, .. } => Self::Sessions {
                day: day(*connected_at_ns),
            },
        }
    }
}

/// The parcels of blocks that are inserted together, in the order in which their first parcels arrived.
pub(super) struct Group {
    pub(super) blocks: Vec<Vec<Parcel>>,
}

/// A group that still takes parcels.
pub(super) struct OpenGroup {
    limits: Limits,
    blocks: Vec<(Key, Vec<Parcel>)>,
    rows: usize,
    /// When the first parcel arrived; `None` while there is none.
    since: Option<Instant>,
}

impl OpenGroup {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            blocks: Vec::new(),
            rows: 0,
            since: None,
        }
    }

    pub(super) fn push(&mut self, parcel: Parcel, now: Instant) {
        let key = Key::of(&parcel.content);
        self.rows += parcel.content.rows();
        self.since.get_or_insert(now);
        match self.blocks.iter_mut().find(|(found, _)| *found == key) {
            Some((_, parcels)) => parcels.push(parcel),
            None => self.blocks.push((key, vec![parcel])),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// It waits for nothing more.
    pub(super) fn is_full(&self) -> bool {
        self.rows >= self.limits.gather_rows || self.blocks.len() >= MOST_BLOCKS
    }

    /// When it is inserted even if it is not full; `None` while it is empty.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.since.map(|since| since + self.limits.gather_interval)
    }

    /// What was gathered; the next group begins empty.
    pub(super) fn take(&mut self) -> Group {
        self.rows = 0;
        self.since = None;
        Group {
            blocks: self.blocks.drain(..).map(|(_, parcels)| parcels).collect(),
        }
    }
}
