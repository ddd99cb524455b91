//! The contract between Holdfast's BPF programs and the agent: what travels through the ring buffer, what the
//! counters mean, which kernel fields are read, and every bound.
//!
//! The programs themselves are this package's binary `probes`; they decide nothing, they copy and count. What a
//! record means (its outcome, its close reason) is worked out in user space, where it can be tested.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod control;
pub mod counter;
pub mod event;
pub mod limits;
pub mod listener;
pub mod offset;
pub mod peer;
pub mod syscall;
