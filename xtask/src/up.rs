//! `cargo xtask up`: the whole system on this machine, with what the kernel sees shown live.
//!
//! Everything that is started here is stopped here, in order: traffic, agents, then the collector that the summary
//! is asked from, then the namespaces.

pub(crate) mod lab;
pub(crate) mod system;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::setup::{self, Need};
use crate::{netns, process, span};
use lab::Lab;
use system::{Binaries, System};

/// Set up, build, and run everything here; show live what the kernel sees.
///
/// Starts the collector with the embedded store in `.holdfast/` and an agent on this machine, and prints every TCP
/// connection as it finishes. Ctrl-C, or the end of --for, stops all of it and prints a summary. The data stays:
/// the next `up` continues with it. Needs root.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Stop after this long (30s, 5m, 1h); without it, run until Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = span::parse)]
    duration: Option<Duration>,

    /// Instead of this machine, watch N hosts made of network namespaces, with traffic between them
    ///
    /// They are joined by a bridge. Each has an agent that sees only its own namespace. The first runs an HTTP
    /// server, and the others ask it, ask where nobody listens, and ask where nobody answers.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=lab::MOST_NODES))]
    nodes: Option<u8>,

    /// Add steady traffic: 1,000 connections a second
    #[arg(long)]
    load: bool,

    /// Make no traffic of our own; show only what this machine does
    #[arg(long, conflicts_with_all = ["load", "nodes"])]
    no_traffic: bool,

    /// Keep the data and the logs here instead of in `.holdfast/`
    #[arg(long, value_name = "DIR")]
    state: Option<std::path::PathBuf>,

    /// Run what `cargo test` builds, without optimisation
    #[arg(long, hide = true)]
    as_tested: bool,
}

/// How often the services are looked after.
const TICK: Duration = Duration::from_millis(100);
/// How often the totals are printed.
const TOTALS: Duration = Duration::from_secs(5);

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        process::is_root(),
        "loading BPF programs needs root; type: sudo --preserve-env=HOME env \"PATH=$PATH\" cargo xtask up"
    );
    let stop = process::stop_on_signals()?;
    setup::provide(&[Need::Build, Need::Up])?;
    let binaries = Binaries::build(arguments.as_tested)?;
    netns::remove_leftovers()?;

    // Dropped in the reverse order, also when something fails: first what runs, then what it runs in.
    let lab = arguments.nodes.map(Lab::create).transpose()?;
    let state_dir = arguments
        .state
        .clone()
        .unwrap_or_else(crate::workspace::state_dir);
    let mut system = System::start(&binaries, &state_dir, lab.as_ref(), &stop)?;
    if !arguments.no_traffic {
        system.start_traffic(lab.as_ref(), arguments.load)?;
    }
    system.introduce();
    system.follow(arguments.load)?;

    let started = Instant::now();
    let mut totals_due = TOTALS;
    while !stop.load(Ordering::Relaxed)
        && arguments
            .duration
            .is_none_or(|duration| started.elapsed() < duration)
    {
        std::thread::sleep(TICK);
        if let Some(why) = system.ended() {
            bail!(why);
        }
        if started.elapsed() >= totals_due {
            totals_due += TOTALS;
            eprintln!("-- {}: {}", span::show(started.elapsed()), system.totals()?);
        }
    }

    eprintln!("-- stopping");
    system.finish()
}
