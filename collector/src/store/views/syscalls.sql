CREATE OR REPLACE VIEW syscalls{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    comm LowCardinality(String) COMMENT 'The command name of the process. Empty for processes that found no place of their own in the kernel''s table',
    syscall LowCardinality(String) COMMENT 'The name of the system call. other: those of 32-bit programs, and unknown numbers',
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace). 0: several processes',
    cgroup_id UInt64 COMMENT 'The cgroup (v2) of the process, 0 where the kernel does not say',
    processes UInt32 COMMENT 'How many processes the row is of: more than 1 are processes of one name and cgroup that ended in the interval. 0: unknown',
    began_at DateTime64(9, 'UTC') COMMENT 'When the interval began, UTC',
    ended_at DateTime64(9, 'UTC') COMMENT 'When the interval ended, UTC',
    calls UInt64 COMMENT 'Calls that returned in the interval, or ended their task',
    errors UInt64 COMMENT 'Of these, calls that failed',
    errnos Array(UInt16) COMMENT 'The errnos that they gave, ascending. From 512 on the kernel''s own: a signal interrupted the call, which was then made again or gave EINTR',
    errno_calls Array(UInt64) COMMENT 'How many calls gave each of errnos',
    measured_one_in UInt32 COMMENT 'One call in so many was measured, chosen at random. 0: none',
    measured UInt64 COMMENT 'Calls whose latency was measured. A call may be counted one interval before it is measured',
    latency_buckets Array(UInt16) COMMENT 'Their latencies: ids of log buckets of nanoseconds, 32 an octave, of which every fourth is used, ascending',
    latency_ns Array(Float64) COMMENT 'The middles of latency_buckets, nanoseconds. A quantile, within 8 %: quantileExactWeightedArray(0.99)(latency_ns, latency_calls)',
    latency_calls Array(UInt64) COMMENT 'Measured calls in each of latency_buckets'
)
AS SELECT
    node, service, comm, syscall, pid, cgroup_id, processes, began_at, ended_at, calls, errors, errnos, errno_calls,
    measured_one_in, measured, latency_buckets,
    arrayMap(bucket -> if(bucket = 0, 0, (ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32735, 47))) + ceil(reinterpretAsFloat64(bitShiftLeft(toUInt64(bucket) + 32736, 47))) - 1) / 2), latency_buckets) AS latency_ns,
    latency_calls
FROM syscall_samples
COMMENT 'System calls by process and interval: calls, errors by errno, and latencies of those that were measured';
