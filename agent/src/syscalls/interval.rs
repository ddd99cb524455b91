//! What was counted in one interval, by process and syscall. Pure: it is told what the tables' counts have grown by.

use std::collections::BTreeMap;

use holdfast_agent_ebpf::limits::COMM_BYTES;
use rustc_hash::FxHashMap;

/// Processes that ended in an interval and still have rows of their own. Of those that end after them, all with the same
/// name and cgroup share rows: a machine that starts a thousand programs a second must not make ten thousand rows of
/// it.
const ENDED_ALONE: usize = 512;

/// Names and cgroups of ended processes that share rows; what ends after them counts as others.
const SHARED: usize = 1_024;

/// Whose calls they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Caller {
    /// One program in one process: execve() makes it another.
    Process {
        pid: u32,
        /// Nanoseconds of CLOCK_BOOTTIME, when its first call was seen: tells it from another with the same id.
        began_ns: u64,
        comm: [u8; COMM_BYTES],
        cgroup_id: u64,
    },
    /// Processes that have ended, all of this name and cgroup.
    Ended { comm: [u8; COMM_BYTES], cgroup_id: u64 },
    /// Processes that had no slot of their own.
    Others,
}

/// What one caller's calls of one number came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Those that failed, by errno; zero: those that did not.
    pub results: BTreeMap<u16, u64>,
    /// Those that were measured, by the bucket of their latency.
    pub latencies: BTreeMap<u16, u64>,
}

impl Sum {
    /// All calls.
    pub fn calls(&self) -> u64 {
        self.results.values().sum()
    }

    fn add(&mut self, other: Self) {
        for (mine, others) in [
            (&mut self.results, other.results),
            (&mut self.latencies, other.latencies),
        ] {
            for (detail, count) in others {
                *mine.entry(detail).or_default() += count;
            }
        }
    }
}

/// What is known of a caller in an interval.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// How many processes it is; zero: unknown.
    pub processes: u32,
    pub by_number: BTreeMap<u16, Sum>,
}

/// An interval that is being filled.
#[derive(Debug, Default)]
pub struct Interval {
    callers: FxHashMap<Caller, Calls>,
    ended_alone: usize,
    shared: usize,
}

impl Interval {
    /// Calls of a number gave this errno, or succeeded (zero).
    pub fn returned(&mut self, caller: Caller, number: u16, errno: u16, calls: u64) {
        *self.sum(caller, number).results.entry(errno).or_default() += calls;
    }

    /// Of the calls of a number, so many were measured and fell into this bucket.
    pub fn took(&mut self, caller: Caller, number: u16, bucket: u16, calls: u64) {
        *self.sum(caller, number).latencies.entry(bucket).or_default() += calls;
    }

    /// The process has ended, and nothing more will come of it.
    pub fn ended(&mut self, caller: Caller) {
        let Caller::Process { comm, cgroup_id, .. } = caller else {
            return;
        };
        if self.ended_alone < ENDED_ALONE {
            self.ended_alone += usize::from(self.callers.contains_key(&caller));
            return;
        }
        let Some(calls) = self.callers.remove(&caller) else {
            return;
        };
        let mut heir = Caller::Ended { comm, cgroup_id };
        if !self.callers.contains_key(&heir) {
            if self.shared == SHARED {
                heir = Caller::Others;
            } else {
                self.shared += 1;
            }
        }
        let heirs = self.callers.entry(heir).or_default();
        if heir != Caller::Others {
            heirs.processes += 1;
        }
        for (number, sum) in calls.by_number {
            heirs.by_number.entry(number).or_default().add(sum);
        }
    }

    /// What came together, in an order that does not depend on chance.
    pub fn finish(self) -> Vec<(Caller, Calls)> {
        let mut callers: Vec<_> = self.callers.into_iter().collect();
        callers.sort_unstable_by_key(|(caller, _)| *caller);
        callers
    }

    fn sum(&mut self, caller: Caller, number: u16) -> &mut Sum {
        let calls = self.callers.entry(caller).or_insert_with(|| Calls {
            processes: u32::from(matches!(caller, Caller::Process { .. })),
            by_number: BTreeMap::new(),
        });
        calls.by_number.entry(number).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32) -> Caller {
        Caller::Process {
            pid,
            began_ns: 1,
            comm: *b"sh\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            cgroup_id: u64::from(pid % 2),
        }
    }

    fn total(callers: &[(Caller, Calls)]) -> u64 {
        callers
            .iter()
            .flat_map(|(_, calls)| calls.by_number.values())
            .map(Sum::calls)
            .sum()
    }

    #[test]
    fn what_comes_in_parts_is_added_up() {
        let mut interval = Interval::default();
        interval.returned(process(1), 0, 0, 5);
        interval.returned(process(1), 0, 11, 2);
        interval.returned(process(1), 0, 0, 1);
        interval.took(process(1), 0, 80, 3);
        interval.returned(Caller::Others, 7, 0, 9);
        let callers = interval.finish();
        assert_eq!(callers.len(), 2);
        let (caller, calls) = &callers[0];
        assert_eq!((*caller, calls.processes), (process(1), 1));
        let sum = &calls.by_number[&0];
        assert_eq!(
            (sum.calls(), &sum.results),
            (8, &BTreeMap::from([(0, 6), (11, 2)]))
        );
        assert_eq!(sum.latencies, BTreeMap::from([(80, 3)]));
        assert_eq!((callers[1].0, callers[1].1.processes), (Caller::Others, 0));
    }

    #[test]
    fn many_processes_that_end_share_rows_and_nothing_is_lost() {
        let mut interval = Interval::default();
        for pid in 0..10_000 {
            interval.returned(process(pid), 3, 0, 2);
            interval.took(process(pid), 3, 80, 1);
            interval.ended(process(pid));
        }
        let callers = interval.finish();
        assert_eq!(callers.len(), ENDED_ALONE + 2);
        assert_eq!(total(&callers), 20_000);
        assert_eq!(
            callers.iter().map(|(_, calls)| calls.processes).sum::<u32>(),
            10_000
        );
    }

    #[test]
    fn the_names_that_share_rows_are_bounded_too() {
        let mut interval = Interval::default();
        for pid in 0..5_000_u32 {
            let mut comm = [0; COMM_BYTES];
            comm[..4].copy_from_slice(&pid.to_ne_bytes());
            let caller = Caller::Process {
                pid,
                began_ns: 1,
                comm,
                cgroup_id: 0,
            };
            interval.returned(caller, 3, 0, 1);
            interval.ended(caller);
        }
        let callers = interval.finish();
        assert_eq!(callers.len(), ENDED_ALONE + SHARED + 1);
        assert_eq!(total(&callers), 5_000);
    }

    #[test]
    fn a_process_that_ends_without_a_call_makes_no_row() {
        let mut interval = Interval::default();
        interval.ended(process(1));
        assert_eq!(interval.finish(), []);
    }
}
