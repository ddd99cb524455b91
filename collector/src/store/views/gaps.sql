CREATE OR REPLACE VIEW gaps{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'The start of the agent whose rows are missing',
    stream Enum8('connections' = 1, 'gaps' = 2, 'syscalls' = 3, 'open_connections' = 4, 'listeners' = 5, 'overhead' = 6, 'namespaces' = 7, 'peers' = 8, 'cgroups' = 9, 'transitions' = 10) COMMENT 'The kind of rows that are missing',
    reason Enum8('spool_full' = 1, 'spool_unreadable' = 2, 'ring_full' = 3, 'epoch_end' = 4, 'refused' = 5) COMMENT 'spool_full: a bound of the spool was reached while the collector was away. spool_unreadable: the disk did not give the batch back. ring_full: the ring buffer of the kernel was full. epoch_end: the agent ended without a word. refused: the collector refused the batch for its content, which is in refused_batches if its envelope could be read',
    netns UInt32 COMMENT 'The network namespace (inode) that they are from, 0 where it is not told apart',
    rows UInt64 COMMENT 'Rows that are missing',
    at_least Bool COMMENT 'There may be more: what would tell is gone too',
    first_sequence UInt64 COMMENT 'The first batch that they were in, 0 where they never were in one',
    last_sequence UInt64 COMMENT 'The last batch that they were in, 0 where they never were in one',
    first_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the first of them, UTC',
    last_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the last of them, UTC'
)
AS SELECT
    node, agent_id, agent_epoch, stream, reason, netns, rows, at_least, first_sequence, last_sequence, first_at, last_at
FROM gap_records
COMMENT 'Rows that will never be here: which, from when to when, and why';
