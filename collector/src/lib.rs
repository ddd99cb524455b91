//! Holdfast's collector, and the command line that asks one.
//!
//! Start with [`serve`]: it opens the store, starts the parts and connects them. A batch then goes
//!
//! 1. through [`ingest`], which lets agents in and checks what they deliver (`ingest/decode.rs` is pure);
//! 2. through [`gather`], which builds large blocks out of the batches of all agents, has them stored, and
//!    acknowledges;
//! 3. into the [`store`], the only place where there is SQL.
//!
//! People come in by [`cli`], [`query`] and [`web`].

pub mod cli;
pub mod config;
pub mod filter;
pub mod gather;
pub mod health;
pub mod ingest;
pub mod metrics;
pub mod port;
pub mod query;
pub mod serve;
pub mod store;
pub mod web;
