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

CREATE OR REPLACE VIEW runs{everywhere}
(
    run_id String COMMENT 'The run',
    state String COMMENT 'running, finished, stopped, failed; lost: its collector ended without a word, and no node has said anything for 30 s',
    verdict String COMMENT 'Of what was expected: holds, violated, unknown; empty while it runs',
    began_at DateTime64(9, 'UTC') COMMENT 'The common start of all nodes, by the clock of the collector, UTC',
    ended_at DateTime64(9, 'UTC') COMMENT 'When it ended; of one that runs or is lost, when it ends at the latest, UTC',
    nodes Array(String) COMMENT 'The nodes that took part',
    targets Array(String) COMMENT 'The targets as they were written',
    expect Array(String) COMMENT 'What was expected',
    reasons Array(String) COMMENT 'Why the verdict is not holds',
    result String COMMENT 'The whole result, JSON, times in nanoseconds; while it runs, who makes it'
)
AS SELECT
    run_id,
    if(state = 'running' AND greatest(began_at, heard_at) < now64(9, 'UTC') - INTERVAL 30 SECOND, 'lost', toString(state)) AS state,
    toString(verdict) AS verdict,
    began_at, ended_at, nodes, targets, expect, reasons, result
FROM (SELECT * FROM run_records ORDER BY revision DESC LIMIT 1 BY run_id) AS run
GLOBAL LEFT JOIN
(
    SELECT toString(run_id) AS heard_of, max(observed_at) AS heard_at
    FROM load_samples
    WHERE run_id GLOBAL IN (SELECT run_id FROM run_records GROUP BY run_id HAVING max(revision) = 1)
    GROUP BY heard_of
) AS heard ON run.run_id = heard.heard_of
COMMENT 'Runs: the latest that is known of each';

CREATE OR REPLACE VIEW run_results{everywhere}
(
    run_id String COMMENT 'The run',
    node LowCardinality(String) COMMENT 'The node that made the load',
    most_open UInt64 COMMENT 'The most connections that were established at once',
    cpu_us UInt64 COMMENT 'CPU time of the generator, microseconds',
    started UInt64 COMMENT 'Attempts that were begun',
    established UInt64 COMMENT 'Attempts that were established',
    refused UInt64 COMMENT 'Attempts that were refused',
    timed_out UInt64 COMMENT 'Attempts without an answer in time',
    reset UInt64 COMMENT 'Attempts that were reset',
    unreachable UInt64 COMMENT 'Attempts on what is unreachable',
    local_files UInt64 COMMENT 'Attempts for which the generator had no file descriptor',
    local_ports UInt64 COMMENT 'Attempts for which the generator had no local port',
    local_filter UInt64 COMMENT 'Attempts that a policy of the machine of the generator forbade',
    abandoned UInt64 COMMENT 'Attempts that the end of the run cut off',
    failed UInt64 COMMENT 'Attempts that failed otherwise',
    closed UInt64 COMMENT 'Connections that the generator closed',
    closed_by_peer UInt64 COMMENT 'Connections that the peer closed',
    reset_by_peer UInt64 COMMENT 'Connections that the peer reset',
    lost_timed_out UInt64 COMMENT 'Connections that were lost: no answer in time',
    lost_unreachable UInt64 COMMENT 'Connections that were lost: unreachable',
    lost_failed UInt64 COMMENT 'Connections that were lost otherwise',
    late UInt64 COMMENT 'Attempts that were made a millisecond or more after they were due',
    syn_retransmits UInt64 COMMENT 'SYNs that were sent again, of attempts that were established',
    bytes_sent UInt64 COMMENT 'Payload sent, bytes',
    bytes_received UInt64 COMMENT 'Payload received, bytes',
    requests UInt64 COMMENT 'Requests that were due',
    answered UInt64 COMMENT 'Requests that were answered as expected',
    unexpected_status UInt64 COMMENT 'Requests whose answer had another status',
    unexpected_body UInt64 COMMENT 'Requests whose answer had another body',
    request_timed_out UInt64 COMMENT 'Requests without an answer in time',
    request_lost UInt64 COMMENT 'Requests whose connection ended before the answer did',
    malformed UInt64 COMMENT 'Requests whose answer was none',
    unsent UInt64 COMMENT 'Requests that found no connection',
    request_abandoned UInt64 COMMENT 'Requests that the end of the run cut off',
    insecure UInt64 COMMENT 'Connections whose handshake of TLS failed',
    reordered UInt64 COMMENT 'Datagrams that came out of their order',
    duplicated UInt64 COMMENT 'Datagrams that came again',
    elapsed_us UInt64 COMMENT 'From the start of the run to the last report, microseconds'
)
AS SELECT
    toString(sample.run_id) AS run_id,
    sample.node AS node,
    max(sample.most_open) AS most_open,
    max(sample.cpu_us) AS cpu_us,
    sum(sample.started) AS started,
    sum(sample.established) AS established,
    sum(sample.refused) AS refused,
    sum(sample.timed_out) AS timed_out,
    sum(sample.reset) AS reset,
    sum(sample.unreachable) AS unreachable,
    sum(sample.local_files) AS local_files,
    sum(sample.local_ports) AS local_ports,
    sum(sample.local_filter) AS local_filter,
    sum(sample.abandoned) AS abandoned,
    sum(sample.failed) AS failed,
    sum(sample.closed) AS closed,
    sum(sample.closed_by_peer) AS closed_by_peer,
    sum(sample.reset_by_peer) AS reset_by_peer,
    sum(sample.lost_timed_out) AS lost_timed_out,
    sum(sample.lost_unreachable) AS lost_unreachable,
    sum(sample.lost_failed) AS lost_failed,
    sum(sample.late) AS late,
    sum(sample.syn_retransmits) AS syn_retransmits,
    sum(sample.bytes_sent) AS bytes_sent,
    sum(sample.bytes_received) AS bytes_received,
    sum(sample.requests) AS requests,
    sum(sample.answered) AS answered,
    sum(sample.unexpected_status) AS unexpected_status,
    sum(sample.unexpected_body) AS unexpected_body,
    sum(sample.request_timed_out) AS request_timed_out,
    sum(sample.request_lost) AS request_lost,
    sum(sample.malformed) AS malformed,
    sum(sample.unsent) AS unsent,
    sum(sample.request_abandoned) AS request_abandoned,
    sum(sample.insecure) AS insecure,
    sum(sample.reordered) AS reordered,
    sum(sample.duplicated) AS duplicated,
    max(sample.elapsed_us) AS elapsed_us
FROM load_samples AS sample
GROUP BY run_id, node
COMMENT 'What each node did for each run, added up';
