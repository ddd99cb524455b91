CREATE OR REPLACE VIEW connection_workloads{everywhere}
(
    node LowCardinality(String) COMMENT 'The name of the node',
    service LowCardinality(String) COMMENT 'The service that the process belongs to, empty where none is known',
    role Enum8('active' = 1, 'passive' = 2) COMMENT 'active: this end called connect(). passive: it came out of a listener',
    outcome Enum8('established' = 1, 'refused' = 2, 'timed_out' = 3, 'reset' = 4, 'unreachable' = 5, 'aborted' = 6, 'pending' = 7, 'failed' = 8) COMMENT 'How the attempt to open the connection ended',
    recorded_at DateTime64(9, 'UTC') COMMENT 'When the kernel emitted this record, UTC',
    pid UInt32 COMMENT 'The process (thread group id, in the initial pid namespace), 0 where unknown',
    comm LowCardinality(String) COMMENT 'The command name of the process',
    cgroup_id UInt64 COMMENT 'The cgroup of the socket',
    local_port UInt16 COMMENT 'The port of this end',
    remote_ip IPv6 COMMENT 'The address of the other end, IPv4 as ::ffff:a.b.c.d',
    remote_port UInt16 COMMENT 'The port of the other end',
    connect_us UInt64 COMMENT 'From the opening until the handshake ended, microseconds. 0 while it is pending',
    duration_us UInt64 COMMENT 'From the opening until this end was closed, microseconds. 0 while it is open',
    cgroup_path String COMMENT 'The path of the cgroup below the mount of its hierarchy',
    unit LowCardinality(String) COMMENT 'The unit of systemd that it is of, empty for none',
    runtime LowCardinality(String) COMMENT 'What runs the container: docker, containerd, cri-o or podman. Empty where the path does not say',
    container_id String COMMENT 'The container, empty for none',
    container_name LowCardinality(String) COMMENT 'The name of the container in its pod, empty where nobody told it',
    pod_uid String COMMENT 'The pod of Kubernetes, empty for none',
    pod_name LowCardinality(String) COMMENT 'The name of the pod, empty where the kubelet did not tell it',
    pod_namespace LowCardinality(String) COMMENT 'The namespace of the pod',
    pod_owner LowCardinality(String) COMMENT 'What made the pod: a Deployment, a StatefulSet, a Job',
    pod_labels Map(LowCardinality(String), LowCardinality(String)) COMMENT 'The labels of the pod'
)
AS SELECT
    finished.node AS node, finished.service AS service, finished.role AS role, finished.outcome AS outcome, finished.recorded_at AS recorded_at,
    finished.pid AS pid, finished.comm AS comm, finished.cgroup_id AS cgroup_id,
    finished.local_port AS local_port, finished.remote_ip AS remote_ip, finished.remote_port AS remote_port, finished.connect_us AS connect_us, finished.duration_us AS duration_us,
    cgroup.path AS cgroup_path, cgroup.unit AS unit, cgroup.runtime AS runtime, cgroup.container_id AS container_id, cgroup.container_name AS container_name,
    cgroup.pod_uid AS pod_uid, cgroup.pod_name AS pod_name, cgroup.pod_namespace AS pod_namespace, cgroup.pod_owner AS pod_owner, cgroup.pod_labels AS pod_labels
FROM connections AS finished
LEFT JOIN cgroups AS cgroup ON finished.agent_id = cgroup.agent_id AND finished.boot_id = cgroup.boot_id AND finished.cgroup_id = cgroup.cgroup_id
COMMENT 'Finished ends, with the unit, the container and the pod that their process ran in';
