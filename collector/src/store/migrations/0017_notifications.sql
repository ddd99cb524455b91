-- Notifications: what receivers are told, and how that went.

CREATE TABLE IF NOT EXISTS {rows notification_records}
(
    node LowCardinality(String) COMMENT 'Always empty: a message may be about many nodes' CODEC(ZSTD(1)),
    receiver LowCardinality(String) COMMENT 'The receiver' CODEC(ZSTD(1)),
    message String COMMENT 'What is sent at once: the same whenever it is sent. Of a row that says that a receiver has begun, a number made of its definition' CODEC(ZSTD(1)),
    state Enum8('begun' = 1, 'queued' = 2, 'failed' = 3, 'sent' = 4, 'given_up' = 5) COMMENT 'What happened: begun (from here on the receiver is told), queued (a row for each verdict of the message), failed (an attempt was in vain), sent, or given_up' CODEC(ZSTD(1)),
    at DateTime64(9, 'UTC') COMMENT 'When, by the clock of the collector, UTC' CODEC(Delta(8), ZSTD(1)),
    attempt UInt32 COMMENT 'The number of the attempt, from 1. 0: none was made' CODEC(T64, ZSTD(1)),
    reason String COMMENT 'What was answered, or why there was no answer' CODEC(ZSTD(1)),
    place UInt32 COMMENT 'The place of the verdict in its message' CODEC(T64, ZSTD(1)),
    notification String COMMENT 'What the verdict was told as: the same however often it is decided and sent' CODEC(ZSTD(1)),
    assertion LowCardinality(String) COMMENT 'The name of the assertion' CODEC(ZSTD(1)),
    key String COMMENT 'What the verdict is of: the dimensions of the assertion and their values. Empty where it has none' CODEC(ZSTD(1)),
    verdict LowCardinality(String) COMMENT 'holds, pending, violated, or unknown; empty in rows about attempts' CODEC(ZSTD(1)),
    window_to DateTime64(9, 'UTC') COMMENT 'When the window ended that was judged, UTC. 1970 in rows about attempts' CODEC(Delta(8), ZSTD(1)),
    facts String COMMENT 'All that is told of the verdict, as JSON' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(at)
ORDER BY (receiver, at, message)
TTL toDateTime(at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'What receivers are told: a row for each verdict of a message, and one for each attempt to send it';

{distributed notification_records};
