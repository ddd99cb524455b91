//! From the parcels of one block to the block, column by column. A column is the parcels' columns one after another;
//! what a batch has as an index into a dictionary of its own becomes the value, or an index into the block's
//! dictionary.

use std::borrow::Cow;
use std::collections::HashMap;

use holdfast_proto::v1::{Path, Process, StreamCounters};
use holdfast_proto::{FLAG_FINAL, FLAG_FIRST};

use super::{Content, Parcel};
use crate::ingest::agent::Agent;
use crate::ingest::decode::Connections;
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError, Table};

/// A batch and who delivered it.
struct Delivered<'a> {
    agent: &'a Agent,
    sequence: u64,
    columns: &'a Connections,
}

/// The rows of several batches, one after another.
struct Rows<'a> {
    batches: Vec<Delivered<'a>>,
    rows: usize,
}

impl<'a> Rows<'a> {
    /// A column that the batches have as it is stored.
    fn joined<T: Copy + 'a>(&self, column: impl Fn(&'a Connections) -> &'a [T]) -> Vec<T> {
        let mut joined = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            joined.extend_from_slice(column(batch.columns));
        }
        joined
    }

    /// A column that the batches have in another type.
    fn converted<S: Copy + 'a, T>(&self, column: impl Fn(&'a Connections) -> &'a [S], convert: impl Fn(S) -> T) -> Vec<T> {
        let mut converted = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            converted.extend(column(batch.columns).iter().map(|value| convert(*value)));
        }
        converted
    }

    /// A column whose values are in the batches' dictionaries.
    fn looked_up<E, T: Copy>(
        &self,
        index: impl Fn(&'a Connections) -> &'a [u32],
        entries: impl Fn(&'a Connections) -> &'a [E],
        value: impl Fn(&E) -> T,
    ) -> Vec<T>
    where
        E: 'a,
    {
        let mut looked_up = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            let values: Vec<T> = entries(batch.columns).iter().map(&value).collect();
            looked_up.extend(index(batch.columns).iter().map(|index| values[*index as usize]));
        }
        looked_up
    }

    /// A column that is the same for all rows of a batch.
    fn repeated<T: Copy>(&self, value: impl Fn(&Delivered<'a>) -> T) -> Vec<T> {
        let mut repeated = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            repeated.resize(repeated.len() + batch.columns.rows, value(batch));
        }
        repeated
    }

    /// A column of texts that the batches have in their dictionaries: one dictionary for all, and each row's index.
    fn texts<E: 'a>(
        &self,
        index: impl Fn(&'a Connections) -> &'a [u32],
        entries: impl Fn(&'a Connections) -> &'a [E],
        text: impl Fn(&'a E) -> Cow<'a, str>,
    ) -> Texts<'a> {
        let mut texts = Texts::with_capacity(self.rows);
        for batch in &self.batches {
            let places: Vec<u32> = entries(batch.columns).iter().map(|entry| texts.place(text(entry))).collect();
            texts.indices.extend(index(batch.columns).iter().map(|index| places[*index as usize]));
        }
        texts
    }

    /// A text that is the same for all rows of a batch.
    fn repeated_texts(&self, text: impl Fn(&Delivered<'a>) -> &'a str) -> Texts<'a> {
        let mut texts = Texts::with_capacity(self.rows);
        for batch in &self.batches {
            let place = texts.place(Cow::Borrowed(text(batch)));
            texts.indices.resize(texts.indices.len() + batch.columns.rows, place);
        }
        texts
    }
}

/// A column with a dictionary.
struct Texts<'a> {
    dictionary: Vec<Cow<'a, str>>,
    places: HashMap<Cow<'a, str>, u32>,
    indices: Vec<u32>,
}

impl<'a> Texts<'a> {
    fn with_capacity(rows: usize) -> Self {
        Self { dictionary: Vec::new(), places: HashMap::new(), indices: Vec::with_capacity(rows) }
    }

    /// The text's place in the dictionary; it is put there if it is not.
    fn place(&mut self, text: Cow<'a, str>) -> u32 {
        if let Some(place) = self.places.get(&text) {
            return *place;
        }
        let place = self.dictionary.len() as u32;
        self.dictionary.push(text.clone());
        self.places.insert(text, place);
        place
    }
}
