CREATE OR REPLACE VIEW nodes{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    up Bool COMMENT 'The agent was heard of within the last 15 seconds',
    last_seen DateTime64(9, 'UTC') COMMENT 'When the agent was last heard of, by the clock of the collector, UTC',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    connected_at DateTime64(9, 'UTC') COMMENT 'When the agent said hello to the collector, UTC',
    remote String COMMENT 'Where it connected from, address and port',
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the node, from the configuration of its agent',
    version LowCardinality(String) COMMENT 'The version of the agent',
    boot_id LowCardinality(String) COMMENT 'One start of the machine',
    kernel LowCardinality(String) COMMENT 'The release of the kernel (uname -r)',
    architecture LowCardinality(String) COMMENT 'The architecture (uname -m)',
    observed_netns LowCardinality(String) COMMENT 'What the agent observes: all, or the inode of one network namespace',
    rival LowCardinality(String) COMMENT 'Where another agent with the same id was turned away within the last two minutes before it reported, address and port: give one of the two another name. Empty: there is none',
    missing_features Array(String) COMMENT 'What the kernel or the capabilities of the agent do not allow',
    addresses Array(String) COMMENT 'The addresses of its interfaces as the agent sees them, IPv4 as ::ffff:a.b.c.d, loopback left out',
    clock_offset_ns Int64 COMMENT 'The clock of the node against that of the collector, nanoseconds. Positive: the node is ahead',
    clock_error_ns UInt64 COMMENT 'How far off clock_offset_ns may be, nanoseconds. 0 until it was measured',
    spool_batches UInt64 COMMENT 'Batches that wait on the node for their acknowledgement',
    spool_disk_failed Bool COMMENT 'The disk of the spool failed: what waits is in memory only',
    cpu_ppm UInt32 COMMENT 'CPU time that the agent and its programs took in the last interval, millionths of the machine',
    resident_bytes UInt64 COMMENT 'Memory of the agent, bytes. 0 until it was reported',
    budget_ppm UInt32 COMMENT 'CPU time that they may take, millionths of the machine. 0: no budget',
    step LowCardinality(String) COMMENT 'What the budget leaves of the probes: full, or the name of a step. Empty until it was reported'
)
AS SELECT
    session.node AS node,
    toBool(last_seen > now64(9, 'UTC') - INTERVAL 15 SECOND) AS up,
    greatest(session.connected_at, sample.reported_at) AS last_seen,
    session.agent_id AS agent_id,
    session.agent_epoch AS agent_epoch,
    session.connected_at AS connected_at,
    session.remote AS remote,
    session.labels AS labels,
    session.version AS version,
    session.boot_id AS boot_id,
    session.kernel AS kernel,
    session.architecture AS architecture,
    session.observed_netns AS observed_netns,
    sample.rival AS rival,
    session.missing_features AS missing_features,
    session.addresses AS addresses,
    sample.clock_offset_ns AS clock_offset_ns,
    sample.clock_error_ns AS clock_error_ns,
    sample.spool_batches AS spool_batches,
    sample.spool_disk_failed AS spool_disk_failed,
    overhead.cpu_ppm AS cpu_ppm,
    overhead.resident_bytes AS resident_bytes,
    overhead.budget_ppm AS budget_ppm,
    overhead.next_step AS step
FROM (SELECT * FROM node_sessions ORDER BY connected_at DESC LIMIT 1 BY node) AS session
LEFT JOIN
(
    SELECT
        agent_id, agent_epoch, reported_at,
        latest.1 AS clock_offset_ns, latest.2 AS clock_error_ns, latest.3 AS spool_batches, latest.4 AS spool_disk_failed,
        latest.5 AS rival
    FROM
    (
        SELECT
            agent_id, agent_epoch,
            argMax(tuple(clock_offset_ns, clock_error_ns, spool_batches, spool_disk_failed, rival), received_at) AS latest,
            max(received_at) AS reported_at
        FROM agent_samples
        GROUP BY agent_id, agent_epoch
    )
) AS sample USING (agent_id, agent_epoch)
LEFT JOIN
(
    SELECT
        agent_id, agent_epoch, toUInt32(latest.1 * 1000000 / greatest(1, latest.2)) AS cpu_ppm,
        latest.3 AS resident_bytes, latest.4 AS budget_ppm, latest.5 AS next_step
    FROM
    (
        SELECT
            agent_id, agent_epoch,
            argMax(tuple(
                agent_cpu_ns + programs_cpu_ns, cpus * dateDiff('nanosecond', began_at, ended_at), resident_bytes, budget_ppm, next_step
            ), ended_at) AS latest
        FROM overhead_samples
        GROUP BY agent_id, agent_epoch
    )
) AS overhead USING (agent_id, agent_epoch)
COMMENT 'The nodes: the latest session of each';
