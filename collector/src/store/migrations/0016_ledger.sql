-- Every stream in the ledger: what came into being as a batch is counted from then on, beside the rows in the store.
--
-- The projections have how many rows each start of an agent has in a table, so that the ledger does not read them all.

ALTER TABLE {each ledger_samples} MODIFY COLUMN stream Enum8('connections' = 1, 'gaps' = 2, 'syscalls' = 3, 'open_connections' = 4, 'listeners' = 5, 'overhead' = 6, 'namespaces' = 7, 'peers' = 8, 'cgroups' = 9, 'transitions' = 10) COMMENT 'The kind of rows that are counted';

ALTER TABLE {rows connection_samples} ADD PROJECTION IF NOT EXISTS starts
(
    SELECT agent_id, agent_epoch, count()
    GROUP BY agent_id, agent_epoch
);

ALTER TABLE {rows listener_samples} ADD PROJECTION IF NOT EXISTS starts
(
    SELECT agent_id, agent_epoch, count()
    GROUP BY agent_id, agent_epoch
);

ALTER TABLE {rows namespace_samples} ADD PROJECTION IF NOT EXISTS starts
(
    SELECT agent_id, agent_epoch, count()
    GROUP BY agent_id, agent_epoch
);

ALTER TABLE {rows peer_samples} ADD PROJECTION IF NOT EXISTS starts
(
    SELECT agent_id, agent_epoch, count()
    GROUP BY agent_id, agent_epoch
);
