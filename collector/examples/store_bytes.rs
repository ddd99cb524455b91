//! What the rows of an embedded store take on disk: `cargo run --release --example store_bytes -- FOLDER` prints one
//! JSON object a line for each table that has rows. With `--merged`, each table is merged into one part a day first,
//! which is what a day looks like once it is over. With `--columns`, there follows one for each column of
//! `connection_records`. No collector may have the store open.

use std::path::PathBuf;

use anyhow::Context;
use futures_util::TryStreamExt;
use holdfast_collector::store::embedded::Embedded;
use holdfast_collector::store::{Access, Query, Store, library};

const TABLES: &str = "SELECT table, sum(rows) AS rows, sum(bytes_on_disk) AS bytes, count() AS parts \
    FROM system.parts WHERE active AND database = currentDatabase() GROUP BY table ORDER BY bytes DESC";

const COLUMNS: &str = "SELECT name AS column, type, compression_codec AS codec, \
    round(data_compressed_bytes / total.rows, 3) AS bytes_per_row FROM system.columns, \
    (SELECT count() AS rows FROM connection_records) AS total WHERE database = currentDatabase() \
    AND table = 'connection_records' AND default_kind = '' ORDER BY bytes_per_row DESC";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("FOLDER is missing")?);
    let store = Embedded::open(&folder, &library::locate()?, "holdfast")?;
    let options: Vec<String> = arguments.collect();
    let is_wanted = |option: &str| options.iter().any(|given| given == option);
    if is_wanted("--merged") {
        store.execute("OPTIMIZE TABLE connection_records FINAL").await?;
    }
    print(&store, TABLES).await?;
    if is_wanted("--columns") {
        print(&store, COLUMNS).await?;
    }
    Ok(())
}

async fn print(store: &Embedded, sql: &str) -> anyhow::Result<()> {
    let query = Query {
        sql: sql.to_owned(),
        params: Vec::new(),
        format: "JSONEachRow".to_owned(),
        access: Access::Internal,
    };
    let parts: Vec<_> = store.query(query).await?.try_collect().await?;
    print!("{}", String::from_utf8(parts.concat())?);
    Ok(())
}
