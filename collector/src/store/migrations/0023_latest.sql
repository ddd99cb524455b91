-- What every agent reported last, kept beside the reports: they come by the second, and whoever asks for the latest does not
-- read them all. The views that ask must say it in the words of the projections.
--
-- The latest report of a start is told by what was counted, which only grows, and not by the time: the clock of a node may be
-- set back. Its days are kept apart, since the ledger asks what had been counted when its tables' retention began.

ALTER TABLE {rows ledger_samples} ADD PROJECTION IF NOT EXISTS latest
(
    SELECT
        agent_id, agent_epoch, stream, netns, toDate(observed_at),
        argMax(tuple(
            node, observed_at, opened, closed, open, untracked, unseen, lost, filtered, received, batching, unacknowledged,
            acknowledged, dropped, refused, superseded, missed, unsent, seeded, announced, witnessed, is_witnessed, ended,
            is_final, unmeasured, evicted, sampled_out, elsewhere
        ), tuple(is_final, opened, ended, acknowledged + dropped + refused, closed, observed_at)),
        min(observed_at), min(received + announced), max(received + announced)
    GROUP BY agent_id, agent_epoch, stream, netns, toDate(observed_at)
);

ALTER TABLE {rows ledger_samples} MATERIALIZE PROJECTION latest;

ALTER TABLE {rows agent_samples} ADD PROJECTION IF NOT EXISTS latest
(
    SELECT
        agent_id, agent_epoch,
        argMax(tuple(clock_offset_ns, clock_error_ns, spool_batches, spool_disk_failed), received_at),
        max(received_at)
    GROUP BY agent_id, agent_epoch
);

ALTER TABLE {rows agent_samples} MATERIALIZE PROJECTION latest;

ALTER TABLE {rows overhead_samples} ADD PROJECTION IF NOT EXISTS latest
(
    SELECT
        agent_id, agent_epoch,
        argMax(tuple(
            agent_cpu_ns + programs_cpu_ns, cpus * dateDiff('nanosecond', began_at, ended_at), resident_bytes, budget_ppm, next_step
        ), ended_at),
        count()
    GROUP BY agent_id, agent_epoch
);

ALTER TABLE {rows overhead_samples} MATERIALIZE PROJECTION latest;
