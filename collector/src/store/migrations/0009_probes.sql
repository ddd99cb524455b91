-- What people want of the probes, and what the agents say that they do.

CREATE TABLE IF NOT EXISTS probe_settings{everywhere}
(
    revision UInt64 COMMENT 'Counts up: of two settings for one agent and key the higher one holds' CODEC(ZSTD(1)),
    set_at DateTime64(9, 'UTC') COMMENT 'When it was wanted, UTC' CODEC(ZSTD(1)),
    nodes Array(String) COMMENT 'The names of the nodes that it is for, empty for any' CODEC(ZSTD(1)),
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels that a node has to have' CODEC(ZSTD(1)),
    key LowCardinality(String) COMMENT 'What is set' CODEC(ZSTD(1)),
    value String COMMENT 'To what. default: as the configuration of the node says' CODEC(ZSTD(1))
)
ENGINE = {MergeTree everywhere}
ORDER BY (key, revision)
SETTINGS {durable}
COMMENT 'What people want of the probes. Kept: few, and each holds until a later one replaces it';

CREATE TABLE IF NOT EXISTS {rows probe_reports}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    reported_at DateTime64(9, 'UTC') COMMENT 'When the collector heard of it, UTC' CODEC(Delta(8), ZSTD(1)),
    revision UInt64 COMMENT 'Of the settings that the agent took last, 0 for none' CODEC(ZSTD(1)),
    applied Map(LowCardinality(String), LowCardinality(String)) COMMENT 'Every setting that the agent has, and what is in force' CODEC(ZSTD(1)),
    refused Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The settings that it does not take, and why' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(reported_at)
ORDER BY (agent_id, agent_epoch, reported_at)
TTL toDateTime(reported_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'What the probes of the agents do: a row when an agent connects, and each time that something is wanted of it';

{distributed probe_reports};
