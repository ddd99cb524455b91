-- Why attempts failed or were slow: computed from the rows of both ends, again whenever more is known.
--
-- Rows of evidence are only ever added, so of the decisions for one attempt the one that was made of the most rows is
-- right, whoever made it and when: that is what the engine keeps, and what FINAL shows.

CREATE TABLE IF NOT EXISTS {rows cause_records}
(
    node LowCardinality(String) COMMENT 'The name of the node that attempted it' CODEC(ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where no rule names one' CODEC(ZSTD(1)),
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted the record of the attempt, UTC' CODEC(Delta(8), ZSTD(1)),
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC' CODEC(Delta(8), ZSTD(1)),
    decided_at DateTime64(9, 'UTC') COMMENT 'When the handshake ended, well or badly, UTC' CODEC(Delta(8), ZSTD(1)),
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'How the attempt ended. established: only after a SYN was sent again' CODEC(ZSTD(1)),
    local_cause LowCardinality(String) COMMENT 'Why, as far as its own node can tell' CODEC(ZSTD(1)),
    cause Enum8('unknown' = 0, 'no_listener' = 1, 'listener_full' = 2, 'filtered' = 3, 'rejected' = 4, 'dropped_on_path' = 5, 'reply_dropped' = 6, 'host_down' = 7, 'host_silent' = 8, 'host_unreachable' = 9, 'net_unreachable' = 10, 'no_route' = 11, 'no_port' = 12, 'local_filter' = 13, 'process_gave_up' = 14, 'reset_in_handshake' = 15, 'no_answer' = 16, 'dropped_by_listener' = 17) COMMENT 'Why, by both ends. no_listener: the port is closed. listener_full: the queue of the listener was. filtered: a filter dropped it silently. rejected: a firewall answered. dropped_on_path: it was lost before the other host. reply_dropped: the answer was. host_down: the other host has lost the address. host_silent: its agent says nothing of that time. no_answer: nobody with an agent has the address' CODEC(ZSTD(1)),
    is_confirmed Bool COMMENT 'The node of the other end says so too, or the attempt never left its own' CODEC(ZSTD(1)),
    evidence String COMMENT 'What the cause rests on, in words' CODEC(ZSTD(1)),
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown' CODEC(T64, ZSTD(1)),
    comm LowCardinality(String) COMMENT 'The command name of the process' CODEC(ZSTD(1)),
    netns UInt32 COMMENT 'The network namespace (inode)' CODEC(T64, ZSTD(1)),
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    local_port UInt16 COMMENT 'The port of this end' CODEC(ZSTD(1)),
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d' CODEC(ZSTD(1)),
    remote_port UInt16 COMMENT 'The port of the other end' CODEC(ZSTD(1)),
    syn_retransmits UInt8 COMMENT 'SYNs that were sent again' CODEC(T64, ZSTD(1)),
    errno UInt16 COMMENT 'The error of the socket (sk_err), 0 for none' CODEC(T64, ZSTD(1)),
    peer_node LowCardinality(String) COMMENT 'The node that has the address of the other end, empty where no agent has seen it' CODEC(ZSTD(1)),
    peer_netns UInt32 COMMENT 'The network namespace (inode) that has it, 0 where no agent has seen it' CODEC(T64, ZSTD(1)),
    listener_drops UInt64 COMMENT 'How many the listeners of the port turned away around the attempt' CODEC(T64, ZSTD(1)),
    listen_overflows UInt64 COMMENT 'By how much ListenOverflows of their namespace grew around it' CODEC(T64, ZSTD(1)),
    filtered UInt64 COMMENT 'TCP segments between the two that a filter of either namespace dropped around it' CODEC(T64, ZSTD(1)),
    resets_sent UInt64 COMMENT 'Resets that the namespace of the other end sent around it because nobody listens on the port' CODEC(T64, ZSTD(1)),
    alike UInt64 COMMENT 'Attempts of the same node, namespace, destination and outcome in the same minute: the first 20 of them have a row' CODEC(T64, ZSTD(1)),
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    revision UInt64 COMMENT 'Rows that the cause was decided from. Of several rows for one attempt the one with the most is right' CODEC(T64, ZSTD(1))
)
ENGINE = {ReplacingMergeTree revision}
PARTITION BY toDate(recorded_at)
ORDER BY (node, recorded_at, agent_id, netns, cookie, opened_at)
TTL toDateTime(recorded_at) + INTERVAL 30 DAY
SETTINGS ttl_only_drop_parts = 1
COMMENT 'Why attempts failed or were slow: computed from the rows of both ends, and again when more is known';

{distributed cause_records};
