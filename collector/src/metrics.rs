//! What the collector counts of itself, as Prometheus reads it. Every name, unit and bucket of `/metrics` is here.

use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::ingest::decode::Malformed;

/// An insert takes 5 ms at least, for its part on disk, and seconds when the machine is in trouble.
const INSERT_BUCKETS_S: [f64; 11] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Why a batch or a stream was refused, beside the faults of a batch ([`Malformed::KINDS`]).
pub mod refusal {
    /// The message was no message, or larger than the limit.
    pub const UNREADABLE: &str = "unreadable";
    /// The first message was no fitting `Hello`, or a later one was out of place.
    pub const HELLO: &str = "hello";
    /// The agent speaks another version of the protocol.
    pub const PROTOCOL: &str = "protocol";
    /// The store refused the rows.
    pub const STORE: &str = "store";

    /// Every reason of this module.
    pub(super) const ALL: [&str; 4] = [UNREADABLE, HELLO, PROTOCOL, STORE];
}

/// The collector's counters. Those with a label are made at zero: what never happened can be told from what is not
/// counted.
pub struct Metrics {
    registry: Registry,
    /// Open streams of agents that were welcomed.
    pub agents_connected: IntGauge,
    pub batches_received: IntCounter,
    pub batches_stored: IntCounter,
    refusals: IntCounterVec,
    rows_stored: IntCounterVec,
    bytes_stored: IntCounterVec,
    insert_seconds: HistogramVec,
    /// Inserts that are tried again.
    pub store_unavailable: IntCounter,
    /// Inserts that the store refused for their content.
    pub store_rejected: IntCounter,
    /// Memory of the batches that were read and are not stored.
    pub gathered_bytes: IntGauge,
    queries: IntCounterVec,
}

impl Metrics {
    /// All at zero. `tables` are those that rows go to.
    pub fn new(tables: &[&str]) -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let build = IntGaugeVec::new(
            Opts::new("holdfast_build_info", "One, by version of the collector."),
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            agents_connected: IntGauge::new("holdfast_agents_connected", "Agents that are connected now.")?,
            batches_received: IntCounter::new(
                "holdfast_batches_received_total",
                "Batches that agents sent.",
            )?,
            batches_stored: IntCounter::new(
                "holdfast_batches_stored_total",
                "Batches that are in the store.",
            )?,
            refusals: counters(
                "holdfast_refusals_total",
                "Batches and streams that were refused, by reason.",
                "reason",
            )?,
            rows_stored: counters(
                "holdfast_rows_stored_total",
                "Rows that are in the store, by table.",
                "table",
            )?,
            bytes_stored: counters(
                "holdfast_stored_bytes_total",
                "Bytes of the blocks that were inserted, by table.",
                "table",
            )?,
            insert_seconds: HistogramVec::new(
                HistogramOpts::new(
                    "holdfast_insert_duration_seconds",
                    "How long inserts took, by table.",
                )
                .buckets(INSERT_BUCKETS_S.to_vec()),
                &["table"],
            )?,
            store_unavailable: IntCounter::new(
                "holdfast_store_unavailable_total",
                "Inserts that failed because the store was away, and are tried again.",
            )?,
            store_rejected: IntCounter::new(
                "holdfast_store_rejected_total",
                "Inserts that the store refused for their content.",
            )?,
            gathered_bytes: IntGauge::new(
                "holdfast_gathered_bytes",
                "Memory of the batches that were read and are not stored yet.",
            )?,
            queries: counters(
                "holdfast_queries_total",
                "Calls of people and their tools, by call.",
                "call",
            )?,
            registry,
        };
        for reason in Malformed::KINDS.into_iter().chain(refusal::ALL) {
            metrics.refusals.with_label_values(&[reason]);
        }
        for table in tables {
            metrics.rows_stored.with_label_values(&[table]);
            metrics.bytes_stored.with_label_values(&[table]);
            metrics.insert_seconds.with_label_values(&[table]);
        }
        metrics.register(Box::new(build))?;
        Ok(metrics)
    }

    fn register(&self, build: Box<dyn prometheus::core::Collector>) -> Result<(), prometheus::Error> {
        let collectors: [Box<dyn prometheus::core::Collector>; 12] = [
            build,
            Box::new(self.agents_connected.clone()),
            Box::new(self.batches_received.clone()),
            Box::new(self.batches_stored.clone()),
            Box::new(self.refusals.clone()),
            Box::new(self.rows_stored.clone()),
            Box::new(self.bytes_stored.clone()),
            Box::new(self.insert_seconds.clone()),
            Box::new(self.store_unavailable.clone()),
            Box::new(self.store_rejected.clone()),
            Box::new(self.gathered_bytes.clone()),
            Box::new(self.queries.clone()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| self.registry.register(collector))
    }

    /// A batch or a stream was refused; `reason` is one of [`refusal`] or of [`Malformed::KINDS`].
    pub fn refused(&self, reason: &str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// A block became durable.
    pub fn stored(&self, table: &str, rows: usize, bytes: usize, took: Duration) {
        self.rows_stored.with_label_values(&[table]).inc_by(rows as u64);
        self.bytes_stored.with_label_values(&[table]).inc_by(bytes as u64);
        self.insert_seconds
            .with_label_values(&[table])
            .observe(took.as_secs_f64());
    }

    /// Somebody asked something.
    pub fn queried(&self, call: &str) {
        self.queries.with_label_values(&[call]).inc();
    }

    /// Everything, in Prometheus' text format.
    pub fn exposition(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The content type of [`Self::exposition`].
    pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;
}

fn counters(name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
    IntCounterVec::new(Opts::new(name, help), &[label])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_there_as_zero() {
        let text = Metrics::new(&["connection_records"])
            .unwrap()
            .exposition()
            .unwrap();
        for line in [
            "holdfast_refusals_total{reason=\"dictionary\"} 0",
            "holdfast_refusals_total{reason=\"protocol\"} 0",
            "holdfast_rows_stored_total{table=\"connection_records\"} 0",
            "holdfast_insert_duration_seconds_count{table=\"connection_records\"} 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }
}
