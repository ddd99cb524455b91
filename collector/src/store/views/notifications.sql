CREATE OR REPLACE VIEW notifications{everywhere}
(
    receiver LowCardinality(String) COMMENT 'The receiver',
    assertion LowCardinality(String) COMMENT 'The name of the assertion',
    key String COMMENT 'What the verdict is of: the dimensions of the assertion and their values. Empty where it has none',
    verdict LowCardinality(String) COMMENT 'holds, pending, violated, or unknown',
    window_to DateTime64(9, 'UTC') COMMENT 'When the window ended that was judged, UTC',
    state Enum8('begun' = 1, 'queued' = 2, 'failed' = 3, 'sent' = 4, 'given_up' = 5) COMMENT 'queued (not tried yet), failed (it is tried again), sent, or given_up',
    queued_at DateTime64(9, 'UTC') COMMENT 'When it was decided that this is told, UTC',
    state_at DateTime64(9, 'UTC') COMMENT 'When it came to its state, UTC',
    attempts UInt32 COMMENT 'How often it was tried',
    reason String COMMENT 'What was answered last, or why there was no answer',
    message String COMMENT 'What is sent at once: the same whenever it is sent',
    notification String COMMENT 'What the verdict was told as: the same however often it is decided and sent'
)
AS SELECT
    queued.receiver AS receiver,
    queued.assertion AS assertion,
    queued.key AS key,
    queued.verdict AS verdict,
    queued.window_to AS window_to,
    if(tried.attempts = 0, CAST('queued', 'Enum8(\'begun\' = 1, \'queued\' = 2, \'failed\' = 3, \'sent\' = 4, \'given_up\' = 5)'), tried.outcome) AS state,
    queued.queued_at AS queued_at,
    if(tried.attempts = 0, queued.queued_at, tried.outcome_at) AS state_at,
    tried.attempts AS attempts,
    tried.outcome_reason AS reason,
    queued.message AS message,
    queued.notification AS notification
FROM
(
    SELECT receiver, message, notification, any(assertion) AS assertion, any(key) AS key, any(verdict) AS verdict,
        any(window_to) AS window_to, min(at) AS queued_at
    FROM notification_records
    WHERE state = 'queued'
    GROUP BY receiver, message, notification
) AS queued
LEFT JOIN
(
    -- Sent once is sent, whatever another attempt came to.
    SELECT receiver, message, max(attempt) AS attempts, argMax(state, (state, at)) AS outcome,
        argMax(reason, (state, at)) AS outcome_reason, argMax(at, (state, at)) AS outcome_at
    FROM notification_records
    WHERE state IN ('failed', 'sent', 'given_up')
    GROUP BY receiver, message
) AS tried
ON tried.receiver = queued.receiver AND tried.message = queued.message
COMMENT 'What receivers are told: a row for each verdict, and what has become of it';
