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
    if(of_path = 1 OR startsWith(entered, '...'), '', steps[of_path - 1]) AS from_state,
    replaceOne(entered, '...', '') AS to_state, pid, comm, netns, cgroup_id, local_ip, local_port, remote_ip,
    remote_port, recorded_at, cookie, agent_id, boot_id, agent_epoch, sequence, false AS is_streamed
FROM
(
    SELECT
        node, service, role, pid, comm, netns, cgroup_id, local_ip, local_port, remote_ip, remote_port, recorded_at,
        duration_us, cookie, agent_id, boot_id, agent_epoch, sequence, streamed, path_us,
        splitByChar('>', path) AS steps
    FROM connection_records
    WHERE is_final
) AS ends
ARRAY JOIN path_us AS us, arrayEnumerate(path_us) AS of_path, steps AS entered
WHERE NOT bitTest(streamed, of_path - 1)
COMMENT 'State changes of TCP connections: one row each. Those of finished connections, and where they are streamed those of open ones and of listeners';
