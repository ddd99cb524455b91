-- Who judges assertions, where several collectors share the store, and that nobody else writes verdicts.

CREATE TABLE IF NOT EXISTS judge_beats{everywhere}
(
    collector UInt64 COMMENT 'One start of one collector: a random number' CODEC(ZSTD(1)),
    host String COMMENT 'The machine that it runs on' CODEC(ZSTD(1)),
    declares UInt32 COMMENT 'A number made of what it judges: collectors with the same assertions have the same' CODEC(ZSTD(1)),
    at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When it said that it judges, by the clock of the server, UTC' CODEC(Delta(8), ZSTD(1))
)
ENGINE = {MergeTree everywhere}
PARTITION BY toDate(at)
ORDER BY at
TTL toDateTime(at) + INTERVAL 1 DAY
SETTINGS {durable}
COMMENT 'That the collector that judges is there: a row every other second';

ALTER TABLE {each verdict_records} ADD COLUMN IF NOT EXISTS {lease};

ALTER TABLE {each notification_records} ADD COLUMN IF NOT EXISTS {lease};
