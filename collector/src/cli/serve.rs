//! `holdfast serve`.

use std::io;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::config::{Config, Settings};
use crate::engine::run::Declared;
use crate::serve;

/// Run the collector: take in what agents deliver, store it, and answer questions.
///
/// It needs no settings. A setting comes from its flag, else its environment variable, else the file that --config
/// names, else its default. SIGINT and SIGTERM stop it once everything that it took in is stored.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast serve
  holdfast serve --store embedded:/srv/holdfast --retention 90d,gaps=365d
  holdfast serve --assertions /etc/holdfast/assertions
  holdfast serve --listen 0.0.0.0:7443 --store http://holdfast@clickhouse:8123/holdfast

HOLDFAST_STORE_PASSWORD is the password of a ClickHouse server, if it shall not be in the URL.
RUST_LOG sets what is logged (default: info).")]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let config = Config::load(args.settings).map_err(|error| Failure::Usage(error.into()))?;
    let assertions = config.assertions.clone().map(Declared::read).transpose();
    let assertions = assertions.map_err(|error| Failure::Usage(error.into()))?;
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_ansi(super::colours(&io::stderr()))
        .with_writer(io::stderr)
        .with_target(false)
        // Its own complaints go to stderr, and end the process when nobody reads there any more.
        .log_internal_errors(false)
        .init();
    let runtime = tokio::runtime::Runtime::new()
        .context("cannot start")
        .map_err(Failure::Undone)?;
    runtime
        .block_on(serve::run(config, assertions, serve::told_to_stop()))
        .map_err(Failure::Undone)
}
