-- The agents: their sessions, where they stand, what they counted, and what is missing.

CREATE TABLE IF NOT EXISTS {rows node_sessions}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    connected_at DateTime64(9, 'UTC') COMMENT 'When the agent said hello to the collector, UTC' CODEC(Delta(8), ZSTD(1)),
    remote String COMMENT 'Where it connected from, address and port' CODEC(ZSTD(1)),
    labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the node, from the configuration of its agent' CODEC(ZSTD(1)),
    version LowCardinality(String) COMMENT 'The version of the agent' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    kernel LowCardinality(String) COMMENT 'The release of the kernel (uname -r)' CODEC(ZSTD(1)),
    architecture LowCardinality(String) COMMENT 'The architecture (uname -m)' CODEC(ZSTD(1)),
    observed_netns LowCardinality(String) COMMENT 'What the agent observes: all, or the inode of one network namespace' CODEC(ZSTD(1)),
    missing_features Array(String) COMMENT 'What the kernel or the capabilities of the agent do not allow' CODEC(ZSTD(1)),
    addresses Array(String) COMMENT 'The addresses of its interfaces as the agent sees them, IPv4 as ::ffff:a.b.c.d, loopback left out' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(connected_at)
ORDER BY (node, agent_id, connected_at)
TTL toDateTime(connected_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'One row each time that an agent connected';

{distributed node_sessions};

CREATE TABLE IF NOT EXISTS {rows agent_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent reported, by its own clock, UTC' CODEC(Delta(8), ZSTD(1)),
    clock_offset_ns Int64 COMMENT 'The clock of the node against that of the collector, nanoseconds. Positive: the node is ahead' CODEC(T64, ZSTD(1)),
    clock_error_ns UInt64 COMMENT 'How far off clock_offset_ns may be, nanoseconds. 0 until it was measured' CODEC(T64, ZSTD(1)),
    spool_batches UInt64 COMMENT 'Batches that wait on the node for their acknowledgement' CODEC(T64, ZSTD(1)),
    spool_memory_bytes UInt64 COMMENT 'Of these, bytes in memory' CODEC(T64, ZSTD(1)),
    spool_disk_bytes UInt64 COMMENT 'Bytes of the segments on disk' CODEC(T64, ZSTD(1)),
    spool_disk_failed Bool COMMENT 'The disk of the spool failed: what waits is in memory only' CODEC(ZSTD(1)),
    received_at DateTime64(9, 'UTC') COMMENT 'When the report came, by the clock of the collector, UTC' CODEC(Delta(8), ZSTD(1)),
    watermark_at DateTime64(9, 'UTC') COMMENT 'Everything that the kernel made before is stored, or a gap, or refused; by the clock of the node, UTC. 1970-01-01: not known' CODEC(Delta(8), ZSTD(1)),
    attempts_watermark_at DateTime64(9, 'UTC') COMMENT 'Likewise of attempts that were decided before, UTC. 1970-01-01: the agent does not announce connections that stay open' CODEC(Delta(8), ZSTD(1)),
    missing UInt64 COMMENT 'Rows of connections that will never be stored, since the start of the agent: lost, untracked, missed, dropped, refused, ended, filtered, sampled out' CODEC(T64, ZSTD(1)),
    lost UInt64 COMMENT 'Of these, what the kernel did not hand over: lost, untracked, missed, ended' CODEC(T64, ZSTD(1)),
    dropped UInt64 COMMENT 'Rows of all streams but that of syscalls that the agent had and gave up: dropped, refused' CODEC(T64, ZSTD(1)),
    syscalls_missing UInt64 COMMENT 'Calls whose rows will never be stored, since the start of the agent: missed, dropped, refused, ended' CODEC(T64, ZSTD(1)),
    syscalls_since DateTime64(9, 'UTC') COMMENT 'System calls have been counted without a break since then, by the clock of the node, UTC. 1970-01-01: they are not' CODEC(Delta(8), ZSTD(1)),
    listeners_since DateTime64(9, 'UTC') COMMENT 'Likewise of the looks at listeners' CODEC(Delta(8), ZSTD(1)),
    open_connections_since DateTime64(9, 'UTC') COMMENT 'Likewise of the looks at open connections' CODEC(Delta(8), ZSTD(1)),
    off Map(LowCardinality(String), LowCardinality(String)) COMMENT 'Streams that are off, and why: configuration, collector (holdfast probe set), budget, or kernel. Of these nothing is known' CODEC(ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(observed_at)
ORDER BY (agent_id, agent_epoch, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Where the agents stand: one row each time that one reports';

{distributed agent_samples};

CREATE TABLE IF NOT EXISTS {rows ledger_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    stream Enum8('connections' = 1, 'syscalls' = 3) COMMENT 'The kind of rows that are counted' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode), 0 for what is counted for all together' CODEC(T64, ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent read its counters, UTC' CODEC(Delta(8), ZSTD(1)),
    opened UInt64 COMMENT 'Opened, in the kernel' CODEC(T64, ZSTD(1)),
    closed UInt64 COMMENT 'Closed, in the kernel' CODEC(T64, ZSTD(1)),
    open UInt64 COMMENT 'In the map of the kernel now' CODEC(T64, ZSTD(1)),
    untracked UInt64 COMMENT 'Opened while the map was full' CODEC(T64, ZSTD(1)),
    unseen UInt64 COMMENT 'Closed without an entry in the map: older than the agent, or untracked' CODEC(T64, ZSTD(1)),
    lost UInt64 COMMENT 'The ring buffer was full' CODEC(T64, ZSTD(1)),
    filtered UInt64 COMMENT 'Closed, and hidden by a filter' CODEC(T64, ZSTD(1)),
    received UInt64 COMMENT 'Received from the kernel by the agent' CODEC(T64, ZSTD(1)),
    batching UInt64 COMMENT 'In a batch that is not sealed yet' CODEC(T64, ZSTD(1)),
    unacknowledged UInt64 COMMENT 'In sealed batches that the collector has not acknowledged' CODEC(T64, ZSTD(1)),
    acknowledged UInt64 COMMENT 'Acknowledged by the collector: rows of the store' CODEC(T64, ZSTD(1)),
    dropped UInt64 COMMENT 'Discarded by the agent, its queue was full' CODEC(T64, ZSTD(1)),
    refused UInt64 COMMENT 'Refused by the collector for their content' CODEC(T64, ZSTD(1)),
    superseded UInt64 COMMENT 'Ends that the hook missed, known when their socket was opened again' CODEC(T64, ZSTD(1)),
    missed UInt64 COMMENT 'Events that no program saw, of all namespaces together (netns 0): an interrupt brought one while the program ran on the same CPU' CODEC(T64, ZSTD(1)),
    unsent UInt64 COMMENT 'Opened, and ended before a SYN left: connect() found no route or no free port, or was forbidden' CODEC(T64, ZSTD(1)),
    seeded UInt64 COMMENT 'Open before the agent was, or opened unseen, and found by a survey' CODEC(T64, ZSTD(1)),
    announced UInt64 COMMENT 'First records of connections that stay open, made by the agent' CODEC(T64, ZSTD(1)),
    witnessed UInt64 COMMENT 'Opened by the SNMP counters of the namespace (ActiveOpens, PassiveOpens) since the start of the agent' CODEC(T64, ZSTD(1)),
    is_witnessed Bool COMMENT 'The SNMP counters of the namespace could be read' CODEC(ZSTD(1)),
    ended UInt64 COMMENT 'Of a start that ended without a word: what was open, in the ring or in memory then, or opened before the next start. Gaps of the reason epoch_end' CODEC(T64, ZSTD(1)),
    is_final Bool COMMENT 'Nothing of this start will change any more' CODEC(ZSTD(1)),
    unmeasured UInt64 COMMENT 'Of the stream of syscalls: measured calls whose latency found no place in the table of the kernel' CODEC(T64, ZSTD(1)),
    evicted UInt64 COMMENT 'Of the stream of syscalls: processes that were idle while places were scarce, and lost theirs until their next call' CODEC(T64, ZSTD(1)),
    sampled_out UInt64 COMMENT 'Opened, and not followed: only one in so many was' CODEC(T64, ZSTD(1)),
    elsewhere UInt64 COMMENT 'Opened in network namespaces that the configuration leaves out, all together (netns 0). Of the stream of syscalls: calls from there' CODEC(T64, ZSTD(1))
)
ENGINE = {MergeTree}
PARTITION BY toDate(observed_at)
ORDER BY (agent_id, agent_epoch, stream, netns, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'What the agents counted: cumulative since the start of each agent, except open, batching and unacknowledged';

{distributed ledger_samples};

CREATE TABLE IF NOT EXISTS {rows gap_records}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'The start of the agent whose rows are missing' CODEC(T64, ZSTD(1)),
    stream Enum8('connections' = 1, 'gaps' = 2, 'syscalls' = 3, 'open_connections' = 4, 'listeners' = 5, 'overhead' = 6, 'namespaces' = 7, 'peers' = 8, 'cgroups' = 9) COMMENT 'The kind of rows that are missing' CODEC(ZSTD(1)),
    reason Enum8('spool_full' = 1, 'spool_unreadable' = 2, 'ring_full' = 3, 'epoch_end' = 4) COMMENT 'spool_full: a bound of the spool was reached while the collector was away. spool_unreadable: the disk did not give the batch back. ring_full: the ring buffer of the kernel was full. epoch_end: the agent ended without a word' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode) that they are from, 0 where it is not told apart' CODEC(T64, ZSTD(1)),
    rows UInt64 COMMENT 'Rows that are missing' CODEC(T64, ZSTD(1)),
    at_least Bool COMMENT 'There may be more: what would tell is gone too' CODEC(ZSTD(1)),
    first_sequence UInt64 COMMENT 'The first batch that they were in, 0 where they never were in one' CODEC(T64, ZSTD(1)),
    last_sequence UInt64 COMMENT 'The last batch that they were in, 0 where they never were in one' CODEC(T64, ZSTD(1)),
    first_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the first of them, UTC' CODEC(Delta(8), ZSTD(1)),
    last_at DateTime64(9, 'UTC') COMMENT 'When the kernel made the last of them, UTC' CODEC(Delta(8), ZSTD(1)),
    recorded_at DateTime64(9, 'UTC') COMMENT 'The latest last_at of the batch that reported the gap, UTC' CODEC(Delta(8), ZSTD(1)),
    reported_epoch UInt64 COMMENT 'The start of the agent that reported the gap' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that reported the gap: 1, 2, ... within agent_id and reported_epoch' CODEC(T64, ZSTD(1)),
    {lease}
)
ENGINE = {MergeTree}
PARTITION BY toDate(recorded_at)
ORDER BY (node, agent_id, stream, first_at)
TTL toDateTime(recorded_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Rows that will never be here: which, from when to when, and why';

{distributed gap_records};

CREATE TABLE IF NOT EXISTS {rows overhead_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    began_at DateTime64(9, 'UTC') COMMENT 'When the interval began, UTC' CODEC(Delta(8), ZSTD(1)),
    ended_at DateTime64(9, 'UTC') COMMENT 'When the interval ended, UTC' CODEC(Delta(8), ZSTD(1)),
    cpus UInt32 COMMENT 'CPUs of the machine' CODEC(T64, ZSTD(1)),
    agent_cpu_ns UInt64 COMMENT 'CPU time of the process of the agent, nanoseconds' CODEC(T64, ZSTD(1)),
    programs_cpu_ns UInt64 COMMENT 'CPU time of its programs in the kernel, nanoseconds: what was measured, for all of the interval. 0 where measured_ns is 0' CODEC(T64, ZSTD(1)),
    measured_ns UInt64 COMMENT 'Of the interval, how long the kernel measured the programs, nanoseconds. 0: it could not' CODEC(T64, ZSTD(1)),
    programs Array(String) COMMENT 'The programs that ran while they were measured' CODEC(ZSTD(1)),
    program_runs Array(UInt64) COMMENT 'How often each of programs ran in that time' CODEC(T64, ZSTD(1)),
    program_run_ns Array(UInt64) COMMENT 'How long that took, nanoseconds' CODEC(T64, ZSTD(1)),
    resident_bytes UInt64 COMMENT 'Memory of the agent at the end, its maps of the tables of the kernel included, bytes' CODEC(T64, ZSTD(1)),
    ring_bytes UInt64 COMMENT 'The size of the ring buffer, bytes' CODEC(T64, ZSTD(1)),
    ring_peak_bytes UInt64 COMMENT 'The most that waited in it when the agent looked, bytes' CODEC(T64, ZSTD(1)),
    budget_ppm UInt32 COMMENT 'CPU time that the agent and its programs may take, millionths of the machine. 0: no budget' CODEC(T64, ZSTD(1)),
    step LowCardinality(String) COMMENT 'What the budget left of the probes in the interval: full, syscalls_off, or connections_1_in_N' CODEC(ZSTD(1)),
    next_step LowCardinality(String) COMMENT 'What it leaves from then on. Another than step: a change' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(T64, ZSTD(1)),
    {lease}
)
ENGINE = {MergeTree}
PARTITION BY toDate(ended_at)
ORDER BY (node, agent_id, agent_epoch, ended_at)
TTL toDateTime(ended_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'What the agents and their programs cost, by interval, and what their budgets left of the probes';

{distributed overhead_samples};
