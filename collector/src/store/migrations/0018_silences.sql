-- Silences: of which verdicts nobody is told for a while, who said so, and why.

CREATE TABLE IF NOT EXISTS silence_records{everywhere}
(
    silence String COMMENT 'The silence' CODEC(ZSTD(1)),
    state Enum8('begun' = 1, 'ended' = 2) COMMENT 'begun, or ended: by somebody, before its time' CODEC(ZSTD(1)),
    at DateTime64(9, 'UTC') COMMENT 'When it was said, by the clock of the collector, UTC' CODEC(ZSTD(1)),
    until DateTime64(9, 'UTC') COMMENT 'When it is over by itself, UTC. 1970 in rows that end it' CODEC(ZSTD(1)),
    assertion String COMMENT 'The assertion that it is for, or the objective. Empty: all with these labels' CODEC(ZSTD(1)),
    is_objective Bool COMMENT 'It is for every rule of an objective' CODEC(ZSTD(1)),
    keys Array(String) COMMENT 'Parts that the key of a verdict has to have, all of them. Empty: any key' CODEC(ZSTD(1)),
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'Labels that the assertion has to have, all of them' CODEC(ZSTD(1)),
    said_by String COMMENT 'Who said so, as his machine calls him and itself: user@host. Nothing proves it' CODEC(ZSTD(1)),
    because String COMMENT 'Why, in his words' CODEC(ZSTD(1))
)
ENGINE = {MergeTree everywhere}
ORDER BY (at, silence)
SETTINGS {durable}
COMMENT 'Silences: a row when one is declared, and one when somebody ends it. Kept: few, and each is an answer to who did it';
