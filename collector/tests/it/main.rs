//! Tests against real parts: the engine, servers over loopback, processes.

mod asking;
mod at_exit;
mod clickhouse_http;
mod command_line;
mod delivery;
mod exactly_once;
mod faults;
mod harness;
mod store_contract;
mod store_embedded;
mod store_engine;
mod store_native;
mod store_questions;
mod store_rows;
mod store_schema;
mod store_server;
mod synthetic;
mod web;
