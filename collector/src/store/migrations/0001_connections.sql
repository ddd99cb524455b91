-- The ends of TCP connections, and what people see of them.
--
-- A statement ends with a semicolon at the end of a line. Each can run again, so that a crash between two of them is
-- harmless. What stands in braces differs between one server and a cluster: see the module `layout`.
--
-- What a record says of time is stored once: recorded_at to the nanosecond, and from there back in microseconds, which
-- is how the kernel side measured it. The other times are computed from these, exactly; step_us takes the least bytes
-- of all ways to keep a path, since the steps that close a connection follow close upon each other.
--
-- The order: a service is two ranges, one for each role, and a node one in each service; in it failures lie together,
-- and so do the ends at one listener's port, by time. Since the two roles lie apart, the ends of one port are found with
-- the indexes on both ports: one of them has few values nearby. Attempts are asked for by decided_at, of which the order
-- knows nothing: it has an index as well, which is found by its expression, so that must not hold a constant that the
-- engine writes in another way (toDateTime64(0, ...)). The projection lists the batches that are stored, and
-- how many rows they have: what a handover, the ledger and a follower ask.
--
-- Merges are most of what a row costs. merge_selector_base (5 unless it is set) is about how many parts of one size have
-- to be there before they are merged: with 16 a row is written anew half as often, and a day has tens of parts more.

CREATE TABLE IF NOT EXISTS {rows connection_records}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known' CODEC(ZSTD(1)),
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener' CODEC(ZSTD(1)),
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'How the attempt to open the connection ended' CODEC(ZSTD(1)),
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted this record, UTC' CODEC(Delta(8), ZSTD(1)),
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
    duration_us UInt64 COMMENT 'From the opening until this end was closed, microseconds. 0 while it is open' CODEC(T64, ZSTD(1)),
    bytes_sent UInt64 COMMENT 'Payload that left, without retransmissions, bytes' CODEC(T64, ZSTD(1)),
    bytes_received UInt64 COMMENT 'Payload that arrived in order, bytes' CODEC(T64, ZSTD(1)),
    segments_sent UInt32 COMMENT 'Segments that left, retransmissions included' CODEC(T64, ZSTD(1)),
    segments_received UInt32 COMMENT 'Segments that arrived' CODEC(T64, ZSTD(1)),
    retransmits UInt32 COMMENT 'Segments that were sent again, SYNs included' CODEC(T64, ZSTD(1)),
    syn_retransmits UInt8 COMMENT 'Segments that were sent again before the handshake ended' CODEC(T64, ZSTD(1)),
    srtt_us UInt32 COMMENT 'Smoothed round trip time at the end, microseconds. 0 where none was measured' CODEC(T64, ZSTD(1)),
    errno UInt16 COMMENT 'The error of the socket (sk_err), or of connect() where no SYN left; 0 for none' CODEC(T64, ZSTD(1)),
    local_cause LowCardinality(String) COMMENT 'Why it ended as it did, as far as this node alone can tell, empty where it cannot. refused_by_peer: a reset answered the SYN. icmp_port_unreachable: an ICMP message did, so a firewall rejects. no_answer: what was sent went unanswered. no_route, no_port, local_filter: no SYN left. host_unreachable, net_unreachable, icmp_prohibited: an ICMP message, or no neighbour. reset_by_peer, process_gave_up. syn_retransmitted: established, but late' CODEC(ZSTD(1)),
    close_reason Enum8('none' = 0, 'finished' = 1, 'reset_by_peer' = 2, 'reset_by_process' = 3, 'timed_out' = 4, 'unreachable' = 5, 'failed' = 6) COMMENT 'How the established connection ended. none: still open, or never established' CODEC(ZSTD(1)),
    path LowCardinality(String) COMMENT 'The TCP states that this end went through, joined by >' CODEC(ZSTD(1)),
    step_us Array(UInt64) COMMENT 'When the states of path were entered that recorded_at, connect_us and duration_us do not tell, in their order, microseconds: before the end if is_final, else since the opening' CODEC(T64, ZSTD(1)),
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection' CODEC(Delta(8), ZSTD(1)),
    is_first Bool COMMENT 'The first record of its connection: a row of attempts' CODEC(ZSTD(1)),
    is_final Bool COMMENT 'The last record of its connection: a row of connections' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(Delta(8), ZSTD(1)),
    opened_at DateTime64(9, 'UTC') ALIAS recorded_at - toIntervalMicrosecond(multiIf(is_final, duration_us, outcome != 'pending', connect_us, step_us[-1])) COMMENT 'When the attempt began, UTC',
    decided_at DateTime64(9, 'UTC') ALIAS fromUnixTimestamp64Nano(if(outcome = 'pending', 0, toUnixTimestamp64Nano(recorded_at) - if(is_final, toInt64(duration_us - connect_us) * 1000, 0)), 'UTC') COMMENT 'When the handshake ended, well or badly, UTC. 1970-01-01 while it is pending',
    closed_at DateTime64(9, 'UTC') ALIAS if(is_final, recorded_at, toDateTime64(0, 9, 'UTC')) COMMENT 'When this end was closed, UTC. 1970-01-01 while it is open',
    states Array(String) ALIAS splitByChar('>', replaceOne(path, '...', '')) COMMENT 'The TCP states that this end went through, in order',
    decided_step UInt32 ALIAS if(outcome = 'pending', 0, arrayFirstIndex(state -> state IN ('ESTABLISHED', 'CLOSE'), states)) COMMENT 'Which of states ended the handshake: 1, 2, ... 0 while it is pending',
    path_us Array(UInt64) ALIAS arrayMap(
        step -> multiIf(
            step = 1, 0,
            step = decided_step, connect_us,
            is_final AND step = length(states), duration_us,
            is_final, duration_us - step_us[step - 1 - (decided_step > 1 AND step > decided_step)],
            step_us[step - 1 - (decided_step > 1 AND step > decided_step)]),
        arrayEnumerate(states)) COMMENT 'When each state of path was entered, microseconds since the opening',
    {lease},
    INDEX decided decided_at TYPE minmax,
    INDEX local_ports local_port TYPE minmax,
    INDEX remote_ports remote_port TYPE minmax,
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
ORDER BY (role, service, node, outcome, if(role = 'active', remote_port, local_port), recorded_at)
TTL toDateTime(recorded_at) + INTERVAL 30 DAY
SETTINGS {durable}, min_rows_for_wide_part = 262144, merge_selector_base = 16
COMMENT 'Ends of TCP connections: one row a record, which is the first, the last, or both of its connection';

{distributed connection_records};
