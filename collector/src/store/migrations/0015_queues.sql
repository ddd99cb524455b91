-- What waits in the queues of listeners, and what they turned away: how long a connection waited for accept(), and all that
-- the listeners of a namespace turned away.

ALTER TABLE {each connection_records} ADD COLUMN IF NOT EXISTS accept_wait_us Nullable(UInt32) COMMENT 'How long this end waited in the queue of its listener: from the end of its handshake until accept() returned it, microseconds. NULL for active ends, and where that was not seen' CODEC(ZSTD(1)) AFTER streamed;

ALTER TABLE {each listener_samples} ADD COLUMN IF NOT EXISTS namespace_overflows Nullable(UInt64) COMMENT 'Connections that found the queue of any listener of the network namespace full, since that began (TcpExt ListenOverflows). NULL where it cannot be read' CODEC(ZSTD(1)) AFTER sequence;

ALTER TABLE {each listener_samples} ADD COLUMN IF NOT EXISTS namespace_drops Nullable(UInt64) COMMENT 'Connections that listeners of the network namespace turned away, for whatever reason, since that began (TcpExt ListenDrops). NULL where it cannot be read' CODEC(ZSTD(1)) AFTER namespace_overflows;
