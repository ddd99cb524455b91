//! Where rows live. One trait, two implementations: [`embedded`] (ClickHouse as a library, the default on a fresh
//! machine) and [`server`] (a ClickHouse server or cluster over HTTP). SQL exists only below this module.
//!
//! On the data path this is the last step: `ingest` builds a [`Block`], `insert` makes it durable, and only then is
//! anything acknowledged.

pub mod buckets;
pub mod causes;
pub mod chdb;
pub mod claims;
pub mod condition;
pub mod embedded;
mod error;
pub mod evidence;
pub mod history;
pub mod layout;
pub mod library;
mod lock;
pub mod migrations;
pub mod native;
pub mod notifications;
pub mod probes;
pub mod questions;
mod read_only;
pub mod rollups;
pub mod runs;
pub mod schema;
pub mod seat;
pub mod server;
pub mod silences;
pub mod statement;
pub mod verdicts;
pub mod worst;
pub mod writes;

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use layout::Layout;

/// Rows for one table, encoded once, as one block of ClickHouse's Native format.
#[derive(Clone, Debug)]
pub struct Block {
    /// The columns in the block, in its order.
    pub columns: &'static [&'static str],
    /// Rows in the block.
    pub rows: usize,
    /// The encoded block.
    pub native: Bytes,
    /// Later than this, in milliseconds since the Unix epoch by the store's own clock, the store does not begin to
    /// insert it; `None`: whenever it comes.
    pub deadline_ms: Option<u64>,
}

/// What a statement may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Written by a person: it reads the database and nothing else: no writes, no settings, no files, no URLs.
    ReadOnly,
    /// Written by Holdfast.
    Internal,
}

/// A statement that returns rows.
#[derive(Clone, Debug)]
pub struct Query {
    /// The text, with ClickHouse's `{name:Type}` where a parameter goes. Values are never part of it.
    pub sql: String,
    /// Names and values of the parameters, values in ClickHouse's text form.
    pub params: Vec<(String, String)>,
    /// One of ClickHouse's output formats.
    pub format: String,
    pub access: Access,
}

/// A formatted answer, in parts. Dropping it cancels the query.
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>> + Send>>;

/// The whole of a short answer to a statement of Holdfast's own, tab-separated.
async fn answer(store: &dyn Store, sql: &str) -> Result<String, StoreError> {
    let format = "TabSeparated".into();
    answer_to(
        store,
        Query {
            sql: sql.into(),
            params: vec![],
            format,
            access: Access::Internal,
        },
    )
    .await
}

/// The whole of a short answer.
async fn answer_to(store: &dyn Store, query: Query) -> Result<String, StoreError> {
    let parts: Vec<Bytes> = store.query(query).await?.try_collect().await?;
    String::from_utf8(parts.concat())
        .map_err(|error| StoreError::rejected(format!("the store's answer is not UTF-8: {error}")))
}

/// What can go wrong in a store. Callers branch on it: what is `Rejected` is not worth another try, the rest is.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The statement or the data is at fault; the same again will fail again. `code` is ClickHouse's, zero where
    /// it gave none.
    #[error("{message}")]
    Rejected { code: u32, message: String },
    /// The store cannot be reached, or is full or busy, or broke down on the way. Nothing is known of the outcome.
    #[error("{message}")]
    Unavailable { message: String },
    /// The store's disk has no room for a block of this size; for a smaller one it may have. One server has stored nothing of
    /// it; in a cluster some shards may have had room.
    #[error("{message}")]
    Full { message: String },
    /// The insert came after its block's deadline. One server has stored nothing of it; in a cluster some shards may
    /// have been in time. With another deadline the same again can succeed.
    #[error("the lease of this insert has ended")]
    LeaseEnded,
}

/// A ClickHouse.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Makes the database where there is none. Before it has succeeded once, nothing else need work. A store that
    /// comes with its database has nothing to do.
    async fn prepare(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Tells this collector from the others that insert into the store, those that ended included; `None` where there
    /// cannot be any: in a store that only one process can use.
    fn writer(&self) -> Option<u64> {
        None
    }

    /// Waits until every insert that began before the call has ended, whoever began it: what is in the store then is
    /// all that will be there of it. A store that only one process can use has nothing to wait for.
    async fn fence(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Makes the rows of `block` durable in `table`, all or none. `token` names the block: the same token with the
    /// same bytes again adds nothing (which only serves retries of the same block).
    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError>;

    /// Runs a statement that returns rows.
    async fn query(&self, query: Query) -> Result<Chunks, StoreError>;

    /// Runs a statement of Holdfast's own that returns none: DDL.
    async fn execute(&self, sql: &str) -> Result<(), StoreError>;

    /// Runs a statement of Holdfast's own that makes rows out of rows, inside the store. Values are never part of its
    /// text: `params` are as in [`Query`].
    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError>;

    /// Where the tables lie.
    fn layout(&self) -> Layout {
        Layout::OneServer
    }
}
