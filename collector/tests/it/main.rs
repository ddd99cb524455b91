//! The collector as agents and people meet it: a real server on loopback, on the real embedded store.

mod asking;
mod command_line;
mod delivery;
mod faults;
mod harness;
mod synthetic;
mod web;
