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
