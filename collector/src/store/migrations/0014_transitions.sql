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
