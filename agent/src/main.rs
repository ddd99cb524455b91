//! `holdfast-agent`: parse, run, exit code.

use std::{io::Write, process::ExitCode};

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
use tracing_subscriber::EnvFilter;

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
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
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

fn print_check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let findings = check::findings();
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
