CREATE OR REPLACE VIEW open_connections{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'established, or pending: the attempt waits for its answer',
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent looked last, UTC',
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC. Of a connection that is older than its agent: when it was found',
    open_us UInt64 COMMENT 'From the opening until the agent looked, microseconds',
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
    bytes_sent UInt64 COMMENT 'Payload that left so far, without retransmissions, bytes',
    bytes_received UInt64 COMMENT 'Payload that arrived in order so far, bytes',
    segments_sent UInt32 COMMENT 'Segments that left so far, retransmissions included',
    segments_received UInt32 COMMENT 'Segments that arrived so far',
    retransmits UInt32 COMMENT 'Segments that were sent again so far, SYNs included',
    syn_retransmits UInt8 COMMENT 'Segments that were sent again before the handshake ended',
    srtt_us UInt32 COMMENT 'Smoothed round trip time now, microseconds. 0 where none was measured',
    path LowCardinality(String) COMMENT 'The TCP states so far, in order',
    weight UInt32 COMMENT 'The row stands for so many connections: a node with many shows always the same part of them',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts'
)
AS SELECT
    node, service, role, outcome, observed_at, opened_at,
    toUInt64(greatest(dateDiff('microsecond', opened_at, observed_at), 0)) AS open_us,
    pid, comm, attribution, netns, cgroup_id, local_ip, local_port, remote_ip, remote_port, connect_us, bytes_sent,
    bytes_received, segments_sent, segments_received, retransmits, syn_retransmits, srtt_us, path, weight, cookie,
    agent_id
FROM
(
    SELECT * FROM connection_samples
    WHERE observed_at > now64(9, 'UTC') - INTERVAL 25 SECOND
    ORDER BY observed_at DESC LIMIT 1 BY agent_id, netns, cookie
) AS sample
-- What has ended since is not open; an attempt that was not seen waiting lately was decided. A socket has one connection
-- at a time, so its cookie is enough.
WHERE (agent_id, netns, cookie) NOT IN
(
    SELECT agent_id, netns, cookie FROM connection_records
    WHERE recorded_at > now64(9, 'UTC') - INTERVAL 25 SECOND AND is_final
)
AND (outcome != 'pending' OR observed_at > now64(9, 'UTC') - INTERVAL 3 SECOND)
COMMENT 'Connections and attempts that are open, as they stood when their agent looked last, within 25 seconds';
