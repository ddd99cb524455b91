//! The command line of `holdfast`: `serve` is the collector, every other command asks one.
//!
//! A failure is one line on stderr and an exit code: 1 for what does not hold, 2 for a wrong call or wrong settings, 3 for
//! what cannot be told, 4 for what could not be done.

mod backtest;
mod causes;
mod check;
mod client;
mod completions;
mod connections;
mod explain;
mod ledger;
mod listeners;
mod load;
mod nodes;
mod notifications;
mod overhead;
mod probe;
mod runs;
mod serve;
mod silences;
mod sql;
mod suggest;
mod syscalls;
mod table;
mod test;
mod transitions;
mod verdicts;
mod whole_file;

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sees every TCP connection and system call of every node, and keeps testing what should hold.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, propagate_version = true, after_help = EXAMPLES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  holdfast serve                                   run a collector; agents dial 127.0.0.1:7443
  holdfast nodes                                   who delivers
  holdfast ledger                                  whether every row is somewhere
  holdfast connections --follow                    connections as they are stored
  holdfast connections --open                      what is open now, attempts that wait included
  holdfast transitions --follow                    changes of TCP state as they happen, where they are streamed
  holdfast listeners                               who listens, and whose queue is full
  holdfast causes                                  why attempts failed or were slow
  holdfast connections --where 'outcome = \"refused\"' --last 5m
  holdfast syscalls --top                          what processes ask of their kernels, and how long it takes
  holdfast overhead                                what the agents cost their nodes
  holdfast probe set --all syscalls=off            change what the agents watch
  holdfast verdicts                                what holds, and what does not
  holdfast notifications                           who was told, and what waits
  holdfast silence 'web reaches the database' --for 2h --because 'the switch is replaced'
  holdfast check --once assertions/                whether it holds now, for pipelines
  holdfast suggest > assertions/suggested.yaml     what holds and could be asserted
  holdfast load tcp web:80 --rate 500/s --for 1m    make load from an agent
  holdfast runs                                    what was made, and what came of it
  holdfast sql 'SELECT comm, count() FROM connections GROUP BY comm'

Exit codes: 0 done, 1 it does not hold (ledger, check, load, run compare, probe set), 2 a wrong call or wrong settings, 3 it cannot be told (ledger, check,
suggest, load, run compare), 4 it could not be done.";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    Nodes(nodes::Args),
    Ledger(ledger::Args),
    Connections(connections::Args),
    Transitions(transitions::Args),
    Listeners(listeners::Args),
    Causes(causes::Args),
    Syscalls(syscalls::Args),
    Overhead(overhead::Args),
    Probe(probe::Args),
    Verdicts(verdicts::Args),
    Notifications(notifications::Args),
    Silence(silences::One),
    Silences(silences::Args),
    Explain(explain::Args),
    Check(check::Args),
    Test(test::Args),
    Backtest(backtest::Args),
    Suggest(suggest::Args),
    Load(Box<load::Args>),
    Runs(runs::Args),
    Run(runs::One),
    Sql(sql::Args),
    Completions(completions::Args),
}

/// Why a command failed: what the exit code says, and what a person reads.
#[derive(Debug)]
enum Failure {
    /// The call, or the settings, are at fault.
    Usage(anyhow::Error),
    /// It could not be done.
    Undone(anyhow::Error),
    /// What was asked about does not hold; the output says what.
    DoesNotHold,
    /// Whether it holds cannot be told; the output says why.
    Unknown,
    /// Whoever read our output has seen enough. That is no failure to anyone.
    NobodyReads,
}

impl From<io::Error> for Failure {
    /// Of writing to stdout, which is where the commands' I/O goes.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NobodyReads,
            io::ErrorKind::StorageFull => Self::Undone(anyhow::anyhow!(
                "cannot write the output: {error}; make room where it goes, or let it go elsewhere"
            )),
            _ => Self::Undone(anyhow::Error::new(error).context("cannot write the output")),
        }
    }
}

/// Whether what is written there may have colours (https://no-color.org).
fn colours(output: &impl io::IsTerminal) -> bool {
    output.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints a line for people, on stderr. When nobody reads there, nobody is told.
fn tell(line: &str) {
    let _ = io::Write::write_all(&mut io::stderr(), format!("{line}\n").as_bytes());
}

/// Parses the command line, runs the command, and says how it went.
pub fn run() -> ExitCode {
    let outcome = match CommandLine::parse().command {
        Command::Serve(args) => serve::run(args),
        Command::Nodes(args) => client::block_on(nodes::run(args)),
        Command::Ledger(args) => client::block_on(ledger::run(args)),
        Command::Connections(args) => client::block_on(connections::run(args)),
        Command::Transitions(args) => client::block_on(transitions::run(args)),
        Command::Listeners(args) => client::block_on(listeners::run(args)),
        Command::Causes(args) => client::block_on(causes::run(args)),
        Command::Syscalls(args) => client::block_on(syscalls::run(args)),
        Command::Overhead(args) => client::block_on(overhead::run(args)),
        Command::Load(args) => client::block_on(load::run(*args)),
        Command::Runs(args) => client::block_on(runs::run(args)),
        Command::Run(args) => client::block_on(runs::one(args)),
        Command::Probe(args) => client::block_on(probe::run(args)),
        Command::Verdicts(args) => client::block_on(verdicts::run(args)),
        Command::Notifications(args) => client::block_on(notifications::run(args)),
        Command::Silence(args) => client::block_on(silences::one(args)),
        Command::Silences(args) => client::block_on(silences::run(args)),
        Command::Explain(args) => client::block_on(explain::run(args)),
        Command::Check(args) => client::block_on(check::run(args)),
        Command::Test(args) => test::run(&args),
        Command::Backtest(args) => client::block_on(backtest::run(args)),
        Command::Suggest(args) => client::block_on(suggest::run(args)),
        Command::Sql(args) => client::block_on(sql::run(args)),
        Command::Completions(args) => completions::run(&args),
    };
    let (code, error) = match outcome {
        Ok(()) | Err(Failure::NobodyReads) => return ExitCode::SUCCESS,
        Err(Failure::DoesNotHold) => return ExitCode::from(1),
        Err(Failure::Unknown) => return ExitCode::from(3),
        Err(Failure::Usage(error)) => (2, error),
        Err(Failure::Undone(error)) => (4, error),
    };
    tell(&format!("holdfast: {error:#}"));
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
