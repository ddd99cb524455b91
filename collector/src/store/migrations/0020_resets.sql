-- Resets by connection: until now they were counted by peer alone.

ALTER TABLE {each connection_records} ADD COLUMN IF NOT EXISTS resets Enum8('none' = 0, 'sent' = 1, 'received' = 2, 'both' = 3) COMMENT 'Which resets were part of it. sent: by this end, to end the connection or in answer to a segment that did not fit. received: from the other end. Of an end that had sent its FIN and had it acknowledged, one that close() sends is not told' CODEC(ZSTD(1)) AFTER accept_wait_us;

CREATE OR REPLACE VIEW connections{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
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
    accept_wait_us Nullable(UInt32) COMMENT 'How long this end waited in the queue of its listener: from the end of its handshake until accept() returned it, microseconds. NULL for active ends, and where that was not seen',
    errno UInt16 COMMENT 'The error of the socket (sk_err), or of connect() where no SYN left; 0 for none',
    local_cause LowCardinality(String) COMMENT 'Why it ended as it did, as far as this node alone can tell, empty where it cannot. refused_by_peer: a reset answered the SYN. icmp_port_unreachable: an ICMP message did, so a firewall rejects. no_answer: what was sent went unanswered. no_route, no_port, local_filter: no SYN left. host_unreachable, net_unreachable, icmp_prohibited: an ICMP message, or no neighbour. reset_by_peer, process_gave_up. syn_retransmitted: established, but late',
    close_reason Enum8('none' = 0, 'finished' = 1, 'reset_by_peer' = 2, 'reset_by_process' = 3, 'timed_out' = 4, 'unreachable' = 5, 'failed' = 6) COMMENT 'How the established connection ended. none: still open, or never established',
    resets Enum8('none' = 0, 'sent' = 1, 'received' = 2, 'both' = 3) COMMENT 'Which resets were part of it. sent: by this end, to end the connection or in answer to a segment that did not fit. received: from the other end. Of an end that had sent its FIN and had it acknowledged, one that close() sends is not told',
    path LowCardinality(String) COMMENT 'The TCP states that this end went through, joined by >',
    path_us Array(UInt64) COMMENT 'When each state of path was entered, microseconds since the opening',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts',
    boot_id LowCardinality(String) COMMENT 'One start of the machine',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch'
)
AS SELECT
    node, service, role, outcome, recorded_at,
    recorded_at - toIntervalMicrosecond(duration_us) AS opened_at,
    recorded_at - toIntervalMicrosecond(duration_us - connect_us) AS decided_at, recorded_at AS closed_at,
    pid, comm, attribution, netns, cgroup_id, local_ip, local_port, remote_ip, remote_port, connect_us,
    duration_us, bytes_sent, bytes_received, segments_sent, segments_received, retransmits, syn_retransmits,
    srtt_us, accept_wait_us, errno, local_cause, close_reason, resets, path, path_us, cookie, agent_id, boot_id,
    agent_epoch, sequence
FROM connection_records
WHERE is_final
COMMENT 'Ends of TCP connections that are finished: one row each';
