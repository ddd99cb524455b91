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
