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
