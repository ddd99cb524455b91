CREATE OR REPLACE VIEW overhead{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    began_at DateTime64(9, 'UTC') COMMENT 'When the interval began, UTC',
    ended_at DateTime64(9, 'UTC') COMMENT 'When the interval ended, UTC',
    cpus UInt32 COMMENT 'CPUs of the machine',
    cpu_ppm UInt32 COMMENT 'CPU time of agent_cpu_ns and programs_cpu_ns together, millionths of the machine',
    agent_cpu_ns UInt64 COMMENT 'CPU time of the process of the agent, nanoseconds',
    programs_cpu_ns UInt64 COMMENT 'CPU time of its programs in the kernel, nanoseconds: what was measured, for all of the interval. 0 where measured_ns is 0',
    measured_ns UInt64 COMMENT 'Of the interval, how long the kernel measured the programs, nanoseconds. 0: it could not',
    programs Array(String) COMMENT 'The programs that ran while they were measured',
    program_runs Array(UInt64) COMMENT 'How often each of programs ran in that time',
    program_run_ns Array(UInt64) COMMENT 'How long that took, nanoseconds',
    resident_bytes UInt64 COMMENT 'Memory of the agent at the end, its maps of the tables of the kernel included, bytes',
    ring_bytes UInt64 COMMENT 'The size of the ring buffer, bytes',
    ring_peak_bytes UInt64 COMMENT 'The most that waited in it when the agent looked, bytes',
    budget_ppm UInt32 COMMENT 'CPU time that the agent and its programs may take, millionths of the machine. 0: no budget',
    step LowCardinality(String) COMMENT 'What the budget left of the probes in the interval: full, syscalls_off, or connections_1_in_N',
    next_step LowCardinality(String) COMMENT 'What it leaves from then on. Another than step: a change',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent'
)
AS SELECT
    node, began_at, ended_at, cpus,
    toUInt32((agent_cpu_ns + programs_cpu_ns) * 1000000
        / greatest(1, cpus * dateDiff('nanosecond', began_at, ended_at))) AS cpu_ppm,
    agent_cpu_ns, programs_cpu_ns, measured_ns, programs, program_runs, program_run_ns, resident_bytes, ring_bytes,
    ring_peak_bytes, budget_ppm, step, next_step, agent_id, agent_epoch
FROM overhead_samples
COMMENT 'What the agents and their programs cost, by interval, and what their budgets left of the probes';
