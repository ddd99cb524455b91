//! What `cargo xtask` does and what is deployed, tried for real.

mod commands;
mod units;
mod up;
