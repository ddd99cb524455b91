//! What the path of a cgroup says of who runs in it: a unit of systemd, a container and its runtime, a pod of Kubernetes.
//! Pure. The shapes are those that the runtimes make with either cgroup driver, on cgroup v1 and v2.

/// What a path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The innermost unit of systemd that is not of a container; empty: none.
    pub unit: String,
    /// The innermost container; empty: none.
    pub container_id: String,
    /// `docker`, `containerd`, `cri-o` or `podman`; empty where the path does not say.
    pub runtime: String,
    /// As the API server writes it; empty: no pod.
    pub pod_uid: String,
}

/// How a component begins that names a container, and whose it is. `docker-ID.scope` with systemd, `docker/ID` without.
const SCOPES: [(&str, &str); 6] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-payload-", "podman"),
    ("libpod-", "podman"),
];

/// Folders whose entries are containers, where no scope says whose.
const PARENTS: [(&str, &str); 2] = [("docker", "docker"), ("libpod_parent", "podman")];

impl Place {
    /// Understands a path such as those of /proc/PID/cgroup.
    pub fn of(path: &str) -> Self {
        let mut place = Self::default();
        let mut parent = "";
        // containerd with the systemd driver, where its runc does not use it: SLICE:PREFIX:ID in one component.
        let components = path.split('/').flat_map(|component| component.split(':'));
        for component in components.filter(|component| !component.is_empty()) {
            if let Some(uid) = pod_uid(component) {
                place.pod_uid = uid;
                (place.container_id, place.runtime) = Default::default();
            } else if let Some((id, runtime)) = container(component, parent) {
                place.container_id = id.to_owned();
                place.runtime = runtime.to_owned();
            } else if place.container_id.is_empty() && is_unit(component) {
                place.unit = component.to_owned();
            }
            parent = component;
        }
        // What systemd calls the container itself is no unit that anyone wrote.
        if !place.pod_uid.is_empty() {
            place.unit.clear();
        }
        place
    }

    /// Whether it says anything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `podUID`, `kubepods-burstable-podUID.slice`, with `_` for `-` in the latter.
fn pod_uid(component: &str) -> Option<String> {
    let name = component.strip_suffix(".slice").unwrap_or(component);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None if name.starts_with("kubepods") => name.rsplit_once("-pod")?.1,
        None => return None,
    };
    let uid = uid.replace('_', "-");
    // A UUID, or for a static pod a hash.
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let is_uid = digits == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_uid.then_some(uid)
}

fn container<'a>(component: &'a str, parent: &str) -> Option<(&'a str, &'static str)> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    for (prefix, runtime) in SCOPES {
        // The monitors of containers, such as crio-conmon-ID, have names that are no ids.
        if let Some(id) = name.strip_prefix(prefix).filter(|id| is_container_id(id)) {
            return Some((id, runtime));
        }
    }
    if !is_container_id(name) {
        return None;
    }
    let by_parent = PARENTS.into_iter().find(|(folder, _)| *folder == parent);
    let by_prefix = SCOPES
        .into_iter()
        .find(|(prefix, _)| prefix.strip_suffix('-') == Some(parent));
    Some((name, by_parent.or(by_prefix).map_or("", |(_, runtime)| runtime)))
}

/// 64 hexadecimal digits: all these runtimes name containers so.
fn is_container_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Units that processes run in, slices aside: those only group others.
fn is_unit(component: &str) -> bool {
    let name = component
        .strip_suffix(".service")
        .or(component.strip_suffix(".scope"));
    name.is_some_and(|name| !name.is_empty() && !name.contains("conmon-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const OTHER: &str = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210";
    const UID: &str = "2f5b6d1a-3c4e-4f60-8a7b-9c0d1e2f3a4b";
    const UID_: &str = "2f5b6d1a_3c4e_4f60_8a7b_9c0d1e2f3a4b";

    /// `path` with the ids in it; unit, runtime, whether the container is `ID`, whether the pod is `UID`.
    fn check(path: &str, unit: &str, runtime: Option<&str>, has_pod: bool) {
        let path = path
            .replace("OTHER", OTHER)
            .replace("ID_", UID_)
            .replace("UUID", UID)
            .replace("ID", ID);
        let expected = Place {
            unit: unit.to_owned(),
            container_id: runtime.map_or_else(String::new, |_| ID.to_owned()),
            runtime: runtime.unwrap_or_default().to_owned(),
            pod_uid: if has_pod { UID.to_owned() } else { String::new() },
        };
        assert_eq!(Place::of(&path), expected, "{path}");
    }

    #[test]
    fn units_of_systemd_are_found_at_any_depth() {
        check("/system.slice/nginx.service", "nginx.service", None, false);
        check(
            "/system.slice/system-getty.slice/getty@tty1.service",
            "getty@tty1.service",
            None,
            false,
        );
        check(
            "/user.slice/user-1000.slice/session-3.scope",
            "session-3.scope",
            None,
            false,
        );
        check(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service",
            "web.service",
            None,
            false,
        );
        check("/init.scope", "init.scope", None, false);
        check(
            "/system.slice/postgresql.service/workers",
            "postgresql.service",
            None,
            false,
        );
    }

    #[test]
    fn what_belongs_to_nobody_is_nobodys() {
        for path in [
            "/",
            "",
            "/user.slice",
            "/a/b/c",
            "/process_api/9d85c19967961082fb6519a1a9d6f4df",
        ] {
            check(path, "", None, false);
        }
    }

    #[test]
    fn docker_with_either_driver() {
        check("/docker/ID", "", Some("docker"), false);
        check("/system.slice/docker-ID.scope", "", Some("docker"), false);
        // Of a user's own daemon; and what runs systemd inside.
        check(
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope",
            "user@1000.service",
            Some("docker"),
            false,
        );
        check(
            "/system.slice/docker-ID.scope/system.slice/cron.service",
            "",
            Some("docker"),
            false,
        );
    }

    #[test]
    fn podman_and_its_monitor() {
        check("/machine.slice/libpod-ID.scope", "", Some("podman"), false);
        check(
            "/machine.slice/libpod-ID.scope/container",
            "",
            Some("podman"),
            false,
        );
        check("/libpod_parent/libpod-ID", "", Some("podman"), false);
        check(
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "user@1000.service",
            Some("podman"),
            false,
        );
        check("/machine.slice/libpod-conmon-ID.scope", "", None, false);
    }

    #[test]
    fn pods_of_every_class_with_either_driver() {
        for class in ["/kubepods/burstable", "/kubepods/besteffort", "/kubepods"] {
            check(&format!("{class}/podUUID/ID"), "", Some(""), true);
            check(&format!("{class}/podUUID/crio-ID"), "", Some("cri-o"), true);
        }
        for class in [
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort",
            "/kubepods.slice/kubepods",
        ] {
            for (scope, runtime) in [
                ("cri-containerd", "containerd"),
                ("crio", "cri-o"),
                ("docker", "docker"),
            ] {
                check(
                    &format!("{class}-podID_.slice/{scope}-ID.scope"),
                    "",
                    Some(runtime),
                    true,
                );
            }
            // The pod's own, and the monitor of CRI-O.
            check(&format!("{class}-podID_.slice"), "", None, true);
            check(
                &format!("{class}-podID_.slice/crio-conmon-ID.scope"),
                "",
                None,
                true,
            );
        }
    }

    #[test]
    fn containerd_without_its_own_driver_puts_everything_into_one_component() {
        check(
            "/system.slice/containerd.service/kubepods-burstable-podID_.slice:cri-containerd:ID",
            "",
            Some("containerd"),
            true,
        );
    }

    #[test]
    fn of_nested_ones_the_innermost_counts() {
        check(
            "/docker/OTHER/kubelet.slice/kubelet-kubepods.slice/kubepods-podID_.slice/cri-containerd-ID.scope",
            "",
            Some("containerd"),
            true,
        );
        check(
            "/system.slice/docker-OTHER.scope/docker/ID",
            "",
            Some("docker"),
            false,
        );
    }

    #[test]
    fn a_static_pod_has_a_hash_for_an_id() {
        let hash = "0123456789abcdef0123456789abcdef";
        let place = Place::of(&format!("/kubepods/burstable/pod{hash}/{ID}"));
        assert_eq!(place.pod_uid, hash);
        assert_eq!(Place::of("/kubepods/podium"), Place::default());
    }
}
