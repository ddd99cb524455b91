-- Every change of TCP state, where that is asked for, beside those that the records of finished connections tell.

CREATE TABLE IF NOT EXISTS {rows transition_events}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known' CODEC(ZSTD(1)),
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener, or is one' CODEC(ZSTD(1)),
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the state was entered, UTC' CODEC(Delta(8), ZSTD(1)),
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC' CODEC(Delta(8), ZSTD(1)),
    step UInt8 COMMENT 'Which state of the path it is: 1, 2, ... Those beyond the room of a record are all its last. 0: of a listener' CODEC(ZSTD(1)),
    from_state LowCardinality(String) COMMENT 'The state before' CODEC(ZSTD(1)),
    to_state LowCardinality(String) COMMENT 'The state that was entered' CODEC(ZSTD(1)),
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown' CODEC(T64, ZSTD(1)),
    comm LowCardinality(String) COMMENT 'The command name of the process' CODEC(ZSTD(1)),
    attribution Enum8('unknown' = 0, 'exact' = 1, 'listener' = 2, 'snapshot' = 3) COMMENT 'How much pid and comm are worth. exact: the process made a call on the socket. listener: the owner of the listener. snapshot: read from /proc when the agent started' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode)' CODEC(T64, ZSTD(1)),
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say' CODEC(T64, ZSTD(1)),
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    local_port UInt16 COMMENT 'The port of this end, 0 at SYN_SENT where the kernel chooses it' CODEC(Delta(2), ZSTD(1)),
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    remote_port UInt16 COMMENT 'The port of the other end' CODEC(Delta(2), ZSTD(1)),
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection' CODEC(Delta(8), ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(Delta(8), ZSTD(1)),
    {lease},
    PROJECTION batches
    (
        SELECT
            node, agent_id, agent_epoch, sequence, netns, toStartOfMinute(recorded_at),
            count(), min(recorded_at), max(recorded_at)
        GROUP BY node, agent_id, agent_epoch, sequence, netns, toStartOfMinute(recorded_at)
    )
)
ENGINE = {MergeTree}
PARTITION BY toDate(recorded_at)
ORDER BY (service, node, role, if(role = 'active', remote_port, local_port), recorded_at)
TTL toDateTime(recorded_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Changes of state of TCP sockets, as they happened: of those for which that was asked for';

{distributed transition_events};

ALTER TABLE {each connection_records} ADD COLUMN IF NOT EXISTS streamed UInt8 COMMENT 'Which states of path are in transition_events too: a bit each, the lowest for the first' CODEC(T64, ZSTD(1)) AFTER sequence;

ALTER TABLE {each ledger_samples} MODIFY COLUMN stream Enum8('connections' = 1, 'syscalls' = 3, 'transitions' = 10) COMMENT 'The kind of rows that are counted';

ALTER TABLE {each gap_records} MODIFY COLUMN stream Enum8('connections' = 1, 'gaps' = 2, 'syscalls' = 3, 'open_connections' = 4, 'listeners' = 5, 'overhead' = 6, 'namespaces' = 7, 'peers' = 8, 'cgroups' = 9, 'transitions' = 10) COMMENT 'The kind of rows that are missing';

CREATE OR REPLACE VIEW transitions{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC',
    at DateTime64(9, 'UTC') COMMENT 'When the state was entered, UTC',
    step UInt8 COMMENT 'Which state of the path it is: 1, 2, ...',
    from_state LowCardinality(String) COMMENT 'The state before. Empty for the opening, and where the states before were not recorded',
    to_state LowCardinality(String) COMMENT 'The state that was entered',
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    netns UInt32 COMMENT 'The network namespace (inode)',
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say',
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d',
    local_port UInt16 COMMENT 'The port of this end',
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d',
    remote_port UInt16 COMMENT 'The port of the other end',
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted this record, UTC',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts',
    boot_id LowCardinality(String) COMMENT 'One start of the machine',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch',
    is_streamed Bool COMMENT 'It came as it happened. Else the record of its connection told it, once that was closed'
)
AS SELECT
    node, service, role, opened_at, recorded_at AS at, step, from_state, to_state, pid, comm, netns, cgroup_id, local_ip,
    local_port, remote_ip, remote_port, recorded_at, cookie, agent_id, boot_id, agent_epoch, sequence,
    true AS is_streamed
FROM transition_events
UNION ALL
SELECT
    node, service, role, recorded_at - toIntervalMicrosecond(duration_us) AS opened_at,
    recorded_at - toIntervalMicrosecond(duration_us - us) AS at, toUInt8(of_path) AS step,
    if(of_path = 1 OR startsWith(entered, '...'), '', states[of_path - 1]) AS from_state,
    replaceOne(entered, '...', '') AS to_state, pid, comm, netns, cgroup_id, local_ip, local_port, remote_ip,
    remote_port, recorded_at, cookie, agent_id, boot_id, agent_epoch, sequence, false AS is_streamed
FROM
(
    SELECT
        node, service, role, pid, comm, netns, cgroup_id, local_ip, local_port, remote_ip, remote_port, recorded_at,
        duration_us, cookie, agent_id, boot_id, agent_epoch, sequence, streamed, path_us,
        splitByChar('>', path) AS states
    FROM connection_records
    WHERE is_final
) AS ends
ARRAY JOIN path_us AS us, arrayEnumerate(path_us) AS of_path, states AS entered
WHERE NOT bitTest(streamed, of_path - 1)
COMMENT 'State changes of TCP connections: one row each. Those of finished connections, and where they are streamed those of open ones and of listeners';

CREATE OR REPLACE VIEW gaps{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'The start of the agent whose rows are missing',
    stream Enum8('connections' = 1, 'gaps' = 2, 'syscalls' = 3, 'open_connections' = 4, 'listeners' = 5, 'overhead' = 6, 'namespaces' = 7, 'peers' = 8, 'cgroups' = 9, 'transitions' = 10) COMMENT 'The kind of rows that are missing',
    reason Enum8('spool_full' = 1, 'spool_unreadable' = 2, 'ring_full' = 3, 'epoch_end' = 4) COMMENT 'spool_full: a bound of the spool was reached while the collector was away. spool_unreadable: the disk did not give the batch back. ring_full: the ring buffer of the kernel was full. epoch_end: the agent ended without a word',
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

CREATE OR REPLACE VIEW ledger{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    stream Enum8('connections' = 1, 'syscalls' = 3, 'transitions' = 10) COMMENT 'The kind of rows that are counted',
    netns UInt32 COMMENT 'The network namespace (inode), 0 for what belongs to none that is observed',
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent read its counters, UTC',
    opened UInt64 COMMENT 'Opened, in the kernel',
    closed UInt64 COMMENT 'Closed, in the kernel',
    open UInt64 COMMENT 'In the map of the kernel now',
    untracked UInt64 COMMENT 'Opened while the map was full',
    unseen UInt64 COMMENT 'Closed without an entry in the map: older than the agent, or untracked',
    lost UInt64 COMMENT 'The ring buffer was full',
    filtered UInt64 COMMENT 'Closed, and hidden by a filter',
    received UInt64 COMMENT 'Received from the kernel by the agent',
    batching UInt64 COMMENT 'In a batch that is not sealed yet',
    unacknowledged UInt64 COMMENT 'In sealed batches that the collector has not acknowledged',
    acknowledged UInt64 COMMENT 'Acknowledged by the collector: rows of the store',
    dropped UInt64 COMMENT 'Discarded by the agent, its queue was full',
    refused UInt64 COMMENT 'Refused by the collector for their content',
    superseded UInt64 COMMENT 'Ends that the hook missed, known when their socket was opened again',
    missed UInt64 COMMENT 'Events that no program saw, of all namespaces together (netns 0)',
    unsent UInt64 COMMENT 'Opened, and ended before a SYN left: connect() found no route or no free port, or was forbidden',
    seeded UInt64 COMMENT 'Open before the agent was, or opened unseen, and found by a survey',
    announced UInt64 COMMENT 'First records of connections that stay open, made by the agent',
    witnessed UInt64 COMMENT 'Opened by the SNMP counters of the namespace (ActiveOpens, PassiveOpens) since the start of the agent',
    is_witnessed Bool COMMENT 'The SNMP counters of the namespace could be read',
    ended UInt64 COMMENT 'Of a start that ended without a word: what was open, in the ring or in memory then, or opened before the next start. Gaps of the reason epoch_end',
    is_final Bool COMMENT 'Nothing of this start will change any more',
    unmeasured UInt64 COMMENT 'Of the stream of syscalls: measured calls whose latency found no place in the table of the kernel',
    evicted UInt64 COMMENT 'Of the stream of syscalls: processes that were idle while places were scarce, and lost theirs until their next call',
    sampled_out UInt64 COMMENT 'Opened, and not followed: only one in so many was',
    elsewhere UInt64 COMMENT 'Opened in network namespaces that the configuration leaves out, all together (netns 0). Of the stream of syscalls: calls from there',
    rows_stored UInt64 COMMENT 'Rows of this stream, agent, epoch and namespace that are in the store. Of the stream of syscalls: the calls in them',
    kernel_difference Int64 COMMENT 'opened + seeded - closed - open - untracked - superseded - sampled_out - ended: 0 if the ledger closes',
    ring_difference Int64 COMMENT 'closed - lost - filtered - received: what is in the ring, 0 once the agent has stopped',
    agent_difference Int64 COMMENT 'received + announced - batching - unacknowledged - acknowledged - dropped - refused: 0 if the ledger closes',
    store_difference Int64 COMMENT 'rows_stored - acknowledged: rows that are stored and whose acknowledgement is on its way, 0 once the agent has stopped',
    witness_difference Int64 COMMENT 'witnessed - (opened - unsent), 0 where it is not witnessed. Positive: the hook missed so many. Negative: opens that SNMP does not count (restored connections, SYNs that a security module refused)'
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
    sample.unsent AS unsent,
    sample.seeded AS seeded,
    sample.announced AS announced,
    sample.witnessed AS witnessed,
    sample.is_witnessed AS is_witnessed,
    sample.ended AS ended,
    sample.is_final AS is_final,
    sample.unmeasured AS unmeasured,
    sample.evicted AS evicted,
    sample.sampled_out AS sampled_out,
    sample.elsewhere AS elsewhere,
    stored.rows_stored AS rows_stored,
    toInt64(opened) + seeded - closed - open - untracked - superseded - sampled_out - ended AS kernel_difference,
    toInt64(closed) - lost - filtered - received AS ring_difference,
    toInt64(received) + announced - batching - unacknowledged - acknowledged - dropped - refused AS agent_difference,
    toInt64(rows_stored) - acknowledged AS store_difference,
    if(is_witnessed, toInt64(witnessed) - opened + unsent, 0) AS witness_difference
FROM
(
    -- By what was counted, which only grows, and not by the time: the clock of a node may be set back.
    SELECT * FROM ledger_samples
    ORDER BY is_final DESC, opened DESC, ended DESC, acknowledged + dropped + refused DESC, closed DESC, observed_at DESC
    LIMIT 1 BY agent_id, agent_epoch, stream, netns
) AS sample
LEFT JOIN
(
    SELECT
        agent_id, agent_epoch, CAST('connections' AS Enum8('connections' = 1, 'syscalls' = 3, 'transitions' = 10)) AS stream, netns,
        count() AS rows_stored
    FROM connection_records
    GROUP BY agent_id, agent_epoch, netns
    UNION ALL
    SELECT
        agent_id, agent_epoch, CAST('syscalls' AS Enum8('connections' = 1, 'syscalls' = 3, 'transitions' = 10)) AS stream,
        toUInt32(0) AS netns, sum(calls) AS rows_stored
    FROM syscall_samples
    GROUP BY agent_id, agent_epoch
    UNION ALL
    SELECT
        agent_id, agent_epoch, CAST('transitions' AS Enum8('connections' = 1, 'syscalls' = 3, 'transitions' = 10)) AS stream, netns, count() AS rows_stored
    FROM transition_events
    GROUP BY agent_id, agent_epoch, netns
) AS stored USING (agent_id, agent_epoch, stream, netns)
COMMENT 'The latest counters of each start of each agent, the rows in the store beside them, and whether they agree';
