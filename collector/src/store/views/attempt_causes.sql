CREATE OR REPLACE VIEW attempt_causes{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node that attempted it',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where no rule names one',
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted the record of the attempt, UTC',
    opened_at DateTime64(9, 'UTC') COMMENT 'When the attempt began, UTC',
    decided_at DateTime64(9, 'UTC') COMMENT 'When the handshake ended, well or badly, UTC',
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'How the attempt ended. established: only after a SYN was sent again',
    local_cause LowCardinality(String) COMMENT 'Why, as far as its own node can tell',
    cause Enum8('unknown' = 0, 'no_listener' = 1, 'listener_full' = 2, 'filtered' = 3, 'rejected' = 4, 'dropped_on_path' = 5, 'reply_dropped' = 6, 'host_down' = 7, 'host_silent' = 8, 'host_unreachable' = 9, 'net_unreachable' = 10, 'no_route' = 11, 'no_port' = 12, 'local_filter' = 13, 'process_gave_up' = 14, 'reset_in_handshake' = 15, 'no_answer' = 16, 'dropped_by_listener' = 17) COMMENT 'Why, by both ends. no_listener: the port is closed. listener_full: the queue of the listener was. filtered: a filter dropped it silently. rejected: a firewall answered. dropped_on_path: it was lost before the other host. reply_dropped: the answer was. host_down: the other host has lost the address. host_silent: its agent says nothing of that time. no_answer: nobody with an agent has the address',
    is_confirmed Bool COMMENT 'The node of the other end says so too, or the attempt never left its own',
    evidence String COMMENT 'What the cause rests on, in words',
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    netns UInt32 COMMENT 'The network namespace (inode)',
    local_ip IPv6 COMMENT 'The address of this end, IPv4 as ::ffff:a.b.c.d',
    local_port UInt16 COMMENT 'The port of this end',
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d',
    remote_port UInt16 COMMENT 'The port of the other end',
    syn_retransmits UInt8 COMMENT 'SYNs that were sent again',
    errno UInt16 COMMENT 'The error of the socket (sk_err), 0 for none',
    peer_node LowCardinality(String) COMMENT 'The node that has the address of the other end, empty where no agent has seen it',
    peer_netns UInt32 COMMENT 'The network namespace (inode) that has it, 0 where no agent has seen it',
    listener_drops UInt64 COMMENT 'How many the listeners of the port turned away around the attempt',
    listen_overflows UInt64 COMMENT 'By how much ListenOverflows of their namespace grew around it',
    filtered UInt64 COMMENT 'TCP segments between the two that a filter of either namespace dropped around it',
    resets_sent UInt64 COMMENT 'Resets that the namespace of the other end sent around it because nobody listens on the port',
    alike UInt64 COMMENT 'Attempts of the same node, namespace, destination and outcome in the same minute: the first 20 of them have a row',
    cookie UInt64 COMMENT 'The cookie of the socket: names a socket on one machine, not a connection',
    agent_id LowCardinality(String) COMMENT 'The agent that saw it: stable over restarts',
    agent_epoch UInt64 COMMENT 'One start of the agent',
    revision UInt64 COMMENT 'Rows that the cause was decided from. Of several rows for one attempt the one with the most is right'
)
AS SELECT
    node, service, recorded_at, opened_at, decided_at, outcome, local_cause, cause, is_confirmed, evidence, pid, comm,
    netns, local_ip, local_port, remote_ip, remote_port, syn_retransmits, errno, peer_node, peer_netns, listener_drops,
    listen_overflows, filtered, resets_sent, alike, cookie, agent_id, agent_epoch, revision
FROM cause_records FINAL
COMMENT 'Why attempts failed or were slow, with the evidence';
