-- Resets by connection: until now they were counted by peer alone.

ALTER TABLE {each connection_records} ADD COLUMN IF NOT EXISTS resets Enum8('none' = 0, 'sent' = 1, 'received' = 2, 'both' = 3) COMMENT 'Which resets were part of it. sent: by this end, to end the connection or in answer to a segment that did not fit. received: from the other end. Of an end that had sent its FIN and had it acknowledged, one that close() sends is not told' CODEC(ZSTD(1)) AFTER accept_wait_us;
