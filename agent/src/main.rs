//! `holdfast-agent`: parse, run, exit code.

use std::{ffi::OsStr, io::Write, process::ExitCode};

use anyhow::Context;
use clap::{CommandFactory, Parser};
use holdfast_agent::{
    check,
    config::{CheckArgs, Cli, Command, RunArgs},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// A wrong call or wrong settings.
const EXIT_USAGE: u8 = 2;

/// It could not be done.
const EXIT_FAILED: u8 = 4;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Check(args) => print_check(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "holdfast-agent", &mut script);
            write_out(&script)
        }
    };
    result.unwrap_or_else(|error| {
        // When nobody reads there, nobody is told.
        let _ = std::io::stderr().write_all(format!("holdfast-agent: {error:#}\n").as_bytes());
        ExitCode::from(EXIT_FAILED)
    })
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let filter = match log_filter(std::env::var_os("RUST_LOG").as_deref()) {
        Ok(filter) => filter,
        Err(message) => {
            let _ = std::io::stderr().write_all(format!("holdfast-agent: {message}\n").as_bytes());
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::IsTerminal::is_terminal(&std::io::stderr())
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        )
        .with_target(false)
        // Its own complaint would be a panic once nobody reads our stderr any more.
        .log_internal_errors(false)
        .init();
    // One thread: the ring has its own, and everything here waits for the network.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            stop.send_replace(true);
        });
        holdfast_agent::run(args, stopped).await
    })?;
    Ok(ExitCode::SUCCESS)
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
             info,holdfast_agent=debug"
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

fn print_check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = check::findings(&args.cri_socket);
    let can_run = check::can_run(&findings);
    let mut text = String::new();
    for finding in &findings {
        if args.json {
            text += &format!("{}\n", finding.json());
            continue;
        }
        text += &format!(
            "{:<8} {:<18} {}\n",
            finding.verdict.word(),
            finding.name,
            finding.found
        );
        if !finding.consequence.is_empty() {
            text += &format!("{:27} -> {}\n", "", finding.consequence);
        }
    }
    if !args.json {
        text += if can_run {
            "the agent can run here\n"
        } else {
            "the agent cannot run here\n"
        };
    }
    write_out(text.as_bytes())?;
    Ok(if can_run {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// Writes to stdout. A reader that has seen enough is no failure.
fn write_out(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write the output")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
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
            filter("warn,holdfast_agent=debug"),
            Ok("holdfast_agent=debug,warn".to_owned())
        );
        for wrong in ["debgu", "info,verbose", "holdfast_agent=loud"] {
            let message = filter(wrong).expect_err(wrong);
            assert!(
                message.contains(wrong) && message.contains("use error, warn"),
                "{message}"
            );
        }
    }
}
