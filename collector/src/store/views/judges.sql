CREATE OR REPLACE VIEW judges{everywhere}
(
    collector UInt64 COMMENT 'One start of one collector: a random number',
    host String COMMENT 'The machine that it runs on',
    declares UInt32 COMMENT 'A number made of what it judges: collectors with the same assertions have the same',
    since DateTime64(3, 'UTC') COMMENT 'When it said so first, UTC. Not before yesterday',
    until DateTime64(3, 'UTC') COMMENT 'When it said so last, UTC. The latest is the one that judges'
)
AS SELECT collector, argMax(host, at) AS host, argMax(declares, at) AS declares, min(at) AS since, max(at) AS until
FROM judge_beats
GROUP BY collector
COMMENT 'Which collectors judged assertions since yesterday, where several share the store';
