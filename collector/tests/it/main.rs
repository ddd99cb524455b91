//! Tests against real parts: the engine, servers over loopback, processes.

mod clickhouse_http;
mod store_contract;
mod store_embedded;
mod store_engine;
mod store_native;
mod store_questions;
mod store_rows;
mod store_schema;
mod store_server;
