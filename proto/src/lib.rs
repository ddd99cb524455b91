//! The messages that Holdfast's agents, collector and CLI exchange, generated from `proto/holdfast/v1.proto`.
//!
//! What datagrams of load look like, which no protobuf is, stands in [`datagram`], and in [`cri`] what container runtimes are
//! asked, which others have defined. This crate holds no logic. The generated code is committed; `tests/generated.rs` regenerates it and fails
//! when the two differ (`HOLDFAST_BLESS=1 cargo test -p holdfast-proto` writes it anew).
#![forbid(unsafe_code)]

pub mod datagram;

/// The version of the protocol. A peer with another number is refused, and told which side to upgrade.
pub const PROTOCOL: u32 = 1;

/// How the library under gRPC (prost) begins to say that bytes are no message of the kind that is due.
pub const NO_MESSAGE: &str = "failed to decode Protobuf message";

/// A record that is the first of its connection: one row of `attempts`. A bit of `ConnectionColumns.flags`.
pub const FLAG_FIRST: u8 = 1;
/// A record that is the last of its connection: one row of `connections`. A bit of `ConnectionColumns.flags`.
pub const FLAG_FINAL: u8 = 2;
/// A reset was sent to the peer. A bit of `ConnectionColumns.flags`.
pub const FLAG_RESET_SENT: u8 = 4;
/// A reset of the peer arrived. A bit of `ConnectionColumns.flags`.
pub const FLAG_RESET_RECEIVED: u8 = 8;

/// `package holdfast.v1`.
pub mod v1 {
    #![allow(missing_docs, clippy::all, rust_2018_idioms, unreachable_pub)]
    include!("generated/holdfast.v1.rs");
}

/// `package runtime.v1`: the part that the agent reads of the Container Runtime Interface.
pub mod cri {
    #![allow(missing_docs, clippy::all, rust_2018_idioms, unreachable_pub)]
    include!("generated/runtime.v1.rs");
}
