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
