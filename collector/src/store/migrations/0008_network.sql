-- Network namespaces and trouble with peers, as the agents' kernels count them, and everything by peer.

CREATE TABLE IF NOT EXISTS {rows namespace_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent looked, UTC' CODEC(Delta(8), ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode)' CODEC(T64, ZSTD(1)),
    addresses Array(IPv6) COMMENT 'Addresses of its interfaces that are up and have a carrier, without loopback, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    listen_overflows UInt64 COMMENT 'Connections that found the queue of a listener full, since the namespace began (TcpExt ListenOverflows)' CODEC(T64, ZSTD(1)),
    listen_drops UInt64 COMMENT 'Connections that listeners turned away, for whatever reason, since the namespace began (TcpExt ListenDrops)' CODEC(T64, ZSTD(1)),
    syn_queue_drops UInt64 COMMENT 'SYNs that found the queue of half-open connections full, since the namespace began (TcpExt TCPReqQFullDrop)' CODEC(T64, ZSTD(1)),
    syn_cookies UInt64 COMMENT 'SYNs that were answered with a cookie because that queue was full, since the namespace began (TcpExt SyncookiesSent)' CODEC(T64, ZSTD(1)),
    resets_sent UInt64 COMMENT 'Resets sent since the namespace began (Tcp OutRsts)' CODEC(T64, ZSTD(1)),
    attempt_fails UInt64 COMMENT 'Attempts, of both roles, that failed since the namespace began (Tcp AttemptFails)' CODEC(T64, ZSTD(1)),
    established_resets UInt64 COMMENT 'Established connections that were reset since the namespace began (Tcp EstabResets)' CODEC(T64, ZSTD(1)),
    retransmits UInt64 COMMENT 'Segments sent again since the namespace began (Tcp RetransSegs)' CODEC(T64, ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(T64, ZSTD(1)),
    {lease}
)
ENGINE = {MergeTree}
PARTITION BY toDate(observed_at)
ORDER BY (node, netns, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Network namespaces as they stood when an agent looked: every 10 seconds, and within a second when a queue overflowed or an address came or went';

{distributed namespace_samples};

CREATE TABLE IF NOT EXISTS {rows peer_samples}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    began_at DateTime64(9, 'UTC') COMMENT 'When the interval began that was counted in, UTC' CODEC(Delta(8), ZSTD(1)),
    ended_at DateTime64(9, 'UTC') COMMENT 'When it ended, UTC' CODEC(Delta(8), ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode), 0 for peers that found no place in the kernel table' CODEC(T64, ZSTD(1)),
    peer_ip IPv6 COMMENT 'The address of the peer, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    port UInt16 COMMENT 'Of a row about SYNs that found no socket, or that a filter dropped: the port that they were for. Else 0' CODEC(ZSTD(1)),
    resets_sent UInt64 COMMENT 'Resets sent to the peer. With a port: because nobody listens on it' CODEC(T64, ZSTD(1)),
    resets_received UInt64 COMMENT 'Resets that arrived from the peer' CODEC(T64, ZSTD(1)),
    retransmits UInt64 COMMENT 'Segments of established connections that were sent to the peer again' CODEC(T64, ZSTD(1)),
    syn_retransmits UInt64 COMMENT 'SYNs that were sent to the peer again' CODEC(T64, ZSTD(1)),
    syn_ack_retransmits UInt64 COMMENT 'SYN-ACKs that were sent to the peer again' CODEC(T64, ZSTD(1)),
    filtered UInt64 COMMENT 'TCP segments from or to the peer that a filter of the namespace dropped: netfilter, tc, XDP or a BPF program' CODEC(T64, ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(T64, ZSTD(1)),
    {lease}
)
ENGINE = {MergeTree}
PARTITION BY toDate(ended_at)
ORDER BY (node, peer_ip, ended_at)
TTL toDateTime(ended_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Trouble with peers, by interval: a row only where there was some';

{distributed peer_samples};

CREATE OR REPLACE VIEW namespaces{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent looked, UTC',
    netns UInt32 COMMENT 'The network namespace (inode)',
    addresses Array(IPv6) COMMENT 'Addresses of its interfaces that are up and have a carrier, without loopback, IPv4 as ::ffff:a.b.c.d',
    listen_overflows UInt64 COMMENT 'Connections that found the queue of a listener full, since the namespace began (TcpExt ListenOverflows)',
    listen_drops UInt64 COMMENT 'Connections that listeners turned away, for whatever reason, since the namespace began (TcpExt ListenDrops)',
    syn_queue_drops UInt64 COMMENT 'SYNs that found the queue of half-open connections full, since the namespace began (TcpExt TCPReqQFullDrop)',
    syn_cookies UInt64 COMMENT 'SYNs that were answered with a cookie because that queue was full, since the namespace began (TcpExt SyncookiesSent)',
    resets_sent UInt64 COMMENT 'Resets sent since the namespace began (Tcp OutRsts)',
    attempt_fails UInt64 COMMENT 'Attempts, of both roles, that failed since the namespace began (Tcp AttemptFails)',
    established_resets UInt64 COMMENT 'Established connections that were reset since the namespace began (Tcp EstabResets)',
    retransmits UInt64 COMMENT 'Segments sent again since the namespace began (Tcp RetransSegs)',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts'
)
AS SELECT
    node, observed_at, netns, addresses, listen_overflows, listen_drops, syn_queue_drops, syn_cookies, resets_sent,
    attempt_fails, established_resets, retransmits, agent_id
FROM namespace_samples
COMMENT 'Network namespaces: one row for each time that an agent looked';

CREATE OR REPLACE VIEW peers{everywhere}
(
    minute DateTime('UTC') COMMENT 'The minute in which it was recorded, UTC',
    node LowCardinality(String) COMMENT 'The name of the node',
    netns UInt32 COMMENT 'The network namespace (inode)',
    peer_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d',
    attempts UInt64 COMMENT 'Attempts to or from the peer',
    failed UInt64 COMMENT 'Of these, not established',
    connections UInt64 COMMENT 'Finished ends',
    reset_by_peer UInt64 COMMENT 'Of these, with close_reason reset_by_peer',
    reset_by_process UInt64 COMMENT 'Of these, with close_reason reset_by_process',
    bytes_sent UInt64 COMMENT 'Payload that left, of finished ends, without retransmissions, bytes',
    bytes_received UInt64 COMMENT 'Payload that arrived in order, of finished ends, bytes',
    segments_sent UInt64 COMMENT 'Segments that left, of finished ends, retransmissions included',
    retransmits UInt64 COMMENT 'Segments that were sent again, of finished ends, SYNs included',
    srtt_us Float64 COMMENT 'Smoothed round trip time at the end, the mean of the finished ends that measured one, microseconds. 0 where none did',
    srtt_max_us UInt32 COMMENT 'The longest of them, microseconds',
    resets_sent UInt64 COMMENT 'Resets sent to the peer, also where there was no connection',
    resets_received UInt64 COMMENT 'Resets that arrived from the peer',
    retransmits_now UInt64 COMMENT 'Segments of established connections that were sent again in this minute, also of those that are open',
    syn_retransmits UInt64 COMMENT 'SYNs that were sent again in this minute',
    syn_ack_retransmits UInt64 COMMENT 'SYN-ACKs that were sent again in this minute',
    filtered UInt64 COMMENT 'TCP segments from or to the peer that a filter of the namespace dropped in this minute'
)
AS SELECT
    minute, node, netns, peer_ip, sum(c.1) AS attempts, sum(c.2) AS failed, sum(c.3) AS connections,
    sum(c.4) AS reset_by_peer, sum(c.5) AS reset_by_process, sum(c.6) AS bytes_sent, sum(c.7) AS bytes_received,
    sum(c.8) AS segments_sent, sum(c.9) AS retransmits, if(sum(c.11) = 0, 0, sum(c.10) / sum(c.11)) AS srtt_us,
    max(longest) AS srtt_max_us, sum(t.1) AS resets_sent, sum(t.2) AS resets_received, sum(t.3) AS retransmits_now,
    sum(t.4) AS syn_retransmits, sum(t.5) AS syn_ack_retransmits, sum(t.6) AS filtered
FROM
(
    SELECT
        toStartOfMinute(recorded_at) AS minute, node, netns, remote_ip AS peer_ip,
        (
            countIf(is_first), countIf(is_first AND outcome NOT IN ('established', 'pending')), countIf(is_final),
            countIf(is_final AND close_reason = 'reset_by_peer'),
            countIf(is_final AND close_reason = 'reset_by_process'),
            sumIf(connection_records.bytes_sent, is_final), sumIf(connection_records.bytes_received, is_final),
            sumIf(toUInt64(connection_records.segments_sent), is_final),
            sumIf(toUInt64(connection_records.retransmits), is_final),
            sumIf(toUInt64(connection_records.srtt_us), is_final),
            countIf(is_final AND connection_records.srtt_us > 0)
        ) AS c,
        (toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0)) AS t,
        maxIf(connection_records.srtt_us, is_final) AS longest
    FROM connection_records
    GROUP BY minute, node, netns, peer_ip
    UNION ALL
    SELECT
        toStartOfMinute(ended_at) AS minute, node, netns, peer_ip,
        (
            toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0),
            toUInt64(0), toUInt64(0), toUInt64(0)
        ) AS c,
        (
            sum(peer_samples.resets_sent), sum(peer_samples.resets_received), sum(peer_samples.retransmits),
            sum(peer_samples.syn_retransmits), sum(peer_samples.syn_ack_retransmits), sum(peer_samples.filtered)
        ) AS t,
        toUInt32(0) AS longest
    FROM peer_samples
    GROUP BY minute, node, netns, peer_ip
)
GROUP BY minute, node, netns, peer_ip
COMMENT 'Everything by peer and minute: finished ends of connections, and trouble as the kernel counts it';
