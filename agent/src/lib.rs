//! Holdfast's agent: what the kernel of one node saw, on its way to the collector.
//!
//! The path, one file a step: [`probes`] loads the BPF programs, [`ring`] drains their ring buffer, [`clock`] turns
//! boot time into wall time, [`outcome`] says what a record means, [`wire`] packs it into columns, [`batch`] seals
//! batches, [`spool`] keeps them until [`delivery`] over [`uplink`] has brought them home. Beside it: [`counters`], so that every row is
//! somewhere; [`identity`], who is speaking; [`check`], what this kernel allows; [`btf`], where its fields are.

pub mod batch;
pub mod btf;
pub mod check;
pub mod clock;
pub mod clock_offset;
pub mod config;
pub mod counters;
pub mod delivery;
pub mod gaps;
pub mod identity;
pub mod outcome;
pub mod probes;
pub mod ring;
pub mod spool;
pub mod state;
pub mod uplink;
pub mod wire;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use holdfast_agent_ebpf::counter::Counter;
use tokio::{
    sync::watch,
    time::{interval, timeout},
};

use crate::{
    batch::{Batcher, Limits},
    clock_offset::ClockOffset,
    config::{Netns, RunArgs},
    counters::Counters,
    delivery::Delivery,
    gaps::GapBatcher,
    identity::Identity,
    probes::{Options, Probes, ProgramLog},
    ring::Drain,
    spool::Spool,
    state::State,
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
    let state = State::open(args.state.as_deref(), &identity.node)?;
    identity.epoch = state.next_epoch(identity.epoch);
    let limits = spool::Limits {
        memory_bytes: args.spool_memory,
        disk_bytes: args.spool,
        ..spool::Limits::default()
    };
    let spool = Spool::open(limits, state.into_disk(), Arc::clone(&counters))
        .context("cannot read the spool that an earlier start left")?;
    let spool = Arc::new(spool);
    let writer = spool::Writer::start(&spool).context("cannot start the thread that writes the spool")?;
    let drain = Drain::start(
        probes.take_ring()?,
        Batcher::new(Limits::default(), identity.epoch, &identity.boot_id),
        Arc::clone(&spool),
        Arc::clone(&counters),
    )?;
    probes.attach()?;
    let (silence, silenced) = watch::channel(false);
    let log = tokio::spawn(forward_log(log, silenced));
    tracing::info!(
        node = %identity.node,
        agent = %identity.agent_id,
        epoch = identity.epoch,
        netns = %identity.observed_netns,
        "watching TCP connections"
    );

    let mut delivery = Delivery {
        identity: identity.clone(),
        spool: Arc::clone(&spool),
        counters: || match kernel_counters.read() {
            Ok(kernel) => Some(counters.status(&kernel)),
            Err(error) => {
                tracing::error!("no counters: {:#}", anyhow::Error::new(error));
                None
            }
        },
        gaps: GapBatcher::new(identity.epoch, &identity.boot_id),
        clock: ClockOffset::default(),
        wall_now_ns: || clock::wall_now().as_nanos() as u64,
    };
    // The uplink stops only after the drain has sealed the last batch.
    let (finish, finished) = watch::channel(false);
    let mut uplink = std::pin::pin!(uplink::run(&args.collector, &mut delivery, finished));
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
    tokio::task::spawn_blocking(|| writer.finish())
        .await
        .context("the spool could not be written")?;
    silence.send_replace(true);
    log.await.context("the programs' messages could not be read")?;

    let (kernel, stages) = (kernel_counters.read()?, counters.total());
    tracing::info!(
        opened = kernel.total(Counter::Opened),
        closed = kernel.total(Counter::Closed),
        untracked = kernel.total(Counter::Untracked),
        lost = kernel.total(Counter::Lost),
        missed = kernel.missed,
        received = stages.received,
        acknowledged = stages.acknowledged,
        dropped = stages.dropped,
        refused = stages.refused,
        "stopped"
    );
    if stages.unacknowledged > 0 {
        tracing::warn!(
            rows = stages.unacknowledged,
            "the collector did not acknowledge all rows{}: the next start delivers what is in the spool",
            if in_time { "" } else { " in time" }
        );
    }
    Ok(())
}

/// Hands the BPF programs' rare messages to `tracing`, until it is told to stop, and then what is left. They wait in a
/// ring of their own; looking once a second costs nothing, and what happened is in the counters at once.
async fn forward_log(mut log: ProgramLog, mut silenced: watch::Receiver<bool>) {
    let mut tick = interval(LOG_TICK);
    let mut stop = false;
    while !stop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = silenced.wait_for(|&silenced| silenced) => stop = true,
        }
        log.flush();
    }
}
