-- Verdicts: what was said of the assertions, when, and by what evidence.

CREATE TABLE IF NOT EXISTS {rows verdict_records}
(
    node LowCardinality(String) COMMENT 'The node that the key or the cause names, empty where neither names one' CODEC(ZSTD(1)),
    assertion LowCardinality(String) COMMENT 'The name of the assertion' CODEC(ZSTD(1)),
    key String COMMENT 'What the verdict is of: the dimensions of the assertion and their values. Empty where it has none' CODEC(ZSTD(1)),
    verdict Enum8('holds' = 1, 'pending' = 2, 'violated' = 3, 'unknown' = 4) COMMENT 'holds, pending (it fails, but not for long enough yet), violated, or unknown (the evidence does not tell)' CODEC(ZSTD(1)),
    previous Enum8('holds' = 1, 'pending' = 2, 'violated' = 3, 'unknown' = 4) COMMENT 'The verdict before, the same where the row is a heartbeat' CODEC(ZSTD(1)),
    is_transition Bool COMMENT 'The verdict became another one' CODEC(ZSTD(1)),
    since DateTime64(9, 'UTC') COMMENT 'The end of the window that the verdict is since, UTC' CODEC(Delta(8), ZSTD(1)),
    window_from DateTime64(9, 'UTC') COMMENT 'When the window began that was judged, UTC' CODEC(Delta(8), ZSTD(1)),
    window_to DateTime64(9, 'UTC') COMMENT 'When the window ended that was judged, UTC' CODEC(Delta(8), ZSTD(1)),
    judged_at DateTime64(9, 'UTC') COMMENT 'When it was judged, by the clock of the collector, UTC' CODEC(Delta(8), ZSTD(1)),
    cause String COMMENT 'Why it is unknown. Verdicts that are unknown for the same reason have the same text. Empty where it is known' CODEC(ZSTD(1)),
    condition String COMMENT 'The condition that decided' CODEC(ZSTD(1)),
    has_value Bool COMMENT 'There was something to read' CODEC(ZSTD(1)),
    value Float64 COMMENT 'What was read, in the unit of its signal: microseconds, shares of one, bytes, or a number' CODEC(ZSTD(1)),
    threshold Float64 COMMENT 'What it was held against, in the same unit' CODEC(ZSTD(1)),
    samples UInt64 COMMENT 'How many rows the value was made of' CODEC(T64, ZSTD(1)),
    lag_us UInt64 COMMENT 'From the end of the window until it was judged, microseconds' CODEC(T64, ZSTD(1)),
    flaps UInt32 COMMENT 'How often it has become violated' CODEC(T64, ZSTD(1)),
    silenced Bool COMMENT 'A silence says that nobody shall be told' CODEC(ZSTD(1)),
    severity LowCardinality(String) COMMENT 'The severity of the assertion' CODEC(ZSTD(1)),
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the assertion' CODEC(ZSTD(1)),
    evidence String COMMENT 'The readings of all conditions and the worst rows, as JSON' CODEC(ZSTD(1)),
    revision UInt32 COMMENT '0, or how often the window was judged again because rows came late' CODEC(T64, ZSTD(1)),
    fingerprint UInt32 COMMENT 'What the verdict depends on in the definition of the assertion: another number, and what was found before counts no more' CODEC(T64, ZSTD(1)),
    state String COMMENT 'What judging the next window needs, as JSON' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(judged_at)
ORDER BY (assertion, key, judged_at)
TTL toDateTime(judged_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Verdicts: a row for each change, and one a minute for each that stays';

{distributed verdict_records};
