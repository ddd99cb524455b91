-- Which collector has which agent, where several share the store.

CREATE TABLE IF NOT EXISTS agent_claims{everywhere}
(
    agent_id String COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    claim UInt64 COMMENT 'Counts the claims of the agent: the highest holds, of equal ones that of the highest collector' CODEC(T64, ZSTD(1)),
    collector UInt64 COMMENT 'One start of one collector: a random number' CODEC(ZSTD(1)),
    is_released Bool COMMENT 'The collector has ended, and nothing of the agent is on its way from it' CODEC(ZSTD(1)),
    claimed_at DateTime64(3, 'UTC') DEFAULT now64(3) COMMENT 'When it was claimed or released, by the clock of the server, UTC' CODEC(Delta(8), ZSTD(1))
)
ENGINE = {MergeTree everywhere}
ORDER BY (agent_id, claim)
SETTINGS {durable}
COMMENT 'Which collector may insert batches of which agent. A row for each change of hands, which are kept: few, and each counts';
