-- System calls: what each process' calls of each syscall came to, by interval.
--
-- The order: what people look at is a service or a node, in it one syscall of all processes, by time.

CREATE TABLE IF NOT EXISTS {rows syscall_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known' CODEC(ZSTD(1)),
    comm LowCardinality(String) COMMENT 'The command name of the process. Empty for processes that found no place of their own in the kernel''s table' CODEC(ZSTD(1)),
    syscall LowCardinality(String) COMMENT 'The name of the system call. other: those of 32-bit programs, and unknown numbers' CODEC(ZSTD(1)),
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace). 0: several processes' CODEC(T64, ZSTD(1)),
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the process, 0 where the kernel does not say' CODEC(T64, ZSTD(1)),
    processes UInt32 COMMENT 'How many processes the row is of: more than 1 are processes of one name and cgroup that ended in the interval. 0: unknown' CODEC(T64, ZSTD(1)),
    began_at DateTime64(9, 'UTC') COMMENT 'When the interval began, UTC' CODEC(Delta(8), ZSTD(1)),
    ended_at DateTime64(9, 'UTC') COMMENT 'When the interval ended, UTC' CODEC(Delta(8), ZSTD(1)),
    calls UInt64 COMMENT 'Calls that returned in the interval, or ended their task' CODEC(T64, ZSTD(1)),
    errors UInt64 COMMENT 'Of these, calls that failed' CODEC(T64, ZSTD(1)),
    errnos Array(UInt16) COMMENT 'The errnos that they gave, ascending. From 512 on the kernel''s own: a signal interrupted the call, which was then made again or gave EINTR' CODEC(ZSTD(1)),
    errno_calls Array(UInt64) COMMENT 'How many calls gave each of errnos' CODEC(T64, ZSTD(1)),
    measured_one_in UInt32 COMMENT 'One call in so many was measured, chosen at random. 0: none' CODEC(T64, ZSTD(1)),
    measured UInt64 COMMENT 'Calls whose latency was measured. A call may be counted one interval before it is measured' CODEC(T64, ZSTD(1)),
    latency_buckets Array(UInt16) COMMENT 'Their latencies: ids of log buckets of nanoseconds, 32 an octave, of which every fourth is used, ascending' CODEC(Delta(2), ZSTD(1)),
    latency_calls Array(UInt64) COMMENT 'Measured calls in each of latency_buckets' CODEC(T64, ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that counted: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(Delta(8), ZSTD(1)),
    {lease},
    PROJECTION batches
    (
        SELECT node, agent_id, agent_epoch, sequence, count(), sum(calls)
        GROUP BY node, agent_id, agent_epoch, sequence
    )
)
ENGINE = {MergeTree}
PARTITION BY toDate(ended_at)
ORDER BY (service, node, syscall, comm, ended_at)
TTL toDateTime(ended_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'System calls: one row for each process and syscall of each interval';

{distributed syscall_samples};
