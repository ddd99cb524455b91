-- Runs: what was asked of agents, and what came of it.

CREATE TABLE IF NOT EXISTS {rows run_records}
(
    node LowCardinality(String) COMMENT 'Always empty: a run has many nodes; see nodes' CODEC(ZSTD(1)),
    run_id String COMMENT 'The run' CODEC(ZSTD(1)),
    revision UInt8 COMMENT '1: the run began. 2: it ended' CODEC(T64, ZSTD(1)),
    state LowCardinality(String) COMMENT 'running, finished, stopped, or failed' CODEC(ZSTD(1)),
    verdict LowCardinality(String) COMMENT 'Of what was expected: holds, violated, unknown; empty while it runs' CODEC(ZSTD(1)),
    began_at DateTime64(9, 'UTC') COMMENT 'The common start of all nodes, by the clock of the collector, UTC' CODEC(Delta(8), ZSTD(1)),
    ended_at DateTime64(9, 'UTC') COMMENT 'When it ended; of one that runs, when it ends at the latest, UTC' CODEC(Delta(8), ZSTD(1)),
    nodes Array(String) COMMENT 'The nodes that took part' CODEC(ZSTD(1)),
    targets Array(String) COMMENT 'The targets as they were written' CODEC(ZSTD(1)),
    expect Array(String) COMMENT 'What was expected' CODEC(ZSTD(1)),
    reasons Array(String) COMMENT 'Why the verdict is not holds' CODEC(ZSTD(1)),
    result String COMMENT 'The whole result, JSON, times in nanoseconds; while it runs, who makes it' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(began_at)
ORDER BY (run_id, revision)
TTL toDateTime(began_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Runs: a row when one begins, and another when it ends';

{distributed run_records};

CREATE TABLE IF NOT EXISTS {rows load_samples}
(
    node LowCardinality(String) COMMENT 'The node that made the load' CODEC(ZSTD(1)),
    run_id LowCardinality(String) COMMENT 'The run' CODEC(ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'The end of the interval, by the clock of the collector, UTC' CODEC(Delta(8), ZSTD(1)),
    elapsed_us UInt64 COMMENT 'The same since the start of the run, microseconds' CODEC(T64, ZSTD(1)),
    open UInt64 COMMENT 'Connections that were established at the end of the interval' CODEC(T64, ZSTD(1)),
    most_open UInt64 COMMENT 'The most that were established at once since the start of the run' CODEC(T64, ZSTD(1)),
    cpu_us UInt64 COMMENT 'CPU time of the generator since the start of the run, microseconds' CODEC(T64, ZSTD(1)),
    started UInt64 COMMENT 'Attempts that were begun' CODEC(T64, ZSTD(1)),
    established UInt64 COMMENT 'Attempts that were established' CODEC(T64, ZSTD(1)),
    refused UInt64 COMMENT 'Attempts that were refused' CODEC(T64, ZSTD(1)),
    timed_out UInt64 COMMENT 'Attempts without an answer in time' CODEC(T64, ZSTD(1)),
    reset UInt64 COMMENT 'Attempts that were reset' CODEC(T64, ZSTD(1)),
    unreachable UInt64 COMMENT 'Attempts on what is unreachable' CODEC(T64, ZSTD(1)),
    local_files UInt64 COMMENT 'Attempts for which the generator had no file descriptor' CODEC(T64, ZSTD(1)),
    local_ports UInt64 COMMENT 'Attempts for which the generator had no local port' CODEC(T64, ZSTD(1)),
    local_filter UInt64 COMMENT 'Attempts that a policy of the machine of the generator forbade' CODEC(T64, ZSTD(1)),
    abandoned UInt64 COMMENT 'Attempts that the end of the run cut off' CODEC(T64, ZSTD(1)),
    failed UInt64 COMMENT 'Attempts that failed otherwise' CODEC(T64, ZSTD(1)),
    closed UInt64 COMMENT 'Connections that the generator closed' CODEC(T64, ZSTD(1)),
    closed_by_peer UInt64 COMMENT 'Connections that the peer closed' CODEC(T64, ZSTD(1)),
    reset_by_peer UInt64 COMMENT 'Connections that the peer reset' CODEC(T64, ZSTD(1)),
    lost_timed_out UInt64 COMMENT 'Connections that were lost: no answer in time' CODEC(T64, ZSTD(1)),
    lost_unreachable UInt64 COMMENT 'Connections that were lost: unreachable' CODEC(T64, ZSTD(1)),
    lost_failed UInt64 COMMENT 'Connections that were lost otherwise' CODEC(T64, ZSTD(1)),
    late UInt64 COMMENT 'Attempts that were made a millisecond or more after they were due' CODEC(T64, ZSTD(1)),
    syn_retransmits UInt64 COMMENT 'SYNs that were sent again, of attempts that were established' CODEC(T64, ZSTD(1)),
    bytes_sent UInt64 COMMENT 'Payload sent, bytes' CODEC(T64, ZSTD(1)),
    bytes_received UInt64 COMMENT 'Payload received, bytes' CODEC(T64, ZSTD(1)),
    requests UInt64 COMMENT 'Requests that were due' CODEC(T64, ZSTD(1)),
    answered UInt64 COMMENT 'Requests that were answered as expected' CODEC(T64, ZSTD(1)),
    unexpected_status UInt64 COMMENT 'Requests whose answer had another status' CODEC(T64, ZSTD(1)),
    unexpected_body UInt64 COMMENT 'Requests whose answer had another body' CODEC(T64, ZSTD(1)),
    request_timed_out UInt64 COMMENT 'Requests without an answer in time' CODEC(T64, ZSTD(1)),
    request_lost UInt64 COMMENT 'Requests whose connection ended before the answer did' CODEC(T64, ZSTD(1)),
    malformed UInt64 COMMENT 'Requests whose answer was none' CODEC(T64, ZSTD(1)),
    unsent UInt64 COMMENT 'Requests that found no connection' CODEC(T64, ZSTD(1)),
    request_abandoned UInt64 COMMENT 'Requests that the end of the run cut off' CODEC(T64, ZSTD(1)),
    insecure UInt64 COMMENT 'Connections whose handshake of TLS failed' CODEC(T64, ZSTD(1)),
    reordered UInt64 COMMENT 'Datagrams that came out of their order' CODEC(T64, ZSTD(1)),
    duplicated UInt64 COMMENT 'Datagrams that came again' CODEC(T64, ZSTD(1)),
    connect_buckets Array(UInt16) COMMENT 'From when an attempt was due until it was established, microseconds: log buckets, as those of connection_minutes' CODEC(ZSTD(1)),
    connect_counts Array(UInt64) COMMENT 'Attempts in each of connect_buckets' CODEC(ZSTD(1)),
    network_buckets Array(UInt16) COMMENT 'Round trips of the handshakes as the kernel measured them, microseconds: log buckets' CODEC(ZSTD(1)),
    network_counts Array(UInt64) COMMENT 'Attempts in each of network_buckets' CODEC(ZSTD(1)),
    request_buckets Array(UInt16) COMMENT 'From when a request was due until its answer was complete, microseconds: log buckets' CODEC(ZSTD(1)),
    request_counts Array(UInt64) COMMENT 'Requests in each of request_buckets' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(observed_at)
ORDER BY (run_id, node, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'What a node did for a run in an interval';

{distributed load_samples};
