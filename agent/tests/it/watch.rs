//! The probes, watching one host, and what they saw.

use std::{
    thread,
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use holdfast_agent::{
    outcome::{close_reason, outcome},
    probes::{KernelCounters, KernelCounts, Options, Probes},
};
use holdfast_agent_ebpf::event::{ConnectionRecord, role, step_state};
use holdfast_proto::v1::{CloseReason, Outcome};

use crate::host::Host;

/// Longer than any test needs; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Watch {
    ring: RingBuf<MapData>,
    counters: KernelCounters,
    records: Vec<ConnectionRecord>,
    /// Attached for as long as this lives.
    _probes: Probes,
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
        let (ring, counters) = (
            probes.take_ring().expect("a ring"),
            probes.take_counters().expect("counters"),
        );
        probes.attach().expect("the programs attach");
        Self {
            ring,
            counters,
            records: Vec::new(),
            _probes: probes,
        }
    }

    pub(crate) fn counts(&self) -> KernelCounts {
        self.counters.read().expect("the counters can be read")
    }

    /// Takes what is in the ring.
    pub(crate) fn drain(&mut self) -> &[ConnectionRecord] {
        while let Some(item) = self.ring.next() {
            self.records
                .push(ConnectionRecord::from_bytes(&item).expect("a record"));
        }
        &self.records
    }

    /// Waits until there are so many records in all.
    pub(crate) fn wait_for(&mut self, count: usize) -> Vec<ConnectionRecord> {
        let deadline = Instant::now() + PATIENCE;
        while self.drain().len() < count {
            assert!(
                Instant::now() < deadline,
                "{} of {count} records: {:#?}",
                self.records.len(),
                self.records
            );
            thread::sleep(Duration::from_millis(5));
        }
        self.records.clone()
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
