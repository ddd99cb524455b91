//! The agent's command line. Everything has a default, and every flag an environment variable.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};
use holdfast_agent_ebpf::limits;

use crate::{
    controls::settings::{Allowed, Transitions},
    identity::check_name,
    load::{
        consent::{Consent, Targets},
        run::Caps,
    },
    syscalls::Mode,
    uplink::Collector,
    workloads::{cri::Runtimes, pods::Kubelet, rules::Rule},
};

/// Watches the TCP connections and system calls of this node in the kernel and tells the collector
///
/// Needs Linux 6.1 or later with BTF, and root or the capabilities CAP_BPF and CAP_PERFMON.
#[derive(Debug, Parser)]
#[command(
    name = "holdfast-agent",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(after_help = "Examples:
  holdfast-agent check                       what this kernel offers, and what the agent will see
  holdfast-agent run                         watch this machine, tell a collector on this machine
  holdfast-agent run --collector http://10.0.0.5:7443 --label role=web --label zone=b")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch the kernel and tell the collector, until SIGINT or SIGTERM
    Run(Box<RunArgs>),
    /// Print what this kernel offers and what the agent will therefore see or miss
    ///
    /// Loads the programs to find out, and attaches nothing. Exit code 0: the agent can run here; 1: it cannot.
    Check(CheckArgs),
    /// Print shell completions
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

/// `holdfast-agent run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Where the collector listens
    #[arg(long, env = "HOLDFAST_COLLECTOR", value_name = "URL", default_value = "http://127.0.0.1:7443",
        value_parser = Collector::parse)]
    pub collector: Collector,

    /// The name of this node [default: the host name]
    #[arg(long, env = "HOLDFAST_NAME", value_parser = node_name)]
    pub name: Option<String>,

    /// A label of this node, such as role=web; may be given several times (environment: separated by commas)
    #[arg(long = "label", env = "HOLDFAST_LABELS", value_name = "KEY=VALUE", value_delimiter = ',',
        value_parser = label)]
    pub labels: Vec<(String, String)>,

    /// Which network namespaces to observe: all of the machine, the agent's own, or the one at a path such as
    /// /run/netns/web
    #[arg(
        long,
        env = "HOLDFAST_NETNS",
        value_name = "self|all|PATH",
        default_value = "all"
    )]
    pub netns: Netns,

    /// Size of the ring buffer between kernel and agent, a power of two
    #[arg(long, env = "HOLDFAST_RING", value_name = "SIZE", default_value = "8MiB", value_parser = ring_bytes)]
    pub ring: u32,

    /// Connections that are followed at once; more are counted as untracked
    #[arg(long, env = "HOLDFAST_CONNECTIONS", value_name = "N", default_value_t = limits::CONNECTIONS,
        value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub connections: u32,

    /// What to count of the system calls of all processes: nothing, calls and errors, how long one call in 16 (or N) took
    /// too, or how long each took
    #[arg(
        long,
        env = "HOLDFAST_SYSCALLS",
        value_name = "off|counts|sampled[=N]|full",
        default_value = "sampled"
    )]
    pub syscalls: Mode,

    /// Which changes of TCP state to stream as they happen, beside the records of connections, which tell them in the end:
    /// none, all, or those of some, such as "ports=5432;processes=nginx" (ports, addresses, cgroups, processes, namespaces;
    /// those that fit all of these)
    #[arg(
        long,
        env = "HOLDFAST_TRANSITIONS",
        value_name = "closed|all|WHOSE",
        default_value = "closed"
    )]
    pub transitions: Transitions,

    /// Size of the ring buffer of transitions, a power of two
    #[arg(long, env = "HOLDFAST_TRANSITION_RING", value_name = "SIZE", default_value = "4MiB", value_parser = ring_bytes)]
    pub transition_ring: u32,

    /// Which service a process belongs to: the first rule that fits, such as "unit=nginx*.service -> web" or
    /// "namespace=prod, label.app=shop -> shop"; may be given several times (environment: separated by semicolons). A rule
    /// looks at unit, container, pod, namespace, label.NAME, cgroup and comm; * stands for any text. [default: the owner of
    /// the pod, the name of the container, or the unit]
    #[arg(
        long = "service",
        env = "HOLDFAST_SERVICES",
        value_name = "RULE",
        value_delimiter = ';'
    )]
    pub services: Vec<Rule>,

    /// Where the container runtime is asked for the names and labels of pods and containers (Container Runtime Interface,
    /// version 1): the path of its socket, or where containerd, CRI-O and cri-dockerd listen if they do
    #[arg(
        long,
        env = "HOLDFAST_CRI_SOCKET",
        value_name = "auto|off|PATH",
        default_value = "auto"
    )]
    pub cri_socket: Runtimes,

    /// Where the kubelet lists its pods, which also says what made each: http://127.0.0.1:10255 (its read-only port), or
    /// unix:PATH [default: not asked]
    #[arg(long, env = "HOLDFAST_KUBELET", value_name = "URL")]
    pub kubelet: Option<Kubelet>,

    /// What a collector may change while the agent runs: filters, streams, transitions, connections[=N] (follow one in N at
    /// the least), syscalls[=MODE] (count them so at the most), separated by commas; all or none of it
    #[arg(
        long,
        env = "HOLDFAST_CONTROL",
        value_name = "none|all|WHAT,...",
        default_value = "none"
    )]
    pub control: Allowed,

    /// What the agent and its programs may take of the machine's CPU time: beyond it, system calls are no longer counted,
    /// then transitions no longer streamed, then only one connection in 4, 16, 64 followed, until there is room again
    #[arg(
        long,
        env = "HOLDFAST_MAX_CPU",
        value_name = "SHARE|off",
        default_value = "5%"
    )]
    pub max_cpu: MaxCpu,

    /// How often the agent reports what it costs, and --max-cpu is judged
    #[arg(long, env = "HOLDFAST_OVERHEAD_EVERY", value_name = "TIME", default_value = "10s",
        value_parser = overhead_every)]
    pub overhead_every: Duration,

    /// Where batches wait that the collector has not acknowledged, across restarts; one folder for each agent
    /// [default: /var/lib/holdfast/agents/NAME; in memory only where that cannot be written]
    #[arg(long, env = "HOLDFAST_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// How much may wait on disk; when it is full the oldest is dropped, and becomes a gap
    #[arg(long, env = "HOLDFAST_SPOOL", value_name = "SIZE", default_value = "512MiB", value_parser = spool_bytes)]
    pub spool: u64,

    /// How much memory the batches that wait may take, and what is known of those on disk: 448 bytes each
    #[arg(long, env = "HOLDFAST_SPOOL_MEMORY", value_name = "SIZE", default_value = "64MiB",
        value_parser = spool_bytes)]
    pub spool_memory: u64,

    /// How old a batch may become while it waits, by a clock that nobody sets: a reboot starts it anew; then it is dropped, and
    /// becomes a gap
    #[arg(long, env = "HOLDFAST_SPOOL_AGE", value_name = "TIME", default_value = "24h", value_parser = spool_age)]
    pub spool_age: Duration,

    /// How often what was written to the disk is synced: what a loss of power may take
    #[arg(long, env = "HOLDFAST_SPOOL_SYNC", value_name = "TIME", default_value = "1s", value_parser = spool_sync)]
    pub spool_sync: Duration,

    #[command(flatten)]
    pub load: LoadArgs,
}

/// What this node lets a collector ask of it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Load that a collector may ask this node to make")]
pub struct LoadArgs {
    /// Which targets, such as 10.0.0.0/8:80,8000-8999 or [fd00::]/8:443; may be given several times (environment: separated
    /// by spaces)
    #[arg(long, env = "HOLDFAST_LOAD_TARGETS", value_name = "NETWORK[:PORTS]", value_delimiter = ' ',
        default_values = ["127.0.0.0/8", "::1"])]
    pub load_targets: Vec<Targets>,

    /// Most connections at once
    #[arg(
        long,
        env = "HOLDFAST_LOAD_CONNECTIONS",
        value_name = "N",
        default_value_t = 20_000
    )]
    pub load_connections: u64,

    /// Most connections or requests a second; of --concurrency within any second
    #[arg(long, env = "HOLDFAST_LOAD_RATE", value_name = "N", default_value_t = 200_000)]
    pub load_rate: u32,

    /// Longest run
    #[arg(long, env = "HOLDFAST_LOAD_DURATION", value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub load_duration: Duration,

    /// Most payload of a run, both ways together
    #[arg(long, env = "HOLDFAST_LOAD_BYTES", value_name = "SIZE", default_value = "10GiB", value_parser = size)]
    pub load_bytes: u64,

    /// Most CPUs that the threads of a run may use, over three quarters of a second
    #[arg(long, env = "HOLDFAST_LOAD_CPUS", value_name = "N", default_value_t = 4.0)]
    pub load_cpus: f64,
}

impl LoadArgs {
    pub fn consent(&self) -> Consent {
        Consent {
            targets: self.load_targets.clone(),
            connections: self.load_connections,
            caps: Caps {
                per_second: self.load_rate.into(),
                bytes: self.load_bytes,
                cpus: self.load_cpus,
                duration: self.load_duration,
            },
        }
    }
}

/// `holdfast-agent check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,

    /// The container runtime to ask, as of `run`
    #[arg(
        long,
        env = "HOLDFAST_CRI_SOCKET",
        value_name = "auto|off|PATH",
        default_value = "auto"
    )]
    pub cri_socket: Runtimes,
}

/// Which network namespaces to observe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Netns {
    All,
    /// One, by its inode.
    Only(u32),
}

impl FromStr for Netns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = match text {
            "all" => return Ok(Self::All),
            "self" => PathBuf::from("/proc/self/ns/net"),
            path if path.contains('/') => PathBuf::from(path),
            _ => {
                return Err(format!(
                    "{text:?} is neither self, nor all, nor a path: did you mean /run/netns/{text}?"
                ));
            }
        };
        let metadata = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // A namespace file lies in nsfs, whose inode numbers are the namespaces' own; the kernel keeps them in 32 bits.
        match (u32::try_from(metadata.ino()), is_namespace(&path)) {
            (Ok(inode), true) => Ok(Self::Only(inode)),
            _ => Err(format!("{} is no network namespace", path.display())),
        }
    }
}

/// A share of the machine's CPU time: `1%`; or none that would be too much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaxCpu(pub Option<f64>);

impl FromStr for MaxCpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let percent = text
            .strip_suffix('%')
            .and_then(|text| text.trim().parse::<f64>().ok());
        match percent {
            // A millionth is what rows can tell.
            Some(percent) if (0.0001..=100.0).contains(&percent) => Ok(Self(Some(percent / 100.0))),
            _ => Err(format!(
                "{text:?} is neither off nor a share of the machine such as 1%"
            )),
        }
    }
}

fn overhead_every(text: &str) -> Result<Duration, String> {
    let number = |suffix| text.strip_suffix(suffix)?.trim().parse::<u64>().ok();
    let time = number("ms")
        .map(Duration::from_millis)
        .or_else(|| number("s").map(Duration::from_secs));
    match time {
        Some(time) if (Duration::from_millis(200)..=Duration::from_secs(3_600)).contains(&time) => Ok(time),
        _ => Err(format!("{text:?} must be a time from 200ms to 3600s")),
    }
}

fn is_namespace(path: &std::path::Path) -> bool {
    // linux/magic.h
    const NSFS_MAGIC: rustix::fs::FsWord = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

fn node_name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if is_label_key(key) && !value.contains(char::is_control) => {
            Ok((key.into(), value.into()))
        }
        _ => Err(format!(
            "{text:?} must be KEY=VALUE, with letters, digits, _, - , . or / in the key"
        )),
    }
}

fn is_label_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= 63
        && key
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-' | '.' | '/'))
}

fn ring_bytes(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    match u32::try_from(bytes) {
        Ok(bytes) if bytes.is_power_of_two() && (4096..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{text:?} must be a power of two from 4KiB to 1GiB")),
    }
}

fn spool_bytes(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < 4 << 20 {
        return Err(format!(
            "{text:?} is too small: a batch has up to 1MiB, use 4MiB or more"
        ));
    }
    Ok(bytes)
}

/// A batch waits a while for its answer where nothing is wrong.
fn spool_age(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        age if age < Duration::from_secs(60) => Err(format!("{text:?} is too short: use 1m or more")),
        age => Ok(age),
    }
}

fn spool_sync(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        time if (Duration::from_millis(10)..=Duration::from_secs(3_600)).contains(&time) => Ok(time),
        _ => Err(format!("{text:?} must be a time from 10ms to 1h")),
    }
}

/// A time with its unit.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor_ms = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("{text:?} is no time: write 90s, 10m, 1h or 1d")),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor_ms))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is no time: write 90s, 10m, 1h or 1d"))
}

/// A number of bytes with an optional unit.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.len()
        - text
            .trim_start_matches(|letter: char| letter.is_ascii_digit())
            .len();
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        unit => return Err(format!("{text:?}: {unit:?} is no unit: use KiB, MiB or GiB")),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| format!("{text:?} is no size: try 4MiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_need_a_known_unit() {
        assert_eq!(size("4MiB"), Ok(4 << 20));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "MiB", "4MB", "-1", "99999999999999999999GiB", "1.5MiB"] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
        assert!(ring_bytes("3MiB").is_err());
    }

    #[test]
    fn a_budget_is_a_share_or_off() {
        assert_eq!("1%".parse(), Ok(MaxCpu(Some(0.01))));
        assert_eq!("off".parse(), Ok(MaxCpu(None)));
        for bad in ["", "1", "0%", "101%", "-1%", "one%", "on", "NaN%"] {
            assert!(bad.parse::<MaxCpu>().is_err(), "{bad:?}");
        }
        assert_eq!(overhead_every("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "10", "0s", "10m", "2h"] {
            assert!(overhead_every(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(spool_sync("200ms"), Ok(Duration::from_millis(200)));
        assert!(spool_sync("0s").is_err() && spool_age("59s").is_err());
        for bad in ["", "10", "m", "-1s", "1w", "99999999999999999999s", "1.5h"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn labels_are_key_and_value() {
        assert_eq!(label("role=web"), Ok(("role".into(), "web".into())));
        assert_eq!(label("url=a=b"), Ok(("url".into(), "a=b".into())));
        for bad in ["role", "=web", "ro le=web", "role=two\nlines"] {
            assert!(label(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_namespace_is_given_by_word_or_by_path() {
        assert_eq!("all".parse(), Ok(Netns::All));
        assert!(matches!("self".parse(), Ok(Netns::Only(inode)) if inode > 0));
        assert!(
            "web"
                .parse::<Netns>()
                .expect_err("no path")
                .contains("/run/netns/web")
        );
        assert!("/no/such/file".parse::<Netns>().is_err());
        assert!(
            "/proc/self/status"
                .parse::<Netns>()
                .expect_err("a file")
                .contains("no network namespace")
        );
    }
}
