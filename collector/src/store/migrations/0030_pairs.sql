-- What agents of a mesh report of each other is kept apart: before, only who made the load was stored.

ALTER TABLE {each load_samples} ADD COLUMN IF NOT EXISTS to_node LowCardinality(String) COMMENT 'Of a mesh, the node that this part of the load went to, so that node and to_node are a pair. Empty where targets are not told apart' CODEC(ZSTD(1)) AFTER node;

ALTER TABLE {each load_samples} COMMENT COLUMN open 'Connections that were established at the end of the interval, of a mesh those of the node to all others';

ALTER TABLE {each load_samples} COMMENT COLUMN most_open 'The most that were established at once since the start of the run, of a mesh by the node to all others';

ALTER TABLE {each load_samples} COMMENT COLUMN cpu_us 'CPU time of the generator since the start of the run, of a mesh of the node for all others, microseconds';
