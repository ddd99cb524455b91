CREATE OR REPLACE VIEW listeners{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent looked, UTC',
    local_ip IPv6 COMMENT 'The address that it listens on, IPv4 as ::ffff:a.b.c.d; :: or ::ffff:0.0.0.0: every one',
    local_port UInt16 COMMENT 'The port that it listens on',
    pid UInt32 COMMENT 'The process that called listen() (thread group id, in the initial pid namespace), 0 where unknown',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    attribution Enum8('unknown' = 0, 'exact' = 1, 'listener' = 2, 'snapshot' = 3) COMMENT 'How much pid and comm are worth. listener: it was seen to call listen(). snapshot: read from /proc when the agent started',
    netns UInt32 COMMENT 'The network namespace (inode)',
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say',
    backlog UInt32 COMMENT 'Connections that wait for accept()',
    backlog_limit UInt32 COMMENT 'How many may wait: the queue is full when more do',
    drops UInt32 COMMENT 'Connections that it turned away since it listens, most often because its queue was full',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts',
    namespace_overflows Nullable(UInt64) COMMENT 'Connections that found the queue of any listener of the network namespace full, since that began (TcpExt ListenOverflows). NULL where it cannot be read',
    namespace_drops Nullable(UInt64) COMMENT 'Connections that listeners of the network namespace turned away, for whatever reason, since that began (TcpExt ListenDrops). NULL where it cannot be read'
)
AS SELECT
    node, service, observed_at, local_ip, local_port, pid, comm, attribution, netns, cgroup_id, backlog, backlog_limit,
    drops, cookie, agent_id, namespace_overflows, namespace_drops
FROM listener_samples
COMMENT 'Listeners and their queues: one row for each each time that an agent looked, every 10 seconds';
