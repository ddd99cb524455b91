//! `holdfast-agent check`: what this kernel offers and these capabilities allow, and what the agent will therefore
//! see or miss. It finds out by trying: the programs are loaded, not guessed at.

use std::{fs, path::Path};

use holdfast_agent_ebpf::offset::{ABSENT, PATHS};
use rustix::system::uname;
use serde_json::json;

use crate::{
    btf::{Btf, VMLINUX},
    probes::{self, Options, ProbeError, Probes},
};

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    /// A short name; also how the collector knows it.
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What follows for the agent, and what to do; empty if all is well.
    pub consequence: String,
}

/// How a finding bears on the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// The agent runs and sees less.
    Less,
    /// The agent cannot run.
    Missing,
}

impl Verdict {
    /// As it is printed.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Less => "less",
            Self::Missing => "missing",
        }
    }
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            consequence: String::new(),
        }
    }

    fn less(name: &'static str, found: impl Into<String>, consequence: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Less,
            found: found.into(),
            consequence: consequence.into(),
        }
    }

    fn missing(name: &'static str, found: impl Into<String>, consequence: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Missing,
            found: found.into(),
            consequence: consequence.into(),
        }
    }

    /// The finding as a JSON object.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "name": self.name,
            "verdict": self.verdict.word(),
            "found": self.found,
            "consequence": self.consequence,
        })
    }
}

/// Looks at everything. Nothing is attached, and nothing stays loaded.
pub fn findings() -> Vec<Finding> {
    vec![
        kernel(),
        built_in(),
        capabilities(),
        types(),
        members(),
        programs(),
        cpus(),
        cgroups(),
        pid_namespace(),
        machine_id(),
    ]
}

/// Whether the agent can run with these findings.
pub fn can_run(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Missing)
}

fn kernel() -> Finding {
    const NAME: &str = "kernel";
    let release = uname().release().to_string_lossy().into_owned();
    match version(&release) {
        Some(version) if version < (5, 12) => Finding::missing(
            NAME,
            release,
            "the programs need Linux 5.12 (socket cookies in tracing programs); 6.1 and later are supported",
        ),
        Some(version) if version < (6, 1) => Finding::less(
            NAME,
            release,
            "older than 6.1, the oldest supported kernel: best effort",
        ),
        Some(_) => Finding::ok(NAME, release),
        None => Finding::less(NAME, release, "a version that is not understood"),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn built_in() -> Finding {
    const NAME: &str = "programs_built_in";
    if probes::are_built_in() {
        Finding::ok(NAME, "yes")
    } else {
        Finding::missing(NAME, "no", format!("{}", ProbeError::NoPrograms))
    }
}

fn capabilities() -> Finding {
    const NAME: &str = "capabilities";
    // include/uapi/linux/capability.h
    const NEEDED: [(&str, u32); 2] = [("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let Some(effective) = effective else {
        return Finding::less(
            NAME,
            "unknown",
            "/proc/self/status cannot be read: is /proc mounted?",
        );
    };
    let has = |capability: u32| effective >> capability & 1 == 1;
    let lacking: Vec<_> = NEEDED
        .iter()
        .filter(|(_, number)| !has(*number) && !has(CAP_SYS_ADMIN))
        .map(|(name, _)| *name)
        .collect();
    if lacking.is_empty() {
        Finding::ok(NAME, "CAP_BPF and CAP_PERFMON")
    } else {
        Finding::missing(
            NAME,
            format!("without {}", lacking.join(" and ")),
            "run as root, or give these capabilities (systemd: AmbientCapabilities=CAP_BPF CAP_PERFMON)",
        )
    }
}

fn types() -> Finding {
    const NAME: &str = "btf";
    match Btf::of_this_kernel() {
        Ok(_) => Finding::ok(NAME, VMLINUX),
        Err(error) => Finding::missing(
            NAME,
            format!("{error:#}"),
            "without BTF no program can be loaded: use a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ),
    }
}

fn members() -> Finding {
    const NAME: &str = "kernel_members";
    let Ok(btf) = Btf::of_this_kernel() else {
        return Finding::less(NAME, "unknown", "see btf");
    };
    let absent: Vec<_> = btf
        .offsets()
        .iter()
        .zip(PATHS)
        .filter(|(offset, _)| **offset == ABSENT)
        .map(|(_, (name, path))| format!("{name}.{}", path.join(".")))
        .collect();
    if absent.is_empty() {
        Finding::ok(NAME, format!("all {}", PATHS.len()))
    } else {
        Finding::less(
            NAME,
            format!("without {}", absent.join(", ")),
            "these read as zero in every record",
        )
    }
}

/// Loads the programs, which proves tp_btf, the maps, the ring buffer and the verifier's consent at once.
fn programs() -> Finding {
    const NAME: &str = "programs_load";
    // A small map: nothing is attached, so nothing is followed.
    match Probes::load(Options {
        connections: 16,
        ..Options::default()
    }) {
        Ok(_) => Finding::ok(
            NAME,
            "tp_btf inet_sock_set_state, ring buffer, hash and per-CPU maps",
        ),
        Err(ProbeError::NoPrograms) => Finding::missing(NAME, "there are none", "see programs_built_in"),
        Err(ProbeError::NotPermitted) => Finding::missing(NAME, "not permitted", "see capabilities"),
        Err(error) => {
            let text = format!("{:#}", anyhow::Error::new(error));
            let first = text.lines().next().unwrap_or_default().to_owned();
            Finding::missing(
                NAME,
                first,
                "the kernel refuses the programs; `holdfast-agent run` prints its whole reason",
            )
        }
    }
}

fn cpus() -> Finding {
    const NAME: &str = "cpus";
    let path = "/sys/devices/system/cpu/possible";
    match fs::read_to_string(path) {
        Ok(cpus) => Finding::ok(NAME, cpus.trim()),
        Err(error) => Finding::missing(
            NAME,
            format!("{path}: {error}"),
            "without it the per-CPU counters cannot be read, and a loss would go unseen: mount /sys",
        ),
    }
}

fn cgroups() -> Finding {
    const NAME: &str = "cgroup";
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let mounted = |kind: &str| mounts.lines().any(|line| line.split(' ').nth(2) == Some(kind));
    match (mounted("cgroup2"), mounted("cgroup")) {
        (true, false) => Finding::ok(NAME, "v2"),
        (true, true) => Finding::less(
            NAME,
            "v1 and v2",
            "cgroup_id is that of the v2 hierarchy, where most processes share the root",
        ),
        (false, true) => Finding::less(
            NAME,
            "v1",
            "cgroup_id says nothing: it is an id of the v2 hierarchy",
        ),
        (false, false) => Finding::less(NAME, "not mounted", "cgroups cannot be named"),
    }
}

fn pid_namespace() -> Finding {
    const NAME: &str = "pid_namespace";
    // PROC_PID_INIT_INO, include/linux/proc_ns.h
    const INITIAL: &str = "pid:[4026531836]";
    match fs::read_link("/proc/self/ns/pid") {
        Ok(link) if link == Path::new(INITIAL) => Finding::ok(NAME, "the initial one"),
        Ok(link) => Finding::less(
            NAME,
            link.display().to_string(),
            "pids in the rows are those of the initial namespace and differ from those seen here (Kubernetes: hostPID: true)",
        ),
        Err(error) => Finding::less(NAME, error.to_string(), "cannot be read: is /proc mounted?"),
    }
}

fn machine_id() -> Finding {
    const NAME: &str = "machine_id";
    if crate::identity::has_machine_id() {
        Finding::ok(NAME, "yes")
    } else {
        Finding::less(
            NAME,
            "no",
            "the agent is known by its name alone: write /etc/machine-id (systemd-machine-id-setup)",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_understood() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.10.0-30-amd64"), Some((5, 10)));
        assert_eq!(version("mainline"), None);
    }
}
