-- What is missing, and why: gaps are rows like any other. And the ledger with its differences.

ALTER TABLE ledger_samples
    ADD COLUMN IF NOT EXISTS superseded UInt64 COMMENT 'Ends that the hook missed, known when their socket was opened again' CODEC(T64, ZSTD(1)),
    ADD COLUMN IF NOT EXISTS missed UInt64 COMMENT 'Events that no program saw, of all namespaces together (netns 0): an interrupt brought one while the program ran on the same CPU' CODEC(T64, ZSTD(1));

CREATE TABLE IF NOT EXISTS gap_records
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'The start of the agent whose rows are missing' CODEC(T64, ZSTD(1)),
    stream Enum8('connections' = 1, 'gaps' = 2) COMMENT 'The kind of rows that are missing' CODEC(ZSTD(1)),
    reason Enum8('spool_full' = 1, 'spool_unreadable' = 2, 'ring_full' = 3, 'epoch_end' = 4) COMMENT 'spool_full: a bound of the spool was reached while the collector was away. spool_unreadable: the disk did not give the batch back. ring_full: the ring buffer of the kernel was full. epoch_end: the agent ended without a word' CODEC(ZSTD(1)),
    rows UInt64 COMMENT 'Rows that are missing' CODEC(T64, ZSTD(1)),
    first_sequence UInt64 COMMENT 'The first batch that they were in, 0 where they never were in one' CODEC(T64, ZSTD(1)),
    last_sequence UInt64 COMMENT 'The last batch that they were in, 0 where they never were in one' CODEC(T64, ZSTD(1)),
    first_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the first of them, UTC' CODEC(Delta(8), ZSTD(1)),
    last_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the last of them, UTC' CODEC(Delta(8), ZSTD(1)),
    recorded_at DateTime64(9, 'UTC') COMMENT 'The latest last_at of the batch that reported the gap, UTC' CODEC(Delta(8), ZSTD(1)),
    reported_epoch UInt64 COMMENT 'The start of the agent that reported the gap' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that reported the gap: 1, 2, ... within agent_id and reported_epoch' CODEC(T64, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(recorded_at)
ORDER BY (node, agent_id, stream, first_at)
TTL toDateTime(recorded_at) + INTERVAL 30 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1
COMMENT 'Rows that will never be here: which, from when to when, and why';

CREATE OR REPLACE VIEW gaps
(
    node LowCardinality(String) COMMENT 'The name of the node',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'The start of the agent whose rows are missing',
    stream Enum8('connections' = 1, 'gaps' = 2) COMMENT 'The kind of rows that are missing',
    reason Enum8('spool_full' = 1, 'spool_unreadable' = 2, 'ring_full' = 3, 'epoch_end' = 4) COMMENT 'spool_full: a bound of the spool was reached while the collector was away. spool_unreadable: the disk did not give the batch back. ring_full: the ring buffer of the kernel was full. epoch_end: the agent ended without a word',
    rows UInt64 COMMENT 'Rows that are missing',
    first_sequence UInt64 COMMENT 'The first batch that they were in, 0 where they never were in one',
    last_sequence UInt64 COMMENT 'The last batch that they were in, 0 where they never were in one',
    first_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the first of them, UTC',
    last_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the last of them, UTC'
)
AS SELECT node, agent_id, agent_epoch, stream, reason, rows, first_sequence, last_sequence, first_at, last_at
FROM gap_records
COMMENT 'Rows that will never be here: which, from when to when, and why';

CREATE OR REPLACE VIEW ledger
(
    node LowCardinality(String) COMMENT 'The name of the node',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    stream Enum8('connections' = 1) COMMENT 'The kind of rows that are counted',
    netns UInt32 COMMENT 'The network namespace (inode), 0 for what belongs to none that is observed',
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent read its counters, UTC',
    opened UInt64 COMMENT 'Opened, in the kernel',
    closed UInt64 COMMENT 'Closed, in the kernel',
    open UInt64 COMMENT 'In the map of the kernel now',
    untracked UInt64 COMMENT 'Opened while the map was full',
    unseen UInt64 COMMENT 'Closed without an entry in the map: older than the agent, or untracked',
    lost UInt64 COMMENT 'The ring buffer was full',
    filtered UInt64 COMMENT 'Hidden by the configuration',
    received UInt64 COMMENT 'Received from the kernel by the agent',
    batching UInt64 COMMENT 'In a batch that is not sealed yet',
    unacknowledged UInt64 COMMENT 'In sealed batches that the collector has not acknowledged',
    acknowledged UInt64 COMMENT 'Acknowledged by the collector: rows of the store',
    dropped UInt64 COMMENT 'Discarded by the agent, its queue was full',
    refused UInt64 COMMENT 'Refused by the collector for their content',
    superseded UInt64 COMMENT 'Ends that the hook missed, known when their socket was opened again',
    missed UInt64 COMMENT 'Events that no program saw, of all namespaces together (netns 0)',
    rows_stored UInt64 COMMENT 'Rows of this stream, agent, epoch and namespace that are in the store',
    kernel_difference Int64 COMMENT 'opened - closed - open - untracked - superseded: 0 if the ledger closes',
    ring_difference Int64 COMMENT 'closed - lost - received: what is in the ring, 0 once the agent has stopped',
    agent_difference Int64 COMMENT 'received - batching - unacknowledged - acknowledged - dropped - refused: 0 if the ledger closes',
    store_difference Int64 COMMENT 'rows_stored - acknowledged: rows that are stored and whose acknowledgement is on its way, 0 once the agent has stopped'
)
AS SELECT
    sample.node AS node,
    sample.agent_id AS agent_id,
    sample.agent_epoch AS agent_epoch,
    sample.stream AS stream,
    sample.netns AS netns,
    sample.observed_at AS observed_at,
    sample.opened AS opened,
    sample.closed AS closed,
    sample.open AS open,
    sample.untracked AS untracked,
    sample.unseen AS unseen,
    sample.lost AS lost,
    sample.filtered AS filtered,
    sample.received AS received,
    sample.batching AS batching,
    sample.unacknowledged AS unacknowledged,
    sample.acknowledged AS acknowledged,
    sample.dropped AS dropped,
    sample.refused AS refused,
    sample.superseded AS superseded,
    sample.missed AS missed,
    stored.rows_stored AS rows_stored,
    toInt64(opened) - closed - open - untracked - superseded AS kernel_difference,
    toInt64(closed) - lost - received AS ring_difference,
    toInt64(received) - batching - unacknowledged - acknowledged - dropped - refused AS agent_difference,
    toInt64(rows_stored) - acknowledged AS store_difference
FROM
(
    SELECT * FROM ledger_samples
    ORDER BY observed_at DESC LIMIT 1 BY agent_id, agent_epoch, stream, netns
) AS sample
LEFT JOIN
(
    SELECT agent_id, agent_epoch, netns, count() AS rows_stored
    FROM connection_records
    GROUP BY agent_id, agent_epoch, netns
) AS stored USING (agent_id, agent_epoch, netns)
COMMENT 'The latest counters of each start of each agent, the rows in the store beside them, and whether they agree';

CREATE TABLE IF NOT EXISTS agent_samples
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent reported, by its own clock, UTC' CODEC(Delta(8), ZSTD(1)),
    clock_offset_ns Int64 COMMENT 'The clock of the node against that of the collector, nanoseconds. Positive: the node is ahead' CODEC(T64, ZSTD(1)),
    clock_error_ns UInt64 COMMENT 'How far off clock_offset_ns may be, nanoseconds. 0 until it was measured' CODEC(T64, ZSTD(1)),
    spool_batches UInt64 COMMENT 'Batches that wait on the node for their acknowledgement' CODEC(T64, ZSTD(1)),
    spool_memory_bytes UInt64 COMMENT 'Of these, bytes in memory' CODEC(T64, ZSTD(1)),
    spool_disk_bytes UInt64 COMMENT 'Bytes of the segments on disk' CODEC(T64, ZSTD(1)),
    spool_disk_failed Bool COMMENT 'The disk of the spool failed: what waits is in memory only' CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(observed_at)
ORDER BY (agent_id, agent_epoch, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1
COMMENT 'Where the agents stand: one row each time that one reports';

CREATE OR REPLACE VIEW nodes
(
    node LowCardinality(String) COMMENT 'The name of the node',
    up Bool COMMENT 'The agent was heard of within the last 15 seconds',
    last_seen DateTime64(9, 'UTC') COMMENT 'When the agent was last heard of, UTC',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    connected_at DateTime64(9, 'UTC') COMMENT 'When the agent said hello to the collector, UTC',
    remote String COMMENT 'Where it connected from, address and port',
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the node, from the configuration of its agent',
    version LowCardinality(String) COMMENT 'The version of the agent',
    boot_id LowCardinality(String) COMMENT 'One start of the machine',
    kernel LowCardinality(String) COMMENT 'The release of the kernel (uname -r)',
    architecture LowCardinality(String) COMMENT 'The architecture (uname -m)',
    observed_netns LowCardinality(String) COMMENT 'What the agent observes: all, or the inode of one network namespace',
    missing_features Array(String) COMMENT 'What the kernel or the capabilities of the agent do not allow',
    clock_offset_ns Int64 COMMENT 'The clock of the node against that of the collector, nanoseconds. Positive: the node is ahead',
    clock_error_ns UInt64 COMMENT 'How far off clock_offset_ns may be, nanoseconds. 0 until it was measured',
    spool_batches UInt64 COMMENT 'Batches that wait on the node for their acknowledgement',
    spool_disk_failed Bool COMMENT 'The disk of the spool failed: what waits is in memory only'
)
AS SELECT
    session.node AS node,
    toBool(last_seen > now64(9, 'UTC') - INTERVAL 15 SECOND) AS up,
    greatest(session.connected_at, sample.observed_at) AS last_seen,
    session.agent_id AS agent_id,
    session.agent_epoch AS agent_epoch,
    session.connected_at AS connected_at,
    session.remote AS remote,
    session.labels AS labels,
    session.version AS version,
    session.boot_id AS boot_id,
    session.kernel AS kernel,
    session.architecture AS architecture,
    session.observed_netns AS observed_netns,
    session.missing_features AS missing_features,
    sample.clock_offset_ns AS clock_offset_ns,
    sample.clock_error_ns AS clock_error_ns,
    sample.spool_batches AS spool_batches,
    sample.spool_disk_failed AS spool_disk_failed
FROM (SELECT * FROM node_sessions ORDER BY connected_at DESC LIMIT 1 BY node) AS session
LEFT JOIN
(
    SELECT
        agent_id, agent_epoch, observed_at, clock_offset_ns, clock_error_ns, spool_batches, spool_disk_failed
    FROM agent_samples
    ORDER BY observed_at DESC LIMIT 1 BY agent_id, agent_epoch
) AS sample USING (agent_id, agent_epoch)
COMMENT 'The nodes: the latest session of each';
