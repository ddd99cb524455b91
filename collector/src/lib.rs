//! Holdfast's collector.
pub mod store;
