//! `holdfast-agent`: parse, run, exit code.

use std::{io::Write, process::ExitCode};

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
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "holdfast-agent",
                &mut std::io::stdout(),
            );
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("holdfast-agent: {error:#}");
        ExitCode::from(EXIT_FAILED)
    })
}

fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none(),
        )
        .with_target(false)
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
    let mut out = std::io::stdout().lock();
    for finding in &findings {
        if args.json {
            writeln!(out, "{}", finding.json())?;
            continue;
        }
        writeln!(
            out,
            "{:<8} {:<18} {}",
            finding.verdict.word(),
            finding.name,
            finding.found
        )?;
        if !finding.consequence.is_empty() {
            writeln!(out, "{:27} -> {}", "", finding.consequence)?;
        }
    }
    let can_run = check::can_run(&findings);
    if !args.json {
        writeln!(
            out,
            "{}",
            if can_run {
                "the agent can run here"
            } else {
                "the agent cannot run here"
            }
        )?;
    }
    Ok(if can_run {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
