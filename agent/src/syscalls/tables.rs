//! The kernel side's tables, as they lie in memory. Reading them stops nobody: a count is one word, and a place is only given
//! back when nobody can count in it any more.

use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use holdfast_agent_ebpf::syscall::{FIRST_SLOT, Key, Latency, SlotOwner, Thread, process_key};

use super::kernel::Sizes;
use crate::mapping::Mapping;

/// The tables, mapped.
pub(super) struct Tables {
    pub(super) sizes: Sizes,
    pub(super) processes: Mapping,
    pub(super) owners: Mapping,
    pub(super) tallies: Mapping,
    pub(super) tally_counts: Mapping,
    pub(super) latencies: Mapping,
    pub(super) threads: Mapping,
}

const OWNER_WORDS: usize = size_of::<SlotOwner>() / 8;
const LATENCY_WORDS: usize = size_of::<Latency>() / 8;
const THREAD_WORDS: usize = size_of::<Thread>() / 8;

/// A process in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Occupant {
    /// The thread group id.
    pub pid: u32,
    /// Nanoseconds of CLOCK_BOOTTIME, when its slot was taken: tells it from another with the same id.
    pub began_ns: u64,
    pub cgroup_id: u64,
    pub comm: [u8; 16],
}

impl Tables {
    pub(super) const fn words(sizes: Sizes) -> [usize; 6] {
        let Sizes {
            slots,
            tallies,
            latencies,
            threads,
            cpus,
        } = sizes;
        [
            slots as usize,
            slots as usize * OWNER_WORDS,
            tallies as usize,
            tallies as usize * cpus as usize,
            latencies as usize * LATENCY_WORDS,
            threads as usize * THREAD_WORDS,
        ]
    }

    /// The slots that are taken, and whether their process has ended.
    pub(super) fn taken(&self) -> impl Iterator<Item = (u32, bool)> {
        self.processes
            .words()
            .iter()
            .zip(FIRST_SLOT..)
            .filter_map(|(key, slot)| {
                let key = key.load(Acquire);
                (key != 0).then(|| (slot, process_key::is_ended(key)))
            })
    }

    /// Who has a slot; `None` if it is not written yet.
    pub(super) fn occupant(&self, slot: u32) -> Option<Occupant> {
        let place = slot.checked_sub(FIRST_SLOT)? as usize;
        let key = self.processes.words().get(place)?.load(Acquire);
        let owner = &self.owners.words()[place * OWNER_WORDS..][..OWNER_WORDS];
        let [began_ns, cgroup_id, comm_begin, comm_end, is_complete] = owner else {
            return None;
        };
        if key == 0 || is_complete.load(Acquire) == 0 {
            return None;
        }
        let mut comm = [0; 16];
        comm[..8].copy_from_slice(&comm_begin.load(Relaxed).to_ne_bytes());
        comm[8..].copy_from_slice(&comm_end.load(Relaxed).to_ne_bytes());
        Some(Occupant {
            pid: process_key::pid(key),
            began_ns: began_ns.load(Relaxed),
            cgroup_id: cgroup_id.load(Relaxed),
            comm,
        })
    }

    /// Takes a process' slot away while it runs: its next call takes another. False if it has just ended by itself.
    pub(super) fn evict(&self, slot: u32) -> bool {
        let key = &self.processes.words()[(slot - FIRST_SLOT) as usize];
        let before = key.load(Acquire);
        before != 0
            && !process_key::is_ended(before)
            && key
                .compare_exchange(before, process_key::ended(before), Release, Relaxed)
                .is_ok()
    }

    /// Makes threads look for their process' slot anew: those whose slot is one of these.
    pub(super) fn forget(&self, slots: impl Fn(u32) -> bool) {
        for place in self.threads.words().chunks_exact(THREAD_WORDS) {
            let word = place[0].load(Relaxed);
            if word != 0 && slots(Thread::slot(word)) {
                // A thread that is writing its place meanwhile has found a slot that is not one of these.
                let _ = place[0].compare_exchange(word, 0, Relaxed, Relaxed);
            }
        }
    }

    /// The tallies, in the order of their places, each with its count.
    pub(super) fn tallies(&self) -> impl Iterator<Item = (usize, Key, u64)> {
        self.tallies
            .words()
            .iter()
            .enumerate()
            .filter_map(|(place, key)| {
                let key = key.load(Acquire);
                (key != 0).then(|| {
                    (
                        place,
                        Key(key),
                        self.counts(place).map(|count| count.load(Relaxed)).sum(),
                    )
                })
            })
    }

    /// The latencies, likewise.
    pub(super) fn latencies(&self) -> impl Iterator<Item = (usize, Key, u64)> {
        self.latencies
            .words()
            .chunks_exact(LATENCY_WORDS)
            .enumerate()
            .filter_map(|(place, words)| {
                let key = words[0].load(Acquire);
                (key != 0).then(|| (place, Key(key), words[1].load(Relaxed)))
            })
    }

    /// Gives a tally's place back. Its count is zero before another key finds it free.
    pub(super) fn free_tally(&self, place: usize) {
        self.counts(place).for_each(|count| count.store(0, Relaxed));
        self.tallies.words()[place].store(0, Release);
    }

    /// Gives a latency's place back, likewise.
    pub(super) fn free_latency(&self, place: usize) {
        let words = &self.latencies.words()[place * LATENCY_WORDS..];
        words[1].store(0, Relaxed);
        words[0].store(0, Release);
    }

    /// Gives a slot back.
    pub(super) fn free_slot(&self, slot: u32) {
        let place = (slot - FIRST_SLOT) as usize;
        self.owners.words()[place * OWNER_WORDS + OWNER_WORDS - 1].store(0, Relaxed);
        self.processes.words()[place].store(0, Release);
    }

    /// Empties all of them. Nothing may be attached.
    pub(super) fn clear(&self) {
        let tables = [
            &self.threads,
            &self.processes,
            &self.owners,
            &self.tallies,
            &self.tally_counts,
            &self.latencies,
        ];
        for word in tables.iter().flat_map(|table| table.words()) {
            word.store(0, Relaxed);
        }
    }

    fn counts(&self, place: usize) -> impl Iterator<Item = &AtomicU64> {
        self.tally_counts
            .words()
            .iter()
            .skip(place)
            .step_by(self.sizes.tallies as usize)
    }
}
