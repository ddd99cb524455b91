//! Holdfast's agent: what the kernel of one node saw, on its way to the collector.
//!
//! The path, one file a step: [`probes`] loads the BPF programs, [`ring`] drains their [`ring_buffer`] and looks into their
//! [`table`] of open connections, [`clock`] turns
//! boot time into wall time, [`outcome`] and [`cause`] say what a record means, [`wire`] packs it into columns, [`batch`] seals
//! batches, [`spool`] keeps them until [`delivery`] over [`uplink`] has brought them home. Beside it: [`counters`], [`witness`] and
//! [`ledger`], so that every row is somewhere; [`controls`], what of it is switched on; [`overhead`], what it costs;
//! [`workloads`], who runs in which cgroup; [`identity`], who is speaking; [`check`], what this kernel allows, and
//! [`kernel`], what it is by its version; [`btf`], where its
//! fields are.

pub mod batch;
pub mod btf;
pub mod cause;
pub mod check;
pub mod clock;
pub mod clock_offset;
pub mod config;
mod connects;
pub mod controls;
pub mod counters;
pub mod delivery;
pub mod gaps;
mod heap;
pub mod identity;
pub mod kernel;
pub mod ledger;
pub mod load;
mod mapping;
pub mod network;
pub mod open;
pub mod outcome;
pub mod overhead;
pub mod owners;
pub mod predecessor;
pub mod probes;
pub mod ring;
pub mod ring_buffer;
pub mod runs;
pub mod seal;
pub mod seeds;
pub mod sequences;
pub mod setting;
pub mod spool;
pub mod state;
pub mod survey;
pub mod syscalls;
pub mod table;
pub mod transitions;
pub mod uplink;
pub mod wire;
pub mod witness;
pub mod workloads;

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use anyhow::Context;
use holdfast_agent_ebpf::counter::Counter;
use holdfast_proto::v1::Status;
use tokio::{
    sync::watch,
    time::{interval, timeout},
};

use crate::{
    batch::{Batcher, Limits},
    clock_offset::ClockOffset,
    config::{Netns, RunArgs},
    controls::{Controls, Shown, settings::Settings},
    counters::Counters,
    delivery::Delivery,
    gaps::GapBatcher,
    identity::Identity,
    ledger::{Keeper, Ledger},
    network::{Network, QueuesByNetns},
    open::{Eyes, Looks},
    overhead::{Meter, Overhead, budget::Budget, meter},
    probes::{Options, ProbeError, Probes, ProgramLog},
    ring::{Drain, Intake},
    runs::Runs,
    seal::Sealer,
    seeds::Seeds,
    spool::Spool,
    state::State,
    syscalls::{
        Mode,
        columns::SyscallBatcher,
        kernel::{Sizes, is_ours},
        watch::{Counted, Watch},
    },
    transitions::TransitionBatcher,
    witness::Witness,
    workloads::{Workloads, rows::Naming, tree::Watching},
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
    // Asked now and heard before the hello: a runtime that hangs keeps nothing from being watched.
    let runtimes = args.cri_socket.clone();
    let asking = tokio::task::spawn_blocking(move || check::container_runtime(&runtimes));
    let only_netns = match args.netns {
        Netns::All => None,
        Netns::Only(inode) => Some(inode),
    };
    identity.observed_netns = only_netns.map_or_else(|| "all".into(), |inode| inode.to_string());

    let (mut probes, syscall_mode, can_count_syscalls) = load(
        Options {
            only_netns,
            ring_bytes: args.ring,
            transition_ring_bytes: args.transition_ring,
            connections: args.connections,
            syscalls: None,
        },
        args.syscalls,
        args.control.syscalls(),
    )?;
    let are_syscalls_wanted = args.syscalls != Mode::Off || args.control.syscalls();
    let are_syscalls_refused = are_syscalls_wanted && !can_count_syscalls;
    identity.missing_features = check::missing_features(&probes, are_syscalls_refused, only_netns);
    let kernel_counters = probes.take_counters()?;
    let log = probes.take_log()?;
    let state = State::open(args.state.as_deref(), &identity.node)?;
    identity.epoch = state.next_epoch(identity.epoch);
    let (journal, recollection) = state.journal().unzip();
    let recollection = recollection.unwrap_or_default();
    let predecessor = recollection.starts.last().map(|start| start.epoch);
    let counters = Arc::new(Counters::speaking_for(recollection.starts));
    let limits = spool::Limits {
        memory_bytes: args.spool_memory,
        disk_bytes: args.spool,
        age: args.spool_age,
        sync: args.spool_sync,
    };
    let disk = state.into_disk();
    let spool = Spool::open(limits, &identity.boot_id, disk, Arc::clone(&counters))
        .context("cannot read the spool that an earlier start left")?;
    let spool = Arc::new(spool);
    if journal.is_some() {
        spool.journal(
            recollection.gaps,
            recollection.gap_batches,
            &recollection.left_behind,
        );
    }
    let seeds = Arc::new(Seeds::default());
    let writer = spool::Writer::start(&spool).context("cannot start the thread that writes the spool")?;
    let table = Arc::new(probes.take_table()?);
    let shown = Arc::new(Shown::default());
    let workloads = Arc::new(Workloads::of_this_machine(args.services.clone()));
    let watching = match workloads.root() {
        None => None,
        Some(root) => match Watching::start(Arc::clone(&workloads), root) {
            Ok(watching) => Some(watching),
            Err(error) => {
                tracing::warn!("cgroups are only known by their processes: {error}");
                None
            }
        },
    };
    let naming = Naming::start(
        Arc::clone(&workloads),
        args.kubelet.clone(),
        args.cri_socket.clone(),
        seal::Sealer::new(identity.epoch, &identity.boot_id),
        Arc::clone(&spool),
    )
    .context("cannot start the thread that tells the names of cgroups")?;
    let batcher = Batcher::new(Limits::default(), identity.epoch, &identity.boot_id);
    let intake = Intake::new(
        batcher.named_by(Arc::clone(&workloads)),
        Arc::clone(&seeds),
        Arc::clone(&spool),
        Arc::clone(&counters),
    )
    .located_by(Arc::clone(&workloads))
    .with_transitions(
        TransitionBatcher::new(Limits::default(), identity.epoch, &identity.boot_id)
            .named_by(Arc::clone(&workloads)),
    );
    let drain = Drain::start(
        probes.take_ring()?,
        probes.take_transitions()?,
        Arc::clone(&table),
        Arc::clone(&shown),
        intake,
    )?;
    let mut listeners = probes.take_listeners()?;
    let peers = probes.take_peers()?;
    let counted = can_count_syscalls.then(|| Arc::new(Counted::default()));
    let syscall_tables = match &counted {
        None => None,
        Some(_) => Some(probes.take_syscalls()?),
    };
    let witness = Witness::new(only_netns);
    let ledger = Ledger::new(
        &identity,
        kernel_counters,
        &spool,
        &counters,
        witness,
        journal,
        predecessor,
    )?
    .with_syscalls(counted.clone());
    probes.attach()?;
    ledger.attached()?;
    let ledger = Arc::new(ledger);
    let keeper = Keeper::start(&ledger).context("cannot start the thread that keeps the ledger")?;
    let found = seeds.find(&mut probes, &mut listeners, only_netns)?;
    ledger.surveyed(found.surveyed.iter().copied())?;
    if found.untracked > 0 {
        tracing::warn!(
            untracked = found.untracked,
            "the table of connections has no room for all that was open before the agent started: how the rest ends stays \
             unseen; a larger --connections has room"
        );
    }
    for (netns, reason) in &found.unseen {
        tracing::warn!(
            netns,
            "what was open before the agent started stays unseen: {reason}"
        );
    }
    let programs = meter::Programs::new(probes.programs()?);
    let probes = Arc::new(Mutex::new(probes));
    let controls = Arc::new(Controls::new(
        &probes,
        Settings::everything(syscall_mode, args.transitions.clone()),
        args.control.clone(),
        can_count_syscalls,
        are_syscalls_refused,
        Arc::clone(&shown),
    ));
    let syscalls_counted = counted.clone();
    let watch = match syscall_tables.zip(counted) {
        None => None,
        Some((tables, counted)) => Some(Watch::start(
            tables,
            controls.syscalls(),
            controls.switch_syscalls(),
            SyscallBatcher::new(identity.epoch, &identity.boot_id).named_by(Arc::clone(&workloads)),
            counted,
            Arc::clone(&spool),
            Arc::clone(&counters),
        )?),
    };
    let overhead = Overhead::start(
        Meter {
            programs,
            interval: args.overhead_every,
            ring_bytes: args.ring.into(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32),
            budget: args.max_cpu.0.map(Budget::new),
            switch: controls.give_up(),
            watched: controls.watched(),
            sealer: Sealer::new(identity.epoch, &identity.boot_id),
        },
        Arc::clone(&spool),
        Arc::clone(&counters),
    )
    .context("cannot start the thread that tells what the agent costs")?;
    let alarm = Arc::new(AtomicBool::new(false));
    let queues = QueuesByNetns::default();
    let eyes = Eyes {
        probes: Arc::clone(&probes),
        table,
        seeds,
        alarm: Arc::clone(&alarm),
        queues: Arc::clone(&queues),
        only_netns,
        shown,
        counters: Arc::clone(&counters),
        workloads,
    };
    let sealer = Sealer::new(identity.epoch, &identity.boot_id);
    let looks = Looks::start(eyes, sealer, Arc::clone(&spool))?;
    let sealer = Sealer::new(identity.epoch, &identity.boot_id);
    let network = Network::start(peers, only_netns, alarm, queues, sealer, Arc::clone(&spool))?;
    let (silence, silenced) = watch::channel(false);
    let log = tokio::spawn(forward_log(log, silenced));
    tracing::info!(
        node = %identity.node,
        agent = %identity.agent_id,
        epoch = identity.epoch,
        netns = %identity.observed_netns,
        connections = found.connections,
        listeners = found.listeners,
        unowned = found.unowned,
        syscalls = %syscall_mode,
        "watching TCP connections"
    );
    heap::trim();

    let runtime = asking
        .await
        .context("the container runtime could not be asked who it is")?;
    identity
        .missing_features
        .extend(runtime.lacks().map(str::to_owned));
    let mut delivery = Delivery {
        identity: identity.clone(),
        spool: Arc::clone(&spool),
        counters: || match ledger.status() {
            Ok(status) => {
                let syscalls_since_ns = syscalls_counted.as_ref().map_or(0, |counted| counted.since_ns());
                Some(Status {
                    watches: controls.watches(syscalls_since_ns),
                    ..status
                })
            }
            Err(error) => {
                tracing::error!("no counters: {:#}", anyhow::Error::new(error));
                None
            }
        },
        gaps: GapBatcher::new(identity.epoch, &identity.boot_id),
        probes: Some(controls.answer()),
        runs: Runs::new(args.load.consent()),
        clock: ClockOffset::default(),
        wall_now_ns: Arc::new(|| clock::wall_now().as_nanos() as u64),
        boot_now: Arc::new(|| Duration::from_nanos(clock::boot_now_ns())),
    };
    // The uplink stops only after the drain has sealed the last batch.
    let (finish, finished) = watch::channel(false);
    let mut uplink = std::pin::pin!(uplink::run(&args.collector, &mut delivery, finished));
    tokio::select! {
        () = &mut uplink => unreachable!("the uplink ends only when it is told to"),
        _ = shutdown.wait_for(|&stop| stop) => {}
    }

    tracing::info!("stopping: detaching the programs and delivering what is left");
    tokio::task::spawn_blocking(|| {
        looks.finish();
        network.finish();
    })
    .await
    .context("what is open could not be looked at")?;
    ledger.detach()?;
    // Whoever else knows them only borrows them for a moment.
    drop(probes);
    tokio::task::spawn_blocking(|| {
        overhead.finish();
        drain.finish();
        if let Some(watch) = watch {
            watch.finish();
        }
        if let Some(watching) = watching {
            watching.finish();
        }
        // After everything that uses names.
        naming.finish();
    })
    .await
    .context("the ring could not be drained")?;
    finish.send_replace(true);
    let in_time = timeout(FLUSH, uplink).await.is_ok();
    tokio::task::spawn_blocking(|| {
        keeper.finish();
        writer.finish();
    })
    .await
    .context("the spool could not be written")?;
    ledger.close()?;
    silence.send_replace(true);
    log.await.context("the programs' messages could not be read")?;

    let (kernel, stages) = (ledger.kernel()?, counters.total());
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
        let late = if in_time { "" } else { " in time" };
        let next = if spool.levels().disk_failed {
            "what was in memory only is lost with this start, for the spool cannot write to its disk"
        } else {
            "the next start delivers what is in the spool"
        };
        tracing::warn!(
            rows = stages.unacknowledged,
            "the collector did not acknowledge all rows{late}: {next}"
        );
    }
    Ok(())
}

/// Loads the programs; those for syscalls only if they are wanted, now or maybe later, and not on a kernel that refuses
/// them. Gives how syscalls are counted at first, and whether they can be.
fn load(options: Options, syscalls: Mode, maybe_later: bool) -> Result<(Probes, Mode, bool), ProbeError> {
    if syscalls == Mode::Off && !maybe_later {
        return Ok((Probes::load(options)?, Mode::Off, false));
    }
    let with_syscalls = Options {
        syscalls: Some(Sizes::of_this_machine()?),
        ..options
    };
    match Probes::load(with_syscalls) {
        Ok(probes) => Ok((probes, syscalls, true)),
        Err(error @ ProbeError::Program { program, .. }) if is_ours(program) => {
            tracing::warn!("syscalls are not counted: {:#}", anyhow::Error::new(error));
            Ok((Probes::load(options)?, Mode::Off, false))
        }
        Err(error) => Err(error),
    }
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
