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
