//! Holdfast's collector, and the command line that asks one.
//!
//! Start with [`serve`]: it opens the store, starts the parts and connects them. A batch then goes
//!
//! 1. through [`ingest`], which lets agents in and checks what they deliver (`ingest/decode.rs` is pure);
//! 2. through [`gather`], which builds large blocks out of the batches of all agents, has them stored, and
//!    acknowledges;
//! 3. into the [`store`], the only place where there is SQL.
//!
//! What is refused on the way goes to [`quarantine`]. Where several collectors share a store, [`claims`] says whose an
//! agent is.
//!
//! Beside that path, [`rollup`] has the minutes of what was stored added up, [`causes`] explains what failed, and
//! [`engine`] judges what is declared ([`assertion`]) by what is stored, and [`notify`] tells those who want to know, by
//! [`http`].
//!
//! Work that agents do together is driven by [`runs`].
//!
//! People come in by [`cli`], [`query`] and [`web`].

pub mod assertion;
pub mod causes;
pub mod claims;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod door;
pub mod engine;
pub mod filter;
pub mod gather;
pub mod health;
pub mod http;
pub mod ingest;
pub mod metrics;
pub mod notify;
pub mod port;
pub mod quarantine;
pub mod query;
pub mod rollup;
pub mod runs;
pub mod seat;
pub mod serve;
pub mod silence;
pub mod store;
pub mod trust;
pub mod web;
