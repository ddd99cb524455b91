CREATE OR REPLACE VIEW cgroups{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    cgroup_id UInt64 COMMENT 'The cgroup, as other rows name it',
    observed_at DateTime64(9, 'UTC') COMMENT 'When the agent called it so, UTC',
    service LowCardinality(String) COMMENT 'The service of its processes, where no rule looks at their names',
    path String COMMENT 'Its path below the mount of its hierarchy',
    unit LowCardinality(String) COMMENT 'The unit of systemd that it is of, empty for none',
    runtime LowCardinality(String) COMMENT 'What runs the container: docker, containerd, cri-o or podman. Empty where the path does not say',
    container_id String COMMENT 'The container, empty for none',
    container_name LowCardinality(String) COMMENT 'The name of the container in its pod, empty where nobody told it',
    pod_uid String COMMENT 'The pod of Kubernetes, empty for none',
    pod_name LowCardinality(String) COMMENT 'The name of the pod, empty where the kubelet did not tell it',
    pod_namespace LowCardinality(String) COMMENT 'The namespace of the pod',
    pod_owner LowCardinality(String) COMMENT 'What made the pod: a Deployment, a StatefulSet, a Job',
    pod_labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the pod',
    agent_id LowCardinality(String) COMMENT 'The agent that called it so: stable over restarts',
    boot_id LowCardinality(String) COMMENT 'One start of the machine'
)
AS SELECT
    node, cgroup_id, observed_at, service, path, unit, runtime, container_id,
    container_name, pod_uid, pod_name, pod_namespace, pod_owner, pod_labels, agent_id, boot_id
FROM cgroup_records
ORDER BY observed_at DESC LIMIT 1 BY agent_id, boot_id, cgroup_id
COMMENT 'Cgroups as they were called last: join them by agent_id, boot_id and cgroup_id';
