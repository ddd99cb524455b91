CREATE OR REPLACE VIEW attempts{everywhere}
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
    syn_retransmits UInt8 COMMENT 'Segments that were sent again before the handshake ended',
    errno UInt16 COMMENT 'The error of the socket (sk_err), or of connect() where no SYN left; 0 for none',
    local_cause LowCardinality(String) COMMENT 'Why it ended as it did, as far as this node alone can tell, empty where it cannot. refused_by_peer: a reset answered the SYN. icmp_port_unreachable: an ICMP message did, so a firewall rejects. no_answer: what was sent went unanswered. no_route, no_port, local_filter: no SYN left. host_unreachable, net_unreachable, icmp_prohibited: an ICMP message, or no neighbour. reset_by_peer, process_gave_up. syn_retransmitted: established, but late. dissolved_by_kernel: of two sockets that the kernel made for one handshake, the one that it did not keep',
    path LowCardinality(String) COMMENT 'The TCP states that this end went through, joined by >',
    path_us Array(UInt64) COMMENT 'When each state of path was entered, microseconds since the opening',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts',
    boot_id LowCardinality(String) COMMENT 'One start of the machine',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch'
)
AS SELECT
    node, service, role, outcome, recorded_at, opened_at, decided_at, closed_at, pid, comm, attribution,
    netns, cgroup_id, local_ip, local_port, remote_ip, remote_port, connect_us, syn_retransmits, errno,
    local_cause, path, path_us, cookie, agent_id, boot_id, agent_epoch, sequence
FROM connection_records
WHERE is_first
COMMENT 'Attempts to open TCP connections: one row each, at the time it was decided';
