-- The tables of connections, of the agents' sessions and of their ledger, and what people see of them.
--
-- Names are those of the current database. A statement ends with a semicolon at the end of a line. Each can run
-- again, so that a crash between two of them is harmless.

CREATE TABLE IF NOT EXISTS connection_records
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where no rule names one' CODEC(ZSTD(1)),
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener' CODEC(ZSTD(1)),
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'How the attempt to open the connection ended' CODEC(ZSTD(1)),
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted this record, UTC' CODEC(Delta(8), ZSTD(1)),
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC' CODEC(Delta(8), ZSTD(1)),
    decided_at DateTime64(9, 'UTC') COMMENT 'When the handshake ended, well or badly, UTC. 1970-01-01 while it is pending' CODEC(Delta(8), ZSTD(1)),
    closed_at DateTime64(9, 'UTC') COMMENT 'When this end was closed, UTC. 1970-01-01 while it is open' CODEC(Delta(8), ZSTD(1)),
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown' CODEC(T64, ZSTD(1)),
    comm LowCardinality(String) COMMENT 'The command name of the process' CODEC(ZSTD(1)),
    attribution Enum8('unknown' = 0, 'exact' = 1, 'listener' = 2, 'snapshot' = 3) COMMENT 'How much pid and comm are worth. exact: the process made a call on the socket. listener: the owner of the listener. snapshot: read from /proc when the agent started' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode)' CODEC(T64, ZSTD(1)),
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say' CODEC(T64, ZSTD(1)),
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    local_port UInt16 COMMENT 'The port of this end' CODEC(T64, ZSTD(1)),
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    remote_port UInt16 COMMENT 'The port of the other end' CODEC(T64, ZSTD(1)),
    connect_us UInt64 COMMENT 'From the opening until the handshake ended, microseconds. 0 while it is pending' CODEC(T64, ZSTD(1)),
    duration_us UInt64 COMMENT 'From the opening until this end was closed, microseconds. 0 while it is open' CODEC(T64, ZSTD(1)),
    bytes_sent UInt64 COMMENT 'Payload that left, without retransmissions, bytes' CODEC(T64, ZSTD(1)),
    bytes_received UInt64 COMMENT 'Payload that arrived in order, bytes' CODEC(T64, ZSTD(1)),
    segments_sent UInt32 COMMENT 'Segments that left, retransmissions included' CODEC(T64, ZSTD(1)),
    segments_received UInt32 COMMENT 'Segments that arrived' CODEC(T64, ZSTD(1)),
    retransmits UInt32 COMMENT 'Segments that were sent again, SYNs included' CODEC(T64, ZSTD(1)),
    syn_retransmits UInt8 COMMENT 'Segments that were sent again before the handshake ended' CODEC(T64, ZSTD(1)),
    srtt_us UInt32 COMMENT 'Smoothed round trip time at the end, microseconds. 0 where none was measured' CODEC(T64, ZSTD(1)),
    errno UInt16 COMMENT 'The error of the socket (sk_err), 0 for none' CODEC(T64, ZSTD(1)),
    local_cause LowCardinality(String) COMMENT 'Why it ended as it did, as far as this node alone can tell. Empty where it cannot' CODEC(ZSTD(1)),
    close_reason Enum8('none' = 0, 'finished' = 1, 'reset_by_peer' = 2, 'reset_by_process' = 3, 'timed_out' = 4, 'unreachable' = 5, 'failed' = 6) COMMENT 'How the established connection ended. none: still open, or never established' CODEC(ZSTD(1)),
    path LowCardinality(String) COMMENT 'The TCP states that this end went through, joined by >' CODEC(ZSTD(1)),
    path_us Array(UInt64) COMMENT 'When each state of path was entered, microseconds since the opening' CODEC(T64, ZSTD(1)),
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection' CODEC(Delta(8), ZSTD(1)),
    is_first Bool COMMENT 'The first record of its connection: a row of attempts' CODEC(ZSTD(1)),
    is_final Bool COMMENT 'The last record of its connection: a row of connections' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(Delta(8), ZSTD(1)),
    INDEX agent_epochs agent_epoch TYPE minmax,
    INDEX sequences sequence TYPE minmax
)
ENGINE = MergeTree
PARTITION BY toDate(recorded_at)
ORDER BY (node, service, role, recorded_at)
TTL toDateTime(recorded_at) + INTERVAL 30 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1
COMMENT 'Ends of TCP connections: one row a record, which is the first, the last, or both of its connection';

CREATE TABLE IF NOT EXISTS node_sessions
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    connected_at DateTime64(9, 'UTC') COMMENT 'When the agent said hello to the collector, UTC' CODEC(Delta(8), ZSTD(1)),
    remote String COMMENT 'Where it connected from, address and port' CODEC(ZSTD(1)),
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the node, from the configuration of its agent' CODEC(ZSTD(1)),
    version LowCardinality(String) COMMENT 'The version of the agent' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    kernel LowCardinality(String) COMMENT 'The release of the kernel (uname -r)' CODEC(ZSTD(1)),
    architecture LowCardinality(String) COMMENT 'The architecture (uname -m)' CODEC(ZSTD(1)),
    observed_netns LowCardinality(String) COMMENT 'What the agent observes: all, or the inode of one network namespace' CODEC(ZSTD(1)),
    missing_features Array(String) COMMENT 'What the kernel or the capabilities of the agent do not allow' CODEC(ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(connected_at)
ORDER BY (node, agent_id, connected_at)
TTL toDateTime(connected_at) + INTERVAL 30 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1
COMMENT 'One row each time that an agent connected';

CREATE TABLE IF NOT EXISTS ledger_samples
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    stream Enum8('connections' = 1) COMMENT 'The kind of rows that are counted' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode), 0 for what is counted for all together' CODEC(T64, ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent read its counters, UTC' CODEC(Delta(8), ZSTD(1)),
    opened UInt64 COMMENT 'Opened, in the kernel' CODEC(T64, ZSTD(1)),
    closed UInt64 COMMENT 'Closed, in the kernel' CODEC(T64, ZSTD(1)),
    open UInt64 COMMENT 'In the map of the kernel now' CODEC(T64, ZSTD(1)),
    untracked UInt64 COMMENT 'Opened while the map was full' CODEC(T64, ZSTD(1)),
    unseen UInt64 COMMENT 'Closed without an entry in the map: older than the agent, or untracked' CODEC(T64, ZSTD(1)),
    lost UInt64 COMMENT 'The ring buffer was full' CODEC(T64, ZSTD(1)),
    filtered UInt64 COMMENT 'Hidden by the configuration' CODEC(T64, ZSTD(1)),
    received UInt64 COMMENT 'Received from the kernel by the agent' CODEC(T64, ZSTD(1)),
    batching UInt64 COMMENT 'In a batch that is not sealed yet' CODEC(T64, ZSTD(1)),
    unacknowledged UInt64 COMMENT 'In sealed batches that the collector has not acknowledged' CODEC(T64, ZSTD(1)),
    acknowledged UInt64 COMMENT 'Acknowledged by the collector: rows of the store' CODEC(T64, ZSTD(1)),
    dropped UInt64 COMMENT 'Discarded by the agent, its queue was full' CODEC(T64, ZSTD(1)),
    refused UInt64 COMMENT 'Refused by the collector for their content' CODEC(T64, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toDate(observed_at)
ORDER BY (agent_id, agent_epoch, stream, netns, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 1000,
    ttl_only_drop_parts = 1
COMMENT 'What the agents counted: cumulative since the start of each agent, except open, batching and unacknowledged';

CREATE OR REPLACE VIEW connections
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where no rule names one',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'How the attempt to open the connection ended',
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted this record, UTC',
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC',
    decided_at DateTime64(9, 'UTC') COMMENT 'When the handshake ended, well or badly, UTC. 1970-01-01 while it is pending',
    closed_at DateTime64(9, 'UTC') COMMENT 'When this end was closed, UTC. 1970-01-01 while it is open',
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    attribution Enum8('unknown' = 0, 'exact' = 1, 'listener' = 2, 'snapshot' = 3) COMMENT 'How much pid and comm are worth. exact: the process made a call on the socket. listener: the owner of the listener. snapshot: read from /proc when the agent started',
    netns UInt32 COMMENT 'The network namespace (inode)',
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say',
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d',
    local_port UInt16 COMMENT 'The port of this end',
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d',
    remote_port UInt16 COMMENT 'The port of the other end',
    connect_us UInt64 COMMENT 'From the opening until the handshake ended, microseconds. 0 while it is pending',
    duration_us UInt64 COMMENT 'From the opening until this end was closed, microseconds. 0 while it is open',
    bytes_sent UInt64 COMMENT 'Payload that left, without retransmissions, bytes',
    bytes_received UInt64 COMMENT 'Payload that arrived in order, bytes',
    segments_sent UInt32 COMMENT 'Segments that left, retransmissions included',
    segments_received UInt32 COMMENT 'Segments that arrived',
    retransmits UInt32 COMMENT 'Segments that were sent again, SYNs included',
    syn_retransmits UInt8 COMMENT 'Segments that were sent again before the handshake ended',
    srtt_us UInt32 COMMENT 'Smoothed round trip time at the end, microseconds. 0 where none was measured',
    errno UInt16 COMMENT 'The error of the socket (sk_err), 0 for none',
    local_cause LowCardinality(String) COMMENT 'Why it ended as it did, as far as this node alone can tell. Empty where it cannot',
    close_reason Enum8('none' = 0, 'finished' = 1, 'reset_by_peer' = 2, 'reset_by_process' = 3, 'timed_out' = 4, 'unreachable' = 5, 'failed' = 6) COMMENT 'How the established connection ended. none: still open, or never established',
    path LowCardinality(String) COMMENT 'The TCP states that this end went through, joined by >',
    path_us Array(UInt64) COMMENT 'When each state of path was entered, microseconds since the opening',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts',
    boot_id LowCardinality(String) COMMENT 'One start of the machine',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch'
)
AS SELECT
    node, service, role, outcome, recorded_at, opened_at, decided_at, closed_at, pid, comm,
    attribution, netns, cgroup_id, local_ip, local_port, remote_ip, remote_port, connect_us,
    duration_us, bytes_sent, bytes_received, segments_sent, segments_received, retransmits,
    syn_retransmits, srtt_us, errno, local_cause, close_reason, path, path_us, cookie, agent_id,
    boot_id, agent_epoch, sequence
FROM connection_records
WHERE is_final
COMMENT 'Ends of TCP connections that are finished: one row each';

CREATE OR REPLACE VIEW attempts
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where no rule names one',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'How the attempt to open the connection ended',
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted this record, UTC',
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC',
    decided_at DateTime64(9, 'UTC') COMMENT 'When the handshake ended, well or badly, UTC. 1970-01-01 while it is pending',
    closed_at DateTime64(9, 'UTC') COMMENT 'When this end was closed, UTC. 1970-01-01 while it is open',
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    attribution Enum8('unknown' = 0, 'exact' = 1, 'listener' = 2, 'snapshot' = 3) COMMENT 'How much pid and comm are worth. exact: the process made a call on the socket. listener: the owner of the listener. snapshot: read from /proc when the agent started',
    netns UInt32 COMMENT 'The network namespace (inode)',
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say',
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d',
    local_port UInt16 COMMENT 'The port of this end',
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d',
    remote_port UInt16 COMMENT 'The port of the other end',
    connect_us UInt64 COMMENT 'From the opening until the handshake ended, microseconds. 0 while it is pending',
    syn_retransmits UInt8 COMMENT 'Segments that were sent again before the handshake ended',
    errno UInt16 COMMENT 'The error of the socket (sk_err), 0 for none',
    local_cause LowCardinality(String) COMMENT 'Why it ended as it did, as far as this node alone can tell. Empty where it cannot',
    path LowCardinality(String) COMMENT 'The TCP states that this end went through, joined by >',
    path_us Array(UInt64) COMMENT 'When each state of path was entered, microseconds since the opening',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts',
    boot_id LowCardinality(String) COMMENT 'One start of the machine',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch'
)
AS SELECT
    node, service, role, outcome, recorded_at, opened_at, decided_at, closed_at, pid, comm,
    attribution, netns, cgroup_id, local_ip, local_port, remote_ip, remote_port, connect_us,
    syn_retransmits, errno, local_cause, path, path_us, cookie, agent_id, boot_id, agent_epoch,
    sequence
FROM connection_records
WHERE is_first
COMMENT 'Attempts to open TCP connections: one row each, at the time it was decided';

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
    missing_features Array(String) COMMENT 'What the kernel or the capabilities of the agent do not allow'
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
    session.missing_features AS missing_features
FROM (SELECT * FROM node_sessions ORDER BY connected_at DESC LIMIT 1 BY node) AS session
LEFT JOIN
(
    SELECT agent_id, agent_epoch, max(observed_at) AS observed_at
    FROM ledger_samples
    GROUP BY agent_id, agent_epoch
) AS sample USING (agent_id, agent_epoch)
COMMENT 'The nodes: the latest session of each';

CREATE OR REPLACE VIEW ledger
(
    node LowCardinality(String) COMMENT 'The name of the node',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    stream Enum8('connections' = 1) COMMENT 'The kind of rows that are counted',
    netns UInt32 COMMENT 'The network namespace (inode), 0 for what is counted for all together',
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
    rows_stored UInt64 COMMENT 'Rows of this stream, agent, epoch and namespace that are in the store'
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
    stored.rows_stored AS rows_stored
FROM
(
    SELECT * FROM ledger_samples
    ORDER BY observed_at DESC LIMIT 1 BY agent_id, agent_epoch, stream, netns
) AS sample
LEFT JOIN
(
    SELECT agent_id, agent_epoch, netns, count() AS rows_stored
    FROM connection_records
    GROUP BY GROUPING SETS ((agent_id, agent_epoch, netns), (agent_id, agent_epoch))
) AS stored USING (agent_id, agent_epoch, netns)
COMMENT 'The latest counters of each start of each agent, and the rows in the store beside them';
