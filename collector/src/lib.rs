//! Holdfast's collector.
pub mod filter;
pub mod store;
