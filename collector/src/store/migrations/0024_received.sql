-- The latest report of a start, where the counters are the same, is told by the clock of the collector: that of a node may have
-- been set back since, and what it said in the future would be the latest for as long. (Events that no program saw change
-- where nothing else does.) Gaps say that a batch was refused, and nodes that another agent has their id.

ALTER TABLE {each ledger_samples} ADD COLUMN IF NOT EXISTS received_at DateTime64(9, 'UTC') COMMENT 'When the report came, by the clock of the collector, UTC' CODEC(Delta(8), ZSTD(1));

ALTER TABLE {each agent_samples} ADD COLUMN IF NOT EXISTS rival LowCardinality(String) COMMENT 'Where another agent with this id was turned away within the last two minutes, address and port. Empty: there is none' CODEC(ZSTD(1));

ALTER TABLE {each gap_records} MODIFY COLUMN reason Enum8('spool_full' = 1, 'spool_unreadable' = 2, 'ring_full' = 3, 'epoch_end' = 4, 'refused' = 5) COMMENT 'spool_full: a bound of the spool was reached while the collector was away. spool_unreadable: the disk did not give the batch back. ring_full: the ring buffer of the kernel was full. epoch_end: the agent ended without a word. refused: the collector refused the batch for its content, which is in refused_batches if its envelope could be read' CODEC(ZSTD(1));

ALTER TABLE {each connection_records} COMMENT COLUMN resets 'Which resets were part of it. sent: by this end, to end the connection or in answer to a segment that did not fit. received: from the other end. Of an end that had sent its FIN and had it acknowledged, one that close() sends is told unless data that came after the FIN hides it';

ALTER TABLE {rows ledger_samples} DROP PROJECTION IF EXISTS latest;

ALTER TABLE {rows ledger_samples} ADD PROJECTION IF NOT EXISTS latest
(
    SELECT
        agent_id, agent_epoch, stream, netns, toDate(observed_at),
        argMax(tuple(
            node, observed_at, opened, closed, open, untracked, unseen, lost, filtered, received, batching, unacknowledged,
            acknowledged, dropped, refused, superseded, missed, unsent, seeded, announced, witnessed, is_witnessed, ended,
            is_final, unmeasured, evicted, sampled_out, elsewhere
        ), tuple(is_final, opened, ended, acknowledged + dropped + refused, closed, missed, received_at, observed_at)),
        min(observed_at), min(received + announced), max(received + announced)
    GROUP BY agent_id, agent_epoch, stream, netns, toDate(observed_at)
);

ALTER TABLE {rows ledger_samples} MATERIALIZE PROJECTION latest;

ALTER TABLE {rows agent_samples} DROP PROJECTION IF EXISTS latest;

ALTER TABLE {rows agent_samples} ADD PROJECTION IF NOT EXISTS latest
(
    SELECT
        agent_id, agent_epoch,
        argMax(tuple(clock_offset_ns, clock_error_ns, spool_batches, spool_disk_failed, rival), received_at),
        max(received_at)
    GROUP BY agent_id, agent_epoch
);

ALTER TABLE {rows agent_samples} MATERIALIZE PROJECTION latest;
