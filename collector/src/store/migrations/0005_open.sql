-- What is open on the nodes, as it stood when the agents looked: connections, attempts that wait, and listeners.

CREATE TABLE IF NOT EXISTS {rows connection_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known' CODEC(ZSTD(1)),
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener' CODEC(ZSTD(1)),
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'established, or pending: the attempt waits for its answer' CODEC(ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent looked, UTC' CODEC(Delta(8), ZSTD(1)),
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC. Of a connection that is older than its agent: when it was found' CODEC(Delta(8), ZSTD(1)),
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown' CODEC(T64, ZSTD(1)),
    comm LowCardinality(String) COMMENT 'The command name of the process' CODEC(ZSTD(1)),
    attribution Enum8('unknown' = 0, 'exact' = 1, 'listener' = 2, 'snapshot' = 3) COMMENT 'How much pid and comm are worth. exact: the process made a call on the socket. listener: the owner of the listener. snapshot: read from /proc when the agent started' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode)' CODEC(T64, ZSTD(1)),
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say' CODEC(T64, ZSTD(1)),
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    local_port UInt16 COMMENT 'The port of this end' CODEC(Delta(2), ZSTD(1)),
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    remote_port UInt16 COMMENT 'The port of the other end' CODEC(Delta(2), ZSTD(1)),
    connect_us UInt64 COMMENT 'From the opening until the handshake ended, microseconds. 0 while it is pending' CODEC(T64, ZSTD(1)),
    bytes_sent UInt64 COMMENT 'Payload that left so far, without retransmissions, bytes' CODEC(T64, ZSTD(1)),
    bytes_received UInt64 COMMENT 'Payload that arrived in order so far, bytes' CODEC(T64, ZSTD(1)),
    segments_sent UInt32 COMMENT 'Segments that left so far, retransmissions included' CODEC(T64, ZSTD(1)),
    segments_received UInt32 COMMENT 'Segments that arrived so far' CODEC(T64, ZSTD(1)),
    retransmits UInt32 COMMENT 'Segments that were sent again so far, SYNs included' CODEC(T64, ZSTD(1)),
    syn_retransmits UInt8 COMMENT 'Segments that were sent again before the handshake ended' CODEC(T64, ZSTD(1)),
    srtt_us UInt32 COMMENT 'Smoothed round trip time now, microseconds. 0 where none was measured' CODEC(T64, ZSTD(1)),
    path LowCardinality(String) COMMENT 'The TCP states so far, in order' CODEC(ZSTD(1)),
    weight UInt32 COMMENT 'The row stands for so many connections: a node with many shows always the same part of them' CODEC(T64, ZSTD(1)),
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection' CODEC(T64, ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(T64, ZSTD(1)),
    {lease}
)
ENGINE = {MergeTree}
PARTITION BY toDate(observed_at)
ORDER BY (node, agent_id, agent_epoch, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Connections and attempts that were open when an agent looked: every 10 seconds, those that wait every second';

{distributed connection_samples};

CREATE TABLE IF NOT EXISTS {rows listener_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known' CODEC(ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent looked, UTC' CODEC(Delta(8), ZSTD(1)),
    local_ip IPv6 COMMENT 'The address that it listens on, IPv4 as ::ffff:a.b.c.d; :: or ::ffff:0.0.0.0: every one' CODEC(ZSTD(1)),
    local_port UInt16 COMMENT 'The port that it listens on' CODEC(Delta(2), ZSTD(1)),
    pid UInt32 COMMENT 'The process that called listen() (thread group id, in the initial pid namespace), 0 where unknown' CODEC(T64, ZSTD(1)),
    comm LowCardinality(String) COMMENT 'The command name of the process' CODEC(ZSTD(1)),
    attribution Enum8('unknown' = 0, 'exact' = 1, 'listener' = 2, 'snapshot' = 3) COMMENT 'How much pid and comm are worth. listener: it was seen to call listen(). snapshot: read from /proc when the agent started' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode)' CODEC(T64, ZSTD(1)),
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the socket, 0 where the kernel does not say' CODEC(T64, ZSTD(1)),
    backlog UInt32 COMMENT 'Connections that wait for accept()' CODEC(T64, ZSTD(1)),
    backlog_limit UInt32 COMMENT 'How many may wait: the queue is full when more do' CODEC(T64, ZSTD(1)),
    drops UInt32 COMMENT 'Connections that it turned away since it listens, most often because its queue was full' CODEC(T64, ZSTD(1)),
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine' CODEC(T64, ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(T64, ZSTD(1)),
    {lease}
)
ENGINE = {MergeTree}
PARTITION BY toDate(observed_at)
ORDER BY (node, local_port, cookie, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Listeners and their queues as they stood when an agent looked, every 10 seconds';

{distributed listener_samples};
