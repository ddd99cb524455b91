//! The agent against the running kernel. These tests need root; each makes its own network namespaces and observes
//! nothing else.
#![allow(
    unsafe_code,
    reason = "raw sockets and fork-free system calls that no crate wraps"
)]

mod accepts;
mod announce;
mod attribution;
mod capabilities;
mod causes;
mod control;
mod denied;
mod end_to_end;
mod host;
mod judged;
mod load;
mod load_evidence;
mod load_http;
mod load_udp;
mod outcomes;
mod portability;
mod probe;
mod signals;
mod spool_memory;
mod survey;
mod syscalls;
mod transitions;
mod truth;
mod watch;
mod witness;
mod workloads;
