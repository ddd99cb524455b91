-- The rollup: attempts and finished ends by minute, for long windows and dashboards.
--
-- Its unit is what one node recorded in one minute, and it is computed as a whole from the raw rows, again whenever
-- late rows arrived. Raw rows are only ever added, so of the rows that are there for a group the one that was made of
-- the most records is right, whoever computed it and when: that is what the engine keeps, and what FINAL shows.

CREATE TABLE IF NOT EXISTS {rows connection_minutes}
(
    minute DateTime('UTC') COMMENT 'The minute in which the kernel emitted the records, UTC: for finished ends that of closed_at' CODEC(DoubleDelta, ZSTD(1)),
    decided_minute DateTime('UTC') COMMENT 'The minute in which the attempts were decided, UTC. That of minute where there are none, or none is decided' CODEC(Delta(4), ZSTD(1)),
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known' CODEC(ZSTD(1)),
    comm LowCardinality(String) COMMENT 'The command name of the process' CODEC(ZSTD(1)),
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener' CODEC(ZSTD(1)),
    port UInt16 COMMENT 'The port of the listener: remote_port of active ends, local_port of passive ones' CODEC(T64, ZSTD(1)),
    records UInt64 COMMENT 'Rows of connection_records that this row was made of. Of several rows for one group the one with the most is right' CODEC(T64, ZSTD(1)),
    established UInt64 COMMENT 'Attempts that were established' CODEC(T64, ZSTD(1)),
    refused UInt64 COMMENT 'Attempts that were refused' CODEC(T64, ZSTD(1)),
    timed_out UInt64 COMMENT 'Attempts that timed out' CODEC(T64, ZSTD(1)),
    reset UInt64 COMMENT 'Attempts that were reset' CODEC(T64, ZSTD(1)),
    unreachable UInt64 COMMENT 'Attempts whose destination was unreachable' CODEC(T64, ZSTD(1)),
    aborted UInt64 COMMENT 'Attempts that the process gave up' CODEC(T64, ZSTD(1)),
    pending UInt64 COMMENT 'Attempts that were not decided yet' CODEC(T64, ZSTD(1)),
    failed UInt64 COMMENT 'Attempts that ended by another error' CODEC(T64, ZSTD(1)),
    syn_retransmits UInt64 COMMENT 'Segments of the attempts that were sent again before the handshake ended' CODEC(T64, ZSTD(1)),
    connect_buckets Array(UInt16) COMMENT 'connect_us of the established attempts: ids of log buckets, 32 an octave, ascending' CODEC(Delta(2), ZSTD(1)),
    connect_counts Array(UInt32) COMMENT 'Attempts in each of connect_buckets' CODEC(T64, ZSTD(1)),
    connections UInt64 COMMENT 'Finished ends' CODEC(T64, ZSTD(1)),
    closed_finished UInt64 COMMENT 'Finished ends with close_reason finished' CODEC(T64, ZSTD(1)),
    closed_reset_by_peer UInt64 COMMENT 'Finished ends with close_reason reset_by_peer' CODEC(T64, ZSTD(1)),
    closed_reset_by_process UInt64 COMMENT 'Finished ends with close_reason reset_by_process' CODEC(T64, ZSTD(1)),
    closed_timed_out UInt64 COMMENT 'Finished ends with close_reason timed_out' CODEC(T64, ZSTD(1)),
    closed_unreachable UInt64 COMMENT 'Finished ends with close_reason unreachable' CODEC(T64, ZSTD(1)),
    closed_failed UInt64 COMMENT 'Finished ends with close_reason failed' CODEC(T64, ZSTD(1)),
    bytes_sent UInt64 COMMENT 'Payload that left, of finished ends, without retransmissions, bytes' CODEC(T64, ZSTD(1)),
    bytes_received UInt64 COMMENT 'Payload that arrived in order, of finished ends, bytes' CODEC(T64, ZSTD(1)),
    segments_sent UInt64 COMMENT 'Segments that left, of finished ends, retransmissions included' CODEC(T64, ZSTD(1)),
    segments_received UInt64 COMMENT 'Segments that arrived, of finished ends' CODEC(T64, ZSTD(1)),
    retransmits UInt64 COMMENT 'Segments that were sent again, of finished ends, SYNs included' CODEC(T64, ZSTD(1)),
    duration_buckets Array(UInt16) COMMENT 'duration_us of the finished ends that were established: ids of log buckets, 32 an octave, ascending' CODEC(Delta(2), ZSTD(1)),
    duration_counts Array(UInt32) COMMENT 'Finished ends in each of duration_buckets' CODEC(T64, ZSTD(1)),
    INDEX decided decided_minute TYPE minmax
)
ENGINE = {ReplacingMergeTree records}
PARTITION BY toDate(minute)
ORDER BY (toStartOfHour(minute), service, node, comm, role, port, minute, decided_minute)
TTL toDateTime(minute) + INTERVAL 30 DAY
SETTINGS index_granularity = 1024, ttl_only_drop_parts = 1
COMMENT 'What each node recorded in each minute, by service, command, role and port: computed from connection_records, and again when late rows arrive';

{distributed connection_minutes};

CREATE OR REPLACE VIEW attempts_1m{everywhere}
(
    minute DateTime('UTC') COMMENT 'The minute in which the attempts were decided, UTC. A minute can have several rows for one group: add them up',
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    port UInt16 COMMENT 'The port of the listener: remote_port of active ends, local_port of passive ones',
    attempts UInt64 COMMENT 'Attempts, however they ended',
    established UInt64 COMMENT 'Of these, established',
    refused UInt64 COMMENT 'Of these, refused',
    timed_out UInt64 COMMENT 'Of these, timed out',
    reset UInt64 COMMENT 'Of these, reset',
    unreachable UInt64 COMMENT 'Of these, unreachable',
    aborted UInt64 COMMENT 'Of these, given up by the process',
    pending UInt64 COMMENT 'Of these, not decided yet',
    failed UInt64 COMMENT 'Of these, ended by another error',
    syn_retransmits UInt64 COMMENT 'Segments that were sent again before the handshake ended',
    connect_buckets Array(UInt16) COMMENT 'connect_us of the established ones: ids of log buckets, for sumMap(connect_buckets, connect_counts)',
    connect_us Array(Float64) COMMENT 'The middles of connect_buckets, microseconds. A quantile, within 1.6 %: quantileExactWeightedArray(0.99)(connect_us, connect_counts)',
    connect_counts Array(UInt32) COMMENT 'Attempts in each of connect_buckets'
)
AS SELECT
    decided_minute AS minute, node, service, comm, role, port,
    established + refused + timed_out + reset + unreachable + aborted + pending + failed AS attempts,
    established, refused, timed_out, reset, unreachable, aborted, pending, failed, syn_retransmits, connect_buckets,
    arrayMap(bucket -> if(bucket = 0, 0, (ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32735, 47))) + ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32736, 47))) - 1) / 2), connect_buckets) AS connect_us,
    connect_counts
FROM connection_minutes FINAL
WHERE attempts > 0
COMMENT 'Attempts to open TCP connections by minute';

CREATE OR REPLACE VIEW connections_1m{everywhere}
(
    minute DateTime('UTC') COMMENT 'The minute in which the ends were closed, UTC. A minute can have several rows for one group: add them up',
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    port UInt16 COMMENT 'The port of the listener: remote_port of active ends, local_port of passive ones',
    connections UInt64 COMMENT 'Finished ends. Those that were never established have no close_reason',
    closed_finished UInt64 COMMENT 'Of these, with close_reason finished',
    closed_reset_by_peer UInt64 COMMENT 'Of these, with close_reason reset_by_peer',
    closed_reset_by_process UInt64 COMMENT 'Of these, with close_reason reset_by_process',
    closed_timed_out UInt64 COMMENT 'Of these, with close_reason timed_out',
    closed_unreachable UInt64 COMMENT 'Of these, with close_reason unreachable',
    closed_failed UInt64 COMMENT 'Of these, with close_reason failed',
    bytes_sent UInt64 COMMENT 'Payload that left, without retransmissions, bytes',
    bytes_received UInt64 COMMENT 'Payload that arrived in order, bytes',
    segments_sent UInt64 COMMENT 'Segments that left, retransmissions included',
    segments_received UInt64 COMMENT 'Segments that arrived',
    retransmits UInt64 COMMENT 'Segments that were sent again, SYNs included',
    duration_buckets Array(UInt16) COMMENT 'duration_us of those that were established: ids of log buckets, for sumMap(duration_buckets, duration_counts)',
    duration_us Array(Float64) COMMENT 'The middles of duration_buckets, microseconds. A quantile, within 1.6 %: quantileExactWeightedArray(0.99)(duration_us, duration_counts)',
    duration_counts Array(UInt32) COMMENT 'Finished ends in each of duration_buckets'
)
AS SELECT
    minute, node, service, comm, role, port, connections, closed_finished, closed_reset_by_peer, closed_reset_by_process,
    closed_timed_out, closed_unreachable, closed_failed, bytes_sent, bytes_received, segments_sent, segments_received,
    retransmits, duration_buckets,
    arrayMap(bucket -> if(bucket = 0, 0, (ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32735, 47))) + ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32736, 47))) - 1) / 2), duration_buckets) AS duration_us,
    duration_counts
FROM connection_minutes FINAL
WHERE connections > 0
COMMENT 'Finished ends of TCP connections by minute';

CREATE OR REPLACE VIEW latency_1m{everywhere}
(
    minute DateTime('UTC') COMMENT 'The minute in which the attempts were decided, UTC',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    established UInt64 COMMENT 'Established attempts, of all nodes',
    p50_us Float64 COMMENT 'Half of them took no longer than this to be established, microseconds, within 1.6 %',
    p90_us Float64 COMMENT 'Nine tenths of them took no longer than this, microseconds, within 1.6 %',
    p99_us Float64 COMMENT 'Of a hundred of them one took longer than this, microseconds, within 1.6 %'
)
AS SELECT
    minute, service, role, total AS established, middles[1] AS p50_us, middles[2] AS p90_us, middles[3] AS p99_us
FROM
(
    SELECT
        minute, service, role, sum(established) AS total,
        quantilesExactWeightedArray(0.5, 0.9, 0.99)(connect_buckets, connect_counts) AS buckets,
        arrayMap(bucket -> if(bucket = 0, 0, (ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32735, 47))) + ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32736, 47))) - 1) / 2), buckets) AS middles
    FROM attempts_1m
    WHERE established > 0
    GROUP BY minute, service, role
)
COMMENT 'How long services took to open connections, by minute, all nodes together';
