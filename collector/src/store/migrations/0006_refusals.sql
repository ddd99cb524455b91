-- Batches that were refused for their content, set aside with the reason.

CREATE TABLE IF NOT EXISTS {rows refused_batches}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'The start of the agent that sealed the batch' CODEC(T64, ZSTD(1)),
    stream LowCardinality(String) COMMENT 'The kind of its rows: connections, gaps, or one that the collector does not know' CODEC(ZSTD(1)),
    sequence UInt64 COMMENT 'The batch: 1, 2, ... within agent_id, agent_epoch and stream' CODEC(T64, ZSTD(1)),
    refused_at DateTime64(9, 'UTC') COMMENT 'When the collector or the store refused it, UTC' CODEC(Delta(8), ZSTD(1)),
    reason String COMMENT 'Why' CODEC(ZSTD(1)),
    rows UInt32 COMMENT 'Rows in it, 0 where that cannot be read' CODEC(T64, ZSTD(1)),
    encoded_bytes UInt64 COMMENT 'Its size as it travelled, bytes' CODEC(T64, ZSTD(1)),
    encoded String COMMENT 'The batch as it travelled, its first 65536 bytes' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(refused_at)
ORDER BY (node, agent_id, refused_at)
TTL toDateTime(refused_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Batches that were refused for their content. Not all of them where an agent has many: the metrics count those';

{distributed refused_batches};
