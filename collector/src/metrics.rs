//! What the collector counts of itself, as Prometheus reads it. Every name, unit and bucket of `/metrics` is here.

mod assertions;

use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Counter, Encoder, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::ingest::decode::Malformed;
use assertions::Assertions;

/// An insert takes 5 ms at least, for its part on disk, and seconds when the machine is in trouble.
const INSERT_BUCKETS_S: [f64; 11] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// Why a batch, a stream, a connection or a question was refused, beside the faults of a batch ([`Malformed::KINDS`]).
pub mod refusal {
    /// The message was no message, or larger than the limit.
    pub const UNREADABLE: &str = "unreadable";
    /// The first message was no fitting `Hello`, or a later one was out of place.
    pub const HELLO: &str = "hello";
    /// The agent speaks another version of the protocol.
    pub const PROTOCOL: &str = "protocol";
    /// The store refused the rows.
    pub const STORE: &str = "store";
    /// There are as many agents, or connections, as may be, or as many streams of one connection; or what is asked finds no room.
    pub const CROWD: &str = "crowd";
    /// The batch was answered before, or was sent twice.
    pub const REPLAYED: &str = "replayed";

    /// Nothing came in time: no request on a connection, the first or another one, no `Hello` on a stream, nothing more of
    /// an agent, or not all of a message.
    pub const SILENT: &str = "silent";
    /// Two agents have one id.
    pub const DUPLICATE: &str = "duplicate";
    /// What came on a connection was no HTTP/2, or broke its rules.
    pub const HTTP2: &str = "http2";
    /// A request for a method that is not there.
    pub const METHOD: &str = "method";

    /// Every reason of this module.
    pub(super) const ALL: [&str; 10] = [
        UNREADABLE, HELLO, PROTOCOL, STORE, CROWD, REPLAYED, SILENT, DUPLICATE, HTTP2, METHOD,
    ];
}

/// The collector's counters. Those with a label are made at zero: what never happened can be told from what is not
/// counted.
pub struct Metrics {
    registry: Registry,
    /// Open streams of agents that were welcomed.
    pub agents_connected: IntGauge,
    pub batches_received: IntCounter,
    pub batches_stored: IntCounter,
    /// Batches that the store had already when they came.
    pub batches_known: IntCounter,
    /// Batches that were dropped before they were stored, because another collector has their agent now.
    pub batches_lost: IntCounter,
    refusals: IntCounterVec,
    /// Refused batches that are in `refused_batches`.
    pub set_aside: IntCounter,
    /// Refused batches that are not.
    pub not_set_aside: IntCounter,
    rows_stored: IntCounterVec,
    bytes_stored: IntCounterVec,
    insert_seconds: HistogramVec,
    /// Inserts that are tried again.
    pub store_unavailable: IntCounter,
    /// Blocks that are inserted in two halves, since the store's disk has no room for the whole.
    pub blocks_halved: IntCounter,
    /// Inserts that the store refused for their content.
    pub store_rejected: IntCounter,
    /// Memory of the batches that were read and are not stored.
    pub gathered_bytes: IntGauge,
    window_bytes: IntGaugeVec,
    queries: IntCounterVec,
    /// Minutes of nodes that the rollup is to compute.
    pub rollup_waiting: IntGauge,
    /// How long the oldest of them has been over.
    pub rollup_lag_seconds: Gauge,
    pub rollup_minutes: IntCounter,
    pub rollup_seconds: Counter,
    pub rollup_failures: IntCounter,
    /// Times that more minutes waited than are remembered.
    pub rollup_overflows: IntCounter,
    pub assertions: Assertions,
    /// Causes of attempts that were found, or found to be others.
    pub causes_found: IntCounter,
    pub causes_failures: IntCounter,
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
            batches_known: IntCounter::new(
                "holdfast_batches_known_total",
                "Batches that were in the store already when they came, and were acknowledged again.",
            )?,
            batches_lost: IntCounter::new(
                "holdfast_batches_taken_over_total",
                "Batches that were dropped before they were stored: another collector has taken their agent over, and \
                 is sent them again.",
            )?,
            refusals: counters(
                "holdfast_refusals_total",
                "Batches, streams, connections and questions that were refused, by reason.",
                "reason",
            )?,
            set_aside: IntCounter::new(
                "holdfast_batches_set_aside_total",
                "Refused batches that are in the table refused_batches.",
            )?,
            not_set_aside: IntCounter::new(
                "holdfast_batches_not_set_aside_total",
                "Refused batches that are counted only: too many of one agent, or the store did not take them.",
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
                "Inserts that failed because the store was away or had no room for anything, and are tried again.",
            )?,
            blocks_halved: IntCounter::new(
                "holdfast_blocks_halved_total",
                "Blocks that were cut in two because the disk of the store, nearly full, has no room for the whole.",
            )?,
            store_rejected: IntCounter::new(
                "holdfast_store_rejected_total",
                "Inserts that the store refused for their content.",
            )?,
            gathered_bytes: IntGauge::new(
                "holdfast_gathered_bytes",
                "Memory of the batches that were read and are not stored yet.",
            )?,
            window_bytes: IntGaugeVec::new(
                Opts::new(
                    "holdfast_window_bytes",
                    "What each connected agent may have in flight, encoded.",
                ),
                &["node", "agent"],
            )?,
            queries: counters(
                "holdfast_queries_total",
                "Calls of people and their tools, by call.",
                "call",
            )?,
            rollup_waiting: IntGauge::new(
                "holdfast_rollup_waiting_minutes",
                "Minutes of nodes that wait to be computed, those included that are not over.",
            )?,
            rollup_lag_seconds: Gauge::new(
                "holdfast_rollup_lag_seconds",
                "How long the oldest minute that waits to be computed has been over.",
            )?,
            rollup_minutes: IntCounter::new(
                "holdfast_rollup_minutes_total",
                "Minutes of nodes that were computed, those included that were computed again.",
            )?,
            rollup_seconds: Counter::new(
                "holdfast_rollup_seconds_total",
                "Time that computing minutes took.",
            )?,
            rollup_failures: IntCounter::new(
                "holdfast_rollup_failures_total",
                "Times that the rollup could not be computed, and is tried again.",
            )?,
            rollup_overflows: IntCounter::new(
                "holdfast_rollup_overflows_total",
                "Times that too many minutes waited, and were looked for in the store instead.",
            )?,
            assertions: Assertions::new(&registry)?,
            causes_found: IntCounter::new(
                "holdfast_causes_found_total",
                "Causes of attempts that were found, those included that were found anew because more was known.",
            )?,
            causes_failures: IntCounter::new(
                "holdfast_causes_failures_total",
                "Times that causes could not be looked for, and are looked for again.",
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
        let collectors: [Box<dyn prometheus::core::Collector>; 26] = [
            build,
            Box::new(self.agents_connected.clone()),
            Box::new(self.batches_received.clone()),
            Box::new(self.batches_stored.clone()),
            Box::new(self.batches_known.clone()),
            Box::new(self.batches_lost.clone()),
            Box::new(self.refusals.clone()),
            Box::new(self.set_aside.clone()),
            Box::new(self.not_set_aside.clone()),
            Box::new(self.rows_stored.clone()),
            Box::new(self.bytes_stored.clone()),
            Box::new(self.insert_seconds.clone()),
            Box::new(self.store_unavailable.clone()),
            Box::new(self.blocks_halved.clone()),
            Box::new(self.store_rejected.clone()),
            Box::new(self.gathered_bytes.clone()),
            Box::new(self.window_bytes.clone()),
            Box::new(self.queries.clone()),
            Box::new(self.rollup_waiting.clone()),
            Box::new(self.rollup_lag_seconds.clone()),
            Box::new(self.rollup_minutes.clone()),
            Box::new(self.rollup_seconds.clone()),
            Box::new(self.rollup_failures.clone()),
            Box::new(self.rollup_overflows.clone()),
            Box::new(self.causes_found.clone()),
            Box::new(self.causes_failures.clone()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| self.registry.register(collector))
    }

    /// A batch, a stream, a connection or a question was refused; `reason` is one of [`refusal`] or of [`Malformed::KINDS`].
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

    /// What an agent may have in flight.
    pub fn window(&self, node: &str, agent_id: &str, bytes: u64) {
        self.window_bytes
            .with_label_values(&[node, agent_id])
            .set(bytes as i64);
    }

    /// The agent is gone.
    pub fn no_window(&self, node: &str, agent_id: &str) {
        // It is not there if the agent left before it was welcome.
        let _ = self.window_bytes.remove_label_values(&[node, agent_id]);
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
