-- What the cgroups are called that other rows name by their ids.

CREATE TABLE IF NOT EXISTS {rows cgroup_records}
(
    node LowCardinality(String) COMMENT 'The name of the node' CODEC(ZSTD(1)),
    cgroup_id UInt64 COMMENT 'The cgroup, as other rows name it' CODEC(T64, ZSTD(1)),
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent called it so, UTC' CODEC(Delta(8), ZSTD(1)),
    service LowCardinality(String) COMMENT 'The service of its processes, where no rule looks at their names' CODEC(ZSTD(1)),
    path String COMMENT 'Its path below the mount of its hierarchy' CODEC(ZSTD(1)),
    unit LowCardinality(String) COMMENT 'The unit of systemd that it is of, empty for none' CODEC(ZSTD(1)),
    runtime LowCardinality(String) COMMENT 'What runs the container: docker, containerd, cri-o or podman. Empty where the path does not say' CODEC(ZSTD(1)),
    container_id String COMMENT 'The container, empty for none' CODEC(ZSTD(1)),
    container_name LowCardinality(String) COMMENT 'The name of the container in its pod, empty where nobody told it' CODEC(ZSTD(1)),
    pod_uid String COMMENT 'The pod of Kubernetes, empty for none' CODEC(ZSTD(1)),
    pod_name LowCardinality(String) COMMENT 'The name of the pod, empty where the kubelet did not tell it' CODEC(ZSTD(1)),
    pod_namespace LowCardinality(String) COMMENT 'The namespace of the pod' CODEC(ZSTD(1)),
    pod_owner LowCardinality(String) COMMENT 'What made the pod: a Deployment, a StatefulSet, a Job' CODEC(ZSTD(1)),
    pod_labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the pod' CODEC(ZSTD(1)),
    agent_id LowCardinality(String) COMMENT 'The agent that called it so: stable over restarts' CODEC(ZSTD(1)),
    boot_id LowCardinality(String) COMMENT 'One start of the machine' CODEC(ZSTD(1)),
    agent_epoch UInt64 COMMENT 'One start of the agent' CODEC(T64, ZSTD(1)),
    sequence UInt64 COMMENT 'The batch that brought the row: 1, 2, ... within agent_id and agent_epoch' CODEC(T64, ZSTD(1)),
    {lease}
)
ENGINE = {MergeTree}
PARTITION BY toDate(observed_at)
ORDER BY (node, agent_id, cgroup_id, observed_at)
TTL toDateTime(observed_at) + INTERVAL 30 DAY
SETTINGS {durable}
COMMENT 'Cgroups that rows of their day name: who runs in them. A row a day, and one each time that it is called otherwise';

{distributed cgroup_records};
