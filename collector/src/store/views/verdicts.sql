CREATE OR REPLACE VIEW verdicts{everywhere}
(
    node LowCardinality(String) COMMENT 'The node that the key or the cause names, empty where neither names one',
    assertion LowCardinality(String) COMMENT 'The name of the assertion',
    key String COMMENT 'What the verdict is of: the dimensions of the assertion and their values. Empty where it has none',
    verdict Enum8('holds' = 1, 'pending' = 2, 'violated' = 3, 'unknown' = 4) COMMENT 'holds, pending (it fails, but not for long enough yet), violated, or unknown (the evidence does not tell)',
    previous Enum8('holds' = 1, 'pending' = 2, 'violated' = 3, 'unknown' = 4) COMMENT 'The verdict before, the same where the row is a heartbeat',
    is_transition Bool COMMENT 'The verdict became another one',
    since DateTime64(9, 'UTC') COMMENT 'The end of the window that the verdict is since, UTC',
    window_from DateTime64(9, 'UTC') COMMENT 'When the window began that was judged, UTC',
    window_to DateTime64(9, 'UTC') COMMENT 'When the window ended that was judged, UTC',
    judged_at DateTime64(9, 'UTC') COMMENT 'When it was judged, by the clock of the collector, UTC',
    cause String COMMENT 'Why it is unknown. Verdicts that are unknown for the same reason have the same text. Empty where it is known',
    condition String COMMENT 'The condition that decided',
    has_value Bool COMMENT 'There was something to read',
    value Float64 COMMENT 'What was read, in the unit of its signal: microseconds, shares of one, bytes, or a number',
    threshold Float64 COMMENT 'What it was held against, in the same unit',
    samples UInt64 COMMENT 'How many rows the value was made of',
    loss Nullable(UInt64) COMMENT 'Rows of the window, or system calls, that are known to be lost on the nodes that the key depends on, to a second. Of a rule of an objective: of its short window. 0: none is. NULL: none is known to be, and nobody knows that none is, or it is about what agents report of themselves',
    lag_us UInt64 COMMENT 'From the end of the window until it was judged, microseconds',
    flaps UInt32 COMMENT 'How often it has become violated',
    silenced Bool COMMENT 'A silence says that nobody shall be told',
    severity LowCardinality(String) COMMENT 'The severity of the assertion',
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the assertion',
    evidence String COMMENT 'The readings of all conditions and the worst rows, as JSON',
    revision UInt32 COMMENT '0, or how often the window was judged again because rows came late'
)
AS SELECT
    node, assertion, key, verdict, previous, is_transition, since, window_from, window_to, judged_at, cause, condition, has_value, value, threshold, samples, loss, lag_us, flaps, silenced, severity, labels, evidence, revision
FROM verdict_records
-- Which rows are the last is decided by their short columns: of all others the evidence need not be kept.
WHERE judged_at > now64(9, 'UTC') - INTERVAL 1 DAY - INTERVAL 22 MINUTE AND (assertion, key, window_to, revision) GLOBAL IN
(
    SELECT assertion, key, last.1, last.2 FROM
    (
        SELECT assertion, key, max((window_to, revision)) AS last FROM verdict_records
        WHERE judged_at > now64(9, 'UTC') - INTERVAL 1 DAY - INTERVAL 22 MINUTE AND
        (
            judged_at > now64(9, 'UTC') - INTERVAL 15 MINUTE
            -- Windows of 150 s and more may be judged only once in their length, and be told so late as twice the longest deadline
            -- allows. Those of rules of objectives, whose conditions have a window of their own, are judged each minute.
            OR (
                toUnixTimestamp64Nano(window_to) - toUnixTimestamp64Nano(window_from) >= 150000000000
                AND judged_at > subtractNanoseconds(
                    now64(9, 'UTC') - INTERVAL 22 MINUTE,
                    toUnixTimestamp64Nano(window_to) - toUnixTimestamp64Nano(window_from)
                )
                AND position(condition, ' over ') = 0
            )
            -- The last word on a key has a window of a nanosecond, whatever its windows were.
            OR toUnixTimestamp64Nano(window_to) - toUnixTimestamp64Nano(window_from) < 2
        )
        GROUP BY assertion, key
    )
)
-- Of a key that is judged no more, nothing is said now.
AND evidence NOT LIKE '_"is_over":true_'
LIMIT 1 BY assertion, key
COMMENT 'The verdicts of now: the latest of each assertion and key that may be judged still. Where nobody judges any more, for a quarter of an hour, and of windows that are longer than that for as long as these are: window_to says of when it is';
