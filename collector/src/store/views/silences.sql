CREATE OR REPLACE VIEW silences{everywhere}
(
    silence String COMMENT 'The silence',
    state LowCardinality(String) COMMENT 'active, ended (by somebody, before its time), or over',
    assertion String COMMENT 'The assertion that it is for, or the objective. Empty: all with these labels',
    is_objective Bool COMMENT 'It is for every rule of an objective',
    keys Array(String) COMMENT 'Parts that the key of a verdict has to have, all of them. Empty: any key',
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'Labels that the assertion has to have, all of them',
    begun_at DateTime64(9, 'UTC') COMMENT 'When it was declared, by the clock of the collector, UTC',
    until DateTime64(9, 'UTC') COMMENT 'When it is over, or was, UTC',
    said_by String COMMENT 'Who declared it, as his machine calls him and itself: user@host. Nothing proves it',
    because String COMMENT 'Why, in his words',
    ended_by String COMMENT 'Who ended it before its time; empty: nobody did',
    ended_because String COMMENT 'Why it was ended before its time'
)
AS SELECT
    silence,
    multiIf(ended.1 != 0 AND ended_at < declared, 'ended', until > now64(9, 'UTC'), 'active', 'over') AS state,
    begun.1 AS assertion,
    begun.2 AS is_objective,
    begun.3 AS keys,
    begun.4 AS labels,
    begun_at,
    if(ended.1 != 0, least(ended_at, declared), declared) AS until,
    begun.5 AS said_by,
    begun.6 AS because,
    ended.2 AS ended_by,
    ended.3 AS ended_because
FROM
(
    SELECT
        silence,
        anyIf((assertion, is_objective, keys, labels, said_by, because), state = 'begun') AS begun,
        minIf(at, state = 'begun') AS begun_at,
        maxIf(until, state = 'begun') AS declared,
        minIf(at, state = 'ended') AS ended_at,
        argMinIf((1, said_by, because), at, state = 'ended') AS ended
    FROM silence_records
    GROUP BY silence
    HAVING countIf(state = 'begun') > 0
)
COMMENT 'Silences, with what has become of each';
