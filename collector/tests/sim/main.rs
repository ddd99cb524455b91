//! A deterministic simulation: the agent's real code from the ring to the wire and the collector's from the wire to
//! the store, in worlds where the clock, the network, the disks and the store are made of a seed. Nothing in a world
//! waits for real time, and the same seed is the same world to the last event.
//!
//! `HOLDFAST_SIM_SEED=7 cargo test -p holdfast-collector --test sim` runs one world and prints what happened in it;
//! `HOLDFAST_SIM_SEEDS=100000` runs so many. A run goes on after a failure, and prints the last events of the first
//! world that failed.

mod disk;
mod engine;
mod native;
mod network;
mod node;
mod oracle;
mod trace;
mod world;

use std::{
    env, panic,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use engine::Lapse;

/// Worlds of a run of all tests.
const SEEDS: u64 = 10_000;

/// Seeds of which each is lived through twice.
const SEEDS_TWICE: u64 = 50;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text:?} is no number")),
    )
}

/// Worlds in which a store that neglects its duty has to be found out. Forgotten claims show in one of a hundred or less,
/// forgotten deadlines in one of some thousand; the search ends there.
const SEEDS_OF_A_LAPSE: u64 = 20_000;

/// A panic of a task does not end its world: it is noted, and the world fails for it.
fn note_panics() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        world::PANICKED.set(true);
        print(info);
    }));
}

/// What went wrong in the world of a seed, if anything did.
fn failure(seed: u64) -> Option<String> {
    let ending = world::run(seed, Lapse::None);
    ending.fault.map(|fault| {
        format!(
            "{}\nseed {seed}: {fault}\nagain: HOLDFAST_SIM_SEED={seed} cargo test -p holdfast-collector --test sim",
            ending.trace.text()
        )
    })
}

#[test]
fn in_no_world_is_a_row_lost_or_stored_twice() {
    note_panics();
    if let Some(seed) = number("HOLDFAST_SIM_SEED") {
        let ending = world::run(seed, Lapse::None);
        println!("{}", ending.trace.text());
        println!("{} rows in {:?} of virtual time", ending.rows, ending.took);
        assert_eq!(ending.fault, None, "seed {seed}");
        return;
    }
    let seeds = number("HOLDFAST_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    let (rows, virtual_s) = (AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let ending = world::run(seed, Lapse::None);
                    rows.fetch_add(ending.rows, Ordering::Relaxed);
                    virtual_s.fetch_add(ending.took.as_secs(), Ordering::Relaxed);
                    if let Some(fault) = ending.fault {
                        failures.lock().expect("no panic").push((seed, fault));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect("no panic");
    failures.sort();
    println!(
        "{} worlds, {} rows, {} s of virtual time in {:.1?}; {} failed",
        seeds,
        rows.into_inner(),
        virtual_s.into_inner(),
        began.elapsed(),
        failures.len()
    );
    for (seed, fault) in failures.iter().take(60) {
        println!("seed {seed}: {fault}");
    }
    if let Some((seed, _)) = failures.first() {
        panic!(
            "{}",
            failure(*seed).unwrap_or_else(|| format!("seed {seed} failed once and not again"))
        );
    }
}

#[test]
fn a_seed_is_the_same_world_every_time() {
    for seed in 0..SEEDS_TWICE {
        let (first, again) = (world::run(seed, Lapse::None), world::run(seed, Lapse::None));
        assert_eq!(first.trace.hash(), again.trace.hash(), "seed {seed}");
    }
}

/// Whether some world finds out what the store neglects: one that fails for that alone.
fn check_lapse(lapse: Lapse) {
    note_panics();
    let is_found = |seed| {
        let fault = world::run(seed, lapse).fault;
        fault.is_some_and(|fault| fault.contains("stored twice"))
            && world::run(seed, Lapse::None).fault.is_none()
    };
    let found = (0..SEEDS_OF_A_LAPSE).find(|seed| is_found(*seed));
    println!("{lapse:?} is found out by seed {found:?}");
    assert!(found.is_some(), "{lapse:?} goes unnoticed");
}

#[test]
fn a_store_that_forgets_claims_is_found_out() {
    check_lapse(Lapse::NoClaims);
}

#[test]
fn a_store_that_begins_inserts_after_their_deadline_is_found_out() {
    check_lapse(Lapse::NoDeadlines);
}
