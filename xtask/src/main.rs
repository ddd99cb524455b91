//! `cargo xtask`: sets the project up, builds, runs, tests and measures it. One file per command.
//!
//! Exit codes are those of Holdfast's own binaries: 0 done, 1 a check failed, 2 usage, 4 it could not be done.
#![forbid(unsafe_code)]

#[macro_use]
mod output;

mod bench;
// The build script of the agent includes the same file, and each of the two needs a part of it.
#[path = "../../agent-ebpf/build_object.rs"]
#[allow(dead_code)]
mod build_object;
mod ebpf;
mod failure;
mod fuzz;
mod kernel_test;
mod netns;
mod process;
mod progress;
mod setup;
mod space;
mod span;
mod test;
mod torture;
mod traffic;
mod up;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets Holdfast up, builds, runs, tests and measures it.
///
/// On a fresh Debian machine with Rust, as root, each of these works with nothing else typed: what is missing is
/// installed first.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Arguments),
    Test(test::Arguments),
    Setup(setup::Arguments),
    Ebpf(ebpf::Arguments),
    Bench(bench::Arguments),
    Torture(torture::Arguments),
    Fuzz(fuzz::Arguments),
    KernelTest(kernel_test::Arguments),
    #[command(hide = true)]
    Traffic(traffic::Arguments),
    #[command(hide = true)]
    Churn(bench::churn::Arguments),
    #[command(hide = true)]
    Strain(torture::load::Arguments),
    #[command(hide = true)]
    Mix(bench::mix::Arguments),
    #[command(hide = true)]
    Guest(kernel_test::guest::Arguments),
    #[command(hide = true)]
    Calls(bench::calls::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Setup(arguments) => setup::run(&arguments),
        Command::Ebpf(arguments) => ebpf::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Torture(arguments) => torture::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::KernelTest(arguments) => kernel_test::run(&arguments),
        Command::Guest(arguments) => kernel_test::guest::run(&arguments),
        Command::Traffic(arguments) => traffic::run(&arguments),
        Command::Churn(arguments) => bench::churn::run(&arguments),
        Command::Strain(arguments) => torture::load::run(&arguments),
        Command::Mix(arguments) => bench::mix::run(&arguments),
        Command::Calls(arguments) => bench::calls::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
