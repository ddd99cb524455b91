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
