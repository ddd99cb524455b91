//! The probes, watching one host, and what they saw.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use holdfast_agent::{
    cause::local_cause,
    clock,
    outcome::{close_reason, outcome},
    probes::{KernelCounters, KernelCounts, Options, Peers, Probes, TransitionRing, recursion_misses},
    ring_buffer::RingBuffer,
    seeds::{Found, Seeds},
    syscalls::Mode,
    table::Table,
};
use holdfast_agent_ebpf::{
    control::Control,
    counter::Counter,
    event::{ConnectionRecord, SocketReport, Transition, role, step_state},
};
use holdfast_proto::v1::{CloseReason, LocalCause, Outcome};

use crate::host::Host;

/// Longer than any test needs; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Watch {
    ring: RingBuffer,
    counters: KernelCounters,
    table: Table,
    pub(crate) peers: Peers,
    records: Vec<ConnectionRecord>,
    transition_ring: TransitionRing,
    transitions: Vec<Transition>,
    /// Attached for as long as this lives.
    probes: Probes,
}

impl Watch {
    pub(crate) fn on(host: &Host) -> Self {
        Self::with(Options {
            only_netns: Some(host.netns),
            ..Options::default()
        })
    }

    pub(crate) fn with(options: Options) -> Self {
        let mut probes = Probes::load(options).expect("the programs load: these tests need root");
        let (ring, counters, table, peers) = (
            probes.take_ring().expect("a ring"),
            probes.take_counters().expect("counters"),
            probes.take_table().expect("a table"),
            probes.take_peers().expect("the map of peers"),
        );
        let transition_ring = probes.take_transitions().expect("a ring of transitions");
        probes.attach().expect("the programs attach");
        Self {
            ring,
            counters,
            table,
            peers,
            records: Vec::new(),
            transition_ring,
            transitions: Vec::new(),
            probes,
        }
    }

    pub(crate) fn count_syscalls(&mut self, mode: Mode) {
        self.probes.count_syscalls(mode).expect("the programs attach");
    }

    pub(crate) fn counts(&self) -> KernelCounts {
        self.counters.read().expect("the counters can be read")
    }

    /// Everything that is open on the host is said to be found, whether it was looked for or not.
    pub(crate) fn call_surveyed(&self, host: &Host) {
        self.counters
            .surveyed([host.netns])
            .expect("the counters can be read");
    }

    /// How many returns of system calls the kernel started no program for.
    pub(crate) fn returns_missed(&self) -> u64 {
        let programs = self.probes.programs().expect("the programs");
        let see_returns = programs
            .iter()
            .filter(|(name, _)| ["sys_exit", "connect_exit"].contains(&name.as_str()));
        see_returns
            .filter_map(|(_, program)| recursion_misses(program))
            .sum()
    }

    /// Changes what the programs do.
    pub(crate) fn control(&mut self, control: &Control) {
        self.probes.control(control).expect("the maps can be written");
    }

    /// Waits until the counters are so.
    pub(crate) fn wait_until(&self, is_so: impl Fn(&KernelCounts) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.counts()) {
            assert!(Instant::now() < deadline, "{:?}", self.counts());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Takes what is in the ring.
    pub(crate) fn drain(&mut self) -> &[ConnectionRecord] {
        while let Some(item) = self.ring.next() {
            self.records
                .push(ConnectionRecord::from_bytes(item).expect("a record"));
        }
        &self.records
    }

    /// Waits until there are so many transitions in all, and gives all that there are.
    pub(crate) fn wait_for_transitions(&mut self, count: usize) -> Vec<Transition> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ring = self.transition_ring.open().expect("a ring in memory");
            while let Some(item) = ring.next() {
                self.transitions
                    .push(Transition::from_bytes(item).expect("a transition"));
            }
            if self.transitions.len() >= count {
                return self.transitions.clone();
            }
            assert!(
                Instant::now() < deadline,
                "{} of {count} transitions, {:?}",
                self.transitions.len(),
                self.counts()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn forget_transitions(&mut self) {
        self.transitions.clear();
    }

    /// Takes the first records of what is established and was not announced yet.
    pub(crate) fn announce(&mut self) -> Vec<ConnectionRecord> {
        let mut first = Vec::new();
        self.table
            .announce(clock::boot_now_ns(), |_| true, |record| first.push(*record));
        first
    }

    /// Hands over the attempts that wait for their answer.
    pub(crate) fn pending(&self, each: impl FnMut(&ConnectionRecord)) {
        self.table.pending(clock::boot_now_ns(), each);
    }

    /// Gives what is older than the programs a place and an owner.
    pub(crate) fn seed(&mut self, host: &Host) -> (Seeds, Found) {
        let seeds = Seeds::default();
        let mut listeners = self.probes.take_listeners().expect("the map of listeners");
        let found = seeds
            .find(&mut self.probes, &mut listeners, Some(host.netns))
            .expect("the start's survey");
        (seeds, found)
    }

    /// Every TCP socket of a host, as it stands.
    pub(crate) fn survey(&mut self, host: &Host) -> Vec<SocketReport> {
        let mut reports = Vec::new();
        self.probes
            .survey(Some(Path::new(&host.netns_path())), &mut |report| {
                reports.push(*report);
            })
            .expect("a survey");
        reports
    }

    /// Surveys a host, and changes what the programs do at each socket that it finds.
    pub(crate) fn control_in_a_survey(&mut self, host: &Host, control: &Control) -> usize {
        let probes = std::sync::Mutex::new(&mut self.probes);
        let lock = || probes.lock().expect("no panic");
        let surveyor = lock().surveyor().expect("a survey");
        let mut sockets = 0;
        let each = &mut |_: &SocketReport| {
            // Whoever reads the sockets does not hold it.
            let mut probes = probes.try_lock().expect("it is free");
            probes.control(control).expect("the maps can be written");
            sockets += 1;
        };
        surveyor
            .survey(Some(Path::new(&host.netns_path())), each)
            .expect("a survey");
        sockets
    }

    /// Begins anew with no records.
    pub(crate) fn forget(&mut self) {
        self.drain();
        self.records.clear();
    }

    /// Waits until there are so many records in all.
    pub(crate) fn wait_for(&mut self, count: usize) -> Vec<ConnectionRecord> {
        let deadline = Instant::now() + PATIENCE;
        while self.drain().len() < count {
            assert!(
                Instant::now() < deadline,
                "{} of {count} records, {:?}, the last ones: {:#?}",
                self.records.len(),
                self.counts(),
                &self.records[self.records.len().saturating_sub(4)..]
            );
            thread::sleep(Duration::from_millis(5));
        }
        self.records.clone()
    }

    /// Waits until there is a record of each end that the hook has seen close so far.
    pub(crate) fn wait_for_all_that_closed(&mut self) -> Vec<ConnectionRecord> {
        let counts = self.counts();
        let there = counts.total(Counter::Closed) - counts.total(Counter::Lost);
        self.wait_for(there as usize)
    }

    /// Waits for the one record of an attempt that left nothing on the other end.
    pub(crate) fn only(&mut self) -> ConnectionRecord {
        let records = self.wait_for(1);
        assert_eq!(records.len(), 1, "{records:#?}");
        records[0]
    }

    /// Waits for the two ends of one connection: active, passive.
    pub(crate) fn both_ends(&mut self) -> (ConnectionRecord, ConnectionRecord) {
        let records = self.wait_for(2);
        let end = |role| {
            *records
                .iter()
                .find(|record| record.role == role)
                .expect("an end of each role")
        };
        assert_eq!(records.len(), 2, "{records:#?}");
        (end(role::ACTIVE), end(role::PASSIVE))
    }
}

/// The states that a record went through.
pub(crate) fn states(record: &ConnectionRecord) -> Vec<u8> {
    record.steps().iter().map(|&step| step_state(step)).collect()
}

pub(crate) fn check(record: &ConnectionRecord, expected: (Outcome, CloseReason)) {
    assert_eq!((outcome(record), close_reason(record)), expected, "{record:#?}");
}

pub(crate) fn check_cause(record: &ConnectionRecord, expected: LocalCause) {
    assert_eq!(local_cause(record), expected, "{record:#?}");
}
