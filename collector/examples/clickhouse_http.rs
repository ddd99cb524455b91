//! A stand-in for a ClickHouse server, in a process of its own: for what measures the collector with a server, or
//! kills the server under it.
//!
//! `cargo run --release --example clickhouse_http -- FOLDER ADDRESS` keeps its data in FOLDER, serves on ADDRESS until
//! SIGTERM, and prints the store's URL, as `holdfast serve --store` takes it, once it does.

#[path = "../tests/it/clickhouse_http.rs"]
mod clickhouse_http;

use std::path::PathBuf;

use anyhow::Context;
use holdfast_collector::serve;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{library, writes};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::net::TcpListener;

const DATABASE: &str = "holdfast";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("FOLDER is missing")?);
    let address = arguments.next().context("ADDRESS is missing")?;
    let listener = TcpListener::bind(&address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    writes::wait_for_space();
    let _engine = Embedded::open(&folder, &library::locate()?, DATABASE)?;
    println!(
        "http://{}:{}@{}/{DATABASE}",
        clickhouse_http::USER,
        utf8_percent_encode(clickhouse_http::PASSWORD, NON_ALPHANUMERIC),
        listener.local_addr()?
    );
    tokio::select! {
        () = clickhouse_http::serve(listener, &folder, clickhouse_http::Running::default()) => {}
        () = serve::told_to_stop() => {}
    }
    Ok(())
}
