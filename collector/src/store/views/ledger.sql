-- It says of each row whether it closes, so that one statement checks it, whoever asks:
--
--     SELECT * FROM ledger WHERE closes IS DISTINCT FROM true
--
-- Nothing closes of which it cannot be told: a start that was not heard of any more without a last word may have counted
-- more. What is in the ring has to come out of it: what had been closed 30 reports ago, half a minute, and was neither
-- received nor lost since, is missing.
--
-- Tables forget: of a start that is older than their retention, fewer rows are stored than were acknowledged. How many of
-- its rows may be gone for that is known from what it had made by then.

CREATE OR REPLACE VIEW ledger{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    agent_id LowCardinality(String) COMMENT 'The agent: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    stream Enum8('connections' = 1, 'gaps' = 2, 'syscalls' = 3, 'open_connections' = 4, 'listeners' = 5, 'overhead' = 6, 'namespaces' = 7, 'peers' = 8, 'cgroups' = 9, 'transitions' = 10) COMMENT 'The kind of rows that are counted',
    netns UInt32 COMMENT 'The network namespace (inode), 0 for what belongs to none that is observed. Of all streams but connections and transitions always 0: all of them together',
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent read these counters: first, or again within a minute, if they have not changed since. By its clock, UTC',
    opened UInt64 COMMENT 'Opened, in the kernel. Of streams that begin in the agent, as closed and received: rows that it made',
    closed UInt64 COMMENT 'Closed, in the kernel',
    open UInt64 COMMENT 'In the map of the kernel now',
    untracked UInt64 COMMENT 'Opened while the map was full',
    unseen UInt64 COMMENT 'Closed without an entry in the map: older than the agent, or untracked',
    lost UInt64 COMMENT 'The ring buffer was full',
    filtered UInt64 COMMENT 'Closed, and hidden by a filter',
    received UInt64 COMMENT 'Received from the kernel by the agent',
    batching UInt64 COMMENT 'In a batch that is not sealed yet',
    unacknowledged UInt64 COMMENT 'In sealed batches that the collector has not acknowledged',
    acknowledged UInt64 COMMENT 'Acknowledged by the collector: rows of the store',
    dropped UInt64 COMMENT 'Discarded by the agent, its queue was full',
    refused UInt64 COMMENT 'Refused by the collector for their content',
    superseded UInt64 COMMENT 'Ends that the hook missed, known when their socket was opened again',
    missed UInt64 COMMENT 'Events that no program saw: of all namespaces together (netns 0) as the kernel counted them, of a namespace the connections whose end alone was seen',
    unsent UInt64 COMMENT 'Opened, and ended before a SYN left: connect() found no route or no free port, or was forbidden',
    seeded UInt64 COMMENT 'Open before the agent was, or opened unseen, and found by a survey',
    announced UInt64 COMMENT 'First records of connections that stay open, made by the agent',
    witnessed UInt64 COMMENT 'Opened by the SNMP counters of the namespace (ActiveOpens, PassiveOpens) since the start of the agent',
    is_witnessed Bool COMMENT 'The SNMP counters of the namespace could be read',
    ended UInt64 COMMENT 'Of a start that ended without a word: what was open, in the ring or in memory then, or opened before the next start. Gaps of the reason epoch_end',
    is_final Bool COMMENT 'Nothing of this start will change any more',
    unmeasured UInt64 COMMENT 'Of the stream of syscalls: measured calls whose latency found no place in the table of the kernel',
    evicted UInt64 COMMENT 'Of the stream of syscalls: processes that were idle while places were scarce, and lost theirs until their next call',
    sampled_out UInt64 COMMENT 'Opened, and not followed: only one in so many was',
    elsewhere UInt64 COMMENT 'Opened in network namespaces that the configuration leaves out, all together (netns 0). Of the stream of syscalls: calls from there',
    rows_stored UInt64 COMMENT 'Rows of this stream, agent, epoch and namespace that are in the store. Of the stream of syscalls: the calls in them',
    may_have_expired UInt64 COMMENT 'Rows that were made so long ago that their table may have removed them by its retention: as many, at most, may be missing from rows_stored for that. 0: of this start none is so old',
    kernel_difference Int64 COMMENT 'opened + seeded - closed - open - untracked - superseded - sampled_out - ended: 0 if the ledger closes',
    ring_difference Int64 COMMENT 'closed - lost - filtered - received: what is in the ring, 0 once the agent has stopped',
    agent_difference Int64 COMMENT 'received + announced - batching - unacknowledged - acknowledged - dropped - refused: 0 if the ledger closes',
    store_difference Int64 COMMENT 'rows_stored - acknowledged: rows that are stored and whose acknowledgement is on its way, 0 once the agent has stopped. Below 0 by no more than may_have_expired: whether they were stored can no longer be told',
    witness_difference Int64 COMMENT 'witnessed - (opened - unsent), 0 where it is not witnessed. Positive: the hook missed so many. Negative: opens that SNMP does not count (restored connections, SYNs that a security module refused)',
    reported_at DateTime64(9, 'UTC') COMMENT 'When the latest report of this start came, with these counters, by the clock of the collector, UTC. 1970-01-01: there is none',
    ring_overdue Int64 COMMENT 'Of ring_difference, what had been closed 30 reports before, and of a start with a last word all of it: it is not in the ring any more, and no counter has it',
    expired UInt64 COMMENT 'Rows that were acknowledged and are not stored, where all of them may have been removed by the retention of their table',
    difference UInt64 COMMENT 'What neither a counter nor the way of a running agent explains, of all stages: 0 if the ledger closes',
    balance Enum8('closes' = 1, 'open' = 2, 'expired' = 3, 'silent' = 4, 'waits' = 5) COMMENT 'What it comes to. open: there is a difference. Of the others it cannot be told. expired: rows may have been removed by retention; silent: nothing was heard of this start for 15 seconds, and it had no last word; waits: more is stored than the agent had counted when it reported last',
    closes Nullable(Bool) COMMENT 'Whether it closes; NULL where it cannot be told',
    is_latest Bool COMMENT 'Of the latest start of its agent'
)
AS WITH latest_reports AS
(
    SELECT
        agent_id, agent_epoch, stream, netns,
        argMax(tuple(
            node, observed_at, opened, closed, open, untracked, unseen, lost, filtered, received, batching, unacknowledged,
            acknowledged, dropped, refused, superseded, missed, unsent, seeded, announced, witnessed, is_witnessed, ended,
            is_final, unmeasured, evicted, sampled_out, elsewhere
        ), tuple(is_final, opened, ended, acknowledged + dropped + refused, closed, missed, received_at, observed_at)) AS latest
    FROM ledger_samples
    GROUP BY agent_id, agent_epoch, stream, netns
)
SELECT
    sample.node AS node,
    sample.agent_id AS agent_id,
    sample.agent_epoch AS agent_epoch,
    sample.stream AS stream,
    sample.netns AS netns,
    sample.observed_at AS observed_at,
    sample.opened AS opened,
    sample.closed AS closed,
    sample.open AS open,
    sample.untracked AS untracked,
    sample.unseen AS unseen,
    sample.lost AS lost,
    sample.filtered AS filtered,
    sample.received AS received,
    sample.batching AS batching,
    sample.unacknowledged AS unacknowledged,
    sample.acknowledged AS acknowledged,
    sample.dropped AS dropped,
    sample.refused AS refused,
    sample.superseded AS superseded,
    sample.missed AS missed,
    sample.unsent AS unsent,
    sample.seeded AS seeded,
    sample.announced AS announced,
    sample.witnessed AS witnessed,
    sample.is_witnessed AS is_witnessed,
    sample.ended AS ended,
    sample.is_final AS is_final,
    sample.unmeasured AS unmeasured,
    sample.evicted AS evicted,
    sample.sampled_out AS sampled_out,
    sample.elsewhere AS elsewhere,
    stored.rows_stored AS rows_stored,
    old.may_have_expired AS may_have_expired,
    toInt64(opened) + seeded - closed - open - untracked - superseded - sampled_out - ended AS kernel_difference,
    toInt64(closed) - lost - filtered - received AS ring_difference,
    toInt64(received) + announced - batching - unacknowledged - acknowledged - dropped - refused AS agent_difference,
    toInt64(rows_stored) - acknowledged AS store_difference,
    if(is_witnessed, toInt64(witnessed) - opened + unsent, 0) AS witness_difference,
    toDateTime64(report.reported_at, 9, 'UTC') AS reported_at,
    greatest(multiIf(is_final, toInt64(closed), reports >= 30, closed_before, 0) - lost - filtered - received, 0) AS ring_overdue,
    if(store_difference < 0 AND -store_difference <= may_have_expired, toUInt64(-store_difference), 0) AS expired,
    -- What is too much in one place does not make up for what is missing in another.
    toUInt64(abs(kernel_difference) + abs(least(ring_difference, 0)) + ring_overdue + abs(agent_difference)
        + multiIf(expired > 0, 0, store_difference < 0, -store_difference, store_difference <= unacknowledged, 0,
            is_final OR is_former, store_difference, 0)
        -- Each miss that the kernel counted explains one open that no program saw, whatever its namespace, or each end without a
        -- beginning, which may be of the same open.
        + if(uncounted > 0, greatest(witness_difference, 0), 0)) AS difference,
    multiIf(difference > 0, 'open', NOT is_final AND reported_at < now64(9, 'UTC') - INTERVAL 15 SECOND, 'silent',
        store_difference > unacknowledged, 'waits', expired > 0, 'expired', 'closes') AS balance,
    CAST(multiIf(balance = 'closes', 1, balance = 'open', 0, NULL), 'Nullable(Bool)') AS closes,
    toBool(NOT is_former) AS is_latest
FROM
(
    SELECT *, agent_epoch < max(agent_epoch) OVER (PARTITION BY agent_id) AS is_former,
        sum(if(is_witnessed, greatest(toInt64(witnessed) - opened + unsent, 0), 0)) OVER (PARTITION BY agent_id, agent_epoch, stream)
            - greatest(sum(if(netns = 0, toInt64(missed), 0)) OVER (PARTITION BY agent_id, agent_epoch, stream),
                sum(if(netns = 0, 0, toInt64(missed))) OVER (PARTITION BY agent_id, agent_epoch, stream)) AS uncounted
    FROM
    (
        SELECT
            agent_id, agent_epoch, stream, netns,
            latest.1 AS node, latest.2 AS observed_at, latest.3 AS opened, latest.4 AS closed, latest.5 AS open,
            latest.6 AS untracked, latest.7 AS unseen, latest.8 AS lost, latest.9 AS filtered, latest.10 AS received,
            latest.11 AS batching, latest.12 AS unacknowledged, latest.13 AS acknowledged, latest.14 AS dropped, latest.15 AS refused,
            latest.16 AS superseded, latest.17 AS missed, latest.18 AS unsent, latest.19 AS seeded, latest.20 AS announced,
            latest.21 AS witnessed, latest.22 AS is_witnessed, latest.23 AS ended, latest.24 AS is_final, latest.25 AS unmeasured,
            latest.26 AS evicted, latest.27 AS sampled_out, latest.28 AS elsewhere
        FROM latest_reports
    )
) AS sample
LEFT JOIN
(
    SELECT agent_id, agent_epoch, stream, netns, -groupArraySorted(30)(-toInt64(closed))[30] AS closed_before, count() AS reports
    FROM ledger_samples
    -- Older starts have had their last word, or are silent.
    WHERE observed_at > now64(9, 'UTC') - INTERVAL 1 DAY AND (agent_id, agent_epoch, stream, netns) GLOBAL IN
    (
        -- closed > lost + filtered + received, and no last word
        SELECT agent_id, agent_epoch, stream, netns FROM latest_reports
        WHERE latest.4 > latest.8 + latest.9 + latest.10 AND NOT latest.24
    )
    GROUP BY agent_id, agent_epoch, stream, netns
) AS recent
ON recent.agent_id = sample.agent_id AND recent.agent_epoch = sample.agent_epoch AND recent.netns = sample.netns
    AND recent.stream = sample.stream
LEFT JOIN
(
    SELECT agent_id, agent_epoch, max(received_at) AS reported_at FROM agent_samples GROUP BY agent_id, agent_epoch
) AS report
ON report.agent_id = sample.agent_id AND report.agent_epoch = sample.agent_epoch
LEFT JOIN
(
    SELECT 'connections' AS stream, agent_id, agent_epoch, netns, count() AS rows_stored
    FROM connection_records
    GROUP BY agent_id, agent_epoch, netns
    UNION ALL
    SELECT 'gaps' AS stream, agent_id, reported_epoch AS agent_epoch, toUInt32(0) AS netns, count() AS rows_stored
    FROM gap_records
    GROUP BY agent_id, reported_epoch
    UNION ALL
    SELECT 'syscalls' AS stream, agent_id, agent_epoch, toUInt32(0) AS netns, sum(calls) AS rows_stored
    FROM syscall_samples
    GROUP BY agent_id, agent_epoch
    UNION ALL
    SELECT 'open_connections' AS stream, agent_id, agent_epoch, toUInt32(0) AS netns, count() AS rows_stored
    FROM connection_samples
    GROUP BY agent_id, agent_epoch
    UNION ALL
    SELECT 'listeners' AS stream, agent_id, agent_epoch, toUInt32(0) AS netns, count() AS rows_stored
    FROM listener_samples
    GROUP BY agent_id, agent_epoch
    UNION ALL
    SELECT 'overhead' AS stream, agent_id, agent_epoch, toUInt32(0) AS netns, count() AS rows_stored
    FROM overhead_samples
    GROUP BY agent_id, agent_epoch
    UNION ALL
    SELECT 'namespaces' AS stream, agent_id, agent_epoch, toUInt32(0) AS netns, count() AS rows_stored
    FROM namespace_samples
    GROUP BY agent_id, agent_epoch
    UNION ALL
    SELECT 'peers' AS stream, agent_id, agent_epoch, toUInt32(0) AS netns, count() AS rows_stored
    FROM peer_samples
    GROUP BY agent_id, agent_epoch
    UNION ALL
    SELECT 'transitions' AS stream, agent_id, agent_epoch, netns, count() AS rows_stored
    FROM transition_events
    GROUP BY agent_id, agent_epoch, netns
    UNION ALL
    SELECT 'cgroups' AS stream, agent_id, agent_epoch, toUInt32(0) AS netns, count() AS rows_stored
    FROM cgroup_records
    GROUP BY agent_id, agent_epoch
) AS stored
ON stored.agent_id = sample.agent_id AND stored.agent_epoch = sample.agent_epoch AND stored.netns = sample.netns
    AND stored.stream = toString(sample.stream)
LEFT JOIN
(
    -- A row is made after the start, and before the first report that is later than its time. Of reports a day is known,
    -- and one is left for clocks that are set. Where no report is later, all rows may be so old.
    SELECT stream, agent_id, agent_epoch, netns, max(made) AS made_in_all,
        minIf(made_first, day > day_after) AS made_before, countIf(day > day_after) AS later_days,
        least(min(first_at), fromUnixTimestamp64Milli(toInt64(agent_epoch), 'UTC')) AS started_at,
        multiIf(started_at >= any(kept_from), 0, later_days = 0, made_in_all, made_before) AS may_have_expired
    FROM
    (
        SELECT toString(stream) AS stream, agent_id, agent_epoch, netns, toDate(observed_at) AS day,
            min(observed_at) AS first_at, min(received + announced) AS made_first, max(received + announced) AS made
        FROM ledger_samples
        GROUP BY agent_id, agent_epoch, stream, netns, toDate(observed_at)
    ) AS reported
    INNER JOIN
    (
        -- What the tables are told to keep. In a cluster the names of those that have rows begin so.
        SELECT kept.1 AS stream, max(toUInt32OrZero(extract(engine_full, ' TTL .* toIntervalDay\\((\\d+)\\)'))) AS days,
            now() - toIntervalDay(days) AS kept_from, toDate(kept_from) + 1 AS day_after
        FROM system.tables
        ARRAY JOIN
        [
            ('connections', 'connection_records'), ('gaps', 'gap_records'), ('syscalls', 'syscall_samples'),
            ('open_connections', 'connection_samples'), ('listeners', 'listener_samples'), ('overhead', 'overhead_samples'),
            ('namespaces', 'namespace_samples'), ('peers', 'peer_samples'), ('cgroups', 'cgroup_records'),
            ('transitions', 'transition_events')
        ] AS kept
        WHERE database = currentDatabase() AND startsWith(name, kept.2)
        GROUP BY stream
        HAVING days > 0
    ) AS retention
    ON retention.stream = reported.stream
    GROUP BY stream, agent_id, agent_epoch, netns
) AS old
ON old.agent_id = sample.agent_id AND old.agent_epoch = sample.agent_epoch AND old.netns = sample.netns
    AND old.stream = toString(sample.stream)
COMMENT 'The latest counters of each start of each agent, the rows in the store beside them, and whether they agree';
