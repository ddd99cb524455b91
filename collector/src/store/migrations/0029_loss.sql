-- A verdict says how much of what it rests on is lost.

ALTER TABLE {each verdict_records} ADD COLUMN IF NOT EXISTS loss Nullable(UInt64) COMMENT 'Rows of the window, or system calls, that are known to be lost on the nodes that the key depends on, to a second. Of a rule of an objective: of its short window. 0: none is. NULL: none is known to be, and nobody knows that none is, or it is about what agents report of themselves' CODEC(ZSTD(1)) AFTER samples;
