//! `holdfast load`: load from agents, told as it is made.

mod find_max;
mod http;
mod mesh;
mod received;
mod run;
mod serve;
mod stages;
mod tcp;
mod udp;
mod view;

use super::Failure;
pub(super) use run::at_least_one;

/// Make load from agents, and see what it does to its target.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Tcp(Box<tcp::Args>),
    Http(Box<http::Args>),
    Udp(Box<udp::Args>),
    Mesh(Box<mesh::Args>),
    Serve(serve::Args),
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Tcp(args) => tcp::run(*args).await,
        Command::Http(args) => http::run(*args).await,
        Command::Udp(args) => udp::run(*args).await,
        Command::Mesh(args) => mesh::run(*args).await,
        Command::Serve(args) => serve::run(args).await,
    }
}
