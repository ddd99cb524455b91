//! Load on request: connections by a schedule, and what became of each, honestly.
//!
//! A [`plan`] says what is wanted, [`consent`] whether this node's own configuration allows it. [`schedule`] says when each
//! attempt is due and [`ports`] from where; [`worker`] makes the attempts on a thread of its own, by epoll and never by a
//! timer of tokio's, over what [`socket`] wraps, sleeping as [`wait`] does and noting in [`moments`] what to look at; [`tally`] is what it counted, by [`outcome`]. Where an attempt is a request
//! ([`http`]) it is [`requests`] that makes them, in the words of [`http1`] or [`http2`], perhaps over [`tls`]; where
//! it is a datagram, [`datagrams`]. A count of connections for which there are not files enough is held by [`held`]. [`saturation`] says of a closed loop
//! whether its threads had time left. [`run`] starts the workers, collects their tallies, and stops them; [`order`] is how the
//! collector says it.
//!
//! The loop is open: an attempt is due when its schedule says so, whatever the target does, and its latency is what somebody
//! would have waited who came at that moment. How late the generator itself was is counted beside it.

pub mod consent;
pub mod datagrams;
pub mod held;
pub mod http;
pub mod http1;
pub mod http2;
pub mod memory;
mod moments;
pub mod order;
pub mod outcome;
pub mod plan;
pub mod ports;
pub mod requests;
pub mod run;
pub mod saturation;
pub mod schedule;
pub mod serving;
pub mod socket;
pub mod tally;
pub mod tls;
mod wait;
pub mod worker;
