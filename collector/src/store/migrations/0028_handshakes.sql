-- What nobody could count is not zero: of handshakes that io_uring made there are no SYNs that were sent again.

ALTER TABLE {each load_samples} MODIFY COLUMN syn_retransmits Nullable(UInt64) COMMENT 'SYNs that were sent again, of attempts that were established. NULL where some of their sockets could not be asked';

ALTER TABLE {each run_records} COMMENT COLUMN reasons 'Why the verdict is not holds; where it is, what limited the run';
