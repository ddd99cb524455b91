CREATE OR REPLACE VIEW runs{everywhere}
(
    run_id String COMMENT 'The run',
    state String COMMENT 'running, finished, stopped, failed; lost: its collector ended without a word, and no node has said anything for 30 s',
    verdict String COMMENT 'Of what was expected: holds, violated, unknown; empty while it runs',
    began_at DateTime64(9, 'UTC') COMMENT 'The common start of all nodes, by the clock of the collector, UTC',
    ended_at DateTime64(9, 'UTC') COMMENT 'When it ended; of one that runs or is lost, when it ends at the latest, UTC',
    nodes Array(String) COMMENT 'The nodes that took part',
    targets Array(String) COMMENT 'The targets as they were written',
    expect Array(String) COMMENT 'What was expected',
    reasons Array(String) COMMENT 'Why the verdict is not holds; where it is, what limited the run',
    result String COMMENT 'The whole result, JSON, times in nanoseconds; while it runs, who makes it'
)
AS SELECT
    run_id,
    if(state = 'running' AND greatest(began_at, heard_at) < now64(9, 'UTC') - INTERVAL 30 SECOND, 'lost', toString(state)) AS state,
    toString(verdict) AS verdict,
    began_at, ended_at, nodes, targets, expect, reasons, result
FROM (SELECT * FROM run_records ORDER BY revision DESC LIMIT 1 BY run_id) AS run
GLOBAL LEFT JOIN
(
    SELECT toString(run_id) AS heard_of, max(observed_at) AS heard_at
    FROM load_samples
    WHERE run_id GLOBAL IN (SELECT run_id FROM run_records GROUP BY run_id HAVING max(revision) = 1)
    GROUP BY heard_of
) AS heard ON run.run_id = heard.heard_of
COMMENT 'Runs: the latest that is known of each';
