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
