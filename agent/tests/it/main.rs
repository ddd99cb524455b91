//! The agent against the running kernel. These tests need root; each makes its own network namespaces and observes
//! nothing else.
#![allow(
    unsafe_code,
    reason = "raw sockets and fork-free system calls that no crate wraps"
)]

mod end_to_end;
mod host;
mod outcomes;
mod probe;
mod watch;
