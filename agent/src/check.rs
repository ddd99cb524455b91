//! `holdfast-agent check`: what this kernel offers and these capabilities allow, and what the agent will therefore
//! see or miss. It finds out by trying: the programs are loaded, not guessed at.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use holdfast_agent_ebpf::offset::{ABSENT, PATHS};
use serde_json::json;

use crate::{
    btf::{Btf, VMLINUX},
    kernel::{self, SUPPORTED},
    overhead::meter::Programs,
    probes::{self, OPTIONAL_HOOKS, Options, ProbeError, Probes},
    syscalls::kernel::{Sizes, is_ours},
    witness::visitor::Visitor,
    workloads::cri::{Asked, PATIENCE_AT_START, Runtimes, Unanswered},
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

    /// Its name, if it is not all that it could be.
    pub fn lacks(&self) -> Option<&'static str> {
        (self.verdict != Verdict::Ok).then_some(self.name)
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

/// Looks at everything, at these container runtimes too. Nothing is attached, and nothing stays loaded.
pub fn findings(runtimes: &Runtimes) -> Vec<Finding> {
    let (programs, probes) = programs();
    let of_probes = [
        failed_connects(probes.as_ref()),
        signals(probes.as_ref()),
        survey(probes.as_ref()),
    ];
    drop(probes);
    let [failed_connects, signals, survey] = of_probes;
    vec![
        version(),
        built_in(),
        capabilities(),
        types(),
        members(),
        programs,
        failed_connects,
        signals,
        survey,
        namespaces(None),
        owners(),
        syscalls(),
        cpus(),
        statistics(),
        cgroups(),
        container_runtime(runtimes),
        pid_namespace(),
        machine_id(),
    ]
}

/// What this kernel or the capabilities do not allow, or only in part, by the names of the findings: as the collector is
/// told, but for the container runtime ([`container_runtime`] takes its time). Loads nothing: the programs that the agent runs
/// are asked. `only_netns`: the only network namespace that is observed.
pub fn missing_features(probes: &Probes, are_syscalls_refused: bool, only_netns: Option<u32>) -> Vec<String> {
    let of_programs = [
        version(),
        capabilities(),
        members(),
        failed_connects(Some(probes)),
        signals(Some(probes)),
        survey(Some(probes)),
        namespaces(only_netns),
        owners(),
    ];
    let of_machine = [cpus(), statistics(), cgroups(), pid_namespace(), machine_id()];
    let name = |finding: &Finding| finding.lacks();
    let names = of_programs.iter().filter_map(name);
    names
        .chain(are_syscalls_refused.then_some(SYSCALLS))
        .chain(of_machine.iter().filter_map(name))
        .map(str::to_owned)
        .collect()
}

/// Whether the agent can run with these findings.
pub fn can_run(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Missing)
}

fn version() -> Finding {
    const NAME: &str = "kernel";
    let release = kernel::release();
    match kernel::version(&release) {
        Some(version) if version < SUPPORTED => {
            let (major, minor) = SUPPORTED;
            let consequence = format!("older than {major}.{minor}, the oldest supported kernel: best effort");
            Finding::less(NAME, release, consequence)
        }
        Some(_) => Finding::ok(NAME, release),
        None => Finding::less(NAME, release, "a version that is not understood"),
    }
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
    let Some(effective) = effective_capabilities() else {
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

// include/uapi/linux/capability.h
const CAP_DAC_OVERRIDE: u32 = 1;
const CAP_DAC_READ_SEARCH: u32 = 2;
const CAP_SYS_PTRACE: u32 = 19;

fn has_capability(capability: u32) -> bool {
    effective_capabilities().is_some_and(|effective| effective >> capability & 1 == 1)
}

/// A bit for each; `None` where /proc does not say.
fn effective_capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
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
fn programs() -> (Finding, Option<Probes>) {
    const NAME: &str = "programs_load";
    // A small map: nothing is attached, so nothing is followed.
    let loaded = Probes::load(Options {
        connections: 16,
        ..Options::default()
    });
    let finding = match loaded {
        Ok(probes) => {
            let found = "tp_btf inet_sock_set_state, ring buffer, hash and per-CPU maps";
            return (Finding::ok(NAME, found), Some(probes));
        }
        Err(ProbeError::NoPrograms) => Finding::missing(NAME, "there are none", "see programs_built_in"),
        Err(ProbeError::NotPermitted) => Finding::missing(NAME, "not permitted", "see capabilities"),
        Err(error @ ProbeError::Lacking { .. }) => {
            Finding::missing(NAME, error.to_string(), "use a kernel that is supported")
        }
        Err(error) => {
            let text = format!("{:#}", anyhow::Error::new(error));
            let first = text.lines().next().unwrap_or_default().to_owned();
            Finding::missing(
                NAME,
                first,
                "the kernel refuses the programs; `holdfast-agent run` prints its whole reason",
            )
        }
    };
    (finding, None)
}

/// Whether they may read why connect() fails.
fn failed_connects(probes: Option<&Probes>) -> Finding {
    const NAME: &str = "failed_connects";
    match probes {
        Some(probes) if probes.sees_failed_connects() => {
            Finding::ok(NAME, "tp_btf sys_exit, bpf_probe_read_kernel")
        }
        Some(_) => Finding::less(
            NAME,
            "the kernel lets no program read what connect() was called with",
            "an attempt that ends before a SYN left (no route, no permission) stays unseen, one without a free port has no \
             errno, and how long a connection waited for accept() is not told",
        ),
        None => Finding::less(NAME, "unknown", "see programs_load"),
    }
}

/// Which of the hooks of trouble the kernel takes programs for.
fn signals(probes: Option<&Probes>) -> Finding {
    const NAME: &str = "tcp_signals";
    let Some(probes) = probes else {
        return Finding::less(NAME, "unknown", "see programs_load");
    };
    let refused = probes.refused();
    if refused.is_empty() {
        return Finding::ok(NAME, OPTIONAL_HOOKS.map(|(hook, _)| hook).join(", "));
    }
    let missing = OPTIONAL_HOOKS.iter().filter(|(hook, _)| refused.contains(hook));
    let missing: Vec<_> = missing.map(|(_, missing)| *missing).collect();
    Finding::less(
        NAME,
        format!("the kernel refuses {}", refused.join(", ")),
        missing.join("; "),
    )
}

/// Whether the kernel shows its sockets.
fn survey(probes: Option<&Probes>) -> Finding {
    const NAME: &str = "survey";
    match probes {
        Some(probes) if probes.sees_sockets() => Finding::ok(NAME, "bpf_iter_tcp"),
        Some(_) => Finding::less(
            NAME,
            "the kernel does not show its TCP sockets to programs",
            "connections and listeners that are older than the agent, what is open and the queues of listeners stay unseen",
        ),
        None => Finding::less(NAME, "unknown", "see programs_load"),
    }
}

/// Whether network namespaces beside the agent's own can be found and entered, unless that is the only one that is
/// observed. The hooks see all of them anyway.
fn namespaces(only_netns: Option<u32>) -> Finding {
    const NAME: &str = "namespaces";
    const CONSEQUENCE: &str = "of the other network namespaces, connections are seen from their opening on, but not what is \
                               older than the agent, what is open, the listeners, nor what the kernel counts itself (the \
                               witness): run as root, or with CAP_SYS_ADMIN, CAP_SYS_PTRACE and without RestrictNamespaces=";
    let home = |metadata: fs::Metadata| u32::try_from(metadata.ino()).ok();
    let own = fs::metadata("/proc/self/ns/net").ok().and_then(home);
    if only_netns.is_some() && only_netns == own {
        return Finding::ok(NAME, "only the agent's own is observed");
    }
    // What a task of somebody else's is in is shown to nobody without it.
    let found = has_capability(CAP_SYS_PTRACE)
        .then_some(())
        .ok_or("cannot be found without CAP_SYS_PTRACE".to_owned());
    let entered = || Visitor::can_enter().map_err(|error| format!("cannot be entered: {error}"));
    match found.and_then(|()| entered()) {
        Ok(()) => Finding::ok(NAME, "all can be entered"),
        Err(reason) => Finding::less(NAME, reason, CONSEQUENCE),
    }
}

/// Whether /proc tells whose a socket is that is older than the agent.
fn owners() -> Finding {
    const NAME: &str = "owners";
    if has_capability(CAP_SYS_PTRACE)
        && (has_capability(CAP_DAC_READ_SEARCH) || has_capability(CAP_DAC_OVERRIDE))
    {
        return Finding::ok(NAME, "/proc/PID/fd");
    }
    Finding::less(
        NAME,
        "what other users' processes have open cannot be read",
        "whose connections and listeners those are that are older than the agent stays unknown: run as root, or with \
         CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
    )
}

const SYSCALLS: &str = "syscalls";

/// Loads those for syscalls, which the agent can do without.
fn syscalls() -> Finding {
    const NAME: &str = SYSCALLS;
    match Probes::load(Options {
        connections: 16,
        syscalls: Some(Sizes::none()),
        ..Options::default()
    }) {
        Ok(_) => Finding::ok(NAME, "tp_btf sys_enter, sys_exit"),
        Err(ProbeError::Program { program, source }) if is_ours(program) => Finding::less(
            NAME,
            format!("the kernel refuses the program {program}: {source}")
                .lines()
                .next()
                .unwrap_or_default(),
            "system calls are not counted",
        ),
        Err(_) => Finding::less(NAME, "unknown", "see programs_load"),
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

fn statistics() -> Finding {
    const NAME: &str = "statistics";
    match Programs::new(Vec::new()).measure() {
        Ok(_) => Finding::ok(NAME, "the kernel measures programs"),
        Err(error) => Finding::less(
            NAME,
            error.to_string(),
            "what the programs cost is not known, and --max-cpu counts the agent's own time only: needs CAP_SYS_ADMIN, \
             or the setting kernel.bpf_stats_enabled = 1",
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
            "sockets know the v2 hierarchy only: one of its root is named by the cgroup (v1) that its process has when its \
             record comes",
        ),
        (false, true) => Finding::less(
            NAME,
            "v1",
            "sockets know none: they are named by the cgroup that their process has when its record comes",
        ),
        (false, false) => Finding::less(NAME, "not mounted", "cgroups cannot be named"),
    }
}

/// Whether the names of pods can be had where there is a container runtime. A node without one lacks nothing. Takes up to
/// [`PATIENCE_AT_START`].
pub fn container_runtime(runtimes: &Runtimes) -> Finding {
    const NAME: &str = "container_runtime";
    const CONSEQUENCE: &str = "pods and containers are known by their ids only, unless the kubelet tells (--kubelet): the \
                               socket is its owner's, so run as root or with CAP_DAC_OVERRIDE; if it is elsewhere, name \
                               it with --cri-socket; if nobody is to be asked, --cri-socket off";
    let (mut found, mut is_silent) = (Vec::new(), false);
    for Asked { socket, answer } in runtimes.versions(PATIENCE_AT_START) {
        let socket = socket.display();
        found.push(match answer {
            Ok(version) => format!("{version} at {socket}"),
            Err(error) => {
                // Whoever named it wants it to be one.
                is_silent |= error != Unanswered::NotSpoken || *runtimes != Runtimes::Auto;
                format!("{socket}: {error}")
            }
        });
    }
    let found = match (found.is_empty(), runtimes) {
        (true, Runtimes::Off) => "not asked".to_owned(),
        (true, _) => "none".to_owned(),
        (false, _) => found.join("; "),
    };
    if is_silent {
        Finding::less(NAME, found, CONSEQUENCE)
    } else {
        Finding::ok(NAME, found)
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
    fn a_runtime_that_is_named_and_does_not_answer_is_less() {
        let verdict = |runtimes: &Runtimes| container_runtime(runtimes).verdict;
        assert_eq!(verdict(&Runtimes::Off), Verdict::Ok);
        let nowhere = container_runtime(&Runtimes::At("/nonexistent/runtime.sock".into()));
        assert_eq!(nowhere.verdict, Verdict::Less);
        let found = "/nonexistent/runtime.sock: cannot connect: No such file or directory";
        assert!(nowhere.found.starts_with(found), "{}", nowhere.found);
    }
}
