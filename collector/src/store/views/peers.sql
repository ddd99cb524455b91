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
