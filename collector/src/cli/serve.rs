//! `holdfast serve`.

use std::ffi::OsStr;
use std::io;

use anyhow::Context;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

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
RUST_LOG sets what is logged: a level for all, or for parts, as in info,holdfast_collector=debug (default: info).")]
pub(super) struct Args {
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let config = Config::load(args.settings).map_err(|error| Failure::Usage(error.into()))?;
    let assertions = config.assertions.clone().map(Declared::read).transpose();
    let assertions = assertions.map_err(|error| Failure::Usage(error.into()))?;
    let filter = log_filter(std::env::var_os("RUST_LOG").as_deref())
        .map_err(|message| Failure::Usage(anyhow::Error::msg(message)))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
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

/// What `RUST_LOG` asks for.
///
/// # Errors
/// If it is no filter, with what it may be.
fn log_filter(wanted: Option<&OsStr>) -> Result<EnvFilter, String> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return Ok(EnvFilter::new("info"));
    };
    let wrong = |reason: &dyn std::fmt::Display| {
        format!(
            "RUST_LOG is {wanted:?}: {reason}; use error, warn, info, debug, trace or off, for all or for a part: \
             info,holdfast_collector=debug"
        )
    };
    let text = wanted.to_str().ok_or_else(|| wrong(&"it is not UTF-8"))?;
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        // The library takes a word that is no level for the name of a part, and logs nothing else.
        if !word.contains(['=', ':', '[']) && word.parse::<LevelFilter>().is_err() {
            return Err(wrong(&format_args!("{word:?} is no level")));
        }
    }
    EnvFilter::try_new(text).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_not_taken_for_none() {
        let filter = |text: &str| log_filter(Some(OsStr::new(text))).map(|filter| filter.to_string());
        assert_eq!(log_filter(None).expect("the default").to_string(), "info");
        assert_eq!(filter(""), Ok("info".to_owned()));
        assert_eq!(
            filter("warn,holdfast_collector=debug"),
            Ok("holdfast_collector=debug,warn".to_owned())
        );
        for wrong in ["debgu", "info,verbose", "holdfast_collector=loud"] {
            let message = filter(wrong).expect_err(wrong);
            assert!(
                message.contains(wrong) && message.contains("use error, warn"),
                "{message}"
            );
        }
    }
}
