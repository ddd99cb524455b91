//! Holdfast's agent: what the kernel of one node saw, on its way to the collector.
//!
//! The path, one file a step: [`probes`] loads the BPF programs, [`ring`] drains their ring buffer, [`clock`] turns
//! boot time into wall time, [`outcome`] says what a record means, [`wire`] packs it into columns, [`batch`] seals
//! batches, [`spool`] keeps them until [`uplink`] has delivered them. Beside it: [`counters`], so that every row is
//! somewhere; [`identity`], who is speaking; [`check`], what this kernel allows; [`btf`], where its fields are.

pub mod batch;
pub mod btf;
pub mod check;
pub mod clock;
pub mod config;
pub mod counters;
pub mod identity;
pub mod outcome;
pub mod probes;
pub mod ring;
pub mod spool;
pub mod uplink;
pub mod wire;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    sync::watch,
    time::{interval, timeout},
};

use crate::{
    batch::{Batcher, Limits},
    config::{Netns, RunArgs},
    counters::Counters,
    identity::Identity,
    probes::{Options, Probes, ProgramLog},
    ring::Drain,
    spool::Spool,
};

/// How long the agent goes on delivering after it was told to stop.
const FLUSH: Duration = Duration::from_secs(5);

/// How often the programs' own messages are looked for.
const LOG_TICK: Duration = Duration::from_secs(1);

/// Runs the agent until `shutdown` turns true: loads the programs, delivers what they see, and at the end what is
/// left.
///
/// # Errors
/// If the programs cannot be loaded. A collector that is away is no error.
pub async fn run(args: &RunArgs, mut shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
    let mut identity = Identity::read(args.name.as_deref(), &args.labels)?;
    let only_netns = match args.netns {
        Netns::All => None,
        Netns::Only(inode) => Some(inode),
    };
    identity.observed_netns = only_netns.map_or_else(|| "all".into(), |inode| inode.to_string());
    identity.missing_features = check::findings()
        .iter()
        .filter(|finding| finding.verdict != check::Verdict::Ok)
        .map(|finding| finding.name.to_owned())
        .collect();

    let mut probes = Probes::load(Options {
        only_netns,
        ring_bytes: args.ring,
        connections: args.connections,
    })?;
    let kernel_counters = probes.take_counters()?;
    let log = probes.take_log()?;
    let counters = Arc::new(Counters::default());
    let limits = spool::Limits {
        memory_bytes: args.spool as u64,
        ..spool::Limits::default()
    };
    let spool = Arc::new(Spool::open(limits, None, identity.epoch, Arc::clone(&counters))?);
    let drain = Drain::start(
        probes.take_ring()?,
        Batcher::new(Limits::default(), identity.epoch),
        Arc::clone(&spool),
        Arc::clone(&counters),
    )?;
    probes.attach()?;
    let log = tokio::spawn(forward_log(log));
    tracing::info!(
        node = %identity.node,
        agent = %identity.agent_id,
        epoch = identity.epoch,
        netns = %identity.observed_netns,
        "watching TCP connections"
    );

    let status = || match kernel_counters.read() {
        Ok(kernel) => Some(counters.status(kernel)),
        Err(error) => {
            tracing::error!("no counters: {:#}", anyhow::Error::new(error));
            None
        }
    };
    // The uplink stops only after the drain has sealed the last batch.
    let (finish, finished) = watch::channel(false);
    let mut uplink = std::pin::pin!(uplink::run(&args.collector, &identity, &spool, finished, status));
    tokio::select! {
        () = &mut uplink => unreachable!("the uplink ends only when it is told to"),
        _ = shutdown.wait_for(|&stop| stop) => {}
    }

    tracing::info!("stopping: detaching the programs and delivering what is left");
    drop(probes);
    tokio::task::spawn_blocking(|| drain.finish())
        .await
        .context("the ring could not be drained")?;
    finish.send_replace(true);
    let in_time = timeout(FLUSH, uplink).await.is_ok();
    log.abort();

    let last = counters.status(kernel_counters.read()?);
    for stream in &last.streams {
        tracing::info!(
            opened = stream.opened,
            closed = stream.closed,
            untracked = stream.untracked,
            lost = stream.lost,
            received = stream.received,
            acknowledged = stream.acknowledged,
            dropped = stream.dropped,
            refused = stream.refused,
            "stopped"
        );
        if stream.unacknowledged > 0 {
            tracing::warn!(
                rows = stream.unacknowledged,
                "rows are lost with this process: the collector did not acknowledge them{}",
                if in_time { "" } else { " in time" }
            );
        }
    }
    Ok(())
}

/// Hands the BPF programs' rare messages to `tracing`, until it is aborted. They wait in a ring of their own; looking
/// once a second costs nothing, and what happened is in the counters at once.
async fn forward_log(mut log: ProgramLog) {
    let mut tick = interval(LOG_TICK);
    loop {
        tick.tick().await;
        log.flush();
    }
}
