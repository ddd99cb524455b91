//! `holdfast`: the collector, and the command line that asks one.

fn main() -> std::process::ExitCode {
    holdfast_collector::cli::run()
}
