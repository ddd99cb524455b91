//! Reading the tables: what each count has grown by since the last time, by process and syscall; and giving back what ended
//! processes leave.
//!
//! A slot is given back in two steps. The first sweep that finds its process ended makes sure that no thread refers to it;
//! the next one takes the last counts and frees the places: a program that was counting in it meanwhile, on another
//! CPU, has long ended.

use holdfast_agent_ebpf::syscall::{FIRST_SLOT, HIDDEN_SLOT, OTHER_NUMBER, OTHER_SLOT};
use rustc_hash::FxHashMap;

use super::{
    interval::{Caller, Interval},
    kernel::{Beside, KernelSide},
    tables::{Occupant, Tables},
};
use crate::probes::ProbeError;

/// A slot that made no call in so many sweeps may be taken away from its process when places are scarce.
const IDLE_SWEEPS: u8 = 3;

/// What has been counted, cumulative since the programs were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls that are in an interval.
    pub calls: u64,
    /// Of these, those of processes without a slot of their own, and those that found no place in the tallies.
    pub others: u64,
    /// Calls of processes that the configuration leaves out; they are in no interval.
    pub hidden: u64,
    /// Calls whose latency was measured, and is in an interval.
    pub measured: u64,
    /// Calls whose latency was measured and found no place.
    pub unrecorded: u64,
    /// Processes that lost their slot because they were idle while places were scarce.
    pub evicted: u64,
    /// Calls, and ends of tasks, that no program saw.
    pub missed: u64,
}

/// What reads the tables.
pub struct Sweeper {
    kernel: KernelSide,
    /// The counts at the last sweep, by place.
    tallies: Vec<u64>,
    latencies: Vec<u64>,
    beside: Beside,
    slots: Vec<Slot>,
    /// A process found no slot, and none has been free since.
    is_anybody_slotless: bool,
    totals: Totals,
}

/// What the last sweeps saw of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    /// The last sweep found it ended, and no thread refers to it any more.
    is_released: bool,
    /// Sweeps without a call, up to [`IDLE_SWEEPS`].
    idle: u8,
}

impl Sweeper {
    /// Reads these tables from here on.
    pub fn new(kernel: KernelSide) -> Self {
        let sizes = kernel.tables.sizes;
        Self {
            kernel,
            tallies: vec![0; sizes.tallies as usize],
            latencies: vec![0; sizes.latencies as usize],
            beside: Beside::default(),
            slots: vec![Slot::default(); (sizes.slots + FIRST_SLOT) as usize],
            is_anybody_slotless: false,
            totals: Totals::default(),
        }
    }

    /// What the sweeps have found so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Slots that are taken, those of ended processes included.
    pub fn slots_taken(&self) -> usize {
        self.kernel.tables.taken().count()
    }

    /// Begins anew with empty tables. Nothing may be attached: what threads' places remember may be of threads that have
    /// ended unseen.
    pub fn clear(&mut self) {
        self.kernel.tables.clear();
        self.tallies.fill(0);
        self.latencies.fill(0);
        self.slots.fill(Slot::default());
    }

    /// Whether ended processes hold so many slots that a sweep should not wait. A look at a few pages of memory.
    pub fn is_pressed(&self) -> bool {
        let ended = self
            .kernel
            .tables
            .taken()
            .filter(|(_, is_ended)| *is_ended)
            .count();
        ended >= self.kernel.tables.sizes.slots as usize / 8
    }

    /// Adds what was counted since the last sweep to the interval, and gives back what can be.
    ///
    /// # Errors
    /// If what is counted beside the tables cannot be read.
    pub fn sweep(&mut self, interval: &mut Interval) -> Result<(), ProbeError> {
        let beside = self.kernel.beside()?;
        let untallied = beside.untallied - self.beside.untallied;
        if untallied > 0 {
            interval.returned(Caller::Others, OTHER_NUMBER, 0, untallied);
        }
        self.totals.calls += untallied;
        self.totals.others += untallied;
        self.totals.unrecorded = beside.unrecorded;
        self.totals.missed = beside.missed;

        let ended: Vec<u32> = self.ended();
        for slot in &mut self.slots {
            slot.idle = (slot.idle + 1).min(IDLE_SWEEPS);
        }
        let mut callers = Callers::default();
        // The latencies first: a call is tallied before its latency is, so the calls are never fewer.
        let latencies = self.take_latencies(&mut callers, interval);
        let tallies = self.take_tallies(&mut callers, interval);
        self.release(&ended, &mut callers, interval);

        let sizes = self.kernel.tables.sizes;
        let taken = self.kernel.tables.taken().count();
        let is_scarce = |used: usize, places: u32| used > places as usize / 4 * 3;
        if is_scarce(taken, sizes.slots)
            || is_scarce(tallies, sizes.tallies)
            || is_scarce(latencies, sizes.latencies)
        {
            self.evict_idle();
        }
        // Whoever found no slot does not ask again by himself. He may find one now, or at a later sweep that finds one free.
        self.is_anybody_slotless |= beside.slotless > self.beside.slotless;
        if self.is_anybody_slotless && taken < sizes.slots as usize {
            self.kernel.tables.forget(|slot| slot == OTHER_SLOT);
            self.is_anybody_slotless = false;
        }
        self.beside = beside;
        Ok(())
    }

    fn ended(&self) -> Vec<u32> {
        self.kernel
            .tables
            .taken()
            .filter_map(|(slot, is_ended)| is_ended.then_some(slot))
            .collect()
    }

    /// Gives back the slots that the last sweep released, and releases those that have ended since.
    fn release(&mut self, ended: &[u32], callers: &mut Callers, interval: &mut Interval) {
        let tables = &self.kernel.tables;
        let mut is_any_new = false;
        for &slot in ended {
            let state = &mut self.slots[slot as usize];
            if state.is_released {
                if let Some(caller) = callers.of(slot, tables) {
                    interval.ended(caller);
                }
                *state = Slot::default();
                tables.free_slot(slot);
            } else {
                state.is_released = true;
                is_any_new = true;
            }
        }
        if is_any_new {
            tables.forget(|slot| self.slots.get(slot as usize).is_some_and(|slot| slot.is_released));
        }
    }

    /// Gives how many places are taken.
    fn take_latencies(&mut self, callers: &mut Callers, interval: &mut Interval) -> usize {
        let tables = &self.kernel.tables;
        let mut taken = 0;
        for (place, key, count) in tables.latencies() {
            taken += 1;
            let Some(caller) = callers.of(key.slot(), tables) else {
                continue;
            };
            let grown = count - self.latencies[place];
            self.latencies[place] = count;
            if grown > 0 {
                interval.took(caller, key.number(), key.detail(), grown);
                self.totals.measured += grown;
            }
            if self.slots[key.slot() as usize].is_released {
                tables.free_latency(place);
                self.latencies[place] = 0;
            }
        }
        taken
    }

    fn take_tallies(&mut self, callers: &mut Callers, interval: &mut Interval) -> usize {
        let tables = &self.kernel.tables;
        let mut taken = 0;
        for (place, key, count) in tables.tallies() {
            taken += 1;
            let grown = count - self.tallies[place];
            let slot = key.slot();
            if slot == HIDDEN_SLOT {
                self.totals.hidden += grown;
                self.tallies[place] = count;
                continue;
            }
            let Some(caller) = callers.of(slot, tables) else {
                continue;
            };
            self.tallies[place] = count;
            if grown > 0 {
                interval.returned(caller, key.number(), key.detail(), grown);
                self.totals.calls += grown;
                if slot == OTHER_SLOT {
                    self.totals.others += grown;
                }
                self.slots[slot as usize].idle = 0;
            }
            if self.slots[slot as usize].is_released {
                tables.free_tally(place);
                self.tallies[place] = 0;
            }
        }
        taken
    }

    fn evict_idle(&mut self) {
        let tables = &self.kernel.tables;
        for (slot, is_ended) in tables.taken() {
            if !is_ended && self.slots[slot as usize].idle == IDLE_SWEEPS && tables.evict(slot) {
                self.totals.evicted += 1;
            }
        }
    }
}

/// Whose a slot's calls are, asked once a sweep.
#[derive(Default)]
struct Callers(FxHashMap<u32, Option<Caller>>);

impl Callers {
    /// `None` if it is not known yet: then the counts are left for the next sweep.
    fn of(&mut self, slot: u32, tables: &Tables) -> Option<Caller> {
        if slot == OTHER_SLOT {
            return Some(Caller::Others);
        }
        *self.0.entry(slot).or_insert_with(|| {
            tables.occupant(slot).map(
                |Occupant {
                     pid,
                     began_ns,
                     cgroup_id,
                     comm,
                 }| Caller::Process {
                    pid,
                    began_ns,
                    comm,
                    cgroup_id,
                },
            )
        })
    }
}
