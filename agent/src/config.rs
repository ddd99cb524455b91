//! The agent's command line. Everything has a default, and every flag an environment variable.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand};
use holdfast_agent_ebpf::limits;

use crate::{identity::check_name, uplink::Collector};

/// Watches the TCP connections of this node in the kernel and tells the collector
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

    /// Where batches wait that the collector has not acknowledged, across restarts; one folder for each agent
    /// [default: /var/lib/holdfast/agents/NAME; in memory only where that cannot be written]
    #[arg(long, env = "HOLDFAST_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,

    /// How much may wait on disk; when it is full the oldest is dropped, and becomes a gap
    #[arg(long, env = "HOLDFAST_SPOOL", value_name = "SIZE", default_value = "512MiB", value_parser = spool_bytes)]
    pub spool: u64,

    /// How much may wait in memory
    #[arg(long, env = "HOLDFAST_SPOOL_MEMORY", value_name = "SIZE", default_value = "64MiB",
        value_parser = spool_bytes)]
    pub spool_memory: u64,
}

/// `holdfast-agent check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
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
